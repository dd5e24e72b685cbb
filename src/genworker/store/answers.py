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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from genworker.core.facts import Facts
from genworker.core.generation import Answer
from genworker.core.ids import id_fault
from genworker.core.stages import Stage
from genworker.paths import Paths

SEGMENT_BYTES = 16 * 1024 * 1024
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


class AnswerLog:
    """The log of one living run. Used from one thread.

    A line that the disk refuses is left out: the commit meets the same disk, and reports it.
    """

    def __init__(self, paths: Paths, run_id: str, mode: int = 0o600) -> None:
        self._paths = paths
        self._run_id = run_id
        self._mode = mode
        self._segments: dict[int, _Segment] = {}
        self._current = self._open(1)

    def _open(self, number: int) -> _Segment:
        path = self._paths.answers_path(self._run_id, number)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        segment = _Segment(number, os.open(path, flags, self._mode))
        self._segments[number] = segment
        return segment

    def append(self, answer: Answer, *, replace: bool) -> int | None:
        """Log an answer.

        Returns:
            The number that `settled` wants once the answer is committed; ``None`` when the disk refused.
        """
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
        with contextlib.suppress(OSError):  # no room for another file: the present one goes on
            self._current = self._open(self._current.number + 1)

    def settled(self, number: int) -> None:
        """An answer of segment `number` is committed."""
        segment = self._segments[number]
        segment.open_answers -= 1
        if segment.open_answers:
            return
        if segment is self._current:
            with contextlib.suppress(OSError):
                os.ftruncate(segment.fd, 0)
            segment.size_bytes = 0
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


def read_answers(paths: Paths, run_id: str) -> Iterator[tuple[Answer, bool]]:
    """Answers in a dead run's log, each with whether it was to replace what was there."""
    for name, number in _segments(paths):
        if name != run_id:
            continue
        try:
            stream = paths.answers_path(run_id, number).open("rb")
        except OSError:
            continue
        with stream:
            for line in stream:
                try:
                    record = orjson.loads(line)
                    if not isinstance(record["facts"], dict):
                        continue
                    answer = Answer(
                        Stage(record["stage"]),
                        record["gen_id"],
                        record["prompt"],
                        record["raw"],
                        Facts(record["facts"]),
                        str(record.get("reasoning") or ""),
                    )
                    replace = bool(record["replace"])
                except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
                    continue  # a line that the kill or the power cut has torn
                if isinstance(answer.gen_id, str) and id_fault(answer.gen_id) is None:
                    yield answer, replace


def remove_answer_log(paths: Paths, run_id: str) -> None:
    """Remove a dead run's log."""
    for name, number in _segments(paths):
        if name == run_id:
            with contextlib.suppress(OSError):
                paths.answers_path(run_id, number).unlink()
