"""Many devices: what each multiplies in a step, and the bytes that it sends at least.

A device of a tensor group works on a smaller network: fewer heads, fewer hidden channels, a part of
the vocabulary (:func:`split`). Where its part begins and ends, a :class:`Region` yields a
:class:`Transfer` among the rows of the network, in the order of execution, so that what activation
checkpointing sends again follows as it does for products. A stage of a pipeline has some of the
layers; the first has the embedding and the last the output layer.

Letters as in :mod:`flopcount.operations`; t devices share every layer, p stages the layers, e
devices the experts, r replicas the batch. A replica's batch comes in m microbatches.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Annotated, Any, Literal

from flopcount.architectures import Architecture, Decoder, Dimension, Flag, Llama
from flopcount.blocks import MLP, TOKENS, Attention, Block, Embedding, Layers, Output, Residual
from flopcount.blocks import Parallel as SideBySide
from flopcount.causal_lm import CausalLM, Group
from flopcount.count import LEVELS, Count, in_order, product_term
from flopcount.devices import DEFAULT_DTYPE
from flopcount.experts import MixtureOfExperts
from flopcount.inference import bits
from flopcount.latent import LatentAttention
from flopcount.mixture_lm import MixtureLM
from flopcount.operations import Pass
from flopcount.rows import Product, Step, Tensor
from flopcount.sizes import (
    ceil_divide,
    divide,
    exact_ratio,
    quoted,
    require_at_most,
    require_choice,
    require_positive_number,
    require_size,
)
from flopcount.tables import shown, table

Kind = Literal["all-reduce", "all-gather", "reduce-scatter", "all-to-all", "send"]
SENT = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1, "all-to-all": 1}
"""What a device of p sends, over (p - 1)/p of the bytes: no algorithm sends less.

Source: Chan et al. 2007, Collective communication: theory, practice, and experience, section 3;
Patarasuk and Yuan 2009, Bandwidth optimal all-reduce algorithms for clusters of workstations. Of an
all-to-all among equals, (p - 1)/p of what a device holds is for others.
"""
STATISTICS = "fp32"
"""Of the loss: a maximum, a sum and a prediction of each position, as Megatron-LM keeps them."""
MOST_STAGES = 2**12
FAMILIES = (Decoder, Llama, CausalLM, MixtureLM)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parallel:
    """How devices share a training step; tensor · pipeline · data of them.

    Attributes:
        tensor: t, devices that share every layer: heads, hidden channels and vocabulary.
        pipeline: p, stages that layers are divided into.
        data: r, replicas that the batch is divided among.
        expert: e of the replicas, which divide each layer's experts among them.
        sequence: Whether what every device of a tensor group would do alike (norms, residuals,
            routers) is divided along the sequence.
        zero: What replicas divide among them instead of keeping it whole: 0 nothing, 1 the
            optimizer's state, 2 gradients too, 3 parameters too (FSDP).
        reshard: With zero = 3, whether parameters are given up after the forward pass, and gathered
            again for the backward pass.
        chunks: v, parts of the layers that each stage has, in turn ("interleaved").
        stages: Layers of each part, in order, p · v of them; equally many unless given.
        vocab_multiple: The vocabulary is padded to a multiple of this and t; refused unless given,
            where t does not divide it. Megatron-LM's is 128.
        capacity: Each expert computes on as many positions as it would on average, times this;
            without it the experts are taken to be chosen equally often.

    Raises:
        TypeError: If a size is no integer.
        ValueError: If a size is out of range, or one does not divide another.

    Source: Shoeybi et al. 2019 (arXiv 1909.08053); Narayanan et al. 2021 (arXiv 2104.04473);
    Korthikanti et al. 2022 (arXiv 2205.05198); Rajbhandari et al. 2020 (arXiv 1910.02054); Lepikhin
    et al. 2020 (arXiv 2006.16668).

    >>> Parallel(tensor=8, pipeline=16, data=128).devices
    16384
    """

    tensor: Annotated[int, Dimension()] = 1
    pipeline: Annotated[int, Dimension()] = 1
    data: Annotated[int, Dimension()] = 1
    expert: Annotated[int, Dimension()] = 1
    sequence: bool = False
    zero: Annotated[int, Dimension(minimum=0)] = 0
    reshard: bool = True
    chunks: Annotated[int, Dimension()] = 1
    stages: tuple[int, ...] | None = None
    vocab_multiple: int | None = None
    capacity: float | None = None

    def __post_init__(self) -> None:
        """Validate every field."""
        for name in ("tensor", "pipeline", "data", "expert", "chunks"):
            one_integer(name, getattr(self, name))
        if self.capacity is not None:
            require_positive_number("capacity", self.capacity)
        if self.vocab_multiple is not None:
            one_integer("vocab_multiple", self.vocab_multiple)
        for name in ("sequence", "reshard"):
            Flag.require(name, getattr(self, name))
        require_at_most("zero", one_integer("zero", self.zero, 0), "the last stage of ZeRO", 3)
        parts = self.pipeline * self.chunks
        require_at_most("pipeline · chunks", parts, "the most that are listed", MOST_STAGES)
        if self.chunks > 1 and self.pipeline == 1:
            raise ValueError(
                f"chunks = {self.chunks} with pipeline = 1: expected 1, or more stages"
            )
        divide("data", self.data, "expert", self.expert)
        if self.stages is not None:
            if not isinstance(self.stages, tuple):
                raise TypeError(f"stages = {quoted(self.stages)}: expected a tuple of integers")
            for index, number in enumerate(self.stages):
                one_integer(f"stages[{index}]", number, 0)
            if len(self.stages) != parts:
                raise ValueError(
                    f"stages = {quoted(self.stages)}: expected the layers of each of "
                    f"pipeline · chunks = {parts} parts"
                )
        if self.sequence and self.tensor == 1:
            raise ValueError(
                "sequence = True with tensor = 1: expected a tensor group to divide it"
            )
        if self.expert > 1 and self.tensor > 1 and not self.sequence:
            raise ValueError(
                f"expert = {self.expert} with tensor = {self.tensor}: expected sequence = True, "
                "since every device of a tensor group would send the same tokens to experts"
            )
        if not self.reshard and self.zero != 3:
            raise ValueError(f"reshard = False with zero = {self.zero}: expected it with 3 alone")

    @property
    def devices(self) -> int:
        """Tensor · pipeline · data."""
        return self.tensor * self.pipeline * self.data


def one_integer(name: str, value: object, minimum: int = 1) -> int:
    """The value, if it is one integer: no array, no symbol.

    Raises:
        TypeError: If it is anything else.
        ValueError: If it is too small.
    """
    size = require_size(name, value, minimum)
    if type(size) is not int:
        raise TypeError(f"{name} = {quoted(value)}: expected one integer >= {minimum}")
    return size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transfer(Step):
    """What devices of a group exchange in a pass, of all sequences and equal layers.

    Attributes:
        group: Whose devices.
        size: How many.
        times: How many equal layers do so.
        elements: Of all of them.
        forward: How in the forward pass; None if not.
        backward: How in the backward pass.
        update: How before the optimizer's step.
        dtype: Whose: ``"activations"``, ``"gradients"`` or ``"statistics"``.
    """

    group: str
    size: int
    times: int
    elements: int
    forward: Kind | None = None
    backward: Kind | None = None
    update: Kind | None = None
    dtype: str = "activations"


@dataclasses.dataclass(frozen=True)
class Share:
    """What a device of a group computes with, beside the rest of it.

    Attributes:
        parallel: How devices share a step.
        microbatch: Sequences of a microbatch.
    """

    parallel: Parallel
    microbatch: int

    def inside(self, at: Pass) -> Pass:
        """A pass of the whole sequence, where what surrounds it works on a part."""
        return at.at(length=at.length * self.parallel.tensor) if self.parallel.sequence else at

    def transfer(self, at: Pass, term: str, elements: int, **how: Any) -> Iterator[Transfer]:
        """An exchange of ``elements`` of all layers, in a tensor group unless told otherwise."""
        options: dict[str, Any] = dict(group="tensor", size=self.parallel.tensor) | how
        if options["size"] > 1 and elements:
            yield Transfer(
                part=at.part, layer=at.layer, term=term, times=at.layers, elements=elements,
                **options,
            )  # fmt: skip

    def gathered(self, at: Pass, channels: int) -> int:
        """Elements of ``channels`` channels of every position."""
        at = self.inside(at)
        elements: int = at.times * at.length * channels
        return elements

    def enter(self, at: Pass, term: str, channels: int) -> Iterator[Transfer]:
        """Positions enter: gathered from their parts, or there; their gradients are added up.

        Source: Shoeybi et al. 2019, section 3 (f); Korthikanti et al. 2022, section 4.2.2 (g).
        """
        if self.parallel.sequence:
            how: dict[str, Kind] = dict(forward="all-gather", backward="reduce-scatter")
        else:
            how = dict(backward="all-reduce")
        yield from self.transfer(at, term, self.gathered(at, channels), **how)

    def leave(self, at: Pass, term: str, channels: int) -> Iterator[Transfer]:
        """Partial sums leave, and are added up: as :meth:`enter`, the other way round."""
        if self.parallel.sequence:
            how: dict[str, Kind] = dict(forward="reduce-scatter", backward="all-gather")
        else:
            how = dict(forward="all-reduce")
        yield from self.transfer(at, term, self.gathered(at, channels), **how)


@dataclasses.dataclass(frozen=True)
class Region:
    """A block that a tensor group divides.

    Products that all of the group would do alike, such as a router's, stand before it, and are
    divided along the sequence where that is.

    Attributes:
        name: Of its transfers.
        share: How it is divided.
        whole: The block undivided.
        part: What a device has of it.
        entering: Channels of what enters.
        leaving: Channels of what leaves.
        alike: Whether products that division leaves as they are stand before it.
    """

    name: str
    share: Share
    whole: Block
    part: Block
    entering: int
    leaving: int
    alike: bool = True

    def rows(self, at: Pass) -> Iterator[Any]:
        """What a device does of it, between the transfers in and out."""
        inside = self.share.inside(at)
        yield from self.share.enter(at, self.name, self.entering)
        for whole, part, before in zip(
            self.whole.rows(inside), self.part.rows(inside), self.part.rows(at), strict=True
        ):
            yield before if self.alike and isinstance(part, Product) and part == whole else part
        yield from self.share.leave(at, self.name, self.leaving)


@dataclasses.dataclass(frozen=True)
class Heads(Region):
    """Attention whose heads are divided.

    Where heads of keys and values are fewer than devices, each is on several, which add up their
    gradients; and so are the scales that norms of heads share.
    """

    def rows(self, at: Pass) -> Iterator[Any]:
        """As of any region, and what is added up before the optimizer's step."""
        yield from super().rows(at)
        devices = self.share.parallel.tensor
        for whole, part in zip(self.whole.rows(at), self.part.rows(at), strict=True):
            if not isinstance(part, Tensor) or not isinstance(whole, Tensor):
                continue
            copies = devices * part.count // whole.count
            if copies > 1:
                yield Transfer(
                    part=part.part, layer=part.layer, term=part.name, group="tensor", size=copies,
                    times=1, elements=part.count, update="all-reduce", dtype="gradients",
                )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Experts(Region):
    """Experts, which are divided among replicas, and each among the devices of a tensor group.

    Of a device's k·n choices, (e - 1)/e are for experts of others, and come back. Where there are
    both groups, a device sends the choices of its part of the sequence, and those that arrive are
    gathered in the tensor group.

    Source: Lepikhin et al. 2020 (arXiv 2006.16668), section 3.2; Megatron-LM's
    ``MoEAlltoAllTokenDispatcher``.
    """

    def rows(self, at: Pass) -> Iterator[Any]:
        """As of any region; a device has E/e experts, and computes on as many choices as all."""
        parallel, mixture = self.share.parallel, self.whole
        assert isinstance(mixture, MixtureOfExperts)
        choices = self.choices(at)
        if parallel.expert > 1:
            yield from self._exchange(at, choices, "to experts", "all-gather", "reduce-scatter")
        experts = set()
        rows = list(super().rows(at))
        for row in rows:
            if isinstance(row, Tensor) and row.used is not None:
                experts.add((row.layer, row.name))
        for row in rows:
            if isinstance(row, Tensor) and (row.layer, row.name) in experts:
                number, *factors = row.factors
                yield dataclasses.replace(row, factors=(number // parallel.expert, *factors))
            elif isinstance(row, Product) and row.weight in experts:
                yield dataclasses.replace(row, times=at.layers, M=choices // at.layers)
            else:
                yield row
        if parallel.expert > 1:
            yield from self._exchange(at, choices, "from experts", "reduce-scatter", "all-gather")

    def choices(self, at: Pass) -> int:
        """Positions that experts compute on, each of which as often as it is routed, all layers.

        Without a capacity B·k·n. With it each of E experts has room for ⌈capacity · k·n/E⌉ of a
        microbatch, and computes on all of it: Fedus et al. 2021 (arXiv 2101.03961), equation 3.
        """
        mixture, capacity = self.whole, self.share.parallel.capacity
        assert isinstance(mixture, MixtureOfExperts)
        inside = self.share.inside(at)
        if capacity is None:
            number: int = inside.times * inside.length * mixture.top_k
            return number
        parts = inside.length // at.length if self.share.parallel.expert > 1 else 1
        routed = self.share.microbatch * inside.length // parts * mixture.top_k
        room = math.ceil(Fraction(str(capacity)) * routed / mixture.num_experts)
        microbatches = at.batch // self.share.microbatch
        number = at.layers * microbatches * parts * mixture.num_experts * room
        return number

    def _exchange(
        self, at: Pass, choices: int, term: str, forward: Kind, backward: Kind
    ) -> Iterator[Transfer]:
        """Between replicas, and within the tensor group."""
        mixture, parallel = self.whole, self.share.parallel
        assert isinstance(mixture, MixtureOfExperts)
        elements = choices * mixture.channels
        both: dict[str, Kind] = dict(forward="all-to-all", backward="all-to-all")
        own = elements // parallel.tensor
        yield from self.share.transfer(at, term, own, group="expert", size=parallel.expert, **both)
        yield from self.share.transfer(at, term, elements, forward=forward, backward=backward)


@functools.singledispatch
def split(block: Block, share: Share) -> Block:
    """What a device of a tensor group has of a block; norms, for example, are as they were."""
    return block


@split.register
def _(block: Layers, share: Share) -> Block:
    return dataclasses.replace(block, blocks=tuple(split(each, share) for each in block.blocks))


@split.register
def _(block: Residual, share: Share) -> Block:
    return dataclasses.replace(block, block=split(block.block, share))


@split.register
def _(block: SideBySide, share: Share) -> Block:
    """Branches that read one norm enter once, and their partial sums leave together."""
    first, *others = (split(each, share) for each in block.blocks)
    if len(block.norms) == 1:
        first, *others = first, *(dataclasses.replace(each, entering=0) for each in others)
    *before, last = first, *others
    before = [dataclasses.replace(each, leaving=0) for each in before]
    return dataclasses.replace(block, blocks=(*before, last))


@split.register
def _(block: Attention, share: Share) -> Block:
    devices, groups = share.parallel.tensor, block.num_key_heads
    heads = divide("num_heads", block.num_heads, "tensor", devices)
    if groups % devices and devices % groups:
        raise ValueError(
            f"num_key_value_heads = {groups} with tensor = {devices}: expected one of them to be a "
            "multiple of the other, for a device to have whole heads"
        )
    own = max(groups // devices, 1)
    part = dataclasses.replace(
        block,
        num_heads=heads,
        num_key_heads=own,
        query_channels=heads * block.head_dim,
        key_channels=own * block.head_dim,
    )
    return Heads("attention", share, block, part, block.channels, block.channels, alike=False)


@split.register
def _(block: LatentAttention, share: Share) -> Block:
    """What enters is the latents, and the positions where queries have none."""
    heads = divide("num_heads", block.num_heads, "tensor", share.parallel.tensor)
    part = dataclasses.replace(block, num_heads=heads)
    queries = block.channels if block.query_rank is None else block.query_rank
    entering = queries + block.key_value_rank + block.rotary_dim
    return Region("attention", share, block, part, entering, block.channels)


def narrowed(mlp: MLP, name: str, share: Share) -> MLP:
    """An MLP with a device's hidden channels."""
    hidden = divide(name, mlp.hidden, "tensor", share.parallel.tensor)
    return dataclasses.replace(mlp, hidden=hidden)


@split.register
def _(block: MLP, share: Share) -> Block:
    part = narrowed(block, "hidden channels", share)
    return Region("mlp", share, block, part, block.channels, block.channels)


@split.register
def _(block: MixtureOfExperts, share: Share) -> Block:
    """Where experts are divided among replicas, only what a shared MLP reads enters here."""
    divide("num_experts", block.num_experts, "expert", share.parallel.expert)
    part = dataclasses.replace(
        block,
        expert=narrowed(block.expert, "expert_size", share),
        shared=None if block.shared is None else narrowed(block.shared, "shared_size", share),
    )
    enters = share.parallel.expert == 1 or block.shared is not None
    channels = block.channels if enters else 0
    return Experts("experts", share, block, part, channels, channels)


@dataclasses.dataclass(frozen=True)
class Ends(Region):
    """Embedding or output layer, whose vocabulary is divided.

    The loss of a position takes the maximum of all its logits, the sum of their exponentials, and
    the one of the token that follows: three numbers, each of which is reduced.

    Source: Shoeybi et al. 2019, section 3; Megatron-LM's ``vocab_parallel_cross_entropy``.
    """

    def rows(self, at: Pass) -> Iterator[Any]:
        """As of any region, and the loss's reductions."""
        yield from super().rows(at.at(layer=self.name))
        if self.name == "output" and at.training:
            for term in ("maximum", "sum", "prediction"):
                yield from self.share.transfer(
                    at.at(layer="loss"), term, self.share.gathered(at, 1),
                    forward="all-reduce", dtype="statistics",
                )  # fmt: skip


@split.register
def _(block: Embedding, share: Share) -> Block:
    part = dataclasses.replace(block, vocab_size=block.vocab_size // share.parallel.tensor)
    return Ends("embedding", share, block, part, 0, block.token_channels or block.channels)


@split.register
def _(block: Output, share: Share) -> Block:
    part = dataclasses.replace(block, vocab_size=block.vocab_size // share.parallel.tensor)
    return Ends("output", share, block, part, block.token_channels or block.channels, 0)


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
class PerDevice:
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
    def total(self) -> int:
        """FLOPs of all devices, padding and what several of them do alike in it."""
        replicas = self.parallel.tensor * self.parallel.data
        return replicas * sum(stage.count.total for stage in self.stages)

    @property
    def overhead(self) -> Fraction:
        """What padding, and doing the same on several devices, add to the whole, as a share."""
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
            "stages": [stage.to_dict() for stage in self.stages],
        }

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        return f"{self._stages()}\n\n{self._collectives()}"

    def _stages(self) -> str:
        """A line for each run of stages that do the same."""
        lines: list[list[Any]] = []
        first = 0
        for stage in self.stages:
            cells = [
                stage.layers, stage.count.forward, stage.count.backward, stage.count.recompute,
                f"{float(Fraction(stage.count.total, self.largest.count.total or 1)):.2%}",
                stage.params, round(stage.bytes),
            ]  # fmt: skip
            if lines and lines[-1][1:] == cells:
                lines[-1][0] = f"{first} to {stage.index}"
            else:
                lines.append([str(stage.index), *cells])
                first = stage.index
        words = [
            f"{name} {value}"
            for name, value in dataclasses.asdict(self.parallel).items()
            if name in ("tensor", "pipeline", "data", "expert", "chunks", "zero") and value != 1
            and (name, value) != ("zero", 0)
        ]  # fmt: skip
        words += ["sequence"] * self.parallel.sequence
        notes = [
            f"all {shown(self.parallel.devices)} devices: {shown(self.total)} FLOPs, "
            f"{float(self.overhead):.2%} more than the model's; the largest stage has "
            f"{float(self.imbalance):.4g} of the mean's",
            f"a device waits {float(self.bubble):.2%} of a step of {shown(self.microbatches)} "
            "microbatches, were all stages equal",
        ]
        if self.busiest_experts is not None and self.parallel.expert > 1:
            notes.append(
                "experts taken to be chosen equally often: a device's may be chosen up to "
                f"{float(self.busiest_experts):.4g} times as often"
            )
        phase = "forward and backward" if self.training else "forward alone"
        return table(
            ["stage", "layers", "forward", "backward", "recompute", "of the largest", "parameters",
             "bytes sent, at least"],
            lines,
            title=f"FLOPs of each device of {self.model.title}, {self.whole.label}, {phase}, batch "
            f"of {shown(self.batch_size)}: {', '.join(words) or 'one device'}",
            note="\n".join(notes),
            keys=2,
        )  # fmt: skip

    def _collectives(self) -> str:
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
        return table(
            ["group", "devices", "collective", "phase", "dtype", "times", "bytes sent, at least"],
            lines,
            title=f"Collectives of a device of stage {most.index} in a step",
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

    Source: of each transfer, at :class:`Share`, :class:`Ends` and :class:`Experts`; what they are
    least is :data:`SENT`.

    >>> import flopcount as fc
    >>> llama = fc.Llama(vocab_size=128256, seq_len=8192, num_channels=8192, num_layers=80,
    ...                  num_heads=64, num_key_value_heads=8, intermediate_size=28672)
    >>> step = fc.per_device(llama, fc.Parallel(tensor=8))
    >>> 8 * step.largest.count.total == llama.flops().total
    True
    >>> step.largest.bytes  # of 8 all-reduces for every two layers, and the ends'
    75862503424
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
    stages = tuple(
        _stage(index, part, padded, share, at, level, checkpointing, dtypes)
        for index, part in enumerate(parts_of(padded, parallel))
    )
    return PerDevice(padded, parallel, batch, size, whole, stages, training)


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
    bounds = [sum(own[:index]) for index in range(parts + 1)]
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
    index: int,
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
        request=f"a device of stage {index} of {parallel.pipeline}",
    )
    return Stage(
        index, part.layers, count, sum(tensor.count for tensor in trained), tuple(collectives)
    )


ENDS = (TOKENS, ("output", "logits"))
"""Layers and names of the tables that tied ends of a pipeline hold copies of."""


def in_common(
    blocks: Iterable[Block],
    tensors: Iterable[Tensor],
    known: Iterable[Transfer],
    at: Pass,
    parallel: Parallel,
) -> Iterator[Transfer]:
    """Gradients of what a tensor group holds in common, each device of its part of the sequence.

    Of a tensor of G scalars of which a device has c, each of t devices has (c·t - G)/(t - 1) that
    all have: all of a norm, the bias of a product whose inputs are divided, none of what is divided.

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
    updates = microbatches if parallel.zero >= 2 else 1
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
