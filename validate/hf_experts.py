"""Configs of families with experts: drawn small ones, and published sizes.

As in :mod:`validate.hf_configs`. Published sizes are written by hand from the models' files.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from validate.hf_configs import (
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

LLAMA4 = dict(
    model_type="llama4_text", vocab_size=202048, hidden_size=5120, intermediate_size=8192,
    intermediate_size_mlp=16384,
    num_hidden_layers=48, num_attention_heads=40, num_key_value_heads=8, head_dim=128,
    num_experts_per_tok=1, attention_chunk_size=8192, no_rope_layers=[],
)  # fmt: skip
PUBLISHED: dict[str, Config] = {
    "Mixtral-8x7B": dict(model_type="mixtral", sliding_window=None),
    "Mixtral-8x22B": dict(
        model_type="mixtral", vocab_size=32768, hidden_size=6144, intermediate_size=16384,
        num_hidden_layers=56, num_attention_heads=48, num_key_value_heads=8,
        num_local_experts=8, num_experts_per_tok=2,
    ),
    "Qwen1.5-MoE-A2.7B": dict(model_type="qwen2_moe"),
    "Qwen3-30B-A3B": dict(
        model_type="qwen3_moe", vocab_size=151936, hidden_size=2048, intermediate_size=6144,
        num_hidden_layers=48, num_attention_heads=32, num_key_value_heads=4, head_dim=128,
        num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768, norm_topk_prob=True,
        decoder_sparse_step=1, mlp_only_layers=[],
    ),
    "Qwen3-235B-A22B": dict(
        model_type="qwen3_moe", vocab_size=151936, hidden_size=4096, intermediate_size=12288,
        num_hidden_layers=94, num_attention_heads=64, num_key_value_heads=4, head_dim=128,
        num_experts=128, num_experts_per_tok=8, moe_intermediate_size=1536, norm_topk_prob=True,
    ),
    "DeepSeek-V2-Lite": dict(
        model_type="deepseek_v2", vocab_size=102400, hidden_size=2048, intermediate_size=10944,
        num_hidden_layers=27, num_attention_heads=16, num_key_value_heads=16, q_lora_rank=None,
        kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128,
        n_routed_experts=64, n_shared_experts=2, num_experts_per_tok=6,
        moe_intermediate_size=1408, first_k_dense_replace=1, moe_layer_freq=1,
        topk_method="greedy", scoring_func="softmax",
    ),
    "DeepSeek-V2": dict(
        model_type="deepseek_v2", vocab_size=102400, hidden_size=5120, intermediate_size=12288,
        num_hidden_layers=60, num_attention_heads=128, num_key_value_heads=128,
        q_lora_rank=1536, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64,
        v_head_dim=128, n_routed_experts=160, n_shared_experts=2, num_experts_per_tok=6,
        moe_intermediate_size=1536, first_k_dense_replace=1, n_group=8, topk_group=3,
        topk_method="group_limited_greedy",
    ),
    "DeepSeek-V3": dict(model_type="deepseek_v3"),
    "Kimi-K2": dict(
        model_type="kimi_k2", vocab_size=163840, hidden_size=7168, intermediate_size=18432,
        num_hidden_layers=61, num_attention_heads=64, num_key_value_heads=64, q_lora_rank=1536,
        kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128,
        n_routed_experts=384, n_shared_experts=1, num_experts_per_tok=8,
        moe_intermediate_size=2048, first_k_dense_replace=1, n_group=1, topk_group=1,
        num_nextn_predict_layers=0,
    ),
    "gpt-oss-20b": dict(
        model_type="gpt_oss", num_hidden_layers=24, num_local_experts=32,
        num_experts_per_tok=4, experts_per_token=4,
    ),
    "gpt-oss-120b": dict(model_type="gpt_oss"),
    "Llama-4-Scout": dict(
        model_type="llama4",
        text_config=LLAMA4 | dict(
            num_local_experts=16, interleave_moe_layer_step=1, use_qk_norm=True,
            attn_temperature_tuning=True,
        ),
    ),
    "Llama-4-Maverick": dict(
        model_type="llama4",
        text_config=LLAMA4 | dict(
            num_local_experts=128, interleave_moe_layer_step=2, use_qk_norm=False,
            attn_temperature_tuning=True,
        ),
    ),
    "GLM-4.5": dict(
        model_type="glm4_moe", vocab_size=151552, hidden_size=5120, intermediate_size=12288,
        num_hidden_layers=92, num_attention_heads=96, num_key_value_heads=8, head_dim=128,
        attention_bias=True, use_qk_norm=True, n_routed_experts=160, n_shared_experts=1,
        num_experts_per_tok=8, moe_intermediate_size=1536, first_k_dense_replace=3,
        partial_rotary_factor=0.5,
    ),
    "GLM-4.5-Air": dict(
        model_type="glm4_moe", head_dim=128, attention_bias=True, use_qk_norm=False,
        partial_rotary_factor=0.5,
    ),
    "MiniMax-M2": dict(
        model_type="minimax_m2", rotary_dim=64, use_qk_norm=True, qk_norm_type="per_layer",
        num_mtp_modules=3, mtp_transformer_layers=1, use_mtp=True, scoring_func="sigmoid",
        use_routing_bias=True, shared_intermediate_size=0,
    ),
}  # fmt: skip
"""Sizes of well-known models."""
