"""Every way to count, side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from flopcount import __version__
from flopcount.architectures import ARCHITECTURES, Architecture
from flopcount.blocks import rows_of
from flopcount.conventions import (
    ADMITTED,
    CONVENTIONS,
    FROZEN,
    HALF,
    IN_WINDOWS,
    OWN_HEADS,
    SQUARE,
)
from flopcount.count import Count, described, is_position
from flopcount.inputs import is_block_norm, is_table, is_tokens
from flopcount.masks import Causal
from flopcount.operations import Pass
from flopcount.pictures import Drawn
from flopcount.rows import Part, Product, Tensor
from flopcount.sizes import Size, exact_ratio, is_array, is_symbolic, quoted
from flopcount.tables import Shown, Table, shown

NOT_COVERED = "not covered"

ATTENTION = (
    "query", "key", "value", "gate", "out", "query down", "query up", "key-value down",
    "key-value up",
)  # fmt: skip
MLP = ("mlp gate", "mlp up", "mlp down")
EXPERT = ("expert gate", "expert up", "expert down")
SHARED = ("shared expert gate", "shared expert up", "shared expert down")
LINEAR = ("query", "key", "value", "out", *MLP)
PRODUCTS = ("scores", "values")
LOOK_UP = "a look-up, as 4d per"
MASKED = "the masked half of both attention products"
STANDS_FOR: dict[str, tuple[tuple[str, ...], str]] = {
    "embedding": ((), f"the embedding, {LOOK_UP} token"),
    "prefix embedding": ((), f"the prefix embedding, {LOOK_UP} position"),
    "projections and MLP": (LINEAR, "projections and MLP"),
    "projections and MLP as 12d² a layer": (LINEAR, "projections and MLP other than 12d² a layer"),
    "attention projections": (ATTENTION, "attention projections"),
    "MLP": (MLP, "MLP"),
    "routed experts": (EXPERT, "routed experts"),
    "shared experts": (SHARED, "shared experts"),
    "router": (("router",), "router"),
    "keys and values": (("key", "value"), "prefix dropout, not rounded to positions"),
    # The two products are equal, so it does not matter which of them is called the missing one.
    "one attention product": (("values",), "the masked half of that attention product"),
    SQUARE: (PRODUCTS, MASKED),
    IN_WINDOWS: (PRODUCTS, MASKED),
    HALF: (PRODUCTS, "half of the diagonal of both attention products"),
    ADMITTED: (PRODUCTS, "both attention products"),
    OWN_HEADS: ((), "heads as if of d / h channels"),
    FROZEN: ((), "both attention products once more, of frozen parameters, which are none"),
    "scores": (("scores",), MASKED),
    "values": (("values",), MASKED),
    "softmax": ((), "softmax, element-wise work"),
    "norms of latents": ((), "norms of latents as if multiplied"),
    "norms of predictions": ((), "norms of multi-token prediction as if multiplied"),
    "projection": (("projection",), "projection of multi-token prediction"),
    "logits": (("logits",), "the output layer"),
    "three quarters of the logits": (("logits",), "a quarter of the output layer"),
    "truncation per token": ((), "truncation to an integer per token"),
    "truncation per token and layer": ((), "truncation to an integer per token and layer"),
    "2 N without embeddings": (LINEAR, "parameters of projections and MLP"),
} | {term: ((term,), term) for term in (*ATTENTION, *MLP, *EXPERT, *SHARED)}
"""For terms of a convention or level: the proven terms in their place, and what else they have.

Any other stands for the proven term of its name.
"""


def _is_looked_up(row: Tensor, tied: bool) -> bool:
    return is_table(row) and not (tied and is_tokens(row))


COUNTED: dict[str, Callable[[Tensor, bool], Size]] = {
    "2 N": lambda row, tied: row.count,
    "2 N, active parameters": lambda row, tied: row.active,
    "2 N without positions": lambda row, tied: 0 if is_position(row) else row.count,
    "2 N without positions, active parameters": lambda row, tied: (
        0 if is_position(row) else row.active
    ),
    "2 N without embedding tables": lambda row, tied: 0 if is_table(row) else row.count,
    "2 N without look-ups, active parameters": lambda row, tied: (
        0 if _is_looked_up(row, tied) else row.active
    ),
    "2 N of attention, MLP and output layer, active parameters": lambda row, tied: (
        0 if _is_looked_up(row, tied) or is_block_norm(row) else row.active
    ),
}
"""Terms of 2 FLOPs per parameter: the scalars of a tensor that each counts, also by whether the
output layer multiplies by the token embedding. See :func:`differences`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Difference:
    """A term that a way to count misses of the proven count, or adds to it.

    Attributes:
        part: ``"self"`` or ``"cross"``.
        term: What is missed or added.
        flops: Per latent token: negative where it is missed, positive where it is added.
        share: ``flops`` over the causal count of the same part; None where that is 0.

    """

    part: Part
    term: str
    flops: Size
    share: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Compared:
    """One way to count, against the proven count.

    Attributes:
        name: The level or convention.
        source: Where it stands.
        self_part: FLOPs per latent token of the self part, or ``"not covered"``.
        cross_part: FLOPs per latent token of the cross part, or ``"not covered"``.
        total: Their sum, or ``"not covered"``.
        ratio: ``total`` over the causal total; over the causal self part where the cross part is
            not covered.
        self_ratio: ``self_part`` over the causal self part; None where it is not covered.
        leaves_out: The terms of the causal count that it does not count of this model, by name.
        adds: What it counts of this model beyond the causal count, by name.
        differences: Both, term by term; per part they add up exactly to the difference between
            this count and the causal one. Nothing of a part that is not covered.

    """

    name: str
    source: str
    self_part: Size | str
    cross_part: Size | str
    total: Size | str
    ratio: Any
    self_ratio: Any
    leaves_out: str
    adds: str
    differences: tuple[Difference, ...]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Comparison(Shown, Drawn):
    """What :func:`compare` returns; ``print`` shows it as a table.

    Attributes:
        model: The model counted.
        rows: The causal and dense levels, then every published convention.

    """

    model: Any
    rows: tuple[Compared, ...]

    def to_dict(self) -> dict[str, Any]:
        """The comparison as plain data."""
        return {
            "version": __version__,
            "model": described(self.model),
            "rows": self.records(),
        }

    def records(self) -> list[dict[str, Any]]:
        """One dictionary per way to count."""
        return [
            vars(row) | {"differences": [vars(entry) for entry in row.differences]}
            for row in self.rows
        ]

    def _draw(self, axes: Any) -> None:
        covered = {row.name: row.ratio for row in self.rows if row.ratio is not None}
        if any(is_symbolic(ratio) or is_array(ratio) for ratio in covered.values()):
            raise TypeError("ratios of symbols or arrays: expected numbers, for a picture")
        axes.barh(list(covered), [float(ratio) for ratio in covered.values()])
        axes.axvline(1, color="black", linewidth=1)
        axes.invert_yaxis()
        axes.set(xlabel="FLOPs over the causal count", title=self.model.title)

    def _tables(self) -> list[Table | str]:
        cells = [
            [
                row.name,
                row.self_part,
                shown(row.cross_part),
                shown(row.total),
                NOT_COVERED if row.self_ratio is None else _percent(row.self_ratio),
                NOT_COVERED if isinstance(row.total, str) else _percent(row.ratio),
            ]
            for row in self.rows
        ]
        headings = ["counted as", "self part", "cross part", "total", "self ratio", "total ratio"]
        token = "latent token"
        if shown(self.rows[0].cross_part) == "0":  # no prefix: the self part is all
            headings, token = ["counted as", "total", "ratio"], "token"
            cells = [[name, total, ratio] for name, _, _, total, _, ratio in cells]
        reasons = [[row.name, row.leaves_out, row.adds] for row in self.rows]
        title = f"FLOPs of {self.model.title} per {token}, with ratios to the causal count"
        return [
            Table(headings, cells, title=title),
            Table(["counted as", "leaves out", "adds"], reasons),
        ]


def _percent(ratio: Any) -> str:
    if is_array(ratio):
        return f"{float(ratio.min()):.2%} … {float(ratio.max()):.2%}"
    return str(ratio) if is_symbolic(ratio) else f"{float(ratio):.2%}"


def _ratio(numerator: Any, denominator: Any) -> Any:
    if is_symbolic(numerator) or is_symbolic(denominator):
        return numerator / denominator
    if is_array(numerator) or is_array(denominator):
        return numerator / denominator
    return float(Fraction(numerator) / Fraction(denominator))


def _share(flops: Any, whole: Any) -> Any:
    if is_array(whole):
        import numpy as np

        return np.frompyfunc(_share, 2, 1)(flops, whole)
    return None if _is_zero(whole) else _ratio(flops, whole)


def _is_zero(value: Any) -> bool:
    if is_array(value):
        return not value.any()
    return bool(value.expand() == 0) if is_symbolic(value) else value == 0


def _kind(row: Tensor, multiplied: bool) -> str:
    """What a tensor has beyond a product's weight, by name; its own name where none is known."""
    if multiplied or row.name.endswith("bias"):
        kind = "biases"
    elif row.name.endswith("norm"):
        kind = "norms"
    elif is_position(row):
        kind = "positions"
    elif row.layer == "embedding":
        kind = "the input embedding, a look-up,"
    else:
        kind = f"{row.layer} {row.name}"
    return f"{kind} as if multiplied"


IDLE = "experts that a token is not routed to as if multiplied"


def _windowed(count: Count) -> bool:
    """Whether a mask of the counted model hides more than the later half."""
    return any(
        not isinstance(mask := row.mask, Causal) or mask.window is not None
        for network_pass, blocks in count.model.network(Pass(1, count.model.length))
        for row in rows_of(((network_pass, blocks),))
        if isinstance(row, Product) and row.mask is not None and row.part == "self"
    )


def differences(count: Count, proven: Count) -> tuple[Difference, ...]:
    """What ``count`` misses of ``proven``, the same model's causal count, and adds to it.

    Each term of ``count`` stands for the proven terms that :data:`STANDS_FOR` names: it adds what
    it has beyond them. A term that takes 2 FLOPs per parameter stands for the products of those
    parameters, tensor by tensor, and adds the tensors that multiply nothing, each kind by name; a
    tied embedding multiplies in the output layer. A proven term that no term stands for is missed.
    So per part

        count - proven = Σ added + Σ missed

    Args:
        count: At a level or by a convention.
        proven: At level ``causal``.

    Returns:
        Differences that are not 0, per latent token, forward and backward as the counts have them.

    >>> import flopcount as fc
    >>> model = fc.PerceiverAR(vocab_size=32_000, num_latents=512, num_prefix=1536,
    ...                        num_channels=512, num_layers=9, prefix_dropout=0.5)
    >>> for entry in differences(model.flops(convention="article-update"), model.flops()):
    ...     print(f"{entry.part} {entry.term}: {entry.flops:,} ({entry.share:+.1%})")
    self the masked half of both attention products: 14,128,128 (+5.0%)
    self softmax, element-wise work: 331,776 (+0.1%)
    self the output layer: -98,304,000 (-34.8%)
    cross softmax, element-wise work: 55,296 (+0.6%)

    """
    by_term: dict[tuple[Part, str], Size] = {}

    def add(part: Part, term: str, flops: Size) -> None:
        by_term[part, term] = by_term.get((part, term), 0) + flops

    parts: tuple[Part, ...] = ("self", "cross")
    windowed = _windowed(count)
    for part in parts:
        if part in count.not_covered:
            continue
        expected: dict[str, Size] = {}
        for entry in proven.terms:
            if entry.part == part:
                flops = entry.forward + entry.backward
                expected[entry.term] = expected.get(entry.term, 0) + flops
        terms: dict[str, Size] = {}
        for entry in count.terms:
            if entry.part == part:
                terms[entry.term] = terms.get(entry.term, 0) + entry.forward + entry.backward
        for term, flops in terms.items():
            if term in COUNTED:
                per_parameter = (6 if count.training else 2) * count.tokens
                tensors = count.model.params().self_part.terms
                tied = not any(row.name == "logits" for row in tensors)
                scalars = [(row, COUNTED[term](row, tied)) for row in tensors]
                counted = [(row, number) for row, number in scalars if not _is_zero(number)]
                kinds = {row.name: _kind(row, row.name in expected) for row, _ in counted}
                if "token" in kinds:
                    kinds.setdefault("logits", kinds["token"])
                for row, number in counted:
                    if row.used is not None:
                        add(part, IDLE, per_parameter * (number - row.active))
                        number = row.active
                    add(part, kinds[row.name], per_parameter * number)
                for name in [name for name in kinds if name in expected]:
                    add(part, kinds[name], -expected.pop(name))
                continue
            covered, beyond = STANDS_FOR.get(term, ((term,), term))
            if windowed and part == "self":
                beyond = beyond.replace("the masked half", "the masked pairs")
                beyond = beyond.replace("half of the diagonal", "the masked pairs")
            for name in covered:
                flops = flops - expected.pop(name, 0)
            add(part, beyond, flops)
        both = all(term in expected for term in PRODUCTS)
        missed = "both attention products" if both else "one of the two attention products"
        names = dict.fromkeys(PRODUCTS, missed) | {"logits": "the output layer"}
        for term, flops in expected.items():
            add(part, names.get(term, term), -flops)
    whole = {part: getattr(proven, f"{part}_part").per_token for part in parts}
    return tuple(
        Difference(part, term, flops, _share(flops, whole[part]))
        for (part, term), total in by_term.items()
        if not _is_zero(total)
        for flops in [exact_ratio(total, count.tokens)]
    )


def compare(model: Architecture, *, training: bool = True) -> Comparison:
    """Count ``model`` in every known way.

    Args:
        model: One of :data:`~flopcount.architectures.ARCHITECTURES`.
        training: Forward and backward, or forward alone.

    Returns:
        A :class:`Comparison`: per latent token, the self part, the cross part and the total of
        each level and convention, ratios to the causal count, and what each leaves out or adds.

    Raises:
        TypeError: If ``model`` is none of the architectures.

    >>> import flopcount as fc
    >>> gpt2 = fc.Decoder(vocab_size=50257, seq_len=1024, num_channels=768, num_layers=12,
    ...                   num_heads=12)
    >>> ratios = {row.name: row.ratio for row in fc.compare(gpt2).rows}
    >>> round(ratios["6n"], 3), ratios["nanotron"]
    (0.936, None)

    """
    if not isinstance(model, Architecture):
        known = ", ".join(described.__name__ for described in ARCHITECTURES.values())
        raise TypeError(
            f"model = {quoted(model)}: expected a flopcount architecture, one of {known}"
        )
    proven = model.flops(training=training)
    counts = [
        (proven, "causal", "derived here"),
        (model.flops(level="dense", training=training), "dense", "derived here"),
    ]
    for convention in CONVENTIONS.values():
        count = model.flops(convention=convention.name, training=training)
        counts.append((count, convention.name, convention.source))
    return Comparison(model, tuple(_compared(proven, *entry) for entry in counts))


def _compared(proven: Count, count: Count, name: str, source: str) -> Compared:
    self_part: Size | str = NOT_COVERED
    cross_part: Size | str = NOT_COVERED
    total: Size | str = NOT_COVERED
    self_ratio = None
    if "self" not in count.not_covered:
        self_part = count.self_part.per_token
        self_ratio = _ratio(self_part, proven.self_part.per_token)
    ratio = self_ratio
    if not count.not_covered:
        cross_part, total = count.cross_part.per_token, count.per_token
        ratio = _ratio(total, proven.per_token)
    entries = differences(count, proven)
    missed = [_explained(entry) for entry in entries if _is_missed(entry.flops)]
    missed += [_uncovered(part, count.lacks) for part in sorted(count.not_covered)]
    added = [_explained(entry) for entry in entries if not _is_missed(entry.flops)]
    return Compared(
        name,
        source,
        self_part,
        cross_part,
        total,
        ratio,
        self_ratio,
        "; ".join(missed) or "nothing",
        "; ".join(added) or "nothing",
        entries,
    )


def _uncovered(part: Part, lacks: tuple[str, ...]) -> str:
    because = f" ({', '.join(lacks)})" if part == "self" else ""
    return f"the {part} part, which it does not cover{because}"


def _is_missed(flops: Any) -> bool:
    if is_symbolic(flops):
        return bool(flops.expand().is_negative)
    return bool((flops <= 0).all()) if is_array(flops) else bool(flops < 0)


def _explained(entry: Difference) -> str:
    """A difference in words, with its share where that is one number."""
    where = " in the cross part" if entry.part == "cross" else ""
    is_number = not (entry.share is None or is_array(entry.share) or is_symbolic(entry.share))
    return f"{entry.term}{where}{f' ({signed(entry.share)})' if is_number else ''}"


def signed(share: float) -> str:
    """A share in per cent, with as many digits as tell it from 0.

    >>> signed(-0.25), signed(0.0502), signed(0.000022), signed(4.2e-7)
    ('-25.0%', '+5.02%', '+0.0022%', '+4.2e-05%')
    """
    if share and abs(share) <= 5e-7:
        return f"{share * 100:+.1e}%"
    digits = 2 if abs(share) < 0.1 else 1
    return f"{share:+.{digits}%}" if abs(share) >= 5e-5 or not share else f"{share:+.4%}"
