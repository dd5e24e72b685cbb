"""`make demo`, step by step, on the real embedded model."""

from __future__ import annotations

import csv
import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from genworker import load_generation
from support.project import Project

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="the embedded engine has no wheel for this platform"
)


@pytest.mark.slow
def test_the_demo_runs_on_the_embedded_model_and_a_second_one_makes_no_call(tmp_path: Path) -> None:
    project = Project(tmp_path)
    for name in ("data/1_raw", "config"):
        shutil.copytree(ROOT / name, tmp_path / name)
    built = project.run("cohort", "build", "demo", "--k-max", "2")
    assert built.returncode == 0, built.stderr
    first = project.run("run", "demo", "--json")
    assert first.returncode == 0, first.stderr
    record = json.loads(first.stdout)
    assert (record["calls"], record["copies"]) == (8, 2)
    assert "llama" not in first.stderr.lower(), "the engine's own log is not for users"
    rows = planned(project)
    assert len(rows) == 10
    for row in rows:
        gen = load_generation(project.paths.gens_root, row["stage"], row["gen_id"])
        assert gen["raw_text"]
        assert gen["parsed_text"], gen["metadata"]["failure"]
        if row["stage"] == "evaluation":
            assert 0 <= float(gen["parsed_text"]) <= 10

    second = project.run("run", "demo", "--json")
    assert json.loads(second.stdout)["calls"] == 0
    assert "No calls made" in second.stderr
    report = project.run("report", "demo")
    assert report.returncode == 0, report.stderr
    assert "plain-words" in report.stdout

    # The second step: one more judge, whose answers cannot always be read.
    project.paths.cohort_spec_toml("demo").write_text(
        'k_max = 2\nevaluation = { models = ["smol-135m", "smol-135m-free"] }\n'
    )
    assert project.run("cohort", "build", "demo").returncode == 0
    third = project.run("run", "demo", "--json")
    assert third.returncode in (0, 1), third.stderr
    assert json.loads(third.stdout)["calls"] == 4, "only the new judge is asked"
    assert len(planned(project)) == 14
    for row in planned(project):
        gen = load_generation(project.paths.gens_root, row["stage"], row["gen_id"])
        if not gen["parsed_text"]:
            assert row["llm_model_id"] == "smol-135m-free"
            assert gen["metadata"]["failure"]["kind"] in ("unparseable", "truncated")
    assert project.run("report", "demo").returncode == 0


def planned(project: Project) -> list[dict[str, str]]:
    text = project.paths.cohort_membership_csv("demo").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))
