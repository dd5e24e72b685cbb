"""Waves and money for any order of landings: no row in two batches, no cap passed, every row ends once."""

from __future__ import annotations

import random
from array import array
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genworker.core.batches import BatchSpec
from genworker.core.budget import Budget, Caps, Charge
from genworker.core.completion import Completion, FinishReason, Usage
from genworker.core.lane import LaneSpec
from genworker.core.scheduler import EndpointSpec, JobState, Scheduler
from genworker.errors import ProviderUnavailableError

WORST, COST = Charge(calls=1, tokens=20), Charge(calls=1, tokens=7)


def play(seed: int, cap: int | None, rows: int, *, distinct: bool) -> list[tuple[int, ...]]:
    """A run over drafts that are asked live or in batches and evaluations in batches; returns its batches."""
    draw = random.Random(seed)
    spec = BatchSpec(draw.randrange(1, 9), 10_000, 5.0, distinct_counts=distinct)
    is_live = draw.random() < 0.5
    subject = Scheduler(
        stages=bytes([0] * rows + [1] * rows),
        parents=array("i", [-1] * rows + list(range(rows))),
        lanes=array("h", [0 if is_live else 1] * rows + [1] * rows),
        selected=b"\x01" * (2 * rows),
        lane_specs=[LaneSpec(0, "live"), LaneSpec(0, "batch", batch=spec)],
        endpoints=[EndpointSpec(4)],
        max_concurrency=4,
        budget=Budget(Caps(tokens=cap)),
    )
    now, out, made = 0.0, list[int](), list[tuple[int, ...]]()
    open_batches: list[tuple[int, tuple[int, ...], int]] = []
    held: Counter[int] = Counter()
    for _ in range(20_000):
        while (start := subject.next_start(now)) is not None:
            if subject.clear(start.job, WORST, now):
                if subject.lane_of(start.job) == 1:
                    subject.queued(start.job, 10, 5, now)
                else:
                    out.append(start.job)
        while (close := subject.next_batch(now)) is not None:
            made.append(close.jobs)
            held.update(close.jobs)
            open_batches.append((close.lane, close.jobs, close.tokens))
        spent = subject.budget.spent + subject.budget.reserved
        assert cap is None or spent.tokens <= cap
        assert max(held.values(), default=0) <= 1
        if distinct:
            sizes = [len(jobs) for _, jobs, _ in open_batches]
            assert len(set(sizes)) == len(sizes)
        if subject.finished:
            break
        now += 1.0
        if open_batches and (not out or draw.random() < 0.3):
            lane, jobs, tokens = open_batches.pop(draw.randrange(len(open_batches)))
            held.subtract(jobs)
            failed = [job for job in jobs if draw.random() < 0.1]
            for job in jobs:
                if job not in failed:
                    subject.landed(job, WORST, COST)
                    subject.committed(job)
            subject.batch_ended(lane, len(jobs), tokens, now)
            for job in failed:
                subject.correct(WORST, Charge(calls=1))
                subject.returned(job, ProviderUnavailableError("500"), now, failures=draw.randrange(1, 3))
        elif out:
            job = out.pop(draw.randrange(len(out)))
            subject.answered(job, Completion("x", FinishReason.STOP, Usage(2, 3), 0.1), now, COST)
            subject.committed(job)
        else:
            wake = subject.wake_at(now)
            assert wake is not None, "it waits for nothing"
            now = max(now, wake)
    assert subject.finished
    assert not open_batches
    if cap is None:
        assert all(
            subject.state(job) in (JobState.DONE, JobState.FAILED, JobState.BLOCKED)
            for job in range(2 * rows)
        )
    assert subject.budget.reserved.tokens == 0
    return made


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.none() | st.integers(20, 400), st.integers(1, 25), st.booleans())
def test_any_order_of_landings(seed: int, cap: int | None, rows: int, distinct: bool) -> None:
    assert play(seed, cap, rows, distinct=distinct) == play(seed, cap, rows, distinct=distinct)


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 100])
def test_a_stage_that_is_ready_at_once_makes_as_few_batches_as_fit(rows: int) -> None:
    spec = BatchSpec(8, 10_000, 60.0)
    subject = Scheduler(
        stages=b"\x00" * rows,
        parents=array("i", [-1]) * rows,
        lanes=array("h", [0]) * rows,
        selected=b"\x01" * rows,
        lane_specs=[LaneSpec(0, "batch", batch=spec)],
        endpoints=[EndpointSpec(4)],
        max_concurrency=4,
    )
    sizes = []
    while True:
        if (start := subject.next_start(0.0)) is not None:
            assert subject.clear(start.job, WORST, 0.0)
            subject.queued(start.job, 10, 5, 0.0)
        elif (close := subject.next_batch(0.0)) is not None:
            sizes.append(len(close.jobs))
        else:
            break
    assert (sum(sizes), len(sizes)) == (rows, -(-rows // 8))
    assert subject.waits_for_batches
