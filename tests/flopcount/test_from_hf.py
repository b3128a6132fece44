"""Models read from Hugging Face configs."""

import dataclasses
import functools
import itertools
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import sympy

import flopcount as fc
from flopcount.hf import FAMILIES, reader

LLAMA = dict(model_type="llama", vocab_size=128256)
PYTHIA = dict(model_type="gpt_neox", vocab_size=50304)
PUBLISHED = {
    "GPT-2": (dict(model_type="gpt2"), 124_439_808),
    "Llama-2-7B": (dict(model_type="llama"), 6_738_415_616),
    "Llama-3-8B": (
        LLAMA | dict(intermediate_size=14336, num_key_value_heads=8), 8_030_261_248,
    ),
    "Llama-3-70B": (
        LLAMA | dict(hidden_size=8192, intermediate_size=28672, num_hidden_layers=80,
                     num_attention_heads=64, num_key_value_heads=8),
        70_553_706_496,
    ),
    "Llama-3.2-1B": (
        LLAMA | dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
                     num_key_value_heads=8, tie_word_embeddings=True),
        1_235_814_400,
    ),
    "SmolLM2-135M": (
        dict(model_type="llama", vocab_size=49152, hidden_size=576, intermediate_size=1536,
             num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
             tie_word_embeddings=True),
        134_515_008,
    ),
    "Mistral-7B-v0.1": (dict(model_type="mistral"), 7_241_732_096),
    "Qwen2.5-0.5B": (
        dict(model_type="qwen2", hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
             num_attention_heads=14, num_key_value_heads=2, tie_word_embeddings=True),
        494_032_768,
    ),
    "Qwen2.5-7B": (
        dict(model_type="qwen2", vocab_size=152064, hidden_size=3584, intermediate_size=18944,
             num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4),
        7_615_616_512,
    ),
    "Qwen3-0.6B": (
        dict(model_type="qwen3", hidden_size=1024, intermediate_size=3072, num_hidden_layers=28,
             num_attention_heads=16, num_key_value_heads=8, tie_word_embeddings=True),
        596_049_920,
    ),
    "Qwen3-8B": (
        dict(model_type="qwen3", intermediate_size=12288, num_hidden_layers=36,
             num_key_value_heads=8),
        8_190_735_360,
    ),
    "Gemma-7B": (dict(model_type="gemma"), 8_537_680_896),
    "Gemma-2-2B": (dict(model_type="gemma2"), 2_614_341_888),
    "Gemma-2-9B": (
        dict(model_type="gemma2", hidden_size=3584, intermediate_size=14336, num_hidden_layers=42,
             num_attention_heads=16, num_key_value_heads=8),
        9_241_705_984,
    ),
    "Gemma-3-1B": (
        dict(model_type="gemma3_text", vocab_size=262144, hidden_size=1152, intermediate_size=6912,
             num_attention_heads=4, num_key_value_heads=1),
        999_885_952,
    ),
    "Phi-2": (
        dict(model_type="phi", hidden_size=2560, intermediate_size=10240, num_hidden_layers=32),
        2_779_683_840,
    ),
    "Phi-3-mini": (dict(model_type="phi3", sliding_window=2047), 3_821_079_552),
    "Falcon-7B": (dict(model_type="falcon"), 6_921_720_704),
    "OPT-125m": (dict(model_type="opt"), 125_239_296),
    "OPT-350m": (
        dict(model_type="opt", hidden_size=1024, ffn_dim=4096, num_hidden_layers=24,
             num_attention_heads=16, word_embed_proj_dim=512, do_layer_norm_before=False),
        331_196_416,
    ),
    "OPT-1.3B": (
        dict(model_type="opt", hidden_size=2048, ffn_dim=8192, num_hidden_layers=24,
             num_attention_heads=32),
        1_315_758_080,
    ),
    "Pythia-160m": (
        PYTHIA | dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
                      num_attention_heads=12),
        162_322_944,
    ),
    "Pythia-1.4B": (
        PYTHIA | dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=24,
                      num_attention_heads=16),
        1_414_647_808,
    ),
    "BLOOM-560m": (
        dict(model_type="bloom", hidden_size=1024, n_layer=24, n_head=16), 559_214_592,
    ),
    "BLOOM-7B1": (
        dict(model_type="bloom", n_embed=4096, n_layer=30, num_attention_heads=32), 7_069_016_064,
    ),
    "MPT-7B": (
        dict(model_type="mpt", d_model=4096, n_layers=32, n_heads=32, vocab_size=50432),
        6_649_286_656,
    ),
    "OLMo-7B": (dict(model_type="olmo"), 6_888_095_744),
    "OLMo-2-7B": (dict(model_type="olmo2", vocab_size=100352), 7_298_617_344),
    "SmolLM3-3B": (dict(model_type="smollm3"), 3_075_098_624),
    "GLM-4-9B": (dict(model_type="glm"), 9_399_951_360),
    "GLM-4-9B-0414": (dict(model_type="glm4"), 9_400_279_040),
}  # fmt: skip
"""What published files say beyond the defaults of their classes, and their pages' parameters."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameters(name):
    config, expected = PUBLISHED[name]
    assert fc.from_hf(config).params().total == expected


CLASSES = {"kimi_k2": "deepseek_v3"}
"""Whose class a family uses that has none of its own in transformers."""

NEEDED = {
    "deepseek_v2": dict(num_experts_per_tok=6),
    "minimax_text_01": dict(num_hidden_layers=2, attn_type_list=[0, 1]),
}
"""Fields that a family's class takes from the file alone."""


def made_by_transformers(model_type, fields):
    """Transformers' own object."""
    return pytest.importorskip("transformers").AutoConfig.for_model(
        CLASSES.get(model_type, model_type), **fields
    )


def ways(model_type, fields, folder):
    """The models that a dict, a file, a folder, transformers' object and its dict give."""
    made = made_by_transformers(model_type, fields)
    given = {"model_type": model_type} | fields
    (folder / "config.json").write_text(json.dumps(given), encoding="utf-8")
    return [
        fc.from_hf(config, 16)
        for config in (given, folder, str(folder / "config.json"), made, made.to_dict())
    ]


def assert_equal_ways(model_type, fields, folder):
    first, *others = ways(model_type, fields, folder)
    assert all(other == first for other in others)
    return first


IN_TRANSFORMERS = [model_type for model_type in FAMILIES if model_type != "minimax_text_01"]
"""Families whose fields are those of a class there."""


@pytest.mark.parametrize("model_type", IN_TRANSFORMERS)
def test_absent_fields_are_what_the_family_takes(model_type, tmp_path):
    assert_equal_ways(model_type, NEEDED.get(model_type, {}), tmp_path)


def test_a_wrong_default_and_a_field_without_a_reader_are_found(tmp_path, monkeypatch):
    mistral = FAMILIES["mistral"]
    heads = FAMILIES["llama"].fields["num_key_value_heads"]  # as many as heads, where absent
    wrong = dataclasses.replace(
        mistral, fields=mistral.fields | {"num_key_value_heads": heads}, without_effect=frozenset()
    )
    monkeypatch.setitem(FAMILIES, "mistral", wrong)
    with pytest.raises(AssertionError):
        assert_equal_ways("mistral", {}, tmp_path)
    with pytest.raises(AssertionError):
        test_nothing_of_the_familys_class_is_not_looked_at("mistral")


SIZES = dict(vocab_size=199, hidden_size=24, intermediate_size=40, num_hidden_layers=5,
             num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
TYPES = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
OWN = {
    "gpt2": [
        dict(n_embd=24, n_layer=3, n_head=4, n_positions=32, n_inner=7, resid_pdrop=0.0),
        dict(n_embd=24, n_layer=3, n_head=4, n_positions=32, activation_function="relu"),
    ],
    "llama": [SIZES | dict(num_key_value_heads=None, head_dim=None), SIZES | dict(head_dim=10),
              SIZES | dict(attention_bias=True, mlp_bias=True, hidden_act="gelu")],
    "mistral": [SIZES | dict(sliding_window=None), SIZES | dict(head_dim=10, sliding_window=3)],
    "qwen2": [SIZES | dict(use_sliding_window=True, sliding_window=3, max_window_layers=2),
              SIZES | dict(sliding_window=3, max_window_layers=2),
              SIZES | dict(use_sliding_window=True, max_window_layers=9),
              SIZES | dict(use_sliding_window=True, sliding_window=5, num_hidden_layers=4,
                           layer_types=TYPES)],
    "qwen3": [SIZES, SIZES | dict(head_dim=6, attention_bias=True),
              SIZES | dict(use_sliding_window=True, sliding_window=3, max_window_layers=2)],
    "gemma": [SIZES | dict(hidden_act="gelu")],
    "gemma2": [SIZES | dict(final_logit_softcapping=None, sliding_window=3),
               SIZES | dict(num_hidden_layers=4, layer_types=TYPES)],
    "gemma3_text": [SIZES | dict(sliding_window=3, sliding_window_pattern=2),
                    SIZES | dict(num_hidden_layers=4, layer_types=TYPES)],
    "phi": [SIZES | dict(qk_layernorm=True, partial_rotary_factor=1.0)],
    "phi3": [SIZES | dict(sliding_window=3), SIZES | dict(partial_rotary_factor=0.5),
             SIZES | dict(rope_scaling=None, resid_pdrop=0.1)],
    "falcon": [dict(hidden_size=24, num_attention_heads=4, num_kv_heads=2),
               dict(hidden_size=24, num_attention_heads=4, num_kv_heads=2,
                    new_decoder_architecture=True),
               dict(hidden_size=24, num_attention_heads=4, new_decoder_architecture=True,
                    num_ln_in_parallel_attn=1, bias=True),
               dict(hidden_size=24, num_attention_heads=4, parallel_attn=False, alibi=True,
                    multi_query=False)],
    "opt": [dict(hidden_size=24, num_attention_heads=4, word_embed_proj_dim=7, ffn_dim=9,
                 do_layer_norm_before=False, layer_norm_elementwise_affine=False),
            dict(hidden_size=24, num_attention_heads=4, _remove_final_layer_norm=True,
                 dropout=0.0, enable_bias=False)],
    "gpt_neox": [dict(hidden_size=32, num_attention_heads=4, intermediate_size=9,
                      rotary_pct=0.5, use_parallel_residual=False, attention_bias=False)],
    "bloom": [dict(hidden_size=24, n_layer=3, n_head=4, hidden_dropout=0.1)],
    "mpt": [dict(d_model=24, n_layers=3, n_heads=4, attn_config=dict(clip_qkv=8.0))],
    "olmo": [SIZES | dict(clip_qkv=8.0, attention_bias=True)],
    "olmo2": [SIZES | dict(attention_bias=True)],
    "smollm3": [SIZES | dict(no_rope_layer_interval=2),
                SIZES | dict(no_rope_layers=[1, 0, 0, 1, 0]),
                SIZES | dict(use_sliding_window=True, sliding_window=3)],
    "glm": [SIZES | dict(head_dim=8, partial_rotary_factor=1.0)],
    "glm4": [SIZES | dict(head_dim=8, attention_bias=False)],
}  # fmt: skip
"""Fields that a family reads, in the spelling of its files."""


@pytest.mark.parametrize(
    ("model_type", "fields"), [(family, fields) for family in OWN for fields in OWN[family]]
)
def test_every_way_to_give_a_config_gives_one_model(model_type, fields, tmp_path):
    model = assert_equal_ways(model_type, fields, tmp_path)
    assert model != fc.from_hf({"model_type": model_type}, 16)


@pytest.mark.parametrize("model_type", IN_TRANSFORMERS)
def test_nothing_of_the_familys_class_is_not_looked_at(model_type):
    read = fc.from_hf(made_by_transformers(model_type, NEEDED.get(model_type, {})))
    assert read.reading.not_looked_at == ()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        # Mistral takes 8 key heads and a window of 4096 by itself; null is as many as heads, none.
        (dict(model_type="mistral"), dict(num_key_value_heads=8, window=4096)),
        (
            dict(model_type="mistral", num_key_value_heads=None, sliding_window=None),
            dict(num_key_value_heads=32, window=None, attention=("full",)),
        ),
        # Qwen3's heads have 128 channels, whatever d is; Llama's d / h.
        (dict(model_type="qwen3", hidden_size=1024), dict(head_dim=128)),
        (dict(model_type="llama", hidden_size=1024), dict(head_dim=32)),
        # Windows void unless used, and then from layer 28 on; 28, 29 … of a period.
        (dict(model_type="qwen2", sliding_window=7), dict(window=None, attention=("full",))),
        (
            dict(model_type="qwen2", sliding_window=7, use_sliding_window=True,
                 max_window_layers=0),
            dict(window=7, attention=("sliding",)),
        ),
        (dict(model_type="gemma2"), dict(window=4096, attention=("sliding", "full"))),
        (dict(model_type="gemma3_text"), dict(attention=("sliding",) * 5 + ("full",))),
        (dict(model_type="smollm3"), dict(positions=("rotary",) * 3 + ("none",))),
        # OPT's table of positions has two rows more than positions.
        (dict(model_type="opt"), dict(num_positions=2050, spare_positions=2)),
        # A quarter of 96 channels, a half of 128.
        (dict(model_type="gpt_neox"), dict(rotary_dim=24)),
        (dict(model_type="glm"), dict(rotary_dim=64, qkv_bias=True, out_bias=False)),
        (dict(model_type="phi3"), dict(rotary_dim=None)),
        # num_kv_heads counts in the new architecture alone.
        (dict(model_type="falcon", num_kv_heads=5), dict(num_key_value_heads=1)),
        (
            dict(model_type="falcon", num_attention_heads=8, hidden_size=64, num_kv_heads=2,
                 new_decoder_architecture=True),
            dict(num_key_value_heads=2, parallel_norms="two"),
        ),
        (dict(model_type="gemma", hidden_act="gelu"), dict(activation="gelu_tanh")),
    ],
)  # fmt: skip
def test_what_fields_mean(config, expected):
    model = fc.from_hf(config)
    assert {name: getattr(model, name) for name in expected} == expected


NAMED = dict(model_type="llama")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, r"config without model_type: expected one of bert, bloom, "),
        (
            dict(model_type="elephant"),
            r"model_type = 'elephant': expected one of 'bert', 'bloom', ",
        ),
        (dict(model_type=["llama"]), r"model_type = \['llama'\] is a list: expected one of"),
        (
            NAMED | dict(architectures=["LlamaForSequenceClassification"]),
            r"architectures = \['LlamaForSequenceClassification'\]: expected one of "
            r"'LlamaForCausalLM'",
        ),
        (NAMED | dict(hidden_size=0), r"hidden_size = 0: expected an integer >= 1"),
        (NAMED | dict(hidden_size="4096"), r"hidden_size = '4096' is a str: expected an integer"),
        (NAMED | dict(hidden_size=4096.0), r"hidden_size = 4096.0 is a float: expected an integer"),
        (NAMED | dict(attention_bias=1), r"attention_bias = 1 is a int: expected True or False"),
        (NAMED | dict(hidden_act="sine"), r"hidden_act = 'sine': expected one of 'gelu', "),
        (NAMED | dict(is_encoder_decoder=True), r"is_encoder_decoder = True of model_type 'llama'"),
        (
            dict(model_type="gpt2", add_cross_attention=True),
            r"add_cross_attention = True of model_type 'gpt2' is not modelled: expected False",
        ),
        (
            dict(model_type="gpt2", n_embd=24, hidden_size=48),
            r"n_embd = 24 and hidden_size = 48: expected one value",
        ),
        (
            dict(model_type="qwen2", num_hidden_layers=3, layer_types=["full_attention"]),
            r"layer_types = \['full_attention'\]: expected a list of 3 entries",
        ),
        (
            dict(model_type="qwen2", num_hidden_layers=1, layer_types=["linear_attention"]),
            r"layer_types\[0\] = 'linear_attention': expected one of 'full_attention'",
        ),
        (
            dict(model_type="qwen3", num_hidden_layers=1, layer_types=["sliding_attention"]),
            r"window = None with attention = \('sliding',\): expected an integer",
        ),
        (
            dict(model_type="gemma3_text", use_bidirectional_attention=True),
            r"use_bidirectional_attention = True of model_type 'gemma3_text' is not modelled",
        ),
        (dict(model_type="mpt", expansion_ratio=3), r"expansion_ratio = 3 of model_type 'mpt'"),
        (
            dict(model_type="mpt", attn_config=dict(alibi=False)),
            r"attn_config.alibi = False of model_type 'mpt' is not modelled: expected True",
        ),
        (dict(model_type="opt", layerdrop=0.1), r"layerdrop = 0.1 of model_type 'opt'"),
        (
            dict(model_type="falcon", new_decoder_architecture=True, parallel_attn=False),
            r"num_ln_in_parallel_attn = 2 with new_decoder_architecture = True and parallel_attn",
        ),
        (dict(model_type="gpt_neox", rotary_pct="all"), r"rotary_pct = 'all': expected a number"),
        (dict(model_type="gpt_neox", rotary_pct=1.5), r"partial_rotary_factor = 1.5: expected"),
        (
            dict(model_type="gemma2", num_hidden_layers=10**40),
            r"num_hidden_layers = 1000.*: expected an int of at most 100000 where layers differ",
        ),
        (
            NAMED | dict(rope_parameters=dict(factors=[np.array(8)])),
            r"rope_parameters.factors\[0\] = array\(8\): expected what JSON has; arrays are for",
        ),
        ("é" * 5000, r"config = 'éé.*: there is no such file"),
        ("\x00", r"config = '\\x00': there is no such file"),
        (42, r"config = 42 is a int: expected a dict, an object with to_dict, or the path"),
        (dict, r"config = <class 'dict'> is a type: expected a dict"),
        ("meta-llama/Llama-3.1-8B", r"there is no such file; nothing is downloaded, so expected"),
    ],
)
def test_what_is_not_modelled_is_refused(config, message):
    with pytest.raises((TypeError, ValueError), match=message):
        fc.from_hf(config)


def refusal(call):
    """What is said against a call; None where it is answered."""
    try:
        call()
    except (TypeError, ValueError) as error:
        return str(error)
    return None


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_field_that_is_read_is_named_where_it_is_refused(model_type, monkeypatch):
    given, known = reader.Config.given, set()
    monkeypatch.setattr(
        reader.Config, "given", lambda self, *names: known.update(names) or given(self, *names)
    )
    needed = dict(num_experts_per_tok=2, model_type=model_type)
    if model_type == "minimax_text_01":
        needed |= dict(attn_type_list=[1] * 32)
    fc.from_hf(needed, 8)
    names = {name for name in known if "." not in name} | {"model_type", "architectures"}
    known |= names | {*FAMILIES[model_type].declaration.kinds(), "text_config"}
    # Of an array, a value without a hash, a symbol and a huge int, Python has words of its own.
    symbol = sympy.Symbol("x", positive=True, integer=True)
    for name, wrong in itertools.product(
        sorted(names), (np.array([]), np.array(8), [{1}], symbol, symbol > 1, 10**30)
    ):
        said = refusal(functools.partial(fc.from_hf, needed | {name: wrong}, 8))
        assert said is None or re.match("|".join(map(re.escape, known)), said)


def test_a_file_that_is_no_config_is_refused(tmp_path):
    file = tmp_path / "config.json"
    for text, message in (("{", r"config\.json: expected JSON \("), ("[1]", r"JSON object, not")):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            fc.from_hf(file)
    with pytest.raises(ValueError, match=r"there is no such file"):
        fc.from_hf(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    "option",
    [dict(target_len=8), dict(target_len=0), dict(target_len=np.array([8, 9])), dict(mtp=True)],
)
def test_options_that_a_family_has_not_are_refused(option):
    (name,) = option
    with pytest.raises(ValueError, match=rf"{name} = .* with model_type = 'llama': it has none"):
        fc.from_hf({"model_type": "llama"}, 8, **option)


def test_a_nested_text_config_is_read_and_the_rest_is_said():
    config = {
        "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"],
        "vision_config": {"hidden_size": 1152}, "mm_tokens_per_image": 256,
        "text_config": {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
                        "sliding_window": 1024},
    }  # fmt: skip
    model = fc.from_hf(config, 2048)
    alone = fc.from_hf(config["text_config"] | {"model_type": "gemma3_text"}, 2048)
    assert model == alone
    assert model.reading.head == "Gemma3ForConditionalGeneration"
    assert "left out: vision_config" in str(model)
    made = pytest.importorskip("transformers").AutoConfig.for_model(
        "gemma3", text_config=config["text_config"]
    )
    assert fc.from_hf(made, 2048) == fc.from_hf(made.to_dict(), 2048) == model


def test_the_output_layer_of_a_nested_text_config_may_be_said_outside():
    text = {"hidden_size": 64, "num_hidden_layers": 2}
    outside = {"model_type": "gemma3", "text_config": text, "tie_word_embeddings": False}
    assert not fc.from_hf(outside).tie_embeddings
    assert fc.from_hf(outside | {"tie_word_embeddings": None}).tie_embeddings
    assert fc.from_hf({"model_type": "gemma3"}) == fc.from_hf({"model_type": "gemma3_text"})
    with pytest.raises(ValueError, match=r"tie_word_embeddings = False with True in text_config"):
        fc.from_hf(outside | {"text_config": text | {"tie_word_embeddings": True}})


FILES = {
    "gpt2": dict(
        activation_function="gelu_new", architectures=["GPT2LMHeadModel"], attn_pdrop=0.1,
        bos_token_id=50256, embd_pdrop=0.1, eos_token_id=50256, initializer_range=0.02,
        layer_norm_epsilon=1e-05, n_ctx=1024, n_embd=768, n_head=12, n_layer=12, n_positions=1024,
        resid_pdrop=0.1, summary_activation=None, summary_first_dropout=0.1,
        summary_proj_to_labels=True, summary_type="cls_index", summary_use_proj=True,
        task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}},
        vocab_size=50257,
    ),
    "opt": dict(
        _remove_final_layer_norm=False, activation_dropout=0.0, activation_function="relu",
        architectures=["OPTForCausalLM"], attention_dropout=0.0, bos_token_id=2,
        do_layer_norm_before=True, dropout=0.1, eos_token_id=2, ffn_dim=3072, hidden_size=768,
        init_std=0.02, layerdrop=0.0, max_position_embeddings=2048, num_attention_heads=12,
        num_hidden_layers=12, pad_token_id=1, prefix="</s>", torch_dtype="float16",
        transformers_version="4.21.0.dev0", use_cache=True, vocab_size=50272,
        word_embed_proj_dim=768,
    ),
    "bloom": dict(
        apply_residual_connection_post_layernorm=False, attention_dropout=0.0,
        attention_softmax_in_fp32=True, bias_dropout_fusion=True, bos_token_id=1, eos_token_id=2,
        pad_token_id=3, unk_token_id=0, hidden_dropout=0.0, initializer_range=0.02,
        layer_norm_epsilon=1e-05, masked_softmax_fusion=True, n_embed=1024, n_inner=None,
        n_layer=24, num_attention_heads=16, offset_alibi=100, pretraining_tp=1, seq_length=2048,
        skip_bias_add=True, skip_bias_add_qkv=False, transformers_version="4.20.0", use_cache=True,
        vocab_size=250880,
    ),
    "llama": dict(
        architectures=["LlamaForCausalLM"], attention_bias=False, attention_dropout=0.0,
        bos_token_id=128000, eos_token_id=[128001, 128008], hidden_act="silu", hidden_size=4096,
        initializer_range=0.02, intermediate_size=14336, max_position_embeddings=131072,
        mlp_bias=False, num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=8,
        pretraining_tp=1, rms_norm_eps=1e-05, rope_theta=500000.0, tie_word_embeddings=False,
        rope_scaling={"factor": 8.0, "rope_type": "llama3", "low_freq_factor": 1.0},
        torch_dtype="bfloat16", transformers_version="4.42.3", use_cache=True, vocab_size=128256,
    ),
    "gemma2": dict(
        architectures=["Gemma2ForCausalLM"], attention_bias=False, attention_dropout=0.0,
        attn_logit_softcapping=50.0, bos_token_id=2, cache_implementation="hybrid", eos_token_id=1,
        final_logit_softcapping=30.0, head_dim=256, hidden_act="gelu_pytorch_tanh",
        hidden_activation="gelu_pytorch_tanh", hidden_size=2304, initializer_range=0.02,
        intermediate_size=9216, max_position_embeddings=8192, num_attention_heads=8,
        num_hidden_layers=26, num_key_value_heads=4, pad_token_id=0, query_pre_attn_scalar=256,
        rms_norm_eps=1e-06, rope_theta=10000.0, sliding_window=4096, torch_dtype="float32",
        transformers_version="4.42.4", use_cache=True, vocab_size=256000,
    ),
}  # fmt: skip
"""Whole files, as the hub has them."""
WHOSE = {"gpt2": "GPT-2", "opt": "OPT-125m", "bloom": "BLOOM-560m", "llama": "Llama-3-8B",
         "gemma2": "Gemma-2-2B"}  # fmt: skip


@pytest.mark.parametrize("model_type", FILES)
def test_a_published_file_is_read_whole(model_type):
    model = fc.from_hf({"model_type": model_type} | FILES[model_type], 1024)
    assert model.reading.not_looked_at == ()
    assert model.reading.head == FILES[model_type].get("architectures", ["BloomForCausalLM"])[0]
    _, published = PUBLISHED[WHOSE[model_type]]
    assert model.params().total == published


def test_fields_that_nobody_knows_are_named():
    config = {"model_type": "llama", "auto_map": {"AutoConfig": "x.Y"}, "zebra": 1}
    model = fc.from_hf(config)
    assert model.reading.not_looked_at == ("auto_map", "zebra")
    assert "not looked at: auto_map, zebra" in str(model)
    assert model == fc.from_hf({"model_type": "llama"})


def test_a_model_says_in_plain_words_what_it_is(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    gemma = dict(PUBLISHED["Gemma-3-1B"][0], zebra=1)
    rest = (
        "4 heads of 256 channels, 1 of keys and values, rotary positions, queries and keys normed "
        "per head; gated MLP of 6,912 channels, gelu_tanh"
    )
    assert str(fc.from_hf(gemma)).splitlines() == [
        "gemma3_text (Gemma3ForCausalLM): 999,885,952 parameters; a token is multiplied by "
        "999,751,680, the N of 2N",
        "  26 layers of 1,152 channels; vocabulary of 262,144, output layer tied to the embedding",
        "  22 layers, sliding (0 to 4 of every 6): attention to the last 4,096 positions, " + rest,
        f"  4 layers, full (5 of every 6): attention to all earlier positions, {rest}",
        "  not looked at: zebra",
    ]
    gpt2 = str(fc.from_hf({"model_type": "gpt2"})).splitlines()
    assert gpt2[2] == (
        "  12 layers, all: attention to all earlier positions, 12 heads of 64 channels, biases; "
        "MLP of 3,072 channels, gelu_tanh, biases"
    )
    monkeypatch.setenv("COLUMNS", "60")
    assert max(map(len, str(fc.from_hf(gemma)).splitlines())) <= 60


def test_where_a_model_is_from_changes_no_count_and_is_in_its_json():
    model = fc.from_hf({"model_type": "llama", "zebra": 1}, 8)
    assert model.flops().to_dict()["model"]["config"]["not_looked_at"] == ("zebra",)
    assert dataclasses.replace(model, reading=None) == model
    assert dataclasses.replace(model, seq_len=9).reading == model.reading


def spared(config):
    """Products of a layer that non-reentrant checkpointing does not execute again."""
    terms = fc.from_hf(config, 8).flops(checkpointing="non-reentrant").terms
    return {term.term for term in terms if not term.recomputed} - {"logits", "project in",
                                                                   "project out"}  # fmt: skip


@pytest.mark.parametrize("model_type", FAMILIES)
def test_what_checkpointing_spares(model_type):
    # The last product of a layer, unless a norm or a dropout behind it needs its output.
    needed = {"gemma2", "gemma3_text", "glm4", "olmo2", "gpt2", "opt"}
    least = {"model_type": model_type} | NEEDED.get(model_type, {})
    if isinstance(fc.from_hf(least), fc.CausalLM) and model_type in OWN:
        expected = set() if model_type in needed else {"mlp down"}
        assert spared({"model_type": model_type}) == expected


def test_a_dropout_keeps_what_checkpointing_would_spare():
    assert spared({"model_type": "gpt2", "resid_pdrop": 0.0}) == {"mlp down"}
    assert spared({"model_type": "opt", "dropout": 0.0}) == {"mlp down"}
    assert spared({"model_type": "opt", "dropout": 0.0, "do_layer_norm_before": False}) == set()
    assert spared({"model_type": "bloom", "hidden_dropout": 0.1}) == set()


def test_reading_a_config_loads_nothing_heavy(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}), encoding="utf-8")
    heavy = ("torch", "numpy", "sympy", "transformers", "huggingface_hub")
    code = (
        f"import sys, flopcount as fc; fc.from_hf({str(tmp_path)!r}, 8).flops().total; "
        f"print(*[name for name in {heavy!r} if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert run.stdout.strip() == ""


def test_formulas_of_a_config_have_its_sizes_beside():
    model = fc.from_hf(PUBLISHED["Gemma-3-1B"][0])
    explained = fc.explain(model)
    assert "L layers = 26" in explained.legend
    assert "n positions," in explained.legend
    texts = {(f.layer, f.term): f.text for f in explained.matmuls}
    assert texts["full", "key"] == "2*B*c*d*g*n*ceiling(L/6 - 5/6)"
    symbols = dict(B=1, V=262144, d=1152, L=26, h=4, f=6912, n=100, g=1, c=256, W=4096)
    counted = {
        (t.layer, t.term): t.forward for t in dataclasses.replace(model, seq_len=100).flops().terms
    }
    for formula in explained.matmuls:
        value = formula.expression.subs(
            {symbol: symbols[symbol.name] for symbol in formula.expression.free_symbols}
        )
        assert value == counted[formula.layer, formula.term]
    # Where layers do not repeat, their number is no letter.
    half = fc.from_hf(dict(model_type="qwen2", use_sliding_window=True, max_window_layers=2,
                           sliding_window=3, num_hidden_layers=5))  # fmt: skip
    assert "L layers" not in fc.explain(half).legend


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_way_to_count_is_compared(model_type):
    own = OWN.get(model_type, [NEEDED.get(model_type, {})])[0]
    lengths = dict(target_len=9) if "target_len" in FAMILIES[model_type].options else {}
    compared = fc.compare(fc.from_hf({"model_type": model_type} | own, 16, **lengths))
    causal = compared.rows[0].self_part
    for row in compared.rows:
        if row.self_ratio is not None:
            assert row.self_part - causal == sum(entry.flops for entry in row.differences)
