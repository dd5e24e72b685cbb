"""One lane, a model of an endpoint: its queues, and what is known of each of the endpoint's servers.

Rows belong to a lane, never to a server: a call goes to the server that has the fewest out, and so every
server gets as much as it gets done. Most endpoints are one server, as far as anybody can see.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

from genworker.core.batches import BatchSpec
from genworker.core.completion import Completion
from genworker.core.controller import Allowances, Belief, Call, Controller
from genworker.core.hints import Quantity

T = TypeVar("T", int, float)


@dataclass(frozen=True, slots=True)
class Wait:
    """A lane that makes no calls for now though it has rows.

    Attributes:
        why: in the words of the last refusal or failure; ``""`` where nobody has told.
        for_s: seconds that it has waited so far.
        left_s: seconds until it asks again; ``None`` while it asks.
    """

    lane: str
    why: str
    for_s: float
    left_s: float | None


@dataclass(frozen=True, slots=True)
class LaneSpec:
    """A lane: one model of one endpoint.

    Attributes:
        endpoint: index of the endpoint.
        name: for people, such as ``openrouter/gemini_25_pro``.
        fallback: the lane that gets the rows which this one refuses for good; -1 for none.
        rpm: requests per minute, where they are configured for this lane; else they are learned.
        tpm: tokens per minute, likewise.
        batch: how it is asked in batches; ``None`` for a lane that is asked call by call.
        live: the lane that asks the same call by call; -1 for none.
        first_calls: calls that may be out in its first second, as nothing has confirmed its key and name; 0
            for a lane that is known.
    """

    endpoint: int
    name: str
    fallback: int = -1
    rpm: float | None = None
    tpm: float | None = None
    batch: BatchSpec | None = None
    live: int = -1
    first_calls: int = 0

    def shared(self, first_calls: int) -> LaneSpec:
        """The same lane where its rates are shared out by somebody else, and so are its first calls."""
        return replace(self, rpm=None, tpm=None, first_calls=first_calls)


class Server:
    """One server of an endpoint, over all its lanes.

    Args:
        name: for people; empty for an endpoint that is one server.

    Attributes:
        is_in: whether it gets calls; one that was taken out of the list ends those that it has.
        in_flight: calls that are out.
        out_since_s: since when nothing could be sent to it; ``None`` while something can.
        last: the number of the endpoint's last call that went to it.
    """

    FIRST_PAUSE_S, MOST_PAUSE_S = 1.0, 60.0
    """Between two tries of a server that nothing could be sent to."""

    __slots__ = ("_pause_s", "_try_at_s", "in_flight", "is_in", "last", "name", "out_since_s")

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.is_in = True
        self.in_flight = 0
        self.last = 0
        self.out_since_s: float | None = None
        self._try_at_s = self._pause_s = 0.0

    def fail(self, now_s: float) -> bool:
        """Nothing can be sent to it; returns whether that is news."""
        is_news = self.out_since_s is None
        if not is_news and now_s < self._try_at_s:
            return False  # one of those that were begun with the first that failed
        self._pause_s = self.FIRST_PAUSE_S if is_news else min(self.MOST_PAUSE_S, 2 * self._pause_s)
        self._try_at_s = now_s + self._pause_s
        if is_news:
            self.out_since_s = now_s
        return is_news

    def mend(self) -> None:
        """It has answered, whatever it said."""
        self.out_since_s, self._try_at_s = None, 0.0

    def ready_at_s(self) -> float:
        """When a call may go to it; infinite: not before an event."""
        if self.is_in and (self.out_since_s is None or not self.in_flight):
            return self._try_at_s
        return math.inf


class Member:
    """What one lane knows of one server.

    Args:
        controller: of the server; a lane that turns out to be limited apart gets one of its own.
        breaker_calls: calls that the breaker looks back on.

    Attributes:
        failing: jobs whose calls have failed since the last answer.
        last: the last calls that were answered or met an outage: whether they were answered.
    """

    __slots__ = ("controller", "failing", "last", "server")

    def __init__(self, server: Server, controller: Controller, breaker_calls: int) -> None:
        self.server = server
        self.controller = controller
        self.failing: set[int] = set()
        self.last: deque[bool] = deque(maxlen=breaker_calls)

    def only_fails(self) -> bool:
        """Whether (nearly) all calls that the breaker looks back on have failed."""
        # Not "none at all": a gateway in front of a dead server may still answer a call out of its cache.
        return len(self.last) == self.last.maxlen and sum(self.last) <= 0.05 * len(self.last)

    def closed_since_s(self) -> float | None:
        """Since when nothing is let in; ``None`` while something is."""
        return self.controller.closed_s if self.server.out_since_s is None else self.server.out_since_s


@dataclass(slots=True, eq=False)
class Ticket:
    """A call from its begin to its end.

    Attributes:
        number: of the server that it went to.
        call: as its controller counts it.
    """

    number: int
    member: Member
    call: Call

    @property
    def at_s(self) -> float:
        """When it began."""
        return self.call.at_s


class Lane:
    """The state of one lane. It decides nothing about jobs.

    Args:
        number: of this lane in its run.
        depth: stages of the run.
        lanes: of its endpoint.

    Attributes:
        members: what it knows of each server of its endpoint, by the server's number.
        in_flight: its calls that are out.
        paused_until_s: somebody else asked for no calls before: a batch that was too much, another worker.
        stopped: why it gets no more calls; ``None`` while it works.
        reserved: jobs that are ready and whose money is reserved; they go first.
        open_jobs: its jobs that have not ended.
        rejected: rows refused for good in a row.
        has_answered: whether it ever did.
    """

    IS_QUICK_S = 10.0
    """A failure that took longer is no answer to the load, but a hang or a lost connection."""
    LEAST_FAILING = 3
    """So many different rows that fail one after the other are not at fault themselves."""

    __slots__ = (
        "allowances",
        "has_answered",
        "in_flight",
        "members",
        "number",
        "open_jobs",
        "paused_until_s",
        "queues",
        "ready",
        "ready_children",
        "rejected",
        "reserved",
        "spec",
        "stopped",
    )

    def __init__(
        self,
        number: int,
        spec: LaneSpec,
        depth: int,
        lanes: int = 1,
    ) -> None:
        self.number = number
        self.spec = spec
        self.members: list[Member] = []
        self.allowances = Allowances(spec.rpm, spec.tpm, lanes)
        self.queues = [deque[int]() for _ in range(depth)]
        self.reserved = deque[int]()
        self.ready = self.ready_children = 0
        self.open_jobs = 0
        self.in_flight = 0
        self.paused_until_s = 0.0
        self.stopped: str | None = None
        self.rejected = 0
        self.has_answered = False

    def belief(self) -> Belief:
        """What it believes of its endpoint: of all its servers together."""
        members = self._present()
        beliefs = [member.controller.belief(self.number) for member in members]
        if len(beliefs) == 1 and members[0].server.out_since_s is None:
            return beliefs[0]
        closed = [member.closed_since_s() for member in members]
        asks = [
            member.server.ready_at_s() if belief.asks_at_s is None else belief.asks_at_s
            for member, belief in zip(members, beliefs, strict=True)
        ]
        chances = [belief.chance for belief in beliefs if belief.chance is not None]
        known = [since_s for since_s in closed if since_s is not None]
        is_closed = bool(known) and len(known) == len(closed)
        return Belief(
            at_once=_sum(belief.at_once for belief in beliefs),
            per_min=_sum(belief.per_min for belief in beliefs),
            chance=max(chances, default=None),
            slow_at_once=_sum(belief.slow_at_once for belief in beliefs),
            closed_s=max(known) if is_closed else None,
            asks_at_s=min(asks) if is_closed and min(asks) < math.inf else None,
        )

    def _present(self) -> list[Member]:
        return [member for member in self.members if member.server.is_in]

    def found(self) -> dict[str, float]:
        """What the endpoint was found to allow: ``at_once``, and ``per_min`` where a rate is known."""
        belief = self.belief()
        at_once = [n for n in (belief.at_once, belief.slow_at_once, self.allowances.at_once) if n is not None]
        announced = self.allowances.known_per_min(Quantity.REQUESTS)
        per_min = [n for n in (belief.per_min, announced) if n is not None]
        return ({"at_once": float(min(at_once))} if at_once else {}) | (
            {"per_min": min(per_min)} if per_min else {}
        )

    def ready_at_s(self, now_s: float) -> float:
        """When the next call may start, as far as is known; infinite: not before an event."""
        at_once = self.allowances.at_once
        if at_once is not None and self.in_flight >= at_once:
            return float("inf")
        members = self.members
        if len(members) == 1:
            soonest_s = self._member_ready_at_s(members[0], now_s)
        else:
            soonest_s = min((self._member_ready_at_s(member, now_s) for member in members), default=math.inf)
        return max(soonest_s, self.allowances.ready_at_s, self.paused_until_s)

    def _member_ready_at_s(self, member: Member, now_s: float) -> float:
        return max(member.controller.ready_at_s(self.number, now_s), member.server.ready_at_s())

    def _next_member(self, now_s: float) -> int:
        """The server that gets the next call: of those with room the one with the fewest out."""
        if len(self.members) == 1:
            return 0
        free = [n for n, member in enumerate(self.members) if self._member_ready_at_s(member, now_s) <= now_s]
        return min(free, key=lambda n: (self.members[n].server.in_flight, self.members[n].server.last))

    def pause(self, until_s: float) -> None:
        """No calls before."""
        self.paused_until_s = max(self.paused_until_s, until_s)

    def begin(self, stage: int, now_s: float) -> Ticket:
        """Count a start; returns its ticket, which the events below want back."""
        number = self._next_member(now_s)
        member = self.members[number]
        self.in_flight += 1
        member.server.in_flight += 1
        # A lane that an announced allowance holds back tells the controller nothing about the limit that it
        # looks for.
        is_held = self.allowances.hold(now_s)
        self.allowances.take(stage, now_s)
        return Ticket(number, member, member.controller.begin(self.number, stage, now_s, is_held=is_held))

    def not_begun(self, ticket: Ticket) -> None:
        """A start did not become a call."""
        self.allowances.give_back(ticket.call.stage)
        self.abandoned(ticket)

    def not_sent(self, ticket: Ticket, now_s: float) -> bool:
        """Its server cannot be reached; returns whether that is news."""
        self.not_begun(ticket)
        return ticket.member.server.fail(now_s)

    def abandoned(self, ticket: Ticket) -> None:
        """Nobody waits for the call any more."""
        self._leave(ticket)
        ticket.call.controller.cancel(ticket.call)

    def _leave(self, ticket: Ticket) -> None:
        self.in_flight -= 1
        ticket.member.server.in_flight -= 1

    def answered(self, ticket: Ticket, completion: Completion, now_s: float) -> float:
        """A call brought an answer; returns how many tokens more it took than was counted at its start."""
        call, member = ticket.call, ticket.member
        self._leave(ticket)
        member.server.mend()
        call.controller.answered(call, completion.latency_s, now_s)
        member.last.append(True)
        self.has_answered = True
        if member.controller.closed_s is None:
            # While the server is closed one scout's answer is no proof yet: its failing rows still count.
            member.failing.clear()
        self.rejected = 0
        self.allowances.heed(completion.quotas, now_s)
        usage = completion.usage
        return self.allowances.settle(call.stage, usage.input_tokens, usage.output_tokens)

    def took(self, ticket: Ticket, now_s: float) -> None:
        """The endpoint took a call and brought no answer, for a reason that is not its load."""
        self._leave(ticket)
        # Without a latency: how long a refusal takes says nothing about how slow answers are.
        ticket.call.controller.answered(ticket.call, None, now_s)

    def refused(self, ticket: Ticket, job: int, hint_s: float | None, now_s: float) -> None:
        """The endpoint asked for fewer calls."""
        ticket.member.server.mend()
        self._fails(ticket, job, hint_s, now_s, is_outage=False)

    def out_of_order(self, ticket: Ticket, job: int, hint_s: float | None, now_s: float) -> bool:
        """A call failed for an outage; returns whether the server is at fault rather than the row."""
        member = ticket.member
        member.last.append(False)
        # An overloaded server says so at once. What hangs for a minute was lost on the way, and fewer calls
        # would not mend that.
        if now_s - ticket.at_s <= self.IS_QUICK_S:
            self._fails(ticket, job, hint_s, now_s, is_outage=True)
        else:
            member.failing.add(job)
            self.abandoned(ticket)
        only_fails = member.only_fails()
        if only_fails:
            member.controller.shut(self.number, now_s)
        return only_fails or (
            member.controller.closed_s is not None and len(member.failing) >= self.LEAST_FAILING
        )

    def _fails(
        self, ticket: Ticket, job: int, hint_s: float | None, now_s: float, *, is_outage: bool
    ) -> None:
        call, member = ticket.call, ticket.member
        self._leave(ticket)
        member.failing.add(job)
        known = call.controller
        known.refused(call, hint_s, now_s, is_outage=is_outage)
        # The controller has seen that this lane is refused while its neighbours are not. So it has a limit
        # of its own, and learns alone from here on.
        if known.apart == self.number:
            known.apart = None
            if member.controller is known:
                member.controller = Controller(known.ceiling)

    def has_others(self, server: Server) -> bool:
        """Whether another server may be asked in place of this one."""
        return any(
            member.server is not server and member.server.out_since_s is None for member in self._present()
        )

    def closed_for_s(self, now_s: float) -> float:
        """Seconds since which nothing is let in, by no server; 0 while one of them is open."""
        since = [member.closed_since_s() for member in self._present()]
        known = [since_s for since_s in since if since_s is not None]
        return now_s - max(known) if known and len(known) == len(since) else 0.0

    @property
    def watched(self) -> int:
        """How many calls the breaker looks back on."""
        return max(len(member.last) for member in self.members)


def _sum(values: Iterable[T | None]) -> T | None:
    """The sum; ``None`` when one of them is not known."""
    known = list(values)
    return None if None in known or not known else sum(known)  # type: ignore[arg-type]
