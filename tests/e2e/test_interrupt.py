"""Signals, closed terminals and system calls that kill, on the real command line."""

from __future__ import annotations

import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from crash.world import staged, torn
from support.llm_server import LLMServer, Options
from support.project import COHORT, Project, clean_environment, make_project, membership_rows

ROWS = membership_rows(essays=("rewrite",), evaluations=("novelty",), replicates=1)


def project_at(root: Path, server: LLMServer, *, top: str = "", concurrency: int = 3) -> Project:
    project = make_project(root, ROWS)
    project.use_server(server.openai_url, extra=f"max_concurrency = {concurrency}")
    if top:
        project.configure(top + "\n" + project.config.read_text())
    return project


def finish(process: subprocess.Popen[str], timeout_s: float = 60) -> tuple[int, str]:
    out, err = process.communicate(timeout=timeout_s)
    return process.returncode, out + err


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=lambda it: str(it),
)
def test_a_signal_drains_and_costs_nothing(tmp_path: Path, number: signal.Signals, code: int) -> None:
    with LLMServer(Options(latency_s=0.3, words=12)).in_thread() as server:
        project = project_at(tmp_path, server)
        worker = project.start("run", COHORT, "--plain")
        server.wait_until(lambda it: it.received >= 4, timeout_s=60)
        worker.send_signal(number)
        returned, said = finish(worker)
        assert returned == code, said
        assert f"genworker run {COHORT}" in said
        assert "Traceback" not in said
        assert torn(project.data) == []
        assert staged(project.data) == []
        assert project.run("run", COHORT, "--plain").returncode == 0
        assert server.paid == len(ROWS)
        assert server.paid_twice == 0


def test_the_second_signal_stops_at_once(tmp_path: Path) -> None:
    with LLMServer(Options(latency_s=20, words=12)).in_thread() as server:
        project = project_at(tmp_path, server)
        worker = project.start("run", COHORT, "--plain")
        server.wait_until(lambda it: it.received >= 2, timeout_s=60)
        worker.send_signal(signal.SIGINT)
        time.sleep(0.5)  # within 0.3 s it would be the same request
        assert worker.poll() is None, "the first one waits for what is in flight"
        began = time.monotonic()
        worker.send_signal(signal.SIGINT)
        code, said = finish(worker)
        assert code == 130
        assert time.monotonic() - began < 15
        assert "Traceback" not in said


def test_the_drain_has_a_deadline(tmp_path: Path) -> None:
    with LLMServer(Options(latency_s=30, words=12)).in_thread() as server:
        project = project_at(tmp_path, server, top="drain_timeout_s = 0.5")
        worker = project.start("run", COHORT, "--plain")
        server.wait_until(lambda it: it.received >= 2, timeout_s=60)
        began = time.monotonic()
        worker.send_signal(signal.SIGTERM)
        assert finish(worker)[0] == 143
        assert time.monotonic() - began < 20


@pytest.mark.slow
def test_a_signal_during_disk_trouble_ends_the_waiting(tmp_path: Path) -> None:
    if os.geteuid() == 0 and shutil.which("chattr") is None:
        pytest.skip("root ignores permissions")
    with LLMServer(Options(latency_s=0.2, words=12)).in_thread() as server:
        project = project_at(tmp_path, server)
        worker = project.start("run", COHORT, "--plain")
        server.wait_until(lambda it: it.received >= 2, timeout_s=60)
        place = project.paths.stage_dir("draft")
        if subprocess.run(["chattr", "+i", str(place)], capture_output=True).returncode:
            finish(worker)
            pytest.skip("this filesystem has no immutable flag")
        try:
            time.sleep(1)
            worker.send_signal(signal.SIGINT)
            time.sleep(0.5)  # within 0.3 s it would be the same request
            worker.send_signal(signal.SIGINT)
            began = time.monotonic()
            code, said = finish(worker)
            assert code == 130
            assert time.monotonic() - began < 15, "it did not wait for the disk any longer"
            assert "NOT STORED" in said
        finally:
            subprocess.run(["chattr", "-i", str(place)], check=True)
        assert project.run("run", COHORT, "--plain").returncode == 0
        assert server.paid_twice == 0


def test_a_hangup_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    with LLMServer(Options(latency_s=0.2, words=12)).in_thread() as server:
        project = project_at(tmp_path, server)
        with subprocess.Popen(
            ["nohup", *project.command("run", COHORT, "--plain")],
            cwd=project.root,
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as worker:
            server.wait_until(lambda it: it.received >= 2, timeout_s=60)
            worker.send_signal(signal.SIGHUP)
            assert finish(worker)[0] == 0


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_leaves_does_not_stop_the_run(tmp_path: Path, stream: str) -> None:
    with LLMServer(Options(latency_s=0.2, words=12)).in_thread() as server:
        project = project_at(tmp_path, server)
        worker = project.start("run", COHORT, "--plain", "-v", "--json")
        pipe = worker.stdout if stream == "stdout" else worker.stderr
        assert pipe is not None
        pipe.close()
        setattr(worker, stream, None)
        out, err = worker.communicate(timeout=60)
        assert worker.returncode == 0, f"{out} {err}"
        assert "Traceback" not in f"{out}{err}"
        assert server.paid == len(ROWS)
        assert "No calls made" in project.run("run", COHORT, "--plain").stderr


@pytest.mark.parametrize(
    ("ignored", "argument", "code"), [(False, "-v", 129), (True, "--json", 0)], ids=["hangup", "nohup"]
)
def test_a_terminal_that_vanishes_costs_nothing(
    tmp_path: Path, ignored: bool, argument: str, code: int
) -> None:
    """Its group is hung up, and what is written to it ends in EIO."""
    with LLMServer(Options(latency_s=0.4, words=12)).in_thread() as server:
        project = project_at(tmp_path, server, concurrency=2)
        pid, terminal = pty.fork()
        if pid == 0:
            os.chdir(project.root)
            signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
            environment = {**clean_environment(), "TERM": "xterm"}
            os.execve(sys.executable, project.command("run", COHORT, argument), environment)
        reader = threading.Thread(target=drink, args=(terminal,), daemon=True)
        reader.start()
        server.wait_until(lambda it: it.received >= 3, timeout_s=60)
        os.set_blocking(terminal, False)  # the reader ends, and then nobody holds it
        reader.join(timeout=30)
        os.close(terminal)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code
        assert torn(project.data) == []
        assert staged(project.data) == []
        assert server.paid == len(list(project.paths.gens_root.glob("*/*/raw.txt")))
        assert server.paid == len(ROWS) or not ignored


def drink(terminal: int) -> None:
    """Read what comes, as a terminal does, until reading may not wait."""
    while True:
        if select.select([terminal], [], [], 0.05)[0] and os.get_blocking(terminal):
            try:
                os.read(terminal, 65536)
            except OSError:
                return
        elif not os.get_blocking(terminal):
            return


# A kill at a system call of an unmodified process, where strace is installed


def can_trace() -> bool:
    if shutil.which("strace") is None:
        return False
    done = subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], capture_output=True)
    return done.returncode == 0


def traced(project: Project, call: str, action: str, step: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            "strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}",
            "-e", f"inject={call}:{action}:when={step}",
            *project.command("run", COHORT, "--plain"),
        ],
        cwd=project.root,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not can_trace(), reason="strace is not installed or not allowed")
@pytest.mark.parametrize(
    ("call", "action", "step"),
    [
        ("renameat2", "signal=SIGKILL", 1),
        ("renameat2", "signal=SIGKILL", 2),
        ("syncfs", "signal=SIGKILL", 1),
        ("syncfs", "error=EIO", 1),
        ("renameat2", "error=ENOSPC", 1),
    ],
)
def test_an_unmodified_process_killed_or_failed_at_a_system_call(
    tmp_path: Path, call: str, action: str, step: int
) -> None:
    # strace counts per thread: the committer's first rename is its first commit.
    with LLMServer(Options(latency_s=0.01, words=12)).in_thread() as server:
        project = project_at(tmp_path, server)
        done = traced(project, call, action, step)
        killed = "SIGKILL" in action
        assert done.returncode in ((-9, 137, 0) if killed else (0, 1, 2)), done.stderr
        assert "Traceback" not in done.stderr
        assert torn(project.data) == []
        last = project.run("run", COHORT, "--plain")
        assert last.returncode == 0, last.stderr
        assert staged(project.data) == []
        assert torn(project.data) == []
        assert server.paid_twice <= (3 if killed else 0)


def test_an_interrupt_before_anything_has_begun_leaves_no_trace(tmp_path: Path) -> None:
    script = (
        "import signal, os, sys\n"
        "import genworker.cli as cli\n"
        "def app(**named): os.kill(os.getpid(), signal.SIGINT)\n"
        "cli.app = app\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr == ""


def test_a_request_that_nothing_can_be_raised_for_is_raised_a_moment_later() -> None:
    script = (
        "import os, signal, sys, time\n"
        "from genworker import signals\n"
        "signals.listen()\n"
        "class Freed:\n"
        "    def __del__(self): os.kill(os.getpid(), signal.SIGINT)\n"
        "try:\n"
        "    Freed(); time.sleep(5)\n"
        "except signals.Stopped as stopped: print(stopped)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("SIGINT\n", "")


def test_a_request_that_comes_while_a_class_is_made_is_no_traceback() -> None:
    script = (
        "import os, signal, genworker.cli\n"
        "from genworker.__main__ import main\n"
        "class Field:\n"
        "    def __set_name__(self, owner, name): os.kill(os.getpid(), signal.SIGTERM)\n"
        "def command_line(): type('Made', (), {'field': Field()})\n"
        "genworker.cli.main = command_line\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (143, "")


# One request on two ways, and requests that come early


def start_ignoring(project: Project, *arguments: str) -> subprocess.Popen[str]:
    """As a script's background job: its shell has started it with interrupts ignored.

    Python's own warnings are as a user has them: a signal may come while the import machinery reads a file,
    which that leaves to the collector.
    """
    return subprocess.Popen(
        ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *project.command(*arguments)],
        cwd=project.root,
        env=clean_environment() | {"PYTHONWARNINGS": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("number", "apart_s"), [(signal.SIGTERM, 0.001), (signal.SIGTERM, 0.4), (signal.SIGINT, 0.05)]
)
def test_the_same_request_on_two_ways_is_one(tmp_path: Path, number: signal.Signals, apart_s: float) -> None:
    with LLMServer(Options(latency_s=1.2, words=12)).in_thread() as server:
        project = project_at(tmp_path, server)
        worker = project.start("run", COHORT, "--plain")
        server.wait_until(lambda it: it.received >= 2, timeout_s=60)
        worker.send_signal(number)
        time.sleep(apart_s)
        worker.send_signal(number)
        code, said = finish(worker)
        assert code == 128 + number, said
        (journal,) = project.paths.runs_dir.glob("*.jsonl")
        assert b'"abandoned"' not in journal.read_bytes()
        assert server.paid == len(list(project.paths.gens_root.glob("*/*/raw.txt")))


def wait_until_it_listens(worker: subprocess.Popen[str]) -> None:
    """Wait for the process's first line; where the system does not say, for about as long as that takes."""
    status = Path(f"/proc/{worker.pid}/status")
    if not status.exists():
        time.sleep(0.5)
        return
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        caught = next(line for line in status.read_text().splitlines() if line.startswith("SigCgt"))
        if int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.005)
    raise AssertionError("it never listened")


@pytest.mark.parametrize("after_s", [0.0, 0.15, 0.4])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_in_the_first_second_is_heard(
    tmp_path: Path, number: signal.Signals, after_s: float
) -> None:
    with LLMServer(Options(latency_s=0.5, words=12)).in_thread() as server:
        project = project_at(tmp_path, server)
        worker = start_ignoring(project, "run", COHORT, "--plain")
        wait_until_it_listens(worker)
        time.sleep(after_s)
        worker.send_signal(number)
        code, said = finish(worker)
        assert code == 128 + number, said
        assert "Traceback" not in said
        assert server.paid <= 3, "what was in flight, and nothing more"
        assert server.paid == len(list(project.paths.gens_root.glob("*/*/raw.txt")))


def test_it_listens_before_it_loads_anything() -> None:
    script = (
        "import sys; before = set(sys.modules); import genworker.__main__\n"
        "print(sorted(name for name in set(sys.modules) - before if not name.startswith('_')))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    loaded = done.stdout
    assert "'genworker.signals'" in loaded
    for late in ("typer", "asyncio", "orjson", "json", "genworker.core", "genworker.errors"):
        assert f"'{late}" not in loaded, loaded


def test_who_waits_for_a_lock_can_be_asked_to_stop(tmp_path: Path) -> None:
    with LLMServer(Options(latency_s=5, words=12)).in_thread() as server:
        project = project_at(tmp_path, server)
        first = project.start("run", COHORT, "--plain")
        server.wait_until(lambda it: it.received >= 1, timeout_s=60)
        second = start_ignoring(project, "run", COHORT, "--plain", "--if-locked", "wait")
        assert second.stderr is not None
        assert "event=begin" in second.stderr.readline()
        assert "locked" in second.stderr.readline()
        second.send_signal(signal.SIGINT)
        code, said = finish(second, 10)
        assert code == 130, said
        assert "Traceback" not in said
        for _ in range(2):
            first.send_signal(signal.SIGINT)
            time.sleep(0.4)
        finish(first)
