"""``run``: makes what is missing, shows it, and says how it ended."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genworker.cli.app import (
    CohortArgument,
    ConfigOption,
    DataRootOption,
    JsonOption,
    app,
    command,
    let_go,
    put_json,
    say,
    use_live_display,
)
from genworker.cli.options import (
    AddressOption,
    BatchOption,
    EngineOption,
    IfLockedOption,
    LimitOption,
    LimitShareOption,
    MaxCallsOption,
    MaxCostOption,
    MaxTokensOption,
    MaxWaitOption,
    OnlyOption,
    PlainOption,
    QuietOption,
    ShardOption,
    StageOption,
    VerboseOption,
    WorkersOption,
    make_crew,
    static_shard,
)
from genworker.cli.plan import show_plan
from genworker.cli.refresh import RefreshOption, redo_stale
from genworker.cli.tables import table
from genworker.cli.words import blocked_lines
from genworker.core.generation import FailureKind
from genworker.core.money import cap_text, money_text, uncertain_text
from genworker.core.visible import visible
from genworker.errors import Fault, UsageError
from genworker.store.lock import IfLocked

if TYPE_CHECKING:
    from genworker.core.progress import Progress
    from genworker.project.open import Project
    from genworker.run.engine import Maker, RunOptions, RunResult
    from genworker.run.telemetry import Export

ON_END_S = 60.0
"""Seconds that the command of `on_end` may take."""


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
    engine: EngineOption = None,
    workers: WorkersOption = None,
    address: AddressOption = None,
    shard: ShardOption = None,
    limit_share: LimitShareOption = None,
    batch: BatchOption = None,
    detach: Annotated[
        bool,
        typer.Option("--detach", help="Leave with exit code 5 when only batches are out."),
    ] = False,
    json_: JsonOption = False,
    plain: PlainOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Generate everything of COHORT that is missing.

    Runs until it is done; stop it whenever you like and run it again: it goes on where it was. Answers
    that are in the store but are no good (unparseable, cut off) stay as they are; see `retry`.

    Exit codes: 0 all done, 1 finished with failures, 2 wrong input, 3 stopped by a cap, 4 another worker has
    the cohort, 5 only batches are out (--detach), 130 or 143 interrupted.
    """
    from genworker.core.budget import Caps
    from genworker.project.open import open_project
    from genworker.run.engine import RunOptions

    maker = make_crew(engine, workers, address)
    part = static_shard(shard, limit_share)
    if maker is not None and part is not None:
        fix = "leave one of them out"
        raise UsageError([Fault("--engine and --shard are two ways to share a cohort", fix=fix)])
    project = open_project(config, data_root)
    options = RunOptions(
        frozenset(stage) if stage else None,
        frozenset(only) if only else None,
        limit=limit,
        redo=None if refresh is None else redo_stale(project, cohort, stage, only),
        if_locked=if_locked,
        caps=Caps(max_cost, max_calls, max_tokens),
        max_wait_s=max_wait,
        shard=part,
        batch=batch,
        detach=detach,
    )
    if dry_run:
        return show_plan(project, cohort, options, as_json=json_)
    return run_and_show(
        project, cohort, options, maker, as_json=json_, plain=plain, quiet=quiet, verbose=verbose
    )


def run_and_show(
    project: Project,
    cohort: str,
    options: RunOptions,
    maker: Maker | None = None,
    *,
    as_json: bool,
    plain: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Run, show it, and say how it ended.

    Args:
        maker: see `genworker.run.engine.run_cohort`.
    """
    from genworker.cli.display import Display, LiveDisplay, duration, wall_clock
    from genworker.run.engine import run_cohort
    from genworker.store.gc import WORTH_BYTES, plain_journal_bytes

    display: Display
    if use_live_display(plain or quiet):
        display = LiveDisplay(cohort, verbose=verbose)
    else:
        display = Display(cohort, quiet=quiet, verbose=verbose)
    began = wall_clock()
    export = telemetry_of(project, cohort)
    listeners = (display.hear,) if export is None else (display.hear, export.hear)
    display.begin()
    try:
        result = run_cohort(project, cohort, options, listeners=listeners, watch=display.watch, maker=maker)
    finally:
        display.close()
        if export is not None:
            export.close()
    record = result_record(cohort, result)
    try:
        if as_json:
            put_json(record)
    except BrokenPipeError:  # its reader has left; the run has ended as it has
        let_go(sys.stdout)
    for line in summary_lines(cohort, result, duration(wall_clock() - began)):
        say(line)
    size_bytes = plain_journal_bytes(project.paths)
    if size_bytes > WORTH_BYTES and not quiet:
        say(f"Journals of earlier runs take {size_bytes / 1e6:,.0f} MB; make them small with: genworker gc")
    tell_the_end(project.loaded.settings.on_end, record)
    return int(result.exit_code)


def telemetry_of(project: Project, cohort: str) -> Export | None:
    """Spans and metrics where the environment names a collector; without the extra that is said."""
    from genworker import __version__
    from genworker.run.telemetry import EXTRA, export_to_collector

    kinds = {name: section.kind for name, section in project.loaded.settings.endpoints.items()}
    try:
        return export_to_collector(kinds, cohort, __version__)
    except ImportError as error:
        say(f"The environment names a collector, and {error.name} is not installed: {EXTRA}")
        return None


ENDED_VARIABLE = "_GENWORKER_ENDED"
"""Names, for what `on_end` starts, the cohorts whose ends have led to it."""


def tell_the_end(command: list[str], record: dict[str, Any]) -> None:
    """Run the command of the setting `on_end`; whatever comes of it, the run has ended as it has.

    What it writes goes to stderr: stdout is data. No shell reads the command. Where it runs cohorts in turn,
    a cohort that ends a second time begins nothing: else they would go round for ever.
    """
    import json
    import subprocess

    ended = os.environ.get(ENDED_VARIABLE, "").split("/")
    if not command or record["cohort"] in ended:
        return
    try:
        done = subprocess.run(
            command,
            input=json.dumps(record, default=str).encode(),
            stdout=sys.stderr.fileno(),
            env={**os.environ, ENDED_VARIABLE: "/".join([*ended, record["cohort"]])},
            timeout=ON_END_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        say(f"on_end: {command[0]} was stopped after {ON_END_S:.0f} s")
    except OSError as error:
        say(f"on_end: {command[0]} cannot be run: {error.strerror}")
    else:
        if done.returncode:
            say(f"on_end: {command[0]} ended with exit code {done.returncode}")


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
        "kept_aside": progress.kept_aside,
        "reparsed": progress.reparsed,
        "input_tokens": progress.input_tokens,
        "output_tokens": progress.output_tokens,
        "money": progress.money.to_json(),
        "capped": result.ending.capped,
        "journal": str(result.journal_path),
        "waiting": result.ending.waiting,
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
        "lost": [{"gen_id": gen_id, "reason": reason} for gen_id, reason in result.ending.lost],
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
        lines.append(f"No calls made: {_why_none(result)}.")
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
    if progress.kept_aside:
        lines.append(
            f"{progress.kept_aside} texts of an interrupted run were kept aside, below .genworker/aside: "
            "replaced versions, or answers whose place is taken."
        )
    if progress.reparsed:
        lines.append(f"{progress.reparsed} answers could be parsed now; no call was needed.")
    if result.ending.capped is not None:
        lines.append(
            f"Stopped at the cap: the next call could pass {result.ending.capped} over all runs. "
            f"So far: {cap_text(progress.money.total)}. Go on with a higher one: genworker run {cohort}"
        )
    for name, reason in result.ending.stopped.items():
        lines.append(f"{name} was stopped: {reason}")
    lines += _word_lines(progress)
    lines += _failure_lines(cohort, result)
    for gen_id, reason in result.ending.lost:
        lines.append(f"NOT STORED {gen_id}: {reason}")
    if result.ending.unrecorded:
        lines.append(f"The journal is incomplete: {result.ending.unrecorded}")
    if result.ending.no_room:
        lines.append(f"Not asked for, since {result.ending.no_room}")
    if result.ending.lost or result.ending.unrecorded or result.ending.no_room:
        lines.append(
            "The run has stopped buying because of this. Mend the disk, then go on with: "
            f"genworker run {cohort}"
        )
    if result.ending.waiting:
        lines.append(
            f"{result.ending.waiting} rows are in batches that are out; they go on without this process. "
            f"Collect them with: genworker run {cohort}"
        )
    if result.membership_changed:
        lines.append("The membership file has changed since this run read it; run again for the new rows.")
    if result.signal is not None:
        name = signal.Signals(result.signal).name
        lines.append(
            f"Stopped by {name}; every answer that arrived is saved{_abandoned(progress)}. "
            f"Go on with: genworker run {cohort}"
        )
    return lines


def _why_none(result: RunResult) -> str:
    """Why a run has asked nothing."""
    if result.ending.capped is not None:
        return "the cap leaves no room for one"
    if result.signal is not None:
        return "it was stopped before the first"
    stages = result.progress.stages.values()
    if not result.ending.left and any(stage.missing for stage in stages):
        return "nothing that is missing was selected"
    if any(stage.done < stage.planned for stage in stages):
        return "nothing that can be made is missing; what is no good is named below"
    return "everything is in the store"


def _abandoned(progress: Progress) -> str:
    """What a stop has cost besides."""
    own = progress.own
    return f", {uncertain_text(own)} are not" if own.uncertain_calls else ""


def _cost_line(progress: Progress) -> str:
    tokens = f"{progress.input_tokens:,} tokens in, {progress.output_tokens:,} out"
    earlier = ""
    if progress.earlier.total.calls:
        earlier = f"; all runs of this cohort: {money_text(progress.money.total)}"
    return f"Cost {money_text(progress.own)}{earlier}. {tokens}."


KEPT_FAILURES = (FailureKind.MALFORMED, FailureKind.EMPTY, FailureKind.CONTENT_FILTERED)
"""Failures that `retry --failed` asks for again, beside those with a word of their own."""
MOST_WORDS = 5
"""Finish words that a summary names; an endpoint may send any."""


def _word_lines(progress: Progress) -> list[str]:
    """Answers that are kept as done although something about their end is odd."""
    lines = []
    for word, number in progress.odd_words.most_common(MOST_WORDS):
        shown = visible(word, limit=60, one_line=True)
        lines.append(f"{number} answers ended with {shown!r}, a word that nobody knows; they count as done.")
    if len(progress.odd_words) > MOST_WORDS:
        lines.append(f"… and with {len(progress.odd_words) - MOST_WORDS} other words; the metadata have them")
    if progress.past_limit:
        lines.append(
            f"{progress.past_limit} answers sound whole and are as long as max_tokens allows: they may have "
            "been cut off. Compare their ends, or raise max_tokens."
        )
    return lines


def _failure_lines(cohort: str, result: RunResult) -> list[str]:
    ending = result.ending
    lines = []
    for reason, failed in sorted(ending.failures.items(), key=lambda item: -item[1].number)[:8]:
        more = f" and {failed.number - 1} more" if failed.number > 1 else ""
        lines.append(f"{failed.stage.value} {failed.gen_id}{more}: {reason}")
    if len(ending.failures) > 8:
        lines.append(f"… and {len(ending.failures) - 8} other reasons; the journal has them all")
    for (stage, gen_id), count in sorted(ending.blockers.items(), key=lambda item: -item[1])[:5]:
        lines.append(f"{count} blocked by {stage.value} {gen_id}")
    lines += blocked_lines(result.plan, limit=5)
    stages = result.progress.stages.values()
    if any(stage.unparseable for stage in stages):
        lines.append(f"Ask again for unparseable answers: genworker retry {cohort} --unparseable")
    if any(stage.kinds.get(kind) for stage in stages for kind in stage.kinds if kind.value == "truncated"):
        lines.append(f"Raise max_tokens, then ask again: genworker retry {cohort} --truncated")
    if any(stage.kinds.get(kind) for stage in stages for kind in KEPT_FAILURES):
        lines.append(f"Ask again for answers that are kept but no good: genworker retry {cohort} --failed")
    if any(stage.errors for stage in stages):
        lines.append(f"Calls that failed are made again by: genworker run {cohort}")
    return lines
