"""Findings as sentences. Only what is claimed gets a verb; the rest is figures."""

from __future__ import annotations

import math
from collections.abc import Iterator

from genworker.reports.claims import Factor, Finding
from genworker.reports.findings import Findings, Missing, Ranking

OUT_OF_REACH = 50
"""A difference that would take so many times the combos is none that anybody would look for."""

NOUNS: dict[Factor, str] = {
    Factor.COMBO: "combo",
    Factor.DRAFT: "draft template",
    Factor.ESSAY: "essay template",
    Factor.AUTHOR: "generation model",
    Factor.DRAFT_ESSAY: "draft × essay template",
    Factor.JUDGE: "judge",
    Factor.SELF_PREFERENCE: "self-preference",
    Factor.CENTRAL_TENDENCY: "use of the scale",
    Factor.DRIFT: "drift",
    Factor.INTERACTION: "interaction",
    Factor.POSITION_BIAS: "position bias",
    Factor.ITEM: "text",
    Factor.CHANGE: "all",
}


def figure(value: float) -> str:
    """Two decimals, with a proper minus and without a minus zero."""
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")


def interval_text(low: float | None, high: float | None) -> str:
    """``0.40 to 1.02``, or a dash where there is none."""
    return "–" if low is None or high is None or math.isnan(low) else f"{figure(low)} to {figure(high)}"


def _size(found: Finding) -> str:
    """``0.71 (0.40 to 1.02)``, the sign being in the sentence."""
    low, high = sorted((found.low, found.high)) if found.difference >= 0 else (-found.high, -found.low)
    return f"{figure(abs(found.difference))} ({interval_text(low, high)})"


def base(found: Finding) -> str:
    """Over what a contrast was counted."""
    estimate = found.estimate
    if estimate.unit == "draft":
        return f"in these combos, over {estimate.clusters} drafts"
    return f"on average over {estimate.clusters} combos"


def pairs_text(found: Finding) -> str:
    """``in 216 of 360 pairs``: those that went the way of the difference."""
    estimate = found.estimate
    if not estimate.pairs:
        return ""
    losses = estimate.pairs - estimate.wins - estimate.ties
    wins = estimate.wins if found.difference >= 0 else losses
    return f"in {wins:,} of {estimate.pairs:,} pairs"


def direction(found: Finding) -> str:
    """``better`` or ``worse``: the way of the difference."""
    return "better" if found.difference >= 0 else "worse"


def sentence(found: Finding, all_of: Findings) -> str:
    """What a claimed finding says, in one sentence without its full stop."""
    level, against = all_of.name(found.factor, found.level), all_of.name(found.factor, found.against)
    size, up = _size(found), found.difference > 0
    if found.factor in (Factor.DRAFT, Factor.ESSAY, Factor.AUTHOR, Factor.DRAFT_ESSAY) and against != "rest":
        better, worse = (level, against) if up else (against, level)
        wins = pairs_text(found)
        return f"{better} beats {worse} by {size} {base(found)}{f'; better {wins}' if wins else ''}"
    if found.factor in (Factor.COMBO, Factor.DRAFT, Factor.ESSAY, Factor.AUTHOR, Factor.DRAFT_ESSAY):
        rest = "the other combos" if found.factor is Factor.COMBO else f"the other {NOUNS[found.factor]}s"
        wins = pairs_text(found)
        tail = f"; {direction(found)} {wins}" if wins else ""
        return f"{level} is {size} {'above' if up else 'below'} {rest}{tail}"
    if found.factor is Factor.SELF_PREFERENCE:
        word = "more" if up else "less"
        return f"{level} gives its own texts {size} {word} than other judges’ view of them explains"
    if found.factor is Factor.JUDGE:
        return f"{level} marks {size} {'above' if up else 'below'} the other judges, on the same texts"
    if found.factor is Factor.CENTRAL_TENDENCY:
        share = f"{math.exp(found.difference):.0%}"
        word = "more" if up else "less"
        return f"{level} spreads its marks {word} than the other judges: {share} of their spread"
    if found.factor is Factor.DRIFT:
        word = "rose" if up else "fell"
        return f"the marks of {level} {word} by {size} from the first call to the last"
    if found.factor is Factor.INTERACTION:
        word = "larger" if up else "smaller"
        first, second = found.against.partition(" − ")[::2]
        return f"the difference {level} is {size} {word} with {first} than with {second}"
    if found.factor is Factor.POSITION_BIAS:
        return (
            f"{level} favours the {'first' if up else 'second'} place by {size} log odds, whatever the texts"
        )
    return f"{level} is {size} log odds {'above' if up else 'below'} the other texts"


def answer(findings: Findings) -> list[str]:
    """The answer to "what was found?", sentence by sentence: the largest claims first, then what is open."""
    said = [_capital(sentence(found, findings)) + "." for found in _headlines(findings)]
    text_factors = (Factor.COMBO, Factor.DRAFT, Factor.ESSAY, Factor.AUTHOR)
    open_factors = [
        ranking.factor
        for ranking in findings.rankings
        if ranking.factor in text_factors and not findings.claimed(ranking.factor)
    ]
    compared = [factor for factor in open_factors if findings.of(factor)]
    if compared and not findings.claimed(*text_factors):
        said.append("No difference between texts is larger than chance explains.")
        if findings.visible is not None:
            said.append(f"Differences under {figure(findings.visible)} would go unseen.")
    elif compared:
        names = _list([f"{NOUNS[factor]}s" for factor in compared])
        said.append(f"The {names} differ by no more than chance explains.")
    few = [factor for factor in open_factors if not findings.of(factor)]
    if few:
        said.append(f"Of the {_list([f'{NOUNS[factor]}s' for factor in few])} there is too little to say.")
    said += missing_sentences(findings.missing)
    return said


def _headlines(findings: Findings) -> list[Finding]:
    """The largest claim of each factor of the texts, then of each of the judges'; at most seven."""
    chosen: list[Finding] = []
    for factor in (Factor.COMBO, Factor.DRAFT, Factor.ESSAY, Factor.AUTHOR, Factor.INTERACTION):
        chosen += findings.claimed(factor)[:1]
    chosen.sort(key=lambda found: -abs(found.difference))
    for factor in (Factor.SELF_PREFERENCE, Factor.DRIFT, Factor.CENTRAL_TENDENCY, Factor.JUDGE):
        chosen += findings.claimed(factor)[:1]
    return chosen[:7]


def missing_sentences(missing: Missing | None) -> list[str]:
    """A warning where scores are missing rather of weak or of strong essays."""
    if missing is None or not missing.warns or missing.away is None:
        return []
    share, weak = f"{missing.share:.0%}", missing.away.difference < 0
    return [
        f"{share} of the scores are missing, rather of {'weak' if weak else 'strong'} essays: "
        "differences are likely understated."
    ]


def judges_sentence(findings: Findings) -> str | None:
    """How far the judges' mean can be relied upon, and how many judges would do."""
    found = findings.reliability
    if found is None:
        return None
    fewest, middle, most = found.needed
    text = (
        f"The mean of these {found.judges} judges has a reliability of {figure(found.value)} "
        f"({interval_text(found.low, found.high)}) over {found.essays:,} essays that all of them scored"
    )
    if middle is None:
        return f"{text}: they hardly agree, and no number of such judges would mend it."
    upper = "any number" if most is None else str(most)
    spread = f"{fewest}" if fewest == most else f"{fewest} to {upper}"
    return f"{text}; {spread} judges of this kind would reach 0.80. This speaks of agreement, not of truth."


def power_sentences(findings: Findings, ranking: Ranking) -> Iterator[str]:
    """What this experiment could see, and what would see more."""
    if ranking.visible is not None:
        yield f"A true difference under {figure(ranking.visible)} would most likely go unseen here."
    unclaimed = findings.of(ranking.factor)
    if ranking.factor is not Factor.COMBO and unclaimed and not findings.claimed(ranking.factor):
        largest = max(unclaimed, key=lambda found: abs(found.difference))
        count = findings.needed(largest)
        if (
            count is not None
            and largest.estimate.clusters < count <= OUT_OF_REACH * largest.estimate.clusters
        ):
            level, against = (
                findings.name(ranking.factor, name) for name in (largest.level, largest.against)
            )
            yield (
                f"To be sure of a difference such as {level} − {against} = {figure(largest.difference)}, "
                f"about {count:,} combos are needed; there are {largest.estimate.clusters}."
            )


def author_note(ranking: Ranking) -> Iterator[str]:
    """What contrasts of models leave out."""
    if ranking.factor is Factor.AUTHOR:
        yield "Contrasts leave out judges that are one of the two."


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _capital(text: str) -> str:
    """A sentence begins with a capital, a name of the data stays as it is."""
    return f"T{text[1:]}" if text.startswith("the ") else text
