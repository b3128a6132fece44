"""What the kernels issue when they run: every dot product, tallied in Triton's interpreter.

The real launches run on the host. Each dot's operands are read as it is issued, 2·M·N·K FLOPs, and
booked on the loop that issued it; loops report their iterations themselves. Data are fp16 or fp32:
the interpreter does not know bf16, whose tilings are those of fp16.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import triton

import flopcount as fc
from kernels.attention.launches import INTERPRETED, launch_backward, launch_forward
from kernels.attention.preparation import padded
from kernels.attention.tilings import tuned_tilings
from models.training.throughput import tiling_of
from validate.witnesses.processes import triton_processes


@dataclasses.dataclass(frozen=True)
class AttentionShape:
    """One attention layer.

    Attributes:
        batch: Sequences.
        queries: n, the latents.
        prefix: k, further keys before them.
        heads: Query heads.
        key_heads: Key-value heads, which divide them.
        head_dim: Channels of a head.
        dtype: The data's.
    """

    batch: int
    queries: int
    prefix: int
    heads: int
    key_heads: int
    head_dim: int
    dtype: torch.dtype = torch.float16


@dataclasses.dataclass
class LaunchTally:
    """What all programs of one launch issued.

    Attributes:
        name: The kernel's.
        constants: Its compile-time arguments.
        trips: Iterations of each loop, in the order of the kernel's source.
        operations: FLOPs of the dots that each loop issued.
        outside: FLOPs of dots outside of loops.
    """

    name: str
    constants: dict[str, Any]
    trips: list[int] = dataclasses.field(default_factory=list)
    operations: list[int] = dataclasses.field(default_factory=list)
    outside: int = 0

    @property
    def total(self) -> int:
        """FLOPs of all dots."""
        return sum(self.operations) + self.outside


class _Loop:
    """Where the running program is: which of its loops, and whether inside of it."""

    def __init__(self, launch: LaunchTally) -> None:
        self.launch = launch
        self.number = -1
        self.inside = False

    def counted(self, iterations: range) -> Iterator[int]:
        self.number += 1
        if self.number == len(self.launch.trips):
            self.launch.trips.append(0)
            self.launch.operations.append(0)
        for i in iterations:
            self.launch.trips[self.number] += 1
            self.inside = True
            yield i
        self.inside = False

    def issued(self, operations: int) -> None:
        if self.inside:
            self.launch.operations[self.number] += operations
        else:
            self.launch.outside += operations


@contextlib.contextmanager
def tallying(launches: list[LaunchTally]) -> Iterator[None]:
    """Tally every launch in the interpreter into ``launches``.

    Raises:
        RuntimeError: If Triton does not interpret.
    """
    from triton.runtime import interpreter

    if not INTERPRETED:
        raise RuntimeError("tallying needs TRITON_INTERPRET=1 before the first import of Triton")
    builder = interpreter.InterpreterBuilder
    launch, patch = interpreter.GridExecutor.__call__, interpreter._patch_lang
    begin = builder.set_grid_idx
    loop: _Loop

    def launched(self: Any, *arguments: Any, **options: Any) -> None:
        constants = {name: value for name, value in options.items() if name.isupper()}
        launches.append(LaunchTally(self.fn.__name__, constants))
        launch(self, *arguments, **options)

    def begun(self: Any, *program: int) -> None:
        nonlocal loop
        loop = _Loop(launches[-1])
        begin(self, *program)

    def patched(function: Any) -> Any:
        scope = patch(function)
        interpreted = triton.language.range

        def counted(*arguments: Any, **options: Any) -> Iterator[int]:
            return loop.counted(interpreted(*arguments, **options))

        if interpreted.__name__ != "counted":
            triton.language.range = counted
        return scope

    def issued(self: Any, a: Any, b: Any, accumulator: Any, *others: Any) -> Any:
        (m, k), n = a.data.shape, b.data.shape[1]
        loop.issued(2 * m * n * k)
        # Multiplying is what takes the interpreter's time, and no loop depends on its result.
        return accumulator

    with (
        mock.patch.object(interpreter.GridExecutor, "__call__", launched),
        mock.patch.object(interpreter, "_patch_lang", patched),
        mock.patch.object(builder, "create_dot", issued),
        mock.patch.object(builder, "set_grid_idx", begun),
    ):
        yield


def tally(shape: AttentionShape) -> list[LaunchTally]:
    """The launches of a forward and a backward pass, with all that they issued."""
    keys = shape.prefix + shape.queries

    def ones(length: int, heads: int) -> torch.Tensor:
        return torch.ones(shape.batch, length, heads, shape.head_dim, dtype=shape.dtype)

    q = ones(shape.queries, shape.heads)
    k = ones(keys, shape.key_heads)
    launches: list[LaunchTally] = []
    with tallying(launches):
        operands = padded(q, k, k, None, None, head_dim=shape.head_dim)
        out, lse = launch_forward(*operands, 0.1, shape.head_dim)
        launch_backward(out, *operands, out, lse, 0.1, 3 * [shape.head_dim])
    return launches


def by_pass(launches: list[LaunchTally]) -> dict[str, int]:
    """FLOPs by pass and part; a dot outside of a loop is of no part.

    The first loops of the forward kernel and of the queries' gradient are the latents', two of
    them; the others are the prefix's. Keys and values have a launch for each.
    """
    found = dict.fromkeys(
        ("self forward", "cross forward", "self backward", "cross backward", "outside"), 0
    )
    for launch in launches:
        found["outside"] += launch.outside
        if launch.name == "attention_key_value_gradient":
            part = "self" if launch.constants["CAUSAL"] else "cross"
            found[f"{part} backward"] += sum(launch.operations)
        elif launch.operations:
            phase = "forward" if launch.name == "attention_forward" else "backward"
            found[f"self {phase}"] += sum(launch.operations[:2])
            found[f"cross {phase}"] += sum(launch.operations[2:])
    return found


def tallies(shapes: tuple[AttentionShape, ...]) -> list[list[LaunchTally]]:
    """The launches of each shape; in a process of their own where Triton does not interpret."""
    if INTERPRETED:
        return [tally(shape) for shape in shapes]
    with triton_processes(interpret=True) as pool:
        return list(pool.map(tally, shapes))


def issued(shapes: tuple[AttentionShape, ...]) -> list[dict[str, int]]:
    """FLOPs that the kernels issue for each shape, by pass and part."""
    return [by_pass(launches) for launches in tallies(shapes)]


def formula(shape: AttentionShape) -> dict[str, int]:
    """The counter's executed FLOPs of one attention layer, by pass and part."""
    model = fc.PerceiverAR(
        vocab_size=1,
        num_latents=shape.queries,
        num_prefix=shape.prefix,
        num_channels=shape.heads * shape.head_dim,
        num_layers=1,
        num_heads=shape.heads,
    )
    tiling = tiling_of(shape.head_dim, shape.dtype.itemsize, shape.queries + shape.prefix)
    count = model.executed(tiling, batch_size=shape.batch)
    found: Counter[str] = Counter()
    for term in count.terms:
        if term.term in ("scores", "values"):
            found[f"{term.part} forward"] += term.forward
            found[f"{term.part} backward"] += term.backward
    return dict(found)


def differences(
    shapes: tuple[AttentionShape, ...],
) -> Iterator[tuple[AttentionShape, dict[str, int]]]:
    """The counter's executed FLOPs of each shape minus those that were issued."""
    for shape, seen in zip(shapes, issued(shapes), strict=True):
        counted = formula(shape)
        yield shape, {name: counted.get(name, 0) - flops for name, flops in seen.items()}


SHAPES = (
    AttentionShape(1, 131, 66, 1, 1, 73),
    AttentionShape(1, 129, 0, 1, 1, 54),
    AttentionShape(1, 40, 65, 2, 1, 200),
    AttentionShape(2, 37, 33, 1, 1, 19, torch.float32),
    AttentionShape(1, 70, 40, 1, 1, 121),
    AttentionShape(1, 1, 200, 1, 1, 249),
    AttentionShape(1, 260, 130, 1, 1, 96),
    AttentionShape(1, 512, 768, 1, 1, 64),
    AttentionShape(1, 45, 50, 1, 1, 91, torch.float32),
    AttentionShape(1, 33, 17, 1, 1, 160, torch.float32),
)
"""Shapes for every tiling that is shipped untuned; the first four are those of a quick run."""


def tuned_shapes() -> tuple[AttentionShape, ...]:
    """A shape for every tiling that was tuned, with as many keys as it was tuned for."""
    return tuple(
        AttentionShape(
            1, 131, keys - 131, 1, 1, padded - 7, torch.float16 if size == 2 else torch.float32
        )
        for size, padded, keys in sorted(
            {(*case[1:], keys) for case, by_keys in tuned_tilings().items() for keys in by_keys}
        )
    )
