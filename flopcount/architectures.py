"""The architectures that can be counted, as their users describe them."""

from __future__ import annotations

import abc
import dataclasses
import functools
import itertools
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Annotated, Any

from flopcount.blocks import (
    MLP,
    Attention,
    Block,
    Embedding,
    Layers,
    Network,
    Norm,
    Output,
    PrefixAttention,
    Residual,
    Rotary,
    Selection,
    rotated_channels,
    rows_of,
)
from flopcount.conventions import CONVENTIONS, Inputs, Terms
from flopcount.count import (
    LEVELS,
    Count,
    ParameterCount,
    Term,
    WorkCount,
    add,
    added,
    in_order,
    product_term,
    work_term,
)
from flopcount.executed import Tiling
from flopcount.finetuning import FineTuning, Tuned, prepared
from flopcount.inference import Inference
from flopcount.inputs import inputs_of
from flopcount.masks import Causal
from flopcount.operations import Pass
from flopcount.packing import filled, histogram
from flopcount.rows import CHECKPOINTING, AnyRow, Part, Product, Tensor, Work
from flopcount.sizes import (
    Size,
    as_objects,
    divide,
    equal,
    is_array,
    is_symbolic,
    kept_positions,
    map_sizes,
    minimum,
    multiply,
    quoted,
    require_at_most,
    require_choice,
    require_flag,
    require_fraction,
    require_same_kind,
    require_size,
    safe_for,
)


@dataclasses.dataclass(frozen=True)
class Dimension:
    """What a field that is a size means, beside its type.

    Attributes:
        letter: In formulas; empty for a size that formulas on symbols leave at its default.
        noun: What the letter counts.
        minimum: The smallest value allowed.
    """

    letter: str = ""
    noun: str = ""
    minimum: int = 1

    def require(self, name: str, value: object) -> Size:
        """The value as an exact size."""
        return require_size(name, value, self.minimum)


class Probability:
    """A field that is a number in [0, 1)."""

    require = staticmethod(require_fraction)


class Flag:
    """A field that is True or False."""

    require = staticmethod(require_flag)


@dataclasses.dataclass(frozen=True)
class Choice:
    """A field that is one of some words.

    Attributes:
        words: Which.
    """

    words: tuple[str, ...]

    def require(self, name: str, value: object) -> str:
        """The value, if it is one of the words."""
        return require_choice(name, value, self.words)


@dataclasses.dataclass(frozen=True)
class Pattern:
    """A field that gives each layer a word: layer i has word i modulo their number.

    Attributes:
        words: Which there are.
    """

    words: tuple[str, ...]

    def require(self, name: str, value: object) -> tuple[str, ...]:
        """The words, if all are known."""
        if not isinstance(value, tuple) or not value:
            raise TypeError(
                f"{name} = {quoted(value)}: expected a tuple of words, of "
                f"{', '.join(map(repr, self.words))}, which layers take in turn"
            )
        for index, word in enumerate(value):
            require_choice(f"{name}[{index}]", word, self.words)
        return value


def shortest_period(words: Sequence[str]) -> tuple[str, ...]:
    """The fewest words that, repeated, begin with these.

    >>> shortest_period("aab" "aab" "aa")
    ('a', 'a', 'b')
    """
    listed = tuple(words)
    # Of each beginning, the longest other beginning that it ends in (Knuth, Morris and Pratt).
    ends = [0]
    for word in listed[1:]:
        length = ends[-1]
        while length and word != listed[length]:
            length = ends[length - 1]
        ends.append(length + (word == listed[length]))
    return listed[: len(listed) - ends[-1]]


class Note:
    """A field that describes where the others are from, and changes no count."""


def with_letters(kinds: Mapping[str, Any]) -> dict[str, Dimension]:
    """The sizes among kinds of fields that have a letter."""
    return {
        name: kind for name, kind in kinds.items() if isinstance(kind, Dimension) and kind.letter
    }


Vocabulary = Annotated[Size, Dimension("V", "vocabulary")]
Channels = Annotated[Size, Dimension("d", "channels")]
NumLayers = Annotated[Size, Dimension("L", "layers")]
NumHeads = Annotated[Size, Dimension("h", "heads")]
Widening = Annotated[Size, Dimension("w", "widening factor")]


class Architecture(Inference):
    """What all models share: sizes go in, counts come out."""

    @property
    @abc.abstractmethod
    def length(self) -> Size:
        """n, the positions that predict."""

    def lettered(self) -> dict[str, Dimension]:
        """The sizes that formulas on symbols have as letters: those given."""
        return {
            name: kind
            for name, kind in with_letters(self.kinds()).items()
            if getattr(self, name) is not None
        }

    @property
    def title(self) -> str:
        """What tables call the model."""
        return type(self).__name__

    def convention_inputs(self, at: Pass) -> Inputs:
        """What published conventions are computed from, read off the network."""
        return inputs_of(self.network(at), self.params().self_part, **self.convention_prefix(at))

    def convention_prefix(self, at: Pass) -> dict[str, Any]:
        """What conventions are told of a prefix: nothing where there is none."""
        return {}

    @classmethod
    @functools.cache
    def kinds(cls) -> Mapping[str, Any]:
        """What each field is: a :class:`Dimension`, a :class:`Probability` or another kind."""
        hints = typing.get_type_hints(cls, include_extras=True)
        fields: Any = dataclasses.fields(cls)  # type: ignore[arg-type]
        kinds = {}
        for field in fields:
            described = getattr(hints[field.name], "__metadata__", None)
            if described is None and hints[field.name] is not bool:
                raise TypeError(
                    f"{cls.__name__}.{field.name} is annotated with {hints[field.name]}: expected "
                    "bool, or Annotated with a kind such as a Dimension"
                )
            kind = described[0] if described else Flag()
            if not isinstance(kind, Note):
                kinds[field.name] = kind
        return kinds

    def __post_init__(self) -> None:
        """Validate every field and bring sizes into their exact form."""
        arguments = {
            name: None if value is None and self._may_be_none(name) else kind.require(name, value)
            for name, kind in self.kinds().items()
            for value in [getattr(self, name)]
        }
        for name, value in require_same_kind(arguments).items():
            object.__setattr__(self, name, value)
        self.network(Pass(1, 1))

    def _may_be_none(self, name: str) -> bool:
        return getattr(type(self), name, "required") is None

    def _rows(
        self,
        kind: type[AnyRow],
        formula: Callable[[Pass, list[Any]], Any],
        at: Pass,
    ) -> Any:
        """``formula`` of a pass and its rows of a kind, on sizes that do not overflow its total."""

        def evaluate(network: Network) -> Any:
            rows = [row for row in self._rows_of(network) if type(row) is kind]
            return formula(network[0][0], rows)

        return evaluate(safe_for(self.network(at), lambda bound: evaluate(bound).with_recompute))

    def params(self, tuning: FineTuning | None = None) -> ParameterCount:
        """Parameters, tensor by tensor; tied ones once.

        Args:
            tuning: What is trained, if not everything; LoRA's tensors are parameters, too.

        Returns:
            A :class:`~flopcount.count.ParameterCount`; ``.total`` is N, ``.active`` leaves out the
            experts that a token does not use, ``.matmul_active`` is what 2N needs,
            ``.trainable`` is what an optimizer keeps its state of.

        >>> import flopcount as fc
        >>> gpt2 = fc.Decoder(vocab_size=50257, seq_len=1024, num_channels=768, num_layers=12,
        ...                   num_heads=12)
        >>> gpt2.params().total
        124439808

        """

        def count(network: Network) -> ParameterCount:
            rows = list(self._rows_of(network))
            tensors = [row for row in rows if isinstance(row, Tensor)]
            return ParameterCount(
                self,
                tuple(tensor for tensor in tensors if not tensor.is_buffer),
                tuple(tensor for tensor in tensors if tensor.is_buffer),
                tuple(row for row in rows if isinstance(row, Product)),
            )

        def totals(network: Network) -> tuple[Size, ...]:
            counted = count(network)
            return counted.total, counted.active, counted.matmul_active

        at = Pass(1, 1)
        tuned = prepared(self.network(at), tuning, None, None, self._all_layers())
        if tuned is not None:
            # Whatever needs a gradient, the tensors are the same: layers stay together.
            tuned = dataclasses.replace(tuned, input_gradients=True)
        return count(safe_for(self.network(at.at(tuning=tuned)), totals))

    def _all_layers(self) -> Size:
        """How many layers the network has."""
        network: Any = self.network(Pass(1, 1))
        numbers = [b.number for _, blocks in network for b in blocks if hasattr(b, "carries")]
        return add(map(as_objects, numbers))

    def _rows_of(self, network: Network) -> Iterator[AnyRow]:
        tuned: Tuned | None = network[0][0].tuning
        return rows_of(network) if tuned is None else tuned.rows(network)

    def flops(
        self,
        level: str | None = None,
        *,
        convention: str | None = None,
        training: bool = True,
        batch_size: Size = 1,
        checkpointing: str | None = None,
        recompute: Any = None,
        tuning: FineTuning | None = None,
        documents: Any = None,
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
            recompute: What of each layer it executes again, where that is not all: patterns of
                terms, such as ``"mlp *"``, or ``"attention core"``, which lies between the
                projections. Terms that follow each other are checkpointed together.
            tuning: What is trained, if not everything: a :class:`~flopcount.FineTuning`.
            documents: Lengths of the documents that are packed into the batch's sequences, or a
                mapping from lengths to how many have them: at level ``causal`` positions attend
                within their document, each of which counts as if it stood alone. What none fills is
                padding: it passes through every layer, and attends to nothing.

        Returns:
            A :class:`~flopcount.count.Count`; ``.total`` is in FLOPs, a multiply-add being 2.
            ``.padding`` is the share of positions that no document fills, and ``.tokens`` are
            those that one does.

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: If a level, convention or flavour of checkpointing is unknown, or if
                arguments contradict each other.

        >>> import flopcount as fc
        >>> model = fc.PerceiverAR(vocab_size=32_000, num_latents=512, num_prefix=1536,
        ...                        num_channels=512, num_layers=9, prefix_dropout=0.5)
        >>> model.flops().per_token
        291793920

        """
        at = self._pass(training, batch_size, checkpointing, recompute, tuning)
        if convention is not None:
            if at.tuning is not None:
                raise ValueError(
                    f"convention = {quoted(convention)} with tuning = {quoted(tuning)} and "
                    f"recompute = {quoted(recompute)}: expected None, since no convention knows "
                    "of frozen weights"
                )
            if level is not None or checkpointing is not None:
                raise ValueError(
                    f"convention = {quoted(convention)} with level = {quoted(level)} and "
                    f"checkpointing = {quoted(checkpointing)}: expected a convention alone"
                )
            if documents is not None:
                raise ValueError(
                    f"convention = {quoted(convention)} with documents = {quoted(documents)}: "
                    "expected None, since no convention knows of documents"
                )
            require_choice("convention", convention, CONVENTIONS)
            return self._convention_count(convention, at)
        if isinstance(level, str) and level == "executed":
            raise ValueError("level = 'executed' needs the kernels' tiling: call .executed(tiling)")
        level = require_choice("level", "causal" if level is None else level, LEVELS)
        asked: dict[str, Any] = dict(tuning=tuning, recompute_terms=recompute)
        if documents is None:
            return dataclasses.replace(self._count(level, at, checkpointing), **asked)
        packed = histogram(documents, at.length, at.batch)
        sizes = {f"documents[{i}]": size for i, size in enumerate(itertools.chain(*packed))}
        require_same_kind(self._arguments(at) | sizes)
        self._require_documents()
        counted = self._count(level, at.at(documents=packed), checkpointing)
        tokens = filled(packed)
        return dataclasses.replace(counted, tokens=tokens, positions=counted.tokens, **asked)

    def _require_documents(self) -> None:
        """Raise a ValueError if positions of a document attend to others than its own."""

    def executed(
        self,
        tiling: Tiling,
        *,
        tilings: Mapping[str, Tiling] | None = None,
        training: bool = True,
        batch_size: Size = 1,
        checkpointing: str | None = None,
        recompute: Any = None,
        tuning: FineTuning | None = None,
    ) -> Count:
        """FLOPs of one step as hardware executes it with fused attention kernels.

        Attention counts every tile that the kernels visit, in whole and at the padded head dim, and
        the seven or eight products of their backward pass: see :mod:`flopcount.executed`. Linear
        layers count as they are; what a library's matrix product pads is not in it.

        Args:
            tiling: How the kernels cut their work.
            tilings: By a layer's name, how they cut that layer's, if otherwise: Perceiver AR's
                ``"hybrid"`` layer has more keys.
            training: As for :meth:`flops`.
            batch_size: As for :meth:`flops`.
            checkpointing: As for :meth:`flops`: attention's forward kernel runs again.
            recompute: As for :meth:`flops`.
            tuning: As for :meth:`flops`; attention's kernels compute the gradients of queries, keys
                and values together, whichever of them is needed.

        Returns:
            A :class:`~flopcount.count.Count` at level ``executed``; ``.hfu`` is hardware FLOPs
            utilisation. Element-wise work is not counted.

        Raises:
            TypeError: If an argument has the wrong type, or the tiling has symbols and a size is an
                array.
            ValueError: If a flavour of checkpointing is unknown, or given without training; if
                ``tilings`` names no layer with attention; if the kernels run no mask of the model.

        >>> import flopcount as fc
        >>> model = fc.Decoder(vocab_size=50257, seq_len=512, num_channels=876, num_layers=12,
        ...                    num_heads=12)  # head dim 73
        >>> tiling = fc.Tiling(forward=(128, 64), key_value=(32, 128), query=(128, 64))
        >>> executed, causal = model.executed(tiling), model.flops()
        >>> round(executed.total / causal.total, 4)
        1.0354

        """
        if tilings is not None and not isinstance(tilings, Mapping):
            raise TypeError(
                f"tilings = {quoted(tilings)}: expected a mapping from names of layers to tilings"
            )
        own = {} if tilings is None else dict(tilings)
        named = {f"tilings[{quoted(layer)}]": given for layer, given in own.items()}
        for name, given in {"tiling": tiling, **named}.items():
            if not isinstance(given, Tiling):
                raise TypeError(f"{name} = {quoted(given)}: expected a flopcount.Tiling")
        at = self._pass(training, batch_size, checkpointing, recompute, tuning)
        blocks = {
            f"{layer} {name}": size
            for layer, given in own.items()
            for name, size in given.sizes().items()
        }
        require_same_kind({**self._arguments(at), **tiling.sizes(), **blocks})
        counted = self._count("executed", at, checkpointing, lambda name: own.get(name, tiling))
        known = {row.layer for row in counted.rows if row.pairs is not None}
        unknown = [layer for layer in own if layer not in known]
        if unknown:
            raise ValueError(
                f"tilings = {quoted(unknown)}: expected names of layers with attention of a "
                f"{type(self).__name__}: {', '.join(sorted(known))}"
            )
        return dataclasses.replace(counted, tuning=tuning, recompute_terms=recompute)

    def arguments(self) -> dict[str, Any]:
        """The fields that describe the model, by name."""
        return {name: getattr(self, name) for name in self.kinds()}

    def _arguments(self, at: Pass) -> dict[str, Any]:
        return {**self.arguments(), "batch_size": at.batch}

    def _pass(
        self,
        training: bool,
        batch_size: Size,
        checkpointing: str | None,
        recompute: Any = None,
        tuning: FineTuning | None = None,
    ) -> Pass:
        """The pass of a step whose options do not contradict each other."""
        require_flag("training", training)
        batch = require_size("batch_size", batch_size)
        if checkpointing is not None:
            require_choice("checkpointing", checkpointing, CHECKPOINTING)
            if not training:
                raise ValueError(
                    f"checkpointing = {checkpointing!r} with training = False: expected None, "
                    "since nothing is recomputed without a backward pass"
                )
        at = Pass(batch, self.length, training=training)
        sizes = tuning.sizes() if isinstance(tuning, FineTuning) else {}
        require_same_kind({**self._arguments(at), **sizes})
        tuned = prepared(self.network(at), tuning, checkpointing, recompute, self._all_layers())
        return at.at(tuning=tuned)

    def _count(
        self,
        level: str,
        at: Pass,
        checkpointing: str | None,
        tilings: Callable[[str], Tiling] | None = None,
        request: str = "",
    ) -> Count:
        # Fine-tuning makes several rows of layers that are equal but for their backward pass.
        together = in_order if at.tuning is None else added

        def work() -> WorkCount:
            counted: WorkCount = self._rows(
                Work,
                lambda _, works: WorkCount(
                    together(work_term(row, level, at.training, checkpointing) for row in works),
                    checkpointing,
                ),
                at,
            )
            return counted

        def count(inside: Pass, products: list[Product]) -> Count:
            return Count(
                model=self,
                level=level,
                convention=None,
                terms=together(
                    product_term(row, level, tilings, at.training, checkpointing)
                    for row in products
                ),
                training=at.training,
                checkpointing=checkpointing,
                batch_size=inside.batch,
                tokens=inside.batch * inside.length,
                work=None if level == "executed" else work,
                request=request,
            )

        counted: Count = self._rows(Product, count, at)
        return counted

    def _convention_count(self, name: str, at: Pass) -> Count:
        convention = CONVENTIONS[name]
        inputs: Inputs = map_sizes(self.convention_inputs(at), as_objects)
        batch, n = as_objects(at.batch), inputs.num_latents

        def terms(part: Part, formula: Callable[[Inputs], Terms]) -> tuple[Term, ...]:
            return tuple(
                Term(
                    part,
                    layer,
                    term,
                    batch * forward,
                    (2 - (term in convention.frozen) if at.training else 0) * batch * forward,
                    False,
                    convention.source,
                )
                for layer, term, forward in formula(inputs)
            )

        not_covered: set[Part] = set()
        all_terms: tuple[Term, ...] = ()
        lacks = convention.lacks(inputs)
        if lacks:
            not_covered.add("self")
        else:
            all_terms += terms("self", convention.self_part)
        if is_array(inputs.num_prefix) or inputs.num_prefix != 0:
            if convention.cross_part is None:
                not_covered.add("cross")
            else:
                all_terms += terms("cross", convention.cross_part)
        return Count(
            model=self,
            level=None,
            convention=name,
            terms=all_terms,
            training=at.training,
            checkpointing=None,
            batch_size=batch,
            tokens=batch * n,
            not_covered=frozenset(not_covered),
            lacks=lacks,
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

    vocab_size: Vocabulary
    num_latents: Annotated[Size, Dimension("n", "latents")]
    num_prefix: Annotated[Size, Dimension("m", "prefix positions", minimum=0)]
    num_channels: Channels
    num_layers: NumLayers
    num_heads: NumHeads = 8
    prefix_dropout: Annotated[Any, Probability()] = 0.0
    num_kept: Annotated[Size | None, Dimension("k", "of them kept", minimum=0)] = None
    widening_factor: Widening = 4

    def __post_init__(self) -> None:
        """Validate every field, and that k is given once and no larger than m."""
        super().__post_init__()
        if self.num_kept is None:
            return
        dropout = self.prefix_dropout
        if is_symbolic(dropout) or is_array(dropout) or dropout != 0:
            raise ValueError(
                f"num_kept = {quoted(self.num_kept)} and prefix_dropout = {quoted(dropout)}: "
                "expected one of the two"
            )
        require_at_most("num_kept", self.num_kept, "num_prefix", self.num_prefix)

    @property
    def length(self) -> Size:
        """How many positions predict: n."""
        return self.num_latents

    def kept(self, training: bool = True) -> Size:
        """k, the prefix positions that the hybrid layer attends to; all m in evaluation."""
        return self._kept if training else self.num_prefix

    @functools.cached_property
    def _kept(self) -> Size:
        if self.num_kept is not None:
            return self.num_kept
        if is_symbolic(self.prefix_dropout) or is_array(self.prefix_dropout) or self.prefix_dropout:
            return kept_positions(self.num_prefix, self.prefix_dropout)
        return self.num_prefix

    def selected(self, training: bool = True) -> Size:
        """Prefix positions that prefix dropout gathers: k where it acts, else 0."""
        if not training:
            return 0
        if is_array(self.prefix_dropout):
            return self.kept() * (self.prefix_dropout > 0)
        given = self.num_kept is not None or is_symbolic(self.prefix_dropout)
        return self.kept() if given or self.prefix_dropout > 0 else 0

    def network(self, at: Pass) -> Network:
        """The hybrid layer, L - 1 self-attention layers, the output layer."""
        d, h = self.num_channels, self.num_heads
        c = divide("num_channels", d, "num_heads", h)
        rotary = Rotary(rotated_channels(c))
        hybrid = Attention(d, h, h, c, d, d, out_bias=True, rotary=rotary)
        later = Attention(d, h, h, c, d, d, rotary=dataclasses.replace(rotary, once=True))
        mlp = Residual("mlp", Norm("mlp norm", d), MLP(d, multiply(self.widening_factor, d)))
        kept = self.kept(at.training) if at.inference is None else at.memory
        prefix = PrefixAttention(hybrid, kept, Norm("prefix norm", d))

        def layer(attention: Block) -> tuple[Block, ...]:
            return Residual("attention", Norm("norm", d), attention), mlp

        embedded = {None: self.num_prefix, "prefill": at.memory, "decode": 0}[at.inference]
        before = at.at(part="cross", length=embedded)
        return (
            (at, (Embedding(d, self.vocab_size, self.num_latents, "latent positions"),)),
            (before, (Embedding(d, None, self.num_prefix, "prefix positions"),)),
            (before.at(length=self.selected(at.training)), (Selection(d),)),
            (at, (
                Layers("hybrid", 1, layer(prefix)),
                Layers("self-attention", self.num_layers - 1, layer(later)),
                Output(d, self.vocab_size, tied=True, bias=True),
            )),
        )  # fmt: skip

    def _require_documents(self) -> None:
        """A prefix is of one document."""
        raise ValueError(
            "documents of a PerceiverAR: expected None, since all latents attend to one prefix"
        )

    def _forgets(self) -> bool:
        """No: a cache knows how its positions were divided into prefix and latents."""
        return False

    def _after_prompt(self, prompt_len: Size, num_latents: Size | None) -> dict[str, Size | None]:
        """A prompt's prefix stays as it is."""
        given = self._num_latents(prompt_len) if num_latents is None else num_latents
        return {"cached": prompt_len, "num_latents": given}

    def _num_latents(self, prompt_len: Size) -> Size:
        """As few as can be: those beyond the longest prefix, and one at least."""
        prefix = minimum(prompt_len - 1, self.num_prefix)
        return minimum(prompt_len - prefix, self.num_latents)

    def _placed(self, at: Pass, num_latents: Size | None) -> Pass:
        """Of a prompt, the last positions are latents and those before them the prefix.

        Of a longer one the beginning is left out. Every new token becomes a latent.

        Raises:
            ValueError: If the window would slide: the caches are then made anew from the tokens
                (``models.networks.generation``), which no count here describes.
        """
        decodes = at.inference == "decode"
        given = at.cached if decodes else at.length
        if not decodes and (at.chunk is not None or not equal(at.cached, 0)):
            raise ValueError(
                f"chunk = {quoted(at.chunk)}, cached = {quoted(at.cached)} of a PerceiverAR's "
                "prompt: expected neither, since its prefix is read at once"
            )
        if num_latents is None:
            if decodes and equal(given, 0):
                raise ValueError("cached = 0 of a PerceiverAR: expected a prompt that is cached")
            num_latents = self._num_latents(given)
        else:
            num_latents = require_size("num_latents", num_latents)
            require_at_most("num_latents", num_latents, "the positions given", given)
        slides = "since beyond it the window slides, and the cache is made anew from the tokens"
        total = as_objects(num_latents) + as_objects(at.length) if decodes else num_latents
        name = "num_latents + new_tokens" if decodes else "num_latents"
        require_at_most(name, total, "the model's num_latents", self.num_latents, slides)
        memory = minimum(given - num_latents, self.num_prefix)
        if decodes:
            return at.at(cached=num_latents, memory=memory)
        return at.at(length=num_latents, memory=memory)

    def convention_prefix(self, at: Pass) -> dict[str, Any]:
        """(1 - p)·m is not rounded; k stands in its place where it is given, m in evaluation."""
        kept = self.num_kept
        if not at.training:
            kept = self.num_prefix
        elif kept is None:
            kept = as_objects(self.num_prefix) * _exact_complement(self.prefix_dropout)
        return {"num_prefix": self.num_prefix, "kept_prefix": kept}


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
        num_positions: Rows of the table of learned positions, at least n; n unless given.

    Raises:
        TypeError: If a size is not an integer or a flag not a bool.
        ValueError: If a size is not positive, d is not divisible by h, n exceeds the table of
            positions, or arrays do not broadcast.

    Source: Radford et al. 2019, Language models are unsupervised multitask learners.

    >>> gpt2 = Decoder(vocab_size=50257, seq_len=1024, num_channels=768, num_layers=12,
    ...                num_heads=12)
    >>> gpt2.flops(level="dense").forward
    291648307200

    """

    vocab_size: Vocabulary
    seq_len: Annotated[Size, Dimension("n", "positions")]
    num_channels: Channels
    num_layers: NumLayers
    num_heads: NumHeads
    widening_factor: Widening = 4
    bias: bool = True
    tie_embeddings: bool = True
    num_positions: Annotated[Size | None, Dimension()] = None

    def __post_init__(self) -> None:
        """Validate every field, and that the table of positions is long enough."""
        super().__post_init__()
        if self.num_positions is not None:
            require_at_most("seq_len", self.seq_len, "num_positions", self.num_positions)

    @property
    def length(self) -> Size:
        """How many positions predict: n."""
        return self.seq_len

    def network(self, at: Pass) -> Network:
        """L decoder layers, a final norm, the output layer."""
        d, h, bias = self.num_channels, self.num_heads, self.bias
        c = divide("num_channels", d, "num_heads", h)
        positions = self.seq_len if self.num_positions is None else self.num_positions
        attention = Attention(d, h, h, c, d, d, bias=bias, out_bias=bias)
        mlp = MLP(d, multiply(self.widening_factor, d), bias)
        layer = (
            Residual("attention", Norm("norm", d, bias), attention),
            Residual("mlp", Norm("mlp norm", d, bias), mlp),
        )
        norm = Norm("final norm", d, bias)
        return (
            (at, (
                Embedding(d, self.vocab_size, positions),
                Layers("decoder", self.num_layers, layer),
                Output(d, self.vocab_size, self.tie_embeddings, norm=norm),
            )),
        )  # fmt: skip

    def _longest(self) -> tuple[str, Size]:
        """Those of the table of positions."""
        if self.num_positions is None:
            return "seq_len", self.seq_len
        return "num_positions", self.num_positions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama(Architecture):
    """A decoder-only transformer in Llama's shape.

    Grouped heads, rotary embedding of whole heads, pre-RMSNorm, a final norm, a gated MLP with
    SiLU, no biases.

    Attributes:
        vocab_size: V.
        seq_len: n, positions.
        num_channels: d.
        num_layers: L.
        num_heads: h.
        intermediate_size: f, hidden channels of the MLP.
        num_key_value_heads: g, which divides h; h unless given.
        head_dim: c, even; d / h unless given.
        window: W, the last positions that a query attends to, its own included; all unless given.
        tie_embeddings: Whether the output layer's weight is the token embedding.

    Raises:
        TypeError: If a size is not an integer or a flag not a bool.
        ValueError: If a size is not positive, h is not divisible by g, d not by h without a head
            dim, a head dim is odd, or arrays do not broadcast.

    Source: Touvron et al. 2023 (arXiv 2302.13971); Ainslie et al. 2023 (arXiv 2305.13245) for
    grouped heads; Jiang et al. 2023 (arXiv 2310.06825) for the window.

    >>> llama = Llama(vocab_size=128256, seq_len=8192, num_channels=4096, num_layers=32,
    ...               num_heads=32, num_key_value_heads=8, intermediate_size=14336)
    >>> llama.params().total
    8030261248

    """

    vocab_size: Vocabulary
    seq_len: Annotated[Size, Dimension("n", "positions")]
    num_channels: Channels
    num_layers: NumLayers
    num_heads: NumHeads
    intermediate_size: Annotated[Size, Dimension("f", "hidden channels")]
    num_key_value_heads: Annotated[Size | None, Dimension("g", "key-value heads")] = None
    head_dim: Annotated[Size | None, Dimension("c", "channels of a head")] = None
    window: Annotated[Size | None, Dimension()] = None
    tie_embeddings: bool = False

    @property
    def length(self) -> Size:
        """How many positions predict: n."""
        return self.seq_len

    def network(self, at: Pass) -> Network:
        """L layers, a final norm, the output layer."""
        d, h = self.num_channels, self.num_heads
        g = h if self.num_key_value_heads is None else self.num_key_value_heads
        divide("num_heads", h, "num_key_value_heads", g)
        c = self.head_dim
        if c is None:
            c = divide("num_channels", d, "num_heads", h)
        divide("head_dim", c, "the channels of a rotary pair", 2)
        attention = Attention(
            d, h, g, c, multiply(h, c), multiply(g, c), Causal(self.window), rotary=Rotary(c)
        )
        mlp = MLP(d, self.intermediate_size, gated=True, activation="silu")
        norm, mlp_norm, final = (
            Norm(term, d, bias=False, rms=True) for term in ("norm", "mlp norm", "final norm")
        )
        layer = Residual("attention", norm, attention), Residual("mlp", mlp_norm, mlp)
        return (
            (at, (
                Embedding(d, self.vocab_size),
                Layers("decoder", self.num_layers, layer),
                Output(d, self.vocab_size, self.tie_embeddings, norm=final),
            )),
        )  # fmt: skip


ARCHITECTURES: dict[str, type[Architecture]] = {
    "perceiver-ar": PerceiverAR,
    "decoder": Decoder,
    "llama": Llama,
}
"""What can be described, by its name on the command line."""


def _exact_complement(fraction: Any) -> Any:
    """1 - p, exactly: a float is the binary fraction that it is."""
    if is_symbolic(fraction):
        return 1 - fraction
    if is_array(fraction):
        import numpy as np

        return np.frompyfunc(lambda p: 1 - Fraction(p), 1, 1)(fraction)
    return 1 - Fraction(fraction)
