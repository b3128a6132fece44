"""Hardware counters against ``executed``: ``python -m benchmarks counters PART --out DIR``.

Parts: ``probe`` says whether Nsight Compute is there and permitted; ``kernels`` profiles a GEMM
whose count is known, then each kernel of each case once, and holds tensor-core operations against
the formula; ``emulate`` puts what the emulator counts beside, ``clocks`` what a model takes for the
launches' times, and ``agreement`` says how many of these counts are equal, and how far the clocks
are; ``step`` profiles one whole training step of two of the article's models.
``workload`` is what runs under the profiler.

Each result is confirmed, or differs, or is not confirmed because something is missing. A missing
counter is never taken for 0. The profiler's own output is kept beside each table.
"""

from __future__ import annotations

import collections
import contextlib
import json
import random
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import triton
import triton.language as tl
import tyro

from benchmarks.attention.implementations import IMPLEMENTATIONS
from benchmarks.attention.shapes import ARTICLE_HEAD_DIMS, Shape
from benchmarks.attention.timing import compile_ahead, draw
from benchmarks.counters import clocks, profiler
from benchmarks.counters.executed import executed_ops
from benchmarks.counters.profiler import Kernel, ProfilerError, verdict
from benchmarks.counters.steps import (
    SEED_MODELS,
    STEP_COLUMNS,
    dispatched,
    one_step,
    seed_model,
    step_rows,
)
from benchmarks.measurement import FINDING, device
from flopcount import commands
from models.results import Table, environment, markdown, read_table, write_environment
from validate.emulator import cases as emulator_cases
from validate.witnesses.processes import triton_processes

GEMM = (4096, 4096, 4096)
"""M, N and K of the calibration: whole tiles for any kernel that a library may pick."""

CASE_COLUMNS = (
    "device",
    "case",
    "kernel",
    "metric",
    "executed",
    "counted",
    "difference",
    "verdict",
    *profiler.METRICS,
)


AGREEMENT_COLUMNS = ("counter", "compared", "equal", "hardware minus emulator, %")
EMULATED_COLUMNS = CASE_COLUMNS[1 : CASE_COLUMNS.index("verdict") + 1]


@triton.jit
def case_marker(out, BLOCK: tl.constexpr):
    """Stand between the kernels of one case and of the next."""
    tl.store(out + tl.arange(0, BLOCK), 0.0)


def mark() -> None:
    """Launch the marker."""
    case_marker[(1,)](torch.empty(16, device=device()), 16)


def kernel_cases(drawn: int = 24, seed: int = 0) -> list[Shape]:
    """The article's shapes on four sequences, and ``drawn`` with odd lengths and head dims."""
    article = [
        Shape(4, 512, prefix, 8, head_dim)
        for prefix in (0, 768, 1792)
        for head_dim in ARTICLE_HEAD_DIMS
    ]
    generator = random.Random(seed)
    odd = [
        Shape(
            generator.randint(1, 3),
            2 * generator.randint(0, 300) + 1,
            generator.choice((0, 2 * generator.randint(0, 300) + 1)),
            generator.randint(1, 4),
            2 * generator.randint(0, 127) + 1,
        )
        for _ in range(drawn)
    ]
    return article + odd


def between_markers(kernels: Iterable[Kernel], cases: int) -> list[list[Kernel]]:
    """Kernels of each case: those that follow its marker.

    Raises:
        ProfilerError: If there are not as many markers as cases.
    """
    groups: list[list[Kernel]] = []
    for kernel in kernels:
        if kernel.name == case_marker.fn.__name__:
            groups.append([])
        elif groups:
            groups[-1].append(kernel)
    if len(groups) != cases:
        raise ProfilerError(f"the profile must hold {cases} cases, got {len(groups)}")
    return groups


def compared(
    case: str, kernels: Iterable[Kernel], expected: dict[str, int], dtype: str
) -> Iterator[dict[str, Any]]:
    """Rows of a case: each kernel's operations, all its launches together, against the formula.

    Kernels that the formula does not know (copies, fills) have to show no operations at all.
    """
    by_name: dict[str, list[Kernel]] = collections.defaultdict(list)
    for kernel in kernels:
        by_name[kernel.name].append(kernel)
    for name in dict.fromkeys((*expected, *by_name)):
        launches = by_name.get(name, [])
        counts = [launch.tensor_ops(dtype) for launch in launches]
        counted = None if not counts or None in counts else sum(c for c in counts if c is not None)
        executed = expected.get(name, 0)
        yield {
            "case": case,
            "kernel": name,
            "metric": f"tensor ops {dtype}",
            "executed": executed,
            "counted": counted,
            "difference": None if counted is None else counted - executed,
            "verdict": verdict(executed, counted),
            **{metric: _summed(launches, metric) for metric in profiler.METRICS},
        }


def emulated(
    case: str, kernels: Iterable[Kernel], launches: Iterable[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Rows of a case: what the emulator counts in each kernel, beside the profiler's counter of it.

    Args:
        case: Its name.
        kernels: As they were profiled.
        launches: Name and metrics of each launch, by :func:`emulated_launches`.
    """
    by_name: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for launch in launches:
        by_name[launch["name"]].update(launch["metrics"])
    for name, metrics in by_name.items():
        profiled = [kernel for kernel in kernels if kernel.name == name]
        for metric, executed in metrics.items():
            total = _summed(profiled, metric)
            counted = None if isinstance(total, str) else total
            yield {
                "case": case,
                "kernel": name,
                "metric": metric,
                "executed": executed,
                "counted": counted,
                "difference": None if counted is None else counted - executed,
                "verdict": verdict(executed, counted),
            }


def emulated_launches(shape: Shape) -> list[dict[str, Any]]:
    """Name and metrics of each launch of a forward and a backward pass; needs no GPU."""
    case = emulator_cases.Case(
        "bfloat16", shape.head_dim, shape.queries, shape.prefix, shape.heads, shape.heads,
        batch=shape.batch,
    )  # fmt: skip
    return [
        {"name": counts.code.name, "metrics": counts.metrics()}
        for counts in emulator_cases.counted(case, distinct=False)
    ]


def _summed(kernels: Iterable[Kernel], metric: str) -> int | str:
    counts = [kernel.counts.get(metric) for kernel in kernels]
    return "missing" if not counts or None in counts else sum(c for c in counts if c is not None)


def probe(out: Path) -> None:
    """Say in a line whether counters can be read here, and the GEMM's count where they can.

    Args:
        out: Folder of the results.

    Raises:
        ProfilerError: With the reason and the remaining command, if they cannot.
    """
    kernels = _profiled(["gemm"], out / "probe.ncu.csv")
    counted = sum(kernel.tensor_ops("bfloat16") or 0 for kernel in kernels)
    missing = sorted({name for name in profiler.METRICS if _summed(kernels, name) == "missing"})
    print(f"ncu works: {counted} bf16 operations in the GEMM; missing metrics: {missing or 'none'}")


def _profiled(
    arguments: list[str], log: Path, metrics: Sequence[str] = profiler.METRICS
) -> list[Kernel]:
    log.parent.mkdir(parents=True, exist_ok=True)
    return profiler.profile("benchmarks", ["counters", "workload", *arguments], log, metrics)


@commands.defaults_of(kernel_cases)
def run_kernels(out: Path, *, drawn: int, jobs: int = 0, operations_only: bool = False) -> bool:
    """Profile and compare all cases; whether every count of operations is confirmed.

    Args:
        out: Folder of the results.
        drawn: Shapes of odd sizes beside the article's.
        jobs: Processes that compile the kernels before the profiler's run needs them.
        operations_only: Ask for tensor-core operations and times alone: a third of the time.
    """
    (out / "counters.csv").unlink(missing_ok=True)
    table = Table(out / "counters.csv", CASE_COLUMNS, ("case", "kernel", "metric"))
    write_environment(out, "counters")
    origin = {"device": environment()["device"]}
    shapes = kernel_cases(drawn)
    rows: list[dict[str, Any]] = []
    if jobs and shutil.which("ncu"):
        compile_ahead([(shape, "fused", True) for shape in shapes], jobs)
    try:
        counters = profiler.OPERATIONS if operations_only else profiler.METRICS
        kernels = _profiled(
            ["gemm", "kernels", "--drawn", str(drawn)],
            out / "kernels.ncu.csv",
            (*counters, *profiler.TIMES),
        )
        gemm, *cases = between_markers(kernels, 1 + len(shapes))
    except ProfilerError as error:
        gemm, cases = [], [[] for _ in shapes]
        print(f"not confirmed: {error}")
    m, n, k = GEMM
    (calibration,) = compared("GEMM", [_joined(gemm)], {"library GEMM": 2 * m * n * k}, "bfloat16")
    rows.append(calibration)
    for shape, group in zip(shapes, cases, strict=True):
        rows += compared(str(shape), group, executed_ops(shape, 2), "bfloat16")
    if calibration["verdict"] != "confirmed":
        for row in rows[1:]:
            row["verdict"] = f"not confirmed: the GEMM is {calibration['verdict']}"
    confirmed = all(row["verdict"] == "confirmed" for row in rows)
    for row in rows:
        table.add(**origin, **{name: "missing" if v is None else v for name, v in row.items()})
    print(table.path, "every row confirmed" if confirmed else "not every row is confirmed")
    return confirmed


@commands.defaults_of(kernel_cases)
def emulate(out: Path, *, drawn: int, cases: tuple[int, ...] = (), jobs: int = 2) -> Path:
    """Add what the emulator counts beside the hardware's counters to ``emulated.csv``; no GPU.

    Reads the profiler's output that :func:`run_kernels` has left. The kernels, their tilings and
    Triton have to be those that were profiled. Rows decide about nothing.

    Args:
        out: Folder with ``kernels.ncu.csv``.
        drawn: As for ``kernels``.
        cases: By number, the calibration not counted; all by default.
        jobs: Processes.
    """
    table = Table(out / "emulated.csv", EMULATED_COLUMNS, ("case", "kernel", "metric"))
    for shape, profiled, launches in _emulated_cases(emulated_launches, table, drawn, cases, jobs):
        for row in emulated(str(shape), profiled, launches):
            table.add(**{name: "missing" if v is None else v for name, v in row.items()})
    return table.path


@commands.defaults_of(kernel_cases)
def model_clocks(
    out: Path,
    *,
    drawn: int,
    cases: tuple[int, ...] = (),
    calibrated_on: tuple[int, ...] = clocks.CALIBRATED_ON,
    jobs: int = 2,
) -> Path:
    """Add modelled clocks beside the measured ones to ``modelled.csv``; needs no GPU.

    Reads what :func:`run_kernels` has left, ``kernels.ncu.csv`` and ``counters.jsonl``. As for
    ``emulate``, the kernels, their tilings and Triton have to be those that were profiled; rows of
    others are refused. "Before" is without the effects that were calibrated.

    Args:
        out: Folder with ``kernels.ncu.csv``.
        drawn: As for ``kernels``.
        cases: By number, the calibration not counted; all by default.
        calibrated_on: By number, those that parameters were chosen on; of other kernels than the
            first's, none.
        jobs: Processes.

    Raises:
        ProfilerError: If the code here is not what was profiled.
    """
    profile = json.loads((out / "counters.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    if triton.__version__ != profile["triton"]:
        raise ProfilerError(
            f"kernels of Triton {profile['triton']} were profiled, this is {triton.__version__}: "
            f"install that one, and take the kernels of commit {profile['commit'][:7]}"
        )
    table = Table(out / "modelled.csv", clocks.COLUMNS, clocks.COLUMNS[:2])
    shapes = enumerate(kernel_cases(drawn))
    chosen_on = {str(shape) for number, shape in shapes if number in calibrated_on}
    for shape, profiled, launches in _emulated_cases(clocks.launches_of, table, drawn, cases, jobs):
        case = str(shape)
        for row in [*clocks.rows_of(case, profiled, launches, case in chosen_on)]:
            table.add(**row)
    return table.path


def _emulated_cases(
    emulate_case: Callable[[Shape], list[dict[str, Any]]],
    table: Table,
    drawn: int,
    cases: tuple[int, ...],
    jobs: int,
) -> Iterator[tuple[Shape, list[Kernel], list[dict[str, Any]]]]:
    """Each case that a table lacks, its kernels as they were profiled, and what is made of it."""
    done = {row["case"] for row in read_table(table.path)}
    log = table.path.with_name("kernels.ncu.csv")
    shapes = kernel_cases(drawn)
    _, *profiled = between_markers(profiler.parse(log.read_text(encoding="utf-8")), 1 + len(shapes))
    wanted = [n for n in cases or range(len(shapes)) if str(shapes[n]) not in done]
    with triton_processes(interpret=False, jobs=jobs) as pool:
        launched = pool.map(emulate_case, [shapes[number] for number in wanted])
        for number, launches in zip(wanted, launched, strict=True):
            yield shapes[number], profiled[number], launches


def agreement(out: Path) -> None:
    """Print which of the emulator's counts equal the hardware's, and how far modelled clocks are.

    Args:
        out: Folder with ``emulated.csv`` and, for the clocks, ``modelled.csv``, or one of them.
    """
    for name, written in (("emulated", agreement_table), ("modelled", clocks.clocks_table)):
        if rows := read_table(out / f"{name}.csv"):
            print(written(rows))


def agreement_table(rows: Iterable[dict[str, str]]) -> str:
    """Of each metric, how many counts are equal, as a markdown table."""
    by_metric: dict[str, list[dict[str, str]]] = collections.defaultdict(list)
    for row in rows:
        if row["counted"] != "missing":
            by_metric[row["metric"]].append(row)
    body = []
    for metric, counted in by_metric.items():
        percent = [100 * int(row["difference"]) / max(int(row["executed"]), 1) for row in counted]
        equal = sum(row["difference"] == "0" for row in counted)
        span = f"{min(percent):+.2f} to {max(percent):+.2f}" if equal < len(counted) else ""
        cells = (f"`{metric}`", f"{len(counted)}", f"{equal}", span)
        body.append(dict(zip(AGREEMENT_COLUMNS, cells, strict=True)))
    return markdown(body, AGREEMENT_COLUMNS)


def _joined(kernels: Iterable[Kernel]) -> Kernel:
    """A library's product as one kernel, however many it launched: counts add up."""
    kernels = list(kernels)
    return Kernel(
        "library GEMM",
        {
            name: None if isinstance(total := _summed(kernels, name), str) else total
            for name in profiler.METRICS
        },
    )


Model = Literal[*SEED_MODELS, "tiny"]
MODELS: tuple[Model, ...] = ("728x13-V32000-m1536", "512x9-V262-m3584")


def run_step(
    out: Path, models: tuple[Model, ...] = MODELS, batch_size: int = 8, attention: str = "fused"
) -> None:
    """Profile one training step of each model, and attribute its operations to the terms.

    Args:
        out: Folder of the results.
        models: The article's, or ``tiny``.
        batch_size: Sequences.
        attention: An implementation.
    """
    (out / "step.csv").unlink(missing_ok=True)
    table = Table(out / "step.csv", STEP_COLUMNS, ("model", "index"))
    write_environment(out, "step", batch_size=batch_size, attention=attention)
    for name in models:
        model = seed_model(name)
        arguments = ["step", "--model", name, "--batch-size", str(batch_size)]
        log = out / f"step-{name}.ncu.csv"
        try:
            # Of a thousand kernels the fewest counters: more of them run each kernel again.
            words = [*arguments, "--attention", attention]
            kernels = _profiled(words, log, profiler.OPERATIONS)
        except ProfilerError as error:
            print(f"not confirmed: {error}")
            continue
        products = dispatched(*one_step(model, batch_size, attention))
        for row in step_rows(name, model, products, kernels, batch_size):
            table.add(device=environment()["device"], **row)
    print(table.path)


@contextlib.contextmanager
def _profiler_on() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    yield
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


@commands.defaults_of(run_kernels, run_step)
def workload(
    parts: tyro.conf.Positional[tuple[Literal["gemm", "kernels", "step"], ...]],
    *,
    drawn: int,
    model: Model = MODELS[0],
    batch_size: int,
    attention: str,
) -> None:
    """What runs under the profiler: each part once before it starts, then once while it runs.

    Args:
        parts: What runs, in this order.
        drawn: Of ``kernels``, shapes of odd sizes.
        model: Of ``step``.
        batch_size: Of ``step``.
        attention: Of ``step``.
    """
    calls: list[Callable[[], Any]] = []
    for part in parts:
        if part == "gemm":
            m, n, k = GEMM
            a = torch.randn(m, k, device=device(), dtype=torch.bfloat16)
            b = torch.randn(k, n, device=device(), dtype=torch.bfloat16)
            calls.append(lambda a=a, b=b: a @ b)
        elif part == "kernels":
            calls += [_attention_call(shape) for shape in kernel_cases(drawn)]
        else:
            calls.append(one_step(seed_model(model), batch_size, attention)[1])
    mark()
    for call in calls:
        call()
        with _profiler_on():
            mark()
            call()


def _attention_call(shape: Shape) -> Callable[[], Any]:
    attend = IMPLEMENTATIONS["fused"].build(shape, device())
    q, k, v, grad = draw(shape)

    def call() -> None:
        torch.autograd.grad(attend(q, k, v), (q, k, v), grad)

    return call


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parts = {
        "probe": probe,
        "kernels": run_kernels,
        "emulate": emulate,
        "clocks": model_clocks,
        "agreement": agreement,
        "step": run_step,
        "workload": workload,
    }
    try:
        confirmed = commands.run(parts, "python -m benchmarks counters", arguments, __doc__)
    except ProfilerError as error:
        print(f"error: {error}")
        confirmed = False
    raise SystemExit(FINDING if confirmed is False else 0)


if __name__ == "__main__":
    main()
