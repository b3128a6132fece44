"""An IsoFLOP sweep: a family of models, each trained on every budget, side by side on one machine.

A sweep owns a folder: ``config.json``, one folder per run under ``runs/``, and ``runs.csv`` with a
row per finished run. Started again, it skips what is finished and resumes what is not.

Small models run far below a machine's peak, so every run has one thread and a process of its own,
and as many run side by side as there are cores. A process that is killed loses the steps since its
last checkpoint; the sweep starts it again.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import multiprocessing
import os
import time
import traceback
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import filelock
import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

import flopcount
from flopcount.planning import isoflop_runs
from models.checkpoints import write_atomically
from models.configuration import claim_folder
from models.data import CorpusConfig
from models.training import ModelConfig, Recipe, Row, TrainConfig, steps_done, train

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess
    from multiprocessing.sharedctypes import SynchronizedArray

_ATTEMPTS = 3


@dataclass(frozen=True)
class SweepConfig:
    """A sweep, complete: every shape is trained on every budget with every seed.

    Attributes:
        budgets: FLOPs of one run, level ``causal``.
        shapes: (num_channels, num_layers) of each model.
        seeds: of the runs.
        model: the sizes that all models share; its channels and layers are those of the shapes.
        corpus: the text.
        recipe: the optimisation.
        validations: how often a run takes its validation loss.
        validation_windows: windows of each.
        checkpoint_steps: a checkpoint after so many steps, besides one at each validation.
        device: ``cpu``, ``cuda`` or ``auto``.
        peak: the device's name in ``flopcount devices``, for MFU.
        workers: runs side by side; the number of usable cores by default.

    """

    budgets: tuple[float, ...]
    shapes: tuple[tuple[int, int], ...]
    seeds: tuple[int, ...] = (0,)
    model: ModelConfig = field(default_factory=ModelConfig)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    recipe: Recipe = field(default_factory=Recipe)
    validations: int = 20
    validation_windows: int = 256
    checkpoint_steps: int = 1000
    device: Literal["auto", "cpu", "cuda"] = "auto"
    peak: str | None = None
    workers: int | None = None


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep: its place, its budget and what to train."""

    name: str
    budget: float
    flops: int
    parameters: int
    config: TrainConfig


class SweepError(RuntimeError):
    """Some runs of a sweep failed; the others are finished."""


def plan_runs(config: SweepConfig) -> list[SweepRun]:
    """Give each shape the steps that a budget affords, by :func:`flopcount.planning.isoflop_runs`.

    Raises:
        ValueError: if there are no budgets, shapes or seeds, or one of them comes twice.

    """
    for name in ("budgets", "shapes", "seeds"):
        values = getattr(config, name)
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{name} must be given, each once, got {values}")
    models = [
        flopcount.PerceiverAR(
            **dataclasses.asdict(config.model) | {"num_channels": width, "num_layers": depth}
        )
        for width, depth in config.shapes
    ]
    planned = isoflop_runs(models, budgets=config.budgets, batch_size=config.recipe.batch_size)
    return [
        SweepRun(
            name=_name(run.budget, run.model.num_channels, run.model.num_layers, seed),
            budget=run.budget,
            flops=run.flops,
            parameters=run.num_params,
            config=TrainConfig(
                model=dataclasses.replace(
                    config.model,
                    num_channels=run.model.num_channels,
                    num_layers=run.model.num_layers,
                ),
                corpus=config.corpus,
                recipe=config.recipe,
                steps=run.steps,
                seed=seed,
                validations=config.validations,
                validation_windows=config.validation_windows,
                checkpoint_steps=config.checkpoint_steps,
                device=config.device,
                peak=config.peak,
            ),
        )
        for run, seed in itertools.product(planned, config.seeds)
    ]


def run_sweep(config: SweepConfig, folder: Path, quiet: bool = False) -> list[Row]:
    """Train every run that is not finished, side by side, and gather the results.

    Args:
        config: the sweep.
        folder: its own; made if need be.
        quiet: without the progress line.

    Returns:
        The rows of ``runs.csv``, one per run in the plan's order.

    Raises:
        ValueError: if the folder holds a sweep of another configuration.
        SweepError: if a run raises, or its process dies three times; other runs go on first.
        RuntimeError: if another process works on the folder.

    """
    runs = plan_runs(config)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder / ".lock", blocking=False):
            claim_folder(config, folder, may_differ=("workers",))
            _train_all(runs, folder, config.workers or _usable_cores(), quiet)
            return gather(runs, folder)
    except filelock.Timeout:
        raise RuntimeError(f"another process is running the sweep in {folder}") from None


def gather(runs: list[SweepRun], folder: Path) -> list[Row]:
    """Collect the last row of every run into ``runs.csv``, with its plan."""
    rows: list[dict[str, Any]] = []
    for run in runs:
        with (folder / "runs" / run.name / "metrics.csv").open() as file:
            *_, last = csv.DictReader(file)
        model = run.config.model
        plan = {
            "run": run.name,
            "budget": run.budget,
            "num_channels": model.num_channels,
            "num_layers": model.num_layers,
            "seed": run.config.seed,
            "parameters": run.parameters,
        }
        rows.append(plan | {name: float(value) for name, value in last.items()})
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(folder / "runs.csv", table.getvalue().encode())
    return rows


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _name(budget: float, num_channels: int, num_layers: int, seed: int) -> str:
    return f"{budget:.4g}-{num_channels}x{num_layers}-seed{seed}".replace("+", "")


def _train_all(runs: list[SweepRun], folder: Path, workers: int, quiet: bool) -> None:
    # A fork server imports torch once; its children start in milliseconds and share no state.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["models.training"])
    done = context.Array("q", [steps_done(folder / "runs" / run.name) for run in runs])
    failures = context.SimpleQueue()
    total = sum(run.config.steps for run in runs)
    unfinished = [index for index, run in enumerate(runs) if done[index] < run.config.steps]
    # The longest first, so that none is left running alone at the end.
    pending = sorted(unfinished, key=lambda index: runs[index].config.steps)
    attempts = dict.fromkeys(pending, 0)
    running: dict[int, ForkServerProcess] = {}
    failed: list[str] = []

    def start(index: int) -> None:
        attempts[index] += 1
        run = runs[index]
        arguments = (run.config, folder / "runs" / run.name, done, index, failures)
        running[index] = context.Process(target=_work, args=arguments, daemon=True)
        running[index].start()

    columns = (
        TextColumn("sweep"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps, {task.fields[finished]} runs"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    with Progress(*columns, disable=quiet) as progress:
        task = progress.add_task("", total=total, completed=sum(done), finished="")
        try:
            while pending or running:
                while pending and len(running) < workers:
                    start(pending.pop())
                wait([process.sentinel for process in running.values()], timeout=0.5)
                finished = sum(n == run.config.steps for n, run in zip(done, runs, strict=True))
                progress.update(task, completed=sum(done), finished=f"{finished}/{len(runs)}")
                for index, process in list(running.items()):
                    if process.is_alive():
                        continue
                    process.join()
                    del running[index]
                    while not failures.empty():
                        failed.append(failures.get())
                    killed = process.exitcode is not None and process.exitcode < 0
                    if killed and attempts[index] < _ATTEMPTS:
                        pending.append(index)
                    elif killed:
                        failed.append(f"{runs[index].name}: killed {attempts[index]} times")
        finally:
            for process in running.values():
                process.terminate()
                process.join()
    if failed:
        raise SweepError("\n".join([f"{len(failed)} runs failed", *failed]))


def _work(
    config: TrainConfig,
    folder: Path,
    done: SynchronizedArray[int],
    index: int,
    failures: multiprocessing.SimpleQueue[str],
) -> None:
    """Train one run in this process; its steps go to ``done[index]``."""
    torch.set_num_threads(1)
    sweep = multiprocessing.parent_process()
    looked = time.monotonic()

    def report(step: int) -> None:
        nonlocal looked
        done[index] = step
        if time.monotonic() - looked > 1:
            looked = time.monotonic()
            if not sweep.is_alive():
                raise SystemExit(1)

    try:
        train(config, folder, report)
    except Exception:
        failures.put(f"{folder.name}: {traceback.format_exc()}")
        raise SystemExit(1) from None
