"""The IsoFLOP study of what a prefix buys at equal compute: plan, run, predict, compare.

::

    python -m benchmarks.study plan --flops-per-second 2e14
    python -m benchmarks.study calibrate --out DIR --minutes 3
    python -m benchmarks.study run --out DIR --corpus 'train*' --validation 'val*' --minutes 9
    python -m benchmarks.study predict --runs DIR/runs.csv --budget 1e16 --out prediction.json
    python -m benchmarks.study run --out DIR --prediction prediction.json --corpus ... --minutes 3
    python -m benchmarks.study compare --prediction prediction.json --runs DIR/runs.csv

The study itself is :data:`benchmarks.design.STUDY`. ``runs.csv`` gets a row as soon as a run has
ended, ``curves.csv`` its validations; checkpoints lie in ``--state``, which need not outlast the
machine. A run that has a row, in ``--out`` or in a file given by ``--done``, is never trained
again; ``--dry-run`` takes the tiny study.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

import flopcount
from benchmarks.design import STUDY, TINY_STUDY, Study
from benchmarks.measurement import Table, device, environment, read_table, write_environment
from benchmarks.training import seconds_per_step
from flopcount.tables import table
from models.data import Corpus, CorpusConfig
from models.perceiver_ar import PerceiverAR
from models.step import TrainStep
from models.sweep import OneMachine, SweepRun, saved_steps
from models.training import TrainConfig, open_corpus

RUN_COLUMNS = (
    "run",
    "stage",
    "arm",
    "convention",
    "budget",
    "num_channels",
    "num_layers",
    "seed",
    "learning_rate",
    "parameters",
    "steps",
    "tokens",
    "flops",
    "epochs",
    "train_loss",
    "validation_loss",
    "seconds",
    "predicted_seconds",
    "workers",
    "corpus",
    "device",
    "commit",
    "date",
)
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
PREDICTION = "prediction"
"""The stage of the run that tests a prediction."""
CORPUS_TOKENS = 195_000_000
"""One file of the text that the study is planned for; runs record the epochs that they took."""
MARGIN_SECONDS = 10.0
"""Kept at the end, in which runs are stopped and rows written."""
START_SECONDS = 6.0
"""That a process takes until its first step: imports, device, kernels from a cache. A guess."""
WIDTHS = range(64, 1025, 64)
DEPTHS = range(2, 17)
ASPECT_RATIOS = (32, 80)
"""Of width and depth, for a model of the predicted size; those of the study's larger models."""


def stages_of(
    study: Study, names: Sequence[str] | None = None, prediction: Path | None = None
) -> dict[str, list[SweepRun]]:
    """The stages to run, in order: those named, all, or the one that tests a prediction.

    Raises:
        ValueError: if a name is unknown.
    """
    if prediction is not None:
        made = json.loads(prediction.read_text())
        shapes = tuple((width, depth) for width, depth in made["shapes"])
        return {PREDICTION: study.sweep(made["arm"], made["budget"], shapes, study.base.seeds)}
    stages = study.stages()
    unknown = [name for name in names or () if name not in stages]
    if unknown:
        raise ValueError(f"stages must be of {list(stages)}, got {unknown}")
    return {name: stages[name] for name in names or stages}


def model_name(config: TrainConfig) -> str:
    """The sizes that a step's time depends on.

    >>> model_name(TrainConfig())
    '512x9-V262-n512-m1536-h8-batch80'
    """
    model = config.model
    return (
        f"{model.num_channels}x{model.num_layers}-V{model.vocab_size}-n{model.num_latents}"
        f"-m{model.num_prefix}-h{model.num_heads}-batch{config.recipe.batch_size}"
    )


def causal_flops(config: TrainConfig) -> int:
    """FLOPs of all steps of a run, level ``causal``."""
    counter = flopcount.PerceiverAR(**dataclasses.asdict(config.model))
    return int(config.steps * counter.flops(batch_size=config.recipe.batch_size).total)


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
            date=_now(),
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
        "date": _now(),
    }


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _columns(paths: Sequence[Path], **where: str) -> dict[str, list[str]]:
    rows = [row for path in paths for row in read_table(path)]
    rows = [row for row in rows if all(row[name] == value for name, value in where.items())]
    return {name: [row[name] for row in rows] for name in RUN_COLUMNS}


def predict(
    study: Study,
    tables: Sequence[Path],
    arm: str,
    budget: float,
    out: Path,
    num_bootstrap: int = 1000,
) -> dict[str, Any]:
    """Fit an arm's runs and write down N_opt, D_opt and the loss at a budget not yet trained.

    Approach 2 and both objectives of approach 3, each with bootstrap intervals, or why it says
    nothing. ``shapes`` are what to train to test it: the study's kind of model nearest to N_opt,
    then to half and to twice of that, of the first approach that has an optimum.

    Raises:
        ValueError: if ``out`` exists, runs reach the budget already, or none predicts.
    """
    if out.exists():
        raise ValueError(f"out must be a new file: a prediction is never changed, got {out}")
    columns = _columns(tables, arm=arm, convention="causal")
    largest = max(map(float, columns["budget"]), default=0.0)
    if not budget > largest:
        raise ValueError(f"budget must lie above all trained budgets, up to {largest:g}: {budget}")
    runs = flopcount.read_runs(columns, loss="validation_loss")
    approaches: dict[str, Callable[[], Any]] = {
        "2": lambda: flopcount.fit_isoflop_profiles(runs, num_bootstrap=num_bootstrap),
        "3, huber-log": lambda: flopcount.fit_surface(runs, num_bootstrap=num_bootstrap // 10),
        "3, variable-projection": lambda: flopcount.fit_surface(
            runs, objective="variable-projection", num_bootstrap=num_bootstrap // 10
        ),
    }
    found: dict[str, Any] = {}
    for name, fit in approaches.items():
        try:
            fitted = fit()
            found[name] = fitted.predict(budget).to_dict() | {"fit": str(fitted)}
        except ValueError as error:
            found[name] = {"reason": str(error)}
    sizes = [made["params"] for made in found.values() if "params" in made]
    if not sizes:
        raise ValueError(f"no approach predicts from {len(runs.rows)} runs: {found}")
    prediction = {
        "arm": arm,
        "budget": budget,
        "approaches": found,
        "shapes": _shapes_near(study, arm, sizes[0]),
        "runs": columns["run"],
    } | {name: environment()[name] for name in ("commit", "command")}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(prediction | {"date": _now()}, indent=1) + "\n")
    return prediction


def _shapes_near(study: Study, arm: str, params: float) -> list[tuple[int, int]]:
    """Shapes nearest to N, N/2 and 2·N in log N; each once."""
    candidates = {
        (width, depth): size
        for width in WIDTHS
        for depth in DEPTHS
        if ASPECT_RATIOS[0] <= width / depth <= ASPECT_RATIOS[1]
        for size in [_params(study, arm, width, depth)]
    }
    nearest = [
        min(candidates, key=lambda shape: abs(math.log(candidates[shape] / target)))
        for target in (params, params / 2, 2 * params)
    ]
    return list(dict.fromkeys(nearest))


def _params(study: Study, arm: str, width: int, depth: int) -> int:
    sizes = dataclasses.asdict(study.base.model) | {
        "num_prefix": study.prefixes[arm],
        "num_channels": width,
        "num_layers": depth,
        "num_heads": width // (study.base.head_dim or width),
        "prefix_dropout": 0.0,
    }
    return int(flopcount.PerceiverAR(**sizes).params().total)


def compare(prediction: Path, tables: Sequence[Path]) -> str:
    """A prediction beside what came out: the best of the models trained at its budget.

    Raises:
        ValueError: if no run at its budget is in the tables.
    """
    made = json.loads(prediction.read_text())
    columns = _columns(tables, arm=made["arm"], convention="causal", stage=PREDICTION)
    outcome = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    outcome = [row for row in outcome if float(row["budget"]) == made["budget"]]
    if not outcome:
        raise ValueError(f"runs must hold one at {made['budget']:g} FLOPs of {made['arm']}")
    early = [row["run"] for row in outcome if row["date"] < made["date"]]
    if early:
        raise ValueError(f"{prediction} was made after {early} had ended: no prediction")
    best = min(outcome, key=lambda row: float(row["validation_loss"]))
    came = {"params": "parameters", "tokens": "tokens", "loss": "validation_loss"}
    rows = []
    for name, said in made["approaches"].items():
        if "reason" in said:
            rows.append([name, said["reason"], None, None, None, None])
            continue
        for what, column in came.items():
            value, range_ = float(best[column]), said[f"{what}_interval"]
            ends = None if range_ is None else (range_["low"], range_["high"])
            inside = "" if ends is None else ("yes" if ends[0] <= value <= ends[1] else "no")
            shown = "" if ends is None else f"{ends[0]:.4g} to {ends[1]:.4g}"
            ratio = f"{value / said[what]:.4f}"
            rows.append(
                [name, what, f"{said[what]:.5g}", shown, f"{value:.5g}", f"{ratio} {inside}"]
            )
    trained = [
        [row["run"], int(row["parameters"]), f"{float(row['validation_loss']):.4f}", row["epochs"]]
        for row in outcome
    ]
    heads = ["approach", "of", "predicted", "interval", "best trained", "ratio, inside"]
    title = f"predicted {made['date']}, commit {made['commit']}"
    of_runs = table(["run", "N", "validation loss", "epochs"], trained)
    return f"{table(heads, rows, title=title)}\n\n{of_runs}"


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
    made["predict"].add_argument("--bootstrap", type=int, default=1000)
    made["predict"].add_argument("--out", type=Path, required=True, help="a new file")
    made["compare"].add_argument("--prediction", type=Path, required=True)
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
