"""How far a cohort is, what it took, and what its means are: the upper half of the page, as values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal

from genworker.core.facts import Facts
from genworker.core.plan import RowState
from genworker.core.stages import STAGES, Stage
from genworker.reports.scores import Outcome, PivotKey, Scores, Source
from genworker.reports.statistics import mean, spread
from genworker.reports.tables import PivotCell, PivotRow, Tally


@dataclass(slots=True)
class Spending:
    """Tokens and cost of the answers that the store holds of one stage.

    Attributes:
        cost_usd: of those answers whose metadata have a cost.
        priced: how many these are.
        unpriced: calls without a known cost, which is not the same as none.
        uncounted: calls whose endpoint did not say how many tokens they took.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: Decimal = Decimal(0)
    priced: int = 0
    unpriced: int = 0
    uncounted: int = 0

    def add(self, facts: Facts) -> None:
        """Count one answer; a copy asked no model and costs nothing."""
        if facts.is_copy:
            return
        took, gave = facts.usage.input_tokens, facts.usage.output_tokens
        if took is not None and gave is not None:
            self.input_tokens += took
            self.output_tokens += gave
        else:
            self.uncounted += 1
        cost = facts.cost_usd
        if cost is None:
            self.unpriced += 1
        else:
            self.cost_usd += cost
            self.priced += 1

    @property
    def tokens(self) -> str:
        """``410,000 → 52,000``, with ``+ ?`` where some are not known; ``–`` without a call."""
        if not self.input_tokens:
            return "unknown" if self.uncounted else "–"
        return f"{self.input_tokens:,} → {self.output_tokens:,}{' + ?' if self.uncounted else ''}"

    @property
    def cost(self) -> str:
        """In US dollars, with ``+ ?`` where some calls have no price; ``–`` without a call."""
        if not self.priced:
            return "unpriced" if self.unpriced else "–"
        return f"${self.cost_usd:,.2f}{' + ?' if self.unpriced else ''}"


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
    spending: Spending

    def shares(self) -> Iterator[tuple[str, float, float]]:
        """(word, start, width) of each part of the bar, in percent of the plan."""
        start = 0.0
        for word in ("done", "unparseable", "failed", "blocked", "missing"):
            width = 100 * getattr(self, word) / self.planned if self.planned else 0.0
            if width:
                yield word, start, width
            start += width


def stage_views(scores: Scores, source: Source) -> list[StageView]:
    """One view per stage that the plan has. Reads the metadata of every answer."""
    spending = {stage: Spending() for stage in STAGES}
    plan = scores.plan
    for row, state in zip(plan.membership.rows, plan.states, strict=True):
        if state in (RowState.DONE, RowState.FAILED):
            spending[row.stage].add(source.facts(row.stage, row.gen_id))
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
                spending[stage],
            )
        )
    return [view for view in views if view.planned]


@dataclass(frozen=True, slots=True)
class HeatCell:
    """One cell of generation × evaluator.

    Attributes:
        level: the mean rounded to a whole mark from 0 to 10, for its shade; ``None`` without a score.
        is_short: fewer scores than planned.
        is_planned: whether the plan has anything here.
    """

    mean: str
    spread: str
    count: str
    level: int | None
    is_short: bool
    is_planned: bool


def heat_cell(cell: PivotCell | None) -> HeatCell:
    """What a cell shows."""
    if cell is None:
        return HeatCell("", "", "not planned", None, False, False)
    value, around = mean(cell.scores), spread(cell.scores)
    return HeatCell(
        "–" if value is None else f"{value:.2f}",
        "" if around is None else f"±{around:.1f}",
        f"{len(cell.scores)}/{cell.planned}",
        None if value is None else int(value + 0.5),
        len(cell.scores) < cell.planned,
        True,
    )


def varying_fields(rows: Sequence[PivotRow]) -> list[str]:
    """The key fields that tell these rows apart; all but the stage when there is only one row."""
    fields = [name for name in PivotKey._fields if name != "stage"]
    varying = [name for name in fields if len({getattr(row.key, name) for row in rows}) > 1]
    return varying or fields[1:]


@dataclass(frozen=True, slots=True)
class MeanView:
    """A mean with its interval, drawn on the scale from 0 to 10.

    Attributes:
        interval: (low, high), or (``None``, ``None``).
        count: ``scored/planned``.
    """

    mean: float | None
    interval: tuple[float, float] | tuple[None, None]
    count: str
    is_short: bool


def mean_view(tally: Tally) -> MeanView:
    """A group's mean."""
    values = tally.scores()
    short = len(values) < tally.planned
    return MeanView(mean(values), tally.interval(), f"{len(values)}/{tally.planned}", short)
