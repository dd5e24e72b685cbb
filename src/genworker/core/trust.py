"""What the last answers and failures say: whether a refusal is about one row or about a lane. Pure.

Decides nothing about jobs. A bare 401 or 403 may be a firewall's view of one prompt as well as a bad key:
what has been answered lately tells them apart, and so does a handful of equal refusals in a row.
"""

from __future__ import annotations

LATELY_S = 60.0
"""An endpoint that has answered within so long has a good key and a good name: a refusal is about its row."""
EQUAL_REFUSALS = 5
"""So many equal refusals in a row, without an answer between them, are about the lane."""
FIRST_CALLS = 3
"""Calls that a lane, or an endpoint, of which nothing is known has out in its first second: a wrong key costs
no more."""
FIRST_CALLS_S = 1.0
LONGEST_PAUSE_S = 16.0
"""Between tries while nothing at all is answered: a server that is back is found within this."""


class Trust:
    """The state of one lane, or of an endpoint's lanes together.

    Attributes:
        failing_since_s: of the first failure after the last answer; ``None`` while it answers.
        answered_s: when it was last answered; ``None``: never.
        trouble: since when calls are put off, and why, in the endpoint's words; ``None`` while it answers.
    """

    __slots__ = ("_began_s", "_equal", "_words", "answered_s", "failing_since_s", "trouble")

    def __init__(self) -> None:
        self.failing_since_s: float | None = None
        self.answered_s: float | None = None
        self.trouble: tuple[float, str] | None = None
        self._began_s: float | None = None
        self._words: frozenset[str] = frozenset()
        self._equal = 0

    def begun(self, now_s: float) -> None:
        """A call goes out."""
        if self._began_s is None:
            self._began_s = now_s

    def answered(self, now_s: float) -> None:
        """A call brought an answer, good or not."""
        self.answered_s = now_s
        self.failing_since_s = None
        self.trouble = None
        self._equal = 0

    def put_off(self, why: str, now_s: float) -> None:
        """A call is to be made again later."""
        self.trouble = (now_s if self.trouble is None else self.trouble[0], why)

    def failed(self, now_s: float) -> None:
        """A call failed for an outage."""
        if self.failing_since_s is None:
            self.failing_since_s = now_s

    def refused(self, reason: str) -> int:
        """A call was refused for good; returns how many refusals in a row were equal to it, itself included.

        Args:
            reason: in the endpoint's words; names and numbers in it may differ from call to call.
        """
        words = frozenset(word for word in reason.lower().split() if word.isalpha())
        self._equal = self._equal + 1 if words == self._words else 1
        self._words = words
        return self._equal

    def has_answered_lately(self, now_s: float) -> bool:
        """Whether a call was answered within the last `LATELY_S`."""
        return self.answered_s is not None and now_s - self.answered_s <= LATELY_S

    def ready_at_s(self, in_flight: int, first_calls: int) -> float:
        """When another call may go out: while nothing is known, few of them do in the first second.

        Args:
            first_calls: most of them; see `genworker.core.lane.LaneSpec`.
        """
        if self.answered_s is not None or self._began_s is None or in_flight < first_calls:
            return 0.0
        return self._began_s + FIRST_CALLS_S
