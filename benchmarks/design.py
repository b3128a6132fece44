"""The design of the IsoFLOP study: arms, budgets, sizes, seeds, and the order of their value."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import flopcount
from models.step import Execution
from models.sweep import SweepConfig, SweepRun, plan_runs
from models.training import ModelConfig, Recipe, TrainConfig

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
PREDICTION = "prediction"
"""The stage of the run that tests a prediction."""


@dataclasses.dataclass(frozen=True)
class Study:
    """What a prefix buys at equal compute: the same blocks with a long, a short and no prefix.

    Attributes:
        base: what all runs share; its budgets, shapes, seeds and prefix are replaced.
        prefixes: M of each arm; 0 is the decoder.
        shapes: at each budget, FLOPs of level ``causal``.
        main: the arm that is trained with several seeds and by another count.
        seeds_at: the budget with several seeds.
        seeds: those beside seed 0.
        recounted_at: the budget repeated under the convention.
        convention: that count, in its self part.
    """

    base: SweepConfig
    prefixes: dict[str, int]
    shapes: dict[float, tuple[tuple[int, int], ...]]
    main: str
    seeds_at: float
    seeds: tuple[int, ...]
    recounted_at: float
    convention: str = "article"

    def arm(self, name: str, budgets: tuple[float, ...]) -> list[SweepRun]:
        """The runs of an arm at some budgets, seed 0, named by the arm.

        Raises:
            ValueError: if there is no such arm or budget.
        """
        unknown = [budget for budget in budgets if budget not in self.shapes]
        if unknown:
            raise ValueError(f"budgets must be of {list(self.shapes)}, got {unknown}")
        return [
            run
            for budget in budgets
            for run in self.sweep(name, budget, self.shapes[budget], self.base.seeds)
        ]

    def sweep(
        self,
        name: str,
        budget: float,
        shapes: tuple[tuple[int, int], ...],
        seeds: tuple[int, ...],
        convention: str | None = None,
    ) -> list[SweepRun]:
        """The runs of an arm at one budget, named by the arm."""
        if name not in self.prefixes:
            raise ValueError(f"arm must be one of {list(self.prefixes)}, got {name!r}")
        prefix = self.prefixes[name]
        dropout = self.base.model.prefix_dropout if prefix else 0.0
        config = dataclasses.replace(
            self.base,
            budgets=(budget,),
            shapes=shapes,
            seeds=seeds,
            convention=convention,
            validation_context=max(self.prefixes.values()),
            model=dataclasses.replace(self.base.model, num_prefix=prefix, prefix_dropout=dropout),
        )
        label = name if convention is None else f"{name}-{convention}"
        return [dataclasses.replace(run, name=f"{label}-{run.name}") for run in plan_runs(config)]

    def recounted(self) -> list[SweepRun]:
        """The main arm's models at one budget of the convention.

        It is what the middle model's run at level ``causal`` costs by the convention, so that
        both families share that run, and differ in how the others compare with it.
        """
        shapes = self.shapes[self.recounted_at]
        middle = shapes[len(shapes) // 2]
        seeds = self.base.seeds
        [pivot] = self.sweep(self.main, self.recounted_at, (middle,), seeds[:1])
        counted = flopcount.PerceiverAR(**dataclasses.asdict(pivot.config.model)).flops(
            convention=self.convention, batch_size=pivot.config.recipe.batch_size
        )
        budget = float(pivot.config.steps * counted.self_part.total)
        return self.sweep(self.main, budget, shapes, seeds, self.convention)

    def stages(self) -> dict[str, list[SweepRun]]:
        """All runs, in the order of their value: whatever the cut, something whole is there.

        Three budgets of one arm are a fit, the same three of the decoder a comparison; then the
        largest budget of both, the noise, the other count, the remaining arms.
        """
        *small, largest = sorted(self.shapes)
        arms = {"small": tuple(small), "largest": (largest,)}
        pair = [self.main, *(name for name, prefix in self.prefixes.items() if prefix == 0)]
        others = [name for name in self.prefixes if name not in pair]
        stages = {
            f"{name}-{part}": self.arm(name, budgets)
            for part, budgets in arms.items()
            for name in pair
        }
        stages["seeds"] = self.sweep(
            self.main, self.seeds_at, self.shapes[self.seeds_at], self.seeds
        )
        stages["recounted"] = self.recounted()
        stages |= {name: self.arm(name, tuple(sorted(self.shapes))) for name in others}
        return stages


STUDY = Study(
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
    prefixes={"long": 3584, "short": 1536, "decoder": 0},
    shapes={
        1e14: ((64, 2), (64, 4), (64, 8), (128, 2), (128, 3), (128, 4)),
        3e14: ((64, 4), (64, 8), (128, 2), (128, 4), (192, 3), (256, 4)),
        1e15: ((128, 3), (128, 4), (192, 4), (256, 4), (256, 6), (320, 6)),
        3e15: ((192, 4), (256, 4), (256, 6), (320, 6), (384, 6), (384, 8)),
    },
    main="long",
    seeds_at=3e14,
    seeds=(1, 2),
    recounted_at=1e15,
)
"""Bytes, n = 512, batch 80; four budgets over a factor of 30, six sizes each.

Sizes lie around N = (C/120)^½, D = 20·N. The smallest end of each budget is bound by the text, one
epoch of 390 MB, the largest by some 200 steps. The learning rate is a guess for these sizes, five
times the article's; nothing has been tuned.
"""

TINY_STUDY = Study(
    base=SweepConfig(
        budgets=(3e7,),
        shapes=((8, 1),),
        head_dim=4,
        model=ModelConfig(num_latents=16, prefix_dropout=0.5),
        recipe=Recipe(batch_size=2, learning_rate=1e-2),
        validations=2,
        validation_windows=8,
        device="cpu",
    ),
    prefixes={"long": 16, "short": 8, "decoder": 0},
    shapes={
        3e7: ((4, 1), (8, 1), (16, 1)),
        6e7: ((4, 1), (8, 1), (16, 1)),
        1e8: ((8, 1), (16, 1), (24, 1)),
    },
    main="long",
    seeds_at=3e7,
    seeds=(1,),
    recounted_at=6e7,
)
"""The same study for a CPU, in seconds; what it measures means nothing."""


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
