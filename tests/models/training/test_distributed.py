"""One run over two processes that torchrun starts: the loss of one process, killed and resumed."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from models.configuration import claim_folder
from models.sweeps.presets import DEMO
from models.sweeps.run import run_sweep
from models.training import run as training
from models.training.checkpoints import load_checkpoint
from models.training.distributed import (
    ALONE,
    Processes,
    launched,
    launched_rank,
    sharded_like,
    whole,
)
from models.training.run import Recipe, train
from models.training.step import Execution

ROOT = Path(__file__).parents[3]
# Losses and weights in single precision, added up in another order over 12 steps.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def config(train_config):
    return dataclasses.replace(
        train_config,
        recipe=Recipe(batch_size=4, learning_rate=1e-2),
        steps=12,
        validation_windows=6,
        checkpoint_steps=5,
    )


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return train(config, folder), load_checkpoint(folder)


def launch(*command):
    """Run a command in two processes; each computes with one thread."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*torchrun, *map(str, command)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=240,
    )


def largest_deviation(rows, checkpoint, alone):
    """Of losses, relatively, and of weights, relatively to the largest."""
    expected_rows, (_, expected, _) = alone
    assert [row["step"] for row in rows] == [row["step"] for row in expected_rows]
    losses = [
        abs(row[name] / expected_row[name] - 1)
        for row, expected_row in zip(rows, expected_rows, strict=True)
        for name in ("train_loss", "validation_loss")
    ]
    step, tensors, _ = checkpoint
    assert step == 12
    assert tensors.keys() == expected.keys()
    weights = [
        ((tensors[name] - expected[name]).abs().max() / expected[name].abs().max()).item()
        for name in expected
        if name.startswith("model.")
    ]
    return max(losses + weights)


def interrupt_after_seven(done):
    if done == 7:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("execution", "interrupted"),
    [
        (Execution(parallel="ddp", micro_batches=2), False),
        # Started by one process and gone on with by two.
        (Execution(parallel="fsdp2", checkpointing="non-reentrant"), True),
    ],
)
def test_two_processes_reach_the_loss_of_one(config, alone, tmp_path, execution, interrupted):
    config = dataclasses.replace(config, execution=execution)
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path, interrupt_after_seven)
    else:
        claim_folder(config, tmp_path)
    job = launch("-m", "models", "resume", tmp_path)
    assert job.returncode == 0, job.stderr
    assert job.stdout.count("validation loss") == 1  # one process speaks
    # This process finds the run finished, and reads what the two have written.
    rows = train(config, tmp_path)
    assert largest_deviation(rows, load_checkpoint(tmp_path), alone) < TOLERANCE


def test_a_process_that_took_another_share_would_be_seen(config, alone, tmp_path, monkeypatch):
    """The twin: as if both processes computed on the first half of each batch."""
    original = training.training_batch

    def first_half_twice(*arguments):
        return tuple(part[:2].repeat(2, 1) for part in original(*arguments))

    monkeypatch.setattr(training, "training_batch", first_half_twice)
    rows = train(config, tmp_path)
    assert largest_deviation(rows, load_checkpoint(tmp_path), alone) > 100 * TOLERANCE


KILLED = """
import os, pathlib, signal, sys
import torch
from models.configuration import read_config
from models.training.run import TrainConfig, train

def kill_second(done):
    if done == 7 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    train(read_config(TrainConfig, folder), folder, kill_second)
"""


def test_a_killed_process_ends_the_job_and_one_process_goes_on(config, alone, tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    folder = tmp_path / "run"
    folder.mkdir()
    claim_folder(config, folder)
    job = launch(script, folder)
    assert job.returncode != 0
    assert "Signal 9 (SIGKILL)" in job.stderr
    assert load_checkpoint(folder)[0] == 5
    rows = train(config, folder)
    assert largest_deviation(rows, load_checkpoint(folder), alone) < TOLERANCE


@pytest.mark.parametrize("count", [1, 2, 5])
def test_shares_make_up_the_whole(count):
    numbers = np.arange(20)
    shares = [numbers[Processes(rank, count).share(20)] for rank in range(count)]
    assert np.array_equal(np.concatenate(shares), numbers)
    assert {len(share) for share in shares} == {20 // count}


def test_one_process_is_alone():
    assert not launched()
    assert launched_rank() == 0
    assert ALONE.is_first
    ALONE.wait_for_all()
    value = torch.tensor([3.0])
    assert ALONE.mean(value) is whole(value) is sharded_like(value, value) is value


def test_unequal_shares_are_named(config):
    with pytest.raises(ValueError, match=r"validation_windows must be a multiple of the 4 proc"):
        training._check_shares(config, Processes(0, 4))
    few = dataclasses.replace(config, validation_windows=8, final_validation_windows=6)
    with pytest.raises(ValueError, match=r"final_validation_windows must be .* 4 processes, got 6"):
        training._check_shares(few, Processes(0, 4))
    with pytest.raises(ValueError, match=r"batch_size must be a multiple of .* 3 · 1, got 4"):
        training._check_shares(config, Processes(0, 3))


def test_a_sweep_is_not_started_by_torchrun(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "any")
    with pytest.raises(RuntimeError, match="torchrun trains one run; start a sweep without it"):
        run_sweep(DEMO, tmp_path, quiet=True)
