"""Instructions as a model of their time sees them: as ptxas scheduled them, and what is guessed."""

from __future__ import annotations

import dataclasses
import math
import struct
from typing import NamedTuple

import numpy as np

from validate.emulator.assembly import INSTRUCTION_BYTES
from validate.emulator.counts import SECTOR, Counts, pipe_of, product_of

SCHEDULERS, BARRIERS = 4, 6
NO_BARRIER = 7
LEAST, MIDDLE, MOST = "least", "middle", "most"
SETTINGS = (LEAST, MIDDLE, MOST)
"""Every parameter at the end of its range that makes for the least time, between, and the most."""


class Parameter(NamedTuple):
    """A number that the code does not tell.

    Attributes:
        least: Its value that makes for the least time.
        middle: What it is taken to be.
        most: Its value that makes for the most time.
        source: The document that states ``middle``, or why it is guessed.
    """

    least: float
    middle: float
    most: float
    source: str


_TABLE = "doi 10.1016/j.ultsonch.2023.106546, Table 3"
_CALIBRATED = "calibrated on launches of an H200"
PARAMETERS = {
    "global latency": Parameter(
        200, 270, 400, f"guess, between the second cache and memory of {_TABLE}"
    ),
    "global bytes": Parameter(64, 48, 32, "guess: bytes a clock that reach a multiprocessor"),
    "shared latency": Parameter(20, 29, 33, f"guess; least: {_TABLE}"),
    "special latency": Parameter(14, 20, 30, "guess: of special functions and conversions"),
    "other latency": Parameter(10, 20, 40, "guess: of constants, identifiers, and what is left"),
    "product latency": Parameter(0, 24, 48, "guess: of a product, beside the clocks of its work"),
    "products queued": Parameter(16, 4, 1, "guess: products of a tensor core that wait at most"),
    "warp products": Parameter(
        1, 1.6, 2, "guess: clocks of a warp's own product, as a share of those at the full rate"
    ),
    "accesses queued": Parameter(64, 24, 8, "guess: clocks of shared memory that wait at most"),
    "barrier latency": Parameter(5, 15, 30, "guess: from the last warp's arrival"),
    "launch": Parameter(2500, 2700, 2900, "calibrated: a launch of a single store, on an H200"),
    "code line": Parameter(10, 20, 30, f"{_CALIBRATED}: the first use of 128 bytes of code"),
    "least product": Parameter(16, 32, 32, f"{_CALIBRATED}: of a product, that of 64 columns"),
    "start": Parameter(0, 200, 600, "guess: from a program's end to its successor's start"),
}
"""Latencies in clocks. Ends of ranges without a word are guesses, too."""
UNITS = {"fma": 1, "fp16": 1, "alu": 2, "xu": 8, "uniform": 2}
"""Clocks for which an instruction of a warp keeps a pipe of its scheduler busy: 32, 16 and 4 lanes
a clock. Source: CUDA C++ Programming Guide, arithmetic throughput at compute capability 9.0."""
REASONS = (
    "issued", "fixed latency", "copies", "products", "barriers", "global loads", "shared memory",
    "special functions", "other latency", "throttles", "another warp", "code",
)  # fmt: skip
"""What a warp's clocks go to: waits for operands by who makes them, for units that are busy, and
for a scheduler that issues another warp's instruction."""
ISSUED, FIXED, COPIES, PRODUCTS, BARRIER, GLOBAL, SHARED, SPECIAL, OTHER = range(9)
THROTTLE, NOT_SELECTED, FETCH = 9, 10, 11
LINE = 128 // INSTRUCTION_BYTES
"""Instructions of a line of code, which come from memory together."""


class Control(NamedTuple):
    """How ptxas scheduled an instruction: bits 41 and up of its second half.

    Attributes:
        stall: Clocks after it, before its warp's next instruction.
        yields: A hint to issue another warp's.
        write: The barrier that its result releases; 7 where none.
        read: The barrier that reading its operands releases; 7 where none.
        waits: Barriers that have to be released before it.
    """

    stall: int
    yields: bool
    write: int
    read: int
    waits: tuple[int, ...]


def controls(words: bytes) -> list[Control]:
    """The control words of a kernel's machine code.

    >>> controls(bytes.fromhex("197900000000000000210000006e0e00"))
    [Control(stall=7, yields=True, write=1, read=7, waits=())]
    """
    control_words = []
    for at in range(8, len(words), INSTRUCTION_BYTES):
        bits = struct.unpack_from("<Q", words, at)[0] >> 41
        waits = tuple(b for b in range(BARRIERS) if bits >> 11 + b & 1)
        control_words.append(
            Control(bits & 15, bool(bits >> 4 & 1), bits >> 5 & 7, bits >> 8 & 7, waits)
        )
    return control_words


PLAIN, WAITED, LOCAL, LOADS, COPY, COMMIT, COPIES_DONE, PRODUCT, PRODUCTS_DONE, MEET = range(10)
"""What has to be modelled of an instruction."""
KINDS = {
    **dict.fromkeys(("LDS", "STS", "LDSM", "STSM", "SHFL", "LDL", "STL", "ATOMS"), LOCAL),
    **dict.fromkeys(("LDG", "STG", "ATOMG", "RED"), LOADS),
    "LDGSTS": COPY,
    "LDGDEPBAR": COMMIT,
    "DEPBAR": COPIES_DONE,
    "HGMMA": PRODUCT,
    "BAR": MEET,
}
"""By opcode; others are plain, or waited for where they release a barrier."""


class Step(NamedTuple):
    """An instruction as the model sees it.

    Attributes:
        kind: One of the above.
        stall, write, read, waits: Its :class:`Control`.
        unit: The pipe of its scheduler that it keeps busy; none where it keeps none.
        busy: For how many clocks; of accesses, wavefronts of shared memory.
        latency: Until its result is there.
        reason: What those wait for who wait for it.
        size: Bytes of global memory; of waits, how many groups may be left; of products, whether
            it ends a group.
    """

    kind: int
    stall: int
    write: int
    read: int
    waits: tuple[int, ...]
    unit: str
    busy: float
    latency: float
    reason: int
    size: float


@dataclasses.dataclass(frozen=True)
class Code:
    """A kernel as the model sees it.

    Attributes:
        steps: Its instructions.
        value: Of each parameter.
    """

    steps: list[Step]
    value: dict[str, float]

    @property
    def units(self) -> frozenset[str]:
        """Those that its instructions keep busy."""
        return frozenset(step.unit for step in self.steps if step.unit)


def scheduled(counts: Counts, setting: str = MIDDLE, **given: float) -> Code:
    """A kernel's instructions, with accesses as large as they were on average.

    Args:
        counts: What a launch executed.
        setting: Of all parameters, one of :data:`SETTINGS`.
        given: Values of parameters instead.
    """
    value = {name: getattr(parameter, setting) for name, parameter in PARAMETERS.items()} | given
    times = np.maximum(counts.executed, 1)
    sectors = (counts.traffic.sectors / times).tolist()
    wavefronts = (counts.traffic.wavefronts / times).tolist()
    schedule = []
    for at, control in zip(counts.code.instructions, controls(counts.code.words), strict=True):
        pipe = pipe_of(at)
        kind = KINDS.get(at.opcode, PLAIN)
        unit = pipe if pipe in UNITS else ""
        busy, latency, reason, size = float(UNITS.get(pipe, 0)), 0.0, OTHER, 0.0
        if kind in (LOCAL, LOADS, COPY):
            unit, busy = "", max(wavefronts[at.index], float(kind == LOCAL))
            size = sectors[at.index] * SECTOR
            latency = value["shared latency" if kind == LOCAL else "global latency"]
            reason = {LOCAL: SHARED, LOADS: GLOBAL, COPY: COPIES}[kind]
        elif kind == PRODUCT:
            m, n, k = (int(x) for x in at.modifiers[0].split("x"))
            # Its four warps' tensor cores do 2·m·n·k FLOPs, 4,096 a clock; shared memory gives 128
            # bytes a clock of the columns of B, and of A where that comes from there. Narrow ones
            # take as long as wider ones.
            from_memory = not at.operands[1].startswith("R")
            moved = 2 * k * (n + m * from_memory) / 128
            unit, busy = "tensor", max(2 * m * n * k / 4096, moved, value["least product"])
            latency, reason, size = value["product latency"], PRODUCTS, "gsb0" in at.operands
        elif at.opcode == "HMMA":
            # A tensor core does 1,024 FLOPs a clock of 16-bit numbers, half as many of TF32.
            product = product_of(at)
            assert product is not None
            unit, flops = "tensor", 2 * math.prod(product[0])
            busy = flops / (512 if product[1] == "tf32" else 1024) * value["warp products"]
        elif at.opcode == "WARPGROUP" and "DEPBAR" in at.modifiers:
            kind, reason, size = PRODUCTS_DONE, PRODUCTS, int(at.operands[-1], 16)
        elif kind == COPIES_DONE:
            reason, size = COPIES, int(at.operands[-1], 16)
        elif kind == MEET:
            latency = value["barrier latency"]
        elif kind == PLAIN and {control.write, control.read} != {NO_BARRIER}:
            kind, special = WAITED, pipe == "xu"
            latency = value["special latency" if special else "other latency"]
            reason = SPECIAL if special else OTHER
        stall, _, write, read, waits = control
        schedule.append(Step(kind, stall, write, read, waits, unit, busy, latency, reason, size))
    return Code(schedule, value)
