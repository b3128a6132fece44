"""What one count has more than another, term by term: a measured step and a formula, two levels."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from flopcount.sizes import Size, equal, is_array, is_symbolic, quoted
from flopcount.tables import Shown, Table

if TYPE_CHECKING:
    from flopcount.count import Count

PHASES = ("forward", "backward", "recompute")
JOINED = "+"
"""Between the terms of one product: a measured ``"query+key+value"`` stands for all three."""


@dataclasses.dataclass(frozen=True)
class TermDifference:
    """FLOPs that a term has more in one count than in another; negative where it has fewer.

    Attributes:
        layer: The layer.
        term: The term within the layer; several in one product are joined by ``+``.
        forward: Of the forward pass.
        backward: Of the backward pass.
        recompute: Executed again.

    """

    layer: str
    term: str
    forward: Size
    backward: Size
    recompute: Size

    @property
    def is_zero(self) -> bool:
        """Whether the two agree in every phase; of arrays, everywhere."""
        return all(_is_zero(getattr(self, phase)) for phase in PHASES)


@dataclasses.dataclass(frozen=True, repr=False)
class Difference(Shown):
    """One count minus another, term by term, parts added up.

    Attributes:
        terms: In the order of the first, then what the second alone has.
        title: What was subtracted from what.

    """

    terms: tuple[TermDifference, ...]
    title: str

    @property
    def nonzero(self) -> Difference:
        """The terms that differ."""
        terms = tuple(term for term in self.terms if not term.is_zero)
        return dataclasses.replace(self, terms=terms)

    def _sum(self, phase: str) -> Any:
        return sum((getattr(term, phase) for term in self.terms), start=0)

    @property
    def forward(self) -> Any:
        """Of the forward pass, all terms together."""
        return self._sum("forward")

    @property
    def backward(self) -> Any:
        """Of the backward pass, all terms together."""
        return self._sum("backward")

    @property
    def recompute(self) -> Any:
        """Executed again, all terms together."""
        return self._sum("recompute")

    @property
    def total(self) -> Any:
        """Forward and backward, without recomputation."""
        return self.forward + self.backward

    def records(self) -> list[dict[str, Any]]:
        """One dictionary per term."""
        return [vars(term) for term in self.terms]

    def _tables(self) -> list[Table | str]:
        return [
            Table(
                ["layer", "term", *PHASES],
                [list(record.values()) for record in self.records()],
                title=self.title,
                footer=["total", None, *(self._sum(phase) for phase in PHASES)],
                keys=2,
            )
        ]


def subtract(left: Count, right: Count) -> Difference:
    """``left`` minus ``right``; see :meth:`Count.__sub__ <flopcount.count.Count.__sub__>`."""
    if not equal(left.batch_size, right.batch_size):
        raise ValueError(
            f"counts of batch_size = {quoted(left.batch_size)} and {quoted(right.batch_size)}: "
            "expected one and the same, to subtract them term by term"
        )
    joined = _joined((*left.terms, *right.terms))
    sums: dict[tuple[str, str], dict[str, Any]] = {}
    for count, sign in ((left, 1), (right, -1)):
        count.require_covered()
        for term in count.terms:
            name = term.layer, joined.get((term.layer, term.term), term.term)
            phases = sums.setdefault(name, collections.defaultdict(int))
            for phase in PHASES:
                phases[phase] = phases[phase] + sign * getattr(term, phase)
    terms = (
        TermDifference(*name, *(_simplified(phases[phase]) for phase in PHASES))
        for name, phases in sums.items()
    )
    title = f"{left.model.title}, {left.label}, minus {right.model.title}, {right.label}"
    return Difference(tuple(terms), title)


def _joined(terms: Iterable[Any]) -> dict[tuple[str, str], str]:
    """The joined term that a single one is part of, by layer and term."""
    return {
        (term.layer, single): term.term
        for term in terms
        if JOINED in term.term
        for single in term.term.split(JOINED)
    }


def _simplified(value: Any) -> Any:
    return value.expand() if is_symbolic(value) else value


def _is_zero(value: Any) -> bool:
    return not value.any() if is_array(value) else bool(value == 0)
