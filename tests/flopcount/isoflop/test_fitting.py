"""Fits of scaling laws, against surfaces whose truth is known and against published figures."""

import json
import os
import subprocess
import sys
from pathlib import Path
from pkgutil import iter_modules

import numpy as np
import pytest

from flopcount import isoflop
from flopcount.isoflop.curves import fit_training_curves, read_curves
from flopcount.isoflop.frontier import lines
from flopcount.isoflop.laws import (
    CHINCHILLA_SURFACE,
    CHINCHILLA_TABLE_3,
    LossSurface,
    chinchilla_approach_1,
)
from flopcount.isoflop.optima import fit_optima
from flopcount.isoflop.profiles import approach_2_bias, fit_isoflop_profiles
from flopcount.isoflop.runs import read_runs
from flopcount.isoflop.surface import fit_surface

DATA = Path(os.environ.get("FLOPCOUNT_DATA", Path(__file__).parents[4] / "shared" / "data"))
EPOCH = DATA / "scaling" / "chinchilla_figure4_epoch.csv"
SURFACES = {
    "chinchilla": CHINCHILLA_SURFACE,
    "symmetric": LossSurface(1.8, 300.0, 400.0, 0.35, 0.35, "drawn"),
    "asymmetric": LossSurface(0.9, 2000.0, 15.0, 0.55, 0.15, "drawn"),
    "asymmetric the other way": LossSurface(2.5, 20.0, 9000.0, 0.18, 0.5, "drawn"),
}


def table_of(surface, sizes=9, noise=0.0, seed=0):
    generator = np.random.default_rng(seed)
    table = {"params": [], "tokens": [], "loss": []}
    for n in np.geomspace(1e7, 1e10, sizes):
        for d in np.geomspace(1e9, 1e12, sizes):
            table["params"].append(n)
            table["tokens"].append(d)
            table["loss"].append(surface.loss(n, d) * np.exp(noise * generator.normal()))
    return table


def profile_table(budgets=(1e19, 1e20, 1e21), ratios=(0.4, 0.7, 1.0, 1.5, 2.5), noise=0.0):
    # D, N and log C on a parabola with its vertex at N = 0.1·C^½: approach 2 has nothing to miss.
    generator = np.random.default_rng(1)
    table = {"N": [], "C": [], "loss": []}
    for c in budgets:
        for ratio in ratios:
            table["N"].append(0.1 * c**0.5 * ratio)
            table["C"].append(c)
            table["loss"].append(
                50 * c**-0.07 + 0.1 * np.log(ratio) ** 2 + noise * generator.normal()
            )
    return table


@pytest.mark.parametrize("objective", ["huber-log", "variable-projection"])
@pytest.mark.parametrize("surface", SURFACES.values(), ids=SURFACES)
def test_noise_free_surfaces_come_back_to_four_digits(surface, objective):
    found = fit_surface(read_runs(table_of(surface)), objective=objective).surface
    truth = (surface.e, surface.a, surface.b, surface.alpha, surface.beta)
    assert (found.e, found.a, found.b, found.alpha, found.beta) == pytest.approx(truth, rel=5e-5)
    assert found.n_opt(1e22) == pytest.approx(surface.n_opt(1e22), rel=1e-3)


def test_the_published_points():
    if not EPOCH.exists():
        pytest.skip(f"{EPOCH} is absent; set FLOPCOUNT_DATA to the folder that holds scaling/")
    runs = read_runs(EPOCH, drop_highest=5)
    assert (len(runs.rows), len(runs.flagged)) == (240, 5)
    fit = fit_surface(runs)
    # A published replication's rounded figures give 1.0228e-3 (arXiv 2404.10102).
    assert fit.value <= 1.0183e-3
    assert fit.surface.alpha == pytest.approx(0.3473, abs=5e-4)
    # On the loss itself, as robustly, the exponents are the same within their standard errors of
    # 0.02; 0.0071 is the sum of Huber losses in nats.
    other = fit_surface(runs, objective="variable-projection")
    assert other.value < 0.00707
    assert other.surface.alpha == pytest.approx(fit.surface.alpha, abs=0.02)
    assert other.surface.beta == pytest.approx(fit.surface.beta, abs=0.02)


def test_the_optimum_follows_the_runs_own_flops():
    # C = 8·N·D in the table, so that N_opt·D_opt = C / 8; without the column C = 6·N·D.
    table = table_of(CHINCHILLA_SURFACE)
    assert read_runs(table).flops_per_param_token == 6
    table["flops"] = [8 * n * d for n, d in zip(table["params"], table["tokens"], strict=True)]
    best = fit_surface(read_runs(table)).predict(1e22)
    assert best.params * best.tokens == pytest.approx(1e22 / 8)


@pytest.mark.parametrize("objective", ["huber-log", "variable-projection"])
def test_the_surfaces_bootstrap_covers_the_truth_and_is_seeded(objective):
    runs = read_runs(table_of(CHINCHILLA_SURFACE, noise=3e-3))
    fit = fit_surface(runs, objective=objective, num_bootstrap=40, seed=5)
    again = fit_surface(runs, objective=objective, num_bootstrap=40, seed=5)
    other = fit_surface(runs, objective=objective, num_bootstrap=40, seed=6)
    assert fit.intervals == again.intervals != other.intervals
    assert (fit.failed, len(fit.samples)) == (0, 40)
    for name, truth in (("E", 1.69), ("α", 0.34), ("β", 0.28), ("a", 0.28 / 0.62)):
        found = fit.intervals[name]
        assert found.low - 0.02 < truth < found.high + 0.02
    best = fit.predict(1e22)
    assert best.params_interval.low < best.params < best.params_interval.high
    assert best.loss_interval.low < best.loss < best.loss_interval.high
    assert best.params * best.tokens * 6 == pytest.approx(1e22)


def test_profiles_by_hand():
    fit = fit_isoflop_profiles(read_runs(profile_table()))
    # N_opt = 0.1·C^½, so D_opt = C / 6N = (10/6)·C^½; the loss there is 50·C^-0.07.
    law = fit.frontier.law
    assert (law.a, law.k_n) == pytest.approx((0.5, 0.1), rel=1e-6)
    assert (law.b, law.k_d) == pytest.approx((0.5, 10 / 6), rel=1e-6)
    best = fit.predict(1e24)
    assert (best.params, best.tokens) == pytest.approx((1e11, 1e13 / 6), rel=1e-6)
    assert best.loss == pytest.approx(50 * 1e24**-0.07, rel=1e-6)
    assert all(p.verdict == "used" for p in fit.profiles)
    assert np.abs(fit.profiles[0].residuals).max() < 1e-12


def test_the_profiles_bootstrap():
    runs = read_runs(profile_table(ratios=np.geomspace(0.25, 4, 11), noise=2e-3))
    fit = fit_isoflop_profiles(runs, num_bootstrap=500, seed=2)
    found = fit.frontier.intervals["a"]
    assert found.low < 0.5 < found.high
    assert found.high - found.low < 0.1
    again = fit_isoflop_profiles(runs, num_bootstrap=500, seed=2)
    assert fit.to_dict() == again.to_dict()
    for profile in fit.profiles:
        n_opt = profile.intervals["n_opt"]
        assert n_opt.low < profile.n_opt < n_opt.high < 1.2 * n_opt.low
        assert n_opt.low < 0.1 * profile.flops**0.5 < n_opt.high
        low, high = profile.band(profile.params)
        c0, c1, c2 = profile.coefficients
        x = np.log(profile.params) - profile.centre
        assert (low < c0 + c1 * x + c2 * x * x).all()
        assert (c0 + c1 * x + c2 * x * x < high).all()
        assert str(n_opt) in str(fit)
    unsampled = fit_isoflop_profiles(runs).profiles[0]
    assert unsampled.band(unsampled.params) is None
    assert unsampled.intervals["n_opt"] is None


def test_weights_equal_repetition():
    from flopcount.isoflop.profiles import _vertices

    x, loss = np.array([-1.0, 0.0, 0.5, 1.0]), np.array([2.0, 1.0, 1.1, 1.6])
    weights = np.array([[2.0, 1.0, 0.0, 3.0]])
    repeated = [0, 0, 1, 3, 3, 3]
    coefficients, _ = _vertices(x, loss, x, weights)
    assert coefficients[0] == pytest.approx(np.polyfit(x[repeated], loss[repeated], 2)[::-1])


@pytest.mark.parametrize(
    ("ratios", "curvature", "verdict"),
    [
        ((0.5, 1.0, 2.0), -0.1, "no minimum"),
        ((2.0, 3.0, 4.0, 6.0), 0.1, "out of the range"),
        ((0.9, 2.0, 4.0, 8.0), 0.1, "used, off-centre: at 5%"),
        ((1.0, 1.0, 2.0), 0.1, "2 different sizes"),
    ],
)
def test_a_vertex_that_is_no_optimum_is_reported(ratios, curvature, verdict):
    # The vertex lies at N = 1e9. Off-centre: log(1/0.9) / log(8/0.9) = 0.048.
    table = profile_table()
    for index, ratio in enumerate(ratios):
        table["N"].append(1e9 * ratio)
        table["C"].append(1e23)
        table["loss"].append(2 + curvature * np.log(ratio) ** 2 + 1e-6 * index * (len(ratios) == 3))
    fit = fit_isoflop_profiles(read_runs(table))
    last = fit.profiles[-1]
    assert verdict in last.verdict
    json.dumps(fit.to_dict(), allow_nan=False)
    assert last.verdict in " ".join(str(fit.to_dict()["profiles"][-1]).split())
    if verdict.startswith("used"):
        assert last.n_opt == pytest.approx(1e9)
    else:
        assert last.n_opt is None
        assert fit.frontier.law.a == pytest.approx(0.5, rel=1e-6)


def test_a_single_budget_has_a_vertex_and_no_law():
    fit = fit_isoflop_profiles(read_runs(profile_table(budgets=(1e20,))))
    assert fit.profiles[0].n_opt == pytest.approx(1e9)
    assert fit.frontier is None
    assert "no power law" in str(fit)
    with pytest.raises(ValueError, match="two budgets"):
        fit.predict(1e21)


def test_scattered_flops_are_no_budget_unless_budgets_are_given():
    table = profile_table(budgets=tuple(1e19 * 1.15**i for i in range(8)))
    chained = fit_isoflop_profiles(read_runs(table))
    assert "give budgets" in chained.profiles[0].verdict
    fit = fit_isoflop_profiles(read_runs(table), budgets=[1e19, 1e19 * 1.15**7])
    assert fit.frontier.law.a == pytest.approx(0.5, abs=0.05)
    # 1.15^2 and 1.15^5 of each end are beyond 1.2: budgets 2 to 5, five runs each, are left out.
    assert sum(not flag.used for flag in fit.flagged) == 20


def test_off_budget_rows_are_reported_and_used():
    table = profile_table() | {}
    table["budget"] = list(table["C"])
    table["C"][2] *= 1.5
    fit = fit_isoflop_profiles(read_runs(table))
    assert [(flag.row, flag.used) for flag in fit.flagged] == [(3, True)]
    assert "+50%" in fit.flagged[0].reason


def test_approach_2_is_biased_without_noise():
    # Centred alike at every budget, the exponent is right and N_opt is not; wider is worse.
    narrow, wide = (approach_2_bias([1e18, 1e20, 1e22], span=span) for span in (4, 256))
    assert narrow.a == pytest.approx(narrow.true_a, abs=1e-9)
    assert 1.002 < narrow.n_ratio < 1.01 < 1.04 < wide.n_ratio
    # With α = β the loss is symmetric in log N about the optimum, and so is the parabola.
    equal = SURFACES["symmetric"]
    assert approach_2_bias([1e18, 1e20], surface=equal).n_ratio == pytest.approx(1)
    # A centre that drifts makes the exponent wrong, too.
    drifting = approach_2_bias([1e18, 1e20, 1e22], span=64, off_centre=[0.5, 1, 2])
    assert abs(drifting.a - drifting.true_a) > 1e-4


def test_the_bias_is_said_next_to_the_result():
    fit = fit_isoflop_profiles(read_runs(profile_table()))
    # Ratios 0.4 to 2.5, five models.
    assert (fit.bias.span, fit.bias.num_models) == (pytest.approx(6.25), 5)
    printed = " ".join(str(fit).split())
    assert "biased even without noise (arXiv 2603.22339)" in printed
    assert f"{fit.bias.n_ratio - 1:+.1%}" in printed


def curves_table(surface=CHINCHILLA_SURFACE, sizes=12):
    table = {"run": [], "params": [], "tokens": [], "loss": []}
    for index, n in enumerate(np.geomspace(1e7, 1e10, sizes)):
        for d in np.geomspace(1e8, 1e12, 60):
            table["run"].append(f"run-{index}")
            table["params"].append(n)
            table["tokens"].append(d)
            table["loss"].append(surface.loss(n, d))
    return table


def test_the_envelope_of_training_curves():
    fit = fit_training_curves(read_curves(curves_table()), num_bootstrap=20)
    # Sizes on a grid of 12 give steps; the slope through them is near β/(α + β) = 0.4516.
    assert fit.frontier.law.a == pytest.approx(CHINCHILLA_SURFACE.n_exponent, abs=0.02)
    assert fit.frontier.law.a + fit.frontier.law.b == pytest.approx(1, abs=1e-6)
    assert fit.at_edge > 0
    assert set(fit.params) <= set(np.exp(np.log(np.geomspace(1e7, 1e10, 12)[1:-1])))
    best = fit.predict(1e20)
    assert best.params == pytest.approx(CHINCHILLA_SURFACE.n_opt(1e20), rel=0.2)
    assert best.params_interval.low < best.params < best.params_interval.high


def test_edges_of_the_envelope_are_not_used():
    table = curves_table(sizes=3)
    fit = fit_training_curves(read_curves(table))
    assert set(np.round(np.log10(fit.params), 6)) == {8.5}  # of 1e7, 10^8.5, 1e10


def test_lines_skip_missing_optima():
    # Without the second optimum the line runs through (0, 1) and (2, 5): slope 2, intercept 1.
    values = np.array([[[1.0, np.nan, 5.0]] * 3, [[np.nan, np.nan, 5.0]] * 3])
    slopes, intercepts = lines(np.array([0.0, 1.0, 2.0]), values)
    assert slopes[0] == pytest.approx(2)
    assert intercepts[0] == pytest.approx(1)
    assert np.isnan(slopes[1]).all()


def test_odd_rows_are_reported(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text(
        "Model Size,Training FLOPs,Final Loss\n"
        "1e8,6e18,3.0\n"
        "2e8,6e18,n/a\n"
        "1e8,6e18,3.0\n"
        "1e8,6e18,3.1\n"
        "3e8,6e18\n"
        "3e8,-1,2.9\n"
        "nan,6e18,2.9\n"
        "4e8,6e18,9.0\n"
    )
    runs = read_runs(path, drop_highest=1)
    assert runs.rows == (1, 4)
    assert runs.tokens == pytest.approx([1e10, 1e10])  # 6e18 / (6·1e8)
    reasons = {flag.row: (flag.reason, flag.used) for flag in runs.flagged}
    assert "'n/a'" in reasons[2][0]
    assert reasons[3] == ("duplicate of row 1", False)
    assert reasons[4] == ("repeats the size of row 1", True)
    assert "2 cells under 3" in reasons[5][0]
    assert "'-1'" in reasons[6][0]
    assert "'nan'" in reasons[7][0]
    assert "highest" in reasons[8][0]
    assert sorted(reasons) == [2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("headings", "message"),
    [
        (["N", "params", "D", "loss"], r"'N' and 'params' may all be params: give one as params="),
        (["N", "D", "train_loss", "val_loss"], r"may all be loss.*columns are 'N', 'D'"),
        (["params (Mo)", "D", "loss"], "expected loss and two of.*'params \\(Mo\\)'"),
        (["N", "D"], "expected loss"),
        (["N", "D", "loss", "loss"], "'loss' occurs more than once"),
    ],
)
def test_columns_are_never_guessed(headings, message, tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text(",".join(headings) + "\n" + ",".join("1" for _ in headings) + "\n")
    with pytest.raises(ValueError, match=message):
        read_runs(path)


def test_published_tables_are_read_as_they_come(tmp_path):
    # Headings as a logger writes them, units in headings and in cells, semicolons.
    path = tmp_path / "runs.csv"
    path.write_text(
        '"Name";"parameter_count";"throughput/total_gflops";"eval/paloma/macro_loss"\n'
        '"one";"669,160,448";"30000";"3.5"\n"two";"1.4B";"30000";"3.4"\n'
    )
    runs = read_runs(path)
    assert runs.params.tolist() == [669_160_448, 1.4e9]
    assert runs.flops.tolist() == [3e13, 3e13]
    assert "flops = 'throughput/total_gflops' in 1e+09" in runs.described
    table = {"Params (M)": ["400", "1000"], "Tokens [billions]": [8.0, "20.2"], "loss": [3.0, 2.5]}
    assert read_runs(table).params.tolist() == [4e8, 1e9]
    assert read_runs(table).tokens.tolist() == [8e9, 2.02e10]
    assert read_runs(table).to_dict()["units"] == {"params": 1e6, "tokens": 1e9, "loss": 1}


@pytest.mark.parametrize("cell", ["3.2M", "1,2", "12,34,567", "5e", "1e9 q", "M", "--3", "0"])
def test_what_is_no_loss_is_reported(cell):
    runs = read_runs({"N": [1e6, 2e6], "D": [1e8, 1e8], "loss": [3.0, cell]})
    assert [flag.row for flag in runs.flagged] == [2]


def test_one_experiment_of_a_table_of_several():
    table = {"set": ["x", "y", "x"], "N": [1e6, "?", 3e6], "D": [1e8] * 3, "loss": [4.0, 3.0, 3.0]}
    runs = read_runs(table, where={"set": "x"})
    assert (runs.rows, runs.flagged) == ((1, 3), ())
    assert "2 of 3 rows with set = x" in runs.described
    with pytest.raises(ValueError, match="where = 'sets': expected a column's name"):
        read_runs(table, where={"sets": "x"})
    with pytest.raises(ValueError, match="no usable row among 0"):
        read_runs(table, where={"set": "z"})
    curves = {"set": "xxy", "run": "aaa", "N": [1e6] * 3, "D": [1e7, 2e7, 3e7], "loss": [3, 2, 1]}
    assert len(read_curves(curves, where={"set": "x"}).curves[0].loss) == 2


def optima_table(**more):
    return {
        "Parameters": [f"{row.params / 1e9:g} Billion" for row in CHINCHILLA_TABLE_3],
        "FLOPs": [row.flops for row in CHINCHILLA_TABLE_3],
        "Tokens": [row.tokens for row in CHINCHILLA_TABLE_3],
    } | more


def test_power_laws_through_published_optima():
    # Exponents given, the article's factors; exponents fitted, those that Chinchilla prints.
    runs = read_runs(optima_table(), optima=True)
    given = fit_optima(runs, a=0.5, b=0.5, num_bootstrap=50)
    assert given.frontier.law.k_n == pytest.approx(chinchilla_approach_1().k_n, rel=1e-12)
    assert given.frontier.law.k_d == pytest.approx(chinchilla_approach_1().k_d, rel=1e-12)
    assert "given" in str(given)
    fitted = fit_optima(runs, num_bootstrap=200)
    assert (fitted.frontier.law.a, fitted.frontier.law.b) == pytest.approx((0.5, 0.5), abs=0.005)
    assert fitted.frontier.intervals["a"].low < fitted.frontier.law.a
    assert np.abs(fitted.residuals).max() < 0.06  # tokens of the 67B model are printed as 1.5e12
    best = fitted.predict(5.76e23)
    assert best.params == pytest.approx(67e9, rel=0.03)
    assert best.params_interval.low < best.params < best.params_interval.high
    assert (best.loss, best.loss_interval) == (None, None)
    json.dumps(fitted.to_dict() | best.to_dict(), allow_nan=False)


def test_power_laws_predict_the_loss_where_optima_have_one():
    losses = [3 * row.flops**-0.05 for row in CHINCHILLA_TABLE_3]
    fit = fit_optima(read_runs(optima_table(loss=losses), optima=True), num_bootstrap=20)
    assert fit.predict(1e22).loss == pytest.approx(3 * 1e22**-0.05)
    assert fit.frontier.loss_exponent == pytest.approx(-0.05)


def test_optima_at_a_single_budget_carry_no_exponent():
    runs = read_runs({"N": [1e6], "C": [1e12], "D": [1e5]}, optima=True)
    assert fit_optima(runs, a=0.5, b=0.5).frontier.law.k_n == pytest.approx(1)
    with pytest.raises(ValueError, match="1 different budgets: expected at least 2"):
        fit_optima(runs)
    with pytest.raises(ValueError, match="drop_highest = 1: expected 0"):
        read_runs({"N": [1e6], "C": [1e12], "D": [1e5]}, optima=True, drop_highest=1)


def outlying_table():
    table = table_of(CHINCHILLA_SURFACE)
    table["loss"][40] *= 1.5
    return read_runs(table)


def test_both_objectives_forgive_an_outlier_and_least_squares_does_not():
    runs = outlying_table()
    for objective in ("huber-log", "variable-projection"):
        found = fit_surface(runs, objective=objective).surface
        assert (found.e, found.alpha, found.beta) == pytest.approx((1.69, 0.34, 0.28), rel=2e-3)
    squares = fit_surface(runs, objective="least-squares-log").surface
    assert abs(squares.alpha - 0.34) > 0.01


@pytest.mark.parametrize("objective", ["huber-log", "variable-projection"])
def test_a_surface_without_an_optimum_says_so(objective):
    table = table_of(LossSurface(1.7, 0.0, 400.0, 0.3, 0.3, "size does not matter"))
    fit = fit_surface(read_runs(table), objective=objective, num_bootstrap=3)
    assert fit.surface.a == 0
    assert str(fit)
    with pytest.raises(ValueError, match="no size is optimal"):
        fit.predict(1e20)


def test_a_bootstrap_of_an_exponent_beyond_the_bounds():
    # The polished exponent, 6.5, lies above what least squares may start from.
    generator = np.random.default_rng(0)
    params, tokens = np.tile([1e5, 3e5, 1e6, 3e6], 3), np.repeat([1e7, 3e7, 1e8], 4)
    loss = 2 + 0.5 * (1e5 / params) ** 6.5 + 3 * (1e7 / tokens) ** 0.4
    table = {"params": params, "tokens": tokens, "loss": loss + generator.normal(0, 0.005, 12)}
    fit = fit_surface(read_runs(table), num_bootstrap=5)
    assert fit.surface.alpha > 5
    assert str(fit)


def test_named_columns_and_frames():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"N": [1.0], "params": [2.0], "D": [3.0], "loss": [4.0]})
    runs = read_runs(frame, params="params")
    assert (runs.params[0], runs.flops[0]) == (2, 36)  # 6·2·3
    with pytest.raises(ValueError, match="tokens = 'T': expected a column's name"):
        read_runs(frame, params="params", tokens="T")


@pytest.mark.parametrize(
    ("function", "arguments", "error", "message"),
    [
        (read_runs, (3,), TypeError, "source = 3"),
        (read_runs, ("nowhere.csv",), ValueError, "source = 'nowhere.csv'.*No such file"),
        (read_runs, ({"N": ["x"], "D": [1.0], "loss": [1.0]},), ValueError, "no usable row"),
        (fit_surface, ("runs",), TypeError, "runs = 'runs'"),
        (fit_isoflop_profiles, ("runs",), TypeError, "runs = 'runs'"),
        (fit_training_curves, ("curves",), TypeError, "curves = 'curves'"),
        (fit_surface, (read_runs({"N": [1.0], "D": [1.0], "loss": [1.0]}),), ValueError, "holds 1"),
        (approach_2_bias, ([1e18],), ValueError, "at least two"),
        (approach_2_bias, ([1e18, 1e300],), ValueError, "expected 1e-100 to 1e\\+100 FLOPs"),
        (read_runs, ({"N": [1e300], "D": [1.0], "loss": [1.0]},), ValueError, "no usable row"),
    ],
)
def test_bad_input(function, arguments, error, message):
    with pytest.raises(error, match=message):
        function(*arguments)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(objective="huber"), ValueError, "objective = 'huber'.*'huber-log'"),
        (dict(num_bootstrap=-1), ValueError, "num_bootstrap = -1"),
        (dict(num_bootstrap=1.5), TypeError, "num_bootstrap = 1.5"),
        (dict(num_bootstrap=10**9), ValueError, "expected an integer from 0 to 100,000"),
        (dict(confidence=1.0), ValueError, "confidence = 1.0"),
        (dict(seed=None), TypeError, "seed = None"),
        (dict(seed=-1), ValueError, "seed = -1"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        fit_surface(read_runs(table_of(CHINCHILLA_SURFACE)), **options)


def test_bad_options_of_the_other_fits():
    curves = read_curves(curves_table(sizes=3))
    with pytest.raises(ValueError, match="num_budgets = 1000000000"):
        fit_training_curves(curves, num_budgets=10**9)
    for option, message in ((dict(span=1e9), "span"), (dict(off_centre=1e9), "off_centre")):
        with pytest.raises(ValueError, match=f"{message} = 1000000000.0"):
            approach_2_bias([1e18, 1e20], **option)
    with pytest.raises(ValueError, match="a = -1"):
        fit_optima(read_runs(optima_table(), optima=True), a=-1)


def test_a_parabola_below_zero_gives_no_line_of_losses():
    # x = -1, -½, 0, ½, 1 and losses 10, 0.1, 0.1, 0.1, 10: the normal equations 5c₀ + 2.5c₂ = 20.3
    # and 2.5c₀ + 2.125c₂ = 20.05 give c₀ = -1.597, whose log is no number.
    table = profile_table(ratios=np.exp([-1, -0.5, 0, 0.5, 1]))
    table["loss"] = [10.0, 0.1, 0.1, 0.1, 10.0] * 3
    fit = fit_isoflop_profiles(read_runs(table))
    assert fit.profiles[0].loss_opt == pytest.approx(-1.597, abs=1e-3)
    assert fit.frontier.loss_exponent is None
    assert fit.predict(1e20).loss is None
    assert fit.frontier.law.a == pytest.approx(0.5)


def loads(statement):
    heavy = "[m for m in ('numpy', 'scipy', 'pandas', 'sympy') if m in sys.modules]"
    code = f"import sys; {statement}; print({heavy})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return result.stdout.strip()


def test_importing_the_fits_is_light():
    modules = [f"flopcount.isoflop.{module.name}" for module in iter_modules(isoflop.__path__)]
    assert len(modules) > 9
    assert loads(f"import {', '.join(modules)}") == "[]"
    assert loads("import numpy") == "['numpy']"  # the probe sees what is loaded


def test_a_surface_takes_no_library_but_numpy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    assert fit_surface(read_runs(table_of(CHINCHILLA_SURFACE))).value < 1e-12
