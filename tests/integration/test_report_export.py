"""Exports: one row per planned generation, the same numbers as the tables, in flat memory."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import tracemalloc
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

import genworker
from genworker.core.generation import Generation
from genworker.core.membership import MembershipRow
from genworker.core.stages import Stage
from genworker.errors import MembershipError, UsageError
from genworker.paths import Paths
from genworker.reports.export import (
    GenerationRow,
    generation_rows,
    jsonl_to_parquet,
    write_csv_rows,
    write_jsonl,
)
from genworker.store.reader import StoreReader
from support.stores import StoreBuilder


@pytest.fixture
def store(tmp_path: Path) -> StoreBuilder:
    store = StoreBuilder(tmp_path)
    draft = store.draft(
        template="d1",
        cost_usd="0.0125",
        attempts=2,
        started_at="2026-11-22T19:00:00.000+00:00",
        finished_at="2026-11-22T19:00:01.500+00:00",
        latency_s=1.5,
        response_model="m1-2026",
        usage={"input_tokens": 10, "output_tokens": 20, "reasoning_tokens": 5, "cached_input_tokens": 4},
    )
    essay = store.essay(draft, model="", answer="Essay \x1b[31m\u202e '\"\n")
    store.evaluation(essay, answer="SCORE: 7")
    store.evaluation(essay, replicate=2, answer="no")
    store.evaluation(essay, replicate=3, answer=None)
    lost = store.draft(template="d2", finish_reason="length")
    store.evaluation(store.essay(lost, answer=None), answer=None)
    store.write_membership()
    return store


def rows_of(store: StoreBuilder, stage: Stage | None = None) -> list[GenerationRow]:
    return list(generation_rows(StoreReader(store.paths), store.cohort, stage))


def test_a_row_per_planned_generation_with_its_lineage_and_state(store: StoreBuilder) -> None:
    rows = rows_of(store)
    assert [row.gen_id for row in rows] == [row["gen_id"] for row in store.rows]
    assert [(row.stage, row.state, row.error) for row in rows[2:]] == [
        ("evaluation", "done", None),
        ("evaluation", "unparseable", "no score in the last three non-empty lines; the last line is 'no'"),
        ("evaluation", "missing", "no answer yet"),
        ("draft", "truncated", "the answer was cut off"),
        ("essay", "blocked", f"draft {rows[5].gen_id} is truncated"),
        ("evaluation", "blocked", f"essay {rows[6].gen_id} is blocked"),
    ]
    draft, essay, evaluation = rows[:3]
    assert draft._asdict() | {"prompt": None} == {
        "stage": "draft",
        "gen_id": draft.gen_id,
        "cohort_id": "pilot",
        "parent_gen_id": None,
        "combo_id": "combo-1",
        "template_id": "d1",
        "llm_model_id": "m1",
        "replicate": 1,
        "state": "done",
        "error": None,
        "draft_gen_id": draft.gen_id,
        "essay_gen_id": None,
        "draft_template": "d1",
        "generation_template": None,
        "generation_model": "m1",
        "evaluation_template": None,
        "evaluation_llm_model": None,
        "score": None,
        "prompt": None,
        "raw": "A draft about tides.",
        "parsed": "A draft about tides.",
        "finish_reason": "stop",
        "input_tokens": 10,
        "output_tokens": 20,
        "cached_input_tokens": 4,
        "reasoning_tokens": 5,
        "cost_usd": 0.0125,
        "attempts": 2,
        "started_at": "2026-11-22T19:00:00.000+00:00",
        "finished_at": "2026-11-22T19:00:01.500+00:00",
        "latency_s": 1.5,
        "response_model": "m1-2026",
        "mode": "llm",
        **dict.fromkeys(("endpoint", "fallback", "sampling", "request_id", "reasoning", "concepts")),
        "draft_replicate": 1,
        "essay_replicate": None,
        **dict.fromkeys(("second_parent_gen_id", "choice")),
    }
    assert (essay.llm_model_id, essay.generation_model) == ("m1", "m1"), "inherited from its draft"
    assert (evaluation.draft_gen_id, evaluation.essay_gen_id) == (draft.gen_id, essay.gen_id)
    assert (evaluation.draft_template, evaluation.generation_template) == ("d1", "e1")
    assert (evaluation.evaluation_template, evaluation.evaluation_llm_model) == ("novelty", "judge")
    assert evaluation.score == 7.0


def test_scores_equal_those_of_the_tables(store: StoreBuilder) -> None:
    exported = {row.gen_id: row.score for row in rows_of(store, Stage.EVALUATION)}
    assert exported == {row.gen_id: row.score for row in genworker.scores(store.paths.data_root, "pilot")}
    assert list(exported.values()).count(None) == 3


def test_a_text_that_is_no_score_is_unparseable_here_as_well(store: StoreBuilder) -> None:
    evaluation = next(row["gen_id"] for row in store.rows if row["stage"] == "evaluation")
    store.paths.parsed_path("evaluation", evaluation).write_text("eleven")
    row = rows_of(store)[2]
    assert (row.state, row.score) == ("unparseable", None)
    assert row.error == "parsed.txt is no score from 0 to 10: 'eleven'"


def test_the_api_gives_the_same_rows(store: StoreBuilder) -> None:
    root = store.paths.data_root
    assert list(genworker.iter_generations(root, "pilot")) == rows_of(store)
    assert list(genworker.iter_generations(root, "pilot", stage="essay")) == rows_of(store, Stage.ESSAY)
    assert isinstance(next(genworker.iter_generations(root, "pilot")), genworker.GenerationRow)
    with pytest.raises(ValueError, match="'poem' is not a valid Stage"):
        genworker.iter_generations(root, "pilot", stage="poem")
    with pytest.raises(UsageError, match="no cohort"):
        list(genworker.iter_generations(root, "nope"))


def test_json_lines_hold_what_the_rows_hold(store: StoreBuilder) -> None:
    rows = rows_of(store)
    plain, ascii_ = io.StringIO(), io.StringIO()
    count, longest = write_jsonl(iter(rows), plain)
    write_jsonl(iter(rows), ascii_, ascii_only=True)
    assert count == len(rows)
    assert longest == max(len(line.encode()) for line in plain.getvalue().split("\n"))
    for text in (plain.getvalue(), ascii_.getvalue()):
        assert [json.loads(line) for line in text.splitlines() if line] == [row._asdict() for row in rows]
    assert "\u202e" in plain.getvalue()
    assert ascii_.getvalue().isascii()
    assert "\x1b" not in ascii_.getvalue()


def test_parquet_holds_what_the_rows_hold(store: StoreBuilder, tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    rows = rows_of(store)
    lines, target = tmp_path / "x.jsonl", tmp_path / "it's.parquet"
    with lines.open("w", encoding="utf-8") as stream:
        _, longest = write_jsonl(iter(rows), stream)
    jsonl_to_parquet(lines, target, longest)
    relation = duckdb.read_parquet(str(target))
    assert relation.columns == list(GenerationRow._fields)

    def moment(text: str | None) -> datetime | None:
        return None if text is None else datetime.fromisoformat(text).replace(tzinfo=None)

    assert [tuple(row) for row in relation.fetchall()] == [
        tuple(row._replace(started_at=moment(row.started_at), finished_at=moment(row.finished_at)))  # type: ignore
        for row in rows
    ]
    kinds = dict(zip(relation.columns, map(str, relation.types), strict=True))
    assert (kinds["score"], kinds["attempts"], kinds["raw"]) == ("DOUBLE", "BIGINT", "VARCHAR")
    assert kinds["started_at"] == "TIMESTAMP", "in UTC"


def test_metadata_of_any_kind_do_not_stop_an_export(store: StoreBuilder) -> None:
    gen_id = store.rows[0]["gen_id"]
    path = store.paths.metadata_path("draft", gen_id)
    odd: dict[str, Any] = {
        "usage": ["?"],
        "attempts": 10**30,
        "latency_s": math.nan,
        "cost_usd": {},
        "finish_reason": "\ud800",
        "started_at": 5,
        "mode": None,
    }
    path.write_text(json.dumps(odd))
    stream = io.StringIO()
    write_jsonl(iter(rows_of(store)), stream)
    first = json.loads(stream.getvalue().splitlines()[0])
    assert first["finish_reason"] == "?"
    assert {first[name] for name in ("input_tokens", "attempts", "latency_s", "cost_usd", "started_at")} == {
        None
    }
    path.write_bytes(b"\xff")
    assert rows_of(store)[0].state == "unparseable"


def test_an_ancestor_outside_the_cohort_is_known_from_the_store(tmp_path: Path) -> None:
    old = StoreBuilder(tmp_path, "old")
    essay = old.essay(old.draft(template="d9", model="m9"), template="e9", model="")
    curated = StoreBuilder(tmp_path, "curated")
    curated._by_id[essay] = old._by_id[essay]
    curated.evaluation(essay)
    curated.write_membership()
    (row,) = rows_of(curated)
    assert (row.draft_template, row.generation_template, row.generation_model) == ("d9", "e9", "m9")


def test_a_fault_far_down_the_membership_is_found_when_it_is_reached(tmp_path: Path) -> None:
    store = StoreBuilder(tmp_path)
    store.draft(answer=None)
    path = Paths.from_str(store.write_membership()).cohort_membership_csv("pilot")
    with path.open("a") as stream:
        stream.write("poem,x,pilot,,combo-1,d1,m1,1\n")
    with pytest.raises(MembershipError, match="unknown stage 'poem'"):
        rows_of(store)


class _Endless:
    """A source whose rows are made when they are drawn."""

    def __init__(self, count: int) -> None:
        self.count = count

    def rows(self, cohort_id: str) -> Iterator[MembershipRow]:
        for number in range(self.count):
            stage = (Stage.DRAFT, Stage.ESSAY, Stage.EVALUATION)[number % 3]
            parent = None if stage is Stage.DRAFT else f"g{number - 1:012}"
            yield MembershipRow(stage, f"g{number:012}", cohort_id, parent, "c", "t", "m", 1, None)

    def concepts(self, combos: Collection[str]) -> Mapping[str, tuple[str, ...]]:
        return {}

    def stands(self, stage: Stage, gen_id: str) -> bool:
        return True

    def generation(self, stage: Stage, gen_id: str) -> Generation:
        return Generation(stage, gen_id, "p" * 500, "r" * 500, "5.0", {"template_id": "t"})


def peak(count: int) -> int:
    tracemalloc.start()
    with open(os.devnull, "w") as stream:
        write_jsonl(generation_rows(_Endless(count), "pilot"), stream)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def test_ten_times_the_rows_need_no_more_memory() -> None:
    small, large = peak(1_500), peak(15_000)
    assert large < 1.2 * small + 2_000_000


def test_a_csv_and_a_data_frame_have_the_same_rows_with_types(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed: make setup brings it")
    store = StoreBuilder(tmp_path)
    for replicate in (1, 2):
        draft = store.draft(template="=cmd()", replicate=replicate, answer="One,\ntwo.")
        essay = store.essay(
            draft,
            started_at="2026-11-20T10:00:00+02:00",
            finished_at="yesterday",
            endpoint="openrouter",
            fallback=True,
            request_id="req-1",
            sampling={"temperature": 0.7},
        )
        store.evaluation(essay, answer="SCORE: 6")
    root = store.write_membership()
    frame = genworker.to_pandas(root, "pilot")
    essay_row = frame[frame["stage"] == "essay"].iloc[-1]
    assert essay_row["started_at"] == pandas.Timestamp("2026-11-20T08:00:00Z")
    assert pandas.isna(essay_row["finished_at"]), "what is no time is none"
    assert (essay_row["endpoint"], essay_row["fallback"], essay_row["request_id"]) == (
        "openrouter",
        True,
        "req-1",
    )
    assert json.loads(essay_row["sampling"]) == {"temperature": 0.7}
    assert list(frame[frame["stage"] == "evaluation"]["draft_replicate"]) == [1, 2]
    assert str(frame["input_tokens"].dtype) == "Int64"
    stream = io.StringIO()
    assert write_csv_rows(genworker.iter_generations(root, "pilot"), stream) == len(frame) == 6
    stream.seek(0)
    rows = list(csv.DictReader(stream))
    assert rows[0]["draft_template"] == "'=cmd()"
    assert [row["gen_id"] for row in rows] == list(frame["gen_id"])
    assert rows[0]["raw"] == "One,\ntwo."
