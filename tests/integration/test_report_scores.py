"""Scores and their tables over stores whose every score is known: worked out by hand, cell by cell."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest

import genworker
from genworker.api import read_scores
from genworker.core.events import RowFailed
from genworker.core.stages import Stage
from genworker.errors import MembershipError, UsageError
from genworker.paths import Paths
from genworker.reports.files import write_csv
from genworker.reports.scores import Axis, Outcome, ScoreRow, Scores
from genworker.reports.tables import all_tables, pivot
from genworker.store.journal import RunJournal
from genworker.store.reader import StoreReader
from support.stores import StoreBuilder

BROKEN = "unparseable: no score in the last three non-empty lines; the last line is 'I will not.'"


def collect(root: Path, *cohorts: str) -> Scores:
    return read_scores(StoreReader(Paths.from_str(root)), cohorts or ("pilot",))


def tables(root: Path, *cohorts: str) -> dict[str, list[dict[str, str]]]:
    """Every table as a consumer reads it."""
    scores = collect(root, *cohorts)
    found = {}
    for name, table in all_tables(scores, pivot(scores)).items():
        path = root / "out" / f"{name}.csv"
        write_csv(table, path)
        with path.open(newline="") as stream:
            found[name] = list(csv.DictReader(stream))
    return found


@pytest.fixture
def known(tmp_path: Path) -> StoreBuilder:
    """Two draft templates, the first with two replicates; three evaluators, the last of which never works."""
    store = StoreBuilder(tmp_path)
    drafts = [
        store.draft(template="d1"),
        store.draft(template="d1", replicate=2),
        store.draft(template="d2", model="m2"),
    ]
    a, a2, b = (store.essay(draft) for draft in drafts)
    for essay, first, second, style in (
        (a, {"answer": "SCORE: 7"}, {"answer": "SCORE: 6"}, {"answer": "SCORE: 8.25"}),
        (a2, {"answer": "SCORE: 9"}, {"finish_reason": "length"}, {"answer": None}),
        (b, {"answer": "SCORE: 2"}, {"answer": "SCORE: 3"}, {"finish_reason": "content_filter"}),
    ):
        options: list[dict[str, Any]] = [first, second, style]
        store.evaluation(essay, template="novelty", model="judge-a", **options[0])
        store.evaluation(essay, template="novelty", model="judge-a", replicate=2, **options[1])
        store.evaluation(essay, template="style", model="judge-b", **options[2])
        store.evaluation(essay, template="style", model="broken", answer="I will not.")
    store.write_membership()
    return store


def test_aggregated_scores_equal_a_table_made_by_hand(known: StoreBuilder) -> None:
    essays = [row["gen_id"] for row in known.rows if row["stage"] == "essay"]
    ids = iter(row["gen_id"] for row in known.rows if row["stage"] == "evaluation")
    replicates = {row["gen_id"]: row["replicate"] for row in known.rows}
    keys = {essays[0]: ("d1", "m1"), essays[1]: ("d1", "m1"), essays[2]: ("d2", "m2")}
    filtered = "content_filtered: the endpoint's content filter stopped the answer"
    by_hand = [
        # essay, evaluation template, evaluator, score, error
        (0, "novelty", "judge-a", "7.0", ""),
        (0, "novelty", "judge-a", "6.0", ""),
        (0, "style", "judge-b", "8.25", ""),
        (0, "style", "broken", "", BROKEN),
        (1, "novelty", "judge-a", "9.0", ""),
        (1, "novelty", "judge-a", "", "truncated: the answer was cut off"),
        (1, "style", "judge-b", "", "missing: no answer yet"),
        (1, "style", "broken", "", BROKEN),
        (2, "novelty", "judge-a", "2.0", ""),
        (2, "novelty", "judge-a", "3.0", ""),
        (2, "style", "judge-b", "", filtered),
        (2, "style", "broken", "", BROKEN),
    ]
    root = known.paths.data_root
    expected = []
    for number, template, model, score, error in by_hand:
        gen_id, essay = next(ids), essays[number]
        draft_template, generation_model = keys[essay]
        missing = error.startswith("missing")
        expected.append(
            {
                "gen_id": gen_id,
                "parent_gen_id": essay,
                "evaluation_template": template,
                "evaluation_model": model,
                "evaluation_llm_model": model,
                "score": score,
                "error": error,
                "evaluation_response_path": "" if missing else f"{root}/gens/evaluation/{gen_id}/raw.txt",
                "combo_id": "combo-1",
                "draft_template": draft_template,
                "generation_template": "e1",
                "generation_model": generation_model,
                "stage": "essay2p",
                "cohort_id": "pilot",
                "generation_response_path": f"{root}/gens/essay/{essay}/parsed.txt",
                "replicate": str(replicates[gen_id]),
                "draft_replicate": "2" if number == 1 else "1",
                "concepts": "",
            }
        )
    rows = tables(root)["aggregated_scores"]
    assert rows == expected
    assert list(rows[0]) == list(expected[0]), "the contract's order of columns"
    for row in rows:
        for column in ("evaluation_response_path", "generation_response_path"):
            assert not row[column] or Path(row[column]).is_file(), "a path leads to a text"


def test_the_pivot_equals_a_table_made_by_hand(known: StoreBuilder) -> None:
    root = known.paths.data_root
    essays = [row["gen_id"] for row in known.rows if row["stage"] == "essay"]
    rows = tables(root)["generation_scores_pivot"]
    evaluators = ("novelty_judge-a", "style_judge-b", "style_broken")
    assert list(rows[0]) == [
        *("combo_id", "stage", "draft_template", "generation_template", "generation_model"),
        *evaluators,
        *("sum_scores", "generation_response_path"),
        *(f"{name}_{what}" for name in evaluators for what in ("n", "planned", "min", "max", "spread")),
        *("replicate", "draft_replicate", "concepts"),
    ]
    assert [list(row.values()) for row in rows] == [
        [
            *("combo-1", "essay2p", "d1", "e1", "m1"),
            *("7.33", "8.25", ""),
            *("15.58", f"{root}/gens/essay/{essays[0]}/parsed.txt"),
            *("3", "4", "6.00", "9.00", "1.53"),
            *("1", "2", "8.25", "8.25", ""),
            *("0", "2", "", "", ""),
            *("1", "", ""),
        ],
        [
            *("combo-1", "essay2p", "d2", "e1", "m2"),
            *("2.50", "", ""),
            *("2.50", f"{root}/gens/essay/{essays[2]}/parsed.txt"),
            *("2", "2", "2.00", "3.00", "0.71"),
            *("0", "1", "", "", ""),
            *("0", "1", "", "", ""),
            *("1", "1", ""),
        ],
    ]


def test_the_evaluators_summary_accounts_for_the_whole_plan(known: StoreBuilder) -> None:
    rows = tables(known.paths.data_root)["evaluator_summary"]
    shown = {
        (row["evaluation_template"], row["evaluation_llm_model"]): [
            row[name] for name in ("planned", "scored", "unparseable", "failed", "missing", "blocked")
        ]
        for row in rows
    }
    assert shown == {
        ("novelty", "judge-a"): ["6", "5", "0", "1", "0", "0"],
        ("style", "judge-b"): ["3", "1", "0", "1", "1", "0"],
        ("style", "broken"): ["3", "0", "3", "0", "0", "0"],
    }
    novelty = rows[0]
    assert (novelty["mean"], novelty["spread"]) == ("5.400", "2.881")  # of 7, 6, 9, 2, 3
    assert (novelty["lowest_mark"], novelty["lowest_share"]) == ("2.000", "0.200")
    assert (novelty["highest_mark"], novelty["highest_share"]) == ("9.000", "0.200")
    assert (novelty["ci95_low"], novelty["ci95_high"]) == ("0.000", "10.000"), "three essays say little"
    assert rows[2]["mean"] == rows[2]["ci95_low"] == rows[2]["spread"] == rows[2]["lowest_share"] == ""


def test_the_summary_of_templates_and_models_is_by_combination_and_by_each(known: StoreBuilder) -> None:
    rows = tables(known.paths.data_root)["template_model_summary"]
    shown = [
        [
            *(row[name] for name in ("grouped_by", "draft_template", "generation_template")),
            *(row[name] for name in ("generation_model", "essays", "planned", "scored", "mean")),
        ]
        for row in rows
    ]
    assert shown == [
        ["combination", "d1", "e1", "m1", "2", "8", "4", "7.562"],
        ["combination", "d2", "e1", "m2", "1", "4", "2", "2.500"],
        ["draft_template", "d1", "", "", "2", "8", "4", "7.562"],
        ["draft_template", "d2", "", "", "1", "4", "2", "2.500"],
        ["generation_template", "", "e1", "", "3", "12", "6", "5.875"],
        ["generation_model", "", "", "m1", "2", "8", "4", "7.562"],
        ["generation_model", "", "", "m2", "1", "4", "2", "2.500"],
    ]
    assert rows[1]["ci95_low"] == "", "one essay says nothing of its template"


def test_agreement_compares_replicates_and_evaluators_essay_by_essay(tmp_path: Path) -> None:
    store = StoreBuilder(tmp_path)
    for number, (one, two, other) in enumerate(((8, 6, 5), (4, 4, 3), (6, None, 6)), 1):
        essay = store.essay(store.draft(template=f"d{number}"))
        store.evaluation(essay, model="a", answer=f"SCORE: {one}")
        store.evaluation(essay, model="a", replicate=2, answer=None if two is None else f"SCORE: {two}")
        store.evaluation(essay, model="b", answer=f"SCORE: {other}")
    rows = tables(store.write_membership())["agreement"]
    assert [row["compared"] for row in rows] == ["replicates", "replicates", "evaluators"]
    own, lone, both = rows
    # a with itself: (8, 6) and (4, 4), so D_o = 8/4 and D_e = 88/12.
    assert (own["n"], own["mean_difference"], own["alpha"]) == ("2", "1.000", "0.727")
    assert (lone["n"], lone["mean_difference"], lone["alpha"], lone["correlation"]) == ("0", "", "", "")
    # a's means 7, 4, 6 against 5, 3, 6: differences 2, 1, 0.
    assert (both["n"], both["mean_difference"]) == ("3", "1.000")
    assert both["correlation"] == "0.786"
    assert (both["evaluation_llm_model_a"], both["evaluation_llm_model_b"]) == ("a", "b")


def test_a_failed_replicate_lowers_n_and_nothing_else(known: StoreBuilder) -> None:
    root = known.paths.data_root
    before = tables(root)["generation_scores_pivot"]
    evaluation = next(
        row["gen_id"]
        for row in known.rows
        if row["stage"] == "evaluation" and row["llm_model_id"] == "judge-a" and row["replicate"] == 2
    )
    shutil.rmtree(known.paths.generation_dir(Stage.EVALUATION, evaluation))
    after = tables(root)["generation_scores_pivot"]
    assert after[1] == before[1]
    changed = {name for name in before[0] if before[0][name] != after[0][name]}
    # It was the 6 of 7, 6, 9: what is left are 7 and 9.
    assert after[0]["novelty_judge-a"] == "8.00"
    assert after[0]["novelty_judge-a_n"] == "2"
    assert after[0]["novelty_judge-a_planned"] == "4"
    of_this_axis = {f"novelty_judge-a{suffix}" for suffix in ("", "_n", "_min", "_spread")}
    assert changed == of_this_axis | {"sum_scores"}


def test_nothing_is_the_sum_of_no_scores(tmp_path: Path) -> None:
    store = StoreBuilder(tmp_path)
    store.evaluation(store.essay(store.draft()), answer="I will not.")
    (row,) = tables(store.write_membership())["generation_scores_pivot"]
    assert (row["sum_scores"], row["novelty_judge"], row["novelty_judge_n"]) == ("", "", "0")


def test_cohorts_average_together_and_a_shared_evaluation_counts_once(tmp_path: Path) -> None:
    first = StoreBuilder(tmp_path, "first")
    essay = first.essay(first.draft())
    first.evaluation(essay, answer="SCORE: 2")
    shared = first.evaluation(essay, replicate=2, answer="SCORE: 4")
    first.write_membership()
    second = StoreBuilder(tmp_path, "second")
    second.evaluation(second.essay(second.draft()), answer="SCORE: 9")
    second.rows.append(next(row for row in first.rows if row["gen_id"] == shared))
    second.write_membership()

    together = tables(tmp_path, "first", "second")
    (row,) = together["generation_scores_pivot"]
    assert (row["novelty_judge"], row["novelty_judge_n"], row["novelty_judge_planned"]) == ("5.00", "3", "3")
    aggregated = together["aggregated_scores"]
    assert [line["score"] for line in aggregated] == ["2.0", "4.0", "9.0"]
    assert [line["cohort_id"] for line in aggregated] == ["first", "first", "second"]
    (alone,) = tables(tmp_path, "second")["generation_scores_pivot"]
    assert (alone["novelty_judge"], alone["novelty_judge_n"]) == ("6.50", "2")


def test_an_essay_outside_the_cohort_is_known_from_the_store(tmp_path: Path) -> None:
    old = StoreBuilder(tmp_path, "old")
    essay = old.essay(old.draft(template="d9", model="m9"), template="e9", model="")
    old.write_membership()
    curated = StoreBuilder(tmp_path, "curated")
    curated._by_id[essay] = old._by_id[essay]
    curated.evaluation(essay, answer="SCORE: 6")
    curated.write_membership()
    (row,) = genworker.scores(tmp_path, "curated")
    assert (row.draft_template, row.generation_template, row.generation_model) == ("d9", "e9", "m9")
    assert row.generation_response_path == str(Paths.from_str(tmp_path).parsed_path("essay", essay))


def test_a_blocked_evaluation_names_the_ancestor(tmp_path: Path) -> None:
    store = StoreBuilder(tmp_path)
    draft = store.draft(finish_reason="length", sampling={"max_tokens": 64})
    essay = store.essay(draft, answer=None)
    store.evaluation(essay, answer=None)
    root = store.write_membership()
    (evaluation,) = collect(root).evaluations
    assert evaluation.outcome is Outcome.BLOCKED
    assert evaluation.error == (
        f"blocked: draft {draft} is truncated: the answer was cut off at max_tokens = 64"
    )
    assert evaluation.essay.path is None
    assert [reason.partition(":")[0] for _, reason in collect(root).troubles] == ["truncated", "blocked"]


def test_the_last_failed_call_is_the_reason_why_an_answer_is_missing(tmp_path: Path) -> None:
    store = StoreBuilder(tmp_path)
    gone = store.evaluation(store.essay(store.draft()), answer=None)
    root = store.write_membership()
    journal = RunJournal(store.paths, "20260101T000000Z-1")
    for error in ("HTTP 500", "HTTP 503: busy\x1b[2J"):
        journal.record(RowFailed(Stage.EVALUATION, gone, 1, "ProviderUnavailable", error))
    journal.close()
    with journal.path.open("a") as stream:
        stream.write('{"time":"2026-01-01T00:00:00","stage":"evaluation","gen')
    (evaluation,) = collect(root).evaluations
    assert evaluation.outcome is Outcome.MISSING
    assert evaluation.error == "missing: the last call failed: HTTP 503: busy⟨U+001B⟩[2J"


@pytest.mark.parametrize(
    ("parsed", "score"),
    [
        ("7.0", 7.0),
        ("10", 10.0),
        ("0\n", 0.0),
        ("6.66667", 6.66667),
        ("11", None),
        ("7/10", None),
        ("-1", None),
    ],
)
def test_a_store_of_another_tool_counts_when_its_parsed_text_is_a_score(
    tmp_path: Path, parsed: str, score: float | None
) -> None:
    store = StoreBuilder(tmp_path)
    gen_id = store.evaluation(store.essay(store.draft()), answer=None)
    directory = store.paths.generation_dir("evaluation", gen_id)
    directory.mkdir(parents=True)
    (directory / "parsed.txt").write_text(parsed)
    (directory / "metadata.json").write_text("{}")
    (row,) = genworker.scores(store.write_membership(), "pilot")
    assert row.score == score
    assert row.evaluation_response_path == str(directory / "parsed.txt"), "it kept no raw text"
    assert (row.error is None) == (score is not None)


def test_a_parsed_text_that_is_no_file_is_a_reason_not_a_crash(tmp_path: Path) -> None:
    store = StoreBuilder(tmp_path)
    essay = store.essay(store.draft())
    linked, piped = store.evaluation(essay), store.evaluation(essay, replicate=2)
    secret = tmp_path / "secret"
    secret.write_text("9.0")
    path = store.paths.parsed_path("evaluation", linked)
    path.unlink()
    path.symlink_to(secret)
    path = store.paths.parsed_path("evaluation", piped)
    path.unlink()
    path.mkdir()
    rows = genworker.scores(store.write_membership(), "pilot")
    assert [row.score for row in rows] == [None, None]
    assert all((row.error or "").startswith("unparseable: ") for row in rows)


def test_formulas_in_names_and_reasons_do_not_run_in_a_spreadsheet(tmp_path: Path) -> None:
    store = StoreBuilder(tmp_path)
    essay = store.essay(store.draft(template="=cmd()", model="@m"))
    store.evaluation(essay, template="+plus", answer="SCORE: 3")
    found = tables(store.write_membership())
    (row,) = found["generation_scores_pivot"]
    assert (row["draft_template"], row["generation_model"]) == ("'=cmd()", "'@m")
    assert row["'+plus_judge"] == "3.00"
    (row,) = found["aggregated_scores"]
    assert (row["evaluation_template"], row["score"]) == ("'+plus", "3.0")


def test_two_evaluators_with_one_name_keep_two_columns(tmp_path: Path) -> None:
    store = StoreBuilder(tmp_path)
    essay = store.essay(store.draft())
    store.evaluation(essay, template="a", model="b_c", answer="SCORE: 1")
    store.evaluation(essay, template="a_b", model="c", answer="SCORE: 2")
    store.evaluation(essay, template="a", model="b_c_n", answer="SCORE: 3")
    (row,) = tables(store.write_membership())["generation_scores_pivot"]
    assert [row[name] for name in ("a_b_c", "a_b__c", "a__b_c_n")] == ["1.00", "2.00", "3.00"]
    assert row["a_b_c_n"] == "1", "a count, not an evaluator"


def test_the_api_gives_the_rows_of_the_file(known: StoreBuilder) -> None:
    root = known.paths.data_root
    rows = genworker.scores(str(root), "pilot")
    written = tables(root)["aggregated_scores"]
    assert [
        {name: "" if value is None else str(value) for name, value in row._asdict().items()} for row in rows
    ] == written
    assert isinstance(rows[0], genworker.ScoreRow)
    assert ScoreRow is genworker.ScoreRow
    assert collect(root).axes == (
        Axis("novelty", "judge-a"),
        Axis("style", "judge-b"),
        Axis("style", "broken"),
    )


def test_a_cohort_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no cohort 'nope'"):
        genworker.scores(tmp_path, "nope")
    with pytest.raises(AttributeError, match="no_such_name"):
        genworker.no_such_name  # noqa: B018


def test_a_bad_membership_is_refused(tmp_path: Path) -> None:
    store = StoreBuilder(tmp_path)
    store.draft()
    store.rows *= 2
    store.write_membership()
    with pytest.raises(MembershipError, match="stands twice"):
        genworker.scores(tmp_path, "pilot")
