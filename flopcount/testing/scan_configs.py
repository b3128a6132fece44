"""Configs of families with scans: drawn small ones.

As in :mod:`flopcount.testing.dense_configs`.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from flopcount.testing.dense_configs import (
    ACTIVATIONS,
    BOOLEANS,
    MOST_LAYERS,
    NO_TOKENS,
    SIZES,
    TIED,
    WINDOWS,
    Config,
    Strategy,
    decoders,
    flags,
    optional,
    per_layer,
    together,
)
from flopcount.testing.expert_configs import layers_of, mixtures

TYPES = ("full_attention", "linear_attention")
FACTORS = st.sampled_from([1, 1.5])
TAPS = st.integers(1, 5)
SEVERAL = st.integers(2, 12)
"""Sizes above 1: ``torch.einsum`` multiplies those of 1 element by element."""

SEQ_LENS = {"qwen3_next": st.integers(1, 140)}
"""Lengths that reach beyond two chunks, where the class does not let the chunk be chosen."""

PUBLISHED_SEQ_LENS = {"jamba": 30}
"""Of published sizes, where the network steps from position to position."""


@st.composite
def qwen3_next(draw: Any) -> Config:
    """A delta net whose key heads serve several of values."""
    key_heads = draw(st.integers(1, 3))
    given: dict[str, Any] = dict(
        moe_intermediate_size=SIZES,
        shared_expert_intermediate_size=SIZES,
        linear_num_key_heads=st.just(key_heads),
        linear_num_value_heads=st.just(key_heads * draw(st.integers(1, 3))),
        linear_key_head_dim=SIZES,
        linear_value_head_dim=SIZES,
    )
    decoder = decoders(
        "given",
        multiple=8,
        options=together(
            optional(
                *TIED,
                "attention_bias",
                "norm_topk_prob",
                decoder_sparse_step=st.integers(1, 3),
                full_attention_interval=st.integers(1, 3),
                linear_conv_kernel_dim=TAPS,
                hidden_act=ACTIVATIONS,
            ),
            layers_of("mlp_only_layers"),
            per_layer("layer_types", *TYPES),
        ),
        **given,
    )
    config: Config = draw(mixtures(decoder, "num_experts"))
    return config


@st.composite
def jamba(draw: Any) -> Config:
    """Attention and experts in one layer of a period each."""
    attention, experts = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    decoder = decoders(
        options=optional(
            *TIED,
            "mamba_conv_bias",
            "mamba_proj_bias",
            mamba_dt_rank=st.just("auto") | SIZES,
            mamba_d_conv=TAPS,
            mamba_expand=st.integers(1, 3),
            hidden_act=ACTIVATIONS,
        ),
        mamba_d_state=SIZES,
        attn_layer_period=st.just(attention),
        attn_layer_offset=st.integers(0, attention - 1),
        expert_layer_period=st.just(experts),
        expert_layer_offset=st.integers(0, experts - 1),
    )
    config: Config = draw(mixtures(decoder, "num_experts"))
    return config


@st.composite
def mamba2(draw: Any) -> Config:
    """Heads in groups, chunks of any size."""
    groups, expand, head_dim = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(SEVERAL)
    heads = groups * expand * draw(st.integers(1, 3))
    return NO_TOKENS | draw(
        st.fixed_dictionaries(
            dict(
                vocab_size=SIZES,
                hidden_size=st.just(heads * head_dim // expand),
                num_hidden_layers=st.integers(1, MOST_LAYERS),
                num_heads=st.just(heads),
                head_dim=st.just(head_dim),
                expand=st.just(expand),
                n_groups=st.just(groups),
                state_size=SEVERAL,
                chunk_size=st.integers(2, 6),
            ),
            optional=dict(
                conv_kernel=TAPS,
                hidden_act=ACTIVATIONS,
                residual_in_fp32=BOOLEANS,
                **flags(*TIED, "use_bias", "use_conv_bias"),
            ),
        )
    )


MINIMAX = mixtures(
    decoders(
        options=together(
            optional(
                *TIED,
                sliding_window=WINDOWS,
                hidden_act=ACTIVATIONS,
                linear_attn_alpha_factor=FACTORS,
                full_attn_beta_factor=FACTORS,
                mlp_alpha_factor=FACTORS,
            ),
            per_layer("layer_types", *TYPES),
        ),
        block_size=st.integers(1, 6),
    ),
    "num_local_experts",
)

OWN_NAMES = {"layer_types": "attn_type_list"} | {
    f"{kind}_{factor}_factor": f"layernorm_{own}_{factor}"
    for kind, own in (
        ("full_attn", "full_attention"),
        ("linear_attn", "linear_attention"),
        ("mlp", "mlp"),
    )
    for factor in ("alpha", "beta")
}
"""What MiniMax-Text-01's own file calls fields of transformers' class."""


def in_own_names(config: Config) -> Config:
    """A config of transformers' class as MiniMax-Text-01's own file would say it."""
    alternate = [TYPES[index % 2] for index in range(config["num_hidden_layers"])]
    own = {OWN_NAMES.get(name, name): value for name, value in config.items()}
    own["attn_type_list"] = [
        int(kind == "full_attention") for kind in config.get("layer_types", alternate)
    ]
    return own | dict(postnorm=True, shared_intermediate_size=0)


def in_transformers_names(config: Config) -> Config:
    """The reverse; any other config as it is."""
    names = {own: name for name, own in OWN_NAMES.items()}
    given = {names.get(name, name): value for name, value in config.items()}
    if "attn_type_list" in config:
        given["layer_types"] = [TYPES[1 - entry] for entry in config["attn_type_list"]]
    return given


DRAWN: dict[str, Strategy] = {
    "minimax": MINIMAX,
    "minimax_text_01": MINIMAX.map(in_own_names),
    "qwen3_next": qwen3_next(),
    "jamba": jamba(),
    "mamba2": mamba2(),
}
"""A strategy for each ``model_type``."""
