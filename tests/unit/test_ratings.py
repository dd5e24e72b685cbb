"""Ratings by people: kept whole or not at all, nowhere but where they belong, read back as they were given."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from genworker.core.stages import Stage
from genworker.errors import StoreError
from genworker.paths import Paths
from genworker.store.ratings import (
    Choice,
    Rating,
    RatingError,
    raters,
    rating_generation,
    rating_name,
    read_choices,
    read_ratings,
    write_choice,
    write_rating,
)
from genworker.store.reader import StoreReader
from support.stores import StoreBuilder


def rating(rater: str = "ann", gen_id: str = "e1", score: float = 7.0, **facts: object) -> Rating:
    values = {
        "reason": "clear",
        "rated_at": "2026-11-27T00:00:00+00:00",
        "seed": 3,
        "cohort": "pilot",
        **facts,
    }
    return Rating(rater, gen_id, score, **values)  # type: ignore[arg-type]


def test_a_rating_is_read_back(tmp_path: Path) -> None:
    paths = Paths.from_str(tmp_path)
    path = write_rating(paths, rating())
    assert path == tmp_path / "ratings" / "ann" / "e1.json"
    assert list(read_ratings(paths)) == [rating()]
    assert raters(paths) == ["ann"]


def test_a_later_rating_replaces_an_earlier_one(tmp_path: Path) -> None:
    paths = Paths.from_str(tmp_path)
    write_rating(paths, rating(score=2.0))
    write_rating(paths, rating(score=9.5))
    assert [found.score for found in read_ratings(paths)] == [9.5]
    assert [path.name for path in (tmp_path / "ratings" / "ann").iterdir()] == ["e1.json"]


@pytest.mark.parametrize("rater", ["", "../x", "a/b", ".hidden", "a" * 41, "a\n", "é", "a b"])
def test_a_rater_is_a_plain_name(rater: str, tmp_path: Path) -> None:
    with pytest.raises(RatingError, match="rater's name"):
        write_rating(Paths.from_str(tmp_path), rating(rater))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("gen_id", ["../x", "a/b", ".hidden", "", "a\x00b"])
def test_a_text_is_a_plain_name(gen_id: str, tmp_path: Path) -> None:
    with pytest.raises(RatingError, match="text's name"):
        write_rating(Paths.from_str(tmp_path), rating(gen_id=gen_id))
    with pytest.raises(RatingError, match="text's name"):
        write_choice(Paths.from_str(tmp_path), Choice("ann", gen_id, "e2", "a", "", "", 1, "pilot"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("score", [-0.1, 10.1, float("nan"), float("inf")])
def test_a_score_is_from_0_to_10(score: float, tmp_path: Path) -> None:
    with pytest.raises(RatingError, match="from 0 to 10"):
        write_rating(Paths.from_str(tmp_path), rating(score=score))


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "data" / "ratings").mkdir(parents=True)
    (tmp_path / "data" / "ratings" / "ann").symlink_to(elsewhere)
    with pytest.raises(StoreError, match="symbolic link"):
        write_rating(Paths.from_str(tmp_path / "data"), rating())
    assert list(elsewhere.iterdir()) == []


def test_a_choice_has_one_file_whatever_the_order(tmp_path: Path) -> None:
    paths = Paths.from_str(tmp_path)
    write_choice(paths, Choice("ann", "e2", "e1", "a", "", "", 1, "pilot"))
    write_choice(paths, Choice("ann", "e1", "e2", "tie", "same", "", 1, "pilot"))
    assert [(found.first, found.second, found.choice) for found in read_choices(paths)] == [
        ("e1", "e2", "tie")
    ]


@pytest.mark.parametrize(("second", "choice"), [("e1", "a"), ("e2", "both"), ("e2", "")])
def test_a_choice_is_between_two(second: str, choice: str, tmp_path: Path) -> None:
    with pytest.raises(RatingError):
        write_choice(Paths.from_str(tmp_path), Choice("ann", "e1", second, choice, "", "", 1, "pilot"))


def test_what_is_no_rating_is_passed_over(tmp_path: Path) -> None:
    paths = Paths.from_str(tmp_path)
    directory = tmp_path / "ratings" / "ann"
    write_rating(paths, rating())
    for name, text in {
        "torn.json": '{"gen_id": "x", "sc',
        "list.json": "[]",
        "odd.json": '{"gen_id": "x", "score": "7"}',
        "large.json": '{"gen_id": "x", "score": 70}',
        ".part.json": '{"gen_id": "x", "score": 7}',
    }.items():
        (directory / name).write_text(text)
    (tmp_path / "ratings" / "not a rater").mkdir()
    assert list(read_ratings(paths)) == [rating()]


def test_two_raters_at_once_lose_nothing(tmp_path: Path) -> None:
    paths = Paths.from_str(tmp_path)

    def rate(name: str) -> None:
        for number in range(100):
            write_rating(paths, rating(name, f"e{number}", number % 11))

    threads = [threading.Thread(target=rate, args=(name,)) for name in ("ann", "bob", "ann")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = list(read_ratings(paths))
    assert len(found) == 200
    assert all(one.score == int(one.gen_id[1:]) % 11 for one in found)


CALLS = ("mkdir", "open", "write", "fsync", "close", "rename")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("number", range(1, 4))
def test_a_kill_at_any_call_leaves_the_old_rating_or_the_new_one(
    call: str, number: int, tmp_path: Path
) -> None:
    paths = Paths.from_str(tmp_path)
    write_rating(paths, rating(score=2.0))
    pid = os.fork()
    if pid == 0:  # the child dies in the middle, without a word to anybody
        count = 0
        real = getattr(os, call)

        def die(*arguments: object, **options: object) -> object:
            nonlocal count
            count += 1
            if count == number:
                os._exit(9)
            return real(*arguments, **options)

        setattr(os, call, die)
        write_rating(paths, rating(score=8.0))
        os._exit(0)
    os.waitpid(pid, 0)
    assert [found.score for found in read_ratings(paths)] in ([2.0], [8.0])
    write_rating(paths, rating(score=4.0))
    assert [found.score for found in read_ratings(paths)] == [4.0]


def test_a_rating_reads_as_an_evaluation(tmp_path: Path) -> None:
    paths = Paths.from_str(tmp_path)
    write_rating(paths, rating())
    name = rating_name("ann", "e1")
    found = StoreReader(paths).generation(Stage.EVALUATION, name)
    assert (found.raw_text, found.parsed_text) == ("clear", "7.0\n")
    assert rating_generation(paths, "human:../x:e1") is None
    assert rating_generation(paths, "human:ann:../x") is None
    assert rating_generation(paths, "human:bob:e1") is None


def test_raters_are_evaluators_in_every_table(tmp_path: Path) -> None:
    from genworker.api import scores

    store = StoreBuilder(tmp_path / "data")
    essay = store.essay(store.draft())
    store.evaluation(essay)
    store.write_membership()
    write_rating(store.paths, rating(gen_id=essay))
    write_rating(store.paths, rating("bob", "of-another-cohort"))
    rows = scores(tmp_path / "data", "pilot")
    assert [(row.evaluation_llm_model, row.score) for row in rows] == [("judge", 5.0), ("human:ann", 7.0)]
    assert rows[1].evaluation_template == "human"
    assert rows[1].parent_gen_id == essay
