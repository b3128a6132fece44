"""The page of compiled kernels: whole, current, and loud where it is not. Nothing is compiled."""

import dataclasses
from pathlib import Path

import pytest

import kernels.attention
from kernels.attention.tilings import KERNELS as NAMES_OF
from kernels.attention.tilings import Tiling
from validate import compiled_record
from validate.compiled_record import (
    COLUMNS,
    NAMES,
    launch_of,
    padding,
    padding_of_widths,
    page,
    shipped_kernels,
    shipped_launches,
    spread,
    stale,
    summary,
)
from validate.witnesses import compiled_code
from validate.witnesses.compiled_code import DTYPES, Launch, kernels_of
from validate.witnesses.processes import triton_processes

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
def test_every_shipped_kernel_was_compiled_from_the_code_as_it_is():
    assert stale(ROWS, shipped_kernels()) == []
    assert len(ROWS) == len(shipped_kernels())


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
def test_a_kernel_that_is_missing_or_of_another_digest_is_stale():
    gone = next(row for row in ROWS if row["kernel"] == "attention_forward")
    for rows in ([], [gone | {"digest": "0" * 12}], [gone | {"prefix": "512"}]):
        (missing,) = stale([row for row in ROWS if row is not gone] + rows, shipped_kernels())
        assert missing.launch == launch_of(gone)
        assert missing.kernel == ("attention_forward", "", "", gone["digest"])


def changed_digests(launch):
    """Kernels' digests of a launch, and of changed ones: in a process that compiles."""
    import importlib.metadata

    import triton

    from kernels.attention import backward, forward, tiles

    def digests(launch=launch):
        compiled_code._code_digest.cache_clear()
        (found,) = kernels_of([launch])
        return {(x.name, x.causal): x.digest for x in found}

    def edited(function, old, new):
        text = function.src
        assert old in text
        function._unsafe_update_src(text.replace(old, new))
        found = digests()
        function._unsafe_update_src(text)
        return found

    query = backward.attention_query_gradient
    found = {
        "as it is": digests(),
        "code": edited(query, "    tile = zero_rows", "    # Zeros.\n    tile  =  zero_rows"),
        "docstring": edited(tiles.rows_from, "The rows from", "Rows from"),
        "query": edited(query, "tile, scale, BLOCK_QUERIES", "tile, 1.0, BLOCK_QUERIES"),
        "called": edited(forward.keys_of, "rows_of(k,", "rows_of(v,"),
    }
    forward.attention_forward.starting_line_number += 7
    found["place"] = digests()
    tiling = launch.shipped["forward"]
    for name in ("block_keys", "num_warps", "num_stages"):
        changed = tiling._replace(**{name: 2 * getattr(tiling, name)})
        found[name] = digests(dataclasses.replace(launch, tilings=(("forward", changed),)))
    with pytest.MonkeyPatch.context() as patch:
        constant = triton.language.constexpr(-3.0)
        patch.setitem(forward.attention_forward.__globals__, "LOWEST", constant)
        found["constant"] = digests()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.metadata, "version", lambda name: "3.5.0")
        found["Triton"] = digests()
    return found


def test_the_digest_is_of_what_is_compiled_and_of_nothing_else():
    with triton_processes(interpret=False) as pool:
        found = pool.submit(changed_digests, Launch("bfloat16", 73)).result()
    before = found["as it is"]
    changed = {
        what: {name for (name, _), digest in before.items() if digests[name, _] != digest}
        for what, digests in found.items()
    }
    forward, query, key_value = (NAMES_OF[name] for name in ("forward", "query", "key_value"))
    assert changed == {
        "as it is": set(), "code": set(), "docstring": set(), "place": set(),
        "query": {query}, "called": {forward, query, key_value}, "constant": {forward},
        "block_keys": {forward}, "num_warps": {forward}, "num_stages": {forward},
        "Triton": {forward, query, key_value, "row_products", "prepare_rows"},
    }  # fmt: skip


def test_changed_comments_do_not_change_the_kernels_code(monkeypatch, tmp_path):
    folder = Path(kernels.attention.__file__).parent
    for name in compiled_code.SOURCES:
        (tmp_path / name).write_text((folder / name).read_text())
    package = dataclasses.make_dataclass("package", [("__file__", str)])
    moved = package(str(tmp_path / "__init__.py"))
    monkeypatch.setattr(compiled_code.kernels, "attention", moved)
    before, source = compiled_code.kernel_code(), (tmp_path / "forward.py").read_text()
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
            assert (compiled_code.kernel_code() == before) is same
    finally:
        compiled_code.kernel_code.cache_clear()


def test_the_page_says_loudly_what_is_missing_and_what_spills():
    bad = [row | {"faults": "spills 8 bytes, stack of 8"} for row in ROWS[:1]] + ROWS[1:]
    assert "**1 of them with a fault**" in page(bad)
    assert "**spills 8 bytes, stack of 8**" in page(bad)
    assert (
        f"**{len(shipped_kernels())} of {len(shipped_kernels())} have not been compiled**"
        in page([])
    )
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


@of_the_record
def test_rows_of_launches_that_are_gone_are_dropped(monkeypatch, tmp_path):
    gone = ROWS[0] | {"tuned for": "4096"}
    written = []
    monkeypatch.setattr(compiled_record, "read", lambda: [*ROWS, gone])
    monkeypatch.setattr(compiled_record, "write", lambda rows: written.append(list(rows)))
    assert compiled_record.main(jobs=1) == 0
    assert written[-1] == ROWS
