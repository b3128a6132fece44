"""Families of decoder-only models whose layers are attention and one MLP.

Each default is that of the family's own class in transformers 5.24; they differ. Where the hub's
files go by other names, these stand behind the class's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flopcount.causal_lm import CausalLM
from flopcount.hf.reader import (
    Config,
    Family,
    Take,
    by_layer,
    drops,
    flag,
    floor_divided,
    is_given,
    listed,
    rotary_dim,
    size,
    times,
    word,
    words,
)

ACTIVATION_NAMES = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "quick_gelu": "gelu_quick",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "relu2": "relu_squared",
}
"""What each name of an activation function stands for."""

LAYER_TYPES = {
    "full_attention": "full",
    "sliding_attention": "sliding",
    "chunked_attention": "chunked",
}
"""What each entry of ``layer_types`` stands for."""


def activation(*names: str, default: str) -> Take:
    """The field that names an activation function."""
    return word(*names, default=default, known=ACTIVATION_NAMES)


def attention_types(layers: Take, default: Take) -> Take:
    """What each layer attends to, of ``layer_types`` or by the family's own rule."""
    return listed("layer_types", layers, LAYER_TYPES, default)


def where(name: str, word: str) -> Take:
    """A word if a field is true, else None."""
    given = flag(name, default=False)
    return lambda config: word if given(config) else None


def only_where(word: str, attention: Take, take: Take) -> Take:
    """A size that acts only where some layer's attention is of a kind; else None."""
    return lambda config: take(config) if word in attention(config) else None


def windowed_everywhere(window: Take) -> Take:
    """All layers slide if there is a window."""
    return lambda config: ("full" if window(config) is None else "sliding",)


def llama_like(
    *,
    vocab_size: int,
    hidden_size: int,
    intermediate_size: int,
    num_hidden_layers: int,
    num_attention_heads: int,
    num_key_value_heads: int | None = None,
    head_dim: int | None = None,
    hidden_act: str = "silu",
    tied: bool = False,
    **others: Any,
) -> dict[str, Any]:
    """What most families call alike, with a family's own defaults.

    Args:
        vocab_size: V, where the field is absent; so for those that follow.
        hidden_size: d.
        intermediate_size: f.
        num_hidden_layers: L.
        num_attention_heads: h.
        num_key_value_heads: g; h if None. A ``null`` is h in any family.
        head_dim: c; ⌊d / h⌋ if None. A ``null`` is that in any family.
        hidden_act: The activation function.
        tied: Whether the output layer is tied to the embedding.
        others: Further fields of the declaration, or other readings of these.
    """
    heads = size("num_attention_heads", default=num_attention_heads)
    channels = size("hidden_size", default=hidden_size)
    quotient = floor_divided(channels, heads)
    return {
        "vocab_size": size("vocab_size", default=vocab_size),
        "num_channels": channels,
        "num_layers": size("num_hidden_layers", default=num_hidden_layers),
        "num_heads": heads,
        "num_key_value_heads": size(
            "num_key_value_heads", default=num_key_value_heads or heads, null=heads
        ),
        "head_dim": size("head_dim", default=head_dim or quotient, null=quotient),
        "intermediate_size": size("intermediate_size", default=intermediate_size),
        "activation": activation("hidden_act", default=hidden_act),
        "tie_embeddings": flag("tie_word_embeddings", default=tied),
    } | others


ATTENTION_BIAS = flag("attention_bias", default=False)
ALL_BIASES: dict[str, Any] = {"qkv_bias": ATTENTION_BIAS, "out_bias": ATTENTION_BIAS}

BIASES = ("qkv_bias", "out_bias", "mlp_bias")
GELU_AND_LAYER_NORM: dict[str, Any] = {"gated": False, "norm": "layer", "norm_bias": True}
"""Layers as they were before gates and RMSNorm."""

GPT2_CHANNELS = size("n_embd", "hidden_size", default=768)
GPT2 = Family(
    declaration=CausalLM,
    heads=("GPT2LMHeadModel",),
    fields={
        "vocab_size": size("vocab_size", default=50257),
        "num_channels": GPT2_CHANNELS,
        "num_layers": size("n_layer", "num_hidden_layers", default=12),
        "num_heads": size("n_head", "num_attention_heads", default=12),
        "intermediate_size": size("n_inner", default=times(4, GPT2_CHANNELS)),
        "num_positions": size("n_positions", "max_position_embeddings", "n_ctx", default=1024),
        "positions": ("none",),
        "activation": activation("activation_function", default="gelu_new"),
        "tie_embeddings": flag("tie_word_embeddings", default=True),
        "dropout": drops("resid_pdrop", default=0.1),
        **GELU_AND_LAYER_NORM,
        **dict.fromkeys(BIASES, True),
    },
    without_effect=words(
        "embd_pdrop attn_pdrop scale_attn_weights scale_attn_by_inverse_layer_idx "
        "reorder_and_upcast_attn"
    ),
)

LLAMA = Family(
    declaration=CausalLM,
    heads=("LlamaForCausalLM",),
    fields=llama_like(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        mlp_bias=flag("mlp_bias", default=False),
        **ALL_BIASES,
    ),
    without_effect=words("max_position_embeddings"),
)

MISTRAL_WINDOW = size("sliding_window", default=4096, null=None)
MISTRAL = Family(
    declaration=CausalLM,
    heads=("MistralForCausalLM",),
    fields=llama_like(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        attention=windowed_everywhere(MISTRAL_WINDOW),
        window=MISTRAL_WINDOW,
    ),
    without_effect=words("max_position_embeddings"),
)


def qwen_windows(layers: int, use_window: bool = False) -> dict[str, Any]:
    """Windows of the layers from ``max_window_layers`` on, if ``use_sliding_window``."""
    number = size("num_hidden_layers", default=layers)
    used = flag("use_sliding_window", default=use_window)
    first = size("max_window_layers", default=28, minimum=0)
    given = size("sliding_window", default=4096, null=None)

    def window(config: Config) -> Any:
        value = given(config)
        return value if used(config) else None

    def rule(config: Config) -> Callable[[int], str]:
        slides, start = window(config) is not None, first(config)
        return lambda index: "sliding" if slides and index >= start else "full"

    attention = attention_types(number, by_layer(number, rule))
    return {"attention": attention, "window": only_where("sliding", attention, window)}


QWEN_SIZES: dict[str, Any] = dict(
    vocab_size=151936,
    hidden_size=4096,
    intermediate_size=22016,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
)
# Windows act through ``layer_types`` where these are listed.
QWEN_WITHOUT_EFFECT = words(
    "max_position_embeddings max_window_layers use_sliding_window sliding_window"
)
QWEN2 = Family(
    declaration=CausalLM,
    heads=("Qwen2ForCausalLM",),
    fields=llama_like(**QWEN_SIZES, qkv_bias=True, **qwen_windows(32)),
    without_effect=QWEN_WITHOUT_EFFECT,
)
QWEN3 = Family(
    declaration=CausalLM,
    heads=("Qwen3ForCausalLM",),
    fields=llama_like(
        **QWEN_SIZES, head_dim=128, query_key_norm="head", **ALL_BIASES, **qwen_windows(32)
    ),
    without_effect=QWEN_WITHOUT_EFFECT,
)


def gemma(*, interval: Take, **own: Any) -> dict[str, Any]:
    """Gemma 2 and 3: four norms a layer, windows but for every so many layers.

    Args:
        interval: Every how many layers one is without a window.
        own: What differs between the two.
    """
    number = size("num_hidden_layers", default=26)

    def rule(config: Config) -> Callable[[int], str]:
        every = interval(config)
        return lambda index: "sliding" if (index + 1) % every else "full"

    attention = attention_types(number, by_layer(number, rule))
    window = size("sliding_window", default=4096, null=None)
    return llama_like(
        hidden_size=2304,
        intermediate_size=9216,
        num_hidden_layers=26,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        tied=True,
        activation=activation("hidden_activation", default="gelu_pytorch_tanh"),
        attention=attention,
        window=only_where("sliding", attention, window),
        norm_placement="both",
        scaled_embedding=True,
        **ALL_BIASES,
        **own,
    )


GEMMA = Family(
    declaration=CausalLM,
    heads=("GemmaForCausalLM",),
    fields=llama_like(
        vocab_size=256000,
        hidden_size=3072,
        intermediate_size=24576,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=16,
        head_dim=256,
        tied=True,
        # The first files say "gelu" and mean its approximation.
        activation=word(
            "hidden_act",
            default="gelu_pytorch_tanh",
            known=ACTIVATION_NAMES | {"gelu": "gelu_tanh"},
        ),
        scaled_embedding=True,
        **ALL_BIASES,
    ),
    without_effect=words("max_position_embeddings hidden_activation"),
    only={"use_bidirectional_attention": (None, False)},
)
GEMMA_WITHOUT_EFFECT = words("max_position_embeddings query_pre_attn_scalar hidden_act")
GEMMA2 = Family(
    declaration=CausalLM,
    heads=("Gemma2ForCausalLM",),
    fields=gemma(
        vocab_size=256000,
        interval=lambda _: 2,
        attention_softcap=is_given("attn_logit_softcapping", default=50.0),
        logit_softcap=is_given("final_logit_softcapping", default=30.0),
    ),
    without_effect=GEMMA_WITHOUT_EFFECT,
    only={"use_bidirectional_attention": (None, False)},
)
GEMMA3 = Family(
    declaration=CausalLM,
    heads=("Gemma3ForCausalLM",),
    fields=gemma(
        vocab_size=262208,
        interval=size("sliding_window_pattern", "_sliding_window_pattern", default=6),
        query_key_norm="head",
        attention_softcap=is_given("attn_logit_softcapping"),
        logit_softcap=is_given("final_logit_softcapping"),
    ),
    without_effect=GEMMA_WITHOUT_EFFECT
    | words("sliding_window_pattern _sliding_window_pattern rope_local_base_freq"),
    only={"use_bidirectional_attention": (None, False)},
)

PHI3_WINDOW = size("sliding_window", default=None)
PHI3_FIELDS = llama_like(
    vocab_size=32064,
    hidden_size=3072,
    intermediate_size=8192,
    num_hidden_layers=32,
    num_attention_heads=32,
    attention=windowed_everywhere(PHI3_WINDOW),
    window=PHI3_WINDOW,
    dropout=drops("resid_pdrop", default=0.0),
)
PHI3 = Family(
    declaration=CausalLM,
    heads=("Phi3ForCausalLM",),
    fields=PHI3_FIELDS | {"rotary_dim": rotary_dim(PHI3_FIELDS["head_dim"])},
    without_effect=words("max_position_embeddings embd_pdrop attention_bias"),
)

PHI_FIELDS = llama_like(
    vocab_size=51200,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=24,
    num_attention_heads=32,
    hidden_act="gelu_new",
    parallel_norms="one",
    output_bias=True,
    dropout=drops("resid_pdrop", default=0.0),
    query_key_norm=where("qk_layernorm", "head"),
    **GELU_AND_LAYER_NORM,
    **dict.fromkeys(BIASES, True),
)
PHI = Family(
    declaration=CausalLM,
    heads=("PhiForCausalLM",),
    fields=PHI_FIELDS | {"rotary_dim": rotary_dim(PHI_FIELDS["head_dim"], default=0.5)},
    without_effect=words("max_position_embeddings embd_pdrop"),
)

FALCON_CHANNELS = size("hidden_size", "n_embed", default=4544)
FALCON_HEADS = size("num_attention_heads", "n_head", default=71)
FALCON_IS_NEW = flag("new_decoder_architecture", default=False)
FALCON_BIAS = flag("bias", default=False)
FALCON_ALIBI = flag("alibi", default=False)


def falcon_key_value_heads(config: Config) -> Any:
    """One with ``multi_query``; ``num_kv_heads`` counts only in the new architecture."""
    given = size("num_kv_heads", default=FALCON_HEADS)(config)
    one = flag("multi_query", default=True)(config)
    if FALCON_IS_NEW(config):
        return given
    return 1 if one else FALCON_HEADS(config)


def falcon_norms(config: Config) -> str | None:
    """How many norms attention and MLP have side by side; None where one follows the other.

    Raises:
        ValueError: If the fields contradict each other.
    """
    is_new = FALCON_IS_NEW(config)
    is_parallel = flag("parallel_attn", default=True)(config)
    norms: int = size("num_ln_in_parallel_attn", default=2 if is_new else 1)(config)
    if norms > 1 + is_new or (is_new and not is_parallel):
        raise ValueError(
            f"num_ln_in_parallel_attn = {norms} with new_decoder_architecture = {is_new} and "
            f"parallel_attn = {is_parallel}: expected parallel_attn in the new architecture, and 2 "
            "norms in it alone"
        )
    return ("one", "two")[norms - 1] if is_parallel else None


FALCON = Family(
    declaration=CausalLM,
    heads=("FalconForCausalLM",),
    fields={
        "vocab_size": size("vocab_size", default=65024),
        "num_channels": FALCON_CHANNELS,
        "num_layers": size("num_hidden_layers", "n_layer", default=32),
        "num_heads": FALCON_HEADS,
        "num_key_value_heads": falcon_key_value_heads,
        "intermediate_size": size("ffn_hidden_size", default=times(4, FALCON_CHANNELS)),
        "positions": lambda config: ("alibi" if FALCON_ALIBI(config) else "rotary",),
        "activation": activation("activation", default="gelu"),
        "tie_embeddings": flag("tie_word_embeddings", default=True),
        "parallel_norms": falcon_norms,
        "dropout": drops("hidden_dropout", default=0.0),
        **GELU_AND_LAYER_NORM,
        **dict.fromkeys(BIASES, FALCON_BIAS),
    },
    without_effect=words("max_position_embeddings apply_residual_connection_post_layernorm"),
)

OPT_CHANNELS = size("hidden_size", default=768)
OPT_IS_PRE = flag("do_layer_norm_before", default=True)
OPT_AFFINE = flag("layer_norm_elementwise_affine", default=True)
OPT_POSITIONS = size("max_position_embeddings", default=2048)
OPT_SPARE_POSITIONS = 2  # the first two rows of its table, for padding


def opt_embedding(config: Config) -> Any:
    """Width of the token embedding, where it is not d."""
    width = size("word_embed_proj_dim", default=OPT_CHANNELS)(config)
    return None if width == OPT_CHANNELS(config) else width


def opt_final_norm(config: Config) -> bool:
    """A final norm goes with norms before the blocks, unless a fine-tuned file is without it."""
    removed = flag("_remove_final_layer_norm", default=False)(config)
    return OPT_IS_PRE(config) and not removed


OPT = Family(
    declaration=CausalLM,
    heads=("OPTForCausalLM",),
    fields={
        "vocab_size": size("vocab_size", default=50272),
        "num_channels": OPT_CHANNELS,
        "num_layers": size("num_hidden_layers", default=12),
        "num_heads": size("num_attention_heads", default=12),
        "intermediate_size": size("ffn_dim", default=3072),
        "num_positions": lambda config: OPT_POSITIONS(config) + OPT_SPARE_POSITIONS,
        "spare_positions": OPT_SPARE_POSITIONS,
        "positions": ("none",),
        "activation": activation("activation_function", default="relu"),
        "tie_embeddings": flag("tie_word_embeddings", default=True),
        "embedding_channels": opt_embedding,
        "norm_placement": lambda config: "pre" if OPT_IS_PRE(config) else "post",
        "final_norm": opt_final_norm,
        "dropout": drops("dropout", default=0.1),
        **GELU_AND_LAYER_NORM,
        **dict.fromkeys(("norm_bias", "norm_scale"), OPT_AFFINE),
        **dict.fromkeys(BIASES, flag("enable_bias", default=True)),
    },
    only={"layerdrop": (0,)},
)

NEOX_CHANNELS = size("hidden_size", default=6144)
NEOX_HEADS = size("num_attention_heads", default=64)
NEOX_BIAS = flag("attention_bias", default=True)
NEOX_IS_PARALLEL = flag("use_parallel_residual", default=True)
GPT_NEOX = Family(
    declaration=CausalLM,
    heads=("GPTNeoXForCausalLM",),
    fields={
        "vocab_size": size("vocab_size", default=50432),
        "num_channels": NEOX_CHANNELS,
        "num_layers": size("num_hidden_layers", default=44),
        "num_heads": NEOX_HEADS,
        "intermediate_size": size("intermediate_size", default=24576),
        "rotary_dim": rotary_dim(
            floor_divided(NEOX_CHANNELS, NEOX_HEADS), "rotary_pct", default=0.25
        ),
        "activation": activation("hidden_act", default="gelu"),
        "tie_embeddings": flag("tie_word_embeddings", default=False),
        "parallel_norms": lambda config: "two" if NEOX_IS_PARALLEL(config) else None,
        "dropout": drops("hidden_dropout", default=0.0),
        "mlp_bias": True,
        "qkv_bias": NEOX_BIAS,
        "out_bias": NEOX_BIAS,
        **GELU_AND_LAYER_NORM,
    },
    without_effect=words("max_position_embeddings rotary_emb_base"),
)

BLOOM_CHANNELS = size("hidden_size", "n_embed", default=64)
BLOOM = Family(
    declaration=CausalLM,
    heads=("BloomForCausalLM",),
    fields={
        "vocab_size": size("vocab_size", default=250880),
        "num_channels": BLOOM_CHANNELS,
        "num_layers": size("n_layer", "num_hidden_layers", default=2),
        "num_heads": size("n_head", "num_attention_heads", default=8),
        "intermediate_size": times(4, BLOOM_CHANNELS),
        "positions": ("alibi",),
        "activation": "gelu_tanh",
        "embedding_norm": True,
        "tie_embeddings": flag("tie_word_embeddings", default=True),
        "dropout": drops("hidden_dropout", default=0.0),
        **GELU_AND_LAYER_NORM,
        **dict.fromkeys(BIASES, True),
    },
    without_effect=words(
        "apply_residual_connection_post_layernorm slow_but_exact attention_softmax_in_fp32 "
        "bias_dropout_fusion masked_softmax_fusion offset_alibi seq_length skip_bias_add "
        "skip_bias_add_qkv n_inner"
    ),
)

MPT_CHANNELS = size("d_model", "hidden_size", default=2048)
MPT = Family(
    declaration=CausalLM,
    heads=("MptForCausalLM", "MPTForCausalLM"),
    fields={
        "vocab_size": size("vocab_size", default=50368),
        "num_channels": MPT_CHANNELS,
        "num_layers": size("n_layers", "num_hidden_layers", default=24),
        "num_heads": size("n_heads", "num_attention_heads", default=16),
        "intermediate_size": times(4, MPT_CHANNELS),
        "positions": ("alibi",),
        "activation": "gelu",
        "tie_embeddings": flag("tie_word_embeddings", default=True),
        "dropout": drops("attn_config.attn_pdrop", default=0.0),
        "qkv_clip": is_given("attn_config.clip_qkv"),
        "gated": False,
        "norm": "layer",
    },
    nested=("attn_config",),
    without_effect=words(
        "max_seq_len learned_pos_emb resid_pdrop emb_pdrop embedding_fraction init_device "
        "init_config tokenizer_name verbose use_pad_tok_in_ffn attn_config.attn_impl "
        "attn_config.softmax_scale attn_config.alibi_bias_max attn_config.attn_uses_sequence_id "
        "attn_config.is_encoder_decoder"
    ),
    only={
        "expansion_ratio": (4,),
        "no_bias": (True,),
        "norm_type": ("low_precision_layernorm", "layernorm"),
        "attn_config.alibi": (True,),
        "attn_config.qk_ln": (False,),
        "attn_config.prefix_lm": (False,),
        "attn_config.attn_type": ("multihead_attention",),
        "logit_scale": (None,),
    },
)

OLMO = Family(
    declaration=CausalLM,
    heads=("OlmoForCausalLM",),
    fields=llama_like(
        vocab_size=50304,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        norm="layer",
        norm_scale=False,
        qkv_clip=is_given("clip_qkv"),
        **ALL_BIASES,
    ),
    without_effect=words("max_position_embeddings"),
)
OLMO2 = Family(
    declaration=CausalLM,
    heads=("Olmo2ForCausalLM",),
    fields=llama_like(
        vocab_size=50304,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        norm_placement="branch",
        query_key_norm="whole",
        **ALL_BIASES,
    ),
    without_effect=words("max_position_embeddings"),
)

SMOLLM3_LAYERS = size("num_hidden_layers", default=36)
SMOLLM3_WINDOW = size("sliding_window", default=None)


def smollm3_by_interval(config: Config) -> Callable[[int], str]:
    """Every so many layers one is without positions."""
    every = size("no_rope_layer_interval", default=4)(config)
    return lambda index: "rotary" if (index + 1) % every else "none"


SMOLLM3_POSITIONS = listed(
    "no_rope_layers",
    SMOLLM3_LAYERS,
    {1: "rotary", 0: "none"},
    by_layer(SMOLLM3_LAYERS, smollm3_by_interval),
)


def smollm3_by_positions(config: Config) -> Callable[[int], str]:
    """Windows, if any, are where there are no positions."""
    used = flag("use_sliding_window", default=False)(config)
    slides, words = used and SMOLLM3_WINDOW(config) is not None, SMOLLM3_POSITIONS(config)
    return lambda index: "sliding" if slides and words[index] == "none" else "full"


SMOLLM3_ATTENTION = attention_types(SMOLLM3_LAYERS, by_layer(SMOLLM3_LAYERS, smollm3_by_positions))
SMOLLM3 = Family(
    declaration=CausalLM,
    heads=("SmolLM3ForCausalLM",),
    fields=llama_like(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=11008,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=4,
        tied=True,
        mlp_bias=flag("mlp_bias", default=False),
        attention=SMOLLM3_ATTENTION,
        window=only_where("sliding", SMOLLM3_ATTENTION, SMOLLM3_WINDOW),
        positions=SMOLLM3_POSITIONS,
        **ALL_BIASES,
    ),
    without_effect=words(
        "max_position_embeddings use_sliding_window sliding_window no_rope_layer_interval "
        "max_window_layers"
    ),
)

GLM_FIELDS = llama_like(
    vocab_size=151552,
    hidden_size=4096,
    intermediate_size=13696,
    num_hidden_layers=40,
    num_attention_heads=32,
    num_key_value_heads=2,
    head_dim=128,
    qkv_bias=flag("attention_bias", default=True),
)
GLM_FIELDS["rotary_dim"] = rotary_dim(GLM_FIELDS["head_dim"], default=0.5)
GLM = Family(
    declaration=CausalLM,
    heads=("GlmForCausalLM",),
    fields=GLM_FIELDS,
    without_effect=words("max_position_embeddings"),
)
GLM4 = Family(
    declaration=CausalLM,
    heads=("Glm4ForCausalLM",),
    fields=GLM_FIELDS | {"norm_placement": "both"},
    without_effect=words("max_position_embeddings"),
)

FAMILIES = {
    "bloom": BLOOM,
    "falcon": FALCON,
    "gemma": GEMMA,
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA3,
    "glm": GLM,
    "glm4": GLM4,
    "gpt2": GPT2,
    "gpt_neox": GPT_NEOX,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "mpt": MPT,
    "olmo": OLMO,
    "olmo2": OLMO2,
    "opt": OPT,
    "phi": PHI,
    "phi3": PHI3,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "smollm3": SMOLLM3,
}
"""By ``model_type``."""
