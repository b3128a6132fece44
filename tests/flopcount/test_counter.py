"""The counter against hand arithmetic, and its parts against each other."""

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flopcount as fc
from flopcount.conventions import CONVENTIONS
from flopcount.count import NotCoveredError
from flopcount.testing import perceivers

SEED = dict(vocab_size=32_000, num_latents=512, num_prefix=1536, num_channels=512, num_layers=9)

# n = 2 latents, m = 4 prefix positions of which k = 2 are kept, h = 2 heads of c = 3 channels
# (d = 6), w = 2, V = 5, L = 2.
TINY = fc.PerceiverAR(
    vocab_size=5,
    num_latents=2,
    num_prefix=4,
    num_channels=6,
    num_layers=2,
    num_heads=2,
    prefix_dropout=0.5,
    widening_factor=2,
)


def forward(count):
    return {(line.part, line.layer, line.term): line.forward for line in count.terms}


def test_terms_of_a_tiny_model_by_hand():
    linear = 2 * 2 * 6 * 6  # n=2 positions, 6 -> 6: 144
    mlp = 2 * 2 * 6 * 12  # 6 -> 12 or 12 -> 6: 288
    attention = 2 * 2 * 3 * 3  # 2 heads, 1 + 2 = 3 pairs, depth 3: 36
    assert forward(TINY.flops()) == {
        **{("self", layer, term): linear for layer in ("hybrid", "self-attention")
           for term in ("query", "key", "value", "out")},
        **{("self", layer, term): mlp for layer in ("hybrid", "self-attention")
           for term in ("mlp up", "mlp down")},
        **{("self", layer, term): attention for layer in ("hybrid", "self-attention")
           for term in ("scores", "values")},
        ("cross", "hybrid", "key"): 2 * 2 * 6 * 6,  # k=2 positions
        ("cross", "hybrid", "value"): 2 * 2 * 6 * 6,
        ("cross", "hybrid", "scores"): 2 * 2 * 4 * 3,  # 2 heads, n·k = 4 pairs, depth 3
        ("cross", "hybrid", "values"): 2 * 2 * 4 * 3,
        ("self", "output", "logits"): 2 * 2 * 6 * 5,  # V=5
    }  # fmt: skip


@pytest.mark.parametrize("level", ["causal", "dense"])
def test_rows_of_a_tiny_model_by_hand(level):
    count = TINY.flops(level=level, checkpointing="reentrant", batch_size=3)
    shapes = {(row.part, row.layer, row.term): row for row in count.rows if row.phase == "forward"}
    # (products, M, N, K): batch 3, times 2 heads in attention.
    linear, attention = (3, 2, 6, 6), (3 * 2, 2, 2, 3)
    expected = {
        **{("self", layer, term): linear for layer in ("hybrid", "self-attention")
           for term in ("query", "key", "value", "out")},
        **{("self", layer, "mlp up"): (3, 2, 12, 6) for layer in ("hybrid", "self-attention")},
        **{("self", layer, "mlp down"): (3, 2, 6, 12) for layer in ("hybrid", "self-attention")},
        **{("self", layer, term): attention for layer in ("hybrid", "self-attention")
           for term in ("scores", "values")},
        ("cross", "hybrid", "key"): linear,
        ("cross", "hybrid", "value"): linear,
        ("cross", "hybrid", "scores"): attention,
        ("cross", "hybrid", "values"): attention,
        ("self", "output", "logits"): (3, 2, 5, 6),
    }  # fmt: skip
    assert {key: (row.batch, row.M, row.N, row.K) for key, row in shapes.items()} == expected
    masked = [
        row.pairs for key, row in shapes.items() if key[0] == "self" and row.pairs is not None
    ]
    assert masked == [3 if level == "causal" else 4] * 4  # 1 + 2 of 2·2 pairs


def test_executed_attention_of_a_tiny_model_by_hand():
    tiling = fc.Tiling(forward=(16, 16), key_value=(8, 8), query=(4, 4))
    count = TINY.executed(tiling, checkpointing="reentrant")
    # Everything fits one tile; 2 heads, and the head dim 3 is padded to 16: 2·2·16 per pair.
    forward, key_value, query = (64 * block * block for block in (16, 8, 4))
    lines = {(line.part, line.layer, line.term): line for line in count.terms}
    for part, layer in (("self", "hybrid"), ("self", "self-attention"), ("cross", "hybrid")):
        scores, values = (lines[part, layer, term] for term in ("scores", "values"))
        assert scores.forward == values.forward == scores.recompute == values.recompute == forward
        # Scores again and the gradient of k, scores again and that of q; the weights' gradient in
        # both passes, and that of v.
        assert scores.backward == 2 * key_value + 2 * query
        assert values.backward == 2 * key_value + query
        assert [row.flops for row in scores.rows].count(key_value) == 2
    mlp = lines["self", "hybrid", "mlp up"]
    assert (mlp.forward, mlp.backward, len(mlp.rows)) == (288, 576, 4)
    evaluation = TINY.executed(tiling, training=False)
    assert evaluation.backward == 0
    assert {row.phase for row in evaluation.rows} == {"forward"}
    with pytest.raises(ValueError, match="executed"):
        evaluation.mfu(seconds=1, device="h200")


def test_parts_by_hand():
    count, alone = TINY.flops(), TINY.flops().self_part
    # k = 2: keys and values 2·144, scores and values 2·48.
    assert count.cross_part.forward == 2 * 144 + 2 * 48
    assert alone.forward == count.forward - 384
    # Embedding 24·1, prefix norm 12·7, rotary 8·3, softmax 8·5.
    assert count.cross_part.elementwise.forward == 24 + 12 * 7 + 8 * 3 + 8 * 5
    assert alone.elementwise.forward == count.elementwise.forward - 172
    gpt2 = fc.Decoder(vocab_size=5, seq_len=2, num_channels=6, num_layers=2, num_heads=2)
    assert {row.part for row in gpt2.flops().elementwise.terms} == {"self"}
    assert {line.part for line in gpt2.flops(convention="article").terms} == {"self"}


def test_evaluation_has_no_element_wise_backward_pass():
    work = TINY.flops(training=False).elementwise
    assert work.backward == 0
    assert work.total == work.forward > 0
    widths = fc.Decoder(
        vocab_size=5, seq_len=2, num_channels=np.array([6, 12]), num_layers=2, num_heads=2
    )
    assert list(widths.flops(training=False).elementwise.backward) == [0, 0]


@pytest.mark.parametrize("way", [dict(level="causal"), dict(convention="megatron")])
def test_a_batch_counts_its_sequences(way):
    gpt2 = fc.Decoder(vocab_size=5, seq_len=2, num_channels=6, num_layers=2, num_heads=2)
    one, three = gpt2.flops(**way), gpt2.flops(**way, batch_size=3)
    assert (three.batch_size, three.tokens) == (3, 6)
    assert three.total == 3 * one.total
    assert three.per_sequence == one.total
    assert three.per_token == one.total // 2


def test_conventions_have_terms_but_no_products():
    count = TINY.flops(convention="article")
    assert count.rows == ()
    assert count.recompute == 0
    assert count.with_recompute == count.total
    assert {term.recomputed for term in count.terms} == {False}


def test_a_term_of_several_counts_is_recomputed_where_one_is():
    first, *_ = TINY.flops(checkpointing="reentrant").terms
    spared = dataclasses.replace(first, recomputed=False)
    assert first.recomputed
    assert spared.plus(first).recomputed
    assert first.plus(spared).recomputed
    assert not spared.plus(spared).recomputed


def test_what_is_counted_is_subtracted_term_by_term():
    dense, causal = TINY.flops("dense"), TINY.flops("causal")
    assert (dense - causal).total == dense.total - causal.total > 0
    with pytest.raises(TypeError, match="unsupported operand"):
        dense - 3


def test_dense_counts_the_whole_square():
    dense, causal = forward(TINY.flops(level="dense")), forward(TINY.flops())
    changed = {key for key in dense if dense[key] != causal[key]}
    assert changed == {("self", layer, term) for layer in ("hybrid", "self-attention")
                       for term in ("scores", "values")}  # fmt: skip
    assert dense["self", "hybrid", "scores"] == 2 * 2 * 4 * 3  # n² = 4 pairs instead of 3


def test_seed_reference_model_per_token():
    model = fc.PerceiverAR(**SEED, prefix_dropout=0.5)
    # Self part of the article is 282,335,232 = 3·(4d + L(24d² + 2dn) + 2dV); causal adds
    # 3·(2dL - 4d) = 3·(9,216 - 2,048) = 21,504.
    assert model.flops().self_part.per_token == 282_335_232 + 21_504
    # Cross part: 3·(k/n)(4d² + 4dn) with k/n = 768/512 = 1.5: 3·1.5·2,097,152 = 9,437,184.
    assert model.flops().cross_part.per_token == 9_437_184
    assert model.flops().per_token == 291_793_920


def test_gpt2_small_forward():
    gpt2 = fc.Decoder(vocab_size=50257, seq_len=1024, num_channels=768, num_layers=12, num_heads=12)
    # 2·1024·(12·12·768² + 768·50257) + 12·4·1024²·768
    assert gpt2.flops(level="dense").forward == 291_648_307_200
    assert gpt2.params().total == 124_439_808


def test_gpt2_small_without_biases_and_untied():
    sizes_of_gpt2 = dict(
        vocab_size=50257, seq_len=1024, num_channels=768, num_layers=12, num_heads=12
    )
    assert fc.Decoder(**sizes_of_gpt2, bias=False).params().total == 124_337_664
    untied = fc.Decoder(**sizes_of_gpt2, tie_embeddings=False).params().total
    assert untied == 124_439_808 + 768 * 50257


@given(perceivers())
def test_backward_is_twice_forward_and_rows_add_up(model):
    for level in ("causal", "dense"):
        count = model.flops(level=level, checkpointing="reentrant")
        assert count.backward == 2 * count.forward
        assert count.total == 3 * count.forward
        by_phase = {"forward": 0, "backward": 0, "recompute": 0}
        for row in count.rows:
            by_phase[row.phase] += row.flops
        assert by_phase == {
            "forward": count.forward,
            "backward": count.backward,
            "recompute": count.recompute,
        }


@given(perceivers())
def test_self_part_is_the_model_without_prefix(model):
    alone = fc.PerceiverAR(
        vocab_size=model.vocab_size,
        num_latents=model.num_latents,
        num_prefix=0,
        num_channels=model.num_channels,
        num_layers=model.num_layers,
        num_heads=model.num_heads,
        widening_factor=model.widening_factor,
    )
    ways = [dict(level="causal"), dict(level="dense")]
    ways += [dict(convention=name) for name in CONVENTIONS]
    for way in ways:
        for training in (True, False):
            part = model.flops(**way, training=training).self_part
            whole = alone.flops(**way, training=training)
            assert part.not_covered == whole.not_covered
            if part.not_covered:
                continue
            assert part.total == whole.total
            assert whole.cross_part.total == 0
            if "level" in way:
                assert part.elementwise.total == whole.elementwise.total
    for flavour in ("reentrant", "non-reentrant"):
        assert (
            model.flops(checkpointing=flavour).self_part.recompute
            == alone.flops(checkpointing=flavour).recompute
        )
    assert model.params().self_part.total == alone.params().total


@given(perceivers(), st.integers(1, 12))
def test_parts_add_up_and_batch_is_linear(model, batch_size):
    one, many = model.flops(), model.flops(batch_size=batch_size)
    assert one.self_part.total + one.cross_part.total == one.total
    assert many.total == batch_size * one.total
    assert many.per_token == one.per_token
    assert many.per_sequence == one.total


def test_evaluation_is_forward_alone_without_dropout():
    evaluation = TINY.flops(training=False)
    assert evaluation.backward == 0
    assert evaluation.total == evaluation.forward
    # k = m = 4 instead of 2: the cross part doubles.
    assert evaluation.cross_part.forward == 2 * TINY.flops().cross_part.forward
    assert evaluation.self_part.forward == TINY.flops().self_part.forward
    assert "cross-entropy" not in {row.term for row in evaluation.elementwise.terms}


def test_num_kept_replaces_dropout_in_training_only():
    kept = fc.PerceiverAR(**SEED, num_kept=768)
    dropped = fc.PerceiverAR(**SEED, prefix_dropout=0.5)
    assert kept.flops().total == dropped.flops().total
    assert kept.flops(training=False).total == dropped.flops(training=False).total


def test_kept_positions_follow_the_float_product():
    # 1 - 0.9 is no float: 10·0.9 = 9.0 keeps 1, and 100·0.29 = 28.999999999999996 keeps 72.
    for num_prefix, dropout, kept in ((10, 0.9, 1), (100, 0.29, 72), (3, 0.5, 2), (0, 0.5, 0)):
        model = fc.PerceiverAR(**SEED | {"num_prefix": num_prefix}, prefix_dropout=dropout)
        assert model.kept() == kept


def test_checkpointing_recomputes_whole_layers():
    count = TINY.flops(checkpointing="reentrant")
    layers = TINY.flops().forward - 2 * 2 * 6 * 5  # everything but the output layer
    assert count.recompute == layers
    assert count.total == TINY.flops().total
    assert count.with_recompute == TINY.flops().total + layers


def test_early_stopping_saves_the_last_product_of_each_layer():
    # mlp down: 2·n·(w·d)·d = 288 in each of the two layers.
    early = TINY.flops(checkpointing="non-reentrant").recompute
    assert TINY.flops(checkpointing="reentrant").recompute - early == 2 * 288


def test_element_wise_recomputation_by_hand():
    plain = TINY.flops().elementwise
    whole = TINY.flops(checkpointing="reentrant").elementwise
    early = TINY.flops(checkpointing="non-reentrant").elementwise
    outside = [row for row in plain.terms if row.layer in ("embedding", "output", "loss")]
    assert whole.recompute == plain.forward - sum(r.forward_cost * r.elements for r in outside)
    # The residual after the MLP is all that follows the last product: n·d = 12 per layer.
    assert whole.recompute - early.recompute == 2 * 12


def test_per_token_is_exact():
    model = fc.PerceiverAR(
        vocab_size=1, num_latents=5, num_prefix=1, num_channels=1, num_layers=1, num_heads=1
    )
    # One kept position: keys and values 2·2, scores and values 2·2·5; training 3·24 over 5 tokens.
    assert model.flops().cross_part.per_token == Fraction(72, 5)
    assert isinstance(fc.PerceiverAR(**SEED).flops().per_token, int)


def test_training_run_over_tokens():
    count = fc.PerceiverAR(**SEED, prefix_dropout=0.5).flops(batch_size=80)
    assert count.for_tokens(1_300_000_000) == 291_793_920 * 1_300_000_000
    assert count.for_tokens(1.3e9) == count.for_tokens(1_300_000_000)
    assert count.for_tokens(0) == 0
    with pytest.raises(ValueError, match="num_tokens = -1"):
        count.for_tokens(-1)


def test_utilisation():
    count = fc.PerceiverAR(**SEED, prefix_dropout=0.5).flops(
        batch_size=80, checkpointing="reentrant"
    )
    peak = 989.4e12
    assert count.mfu(seconds=0.05, device="h200") == pytest.approx(count.total / 0.05 / peak)
    assert count.hfu(seconds=0.05, device="h200") == pytest.approx(
        (count.total + count.recompute) / 0.05 / peak
    )
    assert count.mfu(0.05, "h200", num_devices=4) == pytest.approx(count.mfu(0.05, "h200") / 4)
    own = fc.Device("mine", {"fp16": fc.Peak(1e12, "measured")})
    assert count.mfu(100, own, dtype="fp16") == pytest.approx(count.total / 1e14)


def test_dense_is_no_numerator_of_mfu():
    with pytest.raises(ValueError, match="causal"):
        fc.PerceiverAR(**SEED).flops(level="dense").mfu(seconds=1, device="h200")


def test_a_part_that_is_not_covered_is_never_zero():
    count = fc.PerceiverAR(**SEED).flops(convention="kaplan")
    assert count.self_part.total > 0
    for name in ("forward", "backward", "recompute", "total", "per_token", "cross_part"):
        with pytest.raises(NotCoveredError, match="kaplan"):
            getattr(getattr(count, name), "total", None)
    assert count.to_dict()["cross_part"] == "not covered"
    assert "not covered" in str(count)


def test_printed_table_holds_every_term_and_the_total():
    text = str(TINY.flops(checkpointing="reentrant"))
    for line in TINY.flops().terms:
        assert line.term in text
    assert f"{TINY.flops().forward:,}" in text
    assert "recompute" in text
    assert "100.00%" in text


def test_a_prompt_shows_the_table():
    for shown in (TINY.flops(), TINY.flops().elementwise, TINY.params(), fc.compare(TINY)):
        assert repr(shown) == str(shown)


def test_frame_has_one_row_per_term():
    frame = TINY.flops().to_frame()
    assert len(frame) == len(TINY.flops().terms)
    assert frame["total"].sum() == TINY.flops().total
