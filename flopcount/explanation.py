"""The formula of every term, evaluated from the real formulas on symbols."""

from __future__ import annotations

import dataclasses
from typing import Any

from flopcount import extras
from flopcount.architectures import Architecture, Decoder, PerceiverAR
from flopcount.conventions import CONVENTIONS
from flopcount.count import Count
from flopcount.sizes import require_choice
from flopcount.tables import table

ARCHITECTURES = ("perceiver-ar", "decoder")
LEGEND = (
    "B sequences, n latents, m prefix positions, k of them kept, d channels, h heads, L layers, "
    "V vocabulary, w widening factor; c = d/h"
)


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
        matmuls: Forward matmul FLOPs, term by term; the backward pass is twice as many.
        elementwise: Elements and per-element costs of each operation; empty for a convention.

    """

    title: str
    matmuls: tuple[Formula, ...]
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
            "legend": LEGEND,
            "matmuls": records(self.matmuls),
            "elementwise": records(self.elementwise),
        }

    def to_latex(self) -> str:
        """The formulas as one LaTeX ``align*`` environment."""
        lines = [rf"\text{{{f.layer}, {f.term} ({f.part})}} &: {f.latex} \\" for f in self.matmuls]
        lines += [
            rf"\text{{{f.layer}, {f.term} ({f.part}), elements of cost {f.forward_cost} forward "
            rf"and {f.backward_cost} backward}} &: {f.latex} \\"
            for f in self.elementwise
        ]
        return "\n".join((r"\begin{align*}", *lines, r"\end{align*}"))

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        blocks = [
            table(
                ["part", "layer", "term", "forward FLOPs", "source"],
                [[f.part, f.layer, f.term, f.text, f.source] for f in self.matmuls],
                title=f"{self.title}\n{LEGEND}",
                width=140,
            )
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


def explain(
    architecture: str = "perceiver-ar", level: str | None = None, convention: str | None = None
) -> Explanation:
    """The formula and the source of every term.

    The counter's own formulas are evaluated on symbols; there is no second copy of them.

    Args:
        architecture: ``"perceiver-ar"`` or ``"decoder"``.
        level: ``"causal"`` (the default) or ``"dense"``.
        convention: Instead of a level, a published convention.

    Raises:
        ImportError: If SymPy is not installed (extra ``symbolic``).
        ValueError: If an argument is unknown.

    >>> {f.term: f.text for f in explain().matmuls if f.layer == "hybrid" and f.part == "cross"}
    {'key': '2*B*d**2*k', 'value': '2*B*d**2*k', 'scores': '2*B*d*k*n', 'values': '2*B*d*k*n'}

    """
    model, batch_size = symbolic_model(architecture)
    count = model.flops(level, convention=convention, batch_size=batch_size)
    title = f"Formulas of {architecture}, {count.label}; the backward pass is twice the forward"
    if count.not_covered:
        title += "; the cross part is not covered"
    source = CONVENTIONS[convention].source if convention else None
    return Explanation(title, _matmuls(count, source), _elementwise(count))


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
