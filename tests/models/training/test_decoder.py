"""A plain decoder is trained, resumed, continued and swept wherever Perceiver AR is."""

import dataclasses

import pytest
import torch

import flopcount
from models.networks.decoder import Decoder
from models.networks.generation import generate
from models.sweeps.plan import plan_runs
from models.training import run as training
from models.training.run import ModelConfig, load_model, train

MODEL = ModelConfig(
    num_latents=8,
    num_prefix=0,
    num_channels=8,
    num_layers=2,
    num_heads=2,
    architecture="decoder",
)
COUNTED = flopcount.Decoder(vocab_size=262, seq_len=8, num_channels=8, num_layers=2, num_heads=2)


@pytest.fixture
def config(train_config):
    return dataclasses.replace(train_config, model=MODEL, steps=6, validations=2)


def test_a_decoder_trains_resumes_to_the_bit_and_continues_a_text(config, tmp_path, monkeypatch):
    rows = train(config, tmp_path / "whole")
    # Each step: 3 sequences of 8 positions.
    assert rows[-1]["tokens"] == 6 * 3 * 8
    assert rows[-1]["flops"] == 6 * COUNTED.flops(batch_size=3).total

    def interrupt(done):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "part", interrupt)
    resumed = train(config, tmp_path / "part")
    assert resumed[-1]["validation_loss"] == rows[-1]["validation_loss"]
    whole, part = (load_model(tmp_path / name) for name in ("whole", "part"))
    assert isinstance(whole, Decoder)
    params = sum(p.numel() for p in whole.parameters())
    assert params == COUNTED.params().total
    assert (
        params != dataclasses.replace(MODEL, architecture="perceiver-ar").counted().params().total
    )
    pairs = zip(whole.parameters(), part.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert generate(whole, torch.zeros(1, 3, dtype=torch.long), 7).shape == (1, 10)


def test_a_sweep_of_decoders_meets_its_budgets(sweep_config):
    runs = plan_runs(dataclasses.replace(sweep_config, model=MODEL))
    assert {run.config.model.architecture for run in runs} == {"decoder"}
    for run in runs:
        model = run.config.model
        counted = flopcount.Decoder(
            vocab_size=262,
            seq_len=8,
            num_channels=model.num_channels,
            num_layers=model.num_layers,
            num_heads=model.num_heads,
        )
        assert run.parameters == counted.params().total
        assert 0 <= run.flops - run.budget < counted.flops(batch_size=2).total


@pytest.mark.parametrize(("name", "value"), [("num_prefix", 6), ("prefix_dropout", 0.5)])
def test_a_decoder_with_a_prefix_is_refused(config, name, value):
    wrong = dataclasses.replace(config, model=dataclasses.replace(MODEL, **{name: value}))
    with pytest.raises(ValueError, match=rf"model\.{name} must be 0 for a decoder, got {value}"):
        training.check_config(wrong)


@pytest.mark.parametrize("attention", ["reference", "fused"])
def test_a_decoders_step_is_rated_by_what_it_executes(attention):
    speed = training.measure(MODEL.counted(), 3, attention, None, None, "fp32", 1)
    assert speed.causal.tokens == 3 * 8
    assert speed.causal.total == COUNTED.flops(batch_size=3).total
    assert speed.executed.total >= speed.causal.total
