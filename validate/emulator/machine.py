"""Warps: groups that stand at the same instruction, and what they wait for."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from validate.emulator.assembly import Code, Instruction
from validate.emulator.memory import Array, GlobalMemory, MachineError, SharedMemory

LANES = 32
WARPGROUP = 4
NEVER_WRITTEN = np.uint32(0x7FDEADBE)
"""What registers hold at first: not a number as fp32, outside of everything as an address."""
NOTHING_IN_FLIGHT: tuple[int, int, frozenset[tuple[int, int]]] = (0, 0, frozenset())
LOCAL_BYTES = 1 << 14
"""Of a thread's stack, which grows down from its end."""


class Group:
    """Warps at one instruction.

    Attributes:
        pc: Index of the instruction.
        warps: Numbers of the warps, ascending: program · (warps of a program) + warp.
        R, UR, P, UP: Registers, (256, warps, 32), (64, warps), (8, warps, 32) and (8, warps); the
            last of each is what reads as 0 or true.
        F: R as fp32.
        mask: Lanes that are executing, (warps, 32); None where all are.
        accumulators: Products in flight: matrices of accumulators by first register and width.
        in_flight, committed, changed: Of a run that is watched: registers of the groups of products
            in flight, accumulators and operands as bits and the accumulators' places; how many of
            the groups are complete; and registers that changed since they were last made ready.
    """

    def __init__(
        self, machine: Machine, pc: int, warps: Array, state: Sequence[Array], mask: Array | None
    ) -> None:
        self.machine = machine
        self.pc = pc
        self.warps = warps
        self.R, self.UR, self.P, self.UP = state
        self.F = self.R.view(np.float32)
        self.mask = None if mask is None or mask.all() else mask
        self.accumulators: dict[tuple[int, int], Array] = {}
        self.in_flight: list[tuple[int, int, frozenset[tuple[int, int]]]] = []
        self.committed = self.changed = 0
        self.programs = warps // machine.num_warps
        self.whole = len(warps) % WARPGROUP == 0 and bool(
            (warps.reshape(-1, WARPGROUP) - warps[::WARPGROUP, None] == range(WARPGROUP)).all()
            and not (warps[::WARPGROUP] % WARPGROUP).any()
        )

    @property
    def lanes(self) -> Array:
        """Executing lanes, (warps, 32)."""
        return np.ones((len(self.warps), LANES), bool) if self.mask is None else self.mask

    def some(self, which: Array, pc: int, lanes: Array | None = None) -> Group:
        """Those warps of it that are picked, at another instruction."""
        self.land()
        if lanes is None and self.mask is not None:
            lanes = self.mask
        mask = None if lanes is None else lanes[which]
        if which.all():
            state: Sequence[Array] = (self.R, self.UR, self.P, self.UP)
            if lanes is not None:  # the other lanes' group goes on with what is here
                state = [x.copy() for x in state]
        else:
            state = [x[:, which] for x in (self.R, self.UR, self.P, self.UP)]
        return Group(self.machine, pc, self.warps[which], state, mask)._watched_as([self])

    def _watched_as(self, groups: Sequence[Group]) -> Group:
        """Take over what is known of the registers of the groups that it comes from.

        Where they have different products in flight, all of them are, the newest together.
        """
        opened = any(group.committed < len(group.in_flight) for group in groups)
        for group in groups:
            self.changed |= group.changed
            theirs = list(group.in_flight)
            if opened and group.committed == len(theirs):
                theirs.append(NOTHING_IN_FLIGHT)
            longest = max(len(theirs), len(self.in_flight))
            self.in_flight = [
                (a[0] | b[0], a[1] | b[1], a[2] | b[2])
                for a, b in zip(
                    [NOTHING_IN_FLIGHT] * (longest - len(theirs)) + theirs,
                    [NOTHING_IN_FLIGHT] * (longest - len(self.in_flight)) + self.in_flight,
                    strict=True,
                )
            ]
        self.committed = len(self.in_flight) - opened
        return self

    def land(self) -> None:
        """Write the products in flight to their registers."""
        for (first, columns), matrix in self.accumulators.items():
            groups = len(self.warps) // WARPGROUP
            parts = matrix.reshape(groups, WARPGROUP, 2, 8, columns // 8, 4, 2)
            # Warp w of four holds rows 16·w to 16·w + 15; lane t of it rows t/4 and t/4 + 8,
            # columns 8·j + 2·(t mod 4) and the next.
            registers = parts.transpose(4, 2, 6, 0, 1, 3, 5)
            rows = registers.reshape(columns // 2, len(self.warps), LANES)
            self.F[first : first + columns // 2] = rows
        self.accumulators.clear()


def joined(groups: Sequence[Group]) -> Group:
    """Groups at one instruction as one."""
    for group in groups:
        group.land()
    if len(groups) == 1:
        return groups[0]
    first = groups[0]
    warps = np.concatenate([group.warps for group in groups])
    lanes = np.concatenate([group.lanes for group in groups])
    state = [
        np.concatenate([getattr(group, name) for group in groups], axis=1)
        for name in ("R", "UR", "P", "UP")
    ]
    order = np.argsort(warps, kind="stable")
    warps, lanes, state = warps[order], lanes[order], [x[:, order] for x in state]
    if len(np.unique(warps)) != len(warps):
        lanes, state = _reunited(warps, lanes, state)
        warps = np.unique(warps)
    return Group(first.machine, first.pc, warps, state, lanes)._watched_as(groups)


def _reunited(warps: Array, lanes: Array, state: list[Array]) -> tuple[Array, list[Array]]:
    """Pieces of warps, each with some of its lanes, as whole warps again."""
    starts = np.flatnonzero(np.r_[True, warps[1:] != warps[:-1]])
    R, UR, P, UP = (x[:, starts].copy() for x in state)
    together = lanes[starts].copy()
    for i, row in enumerate(np.searchsorted(warps[starts], warps)):
        if i in starts:
            continue
        if (UR[:, row] != state[1][:, i]).any() or (UP[:, row] != state[3][:, i]).any():
            raise MachineError(f"lanes of warp {warps[i]} meet with different uniform registers")
        R[:, row, lanes[i]] = state[0][:, i, lanes[i]]
        P[:, row, lanes[i]] = state[2][:, i, lanes[i]]
        together[row] |= lanes[i]
    return together, [R, UR, P, UP]


@dataclasses.dataclass
class Operation:
    """What an instruction does.

    Attributes:
        at: The instruction.
        run: Does it, for a group and the lanes that its guard admits (None: all).
        guard: Lanes or warps that its guard admits; None where it has none.
        uniform: Whether it is the warp's, not a lane's.
        uses, defines: Registers, as a set of bits.
        wait: What it may have to wait for, if anything.
        observe: Tells observers of the memory that it touches, and touches none; None where it
            touches none anyway.
        observed: Registers that ``observe`` and the guard use.
        from_memory: Whether what it defines comes from memory, or from tensor cores.
        bitwise: Results, operands and masks: a bit of the result needs the operand's same bit alone
            where the mask has it, and none of its bits where not. Other operands are needed whole.
        target: The instruction that each lane returns to.
    """

    at: Instruction
    run: Callable[[Group, Array | None], None]
    guard: Callable[[Group], Array] | None
    uniform: bool
    uses: int
    defines: int
    wait: str = ""
    observe: Callable[[Group, Array | None], None] | None = None
    observed: int = 0
    from_memory: bool = False
    bitwise: tuple[tuple[int, int, int], ...] = ()
    target: Callable[[Group], Array] | None = None


def calls(code: Code) -> frozenset[int]:
    """Where functions are called."""
    return frozenset(at.index for at in code.instructions if at.opcode == "CALL")


class Machine:
    """Programs of one launch that run side by side.

    Args:
        code: The kernel.
        operations: What its instructions do.
        constants: Constant bank 0, in 32-bit words.
        programs: Their identifiers, (programs, 3).
        num_warps: Warps of a program.
        shared: Bytes of shared memory of a program.
        memory: Global memory.
        observers: Are told of accesses and of what is waited for.
    """

    def __init__(
        self,
        code: Code,
        operations: Sequence[Operation | None],
        constants: Array,
        programs: Array,
        num_warps: int,
        shared: int,
        memory: GlobalMemory,
        observers: Iterable[Any] = (),
    ) -> None:
        self.code = code
        self.operations = operations
        self.constants = constants
        self.programs = programs
        self.num_warps = num_warps
        self.memory = memory
        self.shared = SharedMemory(len(programs), shared)
        self.observers = tuple(observers)
        self.watching = [x.instruction for x in self.observers if hasattr(x, "instruction")]
        self.executed = np.zeros(len(code.instructions), np.int64)
        self.convergence: dict[str, Array] = {}
        self.exited = np.zeros((len(programs) * num_warps, LANES), bool)
        self.local: Array | None = None
        self.calls = calls(code)
        self.targets = frozenset((*code.labels.values(), *(call + 1 for call in self.calls)))

    def start(self) -> Group:
        """All warps at the first instruction."""
        warps = np.arange(len(self.programs) * self.num_warps)
        n = len(warps)
        R = np.full((256, n, LANES), NEVER_WRITTEN)
        UR = np.full((64, n), NEVER_WRITTEN)
        P, UP = np.zeros((8, n, LANES), bool), np.zeros((8, n), bool)
        R[255], UR[63], P[7], UP[7] = 0, 0, True, True
        return Group(self, 0, warps, (R, UR, P, UP), None)

    def run(self) -> None:
        """Run all programs to their end.

        Raises:
            MachineError: If warps wait for what never comes, or memory is touched that must not be.
        """
        ready, waiting = [self.start()], []
        while ready:
            # The group that is furthest behind goes on, so that loops end together.
            pc = min(group.pc for group in ready)
            here, ready = self._first_at(pc, ready)
            group = joined(here)
            try:
                stopped = self._advance(group, {other.pc for other in ready})
            except LookupError as error:
                raise self.code.instructions[group.pc].lacks(error) from error
            for group, reason in stopped:
                if reason:
                    waiting.append((group, reason))
                else:
                    ready.append(group)
            if not ready or any(reason != "barrier" for _, reason in stopped):
                ready_now, waiting = self._released(waiting)
                ready += ready_now
        if waiting:
            reasons = sorted({f"{r}: {self.code.instructions[g.pc]}" for g, r in waiting})
            raise MachineError(f"warps wait for what never comes, at a {'; '.join(reasons)}")

    def _first_at(self, pc: int, ready: Sequence[Group]) -> tuple[list[Group], list[Group]]:
        """Groups at an instruction, and the others.

        Parts of a warp go on one after the other: they meet only where they wait for each other.
        """
        here: list[Group] = []
        others: list[Group] = []
        taken = np.zeros(len(self.exited), bool)
        for group in ready:
            goes = group.pc == pc and not taken[group.warps].any()
            (here if goes else others).append(group)
            taken[group.warps] |= goes
        return here, others

    def _advance(self, group: Group, others: set[int]) -> list[tuple[Group, str]]:
        """Run a group until it blocks, splits, ends, or reaches where others are or were."""
        operations, executed, targets = self.operations, self.executed, self.targets
        behind = min(others, default=len(operations))
        while True:
            pc = group.pc
            operation = operations[pc]
            if operation is None:  # left out where only counts are asked for
                executed[pc] += len(group.warps)
                group.pc = pc + 1
            else:
                if operation.wait:
                    stopped = self._control(group, operation)
                    if stopped is not None:
                        return stopped
                else:
                    executed[pc] += len(group.warps)
                    mask = None if operation.uniform else group.mask
                    if operation.guard is not None:
                        mask = admitted(operation, group, mask)
                        if mask is not None and not mask.any():
                            group.pc = pc + 1
                            if others and group.pc in targets:
                                return [(group, "")]
                            continue
                    for watch in self.watching:
                        watch(group, operation)
                    operation.run(group, mask)
                    group.pc = pc + 1
            arrives = others and (group.pc in targets or group.pc < pc)
            if arrives and (group.pc > behind or group.pc in others):
                return [(group, "")]

    def _control(self, group: Group, operation: Operation) -> list[tuple[Group, str]] | None:
        """What changes the order of instructions; None where the group goes on as it is."""
        at, kind = operation.at, operation.wait
        if kind == "barrier":
            if operation.guard is not None or group.mask is not None:
                raise MachineError(f"a barrier that some lanes do not reach: {at}")
            return [(group, kind)]
        if kind == "warpgroup":
            if group.whole:
                if operation.guard is not None or group.mask is not None:
                    raise MachineError(f"a product that some lanes do not issue: {at}")
                self.executed[at.index] += len(group.warps)
                operation.run(group, None)
                group.pc += 1
                return None
            return [(group, kind)]
        if kind == "convergence":
            self.executed[at.index] += len(group.warps)
            expected = self._meeting(at)[group.warps]
            if (group.lanes == (expected & ~self.exited[group.warps])).all():
                group.pc += 1
                return None
            return [(group, kind)]
        self.executed[at.index] += len(group.warps)
        lanes = group.lanes
        if kind == "return":
            return self._returned(group, operation)
        if operation.guard is not None:
            lanes = lanes & operation.guard(group).reshape(len(group.warps), -1)
        rest = group.lanes & ~lanes
        if kind == "exit":
            self.exited[group.warps] |= lanes
            going = rest.any(1)
            return [(group.some(going, at.index + 1, rest), "")] if going.any() else []
        target = self.code.labels[at.operands[-1][2:-1]]
        taken, going = lanes.any(1), rest.any(1)
        if not going.any():
            group.pc = target
            return None
        if not taken.any():
            group.pc += 1
            return None
        return [(group.some(taken, target, lanes), ""), (group.some(going, at.index + 1, rest), "")]

    def _returned(self, group: Group, operation: Operation) -> list[tuple[Group, str]] | None:
        """Lanes go on behind the calls that they come from."""
        assert operation.target is not None
        places = operation.target(group)
        targets = np.unique(places[group.lanes]).tolist()
        for target in targets:
            if target - 1 not in self.calls:
                raise MachineError(f"a return to where no call is: {operation.at}")
        if len(targets) == 1:
            group.pc = targets[0]
            return None
        groups = []
        for target in targets:
            lanes = group.lanes & (places == target)
            groups.append((group.some(lanes.any(1), target, lanes), ""))
        return groups

    def _meeting(self, at: Instruction) -> Array:
        """Lanes that have to meet at an instruction: those of its register, or all."""
        return self.convergence[at.operands[0]] if at.operands else np.ones_like(self.exited)

    def _released(
        self, waiting: list[tuple[Group, str]]
    ) -> tuple[list[Group], list[tuple[Group, str]]]:
        """Of the waiting groups, those that have what they wait for, and the others."""
        ready: list[Group] = []
        still: list[tuple[Group, str]] = []
        at_barrier = [group for group, reason in waiting if reason == "barrier"]
        arrived = np.zeros(len(self.programs), np.int64)
        for group in at_barrier:
            np.add.at(arrived, group.programs, 1)
        complete = arrived == self.num_warps
        if complete.any():
            for observer in self.observers:
                observer.barrier(complete)
        for group in at_barrier:
            passes = complete[group.programs]
            if passes.any():
                self.executed[group.pc] += int(passes.sum())
                ready.append(group.some(passes, group.pc + 1) if not passes.all() else group)
                ready[-1].pc = group.pc + 1
            if not passes.all():
                still.append((group.some(~passes, group.pc), "barrier"))
        others = sorted(
            ((g, r) for g, r in waiting if r != "barrier"), key=lambda x: (x[0].pc, x[1])
        )
        for (pc, reason), same in itertools.groupby(others, key=lambda x: (x[0].pc, x[1])):
            group = joined([g for g, _ in same])
            if reason == "warpgroup":
                quads = group.warps // WARPGROUP
                present = np.bincount(quads)[quads] == WARPGROUP
            else:
                expected = self._meeting(self.code.instructions[pc])
                met = group.lanes == (expected & ~self.exited)[group.warps]
                present = met.all(1)
            if present.any():
                ready.append(group if present.all() else group.some(present, pc))
                ready[-1].pc += reason == "convergence"
            if not present.all():
                still.append((group.some(~present, pc), reason))
        return ready, still


def admitted(operation: Operation, group: Group, mask: Array | None) -> Array | None:
    """Lanes, or warps, that execute an instruction under its guard; None where all do."""
    assert operation.guard is not None
    holds = operation.guard(group)
    if not operation.uniform:
        if holds.ndim == 1:
            holds = np.broadcast_to(holds[:, None], (len(group.warps), LANES))
        if mask is not None:
            holds = holds & mask
    return None if holds.all() else holds
