"""What holds for every order of events: the scheduler against endpoints that do anything."""

from __future__ import annotations

import random
from array import array

from hypothesis import given, settings
from hypothesis import strategies as st

from genworker.core.budget import Budget, Caps, Charge
from genworker.core.completion import Completion, FinishReason, Usage
from genworker.core.lane import LaneSpec
from genworker.core.scheduler import TERMINAL, EndpointSpec, JobState, RetryPolicy, Scheduler
from genworker.errors import (
    MalformedAnswerError,
    ProviderError,
    ProviderUnavailableError,
    RateLimitedError,
    RequestRejectedError,
    Scope,
)


def error(draw: random.Random) -> ProviderError:
    return draw.choice(
        [
            RateLimitedError("429", retry_after_s=draw.choice([None, 0.0, 0.5, 20.0]), status=429),
            RateLimitedError("529", status=529),
            ProviderUnavailableError("503", status=503, may_be_billed=True),
            ProviderUnavailableError("503", status=503, retry_after_s=2.0),
            MalformedAnswerError("half", body="{", retryable=draw.random() < 0.8),
            RequestRejectedError("400"),
            RequestRejectedError("404", scope=Scope.LANE)
            if draw.random() < 0.02
            else RequestRejectedError("422"),
        ]
    )


@given(
    seed=st.integers(0, 2**32),
    lineages=st.integers(1, 40),
    lanes=st.integers(1, 3),
    concurrency=st.integers(1, 20),
    trouble=st.sampled_from([0.0, 0.1, 0.5, 0.95]),
    cap=st.one_of(st.none(), st.integers(0, 60)),
    drain_at=st.one_of(st.none(), st.integers(0, 200)),
    shared=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_every_job_ends_once_and_no_limit_is_passed(
    seed: int,
    lineages: int,
    lanes: int,
    concurrency: int,
    trouble: float,
    cap: int | None,
    drain_at: int | None,
    shared: bool,
) -> None:
    draw = random.Random(seed)
    count = 3 * lineages
    parents = array("i", [job - lineages if job >= lineages else -1 for job in range(count)])
    lane_of = array(
        "h",
        [
            draw.choice([*range(lanes), -1]) if job >= lineages else draw.randrange(lanes)
            for job in range(count)
        ],
    )
    policy = RetryPolicy(base_s=0.1, cap_s=5.0, max_wait_s=30.0, outage_s=30.0, breaker_calls=5)
    subject = Scheduler(
        stages=bytes(job // lineages for job in range(count)),
        parents=parents,
        lanes=lane_of,
        selected=bytes(draw.random() < 0.95 for _ in range(count)),
        lane_specs=[
            LaneSpec(0, f"lane {n}", fallback=draw.choice([-1, *range(lanes)])) for n in range(lanes)
        ],
        endpoints=[EndpointSpec(concurrency)],
        max_concurrency=concurrency,
        retry=policy,
        budget=Budget(Caps(calls=cap)),
        window=draw.choice([0, 4, 512]),
    )
    now, steps = 0.0, 0
    running: list[int] = []
    committing: list[int] = []
    committed = {job for job in range(count) if subject.state(job) is JobState.LEFT}
    ended: list[int] = []
    while not subject.finished:
        steps += 1
        assert steps < 40_000
        while (start := subject.next_start(now)) is not None:
            job = start.job
            assert parents[job] < 0 or parents[job] in committed
            if lane_of[job] < 0:
                subject.answered(job)
                committing.append(job)
            elif subject.clear(
                job, Charge(calls=1), now, draw.choice([None, f"p{job % 3}"]) if shared else None
            ):
                running.append(job)
            else:
                assert subject.state(job) in (JobState.PARKED, JobState.BACKING_OFF)
        assert subject.in_flight == len(running) <= concurrency
        assert subject.budget.caps.room(subject.budget.spent + subject.budget.reserved)
        if drain_at is not None and steps >= drain_at:
            subject.drain()
        if subject.finished:
            break
        if committing and (not running or draw.random() < 0.5):
            job = committing.pop(draw.randrange(len(committing)))
            usable = draw.random() > trouble / 4
            subject.committed(job, None if usable else "no good")
            if usable:
                committed.add(job)
        elif running:
            job = running.pop(draw.randrange(len(running)))
            now += draw.random()
            if draw.random() < trouble:
                subject.refused(job, error(draw), now)
            else:
                answer = Completion("x", FinishReason.STOP, Usage(10, 10), draw.random())
                subject.answered(job, answer, now, draw.choice([None, Charge(calls=1)]))
                committing.append(job)
        else:
            wake = subject.wake_at(now)
            assert wake is not None, "it waits for nothing"
            now = max(now, wake)
        ended += subject.take_ended()
    ended += subject.take_ended()
    assert len(ended) == len(set(ended))
    assert subject.in_flight == 0
    assert subject.budget.reserved == Charge()
    for job in range(count):
        state = subject.state(job)
        if not subject.draining:
            assert state in TERMINAL
        if state is JobState.BLOCKED:
            ancestor = subject.blockers[job]
            assert subject.state(ancestor) in (JobState.FAILED, JobState.STOPPED)
            assert subject.reasons[ancestor]
        if state in (JobState.FAILED, JobState.STOPPED):
            assert subject.reasons[job]
