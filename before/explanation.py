"""The formula of every term, evaluated from the real formulas on symbols."""

from __future__ import annotations

import dataclasses
from typing import Any

from before import extras
from before.architectures import Architecture, Decoder, PerceiverAR
from before.conventions import CONVENTIONS
from before.count import Count
from before.executed import Tiling
from before.sizes import quoted, require_choice
from before.tables import table

ARCHITECTURES = ("perceiver-ar", "decoder")
LEGEND = (
    "B sequences, n latents, m prefix positions, k of them kept, d channels, h heads, L layers, "
    "V vocabulary, w widening factor; c = d/h"
)
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
class Explanation:
    """What :func:`explain` returns; ``print`` shows it as tables.

    Attributes:
        title: What was counted, and how.
        legend: What the letters mean.
        matmuls: Forward matmul FLOPs, term by term.
        backward: FLOPs of the backward pass of the terms where it is not twice the forward:
            attention at level ``executed``.
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

        def records(formulas: tuple[Formula, ...]) -> list[dict[str, Any]]:
            return [
                {name: value for name, value in vars(formula).items() if name != "expression"}
                | {"text": formula.text, "latex": formula.latex}
                for formula in formulas
            ]

        return {
            "title": self.title,
            "legend": self.legend,
            "matmuls": records(self.matmuls),
            "backward": records(self.backward),
            "elementwise": records(self.elementwise),
        }

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

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        tables = [("forward FLOPs", self.matmuls, f"{self.title}\n{self.legend}")]
        if self.backward:
            title = "The backward pass, where it is not twice the forward"
            tables.append(("backward FLOPs", self.backward, title))
        blocks = [
            table(
                ["part", "layer", "term", heading, "source"],
                [[f.part, f.layer, f.term, f.text, f.source] for f in formulas],
                title=title,
                width=140,
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
                table(
                    ["part", "layer", "term", "elements", "forward", "backward"],
                    rows,
                    title="Element-wise work (not part of the matmul total): FLOPs per element",
                    width=140,
                ),
                table(["term", "what the cost per element is"], reasons.values(), width=140),
            ]
        return "\n\n".join(blocks)


def symbolic_model(architecture: str) -> tuple[Architecture, Any]:
    """The architecture with every size a symbol, and the symbol of the batch size.

    Args:
        architecture: ``"perceiver-ar"`` or ``"decoder"``.

    Raises:
        ImportError: If SymPy is not installed (extra ``symbolic``).
        ValueError: If the architecture is unknown.

    """
    require_choice("architecture", architecture, ARCHITECTURES)
    sympy = extras.load("sympy", "symbolic")
    B, n, m, k, d, h, L, V, w = sympy.symbols("B n m k d h L V w", integer=True, positive=True)
    if architecture == "decoder":
        decoder = Decoder(
            vocab_size=V, seq_len=n, num_channels=d, num_layers=L, num_heads=h, widening_factor=w
        )
        return decoder, B
    perceiver = PerceiverAR(
        vocab_size=V,
        num_latents=n,
        num_prefix=m,
        num_channels=d,
        num_layers=L,
        num_heads=h,
        num_kept=k,
        widening_factor=w,
    )
    return perceiver, B


def symbolic_tiling() -> Tiling:
    """A tiling with every tile size a symbol: what owns a block is a multiple of what it visits.

    Keys and values share a loop, as where the head dim leaves room for both.

    Raises:
        ImportError: If SymPy is not installed (extra ``symbolic``).

    """
    sympy = extras.load("sympy", "symbolic")
    a_f, J_f, b, M_kv, a_q, J_q = sympy.symbols(
        "a_f J_f b M_kv a_q J_q", integer=True, positive=True
    )
    return Tiling(forward=(a_f * J_f, J_f), key_value=(M_kv, b * M_kv), query=(a_q * J_q, J_q))


def explain(
    architecture: str = "perceiver-ar",
    level: str | None = None,
    convention: str | None = None,
    tiling: Tiling | None = None,
) -> Explanation:
    """The formula and the source of every term.

    The counter's own formulas are evaluated on symbols; there is no second copy of them.

    Args:
        architecture: ``"perceiver-ar"`` or ``"decoder"``.
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
    model, batch_size = symbolic_model(architecture)
    legend = LEGEND
    if level == "executed" and convention is None:
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
    title = f"Formulas of {architecture}, {count.label}; the backward pass is twice the forward"
    backward = _backward(count)
    if backward:
        title += ", but for attention"
    if count.not_covered:
        title += "; the cross part is not covered"
    source = CONVENTIONS[convention].source if convention else None
    return Explanation(title, legend, _matmuls(count, source), backward, _elementwise(count))


def _backward(count: Count) -> tuple[Formula, ...]:
    return tuple(
        Formula(line.part, line.layer, line.term, line.backward, line.source)
        for line in count.lines
        if line.backward != 2 * line.forward
    )


def _matmuls(count: Count, source: str | None) -> tuple[Formula, ...]:
    return tuple(
        Formula(line.part, line.layer, line.term, line.forward, source or line.source)
        for line in count.lines
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
        for row in count.elementwise.rows
    )
