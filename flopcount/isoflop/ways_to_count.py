"""Where the same budget has its compute-optimal model by every way to count."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from flopcount import __version__
from flopcount.architectures import Architecture
from flopcount.comparison import signed
from flopcount.conventions import CONVENTIONS
from flopcount.count import LEVELS, described
from flopcount.isoflop.laws import CHINCHILLA_SURFACE, LossSurface
from flopcount.isoflop.plan import PARTS, require_concrete
from flopcount.sizes import quoted, require_choice, require_positive_number
from flopcount.tables import Shown, Table, shown

SCALED = (
    "num_channels", "num_layers", "num_heads", "num_key_value_heads", "intermediate_size",
    "expert_size", "shared_size", "query_rank", "key_value_rank", "num_decoder_layers",
    "scan_channels", "scan_rank", "scan_key_heads", "scan_value_heads",
)  # fmt: skip
"""Fields that grow together in a family of models: widths, depths and heads.

A head dim, the number of experts, vocabulary and lengths stay.
"""
_UNIT = 840
"""A multiple of every period of layers up to 8, so that each kind of layer has its share."""
_DEGREE = 3
"""Parameters and FLOPs are cubic at most in the factor s: layers times width times width."""
REACH = 1000.0
"""Optima are searched at s between 1 / REACH and REACH."""


@dataclasses.dataclass(frozen=True)
class OptimumNumbers:
    """The compute-optimal model of a family by one way to count.

    Attributes:
        n_opt: Parameters that a token uses: all, but for experts that it is not routed to.
        d_opt: Tokens.
        scale: s, by which the model's width, depth and heads are multiplied.
        n_moved: ``n_opt`` over that of the causal count, less 1.
        d_moved: The same of ``d_opt``.
        spent: Causal FLOPs of ``n_opt`` on ``d_opt`` over the budget: what it really costs.
        excess_loss: At ``n_opt``, with tokens for the budget in causal FLOPs: the law's loss above
            that of the causal optimum.

    """

    n_opt: float
    d_opt: float
    scale: float
    n_moved: float
    d_moved: float
    spent: float
    excess_loss: float


@dataclasses.dataclass(frozen=True)
class Optimum:
    """Where one way to count has the optimum.

    Attributes:
        name: The level or convention.
        numbers: None where the model is not covered.
        lacks: What the model has that the convention has no formula for.

    """

    name: str
    numbers: OptimumNumbers | None
    lacks: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Optima(Shown):
    """What :func:`compare_optima` returns; ``print`` shows it as a table.

    Attributes:
        model: The model whose family was searched.
        budget: C, training FLOPs.
        part: What the budget pays for.
        law: The surface whose minimum was searched.
        rows: The causal and dense levels, then every published convention.

    """

    model: Any
    budget: float
    part: str
    law: LossSurface
    rows: tuple[Optimum, ...]

    def to_dict(self) -> dict[str, Any]:
        """The optima as plain data."""
        return {
            "version": __version__,
            "model": described(self.model),
            "budget": self.budget,
            "part": self.part,
            "law": dataclasses.asdict(self.law),
            "rows": [dataclasses.asdict(row) for row in self.rows],
        }

    def records(self) -> list[dict[str, Any]]:
        """One dictionary per way to count; of one that does not cover the model, its name alone."""
        return [
            {"name": row.name} | ({} if row.numbers is None else vars(row.numbers))
            for row in self.rows
        ]

    def _tables(self) -> list[Table | str]:
        def cells(row: Optimum) -> list[str]:
            if row.numbers is None:
                return [row.name, "not covered", *[""] * 5]
            numbers = row.numbers
            return [
                row.name,
                f"{numbers.n_opt:.3g}",
                signed(numbers.n_moved),
                f"{numbers.d_opt:.3g}",
                signed(numbers.d_moved),
                f"{numbers.spent:.1%}",
                f"{numbers.excess_loss:.2g}",
            ]

        return [
            Table(
                ["counted as", "N_opt", "moved", "D_opt", "moved", "spends", "loss"],
                [cells(row) for row in self.rows],
                title=f"Where a budget of {shown(self.budget)} FLOPs ({self.part}), counted in "
                f"every way, has its optimum among models shaped as this {self.model.title}",
                note="spends: causal FLOPs over the budget; loss: at that N_opt, above the causal "
                f"optimum's, both at the budget in causal FLOPs\n{self._said_of_n()}"
                f"law: {self.law.source}",
            )
        ]

    def _said_of_n(self) -> str:
        counted = self.model.params()
        if counted.active == counted.total:
            return ""
        return (
            "N: parameters that a token uses, in a law that was fitted to models without experts\n"
        )


def compare_optima(
    model: Architecture,
    budget: float,
    *,
    law: LossSurface = CHINCHILLA_SURFACE,
    part: str = "total",
) -> Optima:
    """Plan the same budget by every way to count, and tell how far each moves the optimum.

    The family is the model's own: width, depth, heads and widths of MLPs and experts times one
    factor s, at its vocabulary, lengths, head dim and number of experts. Both N and the FLOPs per
    token f are then polynomials in s, found exactly from five members. By a way to count f the
    budget trains N(s) on

        D(s) = C / f(s)

    tokens, and its optimum is where the law's L(N(s), D(s)) is least. Nothing moves where f is the
    causal count; where f is a constant multiple of it the optimum moves as with a budget that much
    smaller.

    Args:
        model: Any architecture of ints with fields ``num_channels``, ``num_layers``,
            ``num_heads``.
        budget: C, training FLOPs, of whatever is counted.
        law: A surface; a power law names an optimum for a budget whatever counts it.
        part: What the budget pays for: ``"total"``, or ``"self"`` as in the article.

    Returns:
        An :class:`Optima`.

    Raises:
        TypeError: If ``model`` is no architecture of ints, or ``law`` no surface.
        ValueError: If a value is out of range, or an optimum lies at s beyond 1/1000 to 1000.

    Source: the surface's optimum as in Hoffmann et al. 2022 (arXiv 2203.15556), equation 4, with
    the count at hand in place of 6·N·D.

    >>> import flopcount as fc
    >>> gpt2 = fc.Decoder(vocab_size=50257, seq_len=1024, num_channels=768, num_layers=12,
    ...                   num_heads=12)
    >>> optima = {row.name: row.numbers for row in compare_optima(gpt2, 1e19).rows}
    >>> f"{optima['causal'].n_opt:.3g} {optima['kaplan'].n_moved:+.1%} {optima['6n'].n_moved:+.1%}"
    '2.26e+08 -13.4% +0.9%'
    """
    require_choice("part", part, PARTS)
    flops = require_positive_number("budget", budget)
    require_concrete(model, "model")
    if not isinstance(law, LossSurface):
        raise TypeError(
            f"law = {quoted(law)}: expected a flopcount.isoflop.laws.LossSurface, since a power "
            "law has the same optimum for a budget whatever counts it"
        )
    scaled = {name: size for name in SCALED if (size := getattr(model, name, None)) is not None}
    if not scaled.keys() >= set(SCALED[:3]):
        raise TypeError(f"model = {quoted(model)}: expected fields {', '.join(SCALED[:3])}")
    factors = [_UNIT * step for step in range(1, _DEGREE + 3)]
    members: list[Architecture] = [
        dataclasses.replace(model, **{name: size * by for name, size in scaled.items()})  # type: ignore[type-var]
        for by in factors
    ]

    def params(member: Architecture) -> Fraction:
        counted = member.params()
        return Fraction((counted.self_part if part == "self" else counted).active)

    size = _polynomial(factors, [params(member) for member in members])
    causal = _polynomial(factors, [_per_token(member, part, "causal") for member in members])
    best = _least(size, causal, flops, law)
    n_best, d_best = size(best), flops / causal(best)
    rows = []
    for way in (*LEVELS, *CONVENTIONS):
        values = [_per_token(member, part, way) for member in members]
        if None in values:
            lacks = _count(model, way).lacks or ("a prefix",)
            rows.append(Optimum(way, None, lacks))
            continue
        counted = _polynomial(factors, values)
        scale = best if way == "causal" else _least(size, counted, flops, law)
        n_opt, d_opt = size(scale), flops / counted(scale)
        numbers = OptimumNumbers(
            n_opt=n_opt,
            d_opt=d_opt,
            scale=scale,
            n_moved=n_opt / n_best - 1,
            d_moved=d_opt / d_best - 1,
            spent=causal(scale) / counted(scale),
            excess_loss=law.loss(n_opt, flops / causal(scale)) - law.loss(n_best, d_best),
        )
        rows.append(Optimum(way, numbers))
    return Optima(model, flops, part, law, tuple(rows))


def _count(model: Architecture, way: str) -> Any:
    return model.flops(way) if way in LEVELS else model.flops(convention=way)


def _per_token(model: Architecture, part: str, way: str) -> Any:
    """FLOPs per token of what the budget pays for; None where it is not covered."""
    count = _count(model, way)
    count = count.self_part if part == "self" else count
    return None if count.not_covered else Fraction(count.per_token)


def _polynomial(factors: list[int], values: list[Any]) -> Callable[[float], float]:
    """The cubic through the first four values; the last one must lie on it.

    Raises:
        ValueError: If it does not.

    >>> _polynomial([1, 2, 3, 4, 5], [2, 9, 28, 65, 126])(0.5)  # s³ + 1
    1.125
    """
    nodes = factors[: _DEGREE + 1]
    differences = [Fraction(value) for value in values[: _DEGREE + 1]]
    newton = [differences[0]]
    for order in range(1, _DEGREE + 1):
        differences = [
            (after - before) / (nodes[index + order] - nodes[index])
            for index, (before, after) in enumerate(itertools.pairwise(differences))
        ]
        newton.append(differences[0])
    coefficients = [Fraction(0)] * (_DEGREE + 1)
    for order in reversed(range(_DEGREE + 1)):
        shifted = [Fraction(0), *coefficients[:-1]]
        coefficients = [
            up - nodes[order] * same for up, same in zip(shifted, coefficients, strict=True)
        ]
        coefficients[0] += newton[order]
    exact = sum(c * factors[-1] ** power for power, c in enumerate(coefficients))
    if abs(exact / values[-1] - 1) > Fraction(1, 10**6):
        raise ValueError(
            f"sizes of a family at {factors}: expected a cubic in the factor, got "
            f"{float(values[-1]):g} where it is {float(exact):g}"
        )
    floats = [float(c) for c in coefficients]
    return lambda s: math.fsum(c * s**power for power, c in enumerate(floats))


def _least(
    size: Callable[[float], float],
    per_token: Callable[[float], float],
    flops: float,
    law: LossSurface,
) -> float:
    """The s of the least loss: a grid in log s, then golden sections between its neighbours.

    Raises:
        ValueError: If it is at the end of the grid.
    """

    def loss(log_s: float) -> float:
        s = math.exp(log_s)
        n, f = size(s), per_token(s)
        return law.loss(n, flops / f) if n > 0 and f > 0 else math.inf

    ends, steps = math.log(REACH), 200
    grid = [ends * (index / steps) for index in range(-steps, steps + 1)]
    best = min(range(len(grid)), key=lambda index: loss(grid[index]))
    if best in (0, len(grid) - 1):
        raise ValueError(
            f"budget = {flops:g}: its optimum lies at a model {math.exp(grid[best]):g} times as "
            f"wide and deep as the one given, or beyond; expected within 1/{REACH:g} and {REACH:g}"
        )
    low, high = grid[best - 1], grid[best + 1]
    golden = (math.sqrt(5) - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    for _ in range(60):
        if loss(left) < loss(right):
            high, right = right, left
            left = high - golden * (high - low)
        else:
            low, left = left, right
            right = low + golden * (high - low)
    return math.exp((low + high) / 2)
