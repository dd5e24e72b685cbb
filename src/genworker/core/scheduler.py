"""Decides which call starts when: lineages, lanes, retries. No I/O and no clock; time comes in as a number.

Events go in (`answered`, `committed`, `refused`, …), decisions come out (`next_start`, `wake_at`).
Equal events give equal decisions. The asyncio runner and a simulation can ask the same object.
"""

from __future__ import annotations

import heapq
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from hashlib import blake2b

from genworker.core.limits import LaneLimit
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


class JobState(IntEnum):
    """Where a job stands. The last five are terminal."""

    WAITING = 0
    """Its parent is not committed yet."""
    READY = 1
    RUNNING = 2
    BACKING_OFF = 3
    COMMITTING = 4
    DONE = 5
    FAILED = 6
    BLOCKED = 7
    """An ancestor ended without a usable text."""
    STOPPED = 8
    """Its lane was stopped before it could be called."""
    LEFT = 9
    """Not part of this run: done already, not selected, or held by another worker."""


TERMINAL = frozenset(state for state in JobState if state >= JobState.DONE)


@dataclass(frozen=True, slots=True)
class LaneSpec:
    """A lane: one model of one endpoint.

    Attributes:
        endpoint: index of the endpoint.
        name: for people, such as ``openrouter/gemini_25_pro``.
    """

    endpoint: int
    name: str


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a call is tried again and how long the pauses are.

    Attributes:
        transport: retries after an outage, a timeout or an unreadable answer.
        rate_limit: retries after "too many requests".
        base_s: the first pause, in seconds; it doubles from try to try.
        cap_s: no pause that we choose is longer; a hint of the endpoint is obeyed as it is.
    """

    transport: int = 5
    rate_limit: int = 30
    base_s: float = 1.0
    cap_s: float = 60.0

    def pause_s(self, attempt: int, share: float) -> float:
        """Seconds before the next try: full jitter (Brooker, 2015), within [0, `cap_s`].

        Args:
            attempt: tries so far, from 1.
            share: where in the interval, in [0, 1).
        """
        return min(self.cap_s, self.base_s * 2.0 ** min(attempt - 1, 60)) * share


@dataclass(frozen=True, slots=True)
class Start:
    """Decision: begin this job now. `attempt` counts from 1."""

    job: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Retry:
    """Decision: the call will be tried again, not before `at_s`."""

    at_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Decision: the job has failed for good.

    Attributes:
        stopped: names of the lanes that were stopped along with it.
    """

    reason: str
    stopped: tuple[str, ...] = ()


class Scheduler:
    """The state of one run's jobs.

    Jobs are numbered as the membership's rows are. A child is ready when its parent is committed; there
    is no barrier between stages. Among ready jobs of a lane the latest stage goes first, so that lineages
    are finished rather than begun, and their texts leave memory; then the membership's order.

    Args:
        stages: each job's stage as a number from 0.
        parents: each job's parent, -1 when it has none in this run.
        lanes: each job's lane, `NO_LANE` for copies.
        selected: whether a job is to be run; the others are `JobState.LEFT`.
        endpoint_limits: calls in flight per endpoint, at most.
        max_concurrency: calls in flight over all endpoints, at most.
    """

    def __init__(
        self,
        *,
        stages: Sequence[int],
        parents: Sequence[int],
        lanes: Sequence[int],
        selected: Sequence[int],
        lane_specs: Sequence[LaneSpec],
        endpoint_limits: Sequence[int],
        max_concurrency: int,
        retry: RetryPolicy | None = None,
    ) -> None:
        count = len(stages)
        self._stages, self._parents, self._lanes = stages, parents, lanes
        self._specs = lane_specs
        self._retry = retry or RetryPolicy()
        self._max_concurrency = max_concurrency
        self._endpoint_limits = endpoint_limits
        self._endpoint_in_flight = [0] * len(endpoint_limits)
        self._limits = [LaneLimit(endpoint_limits[spec.endpoint]) for spec in lane_specs]
        self._paused_until = [0.0] * len(lane_specs)
        self._stop_reasons: list[str | None] = [None] * len(lane_specs)
        self._ended: list[int] = []
        self.states = bytearray(count)
        self.in_flight = 0
        self.committing = 0
        self.draining = False
        self.blockers: dict[int, int] = {}
        self.reasons: dict[int, str] = {}
        self._running: dict[int, tuple[int, int]] = {}  # job -> (attempt, epoch of its lane)
        self._tries: dict[int, tuple[int, int]] = {}  # job -> (transport failures, rate-limit failures)
        self._backing_off: list[tuple[float, int]] = []
        self._open = 0
        self._link_children()
        # Per lane a queue per stage, the latest stage first; the last entry serves jobs without a lane.
        depth = max(stages, default=0) + 1
        self._ready = [[deque[int]() for _ in range(depth)] for _ in range(len(lane_specs) + 1)]
        self._ready_count = [0] * (len(lane_specs) + 1)
        self._turn = 0
        self._select(selected)

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

    def _select(self, selected: Sequence[int]) -> None:
        for job in range(len(self._stages)):
            if not selected[job]:
                self.states[job] = JobState.LEFT
            else:
                self._open += 1
        for job in range(len(self._stages)):
            parent = self._parents[job]
            if self.states[job] == JobState.WAITING and (parent < 0 or not selected[parent]):
                self._make_ready(job)

    # What the caller asks

    @property
    def finished(self) -> bool:
        """Whether nothing is left to start or to wait for."""
        if self._open == 0:
            return True
        return self.draining and not self.in_flight and not self.committing

    def children(self, job: int) -> list[int]:
        """The jobs made from this one."""
        result, child = [], self._first_child[job]
        while child >= 0:
            result.append(child)
            child = self._next_child[child]
        return result

    def state(self, job: int) -> JobState:
        """Where a job stands."""
        return JobState(self.states[job])

    def take_ended(self) -> list[int]:
        """Jobs that reached a terminal state since the last call, in that order."""
        ended, self._ended = self._ended, []
        return ended

    def tries(self, job: int) -> int:
        """Calls of a job that have failed so far."""
        return sum(self._tries.get(job, (0, 0)))

    def lane_limit(self, lane: int) -> int:
        """Calls that a lane may have in flight at present."""
        return self._limits[lane].limit

    def paused_lanes(self, now_s: float) -> list[tuple[str, float]]:
        """(name, seconds left) of lanes that wait because their endpoint asked them to."""
        return [
            (spec.name, until - now_s)
            for spec, until in zip(self._specs, self._paused_until, strict=True)
            if until > now_s
        ]

    def stopped_lanes(self) -> list[tuple[str, str]]:
        """(name, reason) of lanes that were stopped."""
        return [
            (spec.name, reason)
            for spec, reason in zip(self._specs, self._stop_reasons, strict=True)
            if reason is not None
        ]

    # Decisions

    def next_start(self, now_s: float) -> Start | None:
        """The next job to begin, counted as in flight from here on; ``None`` when nothing may begin now."""
        if self.draining:
            return None
        self._wake(now_s)
        lane_count = len(self._specs)
        if self._ready_count[lane_count]:
            return self._begin(lane_count)
        # A commit that lags behind the answers holds starts back: texts must not pile up in memory.
        if self.in_flight >= self._max_concurrency or self.committing >= 4 * self._max_concurrency:
            return None
        for step in range(lane_count):
            lane = (self._turn + step) % lane_count
            if self._ready_count[lane] and self._may_call(lane, now_s):
                self._turn = lane + 1
                return self._begin(lane)
        return None

    def _may_call(self, lane: int, now_s: float) -> bool:
        endpoint = self._specs[lane].endpoint
        return (
            self._paused_until[lane] <= now_s
            and self._endpoint_in_flight[endpoint] < self._endpoint_limits[endpoint]
            and self._limits[lane].has_room
        )

    def _begin(self, lane: int) -> Start:
        queues = self._ready[lane]
        queue = next(queue for queue in reversed(queues) if queue)
        job = queue.popleft()
        self._ready_count[lane] -= 1
        epoch = 0
        attempt = self.tries(job) + 1
        if lane < len(self._specs):
            epoch = self._limits[lane].admit()
            self._endpoint_in_flight[self._specs[lane].endpoint] += 1
            self.in_flight += 1
        self._running[job] = (attempt, epoch)
        self.states[job] = JobState.RUNNING
        return Start(job, attempt)

    def wake_at(self, now_s: float) -> float | None:
        """When to ask `next_start` again if no event comes before; ``None`` when only an event helps."""
        times = [self._backing_off[0][0]] if self._backing_off else []
        times += [
            until
            for lane, until in enumerate(self._paused_until)
            if until > now_s and self._ready_count[lane] and self._stop_reasons[lane] is None
        ]
        return min(times, default=None)

    def _wake(self, now_s: float) -> None:
        while self._backing_off and self._backing_off[0][0] <= now_s:
            _, job = heapq.heappop(self._backing_off)
            if self.states[job] == JobState.BACKING_OFF:
                self._make_ready(job, first=True)

    # Events

    def answered(self, job: int) -> None:
        """A call brought an answer; its slot is free, its commit is under way."""
        lane = self._lanes[job]
        _, epoch = self._running.pop(job)
        if lane != NO_LANE:
            self._limits[lane].answered(epoch)
            self._leave(lane)
        self.committing += 1
        self.states[job] = JobState.COMMITTING

    def committed(self, job: int, failure: str | None = None) -> None:
        """An answer is in the store.

        Args:
            failure: why it is not usable; its descendants are blocked then.
        """
        self.committing -= 1
        if failure is not None:
            self._fail(job, failure)
            return
        self._end(job, JobState.DONE)
        for child in self.children(job):
            if self.states[child] == JobState.WAITING:
                self._make_ready(child)

    def lost(self, job: int, reason: str) -> None:
        """An answer could not be stored."""
        self.committing -= 1
        self._fail(job, reason)

    def refused(self, job: int, error: ProviderError, now_s: float) -> Retry | GiveUp:
        """A call brought an error: decide whether it is tried again, and what its lane learns."""
        lane = self._lanes[job]
        attempt, epoch = self._running.pop(job)
        transport, limited = self._tries.get(job, (0, 0))
        self._leave(lane)
        if isinstance(error, RateLimitedError):
            self._limits[lane].refused(epoch)
            return self._after_rate_limit(job, error, (transport, limited + 1), attempt, now_s)
        self._limits[lane].failed()
        if isinstance(error, RequestRejectedError):
            return self._after_rejection(job, lane, error)
        retryable = not isinstance(error, MalformedAnswerError) or error.retryable
        self._tries[job] = (transport + 1, limited)
        if not retryable or transport >= self._retry.transport:
            reason = str(error) if attempt == 1 else f"{error} (after {attempt} tries)"
            self._fail(job, reason)
            return GiveUp(reason)
        hint = error.retry_after_s if isinstance(error, ProviderUnavailableError) else None
        pause = hint if hint is not None else self._retry.pause_s(transport + 1, self._share(job, attempt))
        return self._back_off(job, now_s + pause)

    def _after_rate_limit(
        self, job: int, error: RateLimitedError, tries: tuple[int, int], attempt: int, now_s: float
    ) -> Retry | GiveUp:
        lane = self._lanes[job]
        self._tries[job] = tries
        share = self._share(job, attempt)
        if error.retry_after_s is not None:
            # The hint delays requests of the whole lane; a little spread keeps them from returning at once.
            self._paused_until[lane] = max(self._paused_until[lane], now_s + error.retry_after_s)
            pause = error.retry_after_s + 0.05 * share
        else:
            pause = self._retry.pause_s(tries[1], share)
        if tries[1] > self._retry.rate_limit:
            reason = f"{error} (after {attempt} tries)"
            self._fail(job, reason)
            return GiveUp(reason)
        return self._back_off(job, now_s + pause)

    def _after_rejection(self, job: int, lane: int, error: RequestRejectedError) -> GiveUp:
        reason = str(error)
        stopped: list[str] = []
        if error.scope is not Scope.ROW:
            endpoint = self._specs[lane].endpoint
            for other, spec in enumerate(self._specs):
                hit = other == lane if error.scope is Scope.LANE else spec.endpoint == endpoint
                if hit and self._stop_reasons[other] is None:
                    stopped.append(spec.name)
                    self._stop_reasons[other] = reason
        self._fail(job, reason)
        if stopped:
            self._stop_jobs()
        return GiveUp(reason, tuple(stopped))

    def abandoned(self, job: int) -> None:
        """A call was cancelled: its job is open again, for another run."""
        self._running.pop(job, None)
        lane = self._lanes[job]
        if lane != NO_LANE:
            self._limits[lane].failed()
            self._leave(lane)
        self.states[job] = JobState.READY

    def failed_before_call(self, job: int, reason: str) -> None:
        """A job cannot even be asked for: its prompt cannot be made."""
        self._running.pop(job, None)
        lane = self._lanes[job]
        if lane != NO_LANE:
            self._limits[lane].failed()
            self._leave(lane)
        self._fail(job, reason)

    def taken_elsewhere(self, job: int, reason: str) -> None:
        """Another worker has this generation in hand; its descendants are not for this run."""
        self._running.pop(job, None)
        lane = self._lanes[job]
        if lane != NO_LANE:
            self._limits[lane].failed()
            self._leave(lane)
        self.reasons[job] = reason
        self._end(job, JobState.LEFT)
        self._block_descendants(job)

    def drain(self) -> None:
        """Begin nothing more; what is in flight may still arrive."""
        self.draining = True

    # State changes

    def _leave(self, lane: int) -> None:
        if lane != NO_LANE:
            self.in_flight -= 1
            self._endpoint_in_flight[self._specs[lane].endpoint] -= 1

    def _make_ready(self, job: int, *, first: bool = False) -> None:
        lane = self._lanes[job]
        if lane != NO_LANE:
            stop = self._stop_reasons[lane]
            if stop is not None:
                self._stop(job, stop)
                return
        index = lane if lane != NO_LANE else len(self._specs)
        queue = self._ready[index][self._stages[job]]
        if first:
            queue.appendleft(job)
        else:
            queue.append(job)
        self._ready_count[index] += 1
        self.states[job] = JobState.READY

    def _back_off(self, job: int, at_s: float) -> Retry | GiveUp:
        lane = self._lanes[job]
        stop = self._stop_reasons[lane]
        if stop is not None:  # the lane was stopped while this call was out
            self._stop(job, stop)
            return GiveUp(stop)
        self.states[job] = JobState.BACKING_OFF
        heapq.heappush(self._backing_off, (at_s, job))
        return Retry(at_s)

    def _stop_jobs(self) -> None:
        """End the jobs of stopped lanes that have not been called."""
        for job, state in enumerate(self.states):
            lane = self._lanes[job]
            if lane == NO_LANE or state not in (JobState.READY, JobState.BACKING_OFF):
                continue
            reason = self._stop_reasons[lane]
            if reason is not None:
                self._stop(job, reason)
        for lane, reason in enumerate(self._stop_reasons):
            if reason is not None:
                self._ready_count[lane] = 0
                for queue in self._ready[lane]:
                    queue.clear()

    def _stop(self, job: int, reason: str) -> None:
        self.reasons[job] = f"not called: {self._specs[self._lanes[job]].name} was stopped: {reason}"
        self._end(job, JobState.STOPPED)
        self._block_descendants(job)

    def _fail(self, job: int, reason: str) -> None:
        self.reasons[job] = reason
        self._end(job, JobState.FAILED)
        self._block_descendants(job)

    def _block_descendants(self, ancestor: int) -> None:
        open_jobs = self.children(ancestor)
        while open_jobs:
            job = open_jobs.pop()
            if self.states[job] == JobState.WAITING:
                self.blockers[job] = ancestor
                self._end(job, JobState.BLOCKED)
                open_jobs.extend(self.children(job))

    def _end(self, job: int, state: JobState) -> None:
        self.states[job] = state
        self._tries.pop(job, None)
        self._ended.append(job)
        self._open -= 1

    @staticmethod
    def _share(job: int, attempt: int) -> float:
        """A number in [0, 1) that looks random and is the same for the same job and attempt."""
        digest = blake2b(f"{job}|{attempt}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64
