"""Rooflines: the bytes that one pass moves at least, and what bounds its time.

A pass reads every weight once, reads what is cached and writes what it adds, reads and writes a
scan's state, and leaves in memory what its other products compute, for the next to read. A value
that several products of a layer read is read once; scores, what a scan reads, keys and values that
are not cached (such as those expanded from latents), and element-wise work stay on chip. That is a
lower bound for kernels that fuse no more than that, and most move more. A kernel that also keeps
what is between two products on chip, such as a whole MLP's, may move as little as the weights and
the cache.
"""

from __future__ import annotations

import bisect
import dataclasses
import decimal
import functools
import itertools
import math
from fractions import Fraction
from typing import Any, NamedTuple

from flopcount.architectures import Architecture
from flopcount.blocks import rows_of
from flopcount.count import product_term
from flopcount.devices import DEFAULT_DTYPE, Device, find_device
from flopcount.inference import bits
from flopcount.pictures import Drawn
from flopcount.rows import AnyRow, Cached, Product, Step, Tensor, Value
from flopcount.sizes import (
    Size,
    equal,
    is_symbolic,
    maximum,
    quoted,
    require_at_most,
    require_int,
)
from flopcount.tables import Shown, Table, shown

LARGEST_BATCH = 2**20
EXACT_BITS = 14_000
"""Of a fraction's denominator, which so is as long as Python prints."""
KEPT = ("keys", "latents", "rotary keys")
"""What attention caches, beside values."""


def expected_experts(num_experts: int, experts_per_token: int, num_tokens: int) -> Fraction:
    """Experts that a layer reads for some tokens, each routed uniformly and independently.

    E·(1 - (1 - k/E)^t): a token leaves an expert out with probability 1 - k/E.
    :func:`touched_experts` also says how few and how many they are under any routing.

    The fraction is exact while its denominator, at most E^t, has 14,000 bits at most. Of more
    tokens, whose digits would fill pages and then the memory, it is right to 30 decimal digits.

    Args:
        num_experts: E.
        experts_per_token: k, at most E.
        num_tokens: t.

    Raises:
        TypeError: If an argument is no integer: an array or a symbol is several.
        ValueError: If one is out of range.

    Source: derived here.

    >>> expected_experts(4, 2, 2)  # 4·(1 - 1/4)
    Fraction(3, 1)
    """
    experts = require_int("num_experts", num_experts)
    chosen = require_int("experts_per_token", experts_per_token)
    require_at_most("experts_per_token", chosen, "num_experts", experts)
    tokens = require_int("num_tokens", num_tokens)
    left_out = 1 - Fraction(chosen, experts)
    if left_out.denominator.bit_length() * tokens <= EXACT_BITS:
        return experts * (1 - left_out**tokens)
    # The power loses as many digits as t has; what it leaves of 1, which is 1/E or more, as E has.
    lost = (tokens.bit_length() + experts.bit_length()) // 3 + 2
    with decimal.localcontext() as context:
        context.prec = 30 + lost
        share = decimal.Decimal(left_out.numerator) / left_out.denominator
        return experts * Fraction(1 - share**tokens)


class TouchedExperts(NamedTuple):
    """How many experts a layer reads.

    Attributes:
        fewest: If all tokens choose the same.
        expected: If each chooses uniformly and independently.
        most: If no two choose the same while there are others.
    """

    fewest: int
    expected: Fraction
    most: int


def touched_experts(num_experts: int, experts_per_token: int, num_tokens: int) -> TouchedExperts:
    """Experts that a layer reads for some tokens: k, :func:`expected_experts`, and min(E, k·t).

    Args:
        num_experts: E.
        experts_per_token: k, at most E.
        num_tokens: t.

    Raises:
        TypeError: As :func:`expected_experts`.
        ValueError: As :func:`expected_experts`.

    Source: derived here.

    >>> touched_experts(4, 2, 2)
    TouchedExperts(fewest=2, expected=Fraction(3, 1), most=4)
    """
    expected = expected_experts(num_experts, experts_per_token, num_tokens)
    chosen = int(experts_per_token)
    return TouchedExperts(chosen, expected, min(int(num_experts), chosen * int(num_tokens)))


@dataclasses.dataclass(frozen=True)
class Bound:
    """What one term needs at least.

    Attributes:
        layer: The layer, all equal ones together.
        term: The product; ``"attention"`` or ``"scan"`` for all that have no weight.
        flops: FLOPs at level ``causal``.
        weights: Bytes of weights.
        cache: Bytes of the cache, read and written.
        activations: Bytes of inputs that no product of the layer read before, and of outputs.
        peak: FLOP/s.
        bandwidth: Bytes/s.
    """

    layer: str
    term: str
    flops: int
    weights: float
    cache: float
    activations: float
    peak: float
    bandwidth: float

    @property
    def bytes(self) -> float:
        """All of them."""
        return self.weights + self.cache + self.activations

    @property
    def intensity(self) -> float:
        """FLOPs per byte."""
        return self.flops / self.bytes if self.bytes else 0.0

    @property
    def computing(self) -> float:
        """Seconds of computing."""
        return self.flops / self.peak

    @property
    def moving(self) -> float:
        """Seconds of moving bytes."""
        return self.bytes / self.bandwidth

    @property
    def seconds(self) -> float:
        """The longer of computing and of moving bytes."""
        longer: float = maximum(self.computing, self.moving)
        return longer

    @property
    def bound_by(self) -> str:
        """``"compute"`` or ``"bandwidth"``."""
        return "compute" if self.computing >= self.moving else "bandwidth"


@dataclasses.dataclass(frozen=True, repr=False)
class Roofline(Shown, Drawn):
    """What bounds the time of one pass on a device; bytes as in :mod:`flopcount.rooflines`.

    Attributes:
        model: The model.
        device: The device.
        options: What :func:`roofline` was given.
        terms: What each needs.
        weight_bytes: Of all weights, as they are stored.
        cache_bytes: Of the cache behind the pass.
        experts: How many experts a layer reads, by the layer's name.
    """

    model: Any
    device: Device
    options: dict[str, Any]
    terms: tuple[Bound, ...]
    weight_bytes: float
    cache_bytes: float
    experts: dict[str, TouchedExperts]

    @functools.cached_property
    def total(self) -> Bound:
        """All terms together, as if computing and moving bytes overlapped across them."""
        first, *_ = self.terms
        sums = {
            name: sum(getattr(term, name) for term in self.terms)
            for name in ("flops", "weights", "cache", "activations")
        }
        return Bound("", "total", **sums, peak=first.peak, bandwidth=first.bandwidth)

    @property
    def seconds(self) -> float:
        """Of all terms together, perfectly overlapped: a lower bound."""
        return self.total.seconds

    @property
    def seconds_in_turn(self) -> float:
        """Of the terms one after the other, each at its own bound: no less than :attr:`seconds`."""
        return sum(term.seconds for term in self.terms)

    @property
    def tokens_per_second(self) -> float:
        """Positions of all sequences over :attr:`seconds`: an upper bound."""
        tokens: int = self.options["batch_size"] * self.options["positions"]
        return tokens / self.seconds

    @property
    def fits(self) -> bool | None:
        """Whether weights and cache fit the device's memory; None where that is not known."""
        if self.device.memory is None:
            return None
        return self.weight_bytes + self.cache_bytes <= self.device.memory.size_bytes

    @functools.cached_property
    def turns_at(self) -> int | None:
        """The least batch at which computing takes longer than moving bytes, all terms together.

        None if none up to 2^20 does: every sequence brings a cache of its own to read.
        """

        def computes(batch: int) -> bool:
            at = roofline(self.model, self.device, **self.options | {"batch_size": batch})
            return at.total.bound_by == "compute"

        # FLOPs grow as the batch, bytes no faster, so it turns once.
        batches = range(1, LARGEST_BATCH + 1)
        index = bisect.bisect_left(batches, True, key=computes)
        return batches[index] if index < len(batches) else None

    def to_dict(self) -> dict[str, Any]:
        """The roofline as plain data."""
        return {
            "device": self.device.name,
            **self.options,
            "seconds": self.seconds,
            "seconds_in_turn": self.seconds_in_turn,
            "tokens_per_second": self.tokens_per_second,
            "turns_at": self.turns_at,
            "weight_bytes": self.weight_bytes,
            "cache_bytes": self.cache_bytes,
            "fits": self.fits,
            "experts": {
                layer: {name: float(number) for name, number in touched._asdict().items()}
                for layer, touched in self.experts.items()
            },
            "terms": self.records(),
        }

    def records(self) -> list[dict[str, Any]]:
        """One dictionary per term."""
        return [
            dataclasses.asdict(term)
            | {"intensity": term.intensity, "seconds": term.seconds, "bound": term.bound_by}
            for term in self.terms
        ]

    def _draw(self, axes: Any) -> None:
        peak, bandwidth = self.total.peak, self.total.bandwidth
        ridge = peak / bandwidth
        terms = [term for term in (*self.terms, self.total) if term.flops]
        intensities = [term.intensity for term in terms] + [ridge]
        low, high = min(intensities) / 3, max(intensities) * 3
        axes.plot([low, ridge, high], [low * bandwidth, peak, peak], color="black")
        for term in terms:
            rate = min(peak, term.intensity * bandwidth)
            mark = "k*" if term is self.total else "o"
            axes.plot(term.intensity, rate, mark, label=f"{term.layer} {term.term}".strip())
        axes.set(
            xscale="log",
            yscale="log",
            xlabel="FLOPs per byte, at most",
            ylabel="FLOP/s, at most",
            title=f"{self.model.title} on {self.device.name}",
        )
        axes.legend(fontsize="small")

    def _tables(self) -> list[Table | str]:
        rows = [
            [
                term.layer, term.term, term.flops, round(term.bytes), round(term.intensity, 2),
                term.bound_by, f"{1e6 * term.seconds:.4g}",
            ]
            for term in self.terms
        ]  # fmt: skip
        asked = ", ".join(f"{name} = {value}" for name, value in self.options.items() if value)
        turns = f"at no batch up to 2^{math.log2(LARGEST_BATCH):g}"
        if self.turns_at is not None:
            turns = f"at a batch of {shown(self.turns_at)}"
        stored = f"{shown(round(self.weight_bytes))} bytes of weights"
        notes = [
            f"all terms overlapped: at most {self.tokens_per_second:,.4g} tokens per second; "
            f"computing binds {turns}",
            f"one term after another: {1e6 * self.seconds_in_turn:.4g} µs",
            f"{stored}, {shown(round(self.cache_bytes))} of cache"
            + {None: "", True: ": they fit the memory", False: ": MORE than the memory"}[self.fits],
        ] + [
            f"experts read in layer {layer}: {float(touched.expected):,.4g} expected, at least "
            f"{shown(touched.fewest)}, at most {shown(touched.most)}"
            for layer, touched in self.experts.items()
        ]
        total = self.total
        return [Table(
            ["layer", "term", "FLOPs", "bytes, at least", "FLOPs per byte", "bound by", "µs"],
            rows,
            title=f"Roofline of {self.model.title} on {self.device.name}: {asked}",
            footer=[
                "total", None, total.flops, round(total.bytes), round(total.intensity, 2),
                total.bound_by, f"{1e6 * self.seconds:.4g}",
            ],
            note="\n".join(notes),
            keys=2,
        )]  # fmt: skip


def rows_of_a_pass(
    model: Architecture, cached: Size, positions: Size, batch_size: Size, mla: str | None
) -> list[AnyRow]:
    """What a step of decoding or a prompt consists of; arguments as of :func:`roofline`."""
    behind = is_symbolic(cached) or cached > 0
    inference = "decode" if equal(positions, 1) and behind else "prefill"
    at = model._pass_behind(inference, positions, batch_size, cached, mla, None)
    return list(rows_of(model.network(at.at(logits=1))))


def bounds(
    model: Architecture,
    *,
    cached: Size,
    positions: Size,
    batch_size: Size,
    widths: dict[str, Any],
    mla: str | None,
    peak: Any,
    bandwidth: Any,
) -> tuple[Bound, ...]:
    """What each term of a pass needs at least, of numbers or symbols.

    Args:
        model: As of :func:`roofline`, as the next three and ``mla``.
        cached: See there.
        positions: See there.
        batch_size: See there.
        widths: Bytes of an element by name: ``dtype``, ``weights``, ``cache``.
        mla: See there.
        peak: FLOP/s.
        bandwidth: Bytes/s.
    """
    behind = is_symbolic(cached) or cached > 0
    rows = rows_of_a_pass(model, cached, positions, batch_size, mla)
    kept = {(row.layer, row.name.removesuffix("s")) for row in rows if isinstance(row, Cached)}
    tensors = {(row.layer, row.name): row for row in rows if isinstance(row, Tensor)}
    terms: dict[tuple[str, str], dict[str, Any]] = {}

    def add(layer: str, term: str, **more: Any) -> None:
        sums = terms.setdefault(
            (layer, term), dict.fromkeys(("flops", "weights", "cache", "activations"), 0)
        )
        for name, value in more.items():
            sums[name] += value

    def mixing(name: str) -> str:
        """The term of what has no weight: attention, that to another stack, or a scan."""
        if name.startswith("cross "):
            return "cross attention"
        return "attention" if name in ("scores", "values", *KEPT) else "scan"

    def in_cache(layer: str, value: str) -> bool:
        """Whether a value is moved as the cache alone, or stays on chip: keys, values, latents."""
        return value.split()[-1] in ("key", "value") or (layer, value) in kept

    computed = itertools.count()
    values: dict[str, Any] = {}  # What a name stands for, until it is computed again.
    seen: set[tuple[str, Any]] = set()

    def once(layer: str, value: str, elements: Size) -> Size:
        """What is moved of an input: nothing where a product of the layer has read it."""
        place = layer, values.get(value, value)
        if place in seen or in_cache(layer, value):
            return 0
        seen.add(place)
        return elements

    for row in rows:
        if isinstance(row, Value):
            kept_as = [values.get(name, name) for name in row.reads]
            values[row.writes] = kept_as[0] if len(kept_as) == 1 else next(computed)
        elif isinstance(row, Cached):
            # Of positions, what was there is read and what is new is written: together what there
            # is then. A state is read, unless it is the first, and written as a whole.
            times = 1 + (behind and row.name == "state")
            add(row.layer, mixing(row.name), cache=times * row.elements * widths["cache"])
        elif isinstance(row, Product) and not equal(row.M, 0):
            flops = product_term(row, "causal", None, False, None).forward
            if row.weight is None:
                # Queries in and what the heads give out; keys and values are the cache's. What a
                # scan reads can stay where its projections left it, and a prefix's pairs are of the
                # same queries and added to the same outputs.
                term = mixing(row.term)
                moved = term != "scan" and row.part == "self"
                side = row.times * row.M * row.K if moved else 0
                add(row.layer, term, flops=flops, activations=side * widths["dtype"])
            else:
                tensor = tensors[row.weight]
                read = row.times // batch_size * row.N * row.K
                if tensor.used is not None:
                    experts, chosen = tensor.factors[0], tensor.used[0]
                    read *= experts * (1 - (1 - chosen / experts) ** (batch_size * positions))
                side = once(row.layer, row.reads[0], row.times * row.M * row.K)
                if row.writes is None or not in_cache(row.layer, row.writes):
                    side += row.times * row.M * row.N
                add(row.layer, row.term, flops=flops, weights=read * widths["weights"],
                    activations=side * widths["dtype"])  # fmt: skip
        if isinstance(row, Step) and row.writes is not None:
            values[row.writes] = next(computed)
    return tuple(
        Bound(layer, term, **sums, peak=peak, bandwidth=bandwidth)
        for (layer, term), sums in terms.items()
    )


def roofline(
    model: Any,
    device: str | Device,
    *,
    cached: int = 0,
    positions: int = 1,
    batch_size: int = 1,
    dtype: str = DEFAULT_DTYPE,
    weights: str = DEFAULT_DTYPE,
    cache: str = DEFAULT_DTYPE,
    mla: str | None = None,
) -> Roofline:
    """What bounds the time of one pass of inference, term by term.

    Args:
        model: What is counted, of ints.
        device: A name that ``flopcount devices`` lists, or a :class:`~flopcount.Device` with its
            bandwidth.
        cached: Positions before those that are read.
        positions: Positions read of each sequence: 1 is a step of decoding, more a prompt.
        batch_size: B, sequences.
        dtype: Of computing and of activations.
        weights: Of weights as they are stored: a key of :data:`flopcount.inference.BITS`.
        cache: Of the cache, likewise.
        mla: As for :meth:`~flopcount.inference.Inference.prefill`.

    Returns:
        A :class:`Roofline`. Of experts, as many are read as uniform routing leads one to expect:
        :func:`touched_experts`, which has the bounds for any routing, too.

    Raises:
        TypeError: If an argument has the wrong type, or is an array or a symbol.
        ValueError: If the device or its bandwidth is not known, or as of
            :meth:`~flopcount.inference.Inference.prefill`.

    Source: Williams et al. 2009, Roofline: an insightful visual performance model.

    >>> import flopcount as fc
    >>> llama = fc.Llama(vocab_size=128256, seq_len=8192, num_channels=4096, num_layers=32,
    ...                  num_heads=32, num_key_value_heads=8, intermediate_size=14336)
    >>> step = fc.roofline(llama, "h100", cached=1000, batch_size=16)
    >>> step.total.bound_by, step.turns_at, round(step.tokens_per_second)
    ('bandwidth', None, 3118)
    >>> fc.roofline(llama, "h100", cached=100).turns_at
    460

    """
    if not isinstance(model, Architecture):
        raise TypeError(f"model = {quoted(model)}: expected a model that flopcount counts")
    device = find_device(device)
    peak = device.peak(dtype).flops_per_second
    if device.bandwidth is None:
        raise ValueError(
            f"device = {device.name!r} without bandwidth: expected a flopcount.Device with one, "
            "such as dataclasses.replace(device, bandwidth=flopcount.Bandwidth(…, 'measured')), or "
            "--bandwidth in bytes/s"
        )
    given = dict(cached=cached, positions=positions, batch_size=batch_size)
    for name, value in given.items():
        require_int(name, value, minimum=int(name != "cached"))
    widths = {name: bits(name, value) / 8 for name, value in
              dict(dtype=dtype, weights=weights, cache=cache).items()}  # fmt: skip
    kept = model.cache(cached + positions, batch_size=batch_size, mla=mla).elements
    try:
        return Roofline(
            model,
            device,
            given | dict(dtype=dtype, weights=weights, cache=cache, mla=mla),
            bounds(
                model, **given, widths=widths, mla=mla, peak=peak,
                bandwidth=device.bandwidth.bytes_per_second,
            ),
            model.params().total * widths["weights"],
            kept * widths["cache"],
            {
                row.layer: touched_experts(row.factors[0], row.used[0], positions * batch_size)
                for row in rows_of_a_pass(model, **given, mla=mla)
                if isinstance(row, Tensor) and row.used is not None
            },
        )  # fmt: skip
    except OverflowError as error:
        sizes = ", ".join(f"{name} = {quoted(value)}" for name, value in given.items())
        raise ValueError(
            f"{sizes} of {quoted(model)}: expected sizes whose bytes a float can hold"
        ) from error
