"""Follows the journals of runs: what is going on now, read from the files that a run writes anyway.

Takes no lock and opens nothing of the store for writing; a run does not notice it.
"""

from __future__ import annotations

import os
import socket
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from genworker.core.events import (
    Abandoned,
    Answered,
    CallFailed,
    Calling,
    CallStopped,
    Committed,
    Event,
    LaneStopped,
    OddEventError,
    Retried,
    RowFailed,
    RunEnded,
    RunStarted,
    event_from_json,
)
from genworker.paths import Paths
from genworker.store.reading import read_bytes

RECENT = 30
"""Events of a kind that are shown."""
RATE_WINDOW_S = 60.0
QUIET_S = 300.0
"""A run that has written nothing for so long, and whose process cannot be seen, is taken for dead."""


@dataclass(slots=True)
class Happened:
    """One event that a person wants to see.

    Attributes:
        what: a word: the kind of failure, ``done``, ``retry``.
        detail: the reason, in the endpoint's or the parser's words.
    """

    at: str
    stage: str
    gen_id: str
    what: str
    detail: str


@dataclass(slots=True)
class Run:
    """One run as its journal tells it so far.

    Attributes:
        ended: its exit code; ``None`` while it lasts, or when it died.
        waiting: lane → (until, in seconds since 1970; why): calls that are put off.
        changed_at_s: when its journal grew last, in seconds since 1970.
        is_local: whether its lock names this machine.
    """

    run_id: str
    cohort: str = ""
    pid: int | None = None
    started_at: str = ""
    planned: int = 0
    calls: int = 0
    answers: int = 0
    retries: int = 0
    in_flight: int = 0
    committed: Counter[str] = field(default_factory=Counter)
    failures: deque[Happened] = field(default_factory=lambda: deque(maxlen=RECENT))
    arrivals: deque[Happened] = field(default_factory=lambda: deque(maxlen=RECENT))
    stopped: dict[str, str] = field(default_factory=dict)
    waiting: dict[str, tuple[float, str]] = field(default_factory=dict)
    times: deque[float] = field(default_factory=deque)
    ended: int | None = None
    changed_at_s: float = 0.0
    is_local: bool = False
    _lane: dict[tuple[str, str], str] = field(default_factory=dict)

    def hear(self, event: Event, at: str) -> None:
        """Count one event."""
        if isinstance(event, RunStarted):
            self.cohort, self.pid, self.planned, self.started_at = event.cohort, event.pid, event.rows, at
        elif isinstance(event, RunEnded):
            self.ended = event.exit_code
        elif isinstance(event, Calling):
            self.calls += 1
            self.in_flight += 1
            self._lane[event.stage.value, event.gen_id] = f"{event.endpoint}/{event.model_id}"
        elif isinstance(event, Answered):
            self.answers += 1
            self._ended(event.stage.value, event.gen_id)
            self.times.append(_seconds(at))
        elif isinstance(event, Retried):
            self.retries += 1
            lane = self._ended(event.stage.value, event.gen_id)
            if event.pause_s >= 1:
                self.waiting[lane] = (_seconds(at) + event.pause_s, event.error)
        elif isinstance(event, CallFailed | CallStopped | Abandoned):
            self._ended(event.stage.value, event.gen_id)
            if isinstance(event, CallFailed):
                self._fail(at, event.stage.value, event.gen_id, event.kind, event.error)
        elif isinstance(event, RowFailed):
            self._fail(at, event.stage.value, event.gen_id, event.kind, event.error)
        elif isinstance(event, Committed):
            self.committed["failed" if event.failure else "done"] += 1
            happened = Happened(
                at, event.stage.value, event.gen_id, event.failure or "done", event.reason or ""
            )
            (self.failures if event.failure else self.arrivals).appendleft(happened)
        elif isinstance(event, LaneStopped):
            self.stopped[event.lane] = event.error

    def _ended(self, stage: str, gen_id: str) -> str:
        self.in_flight = max(0, self.in_flight - 1)
        return self._lane.pop((stage, gen_id), "")

    def _fail(self, at: str, stage: str, gen_id: str, kind: str, error: str) -> None:
        self.failures.appendleft(Happened(at, stage, gen_id, kind, error))

    def rate_per_min(self, now_s: float) -> float:
        """Answers a minute, over the last minute or over the run so far when it is younger."""
        while self.times and self.times[0] < now_s - RATE_WINDOW_S:
            self.times.popleft()
        span = min(RATE_WINDOW_S, max(now_s - _seconds(self.started_at), 1.0))
        return 60.0 * len(self.times) / span

    def waits(self, now_s: float) -> list[tuple[str, float, str]]:
        """(lane, seconds left, why) of lanes that put calls off at present."""
        return [
            (lane, until - now_s, why)
            for lane, (until, why) in sorted(self.waiting.items())
            if lane and until > now_s
        ]

    def is_living(self, now_s: float) -> bool:
        """Whether it goes on: it has not ended, and its process is there.

        A process of another machine cannot be looked for; it is taken for living while its journal grows.
        """
        if self.ended is not None or not self.started_at:
            return False
        if self.is_local:
            return _is_there(self.pid)
        return now_s - self.changed_at_s < QUIET_S


def _names_this_host(lock: Path) -> bool:
    """Whether the lock of a run says that its process is on this machine. It is read, not taken."""
    try:
        facts = orjson.loads(read_bytes(str(lock)))
    except orjson.JSONDecodeError:
        return False
    return isinstance(facts, dict) and facts.get("host") == socket.gethostname()


def _is_there(pid: int | None) -> bool:
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's: it is there
        return True
    return True


def _seconds(moment: str) -> float:
    try:
        found = datetime.fromisoformat(moment)
    except ValueError:
        return 0.0
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


class Watcher:
    """The journals of one data root, followed as they grow."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._directory = paths.runs_dir
        self._runs: dict[str, Run] = {}
        self._offsets: dict[str, int] = {}
        self.version = 0

    def look(self) -> bool:
        """Read what has been written since the last look. Blocks for a moment.

        Returns:
            Whether there was anything.
        """
        try:
            names = sorted(name for name in os.listdir(self._directory) if name.endswith(".jsonl"))  # noqa: PTH208
        except OSError:
            return False
        grown = False
        # Old runs are history: the last few of them are enough to show what goes on.
        for name in names[-50:]:
            grown = self._follow(self._directory / name) or grown
        self.version += grown
        return grown

    def _follow(self, path: Path) -> bool:
        offset = self._offsets.get(path.name, 0)
        try:
            status = path.stat()
            if status.st_size <= offset:
                return False
            with path.open("rb") as stream:
                stream.seek(offset)
                block = stream.read()
        except OSError:
            return False
        whole = block.rfind(b"\n") + 1
        self._offsets[path.name] = offset + whole
        run = self._runs.get(path.stem)
        if run is None:
            run = self._runs[path.stem] = Run(path.stem)
        if not run.is_local:
            run.is_local = _names_this_host(self._paths.run_lock_path(run.run_id))
        run.changed_at_s = status.st_mtime
        for line in block[:whole].split(b"\n"):
            if line:
                _tell(run, line)
        return whole > 0

    def runs(self, cohort: str | None = None) -> list[Run]:
        """The runs that are known, the newest first."""
        return [
            run
            for run in sorted(self._runs.values(), key=lambda run: run.run_id, reverse=True)
            if run.cohort and (cohort is None or run.cohort == cohort)
        ]

    def living(self, cohort: str | None = None) -> list[Run]:
        """The runs that go on."""
        now = time.time()
        return [run for run in self.runs(cohort) if run.is_living(now)]


def _tell(run: Run, line: bytes) -> None:
    try:
        record: Any = orjson.loads(line)
        event = event_from_json(record)
    except (orjson.JSONDecodeError, OddEventError):
        return
    if event is not None:
        at = record.get("time")
        run.hear(event, at if isinstance(at, str) else "")
