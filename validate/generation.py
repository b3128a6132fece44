"""Witness: cached generation, as transformers and as our own networks run it, pass by pass.

``generate`` of transformers, with a cache that grows, or :func:`models.generation.generate` runs on
real tensors. Of every forward pass FlopCounterMode gives the FLOPs, which the counter's prefill and
decoding at level ``dense`` have to be, and of the cache in the end the elements are counted.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import flopcount as fc
from flopcount.recurrent import GatedDeltaNet, LightningAttention, Mamba1, Mamba2
from models.generation import generate
from validate.networks import build as build_own
from validate.scan_differences import differences as of_scan

Differences = dict[str, int]


@contextlib.contextmanager
def counted(network: Any) -> Iterator[list[int]]:
    """The FLOPs of every forward pass of a network to come."""
    seen: list[int] = []
    forward = network.forward

    @functools.wraps(forward)
    def counting(*args: Any, **kwargs: Any) -> Any:
        with FlopCounterMode(display=False) as counter:
            result = forward(*args, **kwargs)
        seen.append(counter.get_total_flops())
        return result

    network.forward = counting
    try:
        yield seen
    finally:
        network.forward = forward


def elements(cache: Any) -> int:
    """Numbers that a cache of transformers holds."""
    tensors: list[Any] = []
    for layer in cache.layers:
        tensors += [getattr(layer, "keys", None), getattr(layer, "values", None)]
        for states in ("conv_states", "recurrent_states"):
            tensors += getattr(layer, states, {}).values()
    # MiniMax has the states of its linear attention apart.
    tensors += getattr(cache, "linear_cache", [])
    return sum(tensor.numel() for tensor in tensors if isinstance(tensor, torch.Tensor))


def generating(config: dict[str, Any]) -> Any:
    """The network that ``config`` describes, to generate with."""
    # It loads transformers, which takes seconds.
    from validate import hugging_face

    torch.manual_seed(0)
    network = hugging_face.build(config, device="cpu").eval()
    hugging_face.require_countable(network)
    network.generation_config.update(
        use_cache=True, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    return network


def prompt_of(network: Any, prompt_len: int, batch_size: int) -> dict[str, torch.Tensor]:
    """A drawn prompt, none of it padding."""
    tokens = torch.randint(network.config.vocab_size, (batch_size, prompt_len))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def compare(
    config: dict[str, Any],
    prompt_len: int,
    new_tokens: int,
    *,
    batch_size: int = 2,
    chunk: int | None = None,
) -> Differences:
    """Counter minus transformers' generation, of every pass and of the cache in the end.

    Args:
        config: The fields of a config.json.
        prompt_len: P.
        new_tokens: T; the last is chosen and not read.
        batch_size: B.
        chunk: Positions of the passes that read the prompt; one pass unless given.
    """
    network = generating(config)
    with counted(network) as seen:
        made = network.generate(
            **prompt_of(network, prompt_len, batch_size),
            max_new_tokens=new_tokens,
            prefill_chunk_size=chunk,
            return_dict_in_generate=True,
        )
    num_read = len(seen) - (new_tokens - 1)
    assert num_read == (1 if chunk is None else -(-prompt_len // chunk)), "passes over the prompt"
    model, own = fc.from_hf(config), dict(batch_size=batch_size)
    read = model.prefill(prompt_len, "dense", chunk=chunk, **own)
    found = {"prefill": read.total + beyond(model, batch_size, prompt_len) - sum(seen[:num_read])}
    for index, flops in enumerate(seen[num_read:]):
        cached = prompt_len + index
        step = model.decode(1, "dense", cached=cached, **own).total + beyond(model, batch_size)
        found[f"decode behind {cached}"] = step - flops
    last = prompt_len + new_tokens - 1
    found["generate"] = (
        model.generate(prompt_len, new_tokens, "dense", chunk=chunk, **own).total
        + beyond(model, batch_size, prompt_len)
        + (new_tokens - 1) * beyond(model, batch_size)
        - sum(seen)
    )
    found["cache"] = model.cache(last, **own).elements - elements(made.cache)
    return found


def beyond(model: Any, batch_size: int, length: int | None = None) -> int:
    """FLOPs that a pass executes, or the counter sees, beyond level ``dense``.

    Llama-4 multiplies every token by all E experts, E - k more than it is routed to. Of scans, see
    :mod:`validate.scan_differences`, and :func:`of_step` where one position follows others.

    Args:
        model: The model.
        batch_size: B.
        length: Positions of a prompt; None of a step.
    """
    total = 0
    positions = batch_size * (1 if length is None else length)
    for group in model.groups() if hasattr(model, "groups") else ():
        if model.title == "llama4_text" and group.kind["mlp"] == "sparse":
            others = model.num_experts - model.experts_per_token
            expert = 3 * 2 * model.num_channels * model.expert_size
            total += group.number * positions * others * expert
        if group.kind.get("mixer") == "scan":
            total += group.number * scan_beyond(model.scan(), batch_size, length)
    if not hasattr(model, "groups"):
        layers = model.network(fc.operations.Pass(1, 1))[0][1][1]
        block = layers.blocks[0].block
        total += model.num_layers * scan_beyond(block, batch_size, length)
    return total


def scan_beyond(block: Any, batch_size: int, length: int | None) -> int:
    """What the counter sees otherwise in one layer's forward pass over a prompt, or in a step."""
    if length is None:
        return of_step(block, batch_size)
    return sum(forward for forward, _ in of_scan(block, batch_size, length).values())


def of_step(block: Any, batch_size: int) -> int:
    """The same of a step behind a cache.

    A convolution of w taps reads w inputs of the cache and the new one: two outputs, of which one
    is cut off. The products of a step are executed element by element, but lightning attention's,
    and where Mamba reads its state.
    """
    if isinstance(block, LightningAttention):
        return 0
    state: int
    if isinstance(block, GatedDeltaNet):
        channels = 2 * block.num_key_heads * block.key_dim + block.num_value_heads * block.value_dim
        state = 3 * block.num_value_heads * block.key_dim * block.value_dim
    elif isinstance(block, Mamba2):
        channels = block.num_heads * block.head_dim + 2 * block.groups * block.state
        state = block.num_heads * block.head_dim * block.state
    else:
        assert isinstance(block, Mamba1)
        channels, state = block.inner, block.inner * block.state
    return 2 * batch_size * (2 * channels * block.taps - state)


def compare_own(
    model: Any, prompt_len: int, new_tokens: int, *, num_latents: int | None = None
) -> Differences:
    """Counter minus our own network's generation, of every pass; it has logits of all latents."""
    batch_size = 2
    network = build_own(model, training=False)
    prompt = torch.randint(model.vocab_size, (batch_size, prompt_len))
    with counted(network) as seen:
        generate(network, prompt, new_tokens, num_latents=num_latents)
    own: dict[str, Any] = dict(batch_size=batch_size, num_latents=num_latents)
    found = {"prefill": model.prefill(prompt_len, "dense", logits="all", **own).total - seen[0]}
    assert len(seen) == new_tokens
    rest = model.decode(new_tokens - 1, "dense", cached=prompt_len, **own).total if seen[1:] else 0
    found["decode"] = rest - sum(seen[1:])
    return found
