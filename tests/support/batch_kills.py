"""Runs of the command line that die at a chosen step of a batch; every module is imported once, and runs are forked.

As a program it reads lines ``<step> <directory> <argument>…`` and answers each with ``<exit code> <steps taken>``; a
run that was killed at its step has the exit code -9. Step 0 lets it live; at a negative one it is stopped for
`STOPPED_S` seconds, and goes on. Steps are all system calls by which a process changes a disk or takes a lock, before
each; and the calls to the provider, each before and after, also within a download.

An argument ``fault=NAME`` plants one of `FAULTS` in that run: what a careless writer would have written.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

CALLS = ("write", "fsync", "rename", "replace", "mkdir", "ftruncate", "link", "unlink", "remove", "rmdir")
STOPPED_S = 0.8


class Killer:
    """The program, from a test."""

    def __init__(self) -> None:
        from support.project import clean_environment

        environment = clean_environment()
        places = [environment.get("PYTHONPATH"), str(Path(__file__).resolve().parents[1])]
        environment["PYTHONPATH"] = os.pathsep.join(place for place in places if place)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.batch_kills"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(self, step: int, directory: Path, *arguments: str) -> tuple[int, int]:
        """One run: (exit code, steps)."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(step, directory, *arguments, file=self._process.stdin, flush=True)
        code, steps = self._process.stdout.readline().split()
        return int(code), int(steps)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


class _Steps:
    def __init__(self, kill_at: int, report: int) -> None:
        self.kill_at, self.report, self.taken = kill_at, report, 0
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            self.taken += 1
            os.pwrite(self.report, f"{self.taken}\n".encode(), 0)
            if self.taken == abs(self.kill_at):
                os.kill(os.getpid(), signal.SIGKILL if self.kill_at > 0 else signal.SIGSTOP)


def _arm(step: _Steps) -> None:
    from genworker.providers.batch_calls import BatchCalls

    for name in CALLS:
        _before(os, name, step)
    _before(fcntl, "flock", step)
    _before(os, "open", step, lambda path, flags, *rest, **named: bool(flags & (os.O_WRONLY | os.O_RDWR)))
    send = BatchCalls._send

    async def call(calls: BatchCalls, *arguments: Any, **named: Any) -> Any:
        step()
        response = await send(calls, *arguments, **named)
        step()
        chunks = response.aiter_bytes

        async def slowly() -> Any:
            async for chunk in chunks():
                half = len(chunk) // 2 + 1
                for part in (chunk[:half], chunk[half:]):
                    yield part
                    step()

        response.aiter_bytes = slowly  # type: ignore
        return response

    BatchCalls._send = call  # type: ignore


def _before(
    module: Any, name: str, step: _Steps, counts: Callable[..., bool] = lambda *_, **named: True
) -> None:
    found = getattr(module, name)

    def call(*arguments: Any, **named: Any) -> Any:
        if counts(*arguments, **named):
            step()
        return found(*arguments, **named)

    setattr(module, name, call)


def _no_line_before_the_call() -> None:
    from genworker.core.batches import Line
    from genworker.store.batches import OpenBatch

    note = OpenBatch.note

    def silent(batch: OpenBatch, line: Line, *arguments: Any, **facts: Any) -> Any:
        return batch.story if line is Line.CREATING else note(batch, line, *arguments, **facts)

    OpenBatch.note = silent  # type: ignore


def _an_empty_listing_is_believed() -> None:
    from genworker.core.batches import Absent, Found, seek
    from genworker.run import tender

    def hasty(*arguments: Any, **named: Any) -> Any:
        verdict = seek(*arguments, **named)
        return verdict if isinstance(verdict, Found) else Absent()

    tender.seek = hasty  # type: ignore


def _splitlines() -> None:
    from genworker.store.batches import OpenBatch

    def lines(batch: OpenBatch, name: str) -> Any:
        for line in (batch.place / name).read_text("utf-8").splitlines():
            yield line.encode()

    OpenBatch.result_lines = lines  # type: ignore


def _the_error_file_is_not_read() -> None:
    from dataclasses import replace

    from genworker.providers.openai_batches import OpenAIBatches

    look = OpenAIBatches.look

    async def half(batches: OpenAIBatches, batch_id: str) -> Any:
        found = await look(batches, batch_id)
        results = {name: source for name, source in found.results.items() if name != "errors"}
        return replace(found, results=results)

    OpenAIBatches.look = half  # type: ignore


def _the_sdk_tries_again() -> None:
    from genworker.providers import batch_calls

    batch_calls.ONCE = {"max_retries": 2}  # type: ignore


def _claims_only() -> None:
    from genworker.run.tender import Tender

    Tender.match = lambda tender, rows: []  # type: ignore
    Tender.holds = lambda tender, job, stage, gen_id: None  # type: ignore


FAULTS: dict[str, Callable[[], None]] = {
    "no line before the call": _no_line_before_the_call,
    "an empty listing is believed": _an_empty_listing_is_believed,
    "splitlines": _splitlines,
    "the error file is not read": _the_error_file_is_not_read,
    "the SDK tries again": _the_sdk_tries_again,
    "claims only": _claims_only,
}


def _child(step: int, directory: str, arguments: list[str], report: int) -> None:
    from genworker.cli import main

    os.chdir(directory)
    log = os.open("run.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(log, number)
    _arm(_Steps(step, report))
    if arguments[0].startswith("fault="):
        FAULTS[arguments.pop(0).removeprefix("fault=").replace("_", " ")]()
    sys.argv = ["genworker", *arguments]
    code = 70
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 70
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve() -> None:
    import genworker.cli
    import genworker.providers.anthropic_batches
    import genworker.providers.openai_batches
    import genworker.run.engine  # noqa: F401

    report = (
        os.memfd_create("steps")
        if hasattr(os, "memfd_create")
        else os.open(f"/tmp/steps-{os.getpid()}", os.O_RDWR | os.O_CREAT)
    )
    for line in sys.stdin:
        step, directory, *arguments = line.split()
        os.ftruncate(report, 0)
        pid = os.fork()
        if not pid:
            _child(int(step), directory, arguments, report)
        _, status = os.waitpid(pid, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            time.sleep(STOPPED_S)
            os.kill(pid, signal.SIGCONT)
            _, status = os.waitpid(pid, 0)
        taken = os.pread(report, 20, 0).split() or [b"0"]
        print(os.waitstatus_to_exitcode(status), int(taken[0]), flush=True)


if __name__ == "__main__":
    _serve()
