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

from flopcount.masks import InPasses, Mask, Packed
from flopcount.rows import AnyRow, Cached, Operand, Part, Product, Saved, Tensor, Value, Work
from flopcount.sizes import Size, ceil_divide

MLA = {
    "expanded": "keys and values are cached, expanded from the latents once",
    "latent": "latents are cached, and expanded for all cached positions in every pass",
    "absorbed": "latents are cached, and the expansion is multiplied to queries and outputs",
}
"""Forms of latent attention behind a cache."""

Parts = tuple[tuple[int, tuple[Operand, ...]], ...]
"""As ``backward_parts`` of :class:`flopcount.rows.Work`."""

KAPLAN_TABLE_1 = "Kaplan et al. 2020 (arXiv 2001.08361), Table 1"


@dataclasses.dataclass(frozen=True)
class Pass:
    """What one pass of a network, or of a part of it, works on.

    Attributes:
        batch: B, sequences.
        length: n, positions of each.
        cached: Earlier positions, whose keys and values are there already.
        memory: Positions attended to beside these: those of a prefix.
        logits: Last positions of which logits are computed; None for all.
        chunk: Positions of each of the passes that n are read in; None for one pass.
        inference: ``"prefill"`` reads a prompt, ``"decode"`` follows one; None for a pass over
            whole sequences.
        mla: How latent attention uses its latents: a key of :data:`MLA`.
        documents: Of packed sequences: lengths of the batch's documents, each with how many have
            it; None where every sequence is one document.
        training: Whether a loss and a backward pass follow.
        tuning: What is trained, where not everything is: a
            :class:`flopcount.finetuning.FineTuning`.
        part: ``"self"`` or ``"cross"``.
        layer: The layer that rows are named after.
        layers: How many equal layers do the same.

    """

    batch: Size
    length: Size
    cached: Size = 0
    memory: Size = 0
    logits: Size | None = None
    chunk: Size | None = None
    inference: str | None = None
    mla: str = "expanded"
    documents: tuple[tuple[Size, Size], ...] | None = None
    training: bool = True
    tuning: Any = None
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

    @property
    def passes(self) -> Size:
        """⌈n/A⌉ passes of a chunk of A positions; one without."""
        return 1 if self.chunk is None else ceil_divide(self.length, self.chunk)

    def masked(self, mask: Mask) -> Mask:
        """A mask as this pass asks it."""
        return mask if self.chunk is None else InPasses(mask, self.chunk)


def work(
    at: Pass,
    term: str,
    channels: Size,
    forward_cost: int,
    backward_cost: int,
    reason: str,
    saved: Saved | None = None,
    *,
    reads: tuple[str, ...] = ("x",),
    writes: str | None = "x",
    parts: Parts | None = None,
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
        reads=reads,
        writes=writes,
        backward_parts=parts,
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
    reads: str = "x",
    writes: str = "x",
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
        reads: The value read.
        writes: The value computed.

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
        reads=(reads,),
        writes=writes,
    )
    of_bias = (at.layers, outputs)
    if weight is None:
        rows = inputs + 1 if bias else inputs
        whole = at.layers, rows, outputs
        yield Tensor("self", at.layer, term, whole, bias=of_bias if bias else None)
    elif bias:
        yield Tensor("self", at.layer, f"{term} bias", of_bias)
    if bias:
        yield from bias_work(at, f"{term} bias", outputs, writes)


def bias_work(at: Pass, term: str, channels: Size, value: str = "x") -> Iterator[AnyRow]:
    """A bias, which is a parameter of its own name, is added to a value."""
    reason = "forward: one addition per output; backward: the sum over positions"
    parts: Parts = ((1, ((at.layer, term),)),)
    yield from work(at, term, channels, 1, 1, reason, reads=(value,), writes=value, parts=parts)


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
    again = 1 if rms else 2
    of_scale, of_bias = (at.layer, term), (at.layer, f"{term} bias")
    parts: Parts = ((again, ("x", *[of_scale] * scale)), (costs[1] - again, ("x",)))
    if scale:
        parts += (1, ("x",)), (2, (of_scale,))
    if bias:
        parts += ((1, (of_bias,)),)
    yield from work(at, term, heads * channels, forward, backward, reason, "output", parts=parts)
    if scale or bias:
        whole = at.layers, scale + bias, channels
        own_bias = (at.layers, channels) if bias else None
        yield Tensor("self", at.layer, term, whole, bias=own_bias)


@dataclasses.dataclass(frozen=True)
class ScoreWork:
    """Element-wise work on every score, between the two products of attention.

    Attributes:
        term: Its name within the layer.
        forward_cost: FLOPs per score, forward.
        backward_cost: FLOPs per score, backward.
        reason: The operations that make up the costs.
        saved: As in :class:`flopcount.rows.Step`.
        other: A value that it reads beside the scores, whose gradient is all that it costs
            backward.
    """

    term: str
    forward_cost: int
    backward_cost: int
    reason: str
    saved: Saved | None = None
    other: str | None = None


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
    *,
    key: tuple[str, ...] = ("key",),
    value: tuple[str, ...] = ("value",),
    sinks: bool = False,
) -> Iterator[AnyRow]:
    """Let n queries attend to ``keys`` keys: 2·B·h·pairs FLOPs per channel of a key and a value.

    The pairs are those that the mask admits, at level ``causal``; the softmax, and what scores pass
    before it, works on as many.

    Source: Hoffmann et al. 2022 (arXiv 2203.15556), Appendix F, for both products; the admitted
    pairs are derived with each mask.
    """
    yield Value(key, "keys")
    yield Value(value, "values")
    if at.documents is None:
        mask, times = at.masked(mask), at.times * heads
    else:
        mask, times = Packed(mask, at.documents, at.batch), at.layers * heads
    place: dict[str, Any] = dict(part=at.part, layer=at.layer, mask=mask)
    product: dict[str, Any] = dict(
        times=times, M=at.length, N=keys, source=mask.source, kernel=("query", "keys", "values")
    )
    yield Product(
        term="scores", K=key_dim, reads=("query", "keys"), writes="scores", **product, **place
    )
    for each in (*before_softmax, SOFTMAX):
        parts: Parts | None = None
        if each.other is not None:
            parts = ((each.backward_cost, (each.other,)),)
        elif each is SOFTMAX and sinks:
            parts = ((each.backward_cost, ("scores", (at.layer, "sinks"))),)
        yield Work(
            term=each.term,
            factors=(times, at.length, keys),
            forward_cost=each.forward_cost,
            backward_cost=each.backward_cost,
            reason=each.reason,
            saved=each.saved,
            reads=("scores",) if each.other is None else ("scores", each.other),
            writes="scores",
            backward_parts=parts,
            **place,
        )
    yield Product(term="values", K=value_dim, reads=("scores", "values"), **product, **place)


def cache(at: Pass, name: str, positions: Size, channels: Size) -> Iterator[AnyRow]:
    """What inference leaves to later passes: ``channels`` elements of each of ``positions``."""
    if at.inference is not None:
        yield Cached(at.part, at.layer, name, (at.times, positions, channels))


def shared_input(
    at: Pass, term: str, channels: Size, additions: int, value: str = "x"
) -> Iterator[AnyRow]:
    """Gradients of an input that ``additions`` + 1 projections read are added."""
    reason = "backward: one addition for each projection beyond the first that reads the input"
    yield from work(at, term, channels, 0, additions, reason, reads=(value,), writes=None)


def cross_entropy(at: Pass, vocab_size: Size) -> Iterator[AnyRow]:
    """The loss of one prediction per position: the logarithm of a softmax over V logits."""
    reason = (
        "forward: maximum, subtract, exponential, sum, subtract the logarithm; "
        "backward: sum of the gradient, exponential, multiply, subtract"
    )
    yield from work(at, "cross-entropy", vocab_size, 5, 4, reason)
