"""The driver's side of a crew: starts workers, answers their questions, proves deaths, adds up.

Where processes are placed is an engine's business (`Engine`); this module knows that they come, ask, and end.
The driver holds the cohort's lock, so that there is one crew a cohort; workers hold none but their own run's.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import secrets
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from genworker import __version__
from genworker.cluster.shards import Shards
from genworker.cluster.wire import (
    COUNTERS,
    FIRST_BYTES,
    MOST_BYTES,
    Parts,
    pack,
    part_from_json,
    question_from_json,
    receive,
    reply_to_json,
    tally_from_json,
)
from genworker.core.controller import TUNING, Belief
from genworker.core.coordinator import Coordinator, EndpointTotals, LaneTotals, Totals
from genworker.core.events import WorkerLost, event_from_json
from genworker.core.lane import Wait
from genworker.core.money import Money, Part, add_run
from genworker.core.progress import Progress, StageProgress
from genworker.core.stages import Stage
from genworker.errors import CrewError, Fault, GenworkerError, UsageError
from genworker.project.digest import project_digest
from genworker.project.endpoints import HttpSettings
from genworker.project.open import Project
from genworker.run.ending import Ending, Rows
from genworker.run.engine import Watch
from genworker.run.planning import Order, salvage
from genworker.run.station import RunInProgress, Station
from genworker.store.disk import free_descriptors
from genworker.store.ledger import fold_journal
from genworker.store.lock import FileLock

LEASE_S = 5.0
LOOK_S = 0.2
"""How often the driver looks after the workers."""
LAST_ONES_S = 10.0
"""Once everything is made, a worker that does not answer is waited for so long beyond its lease."""
MOST_LOSSES = 3
"""Processes in one slot that end one after the other without an answer: that is no accident."""
ANSWERS = COUNTERS.index("answers")


class Process(Protocol):
    """A worker's process, wherever it is."""

    slot: int

    def exit_code(self) -> int | None:
        """``None`` while it runs, as far as is known; negative: the signal that ended it."""

    def last_words(self) -> str:
        """What it wrote to its log at the end; empty when it wrote nothing."""

    def kill(self) -> None:
        """End it and its children at once."""


@dataclass(frozen=True, slots=True)
class Call:
    """What a worker's process is started with.

    Attributes:
        address: of the driver: ``unix:PATH`` or ``tcp:HOST:PORT``.
        token: proves that it is this crew's; it goes through the environment of the process.
        log: what the process prints.
        resources: what it needs of its host for the model servers that it starts, such as ``gpu``.
    """

    slot: int
    address: str
    token: str
    project: Project
    log: Path
    resources: Mapping[str, float] = field(default_factory=dict)

    def arguments(self) -> list[str]:
        """What stands behind the interpreter in the command."""
        arguments = ["-m", "genworker.cluster.worker", self.address, str(self.slot)]
        if self.project.loaded.config is not None:
            arguments += ["--config", str(self.project.loaded.config)]
        return [*arguments, "--data-root", str(self.project.paths.data_root)]


class Engine(Protocol):
    """Places processes."""

    async def open(self) -> str | None:
        """Make ready to start workers.

        Returns:
            The address of this host that the workers reach; ``None`` when all of them are on it.

        Raises:
            CrewError: it cannot be used.
        """
        ...

    async def start(self, call: Call) -> Process:
        """Start a worker. Cancelled or failed it leaves none, or one that nobody will welcome.

        Raises:
            CrewError: it cannot be started.
        """
        ...

    async def close(self) -> None:
        """Give back what `open` took. The processes have ended."""


@dataclass(slots=True)
class Member:
    """A worker as the driver knows it.

    Attributes:
        run_id: ``None`` before it has said hello.
        counters: as it told last; so `money`, `in_flight`.
        has_left: whether it has said goodbye.
    """

    process: Process
    run_id: str | None = None
    counters: list[int] = field(default_factory=lambda: [0] * len(COUNTERS))
    money: list[tuple[Stage, str, Part]] = field(default_factory=list)
    in_flight: int = 0
    has_left: bool = False
    is_gone: bool = False

    def hear(self, message: Mapping[str, Any]) -> None:
        """Take note of what it tells with each message."""
        self.counters = message["counters"]
        self.money = [(Stage(stage), model, part_from_json(part)) for stage, model, part in message["money"]]
        self.in_flight = message["in_flight"]


class Crew:
    """One run by several workers: what `genworker.run.engine.Alone` is for one process.

    Args:
        size: how many workers.
        lease_s: how long one may work without an answer of the driver.
    """

    def __init__(self, engine: Engine, size: int, *, lease_s: float = LEASE_S) -> None:
        self._engine = engine
        self._size = size
        self._lease_s = lease_s
        self._members: list[Member] = []
        self._by_run: dict[str, Member] = {}
        self._tallies: dict[int, dict[Stage, StageProgress]] = {}
        self._done = 0
        self._ending = Ending()
        self._fault: Exception | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._stop = ""
        self._starting: dict[int, asyncio.Task[None]] = {}
        self._token = secrets.token_hex(32)
        self._address = ""
        self._losses: Counter[int] = Counter()  # by slot: processes in a row that brought no answer
        self._coordinator: Coordinator | None = None

    # What the engine of the run asks

    async def make(self, station: Station, order: Order, watch: Watch | None) -> Ending:
        """Make what is ordered. `station` is the driver's: its store takes in what dead workers left."""
        rows = station.membership.rows
        if any(spec.batch is not None for spec in order.specs) or station.tender.match(
            (job, rows[job].stage, rows[job].gen_id) for job in order.jobs
        ):
            fault = "several workers do not share batches, and some of the rows are to be asked in them"
            raise UsageError([Fault(fault, fix="leave --workers and --engine out, or add --no-batch")])
        station.tender.release()
        self._station, self._order = station, order
        self._shards = Shards(station.work, order, self._size)
        self._clock = asyncio.get_running_loop().time
        settings = station.project.loaded.settings
        self._coordinator = Coordinator(
            self._totals(),
            self._shards.described(),
            crew=self._size,
            lease_s=self._lease_s,
            timeout_s=max((settings.endpoints[name].timeout_s for name in order.endpoints), default=1.0),
            now_s=self._clock(),
        )
        if self._stop:
            self._coordinator.stop("drain")
        self._digest = await asyncio.to_thread(project_digest, station.project)
        station.progress.account = self
        if watch is not None:
            watch(
                RunInProgress(
                    station.run_id,
                    station.membership.cohort_id,
                    station.progress,
                    self,
                    self._clock(),
                    self._clock,
                    self.crew,
                    self.crew_record,
                )
            )
        if len(self._shards):
            await self._run()
        return self._ended()

    def drain(self, timeout_s: float | None) -> None:
        """Let workers begin nothing more, and save what is in flight."""
        self._stop = self._stop or "drain"
        if self._coordinator is None:
            return
        self._coordinator.stop("drain")
        if timeout_s is not None and self._deadline is None:
            self._deadline = asyncio.get_running_loop().call_later(timeout_s, self.abandon)

    def abandon(self) -> None:
        """Give up calls that are out."""
        self._stop = "abandon"
        if self._coordinator is not None:
            self._coordinator.stop("abandon")

    # What is shown (`Activity`, `Spending`)

    @property
    def in_flight(self) -> int:
        """Calls that are out, as far as the workers have told."""
        return sum(member.in_flight for member in self._members if not member.is_gone)

    @property
    def draining(self) -> bool:
        """Whether nothing more is begun."""
        return bool(self._stop)

    def paused_lanes(self, now_s: float) -> list[tuple[str, float]]:
        """(name, seconds left) of lanes that wait."""
        return [] if self._coordinator is None else list(self._coordinator.pauses(now_s).items())

    def waits(self, now_s: float) -> list[Wait]:
        """The lanes that wait; why and since when is known to the workers alone, whose journals tell it."""
        return [Wait(name, "", 0.0, left_s) for name, left_s in self.paused_lanes(now_s)]

    def beliefs(self) -> list[tuple[str, Belief]]:
        """Each worker finds the limits for itself: there is no one belief to show."""
        return []

    def stopped_lanes(self) -> list[tuple[str, str]]:
        """(name, reason) of lanes that were stopped."""
        return [] if self._coordinator is None else list(self._coordinator.stopped_lanes().items())

    def crew(self) -> str:
        """The workers in a few words."""
        working = [member for member in self._members if member.run_id is not None and not member.is_gone]
        lost = 0
        if self._coordinator is not None:
            known = set(self._coordinator.workers())
            lost = sum(self._coordinator.is_lost(m.run_id) for m in working if m.run_id in known and m.run_id)
        words = f"{len(working) - lost} of {self._size} workers"
        return f"{words}, {lost} lost" if lost else words

    def crew_record(self) -> list[dict[str, Any]]:
        """What each worker does and holds, for machines."""
        coordinator = self._coordinator
        known = set() if coordinator is None else set(coordinator.workers())
        found = []
        for member in self._members:
            if coordinator is None or member.is_gone or member.run_id not in known:
                continue
            name = member.run_id
            assert name is not None, "it is among those that are known"
            pools = coordinator.pools().items()
            found.append(
                {
                    "slot": member.process.slot,
                    "run": name,
                    "answers": member.counters[ANSWERS],
                    "in_flight": member.in_flight,
                    "shards": len(coordinator.shards_of(name)),
                    "heard_s_ago": round(self._clock() - coordinator.seen_s(name), 1),
                    "is_lost": coordinator.is_lost(name),
                    "leased": {
                        pool: {"share": round(held, 2), "of": round(total.total, 2)}
                        for pool, total in pools
                        if total.total < float("inf") and (held := total.held_by(name))
                    },
                }
            )
        return found

    def add_to(self, money: Money) -> None:
        """Count what the workers' calls cost, as far as they have told."""
        for member in self._members:
            for stage, model, part in member.money:
                money.add(stage, model, member.run_id or "", part)

    # The run

    def _totals(self) -> Totals:
        order, settings = self._order, self._station.project.loaded.settings

        def rate(per_min: float | None, share: float = TUNING.share) -> float:
            return float("inf") if per_min is None else per_min / 60.0 * share

        endpoints = {
            name: EndpointTotals(
                settings.endpoints[name].max_concurrency,
                rate(settings.endpoints[name].rpm),
                rate(settings.endpoints[name].tpm),
            )
            for name in order.endpoints
        }
        lanes = {
            spec.name: LaneTotals(
                order.endpoints[spec.endpoint], per_s=rate(spec.rpm), tokens_per_s=rate(spec.tpm)
            )
            for spec in order.specs
        }
        places = min(settings.max_concurrency, self._size * free_descriptors())
        return Totals(places, lanes, endpoints, order.budget.caps, order.budget.spent)

    async def _run(self) -> None:
        # In a directory of our own: nobody else can reach the socket, and its path is short.
        directory = Path(tempfile.mkdtemp(prefix="genworker-"))
        try:
            host = await self._engine.open()
            if host is None:
                self._address = f"unix:{directory / 'driver'}"
                server = await asyncio.start_unix_server(self._serve, directory / "driver")
            else:
                server = await asyncio.start_server(self._serve, host)
                self._address = f"tcp:{host}:{server.sockets[0].getsockname()[1]}"
            async with server:  # its end waits for the connections, and so for the workers
                try:
                    for slot in range(min(self._size, len(self._shards))):
                        self._begin(slot)
                    await self._look_after()
                finally:
                    await self._end_all()
        finally:
            if self._deadline is not None:
                self._deadline.cancel()
            await self._engine.close()
            shutil.rmtree(directory, ignore_errors=True)
            self._remove_empty_logs()
        if self._fault is not None:
            raise self._fault

    async def _end_all(self) -> None:
        """Nobody is being started any more, and nobody is left."""
        starting = list(self._starting.values())
        for task in starting:
            task.cancel()
        await asyncio.gather(*starting, return_exceptions=True)
        for member in self._members:
            if not member.is_gone:
                member.process.kill()

    def _remove_empty_logs(self) -> None:
        station = self._station
        for slot in range(self._size):
            log = station.project.paths.worker_log_path(station.run_id, slot)
            with contextlib.suppress(OSError):
                if not log.stat().st_size:
                    log.unlink()

    def _begin(self, slot: int) -> None:
        """Have a worker started; it may take a while until there is a place for it."""
        self._starting[slot] = asyncio.get_running_loop().create_task(self._start(slot))

    def _note_started(self) -> None:
        for slot, task in list(self._starting.items()):
            if task.done():
                del self._starting[slot]
                if not task.cancelled() and (error := task.exception()) is not None:
                    if not isinstance(error, GenworkerError):
                        raise error
                    self._end_with(error)

    async def _start(self, slot: int) -> None:
        station = self._station
        log = station.project.paths.worker_log_path(station.run_id, slot)
        call = Call(slot, self._address, self._token, station.project, log, self._resources())
        self._members.append(Member(await self._engine.start(call)))

    def _resources(self) -> dict[str, float]:
        """What the model servers need that a worker starts for this run."""
        needed: Counter[str] = Counter()
        for name in self._order.endpoints:
            section = self._station.project.loaded.settings.endpoints[name]
            if isinstance(section, HttpSettings) and section.serve:
                needed.update(section.serve_resources)  # amounts may be parts
        return dict(needed)

    async def _look_after(self) -> None:
        """Until the last worker has ended: note deaths, start others in their place."""
        assert self._coordinator is not None
        over_s: float | None = None
        while True:
            for member in list(self._members):
                if not member.is_gone and (code := member.process.exit_code()) is not None:
                    await self._bury(member, code)
            coordinator, now = self._coordinator, self._clock()
            coordinator.tick(now)
            self._note_started()
            if all(member.is_gone for member in self._members) and not self._starting:
                return
            if self._stop or coordinator.is_over or coordinator.capped is not None:
                for task in self._starting.values():
                    task.cancel()
            if coordinator.is_over or coordinator.capped is not None or self._stop:
                over_s = now if over_s is None else over_s
                for member in self._members:
                    if (
                        not member.is_gone
                        and now - max(over_s, self._heard_s(member)) > self._lease_s + LAST_ONES_S
                    ):
                        member.process.kill()  # it is stopped, and nobody needs it any more
            await asyncio.sleep(LOOK_S)

    def _heard_s(self, member: Member) -> float:
        if member.run_id is None or self._coordinator is None:
            return 0.0
        return self._coordinator.seen_s(member.run_id)

    async def _bury(self, member: Member, code: int) -> None:
        """A process has ended: take in what it left, settle its money, start another where there is work."""
        coordinator, station = self._coordinator, self._station
        assert coordinator is not None
        if member.run_id is not None:
            lock = FileLock(station.project.paths.run_lock_path(member.run_id))
            if not lock.acquire():
                return  # its keeper is gone, and it lives; or the kernel has not let go yet: next time
            lock.release(remove=member.has_left)
            if not member.has_left:
                await salvage(station.project, station.store, station.journal, station.progress)
            self._settle(member)
        member.is_gone = True
        member.in_flight = 0
        if member.has_left:
            return
        why = member.process.last_words() or (f"signal {-code}" if code < 0 else f"exit code {code}")
        station.journal.record(WorkerLost(member.run_id or "", member.process.slot, why))
        if code == 2 and self._fault is None:
            self._end_with(UsageError([Fault(why, fix="mend it, then run again; what was made is kept")]))
        slot = member.process.slot
        self._losses[slot] = 0 if member.counters[ANSWERS] else self._losses[slot] + 1
        if self._stop or coordinator.is_over or coordinator.capped is not None:
            return
        if self._losses[slot] < MOST_LOSSES:
            self._begin(slot)
        elif all(other.is_gone for other in self._members) and not self._starting:
            self._end_with(
                CrewError(f"the workers end one after the other without an answer; the last one: {why}")
            )

    def _end_with(self, fault: Exception) -> None:
        self._fault = fault
        self.drain(self._station.project.loaded.settings.drain_timeout_s)

    def _settle(self, member: Member) -> None:
        """The worker's journal has the last word on what it spent."""
        assert member.run_id is not None
        assert self._coordinator is not None
        path = self._station.project.paths.journal_path(member.run_id)
        account, money = fold_journal(member.run_id, path), Parts()
        add_run(money, account, self._station.work.routes.find_price)
        member.money = money.parts
        sums = account.spending.values()
        member.counters[COUNTERS.index("calls")] = sum(part.calls for part in sums)
        member.counters[ANSWERS] = sum(part.answers for part in sums)
        self._sum_up()
        self._coordinator.died(member.run_id, money.total.worst)

    # Messages

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        is_known = False
        with contextlib.closing(writer):
            while (message := await receive(reader, MOST_BYTES if is_known else FIRST_BYTES)) is not None:
                if not is_known:
                    token = str(message.get("token")).encode()
                    is_known = hmac.compare_digest(token, self._token.encode())
                answer = await self._answer(message) if is_known else None
                if answer is None:
                    return
                writer.write(pack(answer))
                try:
                    await writer.drain()
                except ConnectionError:
                    return

    async def _answer(self, message: Mapping[str, Any]) -> dict[str, Any] | None:
        if "hello" in message:
            starting = self._starting.get(message["hello"]["slot"])
            if starting is not None:  # a process may be sooner than its engine's word that it runs
                await asyncio.wait([starting])
            return self._welcome(message["hello"])
        if "bye" in message:
            return self._goodbye(message)
        return self._reply(message)

    def _welcome(self, hello: Mapping[str, Any]) -> dict[str, Any] | None:
        order, station = self._order, self._station
        reason = self._refuse(hello)
        if reason is not None:
            return {"refused": reason}
        new = (m for m in self._members if m.run_id is None and not m.is_gone)
        member = next((m for m in new if m.process.slot == hello["slot"]), None)
        if member is None:
            return None  # its start was given up
        member.run_id = hello["run_id"]
        self._by_run[hello["run_id"]] = member
        assert self._coordinator is not None
        self._coordinator.join(hello["run_id"], self._clock())
        caps, routes = order.budget.caps, station.work.routes
        return {
            "cohort": station.membership.cohort_id,
            "driver": station.run_id,
            "models": [route.model_id for route in routes.by_lane if not route.is_fallback],
            # All workers together are to begin with as few calls as one would.
            "first_calls": {
                spec.name: max(1, spec.first_calls // self._size) for spec in order.specs if spec.first_calls
            },
            "capped": [caps.usd is not None, caps.calls is not None, caps.tokens is not None],
            "answer_tokens": station.work.answer_tokens,
            "max_wait_s": station.max_wait_s,
            "excess": station.work.excess(),
        }

    def _refuse(self, hello: Mapping[str, Any]) -> str | None:
        """Why a worker may not work; ``None`` when it may."""
        if hello["version"] != __version__:
            return f"the worker is genworker {hello['version']}, the driver {__version__}: install the same"
        if hello["digest"] != self._digest:
            return (
                "settings, catalogue or templates are not those that the driver has read: "
                "they have changed meanwhile, or another host has others"
            )
        missing = [
            text
            for name, faults in hello["missing_keys"].items()
            if name in self._order.endpoints
            for text in faults
        ]
        return "\n".join(missing) or None

    def _reply(self, message: Mapping[str, Any]) -> dict[str, Any] | None:
        question = question_from_json(message["question"])
        member = self._by_run.get(question.worker)
        if member is None or member.is_gone or self._coordinator is None:
            return None
        self._hear(member, message)
        self._count(message["tallies"])
        reply = self._coordinator.sync(question, self._clock())
        self._coordinator.take_records()  # the coordinator dies with the driver, and so does the run
        if reply is None:
            return None
        return {
            "reply": reply_to_json(reply),
            "rows": [[number, self._shards.to_json(number)] for number in reply.give],
        }

    def _hear(self, member: Member, message: Mapping[str, Any]) -> None:
        member.hear(message)
        for record in message["news"]:
            if (event := event_from_json(record)) is not None:
                self._station.journal.tell(event)

    def _goodbye(self, message: Mapping[str, Any]) -> dict[str, Any]:
        member, ending = self._by_run[message["bye"]], self._ending
        self._hear(member, message)
        member.has_left = True
        self._count(message["tallies"])
        for reason, stage, gen_id, number in message["failures"]:
            first = ending.failures.get(reason, Rows(Stage(stage), gen_id, 0))
            ending.failures[reason] = first._replace(number=first.number + number)
        for stage, gen_id, number in message["blockers"]:
            key = Stage(stage), gen_id
            ending.blockers[key] = ending.blockers.get(key, 0) + number
        for lane, found in message["limits"].items():
            ending.limits.setdefault(lane, found)
        ending.lost += [(gen_id, reason) for gen_id, reason in message["lost"]]
        ending.unrecorded = ending.unrecorded or message["unrecorded"]
        return {}

    # Counts

    def _count(self, tallies: Mapping[str, Any]) -> None:
        """Take a worker's counts of its shards, unless one has finished them: then another is late."""
        assert self._coordinator is not None
        for text, record in tallies.items():
            number = int(text)
            if not self._coordinator.is_finished(number):
                self._add(self._tallies.get(number, {}), -1)
                self._tallies[number] = tally_from_json(record)
                self._add(self._tallies[number], 1)
        self._sum_up()

    def _add(self, tally: Mapping[Stage, StageProgress], sign: int) -> None:
        for stage, part in tally.items():
            counts = self._station.progress.stages[stage]
            counts.done += sign * part.done
            counts.blocked += sign * part.blocked
            counts.stopped += sign * part.stopped
            counts.errors += sign * part.errors
            for kind, number in part.kinds.items():
                counts.kinds[kind] = counts.kinds.get(kind, 0) + sign * number
            self._done += sign * part.done

    def _sum_up(self) -> None:
        progress: Progress = self._station.progress
        for name, values in zip(
            COUNTERS, zip(*(m.counters for m in self._members), strict=True), strict=True
        ):
            if name == "answers":
                for _ in range(sum(values) - progress.answers):
                    progress.answered(self._clock())
            else:
                setattr(progress, name, sum(values))

    def _ended(self) -> Ending:
        ending, coordinator = self._ending, self._coordinator
        assert coordinator is not None
        ending.left = len(self._order.jobs) - self._done
        ending.capped = coordinator.capped
        ending.stopped = dict(coordinator.stopped_lanes())
        return ending
