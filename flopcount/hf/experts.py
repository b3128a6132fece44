"""Families of decoder-only models with experts, some of them with latent attention.

Each default is that of the family's own class in transformers 5.24; they differ, and so do the
names of one and the same thing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from flopcount.hf.dense import (
    ALL_BIASES,
    ATTENTION_BIAS,
    attention_types,
    llama_like,
    only_where,
    windowed_everywhere,
)
from flopcount.hf.reader import (
    ABSENT,
    Config,
    Family,
    Take,
    flag,
    indices,
    listed,
    rotary_dim,
    size,
    words,
)
from flopcount.mixture_lm import MixtureLM
from flopcount.sizes import quoted, require_size

ROUTING = words(
    "max_position_embeddings output_router_logits router_aux_loss_coef router_jitter_noise "
    "aux_loss_alpha seq_aux n_group topk_group ep_size routed_scaling_factor quantization_config"
)
"""How experts are chosen, losses that balance them, and how weights are stored."""


def missing(name: str) -> Take:
    """What a class leaves to the file: an error where the file leaves it out too."""

    def take(config: Config) -> NoReturn:
        raise ValueError(f"{name} is absent or null: expected an integer >= 1, it has no default")

    return take


def sparse_layers(layers: Take, is_sparse: Callable[[Config, int], bool]) -> Take:
    """Which layers have experts, by ``is_sparse(config, index)``."""
    return lambda config: tuple(
        "sparse" if is_sparse(config, index) else "dense" for index in indices(layers, config)
    )


def sparse_after(layers: Take, *, default: int) -> Take:
    """All layers but the first ``first_k_dense_replace`` have experts."""
    dense = size("first_k_dense_replace", default=default, minimum=0)
    return sparse_layers(layers, lambda config, index: bool(index >= dense(config)))


def product(left: Take, right: Take) -> Take:
    """The product of two fields."""
    return lambda config: left(config) * right(config)


def layer_indices(name: str, default: Take) -> Take:
    """A list of indices of layers; what the default gives where it is absent or ``null``."""

    def take(config: Config) -> Any:
        _, value = config.given(name)
        if value is ABSENT or value is None:
            return default(config)
        if not isinstance(value, list | tuple):
            raise TypeError(f"{name} = {quoted(value)}: expected a list of indices of layers")
        return [require_size(f"{name}[{i}]", index, 0) for i, index in enumerate(value)]

    return take


def further_predictions(*names: str, default: int) -> dict[str, Any]:
    """Modules that predict further tokens: a family's, which count where the caller says so."""
    declared = size(*names, default=default, minimum=0)

    def counted(config: Config) -> Any:
        return (declared(config) or None) if config.options["mtp"] else None

    def remark(config: Config) -> str | None:
        if config.options["mtp"]:
            return None
        return (
            f"further predictions: modules declared {declared(config)}, not counted without "
            "mtp=True"
        )

    return dict(fields={"num_predictions": counted}, options=frozenset({"mtp"}), remarks=(remark,))


MIXTRAL_WINDOW = size("sliding_window", default=None, null=None)
MIXTRAL = Family(
    declaration=MixtureLM,
    heads=("MixtralForCausalLM",),
    fields=llama_like(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        attention=windowed_everywhere(MIXTRAL_WINDOW),
        window=MIXTRAL_WINDOW,
        num_experts=size("num_local_experts", "num_experts", default=8),
        experts_per_token=size("num_experts_per_tok", default=2),
        expert_size=size("intermediate_size", default=14336),
        router_normalised=True,
    ),
    without_effect=ROUTING,
)


def qwen_experts(layers: int, *, experts: int, per_token: int, expert_size: int) -> dict[str, Any]:
    """Experts in every ``decoder_sparse_step``-th layer but those of ``mlp_only_layers``."""
    step = size("decoder_sparse_step", default=1)
    dense = layer_indices("mlp_only_layers", lambda config: ())

    def is_sparse(config: Config, index: int) -> bool:
        # Both are read, whichever decides.
        every, never = step(config), dense(config)
        return bool((index + 1) % every == 0 and index not in never)

    return dict(
        mlp=sparse_layers(size("num_hidden_layers", default=layers), is_sparse),
        num_experts=size("num_experts", "num_local_experts", default=experts),
        experts_per_token=size("num_experts_per_tok", default=per_token),
        expert_size=size("moe_intermediate_size", default=expert_size),
        router_normalised=flag("norm_topk_prob", default=False),
    )


USE_WINDOW = flag("use_sliding_window", default=False)
GIVEN_WINDOW = size("sliding_window", default=4096, null=None, minimum=0)


def qwen_window(config: Config) -> Any:
    """The window, unless ``use_sliding_window`` makes it void."""
    window = GIVEN_WINDOW(config)
    return window if USE_WINDOW(config) else None


def qwen2_moe_attention(config: Config) -> tuple[str, ...]:
    """Every other layer before ``max_window_layers`` slides, if ``use_sliding_window``."""
    last, used = QWEN2_MOE_LAST_WINDOW(config), USE_WINDOW(config)
    return tuple(
        "sliding" if used and index % 2 == 0 and index < last else "full"
        for index in indices(QWEN2_MOE_LAYERS, config)
    )


QWEN2_MOE_LAYERS = size("num_hidden_layers", default=24)
QWEN2_MOE_LAST_WINDOW = size("max_window_layers", default=28, minimum=0)
QWEN2_MOE_ATTENTION = attention_types(QWEN2_MOE_LAYERS, qwen2_moe_attention)
QWEN2_MOE = Family(
    declaration=MixtureLM,
    heads=("Qwen2MoeForCausalLM",),
    fields=llama_like(
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=16,
        qkv_bias=flag("qkv_bias", default=True),
        attention=QWEN2_MOE_ATTENTION,
        window=only_where("sliding", QWEN2_MOE_ATTENTION, qwen_window),
        shared_size=size("shared_expert_intermediate_size", default=5632),
        shared_gate=True,
        shared_first=True,
        **qwen_experts(24, experts=60, per_token=4, expert_size=1408),
    ),
    # Of no effect where layer_types is given.
    without_effect=ROUTING | words("max_window_layers sliding_window use_sliding_window"),
)
QWEN3_MOE = Family(
    declaration=MixtureLM,
    heads=("Qwen3MoeForCausalLM",),
    fields=llama_like(
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=24,
        num_attention_heads=32,
        num_key_value_heads=4,
        query_key_norm="head",
        attention=windowed_everywhere(qwen_window),
        window=qwen_window,
        **ALL_BIASES,
        **qwen_experts(24, experts=128, per_token=8, expert_size=768),
    ),
    without_effect=ROUTING | words("max_window_layers"),
)


def own_keys(heads: Take) -> Take:
    """Latent attention expands keys and values for every head, so no heads share them."""
    given = size("num_key_value_heads", default=heads, null=heads)

    def take(config: Config) -> None:
        if given(config) != heads(config):
            raise ValueError(
                f"num_key_value_heads = {quoted(given(config))} with latent attention: expected "
                f"num_attention_heads = {quoted(heads(config))}, or null"
            )

    return take


def deepseek(
    *,
    heads: int,
    layers: int,
    dense: int,
    experts: int,
    per_token: int | None,
    expert_size: int,
    shared: int,
    **others: Any,
) -> dict[str, Any]:
    """Latent attention, and experts beside a shared MLP behind some dense layers."""
    width = size("moe_intermediate_size", default=expert_size)
    return llama_like(num_attention_heads=heads, num_hidden_layers=layers, **others) | dict(
        num_key_value_heads=own_keys(size("num_attention_heads", default=heads)),
        head_dim=None,
        query_rank=size("q_lora_rank", default=1536, null=None),
        key_value_rank=size("kv_lora_rank", default=512),
        plain_dim=size("qk_nope_head_dim", default=128),
        rotary_dim=size("qk_rope_head_dim", default=64),
        value_dim=size("v_head_dim", default=128),
        latent_bias=ATTENTION_BIAS,
        mlp=sparse_after(size("num_hidden_layers", default=layers), default=dense),
        num_experts=size("n_routed_experts", "num_experts", "num_local_experts", default=experts),
        experts_per_token=size(
            "num_experts_per_tok", default=per_token or missing("num_experts_per_tok")
        ),
        expert_size=width,
        shared_size=product(width, size("n_shared_experts", default=shared)),
        router_scaled=True,
    )


LATENT_ROUTING = ROUTING | words("head_dim qk_head_dim rope_interleave")
DEEPSEEK_V2 = Family(
    declaration=MixtureLM,
    heads=("DeepseekV2ForCausalLM",),
    fields=deepseek(
        vocab_size=102400,
        hidden_size=4096,
        intermediate_size=11008,
        layers=32,
        heads=32,
        experts=64,
        per_token=None,
        expert_size=1407,
        shared=2,
        dense=0,
        mlp_bias=flag("mlp_bias", default=False),
    ),
    without_effect=LATENT_ROUTING,
    only={
        "topk_method": ("greedy", "group_limited_greedy", None),
        "norm_topk_prob": (False, None),
        "scoring_func": ("softmax",),
        "moe_layer_freq": (1,),
    },
)
V3_PREDICTIONS = further_predictions("num_nextn_predict_layers", "num_mtp_layers", default=1)


def deepseek_v3(*heads: str) -> Family:
    """DeepSeek-V3, and what others built on its code."""
    return Family(
        declaration=MixtureLM,
        heads=heads,
        fields=deepseek(
            vocab_size=129280,
            hidden_size=7168,
            intermediate_size=18432,
            layers=61,
            heads=128,
            experts=256,
            per_token=8,
            expert_size=2048,
            shared=1,
            dense=3,
            router_scores="sigmoid",
            router_normalised=flag("norm_topk_prob", default=True),
            router_correction=True,
            **V3_PREDICTIONS["fields"],
        ),
        without_effect=LATENT_ROUTING,
        only={
            "topk_method": ("noaux_tc",),
            "scoring_func": ("sigmoid",),
            "moe_layer_freq": (1,),
        },
        options=V3_PREDICTIONS["options"],
        remarks=V3_PREDICTIONS["remarks"],
    )


GPT_OSS_LAYERS = size("num_hidden_layers", default=36)
GPT_OSS_ATTENTION = attention_types(
    GPT_OSS_LAYERS,
    lambda config: tuple(
        "full" if index % 2 else "sliding" for index in indices(GPT_OSS_LAYERS, config)
    ),
)
GPT_OSS_BIAS = flag("attention_bias", default=True)
GPT_OSS = Family(
    declaration=MixtureLM,
    heads=("GptOssForCausalLM",),
    fields=llama_like(
        vocab_size=201088,
        hidden_size=2880,
        intermediate_size=2880,
        num_hidden_layers=36,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=64,
        qkv_bias=GPT_OSS_BIAS,
        out_bias=GPT_OSS_BIAS,
        sinks=True,
        attention=GPT_OSS_ATTENTION,
        window=only_where(
            "sliding", GPT_OSS_ATTENTION, size("sliding_window", default=128, null=None)
        ),
        num_experts=size("num_local_experts", "num_experts", default=128),
        experts_per_token=size("num_experts_per_tok", "experts_per_token", default=4),
        expert_size=size("intermediate_size", default=2880),
        expert_bias=True,
        router_bias=True,
        router_after_choice=True,
        # Whatever hidden_act says.
        activation="clamped_swiglu",
    ),
    # A window has no effect where no layer slides.
    without_effect=ROUTING
    | words("hidden_act swiglu_alpha swiglu_limit initial_context_length sliding_window"),
)

LLAMA4_LAYERS = size("num_hidden_layers", default=48)


def llama4_turns(config: Config) -> tuple[str, ...]:
    """Which layers have rotary positions: those of ``no_rope_layers`` that are 1, despite its name.

    All but every ``no_rope_layer_interval``-th where the list is absent or empty.
    """
    interval, layers = LLAMA4_INTERVAL(config), indices(LLAMA4_LAYERS, config)
    _, given = config.given("no_rope_layers")
    is_empty = isinstance(given, list) and not given
    fields = {} if given is ABSENT or is_empty else {"no_rope_layers": given}
    by_rule = tuple("rotary" if (index + 1) % interval else "none" for index in layers)
    known = {1: "rotary", 0: "none"}
    read = listed("no_rope_layers", lambda _: len(layers), known, lambda _: by_rule)
    turns: tuple[str, ...] = read(Config(fields, {}))
    return turns


def llama4_attention(config: Config) -> tuple[str, ...]:
    """Layers with rotary positions attend within chunks, if there are any."""
    chunked = LLAMA4_CHUNK(config) is not None
    return tuple(
        "chunked" if turns == "rotary" and chunked else "full" for turns in llama4_turns(config)
    )


def llama4_sparse(config: Config, index: int) -> bool:
    """Layers with experts: those of ``moe_layers``, or every ``interleave_moe_layer_step``-th."""
    step, layers = LLAMA4_STEP(config), LLAMA4_LAYERS(config)
    return index in layer_indices("moe_layers", lambda _: range(step - 1, layers, step))(config)


def truthy(name: str, *, default: bool) -> Take:
    """A field that files also give as a number."""

    def take(config: Config) -> bool:
        _, value = config.given(name)
        return default if value is ABSENT or value is None else bool(value)

    return take


LLAMA4_INTERVAL = size("no_rope_layer_interval", default=4)
LLAMA4_STEP = size("interleave_moe_layer_step", default=1)
LLAMA4_CHUNK = size("attention_chunk_size", default=8192, null=None)
LLAMA4_ATTENTION = attention_types(LLAMA4_LAYERS, llama4_attention)
LLAMA4_QK_NORM = flag("use_qk_norm", default=True)
LLAMA4_SIZE = size("intermediate_size", default=8192)
LLAMA4 = Family(
    declaration=MixtureLM,
    heads=("Llama4ForCausalLM",),
    fields=llama_like(
        vocab_size=202048,
        hidden_size=5120,
        num_hidden_layers=48,
        num_attention_heads=40,
        num_key_value_heads=8,
        head_dim=128,
        **ALL_BIASES,
        attention=LLAMA4_ATTENTION,
        chunk=only_where("chunked", LLAMA4_ATTENTION, LLAMA4_CHUNK),
        positions=llama4_turns,
        query_key_norm=lambda config: "head, no scale" if LLAMA4_QK_NORM(config) else None,
        norms_with_rotary=True,
        query_temperature=truthy("attn_temperature_tuning", default=True),
        mlp=sparse_layers(LLAMA4_LAYERS, llama4_sparse),
        num_experts=size("num_local_experts", default=16),
        experts_per_token=size("num_experts_per_tok", default=1),
        expert_size=LLAMA4_SIZE,
        shared_size=LLAMA4_SIZE,
        router_scores="sigmoid",
        router_after_choice=True,
        weighted="input",
        # The dense layers' MLP has a width of its own.
        intermediate_size=16384,
    )
    | {"intermediate_size": size("intermediate_size_mlp", default=16384)},
    # Nor have chunks where every layer is listed as attending to all.
    without_effect=ROUTING
    | words("floor_scale attn_scale for_llm_compression attention_chunk_size"),
)

GLM4_MOE_QK_NORM = flag("use_qk_norm", default=False)
GLM4_MOE_SIZE = size("moe_intermediate_size", default=1408)
GLM4_MOE_HEADS = llama_like(
    vocab_size=151552,
    hidden_size=4096,
    intermediate_size=10944,
    num_hidden_layers=46,
    num_attention_heads=96,
    num_key_value_heads=8,
)
GLM4_MOE = Family(
    declaration=MixtureLM,
    heads=("Glm4MoeForCausalLM",),
    fields=GLM4_MOE_HEADS
    | dict(
        qkv_bias=ATTENTION_BIAS,
        query_key_norm=lambda config: "head" if GLM4_MOE_QK_NORM(config) else None,
        rotary_dim=rotary_dim(GLM4_MOE_HEADS["head_dim"], default=0.5),
        mlp=sparse_after(size("num_hidden_layers", default=46), default=1),
        num_experts=size("n_routed_experts", "num_local_experts", default=128),
        experts_per_token=size("num_experts_per_tok", default=8),
        expert_size=GLM4_MOE_SIZE,
        shared_size=product(GLM4_MOE_SIZE, size("n_shared_experts", default=1)),
        router_scores="sigmoid",
        router_normalised=flag("norm_topk_prob", default=True),
        router_scaled=True,
        router_correction=True,
        **V3_PREDICTIONS["fields"],
    ),
    without_effect=ROUTING,
    options=V3_PREDICTIONS["options"],
    remarks=V3_PREDICTIONS["remarks"],
)

M2_HEADS = llama_like(
    vocab_size=200064,
    hidden_size=3072,
    intermediate_size=1536,
    num_hidden_layers=62,
    num_attention_heads=48,
    num_key_value_heads=8,
    head_dim=128,
)
M2_LAYERS = size("num_hidden_layers", default=62)
M2_MODULES = further_predictions("num_mtp_modules", default=0)


def m2_rotary_dim(config: Config) -> Any:
    """``rotary_dim`` of older files, or the share of a head."""
    given = size("rotary_dim", default=None, null=None)(config)
    channels = M2_HEADS["head_dim"](config)
    by_share = rotary_dim(lambda _: channels)(config)
    turns = by_share if given is None else given
    return None if turns == channels else turns


MINIMAX_M2 = Family(
    declaration=MixtureLM,
    heads=("MiniMaxM2ForCausalLM",),
    fields=M2_HEADS
    | dict(
        # 0 would be linear attention, as in the family that this one follows.
        attention=listed("attn_type_list", M2_LAYERS, {1: "full"}, lambda _: ("full",)),
        query_key_norm="whole",
        rotary_dim=m2_rotary_dim,
        num_experts=size("num_local_experts", "num_experts", default=256),
        experts_per_token=size("num_experts_per_tok", default=8),
        expert_size=size("intermediate_size", default=1536),
        router_scores="sigmoid",
        router_normalised=True,
        router_correction=True,
        **M2_MODULES["fields"],
    ),
    without_effect=ROUTING
    | words(
        "use_mtp sliding_window mlp_intermediate_size shared_moe_mode layernorm_mlp_beta "
        "layernorm_full_attention_beta layernorm_linear_attention_beta"
    ),
    only={
        "use_qk_norm": (True,),
        "qk_norm_type": ("per_layer",),
        "use_routing_bias": (True,),
        "scoring_func": ("sigmoid",),
        "shared_intermediate_size": (0, None),
        "mtp_transformer_layers": (1, None),
    },
    options=M2_MODULES["options"],
    remarks=M2_MODULES["remarks"],
)

FAMILIES = {
    "mixtral": MIXTRAL,
    "qwen2_moe": QWEN2_MOE,
    "qwen3_moe": QWEN3_MOE,
    "deepseek_v2": DEEPSEEK_V2,
    "deepseek_v3": deepseek_v3("DeepseekV3ForCausalLM"),
    "kimi_k2": deepseek_v3("DeepseekV3ForCausalLM", "KimiK2ForCausalLM"),
    "gpt_oss": GPT_OSS,
    "llama4_text": LLAMA4,
    "glm4_moe": GLM4_MOE,
    "minimax_m2": MINIMAX_M2,
}
"""By ``model_type``."""
