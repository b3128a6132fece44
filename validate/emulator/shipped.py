"""Every launch that is shipped, executed without a GPU: ``python -m validate.emulator.shipped``.

For each, outputs and gradients are held against plain PyTorch in float64, what is executed against
the counter, and what is touched too early or not at all is found. What is executed are the kernels
of ``docs/kernels.csv``, each with its digest; fewer heads and positions change none of them. Copies
to padded heads and the rotary embedding, whose kernels know more of the lengths, are executed and
held against plain PyTorch by themselves, of the record's lengths, each once.

A row of ``docs/emulator.csv`` is written as each launch ends, with a digest of its kernels; what
has one is not executed again. ``--limit`` takes so many.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import hashlib
import os
import statistics
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from flopcount.commands import defaults_of
from kernels.attention import tilings
from kernels.attention.tilings import padded_head_dim
from validate.compiled_record import DOCS, launched_kernels, shipped_kernels, shipped_launches
from validate.emulator.cases import Case, difference, error_share, errors, seen_in
from validate.emulator.counts import Counts, Traffic
from validate.emulator.launching import EmulatedLaunch, emulating
from validate.emulator.memory import GlobalMemory, MachineError
from validate.emulator.safety import Safety
from validate.witnesses.compiled_code import DTYPES, Kernel, Launch, make_launches
from validate.witnesses.processes import triton_processes

RECORD, PAGE = DOCS / "emulator.csv", DOCS / "emulator.md"
COLUMNS = (
    "dtype", "head dim", "prefix", "group", "turned", "tuned for", "key heads", "kernels", "share",
    "missed", "unsafe", "seconds", "digest",
)  # fmt: skip
BATCH, QUERIES, PREFIX = 2, 144, 80
"""Several tiles of every kernel, and one that is not whole; multiples of 16, as those of the
record, by which kernels are specialised."""
KEY_HEADS = {1: 2, 4: 4}
"""Key-value heads, by how many query heads each of them has: as many as keep kernels what they are
with more, only strides and numbers of heads differ, and by which multiples these are."""
PREPARATION = "prepare_rows"
MARK = "executed"
"""Of the verdict on the page."""

Row = dict[str, str]


def case_of(launch: Launch) -> Case:
    """A call that makes a launch."""
    key_heads = KEY_HEADS[launch.group]
    return Case(
        launch.dtype,
        launch.head_dim,
        QUERIES,
        PREFIX if launch.prefix else 0,
        key_heads * launch.group,
        key_heads,
        pairs=launch.head_dim // 4 if launch.turned else 0,
        batch=BATCH,
    )


@contextlib.contextmanager
def shipping(launch: Launch) -> Iterator[None]:
    """Let the public functions, and the counter, take a launch's tilings at any number of keys."""
    size, padded = 4 if launch.dtype == "float32" else 2, padded_head_dim(launch.head_dim)
    shipped = {(name, size, padded): {0: tiling} for name, tiling in launch.shipped.items()}
    with mock.patch.object(tilings, "_tuned", return_value=shipped):
        yield


def executed_kernels(launch: Launch) -> list[Kernel]:
    """The kernels that a launch is executed for: all, but of preparations those not before it."""
    own = {kernel for first, kernel in shipped_kernels() if first == launch}
    kernels = dict.fromkeys(launched_kernels()[launch])
    return [x for x in kernels if x.name != PREPARATION or x in own]


@functools.cache
def digests() -> dict[Launch, str]:
    """Of the kernels that each launch is executed for."""
    return {launch: digest_of(executed_kernels(launch)) for launch in shipped_launches()}


def digest_of(kernels: Iterable[Kernel]) -> str:
    """What tells kernels from others."""
    names = sorted(kernel.digest for kernel in kernels)
    return hashlib.sha256(" ".join(names).encode()).hexdigest()[:12]


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

    def cells(self) -> Row:
        """What a record says of it: errors' share, sum of what was missed, how many unsafe."""
        missed = sum(map(abs, self.missed.values()))
        return {
            "share": f"{self.share:.3f}",
            "missed": str(missed),
            "unsafe": str(len(self.unsafe)),
        }


class Watched:
    """Runs launches, and keeps what is seen.

    Attributes:
        counts: What each executed.
        unsafe: What was touched too early or not at all.
        digests: Of the kernels.
    """

    def __init__(self) -> None:
        self.counts: list[Counts] = []
        self.unsafe: list[str] = []
        self.digests: set[str] = set()

    def run(self, launch: EmulatedLaunch) -> None:
        """Execute a launch, results included, and count what it executes."""
        safety, traffic = Safety(), Traffic(len(launch.operations))
        self.digests.add(launch.digest)
        try:
            executed = launch.run(GlobalMemory(), (safety, traffic))
            self.counts.append(Counts(launch.code, executed, traffic, launch.declared))
        except MachineError as error:
            self.unsafe.append(f"{launch.name} {error}")
        self.unsafe.extend(f"{launch.name} {finding}" for finding in safety.findings)


def judged(case: Case, seen: Watched) -> Finding:
    """What becomes of a call, whose launches ``seen`` runs: each of them once."""
    share = max(errors(case, seen.run))
    missed = difference(case, seen_in(case, seen.counts))
    return Finding(case, share, missed, tuple(seen.unsafe))


def prepared(launch: EmulatedLaunch, run: Callable[[EmulatedLaunch], Any]) -> float:
    """Execute a preparation on drawn operands: the largest error as a share of what it may be."""
    import torch

    from kernels.attention.reference import reference_preparation

    *operands, table = (x for x in launch.arguments if isinstance(x, torch.Tensor))
    count, back = len(operands) // 2, -1 if launch.constants["BACK"] else 1
    drawn = torch.Generator().manual_seed(0)
    angles = 3 * torch.randn(1, table.shape[1], table.shape[2] // 2, generator=drawn)
    table[0] = torch.stack((angles.cos(), angles.sin()), -1).flatten(-2)
    for source, target in zip(operands[:count], operands[count:], strict=True):
        source.normal_(generator=drawn)
        target.fill_(float("nan"))
    run(launch)
    shares = []
    for source, target in zip(operands[:count], operands[count:], strict=True):
        turned = back * angles[:, -source.shape[1] :] if angles.numel() else None
        channels = target.shape[-1]
        usual, truth = (
            reference_preparation(x, turned, max(x.shape[-1], channels))[..., :channels]
            for x in (source, source.double())
        )
        shares.append(error_share(target, usual, truth, 2))
    return max(shares)


def tried(launch: Launch, kernels: Collection[Kernel]) -> Finding:
    """Execute a launch's kernels.

    Raises:
        ValueError: If these are others than were asked for.
    """
    case, seen, rows = case_of(launch), Watched(), Watched()
    wanted = {kernel.digest: kernel for kernel in kernels}
    shares = []

    def prepare(emulated: EmulatedLaunch) -> None:
        if (
            emulated.name == PREPARATION
            and emulated.digest in wanted
            and emulated.digest not in rows.digests
        ):
            shares.append(prepared(emulated, rows.run))

    with shipping(launch):
        finding = judged(case, seen)
    if any(kernel.name == PREPARATION for kernel in kernels):
        with emulating(prepare):
            make_launches(launch)
    declared = sum(
        abs(counts.declared["bytes"] - counts.global_bytes("distinct bytes"))
        for counts in rows.counts
    )
    executed = seen.digests | rows.digests
    if lacking := [kernel for digest, kernel in wanted.items() if digest not in executed]:
        raise ValueError(f"{case} must launch the kernels of {launch}, lacks {lacking}")
    return dataclasses.replace(
        finding,
        share=max([finding.share, *shares]),
        missed=finding.missed | {"declared by preparations of the record's lengths": declared},
        unsafe=(*finding.unsafe, *rows.unsafe),
    )


def tried_launch(launch: Launch, kernels: Collection[Kernel]) -> tuple[Row, Finding]:
    """A launch's row, with CPU seconds, and what became of it."""
    start = cpu_seconds()
    finding = tried(launch, kernels)
    return {
        **dict(zip(COLUMNS, key(launch), strict=False)),
        "key heads": str(finding.case.key_heads),
        "kernels": str(len(kernels)),
        **finding.cells(),
        "seconds": f"{cpu_seconds() - start:.0f}",
        "digest": digest_of(kernels),
    }, finding


def cpu_seconds() -> float:
    """Of this process, and of the assemblers that it started."""
    return sum(os.times()[:4])


def read(path: Path = RECORD, columns: Sequence[str] = COLUMNS) -> list[Row]:
    """A record's rows; none where there is none, or one with other columns."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        return list(reader) if tuple(reader.fieldnames or ()) == columns else []


def key(launch: Launch) -> tuple[str, ...]:
    """What a launch's row starts with."""
    cells = (launch.dtype, launch.head_dim, launch.prefix, launch.group, launch.turned or "")
    return (*map(str, cells), str(launch.keys or ""))


def current(rows: Iterable[Row]) -> dict[tuple[str, ...], Row]:
    """Rows that are of the code at hand, by launch."""
    expected = {key(launch): digest for launch, digest in digests().items()}
    rows_of = {tuple(row[name] for name in COLUMNS[:6]): row for row in rows}
    return {at: row for at, row in rows_of.items() if expected.get(at) == row["digest"]}


def differences(rows: Iterable[Row]) -> Iterator[tuple[str, dict[str, int]]]:
    """What was missed, by launch, in rows of the record; a launch without a current row is off."""
    executed = current(rows)
    for at in map(key, shipped_launches()):
        row = executed.get(at)
        yield " ".join(filter(None, at)), missed(row)


def missed(row: Row | None) -> dict[str, int]:
    """What a row says was missed, in sum; without one, that nothing was executed."""
    return {"missed": int(row["missed"])} if row else {"not executed with these kernels": 1}


def in_order(rows: Iterable[Row]) -> list[Row]:
    """Rows in the order of the launches."""
    by_key = {tuple(row[name] for name in COLUMNS[:6]): row for row in rows}
    return [by_key[at] for at in map(key, shipped_launches()) if at in by_key]


def write(rows: Iterable[Row], path: Path = RECORD, columns: Sequence[str] = COLUMNS) -> None:
    """A record."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def verdict(rows: Collection[Row]) -> str:
    """How many launches have been executed, how large errors are, and which do not hold."""
    run = f"{len(rows)} of {len(shipped_launches())} shipped launches have been run."
    return "\n".join((run, *judgements(rows, COLUMNS[1:6])))


def judgements(rows: Collection[Row], described: Iterable[str]) -> Iterator[str]:
    """How large errors are, and what does not hold, with the columns that describe it."""
    for name, what in (("missed", "other counts than expected"), ("unsafe", "unsafe accesses")):
        bad = [row for row in rows if row[name] != "0"]
        yield f"{len(bad) or 'None'} had {what}."
    for dtype in DTYPES:
        shares = [float(row["share"]) for row in rows if row["dtype"] == dtype]
        if shares:
            range_ = f"{min(shares):.2f} to {max(shares):.2f}"
            median = f"median {statistics.median(shares):.2f}"
            yield f"Largest errors in {dtype} are {range_} of the bound, {median}."
    over = [row for row in rows if float(row["share"]) > 1]
    yield f"Errors of {len(rows) - len(over)} are within the bound."
    for row in rows:
        if row in over or row["missed"] != "0" or row["unsafe"] != "0":
            where = ", ".join(f"{name} {row[name]}" for name in described if row[name])
            named = (f", {row[name]} {name}" for name in ("missed", "unsafe") if row[name] != "0")
            yield f"**{row['dtype']}, {where}: {row['share']} of the bound{''.join(named)}.**"


def publish(mark: str, text: str) -> None:
    """Write a verdict between its marks in ``docs/emulator.md``."""
    from models.results import between_marks

    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(between_marks(page, mark, f"{text}\n"), encoding="utf-8")


def save(rows: Iterable[Row]) -> None:
    """The record, and the verdict of it as written in ``docs/emulator.md``."""
    rows = in_order(rows)
    write(rows)
    publish(MARK, verdict(rows))


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
    save(rows.values())  # without those of other code
    wanted = [x for x in in_turn(shipped_launches(dtypes)) if key(x) not in rows][:limit]
    kernels = [executed_kernels(launch) for launch in wanted]
    holds = True
    with triton_processes(interpret=False, jobs=jobs) as pool:
        tried_launches = pool.map(tried_launch, wanted, kernels)
        for launch, (row, finding) in zip(wanted, tried_launches, strict=True):
            holds &= finding.holds
            rows[key(launch)] = row
            save(rows.values())
            print("ok" if finding.holds else "NOT OK", finding, flush=True)
    print(f"{len(rows)} of {len(shipped_launches())} launches have been executed as they are")
    return 0 if holds else 1


if __name__ == "__main__":
    import tyro

    sys.exit(tyro.cli(main, prog="python -m validate.emulator.shipped", description=__doc__))
