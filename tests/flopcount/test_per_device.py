"""Many devices by hand: FLOPs of each, what it sends, padding, stages, experts, bubbles."""

import dataclasses
import json
import math
from fractions import Fraction

import numpy as np
import pytest

import flopcount as fc
from flopcount.cli import main
from flopcount.distributed import Collective
from flopcount.mixture_lm import MixtureLM

GPT = fc.Decoder(vocab_size=64, seq_len=6, num_channels=16, num_layers=4, num_heads=8)
LLAMA = fc.Llama(
    vocab_size=24, seq_len=12, num_channels=16, num_layers=4, num_heads=8, num_key_value_heads=4,
    head_dim=6, intermediate_size=20,
)  # fmt: skip
EXPERTS = MixtureLM(
    vocab_size=24, seq_len=12, num_channels=16, num_layers=4, num_heads=8, intermediate_size=20,
    mlp=("dense", "sparse"), num_experts=8, experts_per_token=2, expert_size=12, shared_size=8,
)  # fmt: skip
LATENT = MixtureLM(
    vocab_size=24, seq_len=12, num_channels=16, num_layers=2, num_heads=4, intermediate_size=20,
    mlp=("dense",), num_experts=1, experts_per_token=1, expert_size=1, query_rank=10,
    key_value_rank=6, plain_dim=4, rotary_dim=2, value_dim=3,
)  # fmt: skip


def moved(stage, dtype=None, **where):
    """Elements of a device's collectives, and how often, of those whose attributes are these."""
    found = [
        each
        for each in stage.collectives
        if all(getattr(each, name) == value for name, value in where.items())
        and dtype in (None, each.dtype)
    ]
    return sum(each.times for each in found), sum(each.elements for each in found)


def only(found):
    (stage,) = found.stages
    return stage


def test_one_device_does_everything_and_sends_nothing():
    found = fc.per_device(LLAMA, fc.Parallel(), batch_size=3, checkpointing="reentrant")
    whole = LLAMA.flops(batch_size=3, checkpointing="reentrant")
    stage = only(found)
    assert stage.count.with_recompute == whole.with_recompute
    assert stage.collectives == ()
    assert (stage.bytes, stage.params, stage.layers) == (0, LLAMA.params().total, 4)
    assert (found.total, found.overhead, found.imbalance) == (whole.total, 0, 1)
    assert (found.bubble, found.busiest_experts, found.microbatches) == (0, None, 3)


def test_megatrons_all_reduces():
    # Shoeybi et al. 2019, section 3: two all-reduces in each pass of a layer. Narayanan et al.
    # 2021, section 3.2: 8bsh (t - 1)/t elements of a layer and microbatch.
    stage = only(fc.per_device(GPT, fc.Parallel(tensor=4), batch_size=5))
    for phase in ("forward", "backward"):
        times, elements = moved(stage, layer="decoder", phase=phase, kind="all-reduce")
        assert (times, elements) == (5 * 4 * 2, 4 * 2 * 5 * 6 * 16)
    layers = [each for each in stage.collectives if each.layer == "decoder"]
    assert sum(each.bytes for each in layers) == 4 * 5 * 8 * 6 * 16 * Fraction(3, 4) * 2
    # Beside them the embedding's, the gradient of the output layer's input, and three numbers of
    # each position for the loss.
    ends = {"embedding": ("forward", 96), "output": ("backward", 96)}
    for layer, (phase, elements) in ends.items():
        assert moved(stage, layer=layer, phase=phase) == (5, 5 * elements)
    assert moved(stage, layer="loss", dtype="fp32") == (15, 5 * 3 * 6)
    assert len(stage.collectives) == 9
    assert (stage.count.batch_size, stage.count.tokens) == (5, 5 * 6)


def test_sequence_parallelism_sends_as_much():
    # Korthikanti et al. 2022, section 4.2.2: four all-gathers and four reduce-scatters of a layer
    # in both passes, in place of four all-reduces, and as many bytes.
    plain = only(fc.per_device(GPT, fc.Parallel(tensor=2), batch_size=3))
    stage = only(fc.per_device(GPT, fc.Parallel(tensor=2, sequence=True), batch_size=3))
    for kind in ("all-gather", "reduce-scatter"):
        for phase in ("forward", "backward"):
            assert moved(stage, layer="decoder", phase=phase, kind=kind) == (24, 24 * 6 * 16)
    assert moved(stage, layer="embedding", kind="reduce-scatter", phase="forward")[1] == 3 * 96
    assert moved(stage, layer="embedding", kind="all-gather", phase="backward")[1] == 3 * 96
    assert moved(stage, layer="output", kind="all-gather", phase="forward")[1] == 3 * 96
    assert moved(stage, layer="output", kind="reduce-scatter", phase="backward")[1] == 3 * 96
    # What both devices have, each of its half of the sequence, is added up once a step: in each
    # layer two norms of 2 · 16 and two biases of 16; the table of positions; the final norm.
    _, elements = moved(stage, phase="update", group="tensor")
    assert elements == 4 * (2 * 2 * 16 + 2 * 16) + 6 * 16 + 2 * 16
    updates = sum(each.bytes for each in stage.collectives if each.phase == "update")
    assert stage.bytes - updates == plain.bytes
    assert stage.count.total == plain.count.total
    model = dataclasses.replace(GPT, seq_len=8)
    stage = only(fc.per_device(model, fc.Parallel(tensor=4, sequence=True)))
    _, elements = moved(stage, phase="update", group="tensor")
    assert elements == 4 * (2 * 2 * 16 + 2 * 16) + 8 * 16 + 2 * 16


def test_flops_of_a_tensor_group():
    found = fc.per_device(LLAMA, fc.Parallel(tensor=4), batch_size=2)
    stage = only(found)
    assert {term.term: term.forward for term in stage.count.terms if term.layer == "decoder"} == {
        # Two sequences of twelve, four layers; 2 of 8 query heads, 1 of 4 key heads, 5 of 20.
        "query": 2 * 4 * 2 * 12 * 16 * 12,
        "key": 2 * 4 * 2 * 12 * 16 * 6,
        "value": 2 * 4 * 2 * 12 * 16 * 6,
        "scores": 2 * 4 * 2 * 2 * 78 * 6,
        "values": 2 * 4 * 2 * 2 * 78 * 6,
        "out": 2 * 4 * 2 * 12 * 12 * 16,
        "mlp gate": 2 * 4 * 2 * 12 * 16 * 5,
        "mlp up": 2 * 4 * 2 * 12 * 16 * 5,
        "mlp down": 2 * 4 * 2 * 12 * 5 * 16,
    }
    assert 4 * stage.count.total == LLAMA.flops(batch_size=2).total == found.total
    # Norms are whole on each device.
    assert stage.params == (LLAMA.params().total - 9 * 16) // 4 + 9 * 16
    assert (
        only(fc.per_device(LLAMA, fc.Parallel(tensor=4), batch_size=2, level="dense")).count.total
        * 4
        == LLAMA.flops("dense", batch_size=2).total
    )


def test_key_value_heads_that_several_devices_have():
    model = dataclasses.replace(LLAMA, intermediate_size=24)
    found = fc.per_device(model, fc.Parallel(tensor=8))
    stage = only(found)
    # Eight devices, each with one of four heads: keys and values are projected twice.
    projections = 2 * 4 * 12 * 16 * 24 * 2
    assert found.total == model.flops().total + 3 * projections
    assert found.overhead == Fraction(3 * projections, model.flops().total)
    assert moved(stage, phase="update") == (2, 2 * 4 * 16 * 6)
    assert {each.size for each in stage.collectives if each.phase == "update"} == {2}
    # With one head of keys, all eight have it.
    alone = dataclasses.replace(model, num_key_value_heads=1)
    updates = [
        each
        for each in only(fc.per_device(alone, fc.Parallel(tensor=8))).collectives
        if each.phase == "update"
    ]
    assert {(each.term, each.size, each.elements) for each in updates} == {
        ("key", 8, 4 * 16 * 6), ("value", 8, 4 * 16 * 6)
    }  # fmt: skip
    # On the whole sequence, whatever else is divided along it.
    along = fc.per_device(alone, fc.Parallel(tensor=4, sequence=True))
    key = next(term for term in only(along).count.terms if term.term == "key")
    assert key.forward == 2 * 4 * 12 * 16 * 6


def test_recomputation_sends_again_what_it_needs():
    # All of a layer again; or up to the last product that the backward pass needs, so that what the
    # MLP gives is not added up again.
    for flavour, mlp in (("reentrant", 1), ("non-reentrant", 0)):
        found = fc.per_device(LLAMA, fc.Parallel(tensor=2, sequence=True), checkpointing=flavour)
        stage = only(found)
        assert moved(stage, phase="recompute", kind="all-gather") == (8, 4 * 2 * 12 * 16)
        assert moved(stage, phase="recompute", kind="reduce-scatter")[0] == 4 * (1 + mlp)
        assert 2 * stage.count.recompute == LLAMA.flops(checkpointing=flavour).recompute
    # A norm behind the branch, or a dropout, needs what the MLP gives.
    post = CAUSAL(norm_placement="branch")
    stage = only(fc.per_device(post, fc.Parallel(tensor=2), checkpointing="non-reentrant"))
    assert moved(stage, phase="recompute", kind="all-reduce")[0] == 4
    assert moved(stage, phase="recompute", kind="all-reduce", term="mlp")[0] == 2
    stage = only(fc.per_device(CAUSAL(), fc.Parallel(tensor=2), checkpointing="non-reentrant"))
    assert moved(stage, phase="recompute", kind="all-reduce", term="mlp")[0] == 0


def CAUSAL(**more):  # noqa: N802
    return fc.CausalLM(
        vocab_size=24, seq_len=12, num_channels=16, num_layers=2, num_heads=4,
        intermediate_size=20, **more,
    )  # fmt: skip


def test_a_forward_pass_alone():
    parallel = fc.Parallel(tensor=2, pipeline=2, data=2, zero=3)
    found = fc.per_device(LLAMA, parallel, training=False)
    assert {each.phase for stage in found.stages for each in stage.collectives} == {"forward"}
    assert found.total == LLAMA.flops(training=False, batch_size=2).total
    assert moved(found.stages[1], layer="loss") == (0, 0)
    none = fc.per_device(LLAMA, fc.Parallel(data=2), training=False)
    assert only(none).collectives == ()


def test_stages_and_their_ends():
    found = fc.per_device(LLAMA, fc.Parallel(pipeline=4, data=2), batch_size=12, microbatch_size=2)
    assert found.microbatches == 3
    assert [stage.layers for stage in found.stages] == [1, 1, 1, 1]
    first, second, third, last = found.stages
    logits = 6 * 6 * 12 * 16 * 24
    assert last.count.total - first.count.total == logits
    assert first.count.total == second.count.total == third.count.total
    assert found.largest is last
    mean = (4 * first.count.total + logits) / 4
    assert float(found.imbalance) == pytest.approx(last.count.total / mean)
    assert 2 * sum(stage.count.total for stage in found.stages) == found.total
    assert found.total == LLAMA.flops(batch_size=12).total
    # The embedding on the first stage; the output layer and a norm on the last.
    assert first.params - second.params == 24 * 16
    assert last.params - second.params == 24 * 16 + 16
    # Three microbatches of two sequences, forward from all but the last, back from all but the
    # first.
    for stage, forward, backward in ((first, 3, 0), (second, 3, 3), (last, 0, 3)):
        size = 2 * 12 * 16
        assert moved(stage, kind="send", phase="forward") == (forward, forward * size)
        assert moved(stage, kind="send", phase="backward") == (backward, backward * size)
    assert first.bytes == 3 * 2 * 12 * 16 * 2 + first.params * 4  # both of two replicas' halves
    assert found.bubble == Fraction(3, 6)
    assert type(first.bytes) is int
    assert fc.per_device(LLAMA, fc.Parallel(data=2), microbatch_size=3).batch_size == 6


def test_interleaved_stages():
    model = dataclasses.replace(LLAMA, num_layers=8)
    parallel = fc.Parallel(pipeline=2, chunks=2, tensor=2, sequence=True)
    found = fc.per_device(model, parallel, batch_size=4)
    first, last = found.stages
    size = 4 * 6 * 16  # four microbatches of a half of twelve positions
    # Parts 0 and 2, and 1 and 3: all send forward but the last, all send back but the first.
    assert moved(first, kind="send", phase="forward") == (8, 2 * size)
    assert moved(first, kind="send", phase="backward") == (4, size)
    assert moved(last, kind="send", phase="forward") == (4, size)
    assert moved(last, kind="send", phase="backward") == (8, 2 * size)
    assert (first.layers, last.layers) == (4, 4)
    assert found.bubble == Fraction(1, 9)
    uneven = dataclasses.replace(parallel, stages=(1, 2, 3, 2))
    assert [stage.layers for stage in fc.per_device(model, uneven, batch_size=4).stages] == [4, 4]
    uneven = dataclasses.replace(parallel, stages=(0, 2, 4, 2))
    assert [stage.layers for stage in fc.per_device(model, uneven, batch_size=4).stages] == [4, 4]


def test_stages_of_layers_that_differ():
    # Dense and sparse layers in turn; the first stage has layers 0 to 2, the second layer 3.
    found = fc.per_device(EXPERTS, fc.Parallel(pipeline=2, stages=(3, 1)))
    first, last = ({term.layer: 0 for term in stage.count.terms} for stage in found.stages)
    assert set(first) == {"dense", "sparse"}
    assert set(last) == {"sparse", "output"}
    per_layer = {
        layer: EXPERTS.flops().where(lambda term, of=layer: term.layer == of).total // 2
        for layer in ("dense", "sparse")
    }
    assert found.stages[0].count.total == 2 * per_layer["dense"] + per_layer["sparse"]
    logits = 6 * 12 * 16 * 24
    assert found.stages[1].count.total == per_layer["sparse"] + logits


def test_stages_of_a_pattern_that_is_not_the_same_backwards():
    # Dense, sparse, dense, twice: the first stage has one of each, the second dense alone.
    model = dataclasses.replace(EXPERTS, mlp=("dense", "sparse", "dense"), num_layers=6)
    stages = fc.per_device(model, fc.Parallel(pipeline=3, stages=(2, 2, 2))).stages
    layers = [{term.layer for term in stage.count.terms} for stage in stages]
    assert layers == [{"dense", "sparse"}, {"dense"}, {"dense", "sparse", "output"}]


def test_tied_ends_of_a_pipeline():
    tied = dataclasses.replace(LLAMA, tie_embeddings=True)
    found = fc.per_device(tied, fc.Parallel(pipeline=2, tensor=2))
    first, last = found.stages
    # Both have half of the table of 24 rows, and add its gradients up.
    for stage in (first, last):
        assert moved(stage, group="embedding") == (1, 12 * 16)
        assert [each.bytes for each in stage.collectives if each.group == "embedding"] == [
            12 * 16 * 4
        ]
    assert last.params - first.params == 16
    assert (
        sum(stage.params for stage in found.stages) - 12 * 16
        == only(fc.per_device(tied, fc.Parallel(tensor=2))).params
    )
    assert found.total == tied.flops().total
    alone = only(fc.per_device(tied, fc.Parallel(tensor=2)))
    assert moved(alone, group="embedding") == (0, 0)
    three = dataclasses.replace(tied, num_layers=3)
    for training, times in ((True, [1, 0, 1]), (False, [0, 0, 0])):
        found = fc.per_device(three, fc.Parallel(pipeline=3), training=training)
        assert [moved(stage, group="embedding")[0] for stage in found.stages] == times


@pytest.mark.parametrize(
    ("zero", "reshard", "expected"),
    [
        # Rajbhandari et al. 2020, section 7: 2Ψ, 2Ψ, 2Ψ and 3Ψ, as gradients of four bytes and
        # parameters of two; with three microbatches, gradients of which only parts are kept, and
        # parameters, move with each.
        (0, True, 2 * 4),
        (1, True, 4 + 2),
        (2, True, 3 * 4 + 2),
        (3, True, 3 * (4 + 2 + 2)),
        (3, False, 3 * (4 + 2)),
    ],
)  # fmt: skip
def test_replicas_that_keep_parts(zero, reshard, expected):
    parallel = fc.Parallel(data=4, zero=zero, reshard=reshard)
    stage = only(fc.per_device(LLAMA, parallel, batch_size=12))
    assert stage.bytes == Fraction(3, 4) * expected * LLAMA.params().total
    assert {each.size for each in stage.collectives} == {4}
    assert all(each.elements for each in stage.collectives)
    one = only(fc.per_device(LLAMA, parallel, gradients="bf16"))
    assert one.bytes == Fraction(3, 4) * 2 * (3 if zero == 3 and reshard else 2) * (
        LLAMA.params().total
    )


def test_sums_of_a_tensor_group_with_replicas():
    # Once a step; with each microbatch where replicas keep parts of gradients.
    for zero, times in ((0, 1), (1, 1), (2, 3), (3, 3)):
        parallel = fc.Parallel(tensor=2, sequence=True, data=2, zero=zero)
        stage = only(fc.per_device(LLAMA, parallel, batch_size=6))
        assert moved(stage, phase="update", group="tensor") == (3 * times, 9 * 16 * times)


def test_experts_on_replicas():
    # 2 of 4 layers have 8 experts of 12 hidden channels, of which a token uses 2; 8 replicas, in 2
    # groups of 4.
    found = fc.per_device(EXPERTS, fc.Parallel(data=8, expert=4), batch_size=16)
    stage = only(found)
    assert 8 * stage.count.total == EXPERTS.flops(batch_size=16).total
    # Two microbatches of a sequence of 12, each position to two experts and back; a layer has four
    # all-to-alls of them in both passes.
    for phase in ("forward", "backward"):
        assert moved(stage, kind="all-to-all", phase=phase) == (2 * 2 * 2, 2 * 2 * 2 * 12 * 2 * 16)
    exchanged = [each for each in stage.collectives if each.kind == "all-to-all"]
    assert {each.size for each in exchanged} == {4}
    assert sum(each.bytes for each in exchanged) == Fraction(3, 4) * 2 * 2 * 4 * 2 * 12 * 2 * 16
    experts = 2 * 8 * 3 * 16 * 12
    assert stage.params == EXPERTS.params().total - experts + experts // 4
    assert moved(stage, group="data") == (1, EXPERTS.params().total - experts)
    assert moved(stage, group="expert data") == (1, experts // 4)
    assert {each.size for each in stage.collectives if each.group == "expert data"} == {2}
    # All of four replicas' positions might choose the two experts of one device.
    assert found.busiest_experts == 4
    assert fc.per_device(EXPERTS, fc.Parallel(data=8, expert=8)).busiest_experts == 4
    alone = fc.per_device(EXPERTS, fc.Parallel(data=8))
    assert alone.busiest_experts == 1
    assert moved(only(alone), group="data") == (1, EXPERTS.params().total)
    assert len(only(alone).collectives) == 1


def test_experts_of_a_tensor_group():
    stage = only(fc.per_device(EXPERTS, fc.Parallel(tensor=2)))
    terms = {term.term: term.forward for term in stage.count.terms if term.layer == "sparse"}
    # Two layers, twelve positions: the router whole, half of 12 and of 8 hidden channels.
    assert terms["router"] == 2 * 2 * 12 * 16 * 8
    assert terms["expert up"] == 2 * 2 * 12 * 2 * 16 * 6
    assert terms["shared expert up"] == 2 * 2 * 12 * 16 * 4
    assert moved(stage, layer="sparse", term="experts", phase="forward") == (2, 2 * 12 * 16)
    assert moved(stage, layer="sparse", term="experts", phase="backward") == (2, 2 * 12 * 16)
    # Gradients of eight experts' weights of each position, of which every device has a part.
    assert moved(stage, term="expert weights", phase="backward") == (2, 2 * 12 * 8)
    # Attention's, too, and no other.
    assert moved(stage, layer="sparse") == (8 + 2, 8 * 12 * 16 + 2 * 12 * 8)
    along = only(fc.per_device(EXPERTS, fc.Parallel(tensor=2, sequence=True)))
    terms = {term.term: term.forward for term in along.count.terms if term.layer == "sparse"}
    assert terms["router"] == 2 * 2 * 6 * 16 * 8
    assert terms["expert up"] == 2 * 2 * 12 * 2 * 16 * 6
    assert moved(along, term="router", phase="update") == (1, 2 * 16 * 8)
    for phase in ("forward", "backward"):
        assert moved(along, term="expert weights", phase=phase) == (2, 2 * 12 * 8)
    assert moved(along, layer="sparse", phase="forward") == (8 + 2, 8 * 12 * 16 + 2 * 12 * 8)
    gated = dataclasses.replace(EXPERTS, shared_gate=True)
    weights = moved(only(fc.per_device(gated, fc.Parallel(tensor=2))), term="expert weights")
    assert weights == (2, 2 * 12 * (8 + 1))  # and the shared MLP's
    alone = dataclasses.replace(EXPERTS, shared_size=None)
    stage = only(fc.per_device(alone, fc.Parallel(tensor=2)))
    assert moved(stage, layer="sparse", term="experts", phase="forward") == (2, 2 * 12 * 16)


def test_experts_of_both():
    parallel = fc.Parallel(tensor=2, sequence=True, data=4, expert=2)
    found = fc.per_device(EXPERTS, parallel)
    stage = only(found)
    # Each of two devices sends the choices of six positions, and gathers those of twelve.
    for phase in ("forward", "backward"):
        assert moved(stage, kind="all-to-all", phase=phase) == (4, 2 * 2 * 6 * 2 * 16)
        for kind, own in (("all-gather", "to experts"), ("reduce-scatter", "from experts")):
            term = (
                own if phase == "forward" else {"to experts": "from experts"}.get(own, "to experts")
            )
            assert moved(stage, kind=kind, phase=phase, term=term) == (2, 2 * 12 * 2 * 16)
    # What the shared MLP reads enters as of any.
    assert moved(stage, term="experts", phase="forward", kind="all-gather") == (2, 2 * 12 * 16)
    alone = dataclasses.replace(EXPERTS, shared_size=None)
    assert moved(only(fc.per_device(alone, parallel)), term="experts") == (0, 0)
    # Results come back to be weighted, so weights need not go, and the exchange is repeated.
    assert moved(stage, term="expert weights") == (0, 0)
    again = only(fc.per_device(EXPERTS, parallel, checkpointing="non-reentrant"))
    assert moved(again, kind="all-to-all", phase="recompute") == (4, 2 * 2 * 6 * 2 * 16)
    assert 8 * stage.count.total == EXPERTS.flops(batch_size=4).total
    experts = 2 * 8 * 3 * 16 * 12
    assert moved(stage, group="expert data", kind="all-reduce") == (1, experts // 2 // 2)
    assert moved(stage, term="norm", layer="sparse", phase="update") == (1, 2 * 16)
    biased = dataclasses.replace(EXPERTS, expert_bias=True)
    update = moved(only(fc.per_device(biased, parallel)), term="expert down", phase="update")
    assert update == (1, 2 * 4 * 16)  # the biases of four experts in two layers


def test_a_capacity_pads_experts():
    # 24 choices of a sequence over 8 experts are 3 each; half as much again, rounded up, is 5.
    found = fc.per_device(EXPERTS, fc.Parallel(data=2, expert=2, capacity=1.5), batch_size=4)
    stage = only(found)
    up = next(term for term in stage.count.terms if term.term == "expert up")
    assert up.forward == 2 * 2 * 2 * 8 * 5 * 16 * 12
    assert moved(stage, kind="all-to-all", phase="forward") == (8, 2 * 2 * 2 * 8 * 5 * 16)
    assert found.overhead > 0
    assert found.busiest_experts is None
    # Of two sequences 48 choices: 9 each.
    both = fc.per_device(
        EXPERTS, fc.Parallel(data=2, expert=2, capacity=1.5), batch_size=4, microbatch_size=2
    )
    up = next(term for term in only(both).count.terms if term.term == "expert up")
    assert up.forward == 2 * 2 * 8 * 9 * 16 * 12
    # 1.1 as it is written: 10 choices of 10 experts' 11, not the float beyond.
    ten = dataclasses.replace(EXPERTS, num_experts=4, seq_len=20)
    stage = only(fc.per_device(ten, fc.Parallel(capacity=1.1)))
    up = next(term for term in stage.count.terms if term.term == "expert up")
    assert up.forward == 2 * 2 * 4 * 11 * 16 * 12
    # A tensor group's devices have slots each for the choices of their part of the sequence.
    parallel = fc.Parallel(tensor=2, sequence=True, data=2, expert=2, capacity=1.5)
    stage = only(fc.per_device(EXPERTS, parallel))
    up = next(term for term in stage.count.terms if term.term == "expert up")
    assert up.forward == 2 * 2 * (2 * 8 * 3) * 16 * 6  # ⌈1.5 · 12/8⌉ = 3, of both
    assert moved(stage, kind="all-to-all", phase="forward")[1] == 2 * 2 * (8 * 3) * 16
    whole = dataclasses.replace(parallel, expert=1)
    up = next(t for t in only(fc.per_device(EXPERTS, whole)).count.terms if t.term == "expert up")
    assert up.forward == 2 * 2 * 8 * 5 * 16 * 6  # ⌈1.5 · 24/8⌉ = 5


def test_a_capacity_below_1_leaves_positions_out():
    found = fc.per_device(EXPERTS, fc.Parallel(capacity=0.5))
    up = next(term for term in only(found).count.terms if term.term == "expert up")
    assert up.forward == 2 * 2 * 8 * 2 * 16 * 12  # ⌈0.5 · 24/8⌉ = 2 of each of eight
    assert -1 < found.overhead < 0
    text = " ".join(str(found).split())
    assert f"{float(-found.overhead):.2%} less than the model's" in text
    more = fc.per_device(EXPERTS, fc.Parallel(capacity=1.5))
    assert f"{float(more.overhead):.2%} more than the model's" in " ".join(str(more).split())


def test_latents_enter_instead_of_positions():
    # Ten channels of the queries' latent, six and two of keys and values, of twelve positions in
    # two layers; down to them, every device projects alike.
    stage = only(fc.per_device(LATENT, fc.Parallel(tensor=2)))
    assert moved(stage, term="attention", phase="backward") == (2, 2 * 12 * (10 + 6 + 2))
    assert moved(stage, term="attention", phase="forward") == (2, 2 * 12 * 16)
    terms = {term.term: term.forward for term in stage.count.terms if term.layer == "decoder"}
    assert terms["query down"] == 2 * 2 * 12 * 16 * 10
    assert terms["key-value down"] == 2 * 2 * 12 * 16 * 8
    assert terms["query up"] == 2 * 2 * 12 * 10 * 2 * 6
    assert terms["key-value up"] == 2 * 2 * 12 * 6 * 2 * (4 + 3)
    assert terms["scores"] == 2 * 2 * 2 * 78 * 6
    along = only(fc.per_device(LATENT, fc.Parallel(tensor=2, sequence=True)))
    terms = {term.term: term.forward for term in along.count.terms if term.layer == "decoder"}
    assert terms["query down"] == 2 * 2 * 6 * 16 * 10
    assert terms["query up"] == 2 * 2 * 12 * 10 * 2 * 6
    assert moved(along, term="query down", phase="update") == (1, 2 * 16 * 10)
    direct = dataclasses.replace(LATENT, query_rank=None)
    stage = only(fc.per_device(direct, fc.Parallel(tensor=2)))
    assert moved(stage, term="attention", phase="backward") == (2, 2 * 12 * (16 + 6 + 2))


def test_branches_side_by_side():
    # Chowdhery et al. 2022 (arXiv 2204.02311), section 2: one all-reduce of both in each pass.
    for norms, entering in (("one", 1), ("two", 2)):
        stage = only(fc.per_device(CAUSAL(parallel_norms=norms), fc.Parallel(tensor=2)))
        assert moved(stage, layer="decoder", phase="forward") == (2, 2 * 12 * 16)
        times, elements = moved(stage, layer="decoder", phase="backward")
        assert (times, elements) == (2 * entering, 2 * entering * 12 * 16)
    whole = CAUSAL(parallel_norms="one")
    assert 2 * only(fc.per_device(whole, fc.Parallel(tensor=2))).count.total == whole.flops().total


def test_a_narrower_embedding():
    # Rows of six channels leave the embedding, and enter the output layer; every device projects
    # them alike, or of its part of the sequence.
    model = CAUSAL(embedding_channels=6)
    stage = only(fc.per_device(model, fc.Parallel(tensor=2)))
    assert moved(stage, layer="embedding", phase="forward") == (1, 12 * 6)
    assert moved(stage, layer="output", phase="backward") == (1, 12 * 6)
    terms = {term.term: term.forward for term in stage.count.terms}
    assert (terms["project in"], terms["project out"]) == (2 * 12 * 6 * 16, 2 * 12 * 16 * 6)
    assert terms["logits"] == 2 * 12 * 6 * 12
    along = only(fc.per_device(model, fc.Parallel(tensor=2, sequence=True)))
    terms = {term.term: term.forward for term in along.count.terms}
    assert (terms["project in"], terms["project out"]) == (2 * 6 * 6 * 16, 2 * 6 * 16 * 6)
    assert terms["logits"] == 2 * 12 * 6 * 12


def test_norms_of_heads():
    # A scale of four channels each, which all heads share, whatever is divided along the sequence.
    model = CAUSAL(query_key_norm="head")
    for sequence in (False, True):
        stage = only(fc.per_device(model, fc.Parallel(tensor=2, sequence=sequence)))
        for term in ("query norm", "key norm"):
            assert moved(stage, term=term, phase="update") == (1, 2 * 4)
    found = moved(only(fc.per_device(model, fc.Parallel(tensor=2))), phase="update")
    assert found == (2, 2 * 2 * 4)


def test_the_vocabulary_is_padded_as_stated():
    gpt2 = fc.Decoder(vocab_size=50257, seq_len=8, num_channels=16, num_layers=2, num_heads=8)
    with pytest.raises(ValueError, match=r"vocab_size = 50257 is not divisible by tensor = 8"):
        fc.per_device(gpt2, fc.Parallel(tensor=8))
    # Megatron-LM: a multiple of 128 · 8 = 1024, 51200.
    found = fc.per_device(gpt2, fc.Parallel(tensor=8, vocab_multiple=128))
    assert found.model.vocab_size == 51_200
    logits = next(term for term in only(found).count.terms if term.term == "logits")
    assert logits.forward == 2 * 8 * 16 * 6_400
    assert found.overhead == Fraction(6 * 8 * 16 * (51_200 - 50_257), gpt2.flops().total)
    assert fc.per_device(gpt2, fc.Parallel(tensor=8, vocab_multiple=1)).model.vocab_size == 50_264
    assert fc.per_device(gpt2, fc.Parallel(vocab_multiple=128)).model.vocab_size == 50_304


def test_bubbles():
    # Narayanan et al. 2021, section 2.2: (p - 1)/m of the rest, with v parts (p - 1)/(v·m).
    for stages, batches, parts in ((4, 8, 1), (8, 64, 1), (4, 8, 2), (8, 16, 5)):
        share = fc.pipeline_bubble(stages, batches, parts)
        assert share / (1 - share) == Fraction(stages - 1, parts * batches)
    assert fc.pipeline_bubble(1, 5) == 0
    # By walking the steps of each device: one forward, one backward, two passes each.
    for stages, batches in ((2, 3), (3, 3), (4, 7)):
        free = [0] * stages
        for _ in range(batches):
            ready = 0
            for stage in range(stages):
                ready = free[stage] = max(free[stage], ready) + 1
        assert fc.pipeline_bubble(stages, batches) == 1 - Fraction(batches, max(free))


def test_what_collectives_send_at_least():
    def sent(kind, size, elements=120, dtype="bf16"):
        return Collective(kind, "g", size, "l", "t", "forward", 1, elements, dtype).bytes

    assert sent("all-gather", 4) == sent("reduce-scatter", 4) == sent("all-to-all", 4) == 180
    assert sent("all-reduce", 4) == 360
    assert sent("send", 4) == 240
    assert sent("all-gather", 2, dtype="fp32") == 240
    assert sent("all-gather", 2, dtype="fp8") == 60
    assert sent("all-gather", 7) == Fraction(6 * 240, 7)
    # A ring: p - 1 steps, in each of which a device hands a p-th on; twice for an all-reduce.
    for size in (2, 3, 5):
        for kind, rounds in (("all-gather", 1), ("all-reduce", 2)):
            assert sent(kind, size, 30) == rounds * (size - 1) * Fraction(60, size)


def test_dtypes():
    parallel = fc.Parallel(tensor=2, sequence=True, pipeline=2, data=2, zero=1)
    found = fc.per_device(LLAMA, parallel, dtype="fp8", gradients="bf16").stages[0]
    assert {(each.kind, each.phase): each.dtype for each in found.collectives} == {
        ("reduce-scatter", "forward"): "fp8",
        ("all-gather", "backward"): "fp8",
        ("all-gather", "forward"): "fp8",
        ("reduce-scatter", "backward"): "fp8",
        ("all-reduce", "update"): "bf16",
        ("send", "forward"): "fp8",
        ("reduce-scatter", "update"): "bf16",
        ("all-gather", "update"): "fp8",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(tensor=0), "tensor = 0"),
        (dict(tensor=2.0), "tensor = 2.0"),
        (dict(tensor=True), "tensor = True"),
        (dict(tensor=np.array([1, 2])), "expected one integer"),
        (dict(zero=4), "zero = 4: expected at most the last stage of ZeRO = 3"),
        (dict(zero=-1), "zero = -1"),
        (dict(sequence=True), "sequence = True with tensor = 1"),
        (dict(sequence=1, tensor=2), "sequence = 1"),
        (dict(expert=2, data=3), "data = 3 is not divisible by expert = 2"),
        (dict(expert=2, data=2, tensor=2), "expected sequence = True"),
        (dict(reshard=False), "reshard = False with zero = 0"),
        (dict(chunks=2), "chunks = 2 with pipeline = 1"),
        (dict(stages=[1, 2], pipeline=2), "expected a tuple"),
        (dict(stages=(1, 2, 3), pipeline=2), "pipeline · chunks = 2 parts"),
        (dict(stages=(1, -2), pipeline=2), r"stages\[1\] = -2"),
        (dict(pipeline=4097), "expected at most the most that are listed = 4096"),
        (dict(vocab_multiple=0), "vocab_multiple = 0"),
        (dict(capacity=0), "capacity = 0"),
        (dict(capacity="2"), "capacity = '2'"),
    ],
)  # fmt: skip
def test_devices_that_cannot_be(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        fc.Parallel(**options)


@pytest.mark.parametrize(
    ("model", "parallel", "options", "message"),
    [
        (LLAMA, dict(tensor=3), {}, "vocab_size|num_heads = 8 is not divisible by tensor = 3"),
        (dataclasses.replace(LLAMA, num_heads=6, num_key_value_heads=6), dict(tensor=4), {},
         "num_heads = 6 is not divisible by tensor = 4"),
        (dataclasses.replace(LLAMA, num_heads=12, num_key_value_heads=6, intermediate_size=24),
         dict(tensor=4), {}, "num_key_value_heads = 6 with tensor = 4"),
        (LLAMA, dict(tensor=8), {}, "hidden channels = 20 is not divisible by tensor = 8"),
        (LLAMA, dict(pipeline=3), {}, "num_layers = 4 is not divisible"),
        (LLAMA, dict(pipeline=2, stages=(1, 2)), {}, "of 3 layers: expected num_layers = 4"),
        (LLAMA, dict(pipeline=2, chunks=2), dict(batch_size=3), "microbatches = 3"),
        (LLAMA, dict(pipeline=2, chunks=2, data=2), dict(batch_size=12, microbatch_size=2),
         "microbatches = 3"),
        (LLAMA, dict(data=2), dict(batch_size=3), "batch_size = 3 is not divisible"),
        (LLAMA, dict(data=2), dict(batch_size=6, microbatch_size=2), "batch_size = 6 is not"),
        (LLAMA, dict(data=2, expert=2), {}, "expert = 2 of a Llama"),
        (LLAMA, dict(capacity=1.0), {}, "capacity = 1.0 of a Llama"),
        (EXPERTS, dict(data=3, expert=3), {}, "num_experts = 8 is not divisible by expert = 3"),
        (dataclasses.replace(EXPERTS, expert_size=9), dict(tensor=2), {}, "expert_size = 9"),
        (dataclasses.replace(EXPERTS, shared_size=9), dict(tensor=2), {}, "shared_size = 9"),
        (dataclasses.replace(EXPERTS, num_predictions=1), {}, {}, "num_predictions = 1"),
        (CAUSAL(query_key_norm="whole"), dict(tensor=2), {}, "query_key_norm = 'whole'"),
        (dataclasses.replace(LLAMA, seq_len=9), dict(tensor=2, sequence=True), {}, "positions = 9"),
        (dataclasses.replace(LLAMA, seq_len=np.array([8, 9])), {}, {}, "expected one integer"),
        (LLAMA, {}, dict(level="executed"), "level = 'executed'"),
        (LLAMA, {}, dict(dtype="fp7"), "dtype = 'fp7'"),
        (LLAMA, {}, dict(gradients="fp7"), "gradients = 'fp7'"),
        (LLAMA, {}, dict(microbatch_size=0), "microbatch_size = 0"),
        (LLAMA, {}, dict(training=1), "training = 1"),
        (LLAMA, {}, dict(checkpointing="all"), "checkpointing = 'all'"),
        (CAUSAL(), {}, dict(batch_size=0), "batch_size = 0"),
        (fc.PerceiverAR(vocab_size=8, num_latents=4, num_prefix=4, num_channels=8, num_layers=2,
                        num_heads=2), {}, {}, "model is a PerceiverAR"),
        (fc.from_hf({"model_type": "bert"}, 8), {}, {}, "model is a EncoderLM"),
        (fc.from_hf({"model_type": "jamba"}, 8), {}, {}, "recurrence is not modelled"),
        ("llama", {}, {}, "model = 'llama'"),
    ],
)  # fmt: skip
def test_what_devices_cannot_share(model, parallel, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        fc.per_device(model, fc.Parallel(**parallel), **options)


def test_what_is_no_description_of_devices():
    with pytest.raises(TypeError, match=r"parallel = 8: expected a flopcount.Parallel"):
        fc.per_device(LLAMA, 8)
    for arguments in ((0, 1), (2, 0), (2, 2, 0), (2, 3, 2), (2.0, 1), (2, np.array([2]))):
        with pytest.raises((ValueError, TypeError)):
            fc.pipeline_bubble(*arguments)


def test_as_text_and_as_data():
    parallel = fc.Parallel(tensor=2, sequence=True, pipeline=4, data=4, expert=2, zero=1)
    found = fc.per_device(EXPERTS, parallel, batch_size=8)
    text = str(found)
    assert repr(found) == text
    for words in (
        "tensor 2, pipeline 4, data 4, expert 2, sequence, zero 1", "all 32 devices",
        "all-to-all", "up to 2 times as often", "Collectives of a device of stage",
    ):  # fmt: skip
        assert " ".join(words.split()) in " ".join(text.split())
    stages = str(fc.per_device(LLAMA, fc.Parallel(pipeline=4, zero=3, data=2, reshard=False)))
    assert "pipeline 4, data 2, zero 3, no reshard" in " ".join(stages.split())
    assert ["1 to 2" in line for line in stages.splitlines()].count(True) == 1
    assert "one device" in str(fc.per_device(LLAMA, fc.Parallel()))
    data = found.to_dict()
    assert (data["devices"], data["microbatches"], len(data["stages"])) == (32, 2, 4)
    stage = data["stages"][0]
    assert sum(each["bytes"] for each in stage["collectives"]) == stage["bytes"]
    assert sum(term["total"] for term in stage["terms"]) == stage["total"]
    assert {each["kind"] for each in stage["collectives"]} > {"send", "all-gather"}


def test_the_command(capsys):
    sizes = dict(
        vocab_size=24, seq_len=12, num_channels=16, num_layers=4, num_heads=8,
        num_key_value_heads=4, head_dim=6, intermediate_size=20, tensor=2, pipeline=2,
        checkpointing="reentrant", batch_size=4,
    )  # fmt: skip
    words = ["parallel", "llama", "--sequence", "--stages", "3", "1"]
    for name, size in sizes.items():
        words += [f"--{name.replace('_', '-')}", str(size)]
    parallel = fc.Parallel(tensor=2, pipeline=2, sequence=True, stages=(3, 1))
    found = fc.per_device(LLAMA, parallel, batch_size=4, checkpointing="reentrant")
    assert main(words) == 0
    assert capsys.readouterr().out.strip() == str(found)
    assert main([*words, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["total"] == found.total
    assert data["stages"][0]["bytes"] == math.floor(found.stages[0].bytes)
    assert main([*words, "--data", "3"]) == 2
    assert "batch_size = 4 is not divisible" in capsys.readouterr().err


def test_a_shared_mlp_leaves_before_its_gate():
    parallel = fc.Parallel(tensor=2, sequence=True, data=4, expert=2)
    half = 2 * 12 * 16

    def leaving(model, phase):
        stage = only(fc.per_device(model, parallel, checkpointing="non-reentrant"))
        return moved(stage, term="experts", kind="reduce-scatter", phase=phase)

    # Once a layer; the sum with the experts' needs no result, a gate does, and so do the experts'
    # weights after it.
    gated = dataclasses.replace(EXPERTS, shared_gate=True)
    before = dataclasses.replace(EXPERTS, shared_first=True)
    for model, again in ((EXPERTS, (0, 0)), (gated, (2, half)), (before, (2, half))):
        assert leaving(model, "forward") == (2, half)
        assert leaving(model, "recompute") == again


def test_weighted_inputs_make_no_result_needed():
    alone = dataclasses.replace(EXPERTS, shared_size=None, weighted="input")
    parallel = fc.Parallel(tensor=2, sequence=True, data=4, expert=2)
    stage = only(fc.per_device(alone, parallel, checkpointing="non-reentrant"))
    one = 2, 2 * 6 * 2 * 16
    assert moved(stage, kind="all-to-all", term="to experts", phase="recompute") == one
    assert moved(stage, kind="all-to-all", term="from experts", phase="forward") == one
    assert moved(stage, kind="all-to-all", term="from experts", phase="recompute") == (0, 0)


def test_a_replica_alone_sums_gradients_once():
    for data, zero, times in ((1, 3, 1), (2, 3, 3), (2, 1, 1), (1, 0, 1)):
        parallel = fc.Parallel(tensor=2, sequence=True, data=data, zero=zero)
        stage = only(fc.per_device(LLAMA, parallel, batch_size=3 * data))
        assert moved(stage, phase="update", group="tensor") == (3 * times, 9 * 16 * times)
