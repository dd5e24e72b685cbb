"""One process that runs one cohort: wires settings, catalogue, store, providers and runner together.

The command line and notebooks call this; it prints nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import secrets
import signal
import sys
import time
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from genworker.core.budget import Budget, Caps, Charge
from genworker.core.catalog import Catalog, Combo, guess_combos
from genworker.core.completion import CompletionRequest, Sampling, Usage
from genworker.core.generation import Answer, Failure, FailureKind, file_digest, finish
from genworker.core.ids import id_fault
from genworker.core.membership import Known, Membership, MembershipRow
from genworker.core.plan import Plan, RowState, make_plan
from genworker.core.prefixes import Frame, Prefix, frame, is_long, prefix_of
from genworker.core.progress import Progress
from genworker.core.prompts import child_values, draft_values
from genworker.core.scheduler import NO_LANE, JobState, Scheduler
from genworker.core.selection import select
from genworker.core.stages import STAGES, Stage
from genworker.errors import (
    CatalogError,
    ConfigError,
    ExitCode,
    Fault,
    FaultyInputError,
    LockedError,
    StoreError,
    TemplateError,
    UsageError,
)
from genworker.ledger import check_caps, read_ledger
from genworker.paths import Paths
from genworker.plugins import load_parser_plugins
from genworker.ports import Provider
from genworker.routes import Route, Routes, cost, endpoint_specs, retry_policy, worst_case
from genworker.runner import Outcome, Runner
from genworker.settings import LoadedSettings, Settings, load_settings
from genworker.store.catalog import (
    TemplateFiles,
    load_membership,
    load_membership_as_it_stands,
    read_catalog,
)
from genworker.store.disk import check_room, filesystem_warning, free_descriptors
from genworker.store.filesystem import (
    FilesystemStore,
    StoreIndex,
    cannot_write,
    make_directories,
    refuse_links,
    sweep_staging,
)
from genworker.store.journal import Listener, RunJournal
from genworker.store.lock import FileLock, IfLocked, describe_holder, holder_facts
from genworker.store.reading import read_generation

TRIAL_TEXT = "A paragraph of text, as a model may write it.\n" * 50
"""Stands for a parent's text when a template is tried before anything is paid for."""

PARENTS_NOTED = 65_536
"""Digests of parents' texts that are kept for the metadata: far more than calls can be out at a time."""


DRAINING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Project:
    """A data root with its settings and its catalogue.

    Attributes:
        catalog_faults: what is wrong in the catalogue; refused by what runs, passed over by what reads.
    """

    loaded: LoadedSettings
    paths: Paths
    catalog: Catalog
    catalog_faults: tuple[Fault, ...]

    def known(self) -> Known:
        """What membership rows may name."""
        models = set(self.catalog.models) | {
            name for name, model in self.loaded.settings.models.items() if model.model
        }
        return Known(
            templates={stage: frozenset(self.catalog.templates[stage]) for stage in STAGES},
            copies={stage: self.catalog.copies(stage) for stage in STAGES},
            models=models,
            template_files={stage: str(self.paths.templates_csv(stage)) for stage in STAGES},
            models_file=str(self.paths.models_csv),
        )


def open_project(config: Path | None = None, data_root: Path | None = None) -> Project:
    """Read settings and catalogue, and register the parsers of other packages.

    Raises:
        ConfigError: the settings are wrong. Faults of the catalogue and of parsers are only collected.
    """
    loaded = load_settings(config, {} if data_root is None else {"data_root": data_root})
    paths = Paths.from_str(loaded.settings.data_root)
    plugin_faults = load_parser_plugins()
    catalog, faults = read_catalog(paths)
    return Project(loaded, paths, catalog, (*plugin_faults, *faults))


def open_membership(project: Project, cohort_id: str, *, strict: bool) -> Membership:
    """Read a cohort.

    Args:
        strict: refuse names that the catalogue does not know, and a catalogue with faults.

    Raises:
        CatalogError, MembershipError, UsageError: every fault at once.
    """
    index = StoreIndex(project.paths)
    if not strict:
        return load_membership_as_it_stands(project.paths, cohort_id)
    reason = id_fault(cohort_id)
    if reason is None and project.catalog_faults:
        raise CatalogError(project.catalog_faults, title="the catalogue is refused, nothing was sent")
    return load_membership(
        project.paths,
        cohort_id,
        project.known(),
        lambda stage, gen_id: index.is_done(stage, gen_id) or index.held(stage, gen_id) is not None,
    )


Redo = Callable[[int, Failure | None], bool]


def plan_cohort(project: Project, membership: Membership, redo: Redo | None = None) -> Plan:
    """What is to be done, as the store stands now."""
    return make_plan(membership, StoreIndex(project.paths), redo)


# What a job asks


@dataclass(slots=True)
class CohortWork:
    """Prompts, requests and provenance of a cohort's rows."""

    project: Project
    membership: Membership
    templates: TemplateFiles
    combos: Mapping[str, Combo]
    run_id: str
    version: str
    answer_tokens: int | None = None
    _drafts: dict[tuple[str, str], str] = field(default_factory=dict)
    _parents: dict[str | None, str] = field(default_factory=dict)
    _frames: dict[tuple[Stage, str], Frame | None] = field(default_factory=dict)
    _copies: dict[Stage, frozenset[str]] = field(init=False)
    _sharing: Counter[tuple[int, Stage, str, str]] = field(default_factory=Counter)
    siblings: Callable[[int], Sequence[int]] = field(default=lambda job: ())
    routes: Routes = field(init=False)

    def __post_init__(self) -> None:
        self._copies = {stage: self.project.catalog.copies(stage) for stage in STAGES}
        self.routes = Routes(self.project.loaded, self.model_name)

    def route(self, job: int) -> Route:
        """The endpoint that a row is asked at now, and the model's name there."""
        return self.routes.of(job, self.membership.rows[job].llm_model_id or "")

    def is_copy(self, job: int) -> bool:
        """Whether a row's text is its parent's, and no model is asked."""
        row = self.membership.rows[job]
        return row.template_id in self._copies[row.stage]

    def prompt(self, job: int, parent_text: str | None) -> str:
        """See `genworker.ports.Work.prompt`."""
        row = self.membership.rows[job]
        template = self.templates.get(row.stage, row.template_id)
        if row.stage is not Stage.DRAFT:
            if len(self._parents) >= PARENTS_NOTED:
                del self._parents[next(iter(self._parents))]
            text = parent_text or ""
            self._parents[row.parent_gen_id] = file_digest(text.encode("utf-8", "replace"))
            return template.render(child_values(row.stage, text))
        # Replicates and models share a draft's prompt: it depends on combo and template alone.
        key = (row.combo_id, row.template_id)
        prompt = self._drafts.get(key)
        if prompt is None:
            if len(self._drafts) > 512:
                self._drafts.clear()
            concepts = self.project.catalog.draft_concepts(self.combos[row.combo_id])
            prompt = self._drafts[key] = template.render(draft_values(concepts))
        return prompt

    def model_name(self, model_id: str) -> str:
        """The name that the endpoint is asked for."""
        configured = self.project.loaded.settings.models.get(model_id)
        if configured is not None and configured.model:
            return configured.model
        return self.project.catalog.models[model_id].model

    def request(self, job: int, prompt: str) -> CompletionRequest:
        """See `genworker.ports.Work.request`."""
        row = self.membership.rows[job]
        model_id = row.llm_model_id or ""
        route = self.route(job)
        prefix = self._prefix(job, route, prompt)
        return CompletionRequest(
            model=route.model,
            prompt=prompt,
            cache_at=() if prefix is None else prefix.cache_at,
            prefix=None if prefix is None else prefix.name,
            sampling=self.sampling(row.stage, model_id, route.endpoint, row.gen_id),
            timeout_s=self.project.loaded.settings.endpoints[route.endpoint].timeout_s,
        )

    def sampling(self, stage: Stage, model_id: str, endpoint: str, gen_id: str) -> Sampling:
        """The parameters of a call."""
        sampling = self.project.loaded.sampling(stage, model_id, endpoint, gen_id)
        return sampling if self.answer_tokens is None else replace(sampling, max_tokens=self.answer_tokens)

    def worst_case(self, job: int, request: CompletionRequest) -> Charge:
        """See `genworker.ports.Work.worst_case`."""
        return worst_case(self.route(job), request)

    def cost(self, job: int, usage: Usage) -> Charge | None:
        """See `genworker.ports.Work.cost`."""
        return cost(self.route(job), usage)

    def _prefix(self, job: int, route: Route, prompt: str) -> Prefix | None:
        """The beginnings of a prompt that the endpoint is asked to keep, where that pays."""
        endpoint = self.project.loaded.settings.endpoints[route.endpoint]
        if endpoint.kind != "anthropic" or not endpoint.prompt_cache or not is_long(len(prompt)):
            return None
        row = self.membership.rows[job]
        shape = self._frame(row.stage, row.template_id)
        if shape is None:
            return None
        rows, lanes, lane = self.membership.rows, self.routes.lanes, self.routes.lanes[job]
        if not self._sharing:
            called = (other for other, number in enumerate(lanes) if number != NO_LANE)
            self._sharing.update((lanes[other], *_prompt_family(rows[other])) for other in called)
        alike = [rows[other] for other in self.siblings(job) if lanes[other] == lane]
        frames = [self._frame(other.stage, other.template_id) for other in alike]
        same_template = self._sharing[lane, *_prompt_family(row)]
        same_prompt = sum(1 for other in alike if other.template_id == row.template_id)
        return prefix_of(
            prompt,
            shape,
            model=route.model,
            same_template=same_template,
            same_text=sum(1 for other in frames if other is not None and other.head == shape.head),
            same_prompt=same_template if row.stage is Stage.DRAFT else same_prompt,
        )

    def _frame(self, stage: Stage, template_id: str) -> Frame | None:
        key = (stage, template_id)
        if key not in self._frames:
            self._frames[key] = frame(self.templates.get(stage, template_id))
        return self._frames[key]

    def facts(self, job: int) -> dict[str, Any]:
        """See `genworker.ports.Work.facts`."""
        row = self.membership.rows[job]
        entry = self.project.catalog.templates[row.stage].get(row.template_id)
        copy = self.is_copy(job)
        return {
            "task_id": self._task_id(job),
            "template_id": row.template_id,
            "model_id": row.llm_model_id or "",
            "parent_gen_id": row.parent_gen_id or "",
            "stage": row.stage.value,
            "gen_id": row.gen_id,
            "cohort_id": row.cohort_id,
            "combo_id": row.combo_id,
            "replicate": row.replicate,
            "function": row.stage.function,
            "mode": "copy" if copy else "llm",
            "run_id": self.run_id,
            "genworker_version": self.version,
            "parser": (entry.parser if entry is not None else None) or "identity",
            "template_sha256": None if copy else self.templates.digest(row.stage, row.template_id),
            # What the prompt was made from: a child of a text that has been replaced since is stale.
            "parent_sha256": None if copy else self._parents.get(row.parent_gen_id),
        }

    def _task_id(self, job: int) -> str:
        row = self.membership.rows[job]
        outside = row.stage is Stage.ESSAY and row.task_id is None and self.membership.parents[job] < 0
        if not outside:
            return self.membership.task_id(job)
        try:
            parent = read_generation(self.project.paths.gens_root, Stage.DRAFT, row.parent_gen_id or "")
        except (StoreError, ValueError):
            return self.membership.task_id(job)
        return self.membership.task_id(job, str(parent.metadata.get("task_id") or "") or None)

    def call_facts(self, job: int, request: CompletionRequest) -> Mapping[str, Any]:
        """See `genworker.ports.Work.call_facts`."""
        route = self.route(job)
        return {
            "endpoint": route.endpoint,
            "provider": self.project.loaded.settings.endpoints[route.endpoint].kind,
            "model": request.model,
            "fallback": route.is_fallback,
            "sampling": request.sampling.to_json(),
        }


def _prompt_family(row: MembershipRow) -> tuple[Stage, str, str]:
    """What a prompt's beginning depends on, beside its parent: drafts of one combo are asked alike."""
    return row.stage, row.template_id, row.combo_id if row.stage is Stage.DRAFT else ""


# Checks before anything is paid for


def find_combos(catalog: Catalog, wanted: Iterable[str]) -> dict[str, Combo]:
    """The combos of a cohort: registered ones, and those that can be found from their ids."""
    combos = dict(catalog.combos)
    unknown = {name for name in wanted if name not in combos}
    if unknown:
        combos.update(guess_combos(unknown, list(catalog.concepts.values())))
    return combos


def check_jobs(work: CohortWork, jobs: Iterable[int]) -> None:
    """Try everything that a call needs, without calling: templates, combos, endpoints, keys.

    Raises:
        FaultyInputError: every fault at once.
    """
    faults: list[Fault] = []
    templates: dict[tuple[Stage, str], int] = {}
    models: dict[str, int] = {}
    combos: dict[str, int] = {}
    seen: set[tuple[str, ...]] = set()
    for job in jobs:
        row = work.membership.rows[job]
        kind = (row.stage, row.template_id, row.llm_model_id or "", row.combo_id)
        if kind in seen:
            continue
        seen.add(kind)
        if work.is_copy(job):
            continue
        templates.setdefault((row.stage, row.template_id), job)
        models.setdefault(row.llm_model_id or "", job)
        if row.stage is Stage.DRAFT:
            combos.setdefault(row.combo_id, job)
    known_combos = _check_combos(work, combos, faults)
    for (stage, template_id), job in templates.items():
        if stage is Stage.DRAFT and work.membership.rows[job].combo_id not in known_combos:
            continue
        try:
            work.prompt(job, TRIAL_TEXT)
        except CatalogError as error:
            faults.extend(error.faults)
        except TemplateError as error:
            path = work.project.paths.template_file(stage, template_id)
            faults.append(Fault(str(error), where=str(path), line=error.line, fix="correct the template"))
    _check_models(work, models, faults)
    if faults:
        raise FaultyInputError(faults, title="nothing was sent")


def _check_combos(work: CohortWork, combos: Mapping[str, int], faults: list[Fault]) -> set[str]:
    catalog, paths = work.project.catalog, work.project.paths
    good: set[str] = set()
    for combo_id in combos:
        combo = work.combos.get(combo_id)
        if combo is None:
            faults.append(
                Fault(
                    f"combo {combo_id!r} is registered nowhere, and no set of the concepts has this id",
                    where=str(paths.combo_mappings_csv),
                    fix="add its rows: combo_id, version, concept_id, description_level, k_max, created_at",
                )
            )
            continue
        missing = [name for name in combo.concept_ids if name not in catalog.concepts]
        if missing:
            faults.append(
                Fault(
                    f"combo {combo_id!r} names concepts that are not registered: {', '.join(missing)}",
                    where=str(paths.concepts_csv),
                    fix="register them",
                )
            )
            continue
        good.add(combo_id)
    return good


def _check_models(work: CohortWork, models: Iterable[str], faults: list[Fault]) -> None:
    loaded = work.project.loaded
    used: set[str] = set()
    for model_id in models:
        endpoint = loaded.endpoint_of(model_id)
        if endpoint is None:
            faults.append(
                Fault(
                    f"no endpoint serves the model {model_id!r}",
                    where=str(loaded.config or "config/genworker.toml"),
                    fix=f'set default_endpoint, or add: [models."{model_id}"] endpoint = "…"',
                )
            )
        else:
            used.add(endpoint)
    for endpoint in sorted(used):
        try:
            loaded.api_key(endpoint)
        except ConfigError as error:
            faults.extend(error.faults)


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


def new_run_id() -> str:
    """A name for a run: its start in UTC and four random bytes."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


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
    lock = _CohortLock(project, cohort_id, run_id, options.if_locked, listeners)
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


def cohort_lock(project: Project, cohort_id: str, run_id: str) -> AbstractContextManager[None]:
    """For other commands that write into a cohort's store: be its one worker while the block lasts.

    Raises:
        LockedError: another worker has the cohort.
    """
    return _CohortLock(project, cohort_id, run_id, IfLocked.LEAVE, ())


class _CohortLock:
    """The one worker of a cohort, or a guest beside it.

    Attributes:
        waited: another worker had it first.
    """

    LOOK_EVERY_S = 0.2

    def __init__(
        self,
        project: Project,
        cohort_id: str,
        run_id: str,
        if_locked: IfLocked,
        listeners: tuple[Listener, ...],
    ) -> None:
        group = project.loaded.settings.group_permissions
        self._cohort_id = cohort_id
        self._run_id = run_id
        self._paths = project.paths
        self._path = project.paths.cohort_lock_path(cohort_id)
        self._dir_mode = 0o770 if group else 0o700
        self._lock = FileLock(self._path, 0o660 if group else 0o600)
        self._if_locked = if_locked
        self._listeners = listeners
        self.waited = False

    def __enter__(self) -> None:
        refuse_links(self._paths)
        try:
            make_directories(self._path.parent, self._dir_mode)
        except OSError as error:
            raise cannot_write(error, self._path) from error
        facts = holder_facts(self._run_id)
        if self._lock.acquire(facts):
            return
        holder = describe_holder(self._lock.holder())
        if self._if_locked is IfLocked.LEAVE:
            raise LockedError(
                f"another worker is running cohort {self._cohort_id} ({holder})\n"
                f"  where: {self._path}\n"
                f"  fix:   wait for it (--if-locked wait), work beside it (--if-locked share), or stop it: "
                f"kill -INT {self._lock.holder().get('pid', 'PID')}; its lock dies with it"
            )
        for listener in self._listeners:
            listener("locked", {"cohort": self._cohort_id, "holder": holder, "then": self._if_locked.value})
        if self._if_locked is IfLocked.SHARE:
            return
        self.waited = True
        while not self._lock.acquire(facts):
            time.sleep(self.LOOK_EVERY_S)

    def __exit__(self, *exc_info: object) -> None:
        self._lock.release()


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
            self._count(plan, jobs)
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
        index = StoreIndex(self.project.paths)
        for job in jobs:
            row = self.membership.rows[job]
            if row.gen_id in index.links(row.stage):
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
        plan = await asyncio.to_thread(plan_cohort, self.project, self.membership, self.options.redo)
        for job, failure in list(plan.failures.items()):
            if failure.kind is FailureKind.UNPARSEABLE and await self._reparse(store, job):
                row = self.membership.rows[job]
                self.progress.reparsed += 1
                journal.record("reparsed", stage=row.stage.value, gen_id=row.gen_id)
        if self.progress.reparsed:
            plan = await asyncio.to_thread(plan_cohort, self.project, self.membership, self.options.redo)
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
        index = StoreIndex(self.project.paths)
        rows = self.membership.rows
        return frozenset(job for job in jobs if rows[job].gen_id in index.names(rows[job].stage))

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
        ledger = read_ledger(self.project.paths, self.membership, routes.find_price, but=self.run_id)
        if caps:
            if self.options.if_locked is IfLocked.SHARE:
                fix = "leave --if-locked share out, or the cap"
                raise UsageError([Fault("two workers on one cohort cannot keep one cap", fix=fix)])
            check_caps(caps, loaded, ledger, routes.called(self.membership.rows, jobs), self.work.sampling)
        self.progress.earlier_usd = ledger.spent.usd
        self.progress.cap_usd = caps.usd
        return Budget(caps, ledger.spent)

    def _count(self, plan: Plan, jobs: Sequence[int]) -> None:
        progress = self.progress
        for stage, counts in plan.counts().items():
            counted = progress.stages[stage]
            counted.planned = sum(counts.values())
            counted.done = counts[RowState.DONE]
            counted.blocked = counts[RowState.BLOCKED]
            counted.kinds = dict(plan.failed_kinds(stage))
            progress.resumed += counted.done
        progress.to_call = sum(1 for job in jobs if not self.work.is_copy(job))

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
