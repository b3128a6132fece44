"""Decoder-only transformer in GPT-2's shape, on the blocks of Perceiver AR.

Letters: B batch, S sequence, D channels, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.networks.blocks import (
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


class Decoder(nn.Module):
    """GPT-2 but for the exact GELU: learned positions, pre-LayerNorm, a final norm.

    GPT-2 small, with 50257 tokens, 1024 positions, 768 channels, 12 layers and 12 heads, has
    124,439,808 parameters.

    Args:
        vocab_size: V.
        seq_len: S, the longest sequence.
        num_channels: D.
        num_layers: Self-attention layers.
        num_heads: Attention heads of every layer.
        widening_factor: Width of the MLP's hidden layer over D.
        bias: Whether linear layers and norms have biases; the output layer never has one.
        tie_embeddings: Whether the output layer is the token embedding, transposed.
        head_dim: Channels of one head; D / heads unless given.
        checkpointing: None, ``"reentrant"`` or ``"non-reentrant"``: recompute each layer's
            activations in the backward pass.
        attention: Which attention runs, a key of :data:`models.networks.blocks.ATTENTION`.
        num_positions: Rows of the table of positions, at least S; S unless given.

    Raises:
        ValueError: If a size is too small or heads do not share the channels evenly.

    Source:
        GPT-2 (Radford et al. 2019), section 2.3. Weights start from N(0, 0.02) everywhere,
        without GPT-2's smaller residual projections.

    >>> model = Decoder(vocab_size=262, seq_len=8, num_channels=16, num_layers=2, num_heads=2)
    >>> model(torch.zeros(1, 8, dtype=torch.long)).shape
    torch.Size([1, 8, 262])
    """

    def __init__(
        self,
        vocab_size: int,
        seq_len: int,
        num_channels: int,
        num_layers: int,
        num_heads: int,
        widening_factor: int = 4,
        bias: bool = True,
        tie_embeddings: bool = True,
        head_dim: int | None = None,
        checkpointing: str | None = None,
        attention: str = "reference",
        num_positions: int | None = None,
    ) -> None:
        super().__init__()
        num_positions = seq_len if num_positions is None else num_positions
        require_at_least(seq_len, num_positions=num_positions)
        require_at_least(
            1,
            vocab_size=vocab_size,
            seq_len=seq_len,
            num_channels=num_channels,
            num_layers=num_layers,
            num_heads=num_heads,
            widening_factor=widening_factor,
        )
        require_checkpointing(checkpointing)
        head_dim = resolve_head_dim(num_channels, num_heads, head_dim)
        self.seq_len = seq_len
        self.checkpointing = checkpointing
        self.embedding = Embedding(vocab_size, num_positions, num_channels)
        self.layers = nn.ModuleList(
            SelfAttentionLayer(
                num_channels,
                num_heads,
                head_dim,
                widening_factor,
                bias=bias,
                norm_bias=bias,
                attention=attention,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm((num_channels,), bias=bias)
        self.output = nn.Linear(num_channels, vocab_size, bias=False)
        if tie_embeddings:
            self.output.weight = self.embedding.token.weight
        initialize(self)

    def forward(self, tokens: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Logits of the token after each position.

        Args:
            tokens: Token ids, (B, S).
            cache: What earlier calls have seen; the tokens given continue it.

        Returns:
            Logits, (B, S, V); row i predicts the token after position i.
        """
        return self.output(self.hidden(tokens, cache))

    def hidden(self, tokens: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """What the output layer reads, (B, S, D); arguments as :meth:`forward` takes them."""
        start = 0 if cache is None else cache.num_latents
        positions = torch.arange(tokens.shape[1], device=tokens.device)[None] + start  # (1, S)
        x = self.embedding(tokens, positions)
        for layer in self.layers:
            x = run_layer(layer, x, None, cache, checkpointing=self.checkpointing)
        if cache is not None:
            cache.num_latents += tokens.shape[1]
        return self.norm(x)

    def masks(self) -> dict[str, Tensor]:
        """Give the mask of each layer by name: (S, S), True where admitted."""
        return {
            f"layers.{index}": causal_mask(self.seq_len, self.seq_len)
            for index in range(len(self.layers))
        }
