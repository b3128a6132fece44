"""Families with a scan in place of attention, in some layers or in all.

Each default is that of the family's own class in transformers 5.24. MiniMax-Text-01's own file, of
the model type ``minimax_text_01``, comes with a class of its own, which is not executed: where it
leaves a field out, transformers' class decides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from flopcount.hf.dense import ALL_BIASES, activation, llama_like, windowed_everywhere
from flopcount.hf.experts import ROUTING, product, qwen_experts, sparse_layers
from flopcount.hf.reader import (
    Config,
    Family,
    Take,
    flag,
    indices,
    listed,
    number,
    rotary_dim,
    size,
    words,
)
from flopcount.hybrid_lm import DeltaNetLM, LightningLM, Mamba1LM, Mamba2LM
from flopcount.sizes import ceil_divide, quoted

LAYER_TYPES = {"full_attention": "attention", "linear_attention": "scan"}
"""What each entry of ``layer_types`` stands for."""


def mixers(layers: Take, attends: Callable[[Config, int], bool]) -> Take:
    """Which layers have attention, by ``attends(config, index)``."""
    return lambda config: tuple(
        "attention" if attends(config, index) else "scan" for index in indices(layers, config)
    )


def factors(kind: str, *original: str) -> Take:
    """How many of α and β of a kind of residual are not 1, by either of their names."""
    both = [
        number(f"{kind}_{name}_factor", *(f"layernorm_{other}_{name}" for other in original),
               default=1)
        for name in ("alpha", "beta")
    ]  # fmt: skip
    return lambda config: sum(take(config) != 1 for take in both)


MINIMAX_LAYERS = size("num_hidden_layers", default=32)
MINIMAX_WINDOW = size("sliding_window", default=None, null=None)


def minimax(
    *,
    kinds: str,
    known: dict[Any, str],
    default: Take,
    heads: tuple[str, ...],
    only: dict[str, tuple[Any, ...]] | None = None,
    **others: Any,
) -> Family:
    """MiniMax-Text-01, by the names of transformers' class or of its own file."""
    return Family(
        declaration=LightningLM,
        heads=heads,
        fields=llama_like(
            vocab_size=32000,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            mixers=listed(kinds, MINIMAX_LAYERS, known, default),
            attention=windowed_everywhere(MINIMAX_WINDOW),
            window=MINIMAX_WINDOW,
            num_experts=size("num_local_experts", "num_experts", default=8),
            experts_per_token=size("num_experts_per_tok", default=2),
            expert_size=size("intermediate_size", default=14336),
            router_normalised=True,
            scan_chunk=size("block_size", default=256),
            attention_factors=factors("full_attn", "full_attention"),
            scan_factors=factors("linear_attn", "linear_attention"),
            mlp_factors=factors("mlp", "mlp"),
            **others,
        ),
        without_effect=ROUTING | words("max_position_embeddings shared_moe_mode"),
        only=only or {},
    )


def attn_types(config: Config) -> NoReturn:
    """No default of the list of layers is known: the class comes with the file."""
    raise ValueError("attn_type_list is absent or null: expected a list of 0 (linear) and 1 (full)")


MINIMAX = minimax(
    kinds="layer_types",
    known=LAYER_TYPES,
    default=mixers(MINIMAX_LAYERS, lambda config, index: index % 2 == 0),
    heads=("MiniMaxForCausalLM",),
)
MINIMAX_TEXT_01 = minimax(
    kinds="attn_type_list",
    known={0: "scan", 1: "attention"},
    default=attn_types,
    heads=("MiniMaxText01ForCausalLM",),
    rotary_dim=size("rotary_dim", default=None, null=None),
    only={"postnorm": (True,), "shared_intermediate_size": (0, None)},
)

QWEN3_NEXT_LAYERS = size("num_hidden_layers", default=48)
INTERVAL = size("full_attention_interval", default=4)
QWEN3_NEXT_SIZES = llama_like(
    vocab_size=151936,
    hidden_size=2048,
    intermediate_size=5632,
    num_hidden_layers=48,
    num_attention_heads=16,
    num_key_value_heads=2,
    head_dim=256,
    query_key_norm="head",
    attention_gate=True,
    **ALL_BIASES,
    **qwen_experts(48, experts=512, per_token=10, expert_size=512),
)
QWEN3_NEXT = Family(
    declaration=DeltaNetLM,
    heads=("Qwen3NextForCausalLM",),
    fields=QWEN3_NEXT_SIZES
    | dict(
        rotary_dim=rotary_dim(QWEN3_NEXT_SIZES["head_dim"], default=0.25),
        mixers=listed(
            "layer_types",
            QWEN3_NEXT_LAYERS,
            LAYER_TYPES,
            mixers(QWEN3_NEXT_LAYERS, lambda config, index: (index + 1) % INTERVAL(config) == 0),
        ),
        router_normalised=flag("norm_topk_prob", default=True),
        shared_size=size("shared_expert_intermediate_size", default=512),
        shared_gate=True,
        shared_first=True,
        scan_key_heads=size("linear_num_key_heads", default=16),
        scan_value_heads=size("linear_num_value_heads", default=32),
        scan_key_dim=size("linear_key_head_dim", default=128),
        scan_value_dim=size("linear_value_head_dim", default=128),
        taps=size("linear_conv_kernel_dim", default=4),
        scan_chunk=64,
    ),
    without_effect=ROUTING | words("full_attention_interval"),
)


def every(period: str, offset: str, *, defaults: tuple[int, int]) -> Callable[[Config, int], bool]:
    """Whether a layer is the ``offset``-th of each ``period``, from 0."""
    length, first = size(period, default=defaults[0]), size(offset, default=defaults[1], minimum=0)

    def chosen(config: Config, index: int) -> bool:
        if first(config) >= length(config):
            raise ValueError(
                f"{offset} = {quoted(first(config))}: expected less than {period} = "
                f"{quoted(length(config))}"
            )
        return bool(index % length(config) == first(config))

    return chosen


def step_size_rank(config: Config) -> Any:
    """``mamba_dt_rank``, where ``"auto"`` is ⌈d/16⌉."""
    if config.given("mamba_dt_rank")[1] == "auto":
        return ceil_divide(JAMBA_CHANNELS(config), 16)
    return JAMBA_RANK(config)


JAMBA_LAYERS = size("num_hidden_layers", default=32)
JAMBA_CHANNELS = size("hidden_size", default=4096)
JAMBA_RANK = size("mamba_dt_rank", default=lambda config: ceil_divide(JAMBA_CHANNELS(config), 16))
JAMBA_EXPERTS = size("num_experts", "num_local_experts", default=16)
JAMBA_PER_TOKEN = size("num_experts_per_tok", default=2)
JAMBA_SPARSE = every("expert_layer_period", "expert_layer_offset", defaults=(2, 1))
JAMBA = Family(
    declaration=Mamba1LM,
    heads=("JambaForCausalLM",),
    fields=llama_like(
        vocab_size=65536,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        positions=("none",),
        mixers=mixers(
            JAMBA_LAYERS, every("attn_layer_period", "attn_layer_offset", defaults=(8, 4))
        ),
        mlp=sparse_layers(
            JAMBA_LAYERS,
            lambda config, index: JAMBA_SPARSE(config, index) and JAMBA_EXPERTS(config) > 1,
        ),
        num_experts=JAMBA_EXPERTS,
        experts_per_token=lambda config: (
            JAMBA_PER_TOKEN(config) if JAMBA_EXPERTS(config) > 1 else 1
        ),
        expert_size=size("intermediate_size", default=14336),
        scan_channels=product(size("mamba_expand", default=2), JAMBA_CHANNELS),
        scan_state=size("mamba_d_state", default=16),
        scan_rank=step_size_rank,
        taps=size("mamba_d_conv", default=4),
        scan_bias=flag("mamba_proj_bias", default=False),
        convolution_bias=flag("mamba_conv_bias", default=True),
    ),
    # One expert is an MLP, of which no token uses more than one.
    without_effect=ROUTING
    | words("num_experts_per_tok use_mamba_kernels use_mambapy use_associative_scan"),
)

MAMBA2_CHANNELS = size("hidden_size", default=4096)
MAMBA2_HEADS = size("num_heads", default=128)
MAMBA2_HEAD_DIM = size("head_dim", default=64)


def mamba2_head_dim(config: Config) -> Any:
    """The head dim, such that all heads together have ``expand`` times d channels."""
    inner = size("expand", default=2)(config) * MAMBA2_CHANNELS(config)
    if MAMBA2_HEADS(config) * MAMBA2_HEAD_DIM(config) != inner:
        raise ValueError(
            f"num_heads = {quoted(MAMBA2_HEADS(config))} and head_dim = "
            f"{quoted(MAMBA2_HEAD_DIM(config))}: expected a product of expand · hidden_size = "
            f"{quoted(inner)}"
        )
    return MAMBA2_HEAD_DIM(config)


MAMBA2 = Family(
    declaration=Mamba2LM,
    heads=("Mamba2ForCausalLM",),
    fields={
        "vocab_size": size("vocab_size", default=32768),
        "num_channels": MAMBA2_CHANNELS,
        "num_layers": size("num_hidden_layers", default=64),
        "num_heads": MAMBA2_HEADS,
        "head_dim": mamba2_head_dim,
        "state": size("state_size", default=128),
        "head_groups": size("n_groups", default=8),
        "taps": size("conv_kernel", default=4),
        "chunk": size("chunk_size", default=256),
        "bias": flag("use_bias", default=False),
        "convolution_bias": flag("use_conv_bias", default=True),
        "activation": activation("hidden_act", default="silu"),
        "tie_embeddings": flag("tie_word_embeddings", default=False),
    },
    without_effect=words(
        "residual_in_fp32 time_step_rank time_step_min time_step_max time_step_floor "
        "time_step_limit rescale_prenorm_residual"
    ),
)

FAMILIES = {
    "minimax": MINIMAX,
    "minimax_text_01": MINIMAX_TEXT_01,
    "qwen3_next": QWEN3_NEXT,
    "jamba": JAMBA,
    "mamba2": MAMBA2,
}
"""By ``model_type``."""
