"""Whether the kernels are right where they are timed: ``python -m benchmarks soundness PART``.

``random`` holds drawn shapes against float64, output and gradients, in every 16-bit dtype, with
grouped heads, keys of the prefix apart, and inputs by strides; ``determinism`` runs the same input
twenty times and wants equal bits; ``sanitizer`` runs each kernel once under NVIDIA's
compute-sanitizer. Each adds a row to ``soundness.csv``, and ends with 3 where anything is wrong.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import random
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.attention.accuracy import shares_of_allowed
from benchmarks.attention.timing import one_line
from benchmarks.measurement import FINDING, ROOT, device, working_dtype
from flopcount import commands
from kernels.attention import prefix_attention
from kernels.attention.reference import reference_attention
from models.processes import fresh_processes, output
from models.results import Table, environment, write_environment

COLUMNS = ("device", "check", "cases", "status", "message")
# A thousand cases share a few head dims: of one part and of several, powers of two, multiples of 16
# and not, the least and the largest.
HEAD_DIMS = (1, 33, 54, 64, 73, 78, 91, 96, 128, 201, 256)

FAMILY = 7


@dataclasses.dataclass(frozen=True)
class Case:
    """One call, by its sizes and by how the operands are given.

    Attributes:
        apart: Whether the prefix's keys and values are tensors of their own.
        strided: Whether operands are slices of wider tensors.
    """

    batch: int
    queries: int
    prefix: int
    heads: int
    group: int
    head_dim: int
    dtype: str
    apart: bool
    strided: bool
    seed: int


# Kernels are compiled anew for lengths of 1, for multiples of 16 and for others.
LENGTHS = ("one", "odd", "sixteens")


def drawn_cases(number: int, largest: int = 400, seed: int = 0) -> list[Case]:
    """Draw cases with up to ``largest`` queries and prefix positions, one by one or in families.

    :data:`FAMILY` cases in a row share all that a kernel is compiled for, and differ in lengths
    and data: compiling takes seconds, running milliseconds.
    """
    generator = random.Random(seed)
    in_bf16 = working_dtype() == torch.bfloat16
    dtypes = ("bfloat16", "bfloat16", "float16") if in_bf16 else ("float32", "float16")

    def length(kind: str) -> int:
        if kind == "odd":
            return 2 * generator.randint(1, max(1, largest // 2)) + 1
        if kind == "sixteens":
            return 16 * generator.randint(1, max(1, largest // 16))
        return 1 if kind == "one" else 0

    cases: list[Case] = []
    while len(cases) < number:
        queries, prefix = generator.choice(LENGTHS), generator.choice(("none", *LENGTHS))
        family = dict(
            heads=generator.randint(1, 3),
            group=generator.choice((1, 1, 2)),
            head_dim=generator.choice(HEAD_DIMS),
            dtype=generator.choice(dtypes),
            apart=generator.random() < 0.5,
            strided=generator.random() < 0.25,
        )
        cases += [
            Case(
                batch=generator.randint(2, 3),
                queries=length(queries),
                prefix=length(prefix),
                seed=len(cases) + member,
                **family,
            )
            for member in range(FAMILY)
        ]
    return cases[:number]


def operands(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random q, k and v, which want gradients, and a gradient of the output."""
    generator = torch.Generator(device()).manual_seed(case.seed)

    def drawn(length: int, heads: int) -> Tensor:
        size = (case.batch, length, heads, case.head_dim * (2 if case.strided else 1))
        values = torch.randn(size, generator=generator, device=device())
        return values.to(getattr(torch, case.dtype))[..., : case.head_dim].detach()

    keys = case.prefix + case.queries
    q = drawn(case.queries, case.heads * case.group).requires_grad_()
    k, v = (drawn(keys, case.heads).requires_grad_() for _ in range(2))
    return q, k, v, drawn(case.queries, case.heads * case.group)


def results(case: Case, q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> list[Tensor]:
    """Our output and gradients of q, k and v."""
    if case.apart:
        prefix, rest = slice(None, case.prefix), slice(case.prefix, None)
        out = prefix_attention(q, k[:, rest], v[:, rest], k[:, prefix], v[:, prefix])
    else:
        out = prefix_attention(q, k, v)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), grad)]


def _specified(inputs: Iterable[Tensor], grad: Tensor) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    out, _ = reference_attention(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def error(case: Case) -> float:
    """The largest error against float64, as a share of what is allowed: above 1 is wrong.

    By :func:`benchmarks.attention.accuracy.shares_of_allowed`, over all heads and sequences.
    """
    q, k, v, grad = operands(case)
    exact = _specified((q.double(), k.double(), v.double()), grad.double())
    plain = _specified((q, k, v), grad)
    return max(shares_of_allowed(results(case, q, k, v, grad), plain, exact, q.dtype).values())


def wrong_cases(cases: list[Case]) -> list[str]:
    """What is wrong with each case that is, as text."""
    wrong = []
    for case in cases:
        try:
            share = error(case)
        except Exception as raised:
            wrong.append(f"{case}: {one_line(raised)}")
            continue
        if not share <= 1:
            wrong.append(f"{case}: {share:.2f} times the error allowed")
    return wrong


@commands.defaults_of(drawn_cases)
def check_random(out: Path, *, cases: int = 1000, largest: int, jobs: int = 0) -> bool:
    """Hold drawn shapes against float64, a family in one process; whether all are right.

    Args:
        out: Folder of the results.
        cases: How many.
        largest: Length.
        jobs: Processes; 0 for this one.
    """
    drawn = drawn_cases(cases, largest)
    if jobs == 0:
        return record(out, "random", len(drawn), wrong_cases(drawn))
    families = [drawn[first : first + FAMILY] for first in range(0, cases, FAMILY)]
    with fresh_processes(jobs) as pool:
        failures = list(pool.map(wrong_cases, families))
    return record(out, "random", len(drawn), [text for group in failures for text in group])


@commands.defaults_of(drawn_cases)
def check_determinism(out: Path, *, cases: int = 8, largest: int, runs: int = 20) -> bool:
    """Run each of some cases again and again; whether the bits are the same each time.

    Args:
        out: Folder of the results.
        cases: How many.
        largest: Length.
        runs: Of each.
    """
    wrong = []
    drawn = drawn_cases(cases, largest, seed=1)
    for case in drawn:
        given = operands(case)
        first = results(case, *given)
        for _ in range(runs - 1):
            again = results(case, *given)
            if not all(torch.equal(a, b) for a, b in zip(first, again, strict=True)):
                wrong.append(f"{case}: two runs differ")
                break
    return record(out, "determinism", len(drawn), wrong)


def check_sanitizer(out: Path, tools: tuple[str, ...] = ("memcheck",)) -> bool:
    """Run :func:`each_kernel` under compute-sanitizer; whether it finds nothing.

    Args:
        out: Folder of the results.
        tools: Of compute-sanitizer.
    """
    program = shutil.which("compute-sanitizer")
    if program is None:
        print(
            "error: compute-sanitizer is not on the PATH; remaining: run the same command where it "
            "is"
        )
        return False
    wrong = []
    for tool in tools:
        ended = output(
            [
                program,
                "--tool",
                tool,
                "--error-exitcode",
                "86",
                sys.executable,
                "-m",
                "benchmarks",
                "soundness",
                "once",
            ],
            cwd=ROOT,
            # Each tensor an allocation of its own: a write past its end is seen.
            env=os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        )
        if ended.returncode:
            said = f"{ended.stdout[-300:]}{ended.stderr[-300:]}"
            wrong.append(f"{tool} ended with {ended.returncode}: {said}")
    return record(out, "sanitizer", len(tools), wrong)


def each_kernel() -> None:
    """Launch each kernel on sizes that end inside of tiles: strided or not, prefix or none."""
    (case,) = drawn_cases(1)
    for strided, prefix in itertools.product((False, True), (0, 67)):
        odd = dataclasses.replace(
            case, queries=131, prefix=prefix, head_dim=73, group=2, strided=strided
        )
        results(odd, *operands(odd))


def record(out: Path, check: str, cases: int, wrong: list[str]) -> bool:
    """Add a check's row; whether it passed."""
    table = Table(out / "soundness.csv", COLUMNS, ("check",))
    message = "" if not wrong else f"{len(wrong)} wrong, first: {' '.join(wrong[0].split())}"
    status = "ok" if not wrong else "wrong"
    write_environment(out, "soundness", check=check, wrong=wrong)
    table.add(
        device=environment()["device"], check=check, cases=cases, status=status, message=message
    )
    print(check, cases, status, message)
    return not wrong


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parts = {
        "random": check_random,
        "determinism": check_determinism,
        "sanitizer": check_sanitizer,
        "once": each_kernel,
    }
    holds = commands.run(parts, "python -m benchmarks soundness", arguments, __doc__)
    raise SystemExit(FINDING if holds is False else 0)


if __name__ == "__main__":
    main()
