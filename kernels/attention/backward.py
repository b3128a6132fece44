"""The backward kernels: deterministic, without atomics, seven products per pair of tiles or eight.

Letters as in the forward kernel. With p = exp(scale · q kᵀ − lse) recomputed per tile and
delta = Σ_channels out · grad_out:

    grad_v = pᵀ grad_out,  ds = p · (grad_out vᵀ − delta),
    grad_k = scale · dsᵀ q,  grad_q = scale · ds k.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.attention.forward import declared_sizes, keys_of
from kernels.attention.tiles import (
    LOG2_E,
    add_product_over_rows,
    load_rows,
    moved,
    not_before,
    product_over_channels,
    rows_from,
    rows_of,
    step,
    store_rows,
    zero_rows,
)

ROW_BLOCK = 32


def declare_row_products(grid, metadata, args):
    """What a profile shows: a multiply-add per channel; what is read and written once."""
    heads = args["batch"] * args["num_heads"]
    row = 2 * args["HEAD_DIM"] * args["out"].element_size() + 4
    return {
        "name": metadata.name,
        "flops32": 2 * heads * args["num_latents"] * args["HEAD_DIM"],
        "bytes": heads * (args["num_latents"] * row + args["num_rows"] * 8),
    }


def declare_key_value_gradient(grid, metadata, args):
    """What a profile shows: products over the admitted pairs; each operand's bytes once.

    Of the four products, the scores count for the values where these have a launch of their own;
    that launch reads neither v nor delta. Of the statistics, whole blocks are read.
    """
    n, keys, heads = args["num_latents"], args["num_keys"], args["num_heads"]
    batch, size = args["batch"], args["q"].element_size()
    pairs = n * (n + 1) // 2 if args["CAUSAL"] else n * keys
    gradients, block = len(args["GRADIENT"]), args["BLOCK_QUERIES"]
    read = 1 if args["GRADIENT"] == "v" else 2  # of keys and values, and of the two statistics
    channels = sum(args[f"{name.upper()}_STORED"] for name in args["GRADIENT"])
    channels += read * args["q"].shape[-1]
    elements = 2 * n * heads * args["q"].shape[-1] + keys * (heads // args["group"]) * channels
    return {
        "name": metadata.name,
        f"flops{8 * size}": 4 * gradients * batch * heads * pairs * args["HEAD_DIM"],
        "bytes": batch * (elements * size + 4 * read * heads * triton.cdiv(n, block) * block),
    }


def declare_query_gradient(grid, metadata, args):
    """What a profile shows: three products over the admitted pairs; each operand's bytes once."""
    batch, pairs, elements, size = declared_sizes(args)
    heads, n, block = args["num_heads"], args["num_latents"], args["BLOCK_QUERIES"]
    elements += batch * n * heads * (args["grad_out"].shape[-1] + args["STORED"])
    return {
        "name": metadata.name,
        f"flops{8 * size}": 6 * batch * heads * pairs * args["HEAD_DIM"],
        "bytes": elements * size + 8 * batch * heads * triton.cdiv(n, block) * block,
    }


@triton.jit(launch_metadata=declare_row_products)
def row_products(
    out,
    grad_out,
    lse,
    statistics,
    out_strides,
    grad_out_strides,
    batch,
    num_latents: tl.int32,
    num_rows,
    num_heads,
    BLOCK_QUERIES: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Statistics of rows, (2, B, H, num_rows) in fp32: log-sum-exp, and delta = Σ out · grad_out.

    out and grad_out are (B, N, H, C), the sum is over channels, lse is (B, H, N). The log-sum-exp
    goes to base 2, once for all tiles that need it. Beyond N, up to a multiple of every block, it
    is infinite, so that weights are zero, and delta 0. Where it is −inf delta is 0, too: a row
    without a finite score is not a number by its weights, and must leave alone the keys that are
    hidden from it in a tile that it visits. No products.
    """
    num_blocks = num_rows // BLOCK_QUERIES
    first = tl.program_id(0) % num_blocks * BLOCK_QUERIES
    head = tl.program_id(0) // num_blocks
    b = (head // num_heads).to(tl.int64)
    h = (head % num_heads).to(tl.int64)
    out_rows = rows_from(rows_of(out, out_strides, num_latents, b, h), first)
    grad_rows = rows_from(rows_of(grad_out, grad_out_strides, num_latents, b, h), first)
    out_tile = load_rows(out_rows, BLOCK_QUERIES, PARTS, CHANNELS=HEAD_DIM)  # (M, C̄)
    grad_tile = load_rows(grad_rows, BLOCK_QUERIES, PARTS, CHANNELS=HEAD_DIM)  # (M, C̄)
    total = tl.full((BLOCK_QUERIES,), 0.0, tl.float32)  # (M,)
    for i in tl.static_range(len(PARTS)):
        total += tl.sum(out_tile[i].to(tl.float32) * grad_tile[i].to(tl.float32), 1)
    queries = first + tl.arange(0, BLOCK_QUERIES)  # (M,)
    lse += (b * num_heads + h) * num_latents
    row_lse = tl.load(lse + queries, mask=queries < num_latents, other=float("inf"))  # (M,)
    rows = (b * num_heads + h) * num_rows + queries  # (M,)
    tl.store(statistics + rows, row_lse * LOG2_E)
    rows += tl.cast(batch * num_heads, tl.int64) * num_rows
    tl.store(statistics + rows, tl.where(row_lse == float("-inf"), 0.0, total))


@triton.jit
def add_key_value_tiles(
    gradients,
    k,
    v,
    visited,
    first,
    last,
    first_key,
    group,
    scale_log2,
    BLOCK_QUERIES: tl.constexpr,
    PARTS: tl.constexpr,
    MASK: tl.constexpr,
    GRADIENT: tl.constexpr,
):
    """Add what the query blocks from ``first`` to ``last`` of each head of the group give.

    ``gradients`` are those of keys and values; ``visited`` is the first head's: rows of queries and
    of the output's gradient, how far the next head's are, statistics, and how far in them delta
    and the next head's lie. ``MASK`` is
    "none", "end" (``last`` may lie inside of a block) or "causal", which is masked at its end, too.
    ``GRADIENT`` "v" issues two products per tile, k qᵀ and weights · grad_out; "k" three, k qᵀ,
    v grad_outᵀ and grad_scores · q; "kv" the four that these are together.
    """
    grad_k, grad_v = gradients  # (J, C̄) each, or () where it is not computed
    q_rows, grad_rows = rows_from(visited[0], first), rows_from(visited[1], first)
    q, grad_out = q_rows[0], grad_rows[0]
    statistics = visited[4] + first
    query = tl.arange(0, BLOCK_QUERIES)  # (M,)
    blocks = tl.cdiv(last - first, BLOCK_QUERIES)
    start = first
    for i in tl.range(0, group * blocks, disable_licm=True):
        if group != 1:
            # Where a block of another head may be next, each is found from its number.
            member = tl.cast(i // blocks, tl.int64)
            start = first + i % blocks * BLOCK_QUERIES
            q = rows_from(visited[0], start)[0] + member * visited[2]
            grad_out = rows_from(visited[1], start)[0] + member * visited[3]
            statistics = visited[4] + start + member * visited[6]
        q_tile = load_rows(
            moved(q_rows, q, last - start), BLOCK_QUERIES, PARTS, MASK == "none", MASK != "none"
        )  # (M, C̄)
        scores = product_over_channels(k, q_tile) * scale_log2  # (J, M)
        # Beyond the last query the log-sum-exp is infinite, so the weights are zero. The last query
        # is repeated there: zeros would make a key of −inf a score that is not a number.
        weights = tl.exp2(scores - tl.load(statistics + query)[None, :])  # (J, M)
        if MASK == "causal":
            hidden = not_before(first_key - start - 1, weights.shape[0], BLOCK_QUERIES)  # (J, M)
            weights = tl.where(hidden, 0.0, weights)  # (J, M)
        grad_tile = load_rows(
            moved(grad_rows, grad_out, last - start), BLOCK_QUERIES, PARTS, MASK == "none"
        )  # (M, C̄)
        if GRADIENT != "k":
            grad_v = add_product_over_rows(grad_v, weights, grad_tile)  # (J, C̄)
        if GRADIENT != "v":
            grad_weights = product_over_channels(v, grad_tile)  # (J, M)
            delta = tl.load(statistics + visited[5] + query)  # (M,)
            grad_scores = weights * (grad_weights - delta[None, :])  # (J, M)
            grad_k = add_product_over_rows(grad_k, grad_scores, q_tile)  # (J, C̄)
        q += step(q_rows, BLOCK_QUERIES)
        grad_out += step(grad_rows, BLOCK_QUERIES)
        statistics += BLOCK_QUERIES
        start += BLOCK_QUERIES
    return grad_k, grad_v


@triton.jit(launch_metadata=declare_key_value_gradient)
def attention_key_value_gradient(
    q,
    grad_out,
    statistics,
    keys,
    gradients,
    q_strides,
    grad_out_strides,
    batch,
    num_keys: tl.int32,
    num_gradients: tl.int32,
    num_latents: tl.int32,
    num_rows,
    num_heads,
    group,
    scale,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PARTS: tl.constexpr,
    K_STORED: tl.constexpr,
    V_STORED: tl.constexpr,
    CAUSAL: tl.constexpr,
    GRADIENT: tl.constexpr,
    END_APART: tl.constexpr,
):
    """Gradients of one range of keys and values: the latents' (CAUSAL) or the prefix's.

    q and grad_out are (B, N, H, C̄), statistics (2, B, H, num_rows). ``keys`` is the range, as
    in the forward kernel; ``gradients`` is alike, with K_STORED and V_STORED channels. Its
    length is num_keys, too, but given apart as num_gradients: else the loops would hold the masks
    of loads for the stores, in up to 38 registers more.

    One program owns BLOCK_KEYS = J keys of one key-value head and visits blocks of BLOCK_QUERIES
    = M queries (J is a multiple of M) of each of the H / G query heads:

    - CAUSAL, with its first key j₀: from j₀ to min(j₀ + J, N), masked; then from j₀ + J to N;
    - prefix: from 0 to N.

    The last block of queries, if N ends inside it, is masked: with END_APART in a loop of its own.

    Each visited tile issues four products, k qᵀ, weights · grad_out, v grad_outᵀ and
    grad_scores · q, of 2·M·J·(sum of parts) FLOPs, whole tiles always; none outside of a loop.
    So it is with GRADIENT "kv". Where heads are wide, one accumulator is all that fits the
    registers: "v" computes the values' gradient alone, by the first two products, and "k" the
    keys', by all but the second; five products in both launches together. A launch has
    ⌈K or N / J⌉ programs for each of B·G heads.
    """
    num_blocks = tl.cdiv(num_keys, BLOCK_KEYS)
    first_key = tl.program_id(0) % num_blocks * BLOCK_KEYS
    head = tl.program_id(0) // num_blocks
    num_key_heads = num_heads // group
    b = (head // num_key_heads).to(tl.int64)
    g = (head % num_key_heads).to(tl.int64)

    k_rows, v_rows = keys_of(keys, num_keys, b, g)
    k_tile = load_rows(rows_from(k_rows, first_key), BLOCK_KEYS, PARTS)  # (J, C̄)
    v_tile = load_rows(rows_from(v_rows, first_key), BLOCK_KEYS, PARTS)  # (J, C̄)
    scale_log2 = scale * LOG2_E
    rows = (b * num_heads + g * group) * num_rows
    visited = (
        rows_of(q, q_strides, num_latents, b, g * group),
        rows_of(grad_out, grad_out_strides, num_latents, b, g * group),
        tl.cast(q_strides[2], tl.int64),
        tl.cast(grad_out_strides[2], tl.int64),
        statistics + rows,
        tl.cast(batch * num_heads, tl.int64) * num_rows,
        num_rows,
    )
    tl.assume(group > 0)
    state = (
        zero_rows(BLOCK_KEYS, PARTS) if GRADIENT != "v" else (),  # (J, C̄)
        zero_rows(BLOCK_KEYS, PARTS) if GRADIENT != "k" else (),  # (J, C̄)
    )
    # The first loop is never empty, as in the forward kernel.
    if CAUSAL:
        first = tl.minimum(first_key + BLOCK_KEYS, num_latents)
        tl.assume(first_key < first)
        state = add_key_value_tiles(
            state, k_tile, v_tile, visited, first_key, first, first_key, group, scale_log2,
            BLOCK_QUERIES, PARTS, "causal", GRADIENT,
        )  # fmt: skip
    else:
        first = 0
        tl.assume(first < num_latents)
    whole = first
    if END_APART:
        whole += (num_latents - first) // BLOCK_QUERIES * BLOCK_QUERIES
        state = add_key_value_tiles(
            state, k_tile, v_tile, visited, first, whole, first_key, group, scale_log2,
            BLOCK_QUERIES, PARTS, "none", GRADIENT,
        )  # fmt: skip
    state = add_key_value_tiles(
        state, k_tile, v_tile, visited, whole, num_latents, first_key, group, scale_log2,
        BLOCK_QUERIES, PARTS, "end", GRADIENT,
    )  # fmt: skip
    grad_k_rows, grad_v_rows = keys_of(gradients, num_gradients, b, g)
    if GRADIENT != "k":
        store_rows(rows_from(grad_v_rows, first_key), state[1], 1.0, BLOCK_KEYS, V_STORED, PARTS)
    if GRADIENT != "v":
        store_rows(rows_from(grad_k_rows, first_key), state[0], scale, BLOCK_KEYS, K_STORED, PARTS)


@triton.jit
def add_query_tiles(
    grad_q,
    owned,
    keys,
    first,
    last,
    first_query,
    scale_log2,
    BLOCK_KEYS: tl.constexpr,
    PARTS: tl.constexpr,
    MASK: tl.constexpr,
):
    """Add what the key blocks from ``first`` to ``last`` give: three products per tile.

    ``owned`` is the block's: queries, gradient of the output, log-sum-exp in base 2, delta;
    ``keys`` and ``MASK`` are the forward kernel's.
    """
    q, grad_out, row_lse_log2, row_delta = owned  # (M, C̄), (M, C̄), (M,), (M,)
    k_rows, v_rows = rows_from(keys[0], first), rows_from(keys[1], first)
    k, v = k_rows[0], v_rows[0]
    for start in tl.range(first, last, BLOCK_KEYS, disable_licm=True):
        k_tile = load_rows(
            moved(k_rows, k, last - start), BLOCK_KEYS, PARTS, MASK == "none"
        )  # (J, C̄)
        v_tile = load_rows(
            moved(v_rows, v, last - start), BLOCK_KEYS, PARTS, MASK == "none"
        )  # (J, C̄)
        scores = product_over_channels(q, k_tile) * scale_log2  # (M, J)
        weights = tl.exp2(scores - row_lse_log2[:, None])  # (M, J)
        if MASK == "end":
            inside = tl.arange(0, BLOCK_KEYS) < last - start  # (J,)
            weights = tl.where(inside[None, :], weights, 0.0)  # (M, J)
        if MASK == "causal":
            admitted = not_before(first_query - start, weights.shape[0], BLOCK_KEYS)  # (M, J)
            weights = tl.where(admitted, weights, 0.0)  # (M, J)
        grad_weights = product_over_channels(grad_out, v_tile)  # (M, J)
        grad_scores = weights * (grad_weights - row_delta[:, None])  # (M, J)
        grad_q = add_product_over_rows(grad_q, grad_scores, k_tile)  # (M, C̄)
        if MASK != "causal" or q[0].shape[0] != BLOCK_KEYS:
            k += step(k_rows, BLOCK_KEYS)
            v += step(v_rows, BLOCK_KEYS)
    return grad_q


@triton.jit(launch_metadata=declare_query_gradient)
def attention_query_gradient(
    q,
    prefix,
    latents,
    grad_out,
    statistics,
    grad_q,
    q_strides,
    grad_out_strides,
    grad_q_strides,
    batch,
    num_prefix: tl.int32,
    num_latents: tl.int32,
    num_rows,
    num_heads,
    group,
    scale,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PARTS: tl.constexpr,
    STORED: tl.constexpr,
    HAS_PREFIX: tl.constexpr,
):
    """Gradient of the queries, (B, N, H, STORED); operands as in the forward kernel.

    One program owns BLOCK_QUERIES queries of one head and visits exactly the forward kernel's
    tiles. Each issues three products, q kᵀ, grad_out vᵀ and grad_scores · k, of
    2·M·J·(sum of parts) FLOPs, whole tiles always; none outside of a loop. There are ⌈N / M⌉
    programs for each of B·H heads.
    """
    num_blocks = tl.cdiv(num_latents, BLOCK_QUERIES)
    first_query = (num_blocks - 1 - tl.program_id(0) % num_blocks) * BLOCK_QUERIES
    head = tl.program_id(0) // num_blocks
    b = (head // num_heads).to(tl.int64)
    h = (head % num_heads).to(tl.int64)
    g = (head % num_heads // group).to(tl.int64)

    queries = first_query + tl.arange(0, BLOCK_QUERIES)  # (M,)
    q_rows = rows_from(rows_of(q, q_strides, num_latents, b, h), first_query)
    grad_rows = rows_from(rows_of(grad_out, grad_out_strides, num_latents, b, h), first_query)
    rows = (b * num_heads + h) * num_rows + queries  # (M,)
    owned = (
        load_rows(q_rows, BLOCK_QUERIES, PARTS),  # (M, C̄)
        load_rows(grad_rows, BLOCK_QUERIES, PARTS),  # (M, C̄)
        tl.load(statistics + rows),  # (M,)
        tl.load(statistics + tl.cast(batch * num_heads, tl.int64) * num_rows + rows),  # (M,)
    )
    keys = keys_of(latents, num_latents, b, g)
    tile = zero_rows(BLOCK_QUERIES, PARTS)  # (M, C̄)
    scale_log2 = scale * LOG2_E
    end = tl.minimum(first_query + BLOCK_QUERIES, num_latents)
    # Never empty, as in the forward kernel.
    tl.assume(first_query < end)
    tile = add_query_tiles(
        tile, owned, keys, first_query, end, first_query, scale_log2, BLOCK_KEYS, PARTS, "causal"
    )
    tile = add_query_tiles(
        tile, owned, keys, 0, first_query, first_query, scale_log2, BLOCK_KEYS, PARTS, "none"
    )
    if HAS_PREFIX:
        keys = keys_of(prefix, num_prefix, b, g)
        whole = num_prefix // BLOCK_KEYS * BLOCK_KEYS
        tile = add_query_tiles(
            tile, owned, keys, 0, whole, first_query, scale_log2, BLOCK_KEYS, PARTS, "none"
        )
        tile = add_query_tiles(
            tile, owned, keys, whole, num_prefix, first_query, scale_log2, BLOCK_KEYS, PARTS, "end"
        )
    grad_q_rows = rows_from(rows_of(grad_q, grad_q_strides, num_latents, b, h), first_query)
    store_rows(grad_q_rows, tile, scale, BLOCK_QUERIES, STORED, PARTS)
