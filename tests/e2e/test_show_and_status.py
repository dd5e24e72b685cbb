"""``show``, ``status`` beside a running worker, and what is told when a run ends."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from support.llm_server import LLMServer, Options
from support.project import COHORT, Project, make_project
from support.stores import StoreBuilder


@pytest.fixture
def store(tmp_path: Path) -> StoreBuilder:
    store = StoreBuilder(tmp_path / "data", "tides")
    draft = store.draft(answer="A draft \x1b]0;owned\x07 of \u202etides. " * 100)
    essay = store.essay(draft, answer="An essay.", cost_usd="0.003", endpoint="e1", attempts=2)
    store.evaluation(essay, answer="Why not.\n\nSCORE: 6.5")
    store.evaluation(essay, replicate=2, answer="No.")
    store.evaluation(essay, replicate=3, answer=None)
    store.write_membership()
    return store


def ids(store: StoreBuilder, stage: str) -> list[str]:
    return [row["gen_id"] for row in store.rows if row["stage"] == stage]


def test_a_generation_is_shown_with_lineage_texts_scores_and_attempts(
    store: StoreBuilder, tmp_path: Path
) -> None:
    project = Project(tmp_path)
    (draft,), (essay,), (scored, unread, missing) = (
        ids(store, stage) for stage in ("draft", "essay", "evaluation")
    )
    shown = project.run("show", essay)
    assert shown.returncode == 0, shown.stderr
    text = " ".join(shown.stdout.split())
    for part in (
        f"essay {essay}: done",
        "attempts 2",
        "cost $0.003",
        "cohorts tides",
        f"made from draft {draft}: d1 by m1, done",
        "── raw ── An essay.",
        f"evaluation {scored}: novelty by judge r1, done 6.5",
        f"evaluation {unread}: novelty by judge r2, unparseable",
        f"evaluation {missing}: novelty by judge r3, missing",
    ):
        assert part in text
    shown = project.run("show", draft)
    assert not set("\x1b\x07\u202e") & set(shown.stdout)
    assert "more characters: --whole" in shown.stdout
    assert "more characters" not in project.run("show", draft, "--whole").stdout
    record = json.loads(project.run("show", unread, "--json").stdout)
    assert (record["state"], record["parent_gen_id"]) == ("unparseable", essay)
    assert [parent["gen_id"] for parent in record["ancestors"]] == [essay, draft]


@pytest.mark.parametrize(
    ("name", "says"),
    [("nope", "the store has no generation 'nope'"), ("../x", "holds a path separator"), ("", "is empty")],
)
def test_what_cannot_be_shown_says_so(store: StoreBuilder, tmp_path: Path, name: str, says: str) -> None:
    result = Project(tmp_path).run("show", name)
    assert result.returncode == 2
    assert says in result.stderr
    missing = ids(store, "evaluation")[2]
    assert "cohort tides plans it" in Project(tmp_path).run("show", missing).stderr


def test_two_stages_with_one_id_ask_which(store: StoreBuilder, tmp_path: Path) -> None:
    (essay,) = ids(store, "essay")
    twin = store.paths.generation_dir("draft", essay)
    twin.mkdir()
    (twin / "metadata.json").write_text("{}")
    result = Project(tmp_path).run("show", essay)
    assert (result.returncode, "--stage draft or --stage essay" in result.stderr) == (2, True)
    assert Project(tmp_path).run("show", essay, "--stage", "essay").returncode == 0


def wait_for_worker(project: Project) -> dict[str, Any]:
    deadline = time.monotonic() + 45
    while time.monotonic() < deadline:
        record: dict[str, Any] = json.loads(project.run("status", COHORT, "--json").stdout)
        if record["workers"] and "in_flight" in record["workers"][0]:
            return record
    raise AssertionError("no worker was seen")


def test_status_knows_a_running_worker_and_its_end(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    with LLMServer(Options(latency_s=5.0)).in_thread() as server:
        project.use_server(server.openai_url)
        process = project.start("run", COHORT, "-q")
        record = wait_for_worker(project)
        (worker,) = record["workers"]
        assert worker["pid"] == process.pid
        assert worker["in_flight"] > 0
        lines = project.run("status", COHORT).stdout
        assert f"running: pid {process.pid} on {worker['host']}" in lines
        assert "in flight" in lines
        process.kill()
        process.communicate()
        assert json.loads(project.run("status", COHORT, "--json").stdout)["workers"] == [], (
            "its lock died with it"
        )
        assert "running" not in project.run("status", COHORT, "--watch").stdout, "nobody is waited for"


def test_status_counts_failed_calls_as_the_run_did(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    with LLMServer(Options(failure_rates={"400": 0.4})).in_thread() as server:
        project.use_server(server.openai_url)
        told = json.loads(project.run("run", COHORT, "--json", "-q").stdout)["stages"]
        shown = json.loads(project.run("status", COHORT, "--json").stdout)
    assert told["draft"]["failed"] > 0
    assert shown["stages"]["draft"]["failed"]["call"] == told["draft"]["failed"]
    assert shown["stages"]["draft"]["missing"] == told["draft"]["missing"]
    assert shown["errors"][0]["rows"] > 0


NOTE = "import sys, pathlib; pathlib.Path('told.json').write_text(sys.stdin.read()); print('heard')"


def test_the_end_of_a_run_is_told_to_a_command(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    project.use_script()
    settings = project.config.read_text(encoding="utf-8")
    command = json.dumps([sys.executable, "-c", NOTE])
    project.configure(f"on_end = {command}\n{settings}")
    result = project.run("run", COHORT, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "told.json").read_text()) == json.loads(result.stdout)
    assert "heard" in result.stderr
    for broken, says in (
        ([sys.executable, "-c", "raise SystemExit(3)"], "ended with exit code 3"),
        (["no-such-command"], "no-such-command cannot be run"),
    ):
        project.configure(f"on_end = {json.dumps(broken)}\n{settings}")
        result = project.run("run", COHORT)
        assert (result.returncode, says in result.stderr) == (0, True), "the run has ended as it has"


def test_an_end_that_runs_a_cohort_does_not_go_round_for_ever(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    project.use_script()
    settings = project.config.read_text(encoding="utf-8")
    command = json.dumps(project.command("run", COHORT, "--plain"))
    project.configure(f"on_end = {command}\n{settings}")
    done = project.run("run", COHORT, "-q")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("No calls made") == 1


def test_a_stopped_run_tells_its_end_as_well(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    with LLMServer(Options(latency_s=4.0)).in_thread() as server:
        project.use_server(server.openai_url)
        settings = project.config.read_text(encoding="utf-8")
        project.configure(f"on_end = {json.dumps([sys.executable, '-c', NOTE])}\n{settings}")
        process = project.start("run", COHORT, "-q")
        wait_for_worker(project)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)
    assert json.loads((tmp_path / "told.json").read_text())["exit_code"] == 130
