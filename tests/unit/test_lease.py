"""A worker's shares: what it may start, and jobs that join a scheduler in mid-run."""

from __future__ import annotations

import math
from array import array
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from genworker.core.budget import Budget, Caps, Charge
from genworker.core.completion import Completion, FinishReason, Usage
from genworker.core.coordinator import Purse, kind
from genworker.core.lane import LaneSpec
from genworker.core.lease import CATCH_UP_S, Lease, LeasedRate
from genworker.core.scheduler import EndpointSpec, JobState, Scheduler

SLOTS = {"slots": 100.0}


def leased(lease: Lease, *, caps: Caps | None = None) -> tuple[Scheduler, bytearray, array[int], array[int]]:
    stages, parents, lanes = bytearray(), array("i"), array("h")
    scheduler = Scheduler(
        stages=stages,
        parents=parents,
        lanes=lanes,
        selected=b"",
        lane_specs=[LaneSpec(0, "e/m")],
        endpoints=[EndpointSpec(1000)],
        max_concurrency=1000,
        budget=Budget(caps),
        depth=3,
        lease=lease,
    )
    return scheduler, stages, parents, lanes


def add(
    scheduler: Scheduler, stages: bytearray, parents: array[int], lanes: array[int], *jobs: tuple[int, int]
) -> None:
    for stage, parent in jobs:
        stages.append(stage)
        parents.append(parent)
        lanes.append(0)
    scheduler.grow()


def started(scheduler: Scheduler, now_s: float, for_s: float = 0.0) -> list[int]:
    """Jobs that start in a while; a lane about which nothing is known starts its calls one after the other."""
    jobs = []
    for moment in range(1 + round(100 * for_s)):
        while (start := scheduler.next_start(now_s + moment / 100)) is not None:
            jobs.append(start.job)
    return jobs


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["start", "start", "start", "share"]), st.floats(0, 0.3), st.floats(0, 200)
        ),
        max_size=120,
    )
)
def test_no_window_has_more_than_its_shares_and_a_tenth_of_a_second(
    events: list[tuple[str, float, float]],
) -> None:
    rate, now, per_s, most = LeasedRate(), 0.0, 0.0, 0.0
    allowed, calls, points = 0.0, 0, [(0.0, 0)]
    for event, wait_s, value in events:
        now += wait_s
        allowed += per_s * wait_s
        if event == "share":
            per_s = value
            most = max(most, per_s)
            rate.change(per_s, now)
        elif rate.ready_at_s <= now:
            rate.take(1.0, now)
            calls += 1
        points.append((allowed, calls))
    for number, (before, sent) in enumerate(points):
        for after, sent_later in points[number:]:
            assert sent_later - sent <= after - before + CATCH_UP_S * most + 1 + 1e-6


def test_a_share_that_was_tiny_for_a_moment_does_not_bind_for_long() -> None:
    rate = LeasedRate()
    rate.change(1e-6, 0.0)
    rate.take(1.0, 0.0)
    assert rate.ready_at_s > 1e5
    rate.change(10.0, 1.0)
    assert rate.ready_at_s <= 1.1


def test_nothing_starts_without_a_lease_nor_after_it() -> None:
    lease = Lease([("e/m", "e")])
    subject = leased(lease)
    add(*subject, (0, -1), (0, -1))
    assert started(subject[0], 0.0) == []
    lease.renew({"slots": 1.0}, 5.0, 0.0)
    assert started(subject[0], 0.0) == [0]
    lease.renew(SLOTS, 5.0, 1.0)
    assert started(subject[0], 5.0) == []
    assert started(subject[0], 4.9) == [1]


def test_places_of_lane_endpoint_and_all_are_kept() -> None:
    lease = Lease([("e/m", "e")])
    subject = leased(lease)
    add(*subject, *[(0, -1)] * 60)
    lease.renew({**SLOTS, "lane places e/m": 3.0}, 9.0, 0.0)
    assert len(started(subject[0], 0.0, 0.1)) == 3
    lease.renew({**SLOTS, "endpoint places e": 5.0}, 9.0, 1.0)
    assert len(started(subject[0], 1.0, 0.1)) == 2
    lease.renew({"slots": 6.0}, 9.0, 2.0)
    assert len(started(subject[0], 2.0, 0.1)) == 1


def test_a_share_of_a_rate_is_kept_and_names_the_next_start() -> None:
    for pool in ("lane starts e/m", "endpoint starts e"):
        lease = Lease([("e/m", "e")])
        subject = leased(lease)
        add(*subject, *[(0, -1)] * 60)
        lease.renew({**SLOTS, pool: 10.0}, 9.0, 0.0)
        assert len(started(subject[0], 0.0)) == 1
        wake = subject[0].wake_at(0.0)
        assert wake is not None
        assert math.isclose(wake, 0.1)
        assert started(subject[0], 0.05) == []
        assert len(started(subject[0], wake)) == 1
        assert len(started(subject[0], 0.2, 1.0)) in (10, 11)


def test_tokens_are_counted_by_estimate_and_corrected_by_the_answer() -> None:
    lease = Lease([("e/m", "e")])
    scheduler, *_ = subject = leased(lease)
    add(*subject, *[(0, -1)] * 9)
    lease.renew({**SLOTS, "endpoint tokens e": 1500.0}, 99.0, 0.0)
    assert started(scheduler, 0.0, 0.9) == [0]  # the guess is 1500 tokens
    usage = Usage(input_tokens=1000, output_tokens=3500)
    scheduler.answered(0, Completion("x", FinishReason.STOP, usage, 0.5), 0.9)
    assert started(scheduler, 0.9, 2.0) == []
    assert started(scheduler, 3.0) == [1]


def test_jobs_join_and_children_wait_for_their_parents() -> None:
    lease = Lease([("e/m", "e")])
    scheduler, *rest = subject = leased(lease)
    lease.renew(SLOTS, 9.0, 0.0)
    assert not scheduler.finished
    add(*subject, (0, -1), (1, 0))
    assert started(scheduler, 0.0) == [0]
    add(*subject, (1, 0), (0, -1), (1, 3))
    assert started(scheduler, 0.0, 0.1) == [3]
    for job in (0, 3):
        scheduler.answered(job)
        scheduler.committed(job)
    assert sorted(started(scheduler, 1.0, 0.1)) == [1, 2, 4]
    for job in (1, 2, 4):
        scheduler.answered(job)
        scheduler.committed(job)
    assert not scheduler.finished
    lease.is_last = True
    assert scheduler.finished
    assert set(scheduler.states) == {JobState.DONE}
    assert len(rest[0]) == 5


def test_a_starved_worker_says_what_it_needs_and_goes_on_with_more() -> None:
    lease = Lease([("e/m", "e")])
    scheduler, *_ = subject = leased(lease, caps=Caps(usd=Decimal(0)))
    lease.renew(SLOTS, 9.0, 0.0)
    add(*subject, (0, -1), (0, -1))
    worst = Charge(Decimal("0.5"), 1, 10)
    assert started(scheduler, 0.0, 0.05) == [0, 1]
    assert not scheduler.clear(0, worst, 0.0)
    assert not scheduler.is_starved, "the other may be cheaper"
    assert not scheduler.clear(1, Charge(Decimal("0.2"), 1, 10), 0.0)
    assert scheduler.next_start(0.0) is None
    assert scheduler.purse() == Purse(
        Charge(), Charge(Decimal("0.2"), 1, 10), {kind("e/m", 0): Charge(Decimal("0.2"), 1, 10)}, True
    )
    assert not scheduler.draining, "only the coordinator knows whether there is more"
    scheduler.allow(Caps(usd=Decimal("0.5")))
    assert started(scheduler, 1.0) == [0]
    assert scheduler.clear(0, worst, 0.0)
