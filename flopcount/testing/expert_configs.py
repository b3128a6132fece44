"""Configs of families with experts: drawn small ones.

As in :mod:`flopcount.testing.dense_configs`.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from flopcount.testing.dense_configs import (
    ACTIVATIONS,
    SIZES,
    TIED,
    TYPES,
    WINDOWS,
    Config,
    Strategy,
    decoders,
    optional,
    per_layer,
    together,
)

MOST_EXPERTS = 6


@st.composite
def mixtures(draw: Any, decoder: Strategy, experts: str, groups: bool = False) -> Config:
    """A decoder whose tokens use some of its experts.

    Args:
        draw: Of hypothesis.
        decoder: The rest of the config.
        experts: What the number of experts is called.
        groups: Whether experts are in groups, of two at least, of which some are chosen first.
    """
    config: Config = draw(decoder)
    number = draw(st.integers(1, MOST_EXPERTS))
    eligible = number
    if groups:
        size, groups_of_it = draw(st.integers(2, 4)), draw(st.integers(1, 3))
        chosen = draw(st.integers(1, groups_of_it))
        number, eligible = groups_of_it * size, chosen * size
        config |= dict(n_group=groups_of_it, topk_group=chosen)
    return config | {experts: number, "num_experts_per_tok": draw(st.integers(1, eligible))}


def layers_of(name: str) -> Any:
    """A list of indices of layers, null or absent."""
    return lambda layers: {
        name: st.none() | st.lists(st.integers(0, layers - 1), unique=True).map(sorted)
    }


def qwen_options(*more: str, **others: Strategy) -> Any:
    """Which layers have experts, and what else Qwen's two families share."""
    return together(
        optional(
            *TIED,
            "norm_topk_prob",
            "use_sliding_window",
            *more,
            decoder_sparse_step=st.integers(1, 3),
            hidden_act=ACTIVATIONS,
            **others,
        ),
        layers_of("mlp_only_layers"),
    )


def latent(even: bool = False, *more: str) -> Strategy:
    """A decoder with latent attention, whose heads have keys of their own.

    Args:
        even: Whether sizes are even, where the class turns pairs as complex numbers.
        more: Further flags.
    """
    any_size = SIZES.map(lambda half: 2 * half) if even else SIZES
    decoder = decoders(
        "divided",
        key_heads=False,
        options=optional(*TIED, "attention_bias", *more, hidden_act=ACTIVATIONS),
        kv_lora_rank=any_size,
        q_lora_rank=st.none() | SIZES,
        qk_nope_head_dim=any_size,
        qk_rope_head_dim=st.sampled_from([2, 4, 6]),
        v_head_dim=SIZES,
        moe_intermediate_size=SIZES,
        n_shared_experts=st.integers(1, 3),
        first_k_dense_replace=st.integers(0, 3),
    )
    own_keys = decoder.map(
        lambda config: config | {"num_key_value_heads": config["num_attention_heads"]}
    )
    return mixtures(own_keys, "n_routed_experts", groups=True)


DEEPSEEK_V3 = latent(False, "norm_topk_prob", "rope_interleave")
DRAWN: dict[str, Strategy] = {
    "mixtral": mixtures(
        decoders(options=optional(*TIED, sliding_window=WINDOWS, hidden_act=ACTIVATIONS)),
        "num_local_experts",
    ),
    "qwen2_moe": mixtures(
        decoders(
            options=together(
                qwen_options("qkv_bias", max_window_layers=st.integers(0, 4)),
                per_layer("layer_types", *TYPES),
            ),
            moe_intermediate_size=SIZES,
            shared_expert_intermediate_size=SIZES,
            sliding_window=st.integers(1, 9),
        ),
        "num_experts",
    ).map(
        # Layers that slide need the window that use_sliding_window makes void.
        lambda config: {
            name: value
            for name, value in config.items()
            if name != "layer_types" or config.get("use_sliding_window")
        }
    ),
    "qwen3_moe": mixtures(
        decoders(
            options=qwen_options("attention_bias"),
            moe_intermediate_size=SIZES,
            sliding_window=WINDOWS,
        ),
        "num_experts",
    ),
    "deepseek_v2": st.builds(
        dict.__or__,
        latent(True, "mlp_bias"),
        st.fixed_dictionaries(
            {}, optional=dict(topk_method=st.sampled_from(["greedy", "group_limited_greedy"]))
        ),
    ),
    "deepseek_v3": DEEPSEEK_V3,
    "kimi_k2": DEEPSEEK_V3,
    "gpt_oss": mixtures(
        decoders(
            "given",
            options=together(
                optional(*TIED, "attention_bias", sliding_window=st.integers(1, 9)),
                per_layer("layer_types", *TYPES),
            ),
        ),
        "num_local_experts",
    ),
    "llama4_text": mixtures(
        decoders(
            "given",
            options=together(
                optional(
                    *TIED,
                    "attention_bias",
                    "use_qk_norm",
                    "attn_temperature_tuning",
                    attention_chunk_size=st.integers(1, 9),
                    no_rope_layer_interval=st.integers(1, 4),
                    interleave_moe_layer_step=st.integers(1, 3),
                    hidden_act=ACTIVATIONS,
                ),
                per_layer("no_rope_layers", 0, 1),
                layers_of("moe_layers"),
            ),
            intermediate_size_mlp=SIZES,
        ),
        "num_local_experts",
    ),
    "glm4_moe": mixtures(
        decoders(
            "given",
            multiple=4,
            options=optional(
                *TIED, "attention_bias", "use_qk_norm", "norm_topk_prob", hidden_act=ACTIVATIONS
            ),
            moe_intermediate_size=SIZES,
            n_shared_experts=st.integers(1, 3),
            first_k_dense_replace=st.integers(0, 3),
        ),
        "n_routed_experts",
        groups=True,
    ),
    "minimax_m2": mixtures(
        decoders(
            "given",
            multiple=4,
            options=optional(*TIED, rotary_dim=st.sampled_from([2, 4]), hidden_act=ACTIVATIONS),
        ),
        "num_local_experts",
    ),
}
"""A strategy for each ``model_type``."""
