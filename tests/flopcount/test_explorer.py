"""The page computes what Python computes: in V8, and in a browser where one is installed."""

import dataclasses
import functools
import html
import json
import math
import random
import re
import shutil
import subprocess
from fractions import Fraction

import numpy as np
import pytest
import sympy
from py_mini_racer import MiniRacer

import flopcount as fc
from flopcount.explorer import (
    FIGURES,
    SETTINGS,
    Script,
    explore,
    figures,
    on_sliders,
    printers,
)

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
HEADLESS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
SECONDS = 120
CONFIGS = {
    "gemma2": dict(
        model_type="gemma2", vocab_size=256_000, hidden_size=3584, intermediate_size=14_336,
        num_hidden_layers=42, num_attention_heads=16, num_key_value_heads=8, head_dim=256,
    ),
    "gpt2": dict(model_type="gpt2"),
    "mixtral": dict(model_type="mixtral", num_key_value_heads=8),
    "deepseek_v3": dict(model_type="deepseek_v3"),
    "qwen3_next": dict(model_type="qwen3_next"),
    "bert": dict(model_type="bert"),
    "t5": dict(model_type="t5"),
}  # fmt: skip
DRAWN = dict.fromkeys([*CONFIGS, "perceiver-ar"], 125)
"""Settings of each model: 1,000 together."""
CONVENTIONS_EACH = 8
"""Python takes its time for the conventions: every eighth setting is held to them, too."""


def model_of(name: str):
    if name == "perceiver-ar":
        return fc.PerceiverAR(
            vocab_size=32_000, num_latents=512, num_prefix=1536, num_channels=512, num_layers=9,
            num_heads=8, prefix_dropout=0.5,
        )  # fmt: skip
    target = dict(target_len=64) if name == "t5" else {}
    return fc.from_hf(CONFIGS[name], seq_len=512, **target)


@functools.cache
def page_of(name: str) -> str:
    return explore(model_of(name))


@pytest.fixture
def in_browser(tmp_path):
    """What a script at a page's end writes as text into the element ``found``."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser is installed: none of {', '.join(BROWSERS)}")

    def run(page: str, script: str) -> str:
        file = tmp_path / "page.html"
        script = f'<pre id="found"></pre><script>{{{script}}}</script>'
        file.write_text(page + script, encoding="utf-8")
        profile = f"--user-data-dir={tmp_path}/profile"
        done = subprocess.run(
            [program, *HEADLESS, profile, "--dump-dom", file.as_uri()],
            capture_output=True, text=True, timeout=SECONDS, check=True,
        )  # fmt: skip
        return html.unescape(re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)[1])

    return run


def formulas_of(page: str) -> str:
    return re.search(r'<script id="formulas">(.*?)</script>', page, re.DOTALL)[1]


def asking(settings: list[dict[str, str]]) -> str:
    """A script that puts every section's figures for each setting into ``answers``."""
    return f"""
        const asked = {json.dumps(settings)};
        const reals = {json.dumps([setting.name for setting in SETTINGS if not setting.integer])};
        const plain = (name, value) =>
          typeof value === "bigint" || value instanceof Ratio ? String(value) : value;
        const answers = JSON.stringify(asked.map((texts) => {{
          const given = Object.fromEntries(Object.entries(texts).map(([name, text]) =>
            [name, reals.includes(name) ? Number(text) : BigInt(text)]));
          const evaluate = evaluator(given);
          const names = Object.keys(data.sections);
          return Object.fromEntries(names.map((name) => [name, evaluate(name)]));
        }}), plain);
    """


def computed(page: str, settings: list[dict[str, str]]) -> str:
    """The figures, as the page's formulas give them in V8."""
    return MiniRacer().eval(f"{formulas_of(page)}\n{asking(settings)}\nanswers")


ANY = ("seq_len", "vocab_size", "num_layers", "intermediate_size", "num_latents", "num_prefix")
"""Sizes that no other has to divide."""


def draw(r: random.Random, sliders: list[dict]) -> tuple[dict, dict]:
    """A setting: sizes that mostly fit together, up to counts far above 2^53."""
    contradicting = r.random() < 0.2
    sizes = {}
    for slider in sliders:
        name, value = slider["name"], slider["value"]
        sizes[name] = value * 2 ** r.choice([0, 0, 1, 2, 3])
        if contradicting or (name in ANY and r.random() < 0.4):
            sizes[name] = r.randint(1, r.choice([3 * value, 10**7]))
    at = {
        setting.name: r.randint(1, 50) * 10 ** r.randint(0, 3)
        if setting.integer
        else r.random() * 10 ** r.randint(0, 12)
        for setting in SETTINGS
    }
    return sizes, at


def expected(sections, model, sliders: list[dict], sizes: dict, at: dict) -> dict:
    """Python's figures of a setting; None where it refuses the sizes."""
    found = {}
    for section in sections:
        try:
            if any(sizes[slider["name"]] < slider["minimum"] for slider in sliders):
                raise ValueError("fewer layers than the pattern has")
            found[section] = figures(section, dataclasses.replace(model, **sizes), at)
        except ValueError:
            found[section] = None
    return found


def comparable(section: dict) -> dict:
    """Without a roofline's terms that need nothing: Python leaves them out.

    What the article's conventions make of a prefix are real numbers here: in Python they follow its
    code's truncated doubles, on symbols the exact sum is truncated.
    """
    if "weight_bytes" in section:
        needed = [row for row in section["terms"] if int(row["flops"]) or row["bytes"]]
        return section | {"terms": needed}
    article = {name: entry for name, entry in section.items() if name.startswith("article")}
    return section | {
        name: {part: float(entry[part]["total"]) for part in ("whole", "cross_part")}
        for name, entry in article.items()
        if isinstance(entry["cross_part"], dict) and int(entry["cross_part"]["total"])
    }


def differences(python, page, path: str = "") -> list[str]:
    """Where the page differs: whole numbers and fractions in any digit, real numbers by 1e-11."""
    if isinstance(python, dict):
        if not isinstance(page, dict) or set(python) != set(page):
            return [f"{path}: {python} is not {page}"]
        return [
            line
            for name in python
            for line in differences(python[name], page[name], f"{path}.{name}")
        ]
    if isinstance(python, list | tuple):
        if len(python) != len(page):
            return [f"{path}: {len(python)} is not {len(page)}"]
        pairs = enumerate(zip(python, page, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, f"{path}[{i}]")]
    if isinstance(page, float | int) and not isinstance(page, bool):
        same = math.isclose(python, page, rel_tol=1e-11)
    else:
        same = str(python) == page if isinstance(python, int | Fraction) else python == page
    return [] if same else [f"{path}: {python} is not {page}"]


@functools.cache
def drawn_for(name: str) -> tuple[list[tuple[dict, dict]], list[dict[str, str]]]:
    """Settings of a model, and as its page is given them; with the first, the page begins."""
    _, sliders = on_sliders(model_of(name))
    letters = {slider["name"]: slider["letter"] for slider in sliders}
    r = random.Random(name)
    drawn = [draw(r, sliders) for _ in range(DRAWN[name])]
    first = {slider["name"]: slider["value"] for slider in sliders}
    drawn[0] = first, {setting.name: setting.value for setting in SETTINGS}
    return drawn, [
        {letters[size]: str(value) for size, value in sizes.items()}
        | {setting: str(value) for setting, value in at.items()}
        for sizes, at in drawn
    ]


@pytest.mark.parametrize("name", DRAWN)
def test_a_browser_computes_what_v8_computes(name, in_browser):
    _, settings = drawn_for(name)
    write = 'document.getElementById("found").textContent = answers;'
    found = in_browser(page_of(name), asking(settings) + write)
    assert json.loads(found) == json.loads(computed(page_of(name), settings))


@pytest.mark.parametrize("name", DRAWN)
def test_the_page_computes_what_python_computes(name):
    symbolic, sliders = on_sliders(model_of(name))
    drawn, settings = drawn_for(name)
    answers = json.loads(computed(page_of(name), settings))
    shown = refused = 0
    for index, ((sizes, at), answer) in enumerate(zip(drawn, answers, strict=True)):
        sections = [
            name for name in FIGURES if name != "conventions" or not index % CONVENTIONS_EACH
        ]
        for section, python in expected(sections, symbolic, sliders, sizes, at).items():
            page = answer[section]
            if python is None:
                assert "problem" in page, (section, sizes)
                refused += 1
            else:
                assert "figures" in page, (section, sizes, page)
                found = differences(comparable(python), comparable(page["figures"]), section)
                assert found == [], (sizes, at)
                shown += 1
    assert shown > len(drawn) / 2, (shown, refused)


@pytest.mark.parametrize(
    "wrong", [("ceilDivide(", "floorDivide("), ("3n*", "2n*"), ("**2n", "*2n")]
)
def test_a_formula_that_is_printed_wrongly_is_seen(wrong):
    # Windows in every other of 42 layers: ⌈41/2⌉ rounded down loses a layer.
    symbolic, sliders = on_sliders(model_of("gemma2"))
    sizes = {slider["name"]: slider["value"] for slider in sliders}
    at = {setting.name: setting.value for setting in SETTINGS}
    given = {slider["letter"]: str(slider["value"]) for slider in sliders}
    given |= {name: str(value) for name, value in at.items()}
    (answer,) = json.loads(computed(page_of("gemma2").replace(*wrong), [given]))
    python = expected(["step"], symbolic, sliders, sizes, at)["step"]
    assert differences(python, answer["step"]["figures"])


n, m = sympy.symbols("n m", integer=True, positive=True)


@pytest.mark.parametrize(
    "expression",
    [
        n * sympy.Float(0.5),
        sympy.sqrt(n),
        2**n,
        sympy.sin(n),
        sympy.Min(n, m / 3),
        sympy.Piecewise((n, n > 2), (m, True)),
        n * sympy.Symbol("rate", positive=True),
    ],
)
def test_what_has_no_meaning_among_integers_is_not_printed(expression):
    exact, _ = printers()
    with pytest.raises(ValueError, match="expected one of integers"):
        exact.doprint(expression)


def test_a_fraction_is_printed_as_one_division():
    # n(n + 1)/2 and n²/2 + n/2 are integers, n²/2 is none.
    exact, _ = printers()
    assert exact.doprint(n**2 / 2 + n / 2) == "ratio(n*(n + 1n), 2n)"
    assert exact.doprint(-(n**2)) == "-(n**2n)"
    assert exact.doprint(sympy.floor(n / m)) == "floorDivide(n, m)"
    assert exact.doprint(sympy.Min(n, m, 3)).count("minimum(") == 2


def test_expressions_are_printed_once():
    script = Script()
    assert script.tree({"a": [n * m, m * n], "b": 2.5}) == {
        "a": [{"exact": 0}, {"exact": 0}], "b": 2.5
    }  # fmt: skip


CONTROLS = """
    const set = (id, value, event) => {
      document.getElementById(id).value = value;
      document.getElementById(id).dispatchEvent(new Event(event));
    };
    const said = (id) => document.getElementById(id).textContent;
    const found = [];
    const note = () => found.push({cards: said("cards"), step: said("step"), run: said("run"),
      heads: document.getElementById("value-h").value, problem: said("problem"),
      tokens: document.getElementById("value-tokens").value, roofline: said("roofline")});
    note();
    set("value-L", "2,000,000,000", "change"); set("value-tokens", "1.5e13", "change"); note();
    set("value-h", "13", "change"); note();
    document.getElementById("controls").reset(); reset(); note();
    set("range-h", "500", "input"); note();
    set("device", data.devices.find((one) => !one.bandwidth).name, "change"); note();
    document.getElementById("found").textContent = JSON.stringify(found);
"""


def test_the_controls_change_every_figure(in_browser):
    model = fc.Decoder(
        vocab_size=50257, seq_len=1024, num_channels=768, num_layers=12, num_heads=12
    )
    found = json.loads(in_browser(explore(model), CONTROLS))
    first, more, wrong, again, dragged, unknown = found
    count = model.flops(batch_size=8)
    assert f"{count.total:,}" in first["step"]
    assert f"{model.params().total:,}" in first["cards"]
    assert (first["problem"], first["tokens"]) == ("", "1e12")
    deeper = dataclasses.replace(model, num_layers=2 * 10**9)
    assert deeper.flops(batch_size=8).total > 2**53
    assert f"{deeper.flops(batch_size=8).total:,}" in more["step"]
    assert f"{deeper.flops().for_tokens(15 * 10**12):,}" in more["run"]
    assert more["tokens"] == "1.5e13"
    assert wrong["problem"] == "num_channels = 768 is not divisible by num_heads = 13"
    assert again == first
    # A slider stops at what the other sizes allow: the heads that divide 768.
    assert 768 % int(dragged["heads"]) == 0
    assert dragged["heads"] != first["heads"]
    assert dragged["problem"] == ""
    assert unknown["roofline"].startswith("no document was read that states the bandwidth of")


def test_the_page_needs_nothing_else():
    page = page_of("gpt2")
    assert re.findall(
        r"""(?:src|href)=|url\(|import\s|fetch\(|XMLHttp|@import|https?://""", page
    ) == [
        "http://"  # the name of SVG's elements, which no browser loads
    ]
    assert "http://www.w3.org/2000/svg" in page


def test_what_a_page_is_made_of_is_checked():
    with pytest.raises(TypeError, match="expected a model that flopcount counts"):
        fc.explore({"model_type": "gpt2"})
    with pytest.raises(TypeError, match="num_layers = n: expected one number"):
        fc.explore(dataclasses.replace(model_of("gemma2"), num_layers=n))
    halves = dataclasses.replace(model_of("perceiver-ar"), prefix_dropout=np.array([0.5, 0.25]))
    with pytest.raises(TypeError, match=r"prefix_dropout = .*: expected one number"):
        fc.explore(halves)


def test_a_length_that_nobody_gave_is_what_the_model_takes():
    _, sliders = on_sliders(fc.from_hf(CONFIGS["gpt2"]))
    assert {s["letter"]: s["value"] for s in sliders}["n"] == 1024
    _, sliders = on_sliders(fc.from_hf(CONFIGS["gemma2"]))
    assert {s["letter"]: s["value"] for s in sliders}["n"] == 2048


def test_fewer_layers_than_a_pattern_has_are_refused():
    _, sliders = on_sliders(model_of("qwen3_next"))  # three scans, then attention
    assert {s["letter"]: s["minimum"] for s in sliders}["L"] == 4
