"""The kernels as PyTorch operators, ``torch.ops.flopcount.attention`` and its neighbours.

They are opaque to tracers. Their fake implementations serve torch.compile, fake tensors and the
meta device; their FLOP formulas (level ``dense``) serve torch's FlopCounterMode, and
:mod:`kernels.attention.flops` any other counter. The operators trust their operands:
:mod:`kernels.attention.attention` checks them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from kernels.attention.flops import backward_flops, forward_flops
from kernels.attention.launches import launch_backward, launch_forward
from kernels.attention.preparation import fill, launch_preparation, padding, within


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor | None,
    prefix_v: Tensor | None,
    scale: float,
    head_dim: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, log-sum-exp, and :func:`padding` of the operands, which the backward pass reads."""
    given = (q, k, v, prefix_k, prefix_v)
    space = padding(*given, head_dim=head_dim)
    operands = within(space, *given, head_dim=head_dim)
    fill(given, operands)
    return *launch_forward(*operands, scale, head_dim), space


attention = torch.library.custom_op(
    "flopcount::attention",
    attend,
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor? prefix_k, Tensor? prefix_v, float scale, "
    "int head_dim) -> (Tensor, Tensor, Tensor)",
)
attention_backward = torch.library.custom_op(
    "flopcount::attention_backward",
    launch_backward,
    mutates_args=(),
    schema="(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor? prefix_k, Tensor? prefix_v, "
    "Tensor out, Tensor lse, float scale, SymInt[] channels) -> Tensor[]",
)
prepare = torch.library.custom_op(
    "flopcount::prepare_attention",
    launch_preparation,
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor? prefix_k, Tensor table, int channels, bool back) "
    "-> Tensor[]",
)


@attention.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor | None,
    prefix_v: Tensor | None,
    scale: float,
    head_dim: int,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, num_latents, num_heads, _ = q.shape
    out = q.new_empty(batch, num_latents, num_heads, head_dim)
    lse = q.new_empty(batch, num_heads, num_latents, dtype=torch.float32)
    return out, lse, padding(q, k, v, prefix_k, prefix_v, head_dim=head_dim)


@attention_backward.register_fake
def _(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor | None,
    prefix_v: Tensor | None,
    out: Tensor,
    lse: Tensor,
    scale: float,
    channels: Sequence[int],
) -> list[Tensor]:
    given = [x for x in (q, k, v, prefix_k, prefix_v) if x is not None]
    return [x.new_empty(*x.shape[:-1], c) for x, c in zip(given, channels, strict=True)]


@prepare.register_fake
def _(
    q: Tensor,
    k: Tensor,
    prefix_k: Tensor | None,
    table: Tensor,
    channels: int,
    back: bool,
) -> list[Tensor]:
    operands = (q, k, prefix_k)
    return [x.new_empty(*x.shape[:-1], channels) for x in operands if x is not None]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *operands, ctx.scale, head_dim = inputs
    out, lse, space = output
    ctx.channels = [x.shape[-1] for x in operands if x is not None]
    ctx.save_for_backward(*within(space, *operands, head_dim=head_dim), out, lse)
    ctx.mark_non_differentiable(lse, space)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_out: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    grads = attention_backward(grad_out, *ctx.saved_tensors, ctx.scale, ctx.channels)
    return (*grads, *(None,) * (7 - len(grads)))


attention.register_autograd(_differentiate, setup_context=_keep)


def _keep_table(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    *operands, table, _, ctx.back = inputs
    ctx.given = [x is not None for x in operands]
    ctx.channels = operands[0].shape[-1]
    ctx.save_for_backward(table)


def _turn_back(ctx: Any, grads: list[Tensor]) -> tuple[Tensor | None, ...]:
    def placed(tensors: list[Tensor]) -> list[Tensor | None]:
        rest = iter(tensors)
        return [next(rest) if given else None for given in ctx.given]

    (table,) = ctx.saved_tensors
    back = prepare(*placed(grads), table, ctx.channels, not ctx.back)
    return (*placed(back), None, None, None)


prepare.register_autograd(_turn_back, setup_context=_keep_table)


@register_flop_formula(torch.ops.flopcount.attention)
def _(
    q: Any, k: Any, v: Any, prefix_k: Any, *rest: Any, out_shape: Any = None, **options: Any
) -> int:
    return forward_flops(out_shape[0], k, prefix_k)


@register_flop_formula(torch.ops.flopcount.attention_backward)
def _(grad_out: Any, q: Any, k: Any, v: Any, prefix_k: Any, *rest: Any, **options: Any) -> int:
    return backward_flops(grad_out, k, prefix_k)
