"""``verify``: reads a whole store, reports all that is wrong with it, and mends what is safe to mend."""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genworker.cli.app import ConfigOption, DataRootOption, JsonOption, app, command, put, put_json, say
from genworker.cli.words import money_record
from genworker.errors import ExitCode, Fault, UsageError

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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --repair: say what it would do, and stop.")
    ] = False,
) -> int:
    """Check every file of the store, or of COHORT: what is torn, changed, misplaced, stale or left behind.

    Asks no model. Damage is told from notes: what is stale, unlisted, foreign, or left out by another tool.
    With --repair it puts answers of dead runs in place, parses what can be parsed now and moves aside what
    is broken and not done, so that the next run makes it again. Everything else is reported only.

    Exit codes: 0 no damage, 1 damage.
    """
    from genworker.errors import StoreError
    from genworker.project.open import open_project

    project = open_project(config, data_root)
    check = make_check(project, cohort)
    findings = check.run()
    steps: list[dict[str, Any]] = []
    if dry_run and not repair:
        raise UsageError([Fault("--dry-run is given without --repair", fix="a check alone changes nothing")])
    if repair and dry_run:
        steps = intended_steps(check)
    elif repair and findings:
        for step in intended_steps(check):
            if not json_:
                say(f"{step['place']}: will {step['what']}")
        steps = run_repair(check, as_json=json_)
        check = make_check(project, cohort)
        findings = check.run()
    if json_:
        money: dict[str, Any] | None = None
        with contextlib.suppress(StoreError):  # a batch that cannot be read: it is among the findings
            money = money_record(project.paths, project.loaded.settings, check.memberships)
        put_json(verify_record(check, findings, steps, dry_run=dry_run) | {"money": money})
    else:
        for step in steps if dry_run else ():
            put(f"{step['place']}: would {step['what']}")
        for line in verify_lines(check, findings):
            put(line)
    return int(ExitCode.FAILURES if check.damage else ExitCode.OK)


def make_check(project: Project, cohort: str | None) -> Check:
    """A check of one cohort, or of the whole store."""
    from genworker.core.generation import Answer, Generation, answer_again
    from genworker.core.membership import Membership, MembershipRow
    from genworker.errors import FaultyInputError, GenworkerError
    from genworker.project.open import open_membership
    from genworker.run.requests import CohortWork, open_work
    from genworker.store.catalog import TemplateFiles, is_two_column, list_cohorts
    from genworker.store.check import Check, Finding, Kind, Severity

    names = [cohort] if cohort is not None else list_cohorts(project.paths)
    memberships, unreadable = [], []
    for name in names:
        try:
            memberships.append(open_membership(project, name, strict=False))
        except FaultyInputError as error:
            if cohort is not None:
                raise
            severity = Severity.NOTE if is_two_column(project.paths, name) else Severity.DAMAGE
            place = f"cohorts/{name}/membership.csv"
            unreadable.append(Finding(Kind.MEMBERSHIP, place, str(error), severity=severity))
    templates = TemplateFiles(project.paths)
    works: dict[int, CohortWork] = {}

    def render(
        membership: Membership, index: int, parent_text: str | None, second_text: str | None
    ) -> str | None:
        work = works.get(id(membership))
        if work is None:
            work = works[id(membership)] = open_work(project, membership, templates=templates)
        try:
            return work.prompt(index, parent_text, second_text)
        except (GenworkerError, KeyError):
            return None

    def again(row: MembershipRow, held: Generation) -> Answer | None:
        demands = project.demands(row.stage, row.template_id)
        return None if demands is None else answer_again(held, row, demands)

    return Check(
        project.paths,
        memberships,
        render,
        again,
        whole=cohort is None,
        group_permissions=project.loaded.settings.group_permissions,
        has_endpoint=project.loaded.has_endpoint,
        findings=list(unreadable),
    )


def intended_steps(check: Check) -> list[dict[str, Any]]:
    """What a repair would do, in its order; nothing is touched."""
    from genworker.store.check import Kind, intended

    steps: list[dict[str, Any]] = []
    for finding in check.findings:
        if finding.kind in (Kind.STAGING, Kind.ANSWERS):
            what = "put its answers in place, and remove what is left of it"
            steps.append({"what": what, "place": finding.place, "done": False})
    for stage, gen_id, mend in intended(check):
        steps.append({"what": mend.value, "place": f"{stage.value}/{gen_id}", "done": False})
    return steps


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


def verify_record(
    check: Check, findings: list[Finding], steps: list[dict[str, Any]], *, dry_run: bool
) -> dict[str, Any]:
    """The outcome for machines."""
    return {
        "dry_run": dry_run,
        "damage": len(check.damage),
        "cohorts": [membership.cohort_id for membership in check.memberships],
        "checked": check.checked,
        "counts": dict(sorted(Counter(finding.kind.value for finding in findings).items())),
        "findings": [
            {
                "kind": finding.kind.value,
                "severity": finding.severity.value,
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
    damage = check.damage
    notes = [finding for finding in findings if finding.severity.value == "note"]
    lines = []
    for group in (damage, notes):
        lines += [
            f"{finding.severity.value:<6}  {finding.kind.value:<15} {finding.place}: {finding.what}"
            for finding in group[:SHOWN]
        ]
        if len(group) > SHOWN:
            lines.append(f"… and {len(group) - SHOWN} more; --json has them all")
    words = [f"{_counts(group)} ({word})" for group, word in ((damage, "damage"), (notes, "notes")) if group]
    found = "; ".join(words) or "nothing is wrong"
    lines.append(f"{check.checked} generations read: {found}")
    return lines


def _counts(findings: list[Finding]) -> str:
    counts = Counter(finding.kind.value for finding in findings)
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
