"""Reading a membership: rows that are like earlier ones are read in a shorter way, with the same result."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from genworker.core.membership import (
    OPTIONAL_COLUMNS,
    REQUIRED_COLUMNS,
    Known,
    MembershipRow,
    read_membership,
)
from genworker.core.stages import STAGES, Stage
from genworker.store.csvfile import CsvFault, open_csv

HEADER = [*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS]
KNOWN = Known(
    templates={stage: {"t", "copied", "pair"} for stage in STAGES},
    copies={stage: {"copied"} for stage in STAGES},
    models={"m", "n"},
    template_files={stage: f"{stage.value}_templates.csv" for stage in STAGES},
    models_file="llm_models.csv",
    pairs={Stage.EVALUATION: {"pair"}},
)
IN_STORE = {(Stage.DRAFT, "z"), (Stage.ESSAY, "z")}
IDS = ["a", "b", "c", "d", "a-b", "z", "../a", ""]

odd = st.tuples(
    st.sampled_from(["draft", "essay", "evaluation", "essay", "evaluation", "novel"]),
    st.sampled_from(IDS),
    st.sampled_from(["c", "c", "", "other", "."]),
    st.sampled_from(["", "a", "b", "a-b", "z", "q"]),
    st.sampled_from(["x", "y"]),
    st.sampled_from(["t", "t", "copied", "unknown", "pair"]),
    st.sampled_from(["m", "n", "", "unknown"]),
    st.sampled_from(["1", "2", "", "0", "two"]),
    st.sampled_from(["", "task"]),
    st.sampled_from(["", "", "a", "b", "z", "q"]),
)

# Rows that are alike: without them nothing would be read in the shorter way.
plain = st.tuples(
    st.sampled_from(
        [("draft", ""), ("essay", "a"), ("essay", "b"), ("evaluation", "a"), ("evaluation", "b")]
    ),
    st.sampled_from(["a", "b", "c", "d", "e", "f", "g", "h"]),
    st.sampled_from(["m", "n"]),
    st.sampled_from(["1", "2"]),
).map(lambda part: (part[0][0], part[1], "c", part[0][1], "x", "t", part[2], part[3], "", ""))

pairs = st.tuples(
    st.sampled_from(["a", "b", "c", "d", "e", "f", "g", "h"]),
    st.sampled_from(["a", "b", "z"]),
    st.sampled_from(["a", "b", "z"]),
).map(lambda part: ("evaluation", part[0], "c", part[1], "x", "pair", "m", "1", "", part[2]))


def judged_row_by_row(
    records: list[tuple[str, ...]],
) -> tuple[list[MembershipRow], list[int], dict[int, int], set[tuple[int, str]]]:
    """The rules of the contract, each row for itself: rows, parents and the places of the faults."""
    faults: set[tuple[int, str]] = set()
    rows: list[tuple[int, MembershipRow]] = []
    taken: set[tuple[str, str]] = set()
    for line, (stage, gen_id, cohort, parent, combo, template, model, replicate, task, second) in enumerate(
        records, 2
    ):
        if stage == "novel":
            faults.add((line, "stage"))
            continue
        if gen_id in ("", "../a") or (stage, gen_id) in taken:
            faults.add((line, "gen_id"))
        if cohort == ".":
            faults.add((line, "cohort_id"))
        if template == "unknown":
            faults.add((line, "template_id"))
        if model == "unknown":
            faults.add((line, "llm_model_id"))
        if replicate in ("0", "two"):
            faults.add((line, "replicate"))
        if (stage == "draft") == bool(parent):
            faults.add((line, "parent_gen_id"))
        compares = stage == "evaluation" and template == "pair"
        if compares != bool(second) and not (stage == "evaluation" and template == "unknown"):
            faults.add((line, "second_parent_gen_id"))
        if second and second == parent:
            faults.add((line, "second_parent_gen_id"))
        if not gen_id or (stage, gen_id) not in taken:
            taken.add((stage, gen_id))
            number = int(replicate) if replicate in ("1", "2") else 1
            names = (cohort or "c", parent or None, combo, template, model or None, number, task or None)
            rows.append((line, MembershipRow(Stage(stage), gen_id, *names, second or None)))
    places = {(row.stage, row.gen_id): number for number, (_, row) in enumerate(rows) if row.gen_id}
    linked, parents, seconds = [], [], {}
    for number, (line, row) in enumerate(rows):
        at = -1
        if row.stage is not Stage.DRAFT and row.second_parent_gen_id is not None:
            above = Stage.DRAFT if row.stage is Stage.ESSAY else Stage.ESSAY
            other = places.get((above, row.second_parent_gen_id), -1)
            if other >= 0:
                seconds[number] = other
            elif (above, row.second_parent_gen_id) not in IN_STORE:
                faults.add((line, "second_parent_gen_id"))
        if row.stage is not Stage.DRAFT and row.parent_gen_id is not None:
            above = Stage.DRAFT if row.stage is Stage.ESSAY else Stage.ESSAY
            at = places.get((above, row.parent_gen_id), -1)
            if at < 0 and (above, row.parent_gen_id) not in IN_STORE:
                faults.add((line, "parent_gen_id"))
        if at >= 0 and row.stage is Stage.ESSAY and row.llm_model_id is None:
            row = row._replace(llm_model_id=rows[at][1].llm_model_id)
        if row.llm_model_id is None and row.template_id != "copied":
            faults.add((line, "llm_model_id"))
        linked.append(row)
        parents.append(at)
    return linked, parents, seconds, faults


@settings(max_examples=300)
@given(st.lists(st.one_of(plain, plain, plain, plain, plain, pairs, pairs, odd), max_size=30))
def test_rows_and_faults_are_those_of_a_reading_row_by_row(records: list[tuple[str, ...]]) -> None:
    expected_rows, expected_parents, expected_seconds, expected_faults = judged_row_by_row(records)
    membership, faults = read_membership(
        HEADER,
        enumerate(records, start=2),
        cohort_id="c",
        where="m.csv",
        known=KNOWN,
        on_disk=lambda stage, gen_id: (stage, gen_id) in IN_STORE,
    )
    assert {(fault.line, fault.column) for fault in faults} == expected_faults
    assert list(membership.rows) == expected_rows
    assert list(membership.parents) == expected_parents
    assert membership.seconds == expected_seconds


cells = st.text(alphabet='ab ,"\r\n\u2028é', max_size=6)


@settings(max_examples=300)
@given(st.lists(st.lists(cells, min_size=1, max_size=4), max_size=5), st.sampled_from(["\n", "\r\n", "\r"]))
def test_a_csv_is_read_as_the_standard_library_reads_it(
    tmp_path_factory: object, records: list[list[str]], line_end: str
) -> None:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator=line_end).writerows([["head"], *records])
    compare(tmp_path_factory, buffer.getvalue())


@settings(max_examples=300)
@given(st.text(alphabet='ab,"\r\n', min_size=1, max_size=30))
def test_any_text_is_read_as_the_standard_library_reads_it(tmp_path_factory: object, text: str) -> None:
    compare(tmp_path_factory, "head\n" + text)


def compare(tmp_path_factory: object, text: str) -> None:
    path: Path = tmp_path_factory.getbasetemp() / "some.csv"  # type: ignore[attr-defined]
    path.write_text(text, encoding="utf-8", newline="")
    expected: list[tuple[int, list[str]]] = []
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        line = 1
        for record in reader:
            expected.append((line, record))
            line = reader.line_num + 1
    except csv.Error:
        expected.append((reader.line_num, ["error"]))
    found: list[tuple[int, list[str]]] = []
    try:
        with open_csv(path) as (header, records):
            found.append((1, header))
            found.extend(records)
    except CsvFault as error:
        found.append((error.fault.line or 0, ["error"]))
    assert found == expected
