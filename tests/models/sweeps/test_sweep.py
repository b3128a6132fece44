"""A sweep: its plan, runs side by side, and what a killed worker costs."""

import contextlib
import csv
import dataclasses
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import filelock
import pytest

import flopcount
from models.configuration import read_config
from models.sweeps.placement import saved_steps
from models.sweeps.plan import SweepConfig, plan_runs
from models.sweeps.presets import DEMO
from models.sweeps.run import SweepError, run_sweep
from models.training.run import train


@pytest.fixture
def config(sweep_config):
    return sweep_config


def test_every_run_spends_its_budget_to_within_a_step():
    runs = plan_runs(DEMO)
    assert len(runs) == len(DEMO.budgets) * len(DEMO.shapes)
    assert len(DEMO.budgets) >= 2
    assert len(DEMO.shapes) >= 5
    for run in runs:
        model = flopcount.PerceiverAR(**dataclasses.asdict(run.config.model))
        step = model.flops(level="causal", batch_size=run.config.recipe.batch_size).total
        assert 0 <= run.config.steps * step - run.budget < step
        assert run.parameters == model.params().total


def without_time(rows):
    return [{k: v for k, v in row.items() if "second" not in k} for row in rows]


@pytest.fixture(scope="module")
def whole(sweep_config, tmp_path_factory):
    """A sweep that was left alone: its folder, to be read only, and its rows."""
    folder = tmp_path_factory.mktemp("sweep") / "whole"
    return folder, run_sweep(sweep_config, folder, quiet=True)


def test_sweep_trains_every_run_as_if_alone(config, whole, tmp_path):
    folder, rows = whole
    runs = plan_runs(config)
    assert [row["run"] for row in rows] == [run.name for run in runs]
    alone = train(runs[1].config, tmp_path / "alone")[-1]
    (beside,) = without_time([{k: v for k, v in rows[1].items() if k in alone}])
    assert [beside] == without_time([alone | {"learning_rate": 1e-2}])  # the peak, not the last
    for row in rows:
        assert row["tokens_per_second"] == pytest.approx(row["tokens"] / row["seconds"])
        assert row["flops_per_second"] == pytest.approx(row["flops"] / row["seconds"])
    with (folder / "runs.csv").open() as file:
        assert [row["run"] for row in csv.DictReader(file)] == [run.name for run in runs]
    assert read_config(SweepConfig, folder) == config


def test_finished_sweep_trains_nothing_again(config, whole, tmp_path):
    folder, rows = whole
    shutil.copytree(folder, tmp_path / "sweep")
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("step-*")}
    assert run_sweep(dataclasses.replace(config, workers=1), tmp_path / "sweep", True) == rows
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("step-*")} == written


def find_workers():
    """Processes of this sweep's fork server: children of children of this process."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it may have ended meanwhile
            parents[int(stat.parent.name)] = int(stat.read_text().rsplit(")", 1)[1].split()[1])
    return [pid for pid, parent in parents.items() if parents.get(parent) == os.getpid()]


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_killed_worker_is_started_again_and_nothing_is_lost(config, whole, tmp_path):
    killed = []

    def kill_one():
        deadline = time.monotonic() + 30
        while not killed and time.monotonic() < deadline:
            if any(map(saved_steps, (tmp_path / "killed").glob("runs/*"))):
                for pid in find_workers():
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
                    break
            time.sleep(0.001)

    thread = threading.Thread(target=kill_one)
    thread.start()
    rows = run_sweep(config, tmp_path / "killed", quiet=True)
    thread.join()
    assert killed
    assert without_time(rows) == without_time(whole[1])


@dataclasses.dataclass(frozen=True)
class DieAt:
    """Kills a run's own process at some steps, each once or whenever it comes there."""

    folder: Path
    run: str
    steps: tuple[int, ...]
    once: bool

    def __call__(self, run, step):
        if run == self.run and step in self.steps:
            mark = self.folder / f"died-at-{step}"
            if not (self.once and mark.exists()):
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def alone(config):
    """A sweep of one run."""
    return dataclasses.replace(config, budgets=(2e7,), shapes=((4, 1),))


def test_a_run_that_dies_often_but_gets_on_is_finished(alone, tmp_path, capsys):
    """Four deaths, each one checkpoint of five steps further, and each said in a line."""
    (run,) = plan_runs(alone)
    whole = train(run.config, tmp_path / "whole")
    die = DieAt(tmp_path, run.name, (7, 12, 17, 22), once=True)
    (row,) = run_sweep(alone, tmp_path / "dying", on_step=die)
    said = [line for line in capsys.readouterr().out.splitlines() if "died" in line]
    assert said == [
        f"{run.name}: its process died and is started again after step {step}"
        for step in (5, 10, 15, 20)
    ]
    assert len(list(tmp_path.glob("died-at-*"))) == 4
    assert row["validation_loss"] == whole[-1]["validation_loss"]


def test_a_run_that_dies_at_the_same_place_is_given_up_and_named(alone, tmp_path):
    (run,) = plan_runs(alone)
    die = DieAt(tmp_path, run.name, (7,), once=False)
    with pytest.raises(SweepError, match=rf"^1 of 1 runs failed\n{run.name}: died 3 times .* 5$"):
        run_sweep(alone, tmp_path / "sweep", quiet=True, on_step=die)
    # Once the cause is gone, the same command goes on.
    assert len(run_sweep(alone, tmp_path / "sweep", quiet=True)) == 1


def test_a_damaged_checkpoint_is_named_by_its_run(alone, tmp_path):
    (run,) = plan_runs(alone)
    run_sweep(alone, tmp_path / "sweep", quiet=True)
    state = tmp_path / "sweep" / "runs" / run.name / "checkpoint.json"
    state.write_text(state.read_text()[:-9])
    with pytest.raises(
        SweepError, match=rf"^1 of 1 runs failed\n{run.name}: .* cannot be read: .*$"
    ):
        run_sweep(alone, tmp_path / "sweep", quiet=True)


def test_a_corpus_that_is_too_short_is_named_once_and_leaves_no_folder(config, tmp_path):
    (tmp_path / "short.txt").write_text("short")
    corpus = dataclasses.replace(config.corpus, validation_files=(str(tmp_path / "short.txt"),))
    with pytest.raises(ValueError, match=r"^the validation text must hold a window of"):
        run_sweep(dataclasses.replace(config, corpus=corpus), tmp_path / "sweep", quiet=True)
    assert not (tmp_path / "sweep").exists()


def test_failing_run_is_named_after_the_others_are_done(config, tmp_path):
    folder = tmp_path / "sweep"
    run = plan_runs(config)[0]
    train(dataclasses.replace(run.config, steps=1), folder / "runs" / run.name)
    with pytest.raises(SweepError, match=rf"^1 of 4 runs failed\n{run.name}: .* another config.*$"):
        run_sweep(config, folder, quiet=True)
    others = [path.parent.name for path in folder.glob("runs/*/metrics.csv")]
    assert sorted(others) == sorted(run.name for run in plan_runs(config))


def test_a_folder_holds_one_sweep_and_one_process(config, tmp_path):
    folder = tmp_path / "sweep"
    folder.mkdir()
    with (
        filelock.FileLock(folder / ".lock"),
        pytest.raises(RuntimeError, match="another process is running the sweep in"),
    ):
        run_sweep(config, folder, quiet=True)
    small = dataclasses.replace(config, budgets=(2e6,), shapes=((4, 1),))
    run_sweep(small, folder, quiet=True)
    with pytest.raises(ValueError, match="made with another configuration"):
        run_sweep(config, folder, quiet=True)


def test_no_workers_are_named(config):
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        plan_runs(dataclasses.replace(config, workers=0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cpus_per_run": 2}, "cpus_per_run does nothing with cluster local, got 2"),
        ({"gpus_per_run": 0.5}, "gpus_per_run does nothing with cluster local, got 0.5"),
        ({"budgets": (1.0,)}, "budgets must afford 10 steps of every shape, got 1 FLOPs"),
    ],
)
def test_what_would_do_nothing_is_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        plan_runs(dataclasses.replace(config, **changes))


@pytest.mark.parametrize("name", ["budgets", "shapes", "seeds"])
def test_missing_or_repeated_choices_are_named(config, name):
    for values in ((), getattr(config, name)[:1] * 2):
        with pytest.raises(ValueError, match=f"{name} must be given, each once"):
            plan_runs(dataclasses.replace(config, **{name: values}))
