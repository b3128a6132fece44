"""The executed formula equals what the kernels issue in the interpreter, and an error is found."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings

import flopcount as fc
from flopcount import masks
from kernels.attention import backward, forward, tilings
from kernels.attention.tilings import TILINGS, Tiling
from validate.witnesses import configurations, kernel_tally
from validate.witnesses.kernel_tally import AttentionShape, tally

SMALL = AttentionShape(1, 70, 40, 1, 1, 9)


def differences(shape):
    return next(kernel_tally.differences((shape,)))[1]


def wrong(shape):
    return {name for name, missed in differences(shape).items() if missed}


# One head dim for each tiling that is shipped, with lengths that end inside blocks.
@pytest.mark.parametrize(
    ("head_dim", "dtype"),
    sorted(
        {
            (width - 7, torch.float16 if size == 2 else torch.float32)
            for (_, size), by_width in TILINGS.items()
            for width in by_width
        },
        key=str,
    ),
    ids=str,
)
def test_every_shipped_tiling(head_dim, dtype):
    assert not wrong(AttentionShape(1, 131, 66, 1, 1, head_dim, dtype))


def test_every_tuned_tiling():
    for shape in kernel_tally.tuned_shapes():
        assert not wrong(shape)


def forward_launch(shape):
    """The launch of the forward kernel, among those of the passes over rows."""
    return next(launch for launch in tally(shape) if launch.name == "attention_forward")


def test_tilings_tuned_by_keys_are_counted_as_they_run(monkeypatch):
    few, many = Tiling(64, 64, 4, 2), Tiling(64, 32, 4, 2)
    tuned = {(name, 2, 80): {512: few, 600: many} for name in ("forward", "query")}
    monkeypatch.setattr(tilings, "_tuned", lambda: tuned)
    monkeypatch.setattr(kernel_tally, "tuned_tilings", lambda: tuned)
    shapes = kernel_tally.tuned_shapes()
    assert shapes == tuple(AttentionShape(1, 131, keys - 131, 1, 1, 73) for keys in (512, 600))
    assert not any(wrong(shape) for shape in shapes)
    constants = [forward_launch(shape).constants for shape in shapes]
    assert [(x["BLOCK_QUERIES"], x["BLOCK_KEYS"]) for x in constants] == [(64, 64), (64, 32)]


@settings(max_examples=6)
@given(configurations.kernel_shapes())
def test_drawn_shapes(shape):
    assert not wrong(shape)


def test_loops_and_their_iterations():
    # Tiles of 128 × 64: the diagonal's block has ⌈70/64⌉ of them, none lies below it, and the
    # prefix of 40 has no whole block and an end. Each costs 2 products of 2 · 128 · 64 · 16.
    launch = forward_launch(SMALL)
    assert launch.trips == [2, 0, 0, 1]
    assert launch.operations == [n * 2 * 2 * 128 * 64 * 16 for n in launch.trips]
    assert launch.outside == 0


def test_a_dot_that_is_left_out_of_the_tally_is_found(monkeypatch):
    issued = kernel_tally._Loop.issued
    skipped = []

    def all_but_one(self, operations):
        if skipped:
            issued(self, operations)
        skipped.append(operations)

    monkeypatch.setattr(kernel_tally._Loop, "issued", all_but_one)
    assert differences(SMALL)["self forward"] == skipped[0]


def test_a_kernel_that_visits_one_more_tile_is_found(monkeypatch):
    # Every loop of the forward kernel goes one block of keys further, and masks what it finds.
    attend = forward.attend_tiles

    def further(*arguments):
        last, width = arguments[4], arguments[7]
        return attend(*arguments[:4], last + width, *arguments[5:])

    monkeypatch.setattr(forward, "attend_tiles", further)
    assert wrong(SMALL) == {"self forward", "cross forward"}


def test_a_product_outside_of_loops_is_found(monkeypatch):
    zero = backward.zero_rows

    def multiplied(rows, parts):
        tile = zero(rows, parts)
        return backward.add_product_over_rows(tile, zero(rows, ((0, 16),))[0], zero(16, parts))

    monkeypatch.setattr(backward, "zero_rows", multiplied)
    assert wrong(SMALL) == {"outside"}


@pytest.mark.parametrize(
    ("mask", "owner", "parts"),
    [
        (masks.Full, "queries", {"cross forward", "cross backward"}),
        (masks.Causal, "queries", {"self forward", "self backward"}),
        (masks.Causal, "keys", {"self backward"}),
    ],
)
def test_a_formula_that_is_off_by_a_tile_is_found(monkeypatch, mask, owner, parts):
    formula = mask.tiles
    monkeypatch.setattr(
        mask,
        "tiles",
        lambda self, n, s, block, by: formula(self, n, s, block, by) + (by == owner),
    )
    assert wrong(SMALL) == parts


def test_wrong_padding_and_a_wrong_number_of_products_are_found(monkeypatch):
    shipped = kernel_tally.tiling_of
    for change in ({"head_dim_multiple": 32}, {"key_value_products": 5}):
        monkeypatch.setattr(
            kernel_tally,
            "tiling_of",
            lambda *sizes, change=change: dataclasses.replace(shipped(*sizes), **change),
        )
        assert wrong(SMALL)


def test_tiling_of_wide_heads():
    assert kernel_tally.tiling_of(73, 2, 512).key_value_products == 4
    assert kernel_tally.tiling_of(129, 2, 512).key_value_products == 5
    assert isinstance(kernel_tally.tiling_of(73, 4, 512), fc.Tiling)


def test_how_the_kernels_were_made_decides_not_the_environment_now(monkeypatch):
    # Collecting tests sets the variable in a process whose kernels may have been made without it.
    here = kernel_tally.issued((SMALL,))
    monkeypatch.setattr(kernel_tally, "INTERPRETED", False)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="before the first import"):
        tally(SMALL)
    assert kernel_tally.issued((SMALL,)) == here
