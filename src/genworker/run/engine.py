"""One process that runs one cohort: the lock, the signals, and driver, station and ending together.

The command line and notebooks call this; it prints nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol, cast

from genworker import signals
from genworker.core.events import Interrupted, InterruptedAgain, RunEnded
from genworker.core.membership import Membership
from genworker.errors import Fault, UsageError
from genworker.project.open import Project, open_membership
from genworker.run.ending import Ending, RunResult, ending_of
from genworker.run.lock import CohortLock, new_run_id
from genworker.run.now import Now
from genworker.run.planning import Order, Planner, RunOptions
from genworker.run.runner import Runner
from genworker.run.station import RunInProgress, Station
from genworker.store.disk import free_descriptors
from genworker.store.journal import Listener

__all__ = ["RunInProgress", "RunOptions", "RunResult", "forbid_core_dumps", "run_cohort"]

Watch = Callable[[RunInProgress], None]


def run_cohort(
    project: Project,
    cohort_id: str,
    options: RunOptions,
    *,
    listeners: tuple[Listener, ...] = (),
    watch: Watch | None = None,
    maker: Maker | None = None,
) -> RunResult:
    """Make what is missing of a cohort. Blocks until the run has ended; drains at SIGINT, SIGTERM, SIGHUP.

    Args:
        listeners: hear every event of the journal.
        watch: called once when the run begins, from its event loop.
        maker: makes what is ordered; this process without.

    Raises:
        FaultyInputError: an input is wrong; nothing was sent.
        LockedError: another worker has the cohort.
        StoreError: the data root cannot be used, or this process may open too few files.
    """
    free_descriptors()  # before anything meets the limit in words of its own
    membership = open_membership(project, cohort_id, strict=True)
    _check_only(membership, options.only)
    stamp = _file_stamp(project.paths.cohort_membership_csv(cohort_id))
    run_id = new_run_id(options.shard)
    if options.shard is not None:
        project = replace(project, loaded=project.loaded.scaled(options.shard.share))
    forbid_core_dumps()
    lock = CohortLock(project, cohort_id, run_id, options.if_locked, listeners, options.shard)
    with lock:
        if lock.waited:
            membership = open_membership(project, cohort_id, strict=True)
        engine = _Engine(project, membership, options, run_id, listeners, watch, maker or Alone())
        with asyncio.Runner(loop_factory=event_loop()) as loop_runner:
            result = loop_runner.run(engine.run())
    result.membership_changed = stamp != _file_stamp(project.paths.cohort_membership_csv(cohort_id))
    return result


def event_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes the faster event loop; ``None`` where it is not installed."""
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


class Maker(Protocol):
    """Makes what a run has ordered: in this process, or by others."""

    async def make(self, station: Station, order: Order, watch: Watch | None) -> Ending:
        """Make it; returns when nothing is left, or everything in flight is saved after `drain`.

        Args:
            station: open; its journal is the run's.
            watch: called once when the first call may begin.
        """
        ...

    def drain(self, timeout_s: float | None) -> None:
        """Begin nothing more; also before `make`, which then begins nothing at all.

        Args:
            timeout_s: seconds after which calls that are still out are abandoned; ``None``: no limit.
        """

    def abandon(self) -> None:
        """Give up the calls that are out."""


class Alone:
    """Makes everything in this process."""

    def __init__(self) -> None:
        self._station: Station | None = None
        self._runner: Runner | None = None
        self._is_draining = False

    async def make(self, station: Station, order: Order, watch: Watch | None) -> Ending:
        """See `Maker`."""
        self._station = station
        if self._is_draining:
            station.hurry()
        runner = await station.set_up(order)
        self._runner = runner
        if self._is_draining:
            runner.drain(None)
        if watch is not None:
            clock = asyncio.get_running_loop().time
            cohort_id = station.membership.cohort_id
            tender, scheduler = station.tender, station.scheduler
            watch(
                RunInProgress(
                    station.run_id, cohort_id, station.progress, scheduler, clock(), clock, tender=tender
                )
            )
        outcome = await runner.run()
        return ending_of(station.scheduler, station.membership, order.selected, outcome)

    def drain(self, timeout_s: float | None) -> None:
        """See `Maker`."""
        self._is_draining = True
        if self._runner is not None:
            self._runner.drain(timeout_s)
        elif self._station is not None:
            self._station.hurry()

    def abandon(self) -> None:
        """See `Maker`."""
        if self._runner is not None:
            self._runner.abandon_calls()


class _Engine:
    """One run: the driver's part of it. Hears the signals."""

    def __init__(
        self,
        project: Project,
        membership: Membership,
        options: RunOptions,
        run_id: str,
        listeners: tuple[Listener, ...],
        watch: Watch | None,
        maker: Maker,
    ) -> None:
        self._options = options
        self._watch = watch
        self._maker = maker
        self._signal: int | None = None
        self._is_open = False
        self._station = Station(
            project,
            membership,
            run_id,
            listeners=listeners,
            answer_tokens=options.answer_tokens,
            max_wait_s=options.max_wait_s,
            is_shard=options.shard is not None,
            batch=options.batch,
            detach=options.detach,
        )

    async def run(self) -> RunResult:
        """Run; signals are heard from the beginning to the end of it."""
        loop = asyncio.get_running_loop()
        held = {number: signal.getsignal(number) for number in signals.heard_signals()}
        for number in held:
            loop.add_signal_handler(number, self._interrupt, number)
        self._signal = signals.take_request()  # one that came before, and could stop nothing
        try:
            return await self._run()
        finally:
            for number, handler in held.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)

    async def _run(self) -> RunResult:
        async with self._station as station:
            self._is_open = True
            planner = Planner(
                station.project,
                station.membership,
                self._options,
                station.run_id,
                station.work,
                station.store,
                station.journal,
                station.progress,
                station.tender,
            )
            order = await station.look(await planner.order())
            now = Now(station.project.paths, station.run_id)
            station.journal.listen(now.hear)
            try:
                ending = await self._maker.make(station, order, partial(self._begun, now))
            finally:
                now.close()
            result = RunResult(
                station.run_id,
                station.progress,
                order.plan,
                ending,
                station.journal.path,
                signal=self._signal,
            )
            station.journal.record(
                RunEnded(
                    exit_code=int(result.exit_code),
                    calls=station.progress.calls,
                    spent_usd=station.progress.money.total.most_usd,
                    capped=ending.capped,
                    limits=ending.limits,
                )
            )
            return result

    def _begun(self, now: Now, run: RunInProgress) -> None:
        """The first call may begin: whoever looks on is told."""
        now.begin(run)
        if self._watch is not None:
            self._watch(run)

    def _interrupt(self, number: int) -> None:
        station = self._station
        timeout_s = station.project.loaded.settings.drain_timeout_s
        is_new = signals.is_new_request(number)
        again = self._signal is not None
        if again and not is_new:
            return  # the same request, on another way
        self._signal = self._signal or number
        if self._is_open:
            name = signal.Signals(number).name
            if again:
                station.journal.record(InterruptedAgain(name))
            else:
                station.journal.record(Interrupted(name, deadline_s=timeout_s))
        if again:
            self._maker.abandon()
        else:
            self._maker.drain(timeout_s)
