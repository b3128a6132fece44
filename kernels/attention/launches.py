"""Launches of the attention kernels: tensors in, tensors out, no autograd.

Letters as in the kernels: B batch, N queries, K prefix positions, S keys, H query heads, G
key-value heads, C channels of a head. Queries, keys and values may be stored with more channels
than C, zeros from C on; the output and its gradient have C.

Heads of up to 96 channels are read where they lie if rows start at multiples of 16 bytes, or of 8
for those of more than 64. Others are copied with zeros up to a multiple of 16 channels: see
:func:`unit_of`.
"""

from __future__ import annotations

import functools

import torch
import triton
from torch import Tensor
from torch.nn import functional

from kernels.attention.backward import (
    ROW_BLOCK,
    attention_key_value_gradient,
    attention_query_gradient,
    row_products,
)
from kernels.attention.forward import attention_forward
from kernels.attention.tilings import (
    COPIED,
    WIDEST_IN_PLACE,
    gradient_launches,
    padded_head_dim,
    part_ranges,
    row_options,
    shipped_tiling,
)

INTERPRETED = triton.knobs.runtime.interpret
TILE_ROWS = 256  # of no kernel a tile has more rows, or more channels


def unsupported(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels cannot be right on a device in a dtype; None where they are.

    Example:
        >>> unsupported(torch.device("cuda"), torch.float16) is None
        True
    """
    if device.type == "meta":
        return None
    if INTERPRETED and dtype == torch.bfloat16:
        return (
            "Triton's interpreter multiplies the raw bits of bf16; "
            "take fp32 or fp16, or a GPU without TRITON_INTERPRET"
        )
    if device.type != "cuda" and not INTERPRETED:
        return (
            "the kernels run on CUDA, or in fp32 and fp16 on the CPU with TRITON_INTERPRET=1 set "
            "before the first import"
        )
    return None


def _refuse_in_interpreter(x: Tensor) -> None:
    if INTERPRETED and (reason := unsupported(x.device, x.dtype)):
        raise ValueError(f"operands are {x.dtype} on {x.device}: {reason}")


def within_reach(x: Tensor) -> bool:
    """Whether 32-bit offsets suffice within a tile of x, (B, length, heads, channels).

    Whole tensors have 64-bit offsets, but within one tile the kernels count in 32 bits.
    """
    return TILE_ROWS * (x.stride(1) + x.stride(3)) < 2**31


def unit_of(x: Tensor, head_dim: int) -> int | None:
    """Elements of which visited tiles of x start at multiples: 16 or 8 bytes, if they can.

    Args:
        x: (B, length, heads, C or more).
        head_dim: C.

    Returns:
        0 where x has zeros up to a multiple of 16 channels, or C is one, so that tiles start where
        heads do; None where a tile would start off the bytes that are copied at once, would not
        hold its head, or would end outside of its row, and where heads are wide.

    Example:
        >>> unit_of(torch.empty(2, 5, 8, 73, dtype=torch.float16), 73)  # 7 channels before at most
        8
        >>> unit_of(torch.empty(2, 5, 8, 78, dtype=torch.float16), 78)  # 2 channels before at most
        4
        >>> unit_of(torch.empty(2, 5, 1, 73, dtype=torch.float16), 73) is None  # rows of 146 bytes
        True
    """
    address = x.data_ptr() % max(COPIED)
    return _unit(tuple(x.shape), x.stride(), x.element_size(), address, head_dim)


@functools.lru_cache(maxsize=4096)
def _unit(
    shape: tuple[int, ...], strides: tuple[int, ...], size: int, address: int, head_dim: int
) -> int | None:
    width = padded_head_dim(head_dim)
    if shape[3] >= width:
        return 0
    row = (shape[2] - 1) * strides[2] + head_dim
    if width > WIDEST_IN_PLACE or strides[3] != 1 or row < width:
        return None
    moves = [row, *(strides[axis] for axis in (0, 1) if shape[axis] > 1)]
    for copied, least_width in COPIED.items():
        unit = copied // size
        if width < least_width or address % copied or any(move % unit for move in moves):
            continue
        heads = [head * strides[2] for head in range(shape[2])]
        shifts = [own - min(own // unit * unit, row - width) for own in heads]
        if max(shifts) <= width - head_dim:
            return unit
    return None


def visited(*ranges: Tensor, head_dim: int, padded: bool = False) -> tuple[int, tuple[Tensor, ...]]:
    """Ranges of one operand as a kernel can visit them, and their common unit.

    Args:
        ranges: the prefix's and the latents' part, or all; empty ones count for nothing.
        head_dim: C.
        padded: whether nothing but whole, padded rows will do.

    Returns:
        The unit, and the ranges themselves; or 0, and copies with zeros up to the padded head dim.
    """
    some = [x for x in ranges if x.numel()]
    units = {(unit_of(x, head_dim), x.stride(2)) for x in some}
    (unit, _), *others = units or {(0, 0)}
    alike = not others or {unit for unit, _ in units} == {0}
    if alike and unit is not None and not (padded and unit):
        return unit, ranges
    return 0, tuple(padded_copy(x, head_dim) for x in ranges)


def padded_copy(x: Tensor, head_dim: int) -> Tensor:
    """X with zeros up to the padded head dim; x itself where it has them."""
    missing = padded_head_dim(head_dim) - x.shape[-1]
    return functional.pad(x, (0, missing)) if missing > 0 else x


def readable(x: Tensor, head_dim: int, padded: bool = False) -> Tensor:
    """X itself where its heads can be read in place and need not be padded; else a padded copy."""
    return padded_copy(x, head_dim) if padded or unit_of(x, head_dim) is None else x


def are_alike(x: Tensor, other: Tensor, unit: int, head_dim: int) -> bool:
    """Whether x can be loaded as ``other`` is visited, which has that unit: head by head alike."""
    if unit == 0:
        return unit_of(x, head_dim) == 0
    same_heads = (x.shape[2], x.stride(2)) == (other.shape[2], other.stride(2))
    return same_heads and unit_of(x, head_dim) == unit


def launch_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor | None,
    prefix_v: Tensor | None,
    scale: float,
    head_dim: int,
) -> tuple[Tensor, Tensor]:
    """Run the forward kernel.

    Args:
        q: queries, (B, N, H, stored channels).
        k: keys, (B, S, G, stored channels), of which the last N are the latents'.
        v: values, of k's shape.
        prefix_k: the prefix's keys where ``k`` has the latents' alone.
        prefix_v: values of prefix_k's shape.
        scale: factor of the scores.
        head_dim: C.

    Returns:
        The output, (B, N, H, C), and its log-sum-exp, (B, H, N) in fp32.

    Raises:
        ValueError: if Triton interprets and cannot do so in q's dtype.
    """
    _refuse_in_interpreter(q)
    batch, num_latents, num_heads, _ = q.shape
    out = q.new_empty(batch, num_latents, num_heads, head_dim)
    lse = q.new_empty(batch, num_heads, num_latents, dtype=torch.float32)
    prefix_k, k = two_ranges(k, prefix_k, num_latents)
    prefix_v, v = two_ranges(v, prefix_v, num_latents)
    num_keys = prefix_k.shape[1] + k.shape[1]
    k_unit, (prefix_k, k) = visited(prefix_k, k, head_dim=head_dim)
    v_unit, (prefix_v, v) = visited(prefix_v, v, head_dim=head_dim)
    q = readable(q, head_dim)
    tiling = shipped_tiling("forward", head_dim, q.element_size(), num_keys)
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
        PARTS=part_ranges(head_dim),
        K_UNIT=k_unit,
        V_UNIT=v_unit,
        Q_ALIKE=are_alike(q, k, k_unit, head_dim),
        HAS_PREFIX=prefix_k.shape[1] > 0,
        **tiling.options(),
    )
    return out, lse


def launch_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor | None,
    prefix_v: Tensor | None,
    out: Tensor,
    lse: Tensor,
    scale: float,
) -> list[Tensor]:
    """Run the backward kernels.

    Returns:
        Contiguous gradients of q, k, v and, where they are given apart, prefix_k and prefix_v.

    Raises:
        ValueError: if Triton interprets and cannot do so in q's dtype.
    """
    _refuse_in_interpreter(q)
    if not within_reach(grad_out):
        grad_out = grad_out.contiguous()
    batch, num_latents, num_heads, head_dim = grad_out.shape
    parts, size = part_ranges(head_dim), q.element_size()
    group = num_heads // k.shape[2]
    delta = torch.empty_like(lse)
    num_keys = k.shape[1] + (0 if prefix_k is None else prefix_k.shape[1])
    query = shipped_tiling("query", head_dim, size, num_keys)
    # Gradients have the channels of what they belong to, and those beyond C come out as zeros only
    # where what is visited has zeros there.
    grad_unit, (grad_out,) = visited(
        grad_out, head_dim=head_dim, padded=group > 1 or v.shape[-1] > head_dim
    )
    q_unit, (visited_q,) = visited(q, head_dim=head_dim, padded=group > 1 or k.shape[-1] > head_dim)
    rows_alike = are_alike(out, grad_out, grad_unit, head_dim)
    row_products[(triton.cdiv(num_latents, ROW_BLOCK) * batch * num_heads,)](
        out,
        grad_out,
        lse,
        delta,
        out.stride(),
        grad_out.stride(),
        batch,
        num_latents,
        num_heads,
        BLOCK_QUERIES=ROW_BLOCK,
        HEAD_DIM=head_dim,
        PARTS=parts,
        UNIT=grad_unit if rows_alike else 0,
        ALIKE=rows_alike,
        **row_options(head_dim),
    )
    blocks = triton.cdiv(num_latents, query.block_queries)

    def keys_and_values(
        keys: Tensor, values: Tensor, grad_k: Tensor, grad_v: Tensor, causal: bool
    ) -> None:
        tiling = shipped_tiling("key_value", head_dim, size, num_keys)
        blocks = triton.cdiv(keys.shape[1], tiling.block_keys)
        keys = readable(keys, head_dim, padded=q_unit == 0)
        values = readable(values, head_dim, padded=grad_unit == 0)
        for gradient in gradient_launches(head_dim) if blocks else ():
            attention_key_value_gradient[(blocks * batch * keys.shape[2],)](
                visited_q,
                keys,
                values,
                grad_out,
                lse,
                delta,
                grad_k,
                grad_v,
                visited_q.stride(),
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
                PARTS=parts,
                Q_UNIT=q_unit,
                GRAD_UNIT=grad_unit,
                K_STORED=grad_k.shape[-1],
                V_STORED=grad_v.shape[-1],
                CAUSAL=causal,
                GRADIENT=gradient,
                **tiling.options(),
            )

    given = (q, k, v) if prefix_k is None or prefix_v is None else (q, k, v, prefix_k, prefix_v)
    grads = [x.new_empty(x.shape) for x in given]
    grad_q, grad_k, grad_v, grad_prefix_k, grad_prefix_v = (*grads, None, None)[:5]
    prefix_k, k = two_ranges(k, prefix_k, num_latents)
    prefix_v, v = two_ranges(v, prefix_v, num_latents)
    grad_prefix_k, grad_k = two_ranges(grad_k, grad_prefix_k, num_latents)
    grad_prefix_v, grad_v = two_ranges(grad_v, grad_prefix_v, num_latents)
    keys_and_values(k, v, grad_k, grad_v, causal=True)
    keys_and_values(prefix_k, prefix_v, grad_prefix_k, grad_prefix_v, causal=False)
    k_unit, (prefix_k, k) = visited(prefix_k, k, head_dim=head_dim, padded=q.shape[-1] > head_dim)
    v_unit, (prefix_v, v) = visited(prefix_v, v, head_dim=head_dim)
    readable_q = readable(q, head_dim)
    attention_query_gradient[(blocks * batch * num_heads,)](
        readable_q,
        prefix_k,
        prefix_v,
        k,
        v,
        grad_out,
        lse,
        delta,
        grad_q,
        readable_q.stride(),
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
        PARTS=parts,
        K_UNIT=k_unit,
        V_UNIT=v_unit,
        Q_ALIKE=are_alike(readable_q, k, k_unit, head_dim),
        GRAD_ALIKE=are_alike(grad_out, v, v_unit, head_dim),
        Q_STORED=q.shape[-1],
        HAS_PREFIX=prefix_k.shape[1] > 0,
        **query.options(),
    )
    return grads


def two_ranges(x: Tensor, prefix: Tensor | None, num_latents: int) -> tuple[Tensor, Tensor]:
    """The prefix's and the latents' part of keys or values, whether given as one or as two."""
    if prefix is not None:
        return prefix, x
    num_prefix = x.shape[1] - num_latents
    return x[:, :num_prefix], x[:, num_prefix:]
