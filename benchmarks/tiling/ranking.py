"""The best tilings by static clocks, ranked by a model's time: modelled, not measured.

``python -m benchmarks ranking --head-dims 73`` takes, for each pass and head dim, the shipped one
and those of ``candidates.csv`` that need the fewest clocks a query-key pair where everything
overlaps, compiles them, and shows modelled clocks of the pass's kernel. It chooses nothing to ship
before a GPU has timed it.

``--timed tilings.csv --out ranking.csv`` ranks what a GPU has timed, adds the rows that the second
file lacks, and says how well both orders agree with the times.
"""

from __future__ import annotations

import itertools
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import triton

from benchmarks.tiling.modelled import BATCHES, HEADS, timed
from flopcount import commands
from flopcount.tables import table
from kernels.attention.tilings import KERNELS, PASSES, Tiling, padded_head_dim, shipped_tiling
from models.results import Table, markdown, read_table
from validate.emulator.cases import Case
from validate.profile.scheduling import MIDDLE
from validate.profile.timing import SETTINGS, Modelled, is_tie
from validate.witnesses.processes import triton_processes

HEAD_DIMS = (64, 73, 91, 128)
CASE = ("pass", "head_dim", "queries", "prefix")
COLUMNS = (*CASE, "batch", "tiling", "static", "clocks", "triton")
"""Of ``ranking.csv``: static clocks of a query-key pair, and modelled ones of the kernel."""
AGREEMENT = (
    "pass", "head dim", "n", "k", "tilings",
    "static: rank correlation", "its choice", "model: rank correlation", "the model's choice",
    "of all timed",
)  # fmt: skip
CLOSE = 1.05
"""A choice is good where it takes at most this share of the fastest time."""


def static_clocks(pass_name: str, head_dim: int) -> dict[Tiling, float]:
    """Those of ``candidates.csv`` whose code has no fault, the least first.

    Rows of the table may be of other code than the kernels' now: they choose what is looked at.
    """
    from benchmarks.tiling.tune import FACTS, read_tiling

    known = {
        read_tiling(row["tiling"]): float(row["least_clocks"])
        for row in read_table(FACTS)
        if (row["pass"], int(row["padded_head_dim"])) == (pass_name, padded_head_dim(head_dim))
        and not row["faults"]
    }
    return dict(sorted(known.items(), key=lambda x: x[1]))


def best(pass_name: str, head_dim: int, count: int) -> dict[Tiling, float | None]:
    """The shipped tiling and so many others, with their static clocks where they are known."""
    known = static_clocks(pass_name, head_dim)
    shipped = shipped_tiling(pass_name, head_dim, 2, 2 * 512)
    clocks: dict[Tiling, float | None] = {shipped: known.get(shipped)}
    return clocks | dict(itertools.islice(known.items(), count))


def modelled_under(
    pass_name: str, head_dim: int, tiling: Tiling, queries: int, prefix: int,
    batches: tuple[int, ...], settings: tuple[str, ...],
) -> dict[int, Modelled] | str:  # fmt: skip
    """Modelled times of a pass's kernel under a tiling, by batch; or why there are none."""
    import torch

    from kernels.attention import launches, preparation

    (q, k, v), _, grad = Case("bfloat16", head_dim, queries, prefix, HEADS, HEADS).operands(False)
    given = [x.detach() for x in (q, k, v)]
    tilings = {
        name: tiling if name == pass_name else shipped_tiling(name, head_dim, 2, queries + prefix)
        for name in PASSES
    }
    lse = torch.empty(1, HEADS, queries)

    def call() -> Any:
        operands = preparation.padded(*given, None, None, head_dim=head_dim)
        if pass_name == "forward":
            return launches.launch_forward(*operands, 0.1, head_dim, tilings)
        return launches.launch_backward(grad, *operands, grad, lse, 0.1, 3 * [head_dim], tilings)

    try:
        times = timed(call, batches, settings, only=KERNELS[pass_name])
    except Exception as error:  # what does not compile is no candidate
        return f"{type(error).__name__}: {' '.join(str(error).split())[:90]}"
    return {batch: time for (name, batch), time in times.items() if name == pass_name}


def rank(
    head_dims: tuple[int, ...] = HEAD_DIMS,
    passes: tuple[str, ...] = PASSES,
    count: int = 5,
    prefix: int = 0,
    queries: int = 512,
    batches: tuple[int, ...] = BATCHES,
    settings: tuple[str, ...] = SETTINGS,
    timed: Path | None = None,
    out: Path | None = None,
) -> int:
    """Print the best tilings by static clocks with their modelled clocks.

    Args:
        head_dims: Channels of a head.
        passes: Of forward, key_value and query.
        count: How many, beside the shipped one.
        prefix: Keys before the queries'.
        queries: Positions of a sequence.
        batches: Sequences of 8 heads.
        settings: Of the model's parameters.
        timed: A ``tilings.csv``: rank of it what was timed with this prefix, at its batch, in the
            middle of the parameters, and say how well the order agrees with the times.
        out: With ``timed``, the file of modelled clocks; rows that are there are not made again.
    """
    if timed:
        times = read_table(timed)
        written_rows = Table(out or Path("ranking.csv"), COLUMNS, (*CASE, "tiling"))
        rank_timed(
            written_rows, times, itertools.product(passes, head_dims), count, prefix, queries
        )
        print(agreement(read_table(written_rows.path), times))
        return 0
    rows = []
    with triton_processes(interpret=False) as pool:
        for pass_name in passes:
            for head_dim in head_dims:
                shipped: dict[int, Modelled] = {}
                for tiling, static in best(pass_name, head_dim, count).items():
                    task = pass_name, head_dim, tiling, queries, prefix, batches, settings
                    times = pool.submit(modelled_under, *task).result()
                    case = [pass_name, head_dim, " ".join(map(str, tiling)), static]
                    if isinstance(times, str):
                        rows.append([*case, "", times, ""])
                        continue
                    shipped = shipped or times
                    for batch, time in times.items():
                        low, high = time.against(shipped[batch])
                        share = f"{time.middle / shipped[batch].middle:.3f}"
                        tie = " a tie" if time is not shipped[batch] and is_tie(low, high) else ""
                        rows.append([*case, batch, f"{time.middle / 1000:,.1f}", share + tie])
    print(
        table(
            ["pass", "head dim", "tiling", "static", "batch", "thousands of clocks", "of shipped"],
            rows,
            title=f"Modelled, not measured: {queries} queries, {prefix} keys before them",
            keys=5,
        )
    )
    return 0


def rank_timed(
    written_rows: Table,
    times: Sequence[dict[str, str]],
    cases: Iterable[tuple[str, int]],
    count: int,
    prefix: int,
    queries: int,
) -> None:
    """Add modelled clocks of the ``count`` best by static clocks, of those that were timed."""
    from benchmarks.tiling.tune import written

    with triton_processes(interpret=False) as pool:
        for pass_name, head_dim in cases:
            cells = pass_name, str(head_dim), str(queries), str(prefix)
            case = dict(zip(CASE, cells, strict=True))
            of_case = [row for row in times if (case | {"status": "ok"}).items() <= row.items()]
            known = {written(x): y for x, y in static_clocks(pass_name, head_dim).items()}
            candidates = [row for row in of_case if row["tiling"] in known]
            for row in sorted(candidates, key=lambda row: known[row["tiling"]])[:count]:
                if not written_rows.has(**case, tiling=row["tiling"]):
                    batch = int(row["batch"])
                    task = pass_name, head_dim, tiling_of(row), queries, prefix, (batch,), (MIDDLE,)
                    clocks = pool.submit(modelled_under, *task).result()
                    written_rows.add(
                        **case,
                        batch=batch,
                        tiling=row["tiling"],
                        static=known[row["tiling"]],
                        clocks=clocks if isinstance(clocks, str) else round(clocks[batch].middle),
                        triton=triton.__version__,
                    )


def tiling_of(row: dict[str, str]) -> Tiling:
    """The tiling of a row."""
    from benchmarks.tiling.tune import read_tiling

    return read_tiling(row["tiling"])


def agreement(rows: Iterable[dict[str, str]], times: Iterable[dict[str, str]]) -> str:
    """How well static and modelled clocks order tilings, against their times, as a markdown table.

    A choice is the first of an order; its time is shown as a share of the fastest of the tilings
    that were ordered, and the model's of the fastest that was timed, too. The last line has
    medians, and how many choices are within 5 %.
    """
    times = [row for row in times if row["ms"]]
    ms = {(*(row[name] for name in CASE), row["tiling"]): row["ms"] for row in times}
    by_case: dict[tuple[str, ...], list[tuple[float, float, float]]] = {}
    for row in rows:
        if row["clocks"].isdigit():
            case = tuple(row[name] for name in CASE)
            time = float(ms[*case, row["tiling"]])
            each = float(row["static"]), float(row["clocks"]), time
            by_case.setdefault(case, []).append(each)
    lines, numbers = [], []
    for case, tilings in sorted(by_case.items(), key=lambda item: [*map(int, item[0][1:])]):
        measured = [time for *_, time in tilings]
        shares: list[float] = []
        for order in (0, 1):
            clocks = [each[order] for each in tilings]
            # Of equal clocks none is the first: the choice is as good as their mean.
            first = [time for c, time in zip(clocks, measured, strict=True) if c == min(clocks)]
            shares += [rank_correlation(clocks, measured), statistics.fmean(first) / min(measured)]
        every = [float(row["ms"]) for row in times if tuple(row[name] for name in CASE) == case]
        shares.append(shares[3] * min(measured) / min(every))
        numbers.append(shares)
        lines.append([*case, str(len(tilings)), *(f"{x:.2f}" for x in shares)])
    if numbers:
        columns = list(zip(*numbers, strict=True))
        last = [f"{statistics.median(column):.2f}" for column in columns]
        for choice in (1, 3, 4):
            last[choice] += (
                f"; {sum(x <= CLOSE for x in columns[choice])} of {len(lines)} within 5 %"
            )
        lines.append(["median", "", "", "", "", *last])
    return markdown((dict(zip(AGREEMENT, line, strict=True)) for line in lines), AGREEMENT)


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's: Pearson's correlation of ranks, equal values sharing theirs; 0 where all are.

    >>> rank_correlation([1, 2, 3], [10, 30, 20]), rank_correlation([1, 1], [1, 2])
    (0.5, 0.0)
    """

    def ranks(values: Sequence[float]) -> list[float]:
        return [sum(x < v for x in values) + (sum(x == v for x in values) - 1) / 2 for v in values]

    if len(set(one)) == 1 or len(set(other)) == 1:
        return 0.0
    return round(statistics.correlation(ranks(one), ranks(other)), 12)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    sys.exit(commands.run(rank, "python -m benchmarks ranking", arguments))


if __name__ == "__main__":
    main()
