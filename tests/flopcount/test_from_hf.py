"""Models read from Hugging Face configs."""

import json

import pytest
from transformers import AutoConfig

import flopcount as fc
from flopcount.hf import FAMILIES

SIZES = dict(vocab_size=199, hidden_size=24, intermediate_size=40, num_hidden_layers=5,
             num_attention_heads=4, num_key_value_heads=2, head_dim=6)  # fmt: skip
"""Of a small model, by the names that most families use."""

PUBLISHED = {
    "gpt2": (dict(model_type="gpt2"), 124_439_808),
    "Llama-3-8B": (
        dict(model_type="llama", vocab_size=128256, hidden_size=4096, intermediate_size=14336,
             num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8),
        8_030_261_248,
    ),
    "Mistral-7B-v0.1": (dict(model_type="mistral"), 7_241_732_096),
    "Qwen2.5-7B": (
        dict(model_type="qwen2", vocab_size=152064, hidden_size=3584, intermediate_size=18944,
             num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4),
        7_615_616_512,
    ),
    "Qwen3-0.6B": (
        dict(model_type="qwen3", vocab_size=151936, hidden_size=1024, intermediate_size=3072,
             num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8,
             tie_word_embeddings=True),
        596_049_920,
    ),
    "Qwen3-8B": (
        dict(model_type="qwen3", vocab_size=151936, hidden_size=4096, intermediate_size=12288,
             num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8),
        8_190_735_360,
    ),
}  # fmt: skip
"""Sizes of published files, and the number of parameters that their pages state."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameters(name):
    config, expected = PUBLISHED[name]
    assert fc.from_hf(config).params().total == expected


def ways(model_type, fields, folder):
    """The models that a dict, a file, transformers' object and its dict give."""
    made = AutoConfig.for_model(model_type, **fields)
    given = {"model_type": model_type} | fields
    (folder / "config.json").write_text(json.dumps(given))
    return [
        fc.from_hf(config, 16)
        for config in (given, folder, str(folder / "config.json"), made, made.to_dict())
    ]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_absent_fields_are_what_the_family_takes(model_type, tmp_path):
    first, *others = ways(model_type, {}, tmp_path)
    assert all(other == first for other in others)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_nothing_of_the_familys_class_is_not_looked_at(model_type):
    read = fc.from_hf(AutoConfig.for_model(model_type))
    assert read.reading.not_looked_at == ()
