"""Several servers of one model: one killed, one that joins, those that a run starts itself; real sockets and kills."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from genworker.project.open import open_project
from genworker.run import servers
from genworker.run.engine import RunInProgress, RunOptions, run_cohort
from support import llm_server
from support.llm_server import Remote, spawn
from support.project import COHORT, Project, journal_lines, make_project, membership_rows

SETTINGS = 'default_endpoint = "test"\n[endpoints.test]\nkind = "openai"\nseed = true\n{}\n[retries]\nbase_s = 0.05\n'
FAST = ("--latency", "0.15", "--words", "12")


@contextlib.contextmanager
def fleet(number: int, *arguments: str) -> Iterator[list[Remote]]:
    with ExitStack() as stack:
        yield [stack.enter_context(spawn(*FAST, *arguments)) for _ in range(number)]


def events(project: Project, word: str) -> list[dict[str, object]]:
    paths = sorted(project.paths.runs_dir.glob("*.jsonl"))
    return [line for path in paths for line in journal_lines(path) if line["event"] == word]


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat")
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False


def wait_until_gone(pids: list[int]) -> None:
    until = time.monotonic() + 30
    while any(lives(pid) for pid in pids):
        assert time.monotonic() < until, "a server has outlived its run"
        time.sleep(0.05)


@pytest.mark.slow
def test_one_of_three_servers_is_killed_and_the_others_share_the_work(tmp_path: Path) -> None:
    rows = membership_rows(essays=("rewrite",), replicates=20)
    with fleet(3) as those:
        project = make_project(tmp_path, rows)
        urls = json.dumps([one.openai_url for one in those])
        project.configure(SETTINGS.format(f"base_urls = {urls}\nmax_concurrency = 12"))
        run = project.start("run", COHORT, "--plain")
        while those[0].stats()["received"] < 20:
            time.sleep(0.02)
        os.kill(those[0].pid, signal.SIGKILL)
        out, err = run.communicate(timeout=60)
        assert run.returncode == 0, out + err
        living = [one.stats()["paid"] for one in those[1:]]
        assert abs(living[0] - living[1]) <= 0.05 * sum(living)
        assert sum(living) + 20 <= len(rows) + 12, "nothing was asked for twice but what the dead one had"
        retried = events(project, "retry")
        assert 1 <= sum(bool(line["may_be_billed"]) for line in retried) <= 12
        assert len(retried) <= 24
        (out_line,) = [line for line in events(project, "limit") if line["what"] == "server"]
        assert str(those[0].port) in str(out_line["lane"])
        again = project.run("run", COHORT, "--plain")
        assert "No calls made" in again.stderr


@pytest.mark.slow
def test_a_list_of_servers_is_read_again_while_the_run_lasts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "REREAD_S", 0.1)
    monkeypatch.chdir(tmp_path)
    rows = membership_rows(essays=("rewrite",), replicates=20)
    listed = tmp_path / "servers.txt"
    with fleet(3) as those:
        first, other, third = (one.openai_url for one in those)
        listed.write_text(f"# two of them\n{first}\n\n{other}  # the second\n")
        project = make_project(tmp_path, rows)
        project.configure(SETTINGS.format(f'base_urls = "{listed}"\nmax_concurrency = 12'))
        changes = iter([(20, f"{other}\n{third}\n"), (50, "no address\n")])
        change = next(changes)

        def watch(run: RunInProgress) -> None:
            import asyncio

            async def look() -> None:
                nonlocal change
                while change[0]:
                    if run.progress.answers >= change[0]:
                        listed.write_text(change[1])
                        change = next(changes, (0, ""))
                    await asyncio.sleep(0.01)

            tasks.append(asyncio.get_running_loop().create_task(look()))

        tasks: list[object] = []
        result = run_cohort(open_project(project.config, project.data), COHORT, RunOptions(), watch=watch)
        assert int(result.exit_code) == 0
        counts = [one.stats()["paid"] for one in those]
        assert sum(counts) == len(rows), "nothing was asked for twice"
        assert 10 <= counts[0] <= 20 + 12
        assert counts[2] >= 40
        (warned,) = [line for line in events(project, "warning") if "list of servers" in str(line)]
        assert "servers.txt:1" in str(warned)


def serve(*arguments: str) -> str:
    command = [sys.executable, llm_server.__file__, "--port", "{port}", *arguments]
    return f"serve = {json.dumps(command)}\n"


def served_pids(command: str) -> list[int]:
    """The processes of servers that were started with this word in their arguments, their keepers left out."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            arguments = path.read_bytes().split(b"\0")
            if command.encode() in arguments and not any(part.endswith(b"keeper.py") for part in arguments):
                found.append(int(path.parent.name))
    return found


LLAMA = """
import sys, time
from xllamacpp import CommonParams, Server
from genworker.providers.local import embedded_model_path
parameters = CommonParams()
parameters.model.path = str(embedded_model_path())
parameters.n_parallel, parameters.n_ctx, parameters.port, parameters.verbosity = 4, 8192, int(sys.argv[1]), -1
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
server = Server(parameters)
time.sleep(1e6)
"""

needs_proc = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds processes in /proc")


@pytest.mark.slow
@needs_proc
def test_servers_that_the_run_starts_are_restarted_and_end_with_it(tmp_path: Path) -> None:
    rows = membership_rows(essays=("rewrite",), replicates=12)
    project = make_project(tmp_path, rows)
    mark = f"mark-{tmp_path.name}"
    extra = serve(*FAST, "--score-marker", mark) + "serve_count = 2\nserve_ready_s = 30\nmax_concurrency = 6"
    project.configure(SETTINGS.format(extra).replace("[retries]", "[retries]\ncontent = 0"))
    run = project.start("run", COHORT, "--plain", "--limit", "60")
    until = time.monotonic() + 60
    while not (done := events(project, "answered")) or len(done) < 10:
        assert time.monotonic() < until
        assert run.poll() is None
        time.sleep(0.05)
    first = served_pids(mark)
    assert len(first) == 2
    os.kill(first[0], signal.SIGKILL)
    out, err = run.communicate(timeout=60)
    assert run.returncode in (0, 1), out + err  # the fake's scores are off: evaluations do not parse
    assert len(events(project, "answered")) >= 60
    wait_until_gone([*first, *served_pids(mark)])
    logs = list(project.paths.runs_dir.glob("*.serve-test-*.log"))
    assert len(logs) == 2
    # Once more, and the run itself is killed.
    run = project.start("run", COHORT, "--plain", "--limit", "20")
    while not (pids := served_pids(mark)):
        assert run.poll() is None
        time.sleep(0.02)
    run.kill()
    run.communicate()
    wait_until_gone(pids)


@needs_proc
def test_what_cannot_be_served_ends_the_run_before_a_call_with_its_own_words(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    script = "import sys; print('no such weights \\x1b[31m'); sys.exit(3)"
    command = json.dumps([sys.executable, "-c", script, "{port}"])
    project.configure(SETTINGS.format(f"serve = {command}"))
    done = project.run("run", COHORT, "--plain")
    assert done.returncode == 2
    assert "3 times without an answer" in done.stderr
    assert "no such weights" in done.stderr
    assert "\x1b" not in done.stderr


@needs_proc
def test_a_signal_ends_the_wait_for_a_server(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    mark = f"mark-{tmp_path.name}"
    command = json.dumps([sys.executable, "-c", "import time; time.sleep(99)", "{port}", mark])
    project.configure(SETTINGS.format(f"serve = {command}"))
    run = project.start("run", COHORT, "--plain")
    while not (pids := served_pids(mark)):
        assert run.poll() is None
        time.sleep(0.02)
    began = time.monotonic()
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=30)
    assert run.returncode == 130, err
    assert time.monotonic() - began < 15
    wait_until_gone(pids)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("base_urls = []", "names no server"),
        ('base_urls = ["http://127.0.0.1:1/v1", "http://127.0.0.1:1/v1/"]', "names a server twice"),
        ('base_urls = ["http://127.evil.example/v1"]', "unencrypted"),
        ('base_url = "http://127.0.0.1:1"\nbase_urls = ["http://127.0.0.1:2"]', "one of them says where"),
        ('serve = ["vllm", "serve"]', "no argument holds {port}"),
        ('serve = ["x", "{port}"]\nbase_url = "http://127.0.0.1:1"', "one of them says where"),
        ('base_urls = "none.txt"', "none.txt"),
    ],
)
def test_what_is_wrong_with_servers_is_told_before_a_call(tmp_path: Path, extra: str, words: str) -> None:
    project = make_project(tmp_path)
    project.configure(SETTINGS.format(extra))
    done = project.run("run", COHORT, "--plain")
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@needs_proc
@pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="the embedded engine has no wheel for this platform"
)
def test_three_real_model_servers_one_of_them_killed_share_the_work_evenly(tmp_path: Path) -> None:
    rows = membership_rows(essays=("rewrite",), evaluations=("novelty",), replicates=8)
    project = make_project(tmp_path, rows)
    mark = f"mark-{tmp_path.name}"
    command = json.dumps([sys.executable, "-c", LLAMA, "{port}", mark])
    # Answers of about one length, so that equal numbers are equal work.
    grammar = r"""extra_body = { grammar = 'root ::= [a-z ]{24} "\nSCORE: 5"' }"""
    extra = f"serve = {command}\nserve_count = 3\nmax_concurrency = 12\nmax_tokens = 64\n{grammar}"
    project.configure(SETTINGS.format(extra))
    run = project.start("run", COHORT, "--plain")
    until = time.monotonic() + 120
    while len(done := events(project, "answered")) < 10:
        assert time.monotonic() < until
        assert run.poll() is None, run.communicate()
        time.sleep(0.05)
    victim = str(done[0]["server"])
    port = victim.rpartition(":")[2]
    (pid,) = [
        pid for pid in served_pids(mark) if port in Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    ]
    os.kill(pid, signal.SIGKILL)
    killed = len(events(project, "answered"))
    out, err = run.communicate(timeout=240)
    answered = [str(line["server"]) for line in events(project, "answered")]
    assert len(answered) == len(rows), out + err
    load = Counter(server for server in answered if server != victim)
    assert len(load) == 2
    one, other = load.values()
    assert abs(one - other) <= max(4, 0.05 * (one + other)), "four are out at each when the last one begins"
    assert killed < len(rows)
    wait_until_gone(served_pids(mark))
