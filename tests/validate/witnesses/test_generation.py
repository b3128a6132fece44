"""Generation is counted pass by pass as transformers and our own networks run it."""

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import flopcount as fc
from flopcount import masks
from flopcount.operations import MLA
from models.networks.latent import FORMS, LatentDecoder
from validate import matrix
from validate.witnesses import generation
from validate.witnesses.hugging_face import networks, published

NOTHING = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
LLAMA = NOTHING | dict(
    vocab_size=11, hidden_size=12, intermediate_size=10, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, head_dim=6,
)  # fmt: skip
EXPERTS = LLAMA | dict(num_local_experts=3, num_experts_per_tok=2)
LATENT = NOTHING | dict(
    model_type="deepseek_v3", vocab_size=11, hidden_size=12, intermediate_size=10,
    moe_intermediate_size=4, num_hidden_layers=2, first_k_dense_replace=2, num_attention_heads=3,
    num_key_value_heads=3, q_lora_rank=5, kv_lora_rank=7, qk_nope_head_dim=3, qk_rope_head_dim=4,
    v_head_dim=5, n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1, n_group=1,
    topk_group=1,
)  # fmt: skip
NAMED = {
    "llama": LLAMA | dict(model_type="llama"),
    "mistral": LLAMA | dict(model_type="mistral", sliding_window=3),
    "gemma2": LLAMA | dict(model_type="gemma2", sliding_window=3),
    "llama4": LLAMA | dict(
        model_type="llama4_text", attention_chunk_size=4, num_local_experts=3,
        num_experts_per_tok=1, intermediate_size_mlp=9, no_rope_layers=[1, 1, 0],
    ),
    "mixtral": EXPERTS | dict(model_type="mixtral"),
    "gpt_oss": EXPERTS | dict(
        model_type="gpt_oss", sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "deepseek_v3": LATENT | dict(first_k_dense_replace=1),
    "gpt2": NOTHING | dict(
        model_type="gpt2", vocab_size=11, n_embd=12, n_layer=2, n_head=3, n_positions=30
    ),
}  # fmt: skip


def missed(found):
    return {name: difference for name, difference in found.items() if difference}


@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.parametrize("name", NAMED)
def test_transformers_generation(name, chunk):
    found = generation.compare(NAMED[name], 7, 6, chunk=chunk)
    assert missed(found) == {}
    assert set(found) == {
        "prefill", *(f"decode behind {cached}" for cached in range(7, 12)), "generate", "cache",
    }  # fmt: skip


@pytest.mark.parametrize("family", generation.FAMILIES)
def test_every_family(family):
    tried = list(itertools.islice(generation.cases(family, quick=True), 3))
    assert len(tried) == 3
    assert {name: missed(found) for name, found in tried if missed(found)} == {}


def test_the_matrix_has_every_family():
    assert {generation.confirmed(family) for family in generation.FAMILIES} <= {
        check.formula for check in matrix.STANDALONE
    }


def test_a_cache_that_keeps_one_position_more_is_found(monkeypatch):
    # The prompt is within the window, so what is kept shows in later passes alone.
    original = masks.Causal.kept
    monkeypatch.setattr(
        masks.Causal, "kept", lambda mask, n: original(mask, n) + (mask.window is not None)
    )
    assert set(missed(generation.compare(NAMED["mistral"], 2, 3))) == {
        "prefill", "generate", "cache",
    }  # fmt: skip


def test_logits_of_every_position_are_found(monkeypatch):
    original = fc.CausalLM.prefill
    monkeypatch.setattr(
        fc.CausalLM, "prefill", lambda *args, **own: original(*args, logits="all", **own)
    )
    found = missed(generation.compare(NAMED["llama"], 4, 2))
    # Two sequences, three positions more than the last.
    assert found == dict.fromkeys(("prefill", "generate"), 2 * 2 * 3 * 12 * 11)


def test_falcon_caches_keys_once_a_query_head(monkeypatch):
    falcon = dict(
        model_type="falcon", vocab_size=12, hidden_size=12, num_hidden_layers=2,
        num_attention_heads=6, num_kv_heads=2, new_decoder_architecture=True, alibi=False,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    assert missed(generation.compare(falcon, 4, 3)) == {}
    monkeypatch.setattr(generation, "cached_copies", lambda config: 1)
    # Keys and values of two layers, 6 positions and two sequences: 4 heads of 2 channels more.
    assert missed(generation.compare(falcon, 4, 3)) == {"cache": -2 * 2 * 6 * 2 * 4 * 2}


def test_drawn_prompts_have_room_for_what_follows():
    for family in ("gpt2", "opt"):
        for config, prompt_len in generation.tried(family, 9):
            table = config.get("n_positions") or config["max_position_embeddings"]
            assert 1 <= prompt_len <= table - generation.NEW_TOKENS + 1
    for config, _ in generation.tried("t5", 9):
        decoder_layers = config.get("num_decoder_layers") or config["num_layers"]
        assert decoder_layers <= config["num_layers"]
    assert {config["sliding_window"] for config, _ in generation.tried("minimax_text_01", 9)} == {
        None
    }


def test_latents_that_are_expanded_once_are_found(monkeypatch):
    monkeypatch.setattr(masks.Causal, "kept_before", lambda *_: 0)
    # Two layers of three heads of 3 + 5 channels, expanded from 7: of 4 and then 5 positions of two
    # sequences. The same sum gives the keys that a query of 3 + 4 channels meets, values of 5.
    found = missed(generation.compare(LATENT, 4, 3))
    once = 2 * 2 * 2 * (7 * 3 * (3 + 5) + 3 * (3 + 4 + 5))
    assert found == {
        "decode behind 4": -4 * once, "decode behind 5": -5 * once, "generate": -9 * once,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("model", "lengths", "options"),
    [
        (fc.Decoder(vocab_size=9, seq_len=12, num_channels=8, num_layers=2, num_heads=2),
         [(5, 8), (12, 1), (1, 12)], {}),
        # Within the prefix; beyond it; more than both, of which the oldest are left out.
        (fc.PerceiverAR(vocab_size=9, num_latents=6, num_prefix=5, num_channels=8, num_layers=3,
                        num_heads=2), [(4, 6), (1, 6), (6, 6), (9, 3), (20, 1)], {}),
        (fc.PerceiverAR(vocab_size=9, num_latents=6, num_prefix=5, num_channels=8, num_layers=1,
                        num_heads=2), [(4, 4), (9, 4)], {"num_latents": 3}),
        (fc.PerceiverAR(vocab_size=9, num_latents=6, num_prefix=0, num_channels=8, num_layers=2,
                        num_heads=2), [(4, 3)], {}),
    ],
    ids=["decoder", "perceiver", "latents given", "no prefix"],
)  # fmt: skip
def test_our_own_generation(model, lengths, options):
    for prompt_len, new_tokens in lengths:
        found = generation.compare_own(model, prompt_len, new_tokens, **options)
        assert missed(found) == {}, (prompt_len, new_tokens)


def test_a_window_that_slides_is_another_number_of_flops():
    # The window slides for the seventh token, and our network makes its cache anew: not counted.
    model = fc.PerceiverAR(
        vocab_size=9, num_latents=6, num_prefix=5, num_channels=8, num_layers=2, num_heads=2
    )
    with pytest.raises(ValueError, match="since beyond it the window slides"):
        model.generate(6, 7)
    network = generation.build_own(model, training=False)
    with generation.counted(network) as seen:
        generation.generate(network, torch.zeros(2, 6, dtype=torch.long), 8)
    steps = [model.decode(1, "dense", cached=6 + i, num_latents=1 + i, batch_size=2).total
             for i in range(5)]  # fmt: skip
    assert seen[1:6] == steps
    assert seen[6] > 2 * seen[5]


@pytest.mark.parametrize("accepted", ["all", "few"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
def test_a_draft_as_transformers_runs_it(name, accepted):
    """Passes of both models, with the numbers of accepted tokens that the run itself shows."""
    config, prompt_len, new_tokens, per_round = NAMED[name], 4, 9, 3
    network = generation.generating(config)
    layers = config["num_hidden_layers"] - (accepted == "few")
    types = {"layer_types": config["layer_types"][:layers]} if "layer_types" in config else {}
    smaller = config | {"num_hidden_layers": layers} | types
    draft = generation.generating(smaller)
    draft.generation_config.update(
        num_assistant_tokens=per_round, num_assistant_tokens_schedule="constant",
        assistant_confidence_threshold=0,
    )  # fmt: skip
    prompt = generation.prompt_of(network, prompt_len, 1)
    cached = []
    network.register_forward_pre_hook(
        lambda _, args, kwargs: cached.append(kwargs["cache"].get_seq_length()), with_kwargs=True
    )
    with generation.counted(network) as read, generation.counted(draft) as drafted:
        made = network.generate(
            **prompt, assistant_model=draft, max_new_tokens=new_tokens, min_new_tokens=new_tokens
        )
    assert made.shape[1] == prompt_len + new_tokens
    # A round begins with all tokens but the last in the cache, and makes one beyond the accepted.
    begins = [prompt_len, *(length + 1 for length in cached[1:]), prompt_len + new_tokens]
    rounds = [after - before - 1 for before, after in itertools.pairwise(begins)]
    target, proposer = fc.from_hf(config), fc.from_hf(smaller)
    counted = target.generate(prompt_len, new_tokens, "dense", draft=(proposer, per_round, rounds))
    of_draft = sum(term.forward for term in counted.terms if term.layer.startswith("draft "))
    assert len(read) == len(rounds)
    assert of_draft == sum(drafted)
    assert counted.total - of_draft == sum(read)
    assert sum(rounds) + len(rounds) == new_tokens
    assert (rounds == [3, 3, 0]) or accepted == "few" or name == "gemma2"


SIZES = dict(
    vocab_size=11, num_channels=12, num_layers=2, intermediate_size=10, num_heads=3, query_rank=5,
    key_value_rank=7, plain_dim=3, rotary_dim=4, value_dim=5,
)  # fmt: skip


@pytest.fixture(scope="module")
def reference():
    """Transformers' network of the same sizes, with drawn weights, and tokens."""
    network = generation.generating(LATENT).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.4)
    return network, torch.randint(SIZES["vocab_size"], (2, 9))


@pytest.mark.parametrize("form", FORMS)
def test_a_form_of_latent_attention(reference, form):
    """Transformers' logits, whole and behind a cache, and the counter's FLOPs and elements."""
    reference, tokens = reference
    network = LatentDecoder(**SIZES, form=form).double()
    network.load_state_dict(
        {name.removeprefix("model."): value for name, value in reference.state_dict().items()}
    )
    model, own = fc.from_hf(LATENT), dict(level="dense", batch_size=2, mla=form)
    cache, cached, pieces = {}, 0, []
    for piece in (tokens[:, :4], tokens[:, 4:6], *tokens[:, 6:].split(1, dim=1)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            pieces.append(network(piece, cache))
        length = piece.shape[1]
        expected = (
            model.decode(1, cached=cached, **own)
            if length == 1
            else model.prefill(length, cached=cached, logits="all", **own)
        )
        assert counter.get_total_flops() == expected.total
        cached += length
    kept = sum(tensor.numel() for both in cache.values() for tensor in both)
    assert kept == model.cache(9, batch_size=2, mla=form).elements
    with torch.no_grad():
        whole = reference(tokens, use_cache=False).logits
        # Angles are float32 here and there.
        torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=0, atol=1e-6)
        torch.testing.assert_close(network(tokens), whole, rtol=0, atol=1e-6)
    assert whole.abs().max() > 0.5


def test_forms_have_one_name_each():
    assert tuple(MLA) == FORMS
    with pytest.raises(ValueError, match="form must be one of"):
        LatentDecoder(**SIZES, form="other")
    with pytest.raises(ValueError, match="rotary_dim must be even, got 3"):
        LatentDecoder(**SIZES | {"rotary_dim": 3})


def test_a_published_size_behind_a_cache():
    """DeepSeek-V3, without data: one token behind 300 positions, latents expanded for all 301."""
    from transformers import DynamicCache

    config = published.PUBLISHED["DeepSeek-V3"]
    network = networks.build(config).eval()
    tokens = torch.zeros((1, 301), dtype=torch.long, device="meta")
    cache = DynamicCache(config=network.config)
    seen = []
    for piece in (tokens[:, :300], tokens[:, 300:]):
        mask = torch.ones((1, cache.get_seq_length() + piece.shape[1]), device="meta")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(input_ids=piece, attention_mask=mask, cache=cache, use_cache=True,
                    logits_to_keep=1)  # fmt: skip
        seen.append(counter.get_total_flops())
    model = fc.from_hf(config)
    assert seen == [
        model.prefill(300, "dense").total, model.decode(1, "dense", cached=300).total
    ]  # fmt: skip
