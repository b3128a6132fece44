"""A meter for one's own training loop: tokens per second, utilisation, cost and time left."""

from __future__ import annotations

import collections
import dataclasses
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

from flopcount.count import Count
from flopcount.devices import DEFAULT_DTYPE, Device, find_device
from flopcount.sizes import quoted, require_at_most, require_int, require_positive_number

WARMUP_STEPS = 3
"""Steps in which memory is allocated, code compiled and clocks rise."""

SECONDS_PER_HOUR = 3600
LARGEST_BITS = 900
"""Of a step's FLOPs: what they are over 1e-30 s is a float."""


@dataclasses.dataclass(frozen=True)
class Speed:
    """What a step costs and what the hardware could do at most.

    Attributes:
        causal: Count of the step whose FLOPs the model needs; one at another level has no MFU.
        executed: Count of what is issued, for HFU.
        device: With the peak rate; None where it is not known.
        dtype: Of the matrix products, as the device's peaks name it.
        num_devices: Devices that share the step.

    """

    causal: Count
    executed: Count
    device: Device | None
    dtype: str
    num_devices: int

    def row(self, seconds: float) -> dict[str, float | None]:
        """The rates of a step that took ``seconds``; utilisations where a peak is known.

        One above 100 % is None, with a warning: a peak that is too low must not end a training.

        >>> import flopcount as fc
        >>> count = fc.Decoder(vocab_size=9, seq_len=3, num_channels=4, num_layers=1,
        ...                    num_heads=2).flops(batch_size=2)
        >>> mine = fc.Device("mine", {"bf16": fc.Peak(1e5, "an example")})
        >>> Speed(count, count, mine, "bf16", 1).row(0.5)  # 2 · 4,392 FLOPs, 6 tokens
        {'tokens_per_second': 12.0, 'flops_per_second': 17568.0, 'mfu': 0.17568, 'hfu': 0.17568}
        """
        row: dict[str, float | None] = {
            "tokens_per_second": self.causal.tokens / seconds,
            "flops_per_second": self.causal.total / seconds,
        }
        if self.device is None:
            return row
        asked = {"hfu": self.executed.hfu}
        if self.causal.level in (None, "causal"):
            asked = {"mfu": self.causal.mfu} | asked
        for name, ask in asked.items():
            try:
                row[name] = ask(seconds, self.device, self.dtype, self.num_devices)
            except ValueError:
                row[name] = None
                peak = self.device.peak(self.dtype).flops_per_second
                warnings.warn(
                    f"{name.upper()} is left empty where it is above 100% of {self.num_devices} × "
                    f"{peak:.4g} FLOP/s: check the peak, the batch size and the number of devices",
                    stacklevel=2,
                )
        return row


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a meter shows. What it cannot tell is None: rates while it warms up, a share of no peak.

    Attributes:
        steps: Taken so far, those of the warm-up too.
        tokens: Seen so far.
        seconds: Since the meter was made, whatever they were spent on.
        tokens_per_second: Of all devices together.
        flops_per_second: The model's FLOPs, of all devices together.
        mfu: Model FLOPs utilisation; 0.4 is 40 %.
        hfu: Hardware FLOPs utilisation.
        cost: Of all devices and seconds so far, in the currency of the price.
        seconds_left: To the last step, at the present rate.

    """

    steps: int
    tokens: int
    seconds: float
    tokens_per_second: float | None = None
    flops_per_second: float | None = None
    mfu: float | None = None
    hfu: float | None = None
    cost: float | None = None
    seconds_left: float | None = None

    def to_dict(self) -> dict[str, float]:
        """What is known, as loggers take it."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def __str__(self) -> str:
        parts = [f"step {self.steps:,}"]
        if self.tokens_per_second is not None:
            parts.append(f"{self.tokens_per_second:,.0f} tokens/s")
        parts += [
            f"{name.upper()} {share:.2%}"
            for name in ("mfu", "hfu")
            if (share := getattr(self, name)) is not None
        ]
        if self.cost is not None:
            parts.append(f"cost {self.cost:,.2f}")
        if self.seconds_left is not None:
            minutes, seconds = divmod(round(self.seconds_left), 60)
            parts.append(f"{minutes // 60}:{minutes % 60:02}:{seconds:02} left")
        return ", ".join(parts)


class Meter:
    """Call :meth:`step` after each step of a training, and :meth:`reading` when it is to be shown.

    Rates are steps over seconds, tokens and FLOPs being exact counts of one step. The first
    ``warmup_steps`` steps are in no rate, but in the cost. On a GPU the host runs ahead of the
    device: over many steps the rates are the device's, of a single step only if the loop waits for
    its loss.

    Args:
        model: What is trained: an architecture, counted at level ``causal``; or the
            :class:`~flopcount.count.Count` of one step, for example of a published convention, or
            measured by :func:`flopcount.torch.count`.
        batch_size: Sequences of one step: of all devices, and of all micro-batches that share an
            update.
        device: As of :meth:`Count.mfu <flopcount.count.Count.mfu>`; None: no utilisation.
        num_devices: Devices that share the step.
        dtype: Of the matrix products, as the device's peaks name it.
        checkpointing: Activation checkpointing, for HFU: ``"reentrant"`` or ``"non-reentrant"``.
        executed: What the hardware executes in a step, for HFU: ``model.executed(tiling, …)`` of
            fused kernels, ``model.flops("dense", …)`` of unfused attention. Unless given, the
            causal count with its recomputation.
        total_steps: Steps that will be taken, for the time left.
        total_tokens: Instead, tokens that will be seen.
        price_per_device_hour: For the cost, in any currency.
        warmup_steps: First steps that are in no rate; with 0, the clock starts here.
        window: Rates are of so many last steps; of all since the warm-up unless given.
        clock: Seconds that never go back; for tests.

    Raises:
        TypeError: If an argument has the wrong type, or a size is an array or a symbol.
        ValueError: If an argument is out of range, the device or dtype is unknown, or arguments
            contradict each other.

    >>> import flopcount as fc
    >>> gpt2 = fc.Decoder(vocab_size=50304, seq_len=1024, num_channels=768, num_layers=12,
    ...                   num_heads=12)
    >>> ticks = iter([0, 30, 31, 32, 32.41, 32.82, 33.23, 33.23])  # 30 s to compile, then 0.41 s
    >>> meter = fc.Meter(gpt2, batch_size=480, device="h100", num_devices=8, total_steps=1000,
    ...                  price_per_device_hour=2.5, clock=lambda: next(ticks))
    >>> for _ in range(6):
    ...     meter.step()
    >>> print(meter.reading())  # 8 devices · 33.23 s · 2.50 an hour; 994 steps of 0.41 s
    step 6, 1,198,829 tokens/s, MFU 12.09%, HFU 12.09%, cost 0.18, 0:06:48 left

    """

    def __init__(
        self,
        model: Any,
        batch_size: int,
        device: str | Device | None = None,
        num_devices: int = 1,
        *,
        dtype: str = DEFAULT_DTYPE,
        checkpointing: str | None = None,
        executed: Count | None = None,
        total_steps: int | None = None,
        total_tokens: int | None = None,
        price_per_device_hour: float | None = None,
        warmup_steps: int = WARMUP_STEPS,
        window: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        batch_size = require_int("batch_size", batch_size)
        causal = _count_of(model, batch_size, checkpointing)
        if executed is None:
            executed = causal
        elif not isinstance(executed, Count):
            raise TypeError(f"executed = {quoted(executed)}: expected a count of one step, or None")
        _require_step("executed", executed, batch_size)
        if device is not None:
            device = find_device(device)
            device.peak(dtype)
        devices = require_int("num_devices", num_devices)
        self.speed = Speed(causal, executed, device, dtype, devices)
        self.batch_size, self.tokens_per_step = batch_size, require_int("tokens", causal.tokens)
        if total_steps is not None and total_tokens is not None:
            raise ValueError(
                f"total_steps = {quoted(total_steps)}, total_tokens = {quoted(total_tokens)}: "
                "expected one of the two at most"
            )
        self.total_steps: int | None = None
        """Steps that will be taken; it may be set as soon as it is known."""
        if total_steps is not None:
            self.total_steps = require_int("total_steps", total_steps)
        if total_tokens is not None:
            self.total_steps = -(-require_int("total_tokens", total_tokens) // self.tokens_per_step)
        self.price_per_hour: float | None = None
        if price_per_device_hour is not None:
            price = require_positive_number("price_per_device_hour", price_per_device_hour)
            self.price_per_hour = price * devices
        self.warmup_steps = require_int("warmup_steps", warmup_steps, minimum=0)
        self.window = None if window is None else require_int("window", window)
        require_at_most("window", self.window or 0, "sys.maxsize - 1", sys.maxsize - 1)
        if not callable(clock):
            raise TypeError(f"clock = {quoted(clock)}: expected a function that gives seconds")
        self.steps = 0
        self._clock = clock
        self._started = self._last = float(clock())
        # Steps and seconds that rates are of, at the beginning and the end of the window.
        kept = None if self.window is None else self.window + 1
        self._marks = collections.deque([(0, 0.0)], kept)

    def _now(self) -> float:
        now = float(self._clock())
        if not now >= self._last:
            raise ValueError(f"clock = {now} after {self._last}: expected one that never goes back")
        return now

    def require_batch_size(self, batch_size: int) -> None:
        """Raise a ValueError if a loop takes other steps than those that are counted."""
        if batch_size != self.batch_size:
            raise ValueError(
                f"batch_size = {self.batch_size}: expected {quoted(batch_size)}, the sequences "
                "that all devices take in a step, accumulated gradients included"
            )

    def step(self) -> None:
        """Tell that a step has ended."""
        now = self._now()
        self.steps += 1
        if self.steps > self.warmup_steps:
            timed, seconds = self._marks[-1]
            if self.window is None and len(self._marks) == 2:
                self._marks.pop()
            self._marks.append((timed + 1, seconds + now - self._last))
        self._last = now

    def skip(self) -> None:
        """Leave the time since the last step out of the rates: an evaluation, a checkpoint."""
        self._last = self._now()

    def reading(self) -> Reading:
        """What the meter shows now."""
        elapsed = self._now() - self._started
        (first, start), (last, end) = self._marks[0], self._marks[-1]
        rates: dict[str, Any] = {}
        left = None
        if end > start:
            seconds_per_step = (end - start) / (last - first)
            rates = self.speed.row(seconds_per_step)
            if self.total_steps is not None:
                left = max(self.total_steps - self.steps, 0) * seconds_per_step
        hours = elapsed / SECONDS_PER_HOUR
        return Reading(
            steps=self.steps,
            tokens=self.steps * self.tokens_per_step,
            seconds=elapsed,
            cost=None if self.price_per_hour is None else self.price_per_hour * hours,
            seconds_left=left,
            **rates,
        )


def _count_of(model: Any, batch_size: int, checkpointing: str | None) -> Count:
    """The count of one step."""
    if isinstance(model, Count):
        if checkpointing is not None:
            raise ValueError(
                f"checkpointing = {quoted(checkpointing)} beside a count: expected a count with it"
            )
        count = model
    elif callable(getattr(model, "flops", None)):
        count = model.flops(batch_size=batch_size, checkpointing=checkpointing)
    else:
        raise TypeError(
            f"model = {quoted(model)}: expected an architecture, for example by "
            "flopcount.from_hf(config), or the count of a step"
        )
    _require_step("model", count, batch_size)
    return count


def _require_step(name: str, count: Count, batch_size: int) -> None:
    """Raise unless it is the count of one step of ``batch_size`` sequences, in ints."""
    if type(count.with_recompute) is not int:
        raise TypeError(f"{name} has sizes that are no ints: expected one model, of ints")
    if count.batch_size != batch_size:
        raise ValueError(
            f"batch_size = {batch_size}: expected that of the count that is given as {name}, "
            f"{quoted(count.batch_size)}"
        )
    if count.with_recompute.bit_length() > LARGEST_BITS:
        raise ValueError(
            f"{name} with batch_size = {quoted(batch_size)} has a step of {quoted(count.total)} "
            "FLOPs: expected what a float can hold"
        )
