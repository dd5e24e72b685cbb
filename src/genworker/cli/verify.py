"""``verify``: reads a whole store, reports all that is wrong with it, and mends what is safe to mend."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genworker.cli.app import ConfigOption, DataRootOption, JsonOption, app, command, put, put_json, say
from genworker.errors import ExitCode

if TYPE_CHECKING:
    from genworker.project.open import Project
    from genworker.store.check import Check, Finding

SHOWN = 200
"""Findings printed; the rest is counted. ``--json`` has them all."""


@app.command("verify")
@command
def verify(
    cohort: Annotated[
        str | None, typer.Argument(metavar="[COHORT]", help="The cohort's id; the whole store without one.")
    ] = None,
    config: ConfigOption = None,
    data_root: DataRootOption = None,
    json_: JsonOption = False,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Salvage, parse again, move what is broken aside; deletes no text."),
    ] = False,
) -> int:
    """Check every file of the store, or of COHORT: what is torn, changed, misplaced, stale or left behind.

    Asks no model. With --repair it puts answers of dead runs in place, parses what can be parsed now and
    moves broken directories aside, so that the next run makes them again. Everything else is reported only.

    Exit codes: 0 nothing is wrong, 1 something is.
    """
    from genworker.project.open import open_project

    project = open_project(config, data_root)
    check = make_check(project, cohort)
    findings = check.run()
    steps: list[dict[str, Any]] = []
    if repair and findings:
        steps = run_repair(check, as_json=json_)
        check = make_check(project, cohort)
        findings = check.run()
    if json_:
        put_json(verify_record(check, findings, steps))
    else:
        for line in verify_lines(check, findings):
            put(line)
    return int(ExitCode.FAILURES if findings else ExitCode.OK)


def make_check(project: Project, cohort: str | None) -> Check:
    """A check of one cohort, or of the whole store."""
    from genworker.core.membership import Membership, MembershipRow
    from genworker.errors import FaultyInputError, GenworkerError
    from genworker.project.open import open_membership
    from genworker.run.requests import CohortWork, find_combos
    from genworker.store.catalog import TemplateFiles, list_cohorts
    from genworker.store.check import Check, Finding, Kind

    names = [cohort] if cohort is not None else list_cohorts(project.paths)
    memberships, unreadable = [], []
    for name in names:
        try:
            memberships.append(open_membership(project, name, strict=False))
        except FaultyInputError as error:
            if cohort is not None:
                raise
            unreadable.append(Finding(Kind.MEMBERSHIP, f"cohorts/{name}/membership.csv", str(error)))
    templates = TemplateFiles(project.paths)
    works: dict[int, CohortWork] = {}

    def render(membership: Membership, index: int, parent_text: str | None) -> str | None:
        work = works.get(id(membership))
        if work is None:
            wanted = {row.combo_id for row in membership.rows if row.stage.is_root}
            combos = find_combos(project.catalog, wanted)
            work = works[id(membership)] = CohortWork(project, membership, templates, combos, "", "")
        try:
            return work.prompt(index, parent_text)
        except (GenworkerError, KeyError):
            return None

    def parser_of(row: MembershipRow) -> str | None:
        entry = project.catalog.templates[row.stage].get(row.template_id)
        return None if entry is None else entry.parser or "identity"

    return Check(
        project.paths,
        memberships,
        render,
        parser_of,
        whole=cohort is None,
        group_permissions=project.loaded.settings.group_permissions,
        findings=list(unreadable),
    )


def run_repair(check: Check, *, as_json: bool) -> list[dict[str, Any]]:
    """Mend, saying each step."""
    import asyncio

    from genworker.run.lock import new_run_id
    from genworker.store.check import Step, repair

    steps: list[dict[str, Any]] = []

    def tell(step: Step) -> None:
        steps.append({"what": step.what, "place": step.place, "done": step.done})
        if not as_json:
            say(f"{step.place}: {step.what}")

    asyncio.run(repair(check, new_run_id(), tell))
    return steps


def verify_record(check: Check, findings: list[Finding], steps: list[dict[str, Any]]) -> dict[str, Any]:
    """The outcome for machines."""
    return {
        "cohorts": [membership.cohort_id for membership in check.memberships],
        "checked": check.checked,
        "counts": dict(sorted(Counter(finding.kind.value for finding in findings).items())),
        "findings": [
            {
                "kind": finding.kind.value,
                "place": finding.place,
                "what": finding.what,
                "stage": None if finding.stage is None else finding.stage.value,
                "gen_id": finding.gen_id,
            }
            for finding in findings
        ],
        "repairs": steps,
    }


def verify_lines(check: Check, findings: list[Finding]) -> list[str]:
    """The outcome for people."""
    lines = [f"{finding.kind.value:<15} {finding.place}: {finding.what}" for finding in findings[:SHOWN]]
    if len(findings) > SHOWN:
        lines.append(f"… and {len(findings) - SHOWN} more; --json has them all")
    counts = Counter(finding.kind.value for finding in findings)
    found = ", ".join(f"{count} {kind}" for kind, count in counts.most_common()) or "nothing is wrong"
    lines.append(f"{check.checked} generations read: {found}")
    return lines
