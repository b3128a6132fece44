"""Triton launches that are compiled for Hopper and then executed here, on the CPU's tensors."""

from __future__ import annotations

import contextlib
import dataclasses
import struct
from collections.abc import Iterable, Iterator
from typing import Any
from unittest import mock

import numpy as np

from validate.emulator.assembly import Code, read_code
from validate.emulator.decoding import SIZE_WORDS, STACK_WORD
from validate.emulator.machine import LOCAL_BYTES, Machine, Operation
from validate.emulator.memory import Array, GlobalMemory
from validate.emulator.operations import decoded

FORMATS = {"i8": "b", "i16": "h", "i32": "i", "i64": "q", "u1": "?", "u8": "B", "u16": "H",
           "u32": "I", "u64": "Q", "fp32": "f", "fp64": "d"}  # fmt: skip
"""How a parameter of each of Triton's types is packed."""
SIDE_BY_SIDE = 32
"""Warpgroups, at most, whose programs run at once: more share an instruction's cost, but leave the
processor's cache."""


@dataclasses.dataclass
class EmulatedLaunch:
    """A launch of a compiled kernel.

    Attributes:
        code: The kernel's code.
        operations: What its instructions do.
        constants: Compile-time arguments in capitals.
        grid: Programs along each axis.
        num_warps: Warps of a program.
        shared: Bytes of shared memory of a program.
        arguments: Numbers and tensors in the order of the kernel's parameters.
        types: Triton's type of each.
        declared: FLOPs and bytes that the kernel declares for profiles.
        digest: What tells its code from that of others.
    """

    code: Code
    operations: list[Operation]
    constants: dict[str, Any]
    grid: tuple[int, int, int]
    num_warps: int
    shared: int
    arguments: list[Any]
    types: list[str]
    declared: dict[str, Any]
    digest: str = ""

    @property
    def name(self) -> str:
        """The kernel's."""
        return self.code.name

    def programs(self) -> Array:
        """Identifiers of all programs, (programs, 3)."""
        x, y, z = (np.arange(size) for size in self.grid)
        places = np.meshgrid(z, y, x, indexing="ij")
        return np.stack([place.ravel() for place in places[::-1]], axis=1)

    def constant_bank(self, memory: GlobalMemory) -> Array:
        """Constant bank 0 in 32-bit words: sizes of programs and grid, stack's end, parameters.

        Raises:
            ValueError: If the cubin places other parameters than Triton passes.
        """
        placed = self.code.parameters
        scratch = len(placed) - len(self.arguments)
        if scratch < 0 or any(size != 8 for _, size in placed[len(self.arguments) :]):
            raise ValueError(
                f"{self.name} must have {len(self.arguments)} parameters and pointers to scratch, "
                f"got {placed}"
            )
        bank = bytearray(max(offset + size for offset, size in placed) + 16)
        for (offset, size), value, kind in zip(placed, self.arguments, self.types, strict=False):
            packed = (
                struct.pack("<Q", memory.address(value))
                if kind.startswith("*")
                else struct.pack("<" + FORMATS[kind], value)
            )
            if len(packed) != size:
                raise ValueError(f"a parameter of {size} bytes must be given for {kind}")
            bank[offset : offset + size] = packed
        words = np.frombuffer(bytes(bank[: len(bank) // 4 * 4]), np.uint32).copy()
        words[SIZE_WORDS] = 32 * self.num_warps, 1, 1, *self.grid
        words[STACK_WORD] = LOCAL_BYTES
        return words

    def run(
        self,
        memory: GlobalMemory | None = None,
        observers: Iterable[Any] = (),
        kind: type[Machine] = Machine,
    ) -> Array:
        """Execute all programs: how often each instruction was executed, by warps."""
        memory = memory or GlobalMemory()
        bank = self.constant_bank(memory)
        programs = self.programs()
        executed = np.zeros(len(self.operations), np.int64)
        together = max(1, SIDE_BY_SIDE * 4 // self.num_warps)
        for first in range(0, len(programs), together):
            some = programs[first : first + together]
            machine = kind(
                self.code, self.operations, bank, some, self.num_warps, self.shared, memory,
                observers=observers,
            )  # fmt: skip
            for observer in observers:
                observer.begin(machine)
            machine.run()
            executed += machine.executed
        return executed


_codes: dict[str, tuple[Code, list[Operation]]] = {}


def _code_of(kernel: Any) -> tuple[Code, list[Operation]]:
    """A compiled kernel's code, read once in a process."""
    if kernel.hash not in _codes:
        code = read_code(kernel.metadata.name, kernel.asm["cubin"])
        _codes[kernel.hash] = code, decoded(code)
    return _codes[kernel.hash]


def _flat(types: Any, values: Any) -> Iterator[tuple[str, Any]]:
    """Types and values of what is passed at run time, tuples taken apart."""
    for kind, value in zip(types, values, strict=True):
        if isinstance(kind, (tuple, list)):
            yield from _flat(kind, value)
        elif kind != "constexpr":
            yield kind, value


def launch_of(
    function: Any, kernel: Any, bound: dict[str, Any], grid: Any, digest: str
) -> EmulatedLaunch:
    """A launch as Triton would have made it."""
    if callable(grid):
        grid = grid(bound)
    signature = kernel.src.signature
    passed = list(_flat(signature.values(), [bound[name] for name in signature]))
    code, operations = _code_of(kernel)
    declare = function.launch_metadata
    return EmulatedLaunch(
        code,
        operations,
        {name: value for name, value in bound.items() if name.isupper()},
        (*grid, 1, 1)[:3],
        kernel.metadata.num_warps,
        kernel.metadata.shared,
        [value for _, value in passed],
        [kind for kind, _ in passed],
        declare(grid, kernel.metadata, bound) if declare else {},
        digest,
    )


@contextlib.contextmanager
def emulating(run: Any = EmulatedLaunch.run) -> Iterator[None]:
    """Let Triton launches on the CPU's tensors execute here, and the public functions accept them.

    Args:
        run: Takes each launch; by default it is executed.

    Raises:
        RuntimeError: If Triton was imported to interpret.
    """
    import triton
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    from kernels.attention import attention
    from validate.witnesses.compiled_code import _HopperWithoutDevice, kernel_digest

    if triton.knobs.runtime.interpret:
        raise RuntimeError("emulating needs a process without TRITON_INTERPRET")
    launch = JITFunction.run

    def launched(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = launch(self, *arguments, grid=grid, warmup=True, **options)
        binder = self.device_caches[driver.active.get_current_device()][4]
        bound, _, _ = binder(
            *arguments, **options, debug=False, instrumentation_mode=""
        )  # fmt: skip
        run(launch_of(self, kernel, bound, grid, kernel_digest(self, arguments, options)))
        return kernel

    driver.set_active(_HopperWithoutDevice())
    with (
        mock.patch.object(JITFunction, "run", launched),
        mock.patch.object(attention, "unsupported", return_value=None),
    ):
        yield
