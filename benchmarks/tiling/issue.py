"""What a tile costs of a multiprocessor: executed instructions of ours and of a peer, no time.

``python -m benchmarks issue`` compiles our kernels for Hopper without a GPU, and fla-core's beside
them if it is there, and reads the loops of the assembled code. Clocks are those for which each unit
of one H100 multiprocessor is busy with one tile: 4,096 bf16 tensor-core FLOPs, 4 warp instructions
and 16 special functions a clock (NVIDIA's Hopper white paper; CUDA programming guide, arithmetic
throughput at compute capability 9.0). The largest of the three is a lower bound, reached where
everything overlaps; nothing waits for memory here. Code outside of loops is left out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from flopcount import commands
from flopcount.tables import table
from kernels.attention.tilings import KERNELS
from validate.witnesses.compiled_code import (
    CompiledKernel,
    Launch,
    Segment,
    compile_all,
    compiling,
    read,
)
from validate.witnesses.processes import triton_processes

TENSOR, ISSUE, SPECIAL = 4096, 4, 16
"""FLOPs, warp instructions and special functions of a multiprocessor in a clock."""
MULTIPROCESSORS = 132
PEER = "fla-core==0.6.0"
PEER_FOLDER = Path("build/fla")
INSTALL = f"pip install --no-deps --target {PEER_FOLDER} {PEER} einops"
PEER_KERNELS = {
    "parallel_attn_fwd_kernel": "forward",
    "parallel_attn_bwd_kernel_dkv": "key_value",
    "parallel_attn_bwd_kernel_dq": "query",
}
HEAD_DIMS = (54, 64, 73, 78, 91, 96, 128)
HEADINGS = (
    "head dim", "pass", "whose", "tile", "loop", "instructions", "tensor", "issue", "special",
    "launch", "registers", "programs",
)  # fmt: skip


def clocks(segment: Segment, num_warps: int) -> tuple[float, float, float]:
    """Tensor, issue and special-function clocks of one pass of a loop.

    >>> clocks(Segment(True, 2 * 2 * 128 * 64 * 64, 280, 34), 8)
    (512.0, 560.0, 544.0)
    """
    return (
        segment.operations / TENSOR,
        segment.instructions * num_warps / ISSUE,
        32 * segment.special * num_warps / SPECIAL,
    )


def trips(pass_name: str, owned: int, visited: int, queries: int) -> tuple[int, int]:
    """Tiles of one head that a causal launch visits: on the diagonal, and in the loop beside it.

    >>> trips("forward", 128, 64, 512), trips("key_value", 128, 32, 300)
    ((8, 12), (10, 8))
    """
    diagonal = beside = 0
    for first in range(0, queries, owned):
        end = min(first + owned, queries)
        diagonal += -(-(end - first) // visited)
        beside += -(-((queries - end) if pass_name == "key_value" else first) // visited)
    return diagonal, beside


def compile_peer(head_dims: Sequence[int], queries: int, heads: int) -> list[CompiledKernel]:
    """The peer's kernels of a forward and a backward pass, bf16; none where it is not installed."""
    sys.path.insert(0, str(PEER_FOLDER.resolve()))
    try:
        from fla.ops.attn import parallel
    except ImportError:
        return []
    import torch

    kernels = []
    for head_dim in head_dims:
        compilations: list[tuple[Any, str, dict[str, Any]]] = []
        q = torch.empty(2, queries, heads, head_dim, dtype=torch.bfloat16)
        lse = torch.empty(2, queries, heads)
        with (
            compiling(compilations),
            mock.patch.object(parallel, "check_shared_mem", return_value=True),
        ):
            parallel.parallel_attn_fwd(q, q, q, None, None, 0.1)
            parallel.parallel_attn_bwd(q, q, q, q, None, lse, q, scale=0.1)
        kernels += [read(Launch("bfloat16", head_dim, 0), *kernel) for kernel in compilations]
    return [kernel for kernel in kernels if kernel.name in PEER_KERNELS]


def lines(kernel: CompiledKernel, queries: int, sequences_and_heads: int) -> list[list[str]]:
    """A line for each of two loops: beside the diagonal, and on it."""
    ours = kernel.name in KERNELS.values()
    by_name = {name: key for key, name in KERNELS.items()} | PEER_KERNELS
    pass_name = by_name[kernel.name]
    c = kernel.constants
    if ours:
        owned, visited = c["BLOCK_QUERIES"], c["BLOCK_KEYS"]
        if pass_name == "key_value":
            owned, visited = visited, owned
    else:
        owned, visited = c["BT"], c["BS"]
    # Ours begin with the diagonal, the peer's kernels that own queries end with it.
    first_two = kernel.segments[:2]
    diagonal, beside = first_two if ours or pass_name == "key_value" else first_two[::-1]
    counted = trips(pass_name, owned, visited, queries)
    of_loops = []
    loops = ("diagonal", "beside"), (diagonal, beside), counted
    for loop, segment, tiles in zip(*loops, strict=True):
        once = "" if segment.in_loop else ", with what is around it"
        each = clocks(segment, kernel.num_warps)
        launch = max(each) * tiles * sequences_and_heads / MULTIPROCESSORS
        of_loops.append(
            [
                str(kernel.launch.head_dim),
                pass_name + (f" {c['GRADIENT']}" if c.get("GRADIENT", "kv") != "kv" else ""),
                "ours" if ours else "fla-core",
                f"{owned} × {visited}",
                loop + once,
                str(segment.instructions),
                *(f"{x:,.0f}" for x in each),
                f"{launch / 1000:,.0f}",
                str(kernel.registers) + (f", spills {kernel.spill_stores} B" * bool(kernel.stack)),
                str(kernel.programs_per_multiprocessor),
            ]
        )
    return of_loops


def report(
    kernels: Iterable[CompiledKernel], queries: int, sequences_and_heads: int
) -> list[list[str]]:
    """The lines of all kernels, by head dim, pass and loop, ours first."""
    passes = list(KERNELS)
    all_lines = [line for kernel in kernels for line in lines(kernel, queries, sequences_and_heads)]
    return sorted(
        all_lines, key=lambda x: (int(x[0]), passes.index(x[1].split()[0]), x[4][0], x[2] != "ours")
    )


def compare(
    head_dims: tuple[int, ...] = HEAD_DIMS, queries: int = 512, batch: int = 80, heads: int = 8
) -> int:
    """Print tensor, issue and special-function clocks of each loop's tile, and of a launch.

    Args:
        head_dims: Channels of a head.
        queries: Positions of a sequence, causal, without a prefix.
        batch: Sequences of the launch.
        heads: Heads of the launch.
    """
    passes = tuple(KERNELS)
    kernels = compile_all([Launch("bfloat16", c, 0, passes=passes) for c in head_dims])
    with triton_processes(interpret=False) as pool:
        peers = pool.submit(compile_peer, head_dims, queries, heads).result()
    print(
        f"Executed instructions, not a time. bf16, causal, {queries} positions; clocks of one "
        "multiprocessor for a tile;\nlaunch: thousands of clocks in which the unit that binds is "
        f"busy, {batch} sequences of {heads} heads on {MULTIPROCESSORS} multiprocessors.\n"
    )
    print(table(HEADINGS, report([*kernels, *peers], queries, batch * heads)))
    if not peers:
        print(f"\nWithout the peer: {INSTALL}")
    return 0


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    sys.exit(commands.run(compare, "python -m benchmarks issue", arguments))


if __name__ == "__main__":
    main()
