"""A share of the fuzzing in every test run, and proof that a failure would be seen."""

import dataclasses

import pytest

import flopcount as fc
import flopcount.torch
from flopcount import comparison, finetuning, masks, rows
from flopcount.isoflop import plan
from validate import boundaries


def test_a_share_of_the_calls():
    result = boundaries.run(calls=2_000, seed=1)
    assert result.failures == []
    for name in boundaries.BOUNDARIES:
        assert result.outcomes[name, "answered"] > 0
        assert result.outcomes[name, "refused"] > 0


def test_a_wrong_number_is_a_failure(monkeypatch):
    monkeypatch.setattr(rows.Row, "flops", property(lambda row: row.batch * row.M * row.N * row.K))
    failures = boundaries.run(calls=100).failures
    assert any("expected" in failure for failure in failures)


def test_a_wrong_plan_is_a_failure(monkeypatch):
    planned_runs = {"planned runs": boundaries.BOUNDARIES["planned runs"]}
    monkeypatch.setattr(boundaries, "BOUNDARIES", planned_runs)
    assert boundaries.run(calls=30).failures == []
    original = plan.isoflop_runs

    def one_step_more(*arguments, **options):
        runs = original(*arguments, **options)
        return [dataclasses.replace(run, steps=run.steps + 1) for run in runs]

    monkeypatch.setattr(fc, "isoflop_runs", one_step_more, raising=False)
    assert any("steps of" in failure for failure in boundaries.run(calls=30).failures)


@pytest.mark.parametrize(
    ("boundary", "home", "name"),
    [
        ("tilings and executed FLOPs", masks.Causal, "tiles"),
        ("compare and explain", comparison, "differences"),
        ("prompts, decoding and caches", masks.Causal, "pairs"),
        ("fine-tuning", finetuning, "_between"),
        ("meters", masks.Causal, "pairs"),
        ("modules", flopcount.torch, "_flops"),
        ("many devices", masks.Causal, "pairs"),
    ],
)
def test_a_wrong_part_is_a_failure(monkeypatch, boundary, home, name):
    monkeypatch.setattr(boundaries, "BOUNDARIES", {boundary: boundaries.BOUNDARIES[boundary]})
    assert boundaries.run(calls=40).failures == []
    original = getattr(home, name)

    def wrong(*arguments):
        found = original(*arguments)
        return found[1:] if isinstance(found, tuple) else found + 1

    monkeypatch.setattr(home, name, wrong)
    assert any("expected" in f or "beyond" in f for f in boundaries.run(calls=40).failures)


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), TimeoutError("x"), ValueError("")])
def test_another_exception_is_a_failure(monkeypatch, error):
    def broken(_):
        raise error

    monkeypatch.setitem(boundaries.BOUNDARIES, "devices", (broken, 1.0))
    assert boundaries.run(calls=50).failures


def test_a_hang_is_a_failure(monkeypatch):
    def endless(_):
        while True:
            pass

    monkeypatch.setattr(boundaries, "SECONDS_PER_CALL", 1)
    monkeypatch.setattr(boundaries, "BOUNDARIES", {"endless": (endless, 1.0)})
    (failure,) = boundaries.run(calls=1).failures
    assert "no answer within 1 s" in failure


def test_the_command_exits_with_the_verdict(monkeypatch, capsys):
    assert boundaries.main(calls=30) == 0
    monkeypatch.setattr(rows.Row, "flops", property(lambda row: 7))
    assert boundaries.main(calls=60) == 1
    assert "seed" in capsys.readouterr().out
