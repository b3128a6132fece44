"""A training step under the profiler: which product of the network each kernel has executed."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import flopcount as fc
from benchmarks.attention.peers import shapes_of_model
from benchmarks.counters.executed import executed_ops
from benchmarks.counters.profiler import Kernel, verdict
from benchmarks.measurement import device, working_dtype
from kernels.attention.tilings import KERNELS
from models.networks.perceiver_ar import PerceiverAR
from validate.witnesses.networks import term_of

SEED_MODELS = {
    "512x9-V32000-m1536": dict(vocab_size=32_000, num_prefix=1536, num_channels=512, num_layers=9),
    "728x13-V32000-m1536": dict(
        vocab_size=32_000, num_prefix=1536, num_channels=728, num_layers=13
    ),
    "512x9-V262-m3584": dict(vocab_size=262, num_prefix=3584, num_channels=512, num_layers=9),
}
"""Models of the article; n = 512, 8 heads, half of the prefix dropped."""

TINY = fc.PerceiverAR(
    vocab_size=262,
    num_latents=8,
    num_prefix=8,
    num_channels=16,
    num_layers=2,
    num_heads=2,
    prefix_dropout=0.5,
)
"""The model called ``tiny``, to try a path."""

STEP_COLUMNS = (
    "device",
    "model",
    "index",
    "kernel",
    "layer",
    "term",
    "phase",
    "causal",
    "dense",
    "executed",
    "counted",
    "verdict",
)


@dataclasses.dataclass(frozen=True)
class Product:
    """A product that the network dispatched.

    Attributes:
        module: Whose it is, or whose gradient.
        phase: ``"forward"`` or ``"backward"``.
        dense: Its FLOPs, from the operands' shapes.
        fused: Whether it is an attention operator with kernels of its own.
    """

    module: str
    phase: str
    dense: int
    fused: bool


class Products(TorchDispatchMode):
    """Records every product of a step, in order, with the module that it belongs to.

    A product of the backward pass belongs to the forward product whose autograd node is evaluated.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.products: list[Product] = []
        self._modules: list[str] = []
        self._of_node: dict[int, str] = {}
        self._hooks = [
            hook
            for name, module in network.named_modules()
            for hook in (
                module.register_forward_pre_hook(lambda *_, name=name: self._modules.append(name)),
                module.register_forward_hook(lambda *_: self._left()),
            )
        ]

    def _left(self) -> None:
        self._modules.pop()

    def __exit__(self, *exception: Any) -> None:
        """Stop recording, and leave the network as it was."""
        super().__exit__(*exception)
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Record ``func`` where PyTorch or our operators have a FLOP formula for it."""
        out = func(*args, **(kwargs or {}))
        packet = getattr(func, "_overloadpacket", None)
        if packet in flop_registry:
            dense = flop_registry[packet](*args, **(kwargs or {}), out_val=out)
            module, phase = self._attribute()
            fused = func.namespace == "flopcount"
            self.products.append(Product(module, phase, int(dense), fused))
        return out

    def _attribute(self) -> tuple[str, str]:
        if self._modules:
            self._of_node[torch.autograd._get_sequence_nr() - 1] = self._modules[-1]
            return self._modules[-1], "forward"
        node = torch._C._current_autograd_node()
        return self._of_node.get(node._sequence_nr(), "?") if node else "?", "backward"


def attributed(
    products: list[Product], kernels: list[Kernel], dtype: str = "bfloat16"
) -> list[tuple[Product | None, list[Kernel]]]:
    """Give each product the kernels that executed it, by the order of both.

    Of the kernels those with tensor-core operations count. A library's product is one of them; a
    fused one is all attention kernels in a row. Where the orders do not fit, no kernel is given to
    any product: each stands alone, with None.
    """
    groups: list[list[Kernel]] = []
    for kernel in kernels:
        if kernel.tensor_ops(dtype) == 0:
            continue
        if groups and _is_fused(kernel) and _is_fused(groups[-1][-1]):
            groups[-1].append(kernel)
        else:
            groups.append([kernel])
    fits = [_is_fused(group[0]) for group in groups] == [product.fused for product in products]
    if not fits:
        return [(None, [kernel]) for group in groups for kernel in group]
    return list(zip(products, groups, strict=True))


def _is_fused(kernel: Kernel) -> bool:
    return kernel.name.startswith("attention_")


def term_of_product(product: Product, model: fc.PerceiverAR) -> tuple[str, str]:
    """The counter's layer and term of a product; scores and values are one where they are fused."""
    if product.fused:
        layer = "hybrid" if product.module.startswith("hybrid") else "self-attention"
        return layer, "scores + values"
    return term_of(product.module, model)


def step_rows(
    name: str,
    model: fc.PerceiverAR,
    products: list[Product],
    kernels: list[Kernel],
    batch_size: int,
) -> Iterator[dict[str, Any]]:
    """Rows of a step: each product's kernels and operations beside what the levels say of it."""
    causal = level_by_term(model, "causal", batch_size)
    seen: collections.Counter[tuple[str, str, str]] = collections.Counter()
    joined = attributed(products, kernels)
    for product, _ in joined:
        if product is not None:
            seen[*term_of_product(product, model), product.phase] += 1
    for index, (product, group) in enumerate(joined):
        counts = [kernel.tensor_ops("bfloat16") for kernel in group]
        counted = None if None in counts else sum(count for count in counts if count is not None)
        row = {
            "model": name,
            "index": index,
            "kernel": " + ".join(kernel.name for kernel in group),
            "counted": "missing" if counted is None else counted,
        }
        if product is None:
            yield {**row, "verdict": "not attributed"}
            continue
        layer, term = term_of_product(product, model)
        key = (layer, term, product.phase)
        share = product.dense
        if product.fused or term in ("scores", "values"):
            # Equal layers share a term, and each launch has its part of the term's FLOPs.
            share = causal[key] // seen[key]
        executed = product.dense
        if product.fused:
            executed = _executed_of_fused(model, layer, product.phase, batch_size)
        yield {
            **row,
            "layer": layer,
            "term": term,
            "phase": product.phase,
            "causal": share,
            "dense": product.dense,
            "executed": executed,
            "verdict": verdict(executed, counted),
        }


def _executed_of_fused(model: fc.PerceiverAR, layer: str, phase: str, batch_size: int) -> int:
    """What the kernels of one attention call issue in one phase."""
    hybrid, _, plain = shapes_of_model(model, batch_size)
    by_kernel = executed_ops(hybrid if layer == "hybrid" else plain, working_dtype().itemsize)
    forward = by_kernel[KERNELS["forward"]]
    return forward if phase == "forward" else sum(by_kernel.values()) - forward


def level_by_term(
    model: fc.PerceiverAR, level: str, batch_size: int
) -> dict[tuple[str, str, str], int]:
    """FLOPs of a training step by layer, term and phase; scores and values also together."""
    flops: collections.Counter[tuple[str, str, str]] = collections.Counter()
    for row in model.flops(level=level, batch_size=batch_size).rows:
        flops[row.layer, row.term, row.phase] += row.flops
        if row.term in ("scores", "values"):
            flops[row.layer, "scores + values", row.phase] += row.flops
    return dict(flops)


def seed_model(name: str) -> fc.PerceiverAR:
    """A model of the article, or the tiny one, as the counter describes it."""
    if name == "tiny":
        return TINY
    return fc.PerceiverAR(num_latents=512, num_heads=8, prefix_dropout=0.5, **SEED_MODELS[name])


def one_step(
    model: fc.PerceiverAR, batch_size: int, attention: str
) -> tuple[PerceiverAR, Callable[[], None]]:
    """A network, and a call that runs a forward and a backward pass of it."""
    torch.manual_seed(0)
    network = PerceiverAR(**model.arguments(), attention=attention).to(device())
    length = model.num_prefix + model.num_latents
    tokens = torch.randint(model.vocab_size, (batch_size, length), device=device())

    def step() -> None:
        with torch.autocast(device().type, working_dtype(), enabled=torch.cuda.is_available()):
            logits = network(tokens)
        targets = tokens[:, -logits.shape[1] :]
        nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten()).backward()

    return network, step


def dispatched(network: nn.Module, step: Callable[[], None]) -> list[Product]:
    """The products of a step."""
    with Products(network) as recorded:
        step()
    return recorded.products
