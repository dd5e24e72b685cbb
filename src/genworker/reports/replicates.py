"""Answers to one and the same prompt, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from genworker.core.membership import MembershipRow
from genworker.core.stages import SCORED_STAGE, STAGES, Stage
from genworker.errors import StoreError
from genworker.reports.differences import Version, compare
from genworker.reports.lineage import EssayScores
from genworker.reports.scores import Scores, Source
from genworker.reports.statistics import mean, spread

MAX_REPLICATES = 6
"""Replicates that stand side by side."""


@dataclass(frozen=True, slots=True)
class ReplicateView:
    """Answers to one and the same prompt, side by side.

    Attributes:
        values: each replicate's score or mean score, as far as it has one.
        spread: of these; ``None`` of fewer than two.
    """

    title: str
    stage: Stage
    essay_id: str | None
    values: tuple[tuple[str, str], ...]
    spread: float | None
    versions: tuple[Version, ...]


class _Group(NamedTuple):
    title: str
    stage: Stage
    essay_id: str | None
    members: tuple[tuple[str, str, float | None], ...]
    """(label, gen_id, score)"""

    @property
    def spread(self) -> float | None:
        return spread([score for _, _, score in self.members if score is not None])


def replicate_views(
    scores: Scores, essays: Sequence[EssayScores], source: Source, count: int
) -> tuple[list[ReplicateView], int]:
    """The `count` groups of replicates of each stage whose scores differ most, and how many there are."""
    groups = _replicate_groups(scores, essays)
    views = []
    for stage in STAGES:
        widest = sorted(
            (group for group in groups if group.stage is stage), key=lambda group: -(group.spread or 0.0)
        )
        views += [view for group in widest[:count] if (view := _replicate_view(group, source)) is not None]
    return views, len(groups)


def _replicate_groups(scores: Scores, essays: Sequence[EssayScores]) -> list[_Group]:
    groups = [
        _Group(
            f"{axis.template} by {axis.model}",
            SCORED_STAGE,
            essay.essay.gen_id,
            tuple((f"r{e.row.replicate}", e.row.gen_id, e.score) for e in evaluations),
        )
        for essay in essays
        for axis, evaluations in essay.by_axis.items()
        if len(evaluations) > 1
    ]
    means = {essay.essay.gen_id: essay.mean for essay in essays}
    draft_scores: dict[str, list[float]] = {}
    for essay in essays:
        if essay.mean is not None:
            draft_scores.setdefault(essay.essay.draft_id, []).append(essay.mean)
    means |= {draft: mean(values) for draft, values in draft_scores.items()}
    siblings: dict[tuple[str, ...], list[MembershipRow]] = {}
    for row in scores.plan.membership.rows:
        if not row.stage.is_scored:
            key = (row.stage, row.combo_id, row.parent_gen_id or "", row.template_id, row.llm_model_id or "")
            siblings.setdefault(key, []).append(row)
    groups += [
        _Group(
            f"{rows[0].template_id} by {rows[0].llm_model_id or '?'}",
            rows[0].stage,
            None,
            tuple((f"r{row.replicate}", row.gen_id, means.get(row.gen_id)) for row in rows),
        )
        for rows in siblings.values()
        if len(rows) > 1
    ]
    return groups


def _replicate_view(group: _Group, source: Source) -> ReplicateView | None:
    texts = []
    for label, gen_id, _ in group.members[:MAX_REPLICATES]:
        if not source.holds(group.stage, gen_id):
            continue
        try:
            generation = source.generation(group.stage, gen_id)
        except StoreError:
            continue
        texts.append((label, generation.raw_text or generation.parsed_text or ""))
    if len(texts) < 2:
        return None
    values = tuple(
        (label, "–" if score is None else f"{score:g}" if group.stage.is_scored else f"{score:.2f}")
        for label, _, score in group.members
    )
    return ReplicateView(
        group.title, group.stage, group.essay_id, values, group.spread, tuple(compare(texts))
    )
