"""Approach 3 reaches the least sum that a multistart of another kind finds, and says its bounds."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from flopcount.cli import main
from flopcount.fitting import fit_surface, read_runs
from flopcount.laws import LossSurface, read_law

DATA = Path(os.environ.get("FLOPCOUNT_DATA", Path(__file__).parents[3] / "shared" / "data"))
EPOCH = DATA / "scaling" / "chinchilla_figure4_epoch.csv"
KYO = DATA / "scaling" / "chinchilla_figure4_kyo.csv"
DELTA = 1e-3


def drawn_table(seed):
    """A grid of 4 to 6 sizes and tokens with noise, none to four of its losses far off."""
    generator = np.random.default_rng(seed)
    num_n, num_d = generator.integers(4, 7, 2)
    n = np.geomspace(1e6, 10 ** generator.uniform(8, 10), num_n)
    d = np.geomspace(1e8, 10 ** generator.uniform(10, 12), num_d)
    alpha, beta = generator.uniform(0.2, 0.6, 2)
    a, b = generator.uniform(0.3, 2, 2) * (n[0] ** alpha, d[0] ** beta)
    n, d = np.repeat(n, num_d), np.tile(d, num_n)
    loss = generator.uniform(1, 2.5) + a / n**alpha + b / d**beta
    loss *= np.exp(generator.choice([0, 1e-3, 5e-3, 2e-2]) * generator.normal(size=len(loss)))
    outliers = generator.choice(len(loss), generator.integers(0, 5), replace=False)
    signs = generator.choice([-1, 1], len(outliers))
    loss[outliers] *= np.exp(signs * generator.uniform(0.05, 0.7, len(outliers)))
    return {"N": n, "D": d, "loss": loss}


def caught_table():
    # The run with i = j = 1 of a noise-free grid of 4 x 4, times 1.5.
    n = np.repeat(np.geomspace(1e6, 1e9, 4), 4)
    d = np.tile(np.geomspace(1e8, 1e11, 4), 4)
    loss = 1.8 + 400 / n**0.34 + 400 / d**0.30
    loss[5] *= 1.5
    return {"N": n, "D": d, "loss": loss}


def huber(residuals):
    size = np.abs(residuals)
    return np.where(size <= DELTA, size**2 / 2, DELTA * (size - DELTA / 2))


def sums(parameters, table, weights, log=True):
    """The objective of rows of E, A, B, α, β, written as in the docstring of fit_surface."""
    e, a, b, alpha, beta = np.asarray(parameters).T[:, :, None]
    fitted = e + a / table["N"] ** alpha + b / table["D"] ** beta
    if log:
        return (weights * huber(np.log(fitted / table["loss"]))).sum(axis=1)
    median = np.median(table["loss"])
    return (weights * median**2 * huber((fitted - table["loss"]) / median)).sum(axis=1)


def multistart(table, weights, starts, log=True, steps=120):
    """The least sum per row of weights over many starts, by reweighted Gauss-Newton steps.

    Factors are searched by their logs, sizes count from their geometric mean, and no second
    derivative is used: nothing is shared with the fit but the bounds of the exponents.
    """
    x, y = np.log(table["N"]), np.log(table["D"])
    x, y, loss = x - x.mean(), y - y.mean(), table["loss"]
    theta = np.tile(starts, (len(weights), 1))
    weights = np.repeat(weights, len(starts), axis=0)
    unit = DELTA if log else DELTA * np.median(loss)

    def residuals_of(theta):
        e, a, b, alpha, beta = theta.T[:, :, None]
        terms = np.exp([e + 0 * x, a - alpha * x, b - beta * y]).transpose(1, 0, 2)
        fitted = terms.sum(axis=1)
        residuals = (np.log(fitted / loss) if log else fitted - loss) / unit
        size = np.abs(residuals)
        value = (weights * np.where(size <= 1, size**2 / 2, size - 0.5)).sum(axis=1)
        scale = fitted if log else np.ones_like(fitted)
        slopes = np.concatenate([terms, -x * terms[:, 1:2], -y * terms[:, 2:]], axis=1)
        return value, residuals, slopes / scale[:, None] / unit

    value, residuals, slopes = residuals_of(theta)
    damping = np.full((len(theta), 1), 1e-2)
    for _ in range(steps):
        counted = weights / np.maximum(np.abs(residuals), 1)
        normal = (slopes * counted[:, None]) @ slopes.transpose(0, 2, 1)
        diagonal = np.einsum("kii->ki", normal)
        diagonal += damping * diagonal + 1e-9 * diagonal.max(axis=1, keepdims=True)
        pull = (slopes @ (counted * residuals)[:, :, None])[:, :, 0]
        step = np.linalg.solve(normal, pull[:, :, None])[:, :, 0]
        there = theta - np.clip(step, -2, 2)
        there[:, :3] = np.maximum(there[:, :3], -30)
        there[:, 3:] = np.clip(there[:, 3:], 1e-3, 20)
        new = residuals_of(there)
        better = new[0] < value
        theta[better] = there[better]
        for old, arrived in zip((value, residuals, slopes), new, strict=True):
            old[better] = arrived[better]
        damping = np.where(better[:, None], damping / 5, damping * 5).clip(1e-9, 1e9)
    return (unit**2 * value).reshape(-1, len(starts)).min(axis=1)


def random_starts(table, count, seed):
    """Shares of the median loss between the terms, a fifth without E, and exponents."""
    generator = np.random.default_rng(seed)
    shares = generator.dirichlet([1, 1, 1], count) * np.median(table["loss"])
    shares[generator.random(count) < 0.2, 0] = 1e-9
    exponents = np.exp(generator.uniform(math.log(0.03), math.log(5), (count, 2)))
    return np.concatenate([np.log(np.maximum(shares, 1e-9)), exponents], axis=1)


def starts_from(fits, table):
    """Fits as starts of the multistart."""
    fits = np.array(fits)
    fits[:, 1] *= np.exp(-fits[:, 3] * np.log(table["N"]).mean())
    fits[:, 2] *= np.exp(-fits[:, 4] * np.log(table["D"]).mean())
    return np.concatenate([np.log(np.maximum(fits[:, :3], 1e-13)), fits[:, 3:]], axis=1)


def parameters_of(surface):
    return [surface.e, surface.a, surface.b, surface.alpha, surface.beta]


def reaches(value, oracle):
    return value <= oracle * (1 + 1e-6) + 1e-12


CHUNKS = 10
OBJECTIVES = ("huber-log", "variable-projection")


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_300_drawn_tables_reach_the_oracle(chunk):
    at_bounds = 0
    for seed in range(chunk, 300, CHUNKS):
        table = drawn_table(seed)
        objective = OBJECTIVES[seed % 10 == 9]
        log = objective == "huber-log"
        fit = fit_surface(read_runs(table), objective=objective)
        found = parameters_of(fit.surface)
        ones = np.ones((1, len(table["loss"])))
        assert fit.value == pytest.approx(
            float(sums([found], table, ones, log)[0]), rel=1e-6, abs=1e-15
        )
        starts = np.concatenate([random_starts(table, 60, seed), starts_from([found], table)])
        (oracle,) = multistart(table, ones, starts, log)
        assert reaches(fit.value, oracle), (seed, fit.value, oracle, found)
        at_bounds += bool(fit.bounds)
    assert at_bounds < 30


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_bootstrap_fits_of_100_tables_reach_the_oracle(chunk):
    for seed in range(chunk, 100, CHUNKS):
        table = drawn_table(seed)
        size = len(table["loss"])
        objective = OBJECTIVES[seed % 10 == 9]
        fit = fit_surface(read_runs(table), objective=objective, num_bootstrap=8, seed=seed)
        generator = np.random.default_rng(seed)
        draws = generator.multinomial(size, np.full(size, 1 / size), size=8)
        distinct = [min(len({*table[k][draw > 0]}) for k in "ND") for draw in draws]
        draws = draws[np.array(distinct) >= 3].astype(float)
        assert (len(fit.samples), fit.failed) == (len(draws), 8 - len(draws))
        log = objective == "huber-log"
        values = sums(fit.samples, table, draws, log)
        starts = np.concatenate([random_starts(table, 30, seed), starts_from(fit.samples, table)])
        oracle = multistart(table, draws, starts, log)
        assert reaches(values, oracle).all(), (seed, values / oracle - 1, fit.samples)
