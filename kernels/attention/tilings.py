"""The tilings that are shipped, as plain data: readable without a GPU, torch or Triton.

A head dim is split into powers of two of at least 16: 73 is stored in 80 = 64 + 16 channels, not
in 128. Every product over channels is issued once per part, so a tile of M queries and N keys
costs 2·M·N·80 FLOPs per product at head dim 73.
"""

from __future__ import annotations

import csv
import functools
from pathlib import Path
from typing import Any, NamedTuple

KERNELS = {
    "forward": "attention_forward",
    "key_value": "attention_key_value_gradient",
    "query": "attention_query_gradient",
}
"""The kernel of each pass; no other multiplies."""
PASSES = tuple(KERNELS)
MAX_HEAD_DIM = 256
WIDEST_PART = 128
WIDEST_TOGETHER = 128
WIDEST_CUT = 96
"""The widest padded head dim whose gradients are stored without the padding: element by element, as
odd rows need it, wider ones spill registers or make products wait for each other."""
WIDEST_END_APART = 128
TUNED = Path(__file__).parent / "tuned.csv"
"""The tilings that were measured to be fastest on a GPU: ``benchmarks tune`` writes them."""


class Tiling(NamedTuple):
    """How one pass cuts its work.

    ``block_queries`` × ``block_keys`` is one tile of scores. ``forward`` and ``query`` programs
    own a block of queries and loop over blocks of keys; ``key_value`` programs own a block of
    keys and loop over blocks of queries. The owned block is a multiple of the other.

    ``max_registers`` caps a thread's registers where that lets a further program share the
    multiprocessor: 128 admits two programs of eight warps. Where the assembler would aim lower of
    its own accord, and spill, it is what the assembler may use.
    """

    block_queries: int
    block_keys: int
    num_warps: int
    num_stages: int
    max_registers: int | None = None

    def options(self) -> dict[str, Any]:
        """The launch options, by Triton's names."""
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "maxnreg": self.max_registers,
        }


# Where nothing was tuned: by pass and bytes of an element, then by widest padded head dim served.
# Chosen so that the code compiled for Hopper spills no register and serialises no wgmma;
# docs/kernels.md records what each compiles to.
#
# For 2-byte elements products run on tensor cores (wgmma, fp32 accumulation): the owned block has
# 64 rows or a multiple, and as many as registers allow, since each row more reuses the visited
# operand. For 4 bytes they are fused multiply-adds in full precision (no tf32), and blocks are
# small enough for accumulators and operands to stay in registers.
TILINGS: dict[tuple[str, int], dict[int, Tiling]] = {
    ("forward", 2): {
        64: Tiling(128, 64, 8, 3, 128),
        96: Tiling(128, 128, 8, 3),
        128: Tiling(128, 128, 8, 2),
        192: Tiling(128, 64, 8, 2),
        256: Tiling(128, 32, 8, 2),
    },
    ("key_value", 2): {
        64: Tiling(32, 64, 4, 3, 168),
        80: Tiling(64, 128, 8, 3),
        96: Tiling(64, 128, 8, 2),
        192: Tiling(32, 128, 8, 3),
        256: Tiling(16, 128, 8, 3),
    },
    ("query", 2): {
        64: Tiling(128, 64, 8, 3, 128),
        96: Tiling(128, 128, 8, 3),
        128: Tiling(128, 64, 8, 2),
        208: Tiling(128, 32, 8, 3),
        224: Tiling(128, 16, 8, 3),
        240: Tiling(128, 16, 8, 2, 255),
        256: Tiling(128, 16, 8, 3),
    },
    ("forward", 4): {
        64: Tiling(32, 32, 4, 2),
        256: Tiling(32, 16, 8, 2, 255),
    },
    ("key_value", 4): {
        64: Tiling(32, 32, 8, 2, 255),
        160: Tiling(16, 16, 8, 2, 255),
        176: Tiling(16, 16, 8, 2, 128),
        256: Tiling(16, 16, 8, 2, 255),
    },
    ("query", 4): {
        16: Tiling(32, 32, 4, 2, 96),
        64: Tiling(32, 32, 4, 2),
        128: Tiling(32, 16, 8, 2, 255),
        160: Tiling(16, 16, 8, 2, 128),
        176: Tiling(16, 16, 8, 2, 255),
        256: Tiling(16, 16, 8, 2, 128),
    },
}


@functools.cache
def head_dim_parts(head_dim: int) -> tuple[int, ...]:
    """Powers of two that add up to the head dim rounded up to a multiple of 16, widest first.

    None is wider than 128: accumulators of one product lie in consecutive registers, and 256
    channels would leave no space to arrange others around them.

    >>> head_dim_parts(73), head_dim_parts(91), head_dim_parts(256)
    ((64, 16), (64, 32), (128, 128))

    Raises:
        ValueError: If the head dim is not from 1 to 256.
    """
    if not 1 <= head_dim <= MAX_HEAD_DIM:
        raise ValueError(f"head_dim must be from 1 to {MAX_HEAD_DIM}, got {head_dim}")
    padded = padded_head_dim(head_dim)
    whole, rest = divmod(padded, WIDEST_PART)
    return (WIDEST_PART,) * whole + tuple(1 << bit for bit in (6, 5, 4) if rest >> bit & 1)


@functools.cache
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
    """The head dim rounded up to a multiple of 16: what products execute and heads are stored with.

    Stored so, rows start at sixteen bytes. With 72 channels they would too, but Triton knows of a
    stride that it is a multiple of 16 elements, or nothing, and would load element by element.

    >>> padded_head_dim(73)
    80
    """
    return -(-head_dim // 16) * 16


def gradient_launches(head_dim: int) -> tuple[str, ...]:
    """Which gradients a launch of the ``key_value`` pass computes: both, or first v's, then k's.

    Side by side they take as many registers of each thread as the head dim has channels, and that
    leaves too few of the 255 where it is wide. One after the other, scores are multiplied twice.

    >>> gradient_launches(128), gradient_launches(129)
    (('kv',), ('v', 'k'))
    """
    return ("kv",) if padded_head_dim(head_dim) <= WIDEST_TOGETHER else ("v", "k")


def end_apart(head_dim: int) -> bool:
    """Whether the ``key_value`` pass masks the last block of queries in a loop of its own.

    The loop before it then masks nothing. Where heads are wide, a third loop spills registers or
    makes products wait for each other.

    >>> end_apart(128), end_apart(129)
    (True, False)
    """
    return padded_head_dim(head_dim) <= WIDEST_END_APART


def row_options(head_dim: int) -> dict[str, int]:
    """The launch options of the passes over rows, where they are not Triton's own.

    Rows of wide heads, output and gradient side by side in fp32, are spread over more warps. For
    rows of 160 channels the assembler would aim at 128 registers, for those of 208 that are padded
    at 48, and spill.

    >>> row_options(128), row_options(129), row_options(160)
    ({}, {'num_warps': 8}, {'num_warps': 8, 'maxnreg': 255})
    """
    padded = padded_head_dim(head_dim)
    options = {"num_warps": 8} if padded > WIDEST_PART else {}
    return {**options, "maxnreg": 255} if padded in (160, 208) else options


def tuned_tilings(path: Path = TUNED) -> dict[tuple[str, int, int], dict[int, Tiling]]:
    """The tilings of a table that ``benchmarks tune`` has written.

    Returns:
        By pass, bytes of an element and padded head dim: by keys, ascending, the tiling that was
        fastest with so many.
    """
    by_case: dict[tuple[str, int, int], dict[int, Tiling]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            case = row["pass"], int(row["element_size"]), int(row["padded_head_dim"])
            tiling = Tiling(*(int(row[name]) if row[name] else None for name in Tiling._fields))
            by_case.setdefault(case, {})[int(row["keys"])] = tiling
    return {case: dict(sorted(by_keys.items())) for case, by_keys in by_case.items()}


@functools.cache
def _tuned() -> dict[tuple[str, int, int], dict[int, Tiling]]:
    return tuned_tilings()


def shipped_tiling(pass_name: str, head_dim: int, element_size: int, num_keys: int) -> Tiling:
    """The tiling that the public functions use.

    Of the tilings tuned for the pass, the dtype's size and the padded head dim: the one tuned with
    the most keys that are not more than ``num_keys``, or with the fewest where all are more. Where
    none was tuned, that of :data:`TILINGS`.

    >>> shipped_tiling("forward", 73, 4, 2304)
    Tiling(block_queries=32, block_keys=16, num_warps=8, num_stages=2, max_registers=255)

    Args:
        pass_name: One of :data:`PASSES`.
        head_dim: Channels of a head, 1 to 256.
        element_size: Bytes of an element, 2 (fp16, bf16) or 4 (fp32).
        num_keys: Positions attended to, the prefix's and the latents'.

    Raises:
        ValueError: If an argument is none of these.
    """
    if pass_name not in PASSES:
        raise ValueError(f"pass_name must be one of {PASSES}, got {pass_name!r}")
    if element_size not in (2, 4):
        raise ValueError(f"element_size must be 2 or 4 bytes, got {element_size}")
    padded = sum(head_dim_parts(head_dim))
    if tuned := _tuned().get((pass_name, element_size, padded)):
        return tuned[max((keys for keys in tuned if keys <= num_keys), default=min(tuned))]
    by_width = TILINGS[pass_name, element_size]
    return by_width[next(width for width in by_width if padded <= width)]
