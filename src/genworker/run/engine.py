"""One process that runs one cohort: wires settings, catalogue, store, providers and runner together.

The command line and notebooks call this; it prints nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sys
from array import array
from collections.abc import Callable, Collection, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from genworker.core.budget import Budget, Caps
from genworker.core.generation import Answer, FailureKind, finish
from genworker.core.membership import Membership
from genworker.core.plan import Plan, RowState
from genworker.core.progress import Progress
from genworker.core.scheduler import NO_LANE, JobState, Scheduler
from genworker.core.selection import select
from genworker.core.stages import STAGES, Stage
from genworker.errors import ExitCode, Fault, StoreError, UsageError
from genworker.ports import Provider
from genworker.project.open import Project, Redo, open_membership, plan_cohort
from genworker.project.settings import LoadedSettings, Settings
from genworker.run.ledger import check_caps, read_ledger
from genworker.run.lock import CohortLock, new_run_id
from genworker.run.requests import CohortWork, check_jobs, find_combos
from genworker.run.routes import endpoint_specs, retry_policy
from genworker.run.runner import Outcome, Runner
from genworker.store.catalog import TemplateFiles
from genworker.store.disk import check_room, filesystem_warning, free_descriptors
from genworker.store.filesystem import FilesystemStore
from genworker.store.index import StoreIndex
from genworker.store.journal import Listener, RunJournal
from genworker.store.lock import IfLocked
from genworker.store.reading import read_generation
from genworker.store.sweep import sweep_staging

DRAINING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


# A run


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a user asks of one run.

    Attributes:
        redo: which rows that the store holds are made again; what they replace is kept aside.
        caps: hard caps over the cohort and all its runs; each goes before the settings' own.
        max_wait_s: over the settings' own; see `genworker.core.scheduler.RetryPolicy`.
        answer_tokens: over every configured `max_tokens`.
    """

    stages: frozenset[Stage] | None = None
    only: frozenset[str] | None = None
    limit: int | None = None
    redo: Redo | None = None
    if_locked: IfLocked = IfLocked.LEAVE
    caps: Caps = field(default_factory=Caps)
    max_wait_s: float | None = None
    answer_tokens: int | None = None

    def caps_over(self, settings: Settings) -> Caps:
        """The caps that hold: the options' own, else the settings'."""
        asked, configured = self.caps, settings.caps
        return Caps(
            configured.cost_usd if asked.usd is None else asked.usd,
            configured.calls if asked.calls is None else asked.calls,
            configured.tokens if asked.tokens is None else asked.tokens,
        )


@dataclass(slots=True)
class RunResult:
    """How a run ended.

    Attributes:
        plan: as it stood when the run began.
        signal: the signal that ended it early; ``None`` when it ended by itself.
        membership_changed: whether the membership file has changed since the run read it.
    """

    run_id: str
    progress: Progress
    plan: Plan
    scheduler: Scheduler
    selected: bytearray
    journal_path: Path
    outcome: Outcome = field(default_factory=Outcome)
    signal: int | None = None
    membership_changed: bool = False

    @property
    def exit_code(self) -> ExitCode:
        """What the command line returns."""
        if self.signal is not None:
            return ExitCode(128 + self.signal)
        if self.outcome.lost or self.outcome.unrecorded:
            return ExitCode.FAILURES
        if self.scheduler.capped is not None:
            return ExitCode.CAPPED
        bad = any(
            stage.failed or stage.unparseable or stage.blocked or stage.stopped
            for stage in self.progress.stages.values()
        )
        left = any(
            self.selected[job] and state not in (JobState.DONE,)
            for job, state in enumerate(self.scheduler.states)
        )
        return ExitCode.FAILURES if bad or left else ExitCode.OK


Watch = Callable[["RunInProgress"], None]


@dataclass(slots=True)
class RunInProgress:
    """A run while it lasts, for whoever draws it."""

    run_id: str
    cohort_id: str
    progress: Progress
    scheduler: Scheduler
    runner: Runner
    started_s: float
    clock: Callable[[], float]


def run_cohort(
    project: Project,
    cohort_id: str,
    options: RunOptions,
    *,
    listeners: tuple[Listener, ...] = (),
    watch: Watch | None = None,
) -> RunResult:
    """Make what is missing of a cohort. Blocks until the run has ended; drains at SIGINT, SIGTERM, SIGHUP.

    Args:
        listeners: hear every event of the journal.
        watch: called once when the run begins, from its event loop.

    Raises:
        FaultyInputError: an input is wrong; nothing was sent.
        LockedError: another worker has the cohort.
        StoreError: the data root cannot be used.
    """
    from genworker import __version__

    membership = open_membership(project, cohort_id, strict=True)
    _check_only(membership, options.only)
    stamp = _file_stamp(project.paths.cohort_membership_csv(cohort_id))
    run_id = new_run_id()
    forbid_core_dumps()
    lock = CohortLock(project, cohort_id, run_id, options.if_locked, listeners)
    with lock:
        if lock.waited:
            membership = open_membership(project, cohort_id, strict=True)
        engine = _Engine(project, membership, options, run_id, __version__, listeners, watch)
        with asyncio.Runner(loop_factory=_loop_factory()) as loop_runner:
            result = loop_runner.run(engine.run())
    result.membership_changed = stamp != _file_stamp(project.paths.cohort_membership_csv(cohort_id))
    return result


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return cast("Callable[[], asyncio.AbstractEventLoop]", uvloop.new_event_loop)


def _file_stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _check_only(membership: Membership, only: Collection[str] | None) -> None:
    if only is None:
        return
    unknown = sorted(set(only) - {row.gen_id for row in membership.rows})
    if unknown:
        raise UsageError(
            [
                Fault(f"cohort {membership.cohort_id} has no generation {name!r}", fix="correct --only")
                for name in unknown
            ]
        )


def forbid_core_dumps() -> None:
    """A core file would hold the keys."""
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


class _Engine:
    def __init__(
        self,
        project: Project,
        membership: Membership,
        options: RunOptions,
        run_id: str,
        version: str,
        listeners: tuple[Listener, ...],
        watch: Watch | None,
    ) -> None:
        self.project = project
        self.membership = membership
        self.options = options
        self.run_id = run_id
        self.listeners = listeners
        self.watch = watch
        self.progress = Progress()
        self.signal: int | None = None
        self.runner: Runner | None = None
        self.journal: RunJournal | None = None
        self.index = StoreIndex(project.paths)
        self.work = CohortWork(
            project,
            membership,
            TemplateFiles(project.paths),
            find_combos(
                project.catalog, {row.combo_id for row in membership.rows if row.stage is Stage.DRAFT}
            ),
            run_id,
            version,
            answer_tokens=options.answer_tokens,
        )

    async def run(self) -> RunResult:
        """Run; signals are heard from the beginning to the end of it."""
        loop = asyncio.get_running_loop()
        # An ignored hangup stays ignored: nohup relies on it. Not so an ignored SIGINT: a script's background
        # jobs begin with it ignored, and `kill -INT` is how they are asked to stop.
        numbers = [
            number
            for number in DRAINING_SIGNALS
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
        ]
        for number in numbers:
            loop.add_signal_handler(number, self._interrupt, number)
        try:
            return await self._run()
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    async def _run(self) -> RunResult:
        project, settings = self.project, self.project.loaded.settings
        async with AsyncExitStack() as stack:
            store = await stack.enter_async_context(
                FilesystemStore(project.paths, self.run_id, group_permissions=settings.group_permissions)
            )
            journal = self.journal = RunJournal(
                project.paths, self.run_id, self.listeners, group_permissions=settings.group_permissions
            )
            stack.callback(journal.close)
            journal.record(
                "run_started",
                run_id=self.run_id,
                cohort=self.membership.cohort_id,
                version=self.work.version,
                rows=len(self.membership),
                pid=os.getpid(),
                command=sys.argv[1:],
            )
            await asyncio.sleep(0)  # the journal writes at the end of a turn
            if (trouble := journal.trouble()) is not None:
                raise trouble
            warning = filesystem_warning(project.paths.data_root)
            if warning is not None:
                journal.record("warning", what=warning)
            await self._salvage(store, journal)
            plan = await self._plan(store, journal)
            selected = select(
                plan,
                stages=self.options.stages,
                only=self.options.only,
                limit=self.options.limit,
                is_free=self.work.is_copy,
            )
            jobs = [job for job, chosen in enumerate(selected) if chosen]
            check_jobs(self.work, jobs)
            self._check_places(jobs, journal)
            scheduler, lanes, providers = await self._schedule(selected, jobs)
            for provider in dict.fromkeys(providers):
                stack.push_async_callback(provider.aclose)
                await provider.open()
            self._count(plan, lanes)
            runner = Runner(
                scheduler=scheduler,
                membership=self.membership,
                lanes=lanes,
                providers=providers,
                store=store,
                work=self.work,
                journal=journal,
                progress=self.progress,
                replace=self._replaced(jobs),
                salvage=lambda: self._salvage_the_dead(store, journal),
            )
            outcome = await self._supervise(runner, scheduler)
            result = RunResult(
                self.run_id,
                self.progress,
                plan,
                scheduler,
                selected,
                journal.path,
                outcome=outcome,
                signal=self.signal,
            )
            journal.record(
                "run_ended",
                exit_code=int(result.exit_code),
                calls=self.progress.calls,
                spent_usd=scheduler.budget.spent.usd,
                capped=scheduler.capped,
                limits={lane.spec.name: lane.found() for lane in scheduler.lanes()},
            )
            return result

    # Before the calls

    async def _salvage(self, store: FilesystemStore, journal: RunJournal) -> None:
        """Bring in what dead runs had on disk: paid for, and not to be bought again."""
        group = self.project.loaded.settings.group_permissions
        sweep = await asyncio.to_thread(sweep_staging, self.project.paths, group_permissions=group)
        try:
            for answer, replace in sweep.answers:
                await store.commit(answer, replace=replace)
                sweep.committed.append((answer.stage, answer.gen_id))
            if sweep.errors:
                raise _not_salvaged(sweep.errors)
        except BaseException:
            sweep.release()
            raise
        await asyncio.to_thread(sweep.finish, self.project.paths)
        self.progress.salvaged += len(sweep.committed)
        for name in ("committed", "kept_aside", "dropped"):
            for stage, gen_id in getattr(sweep, name):
                journal.record("salvaged", stage=stage.value, gen_id=gen_id, what=name)

    async def _salvage_the_dead(self, store: FilesystemStore, journal: RunJournal) -> None:
        """`_salvage` in mid-run: another worker may have died since, with answers that are not in place."""
        if store.a_run_has_died():
            await self._salvage(store, journal)

    def _check_places(self, jobs: Sequence[int], journal: RunJournal) -> None:
        """Refuse what a commit would refuse, before it is paid for: links, and a disk without room."""
        links = {stage: self.index.links(stage) for stage in STAGES}
        for job in jobs if any(links.values()) else ():
            row = self.membership.rows[job]
            if row.gen_id in links[row.stage]:
                path = self.project.paths.generation_dir(row.stage, row.gen_id)
                raise StoreError(
                    f"{path} is a symbolic link; the store needs a real directory\n"
                    "  fix:   remove the link; nothing was sent",
                    path=str(path),
                )
        warning = check_room(self.project.paths.data_root, len(jobs))
        if warning is not None:
            journal.record("warning", what=warning)

    async def _plan(self, store: FilesystemStore, journal: RunJournal) -> Plan:
        """The plan, after answers that no parser could read have been given to the present parsers."""
        redo = self.options.redo
        plan = await asyncio.to_thread(plan_cohort, self.project, self.membership, redo, self.index)
        for job, failure in list(plan.failures.items()):
            if failure.kind is FailureKind.UNPARSEABLE and await self._reparse(store, job):
                row = self.membership.rows[job]
                self.progress.reparsed += 1
                journal.record("reparsed", stage=row.stage.value, gen_id=row.gen_id)
        if self.progress.reparsed:
            self.index = StoreIndex(self.project.paths)
            plan = await asyncio.to_thread(plan_cohort, self.project, self.membership, redo, self.index)
        return plan

    async def _reparse(self, store: FilesystemStore, job: int) -> bool:
        row = self.membership.rows[job]
        try:
            held = read_generation(self.project.paths.gens_root, row.stage, row.gen_id)
        except StoreError:
            return False
        kept = {
            key: value for key, value in held.metadata.items() if key not in ("truncated", "failure", "files")
        }
        facts = {**self.work.facts(job), **kept, "parser": self.work.facts(job)["parser"]}
        answer = Answer(row.stage, row.gen_id, held.prompt_text or "", held.raw_text, facts)
        if finish(answer).parsed_text is None:
            return False
        await store.commit(answer, replace=True)
        return True

    def _replaced(self, jobs: Sequence[int]) -> frozenset[int]:
        """Jobs whose generation stands in the store already and is made again."""
        if self.options.redo is None:
            return frozenset()
        rows = self.membership.rows
        return frozenset(job for job in jobs if rows[job].gen_id in self.index.names(rows[job].stage))

    async def _schedule(
        self, selected: bytearray, jobs: Sequence[int]
    ) -> tuple[Scheduler, array[int], list[Provider]]:
        """Lanes, their providers and the scheduler."""
        settings = self.project.loaded.settings
        rows, routes = self.membership.rows, self.work.routes
        specs, endpoints = routes.build(
            len(rows), ((job, rows[job].llm_model_id or "") for job in jobs if not self.work.is_copy(job))
        )
        budget = await asyncio.to_thread(self._budget, jobs)
        by_endpoint = [make_provider(self.project.loaded, name) for name in endpoints]
        scheduler = Scheduler(
            stages=bytes(row.stage.order for row in rows),
            parents=self.membership.parents,
            lanes=routes.lanes,
            selected=selected,
            lane_specs=specs,
            endpoints=endpoint_specs(settings, endpoints),
            max_concurrency=min(settings.max_concurrency, free_descriptors()),
            retry=retry_policy(settings, self.options.max_wait_s),
            budget=budget,
        )
        parents = self.membership.parents
        self.work.siblings = lambda job: scheduler.children(parents[job]) if parents[job] >= 0 else (job,)
        return scheduler, routes.lanes, [by_endpoint[spec.endpoint] for spec in specs]

    def _budget(self, jobs: Sequence[int]) -> Budget:
        """The caps, and what all runs of the cohort have spent before this one."""
        routes, loaded = self.work.routes, self.project.loaded
        caps = self.options.caps_over(loaded.settings)
        ledger = read_ledger(
            self.project.paths,
            self.membership,
            routes.find_price,
            index=self.index if caps else None,
            but=self.run_id,
        )
        if caps:
            if self.options.if_locked is IfLocked.SHARE:
                fix = "leave --if-locked share out, or the cap"
                raise UsageError([Fault("two workers on one cohort cannot keep one cap", fix=fix)])
            check_caps(caps, loaded, ledger, routes.called(self.membership.rows, jobs), self.work.sampling)
        self.progress.earlier_usd = ledger.spent.usd
        self.progress.cap_usd = caps.usd
        return Budget(caps, ledger.spent)

    def _count(self, plan: Plan, lanes: array[int]) -> None:
        progress = self.progress
        for stage, counts in plan.counts().items():
            counted = progress.stages[stage]
            counted.planned = sum(counts.values())
            counted.done = counts[RowState.DONE]
            counted.blocked = counts[RowState.BLOCKED]
            counted.kinds = dict(plan.failed_kinds(stage))
            progress.resumed += counted.done
        progress.to_call = len(lanes) - lanes.count(NO_LANE)

    # While it runs

    def _interrupt(self, number: int) -> None:
        timeout_s = self.project.loaded.settings.drain_timeout_s
        again = self.signal is not None
        self.signal = self.signal or number
        if self.journal is not None:
            name = signal.Signals(number).name
            if again:
                self.journal.record("interrupted_again", signal=name)
            else:
                self.journal.record("interrupted", signal=name, deadline_s=timeout_s)
        if self.runner is None:
            return  # `_supervise` will see it, and begin nothing
        if again:
            self.runner.abandon_calls()
        else:
            self.runner.drain(timeout_s)

    async def _supervise(self, runner: Runner, scheduler: Scheduler) -> Outcome:
        clock = asyncio.get_running_loop().time
        self.runner = runner
        if self.signal is not None:
            runner.drain(None)
        if self.watch is not None:
            cohort_id = self.membership.cohort_id
            self.watch(
                RunInProgress(self.run_id, cohort_id, self.progress, scheduler, runner, clock(), clock)
            )
        return await runner.run()


def _not_salvaged(errors: Sequence[StoreError]) -> StoreError:
    shown = "\n".join(f"  {error}" for error in errors[:10])
    more = f"\n  … and {len(errors) - 10} more" if len(errors) > 10 else ""
    return StoreError(
        f"answers of an interrupted run lie on the disk and cannot be put in place:\n{shown}{more}\n"
        "  fix:   mend the disk or the permissions, then run again; nothing was sent, nothing is lost",
        path=errors[0].path,
        errno=errors[0].errno,
    )


def make_provider(loaded: LoadedSettings, name: str) -> Provider:
    """The provider of an endpoint's section.

    Raises:
        ConfigError: its key is not set, or the embedded model is not installed.
    """
    endpoint = loaded.settings.endpoints[name]
    if endpoint.kind == "openai":
        from genworker.providers.openai import OpenAIProvider

        assert endpoint.base_url is not None, "checked with the settings"
        return OpenAIProvider(
            endpoint.base_url,
            loaded.api_key(name),
            headers=endpoint.headers,
            max_tokens_field=endpoint.max_tokens_field,
            use_env_proxy=endpoint.use_env_proxy,
        )
    if endpoint.kind == "anthropic":
        from genworker.providers.anthropic import AnthropicProvider

        return AnthropicProvider(
            endpoint.base_url,
            loaded.api_key(name),
            headers=endpoint.headers,
            use_env_proxy=endpoint.use_env_proxy,
        )
    if endpoint.kind == "local":
        from genworker.providers.local import LocalProvider

        return LocalProvider(
            endpoint.model_path, slots=endpoint.max_concurrency, context_tokens=endpoint.context_tokens
        )
    from genworker.providers.scripted import ScriptedProvider

    return ScriptedProvider(latency_s=endpoint.latency_s)
