"""Deadlines that a pause of the process does not use up.

After SIGSTOP, a suspend or a debugger the event loop finds timers that are long due and answers that lie in
the sockets, and runs the timers first. A deadline here is judged only after what lies there has been read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType

GRACE_S = 0.1
"""Between the moment at which a deadline is due and its judgement: a few turns of the loop."""
PAUSE_S = 0.5
"""A timer that fires so much too late says that the process stood still."""
LONGEST_GRACE_S = 5.0
"""For thousands of answers that lie there, in a process that stood still."""


class Timer:
    """Calls a function once, when a time is over and what has arrived by then has been read.

    Args:
        after_s: seconds from now.
    """

    __slots__ = ("_due_s", "_function", "_handle", "_loop")

    def __init__(self, after_s: float, function: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._due_s = self._loop.time() + after_s
        self._function = function
        self._handle = self._loop.call_at(self._due_s, self._is_due)

    def _is_due(self) -> None:
        late_s = self._loop.time() - self._due_s
        grace_s = min(late_s, LONGEST_GRACE_S) if late_s > PAUSE_S else GRACE_S
        self._handle = self._loop.call_later(grace_s, self._function)

    def cancel(self) -> None:
        """Forget it."""
        self._handle.cancel()


class Deadline:
    """``async with Deadline(seconds):`` raises `TimeoutError` inside when the time is over.

    As `asyncio.timeout`, but for a pause of the process.
    """

    __slots__ = ("_limit", "_seconds", "_timer")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._limit = asyncio.timeout(None)
        self._timer: Timer | None = None

    async def __aenter__(self) -> None:
        await self._limit.__aenter__()
        self._timer = Timer(self._seconds, self._expire)

    def _expire(self) -> None:
        self._limit.reschedule(asyncio.get_running_loop().time())

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._timer is not None
        self._timer.cancel()
        await self._limit.__aexit__(kind, error, traceback)
