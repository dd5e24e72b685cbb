"""Differences between templates, models, combos and judges of a crossed design, each with a known error rate.

Arithmetic on a `Design`; nothing here knows a store, a page or a sentence. What is compared is always
paired: two templates on the same combo, model and judge, two judges on the same text. Texts of one combo
resemble each other, so the combos are what is counted: a contrast is the mean of one number per combo, with
Student's t (R. Ibragimov, U. K. Müller, t-Statistic Based Correlation and Heterogeneity Robust Inference,
Journal of Business & Economic Statistics 28, 2010). `bench/findings.py` measures how often each is wrong.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import NamedTuple

from genworker.reports.distributions import NORMAL, chi2_quantile, f_quantile, t_quantile, t_tail

COMBOS = 5
"""Combos from which on they are the clusters of a contrast; under it the drafts are."""
CLUSTERS = 3
"""Clusters under which nothing is said of a mean or a difference."""
POWER = 0.8
"""How surely a difference is to be found where the size of an experiment is worked out."""


class Cell(NamedTuple):
    """The coordinates of a text. Replicates of one cell are averaged."""

    combo: str
    draft: str
    essay: str
    author: str


class Judge(NamedTuple):
    """One evaluator: the template that is filled in, and the model that does it."""

    template: str
    model: str


@dataclass(frozen=True, slots=True)
class Design:
    """Mean scores by text and judge.

    Attributes:
        judges: in the plan's order; `cells` names them by their place here.
        cells: per cell the mean score of each judge that has given one, essays first, then replicates.
    """

    judges: Sequence[Judge]
    cells: Mapping[Cell, Mapping[int, float]]

    def levels(self, factor: int) -> list[str]:
        """The known values of a coordinate of `Cell`, in order of first appearance."""
        return [level for level in dict.fromkeys(cell[factor] for cell in self.cells) if level]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A difference and how sure it is.

    Attributes:
        error: its standard error; 0 where all clusters say the same.
        freedom: degrees of freedom of Student's t.
        clusters: what was counted as independent; `unit` says of which kind: ``combo`` or ``draft``.
        deviation: the standard deviation between clusters.
        pairs: single comparisons behind it; `wins` of them were over 0, `ties` exactly 0.
    """

    difference: float
    error: float
    freedom: float
    clusters: int
    unit: str
    deviation: float
    pairs: int = 0
    wins: int = 0
    ties: int = 0

    @property
    def p(self) -> float:
        """How often chance alone makes a difference of this size or more."""
        if self.error == 0:
            return 0.0 if self.difference else 1.0
        return t_tail(self.difference / self.error, self.freedom)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """(low, high) that holds the true difference with this probability."""
        around = t_quantile((1 + level) / 2, self.freedom) * self.error
        return self.difference - around, self.difference + around


def estimate(
    values: Sequence[float], unit: str, *, pairs: int = 0, wins: int = 0, ties: int = 0
) -> Estimate | None:
    """The mean of one number per cluster with its error; ``None`` under three clusters."""
    count = len(values)
    if count < CLUSTERS:
        return None
    centre = math.fsum(values) / count
    deviation = math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (count - 1))
    # What is left when all are equal is rounding, not spread.
    deviation = 0.0 if deviation < 1e-12 * max(1.0, abs(centre)) else deviation
    return Estimate(
        centre, deviation / math.sqrt(count), count - 1, count, unit, deviation, pairs, wins, ties
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted so that under 0.05 stands a false one on at most 5 % of all pages.

    S. Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of Statistics 6
    (1979).
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted = [1.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


# Templates and models


@dataclass(slots=True)
class _Differences:
    """Differences of one contrast on their way to a number per cluster."""

    by_cell: dict[tuple[str, ...], list[float]] = field(default_factory=lambda: defaultdict(list))
    """(combo, draft's coordinates) to a difference per other coordinates, judges averaged."""
    pairs: int = 0
    wins: int = 0
    ties: int = 0

    def add(self, place: tuple[str, ...], differences: Sequence[float]) -> None:
        if differences:
            self.by_cell[place].append(math.fsum(differences) / len(differences))
            self.pairs += len(differences)
            self.wins += sum(value > 0 for value in differences)
            self.ties += sum(value == 0 for value in differences)

    def clusters(self, unit: str) -> dict[tuple[str, ...], float]:
        if unit == "draft":
            return {place: math.fsum(values) / len(values) for place, values in self.by_cell.items()}
        by_combo: dict[tuple[str, ...], list[float]] = defaultdict(list)
        for place, values in self.by_cell.items():
            by_combo[place[:1]] += values
        return {combo: math.fsum(values) / len(values) for combo, values in by_combo.items()}


class Crossed:
    """One factor of a design: its levels side by side wherever all else is equal.

    Args:
        factors: the coordinates of `Cell` that make a level; several make their combinations levels.
    """

    def __init__(self, design: Design, factors: Sequence[int]) -> None:
        self.design = design
        self.factors = tuple(factors)
        self._is_author = Cell._fields.index("author") in self.factors
        groups: dict[tuple[str, ...], dict[tuple[str, ...], Mapping[int, float]]] = defaultdict(dict)
        levels: dict[tuple[str, ...], None] = {}
        others = [place for place in range(len(Cell._fields)) if place not in self.factors]
        for cell, marks in design.cells.items():
            level = tuple(cell[place] for place in self.factors)
            if all(level):
                levels[level] = None
                groups[tuple(cell[place] for place in others)][level] = marks
        self.levels = list(levels)
        self._groups = groups
        # The coordinates of the draft, among the others: a pair of drafts is one piece of evidence.
        draft = [Cell._fields.index(name) for name in ("combo", "draft", "author")]
        self._of_draft = [others.index(place) for place in draft if place in others]

    def pair(self, a: tuple[str, ...], b: tuple[str, ...]) -> Estimate | None:
        """The contrast a − b; ``None`` where too little is there to say."""
        return self._estimate([self._differences(a, b)])

    def rest(self, a: tuple[str, ...]) -> Estimate | None:
        """The mean of the contrasts of `a` with every other level."""
        return self._estimate([self._differences(a, b) for b in self.levels if b != a])

    def _differences(self, a: tuple[str, ...], b: tuple[str, ...]) -> _Differences:
        found = _Differences()
        # An author's own judge may favour its texts: it is no witness here.
        barred = frozenset(
            place
            for place, judge in enumerate(self.design.judges)
            if self._is_author and (judge.model in a or judge.model in b)
        )
        for others, at in self._groups.items():
            first, second = at.get(a), at.get(b)
            if first is not None and second is not None:
                found.add(
                    tuple(others[place] for place in self._of_draft),
                    [
                        value - second[judge]
                        for judge, value in first.items()
                        if judge in second and judge not in barred
                    ],
                )
        return found

    def _estimate(self, found: Sequence[_Differences]) -> Estimate | None:
        combos = {place[0] for differences in found for place in differences.by_cell}
        unit = "combo" if len(combos) >= COMBOS else "draft"
        clusters = [differences.clusters(unit) for differences in found]
        values: list[float] = []
        for place in clusters[0] if clusters else ():
            here = [cluster[place] for cluster in clusters if place in cluster]
            if len(here) == len(clusters):  # with a level missing it would be another rest
                values.append(math.fsum(here) / len(here))
        return estimate(
            values,
            unit,
            pairs=sum(differences.pairs for differences in found),
            wins=sum(differences.wins for differences in found),
            ties=sum(differences.ties for differences in found),
        )


def interaction(design: Design, first: tuple[int, str, str], second: tuple[int, str, str]) -> Estimate | None:
    """How much a − b of one factor changes between c and d of another: (a − b at c) − (a − b at d).

    Args:
        first: (coordinate of `Cell`, a, b).
        second: (coordinate of `Cell`, c, d).
    """
    (one, a, b), (two, c, d) = first, second
    others = [place for place in range(len(Cell._fields)) if place not in (one, two)]
    groups: dict[tuple[str, ...], dict[tuple[str, str], Mapping[int, float]]] = defaultdict(dict)
    for cell, marks in design.cells.items():
        groups[tuple(cell[place] for place in others)][cell[one], cell[two]] = marks
    author = Cell._fields.index("author")
    authors = {level for place, *levels in (first, second) if place == author for level in levels}
    barred = {place for place, judge in enumerate(design.judges) if judge.model in authors}
    found = _Differences()
    for key, at in groups.items():
        if not all((x, y) in at for x in (a, b) for y in (c, d)):
            continue
        ac, bc, ad, bd = (at[x, y] for x, y in ((a, c), (b, c), (a, d), (b, d)))
        found.add(
            (key[0],),
            [
                (ac[judge] - bc[judge]) - (ad[judge] - bd[judge])
                for judge in ac
                if judge in bc and judge in ad and judge in bd and judge not in barred
            ],
        )
    values = list(found.clusters("combo").values())
    if len(values) < COMBOS:
        return None
    return estimate(values, "combo", pairs=found.pairs, wins=found.wins, ties=found.ties)


# Combos


def combos_against_rest(design: Design) -> dict[str, Estimate]:
    """Each combo against the mean of the others.

    Randomised blocks (W. G. Cochran, G. M. Cox, Experimental Designs, 2nd edition, 1957, chapter 4): rows
    are combos, columns draft templates, all else is averaged over the same cells. Where a score is
    missing, "the same cells" are those of an additive fit, which is the plain mean where none is.
    A combo that lacks a column is left out; there must be three combos and two columns.
    """
    by_place: dict[tuple[str, str], dict[tuple[str, str, int], float]] = defaultdict(dict)
    for cell, marks in design.cells.items():
        if cell.combo and cell.draft:
            at = by_place[cell.combo, cell.draft]
            for judge, value in marks.items():
                at[cell.essay, cell.author, judge] = value
    columns = list(dict.fromkeys(draft for _, draft in by_place))
    rows = [
        combo
        for combo in dict.fromkeys(combo for combo, _ in by_place)
        if all((combo, column) in by_place for column in columns)
    ]
    n, k = len(rows), len(columns)
    if n < CLUSTERS or k < 2:
        return {}
    table = _additive({(row, column): by_place[row, column] for row in rows for column in columns})
    row_means = {row: math.fsum(table[row, column] for column in columns) / k for row in rows}
    column_means = {column: math.fsum(table[row, column] for row in rows) / n for column in columns}
    grand = math.fsum(row_means.values()) / n
    freedom = (n - 1) * (k - 1)
    residual = math.fsum(
        (table[row, column] - row_means[row] - column_means[column] + grand) ** 2
        for row in rows
        for column in columns
    )
    error = math.sqrt(residual / freedom / k * n / (n - 1))
    error = 0.0 if error < 1e-12 else error
    sums: dict[tuple[str, tuple[str, str, int]], list[float]] = defaultdict(list)
    for row in rows:
        for column in columns:
            for place, value in by_place[row, column].items():
                sums[column, place].append(value)
    totals = {place: (math.fsum(values), len(values)) for place, values in sums.items()}
    found = {}
    for row in rows:
        pairs = wins = ties = 0
        for column in columns:
            for place, value in by_place[row, column].items():
                total, count = totals[column, place]
                if count > 1:
                    away = value - (total - value) / (count - 1)
                    pairs, wins, ties = pairs + 1, wins + (away > 1e-12), ties + (abs(away) <= 1e-12)
        difference = (row_means[row] - grand) * n / (n - 1)
        found[row] = Estimate(difference, error, freedom, n, "combo", error * math.sqrt(n), pairs, wins, ties)
    return found


def _additive(
    cells: Mapping[tuple[str, str], Mapping[tuple[str, str, int], float]],
) -> dict[tuple[str, str], float]:
    """Each table cell's mean over what lies in it, were everything in all of them: y = cell + place."""
    places: dict[tuple[str, str, int], int] = defaultdict(int)
    for inner in cells.values():
        for place in inner:
            places[place] += 1
    shift = dict.fromkeys(places, 0.0)
    if all(count == len(cells) for count in places.values()):
        return {key: math.fsum(inner.values()) / len(inner) for key, inner in cells.items()}
    means: dict[tuple[str, str], float] = {}
    for _ in range(50):
        means = {
            key: math.fsum(value - shift[place] for place, value in inner.items()) / len(inner)
            for key, inner in cells.items()
        }
        sums = dict.fromkeys(places, 0.0)
        for key, inner in cells.items():
            for place, value in inner.items():
                sums[place] += value - means[key]
        new = {place: total / places[place] for place, total in sums.items()}
        change = max(abs(new[place] - shift[place]) for place in places)
        shift = new
        if change < 1e-7:
            break
    return means


# Judges


class _Judged:
    """What judges gave to the same texts, by pair of models; evaluation templates are matched."""

    def __init__(self, design: Design) -> None:
        self.models = list(dict.fromkeys(judge.model for judge in design.judges))
        places = {judge: place for place, judge in enumerate(design.judges)}
        templates = list(dict.fromkeys(judge.template for judge in design.judges))
        self.shared = {
            (j, k): [
                (places[Judge(template, j)], places[Judge(template, k)])
                for template in templates
                if Judge(template, j) in places and Judge(template, k) in places
            ]
            for j in self.models
            for k in self.models
            if j != k
        }


def severities(design: Design) -> dict[str, Estimate]:
    """Each judge against the mean of the others, on texts by authors that are neither of the two compared."""
    judged = _Judged(design)
    by_pair: dict[tuple[str, str], dict[str, list[float]]] = {}
    for j, k in combinations(judged.models, 2):
        shared = judged.shared[j, k]
        here: dict[str, list[float]] = defaultdict(list)
        for cell, marks in design.cells.items() if shared else ():
            if cell.author not in (j, k):
                here[cell.combo] += [
                    marks[own] - marks[other] for own, other in shared if own in marks and other in marks
                ]
        by_pair[j, k] = {combo: values for combo, values in here.items() if values}
    found = {}
    for j in judged.models:
        others = []
        for k in judged.models:
            if (j, k) in by_pair:
                others.append((1, by_pair[j, k]))
            elif (k, j) in by_pair:
                others.append((-1, by_pair[k, j]))
        value = _over_judges([(sign, at) for sign, at in others if at])
        if value is not None:
            found[j] = value
    return found


def _over_judges(others: Sequence[tuple[int, Mapping[str, Sequence[float]]]]) -> Estimate | None:
    """The mean over the other judges, then a number per combo."""
    values = []
    pairs = wins = ties = 0
    for combo in dict.fromkeys(combo for _, at in others for combo in at):
        if all(combo in at for _, at in others):
            means = [sign * math.fsum(at[combo]) / len(at[combo]) for sign, at in others]
            values.append(math.fsum(means) / len(means))
        for sign, at in others:
            differences = at.get(combo, ())
            pairs += len(differences)
            wins += sum(sign * value > 0 for value in differences)
            ties += sum(value == 0 for value in differences)
    return estimate(values, "combo", pairs=pairs, wins=wins, ties=ties) if others else None


def self_preferences(design: Design) -> dict[str, Estimate]:
    """How much more each judge gives its own texts than the other judges' view of them explains.

    Per combo and other judge k: the judge's difference to k on its own texts, minus that difference on
    texts by third authors, templates matched.
    """
    judged = _Judged(design)
    by_combo: dict[str, dict[tuple[str, str], dict[str, Mapping[int, float]]]] = {}
    authors: dict[str, None] = {}
    for cell, marks in design.cells.items():
        authors[cell.author] = None
        at = by_combo.setdefault(cell.combo, {}).setdefault((cell.draft, cell.essay), {})
        at[cell.author] = marks
    found = {}
    for j in judged.models:
        if j not in authors:
            continue
        others = []
        for k in judged.models:
            shared = judged.shared.get((j, k), [])
            here: dict[str, list[float]] = {}
            for combo, pairs in by_combo.items() if shared else ():
                values = [value for texts in pairs.values() for value in _favours(texts, j, k, shared)]
                if values:
                    here[combo] = values
            if here:
                others.append((1, here))
        value = _over_judges(others)
        if value is not None:
            found[j] = value
    return found


def _favours(
    texts: Mapping[str, Mapping[int, float]], j: str, k: str, shared: Iterable[tuple[int, int]]
) -> list[float]:
    own = texts.get(j)
    if own is None:
        return []
    third = [marks for author, marks in texts.items() if author not in (j, k)]
    found = []
    for mine, theirs in shared:
        there = [marks[mine] - marks[theirs] for marks in third if mine in marks and theirs in marks]
        if there and mine in own and theirs in own:
            found.append(own[mine] - own[theirs] - math.fsum(there) / len(there))
    return found


TENDENCY_COMBOS, TENDENCY_ESSAYS = 5, 30


def central_tendencies(design: Design) -> dict[str, Estimate]:
    """How far each judge spreads its marks against the others: the mean of log(own sd / other's sd).

    Under 0 it keeps to the middle. Standard deviations are over cells; the error is the jackknife's over
    combos (B. Efron, C. Stein, The Jackknife Estimate of Variance, Annals of Statistics 9, 1981).
    """
    judged = _Judged(design)
    logs: dict[tuple[str, str], tuple[float, dict[str, float]]] = {}
    for j, k in combinations(judged.models, 2):
        ratio = _log_ratio(design, judged.shared[j, k])
        if ratio is not None:
            logs[j, k] = ratio
    found = {}
    for j in judged.models:
        mine = [
            (1 if pair[0] == j else -1, whole, without)
            for pair, (whole, without) in logs.items()
            if j in pair
        ]
        combos = [combo for combo in (mine[0][2] if mine else ()) if all(combo in at for _, _, at in mine)]
        count = len(combos)
        if count < TENDENCY_COMBOS:
            continue
        whole = math.fsum(sign * value for sign, value, _ in mine) / len(mine)
        left_out = [math.fsum(sign * at[combo] for sign, _, at in mine) / len(mine) for combo in combos]
        centre = math.fsum(left_out) / count
        error = math.sqrt((count - 1) / count * math.fsum((value - centre) ** 2 for value in left_out))
        found[j] = Estimate(whole, error, count - 1, count, "combo", error * math.sqrt(count))
    return found


def _log_ratio(design: Design, shared: Sequence[tuple[int, int]]) -> tuple[float, dict[str, float]] | None:
    """log(sd of the one / sd of the other) over the texts that both scored, and without each combo."""
    sums: dict[str, list[float]] = {}
    for cell, marks in design.cells.items() if shared else ():
        both = [(marks[own], marks[other]) for own, other in shared if own in marks and other in marks]
        if both:
            x = math.fsum(pair[0] for pair in both) / len(both)
            y = math.fsum(pair[1] for pair in both) / len(both)
            at = sums.setdefault(cell.combo, [0.0] * 5)
            for place, value in enumerate((1.0, x, x * x, y, y * y)):
                at[place] += value
    total = [math.fsum(at[place] for at in sums.values()) for place in range(5)]
    if total[0] < TENDENCY_ESSAYS or len(sums) < TENDENCY_COMBOS:
        return None
    whole = _log_sd(total)
    without = {combo: _log_sd([a - b for a, b in zip(total, at, strict=True)]) for combo, at in sums.items()}
    if whole is None or any(value is None for value in without.values()):
        return None
    return whole, {combo: value for combo, value in without.items() if value is not None}


def _log_sd(sums: Sequence[float]) -> float | None:
    count, x, xx, y, yy = sums
    if count < 2:
        return None
    one, other = xx - x * x / count, yy - y * y / count
    return 0.5 * math.log(one / other) if one > 1e-9 and other > 1e-9 else None


class Reliability(NamedTuple):
    """How far the mean of the judges would come out the same with other judges of their kind, from 0 to 1.

    Attributes:
        needed: judges whose mean would reach 0.8: (fewest, most) that the interval allows, and the estimate;
            ``None`` where it would take more than a thousand.
    """

    value: float
    low: float
    high: float
    judges: int
    essays: int
    needed: tuple[int | None, int | None, int | None]


def reliability(table: Sequence[Sequence[float]]) -> Reliability | None:
    """Of the mean of k judges, from essays that all of them scored.

    K. O. McGraw, S. P. Wong, Forming Inferences About Some Intraclass Correlation Coefficients,
    Psychological Methods 1 (1996): ICC(C, k), and Spearman–Brown for the number of judges.

    Args:
        table: a row per essay, a score per judge in it, all equally many.

    Returns:
        ``None`` with fewer than two judges or ten essays, or where all marks are equal.
    """
    n, k = len(table), len(table[0]) if table else 0
    if n < 10 or k < 2:
        return None
    rows = [math.fsum(row) / k for row in table]
    columns = [math.fsum(row[place] for row in table) / n for place in range(k)]
    grand = math.fsum(rows) / n
    between = k * math.fsum((value - grand) ** 2 for value in rows) / (n - 1)
    residual = math.fsum(
        (table[i][j] - rows[i] - columns[j] + grand) ** 2 for i in range(n) for j in range(k)
    ) / ((n - 1) * (k - 1))
    if residual <= 1e-12 or between <= 1e-12:
        return None
    ratio = between / residual
    freedoms = (float(n - 1), float((n - 1) * (k - 1)))
    low = 1 - f_quantile(0.975, *freedoms) / ratio
    high = 1 - f_quantile(0.025, *freedoms) / ratio
    value = 1 - 1 / ratio
    needed = (_judges_needed(high, k), _judges_needed(value, k), _judges_needed(low, k))
    return Reliability(value, low, high, k, n, needed)


def _judges_needed(value: float, judges: int) -> int | None:
    single = value / (judges - (judges - 1) * value)
    if single <= 0.004:  # a thousand judges
        return None
    return max(1, math.ceil(4 * (1 - single) / single))


# The best of many


@dataclass(frozen=True, slots=True)
class Shrunken:
    """What a level that was measured may be expected to give when it is measured again.

    Attributes:
        value: its mean, drawn towards the mean of all.
        error: the standard deviation of what is expected.
    """

    value: float
    error: float

    def interval(self) -> tuple[float, float]:
        """95 % of what is expected."""
        around = NORMAL.inv_cdf(0.975) * self.error
        return self.value - around, self.value + around


SHRUNKEN_LEVELS = 8


def shrink(levels: Mapping[str, Sequence[float]]) -> dict[str, Shrunken] | None:
    """The levels' means, shrunken: the best of many is measured too high.

    B. Efron, C. Morris, Data Analysis Using Stein's Estimator, Journal of the American Statistical
    Association 70 (1975); C. N. Morris, Parametric Empirical Bayes Inference, JASA 78 (1983).

    Args:
        levels: the means of each level's essays.

    Returns:
        ``None`` with fewer than eight levels or a level of one essay; empty when the levels cannot be
        told apart.
    """
    n = len(levels)
    if n < SHRUNKEN_LEVELS or min(map(len, levels.values())) < 2:
        return None
    means = {level: math.fsum(values) / len(values) for level, values in levels.items()}
    squares = math.fsum((value - means[level]) ** 2 for level, values in levels.items() for value in values)
    freedom = sum(len(values) - 1 for values in levels.values())
    size = n / math.fsum(1 / len(values) for values in levels.values())
    noise = squares / freedom / size
    centre = math.fsum(means.values()) / n
    total = math.fsum((value - centre) ** 2 for value in means.values()) / (n - 1)
    between = max(0.0, total - noise)
    if between == 0.0:
        return {}
    part = between / (between + noise)
    return {
        level: Shrunken(
            centre + part * (value - centre),
            math.sqrt(
                part * noise
                + (1 - part) ** 2 * total / n
                + 2 * (1 - part) ** 2 * (value - centre) ** 2 / (n - 3)
            ),
        )
        for level, value in means.items()
    }


# How much more


def visible_difference(found: Estimate) -> float:
    """The least true difference that an experiment of this size finds in four of five cases."""
    return (t_quantile(0.975, found.freedom) + t_quantile(POWER, found.freedom)) * found.error


MOST_COMBOS = 100_000


def combos_needed(found: Estimate, difference: float) -> int | None:
    """Combos with which a true difference of this size is found in four of five cases.

    The standard deviation is taken at its upper 80 % bound (R. H. Browne, On the Use of a Pilot Sample for
    Sample Size Determination, Statistics in Medicine 14, 1995), so that an unlucky pilot misleads seldom.

    Returns:
        At least 6; ``None`` for no difference, with clusters that are no combos, or over a hundred
        thousand.
    """
    if found.unit != "combo" or not difference or found.clusters < CLUSTERS:
        return None
    bound = found.deviation * math.sqrt(found.freedom / chi2_quantile(1 - POWER, found.freedom))
    count = ((NORMAL.inv_cdf(0.975) + NORMAL.inv_cdf(POWER)) * bound / difference) ** 2
    for _ in range(30):
        if not count < MOST_COMBOS:
            return None
        freedom = max(2.0, math.ceil(count) - 1)
        count = ((t_quantile(0.975, freedom) + t_quantile(POWER, freedom)) * bound / difference) ** 2
    return max(6, math.ceil(count))


# Drift


DRIFT_COMBOS = 8


def drift(points: Mapping[str, Sequence[tuple[float, float]]]) -> Estimate | None:
    """How much a judge's residual changes from the first call to the last.

    Args:
        points: per combo (order of finishing from 0 to 1, the judge's score minus the other judges' mean
            on that essay).

    Returns:
        ``None`` with fewer than eight combos or no spread in time.
    """
    filled = {combo: values for combo, values in points.items() if values}
    count = len(filled)
    if count < DRIFT_COMBOS:
        return None
    centres = {combo: _centre(values) for combo, values in filled.items()}
    every = [x for values in filled.values() for x, _ in values]
    grand = math.fsum(every) / len(every)
    total = math.fsum((x - grand) ** 2 for x in every)
    within = math.fsum((x - centres[combo][0]) ** 2 for combo, values in filled.items() for x, _ in values)
    if total <= 1e-12:
        return None
    if within >= total / 2:  # the combos are mixed in time: each shows the drift by itself
        moments = {
            combo: math.fsum((x - centres[combo][0]) * (y - centres[combo][1]) for x, y in values)
            for combo, values in filled.items()
        }
        slope = math.fsum(moments.values()) / within
        scores = []
        for combo, values in filled.items():
            spread = math.fsum((x - centres[combo][0]) ** 2 for x, _ in values)
            scores.append(moments[combo] - slope * spread)
        error = math.sqrt(count / (count - 1) * math.fsum(score**2 for score in scores)) / within
        return Estimate(slope, error, count - 1, count, "combo", error * math.sqrt(count))
    x_mean = math.fsum(x for x, _ in centres.values()) / count
    y_mean = math.fsum(y for _, y in centres.values()) / count
    spread = math.fsum((x - x_mean) ** 2 for x, _ in centres.values())
    if spread <= 1e-12:
        return None
    slope = math.fsum((x - x_mean) * (y - y_mean) for x, y in centres.values()) / spread
    left = math.fsum((y - y_mean - slope * (x - x_mean)) ** 2 for x, y in centres.values())
    error = math.sqrt(left / (count - 2) / spread)
    return Estimate(slope, error, count - 2, count, "combo", error * math.sqrt(count))


def _centre(values: Sequence[tuple[float, float]]) -> tuple[float, float]:
    count = len(values)
    return math.fsum(x for x, _ in values) / count, math.fsum(y for _, y in values) / count
