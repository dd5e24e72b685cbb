"""Which words differ between texts that answer the same question. Bounded in time, whatever the texts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

MAX_WORDS = 1500
MAX_CHARS = 12_000
"""So much of each text is compared and shown: the time grows with the square of the words."""

_WORD = re.compile(r"\s*\S+|\s+\Z")


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of words, and whether it stands only in its own text."""

    text: str
    differs: bool


@dataclass(frozen=True, slots=True)
class Version:
    """One text among those that are compared.

    Attributes:
        labels: of the replicates that have exactly this text.
        pieces: in order; joined they are the beginning of the text.
        left_off: characters behind these.
    """

    labels: tuple[str, ...]
    pieces: tuple[Piece, ...]
    left_off: int


def compare(texts: Sequence[tuple[str, str]]) -> list[Version]:
    """Compare texts: equal ones become one version, each other is compared with the first.

    In the first version a word differs when it is missing from any other one.

    Args:
        texts: (label, text).
    """
    labels: dict[str, list[str]] = {}
    for label, text in texts:
        labels.setdefault(text, []).append(label)
    words = [_WORD.findall(text[:MAX_CHARS])[:MAX_WORDS] for text in labels]
    differing = [set[int]() for _ in words]
    bare = [[word.strip() for word in text] for text in words]
    for number in range(1, len(words)):
        pairs = list(_common(bare[0], bare[number]))
        differing[0].update(set(range(len(bare[0]))) - {first for first, _ in pairs})
        differing[number].update(set(range(len(bare[number]))) - {other for _, other in pairs})
    return [
        Version(tuple(names), tuple(_pieces(kept, marked)), len(text) - sum(map(len, kept)))
        for (text, names), kept, marked in zip(labels.items(), words, differing, strict=True)
    ]


def _common(first: Sequence[str], second: Sequence[str]) -> Iterator[tuple[int, int]]:
    """The places of a longest common subsequence, the last ones first.

    Each row of the usual table is one integer, a bit per word of `first` (H. Hyyrö, Bit-Parallel LCS-Length
    Computation Revisited, 2004): that takes milliseconds whatever the texts. `difflib` takes its time over
    some, or with its heuristic overlooks words that are frequent.
    """
    masks: dict[str, int] = {}
    for place, word in enumerate(first):
        masks[word] = masks.get(word, 0) | 1 << place
    every = (1 << len(first)) - 1
    rows = [every]
    for word in second:
        row = rows[-1]
        shared = row & masks.get(word, 0)
        rows.append((row + shared | row - shared) & every)
    here, there = len(first), len(second)
    while here and there:
        bit = 1 << here - 1
        if rows[there] & bit:
            here -= 1
        elif not rows[there - 1] & bit:
            there -= 1
        else:
            here, there = here - 1, there - 1
            yield here, there


def _pieces(words: Sequence[str], differing: set[int]) -> Iterator[Piece]:
    """Runs of words; the white space at either end of a marked run is not marked."""
    for differs, run in groupby(range(len(words)), differing.__contains__):
        text = "".join(words[place] for place in run)
        start = len(text) - len(text.lstrip()) if differs else 0
        if start:
            yield Piece(text[:start], differs=False)
        if start < len(text):
            yield Piece(text[start:], differs)
