"""Rows: what every formula produces and every witness reports."""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

from before.sizes import Size

Part = Literal["self", "cross"]
Phase = Literal["forward", "backward", "recompute"]


@dataclasses.dataclass(frozen=True)
class Row:
    """One matrix product as it is executed, ``batch`` times: FLOPs = 2 · batch · M · N · K.

    Attributes:
        part: ``"self"`` (what a decoder-only model would have) or ``"cross"`` (what a prefix adds).
        layer: The layer, for example ``"hybrid"``.
        term: The product's name within the layer, for example ``"scores"``.
        batch: How many such products there are: sequences, times heads, times layers.
        M: Rows of the product; queries, for attention.
        N: Columns of the product; keys, for attention.
        K: The depth; the head dim, for attention, whichever size is contracted.
        phase: ``"forward"``, ``"backward"`` (one row per operand's gradient) or ``"recompute"``.
        pairs: The query-key pairs that count, which replace M · N; None where all do. At level
            ``executed``, what the visited tiles cover.

    """

    part: Part
    layer: str
    term: str
    batch: Size
    M: Size
    N: Size
    K: Size
    phase: Phase
    pairs: Size | None = None

    @functools.cached_property
    def flops(self) -> Size:
        """2 · batch · pairs · K, with pairs = M · N unless a mask admits fewer."""
        pairs = self.M * self.N if self.pairs is None else self.pairs
        return 2 * self.batch * self.K * pairs


@dataclasses.dataclass(frozen=True)
class Matmul:
    """One matrix product of the forward pass and what follows from it in the other phases.

    The backward pass multiplies twice, once for each operand's gradient, and each of these products
    has the three sizes of the forward one with the roles exchanged, so its FLOPs are equal. Under
    activation checkpointing the forward product is executed again, unless it is the last of its
    layer and recomputation stops early.

    Attributes:
        part: As in :class:`Row`.
        layer: As in :class:`Row`.
        term: As in :class:`Row`.
        batch: As in :class:`Row`.
        M: As in :class:`Row`.
        N: As in :class:`Row`.
        K: As in :class:`Row`.
        source: Where the formula stands, or "derived here" with the reason.
        pairs: As in :class:`Row`.
        checkpointed: Whether the product lies in a layer that checkpointing recomputes.
        last_of_layer: Whether it is the last product of such a layer.
        backward_pairs: The pairs of each product of the backward pass, where these are not the two
            of a plain backward pass: fused kernels visit other tiles, and multiply again.

    """

    part: Part
    layer: str
    term: str
    batch: Size
    M: Size
    N: Size
    K: Size
    source: str
    pairs: Size | None = None
    checkpointed: bool = True
    last_of_layer: bool = False
    backward_pairs: tuple[Size, ...] | None = None

    def row(self, phase: Phase) -> Row:
        """This product as a row of ``phase``."""
        return Row(
            self.part, self.layer, self.term, self.batch, self.M, self.N, self.K, phase, self.pairs
        )

    def backward_rows(self) -> tuple[Row, ...]:
        """The products of the backward pass."""
        row = self.row("backward")
        if self.backward_pairs is None:
            return (row, row)
        return tuple(dataclasses.replace(row, pairs=pairs) for pairs in self.backward_pairs)

    @functools.cached_property
    def flops(self) -> Size:
        """FLOPs of the product executed once."""
        return self.row("forward").flops


@dataclasses.dataclass(frozen=True)
class Elementwise:
    """One element-wise operation: FLOPs = elements · cost.

    Attributes:
        part: As in :class:`Row`.
        layer: As in :class:`Row`.
        term: As in :class:`Row`.
        elements: How many elements it acts on.
        forward_cost: FLOPs per element in the forward pass.
        backward_cost: FLOPs per element in the backward pass.
        reason: The operations that make up the costs.
        checkpointed: Whether it lies in a layer that checkpointing recomputes.
        after_last_product: Whether it follows the last product of such a layer.

    """

    part: Part
    layer: str
    term: str
    elements: Size
    forward_cost: int
    backward_cost: int
    reason: str
    checkpointed: bool = True
    after_last_product: bool = False


@dataclasses.dataclass(frozen=True)
class Parameters:
    """One parameter tensor, ``layers`` times.

    Attributes:
        part: As in :class:`Row`.
        layer: As in :class:`Row`.
        name: The parameter's name within the layer.
        count: Scalars, all layers together.

    """

    part: Part
    layer: str
    name: str
    count: Size
