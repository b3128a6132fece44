"""Models with scans: published sizes, layers by patterns, residuals, reading, what is refused."""

import dataclasses

import numpy as np
import pytest
import sympy

import flopcount as fc
from flopcount.blocks import rows_of
from flopcount.causal_lm import Group
from flopcount.count import product_term
from flopcount.hybrid_lm import DeltaNetLM, LightningLM, Mamba1LM, Mamba2LM
from flopcount.operations import Pass
from flopcount.rows import Product

SIZES = dict(vocab_size=11, num_channels=12, num_layers=5, seq_len=7)
ROUTED = SIZES | dict(
    num_heads=4, num_key_value_heads=2, head_dim=6, intermediate_size=9, num_experts=5,
    experts_per_token=2, expert_size=8,
)  # fmt: skip
LIGHTNING = LightningLM(**ROUTED, mixers=("scan", "scan", "attention"), scan_chunk=3)
DELTA = DeltaNetLM(
    **ROUTED, mixers=("scan", "attention"), scan_key_heads=2, scan_value_heads=4, scan_key_dim=3,
    scan_value_dim=5, taps=4, scan_chunk=3,
)  # fmt: skip
MAMBA1 = Mamba1LM(
    **ROUTED, mixers=("scan", "attention"), mlp=("dense", "sparse", "sparse"), scan_channels=10,
    scan_state=3, scan_rank=2, taps=4,
)  # fmt: skip
MAMBA2 = Mamba2LM(**SIZES, num_heads=6, head_dim=4, state=5, head_groups=3, taps=4, chunk=3)
MODELS = [LIGHTNING, DELTA, MAMBA1, MAMBA2]

TEXT_01 = dict(
    model_type="minimax", vocab_size=200064, hidden_size=6144, intermediate_size=9216,
    num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8, head_dim=128,
    num_local_experts=32, layer_types=(["linear_attention"] * 7 + ["full_attention"]) * 10,
)  # fmt: skip
PUBLISHED = {
    # 456 B, of which a token uses 45.9 B besides the two tables of 200,064 · 6,144 each.
    "MiniMax-Text-01": (TEXT_01, 456_089_655_296, 48_403_306_496),
    "Qwen3-Next-80B-A3B": (dict(model_type="qwen3_next"), 79_674_391_296, 3_874_929_408),
    "Jamba-v0.1": (dict(model_type="jamba"), 51_570_323_328, 12_110_311_296),
    "Mamba-Codestral-7B": (dict(model_type="mamba2"), 7_285_403_648, 7_285_403_648),
}
"""What transformers' networks hold at published sizes, and what a token uses of it."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameters(name):
    config, total, active = PUBLISHED[name]
    params = fc.from_hf(config).params()
    assert (params.total, params.active) == (total, active)


def forward(model, at, level="causal"):
    rows = [row for row in rows_of(model.network(at)) if isinstance(row, Product)]
    return sum(product_term(row, level, None, False, None).forward for row in rows)


@pytest.mark.parametrize("model", MODELS)
def test_reading_and_then_decoding_is_one_pass(model):
    whole = forward(model, Pass(2, 11))
    assert whole == forward(model, Pass(2, 7)) + forward(model, Pass(2, 4, cached=7))
    assert whole == forward(model, Pass(2, 10)) + forward(model, Pass(2, 1, cached=10))


def test_a_state_space_grows_with_the_length_alone():
    counts = [dataclasses.replace(MAMBA2, seq_len=n).flops() for n in (1, 2, 4000)]
    assert len({count.per_token for count in counts}) == 1
    dense = [dataclasses.replace(MAMBA2, seq_len=n).flops("dense") for n in (30, 300)]
    assert dense[0].per_token < dense[1].per_token  # the sum over chunks is quadratic


def test_layers_have_a_scan_or_attention_in_turn():
    def kinds(model):
        return [(group.name, group.number) for group in model.groups()]

    # Layers 0, 1, 3, 4 of five and 2; 0, 2, 4 and 1, 3.
    assert kinds(LIGHTNING) == [("scan", 4), ("attention", 1)]
    assert kinds(DELTA) == [("scan", 3), ("attention", 2)]
    assert kinds(MAMBA1) == [
        ("scan dense", 1), ("attention sparse", 1), ("scan sparse", 2), ("attention dense", 1),
    ]  # fmt: skip
    assert MAMBA2.groups() == (Group("decoder", 5, {"mixer": "scan"}, (0,), 1),)
    products = {(t.layer, t.term): t.forward for t in LIGHTNING.flops(batch_size=2).terms}
    # 2·n FLOPs per weight, of two sequences and four or one layers.
    assert products["scan", "query key value"] == 2 * 7 * 2 * 4 * 12 * 3 * 24
    assert products["scan", "scan read"] == 2 * 7 * 2 * 4 * 4 * 6 * 6
    assert products["attention", "query"] == 2 * 7 * 2 * 12 * 24
    assert products["attention", "scores"] == 2 * 2 * 4 * 6 * 28
    products = {(t.layer, t.term): t.forward for t in MAMBA2.flops("dense").terms}
    assert products["decoder", "chunk states"] == 2 * 5 * 6 * 4 * 5 * 4 * 4  # three chunks
    products = {(t.layer, t.term): t.forward for t in DELTA.flops("dense").terms}
    assert products["scan", "scan recall"] == 2 * 9 * 3 * 4 * 3 * 5  # three chunks of three
    products = {(t.layer, t.term): t.forward for t in MAMBA1.flops("dense").terms}
    assert products["scan sparse", "step"] == 2 * 7 * 2 * 2 * 10
    assert products["scan dense", "scan read"] == 2 * 7 * 10 * 3


def test_factors_of_residuals():
    def factors(**changes):
        model = LightningLM(**ROUTED, mixers=LIGHTNING.mixers, scan_chunk=3, **changes)
        work = model.flops().elementwise
        return {
            (term.layer, term.term): (term.elements, term.forward_cost, term.backward_cost)
            for term in work.terms
            if term.term.endswith("factors") and term.elements
        }

    assert factors() == {}
    assert factors(attention_factors=2, scan_factors=1, mlp_factors=2) == {
        ("attention", "attention residual factors"): (7 * 2 * 12, 1, 1),
        ("attention", "mlp residual factors"): (7 * 2 * 12, 1, 1),
        ("scan", "attention residual factors"): (4 * 7 * 1 * 12, 1, 1),
        ("scan", "mlp residual factors"): (4 * 7 * 2 * 12, 1, 1),
    }
    own = dict(model_type="minimax", linear_attn_alpha_factor=2, mlp_alpha_factor=3.5,
               mlp_beta_factor=0.5)  # fmt: skip
    read = fc.from_hf(own)
    assert (read.attention_factors, read.scan_factors, read.mlp_factors) == (0, 1, 2)


@pytest.mark.parametrize("level", ["causal", "dense"])
@pytest.mark.parametrize("model", MODELS)
def test_ints_arrays_and_symbols_agree(model, level):
    lengths = np.array([1, 2, 3, 7, 300])
    n, d = sympy.symbols("n d", integer=True, positive=True)
    expected = [
        dataclasses.replace(model, seq_len=int(length)).flops(level).total for length in lengths
    ]
    assert list(dataclasses.replace(model, seq_len=lengths).flops(level).total) == expected
    symbolic = dataclasses.replace(model, seq_len=n, num_channels=d).flops(level).total
    assert [symbolic.subs({n: int(length), d: 12}) for length in lengths] == expected
    large = dataclasses.replace(model, seq_len=lengths * 2**40, num_channels=2**30)
    alone = dataclasses.replace(model, seq_len=300 * 2**40, num_channels=2**30)
    assert large.flops(level).total[-1] == alone.flops(level).total > 2**63


def test_conventions_that_speak_of_parameters_alone_cover_scans():
    for model in MODELS:
        assert model.flops(convention="6n").total == 3 * 2 * 7 * model.params().active
        for name in ("kaplan", "palm", "megatron-lm", "torchtitan"):
            count = model.flops(convention=name)
            assert count.not_covered == {"self"}
            assert count.lacks[0].startswith("a block ")


@pytest.mark.parametrize("model", MODELS)
def test_no_kernel_runs_a_scan(model):
    tiling = fc.Tiling(forward=(16, 16), key_value=(16, 16), query=(16, 16))
    with pytest.raises(ValueError, match="level = 'executed' of a network with a scan"):
        model.executed(tiling)


@pytest.mark.parametrize("model", MODELS)
def test_without_a_length_parameters_alone(model):
    without = dataclasses.replace(model, seq_len=None)
    assert without.params().total == model.params().total
    with pytest.raises(ValueError, match="seq_len = None"):
        without.flops()


def said(**config):
    return " ".join(str(fc.from_hf(config)).split())


def test_they_say_what_they_are():
    # Biases of 64 layers: 2·8192 + 2·8·128 + 128 channels in, 4096 out.
    total = 7_285_403_648 + 64 * (2 * 8192 + 2 * 8 * 128 + 128 + 4096)
    assert said(model_type="mamba2", use_bias=True) == (
        f"mamba2 (Mamba2ForCausalLM): {total:,} parameters; a token is multiplied by "
        "7,147,094,016, the N of 2N 64 layers of 4,096 channels; vocabulary of 32,768, output "
        "layer of its own 64 layers, all: Mamba-2, 128 heads of 64 channels with states of 128 "
        "rows in 8 groups, chunks of 256, a convolution of 4 positions, biases; no MLP"
    )
    tied = said(model_type="mamba2", tie_word_embeddings=True)
    assert "output layer tied to the embedding" in tied
    assert "biases" not in tied
    attention = "attention (%s): attention to all earlier positions, "
    for model_type, scan, first in (
        (
            "minimax",
            "scan (1 of every 2): lightning attention, 32 heads of 128 channels, in chunks of 256;",
            "0 of every 2",
        ),
        (
            "qwen3_next",
            "scan (0 to 2 of every 4): gated delta net, 32 heads of values of 128 channels on 16 "
            "of keys of 128, a convolution of 4 positions;",
            "3 of every 4",
        ),
    ):
        assert scan in said(model_type=model_type)
        assert attention % first in said(model_type=model_type)
    assert (
        "scan dense (0, 2, 6 of every 8): Mamba-1 of 8,192 channels with states of 16, step sizes "
        "of rank 256, a convolution of 4 positions; gated MLP" in said(model_type="jamba")
    )


def test_parameters_without_options_by_hand():
    # V·d twice, final norm, 5 layers of a norm and a block.
    block = 12 * (24 + 24 + 2 * 3 * 5 + 6) + (24 + 2 * 3 * 5) * (4 + 1) + 3 * 6 + 24 + 24 * 12
    mamba2 = Mamba2LM(**SIZES, num_heads=6, head_dim=4, state=5, head_groups=3, taps=4, chunk=3)
    assert mamba2.params().total == 2 * 11 * 12 + 12 + 5 * (12 + block)
    norms = {
        term.term: (term.forward_cost, term.backward_cost)
        for term in mamba2.flops().elementwise.terms
        if term.term.endswith("norm")
    }
    assert norms == dict.fromkeys(("norm", "scan norm", "final norm"), (4, 9))
    mamba1 = Mamba1LM(
        **ROUTED, mixers=("scan",), mlp=("dense",), scan_channels=10, scan_state=3, scan_rank=2,
        taps=4,
    )  # fmt: skip
    block = 12 * 20 + 10 * (4 + 1) + 10 * (2 + 6) + 2 + 3 + 3 + 2 * 10 + 10 + 30 + 10 + 10 * 12
    layer = 2 * 12 + block + 3 * 12 * 9
    assert mamba1.params().total == 2 * 11 * 12 + 12 + 5 * layer


def test_its_own_file_gives_the_same_minimax():
    own = TEXT_01 | dict(
        model_type="minimax_text_01", attn_type_list=([0] * 7 + [1]) * 10, rotary_dim=64,
        postnorm=True, shared_intermediate_size=0, layernorm_linear_attention_alpha=3.5,
        layernorm_full_attention_beta=1.0,
    )  # fmt: skip
    del own["layer_types"]
    read = fc.from_hf(own, 100)
    assert read.reading.not_looked_at == ()
    expected = fc.from_hf(TEXT_01 | dict(linear_attn_alpha_factor=3.5), 100)
    assert read == dataclasses.replace(expected, rotary_dim=64)
    for name, value in (("postnorm", False), ("shared_intermediate_size", 9)):
        with pytest.raises(ValueError, match=f"{name} = {value} of model_type .* is not modelled"):
            fc.from_hf(own | {name: value})
    del own["attn_type_list"]
    with pytest.raises(ValueError, match="attn_type_list is absent or null: expected a list of 0"):
        fc.from_hf(own)


def test_layers_that_configs_choose():
    def mixers(model_type, **fields):
        read = fc.from_hf(dict(model_type=model_type, **fields))
        return [read.mixers[index % len(read.mixers)] for index in range(read.num_layers)]

    scan, attention = "scan", "attention"
    assert mixers("minimax", num_hidden_layers=3) == [attention, scan, attention]
    listed = ["linear_attention", "full_attention", "full_attention"]
    expected = [scan, attention, attention]
    assert mixers("minimax", num_hidden_layers=3, layer_types=listed) == expected
    assert mixers("qwen3_next", num_hidden_layers=3, layer_types=listed) == expected
    assert mixers("qwen3_next", num_hidden_layers=5) == [scan, scan, scan, attention, scan]
    third = mixers("qwen3_next", num_hidden_layers=4, full_attention_interval=3)
    assert third == [scan, scan, attention, scan]
    assert mixers("jamba", num_hidden_layers=6) == [scan] * 4 + [attention, scan]
    third = mixers("jamba", num_hidden_layers=4, attn_layer_period=3, attn_layer_offset=1)
    assert third == [scan, attention, scan, scan]

    def sparse(**fields):
        read = fc.from_hf(dict(model_type="jamba", num_hidden_layers=4, **fields))
        return [read.mlp[index % len(read.mlp)] == "sparse" for index in range(4)]

    assert sparse() == [False, True, False, True]
    assert sparse(expert_layer_period=3, expert_layer_offset=0) == [True, False, False, True]
    # One expert is an MLP.
    assert sparse(num_experts=1) == [False] * 4


@pytest.mark.parametrize(
    ("model_type", "fields", "message"),
    [
        ("qwen3_next", dict(num_hidden_layers=1, layer_types=["sliding_attention"]),
         r"layer_types\[0\] = 'sliding_attention': expected one of 'full_attention'"),
        ("qwen3_next", dict(linear_num_value_heads=3),
         "scan_value_heads = 3 is not divisible by scan_key_heads = 16"),
        ("jamba", dict(attn_layer_offset=8),
         "attn_layer_offset = 8: expected less than attn_layer_period = 8"),
        ("jamba", dict(expert_layer_period=1), "expert_layer_offset = 1: expected less than"),
        ("jamba", dict(hidden_act="mish"), "hidden_act = 'mish': expected one of"),
        ("mamba2", dict(expand=3),
         "num_heads = 128 and head_dim = 64: expected a product of expand · hidden_size = 12288"),
        ("mamba2", dict(n_groups=3), "num_heads = 128 is not divisible by head_groups = 3"),
        ("minimax", dict(block_size=0), "block_size = 0: expected an integer >= 1"),
    ],
)  # fmt: skip
def test_what_is_not_modelled_is_refused(model_type, fields, message):
    with pytest.raises(ValueError, match=message):
        fc.from_hf(dict(model_type=model_type, **fields))


def test_ranks_and_widths_that_follow_from_the_channels():
    def rank(**fields):
        return fc.from_hf(dict(model_type="jamba", hidden_size=65, num_attention_heads=5,
                               num_key_value_heads=1, **fields)).scan_rank  # fmt: skip

    assert rank() == rank(mamba_dt_rank="auto") == rank(mamba_dt_rank=None) == 5  # ⌈65/16⌉
    assert rank(mamba_dt_rank=3) == 3
    assert fc.from_hf(dict(model_type="jamba", mamba_expand=3)).scan_channels == 3 * 4096
