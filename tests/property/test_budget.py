"""Spending never passes a cap, whatever the order of answers, failures and kills."""

from __future__ import annotations

import random
from decimal import Decimal

from hypothesis import given, settings
from hypothesis import strategies as st

from genworker.core.budget import Budget, Caps, Charge
from genworker.core.scheduler import RetryPolicy
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
