"""Published sizes of well-known models, as their config.json files say them.

Written by hand from the files; a size that the family's own class takes by itself is left out.
"""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]

LLAMA = dict(model_type="llama", num_hidden_layers=32, num_attention_heads=32)
DENSE: dict[str, Config] = {
    "GPT-2": dict(model_type="gpt2"),
    "Llama-2-7B": dict(model_type="llama"),
    "Llama-3-8B": LLAMA
    | dict(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_key_value_heads=8
    ),
    "Llama-3.2-1B": dict(
        model_type="llama", vocab_size=128256, hidden_size=2048, intermediate_size=8192,
        num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8,
        tie_word_embeddings=True,
    ),
    "Llama-3-70B": dict(
        model_type="llama", vocab_size=128256, hidden_size=8192, intermediate_size=28672,
        num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8,
    ),
    "Mistral-7B-v0.1": dict(model_type="mistral"),
    "Qwen2.5-7B": dict(
        model_type="qwen2", vocab_size=152064, hidden_size=3584, intermediate_size=18944,
        num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
        use_sliding_window=False, sliding_window=131072, max_window_layers=28,
    ),
    "Qwen3-0.6B": dict(
        model_type="qwen3", vocab_size=151936, hidden_size=1024, intermediate_size=3072,
        num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8, head_dim=128,
        tie_word_embeddings=True,
    ),
    "Qwen3-8B": dict(
        model_type="qwen3", vocab_size=151936, hidden_size=4096, intermediate_size=12288,
        num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8,
    ),
    "Gemma-2-9B": dict(
        model_type="gemma2", vocab_size=256000, hidden_size=3584, intermediate_size=14336,
        num_hidden_layers=42, num_attention_heads=16, num_key_value_heads=8, head_dim=256,
    ),
    "Gemma-3-4B": dict(
        model_type="gemma3",
        text_config=dict(
            model_type="gemma3_text", hidden_size=2560, intermediate_size=10240,
            num_hidden_layers=34, sliding_window=1024,
        ),
    ),
    "Phi-2": dict(
        model_type="phi", vocab_size=51200, hidden_size=2560, intermediate_size=10240,
        num_hidden_layers=32, num_attention_heads=32, partial_rotary_factor=0.4,
    ),
    "Phi-3-mini": dict(model_type="phi3", sliding_window=2047),
    "Falcon-7B": dict(
        model_type="falcon", vocab_size=65024, hidden_size=4544, num_hidden_layers=32,
        num_attention_heads=71, multi_query=True, parallel_attn=True, bias=False, alibi=False,
    ),
    "OPT-125m": dict(model_type="opt"),
    "OPT-350m": dict(
        model_type="opt", hidden_size=1024, ffn_dim=4096, num_hidden_layers=24,
        num_attention_heads=16, word_embed_proj_dim=512, do_layer_norm_before=False,
    ),
    "Pythia-1.4B": dict(
        model_type="gpt_neox", vocab_size=50304, hidden_size=2048, intermediate_size=8192,
        num_hidden_layers=24, num_attention_heads=16, rotary_pct=0.25,
    ),
    "BLOOM-560m": dict(
        model_type="bloom", vocab_size=250880, hidden_size=1024, n_layer=24, n_head=16
    ),
    "MPT-7B": dict(
        model_type="mpt", vocab_size=50432, d_model=4096, n_layers=32, n_heads=32,
        expansion_ratio=4, attn_config=dict(alibi=True),
    ),
    "OLMo-2-7B": dict(model_type="olmo2", vocab_size=100352),
    "SmolLM3-3B": dict(model_type="smollm3"),
    "GLM-4-9B": dict(
        model_type="glm", vocab_size=151552, hidden_size=4096, intermediate_size=13696,
        num_hidden_layers=40, num_attention_heads=32, num_key_value_heads=2, head_dim=128,
        attention_bias=True, partial_rotary_factor=0.5,
    ),
    "BERT-base": dict(model_type="bert", architectures=["BertForMaskedLM"]),
    "BERT-large": dict(
        model_type="bert", architectures=["BertModel"], hidden_size=1024, intermediate_size=4096,
        num_hidden_layers=24, num_attention_heads=16,
    ),
    "T5-base": dict(
        model_type="t5", d_model=768, d_ff=3072, num_heads=12, num_layers=12,
        num_decoder_layers=12,
    ),
    "T5-v1.1-large": dict(
        model_type="t5", d_model=1024, d_ff=2816, num_heads=16, num_layers=24,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    ),
}  # fmt: skip
"""Every layer with an MLP, and encoders."""

LLAMA4 = dict(
    model_type="llama4_text", vocab_size=202048, hidden_size=5120, intermediate_size=8192,
    intermediate_size_mlp=16384,
    num_hidden_layers=48, num_attention_heads=40, num_key_value_heads=8, head_dim=128,
    num_experts_per_tok=1, attention_chunk_size=8192, no_rope_layers=[],
)  # fmt: skip
EXPERTS: dict[str, Config] = {
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
"""With mixtures of experts."""

SCANS: dict[str, Config] = {
    "MiniMax-Text-01": dict(
        model_type="minimax", vocab_size=200064, hidden_size=6144, intermediate_size=9216,
        num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8, head_dim=128,
        num_local_experts=32, num_experts_per_tok=2, block_size=256,
        layer_types=(["linear_attention"] * 7 + ["full_attention"]) * 10,
        full_attn_alpha_factor=3.5565588200778455, linear_attn_alpha_factor=3.5565588200778455,
        mlp_alpha_factor=3.5565588200778455,
    ),
    "MiniMax-Text-01, its own file": dict(
        model_type="minimax_text_01", vocab_size=200064, hidden_size=6144,
        intermediate_size=9216, num_hidden_layers=80, num_attention_heads=64,
        num_key_value_heads=8, head_dim=128, num_local_experts=32, num_experts_per_tok=2,
        attn_type_list=([0] * 7 + [1]) * 10, rotary_dim=64, postnorm=True,
        shared_intermediate_size=0, shared_moe_mode="sigmoid", sliding_window=None,
        layernorm_full_attention_alpha=3.5565588200778455, layernorm_full_attention_beta=1.0,
        layernorm_linear_attention_alpha=3.5565588200778455, layernorm_linear_attention_beta=1.0,
        layernorm_mlp_alpha=3.5565588200778455, layernorm_mlp_beta=1.0,
    ),
    "Qwen3-Next-80B-A3B": dict(model_type="qwen3_next"),
    "Jamba-v0.1": dict(model_type="jamba"),
    "Mamba-Codestral-7B": dict(model_type="mamba2"),
}  # fmt: skip
"""With linear attention or state spaces."""

PUBLISHED = DENSE | EXPERTS | SCANS
"""All of them."""
