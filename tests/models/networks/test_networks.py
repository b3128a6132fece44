"""The networks: shapes, sizes, masks, causality, prefix dropout, rotation."""

import cmath

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models import Decoder, PerceiverAR
from models.networks.blocks import causal_mask
from models.networks.rotary import rotary_angles, rotate


def perceiver(**changes):
    sizes = {
        "vocab_size": 11,
        "num_latents": 4,
        "num_prefix": 6,
        "num_channels": 12,
        "num_layers": 3,
        "num_heads": 2,
    }
    return PerceiverAR(**(sizes | changes))


def decoder(**changes):
    sizes = {"vocab_size": 11, "seq_len": 6, "num_channels": 12, "num_layers": 2, "num_heads": 2}
    return Decoder(**(sizes | changes))


def draw_tokens(vocab_size, *shape):
    return torch.randint(vocab_size, shape)


@settings(max_examples=40)
@given(
    vocab_size=st.integers(1, 9),
    num_latents=st.integers(1, 5),
    num_prefix=st.integers(0, 5),
    head_dim=st.integers(1, 9),
    num_heads=st.integers(1, 3),
    num_layers=st.integers(1, 3),
    dropout=st.sampled_from([0.0, 0.3, 0.5, 0.99]),
    training=st.booleans(),
)
def test_logits_have_one_row_per_latent_and_every_parameter_is_used(
    vocab_size, num_latents, num_prefix, head_dim, num_heads, num_layers, dropout, training
):
    model = PerceiverAR(
        vocab_size,
        num_latents,
        num_prefix,
        num_heads * head_dim,
        num_layers,
        num_heads,
        prefix_dropout=dropout,
    ).train(training)
    logits = model(draw_tokens(vocab_size, 2, num_prefix + num_latents))
    assert logits.shape == (2, num_latents, vocab_size)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_decoder_logits_have_one_row_per_position():
    assert decoder()(draw_tokens(11, 2, 6)).shape == (2, 6, 11)
    assert decoder()(draw_tokens(11, 2, 3)).shape == (2, 3, 11)


# Article, Tables 1, 3 and 5: (V, m, channels, layers), then N, N_cross and N_self in full and N,
# N_cross as printed there. By hand for the first: self part 32000·512 + 512·512 + 32000 for
# embedding, latent positions and output bias; 9·12·512² + 512 for the layers' weights and the
# hybrid layer's output bias; 2·9 + 1 norms of 2·512. Cross part 1536·512.
ARTICLE_MODELS = [
    ((32_000, 1536, 512, 9), 45_796_096, 786_432, "4.58e+07", "7.86e+05"),
    ((32_000, 1536, 624, 11), 72_704_912, 958_464, "7.27e+07", "9.58e+05"),
    ((32_000, 1536, 728, 13), 107_536_488, 1_118_208, "1.08e+08", "1.12e+06"),
    ((262, 3584, 512, 9), 30_563_078, 1_835_008, "3.06e+07", "1.84e+06"),
    ((262, 3584, 584, 10), 43_497_166, 2_093_056, "4.35e+07", "2.09e+06"),
    ((262, 3584, 584, 9), 39_402_158, 2_093_056, "3.94e+07", "2.09e+06"),
    ((262, 3584, 432, 7), 17_572_726, 1_548_288, "1.76e+07", "1.55e+06"),
    ((262, 3584, 768, 13), 95_401_990, 2_752_512, "9.54e+07", "2.75e+06"),
    ((262, 1536, 512, 9), 29_514_502, 786_432, "2.95e+07", "7.86e+05"),
    ((262, 1536, 584, 10), 42_301_134, 897_024, "4.23e+07", "8.97e+05"),
]


def count_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("sizes", "total", "cross", "total_printed", "cross_printed"), ARTICLE_MODELS
)
def test_parameters_are_the_articles(sizes, total, cross, total_printed, cross_printed):
    vocab_size, num_prefix, num_channels, num_layers = sizes
    with torch.device("meta"):
        model = PerceiverAR(vocab_size, 512, num_prefix, num_channels, num_layers)
        without_prefix = PerceiverAR(vocab_size, 512, 0, num_channels, num_layers)
    assert count_parameters(model) == total
    assert count_parameters(model) - count_parameters(without_prefix) == cross
    assert f"{total:.2e}" == total_printed
    assert f"{cross:.2e}" == cross_printed


def test_decoder_parameters_are_gpt2_smalls():
    gpt2 = {"vocab_size": 50257, "seq_len": 1024, "num_channels": 768} | {
        "num_layers": 12,
        "num_heads": 12,
    }
    with torch.device("meta"):
        assert count_parameters(Decoder(**gpt2)) == 124_439_808
        # Biases per layer: 3 + 1 + 4 + 1 widths of the linear layers, 2 of the norms; and the
        # final norm's.
        assert count_parameters(Decoder(**gpt2, bias=False)) == 124_337_664
        assert 124_439_808 - 124_337_664 == (12 * 11 + 1) * 768
        untied = Decoder(**gpt2, tie_embeddings=False)
        assert count_parameters(untied) == 124_439_808 + 50257 * 768


def test_weights_start_normal_and_biases_zero():
    model = perceiver(vocab_size=300, num_channels=64)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert torch.all(parameter == 0), name
        elif "norm" in name:
            assert torch.all(parameter == 1), name
        else:
            # At least the 640 weights of ten positions: the deviation is known to 2.8 %.
            assert parameter.std().item() == pytest.approx(0.02, rel=0.12), name
            assert abs(parameter.mean().item()) < 0.003, name


def test_output_is_tied_to_the_token_embedding_and_alone_has_a_bias_with_the_hybrid_output():
    model = perceiver()
    assert model.output.weight is model.embedding.token.weight
    biased = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.bias is not None
    }
    assert biased == {"hybrid.attention.out", "output"}


def test_mask_of_three_latents_over_two_prefix_positions():
    drawn = [
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1],
    ]
    assert causal_mask(3, 5).int().tolist() == drawn
    model = perceiver(num_latents=3, num_prefix=4, num_kept=2)
    assert model.train().masks()["hybrid"].int().tolist() == drawn
    assert model.masks()["layers.1"].int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert model.eval().masks()["hybrid"].shape == (3, 7)


@pytest.mark.parametrize("num_kept", [None, 0, 2])
def test_the_stated_mask_is_the_one_that_runs(num_kept):
    """Each row of weights is positive where the mask admits, and zero elsewhere."""
    model = perceiver(num_kept=num_kept)
    seen = {}
    for name, module in model.named_modules():
        if name.endswith("attend.values"):
            module.register_forward_pre_hook(
                lambda _, inputs, name=name: seen.update({name.split(".attention")[0]: inputs[0]})
            )
    model(draw_tokens(11, 2, 10))
    masks = model.masks()
    assert seen.keys() == masks.keys()
    for name, weights in seen.items():
        torch.testing.assert_close(weights > 0, masks[name].expand(2, 2, -1, -1))


def test_a_changed_token_leaves_every_earlier_logit_bit_identical():
    model = perceiver().eval()
    tokens = draw_tokens(11, 1, 10)
    before = model(tokens)
    for changed in range(10):
        other = tokens.clone()
        other[0, changed] = (other[0, changed] + 1) % 11
        after = model(other)
        latent = max(changed - 6, 0)
        assert torch.equal(after[:, :latent], before[:, :latent])
        assert not torch.equal(after[:, latent], before[:, latent])


def test_decoder_is_causal():
    model = decoder()
    tokens = draw_tokens(11, 1, 6)
    before = model(tokens)
    for changed in range(6):
        other = tokens.clone()
        other[0, changed] = (other[0, changed] + 1) % 11
        after = model(other)
        assert torch.equal(after[:, :changed], before[:, :changed])
        assert not torch.equal(after[:, changed], before[:, changed])


def kept_tokens(model, tokens):
    """What the hybrid layer's prefix norm is given, as tokens: token v is embedded as v."""
    for embedding in (model.embedding.token, model.embedding.position):
        nn.init.zeros_(embedding.weight)
    with torch.no_grad():
        model.embedding.token.weight += torch.arange(embedding_rows(model))[:, None]
    seen = []
    model.hybrid.prefix_norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(tokens)
    return seen[0][..., 0].long()


def embedding_rows(model):
    return model.embedding.token.num_embeddings


@pytest.mark.parametrize(
    ("num_prefix", "dropout", "num_kept"),
    [(6, 0.5, 3), (7, 0.5, 4), (6, 0.99, 1), (10, 0.3, 7), (10, 0.1, 9), (1, 0.5, 1)],
)
def test_prefix_dropout_keeps_distinct_positions_in_order(num_prefix, dropout, num_kept):
    # m − int(m·p): 7 − int(3.5) = 4, 6 − int(5.94) = 1, 1 − int(0.5) = 1.
    model = perceiver(num_prefix=num_prefix, prefix_dropout=dropout, vocab_size=20)
    tokens = torch.arange(num_prefix + 4).expand(3, -1)
    kept = kept_tokens(model.train(), tokens)
    assert kept.shape == (3, num_kept)
    assert torch.all(kept.diff(dim=1) > 0)
    assert torch.all(kept < num_prefix)


def test_prefix_dropout_draws_uniformly_and_per_sequence():
    model = perceiver(num_kept=2, vocab_size=20)
    kept = kept_tokens(model.train(), torch.arange(10).expand(3000, -1))
    # Each of 6 positions is kept by a third of 3000 sequences: 1000 ± 26.
    counts = kept.flatten().bincount(minlength=6)
    assert counts.sum() == 6000
    assert torch.all((counts - 1000).abs() < 130)


def test_evaluation_keeps_the_whole_prefix():
    model = perceiver(prefix_dropout=0.5, vocab_size=20)
    kept = kept_tokens(model.eval(), torch.arange(10)[None])
    assert kept.tolist() == [[0, 1, 2, 3, 4, 5]]


def test_kept_positions_keep_their_place():
    """Dropping the first prefix positions is the same as a prefix that never had them."""
    model = perceiver(num_kept=2)
    tokens = draw_tokens(11, 1, 10)
    model.draw_kept = lambda prefix: torch.tensor([[4, 5]])
    dropped = model.train()(tokens)
    torch.testing.assert_close(dropped, model.eval()(tokens[:, 4:], prefix_length=2))
    model.draw_kept = lambda prefix: torch.tensor([[0, 5]])
    assert not torch.equal(model.train()(tokens), dropped)


# r = c // 2; pairs ⌈r / 2⌉: 54 -> 27 -> 14, 78 -> 39 -> 20, 91 -> 45 -> 23.
@pytest.mark.parametrize(
    ("head_dim", "rotated"),
    [(1, 0), (2, 2), (3, 2), (4, 2), (6, 4), (54, 28), (64, 32), (78, 40), (91, 46)],
)
def test_rotation_is_that_of_complex_numbers(head_dim, rotated):
    positions = torch.tensor([[0, 1, 5, 700]])
    x = torch.randn(2, 4, 3, head_dim, dtype=torch.float64)
    turned = rotate(x, rotary_angles(positions, head_dim))
    assert torch.equal(turned[..., rotated:], x[..., rotated:])
    r = head_dim // 2
    for s, position in enumerate(positions[0].tolist()):
        for pair in range(rotated // 2):
            turn = cmath.exp(1j * position * 10_000 ** (-2 * pair / r))
            a, b = x[0, s, 0, 2 * pair], x[0, s, 0, 2 * pair + 1]
            expected = complex(a, b) * turn
            actual = turned[0, s, 0, 2 * pair : 2 * pair + 2].tolist()
            # Angles are single precision: 700 radians to 4e-5.
            assert complex(*actual) == pytest.approx(expected, abs=1e-3)
            assert abs(complex(*actual)) == pytest.approx(abs(expected))


def test_angles_of_a_narrow_dtype_are_widened_first():
    # In bf16, cos and sin themselves would be off by up to 2⁻⁹ = 2e-3.
    x = torch.randn(1, 50, 2, 8)
    angles = rotary_angles(torch.arange(50)[None], 8).bfloat16()
    assert torch.equal(rotate(x, angles), rotate(x, angles.float()))


def test_only_the_hybrid_and_the_first_self_attention_layer_rotate():
    model = perceiver(num_layers=4)
    angles = {}
    for name in ("hybrid", "layers.0", "layers.1", "layers.2"):
        attention = model.get_submodule(f"{name}.attention")
        attention.register_forward_pre_hook(
            lambda _, inputs, name=name: angles.update({name: inputs[2]})
        )
    model(draw_tokens(11, 1, 10))
    assert angles["hybrid"].shape == (1, 10, 2)
    assert torch.equal(angles["layers.0"], angles["hybrid"][:, 6:])
    assert angles["layers.1"] is None
    assert angles["layers.2"] is None


def test_scores_are_those_of_scaled_rotated_queries_and_keys():
    model = perceiver()
    attention = model.hybrid.attention
    seen = []
    attention.attend.scores.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs))
    latents, context = torch.randn(1, 2, 12), torch.randn(1, 5, 12)
    angles = rotary_angles(torch.arange(5)[None], 6)
    attention(latents, context, angles)
    q = rotate(attention.query(latents).view(1, 2, 2, 6) / 6**0.5, angles[:, 3:])
    k = rotate(attention.key(context).view(1, 5, 2, 6), angles)
    torch.testing.assert_close(seen[0], q.transpose(1, 2))
    torch.testing.assert_close(seen[1], k.permute(0, 2, 3, 1))


@pytest.mark.parametrize("checkpointing", ["reentrant", "non-reentrant"])
@pytest.mark.parametrize("build", [perceiver, decoder])
def test_checkpointing_changes_no_gradient(build, checkpointing):
    tokens = draw_tokens(11, 2, 10 if build is perceiver else 6)
    gradients = []
    for option in (None, checkpointing):
        torch.manual_seed(1)
        model = build(checkpointing=option).train()
        model(tokens).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_channels": 13}, "num_channels must be a multiple of num_heads, got 13 and 2"),
        ({"head_dim": 5}, "head_dim must be num_channels / num_heads, got 5"),
        ({"num_latents": 0}, "num_latents must be at least 1, got 0"),
        ({"num_prefix": -1}, "num_prefix must be at least 0, got -1"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"num_kept": 7}, "num_kept must be at most num_prefix 6, got 7"),
        ({"prefix_dropout": 1.0}, r"prefix_dropout must be in \[0, 1\), got 1.0"),
        ({"prefix_dropout": 0.5, "num_kept": 3}, "num_kept or prefix_dropout, not both"),
        ({"checkpointing": "all"}, "checkpointing must be one of .* got 'all'"),
        ({"attention": "flash"}, r"attention must be one of .* got 'flash'"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        perceiver(**changes)


def test_networks_load_without_the_counter():
    """What the counts are checked against must not know them; the twin shows it would be seen."""
    import subprocess
    import sys

    check = "import sys, models; assert 'flopcount' not in sys.modules"
    run = [sys.executable, "-c"]
    assert subprocess.run([*run, check], check=False).returncode == 0
    planted = subprocess.run([*run, f"import flopcount; {check}"], check=False, capture_output=True)
    assert b"AssertionError" in planted.stderr
