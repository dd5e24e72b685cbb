"""The best essays of a cohort, by the scores that they got."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from genworker.reports.lineage import essays_of
from genworker.reports.scores import Scores
from genworker.reports.statistics import mean


@dataclass(frozen=True, slots=True)
class TopEssay:
    """One essay.

    Attributes:
        mean: the mean of its evaluators' means, each evaluator counting the same.
        count: scores that went in.
        by_axis: (evaluator, mean of its scores) for each that gave one.
    """

    gen_id: str
    combo_id: str
    template: str
    model: str
    mean: float
    count: int
    by_axis: tuple[tuple[str, float], ...]

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "gen_id": self.gen_id,
            "combo_id": self.combo_id,
            "template": self.template,
            "model": self.model,
            "mean": self.mean,
            "scores": self.count,
            "evaluators": dict(self.by_axis),
        }


def top_essays(scores: Scores, count: int, *, by: str | None = None, min_scores: int = 1) -> list[TopEssay]:
    """At most `count` essays, the best first; of equal ones the one with more scores, then the earlier one.

    Args:
        by: an evaluator's name, ``<template>_<model>``, or a template that stands for all models that fill
            it in; without it all evaluators count.
        min_scores: essays with fewer scores are left out.

    Raises:
        LookupError: there is no such evaluator; the message names those that there are.
    """
    axes = [axis for axis in scores.axes if by is None or by in (axis.name, axis.template)]
    if by is not None and not axes:
        known = ", ".join(axis.name for axis in scores.axes) or "none"
        raise LookupError(f"no evaluator of this cohort is called {by!r}; there are: {known}")
    found = []
    for essay in essays_of(scores):
        values = {
            axis: [e.score for e in essay.by_axis.get(axis, ()) if e.score is not None] for axis in axes
        }
        means = [(axis.name, value) for axis in axes if (value := mean(values[axis])) is not None]
        number = sum(map(len, values.values()))
        overall = mean([value for _, value in means])
        if overall is None or number < min_scores:
            continue
        key = essay.essay.key
        found.append(
            TopEssay(
                essay.essay.gen_id,
                key.combo_id,
                key.generation_template,
                key.generation_model,
                overall,
                number,
                tuple(means),
            )
        )
    found.sort(key=lambda essay: (-essay.mean, -essay.count))
    return found[:count]
