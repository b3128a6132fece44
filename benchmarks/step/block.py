"""The attention block as trained, against the best PyTorch has: ``python -m benchmarks block``.

Query, key and value projections, rotary embedding, attention and output projection of the hybrid
layer, forward and backward, under autocast: what padding and layout copies cost around a kernel
shows here. The peers are the same block with another attention, compiled. ``block.csv`` grows row
by row; what is wrong or fails is recorded and not timed.
"""

from __future__ import annotations

import copy
import dataclasses
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import flopcount as fc
from benchmarks.attention.accuracy import WrongResultError, shares_of_allowed
from benchmarks.attention.peers import no_tf32, with_attention
from benchmarks.attention.shapes import Shape
from benchmarks.attention.timing import one_line, require_working_device
from benchmarks.measurement import device, require_gpu, rounds_ms, working_dtype
from flopcount import commands
from models.networks.blocks import Attention, initialize
from models.networks.rotary import rotary_angles
from models.results import Table, environment, write_environment

VARIANTS = {
    "fused": ("fused", False),
    "fused, compiled": ("fused", True),
    "sdpa-flash, compiled": ("sdpa-flash", True),
    "cudnn, compiled": ("cudnn", True),
    "flex, compiled": ("flex", True),
    "flash-split, compiled": ("flash-split", True),
    "sdpa-flash": ("sdpa-flash", False),
    "eager": ("reference", False),
}
"""Implementation of the attention, and whether the block goes through torch.compile."""

SHAPES = tuple(
    Shape(80, 512, prefix, 8, head_dim) for prefix in (1792, 0) for head_dim in (73, 91, 64, 96)
)
TINY = (Shape(2, 7, 5, 2, 9),)
COLUMNS = (
    "device",
    "batch",
    "queries",
    "prefix",
    "channels",
    "dtype",
    "implementation",
    "status",
    "ms",
    "forward_ms",
    "causal_tflops",
    "error",
    "message",
)
KEY = ("batch", "queries", "prefix", "channels", "dtype", "implementation")


def block(shape: Shape, attention: str) -> Attention:
    """The hybrid layer's attention block, its weights drawn; the same for every attention."""
    torch.manual_seed(0)
    channels = shape.heads * shape.head_dim
    made = Attention(
        channels,
        shape.heads,
        shape.head_dim,
        projection_bias=False,
        out_bias=True,
        attention=attention,
    )
    initialize(made)
    return made.to(device())


def draw_inputs(shape: Shape) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents and prefix, normalised, fp32; the rotary angles; a gradient of the output."""
    generator = torch.Generator(device()).manual_seed(0)
    channels = shape.heads * shape.head_dim

    def drawn(length: int) -> Tensor:
        size = (shape.batch, length, channels)
        return torch.randn(size, generator=generator, device=device())

    positions = torch.arange(shape.keys, device=device())[None]
    latents, prefix = drawn(shape.queries).requires_grad_(), drawn(shape.prefix).requires_grad_()
    return latents, prefix, rotary_angles(positions, shape.head_dim), drawn(shape.queries)


def call(attention: Attention, latents: Tensor, prefix: Tensor, angles: Tensor) -> Tensor:
    """Run a block as the hybrid layer does, under autocast on a GPU."""
    with torch.autocast(device().type, working_dtype(), enabled=torch.cuda.is_available()):
        if attention.takes_prefix_apart(None):
            return attention(latents, latents, angles, None, prefix)
        return attention(latents, torch.cat((prefix, latents), dim=1), angles)


def block_flops(shape: Shape) -> int:
    """Causal FLOPs of the block, forward and backward: the hybrid layer's without its MLP."""
    model = fc.PerceiverAR(
        vocab_size=1,
        num_latents=shape.queries,
        num_prefix=shape.prefix,
        num_channels=shape.heads * shape.head_dim,
        num_layers=1,
        num_heads=shape.heads,
    )
    rows = model.flops(level="causal", batch_size=shape.batch).rows
    return sum(row.flops for row in rows if row.layer == "hybrid" and "mlp" not in row.term)


def errors(run: Callable[..., Tensor], attention: Attention, shape: Shape) -> float:
    """The largest error of the output and the gradients, as a share of what is allowed.

    Held against the block with plain PyTorch attention on the first sequence: in float64 for the
    truth, under autocast for what is usual. Gradients are those of latents and prefix.
    """
    one = dataclasses.replace(shape, batch=1)
    latents, prefix, angles, grad = draw_inputs(one)
    ours = _results(lambda *x: run(attention, *x), latents, prefix, angles, grad)
    plain = block(shape, "reference")
    usual = _results(lambda *x: call(plain, *x), latents, prefix, angles, grad)
    exact_block = copy.deepcopy(plain).double()

    def exact(latents: Tensor, prefix: Tensor, angles: Tensor) -> Tensor:
        return exact_block(latents, torch.cat((prefix, latents), dim=1), angles)

    truth = _results(exact, latents.double(), prefix.double(), angles.double(), grad.double())
    return max(shares_of_allowed(ours, usual, truth, working_dtype()).values())


def _results(
    run: Callable[..., Tensor], latents: Tensor, prefix: Tensor, angles: Tensor, grad: Tensor
) -> list[Tensor]:
    inputs = [x.detach().requires_grad_() for x in (latents, prefix)]
    out = run(*inputs, angles)
    results = [out, *torch.autograd.grad(out, inputs, grad.to(out.dtype))]
    return [x.detach().double() for x in results]


def measure(shape: Shape, variant: str) -> dict[str, Any]:
    """The row of one variant on one shape."""
    name, compiled = VARIANTS[variant]
    row: dict[str, Any] = {**_key(shape), "implementation": variant}
    try:
        single = dataclasses.replace(shape, batch=1)
        attention = block(shape, with_attention(name, [shape, single]))
        run = torch.compile(call, dynamic=False) if compiled and torch.cuda.is_available() else call
        share = errors(run, attention, shape)
        row["error"] = f"{share:.3f}"
        if not share <= 1:
            return {**row, "status": "wrong", "message": "error above what is allowed"}
        latents, prefix, angles, grad = draw_inputs(shape)
        parameters = list(attention.parameters())

        def step() -> None:
            out = run(attention, latents, prefix, angles)
            torch.autograd.grad(out, [latents, prefix, *parameters], grad.to(out.dtype))

        ms = statistics.median(rounds_ms(step))
        forward = statistics.median(rounds_ms(lambda: run(attention, latents, prefix, angles)))
    except Exception as error:
        status = "wrong" if isinstance(error, WrongResultError) else "failed"
        require_working_device()
        return {**row, "status": status, "message": one_line(error)}
    return {
        **row,
        "status": "ok",
        "ms": f"{ms:.6g}",
        "forward_ms": f"{forward:.6g}",
        "causal_tflops": f"{block_flops(shape) / ms / 1e9:.4g}",
    }


def _key(shape: Shape) -> dict[str, Any]:
    return {
        "device": environment()["device"],
        "batch": shape.batch,
        "queries": shape.queries,
        "prefix": shape.prefix,
        "channels": shape.heads * shape.head_dim,
        "dtype": str(working_dtype()).removeprefix("torch."),
    }


def run_all(
    out: Path, variants: tuple[Literal[*VARIANTS], ...] = tuple(VARIANTS), tiny: bool = False
) -> Path:
    """Measure what ``block.csv`` under ``out`` does not have yet; returns its path.

    Args:
        out: Folder of the results.
        variants: Implementations of the attention, compiled or not.
        tiny: A tiny shape, to try the path.
    """
    if not tiny:
        require_gpu("--tiny")
    table = Table(out / "block.csv", COLUMNS, KEY)
    write_environment(out, "block")
    no_tf32()
    for shape in TINY if tiny else SHAPES:
        for variant in variants:
            if not table.has(**_key(shape), implementation=variant):
                row = measure(shape, variant)
                table.add(**row)
                print(*(row.get(name, "") for name in COLUMNS[1:]))
                torch.compiler.reset()
                require_working_device()
    return table.path


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    print(commands.run(run_all, "python -m benchmarks block", arguments, __doc__))


if __name__ == "__main__":
    main()
