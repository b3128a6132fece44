"""The plan of a sweep: which models, and for how many steps each is trained on every budget."""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import Literal

from flopcount.isoflop.plan import isoflop_runs
from models.limits import AboveZero, AtLeastOne, NotNegative, Seed, check_fields
from models.training.run import RunConfig, TrainConfig

FEWEST_STEPS = 10
"""Of a run: with fewer, a budget that is met to within a step is missed by more than a tenth."""


@dataclass(frozen=True, kw_only=True)
class SweepConfig(RunConfig):
    """A sweep, complete: every shape is trained on every budget with every seed.

    The model's channels and layers are those of the shapes.

    Attributes:
        budgets: FLOPs of one run, level ``causal`` unless ``convention`` is given.
        shapes: (num_channels, num_layers) of each model.
        seeds: Of the runs.
        convention: A published way to count that the budgets are in, its self part, as the article
            holds budgets; what a run records stays level ``causal``.
        head_dim: In place of the model's ``num_heads``: every model has heads of so many channels.
        cluster: ``local`` runs on this machine alone; ``ray`` places runs on a Ray cluster (extra
            ``ray``).
        workers: Runs side by side on this machine; the number of usable cores by default.
        cpus_per_run: Cores that Ray gives a run, and threads that it computes with.
        gpus_per_run: GPUs, or parts of one, that Ray gives a run; by default one for device
            ``cuda`` and none otherwise.

    """

    budgets: tuple[AboveZero, ...]
    shapes: tuple[tuple[AtLeastOne, AtLeastOne], ...]
    seeds: tuple[Seed, ...] = (0,)
    convention: str | None = None
    head_dim: AtLeastOne | None = None
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


def plan_runs(config: SweepConfig) -> list[SweepRun]:
    """Give each shape the steps that a budget affords, by :func:`flopcount.isoflop_runs`.

    Raises:
        TypeError: If a value is of another type than its field.
        ValueError: If a value is out of range; there are no budgets, shapes or seeds, or one of
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
        dataclasses.replace(
            config.model, num_channels=width, num_layers=depth, num_heads=_heads(config, width)
        ).counted()
        for width, depth in config.shapes
    ]
    for model, budget in itertools.product(models, config.budgets):
        step = model.flops(convention=config.convention, batch_size=config.recipe.batch_size)
        flops = (step if config.convention is None else step.self_part).total
        if math.ceil(budget / flops) < FEWEST_STEPS:
            shape = f"{model.num_channels}x{model.num_layers}"
            raise ValueError(
                f"budgets must afford {FEWEST_STEPS} steps of every shape, got {budget:g} "
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
    shared = {entry.name: getattr(config, entry.name) for entry in dataclasses.fields(RunConfig)}
    return [
        SweepRun(
            name=run_name(run.budget, run.model.num_channels, run.model.num_layers, seed),
            budget=run.budget,
            flops=run.flops,
            parameters=run.num_params,
            config=TrainConfig(
                **shared
                | {
                    "model": dataclasses.replace(
                        config.model,
                        num_channels=run.model.num_channels,
                        num_layers=run.model.num_layers,
                        num_heads=run.model.num_heads,
                    ),
                    "steps": run.steps,
                    "seed": seed,
                }
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


def run_name(budget: float, num_channels: int, num_layers: int, seed: int) -> str:
    """Name a run.

    >>> run_name(1e12, 48, 2, 0)
    '1e12-48x2-seed0'
    """
    return f"{budget:.4g}-{num_channels}x{num_layers}-seed{seed}".replace("+", "")
