"""A count: the lines that make it up, and what users ask of it."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Iterable
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from before import extras
from before.devices import Device, find_device
from before.rows import Elementwise, Matmul, Parameters, Part, Row
from before.sizes import (
    INT64_MAX,
    Size,
    as_objects,
    exact_ratio,
    is_array,
    is_symbolic,
    quoted,
    require_positive_number,
    require_size,
)
from before.tables import shown, table

if TYPE_CHECKING:
    import pandas as pd

CHECKPOINTING = ("reentrant", "non-reentrant")


class NotCoveredError(ValueError):
    """A convention was asked for a part that it was never defined for."""


def _sum(values: Iterable[Size]) -> Size:
    total: Size = 0
    for value in values:
        total = total + value
    return total


def _product(left: Size, right: Size) -> Size:
    """``left · right``, in Python ints where int64 might not hold it."""
    if is_array(left) or is_array(right):
        magnitudes = [
            int(abs(side).max()) if is_array(side) else abs(side) for side in (left, right)
        ]
        if magnitudes[0] * magnitudes[1] > INT64_MAX:
            left, right = as_objects(left), as_objects(right)
    return left * right


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a count's table.

    Attributes:
        part: ``"self"`` or ``"cross"``.
        layer: The layer.
        term: The term within the layer.
        forward: FLOPs of the forward pass.
        backward_products: Products of the backward pass; 0 in evaluation. All are as large as the
            forward one, but for those that ``matmul.backward_pairs`` lists.
        recompute_products: 1 where checkpointing executes the term again, else 0.
        source: Where the formula stands.
        matmul: The product behind the line; None for a published convention's term.

    """

    part: Part
    layer: str
    term: str
    forward: Size
    backward_products: int
    recompute_products: int
    source: str
    matmul: Matmul | None = None

    @property
    def backward(self) -> Size:
        """FLOPs of the backward pass."""
        if self.matmul is None or self.matmul.backward_pairs is None or not self.backward_products:
            return self.backward_products * self.forward
        return _sum(row.flops for row in self.matmul.backward_rows())

    @property
    def recompute(self) -> Size:
        """FLOPs executed again under activation checkpointing."""
        return self.recompute_products * self.forward

    def rows(self) -> tuple[Row, ...]:
        """The products as executed, one row each; none for a published convention."""
        if self.matmul is None:
            return ()
        backward = self.matmul.backward_rows() if self.backward_products else ()
        recompute = (self.matmul.row("recompute"),) * self.recompute_products
        return (self.matmul.row("forward"), *backward, *recompute)


def recompute_products(row: Matmul | Elementwise, checkpointing: str | None, training: bool) -> int:
    """How often activation checkpointing executes a term again: 0 or 1.

    Re-entrant checkpointing runs each checkpointed layer's forward pass once more. The
    non-re-entrant flavour stops when the last tensor that the backward pass needs is there: just
    before the layer's last product, whose inputs are needed but whose result is not.

    Source: the two implementations in ``torch.utils.checkpoint``.
    """
    if not training or checkpointing is None or not row.checkpointed:
        return 0
    stops_before = row.last_of_layer if isinstance(row, Matmul) else row.after_last_product
    return 0 if stops_before and checkpointing == "non-reentrant" else 1


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ElementwiseCount:
    """Element-wise FLOPs, apart from the matmul total; the optimiser's step is excluded.

    Attributes:
        rows: One per operation, with elements, per-element costs and the reason for them.
        training: Whether the backward pass counts.
        checkpointing: As given to ``flops``.

    """

    rows: tuple[Elementwise, ...]
    training: bool
    checkpointing: str | None

    def _forward(self, row: Elementwise) -> Size:
        return row.forward_cost * row.elements

    def _backward(self, row: Elementwise) -> Size:
        return row.backward_cost * row.elements if self.training else 0 * row.elements

    def _recompute(self, row: Elementwise) -> Size:
        return recompute_products(row, self.checkpointing, self.training) * self._forward(row)

    @functools.cached_property
    def forward(self) -> Size:
        """FLOPs of the forward pass."""
        return _sum(self._forward(row) for row in self.rows)

    @functools.cached_property
    def backward(self) -> Size:
        """FLOPs of the backward pass; 0 in evaluation."""
        return _sum(self._backward(row) for row in self.rows)

    @functools.cached_property
    def recompute(self) -> Size:
        """FLOPs executed again under activation checkpointing."""
        return _sum(self._recompute(row) for row in self.rows)

    @property
    def total(self) -> Size:
        """Forward and backward, without recomputation."""
        return self.forward + self.backward

    @property
    def self_part(self) -> ElementwiseCount:
        """What a decoder-only model would have."""
        return self._part("self")

    @property
    def cross_part(self) -> ElementwiseCount:
        """What the prefix adds."""
        return self._part("cross")

    def _part(self, part: Part) -> ElementwiseCount:
        rows = tuple(row for row in self.rows if row.part == part)
        return dataclasses.replace(self, rows=rows)

    def records(self) -> list[dict[str, Any]]:
        """One dictionary per row."""
        return [
            {
                "part": row.part,
                "layer": row.layer,
                "term": row.term,
                "elements": row.elements,
                "forward": self._forward(row),
                "backward": self._backward(row),
                "recompute": self._recompute(row),
                "reason": row.reason,
            }
            for row in self.rows
        ]

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        columns = ["part", "layer", "term", "elements", "forward", "backward"]
        columns += ["recompute"] if self.checkpointing else []
        records = self.records()
        footer = ["total", None, None, None, self.forward, self.backward, self.recompute]
        return table(
            columns,
            [[record[column] for column in columns] for record in records],
            title="Element-wise FLOPs (not part of the matmul total; optimiser excluded)",
            footer=footer[: len(columns)],
        )


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Count:
    """FLOPs of one step over ``batch_size`` sequences, term by term.

    Attributes:
        model: The model counted.
        label: The level or convention, for titles.
        level: ``"causal"``, ``"dense"`` or ``"executed"``; None for a published convention.
        convention: The published convention's name; None for a level.
        lines: One per term.
        training: Whether the backward pass counts.
        checkpointing: ``None``, ``"reentrant"`` or ``"non-reentrant"``.
        batch_size: B, sequences.
        tokens: Latent tokens of the step: B · n.
        elementwise: Element-wise FLOPs, never part of :attr:`total`; None for a convention, and at
            level ``executed``, which counts products.
        not_covered: Parts that the convention was never defined for.

    """

    model: Any
    level: str | None
    convention: str | None
    lines: tuple[Line, ...]
    training: bool
    checkpointing: str | None
    batch_size: Size
    tokens: Size
    elementwise: ElementwiseCount | None
    not_covered: frozenset[Part] = frozenset()

    @property
    def label(self) -> str:
        """The level or convention by name."""
        return f"level {self.level}" if self.level else f"convention {self.convention}"

    def _check_covered(self) -> None:
        if self.not_covered:
            parts = ", ".join(sorted(self.not_covered))
            covered = "self_part" if "cross" in self.not_covered else "cross_part"
            raise NotCoveredError(
                f"convention = {self.convention!r} does not cover the {parts} part of "
                f"{type(self.model).__name__}: ask for .{covered}, or count at a level"
            )

    @functools.cached_property
    def forward(self) -> Size:
        """FLOPs of the forward pass."""
        self._check_covered()
        return _sum(line.forward for line in self.lines)

    @functools.cached_property
    def backward(self) -> Size:
        """FLOPs of the backward pass; 0 in evaluation."""
        self._check_covered()
        return _sum(line.backward for line in self.lines)

    @functools.cached_property
    def recompute(self) -> Size:
        """FLOPs executed again under activation checkpointing; in HFU, never in :attr:`total`."""
        self._check_covered()
        return _sum(line.recompute for line in self.lines)

    @functools.cached_property
    def total(self) -> Size:
        """Forward and backward FLOPs, without recomputation."""
        return self.forward + self.backward

    @functools.cached_property
    def with_recompute(self) -> Size:
        """:attr:`total` and :attr:`recompute`: the numerator of HFU at this level."""
        return self.total + self.recompute

    @property
    def per_token(self) -> Any:
        """:attr:`total` per latent token, exactly: an int, or a fraction where need be."""
        return exact_ratio(self.total, self.tokens)

    @property
    def per_sequence(self) -> Any:
        """:attr:`total` per sequence, exactly."""
        return exact_ratio(self.total, self.batch_size)

    @property
    def self_part(self) -> Count:
        """What a decoder-only model would have: this count at k = m = 0."""
        return self._part("self")

    @property
    def cross_part(self) -> Count:
        """What the prefix adds: this count minus the self part.

        Its totals raise :class:`NotCoveredError` where a convention says nothing of a prefix.
        """
        return self._part("cross")

    def _part(self, part: Part) -> Count:
        elementwise = self.elementwise and (
            self.elementwise.self_part if part == "self" else self.elementwise.cross_part
        )
        return dataclasses.replace(
            self,
            lines=tuple(line for line in self.lines if line.part == part),
            elementwise=elementwise,
            not_covered=self.not_covered & {part},
        )

    @functools.cached_property
    def rows(self) -> tuple[Row, ...]:
        """Every matrix product as executed; empty for a published convention."""
        return tuple(row for line in self.lines for row in line.rows())

    def for_tokens(self, num_tokens: Any) -> Any:
        """FLOPs of a training run over ``num_tokens`` latent tokens, exactly.

        Args:
            num_tokens: Latent tokens; an integral float such as ``1.3e9`` passes here.

        Raises:
            TypeError: If ``num_tokens`` is not a number.
            ValueError: If it is negative or not integral.

        """
        tokens = require_size("num_tokens", _integral(num_tokens), minimum=0)
        return exact_ratio(_product(self.total, tokens), self.tokens)

    def mfu(
        self,
        seconds: float,
        device: str | Device,
        dtype: str = "bf16",
        num_devices: int = 1,
    ) -> Any:
        """Model FLOPs utilisation: total / (seconds · devices · peak).

        The numerator is the ``causal`` level, or a published convention where that is what is to be
        quoted; recomputation never counts.

        Args:
            seconds: Wall-clock time of the step that this count describes (give ``batch_size``).
            device: A name that ``flopcount devices`` lists, or a :class:`~flopcount.Device`.
            dtype: The peak's dtype.
            num_devices: Devices that shared the step.

        Returns:
            A fraction of the peak; 0.4 is 40 %.

        Raises:
            ValueError: For a count at another level, or for an unknown device or dtype.

        Source: Chowdhery et al. 2022 (arXiv 2204.02311), Appendix B.

        """
        if self.level in ("dense", "executed"):
            raise ValueError(
                f"MFU of a count at level {self.level!r}: expected level='causal' or a convention"
            )
        return self._utilisation(self.total, seconds, device, dtype, num_devices)

    def hfu(
        self,
        seconds: float,
        device: str | Device,
        dtype: str = "bf16",
        num_devices: int = 1,
    ) -> Any:
        """Hardware FLOPs utilisation at this level: like :meth:`mfu`, with recomputation.

        It counts the products that the level counts; what a kernel's tiling adds is in it at level
        ``executed`` alone, see :meth:`Architecture.executed`.
        """
        return self._utilisation(self.with_recompute, seconds, device, dtype, num_devices)

    def _utilisation(
        self, flops: Size, seconds: float, device: str | Device, dtype: str, num_devices: int
    ) -> Any:
        if is_symbolic(flops):
            raise TypeError("utilisation of a symbolic count: substitute numbers first")
        duration = require_positive_number("seconds", seconds)
        peak = find_device(device).peak(dtype).flops_per_second
        peak_flops = duration * peak * require_size("num_devices", num_devices)
        try:
            return flops / peak_flops
        except OverflowError:
            raise ValueError(
                f"total = {quoted(flops)} over {peak_flops} FLOPs at peak: expected a quotient "
                "that a float can hold"
            ) from None

    def records(self) -> list[dict[str, Any]]:
        """One dictionary per term: its names, FLOPs by phase, their total, and the source."""
        return [
            {
                "part": line.part,
                "layer": line.layer,
                "term": line.term,
                "forward": line.forward,
                "backward": line.backward,
                "recompute": line.recompute,
                "total": line.forward + line.backward,
                "source": line.source,
            }
            for line in self.lines
        ]

    def to_frame(self) -> pd.DataFrame:
        """The terms as a pandas frame, one row per term (extra ``fit``).

        Raises:
            ImportError: If pandas is not installed.

        """
        frame: pd.DataFrame = extras.load("pandas", "fit").DataFrame(self.records())
        return frame

    def to_dict(self) -> dict[str, Any]:
        """The count as plain data: totals and terms; a part not covered is ``"not covered"``."""
        return {
            "level": self.level,
            "convention": self.convention,
            "training": self.training,
            "checkpointing": self.checkpointing,
            "batch_size": self.batch_size,
            "tokens": self.tokens,
            **{name: totals_or_not_covered(part) for name, part in self._named_parts()},
            "terms": self.records(),
            "elementwise": None if self.elementwise is None else self.elementwise.records(),
        }

    def _named_parts(self) -> tuple[tuple[str, Count], ...]:
        return ("whole", self), ("self_part", self.self_part), ("cross_part", self.cross_part)

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        columns = ["part", "layer", "term", "forward", "backward"]
        columns += ["recompute"] if self.checkpointing else []
        columns += ["share"]
        whole = _sum(line.forward + line.backward for line in self.lines)
        cells = [
            [record[column] for column in columns[:-1]] + [_share(record["total"], whole)]
            for record in self.records()
        ]
        sums = [_sum(record[column] for record in self.records()) for column in columns[3:-1]]
        kept = "self part only" if self.not_covered else "total"
        lines = [
            f"per sequence {shown(exact_ratio(whole, self.batch_size))}, "
            f"per latent token {shown(exact_ratio(whole, self.tokens))}"
        ]
        if self.not_covered:
            lines.append("cross part: not covered by this convention")
        phase = "forward and backward" if self.training else "forward alone"
        sequences = f"batch of {shown(self.batch_size)}"
        return table(
            columns,
            cells,
            title=f"FLOPs of {type(self.model).__name__}, {self.label}, {phase}, {sequences}",
            footer=[kept, None, None, *sums, _share(whole, whole)],
            note="\n".join(lines),
        )


def totals_or_not_covered(count: Count) -> dict[str, Any] | str:
    """A count's totals as plain data, or ``"not covered"``."""
    if count.not_covered:
        return "not covered"
    return {
        "total": count.total,
        "forward": count.forward,
        "backward": count.backward,
        "recompute": count.recompute,
        "per_token": count.per_token,
    }


def _share(part: Size, whole: Size) -> str:
    if is_symbolic(whole) or is_array(whole) or is_symbolic(part) or not whole:
        return ""
    return f"{float(Fraction(part, whole)):.2%}"


def _integral(value: Any) -> Any:
    """An integral float as an int; anything else as it is, for ``require_size`` to judge."""
    numpy = sys.modules.get("numpy")
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if numpy is None:
        return value
    if isinstance(value, numpy.floating) and float(value).is_integer():
        return int(value)
    if is_array(value) and value.dtype.kind == "f" and value.size:
        if not (numpy.isfinite(value).all() and (value == numpy.floor(value)).all()):
            raise ValueError("num_tokens contains values that are not integral")
        return numpy.array([int(entry) for entry in value.flat], dtype=object).reshape(value.shape)
    return value


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ParameterCount:
    """Parameters, tensor by tensor.

    Attributes:
        model: The model counted.
        rows: One per parameter tensor (of all equal layers).

    """

    model: Any
    rows: tuple[Parameters, ...]

    @functools.cached_property
    def total(self) -> Size:
        """All parameters; tied ones once."""
        return _sum(row.count for row in self.rows)

    @property
    def self_part(self) -> ParameterCount:
        """What the model has at m = 0."""
        return self._where(lambda row: row.part == "self")

    @property
    def cross_part(self) -> ParameterCount:
        """What the prefix adds: its position embedding."""
        return self._where(lambda row: row.part == "cross")

    @property
    def position_embedding(self) -> ParameterCount:
        """The learned absolute positions."""
        return self._where(lambda row: row.layer == "embedding" and row.name != "token")

    def _where(self, condition: Any) -> ParameterCount:
        return dataclasses.replace(self, rows=tuple(row for row in self.rows if condition(row)))

    def records(self) -> list[dict[str, Any]]:
        """One dictionary per tensor."""
        return [vars(row) for row in self.rows]

    def to_frame(self) -> pd.DataFrame:
        """The tensors as a pandas frame (extra ``fit``).

        Raises:
            ImportError: If pandas is not installed.

        """
        frame: pd.DataFrame = extras.load("pandas", "fit").DataFrame(self.records())
        return frame

    def to_dict(self) -> dict[str, Any]:
        """The parameters as plain data."""
        return {
            "total": self.total,
            "self_part": self.self_part.total,
            "cross_part": self.cross_part.total,
            "tensors": self.records(),
        }

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        return table(
            ["part", "layer", "name", "parameters", "share"],
            [[r.part, r.layer, r.name, r.count, _share(r.count, self.total)] for r in self.rows],
            title=f"Parameters of {type(self.model).__name__}",
            footer=["total", None, None, self.total, _share(self.total, self.total)],
        )
