"""Refusals by meaning and outages with few rows, in the scheduler, at times that a test chooses."""

from __future__ import annotations

from array import array

import pytest

from genworker.core.completion import Completion, FinishReason, Usage
from genworker.core.lane import LaneSpec
from genworker.core.scheduler import EndpointSpec, GiveUp, Retry, RetryPolicy, Scheduler
from genworker.core.trust import EQUAL_REFUSALS, FIRST_CALLS
from genworker.errors import ProviderUnavailableError, RequestRejectedError, Scope

ANSWER = Completion("text", FinishReason.STOP, Usage(1, 1), 0.1)


def scheduler(
    rows: int, *, lanes: int = 1, at_once: int = 8, first_calls: int = 0, **policy: float
) -> Scheduler:
    """Drafts, dealt out to lanes of one endpoint in turn."""
    return Scheduler(
        stages=bytes(rows),
        parents=array("i", [-1]) * rows,
        lanes=array("h", [row % lanes for row in range(rows)]),
        selected=bytes([1]) * rows,
        lane_specs=[LaneSpec(0, f"e/m{lane}", first_calls=first_calls) for lane in range(lanes)],
        endpoints=[EndpointSpec(at_once)],
        max_concurrency=at_once,
        retry=RetryPolicy(**policy),  # type: ignore[arg-type]
    )


def start(made: Scheduler, now_s: float) -> int:
    """Begin a job now, or as soon as the rate of an unknown lane lets it."""
    begun = next(filter(None, (made.next_start(now_s + step / 100) for step in range(20))), None)
    assert begun is not None
    return begun.job


def answer(made: Scheduler, now_s: float) -> None:
    job = start(made, now_s)
    made.answered(job, ANSWER, now_s)
    made.committed(job)


def forbidden(words: str = "no entry") -> RequestRejectedError:
    return RequestRejectedError(f"HTTP 403: {words}", scope=Scope.ENDPOINT)


@pytest.mark.parametrize("rows", [1, 3])
def test_an_outage_of_a_minute_costs_no_row_however_few_there_are(rows: int) -> None:
    made = scheduler(rows)
    now_s, failures = 0.0, 0
    while not made.finished:
        begun = made.next_start(now_s)
        if begun is None:
            wake_s = made.wake_at(now_s)
            assert wake_s is not None
            assert wake_s < 120
            now_s = wake_s
        elif now_s < 60:
            failures += 1
            decision = made.refused(begun.job, ProviderUnavailableError("gone"), now_s)
            assert isinstance(decision, Retry)
        else:
            made.answered(begun.job, ANSWER, now_s)
            made.committed(begun.job)
    assert failures > 6 * rows  # more than the tries of a row
    assert now_s < 60 + 17
    assert not made.reasons


def test_a_row_that_alone_fails_has_its_tries_and_no_more() -> None:
    made = scheduler(2000, at_once=2)
    bad, now_s, tries = start(made, 0.0), 0.0, 0
    while True:
        tries += 1
        if isinstance(made.refused(bad, ProviderUnavailableError("gone"), now_s), GiveUp):
            break
        while True:
            now_s += 0.5
            begun = made.next_start(now_s)
            if begun is not None and begun.job == bad:
                break
            if begun is not None:
                made.answered(begun.job, ANSWER, now_s)
                made.committed(begun.job)
    assert tries == 6


def test_an_outage_that_lasts_ends_the_row() -> None:
    made = scheduler(1, outage_s=30)
    now_s = 0.0
    while True:
        begun = made.next_start(now_s)
        if begun is None:
            wake_s = made.wake_at(now_s)
            assert wake_s is not None
            now_s = wake_s
            continue
        if isinstance(made.refused(begun.job, ProviderUnavailableError("gone"), now_s), GiveUp):
            break
    assert 30 <= now_s < 50


def test_a_bare_403_stops_an_endpoint_that_has_answered_nothing() -> None:
    made = scheduler(4, lanes=2)
    decision = made.refused(start(made, 0.0), forbidden(), 0.0)
    assert set(decision.stopped) == {"e/m0", "e/m1"}


def test_a_bare_403_after_answers_is_about_its_row_until_it_comes_a_handful_of_times() -> None:
    made = scheduler(20)
    answer(made, 0.0)
    for number in range(EQUAL_REFUSALS - 1):
        assert not made.refused(start(made, 1.0), forbidden(f"no entry {number}"), 1.0).stopped
    answer(made, 2.0)
    for _ in range(EQUAL_REFUSALS - 1):
        assert not made.refused(start(made, 3.0), forbidden(), 3.0).stopped
    decision = made.refused(start(made, 3.0), forbidden(), 3.0)
    assert decision.stopped == ("e/m0",)
    assert isinstance(decision, GiveUp)
    assert "5 calls in a row were refused alike: HTTP 403: no entry" in decision.reason


def test_long_after_the_last_answer_a_bare_401_is_about_the_key() -> None:
    made = scheduler(4)
    answer(made, 0.0)
    assert made.refused(start(made, 100.0), forbidden(), 100.0).stopped


def test_an_empty_purse_stops_the_endpoint_at_once() -> None:
    made = scheduler(4, lanes=2)
    answer(made, 0.0)
    error = RequestRejectedError("HTTP 400: credit", scope=Scope.ENDPOINT, is_sure=True)
    assert len(made.refused(start(made, 0.1), error, 0.1).stopped) == 2


def test_a_handful_of_equal_400s_stops_a_lane_that_has_answered_nothing() -> None:
    made = scheduler(20)
    error = RequestRejectedError("HTTP 400: seed is not known here")
    stopped = [made.refused(start(made, 0.0), error, 0.0).stopped for _ in range(EQUAL_REFUSALS)]
    assert stopped == [()] * (EQUAL_REFUSALS - 1) + [("e/m0",)]


def test_what_is_about_an_input_stops_nothing_however_often_it_comes() -> None:
    made = scheduler(50)
    error = RequestRejectedError("HTTP 403: flagged", about_input=True)
    assert not any(made.refused(start(made, at), error, at).stopped for at in range(40))


def test_different_400s_do_not_stop_a_lane() -> None:
    made = scheduler(30)
    for word in ("alpha", "beta", "gamma", "delta") * 3:
        assert not made.refused(start(made, 0.0), RequestRejectedError(f"HTTP 400: {word}"), 0.0).stopped


def test_a_lane_of_which_nothing_is_known_begins_with_a_few_calls() -> None:
    made = scheduler(20, first_calls=FIRST_CALLS)
    first = [start(made, 0.0) for _ in range(FIRST_CALLS)]
    assert made.next_start(0.5) is None
    assert made.wake_at(0.5) == 1.0  # a slow model loses no more time
    start(made, 1.0)
    made.answered(first[0], ANSWER, 1.1)
    start(made, 1.1)


def test_the_lanes_of_an_endpoint_that_has_not_answered_begin_with_a_few_calls_together() -> None:
    made = scheduler(20, lanes=4, first_calls=FIRST_CALLS)
    first = [start(made, 0.0) for _ in range(FIRST_CALLS)]
    assert made.next_start(0.5) is None
    assert made.wake_at(0.5) == 1.0
    made.answered(first[0], ANSWER, 0.6)
    # The key is good; the names of the other models may still be wrong.
    begun = [start(made, 0.6) for _ in range(5)]
    assert all(sum(job % 4 == lane for job in begun) <= FIRST_CALLS for lane in (1, 2, 3))


def test_an_answer_opens_the_lane_at_once() -> None:
    made = scheduler(20, first_calls=FIRST_CALLS)
    first = [start(made, 0.0) for _ in range(FIRST_CALLS)]
    made.answered(first[0], ANSWER, 0.1)
    assert [start(made, 0.1 + step / 100) for step in range(6)]
