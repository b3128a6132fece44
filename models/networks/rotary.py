"""Rotary position embedding on the first half of each head's channels.

Letters: B batch, S sequence, H heads, C channels of a head, P rotated pairs of channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

BASE = 10_000


def rotary_angles(positions: Tensor, head_dim: int) -> Tensor:
    """Angles by which each pair of channels turns at each position.

    With r = C // 2 the frequencies are ``BASE ** (-j / r)`` for j = 0, 2, 4, … < r, each for one
    pair of neighbouring channels, so P = ⌈r / 2⌉ pairs turn. The products are broadcast, not
    contracted: a FLOP counter sees no matrix product here.

    Args:
        positions: Integer positions, (B, S).
        head_dim: Channels of one head, C.

    Returns:
        Angles in radians, float32, (B, S, P).

    Source:
        RoFormer (arXiv 2104.09864), section 3.2.2; half of the channels as in Perceiver AR
        (arXiv 2202.07765), appendix E.
    """
    rotated = head_dim // 2
    exponents = torch.arange(0, rotated, 2, device=positions.device) / rotated
    return positions[..., None] * BASE**-exponents


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn the first P pairs of neighbouring channels of every head; leave the others.

    Each pair (a, b) becomes (a·cos − b·sin, a·sin + b·cos): the complex number a + ib times e^iθ.

    Args:
        x: Queries or keys, (B, S, H, C).
        angles: From :func:`rotary_angles`, (B, S, P), or (1, S, P) for the whole batch.

    Returns:
        The rotated tensor, (B, S, H, C), in x's dtype.
    """
    num_rotated = 2 * angles.shape[-1]
    wide = torch.float64 if torch.float64 in (angles.dtype, x.dtype) else torch.float32
    angles = angles.to(wide)[:, :, None]  # (B, S, 1, P)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a = x[..., 0:num_rotated:2]  # (B, S, H, P)
    b = x[..., 1:num_rotated:2]
    turned = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)
    return torch.cat((turned, x[..., num_rotated:]), dim=-1)
