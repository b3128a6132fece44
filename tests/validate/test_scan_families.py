"""Families with scans against transformers' own networks: parameters, FLOPs, recomputation."""

import functools
import random

import pytest

import flopcount as fc
from flopcount.hybrid_lm import Mamba2LM
from flopcount.operations import Pass
from flopcount.rows import Product
from validate.hugging_face import FLAVOURS, admitted_pairs, observe
from validate.scan_differences import differences

CONFIGURATIONS = 40


def common(draw):
    """What the families with attention call alike: d is no product of heads and head dim."""
    key_heads = draw(1, 3)
    return dict(
        vocab_size=draw(7, 99),
        hidden_size=draw(3, 40),
        intermediate_size=draw(1, 30),
        num_hidden_layers=draw(1, 4),
        num_attention_heads=key_heads * draw(1, 3),
        num_key_value_heads=key_heads,
        hidden_act=draw(("silu", "gelu", "relu", "gelu_new")),
        tie_word_embeddings=draw((False, True)),
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )


def routed(draw, name):
    """Experts, of which any number is used."""
    experts = draw(1, 6)
    return {name: experts, "num_experts_per_tok": draw(1, experts)}


def minimax(draw):
    config = common(draw) | routed(draw, "num_local_experts") | dict(
        model_type="minimax",
        head_dim=2 * draw(1, 6),
        block_size=draw(1, 9),
        sliding_window=draw((None, 3, 50)),
        linear_attn_alpha_factor=draw((1, 1.5)),
        mlp_beta_factor=draw((1, 0.5)),
    )  # fmt: skip
    kinds = ("linear_attention", "full_attention")
    layers = [draw(kinds) for _ in range(config["num_hidden_layers"])]
    return config | draw(({}, {"layer_types": layers}))


def qwen3_next(draw):
    config = common(draw) | routed(draw, "num_experts")
    layers, heads = config["num_hidden_layers"], draw(1, 3)
    return config | dict(
        model_type="qwen3_next",
        head_dim=8 * draw(1, 2),
        attention_bias=draw((False, True)),
        full_attention_interval=draw(1, 4),
        decoder_sparse_step=draw(1, 2),
        mlp_only_layers=draw(([], [draw(0, layers - 1)])),
        moe_intermediate_size=draw(1, 20),
        shared_expert_intermediate_size=draw(1, 20),
        norm_topk_prob=draw((False, True)),
        linear_num_key_heads=heads,
        linear_num_value_heads=heads * draw(1, 3),
        linear_key_head_dim=draw(1, 9),
        linear_value_head_dim=draw(1, 9),
        linear_conv_kernel_dim=draw(1, 5),
    )


def jamba(draw):
    attention, experts = draw(1, 4), draw(1, 3)
    config = common(draw)
    config["hidden_size"] = config["num_attention_heads"] * draw(2, 8)
    return config | routed(draw, "num_experts") | dict(
        model_type="jamba",
        attn_layer_period=attention,
        attn_layer_offset=draw(0, attention - 1),
        expert_layer_period=experts,
        expert_layer_offset=draw(0, experts - 1),
        mamba_d_state=draw(1, 9),
        mamba_d_conv=draw(1, 5),
        mamba_expand=draw(1, 3),
        mamba_dt_rank=draw(("auto", 1, 5)),
        mamba_conv_bias=draw((False, True)),
        mamba_proj_bias=draw((False, True)),
    )  # fmt: skip


def mamba2(draw):
    groups, expand = draw(1, 3), draw(1, 2)
    heads, head_dim = groups * draw(1, 3), 2 * draw(1, 6)
    # einsum multiplies sizes of 1 element by element, so they are drawn from 2 on.
    return dict(
        model_type="mamba2",
        vocab_size=draw(7, 99),
        hidden_size=heads * head_dim // expand,
        num_hidden_layers=draw(1, 3),
        num_heads=heads,
        head_dim=head_dim,
        expand=expand,
        state_size=draw(2, 9),
        n_groups=groups,
        conv_kernel=draw(1, 5),
        chunk_size=draw(2, 12),
        use_bias=draw((False, True)),
        use_conv_bias=draw((False, True)),
        tie_word_embeddings=draw((False, True)),
        pad_token_id=None,
    )


DRAWN = {minimax: 30, qwen3_next: 140, jamba: 11, mamba2: 30}
"""The families, with the longest sequence of each: several chunks and what does not divide."""

PUBLISHED = {
    "MiniMax-Text-01": (
        dict(
            model_type="minimax", vocab_size=200064, hidden_size=6144, intermediate_size=9216,
            num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8, head_dim=128,
            num_local_experts=32, num_experts_per_tok=2, block_size=256,
            layer_types=(["linear_attention"] * 7 + ["full_attention"]) * 10,
        ),
        456_089_655_296, 700,
    ),
    "Qwen3-Next-80B-A3B": (dict(model_type="qwen3_next"), 79_674_391_296, 300),
    "Jamba-v0.1": (dict(model_type="jamba"), 51_570_323_328, 9),
    "Mamba-Codestral-7B-v0.1": (dict(model_type="mamba2"), 7_285_403_648, 700),
}  # fmt: skip
"""Published sizes, their number of parameters and a length of several chunks."""


def drawn(family, seed):
    """A config and sizes of a pass; ``draw`` takes bounds or a choice."""
    generator = random.Random(f"{family.__name__} {seed}")

    def draw(first, last=None):
        return generator.choice(first) if last is None else generator.randint(first, last)

    return family(draw), draw(1, DRAWN[family]), draw(1, 3)


def scans(model):
    """Blocks with a scan, and how many layers have them."""
    if isinstance(model, Mamba2LM):
        ((_, (_, layers, _)),) = model.network(Pass(1, 1))
        return [(layers.blocks[0].block, model.num_layers)]
    return [
        (model.scan(), group.number) for group in model.groups() if group.kind["mixer"] == "scan"
    ]


def expected(config, seq_len, batch_size, stated=differences, flavours=FLAVOURS):
    """What the counter should see: level ``dense``, and the stated differences of each scan."""
    model = fc.from_hf(config, seq_len)
    more = [
        (reason, phase, number * flops)
        for block, number in scans(model)
        for reason, both in stated(block, batch_size, seq_len).items()
        for phase, flops in enumerate(both)
    ]

    def sum_of(wanted, is_convolution=False):
        return sum(
            flops
            for reason, phase, flops in more
            if phase == wanted and (reason == "convolution") == is_convolution
        )

    count = functools.partial(model.flops, "dense", batch_size=batch_size)
    return dict(
        parameters=model.params().total,
        forward=count().forward + sum_of(0),
        backward=count().backward + sum_of(1),
        convolutions=(sum_of(0, is_convolution=True), sum_of(1, is_convolution=True)),
        recompute={
            flavour: count(checkpointing=flavour).recompute + sum_of(0) for flavour in flavours
        },
    )


def seen(config, seq_len, batch_size, checkpointing=True):
    """The same of transformers' own network."""
    observed = vars(
        observe(config, seq_len=seq_len, batch_size=batch_size, checkpointing=checkpointing)
    )
    names = ("parameters", "forward", "backward", "convolutions", "recompute")
    return {name: observed[name] for name in names}


@pytest.mark.parametrize("family", DRAWN)
def test_drawn_networks_are_what_transformers_executes(family):
    for seed in range(CONFIGURATIONS):
        given = drawn(family, seed)
        checkpointing = seed % 4 == 0
        flavours = FLAVOURS if checkpointing else ()
        assert expected(*given, flavours=flavours) == seen(*given, checkpointing), given


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_are_what_transformers_executes(name):
    config, parameters, seq_len = PUBLISHED[name]
    observed = seen(config, seq_len, 1, checkpointing=False)
    assert observed["parameters"] == parameters
    assert expected(config, seq_len, 1, flavours=()) == observed
