"""Witness: the network on the fused attention, under torch's FlopCounterMode and fvcore.

Both see the attention as one operator, and read its operands' shapes by the formula of
:mod:`kernels.attention.flops`. That formula is not trusted: it is held against a trace of the
operator's specification in plain PyTorch at the same shapes (:func:`specification`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import kernels.attention.operators  # noqa: F401  registers the operators that are counted
from kernels.attention.flops import fvcore_handle
from kernels.attention.reference import reference_attention
from validate.witnesses import fvcore_trace
from validate.witnesses.networks import build, tokens

if TYPE_CHECKING:
    from flopcount.architectures import Architecture

DEVICE = "meta"
"""Shapes are all that is read, so the kernels need not run."""


def torch_totals(
    model: Architecture, *, training: bool, batch_size: int, checkpointing: str | None = None
) -> tuple[int, int]:
    """FlopCounterMode's totals: forward pass, and backward pass with any recomputation in it."""
    network = build(
        model, training=training, device=DEVICE, checkpointing=checkpointing, attention="fused"
    )
    inputs = tokens(model, batch_size=batch_size, device=DEVICE)
    return counted(lambda: network(inputs), backward=training)


def fvcore_total(model: Architecture, *, training: bool, batch_size: int) -> int:
    """Fvcore's total of the matrix products of a forward pass, with a handle for the operator."""
    network = build(model, training=training, device=DEVICE, attention="fused")
    inputs = tokens(model, batch_size=batch_size, device=DEVICE)
    analysis = fvcore_trace.analyse(network, inputs)
    analysis.set_op_handle("flopcount::attention", fvcore_handle)
    return fvcore_trace.total(analysis, (*fvcore_trace.PRODUCTS, "attention"))


def specification(
    batch: int, num_latents: int, num_prefix: int, num_heads: int, num_key_heads: int, head_dim: int
) -> tuple[int, int]:
    """FLOPs that the plain-PyTorch specification executes, forward and backward."""

    def drawn(length: int, heads: int) -> torch.Tensor:
        size = (batch, length, heads, head_dim)
        return torch.empty(size, device=DEVICE, requires_grad=True)

    keys, values = (drawn(num_prefix + num_latents, num_key_heads) for _ in range(2))
    queries = drawn(num_latents, num_heads)
    return counted(lambda: reference_attention(queries, keys, values)[0], backward=True)


def counted(function: Any, *, backward: bool) -> tuple[int, int]:
    """FlopCounterMode's totals of a call, and of the backward pass from its result."""
    with FlopCounterMode(display=False) as forward:
        result = function()
    if not backward:
        return forward.get_total_flops(), 0
    with FlopCounterMode(display=False) as gradients:
        result.sum().backward()
    return forward.get_total_flops(), gradients.get_total_flops()
