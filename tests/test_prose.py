"""The project's prose uses the field's words, and none that only its authors understand."""

import ast
import inspect
import io
import re
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import flopcount as fc

ROOT = Path(__file__).parent.parent
PACKAGES = ("flopcount", "kernels", "models", "validate", "benchmarks", "tests")
PRIVATE = {
    r"hostil\w*": "bad inputs, fuzzing",
    r"laborator\w*": "name the package",
    r"premises?": "assumptions",
    r"plant(s|ed|ing)?": "put in, introduce an error",
    r"rooms?": "package, folder; space",
    r"literals?\b.{0,20}\bnotic\w*": "a published number finds",
    r"the literals": "known numbers",
}
WORDS = re.compile("|".join(rf"\b(?:{word})\b" for word in PRIVATE), re.IGNORECASE)


def spoken(source: str) -> list[str]:
    """Comments and docstrings of Python source, and what strings it prints or raises."""
    said = [
        token.string
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    ]
    constants = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    strings = [node.value for node in constants if isinstance(node.value, str)]
    return said + [text for text in strings if " " in text]


def prose() -> list[Path]:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("benchmarks/**/*.md")]
    templates = [*ROOT.glob("models/**/*.jinja"), ROOT / "Makefile", ROOT / "pyproject.toml"]
    sources = [path for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
    return sorted({*pages, *templates, *sources} - {Path(__file__)})


def test_no_private_word():
    found = {}
    for path in prose():
        text = path.read_text()
        said = spoken(text) if path.suffix == ".py" else [text]
        if words := {match.group() for part in said for match in WORDS.finditer(part)}:
            found[str(path.relative_to(ROOT))] = words
    assert not found, f"say instead: {PRIVATE}"


def test_no_file_has_a_private_name():
    files = [path for name in (*PACKAGES, "docs") for path in (ROOT / name).rglob("*.*")]
    assert not [path for path in files if WORDS.search(path.stem.replace("_", " "))]


@pytest.mark.parametrize(
    "source",
    [
        "x = 1  # the laboratory's",
        '"""A few hostile calls."""',
        "print(f'{x} rooms are left')",
        "raise ValueError('a twin plants the error')",
        '"""A literal notices each."""',
    ],
)
def test_a_private_word_is_found(source):
    assert any(WORDS.search(part) for part in spoken(source))
    assert not any(WORDS.search(part) for part in spoken("room = 'planted'"))


# What is no idiom, with the idiom; on pages that are written by hand or from a template of words.
IDIOMS = {
    r"held against": "checked against, compared with",
    r"(executed|computed|multiplied|done|made) again": "recomputed",
    r"gone? on\b|goes on\b": "continues, resumes",
}
UNIDIOMATIC = re.compile("|".join(rf"\b(?:{phrase})" for phrase in IDIOMS))
PAGES = sorted(
    {*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs/readers").glob("*.md")}
    - {ROOT / "docs/verification.md", ROOT / "docs/isoflop-study.md"}
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_are_idiomatic(page):
    assert UNIDIOMATIC.findall(" ".join(page.read_text(encoding="utf-8").split())) == []
    assert len(PAGES) > 20


def test_a_phrase_that_is_no_idiom_is_found():
    said = "Layers are executed again and held against it."
    assert [match.group() for match in UNIDIOMATIC.finditer(said)] == [
        "executed again",
        "held against",
    ]


def test_a_witness_is_defined_where_it_is_first_named():
    readme = (ROOT / "README.md").read_text()
    opening = readme[: readme.index("```")]
    assert re.search(r"A witness finds\s+the\s+same\s+number\s+without\s+the\s+formula", opening)


def test_the_readme_says_what_why_and_how_in_its_first_minute():
    """What it does not count, who is wrong, two commands, a config, a GPT-2; then links."""
    lines = (ROOT / "README.md").read_text().splitlines()[:90]
    wanted = (
        "does not count", "| `hf-trainer` |", "(docs/who-counts-what.md)", "pip install .",
        "flopcount compare config.json", "fc.from_hf(", "fc.Decoder(", "## Where to go next",
    )  # fmt: skip
    places = [next(at for at, line in enumerate(lines) if text in line) for text in wanted]
    assert places == sorted(places)


def test_the_article_has_title_and_link_where_it_is_first_named():
    readme = (ROOT / "README.md").read_text()
    first = re.search(r"\barticle\b", readme).start()
    near = " ".join(readme[first : first + 400].split())
    assert "[Training compute-optimal Perceiver AR language models](https://" in near


SECTIONS = ("Args", "Attributes", "Raises", "Returns", "Source", "Yields")
HEADING = re.compile(r"^([A-Z]\w+):$", re.MULTILINE)
# Of an entry, what it says; single letters are sizes, and a few names are written small.
ENTRY = re.compile(
    r"^    (?:[\w.*`]+(?:, [\w.*`]+)*(?: \([^)]*\))?: )(?!log |cos )([a-z]{2,}[ ,;:.].*)"
)


def faults(docstring: str) -> list[str]:
    """Headings that no section has, and entries of a section that start small."""
    wrong = [name for name in HEADING.findall(docstring) if name not in SECTIONS]
    section = ""
    for line in docstring.splitlines():
        if line and not line.startswith(" "):
            section = line.removesuffix(":") if HEADING.match(line) else ""
        elif section in ("Args", "Attributes", "Raises") and (entry := ENTRY.match(line)):
            wrong.append(entry[1])
    return wrong


def docstrings(source: str) -> Iterator[str]:
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, kinds) and (docstring := ast.get_docstring(node)):
            yield docstring


@pytest.mark.parametrize("package", sorted(set(PACKAGES) - {"tests"}))
def test_docstrings_have_googles_sections_with_capitalised_entries(package):
    for path in (ROOT / package).rglob("*.py"):
        for docstring in docstrings(path.read_text(encoding="utf-8")):
            assert not faults(docstring), path


def test_another_section_and_a_small_entry_are_found():
    good = "What.\n\nArgs:\n    x: Sizes.\n    k, v: n of them.\n\nReturns:\n    A sum.\n\n>>> 1\n1"
    assert faults(good) == []
    assert faults(good.replace("Args", "Parameters")) == ["Parameters"]
    assert faults(good.replace("\n>>> 1", "\nExample:\n    >>> 1")) == ["Example"]
    assert faults(good.replace("Sizes", "sizes")) == ["sizes."]


def without_legend(source: str) -> bool:
    """Whether a module speaks of shapes in letters, and its docstring of no letters."""
    legend = ast.get_docstring(ast.parse(source)) or ""
    return "(B, " in source and "Letters" not in legend


@pytest.mark.parametrize("package", ["kernels", "models", "benchmarks"])
def test_letters_of_shapes_have_one_legend_in_a_module(package):
    paths = list((ROOT / package).rglob("*.py"))
    assert [path for path in paths if without_legend(path.read_text(encoding="utf-8"))] == []


def test_a_missing_legend_is_found():
    assert without_legend('"""What."""\nx = y  # (B, N)')
    assert not without_legend('"""What.\n\nLetters: B batch, N queries."""\nx = y  # (B, N)')


TENSORS = re.compile(
    r"^(tl\.(arange|full|dot|exp2|where)|load_rows|zero_rows|scale_rows|not_before"
    r"|product_over_channels|add_product_over_rows)$"
)
KERNELS = [ROOT / "kernels/attention" / f"{name}.py" for name in ("forward", "backward", "tiles")]


def without_shape(source: str) -> list[str]:
    """Assignments of a kernel that make a tensor, and on whose last line no shape trails."""
    lines, names = source.splitlines(), []
    for node in ast.walk(ast.parse(source)):
        decorators = map(ast.unparse, getattr(node, "decorator_list", ()))
        if any(each.startswith("triton.jit") for each in decorators):
            for inner in ast.walk(node):
                if isinstance(inner, ast.Assign) and isinstance(inner.value, ast.Call):
                    makes = TENSORS.match(ast.unparse(inner.value.func))
                    if makes and "# (" not in lines[inner.end_lineno - 1]:
                        names.append(ast.unparse(inner))
    return names


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.stem)
def test_a_shape_trails_each_tensor_of_a_kernel(path):
    assert without_shape(path.read_text(encoding="utf-8")) == []


def test_a_tensor_without_a_shape_is_found():
    source = "@triton.jit\ndef f(a):\n    x = tl.exp2(a)\n    y = tl.exp2(a)  # (M, J)\n"
    assert without_shape(source) == ["x = tl.exp2(a)"]


def undocumented(name: str, public: Callable) -> list[str]:
    """Arguments that a docstring of more than a line does not name; fields may be a base's."""
    bases = public.__mro__ if inspect.isclass(public) else (public,)
    text = "\n".join(inspect.getdoc(base) or "" for base in bases)
    arguments = set(inspect.signature(public).parameters) - {"self", "cls"}
    if len((inspect.getdoc(public) or "").splitlines()) == 1 and not inspect.isclass(public):
        return []
    entries = re.findall(r"^    +([\w, ]+?)(?: \([^)]*\))?: ", text, flags=re.MULTILINE)
    named = {word for entry in entries for word in entry.split(", ")}
    return sorted(f"{name}.{argument}" for argument in arguments - named)


def callables() -> Iterator[tuple[str, Callable]]:
    """What ``flopcount`` exports and can be called, and the public methods of it."""
    for name in fc.__all__:
        public = getattr(fc, name)
        if callable(public):
            yield name, public
        if inspect.isclass(public):
            for method, function in vars(public).items():
                if inspect.isfunction(function) and not method.startswith("_"):
                    yield f"{name}.{method}", function


def test_public_docstrings_say_what_every_argument_is():
    found = [fault for name, public in callables() for fault in undocumented(name, public)]
    assert sum(1 for _ in callables()) > 60
    assert found == []


def test_an_argument_that_is_not_documented_is_found():
    def area(width, height):
        """Of a rectangle.

        Args:
            width: In metres.
        """

    assert undocumented("area", area) == ["area.height"]


def lines_assigning(name: str, source: str) -> list[int]:
    """Lines where a variable, an argument or a field gets the name."""
    nodes = list(ast.walk(ast.parse(source)))
    stores = [n for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    return sorted(
        [node.lineno for node in stores if node.id == name]
        + [node.lineno for node in nodes if isinstance(node, ast.arg) and node.arg == name]
    )


@pytest.mark.parametrize("package", [*PACKAGES[:-1], "docs"])
def test_what_is_found_is_named_for_what_it_is(package):
    files = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / package).rglob("*.py")}
    assert files
    lines = {name: lines_assigning("found", path.read_text()) for name, path in files.items()}
    assert {name: at for name, at in lines.items() if at} == {}


@pytest.mark.parametrize(
    "source",
    ["found = 1", "for i, found in []: pass", "def f(found): pass", "class A:\n    found: int",
     "if found := 1: pass", "with f() as found: pass", "lambda found: 1", "[0 for found in []]"],
)  # fmt: skip
def test_a_variable_named_found_is_seen(source):
    assert lines_assigning("found", source)
    assert not lines_assigning("found", "judges = found('found', found=1)  # found")
