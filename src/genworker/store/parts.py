"""Reading many generations on all processors: each process looks at a part, and sends back what it found.

A hundred thousand small files take a second of one processor, half of it in the system's calls. Threads do
not help, since they wait for each other between the calls; copies of this process do, where it may be copied:
on Linux, and while it has one thread.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeVar, cast

LEAST_ROWS = 20_000
"""Fewer are read sooner than a process is copied and heard."""
MOST_PROCESSES = 4

T = TypeVar("T")


def in_parts(count: int, work: Callable[[range], T]) -> list[T]:
    """What `work` says of each part of ``range(count)``, in their order.

    Args:
        work: only reads; its results can be pickled. What else it changes, it changes in a copy of this
            process, or here.
    """
    number = _processes() if count >= LEAST_ROWS else 1
    edges = [count * part // number for part in range(number + 1)]
    spans = [range(start, end) for start, end in pairwise(edges)]
    if number == 1:
        return [work(spans[0])]
    gc.collect()
    gc.freeze()  # a collection in a copy would touch, and so copy, all memory
    helpers: list[_Helper] = []
    try:
        with contextlib.suppress(OSError):  # no more processes, or descriptors: the rest is read here
            for span in spans[1:]:
                helpers.append(_Helper(work, span))
        first = work(spans[0])
        rest = [work(span) for span in spans[1 + len(helpers) :]]
        return [first, *(helper.result() for helper in helpers), *rest]
    finally:
        gc.unfreeze()
        for helper in helpers:
            helper.close()


def _processes() -> int:
    """How many processes read; 1 where this one must not be copied."""
    if sys.platform != "linux" or threading.active_count() > 1:
        return 1
    return min(len(os.sched_getaffinity(0)), MOST_PROCESSES)


class _Helper:
    """A copy of this process that works at one part."""

    def __init__(self, work: Callable[[range], Any], span: range) -> None:
        self._work = work
        self._span = span
        self._pipe, theirs = os.pipe()
        try:
            sys.stdout.flush()
            sys.stderr.flush()
            self._pid = os.fork()
        except BaseException:
            os.close(self._pipe)
            os.close(theirs)
            raise
        if self._pid == 0:
            self._be(theirs)
        os.close(theirs)

    def _be(self, theirs: int) -> None:
        """The copy's whole life: it ends without a word to anybody but the pipe."""
        try:
            os.close(self._pipe)
            gc.disable()
            with open(theirs, "wb") as stream:
                pickle.dump(self._work(self._span), stream, pickle.HIGHEST_PROTOCOL)
            os._exit(0)
        finally:
            os._exit(1)  # the one that waits does this part itself, and meets the same error

    def result(self) -> Any:
        """What it found; worked out here should it have died."""
        with open(self._pipe, "rb", closefd=False) as stream:
            content = stream.read()
        if self._wait() != 0:
            return self._work(self._span)
        return cast("Any", pickle.loads(content))

    def _wait(self) -> int:
        pid, self._pid = self._pid, 0
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def close(self) -> None:
        """End it, should it still be at work."""
        os.close(self._pipe)
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            self._wait()
