"""A run's journal: JSON lines below the data root, written before the event loop's next turn."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from genworker.core.account import Fold
from genworker.core.events import Event
from genworker.errors import StoreError
from genworker.paths import Paths
from genworker.store.answers import json_line
from genworker.store.durable import cannot_write, make_directories
from genworker.store.ledger import keep_accounts

Listener = Callable[[Event], None]


class _LineFile:
    """A file that takes whole lines, all of one turn of the event loop in one system call.

    So a kill never leaves half a line behind, and loses none that was written in an earlier turn. What the
    disk refuses is kept and written before the next line: a journal has no holes.
    """

    def __init__(self, path: Path, mode: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(path, flags, mode)
        self._unwritten = bytearray()
        self.error: OSError | None = None

    def write(self, line: bytes) -> None:
        if not self._unwritten:
            try:
                asyncio.get_running_loop().call_soon(self.flush)
            except RuntimeError:  # no loop: nothing else would write it
                self._unwritten += line
                self.flush()
                return
        self._unwritten += line

    def flush(self) -> None:
        """Write what is left; sets or clears `error`."""
        try:
            while self._unwritten:
                del self._unwritten[: os.write(self._fd, self._unwritten)]
            self.error = None
        except OSError as error:
            self.error = error

    def close(self) -> None:
        self.flush()
        os.close(self._fd)
        self._fd = -1


class RunJournal:
    """Records every event of a run, and tells listeners (the terminal) of it.

    Raises:
        StoreError: the journal cannot be created.
    """

    def __init__(
        self,
        paths: Paths,
        run_id: str,
        listeners: tuple[Listener, ...] = (),
        *,
        group_permissions: bool = False,
    ) -> None:
        self.path = paths.journal_path(run_id)
        self._paths = paths
        self._fold = Fold(run_id)
        self._listeners = list(listeners)
        try:
            make_directories(self.path.parent, 0o770 if group_permissions else 0o700)
            self._file = _LineFile(self.path, 0o660 if group_permissions else 0o600)
        except OSError as error:
            raise cannot_write(error, self.path) from error

    def listen(self, listener: Listener) -> None:
        """Tell one more of every event from now on."""
        self._listeners.append(listener)

    def trouble(self) -> StoreError | None:
        """See `genworker.ports.Journal.trouble`."""
        if self._file.error is not None:
            self._file.flush()
        error = self._file.error
        return None if error is None else cannot_write(error, self.path)

    def record(self, event: Event) -> None:
        """Write one line and tell the listeners."""
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._file.write(json_line({"time": time, **event.to_json(), "event": event.word}))
        self._fold.add(event)
        self.tell(event)

    def tell(self, event: Event) -> None:
        """Tell the listeners of something that stands in another journal."""
        for listener in list(self._listeners):
            try:
                listener(event)
            except (OSError, ValueError):  # its terminal is gone; the run is not
                self._listeners.remove(listener)

    def close(self) -> None:
        """Close the file, and keep the run's account for those who come later."""
        self._file.close()
        keep_accounts(self._paths, [self._fold.close()])
