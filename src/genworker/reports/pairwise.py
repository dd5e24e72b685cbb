"""Which of two texts is better: ranks of the texts, and whether a judge favours the place where one stands.

Arithmetic on comparisons, wherever they come from. The bias of a place is read from pairs that were asked in
both orders, which is free of the texts' quality; the ranks are those of R. A. Bradley, M. E. Terry, Rank
Analysis of Incomplete Block Designs, Biometrika 39 (1952), with a term for the place per judge (R. R.
Davidson, R. J. Beaver, On Extending the Bradley-Terry Model to Incorporate Within-Pair Order Effects,
Biometrics 33, 1977).
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TextIO

from genworker.core.parsers import FIRST, SECOND, TIE
from genworker.core.visible import visible
from genworker.errors import Fault, UsageError
from genworker.reports.claims import Contrast, Factor, Finding, adjusted
from genworker.reports.contrasts import Estimate
from genworker.reports.distributions import binomial_tail

BOTH_WAYS = 10
"""Pairs that were decided by their places alone, under which nothing is said of a bias."""
MOST_ITEMS = 150
"""Texts up to which intervals are computed: their time grows with the cube."""
MOST_FAULTS = 50
_NORMAL_FREEDOM = 1e6
"""Degrees of freedom at which Student's t is the normal distribution."""
_RIDGE = 1e-3
"""Keeps the worth of a text that has won or lost all of its comparisons finite."""


class Comparison(NamedTuple):
    """One answer to "which is better?".

    Attributes:
        first: the text that stood first.
        winner: ``first``, ``second`` or ``tie``.
    """

    judge: str
    first: str
    second: str
    winner: str
    replicate: int = 1


class PlaceBias(NamedTuple):
    """A judge's favour for the first place.

    Attributes:
        pairs: that were asked in both orders; in `first_twice` of them the first place won both times.
        estimate: in log odds; ``None`` where too few pairs were decided by their places.
        p: of the exact binomial test; ``None`` likewise.
    """

    judge: str
    pairs: int
    first_twice: int
    second_twice: int
    estimate: Estimate | None
    p: float | None


@dataclass(frozen=True, slots=True)
class Ranked:
    """One text's worth in log odds against the mean of the others.

    Attributes:
        group: texts of different groups were never compared, not even by way of others; from 0.
    """

    item: str
    worth: float
    estimate: Estimate | None
    comparisons: int
    wins: int
    group: int = 0


def read_comparisons(stream: TextIO, name: str) -> list[Comparison]:
    """Comparisons from CSV with the columns judge, first, second, winner and, optional, replicate.

    Raises:
        UsageError: a column is missing or a cell is wrong; every fault with its line.
    """
    reader = csv.DictReader(stream)
    missing = [column for column in Comparison._fields[:4] if column not in (reader.fieldnames or ())]
    if missing:
        raise UsageError(
            [Fault(f"the columns {', '.join(missing)} are missing", where=name, fix="add them to the header")]
        )
    found, faults = [], []
    for row in reader:
        winner = (row["winner"] or "").strip().lower()
        replicate = (row.get("replicate") or "1").strip()
        wrong = ""
        if winner not in (FIRST, SECOND, TIE):
            wrong = f"winner {visible(winner, limit=40, one_line=True)!r} is none of first, second, tie"
        elif not replicate.isdecimal():
            wrong = f"replicate {visible(replicate, limit=40, one_line=True)!r} is no whole number"
        elif not all(row[column] for column in Comparison._fields[:3]) or row["first"] == row["second"]:
            wrong = "judge and two different texts are needed"
        if wrong:
            faults.append(Fault(wrong, where=name, line=reader.line_num, fix="correct the row"))
            if len(faults) >= MOST_FAULTS:
                break
        else:
            found.append(Comparison(row["judge"], row["first"], row["second"], winner, int(replicate)))
    if faults:
        raise UsageError(faults)
    return found


def place_biases(comparisons: Iterable[Comparison]) -> list[PlaceBias]:
    """Per judge, from the pairs that it saw in both orders."""
    asked: dict[str, dict[tuple[str, str, int], str]] = defaultdict(dict)
    for judge, first, second, winner, replicate in comparisons:
        asked[judge][first, second, replicate] = winner
    found = []
    for judge, answers in asked.items():
        pairs = first_twice = second_twice = 0
        for (first, second, replicate), winner in answers.items():
            other = answers.get((second, first, replicate))
            if other is None or first > second:
                continue
            pairs += 1
            first_twice += winner == other == FIRST
            second_twice += winner == other == SECOND
        value, p = None, None
        if first_twice + second_twice >= BOTH_WAYS:
            one, two = first_twice + 0.5, second_twice + 0.5
            error = 0.5 * math.sqrt(1 / one + 1 / two)
            value = Estimate(
                0.5 * math.log(one / two),
                error,
                _NORMAL_FREEDOM,
                pairs,
                "pair",
                error * math.sqrt(pairs),
                first_twice + second_twice,
                first_twice,
            )
            p = binomial_tail(first_twice, first_twice + second_twice)
        found.append(PlaceBias(judge, pairs, first_twice, second_twice, value, p))
    return found


def rank(comparisons: Sequence[Comparison], units: Sequence[Hashable] | None = None) -> list[Ranked]:
    """The texts, the best first. Intervals treat all that was said of one pair as one piece of evidence.

    Args:
        units: for each comparison what it is a piece of evidence about, where that is not the pair of items.
    """
    items = list(dict.fromkeys(item for c in comparisons for item in (c.first, c.second)))
    judges = list(dict.fromkeys(c.judge for c in comparisons))
    if len(items) < 2:
        return []
    place = {item: number for number, item in enumerate(items)}
    of_judge = {judge: len(items) + number for number, judge in enumerate(judges)}
    games = [
        (
            place[c.first],
            place[c.second],
            of_judge[c.judge],
            1.0 if c.winner == FIRST else 0.0 if c.winner == SECOND else 0.5,
        )
        for c in comparisons
    ]
    if units is None:
        units = [(min(game[:2]), max(game[:2])) for game in games]
    groups = _groups(games, len(items))
    worth = _fit(games, len(items) + len(judges))
    errors = _errors(games, worth, groups, units) if len(items) <= MOST_ITEMS else None
    counts, wins = [0] * len(items), [0.0] * len(items)
    for first, second, _, share in games:
        counts[first], counts[second] = counts[first] + 1, counts[second] + 1
        wins[first], wins[second] = wins[first] + share, wins[second] + 1 - share
    pieces = len(set(units))
    found = []
    for group, members in enumerate(groups):
        centre = math.fsum(worth[number] for number in members) / len(members)
        scale = len(members) / (len(members) - 1)
        for number in members:
            value = (worth[number] - centre) * scale
            estimate = None
            if errors is not None:
                error = errors[number] * scale
                estimate = Estimate(
                    value,
                    error,
                    max(1, pieces - len(items)),
                    pieces,
                    "pair",
                    error,
                    counts[number],
                    int(wins[number]),
                )
            found.append(Ranked(items[number], value, estimate, counts[number], int(wins[number]), group))
    return sorted(found, key=lambda ranked: (ranked.group, -ranked.worth))


def _groups(games: Sequence[Game], items: int) -> list[list[int]]:
    """Items that were compared with one another, by way of others too; the largest group first."""
    above = list(range(items))

    def root(number: int) -> int:
        while above[number] != number:
            above[number] = above[above[number]]
            number = above[number]
        return number

    for first, second, _, _ in games:
        above[root(second)] = root(first)
    members: dict[int, list[int]] = defaultdict(list)
    for number in range(items):
        members[root(number)].append(number)
    return sorted(members.values(), key=lambda group: -len(group))


Game = tuple[int, int, int, float]


def _chance(worth: Sequence[float], game: Game) -> float:
    first, second, judge, _ = game
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, worth[first] - worth[second] + worth[judge]))))


def _fit(games: Sequence[Game], count: int) -> list[float]:
    """The most likely worths, by Newton's step for one parameter after the other."""
    worth = [0.0] * count
    # What a judge said of one order of one pair is one term, however often it was asked.
    terms: dict[tuple[int, int, int], list[float]] = {}
    for first, second, judge, share in games:
        term = terms.setdefault((first, second, judge), [0.0, 0.0])
        term[0] += 1.0
        term[1] += share
    of: list[list[tuple[Game, float, float, int]]] = [[] for _ in range(count)]
    for (first, second, judge), (number, share) in terms.items():
        for parameter, sign in ((first, 1), (second, -1), (judge, 1)):
            of[parameter].append(((first, second, judge, share), number, share, sign))
    for _ in range(500):
        moved = 0.0
        for parameter, mine in enumerate(of):
            slope, curve = -_RIDGE * worth[parameter], _RIDGE
            for game, number, share, sign in mine:
                chance = _chance(worth, game)
                slope += sign * (share - number * chance)
                curve += number * chance * (1 - chance)
            step = max(-2.0, min(2.0, slope / curve))
            worth[parameter] += step
            moved = max(moved, abs(step))
        if moved < 1e-8:
            break
    return worth


def _errors(
    games: Sequence[Game],
    worth: Sequence[float],
    groups: Sequence[Sequence[int]],
    units: Sequence[Hashable],
) -> list[float]:
    """Standard errors of each worth minus its group's mean: the larger of sandwich (by unit) and model."""
    count = len(worth)
    curve = [[_RIDGE if row == column else 0.0 for column in range(count)] for row in range(count)]
    scores: dict[Hashable, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for game, unit in zip(games, units, strict=True):
        first, second, judge, share = game
        chance = _chance(worth, game)
        weight = chance * (1 - chance)
        signs = ((first, 1), (second, -1), (judge, 1))
        at = scores[unit]
        for a, sign in signs:
            at[a] += sign * (share - chance)
            for b, other in signs:
                curve[a][b] += sign * other * weight
    inverse = _inverse(curve)
    correction = len(scores) / max(1, len(scores) - count)
    items = sum(map(len, groups))
    errors = [0.0] * items
    for group in groups:
        squares = dict.fromkeys(group, 0.0)
        for at in scores.values():
            moves = [
                math.fsum(inverse[row][parameter] * value for parameter, value in at.items()) for row in group
            ]
            middle = math.fsum(moves) / len(group)
            for row, move in zip(group, moves, strict=True):
                squares[row] += (move - middle) ** 2
        # Where the model holds, its own error is the steadier of the two.
        means = {row: math.fsum(inverse[row][other] for other in group) / len(group) for row in group}
        grand = math.fsum(means.values()) / len(group)
        for row in group:
            model = inverse[row][row] - 2 * means[row] + grand
            errors[row] = math.sqrt(max(model, squares[row] * correction))
    return errors


def _inverse(matrix: Sequence[Sequence[float]]) -> list[list[float]]:
    """By Gauss and Jordan with pivots; the matrix is symmetric and, for its ridge, never singular."""
    size = len(matrix)
    work = [
        [*row, *(1.0 if at == number else 0.0 for at in range(size))] for number, row in enumerate(matrix)
    ]
    for column in range(size):
        pivot = max(range(column, size), key=lambda row: abs(work[row][column]))
        work[column], work[pivot] = work[pivot], work[column]
        top = work[column]
        scale = 1 / top[column]
        work[column] = top = [value * scale for value in top]
        for row in range(size):
            factor = work[row][column]
            if row != column and factor:
                work[row] = [value - factor * above for value, above in zip(work[row], top, strict=True)]
    return [row[size:] for row in work]


def pairwise_contrasts(
    comparisons: Sequence[Comparison],
) -> tuple[dict[Contrast, Estimate], dict[Contrast, float]]:
    """What comparisons say, for one adjustment with all else; and the exact p-values where there are such."""
    found: dict[Contrast, Estimate] = {}
    exact: dict[Contrast, float] = {}
    for bias in place_biases(comparisons):
        if bias.estimate is not None and bias.p is not None:
            key = (Factor.POSITION_BIAS, bias.judge, "second place")
            found[key], exact[key] = bias.estimate, bias.p
    for ranked in rank(comparisons):
        if ranked.estimate is not None:
            found[Factor.ITEM, ranked.item, "rest"] = ranked.estimate
    return found, exact


def pairwise_findings(comparisons: Sequence[Comparison]) -> list[Finding]:
    """The position biases and the texts against the rest, adjusted together."""
    found, exact = pairwise_contrasts(comparisons)
    return adjusted(found, exact=exact)


def one_order_only(comparisons: Iterable[Comparison]) -> list[str]:
    """Judges that saw no pair in both orders: place and quality cannot be told apart there."""
    return [bias.judge for bias in place_biases(comparisons) if not bias.pairs]
