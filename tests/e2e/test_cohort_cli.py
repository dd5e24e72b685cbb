"""Cohorts as a user meets them: build, look, run, curate, change a template, refresh."""

from __future__ import annotations

import csv
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from genworker.project.build import BuildOptions, plan_build, write_build
from genworker.project.open import open_project
from support.project import Project, write, write_catalog, write_csv


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    write_catalog(project.data)
    # The fake writes no tags, so no template here asks for them.
    write(project.paths.templates_csv("draft"), "template_id\nplain\ntagged\n")
    project.use_script()
    return project


def answer(project: Project, *arguments: str, code: int = 0) -> Any:
    done = project.run(*arguments, "--json")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def rows(project: Project, cohort: str) -> list[dict[str, str]]:
    return list(csv.DictReader(project.paths.cohort_membership_csv(cohort).read_text().splitlines()))


def test_a_cohort_is_looked_at_built_run_and_grown(project: Project) -> None:
    looked = project.run("cohort", "build", "trial", "--k-max", "3", "--dry-run")
    assert looked.returncode == 0
    assert "A run would make 40 calls. Est." in looked.stdout
    assert "Nothing was written." in looked.stdout
    assert not project.paths.cohorts_dir.exists()
    built = project.run("cohort", "build", "trial", "--k-max", "3")
    assert "44 new, 0 kept. Next: genworker run trial" in built.stdout
    assert answer(project, "run", "trial", "-q")["calls"] == 40
    assert project.paths.cohort_manifest_json("trial").exists()
    numbers = [{"stage": "evaluation", "replicates": "2"}]
    write_csv(project.paths.replication_csv, numbers)
    found = answer(project, "cohort", "build", "trial")
    assert (found["kept"], found["new"], found["calls"]) == (44, 32, 32)
    assert found["stages"]["essay"]["in_store"] == 8
    assert answer(project, "plan", "trial")["calls"] == 32
    project.paths.replication_csv.unlink()
    refused = project.run("cohort", "build", "trial")
    assert refused.returncode == 2
    assert "32 rows would disappear" in refused.stderr
    assert refused.stdout == ""
    assert answer(project, "cohort", "build", "trial", "--dry-run")["gone"][0]["stage"] == "evaluation"
    assert project.run("cohort", "build", "trial", "--prune").returncode == 0
    assert len(rows(project, "trial")) == 44


def test_a_changed_template_makes_stale_and_a_refresh_makes_anew(project: Project) -> None:
    assert project.run("cohort", "build", "trial", "--k-max", "3").returncode == 0
    assert project.run("run", "trial", "-q").returncode == 0
    with project.paths.template_file("essay", "rewrite").open("a") as stream:
        stream.write("\nBriefly.")
    for verb in ("status", "plan"):
        stages = answer(project, verb, "trial")["stages"]
        assert {stage: facts["stale"] for stage, facts in stages.items()} == {
            "draft": 0,
            "essay": 4,
            "evaluation": 0,
        }
    assert "genworker run trial --refresh stale" in project.run("status", "trial").stdout
    assert answer(project, "run", "trial", "-q")["calls"] == 0  # by default nothing is touched
    assert answer(project, "run", "trial", "--refresh", "stale", "--dry-run")["calls"] == 4 + 16
    ran = project.run("run", "trial", "--refresh", "stale", "-q", "--json")
    assert "Stale: 4 essays (template changed); with what builds upon them." in ran.stderr
    assert (json.loads(ran.stdout)["calls"], json.loads(ran.stdout)["copies"]) == (4 + 16, 0)
    assert len(list(project.paths.private_dir.glob("aside/*/*/*"))) == 20


def test_a_running_worker_keeps_the_membership_that_it_began_with(project: Project) -> None:
    slow = 'default_endpoint = "test"\n[endpoints.test]\nkind = "scripted"\nlatency_s = 0.5\n'
    project.configure(slow)
    assert project.run("cohort", "build", "trial", "--k-max", "3").returncode == 0
    worker = project.start("run", "trial", "--plain", "--json")
    try:
        deadline = time.monotonic() + 120
        while not list(project.paths.runs_dir.glob("*.jsonl")) and time.monotonic() < deadline:
            time.sleep(0.01)
        write_csv(project.paths.replication_csv, [{"stage": "draft", "replicates": "2"}])
        opened = open_project(project.config, project.data)
        assert write_build(plan_build(opened, BuildOptions("trial"))).changed
        out, log = worker.communicate(timeout=60)
    finally:
        if worker.poll() is None:
            worker.send_signal(signal.SIGKILL)
            worker.communicate()
    assert worker.returncode == 0, log
    assert json.loads(out)["calls"] == 40
    assert "The membership file has changed since this run read it" in log
    assert answer(project, "plan", "trial")["calls"] == 40


def test_without_a_name_and_without_a_catalogue(project: Project) -> None:
    first, again = (answer(project, "cohort", "build") for _ in range(2))
    assert first["cohort"] == again["cohort"]
    assert first["cohort"].startswith("cohort-")
    assert (first["changed"], again["changed"]) == (True, False)
    nothing = project.run("cohort", "build", "trial", "--data-root", "elsewhere")
    assert nothing.returncode == 2
    assert "there is no catalogue" in nothing.stderr
    assert not (project.root / "elsewhere").exists()


def test_hostile_words_do_not_reach_the_terminal(project: Project) -> None:
    write(
        project.paths.cohort_spec_toml("trial"),
        'concepts = ["\\u001b[31mred", "\\u202eleft"]\n"k\\u001b" = 1\n',
    )
    done = project.run("cohort", "build", "trial")
    assert done.returncode == 2
    assert "\x1b" not in done.stderr
    assert "\u202e" not in done.stderr
