"""Copies of raw outputs beside the store, a file each, for those who like to read them in one directory.

A side-write and no more: it happens in a thread of its own after the commit, is not synced, and whatever goes
wrong with it is counted and goes no further.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Collection

from genworker.core.stages import Stage
from genworker.paths import Paths

CLOSE_PATIENCE_S = 5.0
"""How long a run waits at its end for copies that are not written yet; what is left then is left out."""
MOST_WAITING = 1000
"""Copies that may wait for the disk; beyond it they are left out rather than kept in memory."""


class RawCopies:
    """Writes the copies of one run.

    Attributes:
        failed: copies that could not be written, or were left out.
    """

    def __init__(self, paths: Paths, stages: Collection[Stage], file_mode: int, dir_mode: int) -> None:
        self._paths = paths
        self._stages = frozenset(stages)
        self._file_mode = file_mode
        self._dir_mode = dir_mode
        self._queue: queue.Queue[tuple[Stage, str, str] | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._work, name="raw-copies", daemon=True)
        self._thread.start()
        self.failed = 0

    def take(self, stage: Stage, gen_id: str, raw_text: str) -> None:
        """Have a copy written; returns at once."""
        if stage not in self._stages or not raw_text:
            return
        try:
            self._queue.put_nowait((stage, gen_id, raw_text))
        except queue.Full:
            self.failed += 1

    def close(self) -> None:
        """Wait a little for what is not written yet."""
        try:
            self._queue.put(None, timeout=CLOSE_PATIENCE_S)
        except queue.Full:
            return
        self._thread.join(CLOSE_PATIENCE_S)

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                self._write(*item)
            except (OSError, ValueError):
                self.failed += 1

    def _write(self, stage: Stage, gen_id: str, raw_text: str) -> None:
        path = self._paths.raw_copy_path(stage, gen_id)
        if path.parent.is_symlink() or path.parent.parent.is_symlink():
            raise OSError(f"{path.parent} is a symbolic link")
        path.parent.mkdir(self._dir_mode, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(path, flags, self._file_mode), "wb") as stream:  # noqa: PTH123 (a descriptor)
            stream.write(raw_text.encode("utf-8", "replace"))
