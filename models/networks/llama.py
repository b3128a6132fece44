"""Decoder-only transformer in Llama's shape: grouped heads, rotary embedding, gated MLP.

Letters: B batch, S sequence, D channels, H heads, G key-value heads, C channels of a head, F hidden
channels of the MLP, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.networks.blocks import (
    ATTENTION,
    ReferenceAttention,
    causal_mask,
    initialize,
    require_at_least,
    require_checkpointing,
    run_layer,
)
from models.networks.rotary import rotary_angles, rotate


class GroupedAttention(nn.Module):
    """Causal attention in which H / G query heads share each head of keys and values."""

    def __init__(
        self,
        num_channels: int,
        num_heads: int,
        num_key_value_heads: int,
        head_dim: int,
        window: int | None,
        attention: str,
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.num_key_value_heads = num_key_value_heads
        self.group = num_heads // num_key_value_heads
        self.query = nn.Linear(num_channels, num_heads * head_dim, bias=False)
        self.key = nn.Linear(num_channels, num_key_value_heads * head_dim, bias=False)
        self.value = nn.Linear(num_channels, num_key_value_heads * head_dim, bias=False)
        if attention == "reference":
            self.attend: nn.Module = ReferenceAttention(window)
        elif attention in ATTENTION and window is None:
            self.attend = ATTENTION[attention]()
        else:
            raise ValueError(
                f"attention must be one of {sorted(ATTENTION)}, and 'reference' with a window, "
                f"got {attention!r} and window {window}"
            )
        self.out = nn.Linear(num_heads * head_dim, num_channels, bias=False)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        """Attend within x, (B, S, D), with angles (1, S, C / 2); returns (B, S, D)."""
        q = self.query(x).unflatten(-1, (self.num_key_value_heads * self.group, self.head_dim))
        k = self.key(x).unflatten(-1, (self.num_key_value_heads, self.head_dim))  # (B, S, G, C)
        v = self.value(x).unflatten(-1, (self.num_key_value_heads, self.head_dim))
        q = rotate(q * self.head_dim**-0.5, angles)  # (B, S, H, C)
        k = rotate(k, angles)
        if isinstance(self.attend, ReferenceAttention):
            k, v = (self._repeated(heads) for heads in (k, v))  # (B, S, H, C)
        return self.out(self.attend(q, k, v).flatten(-2))

    def _repeated(self, heads: Tensor) -> Tensor:
        """Each head as often as query heads share it: (B, S, G, C) -> (B, S, H, C)."""
        return heads[:, :, :, None].expand(-1, -1, -1, self.group, -1).flatten(2, 3)


class GatedMLP(nn.Module):
    """D → F twice, SiLU of the one times the other, F → D."""

    def __init__(self, num_channels: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate = nn.Linear(num_channels, intermediate_size, bias=False)
        self.up = nn.Linear(num_channels, intermediate_size, bias=False)
        self.activation = nn.SiLU()
        self.down = nn.Linear(intermediate_size, num_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        return self.down(self.activation(self.gate(x)) * self.up(x))


class LlamaLayer(nn.Module):
    """Pre-RMSNorm decoder layer: attention and gated MLP, each with its residual."""

    def __init__(
        self, num_channels: int, intermediate_size: int, attention: GroupedAttention
    ) -> None:
        super().__init__()
        self.norm = nn.RMSNorm((num_channels,), eps=1e-5)
        self.attention = attention
        self.mlp_norm = nn.RMSNorm((num_channels,), eps=1e-5)
        self.mlp = GatedMLP(num_channels, intermediate_size)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        x = x + self.attention(self.norm(x), angles)
        return x + self.mlp(self.mlp_norm(x))


class Llama(nn.Module):
    """Llama language model.

    Token embedding; layers of grouped causal attention, with rotary embedding of whole heads, and a
    gated MLP; a final norm; logits.

    Args:
        vocab_size: V.
        seq_len: S, the longest sequence.
        num_channels: D.
        num_layers: Layers.
        num_heads: H.
        intermediate_size: F.
        num_key_value_heads: G, which divides H; H unless given.
        head_dim: C, even; D / H unless given.
        window: The last positions that a query attends to, its own included; all unless given.
        tie_embeddings: Whether the output layer is the token embedding, transposed.
        checkpointing: None, ``"reentrant"`` or ``"non-reentrant"``: recompute each layer's
            activations in the backward pass.
        attention: Which attention runs, a key of :data:`models.networks.blocks.ATTENTION`.

    Raises:
        ValueError: If a size is too small or a head dim odd, or heads do not divide evenly.

    Source:
        Llama (arXiv 2302.13971); grouped heads as in arXiv 2305.13245, the window as in
        arXiv 2310.06825.

    >>> model = Llama(vocab_size=262, seq_len=8, num_channels=16, num_layers=2, num_heads=4,
    ...               intermediate_size=24, num_key_value_heads=2)
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
        intermediate_size: int,
        num_key_value_heads: int | None = None,
        head_dim: int | None = None,
        window: int | None = None,
        tie_embeddings: bool = False,
        checkpointing: str | None = None,
        attention: str = "reference",
    ) -> None:
        super().__init__()
        key_heads = num_heads if num_key_value_heads is None else num_key_value_heads
        head_dim = num_channels // num_heads if head_dim is None else head_dim
        require_at_least(
            1,
            vocab_size=vocab_size,
            seq_len=seq_len,
            num_channels=num_channels,
            num_layers=num_layers,
            num_heads=num_heads,
            intermediate_size=intermediate_size,
            num_key_value_heads=key_heads,
            head_dim=head_dim,
            window=1 if window is None else window,
        )
        for name, size, divisor in (
            ("num_heads", num_heads, key_heads),
            ("head_dim", head_dim, 2),
        ):
            if size % divisor:
                raise ValueError(f"{name} must be a multiple of {divisor}, got {size}")
        require_checkpointing(checkpointing)
        self.seq_len, self.head_dim, self.window = seq_len, head_dim, window
        self.checkpointing = checkpointing
        self.embedding = nn.Embedding(vocab_size, num_channels)
        self.layers = nn.ModuleList(
            LlamaLayer(
                num_channels,
                intermediate_size,
                GroupedAttention(num_channels, num_heads, key_heads, head_dim, window, attention),
            )
            for _ in range(num_layers)
        )
        self.norm = nn.RMSNorm((num_channels,), eps=1e-5)
        self.output = nn.Linear(num_channels, vocab_size, bias=False)
        if tie_embeddings:
            self.output.weight = self.embedding.weight
        initialize(self)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, S, V) of the token after each position of ``tokens`` (B, S)."""
        x = self.embedding(tokens)
        positions = torch.arange(tokens.shape[1], device=tokens.device)[None]  # (1, S)
        # Twice the head dim, of which half is rotated: whole heads.
        angles = rotary_angles(positions, 2 * self.head_dim)
        for layer in self.layers:
            x = run_layer(layer, x, angles, checkpointing=self.checkpointing)
        return self.output(self.norm(x))

    def masks(self) -> dict[str, Tensor]:
        """Give the mask of each layer by name: (S, S), True where admitted."""
        return {
            f"layers.{index}": causal_mask(self.seq_len, self.seq_len, window=self.window)
            for index in range(len(self.layers))
        }
