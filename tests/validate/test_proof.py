"""The formulas hold for every size, and what is no proof is not taken for one."""

import dataclasses

import pytest
import sympy
import torch

from flopcount import masks, rows
from flopcount.architectures import ARCHITECTURES
from models.networks.perceiver_ar import PerceiverAR
from validate import proof
from validate.witnesses import symbolic_trace
from validate.witnesses.symbolic_trace import HINTS, NotAProofError, check_assumptions, trace

TRAINING = proof.STEPS[0]


@pytest.mark.parametrize("step", proof.STEPS, ids=lambda step: step.name)
def test_every_step_is_proved(step):
    found = proof.prove(step)
    assert found.differences == {}
    # 8 products a layer (a gate is a ninth) and the logits: 9, 17, 25, 33 forward, twice as
    # many backward; 10 layers in all, of which each spares its last product if stopped early.
    layer = 9 if "intermediate_size" in ARCHITECTURES[step.architecture].kinds() else 8
    forward = 10 * layer + 4
    again = {None: 0, "reentrant": layer, "non-reentrant": layer - 1}
    recompute = 10 * again[step.checkpointing]
    assert found.rows == (3 * forward + recompute if step.training else forward)


def assumptions_of(step, num_layers=2):
    return proof.listed_assumptions()[step.name][str(num_layers)]


def test_int_of_a_product_of_sizes_is_no_proof(monkeypatch):
    original = PerceiverAR.__init__

    def planted(self, *arguments, num_prefix, num_kept, **options):
        kept = num_prefix - int(num_prefix * 0.5)
        original(self, *arguments, num_prefix=num_prefix, num_kept=kept, **options)

    monkeypatch.setattr(PerceiverAR, "__init__", planted)
    found = trace("perceiver-ar", 2)
    with pytest.raises(NotAProofError, match=r"free sizes|equalities|replaced"):
        check_assumptions(found, TRAINING.sizes(), assumptions_of(TRAINING))


def test_a_branch_on_a_size_is_no_proof(monkeypatch):
    original = PerceiverAR.forward

    def planted(self, tokens, *others):
        if self.num_prefix > 20:
            tokens = tokens + 0
        return original(self, tokens, *others)

    monkeypatch.setattr(PerceiverAR, "forward", planted)
    found = trace("perceiver-ar", 2)
    assert found.ranges["M"].startswith("21")
    with pytest.raises(NotAProofError, match=r"guards differ|ranges"):
        check_assumptions(found, TRAINING.sizes(), assumptions_of(TRAINING))


@pytest.mark.parametrize("name", ["N", "V", "w"])
def test_a_hint_of_1_is_no_proof(name):
    found = trace("perceiver-ar", 2, hints=HINTS | {name: 1})
    with pytest.raises(NotAProofError, match="free sizes"):
        check_assumptions(found, TRAINING.sizes(), assumptions_of(TRAINING))


def test_an_unlisted_assumption_is_no_proof():
    found = trace("perceiver-ar", 2)
    check_assumptions(found, TRAINING.sizes(), assumptions_of(TRAINING))
    for changed in (
        dataclasses.replace(found, replacements={"K": "M"}),
        dataclasses.replace(found, guards=(*found.guards, "Eq(K, 5)")),
        dataclasses.replace(found, guards=found.guards[1:]),
        dataclasses.replace(found, ranges=found.ranges | {"M": "21 to any"}),
        dataclasses.replace(found, free=found.free - {"K"}),
    ):
        with pytest.raises(NotAProofError):
            check_assumptions(changed, TRAINING.sizes(), assumptions_of(TRAINING))


def test_another_torch_is_refused(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    with pytest.raises(RuntimeError, match=r"2\.99\.0.*2\.13"):
        trace("decoder", 1)


def prove_two_layers(step=TRAINING):
    return proof.prove(step, layers=(2,)).differences


def test_a_wrong_factor_is_found_in_every_row(monkeypatch):
    monkeypatch.setattr(rows.Row, "flops", property(lambda r: r.batch * r.M * r.N * r.K))
    names = prove_two_layers()
    for row in (
        "hybrid.attention.query, forward",
        "layers.0.mlp.down, backward",
        "output, forward",
    ):
        assert any(name.startswith(row) for name in names)


def test_two_errors_that_cancel_in_the_total_are_found(introduce):
    introduce(rows.Product, lambda row: {"N": 2 * row.N}, part="cross", term="key")
    introduce(rows.Product, lambda row: {"N": 0 * row.N}, part="cross", term="value")
    names = prove_two_layers()
    assert any(name.startswith("hybrid.attention.key, forward") for name in names)
    assert not any(name.startswith("forward, L") for name in names)


def test_a_term_without_a_product_and_a_product_without_a_term_are_found(introduce):
    introduce(rows.Product, lambda row: None, layer="output")
    assert any("'output', 'logits'" in name for name in prove_two_layers())
    introduce(rows.Product, lambda row: {"term": "ghost"}, term="mlp up", layer="hybrid")
    assert any("ghost" in name for name in prove_two_layers())


def test_a_wrong_recompute_column_is_found(introduce):
    introduce(rows.Product, lambda row: {"recomputed_by": rows.CHECKPOINTING}, term="mlp down")
    assert prove_two_layers(proof.STEPS[3])
    assert not prove_two_layers(proof.STEPS[2])


def test_llamas_gate_is_seen(introduce):
    introduce(rows.Product, lambda row: None, term="mlp gate")
    (training,) = [step for step in proof.STEPS if step.name == "llama training"]
    names = prove_two_layers(training)
    assert any("'decoder', 'mlp gate'" in name for name in names)


def test_the_causal_pairs_are_their_sum():
    n, k, i, W = sympy.symbols("n k i W", integer=True, positive=True)
    # Query i of n admits k earlier positions and i of its own.
    admitted = sympy.summation(k + i, (i, 1, n))
    assert sympy.expand(admitted - masks.Causal().pairs(n, k + n)) == 0
    # With a window, and more positions than that: the first W of them admit 1..W, the others W.
    many = W + n
    admitted = sympy.summation(i, (i, 1, W)) + n * W
    assert sympy.expand(sympy.simplify(masks.Causal(W).admitted_up_to(many)) - admitted) == 0


def test_the_command_lists_assumptions_and_reports(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(proof, "STEPS", proof.STEPS[4:5])
    monkeypatch.setattr(proof, "LAYERS", (1,))
    assert proof.main() == 0
    monkeypatch.setattr(proof, "ASSUMPTIONS", tmp_path / "assumptions.json")
    assert proof.main(write=True) == 1
    assert "ranges" in capsys.readouterr().out
    assert proof.main() == 0


def test_hints_are_distinct_and_no_multiples():
    for described in symbolic_trace.DESCRIBED.values():
        values = sorted(described.hints.values())
        assert all(large % small for small in values for large in values if large > small)
        assert len(set(values)) == len(values)
