"""A run's journal: JSON lines below the data root, each written before the next thing happens."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import structlog

from genworker.errors import StoreError
from genworker.paths import Paths
from genworker.store.filesystem import make_directories

Listener = Callable[[str, Mapping[str, Any]], None]


class _LineFile:
    """A file that takes one whole line per system call, so that a kill never leaves half of one behind.

    A line that the disk refuses is dropped and counted: the journal must not stop what it records.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self.dropped = 0

    def msg(self, message: bytes) -> None:
        try:
            os.write(self._fd, message + b"\n")
        except OSError:
            self.dropped += 1

    info = msg

    def close(self) -> None:
        os.close(self._fd)


class RunJournal:
    """Records every event of a run, and tells listeners (the terminal) of it.

    Raises:
        StoreError: the journal cannot be created.
    """

    def __init__(self, paths: Paths, run_id: str, listeners: tuple[Listener, ...] = ()) -> None:
        self.path = paths.journal_path(run_id)
        self._listeners = listeners
        try:
            make_directories(self.path.parent)
            self._file = _LineFile(self.path)
        except OSError as error:
            raise StoreError(
                f"{self.path} cannot be written: {error.strerror}", path=str(self.path), errno=error.errno
            ) from error
        self._log = structlog.wrap_logger(
            self._file,
            wrapper_class=structlog.BoundLogger,
            processors=[_add_time, structlog.processors.JSONRenderer(serializer=_to_json)],
        )

    @property
    def dropped_lines(self) -> int:
        """Lines that the disk refused."""
        return self._file.dropped

    def record(self, event: str, **facts: Any) -> None:
        """Write one line and tell the listeners."""
        self._log.info(event, **facts)
        for listener in self._listeners:
            listener(event, facts)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _add_time(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    return {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **event}


def _to_json(event: Any, **_options: Any) -> bytes:
    return orjson.dumps(event, default=str)


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a journal that are whole; empty when there is none."""
    try:
        stream = path.open("rb")
    except OSError:
        return
    with stream:
        for line in stream:
            try:
                record = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue  # the last line of a run that was cut off
            if isinstance(record, dict):
                yield record
