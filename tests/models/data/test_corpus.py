"""Data: the corpus and its cache, windows and targets."""

import dataclasses
import json
import multiprocessing
import os
import shutil
import signal

import numpy as np
import pytest
import torch

from models.data import corpus as data
from models.data.corpus import CorpusConfig, load_corpus, training_batch, validation_windows


@pytest.fixture
def texts(tmp_path):
    for index in range(10):
        (tmp_path / f"{index}.txt").write_text(f"document {index} " * (index + 1))
    return tmp_path


def config(texts, *files, **changes):
    files = tuple(str(texts / file) for file in files or ("*.txt",))
    return CorpusConfig(files=files, cache=texts / "cache", **changes)


def text(corpus, part):
    return corpus.tokenizer.decode(getattr(corpus, part))


def test_every_document_is_in_one_part_in_order_and_ended(texts):
    corpus = load_corpus(config(texts, held_out=0.3))
    assert (corpus.train_documents, corpus.validation_documents) == (7, 3)
    train = text(corpus, "train").split("[EOS]")
    validation = text(corpus, "validation").split("[EOS]")
    assert train.pop() == validation.pop() == ""
    written = [(texts / f"{index}.txt").read_text() for index in range(10)]
    assert sorted(train + validation) == sorted(written)
    assert train == [text for text in written if text in train]


def test_cache_follows_content_not_paths(texts, tmp_path_factory):
    first = load_corpus(config(texts))
    moved = tmp_path_factory.mktemp("moved")
    for path in texts.glob("*.txt"):
        (moved / path.name).write_bytes(path.read_bytes())
    assert load_corpus(config(moved)).digest == first.digest
    (moved / "3.txt").write_text("other")
    assert load_corpus(config(moved)).digest != first.digest


def test_cache_is_written_once(texts):
    first = load_corpus(config(texts))
    (file,) = (texts / "cache").glob("*/train.bin")
    np.zeros(len(first.train), np.uint16).tofile(file)
    assert not load_corpus(config(texts)).train.any()


def test_a_cache_that_lost_its_end_is_named(texts):
    load_corpus(config(texts))
    (file,) = (texts / "cache").glob("*/train.bin")
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"train\.bin must have \d+ bytes, .* remove .*cache"):
        load_corpus(config(texts))


def settle(monkeypatch):
    """Treat files as settled that have just been written."""
    monkeypatch.setattr(data, "_SETTLED_SECONDS", -1000.0)


def test_unchanged_files_are_not_read_again(texts, monkeypatch):
    settle(monkeypatch)
    first = load_corpus(config(texts))
    with monkeypatch.context() as unreadable:
        unreadable.setattr(data, "_split", None)
        assert load_corpus(config(texts)).digest == first.digest
    (texts / "3.txt").write_text("other")
    second = load_corpus(config(texts))
    assert second.digest != first.digest
    assert "other[EOS]" in text(second, "train") + text(second, "validation")


def test_files_that_have_just_changed_are_read_again(texts):
    """Same size, same times as far as a coarse clock tells: contents decide."""
    first = load_corpus(config(texts))
    state = (texts / "3.txt").stat()
    (texts / "3.txt").write_bytes(bytes(state.st_size))
    os.utime(texts / "3.txt", ns=(state.st_atime_ns, state.st_mtime_ns))
    (texts / "3.txt").write_text("x" * state.st_size)
    assert load_corpus(config(texts)).digest != first.digest
    assert not (texts / "cache" / "sources").exists()


def _load_when_told(start, texts, results):
    start.wait()
    results.put(load_corpus(config(texts)).digest)


def test_processes_that_start_together_tokenise_once(texts):
    context = multiprocessing.get_context("fork")
    start, results = context.Event(), context.Queue()
    processes = [
        context.Process(target=_load_when_told, args=(start, texts, results)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    start.set()
    digests = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert len(digests) == 1
    assert len(list((texts / "cache").glob("*/corpus.json"))) == 1
    assert not list((texts / "cache").glob(".*.new"))


def test_killed_while_tokenising_leaves_nothing_that_is_taken_for_a_corpus(texts, monkeypatch):
    """Killed at each file that is flushed, and after them before the folder has its name."""
    expected = load_corpus(config(texts))
    train = np.array(expected.train)
    kills = 0
    while True:
        shutil.rmtree(texts / "cache")
        pid = os.fork()
        if pid == 0:
            flushed = iter(range(100))

            def die(path, flushed=flushed, last=kills):
                if next(flushed) == last:
                    os.kill(os.getpid(), signal.SIGKILL)

            monkeypatch.setattr(data, "flush", die)
            load_corpus(config(texts))
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0:
            break
        kills += 1
        assert np.array_equal(load_corpus(config(texts)).train, train)
    # Two parts, their summary, the folder, and the folder above once it has its name.
    assert kills == 5


def test_text_that_changes_while_it_is_read_is_named(texts, monkeypatch):
    tokenize = data._tokenize

    def change_first(*arguments):
        (texts / "3.txt").write_text("other")
        tokenize(*arguments)

    monkeypatch.setattr(data, "_tokenize", change_first)
    with pytest.raises(ValueError, match="must not change while it is read"):
        load_corpus(config(texts))


def test_equal_documents_count_once_and_validation_files_leave_training(texts):
    (texts / "copy.txt").write_bytes((texts / "4.txt").read_bytes())
    (texts / "empty.txt").write_bytes(b"")
    corpus = load_corpus(config(texts, validation_files=(str(texts / "copy.txt"),)))
    assert (corpus.train_documents, corpus.validation_documents) == (9, 1)
    assert "document 4" not in text(corpus, "train")
    assert text(corpus, "validation") == (texts / "4.txt").read_text() + "[EOS]"


def shared_documents(corpus):
    train, validation = (set(text(corpus, part).split("[EOS]")) for part in ("train", "validation"))
    return (train & validation) - {""}


@pytest.mark.parametrize("held_out", [0.05, 0.3, 0.5, 0.9])
def test_training_and_validation_share_no_document(texts, held_out):
    """Every document is there three times, under names that sort apart."""
    for index in range(10):
        for name in (f"a{index}.txt", f"z{index}.txt"):
            (texts / name).write_bytes((texts / f"{index}.txt").read_bytes())
    corpus = load_corpus(config(texts, held_out=held_out))
    assert corpus.train_documents + corpus.validation_documents == 10
    assert not shared_documents(corpus)


def test_documents_that_differ_in_line_ends_and_marks_are_the_same(tmp_path):
    """Each of ten books in four files: as it is, from Windows, with a mark, and as JSON."""
    for index in range(10):
        book = f"book {index}\nline two\n\nline four\n" * (index + 1)
        (tmp_path / f"{index}.txt").write_bytes(book.encode())
        (tmp_path / f"a{index}.txt").write_bytes(book.replace("\n", "\r\n").encode())
        (tmp_path / f"z{index}.TXT").write_bytes(("\ufeff" + book).encode())
        row = {"text": "\ufeff" + book.replace("\n", "\r\n")}
        (tmp_path / f"m{index}.json").write_text(json.dumps(row))
    everything = config(tmp_path, "*.txt", "*.TXT", "*.json", held_out=0.5)
    corpus = load_corpus(everything)
    assert (corpus.train_documents, corpus.validation_documents) == (5, 5)
    assert not shared_documents(corpus)
    assert corpus.digest == load_corpus(config(tmp_path, "?.txt", held_out=0.5)).digest
    held_out = (str(tmp_path / "a[0-3].txt"), str(tmp_path / "z[2-5].TXT"))
    apart = load_corpus(dataclasses.replace(everything, validation_files=held_out))
    assert (apart.train_documents, apart.validation_documents) == (4, 6)
    assert not shared_documents(apart)


def test_a_document_in_both_parts_would_be_seen(texts, monkeypatch):
    """The twin: training keeps the documents that are held out."""
    split = data._split

    def overlapping(*arguments):
        parts = split(*arguments)
        return {"train": parts["train"] | parts["validation"], "validation": parts["validation"]}

    monkeypatch.setattr(data, "_split", overlapping)
    assert shared_documents(load_corpus(config(texts)))


def test_held_out_documents_do_not_depend_on_names(texts, tmp_path_factory):
    renamed = tmp_path_factory.mktemp("renamed")
    for index in range(10):
        (renamed / f"{9 - index}.txt").write_bytes((texts / f"{index}.txt").read_bytes())
    first, second = (
        load_corpus(config(texts, held_out=0.4)),
        load_corpus(config(renamed, held_out=0.4)),
    )
    assert text(first, "validation") == text(second, "validation")
    assert text(first, "train") != text(second, "train")


@pytest.fixture
def prose(tmp_path):
    """Forty documents of words that are drawn from their own vocabulary."""
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice(list("abcdefgh"), 5)) for _ in range(400)]
    for index in range(40):
        lines = [" ".join(draw.choice(words, 12)) for _ in range(20)]
        (tmp_path / f"{index}.txt").write_text("\n".join(lines))
    return tmp_path


def pieces(texts, **changes):
    return config(texts, tokenizer="sentencepiece", **changes)


def test_sentencepiece_vocabulary_has_the_models_size_and_gives_the_text_back(prose):
    corpus = load_corpus(pieces(prose), vocab_size=400)
    assert corpus.tokenizer.vocab_size == 400
    assert corpus.train.max() < 400
    held_out = set(text(corpus, "validation").split("[EOS]")) - {""}
    written = {path.read_text() for path in prose.glob("*.txt")}
    assert len(held_out) == 2
    assert held_out < written
    assert len(corpus.train) < len(load_corpus(config(prose)).train)
    assert load_corpus(pieces(prose), vocab_size=420).digest != corpus.digest


def test_sentencepiece_vocabulary_is_the_same_wherever_it_is_trained(prose, tmp_path_factory):
    first = load_corpus(pieces(prose), vocab_size=400)
    elsewhere = dataclasses.replace(pieces(prose), cache=tmp_path_factory.mktemp("cache"))
    second = load_corpus(elsewhere, vocab_size=400)
    assert first.tokenizer.model == second.tokenizer.model
    assert np.array_equal(first.train, second.train)


def test_sentencepiece_vocabulary_is_trained_on_training_documents_only(prose, monkeypatch):
    seen = []
    train = data.train_sentencepiece

    def listen(documents, vocab_size):
        documents = list(documents)
        seen.extend(documents)
        return train(documents, vocab_size)

    monkeypatch.setattr(data, "train_sentencepiece", listen)
    corpus = load_corpus(pieces(prose, held_out=0.25), vocab_size=400)
    expected = text(corpus, "train").split("[EOS]")[:-1]
    assert [document.decode() for document in seen] == expected
    assert len(expected) == 30


def test_large_texts_are_sampled_evenly_for_the_vocabulary(texts, monkeypatch):
    monkeypatch.setattr(data, "_SAMPLE_BYTES", 10)
    source = data.file_source((str(texts / "*.txt"),))
    documents = data._by_digest(source)
    whole = b"".join(data._sample(source, documents))
    assert len(whole) == sum(documents.values())
    monkeypatch.setattr(data, "_VOCABULARY_BYTES", len(whole) // 4)
    sample = list(data._sample(source, documents))
    assert abs(sum(map(len, sample)) - len(whole) / 4) < 20
    assert sample[0][:9] in whole[: len(whole) // 4]
    assert sample[-1] in whole[-len(whole) // 4 :]


@pytest.mark.parametrize(("size", "reason"), [(100, "small"), (90_000, "high")])
def test_a_vocabulary_that_the_text_does_not_afford_is_named(prose, size, reason):
    with pytest.raises(ValueError, match=rf"vocab_size must fit .*, got {size}: .*{reason}"):
        load_corpus(pieces(prose), vocab_size=size)
    assert not list((prose / "cache").glob("*/corpus.json"))


def test_default_corpus_is_the_standard_library(tmp_path):
    corpus = load_corpus(CorpusConfig(cache=tmp_path))
    assert len(corpus.train) > 5_000_000
    assert len(corpus.validation) > 100_000
    assert 0.04 < corpus.validation_documents / corpus.train_documents < 0.06
    assert load_corpus(CorpusConfig(cache=tmp_path)).digest == corpus.digest


@pytest.mark.parametrize(
    ("files", "changes", "message"),
    [
        (("none-*.txt",), {}, "must match a file, got '.*none-"),
        (("1.txt",), {}, "two different documents at least.* got 1: .*blank_lines"),
        (("1.txt",), {"tokenizer": "words"}, "bytes or sentencepiece, got 'words'"),
        (("1.txt",), {"dataset": "name"}, "give files or dataset, got both"),
        (("1.txt",), {"blank_lines": 0}, "blank_lines must be at least 1, got 0"),
        (("1.txt",), {"dataset_rows": 0}, "dataset_rows must be at least 1, got 0"),
        (("1.txt", "2.txt"), {"held_out": 1.0}, "held_out must be between 0 and 1, got 1.0"),
    ],
)
def test_bad_corpora_are_named(texts, files, changes, message):
    with pytest.raises(ValueError, match=message):
        load_corpus(config(texts, *files, **changes))


def test_an_empty_corpus_is_named(texts):
    for name in ("a-empty.txt", "b-empty.txt"):
        (texts / name).touch()
    with pytest.raises(ValueError, match=r"must hold two different documents at least, .* got 0"):
        load_corpus(config(texts, "*-empty.txt"))


def test_validation_that_is_all_of_the_text_leaves_nothing(texts):
    path = str(texts / "1.txt")
    with pytest.raises(ValueError, match="files must hold text that the other part does not"):
        load_corpus(config(texts, "1.txt", validation_files=(path,)))


def test_targets_are_the_token_after_each_latent():
    # Tokens that are their own positions: the target is always one more than the latent.
    inputs, targets = training_batch(np.arange(100), 3, 4, batch_size=5, seed=0, step=0)
    assert inputs.shape == (5, 7)
    assert targets.shape == (5, 4)
    assert torch.equal(inputs[:, 3:] + 1, targets)
    assert torch.equal(inputs.diff(), torch.ones(5, 6, dtype=torch.long))


def test_batches_follow_seed_and_step_alone():
    def draw(seed, step):
        return training_batch(np.arange(1000), 3, 4, 5, seed, step)[0]

    assert torch.equal(draw(1, 7), draw(1, 7))
    assert not torch.equal(draw(1, 7), draw(1, 8))
    assert not torch.equal(draw(1, 7), draw(2, 7))


def test_windows_reach_both_ends():
    starts = [training_batch(np.arange(10), 3, 4, 4, 0, step)[0][:, 0] for step in range(20)]
    assert torch.cat(starts).unique().tolist() == [0, 1, 2]
    inputs, targets = validation_windows(np.arange(30), 3, 4, 3)
    assert inputs[:, 0].tolist() == [0, 11, 22]
    assert targets[-1].tolist() == [26, 27, 28, 29]


@pytest.mark.parametrize("num_prefix", [0, 3, 10])
def test_equal_contexts_have_equal_targets(num_prefix):
    inputs, targets = validation_windows(np.arange(40), num_prefix, 4, 5, context=10)
    assert torch.equal(targets, validation_windows(np.arange(40), 10, 4, 5)[1])
    assert inputs.shape == (5, num_prefix + 4)
    assert torch.equal(inputs[:, -4:] + 1, targets)
    with pytest.raises(ValueError, match="context must be num_prefix = 3 at least, got 2"):
        validation_windows(np.arange(40), 3, 4, 5, context=2)


def test_the_part_that_is_too_short_is_named(texts):
    corpus = load_corpus(config(texts, held_out=0.1))
    window = len(corpus.validation)
    corpus.require_windows(window - 3, 2)
    with pytest.raises(ValueError, match=f"validation text .* = {window + 1} tokens, got {window}"):
        corpus.require_windows(window - 2, 2)


def test_a_corpus_of_one_window_serves_and_a_shorter_one_is_named():
    inputs, _ = training_batch(np.arange(8), 3, 4, 2, seed=0, step=0)
    assert inputs.tolist() == [list(range(7))] * 2
    for draw in (
        lambda: training_batch(np.arange(7), 3, 4, 2, seed=0, step=0),
        lambda: validation_windows(np.arange(7), 3, 4, 2),
    ):
        with pytest.raises(ValueError, match=r"num_prefix \+ num_latents \+ 1 = 8 tokens, got 7"):
            draw()
