"""The page of compiled kernels: whole, current, and loud where it is not. Nothing is compiled."""

import dataclasses
from pathlib import Path

import pytest

import kernels.attention
from kernels.attention.tilings import Tiling
from validate import compiled_record
from validate.compiled_record import (
    COLUMNS,
    NAMES,
    digest,
    expected_kernels,
    launch_of,
    padding,
    padding_of_widths,
    page,
    shipped_launches,
    spread,
    stale,
    summary,
)
from validate.witnesses import compiled_code
from validate.witnesses.compiled_code import DTYPES, Launch

ROWS = compiled_record.read()
of_the_record = pytest.mark.record("python -m validate.compiled_record")


def test_every_padded_head_dim_is_shipped():
    launches = shipped_launches()
    assert len(launches) == len(set(launches))
    for dtype in DTYPES:
        for padded in range(16, 257, 16):
            of = [x for x in launches if x.dtype == dtype and -(-x.head_dim // 16) * 16 == padded]
            assert {(x.prefix > 0, x.group > 1, x.turned) for x in of} == {
                (True, False, False), (False, False, False), (True, True, False),
                (True, False, True),
            }  # fmt: skip


@of_the_record
def test_what_is_recorded_was_compiled_from_the_code_as_it_is():
    assert ROWS
    assert stale(ROWS, {launch_of(row) for row in ROWS if row["kernel"] in NAMES}) == []


@of_the_record
def test_every_shipped_launch_has_been_compiled():
    assert stale(ROWS, shipped_launches()) == []


@of_the_record
def test_no_recorded_kernel_has_a_fault():
    assert [row for row in ROWS if row["faults"]] == []
    assert {(row["stack"], row["spill stores"]) for row in ROWS} == {("0", "0")}


@of_the_record
def test_the_page_is_what_the_record_says():
    assert compiled_record.PAGE.read_text() == page(ROWS)


@of_the_record
def test_the_record_has_the_tilings_that_are_shipped():
    for row in ROWS:
        if row["kernel"] in NAMES:
            tiling = launch_of(row).shipped[NAMES[row["kernel"]]]
            recorded = [int(row[column]) for column in ("queries", "keys", "warps")]
            assert recorded == list(tiling[:3]), row


@of_the_record
def test_a_launch_whose_kernel_is_missing_is_stale():
    gone = next(row for row in ROWS if row["kernel"] == "attention_forward")
    launch = launch_of(gone)
    assert stale(ROWS, [launch]) == []
    assert stale([row for row in ROWS if row is not gone], [launch]) == [launch]


@of_the_record
def test_a_changed_tiling_makes_its_launches_stale(monkeypatch):
    shipped = compiled_code.shipped_tiling

    def changed(name, head_dim, size, keys):
        found = shipped(name, head_dim, size, keys)
        return found._replace(num_stages=7) if (name, size) == ("query", 4) else found

    launches = shipped_launches()
    assert stale(ROWS, launches) == []
    monkeypatch.setattr(compiled_code, "shipped_tiling", changed)
    changed_launches = [x for x in launches if x.dtype == "float32"]
    compiling = [x for x in changed_launches if expected_kernels(launches)[x]]
    assert stale(ROWS, launches) == compiling


def test_changed_code_makes_all_launches_stale_and_changed_comments_none(monkeypatch, tmp_path):
    folder = Path(kernels.attention.__file__).parent
    for name in compiled_code.SOURCES:
        (tmp_path / name).write_text((folder / name).read_text())
    package = dataclasses.make_dataclass("package", [("__file__", str)])
    moved = package(str(tmp_path / "__init__.py"))
    monkeypatch.setattr(compiled_code.kernels, "attention", moved)
    before, source = digest(Launch("float16", 64)), (tmp_path / "forward.py").read_text()
    try:
        for old, new, same in (
            ('"""The forward kernel.', '"""The kernel.', True),
            ("# The diagonal comes first", "# First comes the diagonal", True),
            ("elements * size + rows", "elements * size - rows", True),  # what is declared
            ("tl.exp2(row_max - new_max)", "tl.exp2(new_max - row_max)", False),
        ):
            assert old in source
            (tmp_path / "forward.py").write_text(source.replace(old, new))
            compiled_code.kernel_code.cache_clear()
            assert (digest(Launch("float16", 64)) == before) is same
    finally:
        compiled_code.kernel_code.cache_clear()


def test_the_page_says_loudly_what_is_missing_and_what_spills():
    bad = [row | {"faults": "spills 8 bytes, stack of 8"} for row in ROWS[:1]] + ROWS[1:]
    assert "**1 of them with a fault**" in page(bad)
    assert "**spills 8 bytes, stack of 8**" in page(bad)
    launches = shipped_launches()
    needed = sum(map(bool, expected_kernels(launches).values()))
    assert f"**{needed} of {len(launches)} launches have not been compiled**" in page([])
    assert "**not compiled**" in page([])


def test_lines_of_the_page():
    assert spread(["127", "120", "127"]) == "120–127"
    assert spread(["8", "8"]) == "8"
    cells = dict.fromkeys(COLUMNS, "1") | {
        "dtype": "float32", "head dim": "80", "kernel": "attention_forward",
        "instructions": "", "faults": "", "registers": "90",
    }  # fmt: skip
    lines = summary([cells, cells | {"registers": "80"}], ["float32"])
    assert len(lines) == 16 * 3
    assert lines[4 * 3] == [
        80, "forward", "1 × 1", "1", "80–90", "1", "1", "FMA, full fp32", 2, "none",
    ]  # fmt: skip


def test_padded_work():
    assert padding([54, 73, 128]) == [
        ["54", "64", "1.185"], ["73", "80", "1.096"], ["128", "128", "1.000"],
    ]  # fmt: skip
    widths = padding_of_widths()
    assert widths[4] == ["80", "65 to 80", "1.231"]
    assert len(widths) == 16


def test_dtypes_are_checked():
    with pytest.raises(ValueError, match="dtypes = 'float8': expected one of"):
        compiled_record.main(("float8",))


def test_tilings_are_told_apart():
    assert digest(Launch("float16", 64)) == digest(Launch("bfloat16", 49))
    assert digest(Launch("float16", 64)) != digest(Launch("float32", 64))


def test_a_tiling_tuned_for_more_keys_is_compiled_too(monkeypatch):
    few, many = Tiling(64, 64, 4, 2), Tiling(64, 32, 4, 2)

    def chosen(name, head_dim, size, keys):
        if (name, size, -(-head_dim // 16) * 16) == ("forward", 2, 80):
            return few if keys < 2304 else many
        return Tiling(16, 16, 4, 1)

    tuned = {("forward", 2, 80): {512: few, 1280: few, 2304: many}}
    monkeypatch.setattr(compiled_record, "tuned_tilings", lambda: tuned)
    monkeypatch.setattr(compiled_code, "shipped_tiling", chosen)
    launches = shipped_launches()
    of = [x for x in launches if x.dtype == "bfloat16" and 64 < x.head_dim <= 80]
    assert {x.keys for x in of} == {512, 1280, 2304}
    # With and without a prefix, whatever the number of keys, and with grouped heads.
    assert {(x.keys, x.prefix, x.group) for x in of} >= {
        (2304, 0, 1), (2304, 768, 1), (2304, 768, 4),
    }  # fmt: skip
    assert {x.keys for x in launches if x.dtype == "float32" or x.head_dim > 80} == {None}
    expected = expected_kernels(launches)
    # Of the launch with most keys, the forward kernel alone is another.
    most = Launch("bfloat16", 73, 768, keys=2304)
    assert expected[most] == {("attention_forward", "", "")}
    assert expected[dataclasses.replace(most, prefix=0)] == {("attention_forward", "", "")}
    assert expected[dataclasses.replace(most, keys=512)] == set()
    assert len(expected[dataclasses.replace(most, keys=1280)]) == 6
    assert set(stale([], launches)) == {x for x in launches if expected[x]}


@of_the_record
def test_rows_of_launches_that_are_gone_are_dropped(monkeypatch, tmp_path):
    gone = ROWS[0] | {"tuned for": "4096"}
    written = []
    monkeypatch.setattr(compiled_record, "read", lambda: [*ROWS, gone])
    monkeypatch.setattr(compiled_record, "write", lambda rows: written.append(list(rows)))
    assert compiled_record.main(jobs=1) == 0
    assert written[-1] == ROWS
