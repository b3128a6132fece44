"""What conventions are computed from, read off the blocks of the model at hand.

Whatever is built of blocks can be asked: an architecture declares nothing for conventions. A block
of a layer that is not known here is named as a feature of the model, so that only conventions which
speak of parameters alone cover it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

from flopcount.blocks import (
    MLP,
    TOKENS,
    Attention,
    Embedding,
    Layers,
    Network,
    Output,
    Parallel,
    PrefixAttention,
    Residual,
)
from flopcount.conventions import ALL_POSITIONS, EMBEDDING, STACKS, Inputs, LayerInputs, differ
from flopcount.count import ParameterCount, is_position
from flopcount.masks import Causal, Full
from flopcount.rows import Tensor
from flopcount.sizes import Size, is_array


@runtime_checkable
class Experts(Protocol):
    """What a block of experts has: E, k, an expert, and what every token passes through."""

    num_experts: Size
    top_k: Size
    expert: MLP
    shared: MLP | None


@runtime_checkable
class LatentAttention(Protocol):
    """What attention has whose keys and values come from a latent."""

    num_heads: Size
    query_rank: Size | None
    key_value_rank: Size
    plain_dim: Size
    rotary_dim: Size
    value_dim: Size


@runtime_checkable
class Predictions(Protocol):
    """What modules have that predict one token more each."""

    vocab_size: Size
    number: Size
    layer: tuple[Any, ...]


def inputs_of(network: Network, params: ParameterCount, **prefix: Any) -> Inputs:
    """What a network tells conventions.

    Args:
        network: The blocks, and the pass that each works in; the first pass predicts.
        params: Of the self part.
        **prefix: ``num_prefix`` and ``kept_prefix``, if any.

    >>> import flopcount as fc
    >>> from flopcount.operations import Pass
    >>> model = fc.Llama(vocab_size=9, seq_len=7, num_channels=8, num_layers=3, num_heads=4,
    ...                  num_key_value_heads=2, intermediate_size=6, window=5)
    >>> (layers,) = inputs_of(model.network(Pass(1, 7)), model.params()).layers
    >>> layers.number, layers.num_key_heads, layers.head_dim, layers.gated, layers.window
    (3, 2, 2, True, 5)
    """
    (first, _), *_ = network
    blocks = [block for _, of_pass in network for block in of_pass]
    groups: list[LayerInputs] = []
    predictions: Size = 0
    for block in blocks:
        if isinstance(block, Layers):
            groups.append(layer_inputs(block.number, block.blocks))
        elif isinstance(block, Predictions):
            predictions = predictions + block.number
            groups.append(layer_inputs(block.number, block.layer))
    also: set[str] = set()
    if sum(any(isinstance(block, Layers) for block in of_pass) for _, of_pass in network) > 1:
        also.add(STACKS)
    outputs = [block for block in blocks if isinstance(block, Output)]
    tables = [
        block for block in blocks if isinstance(block, Embedding) and block.vocab_size is not None
    ]
    if not outputs:
        also.add("no output layer")
    ends: Any
    ends, *_ = outputs or tables
    width = ends.channels if ends.token_channels is None else ends.token_channels
    if differ(width, ends.channels):
        also.add(EMBEDDING)
    tied: Size = ends.vocab_size * width if isinstance(ends, Output) and ends.tied else 0
    groups = [dataclasses.replace(group, others=group.others | also) for group in groups]
    return Inputs(
        num_latents=first.length,
        num_channels=ends.channels,
        vocab_size=ends.vocab_size,
        layers=tuple(together(groups)),
        num_params=params.total,
        num_active_params=params.active,
        num_position_params=params.where(is_position).total,
        num_table_params=params.where(is_table).total,
        num_tied_params=tied,
        num_block_norm_params=params.where(is_block_norm).total,
        num_predictions=predictions,
        **prefix,
    )


def is_tokens(row: Tensor) -> bool:
    """Whether a tensor is the token embedding."""
    return (row.layer, row.name) == TOKENS


def is_table(row: Tensor) -> bool:
    """Whether a tensor is a table that is looked up: of tokens, their types, or positions.

    >>> [is_table(Tensor("self", layer, name, (4, 2))) for layer, name in
    ...  (("embedding", "token type"), ("encoder", "position bias"), ("embedding", "project in"))]
    [True, True, False]
    """
    return is_tokens(row) or is_position(row) or row.name in ("token type", "position bias")


def is_block_norm(row: Tensor) -> bool:
    """Whether a tensor is of a norm around a block, or behind the embedding: not in attention.

    >>> [is_block_norm(Tensor("self", layer, name, (4,))) for layer, name in
    ...  (("decoder", "mlp norm"), ("decoder", "query norm"), ("output", "final norm"))]
    [True, False, False]
    """
    inside = ("query norm", "key norm", "key-value norm")
    around = row.name.endswith("norm") and row.name not in inside
    return around and row.layer != "output"


def layer_inputs(number: Size, blocks: Iterable[Any]) -> LayerInputs:
    """What the blocks of equal layers are.

    >>> sorted(layer_inputs(2, (MLP(4, 16), 3)).others)
    ['a block int', 'no attention']
    """
    sizes: dict[str, Any] = {}
    others: set[str] = set()
    for leaf in leaves(blocks):
        if isinstance(leaf, Attention):
            sizes |= dict(
                num_heads=leaf.num_heads, num_key_heads=leaf.num_key_heads,
                head_dim=leaf.head_dim, value_dim=leaf.head_dim, gate=leaf.gate,
            )  # fmt: skip
        elif isinstance(leaf, LatentAttention):
            sizes |= dict(
                num_heads=leaf.num_heads, num_key_heads=leaf.num_heads,
                head_dim=leaf.plain_dim + leaf.rotary_dim, value_dim=leaf.value_dim,
                query_rank=leaf.query_rank, key_value_rank=leaf.key_value_rank,
                rotary_dim=leaf.rotary_dim,
            )  # fmt: skip
        elif isinstance(leaf, Experts):
            shared = 0 if leaf.shared is None else leaf.shared.hidden
            sizes |= dict(
                hidden_channels=leaf.expert.hidden, gated=leaf.expert.gated,
                num_experts=leaf.num_experts, top_k=leaf.top_k, shared_channels=shared,
            )  # fmt: skip
        elif isinstance(leaf, MLP):
            sizes |= dict(hidden_channels=leaf.hidden, gated=leaf.gated)
        else:
            others.add(f"a block {type(leaf).__name__}")
        mask = getattr(leaf, "mask", Causal())
        if isinstance(mask, Causal):
            sizes |= {} if mask.window is None else dict(window=mask.window)
        elif isinstance(mask, Full):
            others.add(ALL_POSITIONS)
        else:
            others.add(f"a mask {type(mask).__name__}")
    if "head_dim" not in sizes:
        others.add("no attention")
    if "hidden_channels" not in sizes:
        others.add("no MLP")
    return LayerInputs(number=number, others=frozenset(others), **sizes)


def leaves(blocks: Iterable[Any]) -> Iterator[Any]:
    """The blocks that work, inside those that norm, add and share."""
    for block in blocks:
        if isinstance(block, Residual):
            yield from leaves((block.block,))
        elif isinstance(block, Parallel):
            yield from leaves(block.blocks)
        elif isinstance(block, PrefixAttention):
            yield block.attention
        elif isinstance(inner := getattr(block, "residual", None), Residual):
            yield from leaves((inner,))
        else:
            yield block


def together(groups: Iterable[LayerInputs]) -> Iterator[LayerInputs]:
    """Equal groups as one, with the sum of their numbers, in the order of the first of each."""
    kinds: list[LayerInputs] = []
    for group in groups:
        for index, other in enumerate(kinds):
            if _alike(group, other):
                kinds[index] = dataclasses.replace(other, number=other.number + group.number)
                break
        else:
            kinds.append(group)
    yield from kinds


def _alike(left: LayerInputs, right: LayerInputs) -> bool:
    """Whether two groups differ in their number alone; arrays are equal to themselves."""
    pairs = ((getattr(left, f.name), getattr(right, f.name)) for f in dataclasses.fields(left)[1:])
    return all(a is b or (not (is_array(a) or is_array(b)) and a == b) for a, b in pairs)
