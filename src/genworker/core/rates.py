"""How fast a lane may start calls: requests and tokens a minute, announced, configured or learned.

Starts are spread evenly (the generic cell rate algorithm with a shallow bucket), since a burst draws a
refusal where an even flow of the same size does not. Where nobody tells the limit it is learned from
refusals: between two of them the endpoint's allowance was empty at both ends, so the calls that it took
in between, over the time, are its rate. Time comes in as a number.
"""

from __future__ import annotations

import math

SHARE = 0.98
"""Of a known limit: clocks and networks jitter."""
CATCH_UP_S = 0.005
"""How much of its time a late start may regain: timers are late, but some servers take no two at once."""
RAMP_PER_S, RAMP_DOUBLES_S, RAMP_END_PER_S = 100.0, 0.125, 5000.0
"""Calls per second at which a lane without a known rate begins; doubled until calls need not be spread."""
HOLD_S, HOLD_MAX_S = 1.0, 15.0
HOLD_PAUSES, HOLD_MAX_PAUSES = 1.5, 6.0
"""How long a learned rate is kept before more is tried, in pauses that a refusal costs; it doubles while
trying finds the same rate again. In seconds at least and at most: a limit that was lifted is to be found."""
SAME = 0.12
PROBE_DOUBLES_S = 2.0
"""While more is tried the rate doubles within so long, then faster and faster: a limit may be gone."""
PROBE_GAIN = 1 / 3
"""How far a refusal of more moves the rate towards what was refused: a bucket gives more for a while."""
MOST_CUT = 4.0
"""A few calls between two refusals say little: no refusal divides a rate by more than this."""
SCOUT_S = 0.25
"""How far a single call goes ahead of the others, once a pause has turned out to be too short."""
LEFT_LOW, LEFT_HIGH = 0.1, 0.3
"""Shares of an announced allowance that are left: below the first somebody else uses it too, and the lane
goes slower; above the second it goes faster again, up to all of it."""
SLOWER, FASTER, REVISE_S = 0.7, 1.1, 0.5


class Flow:
    """Spreads amounts evenly over time.

    Attributes:
        ready_at_s: nothing may start before.
    """

    __slots__ = ("ready_at_s",)

    def __init__(self) -> None:
        self.ready_at_s = 0.0

    def take(self, amount: float, per_s: float, now_s: float) -> None:
        """Count a start of this size."""
        self.ready_at_s = max(self.ready_at_s, now_s - CATCH_UP_S) + amount / per_s

    def settle(self, more: float, per_s: float) -> None:
        """Correct a start: it was larger (or smaller) by so much than was counted."""
        self.ready_at_s += more / per_s


class _Announced:
    """A limit that an endpoint tells, and how much of it is ours.

    Args:
        crowd: lanes of the endpoint, which may have to share it.
    """

    __slots__ = ("_limit", "_revised_s", "_share")

    def __init__(self, crowd: int) -> None:
        self._limit = math.inf
        self._share = 1.0 / crowd
        self._revised_s = -math.inf

    @property
    def per_s(self) -> float:
        return self._limit * self._share

    def tell(self, per_s: float, left: float | None, now_s: float) -> None:
        self._limit = per_s * SHARE
        if left is None or now_s - self._revised_s < REVISE_S:
            return
        self._revised_s = now_s
        if left < LEFT_LOW:
            self._share = max(0.01, self._share * SLOWER)
        elif left > LEFT_HIGH:
            self._share = min(1.0, self._share * FASTER)


class StartRate:
    """The rate at which one lane may start calls.

    Args:
        ceiling_per_s: a configured limit, calls per second; ``None`` without one.
        crowd: lanes of its endpoint; the more there are, the more rarely each one tries a higher rate,
            since they may have a limit in common.
    """

    __slots__ = (
        "_announced",
        "_ceiling",
        "_clock_s",
        "_crowd",
        "_event_s",
        "_flow",
        "_hold_s",
        "_last_s",
        "_learned",
        "_pending_s",
        "_refused",
        "_sent",
    )

    def __init__(self, ceiling_per_s: float | None = None, crowd: int = 1) -> None:
        self._ceiling = math.inf if ceiling_per_s is None else ceiling_per_s * SHARE
        self._announced = _Announced(crowd)
        self._crowd = crowd
        self._learned: float | None = None
        self._flow = Flow()
        self._clock_s = 0.0  # seconds of use at the present rate; growth must be earned by use
        self._last_s: float | None = None
        self._hold_s = HOLD_S
        self._event_s: float | None = None  # the last refusal
        self._pending_s: float | None = None  # a refusal whose other victims may still come in
        self._sent = self._refused = 0  # since the last refusal

    @property
    def ready_at_s(self) -> float:
        """The next call may not start before."""
        return self._flow.ready_at_s

    @property
    def per_s(self) -> float:
        """Calls per second that may start now; infinite when nothing is known to limit them."""
        if self._learned is None:
            ramp = RAMP_PER_S / self._crowd * 2.0 ** min(self._clock_s / RAMP_DOUBLES_S, 30.0)
            rate = math.inf if ramp > RAMP_END_PER_S else ramp
        else:
            rate = self._learned * 2.0 ** min(
                (max(0.0, self._clock_s - self._hold_s) / PROBE_DOUBLES_S) ** 2, 60.0
            )
        return min(rate, self._ceiling, self._announced.per_s)

    @property
    def is_learned(self) -> bool:
        """Whether a refusal has taught a rate, which calls are started at now."""
        return self._learned is not None and self._pending_s is None and self.per_s < RAMP_END_PER_S

    @property
    def learned_per_s(self) -> float | None:
        """What refusals have taught."""
        return self._learned

    @property
    def is_refused(self) -> bool:
        """Whether nothing has been started since the last refusal."""
        return self._pending_s is not None

    @property
    def is_within(self) -> bool:
        """Whether no more than a known rate is being tried."""
        return self.is_learned and self._clock_s <= self._hold_s

    @property
    def known_per_s(self) -> float | None:
        """The limit as far as it is known, for people; ``None`` when none is."""
        known = min(
            self._ceiling, self._announced.per_s, math.inf if self._learned is None else self._learned
        )
        return None if known == math.inf else known

    def take(self, now_s: float) -> None:
        """A call starts."""
        if self._pending_s is not None:
            self._learn(now_s)
        elif self._event_s is None:
            self._event_s = now_s
        rate = self.per_s
        if self._last_s is not None:
            self._clock_s += min(now_s - self._last_s, 2.0 / rate if rate < math.inf else 0.02)
        self._last_s = now_s
        self._sent += 1
        if rate < math.inf:
            self._flow.take(1.0, rate, now_s)

    def give_back(self) -> None:
        """A start did not become a call."""
        self._sent -= 1
        if (rate := self.per_s) < math.inf:
            self._flow.settle(-1.0, rate)

    def announce(self, per_s: float, left: float | None, now_s: float) -> None:
        """The endpoint tells its limit.

        Args:
            left: share of the allowance that is left; ``None`` when it does not say.
        """
        self._announced.tell(per_s, left, now_s)

    def refused(self, now_s: float) -> None:
        """A call was refused for the rate."""
        self._refused += 1
        if self._pending_s is None:
            self._pending_s = now_s

    def pardon(self, known: float | None) -> None:
        """The last refusals were not for the rate: go back to the one that was known before."""
        self._learned, self._pending_s = known, None
        self._clock_s = 0.0
        self._sent = self._refused = 0

    def _learn(self, now_s: float) -> None:
        """Turn the last refusal into a rate; called when the next call starts, all victims counted."""
        event, before, held = self._pending_s, self._event_s, self._learned
        assert event is not None
        assert before is not None
        taken = self._sent - self._refused
        self._pending_s = None
        self._sent = self._refused = 0
        if taken <= 0 and held is not None:
            self._flow.ready_at_s = now_s + SCOUT_S
            return
        pause = now_s - event
        found = max(SHARE * self._found(max(1, taken), max(event - before, 1e-2), pause), 1 / 60)
        same = held is not None and abs(math.log(found / held)) < SAME
        most = min(HOLD_MAX_S, max(HOLD_S, HOLD_MAX_PAUSES * pause))
        least = min(most, max(HOLD_S, HOLD_PAUSES * pause))
        self._hold_s = self._crowd * min(most, max(least, 2 * self._hold_s / self._crowd if same else 0.0))
        self._learned, self._event_s = found, event
        self._clock_s = 0.0

    def _found(self, taken: int, since_s: float, pause_s: float) -> float:
        """The rate that a refusal shows: calls taken since the refusal before it, over the time between."""
        held = self._learned
        if held is None:
            # The allowance was full at the start. It fills again in the pause that was asked for, perhaps.
            return taken / math.sqrt(since_s * max(since_s, min(pause_s, 60.0), 1.0))
        if self._clock_s > self._hold_s:
            gain: float = (min(self.per_s, 10 * held) / held) ** PROBE_GAIN
            return held * gain
        return max(taken / since_s, held / MOST_CUT)


class TokenRate:
    """The rate at which one lane may spend tokens: counted by estimate at a start, settled by the answer.

    Args:
        per_min: a configured limit; ``None`` without one.
        crowd: lanes of its endpoint.
    """

    __slots__ = ("_announced", "_ceiling", "_flow")

    def __init__(self, per_min: float | None = None, crowd: int = 1) -> None:
        self._ceiling = math.inf if per_min is None else per_min / 60.0 * SHARE
        self._announced = _Announced(crowd)
        self._flow = Flow()

    @property
    def per_s(self) -> float:
        """Tokens per second; infinite when no limit is known."""
        return min(self._ceiling, self._announced.per_s)

    @property
    def ready_at_s(self) -> float:
        """The next call may not start before."""
        return self._flow.ready_at_s

    def take(self, tokens: float, now_s: float) -> None:
        """A call of about this size starts."""
        if (rate := self.per_s) < math.inf:
            self._flow.take(tokens, rate, now_s)

    def settle(self, more: float) -> None:
        """A call has turned out to be so many tokens larger than was counted."""
        if (rate := self.per_s) < math.inf:
            self._flow.settle(more, rate)

    def announce(self, per_min: float, left: float | None, now_s: float) -> None:
        """The endpoint tells its limit; see `StartRate.announce`."""
        self._announced.tell(per_min / 60.0, left, now_s)
