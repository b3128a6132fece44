"""The real networks for what the counter describes, and how their products are called there."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import nn

import flopcount as fc
from flopcount.architectures import Architecture
from models.networks import decoder, llama, perceiver_ar

Term = tuple[str, str]
"""A layer and a term of the counter, for example ``("hybrid", "scores")``."""

PRODUCTS = {
    "attention.query": "query",
    "attention.key": "key",
    "attention.value": "value",
    "attention.attend.scores": "scores",
    "attention.attend.values": "values",
    "attention.out": "out",
    "mlp.gate": "mlp gate",
    "mlp.up": "mlp up",
    "mlp.down": "mlp down",
}
"""The counter's term for each module that multiplies, within a layer."""


NETWORKS: dict[type[Architecture], Callable[..., nn.Module]] = {
    fc.PerceiverAR: perceiver_ar.PerceiverAR,
    fc.Decoder: decoder.Decoder,
    fc.Llama: llama.Llama,
}
"""The network that each architecture of the counter describes; it takes the same sizes."""


def num_prefix(model: Architecture) -> int:
    """m; 0 where a model has no prefix."""
    return getattr(model, "num_prefix", 0)


def head_dim(model: Architecture) -> int:
    """Channels of a head."""
    own: int | None = getattr(model, "head_dim", None)
    return model.num_channels // model.num_heads if own is None else own


def cheapest_device(model: Architecture) -> str:
    """Where a trace that needs no values runs fastest: the CPU for the smallest networks.

    Without values an operation's result comes from PyTorch's Python code, which takes longer than
    to compute a few thousand numbers.
    """
    scores = model.num_heads * model.length * (model.length + num_prefix(model))
    return "cpu" if max(model.params().total, scores) < 100_000 else "meta"


def build(
    model: Architecture,
    *,
    training: bool = True,
    device: str | None = None,
    checkpointing: str | None = None,
    attention: str = "reference",
) -> nn.Module:
    """Build the network that ``model`` describes, on :func:`cheapest_device` unless one is given.

    On the meta device it holds no data.
    """
    options = {"checkpointing": checkpointing, "attention": attention}
    with torch.device(device or cheapest_device(model)):
        network: nn.Module = NETWORKS[type(model)](**model.arguments(), **options)
    return network.train(training)


def num_parameters(model: Architecture) -> int:
    """Scalars of all parameters of the network that ``model`` describes, tied ones once."""
    return sum(parameter.numel() for parameter in build(model).parameters())


def tokens(model: Architecture, *, batch_size: int = 1, device: str | None = None) -> torch.Tensor:
    """Token ids of a full-length input, (batch_size, m + n)."""
    shape = (batch_size, num_prefix(model) + model.length)
    return torch.zeros(shape, dtype=torch.long, device=device or cheapest_device(model))


def term_of(module: str, model: Architecture) -> Term:
    """The counter's term for a module of the network.

    Args:
        module: The module's path, for example ``"layers.3.attention.query"``.
        model: What the counter describes; decides the name of the repeated layers.

    Raises:
        KeyError: If the module is not one that multiplies.
    """
    if module == "output":
        return "output", "logits"
    if module.startswith("hybrid."):
        return "hybrid", PRODUCTS[module.removeprefix("hybrid.")]
    inside = re.sub(r"^layers\.\d+\.", "", module)
    layer = "self-attention" if isinstance(model, fc.PerceiverAR) else "decoder"
    return layer, PRODUCTS[inside]
