"""Search for the fastest tiling of each kernel: ``python -m benchmarks tune --out DIR``.

For each padded head dim and pass, candidates are pruned by what fits the hardware and
timed on the hybrid layer; the fastest few are timed on the other shapes too. ``tilings.csv`` grows
as they come, and a later run adds what is missing. ``tuned.csv`` holds what to ship for each pass,
head dim and number of keys, and ``--ship`` puts it where the kernels look. ``--dry-run`` lists the
candidates and times nothing.

The passes are ``kernels.attention.tilings.PASSES``. The two backward passes run together: first the
one for keys and values is varied, then the one for queries beside the best of the first.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import csv
import functools
import hashlib
import itertools
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import triton
import tyro
from torch import Tensor

from benchmarks.attention.cases import shape_of
from benchmarks.attention.implementations import Attend
from benchmarks.attention.shapes import Shape
from benchmarks.attention.timing import (
    SIZES,
    draw,
    errors,
    one_line,
    require_working_device,
    timed,
)
from benchmarks.measurement import require_gpu, working_dtype
from flopcount import commands
from kernels.attention.launches import launch_backward, launch_forward
from kernels.attention.preparation import padded
from kernels.attention.tilings import (
    PASSES,
    TUNED,
    Tiling,
    padded_head_dim,
    shipped_tiling,
    tuned_tilings,
)
from models.processes import fresh_processes
from models.results import Table, environment, read_table, write_environment
from validate.compiled_record import MISSING, VARIANTS
from validate.witnesses.compiled_code import (
    QUERIES,
    CompiledKernel,
    Launch,
    compile_all,
    compile_launch,
    kernel_code,
)
from validate.witnesses.processes import triton_processes

REGISTERS = 255
"""The most that a thread can have."""
REGISTERS_BESIDE_TILES = 47
"""What addresses, row maxima and sums take beside accumulators and scores."""
REGISTER_FILE = 65_536
CAPS = {4: (None, 168, 128), 8: (None, 128), 16: (None,)}
"""By warps, registers of a thread that let one, two, three or four programs share the file."""
SHARED_MEMORY = 227 * 1024
"""Bytes that one program may take on Hopper."""

OWNED = (64, 128, 256)
VISITED = (16, 32, 64, 128)
WARPS = (4, 8, 16)
STAGES = (2, 3)
HEAD_DIMS = (80, 96, 64, 128)
"""The padded head dims of the article's models. A narrower head's time has a pass that pads in it,
and its code can take fewer registers: forward in 64 × 32 tiles 126 at 91, but 172 at 96."""
CLOSE = 1.02
"""Times that differ by less are taken for equal."""
FACTS = Path(__file__).parent / "candidates.csv"
FACT_COLUMNS = (
    "pass",
    "padded_head_dim",
    "tiling",
    "registers",
    "programs_per_multiprocessor",
    "least_clocks",
    "faults",
    "code",
    "triton",
)
KEPT = 6
"""Of a head dim's first shape, how many of the fastest are timed on its other shapes."""

# What each pass holds of its owned block and of a visited one, and how many tiles of scores.
OPERANDS_OWNED = {"forward": 1, "key_value": 2, "query": 2}
ACCUMULATORS = {"forward": 1, "key_value": 2, "query": 1}
SCORE_TILES = {"forward": 1, "key_value": 2, "query": 2}

COLUMNS = (
    "device",
    *SIZES,
    "dtype",
    "pass",
    "tiling",
    "status",
    "ms",
    "message",
)
KEY = (*SIZES, "dtype", "pass", "tiling")


def fits(pass_name: str, head_dim: int, tiling: Tiling, element_size: int = 2) -> bool:
    """Whether a tiling can run well on Hopper, by what is known before compiling.

    - The owned block is a multiple of the visited one, and has 64 rows for each warpgroup, as
      wgmma wants.
    - Operands fit shared memory: the owned ones once, the visited ones once per stage.
    - Accumulators and tiles of scores, fp32, fit the registers of the program's threads.

    >>> fits("forward", 73, Tiling(128, 64, 8, 3)), fits("forward", 91, Tiling(128, 128, 4, 2))
    (True, False)
    """
    owned, visited = blocks(pass_name, tiling)
    padded = padded_head_dim(head_dim)
    if owned % visited or owned < 64 * (tiling.num_warps // 4):
        return False
    resident = OPERANDS_OWNED[pass_name] * owned + 2 * tiling.num_stages * visited
    if resident * padded * element_size > SHARED_MEMORY:
        return False
    values = ACCUMULATORS[pass_name] * owned * padded + SCORE_TILES[pass_name] * owned * visited
    threads = 32 * tiling.num_warps
    registers = min(tiling.max_registers or REGISTERS, REGISTER_FILE // threads)
    return values <= (registers - REGISTERS_BESIDE_TILES) * threads


def blocks(pass_name: str, tiling: Tiling) -> tuple[int, int]:
    """Rows of the block that a program owns, and of those that it visits."""
    if pass_name == "key_value":
        return tiling.block_keys, tiling.block_queries
    return tiling.block_queries, tiling.block_keys


def candidates(pass_name: str, head_dim: int, num_keys: int, element_size: int = 2) -> list[Tiling]:
    """The shipped tiling, then every other of the grid that fits, the most promising first.

    What is known of a candidate from compiling it prunes and orders the list: see :func:`facts`.
    Those that have a fault are left out, and those whose cap on registers the code meets without.
    """
    if pass_name not in PASSES:
        raise ValueError(f"pass_name must be one of {PASSES}, got {pass_name!r}")
    shipped = shipped_tiling(pass_name, head_dim, element_size, num_keys)
    tilings = [shipped]
    for owned, visited, warps, stages in itertools.product(OWNED, VISITED, WARPS, STAGES):
        sides = (visited, owned) if pass_name == "key_value" else (owned, visited)
        for cap in CAPS[warps]:
            tiling = Tiling(*sides, warps, stages, cap)
            if tiling not in tilings and fits(pass_name, head_dim, tiling, element_size):
                tilings.append(tiling)
    known = facts()
    case = pass_name, padded_head_dim(head_dim)

    def is_promising(tiling: Tiling) -> bool:
        fact = known.get((*case, tiling))
        if fact is None:
            return True
        uncapped = known.get((*case, tiling._replace(max_registers=None)))
        capped = tiling.max_registers is not None
        return not fact.faulty and not (
            capped and uncapped is not None and uncapped.registers <= (tiling.max_registers or 0)
        )

    def least_clocks(tiling: Tiling) -> float:
        fact = known.get((*case, tiling))
        return float("inf") if fact is None else fact.least_clocks

    return [shipped, *sorted(filter(is_promising, tilings[1:]), key=least_clocks)]


class Fact(NamedTuple):
    """What a candidate compiles to, of its several kernels the worst.

    ``least_clocks`` is the least time of a multiprocessor for a query-key pair, in clocks, in the
    loop over whole tiles below the diagonal: the greatest of what tensor cores (4,096 FLOPs a
    clock), exponentials (16) and the issue of instructions (4 warps) need, as if all overlapped.
    """

    registers: int
    programs_per_multiprocessor: int
    least_clocks: float
    faulty: bool


@functools.cache
def facts(path: Path = FACTS) -> dict[tuple[str, int, Tiling], Fact]:
    """What :func:`compile_candidates` has found of the kernels as they are, by pass and head dim.

    Rows of other code are passed over: they say nothing.
    """
    code = _digest()
    return {
        (row["pass"], int(row["padded_head_dim"]), read_tiling(row["tiling"])): Fact(
            int(row["registers"]),
            int(row["programs_per_multiprocessor"]),
            float(row["least_clocks"]),
            bool(row["faults"]),
        )
        for row in read_table(path)
        if row["code"] == code
    }


def _digest() -> str:
    return hashlib.sha256(kernel_code().encode()).hexdigest()[:12]


def compile_candidates(head_dims: Iterable[int], jobs: int | None, path: Path = FACTS) -> None:
    """Compile every candidate for sm_90 that the table lacks; needs no GPU.

    Rows of other code than the kernels' now are dropped.
    """
    rows = [row for row in read_table(path) if row["code"] == _digest()]
    path.unlink(missing_ok=True)
    table = Table(path, FACT_COLUMNS, FACT_COLUMNS[:3])
    for row in rows:
        table.add(**row)
    facts.cache_clear()
    launches = [
        Launch("bfloat16", head_dim, tilings=((name, tiling),), passes=(name,))
        for name in PASSES
        for head_dim in head_dims
        for tiling in candidates(name, head_dim, 2 * QUERIES)
        if not table.has(
            **{"pass": name},
            padded_head_dim=padded_head_dim(head_dim),
            tiling=written(tiling),
        )
    ]
    with triton_processes(interpret=False, jobs=jobs or os.cpu_count() or 1) as pool:
        for launch, compiled in zip(launches, pool.map(_compiled, launches), strict=True):
            table.add(**_fact_row(launch, compiled))
    facts.cache_clear()


def _compiled(launch: Launch) -> list[CompiledKernel] | str:
    try:
        return compile_launch(launch)
    except Exception as error:  # the compiler gives up, as where there is too little shared memory
        return one_line(error)


def _fact_row(launch: Launch, compiled: list[CompiledKernel] | str) -> dict[str, Any]:
    ((name, tiling),) = launch.tilings
    row = {
        "pass": name,
        "padded_head_dim": padded_head_dim(launch.head_dim),
        "tiling": written(tiling),
        "code": _digest(),
        "triton": triton.__version__,
    }
    if isinstance(compiled, str) or not compiled:
        unknown = dict.fromkeys(("registers", "programs_per_multiprocessor", "least_clocks"), 0)
        return row | unknown | {"faults": compiled or "not compiled"}
    faults = {fault for kernel in compiled for fault in kernel.faults()}
    return row | {
        "registers": max(kernel.registers for kernel in compiled),
        "programs_per_multiprocessor": min(k.programs_per_multiprocessor for k in compiled),
        "least_clocks": f"{max(map(least_clocks, compiled)):.5g}",
        "faults": "; ".join(sorted(faults)),
    }


def least_clocks(kernel: CompiledKernel) -> float:
    """Clocks of a multiprocessor for a query-key pair: see :class:`Fact`."""
    pairs = kernel.constants["BLOCK_QUERIES"] * kernel.constants["BLOCK_KEYS"]
    below = min((s for s in kernel.segments if s.in_loop), key=lambda s: s.instructions)
    needed = (below.operations / 4096, pairs / 16, below.instructions * kernel.num_warps / 4)
    return max(needed) / pairs


class _Attention(torch.autograd.Function):
    """The launches under tilings of one's own, without an operator around them."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, tilings: dict[str, Tiling]
    ) -> Tensor:
        operands = padded(q, k, v, None, None, head_dim=q.shape[-1])
        out, lse = launch_forward(*operands, scale, q.shape[-1], tilings)
        ctx.save_for_backward(*operands, out, lse)
        ctx.scale, ctx.tilings = scale, tilings
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        channels = 3 * grad_out.shape[-1:]
        saved, tilings = ctx.saved_tensors, ctx.tilings
        return (*launch_backward(grad_out, *saved, ctx.scale, channels, tilings), None, None)


def attending(chosen: dict[str, Tiling]) -> Attend:
    """The kernels under these tilings, by pass, and for other passes under the shipped ones."""

    def attend(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
        return _Attention.apply(q, k, v, q.shape[-1] ** -0.5 if scale is None else scale, chosen)

    return attend


def shapes_to_tune(head_dims: Iterable[int]) -> list[Shape]:
    """The article's layers for each head dim; for 64 and 128 a long sequence as well."""
    shapes = []
    for head_dim in head_dims:
        shapes += [Shape(80, 512, prefix, 8, head_dim) for prefix in (1792, 0, 768)]
        if head_dim in (64, 128):
            shapes.append(Shape(4, 4096, 0, 2048 // head_dim, head_dim))
    return shapes


def time_tiling(shape: Shape, chosen: dict[str, Tiling]) -> float:
    """Milliseconds of the pass that ``chosen`` is about: forward alone, or the whole backward."""
    pass_name = "forward" if "forward" in chosen else "backward"
    (ms,) = timed(attending(chosen), shape, pass_name, rounds=1)
    return ms


def run_once(shape: Shape, chosen: dict[str, Tiling]) -> None:
    """Compile and run what ``chosen`` is about, in a process whose only purpose is the cache."""
    q, k, v, grad = draw(shape)
    out = attending(chosen)(q, k, v)
    if "forward" not in chosen:
        torch.autograd.grad(out, (q, k, v), grad)


def tune(
    out: Path, shapes: Iterable[Shape], minutes: float, jobs: int = 0, limit: int | None = None
) -> Path:
    """Time all candidates of all shapes that ``tilings.csv`` lacks, as long as there is time.

    Args:
        out: Folder of the results.
        shapes: What to tune for.
        minutes: No candidate is begun after that.
        jobs: Processes that compile ahead; 0 for none.
        limit: Candidates of a pass at most, the shipped one among them.

    Returns:
        The path of ``tilings.csv``.
    """
    table = Table(out / "tilings.csv", COLUMNS, KEY)
    write_environment(out, "tilings")
    end = time.monotonic() + 60 * minutes
    with _pool(jobs) as pool:
        for shape in shapes:
            wanted = {p: _wanted(table, shape, p)[:limit] for p in PASSES}
            if pool and time.monotonic() < end:
                choices = [{name: tiling} for name in wanted for tiling in wanted[name]]
                _compile(pool, shape, choices)
            _time_all(table, shape, wanted, end)
    return table.path


def _compile(
    pool: concurrent.futures.Executor, shape: Shape, choices: Iterable[dict[str, Tiling]]
) -> None:
    """Fill the compiler's cache; a failure shows again, and is recorded, when it is timed."""
    try:
        concurrent.futures.wait([pool.submit(run_once, shape, chosen) for chosen in choices])
    except concurrent.futures.BrokenExecutor as error:  # a worker died: go on without
        print(f"nothing is compiled ahead any more: {error}")


def _pool(jobs: int) -> contextlib.AbstractContextManager[Any]:
    # Without a GPU kernels are interpreted: there is nothing to compile.
    return fresh_processes(jobs) if jobs and torch.cuda.is_available() else contextlib.nullcontext()


def _wanted(table: Table, shape: Shape, pass_name: str) -> list[Tiling]:
    """Candidates of a shape: of its head dim's first with a prefix, and first without, all.

    For others the fastest there: without a prefix loops are short, and other tilings win.
    """
    tilings = candidates(pass_name, shape.head_dim, shape.keys, working_dtype().itemsize)
    earlier = [
        row
        for row in read_table(table.path)
        if row["head_dim"] == str(shape.head_dim)
        and row["pass"] == pass_name
        and row["status"] == "ok"
        and shape_of(row) != shape
        and (shape_of(row).prefix > 0) == (shape.prefix > 0)
    ]
    if not earlier:
        return tilings
    ordered = [read_tiling(row["tiling"]) for row in sorted(earlier, key=_ms)]
    return list(dict.fromkeys((tilings[0], *ordered)))[: KEPT + 1]


def _time_all(table: Table, shape: Shape, wanted: dict[str, list[Tiling]], end: float) -> None:
    best: dict[str, Tiling] = {}
    for pass_name, tilings in wanted.items():
        beside = {name: best[name] for name in best if (pass_name, name) == ("query", "key_value")}
        key = {**vars(shape), "dtype": _dtype(), "pass": pass_name}
        for tiling in tilings:
            if table.has(**key, tiling=written(tiling)):
                continue
            if time.monotonic() > end:
                return
            table.add(
                device=environment()["device"],
                **key,
                tiling=written(tiling),
                **_outcome(shape, {**beside, pass_name: tiling}),
            )
        if fast := _fastest_of(read_table(table.path), shape, pass_name):
            best[pass_name] = fast


def _outcome(shape: Shape, chosen: dict[str, Tiling]) -> dict[str, Any]:
    try:
        return {"status": "ok", "ms": f"{time_tiling(shape, chosen):.6g}"}
    except Exception as error:  # too little shared memory, a compiler that gives up
        require_working_device()
        return {"status": "failed", "message": one_line(error)}


def written(tiling: Tiling) -> str:
    """A tiling as one cell of a table, and back with :func:`read_tiling`.

    >>> written(Tiling(128, 64, 8, 3)).split()[:4]
    ['128', '64', '8', '3']
    """
    return " ".join(str(value) for value in tiling)


def read_tiling(text: str) -> Tiling:
    """Read what :func:`written` has written."""
    return Tiling(*(None if value == "None" else int(value) for value in text.split()))


def _dtype() -> str:
    return str(working_dtype()).removeprefix("torch.")


def _ms(row: dict[str, str]) -> float:
    return float(row["ms"])


def _of_case(rows: Iterable[dict[str, str]], shape: Shape, pass_name: str) -> list[dict[str, str]]:
    """Rows of a shape and pass that were timed."""
    return [
        row
        for row in rows
        if row["status"] == "ok" and row["pass"] == pass_name and shape_of(row) == shape
    ]


def _fastest_of(rows: Iterable[dict[str, str]], shape: Shape, pass_name: str) -> Tiling | None:
    case = _of_case(rows, shape, pass_name)
    return read_tiling(min(case, key=_ms)["tiling"]) if case else None


Chosen = dict[tuple[Shape, str], Tiling]
"""By shape and pass."""
Refused = set[tuple[str, int, Tiling]]
"""Passes, head dims and tilings."""


def choose(rows: Iterable[dict[str, str]], refused: Refused) -> Chosen:
    """What to ship for each shape and pass.

    Of the tilings within 2 % of the fastest, the one that loses least where it loses most among the
    shapes of the head dim: shapes that hardly differ share a tiling.

    Args:
        rows: Of ``tilings.csv``.
        refused: What must not be chosen.
    """
    times: dict[tuple[str, int], dict[Shape, dict[Tiling, float]]] = {}
    for row in rows:
        shape = shape_of(row)
        case, tiling = (row["pass"], shape.head_dim), read_tiling(row["tiling"])
        if row["status"] == "ok" and (*case, tiling) not in refused:
            times.setdefault(case, {}).setdefault(shape, {})[tiling] = float(row["ms"])
    chosen = {}
    for (pass_name, _), of_shapes in times.items():
        losses: dict[Tiling, float] = {}
        for of_shape in of_shapes.values():
            for tiling in set().union(*of_shapes.values()):
                loss = of_shape.get(tiling, float("inf")) / min(of_shape.values())
                losses[tiling] = max(losses.get(tiling, 1.0), loss)
        for shape, of_shape in of_shapes.items():
            close = [x for x in of_shape if of_shape[x] <= CLOSE * min(of_shape.values())]
            chosen[shape, pass_name] = min(close, key=lambda x: (losses[x], of_shape[x]))
    return chosen


def settle(rows: Iterable[dict[str, str]], checks: Iterable[Callable[[Chosen], Refused]]) -> Chosen:
    """Choose, and choose again without what a check refuses, until all checks pass."""
    rows, checks, refused = tuple(rows), tuple(checks), set()
    while True:
        chosen = choose(rows, refused)
        refusals = set().union(*(check(chosen) for check in checks))
        for pass_name, head_dim, tiling in sorted(refusals - refused, key=str):
            print(f"refused: {pass_name}, head dim {head_dim}, {tiling}")
        if refusals <= refused:
            return chosen
        refused |= refusals


def by_shape(chosen: Chosen) -> dict[Shape, dict[str, Tiling]]:
    """The tilings of each shape, by pass."""
    shapes: dict[Shape, dict[str, Tiling]] = {}
    for (shape, pass_name), tiling in chosen.items():
        shapes.setdefault(shape, {})[pass_name] = tiling
    return shapes


def wrong_results(chosen: Chosen) -> Refused:
    """What is wrong against float64; of the backward pass, which is checked as one, both passes."""
    refused = set()
    for shape, tilings in by_shape(chosen).items():
        shares = errors(attending(tilings), shape, backward=True)
        for pass_name, tiling in tilings.items():
            if not shares["forward" if pass_name == "forward" else "backward"] <= 1:
                refused.add((pass_name, shape.head_dim, tiling))
    return refused


Faulty = dict[tuple[str, int, Tiling], bool]
"""Whether a pass's code has a fault, by padded head dim and tiling."""


def compiled_faults(
    chosen: Chosen, dtype: str, jobs: int | None = None, known: Faulty | None = None
) -> Refused:
    """What spills, serialises wgmma or else must not be shipped, in any variant; needs no GPU.

    Args:
        chosen: What is to be shipped.
        dtype: Of what was timed.
        jobs: Processes.
        known: What was compiled before, and need not be again; is added to.
    """
    known = {} if known is None else known
    cases = {
        (pass_name, shape.head_dim, tiling): (pass_name, padded_head_dim(shape.head_dim), tiling)
        for (shape, pass_name), tiling in chosen.items()
    }
    launches = [
        Launch(dtype, width, *variant, tilings=((name, tiling),), passes=(name,))
        for name, widest, tiling in dict.fromkeys(cases.values())
        if (name, widest, tiling) not in known
        for width in (widest - MISSING, widest)
        for variant in VARIANTS
    ]
    for kernel in compile_all(launches, jobs):
        ((name, tiling),) = kernel.launch.tilings
        case = name, padded_head_dim(kernel.launch.head_dim), tiling
        if faults := kernel.faults():
            print(f"{name}, {kernel.launch.head_dim}, {tiling}: {'; '.join(faults)}", flush=True)
        known[case] = known.get(case, False) or bool(faults)
    return {refused for refused, case in cases.items() if known[case]}


def write_tuned(path: Path, chosen: Chosen, element_size: int) -> None:
    """Write the table that the kernels read; what it holds of other cases stays.

    Args:
        path: Of the table, made where it is missing.
        chosen: What to ship; of shapes with one padded head dim and as many keys, the first counts.
        element_size: Bytes of an element of what was timed.
    """
    table = tuned_tilings(path) if path.exists() else {}
    fresh: dict[tuple[str, int, int], dict[int, Tiling]] = {}
    for (shape, pass_name), tiling in chosen.items():
        case = pass_name, element_size, padded_head_dim(shape.head_dim)
        fresh.setdefault(case, {}).setdefault(shape.keys, tiling)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("pass", "element_size", "padded_head_dim", "keys", *Tiling._fields))
        for case in sorted(table | fresh):
            by_keys = table.get(case, {}) | fresh.get(case, {})
            for keys, tiling in sorted(by_keys.items()):
                writer.writerow((*case, keys, *tiling))


@commands.defaults_of(tune)
def search(
    *,
    out: Path = Path("results"),
    head_dims: tuple[int, ...] = HEAD_DIMS,
    minutes: float = 5,
    jobs: int,
    limit: int | None,
    tiny: bool = False,
    ship: bool = False,
    compile_only: Annotated[bool, tyro.conf.arg(name="compile")] = False,
    dry_run: bool = False,
) -> None:
    """Time candidates, and choose what to ship.

    Args:
        out: Folder of the results.
        head_dims: What to tune for.
        minutes: Begin nothing after that; 0: choose, time nothing.
        jobs: Processes that compile ahead.
        limit: Candidates of a pass at most.
        tiny: Tiny shapes, to try the path.
        ship: Compile what was chosen, refuse what has a fault, and write the kernels' tuned.csv.
        compile_only: Compile what candidates.csv lacks, time nothing.
        dry_run: List candidates, time nothing.
    """
    if tiny and ship:
        commands.refuse("--tiny tries the path: its tilings are not for shipping")
    if compile_only:
        compile_candidates(head_dims, jobs or None)
        return
    if dry_run:
        for head_dim, pass_name in itertools.product(head_dims, PASSES):
            tilings = candidates(pass_name, head_dim, 2304)[:limit]
            print(f"head dim {head_dim}, {pass_name}: {len(tilings)} candidates")
            print(*(f"  {written(tiling)}" for tiling in tilings), sep="\n")
        return
    shapes = shapes_to_tune(head_dims)
    if tiny:
        shapes = [Shape(1, 9, 5, 1, head_dim) for head_dim in head_dims]
    elif minutes > 0:
        require_gpu("--tiny")
    if minutes > 0:
        tune(out, shapes, minutes, jobs, limit)
    rows = read_table(out / "tilings.csv")
    origins = {(row["device"], row["dtype"]) for row in rows}
    if len(origins) != 1:
        raise SystemExit(
            f"error: {out}/tilings.csv must have times of one device and dtype: {origins}"
        )
    ((timed_on, dtype),) = origins
    checks: list[Callable[[Chosen], Refused]] = []
    if timed_on == environment()["device"]:
        checks.append(wrong_results)
    else:
        print(f"results are not checked here: the times are of {timed_on}")
    if ship:
        checks.append(functools.partial(compiled_faults, dtype=dtype, jobs=jobs or None, known={}))
    chosen = settle(rows, checks)
    if not chosen:
        raise SystemExit(f"error: no tiling of {out}/tilings.csv may be shipped")
    element_size = getattr(torch, dtype).itemsize
    for path in (out / TUNED.name, *([TUNED] if ship else [])):
        write_tuned(path, chosen, element_size)
        print(path)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    commands.run(search, "python -m benchmarks tune", arguments, __doc__)


if __name__ == "__main__":
    main()
