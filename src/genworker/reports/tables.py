"""The tables of a report, as headers and rows of values. Every denominator is the plan.

Cells are ``None`` where there is nothing to say, strings, whole numbers, and floats that are rounded where
they are written.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from genworker.reports.scores import Axis, Evaluation, PivotKey, ScoreRow, Scores
from genworker.reports.statistics import mean, spread

Cell = str | int | float | None


@dataclass(frozen=True, slots=True)
class Table:
    """A table.

    Attributes:
        rows: as many cells each as the header; may be drawn once only.
    """

    header: tuple[str, ...]
    rows: Iterable[Sequence[Cell]]


def aggregated_scores(scores: Scores) -> Table:
    """``aggregated_scores.csv``: a row per planned evaluation."""
    return Table(ScoreRow._fields, scores.rows())


@dataclass(slots=True)
class PivotCell:
    """The scores of one pivot row by one evaluator, over replicates and cohorts.

    Attributes:
        planned: how many evaluations the plan has here.
    """

    planned: int = 0
    scores: list[float] = field(default_factory=list)

    def add(self, evaluation: Evaluation) -> None:
        """Count one planned evaluation."""
        self.planned += 1
        if evaluation.score is not None:
            self.scores.append(evaluation.score)


@dataclass(slots=True)
class PivotRow:
    """One row of the pivot; `cells` has only the evaluators that the plan has for it."""

    key: PivotKey
    cells: dict[Axis, PivotCell] = field(default_factory=dict)
    essay_ids: dict[str, None] = field(default_factory=dict)
    path: str | None = None

    def total(self) -> float | None:
        """The sum over the evaluators' means; ``None`` without any."""
        means = [value for cell in self.cells.values() if (value := mean(cell.scores)) is not None]
        return math.fsum(means) if means else None


def pivot(scores: Scores) -> list[PivotRow]:
    """Group evaluations into rows and cells, in order of first appearance."""
    rows: dict[PivotKey, PivotRow] = {}
    for evaluation in scores.evaluations:
        key = evaluation.key
        row = rows.get(key)
        if row is None:
            row = rows[key] = PivotRow(key)
        row.essay_ids[evaluation.essay.gen_id] = None
        if row.path is None:
            row.path = evaluation.essay.path
        axis = evaluation.axis
        cell = row.cells.get(axis)
        if cell is None:
            cell = row.cells[axis] = PivotCell()
        cell.add(evaluation)
    return list(rows.values())


CELL_STATISTICS = ("n", "planned", "min", "max", "spread")


def generation_scores_pivot(scores: Scores, rows: Sequence[PivotRow]) -> Table:
    """``generation_scores_pivot.csv``.

    The keys, a mean per evaluator, ``sum_scores`` and ``generation_response_path``, as the original has
    them; behind these, per evaluator, how many scores went in, how many were planned, their minimum,
    maximum and sample standard deviation.
    """
    header = (
        *PivotKey._fields,
        *(axis.name for axis in scores.axes),
        "sum_scores",
        "generation_response_path",
        *(f"{axis.name}_{statistic}" for axis in scores.axes for statistic in CELL_STATISTICS),
    )
    return Table(header, _pivot_rows(scores.axes, rows))


def _pivot_rows(axes: Sequence[Axis], rows: Sequence[PivotRow]) -> Iterator[list[Cell]]:
    nothing = PivotCell()
    for row in rows:
        cells = [row.cells.get(axis, nothing) for axis in axes]
        line: list[Cell] = [*row.key, *(rounded(mean(cell.scores)) for cell in cells)]
        line += [rounded(row.total()), row.path]
        for cell in cells:
            line += [len(cell.scores), cell.planned]
            line += [rounded(f(cell.scores)) for f in (_least, _most, spread)]
        yield line


def _least(values: Sequence[float]) -> float | None:
    return min(values, default=None)


def _most(values: Sequence[float]) -> float | None:
    return max(values, default=None)


def rounded(value: float | None) -> str | None:
    """Two decimals; a half goes to the even neighbour, as far as binary numbers know halves."""
    return None if value is None else f"{value:.2f}"
