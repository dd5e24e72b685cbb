"""Requests to stop, heard from a process's first line to its last, and what counts as one request.

A container's PID 1 ignores signals that it has no handler for, and a script's background jobs begin with
SIGINT ignored: so the handlers are set before anything else is imported, and a stop that comes while modules
are loaded, files are read or a lock is waited for ends the command there, before anything is bought. A run
that is under way hears them itself (see `genworker.run.engine`).

Imports nothing of genworker, so that it is there first.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

SAME_REQUEST_S = {signal.SIGINT: 0.3, signal.SIGTERM: 2.0, signal.SIGHUP: 2.0}
"""Seconds after the first signal in which another is the same request, by the other's number: ``make`` passes
SIGTERM on to a child that has it from its group already, and systemd and shells do likewise; a terminal sends
SIGINT to a whole group. A person presses Ctrl-C again more slowly than that."""


class Stopped(BaseException):
    """A request to stop, raised where the main thread stood when it came.

    Attributes:
        number: the signal's.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


AGAIN_S = 0.005
"""Seconds after which a request is raised again that was raised where nothing can be."""

_last_request: list[tuple[int, float]] = []
"""(number, monotonic seconds) of the latest request of this process, if there was one."""
_untaken: list[int] = []
"""Requests that have raised `Stopped`, and that nobody has taken up since."""


def heard_signals() -> list[signal.Signals]:
    """The signals that ask this process to stop.

    A hangup that is ignored stays ignored: ``nohup`` relies on it. Not so an interrupt: ``kill -INT`` is how
    a script's background job is asked to stop, though its shell has started it with interrupts ignored.
    """
    return [
        number
        for number in STOP_SIGNALS
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
    ]


def listen() -> None:
    """Raise `Stopped` in the main thread at a request to stop, from now on."""
    for number in heard_signals():
        with contextlib.suppress(ValueError, OSError):  # not the main thread: its owner hears for us
            signal.signal(number, _stop)
            sys.unraisablehook = _retry_what_was_swallowed


def take_request() -> int | None:
    """The signal that has asked this process to stop before, if that was not taken up; ``None`` without.

    For who is about to begin something: an exception that is raised within a destructor or a callback is
    swallowed by the interpreter, so `Stopped` alone would come a moment later.
    """
    return _untaken.pop() if _untaken else None


def _retry_what_was_swallowed(report: sys.UnraisableHookArgs) -> None:
    """Raise a request again that came within a destructor or a callback, from where nothing can be raised."""
    if isinstance(report.exc_value, Stopped):
        signal.signal(signal.SIGALRM, _stop_again)
        signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
    else:
        sys.__unraisablehook__(report)


def _stop_again(_number: int, _frame: FrameType | None) -> None:
    if _untaken:  # else somebody is at it
        raise Stopped(_untaken[0])


def _stop(number: int, _frame: FrameType | None) -> None:
    if is_new_request(number):
        _untaken[:] = [number]
        raise Stopped(number)


def is_new_request(number: int, *, now_s: float | None = None) -> bool:
    """Note a signal; ``False`` when it is the same request as the one before."""
    now = time.monotonic() if now_s is None else now_s
    if _last_request and now - _last_request[0][1] < SAME_REQUEST_S[signal.Signals(number)]:
        return False
    _last_request[:] = [(number, now)]
    return True
