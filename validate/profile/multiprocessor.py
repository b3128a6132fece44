"""One multiprocessor, event by event: when each of its warps issues, and what it waits for."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence

from validate.profile.scheduling import (
    BARRIER,
    BARRIERS,
    COMMIT,
    COPIES_DONE,
    COPY,
    FIXED,
    ISSUED,
    LOADS,
    LOCAL,
    MEET,
    NO_BARRIER,
    NOT_SELECTED,
    PRODUCT,
    PRODUCTS_DONE,
    REASONS,
    SCHEDULERS,
    THROTTLE,
    WAITED,
    Code,
)
from validate.profile.traces import Program


class _Resident:
    """A program that the multiprocessor holds: how many of its warps run, and who waits."""

    def __init__(self, warps: int) -> None:
        self.running = warps
        self.waiting: list[tuple[_Warp, float]] = []


class _Warp:
    """A warp: where it is, and when what it waits for is there.

    Attributes:
        step: The index of its next instruction, within ``runs[run]``.
        barriers, reasons: When each of its barriers is released, and whose wait that is.
        copies, products: When each group of them and all before it are done.
        copied: When the copies of no group yet are done.
    """

    __slots__ = (
        "barriers", "copied", "copies", "last", "products", "program", "reasons", "run", "runs",
        "scheduler", "step",
    )  # fmt: skip

    def __init__(self, runs: Sequence[tuple[int, int]], scheduler: int, program: _Resident) -> None:
        self.runs, self.run = runs, 0
        self.step, self.last = runs[0]
        self.scheduler, self.program = scheduler, program
        self.barriers, self.reasons = [0.0] * BARRIERS, [0] * BARRIERS
        self.copies, self.copied, self.products = [0.0], 0.0, [0.0]

    def advance(self) -> bool:
        """Go to the next instruction; false where there is none."""
        if self.step < self.last:
            self.step += 1
            return True
        self.run += 1
        if self.run == len(self.runs):
            return False
        self.step, self.last = self.runs[self.run]
        return True


def simulate(code: Code, programs: Sequence[Program], at_once: int) -> tuple[float, list[float]]:
    """Run programs on a multiprocessor that holds so many at once, in this order.

    Returns:
        Clocks until the last one ends, and those of all warps by :data:`REASONS`.
    """
    steps, value = code.steps, code.value
    queued = value["accesses queued"]
    bytes_per_clock = value["global bytes"]
    free = [0.0] * SCHEDULERS
    units: list[dict[str, float]] = [dict.fromkeys(code.units, 0.0) for _ in range(SCHEDULERS)]
    memory = distant = 0.0  # when shared memory, and the way to the second cache, are free
    stalls = [0.0] * len(REASONS)
    order = itertools.count()
    heap: list[tuple[float, int, _Warp]] = []
    coming = iter(programs)
    first_scheduler = itertools.count()

    def start(program: Program | None, time: float) -> None:
        if program is not None:
            resident = _Resident(len(program))
            for runs in program:
                warp = _Warp(runs, next(first_scheduler) % SCHEDULERS, resident)
                wait(warp, time, 0.0, FIXED)

    def wait(warp: _Warp, time: float, least: float, reason: int) -> None:
        """Let a warp's next instruction be ready when all that it waits for is there."""
        step = steps[warp.step]
        ready = time + least
        stalls[reason] += least
        late, whose = ready, FIXED
        for barrier in step.waits:
            if warp.barriers[barrier] > late:
                late, whose = warp.barriers[barrier], warp.reasons[barrier]
        if step.kind == COPIES_DONE or step.kind == PRODUCTS_DONE:
            groups = warp.copies if step.kind == COPIES_DONE else warp.products
            if len(groups) > step.size and groups[-1 - int(step.size)] > late:
                late, whose = groups[-1 - int(step.size)], step.reason
        stalls[whose] += late - ready
        heapq.heappush(heap, (late, next(order), warp))

    for program in itertools.islice(coming, at_once):
        start(program, 0.0)
    end = 0.0
    while heap:
        ready, _, warp = heapq.heappop(heap)
        step = steps[warp.step]
        kind, scheduler = step.kind, warp.scheduler
        time = max(ready, free[scheduler])
        unit = step.unit
        if unit:
            open_at = units[scheduler][unit]
            if kind == PRODUCT:
                open_at -= value["products queued"] * step.busy
        elif kind in (LOCAL, COPY):
            open_at = memory - queued
        else:
            open_at = 0.0
        if open_at > time:
            stalls[THROTTLE] += open_at - ready
            heapq.heappush(heap, (open_at, next(order), warp))
            continue
        stalls[NOT_SELECTED] += time - ready
        stalls[ISSUED] += 1
        free[scheduler] = time + 1
        done = read = time
        if kind == PRODUCT:
            done = max(time, units[scheduler][unit]) + step.busy
            units[scheduler][unit] = done
            done += step.latency
            if step.size:
                warp.products.append(max(done, warp.products[-1]))
        elif unit:
            read = units[scheduler][unit] = time + step.busy
            done = read + step.latency
        elif kind == WAITED:
            done = time + step.latency
        if kind in (LOCAL, COPY):
            memory = max(memory, time) + step.busy
            read = memory
            done = memory + step.latency
        if kind in (LOADS, COPY) and step.size:
            distant = max(distant, time) + step.size / bytes_per_clock
            done = distant + step.latency
            if kind == COPY:
                warp.copied = max(warp.copied, done)
        elif kind == COMMIT:
            warp.copies.append(max(warp.copied, warp.copies[-1]))
        if step.write != NO_BARRIER and kind != COMMIT and done > warp.barriers[step.write]:
            warp.barriers[step.write] = done
            warp.reasons[step.write] = step.reason
        if step.read != NO_BARRIER and read > warp.barriers[step.read]:
            warp.barriers[step.read] = read
            warp.reasons[step.read] = step.reason
        program = warp.program
        goes_on = warp.advance()
        if kind == MEET:
            program.waiting.append((warp, time))
            if len(program.waiting) == program.running:
                for other, arrived in program.waiting:
                    stalls[BARRIER] += time - arrived
                    wait(other, time, step.latency, BARRIER)
                program.waiting = []
        elif goes_on:
            least = max(step.stall, 1)
            stalls[FIXED] -= 1  # the clock of its issue
            wait(warp, time, least, FIXED)
        else:
            end = max(end, time + 1)
            program.running -= 1
            if not program.running:
                start(next(coming, None), time + value["start"])
    return end, stalls
