"""Shares out what the workers of one run have in common: rows, places for calls, rates, money.

Pure and synchronous: a question and a time go in, a reply comes out; an engine carries the messages and may
lose, repeat, delay or reorder them. Three rules make that harmless:

- Numbers are absolute. A reply says what a worker holds from now on, a question what it has done so far.
- A worker applies a reply only when it has applied none since it asked (`Question.ack`). So what it *may
  believe* that it holds is one of the grants since the reply that it acknowledged last, and only the rest is
  given to others (`genworker.core.shares`).
- What a worker holds ends with its lease, which counts from before its question. Only rates do so at once:
  places are kept until calls that are out must have ended, money until the worker is known to be dead.

What may not be forgotten stands in records, written before the reply is sent; a coordinator that is made anew
from them gives out nothing that is held.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_DOWN, Decimal
from typing import Literal, Protocol

from genworker.core.budget import NOTHING, ZERO, Budget, Caps, Charge
from genworker.core.shares import SLOTS, Pool, lane_pools

CLOCKS = 1.01
"""Clocks of two hosts may differ in speed by this factor."""
DIVIDE_EVERY_S, DIVIDE_AT_MOST_EVERY_S = 0.25, 0.05
"""Fair shares are found anew so often, and at once after news: the work per message stays the same however
many workers there are."""
CHUNK_CALLS = 64
"""An allowance is raised by as much as so many calls may cost at most."""
SHARDS_AHEAD = 2
"""A pull takes at most 1/(2 N) of what is left, so that the first to ask does not hoard."""
MICRO = Decimal("0.000001")

Stop = Literal["", "drain", "abandon"]


@dataclass(frozen=True, slots=True)
class Shard:
    """Whole lineages, made by one worker.

    Attributes:
        rows: how many.
        lanes: rows by lane's name; copies are in none.
        kinds: the lanes and stages, as `kind`, of the rows that can begin at once.
        is_late: its rows need texts of other shards: it is given out when all that are not late are finished.
    """

    number: int
    rows: int
    lanes: Mapping[str, int]
    kinds: frozenset[str] = frozenset()
    is_late: bool = False


def kind(lane: str, stage: int) -> str:
    """A name for the calls of one lane and stage: behind one that does not fit the caps the others wait."""
    return f"{stage} {lane}"


@dataclass(frozen=True, slots=True)
class LaneNeed:
    """What a worker says of one lane.

    Attributes:
        want: calls that it could have out.
        out: calls that are out.
    """

    want: int
    out: int = 0


@dataclass(frozen=True, slots=True)
class Purse:
    """What a worker says of its money.

    Attributes:
        used: what its calls have cost, and what those that are out may cost at most.
        worst: the dearest call that it may want to make soon.
        parked: the kinds of calls that wait for money, each with its cheapest; see `kind`.
        is_starved: all that it could begin waits for money, and no call is out.
    """

    used: Charge = NOTHING
    worst: Charge = NOTHING
    parked: Mapping[str, Charge] = field(default_factory=dict)
    is_starved: bool = False


@dataclass(frozen=True, slots=True)
class Question:
    """What a worker says every quarter of a second, and at once when it has nothing to do.

    Attributes:
        seq: rises from question to question.
        epoch: of the last reply that it applied; 0 before the first.
        ack: the question whose reply it applied last.
        have: shards that it works on. Some may be another's by now: claims and the store make that harmless.
        done: shards that it has finished, until a reply to a question that said so was applied.
        free: rows that it could take besides.
        lanes: only those with rows.
        pauses: seconds for which a lane's endpoint wants no call.
        stopped: lanes that get no more calls, with the reason.
    """

    worker: str
    seq: int
    epoch: int = 0
    ack: int = 0
    have: Sequence[int] = ()
    done: Sequence[int] = ()
    free: int = 0
    lanes: Mapping[str, LaneNeed] = field(default_factory=dict)
    purse: Purse = field(default_factory=Purse)
    pauses: Mapping[str, float] = field(default_factory=dict)
    stopped: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a worker holds from now on.

    Attributes:
        lease_s: how long, from before the question was sent, on the worker's clock.
        shares: its part of each total that is limited, by the pool's name.
        allow: what it may use in all (see `Purse.used`); only those of its numbers count that are capped.
        give: shards to work on; those that it has already are not meant twice.
        disputed: those of its shards in which a claim that another holds does not count any more: that one
            fell silent longer ago than any call can take.
        stop: begin nothing more; ``abandon``: and give up the calls that are out.
        is_over: there is nothing more to do.
    """

    seq: int
    epoch: int
    lease_s: float
    shares: Mapping[str, float]
    allow: Charge
    give: Sequence[int] = ()
    disputed: Sequence[int] = ()
    pauses: Mapping[str, float] = field(default_factory=dict)
    stopped: Mapping[str, str] = field(default_factory=dict)
    stop: Stop = ""
    is_over: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """What must be on disk before the reply is sent.

    Attributes:
        shares: what a worker may believe it holds, by pool; ``None``: as before.
        allow: the same of its allowance.
        owned: shards that it owns from here on.
        finished: shards that are finished.
        spent: with which the worker's account was closed: it is dead. ``None`` as long as it may live.
    """

    worker: str
    shares: Mapping[str, float] | None = None
    allow: Charge | None = None
    owned: Sequence[int] = ()
    finished: Sequence[int] = ()
    spent: Charge | None = None


@dataclass(frozen=True, slots=True)
class LaneTotals:
    """What a run's configuration says of one lane; infinite where it says nothing.

    Attributes:
        endpoint: the endpoint's name.
    """

    endpoint: str
    places: float = math.inf
    per_s: float = math.inf
    tokens_per_s: float = math.inf


@dataclass(frozen=True, slots=True)
class EndpointTotals:
    """The same of an endpoint, over all its lanes."""

    places: float = math.inf
    per_s: float = math.inf
    tokens_per_s: float = math.inf


@dataclass(frozen=True, slots=True)
class Totals:
    """Everything that workers share."""

    places: int
    lanes: Mapping[str, LaneTotals]
    endpoints: Mapping[str, EndpointTotals]
    caps: Caps = field(default_factory=Caps)
    spent: Charge = NOTHING


class Limits(Protocol):
    """What is known of lanes at this moment: configured, announced, or learned from the workers' calls."""

    def totals(self, now_s: float) -> Mapping[str, float]:
        """Totals by the pool's name; pools that are not named keep theirs."""


class _Worker:
    __slots__ = (
        "allow",
        "granted",
        "have",
        "is_live",
        "lanes",
        "lease_end_s",
        "purse",
        "recorded",
        "seen_s",
        "seq",
        "shards",
    )

    def __init__(self, now_s: float) -> None:
        self.seq = 0
        self.have: frozenset[int] = frozenset()
        self.recorded: tuple[Mapping[str, float], Charge] = ({}, NOTHING)
        self.is_live = False  # its lease has not ended
        self.seen_s = now_s
        self.lease_end_s = -math.inf
        # Grants that it may believe: the one that it acknowledged and those after it, each with its question.
        self.granted: deque[tuple[int, Mapping[str, float], Charge]] = deque()
        self.allow = NOTHING
        self.lanes: Mapping[str, LaneNeed] = {}
        self.purse = Purse()
        self.shards: dict[int, Shard] = {}


class Coordinator:
    """The state of one run's workers.

    Args:
        shards: what is to be done; numbers are free to choose.
        crew: how many workers are expected; more or fewer may come.
        lease_s: how long a worker may go on without a reply.
        timeout_s: no call is out for longer.
        epoch: of this coordinator; greater than that of the one before it.
        limits: what changes the totals of lanes in mid-run.
        records: of the coordinators before it, in order.
    """

    def __init__(
        self,
        totals: Totals,
        shards: Iterable[Shard],
        *,
        crew: int,
        lease_s: float = 5.0,
        timeout_s: float = 600.0,
        now_s: float = 0.0,
        epoch: int = 1,
        limits: Limits | None = None,
        records: Iterable[Record] = (),
    ) -> None:
        self.totals = totals
        self.epoch = epoch
        self.stopping: Stop = ""
        self.capped: str | None = None
        self._crew = crew
        self._lease_s, self._timeout_s = lease_s, timeout_s
        self._limits = limits
        self._pools = self._make_pools(totals)
        self._lane_pools = {name: self._pools_of(name) for name in totals.lanes}
        self._money = Budget(totals.caps, totals.spent)
        self._allowed = NOTHING  # what living workers may use, in all
        self._workers: dict[str, _Worker] = {}
        self._shards = {shard.number: shard for shard in shards}
        self._pending = dict.fromkeys(self._shards)  # in order; what comes back goes to its end
        self._pending_rows = sum(shard.rows for shard in self._shards.values())
        self._finished: set[int] = set()
        self._first_ones = {number for number, shard in self._shards.items() if not shard.is_late}
        self._owner: dict[int, str] = {}
        self._disputed_s: dict[int, float] = {}  # shards of a silent worker: when its calls must have ended
        self._pauses: dict[str, float] = {}
        self._stopped: dict[str, str] = {}
        self._records: list[Record] = []
        self._divided_s = -math.inf
        self._is_news = False
        self._expiry_s = math.inf
        self._restore(records, now_s)

    def _make_pools(self, totals: Totals) -> dict[str, Pool]:
        pools = {SLOTS: Pool(float(totals.places), whole=True)}
        for prefix, specs in (("lane", totals.lanes), ("endpoint", totals.endpoints)):
            for name, spec in specs.items():
                pools[f"{prefix} places {name}"] = Pool(spec.places, whole=True)
                pools[f"{prefix} starts {name}"] = Pool(spec.per_s, whole=False)
                pools[f"{prefix} tokens {name}"] = Pool(spec.tokens_per_s, whole=False)
        return pools

    def _pools_of(self, lane: str) -> tuple[list[str], list[str]]:
        """The pools that calls of a lane need: places, rates."""
        places, starts, tokens = lane_pools(lane, self.totals.lanes[lane].endpoint)
        return places, starts + tokens

    def _restore(self, records: Iterable[Record], now_s: float) -> None:
        owned: dict[str, set[int]] = {}
        for record in records:
            if record.worker:
                worker = self._workers.setdefault(record.worker, _Worker(now_s))
                if record.shares is not None:
                    worker.granted.clear()
                    worker.granted.append((0, record.shares, record.allow or NOTHING))
                for number in record.owned:
                    for others in owned.values():
                        others.discard(number)
                    owned.setdefault(record.worker, set()).add(number)
                if record.spent is not None:
                    del self._workers[record.worker]
                    owned.pop(record.worker, None)
                    self._money.spent += record.spent
            for number in record.finished:
                self._finish(number)
        for name, worker in self._workers.items():
            for _, shares, allow in worker.granted:
                for pool, amount in shares.items():
                    if pool in self._pools:
                        self._pools[pool].hold(name, amount)
                worker.allow = allow
                self._allowed += allow
            worker.is_live = True
            worker.lease_end_s = now_s + CLOCKS * self._lease_s
            self._expiry_s = min(self._expiry_s, worker.lease_end_s)
            for number in sorted(owned.get(name, ())):
                if number in self._pending:
                    self._own(name, number)

    # What an engine asks

    @property
    def is_over(self) -> bool:
        """Whether every shard is finished."""
        return len(self._finished) == len(self._shards)

    @property
    def money(self) -> Budget:
        """Spent: by earlier runs and by workers that are gone."""
        return self._money

    @property
    def pending(self) -> int:
        """Shards that nobody has."""
        return len(self._pending)

    @property
    def finished(self) -> int:
        """Shards that are finished."""
        return len(self._finished)

    def is_finished(self, shard: int) -> bool:
        """Whether a shard is finished."""
        return shard in self._finished

    def pools(self) -> Mapping[str, Pool]:
        """The totals and what is leased of them, to be looked at."""
        return self._pools

    def allowed(self) -> Charge:
        """What workers that may live may use, in all."""
        return self._allowed

    def workers(self) -> list[str]:
        """Those whose account is open."""
        return list(self._workers)

    def seen_s(self, worker: str) -> float:
        """When a worker was heard last."""
        return self._workers[worker].seen_s

    def is_lost(self, worker: str) -> bool:
        """Whether a worker's lease has ended; it may live all the same."""
        return not self._workers[worker].is_live

    def shards_of(self, worker: str) -> list[int]:
        """The shards that a worker owns."""
        return sorted(self._workers[worker].shards)

    def stopped_lanes(self) -> Mapping[str, str]:
        """Lanes that get no more calls, with the reason."""
        return self._stopped

    def pauses(self, now_s: float) -> dict[str, float]:
        """Lanes that wait, with the seconds that are left."""
        return {lane: end - now_s for lane, end in self._pauses.items() if end > now_s}

    def take_records(self) -> list[Record]:
        """What must be written before the last reply is sent."""
        records, self._records = self._records, []
        return records

    def stop(self, how: Stop) -> None:
        """Tell every worker to begin nothing more."""
        self.stopping = how

    # Events

    def join(self, worker: str, now_s: float) -> None:
        """A worker has begun. Its name is new: a process that is started again has another."""
        if worker not in self._workers:
            self._workers[worker] = _Worker(now_s)
            self._records.append(Record(worker, shares={}, allow=NOTHING))
            self._is_news = True

    def died(self, worker: str, spent: Charge) -> None:
        """A worker's process is known to be gone, and its answers are in place.

        Args:
            spent: by all its calls; those without a known end at their worst case.
        """
        gone = self._workers.pop(worker, None)
        if gone is None:
            return
        self._disown(gone)
        for pool in self._pools.values():
            pool.want(worker, 0.0)
            pool.hold(worker, 0.0)
        self._allowed -= _most(gone)
        self._money.spent += spent
        self._records.append(Record(worker, spent=spent))
        self._is_news = True

    def tick(self, now_s: float) -> None:
        """Take note of leases that have ended by now. Every question does that as well."""
        if now_s < self._expiry_s:
            return
        self._expiry_s = math.inf
        for name, worker in self._workers.items():
            if worker.is_live and now_s >= worker.lease_end_s:
                worker.is_live = False
                self._is_news = True
                calls_end_s = worker.lease_end_s + CLOCKS * self._timeout_s
                self._disputed_s.update(dict.fromkeys(worker.shards, calls_end_s))
                self._disown(worker)
                for pool in self._pools.values():
                    pool.want(name, 0.0)
                    if not pool.whole:
                        pool.hold(name, 0.0)
                self._forget_grants(name, worker)
            calls_end_s = worker.lease_end_s + CLOCKS * self._timeout_s
            if not worker.is_live and now_s >= calls_end_s:
                for pool in self._pools.values():
                    pool.hold(name, 0.0)
                self._forget_grants(name, worker)
            soonest = worker.lease_end_s if worker.is_live else calls_end_s
            if soonest > now_s:
                self._expiry_s = min(self._expiry_s, soonest)

    def sync(self, question: Question, now_s: float) -> Reply | None:
        """Answer a question.

        Returns:
            ``None`` where an answer would do harm: the question is older than one that was answered, so that
            its worker might apply either; or the worker is not known, since it was proven dead.
        """
        self.tick(now_s)
        worker = self._workers.get(question.worker)
        if worker is None or question.seq < worker.seq:
            return None
        worker.seen_s = now_s
        if question.seq > worker.seq:
            self._hear(question, worker, now_s)
        self._look_at_caps()
        give = self._pull(question, worker)
        self._divide(now_s)
        shares = self._shares(question.worker, worker)
        allow = self._allowance(worker)
        reply = Reply(
            seq=question.seq,
            epoch=self.epoch,
            lease_s=self._lease_s,
            shares=shares,
            allow=allow,
            give=give,
            disputed=[n for n in worker.shards if now_s >= self._disputed_s.get(n, math.inf)],
            pauses=self.pauses(now_s),
            stopped=dict(self._stopped),
            stop=self.stopping,
            is_over=self.is_over or self.capped is not None,
        )
        self._grant(question, worker, reply, now_s)
        return reply

    # What a question tells

    def _hear(self, question: Question, worker: _Worker, now_s: float) -> None:
        name = question.worker
        worker.seq = question.seq
        if not worker.is_live:
            worker.is_live = True
            self._is_news = True
        if question.epoch == self.epoch and question.ack:
            before = _most(worker)
            while len(worker.granted) > 1 and worker.granted[0][0] < question.ack:
                worker.granted.popleft()
            self._allowed += _most(worker) - before
        worker.purse = _capped_part(question.purse, self._money.caps)
        worker.lanes = question.lanes
        worker.have = frozenset(question.have)
        for number in question.done:
            self._finish(number)
        for number in question.have:
            if number in self._pending:  # it was lost for a while, and nobody else has begun
                self._own(name, number)
        for lane, seconds in question.pauses.items():
            if lane in self.totals.lanes:
                self._pauses[lane] = max(self._pauses.get(lane, 0.0), now_s + seconds)
        for lane, reason in question.stopped.items():
            if lane in self.totals.lanes:
                self._stopped.setdefault(lane, reason)
        self._note_held(name, worker)

    def _note_held(self, name: str, worker: _Worker) -> None:
        """What it may believe of each pool: the most of its grants; of places never less than are out."""
        held: dict[str, float] = {}
        for _, shares, _ in worker.granted:
            for pool_name, amount in shares.items():
                if amount > held.get(pool_name, 0.0):
                    held[pool_name] = amount
        out: dict[str, float] = {}
        for lane, need in worker.lanes.items():
            if need.out and lane in self._lane_pools:
                for pool_name in self._lane_pools[lane][0]:
                    out[pool_name] = out.get(pool_name, 0.0) + need.out
        for pool_name, amount in out.items():
            held[pool_name] = max(held.get(pool_name, 0.0), amount)
        for pool_name, pool in self._pools.items():
            amount = held.get(pool_name, 0.0)
            if amount != pool.held_by(name):
                pool.hold(name, amount)

    def _finish(self, number: int) -> None:
        if number in self._finished or number not in self._shards:
            return
        self._finished.add(number)
        self._first_ones.discard(number)
        owner = self._owner.pop(number, None)
        if owner is not None:
            del self._workers[owner].shards[number]
        elif number in self._pending:
            del self._pending[number]
            self._pending_rows -= self._shards[number].rows
        self._records.append(Record("", finished=(number,)))
        self._is_news = True

    def _own(self, name: str, number: int) -> None:
        shard = self._shards[number]
        del self._pending[number]
        self._pending_rows -= shard.rows
        self._owner[number] = name
        self._workers[name].shards[number] = shard

    def _disown(self, worker: _Worker) -> None:
        """Hand a worker's shards on."""
        for number, shard in worker.shards.items():
            del self._owner[number]
            self._pending[number] = None
            self._pending_rows += shard.rows
        worker.shards.clear()

    # What a reply gives

    def _pull(self, question: Question, worker: _Worker) -> list[int]:
        """Shards that the worker is to have and has not: new ones, and those whose reply was lost."""
        taken: list[int] = []
        if not self.stopping and self.capped is None:
            most = max(1, self._pending_rows // (SHARDS_AHEAD * self._number))
            promised = sum(shard.rows for number, shard in worker.shards.items() if number not in worker.have)
            room = min(question.free - promised, most)
            while room > 0 and (number := next(self._offered(), None)) is not None:
                taken.append(number)
                self._own(question.worker, taken[-1])
                room -= self._shards[taken[-1]].rows
            if worker.purse.is_starved and not promised and not taken:
                fresh = self._fresh_shard()
                if fresh is not None:
                    taken.append(fresh)
                    self._own(question.worker, fresh)
        if taken:
            self._records.append(Record(question.worker, owned=taken))
            self._is_news = True
        return [number for number in worker.shards if number not in worker.have]

    @property
    def _number(self) -> int:
        return max(1, self._crew, len(self._workers))

    def _fresh_shard(self) -> int | None:
        """A shard that nobody has and that may have calls which are not known to be too dear."""
        parked = {name for worker in self._workers.values() for name in worker.purse.parked}
        return next((number for number in self._offered() if not self._shards[number].kinds <= parked), None)

    def _offered(self) -> Iterator[int]:
        """Shards that nobody has and whose parents are made."""
        return (number for number in self._pending if not (self._first_ones and self._shards[number].is_late))

    def _divide(self, now_s: float) -> None:
        since_s = now_s - self._divided_s
        if since_s < DIVIDE_AT_MOST_EVERY_S or (since_s < DIVIDE_EVERY_S and not self._is_news):
            return
        self._divided_s, self._is_news = now_s, False
        if self._limits is not None:
            for name, total in self._limits.totals(now_s).items():
                self._pools[name].total = total
        for name, worker in self._workers.items():
            if worker.is_live:
                self._want(name, worker)
        for pool in self._pools.values():
            pool.divide()

    def _want(self, name: str, worker: _Worker) -> None:
        """What a worker could use: of places as many as it has rows, of a rate whatever it can get."""
        calls = {lane: need.want for lane, need in worker.lanes.items() if lane in self._lane_pools}
        for number, shard in worker.shards.items():
            if number not in worker.have:  # on its way
                for lane, rows in shard.lanes.items():
                    calls[lane] = calls.get(lane, 0) + rows
        demands: dict[str, float] = {}
        for lane, number in calls.items():
            if not number:
                continue
            places, rates = self._lane_pools[lane]
            for pool_name in places:
                demands[pool_name] = demands.get(pool_name, 0.0) + number
            for pool_name in rates:
                demands[pool_name] = math.inf
        for pool_name, pool in self._pools.items():
            pool.want(name, demands.get(pool_name, 0.0))

    def _shares(self, name: str, worker: _Worker) -> dict[str, float]:
        return {
            pool_name: pool.offer(name) for pool_name, pool in self._pools.items() if pool.total < math.inf
        }

    def _grant(self, question: Question, worker: _Worker, reply: Reply, now_s: float) -> None:
        name = question.worker
        worker.lease_end_s = max(worker.lease_end_s, now_s + CLOCKS * self._lease_s)
        self._expiry_s = min(self._expiry_s, worker.lease_end_s)
        before = _most(worker)
        last = worker.granted[-1] if worker.granted else None
        if last is not None and last[0] and last[1] == reply.shares and last[2] == reply.allow:
            worker.granted.pop()  # the same again: to acknowledge the later one is to hold the same
        worker.granted.append((question.seq, reply.shares, reply.allow))
        worker.allow = reply.allow
        self._allowed += _most(worker) - before
        self._note_held(name, worker)
        held = {p: pool.held_by(name) for p, pool in self._pools.items() if pool.held_by(name)}
        if (held, _most(worker)) != worker.recorded:
            worker.recorded = (held, _most(worker))
            self._records.append(Record(name, shares=held, allow=_most(worker)))

    def _forget_grants(self, name: str, worker: _Worker) -> None:
        """Its lease has ended: calls may be out, and money in use, but nothing starts on an old grant."""
        held = {p: pool.held_by(name) for p, pool in self._pools.items() if pool.held_by(name)}
        most = _most(worker)
        worker.granted.clear()
        worker.granted.append((0, held, most))

    # Money

    def _allowance(self, worker: _Worker) -> Charge:
        """What the worker may use in all from now on."""
        caps = self._money.caps
        if not caps:
            return NOTHING
        purse, most = worker.purse, _most(worker)
        # As if it had nothing but what it uses: what it could have, with what is free.
        ceiling = most + self._free()
        is_told = all(allow == most for _, _, allow in worker.granted)  # it spoke knowing what it may use
        if not worker.shards and not worker.have:
            return purse.used if is_told else worker.allow
        if purse.is_starved:
            for need in sorted(purse.parked.values(), key=_dearness):
                if _fits(caps, purse.used + need, ceiling):
                    return self._raised(worker, need, ceiling)
            # Its room helps nobody as it is; with that of others it may.
            return purse.used if is_told else worker.allow
        if _fits(caps, purse.used + _times(purse.worst, CHUNK_CALLS // 2), worker.allow):
            return worker.allow
        return self._raised(worker, purse.worst, ceiling)

    def _raised(self, worker: _Worker, call: Charge, ceiling: Charge) -> Charge:
        """An allowance for more calls of this size: for many while much is free, at last for one."""
        caps, used = self._money.caps, worker.purse.used
        chunk = _lesser(_times(call, CHUNK_CALLS), _part(self._free(), 2 * self._number))
        wanted = _greater(worker.allow, used + _greater(chunk, call))
        return wanted if _fits(caps, wanted, ceiling) else worker.allow

    def _free(self) -> Charge:
        """What nobody has spent and nobody may use; numbers that are not capped say nothing."""
        caps, taken = self._money.caps, self._money.spent + self._allowed
        return Charge(
            (caps.usd or ZERO) - taken.usd, (caps.calls or 0) - taken.calls, (caps.tokens or 0) - taken.tokens
        )

    def _look_at_caps(self) -> None:
        """Whether the run is to end: nobody has a call out, and no call that waits fits what is free."""
        caps = self._money.caps
        if not caps or self.capped is not None or self.is_over:
            return
        used, parked = NOTHING, list[Charge]()
        for worker in self._workers.values():
            purse = worker.purse
            has_rows = bool(worker.shards or worker.have)
            if not worker.is_live or _most(worker) != purse.used or (has_rows and not purse.is_starved):
                return
            used += purse.used
            parked.extend(purse.parked.values())
        if not parked or self._fresh_shard() is not None:
            return
        total = self._money.spent + used
        if any(caps.room(total + need) for need in parked):
            return
        self.capped = caps.passed_by(total + min(parked, key=_dearness))


def _most(worker: _Worker) -> Charge:
    """What a worker may believe that it may use."""
    most = NOTHING
    for _, _, allow in worker.granted:
        most = _greater(most, allow)
    return most


def _greater(one: Charge, other: Charge) -> Charge:
    return Charge(max(one.usd, other.usd), max(one.calls, other.calls), max(one.tokens, other.tokens))


def _lesser(one: Charge, other: Charge) -> Charge:
    return Charge(min(one.usd, other.usd), min(one.calls, other.calls), min(one.tokens, other.tokens))


def _times(charge: Charge, number: int) -> Charge:
    return Charge(number * charge.usd, number * charge.calls, number * charge.tokens)


def _part(charge: Charge, number: int) -> Charge:
    """A part of what is free, in whole millionths of a dollar; nothing when too much is taken."""
    usd = max(ZERO, charge.usd / number).quantize(MICRO, ROUND_DOWN)
    return Charge(usd, max(0, charge.calls // number), max(0, charge.tokens // number))


def _fits(caps: Caps, charge: Charge, ceiling: Charge) -> bool:
    return Caps(
        None if caps.usd is None else ceiling.usd,
        None if caps.calls is None else ceiling.calls,
        None if caps.tokens is None else ceiling.tokens,
    ).room(charge)


def _capped_part(purse: Purse, caps: Caps) -> Purse:
    """The numbers that are capped; zero in place of the others, so that charges can be compared."""

    def part(charge: Charge) -> Charge:
        return Charge(
            ZERO if caps.usd is None else charge.usd,
            0 if caps.calls is None else charge.calls,
            0 if caps.tokens is None else charge.tokens,
        )

    parked = {name: part(charge) for name, charge in purse.parked.items()}
    return Purse(part(purse.used), part(purse.worst), parked, purse.is_starved)


def _dearness(charge: Charge) -> tuple[object, ...]:
    return charge.usd, charge.tokens
