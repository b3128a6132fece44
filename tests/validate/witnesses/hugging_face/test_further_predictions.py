"""Modules that predict further tokens equal transformers' own, and errors are found."""

import dataclasses

import pytest

import flopcount as fc
from flopcount import rows
from flopcount.hf import FAMILIES
from flopcount.mixture_lm import MixtureLM
from validate import matrix
from validate.witnesses.hugging_face import further_predictions

SMALL = dict(
    model_type="deepseek_v3", vocab_size=9, hidden_size=12, intermediate_size=7,
    num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, first_k_dense_replace=2,
    q_lora_rank=5, kv_lora_rank=3, qk_nope_head_dim=4, qk_rope_head_dim=2, v_head_dim=3,
    n_routed_experts=4, n_group=2, topk_group=1, num_experts_per_tok=2, moe_intermediate_size=5,
    pad_token_id=None, num_nextn_predict_layers=2,
)  # fmt: skip


def disagreements(config=SMALL):
    found = further_predictions.compare(config, 5)
    assert set(found) == {"parameters", "buffers", "forward", "backward"}
    return {name for name, missed in found.items() if missed}


def test_drawn_configs():
    found = list(further_predictions.cases(quick=True))
    assert len(found) == 9 + len(further_predictions.GENERAL)
    for name, differences in found:
        assert set(differences.values()) == {0}, name


def test_modules_by_hand():
    seen = further_predictions.observe(SMALL, 2, 5)
    # Two modules; d = 12, 2 heads of 4 + 2 and of 3. Queries 12 → 5 → 12, keys and values
    # 12 → 3 + 2 and 3 → 14, out 6 → 12; a router of 4, experts of 3·12·5, of which four are held
    # and two are used, and a shared one; the projection 24 → 12 and six norms.
    attention = 12 * 5 + 5 * 12 + 12 * 5 + 3 * 14 + 6 * 12
    held = attention + 12 * 4 + (4 + 1) * 180 + 24 * 12
    assert seen.parameters == 2 * (held + 5 + 3 + 5 * 12)
    assert seen.buffers == 2 * 4
    used = attention + 12 * 4 + (2 + 1) * 180 + 24 * 12 + 12 * 9
    # Two sequences of five positions; scores at 6 and values at 3, two heads.
    assert seen.forward == 2 * 2 * (2 * 5) * (used + 2 * 5 * (6 + 3))
    assert seen.backward == 2 * seen.forward


@pytest.mark.parametrize("name", ["projection", "expert up", "logits"])
def test_a_changed_product_is_found(introduce, name):
    assert not disagreements()
    introduce(rows.Product, lambda row: {"K": row.K + 1}, term=name, layer="mtp")
    assert disagreements() == {"forward", "backward"}


def test_a_module_like_a_dense_layer_is_found(monkeypatch):
    original = MixtureLM.layer
    monkeypatch.setattr(
        MixtureLM, "layer", lambda model, kind: original(model, {**kind, "mlp": "dense"})
    )
    assert disagreements() == {"parameters", "buffers", "forward", "backward"}


def test_every_family_with_modules_is_named():
    with_modules = {name for name, family in FAMILIES.items() if "mtp" in family.options}
    assert with_modules == {*further_predictions.FAMILIES, *further_predictions.UNWITNESSED}
    (check,) = (check for check in matrix.STANDALONE if "predict further tokens" in check.formula)
    assert all(family in check.formula for family in further_predictions.FAMILIES)
    assert any("of minimax_m2" in formula for formula in matrix.WITHOUT_WITNESS)


def test_modules_that_count_as_0_are_refused(monkeypatch):
    from validate.witnesses.hugging_face import networks

    original = networks.build

    def with_grouped_experts(config):
        network = original(config)
        network.set_experts_implementation("grouped_mm")
        return network

    monkeypatch.setattr(networks, "build", with_grouped_experts)
    with pytest.raises(networks.UncountedError, match="grouped_mm"):
        disagreements()


def test_minimax_has_the_same_block():
    config = dict(
        model_type="minimax_m2", vocab_size=9, hidden_size=12, intermediate_size=7,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, num_mtp_modules=3,
    )  # fmt: skip
    model = fc.from_hf(config, 5, mtp=True)
    assert model.num_predictions == 3
    without = dataclasses.replace(model, num_predictions=None)
    assert without == fc.from_hf(config, 5)
