"""How far a cohort is, what it took, and what its means are: the upper half of the page, as values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from genworker.core.money import Money, Part, money_text
from genworker.core.plan import RowState
from genworker.core.stages import Stage
from genworker.reports.provenance import Provenance
from genworker.reports.scores import Axis, Outcome, PivotKey, Scores
from genworker.reports.statistics import mean
from genworker.reports.tables import PivotCell, PivotRow, Tally


@dataclass(frozen=True, slots=True)
class StageView:
    """How far one stage is. The counts add up to `planned`."""

    stage: Stage
    planned: int
    done: int
    unparseable: int
    failed: int
    blocked: int
    missing: int
    tokens: str
    money: MoneyView

    def shares(self) -> Iterator[tuple[str, float, float]]:
        """(word, start, width) of each part of the bar, in percent of the plan."""
        start = 0.0
        for word in ("done", "unparseable", "failed", "blocked", "missing"):
            width = 100 * getattr(self, word) / self.planned if self.planned else 0.0
            if width:
                yield word, start, width
            start += width


@dataclass(frozen=True, slots=True)
class MoneyView:
    """One part of the account of money.

    Attributes:
        spent: known to be spent; ``–`` where no call was made.
        possible: what calls of unknown end may have cost at most beyond that; ``""`` where there are none.
        unpriced: models whose calls have no price.
        text: all of it in words.
    """

    spent: str
    possible: str
    uncertain_calls: int
    unpriced: tuple[str, ...]
    text: str


def money_view(part: Part) -> MoneyView:
    """A part of the account as a page shows it."""
    known = part.spent_usd or not part.unpriced
    return MoneyView(
        ("–" if not part.calls else "unpriced" if not known else f"${part.spent_usd:,.2f}")
        + (" + ?" if part.unpriced and known else ""),
        f"${part.possible_usd:,.2f}" if part.possible_usd else "",
        part.uncertain_calls,
        tuple(sorted(part.unpriced)),
        money_text(part),
    )


def stage_views(scores: Scores, provenance: Provenance, money: Money) -> list[StageView]:
    """One view per stage that the plan has."""
    plan = scores.plan
    views = []
    for stage, counts in plan.counts().items():
        kinds = plan.failed_kinds(stage)
        unparseable = sum(number for kind, number in kinds.items() if kind.value == Outcome.UNPARSEABLE)
        views.append(
            StageView(
                stage,
                sum(counts.values()),
                counts[RowState.DONE],
                unparseable,
                counts[RowState.FAILED] - unparseable,
                counts[RowState.BLOCKED],
                counts[RowState.MISSING],
                provenance.usage[stage].text,
                money_view(money.by_stage.get(stage.value, Part())),
            )
        )
    return [view for view in views if view.planned]


LEVELS = 10
"""Shades from the lowest mean that occurs to the highest."""
Scale = tuple[float, float]
"""(lowest, highest) mean that is shown: what the first and the last shade stand for."""
WHOLE_SCALE: Scale = (0.0, 10.0)


@dataclass(frozen=True, slots=True)
class HeatCell:
    """One cell of generation × evaluator.

    Attributes:
        marks: ``4–6``, the lowest and the highest mark, where there are several.
        count: ``2/3`` where scores are missing, else how many there are.
        level: from 0 to `LEVELS`, for its shade; ``None`` without a score.
        needs_care: whether scores came to nothing that somebody could mend.
        is_planned: whether the plan has anything here.
    """

    mean: str
    marks: str
    count: str
    level: int | None
    needs_care: bool
    is_planned: bool


def heat_cell(cell: PivotCell | None, scale: Scale = WHOLE_SCALE) -> HeatCell:
    """What a cell shows."""
    if cell is None:
        return HeatCell("", "", "not planned", None, False, False)
    value, count = mean(cell.scores), len(cell.scores)
    level = None
    if value is not None:
        low, high = scale
        level = (
            min(LEVELS, max(0, int(LEVELS * (value - low) / (high - low) + 0.5)))
            if high > low
            else LEVELS // 2
        )
    return HeatCell(
        "–" if value is None else f"{value:.2f}",
        _marks(cell.scores),
        f"{count}/{cell.planned}" if count < cell.planned else f"{count}",
        level,
        cell.wrong > 0,
        True,
    )


def _marks(scores: Sequence[float]) -> str:
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    return "" if len(scores) < 2 else f"{low:g}–{high:g}" if low < high else f"{low:g}"


def heat_scale(rows: Sequence[PivotRow]) -> Scale:
    """The lowest and the highest mean of all cells; the whole scale without any."""
    means = [value for row in rows for cell in row.cells.values() if (value := mean(cell.scores)) is not None]
    return (min(means), max(means)) if means else WHOLE_SCALE


def shared_axes(rows: Sequence[PivotRow], axes: Sequence[Axis]) -> list[Axis]:
    """The evaluators that have scored every row: sums over others would compare unlike things."""
    return [axis for axis in axes if all((cell := row.cells.get(axis)) and cell.scores for row in rows)]


def varying_fields(rows: Sequence[PivotRow]) -> list[str]:
    """The key fields that tell these rows apart; all but the stage when there is only one row."""
    fields = [name for name in PivotKey._fields if name != "stage"]
    varying = [name for name in fields if len({getattr(row.key, name) for row in rows}) > 1]
    return varying or fields[1:]


@dataclass(frozen=True, slots=True)
class MeanView:
    """A mean with its interval.

    Attributes:
        interval: (low, high), or (``None``, ``None``).
        count: ``scored/planned``.
        needs_care: whether scores came to nothing that somebody could mend.
    """

    mean: float | None
    interval: tuple[float, float] | tuple[None, None]
    count: str
    needs_care: bool


def mean_view(tally: Tally) -> MeanView:
    """A group's mean."""
    scored = tally.outcomes[Outcome.SCORED]
    wrong = tally.planned - scored - tally.outcomes[Outcome.MISSING]
    return MeanView(tally.mean(), tally.interval(), f"{scored:,}/{tally.planned:,}", wrong > 0)
