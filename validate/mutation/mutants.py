"""Mutants: one small change each to a formula of the counter, applied while the program runs.

What is changed, one at a time: every constant, those of the module included (one more, one less, a
flag reversed, self and cross exchanged), sign, operator, factor and term (an operand, an argument
or an entry of a tuple left out or one more), comparison, choice between terms, exact helper (left
out), and default value. A mutant replaces a function's code object, so whoever has imported the
function meets it. What raises errors is no formula and stays as it is.
"""

from __future__ import annotations

import ast
import collections
import contextlib
import copy
import dataclasses
import functools
import importlib
import inspect
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Target:
    """Formulas that are changed.

    Attributes:
        module: The module, for example ``"flopcount.layers"``.
        names: Functions and methods (``"Row.flops"``), classes, of which the fields' defaults are
            changed, and the module's constants; all of the module if empty.
        leaving_out: How the names of what is no formula begin.
    """

    module: str
    names: tuple[str, ...] = ()
    leaving_out: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A changed formula.

    Attributes:
        module: Where it stands.
        function: Whose code or default it is.
        line: The line changed.
        change: What is changed, as source text.
        number: Which one of the function's equal changes it is, from 1.
        owner: The object that is changed.
        attribute: Its attribute that is replaced.
        value: By what.
    """

    module: str
    function: str
    line: int
    change: str
    number: int
    owner: Any
    attribute: str
    value: Any

    @property
    def name(self) -> str:
        """What identifies it, whatever line it stands on."""
        number = f" ({self.number})" if self.number > 1 else ""
        return f"{self.module}.{self.function}: {self.change}{number}"

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The counter with this change."""
        original = getattr(self.owner, self.attribute)
        setattr(self.owner, self.attribute, self.value)
        try:
            yield
        finally:
            setattr(self.owner, self.attribute, original)


OPERATORS: dict[type[ast.operator], tuple[type[ast.operator], ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Add,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.FloorDiv,),
    ast.Pow: (ast.Mult,),
}
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
EXCHANGED = {"self": "cross", "cross": "self"}
HELPERS = {
    "halve": (0,),
    "minimum": (0, 1),
    "exact_ratio": (0,),
    "divide": (1,),
    "int": (0,),
    "floor": (0,),
    "Min": (0, 1),
}
"""Exact helpers, and which of their arguments may stand in for the whole call."""

SIZE = re.compile(
    r"(num_\w+|\w*channels|batch|batch_size|head_dim|vocab_size|widening_factor|pairs|elements"
    r"|tokens|positions|products|attention|layers|additions|flops|forward|count|hidden|inputs"
    r"|outputs|queries|keys|heads|length|times|cached|window|depth|key_dim|value_dim"
    r"|intermediate_size|[nkdghcMNK])"
)
"""Names of what is a size or a number of FLOPs, and so a factor where it is an argument."""


def _changed_node(node: ast.AST, **fields: Any) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _one_more(node: ast.expr) -> ast.expr:
    return ast.BinOp(node, ast.Add(), ast.Constant(1))


def _constants(value: object) -> list[Any]:
    """What a constant is changed to."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1, value - 1]
    return [EXCHANGED[value]] if isinstance(value, str) and value in EXCHANGED else []


def _is_size(node: ast.expr) -> bool:
    name = node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")
    return SIZE.fullmatch(name) is not None


def _calls(node: ast.Call) -> Iterator[tuple[ast.AST, str]]:
    name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
    for index in HELPERS.get(name, ()):
        yield node.args[index], f"{_text(node)} -> {_text(node.args[index])}"
    if name.startswith("is_"):
        return  # a question about a value's type, not about its magnitude
    names = [name, *(_text(entry) for entry in node.args if isinstance(entry, ast.Constant))]
    call = f"{'.'.join(names)}()"
    for index, argument in enumerate(node.args):
        if isinstance(argument, ast.Name | ast.Attribute) and _is_size(argument):
            arguments = [*node.args[:index], _one_more(argument), *node.args[index + 1 :]]
            yield _changed_node(node, args=arguments), f"{call}, {_text(argument)} one more"
    for index, keyword in enumerate(node.keywords):
        sized = keyword.arg is not None and SIZE.fullmatch(keyword.arg)
        if sized and not isinstance(keyword.value, ast.Constant):
            more = ast.keyword(keyword.arg, _one_more(keyword.value))
            keywords = [*node.keywords[:index], more, *node.keywords[index + 1 :]]
            yield _changed_node(node, keywords=keywords), f"{call}, {keyword.arg} one more"


def _replacements(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in the place of a constant, an operation or a choice."""
    if isinstance(node, ast.Constant):
        yield from (ast.Constant(value) for value in _constants(node.value))
    elif isinstance(node, ast.BinOp):
        for operator in OPERATORS.get(type(node.op), ()):
            yield _changed_node(node, op=operator())
        yield from (node.left, node.right)
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.BoolOp):
        yield _changed_node(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
        yield from node.values
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield _changed_node(node, ops=[COMPARISONS[type(node.ops[0])]()])
    elif isinstance(node, ast.IfExp):
        yield from (node.body, node.orelse)
    elif isinstance(node, ast.If):
        yield from (_changed_node(node, test=ast.Constant(value)) for value in (True, False))


def _changes(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Everything that may stand in a node's place, and how the change is told."""
    for new in _replacements(node):
        yield new, f"{_text(node)} -> {_text(new)}"
    if isinstance(node, ast.Call):
        yield from _calls(node)
    elif isinstance(node, ast.Tuple | ast.List) and isinstance(node.ctx, ast.Load):
        for index, entry in enumerate(node.elts):
            if isinstance(entry, ast.Call | ast.Starred | ast.Tuple):
                yield (
                    _changed_node(node, elts=[*node.elts[:index], *node.elts[index + 1 :]]),
                    f"without {_text(entry)}",
                )
    elif isinstance(node, ast.AugAssign) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ):
        yield ast.Pass(), f"without {_text(node)}"


def _formula_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function's body that are formula: no errors, annotations or documentation."""
    if isinstance(
        node, ast.Raise | ast.Import | ast.ImportFrom | ast.JoinedStr | ast.ExceptHandler
    ):
        return
    if isinstance(node, ast.If) and all(isinstance(entry, ast.Raise) for entry in node.body):
        return
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    yield node
    if isinstance(node, ast.FunctionDef):
        children: list[ast.AST] = [*node.body, *node.args.defaults]
    elif isinstance(node, ast.AnnAssign):
        children = [node.value] if node.value else []
    else:
        children = list(ast.iter_child_nodes(node))
    for child in children:
        yield from _formula_nodes(child)


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> Any:
        return self.new if node is self.old else self.generic_visit(node)


def _replaced(definition: Any, old: ast.AST, new: ast.AST) -> Any:
    """A copy of ``definition`` with ``new`` where ``old`` stands in it."""
    place = next(i for i, node in enumerate(ast.walk(definition)) if node is old)
    copied = copy.deepcopy(definition)
    target = next(node for i, node in enumerate(ast.walk(copied)) if i == place)
    return _Replace(target, copy.deepcopy(new)).visit(copied)


def _code(function: ast.FunctionDef, path: str, closure: tuple[str, ...] = ()) -> types.CodeType:
    """The code object of a function; defaults and decorators belong to the function object.

    What the function closes over, such as the class that ``super()`` asks for, is a variable of a
    function around it.
    """
    bare = copy.copy(function)
    # A name of its own, lest its body mean it where it asks for a function of the module.
    bare.name = f"changed_{function.name}"
    bare.decorator_list = []
    bare.args = copy.copy(function.args)
    bare.args.defaults = []
    bare.args.kw_defaults = [None] * len(function.args.kwonlyargs)
    statements: list[ast.stmt] = [bare]
    if closure:
        outside = [
            ast.Assign([ast.Name(name, ast.Store())], ast.Constant(None)) for name in closure
        ]
        empty = ast.arguments([], [], None, [], [], None, [])
        # A changed body that asks for it no more must close over it all the same.
        asked = [ast.Expr(ast.Name(name, ast.Load())) for name in closure]
        bare.body = [*bare.body, ast.If(ast.Constant(False), asked, [])]
        statements = [ast.FunctionDef("factory", empty, [*outside, bare], [])]
    tree = ast.fix_missing_locations(ast.Module(statements, []))
    compiled = compile(tree, path, "exec", flags=annotations.compiler_flag, dont_inherit=True)
    return _code_named(bare.name, compiled).replace(co_name=function.name)


def _code_named(name: str, code: types.CodeType) -> types.CodeType:
    inside = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    for constant in inside:
        if constant.co_name == name:
            return constant
    (factory,) = inside
    return _code_named(name, factory)


def _function_object(module: types.ModuleType, name: str) -> Any:
    value: Any = module
    for part in name.split("."):
        value = inspect.getattr_static(value, part)
    if isinstance(value, property):
        return value.fget
    if isinstance(value, classmethod):
        return inspect.unwrap(value.__func__)
    return value.func if isinstance(value, functools.cached_property) else value


Definition = ast.FunctionDef | ast.ClassDef | ast.Assign


def _definitions(tree: ast.Module) -> Iterator[tuple[str, Definition]]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and not isinstance(node.value, ast.DictComp):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    yield target.id, node
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node
        if isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, ast.FunctionDef):
                    yield f"{node.name}.{method.name}", method


Change = tuple[int, str, Any, str, Any]
"""Line, text, and the owner, name and new value of the attribute that is replaced."""


def _of_body(function: Any, node: ast.FunctionDef, path: str) -> Iterator[Change]:
    for statement in node.body:
        for old in _formula_nodes(statement):
            for new, change in _changes(old):
                code = _code(_replaced(node, old, new), path, function.__code__.co_freevars)
                yield getattr(old, "lineno", node.lineno), change, function, "__code__", code


def _of_defaults(function: Any, defaults: dict[str, ast.expr]) -> Iterator[Change]:
    """Changes of the default values, which belong to the function object."""
    positional = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is not parameter.KEYWORD_ONLY and parameter.default is not parameter.empty
    ]
    for name, node in defaults.items():
        if not isinstance(node, ast.Constant):
            continue
        for value in _constants(node.value):
            change = f"{name}={node.value!r} -> {name}={value!r}"
            if name in positional:
                values = tuple(
                    value if name == other else default
                    for other, default in zip(positional, function.__defaults__, strict=True)
                )
                yield node.lineno, change, function, "__defaults__", values
            else:
                keywords = function.__kwdefaults__ | {name: value}
                yield node.lineno, change, function, "__kwdefaults__", keywords


def _of_constant(module: types.ModuleType, name: str, node: ast.Assign) -> Iterator[Change]:
    """Changes of a module's constant, which its functions meet, and not who has imported it."""
    for old in _formula_nodes(node.value):
        for new, change in _changes(old):
            value = ast.fix_missing_locations(ast.Expression(_replaced(node, old, new).value))
            # What cannot be built stops the import.
            with contextlib.suppress(Exception):
                yield (
                    node.lineno, change, module, name,
                    eval(compile(value, name, "eval"), vars(module)),
                )  # fmt: skip


def _of_definition(module: types.ModuleType, name: str, node: Any, path: str) -> Iterator[Change]:
    if isinstance(node, ast.Assign):
        yield from _of_constant(module, name, node)
        return
    if isinstance(node, ast.ClassDef):
        defaults = {
            field.target.id: field.value
            for field in node.body
            if isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and field.value is not None
        }
        if defaults:
            yield from _of_defaults(getattr(module, name).__init__, defaults)
        return
    if {ast.unparse(decorator) for decorator in node.decorator_list} & {"abc.abstractmethod"}:
        return
    function = _function_object(module, name)
    yield from _of_body(function, node, path)
    keywords = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    arguments = [*node.args.posonlyargs, *node.args.args]
    positional = zip(reversed(arguments), reversed(node.args.defaults), strict=False)
    defaults = {argument.arg: value for argument, value in (*positional, *keywords) if value}
    yield from _of_defaults(function, defaults)


def mutants_of(target: Target) -> Iterator[Mutant]:
    """Every mutant of a target's formulas.

    Raises:
        ValueError: If the module has nothing of a listed name, or that begins as one left out.
    """
    module = importlib.import_module(target.module)
    path = str(module.__file__)
    definitions = dict(_definitions(ast.parse(Path(path).read_text(encoding="utf-8"))))
    unknown = set(target.names) - set(definitions)
    if unknown:
        raise ValueError(f"{target.module} defines no {', '.join(sorted(unknown))}")
    for start in target.leaving_out:
        if not any(name.startswith(start) for name in definitions):
            raise ValueError(f"{target.module} defines nothing that begins with {start}")
    for name in target.names or definitions:
        if name.startswith(target.leaving_out):
            continue
        seen: collections.Counter[str] = collections.Counter()
        for line, change, *patch in _of_definition(module, name, definitions[name], path):
            seen[change] += 1
            yield Mutant(target.module, name, line, change, seen[change], *patch)


def _text(node: ast.AST) -> str:
    """A node as one line of source; of a choice, its condition alone."""
    if isinstance(node, ast.If):
        return f"if {ast.unparse(node.test)}"
    return " ".join(ast.unparse(ast.fix_missing_locations(copy.deepcopy(node))).split())
