"""The engine that needs nothing: workers are processes of this host, children of the driver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from genworker.cluster.crew import Call
from genworker.cluster.worker import TOKEN_VARIABLE
from genworker.core.visible import visible
from genworker.errors import CrewError

LAST_BYTES = 4000


class LocalProcess:
    """A worker on this host, in a process group of its own: a signal from the terminal does not reach it."""

    def __init__(self, slot: int, process: subprocess.Popen[bytes], log: Path) -> None:
        self.slot = slot
        self._process = process
        self._log = log

    def exit_code(self) -> int | None:
        """See `genworker.cluster.crew.Process`."""
        return self._process.poll()

    def last_words(self) -> str:
        """See `genworker.cluster.crew.Process`."""
        try:
            with self._log.open("rb") as stream:
                stream.seek(max(0, self._log.stat().st_size - LAST_BYTES))
                return visible(stream.read().decode("utf-8", "replace").strip())
        except OSError:
            return ""

    def kill(self) -> None:
        """See `genworker.cluster.crew.Process`."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class LocalEngine:
    """Starts workers with the interpreter, the environment and the directory of the driver."""

    async def open(self) -> str | None:
        """See `genworker.cluster.crew.Engine`."""
        return None

    async def start(self, call: Call) -> LocalProcess:
        """See `genworker.cluster.crew.Engine`."""
        # Not in a thread, which cannot be cancelled: it would start a process that nobody knows.
        return start_process(call.slot, call.arguments(), call.token, call.log)

    async def close(self) -> None:
        """See `genworker.cluster.crew.Engine`."""


def start_process(slot: int, arguments: list[str], token: str, log: Path) -> LocalProcess:
    """Start a worker on this host.

    Raises:
        CrewError: it cannot be started.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(log, flags, 0o600)
        try:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=fd,
                stderr=fd,
                env={**os.environ, TOKEN_VARIABLE: token},
                start_new_session=True,
            )
        finally:
            os.close(fd)
    except OSError as error:
        raise CrewError(f"a worker cannot be started: {error}") from error
    return LocalProcess(slot, process, log)
