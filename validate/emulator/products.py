"""The tensor cores' instructions, and first a warpgroup's: A, 64 × 16, times B, 16 × N.

The product is added to 64 × N accumulators. That of a single warp is :func:`decode_warp`.

A comes from registers or, as B does, from shared memory by a 64-bit descriptor (PTX ISA,
"Asynchronous warpgroup level matrix instructions"): bits 0 to 13 the address, 16 to 29 the leading
and 32 to 45 the stride offset, all in units of 16 bytes, and 62 to 63 the swizzle.

Rows of 16-bit elements lie in units of 16 bytes, 8 elements. A swizzle of 128 (64, 32) bytes has
rows of so many bytes, eight of which lie together, and exclusive-ors the unit's place in a row with
the row's number. An operand lies either along k, the products' inner dimension, or (``tnspA``,
``tnspB``) along its outer one.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from validate.emulator.machine import WARPGROUP, Group
from validate.emulator.memory import RESERVED, Array, MachineError

if TYPE_CHECKING:
    from validate.emulator.operations import Decoder, Run

ROWS, DEPTH = 64, 16
UNIT = 16
ELEMENTS = 8
"""Of 16 bits in a unit."""
ROW_BYTES = {1: 128, 2: 64, 3: 32}
"""Bytes of a row by the descriptor's swizzle."""
MASK14 = 0x3FFF


@functools.lru_cache(maxsize=4096)
def units_of(descriptor: int, outer: int, transposed: bool) -> Array:
    """Units of shared memory that a descriptor names.

    Returns:
        (outer, 2): of each row along k, its two units; or, transposed, (16, outer / 8): of each k,
        the units along the outer dimension.

    Raises:
        ValueError: If the descriptor's layout is not known.
    """
    swizzle = descriptor >> 62
    if swizzle not in ROW_BYTES or descriptor >> 49 & 7:
        raise ValueError(f"layout of the matrix descriptor {descriptor:#018x}")
    start, leading, stride = (UNIT * (descriptor >> bit & MASK14) for bit in (0, 16, 32))
    row = ROW_BYTES[swizzle]
    if transposed:
        k = np.arange(DEPTH)[:, None]
        unit = np.arange(outer // ELEMENTS)
        in_row = row // UNIT
        offsets = k // 8 * stride + k % 8 * row + unit // in_row * leading + unit % in_row * UNIT
    else:
        i, unit = np.arange(outer)[:, None], np.arange(2)
        offsets = i // 8 * stride + i % 8 * row + unit * UNIT
    addresses = start + offsets
    # Three, two or one bits of the number of a 128-byte row.
    addresses ^= (addresses >> 7 & row // UNIT - 1) << 4
    return addresses // UNIT


def widened(halves: Array, bf16: bool) -> Array:
    """16-bit elements as fp32."""
    if bf16:
        return (halves.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return halves.view(np.float16).astype(np.float32)


def decode(d: Decoder) -> Run:
    """What an HGMMA does: ``D, [A,] gdesc[UR], C, [!UPT,] [gsb0]``."""
    shape = re.fullmatch(rf"{ROWS}x(\d+)x{DEPTH}", d.modifiers.pop(0))
    if not shape or d.take("F32") != "F32":
        raise d.at.unknown("this shape or type of a product")
    columns, bf16 = int(shape[1]), bool(d.take("BF16"))
    texts = list(d.at.operands)
    commits = texts[-1] == "gsb0"
    if commits:
        texts.pop()
    first = d.register(texts[0], written=True)[1]
    d.defines |= ((1 << columns // 2) - 1) << first
    a_register = None
    if re.fullmatch(r"R\d+", texts[1]):
        a_register = d.register(texts.pop(1), words=4)[1]
    match = re.fullmatch(r"gdesc\[UR(\d+)\](\.tnspA)?(\.tnspB)?", texts[1])
    if not match or (a_register is not None and match[2]):
        raise d.at.unknown(f"operand {texts[1]!r}")
    base, a_transposed, b_transposed = int(match[1]), bool(match[2]), bool(match[3])
    d.register(f"UR{base}", words=4)
    if texts[2:] == ["RZ", "!UPT"]:
        adds = False
    elif texts[2:] == [texts[0]]:
        adds = True
        d.uses |= ((1 << columns // 2) - 1) << first
    else:
        raise d.at.unknown(f"accumulators {texts[2:]}")

    def operand(
        g: Group, at: int, outer: int, transposed: bool
    ) -> tuple[Array, list[tuple[int, Array]]]:
        """(warpgroups or programs, 16, outer) or (…, outer, 16), and which descriptors it had."""
        words = g.UR[at : at + 2].reshape(2, -1, WARPGROUP)
        if (words != words[:, :, :1]).any():
            raise MachineError(f"warps of a warpgroup disagree: {d.at}")
        descriptors = words[0, :, 0].astype(np.uint64) | words[1, :, 0].astype(np.uint64) << 32
        programs = g.programs[::WARPGROUP]
        shared = g.machine.shared
        rows = shared.rows16()
        result: Array = None
        read = []
        for descriptor in np.unique(descriptors):
            try:
                units = units_of(int(descriptor), outer, transposed)
            except ValueError as error:
                raise d.at.unknown(str(error)) from None
            if units.min() * UNIT < RESERVED or (units.max() + 1) * UNIT > shared.size:
                raise MachineError(f"a descriptor's units lie outside of shared memory: {d.at}")
            which = np.flatnonzero(descriptors == descriptor)
            read.append((int(descriptor), which))
            # Warpgroups of a program often share what they read.
            distinct, back = np.unique(programs[which], return_inverse=True)
            data = rows[distinct[:, None], units.ravel()].view(np.uint16)
            data = widened(data, bf16).reshape(
                len(distinct), -1, DEPTH if not transposed else outer
            )
            if len(distinct) != len(which):
                data = data[back]
            if len(which) == len(descriptors):
                result = data
            else:
                if result is None:
                    result = np.empty((len(descriptors), *data.shape[1:]), np.float32)
                result[which] = data
        return result, read

    def run(g: Group, m: Array | None) -> None:
        groups = len(g.warps) // WARPGROUP
        b, read = operand(g, base + 2, columns, b_transposed)
        if not b_transposed:
            b = b.transpose(0, 2, 1)
        reads = [(columns, b_transposed, read)]
        if a_register is None:
            a, read = operand(g, base, ROWS, a_transposed)
            reads.append((ROWS, a_transposed, read))
            if a_transposed:
                a = a.transpose(0, 2, 1)
        else:
            a = _fragments(g, a_register, groups, bf16)
        for observer in g.machine.observers:
            observer.product(g, d.at, first, columns, a_register, reads, commits)
        with np.errstate(all="ignore"):
            result = a @ b
            if adds:
                held = g.accumulators.get((first, columns))
                result += _accumulators(g, first, columns, groups) if held is None else held
        g.accumulators[first, columns] = result

    return run


def decode_warp(d: Decoder) -> Run:
    """What an HMMA does: ``D, A, B, C``, 16 × 8 of a warp's sums over 8 or 16, or 4 or 8 in tf32.

    Lane t holds, of A, row t / 4 and, in the next register, row t / 4 + 8, at two columns (tf32:
    one) from t mod 4 on; of B column t / 4, at the same k; further registers are k half further on.
    Of C it has rows t / 4 and t / 4 + 8, columns 2·(t mod 4) and the next.
    """
    shape = d.modifiers.pop(0)
    if d.take("F32") != "F32":
        raise d.at.unknown("accumulators of this product")
    kind = d.take("BF16", "TF32")
    words = {"1688": 1, "16816": 2} if kind != "TF32" else {"1684": 1, "1688": 2}
    if shape not in words:
        raise d.at.unknown("this shape of a product")
    count = words[shape]
    d.number_of_operands(4)
    result = d.register(d.operand(0), written=True, words=4)[1]
    a, b = (d.register(d.operand(i), words=n * count)[1] for i, n in ((1, 2), (2, 1)))
    c = None if d.operand(3) == "RZ" else d.register(d.operand(3), words=4)[1]

    def elements(registers: Array) -> Array:
        """(k half, rows or 1 …, warps, 8, 4 · elements) as fp32."""
        held = np.ascontiguousarray(registers)
        if kind == "TF32":  # the last 13 bits are not read
            return (held & np.uint32(0xFFFFE000)).view(np.float32)
        return widened(held.view(np.uint16), kind == "BF16")

    def run(g: Group, m: Array | None) -> None:
        if m is not None or g.mask is not None:
            raise MachineError(f"a product that some lanes do not take part in: {d.at}")
        warps = len(g.warps)
        left = elements(g.R[a : a + 2 * count]).reshape(count, 2, warps, 8, -1)
        right = elements(g.R[b : b + count]).reshape(count, warps, 8, -1)
        left = left.transpose(2, 1, 3, 0, 4).reshape(warps, 16, -1)
        right = right.transpose(1, 2, 0, 3).reshape(warps, 8, -1)
        with np.errstate(all="ignore"):
            product = left @ right.swapaxes(1, 2)  # (warps, 16, 8)
            if c is not None:
                held = g.F[c : c + 4].reshape(2, 2, warps, 8, 4)
                product += held.transpose(2, 0, 3, 4, 1).reshape(warps, 16, 8)
        parts = product.reshape(warps, 2, 8, 4, 2).transpose(1, 4, 0, 2, 3)
        g.F[result : result + 4] = parts.reshape(4, warps, 32)

    return run


def _fragments(g: Group, first: int, groups: int, bf16: bool) -> Array:
    """A from four registers, (warpgroups, 64, 16).

    Warp w of four holds rows 16·w to 16·w + 15; lane t rows t/4 and t/4 + 8, columns 2·(t mod 4)
    and the next, in the first two registers; the columns 8 further on in the others.
    """
    halves = np.ascontiguousarray(g.R[first : first + 4]).view(np.uint16)
    halves = halves.reshape(2, 2, groups, WARPGROUP, 8, 4, 2)  # (k half, row half, …, row, k, k)
    matrix = halves.transpose(2, 3, 1, 4, 0, 5, 6)
    return widened(np.ascontiguousarray(matrix), bf16).reshape(groups, ROWS, DEPTH)


def _accumulators(g: Group, first: int, columns: int, groups: int) -> Any:
    """64 × N accumulators from registers; those in flight elsewhere land first."""
    for start, width in g.accumulators:
        if start < first + columns // 2 and first < start + width // 2:
            g.land()
            break
    registers = g.F[first : first + columns // 2]
    parts = registers.reshape(columns // 8, 2, 2, groups, WARPGROUP, 8, 4)
    return parts.transpose(3, 4, 1, 5, 0, 6, 2).reshape(groups, ROWS, columns)
