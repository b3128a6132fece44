"""Families read from Hugging Face configs equal transformers' networks, and errors are found."""

import dataclasses
import types

import pytest

import flopcount as fc
from flopcount import masks, rows
from flopcount.hf import FAMILIES
from flopcount.inputs import is_table
from validate import matrix
from validate.witnesses.hugging_face import families, published

LLAMA = dict(
    model_type="llama", vocab_size=9, hidden_size=12, intermediate_size=7, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=6, pad_token_id=None,
)  # fmt: skip
MISTRAL = LLAMA | dict(model_type="mistral", sliding_window=3)
SMALL = ("GPT-2", "OPT-350m", "BLOOM-560m", "Gemma-3-4B")


def disagreements(config, seq_len=5, **options):
    found = families.compare(config, seq_len, **options)
    return {name for name, missed in found.items() if missed}


@pytest.mark.parametrize("family", families.WITNESSED)
def test_drawn_configs(family):
    for case in families.drawn(family, 6):
        assert set(case.compare().values()) == {0}, case


@pytest.mark.parametrize("family", families.WITNESSED)
def test_parameters_of_the_trainer(family):
    import torch
    from transformers import Trainer

    from validate.witnesses.hugging_face import networks

    for case in families.drawn(family, 3):
        network = networks.build(case.config)
        model = fc.from_hf(case.config, 5)
        params = model.params()
        others = params.total - params.where(is_table).total
        assert others == network.num_parameters(exclude_embeddings=True), case
        if family != "t5":  # whose two stacks work on other tokens each: not covered
            trainer = types.SimpleNamespace(model=network)
            tokens = {network.main_input_name: torch.empty(2, 5)}
            count = model.flops(convention="hf-trainer", batch_size=2)
            assert count.total == Trainer.floating_point_ops(trainer, tokens), case


FIXED = {"minimax_text_01": {"postnorm"}}
"""Flags of which one value is modelled."""


@pytest.mark.parametrize("family", families.WITNESSED)
def test_every_option_is_toggled(family):
    drawn = families.drawn(family)
    assert len({str(case) for case in drawn}) == families.DRAWN
    values = {}
    for case in drawn:
        for name, value in case.config.items():
            values.setdefault(name, set()).add(value if isinstance(value, bool) else None)
    once = {
        name for name, seen in values.items() if seen & {True, False} and len(seen - {None}) < 2
    }
    assert once == FIXED.get(family, set())


@pytest.mark.parametrize("name", SMALL)
def test_published_sizes(name):
    found = families.compare(published.PUBLISHED[name], 500, device="meta")
    assert set(found.values()) == {0}
    assert {"parameters", "forward", "backward"} < set(found)


def test_every_family_has_a_witness():
    assert families.UNWITNESSED == ()
    named = {matrix_check.formula for matrix_check in matrix.STANDALONE}
    assert {families.confirmed(family) for family in FAMILIES} <= named


def test_what_is_compared():
    assert set(families.compare(LLAMA, 5)) == {
        "parameters", "buffers", "forward", "backward", "decoder query", "decoder key",
        "decoder value", "decoder scores", "decoder values", "decoder out", "decoder mlp gate",
        "decoder mlp up", "decoder mlp down", "output logits", "recompute, reentrant",
        "recompute, non-reentrant", "causal decoder scores", "causal decoder values",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "changes", "where", "found"),
    [
        (rows.Tensor, {"factors": (5,)}, {"name": "mlp up"}, {"parameters"}),
        (
            rows.Product,
            {"K": 3},
            {"term": "out"},
            {"forward", "backward", "decoder out", "recompute, reentrant",
             "recompute, non-reentrant"},
        ),
        # As much in another term: no total shows it.
        (
            rows.Product,
            {"term": "value"},
            {"term": "key"},
            {"decoder key", "decoder value"},
        ),
        (
            rows.Product,
            {"term": "another"},
            {"term": "mlp up"},
            {"decoder mlp up", "decoder another, which no module executes"},
        ),
        (
            rows.Product,
            {"recomputed_by": rows.CHECKPOINTING},
            {"term": "mlp down"},
            {"recompute, non-reentrant"},
        ),
    ],
)  # fmt: skip
def test_a_changed_row_is_found(introduce, kind, changes, where, found):
    introduce(kind, lambda row: changes, **where)
    assert disagreements(LLAMA) == found


def test_a_window_that_is_off_by_one_is_found(monkeypatch):
    assert not disagreements(MISTRAL)
    original = masks.Causal.admitted_up_to
    monkeypatch.setattr(
        masks.Causal, "admitted_up_to", lambda mask, n: original(masks.Causal(mask.window + 1), n)
    )
    assert disagreements(MISTRAL) == {"causal decoder scores", "causal decoder values"}


def test_a_default_of_another_family_is_found(monkeypatch):
    # Absent, the number of key heads is that of all heads in Llama and 8 in Mistral.
    absent = LLAMA | dict(num_attention_heads=16, hidden_size=16)
    del absent["num_key_value_heads"]
    assert not disagreements(absent)
    other = FAMILIES["mistral"].fields["num_key_value_heads"]
    fields = {**FAMILIES["llama"].fields, "num_key_value_heads": other}
    wrong = dataclasses.replace(FAMILIES["llama"], fields=fields)
    monkeypatch.setitem(FAMILIES, "llama", wrong)
    assert {"parameters", "forward", "decoder key", "decoder value"} <= disagreements(absent)


def test_a_layer_that_slides_in_another_place_is_found(monkeypatch):
    gemma = LLAMA | dict(
        model_type="gemma2", num_hidden_layers=3, sliding_window=3,
        layer_types=["sliding_attention", "full_attention", "full_attention"],
    )  # fmt: skip
    assert not disagreements(gemma)
    original = families.in_layer
    monkeypatch.setattr(
        families, "in_layer", lambda model, stack, index: original(model, stack, 2 - index)
    )
    assert {"causal sliding scores", "causal full scores"} <= disagreements(gemma)


def test_positions_of_the_encoder_taken_for_those_of_the_decoder_are_found(introduce):
    t5 = dict(
        model_type="t5", vocab_size=9, d_model=6, d_kv=5, d_ff=7, num_heads=3, num_layers=2,
        num_decoder_layers=1, decoder_start_token_id=0,
    )  # fmt: skip
    assert not disagreements(t5, 5, target_len=3)
    introduce(rows.Product, lambda row: {"M": 3}, term="cross key")
    found = disagreements(t5, 5, target_len=3)
    assert {"decoder cross key", "forward", "recompute, reentrant"} <= found
    introduce(rows.Product, lambda row: {"mask": masks.Causal()}, term="cross scores")
    assert "causal decoder cross scores" in disagreements(t5, 5, target_len=3)


def test_a_head_that_is_tied_although_the_file_unties_it():
    # transformers' class of T5 ties all heads; made from the config alone, its network has V·d
    # fewer parameters than a file with both tensors.
    from validate.witnesses.hugging_face import networks

    t5 = dict(model_type="t5", vocab_size=9, d_model=6, num_layers=1, decoder_start_token_id=0)
    tied, own = (
        networks.num_parameters(networks.build(t5 | dict(tie_word_embeddings=tie)))
        for tie in (True, False)
    )
    assert own - tied == 9 * 6


def test_a_module_that_is_not_known_is_refused(monkeypatch):
    monkeypatch.delitem(families.PRODUCTS, "mlp.up_proj")
    with pytest.raises(KeyError, match=r"mlp\.up_proj"):
        families.compare(LLAMA, 5)


def test_modules_of_unequal_shares_are_found():
    count = fc.from_hf(LLAMA, 5).flops("dense")
    queries = next(term.forward for term in count.terms if term.term == "query")
    seen = {("decoder", "query"): [queries // 2 - 2, queries // 2 + 2]}
    assert families.by_module(count, seen)["decoder query"] == 4


def test_a_disagreement_names_its_config(introduce):
    introduce(rows.Tensor, lambda row: {"factors": (5,)}, name="mlp up")
    check = next(c for c in matrix.STANDALONE if c.formula == families.confirmed("llama"))
    verdict = matrix.run_standalone(check, quick=True)
    assert not verdict.holds
    assert "parameters" in verdict.finding
    assert "'model_type': 'llama'" in verdict.finding
