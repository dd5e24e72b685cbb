from __future__ import annotations

import json

import pytest

from genworker.core.completion import clean_text
from genworker.core.facts import Facts
from genworker.core.generation import Answer, FailureKind, Generation, encode_metadata, file_digest, finish
from genworker.core.parsers import register
from genworker.core.stages import Stage
from genworker.core.visible import visible


def answer(raw: str, **facts: object) -> Answer:
    return Answer(
        Stage.EVALUATION,
        "g1",
        "the prompt",
        raw,
        Facts({"parser": "in_last_line", "finish_reason": "stop", **facts}),
    )


def test_a_good_answer_is_parsed_and_digested() -> None:
    generation = finish(answer("fine\nSCORE: 7"))
    assert generation.parsed_text == "7.0"
    assert generation.failure is None
    assert generation.is_done
    files = generation.metadata["files"]
    assert files["raw.txt"] == {"sha256": file_digest(b"fine\nSCORE: 7"), "size_bytes": 13}
    assert set(files) == {"prompt.txt", "raw.txt", "parsed.txt"}


@pytest.mark.parametrize(
    ("raw", "facts", "kind"),
    [
        ("no score here", {}, FailureKind.UNPARSEABLE),
        ("SCORE: 11", {}, FailureKind.UNPARSEABLE),
        ("cut off\nSCORE: 7", {"finish_reason": "length"}, FailureKind.TRUNCATED),
        ("I cannot", {"finish_reason": "content_filter"}, FailureKind.CONTENT_FILTERED),
        ("", {}, FailureKind.EMPTY),
        (" \n", {}, FailureKind.EMPTY),
        ("{half", {"finish_reason": "malformed"}, FailureKind.MALFORMED),
        ("SCORE: 7", {"parser": "no-such-parser"}, FailureKind.UNPARSEABLE),
    ],
)
def test_an_answer_that_is_no_good_says_why(raw: str, facts: dict[str, object], kind: FailureKind) -> None:
    generation = finish(answer(raw, **facts))
    assert generation.parsed_text is None
    assert generation.raw_text == raw
    assert generation.failure is not None
    assert generation.failure.kind is kind
    assert generation.failure.message
    assert not generation.is_done


def test_a_parser_that_breaks_loses_nothing() -> None:
    def broken(raw: str) -> str:
        raise ZeroDivisionError("oops")

    register(Stage.EVALUATION, "broken-for-test", broken)
    generation = finish(answer("paid for", parser="broken-for-test"))
    assert generation.raw_text == "paid for"
    assert generation.failure is not None
    assert "ZeroDivisionError: oops" in generation.failure.message


def test_metadata_are_readable_json_whatever_they_hold() -> None:
    text = encode_metadata({"name": "Größe 語", "odd": object, "surrogate": "\ud800"}).decode()
    assert "Größe 語" in text
    assert json.loads(text)["name"] == "Größe 語"


def test_a_foreign_name_for_the_model_is_read() -> None:
    generation = Generation(Stage.DRAFT, "g", None, "", None, {"llm_model_id": "m", "parent_gen_id": ""})
    assert generation.model_id == "m"
    assert generation.parent_gen_id is None


def test_model_output_becomes_text_that_files_can_hold() -> None:
    assert clean_text("a\r\nb\rc\n") == "a\nb\nc\n"
    assert clean_text("x\ud800y") == "x\ufffdy"
    assert clean_text("\ud83d\ude00") == "😀", "a pair that was split is one character"


def test_control_characters_become_visible() -> None:
    assert visible("a\x1b[31mb\x07\u202e") == "a⟨U+001B⟩[31mb⟨U+0007⟩⟨U+202E⟩"
    assert visible("tab\tline\n") == "tab\tline\n"
    assert visible("tab\tline\n", one_line=True) == "tab line "
    assert visible("x" * 10, limit=4) == "xxx…"
    assert visible("می\u200cخواهم") == "می\u200cخواهم"
