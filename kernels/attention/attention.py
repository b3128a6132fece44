"""Causal and prefix attention as PyTorch functions, differentiable, on the fused kernels.

Letters as in the kernels: B batch, N queries, K prefix positions, S = K + N keys, H query heads,
G key-value heads, C channels of a head. The kernels run on CUDA tensors, and on CPU tensors where
``TRITON_INTERPRET=1`` was set before Triton was imported.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from kernels.attention.operators import attention
from kernels.attention.tilings import MAX_HEAD_DIM

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
INTERPRETED = triton.knobs.runtime.interpret


def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """Causal self-attention: query i admits keys 1 to i.

    Three queries, 1 where admitted::

        1 0 0
        1 1 0
        1 1 1

    Args:
        q: queries, (B, N, H, C).
        k: keys, (B, N, G, C); query head h reads key head h // (H / G).
        v: values, (B, N, G, C).
        scale: factor of the scores; C^-½ by default.

    Returns:
        softmax(scale · q kᵀ) v over the admitted pairs, (B, N, H, C), in q's dtype.

    Raises:
        TypeError: if a dtype is none of fp32, fp16 and bf16, or dtypes differ.
        ValueError: if shapes or devices do not fit, or no kernel can run on the device.
    """
    q, k, v = (_under_autocast(x) for x in (q, k, v))
    _check(q, k, v)
    if k.shape[1] != q.shape[1]:
        raise ValueError(f"k must have {q.shape[1]} positions as q has, got {k.shape[1]}")
    return attention(q, k, v, None, None, _scale(q, scale), q.shape[-1])[0]


def prefix_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor | None = None,
    prefix_v: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention of N latents to K prefix positions and, causally, to themselves.

    Three queries over a prefix of two positions, 1 where admitted::

        1 1 1 0 0
        1 1 1 1 0
        1 1 1 1 1

    Args:
        q: queries, (B, N, H, C): the last N of S = K + N positions.
        k: keys of all S positions, (B, S, G, C), or of the latents alone, (B, N, G, C), where the
            prefix's are given apart, so that nothing has to be concatenated.
        v: values, of k's shape.
        prefix_k: keys of the prefix, (B, K, G, C).
        prefix_v: values of the prefix, (B, K, G, C).
        scale: factor of the scores; C^-½ by default.

    Returns:
        softmax(scale · q kᵀ) v over the admitted pairs, (B, N, H, C), in q's dtype.

    Raises:
        TypeError: if a dtype is none of fp32, fp16 and bf16, or dtypes differ.
        ValueError: if shapes or devices do not fit, there are fewer keys than queries, or no
            kernel can run on the device.
    """
    q, k, v = (_under_autocast(x) for x in (q, k, v))
    _check(q, k, v)
    if (prefix_k is None) != (prefix_v is None):
        raise ValueError("prefix_k and prefix_v must be given together, got one of them")
    num_prefix = k.shape[1] - q.shape[1]
    if prefix_k is None or prefix_v is None:
        if num_prefix < 0:
            raise ValueError(f"k must have {q.shape[1]} positions at least, got {k.shape[1]}")
    elif num_prefix != 0:
        raise ValueError(f"k must have {q.shape[1]} positions as q has, got {k.shape[1]}")
    else:
        prefix_k, prefix_v = _under_autocast(prefix_k), _under_autocast(prefix_v)
        _check(q, prefix_k, prefix_v, names=("q", "prefix_k", "prefix_v"))
        if prefix_k.shape[2] != k.shape[2]:
            raise ValueError(f"prefix_k must have {k.shape[2]} heads, got {prefix_k.shape[2]}")
    return attention(q, k, v, prefix_k, prefix_v, _scale(q, scale), q.shape[-1])[0]


def _under_autocast(x: Tensor) -> Tensor:
    """Cast as ``scaled_dot_product_attention`` would: to autocast's dtype where it is enabled."""
    device = x.device.type
    if device in ("cuda", "cpu") and x.dtype in DTYPES and torch.is_autocast_enabled(device):
        return x.to(torch.get_autocast_dtype(device))
    return x


def _scale(q: Tensor, scale: float | None) -> float:
    return q.shape[-1] ** -0.5 if scale is None else float(scale)


def _check(q: Tensor, k: Tensor, v: Tensor, names: tuple[str, str, str] = ("q", "k", "v")) -> None:
    """Refuse what the kernels cannot run on, before any launch."""
    for name, x in zip(names, (q, k, v), strict=True):
        if x.dtype not in DTYPES:
            raise TypeError(f"{name} must be fp32, fp16 or bf16, got {x.dtype}")
        if x.dtype != q.dtype:
            raise TypeError(f"{name} must have q's dtype {q.dtype}, got {x.dtype}")
        if x.device != q.device:
            raise ValueError(f"{name} must be on q's device {q.device}, got {x.device}")
        if x.ndim != 4:
            raise ValueError(
                f"{name} must be (batch, length, heads, head dim), got {tuple(x.shape)}"
            )
    if q.shape[1] == 0 or q.shape[0] == 0 or q.shape[2] == 0:
        raise ValueError(f"q must have a query at least, got {tuple(q.shape)}")
    if not 1 <= q.shape[3] <= MAX_HEAD_DIM:
        raise ValueError(f"head dim must be from 1 to {MAX_HEAD_DIM}, got {q.shape[3]}")
    if k.shape != v.shape:
        raise ValueError(f"{names[2]} must have the shape of {names[1]} {tuple(k.shape)}, "
                         f"got {tuple(v.shape)}")  # fmt: skip
    if (k.shape[0], k.shape[3]) != (q.shape[0], q.shape[3]):
        raise ValueError(
            f"{names[1]} must have q's batch {q.shape[0]} and head dim {q.shape[3]}, "
            f"got {tuple(k.shape)}"
        )
    if k.shape[2] == 0 or q.shape[2] % k.shape[2]:
        raise ValueError(f"{names[1]}'s heads must divide q's {q.shape[2]} heads, got {k.shape[2]}")
    if q.device.type not in ("cuda", "meta") and not INTERPRETED:
        raise ValueError(
            f"q is on {q.device}: the kernels run on CUDA, or on the CPU with TRITON_INTERPRET=1 "
            "set before the first import"
        )
