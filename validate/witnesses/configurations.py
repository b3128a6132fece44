"""What the witnesses are tried on: the article's ten models, and drawn shapes of attention.

Architectures are drawn by :mod:`flopcount.testing`.
"""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st

from flopcount.article import EXPERIMENTS
from validate.witnesses.kernel_tally import AttentionShape

SEED_MODELS = tuple(model for experiment in EXPERIMENTS for model in experiment.models())


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
