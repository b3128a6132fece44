"""Blocks: what transformers are built of; each yields the rows of its operations.

A block is a frozen dataclass whose leaves are sizes (and flags and names); ``rows(at)`` yields, in
the order of execution, what it does in a pass. Letters as in :mod:`flopcount.operations`; d is
``channels``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Protocol

from flopcount.masks import Causal, Full, SelfMask
from flopcount.operations import (
    Parts,
    Pass,
    ScoreWork,
    attend,
    cache,
    cross_entropy,
    linear,
    norm,
    shared_input,
    work,
)
from flopcount.rows import (
    CHECKPOINTING,
    AnyRow,
    Cached,
    Product,
    Saved,
    Tensor,
    Value,
    WeightName,
    Work,
    on,
)
from flopcount.sizes import Size, minimum

CAUSAL = Causal()
TOKENS: WeightName = ("embedding", "token")
"""Layer and name of the token embedding, which a tied output layer multiplies by."""


class Block(Protocol):
    """What every block can be asked."""

    def rows(self, at: Pass) -> Iterator[AnyRow]:
        """What the block does in a pass, in the order of execution."""


Network = tuple[tuple[Pass, tuple[Block, ...]], ...]
"""Blocks, with the pass that each works in; the first pass is the one that predicts."""


def rows_of(network: Network) -> Iterator[AnyRow]:
    """Every row of a network."""
    for at, blocks in network:
        for block in blocks:
            yield from block.rows(at)


@dataclasses.dataclass(frozen=True)
class Embedding:
    """Token embedding plus, where there is a table of them, learned absolute positions.

    Attributes:
        channels: d.
        vocab_size: V; None where the token embedding is another block's.
        num_positions: Rows of the table of positions; None without one.
        positions: The table's name.
        token_channels: Width of the token embedding, if another than d: a projection follows.
        scaled: Whether tokens are multiplied by a constant, such as √d.
        norm: What follows the embedding.
    """

    channels: Size
    vocab_size: Size | None = None
    num_positions: Size | None = None
    positions: str = "positions"
    token_channels: Size | None = None
    scaled: bool = False
    norm: Norm | None = None

    def rows(self, at: Pass) -> Iterator[AnyRow]:
        """One addition per element where there are positions; backward, one into each table."""
        at = at.at(layer="embedding")
        yield from on("prefix" if at.part == "cross" else "x", self._rows(at))

    def _rows(self, at: Pass) -> Iterator[AnyRow]:
        width = self.channels if self.token_channels is None else self.token_channels
        if self.vocab_size is not None:
            yield Tensor("self", *TOKENS, (self.vocab_size, width))
        tables: Parts = ((1, (TOKENS,)),)
        if self.num_positions is None:
            reason = "forward: a look-up, no arithmetic; backward: one addition into the table"
            yield from work(at, "embedding", width, 0, 1, reason, parts=tables)
        else:
            yield Tensor(at.part, "embedding", self.positions, (self.num_positions, self.channels))
            tables += ((1, (("embedding", self.positions),)),)
            reason = "forward: token + position; backward: one addition into each of the two tables"
            yield from work(at, "embedding", self.channels, 1, 2, reason, parts=tables)
        if self.scaled:
            reason = "forward: times a constant; backward: the same"
            yield from work(at, "embedding scale", width, 1, 1, reason)
        if self.token_channels is not None:
            # Positions are added to what tokens are projected to.
            yield Value((), "token", (TOKENS,))
            yield from linear(at, "project in", width, self.channels, reads="token", writes="token")
            yield Value(("token", "x"), "x")
        if self.norm is not None:
            yield from self.norm.rows(at)


@dataclasses.dataclass(frozen=True)
class Selection:
    """Prefix dropout keeps some positions; their gradient is added back at their places."""

    channels: Size

    def rows(self, at: Pass) -> Iterator[AnyRow]:
        """No arithmetic forward, one addition per kept element backward."""
        reason = "forward: a gather, no arithmetic; backward: one addition per kept element"
        place = at.at(layer="embedding")
        rows = work(place, "prefix selection", self.channels, 0, 1, reason)
        yield from on("prefix" if at.part == "cross" else "x", rows)


@dataclasses.dataclass(frozen=True)
class Norm:
    """LayerNorm or RMSNorm.

    Attributes:
        term: Its name within the layer.
        channels: d.
        bias: Whether it has a shift.
        rms: RMSNorm.
        scale: Whether it has a scale.
        heads: Of each of how many heads it is, all of which share the scale; d is then c.
    """

    term: str
    channels: Size
    bias: bool = True
    rms: bool = False
    scale: bool = True
    heads: Size = 1

    def rows(self, at: Pass) -> Iterator[AnyRow]:
        """See :func:`flopcount.operations.norm`."""
        options = dict(bias=self.bias, rms=self.rms, scale=self.scale, heads=self.heads)
        yield from norm(at, self.term, self.channels, **options)


def rotated_channels(head_dim: Size) -> Size:
    """Channels of a head that Perceiver AR rotates: 2⌈r/2⌉ with r = ⌊c/2⌋.

    Frequencies base^(-j/r) exist for j = 0, 2, 4, … < r, each on one pair of channels.

    >>> [rotated_channels(c) for c in (54, 64, 73, 78, 91)]
    [28, 32, 36, 40, 46]
    """
    return 2 * ((head_dim // 2 + 1) // 2)


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Rotary embedding of some channels of each head of queries and keys.

    Attributes:
        channels: Channels that turn, per head.
        once: Whether it acts in at most one of the equal layers.

    Source: Su et al. 2021 (arXiv 2104.09864).
    """

    channels: Size
    once: bool = False

    def rows(self, at: Pass, term: str, heads: Size) -> Iterator[AnyRow]:
        """Three FLOPs per channel that turns, and as many backward."""
        if self.once:
            at = at.at(layers=minimum(at.layers, 1))
        reason = "forward: x·cos + rotated x·sin; backward: the transposed rotation, the same cost"
        yield from work(at, term, heads * self.channels, 3, 3, reason)


SCORE_WORK = {
    "softcap": ScoreWork(
        "score cap", 3, 3, "forward: divide, tanh, times s; backward: t², 1 -, times dy", "output"
    ),
    "alibi": ScoreWork("score bias", 1, 0, "forward: one addition of a constant"),
    "relative": ScoreWork(
        "score bias",
        1,
        1,
        "forward: one addition; backward: the sum over what shares an entry",
        other="position bias",
    ),
}
"""What scores pass before the softmax."""


@dataclasses.dataclass(frozen=True)
class Attention:
    """Self-attention: projections around scores and values.

    Per sequence 2n(2·dhc + 2·dgc) FLOPs for the four projections and 2h·pairs·c each for scores
    and values.

    Attributes:
        channels: d.
        num_heads: h.
        num_key_heads: g, heads of keys and values.
        head_dim: c.
        query_channels: h·c, exactly; see :func:`flopcount.sizes.multiply`.
        key_channels: g·c.
        mask: Which pairs count.
        bias: Whether query, key and value projections have a bias.
        out_bias: Whether the output projection has one.
        rotary: Rotary embedding of queries and keys.
        norms: Of queries and of keys, before the rotary embedding.
        gate: Whether a fourth projection of the input, through a sigmoid, multiplies what the
            heads give, before the output projection.
        sinks: Whether each head has a learned score beside its keys, which no query-key pair is.
        score_bias: Of scores before the softmax, ``"alibi"`` or ``"relative"``: constants, or
            learned by the distance in a table that is another block's.
        softcap: Whether scores pass s·tanh(x/s).
        clip: Whether queries, keys and values are clipped.
        scale: Whether queries are multiplied by c^-½.

    Source: Vaswani et al. 2017 (arXiv 1706.03762); Ainslie et al. 2023 (arXiv 2305.13245) for
    grouped heads.
    """

    channels: Size
    num_heads: Size
    num_key_heads: Size
    head_dim: Size
    query_channels: Size
    key_channels: Size
    mask: SelfMask = CAUSAL
    bias: bool = False
    out_bias: bool = False
    rotary: Rotary | None = None
    norms: tuple[Block, ...] = ()
    gate: bool = False
    sinks: bool = False
    score_bias: str | None = None
    softcap: bool = False
    clip: bool = False
    scale: bool = True

    def rows(self, at: Pass) -> Iterator[AnyRow]:
        """Projections, rotary embedding, scale, attention, output projection."""
        yield from self.project(at)
        yield from self.attend(at)

    def project(self, at: Pass) -> Iterator[AnyRow]:
        """Queries, keys and values."""
        for term, outputs in (
            ("query", self.query_channels),
            ("key", self.key_channels),
            ("value", self.key_channels),
        ):
            yield from linear(at, term, self.channels, outputs, bias=self.bias, writes=term)
        if self.gate:
            yield from linear(
                at, "gate", self.channels, self.query_channels, bias=self.bias, writes="gate"
            )
        yield from shared_input(at, "projection input gradients", self.channels, 2 + self.gate)
        if self.clip:
            channels = self.query_channels + 2 * self.key_channels
            reason = "forward: a maximum, a minimum; backward: two comparisons"
            yield from work(
                at, "clip", channels, 2, 2, reason, "input",
                reads=("query", "key", "value"), writes=None,
            )  # fmt: skip
        for of_one in self.norms:
            of_key = isinstance(of_one, Norm) and of_one.term.startswith("key")
            yield from on("key" if of_key else "query", of_one.rows(at))
        if self.rotary is not None:
            queries = self.rotary.rows(at, "rotary query", self.num_heads)
            yield from on("query", queries)
            yield from on("key", self.rotary.rows(at, "rotary key", self.num_key_heads))
        if self.scale:
            reason = "forward: times c^-½; backward: the same"
            yield from on("query", work(at, "query scale", self.query_channels, 1, 1, reason))

    def attend(self, at: Pass, memory: tuple[str, str] | None = None) -> Iterator[AnyRow]:
        """Attention, and its output's projection.

        Args:
            at: The pass.
            memory: Keys and values beside its own, which stand in one tensor with them.
        """
        if self.sinks:
            yield Tensor("self", at.layer, "sinks", (at.layers, self.num_heads))
        keys = at.cached + at.length
        kept = self.mask.kept(keys)
        for name in ("keys", "values"):
            yield from cache(at, name, kept, self.key_channels)
        scores = tuple(
            SCORE_WORK[name] for name in (self.softcap and "softcap", self.score_bias) if name
        )
        yield from attend(
            at, self.num_heads, keys, self.head_dim, self.head_dim, self.mask, scores,
            key=("key", *(memory or ())[:1]), value=("value", *(memory or ())[1:]),
            sinks=self.sinks,
        )  # fmt: skip
        if self.gate:
            reason = (
                "forward: σ(x) (3), times the gate; backward: the gate's σ' (2) and a product with "
                "it and one with dy, and a product for what it gates"
            )
            yield from work(
                at, "attention gate", self.query_channels, 4, 5, reason, "input",
                reads=("x", "gate"), parts=((4, ("gate",)), (1, ("x",))),
            )  # fmt: skip
        yield from linear(at, "out", self.query_channels, self.channels, bias=self.out_bias)


@dataclasses.dataclass(frozen=True)
class PrefixAttention:
    """Self-attention whose queries also attend to every position of a prefix.

    The prefix adds its norm, 2·2kd·gc FLOPs per sequence for its keys and values, and n·k pairs.
    Prefix dropout acts before that, so dropped positions cost nothing here.

    Attributes:
        attention: What a decoder-only model would have.
        num_kept: k, prefix positions after dropout.
        norm: The prefix's.

    Source: Hawthorne et al. 2022 (arXiv 2202.07765); the counts are derived here.
    """

    attention: Attention
    num_kept: Size
    norm: Norm

    def rows(self, at: Pass) -> Iterator[AnyRow]:
        """What the prefix adds, which shares the weights of keys and values, and the attention.

        Decoding finds the prefix's keys and values in the cache.
        """
        inner = self.attention
        prefix = at.at(part="cross", length=self.num_kept)
        for name in ("keys", "values"):
            yield from cache(prefix, name, self.num_kept, inner.key_channels)
        if at.inference != "decode":
            yield from self._project(prefix)
        yield from inner.project(at)
        *scores, values = attend(
            at.at(part="cross"),
            inner.num_heads,
            self.num_kept,
            inner.head_dim,
            inner.head_dim,
            Full(),
            key=("key", "prefix key"),
            value=("value", "prefix value"),
        )
        yield from scores
        for row in inner.attend(at, ("prefix key", "prefix value")):
            if isinstance(row, Product) and row.term == "values":
                # Both are one product, which is executed again in whole or not at all.
                yield values
                yield dataclasses.replace(row, saved=None)
            else:
                yield row

    def _project(self, prefix: Pass) -> Iterator[AnyRow]:
        inner = self.attention
        source = "derived here: keys and values are projected from the k kept prefix positions only"
        yield from on("prefix", self.norm.rows(prefix))
        for term in ("key", "value"):
            yield from linear(
                prefix, term, inner.channels, inner.key_channels,
                weight=(prefix.layer, term), source=source,
                reads="prefix", writes=f"prefix {term}",
            )  # fmt: skip
        yield from shared_input(prefix, "projection input gradients", inner.channels, 1, "prefix")
        if inner.rotary is not None:
            rotary = inner.rotary.rows(prefix, "rotary key", inner.num_key_heads)
            yield from on("prefix key", rotary)


@dataclasses.dataclass(frozen=True)
class Activation:
    """What an activation function costs per element.

    Attributes:
        forward_cost: FLOPs per element, forward.
        backward_cost: FLOPs per element, backward.
        reason: The operations that make up the costs.
    """

    forward_cost: int
    backward_cost: int
    reason: str


ACTIVATIONS = {
    "gelu": Activation(
        5,
        11,
        "forward: x/√2, erf, 1 +, times ½, times x; backward: Φ(x) again (4), density (4), "
        "x·density, plus Φ, times dy",
    ),
    "silu": Activation(
        4,
        8,
        "forward: exponential, 1 +, divide, times x; backward: σ(x) again (3), 1 - σ, times x, "
        "1 +, times σ, times dy",
    ),
    "gelu_tanh": Activation(
        9,
        17,
        "forward: x², times x, times a, + x, times √(2/π), tanh, 1 +, times ½, times x; backward: "
        "½(1 + t) again (8), t², 1 -, 3a·x² (1), 1 +, times ½√(2/π), product, times x, plus "
        "½(1 + t), times dy",
    ),
    "gelu_quick": Activation(
        5,
        9,
        "forward: times 1.702, σ (3), times x; backward: σ again (4), 1 - σ, times 1.702x, 1 +, "
        "times σ, times dy",
    ),
    "clamped_swiglu": Activation(
        9,
        12,
        "forward: of the gate a minimum, times α, σ (3), times the gate, of the other two bounds "
        "and 1 +; backward: σ again (4), 1 - σ, times α·gate, 1 +, times σ, times dy, and a "
        "comparison for each bound",
    ),
    "relu": Activation(1, 1, "forward: a maximum; backward: a comparison"),
    "relu_squared": Activation(2, 3, "forward: a maximum, a square; backward: 2x, times dy (2)"),
}
"""x·Φ(x) = x·½(1 + erf(x/√2)), exactly, or by its approximation with tanh (a = 0.044715) or with
x·σ(1.702x); x·σ(x) = x/(1 + exp(-x)). A sign costs nothing."""


def gate_product(at: Pass, term: str, channels: Size, gate: str, value: str) -> Iterator[AnyRow]:
    """A gate multiplies a value."""
    reason = "forward: one product; backward: one for each operand's gradient"
    parts: Parts = ((1, (gate,)), (1, (value,)))
    yield from work(
        at, term, channels, 1, 2, reason, "input", reads=(gate, value), writes=value, parts=parts
    )


@dataclasses.dataclass(frozen=True)
class MLP:
    """d → hidden → d: 2·2n·d·hidden FLOPs per sequence; gated, a third product of that size.

    Attributes:
        channels: d.
        hidden: Channels of the hidden layer.
        bias: Whether the linear layers have biases.
        gated: Whether the activation of a second projection multiplies the first.
        activation: A key of :data:`ACTIVATIONS`.

    Source: Vaswani et al. 2017 (arXiv 1706.03762); Shazeer 2020 (arXiv 2002.05202) for the gate.
    """

    channels: Size
    hidden: Size
    bias: bool = False
    gated: bool = False
    activation: str = "gelu"

    def rows(self, at: Pass) -> Iterator[AnyRow]:
        """Projections up, activation, gate if any, projection down."""
        d, hidden = self.channels, self.hidden
        acts = "mlp gate" if self.gated else "mlp up"
        if self.gated:
            yield from linear(at, "mlp gate", d, hidden, bias=self.bias, writes="mlp gate")
        yield from linear(at, "mlp up", d, hidden, bias=self.bias, writes="mlp up")
        if self.gated:
            yield from shared_input(at, "mlp input gradients", d, 1)
        function = ACTIVATIONS[self.activation]
        costs = function.forward_cost, function.backward_cost
        yield from on(acts, work(at, self.activation, hidden, *costs, function.reason, "input"))
        if self.gated:
            yield from gate_product(at, "gate product", hidden, "mlp gate", "mlp up")
        yield from linear(at, "mlp down", hidden, d, bias=self.bias, reads="mlp up")


@dataclasses.dataclass(frozen=True)
class Residual:
    """x + block(norm(x)); or x + norm(block(x)), norm(x + block(x)) or more than one of these.

    Attributes:
        name: What the residual's row is named after.
        norm: Before the block.
        block: The branch.
        branch_norm: After the block, before the addition.
        sum_norm: After the addition.
        dropout: Whether the branch passes a dropout in training, whose mask the backward pass
            needs; dropping is no arithmetic.
    """

    name: str
    norm: Norm | None
    block: Block
    branch_norm: Norm | None = None
    sum_norm: Norm | None = None
    dropout: bool = False

    def rows(self, at: Pass) -> Iterator[AnyRow]:
        """The norms, the block, and the addition."""
        norms = self.norm, self.branch_norm, self.sum_norm
        before, behind, last = (list(norm.rows(at)) if norm else [] for norm in norms)
        skipped = f"{self.name} input"
        yield Value(("x",), skipped)
        yield from before
        yield from self.block.rows(at)
        yield from behind
        channels = next(norm.channels for norm in norms if norm is not None)
        reason = "forward: branch + input; backward: the gradients of the two paths are added"
        saved: Saved | None = "input" if self.dropout else None
        yield from work(
            at, f"{self.name} residual", channels, 1, 1, reason, saved,
            reads=("x", skipped), parts=((1, (skipped,)),),
        )  # fmt: skip
        yield from last


@dataclasses.dataclass(frozen=True)
class Parallel:
    """x + a(norm(x)) + b(norm'(x)), where the norms may be one.

    Attributes:
        norms: One of each branch, or one that all branches read.
        blocks: The branches.
        dropout: As in :class:`Residual`.

    Source: Wang and Komatsuzaki 2021, GPT-J-6B.
    """

    norms: tuple[Norm, ...]
    blocks: tuple[Block, ...]
    dropout: bool = False

    def rows(self, at: Pass) -> Iterator[AnyRow]:
        """The norms, the branches, and the additions."""
        first, *_ = self.norms
        channels, others = first.channels, len(self.blocks) - 1
        yield Value(("x",), "input")
        for number, before in enumerate(self.norms):
            yield Value(("input",), f"norm {number}")
            yield from on(f"norm {number}", before.rows(at))
        if len(self.norms) == 1:
            yield from shared_input(at, "branch input gradients", channels, others, "norm 0")
        branches = tuple(f"branch {number}" for number in range(len(self.blocks)))
        for number, (branch, block) in enumerate(zip(branches, self.blocks, strict=True)):
            yield Value((f"norm {min(number, len(self.norms) - 1)}",), "x")
            yield from block.rows(at)
            yield Value(("x",), branch)
        added = len(self.norms)
        reason = (
            "forward: the branches and the input are added; backward: the gradients of the norms "
            "and of the input are added"
        )
        saved: Saved | None = "input" if self.dropout else None
        yield from work(
            at, "residual", channels, 1 + others, added, reason, saved,
            reads=("input", *branches), parts=((added, ("input",)),),
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Layers:
    """Equal layers, each of which activation checkpointing executes again.

    Re-entrant checkpointing runs a layer's whole forward pass once more. The non-re-entrant flavour
    stops when the last tensor that the backward pass needs is there.

    Attributes:
        name: The layers' name in tables.
        number: How many.
        blocks: What one of them does, in the order of execution.
        pattern: Where they stand among layers that take turns: a letter for each of a period, x for
            these.

    Source: the two implementations in ``torch.utils.checkpoint``.
    """

    name: str
    number: Size
    blocks: tuple[Block, ...]
    pattern: str = "x"

    carries = "x"

    def rows(self, at: Pass) -> Iterator[AnyRow]:
        """The rows of all layers together, each with the flavours that execute it again."""
        at = at.at(layer=self.name, layers=self.number)
        rows = [row for block in self.blocks for row in block.rows(at)]
        yield from checkpointed(rows)


def checkpointed(rows: list[AnyRow]) -> Iterator[AnyRow]:
    """Rows that activation checkpointing takes together, each with the flavours that repeat it."""
    saved = [(index, getattr(row, "saved", None)) for index, row in enumerate(rows)]
    needed = max((index + (what == "output") for index, what in saved if what), default=0)
    for index, row in enumerate(rows):
        if isinstance(row, Tensor | Cached | Value):
            yield row
        else:
            flavours = CHECKPOINTING if index < needed else CHECKPOINTING[:1]
            yield dataclasses.replace(row, recomputed_by=flavours)


@dataclasses.dataclass(frozen=True)
class Output:
    """Final norm, if any, logits and, in training, the loss: 2ndV FLOPs per sequence.

    Attributes:
        channels: d.
        vocab_size: V.
        tied: Whether the weight is the token embedding.
        bias: Whether the logits have a bias.
        norm: Before the logits.
        token_channels: Width of the token embedding, if another than d: projected to it.
        softcap: Whether logits pass s·tanh(x/s).

    Source: Kaplan et al. 2020 (arXiv 2001.08361), Table 1 ("de-embed").
    """

    channels: Size
    vocab_size: Size
    tied: bool
    bias: bool = False
    norm: Norm | None = None
    token_channels: Size | None = None
    softcap: bool = False

    def rows(self, at: Pass) -> Iterator[AnyRow]:
        """Norm, logits, cross-entropy, and the sum of a tied embedding's two gradients."""
        at = at.at(layer="output")
        yield Value(("x",), "hidden")
        if self.norm is not None:
            yield from self.norm.rows(at)
        width = self.channels
        if self.token_channels is not None:
            width = self.token_channels
            yield from linear(at, "project out", self.channels, width)
        if at.logits is not None:
            at = at.at(length=at.logits)
        weight = TOKENS if self.tied else None
        yield from linear(at, "logits", width, self.vocab_size, bias=self.bias, weight=weight)
        if self.softcap:
            cap = SCORE_WORK["softcap"]
            costs = cap.forward_cost, cap.backward_cost
            yield from work(at, "logit cap", self.vocab_size, *costs, cap.reason)
        if not at.training:
            return
        yield from cross_entropy(at.at(layer="loss"), self.vocab_size)
        if self.tied:
            yield Work(
                part="self",
                layer="output",
                term="tied embedding gradient",
                factors=(self.vocab_size, width),
                forward_cost=0,
                backward_cost=1,
                reason="backward: embedding gradient + output gradient, once a step whatever "
                "the batch",
                reads=(),
                writes=None,
                backward_parts=((1, (TOKENS,)),),
            )
