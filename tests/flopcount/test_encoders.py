"""Encoders, and encoders with a decoder, by hand."""

import dataclasses
import json

import numpy as np
import pytest
import sympy

import flopcount as fc
from flopcount.blocks import Attention
from flopcount.cli import main
from flopcount.conventions import CONVENTIONS
from flopcount.encoder_lm import CrossAttention, EncoderDecoderLM, EncoderLM
from flopcount.operations import Pass
from flopcount.rows import Work

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
    params = fc.from_hf(config).params()
    # No prefix: all of it is the self part.
    assert params.total == params.self_part.total == parameters


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


def elementwise(count):
    """Elements and costs of element-wise work, by layer and term; a term may stand twice."""
    return sorted(
        (term.layer, term.term, term.elements, term.forward_cost, term.backward_cost)
        for term in count.elementwise.terms
    )


def test_element_wise_work_of_two_stacks_by_hand():
    pairs = N * (N + 1) // 2
    count = fc.from_hf(SMALL, S, target_len=N).flops()
    assert elementwise(count) == sorted([
        # Both stacks look up tokens, and both add to the table's gradient.
        ("embedding", "embedding", S * D, 0, 1),
        ("embedding", "embedding", N * D, 0, 1),
        ("encoder", "norm", 2 * S * D, 4, 9),
        ("encoder", "projection input gradients", 2 * S * D, 0, 2),
        # Scores are not scaled, but have a bias.
        ("encoder", "score bias", 2 * 3 * S * S, 1, 1),
        ("encoder", "softmax", 2 * 3 * S * S, 5, 4),
        ("encoder", "attention residual", 2 * S * D, 1, 1),
        ("encoder", "mlp norm", 2 * S * D, 4, 9),
        ("encoder", "relu", 2 * S * F, 1, 1),
        ("encoder", "mlp residual", 2 * S * D, 1, 1),
        ("encoder output", "final norm", S * D, 4, 9),
        # Three decoder layers beyond the first add to what the encoder's output gets.
        ("decoder", "source gradients", 3 * S * D, 0, 1),
        ("decoder", "norm", 4 * N * D, 4, 9),
        ("decoder", "projection input gradients", 4 * N * D, 0, 2),
        ("decoder", "score bias", 4 * 3 * pairs, 1, 1),
        ("decoder", "softmax", 4 * 3 * pairs, 5, 4),
        ("decoder", "attention residual", 4 * N * D, 1, 1),
        ("decoder", "cross norm", 4 * N * D, 4, 9),
        # Keys and values read the encoder's output.
        ("decoder", "cross projection input gradients", 4 * S * D, 0, 1),
        ("decoder", "cross softmax", 4 * 3 * N * S, 5, 4),
        ("decoder", "cross residual", 4 * N * D, 1, 1),
        ("decoder", "mlp norm", 4 * N * D, 4, 9),
        ("decoder", "relu", 4 * N * F, 1, 1),
        ("decoder", "mlp residual", 4 * N * D, 1, 1),
        ("output", "final norm", N * D, 4, 9),
        ("output", "output scale", N * D, 1, 1),
        ("loss", "cross-entropy", N * V, 5, 4),
        ("output", "tied embedding gradient", V * D, 0, 1),
    ])  # fmt: skip
    untied = fc.from_hf(SMALL | dict(tie_word_embeddings=False), S, target_len=N).flops()
    tied_only = {"output scale", "tied embedding gradient"}
    assert elementwise(untied) == [row for row in elementwise(count) if row[1] not in tied_only]


def test_element_wise_work_of_an_encoder_by_hand():
    sizes = dict(
        vocab_size=V, num_channels=D, num_layers=2, num_heads=3, intermediate_size=F, seq_len=N,
        num_positions=12, token_types=2,
    )  # fmt: skip
    inside = [
        ("embedding", "token type", N * D, 1, 1),
        ("embedding", "embedding", N * D, 1, 2),
        ("embedding", "embedding norm", N * D, 7, 13),
        ("encoder", "query bias", 2 * N * D, 1, 1),
        ("encoder", "key bias", 2 * N * D, 1, 1),
        ("encoder", "value bias", 2 * N * D, 1, 1),
        ("encoder", "projection input gradients", 2 * N * D, 0, 2),
        ("encoder", "query scale", 2 * N * D, 1, 1),
        ("encoder", "softmax", 2 * 3 * N * N, 5, 4),
        ("encoder", "out bias", 2 * N * D, 1, 1),
        ("encoder", "attention residual", 2 * N * D, 1, 1),
        ("encoder", "norm", 2 * N * D, 7, 13),
        ("encoder", "mlp up bias", 2 * N * F, 1, 1),
        ("encoder", "gelu", 2 * N * F, 5, 11),
        ("encoder", "mlp down bias", 2 * N * D, 1, 1),
        ("encoder", "mlp residual", 2 * N * D, 1, 1),
        ("encoder", "mlp norm", 2 * N * D, 7, 13),
    ]
    masked = [
        ("output", "transform bias", N * D, 1, 1),
        ("output", "transform gelu", N * D, 5, 11),
        ("output", "transform norm", N * D, 7, 13),
        ("output", "logits bias", N * V, 1, 1),
        ("loss", "cross-entropy", N * V, 5, 4),
        ("output", "tied embedding gradient", V * D, 0, 1),
    ]
    # Of the first position alone.
    pooler = [("output", "pooler bias", D, 1, 1), ("output", "pooler tanh", D, 1, 3)]
    for head, rows in (("masked", masked), ("pooler", pooler)):
        assert elementwise(EncoderLM(**sizes, head=head).flops()) == sorted(inside + rows)
    plain = EncoderLM(**sizes | dict(token_types=None)).flops()
    assert not [row for row in elementwise(plain) if row[1] == "token type"]


def test_scaled_queries_attend_across():
    attention = Attention(6, 2, 2, 3, 6, 6)
    found = {
        scale: [
            (row.term, row.factors, row.forward_cost, row.backward_cost)
            for row in CrossAttention(dataclasses.replace(attention, scale=scale), 5).rows(
                Pass(2, 4)
            )
            if isinstance(row, Work) and "scale" in row.term
        ]
        for scale in (True, False)
    }
    assert found == {True: [("cross query scale", (2, 4, 6), 1, 1)], False: []}


def test_defaults_are_those_of_the_first_models():
    t5 = EncoderDecoderLM(
        vocab_size=32128, num_channels=768, num_layers=12, num_heads=12, head_dim=64,
        intermediate_size=3072,
    )  # fmt: skip
    bert = EncoderLM(
        vocab_size=30522, num_channels=768, num_layers=12, num_heads=12, intermediate_size=3072,
        num_positions=512, token_types=2,
    )  # fmt: skip
    assert t5.params().total == fc.from_hf(T5).params().total
    assert bert.params().total == fc.from_hf(BERT).params().total
    assert {"seq_len", "target_len", "num_heads"} <= set(t5.lettered())


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
