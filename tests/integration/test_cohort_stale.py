"""Curated cohorts and stale generations, over a store that real runs have filled."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from genworker import load_generation
from genworker.cli.refresh import redo_stale, stale_counts
from genworker.cli.status import cohort_record, open_look
from genworker.core.stages import STAGES, Stage
from genworker.errors import FaultyInputError
from genworker.project.build import BuildOptions, CohortPlan, plan_build, write_build
from genworker.project.freshness import find_stale
from genworker.project.open import open_membership, open_project, plan_cohort
from genworker.run.engine import RunOptions, run_cohort
from genworker.store import index as store_index
from genworker.store import ledger as store_ledger
from genworker.store.catalog import TemplateFiles
from support.project import Project, write, write_catalog

DRAFT, ESSAY, EVALUATION = STAGES


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Four drafts, eight essays of which four are copies, 32 evaluations, all done."""
    monkeypatch.chdir(tmp_path)
    project = Project(tmp_path)
    write_catalog(project.data)
    # The fake writes no tags, so no template here asks for them.
    write(project.paths.templates_csv("draft"), "template_id\nplain\ntagged\n")
    project.use_script()
    write_build(plan(project, "trial", k_max=3))
    assert run(project, "trial") == (40, 4)
    return project


def plan(project: Project, cohort: str, **options: object) -> CohortPlan:
    return plan_build(open_project(None, project.data), BuildOptions(cohort, **options))  # type: ignore[arg-type]


def run(project: Project, cohort: str, options: RunOptions | None = None) -> tuple[int, int]:
    """(calls, copies) of a run."""
    result = run_cohort(open_project(None, project.data), cohort, options or RunOptions())
    return result.progress.calls, result.progress.copies


def refresh(project: Project, *stages: Stage) -> tuple[int, int]:
    redo = redo_stale(open_project(None, project.data), "trial", stages)
    return run(project, "trial", RunOptions(redo=redo, stages=frozenset(stages) or None))


def stale(project: Project, limit: int = 1000) -> dict[Stage, int]:
    opened = open_project(None, project.data)
    planned = plan_cohort(opened, open_membership(opened, "trial", strict=False))
    found = find_stale(opened, planned, limit=limit)
    assert found is not None
    assert {stage: number or 0 for stage, number in stale_counts(opened, planned).items()} == {
        stage: found.counts()[stage] for stage in STAGES
    }
    return dict(found.counts())


def rows(project: Project, cohort: str) -> list[dict[str, str]]:
    return list(csv.DictReader(project.paths.cohort_membership_csv(cohort).read_text().splitlines()))


# Stale


def test_a_template_is_stale_while_it_differs_and_only_then(project: Project) -> None:
    assert stale(project) == {}
    before = project.tree()
    template = project.paths.template_file("essay", "rewrite")
    text = template.read_text()
    template.write_text(text + "\nBriefly.")
    assert stale(project) == {ESSAY: 4}
    template.write_text(text)
    assert stale(project) == {}
    template.unlink()
    assert stale(project) == {}
    template.write_text(text + "\nBriefly.")
    assert run(project, "trial") == (0, 0)  # by default nothing is touched
    assert project.tree() == before
    assert refresh(project) == (4 + 16, 0)
    assert stale(project) == {}
    changed = {name.split("/")[1] for name, content in project.tree().items() if before[name] != content}
    assert len(changed) == 20
    kept = list(project.paths.private_dir.glob("aside/*/*/*/parsed.txt"))
    assert len(kept) == 20
    assert {path.read_text() for path in kept} <= set(before.values())
    assert refresh(project) == (0, 0)


def test_an_answer_that_is_no_good_is_made_again_when_its_template_has_changed(project: Project) -> None:
    row = next(row for row in rows(project, "trial") if row["template_id"] == "novelty")
    directory = project.paths.generation_dir("evaluation", row["gen_id"])
    (directory / "parsed.txt").unlink()
    facts = json.loads((directory / "metadata.json").read_text())
    facts["failure"] = {"kind": "truncated", "message": "cut off"}
    (directory / "metadata.json").write_text(json.dumps(facts))
    assert run(project, "trial") == (0, 0)
    project.paths.template_file("evaluation", "novelty").write_text("{{ response }} Shortly: SCORE?")
    assert stale(project) == {EVALUATION: 16}
    assert refresh(project) == (16, 0)
    assert (directory / "parsed.txt").exists()


def test_a_changed_concept_or_a_new_parent_is_stale_as_well(project: Project) -> None:
    description = project.paths.concept_description("moss", "paragraph")
    text = description.read_text()
    description.write_text("Moss again.")
    assert stale(project) == {DRAFT: 4}
    description.write_text(text)
    assert stale(project) == {}
    # Somebody asks one draft again, and the answer is another: what was made of it is out of date.
    description.write_text("Moss again.")
    draft = rows(project, "trial")[0]["gen_id"]
    again = RunOptions(only=frozenset({draft}), redo=lambda job, failure: job == 0)
    assert run(project, "trial", again) == (1, 0)
    assert stale(project) == {DRAFT: 3, ESSAY: 2}
    # A refresh that was cut short is gone on with: the drafts are new now, their children are not.
    assert refresh(project, DRAFT) == (3, 0)
    assert stale(project) == {ESSAY: 8}
    assert refresh(project) == (4 + 32, 4)
    assert stale(project) == {}
    for row in rows(project, "trial"):
        if row["template_id"] == "keep":
            parent = load_generation(project.paths.gens_root, "draft", row["parent_gen_id"])
            copy = load_generation(project.paths.gens_root, "essay", row["gen_id"])
            assert copy["parsed_text"] == parent["parsed_text"]


def test_generations_of_another_tool_are_judged_by_the_cohorts_first_build(project: Project) -> None:
    known = ("task_id", "template_id", "model_id", "parent_gen_id")
    for path in project.paths.gens_root.glob("*/*/metadata.json"):
        facts = json.loads(path.read_text())
        path.write_text(json.dumps({key: facts[key] for key in known}))
    assert stale(project) == {}
    project.paths.template_file("evaluation", "novelty").write_text("{{ response }} SCORE?")
    assert stale(project) == {EVALUATION: 16}
    write_build(plan(project, "trial"))  # another build does not make them fresh
    assert stale(project) == {EVALUATION: 16}
    project.paths.cohort_manifest_json("trial").unlink()
    assert stale(project) == {}  # now nothing says what they were made from


def test_metadata_that_cannot_be_read_say_nothing(project: Project) -> None:
    project.paths.template_file("draft", "plain").write_text("New.")
    contents = (b"", b"{", b"[1]", b'{"files": 3, "template_sha256": 4}', b"\xff\xfe")
    paths = sorted(project.paths.gens_root.glob("*/*/metadata.json"))
    for number, path in enumerate(paths):
        path.write_bytes(contents[number % len(contents)])
    project.paths.cohort_manifest_json("trial").write_text("{")
    assert stale(project) == {}


def test_more_generations_than_one_wants_to_read_are_not_counted(project: Project) -> None:
    opened = open_project(None, project.data)
    planned = plan_cohort(opened, open_membership(opened, "trial", strict=False))
    assert find_stale(opened, planned, limit=43) is None
    assert find_stale(opened, planned, limit=44) is not None


# Curated


def test_a_curated_cohort_runs_only_its_evaluations(project: Project) -> None:
    essays = [row for row in rows(project, "trial") if row["stage"] == "essay"][1:6]
    names = [row["gen_id"] for row in essays]
    write(project.paths.selected_essays_txt, "# the best\n" + "\n".join(names) + "\n")
    before = project.tree()
    planned = plan(project, "chosen")
    assert planned.source.mode == "essays"
    write_build(planned)
    assert run(project, "chosen") == (5 * 4, 0)
    after = project.tree()
    assert before.items() <= after.items()
    assert {name.split("/")[0] for name in after if name not in before} == {"evaluation"}
    chosen = rows(project, "chosen")
    assert [row["gen_id"] for row in chosen if row["stage"] == "essay"] == names
    drafts = {row["gen_id"] for row in chosen if row["stage"] == "draft"}
    assert drafts == {row["parent_gen_id"] for row in essays}
    # The list is read again; a full product that was built before it stays one.
    write(project.paths.selected_essays_txt, names[0])
    with pytest.raises(FaultyInputError, match="would disappear"):
        write_build(plan(project, "chosen"))
    assert plan(project, "trial").source.mode == "product"
    # Without the list the earlier build says which they are.
    project.paths.selected_essays_txt.unlink()
    assert not write_build(plan(project, "chosen")).changed


def test_chosen_drafts_get_essays_of_their_own(project: Project) -> None:
    drafts = [row["gen_id"] for row in rows(project, "trial") if row["stage"] == "draft"][:2]
    write(project.root / "drafts.txt", "\n".join(drafts))
    write_build(plan(project, "again", drafts=Path("drafts.txt")))
    assert run(project, "again") == (2 + 16, 2)
    assert [row["gen_id"] for row in rows(project, "again") if row["stage"] == "draft"] == drafts
    (project.root / "drafts.txt").unlink()
    assert not write_build(plan(project, "again")).changed


def test_everything_that_cannot_be_built_upon_is_named_at_once(project: Project) -> None:
    essays = [row for row in rows(project, "trial") if row["stage"] == "essay"]
    for path in project.paths.generation_dir("draft", essays[1]["parent_gen_id"]).glob("*"):
        path.unlink()
    (project.paths.parsed_path("essay", essays[-1]["gen_id"])).unlink()
    (project.paths.metadata_path("essay", essays[-2]["gen_id"])).unlink()
    names = [
        essays[1]["gen_id"],
        essays[-1]["gen_id"],
        essays[-2]["gen_id"],
        "lost",
        "../x",
        essays[3]["gen_id"],
    ]
    write(project.root / "list.txt", "\n".join(names))
    with pytest.raises(FaultyInputError) as caught:
        plan(project, "chosen", essays=Path("list.txt"))
    assert {fault.line for fault in caught.value.faults} == {1, 2, 3, 4, 5}
    assert {fault.where for fault in caught.value.faults} == {"list.txt"}
    write(project.root / "none.txt", "# nothing yet\n")
    with pytest.raises(FaultyInputError, match="names no generation"):
        plan(project, "chosen", essays=Path("none.txt"))


def test_what_cohorts_share_is_read_once(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        copy = project.membership_of(f"copy{number}")
        write(copy, project.membership.read_text().replace("trial", copy.parent.name))
    read: list[object] = []

    def counted(owner: object, name: str) -> None:
        inner = getattr(owner, name)

        def count(*given: object) -> object:
            read.append(given[1:] or given)
            return inner(*given)

        monkeypatch.setattr(owner, name, count)

    counted(TemplateFiles, "_read")
    counted(store_index, "_list_names")
    counted(store_ledger, "_bytes")
    look = open_look(open_project(None, project.data))
    records = [cohort_record(look, f"copy{number}") for number in range(5)]
    assert all(record["done"] == 44 for record in records)
    assert len(read) == len(set(read)) == 5 + 3 + 1
