"""Configs that families read from Hugging Face are tried on: drawn small ones.

A strategy per family draws what a config.json may say: sizes of any kind, odd ones too, and every
option that changes the network given, left out or null.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

Config = dict[str, Any]
Strategy = st.SearchStrategy[Any]

STAND_INS = {"kimi_k2": "deepseek_v3", "minimax_text_01": "minimax"}
"""Families that transformers has no code for, and whose code runs at their sizes instead."""

NO_TOKENS: Config = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
"""A vocabulary of a few entries has none of those of the classes."""

BOOLEANS = st.booleans()
SIZES = st.integers(1, 12)
DROPOUTS = st.sampled_from([0.0, 0.1])
WINDOWS = st.none() | st.integers(1, 9)
MOST_LAYERS = 3


def seq_lens() -> Strategy:
    """Positions of a drawn sequence."""
    return st.integers(1, 11)


@st.composite
def decoders(
    draw: Any,
    /,
    head_dims: str = "free",
    multiple: int = 2,
    key_heads: bool = True,
    null_heads: bool = False,
    options: Callable[[int], dict[str, Strategy]] = lambda layers: {},
    **given: Strategy,
) -> Config:
    """A config with the names of Llama's.

    Args:
        draw: Of hypothesis.
        head_dims: ``"free"`` with any number of channels or as many as the heads have, ``"given"``
            always, since the class does not divide, or ``"divided"`` where the field has no effect.
        multiple: What a head dim is a multiple of, for rotary pairs.
        key_heads: Whether there may be fewer heads of keys and values.
        null_heads: Whether their number may be null.
        options: Further fields by the number of layers, each of which may be absent.
        given: Fields that are always there.
    """
    groups, size = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    heads, head_dim = groups * size, multiple * draw(st.integers(1, max(12 // multiple, 2)))
    layers = draw(st.integers(1, MOST_LAYERS))
    free = head_dims == "given" or (head_dims == "free" and draw(BOOLEANS))
    config = NO_TOKENS | dict(
        vocab_size=draw(SIZES),
        hidden_size=heads * (draw(st.integers(1, 7)) if free else head_dim),
        intermediate_size=draw(SIZES),
        num_hidden_layers=layers,
        num_attention_heads=heads,
    )
    if free:
        config["head_dim"] = head_dim
    if key_heads:
        null = null_heads and size == 1 and draw(BOOLEANS)
        config["num_key_value_heads"] = None if null else groups
    config |= {name: draw(strategy) for name, strategy in given.items()}
    return config | draw(st.fixed_dictionaries({}, optional=options(layers)))


def flags(*names: str) -> dict[str, Strategy]:
    """Fields that are true or false."""
    return dict.fromkeys(names, BOOLEANS)


def optional(*names: str, **others: Strategy) -> Callable[[int], dict[str, Strategy]]:
    """Fields that may be absent, whatever the number of layers: flags, and others."""
    return lambda layers: flags(*names) | others


def per_layer(name: str, *words: Any) -> Callable[[int], dict[str, Strategy]]:
    """A list with one of some words for each layer."""
    return lambda layers: {name: st.lists(st.sampled_from(words), min_size=layers, max_size=layers)}


def together(
    *options: Callable[[int], dict[str, Strategy]],
) -> Callable[[int], dict[str, Strategy]]:
    """The options of all."""

    def both(layers: int) -> dict[str, Strategy]:
        return {name: value for one in options for name, value in one(layers).items()}

    return both


TYPES = ("full_attention", "sliding_attention")
TIED = ("tie_word_embeddings",)
ACTIVATIONS = st.sampled_from(["silu", "gelu", "relu", "gelu_pytorch_tanh"])


@st.composite
def gpt2(draw: Any) -> Config:
    """GPT-2's own names; a width of the MLP that may be left to the class."""
    heads = draw(st.integers(1, 4))
    return NO_TOKENS | draw(
        st.fixed_dictionaries(
            dict(
                vocab_size=SIZES,
                n_embd=st.just(heads * draw(SIZES)),
                n_layer=st.integers(1, MOST_LAYERS),
                n_head=st.just(heads),
                n_positions=st.integers(11, 20),
            ),
            optional=dict(
                n_inner=st.none() | SIZES,
                activation_function=st.sampled_from(["gelu_new", "relu", "silu"]),
                resid_pdrop=DROPOUTS,
                **flags(*TIED, "scale_attn_by_inverse_layer_idx"),
            ),
        )
    )


@st.composite
def qwen(draw: Any, head_dims: str, *more: str) -> Config:
    """Windows of the last layers, or of those that are listed."""
    config: Config = draw(
        decoders(
            head_dims,
            options=together(
                optional(*TIED, *more, "use_sliding_window", max_window_layers=st.integers(0, 4)),
                per_layer("layer_types", *TYPES),
            ),
            sliding_window=WINDOWS,
        )
    )
    if config["sliding_window"] is None or not config.get("use_sliding_window"):
        config.pop("layer_types", None)
    return config


@st.composite
def gemma(draw: Any, /, *more: str, **options: Strategy) -> Config:
    """Windows by a period or as listed; always with a head dim, since the class does not divide."""
    config: Config = draw(
        decoders(
            "given",
            options=together(
                optional(*TIED, "attention_bias", *more, **options),
                per_layer("layer_types", *TYPES),
            ),
            sliding_window=st.integers(1, 9),
        )
    )
    return config


@st.composite
def opt(draw: Any) -> Config:
    """An embedding of its own width, norms before or after, and none of a norm's parameters."""
    heads = draw(st.integers(1, 4))
    before = draw(BOOLEANS)
    return NO_TOKENS | draw(
        st.fixed_dictionaries(
            dict(
                vocab_size=SIZES,
                hidden_size=st.just(heads * draw(SIZES)),
                ffn_dim=SIZES,
                num_hidden_layers=st.integers(1, MOST_LAYERS),
                num_attention_heads=st.just(heads),
                max_position_embeddings=st.integers(11, 20),
                do_layer_norm_before=st.just(before),
            ),
            optional=dict(
                word_embed_proj_dim=SIZES,
                dropout=DROPOUTS,
                **flags(*TIED, "enable_bias", "layer_norm_elementwise_affine"),
                **({"_remove_final_layer_norm": BOOLEANS} if before else {}),
            ),
        )
    )


@st.composite
def falcon(draw: Any) -> Config:
    """Both architectures, sequential and parallel, one norm and two, ALiBi and rotary."""
    groups, size = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    heads, head_dim = groups * size, 2 * draw(st.integers(1, 6))
    new = draw(BOOLEANS)
    # transformers' code takes another number of key heads, or sequential blocks, in one of the two.
    options = (
        {
            "num_kv_heads": st.just(groups),
            "num_ln_in_parallel_attn": st.sampled_from([None, 1, 2]),
        }
        if new
        else flags("multi_query", "parallel_attn")
    )
    return NO_TOKENS | draw(
        st.fixed_dictionaries(
            dict(
                vocab_size=SIZES,
                hidden_size=st.just(heads * head_dim),
                num_hidden_layers=st.integers(1, MOST_LAYERS),
                num_attention_heads=st.just(heads),
                new_decoder_architecture=st.just(new),
                alibi=BOOLEANS,
            ),
            optional=dict(
                ffn_hidden_size=SIZES,
                hidden_dropout=DROPOUTS,
                **flags(*TIED, "bias"),
                **options,
            ),
        )
    )


@st.composite
def bloom(draw: Any) -> Config:
    """ALiBi, a norm of the embedding."""
    heads = draw(st.integers(1, 4))
    return NO_TOKENS | draw(
        st.fixed_dictionaries(
            dict(
                vocab_size=SIZES,
                hidden_size=st.just(heads * draw(SIZES)),
                n_layer=st.integers(1, MOST_LAYERS),
                n_head=st.just(heads),
            ),
            optional=dict(
                hidden_dropout=DROPOUTS,
                **flags(*TIED, "apply_residual_connection_post_layernorm"),
            ),
        )
    )


@st.composite
def mpt(draw: Any) -> Config:
    """ALiBi, norms without a shift."""
    heads = draw(st.integers(1, 4))
    return NO_TOKENS | draw(
        st.fixed_dictionaries(
            dict(
                vocab_size=SIZES,
                d_model=st.just(heads * draw(SIZES)),
                n_layers=st.integers(1, MOST_LAYERS),
                n_heads=st.just(heads),
                max_seq_len=st.integers(11, 20),
            ),
            optional=dict(
                expansion_ratio=st.just(4),
                attn_config=st.fixed_dictionaries(
                    {}, optional=dict(clip_qkv=st.none() | st.just(8.0))
                ),
                resid_pdrop=DROPOUTS,
                **flags(*TIED),
            ),
        )
    )


@st.composite
def bert(draw: Any) -> Config:
    """Both heads, and token types."""
    heads = draw(st.integers(1, 4))
    return NO_TOKENS | draw(
        st.fixed_dictionaries(
            dict(
                vocab_size=SIZES,
                hidden_size=st.just(heads * draw(SIZES)),
                intermediate_size=SIZES,
                num_hidden_layers=st.integers(1, MOST_LAYERS),
                num_attention_heads=st.just(heads),
                max_position_embeddings=st.integers(11, 20),
            ),
            optional=dict(
                type_vocab_size=st.integers(1, 3),
                hidden_act=ACTIVATIONS,
                hidden_dropout_prob=DROPOUTS,
                architectures=st.sampled_from([["BertModel"], ["BertForMaskedLM"]]),
            ),
        )
    )


@st.composite
def t5(draw: Any) -> Config:
    """Heads of any width, a gate or none, a decoder of as many layers or others."""
    return dict(decoder_start_token_id=0) | draw(
        st.fixed_dictionaries(
            dict(
                vocab_size=SIZES,
                d_model=st.integers(1, 17),
                d_kv=SIZES,
                d_ff=SIZES,
                num_heads=st.integers(1, 4),
                num_layers=st.integers(1, MOST_LAYERS),
            ),
            optional=dict(
                num_decoder_layers=st.none() | st.integers(1, MOST_LAYERS),
                relative_attention_num_buckets=st.integers(4, 20).map(lambda half: 2 * half),
                feed_forward_proj=st.sampled_from(["relu", "gelu", "gated-gelu", "gated-silu"]),
                dropout_rate=DROPOUTS,
                **flags(*TIED),
            ),
        )
    )


DRAWN: dict[str, Strategy] = {
    "gpt2": gpt2(),
    "llama": decoders(
        null_heads=True,
        options=optional(*TIED, "attention_bias", "mlp_bias", hidden_act=ACTIVATIONS),
    ),
    "mistral": decoders(options=optional(*TIED, sliding_window=WINDOWS, hidden_act=ACTIVATIONS)),
    "qwen2": qwen("divided"),
    "qwen3": qwen("given", "attention_bias"),
    "gemma": decoders("given", options=optional(*TIED, "attention_bias", hidden_act=ACTIVATIONS)),
    "gemma2": gemma(
        attn_logit_softcapping=st.none() | st.just(50.0),
        final_logit_softcapping=st.none() | st.just(30.0),
        hidden_activation=ACTIVATIONS,
    ),
    "gemma3_text": gemma(
        final_logit_softcapping=st.none() | st.just(30.0),
        sliding_window_pattern=st.integers(1, 4),
    ),
    "phi": decoders(
        "divided",
        multiple=4,
        options=optional(*TIED, "qk_layernorm", resid_pdrop=DROPOUTS),
    ),
    "phi3": decoders(
        "divided",
        options=optional(*TIED, sliding_window=WINDOWS, resid_pdrop=DROPOUTS),
    ),
    "falcon": falcon(),
    "opt": opt(),
    "gpt_neox": decoders(
        "divided",
        multiple=4,
        key_heads=False,
        options=optional(
            *TIED,
            "use_parallel_residual",
            "attention_bias",
            rotary_pct=st.sampled_from([0.5, 1.0]),
            hidden_dropout=DROPOUTS,
        ),
        intermediate_size=SIZES,
    ),
    "bloom": bloom(),
    "bert": bert(),
    "t5": t5(),
    "mpt": mpt(),
    "olmo": decoders(
        "divided",
        options=optional(*TIED, "attention_bias", clip_qkv=st.none() | st.just(8.0)),
    ),
    "olmo2": decoders("divided", options=optional(*TIED, "attention_bias")),
    "smollm3": decoders(
        "divided",
        options=together(
            optional(*TIED, "attention_bias", "mlp_bias", no_rope_layer_interval=st.integers(1, 4)),
            per_layer("no_rope_layers", 0, 1),
        ),
    ),
    "glm": decoders("given", multiple=4, options=optional(*TIED, "attention_bias")),
    "glm4": decoders("given", multiple=4, options=optional(*TIED, "attention_bias")),
}
"""A strategy for each ``model_type``."""
