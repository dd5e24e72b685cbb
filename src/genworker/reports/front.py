"""The first screen: the answer in plain words, and a ranking of each factor. Values only, no HTML."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from genworker.reports.claims import Factor, Finding
from genworker.reports.findings import Findings, Level, Ranking
from genworker.reports.judges import Histogram, JudgesView
from genworker.reports.words import (
    NOUNS,
    answer,
    author_note,
    direction,
    figure,
    interval_text,
    pairs_text,
    power_sentences,
)

SHOWN_LEVELS = 5
"""Levels of a ranking that stand in sight; the others are a click away."""
MOST_LEVELS = 60
"""Levels of a ranking on a page at all; the tables have every one."""


@dataclass(frozen=True, slots=True)
class ContrastView:
    """A contrast as a cell: ``0.71``, ``0.40 to 1.02``, ``better in 216 of 360 pairs``.

    Attributes:
        against: what it is compared with, as a reader knows it.
    """

    against: str
    difference: str
    interval: str
    pairs: str
    claimed: bool


@dataclass(frozen=True, slots=True)
class LevelView:
    """One row of a ranking.

    Attributes:
        drawn: (low, mean, high) from 0 to 1 on the ranking's scale; ``None`` for what is not known.
        expected: what may be expected when it is measured again, where the best of many is measured too high.
        lacks: scores that are planned and not there.
    """

    name: str
    mean: str
    interval: str
    drawn: tuple[float | None, float | None, float | None]
    marks: Histogram
    scored: int
    planned: int
    lacks: int
    expected: str
    contrast: ContrastView | None


@dataclass(frozen=True, slots=True)
class RankingView:
    """One factor, the best level first.

    Attributes:
        title: such as ``Draft template``.
        of_next: whether each row's contrast is with the next one; else it is with the rest.
        rows: those in sight; `more` are a click away, `left_off` are in the tables alone.
        notes: sentences about what can be told and what could not.
    """

    factor: Factor
    title: str
    of_next: bool
    rows: Sequence[LevelView]
    more: Sequence[LevelView]
    left_off: int
    interval_for: str
    notes: Sequence[str]


@dataclass(frozen=True, slots=True)
class FrontView:
    """The first screen.

    Attributes:
        answer: sentences, the most important first.
        scale: (lowest, highest) mark of all that is drawn.
        contrasts: how many were compared and adjusted together.
    """

    answer: Sequence[str]
    rankings: Sequence[RankingView]
    scale: tuple[int, int]
    contrasts: int


def front_view(findings: Findings, judges: JudgesView) -> FrontView:
    """Everything that the first screen says."""
    scale = _scale(findings)
    rankings = [_ranking(findings, ranking, judges, scale) for ranking in findings.rankings]
    rankings.sort(key=_spread, reverse=True)
    return FrontView(answer(findings), rankings, scale, len(findings.findings))


def _spread(view: RankingView) -> tuple[bool, float]:
    """Single factors before their combinations, the one whose levels lie farthest apart first."""
    drawn = [mean for row in (*view.rows, *view.more) if (mean := row.drawn[1]) is not None]
    return view.factor is not Factor.DRAFT_ESSAY, max(drawn) - min(drawn) if drawn else 0.0


def _scale(findings: Findings) -> tuple[int, int]:
    ends = [
        value
        for ranking in findings.rankings
        for level in ranking.levels[:MOST_LEVELS]
        for value in (level.low, level.mean, level.high)
        if value is not None
    ]
    if not ends:
        return 0, 10
    low, high = math.floor(min(ends)), math.ceil(max(ends))
    return (low, high) if high > low else (max(0, low - 1), min(10, high + 1))


def _ranking(findings: Findings, ranking: Ranking, judges: JudgesView, scale: tuple[int, int]) -> RankingView:
    rows = [_level(findings, ranking, level, judges, scale) for level in ranking.levels[:MOST_LEVELS]]
    notes = list(_notes(findings, ranking))
    noun = NOUNS[ranking.factor]
    return RankingView(
        ranking.factor,
        noun[0].upper() + noun[1:],
        any(level.next is not None and level.next.against != "rest" for level in ranking.levels),
        rows[:SHOWN_LEVELS],
        rows[SHOWN_LEVELS:],
        len(ranking.levels) - len(rows),
        ranking.interval_for,
        notes,
    )


def _notes(findings: Findings, ranking: Ranking) -> Iterator[str]:
    if not findings.of(ranking.factor):
        yield "Too few to say which is better."
    if ranking.cannot_tell:
        yield "Measured again, any of these could be the best: they cannot be told apart."
    yield from author_note(ranking)
    yield from power_sentences(findings, ranking)


def _level(
    findings: Findings, ranking: Ranking, level: Level, judges: JudgesView, scale: tuple[int, int]
) -> LevelView:
    low, high = scale
    place = [None if v is None else (v - low) / (high - low) for v in (level.low, level.mean, level.high)]
    expected = ""
    if level.shrunken is not None:
        expected = f"{level.shrunken.value:.2f}"
    return LevelView(
        level_name(findings, ranking.factor, level.level),
        "–" if level.mean is None else f"{level.mean:.2f}",
        interval_text(level.low, level.high),
        (place[0], place[1], place[2]),
        judges.by_level.get((ranking.factor, level.level)) or Histogram(),
        level.scored,
        level.planned,
        level.planned - level.scored,
        expected,
        None if level.next is None else contrast_view(findings, level.next),
    )


def level_name(findings: Findings, factor: Factor, level: str) -> str:
    """A level as a reader knows it; ``not known`` where the store does not say."""
    return findings.name(factor, level) or "not known"


def contrast_view(findings: Findings, found: Finding) -> ContrastView:
    """A contrast as a page shows it."""
    return ContrastView(
        findings.name(found.factor, found.against),
        figure(found.difference),
        interval_text(found.low, found.high),
        f"{direction(found)} {pairs}" if (pairs := pairs_text(found)) else "",
        found.claimed,
    )
