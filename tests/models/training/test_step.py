"""One optimiser step: every way to execute it computes the same gradient."""

import dataclasses
import itertools
import math
import time

import pytest
import torch
from torch.nn import functional

from models.networks.decoder import Decoder
from models.networks.perceiver_ar import PerceiverAR
from models.training.batches import prefetched
from models.training.distributed import Processes
from models.training.step import Execution, NextTokenLoss, TrainStep

NUM_PREFIX, NUM_LATENTS, BATCH = 6, 5, 4
CPU = torch.device("cpu")


def perceiver(**changes):
    torch.manual_seed(0)
    sizes = dict(
        vocab_size=23,
        num_latents=NUM_LATENTS,
        num_prefix=NUM_PREFIX,
        num_channels=8,
        num_layers=2,
        num_heads=2,
        prefix_dropout=0.5,
    )
    return PerceiverAR(**(sizes | changes))


def batch(seed=1, size=BATCH):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(23, (size, NUM_PREFIX + NUM_LATENTS + 1), generator=generator)
    return tokens[:, :-1], tokens[:, -NUM_LATENTS:]


def loss_and_gradients(execution, model=None, seed=7):
    model = perceiver(checkpointing=execution.checkpointing) if model is None else model
    step = TrainStep(model, execution, gradient_clip=0.5)
    torch.manual_seed(seed)
    loss = step.backward(*batch())
    return loss, {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same_step(execution, tolerance):
    expected_loss, expected = loss_and_gradients(Execution())
    loss, gradients = loss_and_gradients(execution)
    torch.testing.assert_close(loss, expected_loss, rtol=tolerance, atol=0)
    scale = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in gradients.items():
        error = (gradient - expected[name]).abs().max() / scale
        assert error <= tolerance, f"{name}: off by {error} of the largest gradient"


def test_the_default_step_is_plain_pytorch_to_the_bit():
    step = TrainStep(perceiver(), Execution(), gradient_clip=0.5)
    torch.manual_seed(7)
    loss, norm = step(*batch(), learning_rate=1e-2)

    model = perceiver()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, fused=True)
    inputs, targets = batch()
    torch.manual_seed(7)
    expected = functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    expected.backward()
    expected_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()
    assert torch.equal(loss, expected)
    assert torch.equal(norm, expected_norm)
    pairs = zip(step.model.parameters(), model.parameters(), strict=True)
    assert all(torch.equal(mine, plain) for mine, plain in pairs)


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ({"micro_batches": 2}, 1e-6),
        ({"micro_batches": 4}, 1e-6),
        ({"checkpointing": "reentrant"}, 0),
        ({"checkpointing": "non-reentrant"}, 0),
        ({"loss": "chunked"}, 1e-6),
        ({"loss": "chunked", "micro_batches": 2, "checkpointing": "reentrant"}, 1e-6),
        ({"dtype": "bf16"}, 2e-2),
        ({"dtype": "bf16", "loss": "chunked"}, 2e-2),
    ],
)
def test_an_execution_computes_the_same_step(changes, tolerance):
    assert_same_step(Execution(**changes), tolerance)


def test_a_chunked_validation_loss_in_bf16_is_not_rounded_to_bf16(monkeypatch):
    # Near log 23 = 3.14, bf16 has steps of 2⁻⁶ = 0.0156: what is rounded is off by up to 0.0078.
    def evaluated(loss):
        step = TrainStep(perceiver(), Execution(dtype="bf16", loss=loss), gradient_clip=0.5)
        return step.evaluate(*batch(size=640 // NUM_LATENTS)).item()

    monkeypatch.setattr("models.training.step.POSITIONS", 100)  # six parts and a rest of 40
    whole, chunked = evaluated("whole"), evaluated("chunked")
    assert abs(whole - torch.tensor(whole).bfloat16().item()) > 0.002
    assert chunked == pytest.approx(whole, rel=1e-6)


def test_the_loss_is_one_graph_and_computes_the_same(monkeypatch):
    """Captured whole, with its gradient; the code generator, minutes on a CPU, is PyTorch's."""
    compile_, modes = torch.compile, []

    def capture(module, mode, dynamic):
        modes.append(mode)
        return compile_(module, backend="aot_eager", dynamic=dynamic, fullgraph=True)

    monkeypatch.setattr(torch, "compile", capture)
    assert_same_step(Execution(compile="default"), 1e-6)
    assert modes == ["default"]


def test_a_wrong_gradient_would_be_seen(monkeypatch):
    """The twin: a loss that forgets its share of a micro-batch is found."""
    backward = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: backward(2 * loss))
    changed = loss_and_gradients(Execution(micro_batches=2))[1]
    monkeypatch.undo()
    expected = loss_and_gradients(Execution())[1]
    assert not torch.allclose(changed["output.bias"], expected["output.bias"], rtol=0.5)


def test_prefix_dropout_is_drawn_for_the_whole_batch(monkeypatch):
    """Each process and micro-batch takes its share of one draw, and leaves the generator alike."""
    seen = []
    hidden = PerceiverAR.hidden
    monkeypatch.setattr(
        PerceiverAR,
        "hidden",
        lambda model, tokens, kept: (seen.append(kept), hidden(model, tokens, kept=kept))[1],
    )
    states = []
    for count, micro_batches in ((1, 1), (1, 4), (2, 1), (2, 2)):
        seen.append([])
        for rank in range(count):
            step = TrainStep(perceiver(), Execution(micro_batches=micro_batches), 0.5)
            step.processes = Processes(rank, count)
            torch.manual_seed(7)
            step.backward(*batch(size=BATCH // count))
            states.append(torch.get_rng_state())
    drawn, shares = [], []
    for item in [*seen[1:], []]:
        if isinstance(item, list):
            drawn.append(torch.cat(shares))
            shares = []
        else:
            shares.append(item)
    assert drawn[0].shape == (BATCH, 3)
    assert len(drawn) == 4
    assert all(torch.equal(drawn[0], other) for other in drawn[1:])
    assert all(torch.equal(states[0], other) for other in states[1:])


def test_decoder_takes_the_same_step():
    torch.manual_seed(0)
    model = Decoder(vocab_size=23, seq_len=NUM_LATENTS, num_channels=8, num_layers=2, num_heads=2)
    step = TrainStep(model, Execution(loss="chunked"), gradient_clip=0.5)
    inputs, targets = batch()
    losses = [step(inputs[:, :NUM_LATENTS], targets, 1e-2)[0].item() for _ in range(20)]
    assert losses[0] == pytest.approx(math.log(23), rel=0.05)
    assert losses[-1] < losses[0] - 0.5


def profiled_loss(chunked):
    """Peak bytes of a forward and backward pass, and FLOPs of its matrix products.

    By the profiler, which sees into the fused function; a dispatch mode does not.
    """
    torch.manual_seed(0)
    model = Decoder(vocab_size=4096, seq_len=64, num_channels=64, num_layers=1, num_heads=1)
    loss = NextTokenLoss(model, chunked=chunked, bf16=False)
    tokens = torch.zeros(64, 64, dtype=torch.long)
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True, record_shapes=True) as profile:
        loss(tokens, tokens).backward()
    events = profile.profiler.kineto_results.events()
    allocations = sorted(
        (event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"
    )
    peak = max(itertools.accumulate(size for _, size in allocations))
    flops = 0
    for event in profile.events():
        if event.name in ("aten::mm", "aten::addmm", "aten::addmm_"):
            first = 0 if event.name == "aten::mm" else 1
            (rows, depth), (_, columns) = event.input_shapes[first : first + 2]
            flops += 2 * rows * depth * columns
    return peak, flops


def test_chunked_loss_never_holds_all_logits_and_multiplies_nothing_twice():
    logits = 64 * 64 * 4096 * 4
    whole_peak, whole_flops = profiled_loss(chunked=False)
    chunked_peak, chunked_flops = profiled_loss(chunked=True)
    # Logits, their log-softmax and its gradient.
    assert whole_peak > 3 * logits
    assert chunked_peak < logits / 2
    # The output layer's three products are nearly all there is.
    assert whole_flops > 3 * 2 * (64 * 64) * 64 * 4096
    assert chunked_flops == whole_flops


def test_shares_must_be_equal():
    execution = Execution(micro_batches=3)
    execution.require_divides(12, Processes(0, 2))
    with pytest.raises(ValueError, match=r"multiple of processes · micro_batches = 2 · 3, got 80"):
        execution.require_divides(80, Processes(0, 2))
    with pytest.raises(ValueError, match="micro_batches must be at least 1, got 0"):
        dataclasses.replace(execution, micro_batches=0).require_divides(80, Processes())


def test_chunked_loss_names_the_pytorch_it_needs(monkeypatch):
    monkeypatch.delattr(functional, "linear_cross_entropy")
    with pytest.raises(ValueError, match=r"needs torch 2\.13 or later, got"):
        TrainStep(perceiver(), Execution(loss="chunked"), gradient_clip=0.5)


def made(step):
    time.sleep(0.001 * (step % 3))  # some take longer than their neighbours
    return torch.tensor([step]), torch.tensor([-step])


@pytest.mark.parametrize("ahead", [0, 1, 2, 50])
@pytest.mark.parametrize("steps", [range(0), range(1), range(5, 17)])
def test_batches_made_ahead_are_those_made_when_asked_for(ahead, steps):
    with prefetched(made, steps, CPU, ahead) as batches:
        values = [(inputs.item(), targets.item()) for inputs, targets in batches]
    assert values == [(step, -step) for step in steps]


def test_a_batch_that_cannot_be_made_stops_its_own_step():
    def fail_at_two(step):
        if step == 2:
            raise OSError("the disk is gone")
        return made(step)

    with prefetched(fail_at_two, range(9), CPU, 2) as batches:
        assert [next(batches)[0].item() for _ in range(2)] == [0, 1]
        with pytest.raises(OSError, match="the disk is gone"):
            next(batches)


def test_no_batch_is_made_after_the_last_one_used():
    asked = []

    def note(step):
        asked.append(step)
        return made(step)

    with prefetched(note, range(1000), CPU, 2) as batches:
        next(batches)
    assert len(asked) <= 4
    with (
        pytest.raises(ValueError, match="prefetch must be at least 0, got -1"),
        prefetched(made, range(3), CPU, -1),
    ):
        pass


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="copies from pinned memory need a GPU")
def test_batches_copied_to_a_gpu_are_those_made():
    with prefetched(made, range(50), torch.device("cuda"), 2) as batches:
        assert [int(inputs) for inputs, _ in batches] == list(range(50))
