"""``report`` and ``export`` as a user calls them."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from support.pages import Page
from support.project import COHORT, Project, make_project, write_catalog
from support.stores import StoreBuilder


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    for cohort in ("one", "two"):
        store = StoreBuilder(project.data, cohort)
        essay = store.essay(store.draft(answer="A draft \x1b]0;owned\x07 of \u202etides."))
        store.evaluation(essay, answer="SCORE: 6" if cohort == "one" else "SCORE: 9")
        store.evaluation(essay, replicate=2, answer="\x1b[2J no score")
        store.write_membership()
    return project


def test_a_run_cohort_reports_without_its_catalogue_keys_or_settings(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    project.use_script()
    assert project.run("run", COHORT).returncode == 0
    shutil.rmtree(project.paths.catalog_dir)
    project.config.unlink()
    before = project.tree()
    result = project.run("report", COHORT)
    assert result.returncode == 0, result.stderr
    assert "draft template: plain" in result.stdout
    assert "generation template" in result.stdout
    reports = project.paths.cohort_reports_dir(COHORT)
    names = {path.name for path in reports.iterdir()}
    assert names == {
        "aggregated_scores.csv",
        "generation_scores_pivot.csv",
        "evaluator_summary.csv",
        "template_model_summary.csv",
        "agreement.csv",
        "report.html",
    }
    assert all(f"{name}" in result.stderr for name in names)
    with (reports / "aggregated_scores.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == sum(row["stage"] == "evaluation" for row in project.rows())
    assert all(Path(project.root, row["evaluation_response_path"]).is_file() for row in rows)
    page = Page(reports / "report.html")
    assert (page.faults, page.dead_links()) == ([], [])
    assert project.tree() == before, "a report changes nothing in the store"


def test_the_pivot_stands_on_stdout_and_the_rest_on_stderr(project: Project) -> None:
    result = project.run("report", "one")
    assert result.returncode == 0
    lines = result.stdout.partition("\n\n")[2].partition("\n\n")[0].splitlines()
    assert lines[-1].split() == ["6.00", "(1/2)", "6.00"]
    assert {"draft template: d1", "generation model: m1", "evaluator 1: novelty by judge"} <= set(
        result.stdout.splitlines()
    )
    assert result.stderr.count("wrote ") == 6
    for path in project.paths.cohort_reports_dir("one").iterdir():
        assert not set("\x1b\x07\u202e") & set(path.read_text() + result.stdout + result.stderr)


def test_several_cohorts_report_together_in_a_place_of_their_own(project: Project) -> None:
    result = project.run("report", "one", "two", "--json")
    assert result.returncode == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["cohorts"] == ["one", "two"]
    assert record["evaluations"] == {"planned": 4, "scored": 2, "unparseable": 2}
    pivot = Path(project.root, record["files"]["generation_scores_pivot"])
    assert pivot.parent == project.root / "data" / "7_cross_experiment"
    with pivot.open() as stream:
        (row,) = csv.DictReader(stream)
    assert (row["novelty_judge"], row["novelty_judge_n"], row["novelty_judge_planned"]) == ("7.50", "2", "4")


def test_tables_alone_and_answers_parsed_again(project: Project) -> None:
    assert project.run("report", "one", "--tables-only").returncode == 0
    assert not (project.data / "cohorts/one/reports/report.html").exists()
    write_catalog(project.data)
    path = project.paths.templates_csv("evaluation")
    path.write_text(path.read_text().replace("in_last_line", '"regex:SCORE: ([0-5])"'))
    result = project.run("reparse", "one")
    assert result.returncode == 0, result.stderr
    assert "6.0 → no text  nothing in the last 200 lines matches" in result.stdout
    shown, _, done = result.stdout.partition("1 of 2 answers would change")
    assert "6.0 → no text" in shown, "what changes is shown before it is changed"
    assert "1 of 2 answers changed; no call was needed." in done
    assert "2 answers stay as they are: the catalogue does not know their template." in result.stdout
    record = json.loads(project.run("reparse", "one", "--dry-run", "--json").stdout)
    assert (record["dry_run"], record["changes"]) == (True, [])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["report", "nope"], "there is no cohort 'nope'"),
        (["report"], "name a cohort"),
        (["export", "../x"], "holds a path separator"),
        (["export", "one", "--format", "parquet"], "Parquet cannot be written to stdout"),
        (["export", "one", "-o", "/proc/nowhere/x.jsonl"], "cannot be written"),
    ],
)
def test_what_cannot_be_done_says_so(project: Project, arguments: list[str], says: str) -> None:
    result = project.run(*arguments)
    assert result.returncode == 2
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_an_export_goes_to_stdout_or_whole_to_a_file(project: Project) -> None:
    piped = project.run("export", "one")
    assert piped.returncode == 0, piped.stderr
    rows = [json.loads(line) for line in piped.stdout.splitlines()]
    assert [row["stage"] for row in rows] == ["draft", "essay", "evaluation", "evaluation"]
    assert rows[0]["raw"] == "A draft \x1b]0;owned\x07 of \u202etides.", "data, as it is"
    target = project.root / "out" / "one.jsonl"
    written = project.run("export", "one", "-o", str(target))
    assert (written.returncode, written.stdout) == (0, "")
    assert "wrote 4 rows" in written.stderr
    assert target.read_text() == piped.stdout
    evaluations = project.run("export", "one", "--stage", "evaluation")
    assert len(evaluations.stdout.splitlines()) == 2
    assert [path.name for path in target.parent.iterdir()] == ["one.jsonl"]


def test_a_failed_export_leaves_the_earlier_file(project: Project) -> None:
    target = project.root / "one.jsonl"
    target.write_text("earlier")
    with project.paths.cohort_membership_csv("one").open("a") as stream:
        stream.write("poem,x,one,,combo-1,d1,m1,1\n")
    result = project.run("export", "one", "-o", str(target))
    assert result.returncode == 2
    assert target.read_text() == "earlier"


def test_an_export_to_parquet(project: Project) -> None:
    duckdb = pytest.importorskip("duckdb")
    target = project.root / "one.parquet"
    result = project.run("export", "one", "-o", str(target))
    assert result.returncode == 0, result.stderr
    assert duckdb.sql(f"SELECT count(*), max(score) FROM '{target}'").fetchall() == [(4, 6.0)]
    assert not [path for path in project.root.iterdir() if path.name.startswith(".one")]
