"""Servers that a run starts: ready, dead, given up, and never left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest

from genworker.errors import ServeError
from genworker.project.open import open_project
from genworker.run import servers, serving
from genworker.run.servers import Servers
from genworker.run.serving import Server, start_servers
from support.project import make_project

HEALTHY = """
import http.server, sys, os, pathlib, time
time.sleep(float(sys.argv[2]))
pathlib.Path(sys.argv[3]).open("a").write(f"{os.getpid()}\\n")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == sys.argv[4] else 404)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def command(tmp_path: Path, *, after_s: float = 0.0, path: str = "/health") -> list[str]:
    return [sys.executable, "-c", HEALTHY, "{port}", str(after_s), str(tmp_path / "pids"), path]


def pids(tmp_path: Path) -> list[int]:
    return [int(line) for line in (tmp_path / "pids").read_text().split()]


def is_gone(pid: int, within_s: float = 15.0) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
                return True
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("path", [serving.HEALTH, serving.MODELS])
def test_it_is_ready_when_it_answers_and_started_again_when_it_dies(
    tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "FIRST_PAUSE_S", 0.1)
    told: list[bool] = []

    async def play() -> None:
        server = Server(command(tmp_path, after_s=0.3, path=path), 20.0, tmp_path / "log", told.append)
        began = time.monotonic()
        await start_servers([server], hurry=asyncio.Event())
        assert time.monotonic() - began >= 0.3
        assert told == [True]
        (first,) = pids(tmp_path)
        os.kill(first, signal.SIGKILL)
        async with asyncio.timeout(20):
            while told != [True, False, True]:
                await asyncio.sleep(0.02)
        assert len(pids(tmp_path)) == 2
        await server.stop()
        assert is_gone(pids(tmp_path)[-1])

    asyncio.run(play())


def test_one_that_cannot_start_is_given_up_and_its_words_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "FIRST_PAUSE_S", 0.05)
    script = [sys.executable, "-c", "import sys; sys.exit('no such \\x1b[31mmodel')", "{port}"]

    async def play() -> None:
        server = Server(script, 5.0, tmp_path / "log", lambda ready: None)
        with pytest.raises(ServeError, match="3 times without an answer") as caught:
            await start_servers([server], hurry=asyncio.Event())
        assert "no such" in str(caught.value)
        assert "\x1b" not in str(caught.value)
        await server.stop()

    asyncio.run(play())
    assert (tmp_path / "log").read_text().count("no such") == 3


def test_a_command_that_does_not_exist_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "FIRST_PAUSE_S", 0.01)

    async def play() -> None:
        server = Server(["no-such-command-at-all", "{port}"], 5.0, tmp_path / "log", lambda ready: None)
        with pytest.raises(ServeError, match="no-such-command-at-all"):
            await start_servers([server], hurry=asyncio.Event())

    asyncio.run(play())


def test_one_whose_process_cannot_be_made_is_given_up_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "FIRST_PAUSE_S", 0.01)

    async def play() -> None:
        server = Server(command(tmp_path), 5.0, tmp_path / "nowhere" / "log", lambda ready: None)
        async with asyncio.timeout(10):
            with pytest.raises(ServeError, match=r"could not be started 3 times .*nowhere"):
                await start_servers([server], hurry=asyncio.Event())
        await server.stop()

    asyncio.run(play())


def test_one_that_is_stopped_while_it_is_started_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Slow(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            time.sleep(0.3)
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Slow)

    async def play() -> None:
        server = Server(command(tmp_path), 5.0, tmp_path / "log", lambda ready: None)
        server.start()
        await asyncio.sleep(0.05)
        await server.stop()

    asyncio.run(play())
    (process,) = started
    is_left = process.poll() is None
    if is_left:
        process.kill()
        process.wait()
    assert not is_left


def test_one_whose_keeping_has_failed_is_ended_all_the_same(tmp_path: Path) -> None:
    def tell(is_ready: bool) -> None:
        raise RuntimeError("nobody listens")

    async def play() -> None:
        server = Server(command(tmp_path), 20.0, tmp_path / "log", tell)
        await start_servers([server], hurry=asyncio.Event())
        (pid,) = pids(tmp_path)
        with pytest.raises(RuntimeError, match="nobody listens"):
            await server.stop()
        assert is_gone(pid, within_s=5.0)

    asyncio.run(play())


class Part:
    """A connection or a server that notes its end, and fails at it when it is told to."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.has_ended = False
        self._fault = fault

    async def aclose(self) -> None:
        self.has_ended = True
        if self._fault is not None:
            raise self._fault

    stop = aclose


def test_all_is_closed_though_reading_the_list_again_and_a_connection_have_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "servers.txt").write_text("http://127.0.0.1:1/v1\n")
    project = make_project(tmp_path)
    project.configure(
        f'default_endpoint = "test"\n[endpoints.test]\nkind = "openai"\nbase_urls = "{tmp_path}/servers.txt"\n'
    )
    loaded = open_project(project.config, project.data).loaded
    monkeypatch.setattr(servers, "REREAD_S", 0.0)

    async def play() -> None:
        those = Servers(loaded, "test", lambda number: tmp_path / number)
        connections, served = [Part(OSError("gone")), Part()], [Part(OSError("lost")), Part()]
        those.providers[:] = cast("Any", connections)
        monkeypatch.setattr(servers, "read_urls", lambda section: 1 / 0)
        those.listen(lambda number, name, is_in: None, lambda what: None, lambda reason: None)
        those._started[:] = cast("Any", served)
        await asyncio.sleep(0.1)
        with pytest.raises(ZeroDivisionError):
            await those.aclose()
        assert all(part.has_ended for part in (*connections, *served))

    asyncio.run(play())


def test_no_server_outlives_a_run_that_was_killed(tmp_path: Path) -> None:
    run = f"""
import asyncio, pathlib
from genworker.run.serving import Server, start_servers
async def play():
    server = Server({command(tmp_path)!r}, 20.0, pathlib.Path({str(tmp_path / "log")!r}), lambda ready: None)
    await start_servers([server], hurry=asyncio.Event())
    print("ready", flush=True)
    await asyncio.sleep(60)
asyncio.run(play())
"""
    with subprocess.Popen([sys.executable, "-c", run], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.kill()
    assert is_gone(pids(tmp_path)[0])
