"""Data: tokens, the corpus and its cache, windows and targets."""

import gzip
import lzma

import numpy as np
import pytest
import torch

from models.data import (
    VOCAB_SIZE,
    CorpusConfig,
    decode,
    encode,
    load_corpus,
    training_batch,
    validation_windows,
)


@pytest.fixture
def texts(tmp_path):
    for index in range(10):
        (tmp_path / f"{index}.txt").write_text(f"document {index} " * (index + 1))
    return tmp_path


def config(texts, *files, **changes):
    files = tuple(str(texts / file) for file in files or ("*.txt",))
    return CorpusConfig(files=files, cache=texts / "cache", **changes)


def test_vocabulary_is_the_articles():
    assert VOCAB_SIZE == 262
    assert encode(bytes(range(256))).tolist() == list(range(6, 262))
    assert decode(encode("naïve ∑")) == "naïve ∑"
    assert decode([0, 71, 2]) == "[PAD]A[EOS]"


def test_every_document_is_in_one_part_in_order_and_ended(texts):
    corpus = load_corpus(config(texts, held_out=0.3))
    assert (corpus.train_documents, corpus.validation_documents) == (7, 3)
    train = decode(corpus.train).split("[EOS]")
    validation = decode(corpus.validation).split("[EOS]")
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
    load_corpus(config(texts))
    (folder,) = (texts / "cache").iterdir()
    planted = np.arange(50, dtype=np.uint16)
    planted.tofile(folder / "train.bin")
    assert np.array_equal(load_corpus(config(texts)).train, planted)


def test_compressed_text_is_the_same_text(texts):
    content = (texts / "1.txt").read_bytes()
    (texts / "1.txt").unlink()
    plain = [texts / "a.xz", texts / "b.gz"]
    plain[0].write_bytes(lzma.compress(content))
    plain[1].write_bytes(gzip.compress(content + b"!"))
    corpus = load_corpus(config(texts, "a.xz", "b.gz"))
    text = decode(corpus.train) + decode(corpus.validation)
    assert sorted(text.split("[EOS]")) == ["", content.decode(), content.decode() + "!"]


def test_equal_documents_count_once_and_validation_files_leave_training(texts):
    (texts / "copy.txt").write_bytes((texts / "4.txt").read_bytes())
    (texts / "empty.txt").write_bytes(b"")
    corpus = load_corpus(config(texts, validation_files=(str(texts / "copy.txt"),)))
    assert (corpus.train_documents, corpus.validation_documents) == (9, 1)
    assert "document 4" not in decode(corpus.train)


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
        (("1.txt",), {}, "two different documents at least.* got 1"),
        (("1.txt", "2.txt"), {"held_out": 1.0}, "held_out must be between 0 and 1, got 1.0"),
    ],
)
def test_bad_corpora_are_named(texts, files, changes, message):
    with pytest.raises(ValueError, match=message):
        load_corpus(config(texts, *files, **changes))


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


def test_a_corpus_of_one_window_serves_and_a_shorter_one_is_named():
    inputs, _ = training_batch(np.arange(8), 3, 4, 2, seed=0, step=0)
    assert inputs.tolist() == [list(range(7))] * 2
    for draw in (
        lambda: training_batch(np.arange(7), 3, 4, 2, seed=0, step=0),
        lambda: validation_windows(np.arange(7), 3, 4, 2),
    ):
        with pytest.raises(ValueError, match=r"num_prefix \+ num_latents \+ 1 = 8 tokens, got 7"):
            draw()
