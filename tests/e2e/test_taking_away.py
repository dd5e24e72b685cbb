"""From a finished cohort: the best essays, the next cohort, what is removed, what lies aside, raw copies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.project import COHORT, Project, make_project, membership_rows

ROWS = membership_rows(models=("alpha",), evaluations=("novelty",), replicates=1)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """One draft, an essay and a copy, an evaluation of each; made by the scripted endpoint."""
    project = make_project(tmp_path, ROWS)
    project.configure(
        'raw_copies = ["essay"]\ndefault_endpoint = "test"\n[endpoints.test]\nkind = "scripted"\n'
    )
    done = project.run("run", COHORT, "-q")
    assert done.returncode == 0, done.stderr
    return project


def ids(stage: str) -> list[str]:
    return [row["gen_id"] for row in ROWS if row["stage"] == stage]


def call(project: Project, *arguments: str, code: int = 0) -> str:
    done = project.run(*arguments)
    assert "Traceback" not in done.stderr
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def test_from_the_best_essays_to_the_next_cohort(project: Project) -> None:
    essay, copy = ids("essay")
    project.paths.parsed_path("evaluation", ids("evaluation")[0]).write_text("3.0")
    project.paths.parsed_path("evaluation", ids("evaluation")[1]).write_text("8.0")
    lines = call(project, "top", COHORT, "-n", "5").splitlines()
    assert [line.partition("#")[0].strip() for line in lines] == ["", copy, essay]
    assert "8.00 from 1 scores (novelty_alpha 8.00); keep by alpha" in lines[1]
    assert json.loads(call(project, "top", COHORT, "-n", "1", "--json"))["essays"][0]["gen_id"] == copy
    call(project, "top", COHORT, "-n", "1", "-o", "data/2_tasks/selected_essays.txt", code=2)
    project.paths.tasks_dir.mkdir()
    call(project, "top", COHORT, "-n", "1", "--by", "novelty", "-o", "data/2_tasks/selected_essays.txt")
    built = json.loads(call(project, "cohort", "build", "next", "--json"))
    assert built["stages"]["essay"]["rows"] == 1
    assert "no evaluator of this cohort is called 'rigour'" in call(
        project, "top", COHORT, "--by", "rigour", code=2
    )
    assert call(project, "top", COHORT, "--min-scores", "2", code=1) == ""


def test_removing_takes_descendants_along_and_nothing_is_deleted(project: Project) -> None:
    essay = ids("essay")[0]
    listed = call(project, "remove", "--only", essay, code=2)
    assert f"essay {essay} is listed by {COHORT}" in listed
    tree = project.tree()
    dry = json.loads(call(project, "remove", COHORT, "--only", essay, "--dry-run", "--json"))
    assert (dry["removed"], dry["descendants"]) == (2, 1)
    assert project.tree() == tree
    call(project, "remove", COHORT, "--only", essay)
    assert not project.paths.generation_dir("essay", essay).exists()
    assert not project.paths.generation_dir("evaluation", ids("evaluation")[0]).exists()
    assert project.paths.generation_dir("evaluation", ids("evaluation")[1]).exists()
    kept = json.loads(call(project, "aside", "list", "--json"))["aside"]
    assert {item["kind"] for item in kept} == {"essay", "evaluation"}
    call(project, "run", COHORT, "-q")
    assert project.tree().keys() == tree.keys(), "what a cohort still lists is made again"
    assert json.loads(call(project, "aside", "empty", "--older-than", "1", "--json"))["deleted"] == 0
    assert json.loads(call(project, "aside", "empty", "--dry-run", "--json"))["deleted"] == 2
    assert "2 directories deleted" in call(project, "aside", "empty")
    assert "Nothing lies aside" in call(project, "aside", "list")


def test_by_template_by_model_and_as_a_whole(project: Project) -> None:
    call(project, "remove", code=2)
    call(project, "remove", "--only", "nobody", code=2)
    dry = json.loads(call(project, "remove", COHORT, "--template", "keep", "--dry-run", "--json"))
    assert dry["stages"] == {"evaluation": 1, "essay": 1}
    dry = json.loads(call(project, "remove", "--model", "alpha", "--even-if-listed", "--dry-run", "--json"))
    assert dry["removed"] == len(ROWS)
    other = project.paths.cohort_membership_csv("other")
    other.parent.mkdir()
    other.write_bytes(project.membership.read_bytes())
    assert "is listed by other" in call(project, "remove", COHORT, code=2)
    other.write_text("stage,gen_id\n")
    assert "cohort other cannot be read" in call(project, "remove", COHORT, code=2)
    other.unlink()
    call(project, "remove", COHORT)
    assert not project.membership.exists()
    assert list(project.paths.gens_root.glob("*/*")) == []
    kept = json.loads(call(project, "aside", "list", "--json"))["aside"]
    assert sorted(item["kind"] for item in kept) == ["cohorts", "draft", *["essay"] * 2, *["evaluation"] * 2][
        :1
    ] + sorted(["draft", *["essay"] * 2, *["evaluation"] * 2])


def test_raw_outputs_are_copied_where_that_is_asked_for(project: Project) -> None:
    essay, copy = ids("essay")
    path = project.paths.raw_copy_path("essay", essay)
    assert path.read_bytes() == project.paths.raw_path("essay", essay).read_bytes()
    assert not project.paths.raw_copy_path("draft", ids("draft")[0]).exists(), "not asked for"
    # What goes wrong with a copy goes no further: here a file stands in the directory's place.
    for name in (path, project.paths.raw_copy_path("essay", copy)):
        name.unlink()
    path.parent.rmdir()
    path.parent.write_text("in the way")
    call(project, "remove", COHORT, "--only", essay)
    call(project, "run", COHORT, "-q")
    assert project.paths.parsed_path("essay", essay).exists()
