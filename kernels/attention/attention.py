"""Causal and prefix attention as PyTorch functions, differentiable, on the fused kernels.

Letters as in the kernels: B batch, N queries, K prefix positions, S = K + N keys, H query heads,
G key-value heads, C channels of a head. The kernels run on CUDA tensors, and on CPU tensors where
``TRITON_INTERPRET=1`` was set before Triton was imported.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from kernels.attention.backward import (
    attention_key_value_gradient,
    attention_query_gradient,
    row_products,
)
from kernels.attention.forward import attention_forward
from kernels.attention.tilings import MAX_HEAD_DIM, head_dim_parts, shipped_tiling

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


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
    _check(q, k, v)
    if k.shape[1] != q.shape[1]:
        raise ValueError(f"k must have {q.shape[1]} positions as q has, got {k.shape[1]}")
    return _Attention.apply(q, None, None, k, v, _scale(q, scale))


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
    _check(q, k, v)
    if (prefix_k is None) != (prefix_v is None):
        raise ValueError("prefix_k and prefix_v must be given together, got one of them")
    num_prefix = k.shape[1] - q.shape[1]
    if prefix_k is None or prefix_v is None:
        if num_prefix < 0:
            raise ValueError(f"k must have {q.shape[1]} positions at least, got {k.shape[1]}")
        prefix_k, k = k[:, :num_prefix], k[:, num_prefix:]
        prefix_v, v = v[:, :num_prefix], v[:, num_prefix:]
    elif num_prefix != 0:
        raise ValueError(f"k must have {q.shape[1]} positions as q has, got {k.shape[1]}")
    else:
        _check(q, prefix_k, prefix_v, names=("q", "prefix_k", "prefix_v"))
        if prefix_k.shape[2] != k.shape[2]:
            raise ValueError(f"prefix_k must have {k.shape[2]} heads, got {prefix_k.shape[2]}")
    return _Attention.apply(q, prefix_k, prefix_v, k, v, _scale(q, scale))


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
    if q.device.type != "cuda" and not triton.knobs.runtime.interpret:
        raise ValueError(
            f"q is on {q.device}: the kernels run on CUDA, or on the CPU with TRITON_INTERPRET=1 "
            "set before the first import"
        )


class _Attention(torch.autograd.Function):
    """The kernels under autograd; keeps the log-sum-exp of each row, never probabilities."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        prefix_k: Tensor | None,
        prefix_v: Tensor | None,
        k: Tensor,
        v: Tensor,
        scale: float,
    ) -> Tensor:
        out, lse = launch_forward(q, prefix_k, prefix_v, k, v, scale)
        ctx.save_for_backward(q, prefix_k, prefix_v, k, v, out, lse)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        q, prefix_k, prefix_v, k, v, out, lse = ctx.saved_tensors
        return (*launch_backward(q, prefix_k, prefix_v, k, v, out, lse, grad_out, ctx.scale), None)


def launch_forward(
    q: Tensor,
    prefix_k: Tensor | None,
    prefix_v: Tensor | None,
    k: Tensor,
    v: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Run the forward kernel: the output (B, N, H, C) and its log-sum-exp (B, H, N), fp32."""
    batch, num_latents, num_heads, head_dim = q.shape
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = torch.empty(batch, num_heads, num_latents, dtype=torch.float32, device=q.device)
    prefix_k = k[:, :0] if prefix_k is None else prefix_k
    prefix_v = v[:, :0] if prefix_v is None else prefix_v
    tiling = shipped_tiling("forward", head_dim, q.element_size())
    blocks = triton.cdiv(num_latents, tiling.block_queries)
    attention_forward[(blocks * batch * num_heads,)](
        q,
        prefix_k,
        prefix_v,
        k,
        v,
        out,
        lse,
        q.stride(),
        prefix_k.stride(),
        prefix_v.stride(),
        k.stride(),
        v.stride(),
        out.stride(),
        batch,
        num_latents,
        prefix_k.shape[1],
        num_heads,
        num_heads // k.shape[2],
        scale,
        BLOCK_QUERIES=tiling.block_queries,
        BLOCK_KEYS=tiling.block_keys,
        HEAD_DIM=head_dim,
        STORED=head_dim,
        PARTS=part_ranges(head_dim),
        HAS_PREFIX=prefix_k.shape[1] > 0,
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
    )
    return out, lse


def launch_backward(
    q: Tensor,
    prefix_k: Tensor | None,
    prefix_v: Tensor | None,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor]:
    """Run the backward kernels: the gradients of q, prefix_k, prefix_v, k and v."""
    batch, num_latents, num_heads, head_dim = q.shape
    parts, size = part_ranges(head_dim), q.element_size()
    group = num_heads // k.shape[2]
    delta = torch.empty_like(lse)
    query = shipped_tiling("query", head_dim, size)
    blocks = triton.cdiv(num_latents, query.block_queries)
    row_products[(blocks * batch * num_heads,)](
        out,
        grad_out,
        delta,
        out.stride(),
        grad_out.stride(),
        batch,
        num_latents,
        num_heads,
        BLOCK_QUERIES=query.block_queries,
        HEAD_DIM=head_dim,
        PARTS=parts,
    )

    def keys_and_values(keys: Tensor, values: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
        grad_k, grad_v = torch.empty_like(keys), torch.empty_like(values)
        tiling = shipped_tiling("key_value", head_dim, size)
        blocks = triton.cdiv(keys.shape[1], tiling.block_keys)
        if blocks:
            attention_key_value_gradient[(blocks * batch * keys.shape[2],)](
                q,
                keys,
                values,
                grad_out,
                lse,
                delta,
                grad_k,
                grad_v,
                q.stride(),
                keys.stride(),
                values.stride(),
                grad_out.stride(),
                grad_k.stride(),
                grad_v.stride(),
                batch,
                num_latents,
                0,
                keys.shape[1],
                num_heads,
                group,
                scale,
                BLOCK_QUERIES=tiling.block_queries,
                BLOCK_KEYS=tiling.block_keys,
                HEAD_DIM=head_dim,
                STORED=head_dim,
                PARTS=parts,
                CAUSAL=causal,
                num_warps=tiling.num_warps,
                num_stages=tiling.num_stages,
            )
        return grad_k, grad_v

    grad_k, grad_v = keys_and_values(k, v, True)
    grad_prefix_k = grad_prefix_v = None
    if prefix_k is not None and prefix_v is not None:
        grad_prefix_k, grad_prefix_v = keys_and_values(prefix_k, prefix_v, False)
    prefix_k = k[:, :0] if prefix_k is None else prefix_k
    prefix_v = v[:, :0] if prefix_v is None else prefix_v
    grad_q = torch.empty_like(q)
    attention_query_gradient[(blocks * batch * num_heads,)](
        q,
        prefix_k,
        prefix_v,
        k,
        v,
        grad_out,
        lse,
        delta,
        grad_q,
        q.stride(),
        prefix_k.stride(),
        prefix_v.stride(),
        k.stride(),
        v.stride(),
        grad_out.stride(),
        grad_q.stride(),
        batch,
        num_latents,
        prefix_k.shape[1],
        num_heads,
        group,
        scale,
        BLOCK_QUERIES=query.block_queries,
        BLOCK_KEYS=query.block_keys,
        HEAD_DIM=head_dim,
        STORED=head_dim,
        PARTS=parts,
        HAS_PREFIX=prefix_k.shape[1] > 0,
        num_warps=query.num_warps,
        num_stages=query.num_stages,
    )
    return grad_q, grad_prefix_k, grad_prefix_v, grad_k, grad_v


def part_ranges(head_dim: int) -> tuple[tuple[int, int], ...]:
    """First channel and width of each part of the head dim.

    >>> part_ranges(73)
    ((0, 64), (64, 16))
    """
    ranges, first = [], 0
    for width in head_dim_parts(head_dim):
        ranges.append((first, width))
        first += width
    return tuple(ranges)
