"""The table of states and events: every cell, and that the scheduler's own methods reach each of them."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from genworker.core import scheduler as module
from genworker.core.batches import BatchSpec
from genworker.core.budget import Budget, Caps, Charge
from genworker.core.completion import Completion, FinishReason, Usage
from genworker.core.lane import LaneSpec
from genworker.core.scheduler import (
    NEXT,
    TERMINAL,
    EndpointSpec,
    GiveUp,
    JobEvent,
    JobState,
    Retry,
    RetryPolicy,
    Scheduler,
)
from genworker.errors import (
    MalformedAnswerError,
    ProviderUnavailableError,
    RateLimitedError,
    RequestRejectedError,
    Scope,
)

CELLS = [(state, event) for state in JobState for event in JobEvent]


def one_job(state: JobState) -> Scheduler:
    subject = Scheduler(
        stages=b"\x00",
        parents=array("i", [-1]),
        lanes=array("h", [0]),
        selected=b"\x01",
        lane_specs=[LaneSpec(0, "one")],
        endpoints=[EndpointSpec(4)],
        max_concurrency=4,
    )
    subject.states[0] = state
    return subject


@pytest.mark.parametrize(("state", "event"), CELLS, ids=lambda value: value.name)
def test_a_cell_leads_where_the_table_says_or_raises(state: JobState, event: JobEvent) -> None:
    subject = one_job(state)
    after = NEXT[state].get(event)
    if after is None:
        with pytest.raises(AssertionError, match=f"is {state.name}; the event {event.name} cannot"):
            subject._move(0, event)
        assert subject.state(0) is state
    else:
        assert subject._move(0, event) is after
        assert subject.state(0) is after


def test_the_table_has_every_state_and_what_has_ended_stays() -> None:
    assert set(NEXT) == set(JobState)
    assert all(not NEXT[state] for state in TERMINAL)
    reached = {after for events in NEXT.values() for after in events.values()}
    assert reached == set(JobState) - {JobState.WAITING, JobState.LEFT}
    assert {event for events in NEXT.values() for event in events} == set(JobEvent)


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[tuple[JobState, JobEvent]]]:
    seen: set[tuple[JobState, JobEvent]] = set()
    move = Scheduler._move

    def record(self: Scheduler, job: int, event: JobEvent) -> JobState:
        seen.add((self.state(job), event))
        return move(self, job, event)

    monkeypatch.setattr(module.Scheduler, "_move", record)
    yield seen


def play(seed: int) -> None:
    """A run with everything that can happen in it."""
    draw = random.Random(seed)
    batch = BatchSpec(max_rows=4, max_bytes=1000, linger_s=3.0, tail=seed % 2)
    money: dict[int, Charge] = {}
    lineages = draw.randrange(2, 12)
    count = 3 * lineages
    lanes = array(
        "h", [draw.randrange(3) if job < 2 * lineages else draw.randrange(-1, 3) for job in range(count)]
    )
    subject = Scheduler(
        stages=bytes(job // lineages for job in range(count)),
        parents=array("i", [job - lineages if job >= lineages else -1 for job in range(count)]),
        lanes=lanes,
        selected=bytes(draw.random() < 0.95 for _ in range(count)),
        lane_specs=[
            LaneSpec(0, f"lane {n}", draw.choice([-1, 0, 1, 2]), batch=batch if n == 2 else None, live=1)
            for n in range(3)
        ],
        endpoints=[EndpointSpec(6)],
        max_concurrency=6,
        retry=RetryPolicy(transport=1, base_s=0.1, cap_s=1.0, max_wait_s=20.0),
        budget=Budget(Caps(tokens=draw.choice([60, 120, 10_000]))),
        batched=[job for job in range(count) if draw.random() < 0.02],
    )
    now, out, committing = 0.0, list[int](), list[int]()
    batches = [(2, job, Charge()) for job in range(count) if subject.state(job) is JobState.BATCHED]
    for _ in range(400):
        while (start := subject.next_start(now)) is not None:
            job, chance = start.job, draw.random()
            if chance < 0.05:
                subject.taken_elsewhere(job, now + 0.2)
            elif chance < 0.08:
                subject.failed_before_call(job, "no prompt")
            elif subject.lane_of(job) < 0:
                subject.answered(job)
                committing.append(job)
            elif chance < 0.1:
                subject.held(job)
                batches.append((-1, job, Charge()))
            elif subject.clear(job, worst := Charge(calls=1, tokens=draw.choice([10, 20, 30])), now):
                if subject.lane_of(job) == 2:
                    subject.queued(job, 100, 10, now)
                    money[job] = worst
                else:
                    out.append(job)
        while (close := subject.next_batch(now)) is not None:
            batches += [(close.lane, job, money.pop(job)) for job in close.jobs]
        if subject.finished:
            return
        chance = draw.random()
        if committing and chance < 0.4:
            job = committing.pop(draw.randrange(len(committing)))
            if chance < 0.03:
                subject.lost(job, "disk full")
            else:
                subject.committed(job, "no good" if chance < 0.06 else None)
        elif batches and (not out or chance < 0.6):
            lane, job, worst = batches.pop(draw.randrange(len(batches)))
            now += 1.0
            if lane < 0:
                subject.unheld(job)
            elif draw.random() < 0.6:
                subject.landed(job, worst, Charge(calls=1, tokens=5))
                committing.append(job)
            elif draw.random() < 0.1:
                subject.correct(worst, Charge())
                subject.stranded(job, "its results are gone")
            else:
                subject.correct(worst, Charge())
                bad = RequestRejectedError("400", scope=draw.choice([Scope.ROW, Scope.LANE]))
                error = draw.choice([None, ProviderUnavailableError("500"), bad])
                subject.returned(job, error, now, failures=draw.randrange(3), lapses=draw.randrange(3))
        elif out:
            job = out.pop(draw.randrange(len(out)))
            now += 0.1
            if chance < 0.65:
                subject.answered(
                    job, Completion("x", FinishReason.STOP, Usage(2, 3), 0.1), now, Charge(calls=1, tokens=5)
                )
                committing.append(job)
            elif chance < 0.67:
                subject.abandoned(job)
            elif chance < 0.72:
                subject.refused(job, RequestRejectedError("404", scope=Scope.LANE), now)
            else:
                kinds = [RateLimitedError("429", status=429), ProviderUnavailableError("503", status=503)]
                subject.refused(job, draw.choice(kinds), now)
        else:
            wake = subject.wake_at(now)
            if wake is None:
                return  # only an abandoned job is left
            now = max(now, wake)


def test_every_cell_of_the_table_is_reached_by_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with recorded(monkeypatch) as seen:
        for seed in range(400):
            play(seed)
    assert {(s.name, e.name) for s, events in NEXT.items() for e in events} == {
        (s.name, e.name) for s, e in seen
    }


def test_the_probe_of_an_outage_is_no_rate_limit_try() -> None:
    """With one try for refusals, a row that probed a dead lane is still let off its first 429."""
    subject = Scheduler(
        stages=b"\x00" * 4,
        parents=array("i", [-1]) * 4,
        lanes=array("h", [0]) * 4,
        selected=b"\x01" * 4,
        lane_specs=[LaneSpec(0, "one")],
        endpoints=[EndpointSpec(4)],
        max_concurrency=4,
        retry=RetryPolicy(rate_limit=1, transport=1, breaker_calls=4),
    )
    now, out = 0.0, list[int]()

    def start() -> int:
        nonlocal now
        while True:
            began = subject.next_start(now)
            if began is not None:
                assert subject.clear(began.job, Charge(calls=1), now)
                return began.job
            wake = subject.wake_at(now)
            assert wake is not None
            now = wake

    out = [start() for _ in range(4)]
    for job in out:
        subject.refused(job, ProviderUnavailableError("HTTP 503", status=503), now)
    for _ in range(3):
        subject.refused(start(), ProviderUnavailableError("HTTP 503", status=503), now)
    job = start()
    assert subject.tries(job) >= 2
    decision = subject.refused(job, RateLimitedError("429", retry_after_s=1.0, status=429), now)
    assert isinstance(decision, Retry)
    while not isinstance(decision, GiveUp):
        job = start()
        decision = subject.refused(job, RateLimitedError("429", retry_after_s=1.0, status=429), now)
    assert subject.state(job) is JobState.FAILED


def test_tries_of_every_kind_are_counted() -> None:
    subject = one_job(JobState.WAITING)
    subject.states[0] = JobState.READY
    now = 0.0
    for number, error in enumerate(
        (
            ProviderUnavailableError("503", status=503),
            RateLimitedError("429", status=429),
            MalformedAnswerError("half", body="{"),
        )
    ):
        began = subject.next_start(now)
        while began is None:
            now = subject.wake_at(now) or now
            began = subject.next_start(now)
        assert began.attempt == number + 1
        assert subject.clear(0, Charge(calls=1), now)
        assert isinstance(subject.refused(0, error, now), Retry)
    assert subject._tries[0] == (1, 1, 1, 0)
