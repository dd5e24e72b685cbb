"""The coordinator's invariants, over networks that lose, repeat, delay and reorder, with deaths at any point."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from decimal import Decimal

from hypothesis import given, settings
from hypothesis import strategies as st

from genworker.core.budget import Caps, Charge
from genworker.core.completion import Completion, FinishReason, Usage
from genworker.core.controller import TUNING
from genworker.core.coordinator import (
    Coordinator,
    EndpointTotals,
    LaneNeed,
    LaneTotals,
    Purse,
    Question,
    Reply,
    Shard,
    Totals,
    kind,
)
from genworker.core.lane import LaneSpec
from genworker.core.lease import CATCH_UP_S, Lease
from genworker.core.scheduler import EndpointSpec, Scheduler
from genworker.core.shares import Pool
from support.crew import Play, World

FAULTS = st.fixed_dictionaries(
    {
        "loss": st.sampled_from([0.0, 0.1, 0.4]),
        "repeat": st.sampled_from([0.0, 0.3]),
        "late_s": st.sampled_from([0.01, 0.6, 3.0]),
        "drift": st.sampled_from([0.0, 0.005]),
        "kills": st.sampled_from([0.0, 0.1, 0.4]),
        "freezes": st.sampled_from([0.0, 0.2]),
        "restarts": st.sampled_from([0.0, 0.2, 1.0]),
        "faults_end_s": st.sampled_from([0.0, 10.0, 30.0]),
        "crew": st.integers(1, 5),
        "seed": st.integers(0, 2**20),
    }
)


@given(faults=FAULTS, places=st.integers(1, 12), per_s=st.sampled_from([3.0, 20.0, 100.0, float("inf")]))
@settings(max_examples=30, deadline=None)
def test_no_place_and_no_rate_is_held_twice_and_the_run_ends(
    faults: dict[str, float], places: int, per_s: float
) -> None:
    world = World(**faults, places=places, per_s=per_s)  # type: ignore[arg-type]
    play = Play(world)
    alone_s = world.rows * max(world.latency_s / places, 1 / per_s)
    end_s = play.run(world.faults_end_s + 2 * alone_s + 3 * (world.lease_s + world.timeout_s) + 20)
    assert play.coordinator.finished == len(play.shards)
    assert end_s > 0
    if per_s < float("inf"):
        starts = play.starts()
        for number, start in enumerate(starts):
            for window_s in (1.0, 10.0):
                within = bisect_left(starts, start + window_s) - number
                # Catching up 0.1 s; and each worker's first call after a pause is early by one.
                assert within <= per_s * (window_s + 0.1) * 1.01 + world.crew + 1


@given(
    faults=FAULTS,
    cap=st.decimals(min_value="0.05", max_value="3", places=3),
    worst=st.lists(st.sampled_from([Decimal(n) / 1000 for n in (1, 7, 10, 40)]), min_size=1, max_size=7),
)
@settings(max_examples=30, deadline=None)
def test_no_cap_is_passed_and_what_is_left_is_less_than_a_call(
    faults: dict[str, float], cap: Decimal, worst: list[Decimal]
) -> None:
    world = World(**faults, caps=Caps(usd=cap), worst=tuple(worst), places=8)  # type: ignore[arg-type]
    play = Play(world)
    play.run(world.faults_end_s + 200)
    spent = play.dead_spent + sum(worker.spent + worker.reserved for worker in play.living())
    if play.coordinator.capped is not None:
        assert play.coordinator.capped == f"--max-cost {cap} USD"
        assert not any(worker.out for worker in play.living())
        waiting = [play.worst(rows[0]) for w in play.living() for rows in w.rows.values() if rows]
        assert waiting
        assert spent + min(waiting) > cap


def test_many_workers_and_rows_with_everything_lost_now_and_then() -> None:
    # `python -m bench.crew` plays the same with 200 workers and a million rows.
    world = World(
        rows=20_000,
        shard_rows=50,
        crew=40,
        places=800,
        per_s=1600.0,
        latency_s=0.4,
        step_s=0.125,
        lease_s=5.0,
        timeout_s=20.0,
        loss=0.05,
        repeat=0.05,
        late_s=0.3,
        kills=0.5,
        restarts=0.1,
        faults_end_s=1e9,
        watch=False,
    )
    play = Play(world)
    assert play.run(120.0) < 2.0 * world.rows / world.per_s + world.lease_s + world.timeout_s


@given(crew=st.integers(1, 6), seed=st.integers(0, 2**20), shard_rows=st.sampled_from([5, 20]))
@settings(max_examples=20, deadline=None)
def test_whoever_has_room_gets_a_shard_with_the_next_reply(crew: int, seed: int, shard_rows: int) -> None:
    play = Play(World(crew=crew, seed=seed, shard_rows=shard_rows))
    sync = play.coordinator.sync
    empty: list[str] = []

    def watched(question: Question, now_s: float) -> Reply | None:
        pending = play.coordinator.pending
        reply = sync(question, now_s)
        if reply is not None and question.free > 0 and pending and not reply.give:
            empty.append(question.worker)
        return reply

    play.coordinator.sync = watched  # type: ignore[method-assign]
    play.run(300.0)
    assert not empty


@given(
    total=st.one_of(st.integers(0, 40), st.just(7)),
    demands=st.lists(st.integers(0, 12), min_size=1, max_size=9),
)
def test_a_total_is_divided_fairly_and_used_up(total: int, demands: list[int]) -> None:
    pool = Pool(float(total), whole=True)
    for number, demand in enumerate(demands):
        pool.want(f"w{number}", float(demand))
    pool.divide()
    shares = []
    for number in range(len(demands)):
        shares.append(pool.offer(f"w{number}"))
        pool.hold(f"w{number}", shares[-1])
    assert sum(shares) == min(total, sum(demands))
    assert all(share <= demand and share == int(share) for share, demand in zip(shares, demands, strict=True))
    short = [share for share, demand in zip(shares, demands, strict=True) if share < demand]
    assert (
        not short or max(shares) <= min(short) + 1
    )  # nobody has more than one that goes short, but for a rest


def test_a_worker_that_was_proven_dead_gets_no_answer_and_its_money_is_settled() -> None:
    lane = {"l": LaneTotals("e")}
    totals = Totals(4, lane, {"e": EndpointTotals()}, Caps(usd=Decimal(1)))
    crew = Coordinator(totals, [Shard(0, 5, {"l": 5}), Shard(1, 5, {"l": 5})], crew=2)
    crew.join("a", 0.0)
    need = {kind("l", 0): Charge(Decimal("0.1"), 1)}
    purse = Purse(worst=Charge(Decimal("0.1"), 1), parked=need, is_starved=True)
    reply = crew.sync(Question("a", 1, free=5, purse=purse), 0.1)
    assert reply is not None
    assert list(reply.give) == [0]
    first = crew.sync(Question("a", 2, 1, 1, have=(0,), purse=purse), 0.2)
    assert first is not None
    assert Decimal("0.1") <= first.allow.usd <= Decimal(1)
    crew.tick(100.0)
    assert crew.is_lost("a")
    assert crew.pending == 2
    assert crew.allowed().usd == first.allow.usd, "it may live: its money is not given to others"
    crew.died("a", Charge(Decimal("0.3"), 3))
    assert crew.allowed().usd == 0
    assert crew.money.spent.usd == Decimal("0.3")
    assert crew.sync(Question("a", 3, 1, 2), 101.0) is None


def _starts(jobs: int, places: int, per_s: float, latency_s: float, *, by_lease: bool) -> list[float]:
    """When one scheduler begins its calls: by itself, or as the only worker of a coordinator."""
    rpm = None if per_s == math.inf or by_lease else 60.0 * per_s / TUNING.share
    lease = Lease([("lane", "endpoint")]) if by_lease else None
    scheduler = Scheduler(
        stages=[0] * jobs,
        parents=[-1] * jobs,
        lanes=[0] * jobs,
        selected=b"\x01" * jobs,
        lane_specs=[LaneSpec(0, "lane")],
        endpoints=[EndpointSpec(places, rpm)],
        max_concurrency=places,
        lease=lease,
    )
    totals = Totals(places, {"lane": LaneTotals("endpoint")}, {"endpoint": EndpointTotals(places, per_s)})
    coordinator = Coordinator(totals, [Shard(0, jobs, {"lane": jobs})], crew=1)
    coordinator.join("w", 0.0)
    answer = Completion("text", FinishReason.STOP, Usage(5, 5), latency_s)
    out: deque[tuple[float, int]] = deque()
    starts: list[float] = []
    seq = ack = epoch = step = 0
    have: list[int] = []
    while len(starts) < jobs:
        now_s, step = step * 0.005, step + 1
        if lease is not None and step % 50 == 1:
            seq += 1
            (lane,) = scheduler.lanes()
            need = {"lane": LaneNeed(lane.open_jobs, lane.in_flight)}
            question = Question("w", seq, epoch, ack, have, free=jobs, lanes=need)
            reply = coordinator.sync(question, now_s)
            assert reply is not None
            have, ack, epoch = [*have, *reply.give], reply.seq, reply.epoch
            lease.renew(reply.shares, now_s + reply.lease_s, now_s)
        while out and out[0][0] <= now_s:
            _, job = out.popleft()
            scheduler.answered(job, answer, now_s)
            scheduler.committed(job)
        while (begun := scheduler.next_start(now_s)) is not None:
            assert scheduler.clear(begun.job, Charge(), now_s)
            out.append((now_s + latency_s, begun.job))
            starts.append(now_s)
    return starts


@given(
    places=st.integers(1, 40),
    per_s=st.sampled_from([5.0, 30.0, 120.0, math.inf]),
    latency_s=st.sampled_from([0.05, 0.4]),
)
@settings(max_examples=12, deadline=None)
def test_one_worker_without_faults_starts_its_calls_as_a_run_by_itself_does(
    places: int, per_s: float, latency_s: float
) -> None:
    alone = _starts(80, places, per_s, latency_s, by_lease=False)
    leased = _starts(80, places, per_s, latency_s, by_lease=True)
    # A leased share may be caught up for longer: earlier by that, and never later than a few steps.
    assert all(-CATCH_UP_S - 0.03 <= b - a <= 0.03 for a, b in zip(alone, leased, strict=True))
