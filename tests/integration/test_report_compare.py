"""``report --against`` and ``--before``: what has changed between two sides, and nothing where nothing has."""

from __future__ import annotations

import csv
import json
import random
import shutil
from pathlib import Path

from support.pages import Page
from support.project import Project
from support.stores import StoreBuilder


def fill(
    store: StoreBuilder, shift: float, seed: int, essay: str = "letter", text: str = "An essay."
) -> None:
    draw = random.Random(seed)
    for combo in range(6):
        for template in ("plain", "rich"):
            draft = store.draft(template=template, combo=f"c{combo}", answer="A draft.")
            made = store.essay(draft, template=essay, answer=f"{text} Number {combo}.")
            for judge in ("j1", "j2"):
                mark = 5 + shift + (template == "rich") / 2 + draw.choice((-0.5, 0, 0.5))
                store.evaluation(made, model=judge, answer=f"SCORE: {mark}")
    store.write_membership()


def test_two_cohorts_are_compared_cell_by_cell(tmp_path: Path) -> None:
    fill(StoreBuilder(tmp_path / "data", "old"), 0.0, 1, text="An old <b>essay</b>.")
    fill(StoreBuilder(tmp_path / "data", "new"), 1.5, 2, text="A new essay.")
    project = Project(tmp_path)
    result = project.run("report", "new", "--against", "old", "--json", "--data-root", "data")
    assert result.returncode == 0, result.stderr
    record = json.loads(result.stdout)
    overall = record["comparison"]["overall"]
    assert overall["claimed"]
    assert 1.2 < overall["difference"] < 1.8
    assert overall["low"] < 1.5 < overall["high"]
    assert (overall["pairs"], record["comparison"]["cells"]) == (24, 24)
    with Path(project.root, record["files"]["comparison"]).open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 24
    assert all(float(row["after"]) - float(row["before"]) == float(row["difference"]) for row in rows)
    page = Page(Path(project.root, record["files"]["compare"]))
    assert (page.faults, page.dead_links()) == ([], [])
    text = " ".join(page.text.split())
    assert "above old on average over 6 combos; better in 24 of 24 pairs" in text
    assert "An old <b>essay</b>." in text
    said = project.run("report", "new", "--against", "old", "--data-root", "data").stdout
    assert "above old on average" in said


def test_nothing_is_claimed_of_two_cohorts_that_are_alike(tmp_path: Path) -> None:
    fill(StoreBuilder(tmp_path / "data", "old"), 0.0, 1)
    fill(StoreBuilder(tmp_path / "data", "new"), 0.0, 4)
    result = Project(tmp_path).run("report", "new", "--against", "old", "--json", "--data-root", "data")
    comparison = json.loads(result.stdout)["comparison"]
    assert not comparison["overall"]["claimed"]
    assert not any(finding["claimed"] for finding in comparison["levels"])


def test_a_template_by_another_name_is_what_the_two_differ_in(tmp_path: Path) -> None:
    fill(StoreBuilder(tmp_path / "data", "old"), 0.0, 1, essay="letter-v1")
    fill(StoreBuilder(tmp_path / "data", "new"), 1.0, 2, essay="letter-v2")
    for name, text in (
        ("letter-v1", "Write {{ draft_block }} plainly."),
        ("letter-v2", "Write {{ draft_block }} well."),
    ):
        path = tmp_path / "data" / "1_raw" / "templates" / "essay" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    project = Project(tmp_path)
    record = json.loads(
        project.run("report", "new", "--against", "old", "--json", "--data-root", "data").stdout
    )
    assert record["comparison"]["cells"] == 24
    page = Page(Path(project.root, record["files"]["compare"]))
    assert "essay template: letter-v1 → letter-v2" in page.text
    assert "Write {{ draft_block }} plainly." in page.text


def test_what_a_refresh_replaced_is_compared_with_what_is_there_now(tmp_path: Path) -> None:
    store = StoreBuilder(tmp_path / "data", "tides")
    fill(store, 0.0, 1, text="Before.")
    project = Project(tmp_path)
    refused = project.run("report", "tides", "--before", "--data-root", "data")
    assert (refused.returncode, "nothing of tides" in refused.stderr) == (2, True)
    for row in store.rows:
        if row["stage"] != "draft":
            directory = store.paths.generation_dir(row["stage"], row["gen_id"])
            kept = store.paths.aside_dir(row["stage"], row["gen_id"]) / "run-1"
            kept.parent.mkdir(parents=True)
            shutil.move(str(directory), kept)
    again = StoreBuilder(tmp_path / "data", "tides")
    fill(again, 1.0, 2, text="After.")
    result = project.run("report", "tides", "--before", "--json", "--data-root", "data")
    assert result.returncode == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["comparison"]["overall"]["claimed"]
    assert 0.6 < record["comparison"]["overall"]["difference"] < 1.4
    page = Page(Path(project.root, record["files"]["compare"]))
    assert "Before. Number" in page.text
    assert "After. Number" in page.text


def test_a_cohort_that_is_not_there_is_named(tmp_path: Path) -> None:
    fill(StoreBuilder(tmp_path / "data", "old"), 0.0, 1)
    result = Project(tmp_path).run("report", "old", "--against", "nope", "--data-root", "data")
    assert (result.returncode, "there is no cohort 'nope'" in result.stderr) == (2, True)
