"""Source text as what it does: texts that differ in comments, layout or places alone are equal."""

from __future__ import annotations

import ast

PROJECT = ("flopcount", "kernels", "models", "validate", "benchmarks", "tests")


def code_of(source: str) -> str:
    """Python source without comments, docstrings and layout."""
    return ast.unparse(_code(source))


def placeless(source: str) -> str:
    """The same, wherever it and what it imports lie in the project: names count, places do not.

    >>> placeless("from models.here import MLP") == placeless("from models.there import MLP")
    True
    >>> placeless("from models.here import MLP") == placeless("from models.here import Layer")
    False
    """
    tree = _code(source)
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            if isinstance(body := getattr(node, name, None), list):
                setattr(node, name, _sorted_imports(body))
    return ast.unparse(tree)


def _code(source: str) -> ast.Module:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [entry for entry in body if not _is_text(entry)]  # type: ignore[attr-defined]
    return tree


def _is_text(statement: ast.stmt) -> bool:
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _sorted_imports(body: list[ast.stmt]) -> list[ast.stmt]:
    """A block whose imports come first, one name each, the project's own without their module."""
    imports, others = [], []
    for statement in body:
        if not isinstance(statement, ast.Import | ast.ImportFrom):
            others.append(statement)
            continue
        module = getattr(statement, "module", None)
        if module and module.split(".")[0] in PROJECT:
            module = "project"
        for alias in statement.names:
            imports.append(ast.ImportFrom(module, [alias], 0) if module else ast.Import([alias]))
    return [*sorted(imports, key=ast.unparse), *others]
