"""The forward kernel.

Letters: B batch, N queries (the latents), K prefix positions, H query heads, G key-value heads,
C channels of a head. Keys and values come in two ranges, prefix and latents, which may be slices
of one tensor.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.attention.tiles import (
    LOG2_E,
    add_product_over_rows,
    first_loaded,
    in_units,
    load_shifted,
    product_over_channels,
    scale_rows,
    shift_of,
    store_rows,
    visit_rows,
    zero_rows,
)


def declare_forward(grid, metadata, args):
    """What a profile shows for a launch: admitted pairs' FLOPs, and each operand's bytes once."""
    batch, pairs, elements, size = launch_sizes(args)
    return {
        "name": metadata.name,
        f"flops{8 * size}": 4 * batch * args["num_heads"] * pairs * args["HEAD_DIM"],
        "bytes": elements * size + 4 * batch * args["num_heads"] * args["num_latents"],
    }


def launch_sizes(args):
    """Batch, admitted pairs of one head, elements of q, out, k and v, and bytes of an element."""
    n, k = args["num_latents"], args["num_prefix"]
    heads, group = args["num_heads"], args["group"]
    batch = args["batch"]
    elements = batch * args["HEAD_DIM"] * (2 * n * heads + 2 * (n + k) * (heads // group))
    return batch, n * k + n * (n + 1) // 2, elements, args["q"].element_size()


LOWEST = tl.constexpr(-3.4028234663852886e38)  # the least finite fp32


@triton.jit
def attend_tiles(
    accumulator,
    row_max,
    row_sum,
    q,
    k,
    v,
    k_strides,
    v_strides,
    first,
    last,
    num_keys,
    queries,
    scale_log2,
    BLOCK_KEYS: tl.constexpr,
    PARTS: tl.constexpr,
    K_UNIT: tl.constexpr,
    V_UNIT: tl.constexpr,
    MASK: tl.constexpr,
):
    """Online softmax over the key blocks from ``first`` to ``last``: two products per tile.

    ``scale_log2`` must be positive: the largest score is then the largest scaled one.
    ``MASK`` is "none", "end" (the range of keys ends inside the block) or "causal".
    """
    for start in tl.range(first, last, BLOCK_KEYS, disable_licm=True):
        k_tile = visit_rows(
            k,
            start,
            num_keys,
            k_strides[1],
            k_strides[3],
            BLOCK_KEYS,
            PARTS,
            K_UNIT,
            MASK == "none",
        )
        scores = product_over_channels(q, k_tile)
        keys = start + tl.arange(0, BLOCK_KEYS)
        if MASK == "end":
            scores = tl.where((keys < num_keys)[None, :], scores, float("-inf"))
        if MASK == "causal":
            scores = tl.where(queries[:, None] >= keys[None, :], scores, float("-inf"))
        # Scaling the maximum, not each score, leaves one multiply-add per score before its exp2.
        new_max = tl.maximum(row_max, tl.max(scores, 1) * scale_log2)
        weights = tl.exp2(scores * scale_log2 - new_max[:, None])
        correction = tl.exp2(row_max - new_max)
        row_sum = row_sum * correction + tl.sum(weights, 1)
        row_max = new_max
        v_tile = visit_rows(
            v,
            start,
            num_keys,
            v_strides[1],
            v_strides[3],
            BLOCK_KEYS,
            PARTS,
            V_UNIT,
            MASK == "none",
        )
        accumulator = add_product_over_rows(scale_rows(accumulator, correction), weights, v_tile)
    return accumulator, row_max, row_sum


@triton.jit(launch_metadata=declare_forward)
def attention_forward(
    q,
    prefix_k,
    prefix_v,
    k,
    v,
    out,
    lse,
    q_strides,
    prefix_k_strides,
    prefix_v_strides,
    k_strides,
    v_strides,
    out_strides,
    batch,
    num_latents,
    num_prefix,
    num_heads,
    group,
    scale,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PARTS: tl.constexpr,
    K_UNIT: tl.constexpr,
    V_UNIT: tl.constexpr,
    Q_ALIKE: tl.constexpr,
    HAS_PREFIX: tl.constexpr,
):
    """Out = softmax(scale · q [prefix_k; k]ᵀ) [prefix_v; v] and its log-sum-exp.

    q is (B, N, H, C or more), the prefix (B, K, G, C or more), k and v (B, N, G, C or more), out
    (B, N, H, C), lse (B, H, N); strides are (batch, length, heads, channels). Units are those of
    :mod:`kernels.attention.tiles`; the prefix's keys and values start in their rows where the
    latents' do.

    One program owns BLOCK_QUERIES = M queries of one head and visits, with J = BLOCK_KEYS:

    - the latents' key blocks on the diagonal, masked: from its first query m₀ to min(m₀ + M, N);
    - those wholly below the diagonal: from 0 to m₀;
    - every key block of the prefix, ⌈K / J⌉, the last one masked where K ends inside it.

    Each visited tile issues two products, q kᵀ and weights · v, of 2·M·J·(sum of parts) FLOPs,
    whole tiles always. None is issued outside of a loop. There are ⌈N / M⌉ programs for each of
    B·H heads.
    """
    num_blocks = tl.cdiv(num_latents, BLOCK_QUERIES)
    # The last queries have the most keys: they start first.
    first_query = (num_blocks - 1 - tl.program_id(0) % num_blocks) * BLOCK_QUERIES
    head = tl.program_id(0) // num_blocks
    b = (head // num_heads).to(tl.int64)
    h = (head % num_heads).to(tl.int64)
    g = h // group

    queries = first_query + tl.arange(0, BLOCK_QUERIES)
    num_key_heads = num_heads // group
    k_start = first_loaded(g, num_key_heads, k_strides[2], HEAD_DIM, PARTS, K_UNIT)
    v_start = first_loaded(g, num_key_heads, v_strides[2], HEAD_DIM, PARTS, V_UNIT)
    q_tile = load_shifted(
        q + b * in_units(q_strides[0], K_UNIT if Q_ALIKE else 0),
        h,
        num_heads,
        q_strides[2],
        shift_of(k_start, g, k_strides[2], K_UNIT),
        first_query,
        num_latents,
        q_strides[1],
        q_strides[3],
        BLOCK_QUERIES,
        HEAD_DIM,
        PARTS,
        K_UNIT,
        Q_ALIKE,
    )
    accumulator = zero_rows(BLOCK_QUERIES, PARTS)
    # Finite, so that a row which has met scores of −inf alone has weights of 0 so far.
    row_max = tl.full((BLOCK_QUERIES,), LOWEST, tl.float32)
    row_sum = tl.full((BLOCK_QUERIES,), 0.0, tl.float32)
    scale_log2 = scale * LOG2_E

    k += b * in_units(k_strides[0], K_UNIT) + k_start
    v += b * in_units(v_strides[0], V_UNIT) + v_start
    end = tl.minimum(first_query + BLOCK_QUERIES, num_latents)
    # The diagonal comes first since it is never empty: after a loop that might not run at all, the
    # assembler sees accumulators set while products are in flight, and makes every product wait.
    tl.assume(first_query < end)
    accumulator, row_max, row_sum = attend_tiles(
        accumulator,
        row_max,
        row_sum,
        q_tile,
        k,
        v,
        k_strides,
        v_strides,
        first_query,
        end,
        num_latents,
        queries,
        scale_log2,
        BLOCK_KEYS,
        PARTS,
        K_UNIT,
        V_UNIT,
        "causal",
    )
    accumulator, row_max, row_sum = attend_tiles(
        accumulator,
        row_max,
        row_sum,
        q_tile,
        k,
        v,
        k_strides,
        v_strides,
        0,
        first_query,
        num_latents,
        queries,
        scale_log2,
        BLOCK_KEYS,
        PARTS,
        K_UNIT,
        V_UNIT,
        "none",
    )
    if HAS_PREFIX:
        prefix_k += b * in_units(prefix_k_strides[0], K_UNIT) + k_start
        prefix_v += b * in_units(prefix_v_strides[0], V_UNIT) + v_start
        whole = num_prefix // BLOCK_KEYS * BLOCK_KEYS
        accumulator, row_max, row_sum = attend_tiles(
            accumulator,
            row_max,
            row_sum,
            q_tile,
            prefix_k,
            prefix_v,
            prefix_k_strides,
            prefix_v_strides,
            0,
            whole,
            num_prefix,
            queries,
            scale_log2,
            BLOCK_KEYS,
            PARTS,
            K_UNIT,
            V_UNIT,
            "none",
        )
        accumulator, row_max, row_sum = attend_tiles(
            accumulator,
            row_max,
            row_sum,
            q_tile,
            prefix_k,
            prefix_v,
            prefix_k_strides,
            prefix_v_strides,
            whole,
            num_prefix,
            num_prefix,
            queries,
            scale_log2,
            BLOCK_KEYS,
            PARTS,
            K_UNIT,
            V_UNIT,
            "end",
        )

    store_rows(
        out + b * out_strides[0] + h * out_strides[2],
        first_query,
        num_latents,
        out_strides[1],
        out_strides[3],
        scale_rows(accumulator, 1.0 / row_sum),
        1.0,
        shift_of(v_start, g, v_strides[2], V_UNIT),
        BLOCK_QUERIES,
        HEAD_DIM,
        PARTS,
    )
    lse += (b * num_heads + h) * num_latents
    tl.store(lse + queries, (row_max + tl.log2(row_sum)) / LOG2_E, mask=queries < num_latents)
