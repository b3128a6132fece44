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
    FETCH,
    FIXED,
    ISSUED,
    LINE,
    LOADS,
    LOCAL,
    MEET,
    NO_BARRIER,
    NOT_SELECTED,
    PLAIN,
    PRODUCT,
    PRODUCTS_DONE,
    REASONS,
    SCHEDULERS,
    THROTTLE,
    WAITED,
    Code,
)
from validate.profile.traces import Program

ENDED = -1


class _Resident:
    """A program that the multiprocessor holds: how many of its warps run, and who waits."""

    def __init__(self, warps: int) -> None:
        self.running = warps
        self.waiting: list[tuple[_Warp, float]] = []


class _Warp:
    """A warp: where it is, and when what it waits for is there.

    Attributes:
        coming: The indices of the instructions after the next one.
        at: The index of the next one.
        barriers, reasons: When each of its barriers is released, and whose wait that is.
        copies, products: When each group of them and all before it are done.
        copied: When the copies of no group yet are done.
    """

    __slots__ = (
        "at", "barriers", "coming", "copied", "copies", "products", "program", "reasons",
        "scheduler",
    )  # fmt: skip

    def __init__(self, runs: Sequence[tuple[int, int]], scheduler: int, program: _Resident) -> None:
        every = (range(first, last + 1) for first, last in runs)
        self.coming = itertools.chain.from_iterable(every)
        self.at = next(self.coming)
        self.scheduler, self.program = scheduler, program
        self.barriers, self.reasons = [0.0] * BARRIERS, [0] * BARRIERS
        self.copies, self.copied, self.products = [0.0], 0.0, [0.0]


def simulate(code: Code, programs: Sequence[Program], at_once: int) -> tuple[float, list[float]]:
    """Run programs on a multiprocessor that holds so many at once, in this order.

    Returns:
        Clocks until the last one ends, and those of all warps by :data:`REASONS`.
    """
    steps = [tuple(step) for step in code.steps]
    queued, starts = code.value["accesses queued"], code.value["start"]
    bytes_per_clock, products_queued = code.value["global bytes"], code.value["products queued"]
    fetch, fetched = code.value["code line"], dict[int, float]()
    free = [0.0] * SCHEDULERS
    units: list[dict[str, float]] = [dict.fromkeys(code.units, 0.0) for _ in range(SCHEDULERS)]
    memory = distant = 0.0  # when shared memory, and the way to the second cache, are free
    stalls = [0.0] * len(REASONS)
    order, schedulers = itertools.count(), itertools.cycle(range(SCHEDULERS))
    heap: list[tuple[float, int, _Warp]] = []
    following = iter(programs)

    def start(program: Program | None, time: float) -> None:
        if program is not None:
            resident = _Resident(len(program))
            for runs in program:
                warp = _Warp(runs, next(schedulers), resident)
                heapq.heappush(heap, (ready_at(warp, time), next(order), warp))

    def ready_at(warp: _Warp, time: float) -> float:
        """When a warp's next instruction has all that it waits for, and not before a time."""
        kind, _, _, _, waits, _, _, _, reason, size = steps[warp.at]
        late, whose = time, FIXED
        if waits:
            barriers = warp.barriers
            for barrier in waits:
                if barriers[barrier] > late:
                    late, whose = barriers[barrier], warp.reasons[barrier]
        if kind in (COPIES_DONE, PRODUCTS_DONE):
            groups = warp.copies if kind == COPIES_DONE else warp.products
            if len(groups) > size and groups[-1 - size] > late:
                late, whose = groups[-1 - size], reason
        stalls[whose] += late - time
        return late

    for program in itertools.islice(following, at_once):
        start(program, 0.0)
    end = 0.0
    while heap:
        ready, _, warp = heapq.heappop(heap)
        kind, stall, write, read_barrier, _, unit, busy, latency, reason, size = steps[warp.at]
        scheduler = warp.scheduler
        time = free[scheduler]
        if time < ready:
            time = ready
        line = warp.at // LINE
        if line not in fetched:
            fetched[line] = time + fetch
        if fetched[line] > time:
            stalls[FETCH] += fetched[line] - ready
            heapq.heappush(heap, (fetched[line], next(order), warp))
            continue
        mine = units[scheduler]
        if unit:
            open_at = mine[unit]
            if kind == PRODUCT:
                open_at -= products_queued * busy
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
        if kind == PLAIN:
            if unit:
                mine[unit] = time + busy
        else:
            done = read = time
            if kind == PRODUCT:
                mine[unit] = max(time, mine[unit]) + busy
                done = mine[unit] + latency
                if size:
                    warp.products.append(max(done, warp.products[-1]))
            elif kind == WAITED:
                if unit:
                    read = mine[unit] = time + busy
                done = read + latency
            elif kind == COMMIT:
                warp.copies.append(max(warp.copied, warp.copies[-1]))
            elif kind in (LOCAL, COPY):
                memory = read = max(memory, time) + busy
                done = memory + latency
            if kind in (LOADS, COPY) and size:
                distant = max(distant, time) + size / bytes_per_clock
                done = distant + latency
                if kind == COPY and done > warp.copied:
                    warp.copied = done
            if kind != COMMIT:
                for barrier, released in ((write, done), (read_barrier, read)):
                    if barrier != NO_BARRIER and released > warp.barriers[barrier]:
                        warp.barriers[barrier] = released
                        warp.reasons[barrier] = reason
        warp.at = next(warp.coming, ENDED)
        if kind == MEET:
            program = warp.program
            program.waiting.append((warp, time))
            if len(program.waiting) == program.running:
                for other, arrived in program.waiting:
                    stalls[BARRIER] += time + latency - arrived - 1
                    item = ready_at(other, time + latency), next(order), other
                    heapq.heappush(heap, item)
                program.waiting = []
        elif warp.at != ENDED:
            after = time + stall if stall else time + 1
            stalls[FIXED] += after - time - 1
            heapq.heappush(heap, (ready_at(warp, after), next(order), warp))
        else:
            end = max(end, time + 1)
            warp.program.running -= 1
            if not warp.program.running:
                start(next(following, None), time + starts)
    return end, stalls
