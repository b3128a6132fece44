"""Text as tokens: UTF-8 bytes, or a SentencePiece vocabulary trained on the text itself.

Both vocabularies begin with the same control tokens, so that ``[EOS]`` ends a document in either.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import sentencepiece

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor

TokenizerName = Literal["bytes", "sentencepiece"]
SPECIAL_TOKENS = ("[PAD]", "[BOS]", "[EOS]", "[MASK]", "[CLS]", "[SEP]")
END_OF_DOCUMENT = SPECIAL_TOKENS.index("[EOS]")
BYTE_VOCAB_SIZE = len(SPECIAL_TOKENS) + 256

_LONGEST_SENTENCE = 4096
SENTENCEPIECE_SETTINGS = dict(
    model_type="unigram",
    # What is written is what comes back: no normalisation, no added or removed spaces, and bytes
    # for the characters that the vocabulary lacks, a line break among them.
    normalization_rule_name="identity",
    add_dummy_prefix=False,
    remove_extra_whitespaces=False,
    byte_fallback=True,
    split_digits=True,
    pad_id=SPECIAL_TOKENS.index("[PAD]"),
    bos_id=SPECIAL_TOKENS.index("[BOS]"),
    eos_id=END_OF_DOCUMENT,
    unk_id=len(SPECIAL_TOKENS),
    pad_piece="[PAD]",
    bos_piece="[BOS]",
    eos_piece="[EOS]",
    unk_piece="[UNK]",
    control_symbols=[*SPECIAL_TOKENS[END_OF_DOCUMENT + 1 :]],
    max_sentence_length=_LONGEST_SENTENCE,
    # Sums of floats depend on how sentences are dealt to threads: one, and the result is the same
    # on every machine.
    num_threads=1,
    minloglevel=2,
)


class Tokenizer(Protocol):
    """Text to tokens and back."""

    vocab_size: int

    def encode(self, text: bytes | str) -> np.ndarray:
        """Turn text into token ids, one dimension, without control tokens."""

    def byte_lengths(self) -> np.ndarray:
        """Give the bytes that each token id stands for; 1 for a control token."""

    def decode(self, tokens: Tensor | np.ndarray) -> str:
        """Turn token ids into text: control tokens by name, broken UTF-8 as U+FFFD."""


class ByteTokenizer:
    """Each UTF-8 byte is its value plus the number of special tokens.

    Source:
        The byte tokenizer of Perceiver IO (arXiv 2107.14795), section 4.1; 262 tokens.

    >>> ByteTokenizer().encode("Ab").tolist()
    [71, 104]
    >>> ByteTokenizer().decode(np.array([71, 104, 2]))
    'Ab[EOS]'
    """

    vocab_size = BYTE_VOCAB_SIZE

    def encode(self, text: bytes | str) -> np.ndarray:
        """Turn text into uint16 token ids, one per byte."""
        data = text.encode() if isinstance(text, str) else text
        return np.frombuffer(data, np.uint8).astype(np.uint16) + len(SPECIAL_TOKENS)

    def byte_lengths(self) -> np.ndarray:
        """Give the bytes that each token id stands for; 1 for a control token."""
        return np.ones(self.vocab_size, np.int64)

    def decode(self, tokens: Tensor | np.ndarray) -> str:
        """Turn token ids into text: control tokens by name, broken UTF-8 as U+FFFD."""
        text = bytearray()
        for token in np.asarray(tokens).tolist():
            if token < len(SPECIAL_TOKENS):
                text += SPECIAL_TOKENS[token].encode()
            else:
                text.append(token - len(SPECIAL_TOKENS))
        return text.decode(errors="replace")


class SentencePieceTokenizer:
    """A trained SentencePiece model.

    Text comes back as it was, but for U+2581, which SentencePiece writes spaces with.

    Args:
        model: The serialised model, as :func:`train_sentencepiece` returns it.
    """

    def __init__(self, model: bytes) -> None:
        self.model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.vocab_size = self._processor.get_piece_size()

    def encode(self, text: bytes | str) -> np.ndarray:
        """Turn text into uint32 token ids; broken UTF-8 becomes U+FFFD."""
        if isinstance(text, bytes):
            text = text.decode(errors="replace")
        # No piece spans a line break, so lines can be encoded by themselves.
        pieces = self._processor.encode(text.splitlines(keepends=True))
        return np.fromiter((piece for line in pieces for piece in line), np.uint32)

    def byte_lengths(self) -> np.ndarray:
        """Give the bytes that each token id stands for; 1 for a control token."""
        pieces = self._processor
        return np.array(
            [
                1
                if pieces.is_byte(token) or pieces.is_control(token) or pieces.is_unknown(token)
                else len(pieces.id_to_piece(token).replace("\u2581", " ").encode())
                for token in range(self.vocab_size)
            ]
        )

    def decode(self, tokens: Tensor | np.ndarray) -> str:
        """Turn token ids into text: control tokens by name, broken UTF-8 as U+FFFD."""
        text, run = "", []
        for token in np.asarray(tokens).tolist():
            if token < len(SPECIAL_TOKENS):
                text += self._processor.decode(run) + SPECIAL_TOKENS[token]
                run = []
            else:
                run.append(token)
        return text + self._processor.decode(run)


def train_sentencepiece(documents: Iterable[bytes], vocab_size: int) -> bytes:
    """Train a unigram vocabulary of exactly ``vocab_size`` pieces.

    The result depends on the documents, their order and the size alone.

    Returns:
        The serialised model.

    Raises:
        ValueError: If the text has too many different characters, or affords too few pieces, for
            that size.

    Source:
        Kudo and Richardson, arXiv 1808.06226; unigram model of Kudo, arXiv 1804.10959.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(documents),
            model_writer=model,
            vocab_size=vocab_size,
            **SENTENCEPIECE_SETTINGS,
        )
    except (RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0].rpartition("] ")[2]
        raise ValueError(
            f"vocab_size must fit the training text, got {vocab_size}: {reason}"
        ) from error
    return model.getvalue()


def _sentences(documents: Iterable[bytes]) -> Iterator[str]:
    """Give lines, the longest in parts: the trainer leaves out what is longer than it may be."""
    most = _LONGEST_SENTENCE // 4  # UTF-8 has at most four bytes to a character
    for document in documents:
        for line in document.decode(errors="replace").splitlines():
            for start in range(0, len(line), most):
                yield line[start : start + most]
