"""Witness: the element-wise operations that the real network dispatches, forward and backward.

The network runs a step; every operation but products and data movement is
recorded with the module that it belongs to and the number of elements that it works on. The
backward pass's operations belong to the module whose operation they differentiate, found by the
number of the autograd node being evaluated; where gradients that meet are added, that is the node
that gave the second one. :data:`CLAIMS` says which recorded operations a row of the counter stands
for, :data:`UNCLAIMED` why the others belong to no row: an operation in neither is a disagreement.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from validate.witnesses.networks import build, tokens

if TYPE_CHECKING:
    from flopcount.architectures import Architecture

Operation = tuple[str, str, str]
"""A phase, a module's path without layers' numbers, and an operation.

``("forward", "layers.mlp.norm", "native_layer_norm")``; in the backward pass with the autograd node
that is being evaluated, ``("backward", "hybrid.attention", "add in MulBackward")``.
"""

WITHOUT_ARITHMETIC = frozenset({
    "_reshape_alias", "_to_copy", "_unsafe_view", "alias", "arange", "as_strided", "bitwise_and",
    "bitwise_not", "cat", "clone", "copy", "detach", "embedding", "empty", "empty_like", "expand",
    "fill", "full",
    "full_like", "gt", "le", "lift_fresh", "masked_fill", "new_empty", "new_zeros",
    "nll_loss_backward", "nll_loss_forward", "ones_like", "permute", "rand", "select",
    "select_backward", "slice",
    "slice_backward", "sort", "split", "squeeze", "stack", "t", "topk", "transpose", "unsqueeze",
    "view", "zero", "zeros", "zeros_like",
})  # fmt: skip
"""What moves, makes, selects or compares without arithmetic per channel, by ATen's name."""

PRODUCTS = frozenset({"mm", "bmm"})
"""Matrix products have witnesses of their own; ``addmm``'s addition of the bias is recorded."""

SELECTIONS = frozenset({"gather"})
"""Data movement that is recorded nevertheless, because a row stands for it."""

REDUCTIONS = {"sum": 0, "embedding_dense_backward": 0, "scatter_add": 3}
"""Operations that work on each element of an operand, and which operand, not of the result."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """Operations that a kind of row stands for.

    Attributes:
        kind: The kind of row; see :func:`kinds_of`.
        module: A regular expression for the module's path.
        forward: One for the forward operation; empty if there is none.
        backward: One for the backward operation; empty if there is none.
        share: The operations' elements per element of the row.
    """

    kind: str
    module: str
    forward: str
    backward: str
    share: int = 1

    def stands_for(self, operation: Operation) -> bool:
        """Whether the row stands for ``operation``; recomputation repeats the forward pass."""
        phase, module, name = operation
        pattern = self.backward if phase == "backward" else self.forward
        return re.fullmatch(self.module, module) is not None and (
            re.fullmatch(pattern, name) is not None
        )


ATTENTION = r"(hybrid|layers)\.attention"
LINEAR = rf"{ATTENTION}\.(query|key|value|out)|(hybrid|layers)\.mlp\.(up|down)|output"
NORM = ("native_layer_norm", "native_layer_norm_backward in .*")
# RMSNorm is dispatched in pieces: forward the square, times r, times γ; backward the four products
# and two sums of the latter two, the mean's and the square's own, and the sum of x's two gradients.
RMS_FORWARD = "pow|mul"
RMS_BACKWARD = "(mul|sum) in MulBackward|div in MeanBackward|(pow|scale|mul|add) in PowBackward"
RMS = {
    "norm": r"layers\.norm",
    "mlp norm": r"layers\.mlp_norm",
    "final norm": "norm",
}

CLAIMS = (
    Claim("embedding", "embedding", "add", ""),
    Claim("token embedding", r"embedding(\.token)?", "", "embedding_dense_backward in .*"),
    Claim("position embedding", "embedding", "", "sum in AddBackward"),
    Claim("prefix selection", "", "gather", "scatter_add in GatherBackward"),
    Claim("norm", r"(hybrid|layers)\.norm", *NORM),
    Claim("prefix norm", r"hybrid\.prefix_norm", *NORM),
    Claim("mlp norm", r"(hybrid|layers)\.mlp\.norm", *NORM),
    Claim("final norm", "norm", *NORM),
    *(Claim(kind, module, RMS_FORWARD, "", share=3) for kind, module in RMS.items()),
    *(Claim(kind, module, "", RMS_BACKWARD, share=11) for kind, module in RMS.items()),
    Claim("softmax", rf"{ATTENTION}\.attend", "_softmax", "_softmax_backward_data in .*"),
    Claim("query scale", ATTENTION, "scale", "scale in MulBackward"),
    # Each channel that turns takes two products and one addition.
    Claim("rotary", ATTENTION, "mul", "mul in MulBackward", share=2),
    Claim("rotary addition", ATTENTION, "add|sub", "add in MulBackward"),
    # Forward the two branches meet; backward their gradients do, where the norm's arrives second.
    Claim("residual", "hybrid|layers", "add", ""),
    Claim("residual", r"(hybrid|layers)(\.mlp)?\.norm", "", "add in NativeLayerNormBackward"),
    Claim("residual", r"layers\.(mlp_)?norm", "", "add in MulBackward"),
    Claim("silu", r"layers\.mlp\.activation", "silu", "silu_backward in .*"),
    Claim("gate product", r"layers\.mlp", "mul", ""),
    Claim("gate product", r"layers\.mlp", "", "mul in MulBackward", share=2),
    Claim("mlp input gradients", r"layers\.mlp\.(gate|up)", "", "add in .*"),
    Claim("gelu", r"(hybrid|layers)\.mlp\.activation", "gelu", "gelu_backward in .*"),
    # A linear layer adds its bias in one operation with the product, or in one of its own.
    Claim("bias", LINEAR, "addmm|add", "sum in .*"),
    Claim("projection input gradients", rf"{ATTENTION}\.(query|key|value)", "", "add in .*"),
    Claim("projection input gradients", "hybrid", "", "add in CatBackward"),
    Claim("cross-entropy", "loss", "_log_softmax", "_log_softmax_backward_data in .*"),
    Claim("tied embedding gradient", r"embedding(\.token)?|output", "", "add in .*"),
)

MASK = "the mask's arithmetic: once per pair of positions, not per head; fused kernels compare"
UNCLAIMED = {
    ("", "add"): "positions: once per position, not per channel",
    ("", "mul|pow|cos|sin|div|neg"): "rotary angles: once per position, not per head",
    (ATTENTION, "cos|sin"): "rotary angles: once per position, not per head",
    (rf"{ATTENTION}\.attend", "add|sub"): MASK,
    (ATTENTION, "neg in SubBackward"): "a sign, which a fused rotation takes into its addition",
    (
        f"|{ATTENTION}",
        "add in SliceBackward",
    ): "gradients of slices, padded with zeros, are added: it joins what was one tensor",
    (
        r"embedding\.position",
        "embedding_dense_backward in .*",
    ): "each position's gradient meets zeros once a step, after the sum over the batch",
    (
        r"(layers\.(mlp_)?)?norm",
        "mean|add|rsqrt|(pow|scale|mul) in RsqrtBackward",
    ): "statistics of a norm: once per row",
    (
        ATTENTION,
        "sum in ExpandBackward",
    ): "the sum over the query heads that share a key head: the product's own, where keys are not "
    "repeated",
    ("loss", "div|sum|mul"): "the mean over positions: once per position or step",
}
"""Why operations, by module and name, belong to no row."""

ROWS = {
    "attention residual": ("residual",),
    "mlp residual": ("residual",),
    "rotary query": ("rotary", "rotary addition"),
    "rotary key": ("rotary", "rotary addition"),
}
"""The kinds that a row stands for, where they are not its own name."""


def kinds_of(term: str, phase: str = "forward", cost: int = 1) -> tuple[str, ...]:
    """The kinds in :data:`CLAIMS` that a row of the counter stands for in a phase.

    An embedding adds as often as its cost per element says: forward once if there are positions,
    backward into each table.
    """
    if term == "embedding" and phase == "backward":
        return ("token embedding", "position embedding")[:cost]
    if term == "embedding":
        return ("embedding",)[:cost]
    if term.endswith("bias"):
        return ("bias",)
    return ROWS.get(term, (term,))


def has_phase(kind: str, phase: str) -> bool:
    """Whether rows of a kind stand for an operation of a phase."""
    return any(
        claim.backward if phase == "backward" else claim.forward
        for claim in CLAIMS
        if claim.kind == kind
    )


class _Operations(TorchDispatchMode):
    """Counts elements by phase, module and operation."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: collections.Counter[Operation] = collections.Counter()
        self.in_backward = False
        self._modules: list[str] = []
        self._module_of_node: dict[int, str] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        phase, module, node = self._attribute()
        # In-place forms end in an underscore.
        name = func.overloadpacket.__name__.rstrip("_")
        given = result[0] if isinstance(result, tuple) else result
        if name in WITHOUT_ARITHMETIC | PRODUCTS:
            return result
        # Positions are made and selected beside embeddings: integers, and no arithmetic.
        if name in SELECTIONS and not given.is_floating_point():
            return result
        if name == "mul" and not isinstance(args[1], torch.Tensor):
            name = "scale"
        worked_on = args[REDUCTIONS[name]] if name in REDUCTIONS else given
        self.elements[phase, module, f"{name}{node}"] += worked_on.numel()
        return result

    def _attribute(self) -> tuple[str, str, str]:
        """Phase, module, and what to append to the operation's name."""
        recomputing = self.in_backward and bool(self._modules)
        if not self.in_backward or recomputing:
            if torch.is_grad_enabled():
                # The node that the operation now being dispatched has just created.
                # What creates no node, later, must not take it over.
                self._module_of_node.setdefault(
                    torch.autograd._get_sequence_nr() - 1, self._modules[-1]
                )
            return "recompute" if recomputing else "forward", self._modules[-1], ""
        node = torch._C._current_autograd_node()
        if node is None:  # the loss's own gradient, 1
            return "backward", "loss", ""
        module = self._module_of_node.get(node._sequence_nr(), "unknown")
        return "backward", module, f" in {node.name().rstrip('0123456789')}"

    @contextlib.contextmanager
    def running(self, name: str) -> Iterator[None]:
        """Attribute what is dispatched meanwhile to ``name``."""
        self._modules.append(re.sub(r"layers\.\d+", "layers", name))
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


def operations(
    model: Architecture,
    *,
    training: bool = True,
    batch_size: int = 1,
    checkpointing: str | None = None,
) -> dict[Operation, int]:
    """Elements by phase, module and operation of a step.

    In training a step is a forward pass, the loss and a backward pass; else a forward pass alone.
    """
    network = build(model, training=training, checkpointing=checkpointing)
    inputs = tokens(model, batch_size=batch_size)
    counter = _Operations()
    with contextlib.ExitStack() as stack, torch.set_grad_enabled(training):
        for name, module in network.named_modules():
            stack.enter_context(mock.patch.object(module, "forward", counter.named(name, module)))
        stack.enter_context(counter)
        logits = network(inputs)
        if training:
            with counter.running("loss"):
                targets = torch.zeros(logits.shape[:2], dtype=torch.long, device=logits.device)
                loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
            counter.in_backward = True
            loss.backward()
    return dict(counter.elements)


def claimed(
    operations: dict[Operation, int],
) -> tuple[dict[tuple[str, str], int], dict[Operation, int]]:
    """Sort operations into the kinds of rows that claim them, and those that none claims.

    Returns:
        Elements by (phase, kind), and elements of each operation that belongs to no row.

    Raises:
        ValueError: If the elements of a kind's operations are no multiple of what its row takes.
    """
    kinds: collections.Counter[tuple[str, str, int]] = collections.Counter()
    unclaimed: dict[Operation, int] = {}
    for operation, elements in operations.items():
        claims = [claim for claim in CLAIMS if claim.stands_for(operation)]
        if not claims:
            unclaimed[operation] = elements
            continue
        (claim,) = claims
        kinds[operation[0], claim.kind, claim.share] += elements
    rows: collections.Counter[tuple[str, str]] = collections.Counter()
    for (phase, kind, share), elements in kinds.items():
        if elements % share:
            raise ValueError(f"{phase} {kind}: {elements} elements, expected a multiple of {share}")
        rows[phase, kind] += elements // share
    return dict(rows), unclaimed


def reason(operation: Operation) -> str | None:
    """Why an operation belongs to no row; None where nothing says so."""
    _, module, name = operation
    for (module_pattern, name_pattern), text in UNCLAIMED.items():
        if re.fullmatch(module_pattern, module) and re.fullmatch(name_pattern, name):
            return text
    return None
