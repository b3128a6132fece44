"""Families of encoders, and of encoders with a decoder.

Each default is that of the family's own class in transformers 5.24.
"""

from __future__ import annotations

from flopcount.encoder_lm import EncoderDecoderLM, EncoderLM
from flopcount.hf.dense import ACTIVATION_NAMES, activation
from flopcount.hf.reader import ABSENT, Config, Family, drops, flag, option, size, words
from flopcount.sizes import quoted, require_choice


def bert_head(config: Config) -> str:
    """``BertModel`` ends in a pooler, the language model in logits for masked tokens."""
    _, given = config.given("architectures")
    return "pooler" if given not in (ABSENT, None) and "BertModel" in given else "masked"


BERT = Family(
    declaration=EncoderLM,
    heads=("BertForMaskedLM", "BertModel"),
    fields={
        "vocab_size": size("vocab_size", default=30522),
        "num_channels": size("hidden_size", default=768),
        "num_layers": size("num_hidden_layers", default=12),
        "num_heads": size("num_attention_heads", default=12),
        "intermediate_size": size("intermediate_size", default=3072),
        "num_positions": size("max_position_embeddings", default=512),
        "token_types": size("type_vocab_size", default=2),
        "activation": activation("hidden_act", default="gelu"),
        "dropout": drops("hidden_dropout_prob", default=0.1),
        "head": bert_head,
    },
    without_effect=words("attention_probs_dropout_prob"),
    only={
        "is_decoder": (False, None),
        "position_embedding_type": ("absolute",),
        # Its class would keep a second bias of the logits, which nothing reads.
        "tie_word_embeddings": (True, None),
    },
)


def feed_forward(config: Config) -> tuple[bool, str]:
    """``feed_forward_proj``: whether there is a gate, and the activation function.

    ``"gated-gelu"`` is the approximation with tanh, ``"gelu"`` alone the exact function.
    """
    _, given = config.given("feed_forward_proj")
    name = "relu" if given is ABSENT or given is None else given
    gated = isinstance(name, str) and name.startswith("gated-")
    function = name.removeprefix("gated-") if gated else name
    if name == "gated-gelu":
        function = "gelu_new"
    if function not in list(ACTIVATION_NAMES):  # as a list, since it need not have a hash
        known = ", ".join(repr(name) for name in ACTIVATION_NAMES)
        raise ValueError(
            f"feed_forward_proj = {quoted(given)}: expected one of {known}, or gated- and one"
        )
    return gated, ACTIVATION_NAMES[require_choice("feed_forward_proj", function, ACTIVATION_NAMES)]


T5 = Family(
    declaration=EncoderDecoderLM,
    heads=("T5ForConditionalGeneration", "T5WithLMHeadModel"),
    fields={
        "vocab_size": size("vocab_size", default=32128),
        "num_channels": size("d_model", "hidden_size", default=512),
        "num_layers": size("num_layers", "num_hidden_layers", default=6),
        "num_decoder_layers": size(
            "num_decoder_layers", default=size("num_layers", "num_hidden_layers", default=6)
        ),
        "num_heads": size("num_heads", "num_attention_heads", default=8),
        "head_dim": size("d_kv", "head_dim", default=64),
        "intermediate_size": size("d_ff", default=2048),
        "position_buckets": size("relative_attention_num_buckets", default=32),
        "gated": lambda config: feed_forward(config)[0],
        "activation": lambda config: feed_forward(config)[1],
        # Its class keeps what the file says of ties under the name of what follows from it.
        "tie_embeddings": flag(
            "scale_decoder_outputs", default=flag("tie_word_embeddings", default=True)
        ),
        "dropout": drops("dropout_rate", default=0.1),
        "target_len": option("target_len"),
    },
    without_effect=words(
        "relative_attention_max_distance initializer_factor dense_act_fn is_gated_act "
        "tie_word_embeddings n_positions output_past"
    ),
    only={"is_encoder_decoder": (True,), "is_decoder": (False, None)},
    options=frozenset({"target_len"}),
)

FAMILIES = {"bert": BERT, "t5": T5}
"""By ``model_type``."""
