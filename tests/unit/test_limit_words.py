"""What a person is told of a lane's limits."""

from __future__ import annotations

import pytest

from genworker.cli.display import belief_words
from genworker.core.controller import Belief


@pytest.mark.parametrize(
    ("belief", "words"),
    [
        (Belief(), ""),
        (Belief(at_once=40, per_min=1180.4), "40 at once · 1,180 a minute"),
        (Belief(chance=0.081), "refuses 8 % by chance"),
        (Belief(slow_at_once=32), "slows down past 32 at once"),
        (Belief(closed_s=10.0, asks_at_s=25.0), "lets nothing in for 12 s, asks again in 3 s"),
        (Belief(closed_s=10.0), "lets nothing in for 12 s"),
    ],
)
def test_a_belief_in_words(belief: Belief, words: str) -> None:
    assert belief_words(belief, 22.0) == words
