"""Fine-tuning: frozen weights, LoRA, and recomputation of a part of each layer.

Nothing here is a formula of its own but LoRA's two products. The rows of a network say which values
they read and write; what needs a gradient follows from what is trained, as autograd decides it, in
the order of execution: a result needs one if an operand does. The backward pass of a product
multiplies once for each operand that needs one. So a frozen linear layer costs two products in
place of three, and one where nothing before it is trained.
"""

from __future__ import annotations

import collections
import dataclasses
import fnmatch
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from flopcount.blocks import TOKENS, Block, Network, rows_of
from flopcount.operations import Pass
from flopcount.rows import (
    CHECKPOINTING,
    AnyRow,
    Operand,
    Product,
    Step,
    Tensor,
    Value,
    WeightName,
    Work,
)
from flopcount.sizes import (
    Size,
    as_objects,
    ceil_divide,
    is_array,
    map_sizes,
    minimum,
    quoted,
    require_at_most,
    require_flag,
    require_size,
)
from flopcount.tables import shown

HU_2021 = "Hu et al. 2021 (arXiv 2106.09685), section 4.1"
ATTENTION_CORE = "attention core"
"""What ``recompute`` takes for the terms of :data:`CORE`."""
CORE = tuple(
    f"{stack}{term}"
    for stack in ("", "cross ")
    for term in ("scores", "score cap", "score bias", "softmax", "values")
)
"""The terms of :data:`ATTENTION_CORE`: what lies between the projections and the output's."""

Trains = Callable[[str, str], bool]
"""Whether a tensor is trained, by its layer and name."""


def patterns(name: str, value: object) -> tuple[str, ...]:
    """One pattern, or several, as a tuple.

    Raises:
        TypeError: If it is neither.

    >>> patterns("lora_targets", "query"), patterns("lora_targets", ["query", "value"])
    (('query',), ('query', 'value'))
    """
    listed = (value,) if isinstance(value, str) else value
    if not isinstance(listed, tuple | list) or not all(isinstance(one, str) for one in listed):
        raise TypeError(
            f"{name} = {quoted(value)}: expected a name, a pattern such as '*norm', or a tuple of "
            "them"
        )
    return tuple(listed)


def matches(layer: str, name: str, pattern: str) -> bool:
    """Whether a pattern is of a name, or of layer and name with a dot between them.

    >>> [matches("decoder", "mlp norm", pattern) for pattern in ("*norm", "decoder.*", "output.*")]
    [True, True, False]
    """
    return any(fnmatch.fnmatchcase(text, pattern) for text in (name, f"{layer}.{name}"))


def matches_any(layer: str, name: str, of: Iterable[str]) -> bool:
    """Whether one of some patterns is."""
    return any(matches(layer, name, pattern) for pattern in of)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FineTuning:
    """What of a model is trained: nothing, but for what is said here.

    Names are those of ``params()``: a layer and a tensor, such as ``decoder.query``, where a bias
    that a tensor holds is ``decoder.query bias``. A pattern has the wildcards of a shell and is of
    a tensor's name alone, or of both.

    Attributes:
        trainable: Patterns of the tensors that are trained, such as ``*norm`` and ``*bias``; or, in
            Python, a function of layer and name.
        lora_rank: r of LoRA, beside the frozen tensors of the targets; None without.
        lora_targets: Patterns of the linear layers that it is beside.
        frozen_layers: How many layers, from the first one on, have nothing trained and no LoRA.
        input_gradients: Whether what the embedding gives needs a gradient though nothing trains it,
            as transformers' ``enable_input_require_grads`` has it for re-entrant checkpointing.

    Raises:
        TypeError: If a field has the wrong type.
        ValueError: If a size is out of range, or LoRA has a rank or targets alone.

    Source: Hu et al. 2021 (arXiv 2106.09685) for LoRA; gradients: derived here, from autograd's
    rule.

    >>> import flopcount as fc
    >>> llama = fc.Llama(vocab_size=128256, seq_len=8192, num_channels=4096, num_layers=32,
    ...                  num_heads=32, num_key_value_heads=8, intermediate_size=14336)
    >>> lora = fc.FineTuning(lora_rank=16, lora_targets=("query", "value"))
    >>> llama.params(lora).trainable
    6815744
    >>> round(llama.flops(tuning=lora).total / llama.flops().total, 4)
    0.7076
    """

    trainable: Any = ()
    lora_rank: Size | None = None
    lora_targets: Any = ()
    frozen_layers: Size = 0
    input_gradients: bool = False

    def __post_init__(self) -> None:
        """Validate every field."""
        changes: dict[str, Any] = {}
        if not callable(self.trainable):
            changes["trainable"] = patterns("trainable", self.trainable)
        changes["lora_targets"] = patterns("lora_targets", self.lora_targets)
        if self.lora_rank is not None:
            changes["lora_rank"] = require_size("lora_rank", self.lora_rank)
        if (self.lora_rank is None) == bool(changes["lora_targets"]):
            raise ValueError(
                f"lora_rank = {quoted(self.lora_rank)} with lora_targets = "
                f"{quoted(self.lora_targets)}: expected both, or neither"
            )
        changes["frozen_layers"] = require_size("frozen_layers", self.frozen_layers, minimum=0)
        require_flag("input_gradients", self.input_gradients)
        for name, value in changes.items():
            object.__setattr__(self, name, value)

    def trains(self, layer: str, name: str) -> bool:
        """Whether a tensor is trained, in layers that are not frozen."""
        if callable(self.trainable):
            return require_flag(f"trainable({layer!r}, {name!r})", self.trainable(layer, name))
        return matches_any(layer, name, self.trainable)

    def sizes(self) -> dict[str, Size | None]:
        """Its sizes by name."""
        return {"lora_rank": self.lora_rank, "frozen_layers": self.frozen_layers}

    def __str__(self) -> str:
        """It in words."""
        trained = self.to_dict()["trainable"]
        parts = [f"trained: {trained if isinstance(trained, str) else ', '.join(trained)}"] * bool(
            trained
        )
        if self.lora_rank is not None:
            rank, targets = shown(self.lora_rank), ", ".join(self.lora_targets)
            parts.append(f"LoRA of rank {rank} beside {targets}")
        if is_array(self.frozen_layers) or self.frozen_layers != 0:
            parts.append(f"the first {shown(self.frozen_layers)} layers frozen")
        if self.input_gradients:
            parts.append("the embedding's output needs a gradient")
        return "; ".join(parts) or "nothing is trained"

    def to_dict(self) -> dict[str, Any]:
        """It as plain data; of a function, its name."""
        given = dataclasses.asdict(self)
        if callable(self.trainable):
            given["trainable"] = getattr(self.trainable, "__name__", "a function")
        return given


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What a pass is told of fine-tuning and recomputation, whatever checked it.

    Attributes:
        trains: Whether a tensor is trained.
        rank: r of LoRA; None without.
        targets: Patterns of the linear layers beside which LoRA is.
        frozen: Layers, from the first one on, that have neither.
        input_gradients: As of :class:`FineTuning`.
        checkpointing: The flavour of activation checkpointing, if any.
        recompute: Patterns of the terms that it executes again; None for whole layers.
    """

    trains: Trains
    rank: Size | None = None
    targets: tuple[str, ...] = ()
    frozen: Size = 0
    input_gradients: bool = False
    checkpointing: str | None = None
    recompute: tuple[str, ...] | None = None

    def rows(self, network: Network) -> Iterator[AnyRow]:
        """Every row of a network, with what is trained and recomputed of it, and LoRA's.

        Equal layers that differ in what they multiply backward are rows of their own.
        """
        rows = (row for row in rows_of(network) if isinstance(row, Tensor))
        tensors = {(row.layer, row.name): row for row in rows}
        run = _Run(self, tensors)
        for at, blocks in network:
            for stack in stacks(blocks):
                yield from run.stack(at, stack)


def stacks(blocks: tuple[Block, ...]) -> Iterator[tuple[Block, ...]]:
    """Blocks one by one, but groups of layers that take turns together.

    >>> from flopcount.blocks import Layers, Selection
    >>> groups = Layers("sliding", 4, (), "xx."), Layers("full", 2, (), "..x")
    >>> [len(stack) for stack in stacks((Selection(8), *groups, Layers("last", 1, ())))]
    [1, 2, 1]
    """
    together: list[Block] = []
    placed = 0
    for block in blocks:
        pattern = _pattern(block)
        together.append(block)
        placed += pattern.count("x")
        if placed == len(pattern):
            yield tuple(together)
            together, placed = [], 0


@dataclasses.dataclass(frozen=True)
class _Seen:
    """A row, and what of it needs a gradient.

    Attributes:
        row: With what it costs backward.
        entering: The values that it reads and that need one.
        result: Whether what it computes does.
    """

    row: AnyRow
    entering: frozenset[str] = frozenset()
    result: bool = False


class _Run:
    """One way through a network: which values need a gradient so far, and how many layers passed.

    Args:
        tuned: What is trained.
        tensors: Of the network, by layer and name.
    """

    def __init__(self, tuned: Tuned, tensors: dict[WeightName, Tensor]) -> None:
        self.tuned = tuned
        self.tensors = tensors
        self.needs: dict[str | None, bool] = collections.defaultdict(bool)
        self.frozen = tuned.frozen
        self.adapted: set[WeightName] = set()

    def stack(self, at: Pass, blocks: tuple[Any, ...]) -> Iterator[AnyRow]:
        """The rows of a block, or of groups of layers that take turns."""
        carried, *_ = (getattr(block, "carries", None) for block in blocks)
        if carried is None:
            (block,) = blocks
            yield from self._block(at, block, self.needs, unfrozen=True)
            return
        before = dict(self.needs)
        total: Size = sum(block.number for block in blocks[1:]) + blocks[0].number
        for first, last, unfrozen, entering in self._ranges(at, blocks, total, carried):
            for block in blocks:
                number = _between(block, first, last)
                if not is_array(number) and number == 0:
                    continue
                if is_array(number) and not number.any():
                    continue
                needs = collections.defaultdict(bool, before | {carried: entering})
                some = dataclasses.replace(block, number=number)
                yield from self._block(at, some, needs, unfrozen)
                # Layers come in order: what needs a gradient behind the last of them does.
                self.needs.update(needs)

    def _ranges(
        self, at: Pass, blocks: tuple[Block, ...], total: Size, carried: str
    ) -> Iterator[tuple[Size, Size, bool, bool]]:
        """From which layer on up to which, whether not frozen, and whether their input needs one.

        What a layer gives needs a gradient from the first layer on whose result needs one though
        its input does not.
        """
        skipped = self.frozen
        frozen = minimum(skipped, total)
        self.frozen = skipped - frozen
        # Of none there is no range: a bound of sizes, which is not 0, would have layers in it.
        ranges: tuple[tuple[Size, Size, bool], ...] = ((0, total, True),)
        if not self.needs[carried]:
            places: list[Size] = [
                index + ceil_divide(start - index, len(_pattern(block))) * len(_pattern(block))
                for unfrozen, start in ((False, 0), (True, skipped))
                for block in blocks
                if self._gives(at, block, carried, unfrozen)
                for index in _indices(block)
            ]
            first = _one_of(functools.reduce(minimum, places, total), total)
            second = minimum(first + 1, total)
            ranges = (0, first, False), (first, second, False), (second, total, True)
        for start, end, entering in ranges:
            before, after = minimum(start, frozen), minimum(end, frozen)
            yield before, after, False, entering
            yield start + frozen - before, end + frozen - after, True, entering

    def _gives(self, at: Pass, block: Block, carried: str, unfrozen: bool) -> bool:
        """Whether a layer's result needs a gradient where its input needs none."""
        needs, adapted = collections.defaultdict(bool, self.needs), set(self.adapted)
        self._seen_of(at, block, needs, unfrozen)
        self.adapted = adapted
        return needs[carried]

    def _block(
        self, at: Pass, block: Block, needs: dict[str | None, bool], unfrozen: bool
    ) -> Iterator[AnyRow]:
        """The rows of a block, and what its values then need."""
        seen = self._seen_of(at, block, needs, unfrozen)
        yield from (one.row for one in self._checkpointed(seen))

    def _seen_of(
        self, at: Pass, block: Block, needs: dict[str | None, bool], unfrozen: bool
    ) -> list[_Seen]:
        rows = list(rows_of(((at, (block,)),)))
        own = {(row.layer, row.name): row for row in rows if isinstance(row, Tensor)}
        return list(self._seen(rows, needs, own, unfrozen, unfrozen))

    def _seen(
        self,
        rows: Iterable[AnyRow],
        needs: dict[str | None, bool],
        own: dict[WeightName, Tensor],
        unfrozen: bool,
        adapters: bool = False,
    ) -> Iterator[_Seen]:
        trained = functools.partial(self._trained, unfrozen=unfrozen)

        def needed(operand: Operand) -> bool:
            return needs[operand] if isinstance(operand, str) else trained(operand)

        def looked_up(weight: WeightName) -> bool:
            return trained(weight) or (weight == TOKENS and self.tuned.input_gradients)

        for row in rows:
            if isinstance(row, Value):
                entering = frozenset(filter(needed, row.reads))
                needs[row.writes] = bool(entering) or any(map(looked_up, row.weights))
                yield _Seen(row, entering)
            elif isinstance(row, Tensor):
                yield _Seen(_with_trained(row, trained))
            else:
                # Fine-tuning is of no pass that leaves a cache.
                assert isinstance(row, Product | Work)
                entering = frozenset(filter(needed, row.reads))
                weights = _weights(row)
                adapter: tuple[AnyRow, ...] = ()
                changed: Step
                if isinstance(row, Product):
                    operands: tuple[Operand, ...] = (*row.reads, *weights)
                    gradients = sum(map(needed, operands))
                    fused = any(map(needed, row.kernel))
                    changed = dataclasses.replace(row, gradients=gradients, fused_backward=fused)
                    result = gradients > 0
                    if adapters:
                        adapter = tuple(self._adapter(row, own))
                        yield from self._seen(adapter[:1], needs, own, unfrozen)
                else:
                    result = bool(entering) or any(map(looked_up, weights))
                    cost = row.backward_cost * bool(entering)
                    if row.backward_parts is not None:
                        parts = row.backward_parts
                        cost = sum(part for part, of in parts if any(map(needed, of)))
                    changed = dataclasses.replace(row, backward_cost=cost)
                needs[row.writes] = result
                yield _Seen(changed, entering, result)
                yield from self._seen(adapter[1:], needs, own, unfrozen)

    def _trained(self, weight: WeightName, unfrozen: bool) -> bool:
        return weight in self.adapted or (unfrozen and self.tuned.trains(*weight))

    def _adapter(self, product: Product, own: dict[WeightName, Tensor]) -> Iterator[AnyRow]:
        """LoRA beside a linear layer: x·A·B, scaled and added, 2·B·n·r·(inputs + outputs) FLOPs.

        Source: Hu et al. 2021 (arXiv 2106.09685), section 4.1.
        """
        rank, linear = self.tuned.rank, linear_name(product)
        if rank is None or linear is None or not matches_any(*linear, self.tuned.targets):
            return
        layer, name = linear
        down, up = (layer, f"{name} LoRA A"), (layer, f"{name} LoRA B")
        # What it reads, which the product may be about to replace.
        read, value = f"{name} LoRA input", f"{name} LoRA"
        yield Value(product.reads, read)
        assert product.weight is not None
        tensor = own.get(product.weight) or self.tensors[product.weight]
        if down not in self.adapted:
            for names, sides in ((down, (product.K, rank)), (up, (rank, product.N))):
                *layers, _, _ = tensor.factors
                whole, used = (*layers, *sides), None
                if tensor.used is not None:
                    *layers, _, _ = tensor.used
                    used = (*layers, *sides)
                self.adapted.add(names)
                yield Tensor("self", *names, whole, used)
        half = dataclasses.replace(product, source=HU_2021)
        yield dataclasses.replace(
            half, term=f"{product.term} LoRA A", N=rank, weight=down, reads=(read,), writes=value
        )
        yield dataclasses.replace(
            half, term=f"{product.term} LoRA B", K=rank, weight=up, reads=(value,), writes=value
        )
        place: dict[str, Any] = dict(
            part=product.part, layer=product.layer, recomputed_by=product.recomputed_by
        )
        yield Work(
            term=f"{product.term} LoRA sum",
            factors=(product.times, product.M, product.N),
            forward_cost=2,
            backward_cost=1,
            reason="forward: times the scale, added; backward: times the scale",
            reads=(value,),
            writes=product.writes,
            **place,
        )
        yield Work(
            term=f"{product.term} LoRA input gradients",
            factors=(product.times, product.M, product.K),
            forward_cost=0,
            backward_cost=1,
            reason="backward: one addition, since A reads the input, too",
            reads=(read,),
            writes=None,
            **place,
        )

    def _checkpointed(self, seen: list[_Seen]) -> list[_Seen]:
        """Rows with the flavours of activation checkpointing that execute them again.

        The backward pass executes again what needs a gradient alone. The re-entrant flavour gives
        no gradient to anything of a layer whose input needs none: what is trained there would not
        be.

        Raises:
            ValueError: If it is asked for where that is so.
        """
        for indices in self._regions(seen):
            written: set[str | None] = set()
            entering = False
            for index, one in enumerate(seen):
                if not min(indices) <= index <= max(indices):
                    continue
                entering = entering or bool(one.entering - written)
                written.add(getattr(one.row, "writes", None))
            steps = [seen[index] for index in indices]
            if self.tuned.checkpointing == "reentrant" and not entering:
                _refuse_lost(steps)
            ends = [
                place + (saved == "output")
                for place, one in enumerate(steps)
                if one.result and (saved := getattr(one.row, "saved", None))
            ]
            for place, index in enumerate(indices):
                one = seen[index]
                assert isinstance(one.row, Product | Work)
                early = any(place < end for end in ends)
                reentrant, non_reentrant = CHECKPOINTING
                again = (reentrant,) * entering + (non_reentrant,) * early
                row = dataclasses.replace(one.row, recomputed_by=again)
                seen[index] = dataclasses.replace(one, row=row)
        return seen

    def _regions(self, seen: list[_Seen]) -> Iterator[list[int]]:
        """The steps of layers that are executed again together: all, or runs of those named.

        Those between the runs are kept: of them it clears what is said of whole layers.
        """
        inside = [i for i, one in enumerate(seen) if getattr(one.row, "recomputed_by", ())]
        if self.tuned.recompute is None:
            if inside:
                yield inside
            return
        run: list[int] = []
        for index in inside:
            row = seen[index].row
            assert isinstance(row, Step)
            if matches_any(row.layer, row.term, self.tuned.recompute):
                run.append(index)
                continue
            kept = dataclasses.replace(row, recomputed_by=())
            seen[index] = dataclasses.replace(seen[index], row=kept)
            does_nothing_forward = isinstance(row, Work) and not row.forward_cost
            if run and not does_nothing_forward:
                yield run
                run = []
        if run:
            yield run


def _weights(row: Product | Work) -> tuple[WeightName, ...]:
    if isinstance(row, Product):
        return () if row.weight is None else (row.weight,)
    operands = (operand for _, of in row.backward_parts or () for operand in of)
    return tuple(operand for operand in operands if not isinstance(operand, str))


def _refuse_lost(steps: list[_Seen]) -> None:
    for one in steps:
        if one.result:
            layer = getattr(one.row, "layer", "")
            raise ValueError(
                f"checkpointing = 'reentrant' of layer {layer!r}, whose input needs no "
                "gradient: PyTorch would train nothing in it; expected 'non-reentrant', "
                "input_gradients=True, or a trained embedding"
            )


def linear_name(product: Product) -> WeightName | None:
    """Layer and name of the linear layer that a product is of, if it is one.

    A tied output layer is not the embedding that it multiplies by.
    """
    return ("output", "logits") if product.weight == TOKENS else product.weight


def _one_of(first: Size, total: Size) -> Size:
    """The first layer with something trained, where there is one for all sizes or for none.

    Of symbols, that there is one is taken for granted where something is trained in a layer.

    Raises:
        ValueError: If there is one for some elements of arrays alone.
    """
    if is_array(first):
        missing = first >= total
        if missing.any() != missing.all():
            raise ValueError(
                f"frozen_layers, num_layers = arrays that leave something trained in one of "
                f"{quoted(total)} layers for some elements alone: expected for all of them; count "
                "the others by themselves"
            )
    return first


def _pattern(block: Any) -> str:
    pattern: str = getattr(block, "pattern", "x")
    return pattern


def _indices(block: Any) -> list[int]:
    return [index for index, letter in enumerate(_pattern(block)) if letter == "x"]


def _between(block: Any, first: Size, last: Size) -> Size:
    """How many layers of a group stand at the places from ``first`` up to ``last``.

    Of places i, i + P, i + 2P, …, ⌈(t - i)/P⌉ are before t.
    """
    period = len(_pattern(block))
    number: Size = 0
    for index in _indices(block):
        before = [ceil_divide(place - index, period) for place in (first, last)]
        number = number + (before[1] - before[0])
    return number


def _with_trained(tensor: Tensor, trained: Callable[[WeightName], bool]) -> Tensor:
    """A tensor, and how many of its scalars are trained."""
    bias: Size = 0 if tensor.bias is None else math.prod(tensor.bias)
    name = tensor.layer, tensor.name
    number: Size = 0
    if not tensor.is_buffer:
        if trained(name):
            number = tensor.count - bias
        if trained((tensor.layer, f"{tensor.name} bias")):
            number = number + bias
    return dataclasses.replace(tensor, trained=number)


def prepared(
    network: Network,
    tuning: FineTuning | None,
    checkpointing: str | None,
    recompute: object,
    num_layers: Size,
) -> Tuned | None:
    """What a pass over a network is told; None where everything is trained and nothing named.

    Args:
        network: What is counted.
        tuning: What is trained of it; None for everything.
        checkpointing: The flavour of activation checkpointing.
        recompute: Patterns of terms; None for whole layers.
        num_layers: How many there are.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a pattern is of nothing, or more layers are frozen than there are.
    """
    if tuning is not None and not isinstance(tuning, FineTuning):
        raise TypeError(f"tuning = {quoted(tuning)}: expected a flopcount.FineTuning, or None")
    if tuning is None and recompute is None:
        return None
    # Names alone are read of them, whatever the sizes are: as Python ints, these do not overflow.
    rows = list(rows_of(map_sizes(network, as_objects)))
    again: tuple[str, ...] | None = None
    if recompute is not None:
        if checkpointing is None:
            raise ValueError(
                f"recompute = {quoted(recompute)} without checkpointing: expected a flavour, "
                "'reentrant' or 'non-reentrant'"
            )
        given = patterns("recompute", recompute)
        terms = [
            (row.layer, row.term) for row in rows if isinstance(row, Step) and row.recomputed_by
        ]
        again = tuple(
            pattern for one in given for pattern in (CORE if one == ATTENTION_CORE else (one,))
        )
        own = [one for one in given if one != ATTENTION_CORE]
        _require_known("recompute", own, terms, "terms of layers")
    if tuning is None:
        return Tuned(lambda layer, name: True, checkpointing=checkpointing, recompute=again)
    tensors = [row for row in rows if isinstance(row, Tensor) and not row.is_buffer]
    names = [(row.layer, row.name) for row in tensors]
    names += [(row.layer, f"{row.name} bias") for row in tensors if row.bias is not None]
    if not callable(tuning.trainable):
        _require_known("trainable", tuning.trainable, names, "tensors")
    linears = [linear_name(row) for row in rows if isinstance(row, Product)]
    known = [name for name in linears if name is not None]
    _require_known("lora_targets", tuning.lora_targets, known, "linear layers")
    require_at_most("frozen_layers", tuning.frozen_layers, "num_layers", num_layers)
    return Tuned(
        tuning.trains,
        tuning.lora_rank,
        tuning.lora_targets,
        tuning.frozen_layers,
        tuning.input_gradients,
        checkpointing,
        again,
    )


def _require_known(name: str, given: Iterable[str], names: Iterable[WeightName], what: str) -> None:
    known = list(dict.fromkeys(names))
    for pattern in given:
        if not any(matches(layer, of, pattern) for layer, of in known):
            listed = ", ".join(f"{layer}.{of}" for layer, of in known)
            raise ValueError(f"{name} = {quoted(pattern)}: expected patterns of {what}: {listed}")
