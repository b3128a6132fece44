"""Documents, one at a time, from text files, JSON lines, or a Hugging Face dataset."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
import sysconfig
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from glob import glob
from pathlib import Path
from typing import IO, Any

_OPENERS = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
_CHUNK = 1 << 20

# The article's two datasets, by the names that they had. The hub serves no dataset that needs a
# script any more: bookcorpus is read from the files made of it, bookcorpusopen from a copy.
_RENAMED = {
    "bookcorpus": dict(path="bookcorpus/bookcorpus", revision="refs/convert/parquet"),
    "bookcorpusopen": dict(path="lucadiliello/bookcorpusopen"),
}


@dataclass(frozen=True)
class Source:
    """Documents that can be read again, and the files that they come from.

    Attributes:
        files: in order; while none of them changes, the documents are the same.
        read: gives the documents' UTF-8 text, in order, without empty ones.

    """

    files: tuple[Path, ...]
    read: Callable[[], Iterator[bytes]]


def file_source(
    patterns: tuple[str, ...], blank_lines: int | None = None, text_field: str = "text"
) -> Source:
    """Take documents from files: each file is one, in a ``.jsonl`` each line.

    Only one document at a time is held in memory.

    Args:
        patterns: paths or globs; also compressed as ``.gz``, ``.xz`` or ``.bz2``.
        blank_lines: so many or more part the documents of a text file.
        text_field: of a JSON line.

    Raises:
        ValueError: if a pattern matches no file. While reading: if a file is not UTF-8 text or
            not whole, or a line is not a JSON object with that text.

    """
    files = _expand(patterns)
    return Source(files, partial(_read_files, files, blank_lines, text_field))


def standard_library() -> Source:
    """Take the sources of the installed Python's standard library, its tests left out."""
    root = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
    names = (path.relative_to(root) for path in root.rglob("*.py"))
    files = tuple(root / path for path in sorted(names) if left_out.isdisjoint(path.parts))
    return Source(files, partial(_read_files, files, None, ""))


def dataset_source(
    name: str,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
    text_field: str = "text",
    rows: int = 1,
) -> Source:
    """Take documents from a dataset that ``datasets.load_dataset`` finds, on the hub or on disk.

    Args:
        name: of the dataset, or a folder of its files; ``bookcorpus`` and ``bookcorpusopen`` name
            the article's datasets.
        config: the dataset's configuration, where it has several.
        split: which part.
        revision: of the dataset's repository.
        text_field: the column of text.
        rows: so many consecutive rows, joined by line breaks, are one document. The rows of
            ``bookcorpus`` are sentences.

    Raises:
        ImportError: without the extra ``hf``.
        ValueError: if the dataset cannot be loaded or has no such column.

    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError("dataset needs the extra hf: pip install '.[lab,hf]'") from error
    arguments = dict(path=name, revision=revision) | _RENAMED.get(name, {})
    if revision is not None:
        arguments["revision"] = revision
    try:
        dataset = datasets.load_dataset(**arguments, name=config, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"dataset must be one that can be loaded, got {name!r}: {reason}"
        ) from error
    if text_field not in dataset.column_names:
        raise ValueError(
            f"text_field must be a column of {name}, one of {', '.join(dataset.column_names)}; "
            f"got {text_field!r}"
        )
    files = tuple(Path(file["filename"]) for file in dataset.cache_files)
    return Source(files, partial(_read_rows, dataset.select_columns(text_field), text_field, rows))


def _expand(patterns: tuple[str, ...]) -> tuple[Path, ...]:
    files: dict[Path, None] = {}
    for pattern in patterns:
        # Path.glob takes no absolute pattern.
        matches = [Path(match) for match in sorted(glob(pattern, recursive=True))]  # noqa: PTH207
        matches = [path for path in matches if path.is_file()]
        if not matches:
            raise ValueError(f"every path or glob must match a file, got {pattern!r}")
        files.update(dict.fromkeys(matches))
    return tuple(files)


def _read_files(
    files: tuple[Path, ...], blank_lines: int | None, text_field: str
) -> Iterator[bytes]:
    for path in files:
        try:
            with _OPENERS.get(path.suffix, Path.open)(path, "rb") as stream:
                name = path.stem if path.suffix in _OPENERS else path.name
                if name.endswith(".jsonl"):
                    documents = _read_lines(stream, path, text_field)
                elif blank_lines is None:
                    documents = iter([stream.read()])
                else:
                    documents = _part(stream, blank_lines)
                for document in documents:
                    if b"\0" in document:
                        raise ValueError(f"files must be UTF-8 text, got a NUL byte in {path}")
                    if document:
                        yield document
        except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path} must be whole and compressed as named: {error}") from error


def _read_lines(stream: IO[bytes], path: Path, text_field: str) -> Iterator[bytes]:
    for number, line in enumerate(stream, start=1):
        try:
            text = json.loads(line)[text_field]
            yield text.encode(errors="replace")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}, line {number}: must be a JSON object with a text {text_field!r}"
            ) from error


def _part(stream: IO[bytes], blank_lines: int) -> Iterator[bytes]:
    """Part a text at runs of blank lines, holding one document and a chunk at a time."""
    separator = re.compile(rb"\n{%d,}" % (blank_lines + 1))
    held, searched = bytearray(), 0
    while chunk := stream.read(_CHUNK):
        held += chunk
        start = 0
        for match in separator.finditer(held, searched):
            if match.end() == len(held):
                break  # the run may go on
            yield bytes(held[start : match.start()])
            start = match.end()
        del held[:start]
        # What is held was searched, but for a run of line breaks at its end.
        searched = len(held)
        while searched and held[searched - 1] == ord("\n"):
            searched -= 1
    ended = len(held) - searched > blank_lines
    yield bytes(held[:searched] if ended else held)


def _read_rows(dataset: Any, text_field: str, rows: int) -> Iterator[bytes]:
    # Whole documents to a batch, and batches large enough to be read fast.
    for batch in dataset.iter(batch_size=rows * -(-1000 // rows)):
        texts = [text or "" for text in batch[text_field]]
        for start in range(0, len(texts), rows):
            document = "\n".join(texts[start : start + rows]).encode(errors="replace")
            if document:
                yield document
