"""Peak rates and memories of accelerators, each with the document that states it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from flopcount.sizes import is_array, quoted, require_int, require_positive_number

DTYPES = ("fp64", "fp32", "tf32", "bf16", "fp16", "fp8")
"""What a device may have a peak for."""
DEFAULT_DTYPE = "bf16"
GB, GIB = 10**9, 2**30
ROUNDING = 1e-12
"""A share of a peak above 1 by less is 1: the time that it was computed from was rounded."""


@dataclasses.dataclass(frozen=True)
class Peak:
    """A peak dense rate: no peak exists without the document that states it.

    Attributes:
        flops_per_second: FLOP/s without sparsity, fp32 accumulation for 16-bit products.
        reference: The vendor's document.

    Raises:
        TypeError: If the rate is not a number.
        ValueError: If the rate is not positive or the reference is empty.

    >>> Peak(989.4e12, "NVIDIA H100 datasheet").flops_per_second
    989400000000000.0

    """

    flops_per_second: float
    reference: str

    def __post_init__(self) -> None:
        rate = require_positive_number("flops_per_second", self.flops_per_second)
        object.__setattr__(self, "flops_per_second", rate)
        _require_reference(self.reference, "peak")


@dataclasses.dataclass(frozen=True)
class Bandwidth:
    """The rate between a device and its own memory: none without the document that states it.

    Attributes:
        bytes_per_second: Bytes/s, a byte being 8 bits.
        reference: The vendor's document.

    Raises:
        TypeError: If the rate is not a number.
        ValueError: If the rate is not positive or the reference is empty.

    >>> Bandwidth(3.35e12, "NVIDIA AIConfigurator").bytes_per_second
    3350000000000.0

    """

    bytes_per_second: float
    reference: str

    def __post_init__(self) -> None:
        rate = require_positive_number("bytes_per_second", self.bytes_per_second)
        object.__setattr__(self, "bytes_per_second", rate)
        _require_reference(self.reference, "bandwidth")


@dataclasses.dataclass(frozen=True)
class Memory:
    """The size of a device's own memory: none without the document that states it.

    Attributes:
        size_bytes: Bytes; a document's GB are 10^9 and its GiB 2^30.
        reference: The vendor's document.

    Raises:
        TypeError: If the size is not an integer.
        ValueError: If the size is not positive or the reference is empty.

    >>> Memory(192 * 2**30, "AMD ROCm documentation, GPU hardware specifications").size_bytes
    206158430208

    """

    size_bytes: int
    reference: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "size_bytes", require_int("size_bytes", self.size_bytes))
        _require_reference(self.reference, "size")


@dataclasses.dataclass(frozen=True)
class Multiprocessors:
    """What the multiprocessors of a device do in a clock: no rates without their document.

    Attributes:
        count: How many there are.
        tensor_flops: bf16 FLOPs of one's tensor cores in a clock, dense.
        instructions: Instructions of warps that one issues in a clock.
        special_functions: Exponentials and the like that one does in a clock.
        shared_bytes: Bytes that one's shared memory moves in a clock.
        reference: The vendor's documents.

    Raises:
        TypeError: If a figure is not an integer.
        ValueError: If a figure is not positive or the reference is empty.

    >>> Multiprocessors(132, 4096, 4, 16, 128, "NVIDIA H100 whitepaper").instructions
    4

    """

    count: int
    tensor_flops: int
    instructions: int
    special_functions: int
    shared_bytes: int
    reference: str

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self)[:-1]:
            number = require_int(field.name, getattr(self, field.name))
            object.__setattr__(self, field.name, number)
        _require_reference(self.reference, "rates")


def _require_reference(reference: object, what: str) -> None:
    if not isinstance(reference, str) or not reference.strip():
        raise ValueError(f"reference is empty: expected the document that states the {what}")


@dataclasses.dataclass(frozen=True)
class Device:
    """An accelerator, its peak rates and its memory.

    Attributes:
        name: As users write it, lower case.
        peaks: Peak rate by dtype, one of :data:`DTYPES`.
        bandwidth: Of its own memory; None where no document was read that states it.
        memory: Its size; None where no document was read that states it, or it comes in several.
        multiprocessors: Their rates; None where no document was read that states them.

    >>> mine = Device("mine", {"bf16": Peak(1e14, "measured, 8192³ matmul")})
    >>> mine.peak("bf16").flops_per_second
    100000000000000.0
    >>> mine.bandwidth is None
    True

    """

    name: str
    peaks: Mapping[str, Peak]
    bandwidth: Bandwidth | None = None
    memory: Memory | None = None
    multiprocessors: Multiprocessors | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise TypeError(f"name = {quoted(self.name)}: expected a non-empty string")
        if not isinstance(self.peaks, Mapping) or not all(
            dtype in DTYPES and isinstance(peak, Peak) for dtype, peak in self.peaks.items()
        ):
            raise TypeError(
                f"peaks = {quoted(self.peaks)}: expected a mapping from dtypes "
                f"({', '.join(DTYPES)}) to Peak"
            )
        for name, kind in (
            ("bandwidth", Bandwidth),
            ("memory", Memory),
            ("multiprocessors", Multiprocessors),
        ):
            given = getattr(self, name)
            if given is not None and not isinstance(given, kind):
                raise TypeError(
                    f"{name} = {quoted(given)}: expected a flopcount.{kind.__name__}, or None"
                )

    def peak(self, dtype: str) -> Peak:
        """The peak for ``dtype``.

        Args:
            dtype: A key of ``peaks``, such as ``"bf16"``.

        Raises:
            ValueError: If the device has none; the known ones are listed.
        """
        if not self.peaks:
            raise ValueError(
                f"device = {quoted(self.name)} without peaks: expected one whose peaks have "
                f"{quoted(dtype)}"
            )
        if not isinstance(dtype, str) or dtype not in self.peaks:
            raise ValueError(
                f"dtype = {quoted(dtype)}: expected one of {', '.join(self.peaks)} on {self.name}"
            )
        return self.peaks[dtype]

    @property
    def clocks_per_second(self) -> float:
        """The clock at which the bf16 peak is stated: peak / (multiprocessors · FLOPs in a clock).

        Raises:
            ValueError: If the rates of its multiprocessors are not known.

        >>> f"{find_device('h100').clocks_per_second / 1e9:.2f} GHz"
        '1.83 GHz'

        """
        rates = self.multiprocessors
        if rates is None:
            known = ", ".join(name for name, d in DEVICES.items() if d.multiprocessors)
            raise ValueError(
                f"device = {quoted(self.name)}: expected one whose multiprocessors' rates are "
                f"known: {known}"
            )
        return self.peak("bf16").flops_per_second / (rates.count * rates.tensor_flops)


def _device(
    name: str,
    reference: str,
    bandwidth: Bandwidth | None = None,
    memory: Memory | None = None,
    multiprocessors: Multiprocessors | None = None,
    **tflops: float,
) -> Device:
    peaks = {dtype: Peak(rate * 1e12, reference) for dtype, rate in tflops.items()}
    return Device(name, peaks, bandwidth, memory, multiprocessors)


_H100_SXM: dict[str, Any] = dict(
    fp64=66.9, fp32=66.9, tf32=494.7, bf16=989.4, fp16=989.4, fp8=1978.9
)
_HOPPER_NVL: dict[str, Any] = dict(
    fp64=60.0, fp32=60.0, tf32=417.5, bf16=835.5, fp16=835.5, fp8=1670.5
)
_UNITS = "dense; fp64 on tensor cores, fp32 beside them"
_HALVED = f"halved where it states sparsity; {_UNITS}"
_HOPPER = "NVIDIA H100 Tensor Core GPU Architecture whitepaper V1.04, Table 2"
_IN_A_CLOCK = (
    f"{_HOPPER}: multiprocessors; 1,024 dense fp16 FLOPs of each of a multiprocessor's 4 tensor "
    "cores; CUDA C++ Programming Guide, compute capability 9.0: 4 schedulers, arithmetic "
    "instructions (16 special functions), 32 banks of shared memory of 32 bits"
)
_BLACKWELL = "NVIDIA Blackwell datasheet, individual Blackwell GPU specifications, {}, " + _HALVED
_GEFORCE = "{}; dense, fp32 accumulation; fp32 beside tensor cores"
_GOOGLE = "Google Cloud TPU documentation, system architecture of {}: peak compute per chip, dense"
_TPU_TABLE = "Google Cloud documentation, TPU architecture specifications: HBM {} per chip"
_TPU_V4 = (
    "Google Cloud TPU documentation, system architecture of TPU v4: HBM2 capacity and bandwidth"
)
_TPU_V5E = (
    "Google Cloud TPU documentation, system architecture of TPU v5e: HBM2 capacity and bandwidth "
    "per chip, 16 GB, 819 GBps (later versions of the page print 800 GiBps)"
)
_SYSTEMS = "NVIDIA AIConfigurator, src/aiconfigurator/systems/{} in {}"
_B200, _H100 = (
    _SYSTEMS.format(f"{name}.yaml", "tianhaox/aiconfigurator at fb73bd5")
    for name in ("b200_sxm", "h100_sxm")
)
_L40S = _SYSTEMS.format("l40s.yaml", "ai-dynamo/aiconfigurator at ee962fc")
_NIM = "NVIDIA NIM for large language models 1.6.0, supported models: GPUs and their memory"
_H200_LAUNCH = (
    "NVIDIA TensorRT-LLM documentation, blogs/H200launch.md at 1555478: latest HBM memory"
)
_MI300_MEMORY = "AMD ROCm documentation, GPU hardware specifications: VRAM of the {}"

DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        _device(
            "b300",
            "NVIDIA Blackwell Ultra datasheet, individual Blackwell Ultra GPU specifications, "
            "HGX B300 (1100 W), halved: it states sparsity",
            bf16=2250.0,
            fp16=2250.0,
            fp8=4500.0,
        ),
        _device(
            "gb200",
            _BLACKWELL.format("GB200 NVL72 (1200 W): one GPU, of which a superchip has two"),
            fp64=40.0,
            fp32=80.0,
            tf32=1250.0,
            bf16=2500.0,
            fp16=2500.0,
            fp8=5000.0,
        ),
        _device(
            "b200",
            _BLACKWELL.format("HGX B200 (1000 W)"),
            Bandwidth(8e12, _B200),
            Memory(180 * GIB, _B200),
            fp64=37.0,
            fp32=75.0,
            tf32=1100.0,
            bf16=2250.0,
            fp16=2250.0,
            fp8=4500.0,
        ),
        _device(
            "h100",
            f"{_HOPPER}, SXM5; {_UNITS}",
            Bandwidth(3.35e12, _H100),
            Memory(80 * GIB, _H100),
            Multiprocessors(132, 4096, 4, 16, 128, _IN_A_CLOCK),
            **_H100_SXM,
        ),
        _device("h100-nvl", f"NVIDIA H100 datasheet, H100 NVL, {_HALVED}", **_HOPPER_NVL),
        _device(
            "h100-pcie",
            f"{_HOPPER}, PCIe; {_UNITS}",
            multiprocessors=Multiprocessors(114, 4096, 4, 16, 128, _IN_A_CLOCK),
            fp64=51.2,
            fp32=51.2,
            tf32=378.0,
            bf16=756.0,
            fp16=756.0,
            fp8=1513.0,
        ),
        _device(
            "h200",
            "NVIDIA H200 datasheet, SXM: the compute rates of H100 SXM; digits from "
            f"{_HOPPER}; {_UNITS}",
            Bandwidth(4.8e12, _H200_LAUNCH),
            Memory(141 * GB, _H200_LAUNCH),
            **_H100_SXM,
        ),
        _device(
            "h200-nvl",
            f"NVIDIA H200 datasheet, H200 NVL, {_HALVED}",
            memory=Memory(141 * GB, _NIM),
            **_HOPPER_NVL,
        ),
        _device(
            "a100",
            f"NVIDIA A100 Tensor Core GPU Architecture whitepaper V1.0, Table 1; {_UNITS}",
            fp64=19.5,
            fp32=19.5,
            tf32=156.0,
            bf16=312.0,
            fp16=312.0,
        ),
        _device(
            "v100",
            "NVIDIA V100 datasheet, SXM2; dense; fp16 on tensor cores, the rest beside them",
            fp64=7.8,
            fp32=15.7,
            fp16=125.0,
        ),
        _device(
            "a10",
            "NVIDIA A10 datasheet, the figures without sparsity; fp32 beside tensor cores",
            fp32=31.2,
            tf32=62.5,
            bf16=125.0,
            fp16=125.0,
        ),
        _device(
            "l4",
            "NVIDIA L4 datasheet, halved where it states sparsity; dense; fp32 beside tensor cores",
            fp32=30.3,
            tf32=60.0,
            bf16=121.0,
            fp16=121.0,
            fp8=242.5,
        ),
        _device(
            "l40s",
            "NVIDIA L40S datasheet, the figures without sparsity; fp32 beside tensor cores",
            Bandwidth(864e9, _L40S),
            Memory(48 * GB, _NIM),
            fp32=91.6,
            tf32=183.0,
            bf16=362.05,
            fp16=362.05,
            fp8=733.0,
        ),
        _device(
            "rtx-4090",
            _GEFORCE.format("NVIDIA Ada GPU Architecture whitepaper V2.02, Appendix A"),
            memory=Memory(24 * GB, _NIM),
            fp32=82.6,
            tf32=82.6,
            bf16=165.2,
            fp16=165.2,
            fp8=330.3,
        ),
        _device(
            "rtx-5090",
            _GEFORCE.format("NVIDIA RTX Blackwell GPU Architecture whitepaper V1.1, Table 3"),
            memory=Memory(32 * GB, _NIM),
            bf16=209.5,
            fp8=419.0,
        ),
        _device(
            "mi300x",
            "AMD ROCm documentation, AMD Instinct MI300 series microarchitecture: peak-performance "
            "capabilities of the MI300X; dense; fp64 and fp32 on matrix cores",
            Bandwidth(
                5.3e12,
                "AMD ROCm documentation, AMD Instinct MI300 series microarchitecture: theoretical "
                "aggregated peak memory bandwidth",
            ),
            Memory(192 * GIB, _MI300_MEMORY.format("MI300X")),
            fp64=163.4,
            fp32=163.4,
            tf32=653.7,
            bf16=1307.4,
            fp16=1307.4,
            fp8=2614.9,
        ),
        _device(
            "mi325x",
            "AMD Instinct MI325X product page, footnote MI325-002: peak theoretical rates, dense",
            memory=Memory(256 * GIB, _MI300_MEMORY.format("MI325X")),
            bf16=1307.4,
            fp16=1307.4,
            fp8=2614.9,
        ),
        _device(
            "tpu-v4",
            _GOOGLE.format("TPU v4"),
            Bandwidth(1200e9, _TPU_V4),
            Memory(32 * GIB, _TPU_V4),
            bf16=275.0,
        ),
        _device(
            "tpu-v5e",
            _GOOGLE.format("TPU v5e"),
            Bandwidth(819e9, _TPU_V5E),
            Memory(16 * GB, _TPU_V5E),
            bf16=197.0,
        ),
        _device(
            "tpu-v5p",
            _GOOGLE.format("TPU v5p"),
            Bandwidth(2765e9, _TPU_TABLE.format("bandwidth")),
            Memory(95 * GIB, _TPU_TABLE.format("capacity")),
            bf16=459.0,
        ),
        _device(
            "tpu-v6e",
            _GOOGLE.format("TPU v6e"),
            Bandwidth(1638e9, _TPU_TABLE.format("bandwidth")),
            Memory(32 * GIB, _TPU_TABLE.format("capacity")),
            bf16=918.0,
        ),
        _device(
            "tpu-v7",
            _GOOGLE.format("TPU7x (Ironwood)"),
            Bandwidth(7380e9, _TPU_TABLE.format("bandwidth")),
            Memory(192 * GIB, _TPU_TABLE.format("capacity")),
            bf16=2307.0,
            fp8=4614.0,
        ),
    )
}
"""Peak dense FLOP/s; a multiply-add is 2, and no peak assumes structured sparsity."""

TORCH_NAMES: dict[str, str] = {
    "AMD Instinct MI300X": "mi300x",
    "AMD Instinct MI325X": "mi325x",
    "NVIDIA A10": "a10",
    "NVIDIA A100 80GB PCIe": "a100",
    "NVIDIA A100-PCIE-40GB": "a100",
    "NVIDIA A100-SXM4-40GB": "a100",
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA B200": "b200",
    "NVIDIA B300 SXM6 AC": "b300",
    "NVIDIA GB200": "gb200",
    "NVIDIA GeForce RTX 4090": "rtx-4090",
    "NVIDIA GeForce RTX 5090": "rtx-5090",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H100 NVL": "h100-nvl",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H200": "h200",
    "NVIDIA H200 NVL": "h200-nvl",
    "NVIDIA L4": "l4",
    "NVIDIA L40S": "l40s",
    "Tesla V100-SXM2-16GB": "v100",
    "Tesla V100-SXM2-32GB": "v100",
}
"""What ``torch.cuda.get_device_name()`` says, in full: a part of a name tells no device."""
ADDING = "flopcount.Device(name, {'bf16': flopcount.Peak(flops_per_second, reference)})"


def find_device(device: str | Device) -> Device:
    """The device of that name, or the :class:`Device` itself.

    Args:
        device: A name in :data:`DEVICES`, what ``torch.cuda.get_device_name()`` says of one
            (:data:`TORCH_NAMES`, to the letter), or a device of one's own.

    Raises:
        TypeError: If ``device`` is neither a string nor a :class:`Device`.
        ValueError: If the name is unknown: an unknown device is never guessed.

    >>> find_device("h200").peak("bf16").flops_per_second
    989400000000000.0
    >>> find_device("NVIDIA H100 NVL").name
    'h100-nvl'

    """
    if isinstance(device, Device):
        return device
    if not isinstance(device, str):
        raise TypeError(f"device = {quoted(device)}: expected a name or a flopcount.Device")
    name = TORCH_NAMES.get(device, device.lower())
    if name not in DEVICES:
        raise ValueError(
            f"device = {quoted(device)}: expected one of {', '.join(DEVICES)}, or the full name "
            f"that torch.cuda.get_device_name() gives one of them; for another, pass {ADDING}"
        )
    return DEVICES[name]


def given_device(flops_per_second: float, dtype: str = DEFAULT_DTYPE) -> Device:
    """A device of which its user states the peak.

    Raises:
        TypeError: If the rate is not a number, or the dtype unknown.
        ValueError: If the rate is not positive.

    >>> given_device(2e12, "fp32").peak("fp32").flops_per_second
    2000000000000.0

    """
    return Device("given", {dtype: Peak(flops_per_second, "given by the user")})


def require_utilisation(name: str, share: Any, check: str) -> Any:
    """Return ``share``, a number or an array, if it is at most 1.

    More than all of a peak is no measurement: an input is wrong, or the peak.

    Args:
        name: What it is a share of, or the argument's name, for the error.
        share: Of the peak.
        check: What the error says to check.

    Raises:
        ValueError: If it exceeds 1 by more than rounding; of an array, the first such element is
            named.

    >>> require_utilisation("MFU", 1.25, "seconds")
    Traceback (most recent call last):
    ...
    ValueError: MFU = 1.25, which is 125.00% of the peak: expected at most 100%; check seconds

    """
    if is_array(share):
        import numpy as np

        above = np.argwhere(share > 1 + ROUNDING)
        if not len(above):
            return share
        index = tuple(int(position) for position in above[0])
        name, share = f"{name}[{', '.join(map(str, index))}]", share[index]
    elif share <= 1 + ROUNDING:
        return share
    raise ValueError(
        f"{name} = {float(share):.6g}, which is {float(share):,.2%} of the peak: expected at most "
        f"100%; check {check}"
    )
