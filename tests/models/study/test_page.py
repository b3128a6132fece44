"""What the findings and the page's tables say of made-up runs whose truth is known."""

import csv
import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from flopcount.isoflop.profiles import fit_isoflop_profiles
from flopcount.isoflop.runs import read_runs
from flopcount.isoflop.surface import fit_surface
from models.study import page
from models.study.__main__ import main
from models.study.design import CPU, Stage, plan, sized, trained_tokens
from models.study.findings import Widths, find, read_results, recounts, vocabularies
from models.study.minima import (
    Best,
    Difference,
    Place,
    Scatter,
    averaged,
    half_width,
    scatter_of_seeds,
)
from models.study.prediction import outcome, predict
from tests.models.study.test_study import row_of, trials_of

ROOT = Path(__file__).parents[3]
NOISE = 0.002
PAIR = ("pair-small", "pair-middle")
SEEDS = ("seeds-small", "seeds-middle")


def surface(params, tokens):
    return 0.5 + 40 / params**0.4 + 800 / tokens**0.4


def of_surface(planned):
    return surface(planned.run.parameters, trained_tokens(planned.run.config))


def parabola(planned, shift=0.0, cubic=0.0):
    """Its vertex lies inside the sizes of every arm, and the loss there falls with the budget."""
    sizes = CPU.arms["3n"].shapes[planned.run.budget]
    centre = np.log([12 * d * w * w + 400 * w for w, d in sizes]).mean()
    x = np.log(planned.run.parameters) - centre - shift
    return 4 - 0.15 * np.log10(planned.run.budget) + 0.03 * x**2 + cubic * x**3


def none_worse_by(offset):
    return lambda planned: parabola(planned) + offset * (planned.arm == "none")


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def rows_of(loss, stages=(*PAIR, *SEEDS), noise=NOISE):
    """Rows of the trials and of some stages, with normal noise, the same at every call."""
    generator = np.random.default_rng(7)
    rows = trials_of(CPU)
    for stage in stages:
        rows += [
            row_of(each, loss(each) + noise * generator.standard_normal())
            for each in plan(CPU, rows, [stage])
        ]
    return rows


def found_in(tmp_path, rows, num_bootstrap=0):
    write(tmp_path / "runs.csv", rows)
    return find(read_results(CPU, [tmp_path]), num_bootstrap)


def test_an_advantage_larger_than_noise_is_found_with_its_size(tmp_path):
    found = found_in(tmp_path, rows_of(none_worse_by(0.05)))
    assert [each.first.budget for each in found.differences] == [1e12, 3e12, 1e13]
    for each in found.differences:
        assert each.verdict == "3n is better"
        assert (each.first.arm, each.second.arm) == ("3n", "none")
        assert each.delta == pytest.approx(-0.05, abs=each.half_width)
        assert each.half_width < 0.02
        assert each.mean_by_size[0] == pytest.approx(-0.05, abs=each.mean_by_size[1])
        assert len(each.by_size) == len(CPU.arms["3n"].shapes[each.first.budget])
    assert page.differences(found).count("| 3n is better |") == 3
    [change] = found.changes
    assert (change.earlier.first.budget, change.later.first.budget) == (1e12, 1e13)
    assert abs(change.delta) < change.half_width


def test_surfaces_tell_the_same_difference(tmp_path):
    rows = rows_of(lambda planned: of_surface(planned) + 0.05 * (planned.arm == "none"))
    found = found_in(tmp_path, rows, num_bootstrap=20)
    delta, interval = found.differences[-1].by_surface
    ends = [min(loss for loss, *_ in models_at(arm, 1e13)) for arm in ("3n", "none")]
    assert delta == pytest.approx(ends[0] - ends[1] - 0.05, abs=0.004)
    assert interval.low < delta < interval.high
    assert found.optima["3n", 1e13].loss - found.optima["none", 1e13].loss == delta


def models_at(arm, budget):
    """Loss on the surface, N and D of the models that cost a budget, of several widths."""
    for width in range(8, 65, 4):
        model = sized(CPU, arm, (width, 2)).counted()
        params, tokens = model.params().total, budget / model.flops(batch_size=8).total * 8 * 128
        yield surface(params, tokens), params, tokens


def test_the_optimum_of_a_surface_is_the_best_model():
    at, best = Widths(CPU, "none").optimum(surface_fit("none"), 1e13), min(models_at("none", 1e13))
    assert at.loss == pytest.approx(best[0], abs=1e-3)
    assert at.params == pytest.approx(best[1], rel=0.2)
    assert at.params * at.tokens == pytest.approx(best[1] * best[2], rel=0.02)


def test_a_budget_without_all_its_sizes_is_in_no_finding(tmp_path):
    rows = rows_of(none_worse_by(0.05), (*PAIR, "seeds-small"))
    last = max(
        (row for row in rows if row["arm"] == "none" and row["budget"] == "10000000000000.0"),
        key=lambda row: int(row["parameters"]),
    )
    found = found_in(tmp_path, [row for row in rows if row is not last])
    assert set(found.best["none"]) == {1e12, 3e12}
    assert set(found.best["3n"]) == {1e12, 3e12, 1e13}
    assert [each.first.budget for each in found.differences] == [1e12, 3e12]


def test_a_small_advantage_is_said_to_be_alone(tmp_path):
    found = found_in(tmp_path, rows_of(none_worse_by(0.05)))
    [first, *_] = found.differences
    between = (first.half_width + first.joint_half_width) / 2
    off = first.delta + between
    profile = dataclasses.replace(first.first.profile, loss_opt=first.first.loss - off)
    moved = dataclasses.replace(first, first=dataclasses.replace(first.first, profile=profile))
    assert moved.delta == pytest.approx(-between)
    assert moved.verdict == "3n is better, taken alone"


def test_less_than_noise_is_said_to_be_within_noise(tmp_path):
    found = found_in(tmp_path, rows_of(none_worse_by(0.001), noise=0.004))
    assert [each.verdict for each in found.differences] == ["within noise"] * 3
    # The same advantage is found once noise is far smaller: the verdict can go the other way.
    clear = found_in(tmp_path, rows_of(none_worse_by(0.001), noise=1e-5))
    assert {each.verdict for each in clear.differences} == {"3n is better"}


def test_without_seeds_nothing_is_larger_than_noise(tmp_path):
    found = found_in(tmp_path, rows_of(none_worse_by(0.5), PAIR))
    assert found.noise == {"none": None, "3n": None}
    assert "not known: noise has no size yet" in page.differences(found)


def none_rising(offset):
    """The arm without a prefix is the better, the larger; the other has a minimum."""

    def loss(planned):
        if planned.arm == "none":
            return offset - 0.05 * np.log(planned.run.parameters)
        return parabola(planned)

    return loss


def test_a_minimum_at_the_edge_may_win_but_not_lose(tmp_path):
    better = found_in(tmp_path, rows_of(none_rising(1.0), noise=1e-4))
    assert {each.verdict for each in better.differences} == {"none is better"}
    worse = found_in(tmp_path, rows_of(none_rising(8.0), noise=1e-4))
    assert {each.verdict for each in worse.differences} == {
        "not decided: none has no minimum inside the sizes tried"
    }


def best_of_losses(losses, sizes=(-1.0, 0.0, 1.0), arm="one", noise=None):
    params = np.exp(10 + np.array(sizes))
    runs = read_runs(
        {"N": params, "D": 1e15 / 6 / params, "C": [1e15] * len(params), "loss": losses}
    )
    [profile] = fit_isoflop_profiles(runs).profiles
    run = {"arm": arm, "validation_loss": str(min(losses)), "bytes_per_token": "1"}
    return Best(run, profile, noise)


def test_variances_by_hand():
    noise = Scatter(0.1, 10, "drawn")
    best = best_of_losses([2.0, 1.0, 2.0], noise=noise)
    # The parabola goes through its three points, the vertex at the middle one: its noise.
    assert best.variance == pytest.approx(1)
    # Slope 2x, whose variance is σ²·(1/2 + 4x²·3/2): (2x)² ≤ w²·(1/2 + 6x²), w = t·σ.
    w = half_width([(noise, 1.0)])
    assert w == pytest.approx(2.2281 * 0.1, rel=1e-4)
    x = (w**2 / 2 / (4 - 6 * w**2)) ** 0.5
    assert np.log([best.n_interval.low, best.n_interval.high]) == pytest.approx([10 - x, 10 + x])
    # With more noise the curvature is not told from 0, and no size is.
    flat = best_of_losses([2.0, 1.0, 2.0], noise=Scatter(0.5, 10, "drawn")).n_interval
    assert (flat.low, flat.high) == (0, np.inf)
    # Losses 1, 3 and 2, 4, 6: squares 2 and 8 on 1 and 2 degrees of freedom.
    scatter = scatter_of_seeds([[1.0, 3.0], [2.0, 4.0, 6.0], [9.0]])
    assert (scatter.deviation, scatter.freedom) == (pytest.approx((10 / 3) ** 0.5), 3)


def test_freedom_of_two_noises_by_hand():
    # v = 1 and 4 on 4 and 8 degrees of freedom: 25 / (1/4 + 16/8) = 11.1; t there is 2.198.
    parts = [(Scatter(1.0, 4, "one"), 1.0), (Scatter(2.0, 8, "other"), 1.0)]
    assert half_width(parts) == pytest.approx(2.198 * 5**0.5, rel=1e-3)
    assert half_width([*parts, (None, 1.0)]) is None
    # Of 10 comparisons each holds at 99.5 %.
    assert half_width([(Scatter(1.0, 10, "one"), 1.0)], 10) == pytest.approx(3.5814, rel=1e-4)


def test_intervals_of_a_vertex_hold_as_often_as_stated():
    generator = np.random.default_rng(0)
    sizes, sigma, freedom, draws = np.linspace(-1.5, 1.5, 7), 0.02, 11, 400
    held = shifted = 0
    for _ in range(draws):
        measured = sigma * (generator.chisquare(freedom, 2) / freedom) ** 0.5
        one, other = (
            best_of_losses(
                2 + 0.05 * (sizes - at) ** 2 + sigma * generator.standard_normal(7),
                sizes,
                noise=Scatter(deviation, freedom, f"of {at}"),
            )
            for at, deviation in zip((0.2, -0.1), measured, strict=True)
        )
        if one.n_opt is None or other.n_opt is None:
            draws -= 1
            continue
        held += one.n_interval.low < np.exp(10.2) < one.n_interval.high
        place = Place(one, other, "N")
        shifted += place.interval.low < np.exp(0.3) < place.interval.high
    # 95 % of about 400, with a standard deviation of 1.1 %.
    assert 0.91 <= held / draws <= 0.99
    assert 0.91 <= shifted / draws <= 0.995


def test_seeds_of_a_size_count_once():
    one = {"arm": "a", "budget": "1", "num_channels": "8", "num_layers": "2"}
    rows = [
        one | {"validation_loss": loss, "bytes_per_token": bytes_, "seed": seed}
        for seed, (loss, bytes_) in enumerate([("2", "1"), ("6", "2"), ("4", "1")])
    ]
    rows.append(rows[0] | {"num_channels": "16"})
    first, second = averaged(rows)
    assert (first["seed"], first["validation_loss"], first["bytes_per_token"]) == (0, "3.0", "1.0")
    assert (second["num_channels"], second["validation_loss"]) == ("16", "2.0")


def test_noise_is_the_larger_of_two_scatters(tmp_path):
    # A cubic in log N of one arm, which no parabola follows and every seed repeats.
    found = found_in(
        tmp_path, rows_of(lambda planned: parabola(planned, cubic=0.05 * (planned.arm == "none")))
    )
    over_seeds, about_none, about_3n = found.scatters
    assert (about_none.of, about_3n.of) == (
        "about the parabolas of none",
        "about the parabolas of 3n",
    )
    assert found.noise["none"] == about_none
    assert about_none.deviation > 2 * over_seeds.deviation
    # A mean of seeds scatters less than a seed, which is taken where there are no more.
    assert found.noise["3n"].deviation == max(over_seeds.deviation, about_3n.deviation)
    assert over_seeds.interval().low < NOISE < over_seeds.interval().high
    # Three sizes of two arms at two budgets with three seeds each: 12 · 2 degrees of freedom;
    # seven, seven and six sizes of an arm, less three coefficients each.
    assert (over_seeds.freedom, about_3n.freedom) == (24, 11)


def test_sizes_are_compared_without_positions(tmp_path):
    found = found_in(tmp_path, rows_of(parabola))
    by_size = {(each.first.budget, each.size): each for each in found.places}
    for budget in (1e12, 1e13):
        whole, without = by_size[budget, "N"], by_size[budget, "N without positions"]
        assert whole.ratio == pytest.approx(whole.first.n_opt / whole.second.n_opt)
        # Of equal networks the arm with a prefix has 384 · d more.
        assert without.ratio < whole.ratio
        best = whole.first
        sizes, place = np.sort(best.profile.params), best.at("cross part", best.n_opt)
        assert sizes[0] < np.exp(best.at("N without positions", sizes[-1])) < sizes[-1]
        assert 0.1 < place < 0.4
    assert "| 3n / none | 1e12 | all |" in page.places(found)


def test_vocabularies_are_compared_by_what_they_share():
    arms, fits = ("3n_pieces", "3n"), (surface_fit("3n"), surface_fit("3n"))
    whole, inner = vocabularies(arms, [Widths(CPU, arm) for arm in arms], fits, 1e13)
    # One surface: at the same FLOPs of the layers the same number of them is best.
    assert (whole.budget, whole.counted) == (1e13, "all")
    assert inner.budget < 1e13
    assert inner.lost == 0
    # More parameters lie outside of the layers, which the same surface in N gives to them.
    assert whole.ratio == pytest.approx(1, abs=0.1)
    assert inner.ratio < 0.9
    assert inner.interval.low == pytest.approx(inner.ratio)


def test_equal_arms_are_told_apart_as_rarely_as_stated():
    generator = np.random.default_rng(0)
    sizes, sigma, freedom = np.linspace(-1, 1, 6), 0.01, 12
    told, draws = 0, 400
    for _ in range(draws):
        losses = 2 + sizes**2 + sigma * generator.standard_normal((2, 6))
        measured = sigma * (generator.chisquare(freedom) / freedom) ** 0.5
        noise = Scatter(measured, freedom, "drawn")
        one, other = (best_of_losses(each, sizes, noise=noise) for each in losses)
        told += Difference(one, other, (), None, 1).verdict.endswith("is better")
    # 5 % of 400 are 20, with a standard deviation of 4.4.
    assert 7 <= told <= 33


def test_losses_are_per_byte(tmp_path):
    rows = rows_of(parabola, ("pieces",), noise=0)
    for row in rows:
        if row["arm"] == "3n_pieces":
            row["validation_loss"] = str(2.5 * float(row["validation_loss"]))
            row["bytes_per_token"] = "2.5"
    found = found_in(tmp_path, rows)
    whole = found_in(tmp_path, rows_of(parabola, ("pieces",), noise=0))
    for budget, best in found.best["3n_pieces"].items():
        assert best.loss == pytest.approx(whole.best["3n_pieces"][budget].loss)


def surface_fit(arm):
    rows = [
        {"params": p.run.parameters, "flops": p.run.flops, "loss": of_surface(p)}
        | {"tokens": trained_tokens(p.run.config)}
        for p in plan(CPU, trials_of(CPU), ["pair-small", "pair-middle", "pair-large"])
        if p.arm == arm
    ]
    runs = read_runs({name: [row[name] for row in rows] for name in rows[0]})
    return fit_surface(runs, objective="variable-projection", num_bootstrap=4)


def test_recounting_moves_the_optimum_as_a_search_finds():
    fit = surface_fit("none")
    found = {each.count: each for each in recounts(Widths(CPU, "none"), "none", fit, 1e13)}
    assert found["causal"].ratio == 1.0
    assert {"dense", "article", "kaplan", "6n", "causal, no output layer"} <= found.keys()
    # Minimise L(N, D) with D = C' / (6·N) per token by brute force, 6n counting 6·N: L depends on
    # N alone, and C' is what the causal optimum costs. At small widths 6·N misses attention, so
    # that small models look cheaper than they are and the optimum moves to them.
    assert found["6n"].ratio < 1
    assert found["article"].ratio == pytest.approx(1, abs=0.1)
    # Of the arms with a prefix only what covers it.
    covered = {each.count for each in recounts(Widths(CPU, "3n"), "3n", surface_fit("3n"), 1e13)}
    assert covered == {
        "causal",
        "dense",
        "executed",
        "causal, no output layer",
        "article",
        "article-update",
    }


def test_a_budget_trained_by_another_count_shows_its_move(tmp_path):
    stages = CPU.stages | {"recounted": Stage(("none",), (1e13,), convention="6n")}
    study = dataclasses.replace(CPU, stages=stages)

    def moved_by(shift):
        rows = rows_of(parabola, noise=1e-4)
        generator = np.random.default_rng(1)
        rows += [
            row_of(each, at_causal(each, shift) + 1e-4 * generator.standard_normal())
            for each in plan(study, rows, ["recounted"])
        ]
        write(tmp_path / "runs.csv", rows)
        return find(read_results(study, [tmp_path]), 0)

    def at_causal(each, shift):
        run = dataclasses.replace(each.run, budget=1e13)
        return parabola(dataclasses.replace(each, run=run), shift)

    moved = moved_by(0.4)
    [each] = moved.trained
    assert each.place.ratio == pytest.approx(np.exp(0.4), rel=0.05)
    assert each.place.interval.low > 1
    assert "| none | 1e13 | 6n |" in page.counts(moved)
    [still] = moved_by(0.0).trained
    assert still.place.interval.low < 1 < still.place.interval.high


def test_prediction_and_outcome(tmp_path):
    rows = rows_of(of_surface, (*PAIR, *SEEDS, "pair-large"))
    path, found = tmp_path / "prediction-3n.json", found_in(tmp_path, rows, num_bootstrap=20)
    made = predict(found, "3n", 1e14, path)
    said = made["approaches"]["3, huber-log"]
    # The surface is found again: its loss at the predicted sizes is the predicted one.
    assert said["loss"] == pytest.approx(surface(said["params"], said["tokens"]), rel=0.02)
    assert made["approach"] == "3, variable-projection"
    assert Scatter(**made["noise"]) == found.noise["3n"]
    with pytest.raises(ValueError, match="never changed"):
        predict(found, "3n", 1e14, path)
    with pytest.raises(ValueError, match="above all trained budgets, up to 3e"):
        predict(found, "3n", 3e13, tmp_path / "another.json")
    tests = [e for e in plan(CPU, rows, predictions=[path]) if e.stage == "prediction-3n"]
    assert len(tests) == 3
    assert set(made["shapes"]) <= set(CPU.candidates)
    assert "not tested, runs must hold one at 1e+14" in page.predictions(found_in(tmp_path, rows))

    def ended(loss=of_surface, **more):
        return [row_of(each, loss(each), **({"date": "2999-01-01T00:00:00+00:00"} | more))
                for each in tests]  # fmt: skip

    late = ended()
    after = found_in(tmp_path, rows + late)
    told = page.predictions(after)
    assert "3n at 1e14 FLOPs, predicted " in told
    assert "| 3, huber-log | loss |" in told
    came = outcome(path, late)
    assert came.best.n_opt
    assert came.best.loss == pytest.approx(said["loss"], rel=0.02)
    assert came.best.half_width == pytest.approx(half_width([(found.noise["3n"], 1.0)]), rel=0.2)
    # The runs that test it are in no fit, and no later prediction is of a budget that they reach.
    assert len(after.results.of("3n")) == len(found.results.of("3n"))
    with pytest.raises(ValueError, match="up to 1e"):
        predict(after, "3n", 1e14, tmp_path / "another.json")
    # What is off by little is not told from what was predicted, by both intervals; by much, it is.
    high = said["loss_interval"]["high"]
    reaches = high + 0.5 * came.best.half_width
    for at, *expected in ((said["loss"], "yes", "yes"), (reaches, "no", "yes"), (9.0, "no", "no")):
        moved = outcome(path, ended(lambda each, at=at: at + parabola_about(tests, each)))
        [row] = [r for r in moved.rows if (r["approach"], r["of"]) == ("3, huber-log", "loss")]
        assert [row["inside"], row["agree"]] == expected
    # What had been trained, or begun, before is no prediction.
    with pytest.raises(ValueError, match="no prediction"):
        outcome(path, ended(date="2001-01-01T00:00:00+00:00"))
    with pytest.raises(ValueError, match="had begun: no prediction"):
        outcome(path, ended(date=made_at(path), seconds=3600))


def parabola_about(tests, each):
    """Least at the middle of the sizes of some runs, and 0 there."""
    sizes = sorted(test.run.parameters for test in tests)
    return np.log(each.run.parameters / sizes[1]) ** 2


def made_at(path):
    return json.loads(path.read_text())["date"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corpus": "another"}, "results must be validated on the same bytes"),
        ({"learning_rate": "0.002"}, "must have the study's steps and rate"),
        ({"steps": "7"}, "must have the study's steps and rate"),
        ({"run": "lunch"}, "results must be of the study, got lunch"),
    ],
)
def test_results_that_do_not_compare_are_refused(tmp_path, change, message):
    rows = rows_of(parabola, ("pair-small",))
    rows[-1] |= change
    with pytest.raises(ValueError, match=message):
        found_in(tmp_path, rows)


def test_a_run_is_there_once(tmp_path):
    rows = rows_of(parabola, ("pair-small",))
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        write(folder / "runs.csv", rows)
    assert len(read_results(CPU, folders).runs) == len(rows)
    rows[0]["validation_loss"] = "9.0"
    write(folders[1] / "runs.csv", rows)
    with pytest.raises(ValueError, match="a run once, got two of none-3e12"):
        read_results(CPU, folders)
    with pytest.raises(ValueError, match="got none in"):
        read_results(CPU, [tmp_path])


def test_rates_are_told_with_the_check_at_the_largest_budget(tmp_path):
    rows = rows_of(parabola, ("pair-large", "rate-check"), noise=0)
    told = page.rates(found_in(tmp_path, rows))
    assert "peak = 0.01 · width^" in told
    assert told.count("| 1.00 |") == 6  # best over rule, of three sizes of two arms
    assert told.count("| +0.0000 |") == 4  # both arms at half and double the rate


def marks():
    names = [*page.TABLES, *(f"plot {name}" for name in ("arms", "seconds"))]
    names += [f"plot profiles-{arm}" for arm in CPU.arms]
    return "".join(f"said by hand\n<!-- begin {n} -->\nold\n<!-- end {n} -->\n" for n in names)


def test_the_command_fills_the_page_and_writes_the_same_again(tmp_path, capsys):
    rows = rows_of(none_worse_by(0.05), ("pair-small", "seeds-small"))
    write(tmp_path / "results" / "runs.csv", rows)
    out = tmp_path / "study.md"
    out.write_text(marks())
    asked = ["page", "--study", "cpu", "--results", str(tmp_path / "results")]
    asked += ["--page", str(out), "--bootstrap", "10"]
    assert main(asked) == 0
    files = [tmp_path / name for name in capsys.readouterr().out.split()]
    first = {path: path.read_bytes() for path in files}
    names = {"study.md", "arms.png", "seconds.png", "profiles-3n.png", "profiles-none.png"}
    assert {path.name for path in files} == names
    text = out.read_text()
    assert all(f"](study/{path.name})" in text for path in files[1:])
    assert "old" not in text
    assert "--where" not in text  # stages are no experiments that a fit should keep apart
    assert text.count("said by hand") == marks().count("said by hand")
    assert "| pair-small | 28 of 28 |" in text
    assert "| 7n | 0 of " in text
    assert "| seeds-7n | not known yet |" in text
    # Without positions 3n is as large as none, and 128 and 512 positions of 16 channels larger.
    assert "| none | 16×2 | 12,822 |" in text
    assert main(asked) == 0
    assert {path: path.read_bytes() for path in files} == first
    out.write_text("no marks")
    assert main(asked) == 2
    assert "text must have the marks" in capsys.readouterr().err


@pytest.mark.filterwarnings("error")
def test_one_run_fills_a_page(tmp_path):
    out = tmp_path / "study.md"
    out.write_text(marks())
    page.fill(out, found_in(tmp_path, trials_of(CPU)[:1]))
    text = out.read_text()
    assert page.NONE_YET in text
    assert "nan" not in text


def test_the_committed_page_has_every_mark(tmp_path):
    text = (ROOT / "docs/isoflop-study.md").read_text()
    copy = tmp_path / "isoflop-study.md"
    copy.write_text(text)
    page.fill(copy, found_in(tmp_path, trials_of(CPU)[:1]))


STUDY = ROOT / "models/study/results/cpu"


def read_page(path=ROOT / "docs/isoflop-study.md"):
    """The page's prose in one line, and the rows of each of its marked blocks."""
    text = path.read_text(encoding="utf-8")
    blocks = dict(re.findall(r"<!-- begin (\S+) -->\n(.*?)<!-- end", text, re.DOTALL))
    prose = re.sub(r"<!-- begin .*?<!-- end [^>]*>", "", text, flags=re.DOTALL)
    rows = {name: re.findall(r"^\| (.*) \|$", block, re.M) for name, block in blocks.items()}
    return " ".join(prose.split()), {
        name: [re.split(r" \| ", line) for line in lines] for name, lines in rows.items()
    }


def listed(numbers):
    return f"{', '.join(numbers[:-1])} and {numbers[-1]}"


def test_what_the_page_says_of_vocabularies():
    prose, rows = read_page()
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    by_surface = [row for row in rows["vocabularies"] if row[0] == "3n_pieces / 3n"]
    for row in by_surface:
        low, high = (f"{float(end):.2f}" for end in row[6].split(" … "))
        assert f"{row[5]} ({low} to {high})" in prose
        told = f"1,024 pieces make N_opt {row[5]} times as large ({low} to {high})"
        assert (told in readme) == (row[1] == "all")
    by_parabola = [row for row in rows["places"] if row[0] == "3n_pieces / 3n"]
    for counted in dict.fromkeys(row[2] for row in by_parabola):
        assert listed([row[3] for row in by_parabola if row[2] == counted]) in prose
    gains = [row for row in rows["differences"] if row[0] == "3n_pieces − 3n" and "±" in row[2]]
    told = listed([row[2].split(" ± ")[0].strip("-") for row in gains[:3]])
    assert f"better by {told} nats per byte" in prose
    with (STUDY / "runs.csv").open(encoding="utf-8", newline="") as file:
        (size,) = {
            float(row["bytes_per_token"])
            for row in csv.DictReader(file)
            if row["arm"] == "3n_pieces"
        }
    assert f"stands for {size:.2f} bytes" in prose
    assert f"some {384 * size:.0f} bytes" in prose
    shares = [float(row[5].strip("%")) for row in rows["sizes"] if row[0] == "3n_pieces"]
    assert f"{min(shares):.0f} to {max(shares):.0f} % of the FLOPs" in prose


def test_what_is_said_of_a_budget_by_executed():
    prose, rows = read_page()
    (trained,) = [row for row in rows["counts"] if row[2] == "executed"]
    low, high = (f"{float(end):.2f}" for end in trained[5].split(" … "))
    assert (
        f"trained lies at {float(trained[4]):.2f} times, with an interval of {low} to {high}"
        in prose
    )
    (said,) = [row for row in rows["counts"] if row[:2] == ["7n", "executed"]]
    assert f"The surface says {said[3]} times" in prose
    with (STUDY / "runs.csv").open(encoding="utf-8", newline="") as file:
        runs = {row["run"]: row for row in csv.DictReader(file)}
    (name,) = {name for name, row in runs.items() if row["convention"] == "executed"} & {
        f"7n-executed-{float(row['budget']):.4g}-96x2-seed0".replace("+", "")
        for row in runs.values()
    }
    same = runs["7n-1e13-96x2-seed0"]
    kept = ("steps", "learning_rate", "seed", "flops")
    assert [runs[name][of] for of in kept] == [same[of] for of in kept]
    lower = float(same["validation_loss"]) - float(runs[name]["validation_loss"])
    assert f"its loss is {lower:.3f} lower" in prose
    hours = sum(float(row["seconds"]) for row in runs.values()) / 3600
    assert f"{hours:.1f} hours of training summed over the runs" in prose
    longest = max(float(row["epochs"]) for row in runs.values())
    assert f"the longest takes {longest:.2f} of an epoch" in prose


def test_what_is_said_of_the_texts():
    prose, _ = read_page()
    with (STUDY / "corpora.csv").open(encoding="utf-8", newline="") as file:
        texts = list(csv.DictReader(file))
    one, other = (row for row in texts if row["tokenizer"] == "bytes")
    assert one["validation_sha256"] == other["validation_sha256"]
    assert int(one["train_tokens"]) - int(other["train_tokens"]) == 4
    assert "trains on four bytes less" in prose
    with (STUDY / "runs.csv").open(encoding="utf-8", newline="") as file:
        later = {row["stage"] for row in csv.DictReader(file) if row["corpus"] == other["corpus"]}
    assert later == {"seeds-7n", "recounted"}  # and the pieces, which have no earlier runs


def test_the_findings_are_those_of_the_tables():
    prose, rows = read_page()
    differences = {(row[0], row[1]): row for row in rows["differences"] if len(row) > 6}

    def of(pair):
        return {budget: row for (name, budget), row in differences.items() if name == pair}

    counts = [row[6].split(" of ") for row in of("3n − none").values()]
    assert f"with all {sum(int(of) for _, of in counts)} networks" in prose
    assert all(better == tried for better, tried in counts)
    verdicts = {budget: row[4] for budget, row in of("3n − none").items()}
    alone = "none is better, taken alone"
    assert verdicts == {
        "1e12": "none is better", "3e12": alone, "1e13": alone, "3e13": "within noise",
    }  # fmt: skip
    verdicts = {budget: row[4] for budget, row in of("7n − none").items()}
    assert verdicts == {"1e12": "none is better", "3e12": alone, "1e13": "none is better"}
    verdicts = {budget: row[4] for budget, row in of("7n − 3n").items()}
    assert verdicts == {
        "1e12": "3n is better, taken alone", "3e12": "within noise", "1e13": "within noise",
    }  # fmt: skip
    added = [
        float(row[5].split(" ± ")[0]) / float(of("3n − none")[budget][5].split(" ± ")[0])
        for budget, row in of("7n − 3n").items()
    ]
    assert f"{min(added):.2f} to {max(added):.2f} of what 3n adds" in prose
    (change,) = [row[3] for row in rows["differences"] if row[:3] == ["3n − none", "1e12", "3e13"]]
    assert f"changes by {change.replace('-', '−')}" in prose
    parts = {
        arm: [float(row[6].strip("%")) for row in rows["optima"] if row[0] == arm and "%" in row[6]]
        for arm in ("3n", "7n")
    }
    ends = {arm: f"{min(of):.0f} to {max(of):.0f} %" for arm, of in parts.items()}
    assert f"takes {ends['3n']} of the FLOPs at the optimum of 3n and {ends['7n']} at" in prose
    ratios = {
        what: [
            float(row[3])
            for row in rows["places"]
            if row[0].endswith("/ none") and row[2] == what and row[3] != "–"
        ]
        for what in ("all", "N without positions")
    }
    with_, without = (f"{min(of):.2f} to {max(of):.2f}" for of in ratios.values())
    assert f"N_opt with positions is {with_} times" in prose
    assert f"without them {without} times; every interval holds 1" in prose
    verdicts = {row[5] for row in rows["places"] if row[0].endswith("/ none")}
    assert verdicts == {"not seen", "not known"}


def test_what_the_page_says_of_its_predictions():
    prose, _ = read_page()
    with (STUDY / "runs.csv").open(encoding="utf-8", newline="") as file:
        runs = list(csv.DictReader(file))
    came = {arm: outcome(STUDY / f"prediction-{arm}.json", runs) for arm in ("none", "3n")}
    for name, verb in (("3, variable-projection", "said by"), ("2", "miss by")):
        above = [each.made["approaches"][name]["loss"] - each.best.loss for each in came.values()]
        assert min(above) > 0
        assert f"{verb} {above[0]:.3f} and {above[1]:.3f}" in prose
    assert f"is {came['3n'].best.loss - came['none'].best.loss:.3f} worse than" in prose
    losses = {
        arm: [
            float(row["validation_loss"])
            for row in sorted(runs, key=lambda row: int(row["parameters"]))
            if row["stage"] == f"prediction-{arm}"
        ]
        for arm in came
    }
    apart = [
        f"{one - other:+.3f}".replace("-", "−")
        for one, other in zip(losses["3n"], losses["none"], strict=True)
    ]
    assert f"differ by {listed(apart)}" in prose


def test_the_readme_has_the_differences_of_the_committed_page():
    prose, tables = read_page()
    rows = [row for row in tables["differences"] if row[0] == "3n − none" and len(row) > 6]
    means = listed([row[5].split(" ± ")[0] for row in rows]).replace("+", "")
    worse, networks = (sum(int(row[6].split(" of ")[i]) for row in rows) for i in (0, 1))
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert worse == networks
    assert (
        f"equal verified FLOPs, {rows[0][1]} to {rows[-1][1]}, a prefix of 3n costs {means}"
        in readme
    )
    assert f"nats per byte on average (worse in {worse} of {networks} cases)" in readme
    for other in ("none", "3n"):
        shares = [row[6].split(" of ") for row in tables["differences"] if len(row) > 6
                  and row[0] == f"7n − {other}"]  # fmt: skip
        better, tried = (sum(map(int, each)) for each in zip(*shares, strict=True))
        assert better == tried
        assert f"7n more ({better} of {tried})" in readme
    with (STUDY / "runs.csv").open(encoding="utf-8", newline="") as file:
        runs = list(csv.DictReader(file))
    spent = f"{len(runs)} runs, {sum(int(row['flops']) for row in runs):.3g} FLOPs".replace("+", "")
    assert spent in readme
    assert spent in prose


def test_the_readme_has_what_came_of_the_committed_predictions():
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    with (STUDY / "runs.csv").open(encoding="utf-8", newline="") as file:
        runs = list(csv.DictReader(file))
    where = {}
    for arm in ("none", "3n"):
        came = outcome(STUDY / f"prediction-{arm}.json", runs)
        judged = came.made["approaches"][came.made["approach"]]["loss_interval"]
        where[arm] = (came.best.loss >= judged["low"]) + (came.best.loss > judged["high"])
    assert where == {"none": 1, "3n": 0}  # inside, below
    assert "of two losses predicted at 1e14 one held, one was too high" in readme


def test_shares_of_the_cross_part_are_the_counter_s(tmp_path):
    told = page.sizes(found_in(tmp_path, trials_of(CPU)[:1]))
    # m = 384, k = 192: 5.9e7 FLOPs a step are none's 8.9e7 less than 3n's 1.31e8: 32 %.
    [line] = [line for line in told.splitlines() if line.startswith("| 3n | 16×2 |")]
    assert "| 18,966 | 10,774 |" in line
    share = next(float(cell.strip(" %")) for cell in line.split("|") if "%" in cell)
    assert share == pytest.approx(32, abs=0.7)
