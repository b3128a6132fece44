"""Witness: torch's FlopCounterMode, totals of the real forward and backward pass.

It reads operand shapes as the operations are dispatched, so it sees the backward pass as autograd
runs it. Its totals are exact on the reference path; its split of the backward pass by module is
not, and is not used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.utils.flop_counter import FlopCounterMode

from validate.witnesses.networks import build, tokens

if TYPE_CHECKING:
    from flopcount.architectures import Architecture


def totals(
    model: Architecture,
    *,
    training: bool = True,
    batch_size: int = 1,
    checkpointing: str | None = None,
) -> tuple[int, int]:
    """FLOPs of the forward pass, and of the backward pass with any recomputation in it.

    Args:
        model: What to build and run.
        training: With prefix dropout and a backward pass, or forward alone.
        batch_size: Sequences.
        checkpointing: ``None``, ``"reentrant"`` or ``"non-reentrant"``.

    Returns:
        Forward and backward FLOPs; the latter is 0 without training.
    """
    network = build(model, training=training, checkpointing=checkpointing)
    inputs = tokens(model, batch_size=batch_size)
    with FlopCounterMode(display=False) as forward:
        logits = network(inputs)
    if not training:
        return forward.get_total_flops(), 0
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()
