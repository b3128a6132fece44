"""Decoder-only transformer with latent attention in three forms, with the same weights and logits.

Keys and values are linear maps of one small latent per position. Behind a cache of earlier
positions a network may keep the keys and values, or keep the latents and expand them in every pass,
or keep the latents and never expand them: since (q·U)·c = q·(Uᵀ·c) the expansion may be multiplied
to queries and outputs. The forms differ in what they multiply and keep, and in nothing else.

Letters: B batch, Q query positions, S key positions, D channels, H heads, A channels of a head that
do not turn, E that do, W of its values, R of the latent, P of the queries' latent, F hidden
channels of the MLP, V vocabulary.

Parameters are named as in DeepSeek-V3 of Hugging Face's transformers, whose weights fit where no
layer has experts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.networks.blocks import ReferenceAttention, initialize, require_at_least
from models.networks.rotary import rotary_angles, rotate

FORMS = ("expanded", "latent", "absorbed")
Cache = dict[nn.Module, tuple[Tensor, Tensor]]
"""Of each attention, what of the positions so far it keeps: (B, S, …) twice."""


class LatentAttention(nn.Module):
    """Causal attention whose keys and values come of a latent.

    Args:
        form: One of :data:`FORMS`.
    """

    def __init__(
        self,
        num_channels: int,
        num_heads: int,
        query_rank: int,
        key_value_rank: int,
        plain_dim: int,
        rotary_dim: int,
        value_dim: int,
        form: str,
    ) -> None:
        super().__init__()
        if form not in FORMS:
            raise ValueError(f"form must be one of {FORMS}, got {form!r}")
        self.form, self.num_heads = form, num_heads
        self.rank, self.plain, self.rotary, self.value = (
            key_value_rank, plain_dim, rotary_dim, value_dim,
        )  # fmt: skip
        self.q_a_proj = nn.Linear(num_channels, query_rank, bias=False)
        self.q_a_layernorm = nn.RMSNorm((query_rank,), eps=1e-6)
        self.q_b_proj = nn.Linear(query_rank, num_heads * (plain_dim + rotary_dim), bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(num_channels, key_value_rank + rotary_dim, bias=False)
        self.kv_a_layernorm = nn.RMSNorm((key_value_rank,), eps=1e-6)
        self.kv_b_proj = nn.Linear(key_value_rank, num_heads * (plain_dim + value_dim), bias=False)
        self.attend = ReferenceAttention()
        self.o_proj = nn.Linear(num_heads * value_dim, num_channels, bias=False)

    def forward(self, x: Tensor, angles: Tensor, cache: Cache | None) -> Tensor:
        """Attend from x (B, Q, D), with its angles (1, Q, E / 2), to it and what is cached."""
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        q = q.unflatten(-1, (self.num_heads, -1)) * (self.plain + self.rotary) ** -0.5
        q, q_turned = q.split([self.plain, self.rotary], dim=-1)
        q_turned = rotate(q_turned, angles)  # (B, Q, H, E)
        latent, k_turned = self.kv_a_proj_with_mqa(x).split([self.rank, self.rotary], dim=-1)
        latent = self.kv_a_layernorm(latent)  # (B, Q, R)
        k_turned = rotate(k_turned[:, :, None], angles)  # (B, Q, 1, E)
        if self.form == "expanded":
            k, v = extend(cache, self, *self._expanded(latent, k_turned))
        else:
            latent, k_turned = extend(cache, self, latent, k_turned)
        if self.form == "latent":
            k, v = self._expanded(latent, k_turned)
        if self.form != "absorbed":
            out = self.attend(torch.cat((q, q_turned), dim=-1), k, v)  # (B, Q, H, W)
            return self.o_proj(out.flatten(-2))
        of_keys, of_values = self._by_head()
        q = (q.transpose(1, 2) @ of_keys).transpose(1, 2)  # (B, Q, H, R)
        k = torch.cat((latent[:, :, None], k_turned), dim=-1)  # (B, S, 1, R + E)
        k, v = (kv.expand(-1, -1, self.num_heads, -1) for kv in (k, latent[:, :, None]))
        out = self.attend(torch.cat((q, q_turned), dim=-1), k, v)  # (B, Q, H, R)
        out = (out.transpose(1, 2) @ of_values.mT).transpose(1, 2)  # (B, Q, H, W)
        return self.o_proj(out.flatten(-2))

    def _expanded(self, latent: Tensor, turned: Tensor) -> tuple[Tensor, Tensor]:
        """Keys (B, S, H, A + E) and values (B, S, H, W) of latents and the keys that turn."""
        k, v = (
            self.kv_b_proj(latent)
            .unflatten(-1, (self.num_heads, -1))
            .split([self.plain, self.value], dim=-1)
        )
        return torch.cat((k, turned.expand(-1, -1, self.num_heads, -1)), dim=-1), v

    def _by_head(self) -> tuple[Tensor, Tensor]:
        """The expansion of each head's keys (H, A, R) and values (H, W, R)."""
        by_head = self.kv_b_proj.weight.unflatten(0, (self.num_heads, -1))
        of_keys, of_values = by_head.split([self.plain, self.value], dim=1)
        return of_keys, of_values


def extend(
    cache: Cache | None, layer: nn.Module, first: Tensor, second: Tensor
) -> tuple[Tensor, Tensor]:
    """Append what a layer keeps of new positions; returns all that it has."""
    if cache is None:
        return first, second
    if layer in cache:
        earlier = cache[layer]
        first, second = (
            torch.cat(both, dim=1) for both in zip(earlier, (first, second), strict=True)
        )
    cache[layer] = first, second
    return first, second


class MLP(nn.Module):
    """D → F twice, SiLU of the one times the other, F → D."""

    def __init__(self, num_channels: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(num_channels, intermediate_size, bias=False)
        self.up_proj = nn.Linear(num_channels, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, num_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class LatentLayer(nn.Module):
    """Pre-RMSNorm decoder layer: latent attention and gated MLP."""

    def __init__(self, num_channels: int, intermediate_size: int, **attention: int | str) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm((num_channels,), eps=1e-6)
        self.self_attn = LatentAttention(num_channels, **attention)
        self.post_attention_layernorm = nn.RMSNorm((num_channels,), eps=1e-6)
        self.mlp = MLP(num_channels, intermediate_size)

    def forward(self, x: Tensor, angles: Tensor, cache: Cache | None) -> Tensor:
        """(B, Q, D) -> (B, Q, D)."""
        x = x + self.self_attn(self.input_layernorm(x), angles, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class LatentDecoder(nn.Module):
    """Language model with latent attention.

    Args:
        vocab_size: V.
        num_channels: D.
        num_layers: Layers.
        intermediate_size: F.
        num_heads: H.
        query_rank: P.
        key_value_rank: R.
        plain_dim: A.
        rotary_dim: E, even.
        value_dim: W.
        form: What is kept and multiplied, one of :data:`FORMS`.

    Raises:
        ValueError: If a size is too small, ``rotary_dim`` is odd or the form is unknown.

    Source:
        DeepSeek-V2 (arXiv 2405.04434), section 2.1.

    >>> model = LatentDecoder(vocab_size=9, num_channels=8, num_layers=1, intermediate_size=6,
    ...                       num_heads=2, query_rank=5, key_value_rank=4, plain_dim=3,
    ...                       rotary_dim=2, value_dim=3, form="absorbed")
    >>> model(torch.zeros(1, 4, dtype=torch.long)).shape
    torch.Size([1, 4, 9])
    """

    def __init__(
        self,
        vocab_size: int,
        num_channels: int,
        num_layers: int,
        intermediate_size: int,
        *,
        rotary_dim: int,
        form: str = "expanded",
        **sizes: int,
    ) -> None:
        super().__init__()
        require_at_least(
            1,
            vocab_size=vocab_size,
            num_channels=num_channels,
            num_layers=num_layers,
            intermediate_size=intermediate_size,
            rotary_dim=rotary_dim,
            **sizes,
        )
        if rotary_dim % 2:
            raise ValueError(f"rotary_dim must be even, got {rotary_dim}")
        self.rotary_dim = rotary_dim
        self.embed_tokens = nn.Embedding(vocab_size, num_channels)
        self.layers = nn.ModuleList(
            LatentLayer(num_channels, intermediate_size, rotary_dim=rotary_dim, form=form, **sizes)
            for _ in range(num_layers)
        )
        self.norm = nn.RMSNorm((num_channels,), eps=1e-6)
        self.lm_head = nn.Linear(num_channels, vocab_size, bias=False)
        initialize(self)

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits (B, Q, V) of the token after each of ``tokens`` (B, Q), which follow the cache."""
        earlier = next(iter(cache.values()))[0].shape[1] if cache else 0
        positions = torch.arange(tokens.shape[1], device=tokens.device)[None] + earlier
        # Twice the channels, of which half is rotated: all that turn.
        angles = rotary_angles(positions, 2 * self.rotary_dim)
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, angles, cache)
        return self.lm_head(self.norm(x))
