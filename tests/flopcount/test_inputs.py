"""What conventions are told of a model, read off its blocks: every kind of block by hand."""

import dataclasses

import numpy as np
import pytest

import flopcount as fc
from flopcount.blocks import Embedding
from flopcount.conventions import GROUPED, HEAD_DIM, WIDTH, LayerInputs
from flopcount.count import is_position
from flopcount.encoder_lm import EncoderDecoderLM, EncoderLM
from flopcount.hybrid_lm import LightningLM, Mamba2LM
from flopcount.inputs import inputs_of, is_block_norm, together
from flopcount.mixture_lm import MixtureLM
from flopcount.operations import Pass
from flopcount.rows import Tensor

COMMON = dict(vocab_size=11, num_channels=8, num_layers=5, num_heads=4, intermediate_size=9)
EXPERTS = dict(num_experts=3, experts_per_token=2, expert_size=7)
HEADS = dict(num_heads=4, num_key_heads=4, head_dim=2, value_dim=2)


def inputs(model):
    return inputs_of(model.network(Pass(1, 7)), model.params())


def test_latents_experts_and_predictions():
    model = MixtureLM(
        **COMMON, **EXPERTS, key_value_rank=5, plain_dim=3, rotary_dim=4, value_dim=2,
        query_rank=6, mlp=("dense", "sparse"), num_predictions=2,
    )  # fmt: skip
    latents = dict(num_heads=4, num_key_heads=4, head_dim=3 + 4, value_dim=2, query_rank=6,
                   key_value_rank=5, rotary_dim=4, gated=True)  # fmt: skip
    found = inputs(model)
    # Layers 0, 2 and 4 are dense; the modules that predict further have a layer like the last
    # sparse one each.
    assert found.layers == (
        LayerInputs(number=3, hidden_channels=9, **latents),
        LayerInputs(number=4, hidden_channels=7, num_experts=3, top_k=2, **latents),
    )
    assert (found.num_predictions, found.num_latents, found.num_channels) == (2, 7, 8)
    network = model.network(Pass(1, 7))
    twice = inputs_of((*network, network[-1]), model.params())
    assert (twice.num_predictions, twice.num_layers) == (4, 9)
    # The tables: 11·8 of tokens alone, untied.
    assert (found.num_table_params, found.num_tied_params) == (88, 0)
    # Norms around blocks: two of 8 in each of five layers, and five of 8 in a module that predicts.
    assert found.num_block_norm_params == 5 * 2 * 8 + 2 * 5 * 8


def test_widths_of_experts_are_not_those_of_an_mlp():
    names = [name for name, _, _ in inputs(MixtureLM(**COMMON, **EXPERTS)).held_apart]
    assert set(names) == {GROUPED, HEAD_DIM}
    dense = MixtureLM(**COMMON, **EXPERTS, mlp=("dense", "sparse"))
    assert (WIDTH, 9, 4 * 8) in inputs(dense).held_apart
    assert len(inputs(dense).held_apart) == 5


def test_chunks_and_shared_experts():
    model = MixtureLM(**COMMON, **EXPERTS, attention=("chunked", "chunked", "full"), chunk=4,
                      shared_size=6)  # fmt: skip
    experts = dict(hidden_channels=7, gated=True, num_experts=3, top_k=2, shared_channels=6)
    # Layers 2 is full, the others are chunked.
    assert inputs(model).layers == (
        LayerInputs(number=4, others=frozenset({"a mask Chunked"}), **HEADS, **experts),
        LayerInputs(number=1, **HEADS, **experts),
    )
    assert inputs(model).num_predictions == 0


def test_scans_beside_attention():
    mamba = Mamba2LM(vocab_size=11, num_channels=8, num_layers=2, num_heads=4, head_dim=3, state=5,
                     head_groups=2, taps=3, chunk=4)  # fmt: skip
    none = frozenset({"a block Mamba2", "no attention", "no MLP"})
    assert inputs(mamba).layers == (LayerInputs(number=2, others=none),)
    # Blocks whose residual is scaled are read like others.
    lightning = LightningLM(
        **COMMON, **EXPERTS, mixers=("scan", "attention"), mlp=("sparse",), scan_chunk=4
    )
    scan, attention = inputs(lightning).layers
    assert (scan.number, scan.others) == (3, {"a block LightningAttention", "no attention"})
    assert (attention.number, attention.others) == (2, frozenset())
    assert (scan.top_k, attention.top_k, attention.num_heads) == (2, 2, 4)


def test_attention_to_all_and_a_second_stack():
    everywhere = "attention to all positions"
    mlp = dict(hidden_channels=9)
    encoder = inputs(EncoderLM(**COMMON))
    assert encoder.layers == (
        LayerInputs(number=5, others=frozenset({everywhere}), **HEADS, **mlp),
    )
    assert encoder.num_tied_params == 88
    both = inputs(EncoderDecoderLM(**COMMON, num_decoder_layers=3, seq_len=6, target_len=4))
    second = "a second stack of layers"
    assert both.layers == (
        LayerInputs(number=5, others=frozenset({everywhere, second}), **HEADS, **mlp),
        LayerInputs(number=3, others=frozenset({"a block CrossAttention", second}), **HEADS, **mlp),
    )


def test_blocks_beside_each_other_and_windows_in_some_layers():
    falcon = fc.from_hf(dict(
        model_type="falcon", vocab_size=11, hidden_size=8, num_hidden_layers=3,
        num_attention_heads=4, multi_query=True, parallel_attn=True, new_decoder_architecture=False,
    ))  # fmt: skip
    heads = HEADS | dict(num_key_heads=1)
    assert inputs(falcon).layers == (LayerInputs(number=3, **heads, hidden_channels=32),)
    windows = fc.CausalLM(**COMMON, attention=("sliding", "full"), window=3)
    mlp = dict(hidden_channels=9, gated=True)
    assert inputs(windows).layers == (
        LayerInputs(number=3, window=3, **HEADS, **mlp),
        LayerInputs(number=2, **HEADS, **mlp),
    )


def test_equal_layers_are_put_together():
    large = 10**6
    layer = LayerInputs(number=2, num_heads=4, hidden_channels=large, others=frozenset({"a", "b"}))
    same = LayerInputs(
        number=5, num_heads=4, hidden_channels=int(str(large)), others=frozenset({"b", "a"})
    )
    other = dataclasses.replace(layer, num_heads=5)
    assert list(together([layer, other, same])) == [dataclasses.replace(layer, number=7), other]
    # Arrays are equal to themselves alone, whatever stands in them.
    sizes = np.array([4, 4])
    of_array = dataclasses.replace(layer, num_heads=sizes)
    for pair, number in (
        ((of_array, dataclasses.replace(of_array, number=1)), 1),
        ((of_array, dataclasses.replace(layer, num_heads=sizes.copy())), 2),
        ((layer, of_array), 2),
        ((of_array, layer), 2),
    ):
        assert len(list(together(pair))) == number


def test_a_network_that_ends_without_an_output_layer():
    # What a token is looked up in says the sizes, not the table of positions beside it.
    pass_ = Pass(1, 7)
    positions, tokens = Embedding(6, num_positions=9), Embedding(8, vocab_size=11)
    found = inputs_of(((pass_, (positions, tokens, Embedding(5, vocab_size=3))),), _params())
    assert (found.num_channels, found.vocab_size, found.layers) == (8, 11, ())


def _params():
    return fc.CausalLM(**COMMON).params()


@pytest.mark.parametrize(
    ("layer", "name", "around", "position"),
    [
        ("decoder", "mlp norm", True, False),
        ("decoder", "query norm", False, False),
        ("decoder", "key norm", False, False),
        ("decoder", "key-value norm", False, False),
        ("decoder", "norm weights", False, False),
        ("output", "final norm", False, False),
        ("embedding", "embedding norm", True, False),
        ("embedding", "token type", False, False),
        ("embedding", "positions", False, True),
        ("decoder", "relative positions", False, False),
    ],
)
def test_what_a_tensor_is(layer, name, around, position):
    tensor = Tensor("self", layer, name, (4,))
    assert (is_block_norm(tensor), is_position(tensor)) == (around, position)


def test_a_model_that_was_read_tells_what_was_read():
    config = {"model_type": "gpt2"}
    read, own = fc.from_hf(config, 7), fc.CausalLM(**COMMON, seq_len=7)
    assert read.flops().to_dict()["model"]["config"]["model_type"] == "gpt2"
    assert "config" not in own.flops().to_dict()["model"]
    assert own.flops().to_dict()["model"]["architecture"] == "CausalLM"
