"""Answers as they arrive, appended to a file before anything else is done with them.

The commit makes an answer durable, in a group with others and after a sync; until then it would live in
memory only. One append per answer keeps it from dying with the process: the kernel has the bytes, and the
next run commits them. Segments whose answers are all committed are removed, so that the log stays small.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from genworker.core.facts import Facts
from genworker.core.generation import Answer, file_digest
from genworker.core.ids import id_fault
from genworker.core.stages import Stage
from genworker.paths import Paths
from genworker.store._kernel import allocate
from genworker.store.durable import make_directories, sync_path, write_all

SEGMENT_BYTES = 16 * 1024 * 1024
ROOM_STEP_BYTES = 256 * 1024
"""Room is set aside in steps of this size, where the disk has as much."""
_FIELDS = frozenset(("stage", "gen_id", "replace", "prompt", "raw", "reasoning", "facts"))
"""What a line of the log has. One that has more is a newer version's: committed, and kept besides."""
_NAME = re.compile(r"(?P<run>[A-Za-z0-9-]+)\.answers-(?P<segment>[0-9]{1,9})")


def json_line(record: Mapping[str, Any]) -> bytes:
    """A JSON object and a line end. Never raises on what an endpoint may have sent."""
    try:
        return orjson.dumps(record, default=str, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # a lone surrogate, an integer past 64 bits
        # Without spaces, as the other: readers look for marks such as "event":"calling" in a line's bytes.
        text = json.dumps(record, default=str, ensure_ascii=False, separators=(",", ":"))
        return text.encode("utf-8", "replace") + b"\n"


@dataclass(slots=True)
class _Segment:
    number: int
    fd: int
    size_bytes: int = 0
    open_answers: int = 0
    allocated_bytes: int = 0


class AnswerLog:
    """The log of one living run. Used from one thread.

    Room for the answers that are asked for is set aside before they are (`make_room`), in the file that they
    will be appended to: a disk that fills up meanwhile cannot refuse what has been paid for.

    A line that the disk refuses is left out: the commit meets the same disk, and reports it.
    """

    def __init__(self, paths: Paths, run_id: str, mode: int = 0o600) -> None:
        self._paths = paths
        self._run_id = run_id
        self._mode = mode
        self._segments: dict[int, _Segment] = {}
        self._awaited: dict[tuple[Stage, str], int] = {}
        self._awaited_bytes = 0
        self._can_allocate = True
        self._current = self._open(1)

    def _open(self, number: int) -> _Segment:
        path = self._paths.answers_path(self._run_id, number)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        segment = _Segment(number, os.open(path, flags, self._mode))
        self._segments[number] = segment
        return segment

    def make_room(self, stage: Stage, gen_id: str, size_bytes: int) -> None:
        """Set room aside for an answer that is about to be asked for; `append` and `not_coming` give it back.

        Raises:
            OSError: there is none: do not ask.
        """
        self.not_coming(stage, gen_id)
        self._awaited[stage, gen_id] = size_bytes
        self._awaited_bytes += size_bytes
        try:
            self._allocate()
        except OSError:
            self.not_coming(stage, gen_id)
            raise

    def not_coming(self, stage: Stage, gen_id: str) -> None:
        """An answer is there, or will not come."""
        self._awaited_bytes -= self._awaited.pop((stage, gen_id), 0)

    def _allocate(self) -> None:
        segment = self._current
        end = segment.size_bytes + self._awaited_bytes
        if not self._can_allocate or end <= segment.allocated_bytes:
            return
        start = max(segment.size_bytes, segment.allocated_bytes)
        # More than is asked for, so that not every call costs a system call; where that is too much, what is.
        for length in (end - start + ROOM_STEP_BYTES, end - start):
            try:
                self._can_allocate = allocate(segment.fd, start, length)
            except OSError:
                if length == end - start:
                    raise
                continue
            segment.allocated_bytes = start + length
            return

    def append(self, answer: Answer, *, replace: bool) -> int | None:
        """Log an answer.

        Returns:
            The number that `settled` wants once the answer is committed; ``None`` when the disk refused.
        """
        self.not_coming(answer.stage, answer.gen_id)
        if self._current.size_bytes > SEGMENT_BYTES:
            self._roll()
        line = json_line(
            {
                "stage": answer.stage.value,
                "gen_id": answer.gen_id,
                "replace": replace,
                "prompt": answer.prompt_text,
                "raw": answer.raw_text,
                "reasoning": answer.reasoning_text,
                "facts": answer.facts.record,
            }
        )
        segment = self._current
        try:
            if os.write(segment.fd, line) != len(line):
                os.ftruncate(segment.fd, segment.size_bytes)  # half a line would spoil the next one
                return None
        except OSError:
            return None
        segment.size_bytes += len(line)
        segment.open_answers += 1
        return segment.number

    def _roll(self) -> None:
        before = self._current
        try:
            self._current = self._open(before.number + 1)
            self._allocate()
        except OSError:  # no room for another file: the present one goes on
            if self._current is not before:
                self._remove(self._current)
                self._current = before

    def settled(self, number: int) -> None:
        """An answer of segment `number` is committed."""
        segment = self._segments[number]
        segment.open_answers -= 1
        if segment.open_answers:
            return
        if segment is self._current:
            # While answers are awaited the file keeps what is set aside for them, and is not cut.
            if not self._awaited or not self._can_allocate:
                with contextlib.suppress(OSError):
                    os.ftruncate(segment.fd, 0)
                segment.size_bytes = segment.allocated_bytes = 0
        else:
            self._remove(segment)

    def _remove(self, segment: _Segment) -> None:
        os.close(segment.fd)
        with contextlib.suppress(OSError):
            self._paths.answers_path(self._run_id, segment.number).unlink()
        del self._segments[segment.number]

    def close(self) -> bool:
        """Close the files; remove those whose answers are all committed. ``False`` when some are left."""
        for segment in list(self._segments.values()):
            if segment.open_answers == 0:
                self._remove(segment)
            else:
                os.close(segment.fd)
        left = bool(self._segments)
        self._segments.clear()
        return not left


def logged_runs(paths: Paths) -> set[str]:
    """Runs that have left a log of answers."""
    return {run_id for run_id, _ in _segments(paths)}


def _segments(paths: Paths) -> list[tuple[str, int]]:
    try:
        names = os.listdir(paths.runs_dir)  # noqa: PTH208
    except OSError:
        return []
    found = (_NAME.fullmatch(name) for name in names)
    return sorted((match["run"], int(match["segment"])) for match in found if match)


@dataclass(slots=True)
class LoggedAnswers:
    """What a dead run's log holds.

    Attributes:
        answers: each with whether it was to replace what stands in its place.
        odd: lines that this version does not understand, or not in full, by segment and line number from 1:
            a newer version's, or torn by a kill or a power cut. They may be the only copy of a text that was
            paid for.
    """

    answers: list[tuple[Answer, bool]] = field(default_factory=list)
    odd: dict[int, dict[int, bytes]] = field(default_factory=dict)


def read_answers(paths: Paths, run_id: str) -> LoggedAnswers:
    """Everything in a dead run's log.

    Raises:
        OSError: it is there and cannot be read.
    """
    found = LoggedAnswers()
    for name, number in _segments(paths):
        if name != run_id:
            continue
        with paths.answers_path(run_id, number).open("rb") as stream:
            for line_number, line in enumerate(stream, start=1):
                if not line.strip(b"\0\n"):
                    continue  # room that was allocated and never written
                logged = _read_line(line)
                if logged is not None:
                    found.answers.append(logged[:2])
                if logged is None or not logged[2]:
                    found.odd.setdefault(number, {})[line_number] = line
    return found


def _read_line(line: bytes) -> tuple[Answer, bool, bool] | None:
    """(answer, whether it replaces, whether the line says no more); ``None`` when it is no answer."""
    try:
        record = orjson.loads(line)
        stage, gen_id, prompt = Stage(record["stage"]), record["gen_id"], record["prompt"]
        raw, facts, replace = record["raw"], record["facts"], record["replace"]
        reasoning = record.get("reasoning") or ""
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError, ValueError):
        return None
    texts = (gen_id, prompt, raw, reasoning)
    if not all(isinstance(text, str) for text in texts) or id_fault(gen_id) is not None:
        return None
    if not isinstance(facts, dict) or not isinstance(replace, bool):
        return None
    answer = Answer(stage, gen_id, prompt, raw, Facts(facts), reasoning)
    return answer, replace, record.keys() <= _FIELDS


def keep_odd_lines(
    paths: Paths, run_id: str, odd: Mapping[int, Mapping[int, bytes]], mode: int
) -> list[Path]:
    """Write lines that nobody understands where nothing removes them; returns the files.

    Raises:
        OSError: the disk refuses; then the log must stay.
    """
    places = []
    for number, lines in odd.items():
        content = b"".join(lines.values())
        # Named by what they hold: when this is cut off, the next sweep finds the same and writes no second.
        name = f"{run_id}-{number}-{file_digest(content)[:12]}.jsonl"
        place = paths.odd_answers_dir / name
        make_directories(place.parent, mode)
        part = place.with_suffix(".part")
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode & 0o660)
        try:
            write_all(fd, content)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(part, place)  # noqa: PTH104
        sync_path(place.parent)
        places.append(place)
    return places


def remove_answer_log(paths: Paths, run_id: str) -> None:
    """Remove a dead run's log."""
    for name, number in _segments(paths):
        if name == run_id:
            with contextlib.suppress(OSError):
                paths.answers_path(run_id, number).unlink()
