"""Parsers: names, the blocks of drafts and essays, and where an evaluator's score is read."""

from __future__ import annotations

import math
from decimal import Decimal

import pytest

from genworker.core.parsers import (
    MAX_PATTERN_CHARS,
    format_score,
    get_parser,
    parser_names,
    read_score,
    register,
)
from genworker.core.stages import STAGES, Stage
from genworker.errors import ParseFailedError


def parse(text: str, name: str, stage: Stage = Stage.EVALUATION) -> str:
    return get_parser(stage, name)(text)


def failure(text: str, name: str, stage: Stage = Stage.EVALUATION) -> str:
    with pytest.raises(ParseFailedError) as caught:
        parse(text, name, stage)
    return str(caught.value)


VERDICT = """**REASONING:**

The essay links idle replay to hypothesis search, but its critic is never described.

### **Section Marks**
1. **Problem**
   - Named, though not in the field's own words.
   - **Score**: **1/1** (clear enough)
2. **Mechanism**
   - A generator, no verifier.
   - **Score**: 1/2

---

"""


class TestNames:
    def test_every_stage_lists_its_parsers(self) -> None:
        for stage in (Stage.DRAFT, Stage.ESSAY):
            assert parser_names(stage)[:3] == ("identity", "essay_block", "essay_idea_last")
        assert parser_names(Stage.EVALUATION)[:3] == ("identity", "in_last_line", "complex")

    @pytest.mark.parametrize("name", [None, ""])
    def test_no_name_is_identity_for_texts_and_an_error_for_evaluations(self, name: str | None) -> None:
        assert get_parser(Stage.DRAFT, name)(" as it is \n") == " as it is \n"
        assert get_parser(Stage.ESSAY, name)(" as it is \n") == " as it is \n"
        with pytest.raises(LookupError, match=r"in_last_line, complex.*regex:<pattern>"):
            get_parser(Stage.EVALUATION, name)

    @pytest.mark.parametrize(
        ("stage", "name"),
        [
            (Stage.DRAFT, "complex"),
            (Stage.EVALUATION, "essay_block"),
            (Stage.ESSAY, "Identity"),
            (Stage.ESSAY, r"regex:(\d)"),
        ],
    )
    def test_an_unknown_name_is_answered_with_the_known_ones(self, stage: Stage, name: str) -> None:
        with pytest.raises(LookupError) as caught:
            get_parser(stage, name)
        assert name in str(caught.value)
        assert all(known in str(caught.value) for known in parser_names(stage))

    def test_a_hostile_name_reaches_no_terminal(self) -> None:
        with pytest.raises(LookupError) as caught:
            get_parser(Stage.DRAFT, "\x1b[2J\ud800" + "x" * 500)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 250


class TestRegister:
    def test_a_parser_from_outside_is_found_in_its_stage_only(self) -> None:
        register(Stage.ESSAY, "test-upper", str.upper)
        register(Stage.ESSAY, "test-upper", str.upper)
        assert get_parser(Stage.ESSAY, "test-upper")("a") == "A"
        assert "test-upper" in parser_names(Stage.ESSAY)
        assert "test-upper" not in parser_names(Stage.DRAFT)

    @pytest.mark.parametrize("name", ["identity", "in_last_line", "complex", "", "regex:x", "json:x"])
    def test_reserved_names_stay(self, name: str) -> None:
        with pytest.raises(ValueError, match="reserved"):
            register(Stage.EVALUATION, name, str.upper)

    def test_a_name_belongs_to_the_first(self) -> None:
        register(Stage.DRAFT, "test-once", str.upper)
        with pytest.raises(ValueError, match="already called"):
            register(Stage.DRAFT, "test-once", str.lower)
        assert get_parser(Stage.DRAFT, "test-once")("a") == "A"


class TestScoreText:
    @pytest.mark.parametrize(
        ("score", "text"),
        [
            (7, "7.0"),
            (6.5, "6.5"),
            (Decimal("7.25"), "7.25"),
            (Decimal(1) / 3, "0.3333"),
            (0.00001, "0.0"),
            (-0.0, "0.0"),
            (Decimal("-0"), "0.0"),
            (Decimal("1E+1"), "10.0"),
            (9.99999, "10.0"),
        ],
    )
    def test_written_as_a_plain_decimal(self, score: Decimal | float, text: str) -> None:
        assert format_score(score) == text

    @pytest.mark.parametrize("score", [math.nan, math.inf, -0.1, 10.01, Decimal("NaN"), Decimal("1E+999")])
    def test_what_is_no_score_is_not_written(self, score: Decimal | float) -> None:
        with pytest.raises(ValueError, match="0 to 10"):
            format_score(score)

    @pytest.mark.parametrize(
        ("text", "score"), [("7.0\n", 7.0), ("10", 10.0), ("0.0", 0.0), (" 6.25 ", 6.25), ("007", 7.0)]
    )
    def test_read_back(self, text: str, score: float) -> None:
        assert read_score(text) == score

    @pytest.mark.parametrize(
        "text",
        [
            "",
            " ",
            "nan",
            "inf",
            "10.1",
            "-1",
            "-0.0",
            "1e1",
            "1_0",
            "٧",
            "７",
            "7\n8",
            "7,5",
            "SCORE: 7",
            "9" * 5000,
        ],
    )
    def test_what_is_no_score_reads_as_none(self, text: str) -> None:
        assert read_score(text) is None


class TestTexts:
    @pytest.mark.parametrize("stage", STAGES)
    @pytest.mark.parametrize("text", ["", " ", "\n\t \n"])
    def test_an_empty_answer_is_a_failure_for_every_parser(self, stage: Stage, text: str) -> None:
        for name in ("identity", *parser_names(stage)[1:3]):
            assert failure(text, name, stage) == "the answer is empty"

    def test_an_evaluation_kept_as_it_stands_is_stripped(self) -> None:
        assert parse("\n no score here \n", "identity") == "no score here"

    @pytest.mark.parametrize(
        ("text", "block"),
        [
            (
                "<thinking>plan</thinking>\n<essay>\nOne.\n\nTwo.\n</essay>\n<endnotes>x</endnotes>",
                "One.\n\nTwo.",
            ),
            ("<essay>first</essay><essay>second</essay>", "first"),
            ("Here:\n<essay>\ncut off in the mid", "cut off in the mid"),
            ("<Essay >a < b</ESSAY >", "a < b"),
            ("<essay-idea>no</essay-idea><essay>yes</essay>", "yes"),
            ("</essay><essay>İ keeps its place</essay>", "İ keeps its place"),
        ],
    )
    def test_essay_block(self, text: str, block: str) -> None:
        assert parse(text, "essay_block", Stage.ESSAY) == block

    @pytest.mark.parametrize("stage", [Stage.DRAFT, Stage.ESSAY])
    def test_essay_block_lenient(self, stage: Stage) -> None:
        assert parse("Before.\n<essay>\nIn it.\n</essay>", "essay_block_lenient", stage) == "In it."
        assert parse("<essay>\ncut", "essay_block_lenient", stage) == "cut"
        assert parse("No tags,\ntwo lines.", "essay_block_lenient", stage) == "No tags,\ntwo lines."
        assert parse("<thinking>plan</thinking>\nNo tags.", "essay_block_lenient", stage) == "No tags."
        assert "empty" in failure("<essay> </essay>", "essay_block_lenient", stage)

    def test_essay_block_without_a_block(self) -> None:
        assert "no <essay> tag" in failure("An essay without tags.", "essay_block", Stage.DRAFT)
        assert "empty" in failure("<essay>\n </essay><essay>x</essay>", "essay_block", Stage.DRAFT)
        assert "empty" in failure("text <essay>", "essay_block", Stage.DRAFT)

    @pytest.mark.parametrize(
        ("text", "idea"),
        [
            pytest.param(
                '<essay-idea stage="1">\nSeed.\n</essay-idea>\n<thinking>\nA or B?\n</thinking>\n'
                '  <essay-idea stage="2">\n  Grown.\n  </essay-idea>\nDone.',
                "Grown.",
                id="highest is last",
            ),
            pytest.param(
                '<essay-idea stage="10">\nten\n</essay-idea>\n<essay-idea stage="9">\nnine\n</essay-idea>',
                "ten",
                id="by number, not by place or by letters",
            ),
            pytest.param(
                '<essay-idea stage="2">\nold\n</essay-idea>\n<essay-idea stage="2">\nnew\n</essay-idea>',
                "new",
                id="last among equals",
            ),
            pytest.param(
                "<essay-idea>\nold\n</essay-idea>\n<essay-idea>\nnew\n</essay-idea>", "new", id="no stages"
            ),
            pytest.param(
                '<essay-idea stage="0">\nzero\n</essay-idea>\n<essay-idea>\nnone\n</essay-idea>',
                "zero",
                id="a stage before none",
            ),
            pytest.param(
                '<essay-idea stage="1">\nreal\n</essay-idea>\n- <essay-idea stage="9">x</essay-idea> it is.',
                "real",
                id="not in a sentence",
            ),
            pytest.param(
                "<Essay-Idea topic='x' stage='3'>on one line</essay-idea>", "on one line", id="one line"
            ),
            pytest.param(
                '<essay-idea stage="1">\none\n</essay-idea>\n'
                f'<essay-idea stage="{"9" * 5000}">\nhuge\n</essay-idea>',
                "one",
                id="a stage that is no number of a step",
            ),
        ],
    )
    def test_essay_idea_last(self, text: str, idea: str) -> None:
        assert parse(text, "essay_idea_last", Stage.DRAFT) == idea

    def test_an_idea_that_was_cut_off_is_not_replaced_by_an_earlier_one(self) -> None:
        earlier = '<essay-idea stage="1">\nSeed.\n</essay-idea>\n'
        assert (
            failure(f'{earlier}<essay-idea stage="2">\nGrow', "essay_idea_last", Stage.DRAFT)
            == 'the <essay-idea stage="2"> block is not closed'
        )
        assert "is empty" in failure(
            f'{earlier}<essay-idea stage="2">\n</essay-idea>', "essay_idea_last", Stage.DRAFT
        )
        assert "no <essay-idea>" in failure("</essay-idea> nothing", "essay_idea_last", Stage.DRAFT)


ONE_LINE_SCORES = [
    ("SCORE: 7", "7.0"),
    ("score: 7", "7.0"),
    ("SCORE : 7", "7.0"),
    ("SCORE:7.5", "7.5"),
    ("SCORE = 7", "7.0"),
    ("SCORE：7", "7.0"),
    ("SCORE:\u00a0\u200b7", "7.0"),
    ("Score: 8.", "8.0"),
    ("SCORE: 10", "10.0"),
    ("SCORE: 0", "0.0"),
    ("SCORE: -0", "0.0"),
    ("SCORE: 6.66666", "6.6667"),
    ("**SCORE:** 7", "7.0"),
    ("**SCORE**: 7", "7.0"),
    ("__SCORE:__ _7_", "7.0"),
    ("SCORE: **7.5**", "7.5"),
    ("`SCORE: 7`", "7.0"),
    ("“SCORE: 7”", "7.0"),
    ("SCORE: [7]", "7.0"),
    (r"\*\*SCORE: 7\*\*", "7.0"),
    ("> - **SCORE:** 7", "7.0"),
    ("SCORE: ~~5~~ 7", "7.0"),
    ("### Final Score: 8/10", "8.0"),
    ("### Final Score – 8/10", "8.0"),
    ("Total Score 8 / 10", "8.0"),
    ("Final score: 8 out of 10 (strong)", "8.0"),
    ("The final score is 8.", "8.0"),
    ("SCORE 7", "7.0"),
    ("| **Total Score** | **7** |", "7.0"),
    ("final_score: 7", "7.0"),
    ("**SCORE (0–10):** 7", "7.0"),
    ("Total Score: 4 + 3.5 = **7.5**/10", "7.5"),
    ("Score: 7 — the critic is missing, so 2 points are lost", "7.0"),
    ("Mean of 3 marks; Final Score: 6.5", "6.5"),
    ("Total Score: 6.5/10 → Rounded to 7/10", "6.5"),
]

UNREADABLE_SCORES = [
    "SCORE: 11",
    "SCORE: -3",
    "SCORE: −3",
    "SCORE: 11/10",
    "SCORE: 10.0001",
    "SCORE: NaN",
    "SCORE: inf",
    "SCORE: 0-10 (0 = no merit, 10 = exceptional)",
    "SCORE: 7-8",
    "SCORE: 7 to 8",
    "SCORE: 7 or 8",
    "SCORE: 7 8",
    "SCORE: 7,5",
    "SCORE: 7%",
    "SCORE: 7½",
    "SCORE: 7 ½",
    "SCORE: 7²",
    "SCORE: ７",
    "SCORE: ٧",
    "SCORE: 7٥",
    "SCORE: 7.٥",
    "SCORE: 1\u200b0",
    "SCORE: 1\x000",
    "SCORE: 1\u202e0",
    "SCORE: 4/\x005",
    "SCORE: 4/five",
    "SCORE: 7*8",
    "SCORE: 7**8**",
    "SCORE: 4 + 3",
    "SCORE: 1e1",
    "SCORE: 0x7",
    "SCORE: 7.5.1",
    "SCORE: 7/0",
    "SCORE: ~7",
    "SCORE: " + "9" * 5000,
    "SCORE: 1" + "0" * 990 + " " + "x" * 5000,
]


@pytest.mark.parametrize("name", ["in_last_line", "complex"])
class TestBothScoreParsers:
    @pytest.mark.parametrize(("line", "score"), ONE_LINE_SCORES)
    def test_one_line(self, name: str, line: str, score: str) -> None:
        assert parse(f"Reasons.\n\n{line}\n", name) == score

    @pytest.mark.parametrize("line", UNREADABLE_SCORES)
    def test_a_number_that_is_no_score_is_a_failure_even_beside_another(self, name: str, line: str) -> None:
        message = failure(f"Reasons.\nScore so far: none.\nFinal Score: 5\n{line}", name)
        assert "out of range" in message or "cannot be read as one number" in message
        assert line.split(": ")[1][0] in message

    @pytest.mark.parametrize(
        "line",
        [
            "Reasons only.",
            "SCORE: X",
            "SCORE:",
            "Score justification: 3 of 4 items hold",
            "Sub-score: 3",
            "sub score: 3",
            "Subscore: 3",
            "z-score: 1.5",
            "Scores: 4",
            "Score_0_9: 7",
            "Score 8 is for essays with a critic",
            "It scored 7 of 10",
            "***",
        ],
    )
    def test_what_is_not_a_score_is_not_read(self, name: str, line: str) -> None:
        assert "no score in the last" in failure(line, name)

    def test_out_of_range_says_so(self, name: str) -> None:
        assert "out of range, which is 0 to 10: '11'" in failure("SCORE: 11", name)
        assert "'-3'" in failure("SCORE: -3", name)

    def test_messages_are_short_and_printable(self, name: str) -> None:
        for text in ("\x1b]52;c;x\x07\ud800\u202e" * 500, "SCORE: 7\x1b[31m\ud800" + "x" * 5000):
            message = failure(text, name)
            assert message.isprintable()
            assert len(message) < 200
            message.encode()

    def test_a_score_at_either_end_of_a_long_line(self, name: str) -> None:
        assert parse("word " * 50_000 + "SCORE: 7", name) == "7.0"
        assert parse("SCORE: 7 because" + " word" * 50_000, name) == "7.0"

    def test_a_line_is_not_cut_into_another_score(self, name: str) -> None:
        head = "x" * (1000 - len(" SCORE: 1"))
        assert "cannot be read" in failure(f"{head} SCORE: 10 {'y' * 3000}", name)

    def test_white_space_behind_the_answer_does_not_count(self, name: str) -> None:
        assert parse("SCORE: 7" + "\n \t" * 1000, name) == "7.0"


EXPLICIT_LINES = [
    (
        "**SCORE:** 2.5 (rounded to the nearest half)\nBy the letter the strict score is **2/10**, no more.",
        "2.5",
    ),
    ("SCORE: 8\nA perfect score is 10.", "8.0"),
    ("SCORE: 8 (strong)\nThe previous score is 3.", "8.0"),
    ("SCORE: 7 (good)\nTotal Connections Score: 2/10", "7.0"),
    ("SCORE: 3\nSCORE: 8", "8.0"),
    ("SCORE: 8/10 — one link is missing.\nTotal Score: 3/10", "8.0"),
    ("> - `SCORE: 8`\nFinal Score: 3/10", "8.0"),
    ("SCORE: 8 (strong (but late))\nThe score is 3/10.", "8.0"),
    ("SCORE: 8 (strong, though it is cut\nThe score is 3/10.", "8.0"),
    ("SCORE (0-10): 8\nThe score is 3/10.", "8.0"),
    ("<think>\nI begin. SCORE: 3\nOr not.\n</think>\nSCORE: 8", "8.0"),
    ("<think>SCORE: 8</think>\n\nFinal Score: 3/10", "3.0"),
    ("I begin. SCORE: 3</think>\nSCORE: 8", "8.0"),
    ("SCORE: 3 (Core) + 2 (Connections) = 5/10", "5.0"),
]


@pytest.mark.parametrize("name", ["in_last_line", "complex"])
class TestExplicitLine:
    @pytest.mark.parametrize(("text", "score"), EXPLICIT_LINES)
    def test_it_wins_over_prose_sub_scores_and_earlier_lines(self, name: str, text: str, score: str) -> None:
        assert parse(text, name) == score

    @pytest.mark.parametrize("text", ["SCORE: 100", "SCORE: 5\nSCORE: 100", "Final Score: 5\n**SCORE: 100**"])
    def test_a_hundred_is_out_of_range_and_no_three_sub_scores(self, name: str, text: str) -> None:
        assert "out of range, which is 0 to 10: '100'" in failure(text, name)

    @pytest.mark.parametrize(
        "line", ["SCORE: 8 for style", "SCORE: 8 and more", "My SCORE: 8", "Final Score: 8"]
    )
    def test_with_more_than_a_remark_a_line_is_not_explicit(self, name: str, line: str) -> None:
        assert parse(f"SCORE: 7\n{line}", name) == "7.0"

    def test_a_sum_without_its_result_is_not_guessed(self, name: str) -> None:
        assert "cannot be read" in failure("SCORE: 3 (Core) + 2 (Connections)", name)

    @pytest.mark.parametrize("text", ["<think>SCORE: 8", "<think>\nSCORE: 8\n", "<THOUGHT>SCORE: 8</think>"])
    def test_thinking_without_an_end_has_no_score(self, name: str, text: str) -> None:
        assert "cut off while the model was thinking" in failure(text, name)


class TestInLastLine:
    @pytest.mark.parametrize(
        "text",
        [
            "Score: 4,5,6",
            "Score: 4, 5, 6",
            "Score: 4 5 6",
            "SCORE: 456 (of 9 each)",
            "SCORE: 4,5,6\nScore: 2",
        ],
    )
    def test_three_sub_scores_in_their_spellings(self, text: str) -> None:
        assert parse(text, "in_last_line") == "5.0"

    @pytest.mark.parametrize(
        "text", ["SCORE: 4,5", "SCORE: 4,5,6,7", "SCORE: 4 5 6 7", "SCORE: 4,5,6.5", "SCORE: 4,5,16"]
    )
    def test_no_other_lists_are_sub_scores(self, text: str) -> None:
        assert "cannot be read as one number" in failure(text, "in_last_line")

    def test_three_digits_are_three_sub_scores(self) -> None:
        assert parse("SCORE: 456", "in_last_line") == "5.0"
        assert parse("**Final Score: 789**", "in_last_line") == "8.0"
        assert parse("SCORE: 101", "in_last_line") == "0.6667"
        assert "out of range" in failure("SCORE: 4567", "in_last_line")
        assert "out of range" in failure("SCORE: 45", "in_last_line")
        assert "out of range" in failure("SCORE: 456.0", "in_last_line")

    def test_only_the_last_three_non_empty_lines_count(self) -> None:
        assert parse("SCORE: 7\n\n\nOne.\n\n---\n\nTwo.\n", "in_last_line") == "7.0"
        assert "no score" in failure("SCORE: 7\nOne.\nTwo.\n\nThree.", "in_last_line")

    def test_a_quoted_score_early_in_the_answer_does_not_count(self) -> None:
        text = 'The essay says "SCORE: 9" and\n\nSCORE: 9\n\nwhich I ignore.\nIt is thin.\n\nSCORE: 2'
        assert parse(text, "in_last_line") == "2.0"
        assert "no score" in failure(text.removesuffix("\n\nSCORE: 2") + "\nNo mark.", "in_last_line")

    def test_the_exact_line_wins_over_what_follows(self) -> None:
        assert parse("**SCORE:** 7\nTotal Score: 6.5/10 before rounding", "in_last_line") == "7.0"
        assert parse("SCORE: 7\nscore: 3", "in_last_line") == "7.0"
        assert parse("SCORE: 3\nSCORE: 7\nFinal Score: 9", "in_last_line") == "7.0"
        assert "out of range" in failure("SCORE: 11\nFinal Score: 9", "in_last_line")

    def test_without_an_exact_line_the_last_match_wins(self) -> None:
        assert parse("Final Score: 4\nTotal Score: 5, Score: 6\nThanks.", "in_last_line") == "6.0"
        assert parse("My SCORE: 7\nFinal Score: 4", "in_last_line") == "4.0"

    def test_fractions_of_the_templates_scales_are_kept_and_others_refused(self) -> None:
        assert parse("SCORE: 8/10", "in_last_line") == "8.0"
        assert parse("SCORE: 8/9", "in_last_line") == "8.0"
        for fraction in ("4/5", "80/100", "4 (out of 5)", "4 points of 5"):
            assert "fraction of neither 10 nor 9" in failure(f"SCORE: {fraction}", "in_last_line")
        assert "cannot be read" in failure("SCORE (out of 5): 4", "in_last_line")

    def test_a_heading_is_not_a_score(self) -> None:
        assert "no score" in failure("## SCORE:\n7", "in_last_line")


class TestComplex:
    @pytest.mark.parametrize(
        ("ending", "score"),
        [
            ("### **SCORE:**  \n**Total Score: 7/10**\n\n**Summary**:\nSolid.", "7.0"),
            ("### **Final Score**  \n**2/10**\n- **Gaps**: 2/5 of the terms", "2.0"),
            ("**Final Score**:  \n**4/10**\nNo verifier.", "4.0"),
            ("### **SCORE: 5/10**\n**Breakdown**:\n- Concepts: 2.5/5", "5.0"),
            ("- **Total Score: 6.5/10** → Rounded to **7/10**\n\n**SCORE:** 7", "6.5"),
            ("- **Total Score: 6.5/10**\n\n**SCORE:** 7", "7.0"),
            ("- **Total Score: 5/10** → Rounded to **7/10**\n\n**SCORE:** 7", "7.0"),
            ("## Total Score\n\n7.5 / 10", "7.5"),
            ("Score: 4/5", "8.0"),
            ("Score: 66/99", "6.6667"),
            ("Score: 85 out of 100", "8.5"),
            ("Score: 4 (out of 5)", "8.0"),
            ("Total Score (out of 20): 15/20", "7.5"),
        ],
    )
    def test_the_last_fraction_comes_first(self, ending: str, score: str) -> None:
        assert parse(VERDICT + ending, "complex") == score

    @pytest.mark.parametrize(
        ("ending", "score"),
        [
            ("Score: 3\nFinal Score: 8\nThe end.", "8.0"),
            ("## Total Score\n7.5", "7.5"),
            ("## Total Score\n\n**7.5** (generous)\n\nThe end.", "7.5"),
            ("**SCORE (0–10):**\n- 7.", "7.0"),
            ("Score: 6\n## Score\n3 of the 4 parts are there", "6.0"),
            ("Score: 6\n## Score\n1. Problem: named", "6.0"),
        ],
    )
    def test_then_plain_numbers(self, ending: str, score: str) -> None:
        assert parse(f"**Verdict**\n{ending}", "complex") == score

    def test_the_last_thirty_lines(self) -> None:
        assert parse("Score: 7/10" + "\nline" * 29, "complex") == "7.0"
        assert "last 30 lines" in failure("Score: 7/10" + "\nline" * 30, "complex")

    @pytest.mark.parametrize("ending", ["Score: 11/10", "Score: 7/0", "Score: 7½/10", "## Score\n٧/10"])
    def test_a_bad_last_fraction_is_not_replaced_by_an_earlier_one(self, ending: str) -> None:
        failure(f"{VERDICT}{ending}", "complex")

    def test_plain_numbers_are_not_three_sub_scores(self) -> None:
        assert "out of range" in failure("SCORE: 456", "complex")
        for text in ("SCORE: 4,5,6", "Score: 4 5 6", "SCORE: 7, 8, 9"):
            assert "cannot be read as one number" in failure(text, "complex")


class TestJson:
    @pytest.mark.parametrize(
        ("path", "text", "score"),
        [
            ("score", '{"score": 7, "why": "clear"}', "7.0"),
            ("$.score", '{"score": 7.25}', "7.25"),
            ("verdict.marks.1", '{"verdict": {"marks": [3, 6.5]}}', "6.5"),
            ("0.score", '[{"score": 4}]', "4.0"),
            ("score", 'Here it is:\n```json\n{"score": 7}\n```\nThat was it.', "7.0"),
            ("score", '```json\n{"score": 3}\n```\nNo, better:\n```\n{"score": 8}\n```', "8.0"),
            ("score", '```json\n{"score": 8}\n```\n```json\n{"other": 1}\n```', "8.0"),
            ("score", 'My verdict {"score": 6} stands.', "6.0"),
            ("score", 'Set {a, b}.\n{\n  "score": "9/10",\n  "note": "}"\n}', "9.0"),
            ("score", '<think>{"score": 1}</think>\n{"score": "5.5"}', "5.5"),
            ("Gesamtnote", '{"Gesamtnote": 1e1}', "10.0"),
        ],
    )
    def test_the_number_at_the_path(self, path: str, text: str, score: str) -> None:
        assert parse(text, f"json:{path}") == score

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("", "empty"),
            ("SCORE: 7", "no JSON in the answer"),
            ('{"score": 7', "no JSON in the answer"),
            ('{"scores": 7}', "has no 'score'"),
            ('{"score": 11}', "out of range"),
            ('{"score": -1}', "out of range"),
            ('{"score": 1e400000}', "out of range"),
            ('{"score": true}', "cannot be read"),
            ('{"score": null}', "cannot be read"),
            ('{"score": [7]}', "cannot be read"),
            ('{"score": "seven"}', "cannot be read"),
            ('{"score": NaN}', "no JSON"),
            ("[" * 100_000, "no JSON"),
        ],
    )
    def test_failures(self, text: str, reason: str) -> None:
        assert reason in failure(text, "json:score")

    @pytest.mark.parametrize("path", ["", "$", "a..b", "."])
    def test_a_path_without_keys_is_refused_before_anything_is_paid_for(self, path: str) -> None:
        with pytest.raises(LookupError, match="keys joined by dots"):
            get_parser(Stage.EVALUATION, f"json:{path}")


class TestRegex:
    @pytest.mark.parametrize(
        ("pattern", "text", "score"),
        [
            (r"SCORE=(\d+)", "SCORE=3\nSCORE=4 SCORE=7\nend", "7.0"),
            (r"(?<==)\d+\.\d", "SCORE=7.5", "7.5"),
            (r"(?i)verdict\W+(\d+(?:\.\d+)?) of (10)", "**Verdict:** 6.25 of 10", "6.25"),
            (r"SCORE\)+=([0-9]+)", "SCORE))=5", "5.0"),
        ],
    )
    def test_the_last_match_s_first_group(self, pattern: str, text: str, score: str) -> None:
        assert parse(text, f"regex:{pattern}") == score

    @pytest.mark.parametrize(
        ("pattern", "text", "reason"),
        [
            (r"SCORE=(\d+)", "SCORE: 7", "nothing in the last 200 lines"),
            (r"SCORE=(\d+)", "SCORE=7" + "\nx" * 200, "nothing in the last 200 lines"),
            (r"SCORE=(\d+)", "SCORE=3\nSCORE=11", "out of range"),
            (r"SCORE=(-?\d)", "SCORE=-1", "out of range"),
            (r"SCORE=(\w+)", "SCORE=seven", "cannot be read"),
            (r"SCORE=(\d+)", "SCORE=٧", "cannot be read"),
            (r"SCORE=(\d)?", "SCORE=", "cannot be read"),
            (r"SCORE=(\d+(?:\.\d+)?)", "SCORE=7." + "3" * 30, "cannot be read"),
            (r"SCORE=(\d+)", " " * 50 + "x" * 143 + "SCORE=10" + "y" * 500, "cannot be read"),
            (r"x*", "", "empty"),
        ],
    )
    def test_failures(self, pattern: str, text: str, reason: str) -> None:
        assert reason in failure(text, f"regex:{pattern}")

    @pytest.mark.parametrize(
        ("pattern", "reason"),
        [
            ("(", "not a regular expression"),
            ("a{99999999999999999999}", "not a regular expression"),
            ("", "1 to 500"),
            ("a" * (MAX_PATTERN_CHARS + 1), "1 to 500"),
            (r"(\d+)+x", "take for ever"),
            (r"(?:a|a){2,}x", "take for ever"),
            (r"(?x)(\d+) *x", "take for ever"),
            (r".*SCORE=(\d)", "take for ever"),
            (r"(?i)(?:[^:]+):(\d)", "take for ever"),
            (r"SCORE.*=[\w]+(\d)", "take for ever"),
        ],
    )
    def test_a_bad_pattern_is_refused_before_anything_is_paid_for(self, pattern: str, reason: str) -> None:
        with pytest.raises(LookupError, match=reason):
            get_parser(Stage.EVALUATION, f"regex:{pattern}")

    def test_the_longest_pattern_passes(self) -> None:
        pattern = r"(\d)" + "a?" * ((MAX_PATTERN_CHARS - 4) // 2)
        assert len(pattern) == MAX_PATTERN_CHARS
        assert parse("SCORE=7", f"regex:{pattern}") == "7.0"


@pytest.mark.parametrize(
    ("answer", "choice"),
    [
        ("Both are fine.\nWINNER: A", "A"),
        ("**Winner:** B", "B"),
        ("WINNER: A\nOn reflection.\nWINNER: B (clearer)", "B"),
        ("Final verdict: Essay B", "B"),
        ("The better response is A.", "A"),
        ("Preferred: response b — it is shorter", "B"),
        ("winner: tie", "tie"),
        ("Verdict: neither", "tie"),
        ("Verdict: equal", "tie"),
        ("I choose [[A]]", "A"),
        ("[[A]] at first, then [[C]]", "tie"),
        ("Reasons.\n\n**A**", "A"),
        ("Reasons.\nEssay A is better.", "A"),
        ("<think>WINNER: A</think>\nWINNER: B", "B"),
    ],
)
def test_a_choice_is_read(answer: str, choice: str) -> None:
    assert get_parser(Stage.EVALUATION, "choice")(answer) == choice


@pytest.mark.parametrize(
    "answer",
    [
        "WINNER: A or B",
        "WINNER: C",
        "WINNER:",
        "WINNER: Albert",
        "A better essay would cite sources.",
        "A is longer, B is clearer.",
        "SCORE: 7",
        "Tie your shoes",
    ],
)
def test_what_is_no_choice_is_not_guessed(answer: str) -> None:
    with pytest.raises(ParseFailedError, match="which is better"):
        get_parser(Stage.EVALUATION, "choice")(answer)
