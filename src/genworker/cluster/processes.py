"""The engine that needs nothing: workers are processes of this host, children of the driver."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

from genworker.core.visible import visible
from genworker.errors import CrewError
from genworker.project.open import Project

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

    async def start(self, slot: int, socket: Path, project: Project, log: Path) -> LocalProcess:
        """See `genworker.cluster.crew.Engine`."""
        return await asyncio.to_thread(self._start, slot, socket, project, log)

    def _start(self, slot: int, socket: Path, project: Project, log: Path) -> LocalProcess:
        arguments = [sys.executable, "-m", "genworker.cluster.worker", str(socket), str(slot)]
        if project.loaded.config is not None:
            arguments += ["--config", str(project.loaded.config)]
        arguments += ["--data-root", str(project.paths.data_root)]
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fd = os.open(log, flags, 0o600)
            try:
                process = subprocess.Popen(
                    arguments,
                    stdin=subprocess.DEVNULL,
                    stdout=fd,
                    stderr=fd,
                    start_new_session=True,
                )
            finally:
                os.close(fd)
        except OSError as error:
            raise CrewError(f"a worker cannot be started: {error}") from error
        return LocalProcess(slot, process, log)
