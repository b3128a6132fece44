"""The architectures that can be counted, as their users describe them."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from before import elementwise, layers, parameters
from before.conventions import CONVENTIONS, Inputs, Terms
from before.count import (
    CHECKPOINTING,
    Count,
    ElementwiseCount,
    Line,
    ParameterCount,
    recompute_products,
)
from before.executed import ATTENTION_TERMS, Tiling, tiled
from before.rows import Elementwise, Matmul, Parameters, Part
from before.sizes import (
    Size,
    Sizes,
    as_objects,
    divide,
    is_array,
    is_symbolic,
    kept_positions,
    quoted,
    require_choice,
    require_flag,
    require_fraction,
    require_same_kind,
    require_size,
)

LEVELS = ("causal", "dense")


class Architecture(abc.ABC):
    """What the two models share: sizes go in, counts come out."""

    @abc.abstractmethod
    def sizes(self, *, batch_size: Size = 1, training: bool = True) -> Sizes:
        """The derived sizes that formulas are evaluated on."""

    @abc.abstractmethod
    def matmuls(self, sizes: Sizes, level: str) -> tuple[Matmul, ...]:
        """Every matrix product of a forward pass on ``sizes``, at ``level``."""

    @abc.abstractmethod
    def elementwise(self, sizes: Sizes, level: str, training: bool) -> tuple[Elementwise, ...]:
        """Every element-wise operation on ``sizes``, at ``level``."""

    @abc.abstractmethod
    def parameter_rows(self, sizes: Sizes) -> tuple[Parameters, ...]:
        """Every parameter tensor."""

    @abc.abstractmethod
    def _kept_prefix(self, sizes: Sizes, training: bool) -> Any:
        """(1 - p)·m as conventions use it, not rounded."""

    def _store(self, arguments: dict[str, Any]) -> None:
        """Keep validated arguments in their exact form."""
        for name, value in require_same_kind(arguments).items():
            object.__setattr__(self, name, value)

    def _required(self, minima: dict[str, int]) -> dict[str, Size]:
        return {
            name: require_size(name, getattr(self, name), minimum)
            for name, minimum in minima.items()
        }

    def params(self) -> ParameterCount:
        """Parameters, tensor by tensor; tied ones once.

        Returns:
            A :class:`~flopcount.count.ParameterCount`; ``.total`` is N.

        >>> import before as fc
        >>> gpt2 = fc.Decoder(vocab_size=50257, seq_len=1024, num_channels=768, num_layers=12,
        ...                   num_heads=12)
        >>> gpt2.params().total
        124439808

        """
        sizes = self.sizes().safe_for(
            lambda bound: ParameterCount(self, self.parameter_rows(bound)).total
        )
        return ParameterCount(self, self.parameter_rows(sizes))

    def flops(
        self,
        level: str | None = None,
        *,
        convention: str | None = None,
        training: bool = True,
        batch_size: Size = 1,
        checkpointing: str | None = None,
    ) -> Count:
        """FLOPs of one step, term by term.

        Args:
            level: ``"causal"`` (the default; only the query-key pairs that the mask admits) or
                ``"dense"`` (the whole score rectangle, as an unfused implementation executes it).
            convention: Instead of a level, a published way to count: a name that
                ``flopcount compare`` lists.
            training: Forward and backward with prefix dropout; ``False``: forward alone, without
                dropout (k = m).
            batch_size: B, sequences.
            checkpointing: Activation checkpointing of whole layers, ``"reentrant"`` or
                ``"non-reentrant"``: its recomputation is a column of its own.

        Returns:
            A :class:`~flopcount.count.Count`; ``.total`` is in FLOPs, a multiply-add being 2.

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: If a level, convention or flavour of checkpointing is unknown, or if
                arguments contradict each other.

        >>> import before as fc
        >>> model = fc.PerceiverAR(vocab_size=32_000, num_latents=512, num_prefix=1536,
        ...                        num_channels=512, num_layers=9, prefix_dropout=0.5)
        >>> model.flops().per_token
        291793920

        """
        sizes = self._step_sizes(training, batch_size, checkpointing)
        if convention is not None:
            if level is not None or checkpointing is not None:
                raise ValueError(
                    f"convention = {quoted(convention)} with level = {quoted(level)} and "
                    f"checkpointing = {quoted(checkpointing)}: expected a convention alone"
                )
            require_choice("convention", convention, CONVENTIONS)
            return self._convention_count(sizes, convention, training)
        if level == "executed":
            raise ValueError("level = 'executed' needs the kernels' tiling: call .executed(tiling)")
        level = require_choice("level", "causal" if level is None else level, LEVELS)

        def count(bound: Sizes) -> Count:
            return self._level_count(bound, level, training, checkpointing)

        def all_totals(bound: Sizes) -> object:
            counted = count(bound)
            work = counted.elementwise
            return counted.with_recompute, work and (work.total, work.recompute)

        return count(sizes.safe_for(all_totals))

    def executed(
        self,
        tiling: Tiling,
        *,
        hybrid_tiling: Tiling | None = None,
        training: bool = True,
        batch_size: Size = 1,
        checkpointing: str | None = None,
    ) -> Count:
        """FLOPs of one step as hardware executes it with fused attention kernels.

        Attention counts every tile that the kernels visit, in whole and at the padded head dim, and
        the seven or eight products of their backward pass: see :mod:`flopcount.executed`. Linear
        layers count as they are; what a library's matrix product pads is not in it.

        Args:
            tiling: How the kernels cut their work.
            hybrid_tiling: How they cut that of the hybrid layer, if otherwise: it has more keys.
            training: As for :meth:`flops`.
            batch_size: As for :meth:`flops`.
            checkpointing: As for :meth:`flops`: attention's forward kernel runs again.

        Returns:
            A :class:`~flopcount.count.Count` at level ``executed``; ``.hfu`` is hardware FLOPs
            utilisation. Element-wise work is not counted.

        Raises:
            TypeError: If an argument has the wrong type, or the tiling has symbols and a size is an
                array.
            ValueError: If a flavour of checkpointing is unknown, or given without training; if
                there is no hybrid layer to have a tiling of its own.

        >>> import before as fc
        >>> model = fc.Decoder(vocab_size=50257, seq_len=512, num_channels=876, num_layers=12,
        ...                    num_heads=12)  # head dim 73
        >>> tiling = fc.Tiling(forward=(128, 64), key_value=(32, 128), query=(128, 64))
        >>> executed, causal = model.executed(tiling), model.flops()
        >>> round(executed.total / causal.total, 4)
        1.0354

        """
        hybrid = tiling if hybrid_tiling is None else hybrid_tiling
        for name, given in (("tiling", tiling), ("hybrid_tiling", hybrid)):
            if not isinstance(given, Tiling):
                raise TypeError(f"{name} = {quoted(given)}: expected a flopcount.Tiling")

        def count(sizes: Sizes) -> Count:
            matmuls = tuple(
                tiled(matmul, hybrid if matmul.layer == "hybrid" else tiling)
                if matmul.term in ATTENTION_TERMS
                else matmul
                for matmul in self.matmuls(sizes, "causal")
            )
            return self._count(sizes, "executed", matmuls, None, training, checkpointing)

        sizes = self._step_sizes(training, batch_size, checkpointing)
        hybrid_sizes = {f"hybrid {name}": size for name, size in hybrid.sizes().items()}
        require_same_kind(vars(sizes) | tiling.sizes() | hybrid_sizes)
        counted = count(sizes.safe_for(lambda bound: count(bound).with_recompute))
        if hybrid_tiling is not None and all(line.layer != "hybrid" for line in counted.lines):
            raise ValueError(
                f"hybrid_tiling = {quoted(hybrid_tiling)}: expected None, since a "
                f"{type(self).__name__} has no hybrid layer"
            )
        return counted

    def _step_sizes(self, training: bool, batch_size: Size, checkpointing: str | None) -> Sizes:
        """The sizes of a step whose options do not contradict each other."""
        require_flag("training", training)
        batch = require_size("batch_size", batch_size)
        if checkpointing is not None:
            require_choice("checkpointing", checkpointing, CHECKPOINTING)
            if not training:
                raise ValueError(
                    f"checkpointing = {checkpointing!r} with training = False: expected None, "
                    "since nothing is recomputed without a backward pass"
                )
        return self.sizes(batch_size=batch, training=training)

    def _level_count(
        self, sizes: Sizes, level: str, training: bool, checkpointing: str | None
    ) -> Count:
        elementwise = ElementwiseCount(
            self.elementwise(sizes, level, training), training, checkpointing
        )
        matmuls = self.matmuls(sizes, level)
        return self._count(sizes, level, matmuls, elementwise, training, checkpointing)

    def _count(
        self,
        sizes: Sizes,
        level: str,
        matmuls: tuple[Matmul, ...],
        elementwise: ElementwiseCount | None,
        training: bool,
        checkpointing: str | None,
    ) -> Count:
        lines = tuple(
            Line(
                matmul.part,
                matmul.layer,
                matmul.term,
                matmul.flops,
                len(matmul.backward_rows()) if training else 0,
                recompute_products(matmul, checkpointing, training),
                matmul.source,
                matmul,
            )
            for matmul in matmuls
        )
        return Count(
            model=self,
            level=level,
            convention=None,
            lines=lines,
            training=training,
            checkpointing=checkpointing,
            batch_size=sizes.batch_size,
            tokens=sizes.batch_size * sizes.num_latents,
            elementwise=elementwise,
        )

    def _convention_count(self, sizes: Sizes, name: str, training: bool) -> Count:
        convention = CONVENTIONS[name]
        exact = sizes.map(as_objects)
        params = ParameterCount(self, self.parameter_rows(exact)).self_part
        inputs = Inputs(
            exact, self._kept_prefix(exact, training), params.total, params.position_embedding.total
        )

        def lines(part: Part, terms: Callable[[Inputs], Terms]) -> tuple[Line, ...]:
            return tuple(
                Line(
                    part,
                    layer,
                    term,
                    exact.batch_size * forward,
                    2 if training else 0,
                    0,
                    convention.source,
                )
                for layer, term, forward in terms(inputs)
            )

        all_lines = lines("self", convention.self_part)
        has_prefix = is_array(exact.num_prefix) or exact.num_prefix != 0
        not_covered: frozenset[Part] = frozenset()
        if has_prefix:
            if convention.cross_part is None:
                not_covered = frozenset({"cross"})
            else:
                all_lines += lines("cross", convention.cross_part)
        return Count(
            model=self,
            level=None,
            convention=name,
            lines=all_lines,
            training=training,
            checkpointing=None,
            batch_size=exact.batch_size,
            tokens=exact.batch_size * exact.num_latents,
            elementwise=None,
            not_covered=not_covered,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerceiverAR(Architecture):
    """Perceiver AR: a causal decoder whose first, hybrid layer also attends to a prefix.

    Sizes are Python ints, NumPy integer arrays that broadcast, or SymPy expressions.

    Attributes:
        vocab_size: V.
        num_latents: n, the last positions of the input, which predict.
        num_prefix: m, the positions before them; 0 is legal and gives the decoder-only model.
        num_channels: d, divisible by ``num_heads``.
        num_layers: L, attention layers, the hybrid layer included.
        num_heads: h.
        prefix_dropout: p in [0, 1); in training k = m - int(m·p) prefix positions are kept.
        num_kept: k itself, instead of ``prefix_dropout``.
        widening_factor: w, hidden channels of the MLP over d.

    Raises:
        TypeError: If a size is not an integer, or ``prefix_dropout`` not a number.
        ValueError: If a size is too small, d is not divisible by h, p is outside [0, 1), k > m,
            both p and k are given, or arrays do not broadcast.

    Source: Hawthorne et al. 2022 (arXiv 2202.07765).

    >>> model = PerceiverAR(vocab_size=262, num_latents=512, num_prefix=3584, num_channels=512,
    ...                     num_layers=9, prefix_dropout=0.5)
    >>> f"{model.params().total:.2e}"
    '3.06e+07'

    """

    vocab_size: Size
    num_latents: Size
    num_prefix: Size
    num_channels: Size
    num_layers: Size
    num_heads: Size = 8
    prefix_dropout: Any = 0.0
    num_kept: Size | None = None
    widening_factor: Size = 4

    def __post_init__(self) -> None:
        """Validate every argument and bring sizes into their exact form."""
        names = ("vocab_size", "num_latents", "num_channels", "num_layers", "num_heads")
        arguments = self._required(
            {**dict.fromkeys(names, 1), "num_prefix": 0, "widening_factor": 1}
        )
        dropout = require_fraction("prefix_dropout", self.prefix_dropout)
        arguments["prefix_dropout"] = dropout
        if self.num_kept is not None:
            arguments["num_kept"] = require_size("num_kept", self.num_kept, 0)
            if is_symbolic(dropout) or is_array(dropout) or dropout != 0:
                raise ValueError(
                    f"num_kept = {quoted(self.num_kept)} and prefix_dropout = {quoted(dropout)}: "
                    "expected one of the two"
                )
        self._store(arguments)
        if self.num_kept is not None:
            self._check_kept()
        self.sizes()

    def _check_kept(self) -> None:
        excess = self.num_kept - self.num_prefix
        if is_symbolic(excess):
            too_many = bool(excess.is_positive)
        else:
            too_many = bool((excess > 0).any()) if is_array(excess) else excess > 0
        if too_many:
            raise ValueError(
                f"num_kept = {quoted(self.num_kept)}: expected at most "
                f"num_prefix = {quoted(self.num_prefix)}"
            )

    def sizes(self, *, batch_size: Size = 1, training: bool = True) -> Sizes:
        """n, m, k, h, c, d, L, V, w and B; k = m in evaluation."""
        require_same_kind({**self._arguments(), "batch_size": batch_size})
        kept: Size = self.num_prefix
        selected: Size = 0
        if training and self.num_kept is not None:
            kept = selected = self.num_kept
        elif training and (is_symbolic(self.prefix_dropout) or is_array(self.prefix_dropout)):
            kept = kept_positions(self.num_prefix, self.prefix_dropout)
            selected = (
                kept if is_symbolic(self.prefix_dropout) else kept * (self.prefix_dropout > 0)
            )
        elif training and self.prefix_dropout > 0:
            kept = selected = kept_positions(self.num_prefix, self.prefix_dropout)
        return Sizes(
            batch_size=batch_size,
            num_latents=self.num_latents,
            num_prefix=self.num_prefix,
            num_kept=kept,
            num_selected=selected,
            num_heads=self.num_heads,
            head_dim=divide("num_channels", self.num_channels, "num_heads", self.num_heads),
            num_channels=self.num_channels,
            num_layers=self.num_layers,
            vocab_size=self.vocab_size,
            widening_factor=self.widening_factor,
        )

    def _arguments(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def matmuls(self, sizes: Sizes, level: str) -> tuple[Matmul, ...]:
        """The hybrid layer, L - 1 self-attention layers, the output layer."""
        s = sizes
        layer = dict(
            batch_size=s.batch_size,
            num_latents=s.num_latents,
            num_channels=s.num_channels,
            num_heads=s.num_heads,
            head_dim=s.head_dim,
        )
        decoder_layer = dict(level=level, widening_factor=s.widening_factor, **layer)
        return (
            *layers.decoder_layer("hybrid", num_layers=1, **decoder_layer),
            *layers.prefix_attention("hybrid", num_kept=s.num_kept, **layer),
            *layers.decoder_layer("self-attention", num_layers=s.num_layers - 1, **decoder_layer),
            *layers.output_layer(
                batch_size=s.batch_size,
                num_latents=s.num_latents,
                num_channels=s.num_channels,
                vocab_size=s.vocab_size,
            ),
        )

    def elementwise(self, sizes: Sizes, level: str, training: bool) -> tuple[Elementwise, ...]:
        """Embedding, hybrid layer, self-attention layers, output and, in training, the loss."""
        s = sizes
        n, d = s.num_latents, s.num_channels
        rotary = dict(
            batch_size=s.batch_size, num_latents=n, num_heads=s.num_heads, head_dim=s.head_dim
        )
        layer = dict(
            level=level,
            batch_size=s.batch_size,
            num_latents=n,
            num_channels=d,
            num_heads=s.num_heads,
            widening_factor=s.widening_factor,
            norm_bias=True,
            input_bias=False,
            mlp_bias=False,
        )
        rows = (
            elementwise.embedding("self", batch_size=s.batch_size, num_positions=n, num_channels=d),
            elementwise.embedding(
                "cross", batch_size=s.batch_size, num_positions=s.num_prefix, num_channels=d
            ),
            elementwise.prefix_selection(
                batch_size=s.batch_size, num_selected=s.num_selected, num_channels=d
            ),
            *elementwise.decoder_layer("hybrid", num_layers=1, output_bias=True, **layer),
            *elementwise.self_rotary("hybrid", num_layers=1, **rotary),
            *elementwise.prefix_attention("hybrid", num_kept=s.num_kept, num_channels=d, **rotary),
            *elementwise.decoder_layer(
                "self-attention", num_layers=s.num_layers - 1, output_bias=False, **layer
            ),
            *elementwise.self_rotary("self-attention", num_layers=s.num_layers - 1, **rotary),
            elementwise.bias(
                "output",
                "logits bias",
                num_products=s.batch_size * n,
                channels=s.vocab_size,
                checkpointed=False,
            ),
        )
        if not training:
            return rows
        return (
            *rows,
            elementwise.loss(batch_size=s.batch_size, num_latents=n, vocab_size=s.vocab_size),
            elementwise.tied_gradient(num_channels=d, vocab_size=s.vocab_size),
        )

    def parameter_rows(self, sizes: Sizes) -> tuple[Parameters, ...]:
        """Token and position embeddings, layers, output bias; the output layer's weight is tied."""
        s = sizes
        d = s.num_channels
        layer = dict(
            num_channels=d,
            widening_factor=s.widening_factor,
            norm_bias=True,
            input_bias=False,
            mlp_bias=False,
        )
        return (
            parameters.embedding("self", "token", num_rows=s.vocab_size, num_channels=d),
            parameters.embedding(
                "self", "latent positions", num_rows=s.num_latents, num_channels=d
            ),
            parameters.embedding(
                "cross", "prefix positions", num_rows=s.num_prefix, num_channels=d
            ),
            parameters.norm("hybrid", "prefix norm", num_layers=1, num_channels=d, bias=True),
            *parameters.decoder_layer("hybrid", num_layers=1, output_bias=True, **layer),
            *parameters.decoder_layer(
                "self-attention", num_layers=s.num_layers - 1, output_bias=False, **layer
            ),
            Parameters("self", "output", "logits bias", s.vocab_size),
        )

    def _kept_prefix(self, sizes: Sizes, training: bool) -> Any:
        if not training or self.num_kept is not None:
            return sizes.num_kept
        return sizes.num_prefix * _exact_complement(self.prefix_dropout)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoder(Architecture):
    """A decoder-only transformer; the defaults are GPT-2's, but for the exact GELU.

    Learned positions, pre-LayerNorm, a final norm, an MLP of width w·d, no output bias.

    Attributes:
        vocab_size: V.
        seq_len: n, positions.
        num_channels: d, divisible by ``num_heads``.
        num_layers: L.
        num_heads: h.
        widening_factor: w.
        bias: Whether linear layers and LayerNorms have biases.
        tie_embeddings: Whether the output layer's weight is the token embedding.

    Raises:
        TypeError: If a size is not an integer or a flag not a bool.
        ValueError: If a size is not positive, d is not divisible by h, or arrays do not broadcast.

    Source: Radford et al. 2019, Language models are unsupervised multitask learners.

    >>> gpt2 = Decoder(vocab_size=50257, seq_len=1024, num_channels=768, num_layers=12,
    ...                num_heads=12)
    >>> gpt2.flops(level="dense").forward
    291648307200

    """

    vocab_size: Size
    seq_len: Size
    num_channels: Size
    num_layers: Size
    num_heads: Size
    widening_factor: Size = 4
    bias: bool = True
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        """Validate every argument and bring sizes into their exact form."""
        names = (
            "vocab_size",
            "seq_len",
            "num_channels",
            "num_layers",
            "num_heads",
            "widening_factor",
        )
        self._store(self._required(dict.fromkeys(names, 1)))
        require_flag("bias", self.bias)
        require_flag("tie_embeddings", self.tie_embeddings)
        self.sizes()

    def sizes(self, *, batch_size: Size = 1, training: bool = True) -> Sizes:
        """n, h, c, d, L, V, w and B; a decoder-only model has no prefix: m = k = 0."""
        arguments = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        require_same_kind({**arguments, "batch_size": batch_size})
        return Sizes(
            batch_size=batch_size,
            num_latents=self.seq_len,
            num_prefix=0,
            num_kept=0,
            num_selected=0,
            num_heads=self.num_heads,
            head_dim=divide("num_channels", self.num_channels, "num_heads", self.num_heads),
            num_channels=self.num_channels,
            num_layers=self.num_layers,
            vocab_size=self.vocab_size,
            widening_factor=self.widening_factor,
        )

    def matmuls(self, sizes: Sizes, level: str) -> tuple[Matmul, ...]:
        """L decoder layers and the output layer."""
        s = sizes
        return (
            *layers.decoder_layer(
                "decoder",
                level=level,
                num_layers=s.num_layers,
                batch_size=s.batch_size,
                num_latents=s.num_latents,
                num_channels=s.num_channels,
                num_heads=s.num_heads,
                head_dim=s.head_dim,
                widening_factor=s.widening_factor,
            ),
            *layers.output_layer(
                batch_size=s.batch_size,
                num_latents=s.num_latents,
                num_channels=s.num_channels,
                vocab_size=s.vocab_size,
            ),
        )

    def elementwise(self, sizes: Sizes, level: str, training: bool) -> tuple[Elementwise, ...]:
        """Embedding, decoder layers, final norm and, in training, the loss."""
        s = sizes
        n, d = s.num_latents, s.num_channels
        rows = (
            elementwise.embedding("self", batch_size=s.batch_size, num_positions=n, num_channels=d),
            *elementwise.decoder_layer(
                "decoder",
                level=level,
                num_layers=s.num_layers,
                batch_size=s.batch_size,
                num_latents=n,
                num_channels=d,
                num_heads=s.num_heads,
                widening_factor=s.widening_factor,
                norm_bias=self.bias,
                input_bias=self.bias,
                output_bias=self.bias,
                mlp_bias=self.bias,
            ),
            elementwise.norm(
                "self",
                "output",
                "final norm",
                num_norms=s.batch_size,
                num_positions=n,
                num_channels=d,
                bias=self.bias,
                checkpointed=False,
            ),
        )
        if not training:
            return rows
        rows += (elementwise.loss(batch_size=s.batch_size, num_latents=n, vocab_size=s.vocab_size),)
        if self.tie_embeddings:
            rows += (elementwise.tied_gradient(num_channels=d, vocab_size=s.vocab_size),)
        return rows

    def parameter_rows(self, sizes: Sizes) -> tuple[Parameters, ...]:
        """Token and position embeddings, layers, final norm, and an untied output layer."""
        s = sizes
        d = s.num_channels
        rows = (
            parameters.embedding("self", "token", num_rows=s.vocab_size, num_channels=d),
            parameters.embedding("self", "positions", num_rows=s.num_latents, num_channels=d),
            *parameters.decoder_layer(
                "decoder",
                num_layers=s.num_layers,
                num_channels=d,
                widening_factor=s.widening_factor,
                norm_bias=self.bias,
                input_bias=self.bias,
                output_bias=self.bias,
                mlp_bias=self.bias,
            ),
            parameters.norm("output", "final norm", num_layers=1, num_channels=d, bias=self.bias),
        )
        if self.tie_embeddings:
            return rows
        weight = parameters.linear(
            "output", "logits", num_layers=1, in_channels=d, out_channels=s.vocab_size, bias=False
        )
        return (*rows, weight)

    def _kept_prefix(self, sizes: Sizes, training: bool) -> Any:
        return 0


def _exact_complement(fraction: Any) -> Any:
    """1 - p, exactly: a float is the binary fraction that it is."""
    if is_symbolic(fraction):
        return 1 - fraction
    if is_array(fraction):
        import numpy as np

        return np.frompyfunc(lambda p: 1 - Fraction(p), 1, 1)(fraction)
    return 1 - Fraction(fraction)
