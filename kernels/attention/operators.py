"""The kernels as PyTorch operators, ``torch.ops.flopcount.attention`` and its neighbours.

They are opaque to tracers. Their fake implementations serve torch.compile, fake tensors and the
meta device; their FLOP formulas (level ``dense``) serve torch's FlopCounterMode, and
:mod:`kernels.attention.flops` any other counter. The operators trust their operands:
:mod:`kernels.attention.attention` checks them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
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


_LIBRARY = torch.library.Library("flopcount", "FRAGMENT")


def _operator(name: str, schema: str, function: Callable[..., Any]) -> Any:
    """Register an operator, opaque to torch.compile.

    At each call the host has less to do than for ``torch.library.custom_op``, which also checks
    that no result is an operand: ``opcheck`` does so in a test.
    """
    _LIBRARY.define(name + schema, tags=torch.Tag.pt2_compliant_tag)
    # Disabled: where an operator is called from a frame that Dynamo leaves alone, it would go on to
    # compile the function, and with it the launch.
    _LIBRARY.impl(name, torch.compiler.disable(function), "CompositeExplicitAutograd")
    return getattr(torch.ops.flopcount, name).default


def _differentiate(
    operator: Any,
    gradients: Callable[..., tuple[Any, ...]],
    keep: Callable[..., None] = lambda ctx, inputs, output: None,
) -> None:
    """Register an operator's derivative, as ``register_autograd`` does, in less time of the host.

    So it is done in ``torch/_library/autograd.py`` of PyTorch 2.11 to 2.13, which also serves
    keyword-only operands, defaults and lists of operands. Forward-mode derivatives, which
    ``torch.autograd.Function`` takes for 0, are refused here.

    Args:
        operator: Whose results are tensors or one list of tensors.
        gradients: Of its operands, from the context and the gradients of its results.
        keep: What they need, from the context, operands and results.
    """
    name = operator._opname
    listed = len(operator._schema.returns) == 1

    def below(keys: Any, *inputs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return operator.redispatch(keys & torch._C._after_autograd_keyset, *inputs)

    def forward(ctx: Any, keys: Any, *inputs: Any) -> tuple[Tensor, ...]:
        output = below(keys, *inputs)
        keep(ctx, inputs, output)
        return tuple(output)

    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        return (None, *gradients(ctx, *grads))

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function = type(f"flopcount_{name}", (torch.autograd.Function,), methods)

    def with_autograd(keys: Any, *inputs: Any) -> Any:
        if forward_ad._current_level >= 0 and any(
            forward_ad.unpack_dual(x).tangent is not None for x in inputs if isinstance(x, Tensor)
        ):
            raise NotImplementedError(f"flopcount::{name} has no forward-mode derivative")
        if not (torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs)):
            return below(keys, *inputs)
        output = function.apply(keys, *inputs)
        return list(output) if listed else output

    _LIBRARY.impl(name, torch.compiler.disable(with_autograd), "Autograd", with_keyset=True)


attention = _operator(
    "attention",
    "(Tensor q, Tensor k, Tensor v, Tensor? prefix_k, Tensor? prefix_v, float scale, "
    "int head_dim) -> (Tensor, Tensor, Tensor)",
    attend,
)
attention_backward = _operator(
    "attention_backward",
    "(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor? prefix_k, Tensor? prefix_v, "
    "Tensor out, Tensor lse, float scale, SymInt[] channels) -> Tensor[]",
    launch_backward,
)
prepare = _operator(
    "prepare_attention",
    "(Tensor q, Tensor k, Tensor? prefix_k, Tensor table, int channels, bool back) -> Tensor[]",
    launch_preparation,
)


@torch.library.register_fake(attention)
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


@torch.library.register_fake(attention_backward)
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


@torch.library.register_fake(prepare)
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


def _gradients(ctx: Any, grad_out: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return (None,) * 7
    grads = attention_backward(grad_out, *ctx.saved_tensors, ctx.scale, ctx.channels)
    return (*grads, *(None,) * (7 - len(grads)))


def _refuse(ctx: Any, *_: Any) -> tuple[Any, ...]:
    raise RuntimeError(
        "attention_backward has no derivative: take kernels.attention.reference, whose second "
        "derivatives PyTorch knows"
    )


_differentiate(attention, _gradients, _keep)
_differentiate(attention_backward, _refuse)


def _keep_table(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    *operands, table, _, ctx.back = inputs
    ctx.given = [x is not None for x in operands]
    ctx.channels = operands[0].shape[-1]
    ctx.save_for_backward(table)


def _turn_back(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    def placed(tensors: Iterable[Tensor]) -> list[Tensor | None]:
        rest = iter(tensors)
        return [next(rest) if given else None for given in ctx.given]

    (table,) = ctx.saved_tensors
    back = prepare(*placed(grads), table, ctx.channels, not ctx.back)
    return (*placed(back), None, None, None)


_differentiate(prepare, _turn_back, _keep_table)


@register_flop_formula(torch.ops.flopcount.attention)
def _(
    q: Any, k: Any, v: Any, prefix_k: Any, *rest: Any, out_shape: Any = None, **options: Any
) -> int:
    return forward_flops(out_shape[0], k, prefix_k)


@register_flop_formula(torch.ops.flopcount.attention_backward)
def _(grad_out: Any, q: Any, k: Any, v: Any, prefix_k: Any, *rest: Any, **options: Any) -> int:
    return backward_flops(grad_out, k, prefix_k)
