"""How fast a run is: tokens and FLOP/s, and what share of the hardware's peak they are.

MFU counts what the model needs, level ``causal``, and never recomputation. HFU counts what is
issued, recomputation too: the reference attention multiplies whole score rectangles (level
``dense``), the fused kernels whole tiles (level ``executed``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

import flopcount
from flopcount.devices import find_device, given_device
from flopcount.meter import Speed
from kernels.attention.tilings import PASSES, gradient_launches, shipped_tiling


def rates_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Give the rates of a whole run: means over its seconds, so that they agree with its totals.

    One that is empty in any row is None.

    Args:
        rows: Of the run's ``metrics.csv``, whose rates are of the steps since the row before.

    >>> rates_of([dict(seconds=1.0, tokens_per_second=500.0),  # a slow start
    ...           dict(seconds=4.0, tokens_per_second=900.0)])
    {'tokens_per_second': 800.0}
    """
    ends = [float(row["seconds"]) for row in rows]
    spent = [end - start for start, end in pairwise([0.0, *ends])]
    rates: dict[str, float | None] = {}
    for name in ("tokens_per_second", "flops_per_second", "mfu", "hfu"):
        if name in rows[-1]:
            values = [row[name] for row in rows]
            rates[name] = None
            if not {None, ""} & set(values):
                shares = zip(values, spent, strict=True)
                rates[name] = sum(float(rate) * part for rate, part in shares) / ends[-1]
    return rates


def peak_device(peak: str | None, peak_flops: float | None, dtype: str) -> flopcount.Device | None:
    """Find the device whose peak utilisations refer to; None if neither argument is given.

    Args:
        peak: A name that ``flopcount devices`` lists.
        peak_flops: Instead, FLOP/s of one device.
        dtype: That the rate is for.

    Raises:
        ValueError: If both are given, the name is unknown, the device has no peak for the dtype,
            or the rate is not positive.

    >>> peak_device("h100", None, "bf16").peak("bf16").flops_per_second
    989400000000000.0
    >>> peak_device(None, 2e12, "fp32").peak("fp32").flops_per_second
    2000000000000.0
    """
    if peak is not None and peak_flops is not None:
        raise ValueError(f"give peak or peak_flops, not both, got {peak!r} and {peak_flops}")
    if peak_flops is not None:
        return given_device(peak_flops, dtype)
    if peak is None:
        return None
    device = find_device(peak)
    device.peak(dtype)
    return device


def why_no_utilisation(device: torch.device) -> str:
    """Say why there is no MFU, and how to get one."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    return (
        f"no MFU: the peak rate of {name} is not stated; name a device of `flopcount devices` by "
        f"--peak, or give its FLOP/s by --peak-flops"
    )


def tiling_of(head_dim: int, element_size: int, num_keys: int) -> flopcount.Tiling:
    """The fused kernels' shipped tilings, as the counter takes them.

    Args:
        head_dim: Channels of a head.
        element_size: Bytes of an element.
        num_keys: Positions that a layer attends to.

    >>> tiling_of(73, 4, 512).forward
    (32, 16)
    """
    blocks = {
        name: tuple(shipped_tiling(name, head_dim, element_size, num_keys)[:2]) for name in PASSES
    }
    return flopcount.Tiling(
        **blocks,
        key_value_products=3 + len(gradient_launches(head_dim)),
        row_lanes=4 if element_size == 2 else 16,  # Triton's layout of products in fp32
    )


def measure(
    model: flopcount.PerceiverAR | flopcount.Decoder,
    batch_size: int,
    attention: str,
    checkpointing: str | None,
    device: flopcount.Device | None,
    dtype: str,
    num_devices: int,
) -> Speed:
    """Count a training step, to rate its times by.

    Args:
        model: The sizes.
        batch_size: Sequences a step, over all devices.
        attention: ``reference`` or ``fused``.
        checkpointing: Of activations, or None.
        device: With the peak rate, or None where it is not known.
        dtype: Of the matrix products.
        num_devices: Devices that share the step.

    Raises:
        ValueError: If an argument is none of these.

    """
    step = {"batch_size": batch_size, "checkpointing": checkpointing}
    if attention == "fused":
        head_dim = model.num_channels // model.num_heads
        size = 2 if dtype == "bf16" else 4
        tilings = {}
        if isinstance(model, flopcount.PerceiverAR):
            tilings = {"hybrid": tiling_of(head_dim, size, model.length + model.kept())}
        executed = model.executed(tiling_of(head_dim, size, model.length), tilings=tilings, **step)
    else:
        executed = model.flops(level="dense", **step)
    return Speed(
        causal=model.flops(level="causal", **step),
        executed=executed,
        device=device,
        dtype=dtype,
        num_devices=num_devices,
    )


def seconds_per_step(step: Callable[[], Any], seconds: float = 3.0) -> float:
    """Time a step by the host's clock: steps in a row, warmed up; launch gaps count.

    Args:
        step: Takes one.
        seconds: That as many steps as are timed should fill, three steps at least.

    """
    for _ in range(3):
        step()
    once = _clocked(step, 1)
    return _clocked(step, max(3, round(seconds / once)))


def _clocked(step: Callable[[], Any], steps: int) -> float:
    _wait_for_device()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    _wait_for_device()
    return (time.perf_counter() - started) / steps


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
