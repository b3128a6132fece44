"""Every public boundary, fuzzed: it gives a right count, or an error that names an argument.

drawn_calls.py draws the calls. Another exception than ``ValueError`` and ``TypeError``, a hang or
a wrong number is a failure, which hypothesis shrinks. Right counts are judged by arithmetic that
stands here and shares nothing with the counter.

    pytest tests/flopcount/test_boundaries.py --hypothesis-profile fuzz

draws 100,000 calls.
"""

import collections
import contextlib
import csv
import dataclasses
import functools
import inspect
import io
import math
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture import providers

import flopcount as fc
import flopcount.torch
from flopcount import comparison, finetuning, masks, testing
from flopcount.architectures import ARCHITECTURES
from flopcount.cli import COMMANDS, TAKE_A_MODEL
from flopcount.cli import main as command_line
from flopcount.isoflop import plan
from flopcount.isoflop.laws import CHINCHILLA_SURFACE, ScalingLaw
from flopcount.sizes import is_array, is_symbolic
from tests.flopcount.drawn_calls import (
    CONFIG,
    CONFIGS,
    DIVISIBLE,
    FIELDS,
    HEADINGS,
    MODELS,
    RUNS,
    SOME,
    WRONG_FIELDS,
    Call,
)  # fmt: skip
from validate.mutation.judging import ending as time_limit

SECONDS_PER_CALL = 20


def pairs_of(word, n, window, chunk):
    """Query-key pairs that a causal attention admits, by sums of arithmetic series."""
    if word == "chunked":
        whole, rest = divmod(n, chunk or n)
        return (whole * ((chunk or n) ** 2 + (chunk or n)) + rest * rest + rest) // 2
    reach = min(window or n, n) if word == "sliding" else n
    return n * reach - (reach * reach - reach) // 2


def expected_total(model, level="causal", training=True, batch_size=1):
    """Matmul FLOPs of a model of plain ints, by arithmetic that shares nothing with the counter."""
    n, d, V, field = model.length, model.num_channels, model.vocab_size, model.arguments().get
    h, hidden = model.num_heads, field("intermediate_size") or model.widening_factor * d
    c, g = field("head_dim") or d // h, field("num_key_value_heads") or h
    products_of_mlp = 2 + field("gated", isinstance(model, fc.Llama))
    projections = h * c * (2 + field("attention_gate", False)) + 2 * g * c
    layer = n * d * (projections + products_of_mlp * hidden)

    def attended(word):
        pairs = pairs_of(word, n, field("window"), field("chunk"))
        return 2 * h * c * (n * n if level == "dense" else pairs)

    words = field("attention", ("sliding",))
    periods, rest = divmod(model.num_layers, len(words))
    products = model.num_layers * layer
    products += sum((periods + (i < rest)) * attended(word) for i, word in enumerate(words))
    width = field("embedding_channels")
    products += n * d * V if width is None else n * (2 * d * width + width * V)
    predicted = layer + attended(words[-1]) + n * (2 * d * d + d * V)
    products += (field("num_predictions") or 0) * predicted
    products += kept_of(model, training) * (2 * d * d + 2 * n * d)
    return batch_size * (6 if training else 2) * products


def kept_of(model, training):
    """The prefix's positions after dropout."""
    prefix, kept = getattr(model, "num_prefix", 0), getattr(model, "num_kept", None)
    if not training or not prefix:
        return prefix
    return prefix - int(prefix * float(model.prefix_dropout)) if kept is None else kept


def are_ints(*sizes):
    """Whether none is an array or a symbol."""
    return not any(is_array(size) or is_symbolic(size) for size in sizes)


def judge(model, total, level="causal", training=True, batch_size=1):
    """Hold a total against plain arithmetic, element by element; not on symbols."""
    fields = model.arguments() | {"batch_size": batch_size}
    known = type(model) in (*ARCHITECTURES.values(), fc.CausalLM)
    if not known or any(map(is_symbolic, fields.values())):
        return
    arrays = {name: value for name, value in fields.items() if is_array(value)}
    together = dict(zip(arrays, np.broadcast_arrays(*arrays.values()), strict=True))
    for index in np.ndindex(np.broadcast_shapes(*(value.shape for value in arrays.values()))):
        here = fields | {name: value[index] for name, value in together.items()}
        plain = {n: int(v) if isinstance(v, np.integer) else v for n, v in here.items()}
        batch = int(plain.pop("batch_size"))
        expected = expected_total(type(model)(**plain), level, training, batch)
        assert (total[index] if is_array(total) else total) == expected


def count_a_step(call):
    model = call.model()
    count, given = call.show(call.of(model.flops)), dict(call.given)
    call.show(call.of(model.params))
    assert count.per_token is not None is not count.recompute
    if given["convention"] is given["tuning"] is given["documents"] is None:
        level = given["level"] or "causal"
        judge(model, count.total, level, given["training"], given["batch_size"])


def tune(call):
    model, level = call.model(), call.any("level", "causal", "dense")
    step = functools.partial(model.flops, level=level, batch_size=call.any("batch_size", SOME))
    call.show(call.of(step, tuning=(call.of(fc.FineTuning),)))
    batch_size = step.keywords["batch_size"]
    judge(model, step(tuning=fc.FineTuning(trainable="*")).total, level, True, batch_size)
    of_ints = are_ints(batch_size, *model.arguments().values())
    if type(model) not in (fc.Llama, fc.Decoder) or not of_ints:
        return
    judge(model, step(tuning=fc.FineTuning()).total, level, False, batch_size)
    # A frozen product costs two, those of attention and of LoRA three.
    adapted = fc.FineTuning(lora_rank=5, lora_targets="query", input_gradients=True)
    n, L, h, d = model.length, model.num_layers, model.num_heads, model.num_channels
    c, window = getattr(model, "head_dim", None) or d // h, getattr(model, "window", None)
    pairs = n * n if level == "dense" else pairs_of("sliding", n, window, None)
    expected = 2 * expected_total(model, level, False, batch_size)
    expected += 2 * batch_size * L * (2 * pairs * h * c + 3 * 5 * n * (d + h * c))
    assert step(tuning=adapted).total == expected


def answer_prompts(call):
    """The prompt and the tokens behind it are one pass over all positions."""
    model, prompt, new = call.model(), call.any("prompt_len", 1, 7), call.any("new_tokens", 1, 5)
    own = {name: call.any(name, None) for name in ("mla", "num_latents")}
    own |= dict(level=call.any("level", None, "causal"), batch_size=call.any("batch_size", SOME))
    part = functools.partial
    both = call.of(part(model.prefill, prompt_len=prompt, logits="all", cached=0, **own))
    both += model.decode(new, cached=prompt, **own)
    call.show(both)
    call.show(call.of(model.cache))
    if call.draw(st.booleans()):
        drafts = (None, (model, 2, [2, 1]))  # which make five tokens
        call.show(call.of(part(model.generate, prompt_len=prompt), draft=drafts))
    if own["level"] != "dense" and isinstance(model, fc.Decoder | fc.Llama | fc.CausalLM):
        whole = dataclasses.replace(model, seq_len=prompt + new)
        judge(whole, both.total, "causal", False, own["batch_size"])


def share_among_devices(call):
    """Without padding, all devices together multiply what one would."""
    model, parallel = call.draw(DIVISIBLE, "model"), call.of(fc.Parallel)
    found = call.show(call.of(fc.per_device, model=(model,), parallel=(parallel,)))
    assert None not in (found.imbalance, found.bubble)
    if found.parallel.vocab_multiple is None:
        level = call.given["level"] or "causal"
        judge(found.model, found.total, level, call.given["training"], found.batch_size)


def count_executed(call):
    """By visiting every tile of attention."""
    tiling, model = call.of(fc.Tiling), call.model()
    count = call.show(call.of(functools.partial(model.executed, tiling=tiling)))
    training, batch_size = call.given["training"], call.given["batch_size"]
    sizes = [*model.arguments().values(), *tiling.sizes().values()]
    if call.given["tilings"] or call.given["tuning"] or not are_ints(*sizes):
        return
    if max(size for size in sizes if type(size) is int) > 5000:
        return
    queries, keys = tiling.forward
    own = seen = 0
    for first in range(0, model.length, queries):
        own += len(range(0, min(first + queries, model.length), keys))
        seen += len(range(0, kept_of(model, training), keys))
    head_dim = getattr(model, "head_dim", None) or model.num_channels // model.num_heads
    head_dim = math.ceil(head_dim / tiling.head_dim_multiple) * tiling.head_dim_multiple
    tiles = batch_size * (model.num_layers * own + seen)
    attention = sum(term.forward for term in count.terms if term.term in ("scores", "values"))
    assert np.all(attention == 2 * 2 * queries * keys * head_dim * model.num_heads * tiles)


def read_configs(call):
    """A Llama or Mistral layer by layer and position by position."""
    config, n = call.draw(CONFIGS, "config"), call.draw(st.integers(1, 50), "seq_len")
    V, d, f, L, h, g, c, window, tied, family = (config[name] for name in CONFIG)
    model = fc.from_hf(config, n)
    weights = d * (2 * h * c + 2 * g * c) + 3 * d * f
    assert model.params().total == L * (weights + 2 * d) + d + V * d * (1 if tied else 2)
    seen = [min(i, window if family == "mistral" else n) for i in range(1, n + 1)]
    for level, pairs in (("causal", sum(seen)), ("dense", n * n)):
        expected = 6 * (n * (L * weights + V * d) + 2 * L * h * c * pairs)
        assert model.flops(level).total == expected
    wrong = call.draw(WRONG_FIELDS, "wrong")
    call.given |= config | wrong
    call.show(fc.from_hf(config | wrong, call.any("seq_len", n)).flops())


def ask_a_count(call):
    count = call.draw(MODELS).flops()
    assert call.of(count.for_tokens) is not None
    rate = functools.partial(call.draw(st.sampled_from([count.mfu, count.hfu])))
    rate.keywords["tokens_per_second"] = call.any("tokens_per_second", None)
    assert np.all(call.of(rate) >= 0)


def meter_steps(call):
    """On a clock of one second a step."""
    model, now = call.draw(MODELS), [0.0]
    meter = call.of(functools.partial(fc.Meter, model=model, clock=lambda: now[0]))
    for _ in range(call.draw(st.integers(1, 5), "steps")):
        now[0] += 1
        meter.step()
    rate = call.show(meter.reading()).flops_per_second
    assert rate in (None, expected_total(model, batch_size=int(call.given["batch_size"])))


def measure_modules(call):
    """Two layers, by hand; and what is subtracted from itself leaves nothing."""
    batch, inputs, outputs = (call.draw(st.integers(1, 8)) for _ in range(3))
    layers = torch.nn.Linear(inputs, outputs), torch.nn.Linear(outputs, 3)
    given = dict(keywords={"input": torch.ones(batch, inputs)})
    measure = functools.partial(fc.torch.count, **given)
    measured = call.show(call.of(measure, module=(torch.nn.Sequential(*layers),)))
    assert not (measured - measured).nonzero.terms
    assert not measured.not_counted
    assert measured.forward == 2 * batch * outputs * (inputs + 3)
    network = torch.nn.Sequential(*layers)
    with call.of(fc.torch.counting, module=(network,)) as counted:
        network(given["keywords"]["input"])
    assert counted.count.forward == measured.forward


def draw_for_tests(call):
    """Strategies, and the assertion on a network that is of another kind."""
    configs = testing.configs(call.any("families", "llama"))
    drawn_from = call.of(testing.models), call.of(testing.lengths), configs
    assert not any(strategy.is_empty for strategy in drawn_from)
    model = fc.Decoder(vocab_size=3, seq_len=2, num_channels=2, num_layers=1, num_heads=1)
    module = torch.nn.Embedding(3, 3)
    with pytest.raises(AssertionError, match="parameters: the module has 9,"):
        testing.assert_counts(module, model, level=call.any("level", "dense"))


def compare_ways(call):
    """The terms missed and added are all of the difference to the causal count."""
    compared = call.show(call.of(fc.compare, model=(call.model(),)))
    causal = compared.rows[0]
    for row in compared.rows:
        for part in ("self", "cross"):
            flops = getattr(row, f"{part}_part")
            if not isinstance(flops, str):  # not covered
                terms = sum(entry.flops for entry in row.differences if entry.part == part)
                missed = flops - getattr(causal, f"{part}_part") - terms
                assert np.all((missed.expand() if is_symbolic(missed) else missed) == 0)


def compare_optima(call):
    found = call.show(call.of(fc.compare_optima))
    # None is better than the causal optimum.
    assert all(row.numbers is None or row.numbers.excess_loss > -1e-9 for row in found.rows)


def plan_runs(call):
    models = [call.any("models", MODELS) for _ in range(call.draw(st.integers(1, 2)))]
    budgets = [call.any("budgets", 1e15, 10**18, 3e22, Fraction(10**19, 3)) for _ in range(2)]
    batch_size, level = call.any("batch_size", 1, 80), call.any("level", None, "causal", "dense")
    runs = fc.isoflop_runs(models, budgets, batch_size, level=level)
    asked = [(budget, model) for budget in budgets for model in models]
    for run, (budget, model) in zip(runs, asked, strict=True):
        step = expected_total(model, level or "causal", True, int(batch_size))
        assert run.steps == math.ceil(Fraction(budget) / step)
        assert run.flops == run.steps * step


def plan_families(call):
    call.show(call.of(fc.plan, budgets=([1e15], [10**17]), search=(call.of(plan.Search),)))


def ask_laws(call):
    law, flops = ScalingLaw(0.5, 0.5, 0.1, 2.0, "example"), call.any("flops", 1e20, 10**18, 5)
    assert math.isclose(law.n_opt(flops), 0.1 * float(flops) ** 0.5, rel_tol=1e-12)
    law.d_opt(flops), CHINCHILLA_SURFACE.d_opt(flops)
    call.of(CHINCHILLA_SURFACE.loss, params=(1e9,), tokens=(20e9,))
    budget = call.of(plan.budget_from_gpu_hours, device=("h200",), dtype=("bf16",))
    # 989.4 TFLOP/s dense bf16.
    hours, rate = float(call.given["gpu_hours"]), float(call.given["mfu"])
    assert math.isclose(budget, hours * 3600 * rate * 989.4e12)


def fit_tables(call):
    """Tables with wrong cells, read and fitted by each approach."""
    fit = call.draw(st.sampled_from([name for name in fc.__all__ if name.startswith("fit_")]))
    read = fc.read_curves if fit == "fit_training_curves" else fc.read_runs
    call.given |= dict.fromkeys(WITHIN["read_runs"])
    own = dict(optima=(fit == "fit_optima",)) if read is fc.read_runs else {}
    table = call.show(call.of(read, **own))
    found = call.show(call.of(getattr(fc, fit), runs=(table,), curves=(table,)))
    predicted = call.of(found.predict, flops=(1e21,))
    assert predicted.params > 0 < predicted.tokens


@functools.cache
def options_of(command):
    """The options that a command's help lists."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        command_line([command, *(["decoder"] if command in TAKE_A_MODEL else []), "--help"])
    return sorted(set(re.findall(r"--[a-z][\w.-]+", said.getvalue())))


MODEL_WORDS = (
    "perceiver-ar --vocab-size 9 --num-latents 8 --num-prefix 8 --num-channels 16 --num-layers 2",
    "decoder --vocab-size 9 --seq-len 8 --num-channels 16 --num-layers 2 --num-heads 2",
    "hf ./config.json --seq-len 8",
    "./config.json --seq-len 8",
)
NEEDED = {
    "plan": "--budgets 1e16 --vocab-size 262 --num-latents 256 --batch-size 8 --widths 64 512",
    "fit": "runs.csv",
    "roofline": "--device h100",
    "generate": "--prompt-len 3 --new-tokens 4",
}
WORDS = st.sampled_from(
    ["", "-1", "0", "8", "1e9", "nan", "inf", "x", "9" * 60, "0.5", "true", "--", "-h", "é", "/",
     "causal", "executed", "palm", "h200", "reentrant", "nowhere.csv", "config.json"]
)  # fmt: skip


def commands(call):
    """Legal words, with options and words of every kind behind them or in their place."""
    command = call.draw(st.sampled_from([*COMMANDS, "nonsense"]), "command")
    words = call.draw(st.sampled_from(MODEL_WORDS)).split() if command in TAKE_A_MODEL else []
    words += NEEDED.get(command, "").split()
    if command in COMMANDS and (known := options_of(command)):
        for option in call.draw(st.lists(st.sampled_from(known), max_size=3), "options"):
            words += [option, *call.draw(st.lists(WORDS, max_size=2))]
    if words and call.draw(st.booleans(), "replaced"):
        words[call.draw(st.integers(0, len(words) - 1))] = call.draw(WORDS)
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            status = command_line([command, *words])
        except SystemExit as stop:
            status = stop.code or 0
    assert status in (0, 2)
    call.given[""] = None  # what is said of a word need not name an option
    if status == 2:
        raise ValueError(said.getvalue())


WITHIN = {
    "from_hf": FIELDS,
    "read_runs": [*HEADINGS, "row"],
    "read_curves": [*HEADINGS, "curve"],
    "isoflop_runs": ["budget"],
    "plan": ["vocab_size"],
    "per_device": ["tensor", "pipeline"],
}
"""What an error may name of an argument."""
JUDGED = [
    count_a_step, tune, answer_prompts, share_among_devices, count_executed, read_configs,
    ask_a_count, meter_steps, measure_modules, draw_for_tests, compare_ways, compare_optima,
    plan_runs, plan_families, ask_laws, fit_tables, commands,
]  # fmt: skip


OF_PAIRS = count_a_step, answer_prompts, meter_steps, share_among_devices, plan_runs, read_configs


def public(name):
    """A boundary that calls what has the name, and nothing else."""

    def boundary(call):
        call.given |= dict.fromkeys(WITHIN.get(name, ()))
        function = getattr(fc, name)
        call.odds = 2 * len(inspect.signature(function).parameters)
        call.show(call.of(function))

    boundary.__name__ = name
    return boundary


def fuzz(boundary, one_in=1, **options):
    """How often drawn calls were answered, and how often refused; what else they are is raised."""
    outcomes, many = collections.Counter(), settings().max_examples // one_in

    def calls(data):
        call = Call(data)
        try:
            with time_limit(SECONDS_PER_CALL), contextlib.redirect_stdout(io.StringIO()):
                boundary(call)
        except (ValueError, TypeError) as refusal:
            said = str(refusal)
            names = "|".join(re.escape(str(name).rstrip("s")) for name in call.given)
            assert re.search(rf"\b({names})", said), f"no argument is named: {said}"
            outcomes["refused"] += 1
        else:
            outcomes["answered"] += 1

    calls.__name__ = boundary.__name__
    test = given(st.data())(calls)
    with pytest.MonkeyPatch.context() as patch:
        if many < 1000:
            # The share of every test run draws the same calls each time, whatever the project's
            # text says, of which hypothesis takes numbers and words: what it finds is of a change.
            patch.setattr(providers, "_get_local_constants", providers.Constants)
            patch.setattr(providers, "CONSTANTS_CACHE", {})
            many, test = 50, seed(0)(test)
            options["database"] = None
        settings(**dict(max_examples=many) | options)(test)()
    return outcomes


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    """The files that command lines read; what they write goes beside them."""
    monkeypatch.chdir(tmp_path)
    with Path("runs.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([HEADINGS, *RUNS])
    Path("config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")


PUBLIC = [public(name) for name in sorted({*fc.__all__} - {judged.__name__ for judged in JUDGED})]


@pytest.mark.parametrize("boundary", JUDGED + PUBLIC, ids=lambda boundary: boundary.__name__)
def test_it_gives_a_right_answer_or_an_error_that_names_an_argument(boundary):
    outcomes = fuzz(boundary, one_in=4 if boundary in PUBLIC else 1)
    assert outcomes["answered"] > 0 < outcomes["refused"]


def failure_of(boundary, **options):
    """What the drawn calls of a boundary fail with."""
    with pytest.raises((Exception, ExceptionGroup)) as failure:
        fuzz(boundary, **options)
    return getattr(failure.value, "exceptions", [failure.value])[0]


@pytest.mark.parametrize(
    ("boundary", "home", "name"),
    [
        *((boundary, masks.Causal, "pairs") for boundary in OF_PAIRS),
        (count_executed, masks.Causal, "tiles"),
        (compare_ways, comparison, "differences"),
        (tune, finetuning, "_between"),
        (measure_modules, flopcount.torch, "_flops"),
    ],
)
def test_a_wrong_number_is_found(monkeypatch, boundary, home, name):
    original = getattr(home, name)

    def wrong(*arguments):
        found = original(*arguments)
        return found[1:] if isinstance(found, tuple) else found + 1

    monkeypatch.setattr(home, name, wrong)
    found = failure_of(boundary, phases=[Phase.generate], max_examples=500)
    assert isinstance(found, AssertionError)


def test_another_exception_is_found_and_shrunk():
    calls = []

    def looks_up(call):
        calls.append(call.any("num_tokens", st.integers(0, 10**6)))
        if isinstance(calls[-1], int) and calls[-1] > 40:
            raise IndexError

    assert isinstance(failure_of(looks_up), IndexError)
    assert calls[-1] == 41


@pytest.mark.parametrize("error", [ValueError(""), TypeError("wrong"), ZeroDivisionError("seed")])
def test_an_error_that_names_no_argument_is_found(error):
    def refuses(call):
        call.any("seed", 0)
        raise error

    assert isinstance(failure_of(refuses), AssertionError | ZeroDivisionError)


def test_a_hang_is_found(monkeypatch):
    def endless(_):
        while True:
            pass

    monkeypatch.setattr(f"{__name__}.SECONDS_PER_CALL", 0.1)
    assert isinstance(failure_of(endless, max_examples=1, phases=[Phase.generate]), TimeoutError)


def test_tuned_layers_in_an_array_and_a_batch_beyond_int64():
    model = fc.Decoder(
        vocab_size=1, seq_len=1, num_channels=1, num_layers=np.array([1]), num_heads=1
    )
    step = functools.partial(model.flops, batch_size=10**20, checkpointing="reentrant")
    assert step(tuning=fc.FineTuning(trainable="*")).total == step().total
    assert step(recompute="*").with_recompute == step().with_recompute


def test_the_same_calls_are_drawn_whatever_the_text_of_the_project_says(monkeypatch):
    def drawn(constants):
        monkeypatch.setattr(providers, "_local_constants", constants)
        values = []
        fuzz(lambda call: values.append(call.draw(st.tuples(st.integers(), st.text()))))
        return values

    constants = providers.Constants(integers=providers.SortedSet([12345, 67890]))
    values = drawn(constants)
    assert values == drawn(providers.Constants()) and len(set(values)) > 9  # noqa: PT018
    assert not {12345, 67890} & {number for number, _ in values}


def test_a_new_argument_needs_legal_values():
    error = failure_of(lambda call: call.of(lambda unheard_of: 1))
    assert str(error) == "'unheard_of'"
