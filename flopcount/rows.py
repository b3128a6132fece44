"""Rows: what operations consist of, and what every witness reports.

A :class:`Product`, a :class:`Work`, a :class:`Tensor` or a :class:`Cached` says what a network does
or holds, once, and knows no level: how many of a product's query-key pairs count is asked of its
mask. A :class:`Row` is one matrix product as it is executed at a level, and what witnesses report.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

from flopcount.masks import Mask
from flopcount.sizes import Size

Part = Literal["self", "cross"]
Phase = Literal["forward", "backward", "recompute"]
Saved = Literal["input", "output"]
CHECKPOINTING = ("reentrant", "non-reentrant")
WeightName = tuple[str, str]
"""Layer and name of a :class:`Tensor`; of a bias that it holds, its name and " bias"."""

Operand = str | WeightName
"""A value by the name that rows give it, or a parameter tensor."""


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
        if self.pairs is None:  # all in one, so that NumPy multiplies in place
            return 2 * self.batch * self.K * self.M * self.N
        return 2 * self.batch * self.K * self.pairs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """What a product and element-wise work have in common: their place in a pass.

    Attributes:
        part: As in :class:`Row`.
        layer: As in :class:`Row`.
        term: As in :class:`Row`.
        saved: What the backward pass needs of it: its ``"input"``; its ``"output"`` (or what is
            computed with it, such as a norm's statistics); None if neither.
        recomputed_by: The flavours of activation checkpointing that execute it again.
        reads: The values that it is computed from, one for each operand; ``"x"`` is what a block
            reads and leaves.
        writes: The value that it computes; None where it is of the backward pass alone.

    """

    part: Part
    layer: str
    term: str
    saved: Saved | None = None
    recomputed_by: tuple[str, ...] = ()
    reads: tuple[str, ...] = ("x",)
    writes: str | None = "x"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Product(Step):
    """One matrix product of the forward pass, ``times`` times: M × K by K × N.

    The backward pass multiplies once for each operand whose gradient is taken, and each of these
    products has the three sizes of the forward one with the roles exchanged: equal FLOPs.

    Attributes:
        times: As ``batch`` in :class:`Row`.
        M: As in :class:`Row`.
        N: As in :class:`Row`.
        K: As in :class:`Row`.
        source: Where the formula stands, or "derived here" with the reason.
        mask: Of attention: which of the M · N query-key pairs it admits; None for other products.
        weight: Layer and name of the :class:`Tensor` that it multiplies by; None for attention.
        gradients: Operands whose gradient the backward pass takes.
        kernel: Of attention: the values whose gradients a fused kernel computes together.
        fused_backward: Whether it computes them.

    """

    times: Size
    M: Size
    N: Size
    K: Size
    source: str
    mask: Mask | None = None
    weight: WeightName | None = None
    gradients: int = 2
    kernel: tuple[str, ...] = ()
    fused_backward: bool = True
    saved: Saved | None = "input"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work(Step):
    """Element-wise work: FLOPs = elements · cost.

    Attributes:
        factors: Their product is the number of elements; with a mask, the last two are queries and
            keys, and the pairs that count replace their product.
        forward_cost: FLOPs per element in the forward pass.
        backward_cost: FLOPs per element in the backward pass.
        reason: The operations that make up the costs.
        mask: Of work on attention's scores.
        backward_parts: What ``backward_cost`` consists of: each part with the operands of which one
            at least must need a gradient; a single part of all that is read unless given.

    """

    factors: tuple[Size, ...]
    forward_cost: int
    backward_cost: int
    reason: str
    mask: Mask | None = None
    backward_parts: tuple[tuple[int, tuple[Operand, ...]], ...] | None = None


@dataclasses.dataclass(frozen=True)
class Value:
    """A value that is made of others without arithmetic, such as by keeping or joining them.

    Attributes:
        reads: The others.
        writes: Its name.
        weights: Parameter tensors that it is looked up in.
    """

    reads: tuple[str, ...]
    writes: str
    weights: tuple[WeightName, ...] = ()


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A parameter tensor (with its bias, where one belongs to it), in every layer that has it.

    Attributes:
        part: As in :class:`Row`.
        layer: As in :class:`Row`.
        name: The tensor's name within the layer.
        factors: Their product is the number of scalars.
        used: The same of the scalars that one token uses, where it does not use all: experts.
        is_buffer: Whether it is no parameter: nothing trains it by gradients.
        bias: The factors of the bias among its scalars, if there is one.
        trained: How many of its scalars fine-tuning trains; None where nothing is asked of it.

    """

    part: Part
    layer: str
    name: str
    factors: tuple[Size, ...]
    used: tuple[Size, ...] | None = None
    is_buffer: bool = False
    bias: tuple[Size, ...] | None = None
    trained: Size | None = None

    @functools.cached_property
    def count(self) -> Size:
        """Scalars, all layers together."""
        return math.prod(self.factors)

    @functools.cached_property
    def active(self) -> Size:
        """Scalars that one token uses, all layers together."""
        return self.count if self.used is None else math.prod(self.used)

    def record(self) -> dict[str, Any]:
        """The tensor as plain data."""
        return {
            "part": self.part,
            "layer": self.layer,
            "name": self.name,
            "count": self.count,
            "active": self.active,
            **({} if self.trained is None else {"trained": self.trained}),
        }


@dataclasses.dataclass(frozen=True)
class Cached:
    """What is kept for later passes: keys, values, latents, a state.

    Attributes:
        part: As in :class:`Row`.
        layer: As in :class:`Row`.
        name: What it is.
        factors: Their product is the number of elements, of all sequences and equal layers.

    """

    part: Part
    layer: str
    name: str
    factors: tuple[Size, ...]

    @functools.cached_property
    def elements(self) -> Size:
        """Elements, all sequences and layers together."""
        return math.prod(self.factors)

    def record(self) -> dict[str, Any]:
        """It as plain data."""
        return {
            "part": self.part,
            "layer": self.layer,
            "name": self.name,
            "elements": self.elements,
        }


AnyRow = Product | Work | Tensor | Cached | Value


def on(value: str, rows: Iterable[AnyRow]) -> Iterator[AnyRow]:
    """Rows that read and write ``value`` in place of ``"x"``.

    >>> (row,) = on("query", [Value(("x", "other"), "x")])
    >>> row.reads, row.writes
    (('query', 'other'), 'query')
    """
    yield from with_values(rows, lambda name: value if name == "x" else name)


def with_values(
    rows: Iterable[AnyRow],
    named: Callable[[str], str],
    weight: Callable[[WeightName], WeightName] = lambda weight: weight,
) -> Iterator[AnyRow]:
    """Rows whose values have other names, and the weights in parts of their costs.

    Args:
        rows: The rows.
        named: The new name of a value.
        weight: The new name of a weight.
    """
    for row in rows:
        if isinstance(row, Tensor | Cached):
            yield row
            continue
        changes: dict[str, Any] = {"reads": tuple(map(named, row.reads))}
        if row.writes is not None:
            changes["writes"] = named(row.writes)
        if isinstance(row, Product):
            changes["kernel"] = tuple(map(named, row.kernel))
        elif isinstance(row, Value):
            changes["weights"] = tuple(map(weight, row.weights))
        elif row.backward_parts is not None:
            changes["backward_parts"] = tuple(
                (cost, tuple(named(o) if isinstance(o, str) else weight(o) for o in operands))
                for cost, operands in row.backward_parts
            )
        yield dataclasses.replace(row, **changes)
