"""Spending never passes a cap, whatever the order of answers, failures and kills."""

from __future__ import annotations

import heapq
import random
from array import array
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genworker.core.budget import Budget, Caps, Charge
from genworker.core.completion import Completion, FinishReason, Usage
from genworker.core.lane import LaneSpec
from genworker.core.scheduler import EndpointSpec, RetryPolicy, Scheduler
from genworker.errors import ProviderUnavailableError, RateLimitedError
from support.simulation import Model, play

CENT = Decimal("0.01")


@given(
    cap=st.decimals(min_value="0.1", max_value="5", places=4),
    worst_cents=st.integers(1, 8),
    failure_rate=st.sampled_from([0.0, 0.1, 0.3]),
    kills=st.lists(st.floats(0.2, 3.0), max_size=3),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=60, deadline=None)
def test_never_over_by_a_cent_and_nearly_all_of_it_used(
    cap: Decimal, worst_cents: int, failure_rate: float, kills: list[float], seed: int
) -> None:
    worst = worst_cents * CENT

    def charge(draw: random.Random) -> tuple[Charge, Charge]:
        share = Decimal(draw.randrange(1, 1001)) / 1000
        most = draw.randrange(1, worst_cents + 1) * CENT
        return Charge(most, 1, 100), Charge(most * share, 1, 50)

    spent = Charge()
    policy = RetryPolicy(base_s=0.01, cap_s=0.1)
    capped = None
    for number, until_s in enumerate([*kills, float("inf")]):
        budget = Budget(Caps(usd=cap), spent)
        played = play(
            [Model(0.5, 0.6, failure_rate=failure_rate)],
            lineages=1500,
            stages=2,
            concurrency=64,
            seed=seed + number,
            retry=policy,
            budget=budget,
            charge=charge,
            until_s=until_s,
        )
        assert budget.spent.usd + budget.reserved.usd <= cap
        # What was out at a kill counts at its worst case in the next run.
        spent = budget.spent + budget.reserved
        capped = played.scheduler.capped
    assert spent.usd <= cap
    assert capped == f"--max-cost {cap} USD"
    assert spent.usd > cap - worst


@given(
    amounts=st.lists(st.tuples(st.integers(1, 10**6), st.integers(0, 10**6)), max_size=60),
    cap=st.integers(0, 10**7),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=200, deadline=None)
def test_any_order_of_reservations_and_settlements_keeps_the_cap(
    amounts: list[tuple[int, int]], cap: int, order: random.Random
) -> None:
    budget = Budget(Caps(usd=Decimal(cap) / 10**9))
    out: list[tuple[Charge, Charge]] = []
    for most, part in amounts:
        worst = Charge(Decimal(most) / 10**9, 1, most)
        actual = Charge(Decimal(min(most, part)) / 10**9, 1, min(most, part))
        if budget.reserve(worst):
            out.append((worst, actual))
        while out and order.random() < 0.4:
            budget.settle(*out.pop(order.randrange(len(out))))
        assert budget.spent.usd + budget.reserved.usd <= Decimal(cap) / 10**9
    for worst, actual in out:
        budget.settle(worst, actual)
    assert budget.reserved == Charge()
    assert budget.spent.usd <= Decimal(cap) / 10**9


@pytest.mark.parametrize("block", range(6))
def test_a_run_at_its_cap_always_ends(block: int) -> None:
    """As the runner does it: several jobs are started before the first of them is cleared."""
    for seed in range(block * 40, block * 40 + 40):
        drain_at_the_cap(random.Random(seed))


def drain_at_the_cap(draw: random.Random) -> None:
    lineages, width = 60, draw.choice([1, 2])
    count = 3 * lineages
    subject = Scheduler(
        stages=bytes(job // lineages for job in range(count)),
        parents=array("i", [job - lineages if job >= lineages else -1 for job in range(count)]),
        lanes=array("h", [job % lineages % width for job in range(count)]),
        selected=b"\x01" * count,
        lane_specs=[LaneSpec(0, f"lane {number}") for number in range(width)],
        endpoints=[EndpointSpec(64)],
        max_concurrency=64,
        retry=RetryPolicy(base_s=0.05, cap_s=0.2),
        budget=Budget(Caps(usd=Decimal(draw.randrange(5, 200)) / 1000)),
    )
    worst = [Charge(Decimal(draw.randrange(500, 2000)) / 1_000_000, 1) for _ in range(count)]
    now, number = 0.0, 0
    events: list[tuple[float, int, str, int]] = []
    while True:
        happened: list[tuple[float, str, int]] = []
        while (start := subject.next_start(now)) is not None:
            happened.append((draw.random() * 0.03, "clear", start.job))
        if subject.finished:
            break
        wake_at = subject.wake_at(now)
        if not happened and events and (wake_at is None or events[0][0] <= wake_at):
            now, _, kind, job = heapq.heappop(events)
            if kind == "clear":
                if subject.clear(job, worst[job], now):
                    happened.append((draw.expovariate(20), draw.choice(["answered"] * 6 + ["refused"]), job))
            elif kind == "answered":
                cost = Charge(worst[job].usd * draw.randrange(10, 100) / 100, 1)
                subject.answered(job, Completion("", FinishReason.STOP, Usage(1, 1), 0.05), now, cost)
                happened.append((draw.random() * 0.01, "committed", job))
            elif kind == "committed":
                subject.committed(job)
            elif draw.random() < 0.3:
                subject.refused(job, RateLimitedError("429", retry_after_s=0.1, status=429), now)
            else:
                subject.refused(job, ProviderUnavailableError("503", may_be_billed=True), now)
        elif not happened:
            assert wake_at is not None, "it waits for nothing"
            now = max(now, wake_at)
        for delay, kind, job in happened:
            heapq.heappush(events, (now + delay, number, kind, job))
            number += 1
        assert subject.budget.fits(Charge())
