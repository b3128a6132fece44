"""What one call of the attention executes, kernel by kernel, without a GPU.

``python -m validate.emulator --case.dtype bfloat16 --case.head-dim 73 --case.queries 512`` compiles
the kernels for sm_90, executes control and addresses of all programs, forward and backward, and
shows how much each kernel executes: by Nsight Compute's names, by loop and pipe, and by source
line. ``--check`` executes the data, too, and shows what is touched that must not be.
``python -m validate.profile`` has FLOPs, special functions and traffic by loop and line.
"""

from __future__ import annotations

import collections

from flopcount.tables import table
from validate.emulator.cases import Case, counted, launched
from validate.emulator.counts import METRICS, Counts, pipe_of
from validate.emulator.launching import EmulatedLaunch
from validate.emulator.safety import check as checked
from validate.witnesses.processes import triton_processes


def _tables(case: Case, backward: bool) -> tuple[str, str, str]:
    """By kernel and metric, by kernel, loop and pipe, and by line; launches of one kernel apart."""
    launches = counted(case, backward=backward)
    names = [f"{i} {counts.code.name}" for i, counts in enumerate(launches, 1)]
    values = [counts.metrics() for counts in launches]
    by_metric = [[metric, *(metrics[metric] for metrics in values)] for metric in METRICS]
    by_loop = [
        [name, *line]
        for name, counts in zip(names, launches, strict=True)
        for line in _loops(counts)
    ]
    by_line = [
        [name, line, times]
        for name, counts in zip(names, launches, strict=True)
        for line, times in sorted(counts.by(lambda at: at.source).items())
    ]
    return (
        table(["metric", *names], by_metric),
        table(["kernel", "where", "pipe", "instructions of warps"], by_loop, keys=3),
        table(["kernel", "line", "instructions of warps"], by_line, keys=2),
    )


def _loops(counts: Counts) -> list[list[object]]:
    """Executed instructions by loop and pipe."""
    loops = {at.index: counts.loop_of(at) for at in counts.code.instructions}
    tally: collections.Counter[tuple[str, str]] = collections.Counter()
    for at, times in zip(counts.code.instructions, counts.executed.tolist(), strict=True):
        tally[loops[at.index], pipe_of(at)] += times
    return [[*key, times] for key, times in sorted(tally.items()) if times]


def _findings(case: Case, backward: bool) -> list[str]:
    findings: list[str] = []

    def run(launch: EmulatedLaunch) -> None:
        findings.extend(f"{launch.name} {finding}" for finding in checked(launch))

    launched(case, run, backward)
    return findings


def show(case: Case, check: bool = False, backward: bool = True) -> int:
    """Show what a call of the attention executes.

    Args:
        case: The call.
        backward: Run the backward pass, too.
        check: Execute the data, too, and show what is touched too early or not at all instead.
    """
    with triton_processes(interpret=False) as pool:
        if check:
            findings = pool.submit(_findings, case, backward).result()
            print("\n".join(findings) or "nothing is touched that must not be")
            return 1 if findings else 0
        print("\n\n".join(pool.submit(_tables, case, backward).result()))
    return 0
