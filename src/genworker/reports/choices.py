"""What comparisons of two texts say of a cohort: ranks of texts and factors, and each judge's position bias.

Each question is ranked by itself: the templates of two judges may ask for different things. The values
are those of `genworker.reports.pairwise`; here they get their names and become tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genworker.core.rating import HUMAN
from genworker.reports.pairwise import Comparison, PlaceBias, Ranked, place_biases, rank
from genworker.reports.scores import Axis, Compared, Essay, Outcome, Scores
from genworker.reports.tables import Cell, Table

ESSAY = "essay"
FACTORS: Mapping[str, str] = {
    "draft_template": "draft template",
    "generation_template": "essay template",
    "generation_model": "generation model",
}
"""What texts are ranked by besides themselves: the fields of a `PivotKey`, and their names for people."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """One ranking.

    Attributes:
        question: the judges' template, or ``human``.
        kind: ``essay``, or the factor: of its levels those are compared whose texts were.
        groups: into how many the items fall that were never compared, not even by way of others.
    """

    question: str
    kind: str
    items: Sequence[Ranked]
    groups: int


@dataclass(frozen=True, slots=True)
class Choices:
    """All comparisons of a cohort.

    Attributes:
        planned: comparisons; people plan those that they make.
        chosen: those with a choice, a tie included.
        essays: the compared essays by gen_id.
        biases: of each judge and question, by `Axis.name`.
    """

    planned: int
    chosen: int
    essays: Mapping[str, Essay]
    ranks: Sequence[Ranks]
    biases: Sequence[tuple[Axis, PlaceBias]]

    def of(self, kind: str) -> list[Ranks]:
        """The rankings of one kind, one a question."""
        return [ranks for ranks in self.ranks if ranks.kind == kind]

    def to_json(self) -> dict[str, Any]:
        """For ``report --json``: what the two tables hold."""
        return {
            "planned": self.planned,
            "chosen": self.chosen,
            "ranking": [dict(zip(RANKING_COLUMNS, row, strict=True)) for row in _ranking_rows(self)],
            "position_bias": [dict(zip(BIAS_COLUMNS, row, strict=True)) for row in _bias_rows(self)],
        }


def comparisons_of(compared: Iterable[Compared]) -> list[Comparison]:
    """Those that have a choice, as values; a judge is named by question and model."""
    return [
        Comparison(one.axis.name, one.first.gen_id, one.second.gen_id, one.choice, one.row.replicate)
        for one in compared
        if one.choice is not None
    ]


def read_choices(scores: Scores) -> Choices | None:
    """Rank what was compared; ``None`` where the plan compares nothing and nobody has."""
    if not scores.compared:
        return None
    essays: dict[str, Essay] = {}
    questions: dict[str, list[Compared]] = {}
    axes: dict[str, Axis] = {}
    for one in scores.compared:
        essays.setdefault(one.first.gen_id, one.first)
        essays.setdefault(one.second.gen_id, one.second)
        axes.setdefault(one.axis.name, one.axis)
        if one.choice is not None:
            questions.setdefault(one.axis.template, []).append(one)
    ranks: list[Ranks] = []
    for question, made in questions.items():
        comparisons = comparisons_of(made)
        pairs = [frozenset((c.first, c.second)) for c in comparisons]
        ranks += _ranked(question, ESSAY, comparisons, pairs)
        for factor in FACTORS:
            level = {gen_id: getattr(essay.key, factor) or "not known" for gen_id, essay in essays.items()}
            apart = [
                (c._replace(first=level[c.first], second=level[c.second]), pair)
                for c, pair in zip(comparisons, pairs, strict=True)
                if level[c.first] != level[c.second]
            ]
            ranks += _ranked(question, factor, [c for c, _ in apart], [pair for _, pair in apart])
    biases = [(axes[bias.judge], bias) for bias in place_biases(comparisons_of(scores.compared))]
    chosen = sum(one.outcome is Outcome.SCORED for one in scores.compared)
    return Choices(len(scores.compared), chosen, essays, ranks, biases)


def _ranked(
    question: str, kind: str, comparisons: Sequence[Comparison], pairs: Sequence[frozenset[str]]
) -> Iterator[Ranks]:
    found = rank(comparisons, pairs)
    if found:
        yield Ranks(question, kind, found, 1 + max(ranked.group for ranked in found))


# Tables

COMPARISON_COLUMNS = (
    *("gen_id", "evaluation_template", "evaluation_llm_model", "first_gen_id", "second_gen_id", "choice"),
    *("winner_gen_id", "error", "replicate", "cohort_id", "evaluation_response_path"),
    *("first_combo_id", "first_draft_template", "first_generation_template", "first_generation_model"),
    *("second_combo_id", "second_draft_template", "second_generation_template", "second_generation_model"),
)
RANKING_COLUMNS = (
    *("question", "kind", "item", "rank", "worth", "ci95_low", "ci95_high", "comparisons", "wins", "group"),
    *("combo_id", *FACTORS),
)
BIAS_COLUMNS = (
    *("evaluation_template", "evaluation_llm_model", "pairs_in_both_orders", "first_both_times"),
    *("second_both_times", "bias", "ci95_low", "ci95_high", "p"),
)


def comparisons_table(scores: Scores) -> Table:
    """``comparisons.csv``: a row per planned comparison, those by people behind them."""
    return Table(COMPARISON_COLUMNS, map(_comparison_row, scores.compared))


def _comparison_row(one: Compared) -> list[Cell]:
    row, axis, first, second, _, choice, error, path = one
    winner = {"first": first.gen_id, "second": second.gen_id}.get(choice or "")
    return [
        *(row.gen_id, axis.template, axis.model, first.gen_id, second.gen_id, choice, winner, error),
        *(row.replicate, row.cohort_id, path, *_key(first), *_key(second)),
    ]


def _key(essay: Essay) -> tuple[str, str, str, str]:
    key = essay.key
    return key.combo_id, key.draft_template, key.generation_template, key.generation_model


def ranking_table(choices: Choices) -> Table:
    """``pair_ranking.csv``: texts, templates and models by Bradley–Terry, for each question, the best first.

    ``worth`` is in log odds against the mean of the others; without an interval where the texts are more
    than `genworker.reports.pairwise.MOST_ITEMS`.
    """
    return Table(RANKING_COLUMNS, _ranking_rows(choices), decimals=3)


def _ranking_rows(choices: Choices) -> Iterator[list[Cell]]:
    for ranks in choices.ranks:
        for number, ranked in enumerate(ranks.items, 1):
            low, high = (None, None) if ranked.estimate is None else ranked.estimate.interval()
            essay = choices.essays.get(ranked.item) if ranks.kind == ESSAY else None
            labels: Sequence[Cell] = (None,) * 4 if essay is None else _key(essay)
            yield [
                *(ranks.question, ranks.kind, ranked.item, number, ranked.worth, low, high),
                *(ranked.comparisons, ranked.wins, ranked.group + 1, *labels),
            ]


def bias_table(choices: Choices) -> Table:
    """``position_bias.csv``: whether a judge favours the first place (over 0) or the second, in log odds.

    Read from the pairs that it saw in both orders: ``first_both_times`` counts those in which the first
    place won twice, whatever stood there.
    """
    return Table(BIAS_COLUMNS, _bias_rows(choices), decimals=4)


def _bias_rows(choices: Choices) -> Iterator[list[Cell]]:
    for axis, bias in choices.biases:
        value = None if bias.estimate is None else bias.estimate.difference
        low, high = (None, None) if bias.estimate is None else bias.estimate.interval()
        counts = (bias.pairs, bias.first_twice, bias.second_twice)
        yield [*axis, *counts, value, low, high, bias.p]


def choice_tables(scores: Scores, choices: Choices | None) -> dict[str, Table]:
    """The tables of comparisons, by their files' names without ``.csv``; none where nothing is compared."""
    if choices is None:
        return {}
    return {
        "comparisons": comparisons_table(scores),
        "pair_ranking": ranking_table(choices),
        "position_bias": bias_table(choices),
    }


def choice_sentences(choices: Choices) -> Iterator[str]:
    """What was compared, for a terminal and the head of the page's section."""
    yield f"{choices.chosen} of {choices.planned} comparisons have a choice."
    for axis, bias in choices.biases:
        if bias.estimate is None or bias.p is None or axis.template == HUMAN:
            continue
        if bias.p < 0.05:
            place, share = (
                ("first", bias.first_twice)
                if bias.estimate.difference > 0
                else (
                    "second",
                    bias.second_twice,
                )
            )
            yield (
                f"{axis.model} ({axis.template}) favours the {place} place: in {share} of {bias.pairs} pairs "
                "that it saw in both orders that place won twice."
            )
