"""What the scores of cohorts say: contrasts with a known error rate, and what warns against them.

Makes a `Design` out of scores, asks `contrasts` for every difference that the page speaks of, and adjusts
all of them together: on at most 5 % of pages stands a claim that is not true. Values only; `words` says them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from genworker.reports.claims import LEVEL, Contrast, Factor, Finding, adjusted, turned
from genworker.reports.contrasts import (
    Cell,
    Crossed,
    Design,
    Estimate,
    Judge,
    Reliability,
    Shrunken,
    central_tendencies,
    combos_against_rest,
    combos_needed,
    drift,
    estimate,
    interaction,
    reliability,
    self_preferences,
    severities,
    shrink,
    visible_difference,
)
from genworker.reports.pairwise import Comparison, pairwise_contrasts
from genworker.reports.scores import Scores
from genworker.reports.statistics import centre, score_interval

PAIRED_LEVELS = 5
"""Up to so many levels every pair is compared; with more each is compared with the rest."""
MOST_LEVELS = 40
"""Templates, models or judges over which contrasts would take too long, and nobody would read them."""
WARNED_SHARE = 0.02
"""Missing scores under this share bias little and are not tested."""
SURE = 0.01
"""A judge that drifts so surely is no measure for the others."""
JUDGED_SHARE = 0.8
"""A judge that scored fewer of the texts is left out of the judges' reliability."""


COORDINATES: Mapping[Factor, tuple[int, ...]] = {
    Factor.DRAFT: (1,),
    Factor.ESSAY: (2,),
    Factor.AUTHOR: (3,),
    Factor.DRAFT_ESSAY: (1, 2),
}
"""Where the factors of a text stand in a `Cell`."""
JOINT = " × "
"""Between the parts of a level of two factors."""


@dataclass(frozen=True, slots=True)
class Level:
    """One level of a factor by itself.

    Attributes:
        mean: over its scores (over essays' means where they have very unequal numbers of scores).
        low: of the mean's 95 % interval; ``None`` under three clusters.
        shrunken: what may be expected when it is measured again, where levels are many.
        next: its contrast with the one that is ranked below it; ``None`` where there is none.
    """

    level: str
    mean: float | None
    low: float | None
    high: float | None
    scored: int
    planned: int
    essays: int
    shrunken: Shrunken | None = None
    next: Finding | None = None


@dataclass(frozen=True, slots=True)
class Ranking:
    """The levels of one factor, the best first.

    Attributes:
        interval_for: ``these combos`` or ``new combos``: for what the intervals of the means hold.
        clusters: combos or essays at most that an interval counts.
        visible: a true difference smaller than this would most likely go unseen; ``None`` where unknown.
        cannot_tell: whether the levels cannot be told apart at all (shrinkage leaves nothing).
    """

    factor: Factor
    levels: Sequence[Level]
    interval_for: str
    clusters: int
    visible: float | None = None
    cannot_tell: bool = False


@dataclass(frozen=True, slots=True)
class Missing:
    """Scores of the plan that are not there, and whether rather weak texts lack them.

    Attributes:
        away: mean of the other judges on texts that lack a score minus on texts that lack none.
    """

    count: int
    planned: int
    away: Estimate | None

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return self.count / self.planned if self.planned else 0.0

    @property
    def warns(self) -> bool:
        """Whether they are too many and too uneven to be chance."""
        return self.away is not None and self.share > WARNED_SHARE and self.away.p < LEVEL


@dataclass(frozen=True, slots=True)
class Findings:
    """All that a page says of its scores beyond the tables.

    Attributes:
        findings: every contrast of the page, the claimed ones first, the largest first.
        visible: the least difference that this experiment shows, over all text factors; ``None`` if none.
        names: of combos, by id, where their concepts are known.
        noise_share: how much of a contrast's variance judges' replicates could take away, from 0 to 1.
    """

    findings: Sequence[Finding] = ()
    rankings: Sequence[Ranking] = ()
    missing: Missing | None = None
    reliability: Reliability | None = None
    visible: float | None = None
    combos: int = 0
    names: Mapping[str, str] = field(default_factory=dict)
    noise_share: float | None = None

    def name(self, factor: Factor, level: str) -> str:
        """A level as a reader knows it: a combo by its concepts."""
        return self.names.get(level, level) if factor is Factor.COMBO else level

    def claimed(self, *factors: Factor) -> list[Finding]:
        """What is claimed of these factors; of all of them without one."""
        return [
            found for found in self.findings if found.claimed and (not factors or found.factor in factors)
        ]

    def of(self, factor: Factor) -> list[Finding]:
        """Every contrast of a factor."""
        return [found for found in self.findings if found.factor is factor]

    def ranking(self, factor: Factor) -> Ranking | None:
        """The ranking of a factor; ``None`` where it does not vary."""
        return next((ranking for ranking in self.rankings if ranking.factor is factor), None)

    def needed(self, found: Finding) -> int | None:
        """Combos with which a difference such as this one would be found in four of five cases."""
        return combos_needed(found.estimate, found.difference)

    def warnings(self) -> list[dict[str, Any]]:
        """What speaks against taking the findings at their word, for machines."""
        warnings: list[dict[str, Any]] = []
        missing = self.missing
        if missing is not None and missing.warns and missing.away is not None:
            warnings.append(
                {
                    "kind": "missing_not_at_random",
                    "missing": missing.count,
                    "planned": missing.planned,
                    "difference": missing.away.difference,
                    "p": missing.away.p,
                }
            )
        warnings += [
            {"kind": "drift", "judge": found.level, "difference": found.difference}
            for found in self.claimed(Factor.DRIFT)
        ]
        return warnings


# From scores to a design


@dataclass(slots=True)
class _Text:
    """One essay with the sum, the count and the plan of each judge's scores."""

    cell: Cell
    by_judge: dict[int, list[float]] = field(default_factory=dict)

    @property
    def lacks(self) -> bool:
        return any(count < planned for _, count, planned in self.by_judge.values())

    def marks(self) -> dict[int, float]:
        return {judge: total / count for judge, (total, count, _) in self.by_judge.items() if count}


def _texts(scores: Scores) -> dict[str, _Text]:
    places = {axis: place for place, axis in enumerate(scores.axes)}
    texts: dict[str, _Text] = {}
    for evaluation in scores.evaluations:
        essay = evaluation.essay
        text = texts.get(essay.gen_id)
        if text is None:
            key = essay.key
            cell = Cell(key.combo_id, key.draft_template, key.generation_template, key.generation_model)
            text = texts[essay.gen_id] = _Text(cell)
        judge = places[evaluation.axis]
        counts = text.by_judge.get(judge)
        if counts is None:
            counts = text.by_judge[judge] = [0.0, 0, 0]
        counts[2] += 1
        if evaluation.score is not None:
            counts[0] += evaluation.score
            counts[1] += 1
    return texts


def _design(judges: Sequence[Judge], texts: Iterable[_Text], fill: _Fill | None = None) -> Design:
    sums: dict[Cell, dict[int, list[float]]] = {}
    for text in texts:
        at = sums.setdefault(text.cell, {})
        marks = text.marks() if fill is None else fill.marks(text)
        for judge, value in marks.items():
            both = at.get(judge)
            if both is None:
                at[judge] = [value, 1]
            else:
                both[0] += value
                both[1] += 1
    cells = {
        cell: {judge: total / count for judge, (total, count) in at.items()}
        for cell, at in sums.items()
        if at
    }
    return Design(judges, cells)


class _Fill:
    """An additive fit, score = essay + judge: severities, residuals, what a missing score may have been."""

    def __init__(self, texts: Sequence[_Text]) -> None:
        self.severity: dict[int, float] = defaultdict(float)
        marks = [text.marks() for text in texts]
        for _ in range(10):
            sums: dict[int, list[float]] = defaultdict(lambda: [0.0, 0])
            for given in marks:
                if len(given) > 1:
                    centre = math.fsum(value - self.severity[judge] for judge, value in given.items()) / len(
                        given
                    )
                    for judge, value in given.items():
                        both = sums[judge]
                        both[0] += value - centre
                        both[1] += 1
            new = {judge: total / count for judge, (total, count) in sums.items()}
            change = max((abs(new[judge] - self.severity[judge]) for judge in new), default=0.0)
            self.severity.update(new)
            if change < 1e-6:
                break
        squares, freedom = 0.0, 0
        for given in marks:
            if len(given) > 1:
                centre = math.fsum(value - self.severity[judge] for judge, value in given.items()) / len(
                    given
                )
                squares += math.fsum(
                    (value - self.severity[judge] - centre) ** 2 for judge, value in given.items()
                )
                freedom += len(given) - 1
        freedom -= len(self.severity) - 1
        self.residual = math.sqrt(squares / freedom) if freedom > 0 else 0.0

    def level(self, given: Mapping[int, float]) -> float | None:
        """A text's mean with the judges' severities taken out; ``None`` without a score."""
        if not given:
            return None
        return math.fsum(value - self.severity[judge] for judge, value in given.items()) / len(given)

    def marks(self, text: _Text) -> dict[int, float]:
        """The text's scores, each missing one being what the other judges say less one residual."""
        given = text.marks()
        found = dict(given)
        for judge, (total, count, planned) in text.by_judge.items():
            if count < planned:
                level = self.level({other: value for other, value in given.items() if other != judge})
                if level is not None:
                    guess = level + self.severity[judge] - self.residual
                    found[judge] = (total + (planned - count) * guess) / planned
        return found


def _missing(texts: Sequence[_Text], fill: _Fill | None) -> Missing:
    planned = sum(int(counts[2]) for text in texts for counts in text.by_judge.values())
    count = planned - sum(int(counts[1]) for text in texts for counts in text.by_judge.values())
    if fill is None:
        return Missing(count, planned, None)
    by_combo: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for text in texts:
        level = fill.level(
            {judge: total / n for judge, (total, n, wanted) in text.by_judge.items() if n == wanted}
        )
        if level is not None:
            by_combo[text.cell.combo][text.lacks].append(level)
    away = [
        math.fsum(lacking) / len(lacking) - math.fsum(whole) / len(whole)
        for whole, lacking in by_combo.values()
        if whole and lacking
    ]
    return Missing(count, planned, estimate(away, "combo"))


# All contrasts of a page


def _contrasts(design: Design) -> dict[Contrast, Estimate]:
    """Everything that the page compares, before any adjustment."""
    found: dict[Contrast, Estimate | None] = {}
    largest: list[tuple[float, Factor, str, str]] = []
    for factor, coordinates in COORDINATES.items():
        crossed = Crossed(design, coordinates)
        levels = crossed.levels
        if factor is Factor.DRAFT_ESSAY and not all(len(design.levels(place)) > 1 for place in coordinates):
            continue
        if not 2 <= len(levels) <= MOST_LEVELS:
            continue
        names = [JOINT.join(level) for level in levels]
        best: tuple[float, Factor, str, str] | None = None
        if len(levels) <= PAIRED_LEVELS:
            for i, a in enumerate(levels):
                for j in range(i + 1, len(levels)):
                    value = found[factor, names[i], names[j]] = crossed.pair(a, levels[j])
                    if value is not None and (best is None or abs(value.difference) > best[0]):
                        best = (abs(value.difference), factor, names[i], names[j])
        else:
            for i, a in enumerate(levels):
                found[factor, names[i], "rest"] = crossed.rest(a)
            by_value = sorted(
                (value.difference, name)
                for name in names
                if (value := found[factor, name, "rest"]) is not None
            )
            if len(by_value) > 1:
                best = (by_value[-1][0] - by_value[0][0], factor, by_value[-1][1], by_value[0][1])
        if best is not None and len(coordinates) == 1:
            largest.append(best)
    largest.sort(reverse=True)
    if len(largest) > 1:
        (_, one, *first), (_, two, *second) = largest[:2]
        found[Factor.INTERACTION, " − ".join(first), " − ".join(second)] = interaction(
            design,
            (COORDINATES[one][0], first[0], first[1]),
            (COORDINATES[two][0], second[0], second[1]),
        )
    for combo, value in combos_against_rest(design).items():
        found[Factor.COMBO, combo, "rest"] = value
    models = {judge.model for judge in design.judges}
    if 2 <= len(models) <= MOST_LEVELS:
        for judge, value in severities(design).items():
            found[Factor.JUDGE, judge, "rest"] = value
        for judge, value in self_preferences(design).items():
            found[Factor.SELF_PREFERENCE, judge, "other authors"] = value
        for judge, value in central_tendencies(design).items():
            found[Factor.CENTRAL_TENDENCY, judge, "rest"] = value
    return {key: value for key, value in found.items() if value is not None}


def find(
    scores: Scores,
    *,
    finished: Sequence[float] = (),
    comparisons: Sequence[Comparison] = (),
) -> Findings:
    """Everything that can be said of these scores, with its error rate.

    Args:
        finished: when each of `scores.evaluations` was finished, in any unit, 0 where that is not known;
            without it nothing is said of drift.
        comparisons: of two texts each, by judges or people.
    """
    by_id = _texts(scores)
    texts = list(by_id.values())
    judges = [Judge(axis.template, axis.model) for axis in scores.axes]
    design = _design(judges, texts)
    lacking = any(text.lacks for text in texts)
    fill = _Fill(texts) if lacking else None
    missing = _missing(texts, fill)
    found = _contrasts(design)
    filled = _contrasts(_design(judges, texts, fill)) if missing.warns and fill is not None else None
    if len(finished):
        drifts = _drifts(scores, by_id, finished)
        found |= drifts
        if filled is not None:
            filled |= drifts
    exact: dict[Contrast, float] = {}
    if comparisons:
        paired, exact = pairwise_contrasts(comparisons)
        found |= paired
        if filled is not None:
            filled |= paired
    findings = adjusted(found, filled, exact)
    text_factors = (*COORDINATES, Factor.COMBO)
    visible = [
        visible_difference(finding.estimate)
        for finding in findings
        if finding.factor in text_factors and finding.estimate.error
    ]
    return Findings(
        findings,
        list(_rankings(scores, texts, findings)),
        missing,
        _reliability(judges, texts),
        min(visible, default=None),
        len(design.levels(0)),
        scores.concepts,
        _noise_share(scores, texts, findings),
    )


def _drifts(
    scores: Scores, texts: Mapping[str, _Text], finished: Sequence[float]
) -> dict[Contrast, Estimate]:
    """Each judge's residual against the order in which evaluations were finished."""
    order = sorted(
        (moment, place)
        for place, (evaluation, moment) in enumerate(zip(scores.evaluations, finished, strict=True))
        if evaluation.score is not None and moment
    )
    if len(order) < 2:
        return {}
    marks = {gen_id: text.marks() for gen_id, text in texts.items()}
    found = _drifts_against(scores, marks, order, None)
    surest = min(found, key=lambda model: found[model].p, default=None)
    if surest is not None and found[surest].p < SURE:
        # Beside a judge that drifts every other one seems to drift the other way.
        found |= {
            model: value
            for model, value in _drifts_against(scores, marks, order, surest).items()
            if model != surest
        }
    return {(Factor.DRIFT, model, "time"): value for model, value in found.items()}


def _drifts_against(
    scores: Scores,
    marks: Mapping[str, Mapping[int, float]],
    order: Sequence[tuple[float, int]],
    left_out: str | None,
) -> dict[str, Estimate]:
    """Each judge against the others.

    Args:
        order: (when, place in the evaluations), the first first.
        left_out: a judge that the others are not compared with.
    """
    points: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    last = len(order) - 1
    for rank, (_, place) in enumerate(order):
        evaluation = scores.evaluations[place]
        own = evaluation.axis.model
        others = [
            value
            for judge, value in marks[evaluation.essay.gen_id].items()
            if scores.axes[judge].model not in (own, left_out)
        ]
        if others and evaluation.score is not None:
            away = evaluation.score - math.fsum(others) / len(others)
            points[own][evaluation.essay.key.combo_id].append((rank / last, away))
    return {model: value for model, at in points.items() if (value := drift(at)) is not None}


def _reliability(judges: Sequence[Judge], texts: Sequence[_Text]) -> Reliability | None:
    counts = [0] * len(judges)
    for text in texts:
        for judge, (_, count, _) in text.by_judge.items():
            counts[judge] += bool(count)
    chosen = [judge for judge, count in enumerate(counts) if count >= JUDGED_SHARE * len(texts)]
    table = []
    for text in texts:
        given = text.marks()
        if all(judge in given for judge in chosen):
            table.append([given[judge] for judge in chosen])
    return reliability(table)


def _noise_share(scores: Scores, texts: Sequence[_Text], findings: Sequence[Finding]) -> float | None:
    """The part of a contrast's variance that comes from the judges' replicates."""
    given: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for evaluation in scores.evaluations:
        if evaluation.score is not None and evaluation.row.replicate <= 3:
            given[evaluation.essay.gen_id, *evaluation.axis].append(evaluation.score)
    squares, freedom = 0.0, 0
    for values in given.values():
        if len(values) > 1:
            middle = math.fsum(values) / len(values)
            squares += math.fsum((value - middle) ** 2 for value in values)
            freedom += len(values) - 1
    widest = max(
        (f for f in findings if f.factor in COORDINATES and f.estimate.unit == "combo"),
        key=lambda finding: finding.estimate.deviation,
        default=None,
    )
    if not freedom or widest is None or not widest.estimate.deviation:
        return None
    per_cluster = max(1.0, widest.estimate.pairs / widest.estimate.clusters)
    replicates = max(1.0, sum(map(len, given.values())) / len(given))
    return min(1.0, 2 * squares / freedom / (per_cluster * replicates) / widest.estimate.deviation**2)


# Rankings


def _rankings(scores: Scores, texts: Sequence[_Text], findings: Sequence[Finding]) -> Iterable[Ranking]:
    by_key = {(finding.factor, finding.level, finding.against): finding for finding in findings}
    combos = {text.cell.combo for text in texts}
    for factor in (Factor.COMBO, *COORDINATES):
        coordinates = COORDINATES.get(factor, (0,))
        groups: dict[str, list[_Text]] = defaultdict(list)
        for text in texts:
            groups[JOINT.join(text.cell[place] or "?" for place in coordinates)].append(text)
        varies = all(len({text.cell[place] for text in texts}) > 1 for place in coordinates)
        if len(groups) < 2 or not varies:
            continue
        by_combo = factor is not Factor.COMBO and len(combos) >= 3
        levels = [_level(level, group, by_combo) for level, group in groups.items()]
        shrunken = None
        if factor is Factor.COMBO:
            means = {
                level: [math.fsum(marks.values()) / len(marks) for text in group if (marks := text.marks())]
                for level, group in groups.items()
            }
            shrunken = shrink(means)
            if shrunken:
                levels = [replace(level, shrunken=shrunken[level.level]) for level in levels]
        levels.sort(key=lambda level: -math.inf if level.mean is None else _rank_value(level), reverse=True)
        contrasts = [finding for finding in findings if finding.factor is factor and finding.estimate.error]
        yield Ranking(
            factor,
            [
                replace(level, next=_next(factor, level, below, by_key))
                for level, below in zip(levels, [*levels[1:], None], strict=True)
            ],
            "new combos" if by_combo else "these combos",
            max((len({text.cell.combo for text in group}) for group in groups.values()), default=0),
            min((visible_difference(finding.estimate) for finding in contrasts), default=None),
            shrunken == {},
        )


def _rank_value(level: Level) -> float:
    return level.shrunken.value if level.shrunken is not None else level.mean or 0.0


def _level(name: str, texts: Sequence[_Text], by_combo: bool) -> Level:
    clusters: dict[object, list[float]] = defaultdict(list)
    scored = planned = 0
    for place, text in enumerate(texts):
        cluster = clusters[text.cell.combo if by_combo else place]
        for total, count, wanted in text.by_judge.values():
            scored, planned = scored + int(count), planned + int(wanted)
            if count:
                cluster += [total / count] * int(count)
    low, high = score_interval(list(clusters.values())) or (None, None)
    return Level(name, centre(list(clusters.values())), low, high, scored, planned, len(texts))


def _next(
    factor: Factor, level: Level, below: Level | None, by_key: Mapping[Contrast, Finding]
) -> Finding | None:
    """The contrast with the level ranked below; with the rest where only that was asked."""
    if below is not None:
        found = by_key.get((factor, level.level, below.level))
        if found is not None:
            return found
        found = by_key.get((factor, below.level, level.level))
        if found is not None:
            return turned(found)
    return by_key.get((factor, level.level, "rest"))
