"""What modules execute, by hand; where torch's own counter is off; and what is not counted."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  as everybody writes it
from hypothesis import given, settings
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import flopcount as fc
import kernels.attention.operators  # noqa: F401  registers the operators
from flopcount.testing import models
from flopcount.torch import _MULTIPLIES, GAPS, count, counting
from validate.witnesses.networks import PRODUCTS, build, tokens


class Function(nn.Module):
    """A module that applies a function to tensors that require a gradient."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, *tensors):
        return self.function(*(x * self.one.to(x.dtype) for x in tensors))


def drawn(*shape, dtype=torch.float32):
    return torch.ones(shape, dtype=dtype)


def torchs_own(module, *inputs):
    """Torch's own counter, forward and backward."""
    with FlopCounterMode(display=False) as forward:
        result = module(*inputs)
    with FlopCounterMode(display=False) as backward:
        result.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


def names_of(model):
    layer = "self-attention" if isinstance(model, fc.PerceiverAR) else "decoder"
    patterns = {"layers.*": layer, "hybrid": "hybrid"}
    return {"output": ("output", "logits")} | {
        f"{place}.{module}": (layer, term)
        for place, layer in patterns.items()
        for module, term in PRODUCTS.items()
    }


@settings(max_examples=15)
@given(models())
@pytest.mark.parametrize("checkpointing", [None, "reentrant", "non-reentrant"])
def test_a_step_minus_its_formula_is_nothing_term_by_term(checkpointing, model):
    network = build(model, checkpointing=checkpointing)
    measured = count(network, tokens(model, batch_size=2), names=names_of(model))
    formula = model.flops("dense", batch_size=2, checkpointing=checkpointing)
    difference = measured - formula
    assert difference.nonzero.terms == ()
    assert {(term.layer, term.term) for term in difference.terms} == {
        (term.layer, term.term) for term in formula.terms
    }
    assert measured.not_counted == ()
    assert (measured.total, measured.recompute) == (formula.total, formula.recompute)


LLAMA = fc.Llama(
    vocab_size=11, seq_len=5, num_channels=8, num_layers=2, num_heads=2, intermediate_size=12
)


def test_a_layer_that_is_not_as_described_is_a_term_of_the_difference():
    network = build(LLAMA)
    mlp = network.layers[1].mlp
    mlp.up, mlp.gate = (nn.Linear(8, 13, bias=False) for _ in range(2))
    mlp.down = nn.Linear(13, 8, bias=False)
    found = count(network, tokens(LLAMA), names=names_of(LLAMA)) - LLAMA.flops("dense")
    assert [(term.layer, term.term, term.forward) for term in found.nonzero.terms] == [
        ("decoder", f"mlp {name}", 2 * 5 * 8) for name in ("gate", "up", "down")
    ]


@pytest.mark.parametrize("level", ["dense", "causal"])
@pytest.mark.parametrize("checkpointing", [None, "reentrant", "non-reentrant"])
@pytest.mark.parametrize(
    "model",
    [
        fc.PerceiverAR(
            vocab_size=9, num_latents=3, num_prefix=7, num_channels=10, num_layers=2, num_heads=2
        ),
        LLAMA,
    ],
    ids=str,
)
def test_our_fused_attention_is_counted_at_both_levels(model, level, checkpointing):
    meta = dict(device="meta")
    network = build(model, attention="fused", checkpointing=checkpointing, **meta)
    measured = count(network, tokens(model, batch_size=2, **meta), level=level)
    formula = model.flops(level, batch_size=2, checkpointing=checkpointing)
    assert measured.not_counted == ()
    for phase in ("forward", "backward", "recompute"):
        assert getattr(measured, phase) == getattr(formula, phase)


# Heads 2·3, 5 queries, 7 keys, 8 channels, 4 of values: 2·6·5·7·8 and 2·6·5·7·4.
Q, K, V = drawn(2, 3, 5, 8), drawn(2, 3, 7, 8), drawn(2, 3, 7, 4)
SCORES, VALUES = 2 * 6 * 35 * 8, 2 * 6 * 35 * 4


def test_fused_attention_on_a_cpu():
    square = Q, Q, Q
    module = Function(F.scaled_dot_product_attention)
    measured = count(module, *square)
    both = 2 * 6 * 25 * 8
    assert [(t.term, t.forward, t.backward) for t in measured.terms] == [
        ("scores", both, 2 * both),
        ("values", both, 2 * both),
    ]
    assert torchs_own(module, *square) == (0, 0)
    assert measured.not_counted == ()
    assert (count(module, Q, K, V).forward, SCORES + VALUES) == (SCORES + VALUES,) * 2


def test_causal_is_what_a_mask_admits():
    def pairs(function, *tensors, **options):
        scores, values = count(Function(function), *tensors, **options).terms
        assert scores.backward == 2 * scores.forward
        assert (values.forward, values.backward) == (scores.forward, scores.backward)
        return scores.forward / (2 * 8)

    def causal(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    assert pairs(causal, Q, Q, Q, level="causal") == 6 * 15
    assert pairs(causal, Q, Q, Q) == 6 * 25
    # PyTorch aligns at the first query and key: 5 of 7 keys, and 7 queries of 5 keys, are as 5·6/2;
    # of the latter two more queries see all 5.
    longer = drawn(2, 3, 7, 8)
    assert pairs(causal, Q, longer, longer, level="causal") == 6 * 15
    assert pairs(causal, longer, Q, Q, level="causal") == 6 * (15 + 2 * 5)
    band = torch.ones(5, 5, dtype=torch.bool).tril().triu(-1)
    for mask in (band, torch.zeros(5, 5).masked_fill(~band, -torch.inf)):

        def banded(q, k, v, mask=mask):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

        assert pairs(banded, Q, Q, Q, level="causal") == 6 * 9
        assert pairs(banded, Q, Q, Q) == 6 * 25


def test_a_mask_without_data_is_named():
    with torch.device("meta"):
        module, q = Function(F.scaled_dot_product_attention), drawn(2, 3, 5, 8)
        mask = torch.ones(5, 5, dtype=torch.bool)
    module.function = lambda q, k, v: torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, attn_mask=mask.float()
    )[0]
    measured = count(module, q, q, q, level="causal")
    assert measured.forward == 2 * 2 * 6 * 25 * 8
    assert {u.reason for u in measured.not_counted} == {"its mask holds no data: counted in whole"}
    assert count(module, q, q, q).not_counted == ()


@pytest.mark.parametrize(
    ("module", "inputs", "product", "gradients", "torchs"),
    [
        # 2 sequences of 7 positions, 8 outputs of 6/2 channels in a group, 3 taps.
        (nn.Conv1d(6, 8, 3, padding=1, groups=2), [(2, 6, 7)], 2 * 2 * 7 * 8 * 3 * 3, 2, (1, 3)),
        # 2·5·5 inputs of 4/2 channels in a group, each to 6/2 outputs at 3·3 places, 2 groups.
        (
            nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2),
            [(2, 4, 5, 5)], 2 * 2 * 25 * 2 * 2 * 3 * 9, 2, (1, 3),
        ),
        (nn.Conv2d(4, 8, 3, stride=2), [(2, 4, 9, 9)], 2 * 2 * 16 * 8 * 4 * 9, 2, (1, 2)),
        (Function(lambda a, v: torch.mv(a, v)), [(3, 4), (4,)], 2 * 3 * 4, 1, (0, 0)),
        (Function(lambda a, b: torch.dot(a, b)), [(4,), (4,)], 2 * 4, 0, (0, 0)),
        (
            Function(lambda a, b: drawn(3, 5).addbmm(a, b)),
            [(2, 3, 4), (2, 4, 5)], 2 * 2 * 3 * 4 * 5, 2, (0, 2),
        ),
        (Function(lambda a, b: drawn(3, 5).addmm_(a, b)), [(3, 4), (4, 5)], 120, 2, (0, 2)),
        (
            Function(lambda a, b: drawn(2, 3, 5).baddbmm_(a, b)),
            [(2, 3, 4), (2, 4, 5)], 240, 2, (0, 2),
        ),
    ],
)  # fmt: skip
def test_products_by_hand_and_by_torchs_own_counter(module, inputs, product, gradients, torchs):
    tensors = [drawn(*shape).requires_grad_() for shape in inputs]
    measured = count(module, *tensors)
    assert (measured.forward, measured.backward) == (product, gradients * product)
    assert measured.not_counted == ()
    assert sum(row.flops for row in measured.rows) == measured.total
    # The gap that is closed is still there: remove it from GAPS when this fails.
    assert torchs_own(module, *tensors) == tuple(times * product for times in torchs)


def test_grouped_products():
    rows, weights = drawn(16, 8, dtype=torch.bfloat16), drawn(3, 8, 24, dtype=torch.bfloat16)
    ends = torch.tensor([5, 9, 16], dtype=torch.int32)
    module = Function(lambda a, b: torch._grouped_mm(a, b, offs=ends).tanh())
    measured = count(module, rows, weights)
    assert (measured.forward, measured.backward) == (2 * 16 * 8 * 24, 2 * 2 * 16 * 8 * 24)
    assert torchs_own(module, rows, weights) == (0, 0)


def test_every_gap_says_what_it_is():
    assert all(operator and reason for operator, reason in GAPS.items())


class Own(nn.Module):
    """A module with an operator that nobody has a formula for."""

    def __init__(self):
        super().__init__()
        self.inner = Function(torch.ops.flopcount_test.multiply)

    def forward(self, a, b):
        return self.inner(a, b)


@torch.library.custom_op("flopcount_test::multiply", mutates_args=())
def multiply(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """A product behind an operator of one's own."""
    return a @ b


multiply.register_autograd(
    lambda ctx, grad: (grad @ ctx.saved_tensors[1].T, ctx.saved_tensors[0].T @ grad),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


def test_an_operator_without_a_formula_is_named_and_not_0():
    measured = count(Own(), drawn(3, 4), drawn(4, 5))
    (uncounted,) = measured.not_counted
    assert (uncounted.operator, uncounted.module, uncounted.calls) == (
        "flopcount_test::multiply",
        "inner",
        1,
    )
    assert "not counted: flopcount_test::multiply in inner, 1 times" in str(measured)
    assert measured.forward == 0
    # Its gradients are plain products, and belong to the module all the same.
    assert [(t.layer, t.backward) for t in measured.terms] == [("inner", 2 * 120)]


def test_an_operator_of_ones_own_can_be_given_a_formula():
    def formula(a_shape, b_shape, out_shape=None, **options):
        return 2 * a_shape[0] * a_shape[1] * b_shape[1]

    mapping = {torch.ops.flopcount_test.multiply: formula}
    measured = count(Own(), drawn(3, 4), drawn(4, 5), custom_mapping=mapping)
    assert (measured.forward, measured.backward, measured.not_counted) == (120, 240, ())


@pytest.mark.parametrize(
    ("module", "inputs", "operator"),
    [
        (nn.LSTM(4, 5), [(2, 3, 4)], "aten::mkldnn_rnn_layer"),
        (nn.Bilinear(3, 4, 5), [(2, 3), (2, 4)], "aten::_trilinear"),
        (
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(),
            [(2, 5, 8)],
            "aten::_transformer_encoder_layer_fwd",
        ),
        (Function(lambda x: torch.fft.rfft(x).abs()), [(2, 8)], "aten::_fft_r2c"),
        (Function(lambda x: torch.linalg.qr(x)[0]), [(3, 3)], "aten::linalg_qr"),
    ],
)
def test_what_multiplies_unseen_is_named(module, inputs, operator):
    measured = count(module, *(drawn(*shape) for shape in inputs), backward=False)
    assert operator in {uncounted.operator for uncounted in measured.not_counted}


def test_what_multiplies_nothing_is_not():
    module = nn.Sequential(
        nn.Embedding(9, 4), nn.LayerNorm(4), nn.Dropout(), nn.GELU(), nn.Softmax(-1),
        nn.Unflatten(1, (1, 5)), nn.BatchNorm2d(1), nn.MaxPool2d(2), nn.Flatten(),
    )  # fmt: skip
    measured = count(module, torch.zeros(3, 5, dtype=torch.long))
    assert (measured.terms, measured.not_counted) == ((), ())
    optimiser = torch.optim.AdamW(module.parameters(), foreach=True)
    with counting(module) as counted:
        loss = F.cross_entropy(module(torch.zeros(3, 5, dtype=torch.long)), torch.zeros(3).long())
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
    assert counted.count.not_counted == ()


def test_every_operator_of_pytorch_with_such_a_name_is_known_to_multiply():
    names = {name.split("::")[1].split(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    assert {"addmv", "_cudnn_rnn", "linalg_qr", "_flash_attention_forward"} <= names
    found = {name for name in names if _MULTIPLIES.search(name)}
    assert not found & {"add", "mul", "_convert_indices_from_coo_to_csr", "cummax", "lgamma"}


def test_a_module_that_is_called_twice_and_one_that_is_shared():
    shared = nn.Linear(4, 4, bias=False)
    module = nn.Sequential(shared, nn.ReLU(), shared)
    measured = count(module, drawn(3, 4).requires_grad_(), names={"0": ("layer", "linear")})
    (term,) = measured.terms
    once = 2 * 3 * 4 * 4
    assert (term.forward, term.backward) == (2 * once, 2 * 2 * once)


def test_products_of_one_module_have_names_in_order():
    module = Function(lambda a, b: (a @ b) @ b.T)
    measured = count(module, drawn(3, 4), drawn(4, 5))
    assert [(t.layer, t.term) for t in measured.terms] == [("(itself)", "mm"), ("(itself)", "mm 2")]
    names = {"(itself)": ("mlp", "up", "down")}
    named = count(module, drawn(3, 4), drawn(4, 5), names=names)
    assert [(t.layer, t.term) for t in named.terms] == [("mlp", "up"), ("mlp", "down")]
    with pytest.raises(ValueError, match=r"names has 1 terms for \(itself\): expected more"):
        count(module, drawn(3, 4), drawn(4, 5), names={"(itself)": ("mlp", "up")})


def test_a_block_counts_all_that_runs_in_it():
    module = nn.Linear(4, 5, bias=False)
    with counting(module, batch_size=3, tokens=6) as counted:
        with pytest.raises(ValueError, match="expected the end of the block"):
            str(counted.count)
        for _ in range(2):
            module(drawn(3, 4)).sum().backward()
        drawn(3, 4) @ drawn(4, 2)
    measured = counted.count
    assert [(t.layer, t.forward, t.backward) for t in measured.terms] == [
        ("(itself)", 2 * 120, 2 * 120),
        ("(outside)", 48, 0),
    ]
    assert (measured.batch_size, measured.per_token) == (3, (240 + 48 + 240) // 6)


def test_an_error_leaves_no_hook_behind():
    hooks = nn.modules.module._global_forward_pre_hooks, nn.modules.module._global_forward_hooks
    before = [len(own) for own in hooks]
    with pytest.raises(RuntimeError):
        count(nn.Sequential(nn.Linear(4, 5)), drawn(3, 3))
    assert [len(own) for own in hooks] == before
    assert torch.is_grad_enabled()


def test_gradients_are_left_as_they_were():
    module = nn.Linear(4, 5)
    module.weight.grad = torch.full((5, 4), 3.0)
    count(module, drawn(3, 4))
    assert module.bias.grad is None
    assert module.weight.grad.eq(3).all()


def test_tokens_and_batch_size_are_the_first_tensors():
    measured = count(build(LLAMA), tokens(LLAMA, batch_size=2))
    assert (measured.batch_size, measured.tokens) == (2, 10)
    assert measured.per_token == LLAMA.flops("dense").per_token
    assert measured.to_dict()["model"]["title"] == "Llama"
    assert measured.mfu is not None
    meter = fc.Meter(count(build(LLAMA), tokens(LLAMA), level="causal"), 1, warmup_steps=0)
    assert meter.tokens_per_step == 5


def test_evaluation_has_no_backward_pass():
    measured = count(build(LLAMA, training=False), tokens(LLAMA), backward=False)
    assert (measured.forward, measured.backward) == (
        LLAMA.flops("dense", training=False).total,
        0,
    )
    assert not measured.training


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: count(3), "module = 3: expected a torch.nn.Module"),
        (lambda: count(nn.Linear(2, 2), drawn(1, 2), level="executed"), "level = 'executed'"),
        (lambda: count(nn.Linear(2, 2), drawn(1, 2), backward=1), "backward = 1"),
        (lambda: count(nn.Linear(2, 2), drawn(1, 2), batch_size=0), "batch_size = 0"),
        (lambda: count(nn.Linear(2, 2), drawn(1, 2), names=["0"]), r"names = \['0'\]"),
        (lambda: count(nn.Linear(2, 2), drawn(1, 2), names={"0": ("a",)}), "a layer and its terms"),
        (lambda: count(nn.ReLU(), drawn(1, 2)), "give backward=False"),
        (lambda: count(torch.compile(nn.Linear(2, 2)), drawn(1, 2)), "is compiled"),
    ],
)
def test_arguments_are_checked(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


@pytest.mark.parametrize(
    "config",
    [
        dict(model_type="llama", num_key_value_heads=1),
        # On a CPU, PyTorch does not fuse attention with dropout.
        dict(model_type="gpt2", n_positions=16, n_embd=8, n_head=2, n_layer=2, attn_pdrop=0.0),
    ],
    ids=lambda config: config["model_type"],
)
@pytest.mark.parametrize("level", ["dense", "causal"])
def test_networks_of_transformers_as_they_are_by_default(config, level):
    transformers = pytest.importorskip("transformers")
    config = config | dict(
        vocab_size=13, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
        num_attention_heads=2, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    of_class = transformers.CONFIG_MAPPING[config["model_type"]].from_dict(config)
    network = transformers.AutoModelForCausalLM.from_config(of_class)
    assert network.config._attn_implementation == "sdpa"
    measured = count(network, torch.zeros(2, 6, dtype=torch.long), level=level)
    formula = fc.from_hf(config, 6).flops(level, batch_size=2)
    assert (measured.forward, measured.backward) == (formula.forward, formula.backward)
    assert measured.not_counted == ()


def test_it_loads_no_kernels():
    code = "import sys, flopcount as fc; fc.torch.count; print('kernels' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
