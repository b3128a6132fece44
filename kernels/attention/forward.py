"""The forward kernel.

Letters: B batch, N queries (the latents), K prefix positions, H query heads, G key-value heads,
C channels of a head. Keys and values come in two ranges, prefix and latents, which may be slices
of one tensor. Of a tile: M = BLOCK_QUERIES, J = BLOCK_KEYS, C̄ channels, C rounded up to a multiple
of 16; a tile of channels is a tuple of parts, (M, C̄) for short.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.attention.tiles import (
    LOG2_E,
    add_product_over_rows,
    load_rows,
    moved,
    not_before,
    product_over_channels,
    rows_from,
    rows_of,
    scale_rows,
    step,
    store_rows,
    zero_rows,
)


def declare_forward(grid, metadata, args):
    """What a profile shows for a launch: admitted pairs' FLOPs, and each operand's bytes once."""
    batch, pairs, elements, size = declared_sizes(args)
    rows = batch * args["num_heads"] * args["num_latents"]
    return {
        "name": metadata.name,
        f"flops{8 * size}": 4 * batch * args["num_heads"] * pairs * args["HEAD_DIM"],
        "bytes": elements * size + rows * (args["HEAD_DIM"] * size + 4),
    }


def declared_sizes(args):
    """Batch, admitted pairs of one head, stored elements of q, k and v, bytes of an element."""
    n, k = args["num_latents"], args["num_prefix"]
    heads, group = args["num_heads"], args["group"]
    batch = args["batch"]
    elements = batch * args["q"].shape[-1] * (n * heads + 2 * (n + k) * (heads // group))
    return batch, n * k + n * (n + 1) // 2, elements, args["q"].element_size()


@triton.jit
def keys_of(keys, length, b, head):
    """The rows of a head's keys and of its values in a range of ``length`` positions."""
    k, v, k_strides, v_strides = keys
    return rows_of(k, k_strides, length, b, head), rows_of(v, v_strides, length, b, head)


LOWEST = tl.constexpr(-3.4028234663852886e38)  # the least finite fp32


@triton.jit
def attend_tiles(
    state,
    q,
    keys,
    first,
    last,
    first_query,
    scale_log2,
    BLOCK_KEYS: tl.constexpr,
    PARTS: tl.constexpr,
    MASK: tl.constexpr,
):
    """Online softmax over the key blocks from ``first`` to ``last``: two products per tile.

    ``state`` is the accumulator, the rows' largest scores and sums; ``keys`` are rows of keys and
    of values. ``scale_log2`` must be positive: the largest score is then the largest scaled one.
    ``MASK`` is "none", "end" (the range of keys ends inside the block) or "causal".
    """
    accumulator, row_max, row_sum = state  # (M, C̄), (M,), (M,)
    # As registers allow: the diagonal's tiles are found from their number, unless there is but one;
    # at the end, where there is one, too, the pointer stays, though not for parts of 16 or 128.
    k_rows, v_rows = rows_from(keys[0], first), rows_from(keys[1], first)
    k, v = k_rows[0], v_rows[0]
    for start in tl.range(first, last, BLOCK_KEYS, disable_licm=True):
        if MASK == "causal" and q[0].shape[0] != BLOCK_KEYS:
            k, v = rows_from(keys[0], start)[0], rows_from(keys[1], start)[0]
        k_tile = load_rows(
            moved(k_rows, k, last - start), BLOCK_KEYS, PARTS, MASK == "none"
        )  # (J, C̄)
        scores = product_over_channels(q, k_tile)  # (M, J)
        if MASK == "end":
            inside = tl.arange(0, BLOCK_KEYS) < last - start  # (J,)
            scores = tl.where(inside[None, :], scores, float("-inf"))  # (M, J)
        if MASK == "causal":
            admitted = not_before(first_query - start, scores.shape[0], BLOCK_KEYS)  # (M, J)
            scores = tl.where(admitted, scores, float("-inf"))  # (M, J)
        # Scaling the maximum, not each score, leaves one multiply-add per score before its exp2.
        new_max = tl.maximum(row_max, tl.max(scores, 1) * scale_log2)  # (M,)
        weights = tl.exp2(scores * scale_log2 - new_max[:, None])  # (M, J)
        correction = tl.exp2(row_max - new_max)  # (M,)
        row_sum = row_sum * correction + tl.sum(weights, 1)  # (M,)
        row_max = new_max
        v_tile = load_rows(
            moved(v_rows, v, last - start), BLOCK_KEYS, PARTS, MASK == "none"
        )  # (J, C̄)
        accumulator = add_product_over_rows(
            scale_rows(accumulator, correction), weights, v_tile
        )  # (M, C̄)
        if MASK == "none" or (MASK == "end" and PARTS[0][1] != 32 and PARTS[0][1] != 64):
            k += step(k_rows, BLOCK_KEYS)
            v += step(v_rows, BLOCK_KEYS)
    return accumulator, row_max, row_sum


@triton.jit(launch_metadata=declare_forward)
def attention_forward(
    q,
    prefix,
    latents,
    out,
    lse,
    q_strides,
    out_strides,
    batch,
    num_prefix: tl.int32,
    num_latents: tl.int32,
    num_heads,
    group,
    scale,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PARTS: tl.constexpr,
    HAS_PREFIX: tl.constexpr,
):
    """Out = softmax(scale · q [prefix's keys; latents']ᵀ) [prefix's values; latents'] and lse.

    q is (B, N, H, C̄), out (B, N, H, C), lse, the log-sum-exp, (B, H, N). A range, ``prefix`` or
    ``latents``, is a tuple: keys and values, (B, K or N, G, C̄) each, and their strides.
    C̄, the sum of parts, is C rounded up to a multiple of 16, with zeros from C on. Strides are
    (batch, length, heads, channels). Lengths have a type, so that Triton does not compile a length
    of 1 in, after which tiles would not be the whole ones stated below.

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
    g = (head % num_heads // group).to(tl.int64)

    queries = first_query + tl.arange(0, BLOCK_QUERIES)  # (M,)
    q_rows = rows_from(rows_of(q, q_strides, num_latents, b, h), first_query)
    q_tile = load_rows(q_rows, BLOCK_QUERIES, PARTS)  # (M, C̄)
    keys = keys_of(latents, num_latents, b, g)
    # The largest scores are finite, so that a row which has met scores of −inf alone has weights of
    # 0 so far.
    row_max = tl.full((BLOCK_QUERIES,), LOWEST, tl.float32)  # (M,)
    row_sum = tl.full((BLOCK_QUERIES,), 0.0, tl.float32)  # (M,)
    state = zero_rows(BLOCK_QUERIES, PARTS), row_max, row_sum
    scale_log2 = scale * LOG2_E
    end = tl.minimum(first_query + BLOCK_QUERIES, num_latents)
    # The diagonal comes first since it is never empty: after a loop that might not run at all, the
    # assembler sees accumulators set while products are in flight, and makes every product wait.
    tl.assume(first_query < end)
    state = attend_tiles(
        state, q_tile, keys, first_query, end, first_query, scale_log2, BLOCK_KEYS, PARTS, "causal"
    )
    state = attend_tiles(
        state, q_tile, keys, 0, first_query, first_query, scale_log2, BLOCK_KEYS, PARTS, "none"
    )
    if HAS_PREFIX:
        keys = keys_of(prefix, num_prefix, b, g)
        whole = num_prefix // BLOCK_KEYS * BLOCK_KEYS
        state = attend_tiles(
            state, q_tile, keys, 0, whole, first_query, scale_log2, BLOCK_KEYS, PARTS, "none"
        )
        state = attend_tiles(
            state, q_tile, keys, whole, num_prefix, first_query, scale_log2,
            BLOCK_KEYS, PARTS, "end",
        )  # fmt: skip
    accumulator, row_max, row_sum = state  # (M, C̄), (M,), (M,)
    out_rows = rows_from(rows_of(out, out_strides, num_latents, b, h), first_query)
    out_tile = scale_rows(accumulator, 1.0 / row_sum)  # (M, C̄)
    store_rows(out_rows, out_tile, 1.0, BLOCK_QUERIES, HEAD_DIM, PARTS)
    lse += (b * num_heads + h) * num_latents
    tl.store(lse + queries, (row_max + tl.log2(row_sum)) / LOG2_E, mask=queries < num_latents)
