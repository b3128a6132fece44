"""Calls of everything public, drawn for test_boundaries.py.

Each argument is legal or, now and then, anything: of another type, huge, negative, NaN, empty, an
array that does not broadcast. Arguments are those of the signature, with their legal values in
:data:`LEGAL`: a new one joins there.
"""

import functools
import inspect

import numpy as np
import sympy
from hypothesis import strategies as st

import flopcount as fc
import flopcount.torch
from flopcount import testing
from flopcount.architectures import ARCHITECTURES, Architecture, Choice, Dimension, Flag, Pattern
from flopcount.conventions import CONVENTIONS
from flopcount.hf import FAMILIES
from flopcount.isoflop import plan
from flopcount.isoflop.laws import CHINCHILLA_SURFACE
from flopcount.pictures import Drawn
from flopcount.tables import Shown

HEADINGS = ("params", "tokens", "flops", "loss")


def loss_of(params, tokens):
    return 1.7 + 400 / params**0.34 + 400 / tokens**0.28


RUNS = [
    (params, budget / 6 / params, budget, loss_of(params, budget / 6 / params))
    for budget in (1e18, 1e19, 1e20)
    for params in (factor * 0.1 * budget**0.5 for factor in (0.3, 0.6, 1.0, 1.8, 3.2))
]
POINTS = [
    (name, params, tokens, loss_of(params, tokens))
    for name, params in enumerate((1e6, 3e6, 1e7, 3e7))
    for tokens in (1e7, 3e7, 1e8, 3e8, 1e9, 3e9)
]


def columns_of(headings, lines):
    """A table's cells by heading."""
    return dict(zip(headings, map(list, zip(*lines, strict=True)), strict=True))


@st.composite
def tables(draw, headings, lines):
    """A table as columns, with a few wrong cells and, now and then, a wrong column."""
    columns = columns_of(headings, lines)
    for name in draw(st.lists(st.sampled_from(headings), max_size=2)):
        columns[name][draw(st.integers(0, len(lines) - 1))] = draw(ANYTHING)
    wrong = st.dictionaries(st.text() | st.integers(), st.lists(ANYTHING), min_size=1, max_size=1)
    return columns | (draw(wrong) if draw(st.integers(0, 9)) == 9 else {})


SYMBOL = functools.partial(sympy.Symbol, "x")
ANYTHING = st.one_of(
    st.none() | st.booleans() | st.integers() | st.fractions() | st.complex_numbers(),
    st.floats() | st.integers(1, 99).map(float),
    st.text(max_size=9) | st.binary(max_size=3) | st.lists(st.integers(), max_size=3),
    st.sampled_from([
        -(10**40), 1e308, "512", "causal\0", "é" * 200, (8, 16), {"n": 8}, {8}, [{8}], range(3),
        object(), int, len, np.float32(8), np.bool_(True), np.datetime64("2020"), np.array(8),
        np.ones(0, "M8[D]"), np.array([8, "x", None], dtype=object), [np.array([8, 16])],
    ]),
    st.sampled_from([
        [], [1.5, 2.0], [np.nan], [True], ["8"], [1j], [0, 3], [-1], [[8, 16]], [8, 16, 24],
    ]).map(np.array),
    st.sampled_from([
        sympy.Float(8.0), sympy.Integer(-3), sympy.Rational(1, 2), sympy.I, sympy.pi, sympy.oo,
        sympy.nan, sympy.zoo, sympy.true, sympy.Matrix([[1]]), sympy.MatrixSymbol("A", 2, 2),
        SYMBOL() > 0, SYMBOL(), SYMBOL(negative=True), SYMBOL(integer=False),
        SYMBOL(commutative=False),
    ]),
)  # fmt: skip
"""What no size, fraction, name or flag may be, and some of what it may."""

SMALL = st.integers(1, 99)
HUGE = st.sampled_from([2**31, 2**63, 10**30, np.int32(7), np.uint64(2**63)])
INTS = st.integers(1, 8) | st.integers(1, 5000) | HUGE
DTYPES = [np.int8, np.uint8, np.int16, np.int32, np.int64, np.uint64, object]
ARRAYS = st.builds(
    np.array, st.lists(st.integers(1, 120), min_size=3, max_size=3), st.sampled_from(DTYPES)
)
SYMBOLS = st.sampled_from("nmdLV").map(lambda name: sympy.Symbol(name, integer=True, positive=True))
SOME = st.sampled_from([1, 2, 3, np.array([1, 2]), 10**20])

MODELS = testing.models(99) | st.builds(
    fc.CausalLM, vocab_size=SMALL, num_channels=SMALL, num_layers=st.integers(1, 8),
    num_heads=st.integers(1, 8), intermediate_size=SMALL, seq_len=SMALL, window=SMALL, chunk=SMALL,
    head_dim=st.integers(1, 9).map(lambda pairs: 2 * pairs), gated=st.booleans(),
    attention=st.lists(st.sampled_from(["full", "sliding", "chunked"]), min_size=1).map(tuple),
)  # fmt: skip
"""Legal models of Python ints."""
DECLARED = [*ARCHITECTURES.values(), *(family.declaration for family in FAMILIES.values())]
EIGHTS = st.integers(1, 8).map(lambda eighth: 8 * eighth)
DIVISIBLE = st.builds(
    fc.Llama, vocab_size=EIGHTS, seq_len=EIGHTS, num_channels=SMALL, num_layers=st.just(8),
    num_heads=st.just(8), num_key_value_heads=st.just(4), head_dim=st.just(2),
    intermediate_size=EIGHTS,
)  # fmt: skip
"""What up to four devices share without padding."""

TILING = fc.Tiling(forward=(64, 64), key_value=(32, 64), query=(64, 32))
OF_CURVES = ("run", "params", "tokens", "loss")
READ = [fc.read_runs(columns_of(HEADINGS, RUNS), optima=optima) for optima in (False, True)]
READ_CURVES = fc.read_curves(columns_of(OF_CURVES, POINTS))
OWN = fc.Device("own", {"bf16": fc.Peak(1e30, "x")})
PEAK = fc.Peak(1e12, "a datasheet")
PAIR = st.tuples(*[st.sampled_from([16, 64, 128])] * 2)
CONFIG = dict(
    vocab_size=SMALL, hidden_size=SMALL.map(lambda x: 8 * x), intermediate_size=SMALL,
    num_hidden_layers=st.integers(1, 8), num_attention_heads=st.sampled_from((4, 8)),
    num_key_value_heads=st.sampled_from((1, 2, 4)), head_dim=st.integers(1, 9).map(lambda x: 2 * x),
    sliding_window=st.integers(1, 19), tie_word_embeddings=st.booleans(),
    model_type=st.sampled_from(["llama", "mistral"]),
)  # fmt: skip
"""Legal values of the fields that most configs have."""
CONFIGS = st.fixed_dictionaries(CONFIG)
FIELDS = [
    *CONFIG, "layer_types", "hidden_act", "text_config", "n_inner", "rope_parameters",
    "num_kv_heads", "attn_config", "architectures", "is_encoder_decoder",
]  # fmt: skip
WRONG_FIELDS = st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=2)
WRONG = st.builds(
    lambda config, family, wrong: config | {"model_type": family} | wrong,
    CONFIGS, st.sampled_from(list(FAMILIES)), WRONG_FIELDS,
)  # fmt: skip

LEGAL = dict(
    a=(0.5,), acceptance_rate=(0.5, 0.0), activation=("silu", "relu"), architecture=ARCHITECTURES,
    aspect_ratios=((8.0, 128.0),), b=(0.5,), backward=(True, False),
    bandwidth=(fc.Bandwidth(3, "x"),),
    batch_size=(SOME,), budget=(1e15, 1e18, 10**20), budgets=([1e18, 1e19], [10**16]),
    bytes_per_second=(3e12, 5), cache=("int4",), cached=(0, 9), capacity=(1.5,),
    checkpointing=("reentrant", "non-reentrant"), chunk=(2, SMALL), chunks=(1, 2),
    clock=(lambda: 7.0,), confidence=(0.5,), config=(WRONG,), convention=CONVENTIONS,
    corpus_tokens=(10**9,), count=(128,), custom_mapping=({},), data=(1, 2, 4), delta=(1e-3,),
    depths=((2, 8),), device=("h200", "A100", OWN), documents=([1, 1], {1: 1}, [2]),
    draft=(st.tuples(MODELS, st.integers(1, 3), st.just([2, 1])),), drop_highest=(0, 1),
    dtype=("bf16", "fp8", "tf32"), executed=(),
    expert=(1,), experts_per_token=(1, 2), family=("llama", "qwen3"),
    flops=(1e20, 10**18, 5), flops_per_second=(1e12, 5), forward=(PAIR,), frozen_layers=(0, 1),
    gpu_hours=(1, 0.5), gradients=("fp32",), head_dim=(2, 8, 64), head_dim_multiple=(1, 8, 16),
    head_dims=((32, 64),), instructions=(128,), input_gradients=(False, True), key_value=(PAIR,),
    key_value_products=(4, 5), keywords=({},), largest=(5,), law=(CHINCHILLA_SURFACE,),
    level=("causal", "dense"), logits=("all", "last"), loss=("loss",),
    lora_rank=(1, 4, np.array([1, 7]), sympy.Symbol("r", positive=True, integer=True)),
    lora_targets=("query", ("query", "out")), memory=(fc.Memory(9, "x"),), mfu=(0.4,),
    microbatch_size=(1,), microbatches=(4, 8), mla=("latent", "expanded"), model=(MODELS,),
    models=(st.lists(MODELS, min_size=1, max_size=2),), mtp=(False,),
    multiprocessors=(fc.Multiprocessors(1, 2, 3, 4, 5, "x"),), name=("own",),
    names=({"*": ("mlp", "linear")},), new_tokens=(1, 5), num_bootstrap=(2,), num_budgets=(20, 50),
    num_devices=(1, 8), num_experts=(2, 8), num_heads=(1, 1, 2), num_kept=(0, 1),
    num_key_value_heads=(1, 1, 2), num_latents=(256,), num_models=(3, 5), num_prefix=(0, 128),
    num_tokens=(0, 1, 10**9, 1.3e9, np.array([1, 2**60]), np.array([1.0, 2e9])),
    objective=("variable-projection", "least-squares-log"), optima=(False, True),
    params=("params",),
    parallel=(fc.Parallel(), fc.Parallel(tensor=2)), part=("total", "self"),
    peaks=({"bf16": PEAK}, {"int3": PEAK}, {}), pipeline=(1, 2, 4), positions=(1, 3),
    prefix_dropout=(0.0, 0.5, st.floats(0, 0.99)), price_per_device_hour=(2.5,), prompt_len=(1, 7),
    query=(PAIR,), reach=(2.0,), recompute=("attention core", ("out", "mlp *")),
    reference=("a datasheet",), reshard=(True, False), row_lanes=(4, 16), run=("run",), search=(),
    runs=READ, curves=(READ_CURVES,), target_len=(SMALL,), seq_len=(SMALL,),
    seconds=(0.1, 3, np.float64(2)), seed=(0,), sequence=(False, True), shapes=(((64, 2),),),
    shared_bytes=(128,), size_bytes=(80 * 10**9, 1), special_functions=(16,), stages=((3, 5),),
    tensor=(1, 2, 4), tensor_flops=(4096,), tiling=(TILING,),
    tilings=({"hybrid": TILING}, {"nonsense": TILING}), tokens=("tokens",), tokens_per_round=(1, 4),
    total_steps=(9,), total_tokens=(10**9,), trainable=("*norm", ["*"]),
    training=(True, False), tuning=(fc.FineTuning(trainable="*norm"),), vocab_multiple=(8,),
    vocab_size=(INTS,), warmup_steps=(0, 1), weights=("bf16", "int4"), where=({"loss": "2"},),
    width_multiple=(64,), widths=((64, 512),), zero=(0, 1, 2, 3),
)  # fmt: skip
"""Legal values of arguments by name, beside their defaults; strategies give further ones."""
SEARCH = plan.Search(vocab_size=262, num_latents=256, batch_size=8, widths=(64, 512), depths=(2, 8))
OF = {
    fc.Meter: dict(batch_size=(1, 8), window=(2,), executed=()),
    fc.Parallel: dict(sequence=(False,), chunks=(1,)),
    fc.read_curves: dict(source=(tables(OF_CURVES, POINTS),)),
    fc.read_runs: dict(source=(tables(HEADINGS, RUNS),), budget=("flops",)),
    fc.plan: dict(search=(SEARCH,)),
    fc.torch.count: dict(batch_size=(1,), tokens=(7,)),
    plan.Search: dict(
        vocab_size=(262,), batch_size=(8,), widths=((64, 512),), law=("chinchilla-1",)
    ),
}
"""Legal values of a function's own, where its names mean something else."""
ALWAYS = {"device", "seconds", "search", "num_heads"}
OFTEN = {"seq_len", "target_len", "window", "chunk"}
"""Given as often as left out; of other arguments with a default, four of five are left out."""
FEW = {"num_heads", "num_key_value_heads", "head_dim", "num_kept", "experts_per_token"}
"""Sizes that others have to be multiples of, or not less than."""


class Call:
    """Draws the arguments of calls: legal ones and, now and then, anything.

    Attributes:
        draw: Draws from a strategy.
        given: The last argument of each name, of which an error has to name one.
    """

    def __init__(self, data):
        self.draw, self.given = data.draw, {}
        # Calls of many arguments get past the first only where most of them are legal.
        self.odds = self.draw(st.sampled_from([99, 4]), "one in")
        self.sizes = self.draw(st.sampled_from([INTS, ARRAYS, SYMBOLS]), "sizes")

    def any(self, name, *legal):
        """An argument: one of its legal values, which strategies may give, or anything."""
        legal = st.one_of(x if isinstance(x, st.SearchStrategy) else st.just(x) for x in legal)
        choice = st.integers(0, self.odds)
        drawn = choice.flatmap(lambda number: ANYTHING if number == self.odds else legal)
        self.given[name] = self.draw(drawn, name)
        return self.given[name]

    def of(self, function, /, **own):
        """What a function answers to drawn arguments; those of a partial one are as they are."""
        fixed = getattr(function, "keywords", {"reading": None})
        legal = LEGAL | OF.get(getattr(function, "func", function), {}) | own
        if isinstance(function, type) and issubclass(function, Architecture):
            kinds = function.kinds().items()
            legal |= {name: self.legal(kind) for name, kind in kinds if name not in FEW}
        arguments = {}
        for name, parameter in inspect.signature(function).parameters.items():
            if name in fixed or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                continue
            default = parameter.default
            odds = 0 if default is parameter.empty or name in ALWAYS else 1 if name in OFTEN else 4
            given = self.draw(st.integers(0, odds)) == odds
            arguments[name] = self.any(name, *(legal[name] if given else [default]))
        return function(**arguments)

    def legal(self, kind):
        """Legal values of an architecture's field."""
        if isinstance(kind, Flag):
            return [st.booleans()]
        if isinstance(kind, Choice):
            return kind.words
        if isinstance(kind, Pattern):
            return [st.lists(st.sampled_from(kind.words), min_size=1, max_size=4).map(tuple)]
        if isinstance(kind, Dimension):
            return [INTS, self.sizes, *[0][kind.minimum :]]
        return [0.0, 0.5, st.floats(0, 0.99)]

    def model(self):
        """A legal model or, one in four, one from drawn arguments: construction is a boundary."""
        if self.draw(st.integers(0, 3), "from drawn arguments") == 3:
            return self.of(self.draw(st.sampled_from(list(dict.fromkeys(DECLARED)))))
        model = self.draw(MODELS, "model")
        self.given |= model.arguments()
        return model

    def show(self, found):
        """Whatever prints, as text, in a notebook, as plain data and, now and then, a picture."""
        if hasattr(found, "to_dict"):
            str(found), found.to_dict()
        if isinstance(found, Shown):
            found._repr_html_()
            if self.draw(st.integers(0, 19)) == 19:
                self.given["picture"] = None
                found.to_frame(), found.plot() if isinstance(found, Drawn) else None
        return found
