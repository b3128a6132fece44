"""Peak rates of accelerators, each with the document that states it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from before.sizes import quoted, require_positive_number

DTYPES = ("fp64", "fp32", "tf32", "bf16", "fp16", "fp8")


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
        if not isinstance(self.reference, str) or not self.reference.strip():
            raise ValueError("reference is empty: expected the document that states the peak")


@dataclasses.dataclass(frozen=True)
class Device:
    """An accelerator and its peak rates.

    Attributes:
        name: As users write it, lower case.
        peaks: Peak rate by dtype, one of :data:`DTYPES`.

    >>> mine = Device("mine", {"bf16": Peak(1e14, "measured, 8192³ matmul")})
    >>> mine.peak("bf16").flops_per_second
    100000000000000.0

    """

    name: str
    peaks: Mapping[str, Peak]

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

    def peak(self, dtype: str) -> Peak:
        """The peak for ``dtype``.

        Raises:
            ValueError: If the device has none; the known ones are listed.

        """
        if not isinstance(dtype, str) or dtype not in self.peaks:
            raise ValueError(
                f"dtype = {quoted(dtype)}: expected one of {', '.join(self.peaks)} on {self.name}"
            )
        return self.peaks[dtype]


def _device(name: str, reference: str, **tflops: float) -> Device:
    peaks = {dtype: Peak(rate * 1e12, reference) for dtype, rate in tflops.items()}
    return Device(name, peaks)


_H100_SXM = dict(fp64=66.9, fp32=66.9, tf32=494.7, bf16=989.4, fp16=989.4, fp8=1978.9)
_UNITS = "dense; fp64 on tensor cores, fp32 beside them"
_HOPPER = "NVIDIA H100 Tensor Core GPU Architecture whitepaper V1.04, Table 2"
_GOOGLE = "Google Cloud TPU documentation, system architecture of {}: peak compute per chip, dense"

DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        _device(
            "b200",
            "NVIDIA HGX B200 datasheet (1000 W), halved where it states sparsity; " + _UNITS,
            fp64=37.0,
            fp32=75.0,
            tf32=1100.0,
            bf16=2250.0,
            fp16=2250.0,
            fp8=4500.0,
        ),
        _device("h100", f"{_HOPPER}, SXM5; {_UNITS}", **_H100_SXM),
        _device(
            "h100-pcie",
            f"{_HOPPER}, PCIe; {_UNITS}",
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
            **_H100_SXM,
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
            fp32=91.6,
            tf32=183.0,
            bf16=362.05,
            fp16=362.05,
            fp8=733.0,
        ),
        _device("tpu-v4", _GOOGLE.format("TPU v4"), bf16=275.0),
        _device("tpu-v5e", _GOOGLE.format("TPU v5e"), bf16=197.0),
        _device("tpu-v5p", _GOOGLE.format("TPU v5p"), bf16=459.0),
        _device("tpu-v6e", _GOOGLE.format("TPU v6e"), bf16=918.0),
    )
}
"""Peak dense FLOP/s; a multiply-add is 2, and no peak assumes structured sparsity."""
ADDING = "flopcount.Device(name, {'bf16': flopcount.Peak(flops_per_second, reference)})"


def find_device(device: str | Device) -> Device:
    """The device of that name, or the :class:`Device` itself.

    Raises:
        TypeError: If ``device`` is neither a string nor a :class:`Device`.
        ValueError: If the name is unknown: an unknown device is never guessed.

    >>> find_device("h200").peak("bf16").flops_per_second
    989400000000000.0

    """
    if isinstance(device, Device):
        return device
    if not isinstance(device, str):
        raise TypeError(f"device = {quoted(device)}: expected a name or a flopcount.Device")
    if device.lower() not in DEVICES:
        raise ValueError(
            f"device = {quoted(device)}: expected one of {', '.join(DEVICES)}; for another, pass "
            f"{ADDING}"
        )
    return DEVICES[device.lower()]
