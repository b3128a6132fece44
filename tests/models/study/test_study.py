"""The study: its budgets, and a tiny one through run, cut and resumption."""

import pytest
from benchmarks.design import STUDY, TINY_STUDY, causal_flops, stages_of

from benchmarks import study
from benchmarks.measurement import ROOT, read_table
from models.data import CorpusConfig

BUDGETS = list(STUDY.shapes)


def test_the_design_holds_its_promises():
    assert len(BUDGETS) >= 4
    assert max(BUDGETS) / min(BUDGETS) >= 30
    assert all(len(shapes) >= 6 for shapes in STUDY.shapes.values())
    stages = STUDY.stages()
    names = [run.name for runs in stages.values() for run in runs]
    assert len(names) == len(set(names))
    for stage, runs in stages.items():
        for run in runs:
            config = run.config
            assert config.steps >= 200
            assert config.steps * 80 * 512 <= 390e6
            assert config.model.num_channels == 64 * config.model.num_heads
            if stage != "recounted":
                # Whole steps spend a budget up to one step.
                spent = causal_flops(config)
                assert run.budget <= spent <= run.budget * (1 + 1 / (config.steps - 1))


def test_all_arms_are_validated_on_the_same_targets():
    runs = [run for runs in STUDY.stages().values() for run in runs]
    assert {run.config.validation_context for run in runs} == {3584}


def test_recounting_shares_the_middle_model_and_moves_others():
    causal = {run.config.model: run.config.steps for run in STUDY.arm("long", (1e15,))}
    other = {run.config.model: run.config.steps for run in STUDY.recounted()}
    same = [model for model in causal if causal[model] == other[model]]
    assert [(model.num_channels, model.num_layers) for model in same] == [(256, 4)]


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"stages must be of .*, got \['lunch'\]"):
        stages_of(STUDY, ["lunch"])
    with pytest.raises(ValueError, match="arm must be one of"):
        STUDY.sweep("lunch", 1e14, ((64, 2),), (0,))


def _schedule(tmp_path, out, stages, **more):
    corpus = CorpusConfig(files=(str(ROOT / "benchmarks/*.py"),), cache=tmp_path / "corpora")
    state = tmp_path / "state"
    clock = study.Clock(None, 1e9)
    return study.Schedule(stages, corpus, out, state, 5, clock, workers=2, **more)


def test_cut_resumed_and_not_repeated(tmp_path):
    stages = {"first": TINY_STUDY.arm("long", (3e7,))}
    out = tmp_path / "out"

    def until_the_first_row():
        return 1e9 if len(read_table(out / "runs.csv")) else 0.0

    left = study.run(_schedule(tmp_path, out, stages), until_the_first_row)
    first = read_table(out / "runs.csv")
    assert 1 <= len(first) < 3
    assert len(left) == 3 - len(first)
    # Elsewhere, with the committed rows alone: what is done is not in the new table.
    later = tmp_path / "later"
    assert study.run(_schedule(tmp_path, later, stages, done=(out / "runs.csv",))) == []
    second = read_table(later / "runs.csv")
    assert sorted(row["run"] for row in first + second) == sorted(r.name for r in stages["first"])
    assert all(float(row["predicted_seconds"]) > 0 for row in second)
    other_rate = _schedule(tmp_path, later, stages, done=(out / "runs.csv",), learning_rate=0.5)
    with pytest.raises(ValueError, match="learning rate and corpus"):
        study.run(other_rate)
