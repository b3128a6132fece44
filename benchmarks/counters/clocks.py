"""Modelled clocks of launches beside those that a GPU has measured."""

from __future__ import annotations

import collections
import itertools
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from benchmarks.attention.shapes import Shape
from benchmarks.counters.profiler import TIMES, Kernel, ProfilerError
from benchmarks.tiling.modelled import traced
from models.results import markdown
from validate.emulator import cases as emulator_cases
from validate.emulator.launching import EmulatedLaunch
from validate.profile.scheduling import MIDDLE
from validate.profile.timing import held_at_once, modelled

COLUMNS = ("case", "launch", "kernel", "measured", "before", "after", "calibrated on")
HEADINGS = (
    "kernel", "calibrated on: before", "after", "held out: before", "then after",
)  # fmt: skip
CALIBRATED_ON = (0, 6, 14, 20, 26, 33, 38, 42)
"""The cases, by number, on whose launches parameters were chosen."""
EFFECTS = ("launch", "code line", "least product")
"""The parameters that were calibrated, all 0 before."""
MULTIPROCESSORS = 132
"""Of an H200, as of an H100."""
SAME = (
    *(f"sm__inst_executed_pipe_{pipe}.sum" for pipe in ("alu", "fma", "lsu", "uniform", "xu")),
    "sm__ops_path_tensor_op_hgmma_src_bf16_dst_fp32_sparsity_off.sum",
)
"""What the emulator counts as the hardware does: where one differs, other code was profiled."""


def launches_of(shape: Shape, backward: bool = True) -> list[dict[str, Any]]:
    """Name, counters and modelled clocks of each launch of a call; needs no GPU.

    The multiprocessor with the most to do is run, all parameters in the middle. The bandwidth of
    the device's memory is left out: profiled launches find the caches warm.

    Args:
        shape: Of the call, bf16.
        backward: Whether to run the backward pass, too.
    """
    rows: list[dict[str, Any]] = []

    def run(launch: EmulatedLaunch) -> None:
        counts, programs = traced(launch, distinct=False)
        held = held_at_once(launch)
        before, after = (
            modelled(counts, programs, held, MULTIPROCESSORS, 0.0, (MIDDLE,), 1, **given).middle
            for given in (dict.fromkeys(EFFECTS, 0.0), {})
        )
        metrics = {name: number for name, number in counts.metrics().items() if name in SAME}
        row = {"kernel": launch.name, "before": round(before), "after": round(after)}
        rows.append({**row, "metrics": metrics})

    case = emulator_cases.Case(
        "bfloat16", shape.head_dim, shape.queries, shape.prefix, shape.heads, shape.heads,
        batch=shape.batch,
    )  # fmt: skip
    emulator_cases.called(case, run, backward, values=False)
    return rows


def rows_of(
    case: str, profiled: Sequence[Kernel], launches: Sequence[dict[str, Any]], calibrated: bool
) -> Iterator[dict[str, Any]]:
    """Rows of a case, one for each launch.

    Args:
        case: Its name.
        profiled: Its kernels; a library's copies and fills are passed over.
        launches: By :func:`launches_of`.
        calibrated: Whether parameters were chosen on them.

    Raises:
        ProfilerError: If other launches, or launches of other code, were profiled.
    """
    kernels = [kernel for kernel in profiled if not kernel.name.startswith("void ")]
    names = [[kernel.name for kernel in kernels], [launch["kernel"] for launch in launches]]
    if names[0] != names[1]:
        raise ProfilerError(
            f"{case}: other kernels were profiled: {names[0]}, launched: {names[1]}"
        )
    for number, (kernel, launch) in enumerate(zip(kernels, launches, strict=True)):
        if differing := differences(kernel, launch["metrics"]):
            raise ProfilerError(
                f"{case}: other code was profiled of launch {number}, {kernel.name} (profiled, "
                f"emulated): {differing}. Take that commit's kernels, and its Triton"
            )
        yield {
            "case": case,
            "launch": number,
            "kernel": kernel.name,
            "measured": kernel.counts[TIMES[1]],
            "before": launch["before"],
            "after": launch["after"],
            "calibrated on": "yes" if calibrated else "no",
        }


def differences(kernel: Kernel, metrics: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Of :data:`SAME` what was profiled and emulated, where it differs; missing counters do not.

    >>> differences(Kernel("k", {SAME[0]: 5, SAME[1]: None}), {SAME[0]: 4, SAME[1]: 3})
    {'sm__inst_executed_pipe_alu.sum': (5, 4)}
    """
    pairs = {name: (kernel.counts.get(name), number) for name, number in metrics.items()}
    return {
        name: (there, here) for name, (there, here) in pairs.items() if there not in (None, here)
    }


def clocks_table(rows: Iterable[dict[str, str]]) -> str:
    """Modelled over measured clocks by kernel: median, least and most, as a markdown table."""
    ratios: dict[str, list[list[float]]] = collections.defaultdict(lambda: [[], [], [], []])
    for row in rows:
        first = 0 if row["calibrated on"] == "yes" else 2
        for column, state in enumerate(("before", "after"), start=first):
            ratios[row["kernel"]][column].append(int(row[state]) / int(row["measured"]))
    whole = [[*itertools.chain(*column)] for column in zip(*ratios.values(), strict=True)]

    def shown(of: Sequence[float]) -> str:
        return f"{statistics.median(of):.2f} ({min(of):.2f} to {max(of):.2f})" if of else ""

    lines = [[f"`{kernel}`", *map(shown, of)] for kernel, of in ratios.items()]
    if whole:
        logs = [[abs(math.log(ratio)) for ratio in x] for x in whole]
        means = [f"{statistics.fmean(x):.3f}" if x else "" for x in logs]
        lines.append(["mean of the logarithm's magnitude", *means])
        lines.append(["launches", *(f"{len(x)}" for x in whole)])
    return markdown((dict(zip(HEADINGS, line, strict=True)) for line in lines), HEADINGS)
