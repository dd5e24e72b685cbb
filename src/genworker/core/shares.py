"""Divides a total among workers that hear of it late, or not at all: a rate, or places for calls.

What is given to one worker is never given to another as long as the first may believe that it holds it:
until it has said that it took a smaller share, or its lease has ended. Pure: workers are names, time is the
caller's business.
"""

from __future__ import annotations

import math

SLOTS = "slots"
"""The pool of places over everything."""


def lane_pools(lane: str, endpoint: str) -> tuple[list[str], list[str], list[str]]:
    """Names of the pools that a lane's calls need: places, starts per second, tokens per second.

    The places are those over everything, of the lane, and of its endpoint, in this order.
    """
    both = (("lane", lane), ("endpoint", endpoint))
    places = [SLOTS, *(f"{prefix} places {name}" for prefix, name in both)]
    starts = [f"{prefix} starts {name}" for prefix, name in both]
    return places, starts, [f"{prefix} tokens {name}" for prefix, name in both]


class Pool:
    """One total and who holds how much of it.

    Args:
        total: what all workers may hold together; infinite where nothing limits them.
        whole: whether shares are whole numbers (places), not parts of a rate.
    """

    __slots__ = ("_demands", "_held", "_sum", "_targets", "total", "whole")

    def __init__(self, total: float, *, whole: bool) -> None:
        self.total = total
        self.whole = whole
        self._held: dict[str, float] = {}
        self._sum = 0.0
        self._demands: dict[str, float] = {}
        self._targets: dict[str, float] = {}

    @property
    def held(self) -> float:
        """What all workers may believe they hold."""
        return self._sum

    def held_by(self, worker: str) -> float:
        """What a worker may believe it holds."""
        return self._held.get(worker, 0.0)

    def hold(self, worker: str, amount: float) -> None:
        """A worker may believe by now that it holds this much."""
        before = self._held.pop(worker, 0.0)
        if amount > 0:
            self._held[worker] = amount
        # Anew when it is nearly nothing, so that rounding does not add up over millions of messages.
        self._sum = self._sum + amount - before if self._held else 0.0

    def want(self, worker: str, amount: float) -> bool:
        """A worker could use this much; returns whether that is news."""
        if self._demands.get(worker, 0.0) == amount:
            return False
        if amount > 0:
            self._demands[worker] = amount
        else:
            self._demands.pop(worker, None)
        return True

    def divide(self) -> None:
        """Find the fair shares: the smallest demands in full, the others alike (max-min fairness)."""
        self._sum = math.fsum(self._held.values())
        self._targets = {}
        left, number = self.total, len(self._demands)
        if left == math.inf:
            self._targets = dict(self._demands)
            return
        for worker, demand in sorted(self._demands.items(), key=lambda item: (item[1], item[0])):
            share = left / number
            if self.whole:
                # Ceiling: the remainder of a division by whole numbers goes to the first of those alike.
                share = math.ceil(share - 1e-9)
            taken = min(demand, share, left)
            self._targets[worker] = taken
            left -= taken
            number -= 1

    def offer(self, worker: str) -> float:
        """What a worker may have now: its fair share, as far as nobody else may hold it."""
        share = self._targets.get(worker, 0.0)
        if self.total == math.inf:
            return share
        free = self.total - (self._sum - self._held.get(worker, 0.0))
        if self.whole:
            free = math.floor(free + 1e-6)
        return max(0.0, min(share, free))
