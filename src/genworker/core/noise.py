"""Refusals that no limit of ours explains: an endpoint that is short of capacity refuses some calls anyway.

A limit that is known is a bet: within it nothing is refused. An endpoint that keeps on refusing calls within
the limits that earlier refusals have taught does not refuse for our rate or number. The limits then go back
to what they were, and refusals are not held against them for as long as they stay about as frequent.
"""

from __future__ import annotations

Known = tuple[float | None, float | None]

BETS = 6
"""Bets to be lost. The first refusal of a run is one; a limit that is halved makes two or three lost."""
FORGIVEN = 128
"""Calls within the limits for each bet lost, from which on it counts as chance."""
SAMPLE = 64
"""Calls over which the share of refusals is watched."""
MORE, ERRORS = 2.0, 3.0
"""Times as many refusals as before, and standard errors above that: then a limit is at work."""
MOST = 0.4
"""An endpoint that refuses a larger share means it."""


class Noise:
    """What a lane knows about refusals that come whatever it does.

    Attributes:
        before: the limits (calls at once, rate) that were known before the first bet was lost.
    """

    __slots__ = ("_bets", "_calls", "_lost", "_refused", "_share", "before")

    def __init__(self) -> None:
        self.before: Known = (None, None)
        self._bets = BETS
        self._lost = self._calls = self._refused = 0
        self._share: float | None = None

    @property
    def is_known(self) -> bool:
        """Whether refusals are known not to depend on what the lane does."""
        return self._share is not None

    def sent(self) -> None:
        """A call starts within the limits that are known."""
        self._calls += 1

    def lost(self, limits: Known) -> bool:
        """A call within these limits was refused; returns whether that makes it noise."""
        if self._calls > FORGIVEN * self._lost:
            self.before = limits
            self._lost = self._calls = 0
        self._lost += 1
        share = self._lost / max(1, self._calls)
        if self._lost >= self._bets and share <= MOST:
            self._share = share
            self._calls = self._refused = 0
        return self.is_known

    def refused(self) -> bool:
        """Count a refusal; returns whether it is noise."""
        if self._share is None:
            return False
        self._refused += 1
        if self._calls < SAMPLE and self._refused <= MOST * SAMPLE:
            return True
        expected = self._share * self._calls
        if self._refused > min(MORE * expected + ERRORS * expected**0.5, MOST * self._calls):
            self._share = None
            self._lost = 0
            self._bets = 2 * BETS  # it has been wrong once
        self._calls = self._refused = 0
        return self.is_known
