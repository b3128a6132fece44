"""The tilings that are shipped, as plain data: readable without a GPU, torch or Triton.

A head dim is split into powers of two of at least 16: 73 is stored in 80 = 64 + 16 channels, not
in 128. Every product over channels is issued once per part, so a tile of M queries and N keys
costs 2·M·N·80 FLOPs per product at head dim 73.
"""

from __future__ import annotations

from typing import NamedTuple

PASSES = ("forward", "key_value", "query")
MAX_HEAD_DIM = 256


class Tiling(NamedTuple):
    """How one pass cuts its work.

    ``block_queries`` × ``block_keys`` is one tile of scores. ``forward`` and ``query`` programs
    own a block of queries and loop over blocks of keys; ``key_value`` programs own a block of
    keys and loop over blocks of queries. The owned block is a multiple of the other.
    """

    block_queries: int
    block_keys: int
    num_warps: int
    num_stages: int


# By widest padded head dim served, then by pass. The first table is for 2-byte elements, whose
# products run on tensor cores with fp32 accumulation; the second for fp32, whose products are
# fused multiply-adds in full precision (no tf32), with blocks small enough for the registers.
HALF_TILINGS = {
    64: (Tiling(128, 64, 8, 3), Tiling(64, 128, 8, 2), Tiling(128, 64, 8, 2)),
    128: (Tiling(128, 64, 8, 3), Tiling(64, 64, 8, 2), Tiling(64, 64, 8, 2)),
    256: (Tiling(128, 64, 8, 2), Tiling(32, 64, 8, 2), Tiling(64, 32, 8, 2)),
}
FLOAT_TILINGS = {
    64: (Tiling(32, 32, 4, 2), Tiling(32, 32, 4, 2), Tiling(32, 32, 4, 2)),
    128: (Tiling(32, 32, 4, 2), Tiling(32, 32, 8, 2), Tiling(32, 32, 8, 2)),
    256: (Tiling(32, 16, 8, 2), Tiling(16, 16, 8, 2), Tiling(16, 16, 8, 2)),
}


def head_dim_parts(head_dim: int) -> tuple[int, ...]:
    """Powers of two that add up to the head dim rounded up to a multiple of 16, widest first.

    >>> head_dim_parts(73), head_dim_parts(91), head_dim_parts(64)
    ((64, 16), (64, 32), (64,))

    Raises:
        ValueError: if the head dim is not from 1 to 256.
    """
    if not 1 <= head_dim <= MAX_HEAD_DIM:
        raise ValueError(f"head_dim must be from 1 to {MAX_HEAD_DIM}, got {head_dim}")
    padded = padded_head_dim(head_dim)
    return tuple(1 << bit for bit in reversed(range(4, 9)) if padded >> bit & 1)


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


def padded_head_dim(head_dim: int) -> int:
    """The head dim rounded up to a multiple of 16: what the products execute.

    >>> padded_head_dim(73)
    80
    """
    return -(-head_dim // 16) * 16


def stored_head_dim(head_dim: int, element_size: int) -> int:
    """Channels that a head is stored with: padded where its rows are no multiple of 16 bytes.

    >>> stored_head_dim(73, 2), stored_head_dim(72, 2)
    (80, 72)
    """
    return head_dim if head_dim * element_size % 16 == 0 else padded_head_dim(head_dim)


def shipped_tiling(pass_name: str, head_dim: int, element_size: int) -> Tiling:
    """The tiling that the public functions use.

    >>> shipped_tiling("forward", 73, 2)
    Tiling(block_queries=128, block_keys=64, num_warps=8, num_stages=3)

    Args:
        pass_name: one of :data:`PASSES`.
        head_dim: channels of a head, 1 to 256.
        element_size: bytes of an element, 2 (fp16, bf16) or 4 (fp32).

    Raises:
        ValueError: if an argument is none of these.
    """
    if pass_name not in PASSES:
        raise ValueError(f"pass_name must be one of {PASSES}, got {pass_name!r}")
    if element_size not in (2, 4):
        raise ValueError(f"element_size must be 2 or 4 bytes, got {element_size}")
    padded = sum(head_dim_parts(head_dim))
    tilings = HALF_TILINGS if element_size == 2 else FLOAT_TILINGS
    widest = next(width for width in tilings if padded <= width)
    return tilings[widest][PASSES.index(pass_name)]
