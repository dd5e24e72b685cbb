"""Decisions about starts, retries, lanes and money: no clock, no disk."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from decimal import Decimal
from typing import Literal

import pytest

from genworker.core.budget import Budget, Caps, Charge
from genworker.core.completion import Completion, FinishReason, Usage
from genworker.core.lane import LaneSpec, Wait
from genworker.core.scheduler import (
    LEAD_S,
    NO_LANE,
    EndpointSpec,
    GiveUp,
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
from support.simulation import Model, play

CALL = Charge(Decimal("0.01"), 1, 10)


def answer() -> Completion:
    return Completion("text", FinishReason.STOP, Usage(5, 5), 1.0)


def scheduler(
    stages: Sequence[int] = (0,),
    parents: Sequence[int] | None = None,
    lanes: Sequence[int] | None = None,
    specs: Sequence[LaneSpec] = (LaneSpec(0, "one"),),
    endpoints: int = 1,
    concurrency: int = 64,
    window: int = 512,
    retry: RetryPolicy | None = None,
    budget: Budget | None = None,
) -> Scheduler:
    count = len(stages)
    return Scheduler(
        stages=stages,
        parents=array("i", parents if parents is not None else [-1] * count),
        lanes=array("h", lanes if lanes is not None else [0] * count),
        selected=b"\x01" * count,
        lane_specs=specs,
        endpoints=[EndpointSpec(concurrency)] * endpoints,
        max_concurrency=concurrency * endpoints,
        retry=retry,
        budget=budget,
        window=window,
    )


def start(subject: Scheduler, now_s: float = 0.0) -> int:
    """Start one job and clear it; the clock runs until it may."""
    began = subject.next_start(now_s)
    assert began is not None
    assert subject.clear(began.job, CALL, now_s)
    return began.job


def start_all(subject: Scheduler, now_s: float = 0.0, until_s: float | None = None) -> list[int]:
    """Start what may start up to `until_s`."""
    started = []
    while True:
        began = subject.next_start(now_s)
        if began is not None:
            if subject.clear(began.job, CALL, now_s):
                started.append(began.job)
            continue
        wake = subject.wake_at(now_s)
        if wake is None or wake > (now_s if until_s is None else until_s):
            return started
        now_s = wake


def done(subject: Scheduler, job: int, now_s: float = 1.0) -> None:
    subject.answered(job, answer(), now_s, CALL)
    subject.committed(job)


def test_a_child_is_ready_when_its_parent_is_committed() -> None:
    subject = scheduler([0, 1], [-1, 0])
    assert start_all(subject, until_s=1.0) == [0]
    subject.answered(0, answer(), 1.0, CALL)
    assert subject.next_start(2.0) is None
    subject.committed(0)
    assert start(subject, 2.0) == 1


def test_the_latest_stage_goes_first_when_many_children_are_ready() -> None:
    stages, parents = [0, 0, 0, 1, 1], [-1, -1, -1, 0, 1]
    for window, order in ((0, [3, 4, 2]), (512, [2, 3, 4])):
        subject = scheduler(stages, parents, window=window, concurrency=2)
        for job in (start(subject), start(subject, 1.0)):
            done(subject, job, 1.0)
        taken: list[int] = []
        for _ in range(3):
            job = start(subject, 2.0 + len(taken))
            taken.append(job)
            subject.answered(job, answer(), 2.5, CALL)
        assert taken == order


def test_copies_need_no_slot_and_no_lane() -> None:
    subject = scheduler([0, 1], [-1, 0], [0, NO_LANE], concurrency=1)
    done(subject, start(subject))
    began = subject.next_start(1.0)
    assert began is not None
    assert began.job == 1
    assert subject.in_flight == 0


def test_a_hint_delays_its_call_and_three_in_a_row_close_its_lane_and_no_other() -> None:
    specs = (LaneSpec(0, "one"), LaneSpec(1, "two"))
    subject = scheduler([0] * 6, lanes=[0, 1] * 3, specs=specs, endpoints=2)
    first = start(subject)
    decision = subject.refused(first, RateLimitedError("429", retry_after_s=90.0, status=429), 0.0)
    assert decision == Retry(90.0)
    assert subject.paused_lanes(0.0) == []
    assert subject.waits(0.0) == []
    assert set(start_all(subject, 0.0, 10.0)) == {1, 2, 3, 4, 5}
    for job in (2, 4):
        subject.refused(job, RateLimitedError("429", retry_after_s=90.0, status=429), 10.0)
    assert subject.paused_lanes(10.0) == []  # a scout goes at once, when a row is ready
    began = subject.next_start(90.0)
    assert began is not None
    assert began.job == 0
    assert subject.clear(0, CALL, 90.0)
    subject.refused(0, RateLimitedError("429", retry_after_s=5.0, status=429), 90.5)
    assert subject.paused_lanes(90.5) == [("one", 9.5)]
    assert subject.waits(90.5) == [Wait("one", "429", 90.5, 9.5)]


def test_a_lane_whose_few_rows_are_all_put_off_waits_and_says_why() -> None:
    subject = scheduler([0, 0])
    jobs = start_all(subject, 0.0, 1.0)
    subject.refused(jobs[0], ProviderUnavailableError("HTTP 503: full", retry_after_s=30.0), 1.0)
    assert subject.waits(1.0) == []  # the other one is still asked
    subject.refused(jobs[1], ProviderUnavailableError("HTTP 503: still full", retry_after_s=60.0), 2.0)
    (wait,) = subject.waits(4.0)
    assert (wait.why, wait.for_s, wait.left_s) == ("HTTP 503: still full", 3.0, 27.0)
    again = subject.next_start(31.0)
    assert again is not None
    assert subject.clear(again.job, CALL, 31.0)
    subject.answered(again.job, Completion("text", FinishReason.STOP, Usage(1, 1), 0.1), 32.0)
    assert subject.waits(32.0) == []


def test_a_hint_beyond_the_patience_stops_the_lane() -> None:
    subject = scheduler([0, 0], retry=RetryPolicy(max_wait_s=600))
    decision = subject.refused(start(subject), RateLimitedError("429", retry_after_s=7200.0, status=429), 0.0)
    assert isinstance(decision, GiveUp)
    assert "2 h 0 min" in decision.reason
    assert decision.stopped == ("one",)
    assert subject.state(1) is JobState.STOPPED
    assert subject.finished


def test_a_lane_that_refuses_for_too_long_is_stopped() -> None:
    subject = scheduler([0] * 3, retry=RetryPolicy(max_wait_s=30))
    now = 0.0
    while not subject.finished:
        began = subject.next_start(now)
        if began is None:
            wake = subject.wake_at(now)
            assert wake is not None
            now = wake
            continue
        assert subject.clear(began.job, CALL, now)
        subject.refused(began.job, RateLimitedError("429", retry_after_s=1.0, status=429), now)
        assert now < 120
    assert "refused for" in (subject.lanes()[0].stopped or "")


def test_transport_and_content_have_budgets_of_their_own() -> None:
    subject = scheduler(retry=RetryPolicy(transport=2, content=1, breaker_calls=50))
    now = 0.0
    outage = ProviderUnavailableError("HTTP 503", status=503, may_be_billed=True)
    torn = MalformedAnswerError("half", body="{")
    for error in (outage, torn, outage):
        decision = subject.refused(start(subject, now), error, now)
        assert isinstance(decision, Retry)
        now = decision.at_s
    decision = subject.refused(start(subject, now), torn, now)
    assert decision == GiveUp("half (after 4 tries)")
    assert subject.budget.spent == Charge(4 * CALL.usd, 4, 4 * CALL.tokens)


def test_a_refusal_costs_a_call_and_no_money() -> None:
    subject = scheduler()
    subject.refused(start(subject), RateLimitedError("429", status=429), 0.0)
    assert subject.budget.spent == Charge(calls=1)
    assert subject.budget.reserved == Charge()


def test_an_outage_is_the_lanes_fault_and_costs_no_row_its_tries() -> None:
    policy = RetryPolicy(transport=1, breaker_calls=4, outage_s=60.0)
    subject = scheduler([0] * 8, retry=policy, concurrency=8)
    now = 0.0
    failures = 0
    while now < 50.0:
        for job in start_all(subject, now, now):
            subject.refused(job, ProviderUnavailableError("HTTP 503", status=503), now)
            failures += 1
        wake = subject.wake_at(now)
        assert wake is not None
        now = wake
    assert failures < 25
    assert all(subject.state(job) is not JobState.FAILED for job in range(8))
    while not subject.finished:
        for job in start_all(subject, now, now + 30.0):
            done(subject, job, now)
        now += 30.0
    assert all(subject.state(job) is JobState.DONE for job in range(8))


def test_a_lane_that_only_fails_is_stopped_with_the_reason() -> None:
    subject = scheduler([0] * 8, retry=RetryPolicy(breaker_calls=4, outage_s=60.0))
    now = 0.0
    while not subject.finished:
        for job in start_all(subject, now, now):
            subject.refused(job, ProviderUnavailableError("HTTP 503", status=503), now)
        now = subject.wake_at(now) or now
        assert now < 200.0
    ((name, reason),) = subject.stopped_lanes()
    assert name == "one"
    assert reason == "the last 4 calls failed: HTTP 503"


def test_an_endpoint_that_wants_no_key_stops_all_its_lanes() -> None:
    specs = (LaneSpec(0, "one"), LaneSpec(0, "two"), LaneSpec(1, "other"))
    subject = scheduler([0] * 3, lanes=[0, 1, 2], specs=specs, endpoints=2)
    job = start(subject)
    decision = subject.refused(job, RequestRejectedError("HTTP 401", scope=Scope.ENDPOINT, status=401), 0.0)
    assert decision == GiveUp("HTTP 401", stopped=("one", "two"))
    assert subject.state(1) is JobState.STOPPED
    assert subject.state(2) is JobState.READY


def test_a_row_that_is_refused_for_good_goes_to_the_fallback_once() -> None:
    specs = (LaneSpec(0, "one", fallback=1), LaneSpec(1, "two", fallback=0))
    subject = scheduler([0], lanes=[0], specs=specs, endpoints=2)
    decision = subject.refused(start(subject), RequestRejectedError("HTTP 400"), 0.0)
    assert decision == Retry(0.0, lane="two")
    assert subject.lane_of(0) == 1
    decision = subject.refused(start(subject, 1.0), RequestRejectedError("HTTP 422"), 1.0)
    assert decision == GiveUp("HTTP 422")


def test_a_stopped_lanes_rows_go_to_the_fallback() -> None:
    specs = (LaneSpec(0, "one", fallback=1), LaneSpec(1, "two"))
    subject = scheduler([0, 0, 1], [-1, -1, 0], [0, 0, 0], specs, endpoints=2)
    decision = subject.refused(start(subject), RequestRejectedError("HTTP 404", scope=Scope.LANE), 0.0)
    assert isinstance(decision, Retry)
    for job in start_all(subject, 1.0, 2.0):
        done(subject, job, 2.0)
    assert start_all(subject, 3.0, 4.0) == [2]
    assert [subject.lane_of(job) for job in range(3)] == [1, 1, 1]


def test_what_does_not_fit_the_cap_waits_for_what_is_out() -> None:
    budget = Budget(Caps(usd=Decimal("0.02")))
    subject = scheduler([0] * 5, budget=budget)
    cheap = Charge(Decimal("0.001"), 1, 10)
    assert start_all(subject, until_s=1.0) == [0, 1]
    now, made = 1.0, 2
    out = [0, 1]
    while out:
        subject.answered(out.pop(), answer(), now, cheap)
        subject.committing -= 1
        started = start_all(subject, now, now + 1.0)
        made += len(started)
        out += started
        now += 1.0
    assert made == 5
    assert budget.spent.usd == Decimal("0.005")


def test_what_fits_by_now_is_not_held_up_by_what_does_not() -> None:
    subject = scheduler([0] * 3, budget=Budget(Caps(usd=Decimal("0.03"))))
    first = start(subject)
    small, large = (subject.next_start(1.0 + number) for number in range(2))
    assert small is not None
    assert large is not None
    assert not subject.clear(small.job, Charge(Decimal("0.025"), 1), 2.0)
    assert not subject.clear(large.job, Charge(Decimal("0.03"), 1), 2.0)
    subject.answered(first, answer(), 3.0, Charge(Decimal("0.001"), 1))
    again = subject.next_start(4.0)
    assert again is not None
    assert again.job == small.job
    assert subject.clear(again.job, Charge(Decimal("0.025"), 1), 4.0)


def test_at_the_cap_the_run_drains() -> None:
    budget = Budget(Caps(calls=2))
    subject = scheduler([0] * 5, budget=budget)
    for job in start_all(subject, until_s=1.0):
        done(subject, job)
    assert start_all(subject, 2.0, 3.0) == []
    assert subject.finished
    assert subject.capped == "--max-calls 2"
    assert sum(subject.state(job) is JobState.DONE for job in range(5)) == 2


def test_the_first_call_of_a_shared_prompt_goes_ahead() -> None:
    subject = scheduler([0] * 3)
    starts: list[tuple[float, int]] = []
    now = 0.0
    while len(starts) < 3:
        began = subject.next_start(now)
        if began is None:
            wake = subject.wake_at(now)
            assert wake is not None
            now = wake
        elif subject.clear(began.job, CALL, now, "essay"):
            starts.append((now, began.job))
    assert starts[0] == (0.0, 0)
    assert {job for _, job in starts[1:]} == {1, 2}
    assert all(LEAD_S <= at_s < LEAD_S + 0.2 for at_s, _ in starts[1:])


def test_one_lane_that_hangs_leaves_slots_to_the_others() -> None:
    specs = (LaneSpec(0, "hangs"), LaneSpec(0, "works"))
    subject = scheduler([0] * 100, lanes=[0] * 80 + [1] * 20, specs=specs, concurrency=16)
    started = start_all(subject, until_s=5.0)
    assert any(job >= 80 for job in started)
    for job in [job for job in started if job >= 80]:
        done(subject, job)
    assert [job for job in start_all(subject, 10.0, 15.0) if job >= 80]


@pytest.mark.parametrize("attempt", [1, 2, 10, 1000, 10**6])
def test_pauses_stay_within_the_cap(attempt: int) -> None:
    policy = RetryPolicy(base_s=0.5, cap_s=20.0)
    assert 0.0 <= policy.pause_s(attempt, 0.0) <= policy.pause_s(attempt, 0.999999) <= 20.0


def test_equal_events_give_equal_decisions() -> None:
    model = Model(sigma=0.8, rpm=3000, failure_rate=0.1)
    first, second = (play([model], lineages=200, seed=4) for _ in range(2))
    assert first.answers == second.answers
    assert first.makespan_s == second.makespan_s


def test_a_row_that_comes_back_does_not_stand_in_the_way_of_one_whose_money_is_reserved() -> None:
    cent = Charge(usd=Decimal("0.01"), calls=1)
    subject = scheduler([0] * 4, budget=Budget(Caps(usd=Decimal("0.02"))))
    began = [subject.next_start(float(number)) for number in range(4)]
    now = 4.0
    cleared = [subject.clear(found.job, cent, now) for found in began if found is not None]
    assert cleared == [True, True, False, False]
    subject.refused(0, RateLimitedError("429", retry_after_s=1.0, status=429), now)
    subject.answered(1, answer(), now, cent)
    subject.committed(1)
    again = subject.next_start(now + 1.0)
    assert again is not None
    assert again.job == 2


# Scaled-down scenarios in virtual time; bench/simulate.py prints the whole ones.


def test_a_rate_limit_is_met_closely_with_few_refusals() -> None:
    for model in (
        Model(0.1, rpm=1200),
        Model(0.5, rpm=1200, schedule=((0, 1), (10, 0.5), (20, 1))),
        Model(0.1, tpm=840_000),
    ):
        played = play([model], lineages=600, stages=1)
        ideal = 35.0 if model.schedule else 30.0
        assert played.done() == 600
        # A limit that moves has to be found again each time.
        assert played.makespan_s <= (1.2 if model.schedule else 1.15) * ideal
        assert played.refused_share < (0.08 if model.schedule else 0.05)


def test_announced_limits_draw_hardly_any_refusal() -> None:
    for model in (Model(0.1, rpm=1200, announce=True), Model(0.1, tpm=840_000, announce=True)):
        played = play([model], lineages=600, stages=1)
        assert played.makespan_s <= 1.15 * 30.0
        assert played.refused_share < 0.01


def test_a_server_that_slows_down_is_not_pushed() -> None:
    played = play([Model(0.5, slow_above=32)], lineages=2000, stages=1)
    server = played.servers[0]
    assert played.makespan_s <= 1.1 * sum(server.floor) / 32
    assert sum(server.latencies) < 2 * sum(server.floor)


def test_a_server_that_takes_forty_at_once() -> None:
    played = play([Model(0.5, at_once=40)], lineages=2000, stages=1)
    assert played.done() == 2000
    assert played.makespan_s <= 1.1 * sum(played.servers[0].floor) / 40
    assert played.refused_share < 0.015


@pytest.mark.parametrize("seed", range(3))
def test_refusals_that_do_not_depend_on_the_rate_do_not_slow_a_lane_down_for_long(seed: int) -> None:
    played = play([Model(0.5, refusal_rate=0.08, hint_s=0.3)], lineages=2000, stages=1, seed=seed)
    assert played.done() == 2000
    # Taken for a limit, they would cost four minutes; the ideal is 4.3 s.
    assert played.makespan_s < 10.0


@pytest.mark.parametrize("window", ["bucket", "sliding", "fixed"])
def test_a_minute_is_counted_in_several_ways(window: Literal["bucket", "sliding", "fixed"]) -> None:
    played = play([Model(0.1, rpm=1200, window=window, window_s=60)], lineages=2400, stages=1)
    assert played.makespan_s < 1.25 * 60
    assert played.refused_share < 0.06


@pytest.mark.parametrize("fails_with_429", [False, True])
def test_an_endpoint_that_is_down_does_not_hold_up_the_other(fails_with_429: bool) -> None:
    good, bad = Model(0.8), Model(0.8, failing=(0, 60), fails_with_429=fails_with_429)
    alone = play([good], lineages=500, concurrency=64)
    both = play([good, bad], lineages=1000, concurrency=64)
    assert both.lane_ends_s[0] <= 1.02 * alone.makespan_s
    assert both.done() == 3000


@pytest.mark.parametrize("seed", range(3))
def test_lineages_end_near_the_bound_and_a_barrier_does_not(seed: int) -> None:
    heavy = Model(0.8, 0.8)
    played = play([heavy], lineages=2000, seed=seed)
    assert played.makespan_s <= 1.45 * played.bound_s
    held = play([heavy], lineages=2000, seed=seed, barrier=True)
    assert held.makespan_s >= 1.6 * held.bound_s


def test_a_handed_over_row_is_the_fallbacks_own() -> None:
    """The lanes' counts of open rows say who still has work: they decide about shared slots and beliefs."""
    specs = (LaneSpec(0, "one", fallback=1), LaneSpec(1, "two"))
    subject = scheduler([0, 0], lanes=[0, 0], specs=specs, endpoints=2)
    job = start(subject)
    refusal = RequestRejectedError("no", scope=Scope.ROW)
    assert subject.refused(job, refusal, 1.0) == Retry(1.0, "two")
    assert [lane.open_jobs for lane in subject.lanes()] == [1, 1]
    done(subject, start(subject, 2.0), 3.0)
    done(subject, start(subject, 4.0), 5.0)
    assert [lane.open_jobs for lane in subject.lanes()] == [0, 0]
    assert subject.finished


def test_a_row_whose_prompt_cannot_be_made_gives_its_slot_back() -> None:
    subject = scheduler([0, 0], concurrency=1)
    began = subject.next_start(0.0)
    assert began is not None
    subject.failed_before_call(began.job, "its template has no file")
    assert (subject.in_flight, subject.state(began.job)) == (0, JobState.FAILED)
    assert start(subject, 1.0) != began.job


def test_a_lane_that_is_stopped_elsewhere_stops_here_once() -> None:
    subject = scheduler([0, 0, 1], [-1, -1, 0])
    job = start(subject)
    subject.stop_lane("two", "of another endpoint")
    assert subject.stopped_lanes() == []
    subject.stop_lane("one", "another worker found it out")
    subject.stop_lane("one", "a later reason is no news")
    assert subject.stopped_lanes() == [("one", "another worker found it out")]
    # What is out may still arrive; what waits ends, with the reason.
    assert [subject.state(other) for other in range(3)] == [
        JobState.RUNNING,
        JobState.STOPPED,
        JobState.WAITING,
    ]
    assert "another worker found it out" in subject.reasons[1]
    done(subject, job)
    assert subject.state(2) is JobState.STOPPED
    assert subject.finished


def test_ended_rows_are_told_once() -> None:
    subject = scheduler([0, 0])
    for job in start_all(subject, until_s=1.0):
        done(subject, job, 2.0)
    assert sorted(subject.take_ended()) == [0, 1]
    assert subject.take_ended() == []


def test_what_costs_twice_what_is_left_waits_for_the_calls_that_are_out() -> None:
    subject = scheduler([0, 0], budget=Budget(Caps(usd=Decimal("0.015"))))
    first = start(subject)
    began = subject.next_start(1.0)
    assert began is not None
    assert not subject.clear(began.job, CALL, 1.0)
    assert subject.state(began.job) is JobState.PARKED
    assert (subject.in_flight, subject.capped) == (1, None)
    subject.answered(first, answer(), 2.0, Charge(Decimal("0.001"), 1, 10))
    subject.committed(first)
    assert start(subject, 3.0) == began.job  # the worst case was more than the answer cost
    done(subject, began.job, 4.0)
    assert subject.finished
    assert subject.capped is None
