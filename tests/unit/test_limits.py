"""The limit of calls at once, and the rates."""

from __future__ import annotations

import itertools
import math
from collections import deque

import pytest

from genworker.core.limits import START, LaneLimit
from genworker.core.noise import BETS, FORGIVEN, SAMPLE, Noise
from genworker.core.rates import MOST_CUT, SCOUT_S, SHARE, StartRate, TokenRate


def fill(limit: LaneLimit) -> list[int]:
    """Admit as many as there is room for."""
    rounds = []
    while limit.has_room:
        rounds.append(limit.admit(0))
    return rounds


def serve(limit: LaneLimit, answers: int, *, from_s: float = 0.0, per_s: float = 100.0) -> None:
    """Keep the lane full for so many clean answers, then let it run empty."""
    out = deque(fill(limit))
    for number in range(answers):
        limit.answered(out.popleft(), 0, 1.0, from_s + number / per_s)
        out.extend(fill(limit))
    while out:
        limit.failed(out.popleft(), 0)


def test_it_starts_low_and_grows_while_it_is_full_and_clean() -> None:
    limit = LaneLimit(256)
    assert limit.limit == START
    serve(limit, START)
    grown = limit.limit
    assert START < grown <= 3 * START
    serve(limit, 2000)
    assert limit.limit == 256


def test_a_configured_ceiling_is_never_passed() -> None:
    limit = LaneLimit(5)
    serve(limit, 200)
    assert limit.limit == 5


def test_a_lane_that_is_not_full_does_not_grow() -> None:
    limit = LaneLimit(256)
    for _ in range(100):
        limit.answered(limit.admit(0), 0, 1.0, 0.0)
    assert limit.limit == START


def test_a_burst_of_refusals_is_one_cut() -> None:
    limit = LaneLimit(256)
    serve(limit, 2000)
    rounds = fill(limit)
    for number in rounds[128:]:
        limit.refused(number, 0, 10.0)
    after_first = limit.limit
    assert 100 <= after_first < 256
    for number in rounds[:128]:
        limit.refused(number, 0, 10.0)
    assert limit.limit == after_first


def test_it_recovers_after_a_cut_and_probes_beyond() -> None:
    limit = LaneLimit(256)
    serve(limit, 2000)
    rounds = fill(limit)
    limit.refused(rounds[-1], 0, 10.0)
    for number in rounds[:-1]:
        limit.answered(number, 0, 1.0, 10.0)
    low = limit.limit
    serve(limit, 5000, from_s=100.0)
    assert limit.limit == 256 > low


def test_outages_stop_growth_and_never_cut() -> None:
    limit = LaneLimit(256)
    serve(limit, START)
    before = limit.limit
    for number in fill(limit):
        limit.failed(number, 0, trouble=True)
    assert limit.limit == before
    for number in fill(limit)[: before // 2]:
        limit.answered(number, 0, 1.0, 0.0)
    assert limit.limit == before


def test_refusals_of_everything_go_down_to_one_and_come_back() -> None:
    limit = LaneLimit(64)
    serve(limit, 2000)
    for second in range(60):
        number = limit.admit(0)
        limit.refused(number, 0, float(second))
    assert limit.limit == 1
    serve(limit, 6000, from_s=60.0)
    assert limit.limit == 64


def test_an_unannounced_rate_is_learned_from_refusals() -> None:
    """A server with 20 calls a second and an allowance of one second."""
    rate = StartRate()
    level, now, seen = 20.0, 0.0, 0.0
    taken = refused = 0
    while now < 60.0:
        now = max(now, rate.ready_at_s)
        level = min(20.0, level + (now - seen) * 20.0)
        seen = now
        rate.take(now)
        if level >= 1.0:
            level -= 1.0
            taken += 1
        else:
            rate.refused(now)
            refused += 1
            now += 1.0
    assert taken / 60.0 == pytest.approx(20.0, rel=0.1)
    assert refused / taken < 0.05


def test_a_pause_that_was_too_short_is_tried_out_with_one_call() -> None:
    rate = StartRate()
    for number in range(10):
        rate.take(number / 100)
    rate.refused(0.1)
    rate.take(1.0)
    learned = rate.learned_per_s
    rate.refused(1.0)
    rate.take(2.0)
    assert rate.learned_per_s == learned
    assert rate.ready_at_s >= 2.0 + SCOUT_S


def test_one_refusal_does_not_stop_a_rate() -> None:
    rate = StartRate()
    for number in range(100):
        rate.take(number / 100)
    rate.refused(1.0)
    rate.take(1.1)
    learned = rate.learned_per_s
    assert learned is not None
    rate.take(59.0)
    rate.refused(60.0)
    rate.take(60.1)
    assert rate.learned_per_s == pytest.approx(learned / MOST_CUT * SHARE)


def test_refusals_within_the_known_limits_are_noise() -> None:
    noise = Noise()
    for number in range(BETS):
        assert not noise.refused()
        for _ in range(12):
            noise.sent()
        assert noise.lost((40.0, float(number))) == (number == BETS - 1)
    assert noise.before == (40.0, 0.0)
    assert noise.refused()
    for _ in range(10 * SAMPLE):
        for _ in range(12):
            noise.sent()
        assert noise.refused()


def test_more_refusals_than_noise_brings_are_a_limit() -> None:
    noise = Noise()
    for _ in range(BETS):
        for _ in range(12):
            noise.sent()
        noise.lost((None, None))
    assert noise.is_known
    found = []
    for _ in range(SAMPLE):
        noise.sent()
        found.append(noise.refused())
    assert not noise.is_known
    assert not found[-1]


def test_rare_refusals_within_the_limits_are_chance() -> None:
    noise = Noise()
    for _ in range(10 * BETS):
        for _ in range(FORGIVEN + 1):
            noise.sent()
        assert not noise.lost((None, None))


def test_a_refusal_at_fewer_calls_takes_back_a_limit_that_was_met_once() -> None:
    limit = LaneLimit(256)
    serve(limit, 2000)
    limit.refused(fill(limit)[-1], 0, 10.0)
    assert limit.knee is not None
    while limit.in_flight > 20:
        limit.failed(0, 0)
    limit.refused(limit.admit(0), 0, 11.0, paced=True)
    assert limit.knee is None


def test_an_announced_rate_is_kept_evenly() -> None:
    rate = StartRate()
    rate.announce(10.0, 0.9, 0.0)
    starts: list[float] = []
    now = 100.0
    for _ in range(50):
        now = max(now, rate.ready_at_s)
        rate.take(now)
        starts.append(now)
    gaps = [later - earlier for earlier, later in itertools.pairwise(starts[1:])]
    assert min(gaps) == pytest.approx(1 / (10.0 * SHARE))
    rate.announce(10.0, 0.01, 200.0)
    assert rate.per_s < 8.0  # somebody else uses the allowance
    for second in range(201, 220):
        rate.announce(10.0, 0.9, float(second))
    assert rate.per_s == pytest.approx(10.0 * SHARE)


def test_a_configured_rate_is_a_ceiling_over_what_is_announced() -> None:
    rate = StartRate(2.0)
    rate.announce(100.0, None, 0.0)
    assert rate.per_s == pytest.approx(2.0 * SHARE)


def test_tokens_are_settled_when_the_answer_tells_their_number() -> None:
    tokens = TokenRate(600.0)
    tokens.take(10.0, 0.0)
    soon = tokens.ready_at_s
    tokens.settle(90.0)
    assert tokens.ready_at_s == pytest.approx(soon + 90.0 / (10.0 * SHARE))


def test_without_a_limit_tokens_do_not_wait() -> None:
    tokens = TokenRate()
    tokens.take(1e9, 5.0)
    tokens.settle(1e9)
    assert tokens.ready_at_s == 0.0
    assert tokens.per_s == math.inf
