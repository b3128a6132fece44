"""Pieces of tiles that the forward and the backward kernels share.

A tile of rows × channels is a tuple with one tensor per part of the head dim; ``PARTS`` holds
each part's first channel and width, ((0, 64), (64, 16)) for head dim 73. Letters: M rows of a tile,
P channels of a part, N columns of a product.

What is visited is stored with zeros up to a multiple of 16 channels: rows start at sixteen bytes,
so tiles are copied to shared memory asynchronously, and no channel is masked.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def rows_of(x, strides, num_rows, b, head):
    """A head's rows in (batch, length, heads, channels): where, how many, how far apart."""
    return x + b * strides[0] + head * strides[2], num_rows, strides[1], strides[3]


@triton.jit
def rows_from(rows, first):
    """The rows from ``first`` on: a tensor may pass 2³¹ elements, within a tile 32 bits suffice."""
    base, num_rows, row_stride, channel_stride = rows
    return (
        base + tl.cast(first, tl.int64) * row_stride,
        num_rows - first,
        row_stride,
        channel_stride,
    )


@triton.jit
def moved(rows, base, num_rows):
    """Rows that lie as far apart, elsewhere."""
    return base, num_rows, rows[2], rows[3]


@triton.jit
def step(rows, num_rows: tl.constexpr):
    """Elements from a row to the one ``num_rows`` further, for a pointer that moves with a loop.

    A loop that computed each tile's place from its first row would count in 64 bits throughout.
    """
    return tl.cast(rows[2], tl.int64) * num_rows


@triton.jit
def load_rows(
    rows,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    WHOLE: tl.constexpr = False,
    REPEAT: tl.constexpr = False,
    CHANNELS: tl.constexpr = 256,
):
    """The first ``ROWS`` of the rows, of ``CHANNELS`` channels; zeros outside of them.

    ``WHOLE`` promises that all lie inside, ``REPEAT`` repeats the last one that does.
    """
    base, num_rows, row_stride, channel_stride = rows
    row = tl.arange(0, ROWS)  # (M,)
    inside = (row < num_rows)[:, None]  # (M, 1)
    if REPEAT:
        row = tl.minimum(row, num_rows - 1)
    tile = ()
    for i in tl.static_range(len(PARTS)):
        channels = (PARTS[i][0] + tl.arange(0, PARTS[i][1]))[None, :]  # (1, P)
        pointers = base + row[:, None] * row_stride + channels * channel_stride  # (M, P)
        if (WHOLE or REPEAT) and PARTS[i][0] + PARTS[i][1] <= CHANNELS:
            part = tl.load(pointers)
        elif PARTS[i][0] + PARTS[i][1] <= CHANNELS:
            part = tl.load(pointers, mask=inside, other=0.0)
        else:
            part = tl.load(pointers, mask=inside & (channels < CHANNELS), other=0.0)
        tile = tile + (part,)
    return tile


@triton.jit
def not_before(offset, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Where row + ``offset`` >= column, (ROWS, COLUMNS).

    Of a product's tile a thread has rows that differ in bit 3, and in bits 6 and up, and columns
    that differ in bit 0, and in bits 3 and up: what it has in common goes to one side, so that the
    other is a constant of the code, and eight rows further down the comparisons are the same.
    """
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)  # (M,), (N,)
    of_thread = (offset + (row & -9))[:, None] - (column & 6)[None, :]  # (M, N)
    return of_thread >= (column & -7)[None, :] - (row & 8)[:, None]


@triton.jit
def store_rows(rows, tile, factor, ROWS: tl.constexpr, STORED: tl.constexpr, PARTS: tl.constexpr):
    """Store ``tile · factor`` in the first ``ROWS`` of the rows, where it lies in them."""
    base, num_rows, row_stride, channel_stride = rows
    row = tl.arange(0, ROWS)[:, None]  # (M, 1)
    for i in tl.static_range(len(PARTS)):
        channels = (PARTS[i][0] + tl.arange(0, PARTS[i][1]))[None, :]  # (1, P)
        pointers = base + row * row_stride + channels * channel_stride  # (M, P)
        inside = (row < num_rows) & (channels < STORED)  # (M, P)
        tl.store(pointers, (tile[i] * factor).to(base.dtype.element_ty), mask=inside)


@triton.jit
def zero_rows(ROWS: tl.constexpr, PARTS: tl.constexpr):
    """An accumulator: fp32 zeros, (ROWS, channels)."""
    tile = ()
    for i in tl.static_range(len(PARTS)):
        tile = tile + (tl.full((ROWS, PARTS[i][1]), 0.0, tl.float32),)
    return tile


@triton.jit
def scale_rows(tile, factor):
    """Multiply each row of a tile by its entry of ``factor``, (ROWS,)."""
    scaled = ()
    for i in tl.static_range(len(tile)):
        scaled = scaled + (tile[i] * factor[:, None],)
    return scaled


@triton.jit
def product_over_channels(a, b):
    """A bᵀ: (M, channels) and (N, channels) -> (M, N) in fp32. 2·M·N·(sum of parts) FLOPs."""
    total = tl.dot(a[0], tl.trans(b[0]), input_precision="ieee")  # (M, N)
    for i in tl.static_range(1, len(a)):
        total = tl.dot(a[i], tl.trans(b[i]), total, input_precision="ieee")  # (M, N)
    return total


@triton.jit
def add_product_over_rows(accumulator, weights, b):
    """Accumulator + weights b: (M, N) and (N, channels). 2·M·N·(sum of parts) FLOPs."""
    summed = ()
    for i in tl.static_range(len(b)):
        part = tl.dot(
            weights.to(b[i].dtype), b[i], accumulator[i], input_precision="ieee"
        )  # (M, P)
        summed = summed + (part,)
    return summed
