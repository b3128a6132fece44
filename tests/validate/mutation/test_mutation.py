"""A wrong formula would be noticed, and a witness that is too weak would be too."""

import dataclasses
import json
import sys

import pytest

from flopcount.inference import BITS
from flopcount.masks import Causal
from validate import matrix
from validate.mutation import judging
from validate.mutation.judging import (
    KNOWN_NUMBERS,
    ROWS,
    Formulas,
    Judges,
    equivalent_mutants,
    run,
)
from validate.mutation.mutants import Target, mutants_of

PRODUCTS = Formulas(Target("flopcount.rows", ("Row.flops", "Product")))
RECOMPUTED = Formulas(Target("flopcount.blocks", ("checkpointed",)))
PAIRS = Target("flopcount.masks", ("Causal.pairs",))


def test_one_mutant_in_thirty_is_found_or_listed_with_the_reason():
    # All of them are in the record, which test_docs holds to the code.
    result = run(step=30)
    assert [mutant.name for mutant in result.unlisted(equivalent_mutants())] == []
    modules = result.to_dict(equivalent_mutants())
    assert sum(entry["mutants"] for entry in modules.values()) > 150
    assert set(modules) == {entry.target.module for entry in judging.FORMULAS}


def survivors(formulas, *judges):
    with judging.kept_witnesses():
        result = run([formulas], Judges(judges))
    return [mutant.name for mutant in result.survivors[formulas.target.module]]


def test_weaker_witnesses_leave_survivors(monkeypatch):
    late = "flopcount.blocks.checkpointed: index < needed -> index <= needed"
    # Fine-tuning of fused kernels alone asks for that, and no trace kept here is of it.
    fused = "flopcount.rows.Product: fused_backward=True -> fused_backward=False"
    assert survivors(PRODUCTS, ROWS) == [fused]
    assert survivors(PRODUCTS, ROWS, KNOWN_NUMBERS) == []
    assert late not in survivors(RECOMPUTED, ROWS)
    # Forward and backward totals alone say nothing of recomputation.
    monkeypatch.setattr(matrix, "CHECKS", matrix.CHECKS[1:2])
    assert late in survivors(RECOMPUTED, ROWS)
    # No trace knows what an element costs; the known numbers tell.
    costs = Formulas(Target("flopcount.operations", ("cross_entropy",)))
    assert "flopcount.operations.cross_entropy: 5 -> 6" in survivors(costs, ROWS)
    assert survivors(costs, KNOWN_NUMBERS) == []


def test_a_counter_that_is_wrong_already_is_refused(monkeypatch):
    first = next(iter(mutants_of(PAIRS)))
    judges = Judges([KNOWN_NUMBERS])
    with first.applied(), pytest.raises(ValueError, match="before it is changed"):
        run([PRODUCTS], judges)


@pytest.mark.skipif(sys.platform == "win32", reason="has no timer that interrupts")
def test_a_mutant_that_never_ends_is_found(monkeypatch):
    def endless():
        while True:
            pass

    judges = Judges(())
    judges.checks = {ROWS: [lambda: None, endless]}
    monkeypatch.setattr(judging, "LONGEST", 0.05)
    assert judges.found_by([ROWS]) == ROWS
    judges.checks = {ROWS: [lambda: None]}
    assert judges.found_by([ROWS]) is None


def test_a_mutant_is_taken_back():
    def answers():
        return Causal().pairs(3, 3), Causal().pairs(4, 6), Causal(2).pairs(3, 4)

    right = answers()
    assert right == (6, 18, 6)
    for mutant in mutants_of(PAIRS):
        with mutant.applied():
            try:
                wrong = answers()
            except TypeError:
                wrong = None
            assert wrong != right, mutant.name
        assert answers() == right


def test_constants_of_a_module_are_changed_for_its_functions():
    from flopcount import inference, operations

    costs = Target("flopcount.operations", ("SOFTMAX",))
    assert {mutant.change for mutant in mutants_of(costs)} == {
        "5 -> 6", "5 -> 4", "4 -> 5", "4 -> 3"
    }  # fmt: skip
    assert survivors(Formulas(costs), ROWS) == [
        f"flopcount.operations.SOFTMAX: {change}"
        for change in ("5 -> 6", "5 -> 4", "4 -> 5", "4 -> 3")
    ]
    assert survivors(Formulas(costs), KNOWN_NUMBERS) == []
    assert (operations.SOFTMAX.forward_cost, operations.SOFTMAX.backward_cost) == (5, 4)
    # Of a table, its entries.
    for mutant in mutants_of(Target("flopcount.inference", ("BITS",))):
        with mutant.applied():
            assert len(set(inference.BITS.items()) - set(BITS.items())) == 1, mutant.name


def test_what_is_changed():
    changes = {mutant.change for mutant in mutants_of(PAIRS)}
    assert {
        "halve(queries * (2 * keys - queries + 1)) -> queries * (2 * keys - queries + 1)",
        "queries * (2 * keys - queries + 1) -> queries",
        "2 * keys - queries + 1 -> 2 * keys - queries - 1",
        "1 -> 2",
        "1 -> 0",
    } <= changes
    with pytest.raises(ValueError, match="defines no nonsense"):
        list(mutants_of(Target("flopcount.masks", ("nonsense",))))
    with pytest.raises(ValueError, match=r"defines nothing that begins with Causal\.gone"):
        list(mutants_of(Target("flopcount.masks", leaving_out=("Causal.gone",))))


def test_the_command_fails_on_survivors_and_on_stale_entries(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(judging, "FORMULAS", (PRODUCTS,))
    assert judging.main() == 0
    assert "flopcount.rows" in capsys.readouterr().out
    listed = tmp_path / "equivalent.json"
    monkeypatch.setattr(judging, "EQUIVALENT", listed)
    listed.write_text(json.dumps({"a reason": ["flopcount.rows.Row.flops: 2 -> 2"]}))
    assert judging.main() == 1
    assert "STALE" in capsys.readouterr().out
    listed.write_text("{}")
    monkeypatch.setattr(judging, "FORMULAS", (dataclasses.replace(PRODUCTS, judges=()),))
    assert judging.main(json=True) == 1
    survivors = json.loads(capsys.readouterr().out)["flopcount.rows"]["survivors"]
    assert survivors == [mutant.name for mutant in mutants_of(PRODUCTS.target)]
    with pytest.raises(ValueError, match=r"flopcount\.isoflop\.laws"):
        judging.main(modules=("flopcount.isoflop.laws",))
