"""The pass before the attention: rotary embedding where there are angles, and padding.

Letters: B batch, S positions, H heads (of queries or of keys), C channels of a head, P pairs of
channels that turn. The pass is linear and, but for the padding, orthogonal: its backward pass is
the pass itself with the angles turned back and the padding cut off.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.attention.tiles import load_rows, rows_from, rows_of, store_rows
from kernels.attention.tilings import padded_head_dim, part_ranges, row_options

BLOCK_ROWS = 32


def declare_preparation(grid, metadata, args):
    """What a profile shows: six FLOPs per turned pair; bytes of operands, results and table."""
    rows = [
        args["batch"] * length * heads
        for length, heads in zip(args["lengths"], args["heads"], strict=True)
    ]
    pairs = sum(rows) * (args["TURNED"] // 2)
    elements = sum(rows) * (args["LOADED"] + args["STORED"])
    tables = args["batch"] if args["table_stride"] else 1
    table = 4 * tables * args["num_positions"] * args["TURNED"]
    return {
        "name": metadata.name,
        "flops32": 6 * pairs,
        "bytes": elements * args["sources"][0].element_size() + table,
    }


@triton.jit
def turn_rows(tile, table, TURNED: tl.constexpr, PARTS: tl.constexpr, BACK: tl.constexpr):
    """Turn the pairs of neighbouring channels below ``TURNED``; the others stay to the bit.

    ``table`` holds cos and sin where ``tile`` holds a pair (a, b), in its first parts:
    (a, b) becomes (a·cos − b·sin, a·sin + b·cos), or with the sine negated where ``BACK``.
    """
    turned = ()
    for i in tl.static_range(len(tile)):
        if i < len(table):
            # Sizes have no names here: a constant's can't be given again in the next part.
            wide = tile[i].to(tl.float32)  # (rows, channels of a part)
            a, b = tl.split(tl.reshape(wide, (tile[i].shape[0], PARTS[i][1] // 2, 2)))
            cos, sin = tl.split(tl.reshape(table[i], (tile[i].shape[0], PARTS[i][1] // 2, 2)))
            if BACK:
                sin = -sin
            turns = (PARTS[i][0] + 2 * tl.arange(0, PARTS[i][1] // 2) < TURNED)[None, :]
            first = tl.where(turns, a * cos - b * sin, a)  # (rows, pairs)
            second = tl.where(turns, a * sin + b * cos, b)  # (rows, pairs)
            turned = turned + (tl.interleave(first, second),)
        else:
            turned = turned + (tile[i].to(tl.float32),)
    return turned


@triton.jit(launch_metadata=declare_preparation)
def prepare_rows(
    sources,
    targets,
    source_strides,
    lengths,
    heads,
    offsets,
    table,
    table_stride,
    num_positions,
    batch,
    num_blocks,
    BLOCK: tl.constexpr,
    LOADED: tl.constexpr,
    STORED: tl.constexpr,
    PARTS: tl.constexpr,
    TURNED: tl.constexpr,
    TABLE_PARTS: tl.constexpr,
    BACK: tl.constexpr,
):
    """Each operand, (B, length, heads, LOADED) by strides -> contiguous (B, length, heads, STORED).

    All are turned by the rows of ``table``, (B, num_positions, TURNED), from their offset on.
    Channels are padded with zeros or cut off. A program owns BLOCK positions of one operand and
    takes its heads in turn, so that cosines and sines are read once for all of them.
    """
    first = tl.program_id(0) % num_blocks * BLOCK
    b = (tl.program_id(0) // num_blocks).to(tl.int64)
    for i in tl.static_range(len(sources)):
        if (tl.program_id(1) == i) & (first < lengths[i]):
            table_rows = (table + b * table_stride, num_positions, TURNED, 1)
            table_tile = load_rows(
                rows_from(table_rows, offsets[i] + first), BLOCK, TABLE_PARTS, CHANNELS=TURNED
            )
            strides = (lengths[i] * heads[i] * STORED, heads[i] * STORED, STORED, 1)
            for head in tl.range(0, heads[i]):
                h = tl.cast(head, tl.int64)
                source = rows_from(rows_of(sources[i], source_strides[i], lengths[i], b, h), first)
                target = rows_from(rows_of(targets[i], strides, lengths[i], b, h), first)
                tile = load_rows(source, BLOCK, PARTS, CHANNELS=LOADED)  # (BLOCK, channels)
                tile = turn_rows(tile, table_tile, TURNED, PARTS, BACK)
                store_rows(target, tile, 1.0, BLOCK, STORED, PARTS)


def launch_preparation(
    q: Tensor,
    k: Tensor,
    prefix_k: Tensor | None,
    table: Tensor,
    channels: int,
    back: bool,
) -> list[Tensor]:
    """Prepare queries and keys in one launch.

    Args:
        q: Queries, (B, N, H, C), the last of all positions; turned.
        k: Keys, (B, ·, G, C), the last of all positions; turned.
        prefix_k: Keys of the first positions; turned.
        table: cos and sin for each pair, (B or 1, all positions, P, 2) in fp32.
        channels: Of the results; zeros beyond C, or C cut off.
        back: Turn back, as the backward pass does.

    Returns:
        New contiguous tensors, (B, ·, ·, channels), in the order of the arguments given.
    """
    sources = [x for x in (q, k, prefix_k) if x is not None]
    targets = [x.new_empty(*x.shape[:-1], channels) for x in sources]
    offsets = tuple(0 if x is prefix_k else table.shape[1] - x.shape[1] for x in sources)
    _launch(sources, targets, offsets, table, back)
    return targets


def padded(*operands: Tensor | None, head_dim: int) -> list[Tensor | None]:
    """Operands with zeros up to the padded head dim: copies, in one launch, of those without.

    A head's own channels alone are read: were its neighbours' multiplied with zeros, one that is
    infinite or not a number would be seen.

    Args:
        operands: (B, ·, ·, C or the padded head dim), or none.
        head_dim: C.

    Returns:
        Each operand itself where it has the padded head dim; else contiguous, with so many.
    """
    padded_operands = within(padding(*operands, head_dim=head_dim), *operands, head_dim=head_dim)
    fill(operands, padded_operands)
    return padded_operands


def padding(*operands: Tensor | None, head_dim: int) -> Tensor:
    """Space for the copies of :func:`padded`, one after the other; nothing where none is needed."""
    channels = padded_head_dim(head_dim)
    narrow = [x for x in operands if x is not None and x.shape[-1] < channels]
    like = narrow[0] if narrow else next(x for x in operands if x is not None)
    return like.new_empty(sum(x.shape[:-1].numel() for x in narrow) * channels)


def within(space: Tensor, *operands: Tensor | None, head_dim: int) -> list[Tensor | None]:
    """The operands as :func:`padded` returns them, their copies as views of :func:`padding`."""
    channels, first = padded_head_dim(head_dim), 0
    if channels == head_dim:  # as below, at once: every call comes by here
        return list(operands)
    places: list[Tensor | None] = []
    for x in operands:
        if x is None or x.shape[-1] >= channels:
            places.append(x)
            continue
        size = x.shape[:-1].numel() * channels
        places.append(space[first : first + size].view(*x.shape[:-1], channels))
        first += size
    return places


def fill(operands: Sequence[Tensor | None], copies: Sequence[Tensor | None]) -> None:
    """Copy each operand, with zeros behind, to where :func:`within` has space for it."""
    pairs = [(x, y) for x, y in zip(operands, copies, strict=True) if x is not None and y is not x]
    if pairs:
        sources, targets = zip(*pairs, strict=True)
        table = sources[0].new_empty(1, 0, 0, 2, dtype=torch.float32)
        _launch(sources, targets, (0,) * len(pairs), table, False)


def _launch(
    sources: Sequence[Tensor],
    targets: Sequence[Tensor],
    offsets: tuple[int, ...],
    table: Tensor,
    back: bool,
) -> None:
    batch, _, _, loaded = sources[0].shape
    channels = targets[0].shape[-1]
    lengths = tuple(x.shape[1] for x in sources)
    parts = part_ranges(max(loaded, channels))
    # (B, positions, 2·P), each sequence's rows contiguous.
    table = table.flatten(-2).contiguous().expand(batch, -1, -1)
    positions, turning = table.shape[1:]
    blocks = triton.cdiv(max(lengths), BLOCK_ROWS)
    prepare_rows[(blocks * batch, len(sources))](
        tuple(sources),
        tuple(targets),
        tuple(x.stride() for x in sources),
        lengths,
        tuple(x.shape[2] for x in sources),
        offsets,
        table,
        table.stride(0),
        positions,
        batch,
        blocks,
        BLOCK=BLOCK_ROWS,
        LOADED=loaded,
        STORED=channels,
        PARTS=parts,
        TURNED=turning,
        TABLE_PARTS=tuple(part for part in parts if part[0] < turning),
        BACK=back,
        **row_options(max(loaded, channels)),
    )
