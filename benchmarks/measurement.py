"""Timing on the device, and the device's ceilings."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl

from flopcount.commands import refuse
from kernels.attention.launches import unsupported

ROOT = Path(__file__).parent.parent
FINDING = 3
"""Exit code of a check that ran to its end and found something wrong, or nothing to run with."""
ROUNDS = 3
WARM_UP_MS, ROUND_MS = 10, 60
REPLAYED = 10
"""Calls in a CUDA graph."""


def device() -> torch.device:
    """The GPU where there is one; else the CPU, where nothing is measured, only tried."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def require_gpu(instead: str) -> None:
    """End with one line where there is no GPU, whose work takes an interpreter days.

    Args:
        instead: The option that tries the command's path without a GPU.
    """
    if not torch.cuda.is_available():
        refuse(f"this needs a CUDA GPU, and torch finds none; {instead} tries it at tiny sizes")


def working_dtype() -> torch.dtype:
    """bf16; fp32 where the kernels refuse bf16, as Triton's interpreter makes them."""
    return torch.float32 if unsupported(device(), torch.bfloat16) else torch.bfloat16


def rounds_ms(call: Callable[[], Any], rounds: int = ROUNDS) -> list[float]:
    """Milliseconds of ``call`` on the device: for each round, the median of many calls.

    Device events around each call; the L2 cache is overwritten before it; calls are queued without
    synchronisation, so launches hide behind the work before them. Without a GPU, one call by the
    host's clock: a number that shows only that the path runs.
    """
    if not torch.cuda.is_available():
        started = time.perf_counter()
        call()
        return [1e3 * (time.perf_counter() - started)]
    bench = triton.testing.do_bench
    return [
        bench(call, warmup=WARM_UP_MS, rep=ROUND_MS, return_mode="median") for _ in range(rounds)
    ]


def replayed_ms(call: Callable[[], Any], rounds: int = ROUNDS) -> list[float]:
    """The same of ``call`` captured in a CUDA graph, where the host has nothing to do.

    Ten calls are captured and replayed one after the other; each round is the median of five
    replays. Nothing overwrites the L2 cache between them: operands should be larger. Autograd
    differentiates on the stream of the forward pass, so both must be called on one other than the
    default.
    """
    if not torch.cuda.is_available():
        return rounds_ms(call, rounds)
    for _ in range(3):
        call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        for _ in range(REPLAYED):
            call()

    def replay() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / REPLAYED

    replay()
    return [statistics.median(replay() for _ in range(5)) for _ in range(rounds)]


@dataclasses.dataclass(frozen=True)
class Ceilings:
    """What the device reached, each rate measured at its best case.

    Attributes:
        bytes_per_second: A large copy, bytes read and written both counted.
        matmul_flops_per_second: A large square product of random bf16 (fp32 without a GPU).
        exponentials_per_second: exp2 in fp32 on registers alone.
    """

    bytes_per_second: float
    matmul_flops_per_second: float
    exponentials_per_second: float

    def floor(self, num_bytes: int, flops: int, exponentials: int) -> tuple[float, str]:
        """The least milliseconds for that much work, and which of the three needs them.

        >>> Ceilings(1e12, 1e15, 1e13).floor(2 * 10**9, 10**12, 10**10)
        (2.0, 'bytes')
        """
        needed = {
            "bytes": 1e3 * num_bytes / self.bytes_per_second,
            "matmul": 1e3 * flops / self.matmul_flops_per_second,
            "exp": 1e3 * exponentials / self.exponentials_per_second,
        }
        binding = max(needed, key=lambda name: needed[name])
        return needed[binding], binding


@triton.jit
def repeated_exponentials(out, REPEATS: tl.constexpr, BLOCK: tl.constexpr):
    """X ← 2^(−x), REPEATS times on each of BLOCK registers: exponentials, and no memory."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = offsets.to(tl.float32) * 1e-9
    for _ in tl.range(0, REPEATS):
        x = tl.exp2(-x)
    tl.store(out + offsets, x)


def measure_ceilings() -> Ceilings:
    """Measure the three rates, now and on this device."""
    return Ceilings(_copy_rate(), _matmul_rate(), _exponential_rate())


def _copy_rate() -> float:
    source = torch.randn(2**30 if torch.cuda.is_available() else 2**10, device=device())
    target = torch.empty_like(source)
    ms = min(rounds_ms(lambda: target.copy_(source)))
    return 2 * source.nbytes / ms * 1e3


def _matmul_rate() -> float:
    size = 8192 if torch.cuda.is_available() else 64
    a, b = (torch.randn(size, size, device=device()).to(working_dtype()) for _ in range(2))
    return 2 * size**3 / min(rounds_ms(lambda: a @ b)) * 1e3


def _exponential_rate() -> float:
    # Enough programs for every multiprocessor many times over; enough work in each to fill it.
    programs, block, repeats = (132 * 16, 1024, 4096) if torch.cuda.is_available() else (2, 16, 3)
    out = torch.empty(programs * block, device=device())
    launch = repeated_exponentials[(programs,)]
    ms = min(rounds_ms(lambda: launch(out, repeats, block, num_warps=4)))
    return programs * block * repeats / ms * 1e3
