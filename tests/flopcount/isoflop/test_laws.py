"""Scaling laws through published estimates."""

import pytest

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
    ],
)
def test_estimates_that_carry_no_law(estimates, message):
    with pytest.raises(ValueError, match=message):
        fit_power_law(estimates, "bad")


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
