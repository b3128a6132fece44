"""What the witnesses are tried on: the article's ten models, and drawn configurations."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import flopcount as fc
from flopcount.article import EXPERIMENTS
from validate.witnesses.kernel_tally import AttentionShape

SEED_MODELS = tuple(model for experiment in EXPERIMENTS for model in experiment.models())


@st.composite
def perceivers(draw: Any, largest: int = 12) -> fc.PerceiverAR:
    """Perceiver AR with every size from its smallest legal value; odd head dims, k = 0, p = 0."""
    sizes = st.integers(1, largest)
    num_heads = draw(st.integers(1, 4))
    num_prefix = draw(st.integers(0, largest))
    prefix: dict[str, Any] = {}
    if draw(st.booleans()):
        prefix["num_kept"] = draw(st.integers(0, num_prefix))
    else:
        prefix["prefix_dropout"] = draw(st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9, 0.99]))
    return fc.PerceiverAR(
        vocab_size=draw(sizes),
        num_latents=draw(sizes),
        num_prefix=num_prefix,
        num_channels=num_heads * draw(sizes),
        num_layers=draw(st.integers(1, 3)),
        num_heads=num_heads,
        widening_factor=draw(st.integers(1, 5)),
        **prefix,
    )


@st.composite
def decoders(draw: Any, largest: int = 12) -> fc.Decoder:
    """Decoder-only models with every size from 1."""
    sizes = st.integers(1, largest)
    num_heads = draw(st.integers(1, 4))
    seq_len = draw(sizes)
    return fc.Decoder(
        vocab_size=draw(sizes),
        seq_len=seq_len,
        num_channels=num_heads * draw(sizes),
        num_layers=draw(st.integers(1, 3)),
        num_heads=num_heads,
        widening_factor=draw(st.integers(1, 5)),
        bias=draw(st.booleans()),
        tie_embeddings=draw(st.booleans()),
        num_positions=draw(st.none() | st.integers(seq_len, 2 * largest)),
    )


@st.composite
def llamas(draw: Any, largest: int = 12) -> fc.Llama:
    """Llamas with grouped heads, free head dims, windows; every size from its smallest but d.

    An RMSNorm of one channel sums over nothing, so its element-wise operations are others.
    """
    sizes = st.integers(1, largest)
    key_heads, group, head_dim = draw(st.integers(1, 3)), draw(st.integers(1, 3)), 2 * draw(sizes)
    own_dim = draw(st.booleans())
    num_heads = key_heads * group
    return fc.Llama(
        vocab_size=draw(sizes),
        seq_len=draw(sizes),
        num_channels=draw(st.integers(2, largest)) if own_dim else num_heads * head_dim,
        num_layers=draw(st.integers(1, 3)),
        num_heads=num_heads,
        intermediate_size=draw(sizes),
        num_key_value_heads=None if group == 1 and draw(st.booleans()) else key_heads,
        head_dim=head_dim if own_dim else None,
        window=draw(st.none() | sizes),
        tie_embeddings=draw(st.booleans()),
    )


def models(largest: int = 12) -> st.SearchStrategy[Any]:
    """Any architecture."""
    return st.one_of(perceivers(largest), decoders(largest), llamas(largest))


@st.composite
def attention_shapes(draw: Any) -> tuple[int, int, int, int, int, int]:
    """Batch, latents, prefix, heads, key-value heads, head dim of one attention."""
    sizes = st.integers(1, 12)
    num_key_heads = draw(st.integers(1, 4))
    num_heads = num_key_heads * draw(st.integers(1, 3))
    head_dim = draw(st.integers(1, 256))
    return draw(sizes), draw(sizes), draw(st.integers(0, 12)), num_heads, num_key_heads, head_dim


def kernel_shapes() -> st.SearchStrategy[AttentionShape]:
    """Attention layers of a few tiles, as much as the interpreter runs quickly; every head dim."""
    return st.builds(
        AttentionShape,
        batch=st.integers(1, 2),
        queries=st.integers(1, 140),
        prefix=st.integers(0, 90),
        heads=st.integers(1, 2),
        key_heads=st.just(1),
        head_dim=st.integers(1, 256),
        dtype=st.sampled_from([torch.float16, torch.float32]),
    )


def draw(strategy: st.SearchStrategy[Any], number: int) -> list[Any]:
    """The same ``number`` draws each time, small ones first."""
    drawn: list[Any] = []

    @settings(
        max_examples=number,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def keep(value: Any) -> None:
        drawn.append(value)

    keep()
    return drawn
