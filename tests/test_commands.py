"""Every command does something, is named rightly on every page, and repeats nobody's default."""

import ast
import contextlib
import functools
import importlib
import inspect
import re
import runpy
import sys
import textwrap
from pathlib import Path

import pytest

from flopcount.architectures import Architecture
from flopcount.commands import defaults_of
from flopcount.count import Count

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


def commands_of(module):
    """The functions and dataclasses that a module's command line calls or fills."""
    words = set()
    for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("commands.run", "tyro.cli"):
            words.add(ast.unparse(node.args[0]))
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
            words |= {ast.unparse(value) for value in node.value.values}
        if isinstance(node, ast.FunctionDef):
            words |= {node.name for each in node.decorator_list if "app.com" in ast.unparse(each)}
    found = []
    for word in words:
        with contextlib.suppress(AttributeError):
            found.append(functools.reduce(getattr, word.split("."), module))
    return [each for each in found if inspect.isroutine(each) or inspect.isclass(each)]


def literals(node):
    """The options of a function or dataclass whose defaults are literals; see :func:`repeated`."""
    if isinstance(node, ast.ClassDef):
        fields = [each for each in node.body if isinstance(each, ast.AnnAssign) and each.value]
        given = {field.target.id: field.value for field in fields}
    else:
        positional, named = node.args.args, node.args.kwonlyargs
        given = dict(zip(reversed(positional), reversed(node.args.defaults), strict=False))
        given |= dict(zip(named, node.args.kw_defaults, strict=True))
        given = {each.arg: default for each, default in given.items() if default}
    found = {}
    for name, default in given.items():
        with contextlib.suppress(ValueError):
            found[name] = ast.literal_eval(default)
    return {name: default for name, default in found.items() if default not in (None, ())}


def tree_of(code):
    return ast.parse(textwrap.dedent(inspect.getsource(code))).body[0]


def repeated(command):
    """The options that state a default which something that the command calls has as well.

    None and () are none: they say that nothing is given.
    """
    command = inspect.unwrap(command)
    module = sys.modules[command.__module__]
    others = {name: getattr(kind, name) for kind in (Count, Architecture) for name in dir(kind)}
    for each in filter(inspect.ismodule, vars(module).values()):
        others |= vars(each)
    ours = [each for each in vars(module).values() if inspect.isfunction(each)]
    users = [each for each in ours if each.__module__ == module.__name__]
    users = users if inspect.isclass(command) else [command]
    calls = [x for user in users for x in ast.walk(tree_of(user)) if isinstance(x, ast.Call)]
    found, own = [], literals(tree_of(command))
    for called in sorted({ast.unparse(call.func) for call in calls}):
        name = called.rpartition(".")[2]
        owner = (vars(module) if name == called else others).get(name)
        if owner is not command and (inspect.isfunction(owner) or inspect.isclass(owner)):
            with contextlib.suppress(ValueError):  # built-in, without a signature
                options = inspect.signature(owner).parameters
                same = [x for x in own if x in options and options[x].default == own[x]]
                found += [f"{command.__name__}: {x} = {own[x]!r} of {name}" for x in same]
    return found


PROGRAMS_WITH_OPTIONS = sorted(
    name.removesuffix(".__init__")
    for name, source in modules_with_source().items()
    if re.search(r"commands\.run\(|tyro\.cli\(|app\.cli\(|^COMMANDS", source, re.MULTILINE)
    and name != "flopcount.commands"
)


@pytest.mark.parametrize("program", PROGRAMS_WITH_OPTIONS)
def test_a_default_has_one_home(program):
    commands = commands_of(importlib.import_module(program))
    assert commands
    assert [line for command in commands for line in repeated(command)] == []


def squared(size, exponent=2, *, scale=3):
    return scale * size**exponent


def repeating(size: int, exponent: int = 2, scale: int = 4) -> None:
    squared(size, exponent, scale=scale)


@defaults_of(squared)
def owning(size: int, *, exponent: int, scale: int = 4) -> None:
    squared(size, exponent, scale=scale)


def test_a_repeated_default_is_found():
    assert repeated(repeating) == ["repeating: exponent = 2 of squared"]
    assert repeated(owning) == []
    assert owning.__kwdefaults__ == {"exponent": 2, "scale": 4}


def test_owners_that_disagree_are_refused():
    with pytest.raises(ValueError, match=r"scale of command: expected one default, got \[3, 4\]"):

        @defaults_of(squared, owning)
        def command(*, scale):
            return scale
