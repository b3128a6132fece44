"""Mutants beside the formulas: laws, plans, comparisons and tables, judged by their own tests."""

import pytest

from validate.mutation.judging import Formulas, Judges, checks_in, equivalent_mutants, run
from validate.mutation.mutants import Target, mutants_of

ISOFLOP = "tests/flopcount/isoflop"
GROUPS = {
    "flopcount.isoflop.laws": [f"{ISOFLOP}/test_laws.py"],
    "flopcount.isoflop.plan": [f"{ISOFLOP}/test_plan.py"],
}
"""The module of each group, and the files whose tests judge it."""
DRAWN = 50
OWN = "own tests"
DATA = ("CHINCHILLA_TABLE", "FLOPS_PER_PARAM_TOKEN", "Plan._draw")
"""Tables copied from publications, a default that is read when its class is made, a picture."""


def judged(module, paths, drawn=DRAWN):
    formulas = Formulas(Target(module, leaving_out=DATA), (OWN,))
    judges = Judges(())
    judges.checks = {OWN: checks_in(paths)}
    step = max(1, len(list(mutants_of(formulas.target))) // drawn)
    return run([formulas], judges, step)


@pytest.mark.parametrize("module", GROUPS)
def test_fifty_mutants_of_each_are_found(module):
    result = judged(module, GROUPS[module])
    assert [mutant.name for mutant in result.unlisted(equivalent_mutants())] == []
    assert sum(result.found[module].values()) >= DRAWN
