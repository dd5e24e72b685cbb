"""Means, spreads, intervals and agreement of scores. The standard library only; no files, no clock."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from operator import mul
from statistics import NormalDist

RESAMPLES = 1000
RESAMPLED_CLUSTERS = 200
"""Up to so many clusters the bootstrap is drawn; for more its limit is computed (see `interval`)."""

_SEED = 20_250_101
_Z = NormalDist().inv_cdf(0.975)


def mean(values: Sequence[float]) -> float | None:
    """The arithmetic mean, summed without rounding on the way; ``None`` of nothing."""
    return math.fsum(values) / len(values) if values else None


def spread(values: Sequence[float]) -> float | None:
    """The sample standard deviation (divisor n − 1); ``None`` of fewer than two values."""
    if len(values) < 2:
        return None
    centre = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))


def interval(clusters: Sequence[Sequence[float]], *, draw: bool = True) -> tuple[float, float] | None:
    """A 95 % interval of the mean over all values, which come in clusters that belong together.

    The percentile interval of the bootstrap (B. Efron, R. J. Tibshirani, An Introduction to the
    Bootstrap, 1993, section 13.3), from 1,000 resamples with a fixed seed. What is drawn again are whole
    clusters (A. C. Davison, D. V. Hinkley, Bootstrap Methods and their Application, 1997, section 3.8):
    scores of one essay resemble each other, and to draw them singly would pretend to more evidence than
    there is.

    With more than 200 clusters, where drawing costs much and changes little, it is the interval that the
    bootstrap tends to: mean ± 1.96 standard errors of a ratio of sums (W. G. Cochran, Sampling
    Techniques, 3rd edition, 1977, chapter 9A).

    Args:
        clusters: values by cluster; empty ones do not count.
        draw: ``False`` computes the limit for any number of clusters.

    Returns:
        (low, high), or ``None`` with fewer than two clusters: a single one says nothing of the others.
    """
    sums = [cluster[0] if len(cluster) == 1 else math.fsum(cluster) for cluster in clusters if cluster]
    counts = [len(cluster) for cluster in clusters if cluster]
    if len(sums) < 2:
        return None
    if draw and len(sums) <= RESAMPLED_CLUSTERS:
        return _percentiles(sums, counts)
    total = sum(counts)
    centre = math.fsum(sums) / total
    residuals = math.fsum((value - centre * count) ** 2 for value, count in zip(sums, counts, strict=True))
    error = math.sqrt(residuals * len(sums) / (len(sums) - 1)) / total
    return centre - _Z * error, centre + _Z * error


def _percentiles(sums: Sequence[float], counts: Sequence[int]) -> tuple[float, float]:
    choices = random.Random(_SEED).choices
    size = len(sums)
    if len(set(counts)) == 1:
        total = size * counts[0]
        means = sorted(sum(choices(sums, k=size)) / total for _ in range(RESAMPLES))
    else:
        means = []
        for _ in range(RESAMPLES):
            drawn = choices(range(size), k=size)
            means.append(sum(map(sums.__getitem__, drawn)) / sum(map(counts.__getitem__, drawn)))
        means.sort()
    tail = RESAMPLES // 40  # 2.5 % lie below the lower bound, 2.5 % above the upper one
    return means[tail], means[-tail - 1]


def correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Pearson's r, from −1 to 1; ``None`` of fewer than two pairs, or when one side does not vary."""
    if len(first) < 2:
        return None
    centre, other_centre = math.fsum(first) / len(first), math.fsum(second) / len(second)
    away = [value - centre for value in first]
    other_away = [value - other_centre for value in second]
    scale = math.sqrt(math.fsum(map(mul, away, away)) * math.fsum(map(mul, other_away, other_away)))
    return max(-1.0, min(1.0, math.fsum(map(mul, away, other_away)) / scale)) if scale else None


def krippendorff_alpha(units: Sequence[Sequence[float]]) -> float | None:
    """Krippendorff's alpha for numbers on an interval scale: 1 is agreement, 0 is chance, below is worse.

    After K. Krippendorff, Computing Krippendorff's Alpha-Reliability (University of Pennsylvania, 2011),
    the general form with the interval metric: alpha = 1 − D_o / D_e. With n values that have a
    counterpart, D_e is the mean of (a − b)² over all n (n − 1) ordered pairs; D_o is 1 / n times the sum
    over units of Σ (a − b)² / (m − 1), over the ordered pairs of each unit's m values.

    Args:
        units: for each thing that was judged the values that it got, in any order, missing ones left
            out; units with fewer than two do not count.

    Returns:
        ``None`` when no unit has two values or all values are equal: nothing could disagree then.
    """
    pairable = [unit for unit in units if len(unit) >= 2]
    values = [value for unit in pairable for value in unit]
    if not values:
        return None
    expected = _squared_differences(values) / (len(values) - 1)
    if expected == 0:
        return None
    observed = math.fsum(
        2 * (unit[0] - unit[1]) ** 2 if len(unit) == 2 else _squared_differences(unit) / (len(unit) - 1)
        for unit in pairable
    )
    return 1 - observed / expected


def _squared_differences(values: Sequence[float]) -> float:
    """The sum of (a − b)² over all ordered pairs: 2 n times the sum of squares around the mean."""
    centre = math.fsum(values) / len(values)
    return 2 * len(values) * math.fsum((value - centre) ** 2 for value in values)
