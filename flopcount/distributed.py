"""A step on many devices: what each multiplies, and the bytes that it sends at least.

The network that a device works on, and what it exchanges within it, are those of
:mod:`flopcount.parallel`. A stage of a pipeline has some of its layers; the first has the embedding
and the last the output layer. Replicas exchange gradients and parameters. Letters as there.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

from flopcount.architectures import Architecture, Decoder, Dimension, Llama
from flopcount.blocks import TOKENS, Block
from flopcount.causal_lm import CausalLM, Group
from flopcount.count import LEVELS, Count, in_order, product_term
from flopcount.devices import DEFAULT_DTYPE
from flopcount.inference import bits
from flopcount.mixture_lm import MixtureLM
from flopcount.operations import Pass
from flopcount.parallel import Kind, Parallel, Share, Transfer, one_integer, split
from flopcount.rows import Product, Tensor
from flopcount.sizes import (
    Size,
    ceil_divide,
    divide,
    exact_ratio,
    quoted,
    require_choice,
)
from flopcount.tables import Shown, Table, shown

SENT = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1, "all-to-all": 1}
"""What a device of p sends, over (p - 1)/p of the bytes: no algorithm sends less.

Source: Chan et al. 2007, Collective communication: theory, practice, and experience, section 3;
Patarasuk and Yuan 2009, Bandwidth optimal all-reduce algorithms for clusters of workstations. Of an
all-to-all among equals, (p - 1)/p of what a device holds is for others.
"""
STATISTICS = "fp32"
"""Of the loss: a maximum, a sum and a prediction of each position, as Megatron-LM keeps them."""
FAMILIES = (Decoder, Llama, CausalLM, MixtureLM)
ENDS = (TOKENS, ("output", "logits"))
"""Layers and names of the tables that tied ends of a pipeline hold copies of."""


@dataclasses.dataclass(frozen=True)
class Collective:
    """What a device does with others of a group in a step.

    Attributes:
        kind: ``"all-reduce"``, ``"all-gather"``, ``"reduce-scatter"``, ``"all-to-all"`` or
            ``"send"``, which is counted where it is sent.
        group: ``"tensor"``, ``"pipeline"``, ``"expert"``, ``"data"``, ``"expert data"`` (replicas
            with the same experts) or ``"embedding"`` (first and last stage).
        size: Devices of the group.
        layer: Where.
        term: What.
        phase: ``"forward"``, ``"backward"``, ``"recompute"`` or ``"update"``, before or after the
            optimizer's step.
        times: How often in a step.
        elements: All times together, of the whole: what an all-gather gives, what the others take.
        dtype: Of an element.
    """

    kind: Kind
    group: str
    size: int
    layer: str
    term: str
    phase: str
    times: int
    elements: int
    dtype: str

    @property
    def bytes(self) -> Any:
        """Bytes that each device sends at least, all times together: see :data:`SENT`."""
        whole = self.elements * bits("dtype", self.dtype)
        if self.kind == "send":
            return exact_ratio(whole, 8)
        return exact_ratio(SENT[self.kind] * (self.size - 1) * whole, 8 * self.size)

    def record(self) -> dict[str, Any]:
        """It as plain data."""
        return dataclasses.asdict(self) | {"bytes": self.bytes}


def total_bytes(collectives: Iterable[Collective]) -> Any:
    """Bytes that a device sends in all of them at least."""
    return exact_ratio(sum((Fraction(each.bytes) for each in collectives), Fraction(0)), 1)


@dataclasses.dataclass(frozen=True)
class Stage:
    """Devices that do the same: those of one stage of the pipeline.

    Attributes:
        index: Which, from 0.
        layers: Its layers.
        count: FLOPs of one of its devices in a step.
        params: Parameters that one of its devices computes with.
        collectives: What one of its devices exchanges in a step.
    """

    index: int
    layers: int
    count: Count
    params: int
    collectives: tuple[Collective, ...]

    @property
    def bytes(self) -> Any:
        """Bytes that one of its devices sends in a step at least."""
        return total_bytes(self.collectives)

    def to_dict(self) -> dict[str, Any]:
        """It as plain data."""
        return {
            "stage": self.index,
            "layers": self.layers,
            "total": self.count.total,
            "forward": self.count.forward,
            "backward": self.count.backward,
            "recompute": self.count.recompute,
            "params": self.params,
            "bytes": self.bytes,
            "terms": self.count.records(),
            "collectives": [each.record() for each in self.collectives],
        }


def pipeline_bubble(pipeline: int, microbatches: int, chunks: int = 1) -> Fraction:
    """The share of a step in which a device of a pipeline waits: (p - 1)/(v·m + p - 1).

    Of stages that take equally long, with one forward and one backward pass in turn ("1F1B"), or
    interleaved with v parts of the layers on each device: a step takes v·m + p - 1 times what a
    part takes of a microbatch, and p - 1 of these a device waits.

    Args:
        pipeline: p, stages.
        microbatches: m, of a step.
        chunks: v, parts of each stage.

    Raises:
        TypeError: If an argument is no integer.
        ValueError: If one is not positive, or m is not a multiple of p with v > 1.

    Source: Narayanan et al. 2021 (arXiv 2104.04473), sections 2.2.1 and 2.2.2, which set the bubble
    in relation to the rest: (p - 1)/(v·m).

    >>> pipeline_bubble(8, 24), pipeline_bubble(8, 24, chunks=2)
    (Fraction(7, 31), Fraction(7, 55))
    """
    stages = one_integer("pipeline", pipeline)
    batches = one_integer("microbatches", microbatches)
    parts = one_integer("chunks", chunks)
    if parts > 1:
        divide("microbatches", batches, "pipeline", stages)
    return Fraction(stages - 1, parts * batches + stages - 1)


@dataclasses.dataclass(frozen=True, repr=False)
class PerDevice(Shown):
    """A training step, or a forward pass, on many devices.

    Attributes:
        model: The model; its vocabulary padded as stated.
        parallel: How devices share the step.
        batch_size: Sequences of the step.
        microbatch_size: Of them, those that pass at once through a replica.
        whole: The step as one device would do it, without padding.
        stages: What devices do, by stage of the pipeline.
        training: Whether there is a backward pass.
    """

    model: Any
    parallel: Parallel
    batch_size: int
    microbatch_size: int
    whole: Count
    stages: tuple[Stage, ...]
    training: bool

    @property
    def microbatches(self) -> int:
        """m, of each replica."""
        return self.batch_size // (self.parallel.data * self.microbatch_size)

    @property
    def largest(self) -> Stage:
        """The stage with the most FLOPs, which the others wait for."""
        return max(self.stages, key=lambda stage: stage.count.with_recompute)

    @functools.cached_property
    def total(self) -> Size:
        """FLOPs of all devices, padding and what several of them do alike in it."""
        replicas = self.parallel.tensor * self.parallel.data
        return replicas * sum(stage.count.total for stage in self.stages)

    @property
    def overhead(self) -> Fraction:
        """What padding, and doing the same on several devices, add to the whole, as a share.

        Less than 0 where a capacity below 1 leaves positions out.
        """
        return Fraction(self.total, self.whole.total) - 1

    @property
    def imbalance(self) -> Fraction:
        """FLOPs of the largest stage over the mean of all: 1 where stages are equal."""
        stages = [stage.count.with_recompute for stage in self.stages]
        return Fraction(max(stages) * len(stages), sum(stages))

    @property
    def bubble(self) -> Fraction:
        """:func:`pipeline_bubble`, as if stages were equal."""
        parallel = self.parallel
        return pipeline_bubble(parallel.pipeline, self.microbatches, parallel.chunks)

    @property
    def busiest_experts(self) -> Fraction | None:
        """How much more than its share a device's experts may be chosen at most.

        e·min(k, E/e)/k, where every position of all e replicas chooses as many of one device's
        experts as it can; None without experts, or where a capacity bounds them.
        """
        if not isinstance(self.model, MixtureLM) or self.parallel.capacity is not None:
            return None
        chosen, groups = self.model.experts_per_token, self.parallel.expert
        return Fraction(groups * min(chosen, self.model.num_experts // groups), chosen)

    def to_dict(self) -> dict[str, Any]:
        """It as plain data."""
        return {
            "parallel": dataclasses.asdict(self.parallel),
            "devices": self.parallel.devices,
            "batch_size": self.batch_size,
            "microbatch_size": self.microbatch_size,
            "microbatches": self.microbatches,
            "training": self.training,
            "whole": self.whole.total,
            "total": self.total,
            "overhead": self.overhead,
            "imbalance": self.imbalance,
            "bubble": self.bubble,
            "busiest_experts": self.busiest_experts,
            "stages": self.records(),
        }

    def records(self) -> list[dict[str, Any]]:
        """One dictionary per stage."""
        return [stage.to_dict() for stage in self.stages]

    def _tables(self) -> list[Table | str]:
        return [self._stages(), self._collectives()]

    def _stages(self) -> Table:
        """A line for each run of stages that do the same."""
        lines: list[list[Any]] = []
        first = 0
        again = self.whole.checkpointing is not None
        for stage in self.stages:
            count = stage.count
            cells = [stage.layers, count.forward, count.backward]
            cells += [count.recompute] if again else []
            cells += [stage.params, round(stage.bytes)]
            if lines and lines[-1][1:] == cells:
                lines[-1][0] = f"{first} to {stage.index}"
            else:
                lines.append([str(stage.index), *cells])
                first = stage.index
        words = [
            f"{'no ' * (value is False)}{field.name}"
            if isinstance(value, bool)
            else f"{field.name} {value}"
            for field in dataclasses.fields(self.parallel)
            for value in [getattr(self.parallel, field.name)]
            if value != field.default and field.name != "stages"
        ]
        notes = [
            f"all {shown(self.parallel.devices)} devices: {shown(self.total)} FLOPs, "
            f"{float(abs(self.overhead)):.2%} {'less' if self.overhead < 0 else 'more'} than the "
            "model's; the largest stage has "
            f"{float(self.imbalance):.4g} times the mean's",
            f"a device waits {float(self.bubble):.2%} of a step of {shown(self.microbatches)} "
            "microbatches, were all stages equal",
        ]
        if self.busiest_experts is not None and self.parallel.expert > 1:
            notes.append(
                "experts taken to be chosen equally often: a device's may be chosen up to "
                f"{float(self.busiest_experts):.4g} times as often"
            )
        phase = "forward and backward" if self.training else "forward alone"
        return Table(
            ["stage", "layers", "forward", "backward", *["recompute"] * again, "parameters",
             "bytes sent"],
            lines,
            title=f"FLOPs of each device of {self.model.title}, {self.whole.label}, {phase}, batch "
            f"of {shown(self.batch_size)}, and bytes that it sends at least: "
            f"{', '.join(words) or 'one device'}",
            note="\n".join(notes),
            keys=2,
        )  # fmt: skip

    def _collectives(self) -> Table:
        """Those of the stage that sends most, those of one kind together."""
        most = max(self.stages, key=lambda stage: stage.bytes)
        together: dict[tuple[Any, ...], list[Collective]] = {}
        for each in most.collectives:
            key = each.group, each.size, each.kind, each.phase, each.dtype
            together.setdefault(key, []).append(each)
        lines = [
            [*key, sum(each.times for each in same), round(total_bytes(same))]
            for key, same in together.items()
        ]
        return Table(
            ["group", "devices", "collective", "phase", "dtype", "times", "bytes sent"],
            lines,
            title=f"Collectives of a device of stage {most.index} in a step, and bytes that it "
            "sends at least",
            footer=["total", *[None] * 4, sum(line[5] for line in lines), round(most.bytes)],
            keys=4,
        )


def per_device(
    model: Any,
    parallel: Parallel,
    *,
    level: str | None = None,
    batch_size: int | None = None,
    microbatch_size: int = 1,
    training: bool = True,
    checkpointing: str | None = None,
    dtype: str = DEFAULT_DTYPE,
    gradients: str = "fp32",
) -> PerDevice:
    """FLOPs of each device in a step, and the bytes that it sends at least, by collective.

    Args:
        model: A decoder-only model of ints.
        parallel: How devices share the step.
        level: As of ``flops``: ``"causal"`` unless given, or ``"dense"``.
        batch_size: B, sequences of the step; a microbatch for each replica unless given.
        microbatch_size: Sequences that pass through a replica at once.
        training: Forward and backward, or forward alone.
        checkpointing: As of ``flops``.
        dtype: Of activations, their gradients and parameters as they are sent.
        gradients: Of the parameters' gradients as they are sent.

    Returns:
        A :class:`PerDevice`. FLOPs are those of matrix products; element-wise work is not in it.

    Raises:
        TypeError: If an argument has the wrong type, or a size is an array or a symbol.
        ValueError: If the model is none whose division is known, a size does not divide another, or
            an option is unknown.

    Source: of each transfer, at :class:`~flopcount.parallel.Share`,
    :class:`~flopcount.parallel.Ends` and :class:`~flopcount.parallel.Experts`; what they are
    least is :data:`SENT`.

    >>> import flopcount as fc
    >>> llama = fc.Llama(vocab_size=128256, seq_len=8192, num_channels=8192, num_layers=80,
    ...                  num_heads=64, num_key_value_heads=8, intermediate_size=28672)
    >>> step = fc.per_device(llama, fc.Parallel(tensor=8))
    >>> 8 * step.largest.count.total == llama.flops().total
    True
    >>> step.largest.bytes  # of 8 all-reduces for every two layers, and the ends'
    75631861760
    """
    if not isinstance(model, Architecture):
        raise TypeError(f"model = {quoted(model)}: expected a model that flopcount counts")
    if not isinstance(parallel, Parallel):
        raise TypeError(f"parallel = {quoted(parallel)}: expected a flopcount.Parallel")
    require_divisible_model(model, parallel)
    size = one_integer("microbatch_size", microbatch_size)
    batch = parallel.data * size
    if batch_size is not None:
        batch = one_integer("batch_size", batch_size)
        divide("batch_size", batch, "data · microbatch_size", parallel.data * size)
    microbatches = batch // (parallel.data * size)
    pipeline_bubble(parallel.pipeline, microbatches, parallel.chunks)
    level = require_choice("level", "causal" if level is None else level, LEVELS)
    dtypes = {"activations": dtype, "gradients": gradients, "statistics": STATISTICS}
    for name, given in {"dtype": dtype, "gradients": gradients}.items():
        bits(name, given)
    whole = model.flops(level, training=training, batch_size=batch, checkpointing=checkpointing)
    padded = with_padded_vocabulary(model, parallel)
    length = padded.length
    if parallel.sequence:
        length = divide("the sequence's positions", length, "tensor", parallel.tensor)
    at = Pass(batch // parallel.data, length, training=training)
    share = Share(parallel, size)
    known: dict[Part, Stage] = {}
    stages = []
    for index, part in enumerate(parts_of(padded, parallel)):
        if part not in known:
            known[part] = _stage(part, padded, share, at, level, checkpointing, dtypes)
        stages.append(dataclasses.replace(known[part], index=index))
    return PerDevice(padded, parallel, batch, size, whole, tuple(stages), training)


def require_divisible_model(model: Any, parallel: Parallel) -> None:
    """Raise unless it is known how devices share such a model.

    Raises:
        TypeError: If a size is an array or a symbol.
        ValueError: Naming what is not known.
    """
    if type(model) not in FAMILIES:
        raise ValueError(
            f"model is a {type(model).__name__}: expected a CausalLM, MixtureLM, Llama or Decoder, "
            "since how devices share a prefix, two stacks or a recurrence is not modelled"
        )
    for name, kind in model.kinds().items():
        value = getattr(model, name)
        if isinstance(kind, Dimension) and value is not None:
            one_integer(name, value, kind.minimum)
    if getattr(model, "num_predictions", None) is not None:
        raise ValueError(
            f"num_predictions = {model.num_predictions}: expected None, since where in a pipeline "
            "modules for further tokens stand is not modelled"
        )
    if parallel.tensor > 1 and getattr(model, "query_key_norm", None) == "whole":
        raise ValueError(
            f"query_key_norm = 'whole' with tensor = {parallel.tensor}: expected norms of each "
            "head, since one of all heads needs those of the other devices"
        )
    for name, without in (("expert", 1), ("capacity", None)):
        if not isinstance(model, MixtureLM) and getattr(parallel, name) != without:
            raise ValueError(
                f"{name} = {getattr(parallel, name)} of a {type(model).__name__}: expected "
                f"{without}, since it has no experts"
            )


def with_padded_vocabulary(model: Any, parallel: Parallel) -> Any:
    """The model with ⌈V/(a·t)⌉·a·t rows in its vocabulary, a being what it is a multiple of.

    Raises:
        ValueError: If no multiple is given and t does not divide V.
    """
    unit = parallel.tensor * (parallel.vocab_multiple or 1)
    if model.vocab_size % unit and parallel.vocab_multiple is None:
        raise ValueError(
            f"vocab_size = {model.vocab_size} is not divisible by tensor = {parallel.tensor}: "
            "expected a multiple of it, or vocab_multiple = 128 (Megatron-LM's) or another, to pad "
            "the vocabulary"
        )
    return dataclasses.replace(model, vocab_size=ceil_divide(model.vocab_size, unit) * unit)


@dataclasses.dataclass(frozen=True)
class Part:
    """What a stage of the pipeline does.

    Attributes:
        blocks: In order.
        layers: How many.
        sends: How often a microbatch leaves its devices for the next stage.
        returns: How often a microbatch's gradients leave them for the one before.
        lends: Whether it shares the token embedding with the stage at the other end.
    """

    blocks: tuple[Block, ...]
    layers: int
    sends: int
    returns: int
    lends: bool


def parts_of(model: Any, parallel: Parallel) -> Iterator[Part]:
    """What each stage of the pipeline does: of v·p parts of the layers, every p-th.

    Raises:
        ValueError: If stages have other than the model's layers.
    """
    ((_, (embedding, *layers, output)),) = model.network(Pass(1, 1))
    number, stages = model.num_layers, parallel.pipeline
    parts = stages * parallel.chunks
    own = parallel.stages
    if own is None:
        own = (divide("num_layers", number, "pipeline · chunks", parts),) * parts
    if sum(own) != number:
        raise ValueError(f"stages = {own} of {sum(own)} layers: expected num_layers = {number}")
    groups: tuple[Group, ...] = (Group("", number, {}, (0,), 1),)
    if isinstance(model, CausalLM):
        groups = model.groups()
    bounds = [0, *itertools.accumulate(own)]
    tied = model.tie_embeddings and stages > 1
    if tied:
        output = dataclasses.replace(output, tied=False)  # a copy of the first stage's
    for stage in range(stages):
        mine = range(stage, parts, stages)
        equal_layers = []
        for block, group in zip(layers, groups, strict=True):
            here = sum(_before(group, bounds[i + 1]) - _before(group, bounds[i]) for i in mine)
            if here:
                equal_layers.append(dataclasses.replace(block, number=here))
        first, last = stage == 0, stage == stages - 1
        yield Part(
            (*(embedding,) * first, *equal_layers, *(output,) * last),
            sum(own[index] for index in mine),
            parallel.chunks - last,
            parallel.chunks - first,
            tied and (first or last),
        )


def _before(group: Group, layer: int) -> int:
    """How many of a group's layers stand before a layer: Σ ⌈(l - i)/P⌉ over its indices i."""
    numbers: list[int] = [ceil_divide(layer - index, group.period) for index in group.indices]
    return sum(numbers)


def _stage(
    part: Part,
    model: Any,
    share: Share,
    at: Pass,
    level: str,
    checkpointing: str | None,
    dtypes: dict[str, str],
) -> Stage:
    parallel = share.parallel
    microbatches = at.batch // share.microbatch
    rows: list[Any] = [row for block in part.blocks for row in split(block, share).rows(at)]
    tensors = [row for row in rows if isinstance(row, Tensor)]
    transfers = [row for row in rows if isinstance(row, Transfer)]
    if parallel.sequence:
        transfers += in_common(part.blocks, tensors, transfers, at, parallel)
    collectives = [
        each
        for transfer in transfers
        for each in collectives_of(transfer, at, checkpointing, microbatches, parallel, dtypes)
    ]
    positions = share.microbatch * at.length * model.num_channels * microbatches
    for phase, sends in (("forward", part.sends), ("backward", part.returns * at.training)):
        if sends:
            collectives.append(
                Collective(
                    "send", "pipeline", parallel.pipeline, "stage", "positions", phase,
                    sends * microbatches, sends * positions, dtypes["activations"],
                )
            )  # fmt: skip
    trained = [tensor for tensor in tensors if not tensor.is_buffer]
    if part.lends and at.training:
        (table_of_tokens,) = (
            tensor.count for tensor in trained if (tensor.layer, tensor.name) in ENDS
        )
        collectives.append(
            Collective(
                "all-reduce", "embedding", 2, "embedding", "token", "update", 1, table_of_tokens,
                dtypes["gradients"],
            )
        )  # fmt: skip
    collectives += of_replicas(trained, parallel, microbatches, at.training, dtypes)
    terms = in_order(
        product_term(row, level, None, at.training, checkpointing)
        for row in rows
        if isinstance(row, Product)
    )
    count = Count(
        model=model,
        level=level,
        convention=None,
        terms=terms,
        training=at.training,
        checkpointing=checkpointing,
        batch_size=at.batch,
        tokens=at.batch * model.length,
    )
    params = sum(tensor.count for tensor in trained)
    return Stage(0, part.layers, count, params, tuple(collectives))


def in_common(
    blocks: Iterable[Block],
    tensors: Iterable[Tensor],
    known: Iterable[Transfer],
    at: Pass,
    parallel: Parallel,
) -> Iterator[Transfer]:
    """Gradients of what a tensor group holds in common, each device of its part of the sequence.

    Of a tensor of G scalars of which a device has c, each of t devices has (c·t - G)/(t - 1) that
    all have: all of a norm, the bias of a product whose inputs are divided, of others none.

    Source: Megatron-LM's ``_allreduce_non_tensor_model_parallel_grads``; derived here.
    """
    whole = {
        (row.layer, row.name): row
        for block in blocks
        for row in block.rows(at)
        if isinstance(row, Tensor)
    }
    added = {(row.layer, row.term) for row in known if row.update}
    devices = parallel.tensor
    for tensor in tensors:
        name = tensor.layer, tensor.name
        scalars = whole[name].count // (1 if tensor.used is None else parallel.expert)
        shared = (tensor.count * devices - scalars) // (devices - 1)
        if shared and name not in added and not tensor.is_buffer:
            yield Transfer(
                part=tensor.part, layer=tensor.layer, term=tensor.name, group="tensor",
                size=devices, times=1, elements=shared, update="all-reduce", dtype="gradients",
            )  # fmt: skip


def collectives_of(
    transfer: Transfer,
    at: Pass,
    checkpointing: str | None,
    microbatches: int,
    parallel: Parallel,
    dtypes: dict[str, str],
) -> Iterator[Collective]:
    """A transfer in each phase of a step.

    Gradients are exchanged once a step; with every microbatch, where replicas keep parts of them.
    """
    updates = microbatches if parallel.zero >= 2 and parallel.data > 1 else 1
    phases: list[tuple[str, Kind | None, int, int]] = [
        ("forward", transfer.forward, microbatches, 1)
    ]
    if checkpointing in transfer.recomputed_by:
        phases.append(("recompute", transfer.forward, microbatches, 1))
    if at.training:
        phases.append(("backward", transfer.backward, microbatches, 1))
        phases.append(("update", transfer.update, updates, updates))
    for phase, kind, times, repeated in phases:
        if kind is not None:
            yield Collective(
                kind, transfer.group, transfer.size, transfer.layer, transfer.term, phase,
                transfer.times * times, transfer.elements * repeated, dtypes[transfer.dtype],
            )  # fmt: skip


def of_replicas(
    tensors: Iterable[Tensor],
    parallel: Parallel,
    microbatches: int,
    training: bool,
    dtypes: dict[str, str],
) -> Iterator[Collective]:
    """What replicas exchange: gradients and, where they keep parts of them, parameters.

    All tensors of a device count as one. Experts have r/e replicas each, all else r.

    Source: Rajbhandari et al. 2020 (arXiv 1910.02054), section 7: 2Ψ with 0, 1 and 2, 3Ψ with 3.
    """
    sums = {"data": 0, "expert data": 0}
    for tensor in tensors:
        apart = parallel.expert > 1 and tensor.used is not None
        sums["expert data" if apart else "data"] += tensor.count
    sizes = {"data": parallel.data, "expert data": parallel.data // parallel.expert}
    phases: list[tuple[Kind, str, str, int]] = []
    if parallel.zero == 3:
        phases.append(("all-gather", "forward", "activations", microbatches))
    if training:
        reduced: Kind = "reduce-scatter" if parallel.zero else "all-reduce"
        times = microbatches if parallel.zero >= 2 else 1
        if parallel.zero == 3 and parallel.reshard:
            phases.append(("all-gather", "backward", "activations", microbatches))
        phases.append((reduced, "update", "gradients", times))
        if parallel.zero in (1, 2):
            phases.append(("all-gather", "update", "activations", 1))
    for group, scalars in sums.items():
        for kind, phase, dtype, times in phases:
            if sizes[group] > 1 and scalars:
                yield Collective(
                    kind, group, sizes[group], "parameters", "all", phase, times, times * scalars,
                    dtypes[dtype],
                )  # fmt: skip
