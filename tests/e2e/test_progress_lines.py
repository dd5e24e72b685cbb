"""What is said while a run goes on, off a terminal and on one: soon, and which lane waits, why and for how long."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.llm_server import LLMServer, Options, Rule
from support.project import COHORT, Project, clean_environment, make_project, membership_rows

REASON = "the looms are being oiled"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path, membership_rows(essays=()))


def read_until(descriptor: int, is_enough: Callable[[str], bool], patience_s: float) -> tuple[str, float]:
    """What a process writes until there is enough of it, and how long that took from here, in seconds."""
    began, said = time.monotonic(), ""
    os.set_blocking(descriptor, False)
    while time.monotonic() - began < patience_s:
        with contextlib.suppress(BlockingIOError, OSError):
            said += os.read(descriptor, 65536).decode("utf-8", "replace")
        if is_enough(said):
            return said, time.monotonic() - began
        time.sleep(0.05)
    raise AssertionError(f"not within {patience_s} s: {said}")


def test_off_a_terminal_something_is_said_at_once_and_then_how_it_stands(project: Project) -> None:
    with LLMServer(Options(latency_s=60.0)).in_thread() as server:
        project.use_server(server.openai_url)
        run = project.start("run", COHORT)
        try:
            assert run.stderr is not None
            said, took_s = read_until(run.stderr.fileno(), lambda text: "event=begin" in text, 20.0)
            assert took_s < 10  # 2 s on a machine that has nothing else to do; see below for the half minute
            said, took_s = read_until(run.stderr.fileno(), lambda text: "event=progress" in text, 20.0)
            assert took_s < 15
            assert "in_flight=2" in said
        finally:
            run.kill()
            run.communicate()


def _refusing() -> Options:
    return Options(rules=(Rule("503", model="vendor/beta"),))


@pytest.mark.slow
def test_a_lane_that_waits_is_named_with_reason_and_time(project: Project) -> None:
    with LLMServer(_refusing()).in_thread() as server:
        project.use_server(server.openai_url)
        run = project.start("run", COHORT)
        try:
            assert run.stderr is not None
            said, _ = read_until(run.stderr.fileno(), lambda text: "event=waiting" in text, 40.0)
        finally:
            run.kill()
            run.communicate()
    line = next(line for line in said.splitlines() if "event=waiting" in line)
    assert re.search(r"test/beta waits for \d+ s, (asked again in \d+ s|it is asked now): HTTP 503", line)
    assert "test/alpha waits" not in said


@pytest.mark.slow
def test_on_a_terminal_the_lane_that_waits_has_a_line(project: Project) -> None:
    with LLMServer(_refusing()).in_thread() as server:
        project.use_server(server.openai_url)
        ours, theirs = pty.openpty()
        run = subprocess.Popen(
            project.command("run", COHORT),
            cwd=project.root,
            # In CI a terminal is nobody's: there the lines are plain.
            env=clean_environment() | {"TERM": "xterm", "COLUMNS": "160", "CI": ""},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=theirs,
        )
        os.close(theirs)
        try:
            said, _ = read_until(
                ours, lambda text: re.search(r"wait +test/beta waits for \d+ s", text) is not None, 40.0
            )
        finally:
            run.kill()
            run.wait()
            os.close(ours)
    assert "HTTP 503" in said
