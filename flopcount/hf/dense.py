"""Families of decoder-only models whose layers are attention and one MLP.

Each default is that of the family's own class in transformers 5.24; they differ. Where the hub's
files go by other names, these stand behind the class's own.
"""

from __future__ import annotations

from typing import Any

from flopcount.causal_lm import CausalLM
from flopcount.hf.reader import (
    Config,
    Family,
    Take,
    flag,
    floor_divided,
    listed,
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
        "gated": False,
        "norm": "layer",
        **dict.fromkeys(("norm_bias", "qkv_bias", "out_bias", "mlp_bias"), True),
    },
    without_effect=words(
        "resid_pdrop embd_pdrop attn_pdrop scale_attn_weights scale_attn_by_inverse_layer_idx "
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

    def by_rule(config: Config) -> tuple[str, ...]:
        slides, start = window(config) is not None, first(config)
        return tuple(
            "sliding" if slides and index >= start else "full" for index in range(number(config))
        )

    attention = attention_types(number, by_rule)
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

FAMILIES = {"gpt2": GPT2, "llama": LLAMA, "mistral": MISTRAL, "qwen2": QWEN2, "qwen3": QWEN3}
"""By ``model_type``."""
