"""Batches of a run, made ahead of the steps that use them.

A batch is a function of its step alone, so a run that makes batches ahead sees the same ones, and
continues from any step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor

Batch: TypeAlias = tuple[Tensor, Tensor]


@contextmanager
def prefetched(
    make: Callable[[int], Batch], steps: range, device: torch.device, ahead: int
) -> Iterator[Iterator[Batch]]:
    """Iterate over the batches of ``steps``, on ``device``.

    With ``ahead`` above 0 a thread makes so many batches before they are asked for; for a GPU it
    pins their memory and copies them on a stream of its own, while the step before is computed.

    Args:
        make: Gives the batch of a step, on the CPU.
        steps: Consecutive steps.
        device: Where the batches go.
        ahead: How many to make ahead; 0 makes each when it is asked for.

    Raises:
        ValueError: If ``ahead`` is negative.
        Exception: What ``make`` raises, at the step whose batch it was making.

    >>> def make(step):
    ...     return torch.tensor([step]), torch.tensor([step + 1])
    >>> with prefetched(make, range(3, 5), torch.device("cpu"), ahead=2) as batches:
    ...     [(inputs.item(), targets.item()) for inputs, targets in batches]
    [(3, 4), (4, 5)]
    """
    if ahead < 0:
        raise ValueError(f"prefetch must be at least 0, got {ahead}")
    if ahead == 0:
        yield (_to(make(step), device) for step in steps)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        if device.type == "cuda":
            fetch = _CopyAhead(make, device)
            batches = (fetch.receive(made) for made in _ahead(thread, fetch.send, steps, ahead))
        else:
            batches = iter(_ahead(thread, make, steps, ahead))
        try:
            yield batches
        finally:
            thread.shutdown(cancel_futures=True)


def _ahead(thread, make, steps: range, ahead: int):
    """Give ``make(step)`` for each step, the calls for the next ``ahead`` steps under way."""
    waiting: list[Future] = [thread.submit(make, step) for step in steps[:ahead]]
    for step in steps:
        if step + ahead in steps:
            waiting.append(thread.submit(make, step + ahead))
        yield waiting.pop(0).result()


def _to(batch: Batch, device: torch.device) -> Batch:
    inputs, targets = batch
    return inputs.to(device), targets.to(device)


class _CopyAhead:
    """Copies from pinned memory on a stream of its own: the thread sends, the step receives."""

    def __init__(self, make: Callable[[int], Batch], device: torch.device) -> None:
        self.make, self.device = make, device
        self.stream = torch.cuda.Stream(device)

    def send(self, step: int) -> tuple[Batch, torch.cuda.Event]:
        inputs, targets = (tensor.pin_memory() for tensor in self.make(step))
        with torch.cuda.stream(self.stream):
            # Pinned memory is reused only after copies that are under way.
            batch = (
                inputs.to(self.device, non_blocking=True),
                targets.to(self.device, non_blocking=True),
            )
            return batch, self.stream.record_event()

    def receive(self, sent: tuple[Batch, torch.cuda.Event]) -> Batch:
        batch, copied = sent
        current = torch.cuda.current_stream(self.device)
        current.wait_event(copied)
        for tensor in batch:  # its memory belongs to the other stream until this one is done
            tensor.record_stream(current)
        return batch
