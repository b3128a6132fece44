"""What each way to count misses and adds, by hand and adding up exactly."""

import dataclasses

import numpy as np
import pytest
import sympy
from hypothesis import given

import flopcount as fc
from flopcount import comparison
from flopcount.article import EXPERIMENTS
from flopcount.blocks import MLP, Norm
from flopcount.comparison import differences
from flopcount.hf import FAMILIES
from flopcount.operations import linear
from flopcount.rows import Product, Tensor
from flopcount.testing import models

NEEDED = {
    "deepseek_v2": dict(num_experts_per_tok=6),
    "minimax_text_01": dict(num_hidden_layers=2, attn_type_list=[0, 1]),
}
"""Fields that a family's class takes from the file alone."""

SEED = EXPERIMENTS[0].models()[0]  # d = 512, L = 9, n = 512, m = 1536, k = 768, V = 32,000


def of(name, model=SEED):
    row = next(row for row in fc.compare(model).rows if row.name == name)
    return {(entry.part, entry.term): entry.flops for entry in row.differences}


def assert_differences_add_up(model):
    proven = model.flops()
    for row in fc.compare(model).rows:
        parts = [p for p in ("self", "cross") if getattr(row, f"{p}_part") != "not covered"]
        assert {entry.part for entry in row.differences} <= set(parts)
        for part in parts:
            difference = getattr(row, f"{part}_part") - getattr(proven, f"{part}_part").per_token
            found = [entry.flops for entry in row.differences if entry.part == part]
            assert sum(found) == difference
            assert 0 not in found


@given(models())
def test_differences_add_up_exactly(model):
    assert_differences_add_up(model)


def test_chunks_of_a_scan_are_named():
    # C = 256, n = 512: 2·C²·h·(N + P) per chunk within, 9·2·e·N between, of 64 layers.
    mamba2 = fc.from_hf(dict(model_type="mamba2"), 512)
    assert of("dense", mamba2) == {
        ("self", "chunk scores"): 3 * 64 * 2 * 2 * 256**2 * 128 * 128 // 512,
        ("self", "chunk values"): 3 * 64 * 2 * 2 * 256**2 * 128 * 64 // 512,
        ("self", "chunk states"): 3 * 64 * 9 * 2 * 8192 * 128 // 512,
    }


def test_a_forgotten_difference_is_found(monkeypatch):
    stands_for = comparison.STANDS_FOR | {"softmax": (("values",), "softmax")}
    monkeypatch.setattr(comparison, "STANDS_FOR", stands_for)
    original = comparison.differences
    monkeypatch.setattr(comparison, "differences", lambda *counts: original(*counts)[:-1])
    with pytest.raises(AssertionError):
        assert_differences_add_up(SEED)


def test_the_articles_prefix_misses_one_of_its_two_products():
    assert of("article") == {
        ("self", "the embedding, a look-up, as 4d per token"): 3 * 4 * 512,
        # L·2d·(n - (n + 1)/2), and L·d·(n + 1) of the product that is left out.
        ("self", "the masked half of that attention product"): 3 * 9 * 512 * 511,
        ("self", "one of the two attention products"): -3 * 9 * 512 * 513,
        ("cross", "the prefix embedding, a look-up, as 4d per position"): 3 * 4 * 512 * 3,
        ("cross", "one of the two attention products"): -3 * 2 * 512 * 768,
    }


def test_the_correction_drops_the_output_layer():
    assert of("article-update") == {
        ("self", "the masked half of both attention products"): 3 * 2 * 9 * 512 * 511,
        ("self", "softmax, element-wise work"): 3 * 9 * 3 * 8 * 512,
        ("self", "the output layer"): -3 * 2 * 512 * 32_000,
        ("cross", "softmax, element-wise work"): 3 * 3 * 8 * 768,
    }


def test_six_n_misses_both_products():
    # Norms: 4d a layer and 2d of the prefix; biases: d of the hybrid layer's output, and V.
    outside = {
        ("self", "positions as if multiplied"): 6 * 512 * 512,
        ("self", "norms as if multiplied"): 6 * (4 * 9 * 512 + 2 * 512),
        ("self", "biases as if multiplied"): 6 * (512 + 32_000),
    }
    assert of("6n") == outside | {("self", "both attention products"): -2 * 3 * 9 * 512 * 513}


def test_an_untied_input_embedding_is_named():
    untied = fc.Decoder(
        vocab_size=50257, seq_len=1024, num_channels=768, num_layers=12, num_heads=12,
        tie_embeddings=False,
    )  # fmt: skip
    palm = {
        # 6Vd; norms 2·2d a layer and 2d at the end; biases 3d + d + 4d + d a layer.
        ("self", "the input embedding, a look-up, as if multiplied"): 231_584_256,
        ("self", "norms as if multiplied"): 6 * (12 * 4 * 768 + 2 * 768),
        ("self", "biases as if multiplied"): 6 * 12 * 9 * 768,
        ("self", "the masked half of both attention products"): 6 * 12 * 768 * 1023,
    }
    assert of("palm", untied) == palm
    assert sum(palm.values()) - 6 * 12 * 768 * 1023 == 232_312_320
    six_n = of("6n", untied)
    assert six_n["self", "the input embedding, a look-up, as if multiplied"] == 231_584_256
    assert six_n["self", "positions as if multiplied"] == 6 * 1024 * 768
    rows = {row.name: row for row in fc.compare(untied).rows}
    for name in ("palm", "6n"):
        assert "the input embedding, a look-up, as if multiplied (+29.0%)" in rows[name].adds
    # In evaluation a third of it.
    (embedding,) = (
        entry.flops
        for row in fc.compare(untied, training=False).rows
        for entry in row.differences
        if row.name == "palm" and "input embedding" in entry.term
    )
    assert embedding == 231_584_256 // 3


@pytest.mark.parametrize("name", ["palm", "6n"])
def test_what_a_model_lacks_is_not_in_its_explanation(name):
    sizes = dict(vocab_size=257, seq_len=64, num_channels=48, num_layers=3, num_heads=4)
    tied = next(row for row in fc.compare(fc.Decoder(**sizes)).rows if row.name == name)
    assert "input embedding" not in tied.adds
    assert "biases" in tied.adds
    bare = next(row for row in fc.compare(fc.Decoder(**sizes, bias=False)).rows if row.name == name)
    assert "biases" not in bare.adds
    assert "norms" in bare.adds


def test_reasons_are_the_differences_of_the_model_at_hand():
    rows = {row.name: row for row in fc.compare(SEED).rows}
    assert (rows["causal"].leaves_out, rows["causal"].adds) == ("nothing", "nothing")
    assert rows["megatron"].adds == "the masked half of both attention products (+5.00%)"
    assert rows["megatron"].leaves_out == "the cross part, which it does not cover"
    assert rows["article"].leaves_out == (
        "one of the two attention products (-2.51%); "
        "one of the two attention products in the cross part (-25.0%)"
    )
    for row in rows.values():
        said = f"{row.leaves_out}; {row.adds}"
        assert all(entry.term in said for entry in row.differences)
    # One position attends to itself: there is no masked half.
    one = fc.Decoder(vocab_size=9, seq_len=1, num_channels=4, num_layers=1, num_heads=2)
    single = {row.name: row for row in fc.compare(one).rows}
    assert single["dense"].adds == single["megatron"].adds == "nothing"


def test_reasons_of_arrays_and_symbols_name_terms_alone():
    n, v = sympy.symbols("n V", integer=True, positive=True)
    sizes = dict(num_channels=4, num_layers=1, num_heads=2, tie_embeddings=False)
    array = fc.Decoder(**sizes, vocab_size=9, seq_len=np.array([3, 5]))
    symbolic = fc.Decoder(**sizes, vocab_size=v, seq_len=n)
    for model in (array, symbolic):
        rows = {row.name: row for row in fc.compare(model).rows}
        assert rows["chinchilla"].leaves_out == "the output layer"
        assert rows["6n"].leaves_out == "both attention products"
        assert rows["6n"].adds == "; ".join(
            f"{kind} as if multiplied"
            for kind in ("the input embedding, a look-up,", "positions", "norms", "biases")
        )


def test_a_share_is_of_its_part():
    count, proven = SEED.flops(level="dense"), SEED.flops()
    (entry,) = differences(count, proven)
    assert entry.share == pytest.approx(entry.flops / proven.self_part.per_token)
    assert differences(proven, proven) == ()


def test_there_is_no_share_of_nothing():
    sizes = dict(vocab_size=9, num_latents=2, num_channels=4, num_layers=1, num_heads=2)
    kept = fc.PerceiverAR(**sizes, num_prefix=3, num_kept=np.array([0, 2]))
    counts = kept.flops(convention="article"), kept.flops()
    shares = {entry.term: entry.share for entry in differences(*counts) if entry.part == "cross"}
    # 4dm/n over k(4d² + 4dn)/n: 48/(2·96).
    assert list(shares["the prefix embedding, a look-up, as 4d per position"]) == [None, 0.25]
    assert list(shares["one of the two attention products"]) == [None, -1 / 6]


def test_dropout_that_the_article_does_not_round():
    model = fc.PerceiverAR(
        vocab_size=5, num_latents=2, num_prefix=3, num_channels=4, num_layers=1, num_heads=1,
        prefix_dropout=0.5,
    )  # fmt: skip
    # k = 3 - int(1.5) = 2 positions, of which the article has 1.5: 4d² for half a position over 2
    # tokens, and 2dn of the one product.
    dropout = "prefix dropout, not rounded to positions"
    assert of("article-update", model)["cross", dropout] == -3 * 4 * 16 * 0.5 / 2


@pytest.mark.parametrize("num_latents", [64, np.array([64, 128])], ids=["int", "array"])
def test_less_than_a_flop_per_token_is_missed_or_added(num_latents):
    sizes = dict(vocab_size=5, num_latents=num_latents, num_channels=2, num_layers=1, num_heads=1)
    dropped = fc.PerceiverAR(**sizes, num_prefix=3, prefix_dropout=0.5)
    (row,) = (row for row in fc.compare(dropped).rows if row.name == "article-update")
    dropout = "prefix dropout, not rounded to positions"  # 3·4d²/2 of 64 tokens
    assert np.all(of(row.name, dropped)["cross", dropout] == -3 * 4 * 4 * 0.5 / num_latents)
    assert (dropout in row.leaves_out, dropout in row.adds) == (True, False)
    one = fc.PerceiverAR(**sizes, num_prefix=1)
    (row,) = (row for row in fc.compare(one).rows if row.name == "article")
    look_up = "the prefix embedding, a look-up, as 4d per position"  # 3·4d of 64 tokens
    assert np.all(of(row.name, one)["cross", look_up] == 3 * 4 * 2 / num_latents)
    assert (look_up in row.leaves_out, look_up in row.adds) == (False, True)


def test_what_is_missed_of_some_sizes_alone_is_missed():
    sizes = dict(vocab_size=9, num_latents=2, num_channels=4, num_layers=1, num_heads=2)
    kept = fc.PerceiverAR(**sizes, num_prefix=3, num_kept=np.array([0, 2]))
    (row,) = (row for row in fc.compare(kept).rows if row.name == "article")
    # 3·2·k·d of one product.
    product = "one of the two attention products"
    assert list(of(row.name, kept)["cross", product]) == [0, -3 * 2 * 2 * 4]
    assert f"{product} in the cross part" in row.leaves_out
    assert f"{product} in the cross part" not in row.adds


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (-0.25, "-25.0%"), (0.1, "+10.0%"), (-0.0999, "-9.99%"), (5e-5, "+0.01%"),
        (4.9e-5, "+0.0049%"), (5e-7, "+5.0e-05%"), (6e-7, "+0.0001%"),
        (-4.9e-7, "-4.9e-05%"), (0.0, "+0.00%"),
    ],
)  # fmt: skip
def test_a_share_has_the_digits_that_tell_it_from_0(share, text):
    assert comparison.signed(share) == text


def test_arrays_and_symbols():
    n = sympy.Symbol("n", integer=True, positive=True)
    sizes = dict(vocab_size=9, num_channels=4, num_layers=1, num_heads=2)
    (array,) = of("dense", fc.Decoder(**sizes, seq_len=np.array([3, 5]))).values()
    (expression,) = of("dense", fc.Decoder(**sizes, seq_len=n)).values()
    # 3·2·d·(n - 1)
    assert list(array) == [48, 96]
    assert sympy.expand(expression - 24 * (n - 1)) == 0


def llama(**options):
    sizes = dict(vocab_size=97, seq_len=13, num_channels=24, num_layers=3, num_heads=4)
    return fc.Llama(**sizes | dict(num_key_value_heads=2, intermediate_size=20) | options)


EXPERT = MLP(24, 20, gated=True)


@dataclasses.dataclass(frozen=True)
class SomeExperts:
    """Experts, in a block that the counter does not have."""

    channels: int = 24
    num_experts: int = 6
    top_k: int = 2
    expert: MLP = EXPERT
    shared: MLP | None = None

    def rows(self, at):
        """A router, and k positions in place of each for the experts."""
        yield from linear(at, "router", self.channels, self.num_experts)
        for row in self.expert.rows(at.at(length=at.length * self.top_k)):
            if isinstance(row, Tensor):
                yield dataclasses.replace(
                    row,
                    name=row.name.replace("mlp", "expert"),
                    factors=(self.num_experts, *row.factors),
                    used=(self.top_k, *row.factors),
                )
            elif isinstance(row, Product):
                term = row.term.replace("mlp", "expert")
                yield dataclasses.replace(row, term=term, weight=(at.layer, term))


@dataclasses.dataclass(frozen=True, kw_only=True)
class WithExperts(fc.CausalLM):
    """A language model with them."""

    def feed_forward(self, kind):
        """Experts in place of the MLP."""
        return SomeExperts()


EXPERTS = WithExperts(
    vocab_size=97, seq_len=13, num_channels=24, num_layers=3, num_heads=4, num_key_value_heads=2,
    intermediate_size=20,
)  # fmt: skip
TODAY = {
    "llama": llama(),
    "tied": llama(tie_embeddings=True),
    "window": llama(window=5),
    "wide heads": llama(head_dim=10),
    "one key head, no integer d / h": llama(num_channels=26, num_key_value_heads=1, head_dim=10),
    "gemma's": fc.CausalLM(
        vocab_size=97, seq_len=13, num_channels=24, num_layers=5, num_heads=4, head_dim=10,
        intermediate_size=20, attention=("sliding", "full"), window=5, query_key_norm="head",
        norm_placement="both", tie_embeddings=True, qkv_bias=True, mlp_bias=True,
    ),
    "a gate": fc.CausalLM(
        vocab_size=97, seq_len=13, num_channels=24, num_layers=3, num_heads=4,
        intermediate_size=20, attention_gate=True,
    ),
    "chunks": fc.CausalLM(
        vocab_size=97, seq_len=13, num_channels=24, num_layers=3, num_heads=4,
        intermediate_size=20, attention=("chunked", "full"), chunk=4,
    ),
    "experts": EXPERTS,
}  # fmt: skip


@pytest.mark.parametrize("model", TODAY.values(), ids=TODAY)
def test_differences_of_todays_models_add_up_exactly(model):
    assert_differences_add_up(model)


def test_what_todays_codes_miss_and_add():
    # n = 13, d = hc = 24, 3 layers: 6·3·24·13 less than the pairs by the diagonal.
    assert of("megatron-lm", llama()) == {
        ("self", "half of the diagonal of both attention products"): -6 * 3 * 24
    }
    # Three layers of 4hc·(13 - 7)·3 that the mask hides, and 3hn in softmax.
    assert of("levanter", llama()) == {
        ("self", "the masked half of both attention products"): 3 * 3 * 4 * 24 * 6,
        ("self", "softmax, element-wise work"): 3 * 3 * 3 * 4 * 13,
    }
    # 5 + 4 + ... + 13·5 of windows of 5: 55 pairs; the square less them, over 13 tokens.
    assert of("litgpt", llama(window=5))["self", "the masked pairs of both attention products"] == (
        pytest.approx(3 * 3 * 4 * 24 * (169 - 55) / 13)
    )
    # 4·d·n a layer once more, forward and once backward; forward alone, once.
    again = "both attention products once more, of frozen parameters, which are none"
    assert of("litgpt", llama())["self", again] == 2 * 3 * 4 * 24 * 13
    forward = {row.name: row for row in fc.compare(llama(), training=False).rows}
    (entry,) = (e for e in forward["litgpt"].differences if e.term == again)
    assert entry.flops == 3 * 4 * 24 * 13
    # A tied output layer that is not counted; norms 2·24 a layer and 24.
    assert of("hf-trainer", llama(tie_embeddings=True)) == {
        ("self", "norms as if multiplied"): 6 * (3 * 48 + 24),
        ("self", "both attention products"): -3 * 3 * 4 * 24 * 7,
        ("self", "the output layer"): -6 * 24 * 97,
    }
    # h·c = 40 where d = 24.
    assert of("litgpt", llama(head_dim=10))["self", "heads as if of d / h channels"] == (
        3 * 3 * 4 * 13 * (24 - 40)
    )


def test_experts_that_a_token_is_not_routed_to():
    # 4 of 6 experts of 3·24·20 in 3 layers; 6N and torchtitan take the 2.
    idle = ("self", "experts that a token is not routed to as if multiplied")
    assert of("litgpt", EXPERTS)[idle] == 6 * 3 * 4 * 1440
    assert of("hf-trainer", EXPERTS)[idle] == 6 * 3 * 4 * 1440
    assert idle not in of("6n", EXPERTS)
    assert idle not in of("torchtitan", EXPERTS)
    # Of a router Megatron's code says nothing.
    assert of("megatron-lm", EXPERTS)["self", "router"] == -6 * 3 * 24 * 6
    assert ("self", "router") not in of("levanter", EXPERTS)
    (label,) = (term.term for term in EXPERTS.flops(convention="6n").terms)
    assert label == "2 N, active parameters"


def test_a_model_that_is_not_covered_says_why():
    rows = {row.name: row for row in fc.compare(TODAY["chunks"]).rows}
    why = "the self part, which it does not cover (a mask Chunked)"
    assert rows["megatron-lm"].leaves_out == why
    assert rows["megatron-lm"].self_part == "not covered"
    assert rows["6n"].self_part != "not covered"


def test_a_block_that_nobody_knows_is_covered_by_parameters_alone():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Odd(fc.CausalLM):
        """A language model whose layers mix positions in their own way."""

        def mixer(self, kind):
            """A norm, of all things."""
            return Norm("odd", self.num_channels)

    odd = Odd(
        vocab_size=97, seq_len=13, num_channels=24, num_layers=3, num_heads=4, intermediate_size=20
    )
    covered = {row.name for row in fc.compare(odd).rows if row.self_part != "not covered"}
    assert covered == {"causal", "dense", "6n", "hf-trainer"}
    assert_differences_add_up(odd)


def test_a_comparison_prints_every_way_and_its_reasons():
    small = fc.PerceiverAR(
        vocab_size=5, num_latents=2, num_prefix=4, num_channels=6, num_layers=2, num_heads=2,
        prefix_dropout=0.5, widening_factor=2,
    )  # fmt: skip
    sides, reasons = fc.compare(small)._tables()
    cells = {row[0]: row[1:] for row in sides.rows}
    # Per layer 2·6·6 + 2·6·6 and 2·2·6·6, and 2·1.5·6 of pairs; 30 of the output; 6 FLOPs each.
    assert cells["causal"] == [6 * (2 * (288 + 18) + 30), "576", "4,428", "100.00%", "100.00%"]
    assert cells["kaplan"] == [3600, "not covered", "not covered", "93.46%", "not covered"]
    assert cells["nanotron"] == ["not covered"] * 5
    assert [row[0] for row in reasons.rows] == [row[0] for row in sides.rows]
    assert reasons.rows[1] == [
        "dense", "nothing", "the masked half of both attention products (+1.87%)"
    ]  # fmt: skip


def test_ratios_of_arrays_and_symbols():
    def ratios(length):
        model = dict(vocab_size=5, seq_len=length, num_channels=4, num_layers=1, num_heads=2)
        return [row[-1] for row in fc.compare(fc.Decoder(**model))._tables()[0].rows[:2]]

    # 6·(12·16 + 20) and 6·4·(n + 1) a token, 6·4·2n if dense: 1,368 of 1,344 and 1,464 of 1,392.
    assert ratios(np.array([2, 4])) == ["100.00% … 100.00%", "101.79% … 105.17%"]
    n = sympy.Symbol("n", integer=True, positive=True)
    first, second = map(sympy.sympify, ratios(n))
    assert first == 1
    assert second.subs("n", 2) == sympy.Rational(1368, 1344)


def test_a_size_that_one_of_two_counts_depends_on():
    def row(name, **sizes):
        model = fc.Decoder(seq_len=3, num_channels=4, num_layers=1, num_heads=2, **sizes)
        return next(row for row in fc.compare(model).rows if row.name == name)

    # 6·(12·16 + 4V) + 6·4·4 a token: 1,368 with 5 tokens, 1,416 with 7; Kaplan's 6·(12·16 + 12).
    x, two = sympy.Symbol("x", integer=True, positive=True), np.array([5, 7])
    assert row("kaplan", vocab_size=x).ratio.subs(x, 5) == sympy.Rational(1224, 1368)
    assert list(row("kaplan", vocab_size=two).ratio) == [1224 / 1368, 1224 / 1416]
    # A table of P positions: 6·4·P of 6N, beside 1,632 of the rest.
    assert row("6n", vocab_size=5, num_positions=x).ratio.subs(x, 5) == sympy.Rational(1752, 1368)
    six_n = row("6n", vocab_size=5, num_positions=two)
    assert list(six_n.ratio) == [1752 / 1368, 1800 / 1368]
    (share,) = (entry.share for entry in six_n.differences if "positions" in entry.term)
    assert list(share) == [120 / 1368, 168 / 1368]


def test_what_is_no_model_is_named():
    with pytest.raises(
        TypeError, match=r"model = 3: expected a flopcount architecture, one of .*,"
    ):
        fc.compare(3)


def test_a_sum_is_zero_however_it_is_written():
    n = sympy.Symbol("n", integer=True, positive=True)
    assert comparison._is_zero(n * (n + 1) - n**2 - n)
    assert not comparison._is_zero(n * (n + 1) - n**2)


def test_a_parameter_without_a_kind_has_its_own_name():
    # Of 64 layers: five of each of 8,192 + 2·8·128 channels, and one of each of 128 heads' 64.
    six_n = of("6n", fc.from_hf(dict(model_type="mamba2"), 512))
    assert six_n["self", "decoder convolution as if multiplied"] == 6 * 64 * 5 * 10_240
    assert six_n["self", "decoder skip as if multiplied"] == 6 * 64 * 128


def test_a_record_has_every_difference():
    record = fc.compare(SEED).to_dict()["rows"][1]
    flops = 3 * 2 * 9 * 512 * 511
    assert (record["name"], record["adds"]) == (
        "dense", "the masked half of both attention products (+5.00%)"
    )  # fmt: skip
    assert record["differences"] == [
        {
            "part": "self",
            "term": "the masked half of both attention products",
            "flops": flops,
            "share": flops / SEED.flops().self_part.per_token,
        }
    ]


@pytest.mark.parametrize("name", ["article", "article-update", "megatron"])
def test_projections_and_mlp_are_no_difference(name):
    assert not {term for _, term in of(name)} & {"projections and MLP", "query", "mlp up"}


def test_parts_are_told_apart_where_there_is_a_prefix():
    n = sympy.Symbol("n", integer=True, positive=True)
    sizes = dict(vocab_size=9, num_channels=4, num_layers=1, num_heads=2)
    for length in (3, n):
        text = str(fc.compare(fc.Decoder(seq_len=length, **sizes)))
        assert text.startswith("FLOPs of Decoder per token")
        assert "self" not in text.splitlines()[1]
    text = str(fc.compare(TODAY["chunks"]))  # which not every convention covers
    assert text.startswith("FLOPs of CausalLM per token")
    text = str(fc.compare(fc.PerceiverAR(num_latents=3, num_prefix=2, **sizes)))
    assert text.startswith("FLOPs of PerceiverAR per latent token")
    assert text.splitlines()[1].split()[2:6] == ["self", "part", "cross", "part"]


# Last, as they take longest: mutants are found by what is above.


@pytest.mark.parametrize("model", [m for e in EXPERIMENTS for m in e.models()], ids=str)
def test_differences_of_the_articles_models_add_up_exactly(model):
    assert_differences_add_up(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_differences_of_every_family_add_up_exactly(family):
    lengths = dict(target_len=9) if "target_len" in FAMILIES[family].options else {}
    config = dict(model_type=family) | NEEDED.get(family, {})
    assert_differences_add_up(fc.from_hf(config, 100, **lengths))
