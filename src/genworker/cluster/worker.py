"""One worker of a crew: a process that asks the driver for rows and shares, and makes what it gets.

``python -m genworker.cluster.worker`` is started by the driver, not by people. Keys come from the environment
or from ``.env``, as for any run; none is in the arguments or in a message.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from genworker import __version__
from genworker.cluster.wire import (
    COUNTERS,
    Parts,
    pack,
    part_to_json,
    question_to_json,
    receive,
    reply_from_json,
    row_from_json,
    tally_to_json,
)
from genworker.core.budget import Budget, Caps
from genworker.core.coordinator import LaneNeed, Question, Reply
from genworker.core.events import (
    AnswerNotStored,
    CallFailed,
    CallStopped,
    Event,
    LaneStopped,
    RowFailed,
    StoreRefused,
    Warned,
    WorkerStarted,
)
from genworker.core.lease import Lease
from genworker.core.membership import Membership, MembershipRow
from genworker.core.money import Account
from genworker.core.plan import Plan
from genworker.core.progress import StageProgress
from genworker.core.scheduler import NO_LANE
from genworker.core.stages import Stage
from genworker.errors import ConfigError, ExitCode, GenworkerError
from genworker.project.digest import project_digest
from genworker.project.open import Project, open_project
from genworker.run.ending import Ending, ending_of
from genworker.run.engine import event_loop, forbid_core_dumps
from genworker.run.lock import new_run_id
from genworker.run.planning import Order
from genworker.run.runner import Runner
from genworker.run.station import Station
from genworker.run.telemetry import Export, export_to_collector

TOKEN_VARIABLE = "CREW_TOKEN"
"""Says to the driver whose worker this is. It opens nothing but this run's conversation."""
SYNC_S = 0.25
"""A question goes out so often, and at once when there is nothing left to begin."""
LOOK_S = 0.02
"""How often it is looked whether there is; no two questions are closer."""
ROWS_AHEAD = 64
"""Rows that a worker asks for beyond four times the calls that it has out."""
SHOWN = (LaneStopped, CallFailed, RowFailed, CallStopped, StoreRefused, AnswerNotStored, Warned)
"""Events that a person sees in the driver's terminal as well, the first `NEWS` between two questions."""
NEWS = 50
DROPPED_AFTER = 64
"""Questions without a reply that are remembered: the link keeps the order, so one is enough."""


class _ByShard:
    """Counts rows by shard and stage, and knows which shards are finished."""

    def __init__(self) -> None:
        self.jobs: dict[int, range] = {}
        self.tallies: dict[int, dict[Stage, StageProgress]] = {}
        self._shard_of: dict[int, int] = {}
        self._stages: list[Stage] = []
        self._open: dict[int, int] = {}

    def add(self, shard: int, stages: list[Stage]) -> None:
        """A shard's rows have been appended, in this order."""
        first = len(self._stages)
        self._stages += stages
        self.jobs[shard] = range(first, len(self._stages))
        self.tallies[shard] = {stage: StageProgress() for stage in dict.fromkeys(stages)}
        self._shard_of.update(dict.fromkeys(self.jobs[shard], shard))
        self._open[shard] = len(stages)

    def stage(self, job: int) -> StageProgress:
        """See `genworker.core.progress.Tally`."""
        return self.tallies[self._shard_of[job]][self._stages[job]]

    def ended(self, job: int) -> None:
        """See `genworker.core.progress.Tally`."""
        self._open[self._shard_of[job]] -= 1

    def finished(self, runner: Runner) -> list[int]:
        """Shards all of whose rows have ended and are written down."""
        return [
            shard
            for shard, left in self._open.items()
            if not left and not any(runner.is_busy(job) for job in self.jobs[shard])
        ]

    def drop(self, shard: int) -> None:
        """The driver knows a finished shard's counts."""
        for job in self.jobs.pop(shard):
            del self._shard_of[job]
        del self.tallies[shard], self._open[shard]

    @property
    def open_rows(self) -> int:
        """Rows that have not ended."""
        return sum(self._open.values())


class Worker:
    """The worker's side of the protocol; `genworker.core.coordinator` is the other one.

    Args:
        project: as this process reads it.
        welcome: the driver's answer to the first message.
    """

    def __init__(self, project: Project, run_id: str, welcome: dict[str, Any], slot: int) -> None:
        self.run_id = run_id
        self._welcome = welcome
        self._capped: list[bool] = welcome["capped"]
        self._membership = Membership.empty(welcome["cohort"])
        self._models: dict[str, int] = {}
        self._replace: set[int] = set()
        self._disputed: set[int] = set()
        self.tally = _ByShard()
        self.station = Station(
            project,
            self._membership,
            run_id,
            answer_tokens=welcome["answer_tokens"],
            max_wait_s=welcome["max_wait_s"],
            first=WorkerStarted(
                run_id=run_id,
                cohort=welcome["cohort"],
                version=__version__,
                driver=welcome["driver"],
                slot=slot,
                pid=os.getpid(),
                host=socket.gethostname(),
            ),
        )
        self._seq = self._ack = self._epoch = 0
        self._told: dict[int, int] = {}  # finished shard -> the first question that says so
        self._asked: dict[int, tuple[float, int]] = {}  # question -> when, and what was applied then
        self._stop = ""
        self._news: list[dict[str, Any]] = []
        self.is_over = False

    async def set_up(self) -> Runner:
        """Make the scheduler, without a row so far."""
        station, work = self.station, self.station.work
        models: list[str] = self._welcome["models"]
        work.routes.in_batches = lambda job: False  # the driver has refused those
        specs, endpoints = work.routes.build(len(models), enumerate(models))
        self._models = {model: work.routes.lanes[number] for number, model in enumerate(models)}
        del work.routes.lanes[:]
        names = [(spec.name, endpoints[spec.endpoint]) for spec in specs]
        self._lease = Lease(names)
        work.adopt_excess(self._welcome["excess"])
        few: dict[str, int] = self._welcome["first_calls"]
        bare = [spec.shared(few.get(spec.name, 0)) for spec in specs]
        budget = Budget(self._caps([0, 0, 0]))
        plan = Plan(self._membership)
        order = Order(plan, bytearray(), (), self._replace, bare, endpoints, budget)
        account = station.progress.account = Account(self.run_id, work.routes.find_price)
        station.journal.listen(account.hear)
        station.journal.listen(self._note)
        self._account = account
        self._runner = await station.set_up(
            order, lease=self._lease, disputed=self._disputed, tally=self.tally
        )
        return self._runner

    def _caps(self, allow: list[Any]) -> Caps:
        usd, calls, tokens = (
            value if is_capped else None for value, is_capped in zip(allow, self._capped, strict=True)
        )
        return Caps(usd, calls, tokens)

    # Questions

    def wants_to_ask(self) -> bool:
        """Whether it would be idle until the next question is due."""
        if self._stop or self.is_over:
            return False
        scheduler = self.station.scheduler
        return self.tally.open_rows <= scheduler.in_flight or scheduler.is_starved

    def ask(self, now_s: float) -> dict[str, Any]:
        """The next question."""
        scheduler, tally = self.station.scheduler, self.tally
        self._seq += 1
        self._asked[self._seq] = (now_s, self._ack)
        self._asked.pop(self._seq - DROPPED_AFTER, None)
        for shard in tally.finished(self._runner):
            self._told.setdefault(shard, self._seq)
        question = Question(
            worker=self.run_id,
            seq=self._seq,
            epoch=self._epoch,
            ack=self._ack,
            have=[shard for shard in tally.jobs if shard not in self._told],
            done=list(self._told),
            free=max(0, ROWS_AHEAD + 4 * scheduler.in_flight - tally.open_rows),
            lanes={
                lane.spec.name: LaneNeed(lane.open_jobs, lane.in_flight)
                for lane in scheduler.lanes()
                if lane.open_jobs or lane.in_flight
            },
            purse=scheduler.purse(),
            pauses=dict(scheduler.paused_lanes(now_s)),
            stopped=dict(scheduler.stopped_lanes()),
        )
        return {
            "question": question_to_json(question),
            "tallies": {str(shard): tally_to_json(counts) for shard, counts in tally.tallies.items()},
            **self.told(),
        }

    def _note(self, event: Event) -> None:
        if isinstance(event, SHOWN) and len(self._news) < NEWS:
            self._news.append({**event.to_json(), "event": event.word})

    def told(self) -> dict[str, Any]:
        """What the driver wants to know besides: counts and money of this worker so far."""
        progress, scheduler, money = self.station.progress, self.station.scheduler, Parts()
        self._account.add_to(money)
        news, self._news = self._news, []
        return {
            "counters": [getattr(progress, name) for name in COUNTERS],
            "money": [[stage.value, model, part_to_json(part)] for stage, model, part in money.parts],
            "in_flight": scheduler.in_flight,
            "news": news,
        }

    # Replies

    def apply(self, message: dict[str, Any], now_s: float) -> None:
        """Take what a reply gives, unless something was taken since its question was asked."""
        reply = reply_from_json(message["reply"])
        asked = self._asked.get(reply.seq)
        if asked is None or asked[1] != self._ack or reply.epoch < self._epoch:
            return
        scheduler, runner = self.station.scheduler, self._runner
        self._ack, self._epoch = reply.seq, reply.epoch
        self._lease.renew(reply.shares, asked[0] + reply.lease_s, now_s)
        if any(self._capped):
            scheduler.allow(self._caps([reply.allow.usd, reply.allow.calls, reply.allow.tokens]))
        for shard, first in list(self._told.items()):
            if first <= reply.seq:
                del self._told[shard]
                self.tally.drop(shard)
        for shard, rows in message["rows"]:
            if shard not in self.tally.jobs:
                self._take(shard, rows)
        for shard in reply.disputed:
            self._disputed.update(self.tally.jobs.get(shard, ()))
        for lane in scheduler.lanes():
            if (pause_s := reply.pauses.get(lane.spec.name)) is not None:
                lane.pause(now_s + pause_s)
        for name, reason in reply.stopped.items():
            scheduler.stop_lane(name, reason)
        self._obey(reply)
        runner.pump()

    def _obey(self, reply: Reply) -> None:
        if reply.is_over:
            self.is_over = self._lease.is_last = True
            self._runner.drain(None)
        if reply.stop == "abandon" and self._stop != "abandon":
            self._runner.abandon_calls()
        elif reply.stop and not self._stop:
            self._runner.drain(None)
        self._stop = reply.stop

    def _take(self, shard: int, records: list[Any]) -> None:
        membership, work = self._membership, self.station.work
        first = len(membership.rows)
        rows: list[MembershipRow] = []
        for record in records:
            row, parent, replace = row_from_json(record)
            job = first + len(rows)
            rows.append(row)
            membership.append(row, first + parent if parent >= 0 else -1)
            work.routes.lanes.append(NO_LANE if work.is_copy(job) else self._models[row.llm_model_id or ""])
            self.station.stages.append(row.stage.order)
            if replace:
                self._replace.add(job)
        self.tally.add(shard, [row.stage for row in rows])
        work.joined(first)
        self.station.scheduler.grow()

    def lose_driver(self) -> None:
        """Nobody answers any more: save what is in flight, and leave."""
        self._stop = "drain"
        self._runner.drain(None)

    def ending(self) -> Ending:
        """How this worker's rows ended."""
        selected = bytearray(b"\x01") * len(self._membership)
        return ending_of(self.station.scheduler, self._membership, selected, self._runner.outcome)


async def _converse(
    worker: Worker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, running: asyncio.Task[Any]
) -> None:
    """Ask and apply until the work has ended."""
    clock = asyncio.get_running_loop().time
    while not running.done():
        asked_s = clock()
        message = worker.ask(asked_s)
        try:
            writer.write(pack(message))
            await writer.drain()
        except ConnectionError:
            worker.lose_driver()
            return
        answer = await receive(reader)
        if answer is None:
            worker.lose_driver()
            return
        worker.apply(answer, clock())
        await asyncio.wait({running}, timeout=LOOK_S)
        while not running.done() and clock() < asked_s + SYNC_S and not worker.wants_to_ask():
            await asyncio.wait({running}, timeout=LOOK_S)


async def _connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    way, _, where = address.partition(":")
    if way == "unix":
        return await asyncio.open_unix_connection(where)
    host, _, port = where.rpartition(":")
    return await asyncio.open_connection(host, int(port))


def _missing_keys(project: Project) -> dict[str, list[str]]:
    """Endpoints whose key cannot be had here, with what is to be done about it."""
    missing = {}
    for name in project.loaded.settings.endpoints:
        try:
            project.loaded.api_key(name)
        except ConfigError as error:
            missing[name] = [str(fault) for fault in error.faults]
    return missing


async def _work(options: argparse.Namespace, project: Project) -> int:
    try:
        reader, writer = await _connect(options.address)
    except OSError:
        return int(ExitCode.FAILURES)  # the driver has gone
    run_id = new_run_id()
    hello = {
        "slot": options.slot,
        "run_id": run_id,
        "version": __version__,
        "digest": project_digest(project),
        "missing_keys": _missing_keys(project),
    }
    with contextlib.closing(writer):
        writer.write(pack({"token": options.token, "hello": hello}))
        welcome = await receive(reader)
        if welcome is None:
            return int(ExitCode.FAILURES)
        if "refused" in welcome:
            sys.stderr.write(f"{welcome['refused']}\n")
            return int(ExitCode.USAGE)
        worker = Worker(project, run_id, welcome, options.slot)
        async with worker.station:
            runner = await worker.set_up()
            export = _telemetry(project, welcome["cohort"])
            if export is not None:
                worker.station.journal.listen(export.hear)
            running = asyncio.create_task(runner.run())
            try:
                await _converse(worker, reader, writer, running)
            finally:
                await asyncio.wait({running})
                if export is not None:
                    await asyncio.to_thread(export.close)
            running.result()
            ending = worker.ending()
            tallies = {str(s): tally_to_json(counts) for s, counts in worker.tally.tallies.items()}
            bye = {
                "bye": run_id,
                "tallies": tallies,
                "failures": [[reason, *rows] for reason, rows in ending.failures.items()],
                "blockers": [[*key, number] for key, number in ending.blockers.items()],
                "stopped": ending.stopped,
                "limits": ending.limits,
                "lost": ending.lost,
                "unrecorded": ending.unrecorded,
                **worker.told(),
            }
        with contextlib.suppress(ConnectionError):
            writer.write(pack(bye))
            await writer.drain()
            await receive(reader)  # it is read before the process ends
    return int(ExitCode.OK)


def _telemetry(project: Project, cohort: str) -> Export | None:
    """A worker's calls as spans, where the environment asks for them; the driver says when that cannot be."""
    kinds = {name: section.kind for name, section in project.loaded.settings.endpoints.items()}
    try:
        return export_to_collector(kinds, cohort, __version__)
    except ImportError:
        return None


def main() -> int:
    """Work until the driver says that it is over. Returns the process's exit code."""
    parser = argparse.ArgumentParser(prog="genworker.cluster.worker", description=__doc__)
    parser.add_argument("address", help="the driver's: unix:PATH or tcp:HOST:PORT")
    parser.add_argument("slot", type=int)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--data-root", type=Path)
    options = parser.parse_args()
    options.token = os.environ.pop(TOKEN_VARIABLE, "")
    # A signal from the terminal is the driver's to hear; it tells the workers.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    forbid_core_dumps()
    try:
        project = open_project(options.config, options.data_root)
        with asyncio.Runner(loop_factory=event_loop()) as loop_runner:
            return loop_runner.run(_work(options, project))
    except GenworkerError as error:
        sys.stderr.write(f"{error}\n")
        return int(error.exit_code)


if __name__ == "__main__":
    sys.exit(main())
