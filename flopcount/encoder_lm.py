"""Encoders, and encoders with a decoder that attends to what they give."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated

from flopcount.architectures import Choice, Dimension, Pattern
from flopcount.blocks import (
    ACTIVATIONS,
    Attention,
    Block,
    Embedding,
    Layers,
    Network,
    Norm,
    Output,
)
from flopcount.causal_lm import CausalLM, Kind
from flopcount.count import ParameterCount
from flopcount.experts import named
from flopcount.finetuning import FineTuning
from flopcount.masks import Full, SelfMask
from flopcount.operations import Pass, attend, cache, linear, shared_input, work
from flopcount.rows import AnyRow, Tensor, Value, on
from flopcount.sizes import Size, equal, quoted
from flopcount.tables import shown

DEVLIN_2018 = "Devlin et al. 2018 (arXiv 1810.04805)"
RAFFEL_2019 = "Raffel et al. 2019 (arXiv 1910.10683), section 2.1"


@dataclasses.dataclass(frozen=True)
class InLayer:
    """Blocks under a layer's name.

    Attributes:
        name: The layer's.
        blocks: What it does.
    """

    name: str
    blocks: tuple[Block, ...]

    def rows(self, at: Pass) -> Iterator[AnyRow]:
        """The rows of the blocks."""
        for block in self.blocks:
            yield from block.rows(at.at(layer=self.name))


@dataclasses.dataclass(frozen=True)
class TokenTypes:
    """A learned embedding of what each token is of, such as the first of two sentences.

    Attributes:
        channels: d.
        number: How many types there are.

    Source: Devlin et al. 2018 (arXiv 1810.04805), section 3.
    """

    channels: Size
    number: Size

    def rows(self, at: Pass) -> Iterator[AnyRow]:
        """One addition per element, and one into the table backward."""
        yield Tensor("self", "embedding", "token type", (self.number, self.channels))
        reason = "forward: token + type; backward: one addition into the table"
        yield from work(
            at.at(layer="embedding"), "token type", self.channels, 1, 1, reason,
            parts=((1, (("embedding", "token type"),)),),
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Transform:
    """What the head for masked tokens does before the logits: 2nd² FLOPs per sequence.

    Attributes:
        channels: d.
        activation: A key of :data:`~flopcount.blocks.ACTIVATIONS`.
        norm: Behind it.

    Source: the code of Devlin et al. 2018 (arXiv 1810.04805).
    """

    channels: Size
    activation: str
    norm: Norm

    def rows(self, at: Pass) -> Iterator[AnyRow]:
        """A linear layer, an activation, a norm."""
        yield from linear(
            at, "transform", self.channels, self.channels, bias=True, source=DEVLIN_2018
        )
        function = ACTIVATIONS[self.activation]
        costs = function.forward_cost, function.backward_cost
        term = f"transform {self.activation}"
        yield from work(at, term, self.channels, *costs, function.reason, "input")
        yield from self.norm.rows(at)


@dataclasses.dataclass(frozen=True)
class Pooler:
    """A linear layer and a tanh on the first position alone: 2d² FLOPs per sequence.

    Attributes:
        channels: d.

    Source: the code of Devlin et al. 2018 (arXiv 1810.04805).
    """

    channels: Size

    def rows(self, at: Pass) -> Iterator[AnyRow]:
        """The linear layer and the tanh."""
        first = at.at(length=1)
        yield from linear(
            first, "pooler", self.channels, self.channels, bias=True, source=DEVLIN_2018
        )
        reason = "forward: tanh; backward: t², 1 -, times dy"
        yield from work(first, "pooler tanh", self.channels, 1, 3, reason, "output")


@dataclasses.dataclass(frozen=True)
class PositionBias:
    """A learned number for each head and each bucket of distances, shared by a stack's layers.

    Attributes:
        buckets: How many.
        num_heads: h.

    Source: Raffel et al. 2019 (arXiv 1910.10683), section 2.1.
    """

    buckets: Size
    num_heads: Size

    def rows(self, at: Pass) -> Iterator[AnyRow]:
        """The table alone: what it adds to scores is each layer's work."""
        yield Tensor("self", at.layer, "position bias", (self.buckets, self.num_heads))
        yield Value((), "position bias", ((at.layer, "position bias"),))


@dataclasses.dataclass(frozen=True)
class CrossAttention:
    """Attention of n positions to all s positions of another stack.

    Per sequence 2n·2dhc FLOPs for queries and output, 2s·2dgc for keys and values, and 2h·ns·c
    each for scores and values. Keys and values are made once, and decoding finds them in the cache.

    Attributes:
        attention: What attention of the positions to themselves would be.
        source_length: s.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.2.3.

    >>> from flopcount.rows import Product
    >>> block = CrossAttention(Attention(6, 2, 2, 3, 6, 6), source_length=5)
    >>> [(row.term, row.M, row.N, row.K) for row in block.rows(Pass(1, 4)) if type(row) is Product]
    ... # doctest: +NORMALIZE_WHITESPACE
    [('cross query', 4, 6, 6), ('cross key', 5, 6, 6), ('cross value', 5, 6, 6),
     ('cross scores', 4, 5, 3), ('cross values', 4, 5, 3), ('cross out', 4, 6, 6)]
    """

    attention: Attention
    source_length: Size

    def rows(self, at: Pass) -> Iterator[AnyRow]:
        """Under names of their own, beside those of self-attention in the same layer."""
        yield from named(self._rows(at), "cross")

    def _rows(self, at: Pass) -> Iterator[AnyRow]:
        inner, source = self.attention, at.at(length=self.source_length)
        d, c = inner.channels, inner.head_dim
        for name in ("keys", "values"):
            yield from cache(at, name, self.source_length, inner.key_channels)
        yield from linear(at, "query", d, inner.query_channels, bias=inner.bias, writes="query")
        if at.inference != "decode":
            for term in ("key", "value"):
                yield from linear(
                    source, term, d, inner.key_channels, bias=inner.bias,
                    reads="source", writes=term,
                )  # fmt: skip
            yield from shared_input(source, "projection input gradients", d, 1, "source")
        if inner.scale:
            reason = "forward: times c^-½; backward: the same"
            yield from on("query", work(at, "query scale", inner.query_channels, 1, 1, reason))
        yield from attend(at, inner.num_heads, self.source_length, c, c, Full())
        yield from linear(at, "out", inner.query_channels, d, bias=inner.out_bias)


@dataclasses.dataclass(frozen=True)
class SourceGradients:
    """What L decoder layers read of the encoder gets a gradient from each.

    Attributes:
        channels: d.
        others: L - 1.
    """

    channels: Size
    others: Size

    def rows(self, at: Pass) -> Iterator[AnyRow]:
        """One addition per element and layer beyond the first, backward."""
        yield Value(("x",), "source")
        layers = at.at(layer="decoder", layers=self.others)
        reason = "backward: the gradients that decoder layers give are added"
        yield from on("source", work(layers, "source gradients", self.channels, 0, 1, reason))
        # The decoder begins anew, with tokens of its own.
        yield Value((), "x")


@dataclasses.dataclass(frozen=True)
class OutputScale:
    """What a tied output layer reads is multiplied by d^-½.

    Attributes:
        channels: d.

    Source: Raffel et al. 2019 (arXiv 1910.10683), code.
    """

    channels: Size

    def rows(self, at: Pass) -> Iterator[AnyRow]:
        """One product forward, and one backward."""
        reason = "forward: times d^-½; backward: the same"
        yield from work(at, "output scale", self.channels, 1, 1, reason)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderLM(CausalLM):
    """An encoder: every position attends to every other; without options, in BERT's shape.

    Attributes:
        attention: ``"bidirectional"``: all positions.
        token_types: Rows of a table of token types; None without one.
        head: ``"masked"``: a linear layer, a norm and logits at every position; ``"pooler"``: a
            linear layer at the first position, no logits and no loss.

    Raises:
        TypeError: If a field has the wrong type.
        ValueError: As of :class:`~flopcount.CausalLM`.

    Source: Devlin et al. 2018 (arXiv 1810.04805).

    >>> bert = EncoderLM(vocab_size=30522, num_channels=768, num_layers=12, num_heads=12,
    ...                  intermediate_size=3072, num_positions=512, token_types=2,
    ...                  head="pooler")
    >>> bert.params().total
    109482240

    """

    stack = "encoder"

    attention: Annotated[tuple[str, ...], Pattern(("bidirectional",))] = ("bidirectional",)
    positions: Annotated[tuple[str, ...], Pattern(("none",))] = ("none",)
    qkv_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True
    gated: bool = False
    activation: Annotated[str, Choice(tuple(ACTIVATIONS))] = "gelu"
    norm: Annotated[str, Choice(("rms", "layer"))] = "layer"
    norm_bias: bool = True
    norm_placement: Annotated[str, Choice(("pre", "branch", "both", "post"))] = "post"
    final_norm: bool = False
    embedding_norm: bool = True
    tie_embeddings: bool = True
    output_bias: bool = True
    token_types: Annotated[Size | None, Dimension()] = None
    head: Annotated[str, Choice(("masked", "pooler"))] = "masked"

    def mask(self, kind: Kind) -> SelfMask:
        """Every pair."""
        return Full()

    def network(self, at: Pass) -> Network:
        """Token types, then what other models have, with a head of its own."""
        if self.num_predictions is not None:
            raise ValueError(
                f"num_predictions = {quoted(self.num_predictions)} of an encoder: expected None, "
                "since its positions attend to those behind them"
            )
        ((_, blocks),) = super().network(at)
        if self.token_types is not None:
            blocks = (TokenTypes(self.num_channels, self.token_types), *blocks)
        *before, output = blocks
        if self.head == "pooler":
            return ((at, (*before, InLayer("output", (Pooler(self.num_channels),)))),)
        norm = self.norm_of("transform norm")
        transform = Transform(self.num_channels, self.activation, norm)
        return ((at, (*before, InLayer("output", (transform,)), output)),)

    def _placed(self, at: Pass, num_latents: Size | None) -> Pass:
        """No pass generates.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            f"{type(self).__name__} is an encoder: all positions attend to all, so none is read "
            "behind a cache; expected flops(training=False), a pass over a whole sequence"
        )

    def described(self) -> list[str]:
        """What the model is, in plain words, a line each."""
        lines = super().described()
        if self.head == "pooler":
            lines.append("no logits: a pooler reads the first position")
        return lines


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderDecoderLM(CausalLM):
    """An encoder, and a decoder whose layers attend to themselves and to it; in T5's shape.

    Tokens are those of the decoder: ``per_token`` and ``for_tokens`` are per decoder token, with
    the encoder's share in them.

    Attributes:
        num_layers: L, of the encoder.
        seq_len: s, positions of the encoder; None as ``target_len``.
        target_len: n, positions of the decoder, which predict; None where only what needs none is
            asked for, such as parameters.
        num_decoder_layers: Layers of the decoder; L unless given.
        attention: ``"bidirectional"``: all positions, in the encoder; the decoder's own attention
            is causal.
        position_buckets: Buckets of distances for which each head learns a bias of its scores.

    Raises:
        TypeError: If a field has the wrong type.
        ValueError: As of :class:`~flopcount.CausalLM`.

    Source: Vaswani et al. 2017 (arXiv 1706.03762); Raffel et al. 2019 (arXiv 1910.10683).

    >>> t5 = EncoderDecoderLM(vocab_size=32128, num_channels=768, num_layers=12, num_heads=12,
    ...                       head_dim=64, intermediate_size=3072)  # T5-base
    >>> t5.params().total
    222903552

    """

    seq_len: Annotated[Size | None, Dimension("s", "positions of the encoder")] = None
    target_len: Annotated[Size | None, Dimension("n", "positions of the decoder")] = None
    num_decoder_layers: Annotated[Size | None, Dimension("D", "layers of the decoder")] = None
    attention: Annotated[tuple[str, ...], Pattern(("bidirectional",))] = ("bidirectional",)
    positions: Annotated[tuple[str, ...], Pattern(("none",))] = ("none",)
    position_buckets: Annotated[Size, Dimension()] = 32
    gated: bool = False
    activation: Annotated[str, Choice(tuple(ACTIVATIONS))] = "relu"
    tie_embeddings: bool = True

    @property
    def length(self) -> Size:
        """How many positions predict: n, of the decoder.

        Raises:
            ValueError: If ``seq_len`` or ``target_len`` was not given.
        """
        if self.target_len is None or self.seq_len is None:
            raise ValueError(
                f"seq_len = {self.seq_len} and target_len = {self.target_len}: expected integers "
                ">= 1, the positions of the encoder and of the decoder whose FLOPs are counted, "
                "such as seq_len=512, target_len=128 or, on the command line, --seq-len 512 "
                "--target-len 128"
            )
        return self.target_len

    @property
    def decoder_layers(self) -> Size:
        """Layers of the decoder."""
        return self.num_layers if self.num_decoder_layers is None else self.num_decoder_layers

    def lettered(self) -> dict[str, Dimension]:
        """Positions of both stacks even where they are not given."""
        kind = self.kinds()["target_len"]
        return super().lettered() | {"target_len": kind}

    def mask(self, kind: Kind) -> SelfMask:
        """Every pair in the encoder; causal in the decoder."""
        return Full() if kind["attention"] == "bidirectional" else super().mask(kind)

    def mixer(self, kind: Kind) -> Block:
        """Attention whose scores are not scaled, and have a bias by the distance."""
        attention = super().mixer(kind)
        assert isinstance(attention, Attention)
        return dataclasses.replace(attention, scale=False, score_bias="relative")

    def network(self, at: Pass) -> Network:
        """The encoder in a pass of its own, then the decoder; the tables of tokens are one."""
        d = self.num_channels
        if self.num_predictions is not None:
            raise ValueError(
                f"num_predictions = {quoted(self.num_predictions)} of an encoder-decoder: expected "
                "None, since no such model predicts further tokens"
            )
        source_length = 1 if self.seq_len is None else self.seq_len
        if at.inference is not None:
            source_length = at.memory
        read = 0 if at.inference == "decode" else source_length
        encoded = {"attention": "bidirectional", "positions": "none"}
        decoded = encoded | {"attention": "full"}
        attention = self.mixer(decoded)
        assert isinstance(attention, Attention)
        own, mlp = self.residuals(decoded)
        across = self.residual("cross", "cross ", CrossAttention(attention, source_length))
        bias = PositionBias(self.position_buckets, self.num_heads)
        encoder = (
            Embedding(d, self.vocab_size),
            InLayer("encoder", (bias,)),
            Layers("encoder", self.num_layers, self.layer(encoded)),
            InLayer("encoder output", (self.norm_of("final norm"),)),
            SourceGradients(d, self.decoder_layers - 1),
        )
        scale = (OutputScale(d),) if self.tie_embeddings else ()
        decoder = (
            Embedding(d),
            InLayer("decoder", (bias,)),
            Layers("decoder", self.decoder_layers, (own, across, mlp)),
            InLayer("output", (self.norm_of("final norm"), *scale)),
            Output(d, self.vocab_size, self.tie_embeddings),
        )
        # The first pass is the one whose tokens count.
        source = at.at(length=read, cached=0, chunk=None, inference=None, logits=None)
        return ((at, ()), (source, encoder), (at, decoder))

    def _after_prompt(self, prompt_len: Size, num_latents: Size | None) -> dict[str, Size | None]:
        """The encoder's positions, and the token that the decoder begins with."""
        return {"cached": 1, "memory": prompt_len}

    def _require_documents(self) -> None:
        """A decoder's positions attend to all of the encoder's."""
        raise ValueError(
            "documents of an encoder-decoder: expected None, since its two stacks have lengths of "
            "their own"
        )

    def _placed(self, at: Pass, num_latents: Size | None) -> Pass:
        """The encoder reads a prompt, and the decoder one token, which begins every answer.

        Behind a cache, the encoder's positions are those of the prompt, or ``seq_len``.

        Raises:
            ValueError: If a prompt is to be read in chunks or behind a cache, or its length is not
                known.
        """
        if num_latents is not None:
            return super()._placed(at, num_latents)
        if at.inference == "prefill":
            if at.chunk is not None or not equal(at.cached, 0):
                raise ValueError(
                    f"chunk = {quoted(at.chunk)}, cached = {quoted(at.cached)} of an encoder's "
                    "prompt: expected neither, since its positions attend to all"
                )
            return at.at(length=1, memory=at.length)
        memory = self.seq_len if equal(at.memory, 0) else at.memory
        if memory is None:
            raise ValueError(
                "seq_len = None: expected the positions of the encoder, to which those of the "
                "decoder attend; give it when the model is made: seq_len=512"
            )
        return at.at(memory=memory)

    def params(self, tuning: FineTuning | None = None) -> ParameterCount:
        """Parameters, tensor by tensor; a token is one of the encoder and one of the decoder."""
        one = dataclasses.replace(self, seq_len=None, target_len=None)
        return dataclasses.replace(super(EncoderDecoderLM, one).params(tuning), model=self)

    def described(self) -> list[str]:
        """What the model is, in plain words, a line each."""
        lines = super().described()
        attention = f"{shown(self.num_heads)} heads of {shown(self.width)} channels"
        lines[-1] = lines[-1].replace("layers, all", "layers, encoder", 1)
        lines.append(
            f"{shown(self.decoder_layers)} layers, decoder: attention to all earlier positions and "
            f"to those of the encoder, {attention} each; the MLP of the encoder's layers"
        )
        return lines
