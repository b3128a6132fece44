"""A model's clocks of our attention and of a peer's, without a GPU: modelled, not measured.

``python -m benchmarks modelled`` compiles our kernels for sm_90, executes the programs of a
sequence of 8 heads (control and addresses alone), and lets :mod:`validate.profile.timing` say how
long a batch of such sequences takes on an H100's 132 multiprocessors, bf16. fla-core's stand beside
them, without a prefix, if it is there. ``docs/profiler.md`` says how far the model is off; shares
whose range has 1 in it are ties.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.tiling.issue import INSTALL, PEER_FOLDER, PEER_KERNELS
from flopcount import commands
from flopcount.devices import find_device
from flopcount.tables import table
from kernels.attention.tilings import KERNELS
from validate.emulator.cases import Case
from validate.emulator.counts import Counts, Traffic, sliced
from validate.emulator.launching import EmulatedLaunch, emulating
from validate.emulator.memory import GlobalMemory
from validate.profile.profiling import busy
from validate.profile.timing import SETTINGS, Modelled, held_at_once, is_tie, modelled
from validate.profile.traces import Program, Traces, TracingMachine
from validate.witnesses.processes import triton_processes

NAMES = {name: key for key, name in KERNELS.items()} | PEER_KERNELS
HEADS = 8
HEAD_DIMS = (54, 64, 73, 78, 91, 96, 128)
PREFIXES = (0, 768, 1792)
BATCHES = (4, 16)
PASSES = ("forward", "backward")


@dataclasses.dataclass(frozen=True)
class Row:
    """Modelled clocks of a kernel, or of all kernels of a pass one after the other: not measured.

    Attributes:
        whose: ``"ours"`` or ``"fla-core"``.
        head_dim, prefix, batch: Of the call; 8 heads.
        phase: Forward or backward.
        kernel: ``"forward"``, ``"key_value"`` or ``"query"``, another's name, or ``"all"``.
        least, middle, most: Of :class:`validate.profile.timing.Modelled`.
    """

    whose: str
    head_dim: int
    prefix: int
    batch: int
    phase: str
    kernel: str
    least: float
    middle: float
    most: float

    @property
    def case(self) -> tuple[int, int, int, str, str]:
        """What is computed, whoever does."""
        return self.head_dim, self.prefix, self.batch, self.phase, self.kernel

    def range(self) -> tuple[float, float]:
        """Thousands of clocks, the least and the most."""
        low, high = Modelled(self.least, self.middle, self.most).range()
        return low / 1000, high / 1000

    def against(self, other: Row) -> tuple[float, float]:
        """As :meth:`validate.profile.timing.Modelled.against`."""
        mine, theirs = (Modelled(x.least, x.middle, x.most) for x in (self, other))
        return mine.against(theirs)


def traced(launch: EmulatedLaunch, distinct: bool = True) -> tuple[Counts, list[Program]]:
    """What a launch executes, control and addresses alone, and what each of its programs does.

    Args:
        launch: What to run.
        distinct: As of :func:`validate.emulator.counts.count`.
    """
    traffic, traces = Traffic(len(launch.operations), distinct), Traces()
    operations: Any = sliced(launch.code, launch.operations)
    control = dataclasses.replace(launch, operations=operations)
    executed = control.run(GlobalMemory(), (traffic, traces), TracingMachine)
    return Counts(launch.code, executed, traffic, launch.declared), traces.programs()


def timed(
    call: Callable[[], Any],
    batches: tuple[int, ...],
    settings: tuple[str, ...],
    only: str | None = None,
) -> dict[tuple[str, int], Modelled]:
    """Modelled times of a call's kernels and of all together, for so many of its sequences.

    The call is one of a single sequence; the programs of others come after its own and do the same.

    Args:
        call: Makes the launches.
        batches: How many sequences there are.
        settings: As of :func:`validate.profile.timing.modelled`.
        only: The kernel to model; others are passed over.
    """
    from validate.profile.stand_in import standing_in

    device = find_device("h100")
    assert device.multiprocessors is not None
    count = device.multiprocessors.count
    times: dict[tuple[str, int], Modelled] = {}

    def run(launch: EmulatedLaunch) -> None:
        if only not in (None, launch.name):
            return
        counts, programs = traced(launch)
        at_once = held_at_once(launch)
        moved = busy(counts, device, len(programs))["bytes"]
        for batch in batches:
            time = modelled(counts, programs * batch, at_once, count, moved * batch, settings)
            for name in (NAMES.get(launch.name, launch.name), "all"):
                times.setdefault((name, batch), Modelled()).add(time)

    with emulating(run), standing_in({}, {}):
        call()
    return times


def rows_of(
    whose: str,
    head_dim: int,
    queries: int,
    prefix: int,
    batches: tuple[int, ...],
    phase: str,
    settings: tuple[str, ...] = SETTINGS,
) -> list[Row]:
    """The modelled clocks of a pass's kernels, by batch; none where the peer is not installed."""
    from validate.profile.stand_in import standing_in

    with standing_in({}, {}):
        call = (_ours if whose == "ours" else _peer)(head_dim, queries, prefix, phase)
        return [
            Row(whose, head_dim, prefix, batch, phase, name, time.least, time.middle, time.most)
            for (name, batch), time in (timed(call, batches, settings) if call else {}).items()
        ]


def _ours(head_dim: int, queries: int, prefix: int, phase: str) -> Callable[[], Any]:
    from kernels.attention import prefix_attention

    tensors, _, grad = Case("bfloat16", head_dim, queries, prefix, HEADS, HEADS).operands(False)
    if phase == "forward":
        return lambda: prefix_attention(*tensors)
    with emulating(lambda launch: None):
        out = prefix_attention(*tensors)
    import torch

    return lambda: torch.autograd.grad(out, tensors, grad)


def _peer(head_dim: int, queries: int, prefix: int, phase: str) -> Callable[[], Any] | None:
    sys.path.insert(0, str(PEER_FOLDER.resolve()))
    try:
        from fla.ops.attn import parallel
    except ImportError:
        return None
    import torch

    q = torch.empty(1, queries, HEADS, head_dim, dtype=torch.bfloat16)
    lse = torch.empty(1, queries, HEADS)

    def call() -> None:
        if phase == "forward":
            parallel.parallel_attn_fwd(q, q, q, None, None, 0.1)
        else:
            parallel.parallel_attn_bwd(q, q, q, q, None, lse, q, scale=0.1)

    return call


def compared(rows: list[Row], before: list[Row]) -> list[list[str]]:
    """Each of our rows, as a share of the peer's and of what it was before."""
    peers = {row.case: row for row in rows if row.whose != "ours"}
    olds = {row.case: row for row in before if row.whose == "ours"}

    def share(row: Row, others: dict[Any, Row]) -> str:
        if row.case not in others:
            return ""
        low, high = row.against(others[row.case])
        middle = row.middle / others[row.case].middle
        return f"{middle:.2f} ({low:.2f} to {high:.2f})" + ", a tie" * is_tie(low, high)

    return [
        [
            str(row.head_dim), str(row.prefix), str(row.batch), row.phase, row.kernel,
            f"{row.middle / 1000:,.1f}", "{:,.1f} to {:,.1f}".format(*row.range()),
            share(row, peers), share(row, olds),
        ]
        for row in rows
        if row.whose == "ours"
    ]  # fmt: skip


def read(path: Path) -> list[Row]:
    """Rows that were written."""
    kinds = {field.name: {"int": int, "float": float}.get(str(field.type), str)
             for field in dataclasses.fields(Row)}  # fmt: skip
    with path.open(encoding="utf-8", newline="") as file:
        return [Row(**{k: kinds[k](x) for k, x in row.items()}) for row in csv.DictReader(file)]


def page_tables(path: Path, before: Path | None, profile: Path | None) -> tuple[str, str]:
    """Clocks by size, and which aims are reached, as :mod:`benchmarks.tiling.aims` shows them."""
    from benchmarks.counters import profiler, run
    from benchmarks.tiling import aims

    rows, others = read(path), read(before) if before else []
    measured = []
    if profile:
        shapes = run.kernel_cases()
        kernels = profiler.parse(profile.read_text(encoding="utf-8"))
        _, *groups = run.between_markers(kernels, 1 + len(shapes))
        measured = aims.measured_rows(zip(shapes, groups, strict=True))
    return aims.clocks_by_size(rows, others, measured), aims.aims_table(rows, others)


def compare(
    head_dims: tuple[int, ...] = HEAD_DIMS,
    prefixes: tuple[int, ...] = PREFIXES,
    batches: tuple[int, ...] = BATCHES,
    passes: tuple[str, ...] = PASSES,
    whose: tuple[str, ...] = ("ours", "fla-core"),
    settings: tuple[str, ...] = SETTINGS,
    queries: int = 512,
    out: Path | None = None,
    before: Path | None = None,
    pages: Path | None = None,
    profile: Path | None = None,
) -> int:
    """Print modelled clocks of both passes.

    Args:
        head_dims: Channels of a head.
        prefixes: Keys before the queries'; the peer has none.
        batches: Sequences of 8 heads.
        passes: Forward and backward.
        whose: Ours and the peer's.
        settings: Of the model's parameters; without ``least`` and ``most`` there is no range.
        queries: Positions of a sequence.
        out: A CSV file to write, as rows come.
        before: Rows of other kernels, to compare with.
        pages: Rows to print as the documentation's tables; then nothing is modelled.
        profile: With ``pages``, the profiler's output, for measured clocks beside.
    """
    if pages:
        print(*page_tables(pages, before, profile), sep="\n")
        return 0
    rows: list[Row] = []
    names = [field.name for field in dataclasses.fields(Row)]
    with triton_processes(interpret=False) as pool:
        for phase, prefix, head_dim, who in itertools.product(passes, prefixes, head_dims, whose):
            if who == "ours" or not prefix:
                task = rows_of, who, head_dim, queries, prefix, batches, phase, settings
                rows += pool.submit(*task).result()
                if out:
                    with out.open("w", encoding="utf-8", newline="") as file:
                        writer = csv.DictWriter(file, names)
                        writer.writeheader()
                        writer.writerows(map(dataclasses.asdict, rows))
    headings = (
        "head dim", "prefix", "batch", "pass", "kernel", "clocks", "range", "of fla-core's",
        "of before",
    )  # fmt: skip
    print(
        table(
            headings,
            compared(rows, read(before) if before else []),
            title=f"Modelled, not measured: thousands of clocks of an H100, {queries} queries",
            keys=5,
        )
    )
    if not any(row.whose != "ours" for row in rows):
        print(f"\nWithout the peer: {INSTALL}")
    return 0


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    sys.exit(commands.run(compare, "python -m benchmarks modelled", arguments))


if __name__ == "__main__":
    main()
