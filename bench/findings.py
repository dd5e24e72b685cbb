"""Findings: how often a page claims what is not true, how often its intervals hold; over simulated stores.

Every store is a whole crossed design with texts of random quality; templates and authors work differently on
each combo, by chance. What was planted is known, so each claim and each interval can be judged.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

from bench.common import publish
from genworker.core.membership import Membership, MembershipRow
from genworker.core.parsers import FIRST, SECOND
from genworker.core.plan import Plan
from genworker.core.stages import Stage
from genworker.reports.claims import Factor, Finding
from genworker.reports.findings import JOINT, find
from genworker.reports.pairwise import Comparison, pairwise_findings
from genworker.reports.scores import ESSAY_STAGE, Axis, Essay, Evaluation, Outcome, PivotKey, Scores

PAIRS = "pairs of texts"
NULL = 0.02
"""A claim of a difference whose truth is smaller than this is false."""


@dataclass(frozen=True)
class World:
    """A design and what is planted in it; effects by level, 0 where none is named."""

    combos: int = 12
    drafts: int = 3
    essays: int = 2
    authors: int = 3
    outside_judges: int = 1
    replicates: int = 1
    combo: dict[int, float] = field(default_factory=dict)
    draft: dict[int, float] = field(default_factory=dict)
    essay: dict[int, float] = field(default_factory=dict)
    author: dict[int, float] = field(default_factory=dict)
    severity: dict[int, float] = field(default_factory=dict)
    favour: dict[int, float] = field(default_factory=dict)
    missing: float = 0.0
    missing_low: bool = False
    level: float = 6.0
    drift: dict[int, float] = field(default_factory=dict)
    """Marks by which a judge's rise from the first score to the last."""
    one_after_another: bool = False
    """Whether combos were judged one after the other; else in any order."""

    @property
    def judges(self) -> int:
        """Every author judges, and so do some that write nothing."""
        return self.authors + self.outside_judges


WORLDS = {
    "nothing, 6 combos": World(combos=6),
    "nothing, 12 combos": World(),
    "nothing, 30 combos of few texts": World(combos=30, drafts=2, authors=2),
    "nothing, near the ceiling": World(level=9.0),
    "effects, 12 combos": World(combo={3: 1.6}, draft={0: -0.6}, severity={1: 0.5, 3: -0.5}, favour={0: 0.9}),
    "effects, 6 combos": World(combos=6, combo={3: 1.6}, draft={0: -0.6}, author={1: 0.6}, favour={0: 0.9}),
    "effects, 15 % missing at random": World(draft={0: 0.5, 2: -0.5}, missing=0.15),
    "effects, 15 % missing, low ones": World(draft={0: 0.5, 2: -0.5}, missing=0.15, missing_low=True),
}


DRIFTS = {
    "no drift, combos mixed in time": World(),
    "no drift, combo after combo": World(one_after_another=True),
    "drift of 0.8, combos mixed in time": World(drift={1: 0.8}),
    "drift of 0.8, combo after combo": World(drift={1: 0.8}, one_after_another=True),
}


def simulate(world: World, random: Random, moments: list[float] | None = None) -> Scores:
    """One store's scores.

    Args:
        moments: takes when each score was finished, from 0 to 1 after a day.
    """
    evaluations: list[Evaluation] = []
    axes = [Axis("worth", f"m{judge}") for judge in range(world.judges)]

    def centred(count: int, sd: float) -> list[float]:
        values = [random.gauss(0, sd) for _ in range(count)]
        middle = statistics.fmean(values)
        return [value - middle for value in values]

    for c in range(world.combos):
        of_draft = [random.gauss(0, 0.3) for _ in range(world.drafts)]
        of_essay, of_author = centred(world.essays, 0.3), centred(world.authors, 0.2)
        for d in range(world.drafts):
            for a in range(world.authors):
                draft = random.gauss(0, 0.5)
                for e in range(world.essays):
                    worth = (
                        world.level + draft + of_draft[d] + of_essay[e] + of_author[a] + random.gauss(0, 0.4)
                        + world.combo.get(c, 0) + world.draft.get(d, 0) + world.essay.get(e, 0)
                        + world.author.get(a, 0)
                    )  # fmt: skip
                    key = PivotKey(f"c{c}", ESSAY_STAGE, f"d{d}", f"e{e}", f"m{a}")
                    essay = Essay(f"{c}-{d}-{a}-{e}", key, 1, f"{c}-{d}-{a}", 1, None)
                    for j, axis in enumerate(axes):
                        view = worth + world.severity.get(j, 0) + random.gauss(0, 0.5)
                        view += world.favour.get(j, 0) if j == a else 0
                        for replicate in range(1, world.replicates + 1):
                            moment = 0.0
                            if moments is not None:
                                moment = random.random()
                                if world.one_after_another:
                                    moment = (c + moment) / world.combos
                                moments.append(86_400 + moment)
                            seen = view + world.drift.get(j, 0) * moment
                            mark = min(10.0, max(0.0, round((seen + random.gauss(0, 0.4)) * 2) / 2))
                            chance = world.missing
                            if (
                                world.missing_low
                            ):  # from twice as likely for weak ones to never for strong ones
                                chance *= 2 / (1 + math.exp(2 * (mark - world.level)))
                            score = None if random.random() < chance else mark
                            outcome = Outcome.MISSING if score is None else Outcome.SCORED
                            gen_id = f"{essay.gen_id}-{j}-{replicate}"
                            row = MembershipRow(
                                Stage.EVALUATION,
                                gen_id,
                                "k",
                                essay.gen_id,
                                key.combo_id,
                                *axis,
                                replicate,
                                None,
                            )
                            why = None if score is not None else "missing"
                            evaluations.append(Evaluation(row, axis, essay, outcome, score, why, None))
    return Scores(("k",), Plan(Membership("k", [], array("i"))), evaluations, tuple(axes))


def truth(world: World, found: Finding) -> float | None:
    """What was planted of a finding; ``None`` where that is not defined."""

    def level(effects: dict[int, float], name: str) -> float:
        return effects.get(int(name[1:]), 0.0)

    def against(effects: dict[int, float], count: int) -> float:
        own = level(effects, found.level)
        if found.against != "rest":
            return own - level(effects, found.against)
        return own - (sum(effects.values()) - own) / (count - 1)

    match found.factor:
        case Factor.COMBO:
            return against(world.combo, world.combos)
        case Factor.DRAFT:
            return against(world.draft, world.drafts)
        case Factor.ESSAY:
            return against(world.essay, world.essays)
        case Factor.AUTHOR:
            return against(world.author, world.authors)
        case Factor.JUDGE:
            return against(world.severity, world.judges)
        case Factor.SELF_PREFERENCE:
            return level(world.favour, found.level)
        case Factor.INTERACTION:
            return 0.0
        case Factor.DRIFT:
            return level(world.drift, found.level)
        case Factor.DRAFT_ESSAY:
            parts = found.level.split(JOINT)
            own = level(world.draft, parts[0]) + level(world.essay, parts[1])
            count = world.drafts * world.essays
            total = sum(world.draft.values()) * world.essays + sum(world.essay.values()) * world.drafts
            return own - (total - own) / (count - 1)
    return None


def rates(stores: Iterator[tuple[list[Finding], bool, Callable[[Finding], float | None]]]) -> list[str]:
    """False pages, coverage of all and of claimed intervals, share of the planted found, warnings."""
    pages, counts = 0, Counter[str]()
    for findings, warned, of in stores:
        pages += 1
        counts["warned"] += warned
        false = False
        for finding in findings:
            known = of(finding)
            if known is None:
                continue
            holds = finding.low <= known <= finding.high
            counts["intervals"] += 1
            counts["hold"] += holds
            counts["claimed"] += finding.claimed
            counts["claimed hold"] += finding.claimed and holds
            counts["planted"] += abs(known) >= 0.5
            counts["found"] += abs(known) >= 0.5 and finding.claimed and known * finding.difference > 0
            false |= finding.claimed and (abs(known) < NULL or known * finding.difference < 0)
        counts["false"] += false

    def share(part: str, whole: str) -> str:
        return f"{100 * counts[part] / counts[whole]:.1f}" if counts[whole] else "-"

    return [
        f"{100 * counts['false'] / pages:.1f}",
        share("hold", "intervals"),
        share("claimed hold", "claimed"),
        share("found", "planted"),
        f"{100 * counts['warned'] / pages:.1f}",
    ]


def of_world(
    world: World, stores: int
) -> Iterator[tuple[list[Finding], bool, Callable[[Finding], float | None]]]:
    for seed in range(stores):
        found = find(simulate(world, Random(seed)))
        warned = found.missing is not None and found.missing.warns
        yield list(found.findings), warned, lambda finding: truth(world, finding)


def of_drift(
    world: World, stores: int
) -> Iterator[tuple[list[Finding], bool, Callable[[Finding], float | None]]]:
    """The drift of judges alone: the other findings have designs of their own."""
    for seed in range(stores):
        moments: list[float] = []
        found = find(simulate(world, Random(seed), moments), finished=moments)
        drifts = [finding for finding in found.findings if finding.factor is Factor.DRIFT]
        yield drifts, any(finding.claimed for finding in drifts), lambda finding: truth(world, finding)


def of_pairs(stores: int) -> Iterator[tuple[list[Finding], bool, Callable[[Finding], float | None]]]:
    """Ten texts, two of them planted, three judges of whom two favour a place."""
    worth, favours = {"t2": 1.2, "t7": -1.2}, {"first": 0.8, "even": 0.0, "second": -0.6}
    items = [f"t{number}" for number in range(10)]

    def of(finding: Finding) -> float | None:
        if finding.factor is Factor.POSITION_BIAS:
            return favours[finding.level]
        own = worth.get(finding.level, 0.0)
        return own - (sum(worth.values()) - own) / (len(items) - 1)

    for seed in range(stores):
        random, compared = Random(seed), []
        for judge, favour in favours.items():
            for one in items:
                for other in items:
                    if one != other:
                        odds = worth.get(one, 0.0) - worth.get(other, 0.0) + favour
                        won = random.random() < 1 / (1 + math.exp(-odds))
                        compared.append(Comparison(judge, one, other, FIRST if won else SECOND))
        yield pairwise_findings(compared), False, of


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stores", type=int, default=1000, help="per design")
    parser.add_argument("--design", action="append", help="only this one; may be given several times")
    options = parser.parse_args(arguments)
    header = ["design", "false pages %", "intervals hold %", "claimed hold %", "planted found %", "warned %"]
    rows, record = [], []
    for name in options.design or [*WORLDS, *DRIFTS, PAIRS]:
        began = time.perf_counter()
        if name in WORLDS:
            made = of_world(WORLDS[name], options.stores)
        else:
            made = of_pairs(options.stores) if name == PAIRS else of_drift(DRIFTS[name], options.stores)
        row = [name, *rates(made)]
        rows.append(row)
        record.append(dict(zip(header, row, strict=True)) | {"seconds": time.perf_counter() - began})
        print("  ".join(row), flush=True)
    publish("findings", f"Findings over {options.stores:,} simulated stores a design", header, rows, record)


if __name__ == "__main__":
    main()
