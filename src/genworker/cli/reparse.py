"""``reparse``: applies the present parsers to answers that are paid for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from genworker.cli.app import (
    CohortArgument,
    ConfigOption,
    DataRootOption,
    JsonOption,
    app,
    command,
    put,
    put_json,
)
from genworker.cli.tables import table
from genworker.cli.words import money_record
from genworker.core.stages import Stage
from genworker.core.visible import visible

if TYPE_CHECKING:
    from genworker.run.reparse import Reparsed, ReparseResult

SHOWN_ROWS = 60
SHOWN_CHANGES = 20


@app.command("reparse")
@command
def reparse(
    cohort: CohortArgument,
    stage: Annotated[
        list[Stage] | None,
        typer.Option("--stage", help="Only this stage, also where texts were made from it; repeatable."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change, and stop.")] = False,
    config: ConfigOption = None,
    data_root: DataRootOption = None,
    json_: JsonOption = False,
) -> int:
    """Apply the present parsers to the answers of COHORT that are paid for. Makes no call.

    Says first what changes, then changes it. What an answer said before is kept aside. Drafts and essays
    that other texts were made from stay as they are unless `--stage` names them.
    """
    from genworker.project.open import open_project
    from genworker.run.reparse import reparse_cohort

    project = open_project(config, data_root)
    if json_:
        result = reparse_cohort(project, cohort, stages=stage or None, dry_run=dry_run)
        money = money_record(project.paths, project.loaded.settings, [cohort])
        put_json(reparse_record(cohort, result, dry_run) | {"money": money})
        return 0
    for line in reparse_lines(reparse_cohort(project, cohort, stages=stage or None, dry_run=True)):
        put(line)
    if not dry_run:  # also where nothing would change: a reparse that was killed has left its staging
        for line in done_lines(reparse_cohort(project, cohort, stages=stage or None)):
            put(line)
    return 0


def reparse_record(cohort: str, result: ReparseResult, dry_run: bool) -> dict[str, Any]:
    """What changed, for machines."""
    return {
        "cohort": cohort,
        "dry_run": dry_run,
        "parsed": result.parsed,
        "unknown": result.unknown,
        "kept": result.kept,
        "busy": result.busy,
        "children": result.children,
        "changes": [
            {
                "stage": change.row.stage.value,
                "gen_id": change.row.gen_id,
                "change": change.change.value,
                "old": change.old,
                "new": change.new,
                "reason": change.reason,
            }
            for change in result.changes
        ],
    }


def reparse_lines(result: ReparseResult) -> list[str]:
    """What would change, for people: some in full, all as counts."""
    from collections import Counter

    from genworker.run.reparse import Change

    counts = Counter((change.row.stage, change.change) for change in result.changes)
    rows = [[stage.value, *(str(counts[stage, change]) for change in Change)] for stage in Stage]
    lines = [change_line(change) for change in result.changes[:SHOWN_CHANGES]]
    if len(result.changes) > SHOWN_CHANGES:
        lines.append(f"… and {len(result.changes) - SHOWN_CHANGES} more; --json has them all")
    lines += ["", *table(["stage", "other text", "gained", "lost"], rows, right=(1, 2, 3)), ""]
    lines.append(f"{len(result.changes)} of {result.parsed} answers would change; no call was needed.")
    if result.kept:
        lines.append(
            f"{result.kept} drafts or essays parse differently now, but texts were made from them: "
            "they stay. Name their stage with --stage to change them all the same."
        )
    if result.children:
        lines.append(f"{result.children} texts were made from what these drafts and essays said before.")
    if result.unknown:
        lines.append(
            f"{result.unknown} answers stay as they are: the catalogue does not know their template."
        )
    return lines


def done_lines(result: ReparseResult) -> list[str]:
    """What was changed, for people."""
    lines = [f"{len(result.changes)} of {result.parsed} answers changed; no call was needed."]
    if result.changes:
        lines[0] += " What they said before is kept aside."
    if result.busy:
        lines.append(f"{result.busy} answers stay as they are: another worker is about to replace them.")
    return lines


def change_line(change: Reparsed) -> str:
    """One answer that says something else now."""
    what = f"{parsed_word(change.old)} → {parsed_word(change.new)}"
    reason = visible(change.reason or "", one_line=True)
    return f"{change.row.stage.value}  {change.row.gen_id}  {what}  {reason}".rstrip()


def parsed_word(text: str | None) -> str:
    """A parsed text in a few characters."""
    if text is None:
        return "no text"
    return visible(text, one_line=True) if len(text) <= 12 else f"{len(text)} characters"
