"""Every way to count, side by side."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any

from flopcount.architectures import Architecture
from flopcount.conventions import CONVENTIONS
from flopcount.count import Count
from flopcount.sizes import Size, is_array, is_symbolic, quoted
from flopcount.tables import shown, table

NOT_COVERED = "not covered"


@dataclasses.dataclass(frozen=True, eq=False)
class Compared:
    """One way to count, against the proven count.

    Attributes:
        name: The level or convention.
        source: Where it stands.
        self_part: FLOPs per latent token of the self part.
        cross_part: FLOPs per latent token of the cross part, or ``"not covered"``.
        total: Their sum, or ``"not covered"``.
        ratio: ``total`` over the causal total; over the causal self part where the cross part is
            not covered.
        self_ratio: ``self_part`` over the causal self part.
        leaves_out: What it does not count of the causal count.
        adds: What it counts beyond the causal count.

    """

    name: str
    source: str
    self_part: Size
    cross_part: Size | str
    total: Size | str
    ratio: Any
    self_ratio: Any
    leaves_out: str
    adds: str


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """What :func:`compare` returns; ``print`` shows it as a table.

    Attributes:
        model: The model counted.
        rows: The causal and dense levels, then every published convention.

    """

    model: Any
    rows: tuple[Compared, ...]

    def to_dict(self) -> dict[str, Any]:
        """The comparison as plain data."""
        return {"rows": [vars(row) for row in self.rows]}

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        cells = [
            [
                row.name,
                row.self_part,
                shown(row.cross_part),
                shown(row.total),
                _percent(row.self_ratio),
                NOT_COVERED if isinstance(row.total, str) else _percent(row.ratio),
            ]
            for row in self.rows
        ]
        reasons = [[row.name, row.leaves_out, row.adds] for row in self.rows]
        return "\n\n".join(
            (
                table(
                    ["counted as", "self part", "cross part", "total", "self ratio", "total ratio"],
                    cells,
                    title=f"FLOPs of {type(self.model).__name__} per latent token, with ratios to "
                    "the causal count",
                ),
                table(["counted as", "leaves out", "adds"], reasons),
            )
        )


def _percent(ratio: Any) -> str:
    if is_array(ratio):
        return f"{float(ratio.min()):.2%} … {float(ratio.max()):.2%}"
    return str(ratio) if is_symbolic(ratio) else f"{float(ratio):.2%}"


def _ratio(numerator: Any, denominator: Any) -> Any:
    if is_symbolic(numerator) or is_symbolic(denominator):
        return numerator / denominator
    if is_array(numerator) or is_array(denominator):
        return numerator / denominator
    return float(Fraction(numerator) / Fraction(denominator))


def compare(model: Architecture, *, training: bool = True) -> Comparison:
    """Count ``model`` in every known way.

    Args:
        model: A :class:`~flopcount.PerceiverAR` or :class:`~flopcount.Decoder`.
        training: Forward and backward, or forward alone.

    Returns:
        A :class:`Comparison`: per latent token, the self part, the cross part and the total of
        each level and convention, ratios to the causal count, and what each leaves out or adds.

    Raises:
        TypeError: If ``model`` is not one of the two architectures.

    >>> import flopcount as fc
    >>> gpt2 = fc.Decoder(vocab_size=50257, seq_len=1024, num_channels=768, num_layers=12,
    ...                   num_heads=12)
    >>> {row.name: round(row.ratio, 3) for row in fc.compare(gpt2).rows}["6n"]
    0.936

    """
    if not isinstance(model, Architecture):
        raise TypeError(
            f"model = {quoted(model)}: expected a flopcount.PerceiverAR or flopcount.Decoder"
        )
    proven = model.flops(training=training)
    descriptions = [
        (proven, "causal", "derived here", "nothing: the proven count", "nothing"),
        (
            model.flops(level="dense", training=training),
            "dense",
            "derived here",
            "nothing",
            "the masked half of both attention products",
        ),
    ]
    for convention in CONVENTIONS.values():
        count = model.flops(convention=convention.name, training=training)
        descriptions.append(
            (count, convention.name, convention.source, convention.leaves_out, convention.adds)
        )
    return Comparison(model, tuple(_compared(proven, *entry) for entry in descriptions))


def _compared(
    proven: Count, count: Count, name: str, source: str, leaves_out: str, adds: str
) -> Compared:
    self_part = count.self_part.per_token
    self_ratio = _ratio(self_part, proven.self_part.per_token)
    if count.not_covered:
        return Compared(
            name,
            source,
            self_part,
            NOT_COVERED,
            NOT_COVERED,
            self_ratio,
            self_ratio,
            leaves_out,
            adds,
        )
    cross_part, total = count.cross_part.per_token, count.per_token
    ratio = _ratio(total, proven.per_token)
    return Compared(name, source, self_part, cross_part, total, ratio, self_ratio, leaves_out, adds)
