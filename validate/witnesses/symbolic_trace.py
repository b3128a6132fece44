"""Witness: a trace of the real network on symbolic sizes, which holds for every size at once.

The network's own code runs, forward and backward, on fake tensors whose sizes are symbolic
integers: batch B, latents N, prefix M, kept prefix K, heads H, head dim C, vocabulary V and
widening factor w, so that d = H·C; for Llama channels D, key-value heads G, R query heads to each,
head dim 2·E and hidden channels F. A dispatch mode records the operand shapes of every product as
it is executed. Each record becomes a row (module, phase, FLOPs), FLOPs an expression in the sizes.

Names come from the modules: while a module of the network runs forward, a product belongs to it,
and to the autograd node that it creates. In the backward pass a product belongs to the node that
is being evaluated, so to the product whose gradient it is; a product executed with gradients
enabled there is recomputation.

When is it a proof? Every size is still a free symbol, no size has been replaced by another or by a
number, no guard is an equality, and guards and value ranges are those listed in
``assumptions.json`` (:func:`check_assumptions`). What the ranges exclude (sizes of 0 and 1, head
dims below 6) is covered by concrete runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import sympy
import torch
from torch import nn
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode

from models.networks.decoder import Decoder
from models.networks.llama import Llama
from models.networks.perceiver_ar import PerceiverAR

TESTED_TORCH = ("2.13",)
HINTS = {"B": 7, "N": 11, "M": 23, "K": 13, "H": 5, "C": 17, "V": 37, "w": 3}
LLAMA_HINTS = {"B": 7, "N": 11, "D": 29, "G": 5, "R": 3, "E": 17, "F": 23, "V": 37}
"""Concrete values that a branch on a size would see: distinct, none a multiple of another."""


@dataclasses.dataclass(frozen=True)
class Described:
    """How a trace describes an architecture.

    Attributes:
        network: What runs.
        hints: Its sizes, with the values that a branch on one would see.
        arguments: Of its sizes by name: the network's arguments, the number of layers apart.
    """

    network: Callable[..., nn.Module]
    hints: dict[str, int]
    arguments: Callable[[dict[str, Any]], dict[str, Any]]


def _of_heads(sizes: dict[str, Any]) -> dict[str, Any]:
    return dict(
        vocab_size=sizes["V"],
        num_channels=sizes["H"] * sizes["C"],
        num_heads=sizes["H"],
        head_dim=sizes["C"],
        widening_factor=sizes["w"],
    )


DESCRIBED = {
    "perceiver-ar": Described(
        PerceiverAR,
        HINTS,
        lambda sizes: (
            _of_heads(sizes)
            | dict(num_latents=sizes["N"], num_prefix=sizes["M"], num_kept=sizes["K"])
        ),
    ),
    "decoder": Described(
        Decoder,
        {name: hint for name, hint in HINTS.items() if name not in ("M", "K")},
        lambda sizes: _of_heads(sizes) | dict(seq_len=sizes["N"]),
    ),
    "llama": Described(
        Llama,
        LLAMA_HINTS,
        lambda sizes: dict(
            vocab_size=sizes["V"],
            seq_len=sizes["N"],
            num_channels=sizes["D"],
            num_heads=sizes["G"] * sizes["R"],
            intermediate_size=sizes["F"],
            num_key_value_heads=sizes["G"],
            head_dim=2 * sizes["E"],
        ),
    ),
}
"""What is traced, by its name on the command line."""

SIZES = {name: sympy.Symbol(name, integer=True, positive=True) for name in HINTS | LLAMA_HINTS}
"""The symbols that a trace's expressions are in."""

PRODUCTS = (
    torch.ops.aten.mm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.baddbmm.default,
)
"""Each takes its two factors last."""


@dataclasses.dataclass(frozen=True)
class TracedRow:
    """One product as it was executed.

    Attributes:
        module: The module whose forward pass it is, or whose gradient it computes.
        phase: ``"forward"``, ``"backward"`` or ``"recompute"``.
        flops: 2 · count · M · N · K of the operands, an expression in the sizes.
    """

    module: str
    phase: str
    flops: Any


@dataclasses.dataclass(frozen=True)
class Trace:
    """A traced step.

    Attributes:
        rows: One per product, in the order of execution.
        parameters: Scalars of all parameters, tied ones once, an expression.
        free: Sizes that occur in rows or parameters.
        replacements: Sizes that the trace replaced; a proof has none.
        guards: What was assumed of the sizes, as text.
        ranges: The values that each size may have, as text.
    """

    rows: tuple[TracedRow, ...]
    parameters: Any
    free: frozenset[str]
    replacements: dict[str, str]
    guards: tuple[str, ...]
    ranges: dict[str, str]

    def total(self, phase: str) -> Any:
        """The expanded sum of the rows of a phase."""
        return sympy.expand(sum((row.flops for row in self.rows if row.phase == phase), sympy.S(0)))


class NotAProofError(AssertionError):
    """A trace holds for less than every size."""


class Products(TorchDispatchMode):
    """Records products and attributes them to modules."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[TracedRow] = []
        self.modules: list[str] = []
        self.in_backward = False
        self._module_of_node: dict[int, str] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in PRODUCTS:
            left, right = args[-2:]
            count = left.shape[0] if left.ndim == 3 else 1
            flops = 2 * count * left.shape[-2] * left.shape[-1] * right.shape[-1]
            self.rows.append(TracedRow(*self._attribute(), _expression(flops)))
        return func(*args, **(kwargs or {}))

    def _attribute(self) -> tuple[str, str]:
        if not self.in_backward:
            self._remember()
            return self.modules[-1], "forward"
        if torch.is_grad_enabled():
            self._remember()
            return self.modules[-1], "recompute"
        if self.modules:
            # Re-entrant checkpointing's first pass, and evaluation: no node is created.
            return self.modules[-1], "forward"
        number = torch._C._current_autograd_node()._sequence_nr()
        if number not in self._module_of_node:
            raise NotAProofError("a product of the backward pass belongs to no forward product")
        return self._module_of_node[number], "backward"

    def _remember(self) -> None:
        """Note the node that the product now being dispatched has just created."""
        self._module_of_node[torch.autograd._get_sequence_nr() - 1] = self.modules[-1]

    @contextlib.contextmanager
    def naming(self, network: nn.Module) -> Iterator[None]:
        """Keep the stack of the network's modules that are running forward."""
        with contextlib.ExitStack() as stack:
            for name, module in network.named_modules():
                stack.enter_context(mock.patch.object(module, "forward", self._named(name, module)))
            yield

    def _named(self, name: str, module: nn.Module) -> Callable[..., Any]:
        forward = module.forward

        def named(*args: Any, **kwargs: Any) -> Any:
            self.modules.append(name)
            try:
                return forward(*args, **kwargs)
            finally:
                self.modules.pop()

        return named


def _expression(size: Any) -> Any:
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)


def require_tested_torch() -> None:
    """Refuse a PyTorch whose private interfaces have not been tried.

    Raises:
        RuntimeError: If this is not one of :data:`TESTED_TORCH`.
    """
    version = ".".join(torch.__version__.split(".")[:2])
    if version not in TESTED_TORCH:
        raise RuntimeError(
            f"torch = {torch.__version__}: the symbolic trace uses private interfaces and is "
            f"tested on {', '.join(TESTED_TORCH)}; install one of these"
        )


def trace(
    architecture: str,
    num_layers: int,
    *,
    training: bool = True,
    checkpointing: str | None = None,
    hints: dict[str, int] | None = None,
) -> Trace:
    """Trace a step of the real network with every size but the number of layers a symbol.

    Args:
        architecture: ``"perceiver-ar"``, ``"decoder"`` or ``"llama"``.
        num_layers: L, a number.
        training: Forward, with K of M prefix positions kept, and backward; or forward alone.
        checkpointing: ``None``, ``"reentrant"`` or ``"non-reentrant"``.
        hints: Concrete values that a branch on a size would see, if others.

    Returns:
        A :class:`Trace`; :func:`check_assumptions` says whether it is a proof.

    Raises:
        RuntimeError: On an untested PyTorch.
    """
    require_tested_torch()
    described = DESCRIBED[architecture]
    environment = ShapeEnv(duck_shape=False)
    sizes, symbols = {}, {}
    for name, hint in (hints or described.hints).items():
        source = ConstantSource(name)
        symbol = environment.create_symbol(
            hint, source=source, dynamic_dim=DimDynamic.DYNAMIC, constraint_dim=None
        )
        sizes[name] = environment.create_symintnode(symbol, hint=hint, source=source)
        symbols[name] = symbol
    products = Products()
    with (
        FakeTensorMode(shape_env=environment),
        mock.patch.object(nn.Linear, "reset_parameters"),
        mock.patch.object(nn.Embedding, "reset_parameters"),
    ):
        arguments = described.arguments(sizes)
        network = described.network(**arguments, num_layers=num_layers, checkpointing=checkpointing)
        length = sum(arguments.get(name, 0) for name in ("num_prefix", "num_latents", "seq_len"))
        network.train(training)
        tokens = torch.zeros((sizes["B"], length), dtype=torch.long)
        with products.naming(network), products, torch.set_grad_enabled(training):
            logits = network(tokens)
            if training:
                products.in_backward = True
                logits.sum().backward()
        parameters = sum(_expression(parameter.numel()) for parameter in network.parameters())
    # A hint of 0 or 1 makes a size that number instead of a symbol.
    named = {symbol: SIZES[name] for name, symbol in symbols.items() if symbol.is_Symbol}
    rows = tuple(dataclasses.replace(row, flops=row.flops.xreplace(named)) for row in products.rows)
    parameters = parameters.xreplace(named)
    free = parameters.free_symbols.union(*(row.flops.free_symbols for row in rows))
    return Trace(
        rows=rows,
        parameters=parameters,
        free=frozenset(str(symbol) for symbol in free),
        replacements={
            str(old.xreplace(named)): str(new.xreplace(named))
            for old, new in environment.replacements.items()
        },
        guards=tuple(sorted({str(guard.expr.xreplace(named)) for guard in environment.guards})),
        ranges={
            name: _range_text(environment.var_to_range[symbol]) if symbol.is_Symbol else str(symbol)
            for name, symbol in symbols.items()
        },
    )


def _range_text(values: Any) -> str:
    """A value range as text; an upper end beyond any size is "any"."""
    return f"{values.lower} to {'any' if values.upper > 2**60 else values.upper}"


def check_assumptions(evidence: Trace, sizes: frozenset[str], assumptions: dict[str, Any]) -> None:
    """Check that a trace holds for every size within its ranges.

    Args:
        evidence: The trace.
        sizes: Sizes that must occur in it.
        assumptions: The guards and ranges that may have been assumed, ``{"guards": [...],
            "ranges": {...}}``.

    Raises:
        NotAProofError: If a size was fixed or replaced, a guard is an equality, or guards or
            ranges are not those listed.
    """
    if evidence.free != sizes:
        raise NotAProofError(f"free sizes {sorted(evidence.free)}: expected {sorted(sizes)}")
    if evidence.replacements:
        raise NotAProofError(f"sizes replaced: {evidence.replacements}")
    equalities = [guard for guard in evidence.guards if guard.startswith("Eq(")]
    if equalities:
        raise NotAProofError(f"equalities assumed: {', '.join(equalities)}")
    unlisted = set(evidence.guards) ^ set(assumptions["guards"])
    if unlisted:
        raise NotAProofError(f"guards differ from those listed: {', '.join(sorted(unlisted))}")
    if evidence.ranges != assumptions["ranges"]:
        raise NotAProofError(f"ranges {evidence.ranges}: expected {assumptions['ranges']}")
