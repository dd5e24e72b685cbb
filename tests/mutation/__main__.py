"""Plants small faults in the rules and looks whether the fast tests see them.

``PYTHONPATH=tests python -m mutation [--faults 400] [--seed 0] [--workers 2] [MODULE …]``

A fault is planted in the memory of a forked child, which then runs the tests that reach the fault's line,
the quickest first, until one fails. Which tests reach a line is measured first. The fault is *seen* when a test
fails or does not end, *not seen* when all pass, and *not reached* when no fast test comes by: that is the
business of the tests that start processes, which are too slow to be run hundreds of times.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.machinery
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

from mutation.sites import planted, sites

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"
ROOMS = ("core", "providers", "run/ledger.py")
TESTS = ("tests/unit", "tests/property", "tests/contract")
HEAVY = (
    "aiohttp",
    "anthropic",
    "jinja2.sandbox",
    "openai",
    "pydantic_settings",
    "rich.console",
    "structlog",
    "uvloop",
)
"""What is slow to import and is none of genworker's."""
LONGEST_S = 3.0
"""A test that takes longer is not asked."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="mutation")
    parser.add_argument("modules", nargs="*", default=list(ROOMS), help="below src/genworker")
    parser.add_argument("--faults", type=int, default=400, help="drawn evenly from all that are possible")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--tests", nargs="*", default=list(TESTS))
    parser.add_argument("--json", type=Path, help="write what became of each fault")
    given = parser.parse_args()
    os.chdir(ROOT)
    files = [path for name in given.modules for path in _files(SOURCE / "genworker" / name)]
    possible = [(path, number) for path in files for number in range(_count(path))]
    drawn = random.Random(given.seed).sample(possible, min(given.faults, len(possible)))
    began = time.monotonic()
    reach = Reach.measure(files, given.tests)
    print(
        f"{len(files)} modules, {len(possible)} faults are possible, {len(drawn)} drawn (seed {given.seed}); "
        f"{len(reach.seconds)} tests, looked at in {time.monotonic() - began:.0f} s",
        flush=True,
    )
    found = _play(sorted(drawn), reach, given.workers)
    _tell(found)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))
    print(f"{time.monotonic() - began:.0f} s")
    return 0


def _files(path: Path) -> list[Path]:
    return (
        [path] if path.is_file() else sorted(file for file in path.glob("*.py") if file.name != "__init__.py")
    )


def _count(path: Path) -> int:
    return sum(1 for _ in sites(ast.parse(path.read_text())))


class Reach:
    """Which tests come by which lines, and how long they take.

    Attributes:
        lines: tests by file and line.
        files: tests by file: those of lines that are run when a module is imported.
        seconds: by test.
    """

    def __init__(self, record: dict[str, Any]) -> None:
        self.seconds: dict[str, float] = {
            test: seconds for test, seconds in record["seconds"].items() if seconds <= LONGEST_S
        }
        self.lines: dict[tuple[str, int], list[str]] = defaultdict(list)
        self.files: dict[str, list[str]] = defaultdict(list)
        for test, by_file in record["lines"].items():
            if test in self.seconds:
                for file, lines in by_file.items():
                    self.files[file].append(test)
                    for line in lines:
                        self.lines[file, line].append(test)

    @classmethod
    def measure(cls, files: list[Path], tests: list[str]) -> Reach:
        """Run all the tests once, traced, in a child."""
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "reach.json"
            said = Path(directory) / "said"
            _forked(lambda: _trace({str(file) for file in files}, tests, path), 1800, str(said))
            record = json.loads(path.read_text()) if path.exists() else {"seconds": {}}
            if not record["seconds"]:
                raise SystemExit(f"the tests cannot be run: {said.read_text()[-2000:]}")
            for test in record["failed"]:  # such as those that measure time or memory: a trace costs both
                print(f"left out: {test} fails while it is traced", flush=True)
                del record["seconds"][test]
            return cls(record)

    def tests(self, file: Path, line: int) -> list[str]:
        """Those that could see a fault there, the quickest first."""
        at = self.lines.get((str(file), line)) or self.files.get(str(file), [])
        return sorted(at, key=lambda test: self.seconds[test])


class _Tracer:
    """A pytest plugin that notes each test's lines and seconds."""

    def __init__(self, files: set[str]) -> None:
        self.files = files
        self.lines: dict[str, dict[str, set[int]]] = {}
        self.seconds: dict[str, float] = {}
        self.now: dict[str, set[int]] = {}
        self.failed: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.add(report.nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        self.now = self.lines.setdefault(item.nodeid, {})
        began = time.perf_counter()
        sys.settrace(self._call)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            self.seconds[item.nodeid] = time.perf_counter() - began

    def _call(self, frame: Any, event: str, argument: Any) -> Any:
        file = frame.f_code.co_filename
        if file not in self.files:
            return None
        lines = self.now.setdefault(file, set())
        lines.add(frame.f_lineno)

        def line(frame: Any, event: str, argument: Any) -> Any:
            lines.add(frame.f_lineno)
            return line

        return line


def _trace(files: set[str], tests: list[str], path: Path) -> int:
    tracer = _Tracer(files)
    status = _pytest(tests, [tracer])
    record = {
        "failed": sorted(tracer.failed),
        "seconds": tracer.seconds,
        "lines": {
            test: {file: sorted(lines) for file, lines in by_file.items()}
            for test, by_file in tracer.lines.items()
        },
    }
    path.write_text(json.dumps(record))
    return status


class _Chosen:
    """A pytest plugin that keeps some tests, in their order."""

    def __init__(self, tests: list[str]) -> None:
        self.order = {test: number for number, test in enumerate(tests)}
        self.saw = ""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted(
            (item for item in items if item.nodeid in self.order), key=lambda item: self.order[item.nodeid]
        )


def _pytest(paths: list[str], plugins: list[object], *more: str) -> int:
    return int(
        pytest.main(
            [
                "-q",
                *more,
                "-p",
                "no:xdist",
                "--timeout=60",
                "-W",
                "ignore::pytest.PytestAssertRewriteWarning",
                "-m",
                "not slow",
                *paths,
            ],
            plugins,
        )
    )


def _leave_out_red(reach: Reach, tests: list[str]) -> None:
    """Without a fault all must be green in such a child; one that is not would see every fault."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "failed"

        def control() -> int:
            tracer = _Tracer(set())
            status = _pytest(_files_of(tests), [_Chosen(tests), tracer])
            path.write_text("\n".join(tracer.failed))
            return status

        _forked(control, 1800)
        failed = path.read_text().splitlines()
    for test in failed:
        print(f"left out: {test} fails in a child", flush=True)
    for known in (*reach.lines.values(), *reach.files.values()):
        known[:] = [test for test in known if test not in failed]


def _play(drawn: list[tuple[Path, int]], reach: Reach, workers: int) -> list[dict[str, Any]]:
    """Each fault in a child of its own, some at a time."""
    for name in HEAVY:  # once, here: a child begins with them
        importlib.import_module(name)
    _leave_out_red(reach, sorted({test for path, _ in drawn for test in reach.files[str(path)]}))
    found: list[dict[str, Any]] = []
    running: dict[int, tuple[dict[str, Any], float]] = {}
    waiting = list(reversed(drawn))
    while waiting or running:
        while waiting and len(running) < workers:
            path, index = waiting.pop()
            _, site = planted(path.read_text(), index)
            tests = reach.tests(path, site.line)
            fault = {
                "file": str(path.relative_to(SOURCE / "genworker")), "index": index, "line": site.line,
                "what": site.what, "tests": len(tests),
            }  # fmt: skip
            found.append(fault)
            if not tests:
                fault["end"] = "not reached"
                continue
            allowed_s = 30 + 10 * sum(reach.seconds[test] for test in tests)
            running[_start(partial(_try, path, index, tests))] = (
                fault,
                time.monotonic() + allowed_s,
            )
        for pid, (fault, deadline) in list(running.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if not done and time.monotonic() > deadline:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                done, fault["end"] = pid, "seen: no end"
            elif done:
                code = os.waitstatus_to_exitcode(status)
                fault["end"] = "not seen" if code == 0 else "seen"
            if done:
                del running[pid]
                if fault["end"] == "not seen":
                    print(
                        f"not seen  {fault['file']}:{fault['line']}  {fault['what']}  ({fault['tests']} tests)",
                        flush=True,
                    )
        time.sleep(0.02)
    return found


def _try(path: Path, index: int, tests: list[str]) -> int:
    _plant(path, index)
    return _run(tests)


def _run(tests: list[str]) -> int:
    return _pytest(_files_of(tests), [_Chosen(tests)], "-x")


def _files_of(tests: list[str]) -> list[str]:
    return list(dict.fromkeys(test.partition("::")[0] for test in tests))


def _plant(path: Path, index: int) -> None:
    """From here on the module is imported with the fault."""
    tree, _ = planted(path.read_text(), index)
    code = compile(tree, str(path), "exec", dont_inherit=True)
    usual = importlib.machinery.SourceFileLoader.get_code

    def get_code(self: importlib.machinery.SourceFileLoader, name: str) -> CodeType | None:
        return code if self.path == str(path) else usual(self, name)

    importlib.machinery.SourceFileLoader.get_code = get_code  # type: ignore[method-assign, assignment]


def _start(work: Callable[[], int], output: str = os.devnull) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.setpgid(0, 0)
        for target, name in ((0, os.devnull), (1, output), (2, output)):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), target)
        code = work()
    finally:
        os._exit(code)


def _forked(work: Callable[[], int], limit_s: float, output: str = os.devnull) -> int:
    pid = _start(work, output)
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _tell(found: list[dict[str, Any]]) -> None:
    rows: dict[str, Counter[str]] = defaultdict(Counter)
    for fault in found:
        for name in (fault["file"].partition("/")[0] if "/" in fault["file"] else fault["file"], "all"):
            rows[name][fault["end"].partition(":")[0]] += 1
    print(
        f"{'room':<12}{'faults':>8}{'seen':>8}{'not seen':>10}{'not reached':>13}{'seen of those reached':>24}"
    )
    for name, ends in sorted(rows.items(), key=lambda item: item[0] == "all"):
        reached = ends["seen"] + ends["not seen"]
        share = f"{ends['seen'] / reached:.1%}" if reached else "–"
        print(
            f"{name:<12}{ends.total():>8}{ends['seen']:>8}{ends['not seen']:>10}{ends['not reached']:>13}{share:>24}"
        )


sys.exit(main())
