"""Formulas equal their witnesses to the FLOP, and a changed formula is found."""

import dataclasses
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import flopcount as fc
from flopcount import masks, rows, testing
from flopcount.architectures import ARCHITECTURES
from models.networks.blocks import SelfAttentionLayer
from validate import matrix
from validate.__main__ import main
from validate.witnesses import configurations, elementwise_trace

OWN = [
    "--model", "perceiver-ar", "--vocab-size", "9", "--num-latents", "5", "--num-prefix", "4",
    "--num-channels", "6", "--num-layers", "3", "--num-heads", "2", "--prefix-dropout", "0.5",
]  # fmt: skip
FVCORE, TORCH, RECOMPUTE, MASKS, PARAMETERS, ELEMENTWISE = matrix.CHECKS


def disagreements(check, model):
    return {name: missed for name, missed in check.compare(model).items() if missed}


@pytest.mark.parametrize("model", configurations.SEED_MODELS, ids=str)
@pytest.mark.parametrize(
    "check", [FVCORE, TORCH, RECOMPUTE, PARAMETERS, ELEMENTWISE], ids=lambda check: check.witness
)
def test_the_articles_models_at_full_size(check, model):
    assert disagreements(check, model) == {}


@settings(max_examples=1000)
@given(testing.models(), st.booleans())
def test_fvcore_on_drawn_configurations(model, training):
    assert set(matrix.fvcore_forward(model, modes=(training,)).values()) == {0}


# Those that run several backward passes are tried on fewer; the command tries all on 1,000.
@pytest.mark.parametrize(
    ("check", "drawn"),
    [(TORCH, 1000), (MASKS, 1000), (PARAMETERS, 1000), (RECOMPUTE, 200), (ELEMENTWISE, 200)],
    ids=lambda value: getattr(value, "witness", value),
)
def test_drawn_configurations(check, drawn):
    @settings(max_examples=drawn)
    @given(testing.models())
    def on_drawn(model):
        assert disagreements(check, model) == {}

    on_drawn()


SMALLEST = [
    fc.PerceiverAR(
        vocab_size=1, num_latents=1, num_prefix=prefix, num_channels=1, num_layers=1, num_heads=1,
        **kept,
    )
    for prefix, kept in (
        (0, {}), (1, {}), (1, {"num_kept": 0}), (0, {"prefix_dropout": 0.5}), (3, {"num_kept": 0})
    )
] + [fc.Decoder(vocab_size=1, seq_len=1, num_channels=1, num_layers=1, num_heads=1)]  # fmt: skip


@pytest.mark.parametrize("model", SMALLEST, ids=str)
@pytest.mark.parametrize("check", matrix.CHECKS, ids=lambda check: f"{check.formula}")
def test_the_smallest_sizes(check, model):
    assert disagreements(check, model) == {}


def test_the_command_prints_the_matrix(capsys):
    assert main(OWN) == 0
    out = capsys.readouterr().out
    assert out.count("equal") == len(matrix.CHECKS)
    assert "UNVERIFIED" in out
    assert main([*OWN, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {entry["largest_difference"] for entry in found} == {0, None}


@pytest.mark.parametrize("width", [80, 200])
def test_the_matrix_fits_its_terminal(monkeypatch, width):
    covered = "all sizes, L = 1 to 12: 1,026 products"
    found = [
        matrix.Verdict(*matrix.proof_names(step), covered, 0, "equal")
        for step in matrix.proof.STEPS
    ] + [
        matrix.Verdict(check.formula, check.witness, "1,014 configurations", 10**15, "equal")
        for check in (*matrix.CHECKS, *matrix.STANDALONE)
    ]

    def words():
        return set(matrix.as_table(found + matrix.unverified()).replace("─", " ").split())

    monkeypatch.setenv("COLUMNS", "100000")
    whole = words()
    monkeypatch.setenv("COLUMNS", str(width))
    assert max(map(len, matrix.as_table(found).splitlines())) <= width
    assert words() == whole


def test_progress_is_shown_in_a_terminal_alone(capsys, monkeypatch):
    assert main(OWN) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")  # to rich, a terminal
    monkeypatch.setenv("TERM", "xterm")
    assert main(OWN) == 0
    shown = capsys.readouterr()
    assert f"0/{len(matrix.CHECKS)}" in shown.err
    assert f"{len(matrix.CHECKS)}/{len(matrix.CHECKS)}" in shown.err
    assert "checks" not in shown.out


@pytest.mark.parametrize(
    ("kind", "changes", "where", "witnesses"),
    [
        (rows.Product, {"K": 3}, {"layer": "output"}, {FVCORE, TORCH}),
        (rows.Product, {"term": "values"}, {"part": "cross", "term": "key"}, {FVCORE}),
        (rows.Product, {"recomputed_by": ()}, {"term": "out"}, {RECOMPUTE}),
        (rows.Tensor, {"factors": (5,)}, {"name": "mlp up"}, {PARAMETERS}),
    ],
)
def test_a_changed_formula_is_found_and_exits_with_1(
    introduce, capsys, kind, changes, where, witnesses
):
    introduce(kind, lambda row: changes, **where)
    assert main([*OWN, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    wrong = {(entry["formula"], entry["witness"]) for entry in found if entry["largest_difference"]}
    assert {(check.formula, check.witness) for check in witnesses} <= wrong


LLAMA = fc.Llama(
    vocab_size=9, seq_len=5, num_channels=10, num_layers=2, num_heads=4, intermediate_size=7,
    num_key_value_heads=2, head_dim=6, window=3,
)  # fmt: skip


@pytest.mark.parametrize(
    ("term", "model"),
    [
        *((term, configurations.SEED_MODELS[0]) for term in (
            "embedding", "norm", "softmax", "query scale", "rotary key", "gelu", "mlp residual",
            "cross-entropy",
        )),
        *((term, LLAMA) for term in ("mlp norm", "silu", "gate product", "rotary query")),
    ],
)  # fmt: skip
def test_a_wrong_number_of_elements_is_found(introduce, term, model):
    introduce(rows.Work, lambda row: {"factors": (2, *row.factors)}, term=term)
    assert disagreements(ELEMENTWISE, model)


@pytest.mark.parametrize(
    ("term", "change", "model"),
    [
        (
            "projection input gradients",
            lambda row: {"backward_cost": row.backward_cost + 1},
            configurations.SEED_MODELS[0],
        ),
        (
            "mlp input gradients",
            lambda row: {"backward_cost": row.backward_cost + 1},
            LLAMA,
        ),
        (
            "mlp residual",
            lambda row: {"recomputed_by": rows.CHECKPOINTING},
            configurations.SEED_MODELS[0],
        ),
        ("gelu", lambda row: {"recomputed_by": ()}, configurations.SEED_MODELS[0]),
        (
            "tied embedding gradient",
            lambda row: {"factors": (2, *row.factors)},
            configurations.SEED_MODELS[0],
        ),
    ],
)
def test_an_error_in_the_backward_pass_or_in_recomputation_is_found(introduce, term, change, model):
    introduce(rows.Work, change, term=term)
    found = disagreements(ELEMENTWISE, model)
    assert found
    assert not any("forward" in name for name in found)


def test_what_no_row_claims_is_listed_with_the_reason():
    step = dict(training=True, checkpointing="reentrant")
    operations = elementwise_trace.operations(configurations.SEED_MODELS[0], **step)
    _, unclaimed = elementwise_trace.claimed(operations)
    assert {name for _, _, name in unclaimed} == {
        "add", "mul", "pow", "cos", "sin", "div", "neg", "neg in SubBackward",
        "add in SliceBackward", "embedding_dense_backward in EmbeddingBackward",
    }  # fmt: skip
    assert all(elementwise_trace.reason(operation) for operation in unclaimed)
    elsewhere = {("forward", "elsewhere", "gelu"): 5}
    assert elementwise_trace.claimed(elsewhere) == ({}, elsewhere)
    assert elementwise_trace.reason(("forward", "elsewhere", "gelu")) is None


@pytest.mark.parametrize("operation", [torch.tanh, torch.Tensor.exp, lambda x: x / 3])
def test_work_that_no_row_counts_is_found(monkeypatch, operation):
    original = SelfAttentionLayer.forward
    monkeypatch.setattr(SelfAttentionLayer, "forward", lambda *inputs: operation(original(*inputs)))
    found = disagreements(ELEMENTWISE, configurations.SEED_MODELS[0])
    assert any("of no row" in name and name.startswith("forward") for name in found)
    assert any("of no row" in name and name.startswith("backward") for name in found)


def test_a_standalone_check_stops_at_a_disagreement():
    def cases(quick):
        yield "one", {"a": 0}
        if not quick:
            yield "two", {"a": 0, "b": -3}

    check = matrix.Standalone("formula", "witness", cases, ("two",))
    quick = matrix.run_standalone(check, quick=True)
    assert quick.holds
    assert quick.covered == "1 cases"
    wrong = matrix.run_standalone(check)
    assert wrong.largest_difference == 3
    assert wrong.finding == "b: formula - witness = -3 for two"


@pytest.mark.parametrize("cases", [[], [("one", {})]])
def test_a_check_that_compares_nothing_does_not_hold(cases):
    check = matrix.Standalone("formula", "witness", lambda quick: cases)
    assert not matrix.run_standalone(check).holds


@pytest.mark.parametrize("pairs", [lambda _, n, s: n * (n - 1) // 2, lambda _, n, s: n * n])
def test_a_wrong_causal_mask_is_found(monkeypatch, pairs):
    monkeypatch.setattr(masks.Causal, "pairs", pairs)
    verdict = matrix.run_check(MASKS, [], drawn=20)
    assert not verdict.holds
    assert "scores" in verdict.finding or "values" in verdict.finding
    assert matrix.run_check(FVCORE, [], drawn=20).holds  # dense does not use the mask


def test_a_halved_flop_is_found_by_every_witness_of_products(monkeypatch):
    monkeypatch.setattr(rows.Row, "flops", property(lambda r: r.batch * r.M * r.N * r.K))
    model = fc.Decoder(vocab_size=3, seq_len=3, num_channels=4, num_layers=2, num_heads=2)
    for check in (FVCORE, TORCH, RECOMPUTE, MASKS):
        assert disagreements(check, model)


def test_a_window_that_is_off_by_one_is_found(monkeypatch):
    original = masks.Causal.admitted_up_to
    monkeypatch.setattr(
        masks.Causal,
        "admitted_up_to",
        lambda mask, n: original(masks.Causal(mask.window + 1), n),
    )
    assert disagreements(MASKS, LLAMA)
    assert not disagreements(FVCORE, LLAMA)


def test_a_disagreement_is_shrunk_and_names_its_term(introduce):
    introduce(rows.Product, lambda row: {"N": 1}, layer="output")
    verdict = matrix.run_check(FVCORE, [], drawn=100)
    # V = 1 would agree, so the smallest failing vocabulary is 2.
    assert "output logits" in verdict.finding or "total" in verdict.finding
    assert "vocab_size=2" in verdict.finding
    assert verdict.largest_difference > 0


def test_proofs_stand_in_the_matrix(introduce):
    step = matrix.proof.STEPS[5]
    verdict = matrix.run_proof(step, (1, 2))
    assert verdict.holds
    assert verdict.covered == "all sizes, L = 1 to 2: 26 products"
    introduce(rows.Product, lambda row: {"K": 3}, layer="output")
    wrong = matrix.run_proof(step, (1,))
    assert not wrong.holds
    assert "output" in wrong.finding


@pytest.mark.parametrize("check", matrix.CHECKS, ids=lambda check: check.formula)
def test_an_rms_norm_of_one_channel(check):
    # PyTorch dispatches no sum over a single channel: 10 operations backward, not 11.
    model = dataclasses.replace(LLAMA, num_channels=1, head_dim=4)
    if check.compare is matrix.elementwise_elements:
        with pytest.raises(ValueError, match="expected a multiple of 11"):
            check.compare(model)
    else:
        assert not any(check.compare(model).values())


def test_bad_input_is_one_line(capsys):
    assert main([*OWN, "--num-heads", "4"]) == 2
    assert "not divisible" in capsys.readouterr().err
    assert main(["--model", "decodr"]) == 2
    known = ", ".join(map(repr, ARCHITECTURES))
    assert capsys.readouterr().err == f"validate: model = 'decodr': expected one of {known}\n"
    assert main(["--qick"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
