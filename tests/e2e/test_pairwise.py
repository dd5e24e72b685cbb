"""Judges that compare two essays, from cohort.toml to the report's tables, through the CLI."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from genworker import load_generation
from genworker.core.ids import gen_id, pair_task_id
from genworker.core.stages import Stage
from support.project import Project, write, write_catalog, write_csv

ASKS = "Which is better? A:\n{{ response_a }}\nB:\n{{ response_b }}\nEnd with WINNER: A, B or tie.\n"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    write_catalog(project.data)
    write(project.paths.templates_csv("draft"), "template_id\nplain\ntagged\n")
    write(
        project.paths.templates_csv("evaluation"), "template_id,parser\nnovelty,in_last_line\nbetter,choice\n"
    )
    write(project.paths.template_file("evaluation", "better"), ASKS)
    project.use_script()
    return project


def specify(project: Project, pairs: str, cohort: str = "trial", more: str = "") -> None:
    text = f'k_max = 3\nevaluation = {{ models = ["alpha"] }}\n{more}\n{pairs}\n'
    write(project.paths.cohort_spec_toml(cohort), text)


def answer(project: Project, *arguments: str, code: int = 0) -> Any:
    done = project.run(*arguments, "--json")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def rows(project: Project, cohort: str = "trial") -> list[dict[str, str]]:
    return list(csv.DictReader(project.paths.cohort_membership_csv(cohort).read_text().splitlines()))


def pairs_of(project: Project) -> list[tuple[str, str]]:
    found = (row for row in rows(project) if row["template_id"] == "better")
    return [(row["parent_gen_id"], row["second_parent_gen_id"]) for row in found]


def table(project: Project, name: str) -> list[dict[str, str]]:
    path = project.paths.cohort_reports_dir("trial") / f"{name}.csv"
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def test_pairs_are_built_run_shown_reported_and_exported(project: Project) -> None:
    specify(project, '[pairs]\nsame = ["combo"]')
    built = project.run("cohort", "build", "trial")
    assert built.returncode == 0, built.stderr
    assert "all, of the same combo; both orders" in built.stdout
    essays = [row["gen_id"] for row in rows(project) if row["stage"] == "essay"]
    assert len(essays) == 8
    pairs = pairs_of(project)
    assert len(pairs) == len(set(pairs)) == 8 * 7  # every pair, in both orders
    assert {tuple(reversed(pair)) for pair in pairs} == set(pairs)
    row = next(row for row in rows(project) if row["template_id"] == "better")
    task = pair_task_id(row["parent_gen_id"], row["second_parent_gen_id"], "better", "alpha")
    assert row["gen_id"] == gen_id(Stage.EVALUATION, task, "trial")

    planned = answer(project, "plan", "trial")
    assert planned["calls"] == 4 + 4 + 8 + 56
    # In the first run the essays are made; what compares them waits for both.
    ran = answer(project, "run", "trial", "-q")
    assert ran["calls"] == 72
    assert answer(project, "plan", "trial")["calls"] == 0
    assert answer(project, "verify", "trial")["findings"] == []
    made = load_generation(project.paths.gens_root, "evaluation", row["gen_id"])
    texts = [
        load_generation(project.paths.gens_root, "essay", row[name])["parsed_text"]
        for name in ("parent_gen_id", "second_parent_gen_id")
    ]
    assert made["prompt_text"].startswith(f"Which is better? A:\n{texts[0]}\nB:\n{texts[1]}\n")
    assert made["metadata"]["second_parent_gen_id"] == row["second_parent_gen_id"]
    assert made["parsed_text"] in ("A", "B", "tie")

    shown = answer(project, "show", row["gen_id"])
    assert [one["gen_id"] for one in shown["ancestors"] if one["stage"] == "essay"] == [
        row["parent_gen_id"],
        row["second_parent_gen_id"],
    ]
    child = next(c for c in answer(project, "show", essays[0])["children"] if c.get("against"))
    assert child["choice"] in ("won", "lost", "tie")

    reported = answer(project, "report", "trial")
    assert reported["comparisons"]["planned"] == reported["comparisons"]["chosen"] == 56
    assert reported["evaluations"] == {"planned": 8, "scored": 8}
    compared = table(project, "comparisons")
    assert [(one["first_gen_id"], one["second_gen_id"]) for one in compared] == pairs
    words = {"A": "first", "B": "second", "tie": "tie"}
    assert compared[0]["choice"] == words[made["parsed_text"]]
    ranking = table(project, "pair_ranking")
    essays_ranked = [one for one in ranking if one["kind"] == "essay"]
    assert {one["item"] for one in essays_ranked} == set(essays)
    worths = [float(one["worth"]) for one in essays_ranked]
    assert worths == sorted(worths, reverse=True)
    assert all(
        float(one["ci95_low"]) < float(one["worth"]) < float(one["ci95_high"]) for one in essays_ranked
    )
    assert {one["item"] for one in ranking if one["kind"] == "draft_template"} == {"plain", "tagged"}
    (bias,) = table(project, "position_bias")
    assert (bias["evaluation_template"], bias["pairs_in_both_orders"]) == ("better", "28")
    assert not [one for one in table(project, "aggregated_scores") if one["evaluation_template"] == "better"]
    page = (project.paths.cohort_reports_dir("trial") / "report.html").read_text(encoding="utf-8")
    assert "Compared two by two" in page
    assert "Position bias" in page
    assert essays_ranked[0]["item"] in page

    exported = project.run("export", "trial", "--stage", "evaluation")
    records = [json.loads(line) for line in exported.stdout.splitlines()]
    pairwise = [one for one in records if one["second_parent_gen_id"]]
    assert len(pairwise) == 56
    assert all(one["score"] is None and one["choice"] and one["state"] == "done" for one in pairwise)


def test_a_judge_waits_for_both_texts_and_is_blocked_when_one_fails(project: Project) -> None:
    write(project.paths.templates_csv("draft"), "template_id,parser\nplain,\ntagged,essay_block\n")
    specify(project, "[pairs]")  # the fake writes no tags: every draft of `tagged` fails
    assert project.run("cohort", "build", "trial").returncode == 0
    ran = answer(project, "run", "trial", "-q", code=1)
    good = {row["gen_id"] for row in rows(project) if row["stage"] == "essay" and load_done(project, row)}
    assert len(good) == 4
    blocked = [pair for pair in pairs_of(project) if not set(pair) <= good]
    assert ran["stages"]["evaluation"]["blocked"] == len(blocked) + 4
    planned = answer(project, "plan", "trial")
    assert planned["calls"] == 0
    assert planned["stages"]["evaluation"]["blocked"] == len(blocked) + 4


def load_done(project: Project, row: dict[str, str]) -> bool:
    return project.paths.parsed_path(Stage(row["stage"]), row["gen_id"]).exists()


def test_a_sample_grows_and_keeps_its_pairs(project: Project) -> None:
    specify(project, "[pairs]\nper_essay = 3", more='draft = { templates = ["plain"] }')
    assert project.run("cohort", "build", "trial").returncode == 0
    before = pairs_of(project)
    essays = {row["gen_id"] for row in rows(project) if row["stage"] == "essay"}
    for essay in essays:
        assert sum(essay in pair for pair in before) >= 2 * 3 - 2  # four essays have three pairs each
    specify(project, "[pairs]\nper_essay = 3")
    grown = project.run("cohort", "build", "trial")
    assert grown.returncode == 0, grown.stderr
    after = pairs_of(project)
    assert set(before) < set(after)
    assert any(len({*pair} & essays) == 1 for pair in after)  # new texts are compared with old ones
    assert "is as it was" in project.run("cohort", "build", "trial").stdout


def test_a_baseline_is_compared_with_every_other_text_of_its_combo(project: Project) -> None:
    specify(project, '[pairs]\nsame = ["combo"]\nbaseline = { essay_template = "keep" }')
    assert project.run("cohort", "build", "trial").returncode == 0
    essays = {row["gen_id"]: row["template_id"] for row in rows(project) if row["stage"] == "essay"}
    pairs = pairs_of(project)
    assert len(pairs) == 4 * 4 * 2
    assert all({essays[one], essays[two]} == {"keep", "rewrite"} for one, two in pairs)


def test_a_file_that_has_lost_the_column_is_refused_by_name(project: Project) -> None:
    specify(project, "[pairs]\nper_essay = 2")
    assert project.run("cohort", "build", "trial").returncode == 0
    kept = [name for name in rows(project)[0] if name != "second_parent_gen_id"]
    write_csv(project.membership, [{name: row[name] for name in kept} for row in rows(project)])
    refused = project.run("run", "trial", "-q")
    assert refused.returncode == 2
    assert "compares two texts, and the row names one" in refused.stderr


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ("pairs = 3", "pairs is not a table"),
        ("[pairs]\nper_essay = 1", "use a whole number from 2"),
        ("[pairs]\nper_esay = 3", "unknown key 'per_esay'"),
        ('[pairs]\nsame = ["combos"]', "unknown axis 'combos'"),
        ('[pairs]\nbaseline = { essay_template = "kept" }', "unknown essay_template 'kept'"),
        ('[pairs]\nbaseline = { combo = ["x"] }', "unknown combo"),
        ("[pairs]\nbaseline = {}", "baseline names no axis"),
        ('[pairs]\nper_essay = 2\nbaseline = { essay_template = "keep" }', "both given"),
    ],
)
def test_a_wrong_design_is_refused_with_its_line(project: Project, pairs: str, words: str) -> None:
    specify(project, pairs)
    refused = project.run("cohort", "build", "trial")
    assert refused.returncode == 2
    assert words in refused.stderr
    assert "cohort.toml" in refused.stderr


@pytest.mark.parametrize(
    ("text", "parser", "words"),
    [
        ("Only {{ response_a }}", "choice", "response_b is missing"),
        ("{{ response }} {{ response_a }}", "choice", "uses both 'response' and 'response_a'"),
        ("{{ response }}", "choice", "does not show two texts"),
        (ASKS, "in_last_line", "its parser reads no choice"),
    ],
)
def test_a_template_that_does_not_agree_with_its_parser_is_refused(
    project: Project, text: str, parser: str, words: str
) -> None:
    specify(project, "[pairs]" if parser == "choice" else "")
    register = f"template_id,parser\nnovelty,in_last_line\nbetter,{parser}\n"
    write(project.paths.templates_csv("evaluation"), register)
    write(project.paths.template_file("evaluation", "better"), text)
    refused = project.run("cohort", "build", "trial")
    assert refused.returncode == 2
    assert words in refused.stderr


def test_without_a_design_no_pair_is_made_and_that_is_said(project: Project) -> None:
    built = project.run("cohort", "build", "trial", "--k-max", "3")
    assert "Left out: evaluation template better, which compares two texts" in built.stderr
    assert not any(row["template_id"] == "better" for row in rows(project))
    specify(project, "", more="")
    text = 'evaluation = { templates = ["better"], models = ["alpha"] }\nk_max = 3\n'
    write(project.paths.cohort_spec_toml("named"), text)
    refused = project.run("cohort", "build", "named")
    assert refused.returncode == 2
    assert "compares two texts, and nothing says which" in refused.stderr


def test_reparse_reads_the_choices_anew(project: Project) -> None:
    specify(project, "[pairs]\nper_essay = 2")
    assert project.run("cohort", "build", "trial").returncode == 0
    assert project.run("run", "trial", "-q").returncode == 0
    row = next(row for row in rows(project) if row["template_id"] == "better")
    place = project.paths.generation_dir(Stage.EVALUATION, row["gen_id"])
    raw = (place / "raw.txt").read_text()
    (place / "raw.txt").write_text(raw.rsplit("WINNER", 1)[0] + "WINNER: nobody knows\n")
    (change,) = answer(project, "reparse", "trial")["changes"]
    assert (change["gen_id"], change["new"]) == (row["gen_id"], None)
    reported = answer(project, "report", "trial")
    assert reported["comparisons"]["chosen"] == reported["comparisons"]["planned"] - 1


def test_a_crew_compares_texts_of_different_workers(project: Project) -> None:
    specify(project, '[pairs]\nsame = ["combo"]')
    assert project.run("cohort", "build", "trial").returncode == 0
    ran = answer(project, "run", "trial", "-q", "--engine", "local", "--workers", "2")
    assert ran["calls"] == 72
    assert answer(project, "plan", "trial")["calls"] == 0
    assert answer(project, "verify", "trial")["findings"] == []
