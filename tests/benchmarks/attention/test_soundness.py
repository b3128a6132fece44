"""The checks that run on a GPU, tried here: they pass on our kernels and find the errors put in."""

import dataclasses
import sys

import pytest
import torch

from benchmarks.attention import soundness
from benchmarks.attention.accuracy import WrongResultError, shares_of_allowed
from benchmarks.measurement import FINDING
from kernels.attention import prefix_attention
from kernels.attention.reference import reference_attention
from models.results import read_table

pytestmark = pytest.mark.interpreter
CASES = soundness.drawn_cases(500)


def test_a_thousand_cases_cover_what_they_should():
    assert {case.head_dim for case in CASES} == set(soundness.HEAD_DIMS)
    assert len(soundness.drawn_cases(1000)) == 1000
    assert {case.group for case in CASES} == {1, 2}
    assert {case.apart for case in CASES} == {case.strided for case in CASES} == {True, False}
    assert any(case.queries == 1 for case in CASES)
    assert any(case.prefix == 0 for case in CASES)
    assert len(set(CASES)) == len(CASES)


def test_a_family_is_compiled_once():
    for first in range(0, 196, soundness.FAMILY):
        family = CASES[first : first + soundness.FAMILY]
        free = dict(batch=2, queries=0, prefix=0, seed=0)
        assert len({dataclasses.replace(case, **free) for case in family}) == 1
        for lengths in ([c.queries for c in family], [c.prefix for c in family]):
            assert len({(n == 0, n == 1, n % 16 == 0) for n in lengths}) == 1


def test_families_run_in_worker_processes(monkeypatch, tmp_path):
    monkeypatch.setattr(soundness, "drawn_cases", lambda *_: [CASE])
    assert soundness.check_random(tmp_path, cases=1, largest=8, jobs=1)
    (row,) = read_table(tmp_path / "soundness.csv")
    assert (row["check"], row["cases"], row["status"]) == ("random", "1", "ok")


CASE = soundness.Case(
    batch=1,
    queries=9,
    prefix=5,
    heads=1,
    group=2,
    head_dim=17,
    dtype="float32",
    apart=True,
    strided=True,
    seed=0,
)


@pytest.mark.parametrize(
    "change", [{}, {"apart": False, "strided": False}, {"queries": 1, "prefix": 0}]
)
def test_our_kernels_pass(change):
    assert soundness.wrong_cases([dataclasses.replace(CASE, **change)]) == []


def test_operands_are_given_as_the_case_says():
    q, k, _, _ = soundness.operands(CASE)
    assert not q.is_contiguous()
    assert (q.shape[2], k.shape[2]) == (2, 1)
    whole = soundness.operands(dataclasses.replace(CASE, strided=False))[0]
    assert whole.is_contiguous()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda *given: prefix_attention(*given, scale=0.2),
        lambda *given: prefix_attention(*given) * float("nan"),
        lambda q, k, v, pk=None, pv=None: reference_attention(q, k, v)[0],  # forgets the prefix
    ],
)
def test_a_wrong_kernel_is_found(monkeypatch, wrong):
    monkeypatch.setattr(soundness, "prefix_attention", wrong)
    (text,) = soundness.wrong_cases([CASE])
    assert "head_dim=17" in text


def test_a_kernel_that_raises_is_found(monkeypatch):
    def refuse(*given):
        raise RuntimeError("launch failed")

    monkeypatch.setattr(soundness, "prefix_attention", refuse)
    (text,) = soundness.wrong_cases([CASE])
    assert text.endswith("RuntimeError: launch failed")


def test_runs_that_differ_are_found(monkeypatch, tmp_path):
    small = dataclasses.replace(CASE, batch=1, group=1, queries=3, prefix=0, head_dim=9)
    monkeypatch.setattr(soundness, "drawn_cases", lambda *_, **__: [small, CASE])
    assert soundness.check_determinism(tmp_path, runs=2)
    monkeypatch.setattr(
        soundness, "prefix_attention", lambda *given: prefix_attention(*given) + torch.rand(())
    )
    assert not soundness.check_determinism(tmp_path, runs=2)
    row = read_table(tmp_path / "soundness.csv")[-1]
    assert (row["cases"], row["status"]) == ("2", "wrong")
    assert row["message"].startswith("2 wrong, first: ")


def test_what_is_allowed():
    # Plain PyTorch is off by 1/4, the output is at most 1: 2/4 and one resolution are allowed.
    exact = [torch.tensor([1.0, 0.0]), torch.tensor([8.0]), torch.tensor([0.0])]
    plain = [exact[0] + 0.25, exact[1], exact[2]]
    eps = torch.finfo(torch.bfloat16).eps

    def shares(output, large, small):
        ours = [torch.tensor(output), torch.tensor([large]), torch.tensor([small])]
        return shares_of_allowed(ours, plain, [x.double() for x in exact], torch.bfloat16)

    assert shares([1.0 + 0.5 + eps, 0.0], 8.0, 0.0)["forward"] == pytest.approx(1)
    # Gradients: four resolutions of the largest, 8, also for the one that vanishes.
    assert shares([1.0, 0.0], 8.0, 4 * 8 * eps)["backward"] == pytest.approx(1)
    assert shares([1.0, 0.0], 8.0 + 5 * 8 * eps, 0.0)["backward"] == pytest.approx(5 / 4)
    with pytest.raises(WrongResultError, match="not finite"):
        shares([1.0, float("inf")], 8.0, 0.0)
    with pytest.raises(WrongResultError, match="shape"):
        shares([1.0], 8.0, 0.0)


FAKE_SANITIZER = """#!{python}
import sys
print("========= ERROR SUMMARY: {errors} errors")
sys.exit({code})
"""


@pytest.mark.parametrize(("errors", "code", "status"), [(0, 0, "ok"), (1, 86, "wrong")])
def test_the_sanitizers_verdict_is_kept(tmp_path, monkeypatch, errors, code, status):
    program = tmp_path / "compute-sanitizer"
    program.write_text(FAKE_SANITIZER.format(python=sys.executable, errors=errors, code=code))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        soundness.main(["sanitizer", "--out", str(tmp_path / "out")])
    assert ended.value.code == (0 if status == "ok" else FINDING)
    (row,) = read_table(tmp_path / "out" / "soundness.csv")
    assert (row["check"], row["status"]) == ("sanitizer", status)


def test_without_a_sanitizer_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit) as ended:
        soundness.main(["sanitizer", "--out", str(tmp_path)])
    assert ended.value.code == FINDING
    assert "compute-sanitizer is not on the PATH" in capsys.readouterr().out
