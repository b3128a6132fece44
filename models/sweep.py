"""An IsoFLOP sweep: a family of models, each trained on every budget, side by side on one machine.

A sweep owns a folder: ``config.json``, one folder per run under ``runs/``, and ``runs.csv`` with a
row per finished run. Started again, it skips what is finished and resumes what is not.

Small models run far below a machine's peak, so every run has one thread and a process of its own,
and as many run side by side as there are cores. A process that is killed loses the steps since its
last checkpoint; the sweep starts it again. When the sweep's own process is killed, those of its
runs end with it, and the same command goes on where they stood. :mod:`models.ray_sweep` places the
same runs on a cluster.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import itertools
import math
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import filelock
import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

import flopcount
from flopcount.planning import isoflop_runs
from models.checkpoints import CheckpointError, steps_done, write_atomically
from models.configuration import claim_folder
from models.data import CorpusConfig
from models.distributed import launched
from models.limits import AboveZero, AtLeastOne, AtLeastZero, NotNegative, Seed, check_fields
from models.processes import end_with_parent
from models.step import Execution
from models.throughput import rates_of
from models.training import (
    DivergedError,
    ModelConfig,
    Recipe,
    Row,
    TrainConfig,
    check_config,
    open_corpus,
    train,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from ctypes import Array, c_longlong
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerProcess

OnStep: TypeAlias = Callable[[str, int], None] | None
DIVERGED = "diverged: "
"""What the problem of a run begins with whose loss is no longer finite."""
_DEATHS = 3
"""So often a run's process may die without having reached a further checkpoint."""
_PLACEMENT = ("execution", "cluster", "workers", "cpus_per_run", "gpus_per_run")
"""Fields of a sweep that may change while it is interrupted."""
_FEWEST_STEPS = 10
"""Of a run: with fewer, a budget that is met to within a step is missed by more than a tenth."""
_PATIENCE = 30.0
"""Seconds to wait for a run's process that a killed sweep has left behind."""


@dataclass(frozen=True)
class SweepConfig:
    """A sweep, complete: every shape is trained on every budget with every seed.

    Attributes:
        budgets: FLOPs of one run, level ``causal`` unless ``convention`` is given.
        shapes: (num_channels, num_layers) of each model.
        seeds: of the runs.
        convention: a published way to count that the budgets are in, its self part, as the article
            holds budgets; what a run records stays level ``causal``.
        head_dim: in place of the model's ``num_heads``: every model has heads of so many channels.
        model: the sizes that all models share; its channels and layers are those of the shapes.
        corpus: the text.
        recipe: the optimisation.
        validations: how often a run takes its validation loss.
        validation_windows: windows of each.
        final_validation_windows: of the last; as many by default.
        validation_context: positions before the latents of each; the prefix by default.
        checkpoint_steps: a checkpoint after so many steps, besides one at each validation.
        device: ``cpu``, ``cuda`` or ``auto``.
        peak: the device's name in ``flopcount devices``, for MFU.
        peak_flops: in place of ``peak``, FLOP/s of one device.
        execution: how the steps are executed.
        cluster: ``local`` runs on this machine alone; ``ray`` places runs on a Ray cluster (extra
            ``ray``).
        workers: runs side by side on this machine; the number of usable cores by default.
        cpus_per_run: cores that Ray gives a run, and threads that it computes with.
        gpus_per_run: GPUs, or parts of one, that Ray gives a run; by default one for device
            ``cuda`` and none otherwise.

    """

    budgets: tuple[AboveZero, ...]
    shapes: tuple[tuple[AtLeastOne, AtLeastOne], ...]
    seeds: tuple[Seed, ...] = (0,)
    convention: str | None = None
    head_dim: AtLeastOne | None = None
    model: ModelConfig = field(default_factory=ModelConfig)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    recipe: Recipe = field(default_factory=Recipe)
    validations: AtLeastOne = 20
    validation_windows: AtLeastOne = 256
    final_validation_windows: AtLeastOne | None = None
    validation_context: AtLeastZero | None = None
    checkpoint_steps: AtLeastOne = 1000
    device: Literal["auto", "cpu", "cuda"] = "auto"
    peak: str | None = None
    peak_flops: AboveZero | None = None
    execution: Execution = field(default_factory=Execution)
    cluster: Literal["local", "ray"] = "local"
    workers: AtLeastOne | None = None
    cpus_per_run: AtLeastOne = 1
    gpus_per_run: NotNegative | None = None


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep: its place, its budget and what to train.

    ``flops`` are counted as the budget is.
    """

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
        TypeError: if a value is of another type than its field.
        ValueError: if a value is out of range; there are no budgets, shapes or seeds, or one of
            them comes twice; a width is no multiple of ``head_dim``; or a budget affords fewer
            than ten steps of a shape.

    """
    check_fields(config)
    idle = {
        "workers": config.cluster == "ray" and config.workers is not None,
        "cpus_per_run": config.cluster == "local" and config.cpus_per_run != 1,
        "gpus_per_run": config.cluster == "local" and config.gpus_per_run is not None,
    }
    for name in idle:
        if idle[name]:
            value = getattr(config, name)
            raise ValueError(f"{name} does nothing with cluster {config.cluster}, got {value}")
    for name in ("budgets", "shapes", "seeds"):
        values = getattr(config, name)
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{name} must be given, each once, got {values}")
    models = [
        flopcount.PerceiverAR(
            **dataclasses.asdict(config.model)
            | {"num_channels": width, "num_layers": depth, "num_heads": _heads(config, width)}
        )
        for width, depth in config.shapes
    ]
    for model, budget in itertools.product(models, config.budgets):
        step = model.flops(convention=config.convention, batch_size=config.recipe.batch_size)
        flops = (step if config.convention is None else step.self_part).total
        if math.ceil(budget / flops) < _FEWEST_STEPS:
            shape = f"{model.num_channels}x{model.num_layers}"
            raise ValueError(
                f"budgets must afford {_FEWEST_STEPS} steps of every shape, got {budget:g} "
                f"FLOPs, and a step of {shape} takes {flops:.4g}: give larger budgets, smaller "
                f"shapes or a smaller batch_size"
            )
    planned = isoflop_runs(
        models,
        budgets=config.budgets,
        batch_size=config.recipe.batch_size,
        convention=config.convention,
        part="total" if config.convention is None else "self",
    )
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
                    num_heads=run.model.num_heads,
                ),
                corpus=config.corpus,
                recipe=config.recipe,
                steps=run.steps,
                seed=seed,
                validations=config.validations,
                validation_windows=config.validation_windows,
                final_validation_windows=config.final_validation_windows,
                validation_context=config.validation_context,
                checkpoint_steps=config.checkpoint_steps,
                device=config.device,
                peak=config.peak,
                peak_flops=config.peak_flops,
                execution=config.execution,
            ),
        )
        for run, seed in itertools.product(planned, config.seeds)
    ]


def _heads(config: SweepConfig, width: int) -> int:
    if config.head_dim is None:
        return config.model.num_heads
    if width % config.head_dim:
        raise ValueError(
            f"shapes must have widths that are multiples of head_dim = {config.head_dim}, "
            f"got {width}"
        )
    return width // config.head_dim


def run_sweep(
    config: SweepConfig, folder: Path, quiet: bool = False, on_step: OnStep = None
) -> list[Row]:
    """Train every run that is not finished, side by side, and gather the results.

    Args:
        config: the sweep.
        folder: its own; made if need be.
        quiet: without the progress lines.
        on_step: called in the run's process with its name and the number of steps done, after
            each and at the start; must be picklable.

    Returns:
        The rows of ``runs.csv``, one per run in the plan's order.

    Raises:
        ValueError: if the folder holds a sweep of another configuration, a run's configuration is
            out of range, or the corpus too short.
        SweepError: if a run raises, or its process dies three times without having reached a
            further checkpoint; other runs go on first.
        RuntimeError: if another process works on the folder, or ``torchrun`` started this one.
        ImportError: if ``cluster`` is ``ray`` and the extra ``ray`` is missing.

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


def _name(budget: float, num_channels: int, num_layers: int, seed: int) -> str:
    return f"{budget:.4g}-{num_channels}x{num_layers}-seed{seed}".replace("+", "")


class Place(Protocol):
    """Where runs are trained: given some to start, it tells how far they are and which ended.

    Attributes:
        capacity: runs that may be started and not ended at a time; None for any number.
        done: steps of each run.

    """

    capacity: int | None
    done: Sequence[int]

    def start(self, index: int) -> None:
        """Start to train a run, from its checkpoint where it has one."""

    def wait(self) -> None:
        """Wait until a run ends, but not for long."""

    def ended(self) -> dict[int, str | None]:
        """Tell what the runs that have ended raised; None if they finished, or died silently."""


@contextlib.contextmanager
def _open_place(
    config: SweepConfig, runs: list[SweepRun], folder: Path, on_step: OnStep
) -> Iterator[Place]:
    place: Any
    if config.cluster == "ray":
        from models.ray_sweep import RayCluster  # a sweep on one machine needs no Ray

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


def saved_steps(folder: Path) -> int:
    """Count the steps that a run's checkpoint holds; 0 where it is missing or damaged."""
    try:
        return steps_done(folder)
    except CheckpointError:
        return 0  # the run itself will say what is wrong


def train_placed(
    run: SweepRun, folder: Path, threads: int, report: Callable[[int], None] | None
) -> str | None:
    """Train a run in a process of its own; give the problem, where there is one."""
    torch.set_num_threads(threads)
    try:
        train(run.config, folder, report, patience=_PATIENCE)
    except DivergedError as error:
        return f"{DIVERGED}{error}"
    except (ValueError, RuntimeError, OSError) as error:
        return str(error)
    except Exception:
        return traceback.format_exc()
    return None


class OneMachine:
    """This machine: a process with one thread for each run, ``workers`` side by side."""

    def __init__(self, runs: list[SweepRun], folder: Path, workers: int, on_step: OnStep) -> None:
        self.runs, self.folder, self.capacity, self.on_step = runs, folder, workers, on_step
        # A fork server imports torch once, and what the program imports, which each of its
        # children would import again; they start in milliseconds and share no state. Torch's
        # optimisers import torch._dynamo when the first is made, which takes a second.
        self._context = multiprocessing.get_context("forkserver")
        program = sys.modules["__main__"].__spec__
        names = [__name__, "torch._dynamo", *([program.name] if program else [])]
        self._context.set_forkserver_preload(names)
        # Without a lock: a process killed while it held one would stop all others.
        saved = [saved_steps(folder / "runs" / run.name) for run in runs]
        self.done = self._context.RawArray("q", saved)
        self._processes: dict[int, tuple[ForkServerProcess, Connection]] = {}

    def start(self, index: int) -> None:
        """Start to train a run, from its checkpoint where it has one."""
        receiver, sender = self._context.Pipe(duplex=False)
        run = self.runs[index]
        arguments = (run, self.folder / "runs" / run.name, self.done, index, self.on_step, sender)
        process = self._context.Process(target=_work, args=arguments, daemon=True)
        process.start()
        sender.close()
        self._processes[index] = process, receiver

    def wait(self) -> None:
        """Wait until a run ends, half a second at most."""
        wait([process.sentinel for process, _ in self._processes.values()], timeout=0.5)

    def ended(self) -> dict[int, str | None]:
        """Tell what the runs that have ended raised; None if they finished, or died silently."""
        ended: dict[int, str | None] = {}
        for index, (process, receiver) in list(self._processes.items()):
            if process.is_alive():
                continue
            process.join()
            del self._processes[index]
            ended[index] = None
            with receiver, contextlib.suppress(EOFError, OSError):
                ended[index] = receiver.recv()
        return ended

    def close(self) -> None:
        """End the runs that are being trained; they keep their checkpoints."""
        for process, _ in self._processes.values():
            process.terminate()
            process.join()


def _work(
    run: SweepRun,
    folder: Path,
    done: Array[c_longlong],
    index: int,
    on_step: OnStep,
    problems: Connection,
) -> None:
    """Train one run in this process; its steps go to ``done[index]``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the sweep is interrupted, and ends its runs
    end_with_parent()  # another sweep may take over its run

    def report(step: int) -> None:
        done[index] = step
        if on_step is not None:
            on_step(run.name, step)

    problem = train_placed(run, folder, threads=1, report=report)
    if problem is not None:
        problems.send(problem)
        raise SystemExit(1)


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
