"""Source text as what it does: two texts that differ in comments or layout alone are equal."""

from __future__ import annotations

import ast


def code_of(source: str, without: str = "") -> str:
    """Python source without comments, docstrings and layout.

    Args:
        source: The text.
        without: How names of functions start that are left out, too; none if empty.
    """
    tree = ast.parse(source)
    if without:
        tree.body = [
            entry
            for entry in tree.body
            if not isinstance(entry, ast.FunctionDef) or not entry.name.startswith(without)
        ]
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [entry for entry in body if not _is_text(entry)]  # type: ignore[attr-defined]
    return ast.unparse(tree)


def _is_text(statement: ast.stmt) -> bool:
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)
