"""Encoders, and encoders with a decoder, by hand."""

import json

import numpy as np
import pytest
import sympy

import flopcount as fc
from flopcount.cli import main
from flopcount.conventions import CONVENTIONS
from flopcount.encoder_lm import EncoderDecoderLM, EncoderLM

BERT = dict(model_type="bert")
T5 = dict(model_type="t5", d_model=768, d_ff=3072, num_heads=12, num_layers=12)
SMALL = dict(
    model_type="t5", vocab_size=11, d_model=6, d_kv=5, d_ff=7, num_heads=3, num_layers=2,
    num_decoder_layers=4, relative_attention_num_buckets=8,
)  # fmt: skip
D, INNER, F, V = 6, 15, 7, 11
S, N = 9, 5
"""Positions of the encoder and of the decoder."""


def by_term(count):
    found = {}
    for term in count.terms:
        found[term.layer, term.term] = found.get((term.layer, term.term), 0) + term.forward
    return found


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (BERT, 109_514_298),
        (BERT | dict(architectures=["BertForMaskedLM"]), 109_514_298),
        (BERT | dict(architectures=["BertModel"]), 109_482_240),
        (T5, 222_903_552),
        # T5-v1.1-base: a gate, and a head of its own.
        (
            T5 | dict(d_ff=2048, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
            247_577_856,
        ),
    ],
    ids=["BERT-base", "BERT-base for masked tokens", "BERT-base, pooler", "T5-base", "T5-v1.1"],
)
def test_published_parameters(config, parameters):
    assert fc.from_hf(config).params().total == parameters


def test_heads_of_bert():
    d = 768
    masked, pooler = (
        fc.from_hf(BERT | dict(architectures=[name]), 100)
        for name in ("BertForMaskedLM", "BertModel")
    )
    # A transform d² + d with a norm 2d and a bias V of the logits, or a pooler d² + d.
    both = d * d + d
    assert masked.params().total - pooler.params().total == 2 * d + 30522
    encoder = fc.from_hf(BERT, 100).flops("dense").where(lambda term: term.layer == "encoder")
    assert masked.flops("dense").forward - encoder.forward == 2 * 100 * d * (d + 30522)
    # It reads the first position alone.
    assert pooler.flops("dense").forward - encoder.forward == 2 * d * d
    assert pooler.params().total == encoder_parameters(d) + both
    assert not pooler.flops().elementwise.where(lambda term: term.layer == "loss").terms


def encoder_parameters(d):
    """Three tables and their norm, and twelve layers of 12d² with 13d of biases and norms."""
    return (30522 + 512 + 2 + 2) * d + 12 * (12 * d * d + 13 * d)


def test_an_encoder_attends_to_all_positions():
    model = fc.from_hf(BERT, 100)
    assert model.flops("causal").total == model.flops("dense").total
    assert by_term(model.flops())["encoder", "scores"] == 12 * 2 * 100 * 100 * 768


def test_two_stacks_by_hand():
    count = fc.from_hf(SMALL, S, target_len=N).flops()
    causal = N * (N + 1) // 2
    expected = {
        ("encoder", "query"): 2 * 2 * S * D * INNER,
        ("encoder", "key"): 2 * 2 * S * D * INNER,
        ("encoder", "value"): 2 * 2 * S * D * INNER,
        ("encoder", "scores"): 2 * 2 * S * S * INNER,
        ("encoder", "values"): 2 * 2 * S * S * INNER,
        ("encoder", "out"): 2 * 2 * S * D * INNER,
        ("encoder", "mlp up"): 2 * 2 * S * D * F,
        ("encoder", "mlp down"): 2 * 2 * S * D * F,
        ("decoder", "query"): 4 * 2 * N * D * INNER,
        ("decoder", "key"): 4 * 2 * N * D * INNER,
        ("decoder", "value"): 4 * 2 * N * D * INNER,
        ("decoder", "scores"): 4 * 2 * causal * INNER,
        ("decoder", "values"): 4 * 2 * causal * INNER,
        ("decoder", "out"): 4 * 2 * N * D * INNER,
        ("decoder", "cross query"): 4 * 2 * N * D * INNER,
        # Of the encoder's positions, once a sequence and layer.
        ("decoder", "cross key"): 4 * 2 * S * D * INNER,
        ("decoder", "cross value"): 4 * 2 * S * D * INNER,
        ("decoder", "cross scores"): 4 * 2 * N * S * INNER,
        ("decoder", "cross values"): 4 * 2 * N * S * INNER,
        ("decoder", "cross out"): 4 * 2 * N * D * INNER,
        ("decoder", "mlp up"): 4 * 2 * N * D * F,
        ("decoder", "mlp down"): 4 * 2 * N * D * F,
        ("output", "logits"): 2 * N * D * V,
    }
    assert by_term(count) == expected
    assert count.backward == 2 * count.forward


def test_tokens_are_those_of_the_decoder():
    count = fc.from_hf(SMALL, S, target_len=N).flops(batch_size=3)
    assert count.tokens == 3 * N
    assert count.per_token * 3 * N == count.total
    assert count.for_tokens(7 * N) * 3 == 7 * count.total
    # A longer source costs every decoder token more.
    longer = fc.from_hf(SMALL, 2 * S, target_len=N).flops()
    assert longer.per_token > fc.from_hf(SMALL, S, target_len=N).flops().per_token


def test_parameters_of_two_stacks():
    model = fc.from_hf(SMALL)
    attention, mlp = 4 * D * INNER, 2 * D * F
    # Norms: two an encoder layer, three a decoder layer, one behind each stack; a table of biases
    # for each stack.
    expected = V * D + 2 * (attention + mlp + 2 * D) + 4 * (2 * attention + mlp + 3 * D)
    assert model.params().total == expected + 2 * D + 2 * 8 * 3
    assert fc.from_hf(SMALL | dict(tie_word_embeddings=False)).params().total == (
        model.params().total + V * D
    )


def test_what_one_token_of_each_stack_multiplies():
    # As many lengths, so that attention alone is beside it.
    model = fc.from_hf(SMALL, S, target_len=S)
    count = model.flops(training=False)
    attention = sum(
        flops for (_, term), flops in by_term(count).items() if term.endswith(("scores", "values"))
    )
    assert count.forward - attention == 2 * S * model.params().matmul_active
    assert model.params().matmul_active == fc.from_hf(SMALL).params().matmul_active
    assert model.params().model == model


@pytest.mark.parametrize("lengths", [{}, dict(seq_len=4), dict(target_len=4)])
def test_missing_lengths_are_asked_for(lengths):
    model = fc.from_hf(SMALL, **lengths)
    assert model.params().total
    assert "4 layers, decoder" in str(model)
    with pytest.raises(ValueError, match="target_len"):
        model.flops()


def test_conventions_say_nothing_of_two_stacks():
    model = fc.from_hf(SMALL, S, target_len=N)
    assert {row.total for row in fc.compare(model).rows[2:]} == {"not covered"}
    for name in CONVENTIONS:
        assert model.flops(convention=name).not_covered == {"self"}
    # An encoder alone is one stack: rules that speak of parameters cover it.
    covered = {row.name for row in fc.compare(fc.from_hf(BERT, 64)).rows if row.self_ratio}
    assert {"6n", "palm"} <= covered


@pytest.mark.parametrize(
    ("config", "options", "said"),
    [
        (BERT | dict(is_decoder=True), {}, "is_decoder"),
        (BERT | dict(position_embedding_type="relative_key"), {}, "position_embedding_type"),
        (BERT | dict(tie_word_embeddings=False), {}, "tie_word_embeddings"),
        (BERT | dict(architectures=["BertForPreTraining"]), {}, "BertForPreTraining"),
        (BERT, dict(target_len=3), "target_len = 3"),
        (dict(model_type="llama"), dict(target_len=3), "target_len = 3"),
        (T5 | dict(feed_forward_proj="gated-sine"), {}, "feed_forward_proj"),
        (T5 | dict(feed_forward_proj=3), {}, "feed_forward_proj"),
        (T5 | dict(is_encoder_decoder=False), {}, "is_encoder_decoder"),
        (T5 | dict(architectures=["T5EncoderModel"]), {}, "T5EncoderModel"),
    ],
)
def test_what_is_not_modelled_is_refused(config, options, said):
    with pytest.raises(ValueError, match=said):
        fc.from_hf(config, 16, **options)


def test_activations_of_t5():
    read = {
        name: fc.from_hf(SMALL | dict(feed_forward_proj=name))
        for name in ("relu", "gelu", "gated-gelu", "gated-silu")
    }
    assert {name: (model.gated, model.activation) for name, model in read.items()} == {
        "relu": (False, "relu"),
        "gelu": (False, "gelu"),
        "gated-gelu": (True, "gelu_tanh"),
        "gated-silu": (True, "silu"),
    }


def test_scores_are_not_scaled_but_have_a_bias():
    work = fc.from_hf(SMALL, S, target_len=N).flops().elementwise.terms
    by_name = {(term.layer, term.term): term.elements for term in work}
    assert not any(term.endswith("query scale") for _, term in by_name)
    assert by_name["encoder", "score bias"] == 2 * 3 * S * S
    assert by_name["decoder", "score bias"] == 4 * 3 * N * (N + 1) // 2
    assert ("decoder", "cross score bias") not in by_name
    # Three layers beyond the first add to what the encoder's output gets.
    assert by_name["decoder", "source gradients"] == 3 * S * D


def test_arrays_and_symbols():
    s, n = sympy.symbols("s n", integer=True, positive=True)
    sizes = dict(
        vocab_size=V, num_channels=D, num_layers=2, num_heads=3, head_dim=5, intermediate_size=F,
        num_decoder_layers=4,
    )  # fmt: skip
    whole = fc.from_hf(SMALL, S, target_len=N).flops().total
    symbolic = EncoderDecoderLM(**sizes, seq_len=s, target_len=n).flops().total
    assert symbolic.subs({s: S, n: N}) == whole
    lengths = np.array([S, 2 * S])
    array = EncoderDecoderLM(**sizes, seq_len=lengths, target_len=N).flops().total
    assert list(array) == [whole, fc.from_hf(SMALL, 2 * S, target_len=N).flops().total]
    d = sympy.Symbol("d", integer=True, positive=True)
    bert = EncoderLM(
        vocab_size=V, num_channels=d, num_layers=2, num_heads=1, intermediate_size=F, seq_len=n
    )
    assert (
        bert.flops("dense").forward.subs({d: D, n: N})
        == EncoderLM(
            vocab_size=V, num_channels=D, num_layers=2, num_heads=1, intermediate_size=F, seq_len=N
        )
        .flops("dense")
        .forward
    )


def test_the_command_line_takes_both_lengths(tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SMALL), encoding="utf-8")
    assert main(["count", str(path), "--seq-len", "9", "--target-len", "5", "--json"]) in (0, None)
    found = json.loads(capsys.readouterr().out)
    assert found["whole"]["total"] == fc.from_hf(SMALL, S, target_len=N).flops().total
