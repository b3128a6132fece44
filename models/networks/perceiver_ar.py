"""Perceiver AR: a causal transformer whose first layer also attends to a longer prefix.

Letters: B batch, M prefix tokens, K of them kept, N latents, D channels, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.networks.blocks import (
    MLP,
    Attention,
    Embedding,
    KeyValueCache,
    SelfAttentionLayer,
    causal_mask,
    initialize,
    require_at_least,
    require_checkpointing,
    resolve_head_dim,
    run_layer,
)
from models.networks.rotary import rotary_angles


class HybridLayer(nn.Module):
    """Latents attend to the prefix and, causally, to themselves; then an MLP block.

    Queries come from the normalised latents; keys and values from the normalised prefix, which
    has a norm of its own, followed by the normalised latents. The residual carries the latents.
    """

    def __init__(
        self,
        num_channels: int,
        num_heads: int,
        head_dim: int,
        widening_factor: int,
        attention: str,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm((num_channels,))
        self.prefix_norm = nn.LayerNorm((num_channels,))
        self.attention = Attention(
            num_channels,
            num_heads,
            head_dim,
            projection_bias=False,
            out_bias=True,
            attention=attention,
        )
        self.mlp = MLP(num_channels, widening_factor, bias=False, norm_bias=True)

    def forward(
        self, latents: Tensor, prefix: Tensor, angles: Tensor, cache: KeyValueCache | None = None
    ) -> Tensor:
        """Latents (B, N, D), prefix (B, K, D), angles (B or 1, K + N, P) -> (B, N, D)."""
        queries = self.norm(latents)
        prefix = self.prefix_norm(prefix)
        if self.attention.takes_prefix_apart(cache):
            attended = self.attention(queries, queries, angles, prefix=prefix)
        else:
            context = torch.cat((prefix, queries), dim=1)  # (B, K + N, D)
            attended = self.attention(queries, context, angles, cache)
        latents = latents + attended
        return latents + self.mlp(latents)


class PerceiverAR(nn.Module):
    """Perceiver AR language model.

    Token and learned position embedding; one :class:`HybridLayer` from N latents to K kept prefix
    positions; L − 1 self-attention layers over the latents; logits by the transposed token
    embedding plus a bias. Queries and keys are rotated in the hybrid layer and in the first
    self-attention layer only. No final norm.

    Prefix dropout, in training only, keeps ``k = m - int(m * p)`` positions per sequence, drawn
    uniformly, in order. What is dropped costs nothing after the embedding.

    Args:
        vocab_size: V.
        num_latents: N, the positions that predict.
        num_prefix: M, the earlier positions that are only attended to; may be 0.
        num_channels: D.
        num_layers: L, the hybrid layer included.
        num_heads: Attention heads of every layer.
        widening_factor: Width of the MLP's hidden layer over D.
        prefix_dropout: p in [0, 1).
        num_kept: K itself, in place of ``prefix_dropout``.
        head_dim: Channels of one head; D / heads unless given.
        checkpointing: None, ``"reentrant"`` or ``"non-reentrant"``: recompute each layer's
            activations in the backward pass.
        attention: Which attention runs, a key of :data:`models.networks.blocks.ATTENTION`.

    Raises:
        ValueError: If a size is too small, heads do not share the channels evenly, dropout is
            outside [0, 1), or both it and ``num_kept`` are given.

    Source:
        Perceiver AR (arXiv 2202.07765), section 3.

    >>> model = PerceiverAR(vocab_size=262, num_latents=4, num_prefix=8, num_channels=16,
    ...                     num_layers=2, num_heads=2)
    >>> tokens = torch.zeros(1, 12, dtype=torch.long)
    >>> model(tokens).shape
    torch.Size([1, 4, 262])
    """

    def __init__(
        self,
        vocab_size: int,
        num_latents: int,
        num_prefix: int,
        num_channels: int,
        num_layers: int,
        num_heads: int = 8,
        widening_factor: int = 4,
        prefix_dropout: float = 0.0,
        num_kept: int | None = None,
        head_dim: int | None = None,
        checkpointing: str | None = None,
        attention: str = "reference",
    ) -> None:
        super().__init__()
        require_at_least(
            1,
            vocab_size=vocab_size,
            num_latents=num_latents,
            num_channels=num_channels,
            num_layers=num_layers,
            num_heads=num_heads,
            widening_factor=widening_factor,
        )
        require_at_least(0, num_prefix=num_prefix)
        require_checkpointing(checkpointing)
        if not 0 <= prefix_dropout < 1:
            raise ValueError(f"prefix_dropout must be in [0, 1), got {prefix_dropout}")
        if num_kept is None and prefix_dropout > 0:
            num_kept = num_prefix - int(num_prefix * float(prefix_dropout))
        elif num_kept is not None:
            if prefix_dropout > 0:
                raise ValueError(
                    f"give num_kept or prefix_dropout, not both, "
                    f"got {num_kept} and {prefix_dropout}"
                )
            require_at_least(0, num_kept=num_kept)
            if num_kept > num_prefix:
                raise ValueError(
                    f"num_kept must be at most num_prefix {num_prefix}, got {num_kept}"
                )
        self.num_latents, self.num_prefix, self.num_kept = num_latents, num_prefix, num_kept
        self.head_dim = resolve_head_dim(num_channels, num_heads, head_dim)
        self.checkpointing = checkpointing
        self.embedding = Embedding(vocab_size, num_prefix + num_latents, num_channels)
        self.hybrid = HybridLayer(
            num_channels, num_heads, self.head_dim, widening_factor, attention
        )
        self.layers = nn.ModuleList(
            SelfAttentionLayer(
                num_channels,
                num_heads,
                self.head_dim,
                widening_factor,
                bias=False,
                norm_bias=True,
                attention=attention,
            )
            for _ in range(num_layers - 1)
        )
        self.output = nn.Linear(num_channels, vocab_size)
        self.output.weight = self.embedding.token.weight
        initialize(self)

    def forward(
        self,
        tokens: Tensor,
        prefix_length: int | None = None,
        cache: KeyValueCache | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:
        """Logits of the token after each latent position.

        Args:
            tokens: Token ids, (B, M + N): the prefix, then the latents. Generation passes fewer.
            prefix_length: How many of the tokens are prefix, all M by default. A shorter prefix
                is right-aligned: latents take positions M, M + 1, … whatever comes before them.
            cache: What earlier calls have seen. The tokens given continue it, and a later call
                has ``prefix_length=0``.
            kept: The prefix positions that dropout keeps in training, (B, K), as
                :meth:`draw_kept` draws them where they are not given.

        Returns:
            Logits, (B, N, V); row i predicts the token after latent i.
        """
        return self.output(self.hidden(tokens, prefix_length, cache, kept))

    def hidden(
        self,
        tokens: Tensor,
        prefix_length: int | None = None,
        cache: KeyValueCache | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:
        """What the output layer reads, (B, N, D); arguments as :meth:`forward` takes them."""
        prefix_length = self.num_prefix if prefix_length is None else prefix_length
        earlier_latents = 0 if cache is None else cache.num_latents
        start = self.num_prefix - prefix_length + earlier_latents
        positions = torch.arange(tokens.shape[1], device=tokens.device)[None] + start  # (1, M + N)

        x = self.embedding(tokens, positions)
        prefix, latents = x[:, :prefix_length], x[:, prefix_length:]
        if self.training and self.num_kept is not None:
            kept = self.draw_kept(prefix) if kept is None else kept  # (B, K)
            prefix = prefix.gather(1, kept[..., None].expand(-1, -1, prefix.shape[-1]))
            latent_positions = positions[:, prefix_length:].expand(kept.shape[0], -1)
            positions = torch.cat((kept + start, latent_positions), dim=1)  # (B, K + N)
        angles = rotary_angles(positions, self.head_dim)
        latent_angles = angles[:, -latents.shape[1] :]

        x = run_layer(self.hybrid, latents, prefix, angles, cache, checkpointing=self.checkpointing)
        for index, layer in enumerate(self.layers):
            x = run_layer(
                layer,
                x,
                latent_angles if index == 0 else None,
                cache,
                checkpointing=self.checkpointing,
            )
        if cache is not None:
            cache.num_latents += latents.shape[1]
        return x

    def draw_kept(self, prefix: Tensor) -> Tensor:
        """Draw the kept positions of each sequence of ``prefix`` (B, M, …): ascending, (B, K)."""
        rand = torch.rand(prefix.shape[:2], device=prefix.device)
        return rand.topk(self.num_kept, dim=-1).indices.sort(dim=-1).values

    def masks(self) -> dict[str, Tensor]:
        """Give the masks of a full-length forward pass in the present mode, by layer name.

        Returns:
            Booleans, True where a query admits a key: ``"hybrid"`` (N, K + N), K = M in
            evaluation or without dropout, and ``"layers.0"``, ``"layers.1"``, … (N, N).
        """
        dropout = self.training and self.num_kept is not None
        num_keys = (self.num_kept if dropout else self.num_prefix) + self.num_latents
        masks = {"hybrid": causal_mask(self.num_latents, num_keys)}
        for index in range(len(self.layers)):
            masks[f"layers.{index}"] = causal_mask(self.num_latents, self.num_latents)
        return masks
