"""A corpus: tokenised once into a cache keyed by content, and windows of it addressed by step.

A window is M + N + 1 consecutive tokens. The first M + N go into the model; the targets are the
last N, for each latent the token after it. A decoder-only model is the case M = 0.

Letters: B batch, M prefix tokens, N latents.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import torch
from torch import Tensor

from models.data.documents import Source, dataset_source, file_source, standard_library
from models.data.tokenizers import (
    BYTE_VOCAB_SIZE,
    END_OF_DOCUMENT,
    SENTENCEPIECE_SETTINGS,
    SPECIAL_TOKENS,
    ByteTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    TokenizerName,
    train_sentencepiece,
)
from models.files import flush, write_atomically
from models.limits import AtLeastOne, RealShare, check_fields

_PARTS = ("train", "validation")
_VOCABULARY_BYTES = 32 << 20
"""Of training text that a SentencePiece vocabulary is trained on, spread evenly over it."""
_SAMPLE_BYTES = 1 << 16
_READING = 2
"""Counts the ways in which documents have been read from the same files: what an earlier one made
of them is not taken for this one's."""
_SETTLED_SECONDS = 2.0
"""A file that changed less long ago may change again without its time of change showing it."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CorpusConfig:
    """Which text to train on, and how it becomes tokens.

    Attributes:
        files: Paths or globs of UTF-8 text, also ``.gz``, ``.xz`` and ``.bz2``: each file is a
            document, in ``.jsonl``, ``.ndjson`` and ``.json`` each line. Line ends and byte order
            marks make no difference. Without ``files`` and ``dataset``, the sources of the
            installed Python's standard library, its tests left out.
        blank_lines: So many or more part the documents of a text file; blanks may be in them.
        dataset: In place of ``files``, a dataset of Hugging Face's hub by name, or a folder of one
            (extra ``hf``); ``bookcorpus`` and ``bookcorpusopen`` are the article's.
        dataset_config: Its configuration, where it has several.
        dataset_split: Its part.
        dataset_revision: Of its repository.
        dataset_rows: So many consecutive rows are one document; ``bookcorpus`` has a sentence to a
            row, and needs many.
        text_field: Of JSON lines and of the dataset.
        validation_files: Paths or globs held out; without any, a share of the documents.
        held_out: That share, at least one document.
        tokenizer: ``bytes``, 262 tokens; or ``sentencepiece``, a vocabulary of the model's
            ``vocab_size`` trained on the training documents.
        cache: Folder of the tokenised corpora; runs may share it.

    """

    files: tuple[str, ...] = ()
    blank_lines: AtLeastOne | None = None
    dataset: str | None = None
    dataset_config: str | None = None
    dataset_split: str = "train"
    dataset_revision: str | None = None
    dataset_rows: AtLeastOne = 1
    text_field: str = "text"
    validation_files: tuple[str, ...] = ()
    held_out: RealShare = 0.05
    tokenizer: TokenizerName = "bytes"
    cache: Path = Path(".cache/corpora")


@dataclass(frozen=True)
class Corpus:
    """Tokens of the training and of the validation documents, memory-mapped, and their digest.

    Each document ends with ``[EOS]``. The digest covers the tokenizer and both parts' documents in
    order.
    """

    train: np.ndarray
    validation: np.ndarray
    digest: str
    train_documents: int
    validation_documents: int
    tokenizer: Tokenizer

    def require_windows(
        self, num_prefix: int, num_latents: int, context: int | None = None
    ) -> None:
        """Raise ValueError if either part is shorter than a window.

        In validation it starts ``context`` positions before the latents, by default the prefix.
        """
        before = {"train": ("num_prefix", num_prefix), "validation": ("num_prefix", num_prefix)}
        if context is not None:
            before["validation"] = ("validation_context", context)
        for part, (name, positions) in before.items():
            window = positions + num_latents + 1
            if (length := len(getattr(self, part))) < window:
                raise ValueError(
                    f"the {part} text must hold a window of {name} + num_latents + 1 = "
                    f"{window} tokens, got {length}"
                )


def load_corpus(config: CorpusConfig, vocab_size: int = BYTE_VOCAB_SIZE) -> Corpus:
    """Read the documents, tokenise them once, and map the result.

    Lines end as in Unix and byte order marks are left out, so that texts which differ in nothing
    else are equal documents. Documents keep their order; of equal documents the first one stays.
    Held out are those whose SHA-256 comes first, in that order, so that the choice depends on
    contents alone. Training and validation never share a document: what is in
    ``validation_files`` leaves training.

    The cache is keyed by the contents and the tokenizer. While no file has changed, by its path,
    size and times, contents are not read again. Documents are held in memory one at a time.

    Args:
        config: The text.
        vocab_size: Of the model, which a SentencePiece vocabulary is made for.

    Raises:
        ImportError: If ``dataset`` is given without the extra ``hf``.
        ValueError: If an argument is out of range, a path or glob matches no file, a file or
            dataset cannot be read, the documents are too few to hold one out, either part is
            empty, or the text does not afford the vocabulary.

    """
    _check(config, vocab_size)
    sources = _sources(config)
    config.cache.mkdir(parents=True, exist_ok=True)
    stamp = config.cache / "sources" / _stamp(config, vocab_size, sources)
    if stamp.exists():
        folder = config.cache / stamp.read_text(encoding="utf-8")
        if folder.exists():
            return _map(folder)
    started = time.time()
    parts = _split(config, sources)
    digest = _corpus_digest(config.tokenizer, vocab_size, parts)
    folder = config.cache / digest[:16]
    # One process tokenises, the others wait; what a killed one has left is replaced.
    with filelock.FileLock(config.cache / f".{folder.name}.lock"):
        if not folder.exists():
            _tokenize(config.tokenizer, vocab_size, sources, parts, digest, folder)
        if _settled(sources, started):
            stamp.parent.mkdir(exist_ok=True)
            write_atomically(stamp, folder.name.encode())
    return _map(folder)


def _check(config: CorpusConfig, vocab_size: int) -> None:
    check_fields(config)
    if config.files and config.dataset is not None:
        raise ValueError(f"give files or dataset, got both: {config.files} and {config.dataset!r}")
    if config.tokenizer == "bytes" and vocab_size < BYTE_VOCAB_SIZE:
        raise ValueError(
            f"vocab_size must be at least {BYTE_VOCAB_SIZE} for bytes, got {vocab_size}"
        )


def _sources(config: CorpusConfig) -> dict[str, Source]:
    """Give the source of each part; with one source alone, a share of it is held out."""
    if config.dataset is not None:
        documents = dataset_source(
            config.dataset,
            config.dataset_config,
            config.dataset_split,
            config.dataset_revision,
            config.text_field,
            config.dataset_rows,
        )
    elif config.files:
        documents = file_source(config.files, config.blank_lines, config.text_field)
    else:
        documents = standard_library()
    if not config.validation_files:
        return {"train": documents}
    held_out = file_source(config.validation_files, config.blank_lines, config.text_field)
    return {"train": documents, "validation": held_out}


def _stamp(config: CorpusConfig, vocab_size: int, sources: dict[str, Source]) -> str:
    """Name what is asked for and the state of every file that it would be made from."""
    asked = dataclasses.asdict(config) | {"cache": None}
    files = [
        [part, str(path.resolve()), state.st_size, state.st_mtime_ns, state.st_ctime_ns]
        for part, source in sources.items()
        for path in source.files
        for state in [path.stat()]
    ]
    recipe = _recipe(config.tokenizer, vocab_size)
    return hashlib.sha256(json.dumps([_READING, asked, recipe, files]).encode()).hexdigest()


def _settled(sources: dict[str, Source], started: float) -> bool:
    files = chain.from_iterable(source.files for source in sources.values())
    return all(path.stat().st_ctime < started - _SETTLED_SECONDS for path in files)


def _recipe(tokenizer: TokenizerName, vocab_size: int) -> list[Any]:
    """Say how text becomes tokens."""
    if tokenizer == "bytes":
        return [tokenizer, SPECIAL_TOKENS]
    return [tokenizer, SPECIAL_TOKENS, vocab_size, SENTENCEPIECE_SETTINGS, _VOCABULARY_BYTES]


def _split(config: CorpusConfig, sources: dict[str, Source]) -> dict[str, dict[bytes, int]]:
    """Read every document: the SHA-256 and length of those in each part, in order."""
    documents = {part: _by_digest(source) for part, source in sources.items()}
    train = documents["train"]
    if "validation" in documents:
        held_out = documents["validation"]
    else:
        if len(train) < 2:
            raise ValueError(
                f"the text must hold two different documents at least, one of them to hold out, "
                f"got {len(train)}: give more files, blank_lines that part them, or "
                f"validation_files"
            )
        count = max(1, round(config.held_out * len(train)))
        held_out = {digest: train[digest] for digest in sorted(train)[:count]}
    train = {digest: length for digest, length in train.items() if digest not in held_out}
    for name, part in (("files", train), ("validation_files", held_out)):
        if not part:
            raise ValueError(f"{name} must hold text that the other part does not, got none")
    return dict(zip(_PARTS, (train, held_out), strict=True))


def _by_digest(source: Source) -> dict[bytes, int]:
    return {hashlib.sha256(document).digest(): len(document) for document in source.read()}


def _corpus_digest(
    tokenizer: TokenizerName, vocab_size: int, parts: dict[str, dict[bytes, int]]
) -> str:
    digest = hashlib.sha256(json.dumps(_recipe(tokenizer, vocab_size)).encode())
    for name, documents in parts.items():
        digest.update(name.encode())
        for document in documents:
            digest.update(document)
    return digest.hexdigest()


def _tokenize(
    name: TokenizerName,
    vocab_size: int,
    sources: dict[str, Source],
    parts: dict[str, dict[bytes, int]],
    digest: str,
    folder: Path,
) -> None:
    """Write each part's tokens; the folder appears whole or not at all."""
    temporary = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    size = sum(map(sum, (documents.values() for documents in parts.values())))
    count = sum(map(len, parts.values()))
    _log.info("tokenising %s bytes in %s documents", f"{size:,}", f"{count:,}")
    tokenizer: Tokenizer = ByteTokenizer()
    if name == "sentencepiece":
        sample = _sample(sources["train"], parts["train"])
        tokenizer = SentencePieceTokenizer(train_sentencepiece(sample, vocab_size))
        (temporary / "sentencepiece.model").write_bytes(tokenizer.model)
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    for part, documents in parts.items():
        source = sources.get(part, sources["train"])
        _write_part(source, documents, tokenizer, dtype, temporary / f"{part}.bin")
    summary: dict[str, Any] = {"digest": digest, "dtype": dtype.name}
    for part, documents in parts.items():
        summary[f"{part}_documents"] = len(documents)
        summary[f"{part}_bytes"] = (temporary / f"{part}.bin").stat().st_size
    (temporary / "corpus.json").write_text(json.dumps(summary), encoding="utf-8")
    for file in (*temporary.iterdir(), temporary):
        flush(file)
    temporary.rename(folder)
    flush(folder.parent)


def _sample(source: Source, documents: dict[bytes, int]) -> Iterator[bytes]:
    """Give pieces of the training documents, evenly spread, of ``_VOCABULARY_BYTES`` together."""
    share = min(1.0, _VOCABULARY_BYTES / sum(documents.values()))
    seen = 0
    for _, document in _first_of_each(source, documents):
        for start in range(0, len(document), _SAMPLE_BYTES):
            seen += 1
            if int(seen * share) > int((seen - 1) * share):
                yield document[start : start + _SAMPLE_BYTES]


def _first_of_each(source: Source, documents: dict[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """Give each of ``documents`` where it comes first in the source, with its SHA-256."""
    left = set(documents)
    for document in source.read():
        digest = hashlib.sha256(document).digest()
        if digest in left:
            left.remove(digest)
            yield digest, document
    if left:
        raise ValueError(
            f"the text must not change while it is read, got {len(left)} new documents"
        )


def _write_part(
    source: Source,
    documents: dict[bytes, int],
    tokenizer: Tokenizer,
    dtype: np.dtype,
    path: Path,
) -> None:
    """Write the tokens of ``documents``, in that order, which may not be the source's."""
    end = np.array([END_OF_DOCUMENT], dtype)
    spans: dict[bytes, tuple[int, int]] = {}
    written = 0
    with path.open("wb") as file:
        for digest, document in _first_of_each(source, documents):
            tokens = tokenizer.encode(document).astype(dtype, copy=False)
            tokens.tofile(file)
            end.tofile(file)
            spans[digest] = (written, written + len(tokens) + 1)
            written += len(tokens) + 1
    if list(spans) != list(documents):
        unordered = path.with_suffix(".unordered")
        path.rename(unordered)
        tokens = np.memmap(unordered, dtype, mode="r")
        with path.open("wb") as file:
            for digest in documents:
                tokens[slice(*spans[digest])].tofile(file)
        unordered.unlink()


def _map(folder: Path) -> Corpus:
    summary = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    for part in _PARTS:
        if (size := (folder / f"{part}.bin").stat().st_size) != summary[f"{part}_bytes"]:
            raise ValueError(
                f"{folder / part}.bin must have {summary[f'{part}_bytes']} bytes, got {size}: "
                f"remove {folder} to tokenise the text again"
            )
    vocabulary = folder / "sentencepiece.model"
    return Corpus(
        train=np.memmap(folder / "train.bin", summary["dtype"], mode="r"),
        validation=np.memmap(folder / "validation.bin", summary["dtype"], mode="r"),
        digest=summary["digest"],
        train_documents=summary["train_documents"],
        validation_documents=summary["validation_documents"],
        tokenizer=SentencePieceTokenizer(vocabulary.read_bytes())
        if vocabulary.exists()
        else ByteTokenizer(),
    )


def _windows(
    tokens: np.ndarray, starts: np.ndarray, num_prefix: int, num_latents: int
) -> tuple[Tensor, Tensor]:
    offsets = np.arange(num_prefix + num_latents + 1)
    windows = torch.from_numpy(tokens[starts[:, None] + offsets].astype(np.int64))
    return windows[:, :-1], windows[:, -num_latents:]


def _last_start(tokens: np.ndarray, num_prefix: int, num_latents: int) -> int:
    window = num_prefix + num_latents + 1
    if len(tokens) < window:
        raise ValueError(
            f"the corpus must hold a window of num_prefix + num_latents + 1 = {window} tokens, "
            f"got {len(tokens)}"
        )
    return len(tokens) - window


def training_batch(
    tokens: np.ndarray,
    num_prefix: int,
    num_latents: int,
    batch_size: int,
    seed: int,
    step: int,
    share: slice = slice(None),
) -> tuple[Tensor, Tensor]:
    """Draw the windows of one step: they depend on the seed and the step alone.

    Args:
        tokens: The corpus, one dimension.
        num_prefix: M.
        num_latents: N.
        batch_size: Windows a step, B.
        seed: Of the run.
        step: From 0.
        share: Which of the windows to give, all by default.

    Returns:
        Inputs (B, M + N) and targets (B, N), int64.

    Raises:
        ValueError: If the corpus is shorter than one window.

    """
    last = _last_start(tokens, num_prefix, num_latents)
    starts = np.random.default_rng((seed, step)).integers(last + 1, size=batch_size)[share]
    return _windows(tokens, starts, num_prefix, num_latents)


def validation_windows(
    tokens: np.ndarray,
    num_prefix: int,
    num_latents: int,
    num_windows: int,
    context: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Take windows at equal distances over the corpus, the same ones every time.

    Args:
        tokens: The corpus, one dimension.
        num_prefix: M.
        num_latents: N.
        num_windows: How many.
        context: Positions before the latents of every window, of which the last M are its prefix:
            models with the same context have the same targets. M by default.

    Returns:
        Inputs (num_windows, M + N) and targets (num_windows, N), int64.

    Raises:
        ValueError: If the corpus is shorter than one window and its context, or the context than
            the prefix.

    """
    context = num_prefix if context is None else context
    if context < num_prefix:
        raise ValueError(f"context must be num_prefix = {num_prefix} at least, got {context}")
    last = _last_start(tokens, context, num_latents)
    starts = np.linspace(0, last, num_windows).astype(np.int64) + (context - num_prefix)
    return _windows(tokens, starts, num_prefix, num_latents)
