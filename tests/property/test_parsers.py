"""Parsers under arbitrary and hostile answers: text or `ParseFailedError`, soon, and only usable scores."""

from __future__ import annotations

import time
from decimal import Decimal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from genworker.core.parsers import format_score, get_parser, parser_names, read_score
from genworker.core.stages import STAGES, Stage
from genworker.errors import ParseFailedError

REGEXES = (
    r"regex:SCORE=(\d+)",
    r"regex:(?i)score\W*(\d+(?:\.\d+)?)\s*/\s*10",
    r"regex:(\d+\.?\d*)/10",
    r"regex:SCORE.*:\s*(\d+)",
)
SCORING = ("in_last_line", "complex", *REGEXES, "json:score")
ALL = [
    (stage, name)
    for stage in STAGES
    for name in (*parser_names(stage)[:3], *(*REGEXES, "json:score") * (stage is STAGES[-1]))
]

# A deadline per example would fail on a busy machine; the tests of time below say what "soon" means.
UNHURRIED = settings(deadline=None)
FEW = settings(deadline=None, max_examples=10)

# Arbitrary text rarely holds a score; this alphabet of fragments puts one, or nearly one, in most lines.
FRAGMENTS = st.sampled_from(
    [
        *("SCORE", "score", "Score", "Final Score", "Total Score", "SCORE:", "Score: ", "SCORE=", "sub-"),
        *(
            ":",
            "：",
            "=",
            "/",
            "/10",
            " out of ",
            " of ",
            "–",
            "-",
            "−",
            "+",
            "%",
            ".",
            ",",
            "…",
            "→",
            "|",
            " is ",
        ),
        *(
            "0",
            "7",
            "10",
            "11",
            "456",
            "7.5",
            "½",
            "²",
            "٧",
            "７",
            "NaN",
            "inf",
            "1e5",
            "9" * 50,
            "0." + "0" * 50,
        ),
        *("**", "__", "_", "`", "~~", "#", ">", "- ", "[", "]", "(", ")", "\\", '"', "“", "\u200b", "\ufeff"),
        *(" ", "\t", "\n", "\n\n", "\u2028", "\x0b", "\x00", "\x1b", "\ud800", "\u202e", "word "),
        *("<essay>", "</essay>", "<essay-idea>", '\n<essay-idea stage="2">\n', "\n</essay-idea>\n"),
    ]
)
ANSWERS = st.lists(FRAGMENTS | st.text(max_size=5), max_size=40).map("".join)


def outcome(stage: Stage, name: str, text: str) -> tuple[str | None, str]:
    """The parsed text or the reason; what is raised besides escapes."""
    try:
        return get_parser(stage, name)(text), ""
    except ParseFailedError as error:
        return None, str(error)


@pytest.mark.parametrize(("stage", "name"), ALL)
@UNHURRIED
@given(text=ANSWERS | st.text(alphabet=st.characters()))
def test_a_parser_gives_text_or_says_why_not(stage: Stage, name: str, text: str) -> None:
    parsed, reason = outcome(stage, name, text)
    if parsed is None:
        assert reason.isprintable()
        assert 0 < len(reason) < 300
    else:
        assert parsed.strip()


@pytest.mark.parametrize("name", SCORING)
@UNHURRIED
@given(text=ANSWERS)
@example(text="SCORE=7\nSCORE: 7/10")
def test_what_a_score_parser_gives_can_be_read_as_a_score(name: str, text: str) -> None:
    parsed, _ = outcome(Stage.EVALUATION, name, text)
    if parsed is None:
        return
    score = read_score(parsed)
    assert score is not None
    assert 0 <= score <= 10
    assert parsed == format_score(score)


@pytest.mark.parametrize("stage", [Stage.DRAFT, Stage.ESSAY])
@UNHURRIED
@given(text=st.text())
def test_what_a_text_parser_gives_stands_in_the_answer(stage: Stage, text: str) -> None:
    for name in parser_names(stage)[:3]:
        for answer in (text, f'<essay>{text}</essay>\n<essay-idea stage="3">\n{text}\n</essay-idea>'):
            parsed, _ = outcome(stage, name, answer)
            if parsed is None:
                assert not text.strip() or answer == text
            else:
                assert parsed in answer


MARKS = st.sampled_from(["", "**", "__", "`", "*", "***", "“", "["])


@pytest.mark.parametrize("name", ["in_last_line", "complex"])
@UNHURRIED
@given(score=st.decimals(0, 10, places=2), before=ANSWERS, mark=MARKS, label_mark=MARKS)
def test_the_exact_line_at_the_end_round_trips(
    name: str, score: Decimal, before: str, mark: str, label_mark: str
) -> None:
    text = f"{before}\n\n{label_mark}SCORE:{label_mark} {mark}{score}{mark}\n"
    assert read_score(get_parser(Stage.EVALUATION, name)(text)) == float(score)


@UNHURRIED
@given(numerator=st.integers(0, 500), denominator=st.integers(1, 500))
def test_complex_scales_any_fraction(numerator: int, denominator: int) -> None:
    text = f"Score: 5\n**Final Score: {numerator}/{denominator}**\nScore: 3"
    parser = get_parser(Stage.EVALUATION, "complex")
    if numerator <= denominator:
        assert read_score(parser(text)) == pytest.approx(10 * numerator / denominator, abs=5e-5)
    else:
        with pytest.raises(ParseFailedError, match="out of range"):
            parser(text)


@UNHURRIED
@given(score=st.integers() | st.decimals(allow_nan=True, allow_infinity=True))
def test_a_number_outside_the_range_never_passes(score: int | Decimal) -> None:
    usable = not Decimal(score).is_nan() and 0 <= score <= 10
    for name in ("in_last_line", "complex"):
        if usable or (name == "in_last_line" and len(str(score)) == 3 and score != 100):
            continue
        with pytest.raises(ParseFailedError):
            get_parser(Stage.EVALUATION, name)(f"SCORE: {score}")


@UNHURRIED
@given(score=st.decimals(0, 10) | st.floats(0, 10))
def test_a_score_survives_its_text(score: Decimal | float) -> None:
    text = format_score(score)
    assert read_score(text) == pytest.approx(float(score), abs=5.1e-5)
    assert "e" not in text.lower()


HOSTILE = {
    "open essays": "<essay>" * 150_000,
    "essay and spaces": "<essay" + " " * 1_000_000,
    "almost essays": "<essay " * 150_000,
    "open ideas": '<essay-idea stage="1">\n' * 50_000,
    "closed ideas": "<essay-idea>\nx\n</essay-idea>\n" * 40_000,
    "almost ideas": "<essay-idea " * 80_000,
    "almost closing tags": ("</essay-idea>" + " " * 1000 + "x") * 1000,
    "brackets": "[" * 100_000 + "]" * 100_000,
    "parentheses": "SCORE: " + "(" * 100_000,
    "5,000 digits": "SCORE: " + "9" * 5000,
    "a fraction of 5,000 digits": "SCORE: " + "9" * 900 + "/" + "3" * 5000,
    "10 MB in one line": "a" * 10_000_000,
    "10 MB of spaces": " " * 10_000_000 + "x",
    "line ends": "x" + "\n" * 5_000_000 + "y",
    "underscores": ("_" * 2000 + "\n") * 300,
    "asterisks": ("*" * 2000 + "\n") * 300,
    "tildes": ("~~a" * 600 + "\n") * 300,
    "labels": ("score " * 300 + "\n") * 300,
    "labels with notes": ("score (" * 280 + "\n") * 300,
    "scores": ("score: 1 " * 220 + "\n") * 300,
    "sums": ("score: " + "+1" * 990 + "=\n") * 300,
    "braces": "{" * 300_000 + "}" * 300_000,
    "objects in objects": '{"a":' * 100_000,
    "fences": "```\n" * 200_000,
    "braces in lines": '{"score": 3,\n' * 80_000 + "}",
    "thinking in thinking": "<think>" * 100_000 + "</think>" * 99_999,
    "closing tags": "</think>" * 100_000,
    "almost tags": "<think " * 100_000,
    "digits in lines": (("1" * 20 + "a") * 90 + "\n") * 300,
    "scores for a regex": (("SCORE:" + "1" * 20) * 70 + "\n") * 300,
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_no_answer_makes_a_parser_hang(text: str) -> None:
    for stage, name in ALL:
        started = time.perf_counter()
        _, reason = outcome(stage, name, text)
        assert len(reason) < 300
        assert time.perf_counter() - started < 10, name


@pytest.mark.parametrize("name", ["essay_block", "essay_idea_last", "in_last_line", "complex"])
@FEW
@given(fragments=st.lists(FRAGMENTS, min_size=1, max_size=4))
def test_a_fragment_repeated_over_a_megabyte_takes_no_longer(name: str, fragments: list[str]) -> None:
    piece = "".join(fragments)
    text = piece * (1_000_000 // len(piece))
    stage = Stage.EVALUATION if name in SCORING else Stage.ESSAY
    started = time.perf_counter()
    outcome(stage, name, text)
    assert time.perf_counter() - started < 5
