"""An IsoFLOP sweep: a family of models, each trained on every budget, side by side.

A sweep owns a folder: ``config.json``, one folder per run under ``runs/``, and ``runs.csv`` with a
row per finished run. Started again, it skips what is finished and resumes what is not.

A run that is killed loses the steps since its last checkpoint; the sweep starts it again, and the
same command goes on where a sweep stood that was killed itself. Where runs are trained is a place:
this machine (:mod:`models.sweeps.local`) or a cluster (:mod:`models.sweeps.ray`).
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from models.configuration import claim_folder
from models.files import write_atomically
from models.sweeps.local import OneMachine
from models.sweeps.placement import OnStep, Place, saved_steps
from models.sweeps.plan import SweepConfig, SweepRun, plan_runs
from models.training.distributed import launched
from models.training.run import Row, check_config, open_corpus
from models.training.throughput import rates_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_DEATHS = 3
"""So often a run's process may die without having reached a further checkpoint."""
_PLACEMENT = ("execution", "cluster", "workers", "cpus_per_run", "gpus_per_run")
"""Fields of a sweep that may change while it is interrupted."""


class SweepError(RuntimeError):
    """Some runs of a sweep failed; the others are finished."""


def run_sweep(
    config: SweepConfig, folder: Path, quiet: bool = False, on_step: OnStep = None
) -> list[Row]:
    """Train every run that is not finished, side by side, and gather the results.

    Args:
        config: The sweep.
        folder: Its own; made if need be.
        quiet: Without the progress lines.
        on_step: Called in the run's process with its name and the number of steps done, after
            each and at the start; must be picklable.

    Returns:
        The rows of ``runs.csv``, one per run in the plan's order.

    Raises:
        ValueError: If the folder holds a sweep of another configuration, a run's configuration is
            out of range, or the corpus too short.
        SweepError: If a run raises, or its process dies three times without having reached a
            further checkpoint; other runs go on first.
        RuntimeError: If another process works on the folder, or ``torchrun`` started this one.
        ImportError: If ``cluster`` is ``ray`` and the extra ``ray`` is missing.

    """
    if launched():
        raise RuntimeError("torchrun trains one run; start a sweep without it")
    runs = plan_runs(config)
    for run in runs:
        # A cluster's nodes have devices that this machine may lack.
        elsewhere = {"device": "cpu"} if config.cluster == "ray" else {}
        check_config(dataclasses.replace(run.config, **elsewhere))
    open_corpus(runs[0].config)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder / ".lock", blocking=False):
            claim_folder(config, folder, may_differ=_PLACEMENT)
            with _open_place(config, runs, folder, on_step) as place:
                _train_all(runs, folder, place, quiet)
            return gather(runs, folder)
    except filelock.Timeout:
        raise RuntimeError(f"another process is running the sweep in {folder}") from None


def gather(runs: list[SweepRun], folder: Path) -> list[Row]:
    """Collect the last row of every run into ``runs.csv``, with its plan.

    What is of single steps in it is of the whole run there: the learning rate is its peak, and
    the rates are means over all of its seconds.
    """
    rows: list[dict[str, Any]] = []
    for run in runs:
        measured = _metrics(folder, run)
        last = {name: float(value) for name, value in measured[-1].items()}
        last |= {"learning_rate": run.config.recipe.learning_rate, **rates_of(measured)}
        model = run.config.model
        plan = {
            "run": run.name,
            "budget": run.budget,
            "num_channels": model.num_channels,
            "num_layers": model.num_layers,
            "seed": run.config.seed,
            "parameters": run.parameters,
        }
        rows.append(plan | last)
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(folder / "runs.csv", table.getvalue().encode())
    return rows


def _metrics(folder: Path, run: SweepRun) -> list[dict[str, str]]:
    with (folder / "runs" / run.name / "metrics.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def _open_place(
    config: SweepConfig, runs: list[SweepRun], folder: Path, on_step: OnStep
) -> Iterator[Place]:
    place: Any
    if config.cluster == "ray":
        from models.sweeps.ray import RayCluster  # a sweep on one machine needs no Ray

        gpus = config.gpus_per_run
        if gpus is None:
            gpus = 1 if config.device == "cuda" else 0
        place = RayCluster(runs, folder, config.cpus_per_run, gpus, on_step)
    else:
        workers = _usable_cores() if config.workers is None else config.workers
        place = OneMachine(runs, folder, workers, on_step)
    try:
        yield place
    finally:
        place.close()


def _train_all(runs: list[SweepRun], folder: Path, place: Place, quiet: bool) -> None:
    unfinished = [index for index, run in enumerate(runs) if place.done[index] < run.config.steps]
    # The longest first, so that none is left running alone at the end.
    pending = sorted(unfinished, key=lambda index: runs[index].config.steps)
    deaths = dict.fromkeys(pending, 0)
    running: dict[int, int] = {}  # the step that each started from
    failed: list[str] = []

    with _Display(runs, place.done, quiet) as display:
        while pending or running:
            while pending and (place.capacity is None or len(running) < place.capacity):
                index = pending.pop()
                running[index] = saved_steps(folder / "runs" / runs[index].name)
                place.start(index)
            place.wait()
            display.update(running)
            for index, problem in place.ended().items():
                started_from = running.pop(index)
                run = runs[index]
                saved = saved_steps(folder / "runs" / run.name)
                if problem is None and saved == run.config.steps:
                    display.finished(run, folder)
                elif problem is not None:
                    failed.append(f"{run.name}: {problem}")
                else:
                    deaths[index] = 1 if saved > started_from else deaths[index] + 1
                    if deaths[index] < _DEATHS:
                        pending.append(index)
                        display.restarted(run, saved)
                    else:
                        failed.append(f"{run.name}: died {_DEATHS} times after step {saved}")
    if failed:
        raise SweepError("\n".join([f"{len(failed)} of {len(runs)} runs failed", *failed]))


class _Display:
    """A progress line for the sweep and for each run that is being trained, with the time left."""

    def __init__(self, runs: list[SweepRun], done: Sequence[int], quiet: bool) -> None:
        self.runs, self.done, self.quiet = runs, done, quiet
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            disable=quiet,
        )
        total = sum(run.config.steps for run in runs)
        self.sweep = self.progress.add_task(self._count(), total=total, completed=sum(done))
        self.tasks: dict[int, TaskID] = {}

    def __enter__(self) -> _Display:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.update(())
        self.progress.stop()

    def _count(self) -> str:
        finished = sum(n == run.config.steps for n, run in zip(self.done, self.runs, strict=True))
        return f"sweep, {finished}/{len(self.runs)} runs"

    def update(self, running: Iterable[int]) -> None:
        """Show the steps done, a line for each run in ``running``."""
        self.progress.update(self.sweep, completed=sum(self.done), description=self._count())
        for index in self.tasks.keys() - set(running):
            self.progress.remove_task(self.tasks.pop(index))
        for index in running:
            run = self.runs[index]
            if index not in self.tasks:
                self.tasks[index] = self.progress.add_task(
                    run.name, total=run.config.steps, completed=self.done[index]
                )
            self.progress.update(self.tasks[index], completed=self.done[index])

    def finished(self, run: SweepRun, folder: Path) -> None:
        """Leave a line for a run that is finished, also where there is no terminal."""
        loss = float(_metrics(folder, run)[-1]["validation_loss"])
        self._say(f"{run.name}: validation loss {loss:.4f} after {run.config.steps:,} steps")

    def restarted(self, run: SweepRun, step: int) -> None:
        """Leave a line for a run whose process died."""
        self._say(f"{run.name}: its process died and is started again after step {step:,}")

    def _say(self, line: str) -> None:
        if not self.quiet:
            self.progress.console.print(line, highlight=False, soft_wrap=True)
