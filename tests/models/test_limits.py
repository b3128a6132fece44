"""Every field of a configuration has its limits, and nothing is done beyond them."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin, get_type_hints

import pytest

from models.__main__ import main
from models.data.corpus import load_corpus
from models.limits import Must, check_fields
from models.sweeps.plan import SweepConfig, plan_runs
from models.sweeps.run import run_sweep
from models.training.run import TrainConfig, train


def leaves(kind, path=()):
    """Path and type of every field of a dataclass that is none itself."""
    for name, field in get_type_hints(kind, include_extras=True).items():
        if dataclasses.is_dataclass(field):
            yield from leaves(field, (*path, name))
        else:
            yield (*path, name), field


def parts(kind):
    """The types in a type, limits removed: those of a tuple's values, and of what may be None."""
    if get_origin(kind) in (Annotated, Literal) or not get_args(kind):
        return [kind]
    return [part for each in get_args(kind) for part in parts(each)]


def changed(config, path, value):
    first, *rest = path
    if rest:
        value = changed(getattr(config, first), rest, value)
    return dataclasses.replace(config, **{first: value})


def bad_values(kind):
    """What a field may not hold, by its type: beyond its limits, or of another type."""
    if get_origin(kind) is tuple:
        inner = [part for part in get_args(kind) if part is not Ellipsis]
        return ["1", [1], *((bad,) * len(inner) for bad in bad_values(inner[0]))]
    (kind,) = (part for part in parts(kind) if part not in (type(None), Ellipsis))
    plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    numbers = [math.nan, math.inf, -math.inf, "1", None if kind is plain else -1, True]
    return {
        int: [-1, -(10**30), 1.5, *numbers],
        float: [-1.0, -1e-300, *numbers],
        bool: [1, "yes"],
        str: [1, b"text"],
        Path: ["folder", 1],
    }.get(plain, ["nosuch", 1])


FIELDS = [
    pytest.param(config, path, kind, id=f"{config.__name__}-{'.'.join(path)}")
    for config in (TrainConfig, SweepConfig)
    for path, kind in leaves(config)
]


@pytest.mark.parametrize("config", [TrainConfig, SweepConfig])
def test_every_number_has_limits(config):
    numbers = 0
    for path, kind in leaves(config):
        for part in parts(kind):
            assert part not in (int, float), f"{'.'.join(path)} has no limits"
            if get_origin(part) is Annotated:
                numbers += 1
                assert isinstance(get_args(part)[1], Must)
    assert numbers >= 20


def test_a_number_without_limits_is_seen():
    @dataclasses.dataclass
    class Careless:
        steps: int = 1

    assert [part for _, kind in leaves(Careless) for part in parts(kind)] == [int]


@pytest.mark.parametrize(("owner", "path", "kind"), FIELDS)
def test_every_field_is_checked_before_anything_is_made(
    train_config, sweep_config, tmp_path, monkeypatch, owner, path, kind
):
    monkeypatch.chdir(tmp_path)
    good, work = {TrainConfig: (train_config, train), SweepConfig: (sweep_config, run_sweep)}[owner]
    for value in bad_values(kind):
        config = changed(good, path, value)
        with pytest.raises(
            (ValueError, TypeError), match=rf"^{'.'.join(path)}(\[\d\])* must .*, got"
        ):
            work(config, tmp_path / "folder")
        assert not list(tmp_path.iterdir())
        if path[0] == "corpus":
            with pytest.raises((ValueError, TypeError), match=f"^{path[1]}"):
                load_corpus(config.corpus)


def test_good_configurations_pass(train_config, sweep_config):
    for config in (train_config, sweep_config, TrainConfig()):
        check_fields(config)
    # The ends of the ranges.
    for path, value in [
        (("recipe", "final_fraction"), 0),
        (("recipe", "final_fraction"), 1.0),
        (("recipe", "warmup_steps"), 0),
        (("recipe", "gradient_clip"), 1),
        (("model", "num_prefix"), 0),
        (("model", "prefix_dropout"), 0.0),
        (("seed",), 2**64 - 1),
        (("validation_context",), None),
        (("execution", "prefetch"), 0),
    ]:
        check_fields(changed(train_config, path, value))


def test_a_budget_below_ten_steps_is_refused(sweep_config):
    """One FLOP once gave a run of one step, 76,000 times its budget."""
    (run, *_) = plan_runs(dataclasses.replace(sweep_config, shapes=((4, 1),), budgets=(2e7,)))
    step = run.flops / run.config.steps
    for budget in (1.0, 5e-324, step, 8.9 * step):
        config = dataclasses.replace(sweep_config, budgets=(2e7, budget), shapes=((4, 1),))
        with pytest.raises(ValueError, match=r"budgets must afford 10 steps .* step of 4x1 takes"):
            plan_runs(config)
    config = dataclasses.replace(sweep_config, budgets=(9.1 * step,), shapes=((4, 1),))
    assert [run.config.steps for run in plan_runs(config)] == [10]


def test_a_context_without_room_is_refused_before_anything_is_made(train_config, tmp_path):
    # The prefix has 6 positions; the validation text is one document of 1,361 tokens at most.
    for context, message in ((5, "must be model.num_prefix = 6"), (9999, r"10008 tokens, got")):
        config = dataclasses.replace(train_config, validation_context=context)
        with pytest.raises(ValueError, match=rf"validation_context .*{message}"):
            train(config, tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train x --recipe.learning-rate -1", "recipe.learning_rate must be a finite number above"),
        ("sweep x demo --recipe.learning-rate -1", "recipe.learning_rate must be a finite number"),
        ("plan demo --recipe.learning-rate nan", "recipe.learning_rate must be a finite number"),
        ("plan demo --budgets 1", "budgets must afford 10 steps of every shape, got 1 FLOPs"),
        ("sweep x demo --budgets 1", "budgets must afford 10 steps of every shape, got 1 FLOPs"),
        ("train x --execution.prefetch -1", "execution.prefetch must be at least 0, got -1"),
        ("train x --seed -1", "seed must be from 0 to 2^64 - 1, got -1"),
    ],
)
def test_the_command_line_says_it_in_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["models", *arguments.split()])
    assert main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")
    assert not list(tmp_path.iterdir())
