"""What a tile costs of a multiprocessor: executed instructions of ours and of peers, no time.

``python -m benchmarks issue`` compiles our kernels for Hopper without a GPU, and the peers' beside
them if they are there, and reads the loops of the assembled code. Clocks are those for which each
unit of one H100 multiprocessor is busy with one tile: 4,096 bf16 tensor-core FLOPs, 4 warp
instructions and 16 special functions a clock (NVIDIA's Hopper white paper; CUDA programming guide,
arithmetic throughput at compute capability 9.0). The largest of the three is a lower bound, reached
where everything overlaps; nothing waits for memory here. Code outside of loops is left out.
"""

from __future__ import annotations

import dataclasses
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from flopcount import commands
from flopcount.sizes import require_int
from flopcount.tables import paragraph, table
from kernels.attention.tilings import KERNELS, MAX_HEAD_DIM
from validate.witnesses.compiled_code import (
    CompiledKernel,
    Kernel,
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
PEERS = ("fla-core==0.6.0", "flash-attention-triton==0.1.1")
PEER_FOLDER = Path("build/fla")
INSTALL = f"pip install --no-deps --target {PEER_FOLDER} {' '.join(PEERS)} einops"
PEER_KERNELS = {
    "parallel_attn_fwd_kernel": "forward",
    "parallel_attn_bwd_kernel_dkv": "key_value",
    "parallel_attn_bwd_kernel_dq": "query",
}
"""fla-core's."""
PASSES = (*KERNELS, "gradients")
"""The last is both passes of gradients, which one kernel of a peer computes together."""
LOOPS = ("beside", "diagonal", "all", "prefix", "prefix end")
HEAD_DIMS = (54, 64, 73, 78, 91, 96, 128)
HEADINGS = (
    "head dim", "pass", "whose", "tile", "loop", "instructions", "a score", "tensor", "issue",
    "special", "launch", "registers", "spilled", "programs",
)  # fmt: skip


class Layout(NamedTuple):
    """How a kernel is cut.

    Attributes:
        whose: The heading of its owner's column.
        pass_name: One of :data:`PASSES`.
        owned: The constant that sizes a program's own block.
        visited: The constant that sizes the blocks that it loops over.
        loops: Of :data:`LOOPS`, in the order of the code.
    """

    whose: str
    pass_name: str
    owned: str
    visited: str
    loops: tuple[str, ...]


_OWN_QUERIES = "BLOCK_QUERIES", "BLOCK_KEYS", ("diagonal", "beside", "prefix", "prefix end")
LAYOUTS = {
    KERNELS["forward"]: Layout("ours", "forward", *_OWN_QUERIES),
    KERNELS["key_value"]: Layout(
        "ours", "key_value", "BLOCK_KEYS", "BLOCK_QUERIES", ("diagonal", "beside")
    ),
    KERNELS["query"]: Layout("ours", "query", *_OWN_QUERIES),
    **{
        name: Layout(
            "fla-core", of, "BT", "BS",
            ("diagonal", "beside") if of == "key_value" else ("beside", "diagonal"),
        )
        for name, of in PEER_KERNELS.items()
    },
    "_forward_kernel": Layout(
        "fa-triton", "forward", "BLOCK_Q_ROWS_SIZE", "BLOCK_KV_COLS_SIZE", ("all",)
    ),
    "_create_backward_kernel": Layout(
        "fa-triton", "gradients", "BLOCK_KV_COLS_SIZE", "BLOCK_Q_ROWS_SIZE", ("all",)
    ),
}  # fmt: skip


class Line(NamedTuple):
    """A loop of a kernel.

    Attributes:
        kernel: Whose loop it is.
        layout: The kernel's.
        tile: Owned and visited positions.
        loop: One of :data:`LOOPS`.
        segment: Its code.
        trips: Tiles of a head.
    """

    kernel: CompiledKernel
    layout: Layout
    tile: tuple[int, int]
    loop: str
    segment: Segment
    trips: int

    @property
    def per_score(self) -> float:
        """Instructions of a thread for one of its scores."""
        owned, visited = self.tile
        return self.segment.instructions * 32 * self.kernel.num_warps / (owned * visited)

    @property
    def clocks(self) -> tuple[float, float, float]:
        """See :func:`clocks`."""
        return clocks(self.segment, self.kernel.num_warps)

    def launch(self, sequences_and_heads: int) -> float:
        """Clocks of a launch in which the unit that binds is busy, on all multiprocessors."""
        return max(self.clocks) * self.trips * sequences_and_heads / MULTIPROCESSORS


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


def trips(pass_name: str, owned: int, visited: int, queries: int, prefix: int) -> dict[str, int]:
    """Tiles of one head that a causal launch visits, by loop.

    A gradient of keys and values has no loop of its own for the end of a range.

    >>> trips("forward", 128, 64, 512, 100)
    {'diagonal': 8, 'beside': 12, 'prefix': 4, 'prefix end': 4, 'all': 20}
    >>> trips("key_value", 128, 32, 300, 200)
    {'diagonal': 10, 'beside': 8, 'prefix': 20, 'prefix end': 0, 'all': 18}
    """
    of_keys = pass_name in ("key_value", "gradients")
    diagonal = beside = 0
    for first in range(0, queries, owned):
        end = min(first + owned, queries)
        diagonal += -(-(end - first) // visited)
        beside += -(-((queries - end) if of_keys else first) // visited)
    blocks = -(-queries // owned)
    whole, end = blocks * (prefix // visited), blocks * (prefix % visited > 0)
    if of_keys:
        whole, end = -(-prefix // owned) * -(-queries // visited), 0
    return {
        "diagonal": diagonal,
        "beside": beside,
        "prefix": whole,
        "prefix end": end,
        "all": diagonal + beside,
    }


Compiling = Callable[[int, int, int], None]
"""Launches a forward and a backward pass of so many queries, heads and channels of a head."""


def compile_peer(
    installed: Callable[[], Compiling | None], head_dims: Sequence[int], queries: int, heads: int
) -> list[CompiledKernel]:
    """A peer's kernels of a forward and a backward pass; none where it is not installed.

    A kernel that a GPU would tune is taken with the first of its configurations.
    """
    warnings.simplefilter("ignore")  # of packages that see no GPU
    sys.path.insert(0, str(PEER_FOLDER.resolve()))
    launch = installed()
    kernels = []
    compiled: dict[str, CompiledKernel] = {}
    for head_dim in head_dims if launch else ():
        new: list[tuple[Any, str, dict[str, Any], str]] = []
        launched: list[Kernel] = []
        with compiling(new, launched=launched):
            launch(queries, heads, head_dim)
        of = Launch("bfloat16", head_dim, 0)
        compiled |= {kernel.digest: kernel for kernel in (read(of, *each) for each in new)}
        # One that serves several head dims is compiled once.
        kernels += [dataclasses.replace(compiled[x.digest], launch=of) for x in launched]
    return [kernel for kernel in kernels if kernel.name in LAYOUTS]


def fla() -> Compiling | None:
    """fla-core's, in bf16; None where it is not installed."""
    try:
        from fla.ops.attn import parallel
    except ImportError:
        return None
    import torch

    def launch(queries: int, heads: int, head_dim: int) -> None:
        q = torch.empty(2, queries, heads, head_dim, dtype=torch.bfloat16)
        lse = torch.empty(2, queries, heads)
        with mock.patch.object(parallel, "check_shared_mem", return_value=True):
            parallel.parallel_attn_fwd(q, q, q, None, None, 0.1)
            parallel.parallel_attn_bwd(q, q, q, q, None, lse, q, scale=0.1)

    return launch


def flash_attention_triton() -> Compiling | None:
    """flash-attention-triton's, in fp16, to which it turns all; None where it is not installed."""
    try:
        from flash_attention_triton import flash_attention_v2
    except ImportError:
        return None
    import torch
    from triton.runtime.autotuner import Autotuner

    def first(self: Any, *arguments: Any, **options: Any) -> Any:
        return self.fn.run(*arguments, **options, **self.configs[0].all_kwargs())

    def launch(queries: int, heads: int, head_dim: int) -> None:
        shape = 2, heads, queries, head_dim
        q, k, v = (torch.empty(shape, dtype=torch.float16, requires_grad=True) for _ in "qkv")
        with (
            mock.patch.object(Autotuner, "run", first),
            mock.patch.object(torch.Tensor, "is_cuda", True),
            mock.patch.object(torch.cuda, "get_device_capability", return_value=(9, 0)),
        ):
            if head_dim <= 128:  # the widest that it takes
                flash_attention_v2(q, k, v).sum().backward()

    return launch


def lines(kernel: CompiledKernel, queries: int, prefix: int) -> list[Line]:
    """A line for each loop that visits whole tiles, or a range's last.

    Raises:
        ValueError: If the code has fewer loops than the kernel.
    """
    layout = LAYOUTS[kernel.name]
    tile = kernel.constants[layout.owned], kernel.constants[layout.visited]
    counted = trips(layout.pass_name, *tile, queries, prefix)
    loops = layout.loops if kernel.constants.get("HAS_PREFIX", True) else layout.loops[:2]
    if not kernel.constants.get("CAUSAL", True):
        loops = ("prefix",)
    if len(kernel.segments) < len(loops):
        raise ValueError(f"{kernel.name}: {len(kernel.segments)} loops, expected {loops}")
    return [
        Line(kernel, layout, tile, loop, segment, counted[loop])
        for loop, segment in zip(loops, kernel.segments, strict=False)
    ]


def report(
    kernels: Iterable[CompiledKernel], queries: int, sequences_and_heads: int, prefix: int
) -> tuple[list[list[str]], list[list[str]]]:
    """Cells of all loops, by head dim, pass and loop, ours first, and of whole launches."""
    sorted_lines = sorted(
        (line for kernel in kernels for line in lines(kernel, queries, prefix)),
        key=lambda x: (
            x.kernel.launch.head_dim, PASSES.index(x.layout.pass_name), LOOPS.index(x.loop),
            x.layout.whose != "ours",
        ),
    )  # fmt: skip
    everyone = list(dict.fromkeys(["ours", *(line.layout.whose for line in sorted_lines)]))
    sums: dict[tuple[int, str], dict[str, float]] = {}
    for line in sorted_lines:
        of = line.layout.pass_name
        for name in (of, *["gradients"] * (of in ("key_value", "query"))):
            cell = sums.setdefault((line.kernel.launch.head_dim, name), {})
            cell.setdefault(line.layout.whose, 0.0)
            cell[line.layout.whose] += line.launch(sequences_and_heads)
    launches = [
        [str(c), of, *(f"{row[x] / 1000:,.0f}" if x in row else "" for x in everyone)]
        for (c, of), row in sorted(sums.items(), key=lambda x: (x[0][0], PASSES.index(x[0][1])))
    ]
    return [_cells(line, sequences_and_heads) for line in sorted_lines], [
        ["head dim", "launch", *everyone], *launches
    ]  # fmt: skip


def _cells(line: Line, sequences_and_heads: int) -> list[str]:
    kernel = line.kernel
    gradient = kernel.constants.get("GRADIENT", "kv")
    return [
        str(kernel.launch.head_dim),
        line.layout.pass_name + f" {gradient}" * (gradient != "kv"),
        line.layout.whose,
        "{} × {}".format(*line.tile),
        line.loop + "*" * (not line.segment.in_loop),
        str(line.segment.instructions),
        f"{line.per_score:.1f}",
        *(f"{x:,.0f}" for x in line.clocks),
        f"{line.launch(sequences_and_heads) / 1000:,.0f}",
        str(kernel.registers),
        str(kernel.spill_stores),
        str(kernel.programs_per_multiprocessor),
    ]


def compare(
    head_dims: tuple[int, ...] = HEAD_DIMS,
    queries: int = 512,
    prefix: int = 0,
    batch: int = 80,
    heads: int = 8,
) -> int:
    """Print tensor, issue and special-function clocks of each loop's tile, and of a launch.

    Args:
        head_dims: Channels of a head, 1 to 256.
        queries: Positions of a sequence, causal. Code is that of lengths that are multiples of 16.
        prefix: Positions before them that all attend to; the peers have none.
        batch: Sequences of the launch.
        heads: Heads of the launch.
    """
    try:
        for name, size in (("queries", queries), ("batch", batch), ("heads", heads)):
            require_int(name, size)
        require_int("prefix", prefix, minimum=0)
        if not head_dims or not all(1 <= c <= MAX_HEAD_DIM for c in head_dims):
            given = " ".join(map(str, head_dims)) or "none"
            raise ValueError(f"head-dims = {given}: expected one or more from 1 to {MAX_HEAD_DIM}")
    except ValueError as error:
        commands.refuse(str(error))
    head_dims = tuple(dict.fromkeys(head_dims))
    print(
        paragraph(
            f"Executed instructions, not a time. bf16, causal, {queries} positions, a prefix of "
            f"{prefix}; clocks of one multiprocessor for a tile. a score: instructions of a thread "
            "for each of its scores. launch: thousands of clocks in which the unit that binds is "
            f"busy, {batch} sequences of {heads} heads on {MULTIPROCESSORS} multiprocessors. "
            "spilled: bytes of a thread. programs: that share a multiprocessor. "
            "*: runs once, and is counted with what is around it. "
            "fa-triton: flash-attention-triton, in fp16, up to 128 channels. "
            "Compiling takes some 10 seconds a head dim."
        ),
        flush=True,
    )
    kernels = compile_all(
        Launch("bfloat16", c, prefix, keys=queries + prefix, passes=tuple(KERNELS))
        for c in head_dims
    )
    if not prefix:
        with triton_processes(interpret=False) as pool:
            for peer in (fla, flash_attention_triton):
                kernels += pool.submit(compile_peer, peer, head_dims, queries, heads).result()
    loops, (headings, *launches) = report(kernels, queries, batch * heads, prefix)
    print(f"\n{table(HEADINGS, loops, keys=5)}\n\n{table(headings, launches, keys=2)}")
    missing = {layout.whose for layout in LAYOUTS.values()} - set(headings)
    if missing and not prefix and min(head_dims) <= 128:
        print(f"\n{' and '.join(sorted(missing))} would stand beside ours after\n{INSTALL}")
    return 0


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    sys.exit(commands.run(compare, "python -m benchmarks issue", arguments))


if __name__ == "__main__":
    main()
