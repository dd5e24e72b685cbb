"""What one of several workers may use for a while: its shares of rates and of places.

The worker's scheduler asks it beside its own limits. A share changes every moment, so what was started too
early is owed in calls or tokens, not in seconds: else a share that is tiny for a moment would bind for long.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from genworker.core.shares import SLOTS, lane_pools

CATCH_UP_S = 0.1
"""How much of its time a late start may regain. More than one process needs: several workers do not start
late at the same moments, and 5 ms would lose half a percent of the rate."""


class LeasedRate:
    """A share of a rate: amounts are spread evenly over time."""

    __slots__ = ("_owed", "_per_s", "_seen_s")

    def __init__(self) -> None:
        self._per_s = 0.0
        self._owed = 0.0
        self._seen_s = 0.0

    def change(self, per_s: float, now_s: float) -> None:
        """The share is another one from now on."""
        self._pass(now_s)
        self._per_s = per_s

    def _pass(self, now_s: float) -> None:
        if self._per_s < math.inf and now_s > self._seen_s:
            self._owed = max(self._owed - self._per_s * (now_s - self._seen_s), -CATCH_UP_S * self._per_s)
        self._seen_s = max(self._seen_s, now_s)

    @property
    def ready_at_s(self) -> float:
        """Nothing may start before."""
        if self._per_s == math.inf:
            return 0.0
        if self._per_s <= 0.0:
            return math.inf
        return self._seen_s + self._owed / self._per_s

    def take(self, amount: float, now_s: float) -> None:
        """Count a start of this size."""
        if self._per_s < math.inf:
            self._pass(now_s)
            self._owed += amount

    def settle(self, more: float) -> None:
        """A start has turned out to be this much larger than was counted."""
        if self._per_s < math.inf:
            self._owed += more


class Lease:
    """What a worker holds.

    Args:
        lanes: each lane's name and its endpoint's.

    Attributes:
        until_s: nothing is begun from then on.
        is_last: no more jobs will come.
    """

    def __init__(self, lanes: Sequence[tuple[str, str]]) -> None:
        self.until_s = -math.inf
        self.is_last = False
        pools = [lane_pools(*names) for names in lanes]
        self._places: dict[str, float] = {name: 0.0 for places, _, _ in pools for name in places}
        self._rates = {name: LeasedRate() for _, starts, tokens in pools for name in (*starts, *tokens)}
        self._lane_places = [(places[1], places[2]) for places, _, _ in pools]
        self._lane_starts = [[self._rates[name] for name in starts] for _, starts, _ in pools]
        self._lane_tokens = [[self._rates[name] for name in tokens] for _, _, tokens in pools]

    def renew(self, shares: Mapping[str, float], until_s: float, now_s: float) -> None:
        """Hold these shares from now on; what is not among them is not limited."""
        self.until_s = until_s
        for name in self._places:
            self._places[name] = shares.get(name, math.inf)
        for name, rate in self._rates.items():
            rate.change(shares.get(name, math.inf), now_s)

    def is_over(self, now_s: float) -> bool:
        """Whether it has ended."""
        return now_s >= self.until_s

    def has_place(self, lane: int, out: int, in_lane: int, in_endpoint: int) -> bool:
        """Whether one more call may be out, beside those that are."""
        of_lane, of_endpoint = self._lane_places[lane]
        places = self._places
        return out < places[SLOTS] and in_lane < places[of_lane] and in_endpoint < places[of_endpoint]

    def ready_at_s(self, lane: int) -> float:
        """When the next call of a lane may start, as far as time goes."""
        starts, tokens = self._lane_starts[lane], self._lane_tokens[lane]
        return max(rate.ready_at_s for rate in (*starts, *tokens))

    def begin(self, lane: int, tokens: float, now_s: float) -> None:
        """Count a start."""
        for rate in self._lane_starts[lane]:
            rate.take(1.0, now_s)
        for rate in self._lane_tokens[lane]:
            rate.take(tokens, now_s)

    def not_begun(self, lane: int, tokens: float) -> None:
        """A start did not become a call."""
        for rate in self._lane_starts[lane]:
            rate.settle(-1.0)
        self.settle(lane, -tokens)

    def settle(self, lane: int, more_tokens: float) -> None:
        """A call has turned out to be so many tokens larger than was counted."""
        for rate in self._lane_tokens[lane]:
            rate.settle(more_tokens)
