"""How devices share a network: what each has of every block, and where they exchange.

A device of a tensor group works on a smaller network: fewer heads, fewer hidden channels, a part of
the vocabulary (:func:`split`). Where its part begins and ends, a :class:`Region` yields a
:class:`Transfer` among the rows of the network, in the order of execution, so that what activation
checkpointing sends again follows as it does for products.

Letters as in :mod:`flopcount.operations`; t devices share every layer, p stages the layers, e
replicas the experts, r replicas the batch. A replica's batch comes in m microbatches.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Annotated, Any, Literal

from flopcount.architectures import Dimension, Flag
from flopcount.blocks import MLP, Attention, Block, Embedding, Layers, Output, Residual
from flopcount.blocks import Parallel as SideBySide
from flopcount.experts import MixtureOfExperts
from flopcount.latent import LatentAttention
from flopcount.operations import Pass
from flopcount.rows import Product, Step, Tensor
from flopcount.sizes import (
    Size,
    divide,
    quoted,
    require_at_most,
    require_positive_number,
    require_size,
)

Kind = Literal["all-reduce", "all-gather", "reduce-scatter", "all-to-all", "send"]
MOST_STAGES = 2**12


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
        capacity: Each expert computes on as many positions as it would on average, times this,
            whether as many choose it or not; without it the experts are taken to be chosen equally
            often. Below 1 positions are left out, and so are their FLOPs.

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
        yield from self.share.enter(at, self.name, self.entering)
        yield from self.between(at)
        yield from self.share.leave(at, self.name, self.leaving)

    def between(self, at: Pass) -> Iterator[Any]:
        """What a device does of it."""
        inside = self.share.inside(at)
        for whole, part, before in zip(
            self.whole.rows(inside), self.part.rows(inside), self.part.rows(at), strict=True
        ):
            yield before if self.alike and isinstance(part, Product) and part == whole else part


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
        pairs: Any = zip(self.whole.rows(at), self.part.rows(at), strict=True)
        for whole, part in pairs:
            if isinstance(part, Tensor) and (copies := devices * part.count // whole.count) > 1:
                yield Transfer(
                    part=part.part, layer=part.layer, term=part.name, group="tensor", size=copies,
                    times=1, elements=part.count, update="all-reduce", dtype="gradients",
                )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Experts(Region):
    """Experts, which are divided among replicas, and each among the devices of a tensor group.

    Of a device's k·n choices, (e - 1)/e are for experts of others, and come back to be weighted.
    Where there are both groups, a device sends the choices of its part of the sequence, and those
    that arrive are gathered in the tensor group. With a tensor group alone, all its devices have
    every position and its weights: of each expert, and of the shared MLP where that has one.

    Source: Lepikhin et al. 2020 (arXiv 2006.16668), section 3.2; Megatron-LM's
    ``MoEAlltoAllTokenDispatcher`` and, in a tensor group alone, ``MoEAllGatherTokenDispatcher``.
    """

    def rows(self, at: Pass) -> Iterator[Any]:
        """What a device does, and what it exchanges before and after."""
        mixture = self.whole
        assert isinstance(mixture, MixtureOfExperts)
        if self.share.parallel.expert > 1:
            yield from self._spread(at)
            return
        weights = mixture.num_experts + (mixture.shared is not None and mixture.shared_gate)
        yield from self.share.enter(at, "expert weights", weights)
        yield from super().rows(at)

    def _spread(self, at: Pass) -> Iterator[Any]:
        """Rows with exchanges about those of experts, and of a shared MLP about its own.

        What is then done with the results, and saved for it, is done after the exchange.
        """
        rows = list(self.between(at))
        choices = self.choices(at)
        routed, shared = (
            [
                index
                for index, row in enumerate(rows)
                if isinstance(row, Product) and row.term.startswith(name)
            ]
            for name in ("expert ", "shared expert ")
        )
        for index, row in enumerate(rows):
            if index == routed[0]:
                yield from self._exchange(at, choices, "to experts", "all-gather", "reduce-scatter")
            if shared and index == shared[0]:
                yield from self.share.enter(at, self.name, self.entering)
            yield row
            if index == routed[-1]:
                yield from self._exchange(
                    at, choices, "from experts", "reduce-scatter", "all-gather"
                )
            if shared and index == shared[-1]:
                yield from self.share.leave(at, self.name, self.leaving)

    def between(self, at: Pass) -> Iterator[Any]:
        """As of any region; a device has E/e experts, and computes on as many choices as all."""
        choices = self.choices(at)
        rows = list(super().between(at))
        experts = {
            (row.layer, row.name)
            for row in rows
            if isinstance(row, Tensor) and row.used is not None
        }
        for row in rows:
            if isinstance(row, Tensor) and (row.layer, row.name) in experts:
                number, *factors = row.factors
                own = number // self.share.parallel.expert
                yield dataclasses.replace(row, factors=(own, *factors))
            elif isinstance(row, Product) and row.weight in experts:
                yield dataclasses.replace(row, times=at.layers, M=choices // at.layers)
            else:
                yield row

    def choices(self, at: Pass) -> int:
        """Positions that experts compute on, each of which as often as it is routed, all layers.

        Without a capacity B·k·n. With it each of E experts has slots for ⌈capacity · k·n/E⌉ of a
        microbatch, and computes on all of them: Fedus et al. 2021 (arXiv 2101.03961), equation 3.
        """
        mixture, capacity = self.whole, self.share.parallel.capacity
        assert isinstance(mixture, MixtureOfExperts)
        inside = self.share.inside(at)
        if capacity is None:
            number: int = inside.times * inside.length * mixture.top_k
            return number
        parts = inside.length // at.length if self.share.parallel.expert > 1 else 1
        routed = self.share.microbatch * inside.length // parts * mixture.top_k
        each = math.ceil(Fraction(str(capacity)) * routed / mixture.num_experts)
        microbatches = at.batch // self.share.microbatch
        slots: int = at.layers * microbatches * parts * mixture.num_experts * each
        return slots

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
def split(block: Any, share: Share) -> Any:
    """What a device of a tensor group has of a block; norms, for example, are as they were."""
    return block


@split.register
def _layers(block: Layers, share: Share) -> Any:
    return dataclasses.replace(block, blocks=tuple(split(each, share) for each in block.blocks))


@split.register
def _residual(block: Residual, share: Share) -> Any:
    return dataclasses.replace(block, block=split(block.block, share))


@split.register
def _side_by_side(block: SideBySide, share: Share) -> Any:
    """Branches that read one norm enter once, and their partial sums leave together."""
    first, *others = (split(each, share) for each in block.blocks)
    if len(block.norms) == 1:
        first, *others = first, *(dataclasses.replace(each, entering=0) for each in others)
    *before, last = first, *others
    before = [dataclasses.replace(each, leaving=0) for each in before]
    return dataclasses.replace(block, blocks=(*before, last))


@split.register
def _attention(block: Attention, share: Share) -> Any:
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
        query_channels=heads * block.head_dim,
        key_channels=own * block.head_dim,
    )
    return Heads("attention", share, block, part, block.channels, block.channels, alike=False)


@split.register
def _latent_attention(block: LatentAttention, share: Share) -> Any:
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
def _mlp(block: MLP, share: Share) -> Any:
    part = narrowed(block, "hidden channels", share)
    return Region("mlp", share, block, part, block.channels, block.channels)


@split.register
def _experts(block: MixtureOfExperts, share: Share) -> Any:
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


def _of_vocabulary(block: Embedding | Output, share: Share) -> Size:
    return divide("vocab_size", block.vocab_size, "tensor", share.parallel.tensor)


@split.register
def _embedding(block: Embedding, share: Share) -> Any:
    part = dataclasses.replace(block, vocab_size=_of_vocabulary(block, share))
    return Ends("embedding", share, block, part, 0, block.token_channels or block.channels)


@split.register
def _output(block: Output, share: Share) -> Any:
    part = dataclasses.replace(block, vocab_size=_of_vocabulary(block, share))
    return Ends("output", share, block, part, block.token_channels or block.channels, 0)
