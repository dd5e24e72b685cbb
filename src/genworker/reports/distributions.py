"""Quantiles and tail probabilities of t, F and chi-squared. The standard library only.

All of them come from one function, the regularised incomplete beta function, by its continued fraction
(NIST Digital Library of Mathematical Functions, https://dlmf.nist.gov/8.17#E22), evaluated by the modified
Lentz method; quantiles by bisection. Chi-squared quantiles are those of E. B. Wilson, M. M. Hilferty, The
Distribution of Chi-Square, PNAS 17 (1931).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist

NORMAL = NormalDist()
_TINY = 1e-300
_STEPS = 500
"""Terms of the continued fraction at most; it converges in O(sqrt(max(a, b))) of them."""
_HALVINGS = 200


def incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), from 0 to 1.

    Args:
        x: from 0 to 1.
        a: over 0, as `b`.
    """
    if x <= 0.0:
        return 0.0
    if x >= 1.0:
        return 1.0
    if x > (a + 1) / (a + b + 2):  # there the fraction converges slowly, and its mirror image fast
        return 1.0 - incomplete_beta(1 - x, b, a)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    return front * _fraction(x, a, b) / a


def _fraction(x: float, a: float, b: float) -> float:
    """The continued fraction of DLMF 8.17.22, without the factor in front."""
    c, d = 1.0, 1 - (a + b) * x / (a + 1)
    d = 1 / (d if abs(d) > _TINY else _TINY)
    value = d
    for m in range(1, _STEPS):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 + term * d
            d = 1 / (d if abs(d) > _TINY else _TINY)
            c = 1 + term / c
            c = c if abs(c) > _TINY else _TINY
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return value


def t_tail(t: float, freedom: float) -> float:
    """The two-sided tail of Student's t: how likely a value as far from 0 as `t` is by chance.

    Args:
        freedom: degrees of freedom, over 0.
    """
    return incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5)


@lru_cache(maxsize=4096)
def t_quantile(probability: float, freedom: float) -> float:
    """The value below which Student's t lies with this probability.

    Args:
        probability: over 0, under 1.
        freedom: degrees of freedom, over 0.
    """
    if probability < 0.5:
        return -t_quantile(1 - probability, freedom)
    return _bisect(lambda t: 1 - t_tail(t, freedom) / 2, probability)


def f_cumulative(value: float, above: float, below: float) -> float:
    """How likely F is to lie under `value`.

    Args:
        above: degrees of freedom of the numerator, over 0; `below` those of the denominator.
    """
    return incomplete_beta(above * value / (above * value + below), above / 2, below / 2)


@lru_cache(maxsize=4096)
def f_quantile(probability: float, above: float, below: float) -> float:
    """The value below which F lies with this probability."""
    return _bisect(lambda value: f_cumulative(value, above, below), probability)


def chi2_quantile(probability: float, freedom: float) -> float:
    """The value below which chi-squared lies with this probability, to 1 % from 5 degrees on."""
    part = 2 / (9 * freedom)
    return freedom * max(0.0, 1 - part + NORMAL.inv_cdf(probability) * math.sqrt(part)) ** 3


def binomial_tail(successes: int, trials: int) -> float:
    """The exact two-sided probability of a split as uneven as this one, were both sides equally likely."""
    few = min(successes, trials - successes)
    if trials == 0 or 2 * few == trials:
        return 1.0
    # Logarithms: the coefficients of a thousand trials have hundreds of digits.
    half = trials * math.log(2)
    whole = math.lgamma(trials + 1)
    terms = (
        math.exp(whole - math.lgamma(count + 1) - math.lgamma(trials - count + 1) - half)
        for count in range(few + 1)
    )
    return min(1.0, 2 * math.fsum(terms))


def _bisect(cumulative: Callable[[float], float], probability: float) -> float:
    """Where a rising function over 0 reaches `probability`."""
    high = 1.0
    while cumulative(high) < probability and high < 1e300:
        high *= 2
    low = 0.0 if high == 1.0 else high / 2
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if cumulative(middle) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2
