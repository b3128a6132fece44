"""What the attention kernels compute, in plain PyTorch.

Letters: B batch, N queries, K prefix positions, S = K + N keys, H query heads, G key-value heads
(H is a multiple of G), C channels of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor


def admitted_pairs(num_queries: int, num_keys: int, device: torch.device | None = None) -> Tensor:
    """Which keys each query may see: the queries are the last of the key positions.

    Three queries over a prefix of two positions and themselves, 1 where admitted::

        1 1 1 0 0
        1 1 1 1 0
        1 1 1 1 1

    Args:
        num_queries: N.
        num_keys: S, at least N.
        device: Where to make it.

    Returns:
        Boolean mask, (N, S), True where query i admits key j: j ≤ i + S − N.
    """
    queries = torch.arange(num_queries, device=device) + (num_keys - num_queries)
    return torch.arange(num_keys, device=device)[None, :] <= queries[:, None]


def reference_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Attention written out: softmax(scale · q kᵀ over the admitted pairs) · v.

    The two products are ``matmul``, so that any FLOP counter sees them, and they execute the
    whole N×S rectangle: 2·B·H·N·S·C FLOPs each. Autograd differentiates it.

    Args:
        q: Queries, (B, N, H, C).
        k: Keys, (B, S, G, C); query head h reads key head h // (H / G).
        v: Values, (B, S, G, C).
        scale: Factor of the scores; C^-½ by default.

    Returns:
        The output, (B, N, H, C), and the natural log-sum-exp of each query's admitted scores,
        (B, H, N).
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    group = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(group, dim=2) for x in (k, v)) if group > 1 else (k, v)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, N or S, C)
    scores = torch.matmul(q, k.mT) * scale  # (B, H, N, S)
    hidden = ~admitted_pairs(scores.shape[-2], scores.shape[-1], scores.device)  # (N, S)
    scores = scores.masked_fill(hidden, float("-inf"))
    out = torch.matmul(scores.softmax(dim=-1), v)  # (B, H, N, C)
    return out.transpose(1, 2), scores.logsumexp(dim=-1)


def reference_preparation(x: Tensor, angles: Tensor | None, channels: int) -> Tensor:
    """Turn pairs of neighbouring channels, and pad with zeros.

    Each of the first P pairs (a, b) becomes (a·cos − b·sin, a·sin + b·cos); the other channels
    stay. Four channels and one pair turning by θ::

        cos θ  −sin θ   0   0
        sin θ   cos θ   0   0
          0       0     1   0
          0       0     0   1

    Args:
        x: Queries or keys, (B, S, H, C).
        angles: In radians, (B or 1, S, P) with 2·P ≤ C; None turns nothing. Of a narrower dtype
            than x they are widened to x's before anything is computed.
        channels: Of the result, at least C.

    Returns:
        (B, S, H, channels), in x's dtype.

    Source:
        RoFormer (arXiv 2104.09864), section 3.2.2.
    """
    turned = 0 if angles is None else 2 * angles.shape[-1]
    kept = x[..., turned:]  # (B, S, H, C − 2P)
    if angles is not None:
        wide = angles.to(torch.promote_types(angles.dtype, x.dtype))[:, :, None]
        cos, sin = wide.cos().to(x.dtype), wide.sin().to(x.dtype)  # (B or 1, S, 1, P)
        a, b = x[..., 0:turned:2], x[..., 1:turned:2]  # (B, S, H, P)
        pairs = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1)  # (B, S, H, P, 2)
        kept = torch.cat((pairs.flatten(-2), kept), dim=-1)
    return torch.nn.functional.pad(kept, (0, channels - x.shape[-1]))
