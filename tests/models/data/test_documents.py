"""Documents: from files of every kind, and from a dataset built on disk."""

import bz2
import gzip
import json
import lzma
import subprocess
import sys
from pathlib import Path

import pytest

from models.data import documents
from models.data.documents import dataset_source, file_source


def read(folder, *patterns, **options):
    return list(file_source(tuple(str(folder / pattern) for pattern in patterns), **options).read())


def test_compressed_text_is_the_same_text(tmp_path):
    content = "naïve\n".encode() * 100
    (tmp_path / "a.txt").write_bytes(content)
    (tmp_path / "b.txt.xz").write_bytes(lzma.compress(content) + lzma.compress(b"second stream"))
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(content))
    (tmp_path / "d.bz2").write_bytes(bz2.compress(content))
    assert read(tmp_path, "*") == [content, content + b"second stream", content, content]


def test_patterns_are_read_in_order_and_each_file_once(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name)
    (tmp_path / "empty.txt").write_text("")
    assert read(tmp_path, "c.txt", "*.txt") == [b"c", b"a", b"b"]


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_lines_of_jsonl_are_documents(tmp_path, suffix):
    rows = [{"text": "one\nline"}, {"text": "", "n": 1}, {"text": "zwei ∑", "other": None}]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    compress = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[suffix]
    (tmp_path / f"rows.jsonl{suffix}").write_bytes(compress(content))
    assert read(tmp_path, "rows*") == [b"one\nline", "zwei ∑".encode()]


def test_another_field_of_jsonl_is_read(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"body": "b"}\n')
    assert read(tmp_path, "*", text_field="body") == [b"b"]


@pytest.mark.parametrize("line", ["not json", "[]", '{"other": "x"}', '{"text": 3}', "", "null"])
def test_a_line_without_text_is_named(tmp_path, line):
    (tmp_path / "rows.jsonl").write_text('{"text": "x"}\n' + line + "\n")
    with pytest.raises(
        ValueError, match=r"rows\.jsonl, line 2: must be a JSON object with .*'text'"
    ):
        read(tmp_path, "*")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.xz", lzma.compress(b"x" * 10_000)[:-20]),
        ("cut.gz", gzip.compress(bytes(range(256)) * 99)[:-20]),
        ("cut.bz2", bz2.compress(b"x" * 10_000)[:-9]),
        ("other.xz", b"no xz at all"),
        ("other.gz", b"no gzip at all"),
        ("flipped.gz", gzip.compress(b"x" * 999)[:-6] + b"abcdef"),
    ],
    ids=["cut.xz", "cut.gz", "cut.bz2", "other.xz", "other.gz", "flipped.gz"],
)
def test_a_broken_file_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, OSError), match=rf"{name} must be whole and compressed"):
        read(tmp_path, name)


@pytest.mark.parametrize(
    "name", ["a.JSONL", "a.ndjson", "a.json", "a.Json.GZ", "a.jsonl.xz", "a.ndjson.bz2"]
)
def test_a_suffix_means_json_lines_in_any_case_and_compressed(tmp_path, name):
    content = b'{"text": "one"}\n{"text": "two"}\n'
    compress = {"Z": gzip.compress, "z": lzma.compress, "2": bz2.compress}.get(name[-1], bytes)
    (tmp_path / name).write_bytes(compress(content))
    assert read(tmp_path, "*") == [b"one", b"two"]


@pytest.mark.parametrize("name", ["a", "a.TXT", "a.text", "a.md", "a.rst", "v1.2.tex", "a.py.GZ"])
def test_a_suffix_means_text(tmp_path, name):
    content = b'{"text": "one"}\n'
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("GZ") else content)
    assert read(tmp_path, "*") == [content]


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("a.csv", ".csv"),
        ("a.csv.gz", ".csv"),
        ("a.parquet", ".parquet"),
        ("a.jsonl.zst", ".zst"),
        ("a.zip", ".zip"),
        ("pages.html", ".html"),
        ("vol.1", ".1"),
    ],
)
def test_a_suffix_of_unknown_meaning_is_named_before_anything_is_read(tmp_path, name, suffix):
    (tmp_path / name).write_bytes(b"text")
    with pytest.raises(ValueError, match=rf"{name}: a file must be text .*, got '\{suffix}'"):
        file_source((str(tmp_path / "*"),))


@pytest.mark.parametrize("chunk", [1, 1 << 20])
@pytest.mark.parametrize(
    ("name", "content", "byte", "offset"),
    [
        ("wide.txt", "wide".encode("utf-16-le"), "00", 1),
        ("mark.txt", "wide".encode("utf-16"), "ff", 0),
        # "naïve" is 6 bytes in UTF-8 and 5 in Latin-1: 7 with the line's end, then 2 more.
        ("latin.txt", "naïve\n".encode() + "naïve\n".encode("latin-1"), "ef", 9),
        ("cut.txt", "naï".encode()[:-1], "c3", 2),
        ("half.txt", b"a\n\xed\xa0\x80\n", "ed", 2),  # half a surrogate pair
        ("rows.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', "e9", 24),
        ("a.txt.gz", gzip.compress(b"a\n\xff", mtime=0), "ff", 2),
    ],
    ids=["wide.txt", "mark.txt", "latin.txt", "cut.txt", "half.txt", "rows.jsonl", "a.txt.gz"],
)
def test_bytes_that_are_not_utf8_are_named_with_their_offset(
    tmp_path, monkeypatch, chunk, name, content, byte, offset
):
    monkeypatch.setattr(documents, "_CHUNK", chunk)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} must be UTF-8 .* 0x{byte} at offset {offset}$"):
        read(tmp_path, "*")


def test_half_a_surrogate_pair_in_json_is_named(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"text": "ab\\ud800c"}\n')
    with pytest.raises(ValueError, match=r"line 2: text must be .*'\\ud800', at character 2"):
        read(tmp_path, "*")


PLAIN = "one\n\ngoes on\n\n\n\ntwo ∑\n\n\n\n\nthree\n"
WRITTEN = {
    "unix": PLAIN,
    "windows": PLAIN.replace("\n", "\r\n"),
    "macintosh": PLAIN.replace("\n", "\r"),
    "mixed": PLAIN.replace("\n", "\r\n", 5),
    "mark": "\ufeff" + PLAIN,
    "marks": "\ufeff" + PLAIN.replace("two", "\ufefftwo").replace("\n", "\r\n"),
}


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 1 << 20])
@pytest.mark.parametrize("written", WRITTEN.values(), ids=WRITTEN)
def test_line_ends_and_marks_make_no_difference(tmp_path, monkeypatch, chunk, written):
    monkeypatch.setattr(documents, "_CHUNK", chunk)
    (tmp_path / "a.txt").write_bytes(written.encode())
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": written}) + "\r\n", newline="")
    assert read(tmp_path, "*") == [PLAIN.encode()] * 2
    assert read(tmp_path, "a.txt", blank_lines=3) == [
        b"one\n\ngoes on",
        "two ∑".encode(),
        b"three",
    ]


def test_blanks_in_blank_lines_part_documents_too(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\n \n\t\n  \ntwo\r\n \r\n\r\n \t\r\n  three \n \n\nmore")
    assert read(tmp_path, "*", blank_lines=3) == [b"one", b"two", b"  three \n \n\nmore"]


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 1 << 20])
def test_blank_lines_part_a_text_wherever_its_chunks_end(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(documents, "_CHUNK", chunk)
    text = b"\n\n\n\none\n\n\ngoes on\n\n\n\ntwo\n\n\n\n\n\n\nthree\n\n"
    expected = [b"one\n\n\ngoes on", b"two", b"three"]
    for content in (text, text + b"\n\n", text[3:]):
        (tmp_path / "text.txt").write_bytes(content)
        assert read(tmp_path, "*", blank_lines=3) == expected
    (tmp_path / "text.txt").write_bytes(b"\n\n\n\n\n")
    assert read(tmp_path, "*", blank_lines=3) == []


def test_large_files_are_read_in_bounded_memory(tmp_path):
    """64 documents of 1 MiB through a process that may hold 40 MiB more than at its start."""
    resource = pytest.importorskip("resource", reason="limits memory")
    assert resource
    line = b"x" * 63 + b"\n"
    with lzma.open(tmp_path / "books.xz", "wb", preset=0) as file:
        for _ in range(64):
            file.write(line * (1 << 14) + b" \r\n\r\n\n")
    code = (
        "import sys, resource\n"
        "sys.path.insert(0, sys.argv[3])\n"  # the module alone: models loads torch
        "from documents import file_source\n"
        "source = file_source((sys.argv[1],), int(sys.argv[2]) or None)\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (40 << 20),) * 2)\n"
        "print(sum(1 for _ in source.read()))\n"
    )

    def count(blank_lines):
        folder = Path(documents.__file__).parent
        command = [sys.executable, "-c", code, tmp_path / "books.xz", str(blank_lines), folder]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert count(3).stdout == "64\n"
    # The twin: all of it as one document does not fit.
    assert "MemoryError" in count(0).stderr


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder that holds a dataset as ``datasets`` writes one, and a cache of its own."""
    datasets = pytest.importorskip("datasets", reason="the extra hf is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub-cache")
    datasets.disable_progress_bars()
    rows = {"text": [f"row {n}" for n in range(2500)] + ["", None], "id": [*range(2502)]}
    (tmp_path / "books").mkdir()
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "books" / "train.parquet")
    return datasets


def test_rows_of_a_dataset_are_documents(hub, tmp_path):
    source = dataset_source(str(tmp_path / "books"))
    assert list(source.read()) == [b"row %d" % n for n in range(2500)]
    assert list(source.read()) == list(source.read())
    assert source.files
    assert all(file.exists() for file in source.files)


def test_consecutive_rows_are_joined(hub, tmp_path):
    # Of 2502 rows the last two are empty: 402 rows, the last of them an empty line.
    joined = list(dataset_source(str(tmp_path / "books"), rows=700).read())
    assert [len(document.splitlines()) for document in joined] == [700, 700, 700, 401]
    assert b"\n".join(joined).split(b"\n")[:2500] == [b"row %d" % n for n in range(2500)]


def test_a_missing_column_or_dataset_is_named(hub, tmp_path):
    with pytest.raises(ValueError, match=r"text_field must be a column .* text, id; got 'body'"):
        dataset_source(str(tmp_path / "books"), text_field="body")
    with pytest.raises(ValueError, match="dataset must be one that can be loaded, got '/nosuch'"):
        dataset_source("/nosuch")


@pytest.mark.parametrize(
    ("name", "asked", "expected"),
    [
        ("bookcorpus", {}, ("bookcorpus/bookcorpus", "refs/convert/parquet")),
        ("bookcorpus", {"revision": "main"}, ("bookcorpus/bookcorpus", "main")),
        ("bookcorpusopen", {}, ("lucadiliello/bookcorpusopen", None)),
        ("wikitext", {"revision": "v1"}, ("wikitext", "v1")),
    ],
)
def test_the_articles_datasets_are_found_by_their_old_names(
    hub, tmp_path, monkeypatch, name, asked, expected
):
    """What is asked of ``datasets``; the answer is the dataset on disk."""
    load, calls = hub.load_dataset, []

    def listen(path, name, split, revision):
        calls.append((path, revision))
        return load(str(tmp_path / "books"), split=split)

    monkeypatch.setattr(hub, "load_dataset", listen)
    assert len(list(dataset_source(name, **asked).read())) == 2500
    assert calls == [expected]


def test_the_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="dataset needs the extra hf"):
        dataset_source("bookcorpusopen")
