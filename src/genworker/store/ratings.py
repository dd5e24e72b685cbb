"""Ratings by people: plain files, ``data/ratings/<rater>/<gen_id>.json``, written as the store writes.

One file a rating, whole or not there: a temporary file, synced, and one rename. Nothing of it lies inside
``gens``. A choice between two texts is ``data/ratings/<rater>/pairs/<first>.<second>.json``, the ids in the
order of their names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from genworker.core.generation import Generation
from genworker.core.ids import id_fault
from genworker.core.rating import HUMAN
from genworker.core.stages import Stage
from genworker.errors import StoreError
from genworker.paths import Paths
from genworker.store.durable import sync_path, write_beside
from genworker.store.reading import read_bytes

PAIRS = "pairs"
MAX_REASON_CHARS = 2000
_RATER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")


class RatingError(ValueError):
    """A rating cannot be: its rater, its text or its value; the message says what."""


@dataclass(frozen=True, slots=True)
class Rating:
    """A person's score of one text.

    Attributes:
        score: from 0 to 10.
        rated_at: ISO 8601, UTC.
        seed: of the order in which the texts were shown.
    """

    rater: str
    gen_id: str
    score: float
    reason: str
    rated_at: str
    seed: int
    cohort: str


@dataclass(frozen=True, slots=True)
class Choice:
    """A person's choice between two texts.

    Attributes:
        first: the text that was shown first (left), `second` the other one.
        choice: ``a`` for the first, ``b`` for the second, ``tie``.
    """

    rater: str
    first: str
    second: str
    choice: str
    reason: str
    rated_at: str
    seed: int
    cohort: str


def check_rater(name: str) -> str:
    """A rater's name as it may stand in a path.

    Raises:
        RatingError: it may not.
    """
    if not _RATER.fullmatch(name):
        raise RatingError(
            "a rater's name is 1 to 40 letters, digits, and . _ -, and begins with a letter or digit"
        )
    return name


def write_rating(paths: Paths, rating: Rating) -> Path:
    """Keep a rating; the same rater's earlier one of the same text is replaced.

    Raises:
        RatingError: the rater, the text's name or the score cannot be.
        StoreError: the disk refuses.
    """
    check_rater(rating.rater)
    _check_id(rating.gen_id)
    if not 0 <= rating.score <= 10:
        raise RatingError("a score is a number from 0 to 10")
    path = rating_path(paths, rating.rater, rating.gen_id)
    _write(path, asdict(rating))
    return path


def write_choice(paths: Paths, choice: Choice) -> Path:
    """Keep a choice; the same rater's earlier one of the same two texts is replaced.

    Raises:
        RatingError, StoreError: as `write_rating`.
    """
    check_rater(choice.rater)
    for gen_id in (choice.first, choice.second):
        _check_id(gen_id)
    if choice.first == choice.second:
        raise RatingError("a choice is between two texts")
    if choice.choice not in ("a", "b", "tie"):
        raise RatingError("a choice is a, b or tie")
    path = choice_path(paths, choice.rater, choice.first, choice.second)
    _write(path, asdict(choice))
    return path


def _check_id(gen_id: str) -> None:
    reason = id_fault(gen_id)
    if reason is not None:
        raise RatingError(f"the text's name {reason}")


def _write(path: Path, record: dict[str, Any]) -> None:
    content = orjson.dumps(record, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    try:
        for directory in (path.parent.parent, path.parent):
            if directory.is_symlink():
                raise OSError(None, "is a symbolic link", str(directory))
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_beside(path, content, 0o600)
        sync_path(path.parent)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {error.strerror}", path=str(path), errno=error.errno
        ) from error


def raters(paths: Paths) -> list[str]:
    """Everybody who has rated, in order."""
    try:
        with os.scandir(paths.ratings_dir) as entries:
            return sorted(
                entry.name
                for entry in entries
                if _RATER.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
            )
    except OSError:
        return []


def read_ratings(paths: Paths, rater: str | None = None) -> Iterator[Rating]:
    """Ratings of one person or of all; a file that is none is passed over."""
    for name in raters(paths) if rater is None else [rater]:
        for record in _records(paths.ratings_dir / name):
            score, gen_id = record.get("score"), record.get("gen_id")
            if isinstance(gen_id, str) and isinstance(score, int | float) and 0 <= score <= 10:
                yield Rating(name, gen_id, float(score), *_rest(record))


def read_choices(paths: Paths, rater: str | None = None) -> Iterator[Choice]:
    """Choices of one person or of all; a file that is none is passed over."""
    for name in raters(paths) if rater is None else [rater]:
        for record in _records(paths.ratings_dir / name / PAIRS):
            first, second, choice = record.get("first"), record.get("second"), record.get("choice")
            if isinstance(first, str) and isinstance(second, str) and choice in ("a", "b", "tie"):
                yield Choice(name, first, second, choice, *_rest(record))


def _rest(record: dict[str, Any]) -> tuple[str, str, int, str]:
    seed = record.get("seed")
    return (
        str(record.get("reason") or "")[:MAX_REASON_CHARS],
        str(record.get("rated_at") or ""),
        seed if isinstance(seed, int) else 0,
        str(record.get("cohort") or ""),
    )


def _records(directory: Path) -> Iterator[dict[str, Any]]:
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(".json") and name[0] != ".")  # noqa: PTH208
    except OSError:
        return
    for name in names:
        record = _object(read_bytes(f"{directory}/{name}"))
        if record:
            yield record


def _object(content: bytes) -> dict[str, Any]:
    try:
        record = orjson.loads(content)
    except orjson.JSONDecodeError:
        return {}
    return record if isinstance(record, dict) else {}


def rating_name(rater: str, gen_id: str) -> str:
    """What stands for a rating where an evaluation's gen_id stands."""
    return f"{HUMAN}:{rater}:{gen_id}"


def rating_path(paths: Paths, rater: str, gen_id: str) -> Path:
    """The file of a rating."""
    return paths.ratings_dir / rater / f"{gen_id}.json"


def choice_name(rater: str, first: str, second: str) -> str:
    """What stands for a choice where an evaluation's gen_id stands."""
    return f"{HUMAN}:{rater}:{first}:{second}"


def choice_path(paths: Paths, rater: str, first: str, second: str) -> Path:
    """The file of a choice; the same in either order of the two."""
    low, high = sorted((first, second))
    return paths.ratings_dir / rater / PAIRS / f"{low}.{high}.json"


def rating_generation(paths: Paths, name: str) -> Generation | None:
    """A rating as pages show an evaluation: the person's reason, and the score; ``None`` when it is none."""
    word, _, rest = name.partition(":")
    rater, _, gen_id = rest.partition(":")
    if word != HUMAN or not _RATER.fullmatch(rater) or id_fault(gen_id) is not None:
        return None
    record = _object(read_bytes(str(rating_path(paths, rater, gen_id))))
    score = record.get("score")
    if not isinstance(score, int | float):
        return None
    reason, rated_at, _, _ = _rest(record)
    metadata = {
        "template_id": HUMAN,
        "model_id": f"{HUMAN}:{rater}",
        "parent_gen_id": gen_id,
        "finished_at": rated_at,
    }
    return Generation(Stage.EVALUATION, name, None, reason or "(no reason given)", f"{score}\n", metadata)
