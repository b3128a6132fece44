"""The page on fine-tuning: its table is what the counter gives."""

import re
from pathlib import Path

import flopcount as fc
from flopcount.tables import shown

PAGE = Path(__file__).parents[2] / "docs" / "fine-tuning.md"
LLAMA = fc.Llama(
    vocab_size=128256, seq_len=8192, num_channels=4096, num_layers=32, num_heads=32,
    num_key_value_heads=8, intermediate_size=14336,
)  # fmt: skip
TARGETS = '("query", "key", "value", "out", "mlp *")'
ROWS = (
    'trainable="*"',
    'trainable=("decoder.*", "output.*")',
    'trainable=("decoder.*", "output.*"), frozen_layers=16',
    'trainable=("decoder.*", "output.*"), frozen_layers=28',
    'trainable="*norm"',
    'trainable="output.*"',
    'lora_rank=16, lora_targets=("query", "value")',
    f"lora_rank=16, lora_targets={TARGETS}",
    f"lora_rank=16, lora_targets={TARGETS}, input_gradients=True",
    f"lora_rank=16, lora_targets={TARGETS}, frozen_layers=16",
)


def row(arguments):
    tuning = eval(f"fc.FineTuning({arguments})", {"fc": fc})
    count, again = LLAMA.flops(tuning=tuning), {}
    for name, options in {
        "layers": {},
        "core": {"recompute": "attention core"},
    }.items():
        options = dict(checkpointing="non-reentrant", tuning=tuning, **options)
        again[name] = f"{LLAMA.flops(**options).recompute / count.forward:.3f}"
    return [
        f"`{arguments}`",
        shown(LLAMA.params(tuning).trainable),
        f"{count.backward / count.forward:.3f}",
        f"{count.total / LLAMA.flops().total:.1%}",
        *again.values(),
    ]


def table():
    headings = [
        "`FineTuning(…)`", "trained", "backward", "of a full step",
        "again: layers", "again: attention core",
    ]  # fmt: skip
    lines = [headings, ["---"] * len(headings), *map(row, ROWS)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def test_the_table_is_what_the_counter_gives():
    assert table() in PAGE.read_text(encoding="utf-8")


def test_the_page_names_every_argument():
    page = PAGE.read_text(encoding="utf-8")
    for name in fc.FineTuning.__dataclass_fields__:
        assert f"`{name}`" in page
        assert f"--{name.replace('_', '-')}" in page


def test_a_changed_number_is_found():
    page = PAGE.read_text(encoding="utf-8")
    changed = re.sub(r"\| 2\.000 \|", "| 2.001 |", page, count=1)
    assert changed != page
    assert table() not in changed
