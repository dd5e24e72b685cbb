"""Servers with limits of many kinds, and the ideal time of each: played by `bench.fleet` and by test_fleet.py.

Built on `support.simulation`. The ideal is what a client reaches that knows the limit: calls at once, and a rate
that begins with a full allowance.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from dataclasses import dataclass

from genworker.core.completion import Completion
from genworker.errors import ProviderError, RateLimitedError
from support.simulation import Model, _Server, play

CEILING = 256


@dataclass(frozen=True, slots=True)
class Case:
    """One server and the calls that it is asked.

    Attributes:
        lanes: that share it.
        stages: of each lineage.
    """

    name: str
    model: Model
    calls: int
    lanes: int = 1
    stages: int = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it.

    Attributes:
        refused: share of requests.
        excess: the same beyond what is refused by chance.
        slowdown: mean latency over the server's own.
        lost: rows without an answer.
    """

    ideal_s: float
    took_s: float
    refused: float
    excess: float
    slowdown: float
    lost: int

    @property
    def ratio(self) -> float:
        return self.took_s / self.ideal_s

    @property
    def is_fine(self) -> bool:
        return not self.lost and (self.ratio <= 1.15 or self.took_s <= self.ideal_s + 3.0)


def ideal_s(case: Case, floors: list[float]) -> float:
    """The time of a client that knows the server, whose calls take `floors` when nothing queues."""
    model = case.model
    at_once = min(CEILING, model.at_once or CEILING, model.slow_above or CEILING)
    per_min = [n for n in (model.rpm, model.tpm and model.tpm / sum(model.tokens)) if n is not None]
    starts = [0.0] * len(floors)
    if per_min:
        per_s = min(per_min) / 60.0
        depth = max(1.0, per_s * model.window_s)
        at, level = 0.0, depth
        for number in range(len(floors)):
            if model.window == "bucket":
                level -= 1.0
                while level < 0:
                    factor = next((f for since, f in reversed(model.schedule) if at >= since), 1.0)
                    step = min(0.25, -level / (per_s * factor))
                    at, level = at + step, min(0.0, level + step * per_s * factor)
            else:
                at = number // depth * model.window_s
            starts[number] = at
    free, end = [0.0] * at_once, 0.0
    for start, floor in zip(starts, floors, strict=True):
        at = max(start, free[0])
        if model.failing[0] <= at < model.failing[1]:
            at = model.failing[1]
        heapq.heapreplace(free, at + floor)
        end = max(end, at + floor)
    return end


def play_case(case: Case, seed: int = 0) -> Outcome:
    """The shipped scheduler."""
    played = play(
        [case.model],
        lineages=case.calls // case.stages,
        stages=case.stages,
        concurrency=CEILING,
        seed=seed,
        lanes_each=case.lanes,
        until_s=20 * case.calls,
    )
    server = played.servers[0]
    took = max(played.lane_ends_s)
    lost = case.calls - played.done()
    return _outcome(case, server, took, lost)


def play_fixed(case: Case, at_once: int, seed: int = 0) -> Outcome:
    """A client with a fixed number of calls out, which obeys the hint of each or waits a second."""
    draw = random.Random(seed)
    server = _Server(case.model, random.Random(seed * 1000))
    waiting: list[tuple[float, int]] = []
    ready = deque(range(case.calls))
    floors = [case.model.latency_s * math.exp(case.model.sigma * draw.gauss(0, 1)) for _ in ready]
    events: list[tuple[float, int, ProviderError | Completion]] = []
    now = last = 0.0
    left, flying = case.calls, 0
    while left and now < 20 * case.calls:
        while waiting and waiting[0][0] <= now:
            ready.append(heapq.heappop(waiting)[1])
        while ready and flying < at_once:
            job = ready.popleft()
            delay, outcome = server.take(now, floors[job])
            heapq.heappush(events, (now + delay, job, outcome))
            flying += 1
        wake = waiting[0][0] if waiting and flying < at_once else math.inf
        if events and events[0][0] <= wake:
            now, job, outcome = heapq.heappop(events)
            flying -= 1
            if isinstance(outcome, Completion):
                server.in_flight -= 1
                left, last = left - 1, now
            else:
                hint = outcome.retry_after_s if isinstance(outcome, RateLimitedError) else None
                heapq.heappush(waiting, (now + (draw.random() if hint is None else hint), job))
        else:
            now = wake
    return _outcome(case, server, max(last, now if left else last), left)


def _outcome(case: Case, server: _Server, took_s: float, lost: int) -> Outcome:
    refused = server.refused / max(1, server.received)
    floors = list(server.floor)
    slowdown = sum(server.latencies) / max(1e-9, sum(floors))
    if case.stages > 1:
        ideal = max(sum(floors) / CEILING, case.stages * case.model.latency_s)
    else:
        ideal = ideal_s(case, floors)
    return Outcome(ideal, took_s, refused, max(0.0, refused - case.model.refusal_rate), slowdown, lost)


HALVES = ((0.0, 1.0), (20.0, 0.5), (45.0, 1.0))
SLOW = 0.05
"""Seconds until a refusal is heard of, as over a network."""

FLEET: tuple[Case, ...] = (
    Case("free, 0.3 s", Model(0.3, round_trip_s=SLOW), 1500),
    Case("free, 3 s, heavy tails", Model(3.0, 0.7, round_trip_s=SLOW), 4000),
    Case("free, 20 s", Model(20.0, 0.4, round_trip_s=SLOW), 700),
    Case("lineages of three, 0.8 s", Model(0.8, 0.8, round_trip_s=SLOW), 6000, stages=3),
    Case("900 rpm", Model(1.0, rpm=900, round_trip_s=SLOW), 900),
    Case("900 rpm, 6 s", Model(6.0, 0.4, rpm=900, round_trip_s=SLOW), 1500),
    Case("900 rpm, no hint", Model(1.0, rpm=900, hint_s=None, round_trip_s=SLOW), 1500),
    Case("900 rpm, a bucket of a minute", Model(2.0, rpm=900, window_s=60, round_trip_s=SLOW), 3000),
    Case("6,000 rpm", Model(0.5, 0.4, rpm=6000, round_trip_s=SLOW), 8000),
    Case("900 rpm, announced", Model(1.0, rpm=900, announce=True, round_trip_s=SLOW), 900),
    Case("900 rpm, announced, 5 % by chance", Model(2.0, rpm=900, announce=True, refusal_rate=0.05), 900),
    Case("tokens", Model(1.0, tpm=630_000, sizes=0.4, round_trip_s=SLOW), 900),
    Case("tokens, announced", Model(1.0, tpm=630_000, sizes=0.4, announce=True, round_trip_s=SLOW), 900),
    Case("15 a second", Model(1.0, rpm=900, window="fixed", round_trip_s=SLOW), 1500),
    Case("900 a minute", Model(1.0, rpm=900, window="fixed", window_s=60, round_trip_s=SLOW), 2700),
    Case(
        "900 in the last minute, exact hint",
        Model(1.0, rpm=900, window="sliding", window_s=60, hint_s=math.inf),
        2700,
    ),
    Case("24 at once", Model(1.0, 0.4, at_once=24, round_trip_s=SLOW), 1500),
    Case("24 at once, refused in 2 ms", Model(1.0, 0.4, at_once=24), 1500),
    Case("3 at once, hint 60 s", Model(2.0, 0.3, at_once=3, hint_s=60.0, round_trip_s=SLOW), 300),
    Case(
        "60 at once, 10 s, 8 % by chance",
        Model(10.0, 0.4, at_once=60, refusal_rate=0.08, round_trip_s=SLOW),
        2000,
    ),
    Case("24 at once halves", Model(1.0, at_once=24, schedule=HALVES, round_trip_s=SLOW), 1800),
    Case("queues past 24", Model(0.6, 0.3, slow_above=24), 2000),
    Case("queues past 4", Model(1.0, 0.3, slow_above=4), 600),
    Case("5 % by chance", Model(0.6, refusal_rate=0.05, hint_s=0.4, round_trip_s=SLOW), 2500),
    Case("25 % by chance, no hint", Model(1.5, 0.4, refusal_rate=0.25, hint_s=None, round_trip_s=SLOW), 4000),
    Case("50 % by chance", Model(2.0, refusal_rate=0.5, round_trip_s=SLOW), 2000),
    Case("10 % of 503", Model(2.0, 0.4, failure_rate=0.10, round_trip_s=SLOW), 4000),
    Case("900 rpm, 10 % by chance", Model(1.0, rpm=900, refusal_rate=0.10, round_trip_s=SLOW), 1500),
    Case("900 rpm halves and doubles", Model(0.5, rpm=900, schedule=HALVES, round_trip_s=SLOW), 1200),
    Case("40 s of 503", Model(1.0, failing=(6.0, 46.0), round_trip_s=SLOW), 4000),
    Case("40 s of 429", Model(1.0, failing=(6.0, 46.0), fails_with_429=True, round_trip_s=SLOW), 4000),
    Case("900 rpm, two lanes", Model(1.0, rpm=900, round_trip_s=SLOW), 1500, lanes=2),
    Case("24 at once, three lanes", Model(1.0, 0.4, at_once=24, round_trip_s=SLOW), 1500, lanes=3),
    Case("900 rpm, refused after 0.6 s", Model(1.0, 0.4, rpm=900, round_trip_s=0.6), 1500),
)
