"""Decoder-only language models with mixtures of experts, latent attention, further predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any

from flopcount.architectures import Choice, Dimension, Pattern
from flopcount.blocks import MLP, Block
from flopcount.causal_lm import CausalLM, Kind
from flopcount.experts import SCORES, MixtureOfExperts, Router
from flopcount.latent import LatentAttention
from flopcount.operations import Pass, work
from flopcount.rows import AnyRow
from flopcount.sizes import Size, multiply, quoted, require_at_most
from flopcount.tables import shown

LATENT = ("key_value_rank", "plain_dim", "rotary_dim", "value_dim")
"""Sizes of attention with latents; channels may turn without them, too."""


@dataclasses.dataclass(frozen=True)
class Temperature:
    """Queries are multiplied by a number that depends on their position alone.

    Attributes:
        channels: Of all heads' queries.

    Source: Nakanishi 2025 (arXiv 2501.19399).
    """

    channels: Size

    def rows(self, at: Pass) -> Iterator[AnyRow]:
        """One product forward, and one backward."""
        reason = "forward: times a constant of the position; backward: the same"
        yield from work(at, "query temperature", self.channels, 1, 1, reason)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureLM(CausalLM):
    """A decoder-only language model in some of whose layers each token uses k of E experts.

    Attributes:
        mlp: What works on each position of a layer, in turn: a ``"dense"`` MLP of
            ``intermediate_size`` channels or, ``"sparse"``, a mixture of experts.
        num_experts: E, in a sparse layer.
        experts_per_token: k, at most E.
        expert_size: x, hidden channels of an expert.
        expert_bias: Whether the linear layers of experts have biases.
        shared_size: y, hidden channels of an MLP beside the experts that every token uses; None
            without one.
        shared_gate: Whether a projection of the input to one channel gates it.
        shared_first: Whether it is executed before the experts.
        router_scores: The function of the router's scores.
        router_after_choice: Whether it acts on the chosen scores alone.
        router_normalised: Whether the weights of the chosen experts are divided by their sum.
        router_scaled: Whether they are multiplied by a constant.
        router_bias: Whether scores have a bias.
        router_correction: Whether a buffer of E numbers corrects the choice.
        weighted: Whether the weights multiply the ``"output"`` of experts or their ``"input"``.
        query_rank: q, channels of the latent of queries; projected directly unless given.
        key_value_rank: l, channels of the latent of keys and values; None without latents. With
            them, what describes other attention (g, c, norms of queries and keys, biases, sinks, a
            gate, a cap) has no effect.
        plain_dim: A, channels of a head's queries and keys that do not turn, with latents;
            ``rotary_dim`` turn.
        value_dim: v, channels of a head's values, with latents.
        latent_bias: Whether the projections to latents, and of what the heads give, have biases.
        norms_with_rotary: Whether only layers with rotary positions have norms of queries and keys.
        query_temperature: Whether queries of other layers are scaled by their position.

    Raises:
        TypeError: If a field has the wrong type.
        ValueError: As of :class:`~flopcount.CausalLM`; if k exceeds E, or sizes of latent attention
            are missing.

    Source: Shazeer et al. 2017 (arXiv 1701.06538); DeepSeek-AI 2024 (arXiv 2405.04434) for latents,
    (arXiv 2412.19437) for further predictions.

    >>> mixtral = MixtureLM(vocab_size=32000, num_channels=4096, num_layers=32, num_heads=32,
    ...                     num_key_value_heads=8, intermediate_size=14336, num_experts=8,
    ...                     experts_per_token=2, expert_size=14336)  # Mixtral-8x7B
    >>> mixtral.params().total, mixtral.params().active
    (46702792704, 12879925248)

    """

    mlp: Annotated[tuple[str, ...], Pattern(("dense", "sparse"))] = ("sparse",)
    num_experts: Annotated[Size, Dimension("E", "experts")]
    experts_per_token: Annotated[Size, Dimension("k", "of them for a token")]
    expert_size: Annotated[Size, Dimension("x", "hidden channels of an expert")]
    expert_bias: bool = False
    shared_size: Annotated[Size | None, Dimension("y", "hidden channels of the shared MLP")] = None
    shared_gate: bool = False
    shared_first: bool = False
    router_scores: Annotated[str, Choice(tuple(SCORES))] = "softmax"
    router_after_choice: bool = False
    router_normalised: bool = False
    router_scaled: bool = False
    router_bias: bool = False
    router_correction: bool = False
    weighted: Annotated[str, Choice(("output", "input"))] = "output"
    query_rank: Annotated[Size | None, Dimension("q", "channels of the queries' latent")] = None
    key_value_rank: Annotated[Size | None, Dimension("l", "channels of the latent")] = None
    plain_dim: Annotated[Size | None, Dimension("a", "channels of a head that do not turn")] = None
    value_dim: Annotated[Size | None, Dimension("v", "channels of a head's values")] = None
    latent_bias: bool = False
    norms_with_rotary: bool = False
    query_temperature: bool = False

    def __post_init__(self) -> None:
        """Validate every field, and that k is at most E."""
        super().__post_init__()
        require_at_most(
            "experts_per_token", self.experts_per_token, "num_experts", self.num_experts
        )

    @property
    def latent(self) -> bool:
        """Whether keys and values have a latent.

        Raises:
            ValueError: If some of its sizes are given, and others not.
        """
        sizes = {name: getattr(self, name) for name in LATENT}
        missing = [name for name, size in sizes.items() if size is None]
        own = {**sizes, "rotary_dim": None, "query_rank": self.query_rank}
        if missing and any(size is not None for size in own.values()):
            listed = ", ".join(f"{name} = {quoted(size)}" for name, size in sizes.items())
            raise ValueError(f"{listed}: expected all of them, or none and no query_rank")
        return not missing

    @property
    def width(self) -> Size:
        """Channels of a head's queries and keys, those that turn and those that do not."""
        if not self.latent:
            return super().width
        plain: Size = self.plain_dim
        return plain + self.rotary_dim

    def aspects(self) -> dict[str, tuple[str, ...]]:
        """Dense and sparse layers beside what other models have."""
        return {**super().aspects(), "mlp": self.mlp}

    def mixer(self, kind: Kind) -> Block:
        """Attention, with latents or without."""
        if self.latent:
            return LatentAttention(
                self.num_channels,
                self.num_heads,
                self.query_rank,
                self.key_value_rank,
                self.plain_dim,
                self.rotary_dim,
                self.value_dim,
                self.latent_bias,
                self.mask(kind),
            )
        attention: Any = super().mixer(kind)
        if kind["positions"] != "rotary":
            norms = () if self.norms_with_rotary else attention.norms
            if self.query_temperature:
                norms = (*norms, Temperature(multiply(self.num_heads, self.width)))
            attention = dataclasses.replace(attention, norms=norms)
        return attention  # type: ignore[no-any-return]

    def feed_forward(self, kind: Kind) -> Block:
        """An MLP, or experts."""
        if kind["mlp"] == "dense":
            return super().feed_forward(kind)

        def mlp(hidden: Size, bias: bool) -> MLP:
            return MLP(
                self.num_channels, hidden, bias, gated=self.gated, activation=self.activation
            )

        router = Router(
            self.router_scores,
            self.router_after_choice,
            self.router_normalised,
            self.router_scaled,
            self.router_bias,
            self.router_correction,
        )
        return MixtureOfExperts(
            self.num_channels,
            self.num_experts,
            self.experts_per_token,
            mlp(self.expert_size, self.expert_bias),
            router,
            None if self.shared_size is None else mlp(self.shared_size, self.mlp_bias),
            self.shared_gate,
            self.shared_first,
            self.weighted,
        )

    def _has_latents(self) -> bool:
        """Whether the sizes of latents are given."""
        return self.key_value_rank is not None

    def last_kind(self) -> dict[str, str]:
        """The last layer's, with experts."""
        return super().last_kind() | {"mlp": "sparse"}

    def described_mixer(self, kind: Kind) -> str:
        """A layer's attention in plain words."""
        if not self.latent:
            without_norms = self.norms_with_rotary and kind["positions"] != "rotary"
            model = dataclasses.replace(self, query_key_norm=None) if without_norms else self
            return super(MixtureLM, model).described_mixer(kind)
        queries = "" if self.query_rank is None else f", queries of one of {shown(self.query_rank)}"
        return (
            f"latent attention, keys and values of a latent of {shown(self.key_value_rank)} "
            f"channels{queries}, {shown(self.num_heads)} heads of {shown(self.plain_dim)} + "
            f"{shown(self.rotary_dim)} rotary channels, values of {shown(self.value_dim)}"
        )

    def described_feed_forward(self, kind: Kind) -> str:
        """A layer's MLP or experts in plain words."""
        if kind["mlp"] == "dense":
            return super().described_feed_forward(kind)
        shared = ""
        if self.shared_size is not None:
            gated = " behind a gate" * self.shared_gate
            shared = f" and a shared MLP of {shown(self.shared_size)}{gated}"
        return (
            f"{shown(self.experts_per_token)} of {shown(self.num_experts)} experts of "
            f"{shown(self.expert_size)} channels{shared}, {self.activation}"
        )
