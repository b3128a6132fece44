"""How far a result may be from float64: a few times as far as plain PyTorch in the same dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ALLOWED = {"forward": 2, "backward": 3}
"""How many times plain PyTorch's largest error an output, and a gradient, may be off."""

ROUNDINGS = {"forward": 1, "backward": 4}
"""How many times the dtype's resolution is allowed beside."""


class WrongResultError(AssertionError):
    """A result has values that are not finite, or another shape than it must have."""


def shares_of_allowed(
    ours: Sequence[Tensor], plain: Sequence[Tensor], exact: Sequence[Tensor], dtype: torch.dtype
) -> dict[str, float]:
    """The largest error of each pass as a share of what is allowed; above 1 is wrong.

    Allowed are :data:`ALLOWED` times plain PyTorch's largest error, plus :data:`ROUNDINGS` times
    the dtype's resolution of the largest value: of the output, or of all gradients together.
    Together, because one gradient can vanish by cancellation (a query with one key has none, and
    plain PyTorch gives exactly 0) while what cancels is larger than the others.

    Args:
        ours: The output and, where there are any, gradients, in any order but the same everywhere.
        plain: The same from plain PyTorch in ``dtype``.
        exact: The same in float64.
        dtype: Of the operands.

    Returns:
        ``"forward"`` and, with gradients, ``"backward"``.

    Raises:
        WrongResultError: If a value of ``ours`` is not finite, or a shape is not that of ``exact``.
    """
    shares: dict[str, float] = {}
    resolution = torch.finfo(dtype).eps
    largest = max((float(x.abs().max()) for x in exact[1:] if x.numel()), default=0.0)
    for index, (result, usual, truth) in enumerate(zip(ours, plain, exact, strict=True)):
        pass_name = "forward" if index == 0 else "backward"
        if result.shape != truth.shape:
            raise WrongResultError(f"shape {tuple(result.shape)} instead of {tuple(truth.shape)}")
        if not torch.isfinite(result).all():
            raise WrongResultError(f"{pass_name}: values that are not finite")
        share = 0.0
        if truth.numel():
            allowed = ALLOWED[pass_name] * (usual.double() - truth).abs().max()
            size = truth.abs().max() if index == 0 else largest
            allowed += ROUNDINGS[pass_name] * resolution * size
            distance = (result.double() - truth).abs().max()
            share = (distance / allowed).item() if distance > 0 else 0.0
        shares[pass_name] = max(share, shares.get(pass_name, 0.0))
    return shares
