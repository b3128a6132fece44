"""The assertion for other projects: it passes on what is described, and names what is not."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

import flopcount as fc
from flopcount import testing
from flopcount.testing import assert_counts
from validate.witnesses.networks import PRODUCTS, build

LLAMA = fc.Llama(
    vocab_size=11, seq_len=5, num_channels=8, num_layers=2, num_heads=2, intermediate_size=12
)
NAMES = {f"layers.*.{module}": ("decoder", term) for module, term in PRODUCTS.items()} | {
    "output": ("output", "logits")
}


@settings(max_examples=10)
@given(testing.models())
def test_networks_are_what_they_are_described_as(model):
    assert_counts(build(model, device="cpu"), model)


@pytest.mark.parametrize(
    "options",
    [
        dict(names=NAMES),
        dict(batch_size=3),
        dict(training=False),
        dict(checkpointing="reentrant"),
        dict(checkpointing="non-reentrant", names=NAMES),
    ],
    ids=str,
)
def test_it_passes_on_every_option(options):
    built = {
        name: value for name, value in options.items() if name in ("training", "checkpointing")
    }
    assert_counts(build(LLAMA, **built), LLAMA, **options)


def test_inputs_of_ones_own():
    ids = torch.ones(4, 5, dtype=torch.long)
    assert_counts(build(LLAMA, device="cpu"), LLAMA, ids, batch_size=4)
    keywords = {"tokens": ids}
    assert_counts(build(LLAMA, device="cpu"), LLAMA, keywords=keywords, batch_size=4)


def wider(network):
    network.layers[1].attention.out = nn.Linear(8, 8, bias=True)


def deeper(network):
    network.layers[0].mlp = nn.Sequential(network.layers[0].mlp, nn.Linear(8, 8, bias=False))


@pytest.mark.parametrize(
    ("change", "named", "message"),
    [
        # 2·11·8 of tables, 2·(4·8·8 + 3·8·12 + 2·8) of layers, 8 of the last norm; 8 of a bias.
        (wider, False, "parameters: the module has 1,312, Llama 1,304"),
        # 2 sequences · 5 positions · 8 · 8, twice, forward; twice that backward.
        (deeper, False, r"forward: the module executes [\d,]+ FLOPs, Llama says"),
        (deeper, True, r"layers\.0\.mlp\.1 +mm +1,280 +2,560 +0"),
    ],
)
def test_what_differs_is_named(change, named, message):
    network = build(LLAMA, device="cpu")
    change(network)
    # The names of one MLP are others, once it is in a sequence.
    names = NAMES | {
        f"layers.0.mlp.0.{name}": ("decoder", f"mlp {name}") for name in ("gate", "up", "down")
    }
    with pytest.raises(AssertionError, match=message):
        assert_counts(network, LLAMA, names=names if named else None)


def test_what_is_not_counted_fails():
    class WithOne(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = build(LLAMA, device="cpu")

        def forward(self, tokens):
            return torch.fft.rfft(self.network(tokens)).real

    with pytest.raises(AssertionError, match="could not be counted: aten::_fft_r2c in"):
        assert_counts(WithOne(), LLAMA)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(architecture="llama"), TypeError, "architecture = 'llama'"),
        (dict(module=3), TypeError, "module = 3: expected a torch.nn.Module"),
        (dict(training=False), ValueError, r"expected module\.eval\(\)"),
        (dict(level="executed"), ValueError, "level = 'executed'"),
        (dict(batch_size=0), ValueError, "batch_size = 0"),
        (
            dict(architecture=fc.Llama(**LLAMA.arguments() | dict(seq_len=np.array([3, 4])))),
            TypeError,
            "architecture has sizes that are no ints",
        ),
    ],
    ids=str,
)
def test_arguments_are_checked(options, error, message):
    given = dict(module=build(LLAMA, device="cpu"), architecture=LLAMA) | options
    with pytest.raises(error, match=message):
        assert_counts(given.pop("module"), given.pop("architecture"), **given)


def test_configs_are_read_and_of_every_family():
    for family in testing.strategies.CONFIGS:
        for config in testing.draw(testing.configs(family), 3):
            assert config["model_type"] == family
    (either,) = {c["model_type"] for c in testing.draw(testing.configs("gemma2"), 5)}
    assert either == "gemma2"
    both = {c["model_type"] for c in testing.draw(testing.configs("llama", "gpt2"), 20)}
    assert both == {"llama", "gpt2"}


@given(testing.configs("llama", "qwen3"), testing.lengths("llama"))
@settings(max_examples=10)
def test_configs_become_architectures(config, length):
    assert fc.from_hf(config, length).flops().total > 0


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: testing.configs("lama"),
        lambda: testing.configs(3),
        lambda: testing.lengths("lama"),
        lambda: testing.models(1),
        lambda: testing.models(2.5),
    ],
)
def test_strategies_check_their_arguments(wrong):
    with pytest.raises((TypeError, ValueError), match=r"famil|largest"):
        wrong()
