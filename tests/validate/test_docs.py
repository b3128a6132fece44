"""Generated pages are current."""

import dataclasses
import functools
import itertools
import sys
from pathlib import Path

import pytest

import flopcount as fc
from flopcount.conventions import CONVENTIONS
from validate import gallery, matrix, proof, verification, who_counts_what
from validate.mutation import judging
from validate.witnesses.source_code import code_of, placeless


@pytest.mark.record("python -m validate.who_counts_what --write")
def test_who_counts_what_is_current():
    assert who_counts_what.PAGE.read_text() == who_counts_what.page()


def test_a_changed_convention_makes_the_page_stale(monkeypatch):
    changed = dataclasses.replace(CONVENTIONS["kaplan"], self_part=CONVENTIONS["6n"].self_part)
    monkeypatch.setitem(CONVENTIONS, "kaplan", changed)
    assert who_counts_what.PAGE.read_text() != who_counts_what.page()


@pytest.mark.record("python -m validate.who_counts_what --write")
def test_the_readme_has_its_short_table():
    readme = who_counts_what.README.read_text(encoding="utf-8")
    assert readme == who_counts_what.with_readme_table(readme)
    # Experts that no token is routed to, less attention: 254.6 - 4.04 per cent of Mixtral.
    [row] = [line for line in readme.splitlines() if line.startswith("| `hf-trainer`")]
    assert "| +250.5% |" in row
    wrong = readme.replace("+250.5%", "+250.6%")
    assert who_counts_what.with_readme_table(wrong) == readme != wrong


def test_it_leads_with_the_findings():
    text = who_counts_what.page()
    start = text[: text.index("## Today's models")]
    assert "misses one of its two products**: -25.0%" in start  # k·n·2d of k(4d² + 4dn), n = d
    assert "drops an output layer that is really computed**: -34.8%" in start


def test_what_is_said_of_todays_codes():
    gpt2 = fc.compare(who_counts_what.TODAY["GPT-2 small, n = 1,024"])
    off = {row.name: abs(row.ratio - 1) for row in gpt2.rows if row.ratio is not None}
    assert max(off, key=off.get) == "hf-trainer"
    assert off["olmo-core"] < 1e-3 > off["megatron-lm"]
    start = who_counts_what.page().split("## Today's models")[0]
    # -0.25·6dV of 797,870,592, and what hides it: 6·12·768·1023.
    assert "-7.26% of GPT-2 small, hidden by" in start
    assert "attention (+7.09%), which brings it to -0.17%" in start


def test_what_is_said_of_experts():
    # Six of eight experts idle: 6 FLOPs times 32 layers, 6 experts and 3·4096·14,336 parameters.
    mixtral = who_counts_what.TODAY["Mixtral 8x7B, n = 4,096"]
    idle = 6 * 32 * 6 * 3 * 4096 * 14_336
    share = who_counts_what.share(
        fc.compare(mixtral), "hf-trainer", "self", "experts that a token is not routed to as if "
        "multiplied"
    )  # fmt: skip
    assert share == idle / mixtral.flops().per_token
    assert f"{share:+.1%}" == "+254.6%"
    assert mixtral.params().total == 46_702_792_704
    v3 = who_counts_what.TODAY["DeepSeek-V3, n = 4,096"]
    assert v3.params().total == 671_026_404_352
    start = who_counts_what.page().split("## Today's models")[0]
    assert "`hf-trainer`, +250.5% of Mixtral\n  8x7B and +1505.3% of DeepSeek-V3" in start


def test_the_commands_write_what_they_print(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(who_counts_what, "PAGE", tmp_path / "docs" / "page.md")
    monkeypatch.setattr(who_counts_what, "README", tmp_path / "README.md")
    who_counts_what.README.write_text(f"{who_counts_what.BEGIN}\nold\n{who_counts_what.END}\n")
    assert who_counts_what.main() == 0
    assert who_counts_what.main(write=True) == 0
    assert (tmp_path / "docs" / "page.md").read_text() == capsys.readouterr().out
    assert who_counts_what.readme_table() in who_counts_what.README.read_text()


@pytest.mark.record("python -m validate.gallery --write")
def test_the_gallery_is_current():
    assert gallery.PAGE.read_text() == gallery.page()
    picture = (gallery.PAGE.parent / gallery.PLOT).read_text()
    assert all(f">{name}<" in picture for name in gallery.MODELS)


def test_a_line_of_the_gallery_by_hand():
    # Llama-3-8B: d = 4096, f = 14336, L = 32, g·c = 1024, V = 128256 and its norms; N with them.
    matmul = 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336) + 128256 * 4096
    # A token of 2,048 attends to (2048 + 1)/2 on average: 2·2·d FLOPs a pair, a layer.
    attention = 32 * 4 * 4096 * 2049 / 2
    forward = 2 * matmul + attention
    assert gallery.line("Llama-3-8B", 2048) == [
        f"{3 * forward:.3e}",
        f"{3 * forward / (6 * 8_030_261_248):.3f}",
        f"{forward / (2 * matmul):.3f}",
        f"{attention / forward:.1%}",
    ]


def test_the_gallery_draws_the_same_bytes_each_time():
    assert gallery.plot() == gallery.plot()


def test_the_gallery_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "PAGE", tmp_path / "docs" / "gallery.md")
    monkeypatch.setattr(gallery, "MODELS", ("Llama-3-8B", "DeepSeek-V3"))
    assert gallery.main(write=True) == 0
    assert "DeepSeek-V3" in (tmp_path / "docs" / "gallery.md").read_text()
    assert (tmp_path / "docs" / gallery.PLOT).is_file()


@pytest.fixture(scope="module")
def recorded():
    return verification.read()


def test_the_readme_has_the_figures_of_the_record(recorded):
    readme = " ".join(verification.DOCS.parent.joinpath("README.md").read_text().split())
    findings = [verdict["finding"] for verdict in recorded["verdicts"]]
    equal, none = findings.count("equal"), findings.count("UNVERIFIED")
    assert equal + none == len(findings)
    assert f"{equal} checks without a difference, and {none} rows without a witness" in readme
    modules = recorded["mutation"].values()
    mutants, equivalent = (sum(m[key] for m in modules) for key in ("mutants", "equivalent"))
    assert f"{mutants:,} mutants. A witness or a known number catches each, but for " in readme
    assert f"but for {equivalent} that are listed as equivalent" in readme


@pytest.fixture(scope="module")
def now(recorded):
    return verification.current(recorded["quick"])


@pytest.mark.record("python -m validate --write-docs")
def test_verification_is_current(recorded, now):
    assert verification.stale(recorded, now) == []
    page = (verification.DOCS / "verification.md").read_text()
    assert page == verification.page(recorded)


@pytest.mark.record("python -m validate --write-docs")
def test_what_was_recorded_holds(recorded):
    assert verification.wrong(recorded) == []
    assert min(recorded["census"].values()) > 0


@pytest.fixture
def example(recorded):
    """A record in which everything holds."""
    form = {"no_mutants": [], "seconds": 1.0}
    return recorded | {"mutation": {n: form | e for n, e in recorded["mutation"].items()}}


def test_what_does_not_hold_is_named(example):
    assert verification.wrong(example) == []
    first, *others = example["verdicts"]
    module, entry = next(iter(example["mutation"].items()))
    for changed, named in (
        ({"verdicts": [first | {"finding": "off by 1"}, *others]}, "off by 1"),
        ({"mutation": {module: entry | {"survivors": ["1 -> 2"]}}}, "1 -> 2"),
        ({"mutation": {module: entry | {"no_mutants": ["gone"]}}}, "gone"),
    ):
        (said,) = verification.wrong(example | changed)
        assert named in said


def test_an_interrupted_run_keeps_what_it_found_right(monkeypatch, tmp_path):
    monkeypatch.setattr(verification, "PART", tmp_path / "part.jsonl")
    verification._keep("now", "0", {"finding": "equal"}, True)
    verification._keep("now", "1", {"finding": "off"}, False)
    verification._keep("before", "2", {"finding": "equal"}, True)
    now = dict.fromkeys("012", "now")
    assert verification._kept(now) == {"0": {"finding": "equal"}}


def test_a_witness_that_cannot_answer_is_a_verdict(monkeypatch, tmp_path, capsys):
    def broken():
        raise IndexError("out of range")

    monkeypatch.setattr(verification, "PART", tmp_path / "part.jsonl")
    verdict = verification._checked("a formula × a witness", broken, "now")
    assert (verdict.formula, verdict.witness) == ("a formula", "a witness")
    assert verdict.finding == "IndexError: out of range"
    assert not verdict.holds
    assert verification._kept({"a formula × a witness": "now"}) == {}
    assert "in broken" in capsys.readouterr().err


EMULATED = {
    "executed FLOPs of attention; exponentials and bytes of its kernels × "
    "execution of the code assembled for sm_90, without a GPU",
    "executed FLOPs, exponentials and bytes of all shipped launches and of drawn calls × "
    "that execution, recorded with digests of the kernels, which are those at hand",
}


def test_what_the_record_says_of_the_same_code_is_taken_over(example, now):
    """All of it; nothing that has changed, and nothing that did not hold."""
    example = example | {"versions": now["versions"], "sources": now["sources"]}
    example |= {name: now[name] for name in ("census", "mutants", "tests")}
    example["verdicts"] = [
        example["verdicts"][0] | {"formula": formula, "witness": witness, "finding": "equal"}
        for formula, witness in now["names"]
    ]
    judged = {"survivors": [], "no_mutants": []}
    listed = judging.equivalent_mutants()
    example["mutation"] = {
        module: judged | {"equivalent": sum(name.startswith(f"{module}.") for name in listed)}
        for module in now["mutants"]
    }
    quick = example["quick"]

    def again(changed=example, tests=now["tests"], **code):
        """What would be run again."""
        to_do = verification.versions(quick, now | {"sources": now["sources"] | code})
        return set(to_do) - set(verification._carried(changed, to_do, tests))

    everything = set(verification.versions(quick, now))
    assert again() == set()
    assert again(**{"flopcount/masks.py": "another"}) == everything
    assert again(**{"validate/emulator/operations.py": "another"}) == EMULATED
    kernels = again(**{"kernels/attention/forward.py": "another"})
    assert {*EMULATED, "flopcount.executed"} <= kernels
    assert "flopcount.inference" not in kernels
    assert again(example | {"versions": {"python": "3.9"}}) == everything
    first, *others = example["verdicts"]
    wrong = example | {"verdicts": [first | {"finding": "off by 1"}, *others]}
    assert again(wrong) == {verification._name(*now["names"][0])}
    module = "flopcount.masks"
    for changed in ({"survivors": ["1 -> 2"]}, {"equivalent": 0}):
        entry = example["mutation"][module] | changed
        assert again(example | {"mutation": example["mutation"] | {module: entry}}) == {module}
    # A test more finds no fewer; one that is gone, or none written down, may have found any.
    assert again(tests=f"{now['tests']} 01234567") == set()
    first_test, rest = now["tests"].split(" ", 1)
    assert again(tests=rest) == again(tests=f"{rest} {first_test}0") == set(now["mutants"])
    unsaid = {name: value for name, value in example.items() if name != "tests"}
    assert again(unsaid) == set(now["mutants"])


@pytest.mark.parametrize("check", matrix.CHECKS, ids=lambda check: check.formula)
def test_a_check_runs_no_file_that_its_verdict_is_not_said_to_depend_on(check):
    run = functools.partial(matrix.run_check, check, [judging.MODELS[0]], 0)
    code = set()
    sys.setprofile(lambda frame, event, _: code.add(frame.f_code.co_filename))
    try:
        run()
    finally:
        sys.setprofile(None)
    files = {Path(name).relative_to(verification.ROOT) for name in code if is_ours(name)}
    assert files
    assert {file.as_posix() for file in files} - verification.files_of(run) == set()


def is_ours(name):
    path = Path(name)
    rooms = ("flopcount", "kernels", "models", "validate")
    return any(path.is_relative_to(verification.ROOT / room) for room in rooms)


@pytest.fixture
def fresh(recorded, now):
    """A record of the code as it is."""
    verdicts = [dict(formula=formula, witness=witness) for formula, witness in now["names"]]
    return recorded | now | {"verdicts": verdicts}


def test_changes_make_the_record_stale(recorded, fresh, now, monkeypatch):
    assert verification.stale(fresh, now) == []
    monkeypatch.setattr(matrix, "WITHOUT_WITNESS", ())
    names = verification.expected(recorded["quick"])
    assert verification.stale(fresh, now | {"names": names}) == [
        "formulas or witnesses have changed"
    ]
    fewer = judging.Formulas(judging.Target("flopcount.masks", ("Causal.pairs",)))
    monkeypatch.setattr(judging, "FORMULAS", (fewer, judging.FORMULAS[2]))
    monkeypatch.setattr(verification, "DRAWN", 10)
    changed = {"mutants": verification.mutants(), "census": verification.census()}
    reasons = verification.stale(fresh, now | changed)
    assert "formulas of flopcount.blocks have changed" not in reasons
    assert "formulas of flopcount.masks have changed" in reasons
    assert "other configurations are drawn" in reasons


def test_changed_code_of_witnesses_networks_and_kernels_makes_it_stale(fresh, now):
    sources = now["sources"]
    for name in (
        "flopcount/executed.py",
        "validate/witnesses/fvcore_trace.py",
        "models/networks/perceiver_ar.py",
        "kernels/attention/forward.py",
        "kernels/attention/backward.py",
        "flopcount/hf/__init__.py",
        "flopcount/hf/dense.py",
        "validate/emulator/operations.py",
    ):
        changed = now | {"sources": sources | {name: "another"}}
        assert verification.stale(fresh, changed) == [f"{name} has changed"]
    # None of these can alter what a witness sees.
    untouched = {"flopcount/cli.py", "models/training/run.py", "validate/gallery.py"}
    assert not untouched & set(sources)


def test_what_cannot_alter_a_result_is_no_change():
    code = code_of
    plain = "def f(x):\n    return x + 1\n"
    assert code(plain) == code('def f(x):  # why\n\n    """What."""\n    return (x + 1)\n')
    assert code(plain) != code(plain.replace("1", "2"))


def test_a_moved_file_is_no_change(fresh, now):
    sources, mutants = now["sources"], now["mutants"]
    moved = {f"elsewhere/{name}": content for name, content in sources.items()}
    renamed = {f"elsewhere.{name}": content for name, content in mutants.items()}
    assert verification.stale(fresh, now | {"sources": moved, "mutants": renamed}) == []
    one = {**moved, "elsewhere/models/networks/perceiver_ar.py": "another"}
    assert verification.stale(fresh, now | {"sources": one}) == [
        "elsewhere/models/networks/perceiver_ar.py has changed",
        "models/networks/perceiver_ar.py has changed",
    ]


def test_where_an_import_comes_from_is_no_change():
    before = "import torch\nfrom models.here import MLP, Layer as Block\nfrom models import some\n"
    after = (
        "import torch\nfrom models.there import some\n"
        "from models.there.blocks import Layer as Block\nfrom models.there.mlp import MLP\n"
    )
    assert placeless(before) == placeless(after) != placeless(before.replace("Block", "Layer"))
    # Whose code it is does matter where it is not the project's.
    assert placeless("from torch import exp") != placeless("from numpy import exp")
    inside = "def f():\n    from models import some\n    return some.x\n"
    assert placeless(inside) == placeless(inside.replace("models", "models.there"))
    assert placeless(inside) != placeless(inside.replace("some.x", "some.y"))


def test_an_interrupted_run_leaves_the_record_as_it_was(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(verification, "DOCS", tmp_path)
    (tmp_path / "verification.json").write_text("before")
    monkeypatch.setattr(verification, "record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        verification.write()
    assert [path.name for path in tmp_path.iterdir()] == ["verification.json"]
    assert (tmp_path / "verification.json").read_text() == "before"


def test_what_has_no_witness_stands_out(example):
    page = verification.page(example)
    assert "**UNVERIFIED**: per-element costs" in page
    wrong = example | {"verdicts": [example["verdicts"][0] | {"finding": "off by 7"}]}
    assert "**off by 7**" in verification.page(wrong)


def holds(guard, **sizes):
    functions = {"Ne": lambda a, b: a != b, "Mod": lambda a, b: a % b, "Max": max}
    return eval(guard, functions, sizes)


def test_the_guards_exclude_nothing_but_more_kept_than_there_is():
    guards = {
        guard
        for layers in proof.listed_assumptions().values()
        for assumptions in layers.values()
        for guard in assumptions["guards"]
    }
    assert "K <= M" in guards
    assert not holds("K <= M", K=3, M=2)
    for C, N, K in itertools.product(range(6, 40), range(2, 7), range(2, 7)):
        assert all(holds(guard, C=C, N=N, K=K, M=K) for guard in guards)
