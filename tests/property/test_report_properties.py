"""What holds of scores, tables and texts whatever they are."""

from __future__ import annotations

import csv
import io
import math
import statistics
from array import array
from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from genworker.core.membership import Membership, MembershipRow
from genworker.core.plan import Plan
from genworker.core.stages import Stage
from genworker.core.visible import visible
from genworker.reports.differences import MAX_CHARS, compare
from genworker.reports.files import csv_cell
from genworker.reports.lineage import prompt_view, text_view
from genworker.reports.page import make_environment
from genworker.reports.scores import Axis, Essay, Evaluation, Outcome, PivotKey, Scores
from genworker.reports.statistics import interval, krippendorff_alpha
from genworker.reports.tables import (
    agreement,
    evaluator_summary,
    generation_scores_pivot,
    pivot,
    template_model_summary,
)

MARKS = st.integers(0, 20).map(lambda half: half / 2)


@st.composite
def evaluations(draw: st.DrawFn) -> list[Evaluation]:
    found = []
    for number in range(draw(st.integers(0, 30))):
        essay = draw(st.integers(0, 5))
        key = PivotKey("c", "essay2p", f"d{essay % 2}", "e", f"m{essay % 3}")
        axis = Axis(draw(st.sampled_from("ab")), draw(st.sampled_from("xy")))
        outcome = draw(st.sampled_from(Outcome))
        score = draw(MARKS) if outcome is Outcome.SCORED else None
        replicate = draw(st.integers(1, 3))
        row = MembershipRow(
            Stage.EVALUATION, f"g{number}", "k", f"e{essay}", "c", axis.template, axis.model, replicate, None
        )
        found.append(
            Evaluation(
                row,
                axis,
                Essay(f"e{essay}", key, 1, "d", 1, None),
                outcome,
                score,
                None if score is not None else f"{outcome}: why",
                None,
            )
        )
    return found


def scores_of(found: list[Evaluation]) -> Scores:
    plan = Plan(Membership("k", [], array("i")))
    return Scores(("k",), plan, found, tuple(dict.fromkeys(e.axis for e in found)))


@given(evaluations())
def test_the_pivot_is_the_mean_over_what_the_rows_say(found: list[Evaluation]) -> None:
    cells: dict[tuple[PivotKey, Axis], list[float]] = defaultdict(list)
    planned: dict[tuple[PivotKey, Axis], int] = defaultdict(int)
    for evaluation in found:
        place = (evaluation.essay.key, evaluation.axis)
        planned[place] += 1
        if evaluation.score is not None:
            cells[place].append(evaluation.score)
    scores = scores_of(found)
    table = generation_scores_pivot(scores, pivot(scores))
    seen = 0
    for row in table.rows:
        record = dict(zip(table.header, row, strict=True))
        key = PivotKey(*(str(record[name]) for name in PivotKey._fields))
        for axis in scores.axes:
            values = cells[key, axis]
            assert record[axis.name] == (statistics.fmean(values) if values else None)
            assert record[f"{axis.name}_n"] == len(values)
            assert record[f"{axis.name}_planned"] == planned[key, axis]
            seen += planned[key, axis]
    assert seen == len(found), "nothing vanishes"


@given(evaluations())
def test_outcomes_add_up_to_the_plan_in_every_summary(found: list[Evaluation]) -> None:
    scores = scores_of(found)
    table = evaluator_summary(scores)
    total = 0
    for row in table.rows:
        record = dict(zip(table.header, row, strict=True))
        parts = [record[name] for name in ("scored", "unparseable", "failed", "missing", "blocked")]
        assert record["planned"] == sum(part for part in parts if isinstance(part, int))
        total += sum(part for part in parts if isinstance(part, int))
    assert total == len(found)
    table = template_model_summary(scores)
    by_kind: dict[object, int] = defaultdict(int)
    for row in table.rows:
        record = dict(zip(table.header, row, strict=True))
        assert isinstance(record["planned"], int)
        by_kind[record["grouped_by"]] += record["planned"]
    assert set(by_kind.values()) <= {len(found)}


@given(evaluations(), st.randoms(use_true_random=False))
def test_no_figure_depends_on_the_order_of_the_rows(found: list[Evaluation], random: object) -> None:
    shuffled = list(found)
    random.shuffle(shuffled)  # type: ignore[attr-defined]

    def means(rows: list[Evaluation]) -> dict[tuple[object, ...], float | None]:
        scores = scores_of(rows)
        return {
            (row.key, axis): round(math.fsum(cell.scores), 9)
            for row in pivot(scores)
            for axis, cell in row.cells.items()
        }

    assert means(found) == means(shuffled)


@given(evaluations())
def test_agreement_is_a_figure_or_nothing(found: list[Evaluation]) -> None:
    table = agreement(scores_of(found))
    for row in table.rows:
        record = dict(zip(table.header, row, strict=True))
        alpha, r, n = record["alpha"], record["correlation"], record["n"]
        assert alpha is None or (isinstance(alpha, float) and alpha <= 1)
        assert r is None or (isinstance(r, float) and -1 <= r <= 1)
        assert n != 0 or record["mean_difference"] is None


@given(st.lists(st.lists(MARKS, max_size=4), max_size=12))
def test_an_interval_holds_the_mean_of_the_clusters_means(clusters: list[list[float]]) -> None:
    found = interval(clusters)
    filled = [cluster for cluster in clusters if cluster]
    if len(filled) < 3:
        assert found is None
        return
    assert found is not None
    means = [statistics.fmean(cluster) for cluster in filled]
    assert found[0] - 1e-9 <= statistics.fmean(means) <= found[1] + 1e-9
    assert (found[1] - found[0] < 1e-9) == (max(means) - min(means) < 1e-9)


@given(st.lists(st.lists(MARKS, max_size=4), max_size=8), st.floats(0.5, 3), st.floats(-5, 5))
def test_alpha_does_not_depend_on_the_scales_unit(
    units: list[list[float]], factor: float, shift: float
) -> None:
    alpha = krippendorff_alpha(units)
    other = krippendorff_alpha([[factor * value + shift for value in unit] for unit in units])
    if alpha is not None and other is not None:
        assert math.isclose(alpha, other, abs_tol=1e-6)


@given(st.one_of(st.none(), st.text(), st.integers(), st.floats(allow_nan=False, allow_infinity=False)))
def test_a_cell_comes_back_from_the_file_and_starts_no_formula(cell: str | float | None) -> None:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerow([csv_cell(cell), "end"])
    (row,) = csv.reader(io.StringIO(stream.getvalue(), newline=""))
    if isinstance(cell, str):
        assert not row[0].startswith(("=", "+", "-", "@", "\t", "\r"))
        assert row[0] in (cell, f"'{cell}")
    elif cell is not None:
        assert type(cell)(row[0]) == cell


@given(st.lists(st.text(alphabet="ab \n", max_size=60), min_size=1, max_size=4))
def test_compared_texts_stay_what_they_were(texts: list[str]) -> None:
    versions = compare([(f"r{number}", text) for number, text in enumerate(texts)])
    assert sorted(label for version in versions for label in version.labels) == [
        f"r{number}" for number in range(len(texts))
    ]
    for version in versions:
        text = texts[int(version.labels[0][1:])]
        assert "".join(piece.text for piece in version.pieces) == text[:MAX_CHARS]
        assert all(piece.text for piece in version.pieces)


@given(*[st.lists(st.sampled_from("abc"), max_size=8)] * 2)
def test_no_more_words_are_marked_than_must_be(first: list[str], second: list[str]) -> None:
    kept = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for here, word in enumerate(first):
        for there, other in enumerate(second):
            longer = max(kept[here][there + 1], kept[here + 1][there])
            kept[here + 1][there + 1] = kept[here][there] + 1 if word == other else longer
    texts = compare([("r1", " ".join(first)), ("r2", " ".join(second))])
    if len(texts) == 2:
        for words, version in zip((first, second), texts, strict=True):
            marked = [word for piece in version.pieces if piece.differs for word in piece.text.split()]
            assert len(words) - len(marked) == kept[-1][-1]


@given(st.text(), st.booleans())
def test_a_shown_text_neither_adds_nor_drops_characters(text: str, look: bool) -> None:
    assert "".join(span.text for span in text_view(text, look=look).spans) == text


@given(st.text(max_size=50), st.text(min_size=80, max_size=120), st.text(max_size=50))
def test_a_prompt_with_its_hole_filled_is_the_prompt(before: str, parent: str, after: str) -> None:
    view = prompt_view("t", before + parent + after, parent)
    parts = ["".join(span.text for span in part.spans) for part in (view.before, *view.rest)]
    assert parent.join(parts) == before + parent + after


@given(st.text(alphabet=st.characters()))
def test_whatever_a_page_is_given_comes_out_escaped_and_visible(text: str) -> None:
    shown = make_environment().from_string("<pre>{{ text }}</pre>").render(text=text)[5:-6]
    assert "<" not in shown
    assert ">" not in shown
    assert '"' not in shown
    assert shown == visible(shown)
