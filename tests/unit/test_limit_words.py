"""What a person is told of a lane's limits."""

from __future__ import annotations

import pytest

from genworker.cli.display import belief_words, wait_words
from genworker.core.controller import Belief
from genworker.core.lane import Wait


@pytest.mark.parametrize(
    ("belief", "words"),
    [
        (Belief(), ""),
        (Belief(at_once=40, per_min=1180.4), "40 at once · 1,180 a minute"),
        (Belief(chance=0.081), "refuses 8 % by chance"),
        (Belief(slow_at_once=32), "slows down past 32 at once"),
    ],
)
def test_a_belief_in_words(belief: Belief, words: str) -> None:
    assert belief_words(belief) == words


@pytest.mark.parametrize(
    ("wait", "words"),
    [
        (Wait("e/m", "HTTP 503: full", 12.2, 3.1), "e/m waits for 12 s, asked again in 3 s: HTTP 503: full"),
        (Wait("e/m", "", 0.0, 65.0), "e/m waits, asked again in 1 m 5 s"),
        (Wait("e/m", "no\x1b[2J\nway", 9.0, None), "e/m waits for 9 s, it is asked now: no⟨U+001B⟩[2J way"),
    ],
)
def test_a_wait_in_words(wait: Wait, words: str) -> None:
    assert wait_words(wait) == words
