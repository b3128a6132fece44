"""The witness of networks that others wrote: what it sees by hand, and what it must not miss."""

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode
from transformers.initialization import no_init_weights

from validate.witnesses.hugging_face import networks
from validate.witnesses.hugging_face.networks import UncountedError, build, observe

N = 13
SMALL = dict(
    vocab_size=97, hidden_size=24, intermediate_size=20, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, head_dim=10, pad_token_id=None, bos_token_id=None, eos_token_id=None,
)  # fmt: skip
EXPERTS = dict(SMALL, num_local_experts=5, num_experts_per_tok=3)
T5 = dict(
    model_type="t5", vocab_size=97, d_model=24, d_kv=5, d_ff=20, num_heads=4, num_layers=3,
    num_decoder_layers=2, decoder_start_token_id=0,
)  # fmt: skip
CAUSAL = N * (N + 1) // 2


def admitted_pairs(config, **lengths):
    seen = observe(config, batch_size=2, checkpointing=False, device="cpu", **lengths)
    return {name: pairs for name, (pairs, _) in seen.admitted.items()}


def window(size):
    """Position p = 1 … n attends to the last W positions up to its own, so to min(p, W)."""
    return sum(min(position, size) for position in range(1, N + 1))


def test_a_llama_by_hand():
    seen = observe(dict(SMALL, model_type="llama"), seq_len=N, batch_size=2)
    # d = 24, h·c = 40, g·c = 20, f = 20, V = 97: query 24·40, key and value 24·20 each, out 40·24,
    # MLP 3·24·20, scores and values h·n·c each per position.
    layer = 2 * 2 * N * (24 * 40 + 2 * 24 * 20 + 40 * 24 + 3 * 24 * 20 + 2 * 4 * N * 10)
    logits = 2 * 2 * N * 24 * 97
    assert seen.forward == 4 * layer + logits
    assert seen.backward == 2 * seen.forward
    # The non-re-entrant flavour stops when the last product's input is there.
    assert seen.recompute == {
        "reentrant": 4 * layer,
        "non-reentrant": 4 * (layer - 2 * 2 * N * 24 * 20),
    }
    # Two norms of d a layer and the final one; the head is not tied.
    assert seen.parameters == 4 * (24 * 40 * 2 + 24 * 20 * 5 + 2 * 24) + 24 + 2 * 97 * 24
    assert (seen.buffers, seen.convolutions) == (0, (0, 0))
    assert seen.modules["model.layers.3.self_attn"] == (2 * 2 * 4 * N * N * 10,) * 2
    assert seen.modules["model.layers.0.mlp.down_proj"] == (2 * 2 * N * 24 * 20,)


@pytest.mark.parametrize(
    ("config", "parameters", "buffers"),
    [
        (dict(model_type="gpt2"), 124_439_808, 0),
        (
            dict(
                model_type="llama", vocab_size=128_256, hidden_size=4096, intermediate_size=14336,
                num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
            ),
            8_030_261_248,
            0,
        ),
        # 58 layers have a router bias of 256.
        (dict(model_type="deepseek_v3"), 671_026_404_352, 58 * 256),
        (dict(model_type="bert", architectures=["BertModel"]), 109_482_240, 0),
    ],
    ids=["GPT-2 small", "Llama-3-8B", "DeepSeek-V3", "BERT-base"],
)  # fmt: skip
def test_published_sizes(config, parameters, buffers):
    network = build(config)
    assert networks.num_parameters(network) == parameters
    assert networks.num_buffers(network) == buffers


def test_a_head_follows_architectures():
    small = dict(SMALL, model_type="bert")
    classes = {
        name: type(build(small | dict(architectures=name and [name]))).__name__
        for name in (None, "BertModel", "BertForMaskedLM", "LlamaForCausalLM")
    }
    assert classes == {
        None: "BertForMaskedLM",
        "BertModel": "BertModel",
        "BertForMaskedLM": "BertForMaskedLM",
        # Of another family: not what the config is for.
        "LlamaForCausalLM": "BertForMaskedLM",
    }


def test_every_output_is_trained():
    # A pooler of d² on the first position: as every product, twice as much backward as forward.
    seen = observe(dict(SMALL, model_type="bert", architectures=["BertModel"]), seq_len=N)
    assert seen.modules["pooler.dense"] == (2 * 24 * 24,)
    assert seen.backward == 2 * seen.forward


def test_experts_are_counted():
    seen = observe(dict(EXPERTS, model_type="mixtral"), seq_len=N)
    # Three experts of five a token, gate and up in one product.
    assert seen.modules["model.layers.0.mlp.experts"] == (
        3 * N * 2 * 24 * 2 * 20,
        3 * N * 2 * 20 * 24,
    )


def test_kimi_runs_on_the_code_of_deepseek():
    sizes = dict(
        SMALL, head_dim=4, num_key_value_heads=4, q_lora_rank=8, kv_lora_rank=10,
        qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=7, n_routed_experts=6,
        num_experts_per_tok=2, n_group=1, topk_group=1, moe_intermediate_size=14,
        first_k_dense_replace=1,
    )  # fmt: skip
    kimi, deepseek = (
        observe(sizes | dict(model_type=name), seq_len=N) for name in ("kimi_k2", "deepseek_v3")
    )
    assert kimi == deepseek
    # Scores are of depth 6 + 4, values of depth 7.
    pairs = 2 * 4 * N * N
    assert kimi.modules["model.layers.0.self_attn"] == (pairs * 10, pairs * 7)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (dict(SMALL, model_type="mistral", sliding_window=5), [window(5)] * 4),
        (dict(SMALL, model_type="mistral", sliding_window=None), [CAUSAL] * 4),
        (
            dict(
                SMALL, model_type="qwen2", use_sliding_window=True, sliding_window=4,
                max_window_layers=3,
            ),
            [CAUSAL] * 3 + [window(4)],
        ),
        (dict(SMALL, model_type="gemma2", sliding_window=5), [window(5), CAUSAL] * 2),
        # A sink is a column of the softmax, and no key.
        (dict(EXPERTS, model_type="gpt_oss", sliding_window=4), [window(4), CAUSAL] * 2),
        # Chunks of 5, 5 and 3 positions, each causal: 15 + 15 + 6.
        (
            dict(EXPERTS, model_type="llama4_text", attention_chunk_size=5),
            [36, 36, 36, CAUSAL],
        ),
        # Its mask is True where a pair is hidden.
        (dict(model_type="mpt", vocab_size=9, d_model=24, n_heads=4, n_layers=2), [CAUSAL] * 2),
        (dict(model_type="bloom", vocab_size=9, hidden_size=24, n_head=4, n_layer=2), [CAUSAL] * 2),
        (dict(SMALL, model_type="bert"), [N * N] * 4),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)  # fmt: skip
def test_masks_are_the_networks_own(config, expected):
    assert list(admitted_pairs(config, seq_len=N).values()) == expected


def test_masks_of_two_stacks():
    pairs = admitted_pairs(T5, seq_len=N, target_len=7)
    encoder = [N * N] * 3
    decoder = [7 * 8 // 2, 7 * N] * 2
    assert list(pairs.values()) == encoder + decoder


def test_heads_that_admit_different_pairs_are_found(monkeypatch):
    falcon = dict(model_type="falcon", vocab_size=9, hidden_size=24, num_attention_heads=4)
    falcon["num_hidden_layers"] = 2
    original = torch.nn.functional.softmax

    def one_head_sees_less(scores, *args, **kwargs):
        scores = scores.clone()
        scores[:, 1, 5, 2] = torch.finfo(scores.dtype).min
        return original(scores, *args, **kwargs)

    assert set(admitted_pairs(falcon, seq_len=N).values()) == {CAUSAL}
    monkeypatch.setattr(torch.nn.functional, "softmax", one_head_sees_less)
    with pytest.raises(AssertionError, match="heads admit different pairs"):
        admitted_pairs(falcon, seq_len=N)


def counted(network):
    """FlopCounterMode's total, with nothing refused."""
    given = networks.inputs(network, seq_len=N, batch_size=2, target_len=None)
    with FlopCounterMode(display=False) as counter:
        network(**given)
    return counter.get_total_flops()


def as_transformers_runs(config, attention, device):
    """A network whose experts are run as transformers would: in a grouped product of bf16."""
    text = networks.read(config)
    text.use_cache = False
    with torch.device(device), no_init_weights():
        network = transformers.AutoModelForCausalLM.from_config(
            text, attn_implementation=attention, dtype=torch.bfloat16
        )
    return network.train()


@pytest.mark.parametrize(
    ("attention", "experts", "device", "hidden"),
    [
        # Scores and values of four layers; on the meta device they are two products.
        ("sdpa", "batched_mm", "cpu", 4 * 2 * 2 * 2 * 4 * N * N * 10),
        # Three experts a token, three products each.
        ("eager", "grouped_mm", "meta", 4 * 2 * N * 3 * 3 * 2 * 24 * 16),
    ],
)
def test_a_default_that_counts_0_is_refused(attention, experts, device, hidden, monkeypatch):
    # Rows of a grouped product begin at multiples of 16 bytes.
    config = dict(EXPERTS, model_type="mixtral", intermediate_size=16)
    everything = observe(config, seq_len=N, batch_size=2, checkpointing=False).forward
    network = as_transformers_runs(config, attention, device)
    assert network.config._experts_implementation == "grouped_mm"
    if experts != "grouped_mm":
        network.set_experts_implementation(experts)
    # The counter says nothing of what it does not see.
    assert counted(network) == everything - hidden
    with pytest.raises(UncountedError, match=f"{attention if attention != 'eager' else experts}'"):
        networks.require_countable(network)
    # Were its config silent, the operator itself would be refused.
    monkeypatch.setattr(networks, "require_countable", lambda network: None)
    monkeypatch.setattr(networks, "build", lambda config, device: network)
    with pytest.raises(UncountedError, match=r"counts it as 0"):
        observe(config, seq_len=N, batch_size=2)


def test_an_unknown_family_and_another_version_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="model_type = 'nonesuch'"):
        observe(dict(SMALL, model_type="nonesuch"), seq_len=N)
    monkeypatch.setattr(transformers, "__version__", "4.0.0")
    with pytest.raises(RuntimeError, match="install that"):
        observe(dict(SMALL, model_type="llama"), seq_len=N)
