"""Reading, changing and writing memory at once; lanes and warps go one after the other.

On the hardware their order is open, which decides what each of them reads, and how sums of reals
round. ``ATOMG`` and ``RED`` are of global memory, ``ATOMS`` of a program's shared memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from validate.emulator.decoding import LAST, U32, Decoder, Run, hints, lanes_of, opcode
from validate.emulator.halves import as_pair, as_words
from validate.emulator.machine import LANES, Group
from validate.emulator.memory import Array

TYPES = {
    "U32": "u4", "S32": "i4", "64": "u8", "U64": "u8", "S64": "i8", "F32": "f4", "F64": "f8",
}  # fmt: skip
"""NumPy's name of each type, of which there is one in a lane's data."""
PAIRS = {"F16x2": False, "BF16x2": True}
VECTORS = {"F32x2": 2, "F32x4": 4}
FUNCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "ADD": lambda old, new: old + new,
    "MIN": min,
    "MAX": max,
    "AND": lambda old, new: old & new,
    "OR": lambda old, new: old | new,
    "XOR": lambda old, new: old ^ new,
    "EXCH": lambda old, new: new,
    "INC": lambda old, new: old.dtype.type(0) if old >= new else old + old.dtype.type(1),
    "DEC": lambda old, new: new if old == 0 or old > new else old - old.dtype.type(1),
}


@opcode("ATOMG", "RED", "ATOMS")
def _atomic(d: Decoder) -> Run:
    """What memory held goes to a register, and a function of it and of a register to memory."""
    texts = list(d.at.operands)
    shared = d.at.opcode == "ATOMS"
    d.take("E")
    name = d.take(*FUNCTIONS, "CAS")
    kind = d.take(*TYPES, *PAIRS, *VECTORS)
    flushes = d.take("FTZ")
    d.take("RN")
    hints(d)
    if not name or (flushes and not kind.startswith("F32")):
        raise d.at.unknown("this form of an atomic access")
    compares = name == "CAS"
    if len(texts) != 2 + (d.at.opcode != "RED") + (d.at.opcode == "ATOMG") + compares:
        raise d.at.unknown(f"a form with {len(texts)} operands")
    if d.at.opcode == "ATOMG" and texts.pop(0) != "PT":
        raise d.at.unknown("a predicate of an atomic access")
    words = VECTORS.get(kind, np.dtype(TYPES.get(kind, "u4")).itemsize // 4)
    if words == 4:
        raise d.at.unknown("an atomic access of 16 bytes")
    size = 4 * words
    result = None if d.at.opcode == "RED" else texts.pop(0)
    address = (d.shared_address if shared else d.global_address)(texts.pop(0))

    def tell(g: Group, m: Array | None) -> None:
        where = np.broadcast_to(address(g), (len(g.warps), LANES))
        for observer in g.machine.observers:
            if shared:
                observer.shared_atomic(g, d.at, where, lanes_of(g, m), size)
            else:
                observer.global_access(g, d.at, where, lanes_of(g, m), size, True)

    d.from_memory = True
    d.observes(tell)
    sources = [d.registers_of(text, size, written=False)[0] for text in texts]
    target = None if result in (None, "RZ") else d.registers_of(result, size, written=True)[0]
    apply = FUNCTIONS.get(name)

    def data(g: Group, first: int, lanes: Array) -> Array:
        if first == LAST["R"]:
            return np.zeros((int(lanes.sum()), words), U32)
        return np.ascontiguousarray(g.R[first : first + words].transpose(1, 2, 0)[lanes])

    def changed(old: Array, given: list[Array]) -> Array:
        """New words of one place."""
        if compares:
            expected, new = given
            return new if (old == expected).all() else old
        assert apply is not None
        new = given[0]
        with np.errstate(all="ignore"):
            if kind in PAIRS:
                bf16 = PAIRS[kind]
                pair = as_pair(old, bf16), as_pair(new, bf16)
                if name != "ADD":
                    chosen = (np.fmin if name == "MIN" else np.fmax)(*pair)
                    return np.asarray(as_words(chosen, bf16))
                return np.asarray(as_words(pair[0] + pair[1], bf16))
            form = "f4" if kind in VECTORS else TYPES.get(kind, "u4")
            values = [apply(a, b) for a, b in zip(old.view(form), new.view(form), strict=True)]
            return np.array(values, form).view(U32)

    def run(g: Group, m: Array | None) -> None:
        lanes = g.lanes if m is None else m
        tell(g, m)
        where = np.broadcast_to(address(g), lanes.shape)
        given = [data(g, first, lanes) for first in sources]
        old = np.zeros((int(lanes.sum()), words), U32)
        if shared:
            held = g.machine.shared
            places = [(held.units(size), held.offsets(d.at, g.programs, where, lanes, size), lanes)]
        else:
            memory = g.machine.memory
            places = []
            for i, some in memory.places(d.at, where, lanes, size):
                which = lanes if some is None else some
                at = np.zeros(lanes.shape, np.int64)
                at[which] = memory.indices(i, where, which, size)
                places.append((memory.units(i, size), at, which))
        rank = np.cumsum(lanes.ravel()).reshape(lanes.shape) - 1
        for units, at, which in places:
            for place, j in zip(at[which].tolist(), rank[which].tolist(), strict=True):
                old[j] = units[place]
                units[place] = changed(old[j], [x[j] for x in given])
        if target is not None:
            for i in range(words):
                g.R[target + i][lanes] = old[:, i]

    return run
