"""What memory and registers a run touches that it must not touch, or not yet.

Each finding names the instruction. What would be found by chance on a GPU is found whatever the
order in which warps run, since it is asked what orders two accesses, not which came first here:

- between two warps of a program, a barrier that both pass; or nothing, where both store the same
  to shared memory and nobody reads it before the next barrier;
- between two programs of a launch, nothing, unless the kernel has atomics whose results can order
  them: what one of them stores to global memory, no other stores or loads. Atomics may meet
  anything there;
- a copy to shared memory (``LDGSTS``) is done when its warp has waited for its group;
- a product (``HGMMA``) reads its operands and writes its accumulators until its warpgroup has
  waited for its group; registers that it uses are ready at the ``WARPGROUP.ARRIVE`` before it;
- what a descriptor reads was written by ordinary stores or copies, which tensor cores see after a
  ``fence.proxy.async`` only: of the writer before the barrier, or of every reader after it.

Lanes of a warp are taken to go together. Accesses outside of memory, misaligned ones and warps that
wait forever end the run: :class:`validate.emulator.memory.MachineError`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from validate.emulator.assembly import Code, Instruction, access_bytes
from validate.emulator.counts import GLOBAL
from validate.emulator.launching import EmulatedLaunch
from validate.emulator.machine import LANES, NOTHING_IN_FLIGHT, WARPGROUP, Group, Machine, Operation
from validate.emulator.memory import Array, GlobalMemory, MachineError
from validate.emulator.products import UNIT, units_of

NOBODY, SEVERAL = -1, -2
NEVER = np.iinfo(np.int32).max

UNWRITTEN = "reads shared memory that nothing wrote"
IN_FLIGHT = "touches a copy before its wait"
RACE = "races with another warp since the last barrier"
GLOBAL_RACE = "races in global memory with another program, or warp since the last barrier"
UNFENCED = "reads by a descriptor without fence.proxy.async after the store"
STILL_READ = "overwrites what a product still reads"
ACCUMULATOR = "touches an accumulator before its product's wait"
OPERAND = "overwrites an operand before its product's wait"
NOT_READY = "multiplies registers that changed after the last WARPGROUP.ARRIVE"


class Safety:
    """Watches a run.

    Attributes:
        findings: What was found, with its instruction, in the order in which it was found.
    """

    def __init__(self) -> None:
        self.findings: dict[str, None] = {}
        self.programs = 0
        # By storage, bytes of an access, and whether it stores: who accessed each place, as
        # program, warp, and the program's epoch.
        self.users: dict[tuple[int, int, bool], Array] = {}

    def begin(self, machine: Machine) -> None:
        """Programs are about to run."""
        programs, warps = len(machine.programs), len(machine.exited)
        self.earlier, self.programs = self.programs, self.programs + programs
        self.ordered = any(at.opcode == "ATOMG" for at in machine.code.instructions)
        self.granule = granule(machine.code)
        self.row = machine.shared.row // self.granule
        shape = programs * self.row
        self.writer = np.full(shape, NOBODY, np.int32)
        self.reader = np.full(shape, NOBODY, np.int32)
        self.written, self.read, self.atomic = (np.full(shape, -1, np.int32) for _ in range(3))
        self.value = np.zeros(shape, f"u{self.granule}")
        self.copied, self.serial = (np.zeros(shape, np.int32) for _ in range(2))
        self.reading = np.zeros(shape, np.int16)
        self.epoch = np.zeros(programs, np.int32)
        self.committed, self.fences = (np.zeros(warps, np.int64) for _ in range(2))
        self.last_fence = np.full(warps, -1, np.int32)
        # Of each warp's groups of copies, when it had waited for them, and after which of its
        # fences; of each of its fences, when it was.
        self.done, self.done_serial, self.fenced = (
            np.full((warps, 64), NEVER, np.int32) for _ in range(3)
        )
        self.flights: dict[int, list[list[Array]]] = {}

    def _find(self, what: str, at: Instruction, where: Any) -> None:
        if np.any(where):
            self.findings.setdefault(f"{what}: {at}")

    @staticmethod
    def _table(table: Array, columns: int) -> Array:
        """A table with so many columns at least."""
        if columns < table.shape[1]:
            return table
        return np.concatenate([table, np.full_like(table, NEVER)], axis=1)

    def _granules(
        self, g: Group, addresses: Array, mask: Array | None, size: int
    ) -> tuple[Array, Array, Array]:
        """Of each granule that lanes access: its index, the warp, and the warp's epoch."""
        parts = np.arange(size // self.granule)
        places = addresses.astype(np.int64)[..., None] // self.granule + parts
        places += (g.programs * self.row).reshape(-1, 1, 1)
        warps = np.broadcast_to(g.warps.reshape(-1, 1, 1), places.shape)
        if mask is None:
            places, warps = places.ravel(), warps.ravel()
        else:
            places, warps = places[mask].ravel(), warps[mask].ravel()
        return places, warps, self.epoch[warps // g.machine.num_warps]

    def _write_epochs(self, places: Array) -> tuple[Array, Array]:
        """When what lies there was written, NEVER while it is copied, and after which fence."""
        written, serial = self.written[places], self.serial[places]
        copied, writer = self.copied[places], self.writer[places]
        by_copy = copied > 0
        if by_copy.any():
            written = np.where(by_copy, self.done[writer, copied], written)
            serial = np.where(by_copy, self.done_serial[writer, copied], serial)
        return written, serial

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
        if stores:
            self._write(g, at, addresses, mask, size, data)
            return
        places, warps, epochs = self._granules(g, addresses, mask, size)
        writer = self.writer[places]
        written, _ = self._write_epochs(places)
        self._find(UNWRITTEN, at, writer == NOBODY)
        self._find(IN_FLIGHT, at, written == NEVER)
        self._find(RACE, at, (writer != NOBODY) & (writer != warps) & (written == epochs))
        others = (self.read[places] == epochs) & (self.reader[places] != warps)
        self.reader[places] = np.where(others, SEVERAL, warps)
        self.read[places] = epochs
        lost = self.reader[places] != warps
        self.reader[places[lost]] = SEVERAL

    def copy(
        self, g: Group, at: Instruction, addresses: Array, mask: Array | None, size: int
    ) -> None:
        """Lanes copy to shared memory."""
        self._write(g, at, addresses, mask, size, None)

    def shared_atomic(
        self, g: Group, at: Instruction, addresses: Array, mask: Array | None, size: int
    ) -> None:
        """Lanes read and write shared memory at once: among themselves in any order."""
        places, warps, epochs = self._granules(g, addresses, mask, size)
        writer = self.writer[places]
        written, _ = self._write_epochs(places)
        self._find(UNWRITTEN, at, writer == NOBODY)
        self._find(IN_FLIGHT, at, written == NEVER)
        recent = (writer != NOBODY) & (writer != warps) & (written == epochs)
        self._find(RACE, at, recent & (self.atomic[places] != epochs))
        reader = self.reader[places]
        self._find(RACE, at, (reader != NOBODY) & (reader != warps) & (self.read[places] == epochs))
        self._find(STILL_READ, at, self.reading[places])
        several = recent.copy()
        self.writer[places] = warps
        several |= self.writer[places] != warps
        self.writer[places[several]] = SEVERAL
        self.written[places] = self.atomic[places] = epochs
        self.serial[places] = self.fences[warps]
        self.copied[places] = 0

    def _write(
        self,
        g: Group,
        at: Instruction,
        addresses: Array,
        mask: Array | None,
        size: int,
        data: Array | None,
    ) -> None:
        """Lanes write data, or (None) copy.

        Where warps store the same between the same barriers, as they do with what each of them
        holds, their order decides nothing: who then reads before the next barrier races, and so
        does who stores something else.
        """
        places, warps, epochs = self._granules(g, addresses, mask, size)
        writer = self.writer[places]
        written, _ = self._write_epochs(places)
        self._find(IN_FLIGHT, at, written == NEVER)
        several = (writer != NOBODY) & (writer != warps) & (written == epochs)
        values = None
        if data is not None:
            granules = np.ascontiguousarray(data).view(f"u{self.granule}")
            granules = granules.reshape(*addresses.shape, -1)
            values = (granules if mask is None else granules[mask]).ravel()
            same = (self.copied[places] == 0) & (self.value[places] == values)
            self._find(RACE, at, several & ~same)
        else:
            self._find(RACE, at, several)
        reader = self.reader[places]
        self._find(RACE, at, (reader != NOBODY) & (reader != warps) & (self.read[places] == epochs))
        self._find(STILL_READ, at, self.reading[places])
        self.writer[places] = warps
        together = self.writer[places] != warps
        if values is None:
            self._find(RACE, at, together)
        else:
            self.value[places] = values
            self._find(RACE, at, together & (self.value[places] != values))
            self.writer[places[several | together]] = SEVERAL
        self.written[places] = epochs
        self.atomic[places] = -1
        self.serial[places] = self.fences[warps]
        self.copied[places] = self.committed[warps] + 1 if data is None else 0

    def commit_copies(self, g: Group, at: Instruction) -> None:
        """Copies since the last commit are a group."""
        self.committed[g.warps] += 1
        columns = int(self.committed.max()) + 2
        self.done = self._table(self.done, columns)
        self.done_serial = self._table(self.done_serial, columns)

    def wait_for_copies(self, g: Group, at: Instruction, pending: int) -> None:
        """All groups but the last ``pending`` are done."""
        for warp in g.warps:
            done = self.done[warp, : max(0, int(self.committed[warp]) - pending) + 1]
            new = np.flatnonzero(done == NEVER)
            done[new] = self.epoch[warp // g.machine.num_warps]
            self.done_serial[warp, new] = self.fences[warp]

    def proxy_fence(self, g: Group, at: Instruction) -> None:
        """What was stored before is seen by tensor cores."""
        self.fenced = self._table(self.fenced, int(self.fences.max()) + 2)
        epochs = self.epoch[g.programs]
        self.fenced[g.warps, self.fences[g.warps]] = epochs
        self.fences[g.warps] += 1
        self.last_fence[g.warps] = epochs

    def barrier(self, complete: Array) -> None:
        """All warps of these programs pass a barrier."""
        self.epoch[complete] += 1

    def product(
        self,
        g: Group,
        at: Instruction,
        first: int,
        columns: int,
        a_register: int | None,
        reads: list[tuple[int, bool, list[tuple[int, Array]]]],
        commits: bool,
    ) -> None:
        """Warpgroups issue a product."""
        accumulators = ((1 << columns // 2) - 1) << first
        a = 0 if a_register is None else 15 << a_register
        for held, operands, shapes in g.in_flight:
            self._find(ACCUMULATOR, at, held & a)
            self._find(ACCUMULATOR, at, held & accumulators and (first, columns) not in shapes)
            self._find(OPERAND, at, operands & accumulators)
        self._find(NOT_READY, at, g.changed & (accumulators | a))
        if g.committed == len(g.in_flight):
            g.in_flight.append(NOTHING_IN_FLIGHT)
        held, operands, shapes = g.in_flight[-1]
        g.in_flight[-1] = held | accumulators, operands | a, shapes | {(first, columns)}
        if commits:
            g.committed = len(g.in_flight)
        for outer, transposed, descriptors in reads:
            for descriptor, which in descriptors:
                units = units_of(descriptor, outer, transposed).ravel()
                each = UNIT // self.granule
                granules = (units[:, None] * each + np.arange(each)).ravel()
                self._descriptor_reads(g, at, which, granules)
        if commits:
            for quad in g.warps[::WARPGROUP] // WARPGROUP:
                self.flights[int(quad)].append([])

    def _descriptor_reads(self, g: Group, at: Instruction, which: Array, granules: Array) -> None:
        quads = g.warps[which * WARPGROUP] // WARPGROUP
        programs = g.programs[which * WARPGROUP]
        places = programs[:, None] * self.row + granules
        epochs = self.epoch[programs][:, None]
        writer = self.writer[places]
        written, serial = self._write_epochs(places)
        self._find(UNWRITTEN, at, writer == NOBODY)
        self._find(IN_FLIGHT, at, written == NEVER)
        self._find(RACE, at, (writer != NOBODY) & (written == epochs))
        readers = self.last_fence[quads[:, None] * WARPGROUP + np.arange(WARPGROUP)].min(1)
        by_reader = readers[:, None] > written
        width = self.fenced.shape[1]
        by_writer = (writer >= 0) & (self.fenced[writer, np.minimum(serial, width - 1)] < epochs)
        self._find(UNFENCED, at, (writer != NOBODY) & (written != NEVER) & ~by_reader & ~by_writer)
        for quad, row in zip(quads.tolist(), places, strict=True):
            self.reading[row] += 1
            self.flights.setdefault(quad, [[]])[-1].append(row)

    def products_arrive(self, g: Group, at: Instruction) -> None:
        """Registers are ready for products."""
        g.changed = 0

    def wait_for_products(self, g: Group, at: Instruction, pending: int) -> None:
        """All groups of products but the last ``pending`` are done."""
        kept = g.in_flight[max(0, g.committed - pending) :]
        g.committed -= len(g.in_flight) - len(kept)
        g.in_flight = kept
        for quad in np.unique(g.warps // WARPGROUP).tolist():
            flights = self.flights.get(quad, [[]])
            done = max(0, len(flights) - 1 - pending)
            for rows in flights[:done]:
                for row in rows:
                    self.reading[row] -= 1
                    self.reader[row] = SEVERAL
                    self.read[row] = self.epoch[quad * WARPGROUP // g.machine.num_warps]
            self.flights[quad] = flights[done:]

    def instruction(self, g: Group, operation: Operation) -> None:
        """Warps execute an instruction."""
        if operation.at.opcode != "HGMMA":
            for held, operands, _ in g.in_flight:
                self._find(ACCUMULATOR, operation.at, held & (operation.uses | operation.defines))
                self._find(OPERAND, operation.at, operands & operation.defines)
            g.changed |= operation.defines

    def global_access(
        self,
        g: Group,
        at: Instruction,
        addresses: Array,
        mask: Array | None,
        size: int,
        stores: bool,
    ) -> None:
        """Lanes load from global memory, copy from it, or store to it; atomics may meet anything.

        A copy loads when it is issued. One warp may store to what several loaded: of a tile with
        fewer elements than threads, Triton loads copies and stores one.
        """
        if GLOBAL[at.opcode] == "atomic" or (mask is not None and not mask.any()):
            return
        addresses = np.broadcast_to(addresses, (len(g.warps), LANES))
        memory = g.machine.memory
        for i, lanes in memory.places(at, addresses, mask, size):
            places = memory.indices(i, addresses, lanes, size).ravel()
            rows = np.broadcast_to(np.arange(len(g.warps))[:, None], addresses.shape)
            rows = (rows if lanes is None else rows[lanes]).ravel()
            programs = (self.earlier + g.programs)[rows]
            warps, epochs = g.warps[rows], self.epoch[g.programs][rows]
            for (storage, width, stored), users in self.users.items():
                if storage != i or not (stores or stored):
                    continue
                for part in range(max(1, size // width)):
                    user = users[:, (places * size + part * width) // width]
                    other = (user[0] != NOBODY) & (user[0] != programs) & (not self.ordered)
                    beside = (user[0] == programs) & (user[1] != warps) & (user[2] == epochs)
                    other |= beside & (stored | (user[1] != SEVERAL))
                    self._find(GLOBAL_RACE, at, other)
            if (i, size, stores) not in self.users:
                units = -(-memory.bytes[i].size // size)
                self.users[i, size, stores] = np.full((3, units), NOBODY, np.int32)
            users = self.users[i, size, stores]
            before = users[:, places]
            several = (before[0] != NOBODY) & (before[0] != programs)
            shared = (before[0] == programs) & (before[1] != warps) & (before[2] == epochs)
            users[0, places], users[1, places], users[2, places] = programs, warps, epochs
            apart, beside = users[0, places] != programs, users[1, places] != warps
            if stores:
                self._find(GLOBAL_RACE, at, apart & (not self.ordered) | beside & ~apart)
            users[0, places[several | apart]] = SEVERAL
            users[1, places[shared | beside]] = SEVERAL


def granule(code: Code) -> int:
    """Bytes that are told apart: of the least access to shared memory, at most 2."""
    sizes = [access_bytes(at) for at in code.instructions if at.opcode in ("LDS", "STS")]
    return min([2, *sizes])


def check(launch: EmulatedLaunch) -> list[str]:
    """Run a launch, results included: what was found, with its instruction.

    What ends the run, an access that is refused or a wait for what never comes, is found last.
    """
    safety = Safety()
    try:
        launch.run(GlobalMemory(), (safety,))
    except MachineError as error:
        return [*safety.findings, str(error)]
    return list(safety.findings)
