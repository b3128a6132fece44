"""Scaling laws through published estimates."""

import json
import tempfile
from pathlib import Path

import pytest

from flopcount.isoflop import laws
from flopcount.isoflop.laws import (
    CHINCHILLA_SURFACE,
    CHINCHILLA_TABLE_3,
    CHINCHILLA_TABLE_A3,
    Estimate,
    LossSurface,
    ScalingLaw,
    chinchilla_approach_1,
    chinchilla_approach_2,
    fit_power_law,
    read_law,
)


def test_the_articles_factors():
    first, second = chinchilla_approach_1(), chinchilla_approach_2()
    assert (f"{first.k_n:.4f}", f"{first.k_d:.4f}") == ("0.0877", "1.8960")
    assert (f"{second.k_n:.4f}", f"{second.k_d:.4f}") == ("0.1448", "1.1519")


def test_factors_are_not_rounded():
    # 0.1448 would predict 7.31e7 for the article's budget; the article prints 7.32e7.
    budget = 282_335_232 * 50_000 * 80 * 512
    law = chinchilla_approach_2()
    assert f"{law.n_opt(budget):.2e}" == "7.32e+07"
    assert f"{ScalingLaw(law.a, law.b, 0.1448, law.k_d, 'rounded').n_opt(budget):.2e}" == "7.31e+07"


def test_factors_by_hand():
    # C = 1, 4 with a = 0.5: powers 1, 2; k = (3·1 + 8·2)/(1 + 4) = 3.8.
    law = fit_power_law((Estimate(3, 1, 3), Estimate(8, 4, 8)), "by hand", a=0.5, b=0.5)
    assert law.k_n == law.k_d == pytest.approx(3.8)
    assert law.n_opt(16) == pytest.approx(3.8 * 4)
    assert law.d_opt(16) == pytest.approx(3.8 * 4)


def test_estimates_obey_6nd_roughly():
    for estimate in CHINCHILLA_TABLE_3:
        assert 6 * estimate.params * estimate.tokens == pytest.approx(estimate.flops, rel=0.06)


def test_fitted_exponents_by_hand():
    # N = 3·C^½: 3, 6, 12 at C = 1, 4, 16; D = 2·C^½.
    estimates = [Estimate(3, 1, 2), Estimate(6, 4, 4), Estimate(12, 16, 8)]
    law = fit_power_law(estimates, "by hand")
    assert (law.a, law.k_n, law.b, law.k_d) == pytest.approx((0.5, 3, 0.5, 2))


def test_fitted_exponents_of_the_published_tables():
    # The tables are printed from laws with these exponents, to three digits.
    law = fit_power_law(CHINCHILLA_TABLE_A3, "Table A3")
    assert (law.a, law.b) == pytest.approx((0.49, 0.51), abs=0.005)


@pytest.mark.parametrize(
    ("estimates", "message"),
    [
        ([Estimate(3, 1, 2)], "1 different budgets: expected at least 2"),
        ([Estimate(3, 4, 2), Estimate(3, 4, 2)], "1 different budgets"),
        ([Estimate(3, 4, 2), Estimate(-3, 5, 2)], "expected positive numbers"),
        ([Estimate(3, 4, 2), Estimate(3, float("nan"), 2)], "expected positive numbers"),
        ([], "0 different budgets: expected at least 2"),
    ],
)
def test_estimates_that_carry_no_law(estimates, message):
    with pytest.raises(ValueError, match=message):
        fit_power_law(estimates, "bad")


def test_no_estimates_carry_no_law_of_a_given_exponent():
    with pytest.raises(ValueError, match="0 different budgets: expected at least 1"):
        fit_power_law([], "bad", a=0.5, b=0.5)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: ScalingLaw("x", 0.5, 1, 1, "bad"), TypeError, "a = 'x'"),
        (lambda: ScalingLaw(0.5, 0.5, True, 1, "bad"), TypeError, "k_n = True"),
        (lambda: ScalingLaw(0.5, 0.5, 1, float("nan"), "bad"), ValueError, "k_d = nan"),
        (lambda: LossSurface(1, 10**400, 1, 1, 1, "bad"), ValueError, "a = an integer of"),
        (lambda: ScalingLaw(9.0, 0.5, 1, 1, "steep").n_opt(1e300), ValueError, "exceeds a float"),
        (lambda: LossSurface(1, 0, 1, 1, 1, "flat").n_opt(1e20), ValueError, "no size is optimal"),
    ],
)
def test_laws_without_an_answer(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_a_given_exponent_is_fitted_without_overflow():
    # (1e80)^4 exceeds a float; relative to the largest budget it does not.
    law = fit_power_law([Estimate(2e-30, 1e80, 1e80)], "steep", a=4.0, b=1.0)
    assert law.k_d == pytest.approx(1)


@pytest.mark.parametrize(
    ("exponent", "least", "most"),
    [(2.0, 1e-100, 1e100), (-2.0, 1e-100, 1e100), (0.5, 1e-300, 1e300), (-0.5, 1e-300, 1e300)],
)
def test_budgets_far_apart_are_fitted_without_overflow(exponent, least, most):
    # Any power but that of the largest term over itself would exceed a float, or be 0 ** -x.
    estimates = [Estimate(3 * c**exponent, c, 3 * c**exponent) for c in (least, most)]
    law = fit_power_law(estimates, "wide", a=exponent, b=exponent)
    assert law.k_n == law.k_d == pytest.approx(3)


def test_numbers_of_a_law_are_floats():
    assert all(
        type(number) is float for number in list(vars(ScalingLaw(1, 1, 1, 1, "x")).values())[:4]
    )


def test_the_loss_by_hand():
    # 1 + 2 / √4 + 3 / √9 = 3.
    assert LossSurface(1, 2, 3, 0.5, 0.5, "by hand").loss(4, 9) == pytest.approx(3)


def test_the_surfaces_optimum_by_hand():
    # αA/N^α = βB/D^β at N = D = 1e6 with equal terms; C = 6·1e12. L = 1 + 100/1e3 + 100/1e3.
    surface = LossSurface(1.0, 100.0, 100.0, 0.5, 0.5, "by hand")
    assert surface.n_opt(6e12) == pytest.approx(1e6)
    assert surface.d_opt(6e12) == pytest.approx(1e6)
    assert surface.loss(1e6, 1e6) == pytest.approx(1.2)


def test_the_surfaces_optimum_is_a_minimum():
    for flops in (1e18, 1e24):
        best = CHINCHILLA_SURFACE.n_opt(flops)
        losses = [
            CHINCHILLA_SURFACE.loss(size, flops / 6 / size) for size in (0.99 * best, 1.01 * best)
        ]
        assert CHINCHILLA_SURFACE.loss(best, CHINCHILLA_SURFACE.d_opt(flops)) < min(losses)


def test_a_surface_that_is_not_symmetric_by_hand():
    # α = 1, β = 2, κ = 6: a = β / (α + β) = 2/3. C = 6·8: N·D = 8, and 1·A/N = 2·B/D² with A = 4,
    # B = 8: N = 4 and D = 2 give 1 on the left, 4 on the right; N³ = (A / 2B)·64 = 16 solves it.
    surface = LossSurface(0.0, 4.0, 8.0, 1.0, 2.0, "by hand")
    assert surface.n_exponent == pytest.approx(2 / 3)
    assert surface.n_opt(48) == pytest.approx(16 ** (1 / 3))
    assert surface.n_opt(48) * surface.d_opt(48) == pytest.approx(8)
    assert surface.n_opt(48e6) / surface.n_opt(48) == pytest.approx(1e6**surface.n_exponent)


def test_chinchillas_surface_is_the_published_one():
    # Equation 10: L = 1.69 + 406.4 / N^0.34 + 410.7 / D^0.28, and C = 6ND.
    assert vars(laws.CHINCHILLA_SURFACE) == dict(
        e=1.69, a=406.4, b=410.7, alpha=0.34, beta=0.28, flops_per_param_token=6.0,
        source="Hoffmann et al. 2022 (arXiv 2203.15556), equation 10",
    )  # fmt: skip


@pytest.mark.parametrize("given", [{"a": 0.5}, {"b": 0.5}])
def test_one_exponent_alone_needs_two_budgets_for_the_other(given):
    with pytest.raises(ValueError, match="1 different budgets: expected at least 2"):
        fit_power_law([Estimate(3, 4, 2)], "one budget", **given)


def read(fit):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "fit.json")
        path.write_text(json.dumps(fit))
        return read_law(path)


LAW = dict(a=0.5, b=0.5, k_n=0.1, k_d=2.0, source="x")
SURFACE = dict(e=0.0, a=0.0, b=3.0, alpha=0.5, beta=0.4, flops_per_param_token=6.0, source="x")


def test_a_law_is_read_from_what_a_fit_writes():
    assert read({"law": LAW}) == ScalingLaw(**LAW)
    # A surface may have no floor, and a term without weight; it stands beside a law of its own.
    assert read({"surface": SURFACE, "law": None}) == LossSurface(**SURFACE)


@pytest.mark.parametrize(
    "fit",
    [
        {"law": LAW | {"a": 0.0}},
        {"law": LAW | {"k_n": 0.0}},
        {"surface": SURFACE | {"alpha": 0.0}},
        {"surface": SURFACE | {"a": -1.0}},
        {"surface": SURFACE | {"e": -1.0}},
        {"law": None},
        {},
    ],
)
def test_a_file_without_a_law_is_refused(fit):
    with pytest.raises(ValueError, match="expected"):
        read(fit)
