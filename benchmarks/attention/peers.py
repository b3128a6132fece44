"""Peers of whole models and blocks: our networks with another attention in them.

Letters: B batch, Q queries, S keys, H heads, C channels of a head.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

import flopcount as fc
from benchmarks.attention.implementations import IMPLEMENTATIONS, Attend
from benchmarks.attention.shapes import Shape
from benchmarks.measurement import device
from models.networks.blocks import ATTENTION


def with_attention(name: str, shapes: Iterable[Shape]) -> str:
    """Let the networks of ``models`` use an implementation; returns the name to give them.

    Implementations are built ahead for ``shapes``, so that nothing is built while a step is
    compiled or timed.

    Args:
        name: Of :data:`~benchmarks.attention.implementations.IMPLEMENTATIONS`, or of ``models``.
        shapes: The attention calls that the network makes.

    Raises:
        ValueError: If neither has it.
    """
    if name in ATTENTION:
        return name
    if name not in IMPLEMENTATIONS:
        known = sorted({*ATTENTION, *IMPLEMENTATIONS})
        raise ValueError(f"name must be one of {known}, got {name!r}")
    built = {
        (shape.queries, shape.keys): IMPLEMENTATIONS[name].build(shape, device())
        for shape in shapes
    }

    class Peer(PeerAttention):
        attends = built

    ATTENTION[f"peer-{name}"] = Peer
    return f"peer-{name}"


class PeerAttention(nn.Module):
    """An implementation where the networks have their own: queries come scaled."""

    attends: dict[tuple[int, int], Attend]

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from q (B, Q, H, C) to k and v (B, S, H, C); returns (B, Q, H, C)."""
        return self.attends[q.shape[1], k.shape[1]](q, k, v, 1.0)


def shapes_of_model(model: fc.PerceiverAR, batch_size: int) -> list[Shape]:
    """The attention calls of a network: hybrid layer in training and evaluation, other layers."""
    head_dim = model.num_channels // model.num_heads
    return [
        Shape(batch_size, model.num_latents, prefix, model.num_heads, head_dim)
        for prefix in (model.kept(), model.num_prefix, 0)
    ]


def no_tf32() -> None:
    """Let fp32 products be what they say, where a comparison against float64 is made."""
    torch.set_float32_matmul_precision("highest")
