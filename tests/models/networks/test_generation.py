"""Generation: the cached path is the uncached one, and both follow the stated rule."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import Decoder, PerceiverAR
from models.networks.generation import generate

VOCAB_SIZE = 13


def sharpened(model):
    """Weights large enough that the next token depends on the context."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model.double()


def perceiver(num_prefix=4, num_latents=4, num_layers=2, **changes):
    return sharpened(
        PerceiverAR(VOCAB_SIZE, num_latents, num_prefix, 8, num_layers, num_heads=2, **changes)
    )


def draw_prompt(length, batch=1):
    return torch.randint(VOCAB_SIZE, (batch, length))


def recorded(model):
    """Last logits and numbers of tokens of every forward pass to come."""
    logits, lengths = [], []
    model.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    model.register_forward_hook(lambda _, __, output: logits.append(output[:, -1]))
    return logits, lengths


@settings(max_examples=40)
@given(
    num_prefix=st.integers(0, 5),
    num_latents=st.integers(1, 5),
    num_layers=st.integers(1, 3),
    length=st.integers(1, 12),
    data=st.data(),
)
def test_cached_logits_and_tokens_are_the_uncached_ones(
    num_prefix, num_latents, num_layers, length, data
):
    """Twenty-four new tokens fill the latents, then the prefix, then slide the window."""
    options = {
        "num_latents": data.draw(st.integers(1, min(num_latents, length))),
        "block": data.draw(st.integers(1, num_latents)),
    }
    torch.manual_seed(data.draw(st.integers(0, 99)))
    model = perceiver(num_prefix, num_latents, num_layers)
    logits, _ = recorded(model)
    prompt = draw_prompt(length, batch=2)
    cached = generate(model, prompt, 24, **options)
    uncached = generate(model, prompt, 24, use_cache=False, **options)
    assert torch.equal(cached, uncached)
    torch.testing.assert_close(torch.stack(logits[:24]), torch.stack(logits[24:]))


def test_cached_draws_are_the_uncached_ones():
    model = perceiver().float()
    options = {"temperature": 1.0, "top_k": 5, "seed": 3}
    cached = generate(model, draw_prompt(3, batch=2), 30, **options)
    uncached = generate(model, cached[:, :3], 30, use_cache=False, **options)
    assert torch.equal(cached, uncached)
    other = generate(model, cached[:, :3], 30, temperature=1.0, top_k=5, seed=4)
    assert not torch.equal(cached, other)


def test_decoder_slides_its_window():
    model = sharpened(Decoder(VOCAB_SIZE, 4, 8, 2, 2))
    logits, lengths = recorded(model)
    tokens = generate(model, draw_prompt(3), 7)
    # Prompt of 3; the fourth alone; the fifth finds 4: two go, the rest is passed again.
    assert lengths == [3, 1, 3, 1, 3, 1, 3]
    for step, length in enumerate([3, 4, 3, 4, 3, 4, 3]):
        end = 3 + step
        expected = model(tokens[:, end - length : end])[:, -1]
        torch.testing.assert_close(logits[step], expected)
        assert tokens[0, end] == expected.argmax()


def test_the_rule_step_by_step():
    """M = 3, N = 4, block 2, a prompt of 3: (prefix, latents) written out for every new token."""
    model = perceiver(num_prefix=3, num_latents=4)
    logits, lengths = recorded(model)
    tokens = generate(model, draw_prompt(3), 9, block=2)
    splits = [
        (2, 1),  # the prompt: one latent
        (2, 2),
        (2, 3),
        (2, 4),
        (3, 3),  # two latents became prefix, its oldest token left: the window slides
        (3, 4),
        (3, 3),
        (3, 4),
        (3, 3),
    ]
    assert lengths == [3, 1, 1, 1, 6, 1, 6, 1, 6]
    for step, (prefix, latents) in enumerate(splits):
        end = 3 + step
        expected = model(tokens[:, end - prefix - latents : end], prefix_length=prefix)[:, -1]
        torch.testing.assert_close(logits[step], expected)
        assert tokens[0, end] == expected.argmax()


def test_reusing_the_cache_when_latents_become_prefix_would_be_wrong():
    """The twin of the rule: what a latent computed is not what it computes as prefix."""
    model = perceiver(num_prefix=6, num_latents=4).eval()
    tokens = draw_prompt(6)
    as_latents = model(tokens, prefix_length=2)[:, -1]
    as_prefix = model(tokens, prefix_length=4)[:, -1]
    assert not torch.allclose(as_latents, as_prefix)


def test_training_mode_comes_back_and_dropout_stays_out():
    model = perceiver(prefix_dropout=0.5).train()
    prompt = draw_prompt(6)
    assert torch.equal(generate(model, prompt, 9), generate(model, prompt, 9))
    assert model.training


def test_no_new_token_returns_the_prompt():
    prompt = draw_prompt(3)
    assert torch.equal(generate(perceiver(), prompt, 0), prompt)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"prompt": torch.zeros(1, 3)}, TypeError, "prompt must hold integers, got torch.float32"),
        ({"prompt": torch.zeros(3, dtype=torch.long)}, ValueError, r"prompt must be .* \(3,\)"),
        ({"prompt": torch.zeros(1, 0, dtype=torch.long)}, ValueError, r"got \(1, 0\)"),
        ({"prompt": torch.tensor([[0, 13]])}, ValueError, "tokens from 0 to 12, got 0 to 13"),
        ({"num_tokens": -1}, ValueError, "num_tokens must be at least 0, got -1"),
        ({"num_latents": 5}, ValueError, "num_latents must be from 1 to 3, got 5"),
        ({"block": 0}, ValueError, "block must be from 1 to 4, got 0"),
        ({"temperature": -1.0}, ValueError, "temperature must be at least 0, got -1.0"),
        ({"temperature": float("nan")}, ValueError, "temperature must be at least 0, got nan"),
        ({"top_k": 0}, ValueError, "top_k must be from 1 to 13, got 0"),
        (
            {"seed": 2**64},
            ValueError,
            r"seed must be from 0 to 2\^64 - 1, got 18446744073709551616",
        ),
        ({"top_k": 3}, ValueError, "top_k must be None at temperature 0, got 3"),
    ],
)
def test_bad_arguments_are_named(changes, error, message):
    arguments = {"prompt": torch.zeros(1, 3, dtype=torch.long), "num_tokens": 2} | changes
    with pytest.raises(error, match=message):
        generate(perceiver(), **arguments)
