"""Strategies of hypothesis: architectures, and small configs that run in milliseconds."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import flopcount as fc
from flopcount.sizes import require_choice, require_int
from flopcount.testing import dense_configs, expert_configs, scan_configs

CONFIGS = dense_configs.DRAWN | expert_configs.DRAWN | scan_configs.DRAWN
"""A strategy for each family of Hugging Face configs, by its ``model_type``."""


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
    """Any architecture with a network in plain PyTorch: Perceiver AR, decoders, Llamas.

    Args:
        largest: Of most sizes; widths are a few times as large.

    Raises:
        TypeError: If it is no int.
        ValueError: If it is below 2.

    >>> sorted({type(model).__name__ for model in draw(models(), 30)})
    ['Decoder', 'Llama', 'PerceiverAR']
    """
    require_int("largest", largest, minimum=2)
    return st.one_of(perceivers(largest), decoders(largest), llamas(largest))


def configs(*families: str) -> st.SearchStrategy[dict[str, Any]]:
    """What a config.json may say: sizes from 1, odd ones too, every option given, absent or null.

    Networks that transformers builds from one run forward and backward in milliseconds on a CPU.

    Args:
        *families: Values of ``model_type``; all that are drawn unless given.

    Raises:
        TypeError: If a family is no string.
        ValueError: If no configs are drawn of a family; the known ones are listed.

    >>> config = draw(configs("llama"), 1)[0]
    >>> config["model_type"], config["num_hidden_layers"] <= 3
    ('llama', True)
    """
    for family in families:
        require_choice("families", family, CONFIGS)
    named = {family: st.just({"model_type": family}) for family in families or CONFIGS}
    return st.one_of(
        *(st.builds(dict.__or__, CONFIGS[family], own) for family, own in named.items())
    )


def lengths(family: str) -> st.SearchStrategy[int]:
    """Positions of a sequence for a network of a family: few, but beyond its windows and chunks.

    Raises:
        TypeError: If the family is no string.
        ValueError: If no configs are drawn of it.

    """
    require_choice("family", family, CONFIGS)
    return scan_configs.SEQ_LENS.get(family, dense_configs.seq_lens())


def draw(strategy: st.SearchStrategy[Any], number: int) -> list[Any]:
    """The same draws each time, small ones first: for tables, where a test has no ``@given``.

    Args:
        strategy: What is drawn from.
        number: How many, at most: a strategy may have fewer values.
    """
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
