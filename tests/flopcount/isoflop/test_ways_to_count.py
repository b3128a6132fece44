"""Where a budget has its optimum by each way to count: closed forms, brute force, refusals."""

import dataclasses
import math

import numpy as np
import pytest
import sympy

import flopcount as fc
from flopcount.conventions import CONVENTIONS
from flopcount.isoflop import ways_to_count
from flopcount.isoflop.laws import CHINCHILLA_SURFACE, LossSurface, chinchilla_approach_2
from flopcount.isoflop.ways_to_count import compare_optima

LLAMA = fc.Llama(
    vocab_size=1000, seq_len=128, num_channels=64, num_layers=2, num_heads=2,
    num_key_value_heads=1, intermediate_size=160,
)  # fmt: skip
GPT = fc.Decoder(vocab_size=500, seq_len=64, num_channels=8, num_layers=1, num_heads=1)


def found(model, budget, **options):
    return {row.name: row.numbers for row in compare_optima(model, budget, **options).rows}


@pytest.mark.parametrize("budget", [1e15, 1e19, 1e22])
def test_six_n_has_the_closed_form(budget):
    # f = 6N, so that N·D = C/6 and N_opt is equation 4 of Hoffmann et al.
    numbers = found(LLAMA, budget)["6n"]
    assert numbers.n_opt == pytest.approx(CHINCHILLA_SURFACE.n_opt(budget), rel=1e-6)
    assert numbers.d_opt == pytest.approx(CHINCHILLA_SURFACE.d_opt(budget), rel=1e-6)


def test_n_of_a_mixture_is_what_a_token_uses():
    mixture = fc.MixtureLM(
        vocab_size=320, seq_len=64, num_channels=64, num_layers=4, num_heads=4, head_dim=16,
        intermediate_size=128, num_experts=8, experts_per_token=2, expert_size=96,
    )  # fmt: skip
    compared = compare_optima(mixture, 1e18)
    rows = {row.name: row.numbers for row in compared.rows}
    # 6n counts 6 times the active parameters, so that it has the closed form in them.
    assert rows["6n"].n_opt == pytest.approx(CHINCHILLA_SURFACE.n_opt(1e18), rel=1e-6)
    # The Trainer counts the six that a token is not routed to, too.
    assert rows["hf-trainer"].n_moved < -0.3
    assert "N: parameters that a token uses" in str(compared)
    assert "N: parameters that a token uses" not in str(compare_optima(GPT, 1e15))


def test_losses_are_printed_with_digits_that_tell_them_apart():
    optima = compare_optima(GPT, 1e15)
    cells = {row[0]: row[-1] for row in optima._tables()[0].rows}
    assert cells["causal"] == "0"
    for row in optima.rows:
        if row.numbers is not None and row.name != "causal":
            assert float(cells[row.name]) == pytest.approx(row.numbers.excess_loss, rel=0.05)


def test_a_count_that_is_twice_as_much_halves_the_budget(monkeypatch):
    def twice(inputs):
        return tuple((layer, term, 2 * n) for layer, term, n in CONVENTIONS["6n"].self_part(inputs))

    doubled = dataclasses.replace(CONVENTIONS["6n"], name="12n", self_part=twice)
    monkeypatch.setitem(CONVENTIONS, "12n", doubled)
    numbers = found(LLAMA, 1e19)
    assert numbers["12n"].n_opt == pytest.approx(CHINCHILLA_SURFACE.n_opt(5e18), rel=1e-6)
    half = found(LLAMA, 5e18)["6n"]
    assert numbers["12n"].d_opt == pytest.approx(half.d_opt, rel=1e-6)
    # It really spends half of what 6N at the same N would.
    assert numbers["12n"].spent == pytest.approx(half.spent / 2, rel=1e-6)


@pytest.mark.parametrize("way", ["causal", "dense", "kaplan", "6n", "hf-trainer", "gpt-neox"])
@pytest.mark.parametrize("budget", [3e13, 1e15])
def test_members_of_the_family_are_best_where_it_says(way, budget):
    numbers = found(GPT, budget)[way]
    losses = {}
    for s in range(1, 81):
        member = fc.Decoder(
            vocab_size=500, seq_len=64, num_channels=8 * s, num_layers=s, num_heads=s
        )
        count = member.flops(way) if way in ("causal", "dense") else member.flops(convention=way)
        losses[s] = CHINCHILLA_SURFACE.loss(member.params().total, budget / float(count.per_token))
    best = min(losses, key=losses.get)
    assert 2 < best < 80
    assert abs(numbers.scale - best) < 1
    least = CHINCHILLA_SURFACE.loss(numbers.n_opt, numbers.d_opt)
    assert losses[best] - 0.01 < least <= losses[best]


def test_what_moves_and_by_how_much():
    numbers = found(GPT, 1e15)
    causal = numbers["causal"]
    assert (causal.n_moved, causal.d_moved, causal.excess_loss, causal.spent) == (0, 0, 0, 1)
    for entry in filter(None, numbers.values()):
        assert entry.n_moved == entry.n_opt / causal.n_opt - 1
        assert entry.d_moved == entry.d_opt / causal.d_opt - 1
        assert entry.excess_loss >= -1e-12
    # Without the output layer small models look cheap: the optimum moves to them, costs more than
    # the budget, and what is lost grows with the way it moves.
    assert numbers["kaplan"].n_moved < -0.01
    assert numbers["kaplan"].spent > 1
    assert numbers["kaplan"].excess_loss > numbers["dense"].excess_loss


def test_layers_of_several_kinds_have_their_share():
    gemma = fc.CausalLM(
        vocab_size=500, seq_len=64, num_channels=16, num_layers=5, num_heads=2,
        intermediate_size=40, attention=("sliding", "sliding", "full"), window=8,
    )  # fmt: skip
    numbers = found(gemma, 1e15)["causal"]
    # At s = 3 there are 15 layers, 5 of them full.
    size = ways_to_count._polynomial([840, 1680, 2520, 3360, 4200], [
        dataclasses.replace(
            gemma, num_channels=16 * s, num_layers=5 * s, num_heads=2 * s, intermediate_size=40 * s
        ).flops().per_token
        for s in (840, 1680, 2520, 3360, 4200)
    ])  # fmt: skip
    three = dataclasses.replace(
        gemma, num_channels=48, num_layers=15, num_heads=6, intermediate_size=120
    )
    assert size(3) == pytest.approx(float(three.flops().per_token), rel=1e-9)
    assert math.isfinite(numbers.n_opt)


def test_what_is_no_cubic_is_refused():
    with pytest.raises(ValueError, match="expected a cubic in the factor"):
        ways_to_count._polynomial([1, 2, 3, 4, 5], [s**4 for s in (1, 2, 3, 4, 5)])


def test_a_prefix_is_covered_by_the_articles_counts_alone():
    model = fc.PerceiverAR(
        vocab_size=500, num_latents=64, num_prefix=128, num_channels=16, num_layers=2, num_heads=2,
        prefix_dropout=0.5,
    )  # fmt: skip
    total = compare_optima(model, 1e15)
    covered = {row.name for row in total.rows if row.numbers is not None}
    assert covered == {"causal", "dense", "article", "article-update"}
    assert {row.lacks for row in total.rows if row.numbers is None and row.name == "6n"} == {
        ("a prefix",)
    }
    own = {row.name for row in compare_optima(model, 1e15, part="self").rows if row.numbers}
    assert own >= covered | {"6n", "megatron-lm", "kaplan"}
    assert "not covered" in str(total)
    assert total.to_dict()["rows"][0]["numbers"]["n_moved"] == 0


def test_a_surface_of_ones_own():
    flat = LossSurface(1.0, 100.0, 100.0, 0.5, 0.5, "example")
    # At α = β and A = B N·D = C/6 is best at N = D.
    numbers = found(LLAMA, 6e14, law=flat)["6n"]
    assert numbers.n_opt == pytest.approx(1e7, rel=1e-6) == pytest.approx(numbers.d_opt, rel=1e-6)


def test_refusals():
    n = sympy.Symbol("n", integer=True, positive=True)
    sizes = dict(vocab_size=9, num_channels=4, num_layers=1, num_heads=2)
    for model in (fc.Decoder(**sizes, seq_len=n), fc.Decoder(**sizes, seq_len=np.array([3, 5]))):
        with pytest.raises(TypeError, match=r"model = .*expected ints, no arrays or symbols"):
            compare_optima(model, 1e18)
    with pytest.raises(TypeError, match="model = 3: expected a flopcount architecture"):
        compare_optima(3, 1e18)
    with pytest.raises(TypeError, match=r"law = .*expected a flopcount\.isoflop.*\.LossSurface"):
        compare_optima(LLAMA, 1e18, law=chinchilla_approach_2())
    with pytest.raises(ValueError, match="budget = 0"):
        compare_optima(LLAMA, 0)
    with pytest.raises(ValueError, match="part = 'cross'"):
        compare_optima(LLAMA, 1e18, part="cross")
    for budget in (1.0, 1e60):
        with pytest.raises(ValueError, match=r"budget = .*its optimum lies at a model"):
            compare_optima(LLAMA, budget)
