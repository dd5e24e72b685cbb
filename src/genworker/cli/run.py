"""``run``, ``plan`` and ``retry``: making what is missing, and saying what that would be."""

from __future__ import annotations

import signal
from collections import Counter
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

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
    use_live_display,
)
from genworker.cli.refresh import RefreshOption, redo_stale, stale_counts, stale_lines
from genworker.cli.tables import table
from genworker.core.stages import STAGES, Stage
from genworker.errors import ExitCode, Fault, UsageError
from genworker.store.lock import IfLocked

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from genworker.core.generation import Failure, FailureKind
    from genworker.core.membership import Membership
    from genworker.core.plan import Plan
    from genworker.core.progress import Progress
    from genworker.engine import RunOptions, RunResult
    from genworker.estimate import Estimate
    from genworker.project import Project, Redo
    from genworker.work import CohortWork

StageOption = Annotated[
    list[Stage] | None, typer.Option("--stage", help="Only this stage; may be given several times.")
]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="GEN_ID", help="Only this generation and its missing ancestors."),
]
LimitOption = Annotated[
    int | None,
    typer.Option("--limit", min=0, metavar="N", help="At most N new answers, whole lineages first."),
]
IfLockedOption = Annotated[
    IfLocked,
    typer.Option(
        help="When another worker has the cohort: leave (exit code 4), wait for its end, or share the work."
    ),
]


def _usd(text: str) -> Decimal:
    try:
        value = Decimal(text.strip().removeprefix("$"))
    except InvalidOperation:
        value = Decimal("NaN")
    if not value.is_finite() or value < 0:
        raise typer.BadParameter(f"{text!r} is not an amount of US dollars such as 2.50")
    return value


MaxCostOption = Annotated[
    Decimal | None,
    typer.Option(
        "--max-cost",
        parser=_usd,
        metavar="USD",
        help="Spend at most so much on COHORT, all its runs together; never a cent more.",
    ),
]
MaxCallsOption = Annotated[
    int | None,
    typer.Option("--max-calls", min=0, metavar="N", help="Calls at most, all runs together."),
]
MaxTokensOption = Annotated[
    int | None,
    typer.Option(
        "--max-tokens", min=0, metavar="N", help="Tokens at most, prompts and answers of all runs together."
    ),
]
MaxWaitOption = Annotated[
    float | None,
    typer.Option(
        "--max-wait",
        min=0.0,
        metavar="SECONDS",
        help="Stop asking an endpoint that wants a longer wait, such as for a daily quota "
        "[default: 600, or as configured].",
    ),
]
PlainOption = Annotated[bool, typer.Option("--plain", help="Lines instead of a display that redraws itself.")]
QuietOption = Annotated[bool, typer.Option("-q", "--quiet", help="Only errors and the summary.")]
VerboseOption = Annotated[bool, typer.Option("-v", "--verbose", help="Also retries and commits.")]


@app.command("run")
@command
def run(
    cohort: CohortArgument,
    config: ConfigOption = None,
    data_root: DataRootOption = None,
    stage: StageOption = None,
    only: OnlyOption = None,
    limit: LimitOption = None,
    refresh: RefreshOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.")] = False,
    max_cost: MaxCostOption = None,
    max_calls: MaxCallsOption = None,
    max_tokens: MaxTokensOption = None,
    max_wait: MaxWaitOption = None,
    if_locked: IfLockedOption = IfLocked.LEAVE,
    json_: JsonOption = False,
    plain: PlainOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Generate everything of COHORT that is missing.

    Runs until it is done; stop it whenever you like and run it again: it goes on where it was. Answers
    that are in the store but are no good (unparseable, cut off) stay as they are; see `retry`.

    Exit codes: 0 all done, 1 finished with failures, 2 wrong input, 3 stopped by a cap, 4 another worker has
    the cohort, 130 or 143 interrupted.
    """
    from genworker.core.budget import Caps
    from genworker.engine import RunOptions
    from genworker.project import open_project

    project = open_project(config, data_root)
    options = RunOptions(
        frozenset(stage) if stage else None,
        frozenset(only) if only else None,
        limit=limit,
        redo=None if refresh is None else redo_stale(project, cohort, stage, only),
        if_locked=if_locked,
        caps=Caps(max_cost, max_calls, max_tokens),
        max_wait_s=max_wait,
    )
    if dry_run:
        return show_plan(project, cohort, options, as_json=json_)
    return run_and_show(project, cohort, options, as_json=json_, plain=plain, quiet=quiet, verbose=verbose)


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
    json_: JsonOption = False,
) -> int:
    """Say what `run` would do, cost and take, and check all that it needs. Makes no call, writes nothing."""
    from genworker.core.budget import Caps
    from genworker.engine import RunOptions
    from genworker.project import open_project

    options = RunOptions(
        frozenset(stage) if stage else None,
        frozenset(only) if only else None,
        limit=limit,
        caps=Caps(max_cost, max_calls, max_tokens),
    )
    return show_plan(open_project(config, data_root), cohort, options, as_json=json_)


@app.command("retry")
@command
def retry(
    cohort: CohortArgument,
    unparseable: Annotated[
        bool, typer.Option("--unparseable", help="Answers that no parser could read.")
    ] = False,
    truncated: Annotated[
        bool, typer.Option("--truncated", help="Answers that were cut off; see --answer-tokens.")
    ] = False,
    failed: Annotated[
        bool, typer.Option("--failed", help="All answers that are no good, and calls that brought none.")
    ] = False,
    blocked: Annotated[
        bool, typer.Option("--blocked", help="What is blocked, after the failed answers that block it.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="GEN_ID",
            help="This generation, good or not; with other options, only those of them.",
        ),
    ] = None,
    answer_tokens: Annotated[
        int | None,
        typer.Option(
            "--answer-tokens",
            min=1,
            metavar="N",
            help="Ask with this max_tokens instead of the configured one.",
        ),
    ] = None,
    config: ConfigOption = None,
    data_root: DataRootOption = None,
    max_cost: MaxCostOption = None,
    max_calls: MaxCallsOption = None,
    max_tokens: MaxTokensOption = None,
    max_wait: MaxWaitOption = None,
    if_locked: IfLockedOption = IfLocked.LEAVE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.")] = False,
    json_: JsonOption = False,
    plain: PlainOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Ask again for answers of COHORT that are no good. The old ones are paid for, and are kept aside.

    A model that is asked with the same seed tends to answer the same: change its settings or the
    template first where that is the reason.
    """
    from genworker.core.budget import Caps
    from genworker.core.generation import FailureKind
    from genworker.engine import RunOptions
    from genworker.project import open_membership, open_project

    if not (unparseable or truncated or failed or blocked or only):
        fix = "give --failed, --unparseable, --truncated, --blocked or --only GEN_ID"
        raise UsageError([Fault("nothing is chosen", fix=fix)])
    project = open_project(config, data_root)
    membership = open_membership(project, cohort, strict=True)
    kinds = set(FailureKind) if failed else set()
    if unparseable:
        kinds.add(FailureKind.UNPARSEABLE)
    if truncated:
        kinds.add(FailureKind.TRUNCATED)
    chosen = choose_again(project, membership, kinds, failed=failed, blocked=blocked, only=only)
    again = chosen.again

    def redo(job: int, failure: Failure | None) -> bool:
        return job in again

    options = RunOptions(
        only=frozenset(membership.rows[job].gen_id for job in chosen.jobs),
        redo=redo,
        caps=Caps(max_cost, max_calls, max_tokens),
        max_wait_s=max_wait,
        answer_tokens=answer_tokens,
        if_locked=if_locked,
    )
    if not chosen.jobs and not json_:
        say(
            "Nothing of that kind is in the store: there is nothing to ask again. "
            f"What is missing is made by: genworker run {cohort}"
        )
        return 0
    if dry_run:
        return show_plan(project, cohort, options, as_json=json_)
    return run_and_show(project, cohort, options, as_json=json_, plain=plain, quiet=quiet, verbose=verbose)


class _Chosen(NamedTuple):
    """Rows of a `retry`.

    Attributes:
        again: those that the store holds an answer of.
        jobs: all of them.
    """

    again: set[int]
    jobs: set[int]


def choose_again(
    project: Project,
    membership: Membership,
    kinds: Collection[FailureKind],
    *,
    failed: bool,
    blocked: bool,
    only: Collection[str] | None,
) -> _Chosen:
    """Find the rows that a `retry` is about.

    Raises:
        UsageError: `only` names a generation that the cohort does not have.
    """
    from genworker.core.plan import RowState
    from genworker.ledger import failed_calls
    from genworker.project import plan_cohort

    planned = plan_cohort(project, membership)
    again = {job for job, failure in planned.failures.items() if failure.kind in kinds}
    jobs = set(again)
    if failed:
        lost = failed_calls(project.paths, membership.cohort_id)
        jobs |= {
            job
            for job, row in enumerate(membership.rows)
            if planned.states[job] == RowState.MISSING and (row.stage.value, row.gen_id) in lost
        }
    if blocked:
        behind = {job for job, ancestor in planned.blockers.items() if ancestor >= 0}
        again |= {planned.blockers[job] for job in behind}
        jobs |= again | behind
    if only is not None and only:
        wanted = set(only)
        unknown = wanted - {row.gen_id for row in membership.rows}
        if unknown:
            raise UsageError(
                [
                    Fault(f"cohort {membership.cohort_id} has no generation {name!r}", fix="correct --only")
                    for name in sorted(unknown)
                ]
            )
        named = {job for job, row in enumerate(membership.rows) if row.gen_id in wanted}
        if not (kinds or failed or blocked):
            again, jobs = named, named
        else:
            again, jobs = again & named, jobs & named
    return _Chosen(again, jobs)


# Planning


def show_plan(project: Project, cohort: str, options: RunOptions, *, as_json: bool) -> int:
    """Print the plan as a table or as JSON."""
    from genworker.core.selection import select
    from genworker.estimate import estimate
    from genworker.ledger import check_caps, last_limits, read_ledger
    from genworker.project import open_membership, plan_cohort
    from genworker.store.catalog import TemplateFiles
    from genworker.store.index import StoreIndex
    from genworker.work import CohortWork, check_jobs, find_combos

    membership = open_membership(project, cohort, strict=True)
    index = StoreIndex(project.paths)
    planned = plan_cohort(project, membership, options.redo, index)
    work = CohortWork(
        project,
        membership,
        TemplateFiles(project.paths),
        find_combos(project.catalog, {row.combo_id for row in membership.rows if row.stage is Stage.DRAFT}),
        "",
        "",
        answer_tokens=options.answer_tokens,
    )
    selected = select(
        planned, stages=options.stages, only=options.only, limit=options.limit, is_free=work.is_copy
    )
    jobs = [job for job, chosen in enumerate(selected) if chosen]
    check_jobs(work, jobs)
    expected = estimate(work, planned, jobs, last_limits(project.paths, cohort))
    caps = options.caps_over(project.loaded.settings)
    record = plan_record(cohort, planned, jobs, work, expected, options)
    for stage, number in stale_counts(project, planned).items():
        record["stages"][stage.value]["stale"] = number
    if caps:
        ledger = read_ledger(project.paths, membership, work.routes.find_price, index=index)
        work.routes.build(
            len(membership), ((job, _model(work, job)) for job in jobs if not work.is_copy(job))
        )
        called = work.routes.called(membership.rows, jobs)
        check_caps(caps, project.loaded, ledger, called, work.sampling)
        record["caps"] = {
            "cost_usd": None if caps.usd is None else str(caps.usd),
            "calls": caps.calls,
            "tokens": caps.tokens,
        }
        spent = ledger.spent
        record["spent"] = {"cost_usd": spent.usd_text, "calls": spent.calls, "tokens": spent.tokens}
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


def dollars(amount: Decimal) -> str:
    """An amount for people; less than a cent is not nothing, and nothing is no amount that was rounded."""
    if not amount:
        return "free"
    return "<$0.01" if 0 < amount < Decimal("0.01") else f"${amount:,.2f}"


def cost_text(amount: Decimal, unpriced: Sequence[str]) -> str:
    """An amount and whose prices are unknown: ``$1.30 + unpriced: smol-135m``."""
    if not unpriced:
        return dollars(amount)
    names = f"unpriced: {', '.join(unpriced[:3])}{', …' if len(unpriced) > 3 else ''}"
    return f"{dollars(amount)} + {names}" if amount else names


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
    if "caps" in record:
        caps, spent = record["caps"], record["spent"]
        shown = []
        if caps["cost_usd"] is not None:
            so_far = Decimal(spent["cost_usd"] or 0)
            shown.append(f"${caps['cost_usd']} (spent so far: {dollars(so_far) if so_far else 'nothing'})")
        if caps["calls"] is not None:
            shown.append(f"{caps['calls']:,} calls (made so far: {spent['calls']:,})")
        if caps["tokens"] is not None:
            shown.append(f"{caps['tokens']:,} tokens (used so far: {spent['tokens']:,})")
        lines.append(f"Cap over all runs: {', '.join(shown)}.")
    return lines


def blocked_lines(planned: Plan, limit: int = 10) -> list[str]:
    """Why rows are blocked, grouped by the ancestor that blocks them."""
    rows = planned.membership.rows
    groups: dict[tuple[int, str], int] = {}
    for index, ancestor in planned.blockers.items():
        outside = f"{rows[index].stage.parent} {rows[index].parent_gen_id}" if ancestor < 0 else ""
        key = (ancestor, outside)
        groups[key] = groups.get(key, 0) + 1
    lines = []
    for (ancestor, outside), count in sorted(groups.items(), key=lambda item: -item[1])[:limit]:
        if ancestor < 0:
            lines.append(f"{count} blocked by {outside}: it is not usable in the store")
        else:
            failure = planned.failures.get(ancestor)
            reason = failure.message if failure is not None else "failed"
            lines.append(f"{count} blocked by {rows[ancestor].stage.value} {rows[ancestor].gen_id}: {reason}")
    if len(groups) > limit:
        lines.append(f"… and {len(groups) - limit} more ancestors that block others")
    return lines


# Running


def run_and_show(
    project: Project,
    cohort: str,
    options: RunOptions,
    *,
    as_json: bool,
    plain: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Run, show it, and say how it ended."""
    from genworker.cli.display import Display, LiveDisplay, duration, wall_clock
    from genworker.engine import run_cohort

    display: Display
    if use_live_display(plain or quiet):
        display = LiveDisplay(cohort, verbose=verbose)
    else:
        display = Display(cohort, quiet=quiet, verbose=verbose)
    began = wall_clock()
    try:
        result = run_cohort(project, cohort, options, listeners=(display.hear,), watch=display.watch)
    finally:
        display.close()
    if as_json:
        put_json(result_record(cohort, result))
    for line in summary_lines(cohort, result, duration(wall_clock() - began)):
        say(line)
    return int(result.exit_code)


def result_record(cohort: str, result: RunResult) -> dict[str, Any]:
    """A run's outcome for machines."""
    progress = result.progress
    return {
        "cohort": cohort,
        "run_id": result.run_id,
        "exit_code": int(result.exit_code),
        "calls": progress.calls,
        "answers": progress.answers,
        "copies": progress.copies,
        "retries": progress.retries,
        "resumed": progress.resumed,
        "salvaged": progress.salvaged,
        "reparsed": progress.reparsed,
        "input_tokens": progress.input_tokens,
        "output_tokens": progress.output_tokens,
        "cost_usd": format(progress.cost_usd, "f"),
        "cohort_cost_usd": format(progress.earlier_usd + progress.cost_usd, "f"),
        "unpriced": sorted(progress.unpriced),
        "capped": result.scheduler.capped,
        "journal": str(result.journal_path),
        "stages": {
            stage.value: {
                "planned": counts.planned,
                "done": counts.done,
                "unparseable": counts.unparseable,
                "failed": counts.failed,
                "blocked": counts.blocked,
                "stopped": counts.stopped,
                "missing": counts.missing,
            }
            for stage, counts in progress.stages.items()
        },
        "lost": [{"gen_id": gen_id, "reason": reason} for gen_id, reason in result.outcome.lost],
    }


def summary_lines(cohort: str, result: RunResult, took: str) -> list[str]:
    """What a person wants to know at the end: how far it is, what went wrong, what to type next."""
    progress = result.progress
    rows = []
    for stage, counts in progress.stages.items():
        if counts.planned:
            wrong = [
                f"{number} {word}"
                for number, word in (
                    (counts.unparseable, "unparseable"),
                    (counts.failed, "failed"),
                    (counts.blocked, "blocked"),
                    (counts.stopped, "stopped"),
                    (counts.missing, "missing"),
                )
                if number
            ]
            rows.append([stage.value, f"{counts.done}/{counts.planned}", ", ".join(wrong)])
    lines = ["", *table(["stage", "done", ""], rows, right=(1,)), ""]
    if progress.calls == 0 and progress.copies == 0:
        lines.append("No calls made: everything that can be made is in the store.")
    else:
        parts = [f"{progress.calls} calls", f"{progress.answers} answers"]
        parts += [f"{progress.retries} retries"] if progress.retries else []
        parts += [f"{progress.copies} copies"] if progress.copies else []
        lines.append(f"{', '.join(parts)} in {took}. Journal: {result.journal_path}")
        lines.append(_cost_line(progress))
    if progress.salvaged:
        lines.append(
            f"{progress.salvaged} answers of an interrupted run were on disk and have been put in place."
        )
    if progress.reparsed:
        lines.append(f"{progress.reparsed} answers could be parsed now; no call was needed.")
    if result.scheduler.capped is not None:
        lines.append(
            f"Stopped at the cap: the next call could pass {result.scheduler.capped} over all runs. "
            f"Go on with a higher one: genworker run {cohort}"
        )
    for name, reason in result.scheduler.stopped_lanes():
        lines.append(f"{name} was stopped: {reason}")
    lines += _failure_lines(cohort, result)
    for gen_id, reason in result.outcome.lost:
        lines.append(f"NOT STORED {gen_id}: {reason}")
    if result.outcome.unrecorded:
        lines.append(f"The journal is incomplete: {result.outcome.unrecorded}")
    if result.outcome.lost or result.outcome.unrecorded:
        lines.append(
            "The run has stopped buying because of this. Mend the disk, then go on with: "
            f"genworker run {cohort}"
        )
    if result.membership_changed:
        lines.append("The membership file has changed since this run read it; run again for the new rows.")
    if result.signal is not None:
        name = signal.Signals(result.signal).name
        lines.append(
            f"Stopped by {name}; every answer that arrived is saved. Go on with: genworker run {cohort}"
        )
    return lines


def _cost_line(progress: Progress) -> str:
    cost = cost_text(progress.cost_usd, sorted(progress.unpriced))
    tokens = f"{progress.input_tokens:,} tokens in, {progress.output_tokens:,} out"
    earlier = f"; all runs of this cohort: {dollars(progress.total_usd)}" if progress.earlier_usd else ""
    return f"Cost {'nothing' if cost == 'free' else cost}{earlier}. {tokens}."


def _failure_lines(cohort: str, result: RunResult) -> list[str]:
    from genworker.core.scheduler import JobState

    lines = []
    rows = result.plan.membership.rows
    reasons: dict[str, list[int]] = {}
    for job, state in enumerate(result.scheduler.states):
        if state == JobState.FAILED and job in result.scheduler.reasons:
            reasons.setdefault(result.scheduler.reasons[job], []).append(job)
    for reason, jobs in sorted(reasons.items(), key=lambda item: -len(item[1]))[:8]:
        first = rows[jobs[0]]
        more = f" and {len(jobs) - 1} more" if len(jobs) > 1 else ""
        lines.append(f"{first.stage.value} {first.gen_id}{more}: {reason}")
    if len(reasons) > 8:
        lines.append(f"… and {len(reasons) - 8} other reasons; the journal has them all")
    blocked: dict[int, int] = {}
    for ancestor in result.scheduler.blockers.values():
        blocked[ancestor] = blocked.get(ancestor, 0) + 1
    for ancestor, count in sorted(blocked.items(), key=lambda item: -item[1])[:5]:
        lines.append(f"{count} blocked by {rows[ancestor].stage.value} {rows[ancestor].gen_id}")
    lines += blocked_lines(result.plan, limit=5)
    stages = result.progress.stages.values()
    if any(stage.unparseable for stage in stages):
        lines.append(f"Ask again for unparseable answers: genworker retry {cohort} --unparseable")
    if any(stage.kinds.get(kind) for stage in stages for kind in stage.kinds if kind.value == "truncated"):
        lines.append(f"Raise max_tokens, then ask again: genworker retry {cohort} --truncated")
    if any(stage.errors for stage in stages):
        lines.append(f"Calls that failed are made again by: genworker run {cohort}")
    return lines


__all__ = ["ExitCode", "Redo", "plan", "retry", "run"]
