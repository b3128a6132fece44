"""A count: the terms that make it up, and what users ask of it."""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import numbers
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any, Self

from flopcount import __version__
from flopcount.devices import DEFAULT_DTYPE, Device, find_device, require_utilisation
from flopcount.differences import Difference, subtract
from flopcount.executed import SOURCE, Tiling, tiled
from flopcount.pictures import Drawn
from flopcount.rows import Part, Phase, Product, Row, Tensor, Work
from flopcount.sizes import (
    Size,
    as_objects,
    equal,
    exact_ratio,
    is_array,
    is_symbolic,
    multiply,
    quoted,
    require_int,
    require_positive_number,
    require_size,
    safe_for,
)
from flopcount.tables import Shown, Table, shown

LEVELS = ("causal", "dense")
CHINCHILLA_APPENDIX_F = "Hoffmann et al. 2022 (arXiv 2203.15556), Appendix F"


class NotCoveredError(ValueError):
    """A convention was asked for a part that it was never defined for."""


def add(values: Iterable[Size]) -> Size:
    """The sum of sizes; 0 of none."""
    total: Size = 0
    for value in values:
        total = total + value
    return total


def in_order(terms: Iterable[Any]) -> tuple[Any, ...]:
    """Terms layer by layer, of each the self part first."""
    listed = list(terms)
    layers = {name: index for index, name in enumerate(dict.fromkeys(t.layer for t in listed))}
    return tuple(sorted(listed, key=lambda term: (layers[term.layer], term.part != "self")))


def added(terms: Iterable[Any]) -> tuple[Any, ...]:
    """Terms of several tallies, those of one name added up, in a form that cannot overflow.

    Element-wise work of one name but other costs stays apart.
    """
    sums: dict[tuple[Any, ...], Any] = {}
    for term in safe_for(
        tuple(terms),
        lambda bounds: add(term.forward + term.backward + term.recompute for term in bounds),
    ):
        name: tuple[Any, ...] = term.part, term.layer, term.term
        if isinstance(term, WorkTerm):
            name += term.forward_cost, term.backward_cost, term.recomputed
        sums[name] = sums[name].plus(term) if name in sums else term
    return in_order(sums.values())


@dataclasses.dataclass(frozen=True)
class Term:
    """A term of a count.

    Attributes:
        part: ``"self"`` or ``"cross"``.
        layer: The layer.
        term: The term within the layer.
        forward: FLOPs of the forward pass.
        backward: FLOPs of the backward pass; 0 in evaluation.
        recomputed: Whether activation checkpointing executes it again.
        source: Where the formula stands.
        rows: The products as executed; none for a published convention.

    """

    part: Part
    layer: str
    term: str
    forward: Size
    backward: Size
    recomputed: bool
    source: str
    rows: tuple[Row, ...] = ()

    @functools.cached_property
    def recompute(self) -> Size:
        """FLOPs executed again under activation checkpointing."""
        again = (row.flops for row in self.rows if row.phase == "recompute")
        return add(again) + 0 * self.forward

    def plus(self, other: Term) -> Term:
        """The same term of two counts, or of layers that differ backward, added up."""
        return dataclasses.replace(
            self,
            forward=self.forward + other.forward,
            backward=self.backward + other.backward,
            recomputed=self.recomputed or other.recomputed,
            rows=self.rows + other.rows,
        )

    def products(self) -> dict[Phase, int]:
        """How many products are executed in each phase that has some."""
        return dict(collections.Counter(row.phase for row in self.rows))

    def record(self) -> dict[str, Any]:
        """The term as plain data."""
        return {
            "part": self.part,
            "layer": self.layer,
            "term": self.term,
            "forward": self.forward,
            "backward": self.backward,
            "recompute": self.recompute,
            "total": self.forward + self.backward,
            "source": self.source,
        }


@dataclasses.dataclass(frozen=True)
class WorkTerm:
    """Element-wise work of a count.

    Attributes:
        part: ``"self"`` or ``"cross"``.
        layer: The layer.
        term: The term within the layer.
        elements: How many elements it acts on.
        forward_cost: FLOPs per element in the forward pass.
        backward_cost: FLOPs per element in the backward pass.
        training: Whether the backward pass counts.
        recomputed: Whether activation checkpointing executes it again.
        reason: The operations that make up the costs.

    """

    part: Part
    layer: str
    term: str
    elements: Size
    forward_cost: int
    backward_cost: int
    training: bool
    recomputed: bool
    reason: str

    def plus(self, other: WorkTerm) -> WorkTerm:
        """The same work of two counts, added up."""
        return dataclasses.replace(self, elements=self.elements + other.elements)

    @property
    def forward(self) -> Size:
        """FLOPs of the forward pass."""
        return self.forward_cost * self.elements

    @property
    def backward(self) -> Size:
        """FLOPs of the backward pass; 0 in evaluation."""
        return (self.backward_cost if self.training else 0) * self.elements

    @property
    def recompute(self) -> Size:
        """FLOPs executed again under activation checkpointing."""
        return int(self.recomputed) * self.forward

    def record(self) -> dict[str, Any]:
        """The work as plain data."""
        return {
            "part": self.part,
            "layer": self.layer,
            "term": self.term,
            "elements": self.elements,
            "forward": self.forward,
            "backward": self.backward,
            "recompute": self.recompute,
            "reason": self.reason,
        }


def product_term(
    product: Product,
    level: str,
    tilings: Callable[[str], Tiling] | None,
    training: bool,
    checkpointing: str | None,
) -> Term:
    """A product as a level counts it.

    Args:
        product: What is multiplied.
        level: ``"causal"`` or ``"dense"``; with tilings, neither matters.
        tilings: Of each layer by its name, at level ``"executed"``.
        training: Whether the backward pass counts.
        checkpointing: ``None``, ``"reentrant"`` or ``"non-reentrant"``.
    """
    mask, source = product.mask, product.source
    pairs, depth, backward_pairs = None, product.K, None
    if mask is not None and tilings is not None:
        tiles = tiled(product, tilings(product.layer))
        pairs, depth, backward_pairs, source = tiles.forward, tiles.depth, tiles.backward, SOURCE
    elif mask is not None and level == "dense":
        pairs, source = mask.rectangle(product.M, product.N), CHINCHILLA_APPENDIX_F
    elif mask is not None:
        pairs = mask.pairs(product.M, product.N)
    forward = Row(
        product.part, product.layer, product.term, product.times, product.M, product.N, depth,
        "forward", pairs,
    )  # fmt: skip
    back = dataclasses.replace(forward, phase="backward")
    if backward_pairs is None or not training:
        backward = (back,) * product.gradients if training else ()
        backward_flops = len(backward) * forward.flops
    elif not product.fused_backward:
        backward, backward_flops = (), 0
    else:
        backward = tuple(dataclasses.replace(back, pairs=pairs) for pairs in backward_pairs)
        backward_flops = add(row.flops for row in backward)
    recomputed = checkpointing in product.recomputed_by
    again = (dataclasses.replace(forward, phase="recompute"),) if recomputed else ()
    return Term(
        product.part, product.layer, product.term, forward.flops, backward_flops, recomputed,
        source, (forward, *backward, *again),
    )  # fmt: skip


def work_term(work: Work, level: str, training: bool, checkpointing: str | None) -> WorkTerm:
    """Element-wise work as a level counts it; arguments as :func:`product_term` takes them."""
    factors = work.factors
    if work.mask is not None:
        *others, queries, keys = factors
        count_pairs = work.mask.rectangle if level == "dense" else work.mask.pairs
        factors = (*others, count_pairs(queries, keys))
    return WorkTerm(
        work.part, work.layer, work.term, math.prod(factors), work.forward_cost,
        work.backward_cost, training, checkpointing in work.recomputed_by, work.reason,
    )  # fmt: skip


class Tally(Shown):
    """What counts of FLOPs, of element-wise work and of parameters have in common: terms."""

    terms: tuple[Any, ...]

    def where(self, condition: Callable[[Any], bool]) -> Self:
        """The terms that meet a condition, as a tally of its own."""
        terms = tuple(term for term in self.terms if condition(term))
        return dataclasses.replace(self, terms=terms)  # type: ignore[type-var]

    @property
    def self_part(self) -> Self:
        """What a decoder-only model would have: this tally at k = m = 0."""
        return self.where(lambda term: term.part == "self")

    @property
    def cross_part(self) -> Self:
        """What the prefix adds: this tally minus the self part."""
        return self.where(lambda term: term.part == "cross")

    def records(self) -> list[dict[str, Any]]:
        """One dictionary per term."""
        return [term.record() for term in self.terms]


class Flops(Tally):
    """A tally of FLOPs by phase."""

    def _sum(self, phase: Phase) -> Size:
        return add(getattr(term, phase) for term in self.terms)

    @functools.cached_property
    def forward(self) -> Size:
        """FLOPs of the forward pass."""
        return self._sum("forward")

    @functools.cached_property
    def backward(self) -> Size:
        """FLOPs of the backward pass; 0 in evaluation."""
        return self._sum("backward")

    @functools.cached_property
    def recompute(self) -> Size:
        """FLOPs executed again under activation checkpointing; in HFU, never in the total."""
        return self._sum("recompute")

    @functools.cached_property
    def total(self) -> Size:
        """Forward and backward FLOPs, without recomputation."""
        return self.forward + self.backward

    @functools.cached_property
    def with_recompute(self) -> Size:
        """:attr:`total` and :attr:`recompute`: the numerator of HFU at this level."""
        return self.total + self.recompute


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class WorkCount(Flops):
    """Element-wise FLOPs, apart from the matmul total; the optimiser's step is excluded.

    Attributes:
        terms: One per operation, with elements, per-element costs and the reason for them.
        checkpointing: As given to ``flops``.

    """

    terms: tuple[WorkTerm, ...]
    checkpointing: str | None

    def plus(self, *others: WorkCount) -> WorkCount:
        """This and others, added up term by term."""
        terms = added(term for tally in (self, *others) for term in tally.terms)
        return dataclasses.replace(self, terms=terms)

    def _tables(self) -> list[Table | str]:
        columns = ["part", "layer", "term", "elements", "forward", "backward"]
        columns += ["recompute"] if self.checkpointing else []
        footer = ["total", None, None, None, self.forward, self.backward, self.recompute]
        return [
            Table(
                columns,
                [[record[column] for column in columns] for record in self.records()],
                title="Element-wise FLOPs (not part of the matmul total; optimiser excluded)",
                footer=footer[: len(columns)],
                keys=3,
            )
        ]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Count(Flops, Drawn):
    """FLOPs of one step over ``batch_size`` sequences, term by term.

    Attributes:
        model: The model counted.
        label: The level or convention, for titles.
        level: ``"causal"``, ``"dense"`` or ``"executed"``; None for a published convention.
        convention: The published convention's name; None for a level.
        terms: One per product of the forward pass, or per term of a convention.
        training: Whether the backward pass counts.
        checkpointing: ``None``, ``"reentrant"`` or ``"non-reentrant"``.
        batch_size: B, sequences.
        tokens: Latent tokens of the step: B · n; of packed sequences, the documents' alone.
        work: What counts the element-wise FLOPs when they are asked for; None for a convention,
            and at level ``executed``, which counts products.
        not_covered: Parts that the convention was never defined for.
        lacks: What the model has that the convention has no formula for, where the self part is
            among them.
        part: Of a count that is a part of another: which.
        request: What of inference it counts, in words; empty for a step over whole sequences.
        positions: Of packed sequences, B · n, padding too; None where all are tokens.
        tuning: As given to ``flops``.
        recompute_terms: What of layers is executed again, as given to ``flops``.

    """

    model: Any
    level: str | None
    convention: str | None
    terms: tuple[Term, ...]
    training: bool
    checkpointing: str | None
    batch_size: Size
    tokens: Size
    work: Callable[[], WorkCount] | None = None
    not_covered: frozenset[Part] = frozenset()
    lacks: tuple[str, ...] = ()
    part: Part | None = None
    request: str = ""
    positions: Size | None = None
    tuning: Any = None
    recompute_terms: Any = None

    def __add__(self, other: object) -> Count:
        """Both, term by term: counts of one model at one level, of the same sequences.

        Raises:
            ValueError: If they are of different models, levels, batches or other options.

        >>> import flopcount as fc
        >>> model = fc.Llama(vocab_size=99, seq_len=8, num_channels=16, num_layers=2, num_heads=2,
        ...                  intermediate_size=32)
        >>> asked = model.prefill(5, logits="all") + model.decode(3, cached=5)
        >>> asked.total == model.flops(training=False).total
        True
        """
        return self.plus(other) if isinstance(other, Count) else NotImplemented

    def __sub__(self, other: object) -> Difference:
        """This count minus another, term by term: levels, conventions, or a measured step.

        Terms go by layer and name; parts are added up.

        Raises:
            ValueError: If they are of different batch sizes, or a convention does not cover a part.

        >>> import flopcount as fc
        >>> model = fc.Decoder(vocab_size=9, seq_len=3, num_channels=4, num_layers=1, num_heads=2)
        >>> for term in (model.flops("dense") - model.flops("causal")).nonzero.terms:
        ...     print(term.layer, term.term, term.forward, term.backward)  # 9 pairs instead of 6
        decoder scores 24 48
        decoder values 24 48
        """
        return subtract(self, other) if isinstance(other, Count) else NotImplemented

    def plus(self, *others: Count) -> Count:
        """This count and others, as ``+`` has it."""
        for other in others:
            for name in (
                "model", "level", "convention", "training", "checkpointing", "part", "tuning",
                "recompute_terms",
            ):  # fmt: skip
                mine, its = getattr(self, name), getattr(other, name)
                if mine is not its and (name == "model" or mine != its):
                    raise ValueError(
                        f"counts of {name} = {quoted(mine)} and {name} = {quoted(its)}: expected "
                        "one and the same, to add them term by term"
                    )
            if not equal(self.batch_size, other.batch_size):
                raise ValueError(
                    f"counts of batch_size = {quoted(self.batch_size)} and "
                    f"{quoted(other.batch_size)}: expected one and the same, to add them term by "
                    "term"
                )
        counts = (self, *others)
        work = self.work and (lambda: _work_of(counts))
        return dataclasses.replace(
            self,
            terms=added(term for count in counts for term in count.terms),
            tokens=add(safe_for(tuple(count.tokens for count in counts), add)),
            work=work,
            positions=None
            if all(count.positions is None for count in counts)
            else add(
                count.tokens if count.positions is None else count.positions for count in counts
            ),
            not_covered=self.not_covered.union(*(other.not_covered for other in others)),
            request=" + ".join(count.request for count in counts if count.request),
        )

    @property
    def label(self) -> str:
        """The level or convention by name."""
        return f"level {self.level}" if self.level else f"convention {self.convention}"

    def require_covered(self) -> None:
        """Raise :class:`NotCoveredError` if a convention says nothing of a part of the model."""
        if self.not_covered:
            parts = " and ".join(sorted(self.not_covered))
            instead = "" if "self" in self.not_covered else "ask for .self_part, or "
            raise NotCoveredError(
                f"convention = {self.convention!r} does not cover the {parts} part of "
                f"{type(self.model).__name__}: {instead}count at a level"
            )

    def _sum(self, phase: Phase) -> Size:
        self.require_covered()
        return super()._sum(phase)

    @functools.cached_property
    def elementwise(self) -> WorkCount | None:
        """Element-wise FLOPs, in no :attr:`Flops.total`; None where they are not counted."""
        if self.work is None or self.part is None:
            return self.work and self.work()
        return self.work().where(lambda term: term.part == self.part)

    @property
    def per_token(self) -> Any:
        """:attr:`Flops.total` per latent token, exactly: an int, or a fraction where need be."""
        return exact_ratio(self.total, self.tokens)

    @property
    def padding(self) -> Any:
        """The share of positions that no document fills, exactly."""
        if self.positions is None:
            return 0
        return exact_ratio(as_objects(self.positions) - self.tokens, self.positions)

    @property
    def per_sequence(self) -> Any:
        """:attr:`Flops.total` per sequence, exactly."""
        return exact_ratio(self.total, self.batch_size)

    @property
    def self_part(self) -> Count:
        """What a decoder-only model would have: this count at k = m = 0."""
        return self._part("self")

    @property
    def cross_part(self) -> Count:
        """What the prefix adds: this count minus the self part.

        Its totals raise :class:`NotCoveredError` where a convention says nothing of a prefix.
        """
        return self._part("cross")

    def _part(self, part: Part) -> Count:
        covered = self.where(lambda term: term.part == part)
        return dataclasses.replace(covered, not_covered=self.not_covered & {part}, part=part)

    @functools.cached_property
    def rows(self) -> tuple[Row, ...]:
        """Every matrix product as executed; empty for a published convention."""
        return tuple(row for term in self.terms for row in term.rows)

    def for_tokens(self, num_tokens: Any) -> Any:
        """FLOPs of a training run over ``num_tokens`` latent tokens, exactly.

        Args:
            num_tokens: Latent tokens; an integral float such as ``1.3e9`` passes here.

        Raises:
            TypeError: If ``num_tokens`` is not a number.
            ValueError: If it is negative or not integral.

        """
        tokens = require_size("num_tokens", _integral(num_tokens), minimum=0)
        return exact_ratio(multiply(self.total, tokens), self.tokens)

    def mfu(
        self,
        seconds: float | None = None,
        device: str | Device | None = None,
        dtype: str = DEFAULT_DTYPE,
        num_devices: int = 1,
        *,
        tokens_per_second: float | None = None,
    ) -> Any:
        """Model FLOPs utilisation: total / (seconds · devices · peak).

        The numerator is the ``causal`` level, or a published convention where that is what is to be
        quoted; recomputation never counts.

        Args:
            seconds: Wall-clock time of the step that this count describes (give ``batch_size``).
            device: A name that ``flopcount devices`` lists, what ``torch.cuda.get_device_name()``
                says of one, or a :class:`~flopcount.Device`.
            dtype: The peak's dtype.
            num_devices: Devices that shared the step.
            tokens_per_second: Instead of ``seconds``, latent tokens per second of all devices; the
                batch size does not matter then.

        Returns:
            A fraction of the peak; 0.4 is 40 %.

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: For a count at another level, for an unknown device or dtype, if not one of
                seconds and tokens per second is given, or if the result is above 100 %.

        Source: Chowdhery et al. 2022 (arXiv 2204.02311), Appendix B.

        >>> import flopcount as fc
        >>> gpt2 = fc.Decoder(vocab_size=50304, seq_len=1024, num_channels=768, num_layers=12,
        ...                   num_heads=12)
        >>> f"{gpt2.flops(batch_size=480).mfu(seconds=0.41, device='h100', num_devices=8):.2%}"
        '12.09%'
        >>> f"{gpt2.flops().mfu(tokens_per_second=1.2e6, device='h100', num_devices=8):.2%}"
        '12.10%'

        """
        if self.level in ("dense", "executed"):
            raise ValueError(
                f"MFU of a count at level {self.level!r}: expected level='causal' or a convention"
            )
        return self._utilisation(
            "MFU", self.total, seconds, tokens_per_second, device, dtype, num_devices
        )

    def hfu(
        self,
        seconds: float | None = None,
        device: str | Device | None = None,
        dtype: str = DEFAULT_DTYPE,
        num_devices: int = 1,
        *,
        tokens_per_second: float | None = None,
    ) -> Any:
        """Hardware FLOPs utilisation at this level: like :meth:`mfu`, with recomputation.

        It counts the products that the level counts; what a kernel's tiling adds is in it at level
        ``executed`` alone, see :meth:`~flopcount.architectures.Architecture.executed`.
        """
        return self._utilisation(
            "HFU", self.with_recompute, seconds, tokens_per_second, device, dtype, num_devices
        )

    def _utilisation(
        self,
        name: str,
        flops: Size,
        seconds: float | None,
        tokens_per_second: float | None,
        device: Any,
        dtype: str,
        num_devices: int,
    ) -> Any:
        if is_symbolic(flops):
            raise TypeError(f"total = {quoted(flops)}: substitute numbers first for a utilisation")
        if (seconds is None) == (tokens_per_second is None):
            raise ValueError(
                f"seconds = {quoted(seconds)}, tokens_per_second = {quoted(tokens_per_second)}: "
                "expected one of the two"
            )
        device = find_device(device)
        rate, devices = device.peak(dtype).flops_per_second, require_int("num_devices", num_devices)
        try:
            rate *= devices
            if seconds is not None:
                duration = require_positive_number("seconds", seconds)
                measured = (
                    f"that seconds = {quoted(seconds)} is the time of one step of the whole batch, "
                    f"batch_size = {quoted(self.batch_size)}"
                )
            else:
                duration = self.tokens / require_positive_number(
                    "tokens_per_second", tokens_per_second
                )
                measured = f"tokens_per_second = {quoted(tokens_per_second)}"
            share = flops / (duration * rate)
        except OverflowError:
            raise ValueError(
                f"total = {quoted(flops)} over {rate} FLOP/s at the peak of num_devices = "
                f"{quoted(devices)}: expected a quotient that a float can hold"
            ) from None
        return require_utilisation(
            name,
            share,
            f"{measured}, num_devices = {quoted(num_devices)}, device = {device.name!r} and "
            f"dtype = {dtype!r}",
        )

    def to_dict(self) -> dict[str, Any]:
        """The count as plain data: totals and terms; a part not covered is ``"not covered"``."""
        return {
            "version": __version__,
            "model": described(self.model),
            "level": self.level,
            "convention": self.convention,
            "training": self.training,
            "checkpointing": self.checkpointing,
            **({"request": self.request} if self.request else {}),
            **(
                {}
                if self.positions is None
                else {"positions": self.positions, "padding": self.padding}
            ),
            **({} if self.tuning is None else {"tuning": self.tuning.to_dict()}),
            **({} if self.recompute_terms is None else {"recompute": self.recompute_terms}),
            "batch_size": self.batch_size,
            "tokens": self.tokens,
            **{name: totals_or_not_covered(part) for name, part in self._named_parts()},
            "terms": self.records(),
            "elementwise": None if self.elementwise is None else self.elementwise.records(),
        }

    def _draw(self, axes: Any) -> None:
        self.require_covered()
        if is_symbolic(self.total) or is_array(self.total):
            raise TypeError(f"total = {quoted(self.total)}: expected one number, for a picture")
        names = [f"{term.layer}, {term.term}" for term in self.terms]
        left = [0.0] * len(names)
        for phase in ("forward", "backward", "recompute"):
            widths = [float(getattr(term, phase)) for term in self.terms]
            if any(widths):
                axes.barh(names, widths, left=left, label=phase)
                left = [before + width for before, width in zip(left, widths, strict=True)]
        axes.invert_yaxis()
        axes.tick_params(axis="y", labelsize="small")
        axes.set(xlabel="FLOPs", title=f"{self.model.title}, {self.label}")
        axes.legend(fontsize="small")

    def _named_parts(self) -> tuple[tuple[str, Count], ...]:
        return ("whole", self), ("self_part", self.self_part), ("cross_part", self.cross_part)

    def _tables(self) -> list[Table | str]:
        columns = ["part", "layer", "term", "forward", "backward"]
        columns += ["recompute"] if self.checkpointing else []
        columns += ["share"]
        whole = add(term.forward + term.backward for term in self.terms)
        cells = [
            [record[column] for column in columns[:-1]] + [_share(record["total"], whole)]
            for record in self.records()
        ]
        sums = [add(record[column] for record in self.records()) for column in columns[3:-1]]
        kept = "self part only" if self.not_covered else "total"
        token = "latent token" if hasattr(self.model, "num_latents") else "token"
        notes = [
            f"per sequence {shown(exact_ratio(whole, self.batch_size))}, "
            f"per {token} {shown(exact_ratio(whole, self.tokens))}"
        ]
        if self.positions is not None:
            notes.append(
                f"documents of {shown(self.tokens)} tokens in {shown(self.positions)} positions; "
                f"padding is {shown(self.padding)} of them"
            )
        if self.tuning is not None:
            notes.append(str(self.tuning))
        if self.recompute_terms is not None:
            terms = self.recompute_terms
            listed = terms if isinstance(terms, str) else ", ".join(terms)
            notes.append(f"executed again, of layers: {listed} alone")
        notes += [
            f"{part} part: not covered by this convention" for part in sorted(self.not_covered)
        ]
        phase = "forward and backward" if self.training else self.request or "forward alone"
        sequences = f"batch of {shown(self.batch_size)}"
        return [
            Table(
                columns,
                cells,
                title=f"FLOPs of {self.model.title}, {self.label}, {phase}, {sequences}",
                footer=[kept, None, None, *sums, _share(whole, whole)],
                note="\n".join(notes),
                keys=3,
            )
        ]


def _work_of(counts: tuple[Count, ...]) -> WorkCount:
    first, *others = (count.work() for count in counts if count.work is not None)
    return first.plus(*others)


def is_position(row: Tensor) -> bool:
    """Whether a tensor is an embedding of positions."""
    return row.layer == "embedding" and row.name.endswith("positions")


def described(model: Any) -> dict[str, Any]:
    """A model as plain data: its architecture and the sizes that it was given."""
    sizes: dict[str, Any] = model.arguments()
    reading = getattr(model, "reading", None)
    config = {} if reading is None else {"config": dataclasses.asdict(reading)}
    return {"architecture": type(model).__name__} | sizes | config


def totals_or_not_covered(count: Count) -> dict[str, Any] | str:
    """A count's totals as plain data, or ``"not covered"``."""
    if count.not_covered:
        return "not covered"
    return {
        "total": count.total,
        "forward": count.forward,
        "backward": count.backward,
        "recompute": count.recompute,
        "per_token": count.per_token,
    }


def _share(part: Size, whole: Size) -> str:
    if is_symbolic(whole) or is_array(whole) or is_symbolic(part) or not whole:
        return ""
    return f"{float(Fraction(part, whole)):.2%}"


def _integral(value: Any) -> Any:
    """Integral floats as ints; anything else as it is, for ``require_size`` to judge."""
    if is_array(value) and value.dtype.kind == "f":
        if not all(float(entry).is_integer() for entry in value.flat):
            raise ValueError("num_tokens contains values that are not integral")
        import numpy as np

        return np.frompyfunc(int, 1, 1)(value)
    is_float = isinstance(value, numbers.Real) and not isinstance(value, numbers.Rational)
    return int(value) if is_float and float(value).is_integer() else value


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ParameterCount(Tally):
    """Parameters, tensor by tensor.

    Attributes:
        model: The model counted.
        terms: One per parameter tensor (of all equal layers).
        buffers: What is stored with them but is no parameter, and in no total.
        products: What one token multiplies by the tensors.

    """

    model: Any
    terms: tuple[Tensor, ...]
    buffers: tuple[Tensor, ...] = ()
    products: tuple[Product, ...] = ()

    def where(self, condition: Callable[[Any], bool]) -> Self:
        """The tensors that meet a condition, as a count of its own."""
        kept = super().where(condition)
        return dataclasses.replace(kept, buffers=tuple(filter(condition, self.buffers)))

    @functools.cached_property
    def total(self) -> Size:
        """All parameters; tied ones once."""
        return add(tensor.count for tensor in self.terms)

    @functools.cached_property
    def trainable(self) -> Size:
        """Parameters that are trained: what an optimizer keeps its state of."""
        return add(t.count if t.trained is None else t.trained for t in self.terms)

    @functools.cached_property
    def active(self) -> Size:
        """Parameters without the experts that a token does not use."""
        return add(tensor.active for tensor in self.terms)

    @functools.cached_property
    def matmul_active(self) -> Size:
        """N of the rule 2N: multiply-adds of one token with the tensors, forward.

        No look-up, no norm and no bias multiplies a matrix; a tied embedding does, in the output
        layer. A prefix's positions are not the token's.
        """
        tensors = {(tensor.layer, tensor.name) for tensor in self.terms}
        return add(
            product.times * product.M * product.N * product.K
            for product in self.products
            if product.part == "self" and product.weight in tensors
        )

    @property
    def position_embedding(self) -> ParameterCount:
        """The learned absolute positions."""
        return self.where(is_position)

    def to_dict(self) -> dict[str, Any]:
        """The parameters as plain data."""
        return {
            "total": self.total,
            "trainable": self.trainable,
            "active": self.active,
            "matmul_active": self.matmul_active,
            "self_part": self.self_part.total,
            "cross_part": self.cross_part.total,
            "tensors": self.records(),
            "buffers": [tensor.record() for tensor in self.buffers],
        }

    def _tables(self) -> list[Table | str]:
        columns = ["part", "layer", "name", "parameters", "share", "active"]
        footer = ["total", None, None, self.total, _share(self.total, self.total), self.active]
        cells = [
            [row.part, row.layer, row.name, row.count, _share(row.count, self.total), row.active]
            for row in self.terms
        ]
        if all(row.used is None for row in self.terms):
            columns, footer, cells = columns[:-1], footer[:-1], [cell[:-1] for cell in cells]
        if any(row.trained is not None for row in self.terms):
            columns, footer = [*columns, "trainable"], [*footer, self.trainable]
            cells = [[*cell, row.trained] for cell, row in zip(cells, self.terms, strict=True)]
        notes = [
            f"{tensor.layer} {tensor.name}: a buffer of {shown(tensor.count)}, no parameters"
            for tensor in self.buffers
        ]
        return [
            Table(
                columns,
                cells,
                title=f"Parameters of {self.model.title}",
                footer=footer,
                note="\n".join(notes),
                keys=3,
            )
        ]
