"""IsoFLOP planning: which models to train on a budget, and for how long."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

from flopcount.architectures import Architecture, Decoder, PerceiverAR
from flopcount.conventions import CONVENTIONS
from flopcount.count import LEVELS, Count, ParameterCount
from flopcount.devices import Device, find_device, require_utilisation
from flopcount.isoflop.laws import (
    CHINCHILLA_SURFACE,
    LossSurface,
    ScalingLaw,
    chinchilla_approach_1,
    chinchilla_approach_2,
)
from flopcount.pictures import Drawn
from flopcount.sizes import (
    is_array,
    is_symbolic,
    quoted,
    require_choice,
    require_positive_number,
    require_size,
)
from flopcount.tables import Shown, Table, paragraph, shown

if TYPE_CHECKING:
    from flopcount.isoflop.results import FloatArray

PARTS = ("total", "self")
Law = ScalingLaw | LossSurface
LAWS: dict[str, Callable[[], Law]] = {
    "chinchilla-1": chinchilla_approach_1,
    "chinchilla-2": chinchilla_approach_2,
    "chinchilla-3": lambda: CHINCHILLA_SURFACE,
}
FRIENDLY_WIDTH = 128
"""Widths that are a multiple of this fill whole tiles of matrix units."""
FRIENDLY_HEAD_DIMS = (64, 128)
TYPICAL_ASPECT_RATIO = 64.0
"""d / L that is preferred among sizes alike: that of GPT-2 small, 768 / 12."""
_PREFERENCE = 0.05
"""What an unfriendly width, head dim, or an e-fold in aspect ratio costs, in steps of log N."""
MOST_SHAPES = 20_000_000
"""A larger grid is refused: it would fill the memory before it found a better shape."""
MOST_MODELS = 1000
MOST_ROUNDING = 0.01
"""Runs that whole steps take further beyond their budget are no longer at equal FLOPs."""
MOST_REACH = 1e6


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
        ValueError: If there are no models or budgets, a budget is less than one step of a model
            takes, or a value is out of range.

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
        _require_sequence(name, values)
        if not values:
            raise ValueError(f"{name} is empty: expected at least one")
    return [
        _planned_run(model, budget, batch, _per_step(model, batch, level, convention, part))
        for budget in budgets
        for model in models
    ]


def _require_sequence(name: str, values: object) -> None:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(f"{name} = {quoted(values)}: expected a sequence")


def _per_step(
    model: Architecture, batch_size: int, level: str | None, convention: str | None, part: str
) -> Count:
    require_concrete(model, "models contains")
    count = model.flops(level, convention=convention, batch_size=batch_size)
    return count.self_part if part == "self" else count


def require_concrete(model: Any, named: str) -> None:
    """Raise unless ``model`` is an architecture of ints.

    Raises:
        TypeError: If it is none, or has arrays or symbols.
    """
    named = named if named.endswith("contains") else f"{named} ="
    if not isinstance(model, Architecture):
        raise TypeError(f"{named} {quoted(model)}: expected a flopcount architecture")
    if any(is_array(value) or is_symbolic(value) for value in model.arguments().values()):
        raise TypeError(f"{named} {quoted(model)}: expected ints, no arrays or symbols")


def _exact_budget(budget: Any) -> Fraction:
    if type(budget) not in (int, Fraction):
        budget = require_positive_number("budget", budget)
    if budget <= 0:
        raise ValueError(f"budget = {quoted(budget)}: expected a positive number of FLOPs")
    return Fraction(budget)


def _planned_run(model: Architecture, budget: Any, batch_size: int, per_step: Count) -> PlannedRun:
    exact = _exact_budget(budget)
    if exact < per_step.total:
        raise ValueError(
            f"budget = {quoted(budget)}: expected at least one step's FLOPs, which are "
            f"{quoted(per_step.total)} with batch_size = {quoted(batch_size)} of {quoted(model)}"
        )
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
        epochs: Effective epochs: latent tokens over the corpus's tokens; None without a corpus.
        passes: Passes over the corpus cut into windows of m + n tokens, (m + n)/n of which make an
            effective epoch; None without a corpus.
        flops_by_count: FLOPs of the run at each level and convention: self part and cross part,
            each ``"not covered"`` where it is not.
        seconds: Predicted wall-clock time; None without a throughput.
        cost: Predicted cost; None without a price.
    """

    run: PlannedRun
    num_params: int
    ratio: float
    trained_tokens: int
    epochs: float | None
    passes: float | None
    flops_by_count: dict[str, dict[str, int | str]]
    seconds: float | None
    cost: float | None

    def to_dict(self) -> dict[str, Any]:
        """The proposal as plain data."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        run = {field.name: getattr(self.run, field.name) for field in dataclasses.fields(self.run)}
        return plain | {"run": run | {"model": self.run.model.arguments()}}


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
class Plan(Shown, Drawn):
    """What :func:`plan` returns; ``print`` shows it as tables.

    Attributes:
        families: One per budget.
        law: The prior law.
        counted_as: The level or convention, and the part, that the budgets are in.
        num_shapes: Shapes in the grid searched, or given.
    """

    families: tuple[Family, ...]
    law: Law
    counted_as: str
    num_shapes: int

    @property
    def total(self) -> dict[str, Any]:
        """What all runs take: their number, FLOPs as budgets count them, seconds and cost.

        Seconds are of one run after the other; without a throughput or a price they are None.
        """
        entries = [entry for family in self.families for entry in family.proposals]
        seconds = [entry.seconds for entry in entries if entry.seconds is not None]
        costs = [entry.cost for entry in entries if entry.cost is not None]
        return {
            "runs": len(entries),
            "flops": sum(entry.run.flops for entry in entries),
            "seconds": sum(seconds) if seconds else None,
            "cost": sum(costs) if costs else None,
        }

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data."""
        return {
            "total": self.total,
            "law": dataclasses.asdict(self.law),
            "counted_as": self.counted_as,
            "num_shapes": self.num_shapes,
            "families": [
                vars(family) | {"proposals": [entry.to_dict() for entry in family.proposals]}
                for family in self.families
            ],
        }

    def records(self) -> list[dict[str, Any]]:
        """One dictionary per run: its budget, its model's sizes, and what it takes."""
        return [
            {"budget": family.budget}
            | entry.run.model.arguments()
            | {name: value for name, value in vars(entry).items() if name != "run"}
            | {"steps": entry.run.steps, "batch_size": entry.run.batch_size}
            | {"flops": entry.run.flops}
            for family in self.families
            for entry in family.proposals
        ]

    def _draw(self, axes: Any) -> None:
        for index, family in enumerate(self.families):
            sizes = [entry.num_params for entry in family.proposals]
            tokens = [entry.trained_tokens for entry in family.proposals]
            label = f"{shown(float(family.budget))} FLOPs"
            axes.plot(sizes, tokens, "o-", color=f"C{index}", label=label)
            axes.plot(family.n_opt, family.d_opt, "*", color=f"C{index}", markersize=14)
        axes.set(
            xscale="log", yscale="log", xlabel="parameters N", ylabel="tokens D",
            title="Models of a budget; stars: what the law predicts",
        )  # fmt: skip
        axes.legend(fontsize="small")

    def _tables(self) -> list[Table | str]:
        total = self.total
        sums = [f"{total['runs']} runs, {shown(float(total['flops']))} FLOPs"]
        if total["seconds"] is not None:
            sums.append(f"{total['seconds'] / 3600:,.1f} hours one after the other")
        if total["cost"] is not None:
            sums.append(f"cost {total['cost']:,.2f}")
        tables = [self._family_table(family) for family in self.families]
        return [*tables, paragraph("in total: " + ", ".join(sums))]

    def by_convention(self) -> str:
        """FLOPs of every run at each level and by each convention, as text: a table a budget."""
        return "\n\n".join(str(self._counts_table(family)) for family in self.families)

    def _counts_table(self, family: Family) -> Table:
        models: list[Any] = [entry.run.model for entry in family.proposals]
        counts = [entry.flops_by_count for entry in family.proposals]
        return Table(
            ["counted as", *(f"{model.num_channels} x {model.num_layers}" for model in models)],
            [[name, *(_run_flops(count[name]) for count in counts)] for name in counts[0]],
            title=f"FLOPs of the runs of {shown(float(family.budget))} FLOPs "
            f"({self.counted_as}), counted in every way",
            note="*: the self part; this convention does not cover the cross part"
            if any("not covered" in way.values() for count in counts for way in count.values())
            else "",
        )

    def _family_table(self, family: Family) -> Table:
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
            f"prior: {self.law.source}; {shown(self.num_shapes)} shapes",
            *(f"warning: {warning}" for warning in family.warnings),
        ]
        return Table(
            [columns[index] for index in filled],
            [[row[index] for index in filled] for row in rows],
            title=f"{shown(float(family.budget))} FLOPs ({self.counted_as}): predicted N_opt "
            f"{family.n_opt:.3g}, D_opt {family.d_opt:.3g}",
            note="\n".join(notes),
        )


def _run_flops(parts: dict[str, int | str]) -> str:
    if parts["self"] == "not covered":
        return "not covered"
    total = sum(part for part in parts.values() if isinstance(part, int))
    return f"{total:.4e}".replace("e+", "e") + ("*" if "not covered" in parts.values() else "")


def throughput(device: str | Device, mfu: float, dtype: str = "bf16") -> float:
    """Causal model FLOP/s of one device at a measured utilisation: peak · MFU.

    Args:
        device: A name that ``flopcount devices`` lists, or a :class:`~flopcount.Device`.
        mfu: Model FLOPs utilisation in (0, 1], measured.
        dtype: The peak's dtype.

    Returns:
        FLOP/s.

    Raises:
        TypeError: If ``mfu`` is no number.
        ValueError: If the device or dtype is unknown, or ``mfu`` out of range.

    Source: Chowdhery et al. 2022 (arXiv 2204.02311), Appendix B, solved for the throughput.

    >>> f"{throughput('h100', 0.4):.4g}"
    '3.958e+14'
    """
    share = require_utilisation(
        "mfu", require_positive_number("mfu", mfu), "that 40 % is given as 0.4"
    )
    return find_device(device).peak(dtype).flops_per_second * float(share)


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
    hours = require_positive_number("gpu_hours", gpu_hours)
    return require_positive_number("budget", hours * 3600 * throughput(device, mfu, dtype))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """What :func:`plan` searches and prices; the command line's options are these fields.

    Attributes:
        vocab_size: V.
        num_latents: n, the positions that predict; all of a decoder's.
        batch_size: Sequences per step.
        architecture: ``"perceiver-ar"``, or ``"decoder"`` for GPT-2's shape.
        num_prefix: m; 0 for decoder-only models.
        prefix_dropout: p.
        widths: Least and largest d.
        width_multiple: d is a multiple of this.
        depths: Least and largest L.
        head_dims: Head dims c to choose from; h = d / c.
        aspect_ratios: Least and largest d / L.
        shapes: Instead of a search, (d, L) of each model, with Perceiver AR's 8 heads.
        law: The prior: ``"chinchilla-1"``, ``"chinchilla-2"``, ``"chinchilla-3"``, or a law, such
            as a fit's; on the command line, a file that ``flopcount fit --json`` wrote.
        num_models: Models per budget.
        reach: Largest N over N_opt, and N_opt over smallest.
        level: Which query-key pairs count: ``"causal"`` unless a convention is given, or
            ``"dense"``.
        convention: Instead of a level, a published way to count.
        part: What budget and law mean: ``"total"``, or ``"self"`` as in the article.
        corpus_tokens: Tokens of the corpus, for epochs.
        flops_per_second: Measured causal model FLOP/s of one device, for time.
        num_devices: Devices that share a run.
        price_per_device_hour: Price, for cost; needs ``flops_per_second``.
    """

    vocab_size: int
    num_latents: int
    batch_size: int
    architecture: Literal["perceiver-ar", "decoder"] = "perceiver-ar"
    num_prefix: int = 0
    prefix_dropout: float = 0.0
    widths: tuple[int, int] = (64, 8192)
    width_multiple: int = 64
    depths: tuple[int, int] = (2, 80)
    head_dims: tuple[int, ...] = (32, 64, 96, 128)  # tensor cores pad none of them
    aspect_ratios: tuple[float, float] = (16.0, 160.0)
    shapes: tuple[tuple[int, int], ...] | None = None
    law: str | Law = "chinchilla-2"
    num_models: int = 7
    reach: float = 4.0
    level: Literal["causal", "dense"] | None = None
    convention: str | None = None
    part: Literal["total", "self"] = "total"
    corpus_tokens: int | None = None
    flops_per_second: float | None = None
    num_devices: int = 1
    price_per_device_hour: float | None = None

    def require_defaults(self, circumstance: str, *names: str) -> None:
        """Raise ValueError where a field is given although it would do nothing."""
        for name in names:
            value = getattr(self, name)
            if is_array(value) or value != getattr(Search, name):
                raise ValueError(f"{name} = {quoted(value)} {circumstance}: it would do nothing")

    def check(self) -> None:
        """Raise where a value is out of range, of the wrong type, or would do nothing.

        Raises:
            TypeError: If a value has the wrong type.
            ValueError: If a value is out of range or would do nothing.
        """
        require_choice("part", self.part, PARTS)
        require_choice("architecture", self.architecture, ("perceiver-ar", "decoder"))
        if self.architecture == "decoder":
            self.require_defaults("of a decoder", "num_prefix", "prefix_dropout")
        if self.shapes is not None:
            grid = ("widths", "width_multiple", "depths", "head_dims", "aspect_ratios")
            self.require_defaults("beside shapes", *grid, "num_models", "reach")
        if type(self.num_prefix) is int and self.num_prefix == 0:
            self.require_defaults("without num_prefix", "prefix_dropout")
        if self.flops_per_second is None:
            self.require_defaults(
                "without flops_per_second", "num_devices", "price_per_device_hour"
            )
        if not 1 < require_positive_number("reach", self.reach) <= MOST_REACH:
            raise ValueError(
                f"reach = {quoted(self.reach)}: expected a ratio above 1, to {MOST_REACH:g}"
            )
        if type(self.num_models) is not int or not 3 <= self.num_models <= MOST_MODELS:
            raise ValueError(
                f"num_models = {quoted(self.num_models)}: expected an integer from 3 to "
                f"{MOST_MODELS}"
            )
        for name in ("price_per_device_hour", "flops_per_second"):
            if getattr(self, name) is not None:
                require_positive_number(name, getattr(self, name))
        if not (isinstance(self.aspect_ratios, tuple) and len(self.aspect_ratios) == 2):
            raise TypeError(
                f"aspect_ratios = {quoted(self.aspect_ratios)}: expected a pair of numbers"
            )
        for name in ("num_devices", "corpus_tokens"):
            size = getattr(self, name)
            if size is not None and type(require_size(name, size)) is not int:
                raise TypeError(f"{name} = {quoted(size)}: expected one integer")

    def per_second(self) -> float | None:
        """FLOP/s of all devices of a run."""
        return None if self.flops_per_second is None else self.flops_per_second * self.num_devices

    def per_hour(self) -> float | None:
        """Price of an hour of all devices of a run."""
        price = self.price_per_device_hour
        return None if price is None else price * self.num_devices

    def prior(self) -> Law:
        """The law."""
        if isinstance(self.law, ScalingLaw | LossSurface):
            return self.law
        return LAWS[require_choice("law", self.law, LAWS)]()

    def model(self, width: Any, depth: Any, **heads: Any) -> Architecture:
        """The model of a width and a depth, or of arrays of them."""
        shape = dict(num_channels=width, num_layers=depth, vocab_size=self.vocab_size) | heads
        if self.architecture == "decoder":
            return Decoder(
                seq_len=self.num_latents, **dict(num_heads=PerceiverAR.num_heads) | shape
            )
        return PerceiverAR(
            num_latents=self.num_latents,
            num_prefix=self.num_prefix,
            prefix_dropout=self.prefix_dropout,
            **shape,
        )


def plan(budgets: Sequence[float], search: Search | None = None, **fields: Any) -> Plan:
    """Propose, for each budget, a family of models around the predicted optimum.

    Targets are evenly spaced in log N from N_opt / reach to N_opt · reach. Among the shapes within
    half a step of that spacing, each takes the one of least ``|log(N / target)|`` in steps, plus
    0.05 for a width that is no multiple of 128, for a head dim other than 64 and 128, and per
    e-fold of d / L away from 64. Given ``shapes`` are taken as they are. Steps come from
    :func:`isoflop_runs`.

    The data suffices while a run sees at most one effective epoch, D <= T for D latent tokens and
    a corpus of T tokens. The article's rule reads so: with the corpus cut into windows of m + n
    tokens, one pass predicts n of each window's tokens, and (m + n)/n passes are needed until all
    latent sequences that do not overlap have been read. Windows start at random, so that latent
    sequences overlap in part: an approximation, as the article says.

    Args:
        budgets: C, FLOPs per run; :func:`budget_from_gpu_hours` gives them from hours.
        search: What is searched and priced.
        fields: In its place, the fields of a :class:`Search` by their names.

    Returns:
        A :class:`Plan`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range or would do nothing, a budget is less than a step
            takes, or no shape meets the constraints.

    Source: the family as in Hoffmann et al. 2022 (arXiv 2203.15556), section 3.2; the effective
    epoch from the article, section "Experiments", and "Approximations" in the training notes that
    it links to (krasserm/perceiver-io, examples/scaling/clm/train.md).

    >>> proposed = plan([1e18], vocab_size=32_000, num_latents=512, batch_size=80, num_models=3)
    >>> [round(entry.ratio, 1) for entry in proposed.families[0].proposals]
    [0.2, 1.0, 4.1]
    """
    _require_sequence("budgets", budgets)
    if not budgets:
        raise ValueError("budgets is empty: expected at least one")
    if search is None:
        search = Search(**fields)
    elif fields:
        raise TypeError(f"search with {', '.join(fields)}: expected one of the two")
    elif not isinstance(search, Search):
        raise TypeError(f"search = {quoted(search)}: expected a Search, or its fields")
    search.check()
    prior = search.prior()
    grid = _Shapes.of(search) if search.shapes is None else None
    families = []
    for budget in budgets:
        flops = _as_float("budget", _exact_budget(budget))
        n_opt, d_opt = _optimum(prior, flops)
        if grid is None:
            models = _given_models(search)
            warnings: list[str] = []
        else:
            models, warnings = grid.family(n_opt)
        runs = isoflop_runs(
            models,
            [budget],
            search.batch_size,
            level=search.level,
            convention=search.convention,
            part=search.part,
        )
        proposals = tuple(_proposal(run, n_opt, search) for run in runs)
        warnings += _edge_warnings([entry.ratio for entry in proposals], search)
        warnings += _epoch_warnings(proposals)
        warnings += _rounding_warnings(proposals)
        families.append(Family(budget, n_opt, d_opt, proposals, tuple(warnings)))
    counted_as = f"{search.convention or search.level or 'causal'}, {search.part}"
    searched = len(families[0].proposals) if grid is None else grid.num_searched
    return Plan(tuple(families), prior, counted_as, searched)


def _optimum(law: Law, flops: float) -> tuple[float, float]:
    try:
        best = law.n_opt(flops), law.d_opt(flops)
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"law = {quoted(law)}: no optimum at {flops:g} FLOPs: {error}") from None
    if not all(math.isfinite(size) and size > 0 for size in best):
        raise ValueError(
            f"law = {quoted(law)}: expected a positive optimum at {flops:g} FLOPs, got {best}"
        )
    return best


def _given_models(search: Search) -> list[Architecture]:
    shapes: Any = search.shapes
    if isinstance(shapes, str) or not isinstance(shapes, Sequence):
        raise TypeError(f"shapes = {quoted(shapes)}: expected a sequence of pairs of integers")
    pairs = [
        shape if isinstance(shape, tuple | list) and len(shape) == 2 else None for shape in shapes
    ]
    if not pairs or None in pairs:
        raise ValueError(f"shapes = {quoted(shapes)}: expected pairs of a width and a depth")
    models = [search.model(width, depth) for width, depth in filter(None, pairs)]
    return sorted(models, key=lambda model: int(model.params().total))


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
        wanted: The constraints.
        width: d.
        depth: L.
        heads: h.
        log_params: log N.
        penalty: In steps of log N.
        num_searched: Shapes before the constraints.
    """

    wanted: Search
    width: Any
    depth: Any
    heads: Any
    log_params: FloatArray
    penalty: FloatArray
    num_searched: int

    @classmethod
    def of(cls, wanted: Search) -> _Shapes:
        import numpy as np

        widths = _positive_range("widths", wanted.widths, wanted.width_multiple)
        depths = _positive_range("depths", wanted.depths, 1)
        dims = np.array(sorted({require_size("head_dims", dim) for dim in wanted.head_dims}))
        if not dims.size:
            raise ValueError("head_dims is empty: expected at least one")
        low, high = (require_positive_number("aspect_ratios", end) for end in wanted.aspect_ratios)
        if low > high:
            raise ValueError(f"aspect_ratios = {wanted.aspect_ratios}: expected least <= largest")
        # Not len(), which refuses a range beyond 2⁶³.
        num_widths, num_depths = (-((r.start - r.stop) // r.step) for r in (widths, depths))
        num_shapes = num_widths * num_depths * int(dims.size)
        if num_shapes > MOST_SHAPES:
            raise ValueError(
                f"widths, depths and head_dims span {quoted(num_shapes)} shapes: "
                f"expected at most {MOST_SHAPES:,}"
            )
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
        params = wanted.model(width, depth, num_heads=heads).params()
        count = (params.self_part if wanted.part == "self" else params).total
        friendly = (width % FRIENDLY_WIDTH == 0).astype(float) + np.isin(dim, FRIENDLY_HEAD_DIMS)
        penalty = _PREFERENCE * (2 - friendly + np.abs(np.log(aspect / TYPICAL_ASPECT_RATIO)))
        try:
            log_params = np.log(count.astype(np.float64))
        except OverflowError:
            raise ValueError("the parameters exceed a float: expected smaller sizes") from None
        return cls(wanted, width, depth, heads, log_params, penalty, num_searched)

    def family(self, n_opt: float) -> tuple[list[Architecture], list[str]]:
        """The shapes nearest to the targets around ``n_opt``, and warnings."""
        import numpy as np

        num_models, reach = self.wanted.num_models, self.wanted.reach
        spacing = _spacing(self.wanted)
        offsets = np.linspace(-math.log(reach), math.log(reach), num_models)
        chosen, missed = set(), []
        for target in math.log(n_opt) + offsets:
            steps = np.abs(self.log_params - target) / spacing
            cost = np.where(steps <= 0.5, steps + self.penalty, np.inf)
            best = int(np.argmin(cost))
            if np.isfinite(cost[best]):
                chosen.add(best)
            else:
                missed.append(f"{math.exp(target):.3g}")
        if not chosen:
            chosen.add(int(np.argmin(np.abs(self.log_params - math.log(n_opt)))))
        warnings = []
        if missed:
            warnings.append(f"no shape near N = {', '.join(missed)}: widen the constraints")
        if len(chosen) < num_models - len(missed):
            warnings.append("two targets share a shape: widen the constraints")
        indices = sorted(chosen, key=lambda index: float(self.log_params[index]))
        models = [
            self.wanted.model(
                int(self.width[index]), int(self.depth[index]), num_heads=int(self.heads[index])
            )
            for index in indices
        ]
        return models, warnings


def _proposal(run: PlannedRun, n_opt: float, search: Search) -> Proposal:
    model: Any = run.model
    num_params = _params(model, search.part)
    corpus_tokens, per_second, per_hour = (
        search.corpus_tokens,
        search.per_second(),
        search.per_hour(),
    )
    tokens = run.steps * run.batch_size * model.length
    seconds = cost = epochs = passes = None
    if corpus_tokens is not None:
        epochs = _as_float("epochs", Fraction(tokens, corpus_tokens))
        passes = epochs * (search.num_prefix + model.length) / model.length
    if per_second is not None:
        causal = run.steps * model.flops(batch_size=run.batch_size).total
        seconds = _as_float("seconds", causal / Fraction(per_second))
        cost = None if per_hour is None else seconds / 3600 * per_hour
    counts = [model.flops(level, batch_size=run.batch_size) for level in LEVELS]
    counts += [model.flops(convention=name, batch_size=run.batch_size) for name in CONVENTIONS]
    return Proposal(
        run=run,
        num_params=num_params,
        ratio=num_params / n_opt,
        trained_tokens=tokens,
        epochs=epochs,
        passes=passes,
        flops_by_count={
            count.level or count.convention: {
                name: "not covered" if part.not_covered else run.steps * part.total
                for name, part in (("self", count.self_part), ("cross", count.cross_part))
            }
            for count in counts
        },
        seconds=seconds,
        cost=cost,
    )


def _as_float(name: str, value: Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} exceeds a float: expected a smaller number") from None


def _spacing(search: Search) -> float:
    return 2 * math.log(search.reach) / (search.num_models - 1)


def _edge_warnings(ratios: Sequence[float], search: Search) -> list[str]:
    """Whether models lie on both sides of the predicted optimum, more than half a step away."""
    half = math.exp(_spacing(search) / 2)
    sides = {"smaller": min(ratios) < 1 / half, "larger": max(ratios) > half}
    return [
        f"the predicted optimum is at the edge: no {side} model in the family"
        for side, covered in sides.items()
        if not covered
    ]


def _rounding_warnings(proposals: Sequence[Proposal]) -> list[str]:
    over = max(Fraction(entry.run.flops) / Fraction(entry.run.budget) - 1 for entry in proposals)
    if over <= MOST_ROUNDING:
        return []
    return [f"whole steps spend up to {float(over):.1%} beyond the budget: take a smaller batch"]


def _epoch_warnings(proposals: Sequence[Proposal]) -> list[str]:
    over = [entry for entry in proposals if entry.epochs is not None and entry.epochs > 1]
    if not over:
        return []
    listed = ", ".join(f"{entry.num_params:.3g} ({entry.epochs:.3g})" for entry in over)
    return [f"more than one effective epoch of the corpus at N (epochs) = {listed}"]
