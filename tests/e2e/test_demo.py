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
    assert first.returncode in (0, 1), first.stderr
    record = json.loads(first.stdout)
    assert (record["calls"], record["copies"]) == (12, 2)
    assert "llama" not in first.stderr.lower(), "the engine's own log is not for users"

    text = project.paths.cohort_membership_csv("demo").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    assert len(rows) == 14
    for row in rows:
        gen = load_generation(project.paths.gens_root, row["stage"], row["gen_id"])
        assert gen["raw_text"]
        if row["llm_model_id"] == "smol-135m":
            assert gen["parsed_text"], gen["metadata"]["failure"]
        elif not gen["parsed_text"]:
            assert gen["metadata"]["failure"]["kind"] in ("unparseable", "truncated")
        if row["stage"] == "evaluation" and gen["parsed_text"]:
            assert 0 <= float(gen["parsed_text"]) <= 10

    second = project.run("run", "demo", "--json")
    assert json.loads(second.stdout)["calls"] == 0
    assert "No calls made" in second.stderr
    report = project.run("report", "demo")
    assert report.returncode == 0, report.stderr
    assert "plain-words" in report.stdout
