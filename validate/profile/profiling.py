"""A function is called; its Triton launches, compiled for sm_90, are executed and counted."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flopcount.devices import Device
from validate.emulator.assembly import UnknownCodeError, access_bytes
from validate.emulator.counts import Counts, Traffic, product_of
from validate.emulator.launching import EmulatedLaunch, emulating
from validate.emulator.machine import LANES, WARPGROUP
from validate.emulator.memory import Array, GlobalMemory, MachineError
from validate.emulator.safety import Safety
from validate.profile.timing import Modelled, held_at_once, modelled
from validate.profile.traces import Program, Traces, TracingMachine

UNITS = ("tensor cores", "issue", "special functions", "shared memory", "bytes")
"""What a launch keeps busy."""


class ProfileError(ValueError):
    """A function that cannot be profiled, and why, in a line."""


@dataclasses.dataclass(frozen=True)
class Result:
    """A tensor that the function returned.

    Attributes:
        name: Where it stands in what was returned.
        shape: Its sizes.
        dtype: Of its elements.
        total: Sum of its elements, in fp64.
        magnitude: Sum of their absolute values, in fp64.
        sha256: The first digits of the digest of its bytes.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    total: float
    magnitude: float
    sha256: str


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of source within a loop of a kernel.

    Attributes:
        where: The innermost loop.
        source: File and line.
        counts: What it executed, by quantity, as of :func:`by_instruction`.
    """

    where: str
    source: str
    counts: dict[str, int]


@dataclasses.dataclass
class KernelProfile:
    """What all launches of a kernel executed.

    Attributes:
        name: The kernel's.
        configuration: What it took where it is autotuned; empty where not.
        launches: How many there were.
        programs: Of all launches.
        counts: By quantity.
        clocks: For which each of :data:`UNITS` is busy: see :func:`busy`.
        modelled: A model's time, not a measured one.
        lines: Where it was, the most instructions first.
        findings: Memory and registers touched too early, or not to be touched.
    """

    name: str
    configuration: str = ""
    launches: int = 0
    programs: int = 0
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    clocks: dict[str, float] = dataclasses.field(default_factory=dict)
    modelled: Modelled = dataclasses.field(default_factory=Modelled)
    lines: list[Line] = dataclasses.field(default_factory=list)
    findings: list[str] = dataclasses.field(default_factory=list)

    @property
    def binds(self) -> str:
        """The unit that is busy for longest."""
        return max(self.clocks, key=self.clocks.__getitem__)


@dataclasses.dataclass(frozen=True)
class Profile:
    """What a function's launches executed.

    Attributes:
        function: The function, as it was named.
        device: Whose rates the clocks are of.
        triton: The version that compiled.
        results: What it returned.
        kernels: In the order of their first launches.
        ended: Why it did not return; empty where it did.
    """

    function: str
    device: str
    triton: str
    results: tuple[Result, ...]
    kernels: tuple[KernelProfile, ...]
    ended: str = ""

    @property
    def findings(self) -> list[str]:
        """Those of all kernels, and why the function did not return."""
        findings = [f"{k.name} {finding}" for k in self.kernels for finding in k.findings]
        return [*findings, *([self.ended] if self.ended else [])]


def located(function: str) -> Callable[[], Any]:
    """The function that ``path/to/module.py:name`` names.

    Raises:
        ProfileError: If there is none.
    """
    file, separator, name = function.rpartition(":")
    path = Path(file)
    if not separator or path.suffix != ".py" or not path.is_file():
        raise ProfileError("expected path/to/module.py:name of a file")
    path = path.resolve()
    root, parts = path.parent, [path.stem]
    while (root / "__init__.py").is_file():
        root, parts = root.parent, [root.name, *parts]
    sys.path.insert(0, str(root))
    module = importlib.import_module(".".join(parts))
    if Path(str(module.__file__)).resolve() != path:
        raise ProfileError(f"{path.name} has the name of another module: expected one of its own")
    target = getattr(module, name, None)
    if not callable(target):
        known = [n for n, x in vars(module).items() if inspect.isfunction(x) and n[0] != "_"]
        raise ProfileError(f"no such function: expected one of {', '.join(known)}")
    return target  # type: ignore[no-any-return]


def tensors(value: Any, name: str = "result") -> Iterator[tuple[str, Any]]:
    """All tensors in what a function returned, each with where it stands."""
    import torch

    if isinstance(value, torch.Tensor):
        yield name, value.detach()
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from tensors(entry, f"{name}[{key!r}]")
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for i, entry in enumerate(value):
            yield from tensors(entry, f"{name}[{i}]")


def checksum(name: str, tensor: Any) -> Result:
    """What tells a tensor from others.

    >>> import torch
    >>> check = checksum("x", torch.tensor([1.5, -2.0]))
    >>> check.total, check.magnitude, check.dtype
    (-0.5, 3.5, 'float32')
    """
    import torch

    held = tensor.contiguous()
    exact = held.double()
    data = held.reshape(-1).view(torch.uint8).numpy().tobytes()
    return Result(
        name,
        tuple(tensor.shape),
        str(tensor.dtype).removeprefix("torch."),
        float(exact.sum()),
        float(exact.abs().sum()),
        hashlib.sha256(data).hexdigest()[:12],
    )


def busy(counts: Counts, device: Device, programs: int) -> dict[str, float]:
    """Clocks for which each unit is busy with a launch.

    Its work is taken to be spread evenly over as many multiprocessors as it has programs, at most
    all of them; bytes are those that are distinct, at the bandwidth of the device's memory.
    """
    rates = device.multiprocessors
    clock = device.clocks_per_second
    assert rates is not None
    assert device.bandwidth is not None
    used = min(programs, rates.count)
    traffic = counts.memory()
    moved = sum(n for name, n in traffic.items() if name.endswith("distinct bytes"))
    each = {
        "tensor cores": sum(
            n * clock / device.peak(kind).flops_per_second * rates.count
            for kind, n in products(counts).items()
        ),
        "issue": int(counts.executed.sum()) / rates.instructions,
        "special functions": sum(counts.special().values()) / rates.special_functions,
        "shared memory": 128 * traffic["shared wavefronts"] / rates.shared_bytes,
    }
    spread = {unit: clocks / used for unit, clocks in each.items()}
    return spread | {"bytes": moved / device.bandwidth.bytes_per_second * clock}


def products(counts: Counts) -> dict[str, int]:
    """FLOPs of tensor cores by the type of their operands, of warpgroups and of single warps."""
    by_type: collections.Counter[str] = collections.Counter()
    for shape, flops in counts.tensor_flops().items():
        by_type[shape.split()[1]] += flops
    return dict(by_type)


def quantities(counts: Counts) -> dict[str, int]:
    """What a launch executed, by quantity."""
    return {
        "instructions of warps": int(counts.executed.sum()),
        "tensor-core FLOPs": sum(products(counts).values()),
        "special functions": sum(counts.special().values()),
        **counts.memory(),
    }


def by_instruction(counts: Counts) -> dict[str, Array]:
    """What each instruction executed, by quantity.

    Bytes of loads and stores are those that lanes ask for; copies to shared memory are loads.
    """
    code, executed, traffic = counts.code.instructions, counts.executed, counts.traffic
    flops, special, size = np.zeros((3, len(code)), np.int64)
    for at in code:
        if product := product_of(at):
            (m, n, k), _ = product
            warps = WARPGROUP if at.opcode == "HGMMA" else 1
            flops[at.index] = 2 * m * n * k * int(executed[at.index]) // warps
        if at.opcode == "MUFU":
            special[at.index] = LANES * int(executed[at.index])
        if traffic.requests[at.index]:
            size[at.index] = access_bytes(at)
    return {
        "instructions": executed,
        "tensor-core FLOPs": flops,
        "special functions": special,
        "global requests": traffic.requests,
        "global bytes": traffic.lanes * size,
        "global sectors": traffic.sectors,
        "shared wavefronts": traffic.wavefronts,
        "shared conflicts": traffic.wavefronts - traffic.ideal,
    }


class Profiler:
    """Takes launches.

    Attributes:
        kernels: By name, in the order of their first launches.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.kernels: dict[str, KernelProfile] = {}
        self._lines: dict[str, dict[tuple[str, str], collections.Counter[str]]] = {}

    def take(self, launch: EmulatedLaunch) -> None:
        """Execute a launch, and add it to its kernel's.

        Raises:
            ValueError: Where a multiprocessor does not hold one of its programs.
            MachineError: Where it touches what it must not touch, or waits forever.
        """
        at_once = held_at_once(launch)
        kernel = self.kernels.setdefault(launch.name, KernelProfile(launch.name))
        traffic, safety, traces = Traffic(len(launch.operations)), Safety(), Traces()
        try:
            executed = launch.run(GlobalMemory(), (traffic, safety, traces), TracingMachine)
        finally:
            known = dict.fromkeys((*kernel.findings, *safety.findings))
            kernel.findings = list(known)
        counts = Counts(launch.code, executed, traffic, launch.declared)
        self._add(kernel, launch, counts, traces.programs(), at_once)

    def _add(
        self,
        kernel: KernelProfile,
        launch: EmulatedLaunch,
        counts: Counts,
        programs: list[Program],
        at_once: int,
    ) -> None:
        kernel.launches += 1
        kernel.programs += len(programs)
        clocks = busy(counts, self.device, len(programs))
        for into, values in ((kernel.counts, quantities(counts)), (kernel.clocks, clocks)):
            for name, value in values.items():
                into[name] = into.get(name, 0) + value
        assert self.device.multiprocessors is not None
        count = self.device.multiprocessors.count
        kernel.modelled.add(modelled(counts, programs, at_once, count, clocks["bytes"]))
        lines = self._lines.setdefault(launch.name, collections.defaultdict(collections.Counter))
        loops, quantity_of = counts.loops(), by_instruction(counts)
        for at in launch.code.instructions:
            if counts.executed[at.index]:
                i = next((i for i, (a, b) in enumerate(loops, 1) if a <= at.index <= b), 0)
                lines[f"loop {i}" if i else "no loop", at.source].update(
                    {name: int(numbers[at.index]) for name, numbers in quantity_of.items()}
                )
        kernel.lines = sorted(
            (Line(*key, dict(numbers)) for key, numbers in lines.items()),
            key=lambda line: -line.counts["instructions"],
        )


def profile(
    function: str, device: Device, configurations: Mapping[str, Mapping[str, str]]
) -> Profile:
    """Call a function, whose Triton launches are executed here; what it prints goes to stderr.

    Args:
        function: ``path/to/module.py:name``; it takes no arguments.
        device: Whose rates the clocks are of.
        configurations: Of an autotuned kernel, values of the configuration to take.

    Raises:
        ProfileError: If it cannot be called, raises, or launches nothing.
    """
    import triton

    from validate.profile.stand_in import standing_in

    profiler = Profiler(device)
    taken: dict[str, str] = {}
    returned, ended = None, ""
    with (
        contextlib.redirect_stdout(sys.stderr),
        emulating(profiler.take),
        standing_in(configurations, taken),
    ):
        try:
            returned = located(function)()
        except MachineError as error:
            ended = str(error)
        except (ProfileError, UnknownCodeError) as error:
            raise ProfileError(f"{function}: {error}") from None
        except Exception as error:
            at = traceback.extract_tb(error.__traceback__)[-1]
            said = " ".join(str(error).split()) or "no message"
            raise ProfileError(
                f"{function}: {type(error).__name__}: {said} ({Path(at.filename).name}:{at.lineno})"
            ) from None
    if not profiler.kernels:
        raise ProfileError(f"{function} launched no Triton kernel: expected one at least")
    if unknown := sorted(configurations.keys() - taken.keys()):
        raise ProfileError(
            f"configuration of {', '.join(unknown)}: expected an autotuned kernel that is "
            f"launched: {', '.join(taken) or 'there is none'}"
        )
    for name, configuration in taken.items():
        if name in profiler.kernels:
            profiler.kernels[name].configuration = configuration
    results = tuple(checksum(name, tensor) for name, tensor in tensors(returned))
    kernels = tuple(profiler.kernels.values())
    return Profile(function, device.name, triton.__version__, results, kernels, ended)
