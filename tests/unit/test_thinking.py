"""Thinking before an answer: what is left out, what stays, and what was never closed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genworker.core.thinking import split_thinking


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        ("<think>plan</think>\n\nAnswer.", "Answer."),
        ("\n <think>\nplan\n</think>Answer.", "Answer."),
        ("\ufeff<Thinking>plan</THINKING >\nAnswer.", "Answer."),
        ("<thought>a</thought>\n<reasoning>b</reasoning>\nAnswer.", "Answer."),
        ('<thinking budget="high">plan</thinking>Answer.', "Answer."),
        ("plan, begun by the prompt\n</think>\nAnswer.", "Answer."),
        ("<think>a <think>b</think> c</think> Answer.", "Answer."),
        ("<think>I write <think> now. </think> Answer.", "Answer."),
        ("<think></think>\n\nAnswer.", "Answer."),
        ("<think>x</think>", ""),
    ],
)
def test_thinking_is_left_out(raw: str, answer: str) -> None:
    found = split_thinking(raw)
    assert found.answer == answer
    assert found.thinking is not None
    assert not found.is_open


@pytest.mark.parametrize(
    "raw",
    [
        "Answer.",
        "",
        " two\nlines ",
        "An essay with <thinking>an aside</thinking> in it.",
        "<essay>\n<thinking>x</thinking>\n</essay>",
        "The tag `</think>` ends it, and so does '</thinking>'.",
        "<thinker>x</thinker>",
        "Let me <think> about it.",
    ],
)
def test_everything_else_stays_as_it_is(raw: str) -> None:
    assert split_thinking(raw) == (raw, None, False)


@pytest.mark.parametrize("raw", ["<think>plan", " <reasoning>\nplan\n</think>", "<think>a</think><think>b"])
def test_thinking_without_an_end_is_no_answer(raw: str) -> None:
    assert split_thinking(raw) == ("", raw, True)


PIECES = st.sampled_from(
    ["<think>", "</think>", "<reasoning>", "</reasoning>", "a", "\n", " ", "`", "<", ">", "</think"]
)


@given(st.lists(PIECES, max_size=20).map("".join))
def test_nothing_is_lost_or_made_up(raw: str) -> None:
    found = split_thinking(raw)
    if found.thinking is None:
        assert found.answer == raw
    else:
        assert raw.startswith(found.thinking)
        assert raw[len(found.thinking) :].lstrip() == found.answer
