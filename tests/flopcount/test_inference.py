"""Prompts, decoding and caches: by hand, as sums of passes, and as one pass over all positions."""

import dataclasses
import functools
import itertools
import os
from fractions import Fraction
from unittest import mock

import numpy as np
import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

import flopcount as fc
from flopcount.encoder_lm import EncoderDecoderLM, EncoderLM
from flopcount.hybrid_lm import DeltaNetLM, LightningLM, Mamba1LM, Mamba2LM
from flopcount.inference import BITS, expected_tokens_per_round
from flopcount.mixture_lm import MixtureLM

SMALL = dict(vocab_size=11, num_channels=8, num_layers=2, num_heads=2)
LLAMA = fc.Llama(
    **SMALL, seq_len=99, num_key_value_heads=1, head_dim=6, intermediate_size=10
)  # fmt: skip
COMMON = dict(vocab_size=11, num_channels=8, num_layers=5, num_heads=4, intermediate_size=9)
EXPERTS = dict(num_experts=3, experts_per_token=2, expert_size=7)
LATENTS = dict(
    key_value_rank=5, plain_dim=3, rotary_dim=4, value_dim=2, query_rank=6, mlp=("dense", "sparse")
)  # fmt: skip
DECODER = fc.Decoder(**SMALL, seq_len=99)
GEMMA = fc.CausalLM(**COMMON, attention=("sliding", "full"), window=3, norm_placement="both",
                    attention_softcap=True, logit_softcap=True, sinks=True)  # fmt: skip
LLAMA_4 = MixtureLM(**COMMON, **EXPERTS, attention=("chunked", "chunked", "full"), chunk=4,
                    shared_size=6)  # fmt: skip
DEEPSEEK = MixtureLM(**COMMON, **EXPERTS, **LATENTS, num_predictions=1)
OPT = fc.CausalLM(**COMMON, positions=("none",), num_positions=99, embedding_channels=5,
                  gated=False)  # fmt: skip
SCAN = dict(mixers=("scan", "attention"), mlp=("dense", "sparse"))
MAMBA_2 = Mamba2LM(vocab_size=11, num_channels=8, num_layers=2, num_heads=4, head_dim=3, state=5,
                   head_groups=2, taps=3, chunk=4)  # fmt: skip
SCANS = [
    LightningLM(**COMMON, **EXPERTS, **SCAN, scan_chunk=4),
    DeltaNetLM(**COMMON, **EXPERTS, **SCAN, scan_key_heads=2, scan_value_heads=4, scan_key_dim=3,
               scan_value_dim=5, taps=3, scan_chunk=4),
    Mamba1LM(**COMMON, **EXPERTS, **SCAN, scan_channels=6, scan_state=3, scan_rank=2, taps=3),
    MAMBA_2,
]  # fmt: skip
ATTENDING = [DECODER, LLAMA, GEMMA, LLAMA_4, DEEPSEEK, OPT]
MODELS = [*ATTENDING, *SCANS]
T5 = EncoderDecoderLM(**COMMON, num_decoder_layers=3, seq_len=6)
BERT = EncoderLM(**COMMON)
PERCEIVER = fc.PerceiverAR(**SMALL, num_latents=6, num_prefix=5)


def by_term(*counts):
    """Forward FLOPs and element-wise work of counts, term by term."""
    found = {}
    for term in itertools.chain.from_iterable(
        (*count.terms, *count.elementwise.terms) for count in counts
    ):
        name = type(term).__name__, term.part, term.layer, term.term
        found[name] = found.get(name, 0) + term.forward
    return {name: flops for name, flops in found.items() if flops}


def without_predictions(model):
    return dataclasses.replace(model, num_predictions=None) if model is DEEPSEEK else model


def test_a_prompt_by_hand():
    # Two layers; of each of 3 positions 8·12 for queries and output, 8·6 for keys and values, three
    # products of 8·10; two heads of 6 channels twice for 1 + 2 + 3 pairs; logits of one position.
    layer = 3 * (2 * 8 * 12 + 2 * 8 * 6 + 3 * 8 * 10) + 2 * 2 * 6 * (1 + 2 + 3)
    assert LLAMA.prefill(3).total == 2 * (2 * layer + 8 * 11)
    assert LLAMA.prefill(3, logits="all").total == 2 * (2 * layer + 3 * 8 * 11)
    assert LLAMA.prefill(3, logits=2).total == 2 * (2 * layer + 2 * 8 * 11)
    square = layer + 2 * 2 * 6 * 3
    assert LLAMA.prefill(3, "dense", batch_size=5).total == 5 * 2 * (2 * square + 8 * 11)
    # In passes of 2 and 1 positions: 2·2 and 1·3 pairs, and logits of the last of each.
    chunks = layer + 2 * 2 * 6 * (4 + 3 - 6)
    assert LLAMA.prefill(3, "dense", chunk=2).total == 2 * (2 * chunks + 2 * 8 * 11)


def test_decoding_by_hand():
    # Two positions behind 3, which meet 4 and 5 keys.
    layer = 2 * (2 * 8 * 12 + 2 * 8 * 6 + 3 * 8 * 10) + 2 * 2 * 6 * (4 + 5)
    for level in ("causal", "dense"):
        assert LLAMA.decode(2, level, cached=3).total == 2 * (2 * layer + 2 * 8 * 11)
    whole = LLAMA.generate(3, 3, batch_size=2)
    assert whole.total == 2 * (LLAMA.prefill(3).total + LLAMA.decode(2, cached=3).total)
    assert whole.tokens == 2 * 5
    assert LLAMA.generate(3, 1).total == LLAMA.prefill(3).total
    assert str(whole).startswith("FLOPs of Llama, level causal, 3 tokens after 3, batch of 2")
    assert whole.to_dict()["request"] == "3 tokens after 3"
    for count, request in (
        (LLAMA.decode(2, cached=3), "decoding of 2 behind 3"),
        (LLAMA.decode(2, cached=1), "decoding of 2 behind 1"),
        (LLAMA.decode(2, cached=0), "decoding of 2"),
        (LLAMA.prefill(2), "prefill of 2"),
    ):
        assert count.to_dict()["request"] == request


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
@settings(max_examples=15)
@given(prompt=st.integers(1, 12), new=st.integers(1, 12), batch=st.integers(1, 3))
def test_reading_and_decoding_is_one_pass_over_all(model, prompt, new, batch):
    mla = {"mla": "expanded"} if model is DEEPSEEK else {}
    passes = (
        model.prefill(prompt, logits="all", batch_size=batch, **mla),
        model.decode(new, cached=prompt, batch_size=batch, **mla),
    )
    whole = dataclasses.replace(without_predictions(model), seq_len=prompt + new)
    assert by_term(*passes) == by_term(whole.flops(training=False, batch_size=batch))
    both = passes[0] + passes[1]
    assert by_term(both) == by_term(*passes)
    assert both.tokens == batch * (prompt + new)
    assert (both.elementwise.total, both.total) == (
        sum(count.elementwise.total for count in passes), sum(count.total for count in passes)
    )  # fmt: skip


@settings(max_examples=15)
@given(prompt=st.integers(1, 12), new=st.integers(1, 12))
def test_so_it_is_with_an_encoder(prompt, new):
    # The decoder reads a token of its own, then those that it makes but the last.
    whole = dataclasses.replace(T5, seq_len=prompt, target_len=new)
    made = T5.generate(prompt, new)
    assert by_term(made) == by_term(whole.flops(training=False))
    assert made.tokens == new
    given_len = dataclasses.replace(T5, seq_len=prompt)
    assert by_term(made) == by_term(
        T5.prefill(prompt), *([given_len.decode(new - 1, cached=1)] if new > 1 else [])
    )


def test_a_prompt_of_another_length_than_the_encoder_was_given():
    assert T5.seq_len == 6
    whole = dataclasses.replace(T5, seq_len=4, target_len=3)
    assert by_term(T5.prefill(4)) == by_term(whole.prefill(4))
    assert by_term(T5.generate(4, 3)) == by_term(whole.flops(training=False))


def test_rows_of_positions_that_no_token_has():
    model = dataclasses.replace(OPT, spare_positions=2)
    assert model.prefill(97).total > 0
    with pytest.raises(ValueError, match=r"prompt_len = 98: expected at most .* = 97"):
        model.prefill(98)


def test_keys_of_an_encoder_are_made_once():
    # Six positions of the encoder, read by 3 layers: 2·8·8 for keys and values, none behind it.
    made = {term.term: term.forward for term in T5.prefill(6).terms if term.layer == "decoder"}
    assert made["cross key"] + made["cross value"] == 2 * 3 * 6 * 2 * 8 * 8
    later = {term.term for term in T5.decode(4, cached=1).terms if term.forward}
    assert {"cross query", "cross scores"} <= later
    assert not {"cross key", "cross value"} & later
    assert "encoder" not in {term.layer for term in T5.decode(4, cached=1).terms if term.forward}
    # Of three layers, keys and values of 5 positions and of the encoder's 6.
    assert T5.cache(5).elements == 3 * 2 * 8 * (5 + 6)


@pytest.mark.parametrize(
    ("positions", "num_latents", "latents", "prefix"),
    [
        (4, None, 1, 3),  # one latent at least
        (6, None, 1, 5),
        (9, None, 4, 5),  # what no longer fits the prefix
        (15, None, 6, 5),  # beginning left out
        (8, 2, 2, 5),
        (4, 3, 3, 1),
        (3, 3, 3, 0),
    ],
)
def test_latents_and_prefix_of_a_prompt(positions, num_latents, latents, prefix):
    prompt = PERCEIVER.prefill(positions, logits="all", num_latents=num_latents)
    whole = dataclasses.replace(PERCEIVER, num_latents=latents, num_prefix=prefix)
    assert by_term(prompt) == by_term(whole.flops(training=False))
    if latents == 6:
        return
    # A new token attends to the prefix and to the latents before it; it embeds itself alone.
    later = PERCEIVER.decode(1, cached=positions, num_latents=num_latents)
    longer = dataclasses.replace(whole, num_latents=latents + 1)
    assert by_term(prompt, later) == by_term(longer.flops(training=False))
    assert not any(term.layer == "embedding" and term.part == "cross" and term.forward
                   for term in later.elementwise.terms)  # fmt: skip


def test_new_tokens_behind_a_prompt_with_more_latents_than_it_needs():
    asked = PERCEIVER.generate(7, 2, num_latents=4)
    passes = PERCEIVER.prefill(7, num_latents=4), PERCEIVER.decode(1, cached=7, num_latents=4)
    assert by_term(asked) == by_term(*passes) != by_term(PERCEIVER.generate(7, 2))


def test_positions_beyond_the_table_are_refused_by_its_name():
    longer = dataclasses.replace(DECODER, seq_len=8, num_positions=10)
    assert longer.decode(1, cached=9).total > 0
    with pytest.raises(ValueError, match="at most num_positions = 10"):
        longer.decode(1, cached=10)
    with pytest.raises(ValueError, match="at most seq_len = 8"):
        dataclasses.replace(DECODER, seq_len=8).decode(1, cached=8)


@settings(max_examples=30)
@given(prefix=st.integers(0, 5), latents=st.integers(1, 6), new=st.integers(1, 6), data=st.data())
def test_so_it_is_with_a_prefix(prefix, latents, new, data):
    kept = data.draw(st.integers(1, latents))
    model = fc.PerceiverAR(**SMALL, num_latents=latents + new, num_prefix=prefix)
    prompt = prefix + latents
    passes = (
        model.prefill(prompt, logits="all", num_latents=latents),
        model.decode(new, cached=prompt, num_latents=latents),
    )
    assert by_term(*passes) == by_term(model.flops(training=False))
    split = model.prefill(prefix + kept, logits="all", num_latents=kept) + model.decode(
        latents - kept + new, cached=prefix + kept, num_latents=kept
    )
    assert by_term(split) == by_term(*passes)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
@settings(max_examples=15)
@given(cached=st.integers(0, 9), new=st.integers(1, 9))
def test_dense_decoding_is_the_sum_of_its_steps(model, cached, new):
    forms = ("expanded", "latent", "absorbed") if model is DEEPSEEK else (None,)
    for mla in forms:
        steps = (model.decode(1, "dense", cached=cached + i, mla=mla) for i in range(new))
        whole = model.decode(new, "dense", cached=cached, mla=mla)
        assert by_term(whole) == by_term(*steps)


@pytest.mark.parametrize("model", ATTENDING, ids=lambda model: type(model).__name__)
@pytest.mark.parametrize("level", ["causal", "dense"])
@settings(max_examples=15)
@given(prompt=st.integers(1, 12), chunk=st.integers(1, 13), cached=st.integers(0, 9))
def test_a_prompt_in_chunks_is_the_sum_of_its_passes(model, level, prompt, chunk, cached):
    forms = ("expanded", "latent", "absorbed") if model is DEEPSEEK else (None,)
    for mla in forms:
        whole = model.prefill(prompt, level, chunk=chunk, cached=cached, mla=mla)
        passes = (
            model.prefill(min(chunk, prompt - begin), level, cached=cached + begin, mla=mla)
            for begin in range(0, prompt, chunk)
        )
        assert by_term(whole) == by_term(*passes)


def test_keys_of_an_earlier_chunk_are_multiplied_but_not_admitted():
    # Chunks of 4; position 6 admits 5 and 6, while the cache has three positions before it.
    def pairs(level):
        count = LLAMA_4.decode(1, level, cached=5)
        scores = next(term for term in count.terms if term.layer.startswith("chunked")
                      and term.term == "scores")  # fmt: skip
        return scores.rows[0].pairs

    assert (pairs("causal"), pairs("dense")) == (2, 4)


def test_forms_of_latent_attention_by_hand():
    layers, heads, a, b, v, rank = 5, 4, 3, 4, 2, 5

    def of(mla, **terms):
        count = DEEPSEEK.decode(2, cached=6, mla=mla)
        found = {}
        for term in count.terms:
            found[term.term] = found.get(term.term, 0) + term.forward
        for name in ("key-value up", "scores", "values", "query absorbed", "value up"):
            assert found.get(name, 0) == 2 * layers * terms.get(name.replace(" ", "_").replace(
                "-", "_"), 0), (mla, name)  # fmt: skip

    # Two positions, which meet 7 and 8 keys.
    up = rank * heads * (a + v)
    attention = dict(scores=heads * 15 * (a + b), values=heads * 15 * v)
    of("expanded", key_value_up=2 * up, **attention)
    of("latent", key_value_up=15 * up, **attention)
    of("absorbed", scores=heads * 15 * (rank + b), values=heads * 15 * rank,
       query_absorbed=2 * heads * a * rank, value_up=2 * heads * v * rank)  # fmt: skip


def test_a_prompt_for_absorbed_decoding_is_read_with_latents_expanded():
    parts = DEEPSEEK.prefill(6, mla="latent"), DEEPSEEK.decode(3, cached=6, mla="absorbed")
    assert by_term(DEEPSEEK.generate(6, 4, mla="absorbed")) == by_term(*parts)
    assert DEEPSEEK.generate(6, 4).total == DEEPSEEK.generate(6, 4, mla="latent").total
    # Of keys and values that are kept, a chunk makes none again.
    parts = (
        DEEPSEEK.prefill(6, mla="expanded", chunk=2),
        DEEPSEEK.decode(3, cached=6, mla="expanded"),
    )
    assert by_term(DEEPSEEK.generate(6, 4, mla="expanded", chunk=2)) == by_term(*parts)


def test_modules_that_predict_further_tokens_are_not_run():
    assert "mtp" not in {term.layer for term in DEEPSEEK.generate(3, 3).terms}
    assert "mtp" in {term.layer for term in dataclasses.replace(DEEPSEEK, seq_len=3).flops().terms}


def test_caches_by_hand():
    # Keys and values of one head of 6 channels in two layers.
    assert LLAMA.cache(7, batch_size=3).elements == 3 * 7 * 2 * 6 * 2
    # Three of five layers keep two positions of at most three, the others all.
    assert GEMMA.cache(7).elements == (3 * 2 + 2 * 7) * 2 * 8
    assert GEMMA.cache(1).elements == 5 * 2 * 8
    assert LLAMA_4.cache(9).elements == (4 * 3 + 1 * 9) * 2 * 8
    assert DEEPSEEK.cache(9, mla="expanded").elements == 5 * 9 * 4 * (3 + 4 + 2)
    for mla in (None, "latent", "absorbed"):
        assert DEEPSEEK.cache(9, mla=mla).elements == 5 * 9 * (5 + 4)
    # A state of 4·3·5 and three inputs of 12 + 2·2·5 channels in each of two layers.
    assert MAMBA_2.cache(9).elements == MAMBA_2.cache(1).elements == 2 * (60 + 3 * 32)
    # Three layers of scans have a state of each head alone, two of attention keep all positions.
    lightning, delta = dataclasses.replace(SCANS[0], head_dim=3), SCANS[1]
    assert lightning.cache(9).elements == 3 * 4 * 3 * 3 + 2 * 9 * 2 * 12
    # Four value heads of 3·5, three inputs of 2·2·3 + 4·5 channels.
    assert delta.cache(9).elements == 3 * (4 * 3 * 5 + 3 * 32) + 2 * 9 * 2 * 8
    # Nine positions: five of prefix in the hybrid layer alone, four latents in both.
    assert PERCEIVER.cache(9).elements == (5 + 2 * 4) * 2 * 8


def test_published_caches():
    # "Insights into DeepSeek-V3" (arXiv 2505.09343), table 1: KB per token in bf16.
    deepseek = fc.from_hf({"model_type": "deepseek_v3"})
    assert deepseek.cache(1).bytes("bf16") == 70_272
    llama = fc.from_hf(dict(
        model_type="llama", vocab_size=128256, hidden_size=16384, intermediate_size=53248,
        num_hidden_layers=126, num_attention_heads=128, num_key_value_heads=8,
    ))  # fmt: skip
    assert llama.cache(1).bytes("bf16") == 516_096
    qwen = fc.from_hf(dict(
        model_type="qwen2", vocab_size=152064, hidden_size=8192, intermediate_size=29568,
        num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8,
    ))  # fmt: skip
    assert qwen.cache(1).bytes() == 327_680


A_CACHE = """\
Cache of Llama behind 3 positions, batch of 2
 part    layer     name     elements
─────────────────────────────────────
 self    decoder   keys           72
 self    decoder   values         72

 total                           144
288 bytes in bf16, 144 bytes in fp8, 72 bytes in int4"""


def test_a_printed_cache():
    kept = LLAMA.cache(3, batch_size=2)
    assert str(kept) == A_CACHE
    assert (kept.batch_size, kept.positions) == (2, 3)
    # Where a line is too short, what names a row stays beside its number.
    with mock.patch.dict(os.environ, COLUMNS="32"):
        assert "keys        72" in str(kept)


def test_bytes_of_a_cache():
    kept = LLAMA.cache(3)
    assert kept.elements == 72
    assert {dtype: kept.bytes(dtype) for dtype in ("fp32", "bf16", "int8", "int4")} == {
        "fp32": 288, "bf16": 144, "int8": 72, "int4": 36,
    }  # fmt: skip
    assert kept.to_dict()["bytes"] == {dtype: 72 * bits // 8 for dtype, bits in BITS.items()}
    assert "144 bytes in bf16, 72 bytes in fp8, 36 bytes in int4" in str(kept)
    with pytest.raises(ValueError, match="dtype = 'int3': expected one of 'fp64'"):
        kept.bytes("int3")
    sizes = LLAMA.cache(np.array([1, 2**61])).bytes("fp64")
    assert list(sizes) == [24 * 8, 24 * 8 * 2**61]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
@pytest.mark.parametrize("level", ["causal", "dense"])
def test_arrays_and_symbols_are_what_their_numbers_are(model, level):
    prompts, news = np.array([1, 5, 9, 2]), np.array([4, 1, 3, 7])
    counts = [
        (model.prefill(p, level, logits="all"), model.decode(n, level, cached=p),
         model.generate(p, n, level))
        for p, n in zip(prompts.tolist(), news.tolist(), strict=True)
    ]  # fmt: skip
    of_arrays = (
        model.prefill(prompts, level, logits="all"),
        model.decode(news, level, cached=prompts),
        model.generate(prompts, news, level),
    )
    p, n = sympy.symbols("p n", integer=True, positive=True)
    of_symbols = (
        model.prefill(p, level, logits="all"), model.decode(n, level, cached=p),
        model.generate(p, n, level),
    )  # fmt: skip
    for index, numbers in enumerate(zip(*counts, strict=True)):
        totals = [count.total for count in numbers]
        assert list(of_arrays[index].total) == totals
        for prompt, new, total in zip(prompts, news, totals, strict=True):
            values = {p: int(prompt), n: int(new)}
            assert of_symbols[index].total.subs(values) == total
    kept = model.cache(prompts).elements
    expected = [model.cache(length).elements for length in prompts.tolist()]
    assert list(np.broadcast_to(kept, prompts.shape)) == expected


def test_chunks_in_arrays():
    prompts, chunks = np.array([1, 5, 9, 2]), np.array([3, 2, 4, 9])
    found = GEMMA.prefill(prompts, "dense", chunk=chunks, cached=np.array([0, 1, 2, 3])).total
    assert list(found) == [
        GEMMA.prefill(p, "dense", chunk=c, cached=cached).total
        for p, c, cached in zip(prompts.tolist(), chunks.tolist(), range(4), strict=True)
    ]


def test_what_int64_does_not_hold_is_exact():
    huge = np.array([2**20, 2**33])
    one, other = LLAMA.prefill(huge), LLAMA.decode(huge, cached=huge)
    both = one + other
    assert [int(total) for total in both.total] == [
        LLAMA.prefill(n).total + LLAMA.decode(n, cached=n).total for n in (2**20, 2**33)
    ]
    # Each fits, their sum does not.
    near = np.array([1, 2**27])
    counts = [LLAMA.decode(near, cached=5) for _ in range(50)]
    alone = LLAMA.decode(2**27, cached=5).total
    assert 2**62 > alone > 2**63 / 50
    assert int(counts[0].plus(*counts[1:]).total[1]) == 50 * alone


@pytest.mark.parametrize("share", [3.5, 2.0])
def test_sums_of_training_steps_are_exact_where_the_parts_still_fit(share):
    # With recomputation a step is nearly four times its forward pass. As many are added that
    # int64 holds the sum of 3.5 (2) of these four, and not all (not three).
    forward = LLAMA.flops().forward
    batches = np.array([1, 2**56 // forward])
    step = LLAMA.flops(batch_size=batches, checkpointing="reentrant")
    assert step.total.dtype == np.int64
    number = int(2**63 / (share * 2**56))
    steps = step.plus(*[step] * (number - 1))
    one = LLAMA.flops(batch_size=int(batches[1]), checkpointing="reentrant")
    assert (int(steps.total[1]), int(steps.with_recompute[1])) == (
        number * one.total, number * one.with_recompute
    )  # fmt: skip


def test_terms_of_sums_have_the_products_of_both():
    passes = LLAMA.prefill(3), LLAMA.decode(2, cached=3)
    for term in (passes[0] + passes[1]).terms:
        assert sum(row.flops for row in term.rows) == term.forward


def test_only_counts_of_the_same_are_added():
    count = LLAMA.decode(2, cached=3)
    for other, name in (
        (DECODER.decode(2, cached=3), "model"),
        (LLAMA.decode(2, "dense", cached=3), "level"),
        (LLAMA.flops(), "training"),
        (count.self_part, "part"),
        (LLAMA.flops(convention="6n", training=False), "level"),
    ):
        with pytest.raises(ValueError, match=f"counts of {name} = .*: expected one and the same"):
            count + other
    with pytest.raises(ValueError, match="counts of batch_size = 1 and 2: expected one"):
        count + LLAMA.decode(2, cached=3, batch_size=2)
    with pytest.raises(TypeError):
        count + 1
    with pytest.raises(TypeError, match="unsupported operand"):
        count - 1
    of_parts = PERCEIVER.prefill(6).cross_part + PERCEIVER.decode(1, cached=6).cross_part
    assert of_parts.total == (PERCEIVER.prefill(6) + PERCEIVER.decode(1, cached=6)).cross_part.total
    conventions = LLAMA.flops(convention="6n") + LLAMA.flops(convention="6n")
    assert conventions.total == 2 * LLAMA.flops(convention="6n").total
    assert conventions.elementwise is None


def test_a_draft_by_its_passes():
    draft = fc.CausalLM(**COMMON)
    counted = GEMMA.generate(7, 8, "dense", draft=(draft, 3, [1, 3, 1]), batch_size=2)
    own = dict(level="dense", batch_size=2)
    # 7 + 3 positions and four logits; 1 + 1 tokens are there. 1 + 3 behind 8; 4 more. In the last
    # round one is proposed, since two are left to make.
    target = [
        GEMMA.prefill(10, logits=4, **own),
        GEMMA.prefill(4, cached=8, logits=4, **own),
        GEMMA.prefill(2, cached=12, logits=2, **own),
    ]
    proposing = [
        draft.prefill(7, **own), draft.decode(2, cached=7, **own),
        draft.prefill(2, cached=7, **own), draft.decode(2, cached=9, **own),
        draft.prefill(2, cached=11, **own),
    ]  # fmt: skip
    mine = counted.where(lambda term: not term.layer.startswith("draft "))
    assert mine.total == sum(count.total for count in target)
    assert counted.total - mine.total == sum(count.total for count in proposing)
    assert counted.elementwise.total == sum(
        count.elementwise.total for count in (*target, *proposing)
    )
    assert {row.layer for term in counted.terms for row in term.rows} == {
        term.layer for term in counted.terms
    }
    assert "8 tokens after 7, 3 drafted a round" in str(counted)


def test_every_part_of_a_draft_follows_the_form_of_latent_attention():
    def parts(mla, draft=DEEPSEEK):
        counted = DEEPSEEK.generate(7, 4, mla=mla, draft=(draft, 2, [1, 1]))
        mine = counted.where(lambda term: not term.layer.startswith("draft "))
        return mine.total, counted.total - mine.total

    for mla in ("expanded", "latent", "absorbed", None):
        # Three of the prompt and two proposed; then, two made, one proposed: 1 + 1 behind 8.
        prompt, form = "expanded" if mla == "expanded" else "latent", mla or "latent"
        target = [
            DEEPSEEK.prefill(9, logits=3, mla=prompt),
            DEEPSEEK.prefill(2, cached=8, logits=2, mla=form),
        ]
        proposing = [
            DEEPSEEK.prefill(7, mla=prompt), DEEPSEEK.decode(1, cached=7, mla=form),
            DEEPSEEK.prefill(2, cached=7, mla=form),
        ]  # fmt: skip
        assert parts(mla) == (sum(c.total for c in target), sum(c.total for c in proposing))
    assert parts("latent") != parts("absorbed") != parts("expanded") != parts("latent")
    # A draft of six layers that caches keys saves, in each, 2·512·128·(128 + 128) FLOPs of every
    # position behind which it reads: 100 in the first round, then 101 and 103.
    six = fc.from_hf({"model_type": "deepseek_v3", "num_hidden_layers": 6})
    latent, expanded = (
        six.generate(100, 6, mla=mla, draft=(six, 2, [2, 2]))
        .where(lambda term: term.layer.startswith("draft "))
        .total
        for mla in ("latent", "expanded")
    )
    assert latent - expanded == 6 * 2 * 512 * 128 * (128 + 128) * (100 + 101 + 103)
    # Without latents a draft has one form.
    plain = fc.CausalLM(**COMMON | dict(vocab_size=DEEPSEEK.vocab_size))
    assert parts("absorbed", plain)[1] == parts("latent", plain)[1]
    # Of one token there is no draft, and the prompt is read as without one.
    alone = DEEPSEEK.generate(7, 1, mla="absorbed", draft=(plain, 1, [0]))
    assert by_term(alone) == by_term(DEEPSEEK.generate(7, 1, mla="absorbed"))


def test_a_round_with_nothing_left_to_propose():
    draft = fc.CausalLM(**COMMON)
    # Both of two are right, which makes three tokens; the last is the target's alone.
    counted = GEMMA.generate(7, 4, draft=(draft, 2, [2, 0]))
    assert counted.total == sum(count.total for count in (
        draft.prefill(7), draft.decode(1, cached=7),
        GEMMA.prefill(9, logits=3), GEMMA.prefill(1, cached=9),
    ))  # fmt: skip
    assert {term.layer for term in counted.terms if "draft" in term.layer} == {
        f"draft {term.layer}" for term in draft.prefill(7).terms
    }
    # A single token is made without a draft, and one may be proposed at a time.
    assert by_term(GEMMA.generate(7, 1, draft=(draft, 1, [0]))) == by_term(GEMMA.prefill(7))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, (LLAMA, 2, [0])), "new_tokens = 0: expected an integer >= 1"),
        ((1, (LLAMA, 0, [0])), "tokens_per_round = 0: expected an integer >= 1"),
    ],
)
def test_drafts_of_nothing_are_refused(arguments, message):
    new_tokens, draft = arguments
    with pytest.raises(ValueError, match=message):
        GEMMA.generate(7, new_tokens, draft=draft)


@pytest.mark.parametrize(
    ("accepted", "message"),
    [
        ([1, 3], r"accepted = \[1, 3\] makes 6 tokens, .*: expected new_tokens = 8"),
        ([4], r"accepted\[0\] = 4: expected at most 3, the tokens proposed when 0 of"),
        ([3, 3, 0], r"accepted\[2\] = 0: expected at most"),
        ([-1], r"accepted\[0\] = -1: expected an integer >= 0"),
        ([1.0], r"accepted\[0\] = 1.0 is a float"),
        ([], r"accepted = \[\] makes 0 tokens"),
    ],
)
def test_rounds_that_do_not_fit_are_refused(accepted, message):
    with pytest.raises((ValueError, TypeError), match=message):
        LLAMA.generate(7, 8, draft=(GEMMA, 3, accepted))


@pytest.mark.parametrize("accepted", [0.7, 2, None, "42", {1: 2}])
def test_a_rate_is_not_how_many_are_accepted(accepted):
    with pytest.raises(TypeError, match=r"^accepted = .*expected_tokens_per_round$"):
        LLAMA.generate(7, 8, draft=(GEMMA, 3, accepted))


def test_a_draft_with_another_vocabulary_is_refused():
    other = dataclasses.replace(GEMMA, vocab_size=12)
    message = "draft with vocab_size = 12: expected the model's vocab_size = 11"
    with pytest.raises(ValueError, match=message):
        LLAMA.generate(7, 8, draft=(other, 3, [3, 3]))
    several = dataclasses.replace(GEMMA, vocab_size=np.array([11, 12]))
    with pytest.raises(ValueError, match=r"draft with vocab_size = array\(\[11, 12\]\)"):
        LLAMA.generate(7, 8, draft=(several, 3, [3, 3]))
    three = dataclasses.replace(LLAMA, vocab_size=np.array([11, 12, 13]))
    with pytest.raises(ValueError, match="array shapes do not broadcast: vocab_size"):
        three.generate(7, 8, draft=(several, 3, [3, 3]))
    # The same in every element, the same symbol.
    for vocab_size in (np.array([11, 12]), sympy.Symbol("V", integer=True, positive=True)):
        both = [dataclasses.replace(model, vocab_size=vocab_size) for model in (LLAMA, GEMMA)]
        assert both[0].generate(7, 8, draft=(both[1], 3, [3, 3])).total is not None


def test_the_expected_number_of_tokens():
    # 1 + α + α² + … to the k-th power, in fractions, which do not cancel beside 1.
    for rate, tokens in itertools.product((0.0, 0.25, 0.9, 1 - 1e-12, 1.0, 1), (1, 2, 4, 7)):
        expected = float(sum(Fraction(rate) ** power for power in range(tokens + 1)))
        assert expected_tokens_per_round(rate, tokens) == pytest.approx(expected, rel=1e-15)
    assert expected_tokens_per_round(np.array(0.5), 3) == 1.875
    for rate in (np.array([0.5]), np.array([0, 0.5, 1]), sympy.Symbol("a", positive=True)):
        with pytest.raises(TypeError, match=r"^acceptance_rate = .*: expected one number in"):
            expected_tokens_per_round(rate, 3)
    assert expected_tokens_per_round(0.5, 5) == 2 - 1 / 32
    for rate in (1.0000001, -0.1, float("nan"), np.array([0.5, 1.5])):
        with pytest.raises(ValueError, match=r"acceptance_rate .* expected a number in \[0, 1\]$"):
            expected_tokens_per_round(rate, 3)
    with pytest.raises(TypeError, match=r"tokens_per_round = .*: expected one integer >= 1"):
        expected_tokens_per_round(0.5, np.array([1, 2]))
    with pytest.raises(ValueError, match="tokens_per_round = 0"):
        expected_tokens_per_round(0.5, 0)


REFUSED = [
    (lambda: LLAMA.prefill(0), "prompt_len = 0: expected an integer >= 1"),
    (lambda: LLAMA.prefill(3, logits="first"), "logits = 'first': expected one of 'last', 'all'"),
    (lambda: LLAMA.prefill(3, logits=4), "logits = 4: expected at most prompt_len = 3"),
    (lambda: LLAMA.prefill(3, logits=0), "logits = 0: expected an integer >= 1"),
    (lambda: LLAMA.prefill(3, logits=2, chunk=2), "logits = 2 with chunk = 2: expected 'last'"),
    (lambda: LLAMA.prefill(3, chunk=0), "chunk = 0: expected an integer >= 1"),
    (lambda: LLAMA.prefill(3, "executed"), "level = 'executed': expected one of 'causal', 'dense'"),
    (lambda: LLAMA.decode(0, cached=3), "new_tokens = 0: expected an integer >= 1"),
    (lambda: LLAMA.decode(1, cached=-1), "cached = -1: expected an integer >= 0"),
    (lambda: LLAMA.generate(3, 0), "new_tokens = 0: expected an integer >= 1"),
    (lambda: LLAMA.cache(0), "positions = 0: expected an integer >= 1"),
    (lambda: LLAMA.prefill(3, mla="latent"), "mla = 'latent' of a Llama without latent attention"),
    (lambda: DEEPSEEK.prefill(3, mla="other"), "mla = 'other': expected one of 'expanded'"),
    (lambda: LLAMA.prefill(3, num_latents=2), "num_latents = 2 of a Llama: expected None"),
    (lambda: DECODER.prefill(100), "prompt_len = 100: expected at most seq_len = 99"),
    (lambda: DECODER.generate(90, 11), r"new_tokens = 100: expected at most seq_len"),
    (lambda: OPT.decode(1, cached=99), "new_tokens = 100: .* at most num_positions = 99"),
    (lambda: MAMBA_2.prefill(9, chunk=2), "chunk = 2 of a Mamba2LM: expected None, since the"),
    (lambda: SCANS[0].prefill(9, chunk=2), "chunk = 2 of a LightningLM: expected None"),
    (lambda: LLAMA.generate(3, 3, draft=(MAMBA_2, 2, [2])), "draft with a Mamba2LM: expected"),
    (lambda: SCANS[1].generate(3, 3, draft=(LLAMA, 2, [2])), "draft with a DeltaNetLM: expected"),
    (lambda: PERCEIVER.generate(3, 3, draft=(LLAMA, 2, [2])), "draft with a PerceiverAR: expected"),
    (lambda: LLAMA.generate(3, 3, draft=(LLAMA, 2, [2]), chunk=2), "draft with chunk = 2 and"),
    (lambda: BERT.prefill(3), "EncoderLM is an encoder: all positions attend to all, so none"),
    (lambda: BERT.decode(3, cached=3), "EncoderLM is an encoder"),
    (lambda: BERT.cache(3), "EncoderLM is an encoder"),
    (lambda: T5.prefill(3, chunk=2), "chunk = 2, cached = 0 of an encoder's prompt: expected"),
    (lambda: T5.prefill(3, cached=2), "chunk = None, cached = 2 of an encoder's prompt: expected"),
    (lambda: T5.prefill(3, num_latents=2), "num_latents = 2 of a EncoderDecoderLM: expected None"),
    (lambda: dataclasses.replace(T5, seq_len=None).decode(3, cached=3), "seq_len = None: expected"),
    (lambda: PERCEIVER.prefill(3, chunk=2), "chunk = 2, cached = 0 of a PerceiverAR's"),
    (lambda: PERCEIVER.prefill(3, cached=2), "chunk = None, cached = 2 of a PerceiverAR's"),
    (lambda: PERCEIVER.decode(1, cached=0), "cached = 0 of a PerceiverAR: expected a prompt"),
    (lambda: PERCEIVER.prefill(3, num_latents=4), "num_latents = 4: expected at most the"),
    (lambda: PERCEIVER.prefill(9, num_latents=7), "num_latents = 7: .* = 6, since beyond it the w"),
    (lambda: PERCEIVER.generate(3, 7), "new_tokens = 7: expected at most .* slides"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


SYMBOL = sympy.Symbol("c", integer=True, positive=True)
ARRAY = np.array([1, 2])


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (functools.partial(LLAMA.prefill, ARRAY, cached=SYMBOL), ("length", "cached")),
        (functools.partial(LLAMA.prefill, SYMBOL, chunk=ARRAY), ("chunk", "length")),
        (functools.partial(LLAMA.decode, SYMBOL, cached=3, batch_size=ARRAY), ("batch_size",
                                                                              "length")),
        (functools.partial(dataclasses.replace(LLAMA, vocab_size=SYMBOL).decode, ARRAY, cached=3),
         ("length", "vocab_size")),
        (functools.partial(PERCEIVER.prefill, ARRAY, num_latents=SYMBOL), ("length",
                                                                          "num_latents")),
        (functools.partial(dataclasses.replace(PERCEIVER, vocab_size=ARRAY).prefill, 5,
                           num_latents=SYMBOL), ("vocab_size", "num_latents")),
    ],
)  # fmt: skip
def test_arrays_beside_symbols_are_refused(call, names):
    array, symbol = names
    message = f"^{array} given as array and {symbol} as symbol: expected arrays or symbols"
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize(
    "call",
    [
        functools.partial(LLAMA.prefill, 3.0),
        functools.partial(LLAMA.prefill, 3, logits=True),
        functools.partial(LLAMA.prefill, 3, logits=None),
        functools.partial(LLAMA.prefill, 3, mla=3),
        functools.partial(LLAMA.decode, 3, cached="4"),
        functools.partial(LLAMA.generate, 3, 3, draft=("llama", 2, [2])),
        functools.partial(LLAMA.generate, 3, np.array([3, 4]), draft=(LLAMA, 2, [2])),
        functools.partial(LLAMA.generate, 3, 3, draft=LLAMA),
        functools.partial(LLAMA.generate, 3, 3, draft=(LLAMA, 2, 2)),
    ],
)
def test_what_has_the_wrong_type(call):
    with pytest.raises(TypeError, match=r".+"):
        call()


def test_a_step_finds_keys_of_the_prefix_in_the_cache():
    # Five positions of prefix, one latent before: four products of 8·8 and two of 8·32 in each of
    # two layers, logits; two heads of 4 channels twice for 5 + 2 keys, then for 2.
    step = PERCEIVER.decode(1, cached=6, num_latents=1)
    layers = 2 * (4 * 64 + 2 * 256) + 2 * 2 * 4 * (5 + 2 + 2)
    assert step.total == 2 * (layers + 8 * 11)
    assert {term.term for term in step.cross_part.terms if term.forward} == {"scores", "values"}


def test_no_seq_len_is_needed():
    assert GEMMA.seq_len is None
    assert GEMMA.generate(3, 3).total > 0


def test_utilisation_of_a_request():
    read = LLAMA.prefill(50, batch_size=4)
    device = fc.Device("mine", {"bf16": fc.Peak(1e9, "stated here")})
    assert read.mfu(seconds=2.0, device=device) == read.total / 2e9
