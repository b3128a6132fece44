"""Mutants beside the formulas: laws, plans and tables, judged by their own tests."""

import pytest

from validate.mutation.judging import Formulas, Judges, checks_in, equivalent_mutants, run
from validate.mutation.mutants import Target, mutants_of

ISOFLOP = "tests/flopcount/isoflop"
GROUPS = {
    # Published tables, and a default that is read when its class is made.
    Target(
        "flopcount.isoflop.laws", leaving_out=("CHINCHILLA_TABLE", "FLOPS_PER_PARAM_TOKEN")
    ): [f"{ISOFLOP}/test_laws.py"],
    # A picture.
    Target("flopcount.isoflop.plan", leaving_out=("Plan._draw",)): [f"{ISOFLOP}/test_plan.py"],
    # Names that are read when the table of terms is made, and a picture.
    Target("flopcount.comparison", leaving_out=("LINEAR", "Comparison._draw")): [
        "tests/flopcount/test_comparison.py"
    ],
    Target("flopcount.tables"): [
        "tests/flopcount/test_tables.py", "tests/flopcount/test_printed.py"
    ],
}  # fmt: skip
"""What is changed, and the files whose tests judge it."""
EQUIVALENT = {
    "flopcount.isoflop.plan._Shapes.family: int(self.depth[index]) -> self.depth[index]": (
        "a model brings its sizes into their exact form"
    ),
    "flopcount.comparison.Comparison._tables: 0 -> 1": "dense, too, has a cross part if causal has",
    "flopcount.comparison._is_missed: flops < 0 -> flops <= 0": "what is 0 is no difference",
    "flopcount.comparison._windowed: Pass.1(), count.model.length one more": "masks have no length",
    "flopcount.comparison._windowed: 1 -> 2": "masks have no length",
    "flopcount.comparison._windowed: 1 -> 0": "masks have no length",
    "flopcount.comparison.differences: if row.used is not None -> if True": (
        "what is not routed is all active, and no difference"
    ),
    "flopcount.comparison.differences: windowed and part == 'self' -> windowed": (
        "no model with windows has a cross part"
    ),
    "flopcount.tables.shown: value > 0 -> value >= 0": "0 has no digits behind the point",
    "flopcount.tables.text_width: 0 -> 1": "lines of a terminal, which nothing asks for",
    "flopcount.tables.text_width: 0 -> -1": "lines of a terminal, which nothing asks for",
    "flopcount.tables._side_by_side: 1 -> 0 (3)": "the first part alone may consist of keys",
    "flopcount.tables._rendered: True -> False": "both lists have an entry for each column",
    "flopcount.tables._rendered: True -> False (2)": "both lists have an entry for each column",
    "flopcount.tables._rendered: True -> False (3)": "columns have a cell for each row",
}
DRAWN = 50
OWN = "own tests"


@pytest.mark.parametrize("target", GROUPS, ids=lambda target: target.module)
def test_fifty_mutants_of_each_are_found(target):
    judges = Judges(())
    judges.checks = {OWN: checks_in(GROUPS[target])}
    known = sum(name.startswith(target.module) for name in EQUIVALENT)
    step = max(1, (len(list(mutants_of(target))) - known) // DRAWN)
    result = run([Formulas(target, (OWN,))], judges, step)
    listed = equivalent_mutants() | EQUIVALENT
    assert [mutant.name for mutant in result.unlisted(listed)] == []
    assert sum(result.kills[target.module].values()) >= DRAWN
