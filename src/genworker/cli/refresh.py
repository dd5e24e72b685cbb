"""What ``plan``, ``status`` and ``run`` say and do about stale generations."""

from __future__ import annotations

import contextlib
from collections import Counter
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genworker.cli.app import say
from genworker.core.stages import STAGES, Stage

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from genworker.core.generation import Failure
    from genworker.core.plan import Plan
    from genworker.project.open import Project, Redo
    from genworker.reports.provenance import StaleGroup
    from genworker.store.catalog import TemplateFiles


class Refresh(StrEnum):
    """What a run makes again although it is there."""

    STALE = "stale"


RefreshOption = Annotated[
    Refresh | None,
    typer.Option(
        "--refresh",
        metavar="stale",
        help="Also make again what is stale, and what builds upon it: its template, its concepts or its "
        "parent's text have changed. The old ones are kept aside.",
    ),
]


def stale_counts(
    project: Project, planned: Plan, templates: TemplateFiles | None = None
) -> dict[Stage, int | None]:
    """Stale generations per stage; ``None`` where there are too many generations to look into each.

    Args:
        planned: the cohort as the store stands; what a plan makes again is missing in it, and not stale.
        templates: the same project's, where several cohorts are looked into.
    """
    from genworker.project.freshness import find_stale

    found = find_stale(project, planned, templates=templates)
    if found is None:
        return dict.fromkeys(STAGES)
    counts = found.counts()
    return {stage: counts[stage] for stage in STAGES}


def stale_groups(project: Project, cohorts: Sequence[str]) -> list[StaleGroup] | None:
    """What is stale in these cohorts and why; ``None`` where there are too many generations to look into."""
    from datetime import UTC, datetime

    from genworker.project.freshness import EAGER_ROWS, find_stale
    from genworker.project.open import open_membership, plan_cohort
    from genworker.reports.provenance import StaleGroup

    groups: Counter[tuple[Stage, str, str]] = Counter()
    for cohort in cohorts:
        membership = open_membership(project, cohort, strict=False)
        found = None
        if len(membership) <= EAGER_ROWS:
            found = find_stale(project, plan_cohort(project, membership))
        if found is None:
            return None
        for index, reason in found.reasons.items():
            row = membership.rows[index]
            groups[row.stage, row.template_id, reason.value] += 1
    stale = []
    for (stage, template_id, why), number in groups.most_common():
        changed = None
        if why == "template":
            with contextlib.suppress(OSError):
                moment = project.paths.template_file(stage, template_id).stat().st_mtime
                changed = f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M} UTC"
        stale.append(StaleGroup(stage, template_id, why, number, changed))
    return stale


def stale_lines(cohort: str, stages: dict[str, Any]) -> list[str]:
    """The sentences below a table whose records have a ``stale`` for each stage."""
    from genworker.project.freshness import EAGER_ROWS

    if any(facts["stale"] is None for facts in stages.values()):
        return [
            f"stale: not counted, there are more than {EAGER_ROWS} generations to look into; "
            f"genworker run {cohort} --refresh stale --dry-run looks into each"
        ]
    if not any(facts["stale"] for facts in stages.values()):
        return []
    return [
        "Stale generations stay as they are. To make them again, and what builds upon them: "
        f"genworker run {cohort} --refresh stale"
    ]


def redo_stale(
    project: Project,
    cohort: str,
    stages: Collection[Stage] | None = None,
    only: Collection[str] | None = None,
) -> Redo:
    """The choice of a run with ``--refresh stale``, out of what the run is about."""
    from genworker.core.plan import RowState
    from genworker.project.freshness import find_stale
    from genworker.project.open import open_membership, plan_cohort

    membership = open_membership(project, cohort, strict=True)
    planned = plan_cohort(project, membership)
    found = find_stale(project, planned, limit=None)
    assert found is not None, "there is no limit"
    rows = membership.rows
    again = {
        job
        for job in found.with_descendants()
        if planned.states[job] in (RowState.DONE, RowState.FAILED, RowState.UNPARSED)
        and (not stages or rows[job].stage in stages)
        and (not only or rows[job].gen_id in only)
    }
    parts = [
        f"{number} {stage.value}s ({kind.value} changed)"
        for stage in STAGES
        for kind, number in sorted(found.kinds(stage).items())
    ]
    say(f"Stale: {', '.join(parts)}; with what builds upon them." if parts else "Nothing is stale.")

    def redo(job: int, failure: Failure | None) -> bool:
        return job in again

    return redo
