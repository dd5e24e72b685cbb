"""Plays a cohort against modelled endpoints in virtual time. The scheduler is the shipped one, not a copy.

Everything is deterministic: latencies and failures come from a seeded generator. Times are seconds.
"""

from __future__ import annotations

import heapq
import math
import random
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from genworker.core.budget import Budget, Charge
from genworker.core.completion import Completion, FinishReason, Usage
from genworker.core.hints import Quantity, Quota
from genworker.core.lane import LaneSpec
from genworker.core.scheduler import WINDOW, EndpointSpec, GiveUp, JobState, RetryPolicy, Scheduler
from genworker.errors import ProviderError, ProviderUnavailableError, RateLimitedError


@dataclass(slots=True)
class Model:
    """An endpoint's behaviour.

    Attributes:
        sigma: of the lognormal latency whose median is `latency_s`; 0 for a constant one.
        rpm: a token bucket over requests; `burst` is its size, one second's worth when ``None``.
        tpm: the same over tokens.
        hint_s: what a refusal says; ``None``: nothing.
        at_once: calls that are taken at the same time; the others are refused.
        slow_above: calls at once from which latency grows in proportion.
        schedule: (from second, factor on rpm, tpm and at_once).
        failing: (from, to) seconds in which every call fails with a 503, or a 429 when `fails_with_429`.
        announce: the limits stand in every answer.
    """

    latency_s: float = 0.8
    sigma: float = 0.0
    rpm: float | None = None
    burst: float | None = None
    tpm: float | None = None
    hint_s: float | None = 1.0
    at_once: int | None = None
    slow_above: int | None = None
    schedule: tuple[tuple[float, float], ...] = ()
    failing: tuple[float, float] = (0.0, 0.0)
    fails_with_429: bool = False
    failure_rate: float = 0.0
    announce: bool = False
    tokens: tuple[int, int] = (300, 400)
    round_trip_s: float = 0.002


@dataclass(slots=True)
class _Server:
    model: Model
    draw: random.Random
    in_flight: int = 0
    level: float = -1.0
    token_level: float = -1.0
    seen_s: float = 0.0
    received: int = 0
    refused: int = 0
    most: int = 0
    latencies: list[float] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)

    def factor(self, now: float) -> float:
        factor = 1.0
        for from_s, value in self.model.schedule:
            if now >= from_s:
                factor = value
        return factor

    def _quotas(self, factor: float) -> tuple[Quota, ...]:
        model = self.model
        found = []
        if model.announce and model.rpm is not None:
            size = max(1.0, (model.burst or model.rpm / 60) * factor)
            found.append(Quota(Quantity.REQUESTS, model.rpm * factor, math.floor(self.level) / size))
        if model.announce and model.tpm is not None:
            size = model.tpm / 60 * factor
            found.append(Quota(Quantity.TOKENS, model.tpm * factor, self.token_level / size))
        return tuple(found)

    def take(self, now: float, floor: float) -> tuple[float, ProviderError | Completion]:
        """(seconds until the client hears, what it hears); a call that is served counts as in flight."""
        model, factor = self.model, self.factor(now)
        self.received += 1
        read, written = model.tokens
        tokens = read + round(written * (0.85 + 0.3 * self.draw.random()))
        if model.rpm is not None:
            size = max(1.0, (model.burst or model.rpm / 60) * factor)
            level = size if self.level < 0 else self.level
            self.level = min(size, level + (now - self.seen_s) * model.rpm * factor / 60)
        if model.tpm is not None:
            size = model.tpm / 60 * factor
            level = size if self.token_level < 0 else self.token_level
            self.token_level = min(size, level + (now - self.seen_s) * model.tpm * factor / 60)
        self.seen_s = now
        over = (
            (model.rpm is not None and self.level < 1.0)
            or (model.tpm is not None and self.token_level < min(tokens, model.tpm / 60 * factor))
            or (model.at_once is not None and self.in_flight >= model.at_once * factor)
        )
        down = model.failing[0] <= now < model.failing[1]
        if over or (down and model.fails_with_429):
            self.refused += 1
            refusal = RateLimitedError(
                "HTTP 429", retry_after_s=model.hint_s, status=429, quotas=self._quotas(factor)
            )
            return model.round_trip_s, refusal
        if down or self.draw.random() < model.failure_rate:
            return model.round_trip_s, ProviderUnavailableError("HTTP 503", status=503, may_be_billed=True)
        if model.rpm is not None:
            self.level -= 1.0
        if model.tpm is not None:
            self.token_level -= tokens
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        slow = 1.0
        if model.slow_above is not None:
            slow = max(1.0, self.in_flight / model.slow_above)
        self.floor.append(floor)
        self.latencies.append(floor * slow)
        usage = Usage(input_tokens=read, output_tokens=tokens - read)
        answer = Completion("text", FinishReason.STOP, usage, floor * slow, quotas=self._quotas(factor))
        return floor * slow, answer


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
