"""Witness: one device's products and collectives, as PyTorch runs a network on many of them.

transformers' network is divided by PyTorch's own ``parallelize_module``, ``fully_shard`` and
``PipelineStage``, or wrapped by ``DistributedDataParallel``, under a process group whose other
members are not there: what arrives from them is no number that means anything, but the shapes are
those of a real run. Of a training step the products that this device multiplies are counted, by the
formulas of torch's FlopCounterMode, and of each collective that it starts the elements and their
bytes are read off. Experts on several devices, and heads of keys and values that several devices
have, PyTorch does not divide by itself: :mod:`validate.witnesses.spread_experts` does.

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
from flopcount.testing import draw
from models.processes import fresh_processes
from validate.witnesses import spread_experts

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2")
"""Families whose modules bear the names that the plan has."""

MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe")
"""Likewise, with experts, of one of them beside a shared MLP."""

REPLICAS = ("data", "expert data")
"""Groups of replicas: of everything but experts, and of experts where these are spread."""

IMPORTED = (
    "torch.distributed.fsdp",
    "torch.distributed.pipelining",
    "torch.distributed.tensor.parallel",
    "validate.witnesses.hugging_face.networks",
    "validate.witnesses.spread_experts",
)
"""What takes longest to import of what every case needs."""

Tally = dict[tuple[str, str, str], tuple[int, int]]
"""By group, kind and phase: how often, and bytes of the whole of what is exchanged."""

Differences = dict[str, int]


@dataclasses.dataclass(frozen=True)
class Case:
    """A network and how devices share it.

    Attributes:
        config: Of the network, as a config.json has it.
        parallel: How devices share it; a pipeline, or what else.
        seq_len: Positions.
        batch_size: Sequences of a microbatch.
        microbatches: Of each replica.
        checkpointing: A flavour, or None.
        mixed: Whether parameters are gathered in bf16, and gradients reduced in fp32.
    """

    config: dict[str, Any]
    parallel: fc.Parallel
    seq_len: int
    batch_size: int = 1
    microbatches: int = 1
    checkpointing: str | None = None
    mixed: bool = False


@dataclasses.dataclass(frozen=True)
class Seen:
    """What one device is seen to do in a step.

    Attributes:
        products: FLOPs of matrix products, by phase: ``"forward"`` or ``"backward"``, with what is
            recomputed; of a stage of a pipeline, whose passes alternate, all are ``"step"``.
        collectives: What it exchanges, likewise.
    """

    products: dict[str, int]
    collectives: Tally


def observe(cases: Iterable[Case]) -> list[tuple[Seen, ...]]:
    """A device of each stage of each case.

    Each case in a process of its own: PyTorch keeps how it moved tensors between devices of one
    layout, and would do so again with groups of another case.

    Args:
        cases: What to run.
    """
    with fresh_processes(1, IMPORTED) as pool:
        return list(pool.map(run, list(cases)))


def run(case: Case) -> tuple[Seen, ...]:
    """Run a case in this process: a device of each stage, one after the other."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    parallel = case.parallel
    seen = []
    for rank in range(parallel.pipeline):
        dist.init_process_group("fake", rank=rank, world_size=parallel.devices, store=FakeStore())
        try:
            seen.append(_run_stage(case, rank) if parallel.pipeline > 1 else _run(case))
        finally:
            dist.destroy_process_group()
    return tuple(seen)


def _built(case: Case) -> Any:
    """The network, and what it is called with beside its tokens."""
    import torch

    from validate.witnesses.hugging_face import networks as hugging_face

    network = hugging_face.build(case.config, device="cpu")
    hugging_face.require_countable(network)
    if case.checkpointing:
        flavour = {"use_reentrant": hugging_face.FLAVOURS[case.checkpointing]}
        network.gradient_checkpointing_enable(flavour)
    # Of all positions, whatever part of them a device has.
    mask = torch.zeros((case.batch_size, 1, case.seq_len, case.seq_len))
    return network, mask, torch.arange(case.seq_len)[None]


def _run(case: Case) -> Seen:
    """A device that has a part of every layer, or all of it."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    parallel = case.parallel
    network, mask, places = _built(case)
    heads = min(network.config.num_key_value_heads, parallel.tensor)
    expert, copies = parallel.expert, parallel.tensor // heads
    root = dist.device_mesh.init_device_mesh(
        "cpu",
        (parallel.data // expert, expert, heads, copies),
        mesh_dim_names=("expert data", "expert", "heads", "copies"),
    )
    mesh = {name: root[name] for name in ("expert data", "expert", "copies")}
    mesh["data"] = root["expert data", "expert"]._flatten("data")
    mesh["tensor"] = root["heads", "copies"]._flatten("tensor")
    names = {each.get_group().group_name: name for name, each in mesh.items()}
    names[mesh["copies"].get_group().group_name] = "tensor"
    tensor = mesh["tensor"] if parallel.tensor > 1 else None
    experts = []
    if expert > 1:
        experts = spread_experts.spread(network, mesh["expert"], tensor, parallel.capacity)
    if tensor is not None:
        if expert == 1 and hasattr(network.model.layers[0].mlp, "experts"):
            spread_experts.divide_mixtures(
                network, tensor, sequence=parallel.sequence, capacity=parallel.capacity
            )
        if copies > 1:
            for layer in network.model.layers:
                attention = layer.self_attn
                attention.num_key_value_groups = attention.config.num_attention_heads // (
                    parallel.tensor
                )
                for projection in (attention.k_proj, attention.v_proj):
                    spread_experts.copy_heads(projection, root["heads", "copies"])
        divide(network, tensor, sequence=parallel.sequence, copies=copies)
    whole = network if parallel.data == 1 else replicate(network, mesh, case, experts)
    recorder = _recorder(names, sequence=parallel.sequence)
    if case.config["model_type"] == "gemma2":
        mask = {"full_attention": mask, "sliding_attention": mask}
    tokens = torch.zeros((case.batch_size, case.seq_len), dtype=torch.long)
    with recorder:
        for microbatch in range(case.microbatches):
            alone = (
                isinstance(whole, DistributedDataParallel) and microbatch + 1 < case.microbatches
            )
            with whole.no_sync() if alone else contextlib.nullcontext():
                recorder.phase = "forward"
                logits = whole(input_ids=tokens, attention_mask=mask, position_ids=places).logits
                _backward(logits, tokens, recorder)
        _update(network, recorder)
        if parallel.zero == 0 and parallel.data > expert:
            for weight in (weight for module in experts for weight in module.parameters()):
                dist.all_reduce(weight.grad, group=mesh["expert data"].get_group())
    return Seen(dict(recorder.flops), recorder.collectives)


def _run_stage(case: Case, rank: int) -> Seen:
    """A device that has some of the layers, by PyTorch's schedules of pipelines."""
    import torch
    from torch import nn
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleInterleaved1F1B
    from torch.nn.functional import cross_entropy

    parallel = case.parallel
    network, mask, places = _built(case)
    parts = parallel.pipeline * parallel.chunks
    layers = network.model.layers
    own = parallel.stages or (len(layers) // parts,) * parts
    tokens = torch.zeros((case.batch_size, case.seq_len), dtype=torch.long)

    class Part(nn.Module):
        def __init__(self, index: int) -> None:
            super().__init__()
            first = sum(own[:index])
            self.embedding = network.model.embed_tokens if index == 0 else nn.Identity()
            self.layers = layers[first : first + own[index]]
            last = index == parts - 1
            self.ends = (
                nn.Sequential(network.model.norm, network.lm_head) if last else nn.Identity()
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.embedding(x)
            angles = network.model.rotary_emb(x, places)
            for layer in self.layers:
                x = layer(x, attention_mask=mask, position_embeddings=angles)
            return self.ends(x)

    class Told(PipelineStage):
        """Knows what arrives, so that devices need not agree on whether they know."""

        def _warmup_forward_vote(self, *_: Any, **__: Any) -> torch.Tensor:
            return torch.ones(1, dtype=torch.int32)

        _warmup_backward_result = _warmup_forward_vote

    def positions(channels: int) -> torch.Tensor:
        return torch.zeros((*tokens.shape, channels), requires_grad=True)

    config = network.config
    stages = [
        Told(
            Part(index), index, parts, torch.device("cpu"),
            input_args=(positions(config.hidden_size) if index else tokens,),
            output_args=(
                positions(config.hidden_size if index < parts - 1 else config.vocab_size),
            ),
        )
        for index in range(rank, parts, parallel.pipeline)
    ]  # fmt: skip

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return cross_entropy(logits.flatten(0, 1), targets.flatten())

    schedule: Any = (
        Schedule1F1B(stages[0], case.microbatches, loss)
        if parallel.chunks == 1
        else ScheduleInterleaved1F1B(stages, case.microbatches, loss)
    )
    batch = tokens.repeat(case.microbatches, 1)
    recorder = _recorder({})
    with recorder:
        given = (batch,) if rank == 0 else ()
        last = rank == parallel.pipeline - 1
        schedule.step(*given, **(dict(target=batch) if last else {}))
    return Seen(dict(recorder.flops), recorder.collectives)


def _backward(logits: Any, tokens: Any, recorder: Any) -> None:
    """Loss and backward pass of a microbatch."""
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.parallel import loss_parallel
    from torch.nn.functional import cross_entropy

    divided = isinstance(logits, DTensor)
    with loss_parallel() if divided else contextlib.nullcontext():
        loss = cross_entropy(logits.flatten(0, 1).float(), tokens.flatten())
        recorder.phase = "backward"
        loss.backward()


def _update(network: Any, recorder: Any) -> None:
    """The sum of gradients that devices have parts of, as the optimizer's step needs it."""
    from torch.distributed.tensor import DTensor, Replicate

    recorder.phase = "update"
    for parameter in network.parameters():
        gradient = parameter.grad
        if isinstance(gradient, DTensor) and any(p.is_partial() for p in gradient.placements):
            gradient.redistribute(
                placements=[Replicate() if p.is_partial() else p for p in gradient.placements]
            )


def divide(network: Any, mesh: Any, *, sequence: bool, copies: int = 1) -> None:
    """Divide a network among a tensor group, as torchtitan's plan does.

    Args:
        network: Transformers'.
        mesh: The group.
        sequence: Whether what all of it would do alike is divided along the sequence.
        copies: On how many devices each head of keys and values is; if several, already divided.
    """
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
    for name, module in network.named_modules():
        own = name.rpartition(".")[2]
        shared = ".shared_expert." in name  # which reads positions of all sequences as one
        if copies > 1 and own in ("k_proj", "v_proj"):
            continue
        if own == "self_attn":
            plan[name] = PrepareModuleInput(
                input_kwarg_layouts={"hidden_states": lies},
                desired_input_kwarg_layouts={"hidden_states": Replicate()},
            )
        elif own == "mlp" and hasattr(module, "experts"):
            pass  # its parts are divided, each as it needs
        elif own == "shared_expert":
            plan[name] = PrepareModuleInput(
                input_layouts=(Shard(0),), desired_input_layouts=(Replicate(),)
            )
        elif sequence and own == "shared_expert_gate":
            plan[name] = SequenceParallel(sequence_dim=0, use_local_output=True)
        elif own == "mlp":
            plan[name] = PrepareModuleInput(
                input_layouts=(lies,), desired_input_layouts=(Replicate(),)
            )
        elif own in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"):
            plan[name] = ColwiseParallel()
        elif own in ("o_proj", "down_proj"):
            plan[name] = RowwiseParallel(output_layouts=Shard(0) if shared else lies)
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


def replicate(network: Any, mesh: dict[str, Any], case: Case, experts: list[Any]) -> Any:
    """Replicas of a network, which keep everything or parts of it; fewer, of experts spread."""
    import torch
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from torch.distributed.tensor import Shard
    from torch.nn.parallel import DistributedDataParallel

    if case.parallel.zero == 0:
        apart = {id(weight) for module in experts for weight in module.parameters()}
        names = [name for name, weight in network.named_parameters() if id(weight) in apart]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(network, names)
        group = mesh["data"].get_group()
        replicated = DistributedDataParallel(network, process_group=group)
        replicated.register_comm_hook(group, _reduced)
        return replicated
    options: dict[str, Any] = dict(mesh=mesh["data"], reshard_after_forward=case.parallel.reshard)
    # Of a gate of one row, that is not divided, and so not padded.
    options["shard_placement_fn"] = lambda weight: Shard(int(weight.shape[0] == 1))
    if case.mixed:
        options["mp_policy"] = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    alone: set[Any] = set()
    for module in experts:
        if mesh["expert data"].size() == 1:
            alone |= set(module.parameters())
        else:
            fully_shard(module, **options | dict(mesh=mesh["expert data"]))
    for layer in network.model.layers:
        fully_shard(layer, **options, ignored_params=alone)
    return fully_shard(network, **options, ignored_params=alone)


def _reduced(group, bucket):  # type: ignore[no-untyped-def] # DDP reads the annotations
    """What DDP does with a bucket of gradients, where a recorder sees it."""
    import torch
    import torch.distributed as dist

    dist.all_reduce(bucket.buffer(), group=group)
    done: Any = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


def _recorder(names: dict[str, str], *, sequence: bool = False) -> Any:
    """Records what this device multiplies and exchanges, behind what tensors are divided.

    Args:
        names: Of groups, by the name that their process group has.
        sequence: Whether positions lie divided among a tensor group, which then adds up none but
            gradients of parameters.
    """
    import torch
    import torch.distributed as dist
    from torch import ScriptObject
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
        "all_to_all_single": "all-to-all",
        "send": "send",
    }
    silent = ("wait_tensor", "_wrap_tensor_autograd", "broadcast_", "recv_")

    class Recorder(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.phase = "step"
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
            groups = [
                dist.ProcessGroup.unbox(arg).group_name
                if isinstance(arg, ScriptObject) and str(arg._type()).endswith("ProcessGroup")
                else arg
                for arg in args
            ]
            named = [names[each] for each in groups if isinstance(each, str) and each in names]
            # Where one group is all replicas, it has one name of two.
            alone = {"send": "pipeline", "all-to-all": "expert"}
            group = alone.get(kind) or named[0]
            phase = self.phase
            if phase == "backward" and (kind != "all-gather" and group in REPLICAS):
                phase = "update"  # gradients of parameters
            of_parameters = whole.ndim == 1 or (sequence and kind == "all-reduce")
            if phase == "backward" and group == "tensor" and of_parameters:
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
        batch_size=case.batch_size * case.microbatches * case.parallel.data,
        microbatch_size=case.batch_size,
        checkpointing=case.checkpointing,
        dtype="bf16" if case.mixed else "fp32",
    )


def compare(case: Case, seen: tuple[Seen, ...]) -> Differences:
    """Formula minus witness: FLOPs of each pass, and times and bytes of each kind of collective.

    All tensors that replicas exchange count as one collective in the formula: of them, bytes alone.
    """
    differences: Differences = {}
    for stage, of_stage in zip(formula(case).stages, seen, strict=True):
        whole = "step" in of_stage.products
        told: dict[tuple[str, str, str], tuple[int, int]] = {}
        for each in stage.collectives:
            phase = "backward" if each.phase == "recompute" else each.phase
            key = each.group, each.kind, "step" if whole else phase
            times, moved = told.get(key, (0, 0))
            told[key] = times + each.times, moved + each.elements * bits("", each.dtype) // 8
        for key in sorted({*told, *of_stage.collectives}):
            times, moved = told.get(key, (0, 0))
            seen_times, seen_bytes = of_stage.collectives.get(key, (0, 0))
            name = f"{', '.join(key)}, stage {stage.index}"
            differences[f"{name}: bytes"] = moved - seen_bytes
            if key[0] not in REPLICAS and key[2] != "update":
                differences[f"{name}: times"] = times - seen_times
        count = stage.count
        rest = count.backward + count.recompute
        products = {"forward": count.forward, "backward": rest}
        if whole:
            products = {"step": count.forward + rest}
        for phase, flops in products.items():
            differences[f"{phase}, stage {stage.index}"] = flops - of_stage.products[phase]
    return differences


@st.composite
def drawn(draw_one: Any) -> Case:
    """A small network whose sizes devices divide, in each way that PyTorch divides them."""
    tensor, data = draw_one(
        st.sampled_from([(1, 2), (1, 4), (2, 1), (4, 1), (2, 2), (3, 2), (1, 1)])
    )
    pipeline = draw_one(st.sampled_from([2, 3])) if tensor * data == 1 else 1
    chunks = draw_one(st.integers(1, 2)) if pipeline > 1 else 1
    family = draw_one(st.sampled_from(FAMILIES))
    # gemma2 scales its embeddings before they are reduced, in full.
    sequence = tensor > 1 and family != "gemma2" and draw_one(st.booleans())
    zero = 3 if tensor > 1 else draw_one(st.sampled_from([0, 3]))  # DDP divides no layers
    groups = tensor * draw_one(st.integers(1, 2))
    parts = pipeline * chunks
    layers = draw_one(st.integers(1, 2)) if pipeline == 1 else parts
    stages = None
    if pipeline > 1 and draw_one(st.booleans()):
        stages = tuple(draw_one(st.integers(1, 2)) for _ in range(parts))
        layers = sum(stages)
    heads = groups * draw_one(st.integers(1, 2))
    config = dict(
        model_type=family,
        # FSDP pads what replicas do not divide.
        vocab_size=4 * tensor * draw_one(st.integers(1, 3)),
        hidden_size=4 * heads * draw_one(st.integers(1, 3)),
        intermediate_size=4 * tensor * draw_one(st.integers(1, 4)),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        # Divided for a tensor group and then replicated, tied tensors are tied no more.
        tie_word_embeddings=pipeline == 1 and min(tensor, data) == 1 and draw_one(st.booleans()),
        pad_token_id=None,
    )
    if family != "qwen2":  # which has no head dim of its own
        config["head_dim"] = 4 * draw_one(st.integers(1, 2))
    return Case(
        config,
        fc.Parallel(
            tensor=tensor,
            data=data,
            pipeline=pipeline,
            chunks=chunks,
            stages=stages,
            sequence=sequence,
            zero=zero if data > 1 else 0,
            reshard=zero != 3 or data == 1 or draw_one(st.booleans()),
        ),
        seq_len=tensor * draw_one(st.integers(1, 3)),
        batch_size=draw_one(st.integers(1, 2)),
        microbatches=pipeline * draw_one(st.integers(1, 2)),
        checkpointing=draw_one(st.sampled_from([None, "reentrant", "non-reentrant"]))
        if pipeline == 1
        else None,
        # A tensor group adds gradients up in bf16 then, before they are reduced in fp32.
        mixed=zero == 3 and data > tensor == 1 and draw_one(st.booleans()),
    )


@st.composite
def drawn_experts(draw_one: Any) -> Case:
    """A small mixture with experts spread over replicas, divided among a tensor group, or both."""
    expert, others = draw_one(st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (4, 1)]))
    # Thirds FSDP would pad.
    tensor = draw_one(st.sampled_from({1: [2, 3], 3: [1]}.get(expert, [1, 2])))
    family = draw_one(st.sampled_from(MIXTURES))
    number = expert * others * draw_one(st.integers(1, 2))
    zero = 3 if tensor > 1 else draw_one(st.sampled_from([0, 3] if expert != 3 else [0]))
    sequence = tensor > 1 and (expert > 1 or draw_one(st.booleans()))
    heads = tensor * draw_one(st.integers(1, 2))
    capacity = draw_one(st.sampled_from([None, 0.5, 1.25, 2.0]))
    config = dict(
        model_type=family,
        vocab_size=4 * tensor * draw_one(st.integers(1, 3)),
        hidden_size=4 * heads * draw_one(st.integers(1, 3)),
        num_hidden_layers=draw_one(st.integers(1, 2)),
        num_attention_heads=heads,
        num_key_value_heads=tensor,
        num_experts_per_tok=draw_one(st.integers(1, min(number, 3))),
        tie_word_embeddings=False,
        pad_token_id=None,
    )
    width = 4 * tensor * draw_one(st.integers(1, 4))
    if family == "mixtral":
        config |= dict(num_local_experts=number, intermediate_size=width)
    else:
        config |= dict(num_experts=number, moe_intermediate_size=width)
        config |= dict(decoder_sparse_step=1, mlp_only_layers=[], intermediate_size=4)
    if family == "qwen2_moe":
        config["shared_expert_intermediate_size"] = 4 * tensor * draw_one(st.integers(1, 3))
    else:
        config["head_dim"] = 4 * draw_one(st.integers(1, 2))
    # Without a capacity all experts are chosen equally often, by every device.
    length = draw_one(st.integers(1, 5)) if capacity else number
    return Case(
        config,
        fc.Parallel(
            tensor=tensor,
            data=expert * others,
            expert=expert,
            sequence=sequence,
            zero=zero,
            reshard=zero == 0 or draw_one(st.booleans()),
            capacity=capacity,
        ),
        seq_len=tensor * length,
        batch_size=draw_one(st.integers(1, 2)),
        microbatches=draw_one(st.integers(1, 2)),
        checkpointing=draw_one(st.sampled_from([None, "reentrant", "non-reentrant"])),
    )


@st.composite
def drawn_copies(draw_one: Any) -> Case:
    """A small network with fewer heads of keys and values than devices in its tensor group."""
    groups, copies = draw_one(st.sampled_from([(1, 2), (1, 3), (1, 4), (2, 2), (2, 3)]))
    tensor = groups * copies
    family = draw_one(st.sampled_from(FAMILIES))
    heads = tensor * draw_one(st.integers(1, 2))
    config = dict(
        model_type=family,
        vocab_size=4 * tensor * draw_one(st.integers(1, 2)),
        hidden_size=4 * heads * draw_one(st.integers(1, 2)),
        intermediate_size=4 * tensor * draw_one(st.integers(1, 2)),
        num_hidden_layers=draw_one(st.integers(1, 2)),
        num_attention_heads=heads,
        num_key_value_heads=groups,
        tie_word_embeddings=False,
        pad_token_id=None,
    )
    if family != "qwen2":
        config["head_dim"] = 4 * draw_one(st.integers(1, 2))
    return Case(
        config,
        fc.Parallel(tensor=tensor, sequence=family != "gemma2" and draw_one(st.booleans())),
        seq_len=tensor * draw_one(st.integers(1, 2)),
        batch_size=draw_one(st.integers(1, 2)),
        microbatches=draw_one(st.integers(1, 2)),
        checkpointing=draw_one(st.sampled_from([None, "reentrant", "non-reentrant"])),
    )


def tried(quick: bool) -> list[Case]:
    """Drawn cases: most as PyTorch divides networks by itself.

    Args:
        quick: A few alone.
    """
    few, many = (4, 12) if quick else (40, 100)
    return [*draw(drawn(), many), *draw(drawn_experts(), few), *draw(drawn_copies(), few)]


def cases(quick: bool) -> Iterator[tuple[str, Differences]]:
    """Differences on drawn cases.

    Args:
        quick: A few alone.
    """
    all_cases = tried(quick)
    for case, seen in zip(all_cases, observe(all_cases), strict=True):
        yield str(case), compare(case, seen)
