"""``status``: how far a cohort is, and where the settings come from."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from genworker.cli.app import ConfigOption, DataRootOption, JsonOption, app, command, put, put_json, say
from genworker.cli.refresh import stale_counts, stale_lines
from genworker.cli.tables import table
from genworker.core.money import money_text
from genworker.core.stages import STAGES
from genworker.errors import ExitCode, FaultyInputError, StoreError


@app.command("status")
@command
def status(
    cohort: Annotated[
        str | None, typer.Argument(metavar="[COHORT]", help="The cohort's id; all without one.")
    ] = None,
    config: ConfigOption = None,
    data_root: DataRootOption = None,
    json_: JsonOption = False,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Also each setting and where it is from.")
    ] = False,
) -> int:
    """Say how far COHORT is: done, failed, blocked, missing and stale per stage. Reads only.

    Exit codes: 0, or 1 when a cohort among all cannot be read; the others are shown.
    """
    from genworker.project.open import open_project
    from genworker.store.catalog import list_cohorts

    project = open_project(config, data_root)
    names = [cohort] if cohort is not None else list_cohorts(project.paths)
    records: list[dict[str, Any]] = []
    for name in names:
        try:
            records.append(cohort_record(project, name))
        except (FaultyInputError, StoreError) as error:
            if cohort is not None:
                raise
            records.append({"cohort": name, "error": str(error)})
    unread = [record for record in records if "error" in record]
    code = int(ExitCode.FAILURES if unread else ExitCode.OK)
    if json_:
        put_json(records[0] if cohort is not None else {"cohorts": records})
        return code
    if not records:
        say(f"There are no cohorts below {project.paths.cohorts_dir}.")
    for record in records:
        if "error" in record:
            continue
        for line in status_lines(record):
            put(line)
        put()
    for record in unread:
        say(f"{record['cohort']}: cannot be read: {record['error']}")
    if verbose:
        for line in settings_lines(project):
            put(line)
    return code


def cohort_record(project: Any, cohort: str) -> dict[str, Any]:
    """Counts of one cohort, for people and machines."""
    from genworker.core.plan import RowState
    from genworker.project.open import open_membership, plan_cohort
    from genworker.run.ledger import read_money

    membership = open_membership(project, cohort, strict=False)
    plan = plan_cohort(project, membership)
    counts = plan.counts()
    stale = stale_counts(project, plan)
    money = read_money(project.paths, membership, project.loaded.settings)
    return {
        "cohort": cohort,
        "money": money.to_json(),
        "cost": money_text(money.total),
        "rows": len(membership),
        "done": sum(counts[stage][RowState.DONE] for stage in STAGES),
        "stages": {
            stage.value: {
                "planned": sum(counts[stage].values()),
                "done": counts[stage][RowState.DONE],
                "failed": {kind.value: number for kind, number in plan.failed_kinds(stage).items()},
                "unparsed": counts[stage][RowState.UNPARSED],
                "blocked": counts[stage][RowState.BLOCKED],
                "missing": counts[stage][RowState.MISSING],
                "stale": stale[stage],
            }
            for stage in STAGES
        },
    }


def status_lines(record: dict[str, Any]) -> list[str]:
    """One cohort's table."""
    rows = []
    for name, facts in record["stages"].items():
        words = [f"{number} {kind}" for kind, number in facts["failed"].items()]
        words += [f"{facts['unparsed']} to be parsed"] if facts["unparsed"] else []
        failed = ", ".join(words) or "-"
        rows.append(
            [
                name,
                f"{facts['done']}/{facts['planned']}",
                failed,
                str(facts["blocked"]),
                str(facts["missing"]),
                "?" if facts["stale"] is None else str(facts["stale"]),
            ]
        )
    head = f"{record['cohort']}: {record['done']} of {record['rows']} done"
    header = ["stage", "done", "failed", "blocked", "missing", "stale"]
    return [
        head,
        *table(header, rows, right=(1, 3, 4, 5)),
        f"cost {record['cost']}",
        *stale_lines(record["cohort"], record["stages"]),
    ]


def settings_lines(project: Any) -> list[str]:
    """Each setting with its value and origin; keys are named, never shown."""
    loaded = project.loaded
    rows: list[list[str]] = []

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(
                    f"{prefix}.{getattr(key, 'value', key)}" if prefix else str(getattr(key, "value", key)),
                    inner,
                )
            return
        origin = loaded.origins.get(prefix, "default")
        if origin != "default" or "." not in prefix:
            secret = prefix.rpartition(".")[0].endswith(".headers")
            rows.append([prefix, "***" if secret else str(value), origin])

    walk("", loaded.settings.model_dump())
    return table(["setting", "value", "from"], rows)
