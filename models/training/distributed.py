"""One run over several processes, through PyTorch's own engine.

``torchrun`` starts the processes and ends them all when one dies; this module joins them. The
first process alone writes. Every process computes on its own share of each batch, and means over
processes make up the whole batch's loss and gradient. Random numbers are drawn for the whole batch
by every process alike, so that the number of processes changes nothing but rounding.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from models.networks.blocks import SelfAttentionLayer
from models.networks.perceiver_ar import HybridLayer

Parallel: TypeAlias = Literal["ddp", "fsdp2"]


@dataclass(frozen=True)
class Processes:
    """The processes that train one run, seen from one of them.

    Attributes:
        rank: This one's, from 0.
        count: How many there are.

    >>> Processes(rank=1, count=4).share(80)
    slice(20, 40, None)
    """

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def share(self, number: int) -> slice:
        """Give this process's part of ``number`` things, a multiple of the processes."""
        each = number // self.count
        return slice(self.rank * each, (self.rank + 1) * each)

    def mean(self, value: Tensor) -> Tensor:
        """Average a tensor over the processes."""
        if self.count == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total / self.count

    def wait_for_all(self) -> None:
        """Return once every process has come here."""
        if self.count > 1:
            dist.barrier()


ALONE = Processes()


def launched() -> bool:
    """Tell whether ``torchrun`` started this process."""
    return dist.is_torchelastic_launched()


def launched_rank() -> int:
    """Give the rank that ``torchrun`` gave this process; 0 if it was started in another way."""
    return int(os.environ["RANK"]) if launched() else 0


@contextmanager
def joined_processes(device: torch.device) -> Iterator[Processes]:
    """Join the processes that ``torchrun`` started, NCCL between GPUs and Gloo between CPUs.

    A process that was started in another way is alone.

    Raises:
        ValueError: If there are more processes on a machine than GPUs.

    """
    if not launched():
        yield ALONE
        return
    if device.type == "cuda":
        local_rank = dist.get_node_local_rank()
        if local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"--nproc-per-node must be at most the machine's {torch.cuda.device_count()} GPUs"
            )
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def parallelize(module: nn.Module, parallel: Parallel, processes: Processes) -> nn.Module:
    """Spread a module over the processes.

    ``ddp`` keeps the whole model in each process; ``fsdp2`` shards parameters, gradients and the
    optimiser's state, in units of one layer. Make the optimiser afterwards. One process alone
    keeps the module as it is.
    """
    if processes.count == 1:
        return module
    device = next(module.parameters()).device.type
    if parallel == "ddp":
        return DistributedDataParallel(module, gradient_as_bucket_view=True)
    mesh = init_device_mesh(device, (processes.count,))
    for layer in layers(module):
        fully_shard(layer, mesh=mesh)
    return fully_shard(module, mesh=mesh)


def layers(module: nn.Module) -> list[nn.Module]:
    """List the transformer layers within a module, in order."""
    return [part for part in module.modules() if isinstance(part, HybridLayer | SelfAttentionLayer)]


def whole(value: Tensor) -> Tensor:
    """Gather a sharded tensor; every process must take part. Others stay as they are."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def sharded_like(value: Tensor, other: Tensor) -> Tensor:
    """Shard a tensor that every process holds whole as ``other`` is sharded, if it is."""
    if not isinstance(other, DTensor):
        return value
    value = value.to(other.device)
    # Every process has read the same file: nothing is sent.
    return distribute_tensor(value, other.device_mesh, other.placements, src_data_rank=None)
