"""Decoder-only language models of any family, as one flat declaration.

A layer is a mixer (attention) and a feed-forward block (an MLP), with norms around them. What a
layer is may follow patterns: each *aspect* of layers (:meth:`CausalLM.aspects`) is a tuple of words
that layers take in turn, and ``groups`` groups equal layers. To declare models with
other layers, subclass, in a module of its own, and override only what differs:

- fields of one's own, each ``Annotated`` with its kind, with defaults (a base has defaults);
- :meth:`CausalLM.aspects`, with another pattern beside those here, such as ``mlp``:
  ``("dense", "sparse")``, or with further words of ``attention`` in a field of its own;
- :meth:`CausalLM.mixer`: the block that lets positions meet, in a layer of a kind: another
  attention, a state space, a linear attention;
- :meth:`CausalLM.feed_forward`: the block that works on each position, such as a mixture of
  experts;
- :meth:`CausalLM.after`: blocks behind the output layer, such as modules that predict further
  tokens.

Each block yields the rows of its own operations (:mod:`flopcount.operations`); a tensor of experts
says what one token uses of it (``Tensor.used``), a buffer that it is one (``Tensor.is_buffer``),
and a product names its tensor (``Product.weight``), from which ``params().active`` and
``params().matmul_active`` follow.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any

from flopcount.architectures import (
    Architecture,
    Channels,
    Choice,
    Dimension,
    Note,
    NumHeads,
    NumLayers,
    Pattern,
    Vocabulary,
    shortest_period,
)
from flopcount.blocks import (
    ACTIVATIONS,
    CAUSAL,
    MLP,
    Attention,
    Block,
    Embedding,
    Layers,
    Network,
    Norm,
    Output,
    Parallel,
    Residual,
    Rotary,
)
from flopcount.experts import MultiTokenPrediction
from flopcount.masks import Causal, Chunked, SelfMask
from flopcount.operations import Pass
from flopcount.sizes import Size, ceil_divide, divide, multiply, quoted, require_at_most
from flopcount.tables import paragraph, shown

Kind = Mapping[str, str]
"""A layer's word for each aspect, such as ``{"attention": "sliding", "positions": "rotary"}``."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Equal layers.

    Attributes:
        name: In tables.
        number: How many.
        kind: What they are.
        indices: Which of a period of layers.
        period: After how many layers the kinds repeat.
    """

    name: str
    number: Size
    kind: Kind
    indices: tuple[int, ...]
    period: int

    @property
    def pattern(self) -> str:
        """The period as ``flopcount.blocks.Layers`` has it, its ``pattern``."""
        return "".join("x" if index in self.indices else "." for index in range(self.period))


def runs(indices: tuple[int, ...]) -> str:
    """Indices in words.

    >>> runs((0, 1, 2, 5, 7, 8))
    '0 to 2, 5, 7 to 8'
    """
    inside = set(indices)
    starts = [index for index in indices if index - 1 not in inside]
    ends = [index for index in indices if index + 1 not in inside]
    pairs = zip(starts, ends, strict=True)
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in pairs)


class LanguageModel(Architecture):
    """What models of layers that follow patterns share, whatever a layer is."""

    stack = "decoder"
    vocab_size: Size
    num_channels: Size
    num_layers: Size
    seq_len: Size | None
    tie_embeddings: bool
    reading: Any

    def __post_init__(self) -> None:
        """Validate every field, and bring patterns into their shortest form."""
        super().__post_init__()
        for name, kind in self.kinds().items():
            if isinstance(kind, Pattern):
                object.__setattr__(self, name, self.shortest(getattr(self, name)))

    def shortest(self, words: tuple[str, ...]) -> tuple[str, ...]:
        """The fewest words that give all layers the same.

        Repeated, a part of the words gives those behind them only if it fits a whole number of
        times, or if there are no layers behind them.
        """
        period, number = shortest_period(words), self.num_layers
        last = type(number) is int and number <= len(words)
        if period == words or not (last or len(words) % len(period) == 0):
            return words
        return self.shortest(period)

    @property
    def title(self) -> str:
        """The config's model type, or the class."""
        return self.reading.model_type if self.reading else type(self).__name__

    @property
    def length(self) -> Size:
        """How many positions predict: n.

        Raises:
            ValueError: If ``seq_len`` was not given.
        """
        if self.seq_len is None:
            raise ValueError(
                "seq_len = None: expected an integer >= 1, the positions of the sequence whose "
                "FLOPs are counted, such as seq_len=8192 or, on the command line, --seq-len 8192"
            )
        return self.seq_len

    def lettered(self) -> dict[str, Dimension]:
        """Positions even where they are not given; L only where layers repeat."""
        letters, number = super().lettered(), self.num_layers
        if type(number) is int and 1 < number <= self.period():
            del letters["num_layers"]
        return {"seq_len": self.kinds()["seq_len"]} | letters

    @abc.abstractmethod
    def aspects(self) -> dict[str, tuple[str, ...]]:
        """What differs between layers: each aspect's words, which layers take in turn."""

    def period(self) -> int:
        """After how many layers they repeat."""
        return math.lcm(*(len(words) for words in self.aspects().values()))

    def groups(self) -> tuple[Group, ...]:
        """Equal layers together, in the order of the first of each kind.

        Of a period of P layers, L layers have ⌈(L - i)/P⌉ of the i-th; those of the most frequent
        kind are what is left of L.
        """
        aspects, number = self.aspects(), self.num_layers
        period = self.period()
        if type(number) is int:
            period = min(period, number)
        kinds: dict[tuple[tuple[str, str], ...], list[int]] = {}
        for index in range(period):
            kind = tuple((name, words[index % len(words)]) for name, words in aspects.items())
            kinds.setdefault(kind, []).append(index)
        most = max(kinds, key=lambda kind: len(kinds[kind]))
        numbers: dict[tuple[tuple[str, str], ...], Size] = {}
        rest: Size = number
        for kind, indices in kinds.items():
            if kind != most:
                numbers[kind] = sum(
                    (ceil_divide(number - index, period) for index in indices[1:]),
                    start=ceil_divide(number - indices[0], period),
                )
                rest = rest - numbers[kind]
        numbers[most] = rest
        common = set.intersection(*map(set, kinds))
        return tuple(
            Group(
                " ".join(pair[1] for pair in kind if pair not in common) or self.stack,
                numbers[kind],
                dict(kind),
                tuple(indices),
                period,
            )
            for kind, indices in kinds.items()
        )

    def described(self) -> list[str]:
        """What the model is, in plain words, a line each."""
        params = self.params()
        used = ""
        if any(tensor.used is not None for tensor in params.terms):
            used = f", of which a token uses {shown(params.active)}"
        return [
            f"{shown(params.total)} parameters{used}; a token is multiplied by "
            f"{shown(params.matmul_active)}, the N of 2N",
            f"{shown(self.num_layers)} layers of {shown(self.num_channels)} channels; vocabulary "
            f"of {shown(self.vocab_size)}, output layer "
            f"{'tied to the embedding' if self.tie_embeddings else 'of its own'}",
            *(self.described_group(group) for group in self.groups()),
        ]

    def described_group(self, group: Group) -> str:
        """Equal layers in plain words."""
        indices = runs(group.indices)
        if type(self.num_layers) is not int or group.period < self.num_layers:
            indices += f" of every {group.period}"
        which = "all" if group.name == self.stack else f"{group.name} ({indices})"
        parts = self.described_mixer(group.kind), self.described_feed_forward(group.kind)
        return f"{shown(group.number)} layers, {which}: {'; '.join(parts)}"

    @abc.abstractmethod
    def described_mixer(self, kind: Kind) -> str:
        """What lets positions meet in a layer, in plain words."""

    @abc.abstractmethod
    def described_feed_forward(self, kind: Kind) -> str:
        """What works on each position of a layer, in plain words."""

    def __str__(self) -> str:
        """The model in plain words, and what of its config was left out."""
        head, lines = self.title, self.described()
        if self.reading is not None:
            head = f"{self.title} ({self.reading.head})"
            lines += self.reading.notes()
        lines = [f"{head}: {lines[0]}", *(f"  {line}" for line in lines[1:])]
        return paragraph("\n".join(lines), indent="    ")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalLM(LanguageModel):
    """A decoder-only language model; without options, in Llama's shape.

    Attributes:
        vocab_size: V.
        num_channels: d.
        num_layers: L.
        num_heads: h.
        intermediate_size: f, hidden channels of the MLP.
        seq_len: n, positions; None where only what needs none is asked for, such as parameters.
        num_key_value_heads: g, which divides h; h unless given.
        head_dim: c; d / h unless given.
        attention: Which keys layers attend to, in turn: ``"full"`` (all earlier ones),
            ``"sliding"`` (of the last W) or ``"chunked"`` (of the same chunk).
        window: W, the last positions that a query attends to, its own included.
        chunk: A, positions of a chunk.
        positions: How layers know positions, in turn: ``"rotary"``, ``"alibi"`` or ``"none"``.
        rotary_dim: r, channels of a head that turn; all unless given.
        num_positions: Rows of a table of learned positions; None without one.
        spare_positions: Rows of it that no sequence uses.
        query_key_norm: A norm of queries and keys, of each ``"head"`` or of the ``"whole"`` width;
            ``"head, no scale"`` has no parameters.
        qkv_clip: Whether queries, keys and values are clipped.
        qkv_bias: Whether query, key and value projections have biases.
        out_bias: Whether attention's output projection has one.
        mlp_bias: Whether the MLP's linear layers have biases.
        attention_gate: Whether a fourth projection gates what the heads give.
        sinks: Whether each head has a learned score beside its keys.
        attention_softcap: Whether scores are capped by a tanh.
        gated: Whether the MLP has a gate.
        activation: The MLP's.
        norm: ``"rms"`` or ``"layer"``.
        norm_bias: Whether norms have a shift.
        norm_scale: Whether norms have a scale.
        norm_placement: ``"pre"`` (before each block), ``"branch"`` (behind it, before the
            addition), ``"both"`` of these, or ``"post"`` (after the addition).
        parallel_norms: Attention and MLP side by side, behind ``"one"`` or ``"two"`` norms; one
            after the other if None.
        final_norm: Whether a norm precedes the output layer.
        embedding_norm: Whether a norm follows the embedding.
        embedding_channels: Width of the token embedding, projected to d and back; d unless given.
        scaled_embedding: Whether embeddings are multiplied by a constant.
        tie_embeddings: Whether the output layer's weight is the token embedding.
        output_bias: Whether logits have a bias.
        logit_softcap: Whether logits are capped by a tanh.
        dropout: Whether branches pass a dropout in training: it costs nothing, but activation
            checkpointing executes again what its mask is of.
        num_predictions: Modules that each predict one token more; None without.
        reading: Of a model read from a config: what was read, and what was not.

    Raises:
        TypeError: If a field has the wrong type.
        ValueError: If a size is not positive, h is not divisible by g, d not by h without a head
            dim, a pattern needs a size that is not given, or arrays do not broadcast.

    Source: the families' publications, in :mod:`flopcount.hf`.

    >>> qwen3 = CausalLM(vocab_size=151936, num_channels=1024, num_layers=28, num_heads=16,
    ...                  num_key_value_heads=8, head_dim=128, intermediate_size=3072,
    ...                  query_key_norm="head", tie_embeddings=True)  # Qwen3-0.6B
    >>> qwen3.params().total
    596049920

    """

    vocab_size: Vocabulary
    num_channels: Channels
    num_layers: NumLayers
    num_heads: NumHeads
    intermediate_size: Annotated[Size, Dimension("f", "hidden channels")]
    seq_len: Annotated[Size | None, Dimension("n", "positions")] = None
    num_key_value_heads: Annotated[Size | None, Dimension("g", "key-value heads")] = None
    head_dim: Annotated[Size | None, Dimension("c", "channels of a head")] = None
    attention: Annotated[tuple[str, ...], Pattern(("full", "sliding", "chunked"))] = ("full",)
    window: Annotated[Size | None, Dimension("W", "positions of a window")] = None
    chunk: Annotated[Size | None, Dimension("A", "positions of a chunk")] = None
    positions: Annotated[tuple[str, ...], Pattern(("rotary", "alibi", "none"))] = ("rotary",)
    rotary_dim: Annotated[Size | None, Dimension("r", "channels of a head that turn", 0)] = None
    num_positions: Annotated[Size | None, Dimension()] = None
    spare_positions: Annotated[Size, Dimension(minimum=0)] = 0
    query_key_norm: Annotated[str | None, Choice(("head", "head, no scale", "whole"))] = None
    qkv_clip: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    attention_gate: bool = False
    sinks: bool = False
    attention_softcap: bool = False
    gated: bool = True
    activation: Annotated[str, Choice(tuple(ACTIVATIONS))] = "silu"
    norm: Annotated[str, Choice(("rms", "layer"))] = "rms"
    norm_bias: bool = False
    norm_scale: bool = True
    norm_placement: Annotated[str, Choice(("pre", "branch", "both", "post"))] = "pre"
    parallel_norms: Annotated[str | None, Choice(("one", "two"))] = None
    final_norm: bool = True
    embedding_norm: bool = False
    embedding_channels: Annotated[Size | None, Dimension("e", "channels of the embedding")] = None
    scaled_embedding: bool = False
    tie_embeddings: bool = False
    output_bias: bool = False
    logit_softcap: bool = False
    dropout: bool = False
    num_predictions: Annotated[Size | None, Dimension()] = None
    reading: Annotated[Any, Note()] = dataclasses.field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Validate every field, and that what patterns need is given."""
        super().__post_init__()
        if self.num_positions is not None and self.seq_len is not None:
            usable = self.num_positions - self.spare_positions
            require_at_most("seq_len", self.seq_len, "num_positions", usable)

    @property
    def width(self) -> Size:
        """c: the head dim given, or d / h."""
        if self.head_dim is not None:
            return self.head_dim
        return divide("num_channels", self.num_channels, "num_heads", self.num_heads)

    def aspects(self) -> dict[str, tuple[str, ...]]:
        """What differs between layers: each aspect's words, which layers take in turn."""
        return {"attention": self.attention, "positions": self.positions}

    def norm_of(self, term: str, channels: Size | None = None, heads: Size = 1) -> Norm:
        """A norm as this model has them."""
        return Norm(
            term,
            self.num_channels if channels is None else channels,
            bias=self.norm_bias,
            rms=self.norm == "rms",
            scale=self.norm_scale,
            heads=heads,
        )

    def mask(self, kind: Kind) -> SelfMask:
        """The mask of a layer's attention."""
        if kind["attention"] == "full":
            return CAUSAL
        name = {"sliding": "window", "chunked": "chunk"}[kind["attention"]]
        size = getattr(self, name)
        if size is None:
            raise ValueError(
                f"{name} = None with attention = {self.attention}: expected an integer >= 1"
            )
        return Causal(size) if name == "window" else Chunked(size)

    def mixer(self, kind: Kind) -> Block:
        """What lets positions meet in a layer: attention."""
        d, h, c = self.num_channels, self.num_heads, self.width
        g = h if self.num_key_value_heads is None else self.num_key_value_heads
        divide("num_heads", h, "num_key_value_heads", g)
        norms: tuple[Norm, ...] = ()
        if self.query_key_norm == "whole":
            norms = (
                self.norm_of("query norm", multiply(h, c)),
                self.norm_of("key norm", multiply(g, c)),
            )
        elif self.query_key_norm is not None:
            has_scale = self.query_key_norm == "head"
            norms = tuple(
                dataclasses.replace(self.norm_of(term, c, heads), scale=has_scale)
                for term, heads in (("query norm", h), ("key norm", g))
            )
        turns = c if self.rotary_dim is None else self.rotary_dim
        return Attention(
            d,
            h,
            g,
            c,
            multiply(h, c),
            multiply(g, c),
            self.mask(kind),
            bias=self.qkv_bias,
            out_bias=self.out_bias,
            rotary=Rotary(turns) if kind["positions"] == "rotary" else None,
            norms=norms,
            gate=self.attention_gate,
            sinks=self.sinks,
            score_bias="alibi" if kind["positions"] == "alibi" else None,
            softcap=self.attention_softcap,
            clip=self.qkv_clip,
        )

    def feed_forward(self, kind: Kind) -> Block:
        """What works on each position of a layer: an MLP."""
        return MLP(
            self.num_channels,
            self.intermediate_size,
            self.mlp_bias,
            gated=self.gated,
            activation=self.activation,
        )

    def layer(self, kind: Kind) -> tuple[Block, ...]:
        """The blocks of a layer: mixer and feed-forward block, with their norms and residuals."""
        if self.parallel_norms is None:
            return self.residuals(kind)
        norms: tuple[Norm, ...] = (self.norm_of("norm"),)
        if self.parallel_norms == "two":
            norms += (self.norm_of("mlp norm"),)
        return (Parallel(norms, (self.mixer(kind), self.feed_forward(kind)), self.dropout),)

    def residuals(self, kind: Kind) -> tuple[Residual, Residual]:
        """The two blocks of a layer whose mixer and feed-forward block follow each other.

        Args:
            kind: What the layer is.

        Raises:
            ValueError: If they stand side by side.
        """
        if self.parallel_norms is not None:
            raise ValueError(
                f"parallel_norms = {quoted(self.parallel_norms)} of a {type(self).__name__}: "
                "expected None, since in its layers the feed-forward block follows the mixer"
            )
        return (
            self.residual("attention", "", self.mixer(kind)),
            self.residual("mlp", "mlp ", self.feed_forward(kind)),
        )

    def residual(self, name: str, prefix: str, block: Block) -> Residual:
        """A block, with the norms where this model has them."""
        own, placement = self.norm_of(f"{prefix}norm"), self.norm_placement
        return Residual(
            name,
            own if placement in ("pre", "both") else None,
            block,
            branch_norm=(
                self.norm_of(f"{prefix}branch norm")
                if placement == "both"
                else own
                if placement == "branch"
                else None
            ),
            sum_norm=own if placement == "post" else None,
            dropout=self.dropout,
        )

    def last_kind(self) -> dict[str, str]:
        """What the layers of modules that predict further tokens are: as the last of a period."""
        return {aspect: words[-1] for aspect, words in self.aspects().items()}

    def after(self, at: Pass) -> Network:
        """What follows the output layer: modules that predict further tokens, if there are any.

        Generation, a token at a time, runs none.

        Args:
            at: The pass.

        Raises:
            ValueError: If the token embedding has a width of its own, which they would not share.
        """
        if self.num_predictions is None:
            return ()
        if self.embedding_channels is not None:
            raise ValueError(
                f"num_predictions = {quoted(self.num_predictions)} with embedding_channels = "
                f"{quoted(self.embedding_channels)}: expected None, since modules that predict "
                "further tokens share the embedding and the output layer"
            )
        if at.inference is not None:
            return ()
        modules = MultiTokenPrediction(
            self.num_channels,
            self.vocab_size,
            self.tie_embeddings,
            self.num_predictions,
            self.layer(self.last_kind()),
        )
        return ((at, (modules,)),)

    def described(self) -> list[str]:
        """What the model is, in plain words, a line each."""
        lines = super().described()
        if self.num_predictions is not None:
            lines.append(f"further predictions: modules counted {shown(self.num_predictions)}")
        return lines

    def network(self, at: Pass) -> Network:
        """The embedding, layers in groups of equal ones, a final norm, the output layer."""
        d, e = self.num_channels, self.embedding_channels
        layers = tuple(
            Layers(group.name, group.number, self.layer(group.kind), group.pattern)
            for group in self.groups()
        )
        embedding = Embedding(
            d,
            self.vocab_size,
            self.num_positions,
            token_channels=e,
            scaled=self.scaled_embedding,
            norm=self.norm_of("embedding norm") if self.embedding_norm else None,
        )
        output = Output(
            d,
            self.vocab_size,
            self.tie_embeddings,
            self.output_bias,
            self.norm_of("final norm") if self.final_norm else None,
            token_channels=e,
            softcap=self.logit_softcap,
        )
        return ((at, (embedding, *layers, output)), *self.after(at))

    def _longest(self) -> tuple[str, Size] | None:
        """Those of a table of positions, if there is one."""
        if self.num_positions is None:
            return None
        return "num_positions", self.num_positions - self.spare_positions

    def described_mixer(self, kind: Kind) -> str:
        """A layer's attention in plain words."""
        groups = self.num_key_value_heads
        parts = [
            {
                "full": "attention to all earlier positions",
                "bidirectional": "attention to all positions",
                "sliding": f"attention to the last {shown(self.window)} positions",
                "chunked": f"attention within chunks of {shown(self.chunk)} positions",
            }[kind["attention"]],
            f"{shown(self.num_heads)} heads of {shown(self.width)} channels",
            "" if groups is None else f"{shown(groups)} of keys and values",
            {"rotary": "rotary positions", "alibi": "ALiBi", "none": ""}[kind["positions"]],
            {
                None: "",
                "head": "queries and keys normed per head",
                "head, no scale": "queries and keys normed per head, without scale",
                "whole": "queries and keys normed over their width",
            }[self.query_key_norm],
            "gated" * self.attention_gate,
            "sinks" * self.sinks,
            "biases" * (self.qkv_bias and self.out_bias),
            "biases but for the output" * (self.qkv_bias and not self.out_bias),
        ]
        return ", ".join(filter(None, parts))

    def described_feed_forward(self, kind: Kind) -> str:
        """A layer's MLP in plain words."""
        return (
            f"{'gated ' * self.gated}MLP of {shown(self.intermediate_size)} channels, "
            f"{self.activation}{', biases' * self.mlp_bias}"
        )
