"""The networks on the fused attention, held against the reference path."""

import pytest
import torch

from models.networks.blocks import KeyValueCache
from models.networks.decoder import Decoder
from models.networks.perceiver_ar import PerceiverAR

pytestmark = pytest.mark.interpreter

SIZES = dict(vocab_size=20, num_channels=9, num_layers=2, num_heads=1)
PERCEIVER = dict(SIZES, num_latents=5, num_prefix=6)


def pair(network, **sizes):
    """Reference and fused network with the same weights, and tokens for them."""
    torch.manual_seed(0)
    reference = network(**sizes)
    fused = network(**sizes, attention="fused")
    fused.load_state_dict(reference.state_dict())
    length = sizes.get("seq_len") or sizes["num_latents"] + sizes["num_prefix"]
    return reference, fused, torch.randint(sizes["vocab_size"], (2, length))


def loss_curve(model, tokens, steps=3):
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(steps):
        logits = model(tokens)
        targets = tokens[:, -logits.shape[1] :]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("network", "sizes"),
    [
        (PerceiverAR, dict(PERCEIVER, prefix_dropout=0.5)),
        (Decoder, dict(SIZES, seq_len=7, num_channels=26, num_heads=2, num_layers=1)),
    ],
    ids=["head dim 9, prefix dropout", "decoder, head dim 13"],
)
def test_both_paths_learn_alike(network, sizes):
    reference, fused, tokens = pair(network, **sizes)
    expected = loss_curve(reference, tokens)
    assert expected[-1] < expected[0] - 0.05
    assert loss_curve(fused, tokens) == pytest.approx(expected, abs=1e-5)
    for (name, one), other in zip(reference.named_parameters(), fused.parameters(), strict=True):
        # Adam turns a gradient's sign into a whole step, so rounding shows where one is near 0.
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3, msg=name)


@pytest.mark.parametrize("checkpointing", ["reentrant", "non-reentrant"])
def test_gradients_are_those_of_the_reference_path(checkpointing):
    reference, fused, tokens = pair(PerceiverAR, **PERCEIVER, checkpointing=checkpointing)
    for model in (reference, fused):
        model(tokens).square().sum().backward()
    for (name, one), other in zip(reference.named_parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4, msg=name)


def test_the_cache_serves_the_fused_path():
    reference, fused, tokens = pair(PerceiverAR, **PERCEIVER)
    with torch.no_grad():
        expected = reference.eval()(tokens)
        fused.eval()
        cache = KeyValueCache()
        first = fused(tokens[:, :9], 6, cache)
        rest = [fused(tokens[:, [i]], 0, cache) for i in (9, 10)]
    torch.testing.assert_close(torch.cat((first, *rest), dim=1), expected, rtol=1e-4, atol=1e-5)


def test_it_compiles_without_a_graph_break():
    torch._dynamo.reset()
    _, fused, tokens = pair(PerceiverAR, **dict(PERCEIVER, num_layers=1), prefix_dropout=0.5)
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    torch.manual_seed(1)
    expected = fused(tokens)
    torch.manual_seed(1)
    torch.testing.assert_close(compiled(tokens), expected)
