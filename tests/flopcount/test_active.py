"""Which parameters a token uses, and which of them it multiplies."""

import numpy as np
import pytest
import sympy

import flopcount as fc
from flopcount.count import ParameterCount
from flopcount.rows import Product, Tensor

GPT2 = dict(vocab_size=50257, seq_len=1024, num_channels=768, num_layers=12, num_heads=12)


def test_without_experts_all_parameters_are_active():
    params = fc.Decoder(**GPT2).params()
    assert params.active == params.total == 124_439_808
    assert params.buffers == ()


def test_a_token_multiplies_matrices_alone():
    # 12 layers of 12·768² and the tied embedding, 50257·768, which the output layer multiplies;
    # no positions, biases or norms.
    assert fc.Decoder(**GPT2).params().matmul_active == 12 * 12 * 768**2 + 50257 * 768
    # An untied head multiplies as much, though the look-up's table adds to the total.
    untied = fc.Decoder(**GPT2, tie_embeddings=False).params()
    assert untied.matmul_active == 12 * 12 * 768**2 + 50257 * 768
    assert untied.total == 124_439_808 + 50257 * 768


@pytest.mark.parametrize(
    "model",
    [
        fc.Decoder(vocab_size=11, seq_len=5, num_channels=6, num_layers=3, num_heads=2),
        fc.PerceiverAR(vocab_size=11, num_latents=5, num_prefix=7, num_channels=6, num_layers=3,
                       num_heads=2),
        fc.Llama(vocab_size=11, seq_len=5, num_channels=6, num_layers=3, num_heads=2,
                 intermediate_size=13, num_key_value_heads=1, head_dim=4),
    ],
)  # fmt: skip
def test_twice_what_a_token_multiplies_is_its_forward_pass_without_attention(model):
    counted = model.flops(training=False).self_part
    attention = sum(term.forward for term in counted.terms if term.term in ("scores", "values"))
    assert counted.forward - attention == 2 * 5 * model.params().matmul_active


def test_active_parameters_on_arrays_and_symbols():
    width = sympy.Symbol("d", integer=True, positive=True)
    symbolic = fc.Decoder(**GPT2 | dict(num_channels=width)).params()
    assert symbolic.matmul_active.subs(width, 768) == 12 * 12 * 768**2 + 50257 * 768
    array = fc.Decoder(**GPT2 | dict(num_channels=np.array([768, 1536]))).params()
    assert list(array.matmul_active) == [
        12 * 12 * width**2 + 50257 * width for width in (768, 1536)
    ]


def experts(active=(3, 2)):
    return Tensor("self", "sparse", "expert up", (3, 5), active)


def test_a_tensor_says_what_a_token_uses_of_it():
    tensor = experts()
    assert (tensor.count, tensor.active) == (15, 6)
    assert tensor.record()["active"] == 6
    assert experts(None).active == 15


def test_a_count_says_what_is_active_and_what_is_a_buffer():
    bias = Tensor("self", "sparse", "router correction", (3, 4), is_buffer=True)
    norm = Tensor("cross", "sparse", "norm", (7,))
    product = Product(
        part="self", layer="sparse", term="expert up", times=3, M=2, N=5, K=1, source="",
        weight=("sparse", "expert up"),
    )  # fmt: skip
    params = ParameterCount(fc.Decoder(**GPT2), (experts(), norm), (bias,), (product,))
    assert (params.total, params.active, params.matmul_active) == (22, 13, 30)
    assert params.cross_part.total == 7
    # Without its tensor nothing is multiplied, and the buffer is the self part's.
    assert (params.cross_part.matmul_active, params.cross_part.buffers) == (0, ())
    assert params.self_part.buffers == (bias,)
    assert params.to_dict()["buffers"] == [bias.record()]
    assert [params.to_dict()[name] for name in ("total", "active", "matmul_active")] == [22, 13, 30]
    lines = str(params).splitlines()
    assert lines[1].split() == ["part", "layer", "name", "parameters", "share", "active"]
    assert lines[-2].split() == ["total", "22", "100.00%", "13"]
    assert lines[-1].strip() == "sparse router correction: a buffer of 12, no parameters"
    # Where every parameter is active, the column would say nothing.
    assert "active" not in str(fc.Decoder(**GPT2).params())
