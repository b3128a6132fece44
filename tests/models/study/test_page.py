"""What the study's page says of made-up runs whose truth is known."""

import csv
import dataclasses
import functools
import json

import numpy as np
import pytest
from benchmarks.design import (
    PREDICTION,
    RUN_COLUMNS,
    STUDY,
    causal_flops,
    model_name,
    stages_of,
)
from benchmarks.findings import Best, Scatter, differ, find, read_results
from benchmarks.prediction import compare, predict

from benchmarks import findings, page, study
from flopcount.fitting import fit_isoflop_profiles, read_runs

BUDGETS = sorted(STUDY.shapes)
NOISE = 0.002


def surface(params, tokens):
    return 0.8 + 60 / params**0.34 + 200 / tokens**0.34


@functools.cache
def centred(planned):
    """The study's budget next to one, and the mean of log N over the main arm's sizes there."""
    budget = min(BUDGETS, key=lambda each: abs(np.log(each / planned)))
    return budget, np.log([run.parameters for run in STUDY.arm("long", (budget,))]).mean()


def parabola(planned, params, shift=0.0, cubic=0.0):
    """Its vertex lies inside the sizes of every arm, and the loss there falls with the budget.

    A budget of another count lies next to the one that it repeats, and has its parabola.
    """
    budget, centre = centred(planned)
    x = np.log(params) - centre - shift
    return 5 - 0.1 * np.log10(budget) + 0.02 * x**2 + cubic * x**3


def row_of(stage, run, loss, **more):
    config = run.config
    label, _, _ = run.name.partition(f"-{run.name.split('-')[-3]}")
    arm, _, convention = label.partition("-")
    tokens = config.steps * config.recipe.batch_size * config.model.num_latents
    return (
        dict.fromkeys(RUN_COLUMNS, "")
        | {
            "run": run.name,
            "stage": stage,
            "arm": arm,
            "convention": convention or "causal",
            "budget": run.budget,
            "num_channels": config.model.num_channels,
            "num_layers": config.model.num_layers,
            "seed": config.seed,
            "learning_rate": 0.001,
            "parameters": run.parameters,
            "steps": config.steps,
            "tokens": tokens,
            "flops": causal_flops(config),
            "epochs": tokens / 195e6,
            "validation_loss": loss(
                arm, convention or "causal", run.budget, run.parameters, tokens
            ),
            "seconds": 10.0,
            "predicted_seconds": 10.2,
            "workers": 1,
            "corpus": "digest",
            "device": "a device",
            "commit": "a commit",
            "date": "2001-01-01T00:00:00+00:00",
        }
        | more
    )


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def rows_of(loss, stages=None, noise=NOISE):
    """A row of every run, the losses with normal noise, the same at every call."""
    generator = np.random.default_rng(7)
    return [
        row_of(stage, run, lambda *of: loss(*of) + noise * generator.standard_normal())
        for stage, runs in STUDY.stages().items()
        for run in runs
        if stages is None or stage in stages
    ]


def decoder_worse_by(offset):
    def loss(arm, convention, budget, params, tokens):
        return parabola(budget, params) + offset * (arm == "decoder")

    return loss


def found_in(tmp_path, rows, num_bootstrap=0):
    write(tmp_path / "runs.csv", rows)
    return find(read_results(STUDY, [tmp_path]), num_bootstrap)


def text_of(found):
    return page.page_text(found, {}, "the command")


def between(found, one, other):
    return [d for d in found.differences if (d.first.arm, d.second.arm) == (one, other)]


def test_an_advantage_larger_than_noise_is_found_with_its_size(tmp_path):
    found = found_in(tmp_path, rows_of(decoder_worse_by(0.05)))
    pairs = between(found, "long", "decoder")
    assert [each.first.budget for each in pairs] == BUDGETS
    for each in pairs:
        assert each.winner == "long"
        assert each.delta == pytest.approx(-0.05, abs=each.half_width)
        assert each.half_width < 0.02
    text = text_of(found)
    line = next(
        line for line in text.splitlines() if line.startswith("- long (m = 3,584) against decoder")
    )
    assert "long is better, by more than noise at 1e14, 3e14, 1e15 and 3e15 FLOPs." in line


def test_less_than_noise_is_said_to_be_within_noise(tmp_path):
    found = found_in(tmp_path, rows_of(decoder_worse_by(0.001), noise=0.004))
    assert found.differences
    assert {each.winner for each in found.differences} == {None}
    text = text_of(found)
    assert "by more than noise" not in text
    assert "within noise: no difference shown" in text
    # The same advantage is found once noise is far smaller: the verdict can go the other way.
    clear = found_in(tmp_path, rows_of(decoder_worse_by(0.001), noise=1e-5))
    assert {each.winner for each in between(clear, "long", "decoder")} == {"long"}


def test_without_seeds_nothing_is_larger_than_noise(tmp_path):
    rows = rows_of(decoder_worse_by(0.5), stages=("long-small", "decoder-small"))
    found = found_in(tmp_path, rows)
    assert found.noise is None
    assert {each.winner for each in found.differences} == {None}
    text = text_of(found)
    assert "by more than noise" not in text
    assert "not known: noise has no size yet" in text
    assert "The noise between seeds is not known" in text


@pytest.mark.filterwarnings("error")
def test_one_run_makes_a_whole_page(tmp_path):
    [row, *_] = rows_of(decoder_worse_by(0))
    found = found_in(tmp_path, [row])
    text = text_of(found)
    assert "89 of 90 planned runs are missing" in text
    assert text.count("No run has ended.") == 2
    assert "expected at least 3" in text
    assert "\n\n\n" not in text
    assert set(page.draw(found)) == {"arms", "profiles-long"}


def test_what_is_missing_is_named(tmp_path):
    rows = rows_of(decoder_worse_by(0.05), stages=("long-small", "decoder-small", "seeds"))
    dropped = rows.pop(0)
    text = text_of(found_in(tmp_path, rows))
    assert f"| long-small | 18 | 17 | {dropped['run']} |" in text
    assert "| recounted | 6 | 0 | long-article-" in text
    assert "Stage short: 24 of 24 missing." in text
    assert "no prediction has been made" in text
    assert "Without a curve: " in text
    assert "`study.jsonl` is missing" in text
    assert "not trained in both at 3e15 FLOPs" in text
    whole = text_of(found_in(tmp_path, rows_of(decoder_worse_by(0.05))))
    assert "are missing" not in whole
    assert "not trained in both" not in whole


def decoder_rising(offset):
    """The decoder is the better, the larger, beyond all sizes; the others have a minimum."""

    def loss(arm, convention, budget, params, tokens):
        if arm == "decoder":
            return offset - 0.05 * np.log(params)
        return parabola(budget, params)

    return loss


def test_a_minimum_at_the_edge_is_stated_and_may_win_but_not_lose(tmp_path):
    found = found_in(tmp_path, rows_of(decoder_rising(2.0), noise=1e-4))
    everywhere = "no minimum inside the sizes tried at 1e14, 3e14, 1e15 and 3e15 FLOPs"
    assert f"- decoder has {everywhere}" in text_of(found)
    assert {each.winner for each in between(found, "long", "decoder")} == {"decoder"}
    worse = found_in(tmp_path, rows_of(decoder_rising(8.0), noise=1e-4))
    assert {each.verdict for each in between(worse, "long", "decoder")} == {
        "not decided: decoder has no minimum inside the sizes tried"
    }


def best_of_losses(losses, sizes=(-1.0, 0.0, 1.0), arm="one"):
    params = np.exp(10 + np.array(sizes))
    runs = read_runs(
        {"N": params, "D": 1e15 / 6 / params, "C": [1e15] * len(params), "loss": losses}
    )
    [profile] = fit_isoflop_profiles(runs).profiles
    return Best(arm, 1e15, {"validation_loss": min(losses)}, profile, len(sizes))


def test_variances_by_hand():
    best = best_of_losses([2.0, 1.0, 2.0])
    # The parabola goes through its three points, the vertex at the middle one: its noise.
    assert best.variance == pytest.approx(1)
    # x = -c₁ / 2c₂ with c₁ = (L₃ - L₁) / 2, whose variance is σ²/2, and c₂ = 1: σ²/8.
    assert best.place_variance == pytest.approx(1 / 8)
    # Losses 1, 3 and 2, 4, 6: squares 2 and 8 on 1 and 2 degrees of freedom.
    found = dataclasses.make_dataclass("Rows", ["study", "of"])
    pairs = [("8", 1), ("8", 3), ("16", 2), ("16", 4), ("16", 6)]
    rows = [
        {"budget": "3e14", "num_channels": width, "num_layers": "1", "validation_loss": loss}
        for width, loss in pairs
    ]
    scatter = findings.scatter_of_seeds(found(STUDY, lambda arm: rows))
    assert (scatter.deviation, scatter.freedom) == (pytest.approx((10 / 3) ** 0.5), 3)


def test_noise_is_the_larger_of_two_scatters(tmp_path):
    def bent(arm, convention, budget, params, tokens):
        # A cubic in log N, which no parabola follows and every seed repeats.
        return parabola(budget, params, cubic=0.05)

    found = found_in(tmp_path, rows_of(bent))
    assert found.noise == found.about_parabolas
    assert found.noise.deviation > 2 * found.from_seeds.deviation
    straight = found_in(tmp_path, rows_of(decoder_worse_by(0)))
    assert straight.noise.deviation == max(
        straight.from_seeds.deviation, straight.about_parabolas.deviation
    )
    assert straight.from_seeds.interval().low < NOISE < straight.from_seeds.interval().high


def test_best_runs_are_of_the_first_seed_in_every_arm(tmp_path):
    rows = rows_of(decoder_worse_by(0))
    for row in rows:
        row["validation_loss"] -= 1.0 * (row["seed"] != 0)
    found = found_in(tmp_path, rows)
    assert {best.run["seed"] for each in found.best.values() for best in each.values()} == {"0"}


def test_equal_shapes_are_compared_where_both_arms_have_them(tmp_path):
    def same_for_a_shape(arm, convention, budget, params, tokens):
        return 2.0 + 0.03 * (arm == "decoder")

    rows = rows_of(same_for_a_shape, ("long-small", "decoder-small"), noise=0)
    found = found_in(tmp_path, rows[1:])
    each = between(found, "long", "decoder")[0]
    # One of six shapes is missing in one arm.
    assert findings.equal_shapes(found.results, each) == pytest.approx([-0.03] * 5)
    assert "| -0.0300 (-0.0300 … -0.0300) |" in text_of(found)


def test_flops_that_are_not_the_counter_s_are_seen(tmp_path):
    rows = rows_of(decoder_worse_by(0), ("long-small",))
    assert "equal the counter's in 18 of 18 runs" in text_of(found_in(tmp_path, rows))
    rows[0]["flops"] += 1
    assert "equal the counter's in 17 of 18 runs" in text_of(found_in(tmp_path, rows))


def test_equal_arms_are_told_apart_as_rarely_as_stated():
    generator = np.random.default_rng(0)
    sizes, sigma, freedom = np.linspace(-1, 1, 6), 0.01, 12
    told, draws = 0, 400
    for _ in range(draws):
        one, other = (
            best_of_losses(2 + sizes**2 + sigma * generator.standard_normal(6), sizes, arm)
            for arm in ("one", "other")
        )
        measured = sigma * (generator.chisquare(freedom) / freedom) ** 0.5
        told += differ(one, other, Scatter(measured, freedom, "drawn"), 1).winner is not None
    # 5 % of 400 are 20, with a standard deviation of 4.4.
    assert 7 <= told <= 33


def test_the_count_moves_the_optimum_where_it_does(tmp_path):
    def moved_by(shift):
        def loss(arm, convention, budget, params, tokens):
            return parabola(budget, params, shift * (convention == "article"))

        stages = ("long-small", "seeds", "recounted")
        return found_in(tmp_path, rows_of(loss, stages, noise=2e-4), num_bootstrap=200)

    moved = moved_by(0.6)
    assert moved.recount.ratio == pytest.approx(np.exp(0.6), rel=0.1)
    assert moved.recount.verdict == "the optimum moves by more than its interval"
    still = moved_by(0.0)
    assert still.recount.verdict == "the optimum does not move by more than its interval"
    assert still.recount.by_noise.low < 1 < still.recount.by_noise.high
    beyond = moved_by(5.0)
    assert beyond.recount.verdict == "not known: no minimum inside the sizes tried by article"
    # One middle model is trained for both counts.
    assert still.recount.repeated is not None
    assert "The run that both share was trained for each" in text_of(still)


def test_prediction_and_outcome(tmp_path):
    loss = lambda arm, convention, budget, *size: surface(*size)  # noqa: E731
    rows = rows_of(loss, ("long-small", "long-largest", "seeds"), noise=0)
    runs = write(tmp_path / "runs.csv", rows)
    path = tmp_path / "prediction.json"
    made = predict(STUDY, [runs], "long", 1e16, path, num_bootstrap=20)
    found = made["approaches"]["3, huber-log"]
    # The surface is found again: its loss at the predicted sizes is the predicted one.
    assert found["loss"] == pytest.approx(surface(found["params"], found["tokens"]), rel=1e-3)
    assert json.loads(path.read_text())["date"]
    with pytest.raises(ValueError, match="never changed"):
        predict(STUDY, [runs], "long", 1e16, path)
    [(stage, tests)] = stages_of(STUDY, prediction=path).items()
    assert stage == PREDICTION
    assert "prediction.json is not tested: runs must hold one at 1e+16" in text_of(
        found_in(tmp_path, rows)
    )
    late = [row_of(stage, run, loss, date="2999-01-01T00:00:00+00:00") for run in tests]
    text = compare(path, [runs, write(tmp_path / "late.csv", late)])
    assert tests[0].name in text
    assert "3, huber-log" in text
    told = text_of(found_in(tmp_path, rows + late))
    assert "## Prediction and outcome\n\nlong at 1e16 FLOPs, predicted " in told
    assert "| 3, huber-log | loss |" in told
    # The predicted size and its half and double: the best is the middle one, or stands alone.
    assert len(tests) == 3
    assert "a test of the loss, and of N_opt and D_opt none" not in told
    alone = text_of(found_in(tmp_path, rows + late[:1]))
    assert "1 trained, the best at an end of them: a test of the loss" in alone
    # The runs that test it are in no fit: 24 sizes, seeds without noise being repetitions.
    assert "over 24 runs" in told
    assert f"over {24 + len(tests)} runs" not in told
    # What had been trained, or begun, before is no prediction.
    early = [row_of(stage, run, loss) for run in tests]
    with pytest.raises(ValueError, match="no prediction"):
        compare(path, [write(tmp_path / "early.csv", early)])
    refused = text_of(found_in(tmp_path, rows + early))
    assert "had begun: no prediction" in refused
    assert "| 3, huber-log | loss |" not in refused
    begun = [row_of(stage, run, loss, date=made_at(path), seconds=3600) for run in tests]
    with pytest.raises(ValueError, match="had begun: no prediction"):
        compare(path, [write(tmp_path / "begun.csv", begun)])


def made_at(path):
    return json.loads(path.read_text())["date"]


def test_seconds_are_compared_where_they_compare(tmp_path):
    rows = rows_of(decoder_worse_by(0.05), ("long-small",))
    models = {run.name: model_name(run.config) for run in STUDY.stages()["long-small"]}
    rows[0]["workers"] = 2
    lacking = models[rows[1]["run"]]
    rows[2]["seconds"] = 1.2 * rows[2]["predicted_seconds"]
    rates = [{"model": m, "device": "a device"} for m in {*models.values()} - {lacking}]
    write(tmp_path / "calibration.csv", rates)
    found = found_in(tmp_path, rows)
    assert found.timing.side_by_side == (rows[0]["run"],)
    assert rows[1]["run"] in found.timing.uncalibrated
    text = text_of(found)
    count = len(found.timing.pairs)
    assert f"furthest 1.200 ({rows[2]['run']}); {count - 1} of {count} runs within 5%" in text
    rows[2]["device"] = "another device"
    assert rows[2]["run"] in found_in(tmp_path, rows).timing.uncalibrated


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corpus": "another"}, "results must be of one corpus"),
        ({"learning_rate": 0.002}, "results must be of one learning rate"),
        ({"steps": 7}, "must have the study's"),
        ({"run": "lunch"}, "results must be of the study, got lunch, not of the study"),
        ({"run": "a", "stage": PREDICTION}, "got a, without its prediction"),
    ],
)
def test_results_that_do_not_compare_are_refused(tmp_path, change, message):
    rows = rows_of(decoder_worse_by(0), ("long-small",))
    rows[-1] |= change
    with pytest.raises(ValueError, match=message):
        found_in(tmp_path, rows)


def test_a_run_is_there_once(tmp_path):
    rows = rows_of(decoder_worse_by(0), ("long-small",))
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        write(folder / "runs.csv", rows)
    assert len(read_results(STUDY, folders).runs) == 18
    rows[0]["validation_loss"] = 9.0
    write(folders[1] / "runs.csv", rows)
    with pytest.raises(ValueError, match="a run once, got two of long-1e14"):
        read_results(STUDY, folders)
    with pytest.raises(ValueError, match="got none in"):
        read_results(STUDY, [tmp_path])


def test_repeated_text_is_stated(tmp_path):
    rows = rows_of(decoder_worse_by(0), ("long-small",))
    for row in rows:
        row["epochs"] = 0.5
    assert "no run took more than 0.50 epochs" in text_of(found_in(tmp_path, rows))
    rows[3]["epochs"] = 1.5
    text = text_of(found_in(tmp_path, rows))
    assert f"Runs that saw text more than once, with epochs: {rows[3]['run']} (1.50)." in text


def test_the_command_writes_the_same_page_again(tmp_path, capsys):
    rows = rows_of(decoder_worse_by(0.05), ("long-small", "decoder-small", "seeds"))
    write(tmp_path / "results" / "runs.csv", rows)
    curve = [
        {"run": rows[0]["run"], "flops": flops, "validation_loss": 3 - flops / 1e14}
        for flops in (5e13, 1e14)
    ]
    write(tmp_path / "results" / "curves.csv", curve)
    out = tmp_path / "study.md"
    asked = ["page", "--results", str(tmp_path / "results"), "--out", str(out), "--bootstrap", "10"]
    assert study.main(asked) == 0
    files = [tmp_path / name for name in capsys.readouterr().out.split()]
    first = {path: path.read_bytes() for path in files}
    assert {path.name for path in files} == {
        "study.md",
        "arms.png",
        "curves-long.png",
        "profiles-long.png",
        "profiles-decoder.png",
    }
    text = out.read_text()
    # Every plot is shown, and the page holds the very command.
    assert all(f"](study/{path.name})" in text for path in files[1:])
    [line] = [line for line in text.splitlines() if line.startswith("python -m benchmarks.study")]
    assert line.split()[3:] == asked
    assert study.main(line.split()[3:]) == 0
    assert {path: path.read_bytes() for path in files} == first
    asked[2] = str(tmp_path)
    assert study.main(asked) == 2
    assert "results must hold rows of runs.csv" in capsys.readouterr().err
