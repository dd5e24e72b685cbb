"""``plan``: says what a run would do, cost and take."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
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
    say,
)
from genworker.cli.options import (
    BatchOption,
    LimitOption,
    MaxCallsOption,
    MaxCostOption,
    MaxTokensOption,
    OnlyOption,
    StageOption,
)
from genworker.cli.refresh import stale_counts, stale_lines
from genworker.cli.tables import table
from genworker.cli.words import blocked_lines, cost_text
from genworker.core.money import cap_text, dollars
from genworker.core.stages import STAGES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from genworker.core.plan import Plan
    from genworker.core.stages import Stage
    from genworker.project.open import Project
    from genworker.run.engine import RunOptions
    from genworker.run.estimate import Estimate
    from genworker.run.requests import CohortWork
    from genworker.run.routes import Route


@app.command("plan")
@command
def plan(
    cohort: CohortArgument,
    config: ConfigOption = None,
    data_root: DataRootOption = None,
    stage: StageOption = None,
    only: OnlyOption = None,
    limit: LimitOption = None,
    max_cost: MaxCostOption = None,
    max_calls: MaxCallsOption = None,
    max_tokens: MaxTokensOption = None,
    batch: BatchOption = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Ask each endpoint for its list of models, which is free."),
    ] = False,
    json_: JsonOption = False,
) -> int:
    """Say what `run` would do, cost and take, and check all that it needs. Pays nothing, writes nothing."""
    from genworker.core.budget import Caps
    from genworker.project.open import open_project
    from genworker.run.engine import RunOptions

    options = RunOptions(
        frozenset(stage) if stage else None,
        frozenset(only) if only else None,
        limit=limit,
        caps=Caps(max_cost, max_calls, max_tokens),
        batch=batch,
    )
    return show_plan(open_project(config, data_root), cohort, options, as_json=json_, check=check)


def show_plan(
    project: Project, cohort: str, options: RunOptions, *, as_json: bool, check: bool = False
) -> int:
    """Print the plan as a table or as JSON.

    Args:
        check: look at the endpoints' lists of models.
    """
    from genworker.core.selection import select
    from genworker.project.open import open_membership, plan_cohort
    from genworker.run.caps import check_caps
    from genworker.run.estimate import estimate
    from genworker.run.ledger import LedgerReader, last_limits
    from genworker.run.requests import check_jobs, odd_sections, open_work
    from genworker.store.index import StoreIndex
    from genworker.store.ledger import Accounts

    membership = open_membership(project, cohort, strict=True)
    work = open_work(project, membership, answer_tokens=options.answer_tokens, batch=options.batch)
    index, accounts = StoreIndex(project.paths), Accounts(project.paths)
    reader = LedgerReader(project.paths, membership, work.routes.find_price, index, accounts=accounts)
    index.listener = reader
    planned = plan_cohort(project, membership, options.redo, index)
    selected = select(
        planned,
        stages=options.stages,
        only=options.only,
        limit=options.limit,
        is_free=work.is_copy,
        shard=options.shard,
    )
    jobs = [job for job, chosen in enumerate(selected) if chosen]
    check_jobs(work, jobs)
    for line in odd_sections(work):
        say(f"warning: {line}")
    expected = estimate(work, planned, jobs, last_limits(accounts, cohort))
    caps = options.caps_over(project.loaded.settings)
    record = plan_record(cohort, planned, jobs, work, expected, options)
    for stage, number in stale_counts(project, planned).items():
        record["stages"][stage.value]["stale"] = number
    ledger = reader.close()
    record["money"] = ledger.money.to_json()
    work.routes.build(len(membership), ((job, _model(work, job)) for job in jobs if not work.is_copy(job)))
    called = list(work.routes.called(membership.rows, jobs))
    record["unbounded"] = unbounded(called, work)
    record["loose"] = loosened(called, work)
    if caps:
        check_caps(caps, project.loaded, ledger, called, work.sampling)
        record["caps"] = {
            "cost_usd": None if caps.usd is None else str(caps.usd),
            "calls": caps.calls,
            "tokens": caps.tokens,
        }
        record["caps"]["against"] = cap_text(ledger.money.total)
        record["caps"]["tokens_at_most"] = ledger.spent.tokens
    if check:
        record["endpoints"] = check_endpoints(project, [route for _, route in called])
    if as_json:
        put_json(record)
        return 0
    for line in plan_table(record):
        put(line)
    put()
    for line in plan_sentences(record):
        put(line)
    for line in (*stale_lines(cohort, record["stages"]), *blocked_lines(planned)):
        put(line)
    return 0


def check_endpoints(project: Project, routes: Sequence[Route]) -> dict[str, Any]:
    """Say what the endpoints' lists of models say of the routes.

    Returns:
        The same for machines, by the endpoint's name.

    Raises:
        ConfigError: a key or an address is wrong.
    """
    import asyncio

    from genworker.run.preflight import look_or_refuse, servers

    asked = servers(project.loaded, sorted(route.endpoint for route in routes))
    found = asyncio.run(look_or_refuse(project.loaded, asked))
    for line in found.warnings(routes):
        say(f"warning: {line}")
    for name in asked:
        silent = found.silent.get(name)
        say(
            f"{name}: "
            + ("answers, and lists its models" if silent is None else f"has told no list of models: {silent}")
        )
    return found.to_json(routes)


def unbounded(called: Sequence[tuple[Stage, Route]], work: CohortWork) -> list[dict[str, str]]:
    """The stages and models whose answers nothing bounds, so that one may cost anything."""
    from genworker.run.routes import longest_answer

    return [
        {"stage": stage.value, "model": route.model_id, "endpoint": route.endpoint}
        for stage, route in called
        if (route.price is None or route.price.at_most(0, 1))
        and longest_answer(route, work.sampling(stage, route.model_id, route.endpoint, "x")) is None
    ]


def loosened(called: Sequence[tuple[Stage, Route]], work: CohortWork) -> list[dict[str, str]]:
    """The fields of ``extra_body`` under which list price and ``max_tokens`` do not bound a call's cost."""
    from genworker.core.loose_fields import loose_fields

    return [
        {
            "stage": stage.value,
            "model": route.model_id,
            "endpoint": route.endpoint,
            "field": loose.name,
            "why": loose.why.value,
        }
        for stage, route in called
        for loose in loose_fields(work.sampling(stage, route.model_id, route.endpoint, "x").extra_body)
    ]


def _model(work: CohortWork, job: int) -> str:
    return work.membership.rows[job].llm_model_id or ""


def plan_record(
    cohort: str, planned: Plan, jobs: Sequence[int], work: CohortWork, expected: Estimate, options: RunOptions
) -> dict[str, Any]:
    """The plan for machines."""
    from genworker.core.plan import RowState

    rows = planned.membership.rows
    copies = Counter(rows[job].stage for job in jobs if work.is_copy(job))
    calls = Counter(rows[job].stage for job in jobs)
    calls.subtract(copies)
    redo, failures = options.redo, planned.failures
    # What replaces an answer that the store holds.
    again = Counter(rows[job].stage for job in jobs if redo is not None and redo(job, failures.get(job)))
    counts = planned.counts()
    return {
        "cohort": cohort,
        "calls": sum(calls.values()),
        "copies": sum(copies.values()),
        "tokens": expected.tokens,
        "cost_usd": format(expected.usd(), ".6f"),
        "unpriced": expected.unpriced(),
        "seconds": expected.seconds,
        "limited_by": expected.limited_by,
        "stages": {
            stage.value: {
                "planned": sum(counts[stage].values()),
                "done": counts[stage][RowState.DONE],
                "missing": counts[stage][RowState.MISSING] - again[stage],
                "again": again[stage],
                "unparsed": counts[stage][RowState.UNPARSED],
                "blocked": counts[stage][RowState.BLOCKED],
                "calls": calls[stage],
                "copies": copies[stage],
                "failed": {kind.value: n for kind, n in planned.failed_kinds(stage).items()},
                "cost_usd": format(expected.usd(stage), ".6f"),
                "unpriced": expected.unpriced(stage),
            }
            for stage in STAGES
        },
        "models": [group.to_json() for group in expected.groups],
    }


def plan_table(record: dict[str, Any]) -> list[str]:
    """The plan's tables from its JSON form: a line per stage, and one per stage and model."""
    rows = []
    for name, facts in record["stages"].items():
        why = [f"{facts['missing']} missing"] if facts["missing"] else []
        why += [f"{facts['again']} again"] if facts["again"] else []
        why += [f"{count} {kind}: see retry" for kind, count in facts["failed"].items()]
        if facts["unparsed"]:
            why.append(f"{facts['unparsed']} to be parsed, free")
        if facts["blocked"]:
            why.append(f"{facts['blocked']} blocked")
        if facts["stale"]:
            why.append(f"{facts['stale']} stale")
        to_do = str(facts["calls"]) + (f" + {facts['copies']} copies" if facts["copies"] else "")
        cost = cost_text(Decimal(facts["cost_usd"]), facts["unpriced"]) if facts["calls"] else "-"
        rows.append([name, str(facts["planned"]), str(facts["done"]), to_do, ", ".join(why) or "-", cost])
    lines = table(["stage", "plan", "in store", "to do", "why", "est. cost"], rows, right=(1, 2, 3))
    if len(record["models"]) > 1 or any(group["calls"] for group in record["models"]):
        cells = [
            [
                group["stage"],
                group["model"],
                str(group["calls"]),
                f"{group['input_tokens']:,}",
                f"{group['output_tokens']:,}",
                "unpriced" if group["cost_usd"] is None else dollars(Decimal(group["cost_usd"])),
                f"{group['from_own_answers']} own answers"
                if group["from_own_answers"]
                else "lengths, guesses",
            ]
            for group in record["models"]
        ]
        header = ["stage", "model", "calls", "tokens in", "tokens out", "est. cost", "from"]
        lines += ["", *table(header, cells, right=(2, 3, 4, 5))]
    return lines


def _batch_sentences(record: dict[str, Any]) -> list[str]:
    """What the same would cost in batches and call by call, where that is not the same."""
    groups = [group for group in record["models"] if group["batch_usd"] is not None]
    live = sum((Decimal(group["live_usd"]) for group in groups), Decimal(0))
    batch = sum((Decimal(group["batch_usd"]) for group in groups), Decimal(0))
    if live == batch:
        return []
    return [f"Call by call: {dollars(live)} (--no-batch); all in batches: {dollars(batch)} (--batch)."]


def _tier_sentences(record: dict[str, Any]) -> list[str]:
    """Which service tiers are asked for."""
    asked: dict[str, list[str]] = {}
    for group in record["models"]:
        if group["service_tier"] is not None and group["calls"]:
            asked.setdefault(group["service_tier"], []).append(f"{group['stage']} by {group['model']}")
    return [
        f"Service tier {tier}: {', '.join(names)}; an answer costs what the tier does that it was served at, "
        "and caps count with the dearest that it may be."
        for tier, names in asked.items()
    ]


def plan_sentences(record: dict[str, Any]) -> list[str]:
    """What the tables come to."""
    from genworker.cli.display import duration

    if not record["calls"] and not record["copies"]:
        return ["Nothing to do. No calls made."]
    copies = f" and {record['copies']} free copies" if record["copies"] else ""
    cost = cost_text(Decimal(record["cost_usd"]), record["unpriced"])
    lines = [
        f"A run would make {record['calls']} calls{copies}, {record['tokens']:,} tokens, {cost} (estimated). "
        "No calls made."
    ]
    if record["seconds"] is not None:
        lines.append(f"It would take about {duration(record['seconds'])}: {record['limited_by']}.")
    lines += _batch_sentences(record)
    lines += _tier_sentences(record)
    if "caps" in record:
        caps, calls = record["caps"], record["money"]["calls"]
        shown = []
        if caps["cost_usd"] is not None:
            shown.append(f"${caps['cost_usd']} ({caps['against']})")
        if caps["calls"] is not None:
            shown.append(f"{caps['calls']:,} calls (made so far: {calls:,})")
        if caps["tokens"] is not None:
            shown.append(f"{caps['tokens']:,} tokens (used so far, at most: {caps['tokens_at_most']:,})")
        lines.append(f"Cap over all runs: {', '.join(shown)}.")
    for field in record["loose"]:
        lines.append(
            f"extra_body has {field['field']} for {field['stage']} by {field['model']}: {field['why']}. "
            "The estimate knows nothing of it."
        )
    for group in record["unbounded"]:
        lines.append(
            f"Nothing bounds an answer of {group['stage']} by {group['model']}: one that fails may count for "
            f"as much as its model can write. Add max_tokens to [stages.{group['stage']}] or [models]."
        )
    return lines
