"""What people think of texts, as values."""

from __future__ import annotations

from typing import NamedTuple

HUMAN = "human"
"""In the place of an evaluation template: a person has judged."""


class Rated(NamedTuple):
    """A person's score of an essay.

    Attributes:
        score: from 0 to 10.
        name: of the rating, where an evaluation has its gen_id.
        path: the file that holds it.
    """

    rater: str
    essay: str
    score: float
    name: str
    path: str


class Chosen(NamedTuple):
    """A person's choice between two essays.

    Attributes:
        first: the essay that was shown first.
        choice: ``first``, ``second`` or ``tie``.
        name: of the choice, where an evaluation has its gen_id.
        path: the file that holds it.
    """

    rater: str
    first: str
    second: str
    choice: str
    name: str
    path: str
