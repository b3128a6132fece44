"""What a run executed, by the quantities that the hardware's counters name.

Counts of instructions and FLOPs follow from how often each instruction was executed. Traffic is
counted as it happens. Requests are a warp's instructions with at least one lane that takes part,
sectors the distinct 32 bytes of global memory that a request touches (of copies past the first
cache, that two neighbouring lanes touch), and wavefronts the passes that shared memory's 32 banks
of 4 bytes need for it: its lanes go 32, 16 or 8 together where each takes 4 bytes or less, 8 or 16
(of loads, twice as many where neighbours read the same), and a bank gives one word a pass.

Which pipe executes an opcode, and what a sector and a wavefront are, is as an NVIDIA H200's
counters have it: ``docs/emulator.md`` says where these agree, and where they do not.

Only addresses and guards decide about all of these: :func:`sliced` leaves out every instruction
that neither needs, and finds out if one of them came from memory. So all programs of a launch are
executed, and none has to stand for others.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from validate.emulator.assembly import Code, Instruction, access_bytes
from validate.emulator.decoding import FIRST_BIT, SLOTS, UNIFORM
from validate.emulator.launching import EmulatedLaunch
from validate.emulator.machine import LANES, WARPGROUP, Group, Machine, Operation, calls
from validate.emulator.memory import Array, GlobalMemory

SECTOR, BANKS, BANK_BYTES = 32, 32, 4
STACK_POINTER = 1
"""Number of the register that points to the stack, whose words count as registers."""
GLOBAL = {
    "LDG": "load", "LDGSTS": "load", "STG": "store", "ATOMG": "atomic", "RED": "atomic",
}  # fmt: skip
"""What each opcode does to global memory."""
PIPES = {
    "tensor": ("HGMMA", "HMMA"),
    "fma": ("FADD", "FMUL", "FFMA", "IMAD", "VIADD"),
    "fp16": ("HADD2", "HMUL2", "HFMA2"),
    "fp64": ("DADD", "DMUL", "DFMA", "DSETP"),
    "xu": ("MUFU", "I2F", "F2I", "F2F", "FRND", "POPC", "FLO", "BREV"),
    "lsu": (
        "LDG", "STG", "LDS", "STS", "LDGSTS", "LDL", "STL", "LDSM", "STSM", "SHFL", "LDGDEPBAR",
        "S2R", "ATOMG", "RED", "ATOMS", "CCTL", "MEMBAR", "FENCE",
    ),
    "uniform": (*sorted(UNIFORM - {"ULDC", "UMOV"}), "VOTEU"),
    "control": (
        "BRA", "EXIT", "BSSY", "BSYNC", "BREAK", "WARPSYNC", "BAR", "NOP", "DEPBAR", "WARPGROUP",
        "CALL", "RET", "ERRBAR", "CGAERRBAR",
    ),
    "alu": (
        "IADD3", "LEA", "SHF", "LOP3", "PLOP3", "ISETP", "SEL", "VIMNMX", "VIADDMNMX", "IABS",
        "SGXT", "PRMT", "MOV", "CS2R", "P2R", "R2P", "R2UR", "FMNMX", "FSEL", "FSETP", "F2FP",
        "I2FP", "FCHK", "HMNMX2", "HSETP2", "VOTE",
    ),
    "other": ("LDC", "ULDC", "UMOV", "S2UR"),
}  # fmt: skip
"""Opcodes of each pipe. NVIDIA names pipes and what they are for, and leaves some opcodes open; of
those that our kernels execute, an H200's counters tell. "other" are none of the pipes counted."""
_PIPE_OF = {opcode: pipe for pipe, opcodes in PIPES.items() for opcode in opcodes}


def pipe_of(at: Instruction) -> str:
    """The pipe that executes an instruction.

    Of the special registers, the load and store unit reads the threads' numbers; a packed product
    that is marked so goes to the tensor cores, as NVIDIA's list of counters says.

    Raises:
        KeyError: If the opcode is in none of :data:`PIPES`.
    """
    if at.opcode == "S2R" and not at.operands[1].startswith("SR_TID"):
        return "other"
    if at.opcode == "HFMA2" and "MMA" in at.modifiers:
        return "tensor"
    return _PIPE_OF[at.opcode]


def product_of(at: Instruction) -> tuple[tuple[int, int, int], str] | None:
    """M, N, K and operands' type of a tensor core's product; None of another instruction.

    >>> from validate.emulator.assembly import parsed
    >>> [product_of(parsed(f"/*0000*/ {text} ;")[0][0]) for text in (
    ...     "HMMA.1688.F32.TF32 R0, R4, R6, R8", "HGMMA.64x16x16.F32 R24, gdesc[UR4], RZ, !UPT")]
    [((16, 8, 8), 'tf32'), ((64, 16, 16), 'fp16')]
    """
    if at.opcode not in PIPES["tensor"]:
        return None
    kind = next((name for name in ("bf16", "tf32") if name.upper() in at.modifiers), "fp16")
    if at.opcode == "HMMA":
        return (16, 8, int(at.modifiers[0].removeprefix("168"))), kind
    m, n, k = map(int, at.modifiers[0].split("x"))
    return (m, n, k), kind


METRICS_OF_FLOPS = {
    "bf16": "sm__ops_path_tensor_op_hgmma_src_bf16_dst_fp32_sparsity_off.sum",
    "fp16": "sm__ops_path_tensor_op_hgmma_src_fp16_sparsity_off.sum",
}
"""Nsight Compute's counters of tensor cores' operations by type; a multiply-add is 2."""
METRICS_OF_PIPES = {
    pipe: f"sm__inst_executed_pipe_{name}.sum"
    for pipe, name in {
        **{pipe: pipe for pipe in ("alu", "fma", "lsu", "uniform", "xu")},
        "fp16": "fma_type_fp16",
    }.items()
}
_TILES, _SASS = "l1tex__t", "sm__sass_l1tex_t"
METRICS_OF_TRAFFIC = {
    name: (
        f"sm__sass_data_bytes_mem_global_op_{short}.sum",
        tuple(f"{unit}_requests_pipe_lsu_mem_global_op_{path}.sum" for unit, path in paths),
        tuple(f"{unit}_sectors_pipe_lsu_mem_global_op_{path}.sum" for unit, path in paths),
    )
    for name, short, paths in (
        ("LDG", "ld", ((_TILES, "ld"),)),
        ("STG", "st", ((_TILES, "st"),)),
        ("LDGSTS", "ldgsts", ((_SASS, "ldgsts_cache_access"), (_SASS, "ldgsts_cache_bypass"))),
    )
}
"""Of each opcode, its counters of bytes, requests and sectors; of copies, those that allocate in
the first cache, then those that bypass it. Loads' requests and sectors hold those of copies."""
METRICS_OF_WAVEFRONTS = {
    opcode: f"l1tex__data_pipe_lsu_wavefronts_mem_shared_op_{kind}.sum"
    for kind, opcodes in (("ld", ("LDS", "LDSM")), ("st", ("STS", "STSM")))
    for opcode in opcodes
}
"""Of each opcode; copies have a counter of their own, which is none of :data:`METRICS`."""
METRICS = (
    "smsp__inst_executed.sum",
    *METRICS_OF_PIPES.values(),
    *METRICS_OF_FLOPS.values(),
    *(
        metric
        for size, requests, sectors in METRICS_OF_TRAFFIC.values()
        for metric in (size, *requests, *sectors)
    ),
    *dict.fromkeys(METRICS_OF_WAVEFRONTS.values()),
)
"""Nsight Compute's names of what is counted."""


def sliced(code: Code, operations: Sequence[Operation]) -> list[Operation | None]:
    """What has to be executed for counts: control, addresses, and all that these need.

    Registers that are needed after an instruction are what any of its successors needs before it;
    needed before it is what is needed after it and not defined by it for certain, and, if it is
    kept, what it uses; all of it bit by bit, since the compiler packs predicates into single bits
    of registers whose other bits hold anything. What a guarded instruction uses is needed where its
    guard holds, and what one with the same guard defines is not, as long as the guard's predicate
    stays what it is; a branch that is taken tells of its guard, too.

    Raises:
        ValueError: If an address or a guard depends on data, so that only running them counts.
    """
    count = len(operations)
    on_stack = [o.at.index for o in operations if o.at.opcode in ("LDL", "STL")]
    for operation in operations:
        if on_stack and operation.defines >> STACK_POINTER & 1 and operation.at.index > on_stack[0]:
            raise ValueError(f"the stack pointer moves: {operation.at}")
    data = [_Data(operation) for operation in operations]
    guards = [_guard(operation) for operation in operations]
    names = {guard.removeprefix("!") for guard in guards} - {""}
    predicates = {sign + name: _guard_bit(name) for name in names for sign in ("", "!")}
    before: list[dict[str, int]] = [{} for _ in range(count + 1)]
    kept = [False] * count
    changed = True
    while changed:
        changed = False
        for i in reversed(range(count)):
            operation, guard, defined = operations[i], guards[i], data[i].defines
            opposite = guard[1:] if guard.startswith("!") else f"!{guard}"
            needed: dict[str, int] = {}
            for successor, way in _successors(code, operation, guard, opposite):
                for name, bits in before[successor].items():
                    needed[name or way] = needed.get(name or way, 0) | bits
            wanted = 0
            for name, bits in needed.items():
                if not guard or name != opposite:
                    wanted |= bits
            defines = defined & wanted
            if operation.from_memory and defines:
                raise ValueError(f"a count depends on data: {operation.at}")
            keep = operation.wait in ("branch", "return", "exit", "convergence") or bool(
                defines or operation.observe or operation.at.opcode in ("BSSY", "BREAK")
            )
            for name in tuple(needed):
                if not guard or (name == guard and not defined & predicates[name]):
                    needed[name] &= ~defined
                if name and defined & predicates[name]:
                    needed[""] = needed.get("", 0) | needed.pop(name)
            uses = data[i].uses(defines) if keep else 0
            if uses:
                bit = predicates.get(guard, 0)
                needed[""] = needed.get("", 0) | uses & bit
                needed[guard] = needed.get(guard, 0) | uses & ~bit
            for name in names:  # what is needed either way is needed
                both = needed.get(name, 0) & needed.get(f"!{name}", 0)
                needed[""] = needed.get("", 0) | both
            always = needed.get("", 0)
            needed = {name: bits & ~always if name else bits for name, bits in needed.items()}
            if needed != before[i] or keep != kept[i]:
                before[i], kept[i], changed = needed, keep, True
    return [
        None
        if not keep
        else dataclasses.replace(operation, run=operation.observe, wait="")
        if operation.observe
        else operation
        for keep, operation in zip(kept, operations, strict=True)
    ]


class _Data:
    """What an instruction uses and defines, 32 bits for each of the bits that stand for registers.

    Attributes:
        defines: Every bit that it defines.
    """

    def __init__(self, operation: Operation) -> None:
        self.defines = _widened(operation.defines)
        self._bitwise = () if operation.observe else operation.bitwise
        parts = sum(1 << source for source in {source for _, source, _ in self._bitwise})
        uses = operation.observed if operation.observe else operation.uses
        self._whole = _widened(uses & ~parts)
        self._predicates = self.defines & _PREDICATES

    def uses(self, wanted: int) -> int:
        """What it uses where these bits of what it defines are wanted."""
        used = self._whole
        for result, source, mask in self._bitwise:
            bits = _WORD if wanted & self._predicates else wanted >> 32 * result & _WORD
            used |= (bits & mask) << 32 * source
        return used


_WORD = 0xFFFFFFFF


def _widened(bits: int) -> int:
    """32 bits for each bit."""
    return sum(_WORD << 32 * i for i in range(bits.bit_length()) if bits >> i & 1)


_PREDICATES = _widened((1 << SLOTS) - (1 << FIRST_BIT["P"]))


def _successors(
    code: Code, operation: Operation, guard: str, opposite: str
) -> list[tuple[int, str]]:
    """Where control can go from an instruction, and the predicate that holds where it does."""
    following = operation.at.index + 1
    if operation.wait == "return":
        return [(call + 1, "") for call in sorted(calls(code))]
    if operation.wait not in ("branch", "exit"):
        return [(following, "")]
    targets = [(following, opposite if guard else "")] if operation.guard is not None else []
    if operation.wait == "branch":
        targets.append((code.labels[operation.at.operands[-1][2:-1]], guard))
    return targets


def _guard(operation: Operation) -> str:
    """The predicate of an instruction's guard, ``"P0"`` or ``"!P0"``; empty where there is none.

    A branch under two predicates has none that holds exactly where it is taken.
    """
    two = operation.at.opcode == "BRA" and len(operation.at.operands) == 2
    return operation.at.guard if operation.guard is not None and not two else ""


def _guard_bit(name: str) -> int:
    kind = name.rstrip("0123456789")
    bit = 0 if name in ("PT", "UPT") else 1 << FIRST_BIT[kind] + int(name[len(kind) :])
    return _widened(bit)


class Traffic:
    """Counts accesses to memory, for each instruction.

    Attributes:
        requests, lanes, places, sectors: Of global memory; lanes are those that take part, places
            the different addresses of a request.
        wavefronts: Of shared memory, and how many there would be without conflicts.
        touched: Which places of a storage are loaded, and which stored, by the size of the access.
    """

    def __init__(self, count: int, distinct: bool = True) -> None:
        self.requests, self.lanes, self.places, self.sectors, self.wavefronts, self.ideal = (
            np.zeros(count, np.int64) for _ in range(6)
        )
        self.distinct = distinct
        self.touched: dict[tuple[int, bool, int], Array] = {}
        self._seen: dict[tuple[Any, ...], tuple[int, int]] = {}

    def begin(self, machine: Machine) -> None:
        """Programs are about to run."""

    def global_access(
        self,
        g: Group,
        at: Instruction,
        addresses: Array,
        mask: Array | None,
        size: int,
        stores: bool,
    ) -> None:
        """Lanes access global memory."""
        addresses = np.broadcast_to(addresses, (len(g.warps), LANES))
        if mask is not None and not mask.any():
            return
        if mask is None:
            self.requests[at.index] += len(addresses)
            self.lanes[at.index] += addresses.size
            taking = addresses
        else:
            per_warp = mask.sum(1)
            self.requests[at.index] += int((per_warp > 0).sum())
            self.lanes[at.index] += int(per_warp.sum())
            taking = np.where(mask, addresses, np.uint64(0))
        self.places[at.index] += _distinct(taking)
        sectors = taking // np.uint64(SECTOR)
        apart = at.opcode == "LDGSTS" and "BYPASS" in at.modifiers
        self.sectors[at.index] += _distinct(sectors.reshape(-1, 2) if apart else sectors)
        if self.distinct:
            self._touch(g, at, addresses, mask, size, stores)

    def _touch(
        self,
        g: Group,
        at: Instruction,
        addresses: Array,
        mask: Array | None,
        size: int,
        stores: bool,
    ) -> None:
        memory = g.machine.memory
        for i, lanes in memory.places(at, addresses, mask, size):
            if (i, stores, size) not in self.touched:
                self.touched[i, stores, size] = np.zeros(-(-memory.bytes[i].size // size), bool)
            self.touched[i, stores, size][memory.indices(i, addresses, lanes, size)] = True

    def distinct_bytes(self, stores: bool) -> int:
        """Bytes that are loaded, or stored, each of them once."""
        total = 0
        for storage in {i for i, stored, _ in self.touched if stored == stores}:
            places = {
                size: each
                for (i, stored, size), each in self.touched.items()
                if (i, stored) == (storage, stores)
            }
            least = min(places)
            mask = np.zeros(max(len(each) * size // least for size, each in places.items()), bool)
            for size, each in places.items():
                mask[: len(each) * size // least] |= np.repeat(each, size // least)
            total += least * int(np.count_nonzero(mask))
        return total

    def shared_access(
        self,
        g: Group,
        at: Instruction,
        addresses: Array,
        mask: Array | None,
        size: int,
        stores: bool,
        data: Array | None = None,
    ) -> None:
        """Lanes access shared memory."""
        programs = len(addresses) // g.machine.num_warps
        times = 1
        if programs * g.machine.num_warps == len(addresses) and programs > 1:
            # Programs side by side do the same, as a rule.
            apart = addresses.reshape(programs, -1, addresses.shape[1])
            masks = None if mask is None else mask.reshape(apart.shape)
            if (apart[1:] == apart[0]).all() and (masks is None or (masks[1:] == masks[0]).all()):
                times, addresses = programs, apart[0]
                mask = None if masks is None else masks[0]
        key = (size, stores, addresses.tobytes(), b"" if mask is None else mask.tobytes())
        if key not in self._seen:
            self._seen[key] = wavefronts(addresses, mask, size, stores)
        count, ideal = self._seen[key]
        self.wavefronts[at.index] += times * count
        self.ideal[at.index] += times * ideal

    def copy(
        self, g: Group, at: Instruction, addresses: Array, mask: Array | None, size: int
    ) -> None:
        """Lanes copy to shared memory."""
        self.shared_access(g, at, addresses, mask, size, True)

    def shared_atomic(
        self, g: Group, at: Instruction, addresses: Array, mask: Array | None, size: int
    ) -> None:
        """Lanes read and write shared memory at once."""
        self.shared_access(g, at, addresses, mask, size, True)

    def ignored(self, *_: Any) -> None:
        """What counts do not depend on."""

    barrier = commit_copies = wait_for_copies = proxy_fence = ignored
    products_arrive = wait_for_products = product = ignored


def _distinct(rows: Array) -> int:
    """How many different numbers each row has, all rows together; 0 is none.

    >>> _distinct(np.array([[7, 7, 9], [0, 5, 0]]))
    3
    """
    if (rows[:, 1:] < rows[:, :-1]).any():
        rows = np.sort(rows, axis=1)
    return int((rows[:, 1:] != rows[:, :-1]).sum() + (rows[:, 0] != 0).sum())


def wavefronts(
    addresses: Array, mask: Array | None, size: int, stores: bool = True
) -> tuple[int, int]:
    """Passes that shared memory needs for accesses of warps, and those that it needs at least.

    Of a load of 8 or 16 bytes, twice as many lanes go together where, among them, each has the
    address of its neighbour, or each that of its neighbour but one.

    Args:
        addresses: Of each lane, (warps, lanes); of the first 8 or 16 lanes for matrices (LDSM).
        mask: Which lanes take part.
        size: Bytes of a lane.
        stores: Whether they store.

    Source: NVIDIA developer forums, topic 77228, "Unexpected shared memory bank conflict".

    >>> line = np.arange(32, dtype=np.uint32)[None]
    >>> [wavefronts(apart * line, None, 4) for apart in (4, 128, 0)]
    [(1, 1), (32, 1), (1, 1)]
    >>> wavefronts(16 * line, None, 16)
    (4, 4)
    >>> [wavefronts(16 * (line // 16), None, 16, stores) for stores in (False, True)]
    [(2, 2), (4, 4)]

    Of one matrix, each warp's 8 rows are a wavefront of their own.

    >>> [wavefronts(np.zeros((warps, 8), np.uint32), None, 16, False) for warps in (1, 2)]
    [(1, 1), (2, 2)]
    """
    together = LANES * BANK_BYTES // max(size, BANK_BYTES)
    taking = np.ones(addresses.shape, bool) if mask is None else mask
    if stores or together == LANES or addresses.shape[1] == together:
        return _passes(addresses, taking, size, together)
    groups, takes = (x.reshape(-1, 2 * together) for x in (addresses, taking))
    packed = np.zeros(len(groups), bool)
    for apart in (1, 2):
        other = np.arange(2 * together) ^ apart
        packed |= ((groups == groups[:, other]) | ~takes | ~takes[:, other]).all(1)
    count, ideal = 0, 0
    for some, lanes in ((packed, 2 * together), (~packed, together)):
        if some.any():
            passes = _passes(groups[some], takes[some], size, lanes)
            count, ideal = count + passes[0], ideal + passes[1]
    return count, ideal


def _passes(addresses: Array, taking: Array, size: int, together: int) -> tuple[int, int]:
    """Passes for so many lanes together, and those that they need at least."""
    words = max(size // BANK_BYTES, 1)
    rows = addresses.reshape(-1, together).astype(np.int64) // BANK_BYTES
    taking = taking.reshape(rows.shape)
    every = np.where(taking, rows, -1)[..., None] + np.arange(words) * taking[..., None]
    every = np.sort(every.reshape(len(rows), -1), axis=1)
    first = np.ones(every.shape, bool)
    first[:, 1:] = every[:, 1:] != every[:, :-1]
    first &= every >= 0
    banks = np.arange(len(rows))[:, None] * BANKS + every % BANKS
    conflicts = np.bincount(banks[first], minlength=len(rows) * BANKS).reshape(len(rows), BANKS)
    distinct = first.sum(1)
    return int(conflicts.max(1).sum()), int((-(-distinct // BANKS)).sum())


@dataclasses.dataclass
class Counts:
    """What all programs of a launch executed.

    Attributes:
        code: The kernel.
        executed: How often warps executed each instruction.
        traffic: Accesses to memory.
        declared: FLOPs and bytes that the kernel declares for profiles.
    """

    code: Code
    executed: Array
    traffic: Traffic
    declared: dict[str, Any]

    def tensor_flops(self) -> dict[str, int]:
        """FLOPs of tensor cores by shape and type: 2·M·N·K for each warpgroup, or warp (HMMA)."""
        flops: collections.Counter[str] = collections.Counter()
        for at, times in zip(self.code.instructions, self.executed.tolist(), strict=True):
            if times and (product := product_of(at)):
                (m, n, k), kind = product
                warps = WARPGROUP if at.opcode == "HGMMA" else 1
                flops[f"m{m}n{n}k{k} {kind}"] += 2 * m * n * k * times // warps
        return dict(flops)

    def lane_flops(self, lines: Iterable[str]) -> int:
        """FLOPs of fused multiply-adds that come from these lines of source, 2 for each lane."""
        lines = set(lines)
        return sum(
            2 * LANES * times
            for at, times in zip(self.code.instructions, self.executed.tolist(), strict=True)
            if at.opcode == "FFMA" and at.source in lines
        )

    def by(self, key: Callable[[Instruction], str | None]) -> dict[str, int]:
        """Executed instructions of warps by a key; those without one are left out."""
        numbers: collections.Counter[str] = collections.Counter()
        for at, times in zip(self.code.instructions, self.executed.tolist(), strict=True):
            name = key(at)
            if name is not None and times:
                numbers[name] += times
        return dict(numbers)

    def pipes(self) -> dict[str, int]:
        """Executed instructions of warps by pipe."""
        return self.by(pipe_of)

    def special(self) -> dict[str, int]:
        """Special functions by name, for each lane of the warps that executed one."""
        named = self.by(lambda at: at.modifiers[0] if at.opcode == "MUFU" else None)
        return {name: LANES * times for name, times in named.items()}

    def loops(self) -> list[tuple[int, int]]:
        """First and last instruction of each innermost loop, in the order of the code."""
        loops = sorted(
            (target, at.index)
            for at in self.code.instructions
            if at.opcode == "BRA"
            and (target := self.code.labels[at.operands[-1][2:-1]]) <= at.index
            and target != at.index
        )
        return [
            (start, end)
            for start, end in loops
            if not any(start <= s and e <= end and (s, e) != (start, end) for s, e in loops)
        ]

    def loop_of(self, at: Instruction) -> str:
        """The innermost loop that an instruction is in: "loop 1" is the first of the code."""
        for number, (start, end) in enumerate(self.loops(), 1):
            if start <= at.index <= end:
                return f"loop {number}"
        return "outside of loops"

    def metrics(self) -> dict[str, int]:
        """What the launch executes, by Nsight Compute's name of it.

        Raises:
            ValueError: If products of single warps, which none of :data:`METRICS` counts, are
                executed.
        """
        values = dict.fromkeys(METRICS, 0)
        values["smsp__inst_executed.sum"] = int(self.executed.sum())
        for pipe, times in self.pipes().items():
            if pipe in METRICS_OF_PIPES:
                values[METRICS_OF_PIPES[pipe]] = times
        for shape, flops in self.tensor_flops().items():
            if not shape.startswith("m64"):
                raise ValueError(f"{self.code.name}: none of METRICS counts products {shape}")
            values[METRICS_OF_FLOPS[shape.split()[1]]] += flops
        traffic = self.traffic
        for at in self.code.instructions:
            if at.opcode in METRICS_OF_TRAFFIC:
                size, *paths = METRICS_OF_TRAFFIC[at.opcode]
                values[size] += int(traffic.places[at.index]) * access_bytes(at)
                copies = at.opcode == "LDGSTS"
                of_loads = METRICS_OF_TRAFFIC["LDG"][1:] if copies else ((), ())
                counted = traffic.requests[at.index], traffic.sectors[at.index]
                for metrics, loads, number in zip(paths, of_loads, counted, strict=True):
                    for metric in (metrics["BYPASS" in at.modifiers], *loads):
                        values[metric] += int(number)
            if at.opcode in METRICS_OF_WAVEFRONTS:
                values[METRICS_OF_WAVEFRONTS[at.opcode]] += int(traffic.wavefronts[at.index])
        return values

    def memory(self) -> dict[str, int]:
        """Traffic of the whole launch.

        Global loads and stores, copies to shared memory among the loads: requests, bytes, sectors
        and, where they were asked for, distinct bytes; wavefronts of shared memory, and how many of
        them are conflicts.
        """
        traffic = self.traffic
        values: collections.Counter[str] = collections.Counter()
        for at in self.code.instructions:
            if kind := GLOBAL.get(at.opcode):
                values[f"global {kind} requests"] += int(traffic.requests[at.index])
                values[f"global {kind} bytes"] += int(traffic.lanes[at.index]) * access_bytes(at)
                values[f"global {kind} sectors"] += int(traffic.sectors[at.index])
        values["shared wavefronts"] = int(traffic.wavefronts.sum())
        values["shared conflicts"] = int((traffic.wavefronts - traffic.ideal).sum())
        if traffic.distinct:
            for stores, kind in ((False, "load"), (True, "store")):
                values[f"global {kind} distinct bytes"] = traffic.distinct_bytes(stores)
        return dict(values)

    def global_bytes(self, what: str) -> int:
        """``"bytes"`` or ``"distinct bytes"`` of global loads and stores together."""
        traffic = self.memory()
        return sum(traffic[f"global {kind} {what}"] for kind in ("load", "store"))


def count(launch: EmulatedLaunch, results: bool = False, distinct: bool = True) -> Counts:
    """Count what a launch executes, all of its programs.

    Args:
        launch: What to run.
        results: Whether to compute its results, too; else only control and addresses are executed,
            and its tensors stay as they are.
        distinct: Whether to count distinct bytes, which takes a byte for each place of the tensors.
    """
    traffic = Traffic(len(launch.operations), distinct)
    if not results:
        operations: Any = sliced(launch.code, launch.operations)
        launch = dataclasses.replace(launch, operations=operations)
    executed = launch.run(GlobalMemory(), (traffic,))
    return Counts(launch.code, executed, traffic, launch.declared)
