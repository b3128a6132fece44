"""A page to look at a model with: sliders for its sizes, and every figure computed in the browser.

The figures are those of :func:`figures`, evaluated on symbols; each expression is printed as
JavaScript. So what the page computes is this package's formulas, with no second copy of them.
FLOPs, parameters and cached numbers are exact (BigInt): they pass 2^53, above which JavaScript's
numbers skip integers. Seconds, bytes of a roofline and costs are real numbers.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flopcount import __version__, extras
from flopcount.architectures import Architecture
from flopcount.conventions import CONVENTIONS
from flopcount.count import LEVELS, Count, described, totals_or_not_covered
from flopcount.devices import DEFAULT_DTYPE, DEVICES
from flopcount.inference import BITS
from flopcount.operations import Pass
from flopcount.rooflines import bounds
from flopcount.rows import CHECKPOINTING
from flopcount.sizes import (
    Assumption,
    Size,
    assumptions,
    exact_ratio,
    is_array,
    is_symbolic,
    multiply,
    quoted,
)

TEMPLATE = Path(__file__).with_name("explorer.html.jinja")
EXTRA = "explore"
DEFAULT_LENGTH = 2048
"""Positions of a sequence where neither the model nor its config says how many."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """A size or rate that a figure depends on beside those of the model.

    Attributes:
        name: Of the argument.
        noun: What it counts.
        value: What the page shows first.
        integer: Whether it is an integer.
    """

    name: str
    noun: str
    value: Any
    integer: bool = True


SETTINGS = (
    Setting("batch_size", "sequences of a step", 8),
    Setting("tokens", "training tokens", 10**12),
    Setting("prompt_len", "positions of a prompt", 1024),
    Setting("new_tokens", "tokens of the answer", 256),
    Setting("mfu", "share of the peak that training reaches", 0.4, False),
    Setting("num_devices", "devices", 64),
    Setting("price", "price of a device-hour", 2.0, False),
    Setting("peak", "FLOP/s of a device", 989.4e12, False),
    Setting("bandwidth", "bytes/s of its memory", 3.35e12, False),
    Setting("dtype", "bytes of an activation", 2, False),
    Setting("weights", "bytes of a weight", 2, False),
    Setting("cache", "bytes of a cached number", 2, False),
)
"""What figures depend on beside a model."""


@dataclasses.dataclass(frozen=True)
class Covered:
    """A figure of a convention that covers a model where some sizes are equal.

    Attributes:
        equal: The pairs of sizes.
        then: The figure where all pairs are equal.
        otherwise: What stands in its place elsewhere.
    """

    equal: tuple[tuple[Size, Size], ...]
    then: Any
    otherwise: Any


def _totals(count: Count) -> dict[str, Any]:
    return {
        name: totals_or_not_covered(part)
        for name, part in (
            ("whole", count),
            ("self_part", count.self_part),
            ("cross_part", count.cross_part),
        )
    }


def _terms(count: Count) -> list[dict[str, Any]]:
    return [
        {name: record[name] for name in ("part", "layer", "term", "forward", "backward", "source")}
        for record in count.records()
    ]


def _step(model: Architecture, at: dict[str, Any]) -> dict[str, Any]:
    """Training, at both levels."""
    by_level: dict[str, Any] = {}
    for level in LEVELS:
        count = model.flops(level, batch_size=at["batch_size"])
        work = count.elementwise
        assert work is not None
        recompute = {
            flavour: model.flops(
                level, batch_size=at["batch_size"], checkpointing=flavour
            ).recompute
            for flavour in CHECKPOINTING
        }
        by_level[level] = {
            **_totals(count),
            "terms": _terms(count),
            "recompute": recompute,
            "elementwise": work.total,
        }
    return by_level


def _parameters(model: Architecture, at: dict[str, Any]) -> dict[str, Any]:
    return model.params().to_dict()


def _conventions(model: Architecture, at: dict[str, Any]) -> dict[str, Any]:
    """What each published convention counts of a step."""
    inputs = model.convention_inputs(Pass(1, model.length))
    by_convention = {}
    for name, convention in CONVENTIONS.items():
        count = model.flops(convention=name, batch_size=at["batch_size"])
        totals = _totals(count)
        undecided = tuple(
            (left, right)
            for feature, left, right in inputs.held_apart
            if convention.knows is not None
            and feature not in convention.knows
            and is_symbolic(left - right)
            and left != right
        )
        if "self" not in count.not_covered and undecided:
            totals = {
                part: value if part == "cross_part" else Covered(undecided, value, "not covered")
                for part, value in totals.items()
            }
        by_convention[name] = {**totals, "source": convention.source}
    return by_convention


def _run(model: Architecture, at: dict[str, Any]) -> dict[str, Any]:
    """A training run over some tokens: as long as its model FLOPs take at a utilisation."""
    count = model.flops(batch_size=at["batch_size"])
    flops = exact_ratio(multiply(count.total, at["tokens"]), count.tokens)
    rate = at["peak"] * at["mfu"] * at["num_devices"]
    seconds = flops / rate
    return {
        "flops": flops,
        "seconds": seconds,
        "tokens_per_second": rate / count.per_token,
        "cost": seconds / 3600 * at["num_devices"] * at["price"],
    }


def _answer(model: Architecture, at: dict[str, Any]) -> dict[str, Any]:
    """A prompt and its answer."""
    options = {"batch_size": at["batch_size"]}
    whole = model.generate(at["prompt_len"], at["new_tokens"], **options)
    return {
        "total": whole.total,
        "prefill": model.prefill(at["prompt_len"], **options).total,
        "terms": _terms(whole),
    }


def _roofline(model: Architecture, at: dict[str, Any]) -> dict[str, Any]:
    """One step of decoding behind the prompt."""
    widths = {name: at[name] for name in ("dtype", "weights", "cache")}
    terms = bounds(
        model,
        cached=at["prompt_len"],
        positions=1,
        batch_size=at["batch_size"],
        widths=widths,
        mla=None,
        peak=at["peak"],
        bandwidth=at["bandwidth"],
    )
    kept = model.cache(at["prompt_len"] + 1, batch_size=at["batch_size"]).elements
    return {
        "terms": [
            {
                "layer": term.layer,
                "term": term.term,
                "flops": term.flops,
                "bytes": term.bytes,
                "computing": term.computing,
                "moving": term.moving,
                "seconds": term.seconds,
            }
            for term in terms
        ],
        "weight_bytes": model.params().total * at["weights"],
        "cache_bytes": kept * at["cache"],
    }


FIGURES: dict[str, Callable[[Architecture, dict[str, Any]], dict[str, Any]]] = {
    "step": _step,
    "parameters": _parameters,
    "conventions": _conventions,
    "run": _run,
    "answer": _answer,
    "roofline": _roofline,
}
"""What a page shows, by section: of numbers, or of symbols."""


def figures(section: str, model: Architecture, at: dict[str, Any]) -> dict[str, Any]:
    """A section's figures as plain data.

    Args:
        section: A key of :data:`FIGURES`.
        model: The model, of ints or of symbols.
        at: A value for each of :data:`SETTINGS`.

    Raises:
        ValueError: If the sizes contradict each other.
    """
    return FIGURES[section](model, at)


@functools.cache
def printers() -> tuple[Any, Any]:
    """SymPy's printers to JavaScript: of exact integers as BigInt, and of real numbers.

    A whole expression becomes one fraction of expressions in integers, so that every division
    that is left is between integers: a floor, a ceiling, or the last one. What has no meaning
    among integers is an error, never a guess.

    Raises:
        ImportError: If SymPy is not installed.

    >>> import sympy
    >>> n = sympy.Symbol("n", integer=True, positive=True)
    >>> exact, real = printers()
    >>> exact.doprint(n * (n + 1) / 2), exact.doprint(sympy.ceiling(n / 4))
    ('ratio(n*(n + 1n), 2n)', 'ceilDivide(n, 4n)')
    >>> real.doprint(sympy.Max(n / 2, 3.5))
    'Math.max(3.5, (1/2)*n)'
    """
    extras.load("sympy", EXTRA)
    from sympy import Max, Min, ceiling, floor, fraction, together
    from sympy.printing.jscode import JavascriptCodePrinter
    from sympy.printing.precedence import precedence

    DIVISIONS = {floor: "floorDivide", ceiling: "ceilDivide"}
    CHOICES = {Min: "minimum({}, {})", Max: "maximum({}, {})"}

    def divides(expr: Any) -> bool:
        """Whether there is a division outside of functions."""
        if expr.is_Rational:
            return not expr.is_Integer
        if expr.is_Pow and expr.exp.could_extract_minus_sign():
            return True
        return (expr.is_Add or expr.is_Mul or expr.is_Pow) and any(map(divides, expr.args))

    class ExactPrinter(JavascriptCodePrinter):  # type: ignore[misc]
        def doprint(self, expr: Any, assign_to: Any = None) -> str:
            return self.divided("ratio", expr)

        def divided(self, division: str, expr: Any) -> str:
            above, below = fraction(together(expr)) if divides(expr) else (expr, 1)
            if below == 1:
                return self._print(above)
            return f"{division}({self._print(above)}, {self._print(below)})"

        def _print(self, expr: Any, **options: Any) -> str:
            if expr.is_Integer:
                return f"{int(expr)}n"
            if (expr.is_Symbol and expr.is_integer) or expr.is_Add or expr.is_Mul:
                return str(super()._print(expr, **options))
            if expr.is_Pow and expr.exp.is_Integer and expr.exp > 1:
                base = self.parenthesize(expr.base, precedence(expr))
                return f"({base}**{self._print(expr.exp)})"
            if expr.func in DIVISIONS:
                return self.divided(DIVISIONS[expr.func], expr.args[0])
            if expr.func in CHOICES and all(side.is_integer for side in expr.args):
                first, *others = map(self._print, expr.args)
                return functools.reduce(CHOICES[expr.func].format, others, first)
            raise ValueError(
                f"expression = {quoted(expr)}: expected one of integers, with + - * / **, floor, "
                "ceiling, Min and Max, to print it as JavaScript"
            )

    return ExactPrinter(), JavascriptCodePrinter({"strict": True})


@dataclasses.dataclass
class Script:
    """Expressions as JavaScript, each once.

    Attributes:
        exact: Of integers.
        real: Of real numbers.
    """

    exact: dict[str, int] = dataclasses.field(default_factory=dict)
    real: dict[str, int] = dataclasses.field(default_factory=dict)

    def number(self, value: Any) -> dict[str, int]:
        """Where the page finds an expression's value."""
        exact, real = printers()
        if all(symbol.is_integer for symbol in value.free_symbols):
            kind, known, code = "exact", self.exact, exact.doprint(value)
        else:
            kind, known, code = "real", self.real, real.doprint(value)
        return {kind: known.setdefault(code, len(known))}

    def tree(self, value: Any) -> Any:
        """Plain data with every expression in it replaced by where its value is found."""
        if is_symbolic(value):
            return self.number(value)
        if isinstance(value, Covered):
            pairs = [[self.tree(side) for side in pair] for pair in value.equal]
            return {"equal": pairs, "then": self.tree(value.then), "otherwise": value.otherwise}
        if isinstance(value, dict):
            return {name: self.tree(entry) for name, entry in value.items()}
        if isinstance(value, list | tuple):
            return [self.tree(entry) for entry in value]
        if type(value) is int:
            # A number that does not depend on a size is exact, too.
            return {"exact": self.exact.setdefault(f"{value}n", len(self.exact))}
        return value

    def check(self, noted: Assumption) -> dict[str, Any]:
        """What the page has to see hold before it shows a figure."""
        return dataclasses.asdict(noted) | {
            "value": self.tree(noted.value),
            "other": self.tree(noted.other),
        }


def _replaced(model: Any, **sizes: Any) -> Architecture:
    """The model with other sizes, checked anew."""
    replaced: Architecture = dataclasses.replace(model, **sizes)
    return replaced


def on_sliders(model: Architecture) -> tuple[Architecture, list[dict[str, Any]]]:
    """A model with a symbol for every size that a page has a slider for, and these sliders."""
    sympy = extras.load("sympy", EXTRA)
    for name, value in model.arguments().items():
        if is_array(value) or is_symbolic(value):
            raise TypeError(f"{name} = {quoted(value)}: expected one number, to begin with")
    kept: Any = getattr(model, "_kept", None)
    if getattr(model, "prefix_dropout", 0) and kept:
        # How many are kept is an integer; the probability that gives it is none.
        model = _replaced(model, prefix_dropout=0.0, num_kept=kept)
    sliders = []
    symbols = {}
    for name, kind in model.lettered().items():
        value = getattr(model, name)
        if value is None:
            longest = model._longest()
            value = DEFAULT_LENGTH if longest is None else min(DEFAULT_LENGTH, longest[1])
        if not value:
            continue
        # Of fewer layers than their pattern has, some kinds of layers would be missing.
        least = model.period() if name == "num_layers" and hasattr(model, "period") else 1
        symbols[name] = sympy.Symbol(kind.letter, integer=True, positive=True)
        sliders.append(
            {
                "name": name,
                "letter": kind.letter,
                "noun": kind.noun,
                "value": value,
                "minimum": max(least, kind.minimum, 1),
            }
        )
    return _replaced(model, **symbols), sliders


def explore(model: Architecture) -> str:
    """A page with sliders for the model's sizes: one HTML file that needs nothing else.

    It shows a training step term by term, what published conventions make of it, a training run's
    time and cost, a prompt and its answer, and the roofline of decoding. The browser computes all
    of it from this package's formulas, printed as JavaScript; whole numbers are exact.

    Args:
        model: What is counted, of ints, such as :func:`flopcount.from_hf` reads. What has no letter
            in ``flopcount explain`` stays as it is: flags, patterns, sizes that are 0.

    Returns:
        The page's HTML.

    Raises:
        ImportError: If SymPy or Jinja2 is not installed (extra ``explore``).
        TypeError: If ``model`` is none of the architectures, or has arrays or symbols.

    >>> import flopcount as fc
    >>> gpt2 = fc.Decoder(vocab_size=50257, seq_len=1024, num_channels=768, num_layers=12,
    ...                   num_heads=12)
    >>> page = fc.explore(gpt2)
    >>> page.startswith("<!doctype html>"), "http-equiv" in page, "src=" in page
    (True, False, False)

    """
    if not isinstance(model, Architecture):
        raise TypeError(f"model = {quoted(model)}: expected a model that flopcount counts")
    sympy, jinja2 = extras.load("sympy", EXTRA), extras.load("jinja2", EXTRA)
    symbolic, sliders = on_sliders(model)
    at = {
        setting.name: sympy.Symbol(setting.name, positive=True, integer=setting.integer or None)
        for setting in SETTINGS
    }
    script = Script()
    sections: dict[str, Any] = {}
    with assumptions() as always:
        _replaced(symbolic)
    for section in FIGURES:
        with assumptions() as noted:
            try:
                shown = figures(section, symbolic, at)
            except ValueError as error:  # such as an encoder, which answers no prompt
                sections[section] = {"problem": str(error)}
                continue
        checks = [*always, *(entry for entry in noted if entry not in always)]
        sections[section] = {
            "figures": script.tree(shown),
            "checks": [script.check(entry) for entry in checks],
        }
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    data = {
        "title": model.title,
        "version": __version__,
        "sliders": sliders,
        "settings": [dataclasses.asdict(setting) for setting in SETTINGS],
        "sections": sections,
        "devices": [
            {
                "name": device.name,
                "peaks": {name: peak.flops_per_second for name, peak in device.peaks.items()},
                "bandwidth": device.bandwidth and device.bandwidth.bytes_per_second,
                "memory": device.memory and device.memory.size_bytes,
            }
            for device in DEVICES.values()
        ],
        "device": "h100",
        "dtype": DEFAULT_DTYPE,
        "bits": BITS,
        "model": {name: str(value) for name, value in described(model).items() if name != "config"},
    }
    exact = [*(slider["letter"] for slider in sliders)]
    exact += [setting.name for setting in SETTINGS if setting.integer]
    real = [*exact, *(setting.name for setting in SETTINGS if not setting.integer)]
    page: str = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        data=_in_script(json.dumps(data)),
        exact_names=", ".join(exact),
        real_names=", ".join(real),
        exact=[_in_script(code) for code in script.exact],
        real=[_in_script(code) for code in script.real],
        title=model.title,
        version=__version__,
    )
    return page


def _in_script(text: str) -> Any:
    """Text that stands in a script as it is, and cannot end it."""
    from markupsafe import Markup

    return Markup(text.replace("</", "<\\/").replace("<!--", "<\\!--"))
