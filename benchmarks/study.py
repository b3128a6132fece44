"""The IsoFLOP study of what a prefix buys at equal compute: plan, run, predict, compare, tell.

::

    python -m benchmarks.study plan --flops-per-second 2e14
    python -m benchmarks.study calibrate --out DIR --minutes 3
    python -m benchmarks.study run --out DIR --corpus 'train*' --validation 'val*' --minutes 9
    python -m benchmarks.study predict --runs DIR/runs.csv --budget 1e16 --out prediction.json
    python -m benchmarks.study run --out DIR --prediction prediction.json --corpus ... --minutes 3
    python -m benchmarks.study compare --prediction prediction.json --runs DIR/runs.csv
    python -m benchmarks.study page --results DIR --out docs/isoflop-study.md

The study itself is :data:`benchmarks.design.STUDY`. ``runs.csv`` gets a row as soon as a run has
ended, ``curves.csv`` its validations; checkpoints lie in ``--state``, which need not outlast the
machine. A run that has a row, in ``--out`` or in a file given by ``--done``, is never trained
again; ``--dry-run`` takes the tiny study.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.design import (
    RUN_COLUMNS,
    STUDY,
    TINY_STUDY,
    causal_flops,
    model_name,
    stages_of,
)
from benchmarks.measurement import (
    Table,
    device,
    environment,
    read_table,
    timestamp,
    write_environment,
)
from benchmarks.prediction import BOOTSTRAP, compare, predict
from benchmarks.training import seconds_per_step
from flopcount.tables import table
from models.data import Corpus, CorpusConfig
from models.perceiver_ar import PerceiverAR
from models.step import TrainStep
from models.sweep import OneMachine, SweepRun, saved_steps
from models.training import TrainConfig, open_corpus

CURVE_COLUMNS = (
    "run",
    "step",
    "tokens",
    "flops",
    "learning_rate",
    "train_loss",
    "validation_loss",
    "seconds",
)
CALIBRATION_COLUMNS = ("model", "seconds_per_step", "flops_per_second", "device", "date")
CORPUS_TOKENS = 195_000_000
"""One file of the text that the study is planned for; runs record the epochs that they took."""
MARGIN_SECONDS = 10.0
"""Kept at the end, in which runs are stopped and rows written."""
START_SECONDS = 6.0
"""That a process takes until its first step: imports, device, kernels from a cache. A guess."""


class Clock:
    """Seconds that a run will take: causal FLOPs over the rate that its model reached.

    Args:
        calibration: the table of :func:`calibrate`; may be missing.
        flops_per_second: for models that it does not have.
    """

    def __init__(self, calibration: Path | None, flops_per_second: float) -> None:
        if not flops_per_second > 0:
            raise ValueError(f"flops_per_second must be positive, got {flops_per_second}")
        rows = read_table(calibration) if calibration is not None else []
        self.rates = {row["model"]: float(row["flops_per_second"]) for row in rows}
        self.otherwise = flops_per_second

    def seconds(self, config: TrainConfig) -> float:
        """Of training alone, the run having the device to itself."""
        return causal_flops(config) / self.rates.get(model_name(config), self.otherwise)


def plan_text(stages: dict[str, list[SweepRun]], clock: Clock, corpus_tokens: int) -> str:
    """Every run with its steps, tokens, epochs and seconds; then each stage with totals."""
    rows, totals = [], []
    after = 0.0
    for stage, runs in stages.items():
        took = [clock.seconds(run.config) for run in runs]
        for run, seconds in zip(runs, took, strict=True):
            config = run.config
            tokens = config.steps * config.recipe.batch_size * config.model.num_latents
            rows.append(
                [
                    run.name,
                    run.parameters,
                    config.steps,
                    f"{causal_flops(config):.4g}",
                    f"{tokens / 1e6:.4g}",
                    f"{tokens / corpus_tokens:.2f}",
                    f"{seconds:.1f}",
                ]
            )
        after += sum(took)
        flops = sum(causal_flops(run.config) for run in runs)
        totals.append(
            [stage, len(runs), f"{flops:.4g}", f"{sum(took) / 60:.2f}", f"{after / 60:.2f}"]
        )
    columns = ["run", "N", "steps", "causal FLOPs", "M tokens", "epochs", "seconds"]
    of_stages = ["stage", "runs", "causal FLOPs", "minutes", "until then"]
    note = "training alone: no start of a process, no validation"
    return f"{table(columns, rows)}\n\n{table(of_stages, totals, note=note)}"


def calibrate(runs: Iterable[SweepRun], out: Path, minutes: float, seconds: float = 1.0) -> Path:
    """Time the training step of every model that ``calibration.csv`` lacks; returns its path.

    One random batch, steps in a row by the host's clock: neither data nor validation.

    Args:
        runs: whose models are timed, in this order.
        out: folder of the table.
        minutes: no model is begun later.
        seconds: of each measurement.
    """
    end = time.monotonic() + 60 * minutes - MARGIN_SECONDS
    rates = Table(out / "calibration.csv", CALIBRATION_COLUMNS, ("model",))
    write_environment(out, "calibration")
    for name, config in {model_name(run.config): run.config for run in runs}.items():
        if rates.has(model=name) or time.monotonic() > end:
            continue
        torch.manual_seed(config.seed)
        attention = config.execution.resolve_attention(device())
        network = PerceiverAR(**dataclasses.asdict(config.model), attention=attention)
        step = TrainStep(network.to(device()), config.execution, config.recipe.gradient_clip)
        length = config.model.num_prefix + config.model.num_latents + 1
        tokens = torch.randint(
            config.model.vocab_size, (config.recipe.batch_size, length), device=device()
        )
        inputs, targets = tokens[:, :-1], tokens[:, -config.model.num_latents :]
        rate = config.recipe.learning_rate
        took = seconds_per_step(lambda: step(inputs, targets, rate), seconds)  # noqa: B023
        flops_per_second = causal_flops(config) / config.steps / took
        said = environment()
        rates.add(
            model=name,
            seconds_per_step=took,
            flops_per_second=flops_per_second,
            device=said["device"],
            date=timestamp(),
        )
        print(f"{name}: {1e3 * took:.2f} ms a step, {flops_per_second:.3g} FLOP/s", flush=True)
    return rates.path


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What a call of :func:`run` trains, and where.

    Attributes:
        stages: runs in their order.
        corpus: the text.
        out: folder of the results.
        state: folder of the checkpoints.
        minutes: from now; the call ends within them.
        clock: predicts each run's seconds.
        workers: runs side by side.
        done: tables of runs trained before.
        learning_rate: in place of the study's.
        steps: called in a run's process after each step; must be picklable.
    """

    stages: dict[str, list[SweepRun]]
    corpus: CorpusConfig
    out: Path
    state: Path
    minutes: float
    clock: Clock
    workers: int = 1
    done: tuple[Path, ...] = ()
    learning_rate: float | None = None
    steps: Callable[[str, int], None] | None = None

    def configured(self) -> list[tuple[str, SweepRun]]:
        """Each run with its stage, its text and learning rate."""
        return [(name, self._with_text(run)) for name, runs in self.stages.items() for run in runs]

    def _with_text(self, run: SweepRun) -> SweepRun:
        recipe = run.config.recipe
        if self.learning_rate is not None:
            recipe = dataclasses.replace(recipe, learning_rate=self.learning_rate)
        config = dataclasses.replace(run.config, corpus=self.corpus, recipe=recipe)
        return dataclasses.replace(run, config=config)


def run(schedule: Schedule, now: Callable[[], float] = time.monotonic) -> list[str]:
    """Train what is not done, in order, as far as the minutes go.

    A run is begun only where its predicted seconds fit into those left, a shorter one after it
    where they do not; one that takes longer is stopped, and goes on from its checkpoint in the
    next call with the same ``state``.

    Returns:
        Names of the runs that are left.

    Raises:
        ValueError: if a run was done with other steps, learning rate or text.
        RuntimeError: if a run failed; those running beside it lose their last steps.
    """
    end = now() + 60 * schedule.minutes - MARGIN_SECONDS
    planned = schedule.configured()
    runs = [each for _, each in planned]
    corpus = open_corpus(runs[0].config)
    rows = Table(schedule.out / "runs.csv", RUN_COLUMNS, ("run",))
    curves = Table(schedule.out / "curves.csv", CURVE_COLUMNS, ("run", "step"))
    known = _known((schedule.out / "runs.csv", *schedule.done), runs, corpus)
    write_environment(schedule.out, "study", workers=schedule.workers, minutes=schedule.minutes)
    open_runs = [index for index, each in enumerate(runs) if each.name not in known]
    running: dict[int, int] = {}  # steps that each started from

    def record(index: int) -> None:
        stage, ended = planned[index]
        metrics = read_table(schedule.state / "runs" / ended.name / "metrics.csv")
        for row in metrics:
            kept = {name: row[name] for name in CURVE_COLUMNS if name != "run"}
            if not curves.has(run=ended.name, step=row["step"]):
                curves.add(run=ended.name, **kept)
        predicted = schedule.clock.seconds(ended.config)
        rows.add(**_run_row(stage, ended, metrics[-1], predicted, schedule.workers, corpus))
        print(
            f"{ended.name}: validation loss {float(metrics[-1]['validation_loss']):.4f}, "
            f"{float(metrics[-1]['seconds']):.1f} s, predicted {predicted:.1f}",
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
                if saved == runs[index].config.steps:
                    record(index)
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


def _known(tables: Iterable[Path], runs: Sequence[SweepRun], corpus: Corpus) -> set[str]:
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
            now = config.steps, config.recipe.learning_rate, corpus.digest[:16]
            if was != now:
                raise ValueError(
                    f"{path} has {row['run']} with steps, learning rate and corpus {was}, now {now}"
                )
            known.add(row["run"])
    return known


def _run_row(
    stage: str,
    ended: SweepRun,
    last: dict[str, str],
    predicted: float,
    workers: int,
    corpus: Corpus,
) -> dict[str, Any]:
    config = ended.config
    said = environment()
    budget_name = ended.name.split("-seed")[0].rsplit("-", 2)[0]
    arm, _, convention = budget_name.partition("-")
    return {
        "run": ended.name,
        "stage": stage,
        "arm": arm,
        "convention": convention or "causal",
        "budget": ended.budget,
        "num_channels": config.model.num_channels,
        "num_layers": config.model.num_layers,
        "seed": config.seed,
        "learning_rate": config.recipe.learning_rate,
        "parameters": ended.parameters,
        "steps": config.steps,
        "tokens": last["tokens"],
        "flops": last["flops"],
        "epochs": float(last["tokens"]) / len(corpus.train),
        "train_loss": last["train_loss"],
        "validation_loss": last["validation_loss"],
        "seconds": last["seconds"],
        "predicted_seconds": predicted,
        "workers": workers,
        "corpus": corpus.digest[:16],
        "device": said["device"],
        "commit": said["commit"],
        "date": timestamp(),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    arguments: dict[str, dict[str, Any]] = {
        "--dry-run": {"action": "store_true", "help": "the tiny study, GPU or not"},
        "--stages": {"nargs": "+", "help": "these alone, in this order"},
        "--prediction": {"type": Path, "help": "the file of predict"},
        "--flops-per-second": {
            "type": float,
            "default": 1e14,
            "help": "assumed for models that calibration.csv does not have",
        },
        "--minutes": {"type": float, "default": 9.0, "help": "end within"},
        "--calibration": {"type": Path, "help": "calibration.csv; that of --out by default"},
    }
    asked = {
        "plan": ("--dry-run", "--stages", "--prediction", "--flops-per-second", "--calibration"),
        "calibrate": ("--dry-run", "--stages", "--prediction", "--minutes"),
        "run": tuple(arguments),
        "predict": ("--dry-run",),
        "compare": (),
        "page": ("--dry-run",),
    }
    made = {name: commands.add_parser(name) for name in asked}
    for name, options in asked.items():
        for option in options:
            made[name].add_argument(option, **arguments[option])
    made["plan"].add_argument("--corpus-tokens", type=int, default=CORPUS_TOKENS)
    for name in ("calibrate", "run"):
        made[name].add_argument("--out", type=Path, required=True, help="folder of the results")
    train = made["run"]
    train.add_argument("--corpus", nargs="+", required=True, help="files or globs")
    train.add_argument("--validation", nargs="+", default=[], help="files or globs held out")
    train.add_argument("--blank-lines", type=int, default=3, help="that part the documents")
    train.add_argument("--state", type=Path, help="of checkpoints; DIR/state by default")
    train.add_argument("--done", nargs="+", type=Path, default=[], help="runs.csv of earlier calls")
    train.add_argument("--workers", type=int, default=1, help="runs side by side")
    train.add_argument("--learning-rate", type=float, help="in place of the study's")
    for name in ("predict", "compare"):
        made[name].add_argument("--runs", type=Path, nargs="+", required=True)
    made["predict"].add_argument("--arm", default=STUDY.main, choices=list(STUDY.prefixes))
    made["predict"].add_argument("--budget", type=float, default=1e16)
    for name in ("predict", "page"):
        made[name].add_argument(
            "--bootstrap", type=int, default=BOOTSTRAP, help="fits per interval"
        )
    made["predict"].add_argument("--out", type=Path, required=True, help="a new file")
    made["compare"].add_argument("--prediction", type=Path, required=True)
    page = made["page"]
    page.add_argument("--results", nargs="+", type=Path, required=True, help="folders with tables")
    page.add_argument("--out", type=Path, required=True, help="the page, markdown")
    page.add_argument("--plots", type=Path, help="their folder; that of --out without its suffix")
    return parser


def _obey(given: argparse.Namespace) -> None:
    if given.command == "compare":
        print(compare(given.prediction, given.runs))
        return
    study = TINY_STUDY if given.dry_run else STUDY
    if given.command == "predict":
        made = predict(study, given.runs, given.arm, given.budget, given.out, given.bootstrap)
        for name, said in made["approaches"].items():
            print(f"approach {name}: {said.get('reason') or _in_words(said)}")
        print(f"train {made['shapes']}; written to {given.out}: commit it before training")
        return
    if given.command == "page":
        # Matplotlib and SciPy, which training does not need.
        from benchmarks.page import tell

        for path in tell(study, given.results, given.out, given.plots, given.bootstrap):
            print(path)
        return
    stages = stages_of(study, given.stages, given.prediction)
    if given.command == "calibrate":
        calibrate((run for runs in stages.values() for run in runs), given.out, given.minutes)
        return
    calibration = given.calibration
    if calibration is None and given.command == "run":
        calibration = given.out / "calibration.csv"
    clock = Clock(calibration, given.flops_per_second)
    if given.command == "plan":
        print(plan_text(stages, clock, given.corpus_tokens))
        return
    state = given.state or given.out / "state"
    corpus = CorpusConfig(
        files=tuple(given.corpus),
        validation_files=tuple(given.validation),
        blank_lines=given.blank_lines,
        cache=state / "corpora",
    )
    left = run(
        Schedule(
            stages,
            corpus,
            given.out,
            state,
            given.minutes,
            clock,
            given.workers,
            tuple(given.done),
            given.learning_rate,
        )
    )
    print(f"{len(left)} runs are left" + (f", {left[0]} first" if left else ""))


def _in_words(said: dict[str, Any]) -> str:
    return f"N {said['params']:.4g}, D {said['tokens']:.4g}, loss {said['loss']:.4f}"


def main(arguments: list[str] | None = None) -> int:
    """Command line.

    Returns:
        The exit status: 0; with one line on standard error, 2 where the input is wrong, 1 where
        a run failed.
    """
    given = _parser().parse_args(arguments)
    try:
        _obey(given)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
