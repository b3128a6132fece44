"""Fine-tuning equals what real networks execute under autograd, and errors are found."""

import dataclasses

import pytest

import flopcount as fc
from flopcount import finetuning as counted
from flopcount import rows
from validate import matrix
from validate.witnesses import finetuning
from validate.witnesses.hugging_face import families

DECODER = fc.Decoder(vocab_size=11, seq_len=4, num_channels=6, num_layers=3, num_heads=2)
CONFIG = dict(
    model_type="llama", vocab_size=9, hidden_size=8, intermediate_size=10, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, pad_token_id=None, bos_token_id=None,
    eos_token_id=None,
)  # fmt: skip
LORA = finetuning.Choice(
    kinds=frozenset({"norm"}), targets=("query", "value", "mlp down"), rank=2, frozen_layers=1,
    input_gradients=False, recompute=None,
)  # fmt: skip


def disagreements(choice=LORA, ours=False):
    if ours:
        found = finetuning.compare(DECODER, finetuning.ours(DECODER, 2), choice, 2)
    else:
        tuneable = finetuning.hugging_face(CONFIG, 5, None)
        model = fc.from_hf(CONFIG, 5)
        found = finetuning.compare(model, tuneable, choice, families.BATCH_SIZE)
    return {name for name, missed in found.items() if missed}


def test_drawn_families():
    found = list(finetuning.of_families(quick=True))
    assert len(found) == len(finetuning.FAMILIES) > 25
    for name, differences in found:
        assert set(differences.values()) == {0}, name
    flavours = {name for _, differences in found for name in differences}
    assert {"recompute, reentrant", "recompute, non-reentrant"} < flavours
    assert "refused, but everything was trained" in flavours


def test_drawn_models_of_ours():
    found = list(finetuning.of_ours(quick=True))
    assert len(found) == 20
    for name, differences in found:
        assert set(differences.values()) == {0}, name


@pytest.mark.parametrize("recompute", finetuning.RECOMPUTED)
def test_every_kind_of_recomputation(recompute):
    assert not disagreements(dataclasses.replace(LORA, recompute=recompute))
    enabled = dataclasses.replace(LORA, recompute=recompute, input_gradients=True)
    assert not disagreements(enabled)


def test_attention_alone_is_executed_again_in_ours():
    core = dataclasses.replace(LORA, recompute=finetuning.ATTENTION_CORE)
    assert not disagreements(core, ours=True)
    tuneable = finetuning.ours(DECODER, 2)
    tuneable.tune(core)
    plain = sum(tuneable.passes())
    with tuneable.checkpointed(core.recompute, reentrant=True):
        again = sum(tuneable.passes())
    # Scores and values, two sequences, two heads of 3 channels, 16 pairs; of the two layers that
    # have something trained.
    assert again - plain == 2 * 2 * (2 * 2 * 2 * 16 * 3)


def test_a_linear_layer_by_hand():
    tuneable = finetuning.ours(dataclasses.replace(DECODER, num_layers=1), 2)
    tuneable.tune(dataclasses.replace(LORA, kinds=frozenset({"mlp down"}), targets=(),
                                      frozen_layers=0))  # fmt: skip
    # Two sequences of 4 positions: one product for the weight of 24·6; logits for their input.
    assert tuneable.passes()[1] == 2 * 8 * 24 * 6 + 2 * 8 * 6 * 11


def test_an_adapter_is_what_its_docstring_says():
    import torch

    base = torch.nn.Linear(3, 5)
    adapted = finetuning.LoRA(base, 2)
    x = torch.randn(4, 3)
    expected = x @ base.weight.T + base.bias + 0.5 * x @ adapted.down.T @ adapted.up.T
    assert torch.allclose(adapted(x), expected, atol=1e-5)
    assert sum(p.numel() for p in (adapted.down, adapted.up)) == 2 * (3 + 5)


@pytest.mark.parametrize(
    ("term", "changes", "found"),
    [
        ("scores", {"reads": ("query", "query")}, "backward"),
        ("values", {"reads": ("scores", "scores")}, "backward"),
        ("out", {"reads": ("nothing",)}, "backward"),
        ("query", {"reads": ("nothing",)}, "backward"),
        ("mlp down", {"saved": "output"}, "recompute, non-reentrant"),
    ],
)
def test_a_wrong_operand_is_found(introduce, term, changes, found):
    queries = dataclasses.replace(LORA, kinds=frozenset({"key"}), targets=("query",),
                                  frozen_layers=0)  # fmt: skip
    if term == "scores":
        queries = dataclasses.replace(queries, kinds=frozenset())
    assert not disagreements(queries)
    introduce(rows.Product, lambda row: changes, term=term, layer="decoder")
    assert found in disagreements(queries)


@pytest.mark.parametrize(
    ("name", "found"),
    [("_trained", {"trained parameters", "forward", "backward"}), ("_gives", {"backward"})],
)
def test_wrong_gradients_are_found(monkeypatch, name, found):
    choice = dataclasses.replace(LORA, kinds=frozenset())
    assert not disagreements(choice)
    monkeypatch.setattr(counted._Run, name, lambda *arguments, **options: name == "_trained")
    assert disagreements(choice) & found


def test_a_layer_that_forgets_its_turn_is_found(monkeypatch):
    # Dense and sparse layers in turn; adapters in dense ones alone, of which the first is frozen.
    config = CONFIG | dict(
        model_type="qwen3_moe", head_dim=2, num_hidden_layers=4, mlp_only_layers=[0, 2],
        num_experts=3, num_experts_per_tok=2, moe_intermediate_size=5,
    )  # fmt: skip

    def missed():
        choice = dataclasses.replace(LORA, kinds=frozenset(), targets=("mlp down",))
        model, tuneable = fc.from_hf(config, 5), finetuning.hugging_face(config, 5, None)
        found = finetuning.compare(model, tuneable, choice, families.BATCH_SIZE)
        return {name for name, difference in found.items() if difference}

    assert not missed()
    monkeypatch.setattr(counted, "_pattern", lambda block: "x")
    assert missed()


def test_it_is_in_the_matrix():
    named = [check for check in matrix.STANDALONE if "fine-tuning" in check.formula]
    assert len(named) == 2
    for check in named:
        assert "autograd" in check.witness
