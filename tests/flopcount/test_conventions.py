"""Each convention reproduces its own publication's numbers."""

import random
from fractions import Fraction

import numpy as np
import pytest
import sympy

import flopcount as fc
from flopcount.conventions import CONVENTIONS, Inputs, LayerInputs, palm_self
from flopcount.explanation import on_symbols

SEED = fc.PerceiverAR(
    vocab_size=32_000, num_latents=512, num_prefix=1536, num_channels=512, num_layers=9,
    prefix_dropout=0.5,
)  # fmt: skip


def per_token(model, name, part="self_part"):
    return getattr(model.flops(convention=name), part).per_token


def test_article():
    assert per_token(SEED, "article") == 282_335_232
    # 3·int(4·512·3 + 0.5·(4·512² + 2·512·512)·3) = 3·2,365,440
    assert per_token(SEED, "article", "cross_part") == 7_096_320


def test_article_update():
    # 3·9·(24·512² + 4·512·512 + 3·8·512)
    assert per_token(SEED, "article-update") == 198_512_640
    # 3·int(0.5·(4·512²·3 + 4·512·1536 + 3·8·1536)) = 3·3,164,160
    assert per_token(SEED, "article-update", "cross_part") == 9_492_480


@pytest.mark.parametrize("name", ["article", "article-update"])
def test_whole_numbers_are_integers(name):
    lines = SEED.flops(convention=name).terms
    assert {type(line.forward) for line in lines} == {int}


def test_article_truncates_before_tripling():
    model = fc.PerceiverAR(
        vocab_size=1, num_latents=3, num_prefix=1, num_channels=1, num_layers=1, num_heads=1
    )
    # (4 + 4 + 2·3)/3 = 4.67 truncates to 4; training 12.
    assert per_token(model, "article", "cross_part") == 12
    # (4 + 4·3 + 3·3)/3 = 8.33 truncates to 8; training 24.
    assert per_token(model, "article-update", "cross_part") == 24


def article_code(m, n, d, h, p):
    """``cross_attn`` as published with the article, written down from it; h is not in it."""
    prefix_latent_ratio = m / n
    embed_prefix = 4 * d * prefix_latent_ratio
    attn_prefix = (4 * d**2 + 2 * d * n) * prefix_latent_ratio * (1.0 - p)
    return int(embed_prefix + attn_prefix) * 3


def article_update_code(m, n, d, h, p):
    """``cross_attn`` as the author corrected it, written down from it."""
    kv = 4 * d**2 * m / n
    attn = 2 * d * m
    sm = 3 * h * m
    red = 2 * d * m
    return int((kv + attn + sm + red) * (1.0 - p)) * 3


CODES = [("article", article_code), ("article-update", article_update_code)]


def draws(number, seed):
    """Sizes m, n, d, h and p; p in tenths, in twentieths, or any."""
    r = random.Random(seed)
    for _ in range(number):
        h = r.choice([1, 2, 4, 8, 10, 12])
        p = r.choice([r.randrange(10) / 10, r.randrange(20) / 20, r.random()])
        yield r.randint(1, 4096), r.randint(1, 2048), h * r.randint(1, 256), h, p


def drawn_model(m, n, d, h, p):
    return fc.PerceiverAR(
        vocab_size=11, num_latents=n, num_prefix=m, num_channels=d, num_layers=2, num_heads=h,
        prefix_dropout=p,
    )  # fmt: skip


@pytest.fixture(scope="module")
def many_draws():
    return list(draws(6_000, seed=20))


@pytest.mark.parametrize(("name", "code"), CODES)
def test_the_articles_code_is_followed_to_the_unit(name, code, many_draws):
    differ_from_exact = 0
    for drawn in many_draws:
        count = drawn_model(*drawn).flops(convention=name)
        assert count.cross_part.per_token == code(*drawn), drawn
        exact = sum(line.forward for line in count.cross_part.terms[:-1]) / Fraction(drawn[1])
        differ_from_exact += int(exact) * 3 != code(*drawn)
    # What the test is for: some draws tell doubles from exact arithmetic.
    assert differ_from_exact > 10


@pytest.mark.parametrize(("name", "code"), CODES)
def test_the_articles_code_is_followed_in_arrays(name, code, many_draws):
    m, n, d, h, p = (np.array(column) for column in zip(*many_draws, strict=True))
    per_token = drawn_model(m, n, d, h, p).flops(convention=name).cross_part.per_token
    assert list(per_token) == [code(*drawn) for drawn in many_draws]


@pytest.mark.parametrize(("name", "code"), CODES)
def test_the_articles_code_is_followed_in_few_draws(name, code):
    drawn = list(draws(50, seed=21))
    alone = [drawn_model(*sizes).flops(convention=name).cross_part.per_token for sizes in drawn]
    assert alone == [code(*sizes) for sizes in drawn]
    prefixes = drawn_model(np.array([0, 999]), 500, 1000, 10, 0.2).flops(convention=name)
    assert list(prefixes.cross_part.per_token) == [0, code(999, 500, 1000, 10, 0.2)]


def test_the_articles_code_in_tenths():
    model = drawn_model(999, 500, 1000, 10, 0.2)
    # Exactly 4·1000·1.998 + 5·10⁶·1.998·(1 - p), p = 0.2 being a little more than a fifth:
    # 7,999,991.99999…, which doubles round to 7,999,992.
    assert per_token(model, "article", "cross_part") == 23_999_976 == 3 * 7_999_992
    evaluated = model.flops(convention="article", training=False).cross_part
    assert evaluated.per_token == int(4000 * 1.998 + 5_000_000 * 1.998)


@pytest.mark.parametrize(("name", "code"), CODES)
def test_a_kept_prefix_that_some_p_keeps_is_counted_as_that_p(name, code):
    sizes = dict(
        vocab_size=1, num_latents=7, num_prefix=12, num_channels=10, num_layers=1, num_heads=2
    )
    kept = fc.PerceiverAR(**sizes, num_kept=3)
    assert per_token(kept, name, "cross_part") == code(12, 7, 10, 2, 0.75)


def test_a_kept_prefix_that_no_p_keeps_is_counted_exactly():
    # 4·1·6/2 + (4 + 2·2)·4/2 = 28, and k/m = 2/3 is no double.
    sizes = dict(
        vocab_size=1, num_latents=2, num_prefix=6, num_channels=1, num_layers=1, num_heads=1
    )
    kept = fc.PerceiverAR(**sizes, num_kept=4)
    assert per_token(kept, "article", "cross_part") == 3 * 28
    # k(4d²/n + 4d + 3h) = 4·(2 + 4 + 3)
    assert per_token(kept, "article-update", "cross_part") == 3 * 36
    # 4·3/10 + (4 + 2·10)·2/10 = 1.2 + 4.8 = 6, where doubles would give 5.99…
    tenths = fc.PerceiverAR(**sizes | dict(num_latents=10, num_prefix=3), num_kept=2)
    assert per_token(tenths, "article", "cross_part") == 3 * 6


def test_terms_of_the_articles_cross_parts():
    kept, square = 768, 512 * 512
    embedding = ("prefix embedding", 4 * 512 * 1536)
    products = [
        ("keys and values", kept * 4 * square),
        ("one attention product", kept * 2 * square),
    ]
    rounding = ("truncation per token", 0)
    update = [
        ("keys and values", kept * 4 * square),
        ("both attention products", kept * 4 * square),
        ("softmax", kept * 3 * 8 * 512),
    ]
    for name, terms in (("article", [embedding, *products]), ("article-update", update)):
        lines = SEED.flops(convention=name).cross_part.terms
        assert [(line.term, line.forward) for line in lines] == [*terms, rounding]
    # d apart from n: 2 sequences of 2 kept positions, 4d² and 4dn.
    small = fc.PerceiverAR(
        vocab_size=1, num_latents=3, num_prefix=4, num_channels=10, num_layers=1, num_heads=5,
        num_kept=2,
    )  # fmt: skip
    lines = small.flops(convention="article-update", batch_size=2).cross_part.terms
    assert [line.forward for line in lines][:3] == [1600, 480, 180]
    lines = small.flops(convention="article", batch_size=2).cross_part.terms
    assert [line.forward for line in lines][:3] == [320, 1600, 240]


def test_symbols_keep_the_floor_of_the_exact_expression():
    d = sympy.Symbol("d", integer=True, positive=True)
    sizes = dict(vocab_size=9, num_latents=3, num_prefix=6, num_layers=1, num_heads=1)
    symbolic = fc.PerceiverAR(**sizes, num_channels=d, prefix_dropout=0.5)
    expression = per_token(symbolic, "article", "cross_part")
    # 3·⌊(4d·6 + 3·(4d² + 6d))/3⌋
    assert expression.subs(d, 5) == 3 * ((120 + 3 * 130) // 3)
    assert expression.has(sympy.floor) or sympy.expand(expression - 12 * d**2 - 42 * d) == 0


def test_operands_above_a_doubles_integers_are_counted_exactly():
    limit = 2**53
    for m in (limit, limit + 1, 10**400):
        sizes = dict(vocab_size=1, num_latents=1, num_channels=1, num_layers=1, num_heads=1)
        model = fc.PerceiverAR(**sizes, num_prefix=m)
        # 4m + (4 + 2)m; 4m + 4m + 3m
        assert per_token(model, "article", "cross_part") == 3 * 10 * m
        assert per_token(model, "article-update", "cross_part") == 3 * 11 * m


@pytest.mark.parametrize(
    ("name", "code", "m"),
    # The largest operands: m of the article, 4d²m of its update.
    [("article", article_code, 2**53), ("article-update", article_update_code, 2**51)],
)
def test_operands_are_doubles_up_to_their_last_exact_integer(name, code, m):
    for prefix, follows in ((m, True), (m + 1, False)):
        drawn = prefix, 3, 1, 1, 0.1
        count = drawn_model(*drawn).flops(convention=name).cross_part
        exact = sum(line.forward for line in count.terms[:-1]) / Fraction(3)
        assert 3 * int(exact) != code(*drawn)
        assert count.per_token == (code(*drawn) if follows else 3 * int(exact))


def test_article_dropout_is_not_rounded_but_num_kept_is_taken():
    sizes = dict(
        vocab_size=1, num_latents=2, num_prefix=3, num_channels=2, num_layers=1, num_heads=1
    )
    # (1 - p)·m = 1.5, (4·2·3 + 1.5·(4·4 + 2·2·2))/2 = 30; k = 2: (24 + 2·24)/2 = 36.
    dropped = fc.PerceiverAR(**sizes, prefix_dropout=0.5)
    kept = fc.PerceiverAR(**sizes, num_kept=2)
    assert per_token(dropped, "article", "cross_part") == 3 * 30
    assert per_token(kept, "article", "cross_part") == 3 * 36


# Hoffmann et al. 2022, Table A4: layers, d_model, ffw_size, heads, FLOP ratio (Ours / 6ND).
TABLE_A4 = [
    (10, 640, 2560, 10, "1.03"),
    (20, 1024, 4096, 16, "1.10"),
    (24, 1280, 5120, 10, "1.08"),
    (26, 1792, 7168, 14, "1.04"),
    (28, 2048, 8192, 16, "1.03"),
    (40, 3584, 14336, 28, "0.99"),
]


@pytest.mark.parametrize(("layers", "width", "hidden", "heads", "ratio"), TABLE_A4)
def test_chinchilla_table_a4(layers, width, hidden, heads, ratio):
    model = fc.Decoder(
        vocab_size=32_000, seq_len=2048, num_channels=width, num_layers=layers, num_heads=heads,
        widening_factor=hidden // width,
    )  # fmt: skip
    # Gopher's parameters: 12d² + 13d per decoder layer, d² + 2d more for relative positions, a
    # final norm of 2d and the tied embedding.
    gopher = 32_000 * width + layers * (13 * width**2 + 15 * width) + 2 * width
    assert f"{per_token(model, 'chinchilla') / (6 * gopher):.2f}" == ratio


def test_chinchilla_first_row_has_gophers_parameters():
    assert 32_000 * 640 + 10 * (13 * 640**2 + 15 * 640) + 2 * 640 == 73_825_280


def test_kaplan_table_1():
    # Per token 2·12Ld² + 2Lnd forward, three times that in training.
    assert per_token(SEED, "kaplan") == 3 * (2 * 12 * 9 * 512**2 + 2 * 9 * 512 * 512)


def test_palm_540b_utilisation():
    # Appendix B: 540.35B parameters, 118 layers, 48 heads of 256, 2048 tokens, 238.3K tokens/s on
    # 6144 chips of 275 TFLOP/s: 46.2 % with attention, 45.7 % without.
    inputs = Inputs(
        num_latents=2048, num_channels=18432, vocab_size=256_000, num_params=540_350_000_000,
        num_active_params=540_350_000_000,
        layers=(LayerInputs(number=118, num_heads=48, head_dim=256, value_dim=256),),
    )  # fmt: skip
    terms = palm_self(inputs)
    without, attention = (3 * flops // 2048 for _, _, flops in terms)
    rate = 238_300 / (6144 * 275e12)
    assert f"{without * rate:.1%}" == "45.7%"
    assert f"{(without + attention) * rate:.1%}" == "46.2%"


def test_palm_leaves_positions_out():
    params = SEED.params()
    parameters = params.self_part.total - 512 * 512
    # 6N + 12LhcS
    assert per_token(SEED, "palm") == 6 * parameters + 12 * 9 * 8 * 64 * 512


def test_megatron_equation_3():
    model, _ = on_symbols("decoder")
    batch = sympy.Symbol("B", integer=True, positive=True)
    S, h, L, V = model.seq_len, model.num_channels, model.num_layers, model.vocab_size
    training = model.flops(convention="megatron", batch_size=batch).total.subs(
        model.widening_factor, 4
    )
    # With recomputation the layers cost 4/3: 96BSLh²(1 + S/(6h) + V/(16Lh)).
    with_recompute = training + training.subs(V, 0) / 3
    equation_3 = 96 * batch * S * L * h**2 * (1 + S / (6 * h) + V / (16 * L * h))
    assert sympy.expand(with_recompute - equation_3) == 0


def test_six_n():
    gpt2 = fc.Decoder(vocab_size=50257, seq_len=1024, num_channels=768, num_layers=12, num_heads=12)
    assert per_token(gpt2, "6n") == 6 * 124_439_808


@pytest.mark.parametrize("name", ["kaplan", "chinchilla", "palm", "megatron", "6n"])
def test_decoder_conventions_say_nothing_of_a_prefix(name):
    count = SEED.flops(convention=name)
    assert count.not_covered == {"cross"}
    assert count.cross_part.not_covered == {"cross"}
    assert not count.self_part.not_covered
    row = next(row for row in fc.compare(SEED).rows if row.name == name)
    assert (row.cross_part, row.total) == ("not covered", "not covered")
    proven = SEED.flops().self_part.total
    assert row.ratio == row.self_ratio == pytest.approx(count.self_part.total / proven)


def test_prefixes_in_an_array():
    sizes = dict(vocab_size=1, num_latents=3, num_channels=1, num_layers=1, num_heads=1)
    prefixes = fc.PerceiverAR(**sizes, num_prefix=np.array([0, 1]))
    assert prefixes.flops(convention="kaplan").not_covered == {"cross"}
    assert list(per_token(prefixes, "article", "cross_part")) == [0, 12]
    assert list(per_token(prefixes, "article-update", "cross_part")) == [0, 24]
    m = sympy.Symbol("m", integer=True, positive=True)
    symbolic = per_token(fc.PerceiverAR(**sizes, num_prefix=m), "article", "cross_part")
    # (4m + m·(4 + 2·3))/3, truncated, times 3.
    assert [symbolic.subs(m, number) for number in (1, 2, 3)] == [12, 27, 42]


# nanotron's function is of gated MLPs alone.
@pytest.mark.parametrize("name", [name for name in CONVENTIONS if name != "nanotron"])
def test_conventions_cover_a_decoder_whole(name):
    gpt2 = fc.Decoder(vocab_size=50257, seq_len=1024, num_channels=768, num_layers=12, num_heads=12)
    count = gpt2.flops(convention=name)
    assert not count.not_covered
    assert count.cross_part.total == 0
    # litgpt gives frozen parameters, none, an attention of their own, which trains no weights:
    # 12·(4·768·1024) per token, forward and once backward.
    frozen = 1024 * 37_748_736 if name == "litgpt" else 0
    assert count.total == count.self_part.total == 3 * count.forward - frozen


def test_forward_alone():
    evaluation = SEED.flops(convention="article", training=False)
    # k = m: 4·512·3 + (4·512² + 2·512·512)·3 = 4,724,736
    assert evaluation.cross_part.per_token == 4_724_736
    assert evaluation.self_part.per_token == 282_335_232 // 3


def test_general_widening_factor():
    wide = fc.PerceiverAR(
        vocab_size=5, num_latents=3, num_prefix=0, num_channels=4, num_layers=2, num_heads=2,
        widening_factor=7,
    )  # fmt: skip
    layers = 2 * (8 + 4 * 7) * 4**2
    assert per_token(wide, "article") == 3 * (4 * 4 + layers + 2 * 2 * 4 * 3 + 2 * 4 * 5)
    assert per_token(wide, "kaplan") == 3 * (layers + 2 * 2 * 3 * 4)
    assert per_token(wide, "chinchilla") == 3 * (layers + 2 * 4 * 3 * 4 + 2 * 3 * 2 * 3)


def test_comparison_of_arrays_and_symbols():
    n = sympy.Symbol("n", integer=True, positive=True)
    sizes = dict(vocab_size=9, num_channels=4, num_layers=1, num_heads=2)
    one, two = (fc.Decoder(**sizes, seq_len=length) for length in (3, 5))
    both = fc.compare(fc.Decoder(**sizes, seq_len=np.array([3, 5])))
    symbolic = fc.compare(fc.Decoder(**sizes, seq_len=n))
    alone = zip(fc.compare(one).rows, fc.compare(two).rows, strict=True)
    for row, expression, pair in zip(both.rows, symbolic.rows, alone, strict=True):
        if isinstance(row.total, str):
            assert {entry.total for entry in (*pair, expression)} == {"not covered"}
            continue
        assert list(row.total) == [entry.total for entry in pair]
        assert [float(ratio) for ratio in row.ratio] == [entry.ratio for entry in pair]
        assert [expression.total.subs(n, length) for length in (3, 5)] == list(row.total)
    assert "…" in str(both)
    assert "n" in str(symbolic)


def test_comparison_prints_every_convention_and_its_reason():
    text = str(fc.compare(SEED))
    assert "the output layer" in text
    for convention in CONVENTIONS.values():
        assert convention.name in text
    assert "99.19%" in text  # article: 289,431,552 / 291,793,920
