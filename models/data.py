"""Text as tokens: byte-level vocabulary, a corpus cached by content, windows addressed by step.

A window is M + N + 1 consecutive tokens. The first M + N go into the model; the targets are the
last N, for each latent the token after it. A decoder-only model is the case M = 0.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import os
import shutil
import sysconfig
from dataclasses import dataclass
from glob import glob
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SPECIAL_TOKENS = ("[PAD]", "[BOS]", "[EOS]", "[MASK]", "[CLS]", "[SEP]")
END_OF_DOCUMENT = SPECIAL_TOKENS.index("[EOS]")
VOCAB_SIZE = len(SPECIAL_TOKENS) + 256
_OPENERS = {".gz": gzip.open, ".xz": lzma.open}


def encode(text: bytes | str) -> np.ndarray:
    """Turn text into tokens: each UTF-8 byte is its value plus the number of special tokens.

    Returns:
        uint16 array, one token per byte.

    Source:
        The byte tokenizer of Perceiver IO (arXiv 2107.14795), section 4.1; 262 tokens.

    Example:
        >>> encode("Ab").tolist()
        [71, 104]
    """
    data = text.encode() if isinstance(text, str) else text
    return np.frombuffer(data, np.uint8).astype(np.uint16) + len(SPECIAL_TOKENS)


def decode(tokens: Tensor | np.ndarray) -> str:
    """Turn a sequence of tokens into text: special tokens by name, broken UTF-8 as U+FFFD.

    Example:
        >>> decode(np.array([71, 104, 2]))
        'Ab[EOS]'
    """
    text = bytearray()
    for token in np.asarray(tokens).tolist():
        if token < len(SPECIAL_TOKENS):
            text += SPECIAL_TOKENS[token].encode()
        else:
            text.append(token - len(SPECIAL_TOKENS))
    return text.decode(errors="replace")


@dataclass(frozen=True)
class CorpusConfig:
    """Which text to train on.

    Attributes:
        files: paths or globs of text, also ``.gz`` and ``.xz``; each file is a document. Without
            any, the sources of the installed Python's standard library, its tests left out.
        validation_files: paths or globs held out; without any, a share of ``files``.
        held_out: that share, of the documents, at least one.
        cache: folder of the tokenised corpora.

    """

    files: tuple[str, ...] = ()
    validation_files: tuple[str, ...] = ()
    held_out: float = 0.05
    cache: Path = Path(".cache/corpora")


@dataclass(frozen=True)
class Corpus:
    """Tokens of the training and of the validation documents, memory-mapped, and their digest.

    Each document ends with ``[EOS]``. The digest covers the tokens' encoding and both parts'
    documents in order.
    """

    train: np.ndarray
    validation: np.ndarray
    digest: str
    train_documents: int
    validation_documents: int
    vocab_size: int = VOCAB_SIZE


def load_corpus(config: CorpusConfig) -> Corpus:
    """Read the documents, tokenise them once, and map the result.

    Documents keep the order of their paths; of equal documents the first one stays. Held out are
    those whose SHA-256 comes first, so that the choice depends on contents alone. Training and
    validation never share a document.

    Raises:
        ValueError: if a path or glob matches no file, if the documents are too few to hold one
            out, or if either part is empty.

    """
    if not 0 < config.held_out < 1:
        raise ValueError(f"held_out must be between 0 and 1, got {config.held_out}")
    documents = _by_digest(_expand(config.files) if config.files else _standard_library())
    if config.validation_files:
        held_out = _by_digest(_expand(config.validation_files))
    else:
        if len(documents) < 2:
            raise ValueError(
                f"files must hold two different documents at least, one of them to hold out, got "
                f"{len(documents)}; or give validation_files"
            )
        count = max(1, round(config.held_out * len(documents)))
        held_out = {digest: documents[digest] for digest in sorted(documents)[:count]}
    train = {digest: path for digest, path in documents.items() if digest not in held_out}
    for name, part in (("files", train), ("validation_files", held_out)):
        if not part:
            raise ValueError(f"{name} must hold text that the other part does not, got none")

    parts = {"train": train, "validation": held_out}
    key = json.dumps(["bytes", SPECIAL_TOKENS, *(list(part) for part in parts.values())])
    digest = hashlib.sha256(key.encode()).hexdigest()
    folder = config.cache / digest[:16]
    if not folder.exists():
        _tokenize(parts, folder)
    return Corpus(
        train=np.memmap(folder / "train.bin", np.uint16, mode="r"),
        validation=np.memmap(folder / "validation.bin", np.uint16, mode="r"),
        digest=digest,
        train_documents=len(train),
        validation_documents=len(held_out),
    )


def _standard_library() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
    files = (path.relative_to(root) for path in root.rglob("*.py"))
    return [root / path for path in sorted(files) if left_out.isdisjoint(path.parts)]


def _expand(patterns: tuple[str, ...]) -> list[Path]:
    files: dict[Path, None] = {}
    for pattern in patterns:
        # Path.glob takes no absolute pattern.
        matches = [Path(match) for match in sorted(glob(pattern, recursive=True))]  # noqa: PTH207
        matches = [path for path in matches if path.is_file()]
        if not matches:
            raise ValueError(f"every path or glob must match a file, got {pattern!r}")
        files.update(dict.fromkeys(matches))
    return list(files)


def _read(path: Path) -> bytes:
    with _OPENERS.get(path.suffix, Path.open)(path, "rb") as file:
        return file.read()


def _by_digest(paths: list[Path]) -> dict[str, Path]:
    """Map each different, non-empty document's SHA-256 to the first path that holds it."""
    documents: dict[str, Path] = {}
    for path in paths:
        if content := _read(path):
            documents.setdefault(hashlib.sha256(content).hexdigest(), path)
    return documents


def _tokenize(parts: dict[str, dict[str, Path]], folder: Path) -> None:
    """Write each part's tokens; the folder appears whole or not at all."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    temporary.mkdir(parents=True, exist_ok=True)
    try:
        for name, documents in parts.items():
            with (temporary / f"{name}.bin").open("wb") as file:
                for path in documents.values():
                    encode(_read(path)).tofile(file)
                    np.array([END_OF_DOCUMENT], np.uint16).tofile(file)
                file.flush()
                os.fsync(file.fileno())
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.exists():  # another process may have been first with the same content
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
    tokens: np.ndarray, num_prefix: int, num_latents: int, batch_size: int, seed: int, step: int
) -> tuple[Tensor, Tensor]:
    """Draw the windows of one step: they depend on the seed and the step alone.

    Args:
        tokens: the corpus, one dimension.
        num_prefix: M.
        num_latents: N.
        batch_size: windows a step, B.
        seed: of the run.
        step: from 0.

    Returns:
        Inputs (B, M + N) and targets (B, N), int64.

    Raises:
        ValueError: if the corpus is shorter than one window.

    """
    last = _last_start(tokens, num_prefix, num_latents)
    starts = np.random.default_rng((seed, step)).integers(last + 1, size=batch_size)
    return _windows(tokens, starts, num_prefix, num_latents)


def validation_windows(
    tokens: np.ndarray, num_prefix: int, num_latents: int, num_windows: int
) -> tuple[Tensor, Tensor]:
    """Take windows at equal distances over the corpus, the same ones every time.

    Returns:
        Inputs (num_windows, M + N) and targets (num_windows, N), int64.

    Raises:
        ValueError: if the corpus is shorter than one window.

    """
    last = _last_start(tokens, num_prefix, num_latents)
    starts = np.linspace(0, last, num_windows).astype(np.int64)
    return _windows(tokens, starts, num_prefix, num_latents)
