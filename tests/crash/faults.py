"""Faults at system calls, made inside the process: works wherever Python does, and needs no privilege.

Every call that changes something below the data root is a step, counted from 1 over all threads. A fault
is a kill before or after one step, an error number in place of one step or of all from there on, a short
write, or nothing but a record of the steps. What is patched are the names that genworker calls through:
``os.*``, ``fcntl.*`` and the two functions of the C library that Python does not wrap.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

WRITING = frozenset(
    {"open", "mkdir", "write", "pwrite", "ftruncate", "fsync", "syncfs", "rename", "renameat2", "fallocate"}
)
"""Steps that a full or broken disk refuses."""
REMOVING = frozenset({"unlink", "rmdir"})
_MUTATES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Recorder:
    """Counts steps and makes the fault."""

    def __init__(self, fault: dict[str, Any], root: str) -> None:
        self.root = os.path.realpath(root)
        self.kind: str = fault.get("kind", "")
        self.step: int = fault.get("step", 0)
        self.errno: int = getattr(errno, fault["errno"]) if fault.get("errno") else 0
        self.names = frozenset(fault.get("names", ()))
        """Only steps of these names are counted; all without."""
        self.contains: str = fault.get("contains", "")
        self.trace: str | None = fault.get("trace")
        self.release: str | None = fault.get("release")
        """While errors last "for good": they end when this file exists."""
        self.steps: list[tuple[str, str]] = []
        self.paths: dict[int, str] = {}
        self.count = 0
        self.lock = threading.RLock()
        self.inside = threading.local()

    def save(self) -> None:
        if self.trace:
            with open(self.trace, "w") as stream:
                json.dump(self.steps, stream)

    def path_of(self, path: Any, dir_fd: int | None) -> str | None:
        """The path relative to the data root; ``None`` when it is elsewhere."""
        if isinstance(path, int):
            return self.paths.get(path)
        name = os.fsdecode(path)
        if dir_fd is not None and not os.path.isabs(name):
            base = self.paths.get(dir_fd)
            return None if base is None else f"{base}/{name}"
        name = os.path.abspath(name)
        if not name.startswith(self.root + "/"):
            return None
        return name[len(self.root) + 1 :]

    def fails(self) -> bool:
        if self.kind == "errno":
            return self.count == self.step
        if self.kind == "errno-for-good":
            return self.count >= self.step and not (self.release and os.path.exists(self.release))
        return False

    def call(
        self, name: str, path: str | None, real: Callable[[], Any], on_errno: Callable[[int], Any]
    ) -> Any:
        """Make one step, or its fault."""
        if path is None or getattr(self.inside, "busy", False):
            return real()
        if (self.names and name not in self.names) or self.contains not in path:
            return real()
        with self.lock:
            self.inside.busy = True
            try:
                self.count += 1
                mine = self.count
                self.steps.append((name, path))
                if self.kind == "kill-before" and mine == self.step:
                    self.save()
                    os.kill(os.getpid(), signal.SIGKILL)
                    time.sleep(9)
                if self.fails() and (
                    self.names or name in WRITING or (self.errno == errno.EROFS and name in REMOVING)
                ):
                    return on_errno(self.errno)
                result = real()
                if self.kind == "kill-after" and mine == self.step:
                    os.kill(os.getpid(), signal.SIGKILL)
                    time.sleep(9)
                return result
            finally:
                self.inside.busy = False


def _raise(code: int, path: Any = None) -> Any:
    raise OSError(code, os.strerror(code), path if not isinstance(path, int) else None)


def install(fault: dict[str, Any], root: str) -> Recorder:
    """Patch this process; for good."""
    recorder = Recorder(fault, root)
    _patch_paths(recorder)
    _patch_descriptors(recorder)
    _patch_locks(recorder)
    _patch_library(recorder)
    _patch_parsing(recorder)
    return recorder


def _patch_paths(recorder: Recorder) -> None:
    real_open = os.open

    @functools.wraps(real_open)
    def patched_open(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        place = recorder.path_of(path, dir_fd)
        if flags & _MUTATES:
            fd = recorder.call(
                "open",
                place,
                lambda: real_open(path, flags, mode, dir_fd=dir_fd),
                lambda code: _raise(code, path),
            )
        else:
            # Counted only when asked for by name: reading changes nothing that a kill could tear.
            name = "open-read" if "open-read" in recorder.names else ""
            fd = (
                recorder.call(
                    name,
                    place,
                    lambda: real_open(path, flags, mode, dir_fd=dir_fd),
                    lambda code: _raise(code, path),
                )
                if name
                else real_open(path, flags, mode, dir_fd=dir_fd)
            )
        if place is not None:
            recorder.paths[fd] = place
        return int(fd)

    os.open = patched_open

    def one_path(name: str) -> None:
        real = getattr(os, name)

        @functools.wraps(real)
        def patched(path: Any, *args: Any, dir_fd: int | None = None, **kwargs: Any) -> Any:
            if dir_fd is not None:
                kwargs["dir_fd"] = dir_fd
            return recorder.call(
                name,
                recorder.path_of(path, dir_fd),
                lambda: real(path, *args, **kwargs),
                lambda code: _raise(code, path),
            )

        setattr(os, name, patched)

    for name in ("mkdir", "rmdir", "unlink", "rename"):
        one_path(name)


def _patch_descriptors(recorder: Recorder) -> None:
    def one_fd(name: str) -> None:
        real = getattr(os, name)

        @functools.wraps(real)
        def patched(fd: int, *args: Any) -> Any:
            return recorder.call(name, recorder.paths.get(fd), lambda: real(fd, *args), _raise)

        setattr(os, name, patched)

    for name in ("pwrite", "ftruncate", "fsync"):
        one_fd(name)
    real_write, real_close = os.write, os.close

    @functools.wraps(real_write)
    def patched_write(fd: int, content: Any) -> int:
        def real() -> int:
            if recorder.kind == "short-write" and recorder.count == recorder.step and len(content) > 1:
                return real_write(fd, bytes(content)[: len(content) // 2])
            return real_write(fd, content)

        return int(recorder.call("write", recorder.paths.get(fd), real, _raise))

    @functools.wraps(real_close)
    def patched_close(fd: int) -> None:
        place = recorder.paths.pop(fd, None)
        recorder.call("close", place, lambda: real_close(fd), _raise)

    os.write, os.close = patched_write, patched_close


def _patch_locks(recorder: Recorder) -> None:
    def one(name: str) -> None:
        real = getattr(fcntl, name)

        @functools.wraps(real)
        def patched(fd: Any, *args: Any) -> Any:
            place = recorder.paths.get(fd) if isinstance(fd, int) else None
            return recorder.call(name, place, lambda: real(fd, *args), _raise)

        setattr(fcntl, name, patched)

    for name in ("flock", "lockf", "fcntl"):
        one(name)


class _Library:
    """Stands in for the C library where genworker's kernel module calls it."""

    def __init__(self, recorder: Recorder, real: Any) -> None:
        def fail(code: int) -> int:
            ctypes.set_errno(code)
            return -1

        def renameat2(old_fd: int, old: bytes, new_fd: int, new: bytes, flags: int) -> int:
            place = recorder.path_of(new, None)
            return int(
                recorder.call(
                    "renameat2", place, lambda: real.renameat2(old_fd, old, new_fd, new, flags), fail
                )
            )

        def syncfs(fd: int) -> int:
            return int(recorder.call("syncfs", recorder.paths.get(fd), lambda: real.syncfs(fd), fail))

        def fallocate(fd: int, mode: int, offset: Any, length: Any) -> int:
            return int(
                recorder.call(
                    "fallocate",
                    recorder.paths.get(fd),
                    lambda: real.fallocate64(fd, mode, offset, length),
                    fail,
                )
            )

        self.fallocate64 = fallocate
        self.renameat2 = renameat2
        self.syncfs = syncfs


def _patch_library(recorder: Recorder) -> None:
    from genworker.store import _kernel

    vars(_kernel)["_libc"] = _Library(recorder, _kernel._libc)


def _patch_parsing(recorder: Recorder) -> None:
    """Parsing is a step as well: a parser that takes the process down must not take the answer along."""
    from genworker.store import filesystem

    real = vars(filesystem)["finish"]

    def patched(answer: Any) -> Any:
        return recorder.call("parse", f"{answer.stage.value}/{answer.gen_id}", lambda: real(answer), _raise)

    vars(filesystem)["finish"] = patched
