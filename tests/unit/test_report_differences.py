"""Words that differ between replicates."""

from __future__ import annotations

import time

from genworker.reports.differences import MAX_CHARS, MAX_WORDS, Version, compare


def shown(version: Version) -> str:
    return "".join(f"[{piece.text}]" if piece.differs else piece.text for piece in version.pieces)


def test_words_that_differ_are_marked_in_both_texts() -> None:
    first, second = compare([("r1", "the tide turns at noon"), ("r2", "the tide never turns")])
    assert (shown(first), shown(second)) == ("the tide turns [at noon]", "the tide [never] turns")
    assert first.labels == ("r1",)


def test_equal_texts_become_one_with_their_labels() -> None:
    versions = compare([("r1", "same"), ("r2", "other"), ("r3", "same")])
    assert [version.labels for version in versions] == [("r1", "r3"), ("r2",)]
    assert [shown(version) for version in versions] == ["[same]", "[other]"]
    (only,) = compare([("r1", "same"), ("r2", "same")])
    assert shown(only) == "same"


def test_the_first_text_is_marked_wherever_another_one_lacks_it() -> None:
    first, *_ = compare([("r1", "a b c"), ("r2", "a b x"), ("r3", "y b c")])
    assert shown(first) == "[a] b [c]"


def test_long_texts_are_cut_and_say_so() -> None:
    words = "word " * (MAX_WORDS + 7)
    (version,) = compare([("r1", words)])
    assert len(shown(version)) + version.left_off == len(words)
    assert version.left_off == 5 * 7 + 1
    (version,) = compare([("r1", "x" * (MAX_CHARS + 9))])
    assert version.left_off == 9
    (version,) = compare([("r1", "")])
    assert version.pieces == ()


def test_one_word_in_a_long_text_is_one_mark() -> None:
    words = [f"w{number % 40}" for number in range(400)]
    other = [*words[:200], "changed", *words[201:]]
    first, second = compare([("r1", " ".join(words)), ("r2", " ".join(other))])
    assert [piece.text for piece in first.pieces if piece.differs] == ["w0"]
    assert [piece.text for piece in second.pieces if piece.differs] == ["changed"]


def test_other_white_space_is_no_other_word() -> None:
    first, second = compare([("r1", "one two\n"), ("r2", "one\n\ntwo")])
    assert not any(piece.differs for piece in (*first.pieces, *second.pieces))


def test_texts_made_to_be_slow_are_not() -> None:
    start = time.perf_counter()
    for vocabulary in (1, 2, 7, 60):
        words = [str(number * number % vocabulary) for number in range(20_000)]
        compare([("r1", " ".join(words)), ("r2", " ".join(reversed(words))), ("r3", " ".join(words[1:]))])
    assert time.perf_counter() - start < 1
