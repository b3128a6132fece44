"""Attention as its users call it, forward and backward, on the emulated kernels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from validate.emulator.launching import EmulatedLaunch, emulating


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of the attention, and its gradients.

    Attributes:
        dtype: ``"bfloat16"``, ``"float16"`` or ``"float32"``.
        head_dim: Channels of a head.
        queries: n, the latents.
        prefix: k, further keys before them.
        heads: Query heads.
        key_heads: Key-value heads, which divide them.
        apart: Whether the prefix's keys and values are tensors of their own.
        pairs: Pairs of channels that the rotary embedding turns.
        batch: Sequences.
    """

    dtype: str
    head_dim: int
    queries: int
    prefix: int = 0
    heads: int = 1
    key_heads: int = 1
    apart: bool = False
    pairs: int = 0
    batch: int = 1

    def operands(self) -> tuple[list[Any], Any, Any]:
        """Queries, keys and values (and the prefix's), angles, and the output's gradient."""
        import torch

        generator = torch.Generator().manual_seed(0)
        dtype = getattr(torch, self.dtype)

        def drawn(length: int, heads: int) -> Any:
            size = (self.batch, length, heads, self.head_dim)
            return torch.randn(size, generator=generator).to(dtype).requires_grad_()

        keys = self.queries + (0 if self.apart else self.prefix)
        tensors = [drawn(self.queries, self.heads)]
        tensors += [drawn(keys, self.key_heads) for _ in range(2)]
        tensors += [drawn(self.prefix, self.key_heads) for _ in range(2 if self.apart else 0)]
        positions = self.queries + self.prefix
        angles = 3 * torch.randn(1, positions, self.pairs, generator=generator)
        grad = drawn(self.queries, self.heads).detach()
        return tensors, angles if self.pairs else None, grad


def results(attention: Callable[..., Any], tensors: Sequence[Any], angles: Any, grad: Any) -> Any:
    """Output and gradients, one after the other."""
    import torch

    out = attention(*tensors, angles=angles)
    return [out.detach(), *torch.autograd.grad(out, list(tensors), grad.to(out.dtype))]


def plain_attention(
    q: Any, k: Any, v: Any, prefix_k: Any = None, prefix_v: Any = None, angles: Any = None
) -> Any:
    """The specification in plain PyTorch, in the operands' dtype."""
    import torch

    from kernels.attention.reference import reference_attention, reference_preparation

    if prefix_k is not None:
        k, v = torch.cat((prefix_k, k), 1), torch.cat((prefix_v, v), 1)
    if angles is not None:
        q = reference_preparation(q, angles[:, -q.shape[1] :], q.shape[-1])
        k = reference_preparation(k, angles, k.shape[-1])
    return reference_attention(q, k, v)[0]


def emulated(case: Case, run: Callable[[EmulatedLaunch], Any] = EmulatedLaunch.run) -> list[Any]:
    """Output and gradients of the compiled kernels; memory that they leave unwritten is NaN."""
    from unittest import mock

    import torch

    from kernels.attention.attention import prefix_attention

    def poisoned(make: Any) -> Any:
        return lambda *arguments, **options: make(*arguments, **options).fill_(float("nan"))

    with (
        emulating(run),
        mock.patch.object(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty)),
        mock.patch.object(torch, "empty_like", poisoned(torch.empty_like)),
    ):
        tensors, angles, grad = case.operands()
        return results(prefix_attention, tensors, angles, grad)


def errors(case: Case, run: Callable[[EmulatedLaunch], Any] = EmulatedLaunch.run) -> list[float]:
    """Largest errors of output and gradients, as shares of what they may be.

    The bound is that of the tests in the interpreter and on a GPU: against the specification in
    float64, 2 (gradients: 3) times the error of plain PyTorch in the same dtype, and one unit of
    the dtype's precision of the largest value beside it.

    Returns:
        Output, and gradients of queries, keys, values, and prefix: right where at most 1; infinite
        where a value is not a number.
    """
    import torch

    ours = emulated(case, run)
    tensors, angles, grad = case.operands()
    exact = [x.detach().double().requires_grad_() for x in tensors]
    truths = results(plain_attention, exact, None if angles is None else angles.double(), grad)
    usuals = results(plain_attention, tensors, angles, grad)
    floor = torch.finfo(getattr(torch, case.dtype)).eps
    shares = []
    for i, (found, usual, truth) in enumerate(zip(ours, usuals, truths, strict=True)):
        error = (found - truth).abs().max()
        bound = (3 if i else 2) * (usual - truth).abs().max() + floor * truth.abs().max()
        shares.append(float(error / bound) if error.isfinite() else float("inf"))
    return shares
