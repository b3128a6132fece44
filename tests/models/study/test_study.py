"""The designs, and a tiny study through run, cut and resumption."""

import csv
import dataclasses
import json

import numpy as np
import pytest

from models.data.corpus import CorpusConfig
from models.results import read_table
from models.study import running
from models.study.__main__ import main
from models.study.design import (
    CPU,
    GPU,
    RUN_COLUMNS,
    TINY,
    TRIALS,
    Stage,
    best_rates,
    causal_flops,
    every_size,
    fit_rule,
    plan,
    sized,
    trained_tokens,
)
from models.training.throughput import tiling_of

CHECKED = {"cpu": CPU, "gpu": GPU}


def row_of(planned, loss, **more):
    """A row of ``runs.csv`` as a run of that loss would leave it."""
    config = planned.run.config
    row = dict.fromkeys(RUN_COLUMNS, "") | {
        "run": planned.name,
        "stage": planned.stage,
        "arm": planned.arm,
        "convention": planned.convention,
        "budget": planned.run.budget,
        "num_channels": config.model.num_channels,
        "num_layers": config.model.num_layers,
        "seed": config.seed,
        "learning_rate": config.recipe.learning_rate,
        "parameters": planned.run.parameters,
        "steps": config.steps,
        "tokens": trained_tokens(config),
        "flops": causal_flops(config),
        "validation_loss": loss,
        "bytes_per_token": 1.0,
        "seconds": 10.0,
        "predicted_seconds": 8.0,
        "load": 2.5,
        "corpus": "digest of " + config.corpus.tokenizer,
        "commit": "a commit",
        "date": "2001-01-01T00:00:00+00:00",
    }
    return {name: str(value) for name, value in (row | more).items()}


def trials_of(study, best=lambda width: 0.01):
    """Rows of the trials: loss is a parabola in log rate with its minimum at ``best(width)``."""
    rows = []
    for each in plan(study, stages=[TRIALS]):
        rate = each.run.config.recipe.learning_rate
        off = np.log(rate / best(each.run.config.model.num_channels))
        rows.append(row_of(each, 2.0 + 0.1 * off**2))
    return rows


@pytest.mark.parametrize("study", CHECKED.values(), ids=CHECKED)
def test_a_design_holds_its_promises(study):
    arms = {run.config.model.num_prefix for run in every_size(study)}
    assert 0 in arms
    for run in every_size(study):
        config = run.config
        assert config.steps >= 200
        assert config.validation_context == max(arms)
        # Whole steps spend a budget up to one step.
        spent = causal_flops(config)
        assert run.budget <= spent <= run.budget * (1 + 1 / (config.steps - 1))
    for arm, side in study.arms.items():
        assert len(side.shapes) >= 3
        for shapes in side.shapes.values():
            assert len(set(shapes)) == len(shapes) >= 6
            sizes = [
                run.parameters
                for run in every_size(dataclasses.replace(study, arms={arm: side}))
                if (run.config.model.num_channels, run.config.model.num_layers) in shapes
            ]
            if study is CPU:
                assert max(sizes) / min(sizes) >= 16
                assert all(16 <= width <= 192 and 2 <= depth <= 4 for width, depth in shapes)


def test_the_design_for_two_cores_is_the_stated_one():
    assert {name: arm.num_prefix for name, arm in CPU.arms.items()} == {
        "none": 0,
        "3n": 384,
        "7n": 896,
        "3n_pieces": 384,
    }
    first = plan(CPU)
    assert len(first) == 2 * 3 * 5
    assert {each.stage for each in first} == {TRIALS}
    config = first[0].run.config
    assert (config.validation_windows, config.final_validation_windows) == (512, 2048)
    pieces = sized(CPU, "3n_pieces", (48, 2))
    assert (pieces.vocab_size, pieces.num_heads, pieces.prefix_dropout) == (1024, 4, 0.5)
    assert sized(CPU, "none", (48, 2)).prefix_dropout == 0.0


def test_the_rule_is_found_again():
    # Minima at 0.08 · width^-0.5: log rate is straight in log width, and least squares go through.
    rows = trials_of(CPU, lambda width: 0.08 * width**-0.5)
    assert fit_rule(rows) == (pytest.approx(0.08, rel=0.01), pytest.approx(-0.5, abs=0.005))
    assert all(inside for _, inside in best_rates(rows).values())
    # A minimum below all rates tried: the lowest is the best, and said to be at an end.
    assert set(best_rates(trials_of(CPU, lambda width: 1e-4)).values()) == {(0.0025, False)}


def test_stages_are_known_when_what_they_rest_on_has_ended():
    rows = trials_of(CPU)
    assert {each.stage for each in plan(CPU, rows[1:])} == {TRIALS}
    planned = plan(CPU, rows)
    assert {each.stage for each in planned} == {
        name for name, stage in CPU.stages.items() if stage.around is None
    }
    by_rule = [each for each in planned if each.stage == "7n"]
    assert all(each.run.config.recipe.learning_rate == 0.01 for each in by_rule)
    # The least loss of 1e12 lies at 32 channels without a prefix: seeds at 24, 32 and 48.
    small = [
        row_of(each, abs(each.run.config.model.num_channels - 33))
        for each in planned
        if each.stage == "pair-small" and each.arm == "none" and each.run.budget == 1e12
    ]
    seeds = [each for each in plan(CPU, rows + small) if each.stage == "seeds-small"]
    assert [(each.run.config.model.num_channels, each.run.config.seed) for each in seeds] == [
        (width, seed) for width in (24, 32, 48) for seed in (1, 2)
    ]
    # At the edge, the three at that edge.
    edge = [row | {"validation_loss": row["num_channels"]} for row in small]
    seeds = [each for each in plan(CPU, rows + edge) if each.stage == "seeds-small"]
    assert {each.run.config.model.num_channels for each in seeds} == {16, 24, 32}


def test_other_multiples_of_the_rule_have_names_of_their_own():
    study = dataclasses.replace(
        CPU, stages=CPU.stages | {"check": Stage(("3n",), (1e12,), factors=(0.5, 1.0, 2.0))}
    )
    found = {each.name: each for each in plan(study, trials_of(CPU)) if each.stage == "check"}
    # At factor 1 it is the run of an earlier stage.
    assert len(found) == 2 * 7
    half = found["3n-1e12-48x2-seed0-times0.5"]
    assert half.run.config.recipe.learning_rate == 0.005


def test_recounting_shares_the_middle_model_and_moves_others():
    def steps(planned):
        return {each.run.config.model: each.run.config.steps for each in planned}

    causal = steps(e for e in plan(GPU, stages=["long-small"]) if e.run.budget == 1e15)
    other = steps(plan(GPU, stages=["recounted"]))
    same = [model for model in causal if causal[model] == other[model]]
    assert [(model.num_channels, model.num_layers) for model in same] == [(256, 4)]


def test_a_budget_by_what_the_kernels_execute():
    causal = {each.run.config.model: each.run.config for each in plan(CPU, trials_of(CPU), ["7n"])}
    planned = plan(CPU, trials_of(CPU), ["recounted"])
    (spent,) = {each.run.budget for each in planned}
    share = {}
    for each in planned:
        run, model = each.run, each.run.config.model
        assert (each.convention, each.name.startswith("7n-executed-")) == ("executed", True)
        head_dim = model.num_channels // 4
        tiling = tiling_of(head_dim, 4, 128)
        hybrid = tiling_of(head_dim, 4, 128 + model.counted().kept())
        step = model.counted().executed(tiling, tilings={"hybrid": hybrid}, batch_size=8).total
        assert run.flops == run.config.steps * step
        assert run.flops - step < spent <= run.flops
        share[head_dim] = step / model.counted().flops(batch_size=8).total
        assert model in causal
    # Heads are stored with a multiple of 16 channels.
    assert share[8] > share[12] > share[24] > share[32]
    assert share[12] > share[16] < share[24]


def test_unknown_names_are_refused(tmp_path, capsys):
    with pytest.raises(ValueError, match=r"stages must be of .*, got \['lunch'\]"):
        plan(GPU, stages=["lunch"])
    with pytest.raises(ValueError, match="arm must be one of"):
        plan(dataclasses.replace(GPU, stages={"one": Stage(("lunch",), (1e14,))}))
    with pytest.raises(ValueError, match="budgets of long must be of"):
        plan(dataclasses.replace(GPU, stages={"one": Stage(("long",), (1e13,))}))
    assert main(["plan", "--study", "gpu", "--stages", "lunch"]) == 2
    assert "stages must be of" in capsys.readouterr().err


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for index in range(4):
        (folder / f"{index}.txt").write_text(f"{index} and the quick brown fox; " * 40)
    return str(folder / "*.txt")


def _schedule(tmp_path, out, planned, text, **more):
    corpus = CorpusConfig(files=(text,), cache=tmp_path / "corpora")
    state = tmp_path / "state"
    clock = running.Clock(None, 1e9)
    return running.Schedule(planned, corpus, out, state, 5, clock, workers=2, **more)


def test_cut_resumed_and_not_repeated(tmp_path, text):
    planned = plan(TINY, stages=[TRIALS])[:3]
    out = tmp_path / "out"

    def until_the_first_row():
        return 1e9 if len(read_table(out / "runs.csv")) else 0.0

    left = running.run(_schedule(tmp_path, out, planned, text), until_the_first_row)
    first = read_table(out / "runs.csv")
    assert 1 <= len(first) < 3
    assert len(left) == 3 - len(first)
    # Elsewhere, with the committed rows alone: what is done is not in the new table.
    later = tmp_path / "later"
    done = (out / "runs.csv",)
    assert running.run(_schedule(tmp_path, later, planned, text, done=done)) == []
    second = read_table(later / "runs.csv")
    assert sorted(row["run"] for row in first + second) == sorted(each.name for each in planned)
    assert all(float(row["predicted_seconds"]) > 0 for row in second)
    assert {row["bytes_per_token"] for row in second} == {"1.0"}
    changed = [{**row, "learning_rate": "0.5"} for row in first]
    with (out / "runs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, RUN_COLUMNS)
        writer.writeheader()
        writer.writerows(changed)
    with pytest.raises(ValueError, match="learning rate and corpus"):
        running.run(_schedule(tmp_path, later, planned, text, done=done))


def test_a_run_that_diverges_has_ended_with_an_infinite_loss(tmp_path, text):
    [each, other] = plan(TINY, stages=[TRIALS])[:2]
    recipe = dataclasses.replace(each.run.config.recipe, learning_rate=1e30)
    config = dataclasses.replace(each.run.config, recipe=recipe)
    wild = dataclasses.replace(each, run=dataclasses.replace(each.run, config=config))
    out = tmp_path / "out"
    assert running.run(_schedule(tmp_path, out, [wild, other], text)) == []
    losses = {row["run"]: float(row["validation_loss"]) for row in read_table(out / "runs.csv")}
    assert losses[each.name] == float("inf")
    assert np.isfinite(losses[other.name])


def test_the_whole_tiny_study_and_its_prediction(tmp_path, text, capsys):
    out = tmp_path / "out"
    train = ["run", "--study", "tiny", "--out", str(out), "--corpus", text]
    train += ["--blank-lines", "1", "--workers", "2"]
    assert main(train) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "0 runs are left"
    rows = read_table(out / "runs.csv")
    planned = plan(TINY, rows)
    assert {row["run"] for row in rows} == {each.name for each in planned}
    assert {row["stage"] for row in rows} == set(TINY.stages)
    prediction = out / "prediction-none.json"
    predict = ["predict", "--study", "tiny", "--results", str(out), "--arm", "none"]
    predict += ["--budget", "2e8", "--out", str(prediction), "--bootstrap", "10"]
    if main(predict) == 2:  # so few steps need not give a minimum
        prediction.write_text(json.dumps({"arm": "none", "budget": 2e8, "shapes": [[8, 1]]}))
    assert main([*train, "--predictions", str(prediction)]) == 0
    made = json.loads(prediction.read_text())
    # Rows are in the order in which runs ended.
    tests = [row for row in read_table(out / "runs.csv") if float(row["budget"]) == 2e8]
    shapes = [[int(row["num_channels"]), int(row["num_layers"])] for row in tests]
    assert sorted(shapes) == sorted(made["shapes"])
    assert {row["stage"] for row in tests} == {"prediction-none"}


def test_models_are_timed_once(tmp_path, capsys):
    runs = every_size(TINY)[:2]
    path = running.calibrate(runs, tmp_path, minutes=1, seconds=0.01)
    before = read_table(path)
    assert len(before) == 2
    assert all(float(row["flops_per_second"]) > 0 for row in before)
    running.calibrate(runs, tmp_path, minutes=1, seconds=0.01)
    assert read_table(path) == before
    assert "ms a step" in capsys.readouterr().out
    clock = running.Clock(path, 1.0)
    rate = float(before[0]["flops_per_second"])
    assert clock.seconds(runs[0].config) == pytest.approx(causal_flops(runs[0].config) / rate)
