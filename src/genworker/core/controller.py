"""How fast an endpoint may be called and how many calls it takes at once: one law for every kind of limit.

Objective: the most calls let in per second, where looking for more may cost 2 % of them in refusals. A
refusal is an answer that asks for fewer calls (429, 529), or a 5xx: a server that sheds load says either.

    start    64 calls a second, half of it from 32 calls out on. Answers carry further: each lets the rate
             grow by a sixteenth, and two more calls be out.
    let in   A call is let in once it has been answered, or has been out for twice as long as refusals
             take.
    rounds   Calls are counted in rounds of 16 or of 0.3 s, whichever is more. Too many are refused when
             there are more than p n + 2 sqrt(p n (1 - p)) + 1 of n, where p is the share that is refused
             by chance.
    rate     Too many refused: the allowance is empty. From one such moment to the next, the calls that
             were let in over the time are the rate; 0.98 of it is kept. It is held for longer (16 calls,
             times 4 while the same rate is found again) the more refusals it costs to try: these are at
             most 2 % of the calls held. Then more is tried, by 5 % at first, and half as much again from
             round to round, once a round at the present rate is known to be good; and never so much that
             more than 8 calls (or 2 %) are out of which nothing has been heard, or twice the rate.
    guess    Where nothing is saved up the mean tells what was asked, not what there is. So a cut goes back
             to the last rate that was good for a round, if that is more than the mean; where it is refused
             at once the mean is taken, and the next two cuts do without.
    chance   A rate that has not been raised and is refused all the same may be refused by chance: the
             round after a cut is an easy one, at 0.7 of the rate. What is refused there is refused
             whatever the rate; if it is much, the cut is taken back. Once chance is known, an easy round in
             which more is refused is one of a limit: chance does not grow with the load.
    closed   So many refused in a row as chance does not bring (p^k < e^-10, at least 3): nothing is let in
             now. The lane sends single scouts: at once, when the first refusal's hint is over, then after
             each further fifth of the time (half of it, where a 5xx said so), and when answers have come
             back. One that is let in opens the lane again.
    number   It came in as soon as fewer were out than when the others were refused, which no call was
             that was let in before: it is the number of calls at once. One more is tried after 32 calls
             at the full number, the more seldom the more often it is refused, the sooner when it is let in.
    window   Nothing came in for a time in which the rate would have let in several: a window. Its calls
             come at once, so the rate doubles from round to round.

A hint delays its own call (the scheduler sees to that) and the first scout, never the other calls. Limits
that are announced or configured are `Allowance`s on top; where such a one holds calls back, what is
refused is chance. Servers that queue and never refuse are found out by `Slowness`. The lanes of an
endpoint begin with one controller, and so share what it learns, until one of them is refused while the
others are not.

Time comes in as a number of seconds; equal events give equal decisions.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from genworker.core.hints import Quantity, Quota


@dataclass(frozen=True, slots=True)
class Tuning:
    """Every number of the law, in the units that its name or the text below says."""

    start_per_s: float = 64.0
    """Calls a second of an unknown endpoint: a client that asks for 64 at once has as many out."""
    start_at_once: int = 32
    """Calls out up to which nobody waits for answers."""
    start_gain: float = 2.0
    """Calls that may be out in addition per answer: they treble in a round trip."""
    most_per_s: float = 5000.0
    """There is nothing to spread above: calls begin as they come."""
    round_calls: int = 16
    round_s: float = 0.3
    """A round is at least so many calls, and so many seconds."""
    round_most: int = 128
    chance: float = 0.01
    """Share refused by chance that is believed before anything is known."""
    chance_weight: float = 4.0
    """Calls that this belief counts for."""
    chance_memory: float = 0.85
    """Weight of the rounds before beside the present one."""
    chance_round: int = 48
    """Calls of a round that tells chance from a limit, within `easy_s`."""
    deviations: float = 2.0
    """Standard deviations by which refusals must exceed what chance explains."""
    row_odds: float = 10.0
    """A row of refusals that chance brings once in e^10 = 22,000 times closes."""
    row_least: int = 3
    guesses: int = 2
    """Cuts that take the mean after a guess that was refused."""
    unheard: float = 8.0
    """Calls that may be out unheard of, beyond the rate that was found, when more is tried."""
    vain_odds: float = 3.0
    """The same for calls that are tried beyond a known number at once: e^3 is once in 20."""
    share: float = 0.98
    """Of a rate that was found: clocks and networks jitter."""
    same: float = 0.24
    """Natural logarithm up to which two rates are the same."""
    weight_calls: float = 6.0
    """Calls that the rate found before counts for: a short while says little."""
    cost: float = 0.02
    """Refusals per call that trying for more may cost."""
    longer: float = 4.0
    """Times longer that a rate is held which was found again."""
    step: float = 0.05
    faster: float = 1.5
    step_back: float = 1.0
    """How much more is tried first, and by how much more from round to round."""
    easy: float = 0.7
    """Share of the load in an easy round."""
    easy_share: float = 0.05
    easy_every: int = 12
    """While more than this share is refused, every so-manieth round is an easy one."""
    easy_s: float = 2.0
    """Seconds that an easy round lasts at most, beyond a plain one."""
    scout: float = 0.2
    scout_outage: float = 0.25
    """Share of the time closed until the next scout."""
    scout_least_s: float = 0.02
    scout_outage_least_s: float = 0.5
    window_calls: float = 3.0
    window_s: float = 2.0
    """A lane that was closed for so long, and for so many calls of its rate, met a window."""
    hear_s: float = 0.5
    """Seconds that refusals take, before the first."""
    hear_times: float = 2.0
    number_wait: int = 16
    """Calls at the full number until one more is tried."""
    number_again: int = 4
    """The same at least, after one more was let in."""
    number_hints: float = 5.0
    """Hints between two tries for more at once: an endpoint that asks for a minute's pause means it."""
    catch_up_s: float = 0.005
    """How much of its time a late start may regain: timers are late, but some servers take no two at once."""
    slow_hold: float = 1.25
    slow_cut: float = 1.5
    """Latency over the baseline from which calls at once do not grow, and are cut to where the first is."""
    slow_errors: float = 2.5
    """Standard errors of the medians by which a latency must exceed that, so that heavy tails do not cut."""
    slow_growth: float = 0.1
    left_least: float = 0.1
    left_low: float = 0.3
    left_high: float = 0.6
    """Shares of an announced allowance that are left. Below the first somebody else uses it too; below the
    second a lane goes no faster than what is announced; above the third it may."""


TUNING = Tuning()


@dataclass(slots=True, eq=False)
class Call:
    """A ticket: one call from its begin to its end.

    Attributes:
        seq: counts the controller's calls from 1, in the order of their begins.
        out: the controller's calls that were out when it began, itself counted.
        level: the same of its lane alone.
        round: the round that it is counted in.
        batch: the batch of `Slowness` that it is counted in.
    """

    controller: Controller
    seq: int
    at_s: float
    lane: int
    stage: int
    out: int
    level: int
    round: int = 0
    batch: int = 0
    is_over: bool = False
    is_refused: bool = False
    is_let_in: bool = False
    heard_s: float = math.inf


@dataclass(frozen=True, slots=True)
class Belief:
    """What a controller believes of its endpoint, for people; ``None`` where it knows of no such limit.

    Attributes:
        at_once: calls at once that are let in.
        per_min: calls a minute.
        chance: share of calls refused whatever one does, from 0 to 1.
        slow_at_once: calls at once beyond which the server answers later.
        closed_s: since when nothing is let in, on the scheduler's clock.
        asks_at_s: when the next scout goes, on the same clock; ``None`` while one is out.
    """

    at_once: int | None = None
    per_min: float | None = None
    chance: float | None = None
    slow_at_once: int | None = None
    closed_s: float | None = None
    asks_at_s: float | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """A change of mind, with the evidence in words.

    Attributes:
        what: ``closed``, ``reopened``, ``rate``, ``number``, ``chance``, ``slow`` or ``apart``.
    """

    lane: int
    what: str
    why: str


class LaneControl(Protocol):
    """What a lane asks of whoever knows its endpoint's limits."""

    def ready_at_s(self, lane: int, now_s: float) -> float:
        """When the lane's next call may begin, as far as is known; infinite: not before an event."""
        ...

    def begin(self, lane: int, stage: int, now_s: float, *, is_held: bool = False) -> Call:
        """Count a call that begins.

        Args:
            is_held: whether an announced or configured allowance held it back.
        """
        ...

    def cancel(self, call: Call) -> None:
        """The call was not sent, or nobody waits for it any more: it says nothing."""
        ...

    def answered(self, call: Call, latency_s: float | None, now_s: float) -> None:
        """The endpoint took the call.

        Args:
            latency_s: ``None`` when it tells nothing, as with a call refused for what it asks.
        """
        ...

    def refused(self, call: Call, hint_s: float | None, now_s: float, *, is_outage: bool = False) -> None:
        """The endpoint asked for fewer calls, or failed."""
        ...

    def shut(self, lane: int, now_s: float) -> None:
        """Calls only fail, however late: one at a time from here on, until one is answered."""
        ...


@dataclass(slots=True)
class _Round:
    """Calls that are judged together."""

    number: int
    size: int
    rate: float
    is_easy: bool = False
    begun: int = 0
    paced: int = 0
    held: int = 0
    let_in: int = 0
    refused: int = 0
    is_judged: bool = False


class Controller:
    """The law of this module for one endpoint, or for one of its lanes.

    Args:
        ceiling: calls out that are configured at most.

    Attributes:
        in_flight: calls that are out.
        rate: calls a second that may begin.
        number: calls at once that are let in; infinite while unknown.
        chance: share of calls refused whatever one does.
        closed_s: since when nothing is let in; ``None`` while the lane is open.
        apart: the lane that was refused while the others were not: it needs a controller of its own.
    """

    def __init__(self, ceiling: int, tuning: Tuning = TUNING) -> None:
        self._t = tuning
        self.ceiling = ceiling
        self.in_flight = 0
        self.apart: int | None = None
        self.changes: list[Change] = []
        self._out: dict[int, int] = {}  # by lane
        self._slow: dict[int, Slowness] = {}
        # Calls
        self._seq = 0
        self._calls: dict[int, Call] = {}
        self._young: deque[Call] = deque()  # may still be refused
        self._gone: deque[Call] = deque(maxlen=512)  # refused, as they were heard of
        self._starts: deque[float] = deque(maxlen=20)
        self._let_in_calls = 0
        self._refused_share = 0.0
        self._hear_s: float | None = None
        # Rate
        self.rate = tuning.start_per_s
        self._ready_s = 0.0
        self._is_known = False
        self._held_rate = math.inf  # the rate of the last cut
        self._limit_calls = 0
        self._held = (0, 0)
        self._good = 0.0
        self._is_guess = False
        self._no_guess = 0  # cuts until a guess is tried again
        self._cuts: list[tuple[float, float]] = []  # (rate, let in) of cuts that no easy round has confirmed
        self._found: float | None = None
        self._measured: float | None = None
        self._empty_s: float | None = None  # when the allowance was last seen empty, by the call `_empty_seq`
        self._empty_seq = 0
        self._refused_since: list[int] = []
        self._hold = 0
        self._next_hold = tuning.round_calls
        self._step = tuning.step
        # Chance
        self.chance = tuning.chance
        self._chance_refused = self._chance_calls = 0.0
        self._easy_next = False
        self._plain_rounds = 0
        self._round = _Round(1, tuning.round_calls, tuning.start_per_s)
        self._rounds = {1: self._round}
        # Closed
        self.closed_s: float | None = None
        self._scout: Call | None = None
        self._scouts = 0
        self._scout_at_s = self._hint_end_s = self._closing_s = 0.0
        self._is_outage = self._is_shut = False
        self._saw_first = self._saw_least = math.inf
        self._answers, self._answers_wanted = 0, 1
        self._at_close: tuple[float, bool, float | None, int, float]
        self._at_close = (self.rate, False, None, 0, self._step)
        self._opened = (0, 0.0)  # calls let in until the last opening, and its time
        # Number
        self.number = math.inf
        self._tried = math.inf
        self._reach = math.inf  # as far as answers have carried
        self._more, self._full, self._wait, self._try_at_s = 1, 0, tuning.number_wait, 0.0
        self._in_vain = 0  # calls tried beyond the number and refused, since one was let in
        # What refused calls and those among them that were let in saw, since the last such comparison
        self._saw_most, self._refused_saw = 0, math.inf
        self._refused_calls = self._among = 0
        self._told: dict[str, float] = {}

    # What the lane asks

    def ready_at_s(self, lane: int, now_s: float) -> float:
        """See `LaneControl.ready_at_s`."""
        self._age(now_s)
        if self.closed_s is not None:
            return self._scout_at_s if self._scout is None else self._decided_at_s()
        slow = self._slow.get(lane)
        if self.in_flight >= self.limit or (slow is not None and self._out[lane] >= slow.limit):
            return self._decided_at_s()
        if self.in_flight >= self.number and len(self._starts) > 1:
            # One more than is known: apart from the others, or it would be their burst that is refused.
            return max(self._ready_s, self._starts[-1] + 0.5 / self._starts_per_s())
        return self._ready_s

    def _decided_at_s(self) -> float:
        """When the oldest young call counts as let in, which may change everything."""
        return self._young[0].at_s + self._let_in_s if self._young and self._can_age else math.inf

    @property
    def _can_age(self) -> bool:
        return self._hear_s is not None and not self._is_shut

    @property
    def _let_in_s(self) -> float:
        return self._t.hear_times * (self._t.hear_s if self._hear_s is None else self._hear_s)

    @property
    def limit(self) -> int:
        """Calls that may be out, from 1 to the ceiling."""
        return int(max(1.0, min(self._tried, self._reach, self.ceiling)))

    def belief(self, lane: int) -> Belief:
        """What is believed of a lane's endpoint."""
        slow = self._slow.get(lane)
        return Belief(
            at_once=None if self.number == math.inf else int(self.number),
            per_min=60.0 * self.rate if self._is_known and self.rate < self._t.most_per_s else None,
            chance=self.chance if self.chance >= 2 * self._t.chance else None,
            slow_at_once=slow.limit if slow is not None and slow.cap < math.inf else None,
            closed_s=self.closed_s,
            asks_at_s=self._scout_at_s if self.closed_s is not None and self._scout is None else None,
        )

    # What happens to calls

    def begin(self, lane: int, stage: int, now_s: float, *, is_held: bool = False) -> Call:
        """See `LaneControl.begin`."""
        t = self._t
        self._seq += 1
        self.in_flight += 1
        self._out[lane] = self._out.get(lane, 0) + 1
        call = Call(self, self._seq, now_s, lane, stage, self.in_flight, self._out[lane])
        self._calls[call.seq] = call
        self._calls.pop(call.seq - 2048, None)
        self._young.append(call)
        if lane not in self._slow:
            self._slow[lane] = Slowness(t)
        self._slow[lane].begin(call)
        self._count_start(call, now_s, is_held)
        if self.closed_s is not None:
            self._scout = call
            self._scouts += 1
        else:
            self._starts.append(now_s)
            self._hold = max(0, self._hold - 1)
            self._try_more_at_once(now_s)
        return call

    def _count_start(self, call: Call, now_s: float, is_held: bool) -> None:
        t = self._t
        current = self._round if self._round.begun < self._round.size else self._next_round()
        pace = self.rate * (t.easy if current.is_easy else 1.0)
        if self._reach == math.inf and not self._is_known and self.in_flight > t.start_at_once:
            pace /= 2  # no answer yet: nobody knows whether they queue
        call.round = current.number
        current.begun += 1
        # Paced: the rate is what held it back, rather than calls that are out or rows that were not ready.
        current.paced += now_s - self._ready_s <= max(t.catch_up_s, 0.5 / pace)
        current.held += is_held
        self._ready_s = max(self._ready_s, now_s - t.catch_up_s) + 1.0 / pace

    def _try_more_at_once(self, now_s: float) -> None:
        if self._tried < math.inf and self.in_flight >= int(self._tried):
            self._full += 1
            if self._full >= self._wait and now_s >= self._try_at_s:
                self._full = 0
                self._tried = min(float(self.ceiling), self._tried + self._more)
                self._more = min(self.ceiling, 2 * self._more)

    def cancel(self, call: Call) -> None:
        """See `LaneControl.cancel`."""
        self._leave(call)
        self._slow[call.lane].lost(call)
        counted = self._rounds.get(call.round)
        if counted is not None:
            counted.begun -= 1
        if self._scout is call:
            self._scout, self._scout_at_s = None, call.at_s

    def _leave(self, call: Call) -> None:
        call.is_over = True
        self.in_flight -= 1
        self._out[call.lane] -= 1

    def answered(self, call: Call, latency_s: float | None, now_s: float) -> None:
        """See `LaneControl.answered`."""
        self._leave(call)
        self._age(now_s)
        slow, t = self._slow[call.lane], self._t
        if latency_s is None:
            slow.lost(call)
        else:
            self._note(call.lane, "slow", slow.answered(call, latency_s))
        if not call.is_let_in:
            self._let_in(call)
        if not self._is_known and self.closed_s is None:
            self.rate = min(t.most_per_s, self.rate * (1 + 1 / t.round_calls))
        if self._reach == math.inf:
            self._reach = float(max(t.start_at_once, self.in_flight + 1))
        elif not slow.is_holding:
            self._reach = min(float(self.ceiling), self._reach + t.start_gain)
        if self.closed_s is not None and self._scout is None:
            # Fewer are out now; perhaps it was their number.
            self._answers += 1
            if self._answers >= self._answers_wanted:
                self._answers, self._answers_wanted = 0, 2 * self._answers_wanted
                self._scout_at_s = now_s

    def _age(self, now_s: float) -> None:
        """Let in what has been out for so long that its refusal would have been heard."""
        while self._young and (
            self._young[0].is_over or (self._can_age and self._young[0].at_s + self._let_in_s <= now_s)
        ):
            call = self._young.popleft()
            if not call.is_over and not call.is_let_in:
                self._let_in(call)

    def _let_in(self, call: Call) -> None:
        t = self._t
        call.is_let_in = True
        self._let_in_calls += 1
        self._refused_share -= 0.03 * self._refused_share
        saw = self._saw(call)
        self._saw_most = max(self._saw_most, saw)
        self._among += self._refused_calls > 0
        if self.number <= saw:
            self.number, self._in_vain = saw + 1.0, 0
            self._tried = max(self._tried, self.number)
            self._wait = max(t.number_again, self._wait // 4)
        if call is self._scout:
            self._open(call)
        counted = self._rounds.get(call.round)
        if counted is not None:
            counted.let_in += 1
            self._judge(counted, None)

    def _saw(self, call: Call) -> int:
        """Calls that the endpoint really had when this one came: not those that it was about to refuse."""
        doomed = 0
        for other in reversed(self._gone):
            if other.heard_s <= call.at_s:
                break
            doomed += other.seq < call.seq
        return call.out - 1 - doomed

    def refused(self, call: Call, hint_s: float | None, now_s: float, *, is_outage: bool = False) -> None:
        """See `LaneControl.refused`."""
        t = self._t
        self._leave(call)
        self._slow[call.lane].lost(call)
        call.is_refused, call.heard_s = True, now_s
        took = max(0.01, now_s - call.at_s)
        known = self._hear_s
        self._hear_s = took if known is None else max(took, known + 0.1 * (took - known))
        self._age(now_s)
        self._refused_share += 0.03 * (1.0 - self._refused_share)
        saw = self._saw(call)
        self._gone.append(call)
        if call.seq > self._empty_seq:
            self._refused_since.append(call.seq)
        counted = self._rounds.get(call.round)
        if counted is not None:
            counted.refused += 1
        if self.closed_s is not None:
            self._refused_while_closed(call, saw, hint_s, now_s)
            return
        if self.number <= saw:
            # It is one of those that were tried beyond the number that is known, and chance may be why, too.
            self._in_vain += 1
            if self._in_vain * -math.log(self.chance) >= t.vain_odds:
                self._tried, self._more, self._full, self._in_vain = self.number, 1, 0, 0
                self._wait = min(2 * self._wait, round(1 / t.cost))
                self._try_at_s = now_s + t.number_hints * (hint_s or 0.0)
            if counted is not None:
                counted.begun -= 1
                counted.refused -= 1
            return
        if len(self._out) > 1 and self._is_apart(call.lane):
            self._note(call.lane, "apart", "it is refused while the other lanes of its endpoint are not")
            self.apart = call.lane
            self._pardon()
            return
        self._refused_saw = min(self._refused_saw, saw)
        self._refused_calls += 1
        row = self._row(call)
        if len(row) >= t.row_least and len(row) * -math.log(self.chance) >= t.row_odds:
            self._close(row, hint_s, now_s, is_outage)
        elif counted is not None:
            self._judge(counted, call)

    def _row(self, call: Call) -> list[Call]:
        """The refused calls that were begun one after the other around this one."""
        first = last = call.seq
        while (other := self._calls.get(first - 1)) is not None and other.is_refused:
            first -= 1
        while (other := self._calls.get(last + 1)) is not None and other.is_refused:
            last += 1
        return [self._calls[seq] for seq in range(first, last + 1)]

    # Several lanes

    def _is_apart(self, lane: int) -> bool:
        """Whether this lane is refused while the others, at the same time, are not."""
        own, others = [0, 0], [0, 0]
        for seq in range(max(1, self._seq - 64), self._seq + 1):
            call = self._calls.get(seq)
            if call is not None and (call.is_refused or call.is_let_in):
                tally = own if call.lane == lane else others
                tally[0] += call.is_refused
                tally[1] += 1
        if own[0] < 5 or others[1] < 8:
            return False
        share = min(0.98, own[0] / own[1])
        return others[0] <= 0.1 * share * others[1] and others[1] * -math.log(1.0 - share) >= self._t.row_odds

    def _pardon(self) -> None:
        """What was refused was another lane's: forget what it taught."""
        self.rate = max([self.rate, *(rate for rate, _ in self._cuts)])
        self._cuts.clear()
        self.number = self._tried = math.inf
        self._found = self._measured = self._empty_s = None
        self._is_known, self._hold, self._easy_next = False, 0, False
        self._drop_rounds()

    # Closed, and open again

    def shut(self, lane: int, now_s: float) -> None:
        """See `LaneControl.shut`."""
        if self.closed_s is None:
            self._is_shut = True
            self._saw_first = self._saw_least = 0.0
            self._begin_closed(now_s, None, now_s, is_outage=True)
            self._note(lane, "closed", "its last calls all failed")

    def _close(self, row: list[Call], hint_s: float | None, now_s: float, is_outage: bool) -> None:
        self._saw_first = self._saw_least = min(self._saw(call) for call in row)
        self._begin_closed(row[0].at_s, hint_s, now_s, is_outage)
        self._learn(row[0])
        self._drop_rounds(goes_on=True)
        hint = "" if hint_s is None else f", asked to wait {hint_s:g} s"
        self._note(row[-1].lane, "closed", f"{len(row)} calls in a row were refused{hint}")

    def _begin_closed(self, since_s: float, hint_s: float | None, now_s: float, is_outage: bool) -> None:
        self.closed_s, self._closing_s = since_s, now_s
        self._is_outage = is_outage
        self._scout, self._scouts, self._scout_at_s = None, 0, now_s
        self._hint_end_s = now_s + (hint_s or 0.0)
        self._answers, self._answers_wanted = 0, 1
        self._at_close = (self.rate, self._is_known, self._found, self._hold, self._step)
        self._starts.clear()

    def _refused_while_closed(self, call: Call, saw: int, hint_s: float | None, now_s: float) -> None:
        assert self.closed_s is not None
        self._saw_least = min(self._saw_least, saw)
        if call is not self._scout:
            self._hint_end_s = max(self._hint_end_s, now_s + (hint_s or 0.0))
            return
        t = self._t
        self._scout = None
        closed_s = now_s - self.closed_s
        pause_s = max(t.scout_least_s, t.scout * closed_s)
        if self._is_outage:
            pause_s = max(t.scout_outage_least_s, t.scout_outage * closed_s)
        self._scout_at_s = now_s + pause_s
        if now_s < self._hint_end_s:
            self._scout_at_s = self._hint_end_s

    def _open(self, scout: Call) -> None:
        """A scout was let in. When, and with how many out, tells what was at work."""
        t = self._t
        assert self.closed_s is not None
        closed_s = scout.at_s - self.closed_s
        let_in, since_s = self._opened
        calls = self._let_in_calls - let_in
        mean = calls / max(1e-3, scout.at_s - since_s)
        before, was_known, found, hold, step = self._at_close
        least = self._saw_least
        is_number = self._saw(scout) < least and least >= 0.8 * self._saw_first and self._saw_most <= least
        self.closed_s, self._scout, self._is_shut = None, None, False
        if is_number and least >= 1:
            self.rate, self._is_known, self._found, self._hold, self._step = (
                before,
                was_known,
                found,
                hold,
                step,
            )
            self._ready_s = scout.at_s
            self._set_number(least, self._hint_end_s - self._closing_s)
            why = f"{int(least)} calls at once: with so many out others were refused, with one less none was"
        else:
            self.number = self._tried = math.inf
            self._wait = t.number_wait
            why = f"after {closed_s:.1f} s"
            if mean * closed_s > t.window_calls and closed_s > t.window_s and calls >= t.round_calls:
                self.rate, self._is_known, self._found = min(mean, before), True, found
                self._held_rate = self.rate
                self._hold, self._step, self._easy_next, self._empty_s = 0, 1.0, False, None
                why += f"; {calls} calls were let in over {scout.at_s - since_s:.1f} s"
            elif self._found is None:
                self.rate, self._is_known = max(self.rate / 4, min(self.rate, 1 / max(1e-3, closed_s))), True
                self._hold, self._step, self._easy_next = 0, t.step, False
        self._opened = (self._let_in_calls, scout.at_s)
        self._limit_calls = self._let_in_calls
        self._compare_anew()
        self._ready_s = scout.at_s
        self._drop_rounds(goes_on=self._scouts <= 2)
        self._note(scout.lane, "number" if is_number else "reopened", why)

    # Rounds

    def _next_round(self) -> _Round:
        t = self._t
        size = t.round_calls
        if self._is_known:
            size = max(size, min(t.round_most, round(t.round_s * self.rate)))
        if self.chance > 2 * t.chance:
            size = max(
                size,
                min(t.chance_round, round(t.round_calls * (1 + 20 * self.chance)), round(1.5 * self.rate)),
            )
        easy, self._easy_next = self._easy_next, False
        self._plain_rounds += 1
        if self._plain_rounds >= t.easy_every and self._refused_share > t.easy_share and self._found:
            easy = True
        if easy:
            self._plain_rounds = 0
            size = max(size, min(t.chance_round, round(t.easy_s * self.rate)))
        self._round = _Round(self._round.number + 1, size, self.rate, easy)
        self._rounds[self._round.number] = self._round
        return self._round

    def _drop_rounds(self, *, goes_on: bool = False) -> None:
        """Judge nothing that began before, but for easy rounds that are complete, or `goes_on`."""
        current = self._round
        self._rounds = {
            number: other
            for number, other in self._rounds.items()
            if other.is_easy and (goes_on or other.begun >= other.size)
        }
        if current.is_easy and not current.is_judged and current.number not in self._rounds:
            self._easy_next = True
        if current.number not in self._rounds or current.begun >= current.size:
            self._next_round()

    def _judge(self, counted: _Round, call: Call | None) -> None:
        """Look at a round: too many refused, or over and good?

        Args:
            call: that was refused just now; ``None`` when one was let in.
        """
        t, n = self._t, counted.size
        if self._refused_share < 0.4 * self.chance:
            self.chance = max(t.chance, 0.8 * self.chance)
        p = self.chance
        is_easy = counted.is_easy or 2 * counted.held > counted.begun
        variance = p * n * (1 - p)
        doubt = 1 + n / (self._chance_calls + 64)  # of p itself
        held, held_refused = self._held
        many = held + n if held else 0
        is_much = counted.refused > p * n + t.deviations * math.sqrt(variance * doubt) + 1
        if many and not is_much:
            spread = p * many * (1 - p) * (1 + many / (self._chance_calls + 64))
            is_much = held_refused + counted.refused > p * many + t.deviations * math.sqrt(spread) + 1
        # Chance does not grow with the load: once it is known, what goes beyond it has another cause.
        is_known = counted.is_easy and self._chance_calls >= t.chance_round
        if is_much and (not is_easy or is_known):
            # While it is being looked at what is refused by chance, nothing is cut.
            if call is not None and (is_known or not any(other.is_easy for other in self._rounds.values())):
                self._learn(call)
                self._drop_rounds()
                self._ready_s = max(self._ready_s, call.heard_s)
            return
        if counted.begun < n or counted.let_in + counted.refused < n:
            return
        del self._rounds[counted.number]
        counted.is_judged = True
        is_paced = 2 * counted.paced >= counted.begun
        if (is_easy or not is_paced) and counted.refused < 0.75 * n:
            self._tally(counted.refused, n)
        if counted.is_easy:
            if p * n + math.sqrt(variance) + 0.5 < counted.refused <= 2 * self.chance * n:
                self._take_back()
            elif counted.refused <= 1:
                self._cuts.clear()
        elif is_paced and self._hold and counted.rate >= 0.99 * self.rate:
            self._held = (held + n, held_refused + counted.refused)
        elif is_paced and not self._hold and self._is_known and counted.rate >= 0.99 * self.rate:
            self._held = (0, 0)
            self._good = self.rate * (1 - self.chance)
            # So many are out unheard of when the limit is met, and all of them may be refused.
            unheard = max(t.unheard, t.cost * (self._let_in_calls - self._limit_calls))
            more = max(self._held_rate, unheard / (self._hear_s or t.hear_s))
            self.rate = min(t.most_per_s, self.rate * (1 + self._step), self._held_rate + more)
            self._step = min(1.0, t.faster * self._step)

    def _tally(self, refused: int, calls: int) -> None:
        """Calls of which `refused` were refused, though no rate of ours can have been why."""
        t = self._t
        self._chance_refused = t.chance_memory * self._chance_refused + refused
        self._chance_calls = t.chance_memory * self._chance_calls + calls
        believed = (self._chance_refused + t.chance * t.chance_weight) / (
            self._chance_calls + t.chance_weight
        )
        self.chance = max(t.chance, believed)
        self._note_number(
            0, "chance", 100 * self.chance, f"{refused} of {calls} refused at less load", least=3.0
        )

    def _take_back(self) -> None:
        """As many are refused at less load: take back the cuts that chance explains."""
        t, restored = self._t, 0.0
        while self._cuts:
            rate, let_in = self._cuts.pop()
            if let_in < (0.9 - 1.5 * self.chance) * rate:
                break
            restored = rate
        self._cuts.clear()
        if restored > self.rate:
            self.rate, self._held_rate = restored, math.inf
            self._found = self._measured = self._empty_s = None
            self._hold, self._step, self._easy_next = 0, t.step_back, False
            self._rounds = {number: other for number, other in self._rounds.items() if not other.is_easy}
            self._next_round()

    # Rate

    def _learn(self, call: Call) -> None:
        """Too many were refused, this call as well: the allowance is empty."""
        t = self._t
        if self._is_number():
            return
        if self._empty_s is None:
            self._see_empty(call)  # it was full before, perhaps: what was let in until now is no rate
            return
        refused = sum(1 for seq in self._refused_since if seq < call.seq)
        taken, span_s = call.seq - 1 - self._empty_seq - refused, call.at_s - self._empty_s
        before = self._measured
        weight = t.weight_calls if before else 0.0
        if span_s <= 0 or taken + weight < 4:
            return
        found = (taken + weight) / (span_s + (weight / before if before else 0.0))
        has_grown = self.rate > 1.02 * self._held_rate
        self._measured = found
        was_guess, self._is_guess = self._is_guess, False
        if has_grown:
            # The rate before was held for a while without a refusal: less than it has not become.
            found = max(found, self._held_rate / t.share * (1 - self.chance))
            if self._good > 1.03 * found and not self._no_guess:
                # Nothing is saved up, perhaps, and what was let in before the rate was raised is no measure.
                found, self._is_guess = self._good, True
            self._no_guess = max(0, self._no_guess - 1)
        elif was_guess:
            self._no_guess = t.guesses
        self._found = found
        self._cuts.append((min(self.rate, self._starts_per_s()), found))
        is_same = before is not None and abs(math.log(found / before)) < 2 * t.same
        most = round(len(self._refused_since) / t.cost)
        longer = max(t.round_calls, min(round(t.longer * self._next_hold), most))
        self._next_hold = longer if is_same else t.round_calls
        self._hold = self._next_hold if has_grown else t.round_calls
        aim = t.share * found / (1 - self.chance)
        self.rate = self._held_rate = max(1 / 60, min(aim, self.rate, self._starts_per_s()))
        self._is_known, self._step = True, t.step
        self._easy_next = not has_grown and not was_guess
        self._good, self._limit_calls, self._held = 0.0, self._let_in_calls, (0, 0)
        why = f"{taken} calls were let in over {span_s:.1f} s, {len(self._refused_since)} were refused"
        self._note_number(call.lane, "rate", 60 * self.rate, why)
        self._see_empty(call)

    def _is_number(self) -> bool:
        """Whether each call refused of late saw more out than any call that was let in among them."""
        t, least = self._t, self._refused_saw
        if self._refused_calls < t.row_least or self._among < t.weight_calls or least <= self._saw_most:
            return False
        why = f"with {least} out {self._refused_calls} calls were refused, with fewer none of {self._among}"
        self._set_number(least, 0.0)
        self._note(0, "number", f"{least} calls at once: {why}")
        return True

    def _set_number(self, number: float, pause_s: float) -> None:
        t = self._t
        self.number = self._tried = float(number)
        self._more, self._full = 1, 0
        self._wait = min(2 * self._wait, round(1 / t.cost))
        self._try_at_s = self._ready_s + t.number_hints * pause_s
        self._empty_s, self._easy_next = None, False
        self._rounds.clear()
        self._next_round()
        self._compare_anew()

    def _compare_anew(self) -> None:
        self._saw_most, self._refused_saw, self._refused_calls, self._among = 0, math.inf, 0, 0

    def _see_empty(self, call: Call) -> None:
        self._plain_rounds = 0
        self._empty_s, self._empty_seq = call.at_s, call.seq
        self._refused_since = [seq for seq in self._refused_since if seq > call.seq]

    def _starts_per_s(self) -> float:
        starts = self._starts
        return (len(starts) - 1) / max(1e-3, starts[-1] - starts[0]) if len(starts) > 1 else math.inf

    # For people

    def _note(self, lane: int, what: str, why: str | None) -> None:
        if why is not None:
            self.changes.append(Change(lane, what, why))

    def _note_number(self, lane: int, what: str, value: float, why: str, least: float = 0.0) -> None:
        """Note a number when it differs from what was noted last by more than two rates may."""
        told = self._told.get(what)
        if value >= least and (told is None or abs(math.log(value / told)) > self._t.same):
            self._told[what] = value
            unit = " % by chance" if what == "chance" else " a minute"
            self._note(lane, what, f"{value:.3g}{unit}: {why}")


# Servers that queue


@dataclass(slots=True)
class _Batch:
    """Calls of one lane that were begun one after the other, for their latencies."""

    number: int
    sent: dict[int, int] = field(default_factory=dict)
    """Calls by stage; those that brought no answer are taken out."""
    logs: dict[int, list[float]] = field(default_factory=dict)
    """Logarithms of the latencies of the answers, by stage."""
    size: int = 0
    levels: int = 0
    is_complete: bool = False

    @property
    def level(self) -> float:
        """How many were out when its calls began, on the average."""
        return self.levels / max(1, self.size)

    def all_logs(self, stage: int) -> list[float]:
        """Those of a stage, infinite for calls that are still out: they take longer than the others."""
        known = self.logs.get(stage, [])
        return [*known, *[math.inf] * (self.sent.get(stage, 0) - len(known))]


class Slowness:
    """How many calls at once a server takes before it answers later for their number.

    Some servers (vLLM) never refuse, they queue: beyond what they do at once, more calls make each slower and
    none sooner. The median latency of each batch of calls is compared with that of the first, stage by stage
    (answers of different stages differ in length). Well above it, fewer are tried; where they are answered
    sooner the load was ours, and half as many are tried until that helps no more: that is the latency of the
    server itself. Where fewer are not answered sooner, the slowness is not ours.

    Attributes:
        cap: calls at once; infinite while there is no sign of a queue.
        is_holding: answers come late: not the time for more.
    """

    __slots__ = (
        "_base",
        "_batch",
        "_before",
        "_cut_batch",
        "_doubt",
        "_has_eased",
        "_is_found",
        "_low",
        "_open",
        "_t",
        "cap",
        "is_holding",
    )

    FULL_BATCH = 128
    KNOWN = 0.6
    """Share of a batch's answers that is needed to know its median; the others count as slower."""
    FEW = 8

    def __init__(self, tuning: Tuning = TUNING) -> None:
        self._t = tuning
        self.cap = math.inf
        self.is_holding = False
        self._batch = _Batch(1)
        self._open = {1: self._batch}
        self._low: dict[int, list[float]] = {}
        self._base: dict[int, float] = {}
        self._doubt: dict[int, float] = {}
        self._cut_batch = 0  # batches up to this one began before the last cut
        self._before: tuple[float, float] | None = (
            None  # level and excess before a cut that is being looked at
        )
        self._has_eased = self._is_found = False

    @property
    def limit(self) -> int:
        """`cap` in whole calls."""
        return 1_000_000_000 if self.cap == math.inf else max(1, int(self.cap))

    def begin(self, call: Call) -> None:
        """A call begins."""
        batch = self._batch
        if batch.size >= min(self.FULL_BATCH, max(self._t.round_calls, call.level // 2)):
            batch = self._next_batch()
        batch.size += 1
        batch.levels += call.level
        batch.sent[call.stage] = batch.sent.get(call.stage, 0) + 1
        call.batch = batch.number

    def _next_batch(self) -> _Batch:
        complete = self._batch
        complete.is_complete = True
        self._batch = _Batch(complete.number + 1)
        self._open[self._batch.number] = self._batch
        self._look(complete)
        return self._batch

    def lost(self, call: Call) -> None:
        """A call ended without a latency that says anything."""
        batch = self._open.get(call.batch)
        if batch is not None:
            batch.sent[call.stage] -= 1
            self._look(batch)

    def answered(self, call: Call, latency_s: float) -> str | None:
        """A call was answered; returns a change of mind in words."""
        batch = self._open.get(call.batch)
        if batch is None:
            return None
        before = self.cap
        batch.logs.setdefault(call.stage, []).append(math.log(max(latency_s, 1e-4)))
        self._look(batch)
        if self.cap == before or self._before is None:
            return None if self.cap == before or self.cap < math.inf else "fewer at once were no faster"
        level, excess = self._before
        longer = f"{math.exp(excess):.1f} times as long"
        return f"with {level:.0f} at once answers took {longer}; {self.limit} are tried"

    def _look(self, batch: _Batch) -> None:
        if not batch.is_complete or batch.number not in self._open:
            return
        known, sent = sum(map(len, batch.logs.values())), sum(batch.sent.values())
        if known >= self.KNOWN * sent:
            del self._open[batch.number]
            if known >= self.FEW:
                self._judge(batch)

    def _judge(self, batch: _Batch) -> None:
        values = sorted(
            value - self._base[stage]
            for stage in batch.sent
            if stage in self._base
            for value in batch.all_logs(stage)
        )
        excess = error = 0.0
        if len(values) >= self.FEW:
            excess = values[len(values) // 2]
            if excess == math.inf:
                return
            error = math.hypot(_error(values), max(self._doubt.values()))
            self._decide(batch, excess, error)
        for stage, sent in batch.sent.items():
            # A stage that comes late is taken to suffer from the present load as the others do.
            low = self._low.get(stage, [])
            if sent < self.FEW or len(low) >= 2 * self.FEW:
                continue
            low = sorted([*low, *(value - max(0.0, excess) for value in batch.all_logs(stage))])
            if low[len(low) // 2] < math.inf:
                self._low[stage], self._base[stage] = low, low[len(low) // 2]
                self._doubt[stage] = math.hypot(_error(low), error)

    def _decide(self, batch: _Batch, excess: float, error: float) -> None:
        t = self._t
        is_fresh = batch.number > self._cut_batch
        if self._before is not None:
            if is_fresh:
                self._compare(batch, excess, error)
            return
        self.is_holding = excess > math.log(t.slow_hold) + error
        if not is_fresh:
            return
        if excess > math.log(t.slow_cut) + t.slow_errors * error:
            self._cut(batch, excess, max(batch.level / 4, batch.level * t.slow_hold / math.exp(excess)))
        elif excess <= math.log(t.slow_hold) and self.cap < math.inf and batch.level > 0.8 * self.cap:
            self.cap += max(1.0, t.slow_growth * self.cap)

    def _compare(self, batch: _Batch, excess: float, error: float) -> None:
        """Fewer at once were tried: were they answered sooner, about in proportion?"""
        assert self._before is not None
        level, before = self._before
        if before - excess >= 0.5 * (math.log(max(level, 2.0) / max(1.0, batch.level)) - error):
            self._shift(min(0.0, excess))
            if self._is_found or batch.level <= 2:
                self._before = None
            else:
                self._cut(batch, max(0.0, excess), batch.level / 2)
            self._has_eased = True
            return
        self._before, self.is_holding = None, False
        if self._has_eased:
            self.cap, self._is_found = level, True
            self._shift(excess / 2)
        else:
            self.cap = math.inf  # the slowness is not ours
            self._shift(excess)

    def _cut(self, batch: _Batch, excess: float, to: float) -> None:
        if self._before is None:
            self._has_eased = False
        self._before = (batch.level, excess)
        self.cap = max(1.0, min(self.cap, to))
        self.is_holding = True
        self._cut_batch = self._batch.number
        self._next_batch()

    def _shift(self, by: float) -> None:
        for stage in self._base:
            self._base[stage] += by


def _error(values: list[float]) -> float:
    """The standard error of the median of sorted values, some of the last infinite."""
    middle = len(values) // 2
    spread = (values[middle] - values[len(values) // 4]) / 0.674
    return 1.25 * spread / math.sqrt(len(values))


# Limits that are told


class Flow:
    """Spreads amounts evenly over time (the generic cell rate algorithm with a shallow bucket): a burst
    draws a refusal where an even flow of the same size does not.

    Args:
        catch_up_s: how much of its time a late start may regain.

    Attributes:
        ready_at_s: nothing may start before.
    """

    __slots__ = ("_catch_up_s", "ready_at_s")

    def __init__(self, catch_up_s: float = TUNING.catch_up_s) -> None:
        self.ready_at_s = 0.0
        self._catch_up_s = catch_up_s

    def take(self, amount: float, per_s: float, now_s: float) -> None:
        """Count a start of this size."""
        self.ready_at_s = max(self.ready_at_s, now_s - self._catch_up_s) + amount / per_s

    def settle(self, more: float, per_s: float) -> None:
        """Correct a start: it was larger (or smaller) by so much than was counted."""
        self.ready_at_s += more / per_s


class Allowance:
    """A limit on requests or tokens a minute that is configured, or that the endpoint announces, or both.

    What is announced is there to be used: while most of it is left, the lane goes faster and faster, and at
    the announced rate again once less is left. Lanes that may share it begin with their part of it.

    Args:
        configured_per_min: what the settings say; ``None``: nothing.
        lanes: of the endpoint.
    """

    FASTER, FASTEST, REVISE_S = 1.1, 16.0, 0.5

    __slots__ = ("_announced", "_configured", "_flow", "_is_short", "_pause_s", "_revised_s", "_share", "_t")

    def __init__(
        self, configured_per_min: float | None = None, lanes: int = 1, tuning: Tuning = TUNING
    ) -> None:
        self._t = tuning
        self._configured = (
            math.inf if configured_per_min is None else configured_per_min / 60.0 * tuning.share
        )
        self._announced = math.inf
        self._share = 1.0 / lanes
        self._revised_s = -math.inf
        self._pause_s = self.REVISE_S
        self._is_short = False
        self._flow = Flow()

    @property
    def per_s(self) -> float:
        """What may be taken per second now; infinite when nothing holds back."""
        return min(self._configured, self._announced * self._share)

    @property
    def known_per_min(self) -> float | None:
        """The limit, for people."""
        known = min(self._configured, self._announced)
        return None if known == math.inf else 60.0 * known

    @property
    def ready_at_s(self) -> float:
        """The next call may not start before."""
        return self._flow.ready_at_s

    def holds(self, now_s: float) -> bool:
        """Whether it is what a call that may begin now was waiting for."""
        is_sure = self.per_s < math.inf and self._share <= 1.0 and not self._is_short
        return is_sure and now_s - self._flow.ready_at_s <= 0.5

    def take(self, amount: float, now_s: float) -> None:
        """A call of about this size starts."""
        if (rate := self.per_s) < math.inf:
            self._flow.take(amount, rate, now_s)

    def settle(self, more: float) -> None:
        """A call has turned out to be so much larger than was counted."""
        if (rate := self.per_s) < math.inf:
            self._flow.settle(more, rate)

    def announce(
        self, per_min: float, left: float | None, now_s: float, *, refused_by_chance: float | None = None
    ) -> None:
        """The endpoint tells its limit.

        Args:
            left: share of it that is left, from 0 to 1; ``None`` when it does not say.
            refused_by_chance: in a refusal, the share of calls that chance explains; ``None`` in an answer.
        """
        self._announced = per_min / 60.0 * self._t.share
        if refused_by_chance is not None:
            # Whatever is left, it was asked too fast, but for the calls that do not count.
            usual = 1.0 / (1.0 - refused_by_chance)
            if self._share > self.FASTER * usual:
                self._pause_s *= 2
            self._share = min(self._share, usual)
            self._revised_s = now_s + self._pause_s
            return
        self._is_short = left is not None and left < self._t.left_least
        if left is None or now_s - self._revised_s < self.REVISE_S:
            return
        self._revised_s = now_s
        if left < self._t.left_low:
            self._share = min(1.0, self._share)
        elif left > self._t.left_high or self._share < 1.0:
            self._share = min(self.FASTEST, self._share * self.FASTER)


FIRST_GUESS = {Quantity.TOKENS: 1500.0, Quantity.INPUT: 1000.0, Quantity.OUTPUT: 500.0}
"""Tokens of a call before any has been answered."""


class Allowances:
    """The limits of one lane that are configured or announced: requests, and tokens by estimate.

    Attributes:
        at_once: calls at once that the endpoint announces; ``None``: it does not.
    """

    LEARNING = 0.2

    def __init__(self, rpm: float | None, tpm: float | None, lanes: int) -> None:
        self._lanes = lanes
        self._all: dict[Quantity, Allowance] = {}
        if rpm is not None:
            self._all[Quantity.REQUESTS] = Allowance(rpm, lanes)
        if tpm is not None:
            self._all[Quantity.TOKENS] = Allowance(tpm, lanes)
        self._guesses: dict[tuple[Quantity, int], float] = {}
        self.at_once: int | None = None

    @property
    def ready_at_s(self) -> float:
        """The next call may not start before."""
        return max((allowance.ready_at_s for allowance in self._all.values()), default=0.0)

    def known_per_min(self, quantity: Quantity) -> float | None:
        """A limit, for people; ``None`` when none is known."""
        allowance = self._all.get(quantity)
        return None if allowance is None else allowance.known_per_min

    def hold(self, now_s: float) -> bool:
        """Whether one of them is what a call that may begin now was waiting for."""
        return any(allowance.holds(now_s) for allowance in self._all.values())

    def guess(self, quantity: Quantity, stage: int) -> float:
        """Tokens that a call of this stage is likely to take; 1 request."""
        if quantity is Quantity.REQUESTS:
            return 1.0
        return self._guesses.get((quantity, stage), FIRST_GUESS[quantity])

    def take(self, stage: int, now_s: float) -> None:
        """A call starts."""
        for quantity, allowance in self._all.items():
            allowance.take(self.guess(quantity, stage), now_s)

    def give_back(self, stage: int) -> None:
        """A start did not become a call."""
        for quantity, allowance in self._all.items():
            allowance.settle(-self.guess(quantity, stage))

    def heed(self, quotas: Iterable[Quota], now_s: float, *, refused_by_chance: float | None = None) -> None:
        """Take note of what is announced."""
        for quota in quotas:
            if quota.quantity is Quantity.AT_ONCE:
                self.at_once = max(1, int(quota.per_min))
                continue
            if quota.quantity not in self._all:
                self._all[quota.quantity] = Allowance(None, self._lanes)
            self._all[quota.quantity].announce(
                quota.per_min, quota.left, now_s, refused_by_chance=refused_by_chance
            )

    def settle(self, stage: int, read: int | None, written: int | None) -> float:
        """An answer told its tokens; returns how many more they are than was counted at its start."""
        if read is None or written is None:
            return 0.0
        surplus = read + written - self.guess(Quantity.TOKENS, stage)
        sizes = {Quantity.INPUT: read, Quantity.OUTPUT: written, Quantity.TOKENS: read + written}
        for quantity, tokens in sizes.items():
            guess = self.guess(quantity, stage)
            if quantity in self._all:
                self._all[quantity].settle(tokens - guess)
            is_known = (quantity, stage) in self._guesses
            self._guesses[quantity, stage] = guess + (self.LEARNING if is_known else 1.0) * (tokens - guess)
        return surplus
