"""How many calls a lane may have in flight: found by trying, as congestion control does.

Additive increase, multiplicative decrease (Chiu and Jain, 1989), with a doubling start. A lane grows only
while it is really full, and is cut at most once for all the calls that were admitted under one limit, so
that a burst of refusals counts as the one signal that it is.
"""

from __future__ import annotations

START = 16
"""Calls in flight at first; it doubles per clean round until the first refusal."""
CUT = 0.75
FULL = 0.8
"""A lane counts as full from this share of its limit."""


class LaneLimit:
    """The limit of one lane. Time does not enter: rounds are counted in answers.

    Attributes:
        in_flight: calls that are out.
        ceiling: the limit never passes this.
    """

    __slots__ = ("_epoch", "_limit", "_starting", "ceiling", "in_flight")

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
        self.in_flight = 0
        self._limit = float(min(START, ceiling))
        self._starting = True
        self._epoch = 0

    @property
    def limit(self) -> int:
        """Calls that may be in flight now, from 1 to `ceiling`."""
        return max(1, int(self._limit))

    @property
    def has_room(self) -> bool:
        """Whether another call may start."""
        return self.in_flight < self.limit

    def admit(self) -> int:
        """Count a call in; returns the epoch that `answered` and `refused` want back."""
        self.in_flight += 1
        return self._epoch

    def answered(self, epoch: int) -> None:
        """A call came back clean."""
        was_full = self.in_flight >= FULL * self.limit
        self.in_flight -= 1
        if was_full and epoch == self._epoch and self._limit < self.ceiling:
            grown = self._limit + (1.0 if self._starting else 1.0 / self._limit)
            self._limit = min(float(self.ceiling), grown)

    def failed(self) -> None:
        """A call came back with an error that says nothing about load."""
        self.in_flight -= 1

    def refused(self, epoch: int) -> None:
        """The endpoint asked for fewer calls."""
        self.in_flight -= 1
        if epoch == self._epoch:
            # What is in flight is what the endpoint took; an unused limit says nothing.
            self._limit = max(1.0, min(self._limit, self.in_flight + 1.0) * CUT)
            self._epoch += 1
            self._starting = False
