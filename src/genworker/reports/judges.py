"""What each judge gives to whom: histograms of marks, a matrix of judges and authors, a ranking by each."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from genworker.reports.claims import Factor, Finding
from genworker.reports.findings import JOINT, Findings
from genworker.reports.scores import Axis
from genworker.reports.tables import PivotRow

BINS = 11
"""Whole marks from 0 to 10."""
MATRIX_SIZE = 12
"""Judges and authors at most in a matrix that a reader can take in."""


@dataclass(slots=True)
class Histogram:
    """How often each whole mark was given; halves count for the mark above."""

    counts: list[int] = field(default_factory=lambda: [0] * BINS)

    def add(self, scores: Iterable[float]) -> None:
        """Count scores from 0 to 10."""
        for score in scores:
            self.counts[min(BINS - 1, int(score + 0.5))] += 1

    @property
    def text(self) -> str:
        """The same for who does not see it: ``3: 2, 4: 7``."""
        return (
            ", ".join(f"{mark}: {count:,}" for mark, count in enumerate(self.counts) if count) or "no marks"
        )

    def bars(self) -> list[tuple[int, float]]:
        """(mark, height from 0 to 1) of each mark that was given."""
        highest = max(self.counts)
        return [(mark, count / highest) for mark, count in enumerate(self.counts) if count]


@dataclass(slots=True)
class _Sum:
    total: float = 0.0
    count: int = 0

    def add(self, scores: Sequence[float]) -> None:
        self.total += math.fsum(scores)
        self.count += len(scores)

    @property
    def mean(self) -> float | None:
        return self.total / self.count if self.count else None


class MatrixCell(NamedTuple):
    """What a judge gives to an author on average.

    Attributes:
        is_own: whether the author is the judge itself.
    """

    mean: float | None
    scores: int
    is_own: bool


@dataclass(frozen=True, slots=True)
class JudgeView:
    """One judge: a model, over all templates that it fills in.

    Attributes:
        severity: its contrast with the other judges; ``None`` where too little is there to say.
        favour: of its own texts; ``None`` likewise, or where it writes none.
        tendency: how far it spreads its marks against the others.
        ranking: (factor, levels from best to worst with the mean that it gave each).
    """

    model: str
    marks: Histogram
    cells: Sequence[MatrixCell]
    severity: Finding | None
    favour: Finding | None
    tendency: Finding | None
    drift: Finding | None
    ranking: Sequence[tuple[Factor, Sequence[tuple[str, float]]]]


@dataclass(frozen=True, slots=True)
class JudgesView:
    """All judges.

    Attributes:
        authors: the columns of each judge's `cells`.
        by_axis: the marks of each evaluator.
        by_level: the marks of each level of each factor of the texts.
    """

    judges: Sequence[JudgeView]
    authors: Sequence[str]
    by_axis: Mapping[Axis, Histogram]
    by_level: Mapping[tuple[Factor, str], Histogram]


_FIELDS = (
    (Factor.COMBO, "combo_id"),
    (Factor.DRAFT, "draft_template"),
    (Factor.ESSAY, "generation_template"),
    (Factor.AUTHOR, "generation_model"),
)


def judges_view(rows: Sequence[PivotRow], axes: Sequence[Axis], findings: Findings) -> JudgesView:
    """Everything about the judges, from the pivot."""
    by_axis = {axis: Histogram() for axis in axes}
    by_level: dict[tuple[Factor, str], Histogram] = defaultdict(Histogram)
    given: dict[tuple[str, Factor, str], _Sum] = defaultdict(_Sum)
    for row in rows:
        levels = [(factor, getattr(row.key, name)) for factor, name in _FIELDS]
        both = JOINT.join((row.key.draft_template, row.key.generation_template))
        joint = by_level[Factor.DRAFT_ESSAY, both]
        histograms = [by_level[level] for level in levels]
        for axis, cell in row.cells.items():
            if not cell.scores:
                continue
            for histogram in (by_axis[axis], joint, *histograms):
                histogram.add(cell.scores)
            for factor, level in levels[1:]:
                given[axis.model, factor, level].add(cell.scores)
    authors = [level for factor, level in by_level if factor is Factor.AUTHOR][:MATRIX_SIZE]
    judges = []
    for model in list(dict.fromkeys(axis.model for axis in axes)):
        marks = Histogram()
        for axis, histogram in by_axis.items():
            if axis.model == model:
                marks.counts = [a + b for a, b in zip(marks.counts, histogram.counts, strict=True)]
        cells = []
        for author in authors:
            found = given.get((model, Factor.AUTHOR, author), _Sum())
            cells.append(MatrixCell(found.mean, found.count, author == model))
        severity, favour, tendency, drift = (
            next((finding for finding in findings.of(factor) if finding.level == model), None)
            for factor in (Factor.JUDGE, Factor.SELF_PREFERENCE, Factor.CENTRAL_TENDENCY, Factor.DRIFT)
        )
        ranking = _ranking(model, given, by_level)
        judges.append(JudgeView(model, marks, cells, severity, favour, tendency, drift, ranking))
    return JudgesView(judges, authors, by_axis, by_level)


def _ranking(
    model: str,
    given: Mapping[tuple[str, Factor, str], _Sum],
    by_level: Mapping[tuple[Factor, str], Histogram],
) -> list[tuple[Factor, list[tuple[str, float]]]]:
    found = []
    for factor in (Factor.DRAFT, Factor.ESSAY, Factor.AUTHOR):
        levels = [level for other, level in by_level if other is factor]
        means = [
            (level, mean)
            for level in levels
            if (at := given.get((model, factor, level))) is not None and (mean := at.mean) is not None
        ]
        if len(levels) > 1 and means:
            found.append((factor, sorted(means, key=lambda pair: -pair[1])))
    return found
