"""Training curves: names that identify runs, and an envelope that carries a law or none."""

import json

import numpy as np
import pytest

from flopcount.isoflop.curves import fit_training_curves, read_curves
from flopcount.isoflop.laws import CHINCHILLA_SURFACE, read_law


def two_rates(order=("good", "bad"), shift=0.0):
    """N = 1e6·2^i, D = 1e7·3^j, and of every model a second run whose rate adds 3e-8·N."""
    rows = []
    for rate in order:
        for n in (1e6 * 2**i for i in range(5)):
            for d in (1e7 * 3**j for j in range(5)):
                d *= 1 + shift * (rate == "bad")
                loss = 1.7 + 400 / n**0.34 + 400 / d**0.28 + 3e-8 * n * (rate == "bad")
                rows.append((f"m{n:g}", 1e-3 if rate == "good" else 1e-2, n, d, loss))
    names = ("model", "lr", "N", "D", "loss")
    return dict(zip(names, zip(*rows, strict=True), strict=True))


@pytest.mark.parametrize("order", [("good", "bad"), ("bad", "good")])
def test_a_name_that_identifies_no_run_is_refused(order):
    with pytest.raises(ValueError, match="run = 'model' names no run") as caught:
        read_curves(two_rates(order))
    # The first model, 6·1e6·1e7 = 6e13 FLOPs, rows 1 and 26.
    assert "run 'm1e+06' has losses" in str(caught.value)
    assert "at 6e+13 FLOPs (rows 1 and 26)" in str(caught.value)
    assert "each is named by 'model' and 'lr' together" in str(caught.value)


def test_the_columns_of_a_key_name_the_runs():
    # The better rate is the envelope: a is that of the good runs alone.
    both = [
        fit_training_curves(read_curves(two_rates(order), run=("model", "lr")))
        for order in (("good", "bad"), ("bad", "good"))
    ]
    good = fit_training_curves(read_curves(two_rates(("good",))))
    assert both[0].frontier.law.a == both[1].frontier.law.a
    assert both[0].frontier.law.a == pytest.approx(good.frontier.law.a, abs=1e-12)
    assert good.frontier.law.a == pytest.approx(0.383, abs=1e-3)
    assert len(both[0].curves.curves) == 10
    assert "run = 'model + lr'" in str(both[0])
    one = fit_training_curves(read_curves(two_rates(), where={"lr": "0.001"}))
    assert one.frontier.law.a == good.frontier.law.a


def test_a_key_of_two_further_columns():
    rows = [
        ("m", lr, wd, step, 1e6, d, 3.0 + 0.1 * lr + 0.01 * wd - d / 1e9)
        for lr in (1, 2)
        for wd in (1, 2)
        for step, d in ((1, 1e7), (2, 2e7))
    ]
    names = ("run", "lr", "wd", "step", "N", "D", "loss")
    table = dict(zip(names, zip(*rows, strict=True), strict=True))
    with pytest.raises(ValueError, match="named by 'run' and 'lr' and 'wd' together"):
        read_curves(table)
    assert len(read_curves(table, run=("run", "lr", "wd")).curves) == 4
    del table["wd"]
    with pytest.raises(ValueError, match="no other columns tell them apart"):
        read_curves(table)


def test_one_name_for_two_sizes_is_refused():
    table = {"run": "aaaa", "set": "xxyy", "N": [1e6, 1e6, 2e6, 2e6], "D": [1e7, 2e7] * 2,
             "loss": [4, 3, 2, 1]}  # fmt: skip
    with pytest.raises(
        ValueError,
        match=r"N = 1e\+06 and 2e\+06 \(rows 1 and 3\).*'run' and 'set' to.*'run' and 'N' to",
    ):
        read_curves(table)


def test_interleaved_runs_of_one_name_are_warned_of():
    # The bad rate's points lie 1 % further: no two at equal FLOPs.
    [warning] = read_curves(two_rates(shift=0.01)).warnings
    assert "several values of 'lr' over the same FLOPs" in warning
    assert "'model' and 'lr' together" in warning
    # A learning rate that changes along a run is none of two runs.
    table = two_rates(("good",))
    table["lr"] = [1e-3, 1e-3, 5e-4, 5e-4, 1e-4] * 5
    assert read_curves(table).warnings == ()


def test_a_row_that_repeats_another_is_left_out():
    table = {"run": "aaa", "N": [1e6] * 3, "D": [1e7, 2e7, 2e7], "loss": [4.0, 3.0, 3.0]}
    curves = read_curves(table)
    assert [(flag.row, flag.used) for flag in curves.flagged] == [(3, False)]
    assert curves.curves[0].loss.tolist() == [4.0, 3.0]


def one_winner():
    table = {"run": [], "N": [], "D": [], "loss": []}
    for n in (1e7, 10**8.5, 1e10):
        for d in np.geomspace(1e8, 1e12, 60):
            row = (f"{n:g}", n, d, CHINCHILLA_SURFACE.loss(n, d))
            for column, value in zip(table.values(), row, strict=True):
                column.append(value)
    return table


def test_an_envelope_of_one_size_gives_no_law(tmp_path):
    fit = fit_training_curves(read_curves(one_winner()), num_bootstrap=20)
    assert set(np.round(np.log10(fit.params), 6)) == {8.5}
    assert fit.frontier is None
    assert "degenerate: N = 3.162e+08 has the least loss at all" in str(fit)
    plain = fit.to_dict()
    assert (plain["law"], plain["frontier"], plain["residuals"]) == (None, None, None)
    json.dumps(plain, allow_nan=False)
    with pytest.raises(ValueError, match="no prediction: degenerate"):
        fit.predict(1e20)
    path = tmp_path / "fit.json"
    path.write_text(json.dumps(plain))
    with pytest.raises(ValueError, match="with a law"):
        read_law(path)


def test_a_bootstrap_sample_of_one_winner_has_failed():
    # Six sizes: some draws leave a single one between the smallest and the largest.
    table = {"run": [], "N": [], "D": [], "loss": []}
    for n in np.geomspace(1e7, 1e10, 6):
        for d in np.geomspace(1e8, 1e12, 60):
            row = (f"{n:g}", n, d, CHINCHILLA_SURFACE.loss(n, d))
            for column, value in zip(table.values(), row, strict=True):
                column.append(value)
    frontier = fit_training_curves(read_curves(table), num_bootstrap=200).frontier
    assert frontier.failed > 0
    assert len(frontier.slopes) + frontier.failed == 200
    assert (frontier.slopes[:, 0] > 0).all()
