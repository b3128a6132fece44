"""Runs at equal compute: steps and tokens for each model."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flopcount as fc
from flopcount.article import EXPERIMENTS, reference_budget

PUBLISHED_STEPS = {
    "1": [50000, 31421, 21231],
    "2a": [26144, 18275, 20298, 46451, 8276],
    "2b": [26144, 18275],
}


def decoder(width, layers=1):
    return fc.Decoder(vocab_size=5, seq_len=3, num_channels=width, num_layers=layers, num_heads=1)


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.name)
def test_the_article_comes_out(experiment):
    budget = reference_budget(experiment, "article")
    runs = fc.isoflop_runs(experiment.models(), [budget], 80, convention="article", part="self")
    assert [run.steps for run in runs] == PUBLISHED_STEPS[experiment.name]


@given(st.integers(1, 10**9), st.integers(1, 50), st.integers(1, 64))
def test_steps_spend_the_budget_within_one_step(budget, width, batch_size):
    model = decoder(width)
    (run,) = fc.isoflop_runs([model], [budget], batch_size)
    step = model.flops(batch_size=batch_size).total
    assert run.flops == run.steps * step
    assert run.flops - step < budget <= run.flops
    assert run.tokens * model.flops().total == budget * 3  # 3 latent tokens a sequence


def test_budgets_outermost_and_parameters_given():
    models = [decoder(2), decoder(4)]
    runs = fc.isoflop_runs(models, [1e6, 3e6], 2)
    assert [(run.budget, run.model) for run in runs] == [
        (1e6, models[0]), (1e6, models[1]), (3e6, models[0]), (3e6, models[1])
    ]  # fmt: skip
    assert [run.num_params for run in runs[:2]] == [model.params().total for model in models]


def test_a_step_by_hand():
    # d = 2, n = 3: 3·(24·3·4 + 2·2·3·4 + 2·3·2·5) = 3·(288 + 48 + 60) = 1188 a sequence; two
    # sequences 2376. A budget of 5000 takes 3 steps and 5000·6/2376 tokens.
    (run,) = fc.isoflop_runs([decoder(2)], [5000], 2)
    assert (run.steps, run.flops, run.tokens) == (3, 3 * 2376, Fraction(5000 * 6, 2376))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(models=[]), ValueError, "models is empty"),
        (dict(budgets=[]), ValueError, "budgets is empty"),
        (dict(budgets=[0]), ValueError, "budget = 0"),
        (dict(budgets=[float("nan")]), ValueError, "budget = nan"),
        (dict(budgets=["1e9"]), TypeError, "budget = '1e9'"),
        (dict(batch_size=0), ValueError, "batch_size = 0"),
        (dict(batch_size=np.array([1, 2])), TypeError, "batch_size"),
        (dict(part="cross"), ValueError, "part = 'cross'"),
        (dict(models=["gpt2"]), TypeError, "models contains 'gpt2'"),
        (dict(models=[decoder(np.array([2, 4]))]), TypeError, "no arrays"),
        (dict(level="causal", convention="6n"), ValueError, "expected a convention alone"),
    ],
)
def test_bad_input(arguments, error, message):
    good = dict(models=[decoder(2)], budgets=[1e6], batch_size=2)
    with pytest.raises(error, match=message):
        fc.isoflop_runs(**good | arguments)
