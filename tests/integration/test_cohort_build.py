"""A build against real files: what is written, what is kept, what is refused, and that it is all or nothing."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from genworker.core.generation import file_digest
from genworker.core.ids import combo_id
from genworker.core.stages import STAGES
from genworker.errors import FaultyInputError, LockedError, MembershipError, StoreError, UsageError
from genworker.project.build import BuildOptions, CohortPlan, Survey, plan_build, survey, write_build
from genworker.project.open import open_membership, open_project
from genworker.store import cohorts
from genworker.store.lock import FileLock
from support.cohorts import Experiment
from support.project import CONCEPTS, MODELS, Project, write, write_catalog, write_csv

DRAFT, ESSAY, EVALUATION = STAGES
PAIRS = [combo_id(pair, "paragraph", 2) for pair in (CONCEPTS[:2], (CONCEPTS[0], CONCEPTS[2]), CONCEPTS[1:])]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    for name in ("GENWORKER_DATA_ROOT", "GEN_TEMPLATES_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    write_catalog(tmp_path / "data")
    (tmp_path / "data" / "combo_mappings.csv").unlink()
    return Project(tmp_path)


def plan(project: Project, cohort: str | None = "trial", **options: object) -> CohortPlan:
    return plan_build(open_project(None, project.data), BuildOptions(cohort, **options))  # type: ignore[arg-type]


def build(
    project: Project, cohort: str | None = "trial", *, prune: bool = False, **options: object
) -> Survey:
    return write_build(plan(project, cohort, **options), prune=prune)


def lines(project: Project, cohort: str = "trial") -> list[str]:
    return project.paths.cohort_membership_csv(cohort).read_bytes().decode().splitlines(keepends=True)


def replicate(project: Project, draft: int, essay: int, evaluation: int) -> None:
    numbers = {"draft": draft, "essay": essay, "evaluation": evaluation}
    rows = [{"stage": stage, "replicates": str(number)} for stage, number in numbers.items()]
    write_csv(project.paths.replication_csv, rows)


def manifest(project: Project, cohort: str = "trial") -> dict[str, object]:
    record = json.loads(project.paths.cohort_manifest_json(cohort).read_bytes())
    assert isinstance(record, dict)
    return record


def contents(project: Project) -> dict[Path, bytes]:
    files = [path for path in project.data.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {path: path.read_bytes() for path in files}


def faults_of(
    project: Project, cohort: str | None = "trial", **options: object
) -> list[tuple[str, int | None, str]]:
    with pytest.raises(FaultyInputError) as caught:
        plan(project, cohort, **options)
    assert not project.paths.cohort_membership_csv(cohort or "x").exists()
    return [(Path(fault.where or "").name, fault.line, fault.what) for fault in caught.value.faults]


# What is written


def test_the_file_is_the_oracles_and_a_run_accepts_it(project: Project) -> None:
    replicate(project, 2, 1, 3)
    found = build(project)
    expected = Experiment(
        PAIRS, ["plain", "tagged"], MODELS, ["rewrite", "keep"], ["novelty", "rigour"], MODELS, (2, 1, 3)
    )
    rows = list(csv.reader(lines(project)))
    assert rows[
        0
    ] == "stage,gen_id,cohort_id,parent_gen_id,combo_id,template_id,llm_model_id,replicate".split(",")
    assert [(r[0], r[1], r[3], r[4], r[5], r[6], int(r[7])) for r in rows[1:]] == list(expected.rows("trial"))
    assert {row[2] for row in rows[1:]} == {"trial"}
    membership = open_membership(open_project(None, project.data), "trial", strict=True)
    assert len(membership) == len(rows) - 1 == sum(found.rows.values())
    assert found.calls_of(ESSAY) == found.copies[ESSAY] == found.rows[ESSAY] // 2


def test_more_replicates_keep_every_byte_of_what_is_there(project: Project) -> None:
    build(project)
    before = lines(project)
    replicate(project, 2, 3, 4)
    found = build(project)
    after = lines(project)
    assert set(before) < set(after)
    assert [line for line in after if line in set(before)] == before
    assert sum(found.growth.kept.values()) == len(before) - 1
    assert sum(found.growth.new.values()) == len(after) - len(before)


def test_foreign_columns_quotes_and_line_ends_stay(project: Project) -> None:
    build(project)
    path = project.paths.cohort_membership_csv("trial")
    with path.open(newline="") as stream:
        rows = list(csv.reader(stream))
    with path.open("w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.writer(stream, lineterminator="\r\n", quoting=csv.QUOTE_ALL)
        writer.writerow(["note", *rows[0]])
        writer.writerows([f'two\nlines, "quoted" ü {n}', *row] for n, row in enumerate(rows[1:]))
    before = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    header, _, body = before.partition(b"\r\n")
    replicate(project, 1, 1, 2)
    build(project)
    with path.open(newline="", encoding="utf-8") as stream:
        after = list(csv.DictReader(stream))
    assert len(after) == len(rows) - 1 + 96  # each evaluation once more
    assert sum(row["note"] == "" for row in after) == 96
    for record in body.split(b'"two\n')[1:]:
        assert b'"two\n' + record in path.read_bytes()
    assert all(row["replicate"] in ("1", "2") for row in after)
    assert header.replace(b'"', b"") in path.read_bytes()


def test_a_file_without_a_column_for_replicates_gets_one_only_when_it_is_needed(project: Project) -> None:
    build(project)
    path = project.paths.cohort_membership_csv("trial")
    short = "".join(line.rpartition(",")[0] + "\n" for line in lines(project))
    path.write_text(short)
    assert not build(project).changed
    assert path.read_text() == short
    replicate(project, 1, 1, 2)
    build(project)
    assert {row["replicate"] for row in csv.DictReader(lines(project))} == {"1", "2"}
    assert (
        len(open_membership(open_project(None, project.data), "trial", strict=True))
        == len(lines(project)) - 1
    )


def test_building_again_writes_nothing_when_nothing_has_changed(project: Project) -> None:
    assert build(project).changed
    path = project.paths.cohort_membership_csv("trial")
    stamps = [file.stat().st_mtime_ns for file in (path, project.paths.cohort_manifest_json("trial"))]
    inode = path.stat().st_ino
    assert not build(project).changed
    assert path.stat().st_ino == inode
    assert [file.stat().st_mtime_ns for file in (path, project.paths.cohort_manifest_json("trial"))] == stamps


def test_rows_that_would_disappear_need_to_be_pruned(project: Project) -> None:
    replicate(project, 1, 1, 2)
    build(project)
    before = lines(project)
    register = project.paths.combo_mappings_csv.read_bytes()
    replicate(project, 1, 1, 1)
    with pytest.raises(UsageError) as caught:
        build(project)
    message = str(caught.value)
    gone = [line for line in before if line.startswith("evaluation") and line.endswith(",2\n")]
    assert f"{len(gone)} rows would disappear, nothing was written" in message
    assert all(line.strip() in message for line in gone[:50])
    assert f"and {len(gone) - 50} more" in message
    assert "--prune" in message
    assert lines(project) == before
    assert project.paths.combo_mappings_csv.read_bytes() == register
    assert list(project.paths.cohort_dir("trial").glob(".*")) == []
    assert len(survey(plan(project)).growth.gone) == len(gone)
    build(project, prune=True)
    assert lines(project) == [line for line in before if line not in gone]


def test_what_a_build_was_told_once_it_remembers(project: Project) -> None:
    build(project, k_max=3, level="sentence")
    before = lines(project)
    assert not build(project).changed
    assert lines(project) == before
    assert manifest(project)["k_max"] == 3
    with pytest.raises(UsageError, match="would disappear"):
        build(project, k_max=2)


def test_without_a_name_the_id_is_that_of_the_axes(project: Project) -> None:
    first = plan(project, None)
    write_build(first)
    assert first.cohort_id == plan(project, None).cohort_id
    assert project.paths.cohort_membership_csv(first.cohort_id).exists()
    replicate(project, 2, 1, 1)
    assert plan(project, None).cohort_id != first.cohort_id


def test_a_dry_run_writes_nothing(project: Project) -> None:
    before = sorted(project.root.rglob("*"))
    found = survey(plan(project))
    assert sorted(project.root.rglob("*")) == before
    assert {stage: found.rows[stage] for stage in STAGES} == {DRAFT: 12, ESSAY: 24, EVALUATION: 96}
    assert (sum(found.calls.values()), sum(found.copies.values()), found.new_combos) == (120, 12, 3)


# Combos


def test_new_combos_are_appended_once_and_what_stands_there_stays(project: Project) -> None:
    path = project.paths.combo_mappings_csv
    old = 'k_max,combo_id,remark,concept_id,description_level,version,created_at\n1,mine,"a, b",moss,article,v0,once'
    write(path, old)
    assert build(project).new_combos == 3
    text = path.read_text()
    assert text.startswith(old + "\n")
    records = list(csv.DictReader(text.splitlines()))
    assert [row["combo_id"] for row in records] == ["mine", *(pair for pair in PAIRS for _ in range(2))]
    assert {(row["version"], row["description_level"], row["k_max"]) for row in records[1:]} == {
        ("v1", "paragraph", "2")
    }
    assert build(project).new_combos == 0
    assert path.read_text() == text
    replicate(project, 2, 1, 1)
    build(project)
    assert path.read_text() == text


def test_a_fresh_register_has_the_contracts_columns(project: Project) -> None:
    build(project)
    header = project.paths.combo_mappings_csv.read_text().splitlines()[0]
    assert header == "combo_id,version,concept_id,description_level,k_max,created_at"


def test_selected_combos_are_used_in_their_order(project: Project) -> None:
    columns = ("combo_id", "concept_id", "description_level", "k_max")
    chosen = [
        ("mine", "moss", "sentence", "2"),
        ("mine", "kites", "sentence", "2"),
        (PAIRS[0], "kites", "paragraph", "2"),
        (PAIRS[0], "locks", "paragraph", "2"),
    ]
    write_csv(project.paths.selected_combos_csv, [dict(zip(columns, row, strict=True)) for row in chosen])
    planned = plan(project, k_max=3)
    assert [combo.combo_id for combo in planned.axes.combos] == ["mine", PAIRS[0]]
    assert any("--k-max and --level do not apply" in note for note in planned.notes)
    write_build(planned)
    registered = [
        row["combo_id"] for row in csv.DictReader(project.paths.combo_mappings_csv.read_text().splitlines())
    ]
    assert registered == ["mine", "mine", PAIRS[0], PAIRS[0]]


def test_a_combo_that_stands_there_with_other_concepts_is_an_error(project: Project) -> None:
    columns = ("combo_id", "concept_id", "description_level", "k_max")
    one = [dict(zip(columns, ("mine", name, "paragraph", "2"), strict=True)) for name in ("moss", "kites")]
    write_csv(project.paths.selected_combos_csv, one)
    write_csv(project.paths.combo_mappings_csv, [{**row, "concept_id": "locks"} for row in one])
    found = faults_of(project)
    assert [(where, "combo mine stands there with locks" in what) for where, _, what in found] == [
        ("combo_mappings.csv", True)
    ]
    project.paths.selected_combos_csv.unlink()
    forged = [
        dict(zip(columns, (PAIRS[0], name, "paragraph", "2"), strict=True)) for name in ("moss", "locks")
    ]
    write_csv(project.paths.combo_mappings_csv, forged)
    found = faults_of(project)
    assert {where for where, _, _ in found} == {"combo_mappings.csv"}
    assert any("other concepts than its id was made from" in what for _, _, what in found)


# Faults


def test_all_faults_of_a_catalogue_come_at_once_with_file_and_line(project: Project) -> None:
    raw = project.paths.catalog_dir
    (raw / "templates/draft/plain.txt").unlink()
    write(raw / "templates/essay/rewrite.txt", "line\n{{ draft_blok }}")
    (raw / "concepts/descriptions-paragraph/locks.txt").unlink()
    write(
        raw / "evaluation_templates.csv",
        "template_id,parser,generator,active\n"
        "novelty,in_last_line,llm,True\nnovelty,in_last_line,llm,True\n"
        "rigour,guess,llm,True\nodd,complex,lmm,True\nmaybe,complex,llm,perhaps\nnone,,llm,True\n",
    )
    write(project.paths.cohort_spec_toml("trial"), 'k_max = 2\n[draft]\nmodels = ["alpha", "gamma"]\n')
    found = {(where, line) for where, line, _ in faults_of(project)}
    assert found == {
        ("draft_templates.csv", 2),  # plain: listed and missing
        ("rewrite.txt", 2),  # an undefined name
        ("concepts_metadata.csv", 3),  # locks: no description
        ("evaluation_templates.csv", 3),  # novelty stands twice
        ("evaluation_templates.csv", 4),  # an unknown parser
        ("evaluation_templates.csv", 5),  # neither llm nor copy
        ("evaluation_templates.csv", 6),  # active is no boolean
        ("evaluation_templates.csv", 7),  # an evaluation without a parser
        ("cohort.toml", 3),  # an unknown model
    }


def test_two_tasks_with_one_id_are_a_fault_with_file_and_line(project: Project) -> None:
    raw = project.paths.catalog_dir
    write(raw / "draft_templates.csv", "template_id\na\na__b\n")
    write(raw / "llm_models.csv", "id,model\nb__c,x\nc,y\n")
    for name in ("a", "a__b"):
        write(raw / f"templates/draft/{name}.txt", "Write.")
    found = faults_of(project)
    assert ("draft_templates.csv", 3) in {(where, line) for where, line, _ in found}


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "-rf", "a\nb", "x" * 129, "ｆｕｌｌ"])
def test_a_name_that_is_no_directory_name_is_refused(project: Project, name: str) -> None:
    before = sorted(project.root.parent.rglob("*"))
    with pytest.raises(UsageError):
        plan(project, name)
    assert sorted(project.root.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("stated", "options"),
    [
        ("", {"essays": Path("list.txt")}),
        ("", {"drafts": Path("list.txt")}),
        ("k_max = 2", {"k_max": 3}),
        ('level = "sentence"', {"level": "article"}),
    ],
)
def test_a_flag_does_not_argue_with_the_specification(
    project: Project, stated: str, options: dict[str, Any]
) -> None:
    write(project.paths.cohort_spec_toml("trial"), stated)
    with pytest.raises(UsageError, match="specification states"):
        plan(project, **options)


def test_a_specification_with_a_table_beside_it(project: Project) -> None:
    write(project.paths.cohort_spec_toml("trial"), 'k_max = 3\n[[couple]]\ncsv = "pairs.csv"\n')
    beside = project.paths.cohort_dir("trial") / "pairs.csv"
    write(beside, "draft_template,essay_template\nplain,rewrite\ntagged,keep\n")
    build(project)
    drafts = {
        row["gen_id"]: row["template_id"] for row in csv.DictReader(lines(project)) if row["stage"] == "draft"
    }
    pairs = {
        (drafts[row["parent_gen_id"]], row["template_id"])
        for row in csv.DictReader(lines(project))
        if row["stage"] == "essay"
    }
    assert pairs == {("plain", "rewrite"), ("tagged", "keep")}
    files = manifest(project)["catalogue"]
    assert isinstance(files, dict)
    assert files["cohorts/trial/pairs.csv"] == file_digest(beside.read_bytes())
    write(project.paths.cohort_spec_toml("trial"), "k_max = 3\n[[couple]\n")
    with pytest.raises(FaultyInputError, match="not valid TOML"):
        plan(project)


# The manifest


def test_the_manifest_says_what_the_membership_was_made_from(project: Project) -> None:
    build(project)
    record = manifest(project)
    template = project.paths.template_file("draft", "plain")
    assert record["cohort_id"] == "trial"
    assert record["rows"] == {"draft": 12, "essay": 24, "evaluation": 96}
    assert record["axes"]["combos"] == {  # type: ignore[index]
        "all_of": list(CONCEPTS),
        "level": "paragraph",
        "k_max": 2,
        "number": 3,
    }
    templates, files = record["templates"], record["catalogue"]
    assert isinstance(templates, dict)
    assert isinstance(files, dict)
    digest = file_digest(template.read_bytes())
    assert templates["draft/plain"] == {"sha256": digest, "first_sha256": digest}
    assert "essay/keep" not in templates  # a copy has no template
    assert set(files) >= {"1_raw/llm_models.csv", "1_raw/concepts/descriptions-paragraph/moss.txt"}
    write(template, "Another text.")
    build(project)
    templates = manifest(project)["templates"]
    assert isinstance(templates, dict)
    assert templates["draft/plain"] == {"sha256": file_digest(b"Another text."), "first_sha256": digest}


def test_a_manifest_of_another_tool_is_no_obstacle(project: Project) -> None:
    for content in (
        b"{",
        b"[]",
        b'{"format": 7}',
        b'{"format": 1, "given": 3, "templates": [1], "k_max": "x"}',
    ):
        project.paths.cohort_dir("trial").mkdir(parents=True, exist_ok=True)
        project.paths.cohort_manifest_json("trial").write_bytes(content)
        plan(project)


# All or nothing


def test_a_membership_that_cannot_be_understood_is_not_replaced(project: Project) -> None:
    path = project.paths.cohort_membership_csv("trial")
    for text in ("name\nx\n", "stage,gen_id\ndraft\n", "stage,gen_id\ndraft,\xff\n"):
        write(path, "")
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(MembershipError, match="move it away"):
            build(project)
        assert path.read_bytes() == text.encode("latin-1")


@pytest.mark.parametrize(
    "name", ["cohorts", "cohorts/trial", "cohorts/trial/membership.csv", "combo_mappings.csv"]
)
def test_links_are_refused_and_their_targets_untouched(project: Project, tmp_path: Path, name: str) -> None:
    target = tmp_path / "target"
    link = project.data / name
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.suffix:
        write(target, "kept")
    else:
        target.mkdir()
    link.symlink_to(target)
    with pytest.raises(StoreError, match="symbolic link"):
        build(project)
    assert target.read_text() == "kept" if link.suffix else list(target.iterdir()) == []


def test_a_disk_that_refuses_leaves_everything_as_it_was(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(project)
    replicate(project, 2, 1, 1)
    project.paths.combo_mappings_csv.unlink()  # so that each of the three files would be written
    before = contents(project)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        build(project)
    assert contents(project) == before


def test_what_is_made_is_the_owners_alone_and_an_old_mode_stays(project: Project) -> None:
    previous = os.umask(0)
    try:
        build(project)
        path = project.paths.cohort_membership_csv("trial")
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700
        path.chmod(0o644)
        replicate(project, 2, 1, 1)
        build(project)
        assert path.stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(previous)


def test_two_builds_take_turns(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohorts, "LOCK_PATIENCE_S", 0.2)
    build(project)
    lock = FileLock(project.paths.build_lock_path)
    assert lock.acquire({"pid": 1})
    replicate(project, 2, 1, 1)
    with pytest.raises(LockedError, match="another build"):
        build(project)
    monkeypatch.setattr(cohorts, "LOCK_PATIENCE_S", 10.0)
    threading.Timer(0.2, lock.release).start()
    assert build(project).changed


def test_a_reader_sees_the_old_file_or_the_new_one(project: Project) -> None:
    path = project.paths.cohort_membership_csv("trial")
    build(project)
    sizes = {len(lines(project))}
    replicate(project, 2, 2, 2)
    sizes.add(sum(survey(plan(project)).rows.values()) + 1)
    seen: set[int] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.add(path.read_bytes().count(b"\n"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    build(project)
    time.sleep(0.01)
    done.set()
    watcher.join()
    assert seen <= sizes


# Scale


def test_a_hundred_thousand_rows_take_seconds_and_little_memory(project: Project) -> None:
    """A tenth of the planned million, at ten times the allowed rate: 30 s and 1 GB for a million."""
    replicate(project, 20, 10, 10)
    code = (
        "import resource, sys, time\n"
        "from pathlib import Path\n"
        "from genworker.project.build import BuildOptions, plan_build, write_build\n"
        "from genworker.project.open import open_project\n"
        "planned = plan_build(open_project(None, Path('data')), BuildOptions('large'))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF)\n"
        "found = write_build(planned)\n"
        "after = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(sum(found.rows.values()), after.ru_utime - before.ru_utime, (after.ru_maxrss - before.ru_maxrss) / 1024)\n"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    rows, seconds, megabytes = map(float, output.split())
    assert rows == 12 * 20 * (1 + 2 * 10 * (1 + 4 * 10))
    assert seconds < 30 * rows / 1_000_000
    assert megabytes < 200
