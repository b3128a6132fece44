"""The kill test: a small sweep whose processes are killed at random moments, held against its twin.

Every step of every run is written to a journal outside the sweep. When the sweep has ended, in
spite of all kills, three things must hold:

1. every run's weights, optimiser, generator and loss curve are those of a sweep that was left
   alone, bit for bit;
2. no run was trained again after it had ended, and no step was left out;
3. after a kill at most the steps since the last checkpoint were done again.

It needs Linux: it finds the sweep's processes in ``/proc``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from models.data.corpus import CorpusConfig
from models.files import write_atomically
from models.limits import AtLeastOne, Seed, Share, check
from models.processes import end_with_parent
from models.sweeps.plan import SweepConfig, SweepRun, plan_runs
from models.sweeps.run import SweepError, run_sweep
from models.training.checkpoints import load_checkpoint
from models.training.run import ModelConfig, Recipe

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

_STEPS_PER_KILL = 40
_CHECKPOINT_STEPS = 10
_MOST_SECONDS_APART = 0.02
_PATIENCE = 120.0
_RECORD = np.dtype([("pid", np.int64), ("step", np.int64)])


@dataclass(frozen=True)
class KillTest:
    """What a kill test did and found.

    Attributes:
        kills: Processes killed, workers and sweeps.
        sweep_kills: Of them the sweep's own process, with its workers.
        write_kills: Of them while a checkpoint was being written.
        restarts: Sweeps started again because one gave a run up, or was killed.
        runs: Of the sweep.
        steps: Of all runs.
        repeated: Steps done again, in all.
        most_repeated: Steps done again after one kill, at most.
        checkpoint_steps: Steps between checkpoints.
        seconds: From the first start to the end.
        seconds_alone: The same of the sweep that was left alone.
        problems: What did not hold; none is the result to wish for.

    """

    kills: int
    sweep_kills: int
    write_kills: int
    restarts: int
    runs: int
    steps: int
    repeated: int
    most_repeated: int
    checkpoint_steps: int
    seconds: float
    seconds_alone: float
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Journal:
    """Writes each step of each run down, in the process that did it."""

    folder: Path

    def __call__(self, run: str, step: int) -> None:
        """Append the step; a record is written whole or not at all."""
        with (self.folder / run).open("ab", buffering=0) as file:
            file.write(np.array([(os.getpid(), step)], _RECORD).tobytes())

    def read(self, run: str) -> np.ndarray:
        """Give the process and step of each record of a run, in order."""
        path = self.folder / run
        return np.fromfile(path, _RECORD) if path.exists() else np.empty(0, _RECORD)

    def size(self) -> int:
        """Count the records of all runs."""
        return sum(path.stat().st_size for path in self.folder.iterdir()) // _RECORD.itemsize


def kill_test(
    folder: Path, kills: int = 20, sweep_share: float = 0.1, workers: int = 2, seed: int = 0
) -> KillTest:
    """Kill processes of a small sweep with SIGKILL, and compare its end with a sweep left alone.

    The kills are spread at random over the steps of the sweep, which has as many steps as they
    need, each with a random delay within a step.

    Args:
        folder: Of both sweeps and the figures, ``kill_test.json``; must be new or empty.
        kills: How many, at least 1.
        sweep_share: The share of them that hits the sweep's own process, from 0 to 1.
        workers: Runs side by side.
        seed: Of the moments and victims.

    Raises:
        ValueError: If an argument is out of range, or the folder is not empty.
        RuntimeError: Without ``/proc``, or if the sweep makes no progress.

    """
    check(AtLeastOne, kills, "kills")
    check(Share, sweep_share, "sweep_share")
    check(AtLeastOne, workers, "workers")
    check(Seed, seed, "seed")
    if sys.platform != "linux":
        raise RuntimeError("the kill test finds processes in /proc, so it needs Linux")
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"folder must be new or empty, got {folder}")
    journal = Journal(folder / "journal")
    journal.folder.mkdir(parents=True)
    config = _small_sweep(folder, kills, workers)
    runs = plan_runs(config)

    started = time.monotonic()
    run_sweep(config, folder / "alone", quiet=True)
    seconds_alone = time.monotonic() - started

    killer = _Killer(config, folder / "killed", journal, np.random.default_rng(seed))
    started = time.monotonic()
    killer.run(kills, round(kills * sweep_share), sum(run.config.steps for run in runs))
    seconds = time.monotonic() - started

    repeats = [count for run in runs for count in _repeats(journal.read(run.name))]
    result = KillTest(
        kills=kills,
        sweep_kills=killer.sweep_kills,
        write_kills=killer.write_kills,
        restarts=killer.restarts,
        runs=len(runs),
        steps=sum(run.config.steps for run in runs),
        repeated=sum(repeats),
        most_repeated=max(repeats, default=0),
        checkpoint_steps=config.checkpoint_steps,
        seconds=seconds,
        seconds_alone=seconds_alone,
        problems=tuple(find_problems(runs, folder / "alone", folder / "killed", journal)),
    )
    figures = json.dumps(dataclasses.asdict(result), indent=2)
    write_atomically(folder / "kill_test.json", figures.encode())
    return result


def find_problems(
    runs: list[SweepRun], alone: Path, killed: Path, journal: Journal
) -> Iterator[str]:
    """Say what differs between a sweep and its twin, and what was lost or trained twice."""
    for run in runs:
        records = journal.read(run.name)["step"]
        attempts = np.split(records, np.flatnonzero(np.diff(records) != 1) + 1)
        most = -1
        for before, after in itertools.pairwise(attempts):
            most = max(most, before[-1])
            if most == run.config.steps:
                yield f"{run.name}: trained again from step {after[0]} after it had ended"
            elif after[0] > most:
                yield f"{run.name}: steps {most + 1} to {after[0]} were left out"
            elif after[0] < before[0]:
                yield f"{run.name}: went back to step {after[0]}, behind its checkpoint"
            elif most - after[0] > run.config.checkpoint_steps:
                yield f"{run.name}: {most - after[0]} steps were done again from step {after[0]}"
        names = [folder / "runs" / run.name for folder in (alone, killed)]
        (_, expected, whole), (done, actual, state) = (load_checkpoint(name) for name in names)
        # A step is written down after its checkpoint: a kill between leaves the last one out.
        last = run.config.steps - 1
        if not len(records) or records[0] != 0 or records[-1] < last or done != run.config.steps:
            yield f"{run.name}: was not trained from its first step to its last"
        if _without_time(state["rows"]) != _without_time(whole["rows"]):
            yield f"{run.name}: another loss curve than the run left alone"
        different = [
            name
            for name in expected | actual
            if name not in expected
            or name not in actual
            or not torch.equal(expected[name], actual[name])
        ]
        if different:
            yield f"{run.name}: other tensors than the run left alone: {', '.join(different)}"


def _without_time(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: row[name] for name in row if "second" not in name} for row in rows]


def _repeats(records: np.ndarray) -> list[int]:
    """Count the steps that each process did again: those before its first that were done."""
    starts = np.flatnonzero(np.diff(records["step"]) != 1) + 1
    return [int(records["step"][start - 1] - records["step"][start]) for start in starts]


def _small_sweep(folder: Path, kills: int, workers: int) -> SweepConfig:
    """Plan four runs that together have the steps that the kills need."""
    text = folder / "text"
    text.mkdir()
    draw = np.random.default_rng(0)
    for index in range(4):
        (text / f"{index}.txt").write_text(
            " ".join(map(str, draw.integers(1000, size=2000))), encoding="utf-8"
        )
    config = SweepConfig(
        budgets=(1e9, 2e9),
        shapes=((8, 1), (12, 2)),
        model=ModelConfig(num_latents=8, num_prefix=8, num_heads=2, prefix_dropout=0.5),
        corpus=CorpusConfig(files=(str(text / "*.txt"),), cache=folder / "cache"),
        recipe=Recipe(batch_size=2, learning_rate=1e-2),
        validations=5,
        validation_windows=4,
        checkpoint_steps=_CHECKPOINT_STEPS,
        device="cpu",
        workers=workers,
    )
    steps = sum(run.config.steps for run in plan_runs(config))
    scale = kills * _STEPS_PER_KILL / steps
    return dataclasses.replace(config, budgets=tuple(scale * budget for budget in config.budgets))


class _Killer:
    """Keeps a sweep going and kills its processes."""

    def __init__(
        self, config: SweepConfig, folder: Path, journal: Journal, draw: np.random.Generator
    ) -> None:
        self.config, self.folder, self.journal, self.draw = config, folder, journal, draw
        self.sweep_kills = self.write_kills = self.restarts = 0
        self.sweep: BaseProcess | None = None
        self.seen: set[tuple[Path, int]] = set()

    def run(self, kills: int, sweep_kills: int, steps: int) -> None:
        """Kill at ``kills`` random points of the ``steps``, and let the sweep end."""
        # The journal passes every point: it has a record for each step at least.
        points = np.sort(self.draw.integers(1, int(0.95 * steps), size=kills))
        of_sweep = set(self.draw.choice(kills, sweep_kills, replace=False).tolist())
        self._start()
        try:
            for index, point in enumerate(points):
                self._wait_for(lambda point=point: self.journal.size() >= point)
                if index in of_sweep:
                    self._kill_sweep()
                else:
                    self._kill_worker()
            self._wait_for(lambda: self.sweep.exitcode == 0)
        finally:
            self.sweep.kill()
            self.sweep.join()

    def _start(self) -> None:
        # Not forked: as it is when a command is given again.
        arguments = (self.config, self.folder, self.journal)
        self.sweep = multiprocessing.get_context("spawn").Process(target=_sweep, args=arguments)
        self.sweep.start()

    def _wait_for(self, condition: Any) -> Any:
        """Wait until the condition gives something true, keeping the sweep going meanwhile."""
        size, moved = self.journal.size(), time.monotonic()
        while not (value := condition()):
            if self.sweep.exitcode not in (None, 0):
                self.restarts += 1
                self._start()
            time.sleep(0.001)
            if (now := self.journal.size()) != size:
                size, moved = now, time.monotonic()
            elif time.monotonic() - moved > _PATIENCE:
                raise RuntimeError(f"the sweep in {self.folder} makes no progress")
        return value

    def _kill_worker(self) -> None:
        self._wait_for(self._workers)
        time.sleep(self.draw.uniform(0, _MOST_SECONDS_APART))
        victim = int(self.draw.choice(self._wait_for(self._workers)))
        os.kill(victim, signal.SIGKILL)
        _wait_until_dead([victim])
        self._look_at([victim])

    def _kill_sweep(self) -> None:
        workers = self._wait_for(self._workers)
        time.sleep(self.draw.uniform(0, _MOST_SECONDS_APART))
        self.sweep.kill()
        self.sweep.join()
        self.sweep_kills += 1
        # The command is given again at once, while workers may still be ending.
        self.restarts += 1
        self._start()
        _wait_until_dead(workers)
        self._look_at(workers)

    def _workers(self) -> list[int]:
        """Find the processes that train: children of the sweep's fork server."""
        parents = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # it may have ended meanwhile
                state, parent = stat.read_text(encoding="utf-8").rpartition(")")[2].split()[:2]
                if state != "Z":
                    parents[int(stat.parent.name)] = int(parent)
        return [pid for pid, parent in parents.items() if parents.get(parent) == self.sweep.pid]

    def _look_at(self, victims: list[int]) -> None:
        """Count a kill during a checkpoint's writing, by what it left in the victims' runs.

        That is a file not yet renamed, or tensors that ``checkpoint.json`` does not name.
        """
        left = set()
        for path in self.journal.folder.iterdir():
            records = self.journal.read(path.name)
            if len(records) and records["pid"][-1] in victims:
                left |= _unfinished(self.folder / "runs" / path.name)
        self.write_kills += bool(left - self.seen)
        self.seen |= left


def _unfinished(run: Path) -> set[tuple[Path, int]]:
    state = run / "checkpoint.json"
    named = (
        json.loads(state.read_text(encoding="utf-8"))["checkpoint"]["file"]
        if state.exists()
        else None
    )
    patterns = (".step-*.new", ".checkpoint.json.new", "step-*.safetensors")
    files = itertools.chain.from_iterable(run.glob(pattern) for pattern in patterns)
    return {(file, file.stat().st_mtime_ns) for file in files if file.name != named}


def _sweep(config: SweepConfig, folder: Path, journal: Journal) -> None:
    end_with_parent()
    try:
        run_sweep(config, folder, quiet=True, on_step=journal)
    except SweepError:  # a run was killed too often without a checkpoint between
        raise SystemExit(1) from None


def _wait_until_dead(pids: list[int]) -> None:
    for pid in pids:
        stat = Path(f"/proc/{pid}/stat")
        deadline = time.monotonic() + _PATIENCE
        with contextlib.suppress(OSError):
            while stat.read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z":
                if time.monotonic() > deadline:
                    raise RuntimeError(f"process {pid} outlives the sweep that it belongs to")
                time.sleep(0.0005)
