"""Conventions of training codes give those codes' numbers.

Each known value is the code's own expression at concrete sizes, evaluated by hand in the comments:
no formula of the counter is in it. The commits at which the codes were read stand with the
conventions.
"""

import dataclasses

import numpy as np
import pytest
import sympy

import flopcount as fc
from flopcount.conventions import CONVENTIONS, Inputs, LayerInputs
from flopcount.inputs import inputs_of
from flopcount.operations import Pass

# GPT-2 small: N = 124,439,808, of which the token embedding, tied, has 50,257·768 = 38,597,376 and
# positions 1,024·768 = 786,432.
GPT2 = fc.Decoder(vocab_size=50257, seq_len=1024, num_channels=768, num_layers=12, num_heads=12)
# Llama 3 8B: N = 8,030,261,248; embedding and output layer 128,256·4,096 = 525,336,576 each.
LLAMA = fc.Llama(
    vocab_size=128256, seq_len=8192, num_channels=4096, num_layers=32, num_heads=32,
    num_key_value_heads=8, intermediate_size=14336,
)  # fmt: skip


def per_token(name, model=GPT2):
    return model.flops(convention=name).per_token


def test_megatron_lm_on_gpt2():
    # 6·(12·(768·2304 + 768·1024/2·2 + 768·768) + 12·768·3072·2 + 768·50257)
    #   768·2304 = 1,769,472; + 786,432 + 589,824 = 3,145,728; ·12 = 37,748,736
    #   12·768·3072·2 = 56,623,104; 768·50257 = 38,597,376; in all 132,969,216; ·6
    assert per_token("megatron-lm") == 797_815_296
    # 6Ld less than the pairs that the mask admits, n(n + 1)/2 of which the code takes n²/2.
    assert GPT2.flops().per_token - per_token("megatron-lm") == 6 * 12 * 768


@pytest.mark.parametrize(
    ("layers", "width", "heads"), [(12, 768, 12), (24, 1024, 16), (36, 1280, 20), (48, 1600, 25)]
)
def test_megatron_lm_is_causal_less_6ld_on_every_gpt2(layers, width, heads):
    sizes = dict(vocab_size=50257, seq_len=1024)
    gpt2 = fc.Decoder(**sizes, num_channels=width, num_layers=layers, num_heads=heads)
    assert gpt2.flops().per_token - per_token("megatron-lm", gpt2) == 6 * layers * width


def test_megatron_lm_on_llama():
    # 32 layers of 4096·(4096 + 2·1024) + 4096·8192/2·2 + 4096² = 75,497,472 and 4096·14336·3 =
    #   176,160,768; 32·251,658,240 = 8,053,063,680; + 4096·128256 = 525,336,576; ·6
    assert per_token("megatron-lm", LLAMA) == 6 * 8_578_400_256 == 51_470_401_536


def test_torchtitan():
    # Tied: the table counts as the output layer's; positions do not. 6·(124,439,808 - 786,432)
    # + 12 layers of 6·12·(64 + 64)·1024 = 9,437,184.
    assert per_token("torchtitan") == 741_920_256 + 113_246_208
    # Untied: 6·(8,030,261,248 - 525,336,576) + 32·6·32·(128 + 128)·8192 = 12,884,901,888.
    assert per_token("torchtitan", LLAMA) == 45_029_548_032 + 12_884_901_888


def test_nanogpt_is_palm_on_gpt2():
    # 6·(124,439,808 - 786,432) + 12·12·12·64·1024
    assert per_token("nanogpt") == 741_920_256 + 113_246_208 == per_token("palm")
    assert LLAMA.flops(convention="nanogpt").not_covered == {"self"}


def test_litgpt():
    # Training is 3·f(N) + 2·f(0), f(N) = 2N + 4LdS, where no parameters are frozen.
    # 3·(2·124,439,808 + 12·2·2·768·1024) + 2·(12·2·2·768·1024)
    #   = 3·(248,879,616 + 37,748,736) + 2·37,748,736
    assert per_token("litgpt") == 859_885_056 + 75_497_472 == 935_382_528
    # 3·(2·8,030,261,248 + 32·2·2·4096·8192) + 2·(32·2·2·4096·8192)
    #   = 3·(16,060,522,496 + 4,294,967,296) + 2·4,294,967,296
    assert per_token("litgpt", LLAMA) == 69_656_403_968
    # Inference is f(N) + f(0).
    for model, flops in ((GPT2, 286_628_352 + 37_748_736), (LLAMA, 20_355_489_792 + 4_294_967_296)):
        count = model.flops(convention="litgpt", training=False)
        assert (count.per_token, count.backward) == (flops, 0)


def test_levanter():
    # 12·(2·2·768·3072 + 2·768·(768 + 2·768) + 2·768² + (2 + 2)·1024·768 + 3·1024·12) + 2·768·50257
    #   9,437,184 + 3,538,944 + 1,179,648 + 3,145,728 + 36,864 = 17,338,368; ·12 = 208,060,416;
    #   + 77,194,752 = 285,255,168; ·3
    assert per_token("levanter") == 855_765_504
    # What an unfused implementation executes, and 9LhS.
    assert per_token("levanter") == GPT2.flops("dense").per_token + 9 * 12 * 12 * 1024
    # 32·(2·3·4096·14336 + 2·4096·(4096 + 2·8·128) + 2·4096² + 4·8192·4096 + 3·8192·32) + 2·4096·V
    #   352,321,536 + 50,331,648 + 33,554,432 + 134,217,728 + 786,432 = 571,211,776; ·32 =
    #   18,278,776,832; + 1,050,673,152; ·3
    assert per_token("levanter", LLAMA) == 57_988_349_952


def test_olmo_core():
    # Of GPT-2: attention 12·(4·768² + 4·768), MLP 12·(2·768·3072 + 3072 + 768), output layer
    # 38,597,376 with its norm of 2·768: 28,348,416 + 56,669,184 + 38,598,912 = 123,616,512; ·6; and
    # 12 layers of 12·768·(1024·1025/2)//1024 = 4,723,200.
    assert per_token("olmo-core") == 741_699_072 + 56_678_400
    # A norm behind the embedding is in neither: BLOOM-560m, 24 layers of 12·1024² + 9·1024 in
    # products and their biases, and V = 250,880 tied, with a norm of 2·1024; 12·1024·(8 + 1)/2.
    bloom = fc.from_hf({"model_type": "bloom", "hidden_size": 1024, "n_layer": 24, "n_head": 16}, 8)
    assert (
        per_token("olmo-core", bloom)
        == 6 * (24 * (12 * 1024**2 + 9 * 1024) + 250_880 * 1024 + 2 * 1024)
        + 24 * 12 * 1024 * 9 // 2
    )
    # Of Llama: 32·(41,943,040 + 176,160,768) + 525,336,576 + 4,096 = 7,504,662,528; ·6; and 32
    # layers of 12·4096·(8192·8193/2)//8192 = 201,351,168.
    assert per_token("olmo-core", LLAMA) == 45_027_975_168 + 6_443_237_376


def test_hf_trainer_leaves_a_tied_output_layer_out():
    # 6·(124,439,808 - 38,597,376 - 786,432); 6·(8,030,261,248 - 525,336,576)
    assert per_token("hf-trainer") == 510_336_000
    assert per_token("hf-trainer", LLAMA) == 45_029_548_032
    # Four layers of BERT: the tables of tokens, positions and token types are left out. A layer has
    # 12·768² + 13·768 = 7,087,872; the norm of the embedding 1,536; the head 768² + 768 + 1,536
    # and V = 30,522 biases. 6·(28,351,488 + 1,536 + 592,128 + 30,522)
    bert = fc.from_hf({"model_type": "bert", "num_hidden_layers": 4}, 128)
    assert per_token("hf-trainer", bert) == 6 * 28_975_674 == 173_854_044


def test_gpt_neox_counts_its_head_as_four_and_a_half_dv():
    # 24·3·12·768²·(1 + 1024/4608 + 50257/147456) = 509,607,936 + 113,246,208 + 173,688,192
    assert per_token("gpt-neox") == 796_542_336
    flops = 24 * 3 * 1024 * 12 * 768**2 * (1 + 1024 / 4608 + 50257 / (16 * 12 * 768))
    assert float(GPT2.flops(convention="gpt-neox").total) == pytest.approx(flops, rel=1e-15)
    (head,) = (t for t in GPT2.flops(convention="gpt-neox").terms if t.layer == "output")
    assert head.forward + head.backward == 4.5 * 768 * 50257 * 1024
    assert LLAMA.flops(convention="gpt-neox").not_covered == {"self"}


def test_gpt_neox_speaks_of_mlps_of_four_times_the_width():
    sizes = dict(vocab_size=9, seq_len=5, num_channels=6, num_layers=2, num_heads=2)
    wide = fc.Decoder(**sizes, widening_factor=3).flops(convention="gpt-neox")
    assert (wide.not_covered, wide.lacks) == ({"self"}, ("an MLP of another width than 4d",))
    # 1.5·dVn of an odd dVn is no integer: 1.5·3·9·5.
    odd = fc.Decoder(**sizes | dict(num_channels=3, num_heads=3)).flops(convention="gpt-neox")
    assert 2 * odd.terms[-1].forward == 3 * 3 * 9 * 5
    # Of a symbol, 4 may be meant.
    w = sympy.Symbol("w", integer=True, positive=True)
    assert not fc.Decoder(**sizes, widening_factor=w).flops(convention="gpt-neox").not_covered


def test_nanotron():
    # 32·(2·4096·(4096 + 2·8·128) + 4·4096·8192 + 2·4096² + 6·4096·14336) + 2·4096·128256, ·3
    #   50,331,648 + 134,217,728 + 33,554,432 + 352,321,536 = 570,425,344; ·32 = 18,253,611,008;
    #   + 1,050,673,152 = 19,304,284,160
    assert per_token("nanotron", LLAMA) == 57_912_852_480
    assert GPT2.flops(convention="nanotron").lacks == ("an MLP of two products",)


def test_deepseek_m():
    # 72·12·768² + 12·12·768·1024
    assert per_token("deepseek") == 509_607_936 + 113_246_208
    # DeepSeek LLM 67B: 95 layers of 8,192 with 8 key heads, n = 4,096.
    large = fc.Llama(
        vocab_size=102400, seq_len=4096, num_channels=8192, num_layers=95, num_heads=64,
        num_key_value_heads=8, intermediate_size=22016,
    )  # fmt: skip
    # 72·95·8192² + 12·95·8192·4096 = 459,024,629,760 + 38,252,052,480
    assert per_token("deepseek", large) == 497_276_682_240


WINDOW = fc.Llama(
    vocab_size=11, seq_len=7, num_channels=8, num_layers=3, num_heads=4, num_key_value_heads=2,
    intermediate_size=6, window=3,
)  # fmt: skip
# A layer: query 64, key and value 32 each, out 64, three of 48 in the MLP = 336; norms 2·8; the
# embedding and the output layer 88 each, the final norm 8. N = 3·352 + 184 = 1,240.


def test_windows_as_each_code_takes_them():
    assert WINDOW.params().total == 1240
    # All of them: 6·(3·336 + 88) = 6,576 of products.
    # Not looked at, half the square: 3 layers of 6·8·7.
    assert per_token("megatron-lm", WINDOW) == 6576 + 1008
    # 6·(1,240 - 88) and 3 layers of 6·4·(2 + 2)·min(7, 3)
    assert per_token("torchtitan", WINDOW) == 6912 + 864
    # 3·(2·1,240 + 3·4·8·7) + 2·(3·4·8·7)
    assert per_token("litgpt", WINDOW) == 7440 + 2016 + 1344
    # Three times 3·(4·3·8 + 3·3·4) for attention and softmax
    assert per_token("levanter", WINDOW) == 6576 + 3 * 3 * (96 + 36)
    # 1 + 2 + 3·5 = 18 pairs: 12·4·2·18/7 = 246.86, of which the code keeps 246 a layer. Its N has
    # no norms around blocks: 3·336 + 88 + 8.
    assert per_token("olmo-core", WINDOW) == 6 * 1104 + 3 * 246
    assert WINDOW.flops(convention="nanotron").lacks == ("windows",)
    within, square = "both attention products within windows", "both attention products"
    for name in ("torchtitan", "levanter"):
        assert square in {term.term for term in LLAMA.flops(convention=name).terms}
    assert within in {term.term for term in WINDOW.flops(convention="torchtitan").terms}
    assert within in {term.term for term in WINDOW.flops(convention="levanter").terms}
    # A window that no position reaches is none.
    for window in (3, 4):
        whole = fc.Llama(
            vocab_size=11, seq_len=3, num_channels=8, num_layers=3, num_heads=4,
            num_key_value_heads=2, intermediate_size=6, window=window,
        )  # fmt: skip
        plain = fc.Llama(
            vocab_size=11, seq_len=3, num_channels=8, num_layers=3, num_heads=4,
            num_key_value_heads=2, intermediate_size=6,
        )  # fmt: skip
        assert per_token("olmo-core", whole) == 6 * 1104 + 3 * (12 * 8 * 6 // 3)
        for name in ("torchtitan", "levanter", "olmo-core"):
            assert per_token(name, whole) == per_token(name, plain)


def test_heads_wider_than_the_model():
    # c = 6 where d / h = 2: h·c = 24, g·c = 12; f = 6, V = 11, n = 7, one layer.
    wide = fc.Llama(
        vocab_size=11, seq_len=7, num_channels=8, num_layers=1, num_heads=4,
        num_key_value_heads=2, intermediate_size=6, head_dim=6,
    )  # fmt: skip
    # Megatron has a head dim: 6·(8·(24 + 2·12) + 24·7 + 24·8 + 3·48 + 88)
    assert per_token("megatron-lm", wide) == 6 * (384 + 168 + 192 + 144 + 88)
    # litgpt's attention has d channels: 3·(2N + 4·8·7) + 2·(4·8·7), N = 192 + 96 + 96 + 192 + 144
    # + 24 + 2·88.
    assert per_token("litgpt", wide) == 3 * (2 * 920 + 224) + 2 * 224
    # levanter's heads have d / h: 3·(6·48 + 16·(8 + 2·4) + 128 + 4·7·8 + 3·7·4 + 176)
    assert per_token("levanter", wide) == 3 * (288 + 256 + 128 + 224 + 84 + 176)
    # nanotron's, too: 3·(16·(8 + 8) + 4·8·7 + 128 + 288 + 176)
    assert per_token("nanotron", wide) == 3 * (256 + 224 + 128 + 288 + 176)
    # d / h that is no integer: nanotron floors 10 / 4 to 2, levanter does not.
    odd = fc.Llama(
        vocab_size=11, seq_len=7, num_channels=10, num_layers=1, num_heads=4,
        num_key_value_heads=1, intermediate_size=6, head_dim=6,
    )  # fmt: skip
    # 3·(2·10·(8 + 2·2) + 4·8·7 + 2·8·10 + 6·60 + 2·110)
    assert per_token("nanotron", odd) == 3 * (240 + 224 + 160 + 360 + 220)
    # 3·(6·60 + 20·(10 + 2·2.5) + 200 + 4·7·10 + 3·7·4 + 220)
    assert per_token("levanter", odd) == 3 * (360 + 300 + 200 + 280 + 84 + 220)
    # Terms are integers where they can be.
    terms = odd.flops(convention="levanter").terms
    assert {type(term.forward) for term in terms} == {int}
    # litgpt's and nanotron's terms of a model whose heads have d / h have no correction.
    for name in ("litgpt", "levanter", "nanotron"):
        terms = {term.term for term in LLAMA.flops(convention=name).terms}
        assert "heads of d / h channels" not in terms
        assert "heads of d / h channels" in {t.term for t in wide.flops(convention=name).terms}


# A dense layer and two of 6 experts, of which a token is routed to 2, with a shared one; gated.
ATTENTION = dict(num_heads=4, num_key_heads=2, head_dim=2, value_dim=2)
DENSE = LayerInputs(number=1, **ATTENTION, hidden_channels=12, gated=True)
SPARSE = LayerInputs(
    number=2, **ATTENTION, hidden_channels=6, gated=True, num_experts=6, top_k=2, shared_channels=5
)
SIZES = dict(num_latents=7, num_channels=8, vocab_size=11)
# N of the sparse layers: attention 192, router 48, experts 6·144, shared 120, norms 16 = 1,240; a
# token uses 192 + 48 + 288 + 120 + 16 = 664 of them.
EXPERTS = Inputs(
    **SIZES, layers=(SPARSE,), num_params=2 * 1240 + 184, num_active_params=2 * 664 + 184,
    num_table_params=88, num_block_norm_params=32,
)  # fmt: skip


def forward(name, inputs):
    assert not CONVENTIONS[name].lacks(inputs)
    return {term: flops for _, term, flops in CONVENTIONS[name].self_part(inputs)}


def test_experts_as_each_code_takes_them():
    n = 7
    # 2d·f·k·3 and 2d·f_s·3 a layer, no router.
    megatron = forward("megatron-lm", EXPERTS)
    assert set(megatron) == {
        "attention projections", "both attention products, half the square", "routed experts",
        "shared experts", "logits",
    }  # fmt: skip
    assert megatron["routed experts"] == n * 2 * (2 * 8 * 6 * 2 * 3)
    assert megatron["shared experts"] == n * 2 * (2 * 8 * 5 * 3)
    assert megatron["attention projections"] == n * 2 * 2 * (8 * (8 + 2 * 4) + 64)
    assert sum(megatron.values()) == n * (1152 + 480 + 768 + 2 * 2 * 8 * 7 + 176)
    # 2(N active - the embedding) + 2 layers of 2h(c + c)·7
    assert sum(forward("torchtitan", EXPERTS).values()) == n * (2 * (1512 - 88) + 2 * 8 * 4 * 7)
    # All experts: 2·2,664 + 2 layers of 4·8·7, twice
    assert sum(forward("litgpt", EXPERTS).values()) == n * (5328 + 448 + 448)
    assert forward("hf-trainer", EXPERTS) == {"2 N without embedding tables": n * 2 * (2664 - 88)}
    # Megatron's, the whole square in place of half, 3hn a layer, and the router's 2dE.
    levanter = sum(forward("levanter", EXPERTS).values())
    assert levanter == n * (1152 + 480 + 768 + 2 * 4 * 8 * 7 + 2 * 3 * 4 * 7 + 2 * 2 * 8 * 6 + 176)
    # Of a single expert, all pass through it: the code has no router.
    single = dataclasses.replace(SPARSE, num_experts=1, top_k=1)
    single = dataclasses.replace(EXPERTS, layers=(single,))
    assert forward("levanter", single)["router"] == 0
    # 2(N active - embedding - norms around blocks) + 2 layers of 4hc·(n + 1)/2
    assert set(forward("olmo-core", EXPERTS)) == {
        "2 N of attention, MLP and output layer, active parameters",
        "both attention products, admitted pairs",
    }  # fmt: skip
    olmo = sum(forward("olmo-core", EXPERTS).values())
    assert olmo == n * (2 * (1512 - 88 - 32) + 2 * 2 * 8 * 8)
    # 6N and PaLM's take the parameters that a token uses, and say so.
    assert forward("6n", EXPERTS) == {"2 N, active parameters": n * 2 * 1512}
    assert forward("palm", EXPERTS)["2 N without positions, active parameters"] == n * 2 * 1512
    for name in ("kaplan", "megatron", "nanogpt", "gpt-neox", "nanotron", "deepseek"):
        assert "experts" in CONVENTIONS[name].lacks(EXPERTS)


def test_experts_in_some_layers_alone():
    mixed = Inputs(**SIZES, layers=(DENSE, SPARSE), num_params=3000, num_active_params=2000)
    terms = forward("megatron-lm", mixed)
    assert terms["MLP"] == 7 * 2 * 8 * 12 * 3
    assert terms["routed experts"] == 7 * 2 * (2 * 8 * 6 * 2 * 3)
    assert CONVENTIONS["levanter"].lacks(mixed) == ("experts in some layers alone",)


def test_latents_and_predictions_as_megatron_lm_takes_them():
    # h = 4; a = 2 channels that do not turn, b = 3 that do, v = 5; latents of 6 (queries) and 7.
    latent = LayerInputs(
        number=3, num_heads=4, num_key_heads=4, head_dim=5, value_dim=5, query_rank=6,
        key_value_rank=7, rotary_dim=3, hidden_channels=6, gated=True,
    )  # fmt: skip
    direct = LayerInputs(
        number=3, num_heads=4, num_key_heads=4, head_dim=5, value_dim=5, key_value_rank=7,
        rotary_dim=3, hidden_channels=6, gated=True,
    )  # fmt: skip
    one = Inputs(**SIZES, layers=(latent,), num_params=1, num_active_params=1, num_predictions=2)
    terms = forward("megatron-lm", one)
    # 6·(8 + 4·5 + 1) + 7·(8 + 4·(2 + 5) + 1) + 8·3 + 4·5·8, of which 6 + 7 are norms.
    assert terms["attention projections"] == 7 * 3 * 2 * (6 * 28 + 7 * 36 + 24 + 160)
    assert terms["norms of latents"] == 7 * 3 * 2 * 13
    # n·h·(a + b)/2 + n·h·v/2
    assert terms["both attention products, half the square"] == 7 * 3 * 2 * (70 + 70)
    # 2 modules of 2d² and 3d, and the output layer three times.
    assert terms["projection"] == 7 * 2 * 2 * 2 * 64
    assert terms["norms of predictions"] == 7 * 2 * 2 * 24
    assert terms["logits"] == 7 * 2 * 8 * 11 * 3
    other = Inputs(**SIZES, layers=(direct,), num_params=1, num_active_params=1)
    # 8·4·5 in place of the queries' latent.
    assert forward("megatron-lm", other)["attention projections"] == 7 * 3 * 2 * (
        160 + 7 * 36 + 24 + 160
    )
    assert forward("megatron-lm", other)["norms of latents"] == 7 * 3 * 2 * 7
    # Layers without latents have no norms of them.
    some = Inputs(**SIZES, layers=(latent, DENSE), num_params=1, num_active_params=1)
    assert forward("megatron-lm", some)["norms of latents"] == 7 * 3 * 2 * 13
    # torchtitan's two contractions: 2h(c_qk + c_v)·n.
    assert forward("torchtitan", other)["both attention products"] == 7 * 3 * 2 * 4 * 10 * 7
    for name in ("litgpt", "levanter", "olmo-core", "nanotron"):
        assert "latent attention" in CONVENTIONS[name].lacks(other)
    assert "multi-token prediction" in CONVENTIONS["torchtitan"].lacks(one)


def test_layers_of_different_widths_and_heads_are_added_up():
    # One layer of 2 heads and f = 32, two of 4 heads and f = 16, four of 8 heads and f = 24.
    layers = tuple(
        LayerInputs(number=number, num_heads=h, num_key_heads=h, head_dim=8 // h,
                    value_dim=8 // h, hidden_channels=f)
        for number, h, f in ((1, 2, 32), (2, 4, 16), (4, 8, 24))
    )  # fmt: skip
    inputs = Inputs(**SIZES, layers=layers, num_params=1, num_active_params=1)
    assert inputs.num_layers == 7
    linear = 7 * 8 * 64 + 4 * 8 * (32 + 2 * 16 + 4 * 24)
    softmax = 3 * 7 * (2 + 2 * 4 + 4 * 8)
    # Per token, with 2dn a layer for one product of attention, 4dn for both, and 2dV = 176.
    for name, flops in {
        "kaplan": linear + 7 * 2 * 8 * 7,
        "megatron": linear + 7 * 4 * 8 * 7 + 176,
        "chinchilla": linear + 7 * 4 * 8 * 7 + softmax,
        "article": 4 * 8 + linear + 7 * 2 * 8 * 7 + 176,
        "article-update": linear + 7 * 4 * 8 * 7 + softmax,
    }.items():
        assert sum(forward(name, inputs).values()) == 7 * flops, name


def test_the_plainest_layer():
    # A head of one channel, and no MLP: queries, keys, values and output of d each, and a pair's
    # two multiply-adds.
    layer = LayerInputs(number=2)
    inputs = Inputs(**SIZES, layers=(layer,), num_params=9, num_active_params=9)
    assert inputs.features == {"a head dim other than d / h", "an MLP of another width than 4d",
                               "an MLP of two products"}  # fmt: skip
    assert forward("megatron-lm", inputs) == {
        "attention projections": 7 * 2 * 2 * 4 * 8,
        "both attention products, half the square": 7 * 2 * 2 * 7,
        "MLP": 0,
        "logits": 7 * 2 * 8 * 11,
    }
    # Without tables, positions, ties and norms N is all.
    for name in ("palm", "torchtitan", "hf-trainer", "olmo-core"):
        assert next(iter(forward(name, inputs).values())) == 7 * 2 * 9
    # Routed to one expert, none is shared; 2 products of 8·3.
    experts = LayerInputs(number=2, num_experts=5, hidden_channels=3)
    inputs = Inputs(**SIZES, layers=(experts,), num_params=9, num_active_params=9)
    megatron = forward("megatron-lm", inputs)
    assert megatron["routed experts"] == 7 * 2 * 2 * 2 * 8 * 3
    assert "shared experts" not in megatron
    # Queries from d, a latent of 5 from d, whose norm counts, and a channel each for keys and
    # values from that; what all heads share has none.
    latent = LayerInputs(number=2, key_value_rank=5)
    inputs = Inputs(**SIZES, layers=(latent,), num_params=9, num_active_params=9)
    assert forward("megatron-lm", inputs)["attention projections"] == 7 * 2 * 2 * (
        8 + 5 * (8 + 1 + 1) + 8
    )


def test_what_is_no_feature():
    # Of latent attention, key heads and widths say nothing; experts may be 4d wide all the same.
    latent = LayerInputs(number=1, num_heads=4, num_key_heads=2, head_dim=5, key_value_rank=7,
                         hidden_channels=32, num_experts=3)  # fmt: skip
    inputs = Inputs(**SIZES, layers=(latent,), num_params=1, num_active_params=1)
    assert inputs.features == {
        "latent attention", "experts", "an MLP of two products", "an MLP of another width than 4d",
    }  # fmt: skip
    dense = LayerInputs(number=1, **ATTENTION, hidden_channels=32)
    several = np.array([0, 1])
    inputs = Inputs(
        **SIZES, layers=(dense,), num_params=1, num_active_params=1, num_predictions=several
    )
    assert inputs.features == {
        "multi-token prediction", "grouped heads", "an MLP of two products"
    }  # fmt: skip


def test_a_gate_of_attention():
    gated = LayerInputs(number=1, **ATTENTION, gate=True, hidden_channels=6, gated=True)
    inputs = Inputs(**SIZES, layers=(gated,), num_params=1, num_active_params=1)
    # 8·(8 + 2·4 + 8) + 8·8
    assert forward("megatron-lm", inputs)["attention projections"] == 7 * 2 * (8 * 24 + 64)
    assert "an attention gate" in CONVENTIONS["levanter"].lacks(inputs)


def test_arrays_and_symbols_of_codes():
    n, d = sympy.symbols("n d", integer=True, positive=True)
    sizes = dict(
        vocab_size=11, num_layers=3, num_heads=4, num_key_value_heads=2, intermediate_size=6
    )
    for window in (None, 3):
        symbolic = fc.Llama(**sizes, seq_len=n, num_channels=d, window=window)
        lengths, widths = np.array([7, 9]), np.array([8, 16])
        array = fc.Llama(**sizes, seq_len=lengths, num_channels=widths, window=window)
        for name in CONVENTIONS:
            counted = array.flops(convention=name)
            if counted.not_covered:
                continue
            ones = [
                fc.Llama(**sizes, seq_len=a, num_channels=b, window=window)
                for a, b in ((7, 8), (9, 16))
            ]
            alone = [one.flops(convention=name).per_token for one in ones]
            assert list(counted.per_token) == alone
            expression = symbolic.flops(convention=name).per_token
            assert [expression.subs({n: a, d: b}) for a, b in ((7, 8), (9, 16))] == alone


def test_an_embedding_of_another_width_is_in_no_codes_head():
    # As OPT-350m: fewer channels in the embedding than d, and projections around the layers.
    narrow = {"model_type": "opt", "hidden_size": 768, "word_embed_proj_dim": 512}
    model = fc.from_hf(narrow, 2048)
    count = model.flops(convention="megatron-lm")
    assert count.lacks == ("an embedding of another width than d",)
    assert model.flops(convention="6n").per_token == 6 * model.params().total
    # Those that ask the network for its parameters take what they get: all but 2050·768 of
    # positions, 6 times, and 12·12·768·2048 for the square.
    parameters = 6 * (model.params().total - 2050 * 768)
    for name in ("palm", "torchtitan"):
        assert model.flops(convention=name).per_token == parameters + 12 * 12 * 768 * 2048
    wide = fc.from_hf(narrow | {"word_embed_proj_dim": 768}, 2048)
    assert not wide.flops(convention="megatron-lm").not_covered


def test_what_is_read_of_a_network_with_no_output_layer_or_two_stacks():
    network = GPT2.network(Pass(1, 1024))
    ((at, blocks),) = network
    headless = inputs_of(((at, blocks[:-1]),), GPT2.params())
    assert (headless.num_channels, headless.vocab_size) == (768, 50257)
    assert headless.features == {"no output layer", "an MLP of two products"}
    assert [CONVENTIONS[name].lacks(headless) for name in ("6n", "palm")] == [
        (), ("no output layer",)
    ]  # fmt: skip
    # 6N for each token has no meaning where another stack works on other tokens.
    two = inputs_of(((at, ()), (at.at(length=9), blocks), (at.at(length=5), blocks)), GPT2.params())
    assert two.num_latents == 1024
    assert {name for name in CONVENTIONS if not CONVENTIONS[name].lacks(two)} == set()
    assert CONVENTIONS["6n"].lacks(two) == ("a second stack of layers",)


@pytest.mark.parametrize("convention", ["litgpt", "levanter", "nanotron"])
def test_heads_of_their_own_width_count_on_symbols_too(convention):
    # h·c = 16·256 = 4,096 of d = 3,584: per token and layer litgpt has 4n·(d - h·c) less.
    sizes = dict(
        vocab_size=1000, num_channels=3584, num_layers=2, num_heads=16, intermediate_size=14_336,
        seq_len=64, num_key_value_heads=8, head_dim=256,
    )  # fmt: skip
    symbols = {name: sympy.Symbol(name, integer=True, positive=True) for name in sizes}
    count = fc.Llama(**symbols).flops(convention=convention).total
    of_sizes = {symbols[name]: value for name, value in sizes.items()}
    assert count.subs(of_sizes) == fc.Llama(**sizes).flops(convention=convention).total


def test_a_router_of_two_experts_and_of_symbols():
    pair = dataclasses.replace(SPARSE, num_experts=2, top_k=1)
    assert forward("levanter", dataclasses.replace(EXPERTS, layers=(pair,)))["router"] == (
        7 * 2 * 2 * 8 * 2
    )
    number = sympy.Symbol("E", integer=True, positive=True)
    some = dataclasses.replace(SPARSE, num_experts=number, top_k=1)
    router = forward("levanter", dataclasses.replace(EXPERTS, layers=(some,)))["router"]
    assert router == 7 * 2 * 2 * 8 * number
