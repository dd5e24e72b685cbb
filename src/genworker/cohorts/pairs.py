"""Which texts a comparing judge is shown together: all pairs, a sample, or each against a baseline.

Every pair is asked in both orders: a judge's favour for a place cannot be told from the texts' quality
otherwise.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

ORDERS = 2
"""Rows of one pair by one judge: first against second, second against first."""
LEAST_PER_ESSAY = 2
"""Of a sample: the texts stand in a ring then, and can all be ranked against one another."""


@dataclass(frozen=True, slots=True)
class PairDesign:
    """What ``[pairs]`` in ``cohort.toml`` says. Axes are named as in `genworker.cohorts.axes.AXES`.

    Attributes:
        per_essay: pairs that each text is in, at least; ``None``: all pairs, or those with the baseline.
        baseline: (axis, value) of the texts that all others are compared with; empty without a baseline.
        same: axes in which the two texts of a pair agree.
    """

    per_essay: int | None = None
    baseline: tuple[tuple[str, str], ...] = ()
    same: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As the manifest has it."""
        record: dict[str, Any] = {}
        if self.per_essay is not None:
            record["per_essay"] = self.per_essay
        if self.baseline:
            record["baseline"] = dict(self.baseline)
        if self.same:
            record["same"] = list(self.same)
        return record

    def words(self) -> str:
        """For people, in one line."""
        if self.baseline:
            text = "each against " + ", ".join(f"{axis} {value}" for axis, value in self.baseline)
        elif self.per_essay is not None:
            text = f"a sample, each text in {self.per_essay} pairs or more"
        else:
            text = "all"
        return f"{text}{', of the same ' + ' and '.join(self.same) if self.same else ''}; both orders"

    def most_pairs(self, texts: int, baselines: int) -> int:
        """How many pairs there are among so many texts that agree where they have to, at most."""
        if self.baseline:
            return baselines * (texts - baselines)
        pairs = texts * (texts - 1) // 2
        return pairs if self.per_essay is None else min(pairs, texts * (self.per_essay + 1))


class Text(NamedTuple):
    """A text that may be compared.

    Attributes:
        group: its values of the axes that both texts of a pair share.
        is_baseline: whether the others are compared with it.
    """

    gen_id: str
    group: tuple[str, ...]
    is_baseline: bool


def drawn(
    design: PairDesign, texts: Sequence[Text], earlier: Collection[tuple[str, str]] = ()
) -> Iterator[tuple[int, int]]:
    """The pairs of a design as two numbers of texts, the lower one first.

    A sample keeps what was drawn before: texts that are added come into it, and no pair leaves it.

    Args:
        earlier: pairs of gen_ids that the cohort has already, in either order; only a sample asks.
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    for number, text in enumerate(texts):
        groups.setdefault(text.group, []).append(number)
    names = {text.gen_id: number for number, text in enumerate(texts)}
    known: dict[tuple[str, ...], list[tuple[int, int]]] = {}
    if design.per_essay is not None:
        for one, two in earlier:
            first, second = names.get(one), names.get(two)
            if first is not None and second is not None and texts[first].group == texts[second].group:
                pair = (min(first, second), max(first, second))
                known.setdefault(texts[first].group, []).append(pair)
    for group, members in groups.items():
        if design.baseline:
            bases: list[int] = []
            others: list[int] = []
            for number in members:
                (bases if texts[number].is_baseline else others).append(number)
            for first in bases:
                for second in others:
                    yield min(first, second), max(first, second)
        elif design.per_essay is None:
            for place, first in enumerate(members):
                for second in members[place + 1 :]:
                    yield first, second
        else:
            ring = sorted(members, key=lambda number: _lot(texts[number].gen_id))
            yield from sorted(_sample(ring, design.per_essay, known.get(group, ())))


def _lot(gen_id: str) -> bytes:
    """A place in the ring that looks random and is the same on every machine."""
    return hashlib.sha256(f"pairs|{gen_id}".encode()).digest()


def _sample(ring: Sequence[int], per_essay: int, known: Collection[tuple[int, int]]) -> set[tuple[int, int]]:
    """Pairs of neighbours in the ring, then of those two places apart, and so on, until everybody has enough.

    The neighbours are always compared, so that no text is cut off from the others, however the ring grew.
    """
    found = set(known)
    degree = Counter(number for pair in found for number in pair)
    size = len(ring)

    def add(first: int, second: int) -> None:
        pair = (min(first, second), max(first, second))
        if first != second and pair not in found:
            found.add(pair)
            degree.update(pair)

    for place in range(size):
        add(ring[place], ring[(place + 1) % size])
    for distance in range(2, size // 2 + 1):
        if all(degree[number] >= per_essay for number in ring):
            break
        for place in range(size):
            one, two = ring[place], ring[(place + distance) % size]
            if degree[one] < per_essay and degree[two] < per_essay:
                add(one, two)
    for place, number in enumerate(ring):  # whom the others, who have enough, have left over
        for distance in range(2, size):
            if degree[number] >= per_essay:
                break
            add(number, ring[(place + distance) % size])
    return found
