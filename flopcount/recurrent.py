"""Linear attention and state spaces: blocks that keep a state of fixed size, and no keys.

A scan multiplies differently at the two levels, and each of its products says both:

- ``causal`` is the recurrence: the products of one step of one head, times the positions, so that
  reading a prompt and then decoding adds up to one pass over both;
- ``dense`` is what ``transformers`` executes: whole chunks, padding included, within which
  positions meet as in attention. Behind a cache a single position is a step, as in the recurrence.

Convolutions over positions are depthwise, hence element-wise work, like the decays and the gates;
the work on a scan is the recurrence's at either level. Our fused kernels run no scan, so level
``executed`` refuses one.

Letters: n positions, d channels, h heads, C positions of a chunk; others with each block.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from flopcount.blocks import ACTIVATIONS, Activation, gate_product
from flopcount.masks import Mask, Owner
from flopcount.operations import Parts, Pass, bias_work, cache, linear, norm, shared_input, work
from flopcount.rows import AnyRow, Product, Saved, Tensor, Value, Work, on
from flopcount.sizes import Size, ceil_divide, halve, minimum

SIGMOID = Activation(
    3,
    3,
    "forward: exponential, 1 +, divide; backward: 1 - σ, times σ, times dy",
)


class Scan:
    """What the products of a scan have in common, which are asked what masks are."""

    if TYPE_CHECKING:

        def pairs(self, positions: Size, columns: Size) -> Size:
            """As of :class:`flopcount.masks.Mask`."""

        def rectangle(self, positions: Size, columns: Size) -> Size:
            """As of :class:`flopcount.masks.Mask`."""

    def in_passes(self, positions: Size, columns: Size, chunk: Size) -> Size:
        """A pass for each position: the first may be one of a chunk, the others are single steps.

        >>> Steps(chunk=4).in_passes(3, 8, 1), Steps(chunk=4, fresh=0).in_passes(3, 8, 1)
        (48, 24)
        """
        return self.rectangle(1, columns) + self.pairs(positions - 1, columns)

    def tiles(self, queries: Size, keys: Size, block: tuple[Size, Size], owner: Owner) -> Size:
        """Refused: the kernels run no scan.

        Raises:
            ValueError: Always.

        """
        raise ValueError(
            "level = 'executed' of a network with a scan: expected attention alone, since our "
            "kernels run no recurrence; count at level 'dense' or 'causal'"
        )


@dataclasses.dataclass(frozen=True)
class Steps(Scan):
    """One product of each step of a recurrence, a vector with a state of K rows and N columns.

    Attributes:
        chunk: C, to whose multiple the implementation pads the positions; None where it does not.
        fresh: 1 where chunks are multiplied, else 0: single steps need no padding.

    >>> Steps().pairs(5, 8), Steps(chunk=4).pairs(5, 8), Steps(chunk=4).rectangle(5, 8)
    (40, 40, 64)
    """

    chunk: Size | None = None
    fresh: Size = 1
    source = "derived here: every position multiplies the state once"

    def pairs(self, positions: Size, columns: Size) -> Size:
        """A row of the state's columns for each position: n · N."""
        return positions * columns

    def rectangle(self, positions: Size, columns: Size) -> Size:
        """As many for each position of whole chunks: ⌈n/C⌉·C·N."""
        if self.chunk is None:
            return positions * columns
        padding = ceil_divide(positions, self.chunk) * self.chunk - positions
        return (positions + self.fresh * padding) * columns


@dataclasses.dataclass(frozen=True)
class WithinChunks(Scan):
    """Positions of a chunk meet each other, as queries and keys do: no product of the recurrence.

    Attributes:
        chunk: C.
        fresh: As in :class:`Steps`.
        padded: Whether the last chunk is as long as the others.

    >>> WithinChunks(4).pairs(5, 5), WithinChunks(4).rectangle(5, 5)
    (0, 32)
    >>> WithinChunks(4, padded=False).rectangle(5, 5)  # 4·4 + 1·1
    17
    """

    chunk: Size
    fresh: Size = 1
    padded: bool = True
    source = "derived here: the recurrence has no such product; chunks have C² pairs each"

    def pairs(self, positions: Size, columns: Size) -> Size:
        """None: the recurrence meets the state alone."""
        return 0

    def rectangle(self, positions: Size, columns: Size) -> Size:
        """⌈n/C⌉·C² pairs, or ⌊n/C⌋·C² + (n mod C)² without padding."""
        if self.padded:
            return self.fresh * ceil_divide(positions, self.chunk) * self.chunk * self.chunk
        whole = positions // self.chunk
        rest = positions - whole * self.chunk
        return self.fresh * (whole * self.chunk * self.chunk + rest * rest)


@dataclasses.dataclass(frozen=True)
class Substitution(WithinChunks):
    """Solves a unit lower triangular system per chunk: row i subtracts i - 1 earlier rows.

    >>> Substitution(4).rectangle(5, 5)  # two chunks, 0 + 1 + 2 + 3 pairs each
    12
    """

    source = "derived here: forward substitution, C(C - 1)/2 multiply-adds per chunk and column"

    def rectangle(self, positions: Size, columns: Size) -> Size:
        """⌈n/C⌉·C(C - 1)/2 pairs."""
        pairs = halve(self.chunk * (self.chunk - 1))
        return self.fresh * ceil_divide(positions, self.chunk) * pairs


@dataclasses.dataclass(frozen=True)
class BetweenChunks(WithinChunks):
    """The state before each chunk and after the last, a sum over the states of all chunks.

    >>> BetweenChunks(4).rectangle(5, 8)  # two chunks and the state before them: 3·3·8
    72
    """

    source = "derived here: T + 1 states from the start's and T chunks', each over columns"

    def rectangle(self, positions: Size, columns: Size) -> Size:
        """(⌈n/C⌉ + 1)²·N."""
        states = ceil_divide(positions, self.chunk) + 1
        return self.fresh * states * states * columns


def _fresh(at: Pass, *, steps: bool = False) -> Size:
    """1 where chunks are multiplied, 0 where the state of a cache is stepped on.

    Behind a cache a single position is a step; where ``steps``, as many as there are.
    """
    cached = minimum(at.cached, 1)
    if steps or at.inference == "decode":
        return 1 - cached
    return 1 - cached * (1 - minimum(at.length - 1, 1))


def _product(
    at: Pass,
    term: str,
    heads: Size,
    columns: Size,
    depth: Size,
    mask: Mask,
    other: str = "scan",
) -> Iterator[AnyRow]:
    """Of every head and position, a row of ``columns`` entries, each a sum over ``depth``.

    One operand is of the scan, and the other too unless another value is named.
    """
    yield Product(
        part=at.part,
        layer=at.layer,
        term=term,
        times=at.times * heads,
        M=at.length,
        N=columns,
        K=depth,
        source=mask.source,
        mask=at.masked(mask),
        reads=("scan", other),
        writes="scan",
    )


def _activate(at: Pass, term: str, channels: Size, function: Activation) -> Iterator[AnyRow]:
    costs = function.forward_cost, function.backward_cost
    yield from work(at, term, channels, *costs, function.reason, "input")


def _parameters(at: Pass, name: str, *factors: Size) -> Iterator[AnyRow]:
    yield Tensor("self", at.layer, name, (at.layers, *factors))


def _gate(at: Pass, channels: Size, term: str, function: Activation) -> Iterator[AnyRow]:
    """A gate's activation, and its product with what the scan gives."""
    yield from on("gate", _activate(at, term, channels, function))
    yield from gate_product(at, f"{term} product", channels, "gate", "scan")


def _per_head(
    at: Pass,
    term: str,
    factors: tuple[Size, ...],
    forward_cost: int,
    backward_cost: int,
    reason: str,
    saved: Saved = "input",
    value: str = "scan",
    parts: Parts | None = None,
) -> Iterator[AnyRow]:
    """Element-wise work on ``factors`` of every position, a state's for example."""
    yield Work(
        part=at.part,
        layer=at.layer,
        term=term,
        factors=(at.times, at.length, *factors),
        forward_cost=forward_cost,
        backward_cost=backward_cost,
        reason=reason,
        saved=saved,
        reads=(value,),
        writes=value,
        backward_parts=parts,
    )


def convolution(
    at: Pass, channels: Size, taps: Size, *, bias: bool, activation: str
) -> Iterator[AnyRow]:
    """A causal convolution of each channel over ``taps`` positions: 2·B·n·channels·taps FLOPs.

    It is depthwise, a multiply-add per tap and element: work that no matrix unit does.

    Source: derived here.
    """
    reason = (
        "forward: a product and an addition per tap; backward: as many for the input's gradient "
        "and for the weight's"
    )
    yield from cache(at, "convolution", taps, channels)
    parts: Parts = ((2, ("x",)), (2, ((at.layer, "convolution"),)))
    yield from _per_head(at, "convolution", (channels, taps), 2, 4, reason, value="x", parts=parts)
    own_bias = (at.layers, channels) if bias else None
    whole = at.layers, taps + 1 if bias else taps, channels
    yield Tensor("self", at.layer, "convolution", whole, bias=own_bias)
    if bias:
        yield from bias_work(at, "convolution bias", channels)
    yield from _activate(at, f"convolution {activation}", channels, ACTIVATIONS[activation])


@dataclasses.dataclass(frozen=True)
class LightningAttention:
    """Linear attention with a fixed decay per head: S ← λ·S + k·vᵀ, o = q·S.

    Per sequence 2n·d·(3hc + hc) FLOPs for queries, keys, values and the gate, 2n·hc·d for the
    output, and at level ``causal`` 2·2n·hc² for the scan. At level ``dense`` the last chunk is not
    padded, and within chunks of r positions 2·2r²·hc are added.

    Attributes:
        channels: d.
        num_heads: h.
        head_dim: c.
        chunk: C.
        activation: Of queries, keys and values: a key of :data:`flopcount.blocks.ACTIVATIONS`.

    Source: Qin et al. 2024 (arXiv 2401.04658); MiniMax 2025 (arXiv 2501.08313).
    """

    channels: Size
    num_heads: Size
    head_dim: Size
    chunk: Size
    activation: str = "silu"

    def rows(self, at: Pass) -> Iterator[AnyRow]:
        """Projection, scan, norm, gate, output projection."""
        d, h, c = self.channels, self.num_heads, self.head_dim
        inner, fresh = h * c, _fresh(at, steps=True)
        chunk = WithinChunks(self.chunk, fresh, padded=False)
        yield from cache(at, "state", h, c * c)
        yield from linear(at, "query key value", d, 3 * inner, writes="scan")
        function = ACTIVATIONS[self.activation]
        activated = _activate(at, "query key value activation", 3 * inner, function)
        yield from on("scan", activated)
        # Powers of λ for every position and pair of a chunk, and λ itself: kept, never trained.
        decays = at.layers, h, self.chunk + 1, self.chunk + 1
        yield Tensor("self", at.layer, "decays", decays, is_buffer=True)
        yield from _product(at, "chunk scores", h, at.length, c, chunk)
        yield from _product(at, "chunk values", h, at.length, c, chunk)
        yield from _product(at, "scan read", h, c, c, Steps())
        yield from _product(at, "scan update", h, c, c, Steps())
        reason = "forward: times λ, which is no parameter; backward: the same"
        yield from _per_head(at, "state decay", (h, c, c), 1, 1, reason)
        yield from on("scan", norm(at, "scan norm", inner, bias=False, rms=True))
        yield from linear(at, "output gate", d, inner, writes="gate")
        yield from shared_input(at, "projection input gradients", d, 1)
        yield from _gate(at, inner, "sigmoid gate", SIGMOID)
        yield from linear(at, "out", inner, d, reads="scan")


@dataclasses.dataclass(frozen=True)
class GatedDeltaNet:
    """Linear attention whose state unlearns: S ← α·S, S ← S + β·k·(v - k·S)ᵀ, o = q·S.

    Per sequence 2n·d·(2K + 2V + 2h) FLOPs for queries, keys, values, gate, β and α, with K = g·a
    and V = h·b, 2n·V·d for the output, and at level ``causal`` 3·2n·h·a·b for the scan.

    At level ``dense`` positions are padded to T = ⌈n/C⌉ whole chunks, and h·T·2C²·(2a + b) for the
    products within chunks and h·T·C(C - 1)·(a + b) for two triangular systems are added.

    Attributes:
        channels: d.
        num_key_heads: g, heads of queries and keys.
        num_value_heads: h, heads of values, each with a state.
        key_dim: A.
        value_dim: b.
        taps: Positions that the convolution reads.
        chunk: C.
        activation: Of the convolution.

    Source: Yang et al. 2024 (arXiv 2412.06464); the triangular systems: Yang et al. 2024
    (arXiv 2406.06484).
    """

    channels: Size
    num_key_heads: Size
    num_value_heads: Size
    key_dim: Size
    value_dim: Size
    taps: Size
    chunk: Size
    activation: str = "silu"

    def rows(self, at: Pass) -> Iterator[AnyRow]:
        """Projections, convolution, gates, scan, gated norm, output projection."""
        d, h, a, b, n = (
            self.channels, self.num_value_heads, self.key_dim, self.value_dim, at.length,
        )  # fmt: skip
        keys, values, fresh = self.num_key_heads * a, h * b, _fresh(at)
        chunk, solve = WithinChunks(self.chunk, fresh), Substitution(self.chunk, fresh)
        steps = Steps(self.chunk, fresh)
        yield from cache(at, "state", h, a * b)
        mixed = 2 * keys + 2 * values
        yield from linear(at, "query key value gate", d, mixed, writes="scan")
        yield Value(("scan",), "gate")
        yield from linear(at, "beta decay", d, 2 * h, writes="beta")
        yield from shared_input(at, "projection input gradients", d, 1)
        convolved = convolution(
            at, 2 * keys + values, self.taps, bias=False, activation=self.activation
        )
        yield from on("scan", convolved)
        yield Value(("beta",), "decay")
        yield from on("beta", work(at, "beta", h, *_costs(SIGMOID), "output"))
        reason = (
            "forward: plus bias, softplus (3), times -exp(A), exponential; backward: times α, "
            "dA (2), times -exp(A), σ again (3), times dy, bias's sum"
        )
        bias, rate = (at.layer, "decay bias"), (at.layer, "decay rate")
        shift: Parts = (
            (5, ("decay", bias)),
            (1, ("decay", bias, rate)),
            (2, (rate,)),
            (1, (bias,)),
        )
        yield from on("decay", work(at, "decay", h, 6, 9, reason, "output", parts=shift))
        yield from _parameters(at, "decay bias", h)
        yield from _parameters(at, "decay rate", h)
        normed = norm(
            at, "query key norm", a, bias=False, rms=True, scale=False, heads=2 * self.num_key_heads
        )
        yield from on("scan", normed)
        reason = "forward: times a^-½; backward: the same"
        yield from on("scan", work(at, "query scale", keys, 1, 1, reason))
        yield from _product(at, "chunk keys", h, n, a, chunk)
        yield from _product(at, "chunk scores", h, n, a, chunk)
        yield Value(("scan", "beta", "decay"), "scan")
        yield from _product(at, "chunk value system", h, n, b, solve)
        yield from _product(at, "chunk key system", h, n, a, solve)
        yield from _per_head(at, "state decay", (h, a, b), 1, 3, DECAY)
        yield from _product(at, "scan recall", h, b, a, steps)
        reason = "forward: v - k·S, times β; backward: times β, dβ (2)"
        yield from on("scan", work(at, "delta", values, 2, 3, reason, "input"))
        yield from _product(at, "scan read", h, b, a, steps)
        yield from _product(at, "chunk values", h, n, b, chunk)
        yield from _product(at, "scan update", h, b, a, steps)
        yield from on("scan", norm(at, "scan norm", b, bias=False, rms=True, heads=h))
        yield from _gate(at, values, "silu gate", ACTIVATIONS["silu"])
        yield from linear(at, "out", values, d, reads="scan")


DECAY = "forward: one product; backward: times the decay, and the decay's own gradient (2)"
SKIP = "forward: times D, added; backward: dD (2), times D, added to the other paths' gradient"
STEP = "forward: plus bias, softplus (3); backward: σ again (3), times dy, bias's sum"
RATE = (
    "forward: times A, exponential; backward: times the decay, dA (2), the step size's gradient (2)"
)
INPUT = "forward: x times the step size; backward: dx, the step size's gradient (2)"


def _steps(at: Pass, channels: Size) -> Iterator[AnyRow]:
    bias = (at.layer, "step size bias")
    parts: Parts = ((4, ("x", bias)), (1, (bias,)))
    yield from on("step", work(at, "step size", channels, 4, 5, STEP, "input", parts=parts))
    yield from _parameters(at, "step size bias", channels)


def _decays(at: Pass, *factors: Size) -> Iterator[AnyRow]:
    rate = (at.layer, "decay rate")
    parts: Parts = ((1, ("decay", rate)), (2, (rate,)), (2, ("decay",)))
    yield from _per_head(at, "decay", factors, 2, 5, RATE, "output", "decay", parts)
    yield from _parameters(at, "decay rate", *factors)


def _step_input(at: Pass, channels: Size) -> Iterator[AnyRow]:
    """What of x enters the state; x itself is skipped to the output, too."""
    parts: Parts = ((1, ("x",)), (2, ("step",)))
    yield from work(
        at, "step input", channels, 1, 3, INPUT, "input",
        reads=("x", "step"), writes=None, parts=parts,
    )  # fmt: skip


def _skip(at: Pass, channels: Size) -> Iterator[AnyRow]:
    skip = (at.layer, "skip")
    parts: Parts = ((2, (skip,)), (2, ("x",)))
    yield from work(
        at, "skip", channels, 2, 4, SKIP, "input",
        reads=("scan", "x"), writes="scan", parts=parts,
    )  # fmt: skip


def _costs(function: Activation) -> tuple[int, int, str]:
    return function.forward_cost, function.backward_cost, function.reason


@dataclasses.dataclass(frozen=True)
class Mamba2:
    """A selective state space with one decay per head: S ← exp(A·Δ)·S + B·(Δ·x)ᵀ, y = C·S + D·x.

    Per sequence 2n·d·(2e + 2gN + h) FLOPs for gate, x, B, C and Δ, with e = h·P, 2n·e·d for the
    output, and at level ``causal`` 2·2n·e·N for the scan.

    At level ``dense`` positions are padded to T = ⌈n/C⌉ whole chunks, and T·2C²·h·(N + P) within
    chunks and 2(T + 1)²·e·N between them are added.

    Attributes:
        channels: d.
        num_heads: h.
        head_dim: P.
        state: N, rows of the state.
        groups: g, groups of heads that share B and C.
        taps: Positions that the convolution reads.
        chunk: C.
        bias: Whether the projections have biases.
        convolution_bias: Whether the convolution has one.
        activation: Of the convolution.

    Source: Dao and Gu 2024 (arXiv 2405.21060), section 6.
    """

    channels: Size
    num_heads: Size
    head_dim: Size
    state: Size
    groups: Size
    taps: Size
    chunk: Size
    bias: bool
    convolution_bias: bool
    activation: str = "silu"

    def rows(self, at: Pass) -> Iterator[AnyRow]:
        """Projection, convolution, scan, gated norm, output projection."""
        d, h, p, state, n = (
            self.channels, self.num_heads, self.head_dim, self.state, at.length,
        )  # fmt: skip
        inner, fresh = h * p, _fresh(at)
        chunk, steps = WithinChunks(self.chunk, fresh), Steps(self.chunk, fresh)
        mixed = inner + 2 * self.groups * state
        yield from cache(at, "state", inner, state)
        yield from linear(at, "in", d, inner + mixed + h, bias=self.bias)
        yield Value(("x",), "gate")
        yield Value(("x",), "step")
        yield from convolution(
            at, mixed, self.taps, bias=self.convolution_bias, activation=self.activation
        )
        yield from _steps(at, h)
        yield Value(("step",), "decay")
        yield from _decays(at, h)
        yield from _step_input(at, inner)
        # What B, C and x are made of; decays join in where the state does.
        yield Value(("x",), "scan")
        yield from _product(at, "chunk scores", h, n, state, chunk)
        yield Value(("x", "step", "decay"), "scan")
        yield from _product(at, "chunk values", h, n, p, chunk)
        yield from _per_head(at, "state decay", (h, p, state), 1, 3, DECAY)
        yield from _product(at, "scan update", h, p, state, steps)
        yield from _product(at, "chunk states", h, p, state, BetweenChunks(self.chunk, fresh))
        yield from _product(at, "scan read", h, p, state, steps)
        yield from _skip(at, inner)
        yield from _parameters(at, "skip", h)
        yield from _gate(at, inner, "silu gate", ACTIVATIONS["silu"])
        yield from on("scan", norm(at, "scan norm", inner, bias=False, rms=True))
        yield from linear(at, "out", inner, d, bias=self.bias, reads="scan")


@dataclasses.dataclass(frozen=True)
class Mamba1:
    """A selective state space with a decay per channel and state, as Jamba has it, with norms.

    Of every channel, s ← exp(A·Δ)·s + B·(Δ·x), y = C·s + D·x: the recurrence of :class:`Mamba2`
    with heads of one channel. Per sequence 2n·d·2e FLOPs for x and gate, 2n·e(r + 2N) for Δ, B and
    C, 2n·r·e for Δ's second projection, 2n·e·d for the output, and 2·2n·e·N for the scan, which
    is executed step by step: the same at both levels.

    Attributes:
        channels: d.
        inner: e.
        state: N.
        rank: r, channels that Δ is projected from.
        taps: Positions that the convolution reads.
        bias: Whether the projections in and out have biases.
        convolution_bias: Whether the convolution has one.
        activation: Of the convolution.

    Source: Gu and Dao 2023 (arXiv 2312.00752), algorithm 2; Lieber et al. 2024 (arXiv 2403.19887)
    for the norms.
    """

    channels: Size
    inner: Size
    state: Size
    rank: Size
    taps: Size
    bias: bool
    convolution_bias: bool
    activation: str = "silu"

    def rows(self, at: Pass) -> Iterator[AnyRow]:
        """Projections, convolution, norms, scan, gate, output projection."""
        d, e, state, rank = self.channels, self.inner, self.state, self.rank
        yield from cache(at, "state", e, state)
        yield from linear(at, "in", d, 2 * e, bias=self.bias)
        yield Value(("x",), "gate")
        yield from convolution(
            at, e, self.taps, bias=self.convolution_bias, activation=self.activation
        )
        yield from linear(at, "step state", e, rank + 2 * state, writes="state")
        yield from shared_input(at, "convolution output gradients", e, 1)
        for term, value, channels in (
            ("step norm", "step", rank), ("B norm", "B", state), ("C norm", "C", state)
        ):  # fmt: skip
            yield Value(("state",), value)
            yield from on(value, norm(at, term, channels, bias=False, rms=True))
        yield from on("step", linear(at, "step", rank, e))
        yield from _steps(at, e)
        yield Value(("step",), "decay")
        yield from _decays(at, e, state)
        yield from _step_input(at, e)
        yield Value(("x", "step", "decay", "B", "C"), "scan")
        reason = "forward: one product; backward: times the decay, and the decay's own gradient"
        yield from _per_head(at, "state decay", (e, state), 1, 2, reason)
        yield from _product(at, "scan update", e, 1, state, Steps())
        yield from _product(at, "scan read", e, 1, state, Steps(), "C")
        yield from _skip(at, e)
        yield from _parameters(at, "skip", e)
        yield from _gate(at, e, "silu gate", ACTIVATIONS["silu"])
        yield from linear(at, "out", e, d, bias=self.bias, reads="scan")
