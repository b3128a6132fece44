"""The formula of every term, evaluated from the real formulas on symbols."""

from __future__ import annotations

import dataclasses
from typing import Any

from flopcount import extras
from flopcount.architectures import ARCHITECTURES, Architecture, with_letters
from flopcount.conventions import CONVENTIONS
from flopcount.count import Count
from flopcount.executed import Tiling
from flopcount.sizes import quoted, require_choice
from flopcount.tables import Shown, Table, shown

TILING_LEGEND = (
    "tiles of queries × keys: a_f·J_f × J_f in the forward pass; in the backward pass "
    "M_kv × b·M_kv for the gradients of keys and values, in one loop, and a_q·J_q × J_q for that "
    "of queries; the head dim is rounded up to a multiple of 16"
)
"""The symbols of :func:`symbolic_tiling`."""


@dataclasses.dataclass(frozen=True)
class Formula:
    """One term's formula.

    Attributes:
        part: ``"self"`` or ``"cross"``.
        layer: The layer.
        term: The term within the layer.
        expression: FLOPs of the forward pass, a SymPy expression.
        source: Where it stands, or how it is derived.

    """

    part: str
    layer: str
    term: str
    expression: Any
    source: str

    @property
    def text(self) -> str:
        """The expression as text."""
        return str(self.expression)

    @property
    def latex(self) -> str:
        """The expression as LaTeX."""
        return str(extras.load("sympy", "symbolic").latex(self.expression))


@dataclasses.dataclass(frozen=True)
class ElementwiseFormula(Formula):
    """One element-wise operation: ``expression`` is its number of elements.

    Attributes:
        forward_cost: FLOPs per element, forward.
        backward_cost: FLOPs per element, backward.
    """

    forward_cost: int
    backward_cost: int


@dataclasses.dataclass(frozen=True, repr=False)
class Explanation(Shown):
    """What :func:`explain` returns; ``print`` shows it as tables.

    Attributes:
        title: What was counted, and how.
        legend: What the letters mean.
        matmuls: Forward matmul FLOPs, term by term.
        backward: FLOPs of the backward pass of the terms where it is not twice the forward:
            attention at level ``executed``, and by convention ``litgpt``.
        elementwise: Elements and per-element costs of each operation; empty for a convention and
            at level ``executed``.

    """

    title: str
    legend: str
    matmuls: tuple[Formula, ...]
    backward: tuple[Formula, ...]
    elementwise: tuple[ElementwiseFormula, ...]

    def to_dict(self) -> dict[str, Any]:
        """The formulas as plain data, each as text and as LaTeX."""
        return {
            "title": self.title,
            "legend": self.legend,
            "matmuls": _records(self.matmuls),
            "backward": _records(self.backward),
            "elementwise": _records(self.elementwise),
        }

    def records(self) -> list[dict[str, Any]]:
        """One dictionary per term's formula, forward."""
        return _records(self.matmuls)

    def to_latex(self) -> str:
        """The formulas as one LaTeX ``align*`` environment."""
        lines = [rf"\text{{{f.layer}, {f.term} ({f.part})}} &: {f.latex} \\" for f in self.matmuls]
        lines += [
            rf"\text{{{f.layer}, {f.term} ({f.part}), backward}} &: {f.latex} \\"
            for f in self.backward
        ]
        lines += [
            rf"\text{{{f.layer}, {f.term} ({f.part}), elements of cost {f.forward_cost} forward "
            rf"and {f.backward_cost} backward}} &: {f.latex} \\"
            for f in self.elementwise
        ]
        return "\n".join((r"\begin{align*}", *lines, r"\end{align*}"))

    def _tables(self) -> list[Table | str]:
        tables = [("forward FLOPs", self.matmuls, f"{self.title}\n{self.legend}")]
        if self.backward:
            title = "The backward pass, where it is not twice the forward"
            tables.append(("backward FLOPs", self.backward, title))
        blocks: list[Table | str] = [
            Table(
                ["part", "layer", "term", heading, "source"],
                [[f.part, f.layer, f.term, f.text, f.source] for f in formulas],
                title=title,
                keys=3,
            )
            for heading, formulas, title in tables
        ]
        if self.elementwise:
            rows = [
                [f.part, f.layer, f.term, f.text, f.forward_cost, f.backward_cost]
                for f in self.elementwise
            ]
            reasons = {(f.term, f.source): [f.term, f.source] for f in self.elementwise}
            blocks += [
                Table(
                    ["part", "layer", "term", "elements", "forward", "backward"],
                    rows,
                    title="Element-wise work (not part of the matmul total): FLOPs per element",
                    keys=3,
                ),
                Table(["term", "what the cost per element is"], list(reasons.values())),
            ]
        return blocks


def _records(formulas: tuple[Formula, ...]) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in vars(formula).items() if name != "expression"}
        | {"text": formula.text, "latex": formula.latex}
        for formula in formulas
    ]


def on_symbols(model: str | Architecture) -> tuple[Architecture, str]:
    """A model with a symbol for every size that has a letter, and what the letters mean.

    Args:
        model: A name that :data:`~flopcount.architectures.ARCHITECTURES` has, or a model, whose
            options stay and whose sizes stand in the legend.

    Raises:
        ImportError: If SymPy is not installed (extra ``symbolic``).
        TypeError: If it is neither.
        ValueError: If the architecture is unknown.

    """
    sympy = extras.load("sympy", "symbolic")
    if isinstance(model, Architecture):
        sizes = model.lettered()
        values = {name: getattr(model, name) for name in sizes}
    else:
        described = ARCHITECTURES[require_choice("architecture", model, ARCHITECTURES)]
        sizes = with_letters(described.kinds())
        values = dict.fromkeys(sizes)
    symbols = {
        name: sympy.Symbol(kind.letter, integer=True, positive=True) for name, kind in sizes.items()
    }
    legend = ", ".join(
        [
            "B sequences",
            *(
                f"{kind.letter} {kind.noun}" + ("" if value is None else f" = {shown(value)}")
                for kind, value in zip(sizes.values(), values.values(), strict=True)
            ),
        ]
    )
    if "head_dim" not in sizes and not getattr(model, "latent", False):
        legend += "; c = d/h"
    if isinstance(model, Architecture):
        return dataclasses.replace(model, **symbols), legend  # type: ignore[type-var]
    return described(**symbols), legend


def symbolic_tiling() -> Tiling:
    """A tiling with every tile size a symbol: what owns a block is a multiple of what it visits.

    Keys and values share a loop, as where the head dim lets both fit.

    Raises:
        ImportError: If SymPy is not installed (extra ``symbolic``).

    """
    sympy = extras.load("sympy", "symbolic")
    a_f, J_f, b, M_kv, a_q, J_q = sympy.symbols(
        "a_f J_f b M_kv a_q J_q", integer=True, positive=True
    )
    return Tiling(forward=(a_f * J_f, J_f), key_value=(M_kv, b * M_kv), query=(a_q * J_q, J_q))


def explain(
    architecture: str | Architecture = "perceiver-ar",
    level: str | None = None,
    convention: str | None = None,
    tiling: Tiling | None = None,
) -> Explanation:
    """The formula and the source of every term.

    The counter's own formulas are evaluated on symbols; there is no second copy of them.

    Args:
        architecture: A name that :data:`~flopcount.architectures.ARCHITECTURES` has, or a model,
            such as one that :func:`flopcount.from_hf` read, whose sizes stand in the legend.
        level: ``"causal"`` (the default), ``"dense"`` or ``"executed"``.
        convention: Instead of a level, a published convention.
        tiling: At level ``executed``, the kernels' tiling; without it, tile sizes are symbols.

    Raises:
        ImportError: If SymPy is not installed (extra ``symbolic``).
        TypeError: If ``tiling`` is no :class:`~flopcount.Tiling`.
        ValueError: If an argument is unknown, or a tiling given at another level.

    >>> {f.term: f.text for f in explain().matmuls if f.layer == "hybrid" and f.part == "cross"}
    {'key': '2*B*d**2*k', 'value': '2*B*d**2*k', 'scores': '2*B*d*k*n', 'values': '2*B*d*k*n'}

    """
    model, legend = on_symbols(architecture)
    batch_size = extras.load("sympy", "symbolic").Symbol("B", integer=True, positive=True)
    if isinstance(level, str) and level == "executed" and convention is None:
        legend += f"; {TILING_LEGEND if tiling is None else tiling}"
        count = model.executed(
            symbolic_tiling() if tiling is None else tiling, batch_size=batch_size
        )
    elif tiling is not None:
        raise ValueError(
            f"tiling = {quoted(tiling)} with level = {quoted(level)} and convention = "
            f"{quoted(convention)}: expected level = 'executed' alone with it"
        )
    else:
        count = model.flops(level, convention=convention, batch_size=batch_size)
    name = architecture if isinstance(architecture, str) else architecture.title
    title = f"Formulas of {name}, {count.label}; the backward pass is twice the forward"
    backward = _backward(count)
    if backward:
        title += ", but for attention"
    if count.not_covered:
        title += "; the cross part is not covered"
    source = CONVENTIONS[convention].source if convention else None
    return Explanation(title, legend, _matmuls(count, source), backward, _elementwise(count))


def _backward(count: Count) -> tuple[Formula, ...]:
    return tuple(
        Formula(term.part, term.layer, term.term, term.backward, term.source)
        for term in count.terms
        if term.backward != 2 * term.forward
    )


def _matmuls(count: Count, source: str | None) -> tuple[Formula, ...]:
    return tuple(
        Formula(term.part, term.layer, term.term, term.forward, source or term.source)
        for term in count.terms
    )


def _elementwise(count: Count) -> tuple[ElementwiseFormula, ...]:
    if count.elementwise is None:
        return ()
    return tuple(
        ElementwiseFormula(
            row.part,
            row.layer,
            row.term,
            row.elements,
            row.reason,
            row.forward_cost,
            row.backward_cost,
        )
        for row in count.elementwise.terms
    )
