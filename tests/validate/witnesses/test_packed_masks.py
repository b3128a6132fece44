"""Packed documents are masked by transformers as they are counted."""

import pytest

import flopcount as fc
from validate.witnesses.hugging_face.networks import packed_pairs

SIZES = dict(
    vocab_size=11, hidden_size=12, intermediate_size=10, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=6, pad_token_id=None,
    bos_token_id=None, eos_token_id=None,
)  # fmt: skip
LLAMA_4 = dict(
    model_type="llama4_text", attention_chunk_size=4, num_local_experts=3, num_experts_per_tok=1,
    intermediate_size_mlp=9, no_rope_layers=[1, 0],
)  # fmt: skip


def counted(config, documents):
    """Pairs of each kind of layer, per head."""
    count = fc.from_hf(config, sum(documents)).flops(documents=documents)
    return {term.rows[0].pairs for term in count.terms if term.term == "scores"}


@pytest.mark.parametrize("documents", [[2, 5, 3], [1, 1, 7], [6, 4]])
@pytest.mark.parametrize(
    "own",
    [
        dict(model_type="llama"),
        dict(model_type="mistral", sliding_window=3),
        dict(model_type="gemma2", sliding_window=3),
        # Chunks begin anew with every document.
        LLAMA_4,
    ],
    ids=lambda own: own["model_type"],
)
def test_pairs_of_packed_documents(own, documents):
    seen = set(packed_pairs(SIZES | own, documents).values())
    assert seen == counted(SIZES | own, documents)
    assert seen != counted(SIZES | own, [sum(documents)])
