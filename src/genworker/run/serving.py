"""Model servers that a run starts for itself: a free port, ready when it answers, started anew when dead."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from genworker.core.visible import visible
from genworker.errors import ServeError
from genworker.run import keeper

LOOK_S = 0.2
FIRST_PAUSE_S, MOST_PAUSE_S = 1.0, 60.0
"""Between a death and the next start; doubles while the server does not become ready."""
MOST_DEATHS = 3
"""Deaths in a row without an answer, after which it is given up."""
HEALTH, MODELS = "/health", "/v1/models"
LAST_BYTES = 2000
END_S = 25.0
"""Longer than the keeper takes to end a server that does not want to."""


class Server:
    """One server process, kept running until `stop`.

    Args:
        command: with ``{port}`` where the port is to stand.
        ready_s: seconds that it may take from its start until it answers.
        log: gets what it prints.
        tell: called with ``True`` when it is ready, with ``False`` when it is not any more.

    Attributes:
        port: on the loopback address; the same after a restart.
        gave_up: why it is not started again; ``None`` while it is.
        is_ready: set while it answers.
    """

    def __init__(
        self, command: Sequence[str], ready_s: float, log: Path, tell: Callable[[bool], None]
    ) -> None:
        self.port = free_port()
        self.gave_up: str | None = None
        self._command = [part.replace("{port}", str(self.port)) for part in command]
        self._ready_s = ready_s
        self._log = log
        self._tell = tell
        self._process: subprocess.Popen[bytes] | None = None
        self._task: asyncio.Task[None] | None = None
        self._given_up = asyncio.Event()
        self.is_ready = asyncio.Event()

    @property
    def url(self) -> str:
        """Its address, without the version path."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and start it again whenever it ends."""
        self._task = asyncio.get_running_loop().create_task(self._keep())

    async def given_up(self) -> None:
        """Return when it is given up."""
        await self._given_up.wait()

    async def stop(self) -> None:
        """End it and all that it has started."""
        try:
            if self._task is not None:
                self._task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await self._task
        finally:
            await self._end()

    async def _keep(self) -> None:
        deaths, pause_s = 0, FIRST_PAUSE_S
        while True:
            refused = self._spawn()
            if refused:
                why = "it could not be started"
            elif await self._is_ready():
                deaths, pause_s = 0, FIRST_PAUSE_S
                self._say(is_ready=True)
                await self._until_dead()
                self._say(is_ready=False)
                why = "it has ended"
            else:
                why = "it has ended" if self._is_dead() else f"it did not answer within {self._ready_s:g} s"
            await self._end()
            deaths += 1
            if deaths >= MOST_DEATHS:
                words = f": {refused}" if refused else self._last_words()
                self.gave_up = f"{self._command[0]}: {why} {deaths} times without an answer{words}"
                self._given_up.set()
                return
            await asyncio.sleep(pause_s)
            pause_s = min(MOST_PAUSE_S, 2 * pause_s)

    def _say(self, *, is_ready: bool) -> None:
        if is_ready:
            self.is_ready.set()
        else:
            self.is_ready.clear()
        self._tell(is_ready)

    def _spawn(self) -> str:
        """Start the process; returns why it cannot be, or nothing.

        In the loop and not in a thread, which cannot be cancelled: it would start what nobody ends.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fd = os.open(self._log, flags, 0o600)
            try:
                # The keeper's standard input is ours alone: the kernel closes it when this process ends.
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", keeper.__file__, *self._command],
                    stdin=subprocess.PIPE,
                    stdout=fd,
                    stderr=fd,
                    start_new_session=True,
                )
            finally:
                os.close(fd)
        except (OSError, ValueError) as error:  # a log that cannot be opened, no more processes, a NUL
            return visible(str(error), one_line=True)
        return ""

    def _is_dead(self) -> bool:
        return self._process is None or self._process.poll() is not None

    async def _until_dead(self) -> None:
        while not self._is_dead():  # noqa: ASYNC110 (a process tells nobody but its parent, who has to ask)
            await asyncio.sleep(LOOK_S)

    async def _is_ready(self) -> bool:
        until_s = asyncio.get_running_loop().time() + self._ready_s
        while not self._is_dead() and asyncio.get_running_loop().time() < until_s:
            # Some servers list their models while they load them: where there is a word of health, it counts.
            health = await _status(self.port, HEALTH)
            if health in (404, 405):
                health = await _status(self.port, MODELS)
            if health == 200:
                return True
            await asyncio.sleep(LOOK_S)
        return False

    async def _end(self) -> None:
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.to_thread(process.wait, END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)
        self._process = None

    def _last_words(self) -> str:
        with contextlib.suppress(OSError), self._log.open("rb") as stream:
            stream.seek(max(0, self._log.stat().st_size - LAST_BYTES))
            words = visible(stream.read().decode("utf-8", "replace").strip())
            return f"; it said:\n{words}\n  where: {self._log}" if words else f"\n  where: {self._log}"
        return ""


def free_port() -> int:
    """A port of the loopback address that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _status(port: int, path: str) -> int | None:
    """What a server says to a path; ``None`` when it says nothing."""
    try:
        async with asyncio.timeout(2.0):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with contextlib.closing(writer):
                writer.write(
                    f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode()
                )
                await writer.drain()
                status = (await reader.readline()).split()
        return int(status[1])
    except (OSError, TimeoutError, ValueError, IndexError):
        return None


async def all_given_up(servers: Sequence[Server]) -> None:
    """Return when none of them is started again."""
    for server in servers:
        await server.given_up()


async def start_servers(servers: Sequence[Server], *, hurry: asyncio.Event) -> None:
    """Start several at once; returns when one of them is ready.

    Args:
        hurry: nobody waits any more.

    Raises:
        ServeError: all of them were given up.
    """
    for server in servers:
        server.start()
    lost = asyncio.ensure_future(all_given_up(servers))
    events = (*(server.is_ready for server in servers), hurry)
    waited: list[asyncio.Future[Any]] = [lost, *(asyncio.ensure_future(event.wait()) for event in events)]
    try:
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waited:
            task.cancel()
        await asyncio.gather(*waited, return_exceptions=True)
    if all(server.gave_up is not None for server in servers):
        raise ServeError("\n".join(dict.fromkeys(server.gave_up or "" for server in servers)))
