"""Plan, time and train the runs of a study, as far as the minutes go."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from flopcount.tables import table
from models.data.corpus import Corpus, CorpusConfig, validation_windows
from models.results import Table, environment, read_table, timestamp, write_environment
from models.study.design import RUN_COLUMNS, Planned, causal_flops, model_name, trained_tokens
from models.sweeps.local import OneMachine
from models.sweeps.placement import DIVERGED, saved_steps
from models.sweeps.plan import SweepRun
from models.training.run import TrainConfig, choose_device, final_windows, open_corpus
from models.training.step import TrainStep
from models.training.throughput import seconds_per_step

CURVE_COLUMNS = (
    "run", "step", "tokens", "flops", "learning_rate", "train_loss", "validation_loss", "seconds",
)  # fmt: skip
CALIBRATION_COLUMNS = ("model", "seconds_per_step", "flops_per_second", "load", "device", "date")
CORPUS_COLUMNS = (
    "corpus", "tokenizer", "train_tokens", "validation_tokens", "validation_sha256",
)  # fmt: skip
MARGIN_SECONDS = 10.0
"""Kept at the end, in which runs are stopped and rows written."""
START_SECONDS = 6.0
"""That a process takes until its first step: imports, device, kernels from a cache. A guess."""


class Clock:
    """Seconds that a run will take: causal FLOPs over the rate that its model reached.

    Args:
        calibration: The table of :func:`calibrate`; may be missing.
        flops_per_second: For models that it does not have.
    """

    def __init__(self, calibration: Path | None = None, flops_per_second: float = 1e14) -> None:
        if not flops_per_second > 0:
            raise ValueError(f"flops_per_second must be positive, got {flops_per_second}")
        rows = read_table(calibration) if calibration is not None else []
        self.rates = {row["model"]: float(row["flops_per_second"]) for row in rows}
        self.otherwise = flops_per_second

    def seconds(self, config: TrainConfig) -> float:
        """Of training alone, the run having the device to itself."""
        return causal_flops(config) / self.rates.get(model_name(config), self.otherwise)


def plan_text(planned: Sequence[Planned], clock: Clock, done: Iterable[str] = ()) -> str:
    """Every run with its rate, steps, tokens and seconds; then each stage with totals."""
    done = set(done)
    rows, of_stages = [], []
    for stage, group in itertools.groupby(planned, lambda each: each.stage):
        runs = list(group)
        ended = [each.name in done for each in runs]
        flops = [causal_flops(each.run.config) for each in runs]
        seconds = [clock.seconds(each.run.config) for each in runs]
        for each, was, cost, time_ in zip(runs, ended, flops, seconds, strict=True):
            config = each.run.config
            size = each.run.parameters, config.recipe.learning_rate, config.steps
            costs = f"{cost:.4g}", f"{trained_tokens(config) / 1e6:.4g}", f"{time_:.1f}"
            rows.append([each.name, *size, *costs, "ended" if was else ""])
        totals = f"{sum(flops):.4g}", f"{sum(seconds) / 60:.1f}"
        of_stages.append([stage, len(runs), sum(ended), *totals])
    columns = ["run", "N", "rate", "steps", "causal FLOPs", "M tokens", "seconds", ""]
    heads = ["stage", "runs", "ended", "causal FLOPs", "minutes"]
    note = "training alone, one run at a time: no start of a process, no validation"
    return f"{table(columns, rows)}\n\n{table(heads, of_stages, note=note)}"


def calibrate(runs: Iterable[SweepRun], out: Path, minutes: float, seconds: float = 1.0) -> Path:
    """Time the training step of every model that ``calibration.csv`` lacks; returns its path.

    One random batch, steps in a row by the host's clock, one thread: neither data nor validation.

    Args:
        runs: Whose models are timed, in this order.
        out: Folder of the table.
        minutes: No model is begun later.
        seconds: Of each measurement.
    """
    end = time.monotonic() + 60 * minutes - MARGIN_SECONDS
    rates = Table(out / "calibration.csv", CALIBRATION_COLUMNS, ("model",))
    write_environment(out, "calibration")
    torch.set_num_threads(1)
    for name, config in {model_name(run.config): run.config for run in runs}.items():
        if rates.has(model=name) or time.monotonic() > end:
            continue
        device = choose_device(config.device)
        torch.manual_seed(config.seed)
        attention = config.execution.resolve_attention(device)
        network = config.model.network(attention=attention)
        step = TrainStep(network.to(device), config.execution, config.recipe.gradient_clip)
        length = config.model.num_prefix + config.model.num_latents + 1
        shape = (config.recipe.batch_size, length)
        tokens = torch.randint(config.model.vocab_size, shape, device=device)
        inputs, targets = tokens[:, :-1], tokens[:, -config.model.num_latents :]
        rate = config.recipe.learning_rate
        call = functools.partial(step, inputs, targets, rate)
        took = seconds_per_step(call, seconds)
        flops_per_second = causal_flops(config) / config.steps / took
        rates.add(
            model=name,
            seconds_per_step=took,
            flops_per_second=flops_per_second,
            load=load(),
            device=environment()["device"],
            date=timestamp(),
        )
        print(f"{name}: {1e3 * took:.2f} ms a step, {flops_per_second:.3g} FLOP/s", flush=True)
    return rates.path


def load() -> float:
    """Processes that want a core, the mean of the last minute, as the machine gives it."""
    return round(os.getloadavg()[0], 2)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What a call of :func:`run` trains, and where.

    Attributes:
        planned: Runs in their order.
        corpus: The text; its tokenizer is the arm's.
        out: Folder of the results.
        state: Folder of the checkpoints.
        minutes: From now; the call ends within them.
        clock: Predicts each run's seconds.
        workers: Runs side by side.
        done: Tables of runs trained before.
        steps: Called in a run's process after each step; must be picklable.
    """

    planned: Sequence[Planned]
    corpus: CorpusConfig
    out: Path
    state: Path
    minutes: float
    clock: Clock
    workers: int = 1
    done: tuple[Path, ...] = ()
    steps: Callable[[str, int], None] | None = None

    def with_text(self) -> list[Planned]:
        """The runs, each with its text."""
        return [self._with_text(each) for each in self.planned]

    def _with_text(self, each: Planned) -> Planned:
        config = each.run.config
        corpus = dataclasses.replace(self.corpus, tokenizer=config.corpus.tokenizer)
        config = dataclasses.replace(config, corpus=corpus)
        return dataclasses.replace(each, run=dataclasses.replace(each.run, config=config))


def run(schedule: Schedule, now: Callable[[], float] = time.monotonic) -> list[str]:
    """Train what is not done, in order, as far as the minutes go.

    A run is begun only where its predicted seconds fit into those left, a shorter one after it
    where they do not; one that takes longer is stopped, and goes on from its checkpoint in the
    next call with the same ``state``. One whose loss is no longer finite has ended, at loss inf.

    Returns:
        Names of the runs that are left.

    Raises:
        ValueError: If a run was done with other steps, learning rate or text.
        RuntimeError: If a run failed; those running beside it lose their last steps.
    """
    end = now() + 60 * schedule.minutes - MARGIN_SECONDS
    planned = schedule.with_text()
    runs = [each.run for each in planned]
    corpora: dict[Any, Corpus] = {}

    def corpus_of(config: TrainConfig) -> Corpus:
        key = config.corpus.tokenizer, config.model.vocab_size
        if key not in corpora:
            corpora[key] = open_corpus(config)
        return corpora[key]

    rows = Table(schedule.out / "runs.csv", RUN_COLUMNS, ("run",))
    curves = Table(schedule.out / "curves.csv", CURVE_COLUMNS, ("run", "step"))
    corpora_used = Table(schedule.out / "corpora.csv", CORPUS_COLUMNS, ("corpus",))
    known = _known((schedule.out / "runs.csv", *schedule.done), runs, corpus_of)
    write_environment(schedule.out, "study", workers=schedule.workers, minutes=schedule.minutes)
    open_runs = [index for index, each in enumerate(runs) if each.name not in known]
    running: dict[int, int] = {}  # steps that each started from

    def record(index: int, diverged: bool) -> None:
        ended = runs[index]
        metrics = read_table(schedule.state / "runs" / ended.name / "metrics.csv")
        for row in metrics:
            kept = {name: row[name] for name in CURVE_COLUMNS if name != "run"}
            if not curves.has(run=ended.name, step=row["step"]):
                curves.add(run=ended.name, **kept)
        predicted = schedule.clock.seconds(ended.config)
        losses = ("train_loss", "validation_loss", "seconds")
        last = dict.fromkeys(losses, "inf") if diverged else metrics[-1]
        corpus = corpus_of(ended.config)
        if not corpora_used.has(corpus=corpus.digest[:16]):
            corpora_used.add(**corpus_row(corpus, ended.config.corpus.tokenizer))
        rows.add(**_run_row(planned[index], last, predicted, schedule.workers, corpus))
        print(
            f"{ended.name}: validation loss {float(last['validation_loss']):.4f}, "
            f"{float(last['seconds']):.1f} s, predicted {predicted:.1f}",
            flush=True,
        )

    place = OneMachine(runs, schedule.state, schedule.workers, schedule.steps)
    with contextlib.closing(place):
        while now() < end:
            while len(running) < schedule.workers:
                left = end - now()
                index = next((i for i in open_runs if _fits(schedule, runs[i], left)), None)
                if index is None:
                    break
                open_runs.remove(index)
                running[index] = place.done[index]
                place.start(index)
            if not running:
                break
            place.wait()
            for index, problem in place.ended().items():
                started_from = running.pop(index)
                saved = saved_steps(schedule.state / "runs" / runs[index].name)
                diverged = (problem or "").startswith(DIVERGED)
                if diverged or saved == runs[index].config.steps:
                    record(index, diverged)
                elif problem is not None or saved == started_from:
                    raise RuntimeError(f"{runs[index].name}: {problem or f'died at step {saved}'}")
                else:
                    open_runs.insert(0, index)
    return [each.name for each in runs if not rows.has(run=each.name) and each.name not in known]


def _fits(schedule: Schedule, candidate: SweepRun, left: float) -> bool:
    config = candidate.config
    done = saved_steps(schedule.state / "runs" / candidate.name)
    share = 1 - done / config.steps
    return START_SECONDS + share * schedule.clock.seconds(config) < left


def _known(
    tables: Iterable[Path], runs: Sequence[SweepRun], corpus_of: Callable[[TrainConfig], Corpus]
) -> set[str]:
    by_name = {each.name: each.config for each in runs}
    known = set()
    for path in tables:
        if not path.exists():
            raise ValueError(f"done must name tables of runs, got {path}, which is not there")
        for row in read_table(path):
            config = by_name.get(row["run"])
            if config is None:
                continue
            was = int(row["steps"]), float(row["learning_rate"]), row["corpus"]
            now = config.steps, config.recipe.learning_rate, corpus_of(config).digest[:16]
            if was != now:
                raise ValueError(
                    f"{path} has {row['run']} with steps, learning rate and corpus {was}, now {now}"
                )
            known.add(row["run"])
    return known


def _run_row(
    planned: Planned, last: dict[str, str], predicted: float, workers: int, corpus: Corpus
) -> dict[str, Any]:
    config = planned.run.config
    said = environment()
    tokens = trained_tokens(config)
    return {
        "run": planned.name,
        "stage": planned.stage,
        "arm": planned.arm,
        "convention": planned.convention,
        "budget": planned.run.budget,
        "num_channels": config.model.num_channels,
        "num_layers": config.model.num_layers,
        "seed": config.seed,
        "learning_rate": config.recipe.learning_rate,
        "parameters": planned.run.parameters,
        "steps": config.steps,
        "tokens": tokens,
        "flops": causal_flops(config),
        "epochs": tokens / len(corpus.train),
        "train_loss": last["train_loss"],
        "validation_loss": last["validation_loss"],
        "bytes_per_token": bytes_per_token(config, corpus),
        "seconds": last["seconds"],
        "predicted_seconds": predicted,
        "workers": workers,
        "load": load(),
        "corpus": corpus.digest[:16],
        "device": said["device"],
        "commit": said["commit"],
        "date": timestamp(),
    }


def corpus_row(corpus: Corpus, tokenizer: str) -> dict[str, Any]:
    """What tells a text apart, and whether it is validated on the same tokens as another."""
    return {
        "corpus": corpus.digest[:16],
        "tokenizer": tokenizer,
        "train_tokens": len(corpus.train),
        "validation_tokens": len(corpus.validation),
        "validation_sha256": hashlib.sha256(corpus.validation.tobytes()).hexdigest(),
    }


def bytes_per_token(config: TrainConfig, corpus: Corpus) -> float:
    """Mean bytes of the targets of the last validation; the end of a document counts as one."""
    _, targets = validation_windows(
        corpus.validation,
        config.model.num_prefix,
        config.model.num_latents,
        final_windows(config),
        config.validation_context,
    )
    return float(corpus.tokenizer.byte_lengths()[targets.numpy()].mean())
