"""Tokens: what a text becomes, and that it comes back."""

import numpy as np
import pytest

from models.data.tokenizers import (
    SPECIAL_TOKENS,
    ByteTokenizer,
    SentencePieceTokenizer,
    train_sentencepiece,
)


@pytest.fixture(scope="module")
def trained():
    draw = np.random.default_rng(0)
    words = [
        "the",
        "quick",
        "brown",
        "foxes",
        "jump",
        "over",
        "many",
        "lazy",
        "dogs",
        "while",
        "others",
        "sleep",
    ]
    lines = [" ".join(draw.choice(words, 8)) for _ in range(400)]
    return SentencePieceTokenizer(train_sentencepiece(["\n".join(lines).encode()], 312))


def test_byte_vocabulary_is_the_articles():
    tokenizer = ByteTokenizer()
    assert tokenizer.vocab_size == 262
    assert tokenizer.encode(bytes(range(256))).tolist() == list(range(6, 262))


def test_control_tokens_are_the_same_in_both_vocabularies(trained):
    for tokenizer in (ByteTokenizer(), trained):
        assert tokenizer.decode(range(6)) == "".join(SPECIAL_TOKENS)
        letter = tokenizer.encode("q").tolist()
        assert tokenizer.decode([0, *letter, 2, *letter]) == "[PAD]q[EOS]q"


@pytest.mark.parametrize(
    "text",
    [
        "naïve ∑ 漢字 🙂",
        " leading,  double and trailing  \n\n\ttabs\r\nbreaks\u2028of\x0b all\x85kinds\n",
        "[EOS] <s> <0x41> [UNK]",
        "",
        "ﬁ ① e\u0301",
    ],
)
def test_text_comes_back(trained, text):
    for tokenizer in (ByteTokenizer(), trained):
        tokens = tokenizer.encode(text)
        assert tokenizer.decode(tokens) == text
        assert np.array_equal(tokenizer.encode(text.encode()), tokens)
        assert not (tokens < len(SPECIAL_TOKENS)).any()


@pytest.mark.parametrize("text", ["the quick brown foxes", " two  spaces\n", "naïve ∑ 漢字 🙂 123"])
def test_lengths_of_the_tokens_are_the_text_s_bytes(trained, text):
    for tokenizer in (ByteTokenizer(), trained):
        lengths = tokenizer.byte_lengths()
        assert len(lengths) == tokenizer.vocab_size
        assert lengths[tokenizer.encode(text)].sum() == len(text.encode())
        assert lengths[: len(SPECIAL_TOKENS)].tolist() == [1] * len(SPECIAL_TOKENS)


def test_words_of_the_training_text_are_few_pieces(trained):
    assert len(trained.encode("the quick brown foxes")) < 9 < len(trained.encode("zyxwv zyxwv"))


def test_broken_bytes_become_one_sign():
    assert ByteTokenizer().decode(ByteTokenizer().encode("∑")[:2]) == "�"


def test_a_long_line_is_not_left_out():
    """SentencePiece drops sentences over its limit; the only text here is such a line."""
    text = "".join(f"quick{number} " for number in range(2000)).encode()
    assert SentencePieceTokenizer(train_sentencepiece([text], 280)).vocab_size == 280
