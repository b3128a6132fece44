"""Every launch that is shipped, executed without a GPU: ``python -m validate.emulator.shipped``.

For each, outputs and gradients are held against plain PyTorch in float64, executed FLOPs against
the counter, and what is touched too early or not at all is found. It takes hours: each launch
compiles four to seven kernels. ``--start`` and ``--step`` take a part.
"""

from __future__ import annotations

import dataclasses
import sys

from validate.compiled_record import shipped_launches
from validate.emulator.cases import Case, difference, errors, seen
from validate.emulator.launching import EmulatedLaunch
from validate.emulator.safety import check
from validate.witnesses.compiled_code import DTYPES, KEY_HEADS, Launch
from validate.witnesses.processes import triton_processes

QUERIES, PREFIX = 144, 80
"""Several tiles of every kernel, and one that is not whole; multiples of 16, as those of the
record, by which kernels are specialised."""


def case_of(launch: Launch) -> Case:
    """A call that makes a launch."""
    return Case(
        launch.dtype,
        launch.head_dim,
        QUERIES,
        PREFIX if launch.prefix else 0,
        KEY_HEADS * launch.group,
        KEY_HEADS,
        pairs=launch.head_dim // 4 if launch.turned else 0,
    )


@dataclasses.dataclass(frozen=True)
class Finding:
    """What became of a case.

    Attributes:
        case: The case.
        share: Largest error, as a share of what it may be.
        missed: FLOPs by the counter minus those executed, and bytes declared minus those touched.
        unsafe: What was touched too early or not at all.
    """

    case: Case
    share: float
    missed: dict[str, int]
    unsafe: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether it is right, counted, and safe."""
        return self.share <= 1 and not any(self.missed.values()) and not self.unsafe


def tried(case: Case) -> Finding:
    """Execute a case, with results and for counts."""
    unsafe: list[str] = []

    def run(launch: EmulatedLaunch) -> None:
        unsafe.extend(f"{launch.name} {found}" for found in check(launch))

    share = max(errors(case, run))
    return Finding(case, share, difference(case, seen(case)), tuple(unsafe))


def main(dtypes: tuple[str, ...] = DTYPES, start: int = 0, step: int = 1, jobs: int = 1) -> int:
    """Execute shipped launches; exit with 1 where one is not right, counted, or safe.

    Args:
        dtypes: Of bfloat16, float16 and float32.
        start: The first to take.
        step: Take every so many.
        jobs: Processes.
    """
    cases = list(dict.fromkeys(map(case_of, shipped_launches(dtypes))))[start::step]
    holds = True
    with triton_processes(interpret=False, jobs=jobs) as pool:
        for found in pool.map(tried, cases):
            holds &= found.holds
            print("ok" if found.holds else "NOT OK", found, flush=True)
    return 0 if holds else 1


if __name__ == "__main__":
    import tyro

    sys.exit(tyro.cli(main, prog="python -m validate.emulator.shipped", description=__doc__))
