"""The matrix formula × witness: every formula of the counter, and who confirms it.

The counter's numbers are read here, and in :mod:`validate.witnesses.hugging_face.families`, and
nowhere else in the witnesses; each comparison joins them with what a witness saw, by term, and a
disagreement names its term and its configuration.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, given, settings

from flopcount import testing
from flopcount.tables import shown, table
from kernels.attention.flops import backward_flops, forward_flops
from validate import proof
from validate.emulator import cases as emulator_cases
from validate.emulator import drawn as emulator_drawn
from validate.emulator import shipped as emulator_shipped
from validate.witnesses import (
    compiled_code,
    configurations,
    device_trace,
    elementwise_trace,
    finetuning,
    fused,
    fvcore_trace,
    generation,
    kernel_tally,
    mask_enumeration,
    networks,
    torch_counter,
)
from validate.witnesses.hugging_face import families, further_predictions
from validate.witnesses.networks import Term

if TYPE_CHECKING:
    from flopcount.architectures import Architecture
    from flopcount.count import Count

BATCH_SIZE = 2
Differences = dict[str, int]
"""Formula minus witness, by what was compared."""


@dataclasses.dataclass(frozen=True)
class Check:
    """A formula and the witness that confirms it.

    Attributes:
        formula: What is confirmed.
        witness: Who confirms it.
        compare: Differences on one configuration.
        at_full_size: Whether the article's models are tried at full size in a quick run too.
    """

    formula: str
    witness: str
    compare: Callable[[Architecture], Differences]
    at_full_size: bool = True


@dataclasses.dataclass(frozen=True)
class Standalone:
    """A formula and a witness that are compared on cases of their own, not on drawn models.

    Attributes:
        formula: What is confirmed.
        witness: Who confirms it.
        cases: The differences on each case, by its name; of a quick run if the argument is true.
        well_known: Names of cases in a full run that a reader may look for.
    """

    formula: str
    witness: str
    cases: Callable[[bool], Iterable[tuple[str, Differences]]]
    well_known: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a check found.

    Attributes:
        formula: As in :class:`Check`.
        witness: As in :class:`Check`; empty where there is none.
        covered: For all sizes, or on how many configurations.
        largest_difference: In FLOPs or parameters; None where nothing was compared.
        finding: ``"equal"``, ``"UNVERIFIED"`` or the smallest disagreement found.
        seconds: How long it took.
    """

    formula: str
    witness: str
    covered: str
    largest_difference: int | None
    finding: str
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether formula and witness agree everywhere."""
        return self.finding == "equal"

    @property
    def unverified(self) -> bool:
        """Whether the formula has no witness."""
        return self.finding == "UNVERIFIED"


def by_term(count: Count) -> dict[Term, int]:
    """The counter's forward FLOPs by (layer, term), self and cross part together."""
    terms: collections.Counter[Term] = collections.Counter()
    for term in count.terms:
        terms[term.layer, term.term] += term.forward
    return {term: flops for term, flops in terms.items() if flops}


def difference(formula: dict[Term, int], witness: dict[Term, int]) -> Differences:
    """Formula minus witness for every term that either of them has."""
    return {
        " ".join(term): formula.get(term, 0) - witness.get(term, 0)
        for term in sorted({*formula, *witness})
    }


def fvcore_forward(model: Architecture, modes: tuple[bool, ...] = (True, False)) -> Differences:
    """Dense forward terms and total, in training, evaluation or both, against fvcore.

    A term that several equal layers carry is their sum; each module must have its equal share.
    """
    differences = {}
    for training in modes:
        count = model.flops(level="dense", training=training, batch_size=BATCH_SIZE)
        modules, total = fvcore_trace.forward_modules(
            model, training=training, batch_size=BATCH_SIZE
        )
        mode = "training" if training else "evaluation"
        formula = by_term(count)
        terms = {term: sum(seen.values()) for term, seen in modules.items()}
        for term, missed in difference(formula, terms).items():
            differences[f"{term}, {mode}"] = missed
        for term, seen in modules.items():
            for module, flops in seen.items():
                differences[f"{module}, {mode}"] = formula.get(term, 0) - len(seen) * flops
        differences[f"total, {mode}"] = count.forward - total
    return differences


def torch_totals(model: Architecture) -> Differences:
    """Dense forward and backward totals against FlopCounterMode."""
    training = model.flops(level="dense", batch_size=BATCH_SIZE)
    evaluation = model.flops(level="dense", training=False, batch_size=BATCH_SIZE)
    forward, backward = torch_counter.totals(model, batch_size=BATCH_SIZE)
    alone, nothing = torch_counter.totals(model, training=False, batch_size=BATCH_SIZE)
    return {
        "forward, training": training.forward - forward,
        "backward, training": training.backward - backward,
        "forward, evaluation": evaluation.forward - alone,
        "backward, evaluation": evaluation.backward - nothing,
    }


def torch_recomputation(model: Architecture) -> Differences:
    """The recompute column of both flavours of checkpointing against FlopCounterMode."""
    differences = {}
    for flavour in ("reentrant", "non-reentrant"):
        count = model.flops(level="dense", batch_size=BATCH_SIZE, checkpointing=flavour)
        forward, backward = torch_counter.totals(
            model, batch_size=BATCH_SIZE, checkpointing=flavour
        )
        differences[f"forward, {flavour}"] = count.forward - forward
        differences[f"backward and recompute, {flavour}"] = (
            count.backward + count.recompute - backward
        )
    return differences


def enumerated_masks(model: Architecture) -> Differences:
    """Causal scores and values against the pairs that the applied masks admit."""
    differences = {}
    for training in (True, False):
        count = model.flops(level="causal", training=training, batch_size=BATCH_SIZE)
        terms = {
            term: flops for term, flops in by_term(count).items() if term[1] in ("scores", "values")
        }
        witness = mask_enumeration.attention_terms(model, training=training, batch_size=BATCH_SIZE)
        mode = "training" if training else "evaluation"
        for term, missed in difference(terms, witness).items():
            differences[f"{term}, {mode}"] = missed
    return differences


def parameter_totals(model: Architecture) -> Differences:
    """Parameters against those of the real network, tied ones once."""
    return {"total": model.params().total - networks.num_parameters(model)}


def elements_by_kind(count: Count) -> collections.Counter[tuple[str, str]]:
    """The counter's elements by (phase, kind) as the trace sums them."""
    elements: collections.Counter[tuple[str, str]] = collections.Counter()
    for work in count.elementwise.terms if count.elementwise else ():
        forward, backward = work.forward_cost, work.backward_cost
        for phase, times, cost in (
            ("forward", 1, forward),
            ("recompute", int(work.recomputed), forward),
            ("backward", int(work.training), backward),
        ):
            # How many gradients of one input are added differs by layer: that is this row's cost.
            if work.term.endswith("input gradients"):
                times *= cost if phase == "backward" else 0
            for kind in elementwise_trace.kinds_of(work.term, phase, cost):
                if elementwise_trace.has_phase(kind, phase):
                    elements[phase, kind] += times * work.elements
    return elements


def elementwise_elements(model: Architecture) -> Differences:
    """Elements of every element-wise row, each phase, against the operations dispatched.

    An operation that belongs to no row, and that nothing says why, is a disagreement too.
    """
    differences = {}
    for training, checkpointing in (
        (True, None),
        (False, None),
        (True, "reentrant"),
        (True, "non-reentrant"),
    ):
        step = dict(training=training, batch_size=BATCH_SIZE, checkpointing=checkpointing)
        formula = elements_by_kind(model.flops(level="dense", **step))
        witness, unclaimed = elementwise_trace.claimed(elementwise_trace.operations(model, **step))
        mode = checkpointing or ("training" if training else "evaluation")
        for phase, kind in {*formula, *witness}:
            missed = formula[phase, kind] - witness.get((phase, kind), 0)
            differences[f"{kind}, {phase}, {mode}"] = missed
        for operation, elements in unclaimed.items():
            if elementwise_trace.reason(operation) is None:
                differences[f"{' '.join(operation)} of no row, {mode}"] = -elements
    return differences


def fused_totals(model: Architecture) -> Differences:
    """Dense totals, recomputation included, against both counters of the fused network.

    The kernels run no window, which changes no dense total: it is left out.
    """
    if getattr(model, "window", None) is not None:
        model = dataclasses.replace(model, window=None)  # type: ignore[type-var]
    differences = {}
    for flavour in (None, "reentrant", "non-reentrant"):
        count = model.flops(level="dense", batch_size=BATCH_SIZE, checkpointing=flavour)
        forward, backward = fused.torch_totals(
            model, training=True, batch_size=BATCH_SIZE, checkpointing=flavour
        )
        named = f"torch, checkpointing {flavour}"
        differences[f"forward, {named}"] = count.forward - forward
        differences[f"backward and recompute, {named}"] = (
            count.backward + (count.recompute or 0) - backward
        )
    for training in (True, False):
        count = model.flops(level="dense", training=training, batch_size=BATCH_SIZE)
        seen = fused.fvcore_total(model, training=training, batch_size=BATCH_SIZE)
        mode = "training" if training else "evaluation"
        differences[f"forward, fvcore, {mode}"] = count.forward - seen
    forward, _ = fused.torch_totals(model, training=False, batch_size=BATCH_SIZE)
    differences["forward, torch, evaluation"] = count.forward - forward
    return differences


def seed_models(quick: bool) -> tuple[Architecture, ...]:
    """The article's models; one of each experiment in a quick run."""
    return configurations.SEED_MODELS[:: 4 if quick else 1]


def fused_models(quick: bool) -> Iterable[tuple[str, Differences]]:
    """The fused network's totals on the article's models and on drawn ones."""
    drawn = testing.draw(testing.models(), 10 if quick else 200)
    for model in (*seed_models(quick), *drawn):
        yield str(model), fused_totals(model)


def declared_flops(quick: bool) -> Iterable[tuple[str, Differences]]:
    """The fused operators' declared FLOPs against what their specification executes."""
    for shape in testing.draw(configurations.attention_shapes(), 50 if quick else 1000):
        batch, num_latents, num_prefix, num_heads, num_key_heads, head_dim = shape
        out = (batch, num_latents, num_heads, head_dim)
        keys = (batch, num_prefix + num_latents, num_key_heads, head_dim)
        forward, backward = fused.specification(*shape)
        yield (
            f"(batch, n, k, heads, key-value heads, head dim) = {shape}",
            {
                "forward": forward_flops(out, keys, None) - forward,
                "backward": backward_flops(out, keys, None) - backward,
            },
        )


def executed_attention(quick: bool) -> Iterable[tuple[str, Differences]]:
    """Executed FLOPs of attention layers, by pass and part, against the dots that were issued."""
    drawn = testing.draw(configurations.kernel_shapes(), 5 if quick else 60)
    shipped = (*kernel_tally.SHAPES, *kernel_tally.tuned_shapes())
    shapes = (*(shipped[:4] if quick else shipped), *drawn)
    for shape, missed in kernel_tally.differences(shapes):
        yield str(shape), missed


def compiled_attention(quick: bool) -> Iterable[tuple[str, Differences]]:
    """Executed FLOPs of attention layers against the compiled kernels, which must not spill."""
    return compiled_code.differences(compiled_code.SHAPES[: 1 if quick else None], jobs=1)


def emulated_attention(quick: bool) -> Iterable[tuple[str, Differences]]:
    """Executed FLOPs, exponentials and bytes, against the assembled code's execution."""
    for case, missed in emulator_cases.differences(emulator_cases.CASES[: 1 if quick else None]):
        yield str(case), missed


def recorded_attention(quick: bool) -> Iterable[tuple[str, Differences]]:
    """The same of every shipped launch and drawn call, as executed when they were recorded."""
    yield from emulator_shipped.differences(emulator_shipped.read())
    if not quick:
        yield from emulator_drawn.differences(emulator_drawn.recorded())


CHECKS = (
    Check("dense forward, by module and in total", "fvcore", fvcore_forward),
    Check("dense forward and backward, totals", "torch FlopCounterMode", torch_totals),
    Check("recomputation, both flavours", "torch FlopCounterMode", torch_recomputation),
    Check(
        "causal scores and values",
        "enumeration of the applied masks",
        enumerated_masks,
        at_full_size=False,
    ),
    Check("parameters", "the network's parameters", parameter_totals),
    Check(
        "elements of element-wise rows, forward, backward and recomputation",
        "trace of element-wise operations",
        elementwise_elements,
    ),
)
STANDALONE = (
    Standalone(
        "declared FLOPs of the fused attention", "trace of its specification", declared_flops
    ),
    Standalone(
        "dense totals and recomputation of the fused model",
        "fvcore and torch FlopCounterMode",
        fused_models,
    ),
    Standalone(
        "executed FLOPs of attention, by pass and part",
        "dots that the kernels issue in Triton's interpreter",
        executed_attention,
    ),
    Standalone(
        "executed FLOPs of attention, all passes",
        "instructions of the code compiled for sm_90, in loops as the interpreter runs them",
        compiled_attention,
    ),
    Standalone(
        "executed FLOPs of attention; exponentials and bytes of its kernels",
        "execution of the code assembled for sm_90, without a GPU",
        emulated_attention,
    ),
    Standalone(
        "executed FLOPs, exponentials and bytes of all shipped launches and of drawn calls",
        "that execution, recorded with digests of the kernels, which are those at hand",
        recorded_attention,
    ),
    *(
        Standalone(
            families.confirmed(family),
            families.witness(family),
            functools.partial(families.cases, family),
            tuple(case.name for case in families.published(family)),
        )
        for family in families.WITNESSED
    ),
    *(
        Standalone(
            generation.confirmed(family),
            generation.witness(family),
            functools.partial(generation.cases, family),
        )
        for family in generation.FAMILIES
    ),
    *(
        Standalone(f"fine-tuning and selective recomputation of {name}", witness, cases)
        for name, witness, cases in (
            (
                f"{len(finetuning.FAMILIES)} families, with LoRA",
                "transformers' networks as autograd runs them, under torch FlopCounterMode",
                finetuning.of_families,
            ),
            (
                "our networks, with LoRA",
                "our networks as autograd runs them, under torch FlopCounterMode",
                finetuning.of_ours,
            ),
        )
    ),
    Standalone(
        f"modules that predict further tokens, of {', '.join(further_predictions.FAMILIES)}, and "
        f"given to {len(further_predictions.GENERAL)} families that have none: parameters, dense "
        "products",
        "transformers' MtpModel, under torch FlopCounterMode",
        further_predictions.cases,
    ),
    Standalone(
        "dense products of a device of many, and what it exchanges: "
        f"{', '.join(device_trace.FAMILIES)}",
        "PyTorch's tensor, sequence, pipeline and data parallelism, its other devices not there",
        device_trace.cases,
    ),
)
WITHOUT_WITNESS = (
    "per-element costs of element-wise rows, a stated convention",
    *map(families.confirmed, families.UNWITNESSED),
    *(
        f"modules that predict further tokens, of {family}"
        for family in further_predictions.UNWITNESSED
    ),
)


class DisagreementError(AssertionError):
    """A formula and a witness differ on a configuration."""


class _Tried:
    """How many cases were tried and how far they were off; stops at a disagreement."""

    def __init__(self) -> None:
        self.number = 0
        self.largest = 0

    def __call__(self, case: object, differences: Differences) -> None:
        if not differences:
            raise DisagreementError(f"nothing was compared for {case}")
        self.number += 1
        worst = max(differences, key=lambda name: abs(differences[name]))
        self.largest = max(self.largest, abs(differences[worst]))
        if differences[worst]:
            raise DisagreementError(
                f"{worst}: formula - witness = {shown(differences[worst])} for {case}"
            )


def run_standalone(check: Standalone, quick: bool = False) -> Verdict:
    """Try a check on its own cases, up to the first disagreement."""
    tried = _Tried()
    finding = "equal"
    try:
        for case, differences in check.cases(quick):
            tried(case, differences)
        if not tried.number:
            finding = "no case was compared"
    except DisagreementError as disagreement:
        finding = str(disagreement)
    covered = f"{tried.number:,} cases"
    if finding == "equal" and check.well_known and not quick:
        covered += f", among them {', '.join(check.well_known)}"
    return Verdict(check.formula, check.witness, covered, tried.largest, finding)


def run_check(check: Check, models: Iterable[Architecture], drawn: int) -> Verdict:
    """Try a check on given models, then on drawn ones, shrinking a disagreement.

    Args:
        check: What to compare.
        models: Configurations to try first.
        drawn: How many further ones hypothesis draws.
    """
    tried = _Tried()

    def try_on(model: Architecture) -> None:
        tried(model, check.compare(model))

    def try_drawn() -> None:
        @settings(
            max_examples=drawn,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(testing.models())
        def on_drawn(model: Any) -> None:
            try_on(model)

        on_drawn()

    finding = "equal"
    try:
        for model in models:
            try_on(model)
        if drawn:
            try_drawn()
    except DisagreementError as disagreement:
        finding = str(disagreement)
    return Verdict(
        check.formula, check.witness, f"{tried.number:,} configurations", tried.largest, finding
    )


def proof_names(step: proof.Step) -> tuple[str, str]:
    """Formula and witness of a kind of step that is proved."""
    return f"dense products and parameters, {step.name}", "symbolic trace, row by row"


def run_proof(step: proof.Step, layers: tuple[int, ...]) -> Verdict:
    """Prove a kind of step for all sizes; a disagreement names its product."""
    proved = proof.prove(step, layers)
    finding = "equal"
    if proved.differences:
        finding = "; ".join(f"{name}: {missed}" for name, missed in proved.differences.items())
    return Verdict(
        *proof_names(step),
        f"all sizes, L = {layers[0]} to {layers[-1]}: {proved.rows} products",
        None if proved.differences else 0,
        finding,
    )


def timed(run: Callable[[], Verdict]) -> Verdict:
    """A check's verdict, and how long it took."""
    start = time.monotonic()
    return dataclasses.replace(run(), seconds=round(time.monotonic() - start, 1))


def runs(quick: bool = False, own: Architecture | None = None) -> list[Callable[[], Verdict]]:
    """Every check, to be run.

    Args:
        quick: Fewer drawn configurations and models, fewer proofs, and no full-size masks.
        own: One configuration to check instead of the article's and drawn ones.
    """
    if own is not None:
        return [functools.partial(run_check, check, [own], drawn=0) for check in CHECKS]
    checks: list[Callable[[], Verdict]] = []
    for step in proof.STEPS:
        if not quick or (step.training and not step.checkpointing):
            layers = proof.LAYERS[:2] if quick else proof.LAYERS
            checks.append(functools.partial(run_proof, step, layers))
    for check in CHECKS:
        models = seed_models(quick) if check.at_full_size or not quick else ()
        checks.append(functools.partial(run_check, check, models, 10 if quick else 1000))
    return checks + [functools.partial(run_standalone, check, quick) for check in STANDALONE]


def unverified() -> list[Verdict]:
    """The formulas that have no witness."""
    return [Verdict(name, "", "nothing", None, "UNVERIFIED") for name in WITHOUT_WITNESS]


def verdicts(
    quick: bool = False,
    own: Architecture | None = None,
    track: Callable[[list[Callable[[], Verdict]]], Iterable[Callable[[], Verdict]]] = iter,
) -> list[Verdict]:
    """Every check's verdict, as :func:`runs` has them, then the formulas that have no witness.

    Args:
        quick: As of :func:`runs`.
        own: As of :func:`runs`.
        track: Hands on the checks one by one, such as to show how many are done.
    """
    return [*map(timed, track(runs(quick, own))), *unverified()]


def as_table(rows: list[Verdict]) -> str:
    """The matrix as text."""
    cells = [
        [v.formula, v.witness or "none", v.covered, v.largest_difference, v.finding] for v in rows
    ]
    return table(["formula", "witness", "covered", "largest difference", "finding"], cells, keys=2)
