"""Means, spreads, intervals and agreement, against published examples and other ways to compute them."""

from __future__ import annotations

import statistics

import pytest

from genworker.reports.statistics import (
    centre,
    correlation,
    interval,
    krippendorff_alpha,
    mean,
    spread,
)

# The worked example of K. Krippendorff, Computing Krippendorff's Alpha-Reliability (2011): four
# observers, twelve units, values that are missing. For interval data it gives alpha = 0.849.
OBSERVERS = """
1 2 3 3 2 1 4 1 2 . . .
1 2 3 3 2 2 4 1 2 5 . 3
. 3 3 3 2 3 4 2 2 5 1 .
1 2 3 3 2 4 4 1 2 5 1 .
"""


def units() -> list[list[float]]:
    rows = [line.split() for line in OBSERVERS.split("\n") if line]
    return [[float(cell) for cell in column if cell != "."] for column in zip(*rows, strict=True)]


def test_alpha_of_the_published_example() -> None:
    alpha = krippendorff_alpha(units())
    assert alpha is not None
    assert round(alpha, 3) == 0.849


def test_alpha_by_its_definition() -> None:
    given = [[7.0, 6.0], [3.0, 3.5, 5.0], [9.0], [0.5, 8.0]]
    pairable = [unit for unit in given if len(unit) > 1]
    values = [value for unit in pairable for value in unit]
    n = len(values)
    observed = sum(
        (a - b) ** 2 / (len(unit) - 1)
        for unit in pairable
        for i, a in enumerate(unit)
        for j, b in enumerate(unit)
        if i != j
    )
    expected = sum((a - b) ** 2 for i, a in enumerate(values) for j, b in enumerate(values) if i != j)
    alpha = krippendorff_alpha(given)
    assert alpha == pytest.approx(1 - (observed / n) / (expected / (n * (n - 1))))


@pytest.mark.parametrize("given", [[], [[1.0]], [[1.0], [2.0]], [[3.0, 3.0], [3.0, 3.0]]])
def test_alpha_of_nothing_that_could_disagree(given: list[list[float]]) -> None:
    assert krippendorff_alpha(given) is None


def test_alpha_of_perfect_agreement() -> None:
    assert krippendorff_alpha([[1.0, 1.0], [5.0, 5.0]]) == 1.0


def test_mean_and_spread() -> None:
    assert mean([]) is None
    assert spread([4.0]) is None
    assert mean([7.0, 6.0, 9.0]) == pytest.approx(22 / 3)
    assert spread([7.0, 6.0, 9.0]) == pytest.approx(statistics.stdev([7, 6, 9]))
    assert spread([0.1] * 3) == pytest.approx(0.0, abs=1e-15)


def test_correlation() -> None:
    assert correlation([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]) == 1.0
    assert correlation([1.0, 2.0, 4.0], [3.0, 1.0, 2.0]) == pytest.approx(
        statistics.correlation([1, 2, 4], [3, 1, 2])
    )
    assert correlation([1.0], [1.0]) is None
    assert correlation([5.0, 5.0], [1.0, 2.0]) is None


def test_an_interval_needs_three_clusters() -> None:
    assert interval([]) is None
    assert interval([[1.0, 2.0, 3.0], [], [2.0]]) is None, "two clusters say next to nothing"
    assert interval([[4.0], [4.0], [4.0]]) == (4.0, 4.0)


def test_an_interval_is_students_over_the_clusters_means() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed: make setup brings it")
    clusters = [[1.0, 2.0], [4.0], [8.0, 9.0, 7.0], [3.0]]
    means = [statistics.fmean(cluster) for cluster in clusters]
    known = stats.t.interval(0.95, 3, loc=statistics.fmean(means), scale=stats.sem(means))
    assert interval(clusters) == pytest.approx(known)


def test_clusters_widen_the_interval() -> None:
    """Eight equal scores of each of four essays are four pieces of evidence, not thirty-two."""
    essays = [[2.0] * 8, [4.0] * 8, [6.0] * 8, [8.0] * 8]
    clustered = interval(essays) or (0.0, 0.0)
    single = interval([[value] for essay in essays for value in essay]) or (0.0, 0.0)
    assert clustered[1] - clustered[0] > 1.8 * (single[1] - single[0])


def test_one_essay_with_many_scores_does_not_speak_for_all() -> None:
    assert centre([[1.0] * 30, [7.0], [7.0]]) == pytest.approx(5.0)
    assert centre([[1.0] * 3, [7.0], [7.0]]) == pytest.approx(17 / 5), "sizes that differ little: all scores"
    assert centre([[], []]) is None
