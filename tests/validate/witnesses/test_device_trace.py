"""One device's products and collectives equal what PyTorch executes, and errors are found."""

import dataclasses

import pytest

import flopcount as fc
from flopcount import distributed, parallel
from validate import matrix
from validate.witnesses import device_trace
from validate.witnesses.device_trace import Case

SMALL = dict(
    model_type="llama", vocab_size=24, hidden_size=16, intermediate_size=20, num_hidden_layers=2,
    num_attention_heads=8, num_key_value_heads=4, head_dim=6, tie_word_embeddings=False,
    pad_token_id=None,
)  # fmt: skip
MIXTURE = dict(
    model_type="mixtral", vocab_size=24, hidden_size=16, intermediate_size=12, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_local_experts=4,
    num_experts_per_tok=2, tie_word_embeddings=False, pad_token_id=None,
)  # fmt: skip
CASES = {
    "tensor": Case(SMALL, fc.Parallel(tensor=4), 12, 2),
    "sequence": Case(
        SMALL | dict(model_type="qwen3"), fc.Parallel(tensor=2, sequence=True, data=2, zero=3), 12,
        checkpointing="non-reentrant",
    ),
    "replicas": Case(SMALL, fc.Parallel(data=4), 12, microbatches=2),
    "stages": Case(SMALL, fc.Parallel(pipeline=2), 12, microbatches=3),
    "experts": Case(
        MIXTURE, fc.Parallel(data=4, expert=2, tensor=2, sequence=True, zero=3), 8,
    ),
    "divided": Case(MIXTURE, fc.Parallel(tensor=2), 8, 2),
    "copies": Case(
        SMALL | dict(num_key_value_heads=2), fc.Parallel(tensor=4, sequence=True), 12, 2,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def tried():
    """Every case with what is seen of it, all in one process: starting it takes longest."""
    cases = [*CASES.values(), *device_trace.tried(quick=True)]
    return list(zip(cases, device_trace.observe(cases), strict=True))


@pytest.fixture(scope="module")
def seen(tried):
    return dict(zip(CASES, (seen for _, seen in tried[: len(CASES)]), strict=True))


@pytest.fixture
def disagreements(seen):
    def found(name):
        compared = device_trace.compare(CASES[name], seen[name])
        assert compared
        return {name for name, missed in compared.items() if missed}

    return found


def test_drawn_cases(tried):
    for case, seen in tried[len(CASES) :]:
        assert set(device_trace.compare(case, seen).values()) == {0}, case


@pytest.mark.parametrize("name", CASES)
def test_chosen_cases(disagreements, name):
    assert disagreements(name) == set()


def test_what_pytorch_does_by_hand(seen):
    (one,) = seen["tensor"]
    # Of each of two layers four all-reduces of 2 · 12 positions of 16 channels of four bytes, two
    # in each pass; one of the embedding forward and one of the logits' input backward; of the loss
    # three, of a number a position.
    positions = 2 * 12 * 16 * 4
    assert one.collectives == {
        ("tensor", "all-reduce", "forward"): (2 * 2 + 1 + 3, 5 * positions + 3 * 2 * 12 * 4),
        ("tensor", "all-reduce", "backward"): (2 * 2 + 1, 5 * positions),
    }
    # A quarter of 8 query heads and 4 key heads of six channels, of 20 hidden channels, of 24 rows.
    layer = 16 * 6 * (2 + 1 + 1 + 2) + 3 * 16 * 5
    products = 2 * 2 * 12 * (2 * layer + 16 * 6) + 2 * 2 * 2 * 2 * 2 * 12 * 12 * 6
    assert one.products == {"forward": products, "backward": 2 * products}
    first, last = seen["stages"]
    assert first.collectives == last.collectives == {("pipeline", "send", "step"): (3, 3 * 12 * 64)}
    assert last.products["step"] - first.products["step"] == 3 * 3 * 2 * 12 * 16 * 24


def test_what_is_spread_by_hand(seen):
    (experts,) = seen["experts"]
    # A device's part of the sequence, four positions, goes to two experts each and comes back, in
    # two layers; with 16 channels of four bytes. In the tensor group twice as many are gathered.
    exchanged = 2 * 2 * 4 * 2 * 16 * 4
    for phase in ("forward", "backward"):
        assert experts.collectives["expert", "all-to-all", phase] == (4, exchanged)
    # Two of four experts, halved, of three products; two replicas have the same.
    own = 2 * 2 * 3 * 16 * 12 // 2
    assert experts.collectives["expert data", "reduce-scatter", "update"][1] == 4 * own
    (divided,) = seen["divided"]
    # In two layers gradients of two sequences' eight positions, 16 channels of attention's and of
    # experts' input each, and four experts' weights; of the output layer's input likewise.
    gradients = 2 * 8 * (2 * (16 + 16 + 4) + 16)
    assert divided.collectives["tensor", "all-reduce", "backward"] == (2 * 3 + 1, 4 * gradients)
    (copies,) = seen["copies"]
    # Keys and values of one of two heads, on two devices each: in two layers 16 · 6 weights of
    # both; norms, of the whole group, are five of 16 scalars.
    _, moved = copies.collectives["tensor", "all-reduce", "update"]
    assert moved == 4 * (2 * 2 * 16 * 6 + 5 * 16)


@pytest.mark.parametrize(
    ("case", "owner", "attribute", "wrong", "where"),
    [
        ("tensor", parallel.Share, "leave", lambda *_: iter(()), "all-reduce, forward"),
        ("tensor", parallel.Share, "enter", lambda *_: iter(()), "all-reduce, backward"),
        ("tensor", parallel, "narrowed", lambda mlp, *_: mlp, "forward, stage 0"),
        ("sequence", distributed, "in_common", lambda *_: iter(()), "all-reduce, update"),
        ("sequence", distributed, "of_replicas", lambda *_: iter(()), "data, all-gather"),
        ("replicas", distributed, "of_replicas", lambda *_: iter(()), "data, all-reduce"),
        ("experts", parallel.Experts, "_exchange", lambda *_: iter(()), "expert, all-to-all"),
        ("experts", parallel.Experts, "choices", lambda *_: 16, "forward, stage 0"),
        ("divided", parallel.Experts, "rows", parallel.Region.rows, "all-reduce, backward"),
        ("copies", parallel.Heads, "rows", parallel.Region.rows, "tensor, all-reduce, update"),
    ],
)  # fmt: skip
def test_a_changed_formula_is_found(
    monkeypatch, disagreements, case, owner, attribute, wrong, where
):
    monkeypatch.setattr(owner, attribute, wrong)
    assert any(where in name for name in disagreements(case))


def test_a_stage_too_many_layers_or_sends_is_found(monkeypatch, disagreements):
    original = distributed.parts_of

    def wrong(*arguments):
        for part in original(*arguments):
            yield dataclasses.replace(part, blocks=part.blocks[1:], sends=part.sends + 1)

    monkeypatch.setattr(distributed, "parts_of", wrong)
    found = disagreements("stages")
    assert {"step, stage 1", "pipeline, send, step, stage 0: bytes"} <= found


def test_the_matrix_finds_it(monkeypatch, seen):
    (check,) = (check for check in matrix.STANDALONE if check.cases is device_trace.cases)
    monkeypatch.setattr(device_trace, "tried", lambda _: list(CASES.values()))
    monkeypatch.setattr(device_trace, "observe", lambda _: list(seen.values()))
    assert matrix.run_standalone(check).finding == "equal"
    monkeypatch.setattr(parallel.Share, "leave", lambda *_: iter(()))
    assert "formula - witness" in matrix.run_standalone(check).finding
