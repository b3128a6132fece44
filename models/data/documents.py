"""Documents, one at a time, from text files, JSON lines, or a Hugging Face dataset."""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
import sysconfig
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from glob import glob
from pathlib import Path
from typing import IO, Any

_OPENERS = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
_JSON_LINES = (".jsonl", ".ndjson", ".json")
_TEXT = ("", ".txt", ".text", ".md", ".rst", ".tex", ".py")
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
        files: In order; while none of them changes, the documents are the same.
        read: Gives the documents' UTF-8 text, in order, without empty ones.

    """

    files: tuple[Path, ...]
    read: Callable[[], Iterator[bytes]]


def file_source(
    patterns: tuple[str, ...], blank_lines: int | None = None, text_field: str = "text"
) -> Source:
    """Take documents from files: each file is one, in JSON lines each line.

    Lines end as in Unix and byte order marks are left out, whatever the files have: texts that
    differ in nothing else are the same. Only one document at a time is held in memory.

    Args:
        patterns: Paths or globs; text by ``.txt``, ``.text``, ``.md``, ``.rst``, ``.tex``, ``.py``
            or no suffix, JSON lines by ``.jsonl``, ``.ndjson`` or ``.json``, in capitals or not;
            also compressed as ``.gz``, ``.xz`` or ``.bz2``.
        blank_lines: So many or more part the documents of a text file; blanks and tabs may be in
            them. Documents are then without blank lines at their start and end.
        text_field: Of a JSON line.

    Raises:
        ValueError: If a pattern matches no file, or one of another suffix. While reading: if a file
            is not UTF-8 text or not whole, or a line is not a JSON object with that text.

    """
    files = _expand(patterns)
    for path in files:
        _by_suffix(path)
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
        name: Of the dataset, or a folder of its files; ``bookcorpus`` and ``bookcorpusopen`` name
            the article's datasets.
        config: The dataset's configuration, where it has several.
        split: Which part.
        revision: Of the dataset's repository.
        text_field: The column of text.
        rows: So many consecutive rows, joined by line breaks, are one document. The rows of
            ``bookcorpus`` are sentences.

    Raises:
        ImportError: Without the extra ``hf``.
        ValueError: If the dataset cannot be loaded or has no such column.

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
        opener, kind = _by_suffix(path)
        try:
            with opener(path, "rb") as stream:
                chunks = _clean_chunks(stream, path)
                if kind == "lines":
                    documents = _read_lines(chunks, path, text_field)
                elif blank_lines is None:
                    documents = iter([b"".join(chunks)])
                else:
                    documents = _part(chunks, blank_lines)
                yield from filter(None, documents)
        except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path} must be whole and compressed as named: {error}") from error


def _by_suffix(path: Path) -> tuple[Callable[..., Any], str]:
    """Say how a file is opened, and whether it holds ``lines`` of JSON or ``text``."""
    *_, before, suffix = ["", "", *(suffix.lower() for suffix in path.suffixes)]
    opener = _OPENERS.get(suffix, Path.open)
    named = before if suffix in _OPENERS else suffix
    if named in _JSON_LINES:
        return opener, "lines"
    if named in _TEXT:
        return opener, "text"
    raise ValueError(
        f"{path}: a file must be text ({' '.join(filter(None, _TEXT))} or no suffix) or JSON lines "
        f"({' '.join(_JSON_LINES)}), also compressed ({' '.join(_OPENERS)}), got {named!r}: "
        f"convert it, rename it to .txt if that is what it is, or give it as dataset"
    )


def _clean_chunks(stream: IO[bytes], path: Path) -> Iterator[bytes]:
    """Give a text in chunks of whole lines, so that no line end or character is cut."""
    offset = 0
    while chunk := b"".join(stream.readlines(_CHUNK)):
        try:
            chunk.decode()
            wrong = chunk.find(b"\0")
        except UnicodeDecodeError as error:
            wrong = error.start
        if wrong >= 0:
            raise ValueError(
                f"{path} must be UTF-8 text, got byte 0x{chunk[wrong]:02x} at offset "
                f"{offset + wrong}"
            )
        yield _clean(chunk)
        offset += len(chunk)


def _clean(text: bytes) -> bytes:
    """End the lines of a text by line feeds, and take byte order marks out.

    Unicode deprecates every other use of U+FEFF, so it is taken for a mark wherever it stands, as
    between files that were joined.
    """
    return text.replace(codecs.BOM_UTF8, b"").replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _encode(text: str, where: str) -> bytes:
    """Give a text's clean UTF-8."""
    try:
        return _clean(text.encode())
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where} must be Unicode text, got half a surrogate pair, "
            f"{text[error.start]!a}, at character {error.start}"
        ) from None


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    return (line for chunk in chunks for line in chunk.splitlines(keepends=True))


def _read_lines(chunks: Iterable[bytes], path: Path, text_field: str) -> Iterator[bytes]:
    for number, line in enumerate(_lines(chunks), start=1):
        where = f"{path}, line {number}"
        try:
            text = json.loads(line)[text_field]
            if not isinstance(text, str):
                raise TypeError
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{where}: must be a JSON object with a text {text_field!r}"
            ) from error
        yield _encode(text, f"{where}: {text_field}")


def _part(chunks: Iterable[bytes], blank_lines: int) -> Iterator[bytes]:
    """Part a text at runs of blank lines, which may hold blanks and tabs.

    The blank lines before and after a document are not of it, wherever in a file it stands.
    """
    held, end, blank = bytearray(), 0, 0  # end: of the last line in held that is not blank
    for line in _lines(chunks):
        if line.isspace():
            blank += 1
        else:
            if blank >= blank_lines or not end:
                yield bytes(held[:end])
                held.clear()
            blank, end = 0, len(held) + len(line.rstrip(b"\n"))
        held += line
    yield bytes(held[:end])


def _read_rows(dataset: Any, text_field: str, rows: int) -> Iterator[bytes]:
    # Whole documents to a batch, and batches large enough to be read fast.
    for batch in dataset.iter(batch_size=rows * -(-1000 // rows)):
        texts = [text or "" for text in batch[text_field]]
        for start in range(0, len(texts), rows):
            document = _encode("\n".join(texts[start : start + rows]), f"text_field {text_field}")
            if document:
                yield document
