"""The queue of a rater: which texts a person is shown, blind, and in which order."""

from __future__ import annotations

import random

from genworker.core.stages import Stage
from genworker.store.ratings import (
    read_choices,
    read_ratings,
)
from genworker.viewer.index import DONE
from genworker.viewer.queries import Filter
from genworker.viewer.state import Viewer

QUEUE_TEXTS = 400
"""Texts that are drawn for one rater at most."""


def rating_queue(
    viewer: Viewer, cohort: str, rater: str, mode: str, seed: int
) -> tuple[list[tuple[str, ...]], int]:
    """What a rater is shown, in order, without what they have rated.

    Texts are drawn in rounds, one of each cell (draft template, essay template, author) a round, so that
    after any number of ratings every factor has about as many; cells whose judges agree least come first
    within a round. The seed draws the order otherwise.

    Returns:
        The queue, each a gen_id or two, and how many this rater has done.
    """
    done: set[str]
    if mode == "pair":
        done = {
            queue_name(tuple(sorted((one.first, one.second)))) for one in read_choices(viewer.paths, rater)
        }
    else:
        done = {one.gen_id for one in read_ratings(viewer.paths, rater)}
    drawn = random.Random(f"{seed}|{cohort}")
    with viewer.queries(cohort) as queries:
        spread = queries.spread()
        cells: dict[tuple[str | None, ...], list[str]] = {}
        for row in queries.each(Filter(stage=Stage.ESSAY.value, state=DONE)):
            cells.setdefault((row.draft_template, row.essay_template, row.author), []).append(row.gen_id)
    for members in cells.values():
        drawn.shuffle(members)
    names = sorted(
        cells, key=lambda cell: (-max((spread.get(one, 0.0) for one in cells[cell]), default=0.0), cell)
    )
    order: list[str] = []
    while names and len(order) < QUEUE_TEXTS:
        order += [cells[name].pop() for name in names]
        names = [name for name in names if cells[name]]
    if mode == "pair":
        pairs = []
        for first, second in zip(order[::2], order[1::2], strict=False):
            sides = (first, second) if drawn.random() < 0.5 else (second, first)
            if queue_name(tuple(sorted(sides))) not in done:
                pairs.append(sides)
        return [tuple(pair) for pair in pairs], len(done)
    return [(gen_id,) for gen_id in order if gen_id not in done], len(done)


def queue_name(ids: tuple[str, ...]) -> str:
    """A name for one or two texts, whatever their order."""
    return ".".join(sorted(ids))
