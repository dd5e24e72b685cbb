"""Decides which call starts when: lineages, lanes, retries, money. No I/O and no clock; time is a number.

Events go in (`answered`, `committed`, `refused`, …), decisions come out (`next_start`, `wake_at`).
Equal events give equal decisions. The asyncio runner and a simulation ask the same object.
"""

from __future__ import annotations

import heapq
import math
from array import array
from collections import Counter, deque
from collections.abc import Collection, Mapping, MutableSequence, Sequence
from dataclasses import dataclass
from enum import IntEnum
from hashlib import blake2b
from typing import NamedTuple

from genworker.core.budget import NOTHING, Budget, Caps, Charge
from genworker.core.completion import Completion
from genworker.core.controller import Allowance, Belief, Change, Controller
from genworker.core.coordinator import Purse, kind
from genworker.core.hints import Quantity
from genworker.core.lane import Lane, LaneSpec, Member, Server, Ticket, Wait
from genworker.core.lease import Lease
from genworker.core.trust import EQUAL_REFUSALS, LONGEST_PAUSE_S, Trust
from genworker.core.waves import RENDERING, Close, Spool, Waves
from genworker.errors import (
    MalformedAnswerError,
    ProviderError,
    ProviderUnavailableError,
    RateLimitedError,
    RequestRejectedError,
    Scope,
)

NO_LANE = -1
"""Lane of a job that asks no endpoint (a copy): it needs no slot."""
WINDOW = 2048
"""Children that are ready, their parents' texts in memory: up to here the earliest stage goes first."""
LEAD_S = 2.0
"""How far the first call of a shared prompt goes ahead of the others: then the cache holds it."""
CACHE_LIFE_S = 270.0
"""A prompt cache forgets what nobody used for five minutes; after this the next call leads again."""
MANY_PREFIXES = 4096
BATCH_TRIES = 2
"""Batches that may fail to answer a row, or not run it, before it goes elsewhere or fails."""


class JobState(IntEnum):
    """Where a job stands. The last five are terminal."""

    WAITING = 0
    """Its parent is not committed yet."""
    READY = 1
    RUNNING = 2
    BACKING_OFF = 3
    COMMITTING = 4
    PARKED = 5
    """Its worst case does not fit the caps as long as other calls are out."""
    BATCHED = 6
    """Its request is written down for a batch, or is in one that is out: this run's or another's."""
    DONE = 7
    FAILED = 8
    BLOCKED = 9
    """An ancestor ended without a usable text."""
    STOPPED = 10
    """Its lane was stopped before it could be called."""
    LEFT = 11
    """Not part of this run: done already, not selected, or held by another worker."""


TERMINAL = frozenset(state for state in JobState if state >= JobState.DONE)


class JobEvent(IntEnum):
    """What happens to a job. `NEXT` says where it leads."""

    RELEASED = 0
    """Its parent is in the store, or it has none in this run."""
    STARTED = 1
    PUT_OFF = 2
    """It is to be looked at again at a later time; nothing was sent."""
    TOO_DEAR = 3
    """Its worst case does not fit the caps at present."""
    ANSWERED = 4
    TRIED_IN_VAIN = 5
    """Its call brought an error, and another try is worth while."""
    WOKEN = 6
    """The time that it waited for has come."""
    AFFORDABLE = 7
    """Its worst case fits the caps by now, and is reserved."""
    HANDED_OVER = 8
    """Another lane, the fallback, has it now."""
    ABANDONED = 9
    """Its call was cancelled; another run may make it."""
    STORED = 10
    GIVEN_UP = 11
    """The row itself is at fault, or its answer is not usable, or the disk refused it."""
    LANE_STOPPED = 12
    ANCESTOR_FAILED = 13
    QUEUED = 14
    """Its request is written down for a batch, or an open batch was found to hold it."""
    LANDED = 15
    """Its batch has brought an answer."""
    RETURNED = 16
    """Its batch has brought nothing for it, or was not made."""


def _table() -> Mapping[JobState, Mapping[JobEvent, JobState]]:
    s, e = JobState, JobEvent
    return {
        s.WAITING: {
            e.RELEASED: s.READY,
            e.QUEUED: s.BATCHED,  # an earlier run's batch holds it
            e.HANDED_OVER: s.READY,  # its lane was stopped while it waited for its parent
            e.LANE_STOPPED: s.STOPPED,
            e.ANCESTOR_FAILED: s.BLOCKED,
        },
        s.READY: {
            e.STARTED: s.RUNNING,
            e.HANDED_OVER: s.READY,
            e.LANE_STOPPED: s.STOPPED,
        },
        s.RUNNING: {
            e.PUT_OFF: s.BACKING_OFF,
            e.TOO_DEAR: s.PARKED,
            e.ANSWERED: s.COMMITTING,
            e.TRIED_IN_VAIN: s.BACKING_OFF,
            e.HANDED_OVER: s.READY,
            e.ABANDONED: s.READY,
            e.GIVEN_UP: s.FAILED,
            e.LANE_STOPPED: s.STOPPED,  # by another call, while this one was out
            e.QUEUED: s.BATCHED,
        },
        s.BACKING_OFF: {
            e.WOKEN: s.READY,
            e.HANDED_OVER: s.READY,
            e.LANE_STOPPED: s.STOPPED,
        },
        s.COMMITTING: {
            e.STORED: s.DONE,
            e.GIVEN_UP: s.FAILED,
        },
        s.PARKED: {
            e.AFFORDABLE: s.READY,
            e.HANDED_OVER: s.READY,
            e.LANE_STOPPED: s.STOPPED,
        },
        s.BATCHED: {
            e.LANDED: s.COMMITTING,
            e.RETURNED: s.READY,
            e.HANDED_OVER: s.READY,
            e.GIVEN_UP: s.FAILED,
            e.LANE_STOPPED: s.STOPPED,
        },
        # What has ended, or was never part of the run, is not moved again.
        s.DONE: {},
        s.FAILED: {},
        s.BLOCKED: {},
        s.STOPPED: {},
        s.LEFT: {},
    }


NEXT = _table()
"""The state that an event leads to, by the state that it meets.
What is not in the table is a bug, and raises."""


class Tries(NamedTuple):
    """Calls of one job that have failed, by what they count against.

    Attributes:
        transport: outages and timeouts.
        rate_limit: refusals for load.
        content: answers that could not be read.
        lane: failures of a lane that does nothing but fail: they count against no row.
    """

    transport: int = 0
    rate_limit: int = 0
    content: int = 0
    lane: int = 0


UNTRIED = Tries()


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """What is configured for one endpoint, over all its models.

    Attributes:
        max_concurrency: calls in flight, at most.
        rpm: requests per minute; ``None`` when it is not configured.
        tpm: tokens per minute, of prompts and answers.
        servers: the names of its servers, where it is several; more may come, see `Scheduler.admit`.
    """

    max_concurrency: int
    rpm: float | None = None
    tpm: float | None = None
    servers: Sequence[str] = ("",)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a call is tried again and how long the pauses are.

    Attributes:
        transport: retries after an outage, a timeout or an unreadable answer.
        rate_limit: retries after "too many requests"; ``None``: as long as the lane is patient.
        content: retries after something came that is not an answer; each may be billed.
        base_s: the first pause, in seconds; it doubles from try to try.
        cap_s: no pause that we choose is longer; a hint of the endpoint is obeyed as it is.
        max_wait_s: a lane that is told to wait longer, or is refused for longer, is stopped.
        breaker_calls: a lane is watched over so many calls; when (nearly) all have failed it is only probed.
        outage_s: a lane that is only probed is stopped after so long.
        hopeless_calls: so many rows refused for good, before anything was ever answered, stop a lane.
    """

    transport: int = 5
    rate_limit: int | None = None
    content: int = 2
    base_s: float = 1.0
    cap_s: float = 60.0
    max_wait_s: float = 600.0
    breaker_calls: int = 20
    outage_s: float = 90.0
    hopeless_calls: int = 100

    def pause_s(self, attempt: int, draw: float) -> float:
        """Seconds before the next try: full jitter (Brooker, 2015), within [0, `cap_s`].

        Args:
            attempt: tries so far, from 1.
            draw: where in the interval, in [0, 1).
        """
        return min(self.cap_s, self.base_s * 2.0 ** min(attempt - 1, 60)) * draw


@dataclass(frozen=True, slots=True)
class Start:
    """Decision: begin this job now.

    Attributes:
        attempt: counts from 1.
        server: the number of the endpoint's server that is to be asked.
    """

    job: int
    attempt: int
    server: int = 0


@dataclass(frozen=True, slots=True)
class Retry:
    """Decision: the call will be tried again, not before `at_s`.

    Attributes:
        lane: the name of the lane that takes the row over; ``None`` when it stays.
        stopped: names of the lanes that were stopped along with it.
    """

    at_s: float
    lane: str | None = None
    stopped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Decision: the job will not be tried again in this run.

    Attributes:
        failed: whether the row is at fault; ``False`` when its lane was stopped.
        stopped: names of the lanes that were stopped along with it.
    """

    reason: str
    failed: bool = True
    stopped: tuple[str, ...] = ()


class _Endpoint:
    __slots__ = ("in_flight", "lanes", "requests", "servers", "spec", "starts", "tokens", "trust")

    def __init__(self, spec: EndpointSpec) -> None:
        self.spec = spec
        self.in_flight = 0
        self.requests = Allowance(spec.rpm)
        self.tokens = Allowance(spec.tpm)
        self.lanes: list[Lane] = []
        self.trust = Trust()
        self.servers: list[Server] = []
        self.starts = 0

    def admit(self, name: str, breaker_calls: int) -> None:
        """One more server; lanes share what is known of it until they turn out to be limited apart."""
        self.servers.append(Server(name))
        controller = Controller(self.spec.max_concurrency)
        for lane in self.lanes:
            lane.members.append(Member(self.servers[-1], controller, breaker_calls))

    def ready_at_s(self) -> float:
        return max(self.requests.ready_at_s, self.tokens.ready_at_s)

    def begin(self, tokens: float, now_s: float) -> None:
        self.in_flight += 1
        self.requests.take(1.0, now_s)
        self.tokens.take(tokens, now_s)


class Scheduler:
    """The state of one run's jobs.

    Jobs are numbered as the membership's rows are. A child is ready when its parent is committed; there
    is no barrier between stages. A lane takes its ready jobs from the earliest stage, since what has most
    calls ahead of it ends last, until `window` children are ready: then from the latest, so that lineages are
    finished rather than begun and texts leave memory. Within a stage the membership's order holds.

    Args:
        stages: each job's stage as a number from 0.
        parents: each job's parent, -1 when it has none in this run.
        seconds: the second parent of those jobs that are made from two; such a job waits for both.
        lanes: each job's lane, `NO_LANE` for copies; changed when a row is handed to a fallback.
        selected: whether a job is to be run; the others are `JobState.LEFT`.
        endpoints: as the lanes' specs number them.
        max_concurrency: calls in flight over all endpoints, at most.
        budget: the caps and what was spent before.
        window: children that may be ready in a lane before the latest stage goes first; 0: it always does.
        depth: of jobs that are added later, at least.
        batched: jobs that batches of earlier runs hold.

    Attributes:
        lease: what this scheduler shares with others, where it is one of several; else ``None``.
    """

    def __init__(
        self,
        *,
        stages: Sequence[int],
        parents: Sequence[int],
        lanes: MutableSequence[int],
        selected: Sequence[int],
        lane_specs: Sequence[LaneSpec],
        endpoints: Sequence[EndpointSpec],
        max_concurrency: int,
        retry: RetryPolicy | None = None,
        budget: Budget | None = None,
        window: int = WINDOW,
        depth: int = 1,
        lease: Lease | None = None,
        batched: Collection[int] = (),
        seconds: Mapping[int, int] | None = None,
    ) -> None:
        self._stages, self._parents, self._lane_of = stages, parents, lanes
        self._seconds: Mapping[int, int] = {} if seconds is None else seconds
        self._second_children: dict[int, list[int]] = {}
        self._retry = retry or RetryPolicy()
        self._max_concurrency = max_concurrency
        self.budget = budget or Budget()
        self.lease = lease
        depth = max(depth, max(stages, default=0) + 1)
        self._deepest_first, self._earliest_first = range(depth - 1, -1, -1), range(depth)
        self._window = window
        self._endpoints = [_Endpoint(spec) for spec in endpoints]
        crowds = Counter(spec.endpoint for spec in lane_specs)
        self._lanes = [
            Lane(number, spec, depth, crowds[spec.endpoint]) for number, spec in enumerate(lane_specs)
        ]
        for lane in self._lanes:
            self._endpoints[lane.spec.endpoint].lanes.append(lane)
        for endpoint in self._endpoints:
            for name in endpoint.spec.servers:
                endpoint.admit(name, self._retry.breaker_calls)
        self._server_changes: list[tuple[str, Change]] = []
        self._trust = [Trust() for _ in self._lanes]
        self._free: deque[int] = deque()  # jobs without a lane that are ready
        self._ended: list[int] = []
        self.in_flight = 0
        self.committing = 0
        self.draining = False
        self.capped: str | None = None
        self.blockers: dict[int, int] = {}
        self.reasons: dict[int, str] = {}
        self._running: dict[int, tuple[int, Ticket | None]] = {}  # job -> (attempt, its lane's ticket)
        self._tries: dict[int, Tries] = {}
        self._failed_s: dict[int, float] = {}  # when a job's last call met an outage
        self._reserved: dict[int, Charge] = {}
        self._dearest = NOTHING  # the worst case of the last call
        self._parked: dict[tuple[int, int], list[tuple[int, Charge]]] = {}  # by lane and stage
        self._left_lanes: dict[int, tuple[int, ...]] = {}  # lanes that refused a job before its present one
        self._backing_off: list[tuple[float, int]] = []
        self._prefixes: dict[str, list[float]] = {}  # shared prompt -> [held by the cache from, last used]
        self._leading: dict[int, str] = {}
        self._link_children()
        self._turn = 0
        self.batched = 0
        batch_lanes = {number: spec for number, spec in enumerate(lane_specs) if spec.batch is not None}
        self._waves = Waves(batch_lanes, lanes, parents, self._first_child, self._next_child)
        self._select(selected, batched)

    def _link_children(self) -> None:
        """Children of each job as linked lists in two arrays: no object per job."""
        count = len(self._stages)
        self._first_child = array("i", [-1]) * count
        self._next_child = array("i", [-1]) * count
        parents = self._parents
        for job in range(count - 1, -1, -1):
            parent = parents[job]
            if parent >= 0:
                self._next_child[job] = self._first_child[parent]
                self._first_child[parent] = job
        for job, second in self._seconds.items():
            self._second_children.setdefault(second, []).append(job)

    def _select(self, selected: Sequence[int], batched: Collection[int]) -> None:
        # As plain numbers: there may be a million jobs.
        waiting, left = int(JobState.WAITING), int(JobState.LEFT)
        self.states = bytearray(waiting if chosen else left for chosen in selected)
        self._open = self.states.count(waiting)
        lanes = Counter(lane for lane, chosen in zip(self._lane_of, selected, strict=True) if chosen)
        for number, lane in enumerate(self._lanes):
            lane.open_jobs = lanes[number]
        for job in batched:
            if selected[job]:
                self._move(job, JobEvent.QUEUED)
                self.batched += 1
        for job, parent in enumerate(self._parents):
            # A parent that is not selected is in the store already, so its child waits for nothing.
            if not selected[job] or self.states[job] != waiting or (parent >= 0 and selected[parent]):
                continue
            if (second := self._seconds.get(job, -1)) < 0 or not selected[second]:
                self._make_ready(job, JobEvent.RELEASED)
        if self._waves.spools:
            held = bytearray(state == JobState.BATCHED for state in self.states)
            self._waves.begin(bytearray(state == waiting for state in self.states), held)

    def grow(self) -> None:
        """Take in the jobs that the caller has appended to stages, parents and lanes since the last time.

        Their parents are among them or among earlier ones; all of them are to be made.
        """
        first, count = len(self.states), len(self._stages)
        self._first_child.extend([-1] * (count - first))
        self._next_child.extend([-1] * (count - first))
        for job in range(count - 1, first - 1, -1):
            parent = self._parents[job]
            if parent >= 0:
                self._next_child[job] = self._first_child[parent]
                self._first_child[parent] = job
            if (second := self._seconds.get(job, -1)) >= 0:
                self._second_children.setdefault(second, []).append(job)
        self.states.extend([int(JobState.WAITING)] * (count - first))
        self._open += count - first
        for job in range(first, count):
            if (lane := self._lane_of[job]) != NO_LANE:
                self._lanes[lane].open_jobs += 1
        for job in range(first, count):
            if self._parents[job] < 0 and self._seconds.get(job, -1) < 0:
                self._make_ready(job, JobEvent.RELEASED)

    # What the caller asks

    @property
    def finished(self) -> bool:
        """Whether nothing is left to start or to wait for."""
        if self._open == 0 and (self.lease is None or self.lease.is_last):
            return True
        return self.draining and not self.in_flight and not self.committing

    def children(self, job: int) -> list[int]:
        """The jobs made from this one."""
        result, child = [], self._first_child[job]
        while child >= 0:
            result.append(child)
            child = self._next_child[child]
        return [*result, *self._second_children.get(job, ())]

    def state(self, job: int) -> JobState:
        """Where a job stands."""
        return JobState(self.states[job])

    def lane_of(self, job: int) -> int:
        """The lane that a job is in now."""
        return self._lane_of[job]

    def take_ended(self) -> list[int]:
        """Jobs that reached a terminal state since the last call, in that order."""
        ended, self._ended = self._ended, []
        return ended

    def tries(self, job: int) -> int:
        """Calls of a job that have failed so far."""
        return sum(self._tries.get(job, UNTRIED))

    def lanes(self) -> Sequence[Lane]:
        """The lanes, to be looked at."""
        return self._lanes

    def paused_lanes(self, now_s: float) -> list[tuple[str, float]]:
        """(name, seconds left) of lanes that wait: their endpoint asked them to, or is out of order."""
        paused = []
        for lane in self._lanes:
            until_s = max(lane.paused_until_s, lane.belief().asks_at_s or 0.0)
            if until_s > now_s and lane.stopped is None:
                paused.append((lane.spec.name, until_s - now_s))
        return paused

    def waits(self, now_s: float) -> list[Wait]:
        """The lanes that wait, with the reason."""
        found = []
        for number, lane in enumerate(self._lanes):
            if lane.stopped is not None or not lane.open_jobs:
                continue
            belief, trouble = lane.belief(), self._trust[number].trouble
            until_s = max(lane.paused_until_s, belief.asks_at_s or 0.0)
            is_idle = trouble is not None and lane.in_flight == 0 and lane.ready == 0
            if until_s <= now_s and belief.closed_s is None and not is_idle:
                continue
            if until_s <= now_s and is_idle:
                until_s = self._next_try_at(number)
            since_s, why = trouble or (belief.closed_s or now_s, "")
            left_s = until_s - now_s if until_s > now_s else None
            found.append(Wait(lane.spec.name, why, max(0.0, now_s - since_s), left_s))
        return found

    def _next_try_at(self, number: int) -> float:
        """When the first row of a lane that is put off is asked again; 0.0 when none is."""
        return min((at_s for at_s, job in self._backing_off if self._lane_of[job] == number), default=0.0)

    def beliefs(self) -> list[tuple[str, Belief]]:
        """What lanes that have work believe of their endpoints' limits, as (name, belief)."""
        return [
            (lane.spec.name, lane.belief()) for lane in self._lanes if lane.open_jobs and lane.stopped is None
        ]

    def take_changes(self) -> list[tuple[str, Change]]:
        """(lane's name, change) of what lanes have changed their mind about since the last call."""
        found, self._server_changes = self._server_changes, []
        for lane in self._lanes:
            for member in lane.members:
                controller, at = member.controller, member.server.name
                for change in controller.changes:
                    name = self._lanes[change.lane].spec.name
                    found.append((f"{name} at {at}" if at else name, change))
                controller.changes.clear()
        return found

    def admit(self, endpoint: int, number: int, name: str, *, is_in: bool) -> None:
        """A server of an endpoint has joined, has left, or is back.

        Args:
            number: as `Start.server` has it; the next one for a server that was never there.
            is_in: whether it gets calls; those that are out end as they may.
        """
        servers = self._endpoints[endpoint].servers
        if number == len(servers):
            self._endpoints[endpoint].admit(name, self._retry.breaker_calls)
        servers[number].is_in = is_in
        if is_in:
            servers[number].mend()

    def server_name(self, job: int, number: int) -> str | None:
        """Which of several servers of a job's endpoint it was; ``None`` where there is but one."""
        return self._lanes[self._lane_of[job]].members[number].server.name or None

    @property
    def waits_for_servers(self) -> bool:
        """Whether calls wait for a server to join."""
        return any(
            lane.ready and lane.stopped is None and not any(member.server.is_in for member in lane.members)
            for lane in self._lanes
        )

    def stopped_lanes(self) -> list[tuple[str, str]]:
        """(name, reason) of lanes that were stopped."""
        return [(lane.spec.name, lane.stopped) for lane in self._lanes if lane.stopped is not None]

    # Decisions

    def next_start(self, now_s: float) -> Start | None:
        """The next job to begin, counted as in flight from here on; ``None`` when nothing may begin now."""
        lease = self.lease
        if self.draining or (lease is not None and lease.is_over(now_s)):
            return None
        if self._backing_off:
            self._wake(now_s)
        # Copies cost nothing and hold no slot, and each one that is made may release calls.
        if self._free:
            return self._begin(self._free.popleft(), None)
        for number, spool in self._waves.spools.items():
            lane = self._lanes[number]
            if lane.ready and spool.rendering < RENDERING and lane.paused_until_s <= now_s:
                job = self._pop(number, lane)
                if job is not None:
                    spool.rendering += 1
                    return self._begin(job, None)
        # A commit that lags behind the answers holds starts back: texts must not pile up in memory.
        if self.in_flight < self._max_concurrency and self.committing < 4 * self._max_concurrency:
            lanes = self._lanes
            # Lanes take turns, from behind the one served last: a long queue must not starve the others.
            for step in range(len(lanes)):
                number = (self._turn + step) % len(lanes)
                lane = lanes[number]
                if not lane.ready or lane.spec.batch is not None or not self._has_room(lane):
                    continue
                endpoint = self._endpoints[lane.spec.endpoint]
                if lane.ready_at_s(now_s) > now_s or endpoint.ready_at_s() > now_s:
                    continue
                if self._first_at_s(number, lane) > now_s:
                    continue
                if lease is not None and (
                    not lease.has_place(number, self.in_flight, lane.in_flight, endpoint.in_flight)
                    or lease.ready_at_s(number) > now_s
                ):
                    continue
                job = self._pop(number, lane)
                if job is None:
                    continue
                self._turn = number + 1
                self.in_flight += 1
                stage = self._stages[job]
                tokens = lane.allowances.guess(Quantity.TOKENS, stage)
                endpoint.begin(tokens, now_s)
                self._trust[number].begun(now_s)
                endpoint.trust.begun(now_s)
                if lease is not None:
                    lease.begin(number, tokens, now_s)
                ticket = lane.begin(stage, now_s)
                endpoint.starts += 1
                ticket.member.server.last = endpoint.starts
                return self._begin(job, ticket)
        if self._parked:
            self._look_at_caps()
        return None

    def _first_at_s(self, number: int, lane: Lane) -> float:
        """When another call may go out, as far as the lane's key and name are known to be good."""
        few = lane.spec.first_calls
        if not few:
            return 0.0
        endpoint = self._endpoints[lane.spec.endpoint]
        together = endpoint.trust.ready_at_s(endpoint.in_flight, few)
        return max(together, self._trust[number].ready_at_s(lane.in_flight, few))

    def _has_room(self, lane: Lane) -> bool:
        endpoint = self._endpoints[lane.spec.endpoint]
        if endpoint.in_flight >= endpoint.spec.max_concurrency:
            return False
        if len(self._lanes) == 1:
            return True
        # Some slots stay free for lanes that have few: calls that hang in one must not hold up another.
        own = lane.in_flight
        top = self._max_concurrency
        if self.in_flight >= top - top // 8 and own >= top // 8 and _someone_short(self._lanes, lane, top):
            return False
        top = endpoint.spec.max_concurrency
        return not (
            endpoint.in_flight >= top - top // 8
            and own >= top // 8
            and _someone_short(endpoint.lanes, lane, top)
        )

    def _pop(self, number: int, lane: Lane) -> int | None:
        # Money that is reserved and not used would keep other calls from fitting the cap: these go first.
        if lane.reserved:
            return self._taken(lane, lane.reserved.popleft())
        order = self._deepest_first
        if lane.ready_children < self._window:
            order = self._earliest_first
        for stage in order:
            queue = lane.queues[stage]
            # Behind a job that does not fit the caps the others of its kind wait.
            if queue and (number, stage) not in self._parked:
                return self._taken(lane, queue.popleft())
        return None

    def _taken(self, lane: Lane, job: int) -> int:
        lane.ready -= 1
        lane.ready_children -= self._stages[job] > 0
        return job

    def _begin(self, job: int, ticket: Ticket | None) -> Start:
        tries = self._tries.get(job)
        attempt = 1 if tries is None else sum(tries) + 1
        self._running[job] = (attempt, ticket)
        self._move(job, JobEvent.STARTED)
        return Start(job, attempt, 0 if ticket is None else ticket.number)

    def clear(
        self,
        job: int,
        worst: Charge,
        now_s: float,
        prefix: str | None = None,
        unproven: Charge | None = None,
    ) -> bool:
        """The last question before a call: whether it may be sent now. Its worst case is reserved then.

        Args:
            worst: what the call may cost at most.
            prefix: names the beginning of the prompt that other calls share, where a cache is to keep it.
            unproven: what it may cost where the endpoint has not shown yet what it bills: so much is
                reserved if it fits; else the call waits until no other of its lane is out.

        Returns:
            ``False``: the job's slot is free again, and `next_start` will name the job another time.
        """
        if prefix is not None and not self._may_use(job, prefix, now_s):
            self._put_off(job, self._prefixes[prefix][0])
            return False
        self._dearest = worst
        held = self._reserved.get(job)
        if held == worst and unproven is None:
            return True
        if held is not None:  # another lane, another price
            self.budget.settle(self._reserved.pop(job), Charge())
        if unproven is not None:
            # An endpoint may bill more than `max_tokens` allows. Its first answer shows that.
            if self.budget.reserve(unproven):
                self._reserved[job] = unproven
                return True
            lane = self._lane_of[job]
            is_alone = not any(self._lane_of[other] == lane for other in self._reserved)
        if (unproven is None or is_alone) and self.budget.reserve(worst):
            self._reserved[job] = worst
            return True
        self._leading.pop(job, None)
        self._put_back(job)
        self._move(job, JobEvent.TOO_DEAR)
        self._parked.setdefault((self._lane_of[job], self._stages[job]), []).append((job, worst))
        return False

    def _may_use(self, job: int, prefix: str, now_s: float) -> bool:
        held = self._prefixes.get(prefix)
        if held is None or now_s - held[1] > CACHE_LIFE_S:
            if len(self._prefixes) >= MANY_PREFIXES:
                self._prefixes = {k: v for k, v in self._prefixes.items() if now_s - v[1] <= CACHE_LIFE_S}
            self._prefixes[prefix] = [now_s + LEAD_S, now_s]
            self._leading[job] = prefix
            return True
        # The first call is still on its way. Without this pause all its neighbours would miss the cache
        # and pay the full price of the beginning that they share.
        if now_s < held[0] and self._leading.get(job) != prefix:
            return False
        held[1] = now_s
        return True

    def _put_back(self, job: int) -> None:
        """Undo a start that did not become a call."""
        _, ticket = self._running.pop(job)
        lane = self._lane_of[job]
        if lane in self._waves.spools:
            self._waves.spools[lane].rendering -= 1
        elif ticket is not None:
            self._leave(lane)
            self._lanes[lane].not_begun(ticket)
            if self.lease is not None:
                guess = self._lanes[lane].allowances.guess(Quantity.TOKENS, self._stages[job])
                self.lease.not_begun(lane, guess)

    def wake_at(self, now_s: float) -> float | None:
        """When to ask `next_start` again if no event comes before; ``None`` when only an event helps."""
        soonest = self._backing_off[0][0] if self._backing_off else None
        closes_s = self._waves.wake_at(now_s)
        if closes_s is not None and (soonest is None or closes_s < soonest):
            soonest = closes_s
        for number, lane in enumerate(self._lanes):
            if lane.ready and lane.stopped is None and self._has_room(lane):
                at_s = max(lane.ready_at_s(now_s), self._endpoints[lane.spec.endpoint].ready_at_s())
                at_s = max(at_s, self._first_at_s(number, lane))
                if self.lease is not None:
                    at_s = max(at_s, self.lease.ready_at_s(number))
                if now_s < at_s < math.inf and (soonest is None or at_s < soonest):
                    soonest = at_s
        return soonest

    def _wake(self, now_s: float) -> None:
        while self._backing_off and self._backing_off[0][0] <= now_s:
            _, job = heapq.heappop(self._backing_off)
            # A job whose lane was stopped has left; its entry is still in the heap.
            if self.states[job] == JobState.BACKING_OFF:
                self._make_ready(job, JobEvent.WOKEN, first=True)

    # Money

    def _settle(self, job: int, actual: Charge | None) -> None:
        """Turn a reservation into spending; ``None``: the worst case, since nobody knows better."""
        worst = self._reserved.pop(job, None)
        if worst is None:
            return
        self.budget.settle(worst, worst if actual is None else actual)
        if self._parked:
            self._unpark()

    def _unpark(self) -> None:
        """Make ready what fits by now, its worst case reserved."""
        for key in list(self._parked):
            waiting = self._parked[key]
            while waiting and self.budget.reserve(waiting[0][1]):
                job, worst = waiting.pop(0)
                self._reserved[job] = worst
                self._make_ready(job, JobEvent.AFFORDABLE, first=True)
                if self.states[job] != JobState.READY:  # its lane was stopped meanwhile
                    self.budget.settle(self._reserved.pop(job), Charge())
            if not waiting:
                del self._parked[key]

    @property
    def is_starved(self) -> bool:
        """Whether no call that is ready fits the caps any more, and none is out that could free some."""
        if not self._parked or self.in_flight or self.committing or self._backing_off or self._reserved:
            return False
        if self.batched:
            return False
        return not any(
            queue and (number, stage) not in self._parked and lane.stopped is None
            for number, lane in enumerate(self._lanes)
            for stage, queue in enumerate(lane.queues)
        )

    def purse(self) -> Purse:
        """What a coordinator is told of this worker's money."""
        return Purse(
            self.budget.spent + self.budget.reserved,
            self._dearest,
            {
                kind(self._lanes[lane].spec.name, stage): min((worst for _, worst in waiting), key=_dearness)
                for (lane, stage), waiting in self._parked.items()
            },
            self.is_starved,
        )

    def allow(self, caps: Caps) -> None:
        """Other caps hold from now on; never less than what is spent and reserved."""
        self.budget.caps = caps
        self._unpark()

    def _look_at_caps(self) -> None:
        if self.lease is not None or not self.is_starved:
            return  # only the coordinator knows whether there is more
        least = min((worst for waiting in self._parked.values() for _, worst in waiting), key=_dearness)
        over = self.budget.spent + least
        # Not a failure of the rows: they stay open, and a run with a higher cap goes on with them.
        self.capped = self.budget.caps.passed_by(over)
        self.draining = True

    # Events

    def answered(
        self,
        job: int,
        completion: Completion | None = None,
        now_s: float = 0.0,
        charge: Charge | None = None,
    ) -> None:
        """A call brought an answer; its slot is free, its commit is under way.

        Args:
            completion: ``None`` when no call was needed.
            charge: what it cost; ``None`` when the endpoint does not say: the worst case then.
        """
        if completion is None:
            self._put_back(job)
        else:
            _, ticket = self._running.pop(job)
            assert ticket is not None
            number = self._lane_of[job]
            lane = self._lanes[number]
            self._leave(number)
            surplus = lane.answered(ticket, completion, now_s)
            self._trust[number].answered(now_s)
            self._endpoints[self._lanes[number].spec.endpoint].trust.answered(now_s)
            self._endpoints[lane.spec.endpoint].tokens.settle(surplus)
            if self.lease is not None:
                self.lease.settle(number, surplus)
            self._settle(job, charge)
            prefix = self._leading.pop(job, None)
            if prefix is not None and prefix in self._prefixes:
                self._prefixes[prefix][0] = min(self._prefixes[prefix][0], now_s)
        self.committing += 1
        self._move(job, JobEvent.ANSWERED)

    def committed(self, job: int, failure: str | None = None) -> None:
        """An answer is in the store.

        Args:
            failure: why it is not usable; its descendants are blocked then.
        """
        self.committing -= 1
        if failure is not None:
            self._fail(job, failure)
            return
        self._end(job, JobEvent.STORED)
        if self._lane_of[job] in self._waves.spools:
            self._waves.flows(job)
        child = self._first_child[job]
        while child >= 0:
            if self.states[child] == JobState.WAITING and self._is_made(self._seconds.get(child, -1)):
                self._make_ready(child, JobEvent.RELEASED)
            child = self._next_child[child]
        for child in self._second_children.get(job, ()):
            if self.states[child] == JobState.WAITING and self._is_made(self._parents[child]):
                self._make_ready(child, JobEvent.RELEASED)

    def _is_made(self, parent: int) -> bool:
        """Whether a parent keeps nobody waiting: it is in the store, or there is none in this run."""
        return parent < 0 or self.states[parent] in (JobState.DONE, JobState.LEFT)

    def lost(self, job: int, reason: str) -> None:
        """An answer could not be stored."""
        self.committing -= 1
        self._fail(job, reason)

    def refused(self, job: int, error: ProviderError, now_s: float) -> Retry | GiveUp:
        """A call brought an error: decide whether it is tried again, and what its lane learns."""
        number = self._lane_of[job]
        lane = self._lanes[number]
        attempt, ticket = self._running.pop(job)
        assert ticket is not None
        self._leave(number)
        # A refusal's headers say what is left and until when; that holds whatever becomes of the row.
        # A refusal for the load also says that calls came too fast, whatever is left.
        chance = ticket.call.controller.chance if isinstance(error, RateLimitedError) else None
        lane.allowances.heed(error.quotas, now_s, refused_by_chance=chance)
        prefix = self._leading.pop(job, None)
        if prefix is not None:
            # The call that was to fill the cache has failed: those behind it must not count on it.
            self._prefixes.pop(prefix, None)
        # A call that broke off may stand on the bill. Its worst case stays spent then: a cap errs upwards.
        self._settle(job, None if error.may_be_billed else Charge(calls=self._called(job)))
        if len(lane.members) > 1 and not error.was_sent:
            return self._after_no_way(job, lane, ticket, error, now_s)
        if not isinstance(error, RequestRejectedError):
            self._trust[number].put_off(str(error), now_s)
        if isinstance(error, RateLimitedError):
            return self._after_rate_limit(job, lane, ticket, attempt, error, now_s)
        if isinstance(error, RequestRejectedError):
            # An endpoint that has read the request and refuses its content was not short of room: this counts
            # for the limit as an answer does.
            lane.took(ticket, now_s)
            return self._after_rejection(job, number, error, now_s, ticket.member.server)
        return self._after_outage(job, lane, ticket, attempt, error, now_s)

    def _after_no_way(
        self, job: int, lane: Lane, ticket: Ticket, error: ProviderError, now_s: float
    ) -> Retry | GiveUp:
        """One of several servers cannot be reached: another one is asked at once, and no row is at fault."""
        if lane.not_sent(ticket, now_s):
            self._note_out(lane, ticket.member.server, error)
        if lane.closed_for_s(now_s) >= self._retry.outage_s:
            return self._give_up_lane(job, lane, f"none of its servers can be reached: {error}")
        return self._ask_again(job, now_s)

    def _ask_again(self, job: int, now_s: float) -> Retry | GiveUp:
        tries = self._tries.get(job, UNTRIED)
        self._tries[job] = tries._replace(lane=tries.lane + 1)
        return self._back_off(job, now_s)

    def _note_out(self, lane: Lane, server: Server, error: ProviderError) -> None:
        change = Change(lane.number, "server", f"it gets no calls for now: {error}")
        self._server_changes.append((f"{lane.spec.name} at {server.name}", change))

    def _called(self, job: int) -> int:
        worst = self._reserved.get(job)
        return 0 if worst is None else worst.calls

    def _after_rate_limit(
        self, job: int, lane: Lane, ticket: Ticket, attempt: int, error: RateLimitedError, now_s: float
    ) -> Retry | GiveUp:
        lane.refused(ticket, job, error.retry_after_s, now_s)
        tries = self._tries.get(job, UNTRIED)
        limited = tries.rate_limit
        self._tries[job] = tries._replace(rate_limit=limited + 1)
        policy, hint = self._retry, error.retry_after_s
        draw = self._draw(job, attempt)
        refused_for_s = lane.closed_for_s(now_s)
        if hint is not None and hint > policy.max_wait_s:
            return self._give_up_lane(job, lane, _asks_too_long(error, hint, policy.max_wait_s))
        if refused_for_s > policy.max_wait_s:
            reason = f"every call was refused for {_span(refused_for_s)}; the last time: {error}"
            return self._give_up_lane(job, lane, reason)
        if policy.rate_limit is not None and limited >= policy.rate_limit:
            reason = f"{error} (after {attempt} tries)"
            self._fail(job, reason)
            return GiveUp(reason)
        # The pause does not double from try to try: how often a lane asks is the controller's business, and
        # a row that was unlucky thrice must not wait eight times as long as its neighbours.
        return self._back_off(job, now_s + (hint if hint is not None else policy.pause_s(1, draw)))

    def _after_outage(
        self, job: int, lane: Lane, ticket: Ticket, attempt: int, error: ProviderError, now_s: float
    ) -> Retry | GiveUp:
        self._trust[self._lane_of[job]].failed(now_s)
        policy = self._retry
        hint = error.retry_after_s if isinstance(error, ProviderUnavailableError) else None
        only_fails = lane.out_of_order(ticket, job, hint, now_s)
        if hint is not None and hint > policy.max_wait_s:
            return self._give_up_lane(job, lane, _asks_too_long(error, hint, policy.max_wait_s))
        # The same prompt mostly brings the same malformed answer; what broke off by chance is asked again.
        retryable = not isinstance(error, MalformedAnswerError) or error.retryable
        tries = self._tries.get(job, UNTRIED)
        if only_fails and retryable:
            if lane.closed_for_s(now_s) >= policy.outage_s:
                return self._give_up_lane(job, lane, f"the last {lane.watched} calls failed: {error}")
            # The lane is at fault, not this row: it is not counted against the row's tries.
            self._tries[job] = tries._replace(lane=tries.lane + 1)
            return self._back_off(job, now_s if hint is None else now_s + hint)
        if isinstance(error, MalformedAnswerError):
            tries = tries._replace(content=tries.content + 1)
        else:
            tries = tries._replace(transport=tries.transport + 1)
        self._tries[job] = tries
        before_s = self._failed_s.get(job)
        self._failed_s[job] = now_s
        if (
            tries.transport > policy.transport
            and not isinstance(error, MalformedAnswerError)
            and before_s is not None
            and self._has_answered_nothing(lane, before_s, now_s)
        ):
            # Nothing at all is answered: that is no row's fault, and it may pass.
            pause = min(LONGEST_PAUSE_S, policy.cap_s) * self._draw(job, attempt)
            return self._back_off(job, now_s + (hint if hint is not None else pause))
        if not retryable or tries.transport > policy.transport or tries.content > policy.content:
            reason = str(error) if attempt == 1 else f"{error} (after {attempt} tries)"
            self._fail(job, reason)
            return GiveUp(reason)
        pause = (
            hint
            if hint is not None
            else policy.pause_s(tries.transport + tries.content, self._draw(job, attempt))
        )
        return self._back_off(job, now_s + pause)

    def _has_answered_nothing(self, lane: Lane, since_s: float, now_s: float) -> bool:
        """Whether the endpoint has answered nothing since then, and its lane has not failed for long."""
        failing_since_s = self._trust[self._lanes.index(lane)].failing_since_s
        if failing_since_s is None or now_s - failing_since_s >= self._retry.outage_s:
            return False
        return all(
            trust.answered_s is None or trust.answered_s < since_s
            for trust, other in zip(self._trust, self._lanes, strict=True)
            if other.spec.endpoint == lane.spec.endpoint
        )

    def _after_rejection(
        self,
        job: int,
        number: int,
        error: RequestRejectedError,
        now_s: float,
        server: Server | None = None,
    ) -> Retry | GiveUp:
        lane, trust = self._lanes[number], self._trust[number]
        reason = str(error)
        # What is said of one prompt, such as a moderator's refusal, says nothing about its neighbours.
        if not error.about_input:
            peers = [number]
            if error.scope is Scope.ENDPOINT:
                same = lane.spec.endpoint
                peers = [other for other, peer in enumerate(self._lanes) if peer.spec.endpoint == same]
            lately = any(self._trust[other].has_answered_lately(now_s) for other in peers)
            equal = trust.refused(reason)
            is_general = error.scope is not Scope.ROW and (error.is_sure or not lately)
            # Of everything, as far as can be seen: nothing was answered in between.
            many = equal >= EQUAL_REFUSALS and (error.scope is not Scope.ROW or not lane.has_answered)
            if many and not is_general:
                reason = f"{equal} calls in a row were refused alike: {reason}"
            if (is_general or many) and server is not None and lane.has_others(server):
                if server.fail(now_s):
                    self._note_out(lane, server, error)
                return self._ask_again(job, now_s)
            if is_general or many:
                return self._give_up_lane(job, lane, reason, [self._lanes[other] for other in peers])
            lane.rejected += 1
            if not lane.has_answered and lane.rejected >= self._retry.hopeless_calls:
                reason = f"the first {lane.rejected} calls were all refused for good: {error}"
                return self._give_up_lane(job, lane, reason)
        if self._hand_over(job):
            return Retry(now_s, self._lanes[self._lane_of[job]].spec.name)
        self._fail(job, reason)
        return GiveUp(reason)

    def _give_up_lane(self, job: int, lane: Lane, reason: str, peers: Sequence[Lane] = ()) -> Retry | GiveUp:
        """Stop lanes; the job in hand goes to a fallback or fails with the reason."""
        stopped = []
        for other in peers or (lane,):
            if other.stopped is None:
                other.stopped = reason
                stopped.append(other.spec.name)
        result: Retry | GiveUp
        if self._hand_over(job):
            # Before the lane's other jobs: this one is RUNNING, and `_stop_jobs` looks at those that wait.
            result = Retry(0.0, self._lanes[self._lane_of[job]].spec.name, tuple(stopped))
        else:
            self._fail(job, reason)
            result = GiveUp(reason, stopped=tuple(stopped))
        if stopped:
            self._stop_jobs()
        return result

    def _hand_over(self, job: int) -> bool:
        """Give a job to its lane's fallback; ``False`` when there is none left that works."""
        left = self._left_lanes.get(job, ())
        number = self._lane_of[job]
        target = self._lanes[number].spec.fallback
        seen = {*left, number}
        # Fallbacks may form a circle (A to B, B to A). A job visits each lane once, then it fails.
        while target >= 0 and (target in seen or self._lanes[target].stopped is not None):
            seen.add(target)
            target = self._lanes[target].spec.fallback
            if target in seen:
                return False
        if target < 0:
            return False
        self._left_lanes[job] = (*left, number)
        self._change_lane(job, target)
        return True

    def _change_lane(self, job: int, target: int) -> None:
        number = self._lane_of[job]
        self._lanes[number].open_jobs -= 1
        self._lanes[target].open_jobs += 1
        self._waves.waits_no_more(job)
        # A wave that was kept open for this job need not wait for it any longer.
        self._lane_of[job] = target
        self._make_ready(job, JobEvent.HANDED_OVER)
        if number in self._waves.spools:
            self._waves.flows(job)

    def abandoned(self, job: int) -> None:
        """A call was cancelled: its job is open again, for another run. It may have been billed."""
        _, call = self._running.pop(job, (0, None))
        self._settle(job, None)
        # Nobody knows how far the endpoint had come, so the worst case counts as spent.
        lane = self._lane_of[job]
        if call is not None:
            self._lanes[lane].abandoned(call)
            self._leave(lane)
        self._move(job, JobEvent.ABANDONED)

    def failed_before_call(self, job: int, reason: str) -> None:
        """A job cannot even be asked for: its prompt cannot be made."""
        self._put_back(job)
        self._fail(job, reason)

    def taken_elsewhere(self, job: int, until_s: float) -> None:
        """Another worker has this generation in hand: look again at `until_s`."""
        self._put_off(job, until_s)

    # Batches

    def queued(self, job: int, size_bytes: int, tokens: int, now_s: float) -> None:
        """A job's request is written down for its lane's next batch; its money stays reserved.

        Args:
            size_bytes: of the request.
            tokens: of the prompt, at most.
        """
        del self._running[job]
        self._waves.add(job, size_bytes, tokens, now_s)
        self._move(job, JobEvent.QUEUED)
        self.batched += 1

    def held(self, job: int) -> None:
        """A job was begun, and a batch that is out already holds it."""
        self._put_back(job)
        if (worst := self._reserved.pop(job, None)) is not None:
            self.budget.settle(worst, Charge())
        self._move(job, JobEvent.QUEUED)
        self.batched += 1

    def unheld(self, job: int) -> None:
        """The batch that held a job is over, and brought this run nothing: look again."""
        self.batched -= 1
        self._make_ready(job, JobEvent.RETURNED)

    def next_batch(self, now_s: float) -> Close | None:
        """The next batch to be closed; ``None`` when none is due.

        Its rows' reservations belong to the batch from here on: `landed` and `correct` settle them.
        """
        for number, spool in self._waves.spools.items():
            if spool.is_dropped:
                spool.is_dropped = False
                return Close(number, (), 0)
            lane = self._lanes[number]
            if self.draining or not spool.jobs or lane.paused_until_s > now_s:
                continue
            short = any(key[0] == number for key in self._parked)
            rows = self._waves.due(number, now_s, ready=lane.ready, is_short_of_money=short)
            if not rows:
                continue
            if self._asks_tail_live(lane, spool):
                for job in self._unspool(number):
                    self._change_lane(job, lane.spec.live)
                return Close(number, (), 0)
            jobs, back, tokens = self._waves.take(number, rows)
            for job in jobs:
                self._reserved.pop(job, None)
            for job in reversed(back):
                self.batched -= 1
                self._make_ready(job, JobEvent.RETURNED, first=True)
            return Close(number, tuple(jobs), tokens)
        return None

    def _asks_tail_live(self, lane: Lane, spool: Spool) -> bool:
        rows, target = len(spool.jobs), lane.spec.live
        return (
            rows <= spool.spec.tail
            and rows == lane.open_jobs
            and target >= 0
            and self._lanes[target].stopped is None
        )

    def _unspool(self, number: int) -> list[int]:
        """Take a lane's spool apart: its rows are in no batch."""
        _, jobs, _ = self._waves.take(number, 0)
        self.batched -= len(jobs)
        return jobs

    def landed(self, job: int, worst: Charge, charge: Charge) -> None:
        """A batch has brought an answer; its commit is under way.

        Args:
            worst: what was reserved for it.
            charge: what it cost.
        """
        self.batched -= 1
        self.committing += 1
        self._move(job, JobEvent.LANDED)
        self.correct(worst, charge)

    def correct(self, worst: Charge, charge: Charge) -> None:
        """What was reserved for a batch's row has turned out to cost this much."""
        self.budget.settle(worst, charge)
        if self._parked:
            self._unpark()

    def returned(
        self, job: int, error: ProviderError | None, now_s: float, *, failures: int = 0, lapses: int = 0
    ) -> Retry | GiveUp:
        """A batch has brought no answer for a job: decide whether the next one asks for it again.

        Args:
            error: as a live call would have raised it; ``None`` when the request was never run.
            failures, lapses: batches, this one included, that failed to answer it, or never ran it.
        """
        self.batched -= 1
        number = self._lane_of[job]
        if isinstance(error, RequestRejectedError):
            return self._after_rejection(job, number, error, now_s)
        if failures < BATCH_TRIES and lapses < BATCH_TRIES:
            self._make_ready(job, JobEvent.RETURNED)
            return Retry(now_s)
        if self._hand_over(job):
            return Retry(now_s, self._lanes[self._lane_of[job]].spec.name)
        lapsed = f"{lapses} batches did not run it"
        reason = lapsed if error is None else f"{error} (in {failures} batches)"
        self._fail(job, reason)
        return GiveUp(reason)

    def stranded(self, job: int, reason: str) -> None:
        """The batch that holds a job can be brought to no end from here."""
        self.batched -= 1
        self._fail(job, reason)

    def batch_opened(self, lane: int, rows: int, tokens: int) -> None:
        """A batch of an earlier run is out in a lane.

        Args:
            tokens: of its prompts, as far as that is known.
        """
        self._waves.opened(lane, rows, tokens)

    def batch_ended(
        self, lane: int, rows: int, tokens: int, now_s: float, *, is_over_limit: bool = False
    ) -> None:
        """A batch is out no more.

        Args:
            tokens: as `Close` or `batch_opened` had them.
            is_over_limit: it was refused, since the provider has too much in its queue.
        """
        self._waves.ended(lane, rows, tokens, was_refused=is_over_limit)
        if is_over_limit:
            self._lanes[lane].pause(now_s + self._waves.over_limit(lane, rows, tokens))
        else:
            self._lanes[lane].paused_until_s = 0.0

    @property
    def waits_for_batches(self) -> bool:
        """Whether nothing is to be done but to wait for batches that are out.

        Rows may be left that can go into no batch before: the provider's queue is full.
        """
        return (
            self.batched_out > 0
            and not (self.in_flight or self.committing or self._free or self._backing_off)
            and all(
                (not lane.ready and self._waves.is_empty(number)) or self._waves.is_blocked(number)
                for number, lane in enumerate(self._lanes)
            )
        )

    @property
    def batched_out(self) -> int:
        """Rows in batches that are out."""
        return self.batched - self._waves.spooled

    def stop_lane(self, name: str, reason: str) -> None:
        """Another worker has found that a lane gets no more calls; no news where it is stopped already."""
        found = [lane for lane in self._lanes if lane.spec.name == name and lane.stopped is None]
        for lane in found:
            lane.stopped = reason
        if found:
            self._stop_jobs()

    def drain(self) -> None:
        """Begin nothing more; what is in flight may still arrive."""
        self.draining = True

    # State changes

    def _move(self, job: int, event: JobEvent) -> JobState:
        """The one place that changes a job's state; returns the new one.

        Raises:
            AssertionError: the table has no such cell. It is a bug: a job that is moved in silence where it
                does not belong is called twice or never.
        """
        before = JobState(self.states[job])
        after = NEXT[before].get(event)
        if after is None:
            raise AssertionError(f"job {job} is {before.name}; the event {event.name} cannot happen to it")
        if before is JobState.WAITING and self._waves.spools:
            self._waves.waits_no_more(job)
        self.states[job] = after
        return after

    def _put_off(self, job: int, until_s: float) -> None:
        """Undo a start; the job is named again from `until_s` on."""
        self._put_back(job)
        self._move(job, JobEvent.PUT_OFF)
        heapq.heappush(self._backing_off, (until_s, job))

    def _leave(self, lane: int) -> None:
        if lane != NO_LANE:
            self.in_flight -= 1
            self._endpoints[self._lanes[lane].spec.endpoint].in_flight -= 1

    def _make_ready(self, job: int, event: JobEvent, *, first: bool = False) -> None:
        """Put a job into its lane's queue; a lane that was stopped hands it on, or ends it."""
        number = self._lane_of[job]
        if number != NO_LANE and (reason := self._lanes[number].stopped) is not None:
            if not self._hand_over(job):
                self._stop(job, reason)
            # Only now, with the reason of the stop in hand: a fallback may still take it.
            return
        self._move(job, event)
        if number == NO_LANE:
            self._free.append(job)
            return
        lane = self._lanes[number]
        # `first`: what comes back from a pause or from the caps belongs to the oldest lineages.
        queue = lane.reserved if job in self._reserved else lane.queues[self._stages[job]]
        if first:
            queue.appendleft(job)
        else:
            queue.append(job)
        lane.ready += 1
        lane.ready_children += self._stages[job] > 0

    def _back_off(self, job: int, at_s: float) -> Retry | GiveUp:
        lane = self._lanes[self._lane_of[job]]
        if lane.stopped is not None:  # the lane was stopped while this call was out
            if self._hand_over(job):
                return Retry(at_s, self._lanes[self._lane_of[job]].spec.name)
            self._stop(job, lane.stopped)
            return GiveUp(lane.stopped, failed=False)
        self._move(job, JobEvent.TRIED_IN_VAIN)
        heapq.heappush(self._backing_off, (at_s, job))
        return Retry(at_s)

    def _stop_jobs(self) -> None:
        """Hand over or end the jobs of stopped lanes that have not been called."""
        for lane in self._lanes:
            if lane.stopped is not None:
                lane.ready = lane.ready_children = 0
                for queue in (lane.reserved, *lane.queues):
                    queue.clear()
        for number, spool in self._waves.spools.items():
            if self._lanes[number].stopped is not None and spool.jobs:
                spool.is_dropped = True
                for job in self._unspool(number):
                    self._move(job, JobEvent.RETURNED)
        for number, stage in list(self._parked):
            if self._lanes[number].stopped is not None:
                del self._parked[number, stage]
        for job, state in enumerate(self.states):
            number = self._lane_of[job]
            if number == NO_LANE or state not in (JobState.READY, JobState.BACKING_OFF, JobState.PARKED):
                continue
            # Jobs that are RUNNING come back by themselves; `_back_off` and `_make_ready` see the stop then.
            reason = self._lanes[number].stopped
            if reason is not None:
                worst = self._reserved.pop(job, None)
                if worst is not None:
                    self.budget.settle(worst, Charge())
                if not self._hand_over(job):
                    self._stop(job, reason)

    def _stop(self, job: int, reason: str) -> None:
        self.reasons[job] = f"not called: {self._lanes[self._lane_of[job]].spec.name} was stopped: {reason}"
        self._end(job, JobEvent.LANE_STOPPED)
        self._block_descendants(job)

    def _fail(self, job: int, reason: str) -> None:
        self.reasons[job] = reason
        self._end(job, JobEvent.GIVEN_UP)
        self._block_descendants(job)

    def _block_descendants(self, ancestor: int) -> None:
        open_jobs = self.children(ancestor)
        while open_jobs:
            job = open_jobs.pop()
            if self.states[job] == JobState.WAITING:
                # A descendant of a job that has not ended can have got no further than WAITING.
                self.blockers[job] = ancestor
                self._end(job, JobEvent.ANCESTOR_FAILED)
                open_jobs.extend(self.children(job))

    def _end(self, job: int, event: JobEvent) -> None:
        self._move(job, event)
        self._tries.pop(job, None)
        self._failed_s.pop(job, None)
        self._left_lanes.pop(job, None)
        self._ended.append(job)
        self._open -= 1
        if (lane := self._lane_of[job]) != NO_LANE:
            self._lanes[lane].open_jobs -= 1

    @staticmethod
    def _draw(job: int, attempt: int) -> float:
        """A number in [0, 1) that looks random and is the same for the same job and attempt."""
        digest = blake2b(f"{job}|{attempt}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64


def _someone_short(lanes: Sequence[Lane], lane: Lane, top: int) -> bool:
    """Whether another lane has work and few calls in flight."""
    return any(
        other is not lane
        and other.open_jobs
        and other.stopped is None
        and other.spec.batch is None
        and other.in_flight < top // 8
        for other in lanes
    )


def _dearness(charge: Charge) -> tuple[object, ...]:
    return (charge.usd, charge.tokens)


def _asks_too_long(error: ProviderError, hint_s: float, max_wait_s: float) -> str:
    return f"it asks to wait {_span(hint_s)}, longer than --max-wait ({_span(max_wait_s)}) allows: {error}"


def _span(seconds: float) -> str:
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
