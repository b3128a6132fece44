"""Witness: one device's products and collectives, as PyTorch runs a network on many of them.

transformers' network is divided by PyTorch's own ``parallelize_module`` and ``fully_shard``, or
wrapped by ``DistributedDataParallel``, under a process group whose other members are not there: what
arrives from them is no number that means anything, but the shapes are those of a real run. Of a
training step the products that this device multiplies are counted, by the formulas of torch's
FlopCounterMode, and of each collective that it starts the elements and their bytes are read off.

The plan is torchtitan's: attention and MLP gather their input once, not for each projection.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from hypothesis import strategies as st

import flopcount as fc
from flopcount.distributed import PerDevice
from flopcount.inference import bits
from models.processes import fresh_processes
from validate.configurations import draw

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2")
"""Families whose modules bear the names that the plan has."""

Tally = dict[tuple[str, str, str], tuple[int, int]]
"""By group, kind and phase: how often, and bytes of the whole of what is exchanged."""

Differences = dict[str, int]


@dataclasses.dataclass(frozen=True)
class Case:
    """A network and how devices share it.

    Attributes:
        config: Of the network, as a config.json has it.
        parallel: How devices share it: tensor, data, sequence, zero (0 or 3) and reshard.
        seq_len: Positions.
        batch_size: Sequences of each replica.
        checkpointing: A flavour, or None.
        mixed: Whether parameters are gathered in bf16, and gradients reduced in fp32.
    """

    config: dict[str, Any]
    parallel: fc.Parallel
    seq_len: int
    batch_size: int = 1
    checkpointing: str | None = None
    mixed: bool = False


@dataclasses.dataclass(frozen=True)
class Seen:
    """What one device is seen to do in a step.

    Attributes:
        forward: FLOPs of its products in the forward pass.
        rest: FLOPs of the backward pass, recomputation in it.
        collectives: What it exchanges; what is recomputed counts as backward.
    """

    forward: int
    rest: int
    collectives: Tally


def observe(cases: Iterable[Case]) -> list[Seen]:
    """Run the cases in a process of their own, since a process group is the whole process's."""
    with fresh_processes(1) as pool:
        return list(pool.map(run, list(cases)))


def run(case: Case) -> Seen:
    """Run a case in this process."""
    import torch
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from validate import hugging_face

    parallel = case.parallel
    world = parallel.tensor * parallel.data
    dist.init_process_group("fake", rank=0, world_size=world, store=FakeStore())
    try:
        mesh = dist.device_mesh.init_device_mesh(
            "cpu", (parallel.data, parallel.tensor), mesh_dim_names=("data", "tensor")
        )
        network = hugging_face.build(case.config, device="cpu")
        hugging_face.require_countable(network)
        if case.checkpointing:
            flavour = {"use_reentrant": hugging_face.FLAVOURS[case.checkpointing]}
            network.gradient_checkpointing_enable(flavour)
        names = {mesh[name].get_group().group_name: name for name in ("data", "tensor")}
        if parallel.tensor > 1:
            divide(network, mesh["tensor"], sequence=parallel.sequence)
        whole: Any = network
        if parallel.data > 1:
            whole = replicate(network, mesh["data"], case)
        recorder = _recorder(names)
        places = torch.arange(case.seq_len)[None]
        tokens = torch.zeros((case.batch_size, case.seq_len), dtype=torch.long)
        # Of all positions, whatever part of them a device has.
        mask = torch.zeros((case.batch_size, 1, case.seq_len, case.seq_len))
        if case.config["model_type"] == "gemma2":
            given: Any = {"full_attention": mask, "sliding_attention": mask}
        else:
            given = mask
        with recorder:
            logits = whole(input_ids=tokens, attention_mask=given, position_ids=places).logits
            _step(logits, tokens, recorder, network)
        return Seen(
            recorder.flops["forward"], recorder.flops["backward"], dict(recorder.collectives)
        )
    finally:
        dist.destroy_process_group()


def _step(logits: Any, tokens: Any, recorder: Any, network: Any) -> None:
    """Loss, backward pass, and the sum of gradients that devices have parts of."""
    from torch.distributed.tensor import DTensor, Replicate
    from torch.distributed.tensor.parallel import loss_parallel
    from torch.nn.functional import cross_entropy

    divided = isinstance(logits, DTensor)
    with loss_parallel() if divided else contextlib.nullcontext():
        loss = cross_entropy(logits.flatten(0, 1), tokens.flatten())
        recorder.phase = "backward"
        loss.backward()
    recorder.phase = "update"
    for parameter in network.parameters():
        gradient = parameter.grad
        if isinstance(gradient, DTensor) and any(p.is_partial() for p in gradient.placements):
            gradient.redistribute(placements=[Replicate()] * gradient.device_mesh.ndim)


def divide(network: Any, mesh: Any, *, sequence: bool) -> None:
    """Divide a network among a tensor group, as torchtitan's plan does."""
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        PrepareModuleInput,
        RowwiseParallel,
        SequenceParallel,
        parallelize_module,
    )

    lies: Any = Shard(1) if sequence else Replicate()
    plan: dict[str, Any] = {}
    for name, _ in network.named_modules():
        own = name.rpartition(".")[2]
        if own == "self_attn":
            plan[name] = PrepareModuleInput(
                input_kwarg_layouts={"hidden_states": lies},
                desired_input_kwarg_layouts={"hidden_states": Replicate()},
            )
        elif own == "mlp":
            plan[name] = PrepareModuleInput(
                input_layouts=(lies,), desired_input_layouts=(Replicate(),)
            )
        elif own in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"):
            plan[name] = ColwiseParallel()
        elif own in ("o_proj", "down_proj"):
            plan[name] = RowwiseParallel(output_layouts=lies)
        elif own in ("q_norm", "k_norm"):
            # Their scale is of every head, of which a device has some.
            plan[name] = SequenceParallel(sequence_dim=2, use_local_output=True)
        elif own == "embed_tokens":
            plan[name] = RowwiseParallel(input_layouts=Replicate(), output_layouts=lies)
        elif own == "lm_head":
            plan[name] = ColwiseParallel(
                input_layouts=lies, output_layouts=Shard(-1), use_local_output=False
            )
        elif sequence and (own == "norm" or own.endswith("layernorm")):
            plan[name] = SequenceParallel(use_local_output=True)
    parallelize_module(network, mesh, plan)


def replicate(network: Any, mesh: Any, case: Case) -> Any:
    """Replicas of a network, which keep everything or parts of it."""
    import torch
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from torch.nn.parallel import DistributedDataParallel

    if case.parallel.zero == 0:
        return DistributedDataParallel(network, process_group=mesh.get_group())
    options: dict[str, Any] = dict(mesh=mesh, reshard_after_forward=case.parallel.reshard)
    if case.mixed:
        options["mp_policy"] = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    for layer in network.model.layers:
        fully_shard(layer, **options)
    return fully_shard(network, **options)


def _recorder(names: dict[str, str]) -> Any:
    """Records what this device multiplies and exchanges, behind what tensors are divided.

    Args:
        names: Of groups, by the name that their process group has.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensor
    from torch.distributed.tensor import DTensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    kinds = {
        "all_reduce": "all-reduce",
        "allreduce_": "all-reduce",
        "all_gather_into_tensor": "all-gather",
        "_allgather_base_": "all-gather",
        "reduce_scatter_tensor": "reduce-scatter",
        "_reduce_scatter_base_": "reduce-scatter",
    }
    silent = ("wait_tensor", "_wrap_tensor_autograd", "broadcast_", "barrier")

    class Recorder(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.phase = "forward"
            self.flops: collections.Counter[str] = collections.Counter()
            self.collectives: Tally = {}

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if any(issubclass(kind, DTensor) for kind in types):
                return NotImplemented  # it comes again, as what it is on this device
            out = func(*args, **(kwargs or {}))
            if isinstance(out, FakeTensor):
                return out  # DTensor asks what shape the whole would have
            packet = getattr(func, "_overloadpacket", None)
            if packet in flop_registry:
                self.flops[self.phase] += flop_registry[packet](
                    *args, **(kwargs or {}), out_val=out
                )
            space, _, name = str(packet).partition(".")
            if space in ("c10d", "_c10d_functional"):
                self._exchanged(name, args, out)
            return out

        def _exchanged(self, name: str, args: Any, out: Any) -> None:
            if name in silent:
                return
            kind = kinds[name]
            tensors = [
                tensor
                for value in (*args, out)
                for tensor in (value if isinstance(value, list | tuple) else [value])
                if isinstance(tensor, torch.Tensor)
            ]
            # Of the whole: what a gather gives, what the others take.
            whole = max(tensors, key=lambda tensor: tensor.numel())
            named = [names[arg] for arg in args if isinstance(arg, str) and arg in names]
            (group,) = named or ["data"]
            phase = self.phase
            if phase == "backward" and (kind != "all-gather" and group == "data"):
                phase = "update"  # gradients of parameters
            if phase == "backward" and group == "tensor" and whole.ndim == 1:
                phase = "update"
            times, moved = self.collectives.get((group, kind, phase), (0, 0))
            moved += whole.numel() * whole.element_size()
            self.collectives[group, kind, phase] = times + 1, moved

    return Recorder()


def formula(case: Case) -> PerDevice:
    """What the counter says of a case."""
    return fc.per_device(
        fc.from_hf(case.config, case.seq_len),
        case.parallel,
        level="dense",
        batch_size=case.batch_size * case.parallel.data,
        microbatch_size=case.batch_size,
        checkpointing=case.checkpointing,
        dtype="bf16" if case.mixed else "fp32",
    )


def compare(case: Case, seen: Seen) -> Differences:
    """Formula minus witness: FLOPs of each pass, and times and bytes of each kind of collective.

    All tensors that replicas exchange count as one collective in the formula: of them, bytes alone.
    """
    (stage,) = formula(case).stages
    found = {
        "forward": stage.count.forward - seen.forward,
        "backward and recompute": stage.count.backward + stage.count.recompute - seen.rest,
    }
    told: dict[tuple[str, str, str], tuple[int, int]] = {}
    for each in stage.collectives:
        phase = "backward" if each.phase == "recompute" else each.phase
        times, moved = told.get((each.group, each.kind, phase), (0, 0))
        whole = each.elements * bits("dtype", each.dtype) // 8
        told[each.group, each.kind, phase] = times + each.times, moved + whole
    for key in sorted({*told, *seen.collectives}):
        times, moved = told.get(key, (0, 0))
        seen_times, seen_bytes = seen.collectives.get(key, (0, 0))
        name = ", ".join(key)
        found[f"{name}: bytes"] = moved - seen_bytes
        if key[0] == "tensor" and key[2] != "update":
            found[f"{name}: times"] = times - seen_times
    return found
