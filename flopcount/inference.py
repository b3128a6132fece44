"""Inference: reading a prompt, generating tokens behind it, and what is cached meanwhile.

Nothing here is a formula: each request is one or more passes (:class:`flopcount.operations.Pass`)
of the network that ``flops`` counts, and the blocks know what a pass behind a
cache multiplies.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from flopcount.blocks import Network, rows_of
from flopcount.count import LEVELS, Count, Tally, add
from flopcount.operations import MLA, Pass
from flopcount.rows import Cached
from flopcount.sizes import (
    Size,
    as_objects,
    equal,
    exact_ratio,
    is_array,
    is_symbolic,
    quoted,
    require_at_most,
    require_choice,
    require_fraction,
    require_int,
    require_same_kind,
    require_size,
    safe_for,
)
from flopcount.tables import Table, shown

BITS = {
    "fp64": 64, "fp32": 32, "tf32": 32, "bf16": 16, "fp16": 16, "fp8": 8, "int8": 8, "fp4": 4,
    "int4": 4,
}  # fmt: skip
"""Bits of an element by dtype; scales of quantised blocks are not in them."""


def bits(name: str, dtype: str) -> int:
    """Bits of an element of a dtype, which is the argument ``name``."""
    return BITS[require_choice(name, dtype, BITS)]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class CacheCount(Tally):
    """What is kept between passes, all sequences together.

    Attributes:
        model: The model.
        terms: One per layer and kind: keys, values, latents.
        batch_size: B, sequences.
        positions: Positions read so far, of each.
    """

    model: Any
    terms: tuple[Cached, ...]
    batch_size: Size
    positions: Size

    @functools.cached_property
    def elements(self) -> Size:
        """Numbers kept."""
        return add(term.elements for term in self.terms)

    def bytes(self, dtype: str = "bf16") -> Any:
        """Bytes of them in a dtype, exactly; padding and scales of a quantisation not in it.

        Args:
            dtype: A key of :data:`BITS`.

        Raises:
            ValueError: If the dtype is unknown.
        """
        return exact_ratio(as_objects(self.elements) * bits("dtype", dtype), 8)

    def to_dict(self) -> dict[str, Any]:
        """The cache as plain data."""
        return {
            "elements": self.elements,
            "bytes": {dtype: self.bytes(dtype) for dtype in BITS},
            "batch_size": self.batch_size,
            "positions": self.positions,
            "terms": self.records(),
        }

    def _tables(self) -> list[Table | str]:
        return [
            Table(
                ["part", "layer", "name", "elements"],
                [list(record.values()) for record in self.records()],
                title=f"Cache of {self.model.title} behind {shown(self.positions)} positions, "
                f"batch of {shown(self.batch_size)}",
                footer=["total", None, None, self.elements],
                note=", ".join(
                    f"{shown(self.bytes(dtype))} bytes in {dtype}"
                    for dtype in ("bf16", "fp8", "int4")
                ),
                keys=3,
            )
        ]


def kept(network: Network) -> tuple[Cached, ...]:
    """What a network keeps between passes."""
    return tuple(row for row in rows_of(network) if isinstance(row, Cached))


class Inference(abc.ABC):
    """What a model that generates can be asked."""

    @abc.abstractmethod
    def network(self, at: Pass) -> Network:
        """The blocks of the network, and the pass that each works in; ``at`` is the first."""

    @abc.abstractmethod
    def _arguments(self, at: Pass) -> dict[str, Any]:
        """What the model was given, and the batch, by name."""

    @abc.abstractmethod
    def _count(
        self,
        level: str,
        at: Pass,
        checkpointing: str | None,
        tilings: Callable[[str], Any] | None = None,
        request: str = "",
    ) -> Count:
        """FLOPs of a pass at a level."""

    def prefill(
        self,
        prompt_len: Size,
        level: str | None = None,
        *,
        logits: str | Size = "last",
        batch_size: Size = 1,
        cached: Size = 0,
        chunk: Size | None = None,
        mla: str | None = None,
        num_latents: Size | None = None,
    ) -> Count:
        """FLOPs of reading a prompt, all its positions at once or in chunks.

        Args:
            prompt_len: P, positions of each prompt; of an encoder-decoder, the encoder reads them,
                and the decoder one token.
            level: ``"causal"``, the default, or ``"dense"``, as for ``flops``.
            logits: Of which positions logits are computed: ``"last"`` (of every chunk, as
                transformers does), ``"all"``, or how many of the last.
            batch_size: B, prompts.
            cached: Positions before the prompt that are cached already: of an earlier turn, or of a
                beginning that prompts share.
            chunk: Positions of each of the passes that the prompt is read in; all unless given.
            mla: Of latent attention: a key of :data:`flopcount.operations.MLA`; ``"latent"``, which
                transformers runs, unless given.
            num_latents: Of Perceiver AR: how many of the last positions are latents; as few as can
                be unless given.

        Returns:
            A :class:`~flopcount.count.Count`; ``.tokens`` are the positions read. Counts of one
            model can be added.

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: If an argument is out of range, the model does not generate, or the prompt
                has more positions than it takes.

        >>> import flopcount as fc
        >>> llama = fc.Llama(vocab_size=128256, seq_len=8192, num_channels=4096, num_layers=32,
        ...                  num_heads=32, num_key_value_heads=8, intermediate_size=14336)
        >>> llama.prefill(1000).total
        14222100529152

        """
        length = require_size("prompt_len", prompt_len)
        options: dict[str, Any] = {}
        if chunk is not None:
            options["chunk"] = require_size("chunk", chunk)
        at = self._pass_behind("prefill", length, batch_size, cached, mla, num_latents, **options)
        if not isinstance(logits, str):
            require_size("logits", logits)
            if chunk is not None:
                raise ValueError(
                    f"logits = {quoted(logits)} with chunk = {quoted(chunk)}: expected 'last' or "
                    "'all'"
                )
            require_at_most("logits", logits, "prompt_len", length)
            at = at.at(logits=logits)
        elif require_choice("logits", logits, ("last", "all")) == "last":
            at = at.at(logits=at.passes)
        return self._requested(level, at, f"prefill of {shown(length)}")

    def decode(
        self,
        new_tokens: Size,
        level: str | None = None,
        *,
        cached: Size,
        batch_size: Size = 1,
        mla: str | None = None,
        num_latents: Size | None = None,
    ) -> Count:
        """FLOPs of reading tokens one by one, each in a pass of its own behind a cache.

        At level ``dense`` every pass multiplies the keys that are there: no masked pair, but those
        of an earlier chunk that a cache of chunked attention still holds.

        Args:
            new_tokens: T, passes of one position each.
            level: As for :meth:`prefill`.
            cached: Positions that are cached before the first of them; of an encoder-decoder, those
                of the decoder, behind an encoder of ``seq_len`` positions.
            batch_size: B, sequences.
            mla: As for :meth:`prefill`.
            num_latents: Of Perceiver AR: how many of the cached positions are latents; as few as
                can be unless given.

        Returns:
            As :meth:`prefill`.

        Raises:
            TypeError: As :meth:`prefill`.
            ValueError: As :meth:`prefill`.

        """
        length = require_size("new_tokens", new_tokens)
        return self._decode(length, level, batch_size, mla, cached, num_latents)

    def generate(
        self,
        prompt_len: Size,
        new_tokens: Size,
        level: str | None = None,
        *,
        batch_size: Size = 1,
        chunk: Size | None = None,
        mla: str | None = None,
        num_latents: Size | None = None,
        draft: tuple[Any, int, Sequence[int]] | None = None,
    ) -> Count:
        """FLOPs of answering a prompt of P tokens with T, as transformers generates.

        The prompt is read and the first token chosen from its last logits; each further one costs a
        pass over the token before it: ``prefill(P) + decode(T - 1, cached=P)``.

        With ``draft = (model, k, accepted)`` another model proposes k tokens a round (fewer in the
        last, so that no more than T are made), and this one reads them in one pass, with logits for
        each and one more. Of every round's tokens, as many as ``accepted`` says are right, and one
        of its own follows them. The draft reads the prompt, and in each later round the last two
        tokens at once. Its terms stand beside this model's, in layers whose names begin with
        "draft".

        Args:
            prompt_len: P.
            new_tokens: T.
            level: As for :meth:`prefill`.
            batch_size: B, sequences.
            chunk: As for :meth:`prefill`.
            mla: As for :meth:`prefill`, of decoding, and of a draft that has latents. The prompt is
                read in the form of :func:`reading`: never ``"absorbed"``.
            num_latents: As for :meth:`prefill`.
            draft: Model, tokens per round, and how many of each round are accepted, all ints.

        Returns:
            As :meth:`prefill`; P + T - 1 positions of a sequence are read, with a draft more.

        Raises:
            TypeError: As :meth:`prefill`.
            ValueError: As :meth:`prefill`, and if rounds do not make T tokens.

        Source: the passes: ``transformers``, version 5.24, generation; drafts: Leviathan et al.
        2023 (arXiv 2211.17192).

        >>> import flopcount as fc
        >>> llama = fc.Llama(vocab_size=128256, seq_len=8192, num_channels=4096, num_layers=32,
        ...                  num_heads=32, num_key_value_heads=8, intermediate_size=14336)
        >>> llama.generate(1000, 200).total - llama.prefill(1000).total
        3101620699136
        >>> llama.decode(199, cached=1000).total
        3101620699136

        """
        if draft is not None:
            if chunk is not None or num_latents is not None:
                raise ValueError(
                    f"draft with chunk = {quoted(chunk)} and num_latents = {quoted(num_latents)}: "
                    "expected the draft alone"
                )
            if not isinstance(draft, tuple) or len(draft) != 3:
                raise TypeError(
                    f"draft = {quoted(draft)}: expected a tuple of a model, the tokens that it "
                    "proposes in a round, and how many of each round's are accepted"
                )
            return self._speculate(prompt_len, new_tokens, level, batch_size, mla, *draft)
        length = require_size("new_tokens", new_tokens)
        read = self.prefill(
            prompt_len,
            level,
            batch_size=batch_size,
            chunk=chunk,
            mla=reading(mla),
            num_latents=num_latents,
        )
        prompt = require_size("prompt_len", prompt_len)
        behind = self._after_prompt(prompt, num_latents)
        written = self._decode(length - 1, level, batch_size, mla, **behind)
        request = f"{shown(length)} tokens after {shown(prompt)}"
        return dataclasses.replace(read + written, request=request)

    def cache(
        self,
        positions: Size,
        *,
        batch_size: Size = 1,
        mla: str | None = None,
        num_latents: Size | None = None,
    ) -> CacheCount:
        """What is kept for the next pass when ``positions`` have been read.

        A window of W keeps W - 1 positions, since the next one brings its own key; chunks of A keep
        A - 1, whatever chunk they are of, as transformers does.

        Args:
            positions: Positions read so far, of each sequence; of an encoder-decoder, those of the
                decoder, behind an encoder of ``seq_len``.
            batch_size: B, sequences.
            mla: As for :meth:`prefill`: what is kept follows the form.
            num_latents: As for :meth:`decode`.

        Returns:
            A :class:`CacheCount`; ``.elements``, and ``.bytes(dtype)``.

        Raises:
            TypeError: As :meth:`prefill`.
            ValueError: As :meth:`prefill`.

        >>> import flopcount as fc
        >>> llama = fc.Llama(vocab_size=128256, seq_len=8192, num_channels=4096, num_layers=32,
        ...                  num_heads=32, num_key_value_heads=8, intermediate_size=14336)
        >>> llama.cache(8192).bytes("bf16") == 2**30
        True

        """
        read = require_size("positions", positions)
        at = self._pass_behind("decode", 0, batch_size, read, mla, num_latents)
        network = safe_for(self.network(at), lambda bound: add(row.elements for row in kept(bound)))
        return CacheCount(self, kept(network), at.batch, read)

    def _pass_behind(
        self,
        inference: str,
        length: Size,
        batch_size: Size,
        cached: Size,
        mla: str | None,
        num_latents: Size | None,
        **options: Any,
    ) -> Pass:
        """A pass of inference whose arguments do not contradict each other."""
        at = Pass(
            require_size("batch_size", batch_size),
            length,
            require_size("cached", cached, minimum=0),
            inference=inference,
            training=False,
            **options,
        )
        sizes = {"length": at.length, "cached": at.cached, "chunk": at.chunk}
        require_same_kind(self._arguments(at) | sizes | {"num_latents": num_latents})
        if mla is not None:
            require_choice("mla", mla, MLA)
            if not self._has_latents():
                raise ValueError(
                    f"mla = {mla!r} of a {type(self).__name__} without latent attention: expected "
                    "None"
                )
        return self._placed(at.at(mla="latent" if mla is None else mla), num_latents)

    def _has_latents(self) -> bool:
        """Whether attention has latents of keys and values."""
        return False

    def _forgets(self) -> bool:
        """Whether the last positions can be taken out of the cache again."""
        return True

    def _after_prompt(self, prompt_len: Size, num_latents: Size | None) -> dict[str, Size | None]:
        """What :meth:`_decode` is told of a prompt that has been read."""
        return {"cached": prompt_len, "num_latents": num_latents}

    def _longest(self) -> tuple[str, Size] | None:
        """How many positions a sequence may have, with the name of what says so; None for any."""
        return None

    def _placed(self, at: Pass, num_latents: Size | None) -> Pass:
        """The pass as this network runs it.

        Raises:
            ValueError: If it cannot.
        """
        if num_latents is not None:
            raise ValueError(
                f"num_latents = {quoted(num_latents)} of a {type(self).__name__}: expected None, "
                "since Perceiver AR alone has latents"
            )
        longest = self._longest()
        if longest is not None:
            name = "prompt_len" if at.inference == "prefill" else "cached + new_tokens"
            total = as_objects(at.cached) + as_objects(at.length)
            require_at_most(name, total, *longest, "the positions that there are embeddings of")
        return at

    def _requested(self, level: str | None, at: Pass, request: str) -> Count:
        level = require_choice("level", "causal" if level is None else level, LEVELS)
        behind = is_array(at.cached) or is_symbolic(at.cached) or at.cached > 0
        after = f" behind {shown(at.cached)}" if behind else ""
        return self._count(level, at, None, request=request + after)

    def _decode(
        self,
        length: Size,
        level: str | None,
        batch_size: Size,
        mla: str | None,
        cached: Size,
        num_latents: Size | None = None,
        memory: Size = 0,
    ) -> Count:
        at = self._pass_behind(
            "decode", length, batch_size, cached, mla, num_latents, chunk=1, memory=memory
        )
        return self._requested(level, at, f"decoding of {shown(length)}")

    def _speculate(
        self,
        prompt_len: Size,
        new_tokens: Size,
        level: str | None,
        batch_size: Size,
        mla: str | None,
        draft: Any,
        tokens_per_round: int,
        accepted: Sequence[int],
    ) -> Count:
        prompt = require_size("prompt_len", prompt_len)
        total = require_int("new_tokens", new_tokens, 1)
        per_round = require_int("tokens_per_round", tokens_per_round, 1)
        if not isinstance(draft, Inference):
            raise TypeError(f"draft[0] = {quoted(draft)}: expected a model that flopcount counts")
        if not isinstance(accepted, Sequence) or isinstance(accepted, str):
            raise TypeError(
                f"accepted = {quoted(accepted)}: expected how many tokens of each round are "
                "accepted, such as [4, 2]; a rate gives an expectation: expected_tokens_per_round"
            )
        _require_same_vocabulary(self, draft)
        for model in (self, draft):
            if not model._forgets():
                raise ValueError(
                    f"draft with a {type(model).__name__}: expected models whose cache is of "
                    "positions, to take out again those that were not accepted"
                )
        counts: list[Count] = []
        made = 0
        both: dict[str, Any] = dict(level=level, batch_size=batch_size)
        of_draft = mla if draft._has_latents() else None

        def propose(number: int, last: Size) -> None:
            form = reading(of_draft) if made == 0 else of_draft
            first = draft.prefill(prompt if made == 0 else 2, cached=last, mla=form, **both)
            counts.append(_as_draft_of(self, first))
            if number > 1:
                rest = draft.decode(number - 1, cached=prompt + made, mla=of_draft, **both)
                counts.append(_as_draft_of(self, rest))

        for index, given in enumerate(accepted):
            proposed = min(per_round, total - made - 1)
            right = require_int(f"accepted[{index}]", given, 0)
            if right > proposed:
                raise ValueError(
                    f"accepted[{index}] = {right}: expected at most {max(proposed, 0)}, the tokens "
                    f"proposed when {made} of new_tokens = {total} are there"
                )
            known = 0 if made == 0 else prompt + made - 1
            if proposed:
                propose(proposed, known and known - 1)
            read = (prompt if made == 0 else 1) + proposed
            form = reading(mla) if made == 0 else mla
            counts.append(self.prefill(read, logits=proposed + 1, cached=known, mla=form, **both))
            made += right + 1
        if made != total:
            raise ValueError(
                f"accepted = {quoted(accepted)} makes {made} tokens, one more per round than "
                f"accepted: expected new_tokens = {total}"
            )
        request = f"{total} tokens after {shown(prompt)}, {per_round} drafted a round"
        return dataclasses.replace(counts[0].plus(*counts[1:]), request=request)


def reading(mla: str | None) -> str | None:
    """The form of latent attention that a request reads its prompt in.

    ``"absorbed"`` is of the passes behind it: there latents are expanded, which costs less per
    pair.

    Args:
        mla: The form that it decodes in.

    >>> reading("absorbed"), reading("expanded"), reading(None)
    ('latent', 'expanded', None)
    """
    return "latent" if isinstance(mla, str) and mla == "absorbed" else mla


def _require_same_vocabulary(model: Any, draft: Any) -> None:
    require_same_kind({"vocab_size": model.vocab_size, "the draft's": draft.vocab_size})
    if not equal(model.vocab_size, draft.vocab_size):
        raise ValueError(
            f"draft with vocab_size = {quoted(draft.vocab_size)}: expected the model's vocab_size "
            f"= {quoted(model.vocab_size)}, since each reads the other's tokens; where rows of "
            "padding alone differ, give both one size"
        )


def _as_draft_of(model: Any, count: Count) -> Count:
    """A draft's count as a part of its target's."""

    def renamed(terms: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(dataclasses.replace(term, layer=f"draft {term.layer}") for term in terms)

    work = count.work
    assert work is not None
    return dataclasses.replace(
        count,
        model=model,
        terms=tuple(
            dataclasses.replace(term, rows=renamed(term.rows)) for term in renamed(count.terms)
        ),
        work=lambda: dataclasses.replace(work(), terms=renamed(work().terms)),
    )


def expected_tokens_per_round(acceptance_rate: float, tokens_per_round: int) -> float:
    """Tokens that a round of speculative decoding is expected to make, its own one included.

    1 + α + … + α^k = (1 - α^(k + 1)) / (1 - α), where each of k drafted tokens is accepted with
    probability α if those before it are, independently. It is an expectation, and so in no count:
    what a round costs depends on the positions that it stands at.

    Args:
        acceptance_rate: α, in [0, 1].
        tokens_per_round: k.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range.

    Source: Leviathan et al. 2023 (arXiv 2211.17192), equation 1.

    >>> expected_tokens_per_round(0.5, 3)  # 1 + 1/2 + 1/4 + 1/8
    1.875
    """
    rate = require_fraction("acceptance_rate", acceptance_rate, with_one=True)
    if not isinstance(rate, float):
        raise TypeError(f"acceptance_rate = {quoted(rate)}: expected one number in [0, 1]")
    tokens = require_int("tokens_per_round", tokens_per_round)
    made: Any = 0
    power: Any = 1  # α to the number of terms so far: twice as many, and one more at a digit of 1
    for digit in f"{tokens + 1:b}":
        made, power = made * (1 + power), power * power
        if digit == "1":
            made, power = 1 + rate * made, rate * power
    expected: float = made
    return expected
