"""Experts spread over devices, and heads of keys and values that several devices have: a network.

PyTorch divides neither by itself. Routers, shared MLPs, norms and attention stay transformers', and
what a device exchanges is still read off PyTorch's collectives: here it is said only which of the
weights a device has, and where positions go. It follows GShard (Lepikhin et al. 2020, arXiv
2006.16668): every expert has as many slots of each device, and positions are routed to experts in
turn, so that all are chosen equally often.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import torch
from torch import nn
from torch.distributed._functional_collectives import (
    all_gather_single_autograd,
    all_to_all_single,
    reduce_scatter_single_autograd,
)
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_module
from torch.distributed.tensor import distribute_tensor as distribute


class SpreadExperts(nn.Module):
    """A device's experts, in place of transformers' module of all of them.

    Args:
        whole: All experts of a layer.
        experts: Devices that the experts are spread over.
        tensor: Devices that each expert's hidden channels are divided among, or None.
        capacity: Slots of an expert, over what it is chosen on average; None for just as many.
    """

    def __init__(self, whole: Any, experts: Any, tensor: Any, capacity: float | None) -> None:
        super().__init__()
        self.number, self.act_fn, self.capacity = whole.num_experts, whole.act_fn, capacity
        self.experts, self.tensor = experts, tensor
        own = slice(self.number // experts.size())
        parts = 1 if tensor is None else tensor.size()
        # Gate and up lie one after the other: of each the first part.
        hidden = whole.down_proj.shape[-1] // parts
        gate, up = whole.gate_up_proj[own].chunk(2, dim=1)
        joined = torch.cat([gate[:, :hidden], up[:, :hidden]], dim=1)
        self.gate_up_proj = nn.Parameter(joined.detach().clone())
        self.down_proj = nn.Parameter(whole.down_proj[own, :, :hidden].detach().clone())

    def forward(self, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Positions of this device, by the experts of all, of which the router's choice is moot."""
        devices, number = self.experts.size(), self.number
        choices, channels = chosen.numel(), x.shape[-1]
        average = Fraction(choices, number)
        slots = math.ceil(average * Fraction(str(self.capacity or 1)))
        turn = torch.arange(choices)
        slot = turn // number
        kept = slot < slots
        place = ((turn % number) * slots + slot)[kept]
        of = (turn // chosen.shape[-1])[kept]
        sent = x.new_zeros(number * slots, channels).index_copy(0, place, x[of])
        here = self._exchange(sent)
        if self.tensor is not None:
            here = all_gather_single_autograd(here, 0, self.tensor.get_group())
        # By sender, expert, slot: an expert's are brought together.
        senders = here.shape[0] // (number // devices * slots)
        here = here.reshape(senders, -1, slots, channels).transpose(0, 1).flatten(1, 2)
        gate, up = (here @ self.gate_up_proj.mT).chunk(2, dim=-1)
        out = (self.act_fn(gate) * up) @ self.down_proj.mT
        out = out.reshape(-1, senders, slots, channels).transpose(0, 1).reshape(-1, channels)
        if self.tensor is not None:
            out = reduce_scatter_single_autograd(out, "sum", 0, self.tensor.get_group())
        back = self._exchange(out)[place] * weights.flatten()[kept, None]
        return torch.zeros_like(x).index_add(0, of, back)

    def _exchange(self, x: torch.Tensor) -> torch.Tensor:
        return all_to_all_single(x, None, None, self.experts.get_group())


def spread(network: Any, experts: Any, tensor: Any, capacity: float | None) -> list[nn.Module]:
    """Leave of each layer's experts those of one device; the modules that have them.

    Args:
        network: Transformers'.
        experts: As of :class:`SpreadExperts`.
        tensor: Likewise.
        capacity: Likewise.
    """
    found = []
    for module in list(network.modules()):
        if hasattr(module, "experts") and not isinstance(module, SpreadExperts):
            module.experts = SpreadExperts(module.experts, experts, tensor, capacity)
            found.append(module.experts)
            if tensor is not None:
                _along_the_sequence(module.gate, tensor)
    return found


def _along_the_sequence(router: nn.Module, mesh: Any) -> None:
    """All devices of a tensor group have the router, each for its part of the sequence."""

    def whole(_: str, module: nn.Module, mesh: Any) -> None:
        for name, weight in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(distribute(weight, mesh, [Replicate()])))

    def enter(_: nn.Module, inputs: Any, mesh: Any) -> Any:
        return (DTensor.from_local(inputs[0], mesh, [Shard(0)]),)

    def leave(_: nn.Module, outputs: Any, __: Any) -> Any:
        return tuple(each.to_local() for each in outputs)

    distribute_module(router, mesh, whole, enter, leave)


def copy_heads(projection: nn.Module, mesh: Any) -> None:
    """Divide heads of keys or values among groups of devices, each of which has the same ones.

    Each works on them for query heads of its own, so that gradients are partial sums: of the
    weights, which PyTorch adds up within the group, and of the input, as those of queries are.

    Args:
        projection: Of all heads.
        mesh: Groups, and devices of each.
    """

    def divided(_: str, module: nn.Module, mesh: Any) -> None:
        for name, weight in list(module.named_parameters(recurse=False)):
            part = distribute(weight, mesh, [Shard(0), Replicate()])
            setattr(module, name, nn.Parameter(part))

    def enter(_: nn.Module, inputs: Any, mesh: Any) -> Any:
        (x,) = inputs
        if isinstance(x, DTensor):
            x = x.to_local(grad_placements=[Partial()])
        partial = [Partial(), Partial()]
        return (DTensor.from_local(x, mesh, [Replicate(), Replicate()], grad_placements=partial),)

    def leave(_: nn.Module, output: Any, __: Any) -> Any:
        return output.to_local(grad_placements=[Shard(output.ndim - 1), Partial()])

    distribute_module(projection, mesh, divided, enter, leave)
