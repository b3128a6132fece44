"""Text from a model, token by token, with or without a key/value cache.

The context is a prefix of at most M tokens followed by at most N latents, and it follows one rule,
whether or not a cache is used:

1. Of the prompt's last M + N tokens, the last ``num_latents`` are latents, the rest is prefix.
   By default latents are as few as they can be: one where the prompt has at most M + 1 tokens.
2. Every new token becomes a latent. The prefix stays as it is, so each layer's keys and values of
   earlier latents stay valid, and the cache serves.
3. When a new token finds N latents, the oldest ``block`` of them move into the prefix. They are
   then seen by the hybrid layer only, which changes what all later latents saw: nothing cached
   may be reused, and the cache is rebuilt from the tokens.
4. A prefix of more than M tokens loses its oldest: the window slides.

Latents take positions M, M + 1, … and a shorter prefix is aligned to their left, as in training.
A decoder-only model has M = 0 and N = its sequence length, and follows the same rule.

Without a cache every token costs a forward pass over the context; with it, one over the token,
except once in ``block`` tokens.

Letters: B batch, T tokens of the prompt, M prefix positions, N latents, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.limits import Seed, check
from models.networks.blocks import KeyValueCache, require_at_least
from models.networks.decoder import Decoder

if TYPE_CHECKING:
    from models.networks.perceiver_ar import PerceiverAR


@torch.no_grad()
def generate(
    model: PerceiverAR | Decoder,
    prompt: Tensor,
    num_tokens: int,
    *,
    num_latents: int | None = None,
    block: int | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int | None = None,
    use_cache: bool = True,
) -> Tensor:
    """Continue each prompt by ``num_tokens`` tokens.

    Args:
        model: Put into evaluation mode meanwhile.
        prompt: Token ids, (B, T), T at least 1.
        num_tokens: How many to add.
        num_latents: How many of the prompt's last tokens start as latents, 1 to min(N, T).
        block: How many latents move into the prefix when N are full, 1 to N; half of N by default.
        temperature: 0 takes the most probable token; otherwise logits are divided by it and a
            token is drawn.
        top_k: Draw from the k most probable tokens only.
        seed: Of the draws; without it they follow torch's global generator.
        use_cache: Whether to keep keys and values. The tokens are the same either way, up to
            rounding in near ties.

    Returns:
        Prompt and continuation, (B, T + num_tokens).

    Raises:
        TypeError: If the prompt is not of integers.
        ValueError: If an argument is outside the range stated here.

    >>> model = Decoder(vocab_size=9, seq_len=4, num_channels=8, num_layers=1, num_heads=1)
    >>> generate(model, torch.tensor([[1, 2, 3]]), num_tokens=5).shape
    torch.Size([1, 8])
    """
    longest_prefix, most_latents = _capacity(model)
    _check_prompt(prompt, model.embedding.token.num_embeddings)
    require_at_least(0, num_tokens=num_tokens)
    length = prompt.shape[1]
    if num_latents is None:
        num_latents = min(most_latents, max(1, length - longest_prefix))
    _require_between(1, min(most_latents, length), num_latents=num_latents)
    block = max(1, most_latents // 2) if block is None else block
    _require_between(1, most_latents, block=block)
    if not temperature >= 0:
        raise ValueError(f"temperature must be at least 0, got {temperature}")
    if top_k is not None:
        _require_between(1, model.embedding.token.num_embeddings, top_k=top_k)
        if temperature == 0:
            raise ValueError(f"top_k must be None at temperature 0, got {top_k}: nothing is drawn")
    generator = None
    check(Seed | None, seed, "seed")
    if seed is not None:
        generator = torch.Generator(prompt.device).manual_seed(seed)

    was_training = model.training
    model.eval()
    try:
        tokens, split = prompt, length - num_latents
        cache: KeyValueCache | None = None
        for _ in range(num_tokens):
            if cache is None:
                start = max(0, split - longest_prefix)
                cache = KeyValueCache() if use_cache else None
                logits = _forward(model, tokens[:, start:], split - start, cache)
            else:
                logits = _forward(model, tokens[:, -1:], 0, cache)
            chosen = _choose(logits[:, -1], temperature, top_k, generator)
            tokens = torch.cat((tokens, chosen), dim=1)
            if tokens.shape[1] - split > most_latents:
                split, cache = split + block, None
    finally:
        model.train(was_training)
    return tokens


def _capacity(model: PerceiverAR | Decoder) -> tuple[int, int]:
    """Give the longest prefix and the most latents that a model takes."""
    if isinstance(model, Decoder):
        return 0, model.seq_len
    return model.num_prefix, model.num_latents


def _forward(
    model: PerceiverAR | Decoder, tokens: Tensor, prefix_length: int, cache: KeyValueCache | None
) -> Tensor:
    if isinstance(model, Decoder):
        return model(tokens, cache)
    return model(tokens, prefix_length, cache)


def _choose(
    logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None
) -> Tensor:
    """Choose one token per row of logits (B, V): (B, 1)."""
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    if top_k is not None:
        least = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    return torch.multinomial((logits / temperature).softmax(dim=-1), 1, generator=generator)


def _check_prompt(prompt: Tensor, vocab_size: int) -> None:
    if prompt.is_floating_point() or prompt.is_complex() or prompt.dtype == torch.bool:
        raise TypeError(f"prompt must hold integers, got {prompt.dtype}")
    if prompt.ndim != 2 or prompt.shape[1] == 0:
        raise ValueError(
            f"prompt must be (batch, length) with a token at least, got {tuple(prompt.shape)}"
        )
    if prompt.numel() and not 0 <= prompt.min() <= prompt.max() < vocab_size:
        raise ValueError(
            f"prompt must hold tokens from 0 to {vocab_size - 1}, "
            f"got {prompt.min()} to {prompt.max()}"
        )


def _require_between(low: int, high: int, **values: int) -> None:
    for name, value in values.items():
        if not low <= value <= high:
            raise ValueError(f"{name} must be from {low} to {high}, got {value}")
