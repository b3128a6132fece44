"""Language models with a scan in place of attention: in some layers, or in all."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any

from flopcount.architectures import (
    Channels,
    Choice,
    Dimension,
    Note,
    NumLayers,
    Pattern,
    Vocabulary,
)
from flopcount.blocks import ACTIVATIONS, Block, Embedding, Layers, Network, Norm, Output, Residual
from flopcount.causal_lm import Kind, LanguageModel
from flopcount.mixture_lm import MixtureLM
from flopcount.operations import Pass, work
from flopcount.recurrent import GatedDeltaNet, LightningAttention, Mamba1, Mamba2
from flopcount.rows import AnyRow
from flopcount.sizes import Size, divide, quoted
from flopcount.tables import shown

Taps = Annotated[Size, Dimension("t", "positions that the convolution reads")]
ScanChunk = Annotated[Size, Dimension("C", "positions of a scan's chunk")]
Rows = Annotated[Size, Dimension("N", "rows of a state")]


def keeps_its_state(model: LanguageModel) -> bool:
    """False: a state cannot be put back to what it was before the last positions."""
    return False


def in_one_pass(model: LanguageModel, at: Pass, num_latents: Size | None) -> Pass:
    """The pass, but in chunks: how a scan is executed behind a state is not counted.

    Raises:
        ValueError: If it is in chunks.
    """
    if at.inference == "prefill" and at.chunk is not None:
        raise ValueError(
            f"chunk = {quoted(at.chunk)} of a {type(model).__name__}: expected None, since the "
            "chunks of a scan are its own"
        )
    return LanguageModel._placed(model, at, num_latents)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HybridLM(MixtureLM):
    """A decoder-only language model with attention in some layers and a scan in others.

    Attributes:
        mixers: What lets positions meet in a layer, in turn: ``"attention"`` or a ``"scan"``.
    """

    mixers: Annotated[tuple[str, ...], Pattern(("attention", "scan"))]

    _forgets = keeps_its_state
    _placed = in_one_pass

    @abc.abstractmethod
    def scan(self) -> Block:
        """The block in place of attention."""

    @abc.abstractmethod
    def described_scan(self) -> str:
        """It in plain words."""

    def aspects(self) -> dict[str, tuple[str, ...]]:
        """Attention and scans beside what other models have."""
        return {"mixer": self.mixers, **super().aspects()}

    def mixer(self, kind: Kind) -> Block:
        """Attention, or a scan."""
        return self.scan() if kind["mixer"] == "scan" else super().mixer(kind)

    def described_mixer(self, kind: Kind) -> str:
        """A layer's attention or scan in plain words."""
        return self.described_scan() if kind["mixer"] == "scan" else super().described_mixer(kind)


@dataclasses.dataclass(frozen=True)
class Scaled:
    """A residual whose input or branch is multiplied by constants.

    Attributes:
        residual: The residual.
        channels: d.
        factors: How many of its two operands are.
    """

    residual: Residual
    channels: Size
    factors: Size

    def rows(self, at: Pass) -> Iterator[AnyRow]:
        """The residual, and a product with each constant."""
        yield from self.residual.rows(at)
        reason = "forward: one product with a constant; backward: the same"
        term = f"{self.residual.name} residual factors"
        yield from work(at, term, self.factors * self.channels, 1, 1, reason)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LightningLM(HybridLM):
    """A decoder-only language model with lightning attention in some layers, as MiniMax-Text-01.

    Residuals start from the normed input: y = α·norm(x) + β·block(norm(x)).

    Attributes:
        scan_chunk: C, positions of a chunk of lightning attention; its heads are attention's.
        attention_factors: How many of α and β of attention are not 1.
        scan_factors: Of lightning attention.
        mlp_factors: Of the experts.

    Source: MiniMax 2025 (arXiv 2501.08313), section 2.
    """

    scan_chunk: ScanChunk
    attention_factors: Annotated[Size, Dimension(minimum=0)] = 0
    scan_factors: Annotated[Size, Dimension(minimum=0)] = 0
    mlp_factors: Annotated[Size, Dimension(minimum=0)] = 0

    def scan(self) -> Block:
        """Lightning attention."""
        return LightningAttention(
            self.num_channels, self.num_heads, self.width, self.scan_chunk, self.activation
        )

    def described_scan(self) -> str:
        """It in plain words."""
        return (
            f"lightning attention, {shown(self.num_heads)} heads of {shown(self.width)} channels, "
            f"in chunks of {shown(self.scan_chunk)}"
        )

    def layer(self, kind: Kind) -> tuple[Block, ...]:
        """Mixer and experts, with the factors of their residuals."""
        factors = {
            "attention": self.attention_factors
            if kind["mixer"] == "attention"
            else self.scan_factors,
            "mlp": self.mlp_factors,
        }
        return tuple(
            Scaled(block, self.num_channels, factors[block.name]) for block in self.residuals(kind)
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeltaNetLM(HybridLM):
    """A decoder-only language model with a gated delta net in some layers, as Qwen3-Next.

    Attributes:
        scan_key_heads: Heads of queries and keys of the delta net.
        scan_value_heads: Of its values and states; a multiple of these.
        scan_key_dim: Channels of one of its keys.
        scan_value_dim: Channels of one of its values.
        taps: Positions that its convolution reads.
        scan_chunk: C, positions of a chunk.

    Source: Yang et al. 2024 (arXiv 2412.06464); Qwen team 2025, Qwen3-Next.
    """

    scan_key_heads: Annotated[Size, Dimension("p", "key heads of a scan")]
    scan_value_heads: Annotated[Size, Dimension("s", "value heads of a scan")]
    scan_key_dim: Annotated[Size, Dimension("b", "channels of a scan's key")]
    scan_value_dim: Annotated[Size, Dimension("z", "channels of a scan's value")]
    taps: Taps
    scan_chunk: ScanChunk

    def scan(self) -> Block:
        """The gated delta net."""
        divide("scan_value_heads", self.scan_value_heads, "scan_key_heads", self.scan_key_heads)
        return GatedDeltaNet(
            self.num_channels,
            self.scan_key_heads,
            self.scan_value_heads,
            self.scan_key_dim,
            self.scan_value_dim,
            self.taps,
            self.scan_chunk,
            self.activation,
        )

    def described_scan(self) -> str:
        """It in plain words."""
        return (
            f"gated delta net, {shown(self.scan_value_heads)} heads of values of "
            f"{shown(self.scan_value_dim)} channels on {shown(self.scan_key_heads)} of keys of "
            f"{shown(self.scan_key_dim)}, a convolution of {shown(self.taps)} positions"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mamba1LM(HybridLM):
    """A decoder-only language model with Mamba-1 in some layers, as Jamba.

    Attributes:
        scan_channels: Channels within the block.
        scan_state: N, rows of each channel's state.
        scan_rank: Channels that the step size is projected from.
        taps: Positions that the convolution reads.
        scan_bias: Whether the projections in and out have biases.
        convolution_bias: Whether the convolution has one.

    Source: Lieber et al. 2024 (arXiv 2403.19887).
    """

    scan_channels: Annotated[Size, Dimension("i", "channels of a scan")]
    scan_state: Rows
    scan_rank: Annotated[Size, Dimension("R", "channels of the step size")]
    taps: Taps
    scan_bias: bool = False
    convolution_bias: bool = True

    def scan(self) -> Block:
        """Mamba-1, with norms."""
        return Mamba1(
            self.num_channels,
            self.scan_channels,
            self.scan_state,
            self.scan_rank,
            self.taps,
            self.scan_bias,
            self.convolution_bias,
            self.activation,
        )

    def described_scan(self) -> str:
        """It in plain words."""
        return (
            f"Mamba-1 of {shown(self.scan_channels)} channels with states of "
            f"{shown(self.scan_state)}, step sizes of rank {shown(self.scan_rank)}, a convolution "
            f"of {shown(self.taps)} positions"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mamba2LM(LanguageModel):
    """A decoder-only language model whose layers are Mamba-2 alone.

    Attributes:
        vocab_size: V.
        num_channels: d.
        num_layers: L.
        num_heads: h, heads of a state each.
        head_dim: P, columns of a state.
        state: N, rows of a state.
        head_groups: g, groups of heads that share what writes and reads their states.
        taps: Positions that the convolution reads.
        chunk: C, positions of a chunk.
        seq_len: n, positions; None where only what needs none is asked for, such as parameters.
        bias: Whether the projections have biases.
        convolution_bias: Whether the convolution has one.
        activation: Of the convolution.
        tie_embeddings: Whether the output layer's weight is the token embedding.
        reading: Of a model read from a config: what was read, and what was not.

    Source: Dao and Gu 2024 (arXiv 2405.21060).

    >>> codestral = Mamba2LM(vocab_size=32768, num_channels=4096, num_layers=64, num_heads=128,
    ...                      head_dim=64, state=128, head_groups=8, taps=4,
    ...                      chunk=256)
    >>> codestral.params().total
    7285403648

    """

    vocab_size: Vocabulary
    num_channels: Channels
    num_layers: NumLayers
    num_heads: Annotated[Size, Dimension("h", "heads")]
    head_dim: Annotated[Size, Dimension("P", "columns of a state")]
    state: Rows
    head_groups: Annotated[Size, Dimension("g", "groups of heads")]
    taps: Taps
    chunk: ScanChunk
    seq_len: Annotated[Size | None, Dimension("n", "positions")] = None
    bias: bool = False
    convolution_bias: bool = True
    activation: Annotated[str, Choice(tuple(ACTIVATIONS))] = "silu"
    tie_embeddings: bool = False
    reading: Annotated[Any, Note()] = dataclasses.field(default=None, compare=False, repr=False)

    _forgets = keeps_its_state
    _placed = in_one_pass

    def aspects(self) -> dict[str, tuple[str, ...]]:
        """All layers are equal."""
        return {"mixer": ("scan",)}

    def scan(self) -> Block:
        """Mamba-2."""
        divide("num_heads", self.num_heads, "head_groups", self.head_groups)
        return Mamba2(
            self.num_channels,
            self.num_heads,
            self.head_dim,
            self.state,
            self.head_groups,
            self.taps,
            self.chunk,
            self.bias,
            self.convolution_bias,
            self.activation,
        )

    def network(self, at: Pass) -> Network:
        """The embedding, L layers of a norm and Mamba-2, a final norm, the output layer."""
        d = self.num_channels
        norm, final = (Norm(term, d, bias=False, rms=True) for term in ("norm", "final norm"))
        scan = Residual("scan", norm, self.scan())
        layers = tuple(
            Layers(group.name, group.number, (scan,), group.pattern) for group in self.groups()
        )
        output = Output(d, self.vocab_size, self.tie_embeddings, norm=final)
        return ((at, (Embedding(d, self.vocab_size), *layers, output)),)

    def described_mixer(self, kind: Kind) -> str:
        """Mamba-2 in plain words."""
        return (
            f"Mamba-2, {shown(self.num_heads)} heads of {shown(self.head_dim)} channels with "
            f"states of {shown(self.state)} rows in {shown(self.head_groups)} groups, chunks of "
            f"{shown(self.chunk)}, a convolution of {shown(self.taps)} positions"
            + ", biases"
            * self.bias
        )

    def described_feed_forward(self, kind: Kind) -> str:
        """There is none."""
        return "no MLP"
