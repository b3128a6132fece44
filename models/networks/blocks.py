"""What both networks are built from: attention, MLP block, layer, embedding.

Letters: B batch, Q query positions, S key positions, H heads, C channels of a head, D = H·C
channels of the model. On the reference path every product is a ``matmul`` or a linear layer, and
each is a module of its own, so that any FLOP counter can be asked for it by name.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.networks.rotary import rotate

CHECKPOINTING = (None, "reentrant", "non-reentrant")


def require_at_least(minimum: int, **sizes: int) -> None:
    """Raise a ValueError that names the first of ``sizes`` below ``minimum``."""
    for name, size in sizes.items():
        if size < minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {size}")


def resolve_head_dim(num_channels: int, num_heads: int, head_dim: int | None) -> int:
    """Channels of one head: ``num_channels / num_heads``, or ``head_dim`` where it is given.

    Raises:
        ValueError: If the heads do not share the channels evenly.
    """
    if head_dim is None:
        if num_channels % num_heads:
            raise ValueError(
                f"num_channels must be a multiple of num_heads, got {num_channels} and {num_heads}"
            )
        return num_channels // num_heads
    if num_heads * head_dim != num_channels:
        raise ValueError(
            f"head_dim must be num_channels / num_heads, got {head_dim} "
            f"for {num_channels} channels and {num_heads} heads"
        )
    return head_dim


def causal_mask(
    num_queries: int,
    num_keys: int,
    device: torch.device | None = None,
    window: int | None = None,
) -> Tensor:
    """Which keys each query may see: queries are the last of the key positions.

    Three queries over two earlier positions and themselves, 1 where admitted::

        1 1 1 0 0
        1 1 1 1 0
        1 1 1 1 1

    Args:
        num_queries: Q.
        num_keys: S, at least Q.
        device: Where to make it.
        window: How many of the last positions a query sees, its own included; all unless given.

    Returns:
        Boolean mask, (Q, S), True where query q admits key s: s ≤ q + S − Q, and with a window W
        s > q + S − Q − W.
    """
    queries = torch.arange(num_queries, device=device) + (num_keys - num_queries)
    keys = torch.arange(num_keys, device=device)
    admitted = keys[None, :] <= queries[:, None]
    return admitted if window is None else admitted & (keys[None, :] > queries[:, None] - window)


class Product(nn.Module):
    """A matrix product as a module, so that counters can tell one from another."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Multiply the last two dimensions: (…, Q, C) and (…, C, S) -> (…, Q, S)."""
        return torch.matmul(a, b)


class ReferenceAttention(nn.Module):
    """Causal attention written out: softmax of the masked scores, times the values.

    It executes the whole Q×S rectangle. The queries come scaled.

    Args:
        window: As :func:`causal_mask` takes it.
    """

    def __init__(self, window: int | None = None) -> None:
        super().__init__()
        self.window = window
        self.scores = Product()
        self.values = Product()

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from q (B, Q, H, C) to k and v (B, S, H, C); returns (B, Q, H, C)."""
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        scores = self.scores(q, k.mT)  # (B, H, Q, S)
        hidden = ~causal_mask(*scores.shape[-2:], scores.device, self.window)
        weights = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)
        return self.values(weights.to(v.dtype), v).transpose(1, 2)


class FusedAttention(nn.Module):
    """The same in one kernel, which keeps no scores; on a GPU, or in Triton's interpreter.

    Scale and rotary embedding may be left to it.
    """

    def __init__(self) -> None:
        super().__init__()
        from kernels.attention import prefix_attention

        self.kernel = prefix_attention

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        prefix_k: Tensor | None = None,
        prefix_v: Tensor | None = None,
        scale: float = 1.0,
        angles: Tensor | None = None,
    ) -> Tensor:
        """Attend from q (B, Q, H, C) to the prefix, where given, and k and v (B, S, H, C)."""
        return self.kernel(q, k, v, prefix_k, prefix_v, scale, angles)


ATTENTION = {"reference": ReferenceAttention, "fused": FusedAttention}


class KeyValueCache:
    """Keys and values of the positions seen so far, per attention layer, for generation.

    ``num_latents`` is how many latent positions have passed through the whole network.
    """

    def __init__(self) -> None:
        self.num_latents = 0
        self._stored: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def extend(self, layer: nn.Module, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append a layer's new keys and values (B, S, H, C); returns all that it has."""
        if layer in self._stored:
            earlier_k, earlier_v = self._stored[layer]
            k, v = torch.cat((earlier_k, k), dim=1), torch.cat((earlier_v, v), dim=1)
        self._stored[layer] = k, v
        return k, v


class Attention(nn.Module):
    """Multi-head causal attention: projections around one call of the attention itself."""

    def __init__(
        self,
        num_channels: int,
        num_heads: int,
        head_dim: int,
        projection_bias: bool,
        out_bias: bool,
        attention: str,
    ) -> None:
        super().__init__()
        if attention not in ATTENTION:
            raise ValueError(f"attention must be one of {sorted(ATTENTION)}, got {attention!r}")
        self.num_heads, self.head_dim = num_heads, head_dim
        self.query = nn.Linear(num_channels, num_channels, bias=projection_bias)
        self.key = nn.Linear(num_channels, num_channels, bias=projection_bias)
        self.value = nn.Linear(num_channels, num_channels, bias=projection_bias)
        self.attend = ATTENTION[attention]()
        self.out = nn.Linear(num_channels, num_channels, bias=out_bias)

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        angles: Tensor | None = None,
        cache: KeyValueCache | None = None,
        prefix: Tensor | None = None,
    ) -> Tensor:
        """Attend from x (B, Q, D) to context (B, S, D), of which x holds the last positions.

        ``angles`` (B or 1, S, P) belong to the context; the queries take the last Q of them.
        Where :meth:`takes_prefix_apart`, ``prefix`` (B, K, D) may hold the context's first K
        positions, and ``context`` the others.
        """
        if self.takes_prefix_apart(cache):
            return self.out(self._fused(x, context, prefix, angles).flatten(-2))
        heads = (self.num_heads, self.head_dim)
        q = self.query(x).unflatten(-1, heads) * self.head_dim**-0.5  # (B, Q, H, C)
        k = self.key(context).unflatten(-1, heads)  # (B, S, H, C)
        v = self.value(context).unflatten(-1, heads)
        if angles is not None:
            q = rotate(q, angles[:, -x.shape[1] :])
            k = rotate(k, angles)
        if cache is not None:
            k, v = cache.extend(self, k, v)
        return self.out(self.attend(q, k, v).flatten(-2))

    def takes_prefix_apart(self, cache: KeyValueCache | None) -> bool:
        """Whether the context need not be one tensor."""
        return isinstance(self.attend, FusedAttention) and cache is None

    def _fused(
        self, x: Tensor, context: Tensor, prefix: Tensor | None, angles: Tensor | None
    ) -> Tensor:
        """One call for scale, rotary embedding and attention.

        Prefix and context stay apart: two smaller products for each of keys and values cost less
        than writing and reading their concatenation, and its gradient's, would.
        """
        heads = (self.num_heads, self.head_dim)
        q = self.query(x).unflatten(-1, heads)
        keys_and_values = [
            project(part).unflatten(-1, heads)
            for part in (context, prefix)
            if part is not None
            for project in (self.key, self.value)
        ]
        return self.attend(q, *keys_and_values, scale=self.head_dim**-0.5, angles=angles)


class MLP(nn.Module):
    """LayerNorm, D → w·D, exact GELU, w·D → D."""

    def __init__(self, num_channels: int, widening_factor: int, bias: bool, norm_bias: bool):
        super().__init__()
        hidden = widening_factor * num_channels
        self.norm = nn.LayerNorm((num_channels,), bias=norm_bias)
        self.up = nn.Linear(num_channels, hidden, bias=bias)
        self.activation = nn.GELU()
        self.down = nn.Linear(hidden, num_channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        return self.down(self.activation(self.up(self.norm(x))))


class SelfAttentionLayer(nn.Module):
    """Pre-LayerNorm decoder layer: causal self-attention and MLP, each with its residual."""

    def __init__(
        self,
        num_channels: int,
        num_heads: int,
        head_dim: int,
        widening_factor: int,
        bias: bool,
        norm_bias: bool,
        attention: str,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm((num_channels,), bias=norm_bias)
        self.attention = Attention(num_channels, num_heads, head_dim, bias, bias, attention)
        self.mlp = MLP(num_channels, widening_factor, bias, norm_bias)

    def forward(
        self, x: Tensor, angles: Tensor | None = None, cache: KeyValueCache | None = None
    ) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        normed = self.norm(x)
        x = x + self.attention(normed, normed, angles, cache)
        return x + self.mlp(x)


class Embedding(nn.Module):
    """Token embedding plus learned absolute position embedding."""

    def __init__(self, vocab_size: int, num_positions: int, num_channels: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocab_size, num_channels)
        self.position = nn.Embedding(num_positions, num_channels)

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Tokens (B, S) at positions (1, S) -> (B, S, D)."""
        return self.token(tokens) + self.position(positions)


def require_checkpointing(checkpointing: str | None) -> None:
    """Raise a ValueError unless ``checkpointing`` is one of :data:`CHECKPOINTING`."""
    if checkpointing not in CHECKPOINTING:
        raise ValueError(f"checkpointing must be one of {CHECKPOINTING}, got {checkpointing!r}")


def run_layer(layer: nn.Module, *inputs: Tensor | None, checkpointing: str | None) -> Tensor:
    """``layer(*inputs)``, its activations recomputed in the backward pass if so asked.

    Without gradients there is no backward pass, and the layer just runs.
    """
    if checkpointing is None or not torch.is_grad_enabled():
        return layer(*inputs)
    # Layers draw no random numbers, so there is no generator state to save and restore.
    return checkpoint(
        layer, *inputs, use_reentrant=checkpointing == "reentrant", preserve_rng_state=False
    )


def initialize(model: nn.Module) -> None:
    """Weights of linear layers and embeddings from N(0, 0.02), biases 0, norms the identity."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, mean=0.0, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
