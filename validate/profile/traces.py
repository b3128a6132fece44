"""Which instructions each warp of a launch executed, in order."""

from __future__ import annotations

from typing import Any

from validate.emulator.machine import Group, Machine, Operation
from validate.emulator.memory import Array

Run = tuple[int, int]
"""First and last of instructions that follow one another."""
Program = tuple[tuple[Run, ...], ...]
"""The runs of each of its warps."""


class TracingMachine(Machine):
    """A machine that notes what its warps execute.

    Attributes:
        runs: Of each warp, in order. Where its lanes part, what each part executed.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.runs: list[list[Run]] = [[] for _ in self.exited]
        self._first: int | None = 0

    def _note(self, warps: Array, last: int) -> None:
        if self._first is not None and self._first <= last:
            for warp in warps.tolist():
                self.runs[warp].append((self._first, last))

    def _advance(self, group: Group, others: set[int]) -> list[tuple[Group, str]]:
        self._first = group.pc
        stopped = super()._advance(group, others)
        if self._first is not None:
            (left, reason), *_ = stopped
            # Where it waits for others at a barrier or to converge, it is not executed again.
            self._note(left.warps, left.pc - (reason not in ("barrier", "convergence")))
        return stopped

    def _control(self, group: Group, operation: Operation) -> list[tuple[Group, str]] | None:
        leaves = operation.wait in ("branch", "exit", "return")
        if leaves:
            self._note(group.warps, operation.at.index)
        stopped = super()._control(group, operation)
        if leaves:
            self._first = group.pc if stopped is None else None
        return stopped


class Traces:
    """Watches a launch that a :class:`TracingMachine` runs.

    Attributes:
        machines: Those that ran, in the order of their programs.
    """

    def __init__(self) -> None:
        self.machines: list[TracingMachine] = []

    def begin(self, machine: TracingMachine) -> None:
        """Programs are about to run."""
        self.machines.append(machine)

    def programs(self) -> list[Program]:
        """What each program executed, in the order of the launch; equal ones are one object."""
        known: dict[Program, Program] = {}
        programs = []
        for machine in self.machines:
            warps = [tuple(runs) for runs in machine.runs]
            for first in range(0, len(warps), machine.num_warps):
                program = tuple(warps[first : first + machine.num_warps])
                programs.append(known.setdefault(program, program))
        return programs

    def ignored(self, *_: Any) -> None:
        """What traces do not depend on."""

    global_access = shared_access = copy = barrier = commit_copies = wait_for_copies = ignored
    proxy_fence = products_arrive = wait_for_products = product = ignored
