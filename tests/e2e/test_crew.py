"""Several processes make one cohort: killed, stopped, interrupted, capped, over the real command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest

from genworker.cluster.crew import Call, Crew
from genworker.cluster.processes import LocalEngine, LocalProcess
from genworker.errors import UsageError
from genworker.project.open import open_project
from genworker.run.engine import RunOptions, run_cohort
from support.llm_server import LLMServer, Options
from support.project import COHORT, Project, Row, journal_lines, make_project, membership_rows

CREW = ("--engine", "local", "--workers")


def many(lineages: int) -> list[Row]:
    """Lineages of one draft, one essay and two evaluations; ids alone tell drafts apart."""
    rows = membership_rows(essays=("rewrite",), evaluations=("novelty", "rigour"), replicates=1)
    first = [row for row in rows if row["llm_model_id"] == "alpha" or row["stage"] != "evaluation"]
    made = []
    for number in range(lineages):
        for row in first:
            parent = row["parent_gen_id"]
            made.append(
                {
                    **row,
                    "gen_id": f"{row['gen_id']}-{number}",
                    "parent_gen_id": f"{parent}-{number}" if parent else "",
                    "replicate": str(number + 1),
                }
            )
    return made


def workers(project: Project, slot: int | None = None) -> list[dict[str, Any]]:
    """What living and dead workers say of themselves in the first lines of their journals."""
    found = []
    for path in sorted(project.paths.runs_dir.glob("*.jsonl")):
        lines = path.read_text(encoding="utf-8").splitlines()
        record = json.loads(lines[0]) if lines else {}
        if record.get("event") == "worker_started" and slot in (None, record["slot"]):
            found.append(record)
    return found


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, err = process.communicate(timeout=90)
    return process.returncode, out + err


@pytest.mark.slow
def test_two_killed_workers_cost_their_calls_in_flight_and_the_store_is_as_one_process_makes_it(
    tmp_path: Path,
) -> None:
    rows = many(12)
    with LLMServer(Options(latency_s=0.2, words=12)).in_thread() as server:
        project = make_project(tmp_path / "crew", rows)
        project.use_server(server.openai_url, extra="max_concurrency = 6")
        driver = project.start("run", COHORT, "--plain", *CREW, "3")
        for paid in (10, 30):
            server.wait_until(lambda it, paid=paid: it.received >= paid, timeout_s=60)  # type: ignore[misc]
            os.kill(workers(project, slot=paid % 3)[-1]["pid"], signal.SIGKILL)
        returned, said = finish(driver)
        assert returned == 0, said
        assert server.max_in_flight <= 6 + 6, "the server hears late that a killed worker's calls are gone"
        assert server.paid_twice <= 2 * 6
        assert server.paid - server.paid_twice == len(rows)
        lost = [
            line
            for path in project.paths.runs_dir.glob("*.jsonl")
            for line in journal_lines(path)
            if line["event"] == "worker_lost"
        ]
        assert [line["why"] for line in lost] == ["signal 9", "signal 9"]
        assert project.run("verify", COHORT).returncode == 0
        again = project.run("run", COHORT, "--plain")
        assert again.returncode == 0
        assert "No calls made" in again.stderr
        alone = make_project(tmp_path / "alone", rows)
        alone.use_server(server.openai_url, extra="max_concurrency = 6")
        assert alone.run("run", COHORT, "--plain").returncode == 0
        assert project.tree() == alone.tree()


@pytest.mark.slow
def test_one_signal_drains_every_worker_and_a_lost_driver_as_well(tmp_path: Path) -> None:
    rows = many(8)
    with LLMServer(Options(latency_s=0.3, words=12)).in_thread() as server:
        project = make_project(tmp_path, rows)
        project.use_server(server.openai_url, extra="max_concurrency = 4")
        driver = project.start("run", COHORT, "--plain", *CREW, "2")
        server.wait_until(lambda it: it.received >= 8, timeout_s=60)
        driver.send_signal(signal.SIGINT)
        returned, said = finish(driver)
        assert returned == 130, said
        assert "Go on with" in said
        driver = project.start("run", COHORT, "--plain", *CREW, "2")
        server.wait_until(lambda it: it.received >= 24, timeout_s=60)
        crew = [worker["pid"] for worker in workers(project)[-2:]]
        driver.kill()
        finish(driver)
        until = time.monotonic() + 120
        while any(Path(f"/proc/{pid}").exists() or _lives(pid) for pid in crew):
            assert time.monotonic() < until, "a worker has outlived its driver"
            time.sleep(0.05)
        assert project.run("run", COHORT, "--plain").returncode == 0
        assert server.paid == len(rows)
        assert server.paid_twice == 0


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_a_cap_is_kept_to_the_call_when_a_worker_is_killed(tmp_path: Path) -> None:
    rows = many(12)
    with LLMServer(Options(latency_s=0.2, words=12)).in_thread() as server:
        project = make_project(tmp_path, rows)
        project.use_server(server.openai_url, extra="max_concurrency = 6")
        driver = project.start("run", COHORT, "--plain", "--max-calls", "40", *CREW, "3")
        server.wait_until(lambda it: it.received >= 15, timeout_s=60)
        os.kill(workers(project)[0]["pid"], signal.SIGKILL)
        returned, said = finish(driver)
        assert returned == 3, said
        assert "--max-calls 40" in said
        assert server.received <= 40
        assert server.received >= 40 - 6, "calls of the killed one that were recorded and not sent"


@pytest.mark.slow
def test_status_tells_what_each_worker_does_and_holds(tmp_path: Path) -> None:
    with LLMServer(Options(latency_s=0.3, words=12)).in_thread() as server:
        project = make_project(tmp_path, many(150))
        project.use_server(server.openai_url, extra="max_concurrency = 6\nrpm = 1200")
        driver = project.start("run", COHORT, "--plain", *CREW, "2")
        until = time.monotonic() + 60
        while True:
            assert time.monotonic() < until
            assert driver.poll() is None
            record = json.loads(project.run("status", COHORT, "--json").stdout)
            crew = [member for worker in record["workers"] for member in worker.get("crew", [])]
            if len(crew) == 2 and all(member["leased"] for member in crew):
                break
        said = project.run("status", COHORT).stdout
        places = [member["leased"]["endpoint places test"] for member in crew]
        assert {place["of"] for place in places} == {6}
        assert 1 <= sum(place["share"] for place in places) <= 6
        rates = [member["leased"]["endpoint starts test"] for member in crew]
        assert sum(rate["share"] for rate in rates) <= 0.98 * 20 + 0.01
        assert not any(member["is_lost"] for member in crew)
        assert "  worker 1: " in said
        assert "endpoint starts test" in said
        driver.send_signal(signal.SIGINT)
        assert finish(driver)[0] == 130


@pytest.mark.slow
def test_two_workers_write_what_one_process_writes_at_the_other_kind_of_endpoint(tmp_path: Path) -> None:
    rows = membership_rows()  # with copies
    trees = []
    with LLMServer(Options(words=12)).in_thread() as server:
        for name, options in (("crew", (*CREW, "2")), ("alone", ())):
            project = make_project(tmp_path / name, rows)
            project.use_server(server.anthropic_url, kind="anthropic", extra="max_concurrency = 6")
            assert project.run("run", COHORT, "--plain", *options).returncode == 0
            again = project.run("run", COHORT, "--plain")
            assert "No calls made" in again.stderr
            trees.append(project.tree())
    assert trees[0] == trees[1]


class _Without(LocalEngine):
    """Workers that start in an environment without a key."""

    async def start(self, call: Call) -> LocalProcess:
        os.environ.pop("A_KEY", None)
        return await super().start(call)


def test_a_worker_without_a_key_ends_the_run_before_a_call_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LLMServer(Options()).in_thread() as server:
        project = make_project(tmp_path, many(3))
        project.use_server(server.openai_url, extra='api_key_env = "A_KEY"')
        monkeypatch.setenv("A_KEY", "canary-4711")
        opened = open_project(project.config, project.data)
        with pytest.raises(UsageError, match="A_KEY"):
            run_cohort(opened, COHORT, RunOptions(), maker=Crew(_Without(), 2))
        assert server.received == 0
        for path in project.data.rglob("*"):
            assert path.is_dir() or b"canary-4711" not in path.read_bytes(), path


@pytest.mark.slow
def test_rows_in_flight_of_a_stopped_worker_are_made_once_its_calls_must_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genworker.cluster.crew.LAST_ONES_S", 0.5)
    rows = many(6)

    class Stopping(LocalEngine):
        pids: ClassVar[list[int]] = []

        async def start(self, call: Call) -> LocalProcess:
            process = await super().start(call)
            self.pids.append(process._process.pid)
            return process

    def stop(_: object) -> None:
        if server.received >= 6 and len(Stopping.pids) == 2 and not stopped:
            stopped.append(Stopping.pids[0])
            os.kill(Stopping.pids[0], signal.SIGSTOP)

    stopped: list[int] = []
    with LLMServer(Options(latency_s=0.4, words=12)).in_thread() as server:
        project = make_project(tmp_path, rows)
        project.use_server(server.openai_url, extra="max_concurrency = 4\ntimeout_s = 5")
        opened = open_project(project.config, project.data)
        watcher = _Polling(stop)
        result = run_cohort(
            opened, COHORT, RunOptions(), maker=Crew(Stopping(), 2, lease_s=1.0), watch=watcher.start
        )
        assert stopped
        assert int(result.exit_code) == 0
        assert all(counts.done == counts.planned for counts in result.progress.stages.values())
        assert sum(counts.done for counts in result.progress.stages.values()) == len(rows)
        assert server.paid_twice <= 2 * 4, "those that it had out, and those that it had not stored yet"
        assert not _lives_as_child(stopped[0])


class _Polling:
    """Calls a function every few milliseconds from the run's event loop."""

    def __init__(self, look: Any) -> None:
        self._look = look

    def start(self, run: object) -> None:
        import asyncio

        async def poll() -> None:
            while True:
                self._look(run)
                await asyncio.sleep(0.01)

        self._task = asyncio.get_running_loop().create_task(poll())


def _lives_as_child(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG) == (0, 0)
    except ChildProcessError:
        return False


def test_half_of_the_two_options_is_refused(tmp_path: Path) -> None:
    project = make_project(tmp_path, many(1))
    project.use_script()
    for half, other in ((("--engine", "local"), "--workers"), (("--workers", "2"), "--engine local")):
        done = project.run("run", COHORT, *half)
        assert done.returncode == 2
        assert other in done.stderr


def test_static_shards_make_disjoint_lineages_beside_each_other_and_a_plain_run_the_rest(
    tmp_path: Path,
) -> None:
    rows = many(10)
    with LLMServer(Options(latency_s=0.3, words=12)).in_thread() as server:
        project = make_project(tmp_path, rows)
        project.use_server(server.openai_url, extra="max_concurrency = 4")
        first = project.start("run", COHORT, "--plain", "--shard", "1/3", "--max-calls", "30")
        second = project.start("run", COHORT, "--plain", "--shard", "2/3", "--max-calls", "30")
        server.wait_until(lambda it: it.received >= 2, timeout_s=60)
        # All at once: each has to find the shards at work.
        begun = [
            project.start("run", COHORT, "--plain", *arguments)
            for arguments in (("--shard", "1/3"), (), ("--shard", "1/2"))
        ]
        twin, whole, other = [finish(one) for one in begun]
        said = [finish(first), finish(second)]
        assert [twin[0], whole[0], other[0]] == [4, 4, 4], whole[1]
        assert "shard 1/3" in twin[1]
        assert "another division" in other[1]
        assert server.max_in_flight <= 2, "one each of four"
        made = server.received
        assert made <= 20, "each may make ten calls"
        for returned, text in said:
            assert returned in (0, 3), text
        assert any(returned == 3 for returned, _ in said)
        again = project.run("run", COHORT, "--plain", "--shard", "1/3", "--max-calls", "30")
        assert server.received - made <= 0 or again.returncode == 0
        assert project.run("run", COHORT, "--plain").returncode == 0
        assert server.paid == len(rows)
        assert server.paid_twice == 0


def test_half_said_shards_are_refused(tmp_path: Path) -> None:
    project = make_project(tmp_path, many(1))
    project.use_script()
    for arguments in (
        ("--shard", "3/2"),
        ("--shard", "0/2"),
        ("--shard", "x"),
        ("--limit-share", "1/2"),
        ("--shard", "1/2", "--limit-share", "3/2"),
        ("--shard", "1/2", *CREW, "2"),
    ):
        done = project.run("run", COHORT, *arguments)
        assert done.returncode == 2, arguments
        assert "Traceback" not in done.stderr
