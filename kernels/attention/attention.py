"""Causal and prefix attention as PyTorch functions, differentiable, on the fused kernels.

Letters as in the kernels: B batch, N queries, K prefix positions, S = K + N keys, H query heads,
G key-value heads, C channels of a head. The kernels run on CUDA tensors, and on CPU tensors in fp32
and fp16 where ``TRITON_INTERPRET=1`` was set before Triton was imported;
:func:`kernels.attention.launches.unsupported` says what they refuse, and why.

Scores may be −inf: such a key has no weight, and a query all of whose keys are such is not a
number, in the output and in the gradients of what it admits. A head sees its own channels alone.
"""

from __future__ import annotations

import numbers

import torch
from torch import Tensor
from torch.nn import functional

from kernels.attention.launches import TILE_ROWS, unsupported, within_reach
from kernels.attention.operators import attention, prepare
from kernels.attention.tilings import MAX_HEAD_DIM, WIDEST_CUT, padded_head_dim

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# The kernels take the scale in fp32, and it must stay positive there.
SMALLEST_SCALE, LARGEST_SCALE = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, angles: Tensor | None = None
) -> Tensor:
    """Causal self-attention: query i admits keys 1 to i.

    Three queries, 1 where admitted::

        1 0 0
        1 1 0
        1 1 1

    Args:
        q: Queries, (B, N, H, C).
        k: Keys, (B, N, G, C); query head h reads key head h // (H / G).
        v: Values, (B, N, G, C).
        scale: Factor of the scores; C^-½ by default.
        angles: Rotary embedding: radians by which the first P pairs of neighbouring channels of
            queries and keys turn, (B or 1, N, P), 2·P at most C. Not differentiated.

    Returns:
        softmax(scale · q kᵀ) v over the admitted pairs, (B, N, H, C), in q's dtype.

    Raises:
        TypeError: If a dtype is none of fp32, fp16 and bf16, dtypes differ, or the scale is no
            number.
        ValueError: If shapes or devices do not fit, or no kernel can run on the device in the
            dtype, autocast's where it is enabled.
    """
    q, k, v = _accepted(q=q, k=k, v=v)
    if k.shape[1] != q.shape[1]:
        raise ValueError(f"k must have {q.shape[1]} positions as q has, got {k.shape[1]}")
    return _attend(q, k, v, None, None, scale, angles)


def prefix_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor | None = None,
    prefix_v: Tensor | None = None,
    scale: float | None = None,
    angles: Tensor | None = None,
) -> Tensor:
    """Attention of N latents to K prefix positions and, causally, to themselves.

    Three queries over a prefix of two positions, 1 where admitted::

        1 1 1 0 0
        1 1 1 1 0
        1 1 1 1 1

    Args:
        q: Queries, (B, N, H, C): the last N of S = K + N positions.
        k: Keys of all S positions, (B, S, G, C), or of the latents alone, (B, N, G, C), where the
            prefix's are given apart, so that nothing has to be concatenated.
        v: Values, of k's shape.
        prefix_k: Keys of the prefix, (B, K, G, C).
        prefix_v: Values of the prefix, (B, K, G, C).
        scale: Factor of the scores; C^-½ by default.
        angles: Rotary embedding of all S positions, the prefix's first: radians by which the first
            P pairs of neighbouring channels of queries and keys turn, (B or 1, S, P), 2·P at most
            C. Not differentiated.

    Returns:
        softmax(scale · q kᵀ) v over the admitted pairs, (B, N, H, C), in q's dtype.

    Raises:
        TypeError: If a dtype is none of fp32, fp16 and bf16, dtypes differ, or the scale is no
            number.
        ValueError: If shapes or devices do not fit, there are fewer keys than queries, or no
            kernel can run on the device in the dtype, autocast's where it is enabled.
    """
    q, k, v = _accepted(q=q, k=k, v=v)
    if (prefix_k is None) != (prefix_v is None):
        raise ValueError("prefix_k and prefix_v must be given together, got one of them")
    num_prefix = k.shape[1] - q.shape[1]
    if prefix_k is None or prefix_v is None:
        if num_prefix < 0:
            raise ValueError(f"k must have {q.shape[1]} positions at least, got {k.shape[1]}")
    elif num_prefix != 0:
        raise ValueError(f"k must have {q.shape[1]} positions as q has, got {k.shape[1]}")
    else:
        _, prefix_k, prefix_v = _accepted(q=q, prefix_k=prefix_k, prefix_v=prefix_v)
        if prefix_k.shape[2] != k.shape[2]:
            raise ValueError(f"prefix_k must have {k.shape[2]} heads, got {prefix_k.shape[2]}")
    return _attend(q, k, v, prefix_k, prefix_v, scale, angles)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor | None,
    prefix_v: Tensor | None,
    scale: float | None,
    angles: Tensor | None,
) -> Tensor:
    """Turn and pad in one pass where there is something to turn; then attend.

    Wide heads are padded here, so that their gradients are stored padded and cut afterwards.
    """
    head_dim = q.shape[-1]
    if scale is None:
        scale = head_dim**-0.5
    elif isinstance(scale, bool) or not isinstance(scale, (numbers.Real, torch.SymFloat)):
        raise TypeError(f"scale must be a number, got {_described(scale)}")
    elif not SMALLEST_SCALE <= scale <= LARGEST_SCALE:
        raise ValueError(f"scale must be positive and finite in fp32, got {scale}")
    elif not isinstance(scale, torch.SymFloat):
        scale = float(scale)
    num_positions = k.shape[1] + (0 if prefix_k is None else prefix_k.shape[1])
    table = None if angles is None else _table(angles, q, num_positions)
    stored = padded_head_dim(head_dim)
    wide = WIDEST_CUT < stored != head_dim
    if wide and table is None:
        table = q.new_empty(1, num_positions, 0, 2, dtype=torch.float32)
    if table is not None:
        q, k, *prefix = prepare(q, k, prefix_k, table, stored, False)
        prefix_k = prefix[0] if prefix else None
    if wide:
        v, prefix_v = (
            None if x is None else functional.pad(x, (0, stored - head_dim)) for x in (v, prefix_v)
        )
    return attention(q, k, v, prefix_k, prefix_v, scale, head_dim)[0]


def _table(angles: Tensor, q: Tensor, num_positions: int) -> Tensor | None:
    """Cosines and sines of the angles, (B or 1, S, P, 2) in fp32; None where no pair turns."""
    if not isinstance(angles, Tensor) or not angles.is_floating_point():
        raise TypeError(f"angles must be a floating-point tensor, got {_described(angles)}")
    if angles.device != q.device:
        raise ValueError(f"angles must be on q's device {q.device}, got {angles.device}")
    batch, head_dim = q.shape[0], q.shape[-1]
    if (
        angles.ndim != 3
        or angles.shape[0] not in (1, batch)
        or angles.shape[1] != num_positions
        or 2 * angles.shape[2] > head_dim
    ):
        raise ValueError(
            f"angles must be (1 or {batch}, {num_positions}, at most {head_dim // 2}), "
            f"got {tuple(angles.shape)}"
        )
    if angles.requires_grad:
        raise ValueError("angles must not require gradients: none are computed for them")
    if angles.shape[2] == 0:
        return None
    wide = angles.to(torch.promote_types(angles.dtype, torch.float32))
    return torch.stack((wide.cos(), wide.sin()), dim=-1).float()


def _described(x: object) -> str:
    return str(x.dtype) if isinstance(x, Tensor) else type(x).__name__


def _under_autocast(x: Tensor) -> Tensor:
    """Cast as ``scaled_dot_product_attention`` would: to autocast's dtype where it is enabled."""
    device = x.device.type
    if device in ("cuda", "cpu") and x.dtype in DTYPES and torch.is_autocast_enabled(device):
        return x.to(torch.get_autocast_dtype(device))
    return x


def _accepted(**operands: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values by name, cast under autocast; refuses what no kernel can run on."""
    for name, x in operands.items():
        if not isinstance(x, Tensor) or x.dtype not in DTYPES:
            raise TypeError(f"{name} must be fp32, fp16 or bf16, got {_described(x)}")
    q, k, v = (_under_autocast(x) for x in operands.values())
    names = tuple(operands)
    for name, x in zip(names, (q, k, v), strict=True):
        if x.dtype != q.dtype:
            raise TypeError(f"{name} must have q's dtype {q.dtype}, got {x.dtype}")
        if x.device != q.device:
            raise ValueError(f"{name} must be on q's device {q.device}, got {x.device}")
        if x.layout != torch.strided:
            raise ValueError(f"{name} must be a dense tensor, got one of layout {x.layout}")
        if x.ndim != 4:
            raise ValueError(
                f"{name} must be (batch, length, heads, head dim), got {tuple(x.shape)}"
            )
        if not within_reach(x):
            raise ValueError(
                f"{name} must have length and channel strides that add up to less than "
                f"{2**31 // TILE_ROWS}, got {x.stride(1)} and {x.stride(3)}"
            )
    if 0 in q.shape[:3]:
        raise ValueError(f"q must have a sequence, a query and a head at least: {tuple(q.shape)}")
    for name, x in zip(names, (q, k), strict=False):
        if TILE_ROWS * (x.shape[2] * x.shape[3] + 1) >= 2**31:
            raise ValueError(
                f"{name} must have less than {2**31 // TILE_ROWS} channels of all heads, "
                f"got {tuple(x.shape)}"
            )
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
    if reason := unsupported(q.device, q.dtype):
        cast = "" if q.dtype == operands["q"].dtype else ", by autocast"
        raise ValueError(f"q is {q.dtype} on {q.device}{cast}: {reason}")
    return q, k, v
