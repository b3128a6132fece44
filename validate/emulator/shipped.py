"""Every launch that is shipped, executed without a GPU: ``python -m validate.emulator.shipped``.

For each, outputs and gradients are held against plain PyTorch in float64, what is executed against
the counter, and what is touched too early or not at all is found. A row of ``docs/emulator.csv`` is
written as each ends, with a digest of the code and the tilings that it is of; what has one is not
executed again. ``--limit`` takes so many.
"""

from __future__ import annotations

import csv
import dataclasses
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from flopcount.commands import defaults_of
from validate.compiled_record import DOCS, digest, shipped_launches
from validate.emulator.cases import Case, called, difference, errors, seen_in
from validate.emulator.counts import Counts, Traffic
from validate.emulator.launching import EmulatedLaunch
from validate.emulator.memory import GlobalMemory, MachineError
from validate.emulator.safety import Safety
from validate.witnesses.compiled_code import DTYPES, KEY_HEADS, Launch
from validate.witnesses.processes import triton_processes

RECORD = DOCS / "emulator.csv"
COLUMNS = (
    "dtype", "head dim", "prefix", "group", "turned", "tuned for", "key heads", "share", "missed",
    "unsafe", "seconds", "digest",
)  # fmt: skip
QUERIES, PREFIX = 144, 80
"""Several tiles of every kernel, and one that is not whole; multiples of 16, as those of the
record, by which kernels are specialised."""
FEWER_HEADS = {1: 2, 4: 4}
"""Key-value heads, by how many query heads each of them has, of which kernels are compiled as of
:data:`KEY_HEADS`: only strides and numbers of heads differ, and by which multiples these are."""

Row = dict[str, str]


def case_of(launch: Launch, key_heads: int = KEY_HEADS) -> Case:
    """A call that makes a launch."""
    return Case(
        launch.dtype,
        launch.head_dim,
        QUERIES,
        PREFIX if launch.prefix else 0,
        key_heads * launch.group,
        key_heads,
        pairs=launch.head_dim // 4 if launch.turned else 0,
    )


def compiled(case: Case) -> list[str]:
    """What tells apart the compiled kernels of a call, in the order of their launches."""
    kernels: list[str] = []
    called(case, lambda launch: kernels.append(launch.compiled), values=False)
    return kernels


def alike(launch: Launch) -> Case:
    """A call with fewer heads if it launches the same compiled kernels, else the launch's."""
    every, some = case_of(launch), case_of(launch, FEWER_HEADS.get(launch.group, KEY_HEADS))
    return some if compiled(some) == compiled(every) else every


@dataclasses.dataclass(frozen=True)
class Finding:
    """What became of a case.

    Attributes:
        case: The case.
        share: Largest error, as a share of what it may be.
        missed: What the counter and the kernels say minus what was executed.
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
    """Execute a case, results included, and count what it executes."""
    unsafe: list[str] = []
    counts: list[Counts] = []

    def run(launch: EmulatedLaunch) -> None:
        safety, traffic = Safety(), Traffic(len(launch.operations))
        try:
            executed = launch.run(GlobalMemory(), (safety, traffic))
            counts.append(Counts(launch.code, executed, traffic, launch.declared))
        except MachineError as error:
            unsafe.append(f"{launch.name} {error}")
        unsafe.extend(f"{launch.name} {found}" for found in safety.findings)

    share = max(errors(case, run))
    return Finding(case, share, difference(case, seen_in(case, counts)), tuple(unsafe))


def tried_launch(launch: Launch) -> tuple[Row, Finding]:
    """A launch's row, and what became of it."""
    start = time.perf_counter()
    found = tried(alike(launch))
    cells = (
        launch.dtype, launch.head_dim, launch.prefix, launch.group, launch.turned or "",
        launch.keys or "", found.case.key_heads, f"{found.share:.3f}",
        sum(map(abs, found.missed.values())), len(found.unsafe),
        f"{time.perf_counter() - start:.0f}", digest(launch),
    )  # fmt: skip
    return dict(zip(COLUMNS, map(str, cells), strict=True)), found


def read(path: Path = RECORD) -> list[Row]:
    """The record's rows; none where there is none, or one with other columns."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        return list(reader) if tuple(reader.fieldnames or ()) == COLUMNS else []


def key(launch: Launch) -> tuple[str, ...]:
    """What a launch's row starts with."""
    cells = (launch.dtype, launch.head_dim, launch.prefix, launch.group, launch.turned or "")
    return (*map(str, cells), str(launch.keys or ""))


def current(rows: Iterable[Row]) -> dict[tuple[str, ...], Row]:
    """Rows that are of the code at hand, by launch."""
    digests = {key(launch): digest(launch) for launch in shipped_launches()}
    rows_of = {tuple(row[name] for name in COLUMNS[:6]): row for row in rows}
    return {at: row for at, row in rows_of.items() if digests.get(at) == row["digest"]}


def write(rows: Iterable[Row], path: Path = RECORD) -> None:
    """The record, in the order of the launches."""
    order = [key(launch) for launch in shipped_launches()]
    by_key = {tuple(row[name] for name in COLUMNS[:6]): row for row in rows}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(by_key[at] for at in order if at in by_key)


def in_turn(launches: Iterable[Launch]) -> Iterator[Launch]:
    """Launches with those that share kernels side by side, and every dtype soon."""
    yield from sorted(launches, key=lambda x: (x.head_dim, DTYPES.index(x.dtype)))


@defaults_of(triton_processes)
def main(dtypes: tuple[str, ...] = DTYPES, limit: int | None = None, *, jobs: int) -> int:
    """Execute shipped launches; exit with 1 where one is not right, counted, or safe.

    Args:
        dtypes: Of bfloat16, float16 and float32.
        limit: How many to execute, at most.
        jobs: Processes.
    """
    rows = current(read())
    write(rows.values())  # without those of other code
    wanted = [x for x in in_turn(shipped_launches(dtypes)) if key(x) not in rows][:limit]
    holds = True
    with triton_processes(interpret=False, jobs=jobs) as pool:
        for launch, (row, found) in zip(wanted, pool.map(tried_launch, wanted), strict=True):
            holds &= found.holds
            rows[key(launch)] = row
            write(rows.values())
            print("ok" if found.holds else "NOT OK", found, flush=True)
    print(f"{len(rows)} of {len(shipped_launches())} launches have been executed as they are")
    return 0 if holds else 1


if __name__ == "__main__":
    import tyro

    sys.exit(tyro.cli(main, prog="python -m validate.emulator.shipped", description=__doc__))
