"""Which words differ between texts that answer the same question. Bounded in time, whatever the texts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby

MAX_WORDS = 1500
MAX_CHARS = 12_000
"""So much of each text is compared and shown: the time grows with the square of the words at worst."""

_WORD = re.compile(r"\S+|\s+")


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
    words = [_WORD.findall(text[:MAX_CHARS])[: 2 * MAX_WORDS] for text in labels]  # every second is white
    differing = [set[int]() for _ in words]
    for number in range(1, len(words)):
        matcher = SequenceMatcher(None, words[0], words[number])
        for tag, first_from, first_to, from_, to in matcher.get_opcodes():
            if tag != "equal":
                differing[0].update(range(first_from, first_to))
                differing[number].update(range(from_, to))
    return [
        Version(tuple(names), _pieces(kept, marked), len(text) - sum(map(len, kept)))
        for (text, names), kept, marked in zip(labels.items(), words, differing, strict=True)
    ]


def _pieces(words: Sequence[str], differing: set[int]) -> tuple[Piece, ...]:
    runs = groupby(range(len(words)), differing.__contains__)
    return tuple(Piece("".join(words[index] for index in run), differs) for differs, run in runs)
