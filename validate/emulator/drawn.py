"""Drawn calls of the attention, executed without a GPU: ``python -m validate.emulator.drawn``.

Any lengths, head dims, groups and dtypes, so that each call compiles kernels of its own, with the
shipped tilings. They are judged as shipped launches are: outputs and gradients against plain
PyTorch in float64, counts against the counter, and what is touched too early or not at all.

A row of ``docs/emulator-drawn.csv`` is written as each call ends, with a digest of its kernels; a
call that has one of the same kernels is not executed again.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Collection, Iterable, Iterator

from flopcount.commands import defaults_of
from validate.compiled_record import DOCS
from validate.emulator.cases import Case, kernels_of
from validate.emulator.shipped import (
    Finding,
    Row,
    Watched,
    cpu_seconds,
    digest_of,
    judged,
    judgements,
    missed,
    publish,
    read,
    write,
)
from validate.witnesses.compiled_code import DTYPES
from validate.witnesses.processes import triton_processes

RECORD, MARK = DOCS / "emulator-drawn.csv", "drawn"
DRAWN = (
    "dtype", "head dim", "queries", "prefix", "heads", "key heads", "apart", "pairs", "batch",
)  # fmt: skip
COLUMNS = ("seed", *DRAWN, "share", "missed", "unsafe", "seconds", "digest")
LONGEST = {"bfloat16": 150, "float16": 150, "float32": 90}
"""Queries, and positions of the prefix, at most: products of fp32 take an instruction for each
multiply-add of a lane."""
IN_PLACE = (16, 32, 64, 96, 128, 192, 256)
"""Head dims that kernels read in place, often used."""


def draw(seed: int) -> Case:
    """A call of the attention.

    >>> draw(0) == draw(0) != draw(1)
    True
    """
    drawn = random.Random(seed)
    dtype = drawn.choice(DTYPES)
    head_dim = drawn.choice((drawn.randint(1, 256), drawn.choice(IN_PLACE)))
    key_heads, group = drawn.choice(((1, 1), (1, 3), (2, 1), (2, 2)))
    return Case(
        dtype,
        head_dim,
        queries=drawn.randint(1, LONGEST[dtype]),
        prefix=drawn.choice((0, drawn.randint(1, LONGEST[dtype]))),
        heads=key_heads * group,
        key_heads=key_heads,
        apart=drawn.random() < 0.5,
        pairs=drawn.choice((0, drawn.randint(0, head_dim // 2))),
        batch=1 if dtype == "float32" else drawn.randint(1, 2),
    )


def identified(seed: int) -> Row:
    """What tells a seed's row from those of other calls and kernels."""
    case = draw(seed)
    values = {name: getattr(case, name.replace(" ", "_")) for name in DRAWN}
    cells = {"seed": str(seed)} | {name: str(value or "") for name, value in values.items()}
    return cells | {"digest": digest_of(kernels_of(case))}


def tried(seed: int, row: Row | None = None) -> tuple[Row, Finding | None]:
    """A seed's row, with CPU seconds, and what became of its call.

    Args:
        seed: What to draw.
        row: An earlier row: returned as it is, and alone, where call and kernels are the same.
    """
    start, cells = cpu_seconds(), identified(seed)
    if row is not None and row.items() >= cells.items():
        return row, None
    finding = judged(draw(seed), Watched())
    return cells | finding.cells() | {"seconds": f"{cpu_seconds() - start:.0f}"}, finding


def recorded() -> list[Row]:
    """The record's rows."""
    return read(RECORD, COLUMNS)


def differences(rows: Iterable[Row]) -> Iterator[tuple[str, dict[str, int]]]:
    """What was missed, by call, in rows of the record; a row of other kernels is off."""
    by_seed = {int(row["seed"]): row for row in rows}
    with triton_processes(interpret=False, jobs=1) as pool:
        identities = pool.map(identified, by_seed)
        for (seed, row), identity in zip(by_seed.items(), identities, strict=True):
            yield str(draw(seed)), missed(row if row.items() >= identity.items() else None)


def verdict(rows: Collection[Row]) -> str:
    """What has been drawn, how large errors are, and what does not hold."""
    dims = [int(row["head dim"]) for row in rows]
    range_ = f"head dims {min(dims)} to {max(dims)}" if dims else "none yet"
    whole = sum(dim % 16 == 0 for dim in dims)
    of = {
        "in place": whole,
        "with a prefix": sum(bool(row["prefix"]) for row in rows),
        "apart": sum(bool(row["prefix"] and row["apart"]) for row in rows),
        "with grouped heads": sum(row["heads"] != row["key heads"] for row in rows),
        "turned": sum(bool(row["pairs"]) for row in rows),
    }
    listed = ", ".join(f"{number} {name}" for name, number in of.items())
    run = f"{len(rows)} drawn calls have been run, {range_}: {listed}."
    return "\n".join((run, *judgements(rows, DRAWN[1:])))


@defaults_of(triton_processes)
def main(draws: int = 24, *, jobs: int) -> int:
    """Execute drawn calls; exit with 1 where one is not right, counted, or safe.

    Args:
        draws: How many seeds, from 0 on.
        jobs: Processes.
    """
    earlier = {int(row["seed"]): row for row in recorded()}
    rows, holds = dict(earlier), True
    with triton_processes(interpret=False, jobs=jobs) as pool:
        for row, finding in pool.map(tried, range(draws), map(earlier.get, range(draws))):
            rows[int(row["seed"])] = row
            ordered = [rows[seed] for seed in sorted(rows)]
            write(ordered, RECORD, COLUMNS)
            publish(MARK, verdict(ordered))
            if finding is not None:
                holds &= finding.holds
                print("ok" if finding.holds else "NOT OK", finding, flush=True)
    print(f"{draws} calls have been executed as they are")
    return 0 if holds else 1


if __name__ == "__main__":
    import tyro

    sys.exit(tyro.cli(main, prog="python -m validate.emulator.drawn", description=__doc__))
