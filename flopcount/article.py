"""The numbers of "Training compute-optimal Perceiver AR language models" (January 2023), computed.

Every figure that the article prints comes out of the ``article`` convention, digit for digit. The
same tables stand beside it at level ``causal`` and by the author's own later correction.
"""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from flopcount.architectures import PerceiverAR
from flopcount.isoflop.laws import chinchilla_approach_1, chinchilla_approach_2
from flopcount.tables import Shown, Table, paragraph

if TYPE_CHECKING:
    from flopcount.count import Count

BATCH_SIZE = 80
NUM_LATENTS = 512
PREFIX_DROPOUT = 0.5
COUNTINGS = ("article", "causal", "article-update")
READ_WITH_CARE = (
    "One attention product over the full square is nearly both products over the causal half: the "
    "causal self part is the article's + 2dL - 4d per token, {self_change:+.3%} for Experiment 1's "
    "reference model, so D_iso and steps barely move. The cross part does: {cross_change:+.1%}, "
    "because the article counts one of its two attention products. The author's correction drops "
    "the output layer, which is really computed ({update_change:+.1%} in the self part)."
)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """An experiment of the article.

    Attributes:
        name: The article's name for it.
        setup_table: The table that holds its setup.
        ratios_table: The table that holds its ratios; empty where the article prints none.
        vocab_size: V.
        num_prefix: m.
        shapes: (num_channels, num_layers) of each model; the first is the reference model.
        reference_steps: Training steps of the reference model, which set the budget.
    """

    name: str
    setup_table: str
    ratios_table: str
    vocab_size: int
    num_prefix: int
    shapes: tuple[tuple[int, int], ...]
    reference_steps: int

    def models(self) -> tuple[PerceiverAR, ...]:
        """The experiment's models, n = 512, 8 heads and p = 0.5 in all of them."""
        return tuple(
            PerceiverAR(
                vocab_size=self.vocab_size,
                num_latents=NUM_LATENTS,
                num_prefix=self.num_prefix,
                num_channels=num_channels,
                num_layers=num_layers,
                prefix_dropout=PREFIX_DROPOUT,
            )
            for num_channels, num_layers in self.shapes
        )


EXPERIMENTS = (
    Experiment("1", "Table 1", "Table 2", 32_000, 1536, ((512, 9), (624, 11), (728, 13)), 50_000),
    Experiment(
        "2a",
        "Table 3",
        "Table 4",
        262,
        3584,
        ((512, 9), (584, 10), (584, 9), (432, 7), (768, 13)),
        26_144,
    ),
    Experiment("2b", "Table 5", "", 262, 1536, ((512, 9), (584, 10)), 26_144),
)


@dataclasses.dataclass(frozen=True)
class Setup:
    """One row of a setup table, unrounded.

    Attributes:
        num_channels: d.
        num_layers: L.
        num_steps: ⌈D_iso / n / batch⌉.
        d_iso: Latent tokens at which the self part reaches the budget: C_ref / (FLOPs per token).
        n: Parameters.
        n_cross: Those of the prefix positions.
        n_self: The others.
        c_cross: Training FLOPs of the cross part over D_iso tokens.
        c_self: Training FLOPs of the self part over D_iso tokens: C_ref.
        c_self_approx: 6 · N_self · D_iso.
    """

    num_channels: int
    num_layers: int
    num_steps: int
    d_iso: Fraction
    n: int
    n_cross: int
    n_self: int
    c_cross: Fraction
    c_self: Fraction
    c_self_approx: Fraction

    @property
    def c(self) -> Fraction:
        """Training FLOPs of both parts."""
        return self.c_self + self.c_cross

    def cells(self) -> dict[str, str]:
        """The row as the article's setup tables print it."""
        rounded = {
            "D_iso": self.d_iso,
            "N": self.n,
            "N_cross": self.n_cross,
            "N_self": self.n_self,
            "C": self.c,
            "C_cross": self.c_cross,
            "C_self": self.c_self,
            "Ĉ_self": self.c_self_approx,
        }
        return {
            "num_channels": str(self.num_channels),
            "num_layers": str(self.num_layers),
            "num_steps": str(self.num_steps),
            **{name: f"{float(value):.2e}" for name, value in rounded.items()},
        }

    def ratios(self) -> dict[str, str]:
        """The row as the article's ratio tables print it."""
        return {
            "N_cross/N": f"{self.n_cross / self.n:.4f}",
            "C_cross/C": f"{float(self.c_cross / self.c):.4f}",
            "C_self/Ĉ_self": f"{float(self.c_self / self.c_self_approx):.4f}",
        }


def count_as(model: PerceiverAR, counting: str) -> Count:
    """The training count of ``model`` by a published convention, or at level ``causal``."""
    if counting == "causal":
        return model.flops(level="causal")
    return model.flops(convention=counting)


def reference_budget(experiment: Experiment, counting: str) -> Fraction:
    """C_ref: the reference model's self part over its training run, in FLOPs."""
    tokens = experiment.reference_steps * BATCH_SIZE * NUM_LATENTS
    return tokens * Fraction(count_as(experiment.models()[0], counting).self_part.per_token)


def setups(experiment: Experiment, counting: str = "article") -> tuple[Setup, ...]:
    """The rows of an experiment's setup and ratio tables.

    D_iso = C_ref / (self FLOPs per token); steps = ⌈D_iso / n / batch⌉; C_cross = cross FLOPs per
    token · D_iso.

    Args:
        experiment: One of :data:`EXPERIMENTS`.
        counting: One of :data:`COUNTINGS`.

    Returns:
        One :class:`Setup` per model.

    Source: the article, Tables 1 to 5.

    >>> [setup.num_steps for setup in setups(EXPERIMENTS[0])]
    [50000, 31421, 21231]
    """
    budget = reference_budget(experiment, counting)
    rows = []
    for model in experiment.models():
        count, params = count_as(model, counting), model.params()
        d_iso = budget / Fraction(count.self_part.per_token)
        n_self = params.self_part.total
        rows.append(
            Setup(
                num_channels=model.num_channels,
                num_layers=model.num_layers,
                num_steps=-(-d_iso // (NUM_LATENTS * BATCH_SIZE)),
                d_iso=d_iso,
                n=params.total,
                n_cross=params.cross_part.total,
                n_self=n_self,
                c_cross=Fraction(count.cross_part.per_token) * d_iso,
                c_self=budget,
                c_self_approx=6 * n_self * d_iso,
            )
        )
    return tuple(rows)


def in_text(counting: str = "article") -> dict[str, str]:
    """The numbers that stand in the article's text, as it prints them.

    Args:
        counting: One of :data:`COUNTINGS`.

    >>> in_text()["C_ref (Experiment 1)"]
    '5.78e+17'
    """
    first, longer_prefix = EXPERIMENTS[0], EXPERIMENTS[1]
    reference, predicted = first.models()[:2]
    count = count_as(reference, counting)
    self_flops, cross_flops = count.self_part.per_token, count.cross_part.per_token
    approximation = 6 * reference.params().self_part.total
    budget = reference_budget(first, counting)
    byte_budget = reference_budget(longer_prefix, counting)
    law_1, law_2 = chinchilla_approach_1(), chinchilla_approach_2()
    return {
        "self part, training FLOPs per latent token": f"{float(self_flops):.2e}",
        "cross part, training FLOPs per latent token": f"{float(cross_flops):.2e}",
        "cross part's share": f"{float(cross_flops / Fraction(cross_flops + self_flops)):.2%}",
        "C_self / (6·N_self)": f"{float(Fraction(self_flops) / approximation):.2f}",
        "C_ref (Experiment 1)": f"{float(budget):.2e}",
        "N_opt, approach 2 (Experiment 1)": f"{law_2.n_opt(float(budget)):.2e}",
        "N_self of 624×11": f"{predicted.params().self_part.total:.2e}",
        "N_opt, approach 1 (Experiment 2)": f"{law_1.n_opt(float(byte_budget)):.2e}",
        "N_opt, approach 2 (Experiment 2)": f"{law_2.n_opt(float(byte_budget)):.2e}",
    }


def fitted_laws() -> dict[str, str]:
    """The article's two laws, fitted to the published estimates and printed as it prints them.

    >>> fitted_laws()["approach 2"]
    'N_opt = 0.1448 * C ** 0.49; D_opt = 1.1519 * C ** 0.51'
    """
    laws = {"approach 1": chinchilla_approach_1(), "approach 2": chinchilla_approach_2()}
    return {
        name: f"N_opt = {law.k_n:.4f} * C ** {law.a:.2f}; D_opt = {law.k_d:.4f} * C ** {law.b:.2f}"
        for name, law in laws.items()
    }


@dataclasses.dataclass(frozen=True, repr=False)
class Reproduction(Shown):
    """Everything that the article prints, under each way to count; ``print`` shows it.

    Attributes:
        tables: By counting and table name, the rows as printed.
        in_text: By counting, the numbers of the text.
        laws: The two fitted laws.
        note: What the corrections change and what they do not.
    """

    tables: dict[str, dict[str, list[dict[str, str]]]]
    in_text: dict[str, dict[str, str]]
    laws: dict[str, str]
    note: str

    def to_dict(self) -> dict[str, Any]:
        """The reproduction as plain data."""
        return dataclasses.asdict(self)

    def records(self) -> list[dict[str, Any]]:
        """One dictionary per row of the tables, with its table and counting."""
        return [
            {"table": name, "counting": counting} | row
            for counting, tables in self.tables.items()
            for name, rows in tables.items()
            for row in rows
        ]

    def _tables(self) -> list[Table | str]:
        blocks: list[Table | str] = [
            Table(
                list(rows[0]),
                [list(row.values()) for row in rows],
                title=f"{name}, counted as {counting}",
                keys=2,
            )
            for name in self.tables["article"]
            for counting, tables in self.tables.items()
            for rows in [tables[name]]
        ]
        numbers = [
            [name, *(self.in_text[counting][name] for counting in COUNTINGS)]
            for name in self.in_text["article"]
        ]
        blocks.append(Table(["in the text", *COUNTINGS], numbers))
        blocks.append(Table(["law", "fitted to the published estimates"], list(self.laws.items())))
        return [*blocks, paragraph(self.note)]


def reproduce() -> Reproduction:
    """Compute Tables 1 to 5, the numbers in the text and the fitted laws, under each way to count.

    Source: the article; see :mod:`flopcount.conventions` for the three ways.
    """
    tables: dict[str, dict[str, list[dict[str, str]]]] = {}
    for counting in COUNTINGS:
        tables[counting] = {}
        for experiment in EXPERIMENTS:
            rows = setups(experiment, counting)
            tables[counting][experiment.setup_table] = [row.cells() for row in rows]
            if experiment.ratios_table:
                tables[counting][experiment.ratios_table] = [
                    {"num_channels": str(row.num_channels), "num_layers": str(row.num_layers)}
                    | row.ratios()
                    for row in rows
                ]
    texts = {counting: in_text(counting) for counting in COUNTINGS}
    return Reproduction(tables, texts, fitted_laws(), _note())


def _note() -> str:
    reference = EXPERIMENTS[0].models()[0]
    published, causal, update = (count_as(reference, counting) for counting in COUNTINGS)

    def change(count: Count, part: str) -> float:
        old, new = getattr(published, part).per_token, getattr(count, part).per_token
        return float(Fraction(new) / Fraction(old)) - 1

    return READ_WITH_CARE.format(
        self_change=change(causal, "self_part"),
        cross_change=change(causal, "cross_part"),
        update_change=change(update, "self_part"),
    )
