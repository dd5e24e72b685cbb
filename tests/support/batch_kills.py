"""Runs of the command line that die at a chosen step of a batch; every module is imported once, and runs are forked.

As a program it reads lines ``<step> <directory> <argument>…`` and answers each with ``<exit code> <steps taken>``; a
run that was killed at its step has the exit code -9. Step 0 lets it live. Steps are the system calls by which a batch
is written down, the calls to the provider, and the commits, each before and after.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

CALLS = ("write", "fsync", "rename", "replace", "open", "mkdir", "ftruncate")


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

    def __call__(self) -> None:
        self.taken += 1
        os.pwrite(self.report, f"{self.taken}\n".encode(), 0)
        if self.taken == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


class _Os:
    """The module `os`, with a step before and after each call that changes something."""

    def __init__(self, step: _Steps) -> None:
        self._step = step

    def __getattr__(self, name: str) -> Any:
        found = getattr(os, name)
        if name not in CALLS:
            return found

        def call(*arguments: Any, **named: Any) -> Any:
            self._step()
            result = found(*arguments, **named)
            self._step()
            return result

        return call


def _arm(step: _Steps) -> None:
    from genworker.providers.batch_calls import BatchCalls
    from genworker.store import batches
    from genworker.store.filesystem import FilesystemStore

    batches.os = _Os(step)  # type: ignore
    for owner, name in ((BatchCalls, "_send"), (FilesystemStore, "commit")):
        _wrap(owner, name, step)


def _wrap(owner: Any, name: str, step: _Steps) -> None:
    inner = getattr(owner, name)

    async def call(*arguments: Any, **named: Any) -> Any:
        step()
        result = await inner(*arguments, **named)
        step()
        return result

    setattr(owner, name, call)


def _child(step: int, directory: str, arguments: list[str], report: int) -> None:
    from genworker.cli import main

    os.chdir(directory)
    log = os.open("run.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(log, number)
    _arm(_Steps(step, report))
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
        _, status = os.waitpid(pid, 0)
        taken = os.pread(report, 20, 0).split() or [b"0"]
        print(os.waitstatus_to_exitcode(status), int(taken[0]), flush=True)


if __name__ == "__main__":
    _serve()
