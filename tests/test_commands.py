"""Every command does something: no module with a ``main`` is inert, no page names one that is."""

import ast
import importlib
import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("flopcount", "kernels", "models", "validate", "benchmarks")
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md", "models/study/*.md", "Makefile")
    for page in ROOT.glob(pattern)
)
WORDS = re.compile(r"python3? -m ([\w.]+)(?: ([a-z][\w-]*))?")
# The names of the commands of each command line that has some.
COMMANDS = {
    "benchmarks": ("benchmarks.__main__", "PROGRAMS"),
    "flopcount": ("flopcount.cli", "COMMANDS"),
    "models": ("models.__main__", "_COMMANDS"),
}


def runs(source: str) -> bool:
    """Whether a module's source does its work where it is the program."""
    tests = [node.test for node in ast.parse(source).body if isinstance(node, ast.If)]
    return any(ast.unparse(test) == "__name__ == '__main__'" for test in tests)


def has_main(source: str) -> bool:
    """Whether a module's source defines a function ``main``."""
    body = ast.parse(source).body
    return any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in body)


def source_of(module: str, root: Path = ROOT) -> str | None:
    """The source that ``python -m module`` runs, None where there is none."""
    path = root.joinpath(*module.split("."))
    for file in (path / "__main__.py", path.with_suffix(".py")):
        if file.exists():
            return file.read_text(encoding="utf-8")
    return None


def inert(modules: dict[str, str]) -> list[str]:
    """Modules, by name and source, whose ``main`` is run neither by them nor by their package."""
    found = []
    for name, source in modules.items():
        package = f"{name.rpartition('.')[0]}.__main__"
        handed_on = f"from {name} import main" in modules.get(package, "")
        if has_main(source) and not runs(source) and not (handed_on and runs(modules[package])):
            found.append(name)
    return found


def wrong_names(text: str) -> list[str]:
    """What a page's ``python -m`` names of this project that is unknown, inert or no command."""
    wrong = []
    for module, command in WORDS.findall(text):
        if module.split(".")[0] not in PACKAGES:
            continue
        source = source_of(module.rstrip("."))
        if source is None or not runs(source):
            wrong.append(module)
        elif command and module in COMMANDS:
            where, name = COMMANDS[module]
            if command not in getattr(importlib.import_module(where), name):
                wrong.append(f"{module} {command}")
    return wrong


def modules_with_source() -> dict[str, str]:
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    return {
        ".".join(file.relative_to(ROOT).with_suffix("").parts): file.read_text(encoding="utf-8")
        for file in files
    }


def test_no_module_with_a_main_is_inert():
    modules = modules_with_source()
    assert sum(map(has_main, modules.values())) > 15
    assert inert(modules) == []


def test_an_inert_module_is_found():
    main = "def main():\n    pass\n"
    called = f"{main}\nif __name__ == '__main__':\n    main()\n"
    assert inert({"a.b": main}) == ["a.b"]
    assert inert({"a.b": called}) == []
    by_package = "from a.b import main\nif __name__ == '__main__':\n    main()\n"
    assert inert({"a.b": main, "a.__main__": by_package}) == []
    assert inert({"a.b": main, "a.__main__": "from a.b import main\n"}) == ["a.b"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pages_name_commands_that_exist(page):
    assert wrong_names(page.read_text(encoding="utf-8")) == []


def test_docstrings_name_commands_that_exist():
    for name, source in modules_with_source().items():
        nodes = [
            node
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        ]
        text = "\n".join(ast.get_docstring(node) or "" for node in nodes)
        assert wrong_names(text) == [], name


def test_a_wrong_command_is_found():
    text = """
        python -m benchmarks schedule --out DIR, python -m pytest, python -m models train,
        python -m benchmarks tunes, python -m benchmarks.study, python -m flopcount.masks
    """
    assert wrong_names(text) == ["benchmarks tunes", "benchmarks.study", "flopcount.masks"]


@pytest.mark.parametrize(
    "module",
    sorted(
        name
        for name, source in modules_with_source().items()
        if name.startswith(("benchmarks.", "flopcount.cli"))
        and has_main(source)
        and name != "benchmarks.__main__"
    ),
)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_a_module_is_the_command_that_its_main_is(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__", alter_sys=False)
    assert not ended.value.code
    assert "usage:" in capsys.readouterr().out
