"""What is claimed: contrasts adjusted together; on at most 5 % of pages stands a claim that is not true."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from genworker.reports.contrasts import Estimate, holm

LEVEL = 0.05
"""A claim may be false on so many pages, and a warning."""


class Factor(StrEnum):
    """What a finding speaks of; the word stands in ``report --json``."""

    COMBO = "combo_id"
    DRAFT = "draft_template"
    ESSAY = "generation_template"
    AUTHOR = "generation_model"
    DRAFT_ESSAY = "draft_template:generation_template"
    INTERACTION = "interaction"
    JUDGE = "evaluation_llm_model"
    SELF_PREFERENCE = "self_preference"
    CENTRAL_TENDENCY = "central_tendency"
    DRIFT = "drift"
    POSITION_BIAS = "position_bias"
    ITEM = "item"
    CHANGE = "change"


Contrast = tuple[Factor, str, str]
"""(factor, level, what it is compared with)"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One contrast.

    Attributes:
        level: what is compared; a combo by its id. `against`: another level, ``rest`` (the mean of all
            other levels), or what the factor is measured by.
        p: by itself; `p_adjusted` among all contrasts of the page.
        claimed: whether it is larger than chance explains, also with missing scores filled in.
        low: of the interval of 95 %, made wider for what is claimed so that 95 % of the claimed ones hold.
        filled: the same difference with missing scores filled in; ``None`` where that was not needed.
    """

    factor: Factor
    level: str
    against: str
    estimate: Estimate
    p: float
    p_adjusted: float = 1.0
    claimed: bool = False
    low: float = math.nan
    high: float = math.nan
    filled: Estimate | None = None

    @property
    def difference(self) -> float:
        """The difference itself, in marks (log odds or log ratio for some factors)."""
        return self.estimate.difference

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        found = self.estimate
        return {
            "factor": self.factor.value,
            "level": self.level,
            "against": self.against,
            "difference": self.difference,
            "low": self.low,
            "high": self.high,
            "pairs": found.pairs,
            "wins": found.wins,
            "ties": found.ties,
            "claimed": self.claimed,
            "p": self.p,
            "p_adjusted": self.p_adjusted,
            "clusters": found.clusters,
            "clustered_by": found.unit,
        }


def adjusted(
    found: Mapping[Contrast, Estimate],
    filled: Mapping[Contrast, Estimate] | None = None,
    exact: Mapping[Contrast, float] | None = None,
) -> list[Finding]:
    """One adjustment over all contrasts; the intervals of what is claimed are the wider for it.

    Intervals of the R claimed of m: Y. Benjamini, D. Yekutieli, False Discovery Rate–Adjusted Multiple
    Confidence Intervals for Selected Parameters, JASA 100 (2005).

    Args:
        filled: the same contrasts with missing scores filled in; a claim must hold in both.
        exact: p-values from an exact test, where there is one.
    """
    p_values = [(exact or {}).get(key, value.p) for key, value in found.items()]
    again = None if filled is None else [filled[key].p if key in filled else 1.0 for key in found]
    of_page, of_filled = holm(p_values), None if again is None else holm(again)
    findings = []
    for place, (key, value) in enumerate(found.items()):
        claimed = of_page[place] < LEVEL
        other = None if filled is None else filled.get(key)
        if of_filled is not None:
            claimed = (
                claimed
                and other is not None
                and of_filled[place] < LEVEL
                and other.difference * value.difference > 0
            )
        findings.append(Finding(*key, value, p_values[place], of_page[place], claimed, filled=other))
    share = sum(finding.claimed for finding in findings) / len(findings) if findings else 0.0
    ready = []
    for finding in findings:
        low, high = finding.estimate.interval(1 - LEVEL * share if finding.claimed else 1 - LEVEL)
        ready.append(replace(finding, low=low, high=high))
    return sorted(ready, key=lambda finding: (not finding.claimed, -abs(finding.difference)))


def turned(found: Finding) -> Finding:
    """The contrast b − a of a − b."""
    value = found.estimate
    losses = value.pairs - value.wins - value.ties
    other = replace(value, difference=-value.difference, wins=losses)
    return replace(
        found, level=found.against, against=found.level, estimate=other, low=-found.high, high=-found.low
    )
