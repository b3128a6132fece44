"""The report of a sweep: what it says, and what it says when there is no minimum."""

import csv
import html.parser
import json

import pytest

from models.configuration import claim_folder
from models.report import write_report
from models.sweep import SweepConfig, plan_runs

SHAPES = ((8, 1), (16, 1), (24, 1), (40, 1), (64, 1))


def finished_sweep(folder, losses, seeds=(0,)):
    """A sweep's folder as training leaves it, with the losses given per shape."""
    config = SweepConfig(budgets=(1e12,), shapes=SHAPES, seeds=seeds)
    claim_folder(config, folder)
    rows = []
    for index, run in enumerate(plan_runs(config)):
        curve = [
            {"step": step, "flops": 1e12 * step / 10, "validation_loss": 6 - step / 10}
            for step in (5, 10)
        ]
        write_table(folder / "runs" / run.name / "metrics.csv", curve)
        (folder / "runs" / run.name / "environment.json").write_text(json.dumps({"torch": "<2"}))
        rows.append(
            {
                "run": run.name,
                "budget": run.budget,
                "num_channels": run.config.model.num_channels,
                "num_layers": 1,
                "parameters": run.parameters,
                "step": 10,
                "tokens": 1000,
                "flops": 1.001e12,
                "validation_loss": losses[index],
                "train_loss": 2.0,
                "seconds": 9.0,
                "tokens_per_second": 1e4,
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
    """A page's text by cell, and its images."""

    def __init__(self, path):
        super().__init__()
        self.cells, self.images = [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.images.append(dict(attrs)["src"])

    def handle_data(self, data):
        if data.strip():
            self.cells.append(data.strip())


def test_report_is_one_file_that_states_the_minimum_and_every_run(tmp_path):
    rows = finished_sweep(tmp_path, [2.5, 2.2, 2.1, 2.2, 2.5])
    page = Page(write_report(tmp_path))
    assert len(page.images) == 2
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in page.images)
    assert (tmp_path / "loss_against_flops.png").read_bytes()[:4] == b"\x89PNG"
    assert page.cells[page.cells.index("minimum inside the range") + 6] == "yes"
    assert all(row["run"] in page.cells for row in rows)
    assert page.cells[page.cells.index(rows[2]["run"]) + 7] == "2.1000"
    assert "<2" in page.cells  # what comes from files is escaped
    assert any("does not measure the noise" in cell for cell in page.cells)


@pytest.mark.parametrize("losses", [[2.5, 2.4, 2.3, 2.2, 2.1], [2.1, 2.3, 2.5, 2.3, 2.1]])
def test_report_says_where_there_is_no_minimum(tmp_path, losses):
    finished_sweep(tmp_path, losses)
    cells = Page(write_report(tmp_path)).cells
    row = cells[cells.index("minimum inside the range") + 1 :][:6]
    assert row[:4] == ["1e+12", "–", "–", "–"]
    assert row[5].startswith("no: ")


def test_report_measures_the_noise_between_seeds(tmp_path):
    # Per shape losses x and x + 0.02: a standard deviation of 0.02 / √2 = 0.0141.
    losses = [loss + seed for loss in (2.5, 2.2, 2.1, 2.2, 2.5) for seed in (0, 0.02)]
    finished_sweep(tmp_path, losses, seeds=(0, 1))
    assert any(
        "standard deviation of 0.0141" in cell for cell in Page(write_report(tmp_path)).cells
    )


def test_unfinished_sweep_is_named(tmp_path):
    claim_folder(SweepConfig(budgets=(1e12,), shapes=SHAPES), tmp_path)
    with pytest.raises(ValueError, match=r"must hold a finished sweep, got no runs\.csv"):
        write_report(tmp_path)
