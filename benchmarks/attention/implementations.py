"""Who is timed: our kernels and every peer, behind one signature.

An implementation is built for a shape and then called with q (B, N, H, C) and k, v (B, S, H, C),
all unpadded, and returns an unpadded (B, N, H, C), differentiable. Whatever a peer needs in between
(transposes, padding of the head dim, merging) happens inside the call and is timed. A builder
raises where the implementation cannot do the shape or is not installed; the reason is recorded.

Letters: B batch, N queries, S keys, H heads, C channels of a head.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch._functorch.config
import torch.nn.functional as F  # noqa: N812, PyTorch's own name for it
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from benchmarks.attention.shapes import Shape
from kernels.attention import prefix_attention
from kernels.attention.reference import reference_attention


class NotApplicableError(ValueError):
    """An implementation makes no sense for a shape, which is no failure of it."""


class Attend(Protocol):
    """q, k, v and the scale of the scores (C^-½ by default) -> out."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
        """Attend right-aligned and causally."""
        ...


Builder = Callable[[Shape, torch.device], Attend]


@dataclasses.dataclass(frozen=True)
class Implementation:
    """A way to compute attention.

    Attributes:
        name: As in the tables.
        build: Makes it for a shape on a device.
        compiles: Whether the first call of a shape compiles for seconds, which can happen in
            several processes at once.
        ours: Whether it is this project's.
    """

    name: str
    build: Builder
    compiles: bool = False
    ours: bool = False


def heads_first(attend: Callable[..., Tensor]) -> Attend:
    """Adapt a function of (B, H, length, C) operands."""

    def adapted(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
        return attend(*(x.transpose(1, 2) for x in (q, k, v)), scale=scale).transpose(1, 2)

    return adapted


def padded_to(multiple: int, attend: Attend) -> Attend:
    """Pad the head dim with zeros to a multiple of ``multiple``, and cut the output."""

    def adapted(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
        head_dim = q.shape[-1]
        scale = head_dim**-0.5 if scale is None else scale
        missing = -head_dim % multiple
        if missing == 0:
            return attend(q, k, v, scale)
        q, k, v = (F.pad(x, (0, missing)) for x in (q, k, v))
        return attend(q, k, v, scale)[..., :head_dim]

    return adapted


def _fused(shape: Shape, device: torch.device) -> Attend:
    return lambda q, k, v, scale=None: prefix_attention(q, k, v, scale=scale)


def _sdpa(
    backend: SDPBackend, head_dim_multiple: int, shape: Shape, device: torch.device
) -> Attend:
    """SDPA on one backend. The bias says right-aligned; ``is_causal`` alone would align left."""
    bias = causal_lower_right(shape.queries, shape.keys)
    materialised = None
    if backend is SDPBackend.CUDNN_ATTENTION and shape.prefix:
        rows = torch.arange(shape.queries, device=device)[:, None] + shape.prefix
        materialised = torch.arange(shape.keys, device=device)[None, :] <= rows

    def attend(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        with sdpa_kernel(backend):
            mask = bias if materialised is None else materialised
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)

    return padded_to(head_dim_multiple, heads_first(attend))


def _flex(mode: str | None, tma: bool, shape: Shape, device: torch.device) -> Attend:
    """FlexAttention with the block mask j ≤ i + K; compiled on a GPU."""
    if device.type != "cuda":
        raise RuntimeError("FlexAttention is timed compiled, on a GPU")
    prefix = shape.prefix
    # The backward pass is timed apart, again and again, on what one forward pass has saved.
    torch._functorch.config.donated_buffer = False
    mask = create_block_mask(
        lambda b, h, i, j: j <= i + prefix, None, None, shape.queries, shape.keys, device=device
    )
    options = {"USE_TMA": True} if tma else None
    compiled = torch.compile(flex_attention, dynamic=False, mode=mode)
    return heads_first(
        lambda q, k, v, scale: compiled(
            q, k, v, block_mask=mask, scale=scale, kernel_options=options
        )
    )


def _flash_package(module: str, shape: Shape, device: torch.device) -> Attend:
    """FlashAttention packages: (B, length, H, C) operands, right-aligned where ``causal``."""
    function = importlib.import_module(module).flash_attn_func

    def attend(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
        out = function(q, k, v, softmax_scale=scale, causal=True)
        return out[0] if isinstance(out, tuple) else out

    return padded_to(8, attend)


Saved = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Part:
    """One dense or square causal attention with its log-sum-exp, and its backward pass.

    ``forward(q, k, v, causal, scale)`` gives out, log-sum-exp and what the backward pass wants;
    ``backward(grad, q, k, v, out, lse, saved, causal, scale)`` gives three gradients.
    Operands are (B, H, length, C).
    """

    forward: Callable[..., tuple[Tensor, Tensor, Saved]]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]


def _flash_forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Saved]:
    out, lse, *saved, _ = torch.ops.aten._scaled_dot_product_flash_attention(
        q, k, v, 0.0, causal, False, scale=scale
    )
    return out, lse, tuple(saved)


def _flash_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    saved: Saved,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    *lengths, rng_state, unused = saved
    return torch.ops.aten._scaled_dot_product_flash_attention_backward(
        grad, q, k, v, out, lse, *lengths, 0.0, causal, rng_state, unused, scale=scale
    )


def _cudnn_forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Saved]:
    out, lse, *saved, _ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        q, k, v, None, True, 0.0, causal, False, scale=scale
    )
    return out, lse, tuple(saved)


def _cudnn_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    saved: Saved,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    *lengths, seed, offset = saved
    return torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
        grad, q, k, v, out, lse, seed, offset, None, *lengths, 0.0, causal, scale=scale
    )


def _cpu_forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Saved]:
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, causal, scale=scale
    )
    return out, lse, ()


def _cpu_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    saved: Saved,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, q, k, v, out, lse, 0.0, causal, scale=scale
    )


PARTS = {
    "flash": Part(_flash_forward, _flash_backward),
    "cudnn": Part(_cudnn_forward, _cudnn_backward),
    "cpu": Part(_cpu_forward, _cpu_backward),
}


class _Merged(torch.autograd.Function):
    """Dense attention to the prefix and square causal attention to the latents, merged.

    With L = log(e^a + e^b) of the two log-sum-exps a and b, out = e^(a−L) out_a + e^(b−L) out_b.
    Each part's backward pass, given the merged output and L for its own, recomputes the weights of
    the whole softmax and so returns its share of the gradients exactly.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, prefix: int, part: Part, scale: float
    ) -> Tensor:
        far = part.forward(q, k[:, :, :prefix], v[:, :, :prefix], False, scale)
        near = part.forward(q, k[:, :, prefix:], v[:, :, prefix:], True, scale)
        # cuDNN's log-sum-exp is (B, H, N, 1), flash's (B, H, N).
        a, b = (lse.reshape(q.shape[:3])[..., None] for _, lse, _ in (far, near))
        total = torch.logaddexp(a, b)
        out = ((a - total).exp() * far[0] + (b - total).exp() * near[0]).to(q.dtype)
        ctx.save_for_backward(q, k, v, out, total.reshape(far[1].shape))
        ctx.prefix, ctx.part, ctx.scale, ctx.saved = prefix, part, scale, (far[2], near[2])
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        far, near = (
            ctx.part.backward(grad, q, keys, values, out, lse, saved, causal, ctx.scale)
            for keys, values, saved, causal in (
                (k[:, :, : ctx.prefix], v[:, :, : ctx.prefix], ctx.saved[0], False),
                (k[:, :, ctx.prefix :], v[:, :, ctx.prefix :], ctx.saved[1], True),
            )
        )
        grad_k, grad_v = (torch.cat(pair, dim=2) for pair in zip(far[1:], near[1:], strict=True))
        return far[0] + near[0], grad_k, grad_v, None, None, None


def _split(part: str, shape: Shape, device: torch.device) -> Attend:
    if shape.prefix == 0:
        raise NotApplicableError("no prefix to split off: the same as without splitting")
    chosen = PARTS[part]
    return padded_to(
        8, heads_first(lambda q, k, v, scale: _Merged.apply(q, k, v, shape.prefix, chosen, scale))
    )


def _reference(shape: Shape, device: torch.device) -> Attend:
    return lambda q, k, v, scale=None: reference_attention(q, k, v, scale)[0]


def _named(*implementations: Implementation) -> dict[str, Implementation]:
    return {implementation.name: implementation for implementation in implementations}


_FLASH, _CUDNN = SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION
_MAX = "max-autotune-no-cudagraphs"

IMPLEMENTATIONS = _named(
    Implementation("fused", _fused, compiles=True, ours=True),
    Implementation("sdpa-flash", functools.partial(_sdpa, _FLASH, 1)),
    Implementation("cudnn", functools.partial(_sdpa, _CUDNN, 8)),
    Implementation("flex", functools.partial(_flex, None, False), compiles=True),
    Implementation("flash-split", functools.partial(_split, "flash")),
    Implementation("cudnn-split", functools.partial(_split, "cudnn")),
    Implementation("flex-max", functools.partial(_flex, _MAX, False), compiles=True),
    Implementation("flex-max-tma", functools.partial(_flex, _MAX, True), compiles=True),
    Implementation("fa2", functools.partial(_flash_package, "flash_attn")),
    Implementation("fa3", functools.partial(_flash_package, "flash_attn_interface")),
    Implementation("fa4", functools.partial(_flash_package, "flash_attn.cute")),
    Implementation("eager", _reference),
)
"""Ours first; then the peers, and last the plain PyTorch that writes the whole score matrix."""
