"""Deadlines and a process that stands still."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from genworker.run.deadline import Deadline


def test_a_deadline_ends_what_takes_longer() -> None:
    async def wait() -> None:
        async with Deadline(0.05):
            await asyncio.sleep(5)

    began = time.monotonic()
    with pytest.raises(TimeoutError):
        asyncio.run(wait())
    assert time.monotonic() - began < 2


def test_what_ends_in_time_is_not_disturbed() -> None:
    async def wait() -> int:
        async with Deadline(0.05):
            value = 7
        await asyncio.sleep(0.3)
        return value

    assert asyncio.run(wait()) == 7


SCRIPT = """
import asyncio, os, sys
from genworker.run.deadline import Deadline
{loop}

async def main(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"x"); print("sent", flush=True)
    async with Deadline(1.0):
        print((await reader.read(10)).decode(), flush=True)

with asyncio.Runner({factory}) as runner:
    runner.run(main(int(sys.argv[1])))
"""


@pytest.mark.parametrize("is_uvloop", [False, True])
def test_an_answer_that_came_while_the_process_stood_still_is_read(is_uvloop: bool) -> None:
    if is_uvloop:
        pytest.importorskip("uvloop")
    script = SCRIPT.format(
        loop="import uvloop" if is_uvloop else "",
        factory="loop_factory=uvloop.new_event_loop" if is_uvloop else "",
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        made = subprocess.Popen([sys.executable, "-c", script, str(port)], stdout=subprocess.PIPE, text=True)
        connection, _ = server.accept()
        with connection:
            assert connection.recv(1) == b"x"
            assert made.stdout is not None
            assert made.stdout.readline() == "sent\n"
            os.kill(made.pid, signal.SIGSTOP)
            connection.sendall(b"answer")
            time.sleep(1.4)  # past the deadline
            os.kill(made.pid, signal.SIGCONT)
            out, _ = made.communicate(timeout=120)
    assert (made.returncode, out) == (0, "answer\n")
