from __future__ import annotations

from collections.abc import Iterable

import pytest

from genworker.core.membership import Known, Membership, read_membership
from genworker.core.stages import STAGES, Stage
from genworker.errors import Fault

HEADER = [
    "stage",
    "gen_id",
    "cohort_id",
    "parent_gen_id",
    "combo_id",
    "template_id",
    "llm_model_id",
    "replicate",
]
GOOD = [
    ["draft", "d1", "c", "", "combo", "t", "m", "1"],
    ["essay", "e1", "c", "d1", "combo", "t", "", "1"],
    ["evaluation", "v1", "c", "e1", "combo", "t", "m2", "2"],
]
KNOWN = Known(
    templates={stage: {"t", "copied"} for stage in STAGES},
    copies={stage: {"copied"} for stage in STAGES},
    models={"m", "m2"},
    template_files={stage: f"{stage.value}_templates.csv" for stage in STAGES},
    models_file="llm_models.csv",
)


def read(
    rows: Iterable[list[str]], header: list[str] = HEADER, on_disk: set[tuple[Stage, str]] | None = None
) -> tuple[Membership, list[Fault]]:
    numbered = enumerate(rows, start=2)
    return read_membership(
        header,
        numbered,
        cohort_id="c",
        where="m.csv",
        known=KNOWN,
        on_disk=lambda stage, gen_id: (stage, gen_id) in (on_disk or set()),
    )


def changed(row: int, column: str, value: str) -> list[list[str]]:
    rows = [list(cells) for cells in GOOD]
    rows[row][HEADER.index(column)] = value
    return rows


def test_good_rows_are_read_and_linked() -> None:
    membership, faults = read(GOOD)
    assert faults == []
    assert list(membership.parents) == [-1, 0, 1]
    draft, essay, evaluation = membership.rows
    assert draft.parent_gen_id is None
    assert essay.llm_model_id == "m", "an essay inherits its draft's model"
    assert (evaluation.llm_model_id, evaluation.replicate) == ("m2", 2)


def test_a_child_may_stand_before_its_parent() -> None:
    membership, faults = read(reversed(GOOD))
    assert faults == []
    assert list(membership.parents) == [1, 2, -1]
    assert membership.rows[1].llm_model_id == "m"


def test_replicate_and_task_are_optional_and_unknown_columns_are_ignored() -> None:
    header = [*HEADER[:-1], "mood", "task_id"]
    membership, faults = read([[*GOOD[0][:-1], "sunny", "own-task"]], header)
    assert faults == []
    assert membership.rows[0].replicate == 1
    assert membership.task_id(0) == "own-task"


def test_tasks_are_made_as_the_contract_says() -> None:
    membership, _ = read(GOOD)
    assert membership.task_id(0) == "combo__t__m"
    assert membership.task_id(1) == "combo__t__m__t"
    assert membership.task_id(2) == "e1__t__m2"


def test_a_parent_may_stand_in_the_store() -> None:
    membership, faults = read([[*GOOD[1][:6], "m", "1"]], on_disk={(Stage.DRAFT, "d1")})
    assert faults == []
    assert list(membership.parents) == [-1]


def test_a_copy_needs_no_model() -> None:
    rows = [["essay", "e1", "c", "d9", "combo", "copied", "", "1"]]
    _, faults = read(rows, on_disk={(Stage.DRAFT, "d9")})
    assert faults == []


@pytest.mark.parametrize(
    ("rows", "line", "column", "what"),
    [
        (changed(0, "stage", "poem"), 2, "stage", "unknown stage 'poem'"),
        (changed(0, "gen_id", ""), 2, "gen_id", "is empty"),
        (changed(0, "gen_id", "../x"), 2, "gen_id", "path separator"),
        (changed(0, "gen_id", ".x"), 2, "gen_id", "dot"),
        (changed(0, "gen_id", "d1\n"), 2, "gen_id", "control"),
        (changed(0, "gen_id", "x" * 129), 2, "gen_id", "129 bytes"),
        (changed(2, "gen_id", "x\x1b[2J"), 4, "gen_id", "control"),
        ([*GOOD, GOOD[0]], 5, "gen_id", "stands twice, first in line 2"),
        (changed(1, "parent_gen_id", "nobody"), 3, "parent_gen_id", "neither in this file nor in the store"),
        (changed(2, "parent_gen_id", "d1"), 4, "parent_gen_id", "is of stage draft"),
        (changed(2, "parent_gen_id", ""), 4, "parent_gen_id", "names no parent"),
        (changed(2, "parent_gen_id", "../../etc"), 4, "parent_gen_id", "path separator"),
        (changed(0, "parent_gen_id", "e1"), 2, "parent_gen_id", "a draft has no parent"),
        (changed(0, "template_id", "nope"), 2, "template_id", "unknown draft template 'nope'"),
        (changed(0, "llm_model_id", "gpt-0"), 2, "llm_model_id", "unknown model 'gpt-0'"),
        (changed(2, "llm_model_id", ""), 4, "llm_model_id", "names no model"),
        (changed(0, "replicate", "0"), 2, "replicate", "replicate is '0'"),
        (changed(0, "replicate", "-1"), 2, "replicate", "replicate is '-1'"),
        (changed(0, "replicate", "two"), 2, "replicate", "replicate is 'two'"),
        (changed(0, "replicate", "²"), 2, "replicate", "replicate is '²'"),
        (changed(0, "cohort_id", "a/b"), 2, "cohort_id", "path separator"),
        ([GOOD[0][:-1]], 2, None, "7 cells in a file of 8 columns"),
    ],
)
def test_each_fault_says_where_and_what(
    rows: list[list[str]], line: int, column: str | None, what: str
) -> None:
    _, faults = read(rows)
    matching = [fault for fault in faults if what in fault.what]
    assert matching, [str(fault) for fault in faults]
    assert (matching[0].where, matching[0].line, matching[0].column) == ("m.csv", line, column)
    assert matching[0].fix


def test_missing_columns_are_named_at_once() -> None:
    _, faults = read([], header=["stage", "gen_id"])
    assert len(faults) == 1
    for name in ("cohort_id", "parent_gen_id", "combo_id", "template_id", "llm_model_id"):
        assert name in faults[0].what


def test_every_fault_of_a_file_comes_in_one_go() -> None:
    rows = changed(0, "template_id", "nope")
    rows[1][HEADER.index("parent_gen_id")] = "nobody"
    rows[2][HEADER.index("replicate")] = "0"
    _, faults = read(rows)
    assert {fault.line for fault in faults} == {2, 3, 4}


def test_a_row_without_a_parent_is_named_also_where_a_draft_lacks_its_id() -> None:
    like = ["essay", "e2", "c", "d1", "combo", "t", "m", "1"]
    nameless = ["draft", "", "c", "", "combo", "t", "m", "1"]
    orphan = ["essay", "e3", "c", "", "combo", "t", "m", "1"]
    _, faults = read([*GOOD, like, nameless, orphan])
    assert [(fault.line, fault.column) for fault in faults] == [(6, "gen_id"), (7, "parent_gen_id")]
