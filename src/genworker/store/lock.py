"""Advisory locks that die with their owner: one per cohort, one per run, one byte per generation."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import getpass
import json
import os
import socket
import struct
import sys
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import blake2b
from pathlib import Path
from typing import Any

from genworker.core.visible import visible
from genworker.errors import StoreError


class IfLocked(StrEnum):
    """What a second worker of a cohort does. Generations that are claimed are never paid for twice."""

    LEAVE = "leave"
    """Say who has it, and leave."""
    WAIT = "wait"
    """Wait until the other has ended, then make what is still missing."""
    SHARE = "share"
    """Work on what the other has not begun, and take over its results."""


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
        **_whereabouts(),
    }


def _whereabouts() -> dict[str, str]:
    """What a pid is worth: two containers of one host have different processes of one number."""
    facts = {}
    with contextlib.suppress(OSError):
        facts["boot"] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with contextlib.suppress(OSError):
        facts["pid_namespace"] = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 (no path: a name)
    return facts


def machine_tag() -> str:
    """Eight hex digits for this machine since it was started: whose clock a time on disk is by."""
    boot = _whereabouts().get("boot", "")
    return blake2b(f"{socket.gethostname()}|{boot}".encode(), digest_size=4).hexdigest()


def how_to_stop(facts: dict[str, Any]) -> str:
    """The command that asks a lock's holder to stop; where a pid means nothing here, where to give it."""
    pid = facts.get("pid")
    here = {"host": socket.gethostname(), **_whereabouts()}
    if isinstance(pid, int) and all(facts.get(name) == value for name, value in here.items()):
        return f"stop it: kill -INT {pid}"
    host = visible(str(facts.get("host", "its host")), limit=80)
    return f"stop it where it runs: with Ctrl-C, kill -INT, or its container's own command, on {host}"


def describe_holder(facts: dict[str, Any]) -> str:
    """A lock's holder in words: pid, host, user and for how long."""
    parts = [
        f"{name} {visible(str(facts[name]), limit=80)}" for name in ("pid", "host", "user") if name in facts
    ]
    try:
        since = datetime.fromisoformat(str(facts.get("since")))
        parts.append(f"for {_age((datetime.now(UTC) - since).total_seconds())}, since {facts['since']}")
    except (ValueError, TypeError):
        pass
    return ", ".join(parts) or "it does not say which"


def _age(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


class FileLock:
    """An exclusive ``flock`` on a file that holds who has it.

    The kernel drops it when the process ends, however it ends. It holds between processes of one host,
    and over NFS where the server keeps locks.
    """

    def __init__(self, path: Path, mode: int = 0o600) -> None:
        self.path = path
        self._mode = mode
        self._fd: int | None = None

    def acquire(self, facts: dict[str, Any] | None = None, *, shared: bool = False) -> bool:
        """Take the lock and write `facts` into the file; ``False`` when another process has it.

        Args:
            shared: several processes may hold it so at once; none of them while one holds it alone.

        Raises:
            StoreError: the file cannot be made or locked.
        """
        try:
            while self._fd is None:
                fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, self._mode)
                try:
                    fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
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

    Beyond them stands a byte per run, locked for as long as the run lives: whether another run lives is a
    question to the kernel, without opening a file. It is free the moment its claims are, since one closing of
    one file frees both; so who gets the claim of a run that has just died learns that it has died.

    Two workers, also of different cohorts, never pay for one generation at the same time. Claims die
    with the process. They belong to this object's own opening of the file where the system has such
    locks; elsewhere they belong to the process, which must then not open the file a second time. The
    byte's number is made from the gen_id; that two ids have one of 2⁶² numbers in common does not happen in
    practice, and would only make one of them wait.
    """

    def __init__(self, path: Path, mode: int = 0o600) -> None:
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        except OSError as error:
            raise StoreError(
                f"{path} cannot be opened: {error.strerror}", path=str(path), errno=error.errno
            ) from error

    @staticmethod
    def _byte(stage: str, gen_id: str) -> int:
        return int.from_bytes(blake2b(f"{stage}/{gen_id}".encode(), digest_size=8).digest(), "big") >> 2

    def _lock(self, kind: int, byte: int) -> None:
        if _OWN_LOCK is not None:
            fcntl.fcntl(self._fd, _OWN_LOCK, _pack_flock(kind, byte))
        elif kind == fcntl.F_UNLCK:
            fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, byte)
        else:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)

    @staticmethod
    def _life(run_id: str) -> int:
        # The upper half of the offsets: no generation's byte lies there.
        return int.from_bytes(blake2b(run_id.encode(), digest_size=8).digest(), "big") >> 2 | 1 << 62

    def live(self, run_id: str) -> None:
        """Hold this run's own byte, until `close`.

        Raises:
            OSError: locks are not to be had here, or the run has a namesake.
        """
        self._lock(fcntl.F_WRLCK, self._life(run_id))

    def is_living(self, run_id: str) -> bool:
        """Whether another process holds that run's byte. Takes nothing, so nobody else is misled."""
        question = _pack_flock(fcntl.F_WRLCK, self._life(run_id))
        answer = fcntl.fcntl(self._fd, _OWN_GETLOCK if _OWN_GETLOCK is not None else fcntl.F_GETLK, question)
        return _flock_kind(answer) != fcntl.F_UNLCK

    def take(self, stage: str, gen_id: str) -> bool:
        """Claim a generation; ``False`` when another worker has it."""
        try:
            self._lock(fcntl.F_WRLCK, self._byte(stage, gen_id))
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise
        return True

    def drop(self, stage: str, gen_id: str) -> None:
        """Give a claim back."""
        self._lock(fcntl.F_UNLCK, self._byte(stage, gen_id))

    def close(self) -> None:
        """Give all claims back."""
        os.close(self._fd)


# Locks of an open file description: a process that opens the file again and closes it keeps them.
_OWN_LOCK: int | None = getattr(fcntl, "F_OFD_SETLK", None) if sys.platform == "linux" else None


_OWN_GETLOCK: int | None = getattr(fcntl, "F_OFD_GETLK", None) if sys.platform == "linux" else None


def _pack_flock(kind: int, byte: int) -> bytes:
    """``struct flock`` for one byte, whose fields stand in another order on macOS."""
    if sys.platform == "darwin":
        return struct.pack("qqihh", byte, 1, 0, kind, os.SEEK_SET)
    return struct.pack("hhqqi", kind, os.SEEK_SET, byte, 1, 0)


def _flock_kind(packed: bytes) -> int:
    if sys.platform == "darwin":
        return int(struct.unpack("qqihh", packed[:24])[3])
    return int(struct.unpack_from("h", packed)[0])
