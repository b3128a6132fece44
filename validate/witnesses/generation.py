"""Witness: cached generation, as transformers and as our own networks run it, pass by pass.

``generate`` of transformers, with a cache that grows, or :mod:`models.networks.generation` runs on
real tensors. Of every forward pass FlopCounterMode gives the FLOPs, which the counter's prefill and
decoding at level ``dense`` have to be, and of the cache in the end the elements are counted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import flopcount as fc
from flopcount.recurrent import GatedDeltaNet, LightningAttention, Mamba1, Mamba2
from models.networks.generation import generate
from validate.witnesses.hugging_face import families
from validate.witnesses.hugging_face.families import BATCH_SIZE
from validate.witnesses.networks import build as build_own

Differences = dict[str, int]
FAMILIES = tuple(family for family in families.WITNESSED if family != "bert")
"""Families that generate; an encoder does not."""
NEW_TOKENS = 5
CHUNK = 3


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
    if hasattr(cache, "cross_attention_cache"):
        return elements(cache.self_attention_cache) + elements(cache.cross_attention_cache)
    tensors: list[Any] = []
    for layer in cache.layers:
        tensors += [getattr(layer, "keys", None), getattr(layer, "values", None)]
        for states in ("conv_states", "recurrent_states"):
            tensors += getattr(layer, states, {}).values()
    # MiniMax has the states of its linear attention apart.
    tensors += getattr(cache, "linear_cache", [])
    return sum(tensor.numel() for tensor in tensors if isinstance(tensor, torch.Tensor))


def cached_copies(config: dict[str, Any]) -> int:
    """How often each key and value is cached: Falcon's newer code has them once a query head."""
    heads = config.get("num_attention_heads", 1)
    if config["model_type"] == "falcon" and config.get("new_decoder_architecture"):
        return int(heads // (config.get("num_kv_heads") or heads))
    return 1


def generating(config: dict[str, Any]) -> Any:
    """The network that ``config`` describes, to generate with."""
    # It loads transformers, which takes seconds.
    from validate.witnesses.hugging_face import networks

    torch.manual_seed(0)
    network = networks.build(config, device="cpu").eval()
    networks.require_countable(network)
    network.generation_config.update(
        use_cache=True, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    return network


def prompt_of(
    network: Any, prompt_len: int, batch_size: int = BATCH_SIZE
) -> dict[str, torch.Tensor]:
    """A drawn prompt, none of it padding."""
    tokens = torch.randint(network.config.vocab_size, (batch_size, prompt_len))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def compare(
    config: dict[str, Any],
    prompt_len: int,
    new_tokens: int,
    *,
    chunk: int | None = None,
) -> Differences:
    """Counter minus transformers' generation, of every pass and of the cache in the end.

    Args:
        config: The fields of a config.json.
        prompt_len: P.
        new_tokens: T; the last is chosen and not read.
        chunk: Positions of the passes that read the prompt; one pass unless given.
    """
    network = generating(config)
    two_stacks = network.config.is_encoder_decoder
    with counted(network) as seen, counted(network.get_encoder()) as encoded:
        made = network.generate(
            **prompt_of(network, prompt_len),
            max_new_tokens=new_tokens,
            prefill_chunk_size=chunk,
            return_dict_in_generate=True,
        )
    seen = [*encoded, *seen] if two_stacks else seen
    num_read = len(seen) - (new_tokens - 1)
    expected = 1 + two_stacks if chunk is None else -(-prompt_len // chunk)
    assert num_read == expected, f"{num_read} passes over the prompt"
    model = fc.from_hf(config, prompt_len) if two_stacks else fc.from_hf(config)
    own: dict[str, Any] = dict(level="dense", batch_size=BATCH_SIZE)
    more, more_a_step = beyond_prompt(model, prompt_len), beyond_step(model)
    read = model.prefill(prompt_len, chunk=chunk, **own)
    differences = {"prefill": read.total + more - sum(seen[:num_read])}
    # A decoder of its own begins with one token.
    own_len = 1 if two_stacks else prompt_len
    for cached, flops in enumerate(seen[num_read:], start=own_len):
        step = model.decode(1, cached=cached, **own)
        differences[f"decode behind {cached}"] = step.total + more_a_step - flops
    whole = model.generate(prompt_len, new_tokens, chunk=chunk, **own)
    differences["generate"] = whole.total + more + (new_tokens - 1) * more_a_step - sum(seen)
    kept = model.cache(own_len + new_tokens - 1, batch_size=BATCH_SIZE)
    differences["cache"] = cached_copies(config) * kept.elements - elements(made.cache)
    return differences


def tried(family: str, number: int) -> list[tuple[dict[str, Any], int]]:
    """Drawn configs of a family and prompts' lengths, the same each time, that transformers runs.

    A window of 1 becomes 2: its cache should keep no position, but transformers then slices from
    -0 and keeps all. MiniMax has no window: its class makes a cache that does not know of one. A
    prompt ends where a table of positions has space for new tokens, and is left out where it has
    none. T5's cache has as many layers as the encoder: decoders with more are left out. And so are
    models without attention in any layer but Mamba-2: their cache has no length, which generation
    asks for.
    """
    kept = []
    for case in families.drawn(family, 6 * number):
        windows = {name: 2 for name in ("sliding_window", "attention_chunk_size")
                   if case.config.get(name) == 1}  # fmt: skip
        if family in ("minimax", "minimax_text_01"):
            windows["sliding_window"] = None
        config = case.config | windows
        model = fc.from_hf(config)
        prompt_len = case.seq_len
        if getattr(model, "num_positions", None) is not None:
            positions = model.num_positions - model.spare_positions
            prompt_len = min(prompt_len, positions - NEW_TOKENS + 1)
        kinds = [group.kind.get("mixer") for group in model.groups()]
        too_few = family == "t5" and model.num_decoder_layers > model.num_layers
        if prompt_len > 0 and not too_few and (family == "mamba2" or set(kinds) != {"scan"}):
            kept.append((config, prompt_len))
    return kept[:number]


def cases(family: str, quick: bool) -> Iterator[tuple[str, Differences]]:
    """Differences on a family's configs; the prompt at once, and in chunks where no scan is."""
    for config, prompt_len in tried(family, 3 if quick else families.DRAWN):
        yield f"{config}, {prompt_len} + {NEW_TOKENS}", compare(config, prompt_len, NEW_TOKENS)
        if family != "t5" and not hasattr(fc.from_hf(config), "scan"):
            name = f"{config}, {prompt_len} in {CHUNK}s + {NEW_TOKENS}"
            yield name, compare(config, prompt_len, NEW_TOKENS, chunk=CHUNK)


def confirmed(family: str) -> str:
    """What is held against the witness."""
    return f"generation with {family}: dense products of every pass, elements of the cache"


def witness(family: str) -> str:
    """Who confirms it."""
    return f"transformers' generate of {family}, pass by pass, under torch FlopCounterMode"


def beyond_prompt(model: Any, prompt_len: int) -> int:
    """FLOPs of reading a prompt that are executed, or seen by the counter, beyond level ``dense``.

    :func:`~validate.witnesses.hugging_face.families.executed_beyond` states them; and a convolution
    of w taps, where there is a cache, works on w positions at least.
    """
    read = dataclasses.replace(model, seq_len=prompt_len)
    total = sum(forward for forward, _ in families.executed_beyond(read).values())
    for number, block in scans(model):
        missing = max(0, block.taps - prompt_len) if hasattr(block, "taps") else 0
        if missing:
            total += number * 2 * BATCH_SIZE * missing * convolved(block) * block.taps
    return total


def beyond_step(model: Any) -> int:
    """The same of one position behind a cache.

    A convolution of w taps reads w inputs of the cache and the new one: two outputs, of which one
    is cut off. The products of a step are executed element by element, but those of lightning
    attention and where Mamba reads its state.
    """
    if not scans(model):
        return beyond_prompt(model, 1)
    total = 0
    for number, block in scans(model):
        if isinstance(block, LightningAttention):
            continue
        if isinstance(block, GatedDeltaNet):
            state = 3 * block.num_value_heads * block.key_dim * block.value_dim
        elif isinstance(block, Mamba2):
            state = block.num_heads * block.head_dim * block.state
        else:
            state = block.inner * block.state
        total += number * 2 * BATCH_SIZE * (2 * convolved(block) * block.taps - state)
    return total


def scans(model: Any) -> list[tuple[int, Any]]:
    """Blocks with a scan, each with the number of layers that have it."""
    return [
        (group.number, model.scan())
        for group in model.groups()
        if group.kind.get("mixer") == "scan"
    ]


def convolved(block: Any) -> int:
    """Channels of a scan's convolution."""
    if isinstance(block, GatedDeltaNet):
        channels: int = 2 * block.num_key_heads * block.key_dim
        return channels + block.num_value_heads * block.value_dim
    if isinstance(block, Mamba2):
        return block.num_heads * block.head_dim + 2 * block.groups * block.state
    assert isinstance(block, Mamba1)
    inner: int = block.inner
    return inner


def compare_own(
    model: Any, prompt_len: int, new_tokens: int, *, num_latents: int | None = None
) -> Differences:
    """Counter minus our own network's generation, of every pass; it has logits of all latents."""
    network = build_own(model, training=False)
    prompt = torch.randint(model.vocab_size, (BATCH_SIZE, prompt_len))
    with counted(network) as seen:
        generate(network, prompt, new_tokens, num_latents=num_latents)
    own: dict[str, Any] = dict(level="dense", batch_size=BATCH_SIZE, num_latents=num_latents)
    assert len(seen) == new_tokens
    differences = {"prefill": model.prefill(prompt_len, logits="all", **own).total - seen[0]}
    if new_tokens > 1:
        rest = model.decode(new_tokens - 1, cached=prompt_len, **own)
        differences["decode"] = rest.total - sum(seen[1:])
    return differences
