"""Two readings of the same design side by side: another cohort, or what was there before a template's edit.

Compared is always paired: the same combo, templates, author and judge on both sides. Values only.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from genworker.reports.claims import Contrast, Factor, Finding, adjusted
from genworker.reports.contrasts import COMBOS, Cell, estimate
from genworker.reports.differences import Version, compare
from genworker.reports.scores import Axis, Evaluation, Outcome, Scores
from genworker.reports.tables import Table
from genworker.reports.words import direction, interval_text, pairs_text

TEXTS = 4
"""Pairs of texts that are shown: those whose scores have changed most."""
MOST_ROWS = 200
"""Cells on a page; the table has every one."""

_FACTORS = (
    (Factor.COMBO, "combo"),
    (Factor.DRAFT, "draft"),
    (Factor.ESSAY, "essay"),
    (Factor.AUTHOR, "author"),
)


class Change(NamedTuple):
    """One cell on both sides.

    Attributes:
        after: the mean of the side that is reported on; `before` of the one that it is compared with.
        after_id: an essay of the cell, as `before_id`.
    """

    cell: Cell
    axis: Axis
    after: float
    before: float
    after_id: str
    before_id: str

    @property
    def difference(self) -> float:
        """After minus before."""
        return self.after - self.before


class Beside(NamedTuple):
    """Two texts, or two templates, with the words that differ."""

    title: str
    versions: tuple[Version, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything about two sides.

    Attributes:
        against: what the other side is called.
        overall: the difference over all; ``None`` where too little is on both sides.
        levels: the difference within each level of each factor that varies.
        changes: every cell that both sides have scored, the largest difference first.
        only_after: cells that one side alone has, as `only_before`.
    """

    against: str
    overall: Finding | None
    levels: Sequence[Finding]
    changes: Sequence[Change]
    only_after: int
    only_before: int

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "against": self.against,
            "overall": None if self.overall is None else self.overall.to_json(),
            "levels": [finding.to_json() for finding in self.levels],
            "cells": len(self.changes),
            "only_here": self.only_after,
            "only_there": self.only_before,
        }


def compare_scores(after: Scores, before: Scores, against: str) -> Comparison:
    """Pair the cells of two sides and say what has changed.

    A coordinate that has one level on either side, and not the same, is what the two differ in: it is left
    out of the pairing.

    Args:
        against: what the other side is called.
    """
    here, there = _cells(after), _cells(before)
    apart = _apart(here, there)
    first, second = _without(here, apart), _without(there, apart)
    shared = [key for key in first if key in second]
    changes = [Change(*key, first[key][0], second[key][0], first[key][1], second[key][1]) for key in shared]
    found: dict[Contrast, Any] = {}
    contrasts: list[tuple[Contrast, list[Change]]] = []
    for factor, name in _FACTORS:
        by_level: dict[str, list[Change]] = defaultdict(list)
        for change in changes:
            by_level[getattr(change.cell, name)].append(change)
        if 1 < len(by_level) <= MOST_ROWS:
            contrasts += [((factor, level, against), group) for level, group in by_level.items() if level]
    for key, group in contrasts:
        value = _estimate(group)
        if value is not None:
            found[key] = value
    # One question first; of its parts something is claimed only where the whole is, so that at most one page
    # in twenty claims a change that is none (a fixed sequence of tests).
    whole = _estimate(changes)
    overall = None if whole is None else adjusted({(Factor.CHANGE, "all", against): whole})[0]
    is_open = overall is not None and overall.claimed
    return Comparison(
        against,
        overall,
        [finding if is_open else replace(finding, claimed=False) for finding in adjusted(found)],
        sorted(changes, key=lambda change: -abs(change.difference)),
        len(first) - len(shared),
        len(second) - len(shared),
    )


_Side = dict[tuple[Cell, Axis], tuple[float, str]]


def _cells(scores: Scores) -> _Side:
    values: dict[tuple[Cell, Axis], list[float]] = defaultdict(list)
    ids: dict[tuple[Cell, Axis], str] = {}
    for evaluation in scores.evaluations:
        if evaluation.score is not None:
            key = evaluation.essay.key
            cell = Cell(key.combo_id, key.draft_template, key.generation_template, key.generation_model)
            values[cell, evaluation.axis].append(evaluation.score)
            ids.setdefault((cell, evaluation.axis), evaluation.essay.gen_id)
    return {key: (math.fsum(group) / len(group), ids[key]) for key, group in values.items()}


def _apart(here: _Side, there: _Side) -> list[int]:
    """The coordinates that are one thing here and another there."""
    found = []
    for place in range(1, len(Cell._fields)):
        mine, theirs = ({cell[place] for cell, _ in side} for side in (here, there))
        if len(mine) == len(theirs) == 1 and mine != theirs:
            found.append(place)
    return found


def _without(side: _Side, places: Sequence[int]) -> _Side:
    blank = {Cell._fields[place]: "" for place in places}
    return {(cell._replace(**blank), axis): value for (cell, axis), value in side.items()}


def _estimate(changes: Iterable[Change]) -> Any:
    by_draft: dict[tuple[str, ...], list[float]] = defaultdict(list)
    pairs = wins = ties = 0
    for change in changes:
        cell = change.cell
        by_draft[cell.combo, cell.draft, cell.author].append(change.difference)
        pairs, wins, ties = pairs + 1, wins + (change.difference > 0), ties + (change.difference == 0)
    by_combo: dict[str, list[float]] = defaultdict(list)
    for place, values in by_draft.items():
        by_combo[place[0]] += values
    unit, groups = "combo", list(by_combo.values())
    if len(by_combo) < COMBOS:
        unit, groups = "draft", list(by_draft.values())
    means = [math.fsum(group) / len(group) for group in groups]
    return estimate(means, unit, pairs=pairs, wins=wins, ties=ties)


CHANGE_COLUMNS = (
    *("combo_id", "concepts", "draft_template", "generation_template", "generation_model"),
    *("evaluation_template", "evaluation_llm_model", "after", "before", "difference"),
    *("essay_gen_id", "essay_gen_id_before"),
)


def changes_table(comparison: Comparison, concepts: Mapping[str, str]) -> Table:
    """``comparison.csv``: every cell that both sides have scored."""
    return Table(
        CHANGE_COLUMNS,
        [
            [
                *(change.cell.combo, concepts.get(change.cell.combo), *change.cell[1:], *change.axis),
                *(change.after, change.before, change.difference, change.after_id, change.before_id),
            ]
            for change in comparison.changes
        ],
        decimals=3,
    )


def sentence(comparison: Comparison, name: str) -> str:
    """What the comparison comes to."""
    found = comparison.overall
    if found is None:
        return f"Too little is on both sides to compare {name} with {comparison.against}."
    low, high = (found.low, found.high) if found.difference >= 0 else (-found.high, -found.low)
    size = f"{abs(found.difference):.2f} ({interval_text(low, high)})"
    over = f"over {found.estimate.clusters} {found.estimate.unit}s; {direction(found)} {pairs_text(found)}"
    if not found.claimed:
        return (
            f"{name} and {comparison.against} differ by no more than chance explains: {size} "
            f"on average {over}."
        )
    word = "above" if found.difference > 0 else "below"
    return f"{name} scores {size} {word} {comparison.against} on average {over}."


def beside(
    changes: Sequence[Change],
    concepts: Mapping[str, str],
    text_after: Callable[[str], str | None],
    text_before: Callable[[str], str | None],
) -> list[Beside]:
    """The texts of the cells whose scores have changed most, each pair of texts once."""
    found: list[Beside] = []
    seen: set[tuple[str, str]] = set()
    for change in changes:
        pair = (change.after_id, change.before_id)
        if pair in seen:
            continue
        seen.add(pair)
        new, old = text_after(change.after_id), text_before(change.before_id)
        if new and old:
            name = concepts.get(change.cell.combo, change.cell.combo)
            what = " · ".join(part for part in (name, *change.cell[1:]) if part)
            title = f"{what}: {change.before:.2f} → {change.after:.2f} by {change.axis.model}"
            found.append(Beside(title, tuple(compare([("before", old), ("after", new)]))))
        if len(found) == TEXTS:
            break
    return found


def replaced_scores(scores: Scores, before: Callable[[Evaluation], float | None]) -> tuple[Scores, Scores]:
    """(after, before) of the evaluations that were made again.

    Args:
        before: the score that an evaluation had before; ``None`` where nothing was kept of it.
    """
    after, earlier = [], []
    for evaluation in scores.evaluations:
        score = before(evaluation)
        if score is not None:
            after.append(evaluation)
            earlier.append(evaluation._replace(score=score, outcome=Outcome.SCORED, error=None))
    return (
        Scores(scores.cohort_ids, scores.plan, after, scores.axes, (), scores.concepts),
        Scores(scores.cohort_ids, scores.plan, earlier, scores.axes, (), scores.concepts),
    )
