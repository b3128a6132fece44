"""Mutants beside the formulas: laws and plans, judged by their own tests."""

import pytest

from validate.mutation.judging import Formulas, Judges, checks_in, equivalent_mutants, run
from validate.mutation.mutants import Target, mutants_of

ISOFLOP = "tests/flopcount/isoflop"
GROUPS = {
    # Published tables, and a default that is read when its class is made.
    Target(
        "flopcount.isoflop.laws", leaving_out=("CHINCHILLA_TABLE", "FLOPS_PER_PARAM_TOKEN")
    ): f"{ISOFLOP}/test_laws.py",
    # A picture.
    Target("flopcount.isoflop.plan", leaving_out=("Plan._draw",)): f"{ISOFLOP}/test_plan.py",
}
"""What is changed, and the file whose tests judge it."""
DRAWN = 50
OWN = "own tests"


@pytest.mark.parametrize("target", GROUPS, ids=lambda target: target.module)
def test_fifty_mutants_of_each_are_found(target):
    judges = Judges(())
    judges.checks = {OWN: checks_in([GROUPS[target]])}
    step = max(1, len(list(mutants_of(target))) // DRAWN)
    result = run([Formulas(target, (OWN,))], judges, step)
    assert [mutant.name for mutant in result.unlisted(equivalent_mutants())] == []
    assert sum(result.found[target.module].values()) >= DRAWN
