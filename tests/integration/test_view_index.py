"""The view's index against the store itself: the same rows, the same answers, also while a run goes on."""

from __future__ import annotations

import csv
import io
import shutil
import sqlite3
from pathlib import Path
from random import Random

import pytest

from genworker.core.stages import Stage
from genworker.paths import Paths
from genworker.reports.export import generation_rows
from genworker.store.reader import StoreReader
from genworker.viewer.index import Index
from genworker.viewer.queries import Filter, FilterError, Queries, match_expression
from support.project import make_project
from support.stores import StoreBuilder

WORDS = "tide moss lantern kettle orchard signal engine".split()


def lay_out(root: Path, seed: int = 1) -> StoreBuilder:
    """A cohort with good answers, answers that are no good, and rows without any."""
    random = Random(seed)
    store = StoreBuilder(root / "data")
    for number in range(12):
        answer = " ".join(random.choices(WORDS, k=8)) if random.random() > 0.15 else None
        draft = store.draft(
            combo=f"combo-{number % 3}",
            template=f"d{number % 2}",
            model=f"m{number % 2}",
            replicate=number + 1,
            answer=answer,
        )
        for replicate in (1, 2):
            text = " ".join(random.choices(WORDS, k=12)) if answer and random.random() > 0.2 else None
            essay = store.essay(
                draft, replicate=replicate, answer=text, cost_usd=f"0.{random.randrange(1, 99):02d}"
            )
            for judge in ("j1", "j2"):
                verdict = random.choice(
                    [f"Because of the {random.choice(WORDS)}.\n\nSCORE: {random.randrange(11)}", "No."]
                )
                store.evaluation(essay, model=judge, answer=verdict if text else None)
    store.write_membership()
    return store


def open_index(paths: Paths) -> tuple[Index, Queries]:
    index = Index(paths)
    index.update()
    return index, Queries(index.reader(), "pilot")


@pytest.mark.parametrize("seed", range(4))
def test_the_index_says_what_the_export_says(seed: int, tmp_path: Path) -> None:
    store = lay_out(tmp_path, seed)
    _, queries = open_index(store.paths)
    rows = {(row.stage, row.gen_id): row for row in queries.each(Filter())}
    expected = list(generation_rows(StoreReader(store.paths), "pilot"))
    assert len(rows) == len(expected)
    for row in expected:
        found = rows[row.stage, row.gen_id]
        assert (found.state, found.score, found.cost, found.parent) == (
            row.state,
            row.score,
            row.cost_usd,
            row.parent_gen_id,
        )
        assert (found.template, found.model, found.combo) == (row.template_id, row.llm_model_id, row.combo_id)
        assert (found.draft_template, found.author) == (
            row.draft_template,
            row.generation_model or row.llm_model_id,
        )
        assert found.replicate == row.replicate


@pytest.mark.parametrize(
    "asked",
    [
        Filter(stage="essay"),
        Filter(state="done"),
        Filter(state="failed"),
        Filter(state="missing", stage="evaluation"),
        Filter(model="j1", min_score="5"),
        Filter(author="m1", stage="essay"),
        Filter(draft_template="d0", max_score="4"),
        Filter(min_cost="0.5"),
        Filter(replicate="2"),
        Filter(combo="combo-1"),
    ],
)
def test_a_filter_finds_what_a_walk_finds(asked: Filter, tmp_path: Path) -> None:
    store = lay_out(tmp_path)
    _, queries = open_index(store.paths)

    def fits(row: object) -> bool:
        value = {name: getattr(row, name) for name in row._fields}  # type: ignore[attr-defined]
        bad = value["state"] not in ("done", "missing", "blocked")
        return all(
            (
                not asked.stage or value["stage"] == asked.stage,
                not asked.state or (bad if asked.state == "failed" else value["state"] == asked.state),
                not asked.model or value["model"] == asked.model,
                not asked.author or value["author"] == asked.author,
                not asked.draft_template or value["draft_template"] == asked.draft_template,
                not asked.combo or value["combo"] == asked.combo,
                not asked.replicate or value["replicate"] == int(asked.replicate),
                not asked.min_score
                or (value["score"] is not None and value["score"] >= float(asked.min_score)),
                not asked.max_score
                or (value["score"] is not None and value["score"] <= float(asked.max_score)),
                not asked.min_cost or (value["cost"] is not None and value["cost"] >= float(asked.min_cost)),
            )
        )

    everything = list(queries.each(Filter()))
    wanted = [row.gen_id for row in everything if fits(row)]
    assert wanted
    found = queries.find(asked)
    assert [row.gen_id for row in queries.each(asked)] == wanted
    assert found.total == len(wanted)
    assert [row.gen_id for row in found.rows] == wanted[:100]


@pytest.mark.parametrize("words", ["tide", "tide moss", "lant*", "because"])
def test_words_are_found_in_texts_and_in_the_words_of_judges(words: str, tmp_path: Path) -> None:
    store = lay_out(tmp_path)
    _, queries = open_index(store.paths)
    reader = StoreReader(store.paths)
    wanted = set()
    for row in queries.each(Filter()):
        if row.state in ("missing", "blocked"):
            continue
        generation = reader.generation(Stage(row.stage), row.gen_id)
        text = (
            generation.raw_text
            if row.stage == "evaluation"
            else generation.parsed_text or generation.raw_text
        )
        has = text.lower().replace(".", " ").split()
        if all(
            any(one == w or (w[-1] == "*" and one.startswith(w[:-1])) for one in has) for w in words.split()
        ):
            wanted.add(row.gen_id)
    assert wanted
    assert {row.gen_id for row in queries.each(Filter(q=words))} == wanted


@pytest.mark.parametrize(
    "text",
    [
        '"',
        "'",
        "a AND (",
        "NEAR(",
        "-x",
        "*",
        "col:x",
        '"unbalanced',
        "ö",
        "x" * 400,
        "\x00",
        "; DROP TABLE row",
    ],
)
def test_no_search_breaks_the_query(text: str, tmp_path: Path) -> None:
    store = lay_out(tmp_path)
    _, queries = open_index(store.paths)
    queries.find(Filter(q=text))
    match_expression(text)


@pytest.mark.parametrize(
    "asked", [Filter(min_score="x"), Filter(max_score="nan"), Filter(stage="dream"), Filter(replicate="inf")]
)
def test_a_filter_that_cannot_be_is_named(asked: Filter, tmp_path: Path) -> None:
    store = lay_out(tmp_path)
    _, queries = open_index(store.paths)
    with pytest.raises(FilterError):
        queries.find(asked)


def test_every_sort_orders_all_rows(tmp_path: Path) -> None:
    store = lay_out(tmp_path)
    _, queries = open_index(store.paths)
    up = [
        row.score for row in queries.each(Filter(stage="evaluation", sort="score")) if row.score is not None
    ]
    down = [
        row.score for row in queries.each(Filter(stage="evaluation", sort="-score")) if row.score is not None
    ]
    assert up == sorted(up)
    assert down == sorted(down, reverse=True)
    assert len(list(queries.each(Filter(sort="-cost")))) == len(list(queries.each(Filter())))


def test_rows_as_csv_are_all_rows_and_no_formula(tmp_path: Path) -> None:
    store = StoreBuilder(tmp_path / "data")
    store.draft(template="=SUM(A1)", answer="Text.")
    store.write_membership()
    _, queries = open_index(store.paths)
    rows = list(csv.DictReader(io.StringIO("".join(queries.csv(Filter())))))
    assert len(rows) == 1
    assert rows[0]["template"].startswith("'=")


def test_what_is_new_gone_or_made_again_is_noticed(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    project.use_script()
    assert project.run("run", "trial", "--limit", "6").returncode == 0
    index = Index(project.paths)
    index.update()
    queries = Queries(index.reader(), "trial")
    before = queries.counts()
    assert project.run("run", "trial").returncode in (0, 1)
    assert index.update(full=False) > 0  # from the journal alone
    after = queries.counts()
    assert after["draft"].get("done", 0) > before["draft"].get("done", 0)
    assert not after["evaluation"].get("missing")
    gone = next(iter((project.paths.gens_root / "evaluation").iterdir()))
    shutil.rmtree(gone)
    index.update()
    row = queries.one("evaluation", gone.name)
    assert row is not None
    assert row.state == "missing"
    assert index.update() == 0


def test_a_membership_that_grows_keeps_what_is_known(tmp_path: Path) -> None:
    store = lay_out(tmp_path)
    index, queries = open_index(store.paths)
    before = {row.gen_id: row.state for row in queries.each(Filter())}
    store.draft(combo="combo-9", answer="A new one about kettles.")
    store.write_membership()
    assert index.update() == 1
    after = {row.gen_id: row.state for row in queries.each(Filter())}
    assert len(after) == len(before) + 1
    assert all(after[name] == state for name, state in before.items())
    assert queries.find(Filter(q="kettles")).total == 1


def test_an_index_that_is_no_database_is_built_anew(tmp_path: Path) -> None:
    store = lay_out(tmp_path)
    path = store.paths.private_dir / "view" / "index.sqlite"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a database at all, but long enough to be taken for one" * 100)
    index, queries = open_index(store.paths)
    assert queries.find(Filter()).total > 0
    index.close()
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 999")
    database.close()
    _, queries = open_index(store.paths)
    assert queries.find(Filter()).total > 0


def test_blocked_rows_are_told_from_missing_ones(tmp_path: Path) -> None:
    store = StoreBuilder(tmp_path / "data")
    draft = store.draft(answer="")
    essay = store.essay(draft, answer=None)
    store.evaluation(essay, answer=None)
    store.write_membership()
    _, queries = open_index(store.paths)
    assert queries.counts()["essay"] == {"blocked": 1}
    assert queries.counts()["evaluation"] == {"blocked": 1}
