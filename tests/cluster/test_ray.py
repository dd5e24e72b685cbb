"""Workers below Ray, on one host: `make cluster-test`. Skipped where Ray is not installed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from genworker.run.serving import free_port
from support.llm_server import LLMServer, Options
from support.project import COHORT, Project, clean_environment, make_project, membership_rows

ray = pytest.importorskip("ray")

RAY = ("--engine", "ray", "--workers", "2")
KEY = "canary-key-83c1"


def workers(project: Project) -> list[dict[str, Any]]:
    found = []
    for path in sorted(project.paths.runs_dir.glob("*.jsonl")):
        lines = path.read_text(encoding="utf-8").splitlines()
        record = json.loads(lines[0]) if lines else {}
        if record.get("event") == "worker_started":
            found.append(record)
    return found


def start(project: Project, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        project.command("run", COHORT, "--plain", *arguments),
        cwd=project.root,
        env={**clean_environment(), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out + err


@pytest.fixture
def rows() -> list[dict[str, str]]:
    return membership_rows(essays=("rewrite",), replicates=12)


def test_a_killed_worker_costs_its_calls_and_the_key_stays_where_it_is(
    tmp_path: Path, rows: list[dict[str, str]]
) -> None:
    with LLMServer(Options(latency_s=0.3, words=12)).in_thread() as server:
        project = make_project(tmp_path / "ray", rows)
        project.use_server(server.openai_url, extra='max_concurrency = 6\napi_key_env = "RAY_TEST_KEY"')
        before = ray_logs()
        driver = start(project, *RAY, RAY_TEST_KEY=KEY)
        server.wait_until(lambda it: it.received >= 20, timeout_s=90)
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                assert KEY.encode() not in path.read_bytes(), path
        os.kill(workers(project)[0]["pid"], signal.SIGKILL)
        returned, said = finish(driver)
        assert returned == 0, said
        assert server.paid_twice <= 6
        assert server.paid - server.paid_twice == len(rows)
        for path in [*project.data.rglob("*"), *(ray_logs() - before)]:
            assert not path.is_file() or KEY.encode() not in path.read_bytes(), path
        alone = make_project(tmp_path / "alone", rows)
        alone.use_server(server.openai_url, extra='max_concurrency = 6\napi_key_env = "RAY_TEST_KEY"')
        (alone.root / ".env").write_text(f"RAY_TEST_KEY={KEY}\n")
        assert alone.run("run", COHORT, "--plain").returncode == 0
        assert project.tree() == alone.tree()


def ray_logs() -> set[Path]:
    return {path for path in Path("/tmp/ray").glob("session_2*/logs/**/*") if path.is_file()}


def test_a_signal_drains(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    with LLMServer(Options(latency_s=0.3, words=12)).in_thread() as server:
        project = make_project(tmp_path, rows)
        project.use_server(server.openai_url, extra="max_concurrency = 4")
        driver = start(project, *RAY)
        server.wait_until(lambda it: it.received >= 12, timeout_s=90)
        driver.send_signal(signal.SIGINT)
        returned, said = finish(driver)
        assert returned == 130, said
        assert project.run("run", COHORT, "--plain").returncode == 0
        assert server.paid == len(rows)
        assert server.paid_twice == 0


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A cluster of one host, started as people start one; its address."""
    command = str(Path(sys.executable).with_name("ray"))
    subprocess.run([command, "get-auth-token", "--generate"], capture_output=True, check=True)
    port, host = free_port(), ray.util.get_node_ip_address()
    arguments = ["start", "--head", "--block", "--port", str(port), "--num-cpus", "2"]
    quiet = ["--include-dashboard", "false", "--disable-usage-stats"]
    log = tmp_path_factory.mktemp("ray") / "log"
    with log.open("w") as stream:
        head = subprocess.Popen(
            [command, *arguments, *quiet], env=clean_environment(), stdout=stream, stderr=stream
        )
        try:
            until = time.monotonic() + 60
            while "Ray runtime started" not in log.read_text():
                assert head.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.1)
            yield f"{host}:{port}"
        finally:
            head.terminate()  # ends what it has started
            head.wait(60)


def test_a_cluster_that_runs_is_used_and_another_version_is_refused_in_a_sentence(
    tmp_path: Path, cluster: str
) -> None:
    rows = membership_rows(essays=("rewrite",), evaluations=("novelty",), replicates=1)
    with LLMServer(Options(words=12)).in_thread() as server:
        project = make_project(tmp_path, rows)
        project.use_server(server.openai_url)
        returned, said = finish(start(project, *RAY, "--address", cluster))
        assert returned == 0, said
        assert server.paid == len(rows)
    code = (
        "import asyncio, ray; from genworker.cluster.ray import RayEngine; "
        f"ray.__version__ = '2.0.0'; asyncio.run(RayEngine({cluster!r}).open())"
    )
    other = {**clean_environment(), "RAY_AUTH_MODE": "token"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=other, capture_output=True, text=True, check=False
    )
    assert "CrewError: Ray cannot be used: Version mismatch" in done.stderr
    assert "2.0.0" in done.stderr


def test_a_cluster_that_is_not_there_is_told_in_a_sentence(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    project.use_script()
    done = project.run("run", COHORT, *RAY, "--address", "127.0.0.1:1")
    assert done.returncode == 1
    assert "Ray cannot be used" in done.stderr
    assert "Traceback" not in done.stderr
