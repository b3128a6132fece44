"""Whether a wrong formula would be noticed: ``python -m validate.mutation``.

Every formula of the counter is changed, one small change at a time
(:mod:`validate.mutation.mutants`), and the witnesses judge each mutant: first what they saw of the
real networks, traced once and kept; then the tests' known numbers, published or derived by hand. A
mutant that neither tells from the counter survives. Survivors that equal the counter wherever it
can be asked are listed, with the reason, in ``equivalent_mutants.json``; an entry that is no
survivor any more fails like a survivor that is no entry.

General tools (mutmut, cosmic-ray) run a test command per mutant and change no term of a tuple; here
a mutant is judged in milliseconds, against rows that were traced before.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import itertools
import json as json_format
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import flopcount as fc
from flopcount.tables import table
from validate import matrix
from validate.mutation.mutants import Mutant, Target, mutants_of
from validate.witnesses import (
    elementwise_trace,
    fvcore_trace,
    kernel_tally,
    mask_enumeration,
    networks,
    torch_counter,
)

ROOT = Path(__file__).parents[2]
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.json")

ROWS, DOTS, KNOWN_NUMBERS = "kept rows", "kept dots", "known numbers"


@dataclasses.dataclass(frozen=True)
class Formulas:
    """Formulas to change, and who has to notice.

    Attributes:
        target: The formulas.
        judges: In the order in which they are asked.
    """

    target: Target
    judges: tuple[str, ...] = (ROWS, KNOWN_NUMBERS)


FORMULAS = (
    Formulas(Target("flopcount.masks"), (ROWS, DOTS, KNOWN_NUMBERS)),
    Formulas(Target("flopcount.operations")),
    Formulas(Target("flopcount.blocks")),
    Formulas(Target("flopcount.experts"), (KNOWN_NUMBERS,)),
    Formulas(Target("flopcount.latent"), (KNOWN_NUMBERS,)),
    Formulas(
        Target("flopcount.mixture_lm", leaving_out=("MixtureLM.described",)), (KNOWN_NUMBERS,)
    ),
    Formulas(Target("flopcount.recurrent"), (KNOWN_NUMBERS,)),
    Formulas(Target("flopcount.hybrid_lm"), (KNOWN_NUMBERS,)),
    Formulas(Target("flopcount.inference"), (KNOWN_NUMBERS,)),
    Formulas(Target("flopcount.finetuning", leaving_out=("FineTuning.__str__",)), (KNOWN_NUMBERS,)),
    Formulas(Target("flopcount.packing"), (KNOWN_NUMBERS,)),
    Formulas(Target("flopcount.rooflines"), (KNOWN_NUMBERS,)),
    Formulas(
        Target("flopcount.parallel", leaving_out=("Parallel.__post_init__",)), (KNOWN_NUMBERS,)
    ),
    Formulas(
        Target("flopcount.distributed", leaving_out=("require_", "PerDevice._")),
        (KNOWN_NUMBERS,),
    ),
    Formulas(
        Target(
            "flopcount.encoder_lm",
            leaving_out=("EncoderLM.described", "EncoderDecoderLM.described"),
        ),
        (KNOWN_NUMBERS,),
    ),
    # What the fields are is read once, before anything is changed.
    Formulas(Target("flopcount.architectures", leaving_out=("Architecture.kinds",))),
    Formulas(
        Target(
            "flopcount.causal_lm",
            leaving_out=(
                "LanguageModel.described",
                "LanguageModel.__str__",
                "CausalLM.described",
                "runs",
            ),
        ),
        (KNOWN_NUMBERS,),
    ),
    # Types, which stand beside the formulas.
    Formulas(Target("flopcount.rows", leaving_out=("Part", "AnyRow", "Operand"))),
    Formulas(Target("flopcount.count")),
    Formulas(Target("flopcount.executed"), (DOTS, KNOWN_NUMBERS)),
    Formulas(Target("flopcount.conventions"), (KNOWN_NUMBERS,)),
    Formulas(Target("flopcount.inputs"), (KNOWN_NUMBERS,)),
    # What judges arguments is no formula: tests/flopcount/test_fields.py and the fuzzing hold it.
    Formulas(
        Target("flopcount.sizes", leaving_out=("require_", "_require_", "_as_", "is_", "quoted"))
    ),
)
"""What is changed. A further module is held by ``matrix``, or by :data:`KNOWN_NUMBER_TESTS`."""

KNOWN_NUMBER_TESTS = (
    "tests/flopcount/test_conventions.py",
    "tests/flopcount/test_codes.py",
    "tests/flopcount/test_inputs.py",
    "tests/flopcount/test_masks.py",
    "tests/flopcount/test_elementwise.py",
    "tests/flopcount/test_counter.py",
    "tests/flopcount/test_sizes.py",
    "tests/flopcount/test_exact_numbers.py",
    "tests/flopcount/test_article.py",
    "tests/flopcount/test_errors.py",
    "tests/flopcount/test_executed.py",
    "tests/flopcount/test_utilisation.py",
    "tests/flopcount/test_llama.py",
    "tests/flopcount/test_blocks.py",
    "tests/flopcount/test_experts.py",
    "tests/flopcount/test_mixture_lm.py",
    "tests/flopcount/test_recurrent.py",
    "tests/flopcount/test_hybrid_lm.py",
    "tests/flopcount/test_encoders.py",
    "tests/flopcount/test_active.py",
    "tests/flopcount/test_causal_lm.py",
    "tests/flopcount/test_printed.py",
    "tests/flopcount/test_inference.py",
    "tests/flopcount/test_finetuning.py",
    "tests/flopcount/test_packing.py",
    "tests/flopcount/test_rooflines.py",
    "tests/flopcount/test_per_device.py",
)
"""Tests whose numbers are published or derived by hand; those with fixtures are left out."""

MODELS = (
    fc.PerceiverAR(
        vocab_size=11, num_latents=5, num_prefix=7, num_channels=6, num_layers=3, num_heads=2,
        prefix_dropout=0.5, widening_factor=3,
    ),
    fc.Decoder(vocab_size=11, seq_len=5, num_channels=6, num_layers=3, num_heads=2),
    fc.PerceiverAR(
        vocab_size=3, num_latents=4, num_prefix=5, num_channels=15, num_layers=1, num_heads=3,
        num_kept=2,
    ),
    fc.Decoder(
        vocab_size=7, seq_len=3, num_channels=10, num_layers=2, num_heads=2, widening_factor=5,
        bias=False, tie_embeddings=False,
    ),
    fc.Llama(
        vocab_size=5, seq_len=7, num_channels=9, num_layers=2, num_heads=6, intermediate_size=11,
        num_key_value_heads=2, head_dim=4, window=3,
    ),
    fc.Llama(
        vocab_size=7, seq_len=4, num_channels=12, num_layers=3, num_heads=3, intermediate_size=10,
        tie_embeddings=True,
    ),
    fc.Decoder(vocab_size=6, seq_len=3, num_channels=4, num_layers=1, num_heads=1, num_positions=5),
    fc.PerceiverAR(
        vocab_size=2, num_latents=6, num_prefix=0, num_channels=8, num_layers=2, num_heads=1
    ),
    fc.PerceiverAR(
        vocab_size=5, num_latents=1, num_prefix=10, num_channels=4, num_layers=2, num_heads=4,
        prefix_dropout=0.9, widening_factor=1,
    ),
)  # fmt: skip
"""What the witnesses trace once; sizes that no exchange of two leaves a count unchanged."""

WITNESSES = (
    (fvcore_trace, "forward_modules"),
    (torch_counter, "totals"),
    (mask_enumeration, "attention_terms"),
    (elementwise_trace, "operations"),
    (networks, "num_parameters"),
    (kernel_tally, "issued"),
)
"""The functions that run the real networks; their results are kept."""

Check = Callable[[], object]
"""Raises where the counter differs from a witness."""


STANDALONE: tuple[matrix.Standalone, ...] = ()
"""Standalone checks that judge too; what runs their witness belongs to :data:`WITNESSES`."""


def _rows() -> list[Check]:
    """The checks of the matrix, each on each model, and the standalone ones on a quick run's."""

    def agree(check: matrix.Check, model: Any) -> None:
        wrong = {name: missed for name, missed in check.compare(model).items() if missed}
        if wrong:
            raise matrix.DisagreementError(str(wrong))

    def hold(check: matrix.Standalone) -> None:
        verdict = matrix.run_standalone(check, quick=True)
        if not verdict.holds:
            raise matrix.DisagreementError(verdict.finding)

    return [
        *(functools.partial(agree, check, model) for model in MODELS for check in matrix.CHECKS),
        *(functools.partial(hold, check) for check in STANDALONE),
    ]


def _dots() -> list[Check]:
    """The executed formula on attention layers that the kernels have run."""

    def agree(shape: kernel_tally.AttentionShape) -> None:
        ((_, missed),) = kernel_tally.differences((shape,))
        if any(missed.values()):
            raise matrix.DisagreementError(str(missed))

    return [functools.partial(agree, shape) for shape in kernel_tally.SHAPES[:4]]


class _Collected:
    """Takes the plain tests that pytest collects: no fixtures, nothing drawn."""

    def __init__(self) -> None:
        self.checks: list[Check] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            if isinstance(item, pytest.Function) and not hasattr(item.obj, "hypothesis"):
                parameters = item.callspec.params if hasattr(item, "callspec") else {}
                if set(item.fixturenames) <= set(parameters):
                    self.checks.append(functools.partial(item.obj, **parameters))


def checks_in(paths: Iterable[str]) -> list[Check]:
    """The tests of some files as checks; those with fixtures and drawn values are left out.

    Args:
        paths: Of the files, from the root of the checkout.

    Raises:
        ValueError: If there are none, or pytest cannot collect them.
    """
    collected, paths = _Collected(), tuple(paths)
    options = ["--collect-only", "-p", "no:terminal", "-p", "no:xdist", f"--rootdir={ROOT}"]
    status = pytest.main([*options, *(str(ROOT / path) for path in paths)], [collected])
    if status != pytest.ExitCode.OK or not collected.checks:
        raise ValueError(f"{', '.join(paths)}: expected tests that pytest can collect")
    return collected.checks


JUDGES: dict[str, Callable[[], list[Check]]] = {
    ROWS: _rows,
    DOTS: _dots,
    KNOWN_NUMBERS: lambda: checks_in(KNOWN_NUMBER_TESTS),
}


LONGEST = 60.0
"""Seconds of processor time after which a check is taken to have no end."""


@contextlib.contextmanager
def ending(seconds: float) -> Iterator[None]:
    """Raise in code that computes for longer, in a main thread where the system has that clock.

    Raises:
        TimeoutError: In the code, when its time is over.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or not hasattr(signal, "ITIMER_PROF"):
        yield
        return

    def late(*_: object) -> None:
        raise TimeoutError(f"no end after {seconds} s")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


class Judges:
    """Asks the witnesses; the check that found the last mutant is asked first."""

    def __init__(self, names: Iterable[str] = tuple(JUDGES)) -> None:
        self.checks = {name: JUDGES[name]() for name in names}

    def found_by(self, names: Iterable[str]) -> str | None:
        """Which kind of witness tells the counter, as it is now, from the networks; or None."""
        for name in names:
            checks = self.checks[name]
            for index, check in enumerate(checks):
                try:
                    with ending(LONGEST):
                        check()
                # A mutant may fail in any way, or never end; whichever, it is noticed.
                except (Exception, pytest.fail.Exception):
                    checks.insert(0, checks.pop(index))
                    return name
        return None


@contextlib.contextmanager
def kept_witnesses() -> Iterator[None]:
    """Witnesses run once for each question, and answer from what they saw from then on."""
    with contextlib.ExitStack() as stack:
        for module, name in WITNESSES:
            kept = functools.cache(getattr(module, name))
            stack.enter_context(mock.patch.object(module, name, kept))
        yield


@dataclasses.dataclass
class Result:
    """What became of the mutants.

    Attributes:
        kills: By module, how many each kind of witness found.
        survivors: By module, the mutants that none found.
        seconds: How long it took.
    """

    kills: dict[str, collections.Counter[str]]
    survivors: dict[str, list[Mutant]]
    seconds: float

    def unlisted(self, equivalent: dict[str, str]) -> list[Mutant]:
        """Survivors that are not listed as equivalent."""
        survivors = (mutant for mutants in self.survivors.values() for mutant in mutants)
        return [mutant for mutant in survivors if mutant.name not in equivalent]

    def stale(self, equivalent: dict[str, str]) -> list[str]:
        """Listed as equivalent, but found or no mutant any more."""
        names = {mutant.name for mutants in self.survivors.values() for mutant in mutants}
        tried = tuple(f"{module}." for module in self.kills)
        return [name for name in equivalent if name.startswith(tried) and name not in names]

    def to_dict(self, equivalent: dict[str, str]) -> dict[str, Any]:
        """Per module: mutants, how many each kind of witness found, equivalent ones, survivors."""
        modules = {}
        for module, kills in self.kills.items():
            survivors = [mutant.name for mutant in self.survivors[module]]
            modules[module] = {
                "mutants": sum(kills.values()) + len(survivors),
                "found": {judge: kills[judge] for judge in JUDGES if kills[judge]},
                "equivalent": sum(name in equivalent for name in survivors),
                "survivors": [name for name in survivors if name not in equivalent],
            }
        return modules


def equivalent_mutants() -> dict[str, str]:
    """The committed list of equivalent mutants, with the reason of each."""
    by_reason: dict[str, list[str]] = json_format.loads(EQUIVALENT.read_text(encoding="utf-8"))
    return {name: reason for reason, names in by_reason.items() for name in names}


def run(
    formulas: Iterable[Formulas] = FORMULAS, judges: Judges | None = None, step: int = 1
) -> Result:
    """Judge the mutants, as :func:`each` does, and put the results together."""
    result = Result({}, {}, 0.0)
    for of_module in each(formulas, judges, step):
        result.kills |= of_module.kills
        result.survivors |= of_module.survivors
        result.seconds += of_module.seconds
    return result


def each(
    formulas: Iterable[Formulas] = FORMULAS, judges: Judges | None = None, step: int = 1
) -> Iterator[Result]:
    """Judge the mutants, one module after the other.

    Args:
        formulas: What to change.
        judges: Who judges; every kind of witness unless given.
        step: Of each module, every one that many mutants on; all of them unless given.

    Yields:
        The result of each module.

    Raises:
        ValueError: If a witness disagrees with the counter as it stands.
    """
    start = time.monotonic()
    formulas = tuple(formulas)
    with kept_witnesses(), warnings.catch_warnings(action="ignore"):
        asked = judges or Judges({name: None for entry in formulas for name in entry.judges})
        wrong = asked.found_by(asked.checks)
        if wrong:
            raise ValueError(f"{wrong}: expected agreement with the counter before it is changed")
        for entry in formulas:
            kills: collections.Counter[str] = collections.Counter()
            survivors = []
            for mutant in itertools.islice(mutants_of(entry.target), 0, None, step):
                with mutant.applied():
                    judge = asked.found_by(name for name in entry.judges if name in asked.checks)
                if judge is None:
                    survivors.append(mutant)
                else:
                    kills[judge] += 1
            module, now = entry.target.module, time.monotonic()
            yield Result({module: kills}, {module: survivors}, now - start)
            start = now


def formulas_of(modules: Iterable[str] = ()) -> list[Formulas]:
    """The formulas of some modules, or all.

    Raises:
        ValueError: If a module is none of :data:`FORMULAS`.
    """
    known = {entry.target.module: entry for entry in FORMULAS}
    wanted = list(modules) or list(known)
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        raise ValueError(f"modules = {unknown}: expected some of {', '.join(known)}")
    return [known[name] for name in wanted]


def as_table(result: Result, equivalent: dict[str, str]) -> str:
    """The result as text."""
    cells = [
        [
            module,
            entry["mutants"],
            *(entry["found"].get(judge, 0) for judge in JUDGES),
            entry["equivalent"],
            len(entry["survivors"]),
        ]
        for module, entry in result.to_dict(equivalent).items()
    ]
    headings = ["module", "mutants", *(f"found by {judge}" for judge in JUDGES)]
    return table([*headings, "equivalent", "survivors"], cells)


def main(modules: tuple[str, ...] = (), json: bool = False) -> int:
    """Change every formula, and report which changes no witness notices.

    Args:
        modules: Only these, for example ``flopcount.layers``.
        json: Print JSON.

    Returns:
        The exit status: 1 if a mutant survives that is not listed as equivalent, or if an entry of
        the list is stale.
    """
    result = run(formulas_of(modules))
    equivalent = equivalent_mutants()
    survivors, stale = result.unlisted(equivalent), result.stale(equivalent)
    if json:
        print(json_format.dumps(result.to_dict(equivalent), indent=2))
    else:
        print(as_table(result, equivalent))
        print(f"{result.seconds:.0f} s")
        for mutant in survivors:
            print(f"SURVIVES {mutant.name}, line {mutant.line}")
        for name in stale:
            print(f"STALE in {EQUIVALENT.name}: {name}")
    return 1 if survivors or stale else 0
