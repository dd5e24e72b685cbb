"""Stores as older tools leave them: adopted, never damaged, never paid for twice, and told alike everywhere."""

from __future__ import annotations

import asyncio
import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from genworker.api import read_report
from genworker.cli.plan import show_plan
from genworker.cli.status import cohort_record, open_look
from genworker.cli.verify import make_check
from genworker.errors import CatalogError, MembershipError
from genworker.project.adopt import adopt_cohort
from genworker.project.build import BuildOptions, plan_build, write_build
from genworker.project.freshness import find_stale
from genworker.project.open import Project, open_membership, open_project, plan_cohort
from genworker.run.engine import RunOptions, run_cohort
from genworker.run.reparse import reparse_cohort
from genworker.store import parts
from genworker.store.check import Severity, Step, repair
from genworker.store.reader import StoreReader
from genworker.store.reading import read_bytes
from support.older import COHORT, STATES, OlderStore, make_older_store

PLANNED = ("done", "truncated", "truncated-with-text", "free", "unparseable", "stub", "remnant")
"""What there is where a tool writes down the metadata of all that it plans."""


def make(root: Path, seed: int) -> OlderStore:
    """Wide memberships with even seeds, two columns with odd ones."""
    wide = seed % 2 == 0
    store = make_older_store(root, seed, wide=wide, states=STATES if wide else PLANNED)
    store.project.use_script()
    return store


def opened(store: OlderStore) -> Project:
    return open_project(store.project.config, store.project.data)


def adopted(store: OlderStore) -> OlderStore:
    if "llm_model_id" not in store.project.membership_of(COHORT).read_text().splitlines()[0]:
        result = adopt_cohort(opened(store), COHORT)
        missing = store.ids("missing") - {row["gen_id"] for row in store.rows if _has_metadata(store, row)}
        assert {left.listed.gen_id for left in result.left_out} >= missing
    return store


def _has_metadata(store: OlderStore, row: dict[str, str]) -> bool:
    return store.project.paths.metadata_path(row["stage"], row["gen_id"]).exists()


def calls_of_plan(store: OlderStore, capsys: pytest.CaptureFixture[str]) -> int:
    show_plan(opened(store), COHORT, RunOptions(), as_json=True)
    calls = json.loads(capsys.readouterr().out)["calls"]
    assert isinstance(calls, int)
    return calls


def calls_of_run(store: OlderStore) -> int:
    return run_cohort(opened(store), COHORT, RunOptions()).progress.calls


def expected_calls(store: OlderStore) -> int:
    """What is not there and can be made: neither it nor an ancestor is an answer that is no good."""
    listed = {row.gen_id for row in open_membership(opened(store), COHORT, strict=False).rows}
    usable: dict[str, bool] = {"": True}
    calls = 0
    for row in store.rows:
        state = store.states[row["gen_id"]]
        is_missing = state in ("missing", "stub", "remnant")
        usable[row["gen_id"]] = state in ("done", "free", "no-metadata") or (
            is_missing and usable[row["parent_gen_id"]]
        )
        if is_missing and usable[row["gen_id"]] and row["gen_id"] in listed:
            calls += row["template_id"] != "keep"
    return calls


@pytest.mark.parametrize("seed", range(16))
def test_a_plans_calls_are_the_runs_whatever_the_store_holds(
    tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    store = adopted(make(tmp_path, seed))
    before = store.texts()
    record = cohort_record(open_look(opened(store)), COHORT)
    assert record["done"] == len(store.ids("done"))
    failed = sum(stage["failed"].get("truncated", 0) for stage in record["stages"].values())
    assert failed == len(store.ids("truncated", "truncated-with-text"))
    reader = StoreReader(store.project.paths)
    for row in store.rows:
        assert reader.is_done(row["stage"], row["gen_id"]) == (store.states[row["gen_id"]] == "done")  # type: ignore[arg-type]
    planned = calls_of_plan(store, capsys)
    assert planned == expected_calls(store)
    assert calls_of_run(store) == planned
    assert calls_of_plan(store, capsys) == calls_of_run(store) == 0, "a second run pays for nothing"
    assert {name: text for name, text in store.texts().items() if name in before} == before


@pytest.mark.parametrize("seed", range(16))
def test_a_repair_is_never_worse(tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    store = adopted(make(tmp_path, seed))
    before, planned = store.texts(), calls_of_plan(store, capsys)
    check = make_check(opened(store), None)
    damaged = {finding.gen_id for finding in check.run() if finding.severity is Severity.DAMAGE}
    assert not damaged & store.ids(
        "done", "stub", "free", "truncated", "truncated-with-text", "unparseable", "remnant"
    )
    steps: list[Step] = []
    asyncio.run(repair(check, "20260101T000000Z-repair00", steps.append))
    assert all(step.done for step in steps), steps
    assert {name: store.texts()[name] for name in before} == before
    assert calls_of_plan(store, capsys) == planned
    again = make_check(opened(store), None)
    assert not [finding for finding in again.run() if finding.severity is Severity.DAMAGE]


@pytest.mark.parametrize("seed", range(1, 8, 2))
def test_an_adopted_membership_is_the_full_one(tmp_path: Path, seed: int) -> None:
    store = make(tmp_path, seed)
    path = store.project.membership_of(COHORT)
    old = path.read_bytes()
    store.project.paths.cohort_manifest_json(COHORT).write_text('{"combos": []}')
    result = adopt_cohort(opened(store), COHORT)
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    left_out = {left.listed.gen_id for left in result.left_out}
    assert [{**row, "llm_model_id": row["llm_model_id"]} for row in rows] == [
        row for row in store.rows if row["gen_id"] not in left_out
    ]
    assert result.kept is not None
    assert result.kept.read_bytes() == old
    assert result.unmade == []
    assert store.project.paths.cohort_manifest_json(COHORT).read_text() == '{"combos": []}'
    assert any("stays as it is" in note for note in result.notes)
    assert adopt_cohort(opened(store), COHORT).is_adopted_already
    assert reparse_cohort(opened(store), COHORT, dry_run=True).changes == [] or store.ids("free")
    # Nothing that was adopted is stale, until something changes.
    project = opened(store)
    plan = plan_cohort(project, open_membership(project, COHORT, strict=True))
    stale = find_stale(project, plan)
    assert stale is not None
    assert not stale.reasons
    for text in (store.project.data / "1_raw/concepts/descriptions-paragraph").iterdir():
        text.write_text("Something else.")
    project = opened(store)
    stale = find_stale(project, plan)
    assert stale is not None
    changed = {plan.membership.rows[index].gen_id for index in stale.reasons}
    assert changed >= {row["gen_id"] for row in store.rows if row["stage"] == "draft"} & store.ids("done")


def test_rows_that_cannot_be_completed_are_named_and_left_out(tmp_path: Path) -> None:
    store = make_older_store(tmp_path, 1, wide=False, states=("done",))
    store.project.use_script()
    gens = store.project.paths
    (gens.metadata_path("draft", "d0")).write_text("{")
    record = json.loads(gens.metadata_path("evaluation", "v1rewritenovelty1").read_text())
    del record["parent_gen_id"]
    gens.metadata_path("evaluation", "v1rewritenovelty1").write_text(json.dumps(record))
    shutil.rmtree(gens.generation_dir("evaluation", "v2keeprigour2"))
    with store.project.membership_of(COHORT).open("a") as stream:
        stream.write("poem,p1\ndraft,d1\ndraft,../d1\n")
    dry = adopt_cohort(opened(store), COHORT, dry_run=True)
    result = adopt_cohort(opened(store), COHORT)
    assert [left.reason for left in dry.left_out] == [left.reason for left in result.left_out]
    reasons = {left.listed.gen_id: left.reason for left in result.left_out}
    assert "no metadata.json that can be read" in reasons["d0"]
    assert "its combo is not known" in reasons["e0keep"]
    assert "name no parent" in reasons["v1rewritenovelty1"]
    assert "not in the store" in reasons["v2keeprigour2"]
    assert "is no stage" in reasons["p1"]
    assert reasons["d1"] == "it is listed twice"
    assert "path separator" in reasons["../d1"]
    assert open_membership(opened(store), COHORT, strict=True)


def test_a_concept_order_that_no_register_has_is_found_in_the_prompts(tmp_path: Path) -> None:
    store = make_older_store(tmp_path, 1, wide=False, states=("done",))
    store.project.use_script()
    store.project.paths.combo_mappings_csv.unlink()
    result = adopt_cohort(opened(store), COHORT)
    assert (result.unmade, result.new_combos) == ([], 3)
    project = opened(store)
    stale = find_stale(project, plan_cohort(project, open_membership(project, COHORT, strict=True)))
    assert stale is not None
    assert not stale.reasons
    assert not [finding for finding in make_check(project, None).run() if finding.kind.value == "stale"]


def test_other_commands_name_the_one_that_adopts(tmp_path: Path) -> None:
    store = make(tmp_path, 1)
    with pytest.raises(MembershipError, match=f"genworker cohort adopt {COHORT}"):
        open_membership(opened(store), COHORT, strict=True)


def test_faults_hinder_those_alone_whom_they_concern(tmp_path: Path) -> None:
    store = make(tmp_path, 0)
    raw = store.project.data / "1_raw"
    with (raw / "draft_templates.csv").open("a") as stream:
        stream.write("unused,Unused,,from_the_future,llm,True\n")
    assert open_membership(opened(store), COHORT, strict=True)
    path = store.project.membership_of("other")
    path.parent.mkdir()
    text = (
        store.project.membership_of(COHORT)
        .read_text()
        .replace(",plain,", ",unused,")
        .replace(COHORT, "other")
    )
    path.write_text(text)
    with pytest.raises(CatalogError, match="from_the_future"):
        open_membership(opened(store), "other", strict=True)
    path.write_bytes(b"\xff")
    (path.parent.parent / "aa").mkdir()
    (path.parent.parent / "aa" / "membership.csv").write_text("")
    done = store.project.run("status", "--json")
    records = {record["cohort"]: record for record in json.loads(done.stdout)["cohorts"]}
    assert done.returncode == 1
    assert "stages" in records[COHORT]
    assert "error" in records["aa"]
    assert "error" in records["other"]


BROKEN_REGISTERS = {
    "draft_templates.csv": {"drafts"},
    "essay_templates.csv": {"essays"},
    "evaluation_templates.csv": {COHORT},
    "concepts_metadata.csv": {"drafts"},
    "replication_config.csv": set(),
}


@pytest.mark.parametrize("content", [b"id\n1\n", b"\xff\xfe\n", b"", b'a,b,c\n"1,2\n', None])
@pytest.mark.parametrize("file", BROKEN_REGISTERS)
def test_a_register_that_cannot_be_read_hinders_those_alone_whom_it_concerns(
    tmp_path: Path, file: str, content: bytes | None
) -> None:
    store = make(tmp_path, 0)
    text = store.project.membership_of(COHORT).read_text().splitlines(keepends=True)
    for name, stages in (("drafts", ("draft",)), ("essays", ("essay",)), (COHORT, ("evaluation",))):
        path = store.project.membership_of(name)
        path.parent.mkdir(exist_ok=True)
        lines = [line for line in text[1:] if line.startswith(tuple(f"{stage}," for stage in stages))]
        path.write_text("".join([text[0], *lines]))
    for row in store.rows:  # so that no parent is missing
        directory = store.project.paths.generation_dir(row["stage"], row["gen_id"])
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "metadata.json").write_text("{}")
        (directory / "parsed.txt").write_text("7.0")
    register = store.project.data / "1_raw" / file
    register.unlink(missing_ok=True)
    if content is None:
        register.mkdir()
    else:
        register.write_bytes(content)
    project = opened(store)
    hindered = set()
    for name in ("drafts", "essays", COHORT):
        try:
            open_membership(project, name, strict=True)
        except CatalogError as error:
            hindered.add(name if file in str(error) else str(error))
        assert "stages" in cohort_record(open_look(project), name), "status shows what it can"
    assert hindered == BROKEN_REGISTERS[file]


def test_an_answer_that_is_too_short_is_kept_and_failed_until_less_is_demanded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_older_store(tmp_path, 2, wide=True, states=("missing",))
    script = store.project.config
    store.project.use_script()
    plain = script.read_text()
    script.write_text(plain + "[stages.draft]\nmin_lines = 1000\n")
    result = run_cohort(opened(store), COHORT, RunOptions())
    assert result.progress.calls == 3
    record = cohort_record(open_look(opened(store)), COHORT)
    assert record["stages"]["draft"]["failed"] == {"too_short": 3}
    assert calls_of_plan(store, capsys) == 0
    script.write_text(plain)
    record = cohort_record(open_look(opened(store)), COHORT)
    assert (record["stages"]["draft"]["failed"], record["stages"]["draft"]["unparsed"]) == ({}, 3)
    planned = calls_of_plan(store, capsys)
    assert planned == 3 + 6 * 4, "the drafts are read again for nothing; their descendants can be made"
    assert calls_of_run(store) == planned


def test_a_build_neither_overwrites_an_older_manifest_nor_adds_to_two_columns(tmp_path: Path) -> None:
    store = make(tmp_path, 0)
    manifest = store.project.paths.cohort_manifest_json("fresh")
    manifest.parent.mkdir()
    manifest.write_text('{"combos": []}')
    older = store.project.paths.cohort_older_spec("fresh")
    older.parent.mkdir()
    older.write_text("axes: {}\n")
    plan = plan_build(opened(store), BuildOptions("fresh"))
    assert any("import-spec fresh" in note for note in plan.notes)
    for _ in range(2):
        found = write_build(plan_build(opened(store), BuildOptions("fresh")))
    assert (manifest.parent / "manifest.older.json").read_text() == '{"combos": []}'
    assert found.older_manifest is None, "the second time it is genworker's own"
    assert json.loads(manifest.read_text())["cohort_id"] == "fresh"
    path = store.project.membership_of("narrow")
    path.parent.mkdir()
    path.write_text("stage,gen_id\n")
    with pytest.raises(MembershipError, match="genworker cohort adopt narrow"):
        plan_build(opened(store), BuildOptions("narrow"))
    assert path.read_text() == "stage,gen_id\n"


@pytest.mark.parametrize("seed", range(4))
def test_status_reads_each_metadata_once_and_by_several_processes_the_same(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_older_store(tmp_path, seed, wide=True, states=("done", "done", "truncated-with-text"))
    store.project.use_script()
    project = opened(store)
    replaced = next(
        row for row in store.rows if row["gen_id"] in store.ids("done") and row["template_id"] != "keep"
    )
    there = project.paths.generation_dir(replaced["stage"], replaced["gen_id"])
    shutil.copytree(there, project.paths.aside_dir(replaced["stage"], replaced["gen_id"]) / "run-1")
    alone = cohort_record(open_look(project), COHORT)
    reads: Counter[str] = Counter()

    def count(path: str) -> bytes:
        reads[path] += 1
        return read_bytes(path)

    monkeypatch.setattr("genworker.store.reading.read_bytes", count)
    assert cohort_record(open_look(project), COHORT) == alone
    done = {f"/{name}/metadata.json" for name in store.ids("done")}
    twice = [path for path, times in reads.items() if times > 1 and path.endswith(tuple(done))]
    assert reads
    assert not twice
    monkeypatch.setattr(parts, "LEAST_ROWS", 2)
    monkeypatch.setattr(parts, "_processes", lambda: 3)
    assert cohort_record(open_look(project), COHORT) == alone


@pytest.mark.parametrize("seed", range(4))
def test_money_counts_the_answers_of_older_tools_and_no_plans(tmp_path: Path, seed: int) -> None:
    """However they spell cohort, model and usage; a stub is no call, and a copy asks nobody."""
    store = adopted(make(tmp_path, seed))
    told = cohort_record(open_look(opened(store)), COHORT)["money"]
    gens = store.project.paths.gens_root
    listed = {row.gen_id for row in open_membership(opened(store), COHORT, strict=False).rows}
    answered = [
        row
        for row in store.rows
        if row["template_id"] != "keep"
        and row["gen_id"] in listed
        and (gens / row["stage"] / row["gen_id"] / "raw.txt").exists()
        and (gens / row["stage"] / row["gen_id"] / "metadata.json").exists()
    ]
    assert told["calls"] == len(answered)
    assert told["unpriced"] == sorted({row["llm_model_id"] for row in answered})
    reading = read_report(StoreReader(store.project.paths), COHORT)
    assert reading.money.to_json() == told, "the report says the same"
    assert reading.money.total.tokens == 62 * len(answered)
