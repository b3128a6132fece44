"""IsoFLOP planning: which models to train on a budget, and for how long."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from flopcount.architectures import LEVELS, Architecture, PerceiverAR
from flopcount.conventions import CONVENTIONS
from flopcount.count import Count, ParameterCount
from flopcount.devices import Device, find_device
from flopcount.laws import ScalingLaw, chinchilla_approach_1, chinchilla_approach_2
from flopcount.sizes import (
    is_array,
    is_symbolic,
    quoted,
    require_choice,
    require_positive_number,
    require_size,
)
from flopcount.tables import shown, table

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    FloatArray = npt.NDArray[np.float64]

PARTS = ("total", "self")
LAWS = {"chinchilla-1": chinchilla_approach_1, "chinchilla-2": chinchilla_approach_2}
HEAD_DIMS = (32, 64, 96, 128)
"""Head dims that are searched unless others are given; tensor cores pad none of them."""
FRIENDLY_WIDTH = 128
"""Widths that are a multiple of this fill whole tiles of matrix units."""
FRIENDLY_HEAD_DIMS = (64, 128)
TYPICAL_ASPECT_RATIO = 64.0
"""d / L that is preferred among sizes alike: that of GPT-2 small, 768 / 12."""
_PREFERENCE = 0.05
"""What an unfriendly width, head dim, or an e-fold in aspect ratio costs, in steps of log N."""


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


def _exact_budget(budget: Any) -> Fraction:
    if type(budget) not in (int, Fraction):
        budget = require_positive_number("budget", budget)
    if budget <= 0:
        raise ValueError(f"budget = {quoted(budget)}: expected a positive number of FLOPs")
    return Fraction(budget)


def _planned_run(model: Architecture, budget: Any, batch_size: int, per_step: Count) -> PlannedRun:
    exact = _exact_budget(budget)
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


@dataclasses.dataclass(frozen=True)
class Proposal:
    """One model of a family, with what its run takes.

    Attributes:
        run: The model, its steps and tokens.
        num_params: N in the part that the budget pays for, as the law means it.
        ratio: ``num_params`` over the predicted optimum.
        trained_tokens: Latent tokens of the whole steps.
        epochs: Effective epochs of the corpus: tokens read, (m + n)/n for each latent token, over
            the corpus; None without a corpus.
        flops_by_count: FLOPs of the run at each level and convention: self part, and cross part or
            ``"not covered"``.
        seconds: Predicted wall-clock time; None without a throughput.
        cost: Predicted cost; None without a price.
    """

    run: PlannedRun
    num_params: int
    ratio: float
    trained_tokens: int
    epochs: float | None
    flops_by_count: dict[str, dict[str, int | str]]
    seconds: float | None
    cost: float | None

    def to_dict(self) -> dict[str, Any]:
        """The proposal as plain data."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        run = {field.name: getattr(self.run, field.name) for field in dataclasses.fields(self.run)}
        return plain | {"run": run | {"model": vars(self.run.model)}}


@dataclasses.dataclass(frozen=True)
class Family:
    """The models proposed for one budget.

    Attributes:
        budget: C, FLOPs.
        n_opt: Parameters that the prior law predicts as optimal.
        d_opt: Tokens that it predicts.
        proposals: Models in rising size.
        warnings: What speaks against the family as it is.
    """

    budget: float
    n_opt: float
    d_opt: float
    proposals: tuple[Proposal, ...]
    warnings: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What :func:`plan` returns; ``print`` shows it as tables.

    Attributes:
        families: One per budget.
        law: The prior law.
        counted_as: The level or convention, and the part, that the budgets are in.
        num_shapes: Shapes in the grid searched.
    """

    families: tuple[Family, ...]
    law: ScalingLaw
    counted_as: str
    num_shapes: int

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data."""
        return {
            "law": dataclasses.asdict(self.law),
            "counted_as": self.counted_as,
            "num_shapes": self.num_shapes,
            "families": [
                vars(family) | {"proposals": [entry.to_dict() for entry in family.proposals]}
                for family in self.families
            ],
        }

    def __str__(self) -> str:
        return "\n\n".join(self._family_table(family) for family in self.families)

    def _family_table(self, family: Family) -> str:
        rows = []
        for entry in family.proposals:
            model: Any = entry.run.model
            hours = None if entry.seconds is None else f"{entry.seconds / 3600:.3g}"
            cost = None if entry.cost is None else f"{entry.cost:,.2f}"
            rows.append(
                [
                    f"{model.num_channels} x {model.num_layers}",
                    model.num_heads,
                    entry.num_params,
                    f"{entry.ratio:.2f}",
                    entry.run.steps,
                    f"{entry.trained_tokens:.3g}",
                    entry.epochs,
                    hours,
                    cost,
                ]
            )
        columns = ["d x L", "h", "N", "N / N_opt", "steps", "tokens", "epochs", "hours", "cost"]
        filled = [
            index for index in range(len(columns)) if any(row[index] is not None for row in rows)
        ]
        notes = [
            f"prior: {self.law.source}; {shown(self.num_shapes)} shapes searched",
            *(f"warning: {warning}" for warning in family.warnings),
        ]
        return table(
            [columns[index] for index in filled],
            [[row[index] for index in filled] for row in rows],
            title=f"{shown(float(family.budget))} FLOPs ({self.counted_as}): predicted N_opt "
            f"{family.n_opt:.3g}, D_opt {family.d_opt:.3g}",
            note="\n".join(notes),
        )


def budget_from_gpu_hours(
    gpu_hours: float, device: str | Device, mfu: float, dtype: str = "bf16"
) -> float:
    """C = hours · 3600 · peak · MFU.

    Args:
        gpu_hours: Hours, times the devices that they are spent on.
        device: A name that ``flopcount devices`` lists, or a :class:`~flopcount.Device`.
        mfu: Model FLOPs utilisation in (0, 1], measured.
        dtype: The peak's dtype.

    Returns:
        FLOPs.

    Raises:
        TypeError: If a number is not one.
        ValueError: If the device or dtype is unknown, or a number out of range.

    Source: Chowdhery et al. 2022 (arXiv 2204.02311), Appendix B, solved for the FLOPs.

    >>> f"{budget_from_gpu_hours(100, 'h100', 0.4):.4g}"
    '1.425e+20'
    """
    if require_positive_number("mfu", mfu) > 1:
        raise ValueError(f"mfu = {quoted(mfu)}: expected a number in (0, 1]")
    peak = find_device(device).peak(dtype).flops_per_second
    return require_positive_number("gpu_hours", gpu_hours) * 3600 * peak * mfu


def plan(
    budgets: Sequence[float],
    *,
    vocab_size: int,
    num_latents: int,
    batch_size: int,
    num_prefix: int = 0,
    prefix_dropout: float = 0.0,
    widths: tuple[int, int] = (64, 8192),
    width_multiple: int = 64,
    depths: tuple[int, int] = (2, 80),
    head_dims: Sequence[int] = HEAD_DIMS,
    aspect_ratios: tuple[float, float] = (16.0, 160.0),
    law: str | ScalingLaw = "chinchilla-2",
    num_models: int = 7,
    reach: float = 4.0,
    level: str | None = None,
    convention: str | None = None,
    part: str = "total",
    corpus_tokens: int | None = None,
    flops_per_second: float | None = None,
    num_devices: int = 1,
    price_per_device_hour: float | None = None,
) -> Plan:
    """Propose, for each budget, a family of models around the predicted optimum.

    Targets are evenly spaced in log N from N_opt / reach to N_opt · reach. Each takes the shape of
    least |log(N / target)| in steps of that spacing, plus 0.05 for a width that is no multiple of
    128, for a head dim other than 64 and 128, and per e-fold of d / L away from 64. Steps come from
    :func:`isoflop_runs`.

    Args:
        budgets: C, FLOPs per run; :func:`budget_from_gpu_hours` gives them from hours.
        vocab_size: V.
        num_latents: n.
        batch_size: Sequences per step.
        num_prefix: m; 0 plans decoder-only models.
        prefix_dropout: p.
        widths: Least and largest d.
        width_multiple: d is a multiple of this.
        depths: Least and largest L.
        head_dims: Head dims c to choose from; h = d / c.
        aspect_ratios: Least and largest d / L.
        law: The prior: ``"chinchilla-1"``, ``"chinchilla-2"`` or a
            :class:`~flopcount.laws.ScalingLaw`, such as a fit's.
        num_models: Models per budget.
        reach: Largest N over N_opt, and N_opt over smallest.
        level: ``"causal"`` (the default) or ``"dense"``.
        convention: Instead of a level, a published way to count.
        part: What budget and law mean: ``"total"``, or ``"self"`` as in the article.
        corpus_tokens: Tokens of the corpus, for epochs.
        flops_per_second: Measured throughput of one device in causal model FLOP/s, for time.
        num_devices: Devices that share a run.
        price_per_device_hour: Price, for cost; needs the throughput.

    Returns:
        A :class:`Plan`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range, or no shape meets the constraints.

    Source: the family as in Hoffmann et al. 2022 (arXiv 2203.15556), section 3.2; the effective
    epoch derived here: a step's windows read m + n tokens for n predicted, so that a pass over the
    corpus without overlap ends after n / (m + n) of its tokens.

    >>> proposed = plan([1e18], vocab_size=32_000, num_latents=512, batch_size=80, num_models=3)
    >>> [round(entry.ratio, 1) for entry in proposed.families[0].proposals]
    [0.2, 1.0, 4.1]
    """
    if isinstance(budgets, str) or not isinstance(budgets, Sequence):
        raise TypeError(f"budgets = {quoted(budgets)}: expected a sequence of numbers")
    if not budgets:
        raise ValueError("budgets is empty: expected at least one")
    require_choice("part", part, PARTS)
    if require_positive_number("reach", reach) <= 1:
        raise ValueError(f"reach = {quoted(reach)}: expected a ratio above 1")
    if type(num_models) is not int or num_models < 3:
        raise ValueError(f"num_models = {quoted(num_models)}: expected an integer >= 3")
    if price_per_device_hour is not None:
        require_positive_number("price_per_device_hour", price_per_device_hour)
        if flops_per_second is None:
            raise ValueError("price_per_device_hour without flops_per_second: expected both")
    if not (isinstance(aspect_ratios, tuple) and len(aspect_ratios) == 2):
        raise TypeError(f"aspect_ratios = {quoted(aspect_ratios)}: expected a pair of numbers")
    require_size("num_devices", num_devices)
    if flops_per_second is not None:
        require_positive_number("flops_per_second", flops_per_second)
    if corpus_tokens is not None:
        require_size("corpus_tokens", corpus_tokens)
    prior = law if isinstance(law, ScalingLaw) else LAWS[require_choice("law", law, LAWS)]()
    shapes = _Shapes.search(
        _positive_range("widths", widths, width_multiple),
        _positive_range("depths", depths, 1),
        head_dims,
        aspect_ratios,
        part,
        dict(
            vocab_size=vocab_size,
            num_latents=num_latents,
            num_prefix=num_prefix,
            prefix_dropout=prefix_dropout,
        ),
    )
    families = []
    for budget in budgets:
        flops = float(_exact_budget(budget))
        models, warnings = shapes.family(prior.n_opt(flops), num_models, reach)
        runs = isoflop_runs(
            models, [budget], batch_size, level=level, convention=convention, part=part
        )
        proposals = tuple(
            _proposal(
                run,
                _params(run.model, part),
                prior.n_opt(flops),
                corpus_tokens,
                None if flops_per_second is None else flops_per_second * num_devices,
                None if price_per_device_hour is None else price_per_device_hour * num_devices,
            )
            for run in runs
        )
        warnings += _epoch_warnings(proposals)
        families.append(
            Family(budget, prior.n_opt(flops), prior.d_opt(flops), proposals, tuple(warnings))
        )
    counted_as = f"{convention or level or 'causal'}, {part}"
    return Plan(tuple(families), prior, counted_as, shapes.num_searched)


def _params(model: Architecture, part: str) -> int:
    params: ParameterCount = model.params()
    return int((params.self_part if part == "self" else params).total)


def _positive_range(name: str, ends: object, multiple: object) -> range:
    if not (isinstance(ends, tuple) and len(ends) == 2 and all(type(end) is int for end in ends)):
        raise TypeError(f"{name} = {quoted(ends)}: expected a pair of integers")
    step = multiple if type(multiple) is int else 0
    if step < 1:
        raise ValueError(f"width_multiple = {quoted(multiple)}: expected an integer >= 1")
    low, high = ends
    values = range(-(-low // step) * step, high + 1, step)
    if low < 1 or not values:
        raise ValueError(f"{name} = {ends}: expected 1 <= least <= largest, with a value between")
    return values


@dataclasses.dataclass(frozen=True, eq=False)
class _Shapes:
    """Shapes that meet the constraints, with their N and what speaks against each.

    Attributes:
        sizes: The sizes that all share.
        width: d.
        depth: L.
        heads: h.
        log_params: log N.
        penalty: In steps of log N.
        num_searched: Shapes before the constraints.
    """

    sizes: dict[str, Any]
    width: Any
    depth: Any
    heads: Any
    log_params: FloatArray
    penalty: FloatArray
    num_searched: int

    @classmethod
    def search(
        cls,
        widths: range,
        depths: range,
        head_dims: Sequence[int],
        aspect_ratios: tuple[float, float],
        part: str,
        sizes: dict[str, Any],
    ) -> _Shapes:
        import numpy as np

        dims = np.array(sorted({require_size("head_dims", dim) for dim in head_dims}))
        if not dims.size:
            raise ValueError("head_dims is empty: expected at least one")
        low, high = (require_positive_number("aspect_ratios", end) for end in aspect_ratios)
        if low > high:
            raise ValueError(f"aspect_ratios = {aspect_ratios}: expected least <= largest")
        grid = np.meshgrid(np.array(widths), np.array(depths), dims, indexing="ij")
        width, depth, dim = (axis.ravel() for axis in grid)
        aspect = width / depth
        allowed = (width % dim == 0) & (aspect >= low) & (aspect <= high)
        if not allowed.any():
            raise ValueError(
                f"no shape among {len(width)}: expected widths, depths, head_dims and "
                "aspect_ratios that some shape meets"
            )
        num_searched = len(width)
        width, depth, dim, aspect = (axis[allowed] for axis in (width, depth, dim, aspect))
        heads = width // dim
        model = PerceiverAR(num_channels=width, num_layers=depth, num_heads=heads, **sizes)
        params = model.params()
        count = (params.self_part if part == "self" else params).total
        friendly = (width % FRIENDLY_WIDTH == 0).astype(float) + np.isin(dim, FRIENDLY_HEAD_DIMS)
        penalty = _PREFERENCE * (2 - friendly + np.abs(np.log(aspect / TYPICAL_ASPECT_RATIO)))
        log_params = np.log(count.astype(np.float64))
        return cls(sizes, width, depth, heads, log_params, penalty, num_searched)

    def family(
        self, n_opt: float, num_models: int, reach: float
    ) -> tuple[list[Architecture], list[str]]:
        """The shapes nearest to the targets around ``n_opt``, and warnings."""
        import numpy as np

        spacing = 2 * math.log(reach) / (num_models - 1)
        offsets = np.linspace(-math.log(reach), math.log(reach), num_models)
        chosen, missed = [], []
        for target in math.log(n_opt) + offsets:
            distance = np.abs(self.log_params - target)
            best = int(np.argmin(distance / spacing + self.penalty))
            if distance[best] > spacing / 2:
                missed.append(f"{math.exp(target):.3g}")
            elif best not in chosen:
                chosen.append(best)
        if not chosen:
            chosen.append(int(np.argmin(np.abs(self.log_params - math.log(n_opt)))))
        chosen.sort(key=lambda index: float(self.log_params[index]))
        warnings = []
        if missed:
            warnings.append(f"no shape near N = {', '.join(missed)}: widen the constraints")
        below = sum(self.log_params[index] < math.log(n_opt) - spacing / 2 for index in chosen)
        above = sum(self.log_params[index] > math.log(n_opt) + spacing / 2 for index in chosen)
        if not below or not above:
            side = "larger" if not above else "smaller"
            warnings.append(f"the predicted optimum is at the edge: no {side} model in the family")
        models: list[Architecture] = [
            PerceiverAR(
                num_channels=int(self.width[index]),
                num_layers=int(self.depth[index]),
                num_heads=int(self.heads[index]),
                **self.sizes,
            )
            for index in chosen
        ]
        return models, warnings


def _proposal(
    run: PlannedRun,
    num_params: int,
    n_opt: float,
    corpus_tokens: int | None,
    flops_per_second: float | None,
    price_per_hour: float | None,
) -> Proposal:
    model: Any = run.model
    tokens = run.steps * run.batch_size * model.num_latents
    read = Fraction(tokens * (model.num_prefix + model.num_latents), model.num_latents)
    seconds = cost = None
    if flops_per_second is not None:
        causal = run.steps * model.flops(batch_size=run.batch_size).total
        seconds = causal / flops_per_second
        cost = None if price_per_hour is None else seconds / 3600 * price_per_hour
    counts = [model.flops(level, batch_size=run.batch_size) for level in LEVELS]
    counts += [model.flops(convention=name, batch_size=run.batch_size) for name in CONVENTIONS]
    return Proposal(
        run=run,
        num_params=num_params,
        ratio=num_params / n_opt,
        trained_tokens=tokens,
        epochs=None if corpus_tokens is None else float(read / corpus_tokens),
        flops_by_count={
            count.level or count.convention: {
                "self": run.steps * count.self_part.total,
                "cross": "not covered" if count.not_covered else run.steps * count.cross_part.total,
            }
            for count in counts
        },
        seconds=seconds,
        cost=cost,
    )


def _epoch_warnings(proposals: Sequence[Proposal]) -> list[str]:
    return [
        f"N = {shown(entry.num_params)} reads {entry.epochs:.3g} effective epochs: expected at "
        "most 1"
        for entry in proposals
        if entry.epochs is not None and entry.epochs > 1
    ]
