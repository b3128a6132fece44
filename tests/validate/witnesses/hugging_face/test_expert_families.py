"""What the witness of families with experts would find, were a rule of theirs wrong."""

import dataclasses

import pytest

from flopcount import rows
from flopcount.hf import FAMILIES
from validate.witnesses.hugging_face import families, published

COMMON = dict(
    vocab_size=9, hidden_size=12, intermediate_size=7, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, head_dim=6, num_experts_per_tok=2, pad_token_id=None, bos_token_id=None,
    eos_token_id=None,
)  # fmt: skip
MIXTRAL = COMMON | dict(model_type="mixtral", num_local_experts=5)
QWEN2 = COMMON | dict(
    model_type="qwen2_moe", num_experts=5, moe_intermediate_size=4,
    shared_expert_intermediate_size=3,
)  # fmt: skip
DEEPSEEK = {key: size for key, size in COMMON.items() if key != "head_dim"} | dict(
    model_type="deepseek_v3", num_key_value_heads=2, n_routed_experts=4, n_group=2, topk_group=1,
    moe_intermediate_size=4, first_k_dense_replace=1, q_lora_rank=5, kv_lora_rank=3,
    qk_nope_head_dim=4, qk_rope_head_dim=2, v_head_dim=3,
)  # fmt: skip
LLAMA4 = COMMON | dict(
    model_type="llama4_text", num_local_experts=5, attention_chunk_size=3, intermediate_size_mlp=8,
    interleave_moe_layer_step=2,
)  # fmt: skip


def disagreements(config):
    found = families.compare(config, 5)
    return {name for name, missed in found.items() if missed}


def reading(monkeypatch, family, **fields):
    """The family reads these fields of the declaration otherwise."""
    own = FAMILIES[family]
    wrong = dataclasses.replace(own, fields={**own.fields, **fields})
    monkeypatch.setitem(FAMILIES, family, wrong)


def test_without_errors_nothing_is_found():
    for config in (MIXTRAL, QWEN2, DEEPSEEK, LLAMA4):
        assert disagreements(config) == set()


@pytest.mark.parametrize(
    ("config", "fields", "found"),
    [
        # The shared expert first: its last product is executed again.
        (DEEPSEEK, dict(shared_first=True), {"recompute, non-reentrant"}),
        # Last, and no gate's product that needs it: it would be spared.
        (QWEN2, dict(shared_first=False), set()),
        (
            QWEN2,
            dict(shared_first=False, shared_gate=False),
            {"parameters", "forward", "backward", "decoder shared gate", "recompute, reentrant",
             "recompute, non-reentrant"},
        ),
        (DEEPSEEK, dict(router_correction=False), {"buffers"}),
        (MIXTRAL, dict(router_correction=True), {"buffers"}),
        # Weighted before them, the experts' last product would be spared.
        (MIXTRAL, dict(weighted="input"), {"recompute, non-reentrant"}),
        (MIXTRAL, dict(expert_bias=True), {"parameters"}),
        (DEEPSEEK, dict(latent_bias=True), {"parameters"}),
    ],
)  # fmt: skip
def test_a_rule_of_another_family_is_found(monkeypatch, config, fields, found):
    reading(monkeypatch, config["model_type"], **fields)
    assert disagreements(config) == found


def test_another_number_of_experts_is_found(monkeypatch):
    reading(monkeypatch, "mixtral", experts_per_token=1)
    assert disagreements(MIXTRAL) == {
        "forward", "backward", "decoder expert gate+expert up", "decoder expert down",
        "recompute, reentrant", "recompute, non-reentrant",
    }  # fmt: skip


def test_parameters_of_experts_that_a_token_does_not_use_are_found(introduce):
    introduce(rows.Tensor, lambda row: {"factors": row.used}, name="expert up")
    assert disagreements(MIXTRAL) == {"parameters"}


def test_scores_and_values_of_latent_attention_differ_in_depth(introduce):
    introduce(rows.Product, lambda row: {"K": 3}, term="scores", layer="sparse")
    assert {"forward", "sparse scores"} <= disagreements(DEEPSEEK)


def test_llama_4_executes_all_experts(monkeypatch):
    # In the second of two layers, three products of each of 5 - 2 experts more: 2 sequences of 5
    # tokens, d = 12 and x = 7.
    more = families.executed_beyond(families.fc.from_hf(LLAMA4, 5))
    names = {term for _, term in more}
    assert names == {"expert gate", "expert up", "expert down"}
    forward = 3 * 2 * (2 * 5) * 12 * 7
    assert set(more.values()) == {(forward, 2 * forward)}
    monkeypatch.setattr(families, "executed_beyond", lambda model: {})
    assert {"forward", "backward", "recompute, reentrant"} <= disagreements(LLAMA4)
    # Where a token uses all of them, nothing is executed beyond.
    assert disagreements(LLAMA4 | dict(num_experts_per_tok=5)) == set()


def test_no_other_family_executes_more():
    for config in (MIXTRAL, QWEN2, DEEPSEEK):
        assert families.executed_beyond(families.fc.from_hf(config, 5)) == {}


@pytest.mark.parametrize("name", ["Qwen1.5-MoE-A2.7B", "gpt-oss-20b", "Llama-4-Maverick"])
def test_published_sizes(name):
    found = families.compare(published.EXPERTS[name], 1000, device="meta")
    assert set(found.values()) == {0}
    assert {"parameters", "buffers", "forward", "backward"} < set(found)


def test_kimi_is_witnessed_by_the_code_of_deepseek():
    assert "DeepseekV3ForCausalLM, at its sizes" in families.witness("kimi_k2")
    assert disagreements(DEEPSEEK | dict(model_type="kimi_k2")) == set()
