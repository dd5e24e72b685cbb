"""Plays a cohort against modelled endpoints in virtual time. The scheduler is the shipped one, not a copy.

Everything is deterministic: latencies and failures come from a seeded generator. Times are seconds.
"""

from __future__ import annotations

import heapq
import math
import random
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from genworker.core.budget import Budget, Charge
from genworker.core.completion import Completion, FinishReason, Usage
from genworker.core.hints import FEW_CALLS, Quantity, Quota
from genworker.core.lane import LaneSpec
from genworker.core.scheduler import WINDOW, EndpointSpec, GiveUp, JobState, RetryPolicy, Scheduler
from genworker.errors import ProviderError, ProviderUnavailableError, RateLimitedError


@dataclass(slots=True)
class Model:
    """An endpoint's behaviour.

    Attributes:
        sigma: of the lognormal latency whose median is `latency_s`; 0 for a constant one.
        rpm, tpm: requests and tokens a minute.
        window: how they are counted: by a token "bucket", over the last `window_s` ("sliding"), or from one
            multiple of `window_s` to the next ("fixed").
        window_s: so much of the limits may be used at once; the bucket's size.
        hint_s: what a refusal says; ``None``: nothing; infinite: how long it is going to take.
        at_once: calls that are taken at the same time; the others are refused.
        slow_above: calls at once from which latency grows in proportion.
        schedule: (from second, factor on rpm, tpm and at_once).
        failing: (from, to) seconds in which every call fails with a 503, or a 429 when `fails_with_429`.
        failure_rate, refusal_rate: share of calls that get a 503, and a 429, whatever the load.
        announce: the limits stand in every answer.
        sizes: σ of the lognormal length of answers.
    """

    latency_s: float = 0.8
    sigma: float = 0.0
    rpm: float | None = None
    tpm: float | None = None
    window: Literal["bucket", "sliding", "fixed"] = "bucket"
    window_s: float = 1.0
    hint_s: float | None = 1.0
    at_once: int | None = None
    slow_above: int | None = None
    schedule: tuple[tuple[float, float], ...] = ()
    failing: tuple[float, float] = (0.0, 0.0)
    fails_with_429: bool = False
    failure_rate: float = 0.0
    refusal_rate: float = 0.0
    announce: bool = False
    tokens: tuple[int, int] = (300, 400)
    sizes: float = 0.08
    round_trip_s: float = 0.002


class _Allowance:
    """What is left of one limit."""

    def __init__(self, model: Model, per_min: float) -> None:
        self._model, self._per_s = model, per_min / 60.0
        self._seen_s = 0.0
        self._used = 0.0
        self._log: deque[tuple[float, float]] = deque()
        self._size = 1.0

    def look(self, now: float, factor: float) -> None:
        per_s, window_s = self._per_s * factor, self._model.window_s
        self._size = max(1.0, per_s * window_s)
        if self._model.window == "bucket":
            self._used = max(0.0, self._used - (now - self._seen_s) * per_s)
        elif self._model.window == "fixed":
            if now // window_s > self._seen_s // window_s:
                self._used = 0.0
        else:
            while self._log and self._log[0][0] <= now - window_s:
                self._used -= self._log.popleft()[1]
        self._used = min(self._used, self._size)
        self._seen_s = now

    def fits(self, amount: float) -> bool:
        return self._used + min(amount, self._size) <= self._size + 1e-9

    def take(self, amount: float) -> None:
        self._used += amount
        self._log.append((self._seen_s, amount))

    def wait_s(self, factor: float) -> float:
        """How long until something is let in again."""
        if self._model.window == "bucket":
            return 1.0 / (self._per_s * factor)
        start = self._log[0][0] if self._model.window == "sliding" else self._seen_s // self._model.window_s
        return max(0.0, start + self._model.window_s - self._seen_s)

    def quota(self, quantity: Quantity, factor: float) -> Quota:
        """As `hints.quotas` reads it from headers."""
        left = math.floor(self._size - self._used) / self._size
        few = quantity is Quantity.REQUESTS and self._used <= FEW_CALLS
        return Quota(quantity, self._per_s * factor * 60, 1.0 if few else left)


class _Server:
    def __init__(self, model: Model, draw: random.Random) -> None:
        self.model, self._draw = model, draw
        self.in_flight = self.received = self.refused = self.most = 0
        self.latencies: list[float] = []
        self.floor: list[float] = []
        self._limits = {
            quantity: _Allowance(model, per_min)
            for quantity, per_min in ((Quantity.REQUESTS, model.rpm), (Quantity.TOKENS, model.tpm))
            if per_min is not None
        }

    def _factor(self, now: float) -> float:
        return next((value for from_s, value in reversed(self.model.schedule) if now >= from_s), 1.0)

    def take(self, now: float, floor: float) -> tuple[float, ProviderError | Completion]:
        """(seconds until the client hears, what it hears); a call that is served counts as in flight."""
        model, factor = self.model, self._factor(now)
        self.received += 1
        read, written = model.tokens
        written = max(1, round(written * math.exp(self._draw.gauss(0.0, model.sizes))))
        sizes = {Quantity.REQUESTS: 1, Quantity.TOKENS: read + written}
        for limit in self._limits.values():
            limit.look(now, factor)
        short = [limit for quantity, limit in self._limits.items() if not limit.fits(sizes[quantity])]
        full = model.at_once is not None and self.in_flight >= model.at_once * factor
        down = model.failing[0] <= now < model.failing[1]
        if short or full or (down and model.fails_with_429) or self._draw.random() < model.refusal_rate:
            self.refused += 1
            hint = model.hint_s
            if hint == math.inf:
                hint = max((limit.wait_s(factor) for limit in short), default=1.0)
            quotas = self._quotas(factor)
            return model.round_trip_s, RateLimitedError("429", retry_after_s=hint, status=429, quotas=quotas)
        if down or self._draw.random() < model.failure_rate:
            return model.round_trip_s, ProviderUnavailableError("503", status=503, may_be_billed=True)
        for quantity, limit in self._limits.items():
            limit.take(sizes[quantity])
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        slow = max(1.0, self.in_flight / model.slow_above) if model.slow_above is not None else 1.0
        self.floor.append(floor)
        self.latencies.append(floor * slow)
        usage = Usage(input_tokens=read, output_tokens=written)
        answer = Completion("text", FinishReason.STOP, usage, floor * slow, quotas=self._quotas(factor))
        return floor * slow, answer

    def _quotas(self, factor: float) -> tuple[Quota, ...]:
        if not self.model.announce:
            return ()
        return tuple(limit.quota(quantity, factor) for quantity, limit in self._limits.items())


@dataclass(slots=True)
class Played:
    """What came of it.

    Attributes:
        makespan_s: until the last job ended.
        lane_ends_s: until each lane's last answer.
        bound_s: max(sum of latencies / concurrency, longest lineage), over the calls that were made.
    """

    scheduler: Scheduler
    servers: Sequence[_Server]
    makespan_s: float
    bound_s: float
    lane_ends_s: list[float]
    answers: list[tuple[float, int]]
    steps: int

    @property
    def refused_share(self) -> float:
        received = sum(server.received for server in self.servers)
        return sum(server.refused for server in self.servers) / max(1, received)

    def done(self) -> int:
        return sum(1 for state in self.scheduler.states if state == JobState.DONE)


def play(
    models: Sequence[Model],
    *,
    lineages: int,
    stages: int = 3,
    concurrency: int = 256,
    seed: int = 0,
    window: int = WINDOW,
    retry: RetryPolicy | None = None,
    budget: Budget | None = None,
    charge: Callable[[random.Random], tuple[Charge, Charge]] | None = None,
    until_s: float = math.inf,
    barrier: bool = False,
    lanes_each: int = 1,
    latencies: Sequence[float] | None = None,
) -> Played:
    """Play `lineages` of `stages` calls each; lineage n is in lane n modulo the number of models.

    Args:
        charge: draws (worst case, real cost) of a call.
        until_s: stop there, as a kill does; what is out is not settled.
        lanes_each: lanes that share each model's endpoint and its limits.
        latencies: seconds of each job's call, stage by stage, instead of drawn ones.
        barrier: begin a stage only when the one before it has ended, as the baseline to compare with.
    """
    draw = random.Random(seed)
    servers = [_Server(model, random.Random(seed * 1000 + number)) for number, model in enumerate(models)]
    count = lineages * stages
    stage_of = bytes(job // lineages for job in range(count))
    parents = array("i", [job - lineages if job >= lineages else -1 for job in range(count)])
    width = len(models) * lanes_each
    lanes = array("h", [job % lineages % width for job in range(count)])
    scheduler = Scheduler(
        stages=stage_of,
        parents=parents,
        lanes=lanes,
        selected=b"\x01" * count,
        lane_specs=[LaneSpec(number % len(models), f"lane {number}") for number in range(width)],
        endpoints=[EndpointSpec(concurrency) for _ in models],
        max_concurrency=concurrency * len(models),
        retry=retry,
        budget=budget,
        window=window,
    )
    # Each job's own latency, whatever the order: so that two orders can be compared.
    noise = [math.exp(draw.gauss(0.0, 1.0)) for _ in range(count)]
    now, steps = 0.0, 0
    events: list[tuple[float, int, int, ProviderError | Completion, bool]] = []
    charges: dict[int, tuple[Charge, Charge]] = {}
    work = [0.0] * lineages
    ends = [0.0] * width
    answers: list[tuple[float, int]] = []
    held: list[int] = []
    number = 0
    while not scheduler.finished:
        while (start := scheduler.next_start(now)) is not None:
            job = start.job
            steps += 1
            if job not in charges:
                charges[job] = charge(draw) if charge else (Charge(calls=1), Charge(calls=1))
            if not scheduler.clear(job, charges[job][0], now):
                continue
            server = servers[lanes[job] % len(models)]
            drawn = server.model.latency_s * noise[job] ** server.model.sigma
            delay, outcome = server.take(now, drawn if latencies is None else latencies[job])
            served = isinstance(outcome, Completion)
            if served:
                work[job % lineages] += delay
            heapq.heappush(events, (now + delay, number, job, outcome, served))
            number += 1
        if scheduler.finished:
            break
        wake_at = scheduler.wake_at(now)
        if events and (wake_at is None or events[0][0] <= wake_at):
            now, _, job, outcome, served = heapq.heappop(events)
            lane = lanes[job]
            if served:
                servers[lane % len(models)].in_flight -= 1
            if isinstance(outcome, Completion):
                scheduler.answered(job, outcome, now, charges[job][1])
                ends[lane] = now
                answers.append((now, lane))
                if barrier and job < count - lineages:
                    held.append(job)
                    scheduler.committing -= 1  # a barrier holds texts back; that must not hold starts back
                    if len(held) == lineages:
                        for waiting in held:
                            scheduler.committing += 1
                            scheduler.committed(waiting)
                        held.clear()
                else:
                    scheduler.committed(job)
            else:
                decision = scheduler.refused(job, outcome, now)
                assert not isinstance(decision, GiveUp) or decision.reason
        elif wake_at is not None:
            now = max(now, wake_at)
        else:
            raise AssertionError("the scheduler waits for nothing")
        if now >= until_s:
            break
    bound = max(sum(work) / (concurrency * len(models)), max(work, default=0.0))
    return Played(scheduler, servers, now, bound, ends, answers, steps)
