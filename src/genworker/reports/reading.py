"""What a report is made of, once it has been read: pages, tables and JSON take it from here."""

from __future__ import annotations

from dataclasses import dataclass, field

from genworker.core.money import Money
from genworker.reports.choices import Choices
from genworker.reports.findings import Findings
from genworker.reports.provenance import History, Provenance
from genworker.reports.scores import Scores


@dataclass(frozen=True, slots=True)
class Reading:
    """One or more cohorts, read.

    Attributes:
        money: over all cohorts and all their runs.
        choices: what comparisons of two texts say; ``None`` where there are none.
        rows_out: rows of these cohorts in provider batches that are out.
    """

    scores: Scores
    provenance: Provenance
    findings: Findings
    money: Money
    history: History = field(default_factory=History)
    choices: Choices | None = None
    rows_out: int = 0
