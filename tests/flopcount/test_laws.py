"""Scaling laws through published estimates."""

import pytest

from flopcount.laws import (
    CHINCHILLA_TABLE_3,
    Estimate,
    ScalingLaw,
    chinchilla_approach_1,
    chinchilla_approach_2,
    fit_factors,
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
    law = fit_factors((Estimate(3, 1, 3), Estimate(8, 4, 8)), 0.5, 0.5, "by hand")
    assert law.k_n == law.k_d == pytest.approx(3.8)
    assert law.n_opt(16) == pytest.approx(3.8 * 4)
    assert law.d_opt(16) == pytest.approx(3.8 * 4)


def test_estimates_obey_6nd_roughly():
    for estimate in CHINCHILLA_TABLE_3:
        assert 6 * estimate.params * estimate.tokens == pytest.approx(estimate.flops, rel=0.06)
