"""``status``: how far a cohort is, and where the settings come from."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genworker.cli.app import ConfigOption, DataRootOption, JsonOption, app, command, put, put_json, say
from genworker.cli.display import belief_words, wait_words
from genworker.cli.refresh import stale_counts, stale_lines
from genworker.cli.tables import shorten, table
from genworker.core.controller import Belief
from genworker.core.lane import Wait
from genworker.core.money import money_text
from genworker.core.stages import STAGES, Stage
from genworker.errors import ExitCode, FaultyInputError, StoreError

if TYPE_CHECKING:
    from genworker.project.open import Project
    from genworker.store.catalog import TemplateFiles
    from genworker.store.index import StoreIndex
    from genworker.store.ledger import Accounts

WATCH_EVERY_S = 3.0
LAST_ERRORS = 3
LIMITS = ("at_once", "per_min", "chance", "slow_at_once")
"""What a running worker says of a lane, as `genworker.core.controller.Belief` has it."""


@app.command("status")
@command
def status(
    cohort: Annotated[
        str | None, typer.Argument(metavar="[COHORT]", help="The cohort's id; all without one.")
    ] = None,
    config: ConfigOption = None,
    data_root: DataRootOption = None,
    json_: JsonOption = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Say it again every few seconds, until no worker is running.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Also each setting and where it is from.")
    ] = False,
) -> int:
    """Say how far COHORT is, what it has cost, and what a running worker is doing. Reads only.

    Exit codes: 0, or 1 when a cohort among all cannot be read; the others are shown.
    """
    from genworker.project.open import open_project
    from genworker.store.catalog import list_cohorts

    project = open_project(config, data_root)
    names = [cohort] if cohort is not None else list_cohorts(project.paths)
    while True:
        look = open_look(project)
        records = [record_or_error(look, name, raises=cohort is not None) for name in names]
        if json_:
            put_json(records[0] if cohort is not None else {"cohorts": records})
        else:
            show(records, project.paths.cohorts_dir)
        if not watch or not any(record.get("workers") for record in records):
            break
        time.sleep(WATCH_EVERY_S)
    if verbose and not json_:
        for line in settings_lines(project):
            put(line)
    unread = any("error" in record for record in records)
    return int(ExitCode.FAILURES if unread else ExitCode.OK)


@dataclass(frozen=True, slots=True)
class Look:
    """A data root at one moment: what cohorts share is read once for all of them."""

    project: Project
    index: StoreIndex
    accounts: Accounts
    templates: TemplateFiles


def open_look(project: Project) -> Look:
    """Look at a data root as it stands now; each thing is read when it is asked for first."""
    from genworker.store.catalog import TemplateFiles
    from genworker.store.index import StoreIndex
    from genworker.store.ledger import Accounts

    return Look(project, StoreIndex(project.paths), Accounts(project.paths), TemplateFiles(project.paths))


def record_or_error(look: Look, cohort: str, *, raises: bool) -> dict[str, Any]:
    """Counts of one cohort; why it cannot be read, where several are asked for."""
    try:
        return cohort_record(look, cohort)
    except (FaultyInputError, StoreError) as error:
        if raises:
            raise
        return {"cohort": cohort, "error": str(error)}


def show(records: list[dict[str, Any]], cohorts_dir: Path) -> None:
    """Print the tables of these cohorts, and which cannot be read."""
    if not records:
        say(f"There are no cohorts below {cohorts_dir}.")
    for record in records:
        if "error" in record:
            continue
        for line in status_lines(record):
            put(line)
        put()
    for record in records:
        if "error" in record:
            say(f"{record['cohort']}: cannot be read: {record['error']}")


def cohort_record(look: Look, cohort: str) -> dict[str, Any]:
    """Counts of one cohort, for people and machines."""
    from genworker.core.plan import RowState
    from genworker.project.open import open_membership, plan_cohort
    from genworker.run.batch_money import open_intents
    from genworker.run.ledger import LedgerReader, failed_calls, todays_prices
    from genworker.run.now import running

    project, index, accounts = look.project, look.index, look.accounts
    membership = open_membership(project, cohort, strict=False)
    ledger = LedgerReader(
        project.paths, membership, todays_prices(project.loaded.settings), index, accounts=accounts
    )
    index.listener = ledger
    plan = plan_cohort(project, membership, index=index)
    money = ledger.close().money
    counts = plan.counts()
    stale = stale_counts(project, plan, look.templates)
    reasons = failed_calls(project.paths, cohort, accounts)
    missing = int(RowState.MISSING)
    calls: dict[Stage, int] = dict.fromkeys(STAGES, 0)
    errors: Counter[str] = Counter()
    for row, state in zip(membership.rows, plan.states, strict=True):
        if state == missing and (row.stage, row.gen_id) in reasons:
            calls[row.stage] += 1
            errors[reasons[row.stage, row.gen_id]] += 1
    batches = open_intents(project.paths, cohort)
    return {
        "cohort": cohort,
        "batches": {"open": len(batches), "rows": sum(intent.count for intent in batches)},
        "money": money.to_json(),
        "cost": money_text(money.total),
        "rows": len(membership),
        "workers": running(project.paths, cohort),
        "errors": [{"error": error, "rows": number} for error, number in errors.most_common(LAST_ERRORS)],
        "done": sum(counts[stage][RowState.DONE] for stage in STAGES),
        "stages": {
            stage.value: {
                "planned": sum(counts[stage].values()),
                "done": counts[stage][RowState.DONE],
                "failed": {kind.value: number for kind, number in plan.failed_kinds(stage).items()}
                | ({"call": calls[stage]} if calls[stage] else {}),
                "unparsed": counts[stage][RowState.UNPARSED],
                "blocked": counts[stage][RowState.BLOCKED],
                "missing": counts[stage][RowState.MISSING] - calls[stage],
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
        *_batch_lines(record["batches"]),
        *(line for worker in record["workers"] for line in worker_lines(worker)),
        *(f"{error['rows']} calls failed: {shorten(error['error'], 140)}" for error in record["errors"]),
        *stale_lines(record["cohort"], record["stages"]),
    ]


def _batch_lines(batches: dict[str, int]) -> list[str]:
    if not batches["open"]:
        return []
    what = "batch that is" if batches["open"] == 1 else "batches that are"
    return [f"{batches['rows']} rows in {batches['open']} {what} out: genworker batches"]


def worker_lines(worker: dict[str, Any]) -> list[str]:
    """What a running worker is doing."""
    from genworker.cli.display import duration

    parts = [f"running: pid {worker.get('pid', '?')} on {worker.get('host', '?')}"]
    if "in_flight" in worker:
        parts += [f"{worker['rate_per_min']:.0f} answers/min", f"{worker['in_flight']} in flight"]
        if worker["eta_s"] is not None:
            parts.append(f"eta {duration(worker['eta_s'])}")
        parts += ["stopping"] if worker["stopping"] else []
    else:
        parts.append("it has just begun")
    lines = [" · ".join(parts), *map(_crew_line, worker.get("crew", []))]
    for lane in worker.get("waiting", []):
        wait = Wait(lane["lane"], lane.get("why", ""), lane.get("for_s", 0.0), lane["seconds"])
        lines.append(f"  {wait_words(wait)}")
    for lane in worker.get("limits", []):
        known = {name: lane[name] for name in LIMITS if isinstance(lane.get(name), int | float)}
        if words := belief_words(Belief(**known)):
            lines.append(f"  limit {lane['lane']}: {words}")
    for lane in worker.get("stopped", []):
        lines.append(f"  {lane['lane']} was stopped: {shorten(lane['why'], 140)}")
    for error in worker.get("errors", [])[-3:]:
        who = error.get("gen_id") or error.get("lane")
        lines.append(f"  last error, {who}: {shorten(error['error'], 140)}")
    return lines


def _crew_line(member: dict[str, Any]) -> str:
    """One of several workers of a run: what it does, and its part of what they share."""
    parts = [f"{member['in_flight']} in flight", f"{member['answers']} answers", f"{member['shards']} shards"]
    if member["is_lost"]:
        parts.append(f"lost: not heard of for {member['heard_s_ago']:.0f} s")
    parts += [
        f"{shorten(pool, 60)} {part['share']:g} of {part['of']:g}"
        for pool, part in sorted(member["leased"].items())
        if part["share"]
    ]
    return f"  worker {member['slot']}: {' · '.join(parts)}"


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
