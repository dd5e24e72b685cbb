"""What a run is doing at this moment, in a small file beside its journal, for whoever looks from outside.

The worker writes the file anew every other second and takes it away at its end; nothing depends on it. What a
dead worker left is told by the run's lock, which dies with its process.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
from collections import deque
from dataclasses import asdict
from pathlib import Path
from typing import Any

from genworker.core.events import CallFailed, Event, LaneStopped, Retried, RowFailed
from genworker.core.visible import visible
from genworker.paths import Paths
from genworker.run.station import RunInProgress
from genworker.store.lock import holder_facts

EVERY_S = 2.0
LAST_ERRORS = 5
_MOST_BYTES = 200_000


class Now:
    """Writes the file of one run.

    What the disk refuses is left: it would be said of a run that goes on.
    """

    def __init__(self, paths: Paths, run_id: str) -> None:
        self._path = paths.now_path(run_id)
        self._scratch = self._path.with_suffix(".now-new")
        self._errors: deque[dict[str, str]] = deque(maxlen=LAST_ERRORS)
        self._holder = holder_facts(run_id)
        self._task: asyncio.Task[None] | None = None

    def hear(self, event: Event) -> None:
        """Keep the last errors."""
        if isinstance(event, Retried | CallFailed | RowFailed):
            self._errors.append({"gen_id": event.gen_id, "error": visible(event.error, limit=200)})
        elif isinstance(event, LaneStopped):
            self._errors.append({"lane": event.lane, "error": visible(event.error, limit=200)})

    def begin(self, run: RunInProgress) -> None:
        """Write the file, and keep it up to date; called from the run's event loop."""
        self._task = asyncio.get_running_loop().create_task(self._keep(run))

    def close(self) -> None:
        """Take the file away."""
        if self._task is not None:
            self._task.cancel()
        for path in (self._path, self._scratch):
            with contextlib.suppress(OSError):
                path.unlink()

    async def _keep(self, run: RunInProgress) -> None:
        while True:
            self._write(now_record(run, self._holder, list(self._errors)))
            await asyncio.sleep(EVERY_S)

    def _write(self, record: dict[str, Any]) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        with contextlib.suppress(OSError):
            fd = os.open(self._scratch, flags, 0o600)
            try:
                os.write(fd, json.dumps(record, default=str).encode())
            finally:
                os.close(fd)
            self._scratch.replace(self._path)


def now_record(run: RunInProgress, holder: dict[str, Any], errors: list[dict[str, str]]) -> dict[str, Any]:
    """What a run is doing, for machines.

    ``waiting`` are lanes that begin nothing until their endpoint's pause is over: why, for how many seconds
    so far, and the seconds left (``None`` while one of their rows asks). ``crew`` has the workers of a run by
    several: what each has out and holds; one that ``is_lost`` was not heard for longer than its lease.
    """
    now, progress = run.clock(), run.progress
    rate = progress.rate_per_min(now, run.started_s)
    return {
        **holder,
        "cohort": run.cohort_id,
        "rate_per_min": round(rate, 1),
        "eta_s": progress.eta_s(rate),
        "in_flight": run.activity.in_flight,
        "batches": _batches(run),
        "crew": [] if run.crew_record is None else run.crew_record(),
        "stopping": run.activity.draining,
        "crew_words": None if run.crew is None else run.crew(),
        "waiting": [
            {"lane": wait.lane, "why": visible(wait.why, limit=200), "for_s": round(wait.for_s, 1)}
            | {"seconds": None if wait.left_s is None else round(wait.left_s, 1)}
            for wait in run.activity.waits(now)
        ],
        "limits": [
            {"lane": name, **{key: value for key, value in asdict(belief).items() if not key.endswith("_s")}}
            for name, belief in run.activity.beliefs()
        ],
        "stopped": [{"lane": name, "why": why} for name, why in run.activity.stopped_lanes()],
        "stages": {
            stage.value: {
                "planned": counts.planned,
                "done": counts.done,
                "failed": counts.failed,
                "unparseable": counts.unparseable,
                "blocked": counts.blocked + counts.stopped,
            }
            for stage, counts in progress.stages.items()
        },
        "errors": errors,
    }


def _batches(run: RunInProgress) -> dict[str, int]:
    """The batches that the run tends, and their rows."""
    held = [] if run.tender is None else run.tender.batches
    return {"open": len(held), "rows": sum(each.intent.count for each in held)}


def running(paths: Paths, cohort_id: str) -> list[dict[str, Any]]:
    """The records of all living workers of a cohort; of one that has just begun only who it is."""
    found = []
    try:
        names = sorted(os.listdir(paths.runs_dir))  # noqa: PTH208
    except OSError:
        return []
    for name in names:
        if name.endswith(".now") and _is_alive(paths.run_lock_path(name.removesuffix(".now"))):
            record = _read(paths.runs_dir / name)
            if record.get("cohort") == cohort_id:
                found.append(record)
    if not found and _is_alive(paths.cohort_lock_path(cohort_id)):
        found.append(_read(paths.cohort_lock_path(cohort_id)))
    return found


def _is_alive(lock: Path) -> bool:
    """Whether a process holds a lock; asked with a shared one, so that two who look do not meet."""
    try:
        fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_bytes()[:_MOST_BYTES])
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
