"""Witness: the element-wise operations that the real network's forward pass dispatches.

The network runs on the meta device; every operation is recorded with the module that is running and
the number of elements that it gives. :data:`CLAIMS` says which recorded operations a row of the
counter stands for. What no row claims, and does arithmetic, is listed.
"""

from __future__ import annotations

import collections
import contextlib
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from validate.networks import build, tokens

if TYPE_CHECKING:
    from flopcount.architectures import Architecture

Operation = tuple[str, str]
"""A module's path, layers' numbers left out, and an operation: ``("layers.mlp.norm", "norm")``."""

NAMES = {
    "native_layer_norm": "norm",
    "_softmax": "softmax",
    "_log_softmax": "log softmax",
    "gelu": "gelu",
    "gather": "gather",
    "add": "add",
    "sub": "add",
    "mul": "mul",
    "addmm": "bias",
    "cos": "cos",
    "sin": "sin",
    "pow": "pow",
}
"""The operations that are recorded, by ATen's name."""

LINEAR = r"(hybrid|layers)\.(attention\.(query|key|value|out)|mlp\.(up|down))|output"

CLAIMS: dict[str, tuple[tuple[str, str, int], ...]] = {
    "embedding": ((r"embedding", "add", 1),),
    "prefix selection": ((r"", "gather", 1),),
    "norm": ((r"(hybrid|layers)\.norm", "norm", 1),),
    "prefix norm": ((r"hybrid\.prefix_norm", "norm", 1),),
    "mlp norm": ((r"(hybrid|layers)\.mlp\.norm", "norm", 1),),
    "final norm": ((r"norm", "norm", 1),),
    "softmax": ((r"(hybrid|layers)\.attention\.attend", "softmax", 1),),
    "query scale": ((r"(hybrid|layers)\.attention", "scale", 1),),
    # Each channel that turns takes two products and one addition.
    "rotary": ((r"(hybrid|layers)\.attention", "mul", 2),),
    "rotary addition": ((r"(hybrid|layers)\.attention", "add", 1),),
    "residual": ((r"hybrid|layers", "add", 1),),
    "gelu": ((r"(hybrid|layers)\.mlp\.activation", "gelu", 1),),
    # A linear layer adds its bias in one operation with the product, or in one of its own.
    "bias": ((LINEAR, "bias", 1), (LINEAR, "add", 1)),
    "cross-entropy": ((r"loss", "log softmax", 1),),
}
"""For each kind of row: the module, the operation, and its elements per element of the row."""

ROWS = {
    "attention residual": "residual",
    "mlp residual": "residual",
    "rotary query": "rotary",
    "rotary key": "rotary",
}
"""Rows that one operation cannot tell apart, by the kind that they are summed in."""

WITHOUT_FORWARD = ("projection input gradients", "tied embedding gradient")
"""Rows that have no forward pass."""


def kinds_of(term: str) -> tuple[str, ...]:
    """The kinds in :data:`CLAIMS` that a row of the counter stands for; none without a forward."""
    if term in WITHOUT_FORWARD:
        return ()
    kind = "bias" if term.endswith("bias") else ROWS.get(term, term)
    return (kind, "rotary addition") if kind == "rotary" else (kind,)


class _Operations(TorchDispatchMode):
    """Counts elements by module and operation."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: collections.Counter[Operation] = collections.Counter()
        self._modules: list[str] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = NAMES.get(func.overloadpacket.__name__)
        if name is not None:
            given = result[0] if isinstance(result, tuple) else result
            if name == "mul" and not isinstance(args[1], torch.Tensor):
                name = "scale"
            module = re.sub(r"layers\.\d+", "layers", self._modules[-1])
            # Positions are selected beside embeddings; they are integers, and no arithmetic.
            if name != "gather" or given.is_floating_point():
                self.elements[module, name] += given.numel()
        return result

    @contextlib.contextmanager
    def running(self, name: str) -> Iterator[None]:
        """Attribute what is dispatched meanwhile to ``name``."""
        self._modules.append(name)
        try:
            yield
        finally:
            self._modules.pop()

    def named(self, name: str, module: nn.Module) -> Callable[..., Any]:
        """A module's forward pass that attributes what it dispatches."""
        forward = module.forward

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self.running(name):
                return forward(*args, **kwargs)

        return wrapped


def forward_operations(
    model: Architecture, *, training: bool = True, batch_size: int = 1
) -> dict[Operation, int]:
    """Elements by module and operation of a forward pass, and of the loss in training."""
    network = build(model, training=training)
    operations = _Operations()
    with contextlib.ExitStack() as stack, torch.no_grad():
        for name, module in network.named_modules():
            stack.enter_context(
                mock.patch.object(module, "forward", operations.named(name, module))
            )
        stack.enter_context(operations)
        logits = network(tokens(model, batch_size=batch_size))
        if training:
            targets = torch.zeros(logits.shape[:2], dtype=torch.long, device=logits.device)
            with operations.running("loss"):
                functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    return dict(operations.elements)


def claimed(operations: dict[Operation, int]) -> tuple[dict[str, int], dict[Operation, int]]:
    """Sort operations into the kinds of rows that claim them, and those that none claims.

    Raises:
        ValueError: If the elements of an operation are no multiple of what its row takes.
    """
    kinds: collections.Counter[str] = collections.Counter()
    unclaimed: dict[Operation, int] = {}
    for (module, name), elements in operations.items():
        claims = [
            (kind, share)
            for kind, patterns in CLAIMS.items()
            for pattern, operation, share in patterns
            if operation == name and re.fullmatch(pattern, module)
        ]
        if not claims:
            unclaimed[module, name] = elements
            continue
        ((kind, share),) = claims
        if elements % share:
            raise ValueError(
                f"{module} {name}: {elements} elements, expected a multiple of {share}"
            )
        kinds[kind] += elements // share
    return dict(kinds), unclaimed
