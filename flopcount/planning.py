"""IsoFLOP planning: how long each model trains on a budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from flopcount.architectures import Architecture
from flopcount.count import Count
from flopcount.sizes import (
    is_array,
    is_symbolic,
    quoted,
    require_choice,
    require_positive_number,
    require_size,
)

PARTS = ("total", "self")


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One model trained on one budget.

    Attributes:
        model: What to train.
        budget: FLOPs.
        batch_size: Sequences per step.
        tokens: Latent tokens at which the budget is spent, exactly: budget / FLOPs per token.
        steps: Whole training steps that spend it: ⌈tokens / n / batch⌉.
        flops: FLOPs of those steps, in the part and by the way of counting that the budget is in.
        num_params: Parameters of the model.
    """

    model: Architecture
    budget: float
    batch_size: int
    tokens: Fraction
    steps: int
    flops: int
    num_params: int


def isoflop_runs(
    models: Sequence[Architecture],
    budgets: Sequence[float],
    batch_size: int,
    *,
    level: str | None = None,
    convention: str | None = None,
    part: str = "total",
) -> list[PlannedRun]:
    """Train every model on every budget: D = C / (FLOPs per token), steps = ⌈D / n / batch⌉.

    Args:
        models: Concrete models (ints, neither arrays nor symbols).
        budgets: C, training FLOPs of one run.
        batch_size: Sequences per step.
        level: ``"causal"`` (the default) or ``"dense"``.
        convention: Instead of a level, a published way to count.
        part: What the budget pays for: ``"total"``, or ``"self"`` as in the article.

    Returns:
        One run per budget and model, budgets outermost.

    Raises:
        TypeError: If a model is not an architecture of ints, or a budget not a number.
        ValueError: If there are no models or budgets, or a value is out of range.

    Source: the article, section "Experiments"; arithmetic in exact fractions.

    >>> import flopcount as fc
    >>> models = [fc.PerceiverAR(vocab_size=32_000, num_latents=512, num_prefix=1536,
    ...                          num_channels=d, num_layers=L, prefix_dropout=0.5)
    ...           for d, L in ((512, 9), (624, 11))]
    >>> budget = models[0].flops(convention="article").self_part.for_tokens(50_000 * 80 * 512)
    >>> [run.steps for run in isoflop_runs(models, [budget], 80, convention="article",
    ...                                    part="self")]
    [50000, 31421]
    """
    require_choice("part", part, PARTS)
    batch = require_size("batch_size", batch_size)
    if is_array(batch) or is_symbolic(batch):
        raise TypeError(f"batch_size = {quoted(batch_size)}: expected one integer")
    for name, values in (("models", models), ("budgets", budgets)):
        if not values:
            raise ValueError(f"{name} is empty: expected at least one")
    return [
        _planned_run(model, budget, batch, _per_step(model, batch, level, convention, part))
        for budget in budgets
        for model in models
    ]


def _per_step(
    model: Architecture, batch_size: int, level: str | None, convention: str | None, part: str
) -> Count:
    if not isinstance(model, Architecture):
        raise TypeError(
            f"models contains {quoted(model)}: expected flopcount.PerceiverAR or flopcount.Decoder"
        )
    if any(is_array(value) or is_symbolic(value) for value in vars(model).values()):
        raise TypeError(f"models contains {quoted(model)}: expected ints, no arrays or symbols")
    count = model.flops(level, convention=convention, batch_size=batch_size)
    return count.self_part if part == "self" else count


def _planned_run(model: Architecture, budget: Any, batch_size: int, per_step: Count) -> PlannedRun:
    exact = Fraction(budget) if type(budget) in (int, Fraction) else None
    if exact is None:
        exact = Fraction(require_positive_number("budget", budget))
    if exact <= 0:
        raise ValueError(f"budget = {quoted(budget)}: expected a positive number of FLOPs")
    steps = -(-exact // per_step.total)
    return PlannedRun(
        model=model,
        budget=budget,
        batch_size=batch_size,
        tokens=exact * per_step.tokens / per_step.total,
        steps=steps,
        flops=steps * per_step.total,
        num_params=model.params().total,
    )
