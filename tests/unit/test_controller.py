"""The law of limits, event by event: no sockets, no clock. Whole servers are played in test_fleet.py."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest

from genworker.core.controller import TUNING, Allowance, Allowances, Call, Controller, Flow, Slowness, Tuning
from genworker.core.hints import Quantity, Quota


class Driver:
    """Begins calls as a lane does, on a clock of its own."""

    def __init__(self, ceiling: int = 256) -> None:
        self.subject = Controller(ceiling)
        self.now = 0.0

    def begin(self, lane: int = 0) -> Call:
        """The next call, as soon as it may begin."""
        for _ in range(1000):
            at_s = self.subject.ready_at_s(lane, self.now)
            assert at_s < math.inf, "it waits for an event"
            if at_s <= self.now:
                return self.subject.begin(lane, 0, self.now)
            self.now = at_s
        raise AssertionError("it never becomes ready")

    def refuse(self, call: Call, hint_s: float | None = None, after_s: float = 0.05) -> None:
        self.now = max(self.now, call.at_s + after_s)
        self.subject.refused(call, hint_s, self.now)

    def answer(self, call: Call, after_s: float = 0.5) -> None:
        self.now = max(self.now, call.at_s + after_s)
        self.subject.answered(call, self.now - call.at_s, self.now)

    def close(self, hint_s: float | None = None) -> None:
        for call in [self.begin() for _ in range(3)]:
            self.refuse(call, hint_s)


def test_an_unknown_endpoint_gets_64_calls_a_second_until_it_answers() -> None:
    driver = Driver()
    calls = [driver.begin() for _ in range(32)]
    assert driver.now == pytest.approx(31 / TUNING.start_per_s, abs=0.01)
    before = driver.subject.rate
    driver.answer(calls[0])
    assert driver.subject.rate > before


def test_the_ceiling_is_never_passed() -> None:
    driver = Driver(ceiling=5)
    calls = [driver.begin() for _ in range(5)]
    assert driver.subject.ready_at_s(0, driver.now) == math.inf
    driver.answer(calls[0])
    driver.begin()


def test_three_refusals_in_a_row_close_it_and_a_hint_holds_the_scouts_only() -> None:
    driver = Driver()
    driver.close(hint_s=20.0)
    subject = driver.subject
    assert subject.closed_s is not None
    closed_at = driver.now
    scout = driver.begin()
    assert driver.now == closed_at  # the first goes at once
    assert subject.ready_at_s(0, driver.now) > driver.now  # and nothing beside it
    driver.refuse(scout, hint_s=300.0)  # a scout's own hint delays its own row only
    assert subject.ready_at_s(0, driver.now) == pytest.approx(closed_at + 20.0)


def test_two_refusals_do_not_close_it() -> None:
    driver = Driver()
    for call in [driver.begin() for _ in range(2)]:
        driver.refuse(call, hint_s=20.0)
    assert driver.subject.closed_s is None


def test_without_a_hint_scouts_go_after_each_further_fifth_of_the_time() -> None:
    driver = Driver()
    driver.close()
    since = driver.subject.closed_s
    assert since is not None
    pauses = []
    for _ in range(30):
        scout = driver.begin()
        began = driver.now
        driver.refuse(scout)
        pauses.append((driver.subject.ready_at_s(0, driver.now) - driver.now) / (driver.now - since))
        assert driver.now >= began
    assert pauses[-1] == pytest.approx(TUNING.scout, rel=0.01)
    assert driver.now - since > 10.0


def test_an_outage_gets_fewer_scouts_than_a_limit() -> None:
    def scouts(is_outage: bool) -> int:
        driver = Driver()
        for call in [driver.begin() for _ in range(3)]:
            driver.subject.refused(call, None, driver.now, is_outage=is_outage)
        count = 0
        while driver.now < 60.0:
            call = driver.begin()
            driver.subject.refused(call, None, driver.now, is_outage=is_outage)
            count += 1
        return count

    assert scouts(is_outage=True) < 28
    assert scouts(is_outage=True) < 0.7 * scouts(is_outage=False)


def test_a_scout_that_is_let_in_with_fewer_out_tells_the_number_at_once() -> None:
    driver = Driver()
    taken = [driver.begin() for _ in range(10)]
    driver.close(hint_s=0.1)
    driver.answer(taken[0], after_s=0.9)
    driver.answer(driver.begin(), after_s=0.5)
    belief = driver.subject.belief(0)
    assert belief.at_once == 10
    assert belief.closed_s is None


def test_one_more_is_tried_at_a_known_number_and_given_up_when_it_is_refused() -> None:
    driver = Driver()
    out = [driver.begin() for _ in range(10)]
    driver.close()
    driver.answer(out.pop(0), after_s=0.9)
    out.append(driver.begin())
    most = 0
    refused = 0
    for _ in range(200):
        driver.now += 0.1
        driver.answer(out.pop(0), after_s=0.2)
        for _ in range(4):
            while driver.subject.ready_at_s(0, driver.now) <= driver.now:
                call = driver.begin()
                if len(out) >= 10:
                    refused += 1
                    driver.refuse(call, after_s=0.01)
                else:
                    out.append(call)
            driver.now += 0.1
        most = max(most, len(out))
    assert most == 10
    assert driver.subject.belief(0).at_once == 10
    assert 2 <= refused <= 30


def test_a_call_is_let_in_once_its_refusal_would_have_been_heard() -> None:
    driver = Driver()
    driver.close()
    scout = driver.begin()
    assert driver.subject.ready_at_s(0, driver.now) == pytest.approx(scout.at_s + 2 * 0.05, abs=0.06)
    driver.now += 0.3
    driver.subject.ready_at_s(0, driver.now)
    assert scout.is_let_in
    assert driver.subject.closed_s is None


def test_calls_that_only_hang_open_it_again_by_an_answer_alone() -> None:
    driver = Driver()
    driver.subject.shut(0, 0.0)
    scout = driver.begin()
    driver.now += 1000.0
    assert driver.subject.ready_at_s(0, driver.now) == math.inf
    driver.answer(scout)
    assert driver.subject.closed_s is None


def test_a_lane_that_is_refused_while_the_other_is_not_gets_a_controller_of_its_own() -> None:
    driver = Driver()
    for number in range(60):
        call = driver.begin(lane=number % 2)
        if number % 2:
            driver.answer(call, after_s=0.01)
        elif number > 20:
            driver.refuse(call)
        else:
            driver.answer(call, after_s=0.01)
        if driver.subject.apart is not None:
            break
    assert driver.subject.apart == 0
    assert driver.subject.belief(1).per_min is None


def test_lanes_that_are_refused_alike_share_what_they_learn() -> None:
    driver = Driver()
    for number in range(200):
        call = driver.begin(lane=number % 2)
        (driver.refuse if number % 4 > 1 else driver.answer)(call)
    assert driver.subject.apart is None


def test_a_change_of_mind_comes_with_its_evidence() -> None:
    driver = Driver()
    driver.close(hint_s=2.0)
    (change,) = driver.subject.changes
    assert (change.lane, change.what) == (0, "closed")
    assert change.why == "3 calls in a row were refused, asked to wait 2 s"


def test_equal_events_give_equal_decisions() -> None:
    def trace() -> list[float]:
        driver = Driver()
        found = []
        for number in range(300):
            call = driver.begin()
            found.append(call.at_s)
            (driver.refuse if number % 7 == 0 else driver.answer)(call)
        return found

    assert trace() == trace()


# Slowness


def feed(slow: Slowness, latency_s: float, level: int, calls: int = 64) -> None:
    driver = Controller(256)
    batch = [Call(driver, seq, 0.0, 0, 0, level, level) for seq in range(calls)]
    for call in batch:
        slow.begin(call)
    for call in batch:
        slow.answered(call, latency_s)


def test_a_server_that_queues_is_asked_less() -> None:
    slow = Slowness()
    feed(slow, 1.0, 16)
    feed(slow, 4.0, 64, 256)
    assert slow.cap <= 32
    assert slow.is_holding


def test_fewer_calls_are_tried_until_that_is_no_faster() -> None:
    slow = Slowness()
    feed(slow, 1.0, 16)
    for _ in range(12):
        level = min(128, slow.limit)
        feed(slow, max(1.0, level / 8), level, 2 * max(16, level // 2))
    assert 6 <= slow.limit <= 14


def test_slowness_that_fewer_calls_do_not_mend_is_not_ours() -> None:
    slow = Slowness()
    feed(slow, 1.0, 16)
    feed(slow, 3.0, 64, 256)
    assert slow.cap < math.inf
    feed(slow, 3.0, slow.limit, 128)
    assert slow.cap == math.inf
    assert not slow.is_holding


# Limits that are told


def test_a_configured_rate_is_spread_evenly() -> None:
    allowance = Allowance(120.0)
    now = 0.0
    for _ in range(50):
        now = max(now, allowance.ready_at_s)
        allowance.take(1.0, now)
    assert now == pytest.approx(49 / (2 * TUNING.share), rel=0.01)


def test_an_announced_allowance_is_used_up_while_much_of_it_is_left() -> None:
    allowance = Allowance()
    assert allowance.per_s == math.inf
    allowance.announce(600.0, 0.9, 0.0)
    assert allowance.per_s == pytest.approx(10.0 * TUNING.share, rel=0.15)
    for second in range(1, 20):
        allowance.announce(600.0, 0.8, float(second))
    assert allowance.per_s > 30.0
    allowance.announce(600.0, 0.2, 21.0)
    assert allowance.per_s == pytest.approx(10.0 * TUNING.share)


def test_tokens_are_counted_by_estimate_and_settled_by_the_answer() -> None:
    allowances = Allowances(None, 6000.0, 1)
    allowances.take(0, 0.0)
    first = allowances.ready_at_s
    assert first == pytest.approx(1500 / (100 * TUNING.share), rel=0.01)
    assert allowances.settle(0, 100, 100) == -1300
    assert allowances.ready_at_s < first
    assert allowances.guess(Quantity.TOKENS, 0) == 200


def test_an_announced_number_at_once_is_told() -> None:
    allowances = Allowances(None, None, 1)
    allowances.heed([Quota(Quantity.AT_ONCE, 3.0, None)], 0.0)
    assert allowances.at_once == 3


def test_a_late_start_regains_a_little() -> None:
    flow = Flow(catch_up_s=0.1)
    flow.take(1.0, 10.0, 5.0)
    assert flow.ready_at_s == pytest.approx(5.0)


def test_every_number_of_the_law_has_a_unit_or_is_a_share() -> None:
    for entry in fields(Tuning):
        assert getattr(TUNING, entry.name) > 0


def test_a_number_at_the_ceiling_can_be_tried_for_ever() -> None:
    driver = Driver(ceiling=1)
    driver.subject.number = driver.subject._tried = 1.0
    for _ in range(20_000):
        driver.answer(driver.begin(), after_s=0.1)
    assert driver.subject.limit == 1


def test_a_refusal_ends_going_faster_than_what_is_announced() -> None:
    allowance = Allowance()
    for second in range(20):
        allowance.announce(600.0, 1.0, float(second))
    assert allowance.per_s > 30.0
    allowance.announce(600.0, 1.0, 20.0, refused_by_chance=0.01)
    assert allowance.per_s == pytest.approx(10.0, rel=0.05)
    allowance.announce(600.0, 1.0, 20.6)
    assert allowance.per_s == pytest.approx(10.0, rel=0.05)  # not at once again
    allowance.announce(600.0, 1.0, 30.0)
    assert allowance.per_s > 10.3
