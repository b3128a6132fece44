"""Families with experts, read from Hugging Face configs: published totals, traps, refusals."""

import pytest

import flopcount as fc
from flopcount.causal_lm import CausalLM
from flopcount.mixture_lm import MixtureLM
from flopcount.testing import expert_configs
from validate.witnesses.hugging_face import families, published

TOTALS = {
    # All parameters, to the unit; then, in billions, what the source states of all, and of those
    # that a token uses, with the embedding of the input or without it.
    "Mixtral-8x7B": (46_702_792_704, "46.7", "12.9", "with", "mistral.ai/news/mixtral-of-experts"),
    "Mixtral-8x22B": (140_630_071_296, "141", "39", "with", "mistral.ai/news/mixtral-8x22b"),
    "Qwen1.5-MoE-A2.7B": (14_315_784_192, "14.3", "2.7", "with", "its model card"),
    "Qwen3-30B-A3B": (30_532_122_624, "30.5", "3.3", "with", "its model card"),
    "Qwen3-235B-A22B": (235_093_634_560, "235", "22", "with", "its model card"),
    "DeepSeek-V2-Lite": (15_706_484_224, "15.7", "2.4", "without", "arXiv 2405.04434, B"),
    "DeepSeek-V2": (235_741_434_880, "236", "21", "with", "arXiv 2405.04434, abstract"),
    "DeepSeek-V3": (671_026_404_352, "671", "37", "with", "arXiv 2412.19437, abstract"),
    "Kimi-K2": (1_026_408_209_408, None, "32", "with", "its model card; one trillion in all"),
    "gpt-oss-20b": (20_914_757_184, "20.91", "3.61", "without", "arXiv 2508.10925, table 1"),
    "gpt-oss-120b": (116_829_156_672, "116.83", "5.13", "without", "arXiv 2508.10925, table 1"),
    "Llama-4-Scout": (107_769_861_120, None, "17", "with", "its model card; the whole has 109"),
    "Llama-4-Maverick": (400_711_848_960, "400", "17", "with", "its model card"),
    "GLM-4.5": (352_797_814_784, None, "32", "without", "its model card; 355 with predictions"),
    "GLM-4.5-Air": (106_852_245_504, "106", "12", "without", "its model card"),
    "MiniMax-M2": (228_689_748_992, None, "10", "without", "its model card; 230 in all"),
}


@pytest.mark.parametrize("name", TOTALS)
def test_published_parameters(name):
    total, stated, stated_active, embedding, source = TOTALS[name]
    model = fc.from_hf(published.EXPERTS[name])
    params = model.params()
    assert params.total == total, source
    active = params.active
    if embedding == "without":
        active -= model.vocab_size * model.num_channels
    for found, figure in ((params.total, stated), (active, stated_active)):
        if figure is not None:
            # Rounded or cut to the digits stated.
            digits = len(figure.partition(".")[2])
            assert abs(found / 1e9 - float(figure)) < 10**-digits, source


def test_every_published_size_is_stated():
    assert set(TOTALS) == set(published.EXPERTS)


def buffers(model):
    return sum(buffer.count for buffer in model.params().buffers)


def test_a_file_holds_more_than_parameters():
    # 58 of DeepSeek-V3's 61 layers have a correction of 256 experts' scores.
    assert buffers(fc.from_hf(published.EXPERTS["DeepSeek-V3"])) == 58 * 256 == 14_848
    # The file of GLM-4.5 holds 358,337,791,296 numbers: with the module for a further token, which
    # has copies of the embedding and of the head, and 90 · 160 numbers in corrections.
    whole = fc.from_hf(published.EXPERTS["GLM-4.5"], mtp=True)
    assert buffers(whole) == 90 * 160
    assert whole.params().total + 90 * 160 + 2 * 151_552 * 5120 == 358_337_791_296
    air = fc.from_hf(published.EXPERTS["GLM-4.5-Air"], mtp=True)
    assert air.params().total + 46 * 128 + 2 * 151_552 * 4096 == 110_468_824_832


@pytest.mark.parametrize("model_type", expert_configs.DRAWN)
def test_a_dict_an_object_and_its_dict_give_equal_models(model_type):
    name = {"kimi_k2": "deepseek_v3"}.get(model_type, model_type)
    for case in families.drawn(model_type, 12):
        fields = {key: value for key, value in case.config.items() if key != "model_type"}
        made = pytest.importorskip("transformers").AutoConfig.for_model(name, **fields)
        first, *others = (fc.from_hf(given, 5) for given in (case.config, made, made.to_dict()))
        assert others == [first, first], case
        assert first.reading.not_looked_at == ()


SMALL = dict(
    vocab_size=11, hidden_size=12, intermediate_size=7, num_hidden_layers=6, num_attention_heads=2,
    num_key_value_heads=1,
)  # fmt: skip


def read(model_type, **fields):
    return fc.from_hf(SMALL | {"model_type": model_type} | fields, 5)


def test_absent_is_not_null():
    own = dict(num_key_value_heads=2, num_experts_per_tok=2)
    for family in ("deepseek_v2", "deepseek_v3", "kimi_k2"):
        assert read(family, **own).query_rank == 1536
        assert read(family, q_lora_rank=None, **own).query_rank is None
    assert read("gpt_oss").window == 128
    assert read("qwen2_moe", hidden_size=14).head_dim == 7
    assert read("llama4_text", attention_chunk_size=None).attention == ("full",)


def test_key_heads_that_are_absent():
    # The class's own number, whatever the number of heads.
    absent = {name: value for name, value in SMALL.items() if name != "num_key_value_heads"}
    heads = dict(num_attention_heads=48, hidden_size=48)
    for family, expected in {
        "mixtral": 8, "qwen2_moe": 16, "qwen3_moe": 4, "gpt_oss": 8, "llama4_text": 8,
        "glm4_moe": 8, "minimax_m2": 8,
    }.items():  # fmt: skip
        model = fc.from_hf(absent | heads | {"model_type": family})
        assert model.num_key_value_heads == expected, family


def test_layers_with_experts():
    # Every second layer, but not layer 3: layers 1 and 5 of six, so a period of four.
    qwen = read("qwen3_moe", decoder_sparse_step=2, mlp_only_layers=[3])
    assert qwen.mlp == ("dense", "sparse", "dense", "dense")
    assert read("qwen2_moe").mlp == ("sparse",)
    deepseek = read(
        "deepseek_v3", num_key_value_heads=2, first_k_dense_replace=2, num_hidden_layers=5
    )
    assert deepseek.mlp == ("dense", "dense", "sparse", "sparse", "sparse")
    assert read("glm4_moe").mlp == ("dense", *("sparse",) * 5)
    assert read("llama4_text", interleave_moe_layer_step=3).mlp == ("dense", "dense", "sparse")
    listed = read("llama4_text", interleave_moe_layer_step=3, moe_layers=[0, 3])
    assert listed.mlp == ("sparse", "dense", "dense")
    assert read("llama4_text", moe_layers=[]).mlp == ("dense",)


def test_layers_that_turn_and_layers_in_chunks():
    # no_rope_layers says, despite its name, which layers turn.
    given = read("llama4_text", no_rope_layers=[1, 0, 0, 1, 0, 0])
    assert given.positions == ("rotary", "none", "none")
    assert given.attention == ("chunked", "full", "full")
    by_rule = read("llama4_text", no_rope_layers=[], num_hidden_layers=4)
    assert by_rule.positions == ("rotary", "rotary", "rotary", "none")
    assert by_rule.attention == ("chunked", "chunked", "chunked", "full")
    assert by_rule.chunk == 8192
    # Without chunks there is no size of one.
    assert read("llama4_text", attention_chunk_size=None).chunk is None
    assert read("llama4_text", no_rope_layer_interval=2).positions == ("rotary", "none")


def terms(model):
    return {(term.layer, term.term) for term in model.flops().elementwise.terms}


def test_norms_and_temperature_of_queries_go_by_layer():
    both = terms(read("llama4_text", num_hidden_layers=4, head_dim=6))
    turning, other = "chunked rotary", "full none"
    assert {(turning, "query norm"), (turning, "key norm"), (other, "query temperature")} < both
    assert not {(other, "query norm"), (turning, "query temperature")} & both
    neither = terms(
        read("llama4_text", num_hidden_layers=4, use_qk_norm=False, attn_temperature_tuning=False)
    )
    assert not {term for _, term in neither} & {"query norm", "query temperature"}
    # Files give it as a number too: 4 in those of Llama-4.
    assert read("llama4_text", attn_temperature_tuning=4).query_temperature
    # One product per channel of the queries of each layer that does not turn: 2 heads of 6.
    (work,) = (
        term
        for term in read("llama4_text", num_hidden_layers=4, head_dim=6).flops().elementwise.terms
        if term.term == "query temperature"
    )
    assert (work.elements, work.forward_cost, work.backward_cost) == (5 * 12, 1, 1)


def test_windows():
    assert read("mixtral").attention == read("qwen3_moe", sliding_window=3).attention == ("full",)
    assert read("mixtral", sliding_window=3).window == 3
    slides = dict(use_sliding_window=True, sliding_window=3)
    assert read("qwen3_moe", **slides).attention == ("sliding",)
    assert read("qwen3_moe", use_sliding_window=True, sliding_window=None).window is None
    # Every other layer of the first max_window_layers.
    assert read("qwen2_moe", **slides, max_window_layers=4).attention == (
        "sliding", "full", "sliding", "full", "full", "full",
    )  # fmt: skip
    assert read("qwen2_moe", sliding_window=3).window is None
    # Transformers' object says 0 where there is none.
    assert read("qwen2_moe", sliding_window=0).attention == ("full",)
    assert read("gpt_oss").attention == ("sliding", "full")
    listed = ["full_attention"] * 5 + ["sliding_attention"]
    assert read("gpt_oss", layer_types=listed).attention == ("full",) * 5 + ("sliding",)
    assert read("gpt_oss", layer_types=["full_attention"] * 6).window is None


def test_shared_experts_and_widths():
    deepseek = read(
        "deepseek_v3", num_key_value_heads=2, moe_intermediate_size=5, n_shared_experts=3
    )
    assert (deepseek.expert_size, deepseek.shared_size, deepseek.intermediate_size) == (5, 15, 7)
    glm = read("glm4_moe", moe_intermediate_size=5, n_shared_experts=2)
    assert (glm.expert_size, glm.shared_size) == (5, 10)
    llama = read("llama4_text", intermediate_size_mlp=9)
    assert (llama.expert_size, llama.shared_size, llama.intermediate_size) == (7, 7, 9)
    qwen = read("qwen2_moe", shared_expert_intermediate_size=3, moe_intermediate_size=5)
    assert (qwen.expert_size, qwen.shared_size, qwen.shared_gate) == (5, 3, True)
    assert read("mixtral").shared_size is None
    assert read("gpt_oss", hidden_act="relu").activation == "clamped_swiglu"


def test_channels_that_turn():
    assert read("minimax_m2", head_dim=8, rotary_dim=4).rotary_dim == 4
    assert read("minimax_m2", head_dim=8, rotary_dim=8).rotary_dim is None
    assert read("minimax_m2", head_dim=8).rotary_dim is None
    assert read("minimax_m2", head_dim=8, partial_rotary_factor=0.25).rotary_dim == 2
    assert read("glm4_moe", head_dim=8).rotary_dim == 4
    assert read("glm4_moe", head_dim=8, partial_rotary_factor=0.25).rotary_dim == 2


def test_names_of_one_and_the_same_thing():
    assert read("mixtral", num_experts=5).num_experts == 5
    assert read("qwen3_moe", num_local_experts=9).num_experts == 9
    assert read("gpt_oss", experts_per_token=3).experts_per_token == 3
    with pytest.raises(ValueError, match="num_experts_per_tok = 2 and experts_per_token = 3"):
        read("gpt_oss", experts_per_token=3, num_experts_per_tok=2)


OWN_KEYS = dict(num_key_value_heads=2)


def test_further_predictions_count_where_asked_for():
    config = SMALL | OWN_KEYS | dict(model_type="deepseek_v3", first_k_dense_replace=1)
    without, counted = fc.from_hf(config, 5), fc.from_hf(config, 5, mtp=True)
    assert (without.num_predictions, counted.num_predictions) == (None, 1)
    assert "modules declared 1, not counted without mtp=True" in str(without)
    assert "further predictions: modules counted 1" in " ".join(str(counted).split())
    none = fc.from_hf(config | dict(num_nextn_predict_layers=0), 5, mtp=True)
    assert none == without
    # A module's layer is as the last of the network's, with experts whatever that has.
    dense = config | dict(first_k_dense_replace=6)
    module = fc.from_hf(dense, 5, mtp=True).params().total - fc.from_hf(dense, 5).params().total
    more = counted.params().total - without.params().total
    layers = {tensor.name: tensor for tensor in without.params().terms if tensor.layer == "sparse"}
    of_one = sum(tensor.count for tensor in layers.values()) // 5
    # 2d → d with d = 12, and three norms.
    assert more == module == of_one + 2 * 12 * 12 + 3 * 12
    difference = counted.flops().forward - without.flops().forward
    sparse = sum(term.forward for term in without.flops().terms if term.layer == "sparse") // 5
    # The head once more: 5 positions, 11 words.
    assert difference == sparse + 2 * 5 * (2 * 12 * 12 + 12 * 11)
    minimax = read("minimax_m2", num_mtp_modules=3)
    assert "modules declared 3" in str(minimax)
    with pytest.raises(ValueError, match="mtp = True with model_type = 'mixtral'"):
        fc.from_hf(SMALL | dict(model_type="mixtral"), mtp=True)


@pytest.mark.parametrize(
    ("model_type", "fields", "message"),
    [
        ("deepseek_v2", OWN_KEYS, "num_experts_per_tok is absent or null: expected an integer"),
        (
            "deepseek_v3",
            dict(num_key_value_heads=1),
            "num_key_value_heads = 1 with latent attention: expected num_attention_heads = 2",
        ),
        ("deepseek_v3", OWN_KEYS | dict(moe_layer_freq=2), "moe_layer_freq = 2"),
        ("deepseek_v3", OWN_KEYS | dict(scoring_func="softmax"), "scoring_func = 'softmax'"),
        ("deepseek_v3", OWN_KEYS | dict(topk_method="greedy"), "topk_method = 'greedy'"),
        (
            "deepseek_v2",
            OWN_KEYS | dict(num_experts_per_tok=2, norm_topk_prob=True),
            "norm_topk_prob = True",
        ),
        ("deepseek_v2", OWN_KEYS | dict(topk_method="noaux_tc"), "topk_method = 'noaux_tc'"),
        ("minimax_m2", dict(use_qk_norm=False), "use_qk_norm = False"),
        ("minimax_m2", dict(qk_norm_type="per_head"), "qk_norm_type = 'per_head'"),
        ("minimax_m2", dict(use_routing_bias=False), "use_routing_bias = False"),
        ("minimax_m2", dict(scoring_func="softmax"), "scoring_func = 'softmax'"),
        ("minimax_m2", dict(shared_intermediate_size=8), "shared_intermediate_size = 8"),
        ("minimax_m2", dict(mtp_transformer_layers=2), "mtp_transformer_layers = 2"),
        ("minimax_m2", dict(attn_type_list=[1] * 5 + [0]), r"attn_type_list\[5\] = 0: expected"),
        ("qwen3_moe", dict(num_experts=0), "num_experts = 0: expected an integer >= 1"),
        ("qwen3_moe", dict(mlp_only_layers=3), "mlp_only_layers = 3: expected a list of indices"),
        ("qwen3_moe", dict(mlp_only_layers=[-1]), r"mlp_only_layers\[0\] = -1"),
        (
            "mixtral",
            dict(num_experts_per_tok=9),
            "experts_per_token = 9: expected at most num_experts = 8",
        ),
        ("llama4_text", dict(no_rope_layers=[1]), "expected a list of 6 entries"),
        ("llama4_text", dict(no_rope_layers=[2] * 6), r"no_rope_layers\[0\] = 2"),
    ],
)
def test_what_is_not_modelled_is_refused(model_type, fields, message):
    error = TypeError if "list of indices" in message else ValueError
    with pytest.raises(error, match=message):
        read(model_type, **fields)


def test_formulas_of_latents_are_in_their_own_sizes():
    explained = fc.explain(read("deepseek_v3", num_hidden_layers=4, **OWN_KEYS))
    assert "c = d/h" not in explained.legend
    scores = next(row for row in explained.matmuls if (row.layer, row.term) == ("sparse", "scores"))
    assert scores.text == "B*h*n*(a + r)*(n + 1)"
    experts = next(row for row in explained.matmuls if row.term == "expert up")
    assert experts.text == "2*B*d*k*n*x"


def test_fields_of_published_files_are_known():
    for family, fields in {
        "minimax_m2": dict(
            attn_type_list=[1] * 6, sliding_window=None, mlp_intermediate_size=8192,
            shared_moe_mode="sigmoid", layernorm_mlp_beta=1.0, layernorm_full_attention_beta=1.0,
            layernorm_linear_attention_beta=1.0, quantization_config={}, use_mtp=True,
            num_mtp_modules=3, mtp_transformer_layers=1, rotary_dim=64, scoring_func="sigmoid",
            use_qk_norm=True, qk_norm_type="per_layer", use_routing_bias=True,
            shared_intermediate_size=0,
        ),
        "deepseek_v3": OWN_KEYS | dict(
            quantization_config={}, ep_size=1, moe_layer_freq=1, n_group=8, topk_group=4,
            topk_method="noaux_tc", scoring_func="sigmoid", routed_scaling_factor=2.5,
            aux_loss_alpha=0.001, seq_aux=True,
        ),
        "gpt_oss": dict(
            layer_types=["full_attention"] * 6, sliding_window=3, initial_context_length=4096,
            swiglu_limit=7.0, quantization_config={},
        ),
        "llama4_text": dict(
            layer_types=["full_attention"] * 6, attention_chunk_size=3,
            attn_scale=0.1, floor_scale=8192, for_llm_compression=False, router_jitter_noise=0.0,
            no_rope_layers=[], attn_temperature_tuning=4,
        ),
        "qwen2_moe": dict(layer_types=["full_attention"] * 6, sliding_window=3),
        "qwen3_moe": dict(max_window_layers=48, router_aux_loss_coef=0.001, sliding_window=None),
    }.items():  # fmt: skip
        assert read(family, **fields).reading.not_looked_at == (), family


def test_what_nobody_knows_is_said():
    assert read("mixtral", invented=1).reading.not_looked_at == ("invented",)


MODEL = dict(
    vocab_size=11, num_channels=12, num_layers=2, num_heads=2, intermediate_size=7, num_experts=4,
    experts_per_token=2, expert_size=5,
)  # fmt: skip
LATENT = dict(key_value_rank=5, plain_dim=4, rotary_dim=2, value_dim=3)


def test_latents_need_all_their_sizes():
    assert MixtureLM(**MODEL, **LATENT).width == 6
    assert MixtureLM(**MODEL, rotary_dim=2).width == 6
    for name in LATENT:
        given = {other: size for other, size in LATENT.items() if other != name}
        with pytest.raises(ValueError, match=f"{name} = None.*expected all of them"):
            MixtureLM(**MODEL, **given)


def test_the_same_decoder_without_experts():
    dense = CausalLM(
        vocab_size=11, seq_len=5, num_channels=12, num_layers=2, num_heads=2, intermediate_size=7
    )
    mixture = MixtureLM(**MODEL, seq_len=5, mlp=("dense",))
    assert mixture.params().total == dense.params().total
    assert mixture.flops().total == dense.flops().total


def test_what_is_understood_in_plain_words():
    said = " ".join(str(fc.from_hf(published.EXPERTS["DeepSeek-V3"])).split())
    assert "671,026,404,352 parameters, of which a token uses 37,552,282,624" in said
    assert (
        "3 layers, dense (0 to 2): latent attention, keys and values of a latent of 512 channels"
        in said
    )
    assert "queries of one of 1,536, 128 heads of 128 + 64 rotary channels, values of 128" in said
    assert "8 of 256 experts of 2,048 channels and a shared MLP of 2,048, silu" in said
    qwen = " ".join(str(read("qwen2_moe", num_key_value_heads=2)).split())
    assert "and a shared MLP of 5,632 behind a gate" in qwen
    direct = " ".join(str(read("deepseek_v3", q_lora_rank=None, **OWN_KEYS)).split())
    assert "channels, 2 heads" in direct
    llama = " ".join(str(read("llama4_text", num_hidden_layers=4)).split())
    turning, other = llama.split("layers, full none")
    assert "queries and keys normed per head" in turning
    assert "normed" not in other
    scout = str(fc.from_hf(published.EXPERTS["Llama-4-Scout"]))
    assert scout.startswith("llama4_text")
