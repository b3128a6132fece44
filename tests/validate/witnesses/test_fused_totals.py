"""The fused model's totals under both counters, the handles they rest on, and errors put in."""

import pytest
import torch
from torch.utils.flop_counter import flop_registry

import flopcount as fc
from flopcount.rows import Product
from validate import matrix
from validate.witnesses import configurations, fused

MODELS = [
    fc.PerceiverAR(
        vocab_size=9, num_latents=5, num_prefix=4, num_channels=18, num_layers=2, num_heads=2,
        prefix_dropout=0.5,
    ),
    fc.PerceiverAR(
        vocab_size=1, num_latents=1, num_prefix=0, num_channels=1, num_layers=1, num_heads=1
    ),
    fc.Decoder(vocab_size=7, seq_len=6, num_channels=26, num_layers=2, num_heads=2),
    fc.Llama(
        vocab_size=7, seq_len=6, num_channels=10, num_layers=2, num_heads=4, intermediate_size=9,
        num_key_value_heads=2, head_dim=6,
    ),
]  # fmt: skip


def disagreements(model):
    return {name for name, missed in matrix.fused_totals(model).items() if missed}


@pytest.mark.parametrize("model", [*MODELS, configurations.SEED_MODELS[3]], ids=str)
def test_totals_of_the_fused_model_are_dense(model):
    assert disagreements(model) == set()


def test_declared_flops_are_those_of_the_specification():
    assert all(set(missed.values()) == {0} for _, missed in matrix.declared_flops(quick=True))


def test_a_counter_that_does_not_know_the_operator_is_found(monkeypatch):
    monkeypatch.delitem(flop_registry, torch.ops.flopcount.attention_backward)
    found = disagreements(MODELS[0])
    assert found == {
        f"backward and recompute, torch, checkpointing {flavour}"
        for flavour in (None, "reentrant", "non-reentrant")
    }


def test_a_wrong_handle_is_found(monkeypatch):
    monkeypatch.setattr(fused, "fvcore_handle", lambda inputs, outputs: 1)
    assert disagreements(MODELS[0]) == {
        "forward, fvcore, training",
        "forward, fvcore, evaluation",
    }
    monkeypatch.setattr(matrix, "backward_flops", lambda out, k, prefix_k: out[1] * k[1])
    check = matrix.STANDALONE[0]
    assert "backward: formula - witness" in matrix.run_standalone(check, quick=True).finding


def test_a_changed_formula_is_found(introduce):
    introduce(Product, lambda row: {"K": row.K + 1}, part="cross", term="key")
    assert disagreements(MODELS[0]) == set(matrix.fused_totals(MODELS[0]))
