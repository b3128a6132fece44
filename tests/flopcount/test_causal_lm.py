"""Decoder-only models of any family: layers by patterns, options, ints, arrays and symbols."""

import dataclasses

import numpy as np
import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

import flopcount as fc
from flopcount.architectures import Choice, Dimension, Flag, Pattern, shortest_period
from flopcount.blocks import Output, rows_of
from flopcount.conventions import CONVENTIONS
from flopcount.operations import Pass
from flopcount.rows import Step

SMALL = dict(vocab_size=11, num_channels=8, num_layers=5, num_heads=4, intermediate_size=12,
             num_key_value_heads=2, head_dim=6, seq_len=7)  # fmt: skip


def small(**changes):
    return fc.CausalLM(**SMALL | changes)


def terms(model, *names, level="causal"):
    return {
        (term.layer, term.term): term.forward
        for term in model.flops(level).terms
        if term.term in names
    }


def test_it_is_llama_without_options():
    sizes = dict(vocab_size=128256, num_channels=4096, num_layers=32, num_heads=32,
                 num_key_value_heads=8, intermediate_size=14336)  # fmt: skip
    model, llama = fc.CausalLM(seq_len=100, **sizes), fc.Llama(seq_len=100, **sizes)
    for level in ("causal", "dense"):
        assert model.flops(level).records() == llama.flops(level).records()
    assert model.flops().elementwise.records() == llama.flops().elementwise.records()
    assert model.params().records() == llama.params().records()


def test_with_gpt2s_options_it_is_the_decoder():
    gpt2 = fc.from_hf({"model_type": "gpt2"}, 1024)
    decoder = fc.Decoder(vocab_size=50257, seq_len=1024, num_channels=768, num_layers=12,
                         num_heads=12)  # fmt: skip
    assert gpt2.flops("dense").records() == decoder.flops("dense").records()
    assert gpt2.params().records() == decoder.params().records()
    for name in CONVENTIONS:
        read, declared = gpt2.flops(convention=name), decoder.flops(convention=name)
        assert read.lacks == declared.lacks
        assert read.records() == declared.records()


@pytest.mark.parametrize(
    "changes",
    [
        dict(gated=True),
        dict(num_key_value_heads=2),
        dict(head_dim=3),
        dict(attention=("full", "sliding"), window=2),
    ],
)
def test_conventions_of_plain_layers_do_not_cover_others(changes):
    plain = small(gated=False, num_key_value_heads=None, head_dim=None)
    assert plain.flops(convention="kaplan").total == 3 * 7 * (2 * 5 * (4 * 8**2 + 2 * 8 * 12)
                                                              + 2 * 5 * 7 * 8)  # fmt: skip
    # As many key heads as heads, and their own width, given: the same.
    given = dataclasses.replace(plain, num_key_value_heads=4, head_dim=2)
    assert given.flops(convention="kaplan").total == plain.flops(convention="kaplan").total
    other = dataclasses.replace(plain, **changes)
    assert other.flops(convention="kaplan").not_covered == {"self"}
    assert other.flops(convention="6n").total == 3 * 7 * 2 * other.params().total


# d = 8, h·c = 24, g·c = 12, f = 12: a layer has 8·(2·24 + 2·12) + 3·8·12 = 864 weights.
@pytest.mark.parametrize(
    ("changes", "of_a_layer"),
    [
        (dict(), 864 + 2 * 8),
        (dict(query_key_norm="whole"), 864 + 2 * 8 + 24 + 12),
        (dict(query_key_norm="head"), 864 + 2 * 8 + 2 * 6),
        (dict(query_key_norm="head, no scale"), 864 + 2 * 8),
        (dict(parallel_norms="one"), 864 + 8),
        (dict(parallel_norms="two"), 864 + 2 * 8),
        (dict(norm_placement="branch"), 864 + 2 * 8),
        (dict(norm_placement="post"), 864 + 2 * 8),
        (dict(norm_placement="both"), 864 + 4 * 8),
        (dict(norm_bias=True), 864 + 2 * 2 * 8),
        (dict(norm_scale=False), 864),
        (dict(sinks=True), 864 + 2 * 8 + 4),
        (dict(attention_gate=True), 864 + 2 * 8 + 8 * 24),
        (dict(gated=False), 864 - 8 * 12 + 2 * 8),
        (dict(qkv_bias=True), 864 + 2 * 8 + 24 + 2 * 12),
        (dict(out_bias=True, mlp_bias=True), 864 + 2 * 8 + 8 + 2 * 12 + 8),
    ],
)
def test_parameters_by_hand(changes, of_a_layer):
    final = 8 * (changes.get("norm_scale", True) + changes.get("norm_bias", False))
    assert small(**changes).params().total == 5 * of_a_layer + final + 2 * 11 * 8


def order(**changes):
    """Norms, the last products of both blocks, and residuals, in the order of execution."""
    model = small(num_layers=1, **changes)
    rows = [row for row in rows_of(model.network(Pass(1, 7))) if isinstance(row, Step)]
    wanted = ("norm", "mlp norm", "branch norm", "mlp branch norm", "out", "mlp down",
              "residual", "attention residual", "mlp residual")  # fmt: skip
    return [row.term for row in rows if row.layer == "decoder" and row.term in wanted]


def test_where_norms_stand():
    first, second = ["out", "attention residual"], ["mlp down", "mlp residual"]
    assert order() == ["norm", *first, "mlp norm", *second]
    assert order(norm_placement="post") == [*first, "norm", *second, "mlp norm"]
    assert order(norm_placement="branch") == [
        "out", "norm", "attention residual", "mlp down", "mlp norm", "mlp residual",
    ]  # fmt: skip
    assert order(norm_placement="both") == [
        "norm", "out", "branch norm", "attention residual",
        "mlp norm", "mlp down", "mlp branch norm", "mlp residual",
    ]  # fmt: skip
    assert order(parallel_norms="one") == ["norm", "out", "mlp down", "residual"]
    assert order(parallel_norms="two") == ["norm", "mlp norm", "out", "mlp down", "residual"]


def test_layers_take_their_masks_in_turn():
    # Layers 0 and 3 slide (W = 3), 1 and 4 are in chunks of 4, 2 is full; n = 7, h = 4, c = 6.
    model = small(attention=("sliding", "chunked", "full"), window=3, chunk=4)
    pairs = {"sliding": 1 + 2 + 3 * 5, "chunked": (1 + 2 + 3 + 4) + (1 + 2 + 3), "full": 28}
    number = {"sliding": 2, "chunked": 2, "full": 1}
    assert terms(model, "scores", "values") == {
        (name, term): 2 * number[name] * 4 * 6 * pairs[name]
        for name in pairs
        for term in ("scores", "values")
    }
    dense = terms(model, "scores", level="dense")
    assert dense == {(name, "scores"): 2 * number[name] * 4 * 6 * 49 for name in pairs}


@pytest.mark.parametrize("number", range(1, 15))
def test_layers_are_grouped(number):
    attention, positions = ("sliding", "sliding", "full"), ("rotary", "none")
    groups = small(num_layers=number, attention=attention, positions=positions, window=2).groups()
    expected: dict[tuple[str, str], int] = {}
    for index in range(number):
        kind = attention[index % 3], positions[index % 2]
        expected[kind] = expected.get(kind, 0) + 1
    assert {tuple(group.kind.values()): group.number for group in groups} == expected
    assert [tuple(group.kind.values()) for group in groups] == list(expected)
    listed = [
        index
        for group in groups
        for first in group.indices
        for index in range(first, number, group.period)
    ]
    assert sorted(listed) == list(range(number))


def test_layers_are_named_by_what_differs():
    def names(**changes):
        return [group.name for group in small(window=2, **changes).groups()]

    assert names() == names(attention=("sliding",)) == ["decoder"]
    assert names(attention=("sliding", "full")) == ["sliding", "full"]
    assert names(positions=("none", "rotary")) == ["none", "rotary"]
    both = names(attention=("sliding", "full"), positions=("rotary", "none", "rotary"))
    assert both == ["sliding rotary", "full none", "full rotary", "sliding none"][: len(both)]


def test_numbers_of_layers_on_arrays_and_symbols():
    layers = np.arange(1, 20)
    L = sympy.Symbol("L", integer=True, positive=True)
    pattern = dict(attention=("full", "sliding", "sliding", "full", "sliding"), window=3)
    together = small(num_layers=layers, **pattern)
    symbolic = small(num_layers=L, **pattern).flops().total
    for index, number in enumerate(layers):
        alone = small(num_layers=int(number), **pattern)
        assert together.flops().total[index] == alone.flops().total == symbolic.subs(L, number)
        assert together.params().total[index] == alone.params().total


@given(st.lists(st.sampled_from("ab"), min_size=1, max_size=12))
def test_the_shortest_period_is_what_trying_all_finds(words):
    def repeats(period):
        return all(word == words[index % period] for index, word in enumerate(words))

    shortest = next(period for period in range(1, 13) if repeats(period))
    assert shortest_period(words) == tuple(words[:shortest])


@pytest.mark.parametrize(
    ("changes", "is_letter"),
    [
        (dict(), True),
        (dict(num_layers=1), True),
        (dict(attention=("full", "sliding"), num_layers=3), True),
        (dict(attention=("full", "sliding"), num_layers=2), False),
        (dict(attention=("full", "full", "sliding"), num_layers=2), False),
        (dict(attention=("full", "sliding"), num_layers=sympy.Symbol("L", positive=True)), True),
    ],
)
def test_the_number_of_layers_is_a_letter_where_they_repeat(changes, is_letter):
    letters = small(**changes, window=2, seq_len=None).lettered()
    assert ("num_layers" in letters) is is_letter
    assert letters["seq_len"].letter == "n"
    assert letters["window"].letter == "W"
    assert "chunk" not in letters


def test_positions_cost_what_their_layers_have():
    # Of 5 layers 2 turn, 2 have ALiBi, 1 has neither; 7 positions, 4 and 2 heads of 6 channels.
    model = small(positions=("rotary", "alibi", "none"), query_key_norm="head")
    work = {(row.layer, row.term): row.elements for row in model.flops("dense").elementwise.terms}
    assert {key: value for key, value in work.items() if key[1].startswith("rotary")} == {
        ("rotary", "rotary query"): 2 * 7 * 24, ("rotary", "rotary key"): 2 * 7 * 12,
    }  # fmt: skip
    assert {key: value for key, value in work.items() if key[1] == "score bias"} == {
        ("alibi", "score bias"): 2 * 4 * 49
    }
    norms = {key: value for key, value in work.items() if key[1] in ("query norm", "key norm")}
    assert norms["none", "query norm"] == 7 * 24
    assert norms["none", "key norm"] == 7 * 12
    part = small(rotary_dim=4).flops().elementwise.terms
    assert {row.elements for row in part if row.term == "rotary key"} == {5 * 7 * 2 * 4}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predicting(fc.CausalLM):
    """With a further head, and with layers of a word of its own."""

    def aspects(self):
        return {**super().aspects(), "feed forward": ("dense", "none")}

    def feed_forward(self, kind):
        return super().feed_forward(kind) if kind["feed forward"] == "dense" else Nothing()

    def after(self, at):
        return ((at, (Output(self.num_channels, self.vocab_size, tied=False),)),)


@dataclasses.dataclass(frozen=True)
class Nothing:
    def rows(self, at):
        return iter(())


def test_other_layers_and_what_follows_the_output_are_a_subclass_away():
    model = Predicting(**SMALL)
    assert [(group.name, group.number) for group in model.groups()] == [("dense", 3), ("none", 2)]
    assert terms(model, "mlp up", "logits") == {
        ("dense", "mlp up"): 2 * 3 * 7 * 8 * 12,
        ("output", "logits"): 2 * 7 * 8 * 11,
    }
    logits = [term for term in model.flops().terms if term.term == "logits"]
    assert len(logits) == 2
    # Layers that are not plain are not what conventions of plain layers speak of.
    assert model.flops(convention="kaplan").not_covered == {"self"}


def test_a_model_is_called_by_its_config():
    assert small().title == "CausalLM"
    assert fc.from_hf({"model_type": "llama"}).title == "llama"


def test_a_pattern_is_its_shortest_period():
    assert shortest_period(("a", "b", "a", "b", "a")) == ("a", "b")
    assert shortest_period(("a", "a", "b")) == ("a", "a", "b")
    assert small(attention=("full",) * 5) == small()
    assert small(attention=("full", "full", "sliding") * 2 + ("full",), window=2).attention == (
        "full", "full", "sliding",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "number", "shortest"),
    [
        ("fssf", 4, "fss"),
        ("fssf", 5, "fssf"),  # repeated, f s s would give the last layer an s
        ("fsfs", 5, "fs"),
        ("fsfs", 40, "fs"),
        ("ffs", 2, "ffs"),
        ("fsff", 1, "fs"),  # f s f, and of that, behind the first layer, f s
        ("f", 5, "f"),
    ],
)
def test_patterns_that_repeat_and_that_do_not(words, number, shortest):
    names = {"f": "full", "s": "sliding"}
    model = small(attention=tuple(names[w] for w in words), num_layers=number, window=2)
    assert model.attention == tuple(names[w] for w in shortest)
    symbol = sympy.Symbol("L", integer=True, positive=True)
    again = small(attention=("full", "sliding", "sliding", "full"), num_layers=symbol, window=2)
    assert len(again.attention) == 4


@given(st.lists(st.sampled_from(["full", "sliding"]), min_size=1, max_size=8), st.integers(1, 20))
def test_a_shortened_pattern_gives_every_layer_its_word(words, number):
    model = small(attention=tuple(words), num_layers=number, window=2)
    for again in (model, dataclasses.replace(model, seq_len=9)):
        assert [again.attention[i % len(again.attention)] for i in range(number)] == [
            words[i % len(words)] for i in range(number)
        ]
        assert again.attention == model.attention


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(attention=("sliding",)), r"window = None with attention = \('sliding',\): expected"),
        (dict(attention=("chunked",)), r"chunk = None with attention = \('chunked',\): expected"),
        (dict(attention=["full"]), r"attention = \['full'\]: expected a tuple of words"),
        (dict(attention=("full", "wide")), r"attention\[1\] = 'wide': expected one of 'full'"),
        (dict(norm="batch"), r"norm = 'batch': expected one of 'rms', 'layer'"),
        (dict(num_key_value_heads=3), r"num_heads = 4 is not divisible by num_key_value_heads = 3"),
        (dict(num_channels=9, head_dim=None), r"num_channels = 9 is not divisible by num_heads"),
        (dict(num_positions=6), r"seq_len = 7: expected at most num_positions = 6"),
        (dict(num_positions=8, spare_positions=2), r"seq_len = 7: expected at most num_pos.* 6"),
    ],
)
def test_what_it_cannot_be_is_refused(changes, message):
    with pytest.raises((TypeError, ValueError), match=message):
        small(**changes)


def test_without_positions_what_needs_none_works():
    model = small(seq_len=None)
    assert small(seq_len=None, num_positions=3).params().total == model.params().total + 3 * 8
    assert model.params().total == small().params().total
    for ask in (model.flops, lambda: model.flops(convention="6n")):
        with pytest.raises(ValueError, match=r"seq_len = None: expected an integer >= 1"):
            ask()
    assert "parameters" in str(model)


def options(name, kind):
    """What a field may be; sizes small, as they divide."""
    if isinstance(kind, Flag):
        return st.booleans()
    if isinstance(kind, Choice):
        words = st.sampled_from(kind.words)
        return st.none() | words if getattr(fc.CausalLM, name) is None else words
    return st.lists(st.sampled_from(kind.words), min_size=1, max_size=4).map(tuple)


OPTIONS = st.fixed_dictionaries(
    {
        name: options(name, kind)
        for name, kind in fc.CausalLM.kinds().items()
        if not isinstance(kind, Dimension)
    }
    | {"embedding_channels": st.none() | st.just(5), "rotary_dim": st.none() | st.just(4)}
)
ASKS = (
    lambda model: model.flops().total,
    lambda model: model.flops("dense", checkpointing="non-reentrant").with_recompute,
    lambda model: model.flops().elementwise.total,
    lambda model: model.params().total,
    lambda model: model.params().matmul_active,
)


@settings(max_examples=40)
@given(OPTIONS, st.sampled_from(sorted(SMALL)))
def test_arrays_and_symbols_count_as_ints_do(drawn, name):
    drawn |= dict(window=3, chunk=4, num_positions=20)
    values = [2, 4] if name in ("num_key_value_heads", "num_heads") else [6, 13]
    symbol = sympy.Symbol("x", integer=True, positive=True)
    array = small(**drawn | {name: np.array(values)})
    symbolic = small(**drawn | {name: symbol})
    for index, value in enumerate(values):
        alone = small(**drawn | {name: value})
        for ask in ASKS:
            expected, answer, expression = ask(alone), ask(array), ask(symbolic)
            assert (answer[index] if isinstance(answer, np.ndarray) else answer) == expected
            assert sympy.sympify(expression).subs(symbol, value) == expected


@settings(max_examples=30)
@given(OPTIONS, st.integers(2**20, 2**61))
def test_nothing_overflows_whatever_the_options(drawn, large):
    sizes = dict(num_channels=large, vocab_size=large, seq_len=large, num_layers=large,
                 window=large // 3, chunk=large // 5, num_positions=large)  # fmt: skip
    arrays = {name: np.array([1, size]) for name, size in sizes.items()}
    for ask in ASKS:
        assert ask(small(**drawn | arrays))[1] == ask(small(**drawn | sizes))


@settings(max_examples=40)
@given(OPTIONS)
def test_twice_what_a_token_multiplies_is_its_forward_pass_without_attention(drawn):
    model = small(**drawn, window=3, chunk=4)
    attention = sum(terms(model, "scores", "values").values())
    assert model.flops().forward - attention == 2 * 7 * model.params().matmul_active


def test_every_option_changes_a_count():
    """A field that no block reads would stand there for nothing."""

    def everything(model):
        count = model.flops(checkpointing="non-reentrant")
        return (
            count.records(), count.elementwise.records(), model.params().records(),
            terms(model, "scores", level="dense"),
        )  # fmt: skip

    base = dict(num_positions=20, norm="layer")
    others = dict(attention=("sliding",), positions=("alibi",), rotary_dim=2, num_positions=9,
                  query_key_norm="whole", activation="relu", norm="rms", norm_placement="both",
                  parallel_norms="two", embedding_channels=5, window=2, chunk=3)  # fmt: skip
    plain = everything(small(**base))
    for name, kind in fc.CausalLM.kinds().items():
        changed = others.get(name)
        if isinstance(kind, Flag):
            changed = not getattr(fc.CausalLM, name)
        if changed is None or name in ("window", "chunk"):
            continue
        assert everything(small(**base | dict(window=3) | {name: changed})) != plain, name
    words = [name for name, kind in fc.CausalLM.kinds().items() if isinstance(kind, Choice)]
    assert set(words) | {"attention", "positions"} <= set(others)
    assert all(
        isinstance(fc.CausalLM.kinds()[name], Pattern) for name in ("attention", "positions")
    )


def test_any_decoder_may_predict_further_tokens():
    plain, more = small(num_layers=2), small(num_layers=2, num_predictions=3)
    # Beside a layer's own, of each module two norms and a last one of 8 and a projection 16 → 8.
    layer = small(num_layers=3).params().total - plain.params().total
    assert more.params().total - plain.params().total == 3 * (layer + 3 * 8 + 16 * 8)
    flops = {model: model.flops("dense").forward for model in (plain, more)}
    of_layer = small(num_layers=3).flops("dense").forward - flops[plain]
    n, vocab = plain.length, plain.vocab_size
    assert flops[more] - flops[plain] == 3 * (of_layer + 2 * n * (16 * 8 + 8 * vocab))
    assert more.prefill(4).total == plain.prefill(4).total
    assert str(more).endswith("further predictions: modules counted 3")
    with pytest.raises(ValueError, match="num_predictions = 3 with embedding_channels = 4: expect"):
        small(num_predictions=3, embedding_channels=4)
    with pytest.raises(ValueError, match="num_predictions = 2 of an encoder: expected None"):
        fc.EncoderLM(
            vocab_size=9, num_channels=8, num_layers=1, num_heads=2, intermediate_size=8,
            num_predictions=2,
        )  # fmt: skip
    with pytest.raises(ValueError, match="num_predictions = 2 of an encoder-decoder: expected"):
        fc.EncoderDecoderLM(
            vocab_size=9, num_channels=8, num_layers=1, num_heads=2, intermediate_size=8,
            num_predictions=2,
        )  # fmt: skip
