"""Runs cases: a run with a fault, then runs without, then a look at the disk and at the bill."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crash.world import ROWS, Row, add_cohort, make_world, tree, write_config
from support.llm_server import LLMServer, Options

TESTS = Path(__file__).resolve().parents[1]
DEADLINE_S = 120.0  # a hang, not a slow machine
BROKEN_DEADLINE_S = 15.0  # with a planted bug a hang is one of the things that are looked for


@dataclass(frozen=True)
class Done:
    """How a child ended: its exit code (negative: the signal) and what it said."""

    status: int
    output: str


@dataclass
class Child:
    """A run under way."""

    pid: int
    out: Path
    deadline_s: float = DEADLINE_S
    ended: queue.SimpleQueue[int] = field(default_factory=queue.SimpleQueue)

    def wait(self) -> Done:
        try:
            status = self.ended.get(timeout=self.deadline_s)
        except queue.Empty:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, 9)
            self.ended.get(timeout=60)
            status = 99
        return Done(status, self.out.read_text(errors="replace"))

    def kill(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


class Lab:
    """A server that counts the bill, a fork server for runs, and a fresh data root per case."""

    def __init__(self, base: Path, server: LLMServer) -> None:
        self.base = base
        self.server = server
        self.number = 0
        self.mutants: list[str] = []
        self.root = base
        self._children: dict[int, Child] = {}
        self._started: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "crash.forkserver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])},
        )
        self._ready = threading.Event()
        self._outs: queue.SimpleQueue[Path] = queue.SimpleQueue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        if not self._ready.wait(DEADLINE_S):
            raise RuntimeError("the fork server did not start")

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            record = json.loads(line)
            if "ready" in record:
                self._ready.set()
            elif "status" in record:
                self._children[record["pid"]].ended.put(record["status"])
            else:
                deadline_s = BROKEN_DEADLINE_S if self.mutants else DEADLINE_S
                self._children[record["pid"]] = Child(record["pid"], self._outs.get(), deadline_s)
                self._started.put(record["pid"])

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._listener.join(10)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def fresh(self, rows: Sequence[Row] = ROWS, *, concurrency: int = 2, extra: str = "") -> Path:
        """A new data root, and a bill that begins at nothing."""
        if self.number:
            shutil.rmtree(self.base / str(self.number), ignore_errors=True)
        self.number += 1
        home = self.base / str(self.number)
        self.root = make_world(home / "data", rows)
        write_config(home / "gw.toml", self.server.openai_url, concurrency=concurrency, extra=extra)
        self.server.reset()
        return self.root

    def cohort(self, name: str, rows: Sequence[Row]) -> None:
        add_cohort(self.root, name, rows)

    def start(self, *arguments: str, cohort: str = "c1", verb: str = "run", **request: Any) -> Child:
        home = Path(request.pop("out_dir", self.root.parent))
        out = home / f"out-{len(list(home.glob('out-*')))}"
        out.touch()
        place = ["--config", str(home / "gw.toml"), "--data-root", str(self.root)]
        if request.pop("bare", False):  # a command that has no data root yet
            place = []
        argv = [verb, *([cohort] if cohort else []), *arguments, *place]
        if verb in ("run", "retry"):
            argv += ["--plain"]
        record = {
            "argv": argv,
            "cwd": str(home),
            "out": str(out),
            "root": str(self.root),
            "mutants": self.mutants,
            **request,
        }
        self._outs.put(out)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(record).encode() + b"\n")
        self._process.stdin.flush()
        return self._children[self._started.get(timeout=DEADLINE_S)]

    def run(self, *arguments: str, **request: Any) -> Done:
        return self.start(*arguments, **request).wait()

    def paid_since(self, mark: int) -> set[int | None]:
        """Seeds of the calls that were paid after `mark` records; a seed stands for a generation."""
        return {record.seed for record in self.server.records[mark:] if record.paid}

    @functools.cached_property
    def reference(self) -> dict[str, Any]:
        """The tree of an undisturbed run."""
        self.fresh()
        done = self.run()
        assert done.status == 0, done.output
        return tree(self.root)


def workspace() -> str | None:
    """Where thousands of small data roots are made: in memory where there is such a place."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@contextlib.contextmanager
def open_lab(options: Options | None = None, *, on_disk: bool = False) -> Iterator[Lab]:
    with (
        tempfile.TemporaryDirectory(prefix="gwlab-", dir=None if on_disk else workspace()) as base,
        LLMServer(options or Options(latency_s=0.004, words=12)).in_thread() as server,
    ):
        lab = Lab(Path(base), server)
        try:
            yield lab
        finally:
            lab.close()


@contextlib.contextmanager
def open_labs(count: int) -> Iterator[list[Lab]]:
    """Several labs, to be used by a thread each."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(open_lab()) for _ in range(count)]
