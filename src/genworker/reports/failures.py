"""What came to nothing, grouped by cause, and the command that mends each."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

from genworker.core.membership import MembershipRow
from genworker.core.stages import Stage
from genworker.reports.scores import Scores


@dataclass(slots=True)
class FailureGroup:
    """Rows that came to nothing for one reason.

    Attributes:
        word: the kind of failure.
        likeness: the reason without what may differ from row to row.
        where: ``template by model``, each once.
        rows: (row, its own reason).
    """

    word: str
    likeness: str
    stage: Stage
    where: dict[str, None] = field(default_factory=dict)
    rows: list[tuple[MembershipRow, str]] = field(default_factory=list)

    @property
    def is_uniform(self) -> bool:
        """Whether all rows give the very same reason."""
        return len({reason for _, reason in self.rows}) == 1

    @property
    def cause(self) -> str:
        """The reason, without what differs from row to row."""
        return self.rows[0][1].partition(": ")[2] if self.is_uniform else self.likeness

    def commands(self, cohort_ids: Sequence[str]) -> list[str]:
        """What to type to mend it."""
        named = {row.cohort_id for row, _ in self.rows}
        cohorts = [name for name in cohort_ids if name in named] or list(cohort_ids)
        return [
            command.replace("COHORT", shlex.quote(name))
            for name in cohorts
            for command in _mend(self.word)[0]
        ]

    @property
    def is_pending(self) -> bool:
        """Whether nothing is wrong: nobody has asked yet."""
        return self.word == "missing" and self.likeness == "no answer yet"

    @property
    def note(self) -> str:
        """What to know before that."""
        return _mend(self.word)[1]


_MEND: dict[str, tuple[tuple[str, ...], str]] = {
    "unparseable": (
        ("genworker reparse COHORT", "genworker retry COHORT --unparseable"),
        "Mend the parser or the template first. To parse again costs nothing; to ask again does, and "
        "where no seed = true is set a model tends to answer the same.",
    ),
    "truncated": (
        ("genworker retry COHORT --truncated",),
        "Raise max_tokens first: otherwise a retry is cut off again.",
    ),
    "content_filtered": (
        ("genworker retry COHORT --failed",),
        "The same prompt tends to be filtered again: change the template or the model.",
    ),
    "blocked": (("genworker run COHORT",), "Mend the draft or essay that is named, then run."),
    "missing": (("genworker run COHORT",), ""),
}


def _mend(word: str) -> tuple[tuple[str, ...], str]:
    return _MEND.get(word, (("genworker retry COHORT --failed",), ""))


_VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|\b(?=\w*\d)\w{6,}\b|\b\d{4,}\b|\b\d+\.\d+\b")


def cause_of(reason: str) -> str:
    """A reason without what differs from row to row: quotations, ids, long numbers."""
    return _VARYING.sub("…", reason)


def failure_groups(scores: Scores) -> list[FailureGroup]:
    """Everything of the plan that is not done, by cause, the most frequent first."""
    groups: dict[tuple[str, str, Stage], FailureGroup] = {}
    troubles = [(row, reason) for row, reason in scores.troubles]
    troubles += [(e.row, e.error) for e in scores.evaluations if e.error is not None]
    troubles += [(c.row, c.error) for c in scores.compared if c.error is not None]
    for row, reason in troubles:
        word, _, rest = reason.partition(": ")
        cause = cause_of(rest)
        group = groups.get((word, cause, row.stage))
        if group is None:
            group = groups[word, cause, row.stage] = FailureGroup(word, cause, row.stage)
        group.where[f"{row.template_id} by {row.llm_model_id or '?'}"] = None
        group.rows.append((row, reason))
    return sorted(groups.values(), key=lambda group: (-len(group.rows), group.stage.order))
