"""Families with scans, read from Hugging Face configs whichever way these are given."""

import pytest

import flopcount as fc
from flopcount.testing import scan_configs
from validate.witnesses.hugging_face import families, published

STATED = {
    # In billions what the source states, of all parameters and of those that a token uses, and how
    # many of the tables of the input and the output the latter leaves out.
    "MiniMax-Text-01": ("456", "45.9", 2, "arXiv 2501.08313, abstract"),
    "MiniMax-Text-01, its own file": ("456", "45.9", 2, "arXiv 2501.08313, abstract"),
    "Qwen3-Next-80B-A3B": ("80", "3", 2, "its model card"),
    "Jamba-v0.1": ("52", "12", 0, "arXiv 2403.19887, section 1"),
    "Mamba-Codestral-7B": ("7.285403648", "7.285403648", 0, "mistral.ai/news/codestral-mamba"),
}


@pytest.mark.parametrize("name", published.SCANS)
def test_published_parameters(name):
    stated, stated_active, tables, source = STATED[name]
    model = fc.from_hf(published.SCANS[name])
    assert model.reading.not_looked_at == ()
    active = model.params().active - tables * model.vocab_size * model.num_channels
    for found, figure in ((model.params().total, stated), (active, stated_active)):
        # Rounded or cut to the digits stated.
        assert abs(found / 1e9 - float(figure)) < 10 ** -len(figure.partition(".")[2]), source


@pytest.mark.parametrize("model_type", [name for name in scan_configs.DRAWN if "01" not in name])
def test_a_dict_an_object_and_its_dict_give_equal_models(model_type):
    for case in families.drawn(model_type, 12):
        fields = {key: value for key, value in case.config.items() if key != "model_type"}
        made = pytest.importorskip("transformers").AutoConfig.for_model(model_type, **fields)
        first, *others = (fc.from_hf(given, 5) for given in (case.config, made, made.to_dict()))
        assert others == [first, first], case
        assert first.reading.not_looked_at == ()


def test_names_of_its_own_file_are_those_of_transformers():
    for case in families.drawn("minimax_text_01", 12):
        translated = scan_configs.in_transformers_names(case.config) | {"model_type": "minimax"}
        assert fc.from_hf(translated) == fc.from_hf(case.config), case
