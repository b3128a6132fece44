"""The counter's fine-tuning against real networks, transformers' and ours, as autograd runs them.

Of a network, parameters are frozen, LoRA is put beside linear layers (wrappers of our own) and
layers or parts of them are checkpointed; torch's FlopCounterMode then counts what the backward pass
executes. Nobody tells it which gradients are needed: autograd decides. What is trained is drawn by
kind of parameter, for the network by its modules, for the counter by its names.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import flopcount as fc
from flopcount.blocks import ACTIVATIONS
from flopcount.finetuning import ATTENTION_CORE, matches
from flopcount.testing import draw, models, scan_configs
from validate.witnesses import networks
from validate.witnesses.hugging_face import families
from validate.witnesses.hugging_face.families import Differences

FAMILIES = tuple(
    family
    for family in families.WITNESSED
    if family not in scan_configs.DRAWN and family != "llama4_text"
)
"""Families whose networks execute their mathematics: no padded chunks, no expert too many."""

FLAVOURS = {"reentrant": True, "non-reentrant": False}
MLP = ("mlp gate*", "mlp up*", "mlp down*", "mlp input gradients", "gate product", *ACTIVATIONS)
"""Terms of an MLP, from its first product to its last."""

MLP_LINEARS = ("mlp gate", "mlp up", "mlp down")
RECOMPUTED = (None, ATTENTION_CORE, MLP)
Kind = str
"""A kind of parameter: ``"norm"``, ``"bias"``, a table, or linear layers whose weight is one."""


class _AnyModule(contextlib.nullcontext[None]):
    """Takes the place of what attributes FLOPs to modules."""

    parents = ("Global",)


class _Totals(FlopCounterMode):
    """Totals alone: the hooks by which it tells modules apart fail where gradients are off."""

    def __init__(self) -> None:
        super().__init__(display=False)
        self.mod_tracker = _AnyModule()


class LoRA(nn.Module):
    """x·W + s·x·A·B, with W frozen: a linear layer of others with two matrices beside it.

    Args:
        base: An ``nn.Linear``, or GPT-2's, whose weight is transposed.
        rank: r.
    """

    def __init__(self, base: nn.Module, rank: int) -> None:
        super().__init__()
        self.base = base
        outputs, inputs = base.weight.shape
        if not isinstance(base, nn.Linear):
            outputs, inputs = inputs, outputs
        self.down = nn.Parameter(torch.randn(rank, inputs))
        self.up = nn.Parameter(torch.randn(outputs, rank))

    @property
    def weight(self) -> torch.Tensor:
        """W, which some networks ask for its dtype."""
        return self.base.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, inputs) -> (…, outputs)."""
        given = self.base(x)
        return given + 0.5 * functional.linear(functional.linear(x, self.down), self.up)


@dataclasses.dataclass(frozen=True)
class Choice:
    """What is tuned, drawn for one network.

    Attributes:
        kinds: Kinds of parameters that are trained.
        targets: Terms of linear layers beside which LoRA is.
        rank: r.
        frozen_layers: Layers without either.
        input_gradients: Whether what the embedding gives needs a gradient.
        recompute: What of layers is checkpointed.
    """

    kinds: frozenset[Kind]
    targets: tuple[str, ...]
    rank: int
    frozen_layers: int
    input_gradients: bool
    recompute: Any

    def tuning(self) -> fc.FineTuning:
        """The same for the counter."""
        kinds = self.kinds

        def trainable(layer: str, name: str) -> bool:
            return kind_of(layer, name) in kinds

        return fc.FineTuning(
            trainable=trainable,
            lora_rank=self.rank if self.targets else None,
            lora_targets=self.targets,
            frozen_layers=self.frozen_layers,
            input_gradients=self.input_gradients,
        )


def kind_of(layer: str, name: str) -> Kind:
    """The kind of a tensor of the counter."""
    for ending in ("norm bias", "norm", "bias", "positions", "token type"):
        if name.endswith(ending) and name != "position bias":
            return "positions" if ending == "token type" else ending
    return name


@dataclasses.dataclass(frozen=True)
class Placed:
    """A parameter of a network, as the counter calls it.

    Attributes:
        kind: Its kind; of linear layers that the network has fused, their names joined by +.
        layer: The index of its layer, from the network's first; None outside of layers.
    """

    kind: Kind
    layer: int | None


@dataclasses.dataclass(frozen=True)
class Tuneable:
    """A network to be tuned, and how the counter calls what it has.

    Attributes:
        network: What runs.
        run: Runs it forward; the results' sum is the loss.
        placed: Of each parameter.
        linears: Modules beside which LoRA may be, by term, with their layers.
        input_gradients: Makes what the embedding gives need a gradient.
        layers: Checkpoints layers, by flavour, while the context lasts.
        cores: Checkpoints attention between its projections.
        mlps: Modules that are an MLP and nothing else.
        checkpoints: Whether checkpointing changes nothing but what is executed again.
    """

    network: nn.Module
    run: Callable[[], torch.Tensor]
    placed: dict[str, Placed]
    linears: dict[str, list[tuple[str, int | None]]]
    input_gradients: Callable[[], object]
    layers: Callable[[bool], contextlib.AbstractContextManager[object]]
    cores: Callable[[bool], contextlib.AbstractContextManager[object]]
    mlps: tuple[nn.Module, ...]
    checkpoints: bool = True

    def draw(self, seed: int) -> Choice:
        """What is tuned: from nothing to everything, seldom either."""
        r = random.Random(seed)
        share = r.choice([0.0, 0.1, 0.3, 0.7])
        kinds = sorted({placed.kind for placed in self.placed.values()})
        chosen = {part for kind in kinds if r.random() < share for part in kind.split("+")}
        chosen -= {"token"} if r.random() < 0.7 else set()
        targets = [term for term in sorted(self.linears) if r.random() < 0.4]
        num_layers = 1 + max(p.layer for p in self.placed.values() if p.layer is not None)
        recompute = r.choice([None, None, *RECOMPUTED[1 : 3 if self.mlps else 2]])
        return Choice(
            kinds=frozenset(chosen),
            targets=tuple(targets) if r.random() < 0.6 else (),
            rank=r.randrange(1, 5),
            frozen_layers=r.choice([0, 0, r.randrange(num_layers + 1)]),
            input_gradients=r.random() < 0.3,
            recompute=recompute,
        )

    def tune(self, choice: Choice) -> int:
        """Freeze, adapt; gives the number of scalars that are trained."""
        for name, parameter in self.network.named_parameters():
            kind, layer = self.placed[name].kind, self.placed[name].layer
            unfrozen = layer is None or layer >= choice.frozen_layers
            parameter.requires_grad_(unfrozen and kind.split("+")[0] in choice.kinds)
        for term in choice.targets:
            for name, layer in self.linears[term]:
                if layer is None or layer >= choice.frozen_layers:
                    module = self.network.get_submodule(name)
                    self.network.set_submodule(name, LoRA(module, choice.rank))
        if choice.input_gradients:
            self.input_gradients()
        parameters = self.network.parameters()
        return sum(parameter.numel() for parameter in parameters if parameter.requires_grad)

    def passes(self) -> tuple[int, int]:
        """FLOPs of products of the forward pass and of the backward pass."""
        self.network.zero_grad()
        with _Totals() as forward:
            loss = self.run()
        with _Totals() as backward:
            if loss.requires_grad:
                loss.backward()
        return forward.get_total_flops(), backward.get_total_flops()

    def checkpointed(self, recompute: Any, reentrant: bool) -> Any:
        """The network with what ``recompute`` says checkpointed, while the context lasts."""
        if recompute is None:
            return self.layers(reentrant)
        if recompute == ATTENTION_CORE:
            return self.cores(reentrant)
        stack = contextlib.ExitStack()
        for module in self.mlps:
            again = functools.partial(checkpoint, module.forward, use_reentrant=reentrant)
            stack.enter_context(mock.patch.object(module, "forward", again))
        return stack


def compare(model: Any, tuneable: Tuneable, choice: Choice, batch_size: int) -> Differences:
    """Counter minus network: trained parameters, both passes, recomputation in both flavours."""
    tuning = choice.tuning()
    trained = tuneable.tune(choice)
    forward, backward = tuneable.passes()
    count = model.flops("dense", batch_size=batch_size, tuning=tuning)
    differences = {
        "trained parameters": model.params(tuning).trainable - trained,
        "forward": count.forward - forward,
        "backward": count.backward - backward,
    }
    recompute = choice.recompute
    if recompute == MLP:
        terms = {(term.layer, term.term) for of in (count, count.elementwise) for term in of.terms}
        recompute = [p for p in MLP if any(matches(*term, p) for term in terms)]
    for flavour, reentrant in FLAVOURS.items() if tuneable.checkpoints else ():
        options: dict[str, Any] = dict(checkpointing=flavour, recompute=recompute)
        with tuneable.checkpointed(choice.recompute, reentrant):
            seen = sum(tuneable.passes())
        try:
            again = model.flops("dense", batch_size=batch_size, tuning=tuning, **options)
        except ValueError as error:
            if not reentrant or "PyTorch would train nothing in it" not in str(error):
                raise
            lost = sum(p.requires_grad and p.grad is None for p in tuneable.network.parameters())
            differences["refused, but everything was trained"] = int(not lost)
        else:
            differences[f"recompute, {flavour}"] = again.recompute - (seen - forward - backward)
    return differences


def hugging_face(config: dict[str, Any], seq_len: int, target_len: int | None) -> Tuneable:
    """The network that transformers builds from a config, to be tuned.

    Args:
        config: The fields of a config.json.
        seq_len: Positions of a sequence.
        target_len: Of the decoder, where there are two stacks.
    """
    from validate.witnesses.hugging_face import networks as witness

    torch.manual_seed(0)
    network = witness.build(config, device="cpu")
    witness.require_countable(network)
    given = witness.inputs(
        network, seq_len=seq_len, batch_size=families.BATCH_SIZE, target_len=target_len
    )
    model = fc.from_hf(config, seq_len, target_len=target_len)
    encoder_layers = model.num_layers if target_len is not None else 0
    placed: dict[str, Placed] = {}
    linears: dict[str, list[tuple[str, int | None]]] = {}
    for module_name, module in network.named_modules():
        inside = families.IN_LAYER.search(module_name)
        layer = None
        if inside is not None:
            layer = int(inside[2]) + (encoder_layers if inside[1] == "decoder" else 0)
        for name, _ in module.named_parameters(recurse=False):
            kind = _kind(network, model, module_name, module, name)
            outside = kind in ("position bias", "token", "positions")
            placed[f"{module_name}.{name}".lstrip(".")] = Placed(kind, None if outside else layer)
            is_linear = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
            if is_linear and name == "weight" and "+" not in kind and kind != "token":
                linears.setdefault(kind, []).append((module_name, layer))

    def run() -> torch.Tensor:
        result = network(**given)
        outputs = [value for value in result.values() if isinstance(value, torch.Tensor)]
        return torch.stack([output.sum() for output in outputs]).sum()

    @contextlib.contextmanager
    def layers(reentrant: bool) -> Iterator[None]:
        # Not by the network's own method, which has the embedding's output need a gradient, too.
        again = functools.partial(checkpoint, use_reentrant=reentrant)
        network._set_gradient_checkpointing(True, again)
        yield
        network._set_gradient_checkpointing(False, again)

    @contextlib.contextmanager
    def cores(reentrant: bool) -> Iterator[None]:
        home = sys.modules[type(network).__module__]
        attend = home.eager_attention_forward

        def again(module: Any, query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> Any:
            call = functools.partial(_attend, attend, module, rest, options)
            return checkpoint(call, query, key, value, use_reentrant=reentrant)

        with mock.patch.object(home, "eager_attention_forward", again):
            yield

    in_mlps = [name for kind in MLP_LINEARS for name, _ in linears.get(kind, ())]
    mlps = tuple(
        module
        for name, module in network.named_modules()
        if name.endswith(".mlp")
        and f"{name}." in {f"{linear.rpartition('.')[0]}." for linear in in_mlps}
        and not any(isinstance(inner, nn.Dropout) for inner in module.modules())
    )
    # T5's code has cross-attention's bias, zeros, need a gradient where layers are checkpointed.
    checkpoints = target_len is None
    enable = network.enable_input_require_grads
    return Tuneable(network, run, placed, linears, enable, layers, cores, mlps, checkpoints)


def _attend(attend: Any, module: Any, rest: Any, options: Any, *operands: Any) -> Any:
    return attend(module, *operands, *rest, **options)


def _kind(network: Any, model: Any, module_name: str, module: nn.Module, name: str) -> Kind:
    """The kind of a parameter of a network of transformers."""
    if isinstance(module, nn.Embedding):
        if module_name.endswith("relative_attention_bias"):
            return "position bias"
        tokens = network.get_input_embeddings()
        return "token" if module.weight is tokens.weight else "positions"
    if "norm" in type(module).__name__.lower():
        return "norm bias" if name == "bias" else "norm"
    if name.endswith("bias"):
        return "bias"
    if name == "sinks":
        return "sinks"
    _, terms = families.placed(model, module_name)
    if len(terms) > 1:
        return terms[0] if name.startswith("gate_up") else terms[1]
    return terms[0]


def ours(model: Any, batch_size: int) -> Tuneable:
    """Our network of an architecture, to be tuned."""
    network = networks.build(model, device="cpu")
    tokens = networks.tokens(model, batch_size=batch_size, device="cpu")
    is_perceiver = isinstance(model, fc.PerceiverAR)
    placed: dict[str, Placed] = {}
    linears: dict[str, list[tuple[str, int | None]]] = {}
    for module_name, module in network.named_modules():
        layer = None
        if module_name.startswith("layers."):
            layer = int(module_name.split(".")[1]) + is_perceiver
        elif module_name.startswith("hybrid"):
            layer = 0
        for name, _ in module.named_parameters(recurse=False):
            if isinstance(module, nn.Embedding):
                table = module_name.split(".")[-1]
                kind = "token" if module is token_table(network) else "positions"
                assert table
            elif "norm" in type(module).__name__.lower():
                kind = "norm bias" if name == "bias" else "norm"
            elif name.endswith("bias"):
                kind = "bias"
            else:
                kind = networks.term_of(module_name, model)[1]
            placed[f"{module_name}.{name}".lstrip(".")] = Placed(kind, layer)
            if isinstance(module, nn.Linear) and name == "weight" and module_name != "output":
                linears.setdefault(kind, []).append((module_name, layer))

    @contextlib.contextmanager
    def layers(reentrant: bool) -> Iterator[None]:
        network.checkpointing = "reentrant" if reentrant else "non-reentrant"
        yield
        network.checkpointing = None

    @contextlib.contextmanager
    def cores(reentrant: bool) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for name, module in network.named_modules():
                if name.endswith("attention.attend"):
                    again = functools.partial(checkpoint, module.forward, use_reentrant=reentrant)
                    stack.enter_context(mock.patch.object(module, "forward", again))
            yield

    def needs_gradient(module: nn.Module, given: Any, output: torch.Tensor) -> torch.Tensor:
        return output.requires_grad_(True)

    return Tuneable(
        network,
        lambda: network(tokens).sum(),
        placed,
        linears,
        lambda: token_table(network).register_forward_hook(needs_gradient),
        layers,
        cores,
        (),
    )


def token_table(network: nn.Module) -> nn.Module:
    """The token embedding of one of our networks."""
    tables = [module for module in network.modules() if isinstance(module, nn.Embedding)]
    return tables[0]


def of_families(quick: bool) -> Iterable[tuple[str, Differences]]:
    """Differences on drawn configs of every family, each tuned in several drawn ways.

    Args:
        quick: A few of each.
    """
    for family in FAMILIES:
        for number, case in enumerate(families.drawn(family, 1 if quick else 12)):
            for way in range(1 if quick else 3):
                yield from _tried(case, 100 * number + way)


def _tried(case: families.Case, seed: int) -> Iterator[tuple[str, Differences]]:
    place = case.config, case.seq_len, case.target_len
    tuneable = hugging_face(*place)
    choice = tuneable.draw(seed)
    if choice.recompute == ATTENTION_CORE and not has_core(tuneable):
        choice = dataclasses.replace(choice, recompute=None)
    model = fc.from_hf(case.config, case.seq_len, target_len=case.target_len)
    yield f"{case}, {choice}", compare(model, tuneable, choice, families.BATCH_SIZE)


def has_core(tuneable: Tuneable) -> bool:
    """Whether transformers' code has attention between its projections in a function."""
    return hasattr(sys.modules[type(tuneable.network).__module__], "eager_attention_forward")


def of_ours(quick: bool) -> Iterable[tuple[str, Differences]]:
    """Differences on drawn models of ours, each tuned in a drawn way.

    Args:
        quick: A few.
    """
    drawn = draw(models(), 20 if quick else 300)
    for seed, model in enumerate(drawn):
        tuneable = ours(model, families.BATCH_SIZE)
        choice = tuneable.draw(seed)
        yield f"{model}, {choice}", compare(model, tuneable, choice, families.BATCH_SIZE)
