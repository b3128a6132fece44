"""Attention against its peers, from unpadded q, k, v to an unpadded output.

``python -m benchmarks attention --out DIR --shapes article``. Letters as in
:mod:`benchmarks.attention.shapes`.
Each implementation is first held against float64; one that is wrong or fails is recorded as such
and not timed. ``attention.csv`` grows row by row, and a later run adds what is missing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from benchmarks.attention.accuracy import WrongResultError, shares_of_allowed
from benchmarks.attention.implementations import IMPLEMENTATIONS, Attend, NotApplicableError
from benchmarks.attention.shapes import FORWARD_ONLY, PASSES, SETS, Shape
from benchmarks.measurement import (
    ROUNDS,
    Ceilings,
    device,
    measure_ceilings,
    replayed_ms,
    require_gpu,
    rounds_ms,
    working_dtype,
)
from flopcount import commands
from kernels.attention.reference import reference_attention
from models.processes import fresh_processes
from models.results import Table, environment, write_environment

SIZES = tuple(field.name for field in dataclasses.fields(Shape))
KEY = (*SIZES, "dtype", "pass", "implementation")
COLUMNS = (
    "device",
    *KEY,
    "status",
    "ms",
    "ms_lowest",
    "ms_highest",
    "causal_tflops",
    "floor_ms",
    "binds",
    "error",
    "message",
)
CHUNK = 21
"""Shapes that are compiled ahead together, and then timed."""
STATUS_OF = {WrongResultError: "wrong", NotApplicableError: "does not apply"}


def draw(shape: Shape, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random q, k, v, which want gradients, and a gradient of the output; unpadded."""
    generator = torch.Generator(device()).manual_seed(seed)

    def drawn(length: int) -> Tensor:
        size = (shape.batch, length, shape.heads, shape.head_dim)
        values = torch.randn(size, generator=generator, device=device(), dtype=torch.float32)
        return values.to(working_dtype())

    q, k, v = drawn(shape.queries), drawn(shape.keys), drawn(shape.keys)
    grad = drawn(shape.queries)
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), grad


def errors(attend: Attend, shape: Shape, backward: bool) -> dict[str, float]:
    """The largest error by pass, as a share of what is allowed; above 1 is wrong.

    Compared are the first head of the first sequence and the last of the last, by
    :func:`benchmarks.attention.accuracy.shares_of_allowed`; everything has to be finite.

    Raises:
        WrongResultError: If a value is not finite or a shape is not the operand's.
    """
    *operands, grad = draw(shape)
    operands = [x.requires_grad_(backward) for x in operands]
    out = attend(*operands)
    ours = [out.detach(), *(torch.autograd.grad(out, operands, grad) if backward else ())]
    for result, like in zip(ours, (grad, *operands), strict=False):
        if result.shape != like.shape:
            raise WrongResultError(f"shape {tuple(result.shape)} instead of {tuple(like.shape)}")
        if not torch.isfinite(result).all():
            raise WrongResultError("values that are not finite")
    worst: dict[str, float] = {}
    for b, h in {(0, 0), (shape.batch - 1, shape.heads - 1)}:

        def head(x: Tensor, b: int = b, h: int = h) -> Tensor:
            return x.detach()[b : b + 1, :, h : h + 1]

        given = [head(x) for x in (*operands, grad)]
        exact = _results([x.double() for x in given], backward)
        plain = _results(given, backward)
        shares = shares_of_allowed([head(x) for x in ours], plain, exact, grad.dtype)
        worst = {name: max(share, worst.get(name, 0.0)) for name, share in shares.items()}
    return worst


def _results(operands: list[Tensor], backward: bool) -> list[Tensor]:
    """Output and gradients of the specification, for q, k, v and the output's gradient."""
    inputs = [x.detach().requires_grad_() for x in operands[:3]]
    out, _ = reference_attention(*inputs)
    return [out.detach(), *(torch.autograd.grad(out, inputs, operands[3]) if backward else ())]


def timed(
    attend: Attend, shape: Shape, pass_name: str, rounds: int = ROUNDS, replayed: bool = False
) -> list[float]:
    """Milliseconds of one pass, a median for each round; the backward pass without a forward."""
    clock = replayed_ms if replayed else rounds_ms
    q, k, v, grad = draw(shape)
    capturing = contextlib.nullcontext()
    if replayed and torch.cuda.is_available():
        capturing = torch.cuda.stream(torch.cuda.Stream())
        torch.cuda.synchronize()
    with capturing:
        if pass_name == "forward":
            return clock(lambda: attend(q, k, v), rounds)
        out = attend(q, k, v)
        return clock(lambda: torch.autograd.grad(out, (q, k, v), grad, retain_graph=True), rounds)


def measure(
    shape: Shape,
    name: str,
    pass_names: Iterable[str],
    ceilings: Ceilings,
    replayed: bool = False,
) -> Iterable[dict[str, object]]:
    """The rows of one implementation on one shape, one for each pass."""
    pass_names = tuple(pass_names)
    head = {**dataclasses.asdict(shape), **_origin(), "implementation": name}
    try:
        attend = IMPLEMENTATIONS[name].build(shape, device())
        shares = errors(attend, shape, backward="backward" in pass_names)
    except Exception as error:  # whatever a peer raises is its result
        status = STATUS_OF.get(type(error), "failed")
        for pass_name in pass_names:
            yield {**head, "pass": pass_name, "status": status, "message": one_line(error)}
        require_working_device()
        return
    for pass_name in pass_names:
        row = {**head, "pass": pass_name, "error": f"{shares[pass_name]:.3f}"}
        if not shares[pass_name] <= 1:
            yield {**row, "status": "wrong", "message": "error above what is allowed"}
            continue
        try:
            rounds = timed(attend, shape, pass_name, replayed=replayed)
        except Exception as error:
            yield {**row, "status": "failed", "message": one_line(error)}
            require_working_device()
            continue
        flops = shape.causal_flops(pass_name)
        floor_ms, binds = ceilings.floor(
            shape.least_bytes(pass_name, working_dtype().itemsize),
            flops,
            shape.least_exponentials(pass_name),
        )
        ms = statistics.median(rounds)
        yield {
            **row,
            "status": "ok",
            "ms": f"{ms:.6g}",
            "ms_lowest": f"{min(rounds):.6g}",
            "ms_highest": f"{max(rounds):.6g}",
            "causal_tflops": f"{flops / ms / 1e9:.4g}",
            "floor_ms": f"{floor_ms:.6g}",
            "binds": binds,
        }


def _origin() -> dict[str, str]:
    return {"device": environment()["device"], "dtype": str(working_dtype()).removeprefix("torch.")}


def require_working_device() -> None:
    """Raise where an error has left the device unusable for this process, as a bad access does."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def compile_ahead(cases: Iterable[tuple[Shape, str, bool]], jobs: int) -> None:
    """Run each case once in worker processes, so that compilers fill their caches on all cores.

    What a worker meets, its case meets again when it is measured, and is recorded there.
    """
    if not torch.cuda.is_available():
        return  # kernels are interpreted: there is nothing to compile
    with fresh_processes(jobs) as pool:
        for future in [pool.submit(_run_once, *case) for case in cases]:
            future.exception()


Wanted = tuple[Shape, str, list[str]]


def in_chunks(wanted: list[Wanted], shapes: int = CHUNK) -> list[list[Wanted]]:
    """Cut what is wanted into pieces of some shapes, so that a cut run has measured the first.

    Nothing is timed while anything is compiled: the device would be shared.
    """
    order = list(dict.fromkeys(shape for shape, _, _ in wanted))
    pieces = [set(order[first : first + shapes]) for first in range(0, len(order), shapes)]
    return [[case for case in wanted if case[0] in piece] for piece in pieces]


def _run_once(shape: Shape, name: str, backward: bool) -> None:
    attend = IMPLEMENTATIONS[name].build(shape, device())
    q, k, v, grad = draw(shape)
    out = attend(q, k, v)
    if backward:
        torch.autograd.grad(out, (q, k, v), grad)


@commands.defaults_of(measure)
def run(
    out: Path,
    shapes: tuple[Literal[*SETS], ...] = ("article",),
    implementations: tuple[Literal[*IMPLEMENTATIONS], ...] = tuple(IMPLEMENTATIONS),
    passes: tuple[Literal[*PASSES], ...] = PASSES,
    jobs: int = 0,
    *,
    replayed: bool,
) -> Path:
    """Measure all that ``attention.csv`` under ``out`` does not have yet; returns its path.

    Args:
        out: Folder of the results.
        shapes: Sets of them.
        implementations: Ours and the peers.
        passes: Forward and backward.
        jobs: Processes that compile ahead.
        replayed: Time replays of a CUDA graph, without the host, into ``replayed.csv``.
    """
    if tuple(shapes) != ("tiny",):
        require_gpu("--shapes tiny")
    results = "replayed" if replayed else "attention"
    table = Table(out / f"{results}.csv", COLUMNS, KEY)
    wanted = []
    for set_name in shapes:
        allowed = ("forward",) if set_name in FORWARD_ONLY else passes
        for shape in SETS[set_name]:
            for name in implementations:
                key = {**dataclasses.asdict(shape), **_origin(), "implementation": name}
                missing = [p for p in allowed if not table.has(**key, **{"pass": p})]
                if missing:
                    wanted.append((shape, name, missing))
    if not wanted:
        return table.path
    ceilings = measure_ceilings()
    write_environment(out, results, ceilings=dataclasses.asdict(ceilings))
    for chunk in in_chunks(wanted):
        if jobs:
            compile_ahead(
                [
                    (shape, name, "backward" in missing)
                    for shape, name, missing in chunk
                    if IMPLEMENTATIONS[name].compiles
                ],
                jobs,
            )
        for shape, name, missing in chunk:
            for row in measure(shape, name, missing, ceilings, replayed):
                table.add(**row)
                print(_shown(row))
            torch.compiler.reset()  # one shape's graphs are of no use to the next
            require_working_device()
    return table.path


def _shown(row: dict[str, object]) -> str:
    sizes = " ".join(f"{row[name]}" for name in SIZES)
    ending = f"{row['ms']} ms" if row["status"] == "ok" else row["message"]
    return f"{sizes}  {row['pass']:8} {row['implementation']:12} {row['status']:6} {ending}"


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    print(commands.run(run, "python -m benchmarks attention", arguments, __doc__))


if __name__ == "__main__":
    main()
