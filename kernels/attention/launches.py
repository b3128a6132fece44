"""Launches of the attention kernels: tensors in, tensors out, no autograd.

Letters as in the kernels: B batch, N queries, K prefix positions, S keys, H query heads, G
key-value heads, C channels of a head. Queries, keys and values may be stored with more channels
than C, zeros from C on; the output and its gradient have C.

Heads whose width is no multiple of 16 are copied, with zeros up to one, before they come here: by
:mod:`kernels.attention.preparation`, once for both passes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import triton
from torch import Tensor

from kernels.attention.backward import (
    ROW_BLOCK,
    attention_key_value_gradient,
    attention_query_gradient,
    row_products,
)
from kernels.attention.forward import attention_forward
from kernels.attention.preparation import padded
from kernels.attention.tilings import (
    Tiling,
    end_apart,
    gradient_launches,
    part_ranges,
    row_options,
    shipped_tiling,
)

Strides = tuple[int, ...]
Range = tuple[Tensor, Tensor, Strides, Strides]
"""Keys and values of some positions, and their strides."""
INTERPRETED = triton.knobs.runtime.interpret
TILE_ROWS = 256  # of no kernel a tile has more rows, or more channels


def unsupported(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels cannot be right on a device in a dtype; None where they are.

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


def launch_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor | None,
    prefix_v: Tensor | None,
    scale: float,
    head_dim: int,
    tilings: Mapping[str, Tiling] | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the forward kernel.

    Args:
        q: Queries, (B, N, H, stored channels): a multiple of 16, as k and v have.
        k: Keys, (B, S, G, stored channels), of which the last N are the latents'.
        v: Values, of k's shape.
        prefix_k: The prefix's keys where ``k`` has the latents' alone.
        prefix_v: Values of prefix_k's shape.
        scale: Factor of the scores.
        head_dim: C.
        tilings: By pass, in place of the shipped ones.

    Returns:
        The output, (B, N, H, C), and its log-sum-exp, (B, H, N) in fp32.

    Raises:
        ValueError: If Triton interprets and cannot do so in q's dtype.
    """
    _refuse_in_interpreter(q)
    batch, num_latents, num_heads, _ = q.shape
    out = q.new_empty(batch, num_latents, num_heads, head_dim)
    lse = q.new_empty(batch, num_heads, num_latents, dtype=torch.float32)
    num_prefix, prefix, latents = two_ranges(k, v, prefix_k, prefix_v, num_latents)
    tiling = chosen(tilings, "forward", head_dim, q.element_size(), num_prefix + num_latents)
    blocks = triton.cdiv(num_latents, tiling.block_queries)
    attention_forward[(blocks * batch * num_heads,)](
        q,
        prefix,
        latents,
        out,
        lse,
        q.stride(),
        out.stride(),
        batch,
        num_prefix,
        num_latents,
        num_heads,
        num_heads // k.shape[2],
        scale,
        BLOCK_QUERIES=tiling.block_queries,
        BLOCK_KEYS=tiling.block_keys,
        HEAD_DIM=head_dim,
        PARTS=part_ranges(head_dim),
        HAS_PREFIX=num_prefix > 0,
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
    channels: Sequence[int],
    tilings: Mapping[str, Tiling] | None = None,
) -> list[Tensor]:
    """Run the backward kernels; arguments as of the forward kernel, whose results two are.

    Args:
        grad_out: Gradient of the output, (B, N, H, C).
        q: As of the forward kernel, and so are k, v, prefix_k and prefix_v.
        k: Keys.
        v: Values.
        prefix_k: The prefix's keys, or None.
        prefix_v: The prefix's values, or None.
        out: The output.
        lse: Its log-sum-exp.
        scale: Factor of the scores.
        channels: Of each gradient: C, or as many as the operand is stored with.
        tilings: By pass, in place of the shipped ones.

    Returns:
        Contiguous gradients of q, k, v and, where they are given apart, prefix_k and prefix_v.

    Raises:
        ValueError: If Triton interprets and cannot do so in q's dtype.
    """
    _refuse_in_interpreter(q)
    if not within_reach(grad_out):
        grad_out = grad_out.contiguous()
    batch, num_latents, num_heads, head_dim = grad_out.shape
    parts = part_ranges(head_dim)
    group = num_heads // k.shape[2]
    num_rows = triton.cdiv(num_latents, TILE_ROWS) * TILE_ROWS
    statistics = lse.new_empty(2, batch, num_heads, num_rows)
    row_products[(num_rows // ROW_BLOCK * batch * num_heads,)](
        out,
        grad_out,
        lse,
        statistics,
        out.stride(),
        grad_out.stride(),
        batch,
        num_latents,
        num_rows,
        num_heads,
        BLOCK_QUERIES=ROW_BLOCK,
        HEAD_DIM=head_dim,
        PARTS=parts,
        **row_options(head_dim),
    )
    given = (q, k, v) if prefix_k is None or prefix_v is None else (q, k, v, prefix_k, prefix_v)
    grads = [x.new_empty(*x.shape[:-1], c) for x, c in zip(given, channels, strict=True)]
    grad_q, *grads_of_keys = grads
    (grad_out,) = padded(grad_out, head_dim=head_dim)
    num_prefix, prefix, latents = two_ranges(k, v, prefix_k, prefix_v, num_latents)
    _, grad_prefix, grad_latents = two_ranges(*(*grads_of_keys, None, None)[:4], num_latents)
    sizes = head_dim, q.element_size(), num_prefix + num_latents
    tiling = chosen(tilings, "key_value", *sizes)
    ranges = (num_latents, latents, grad_latents), (num_prefix, prefix, grad_prefix)
    for num_keys, keys, gradients in ranges:
        blocks = triton.cdiv(num_keys, tiling.block_keys)
        for gradient in gradient_launches(head_dim) if blocks else ():
            attention_key_value_gradient[(blocks * batch * k.shape[2],)](
                q,
                grad_out,
                statistics,
                keys,
                gradients,
                q.stride(),
                grad_out.stride(),
                batch,
                num_keys,
                num_keys,  # of the gradients
                num_latents,
                num_rows,
                num_heads,
                group,
                scale,
                BLOCK_QUERIES=tiling.block_queries,
                BLOCK_KEYS=tiling.block_keys,
                HEAD_DIM=head_dim,
                PARTS=parts,
                K_STORED=gradients[0].shape[-1],
                V_STORED=gradients[1].shape[-1],
                CAUSAL=keys is latents,
                GRADIENT=gradient,
                END_APART=end_apart(head_dim),
                **tiling.options(),
            )
    tiling = chosen(tilings, "query", *sizes)
    blocks = triton.cdiv(num_latents, tiling.block_queries)
    attention_query_gradient[(blocks * batch * num_heads,)](
        q,
        prefix,
        latents,
        grad_out,
        statistics,
        grad_q,
        q.stride(),
        grad_out.stride(),
        grad_q.stride(),
        batch,
        num_prefix,
        num_latents,
        num_rows,
        num_heads,
        group,
        scale,
        BLOCK_QUERIES=tiling.block_queries,
        BLOCK_KEYS=tiling.block_keys,
        HEAD_DIM=head_dim,
        PARTS=parts,
        STORED=grad_q.shape[-1],
        HAS_PREFIX=num_prefix > 0,
        **tiling.options(),
    )
    return grads


def chosen(tilings: Mapping[str, Tiling] | None, pass_name: str, *sizes: int) -> Tiling:
    """The tiling given for a pass, or the shipped one."""
    given = (tilings or {}).get(pass_name)
    return given or shipped_tiling(pass_name, *sizes)


def two_ranges(
    k: Tensor, v: Tensor, prefix_k: Tensor | None, prefix_v: Tensor | None, num_latents: int
) -> tuple[int, Range, Range]:
    """The prefix's length; its and the latents' keys and values, given as one or as two."""
    if prefix_k is not None and prefix_v is not None:
        apart = prefix_k, prefix_v, prefix_k.stride(), prefix_v.stride()
        return prefix_k.shape[1], apart, (k, v, k.stride(), v.stride())
    strides, num_prefix = (k.stride(), v.stride()), k.shape[1] - num_latents
    prefix = (k, v, *strides)
    if num_prefix:
        k, v = k[:, num_prefix:], v[:, num_prefix:]
    return num_prefix, prefix, (k, v, *strides)
