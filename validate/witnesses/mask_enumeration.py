"""Witness: the masks that the real network's forward pass applies, pair by pair.

The network runs on real tensors, and every boolean mask that it hands to ``masked_fill`` on its
scores is caught as it is dispatched. A pair is admitted where the mask leaves the score alone.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import flopcount as fc
from validate.witnesses.networks import Term, build, head_dim, tokens

if TYPE_CHECKING:
    from flopcount.architectures import Architecture


class _AppliedMasks(TorchDispatchMode):
    """Collects the number of admitted pairs of every mask that is applied to scores."""

    def __init__(self) -> None:
        super().__init__()
        self.admitted: list[int] = []

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.aten.masked_fill.Scalar and args[2] == float("-inf"):
            scores, hidden = args[0], args[1]
            self.admitted.append(int((~hidden).expand_as(scores).sum()))
        return func(*args, **(kwargs or {}))


def attention_terms(
    model: Architecture, *, training: bool = True, batch_size: int = 1
) -> dict[Term, int]:
    """FLOPs of scores and values over the admitted pairs alone, forward.

    Each admitted pair of a head costs one product of depth c for its score and one for its value:
    2·c FLOPs each. The pairs of a batch and its heads are enumerated one by one.

    Args:
        model: What to build and run, on real tensors.
        training: With prefix dropout, or without.
        batch_size: Sequences.

    Returns:
        FLOPs by (layer, term), self and cross part together.
    """
    network = build(model, training=training, device="cpu")
    with torch.no_grad(), _AppliedMasks() as masks:
        network(tokens(model, batch_size=batch_size, device="cpu"))
    perceiver = isinstance(model, fc.PerceiverAR)
    repeated = "self-attention" if perceiver else "decoder"
    terms: collections.Counter[Term] = collections.Counter()
    for index, admitted in enumerate(masks.admitted):
        layer = "hybrid" if perceiver and index == 0 else repeated
        for term in ("scores", "values"):
            terms[layer, term] += 2 * head_dim(model) * admitted
    return dict(terms)
