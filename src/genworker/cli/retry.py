"""``retry``: asks again for answers that are no good."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from genworker.cli.app import (
    CohortArgument,
    ConfigOption,
    DataRootOption,
    JsonOption,
    app,
    command,
    say,
)
from genworker.cli.options import (
    AddressOption,
    EngineOption,
    IfLockedOption,
    MaxCallsOption,
    MaxCostOption,
    MaxTokensOption,
    MaxWaitOption,
    PlainOption,
    QuietOption,
    VerboseOption,
    WorkersOption,
    make_crew,
)
from genworker.cli.plan import show_plan
from genworker.cli.run import run_and_show
from genworker.errors import Fault, UsageError
from genworker.store.lock import IfLocked

if TYPE_CHECKING:
    from collections.abc import Collection

    from genworker.core.generation import Failure, FailureKind
    from genworker.core.membership import Membership
    from genworker.project.open import Project


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
    engine: EngineOption = None,
    workers: WorkersOption = None,
    address: AddressOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.")] = False,
    json_: JsonOption = False,
    plain: PlainOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Ask again for answers of COHORT that are no good. The old ones are paid for, and are kept aside.

    Where a generation has a seed of its own (seed = true) the new answer is drawn with another one.
    Elsewhere a model tends to answer the same: change its settings or the template first.
    """
    from genworker.core.budget import Caps
    from genworker.core.generation import FailureKind
    from genworker.project.open import open_membership, open_project
    from genworker.run.engine import RunOptions

    if not (unparseable or truncated or failed or blocked or only):
        fix = "give --failed, --unparseable, --truncated, --blocked or --only GEN_ID"
        raise UsageError([Fault("nothing is chosen", fix=fix)])
    maker = make_crew(engine, workers, address)
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
    return run_and_show(
        project, cohort, options, maker, as_json=json_, plain=plain, quiet=quiet, verbose=verbose
    )


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
    from genworker.project.open import plan_cohort
    from genworker.run.ledger import failed_calls

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
