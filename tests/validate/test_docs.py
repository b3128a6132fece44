"""Generated pages are current."""

import dataclasses

from flopcount.conventions import CONVENTIONS
from validate import who_counts_what


def test_who_counts_what_is_current():
    assert who_counts_what.PAGE.read_text() == who_counts_what.page(), (
        "run python -m validate.who_counts_what --write"
    )


def test_a_changed_convention_makes_the_page_stale(monkeypatch):
    changed = dataclasses.replace(CONVENTIONS["kaplan"], self_part=CONVENTIONS["6n"].self_part)
    monkeypatch.setitem(CONVENTIONS, "kaplan", changed)
    assert who_counts_what.PAGE.read_text() != who_counts_what.page()


def test_it_leads_with_the_two_findings():
    text = who_counts_what.page()
    start = text[: text.index("## Experiment 1")]
    assert "misses one of its two products**: -25.0%" in start  # k·n·2d of k(4d² + 4dn), n = d
    assert "drops an output layer that is really computed**: -34.8%" in start


def test_the_commands_write_what_they_print(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(who_counts_what, "PAGE", tmp_path / "docs" / "page.md")
    assert who_counts_what.main() == 0
    assert who_counts_what.main(write=True) == 0
    assert (tmp_path / "docs" / "page.md").read_text() == capsys.readouterr().out
