"""What a PyTorch module executes, counted as it runs: a meter, not a witness.

It is torch's FlopCounterMode with its known gaps closed (:data:`GAPS`), every product attributed to
the module that multiplies, in the backward pass too, and a list of what could not be counted, which
FlopCounterMode reports as 0. Its counts and the counter's formulas are the same objects, so that
they subtract term by term. Nothing that proves a formula may use it.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import fnmatch
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from flopcount import extras
from flopcount.count import Count, Term
from flopcount.masks import Causal
from flopcount.rows import Phase, Row
from flopcount.sizes import quoted, require_choice, require_flag, require_int
from flopcount.tables import Table

try:
    import torch
    from torch import nn
    from torch.utils._pytree import tree_flatten
    from torch.utils.flop_counter import FlopCounterMode
except ModuleNotFoundError as error:
    raise ImportError(extras.advice(error)) from error

__all__ = ["GAPS", "ModuleCount", "Uncounted", "count", "counting"]

LEVELS = ("dense", "causal")
ITSELF, OUTSIDE = "(itself)", "(outside)"
"""The paths of products of the module itself, not of one in it, and of none."""
SOURCE = "measured: the operands of the operators that PyTorch dispatched"

GAPS: dict[str, str] = {
    "aten::_scaled_dot_product_flash_attention_for_cpu": "fused attention on a CPU: counted as 0",
    "aten::_scaled_dot_product_fused_attention_overrideable": "fused attention: counted as 0",
    "aten::_scaled_dot_product_*_backward": (
        "fused attention, backward: scores that the kernel multiplies again are counted with the "
        "gradients, though no level counts them"
    ),
    "aten::convolution_backward": "the gradient of a grouped convolution's filters: groups ignored",
    "aten::_grouped_mm": "grouped products, as of experts: counted as 0",
    "aten::_scaled_grouped_mm": "grouped products of 8-bit floats: counted as 0",
    "transformers::grouped_mm_fallback": "transformers' grouped products of experts: counted as 0",
    "aten::mv, addmv, dot, vdot, addbmm, _int_mm": "products with vectors, sums of products: as 0",
    "aten::addmm_, baddbmm_, addmv_, addbmm_": "products added in place: counted as 0",
    "attention with is_causal or a mask": "never discounted: level='causal' counts admitted pairs",
}
"""What torch's FlopCounterMode counts wrongly, by operator, and is counted exactly here."""

_MULTIPLIES = re.compile(
    r"(^|_)([a-z]*mm|[a-z]*mv|v?dot|conv(\dd|_tbc)?|convolution|conv_depthwise\dd|attention|"
    r"rnn|lstm|gru|linear|cdist|matmul|fft_[cr]2[cr]|cholesky|trilinear|addr|geqrf|ormqr|"
    r"[a-z]*solve|linalg)(_|$)"
)
"""Names of PyTorch's own operators that multiply matrices, whatever else is known of them."""

_MULTIPLIES_NOTHING = re.compile(
    r"aten::(linalg_(vector_norm|cross|_powsum)|_linalg_check_errors|_cudnn_rnn_flatten_weight|"
    r"mkldnn_reorder_.*)|(prims?|c10d|_c10d_functional|profiler|debugprims)::.*|"
    r"flopcount::prepare_attention"
)
"""Names of operators that do not, whatever they are called."""

_OF_SEVERAL_TENSORS = re.compile(
    r"(^|_)(softmax|softplus|softshrink|hard[a-z]+|elu|gelu|glu|mish|silu|relu|prelu|sigmoid|"
    r"tanh|threshold|norm|stats|elemt|reduce|loss|loss\dd|cross|entropy|embedding|bag|index|indices|"
    r"gather|scatter|put|take|select|slice|diagonal|[a-z]*pool\dd|pad|padded|pad\dd|upsample|"
    r"sampler|dropout|copy|set|cat|stack|resize|mask|masked|unique|searchsorted|sort|bucketize|"
    r"quantize|fake|foreach|fused_(adam|adamw|sgd|adagrad)|amp|assert|hist[a-z]*|repeat|complex|"
    r"polar|bernoulli|normal|uniform|binomial|allclose|isin|same|where|lerp|renorm|dist|"
    r"[a-z]*fill|choice|floor_divide|copysign|linspace|logspace|bincount)(_|$)"
)
"""Names of PyTorch's own operators that combine tensors without multiplying matrices."""


@dataclasses.dataclass(frozen=True)
class Uncounted:
    """An operator that was seen and could not be counted, or not at the level that was asked for.

    Attributes:
        operator: Its name, for example ``"mylib::attention"``.
        module: The path of the module that executed it.
        calls: How often.
        reason: Why.

    """

    operator: str
    module: str
    calls: int
    reason: str

    def __str__(self) -> str:
        return f"{self.operator} in {self.module}, {self.calls} times: {self.reason}"


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was counted, as tables name it.

    Attributes:
        title: The module's class.
        num_parameters: Scalars of all parameters, tied ones once.

    """

    title: str
    num_parameters: int

    def arguments(self) -> dict[str, Any]:
        """It as plain data."""
        return vars(self)


@dataclasses.dataclass(frozen=True)
class MeasuredTerm(Term):
    """A term of a measured count: the products of a module.

    Attributes:
        again: FLOPs executed again under activation checkpointing.

    """

    again: int = 0

    @property
    def recompute(self) -> int:
        """FLOPs executed again under activation checkpointing."""
        return self.again


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ModuleCount(Count):
    """FLOPs of what a module executed, term by term.

    A term's layer is the module's path and its name the operator; ``names`` gives them the
    counter's. A term whose operator only torch's own formula counts has no rows.

    Attributes:
        not_counted: What was seen and could not be counted: the totals lack it.

    """

    not_counted: tuple[Uncounted, ...] = ()

    def _tables(self) -> list[Table | str]:
        lines = [f"not counted: {uncounted}" for uncounted in self.not_counted]
        return super()._tables() + (["\n".join(lines)] if lines else [])


@dataclasses.dataclass(frozen=True)
class _Product:
    """M × K by K × N, ``batch`` times.

    Attributes:
        label: Of the term, where the operator's name does not tell.
        place: Which of its operator's products it is, or is the gradient of.
    """

    batch: int
    M: int
    N: int
    K: int
    pairs: int | None = None
    label: str = ""
    place: int = 0


@dataclasses.dataclass(frozen=True)
class _Call:
    """An operator that has been executed.

    Attributes:
        given: Its arguments by name.
        out: What it returned.
        causal: Whether masks count.
        notes: Reasons why it is not counted as asked; a formula adds to them.
    """

    given: dict[str, Any]
    out: Any
    causal: bool
    notes: list[str] = dataclasses.field(default_factory=list)

    def __getitem__(self, name: str) -> Any:
        return self.given[name]


_Formula = Callable[[_Call], list[_Product]]


def _matrices(left: str, right: str) -> _Formula:
    """(batch, M, K) by (batch, K, N), each of fewer dimensions too."""

    def formula(call: _Call) -> list[_Product]:
        a, b = call[left].shape, call[right].shape
        batch = a[0] if len(a) == 3 else 1
        return [_Product(batch, a[-2] if len(a) > 1 else 1, b[-1] if len(b) > 1 else 1, a[-1])]

    return formula


def _grouped(left: str, right: str) -> _Formula:
    """Rows of one factor multiplied by the matrix of their group.

    Groups end at offsets along the dimension that both factors do not share: (T, K) by (E, K, N);
    (E, M, K) by (K, T); (M, T) by (T, N) for E sums over T. With (E, M, K) by (E, K, N), all.
    """

    def formula(call: _Call) -> list[_Product]:
        a, b = call[left].shape, call[right].shape
        batch = a[0] if len(a) == len(b) == 3 else 1
        return [_Product(batch, a[-2], b[-1], a[-1])]

    return formula


def _grouped_backward(call: _Call) -> list[_Product]:
    """The gradients of both factors of (T, K) by (E, K, N)."""
    rows, depth = call["input"].shape
    return 2 * [_Product(1, rows, call["weight"].shape[-1], depth)]


def _convolution(weight: Sequence[int], positions: Sequence[int], batch: int, call: _Call) -> Any:
    """A product per position and group: of the output, or, transposed, of the input."""
    groups = call["groups"]
    if call["transposed"]:  # (C_in, C_out / g, *filter)
        depth, columns = weight[0] // groups, weight[1] * math.prod(weight[2:])
    else:  # (C_out, C_in / g, *filter)
        columns, depth = weight[0] // groups, weight[1] * math.prod(weight[2:])
    return _Product(groups, batch * math.prod(positions), columns, depth)


def _convolution_forward(call: _Call) -> list[_Product]:
    own = call["input"] if call["transposed"] else call.out
    batched = call["input"].ndim == call["weight"].ndim
    batch, positions = (own.shape[0], own.shape[2:]) if batched else (1, own.shape[1:])
    return [_convolution(call["weight"].shape, positions, batch, call)]


def _convolution_backward(call: _Call) -> list[_Product]:
    own = call["input"] if call["transposed"] else call["grad_output"]
    product = _convolution(call["weight"].shape, own.shape[2:], own.shape[0], call)
    gradients: int = sum(call["output_mask"][:2])
    return gradients * [product]


def _attention(times: int) -> _Formula:
    """Scores and values of scaled dot-product attention, ``times`` each."""

    def formula(call: _Call) -> list[_Product]:
        batch, heads, queries, depth = call["query"].shape
        keys, value_dim = call["value"].shape[-2:]
        size: dict[str, Any] = dict(batch=batch * heads, M=queries, N=keys)
        if call.causal:
            size |= _admitted(call, batch * heads, queries, keys)
        return times * [
            _Product(**size, K=depth, label="scores"),
            _Product(**size, K=value_dim, label="values", place=1),
        ]

    return formula


def _admitted(call: _Call, times: int, queries: int, keys: int) -> dict[str, Any]:
    """The pairs that a mask admits; ``is_causal`` is aligned at the first query and key."""
    if call.given.get("is_causal"):
        square = min(queries, keys)
        return dict(pairs=square * (square + 1) // 2 + (queries - square) * keys)
    mask = call.given.get("attn_mask")
    mask = call.given.get("attn_bias") if mask is None else mask
    if mask is None:
        return {}
    if mask.device.type == "meta" or type(mask) is not torch.Tensor:
        call.notes.append("its mask holds no data: counted in whole")
        return {}
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    pairs = int(seen.expand(*call["query"].shape[:2], queries, keys).sum())
    return dict(batch=1, M=times * queries, pairs=pairs)


def _own_attention(shape: Callable[[_Call], Sequence[int]], times: int) -> _Formula:
    """This project's fused attention: causal, right-aligned, over a prefix that may be apart."""

    def formula(call: _Call) -> list[_Product]:
        batch, queries, heads, depth = shape(call)
        prefix = call["prefix_k"]
        keys = call["k"].shape[1] + (0 if prefix is None else prefix.shape[1])
        pairs: Any = Causal().pairs(queries, keys) if call.causal else None
        products = [
            _Product(batch * heads, queries, keys, depth, pairs, label, place)
            for place, label in enumerate(("scores", "values"))
        ]
        return times * products

    return formula


_FUSED = ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu")
_FORMULAS: dict[str, _Formula] = (
    {f"aten::{name}": _matrices("self", "mat2") for name in ("mm", "bmm", "_int_mm", "_scaled_mm")}
    | {f"aten::{name}": _matrices("mat1", "mat2") for name in ("addmm", "addmm_")}
    | {f"aten::{name}": _matrices("mat", "vec") for name in ("addmv", "addmv_")}
    | {
        f"aten::{name}": _matrices("batch1", "batch2")
        for name in ("baddbmm", "baddbmm_", "addbmm", "addbmm_")
    }
    | {
        "aten::_addmm_activation": _matrices("mat1", "mat2"),
        "aten::mv": _matrices("self", "vec"),
        "aten::dot": _matrices("self", "tensor"),
        "aten::vdot": _matrices("self", "other"),
        "aten::_grouped_mm": _grouped("self", "mat2"),
        "aten::_scaled_grouped_mm": _grouped("self", "mat2"),
        "aten::convolution": _convolution_forward,
        "aten::convolution_backward": _convolution_backward,
        "aten::_scaled_dot_product_fused_attention_overrideable": _attention(1),
        "aten::_scaled_dot_product_fused_attention_overrideable_backward": _attention(2),
        "transformers::grouped_mm_fallback": _grouped("input", "weight"),
        "transformers::grouped_mm_fallback_backward": _grouped_backward,
        "flopcount::attention": _own_attention(lambda call: call.out[0].shape, 1),
        "flopcount::attention_backward": _own_attention(lambda call: call["grad_out"].shape, 2),
    }
    | {f"aten::_scaled_dot_product_{name}": _attention(1) for name in _FUSED}
    | {f"aten::_scaled_dot_product_{name}_backward": _attention(2) for name in _FUSED}
)
"""Operators by name: one that nobody has registered is never met."""


@dataclasses.dataclass
class _Frame:
    """A module that is running forward.

    Attributes:
        module: Its path.
        in_backward: Whether it was entered during a backward pass, to compute something again.
        products: How many it has executed in this call.
        labels: How many of each label.
    """

    module: str
    in_backward: bool
    products: int = 0
    labels: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


@dataclasses.dataclass(frozen=True)
class _Place:
    """A product of a module's forward pass: its number within a call, and its label.

    Attributes:
        multiplies: Whether it is one, or an operator whose gradients may be.
    """

    module: str
    number: int
    label: str
    multiplies: bool = True


@dataclasses.dataclass(frozen=True)
class _Entry:
    """FLOPs of a product that was executed; the product, where its sizes are known."""

    place: _Place
    phase: Phase
    flops: int
    product: _Product | None


class _Counter(FlopCounterMode):
    """FlopCounterMode that attributes what it sees, and says what it does not count."""

    def __init__(self, module: nn.Module, causal: bool, custom_mapping: Any) -> None:
        super().__init__(display=False, custom_mapping=custom_mapping)
        self.causal = causal
        self.custom = set(custom_mapping or ())
        self.entries: list[_Entry] = []
        self.uncounted: collections.Counter[tuple[str, str, str]] = collections.Counter()
        self._paths = {own: path or ITSELF for path, own in module.named_modules()}
        self._frames: list[_Frame] = []
        self._outside = _Frame(OUTSIDE, in_backward=False)
        # The node of the backward pass, by its number, that a forward product has made.
        self._places: dict[int, list[_Place]] = {}
        self._hooks = contextlib.ExitStack()

    def __enter__(self) -> _Counter:
        hooks = (
            nn.modules.module.register_module_forward_pre_hook(self._enter),
            nn.modules.module.register_module_forward_hook(self._leave, always_call=True),
        )
        for hook in hooks:
            self._hooks.callback(hook.remove)
        # One thread: numbers of nodes are each thread's own.
        self._hooks.enter_context(torch.autograd.set_multithreading_enabled(False))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> Any:
        with self._hooks:
            return super().__exit__(*exception)  # type: ignore[no-untyped-call]

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        if module in self._paths:
            self._frames.append(_Frame(self._paths[module], self._in_backward()))
        else:  # a module that is none of those counted: what it does is its caller's
            self._frames.append(self._frames[-1] if self._frames else self._outside)

    def _leave(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        self._frames.pop()

    @staticmethod
    def _in_backward() -> bool:
        return torch._C._current_graph_task_id() != -1

    def _count_flops(self, func_packet: Any, out: Any, args: Any, kwargs: Any) -> Any:
        frame = self._frames[-1] if self._frames else self._outside
        again = frame.in_backward or torch.is_grad_enabled()
        if self._in_backward() and not again:
            number = torch._C._current_autograd_node()._sequence_nr()
            self._record("backward", func_packet, out, args, kwargs, self._places.get(number, []))
            return out
        phase: Phase = "recompute" if self._in_backward() else "forward"
        places = self._record(phase, func_packet, out, args, kwargs, None)
        # The node made last is the operator's own, or, of one within a function with a backward
        # pass of its own, the function's. Where no node was made, the last one's products come
        # first, so that they keep their gradients.
        number = torch.autograd._get_sequence_nr() - 1  # type: ignore[attr-defined]
        known = self._places.setdefault(number, [])
        if not known or places[0].multiplies:
            known.extend(places)
        return out

    def _record(
        self, phase: Phase, packet: Any, out: Any, args: Any, kwargs: Any, of: list[_Place] | None
    ) -> list[_Place]:
        """Record an operator's products, in new places or, of a gradient, in those given."""
        frame = self._frames[-1] if self._frames else self._outside
        name = str(getattr(packet, "_qualified_op_name", getattr(packet, "__name__", packet)))
        label = name.rpartition("::")[2].lstrip("_")
        products: list[tuple[int, _Product | None]]
        of = of and sorted(of, key=lambda place: not place.multiplies)
        module = of[0].module if of else frame.module
        if name in _FORMULAS and packet not in self.custom:
            call = _Call(_bound(packet, args, kwargs), out, self.causal)
            products = [(_flops(product), product) for product in _FORMULAS[name](call)]
            reasons = call.notes
        elif packet in self.flop_registry:
            products = [(int(self.flop_registry[packet](*args, **kwargs, out_val=out)), None)]
            discounts = self.causal and "attention" in name and packet not in self.custom
            reasons = ["its mask is not discounted: counted in whole"] if discounts else []
        else:
            reasons = (
                [] if _multiplies_nothing(packet, name) else ["no formula for it: counted as 0"]
            )
            products = []
        for reason in reasons:
            self.uncounted[name, module, reason] += 1
        places: list[_Place] = []
        for flops, product in products:
            index = product.place if product else 0
            if of:
                place = of[min(index, len(of) - 1)]
            else:
                if index == len(places):
                    own = product.label if product and product.label else label
                    places.append(self._new_place(frame, own))
                place = places[index]
            self.entries.append(_Entry(place, phase, flops, product))
        return places or [_Place(frame.module, frame.products, label, multiplies=False)]

    @staticmethod
    def _new_place(frame: _Frame, label: str) -> _Place:
        frame.labels[label] += 1
        times = frame.labels[label]
        place = _Place(frame.module, frame.products, f"{label} {times}" if times > 1 else label)
        frame.products += 1
        return place


def _bound(packet: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """An operator's arguments by name, defaults included."""
    overload = getattr(packet, packet.overloads()[0])
    names = [argument.name for argument in overload._schema.arguments]
    defaults = {
        argument.name: argument.default_value
        for argument in overload._schema.arguments
        if argument.has_default_value()
    }
    return defaults | dict(zip(names, args, strict=False)) | dict(kwargs)


def _flops(product: _Product) -> int:
    pairs = product.M * product.N if product.pairs is None else product.pairs
    return 2 * product.batch * product.K * pairs


@functools.cache
def _multiplies_nothing(packet: Any, name: str) -> bool:
    """Whether an operator is known to execute no product; one that is not known may.

    PyTorch's own operators act element by element, view, have one tensor alone, or are known by
    their names; of others nothing is known.

    >>> for name in ("add", "sum", "native_layer_norm", "_cudnn_rnn", "linalg_qr"):
    ...     print(name, _multiplies_nothing(getattr(torch.ops.aten, name), f"aten::{name}"))
    add True
    sum True
    native_layer_norm True
    _cudnn_rnn False
    linalg_qr False
    """
    library, _, own = name.partition("::")
    if _MULTIPLIES_NOTHING.fullmatch(name):
        return True
    if library != "aten" or _MULTIPLIES.search(own):
        return False
    overloads = [getattr(packet, overload) for overload in packet.overloads()]
    if any(torch.Tag.pointwise in overload.tags or overload.is_view for overload in overloads):
        return True
    arguments = overloads[0]._schema.arguments
    tensors = sum("Tensor" in str(argument.type) for argument in arguments)
    return tensors < 2 or _OF_SEVERAL_TENSORS.search(own) is not None


class Counting:
    """What :func:`counting` gives: :attr:`count`, once the block has ended."""

    def __init__(self, counter: _Counter, make: Callable[[_Counter], ModuleCount]) -> None:
        self._counter = counter
        self._make = make
        self._count: ModuleCount | None = None

    def finish(self) -> None:
        """End the counting."""
        self._count = self._make(self._counter)

    @property
    def count(self) -> ModuleCount:
        """What the block executed.

        Raises:
            ValueError: If the block has not ended.

        """
        if self._count is None:
            raise ValueError("count: expected the end of the block that is counted")
        return self._count


@contextlib.contextmanager
def counting(
    module: nn.Module,
    *,
    level: str = "dense",
    batch_size: int = 1,
    tokens: int | None = None,
    names: Mapping[str, Sequence[str]] | None = None,
    custom_mapping: Mapping[Any, Callable[..., int]] | None = None,
) -> Iterator[Counting]:
    """Count what a block executes: any passes of a module, forward and backward.

    Args:
        module: Whose submodules name the terms.
        level: ``"dense"``, every product as its operator has it, or ``"causal"``: of fused
            attention only the pairs that ``is_causal`` or a mask admits. An attention that is not
            fused consists of products like any other, which are counted in whole at both.
        batch_size: Sequences of the block, for ``per_sequence``.
        tokens: Of the block, for ``per_token``; ``batch_size`` unless given.
        names: The counter's names: by a pattern of paths, a layer and the terms of the products
            that such a module executes, in order, as in ``{"layers.*.query": ("decoder",
            "query")}``. A ``*`` stands for anything within a name, ``"(itself)"`` for what
            ``module`` executes itself, and a term ``"query+key"`` for two in one product.
        custom_mapping: FLOPs of operators of one's own, as FlopCounterMode takes them: by the
            operator, a function of the arguments' shapes and of ``out_shape``.

    Yields:
        What has the :class:`ModuleCount` as ``count`` when the block has ended.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the level is unknown, the module is compiled (compiled code dispatches no
            operators that could be seen), or a module executes more products than ``names`` has.

    >>> import torch
    >>> network = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU())
    >>> with counting(network, batch_size=5) as counted:
    ...     loss = network(torch.ones(5, 8)).sum()
    ...     loss.backward()  # the gradient of the weights alone: that of the input is not asked for
    >>> counted.count.forward, counted.count.backward  # 2·5·8·16, and once again
    (1280, 1280)

    """
    require_module(module)
    for path, submodule in module.named_modules():
        if getattr(submodule, "_compiled_call_impl", None) or hasattr(submodule, "_orig_mod"):
            raise ValueError(
                f"module {path or type(module).__name__} is compiled, and what it executes is not "
                "dispatched: expected the module as it was before torch.compile"
            )
    require_choice("level", level, LEVELS)
    batch_size = require_int("batch_size", batch_size)
    tokens = batch_size if tokens is None else require_int("tokens", tokens)
    patterns = _patterns(names)
    if not isinstance(custom_mapping, Mapping | None):
        raise TypeError(f"custom_mapping = {quoted(custom_mapping)}: expected a mapping, or None")

    def make(counter: _Counter) -> ModuleCount:
        terms = tuple(_terms(counter.entries, patterns))
        return ModuleCount(
            model=Measured(type(module).__name__, sum(p.numel() for p in module.parameters())),
            level=level,
            convention=None,
            terms=terms,
            training=any(entry.phase == "backward" for entry in counter.entries),
            checkpointing="as executed" if any(term.again for term in terms) else None,
            batch_size=batch_size,
            tokens=tokens,
            not_counted=tuple(
                Uncounted(operator, path, calls, reason)
                for (operator, path, reason), calls in counter.uncounted.items()
            ),
        )

    counter = _Counter(module, level == "causal", custom_mapping)
    counted = Counting(counter, make)
    with counter:
        yield counted
    counted.finish()


def count(
    module: nn.Module,
    *inputs: Any,
    level: str = "dense",
    backward: bool = True,
    keywords: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    tokens: int | None = None,
    names: Mapping[str, Sequence[str]] | None = None,
    custom_mapping: Mapping[Any, Callable[..., int]] | None = None,
) -> ModuleCount:
    """Count one call of a module, and the backward pass from what it returns.

    The module runs once: with its random numbers, in the mode that it is in, on the device that it
    is on (on the meta device nothing is computed). Its gradients are left as they were.

    Args:
        module: Any module.
        *inputs: What it is called with.
        level: As of :func:`counting`.
        backward: Whether the backward pass runs, from the sum of all that the call returns and that
            requires a gradient.
        keywords: What the module is called with by name.
        batch_size: Sequences; the first size of the first tensor unless given.
        tokens: Tokens that predict; all elements of the first tensor if it holds integers, else
            ``batch_size``, unless given.
        names: As of :func:`counting`.
        custom_mapping: As of :func:`counting`.

    Returns:
        A :class:`ModuleCount`: a :class:`~flopcount.count.Count` with ``not_counted``.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: As :func:`counting`, and if nothing that is returned requires a gradient.

    >>> import torch
    >>> measured = count(torch.nn.Linear(8, 16, bias=False), torch.ones(5, 8))
    >>> [(term.layer, term.term, term.forward, term.backward) for term in measured.terms]
    [('(itself)', 'mm', 1280, 1280)]

    """
    require_flag("backward", backward)
    if not isinstance(keywords, Mapping | None):
        raise TypeError(f"keywords = {quoted(keywords)}: expected a mapping, or None")
    require_module(module)
    called = dict(keywords or {})
    tensors = [x for x in tree_flatten((inputs, called))[0] if isinstance(x, torch.Tensor)]
    if batch_size is None:
        batch_size = next((x.shape[0] for x in tensors[:1] if x.ndim), 1)
    if tokens is None and tensors and not tensors[0].is_floating_point():
        tokens = tensors[0].numel()
    options: Any = dict(names=names, custom_mapping=custom_mapping)
    with (
        counting(module, level=level, batch_size=batch_size, tokens=tokens, **options) as counted,
        _gradients_kept((*module.parameters(), *tensors)),
        torch.set_grad_enabled(backward),
    ):
        returned = module(*inputs, **called)
        if backward:
            _sum(returned).backward()  # type: ignore[no-untyped-call]
    return counted.count


def require_module(module: object) -> None:
    """Raise a TypeError unless it is a module."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"module = {quoted(module)}: expected a torch.nn.Module")


def _sum(returned: Any) -> torch.Tensor:
    sums = [
        x.sum()
        for x in tree_flatten(returned)[0]
        if isinstance(x, torch.Tensor) and x.requires_grad
    ]
    if not sums:
        raise ValueError("nothing that the module returns requires a gradient: give backward=False")
    return torch.stack([x.float() for x in sums]).sum()


@contextlib.contextmanager
def _gradients_kept(tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    leaves = [x for x in tensors if x.is_leaf and x.requires_grad]
    kept = [leaf.grad for leaf in leaves]
    try:
        for leaf in leaves:
            leaf.grad = None
        yield
    finally:
        for leaf, grad in zip(leaves, kept, strict=True):
            leaf.grad = grad


def _patterns(
    names: Mapping[str, Sequence[str]] | None,
) -> list[tuple[re.Pattern[str], tuple[str, ...]]]:
    """Patterns of paths, and the layer and terms of each."""
    if not isinstance(names, Mapping | None):
        raise TypeError(f"names = {quoted(names)}: expected a mapping from paths, or None")
    patterns = []
    for pattern, named in (names or {}).items():
        words = tuple(named) if isinstance(named, list | tuple) else ()
        if len(words) < 2 or not all(isinstance(word, str) for word in (pattern, *words)):
            raise TypeError(
                f"names[{quoted(pattern)}] = {quoted(named)}: expected a layer and its terms, such "
                "as ('decoder', 'query')"
            )
        within = fnmatch.translate(pattern).replace(".*", r"[^.]*")
        patterns.append((re.compile(within), words))
    return patterns


def _terms(
    entries: Sequence[_Entry], patterns: Sequence[tuple[re.Pattern[str], tuple[str, ...]]]
) -> Iterator[MeasuredTerm]:
    """Terms in the order in which they were first executed."""
    by_name: dict[tuple[str, str], list[_Entry]] = {}
    for entry in entries:
        by_name.setdefault(_named(entry.place, patterns), []).append(entry)
    for (layer, term), own in by_name.items():
        flops = collections.Counter[str]()
        for entry in own:
            flops[entry.phase] += entry.flops
        rows = tuple(
            Row("self", layer, term, p.batch, p.M, p.N, p.K, entry.phase, p.pairs)
            for entry in own
            if (p := entry.product) is not None
        )
        yield MeasuredTerm(
            "self", layer, term, flops["forward"], flops["backward"], bool(flops["recompute"]),
            SOURCE, rows if len(rows) == len(own) else (), again=flops["recompute"],
        )  # fmt: skip


def _named(
    place: _Place, patterns: Sequence[tuple[re.Pattern[str], tuple[str, ...]]]
) -> tuple[str, str]:
    for pattern, (layer, *terms) in patterns:
        if pattern.match(place.module):
            if place.number >= len(terms):
                raise ValueError(
                    f"names has {len(terms)} terms for {place.module}: expected more, since its "
                    f"product {place.number + 1} is {place.label}"
                )
            return layer, terms[place.number]
    return place.module, place.label
