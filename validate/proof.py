"""Proof for every size: the counter's formulas on symbols, minus the symbolic trace, are 0.

``python -m validate.proof --write`` lists anew what the traces assume, in ``assumptions.json``.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import sympy
import tyro

from flopcount.architectures import ARCHITECTURES, Architecture
from validate.witnesses.networks import Term, term_of
from validate.witnesses.symbolic_trace import (
    DESCRIBED,
    SIZES,
    NotAProofError,
    Trace,
    check_assumptions,
    trace,
)

ASSUMPTIONS = Path(__file__).with_name("assumptions.json")
LAYERS = (1, 2, 3, 4)


@dataclasses.dataclass(frozen=True)
class Step:
    """A kind of step that is proved.

    Attributes:
        architecture: A name that :data:`~flopcount.architectures.ARCHITECTURES` has.
        training: Forward and backward, or forward alone.
        checkpointing: ``None``, ``"reentrant"`` or ``"non-reentrant"``.
    """

    architecture: str
    training: bool
    checkpointing: str | None

    @property
    def name(self) -> str:
        """As the list of assumptions names it."""
        mode = "training" if self.training else "evaluation"
        return " ".join(filter(None, (self.architecture, mode, self.checkpointing)))

    def sizes(self) -> frozenset[str]:
        """The sizes that its FLOPs and parameters depend on."""
        sizes = set(DESCRIBED[self.architecture].hints)
        if not self.training:
            sizes -= {"K"}
        return frozenset(sizes)


STEPS = tuple(
    Step(architecture, training, checkpointing)
    for architecture in ARCHITECTURES
    for training, checkpointing in (
        (True, None),
        (False, None),
        (True, "reentrant"),
        (True, "non-reentrant"),
    )
)


@dataclasses.dataclass(frozen=True)
class Proof:
    """What was found for one kind of step.

    Attributes:
        step: The kind of step.
        rows: Products compared, over all numbers of layers.
        differences: What does not expand to 0, by name; a proof has none.
        assumptions: Guards and ranges by number of layers.
    """

    step: Step
    rows: int
    differences: dict[str, str]
    assumptions: dict[str, Any]


def symbolic(step: Step, num_layers: Any) -> Architecture:
    """The counter's model on the trace's symbols."""
    described = ARCHITECTURES[step.architecture]
    arguments = DESCRIBED[step.architecture].arguments(SIZES)
    # Some networks are told the head dim beside d = H·C, where the counter divides.
    own = {name: size for name, size in arguments.items() if name in described.kinds()}
    return described(**own, num_layers=num_layers)


def rows_by_term(count: Any) -> dict[tuple[Term, str], tuple[int, Any]]:
    """How many products a term has in a phase, and the FLOPs of one, self and cross part added."""
    once: collections.Counter[Term] = collections.Counter()
    times: dict[tuple[Term, str], int] = {}
    for entry in count.terms:
        term = (entry.layer, entry.term)
        once[term] += entry.forward
        # Self and cross part of a term are executed as one product.
        times |= {(term, phase): number for phase, number in entry.products().items()}
    return {key: (number, once[key[0]]) for key, number in times.items()}


def compare_rows(model: Architecture, count: Any, evidence: Trace) -> dict[str, str]:
    """Every traced product against its term, and every term against its products.

    The L - 1 self-attention layers of a term are equal: each module's product is to be the term's
    FLOPs over the number of modules, and each module is to have the term's number of products.
    """
    modules: dict[tuple[Term, str], collections.Counter[str]] = collections.defaultdict(
        collections.Counter
    )
    for row in evidence.rows:
        modules[term_of(row.module, model), row.phase][row.module] += 1
    expected = rows_by_term(count)
    differences = {}
    for key in set(expected) | set(modules):
        number, flops = expected.get(key, (0, sympy.S(0)))
        seen = modules.get(key, collections.Counter())
        # The term of a layer that occurs 0 times (L = 1) has no module.
        wrong = sympy.expand(flops) != 0 if not seen else set(seen.values()) != {number}
        if wrong:
            differences[f"{key}: products"] = f"counter {number}, trace {dict(seen)}"
    for row in evidence.rows:
        key = (term_of(row.module, model), row.phase)
        if key in expected:
            missed = sympy.expand(expected[key][1] - len(modules[key]) * row.flops)
            if missed != 0:
                differences[f"{row.module}, {row.phase}"] = str(missed)
    return differences


def prove(step: Step, layers: tuple[int, ...] = LAYERS) -> Proof:
    """Trace a kind of step at fixed numbers of layers, and compare row by row and in total.

    L is a number in each trace, since layers are modules; every further layer is one more module
    equal to the last, and the counter's formula, linear in L, agrees at each number tried.
    """
    differences: dict[str, str] = {}
    assumptions: dict[str, Any] = {}
    rows = 0
    L = sympy.Symbol("L", integer=True, positive=True)

    def count(model: Architecture) -> Any:
        return model.flops(
            "dense",
            training=step.training,
            batch_size=SIZES["B"],
            checkpointing=step.checkpointing,
        )

    in_layers = count(symbolic(step, L))
    if sympy.expand(sympy.diff(in_layers.with_recompute, L, 2)) != 0:
        differences["L"] = "the counter's total is not linear in L"
    for num_layers in layers:
        model = symbolic(step, num_layers)
        counted = count(model)
        evidence = trace(
            step.architecture,
            num_layers,
            training=step.training,
            checkpointing=step.checkpointing,
        )
        rows += len(evidence.rows)
        assumptions[str(num_layers)] = {"guards": list(evidence.guards), "ranges": evidence.ranges}
        listed = listed_assumptions().get(step.name, {}).get(str(num_layers))
        try:
            check_assumptions(evidence, step.sizes(), listed or {"guards": [], "ranges": {}})
        except NotAProofError as error:
            differences[f"assumptions, L = {num_layers}"] = str(error)
        for name, missed in compare_rows(model, counted, evidence).items():
            differences[f"{name}, L = {num_layers}"] = missed
        totals = {
            "forward": counted.forward,
            "backward": counted.backward,
            "recompute": counted.recompute,
            "forward, from the formula in L": in_layers.forward.subs(L, num_layers),
        }
        for name, formula in totals.items():
            missed = sympy.expand(formula - evidence.total(name.split(",")[0]))
            if missed != 0:
                differences[f"{name}, L = {num_layers}"] = str(missed)
        missed = sympy.expand(model.params().total - evidence.parameters)
        if missed != 0:
            differences[f"parameters, L = {num_layers}"] = str(missed)
    return Proof(step, rows, differences, assumptions)


def listed_assumptions() -> dict[str, Any]:
    """The committed list of what each trace assumes of the sizes."""
    listed: dict[str, Any] = (
        json.loads(ASSUMPTIONS.read_text(encoding="utf-8")) if ASSUMPTIONS.exists() else {}
    )
    return listed


def main(write: bool = False) -> int:
    """Prove every kind of step; 1 if anything differs.

    Args:
        write: List anew what the traces assume.
    """
    proofs = [prove(step) for step in STEPS]
    if write:
        listed = {proof.step.name: proof.assumptions for proof in proofs}
        ASSUMPTIONS.write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
    for proof in proofs:
        print(f"{proof.step.name}: {proof.rows} products, {len(proof.differences)} differences")
        for name, missed in proof.differences.items():
            print(f"  {name}: {missed}")
    return 1 if any(proof.differences for proof in proofs) else 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
