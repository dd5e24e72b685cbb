"""The tables of a report, as headers and rows of values. Every denominator is the plan."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TypeVar

from genworker.reports.scores import Axis, Evaluation, Outcome, PivotKey, ScoreRow, Scores
from genworker.reports.statistics import (
    centre,
    correlation,
    interval,
    krippendorff_alpha,
    mean,
    score_interval,
    spread,
)

Group = TypeVar("Group", bound=Hashable)

Cell = str | int | float | None
"""``None`` where there is nothing to say; an empty cell in a file, never a zero."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table.

    Attributes:
        rows: as many cells each as the header; may be drawn once only.
        decimals: places to which floats are rounded where they are written; ``None``: as they are.
    """

    header: tuple[str, ...]
    rows: Iterable[Sequence[Cell]]
    decimals: int | None = None


def aggregated_scores(scores: Scores) -> Table:
    """``aggregated_scores.csv``: a row per planned evaluation."""
    return Table(ScoreRow._fields, scores.rows())


@dataclass(slots=True)
class PivotCell:
    """The scores of one pivot row by one evaluator, over replicates and cohorts.

    Attributes:
        planned: how many evaluations the plan has here.
        wrong: those that came to nothing, so that somebody has to act; what is merely missing is not.
    """

    planned: int = 0
    scores: list[float] = field(default_factory=list)
    wrong: int = 0

    def add(self, evaluation: Evaluation) -> None:
        """Count one planned evaluation."""
        self.planned += 1
        if evaluation.score is not None:
            self.scores.append(evaluation.score)
        elif evaluation.outcome is not Outcome.MISSING:
            self.wrong += 1


@dataclass(slots=True)
class PivotRow:
    """One row of the pivot; `cells` has only the evaluators that the plan has for it."""

    key: PivotKey
    cells: dict[Axis, PivotCell] = field(default_factory=dict)
    essay_ids: dict[str, None] = field(default_factory=dict)
    path: str | None = None
    replicates: set[tuple[int, int]] = field(default_factory=set)
    """(the essay's, its draft's)"""

    def total(self) -> float | None:
        """The sum over the evaluators' means; ``None`` without any."""
        means = [value for cell in self.cells.values() if (value := mean(cell.scores)) is not None]
        return math.fsum(means) if means else None


def pivot(scores: Scores) -> list[PivotRow]:
    """Group evaluations into rows and cells, in order of first appearance."""
    rows: dict[PivotKey, PivotRow] = {}
    for evaluation in scores.evaluations:
        key = evaluation.essay.key
        row = rows.get(key)
        if row is None:
            row = rows[key] = PivotRow(key)
        row.essay_ids[evaluation.essay.gen_id] = None
        row.replicates.add((evaluation.essay.replicate, evaluation.essay.draft_replicate))
        if row.path is None:
            row.path = evaluation.essay.path
        axis = evaluation.axis
        cell = row.cells.get(axis)
        if cell is None:
            cell = row.cells[axis] = PivotCell()
        cell.add(evaluation)
    return list(rows.values())


CELL_STATISTICS = ("n", "planned", "min", "max", "spread")
_AFTER_MEANS = ("sum_scores", "generation_response_path")
_AT_THE_END = ("replicate", "draft_replicate", "concepts")
"""The first two where all essays of a row have the same, the last where it is known."""


def generation_scores_pivot(scores: Scores, rows: Sequence[PivotRow]) -> Table:
    """``generation_scores_pivot.csv``.

    The keys, a mean per evaluator, ``sum_scores`` and ``generation_response_path``; behind these, so that
    whoever knows only those finds them in their places, per evaluator how many scores went in, how many
    were planned, their minimum, maximum and sample standard deviation; at the end ``replicate`` and
    ``draft_replicate`` of the essay and its draft, where all of the row have the same, and ``concepts``.
    """
    names = axis_columns(scores.axes)
    header = (
        *PivotKey._fields,
        *names,
        *_AFTER_MEANS,
        *(f"{name}_{statistic}" for name in names for statistic in CELL_STATISTICS),
        *_AT_THE_END,
    )
    return Table(header, _pivot_rows(scores, rows), decimals=2)


def axis_columns(axes: Sequence[Axis]) -> list[str]:
    """A column name per evaluator, all different: where two would be equal, further ``_`` part the halves."""
    taken = {*PivotKey._fields, *_AFTER_MEANS, *_AT_THE_END}
    names: list[str] = []
    for axis in axes:
        name, gap = axis.name, "_"
        while taken & {name, *(f"{name}_{statistic}" for statistic in CELL_STATISTICS)}:
            gap += "_"
            name = f"{axis.template}{gap}{axis.model}"
        names.append(name)
        taken |= {name, *(f"{name}_{statistic}" for statistic in CELL_STATISTICS)}
    return names


def _pivot_rows(scores: Scores, rows: Sequence[PivotRow]) -> Iterator[list[Cell]]:
    nothing = PivotCell()
    for row in rows:
        cells = [row.cells.get(axis, nothing) for axis in scores.axes]
        line: list[Cell] = [*row.key, *(mean(cell.scores) for cell in cells), row.total(), row.path]
        for cell in cells:
            values = cell.scores
            line += [len(values), cell.planned]
            line += [min(values, default=None), max(values, default=None), spread(values)]
        line += [
            numbers.pop() if len(numbers) == 1 else None
            for numbers in map(set, zip(*row.replicates, strict=True))
        ]
        yield [*line, scores.concepts.get(row.key.combo_id)]


# Summaries


@dataclass(slots=True)
class Tally:
    """What became of a group of planned evaluations.

    Attributes:
        by_essay: the scores of each essay, by its gen_id; an essay without a score has an empty list.
    """

    planned: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    by_essay: dict[str, list[float]] = field(default_factory=dict)

    def add(self, evaluation: Evaluation) -> None:
        """Count one planned evaluation."""
        self.planned += 1
        self.outcomes[evaluation.outcome] += 1
        scores = self.by_essay.setdefault(evaluation.essay.gen_id, [])
        if evaluation.score is not None:
            scores.append(evaluation.score)

    def merge(self, other: Tally) -> None:
        """Count all that another group has."""
        self.planned += other.planned
        self.outcomes.update(other.outcomes)
        for essay, scores in other.by_essay.items():
            self.by_essay[essay] = self.by_essay.get(essay, []) + scores

    def scores(self) -> list[float]:
        """All scores of the group."""
        return [score for scores in self.by_essay.values() for score in scores]

    def mean(self) -> float | None:
        """Of the scores; of the essays' means where essays have very unequal numbers of them."""
        return centre(list(self.by_essay.values()))

    def interval(self) -> tuple[float, float] | tuple[None, None]:
        """The mean's 95 % interval, essays being the clusters; (``None``, ``None``) of fewer than three."""
        return score_interval(list(self.by_essay.values())) or (None, None)


def tallies(scores: Scores, group: Callable[[Evaluation], Group]) -> dict[Group, Tally]:
    """Evaluations by group, in order of first appearance."""
    found: dict[Group, Tally] = {}
    for evaluation in scores.evaluations:
        key = group(evaluation)
        tally = found.get(key)
        if tally is None:
            tally = found[key] = Tally()
        tally.add(evaluation)
    return found


EVALUATOR_COLUMNS = (
    *("evaluation_template", "evaluation_llm_model"),
    *("planned", "scored", "unparseable", "failed", "missing", "blocked"),
    *("mean", "ci95_low", "ci95_high", "spread"),
    *("lowest_mark", "lowest_share", "highest_mark", "highest_share"),
)


def evaluator_summary(scores: Scores) -> Table:
    """``evaluator_summary.csv``: how each evaluator did, and whether it clings to an end of its scale.

    The outcomes add up to ``planned``. ``lowest_share`` is the share, from 0 to 1, of the evaluator's
    scores that equal the lowest mark that it gave; ``highest_share`` likewise.
    """
    groups = tallies(scores, lambda evaluation: evaluation.axis)
    return Table(EVALUATOR_COLUMNS, [_evaluator_row(*group) for group in groups.items()], decimals=3)


def _evaluator_row(axis: Axis, tally: Tally) -> list[Cell]:
    values = tally.scores()
    ends: list[Cell] = []
    for end in (min(values, default=None), max(values, default=None)):
        ends += [end, None if end is None else values.count(end) / len(values)]
    outcomes = [tally.outcomes[Outcome(name)] for name in EVALUATOR_COLUMNS[3:8]]
    return [*axis, tally.planned, *outcomes, tally.mean(), *tally.interval(), spread(values), *ends]


_FACTORS = ("draft_template", "generation_template", "generation_model")
TEMPLATE_COLUMNS = (
    "grouped_by",
    *_FACTORS,
    *("essays", "planned", "scored", "mean", "ci95_low", "ci95_high", "spread", "min", "max"),
)


def template_model_summary(scores: Scores) -> Table:
    """``template_model_summary.csv``: what draft templates, essay templates and models are worth.

    Over all evaluators: first each combination of the three, then each by itself over the other two,
    whose cells are empty then; ``grouped_by`` says which. `essays` counts planned ones.
    """
    by_key = tallies(scores, lambda evaluation: evaluation.essay.key)
    rows: list[list[Cell]] = []
    for name, factors in (("combination", _FACTORS), *((factor, (factor,)) for factor in _FACTORS)):
        groups: dict[tuple[str | None, ...], Tally] = {}
        for key, tally in by_key.items():
            group = tuple(getattr(key, factor) if factor in factors else None for factor in _FACTORS)
            groups.setdefault(group, Tally()).merge(tally)
        rows += [_template_row(name, *group) for group in groups.items()]
    return Table(TEMPLATE_COLUMNS, rows, decimals=3)


def _template_row(name: str, factors: tuple[str | None, ...], tally: Tally) -> list[Cell]:
    values = tally.scores()
    return [
        *(name, *factors, len(tally.by_essay), tally.planned, len(values)),
        *(tally.mean(), *tally.interval(), spread(values)),
        *(min(values, default=None), max(values, default=None)),
    ]


# Agreement

AGREEMENT_COLUMNS = (
    "compared",
    *("evaluation_template_a", "evaluation_llm_model_a", "evaluation_template_b", "evaluation_llm_model_b"),
    *("n", "mean_difference", "ci95_low", "ci95_high", "correlation", "alpha"),
)


def agreement(scores: Scores) -> Table:
    """``agreement.csv``: how far evaluators agree with each other, and each with itself.

    A row ``evaluators`` compares the means that two evaluators gave to each essay that both scored; a row
    ``replicates`` compares one evaluator's replicates, pair by pair, in every essay that has at least
    two. ``n`` counts essays. ``mean_difference`` is a − b, or the earlier replicate minus the later one.
    ``correlation`` is Pearson's, ``alpha`` Krippendorff's for an interval scale.
    """
    given: dict[Axis, dict[str, list[float]]] = {axis: {} for axis in scores.axes}
    for evaluation in sorted(scores.evaluations, key=lambda evaluation: evaluation.row.replicate):
        if evaluation.score is not None:
            given[evaluation.axis].setdefault(evaluation.essay.gen_id, []).append(evaluation.score)
    rows = [_replicates_row(axis, essays.values()) for axis, essays in given.items()]
    means = {
        axis: {essay: math.fsum(values) / len(values) for essay, values in essays.items()}
        for axis, essays in given.items()
    }
    pairs = list(combinations(scores.axes, 2))
    for a, b in pairs:
        both = [(value, means[b][essay]) for essay, value in means[a].items() if essay in means[b]]
        differences = [[first - second] for first, second in both]
        rows.append(_agreement_row("evaluators", a, b, both, differences, both))
    return Table(AGREEMENT_COLUMNS, rows, decimals=3)


def _replicates_row(axis: Axis, essays: Iterable[Sequence[float]]) -> list[Cell]:
    repeated = [values for values in essays if len(values) > 1]
    pairs = [list(combinations(values, 2)) for values in repeated]
    differences = [[first - second for first, second in essay] for essay in pairs]
    every = [pair for essay in pairs for pair in essay]
    return _agreement_row("replicates", axis, axis, every, differences, repeated)


def _agreement_row(
    compared: str,
    a: Axis,
    b: Axis,
    pairs: Sequence[tuple[float, float]],
    differences: Sequence[Sequence[float]],
    units: Sequence[Sequence[float]],
) -> list[Cell]:
    low, high = interval(differences) or (None, None)
    return [
        *(compared, *a, *b, len(units)),
        *(mean([difference for essay in differences for difference in essay]), low, high),
        correlation([first for first, _ in pairs], [second for _, second in pairs]),
        krippendorff_alpha(units),
    ]


def all_tables(scores: Scores, rows: Sequence[PivotRow]) -> dict[str, Table]:
    """Every table of a report, by the name of its file without ``.csv``."""
    return {
        "aggregated_scores": aggregated_scores(scores),
        "generation_scores_pivot": generation_scores_pivot(scores, rows),
        "evaluator_summary": evaluator_summary(scores),
        "template_model_summary": template_model_summary(scores),
        "agreement": agreement(scores),
    }
