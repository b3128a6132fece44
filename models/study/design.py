"""The designs of the studies: arms, budgets, sizes, seeds, and the order of their value."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from models.data.tokenizers import BYTE_VOCAB_SIZE, TokenizerName
from models.sweeps.plan import FEWEST_STEPS, SweepConfig, SweepRun, plan_runs, run_name
from models.training.run import ModelConfig, Recipe, TrainConfig
from models.training.step import Execution
from models.training.throughput import measure

Row = dict[str, str]
"""Of ``runs.csv``."""
Shape = tuple[int, int]
"""Width and depth."""
RUN_COLUMNS = (
    "run", "stage", "arm", "convention", "budget", "num_channels", "num_layers", "seed",
    "learning_rate", "parameters", "steps", "tokens", "flops", "epochs", "train_loss",
    "validation_loss", "bytes_per_token", "seconds", "predicted_seconds", "workers", "load",
    "corpus", "device", "commit", "date",
)  # fmt: skip
PREDICTION = "prediction"
"""The stage of the runs that test a prediction."""
BOOTSTRAP = 1000
"""Fits to sizes drawn with replacement, for the intervals of each approach."""
TRIALS = "trials"
"""The stage whose runs the rule of learning rates is fitted to."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """One side of a comparison.

    Attributes:
        num_prefix: M; 0 is the decoder.
        shapes: Sizes at each budget, FLOPs of level ``causal``.
        tokenizer: Of the text.
        vocab_size: Of the tokenizer.
    """

    num_prefix: int
    shapes: Mapping[float, tuple[Shape, ...]]
    tokenizer: TokenizerName = "bytes"
    vocab_size: int = BYTE_VOCAB_SIZE


@dataclasses.dataclass(frozen=True)
class Stage:
    """Runs of arms at budgets: every size with every seed and rate.

    Attributes:
        arms: By name.
        budgets: FLOPs of level ``causal``.
        shapes: In place of the arm's.
        around: Instead, so many of the arm's sizes: the one with the least loss, and those next to
            it, of the runs at that budget which have ended.
        seeds: Of the runs.
        rates: Learning rates in place of the rule's.
        factors: Of the learning rate.
        convention: A published count that the budget is held by, its self part, or ``executed``, by
            the kernels' tilings in the study's dtype. The budget is what the middle size costs by
            it, so that both families share that run.
    """

    arms: tuple[str, ...]
    budgets: tuple[float, ...]
    shapes: tuple[Shape, ...] | None = None
    around: int | None = None
    seeds: tuple[int, ...] = (0,)
    rates: tuple[float, ...] = ()
    factors: tuple[float, ...] = (1.0,)
    convention: str | None = None


@dataclasses.dataclass(frozen=True)
class Study:
    """Arms of the same blocks, each trained at the same budgets.

    Attributes:
        base: What all runs share; its budgets, shapes, seeds and prefix are replaced.
        arms: By name.
        stages: By name, in the order of their value. Where one of them is :data:`TRIALS`, learning
            rates follow the rule fitted to its runs; else all have that of ``base``.
        candidates: Shapes that a prediction may be tested with.
    """

    base: SweepConfig
    arms: Mapping[str, Arm]
    stages: Mapping[str, Stage]
    candidates: tuple[Shape, ...]


@dataclasses.dataclass(frozen=True)
class Planned:
    """A run with its place in the study."""

    stage: str
    arm: str
    convention: str
    run: SweepRun

    @property
    def name(self) -> str:
        """Of the run; the same models at the same rate have one name in all stages."""
        return self.run.name


def plan(
    study: Study,
    rows: Iterable[Row] = (),
    stages: Sequence[str] = (),
    predictions: Iterable[Path] = (),
) -> list[Planned]:
    """All runs that are known, in order; a run of several stages belongs to the first.

    A stage after :data:`TRIALS` is known when those have ended, one around a minimum when all of
    the budget's sizes have. Those that test predictions come last.

    Args:
        study: The design.
        rows: Of the runs that have ended.
        stages: These alone; all unless given.
        predictions: Files.

    Raises:
        ValueError: If a stage, arm or budget is unknown.
    """
    rows = list(rows)
    asked = dict(study.stages)
    for path in predictions:
        made = json.loads(path.read_text(encoding="utf-8"))
        shapes = tuple((width, depth) for width, depth in made["shapes"])
        asked[f"{PREDICTION}-{made['arm']}"] = Stage(
            (made["arm"],), (made["budget"],), shapes=shapes
        )
    unknown = [name for name in stages if name not in asked]
    if unknown:
        raise ValueError(f"stages must be of {list(asked)}, got {unknown}")
    rule = _rule(study, rows)
    by_name: dict[str, Planned] = {}
    for name in stages or asked:
        for each in _runs(study, name, asked[name], rows, rule):
            by_name.setdefault(each.name, each)
    return list(by_name.values())


def _runs(
    study: Study, name: str, stage: Stage, rows: list[Row], rule: tuple[float, float] | None
) -> Iterable[Planned]:
    """Give the runs of a stage; none while their learning rates are not known."""
    if not (stage.rates or rule):
        return
    for budget, arm in itertools.product(stage.budgets, stage.arms):
        if arm not in study.arms:
            raise ValueError(f"arm must be one of {list(study.arms)}, got {arm!r}")
        for shape, seed in itertools.product(_shapes(study, stage, arm, budget, rows), stage.seeds):
            rates = stage.rates or (rule[0] * shape[0] ** rule[1],)
            for rate, factor in itertools.product(rates, stage.factors):
                run = _run(study, stage, arm, budget, shape, seed, rounded(rate * factor))
                labels = [f"lr{rate:g}"] if stage.rates else []
                labels += [f"times{factor:g}"] if factor != 1 else []
                label = arm if stage.convention is None else f"{arm}-{stage.convention}"
                run = dataclasses.replace(run, name="-".join([label, run.name, *labels]))
                yield Planned(name, arm, stage.convention or "causal", run)


def _shapes(
    study: Study, stage: Stage, arm: str, budget: float, rows: list[Row]
) -> tuple[Shape, ...]:
    if stage.shapes is not None:
        return stage.shapes
    known = study.arms[arm].shapes
    if budget not in known:
        raise ValueError(f"budgets of {arm} must be of {list(known)}, got {budget}")
    if stage.around is None:
        return known[budget]
    losses = {
        (int(row["num_channels"]), int(row["num_layers"])): float(row["validation_loss"])
        for row in at_rule(rows, arm)
        if float(row["budget"]) == budget and row["seed"] == "0"
    }
    if not losses.keys() >= set(known[budget]):
        return ()
    best = min(range(len(known[budget])), key=lambda index: losses[known[budget][index]])
    first = min(max(0, best - stage.around // 2), len(known[budget]) - stage.around)
    return known[budget][first : first + stage.around]


def sized(study: Study, arm: str, shape: Shape) -> ModelConfig:
    """The network of an arm in a shape."""
    side, (width, depth) = study.arms[arm], shape
    base = study.base
    return dataclasses.replace(
        base.model,
        vocab_size=side.vocab_size,
        num_prefix=side.num_prefix,
        num_channels=width,
        num_layers=depth,
        num_heads=width // base.head_dim if base.head_dim else base.model.num_heads,
        prefix_dropout=base.model.prefix_dropout if side.num_prefix else 0.0,
    )


def _run(
    study: Study, stage: Stage, arm: str, budget: float, shape: Shape, seed: int, rate: float
) -> SweepRun:
    side = study.arms[arm]
    base = study.base
    recipe = dataclasses.replace(base.recipe, learning_rate=rate)
    config = dataclasses.replace(
        base,
        budgets=(budget,),
        shapes=(shape,),
        seeds=(seed,),
        recipe=recipe,
        corpus=dataclasses.replace(base.corpus, tokenizer=side.tokenizer),
        validation_context=max(each.num_prefix for each in study.arms.values()),
        model=sized(study, arm, shape),
    )
    if stage.convention is None:
        [run] = plan_runs(config)
        return run
    shapes = side.shapes[budget]
    [pivot] = plan_runs(dataclasses.replace(config, shapes=(shapes[len(shapes) // 2],)))
    spent = pivot.config.steps * _step_flops(pivot.config.model, stage.convention, base)
    step = _step_flops(config.model, stage.convention, base)
    steps = -(-spent // step)
    if steps < FEWEST_STEPS:
        raise ValueError(f"budgets must afford {FEWEST_STEPS} steps, got {steps} of {shape}")
    [run] = plan_runs(config)
    return dataclasses.replace(
        run,
        name=run_name(spent, *shape, seed),
        budget=float(spent),
        flops=steps * step,
        config=dataclasses.replace(run.config, steps=steps),
    )


def _step_flops(model: ModelConfig, count: str, base: SweepConfig) -> int:
    """FLOPs of a training step by level ``executed``, or of a convention's self part."""
    if count == "executed":
        return executed_flops(model, base)
    counted = model.counted().flops(convention=count, batch_size=base.recipe.batch_size)
    return int(counted.self_part.total)


def executed_flops(model: ModelConfig, base: SweepConfig) -> int:
    """FLOPs that a training step on the fused kernels executes, by their tilings in its dtype."""
    dtype = base.execution.resolve_dtype(torch.device(base.device))
    batch_size = base.recipe.batch_size
    return int(measure(model.counted(), batch_size, "fused", None, None, dtype, 1).executed.total)


def every_size(study: Study) -> list[SweepRun]:
    """A run of each arm's every size, smallest budgets first; its learning rate is the base's."""
    rate = study.base.recipe.learning_rate
    sizes = [
        (budget, arm, shape)
        for arm, side in study.arms.items()
        for budget, shapes in side.shapes.items()
        for shape in shapes
    ]
    return [
        _run(study, Stage((arm,), (budget,)), arm, budget, shape, 0, rate)
        for budget, arm, shape in sorted(sizes, key=lambda each: each[0])
    ]


def at_rule(rows: Iterable[Row], arm: str, convention: str = "causal") -> list[Row]:
    """An arm's runs by one count whose learning rate is the rule's, no trial and no multiple."""
    return [
        row
        for row in rows
        if (row["arm"], row["convention"]) == (arm, convention)
        and not ("-lr" in row["run"] or "-times" in row["run"])
    ]


def nats_per_byte(row: Row) -> float:
    """Validation loss: nats of the targets over their bytes."""
    return float(row["validation_loss"]) / float(row["bytes_per_token"])


def best_rates(rows: Iterable[Row]) -> dict[tuple[str, int, int], tuple[float, bool]]:
    """Best learning rate of each arm and size among the trials, and whether it lies inside them.

    The vertex of the parabola through the losses at the best rate and its two neighbours over
    log rate; the best rate itself where it is the lowest or the highest tried.
    """
    losses: dict[tuple[str, int, int], dict[float, float]] = {}
    for row in rows:
        if row["stage"] == TRIALS:
            size = row["arm"], int(row["num_channels"]), int(row["num_layers"])
            loss = float(row["validation_loss"])
            losses.setdefault(size, {})[float(row["learning_rate"])] = loss
    best = {}
    for size, by_rate in losses.items():
        rates = sorted(by_rate)
        at = min(range(len(rates)), key=lambda index: by_rate[rates[index]])
        three = rates[at - 1 : at + 2] if 0 < at < len(rates) - 1 else []
        if not (three and all(math.isfinite(by_rate[rate]) for rate in three)):
            best[size] = rates[at], False
            continue
        x = np.log(three) - math.log(rates[at])
        curvature, slope, _ = np.polyfit(x, [by_rate[rate] for rate in three], 2)
        best[size] = rates[at] * math.exp(-slope / (2 * curvature)), True
    return best


def fit_rule(rows: Iterable[Row]) -> tuple[float, float]:
    """(a, b) of peak = a · width^b: least squares of log peak over log width, over all arms.

    Raises:
        ValueError: If there are fewer than two widths.
    """
    best = best_rates(rows)
    widths = [width for _, width, _ in best]
    if len(set(widths)) < 2:
        raise ValueError(f"the rule of learning rates needs trials at two widths, got {widths}")
    slope, intercept = np.polyfit(np.log(widths), np.log([rate for rate, _ in best.values()]), 1)
    return rounded(math.exp(intercept)), rounded(slope)


def _rule(study: Study, rows: list[Row]) -> tuple[float, float] | None:
    """(a, b) of the study's learning rates; None while trials are missing."""
    if TRIALS not in study.stages:
        return study.base.recipe.learning_rate, 0.0
    planned = {each.name for each in _runs(study, TRIALS, study.stages[TRIALS], [], None)}
    ended = [row for row in rows if row["run"] in planned]
    return fit_rule(ended) if len(ended) == len(planned) else None


def rounded(number: float) -> float:
    """To three digits: the same wherever it is computed.

    >>> rounded(0.0123456)
    0.0123
    """
    return float(f"{number:.3g}")


def causal_flops(config: TrainConfig) -> int:
    """FLOPs of all steps of a run, level ``causal``."""
    counted = config.model.counted().flops(batch_size=config.recipe.batch_size)
    return int(config.steps * counted.total)


def trained_tokens(config: TrainConfig) -> int:
    """Latent tokens of all steps of a run."""
    return config.steps * config.recipe.batch_size * config.model.num_latents


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


def _wide(widths: Iterable[int], depth: int = 2) -> tuple[Shape, ...]:
    return tuple((width, depth) for width in widths)


_CPU_SHAPES = {
    1e12: (*_wide((16, 24, 32, 48, 64, 96)), (96, 3)),
    3e12: (*_wide((24, 32, 48, 64, 96, 128)), (128, 3)),
    1e13: _wide((32, 48, 64, 96, 128, 192)),
    3e13: (*_wide((48, 64, 96, 128)), (128, 4), (192, 4)),
}
_SMALL = (1e12, 3e12, 1e13)
CPU = Study(
    base=SweepConfig(
        budgets=(1e12,),
        shapes=((48, 2),),
        model=ModelConfig(num_latents=128, num_heads=4, prefix_dropout=0.5),
        recipe=Recipe(batch_size=8),
        validations=5,
        validation_windows=512,
        final_validation_windows=2048,
        device="cpu",
    ),
    arms={
        "none": Arm(0, _CPU_SHAPES),
        "3n": Arm(384, _CPU_SHAPES),
        "7n": Arm(896, {budget: _CPU_SHAPES[budget] for budget in _SMALL}),
        "3n_pieces": Arm(
            384,
            {
                1e12: _wide((16, 24, 32, 48, 64, 96, 128)),
                3e12: _wide((16, 24, 32, 48, 64, 96, 128)),
                1e13: _wide((24, 32, 48, 64, 96, 128, 192)),
            },
            "sentencepiece",
            1024,
        ),
    },
    stages={
        TRIALS: Stage(
            ("none", "3n"),
            (3e12,),
            shapes=_wide((48, 96, 24)),
            rates=(0.01, 0.005, 0.02, 0.0025, 0.04),
        ),
        "pair-small": Stage(("3n", "none"), (1e12, 3e12)),
        "seeds-small": Stage(("3n", "none"), (1e12,), around=3, seeds=(1, 2)),
        "pair-middle": Stage(("3n", "none"), (1e13,)),
        "seeds-middle": Stage(("3n", "none"), (1e13,), around=3, seeds=(1, 2)),
        "pair-large": Stage(("3n", "none"), (3e13,)),
        "rate-check": Stage(("3n", "none"), (3e13,), around=1, factors=(0.5, 2.0)),
        "7n": Stage(("7n",), _SMALL),
        "seeds-7n": Stage(("7n",), (1e12, 1e13), around=3, seeds=(1, 2)),
        "pieces": Stage(("3n_pieces",), _SMALL),
        "seeds-pieces": Stage(("3n_pieces",), (1e12, 1e13), around=3, seeds=(1, 2)),
        "recounted": Stage(("7n",), (1e13,), convention="executed"),
    },
    candidates=(*_wide(range(16, 129, 8)), *_wide(range(128, 161, 8), 3), (176, 4), (192, 4)),
)
"""Two CPU cores: n = 128, batch 8, four heads; budgets over a factor of 30."""

_GPU_SHAPES = {
    1e14: ((64, 2), (64, 4), (64, 8), (128, 2), (128, 3), (128, 4)),
    3e14: ((64, 4), (64, 8), (128, 2), (128, 4), (192, 3), (256, 4)),
    1e15: ((128, 3), (128, 4), (192, 4), (256, 4), (256, 6), (320, 6)),
    3e15: ((192, 4), (256, 4), (256, 6), (320, 6), (384, 6), (384, 8)),
}
GPU = Study(
    base=SweepConfig(
        budgets=(1e14,),
        shapes=((128, 3),),
        head_dim=64,
        model=ModelConfig(prefix_dropout=0.5),
        recipe=Recipe(learning_rate=1e-3),
        validations=10,
        validation_windows=1024,
        device="cuda",
        execution=Execution(attention="fused"),
    ),
    arms={
        "long": Arm(3584, _GPU_SHAPES),
        "short": Arm(1536, _GPU_SHAPES),
        "none": Arm(0, _GPU_SHAPES),
    },
    stages={
        "long-small": Stage(("long",), (1e14, 3e14, 1e15)),
        "none-small": Stage(("none",), (1e14, 3e14, 1e15)),
        "long-large": Stage(("long",), (3e15,)),
        "none-large": Stage(("none",), (3e15,)),
        "seeds": Stage(("long",), (3e14,), seeds=(1, 2)),
        "recounted": Stage(("long",), (1e15,), convention="article"),
        "short": Stage(("short",), (1e14, 3e14, 1e15, 3e15)),
    },
    candidates=tuple(
        (width, depth)
        for width in range(64, 1025, 64)
        for depth in range(2, 17)
        if 32 <= width / depth <= 80
    ),
)
"""A large GPU: bytes, n = 512, batch 80; four budgets over a factor of 30, six sizes each.

Sizes lie around N = (C/120)^½, D = 20·N. The smallest end of each budget is bound by the text, one
epoch of 390 MB, the largest by some 200 steps. The learning rate is a guess for these sizes, five
times the article's; nothing has been tuned.
"""

_TINY_SHAPES = {
    3e7: ((4, 1), (8, 1), (16, 1)),
    6e7: ((4, 1), (8, 1), (16, 1)),
    1e8: ((8, 1), (16, 1), (24, 1)),
}
TINY = Study(
    base=SweepConfig(
        budgets=(3e7,),
        shapes=((8, 1),),
        head_dim=4,
        model=ModelConfig(num_latents=16, prefix_dropout=0.5),
        recipe=Recipe(batch_size=2),
        validations=2,
        validation_windows=8,
        final_validation_windows=16,
        device="cpu",
    ),
    arms={"16": Arm(16, _TINY_SHAPES), "none": Arm(0, _TINY_SHAPES)},
    stages={
        TRIALS: Stage(("16", "none"), (3e7,), shapes=((4, 1), (8, 1)), rates=(0.01, 0.02, 0.04)),
        "pair": Stage(("16", "none"), (3e7, 6e7, 1e8)),
        "seeds": Stage(("16", "none"), (3e7,), around=2, seeds=(1,)),
        "recounted": Stage(("16",), (6e7,), convention="article"),
    },
    candidates=((4, 1), (8, 1), (16, 1), (24, 1)),
)
"""The same for a CPU, in seconds; what it measures means nothing."""

STUDIES = {"cpu": CPU, "gpu": GPU, "tiny": TINY}
