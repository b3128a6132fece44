"""The best tilings by static clocks, ranked by a model's time: modelled, not measured.

``python -m benchmarks ranking --head-dims 73`` takes, for each pass and head dim, the shipped one
and those of ``candidates.csv`` that need the fewest clocks a query-key pair where everything
overlaps, compiles them, and shows modelled clocks of the pass's kernel. It chooses nothing to ship
before a GPU has timed it.
"""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.tiling.modelled import BATCHES, HEADS, timed
from flopcount import commands
from flopcount.tables import table
from kernels.attention.tilings import KERNELS, PASSES, Tiling, padded_head_dim, shipped_tiling
from models.results import read_table
from validate.emulator.cases import Case
from validate.profile.timing import SETTINGS, Modelled, is_tie
from validate.witnesses.processes import triton_processes

HEAD_DIMS = (64, 73, 91, 128)


def best(pass_name: str, head_dim: int, count: int) -> dict[Tiling, float | None]:
    """The shipped tiling and so many others, with their static clocks where they are known.

    Rows of the table may be of other code than the kernels' now: they choose what is looked at.
    """
    from benchmarks.tiling.tune import FACTS, read_tiling

    known = {
        read_tiling(row["tiling"]): float(row["least_clocks"])
        for row in read_table(FACTS)
        if (row["pass"], int(row["padded_head_dim"])) == (pass_name, padded_head_dim(head_dim))
        and not row["faults"]
    }
    shipped = shipped_tiling(pass_name, head_dim, 2, 2 * 512)
    clocks: dict[Tiling, float | None] = {shipped: known.get(shipped)}
    return clocks | dict(sorted(known.items(), key=lambda x: x[1])[:count])


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
    """
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


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    sys.exit(commands.run(rank, "python -m benchmarks ranking", arguments))


if __name__ == "__main__":
    main()
