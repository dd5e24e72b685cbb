"""Two workers at once, as real processes: nobody pays twice, whatever the second one was told to do."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from support.llm_server import LLMServer, Options
from support.project import COHORT, Project, make_project, membership_rows, write_csv

ROWS = membership_rows(essays=("rewrite",), evaluations=("novelty",), replicates=1)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out + err


def project_at(root: Path, server: LLMServer) -> Project:
    project = make_project(root, ROWS)
    project.use_server(server.openai_url, extra="max_concurrency = 2")
    return project


def test_the_second_worker_leaves_and_names_the_first(tmp_path: Path) -> None:
    with LLMServer(Options(latency_s=0.3, words=12)).in_thread() as server:
        project = project_at(tmp_path, server)
        first = project.start("run", COHORT, "--plain")
        server.wait_until(lambda it: it.received >= 1, timeout_s=60)
        first.send_signal(signal.SIGSTOP)  # on a slow machine it would be done before the second begins
        second = project.run("run", COHORT, "--plain")
        first.send_signal(signal.SIGCONT)
        assert second.returncode == 4, second.stderr
        for word in (
            f"pid {first.pid}",
            "host ",
            "user ",
            "for ",
            f"kill -INT {first.pid}",
            "--if-locked wait",
        ):
            assert word in second.stderr
        assert "Traceback" not in second.stderr
        assert finish(first)[0] == 0
        assert server.paid == len(ROWS)


@pytest.mark.parametrize("mode", ["wait", "share"])
def test_the_second_worker_waits_or_shares(tmp_path: Path, mode: str) -> None:
    with LLMServer(Options(latency_s=0.2, words=12)).in_thread() as server:
        project = project_at(tmp_path, server)
        first = project.start("run", COHORT, "--plain")
        server.wait_until(lambda it: it.received >= 1, timeout_s=60)
        first.send_signal(signal.SIGSTOP)
        second = project.start("run", COHORT, "--plain", "--if-locked", mode)
        assert second.stderr is not None
        assert "event=begin" in second.stderr.readline()
        said_first = second.stderr.readline()
        first.send_signal(signal.SIGCONT)
        (code, said), (code_2, said_2) = finish(first), finish(second)
        assert (code, code_2) == (0, 0), said + said_2
        assert f"pid {first.pid}" in said_first
        assert server.paid == len(ROWS)
        assert server.paid_twice == 0
        done = project.run("run", COHORT, "--plain")
        assert "No calls made" in done.stderr


def test_the_lock_dies_with_its_owner_and_its_answers_do_not(tmp_path: Path) -> None:
    with LLMServer(Options(latency_s=0.2, words=12)).in_thread() as server:
        project = project_at(tmp_path, server)
        first = project.start("run", COHORT, "--plain")
        server.wait_until(lambda it: it.received >= 3, timeout_s=60)
        second = project.start("run", COHORT, "--plain", "--if-locked", "share")
        server.wait_until(lambda it: it.received >= 5, timeout_s=60)
        first.send_signal(signal.SIGKILL)
        finish(first)
        code, said = finish(second)
        assert code == 0, said
        assert server.paid_twice <= 2, "more than the calls in flight at the kill"
        assert project.run("run", COHORT, "--plain").returncode == 0


def test_cohorts_that_share_generations_wait_for_each_other(tmp_path: Path) -> None:
    with LLMServer(Options(latency_s=0.15, words=12)).in_thread() as server:
        project = project_at(tmp_path, server)
        write_csv(
            project.paths.cohort_membership_csv("other"),
            [{**row, "cohort_id": "other"} for row in ROWS],
        )
        workers = [project.start("run", name, "--plain") for name in (COHORT, "other")]
        for code, said in map(finish, workers):
            assert code == 0, said
        assert server.paid == len(ROWS)
        assert server.paid_twice == 0


def test_a_failed_answer_of_another_worker_is_not_bought_again(tmp_path: Path) -> None:
    reply = "no number here"
    with LLMServer(Options(latency_s=0.2, reply=lambda request: reply)).in_thread() as server:
        project = project_at(tmp_path, server)
        write_csv(
            project.paths.cohort_membership_csv("other"),
            [{**row, "cohort_id": "other"} for row in ROWS],
        )
        workers = [project.start("run", name, "--plain") for name in (COHORT, "other")]
        assert [finish(worker)[0] for worker in workers] == [1, 1]
        assert server.paid == len(ROWS)


def test_a_stopped_owner_keeps_its_lock(tmp_path: Path) -> None:
    with LLMServer(Options(latency_s=0.2, words=12)).in_thread() as server:
        project = project_at(tmp_path, server)
        first = project.start("run", COHORT, "--plain")
        server.wait_until(lambda it: it.received >= 1, timeout_s=60)
        os.kill(first.pid, signal.SIGSTOP)
        try:
            assert project.run("run", COHORT, "--plain").returncode == 4
        finally:
            os.kill(first.pid, signal.SIGCONT)
        assert finish(first)[0] == 0
        assert server.paid_twice == 0
