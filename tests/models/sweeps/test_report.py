"""The report of a sweep: what it says, and what it says when there is no minimum."""

import contextlib
import csv
import html.parser
import json
import math
import re

import numpy as np
import pytest

import flopcount
from flopcount.isoflop.laws import chinchilla_approach_2
from models.configuration import claim_folder
from models.sweeps import plots
from models.sweeps.plan import SweepConfig, plan_runs
from models.sweeps.report import fit_sweep, write_report

SIZES = dict(vocab_size=262, num_latents=512, num_prefix=1536)
SHAPES = ((8, 1), (16, 1), (24, 1), (40, 1), (64, 1))


def finished_sweep(folder, losses, seeds=(0,), budgets=(1e12,)):
    """A sweep's folder as training leaves it, with the losses given per shape, or a parabola's."""
    config = SweepConfig(budgets=budgets, shapes=SHAPES, seeds=seeds)
    claim_folder(config, folder)
    rows = []
    for index, run in enumerate(plan_runs(config)):
        curve = [
            {"step": step, "flops": 1e12 * step / 10, "validation_loss": 6 - step / 10}
            for step in (5, 10)
        ]
        write_table(folder / "runs" / run.name / "metrics.csv", curve)
        (folder / "runs" / run.name / "environment.json").write_text(
            json.dumps(
                {
                    "torch": "<2",
                    "python": "3.11.7",
                    "commits": ["aaa", "bbb"] if index else ["aaa"],
                    "execution": {"dtype": "fp32", "micro_batches": 2},
                    "train_tokens": 12345,
                }
            )
        )
        rows.append(
            {
                "run": run.name,
                "budget": run.budget,
                "num_channels": run.config.model.num_channels,
                "num_layers": 1,
                "parameters": run.parameters,
                "step": 10,
                "tokens": run.budget / 6 / run.parameters,
                "flops": 1.001 * run.budget,
                "validation_loss": losses[index]
                if losses
                else 2 + 0.1 * math.log(run.parameters / (0.06 * run.budget**0.5)) ** 2,
                "train_loss": 2.0,
                "seconds": 9.0,
                "tokens_per_second": 1e4,
                "mfu": 0.375,
                "hfu": "",
            }
        )
    write_table(folder / "runs.csv", rows)
    return rows


def write_table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


class Page(html.parser.HTMLParser):
    """A page's tables as rows of cells, its images, and what it links to."""

    def __init__(self, path):
        super().__init__()
        self.rows, self.images, self.alts, self.links, self.text = [], [], [], [], ""
        self.open_cell = False
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.images.append(dict(attrs)["src"])
            self.alts.append(dict(attrs)["alt"])
        if tag in ("a", "link", "script"):
            self.links.append((tag, dict(attrs).get("href")))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.open_cell = True

    def handle_endtag(self, tag):
        self.open_cell = self.open_cell and tag not in ("td", "th")

    def handle_data(self, data):
        self.text += data
        if self.open_cell:
            self.rows[-1][-1] += data

    def below(self, heading, count=1):
        """The rows below the one that ends with this heading."""
        start = [row[-1] for row in self.rows].index(heading) + 1
        return self.rows[start : start + count]

    def named(self, name):
        return next(row for row in self.rows if row[0] == name)


@contextlib.contextmanager
def kept_figures():
    """The figures that plots are made of, in their order."""
    drawn = []
    draw = plots._png
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "_png", lambda figure: drawn.append(figure) or draw(figure))
        yield drawn


@pytest.fixture(scope="module")
def two_budgets(tmp_path_factory):
    """A report on N_opt = 0.06·C^½: its folder, its page and its figures."""
    folder = tmp_path_factory.mktemp("two")
    finished_sweep(folder, None, budgets=(1e12, 4e12))
    with kept_figures() as figures:
        page = Page(write_report(folder, num_bootstrap=20))
    return folder, page, figures


def read_table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_report_is_one_file_that_states_the_minimum_and_every_run(tmp_path):
    rows = finished_sweep(tmp_path, [2.5, 2.2, 2.1, 2.2, 2.5])
    page = Page(write_report(tmp_path, num_bootstrap=20))
    assert len(page.images) == 6
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in page.images)
    assert {tag for tag, _ in page.links} == {"a"}
    for name in ("loss_against_flops", "parameters_against_flops", "flops_by_term"):
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    ((*_, verdict),) = page.below("minimum inside the range")
    assert verdict == "yes"
    for row in rows:
        assert f"{row['validation_loss']:.4f}" in page.named(row["run"])
    assert page.named("execution")[1].strip() == "dtype: fp32, micro batches: 2"
    assert page.named("commits")[1] == "aaa; bbb"  # of all runs, each once
    assert page.named("train tokens")[1] == "12,345"
    assert page.named("run")[-1] == "MFU"
    assert page.named(rows[0]["run"])[-1] == "37.5%"
    assert page.named("torch")[1].strip() == "<2"  # what comes from files is escaped
    assert "the noise between seeds is not measured" in " ".join(page.text.split())
    assert page.named("1, envelope of training curves")[1].startswith("none: expected budgets at")
    assert page.named("2, parabola per budget")[1].startswith("none: no prediction, since it takes")


def test_tables_beside_the_report_hold_its_numbers(tmp_path):
    rows = finished_sweep(tmp_path, [2.5, 2.2, 2.1, 2.2, 2.5])
    page = Page(write_report(tmp_path, num_bootstrap=0))
    curves = read_table(tmp_path / "curves.csv")
    assert [row["validation_loss"] for row in curves] == ["5.5", "5.0"] * len(rows)
    terms = [row for row in read_table(tmp_path / "terms.csv") if row["model"] == "64 × 1"]
    model = flopcount.PerceiverAR(num_channels=64, num_layers=1, **SIZES)
    total = model.flops().per_token
    by_term = [float(row["flops_per_token"]) for row in terms if row["part"]]
    assert sum(by_term) == pytest.approx(float(total))
    assert page.named("total")[-1].startswith(f"{float(total):,.0f}")
    optima = read_table(tmp_path / "optima.csv")
    law = chinchilla_approach_2()
    assert float(optima[0]["flops"]) == pytest.approx(5e11)
    assert float(optima[-1]["params_chinchilla-2"]) == pytest.approx(law.n_opt(1e13))


def test_two_budgets_carry_laws(two_budgets):
    # On N_opt = 0.06·C^½ with parabolas in log N about it, the vertices are exact: a = ½.
    folder, page, _ = two_budgets
    _, a, b, *_ = page.named("2, parabola per budget")
    assert a.startswith("0.500")
    assert "…" in a
    assert float(b[:5]) == pytest.approx(0.5, abs=0.02)
    best = next(row for row in read_table(folder / "optima.csv") if float(row["flops"]) > 4e12)
    assert float(best["params"]) == pytest.approx(0.06 * float(best["flops"]) ** 0.5, rel=1e-3)
    assert float(best["params_low"]) <= float(best["params"]) <= float(best["params_high"])


@pytest.mark.parametrize("losses", [[2.5, 2.4, 2.3, 2.2, 2.1], [2.1, 2.3, 2.5, 2.3, 2.1]])
def test_report_says_where_there_is_no_minimum(tmp_path, losses):
    finished_sweep(tmp_path, losses)
    (row,) = Page(write_report(tmp_path, num_bootstrap=0)).below("minimum inside the range")
    assert row[:4] == ["1012", "–", "–", "–"]
    assert row[5].startswith("no: ")


def test_report_measures_the_noise_between_seeds(tmp_path):
    # Per shape losses x and x + 0.02: a standard deviation of 0.02 / √2 = 0.0141.
    losses = [loss + seed for loss in (2.5, 2.2, 2.1, 2.2, 2.5) for seed in (0, 0.02)]
    finished_sweep(tmp_path, losses, seeds=(0, 1))
    page = Page(write_report(tmp_path, num_bootstrap=20))
    assert "standard deviation of 0.0141" in page.text
    assert "a single run may lie outside" in " ".join(page.text.split())
    assert "repeats" not in page.text  # a seed repeats a size by design


def test_no_range_is_called_more_than_it_is(two_budgets):
    """A bootstrap over the runs of one seed leaves the noise between seeds out."""
    text = " ".join(two_budgets[1].text.split())
    assert "from percentile 2.5 to 97.5 of fits to runs drawn with replacement" in text
    assert "no confidence intervals" in text
    assert not re.search(r"\b95 ?(%|per cent)", text)


def test_settings_are_those_that_had_an_effect(two_budgets):
    _, page, _ = two_budgets
    assert page.named("peak learning rate")[1] == "0.0002, Adam"
    assert page.named("models, channels × layers")[1] == "8 × 1, 16 × 1, 24 × 1, 40 × 1, 64 × 1"
    assert page.named("corpus")[1] == "the standard library of Python 3.11.7, its tests left out"
    assert "trained on the standard library of Python 3.11.7" in page.text
    names = [row[0] for row in page.rows]
    for unused in ("num channels", "dataset", "blank lines", "peak", "prefix dropout", "workers"):
        assert unused not in names
    for internal in ("null", "None", "(causal)", "self, ", "cross", "chinchilla-", "num_"):
        assert internal not in page.text


def test_pictures_say_what_they_show(two_budgets):
    # N_opt = 0.06·C^½: 60,000 and 120,000 at 1e12 and 4e12 FLOPs, where the loss is 2.
    _, page, _ = two_budgets
    first, params, *_ = page.alts
    assert "at 1e12 FLOPs the minimum is 2.0000 at N = 60,000" in first
    assert "at 4e12 FLOPs the minimum is 2.0000 at N = 120,000" in first
    assert "grow as C^0.500" in params
    assert len(set(page.alts)) == 6
    assert all(len(alt) > 60 for alt in page.alts)
    assert "8 × 1: " in page.alts[-1]


def legend(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_legends_name_all_that_is_drawn(two_budgets):
    profiles, params, tokens, curves, curves_log, _ = map(legend, two_budgets[2])
    assert profiles == [
        "1e12 FLOPs",
        "4e12 FLOPs",
        "minimum of the parabola",
        "its bootstrap range",
        "bootstrap band of the parabola",
    ]
    assert params == tokens
    assert params[-3:] == [
        "law of this sweep, approach 2",
        "its bootstrap band",
        "minimum at a budget, bootstrap range",
    ]
    assert params[0] == "Chinchilla, approach 1"
    assert curves[-1] == curves_log[-1] == "budget"


def test_no_band_is_clipped(tmp_path):
    """Five runs off any parabola: their band reaches far beyond them."""
    finished_sweep(tmp_path, [2.9, 2.2, 2.6, 2.1, 2.5])
    with kept_figures() as figures:
        plots.plot_profiles(fit_sweep(tmp_path, num_bootstrap=200).profiles)
        plots.plot_profiles(fit_sweep(tmp_path, num_bootstrap=0).profiles)
    banded, plain = figures
    assert "bootstrap" in " ".join(legend(banded))
    assert "bootstrap" not in " ".join(legend(plain))
    (axes,) = banded.axes
    low, high = axes.get_ylim()
    edges = np.concatenate([path.vertices[:, 1] for path in axes.collections[0].get_paths()])
    assert edges.max() > 2.95  # the band, above every run
    assert low < edges.min() < edges.max() < high


def test_unfinished_sweep_is_named(tmp_path):
    claim_folder(SweepConfig(budgets=(1e12,), shapes=SHAPES), tmp_path)
    with pytest.raises(ValueError, match=r"must hold a finished sweep, got no runs\.csv"):
        write_report(tmp_path, num_bootstrap=0)
