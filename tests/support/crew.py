"""Plays workers against the shipped coordinator in virtual time, over a network that loses what it likes.

Workers are models: each obeys its share, its allowance and its lease as the real one must, and starts calls in
steps. Questions and replies may be lost, repeated and late; workers are killed and frozen, the coordinator is
killed and made anew from its records. Every step looks whether a total was passed.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal

from genworker.core.budget import NOTHING, Caps, Charge
from genworker.core.coordinator import (
    Coordinator,
    EndpointTotals,
    LaneNeed,
    LaneTotals,
    Purse,
    Question,
    Record,
    Reply,
    Shard,
    Totals,
    kind,
)
from genworker.core.shares import SLOTS

CATCH_UP_S = 0.1
LANE = "lane"


@dataclass(slots=True)
class World:
    """What is played.

    Attributes:
        step_s: how often workers look; questions go out every `sync_s`.
        worst: the worst cases of rows, by row number modulo their number; an answer costs a part of it.
        loss, repeat: shares of messages that are lost, and that come twice.
        late_s: messages take up to so long.
        faults_end_s: after this nothing is lost, killed or frozen any more.
        kills, freezes, restarts: how often in each second, until then.
        drift: clocks of workers differ in speed by up to this share.
    """

    rows: int = 200
    shard_rows: int = 10
    crew: int = 3
    places: int = 8
    per_s: float = math.inf
    latency_s: float = 0.3
    caps: Caps = field(default_factory=Caps)
    worst: tuple[Decimal, ...] = (Decimal("0.01"),)
    lease_s: float = 2.0
    timeout_s: float = 3.0
    proof_s: float = 0.1
    step_s: float = 0.05
    sync_s: float = 0.25
    loss: float = 0.0
    repeat: float = 0.0
    late_s: float = 0.01
    drift: float = 0.0
    faults_end_s: float = 0.0
    kills: float = 0.0
    freezes: float = 0.0
    restarts: float = 0.0
    seed: int = 0
    watch: bool = True


class Crewman:
    """One worker."""

    def __init__(self, play: Play, name: str, now: float) -> None:
        self.play, self.name = play, name
        world, draw = play.world, play.draw
        self.speed = 1.0 + world.drift * (2 * draw.random() - 1)
        self.seq = self.ack = self.epoch = 0
        self.shares: dict[str, float] = {}
        self.allow = NOTHING
        self.lease_end = -math.inf  # on its clock
        self.asked: dict[int, tuple[float, int]] = {}  # question -> its time, what was applied then
        self.rows: dict[int, deque[int]] = {}  # shard -> rows that have not begun
        self.open: dict[int, int] = {}  # shard -> rows that have not ended
        self.done: dict[int, int] = {}  # finished shard -> the first question that said so
        self.out: deque[tuple[float, int, int]] = deque()  # (end, shard, row)
        self.spent = self.reserved = Decimal(0)
        self.calls = 0
        self.ready_at = 0.0
        self.frozen_until = -math.inf
        self.next_sync = now + draw.random() * world.sync_s
        self.is_over = False
        self.starts: list[float] = []

    def clock(self, now: float) -> float:
        return now * self.speed

    def holds(self, pool: str, now: float) -> float:
        """What it holds in truth."""
        return (
            self.shares.get(pool, math.inf if self.ack else 0.0) if self.clock(now) < self.lease_end else 0.0
        )

    def step(self, now: float) -> None:
        while self.out and self.out[0][0] <= now:
            _, shard, row = self.out.popleft()
            worst = self.play.worst(row)
            self.reserved -= worst
            self.spent += worst * (1 + row * 7 % 10) / 10
            if shard in self.open:
                self.open[shard] -= 1
                if not self.open[shard]:
                    del self.open[shard], self.rows[shard]
                    self.done[shard] = self.seq + 1
        self._begin(now)
        if now >= self.next_sync or (not self.open and self.ack and not self.is_over):
            self.next_sync = now + self.play.world.sync_s
            self.ask(now)

    def _begin(self, now: float) -> None:
        places = self.holds(SLOTS, now)
        if not places:
            return
        rate, caps = self.holds(f"lane starts {LANE}", now), self.play.world.caps
        for shard, rows in self.rows.items():
            while rows and len(self.out) < places and rate > 0:
                if rate < math.inf and self.ready_at > now:
                    return
                worst = self.play.worst(rows[0])
                if caps.usd is not None and self.spent + self.reserved + worst > self.allow.usd:
                    break
                row = rows.popleft()
                self.reserved += worst
                self.calls += 1
                if rate < math.inf:
                    self.ready_at = max(self.ready_at, now - CATCH_UP_S) + 1.0 / rate
                if self.play.world.watch:
                    self.starts.append(now)
                self.out.append((now + self.play.world.latency_s, shard, row))

    def ask(self, now: float) -> None:
        self.seq += 1
        self.asked[self.seq] = (self.clock(now), self.ack)
        for old in [seq for seq in self.asked if seq < self.seq - 50]:
            del self.asked[old]
        waiting = [self.play.worst(rows[0]) for rows in self.rows.values() if rows]
        used = self.spent + self.reserved
        too_dear = [w for w in waiting if self.play.world.caps.usd is not None and used + w > self.allow.usd]
        is_starved = bool(waiting) and len(too_dear) == len(waiting) and not self.out
        parked = {kind(LANE, 0): Charge(min(too_dear), 1)} if too_dear else {}
        open_rows = sum(self.open.values())
        question = Question(
            self.name,
            self.seq,
            self.epoch,
            self.ack,
            list(self.open),
            list(self.done),
            max(0, 2 * self.play.world.shard_rows - open_rows),
            {LANE: LaneNeed(open_rows, len(self.out))} if open_rows or self.out else {},
            Purse(Charge(used, self.calls), Charge(max(self.play.world.worst), 1), parked, is_starved),
        )
        self.play.send(now, question)

    def hear(self, reply: Reply, now: float) -> None:
        asked = self.asked.get(reply.seq)
        if asked is None or asked[1] != self.ack or reply.epoch < self.epoch:
            return  # something was applied since it asked
        self.ack, self.epoch = reply.seq, reply.epoch
        self.lease_end = asked[0] + reply.lease_s
        name = f"lane starts {LANE}"
        before, after = self.shares.get(name, math.inf), reply.shares.get(name, math.inf)
        if 0 < before < math.inf and 0 < after < math.inf:
            # What was taken too early is owed in calls, not in seconds: the share may have been tiny.
            self.ready_at = now + (self.ready_at - now) * before / after
        self.shares, self.allow = dict(reply.shares), reply.allow
        self.done = {shard: seq for shard, seq in self.done.items() if seq > reply.seq}
        for shard in reply.give:
            if shard not in self.open and shard not in self.done:
                size = self.play.shards[shard].rows
                first = shard * self.play.world.shard_rows
                self.rows[shard] = deque(range(first, first + size))
                self.open[shard] = size
        self.is_over = reply.is_over


class Play:
    """One run."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.draw = random.Random(world.seed)
        count = math.ceil(world.rows / world.shard_rows)
        self.shards = [
            Shard(
                number,
                (rows := min(world.shard_rows, world.rows - number * world.shard_rows)),
                {LANE: rows},
                frozenset({kind(LANE, 0)}),
            )
            for number in range(count)
        ]
        self.totals = Totals(
            places=world.places,
            lanes={LANE: LaneTotals("endpoint", per_s=world.per_s)},
            endpoints={"endpoint": EndpointTotals()},
            caps=world.caps,
        )
        self.records: list[Record] = []
        self.restarts = self.messages = self.born = 0
        self.coordinator = self._coordinate(0.0)
        self.crew: dict[str, Crewman] = {}
        self.graves: list[tuple[float, Crewman]] = []
        self.mail: list[tuple[float, int, Callable[[float], None]]] = []
        self.dead_spent = Decimal(0)
        self.now = 0.0
        self.all_starts: list[float] = []
        self.most_calls = 0
        for _ in range(world.crew):
            self._hire(0.0)

    def worst(self, row: int) -> Decimal:
        return self.world.worst[row % len(self.world.worst)]

    def _coordinate(self, now: float) -> Coordinator:
        world = self.world
        coordinator = Coordinator(
            self.totals,
            self.shards,
            crew=world.crew,
            lease_s=world.lease_s,
            timeout_s=world.timeout_s,
            now_s=now,
            epoch=1 + self.restarts,
            records=self.records,
        )
        coordinator.take_records()
        return coordinator

    def _hire(self, now: float) -> None:
        self.born += 1
        name = f"w{self.born}"
        self.crew[name] = Crewman(self, name, now)
        self.coordinator.join(name, now)
        self._write()

    def _write(self) -> None:
        self.records += self.coordinator.take_records()

    def _post(self, now: float, deliver: Callable[[float], None]) -> None:
        draw, faulty = self.draw, now < self.world.faults_end_s
        for _ in range(2 if faulty and draw.random() < self.world.repeat else 1):
            if not (faulty and draw.random() < self.world.loss):
                self.messages += 1
                late = draw.random() * (self.world.late_s if faulty else 0.01)
                heapq.heappush(self.mail, (now + late, self.messages, deliver))

    def send(self, now: float, question: Question) -> None:
        def deliver(at: float) -> None:
            reply = self.coordinator.sync(question, at)
            self._write()
            if reply is not None:
                self._post(at, lambda then: self._answer(question.worker, reply, then))

        self._post(now, deliver)

    def _answer(self, name: str, reply: Reply, now: float) -> None:
        worker = self.crew.get(name)
        if worker is not None and worker.frozen_until <= now:
            worker.hear(reply, now)

    def _spoil(self, now: float) -> None:
        world, draw = self.world, self.draw
        if draw.random() < world.kills * world.step_s and self.crew:
            victim = draw.choice(sorted(self.crew))
            self.graves.append((now + world.proof_s, self.crew.pop(victim)))
        if draw.random() < world.freezes * world.step_s and self.crew:
            victim = draw.choice(sorted(self.crew))
            self.crew[victim].frozen_until = now + 3 * draw.random() * world.lease_s
        if draw.random() < world.restarts * world.step_s:
            self.restarts += 1
            self.coordinator = self._coordinate(now)

    def run(self, until_s: float) -> float:
        """Play until the run is over; returns when that was."""
        world = self.world
        while not (self.coordinator.is_over or self.coordinator.capped is not None):
            self.now = now = self.now + world.step_s
            assert now < until_s, f"no end: {self.coordinator.finished} of {len(self.shards)} shards, {now} s"
            if now < world.faults_end_s:
                self._spoil(now)
            while self.graves and self.graves[0][0] <= now:
                _, grave = self.graves.pop(0)
                # Calls that were out count at their worst case.
                self.dead_spent += grave.spent + grave.reserved
                self.all_starts += grave.starts
                self.coordinator.died(grave.name, Charge(grave.spent + grave.reserved, grave.calls))
                self._write()
                self._hire(now)
            while self.mail and self.mail[0][0] <= now:
                at, _, deliver = heapq.heappop(self.mail)
                deliver(at)
            for worker in list(self.crew.values()):
                if worker.frozen_until <= now:
                    worker.step(now)
            if world.watch:
                self._look(now)
        return self.now

    def _look(self, now: float) -> None:
        living = self.living()
        world = self.world
        # A frozen worker's calls end with it or after their timeout, as the endpoint sees them.
        held = sum(max(w.holds(SLOTS, now), sum(1 for end, _, _ in w.out if end > now)) for w in living)
        assert held <= world.places, f"{held} of {world.places} places are held at {now}"
        rate = sum(w.holds(f"lane starts {LANE}", now) for w in living)
        assert world.per_s == math.inf or rate <= world.per_s * (1 + 1e-9), f"{rate} of {world.per_s} per s"
        for name, pool in self.coordinator.pools().items():
            if self.restarts == 0:  # made anew it takes more for held than is, never less
                assert pool.held <= pool.total * (1 + 1e-9), name
            true = math.fsum(w.holds(name, now) for w in self.crew.values())
            assert pool.total == math.inf or true <= pool.held * (1 + 1e-9), (
                f"{name}: more is held than known"
            )
        if world.caps.usd is not None:
            spent = self.dead_spent + sum(w.spent + w.reserved for w in living)
            assert spent <= world.caps.usd, f"{spent} of {world.caps.usd} USD at {now}"
            allowed = self.coordinator.allowed().usd + self.coordinator.money.spent.usd
            assert allowed <= world.caps.usd
        owned = [number for name in self.coordinator.workers() for number in self.coordinator.shards_of(name)]
        assert len(owned) == len(set(owned))
        assert len(owned) + self.coordinator.pending + self.coordinator.finished == len(self.shards)

    def living(self) -> list[Crewman]:
        """Workers that are not known to be dead."""
        return [*self.crew.values(), *(grave for _, grave in self.graves)]

    def starts(self) -> list[float]:
        """When calls began."""
        return sorted(self.all_starts + [at for worker in self.living() for at in worker.starts])
