"""A model's time of a launch, from what its warps executed and how ptxas scheduled it.

**Modelled, not measured**: three parameters are calibrated on launches of an H200, and
``docs/profiler.md`` says how far others are off; it ranks, and claims nothing. One multiprocessor
runs the programs that it holds at once. Each of its four schedulers issues an
instruction a clock, of the warp that has been ready for longest. When a warp is ready, the code
says: its control words hold the clocks to wait after an instruction, which of six barriers its
operands and results release, and which of them to wait for. What takes a time that the code does
not tell takes that of :data:`validate.profile.scheduling.PARAMETERS`, a source's or a guess; units
that are busy make warps wait.

A launch takes as long as the multiprocessor with the most to do, and no less than its distinct
bytes take at the bandwidth of the device's memory; the launch itself is added. Left out: the first
cache, and whether what is loaded is in the second; traffic of other multiprocessors; code that does
not fit its cache; banks of registers; what products read of shared memory while others do; hints to
yield; that integer multiply-adds have half of fp32's rate.
"""

from __future__ import annotations

import collections
import dataclasses
import heapq
from collections.abc import Sequence
from typing import Any

from validate.emulator.counts import Counts
from validate.emulator.launching import EmulatedLaunch
from validate.profile.multiprocessor import simulate
from validate.profile.scheduling import LEAST, MIDDLE, MOST, REASONS, SETTINGS, scheduled
from validate.profile.traces import Program
from validate.witnesses.compiled_code import SHARED_MEMORY, programs_at_once

SIMULATED = 2
"""Multiprocessors that are run, of those with the most to do and something else to do each."""


@dataclasses.dataclass
class Modelled:
    """A modelled time of launches, in clocks: not measured.

    Attributes:
        least, middle, most: With every parameter at the end of its range that makes for less time,
            in the middle, and at the other end. Units that are free sooner may let warps meet where
            they did not, so that ``least`` need not be the least of the three.
        bytes: What distinct bytes take at least; within the others.
        stalls: What the warps' clocks go to, in the middle, by :data:`REASONS`.
    """

    least: float = 0.0
    middle: float = 0.0
    most: float = 0.0
    bytes: float = 0.0
    stalls: dict[str, float] = dataclasses.field(default_factory=dict)

    def add(self, other: Modelled) -> None:
        """Let another launch follow."""
        self.least += other.least
        self.middle += other.middle
        self.most += other.most
        self.bytes += other.bytes
        for reason, clocks in other.stalls.items():
            self.stalls[reason] = self.stalls.get(reason, 0.0) + clocks

    def range(self) -> tuple[float, float]:
        """The least and the most of the three."""
        three = [getattr(self, name) for name in SETTINGS]
        return min(three), max(three)

    def against(self, other: Modelled) -> tuple[float, float]:
        """The range of its time as a share of another's, both under the same parameters."""
        shares = [getattr(self, name) / getattr(other, name) for name in SETTINGS]
        return min(shares), max(shares)


def is_tie(low: float, high: float) -> bool:
    """Whether a range of shares says nothing of which is faster.

    >>> is_tie(0.97, 1.02), is_tie(0.9, 0.99)
    (True, False)
    """
    return low <= 1 <= high


def assigned(
    programs: Sequence[Program], multiprocessors: int, at_once: int
) -> list[list[Program]]:
    """The programs of each multiprocessor: each goes where one ends first, by its instructions.

    >>> one, two = (((0, 0),),), (((0, 9),),)
    >>> [len(x) for x in assigned([two, one, one, one, two], 2, 1)]
    [1, 4]
    """
    slots = [(0, i) for i in range(multiprocessors * at_once)]
    by_multiprocessor: list[list[Program]] = [[] for _ in range(multiprocessors)]
    work: dict[int, int] = {}
    for program in programs:
        if id(program) not in work:
            work[id(program)] = instructions(program)
        time, i = heapq.heappop(slots)
        by_multiprocessor[i % multiprocessors].append(program)
        heapq.heappush(slots, (time + work[id(program)], i))
    return by_multiprocessor


def held_at_once(launch: EmulatedLaunch) -> int:
    """How many of a launch's programs a multiprocessor holds.

    Raises:
        ValueError: If it does not hold one.
    """
    held = programs_at_once(launch.code.registers, launch.num_warps, launch.shared)
    if not held:
        raise ValueError(
            f"{launch.name} needs {launch.shared:,} bytes of shared memory and {launch.num_warps} "
            f"warps of {launch.code.registers} registers a thread: expected at most "
            f"{SHARED_MEMORY:,} bytes, 64 warps and 65,536 registers"
        )
    return held


def instructions(program: Program) -> int:
    """Of all warps of a program."""
    return sum(last - first + 1 for runs in program for first, last in runs)


def modelled(
    counts: Counts,
    programs: Sequence[Program],
    at_once: int,
    multiprocessors: int,
    bytes_clocks: float,
    settings: Sequence[str] = SETTINGS,
    simulated: int = SIMULATED,
    **given: float,
) -> Modelled:
    """The time of a launch.

    Args:
        counts: What it executed.
        programs: What each of its programs executed.
        at_once: How many programs a multiprocessor holds.
        multiprocessors: How many there are.
        bytes_clocks: For which memory is busy at least.
        settings: Those to model; the middle one, which has to be among them, stands for others.
        simulated: How many multiprocessors to run.
        given: Values of parameters, whatever the setting.
    """
    every = assigned(programs, multiprocessors, at_once)
    different = {tuple(map(id, some)): some for some in every if some}
    most = sorted(different.values(), key=lambda some: -sum(map(instructions, some)))[:simulated]
    by_setting: dict[str, Any] = {}
    stalls: collections.Counter[str] = collections.Counter()
    for setting in settings:
        code = scheduled(counts, setting, **given)
        clocks = 0.0
        for some in most:
            ended, reasons = simulate(code, some, at_once)
            clocks = max(clocks, ended)
            if setting == MIDDLE:
                stalls.update(dict(zip(REASONS, reasons, strict=True)))
        by_setting[setting] = max(clocks, bytes_clocks) + code.value["launch"]
    each = [by_setting.get(setting, by_setting[MIDDLE]) for setting in (LEAST, MIDDLE, MOST)]
    return Modelled(*each, bytes_clocks, dict(stalls))
