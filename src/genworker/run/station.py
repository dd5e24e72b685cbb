"""One worker: its store, journal, lanes and runner. It makes what an order says; locks are the driver's."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Collection, Container
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, Protocol

from genworker.core.controller import Belief
from genworker.core.events import Event, LaneStopped, RunStarted, Warned
from genworker.core.lane import Wait
from genworker.core.lease import Lease
from genworker.core.membership import Membership
from genworker.core.progress import Progress, Tally
from genworker.core.scheduler import Scheduler
from genworker.core.stages import STAGES, Stage
from genworker.errors import ConfigError
from genworker.project.endpoints import kind_of
from genworker.project.open import Project
from genworker.project.settings import BatchSettings, LoadedSettings
from genworker.run.planning import Order, salvage
from genworker.run.preflight import busy, look_or_refuse, servers
from genworker.run.requests import open_work
from genworker.run.routes import endpoint_specs, retry_policy
from genworker.run.runner import BatchLane, Runner
from genworker.run.servers import Servers
from genworker.run.tender import BatchEndpoint, Tender, TenderPolicy
from genworker.store.batches import Shelf, key_tag
from genworker.store.cohorts import Modes
from genworker.store.disk import filesystem_warning, free_descriptors
from genworker.store.filesystem import FilesystemStore
from genworker.store.journal import Listener, RunJournal
from genworker.store.raw_copies import RawCopies

SMALL_VALUES = {
    "max_rows": "many small batches take no less time each, and count against limits on batches",
    "linger_s": "rows that come one by one make small batches",
    "poll_s": "providers limit how often they are asked",
    "settle_s": "a batch whose making broke off may be made and paid for twice",
    "max_wait_s": "a batch that its provider would still have answered is cancelled",
}
"""What comes of a value of ``[batches]`` that is smaller than the one that is taken without it."""


class Activity(Protocol):
    """What goes on in a run at this moment, for whoever draws it."""

    @property
    def in_flight(self) -> int:
        """Calls that are out."""

    @property
    def draining(self) -> bool:
        """Whether nothing more is begun."""

    def paused_lanes(self, now_s: float) -> list[tuple[str, float]]:
        """(name, seconds left) of lanes that wait."""

    def waits(self, now_s: float) -> list[Wait]:
        """The lanes that make no calls for now, why, and for how long."""

    def beliefs(self) -> list[tuple[str, Belief]]:
        """What lanes believe of their endpoints' limits, as (name, belief)."""

    def stopped_lanes(self) -> list[tuple[str, str]]:
        """(name, reason) of lanes that were stopped."""


@dataclass(slots=True)
class RunInProgress:
    """A run while it lasts, for whoever draws it."""

    run_id: str
    cohort_id: str
    progress: Progress
    activity: Activity
    started_s: float
    clock: Callable[[], float]
    crew: Callable[[], str] | None = None
    """The workers in a few words, where there are several."""
    crew_record: Callable[[], list[dict[str, Any]]] | None = None
    """What each of them does, for machines."""
    tender: Tender | None = None


class Station:
    """A worker of one cohort.

    Usable as an asynchronous context: within it store and journal are open.

    Args:
        listeners: hear every event of the journal.
        answer_tokens: over every configured `max_tokens`.
        max_wait_s: over the settings' own; see `genworker.core.scheduler.RetryPolicy`.
        first: the journal's first line; that of a run by itself without.
        is_shard: whether other runs make other lineages of the cohort: then nothing of theirs is salvaged in
            mid-run, since nothing of it is wanted here.
        batch, detach: see `genworker.run.planning.RunOptions`.

    Attributes:
        progress: what the worker has done so far.
        runner: ``None`` until `set_up`.
    """

    store: FilesystemStore
    journal: RunJournal
    tender: Tender
    scheduler: Scheduler
    stages: bytearray
    """Each row's stage as a number, as the scheduler has it."""

    def __init__(
        self,
        project: Project,
        membership: Membership,
        run_id: str,
        *,
        listeners: tuple[Listener, ...] = (),
        answer_tokens: int | None = None,
        max_wait_s: float | None = None,
        first: Event | None = None,
        is_shard: bool = False,
        batch: bool | None = None,
        detach: bool = False,
    ) -> None:
        self.project = project
        self.membership = membership
        self.run_id = run_id
        self.progress = Progress()
        self.runner: Runner | None = None
        self._listeners = listeners
        self.max_wait_s = max_wait_s
        self._first = first
        self._is_shard = is_shard
        self._detach = detach
        self._batch_endpoints: dict[str, BatchEndpoint] = {}
        self._stack = AsyncExitStack()
        self._hurry = asyncio.Event()
        self._salvaged: set[tuple[Stage, str]] = set()
        self.work = open_work(project, membership, run_id=run_id, answer_tokens=answer_tokens, batch=batch)

    async def __aenter__(self) -> Station:
        await self._stack.__aenter__()
        try:
            await self._open()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.__aexit__(kind, error, traceback)

    async def _open(self) -> None:
        paths, group = self.project.paths, self.project.loaded.settings.group_permissions
        self.store = await self._stack.enter_async_context(
            FilesystemStore(paths, self.run_id, group_permissions=group)
        )
        if copied := self.project.loaded.settings.stages_copied:
            modes = Modes.of(group_permissions=group)
            self.store.raw_copies = RawCopies(paths, copied, modes.file, modes.directory)
            self._stack.callback(self.store.raw_copies.close)
        self.journal = RunJournal(paths, self.run_id, self._listeners, group_permissions=group)
        self._stack.callback(self.journal.close)
        self.journal.record(
            self._first
            or RunStarted(
                run_id=self.run_id,
                cohort=self.membership.cohort_id,
                version=self.work.version,
                rows=len(self.membership),
                pid=os.getpid(),
                command=sys.argv[1:],
            )
        )
        await asyncio.sleep(0)  # the journal writes at the end of a turn
        if (trouble := self.journal.trouble()) is not None:
            raise trouble
        warning = filesystem_warning(paths.data_root)
        if warning is not None:
            self.journal.record(Warned(warning))
        batches = self.project.loaded.settings.batches
        self.tender = Tender(
            Shelf(paths, self.run_id, group_permissions=group),
            endpoint_of=self._batch_endpoint_of,
            cohort_id=self.membership.cohort_id,
            policy=TenderPolicy(batches.poll_s, batches.settle_s, batches.max_wait_s),
            store=self.store,
            journal=self.journal,
        )
        self._stack.callback(self.tender.release)
        await asyncio.to_thread(self.tender.adopt)

    def _batch_endpoint(self, name: str) -> BatchEndpoint:
        """An endpoint of the settings that takes batches."""
        found = self._batch_endpoints.get(name)
        if found is None:
            found = self._batch_endpoints[name] = make_batch_endpoint(self.project.loaded, name)
            self._stack.push_async_callback(found.provider.aclose)
        return found

    def _batch_endpoint_of(self, name: str, url: str | None, kind: str) -> BatchEndpoint | str:
        """The endpoint that a batch was formed for, or why there is none."""
        section = self.project.loaded.settings.endpoints.get(name)
        if section is None:
            return f"there is no [endpoints.{name}]"
        if (
            section.kind != kind
            or kind_of(section).address(section) != url
            or not kind_of(section).takes_batches(section)
        ):
            return f"[endpoints.{name}] is another one now (it was {kind}, {url})"
        try:
            return self._batch_endpoint(name)
        except ConfigError as error:
            return str(error)

    async def set_up(
        self,
        order: Order,
        *,
        lease: Lease | None = None,
        disputed: Container[int] = frozenset(),
        tally: Tally | None = None,
    ) -> Runner:
        """Make the scheduler and the runner of an order, and open its endpoints.

        Args:
            lease: what the worker shares with others: then rates are shared out to it, it salvages nothing,
                and rows come later (see `Scheduler.grow`).
            disputed, tally: see `Runner`.

        Raises:
            ConfigError: an endpoint cannot be opened, or its key or address is wrong.
        """
        settings, rows = self.project.loaded.settings, self.membership.rows
        parents, lanes = self.membership.parents, self.work.routes.lanes
        caps = order.budget.caps
        self.work.is_capped = caps.usd is not None or caps.tokens is not None
        servers = [self._servers(name) for name in order.endpoints]
        for one in servers:
            self._stack.push_async_callback(one.aclose)
            await one.open(hurry=self._hurry)
        self.stages = bytearray(row.stage.order for row in self.membership.rows)
        self.work.replaced = order.replace
        scheduler = self.scheduler = Scheduler(
            stages=self.stages,
            parents=parents,
            seconds=self.membership.seconds,
            lanes=lanes,
            selected=order.selected,
            lane_specs=order.specs,
            endpoints=[
                replace(spec, servers=one.names)
                for spec, one in zip(
                    endpoint_specs(settings, order.endpoints, shared=lease is not None), servers, strict=True
                )
            ],
            max_concurrency=min(settings.max_concurrency, free_descriptors()),
            retry=retry_policy(settings, self.max_wait_s),
            budget=order.budget,
            depth=len(STAGES),
            lease=lease,
            batched=self.tender.match((job, rows[job].stage, rows[job].gen_id) for job in order.jobs),
        )
        for held in self.tender.batches:
            lane = self.work.routes.batch_lane(held.endpoint.name, held.intent.model_id)
            if lane is not None:
                held.lane = lane
                scheduler.batch_opened(lane, held.intent.count, held.tokens)
        if any(spec.batch is not None for spec in order.specs) or self.tender.batches:
            for what in small_values(self.project.loaded.settings.batches):
                self.journal.record(Warned(what))
        runner = self.runner = Runner(
            scheduler=scheduler,
            membership=self.membership,
            providers=[servers[spec.endpoint].providers for spec in order.specs],
            store=self.store,
            work=self.work,
            journal=self.journal,
            progress=self.progress,
            replace=order.replace,
            disputed=disputed,
            tally=tally,
            salvage=None if lease is not None or self._is_shard else self._salvage_the_dead,
            tender=self.tender,
            batch_lanes={
                number: BatchLane(
                    self._batch_endpoint(route.endpoint), route.model_id, route.model, route.price
                )
                for number, route in enumerate(self.work.routes.by_lane)
                if route.batch
            },
            detach=self._detach,
        )
        for number, one in enumerate(servers):
            one.listen(partial(self._admit, number), self._warn, partial(self._lose, number))
        return runner

    def hurry(self) -> None:
        """Nobody waits any more for a server to become ready."""
        self._hurry.set()

    def _servers(self, name: str) -> Servers:
        return Servers(
            self.project.loaded, name, lambda server: self.project.paths.served_log_path(self.run_id, server)
        )

    def _admit(self, endpoint: int, number: int, name: str, is_in: bool) -> None:
        assert self.runner is not None
        self.scheduler.admit(endpoint, number, name, is_in=is_in)
        self.runner.pump()

    def _warn(self, what: str) -> None:
        self.journal.record(Warned(what))

    def _lose(self, endpoint: int, reason: str) -> None:
        """Every server of an endpoint is given up."""
        assert self.runner is not None
        for lane in self.scheduler.lanes():
            if lane.spec.endpoint == endpoint and lane.stopped is None:
                self.scheduler.stop_lane(lane.spec.name, reason)
                self.journal.record(LaneStopped(lane.spec.name, reason))
        self.runner.pump()

    async def look(self, order: Order) -> Order:
        """The order after a free look at its endpoints: a lane of which nothing is known begins slowly.

        Raises:
            ConfigError: a key or an address is wrong.
        """
        loaded, routes = self.project.loaded, self.work.routes
        found = await look_or_refuse(loaded, busy(routes.lanes, routes.by_lane))
        for what in found.warnings(routes.by_lane):
            self.journal.record(Warned(what))
        specs = found.marked(order.specs, routes.by_lane, servers(loaded, order.endpoints))
        return replace(order, specs=specs)

    async def _salvage_the_dead(self) -> Collection[tuple[Stage, str]] | None:
        """Salvage in mid-run: another worker may have died since, with answers that are not in place."""
        if self.store.a_run_has_died():
            self._salvaged.update(await salvage(self.project, self.store, self.journal, self.progress))
            if self.store.a_run_has_died():
                return None  # another worker sweeps it
        return self._salvaged


def small_values(batches: BatchSettings) -> list[str]:
    """What is to be said of values that are smaller than is wise."""
    usual = BatchSettings()
    found = [(name, getattr(batches, name), getattr(usual, name)) for name in SMALL_VALUES]
    return [
        f"batches.{name} = {value:g} is below {least:g}: {SMALL_VALUES[name]}"
        for name, value, least in found
        if value < least
    ]


def make_batch_endpoint(loaded: LoadedSettings, name: str) -> BatchEndpoint:
    """The endpoint of a section, for batches.

    Raises:
        ConfigError: its key is not set.
    """
    section, access = loaded.settings.endpoints[name], loaded.access(name)
    kind = kind_of(section)
    assert kind.batches is not None, "asked of kinds that take batches"
    tag = key_tag(None if access.key is None else access.key.get_secret_value())
    return BatchEndpoint(name, kind.batches(section, access), kind.address(section), section.kind, tag)
