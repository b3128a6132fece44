"""One run: the schedule, the metrics, checkpoints, and resuming to the bit."""

import contextlib
import csv
import dataclasses
import json
import math
import multiprocessing
import os
import signal
import time

import filelock
import pytest
import torch

import flopcount
from models.configuration import read_config
from models.data.corpus import CorpusConfig
from models.training import run as training
from models.training.checkpoints import (
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
    steps_done,
)
from models.training.run import (
    DivergedError,
    ModelConfig,
    Recipe,
    TrainConfig,
    check_config,
    learning_rate,
    load_model,
    train,
)
from models.training.step import Execution


@pytest.fixture
def config(train_config):
    return train_config


def without_time(rows):
    return [
        {name: value for name, value in row.items() if "second" not in name and name != "mfu"}
        for row in rows
    ]


class StoppedError(Exception):
    pass


def stop_at(step):
    def on_step(done):
        if done == step:
            raise StoppedError

    return on_step


def test_schedule_warms_up_and_falls_to_a_tenth():
    recipe = Recipe()
    # Long run: 200 steps of warm-up, the peak after them, half way the mean of 1 and 0.1.
    assert learning_rate(recipe, 0, 10_200) == pytest.approx(2e-4 / 200)
    assert learning_rate(recipe, 199, 10_200) == learning_rate(recipe, 200, 10_200) == 2e-4
    assert learning_rate(recipe, 200 + 5000, 10_201) == pytest.approx(0.55 * 2e-4)
    assert learning_rate(recipe, 10_199, 10_200) == pytest.approx(2e-5)
    # Short run: a tenth of it.
    assert learning_rate(recipe, 4, 50) == 2e-4
    assert learning_rate(recipe, 3, 50) == pytest.approx(2e-4 * 4 / 5)
    assert learning_rate(recipe, 0, 1) == 2e-4


def test_rows_count_tokens_and_flops(config, tmp_path):
    seen = []
    rows = train(config, tmp_path, seen.append)
    assert seen == list(range(31))
    assert [row["step"] for row in rows] == [10, 20, 30]
    assert [row["tokens"] for row in rows] == [240, 480, 720]
    counted = flopcount.PerceiverAR(
        vocab_size=262,
        num_latents=8,
        num_prefix=6,
        num_channels=8,
        num_layers=2,
        num_heads=2,
        prefix_dropout=0.5,
    ).flops(level="causal")
    # Ten steps of three sequences between rows.
    assert [row["flops"] / counted.total for row in rows] == [30, 60, 90]
    assert rows[-1]["validation_loss"] < rows[0]["validation_loss"] < 5.6
    with (tmp_path / "metrics.csv").open() as file:
        written = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    assert written == rows
    assert "mfu" not in rows[0]


def test_mfu_needs_a_named_device(config, tmp_path):
    (row,) = train(dataclasses.replace(config, validations=1, peak="h100"), tmp_path / "a")
    achieved = row["flops"] / row["seconds"]
    # A CPU run computes in fp32, so that peak is the one it is held against.
    assert row["mfu"] == pytest.approx(achieved / 66.9e12, rel=1e-9)
    assert row["flops_per_second"] == pytest.approx(achieved, rel=1e-9)
    with pytest.raises(ValueError, match="nosuch"):
        train(dataclasses.replace(config, peak="nosuch"), tmp_path / "b")


@pytest.mark.parametrize("stops", [[0], [5], [10], [4, 9, 23], [1, 2, 3, 29]])
def test_resumed_run_is_the_uninterrupted_one_to_the_bit(config, tmp_path, stops):
    whole = train(config, tmp_path / "whole")
    for step in stops:
        with pytest.raises(StoppedError):
            train(config, tmp_path / "stopped", stop_at(step))
        torch.rand(7)  # another process would have another generator state
    resumed = train(config, tmp_path / "stopped")
    assert without_time(resumed) == without_time(whole)
    _, expected, _ = load_checkpoint(tmp_path / "whole")
    _, actual, _ = load_checkpoint(tmp_path / "stopped")
    assert expected.keys() == actual.keys()
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


def test_batches_made_ahead_change_no_bit_also_when_resumed(config, tmp_path):
    whole = train(config, tmp_path / "whole")
    ahead = dataclasses.replace(config, execution=Execution(prefetch=3))
    with pytest.raises(StoppedError):
        train(ahead, tmp_path / "stopped", stop_at(9))
    assert without_time(train(ahead, tmp_path / "stopped")) == without_time(whole)


def test_another_execution_goes_on_with_a_run(config, tmp_path):
    """And reaches the same loss but for rounding."""
    whole = train(config, tmp_path / "whole")
    with pytest.raises(StoppedError):
        train(config, tmp_path / "stopped", stop_at(9))
    execution = Execution(micro_batches=3, loss="chunked", checkpointing="reentrant")
    changed = dataclasses.replace(config, execution=execution)
    rows = train(changed, tmp_path / "stopped")
    for row, expected in zip(rows, whole, strict=True):
        assert row["validation_loss"] == pytest.approx(expected["validation_loss"], rel=1e-5)
        assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-5)
    assert without_time(rows) != without_time(whole)
    environment = json.loads((tmp_path / "stopped" / "environment.json").read_text())
    assert environment["execution"]["micro_batches"] == 3


def test_every_commit_that_trained_a_run_is_recorded(config, tmp_path, monkeypatch):
    def commits():
        return json.loads((tmp_path / "environment.json").read_text())["commits"]

    # The second never reaches a checkpoint, the fourth has nothing left to train.
    for commit, stop in (("one", 9), ("lost", 9), ("two", 15), ("three", 30), ("four", None)):
        monkeypatch.setenv("FLOPCOUNT_COMMIT", commit)
        with contextlib.suppress(StoppedError):
            train(config, tmp_path, stop_at(stop))
    assert commits() == ["one", "two", "three"]


def test_resuming_without_the_generator_state_would_be_seen(config, tmp_path, monkeypatch):
    """The twin: prefix dropout draws, so a forgotten state changes the loss."""
    whole = train(config, tmp_path / "whole")
    with pytest.raises(StoppedError):
        train(config, tmp_path / "stopped", stop_at(10))
    monkeypatch.setattr(torch, "set_rng_state", lambda state: None)
    assert without_time(train(config, tmp_path / "stopped")) != without_time(whole)


def _train_in_process(config, folder):
    torch.set_num_threads(1)
    train(config, folder, lambda _: time.sleep(0.005))


def test_killed_process_resumes_to_the_bit(config, tmp_path):
    whole = train(config, tmp_path / "whole")
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_train_in_process, args=(config, tmp_path / "killed"))
    process.start()
    deadline = time.monotonic() + 30
    while not steps_done(tmp_path / "killed"):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert without_time(train(config, tmp_path / "killed")) == without_time(whole)


def test_finished_run_is_not_trained_again(config, tmp_path):
    rows = train(config, tmp_path)
    seen = []
    assert train(config, tmp_path, seen.append) == rows
    assert seen == [30]


def test_configuration_comes_back_from_its_file(config, tmp_path):
    train(config, tmp_path)
    assert read_config(TrainConfig, tmp_path) == config
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["torch"] == torch.__version__
    assert environment["attention"] == "reference"
    model = load_model(tmp_path)
    assert sum(parameter.numel() for parameter in model.parameters()) == (
        flopcount.PerceiverAR(**dataclasses.asdict(config.model)).params().total
    )


@pytest.mark.interpreter
def test_a_run_on_the_fused_attention_says_so(config, tmp_path):
    few = dataclasses.replace(config, steps=2, validations=1, validation_windows=1)
    fused = dataclasses.replace(few, execution=Execution(attention="fused"))
    expected, found = train(few, tmp_path / "reference"), train(fused, tmp_path / "fused")
    environment = json.loads((tmp_path / "fused" / "environment.json").read_text())
    assert environment["attention"] == "fused"
    assert found[-1]["validation_loss"] == pytest.approx(expected[-1]["validation_loss"], abs=1e-4)


def test_the_last_validation_may_have_windows_of_its_own(config, tmp_path):
    rows = {
        name: train(dataclasses.replace(config, **windows), tmp_path / name)
        for name, windows in {
            "few": {"validation_windows": 2},
            "many": {"validation_windows": 7},
            "both": {"validation_windows": 2, "final_validation_windows": 7},
        }.items()
    }
    losses = {name: [row["validation_loss"] for row in each] for name, each in rows.items()}
    assert losses["both"] == [*losses["few"][:-1], losses["many"][-1]]
    assert losses["few"][-1] != losses["many"][-1]
    with pytest.raises(ValueError, match="final_validation_windows must be at least 1, got 0"):
        train(dataclasses.replace(config, final_validation_windows=0), tmp_path / "none")


@pytest.mark.interpreter
def test_fused_attention_in_bf16_is_refused_before_training_without_a_gpu(config, tmp_path):
    execution = Execution(attention="fused", dtype="bf16")
    message = r"attention 'fused' cannot run in bf16 on cpu: Triton's interpreter multiplies"
    with pytest.raises(ValueError, match=message):
        check_config(dataclasses.replace(config, execution=execution))
    with pytest.raises(ValueError, match=message):
        train(dataclasses.replace(config, execution=execution), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_fused_attention_is_refused_where_nothing_runs_it(config, monkeypatch):
    monkeypatch.setattr("kernels.attention.launches.INTERPRETED", False)
    fused = dataclasses.replace(config, execution=Execution(attention="fused"))
    with pytest.raises(ValueError, match="'fused' cannot run in fp32 on cpu: the kernels run on"):
        check_config(fused)


def test_a_folder_holds_one_run(config, tmp_path):
    train(config, tmp_path)
    with pytest.raises(ValueError, match=r"made with another configuration: seed was 0, now 1$"):
        train(dataclasses.replace(config, seed=1), tmp_path)
    with pytest.raises(ValueError, match=r"configuration: recipe\.batch_size was 3, now 6$"):
        train(dataclasses.replace(config, recipe=Recipe(6, learning_rate=1e-2)), tmp_path)


def test_a_folder_without_a_run_is_named(config, tmp_path):
    with pytest.raises(ValueError, match="must be the folder of a run or a sweep"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"steps": 3, "nosuch": 4}')
    with pytest.raises(ValueError, match="must hold a TrainConfig, got other fields: 'nosuch'"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "must be JSON"), ("[]", "must hold a configuration, got"), ("3", "got 3")],
)
def test_a_broken_configuration_is_named(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"config\.json {message}|{message}"):
        load_model(tmp_path)


def test_wrong_input_leaves_the_folder_unclaimed(config, tmp_path):
    wrong = dataclasses.replace(config, corpus=CorpusConfig(files=("nosuch",)))
    with pytest.raises(ValueError, match="must match a file"):
        train(wrong, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_has_one_process(config, tmp_path):
    with (
        filelock.FileLock(tmp_path / ".lock"),
        pytest.raises(RuntimeError, match="another process is training in"),
    ):
        train(config, tmp_path)


def test_divergence_stops_the_run_and_keeps_the_last_good_checkpoint(config, tmp_path):
    with pytest.raises(StoppedError):
        train(config, tmp_path, stop_at(6))
    step, tensors, state = load_checkpoint(tmp_path)
    assert step == 4
    tensors["model.hybrid.mlp.up.weight"].fill_(float("nan"))
    save_checkpoint(tmp_path, step, tensors, state)
    with pytest.raises(DivergedError, match="the loss is nan within the steps before 8"):
        train(config, tmp_path)
    assert load_checkpoint(tmp_path)[0] == 4


def test_a_full_disk_ends_the_run_and_room_resumes_it_to_the_bit(config, tmp_path, small_disk):
    whole = train(config, tmp_path / "whole")
    folder = small_disk / "run"
    with pytest.raises(StoppedError):
        train(config, folder, stop_at(6))
    free = os.statvfs(small_disk)
    (small_disk / "ballast").write_bytes(bytes(free.f_bavail * free.f_frsize - 20_000))
    with pytest.raises(OSError, match="No space left"):
        train(config, folder)
    assert load_checkpoint(folder)[0] == 4
    (small_disk / "ballast").unlink()
    assert without_time(train(config, folder)) == without_time(whole)


def test_changed_corpus_is_refused(config, tmp_path, corpus):
    folder = tmp_path / "text"
    folder.mkdir()
    for index in range(2):
        (folder / f"{index}.txt").write_text(f"number {index} " * 50)
    config = dataclasses.replace(
        config, corpus=dataclasses.replace(corpus, files=(str(folder / "*"),))
    )
    train(config, tmp_path / "run")
    (folder / "1.txt").write_text("something else " * 50)
    with pytest.raises(CheckpointError, match="trained on another corpus"):
        train(config, tmp_path / "run")


def test_a_gradient_that_is_not_finite_stops_the_run_too(config, tmp_path, monkeypatch):
    """The loss of the step is finite still, the weights after it are not."""
    backward = torch.Tensor.backward
    steps = []

    def break_the_eighth(loss):
        backward(loss)
        steps.append(loss.item())
        if len(steps) == 8:
            loss_of_weights = next(iter(runs)).model.embedding.token.weight
            loss_of_weights.grad[0, 0] = float("inf")

    runs = []
    original = training._Run.__init__
    monkeypatch.setattr(
        training._Run, "__init__", lambda run, *args: (runs.append(run), original(run, *args))[1]
    )
    monkeypatch.setattr(torch.Tensor, "backward", break_the_eighth)
    with pytest.raises(DivergedError, match="the gradient's norm is inf within the steps before 8"):
        train(config, tmp_path)
    assert math.isfinite(sum(steps))
    assert load_checkpoint(tmp_path)[0] == 4


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "state", "loss"])
def test_damaged_checkpoint_is_named(config, tmp_path, damage):
    with pytest.raises(StoppedError):
        train(config, tmp_path, stop_at(6))
    (file,) = tmp_path.glob("step-*.safetensors")
    content = file.read_bytes()
    if damage == "truncate":
        file.write_bytes(content[:-100])
    elif damage == "flip":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "remove":
        file.unlink()
    elif damage == "state":
        (tmp_path / "checkpoint.json").write_text('{"step": 4')
    else:
        state = (tmp_path / "checkpoint.json").read_text()
        (tmp_path / "checkpoint.json").write_text(state.replace('"step": 4', '"step": 5'))
    with pytest.raises(CheckpointError, match="remove the run's folder to train it again"):
        train(config, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"validations": 0}, "validations must be at least 1, got 0"),
        ({"device": "tpu"}, "device must be auto, cpu or cuda, got 'tpu'"),
        pytest.param(
            {"device": "cuda"},
            "device must be auto or cpu where torch finds no GPU, got 'cuda'",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        ({"recipe": Recipe(batch_size=0)}, "batch_size must be at least 1, got 0"),
        ({"model": ModelConfig(vocab_size=100)}, "vocab_size must be at least 262 .*, got 100"),
        (
            {"model": ModelConfig(num_latents=9999)},
            "the train text must hold a window of .* tokens",
        ),
    ],
)
def test_bad_configurations_are_named(config, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(dataclasses.replace(config, **changes), tmp_path)
