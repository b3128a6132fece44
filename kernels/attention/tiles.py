"""Pieces of tiles that the forward and the backward kernels share.

A tile of rows × channels is a tuple with one tensor per part of the head dim; ``PARTS`` holds
each part's first channel and width, ((0, 64), (64, 16)) for head dim 73.

Heads lie side by side in a row of the tensor, so one of 73 channels seldom starts where sixteen
bytes do, and would be loaded element by element. A visited tile is therefore loaded from the last
multiple of ``UNIT`` elements before its head on, with some of its neighbours' channels, and the
tile that it is multiplied with has zeros there. How far the head starts into the tile is its
``shift``; what is computed from visited tiles is shifted alike, and is cut out when it is stored.
``UNIT`` 0 means rows that are wide enough and start well: the head dim is a multiple of 16, or they
were stored with zeros up to one.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def first_loaded(
    head, num_heads, stride, HEAD_DIM: tl.constexpr, PARTS: tl.constexpr, UNIT: tl.constexpr
):
    """Where a head's visited tiles start in a row: a multiple of ``UNIT``, in the row in whole."""
    stride = tl.cast(stride, tl.int64)
    if UNIT == 0:
        start = head * stride
    else:
        width: tl.constexpr = PARTS[len(PARTS) - 1][0] + PARTS[len(PARTS) - 1][1]
        last = (num_heads - 1) * stride + HEAD_DIM - width
        start = tl.minimum(head * stride // UNIT, last // UNIT) * UNIT
    return start


@triton.jit
def shift_of(start, head, stride, UNIT: tl.constexpr):
    """Channels of a visited tile before its head's own, ``start`` being where it was loaded."""
    return 0 if UNIT == 0 else tl.cast(head * stride - start, tl.int32)


@triton.jit
def in_units(stride, UNIT: tl.constexpr):
    """A stride as the multiple of ``UNIT`` that it is, for the compiler to know."""
    return stride if UNIT == 0 else stride // UNIT * UNIT


@triton.jit
def load_rows(
    base,
    first,
    num_rows,
    row_stride,
    channel_stride,
    ROWS: tl.constexpr,
    STORED: tl.constexpr,
    PARTS: tl.constexpr,
    WHOLE: tl.constexpr,
    REPEAT: tl.constexpr = False,
):
    """Rows ``first`` to ``first + ROWS`` of a (num_rows, STORED) matrix; zeros outside of it.

    ``WHOLE`` promises that all rows lie inside, ``REPEAT`` repeats the last one that does.
    """
    # A tensor may pass 2³¹ elements; within one tile 32 bits are enough.
    base += tl.cast(first, tl.int64) * row_stride
    rows = tl.arange(0, ROWS)
    if REPEAT:
        rows = tl.minimum(rows, num_rows - 1 - first)
    tile = ()
    for i in tl.static_range(len(PARTS)):
        channels = PARTS[i][0] + tl.arange(0, PARTS[i][1])
        pointers = base + rows[:, None] * row_stride + channels[None, :] * channel_stride
        if (WHOLE or REPEAT) and PARTS[i][0] + PARTS[i][1] <= STORED:
            part = tl.load(pointers)
        elif PARTS[i][0] + PARTS[i][1] <= STORED:
            part = tl.load(pointers, mask=(first + rows < num_rows)[:, None], other=0.0)
        else:
            inside = (first + rows < num_rows)[:, None] & (channels < STORED)[None, :]
            part = tl.load(pointers, mask=inside, other=0.0)
        tile = tile + (part,)
    return tile


@triton.jit
def visit_rows(
    base,
    first,
    num_rows,
    row_stride,
    channel_stride,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    UNIT: tl.constexpr,
    WHOLE: tl.constexpr,
    REPEAT: tl.constexpr = False,
):
    """A visited tile, ``base`` being where :func:`first_loaded` says: no channel is masked."""
    width: tl.constexpr = PARTS[len(PARTS) - 1][0] + PARTS[len(PARTS) - 1][1]
    return load_rows(
        base,
        first,
        num_rows,
        in_units(row_stride, UNIT),
        channel_stride if UNIT == 0 else 1,
        ROWS,
        width,
        PARTS,
        WHOLE,
        REPEAT,
    )


@triton.jit
def load_shifted(
    base,
    head,
    num_heads,
    head_stride,
    shift,
    first,
    num_rows,
    row_stride,
    channel_stride,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PARTS: tl.constexpr,
    UNIT: tl.constexpr,
    ALIKE: tl.constexpr,
):
    """A head's rows, ``shift`` channels into the tile, zeros around: what a visited tile meets.

    ``ALIKE`` promises that they are stored as the visited ones are, with the shift that is theirs
    by nature: they are loaded in the same way, and the neighbours' channels are put out. Otherwise
    each channel is loaded on its own.
    """
    if ALIKE:
        start = first_loaded(head, num_heads, head_stride, HEAD_DIM, PARTS, UNIT)
        tile = visit_rows(
            base + start, first, num_rows, row_stride, channel_stride, ROWS, PARTS, UNIT, False
        )
        if UNIT != 0:
            own = ()
            for i in tl.static_range(len(PARTS)):
                channels = PARTS[i][0] + tl.arange(0, PARTS[i][1]) - shift
                inside = ((channels >= 0) & (channels < HEAD_DIM))[None, :]
                own = own + (tl.where(inside, tile[i], 0.0),)
            tile = own
    else:
        base += head * head_stride + tl.cast(first, tl.int64) * row_stride
        rows = tl.arange(0, ROWS)
        tile = ()
        for i in tl.static_range(len(PARTS)):
            channels = (PARTS[i][0] + tl.arange(0, PARTS[i][1]) - shift)[None, :]
            pointers = base + rows[:, None] * row_stride + channels * channel_stride
            inside = (first + rows < num_rows)[:, None] & (channels >= 0) & (channels < HEAD_DIM)
            tile = tile + (tl.load(pointers, mask=inside, other=0.0),)
    return tile


@triton.jit
def store_rows(
    base,
    first,
    num_rows,
    row_stride,
    channel_stride,
    tile,
    factor,
    shift,
    ROWS: tl.constexpr,
    STORED: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Store ``tile · factor`` from channel ``shift`` on, where it lies in (num_rows, STORED)."""
    base += tl.cast(first, tl.int64) * row_stride - shift * channel_stride
    rows = tl.arange(0, ROWS)
    for i in tl.static_range(len(PARTS)):
        channels = (PARTS[i][0] + tl.arange(0, PARTS[i][1]))[None, :]
        pointers = base + rows[:, None] * row_stride + channels * channel_stride
        own = (channels >= shift) & (channels < shift + STORED)
        inside = (first + rows < num_rows)[:, None] & own
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
    total = tl.dot(a[0], tl.trans(b[0]), input_precision="ieee")
    for i in tl.static_range(1, len(a)):
        total = tl.dot(a[i], tl.trans(b[i]), total, input_precision="ieee")
    return total


@triton.jit
def add_product_over_rows(accumulator, weights, b):
    """Accumulator + weights b: (M, N) and (N, channels). 2·M·N·(sum of parts) FLOPs."""
    summed = ()
    for i in tl.static_range(len(b)):
        part = tl.dot(weights.to(b[i].dtype), b[i], accumulator[i], input_precision="ieee")
        summed = summed + (part,)
    return summed
