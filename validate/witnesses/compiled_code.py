"""What the kernels compile to for Hopper: instructions, registers, shared memory. No GPU needed.

Triton's own launch path decides how a kernel is specialised: real launches are made, on tensors in
the host's memory, with a driver that only names the target, and stop before anything would run.
Triton and torch are imported by the functions that compile, so that they can run in processes of
their own where Triton does not interpret.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import inspect
import io
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import kernels.attention
from kernels.attention.tilings import (
    KERNELS,
    PASSES,
    WIDEST_CUT,
    Tiling,
    padded_head_dim,
    shipped_tiling,
)
from validate.witnesses.processes import triton_processes
from validate.witnesses.source_code import code_of

SOURCES = ("forward.py", "backward.py", "preparation.py", "tiles.py", "launches.py")
"""The files of ``kernels/attention`` that are compiled, or decide how."""
COMPUTE_CAPABILITY = 90
QUERIES = 512
KEY_HEADS = 8
SHARED_MEMORY = 227 * 1024
"""Bytes that a program may take on Hopper, of 228 KiB; one is reserved for each program."""
PRODUCTS_BY_GRADIENT = {"kv": 4, "v": 2, "k": 3}
"""Products of a tile where a launch computes these gradients."""
DTYPES = ("bfloat16", "float16", "float32")


@dataclasses.dataclass(frozen=True)
class Launch:
    """A forward and a backward pass to compile.

    Attributes:
        dtype: One of :data:`DTYPES`.
        head_dim: Channels of a head.
        prefix: Positions of the prefix.
        group: Query heads of a key-value head.
        turned: Whether queries and keys go through the rotary embedding, which pads them.
        keys: Number of keys that the tilings are for, if another than the positions' number.
        tilings: Tilings to take instead of those that are shipped, by pass.
        passes: Those to compile alone; where there are none, all, and the pass over rows.
    """

    dtype: str
    head_dim: int
    prefix: int = 768
    group: int = 1
    turned: bool = False
    keys: int | None = None
    tilings: tuple[tuple[str, Tiling], ...] = ()
    passes: tuple[str, ...] = ()

    @property
    def shipped(self) -> dict[str, Tiling]:
        """The tilings that it takes, by pass."""
        size = 4 if self.dtype == "float32" else 2
        keys = QUERIES + self.prefix if self.keys is None else self.keys
        chosen = dict(self.tilings)
        return {
            name: chosen.get(name) or shipped_tiling(name, self.head_dim, size, keys)
            for name in PASSES
        }


class Kernel(NamedTuple):
    """What a launch asks Triton for: its name, CAUSAL and GRADIENT, and :func:`kernel_digest`."""

    name: str
    causal: str
    gradient: str
    digest: str


@dataclasses.dataclass(frozen=True)
class Segment:
    """A loop's body, or the code between two loops.

    Attributes:
        in_loop: Whether it is a loop's body.
        operations: FLOPs of its matrix instructions, all warps of a program together.
        instructions: That each warp issues in it, of all kinds.
        special: Those of them that the special-function unit serves.
    """

    in_loop: bool
    operations: int
    instructions: int
    special: int = 0


@dataclasses.dataclass(frozen=True)
class CompiledKernel:
    """What one kernel of a launch compiles to.

    Attributes:
        name: The kernel's.
        launch: Where it came from.
        constants: Its compile-time arguments.
        num_warps: Warps of a program.
        registers: Of a thread.
        stack: Bytes of a thread's stack frame.
        spill_stores: Bytes that a thread spills.
        serialized: Whether the assembler makes every wgmma wait for the one before.
        shared: Bytes of shared memory of a program.
        instructions: How often each shape of wgmma stands in the code, or ``"mma.sync"``.
        copies: How often an asynchronous copy of so many bytes stands in the code.
        segments: Those with matrix instructions, in the order of the code.
        digest: Of all that decides what it compiles to.
    """

    name: str
    launch: Launch
    constants: dict[str, Any]
    num_warps: int
    registers: int
    stack: int
    spill_stores: int
    serialized: bool
    shared: int
    instructions: dict[str, int]
    copies: dict[int, int]
    segments: tuple[Segment, ...]
    digest: str = ""

    @property
    def product_operations(self) -> int:
        """FLOPs of one product of one tile: 2·M·J·(sum of parts)."""
        channels = sum(width for _, width in self.constants["PARTS"])
        return 2 * self.constants["BLOCK_QUERIES"] * self.constants["BLOCK_KEYS"] * channels

    @property
    def loop_products(self) -> tuple[int, ...]:
        """Products of a tile in each loop of the kernel's source, in its order.

        The forward pass and the gradient of the queries have a loop on the diagonal and one below
        it, and with a prefix one for its whole blocks and one for its end. The gradient of keys and
        values has a loop on the diagonal where it is causal, and one for the rest.
        """
        if self.name == "attention_forward":
            return (2,) * (4 if self.constants["HAS_PREFIX"] else 2)
        if self.name == "attention_query_gradient":
            return (3,) * (4 if self.constants["HAS_PREFIX"] else 2)
        if self.name == "attention_key_value_gradient":
            loops = 1 + self.constants["CAUSAL"] + self.constants["END_APART"]
            return (PRODUCTS_BY_GRADIENT[self.constants["GRADIENT"]],) * loops
        return ()

    def executed(self, trips: Iterable[int]) -> int:
        """FLOPs of a run in which the loops of the source have so many iterations.

        Source: each segment's own operations; where code that is no loop stands for a loop of at
        most one iteration, it runs as often. Loops of code that never multiplies give none.
        """
        if not self.segments:
            return 0
        return sum(s.operations * n for s, n in zip(self.segments, trips, strict=True))

    @property
    def programs_per_multiprocessor(self) -> int:
        """How many programs share a multiprocessor."""
        return programs_at_once(self.registers, self.num_warps, self.shared)

    def faults(self) -> list[str]:
        """What a shipped kernel must not show, in words; empty where all is well."""
        texts = []
        if self.spill_stores or self.stack:
            texts.append(f"spills {self.spill_stores} bytes, stack of {self.stack}")
        if self.serialized:
            texts.append("wgmma serialised")
        if self.shared > SHARED_MEMORY:
            texts.append(f"{self.shared} bytes of shared memory")
        if self.loop_products:
            found_in_code = [segment.operations for segment in self.segments]
            expected = [products * self.product_operations for products in self.loop_products]
            if found_in_code != expected:
                texts.append(f"{found_in_code} FLOPs in loops whose tiles have {expected}")
            if self.launch.dtype != "float32":
                if "mma.sync" in self.instructions or not self.instructions:
                    texts.append("no wgmma")
                # What runs once at most need not be a loop: a square tile's diagonal, an end.
                c = self.constants
                square = c["BLOCK_QUERIES"] == c["BLOCK_KEYS"] and c.get("CAUSAL", True)
                ends = c.get("HAS_PREFIX", False) or c.get("END_APART", False)
                loops = self.segments[square : len(self.segments) - ends]
                if not all(segment.in_loop for segment in loops):
                    texts.append("products outside of loops")
                if not self.copies:
                    texts.append("no asynchronous copies")
        return texts


def programs_at_once(registers: int, num_warps: int, shared: int) -> int:
    """How many programs share a multiprocessor: 64 Ki registers, 228 KiB, 64 warps, 32 programs.

    Registers are handed out to warps in units of 256.

    >>> programs_at_once(168, 8, 60_000), programs_at_once(32, 1, 0)
    (1, 32)
    """
    of_a_warp = -(-32 * registers // 256) * 256
    by_registers = 65536 // of_a_warp // num_warps
    return min(by_registers, 228 * 1024 // (shared + 1024), 64 // num_warps, 32)


@functools.cache
def kernel_code() -> str:
    """The kernels' source, without comments, docstrings and what they declare to profilers."""
    folder = Path(kernels.attention.__file__).parent
    texts = ((folder / name).read_text(encoding="utf-8") for name in SOURCES)
    return "\n".join(code_of(text, without="declare") for text in texts)


@functools.cache
def _code_digest(function: Any) -> str:
    """Triton's own digest of a jitted function and of all that it calls, but without comments.

    Triton's counts comments and the line that a function starts at, so it is taken of other text.
    """
    from triton.language import constexpr
    from triton.runtime.jit import DependenciesFinder, JITCallable

    digests: dict[int, str] = {}

    def digest(self: Any) -> str:
        if id(self) not in digests:
            digests[id(self)] = self._fn_name  # where it calls itself
            finder = DependenciesFinder(
                self._fn_name,
                self.__globals__,
                inspect.getclosurevars(self.fn).nonlocals,
                code_of(self.src),
            )
            finder.visit(self.parse())
            constants = sorted(
                (name, str(value))
                for (name, _), (value, _) in finder.used_global_vals.items()
                if isinstance(value, constexpr)
            )
            text = f"{finder.ret} {constants}"
            digests[id(self)] = hashlib.sha256(text.encode()).hexdigest()
        return digests[id(self)]

    _ = function.cache_key  # finds the constants that are used by what is called
    with mock.patch.object(JITCallable, "cache_key", property(digest)):
        return digest(function)


def kernel_digest(function: Any, arguments: Iterable[Any], options: dict[str, Any]) -> str:
    """Of all that Triton compiles a kernel from: same digest, same machine code.

    The kernel's code and what it calls, types of arguments, compile-time arguments, what is known
    of the others (multiples of 16), options such as the number of warps, and Triton's version.
    Neither comments nor the code that makes the launch matter.

    Args:
        function: The jitted function.
        arguments: Of the launch, by position.
        options: Of the launch, by name: compile-time arguments and Triton's options.
    """
    from triton.runtime.driver import driver

    options = {**options, "debug": False, "instrumentation_mode": ""}
    _, _, _, backend, binder = function.device_caches[driver.active.get_current_device()]
    bound, specialization, others = binder(*arguments, **options)
    chosen, *known = function._pack_args(backend, options, bound, specialization, others)
    # Of libraries, paths are the installation's and contents are those of Triton's version.
    libraries = {"extern_libs": [name for name, _ in chosen.extern_libs]}
    decisive = (
        function.fn.__name__,
        _code_digest(function),
        *known,
        sorted((vars(chosen) | libraries).items()),
        importlib.metadata.version("triton"),
    )
    return hashlib.sha256(repr(decisive).encode()).hexdigest()[:12]


class _HopperWithoutDevice:
    """As much of a Triton driver as compiling asks for."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", COMPUTE_CAPABILITY, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@contextlib.contextmanager
def compiling(
    kernels: list[tuple[Any, str, dict[str, Any], str]],
    passes: Iterable[str] = (),
    wanted: Container[str] | None = None,
    launched: list[Kernel] | None = None,
) -> Iterator[None]:
    """Let launches compile for Hopper and not run: ``kernels``, ptxas's log, arguments, digest.

    Args:
        kernels: Is appended to.
        passes: Those whose kernels are compiled; all kernels where there are none.
        wanted: Digests of those to compile; all unless given.
        launched: Is appended what was launched, compiled or not.

    Raises:
        RuntimeError: If Triton was imported to interpret.
    """
    import triton
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    if triton.knobs.runtime.interpret:
        raise RuntimeError("compiling needs a process without TRITON_INTERPRET")
    launch = JITFunction.run
    names = {KERNELS[name] for name in passes}

    def compile_only(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        if names and self.fn.__name__ not in names:
            return None
        digest = kernel_digest(self, arguments, options)
        if launched is not None:
            constants = (str(options.get(name, "")) for name in ("CAUSAL", "GRADIENT"))
            launched.append(Kernel(self.fn.__name__, *constants, digest))
        if wanted is not None and digest not in wanted:
            return None
        log = io.StringIO()
        with contextlib.redirect_stdout(log):
            kernel = launch(self, *arguments, grid=grid, warmup=True, **options)
        if log.getvalue():  # empty for a kernel that this process has compiled before
            kernels.append((kernel, log.getvalue(), options, digest))
        return kernel

    driver.set_active(_HopperWithoutDevice())
    with (
        mock.patch.object(JITFunction, "run", compile_only),
        mock.patch.object(triton.knobs.compilation, "always_compile", True),
        mock.patch.object(triton.knobs.nvidia, "dump_ptxas_log", True),
    ):
        yield


def compile_launch(launch: Launch, wanted: Container[str] | None = None) -> list[CompiledKernel]:
    """Compile every kernel of a forward and a backward pass that was not compiled before.

    Args:
        launch: The passes.
        wanted: Digests of the kernels to compile; all unless given.
    """
    kernels: list[tuple[Any, str, dict[str, Any], str]] = []
    with compiling(kernels, launch.passes, wanted):
        make_launches(launch)
    return [read(launch, *kernel) for kernel in kernels]


def kernels_of(launches: Iterable[Launch]) -> list[list[Kernel]]:
    """The kernels of each launch, of which nothing is compiled; where Triton does not interpret."""
    by_launch = []
    for launch in launches:
        launched: list[Kernel] = []
        with compiling([], launch.passes, (), launched):
            make_launches(launch)
        by_launch.append(launched)
    return by_launch


def make_launches(launch: Launch) -> None:
    """Call for every kernel of a forward and a backward pass, on tensors of any content."""
    import torch

    from kernels.attention import preparation
    from kernels.attention.launches import launch_backward, launch_forward

    width = padded_head_dim(launch.head_dim)
    natural = width if width > WIDEST_CUT else launch.head_dim
    channels = width if launch.turned else natural
    dtype = getattr(torch, launch.dtype)
    heads = KEY_HEADS * launch.group

    def stored(length: int, num_heads: int, channels: int) -> Any:
        return torch.empty(2, length, num_heads, channels, dtype=dtype)

    q = stored(QUERIES, heads, channels)
    k = stored(launch.prefix + QUERIES, KEY_HEADS, channels)
    v = stored(launch.prefix + QUERIES, KEY_HEADS, natural)
    out = stored(QUERIES, heads, launch.head_dim)
    lse = torch.empty(2, heads, QUERIES)
    tilings = launch.shipped
    operands = preparation.padded(q, k, v, None, None, head_dim=launch.head_dim)
    launch_forward(*operands, 0.1, launch.head_dim, tilings)
    widths = (channels, channels, natural)
    launch_backward(out, *operands, out, lse, 0.1, widths, tilings)
    if launch.turned and not launch.passes:
        plain_q, plain_k = (stored(*x.shape[1:3], launch.head_dim) for x in (q, k))
        for pairs in (launch.head_dim // 4, launch.head_dim // 2):  # half of a head, and all
            table = torch.empty(1, launch.prefix + QUERIES, pairs, 2)
            prepare = preparation.launch_preparation
            prepare(plain_q, plain_k, None, table, width, False)
            prepare(q, k, None, table, launch.head_dim, True)


def read(
    launch: Launch, kernel: Any, log: str, options: dict[str, Any], digest: str
) -> CompiledKernel:
    """What a launch that :func:`compiling` found compiles to."""
    figures = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", log)
    registers = re.search(r"Used (\d+) registers", log)
    if not figures or not registers:
        raise ValueError(f"ptxas -v must state stack, spills and registers, got {log!r}")
    code = disassembled(kernel.asm["cubin"])
    segments, instructions = matrix_segments(code, kernel.metadata.num_warps)
    copied = re.findall(
        r"cp\.async\.c[ag]\.shared\.global[^;]*?\], (0x[0-9a-f]+)", kernel.asm["ptx"]
    )
    return CompiledKernel(
        name=kernel.metadata.name,
        launch=launch,
        constants={name: value for name, value in options.items() if name.isupper()},
        num_warps=kernel.metadata.num_warps,
        registers=int(registers[1]),
        stack=int(figures[1]),
        spill_stores=int(figures[2]),
        serialized="wgmma.mma_async instructions are serialized" in log,
        shared=kernel.metadata.shared,
        instructions=instructions,
        copies=dict(Counter(int(size, 16) for size in copied)),
        segments=segments,
        digest=digest,
    )


def disassembled(cubin: bytes) -> str:
    """Hopper assembly with labels, and above each run of instructions its line in the source."""
    import triton

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [triton.knobs.nvidia.nvdisasm.path, "--print-line-info", "--print-code", path]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def matrix_segments(code: str, num_warps: int) -> tuple[tuple[Segment, ...], dict[str, int]]:
    """Split code at its innermost loops, and sum the matrix instructions of each segment.

    A loop is what lies between a label and a later branch back to it. A wgmma is one instruction
    of each warpgroup, 2·M·N·K FLOPs. Where products run without tensor cores, the fused
    multiply-adds that come from the source lines of the tiles' products count, 2 FLOPs a thread.

    Args:
        code: What :func:`disassembled` returns.
        num_warps: Warps of a program.

    Returns:
        Segments with matrix instructions in the order of the code, and how often each shape stands.
    """
    of_products = product_lines()
    labels: dict[str, int] = {}
    operations: list[int] = []  # of each instruction
    special: list[bool] = []
    branches: list[tuple[int, str]] = []
    instructions: Counter[str] = Counter()
    in_product = False
    for line in code.splitlines():
        if source := re.search(r'//## File "(.*)", line (\d+)', line):
            in_product = source[1].endswith("attention/tiles.py") and int(source[2]) in of_products
        elif label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(operations)
        elif instruction := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?);", line):
            text = instruction[1]
            flops = 0
            if shape := re.search(r"HGMMA\.(\d+)x(\d+)x(\d+)", text):
                m, n, k = (int(size) for size in shape.groups())
                flops = 2 * m * n * k * (num_warps // 4)
                instructions[f"m{m}n{n}k{k}"] += 1
            elif re.search(r"\bHMMA\.", text):
                instructions["mma.sync"] += 1
            elif in_product and re.search(r"\bFFMA\b", text):
                flops = 2 * 32 * num_warps
            elif branch := re.search(r"\bBRA\b.*(\.L_x_\d+)", text):
                branches.append((len(operations), branch[1]))
            operations.append(flops)
            special.append(bool(re.search(r"\bMUFU\b", text)))
    loops = sorted((labels[target], at) for at, target in branches if labels[target] <= at)
    innermost = [
        (start, end)
        for start, end in loops
        if not any(start <= s and e <= end and (s, e) != (start, end) for s, e in loops)
    ]
    segments, at = [], 0
    for start, end in (*innermost, (len(operations), len(operations))):
        for in_loop, first, last in ((False, at, start), (True, start, end + 1)):
            numbers = sum(operations[first:last]), last - first, sum(special[first:last])
            segments.append(Segment(in_loop, *numbers))
        at = end + 1
    return tuple(s for s in segments if s.operations), dict(sorted(instructions.items()))


def product_lines() -> set[int]:
    """Lines of ``kernels/attention/tiles.py`` that multiply tiles."""
    from kernels.attention import tiles

    numbers: set[int] = set()
    for function in (tiles.product_over_channels, tiles.add_product_over_rows):
        lines, first = inspect_source(function)
        numbers |= set(range(first, first + lines))
    return numbers


def inspect_source(function: Any) -> tuple[int, int]:
    """How many lines a jitted function has, and its first."""
    lines, first = inspect.getsourcelines(function.fn)
    return len(lines), first


def compile_all(launches: Iterable[Launch], jobs: int | None = None) -> list[CompiledKernel]:
    """Compile launches in processes that do not interpret.

    Args:
        launches: What to compile.
        jobs: Processes; by default one for each core.

    Returns:
        What :func:`compile_launch` returns, for all of them.
    """
    with triton_processes(interpret=False, jobs=jobs or os.cpu_count() or 1) as pool:
        return [kernel for kernels in pool.map(compile_launch, launches) for kernel in kernels]


def differences(
    cases: Iterable[tuple[Launch, tuple[int, int, int]]], jobs: int | None = None
) -> Iterator[tuple[str, dict[str, int]]]:
    """Executed FLOPs by the counter minus those of the compiled code, and faults of the code.

    A kernel's loops are its code's, and how often each runs is what the interpreter's run of the
    same launch says: the counter is asked for the total alone.

    Args:
        cases: What to compile, with the number of heads, of queries and of prefix positions to run;
            with prefix positions as the launch has some or none. The tilings are those of the run.
        jobs: As for :func:`compile_all`.
    """
    import torch

    from validate.witnesses import kernel_tally

    cases = tuple(
        (dataclasses.replace(launch, keys=queries + prefix), (heads, queries, prefix))
        for launch, (heads, queries, prefix) in cases
    )
    compiled = compile_all((launch for launch, _ in cases), jobs)
    shapes = tuple(
        kernel_tally.AttentionShape(
            1, queries, prefix, heads * launch.group, heads, launch.head_dim,
            torch.float32 if launch.dtype == "float32" else torch.float16,
        )
        for launch, (heads, queries, prefix) in cases
    )  # fmt: skip
    tallies = kernel_tally.tallies(shapes)
    for (launch, _), shape, run in zip(cases, shapes, tallies, strict=True):
        kernels = {_identity(k.name, k.constants): k for k in compiled if k.launch == launch}
        executed = sum(
            kernels[_identity(tallied.name, tallied.constants)].executed(tallied.trips)
            for tallied in run
            if tallied.trips
        )
        counted = sum(kernel_tally.formula(shape).values())
        faults = [fault for kernel in kernels.values() for fault in kernel.faults()]
        yield (
            f"{launch}, {shape}",
            {
                "executed": counted - executed,
                "; ".join(faults) or "faults": len(faults),
            },
        )


def _identity(name: str, constants: dict[str, Any]) -> tuple[Any, ...]:
    return name, *(constants.get(x) for x in ("CAUSAL", "HAS_PREFIX", "GRADIENT"))


SHAPES = (
    (Launch("bfloat16", 19), (1, 131, 66)),
    (Launch("bfloat16", 73), (1, 300, 100)),
    (Launch("float32", 54), (1, 70, 40)),
    (Launch("bfloat16", 64, group=4), (1, 260, 130)),
    (Launch("bfloat16", 128), (1, 131, 66)),
    (Launch("bfloat16", 200), (1, 131, 66)),
    (Launch("float16", 96), (1, 200, 70)),
    (Launch("float32", 128), (1, 40, 20)),
)
"""What the matrix compares; the first in a quick run."""
