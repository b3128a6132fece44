"""Operations: each yields its products, its element-wise work and its parameter tensors.

Letters: B sequences, n positions, d channels, h heads, c channels of a head. A multiply-add is 2
FLOPs.

No publication settles what an element-wise operation costs, so the convention is stated here: one
FLOP for every addition, subtraction, multiplication, division, comparison (in a maximum),
exponential or error function that acts once per element. Work that is done once per row (the square
root of a norm, the logarithm of a softmax) or that moves data without arithmetic (gather,
concatenation, masking, dropout's random numbers) is not counted; neither is the optimiser's step.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

from flopcount.masks import Mask
from flopcount.rows import AnyRow, Part, Product, Saved, Tensor, Work
from flopcount.sizes import Size

KAPLAN_TABLE_1 = "Kaplan et al. 2020 (arXiv 2001.08361), Table 1"


@dataclasses.dataclass(frozen=True)
class Pass:
    """What one pass of a network, or of a part of it, works on.

    Attributes:
        batch: B, sequences.
        length: n, positions of each.
        cached: Earlier positions, whose keys and values are there already.
        training: Whether a loss and a backward pass follow.
        part: ``"self"`` or ``"cross"``.
        layer: The layer that rows are named after.
        layers: How many equal layers do the same.

    """

    batch: Size
    length: Size
    cached: Size = 0
    training: bool = True
    part: Part = "self"
    layer: str = ""
    layers: Size = 1

    @functools.cached_property
    def times(self) -> Size:
        """Sequences, times equal layers."""
        return self.layers * self.batch

    def at(self, **changes: Any) -> Pass:
        """This pass at another layer, part or length."""
        return dataclasses.replace(self, **changes)


def work(
    at: Pass,
    term: str,
    channels: Size,
    forward_cost: int,
    backward_cost: int,
    reason: str,
    saved: Saved | None = None,
) -> Iterator[AnyRow]:
    """Element-wise work on ``channels`` channels of every position: B·n·channels elements."""
    yield Work(
        part=at.part,
        layer=at.layer,
        term=term,
        factors=(at.times, at.length, channels),
        forward_cost=forward_cost,
        backward_cost=backward_cost,
        reason=reason,
        saved=saved,
    )


def linear(
    at: Pass,
    term: str,
    inputs: Size,
    outputs: Size,
    *,
    bias: bool = False,
    weight: tuple[str, str] | None = None,
    source: str = KAPLAN_TABLE_1,
) -> Iterator[AnyRow]:
    """A linear layer over positions: 2·B·n·inputs·outputs FLOPs, (inputs + bias)·outputs scalars.

    Args:
        at: The pass.
        term: The product's name and the tensor's.
        inputs: Channels read.
        outputs: Channels written.
        bias: Whether there is one; its work is a row of its own.
        weight: Layer and name of the tensor, where another row has it.
        source: Where the formula stands.

    Source: Kaplan et al. 2020, Table 1.
    """
    yield Product(
        part=at.part,
        layer=at.layer,
        term=term,
        times=at.times,
        M=at.length,
        N=outputs,
        K=inputs,
        source=source,
        weight=weight or (at.layer, term),
    )
    if weight is None:
        rows = inputs + 1 if bias else inputs
        yield Tensor("self", at.layer, term, (at.layers, rows, outputs))
    elif bias:
        yield Tensor("self", at.layer, f"{term} bias", (at.layers, outputs))
    if bias:
        reason = "forward: one addition per output; backward: the sum over positions"
        yield from work(at, f"{term} bias", outputs, 1, 1, reason)


def norm(
    at: Pass,
    term: str,
    channels: Size,
    *,
    bias: bool,
    rms: bool,
    scale: bool = True,
    heads: Size = 1,
) -> Iterator[AnyRow]:
    """A norm over channels, with a scale γ and, with ``bias``, a shift β per channel.

    LayerNorm y = (x - μ)·r·γ + β with r = 1/√(σ² + ε), or RMSNorm y = x·r·γ + β with
    r = 1/√(mean(x²) + ε); of each of ``heads`` heads, which share γ and β.

    Source: Ba et al. 2016 (arXiv 1607.06450); Zhang and Sennrich 2019 (arXiv 1910.07467).
    """
    if rms:
        costs = 3, 6
        reason = (
            "forward: square, sum, times r, times γ if any; backward: x̂ again, dγ (2) and "
            "g = dy·γ if any, sum of g·x̂ (2), r·(g - x̂·mean) (3)"
        )
    else:
        costs = 5, 9
        reason = (
            "forward: sum for μ, subtract, square, sum for σ², times r, times γ if any, plus β if "
            "any; backward: x̂ again (2), dγ (2) and g = dy·γ (1) if any, dβ if any (1), sums of g "
            "and g·x̂ (3), r·(g - mean - x̂·mean) (4)"
        )
    forward, backward = costs
    forward, backward = forward + scale + bias, backward + 3 * scale + bias
    yield from work(at, term, heads * channels, forward, backward, reason, "output")
    if scale or bias:
        yield Tensor("self", at.layer, term, (at.layers, scale + bias, channels))


@dataclasses.dataclass(frozen=True)
class ScoreWork:
    """Element-wise work on every score, between the two products of attention.

    Attributes:
        term: Its name within the layer.
        forward_cost: FLOPs per score, forward.
        backward_cost: FLOPs per score, backward.
        reason: The operations that make up the costs.
        saved: As in :class:`flopcount.rows.Step`.
    """

    term: str
    forward_cost: int
    backward_cost: int
    reason: str
    saved: Saved | None = None


SOFTMAX = ScoreWork(
    "softmax",
    5,
    4,
    "forward: maximum, subtract, exponential, sum, divide; "
    "backward: P·dP, its sum, subtract, times P",
    "output",
)


def attend(
    at: Pass,
    heads: Size,
    keys: Size,
    key_dim: Size,
    value_dim: Size,
    mask: Mask,
    before_softmax: tuple[ScoreWork, ...] = (),
) -> Iterator[AnyRow]:
    """Let n queries attend to ``keys`` keys: 2·B·h·pairs FLOPs per channel of a key and a value.

    The pairs are those that the mask admits, at level ``causal``; the softmax, and what scores pass
    before it, works on as many.

    Source: Hoffmann et al. 2022 (arXiv 2203.15556), Appendix F, for both products; the admitted
    pairs are derived with each mask.
    """
    place: dict[str, Any] = dict(part=at.part, layer=at.layer, mask=mask)
    times = at.times * heads
    product: dict[str, Any] = dict(times=times, M=at.length, N=keys, source=mask.source)
    yield Product(term="scores", K=key_dim, **product, **place)
    for each in (*before_softmax, SOFTMAX):
        yield Work(factors=(times, at.length, keys), **vars(each), **place)
    yield Product(term="values", K=value_dim, **product, **place)


def shared_input(at: Pass, term: str, channels: Size, additions: int) -> Iterator[AnyRow]:
    """Gradients of an input that ``additions`` + 1 projections read are added."""
    reason = "backward: one addition for each projection beyond the first that reads the input"
    yield from work(at, term, channels, 0, additions, reason)


def cross_entropy(at: Pass, vocab_size: Size) -> Iterator[AnyRow]:
    """The loss of one prediction per position: the logarithm of a softmax over V logits."""
    reason = (
        "forward: maximum, subtract, exponential, sum, subtract the logarithm; "
        "backward: sum of the gradient, exponential, multiply, subtract"
    )
    yield from work(at, "cross-entropy", vocab_size, 5, 4, reason)
