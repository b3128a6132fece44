"""Experts spread over devices, and heads of keys and values that several devices have: a network.

PyTorch divides neither by itself. Routers, shared MLPs, norms and attention stay transformers', and
what a device exchanges is still read off PyTorch's collectives: here it is said only which of the
weights a device has, and where positions go. It follows GShard (Lepikhin et al. 2020, arXiv
2006.16668): every expert has as many slots of each device, and positions are routed to experts in
turn, so that all are chosen equally often.
"""

from __future__ import annotations

import dataclasses
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


class Experts(nn.Module):
    """A device's experts: some of all, and of each a part of the hidden channels.

    Args:
        gate: Weights, ``[experts, hidden, channels]``.
        up: Likewise.
        down: ``[experts, channels, hidden]``.
        act_fn: The activation.
        parts: Devices that the hidden channels are divided among.
    """

    def __init__(
        self, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor, act_fn: Any, parts: int
    ) -> None:
        super().__init__()
        own = down.shape[-1] // parts
        self.act_fn = act_fn
        self.gate_up = nn.Parameter(torch.cat([gate[:, :own], up[:, :own]], 1).detach().clone())
        self.down = nn.Parameter(down[..., :own].detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Results of each expert for positions of its own, ``[experts, positions, channels]``."""
        gate, up = (x @ self.gate_up.mT).chunk(2, dim=-1)
        return (self.act_fn(gate) * up) @ self.down.mT


def _of(whole: Any, own: slice, parts: int) -> Experts:
    """Some of transformers' experts."""
    gate, up = whole.gate_up_proj[own].chunk(2, dim=1)
    return Experts(gate, up, whole.down_proj[own], whole.act_fn, parts)


@dataclasses.dataclass(frozen=True)
class Turns:
    """Choices of experts in turn, each expert having as many slots.

    Attributes:
        kept: Choices that have a slot.
        slot: Of those: which of all.
        of: Of those: the position that chooses.
        expert: Of those: whom it chooses.
        slots: Of each expert.
    """

    kept: torch.Tensor
    slot: torch.Tensor
    of: torch.Tensor
    expert: torch.Tensor
    slots: int

    @classmethod
    def choose(cls, positions: int, each: int, number: int, capacity: float | None) -> Turns:
        """As many slots as an expert is chosen on average, times the capacity.

        Args:
            positions: That choose.
            each: How many experts a position chooses.
            number: Of experts.
            capacity: Slots over what an expert is chosen on average; None for just as many.
        """
        choices = positions * each
        slots = math.ceil(Fraction(choices, number) * Fraction(str(capacity or 1)))
        turn = torch.arange(choices)
        turn = turn[turn // number < slots]
        expert = turn % number
        return cls(turn, expert * slots + turn // number, turn // each, expert, slots)

    def sent(self, x: torch.Tensor, number: int) -> torch.Tensor:
        """Positions in the slots of their experts, ``[experts · slots, channels]``."""
        empty = x.new_zeros(number * self.slots, x.shape[-1])
        return empty.index_copy(0, self.slot, x[self.of])

    def summed(self, x: torch.Tensor, out: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Of each position, its experts' results times their weights."""
        weighted = out[self.slot] * weights[:, None]
        return torch.zeros_like(x).index_add(0, self.of, weighted)


class SpreadExperts(nn.Module):
    """A device's experts, in place of transformers' module of all of them.

    Args:
        whole: All experts of a layer.
        experts: Devices that the experts are spread over.
        tensor: Devices that each expert's hidden channels are divided among, or None.
        capacity: As of :meth:`Turns.choose`.
    """

    def __init__(self, whole: Any, experts: Any, tensor: Any, capacity: float | None) -> None:
        super().__init__()
        self.number, self.capacity = whole.num_experts, capacity
        self.group, self.tensor = experts, tensor
        own = slice(self.number // experts.size())
        self.own = _of(whole, own, 1 if tensor is None else tensor.size())

    def forward(self, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Positions of this device, by the experts of all, of which the router's choice is moot."""
        number, each = self.number // self.group.size(), chosen.shape[-1]
        turns = Turns.choose(x.shape[0], each, self.number, self.capacity)
        here = self._exchange(turns.sent(x, self.number))
        if self.tensor is not None:
            here = all_gather_single_autograd(here, 0, self.tensor.get_group())
        # By sender, expert, slot: an expert's are brought together.
        here = here.reshape(-1, number, turns.slots, x.shape[-1]).transpose(0, 1)
        out = self.own(here.flatten(1, 2))
        out = out.reshape(here.shape).transpose(0, 1).reshape(-1, x.shape[-1])
        if self.tensor is not None:
            out = reduce_scatter_single_autograd(out, "sum", 0, self.tensor.get_group())
        return turns.summed(x, self._exchange(out), weights.flatten()[turns.kept])

    def _exchange(self, x: torch.Tensor) -> torch.Tensor:
        return all_to_all_single(x, None, None, self.group.get_group())


class DividedMixture(nn.Module):
    """A mixture whose experts are divided among a tensor group alone, in place of transformers'.

    Every device has all positions and the weights of their experts, and what it adds up over
    experts, and the shared MLP beside them, is a part of the sum.

    Args:
        whole: Transformers' mixture.
        mesh: The group.
        sequence: Whether positions lie divided among the group.
        capacity: As of :meth:`Turns.choose`.
    """

    def __init__(self, whole: Any, mesh: Any, *, sequence: bool, capacity: float | None) -> None:
        super().__init__()
        self.gate, self.mesh, self.sequence, self.capacity = whole.gate, mesh, sequence, capacity
        self.number = whole.experts.num_experts
        self.experts = _of(whole.experts, slice(None), mesh.size())
        self.beside: Experts | None = None
        if hasattr(whole, "shared_expert"):
            mlp = whole.shared_expert
            weights = (each.weight[None] for each in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
            self.beside = Experts(*weights, mlp.act_fn, mesh.size())
            self.shared_expert_gate = whole.shared_expert_gate

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Positions of this device, and what all make of them."""
        flat = hidden.reshape(-1, hidden.shape[-1])
        _, weights, chosen = self.gate(flat)
        weights = weights.new_zeros(flat.shape[0], self.number).scatter(1, chosen, weights)
        if self.beside is not None:
            gate = self.shared_expert_gate(flat).sigmoid()
            weights = torch.cat([weights, gate.to(weights.dtype)], dim=1)
        x, weights = self._enter(flat), self._enter(weights)
        turns = Turns.choose(x.shape[0], chosen.shape[-1], self.number, self.capacity)
        slots = turns.sent(x, self.number).reshape(self.number, -1, x.shape[-1])
        out = self.experts(slots).flatten(0, 1)
        out = turns.summed(x, out, weights[turns.of, turns.expert])
        if self.beside is not None:
            out = out + weights[:, -1:] * self.beside(x[None])[0]
        return self._leave(out).reshape(hidden.shape)

    def _enter(self, x: torch.Tensor) -> torch.Tensor:
        if self.sequence:
            return all_gather_single_autograd(x, 0, self.mesh.get_group())
        there = DTensor.from_local(x, self.mesh, [Replicate()])
        return there.to_local(grad_placements=[Partial()])

    def _leave(self, x: torch.Tensor) -> torch.Tensor:
        if self.sequence:
            return reduce_scatter_single_autograd(x, "sum", 0, self.mesh.get_group())
        return (
            DTensor.from_local(x, self.mesh, [Partial()])
            .redistribute(placements=[Replicate()])
            .to_local()
        )


def spread(network: Any, experts: Any, tensor: Any, capacity: float | None) -> list[nn.Module]:
    """Leave of each layer's experts those of one device; the modules that have them.

    Args:
        network: Transformers'.
        experts: As of :class:`SpreadExperts`.
        tensor: Likewise.
        capacity: Likewise.
    """
    spread_modules = []
    for module in list(network.modules()):
        if hasattr(module, "experts") and not isinstance(module, SpreadExperts):
            module.experts = SpreadExperts(module.experts, experts, tensor, capacity)
            spread_modules.append(module.experts)
            if tensor is not None:
                _along_the_sequence(module.gate, tensor)
    return spread_modules


def divide_mixtures(network: Any, mesh: Any, *, sequence: bool, capacity: float | None) -> None:
    """Divide each layer's mixture among a tensor group: :class:`DividedMixture`."""
    for layer in network.model.layers:
        layer.mlp = DividedMixture(layer.mlp, mesh, sequence=sequence, capacity=capacity)
        if sequence:
            _along_the_sequence(layer.mlp.gate, mesh)


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
