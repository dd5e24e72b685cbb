"""How many calls a lane may have in flight: found by trying, as congestion control does.

Additive increase, multiplicative decrease (Chiu and Jain, 1989), with an exponential start. A lane grows only
while it is really full and clean. It is cut at most once for all the calls that were admitted under one
limit, so that a burst of refusals counts as the one signal that it is. Two things cut it: a refusal (429,
529), and answers that come slower because of the lane's own load, for servers that queue and never refuse.
Outages and timeouts only stop its growth. Time comes in as a number; equal events give equal limits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

START = 16
"""Calls in flight at first, over all lanes of an endpoint."""
LEAST_START = 4
START_STEP = 2.0
"""Calls more per clean answer until the first sign of a limit: it triples per round."""
CUT = 0.85
FULL = 0.8
"""A lane counts as full from this share of its limit."""
RECOVERY = 0.05
"""Share of the last known limit that a lane regains per clean round."""
REGAIN = 0.25
"""The same after a cut for slowness, of the concurrency at which latency was good: perhaps a hiccup."""
RESTART = 0.5
"""Below this share of the last known limit a lane doubles per clean round, as at the start."""
PROBE_S = 5.0
"""Seconds at a known limit before more is tried; doubles while trying finds the same limit again."""
PROBE_MAX_S = 80.0
SAME = 0.12
"""Two limits that differ by less are the same limit."""
TROUBLE = 4
"""Clean answers for which an outage or a timeout stops growth: one in five of them stops it for good."""
LEAP = 3.0
"""The start never runs further ahead than this of the concurrency whose latency is known to be good."""

ROUND_SHARE = 0.6
"""Answers of a round that are needed to know its median; the others count as slower."""
MIN_ROUND, MAX_ROUND = 16, 128
LOW = 2
"""Latencies up to this many times the first concurrency make the baseline."""
BASELINE_ANSWERS = 96
SLOW_HOLD, SLOW_CUT, SLOW_AIM = 1.25, 1.5, 1.25
"""Latency over baseline: growth stops, the limit is cut, and where a cut aims."""
DOUBT_ROUNDS = 8
"""Rounds without growth after which a smaller limit is tried: that shows whether the slowness is ours."""
DOUBT_CUT = 0.7
HOLD_ERRORS, CUT_ERRORS = 1.5, 2.5
"""Standard errors of the medians by which a latency must exceed those, so that chance does not cut."""


@dataclass(slots=True)
class _Round:
    """Calls that were admitted one after the other under one limit."""

    number: int
    sent: dict[int, int] = field(default_factory=dict)
    """Calls by stage; those that brought no answer are taken out."""
    size: int = 0
    levels: int = 0
    """The sum over its calls of how many were in flight when each was admitted."""
    closed: bool = False
    logs: dict[int, list[float]] = field(default_factory=dict)
    """Logarithms of the latencies of the answers, by stage."""

    @property
    def level(self) -> float:
        """How many were in flight when its calls were admitted, on the average."""
        return self.levels / max(1, self.size)

    def all_logs(self, stage: int) -> list[float]:
        """Those of a stage, infinite for calls that are still out: they take longer than the others."""
        known = self.logs.get(stage, [])
        return [*known, *[math.inf] * (self.sent.get(stage, 0) - len(known))]


class LaneLimit:
    """The limit of one lane.

    Args:
        crowd: lanes of its endpoint. They may load the same machine, so each starts lower: the baseline is
            what the endpoint does under little load.

    Attributes:
        in_flight: calls that are out.
        ceiling: the limit never passes this.
    """

    __slots__ = (
        "_base",
        "_check",
        "_clean",
        "_cut_round",
        "_doubt",
        "_held_rounds",
        "_hold",
        "_knee",
        "_limit",
        "_low",
        "_probe_at_s",
        "_probe_s",
        "_proven",
        "_round",
        "_rounds",
        "_start",
        "_starting",
        "_sure",
        "_trouble",
        "ceiling",
        "in_flight",
    )

    def __init__(self, ceiling: int, crowd: int = 1) -> None:
        self.ceiling = ceiling
        self.in_flight = 0
        self._start = max(LEAST_START, START // crowd)
        self._limit = float(min(self._start, ceiling))
        self._starting = True
        self._knee: float | None = None  # what the endpoint took when it last refused
        self._sure = False  # it refused at that number more than once
        self._probe_at_s = 0.0
        self._probe_s = PROBE_S
        self._hold = False  # answers come slower: do not grow
        self._held_rounds = 0
        self._clean = 0  # answers since the last refusal
        self._trouble = 0  # clean answers to wait for after an outage before growing again
        self._proven = float(self._start)  # concurrency at which latency was good
        self._round = _Round(1)
        self._rounds = {1: self._round}
        self._cut_round = 0  # rounds up to this one have had their say
        self._low: dict[int, list[float]] = {}
        self._base: dict[int, float] = {}
        self._doubt: dict[int, float] = {}
        self._check: tuple[float, float, float] | None = None

    @property
    def limit(self) -> int:
        """Calls that may be in flight now, from 1 to `ceiling`."""
        return max(1, int(self._limit))

    @property
    def known(self) -> float | None:
        """The limit, where it was found rather than just not reached yet; ``None`` otherwise."""
        return None if self._starting else float(self.limit)

    @property
    def knee(self) -> float | None:
        """Calls at once that were out when one more was refused."""
        return self._knee

    @property
    def has_room(self) -> bool:
        """Whether another call may start."""
        return self.in_flight < self.limit

    def admit(self, stage: int) -> int:
        """Count a call in; returns the number of its round, which the events below want back.

        Args:
            stage: answers of different stages differ in length, so each has a baseline of its own.
        """
        self.in_flight += 1
        current = self._round
        if current.size >= min(MAX_ROUND, max(MIN_ROUND, self.limit // 2)):
            current = self._next_round()
        current.size += 1
        current.sent[stage] = current.sent.get(stage, 0) + 1
        current.levels += self.in_flight
        return current.number

    def _next_round(self) -> _Round:
        closing = self._round
        closing.closed = True
        self._round = _Round(closing.number + 1)
        self._rounds[self._round.number] = self._round
        self._judge_when_known(closing)
        return self._round

    def answered(self, number: int, stage: int, latency_s: float, now_s: float) -> None:
        """A call came back clean."""
        was_full = self.in_flight >= FULL * self.limit
        self.in_flight -= 1
        self._clean += 1
        if self._trouble:
            self._trouble -= 1
        elif was_full and not self._hold and number > self._cut_round and self._limit < self.ceiling:
            self._grow(now_s)
        held = self._rounds.get(number)
        if held is not None:
            held.logs.setdefault(stage, []).append(math.log(max(latency_s, 1e-4)))
            self._judge_when_known(held)

    def _grow(self, now_s: float) -> None:
        if self._starting:
            step, top = START_STEP, min(self.ceiling, LEAP * self._proven)
        elif self._knee is None and self._limit < self._proven:
            step, top = REGAIN * self._proven / self._limit, self._proven
        elif self._knee is not None and self._limit < self._knee:
            slow = max(1.0, RECOVERY * self._knee) / self._limit
            step, top = (1.0 if self._limit < RESTART * self._knee else slow), self._knee
        elif self._knee is not None and now_s < self._probe_at_s:
            return
        else:
            # Past what was known: faster the further it goes, since a limit may have been lifted.
            beyond = self._limit - self._knee if self._knee is not None else 0.0
            step, top = (1.0 + beyond) / self._limit, self.ceiling
        self._limit = min(float(self.ceiling), max(self._limit, min(top, self._limit + step)))

    def failed(self, number: int, stage: int, *, trouble: bool = False) -> None:
        """A call came back without an answer, for a reason that is not load.

        Args:
            trouble: an outage or a timeout: growth waits for some clean answers, at most for a round of them.
        """
        self.in_flight -= 1
        if trouble:
            self._trouble = min(self.limit, self._trouble + TROUBLE)
        self._lose(number, stage)

    def explains(self) -> bool:
        """Whether the known limit explains that the endpoint refuses a call now."""
        knee = self._knee
        return knee is not None and self._limit >= knee and self.in_flight - 1 >= (1.0 - SAME) * knee

    def has_heard(self, number: int) -> bool:
        """Whether a refusal of this round tells nothing new: the limit was cut since."""
        return number <= self._cut_round

    def refused(self, number: int, stage: int, now_s: float, *, paced: bool = False) -> None:
        """The endpoint asked for fewer calls.

        Args:
            paced: the lane was starting calls at a learned rate, so that may be what was refused.
        """
        explained = self.explains()
        self.in_flight -= 1
        self._lose(number, stage)
        knee = self._knee
        if self.has_heard(number):
            return
        if paced and not explained:
            if knee is not None and not self._sure:  # fewer were refused as well: it was not their number
                self._knee, self._starting = None, True
            return
        if not self._clean and knee is not None:
            # It takes nothing at all, which says nothing about how much it will take again.
            self._probe_s, self._limit = PROBE_S, max(1.0, self._limit / 2)
            self._end_start()
            return
        self._clean = 0
        # What is in flight is what the endpoint took; an unused limit says nothing.
        taken = max(1.0, min(self._limit, max(float(self.in_flight), self._limit / 2)))
        self._sure = knee is not None and abs(taken - knee) <= max(1.0, SAME * knee)
        self._probe_s = min(PROBE_MAX_S, 2 * self._probe_s) if self._sure else PROBE_S
        self._probe_at_s = now_s + self._probe_s
        self._knee = taken
        self._limit = max(1.0, taken * CUT)
        self._end_start()

    def pardon(self, known: float | None) -> None:
        """The last refusals were not for the number of calls: go back to the limit that was known before."""
        self._knee, self._starting = known, known is None
        self._limit = max(self._limit, min(float(self.ceiling), known or float(self._start)))

    def _end_start(self) -> None:
        self._starting = False
        self._cut_round = self._round.number
        self._next_round()

    def _lose(self, number: int, stage: int) -> None:
        held = self._rounds.get(number)
        if held is not None:
            held.sent[stage] -= 1
            self._judge_when_known(held)

    # Latency

    def _judge_when_known(self, held: _Round) -> None:
        if not held.closed or held.number not in self._rounds:
            return
        known, sent = sum(map(len, held.logs.values())), sum(held.sent.values())
        if known >= ROUND_SHARE * sent:
            del self._rounds[held.number]
            if known >= MIN_ROUND // 2:
                self._judge(held)

    def _judge(self, held: _Round) -> None:
        """Compare a round's median latency with the baseline, as logarithms, stage by stage."""
        baseline = min((len(low) for low in self._low.values()), default=0)
        if held.level <= LOW * self._start and baseline < BASELINE_ANSWERS:
            self._learn(held, 0.0, 0.0)
            return
        excesses: list[float] = []
        for stage, base in self._base.items():
            excesses += [value - base for value in held.all_logs(stage)]
        excess = error = 0.0
        if len(excesses) >= MIN_ROUND // 2 and baseline:
            excesses.sort()
            excess = excesses[len(excesses) // 2]
            if excess == math.inf:
                return
            spread = (excess - excesses[len(excesses) // 4]) / 0.674
            own = 1.25 * spread / math.sqrt(len(excesses))
            error = math.hypot(own, max(self._doubt.values()))
            self._decide(held, excess, error)
        elif not self._hold:
            self._proven = max(self._proven, held.level)
        if held.sent.keys() - self._base.keys():
            # A stage that comes late is taken to suffer from the present load as the others do.
            self._learn(held, max(0.0, excess), error)

    def _learn(self, held: _Round, excess: float, error: float) -> None:
        """Take a round into the baseline of its stages.

        Args:
            excess, error: how much slower than its baseline the round is, and the standard error of that.
        """
        for stage in held.sent:
            low = self._low.get(stage, [])
            values = [value - excess for value in held.all_logs(stage)]
            if len(values) < MIN_ROUND // 2 or len(low) >= BASELINE_ANSWERS:
                continue
            low = sorted([*low, *values])
            middle = low[len(low) // 2]
            if middle < math.inf:
                self._low[stage] = low
                self._base[stage] = middle
                spread = (middle - low[len(low) // 4]) / 0.674
                self._doubt[stage] = math.hypot(1.25 * spread / math.sqrt(len(low)), error)

    def _decide(self, held: _Round, excess: float, error: float) -> None:
        if self._check is not None and held.number > self._cut_round:
            level, before, limit = self._check
            self._check = None
            eased = before - excess
            if eased < 0.5 * math.log(max(level, 2.0) / max(1, held.level)) - error:
                # Fewer calls did not make it faster: the slowness is not ours, and is the new baseline.
                self._shift(excess)
                self._limit = max(self._limit, limit)
                self._hold, self._held_rounds = False, 0
                return
        if held.level <= self._start:
            # Nobody is asked to go below the start for slowness: this is the baseline.
            self._shift(excess / 2)
            self._hold = False
        elif excess > math.log(SLOW_CUT) + CUT_ERRORS * error:
            self._hold = True
            if held.number > self._cut_round:
                self._slow_down(held, excess, held.level * SLOW_AIM / math.exp(excess))
            return
        else:
            self._hold = excess > math.log(SLOW_HOLD) + HOLD_ERRORS * error
        if self._hold:
            self._held_rounds += 1
            doubtful = self._held_rounds >= DOUBT_ROUNDS and self._limit < self.ceiling
            if doubtful and held.number > self._cut_round:
                self._slow_down(held, excess, held.level * DOUBT_CUT)
            return
        self._held_rounds = 0
        self._proven = max(self._proven, held.level)
        if excess < -CUT_ERRORS * error - 0.05:
            self._shift(excess / 2)  # it has become faster for good

    def _slow_down(self, held: _Round, excess: float, aim: float) -> None:
        self._check = (held.level, excess, self._limit)
        self._limit = min(self._limit, max(float(self._start), held.level / 2, aim))
        self._held_rounds = 0
        self._end_start()

    def _shift(self, by: float) -> None:
        for stage in self._base:
            self._base[stage] += by
