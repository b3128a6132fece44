"""Runs at equal compute: steps and tokens for each model."""

import dataclasses
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flopcount as fc
from flopcount.article import EXPERIMENTS, reference_budget
from flopcount.isoflop import plan as planning
from flopcount.isoflop.laws import CHINCHILLA_SURFACE, ScalingLaw, read_law
from flopcount.isoflop.plan import Search, budget_from_gpu_hours, plan, throughput

PUBLISHED_STEPS = {
    "1": [50000, 31421, 21231],
    "2a": [26144, 18275, 20298, 46451, 8276],
    "2b": [26144, 18275],
}


def decoder(width, layers=1):
    return fc.Decoder(vocab_size=5, seq_len=3, num_channels=width, num_layers=layers, num_heads=1)


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.name)
def test_the_article_comes_out(experiment):
    budget = reference_budget(experiment, "article")
    runs = fc.isoflop_runs(experiment.models(), [budget], 80, convention="article", part="self")
    assert [run.steps for run in runs] == PUBLISHED_STEPS[experiment.name]


@given(st.integers(1, 10**9), st.integers(1, 50), st.integers(1, 64))
def test_steps_spend_the_budget_within_one_step(budget, width, batch_size):
    model = decoder(width)
    step = model.flops(batch_size=batch_size).total
    if budget < step:
        with pytest.raises(ValueError, match=f"budget = {budget}: expected at least one step"):
            fc.isoflop_runs([model], [budget], batch_size)
        return
    (run,) = fc.isoflop_runs([model], [budget], batch_size)
    assert run.flops == run.steps * step
    assert run.flops - step < budget <= run.flops
    assert run.tokens * model.flops().total == budget * 3  # 3 latent tokens a sequence


def test_budgets_outermost_and_parameters_given():
    models = [decoder(2), decoder(4)]
    runs = fc.isoflop_runs(models, [1e6, 3e6], 2)
    assert [(run.budget, run.model) for run in runs] == [
        (1e6, models[0]), (1e6, models[1]), (3e6, models[0]), (3e6, models[1])
    ]  # fmt: skip
    assert [run.num_params for run in runs[:2]] == [model.params().total for model in models]


def test_a_step_by_hand():
    # d = 2, n = 3: 3·(24·3·4 + 2·2·3·4 + 2·3·2·5) = 3·(288 + 48 + 60) = 1188 a sequence; two
    # sequences 2376. A budget of 5000 takes 3 steps and 5000·6/2376 tokens.
    (run,) = fc.isoflop_runs([decoder(2)], [5000], 2)
    assert (run.steps, run.flops, run.tokens) == (3, 3 * 2376, Fraction(5000 * 6, 2376))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(models=[]), ValueError, "models is empty"),
        (dict(budgets=[]), ValueError, "budgets is empty"),
        (dict(budgets=[0]), ValueError, "budget = 0"),
        (dict(budgets=[float("nan")]), ValueError, "budget = nan"),
        (dict(budgets=["1e9"]), TypeError, "budget = '1e9'"),
        (dict(batch_size=0), ValueError, "batch_size = 0"),
        (dict(batch_size=np.array([1, 2])), TypeError, "batch_size"),
        (dict(part="cross"), ValueError, "part = 'cross'"),
        (dict(models=["gpt2"]), TypeError, "models contains 'gpt2'"),
        (dict(models=[decoder(np.array([2, 4]))]), TypeError, "no arrays"),
        (dict(level="causal", convention="6n"), ValueError, "expected a convention alone"),
    ],
)
def test_bad_input(arguments, error, message):
    good = dict(models=[decoder(2)], budgets=[1e6], batch_size=2)
    with pytest.raises(error, match=message):
        fc.isoflop_runs(**good | arguments)


SIZES = dict(vocab_size=32_000, num_latents=512, num_prefix=1536, prefix_dropout=0.5, batch_size=80)


def test_families_are_evenly_spaced_around_the_optimum():
    law = ScalingLaw(0.5, 0.5, 0.1, 1.0, "by hand")
    for family in plan([1e19, 1e20], law=law, num_models=5, **SIZES).families:
        assert family.n_opt == pytest.approx(0.1 * family.budget**0.5)
        # Steps of log N are ln 16 / 4 = ln 2: ratios 1/4, 1/2, 1, 2, 4, each to a tenth of a step.
        steps = [math.log2(entry.ratio) for entry in family.proposals]
        assert steps == pytest.approx([-2, -1, 0, 1, 2], abs=0.1)
        assert family.warnings == ()
        for entry in family.proposals:
            assert entry.num_params == entry.run.model.params().total
            step = entry.run.flops // entry.run.steps
            assert 0 <= entry.run.flops - family.budget < step


def test_constraints_hold_and_friendly_shapes_are_preferred():
    options = dict(widths=(256, 1536), depths=(4, 24), head_dims=(48, 64), aspect_ratios=(20, 100))
    (family,) = plan([1e19], num_models=9, **options, **SIZES).families
    models = [entry.run.model for entry in family.proposals]
    for model in models:
        assert 256 <= model.num_channels <= 1536
        assert model.num_channels % 64 == 0
        assert 4 <= model.num_layers <= 24
        assert 20 <= model.num_channels / model.num_layers <= 100
        assert model.num_channels // model.num_heads in (48, 64)
    # Only multiples of 192 divide by 48; 64 divides every width and is preferred.
    assert {model.num_channels // model.num_heads for model in models} == {64}


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.name)
def test_the_article_comes_out_of_the_planner(experiment):
    models = experiment.models()
    planned = plan(
        [reference_budget(experiment, "article")],
        vocab_size=models[0].vocab_size, num_latents=512, num_prefix=models[0].num_prefix,
        prefix_dropout=0.5, batch_size=80, convention="article", part="self",
        shapes=[(model.num_channels, model.num_layers) for model in models],
    )  # fmt: skip
    entries = planned.families[0].proposals
    assert sorted(entry.run.steps for entry in entries) == sorted(PUBLISHED_STEPS[experiment.name])
    assert {entry.run.model for entry in entries} == set(models)


def test_the_articles_shape_comes_out_of_the_grid():
    options = dict(widths=(624, 624), width_multiple=8, depths=(11, 11), head_dims=(78,))
    budget = reference_budget(EXPERIMENTS[0], "article")
    options |= dict(num_models=3, convention="article", part="self")
    planned = plan([budget], **options, **SIZES)
    (entry,) = planned.families[0].proposals
    assert (entry.run.steps, f"{entry.num_params:.2e}") == (31421, "7.17e+07")
    assert f"{planned.families[0].n_opt:.2e}" == "7.32e+07"


def test_epochs_time_and_cost_by_hand():
    (family,) = plan(
        [1e18], corpus_tokens=10**9, flops_per_second=1e14, num_devices=2,
        price_per_device_hour=3.0, **SIZES,
    ).families  # fmt: skip
    entry = family.proposals[0]
    tokens = entry.run.steps * 80 * 512
    # Windows of 1536 + 512 tokens predict 512: four passes until every latent sequence was read.
    assert entry.epochs == pytest.approx(tokens / 1e9)
    assert entry.passes == pytest.approx(4 * tokens / 1e9)
    assert entry.seconds == pytest.approx(entry.run.flops / 2e14)
    assert entry.cost == pytest.approx(entry.run.flops / 1e14 / 3600 * 3)
    (warning,) = family.warnings
    over = [f"{each.num_params:.3g} (" for each in family.proposals if each.epochs > 1]
    assert "more than one effective epoch" in warning
    assert over
    assert warning.count("(") - 1 == len(over)
    assert all(size in warning for size in over)


@pytest.mark.parametrize(("missing", "warned"), [(0, False), (1, True)])
def test_one_effective_epoch_is_a_latent_token_for_each_of_the_corpus(missing, warned):
    # The article's first experiment: 50 000 steps of 80 x 512 latent tokens.
    tokens = 50_000 * 80 * 512
    options = dict(convention="article", part="self", shapes=[(512, 9), (128, 9), (1024, 9)])
    budget = reference_budget(EXPERIMENTS[0], "article")
    (family,) = plan([budget], corpus_tokens=tokens - missing, **options, **SIZES).families
    assert family.proposals[1].passes == pytest.approx(4)
    warnings = " ".join(family.warnings)
    assert ("4.5e+07" in warnings) is warned


def test_enough_corpus_gives_no_warning():
    assert plan([1e18], corpus_tokens=10**12, **SIZES).families[0].warnings == ()


def test_shapes_are_within_half_a_step_or_missed():
    # Widths 64 and 512 at depth 4, steps of a factor 2: N = 131 072, 262 144 (given), and so on.
    law = ScalingLaw(0.5, 0.5, 1.0, 1.0, "by hand")
    sizes = dict(vocab_size=16, num_latents=16, batch_size=1)
    options = dict(widths=(64, 512), width_multiple=448, depths=(4, 4), aspect_ratios=(1, 1e3))
    (family,) = plan([2.0**36], law=law, num_models=3, **options, **sizes).families
    assert [entry.run.model.num_channels for entry in family.proposals] == [448]
    assert "no shape near N = 6.55e+04, 2.62e+05" in " ".join(family.warnings)


def test_a_surface_is_a_prior_and_so_is_a_fit_in_a_file(tmp_path):
    law = ScalingLaw(0.5, 0.5, 0.1, 1.0, "by hand")
    for prior, key in ((law, "law"), (CHINCHILLA_SURFACE, "surface")):
        path = tmp_path / f"{key}.json"
        path.write_text(json.dumps({key: dataclasses.asdict(prior)}))
        assert read_law(path) == prior
        assert plan([1e18], law=prior, **SIZES).families[0].n_opt == prior.n_opt(1e18)
    assert plan([1e18], law="chinchilla-3", **SIZES).law == CHINCHILLA_SURFACE


@pytest.mark.parametrize(
    "text",
    ["", "[]", "3", '{"law": null}', '{"law": {"a": 1}}', '{"law": {"a": "x", "source": ""}}',
     '{"law": {"a": 0.5, "b": 0.5, "k_n": -1, "k_d": 1, "source": ""}}'],
)  # fmt: skip
def test_a_file_without_a_law(tmp_path, text):
    path = tmp_path / "fit.json"
    path.write_text(text)
    with pytest.raises((ValueError, TypeError), match=r"law =|k_n =|a ="):
        read_law(path)


def test_every_convention_is_given_and_what_it_leaves_out_is_said():
    entry = plan([1e18], **SIZES).families[0].proposals[0]
    assert set(entry.flops_by_count) >= {"causal", "dense", "article", "kaplan", "palm", "6n"}
    causal = entry.flops_by_count["causal"]
    assert causal["self"] + causal["cross"] == entry.run.flops
    assert entry.flops_by_count["6n"]["cross"] == "not covered"
    params = entry.run.model.params().self_part.total
    assert entry.flops_by_count["6n"]["self"] == 6 * params * entry.trained_tokens


def test_models_half_a_step_away_are_at_the_edge():
    search = Search(num_models=3, reach=4.0, **GRID)
    half = math.exp(planning._spacing(search) / 2)
    smaller, larger = planning._edge_warnings([1 / half, half], search)
    assert smaller.endswith("no smaller model in the family")
    assert larger.endswith("no larger model in the family")
    assert planning._edge_warnings([0.99 / half, 1.01 * half], search) == []


@pytest.mark.parametrize(("depths", "side"), [((2, 2), "larger"), ((60, 60), "smaller")])
def test_an_optimum_at_the_edge_is_said(depths, side):
    options = dict(widths=(512, 1024), depths=depths, aspect_ratios=(1, 1000))
    budget = 1e19 if side == "larger" else 1e18
    (family,) = plan([budget], **options, **SIZES).families
    assert any(f"at the edge: no {side} model" in warning for warning in family.warnings)
    assert any("no shape near N =" in warning for warning in family.warnings)


@pytest.mark.parametrize("name", ["widths", "depths"])
def test_a_range_beyond_any_network_is_refused(name):
    with pytest.raises(ValueError, match="shapes: expected at most"):
        plan([1e18], vocab_size=5, num_latents=4, batch_size=1, **{name: (64, 10**60)})


def test_the_grid_searched_is_every_width_depth_and_head_dim():
    options = dict(widths=(64, 12_800), width_multiple=2, depths=(2, 9), aspect_ratios=(0.1, 1e5))
    assert plan([1e19], **options, **SIZES).num_shapes == (12_800 - 62) // 2 * 8 * 4


def test_defaults():
    # What a plan searches unless told otherwise, as its page and --help state it.
    given = {field.name: field.default for field in dataclasses.fields(Search)}
    assert [name for name, value in given.items() if value is dataclasses.MISSING] == [
        "vocab_size", "num_latents", "batch_size"
    ]  # fmt: skip
    assert {name: value for name, value in given.items() if name not in SIZES and value} == dict(
        widths=(64, 8192), width_multiple=64, depths=(2, 80), head_dims=(32, 64, 96, 128),
        aspect_ratios=(16.0, 160.0), law="chinchilla-2", num_models=7, reach=4.0, part="total",
        num_devices=1, architecture="perceiver-ar",
    )  # fmt: skip
    assert (given["num_prefix"], given["prefix_dropout"]) == (0, 0.0)


def test_a_search_is_given_whole_or_by_its_fields():
    search = Search(num_models=3, **SIZES)
    assert str(plan([1e18], search)) == str(plan([1e18], num_models=3, **SIZES))
    with pytest.raises(TypeError, match="search with num_models: expected one of the two"):
        plan([1e18], search, num_models=3)
    with pytest.raises(TypeError, match="num_modles"):
        plan([1e18], num_modles=3, **SIZES)


def test_decoders_are_planned_as_well():
    sizes = dict(vocab_size=50_257, num_latents=1024, batch_size=8, architecture="decoder")
    planned = plan([1e19], num_models=3, corpus_tokens=10**10, **sizes)
    for entry in planned.families[0].proposals:
        model = entry.run.model
        assert isinstance(model, fc.Decoder)
        assert (model.seq_len, entry.num_params) == (1024, model.params().total)
        step = model.flops(batch_size=8).total
        assert 0 <= entry.run.flops - 1e19 < step
        assert entry.trained_tokens == entry.run.steps * 8 * 1024
        assert entry.passes == entry.epochs
    assert [round(entry.ratio, 1) for entry in planned.families[0].proposals] == [0.2, 1.0, 4.0]
    # GPT-2 small, as it was published: 124,439,808 parameters.
    (given,) = plan([1e19], shapes=[(768, 12)], **sizes).families[0].proposals
    assert given.num_params == 124_439_808


def test_gpu_hours_by_hand():
    # 10 h · 3600 s · 989.4e12 FLOP/s · 0.5.
    assert budget_from_gpu_hours(10, "h200", 0.5) == pytest.approx(36_000 * 989.4e12 * 0.5)
    assert throughput("h200", 0.5) == pytest.approx(989.4e12 * 0.5)


def test_a_plan_is_plain_data_and_a_table():
    planned = plan([1e18], num_models=3, **SIZES)
    assert planned.to_dict()["families"][0]["proposals"][1]["run"]["steps"] > 0
    assert "predicted N_opt 9.57e+07" in str(planned)  # 0.144849 · 1e18^0.49


def test_the_total_is_the_sum_of_all_runs():
    priced = dict(flops_per_second=1e14, num_devices=2, price_per_device_hour=3.0)
    planned = plan([1e18, 2e18], num_models=3, **priced, **SIZES)
    runs = [entry.run for family in planned.families for entry in family.proposals]
    flops = sum(run.flops for run in runs)
    # Three runs of 1e18 and three of 2e18 FLOPs, and a little more in whole steps: 9e18 at two
    # devices' 2e14 FLOP/s are 45,000 s = 12.5 h; two devices cost 6 an hour, 75 in all.
    assert flops == pytest.approx(9e18, rel=1e-3)
    assert planned.total == {
        "runs": 6,
        "flops": flops,
        "seconds": pytest.approx(flops / 2e14),
        "cost": pytest.approx(flops / 2e14 / 3600 * 6),
    }
    last = str(planned).splitlines()[-1]
    assert last.startswith("in total: 6 runs, 9e+18 FLOPs, 12.5 hours one after the other, cost 75")
    assert planned.to_dict()["total"] == planned.total
    unpriced = str(plan([1e18], num_models=3, **SIZES)).splitlines()[-1]
    assert unpriced == "in total: 3 runs, 3e+18 FLOPs"


def test_runs_that_whole_steps_make_unequal_are_warned_of():
    # 3.5 steps' FLOPs take 4 steps: 14.3 % more.
    shapes = dict(vocab_size=5, num_latents=3, shapes=[(512, 9)])
    model = fc.PerceiverAR(
        vocab_size=5, num_latents=3, num_prefix=0, num_channels=512, num_layers=9
    )
    step = model.flops(batch_size=2).total
    warnings = plan([3.5 * step], batch_size=2, **shapes).families[0].warnings
    assert "whole steps spend up to 14.3% beyond the budget: take a smaller batch" in warnings
    equal = plan([3000 * step], batch_size=2, **shapes).families[0].warnings
    assert not any("whole steps" in warning for warning in equal)


def test_every_way_of_counting_is_a_table():
    lines = plan([1e18], num_models=3, **SIZES).by_convention().splitlines()
    entry = plan([1e18], num_models=3, **SIZES).families[0].proposals[0]
    cells = {line.split()[0]: line.split()[1] for line in lines[3:-1]}
    assert cells["causal"] == f"{entry.run.flops:.4e}".replace("e+", "e")
    assert cells["6n"] == f"{entry.flops_by_count['6n']['self']:.4e}".replace("e+", "e") + "*"
    assert set(cells) == set(entry.flops_by_count)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(budgets=[]), ValueError, "budgets is empty"),
        (dict(budgets=1e18), TypeError, "budgets = 1e\\+18"),
        (dict(budgets=[-1.0]), ValueError, "budget = -1.0"),
        (dict(reach=1), ValueError, "reach = 1"),
        (dict(num_models=2), ValueError, "num_models = 2"),
        (dict(num_models=10**9), ValueError, "num_models = 1000000000"),
        (dict(reach=1e300), ValueError, "reach = 1e\\+300"),
        (dict(widths=(1, 10**12)), ValueError, "expected at most 20,000,000"),
        (dict(budgets=[10**400]), ValueError, "budget"),
        (dict(budgets=[1e300], flops_per_second=1e-300), ValueError, "seconds exceeds"),
        (dict(shapes=[]), ValueError, "shapes = \\[\\]"),
        (dict(shapes=[(1, 2, 3)]), ValueError, "expected pairs"),
        (dict(shapes=[(512, 0)]), ValueError, "num_layers = 0"),
        (dict(shapes=3), TypeError, "shapes = 3"),
        (dict(law=ScalingLaw(0.5, 0.5, -1.0, 1.0, "bad")), ValueError, "expected a positive opt"),
        (dict(law=ScalingLaw(99.0, 0.5, 1.0, 1.0, "bad")), ValueError, "no optimum at 1e\\+18"),
        (dict(law="kaplan"), ValueError, "law = 'kaplan'"),
        (dict(widths=(10, 20)), ValueError, "widths = \\(10, 20\\)"),
        (dict(depths=[2, 4]), TypeError, "depths = \\[2, 4\\]"),
        (dict(width_multiple=0), ValueError, "width_multiple = 0"),
        (dict(width_multiple=64.0), ValueError, "width_multiple = 64.0"),
        (dict(num_prefix=0.0), TypeError, "num_prefix = 0.0"),
        (dict(head_dims=()), ValueError, "head_dims is empty"),
        (dict(aspect_ratios=(1e6, 1e7)), ValueError, "no shape among"),
        (dict(aspect_ratios=3), TypeError, "aspect_ratios = 3"),
        (
            dict(price_per_device_hour=2.0),
            ValueError,
            "price_per_device_hour = 2.0 without flops_per_second",
        ),
        (dict(corpus_tokens=1.5), TypeError, "corpus_tokens = 1.5"),
        (dict(num_devices=0, flops_per_second=1e14), ValueError, "num_devices = 0: expected"),
        (dict(num_devices=2), ValueError, "num_devices = 2 without flops_per_second: it would"),
        (dict(num_prefix=0), ValueError, "prefix_dropout = 0.5 without num_prefix: it would do"),
        (dict(shapes=[(512, 9)], widths=(64, 128)), ValueError, "widths = .* beside shapes"),
        (dict(shapes=[(512, 9)], head_dims=np.array([64])), ValueError, "head_dims = .* beside"),
        (dict(shapes=[(512, 9)], reach=2), ValueError, "reach = 2 beside shapes"),
        (dict(shapes=[(512, 9)], num_models=3), ValueError, "num_models = 3 beside shapes"),
        (dict(budgets=[1]), ValueError, "budget = 1: expected at least one step's FLOPs"),
        (dict(budgets=[1e18, 1e3]), ValueError, "budget = 1000.0: expected at least one step"),
        (dict(part="cross"), ValueError, "part = 'cross'"),
        (dict(architecture="llama"), ValueError, "architecture = 'llama'"),
        (dict(architecture="decoder"), ValueError, "num_prefix = 1536 of a decoder: it would do"),
        (dict(convention="6n"), ValueError, "does not cover"),
    ],
)
def test_bad_plans(arguments, error, message):
    with pytest.raises(error, match=message):
        plan(**dict(budgets=[1e18]) | SIZES | arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((10, "h200", 1.5), "mfu = 1.5"), ((0, "h200", 0.5), "gpu_hours = 0"), ((1, "x", 0.5), "'x'")],
)
def test_bad_gpu_hours(arguments, message):
    with pytest.raises(ValueError, match=message):
        budget_from_gpu_hours(*arguments)


GRID = dict(vocab_size=16, num_latents=16, batch_size=1)


def test_preferences_by_hand():
    # d = 128 and 192 at L = 2: d / L = 64 and 96, both ends allowed; c = 32, 64, 128, where 192 is
    # no multiple of 128. 0.05 each for a d no multiple of 128, c = 32, an e-fold of d / L from 64.
    search = Search(
        widths=(128, 192), depths=(2, 2), head_dims=(32, 64, 128), aspect_ratios=(64.0, 96.0),
        num_prefix=8, part="self", **GRID,
    )  # fmt: skip
    shapes = planning._Shapes.of(search)
    assert list(zip(shapes.width, shapes.width // shapes.heads, strict=True)) == [
        (128, 32), (128, 64), (128, 128), (192, 32), (192, 64)
    ]  # fmt: skip
    wide = math.log(1.5)
    assert shapes.penalty == pytest.approx([0.05, 0, 0, 0.05 * (2 + wide), 0.05 * (1 + wide)])
    assert shapes.num_searched == 6
    params = [fc.PerceiverAR(**SELF, num_channels=d).params() for d in (128, 192)]
    assert sorted(set(shapes.log_params)) == pytest.approx(
        [math.log(each.self_part.total) for each in params]
    )
    assert params[0].total != params[0].self_part.total


SELF = dict(vocab_size=16, num_latents=16, num_prefix=8, num_layers=2)


def test_a_shape_serves_targets_within_half_a_step_by_hand():
    search = Search(
        widths=(512, 512), depths=(4, 4), head_dims=(64,), num_models=3, reach=4.0, **GRID
    )
    # Targets at N_opt / 4, N_opt and 4 · N_opt are a step of ln 4 apart.
    assert planning._spacing(search) == pytest.approx(math.log(4))
    shapes = planning._Shapes.of(search)
    # log N is 0.6 steps below log N_opt: 0.4, 0.6 and 1.6 steps from the three.
    n_opt = math.exp(float(shapes.log_params[0]) + 0.6 * math.log(4))
    models, warnings = shapes.family(n_opt)
    assert len(models) == 1
    assert warnings == [f"no shape near N = {n_opt:.3g}, {4 * n_opt:.3g}: widen the constraints"]


def test_far_from_every_shape_the_nearest_is_taken():
    narrow = dict(widths=(64, 128), depths=(1, 2), head_dims=(64,), num_models=3, reach=1.2)
    for budget, shape in ((1e20, (128, 2)), (1e9, (64, 1))):
        (family,) = fc.plan([budget], **narrow, **GRID).families
        models = [proposal.run.model for proposal in family.proposals]
        assert [(model.num_channels, model.num_layers) for model in models] == [shape]


def test_shapes_may_be_lists_and_records_say_what_runs_take():
    plan = fc.plan([1e12], shapes=[[64, 2], (128, 1)], **GRID)
    records = plan.records()
    assert [(r["num_channels"], r["num_layers"]) for r in records] == [(64, 2), (128, 1)]
    for record, proposal in zip(records, plan.families[0].proposals, strict=True):
        assert record["num_params"] == proposal.run.model.params().total
        assert record["trained_tokens"] == record["steps"] * 16
        assert (record["budget"], record["flops"]) == (1e12, proposal.run.flops)


def test_an_optimum_is_at_the_edge_half_a_step_from_it():
    # Half a step is a factor √4 = 2.
    search = Search(num_models=3, reach=4.0, **GRID)
    assert planning._edge_warnings([0.49, 2.01], search) == []
    assert [w.split()[-5] for w in planning._edge_warnings([0.51, 1.99], search)] == [
        "smaller", "larger"
    ]  # fmt: skip


def test_a_grid_of_one_shape_too_many_is_refused():
    with pytest.raises(ValueError, match="span 20000004 shapes: expected at most 20,000,000"):
        plan([1e18], widths=(1, 5_000_001), width_multiple=1, depths=(1, 1), **GRID)


@pytest.mark.parametrize("law", [ScalingLaw(0.5, 0.5, 0.1, 1.0, "by hand"), CHINCHILLA_SURFACE])
def test_the_prior_is_asked_for_the_budget_itself(law):
    planned = plan([1e5], law=law, shapes=[(8, 1)], vocab_size=2, num_latents=1, batch_size=1)
    assert planned.law == law
    assert planned.families[0].n_opt == pytest.approx(law.n_opt(1e5), rel=1e-9)


def test_cells_of_the_tables():
    priced = dict(flops_per_second=1e14, price_per_device_hour=3.0)
    planned = plan([1e18], num_models=3, **priced, **SIZES)
    for entry in planned.families[0].proposals:
        assert f" {entry.cost:,.2f}" in str(planned)
        assert f" {entry.seconds / 3600:.3g} " in str(planned)
    assert planning._run_flops({"self": "not covered", "cross": 5}) == "not covered"
    assert planning._run_flops({"self": 12, "cross": "not covered"}) == "1.2000e01*"
    assert planning._run_flops({"self": 12, "cross": 5}) == "1.7000e01"
