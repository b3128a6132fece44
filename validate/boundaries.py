"""Fuzz every public boundary with bad inputs: ``python -m validate.boundaries --calls 100000``.

Each call draws a public function or a command with arguments that may be wrong in any way: of
another type, huge, negative, NaN, infinite, arrays that do not broadcast, objects whose methods
raise. It has to give a right count or a ``ValueError`` or ``TypeError`` with a message; another
exception, a hang or a wrong number is a failure. Right counts are judged by arithmetic that stands
here and shares nothing with the counter.
"""

from __future__ import annotations

import collections
import contextlib
import csv
import dataclasses
import functools
import io
import math
import random
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import sympy
import torch
import tyro

import flopcount as fc
from flopcount import testing
from flopcount.architectures import ARCHITECTURES, Choice, Dimension, Flag, Pattern
from flopcount.cli import COMMANDS, TAKE_A_MODEL
from flopcount.cli import main as command_line
from flopcount.commands import defaults_of
from flopcount.conventions import CONVENTIONS
from flopcount.hf import FAMILIES
from flopcount.inference import expected_tokens_per_round
from flopcount.isoflop.laws import CHINCHILLA_SURFACE, ScalingLaw
from flopcount.isoflop.plan import budget_from_gpu_hours
from flopcount.sizes import is_array, is_symbolic
from flopcount.tables import table

SECONDS_PER_CALL = 20


class RaisingIndex:
    """Claims to be an integer and raises when asked."""

    def __index__(self) -> int:
        raise RuntimeError("bad __index__")

    __int__ = __float__ = __index__


class LyingIndex:
    """Claims to be a different integer every time."""

    def __index__(self) -> int:
        return random.randrange(1, 100)

    __int__ = __index__

    def __mul__(self, other: object) -> int:
        return 1

    __rmul__ = __add__ = __radd__ = __mod__ = __floordiv__ = __mul__

    def __ge__(self, other: object) -> bool:
        return True

    __gt__ = __ge__


class RaisingRepr:
    """Cannot even be quoted."""

    def __repr__(self) -> str:
        raise RuntimeError("bad __repr__")


class IntSubclass(int):
    """An int whose arithmetic is not an int's."""

    def __mul__(self, other: object) -> int:
        return 0

    __rmul__ = __mul__


def bad_values(random_state: random.Random) -> list[Any]:
    """One drawn value of each kind that no size, fraction, name or flag may be."""
    r = random_state
    return [
        True,
        False,
        None,
        0,
        -1,
        -(10**40),
        r.uniform(-2, 5),
        float(r.randrange(1, 100)),
        float("nan"),
        float("inf"),
        -float("inf"),
        1e308,
        "512",
        "",
        "causal\x00",
        b"8",
        "é" * 200,
        [8],
        (8, 16),
        {"n": 8},
        {8},
        range(3),
        1 + 2j,
        Fraction(7, 2),
        object(),
        RaisingIndex(),
        LyingIndex(),
        RaisingRepr(),
        IntSubclass(8),
        int,
        len,
        np.array([]),
        np.array([1.5, 2.0]),
        np.array([np.nan]),
        np.array([True, False]),
        np.array(["8"]),
        np.array([8, "x", None], dtype=object),
        np.array([1 + 1j]),
        np.array([np.datetime64("2020-01-01")]),
        np.array([0, 3]),
        np.array([-1]),
        np.array([8, 16, 24]),
        np.array([[8, 16]]),
        np.float32(8),
        np.bool_(True),
        np.datetime64("2020-01-01"),
        sympy.Float(8.0),
        sympy.pi,
        sympy.oo,
        sympy.nan,
        sympy.zoo,
        sympy.Integer(-3),
        sympy.Rational(1, 2),
        sympy.I,
        sympy.true,
        sympy.Symbol("x", negative=True),
        sympy.Symbol("y", integer=False),
        sympy.Symbol("M", commutative=False),
        sympy.Matrix([[1]]),
        sympy.Symbol("z") > 0,
    ]


def good_size(r: random.Random, kind: str) -> Any:
    """A legal size: an int of any magnitude, a NumPy integer, an array or a symbol."""
    if kind == "array":
        dtype = r.choice([np.int8, np.uint8, np.int16, np.int32, np.int64, np.uint64, object])
        return np.array([r.randrange(1, 120) for _ in range(3)], dtype=dtype)
    if kind == "symbol":
        return sympy.Symbol(r.choice("nmdLV"), integer=True, positive=True)
    return r.choice(
        [
            r.randrange(1, 9),
            r.randrange(1, 5000),
            2**31,
            2**63,
            10**30,
            np.int32(7),
            np.uint64(2**63),
        ]
    )


def pairs_of(word: str, n: int, window: int | None, chunk: int | None) -> int:
    """Query-key pairs that a causal attention admits, by sums of arithmetic series."""
    if word == "chunked" and chunk is not None:
        whole, rest = divmod(n, chunk)
        return (whole * (chunk * chunk + chunk) + rest * rest + rest) // 2
    reach = min(window or n, n) if word == "sliding" else n
    return n * reach - (reach * reach - reach) // 2


def expected_of_layers(model: fc.CausalLM, level: str) -> int:
    """Multiply-adds of one forward pass, layers of a period one by one."""
    n, d, h = model.length, model.num_channels, model.num_heads
    c, g = model.head_dim or d // h, model.num_key_value_heads or h
    queries = h * c * (2 + model.attention_gate)
    layer = n * d * (queries + 2 * g * c + (2 + model.gated) * model.intermediate_size)
    periods, rest = divmod(model.num_layers, len(model.attention))
    products = model.num_layers * layer
    for index, word in enumerate(model.attention):
        square = n * n
        if level == "causal":
            square = pairs_of(word, n, model.window, model.chunk)
        products += (periods + (index < rest)) * 2 * square * h * c
    width = model.embedding_channels or d
    around = 0 if model.embedding_channels is None else 2 * d * width
    products += n * (around + width * model.vocab_size)
    word, square = model.attention[-1], n * n
    if level == "causal":
        square = pairs_of(word, n, model.window, model.chunk)
    predicted = layer + 2 * square * h * c + n * (2 * d * d + d * model.vocab_size)
    return products + (model.num_predictions or 0) * predicted


def expected_total(model: Any, level: str, training: bool, batch_size: int) -> int:
    """Matmul FLOPs of a model of plain ints, by arithmetic that shares nothing with the counter."""
    n, d, h = model.length, model.num_channels, model.num_heads
    if isinstance(model, fc.CausalLM):
        return batch_size * (6 if training else 2) * expected_of_layers(model, level)
    window = getattr(model, "window", None)
    square = n * n if level == "dense" else pairs_of("sliding", n, window, None)
    prefix_work = 0
    if isinstance(model, fc.Llama):
        c = model.head_dim or d // h
        mlp, key_heads = 3 * d * model.intermediate_size, model.num_key_value_heads or h
    else:
        c, mlp, key_heads = d // h, 2 * d * model.widening_factor * d, h
    if isinstance(model, fc.PerceiverAR):
        kept = model.num_kept if training else model.num_prefix
        if kept is None:
            kept = model.num_prefix - int(model.num_prefix * float(model.prefix_dropout))
        prefix_work = kept * 2 * d * d + 2 * n * kept * d
    layer = n * (2 * d * c * (h + key_heads) + mlp) + 2 * square * h * c
    products = model.num_layers * layer + prefix_work + n * d * model.vocab_size
    return batch_size * (6 if training else 2) * products


def expected_tiles(model: Any, tiling: fc.Tiling, training: bool) -> int:
    """FLOPs of attention's forward pass on one sequence, by visiting its tiles."""
    rows, columns = tiling.forward
    latents = model.length
    prefix = getattr(model, "num_prefix", 0)
    if training and prefix:
        kept = model.num_kept
        prefix = prefix - int(prefix * float(model.prefix_dropout)) if kept is None else kept
    own, seen = 0, 0
    for first in range(0, latents, rows):
        own += len(range(0, min(first + rows, latents), columns))
        seen += len(range(0, prefix, columns))
    head_dim = getattr(model, "head_dim", None) or model.num_channels // model.num_heads
    while head_dim % tiling.head_dim_multiple:
        head_dim += 1
    tiles = model.num_layers * own + seen
    return 2 * 2 * rows * columns * head_dim * model.num_heads * tiles


HEADINGS = ("params", "tokens", "flops", "loss")


def good_runs() -> Iterator[tuple[float, float, float, float]]:
    """Runs on a known surface, five for each of three budgets, under :data:`HEADINGS`."""
    for budget in (1e18, 1e19, 1e20):
        for factor in (0.3, 0.6, 1.0, 1.8, 3.2):
            params = factor * 0.1 * budget**0.5
            tokens = budget / 6 / params
            yield params, tokens, budget, 1.7 + 400 / params**0.34 + 400 / tokens**0.28


@functools.cache
def folder_of_runs() -> tempfile.TemporaryDirectory[str]:
    """A folder with the good runs as runs.csv, and a config.json; it goes when the program ends."""
    folder = tempfile.TemporaryDirectory()
    with Path(folder.name, "runs.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([HEADINGS, *good_runs()])
    Path(folder.name, "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    return folder


CONFIG = dict(
    vocab_size=range(1, 99), hidden_size=range(8, 99, 8), intermediate_size=range(1, 99),
    num_hidden_layers=range(1, 9), num_attention_heads=(4, 8), num_key_value_heads=(1, 2, 4),
    head_dim=range(2, 20, 2), sliding_window=range(1, 20),
)  # fmt: skip
"""Legal values of the fields that most configs have."""


def expected_of_config(config: dict[str, Any], seq_len: int, causal: bool) -> tuple[int, int]:
    """Parameters and FLOPs of a Llama or Mistral, layer by layer and position by position."""
    V, d, f, L, h, g, c, window = (config[name] for name in CONFIG)
    window = window if config["model_type"] == "mistral" else seq_len
    weights = d * (2 * h * c + 2 * g * c) + 3 * d * f
    tied = config["tie_word_embeddings"]
    params = L * (weights + 2 * d) + d + V * d * (1 if tied else 2)
    pairs = sum(min(i, window) for i in range(1, seq_len + 1)) if causal else seq_len**2
    return params, 6 * (seq_len * (L * weights + V * d) + 2 * L * h * c * pairs)


def good_options(r: random.Random, kind: Any) -> tuple[Any, ...]:
    """Legal values of a field that is no size."""
    if isinstance(kind, Flag):
        return True, False
    if isinstance(kind, Choice):
        return kind.words
    if isinstance(kind, Pattern):
        return (tuple(r.choices(kind.words, k=r.randrange(1, 5))),)
    return 0.0, 0.5, r.random()


@dataclasses.dataclass
class Boundaries:
    """A run over the public boundaries.

    Attributes:
        random_state: Where every draw comes from.
        outcomes: How often each boundary answered in each way.
        failures: What must not happen, with the call that showed it.
        bad_share: How likely an argument of the call is a bad one.
    """

    random_state: random.Random
    outcomes: collections.Counter[tuple[str, str]]
    failures: list[str]
    bad_share: float = 0.15

    def sizes(self, names: dict[str, int]) -> dict[str, Any]:
        """Arguments for the named sizes: legal ones, some of them replaced by bad values."""
        r = self.random_state
        kind = r.choice(["int", "int", "int", "array", "symbol"])
        drawn = {name: good_size(r, kind if r.random() < 0.5 else "int") for name in names}
        for name, minimum in names.items():
            if minimum == 0 and r.random() < 0.3:
                drawn[name] = 0
        if r.random() < 0.35:
            drawn[r.choice(list(names))] = r.choice(bad_values(r))
        return drawn

    def model(self) -> Any:
        """A model from drawn arguments for every field; construction is itself a boundary."""
        r = self.random_state
        architecture = r.choice([*ARCHITECTURES.values(), fc.CausalLM])
        arguments: dict[str, Any] = {}
        sizes = {}
        for name, kind in architecture.kinds().items():
            optional = getattr(architecture, name, "required") is None
            left_out = 0.2 if name in ("seq_len", "window", "chunk") else 0.7
            if optional and r.random() < left_out:
                continue
            if not isinstance(kind, Dimension):
                if r.random() < 0.4:
                    arguments[name] = self.any_of(*good_options(r, kind))
            elif name in ("num_heads", "num_key_value_heads", "num_kept"):
                arguments[name] = self.any_of(1, 1, 1, 2)
            elif name == "head_dim":
                arguments[name] = self.any_of(2, 8, 64)
            else:
                sizes[name] = kind.minimum
        return architecture(**self.sizes(sizes), **arguments)

    def tame_model(self) -> Any:
        """A model from legal ints."""
        r = self.random_state
        heads = r.randrange(1, 9)
        shared = dict(
            vocab_size=r.randrange(1, 99),
            num_channels=heads * r.randrange(1, 99),
            num_layers=r.randrange(1, 9),
            num_heads=heads,
            widening_factor=r.randrange(1, 6),
        )
        if r.random() < 0.15:
            del shared["widening_factor"]
            return fc.CausalLM(
                seq_len=r.randrange(1, 999),
                intermediate_size=r.randrange(1, 999),
                attention=tuple(r.choices(["full", "sliding", "chunked"], k=r.randrange(1, 5))),
                window=r.randrange(1, 999),
                chunk=r.randrange(1, 999),
                **shared,
            )
        if r.random() < 0.3:
            return fc.Decoder(seq_len=r.randrange(1, 999), **shared)
        if r.random() < 0.3:
            shared |= dict(num_channels=r.randrange(1, 999), num_heads=heads * r.randrange(1, 5))
            del shared["widening_factor"]
            return fc.Llama(
                seq_len=r.randrange(1, 999),
                num_key_value_heads=heads,
                head_dim=2 * r.randrange(1, 99),
                intermediate_size=r.randrange(1, 999),
                window=r.choice([None, None, r.randrange(1, 999)]),
                **shared,
            )
        return fc.PerceiverAR(
            num_latents=r.randrange(1, 999),
            num_prefix=r.randrange(0, 999),
            prefix_dropout=r.choice([0.0, 0.5, r.random()]),
            **shared,
        )

    def any_of(self, *good: Any) -> Any:
        """One of the legal values, or a bad one."""
        r = self.random_state
        return r.choice(good) if r.random() >= self.bad_share else r.choice(bad_values(r))

    def count_levels(self) -> None:
        """Models of every kind, counted at a level and judged by :func:`expected_total`."""
        r = self.random_state
        model = self.model() if r.random() < 0.7 else self.tame_model()
        level, training = r.choice(["causal", "dense"]), r.random() < 0.7
        batch_size = self.any_of(1, 80, 10**20)
        count = model.flops(level, training=training, batch_size=batch_size)
        count.elementwise.total, model.params().total, count.per_token
        if r.random() < 0.1:
            str(count), str(model.params()), count.to_dict()
        self.judge(model, count, level, training, batch_size)

    def judge(self, model: Any, count: Any, level: str, training: bool, batch_size: Any) -> None:
        """Compare a count's total with plain arithmetic, element by element."""
        fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model)}
        fields["batch_size"] = batch_size
        if any(is_symbolic(value) for value in fields.values()):
            return
        shape = np.broadcast_shapes(*(v.shape for v in fields.values() if is_array(v)))
        for index in np.ndindex(shape):
            scalars = {
                name: np.broadcast_to(value, shape)[index] if is_array(value) else value
                for name, value in fields.items()
            }
            plain = {
                name: int(value) if isinstance(value, np.integer) else value
                for name, value in scalars.items()
            }
            batch = int(plain.pop("batch_size"))
            expected = expected_total(type(model)(**plain), level, training, batch)
            total = count.total[index] if is_array(count.total) else count.total
            if int(total) != expected:
                raise AssertionError(f"total {total}, expected {expected}")

    def count_options(self) -> None:
        """Legal models, counted with bad options."""
        model = self.tame_model()
        options = self.random_state.choice(
            [
                dict(level=self.any_of("causal", "dense"), training=self.any_of(True, False)),
                dict(checkpointing=self.any_of("reentrant", "non-reentrant")),
                dict(convention=self.any_of(*CONVENTIONS), training=self.any_of(True, False)),
                dict(level="dense", convention="6n", checkpointing=self.any_of("reentrant")),
                dict(documents=self.any_of([self.any_of(1), 1], {1: self.any_of(1)}, [2])),
            ]
        )
        count = model.flops(batch_size=self.any_of(1, 2, np.array([1, 2])), **options)
        count.self_part.total, self.show(count)

    def show(self, found: Any) -> None:
        """Whatever prints: as text, in a notebook, as plain data, a frame and a picture."""
        str(found), found._repr_html_(), found.to_dict()
        if self.random_state.random() < 0.05:
            found.to_frame(), found.plot()

    def tune(self) -> None:
        """What is trained, LoRA, recomputation by name; all, none and LoRA judged by arithmetic."""
        r = self.random_state
        model = self.tame_model() if r.random() < 0.8 else self.model()
        level, batch_size = self.any_of("causal", "dense"), self.any_of(1, 3)
        lora: dict[str, Any] = {}
        if r.random() < 0.6:
            rank = self.any_of(
                1, 4, np.array([1, 7]), sympy.Symbol("r", positive=True, integer=True)
            )
            lora = dict(lora_rank=rank, lora_targets=self.any_of("query", ("query", "mlp up")))
        tuning = fc.FineTuning(
            trainable=self.any_of((), "*norm", ["*"], lambda layer, name: name == "query"),
            frozen_layers=self.any_of(0, 0, 1),
            input_gradients=self.any_of(False, True),
            **lora,
        )
        again = dict(checkpointing=self.any_of("reentrant", "non-reentrant"))
        if r.random() < 0.5:
            again["recompute"] = self.any_of("attention core", ("out", "mlp *"))
        count = model.flops(
            level, batch_size=batch_size, tuning=self.any_of(tuning), **(again if lora else {})
        )
        str(count), count.to_dict(), count.elementwise.total, count.recompute
        params = model.params(self.any_of(tuning))
        str(params), params.to_dict()
        everything = fc.FineTuning(trainable="*")
        whole = model.flops(level, batch_size=batch_size, tuning=everything)
        self.judge(model, whole, level, True, batch_size)
        if not isinstance(model, fc.Llama | fc.Decoder) or any(
            is_array(size) or is_symbolic(size) for size in (batch_size, *vars(model).values())
        ):
            return
        nothing = model.flops(level, batch_size=batch_size, tuning=fc.FineTuning())
        self.judge(model, nothing, level, False, batch_size)
        # A frozen product costs two, those of attention and of LoRA three.
        adapted = fc.FineTuning(lora_rank=5, lora_targets="query", input_gradients=True)
        total = model.flops(level, batch_size=batch_size, tuning=adapted).total
        n, L, h, d = model.length, model.num_layers, model.num_heads, model.num_channels
        c = getattr(model, "head_dim", None) or d // h
        window = getattr(model, "window", None)
        pairs = n * n if level == "dense" else pairs_of("sliding", n, window, None)
        expected = 2 * expected_total(model, level, False, batch_size)
        expected += 2 * batch_size * L * (2 * pairs * h * c + 3 * 5 * n * (d + h * c))
        if total != expected:
            raise AssertionError(f"total {total} with LoRA, expected {expected}")

    def generate(self) -> None:
        """Prompts, decoding, drafts and caches; both together are one pass over all positions."""
        r = self.random_state
        model = self.tame_model() if r.random() < 0.8 else self.model()
        prompt, new = self.any_of(1, 7, 300), self.any_of(1, 5)
        batch_size = self.any_of(1, 3)
        own = dict(batch_size=batch_size, mla=self.any_of(None), num_latents=self.any_of(None))
        level = self.any_of(None, "causal", "dense")
        read = model.prefill(
            prompt, level, logits=self.any_of("all"), chunk=self.any_of(None, 2), **own
        )
        written = model.decode(new, level, cached=prompt, **own)
        both = read + written
        str(both), both.to_dict(), both.elementwise.total
        kept = model.cache(prompt, **own)
        str(kept), kept.to_dict(), kept.bytes(self.any_of("bf16", "int4"))
        accepted = self.any_of([self.any_of(1), 0], [2], [0, 0, 0])
        draft = self.any_of((self.any_of(model), self.any_of(2), accepted))
        if r.random() < 0.5:
            model.generate(prompt, self.any_of(3), draft=draft)
        bound = fc.roofline(
            model, self.any_of("h100"), cached=self.any_of(0, 9), positions=self.any_of(1, 3),
            batch_size=batch_size, weights=self.any_of("bf16", "int4"), mla=self.any_of(None),
        )  # fmt: skip
        self.show(bound)
        if r.random() < 0.02:
            fc.explore(self.any_of(model))
        fc.expected_experts(self.any_of(8), self.any_of(2), self.any_of(3))
        expected_tokens_per_round(self.any_of(0.5, 0.0), self.any_of(1, 4))
        if level == "dense" or isinstance(model, fc.PerceiverAR):
            return
        whole = dataclasses.replace(model, seq_len=prompt + new)
        self.judge(whole, both, "causal", False, batch_size)

    def many_devices(self) -> None:
        """A step on many devices: without padding, all together multiply what one would."""
        r = self.random_state
        tensor, pipeline, data = (self.any_of(1, 2, 4) for _ in range(3))
        model: Any = self.model()if r.random() < 0.2 else fc.Llama(
            vocab_size=8 * r.randrange(1, 9), seq_len=8 * r.randrange(1, 9),
            num_channels=r.randrange(1, 99), num_layers=8, num_heads=8, num_key_value_heads=4,
            head_dim=2, intermediate_size=8 * r.randrange(1, 9),
        )  # fmt: skip
        parallel = fc.Parallel(
            tensor=tensor, pipeline=pipeline, data=data, sequence=self.any_of(False, tensor != 1),
            zero=self.any_of(0, 1, 2, 3), expert=self.any_of(1), chunks=self.any_of(1),
            stages=self.any_of(None, {2: (3, 5), 4: (1, 2, 3, 2)}.get(pipeline)
            if type(pipeline) is int else 1),
            vocab_multiple=self.any_of(None, 8), capacity=self.any_of(None),
        )  # fmt: skip
        level, training = self.any_of("causal", "dense"), self.any_of(True, False)
        batch_size = data * self.any_of(1, 3) if type(data) is int else self.any_of(None)
        found = fc.per_device(
            model, self.any_of(parallel), level=level, batch_size=batch_size, training=training,
            checkpointing=self.any_of(None), dtype=self.any_of("bf16", "fp8"),
        )  # fmt: skip
        str(found), found.to_dict(), found.imbalance, found.bubble, found.busiest_experts
        fc.pipeline_bubble(self.any_of(2, 4), self.any_of(4, 8), self.any_of(1, 2))
        if parallel.vocab_multiple is None:
            expected = expected_total(model, level, training, found.batch_size)
            if found.total != expected:
                raise AssertionError(f"all devices {found.total}, expected {expected}")

    def count_executed(self) -> None:
        """Tilings and executed FLOPs, judged by visiting every tile of attention."""
        r = self.random_state
        blocks = [self.any_of(16, 32, 64) for _ in range(3)]
        tiling = fc.Tiling(
            forward=self.any_of((128, blocks[0])),
            key_value=self.any_of((blocks[1], 64)),
            query=self.any_of((64, blocks[2])),
            head_dim_multiple=self.any_of(1, 8, 16),
            key_value_products=self.any_of(4, 5),
            row_lanes=self.any_of(4, 16),
        )
        model, training = self.tame_model(), self.any_of(True, False)
        checkpointing = self.any_of(None, None, "reentrant", "non-reentrant")
        batch_size = self.any_of(1, 3, np.array([1, 2]))
        if r.random() < 0.3:
            model = self.model()
        count = model.executed(
            self.any_of(tiling),
            tilings=self.any_of(None, None, {"hybrid": tiling}, {"nonsense": tiling}),
            training=training,
            batch_size=batch_size,
            checkpointing=checkpointing,
        )
        str(count), count.to_dict()
        kinds = type(model).kinds().items()
        sizes = [getattr(model, name) for name, kind in kinds if isinstance(kind, Dimension)]
        sizes += tiling.sizes().values()
        if any(is_array(size) or is_symbolic(size) or size > 5000 for size in sizes if size):
            return
        attention = sum(term.forward for term in count.terms if term.term in ("scores", "values"))
        expected = batch_size * expected_tiles(model, tiling, training)
        if np.any(attention != expected):
            raise AssertionError(f"attention forward {attention}, expected {expected}")

    def read_configs(self) -> None:
        """Configs of every family, good ones judged by :func:`expected_of_config`."""
        r = self.random_state
        family = r.choice(["llama", "mistral", *FAMILIES])
        config = {name: r.choice(values) for name, values in CONFIG.items()}
        config |= dict(model_type=family, tie_word_embeddings=r.random() < 0.5)
        seq_len: Any = r.randrange(1, 50)
        if r.random() < 0.7:
            others = (
                "architectures layer_types hidden_act text_config n_inner rope_parameters "
                "is_encoder_decoder num_kv_heads attn_config"
            )
            names = [*config, *others.split()]
            config |= {r.choice(names): r.choice(bad_values(r)) for _ in range(r.randrange(1, 3))}
            model = fc.from_hf(self.any_of(config), self.any_of(seq_len, None))
            str(model), model.params().total, model.flops().to_dict()
            return
        if family not in ("llama", "mistral"):
            config = {"model_type": family}
        model, causal = fc.from_hf(config, seq_len), r.random() < 0.5
        counted = (
            model.params().total,
            model.flops("causal" if causal else "dense").total,
        )
        if len(config) > 1 and counted != expected_of_config(config, seq_len, causal):
            raise AssertionError(f"{counted} of {config} and {seq_len} positions")

    def ask_a_count(self) -> None:
        """What a count can be asked: runs, utilisation, devices."""
        count = self.tame_model().flops()
        r = self.random_state
        if r.random() < 0.5:
            tokens = self.any_of(0, 1, 10**9, 1.3e9, np.array([1, 2**60]), np.array([1.0, 2e9]))
            if count.for_tokens(tokens) is None:
                raise AssertionError("no answer")
            return
        device = self.any_of("h200", "H100", "a100", fc.Device("own", {"bf16": fc.Peak(1e12, "x")}))
        dtype = self.any_of("bf16", "fp8", "tf32")
        measured = self.any_of(0.1, 3, np.float64(2)), None
        rate = r.choice([count.mfu, count.hfu])(
            device=device,
            dtype=dtype,
            num_devices=self.any_of(1, 8),
            **dict(zip(r.sample(["seconds", "tokens_per_second"], 2), measured, strict=True)),
        )
        if not np.all((rate >= 0) & (rate < 1.001)):
            raise AssertionError(f"utilisation {rate}")

    def meter_steps(self) -> None:
        """A meter on a clock of one second a step, judged by :func:`expected_total`."""
        r = self.random_state
        model, batch_size, now = self.tame_model(), self.any_of(1, 8), [0.0]
        steps = r.randrange(1, 6)
        device = fc.Device("own", {"bf16": fc.Peak(1e30, "x")})
        meter = fc.Meter(
            self.any_of(model), batch_size, self.any_of(None, device), self.any_of(1, 4),
            dtype=self.any_of("bf16"), checkpointing=self.any_of(None, "reentrant"),
            executed=self.any_of(None), total_steps=self.any_of(None, 9),
            total_tokens=self.any_of(None), price_per_device_hour=self.any_of(None, 2.5),
            warmup_steps=self.any_of(0, 1), window=self.any_of(None, 2),
            clock=self.any_of(lambda: now[0]),
        )  # fmt: skip
        for _ in range(steps):
            now[0] += 1
            meter.step()
        reading = meter.reading()
        str(reading), reading.to_dict()
        rate = reading.flops_per_second
        if rate is None:
            return
        expected = expected_total(model, "causal", True, int(batch_size))
        if rate != expected:
            raise AssertionError(f"{rate} FLOP/s, expected {expected}")

    def measure_modules(self) -> None:
        """A module of two layers, measured and judged by hand, and subtracted from itself."""
        r = self.random_state
        rows, inputs, outputs = (r.randrange(1, 9) for _ in range(3))
        layers = torch.nn.Linear(inputs, outputs), torch.nn.Linear(outputs, 3)
        measured = fc.torch.count(
            self.any_of(torch.nn.Sequential(*layers)),
            torch.ones(rows, inputs),
            level=self.any_of("dense", "causal"),
            backward=self.any_of(True, False),
            keywords=self.any_of(None, {}),
            batch_size=self.any_of(None, 1),
            tokens=self.any_of(None, 7),
            names=self.any_of(None, {"*": ("mlp", "linear")}, {"0": ("mlp", self.any_of("up"))}),
            custom_mapping=self.any_of(None, {}),
        )
        str(measured), measured.to_dict()
        if (measured - measured).nonzero.terms or measured.not_counted:
            raise AssertionError(f"{measured} differs from itself, or lacks something")
        products = 2 * rows * outputs * (inputs + 3)
        if measured.forward != products:
            raise AssertionError(f"{measured.forward} FLOPs forward, expected {products}")

    def draw_for_tests(self) -> None:
        """Strategies, and the assertion on a network that is of another kind."""
        r = self.random_state
        strategy = r.choice(
            [
                lambda: testing.models(self.any_of(5)),
                lambda: testing.configs(self.any_of("llama", "jamba")),
                lambda: testing.lengths(self.any_of("llama", "qwen3_next")),
            ]
        )()
        if strategy.is_empty:
            raise AssertionError(f"{strategy} draws nothing")
        if r.random() < 0.1:
            model = fc.Decoder(vocab_size=3, seq_len=2, num_channels=2, num_layers=1, num_heads=1)
            module = self.any_of(torch.nn.Embedding(3, 3))
            options = dict(batch_size=self.any_of(1), training=self.any_of(True))
            options |= dict(level=self.any_of("dense"), keywords=self.any_of(None))
            try:
                testing.assert_counts(module, self.any_of(model), **options)
            except AssertionError as error:
                if "parameters: the module has 9," not in str(error):
                    raise AssertionError(f"{error}, expected another number") from None
            else:
                raise AssertionError("no difference, expected one")

    def describe_devices(self) -> None:
        """Devices and peaks of one's own."""
        peak = fc.Peak(self.any_of(1e12, 5), self.any_of("a datasheet"))
        bandwidth = fc.Bandwidth(self.any_of(3e12, 5), self.any_of("a datasheet"))
        memory = fc.Memory(self.any_of(80 * 10**9, 1), self.any_of("a datasheet"))
        fc.Device(
            self.any_of("own"),
            self.any_of({"bf16": peak}, {"int3": peak}, {}),
            bandwidth=self.any_of(None, bandwidth),
            memory=self.any_of(None, memory),
        )

    def compare_and_explain(self) -> None:
        """Comparisons and explanations."""
        if self.random_state.random() < 0.7:
            model = self.model() if self.random_state.random() < 0.5 else self.tame_model()
            compared = fc.compare(self.any_of(model), training=self.any_of(True, False))
            str(compared), compared.to_dict()
            self.judge_differences(compared)
        else:
            fc.explain(
                self.any_of(*ARCHITECTURES),
                self.any_of(None, "causal", "executed"),
                self.any_of(None, None, *CONVENTIONS),
                self.any_of(None, fc.Tiling(forward=(64, 64), key_value=(32, 64), query=(64, 32))),
            ).to_dict()

    def compare_optima(self) -> None:
        """Optima of a budget by every way to count."""
        found = fc.compare_optima(
            self.any_of(self.tame_model()),
            self.any_of(1e15, 1e18, 10**20),
            law=self.any_of(CHINCHILLA_SURFACE),
            part=self.any_of("total", "self"),
        )
        str(found), found.to_dict()
        causal = found.rows[0].numbers
        for row in found.rows:
            if row.numbers is not None and row.numbers.excess_loss < -1e-9:
                raise AssertionError(f"{row}: better than the causal optimum, {causal}")

    def judge_differences(self, compared: Any) -> None:
        """The terms missed and added are all of the difference to the causal count."""
        causal = compared.rows[0]
        for row in compared.rows:
            for part in ("self", "cross"):
                flops = getattr(row, f"{part}_part")
                if isinstance(flops, str):  # not covered
                    continue
                terms = sum(entry.flops for entry in row.differences if entry.part == part)
                missed = flops - getattr(causal, f"{part}_part") - terms
                if is_symbolic(missed):
                    missed = missed.expand()
                if np.any(missed != 0):
                    raise AssertionError(f"{row.name}, {part}: {missed} beyond its terms")

    def plan_runs(self) -> None:
        """Runs of given models on given budgets, judged by :func:`expected_total`."""
        r = self.random_state
        models = [self.tame_model() for _ in range(r.randrange(1, 3))]
        if r.random() < 0.2:
            models.append(r.choice(bad_values(r)))
        budgets = [self.any_of(1e15, 10**18, 3e22, Fraction(10**19, 3)) for _ in range(2)]
        batch_size, level = self.any_of(1, 80), self.any_of(None, "causal", "dense")
        runs = fc.isoflop_runs(models, budgets, batch_size, level=level)
        for run, (budget, model) in zip(
            runs, ((budget, model) for budget in budgets for model in models), strict=True
        ):
            step = expected_total(model, level or "causal", True, int(batch_size))
            if run.steps != math.ceil(Fraction(budget) / step) or run.flops != run.steps * step:
                raise AssertionError(f"{run.steps} steps of {step} for {budget}")

    def plan_families(self) -> None:
        """Families of models around an optimum, on a small grid."""
        r = self.random_state
        options = dict(
            vocab_size=self.any_of(262),
            num_latents=self.any_of(256),
            batch_size=self.any_of(8),
            num_prefix=self.any_of(0, 128),
            prefix_dropout=self.any_of(0.0, 0.5),
            widths=self.any_of((64, 512)),
            depths=self.any_of((2, 8)),
            head_dims=self.any_of((32, 64)),
            aspect_ratios=self.any_of((8.0, 128.0)),
            law=self.any_of("chinchilla-1", "chinchilla-2"),
            num_models=self.any_of(3, 5),
            reach=self.any_of(2.0),
            corpus_tokens=self.any_of(None, 10**9),
            flops_per_second=self.any_of(None, 1e12),
            num_devices=self.any_of(1),
            price_per_device_hour=self.any_of(None, 2.5),
        )
        kept = r.sample(list(options), r.randrange(3, 8))
        good = dict(vocab_size=262, num_latents=256, batch_size=8, widths=(64, 512), depths=(2, 8))
        planned = fc.plan([self.any_of(1e15, 1e17)], **good | {n: options[n] for n in kept})
        str(planned), planned.to_dict()

    def laws_and_rates(self) -> None:
        """Laws asked for optima, fitted through estimates, and GPU hours as budgets."""
        r = self.random_state
        if r.random() < 0.5:
            law = ScalingLaw(0.5, 0.5, 0.1, 2.0, "example")
            flops = self.any_of(1e20, 10**18, 5)
            if not math.isclose(law.n_opt(flops), 0.1 * float(flops) ** 0.5, rel_tol=1e-12):
                raise AssertionError(f"n_opt({flops}) = {law.n_opt(flops)}")
            law.d_opt(flops), CHINCHILLA_SURFACE.d_opt(flops)
            CHINCHILLA_SURFACE.loss(self.any_of(1e9), self.any_of(20e9))
        else:
            hours, rate = self.any_of(1, 0.5), self.any_of(0.4)
            budget = budget_from_gpu_hours(hours, self.any_of("h200"), rate)
            # 989.4 TFLOP/s dense bf16.
            if not math.isclose(budget, float(hours) * 3600 * float(rate) * 989.4e12):
                raise AssertionError(f"budget {budget} of {hours} h at {rate}")

    def table_of_runs(self) -> dict[Any, Any]:
        """Runs on a known surface, as read_runs takes them, with a few bad cells."""
        r = self.random_state
        columns: dict[Any, Any] = {name: [] for name in HEADINGS}
        for row in good_runs():
            for name, value in zip(columns, row, strict=True):
                columns[name].append(value if r.random() < 0.99 else self.any_of(value))
        return self.spoilt(columns)

    def spoilt(self, columns: dict[Any, Any]) -> dict[Any, Any]:
        """A table, sometimes with a bad heading or column."""
        if self.random_state.random() < 0.2:
            with contextlib.suppress(TypeError):  # not every heading can be hashed
                columns[self.any_of("loss")] = self.any_of([1.0])
        return columns

    def bootstrap(self) -> dict[str, Any]:
        """The arguments that every fit takes."""
        return dict(
            num_bootstrap=self.any_of(0, 2), seed=self.any_of(0), confidence=self.any_of(0.5, 0.95)
        )

    def named(self, *roles: str) -> dict[str, Any]:
        """Some columns named, and rows selected, in ways that may be wrong."""
        r = self.random_state
        names = {role: self.any_of(None, role) for role in roles if r.random() < 0.2}
        if r.random() < 0.2:
            names["where"] = self.any_of(None, {"loss": self.any_of("2")}, {"x": "y"}, {3: 4})
        return names

    def fit_laws(self) -> None:
        """Tables of runs, with cells of any kind, read and fitted by each approach in turn."""
        r = self.random_state
        source = self.any_of(self.table_of_runs())
        fit = r.choice([fc.fit_isoflop_profiles, fc.fit_optima, fc.fit_surface])
        runs = fc.read_runs(
            source,
            drop_highest=self.any_of(0, 1),
            optima=self.any_of(fit is fc.fit_optima),
            **self.named("params", "tokens", "flops", "loss", "budget"),
        )
        str(runs), runs.to_dict()
        options = self.bootstrap()
        if fit is fc.fit_isoflop_profiles and r.random() < 0.5:
            options["budgets"] = self.any_of(None, [1e18, 1e19], [self.any_of(1e18)])
        if fit is fc.fit_optima:
            options |= dict(a=self.any_of(None, 0.5), b=self.any_of(None, 0.5))
        if fit is fc.fit_surface:
            options["objective"] = self.any_of("variable-projection", "least-squares-log")
            options["delta"] = self.any_of(None, 1e-3)
        self.ask_a_fit(fit(self.any_of(runs), **options))

    def ask_a_fit(self, fitted: Any) -> None:
        """What a fit can be asked."""
        str(fitted), fitted.to_dict()
        predicted = fitted.predict(self.any_of(1e21))
        if not (predicted.params > 0 and predicted.tokens > 0):
            raise AssertionError(f"predicted {predicted}")

    def fit_curves(self) -> None:
        """Training curves, with cells of any kind, read and fitted."""
        columns: dict[Any, Any] = {"run": [], "params": [], "tokens": [], "loss": []}
        for name, params in enumerate((1e6, 3e6, 1e7, 3e7)):
            for tokens in (1e7, 3e7, 1e8, 3e8, 1e9, 3e9):
                loss = 1.7 + 400 / params**0.34 + 400 / tokens**0.28
                for heading, value in zip(columns, (name, params, tokens, loss), strict=True):
                    good = self.random_state.random() < 0.99
                    columns[heading].append(value if good else self.any_of(value))
        source = self.any_of(self.spoilt(columns))
        curves = fc.read_curves(source, **self.named("run", "params", "tokens", "flops", "loss"))
        budgets = self.any_of(20, 50)
        fitted = fc.fit_training_curves(
            self.any_of(curves), num_budgets=budgets, **self.bootstrap()
        )
        self.ask_a_fit(fitted)

    def commands(self) -> None:
        """The command line, given words of every kind."""
        r = self.random_state
        words = [
            "-1",
            "0",
            "8",
            "1e9",
            "nan",
            "inf",
            "x",
            "",
            "9" * 60,
            "0.5",
            "true",
            "--",
            "-h",
            "é",
        ]
        model = r.choice(
            [
                ["perceiver-ar", "--vocab-size", "9", "--num-latents", "8", "--num-prefix", "8",
                 "--num-channels", "16", "--num-layers", "2"],
                ["decoder", "--vocab-size", "9", "--seq-len", "8", "--num-channels", "16",
                 "--num-layers", "2", "--num-heads", "2"],
                ["hf", str(Path(folder_of_runs().name, "config.json")), "--seq-len", "8"],
                [folder_of_runs().name, "--seq-len", "8"],
            ]
        )  # fmt: skip
        arguments = [r.choice([*COMMANDS, "nonsense"])]
        if arguments[0] == "plan":
            arguments += [
                "--budgets", "1e16", "--vocab-size", "262", "--num-latents", "256",
                "--batch-size", "8", "--widths", "64", "512", "--depths", "2", "8",
            ]  # fmt: skip
        if arguments[0] == "fit":
            good = str(Path(folder_of_runs().name, "runs.csv"))
            arguments.append(r.choice([good, good, good, "nowhere.csv", __file__, "/", ""]))
        if arguments[0] in TAKE_A_MODEL:
            arguments += model
        if arguments[0] == "roofline":
            arguments += ["--device", r.choice(["h100", *words])]
        if arguments[0] == "explore":
            arguments += [
                "--out",
                r.choice([str(Path(folder_of_runs().name, "page.html")), "/", ""]),
            ]
        if arguments[0] == "generate":
            arguments += ["--prompt-len", r.choice(["3", *words]), "--new-tokens", "4"]
        if arguments[0] in ("count", "explain") and r.random() < 0.3:
            arguments += ["--level", "executed"]
            for name in ("forward", "key-value", "query"):
                arguments += [f"--tiling.{name}", "64", r.choice(["64", "64", *words])]
        options = [
            "--num-heads", "--prefix-dropout", "--num-kept", "--widening-factor", "--level",
            "--convention", "--batch-size", "--checkpointing", "--seconds", "--device", "--dtype",
            "--architecture", "--latex", "--json", "--training", "--no-training", "--params",
            "--num-models", "--reach", "--law", "--part", "--corpus-tokens", "--num-prefix",
            "--approach", "--objective", "--num-bootstrap", "--predict", "--loss",
            "--where", "--budgets", "--tiling.head-dim-multiple", "--tiling.key-value-products",
            "--chunk", "--mla", "--prompt-latents", "--tensor", "--pipeline", "--data",
            "--sequence", "--zero", "--stages", "--vocab-multiple",
            "--seq-len", "--target-len", "--mtp",
            "--trainable", "--lora-rank", "--lora-targets", "--frozen-layers", "--recompute",
        ]  # fmt: skip
        for _ in range(r.randrange(4)):
            arguments.append(r.choice(options))
            if r.random() < 0.7:
                arguments.append(r.choice([*words, "causal", "palm", "h200", "reentrant"]))
        if r.random() < 0.5 and len(arguments) > 1:
            arguments[r.randrange(1, len(arguments))] = r.choice(words)
        try:
            status = command_line(arguments)
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
        if status not in (0, 2):
            raise AssertionError(f"exit status {status} of {arguments}")
        if status == 2:
            raise ValueError("refused by the command line")


BOUNDARIES: dict[str, tuple[Callable[[Boundaries], None], float]] = {
    "count at a level": (Boundaries.count_levels, 0.4),
    "options of a count": (Boundaries.count_options, 0.12),
    "configs": (Boundaries.read_configs, 0.06),
    "fine-tuning": (Boundaries.tune, 0.08),
    "prompts, decoding and caches": (Boundaries.generate, 0.08),
    "many devices": (Boundaries.many_devices, 0.05),
    "tilings and executed FLOPs": (Boundaries.count_executed, 0.06),
    "runs and utilisation": (Boundaries.ask_a_count, 0.15),
    "meters": (Boundaries.meter_steps, 0.04),
    "modules": (Boundaries.measure_modules, 0.02),
    "strategies": (Boundaries.draw_for_tests, 0.03),
    "devices": (Boundaries.describe_devices, 0.05),
    "compare and explain": (Boundaries.compare_and_explain, 0.04),
    "optima by every count": (Boundaries.compare_optima, 0.02),
    "planned runs": (Boundaries.plan_runs, 0.05),
    "planned families": (Boundaries.plan_families, 0.02),
    "laws and rates": (Boundaries.laws_and_rates, 0.04),
    "tables and fits": (Boundaries.fit_laws, 0.03),
    "training curves": (Boundaries.fit_curves, 0.02),
    "command line": (Boundaries.commands, 0.08),
}


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise a TimeoutError inside the block once it has run for ``seconds``."""

    def expire(signum: int, frame: object) -> None:
        raise TimeoutError(f"no answer within {seconds} s")

    previous = signal.signal(signal.SIGALRM, expire)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def run(calls: int, seed: int = 0) -> Boundaries:
    """Draw ``calls`` calls from ``seed``; what fails stands in the result's ``failures``.

    Each call has a seed of its own, named in its failure, so that it can be repeated alone.
    """
    result = Boundaries(random.Random(), collections.Counter(), [])
    names = list(BOUNDARIES)
    weights = [weight for _, weight in BOUNDARIES.values()]
    for call in range(calls):
        call_seed = seed * 1_000_003 + call
        result.random_state = random.Random(call_seed)
        name = result.random_state.choices(names, weights)[0]
        # Calls of many arguments get past the first only where most of them are good.
        result.bad_share = result.random_state.choice([0.02, 0.15])
        try:
            with (
                time_limit(SECONDS_PER_CALL),
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                BOUNDARIES[name][0](result)
        except (ValueError, TypeError) as error:
            outcome = "refused" if str(error) else "refused without a message"
        except Exception as error:  # whatever else escapes is what this run is there to find
            outcome = "failed"
            result.failures.append(
                f"{name}, seed {call_seed}: {type(error).__name__}: {str(error)[:200]}"
            )
        else:
            outcome = "answered"
        if outcome == "refused without a message":
            result.failures.append(f"{name}, seed {call_seed}: an error without a message")
        result.outcomes[name, outcome] += 1
    return result


@defaults_of(run)
def main(calls: int = 100_000, *, seed: int) -> int:
    """Run and report.

    Args:
        calls: How many calls to draw.
        seed: Where the draws start.

    Returns:
        The exit status: 1 if anything failed.
    """
    result = run(calls, seed)
    rows = [
        [name, *(result.outcomes[name, outcome] for outcome in ("answered", "refused", "failed"))]
        for name in BOUNDARIES
    ]
    print(table(["boundary", "right counts", "clear errors", "failures"], rows))
    for failure in result.failures[:20]:
        print(failure)
    return 1 if result.failures else 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
