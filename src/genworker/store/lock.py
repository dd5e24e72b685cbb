"""Advisory locks that die with their owner: one per cohort, one per run, one byte per generation."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import getpass
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from genworker.errors import StoreError


def holder_facts(run_id: str) -> dict[str, Any]:
    """Who takes a lock: what a person needs to find that process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # no name for this uid
        user = str(os.getuid())
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "user": user,
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "run_id": run_id,
    }


class FileLock:
    """An exclusive ``flock`` on a file that holds who has it.

    The kernel drops it when the process ends, however it ends. It holds between processes of one host,
    and over NFS where the server keeps locks.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def acquire(self, facts: dict[str, Any] | None = None) -> bool:
        """Take the lock and write `facts` into the file; ``False`` when another process has it.

        Raises:
            StoreError: the file cannot be made or locked.
        """
        try:
            while self._fd is None:
                fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(fd)
                    return False
                except OSError:
                    os.close(fd)
                    raise
                if self._is_current(fd):
                    self._fd = fd
                else:  # its last owner removed the file between our open and our lock
                    os.close(fd)
            if facts is not None:
                os.ftruncate(self._fd, 0)
                os.pwrite(self._fd, json.dumps(facts).encode() + b"\n", 0)
        except OSError as error:
            raise StoreError(
                f"{self.path} cannot be locked: {error.strerror}", path=str(self.path), errno=error.errno
            ) from error
        return True

    def _is_current(self, fd: int) -> bool:
        mine = os.fstat(fd)
        try:
            named = os.stat(self.path, follow_symlinks=False)  # noqa: PTH116 (Path.stat would raise the same)
        except FileNotFoundError:
            return False
        return (mine.st_dev, mine.st_ino) == (named.st_dev, named.st_ino)

    def holder(self) -> dict[str, Any]:
        """What the present holder wrote; empty when it cannot be read."""
        try:
            record = json.loads(self.path.read_bytes()[:10_000])
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def release(self, *, remove: bool = False) -> None:
        """Give the lock back; a second call does nothing.

        Args:
            remove: delete the file as well, for locks whose name will not be used again.
        """
        if self._fd is None:
            return
        if remove:
            with contextlib.suppress(OSError):
                self.path.unlink()
        os.close(self._fd)
        self._fd = None


class Claims:
    """Byte-range locks of one file: a byte per generation, so a claim costs a system call and no file.

    Two workers, also of different cohorts, never pay for one generation at the same time. Claims die
    with the process. The byte's place is made from the gen_id; that two ids share one of 2⁶² places does
    not happen in practice, and would only make one of them wait.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise StoreError(
                f"{path} cannot be opened: {error.strerror}", path=str(path), errno=error.errno
            ) from error

    @staticmethod
    def _place(stage: str, gen_id: str) -> int:
        from hashlib import blake2b

        return int.from_bytes(blake2b(f"{stage}/{gen_id}".encode(), digest_size=8).digest(), "big") >> 2

    def take(self, stage: str, gen_id: str) -> bool:
        """Claim a generation; ``False`` when another process has it."""
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self._place(stage, gen_id))
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise
        return True

    def drop(self, stage: str, gen_id: str) -> None:
        """Give a claim back."""
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, self._place(stage, gen_id))

    def close(self) -> None:
        """Give all claims back."""
        os.close(self._fd)
