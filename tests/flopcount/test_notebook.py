"""What a notebook shows: every table, every picture, and the notebook that shows them."""

import functools
import html
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import sympy

import flopcount as fc
from flopcount.article import reproduce
from flopcount.pictures import Drawn
from flopcount.tables import Shown, Table

NOTEBOOK = Path(__file__).parents[2] / "docs/notebooks/tables-and-pictures.ipynb"
E, A, B, ALPHA, BETA = 1.8, 480, 2100, 0.35, 0.37


def loss(n, d):
    return E + A / n**ALPHA + B / d**BETA


@functools.cache
def shown() -> dict[str, Shown]:
    """One of everything that prints as tables."""
    model = fc.PerceiverAR(
        vocab_size=262, num_latents=64, num_prefix=64, num_channels=32, num_layers=3, num_heads=4
    )
    llama = fc.Llama(
        vocab_size=262, seq_len=64, num_channels=32, num_layers=2, num_heads=2,
        intermediate_size=64,
    )  # fmt: skip
    rows = ["params,tokens,loss"]
    curves = ["run,step,params,tokens,loss"]
    for budget in (1e18, 1e19, 1e20):
        for share in (0.3, 0.55, 1.0, 1.8, 3.3):
            n = share * 0.1 * budget**0.5
            d = budget / (6 * n)
            rows.append(f"{n},{d},{loss(n, d)}")
            for part in range(1, 9):
                trained = d * part / 8
                curves.append(f"{n:.4g},{part},{n},{trained},{loss(n, trained)}")
    runs = fc.read_runs(rows_of(rows), flops="6ND")
    best = [(c, 0.1 * c**0.5) for c in (1e18, 1e19, 1e20)]
    optima = fc.read_runs(
        rows_of(["flops,params,tokens", *(f"{c},{n},{c / (6 * n)}" for c, n in best)]), optima=True
    )
    surface = fc.fit_surface(runs)
    return {
        "count": model.flops(batch_size=2, checkpointing="reentrant"),
        "work": model.flops().elementwise,
        "parameters": model.params(),
        "cache": llama.cache(8),
        "difference": model.flops("dense") - model.flops(),
        "comparison": fc.compare(model),
        "explanation": fc.explain("decoder"),
        "roofline": fc.roofline(llama, "h100", cached=8),
        "many devices": fc.per_device(llama, fc.Parallel(tensor=2, data=2)),
        "article": reproduce(),
        "plan": fc.plan(
            [1e18, 1e19], vocab_size=262, num_latents=512, batch_size=80, num_models=3
        ),
        "optima": fc.compare_optima(llama, 1e18),
        "runs": runs,
        "profiles": fc.fit_isoflop_profiles(runs),
        "surface": surface,
        "curves": fc.fit_training_curves(fc.read_curves(rows_of(curves), run="run")),
        "power law": fc.fit_optima(optima),
        "prediction": surface.predict(1e21),
        **of_modules(),
    }  # fmt: skip


def of_modules() -> dict[str, Shown]:
    """What is there with PyTorch alone."""
    try:
        import torch
    except ImportError:
        return {}
    counted, not_counted = torch.nn.Linear(5, 3), torch.nn.LSTM(3, 4)
    return {
        "module": fc.torch.count(torch.nn.Sequential(counted, not_counted), torch.ones(2, 1, 5))
    }


def rows_of(lines: list[str]) -> dict[str, list]:
    heads, *rows = [line.split(",") for line in lines]
    return {head: [float(row[index]) for row in rows] for index, head in enumerate(heads)}


def every_shown() -> set[type]:
    found, seen = [Shown], set()
    while found:
        found += (kinds := found.pop().__subclasses__())
        seen |= set(kinds)
    return seen


def test_all_that_prints_as_tables_is_tried_here():
    abstract = {"Tally", "Flops", "LawsFit"}
    assert {type(one) for one in shown().values()} == {
        kind for kind in every_shown() if kind.__name__ not in abstract
    }


def words(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]{3,}|[\d,.]{2,}", text))


@pytest.mark.parametrize("name", shown())
def test_a_notebook_shows_what_print_shows(name):
    one = shown()[name]
    page = html.unescape(re.sub(r"<[^>]*>", " ", one._repr_html_()))
    assert words(page) == words(str(one))
    assert one._repr_html_().count("<table>") == one._repr_html_().count("</table>") > 0


def test_cells_are_no_markup():
    shown_as = Table(["a<b"], [["<i>&"]], title="<script>", note="x\ny", footer=["</td>"]).html()
    assert re.findall(r"<(?!/?(?:table|caption|thead|tbody|tfoot|tr|t[hd]|p|br)\b)", shown_as) == []
    assert "&lt;i&gt;&amp;" in shown_as
    assert "x<br>y" in shown_as


@pytest.mark.parametrize("name", shown())
def test_a_frame_has_a_row_for_each_record(name):
    one = shown()[name]
    frame = one.to_frame()
    assert len(frame) == len(one.records()) > 0
    assert set(frame.columns) == set().union(*one.records())


@pytest.mark.parametrize("name", [name for name, one in shown().items() if isinstance(one, Drawn)])
def test_a_picture_is_shown_and_saved(name, tmp_path):
    picture = shown()[name].plot(tmp_path / "picture.svg")
    assert picture._repr_png_().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "picture.svg").read_text()
    (axes, *_) = picture.figure.axes
    assert axes.get_xlabel()


def axes_of(name):
    return shown()[name].plot().figure.axes[0]


def test_the_bars_of_a_count_add_up_to_it():
    count = shown()["count"]
    bars = [patch.get_width() for patch in axes_of("count").patches]
    assert sum(bars) == pytest.approx(count.with_recompute, rel=1e-12)
    assert len(bars) == 3 * len(count.terms)


def test_parabolas_pass_through_their_vertices():
    profiles = shown()["profiles"].profiles
    lines = axes_of("profiles").get_lines()
    assert len(lines) == 3 * len(profiles) == 9  # runs, parabola and star of each budget
    for profile, (runs, parabola, star) in zip(
        profiles, zip(*[iter(lines)] * 3, strict=True), strict=True
    ):
        assert runs.get_ydata().tolist() == profile.loss.tolist()
        assert star.get_xdata() == [profile.n_opt]
        assert min(parabola.get_ydata()) == pytest.approx(profile.loss_opt, rel=1e-4)


def test_a_surface_has_its_runs_on_its_contours():
    fit = shown()["surface"]
    axes = axes_of("surface")
    *_, scatter = [part for part in axes.collections if len(part.get_offsets()) == 15]
    assert scatter.get_offsets()[:, 0].tolist() == fit.runs.params.tolist()
    contours, *_ = [part for part in axes.collections if hasattr(part, "levels")]
    inside = fit.runs.loss.min() <= np.asarray(contours.levels)
    assert inside.any()
    # The optimum is where one more parameter is worth as much as what it costs in tokens.
    (best,) = axes.get_lines()
    n, d = best.get_xdata()[0], best.get_ydata()[0]
    assert ALPHA * A / n**ALPHA == pytest.approx(BETA * B / d**BETA, rel=1e-2)


def test_a_roofline_has_every_term_under_its_roof():
    bound = shown()["roofline"]
    roof, *points = axes_of("roofline").get_lines()
    assert len(points) == sum(bool(term.flops) for term in bound.terms) + 1
    assert max(point.get_ydata()[0] for point in points) <= max(roof.get_ydata())


def test_what_has_no_one_picture_says_so():
    n = sympy.Symbol("n", integer=True, positive=True)
    symbolic = fc.Decoder(vocab_size=9, seq_len=n, num_channels=4, num_layers=1, num_heads=2)
    for one in (symbolic.flops(), fc.compare(symbolic)):
        with pytest.raises(TypeError, match="expected"):
            one.plot()


@pytest.fixture
def client(monkeypatch):
    """Runs a notebook in a kernel that finds this checkout."""
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (extra dev)")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(NOTEBOOK.parents[2]), *sys.path]))

    def run(change=str):
        notebook = nbformat.reads(change(NOTEBOOK.read_text(encoding="utf-8")), as_version=4)
        return nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()

    run.error = nbclient.exceptions.CellExecutionError
    return run


def test_the_notebook_runs_and_shows_tables_and_pictures(client):
    shown_as = [
        output["data"]
        for cell in client().cells
        for output in cell.get("outputs", ())
        if "data" in output
    ]
    tables = [data for data in shown_as if "text/html" in data]
    assert sum("image/png" in data for data in shown_as) == 6
    # Count, comparison, roofline, plan, two fits, a prediction, and a frame: each once.
    assert len(tables) == 8
    # What print would show is there, too.
    assert "sliding" in tables[0]["text/plain"]


def test_a_notebook_that_fails_is_seen(client):
    with pytest.raises(client.error, match="AttributeError"):
        client(lambda text: text.replace("count.plot()", "count.no_such_picture()"))


def test_the_notebook_is_kept_without_its_outputs():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert '"outputs": []' in text
    assert '"image/png"' not in text
