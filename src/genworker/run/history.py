"""What a cohort's runs have left: when each began and how it ended, from the ends of their journals."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import orjson

from genworker.core.events import RunEnded, RunStarted
from genworker.core.facts import whole
from genworker.core.visible import visible
from genworker.errors import ExitCode
from genworker.paths import Paths
from genworker.reports.provenance import RunRecord
from genworker.store.ledger import JOURNAL_FAULTS, journals, open_journal

LAST_BYTES = 65_536
"""The end of a journal that is read for its last line."""

_ENDINGS = {
    ExitCode.OK: "all done",
    ExitCode.FAILURES: "with failures",
    ExitCode.CAPPED: "stopped by a cap",
    ExitCode.SIGINT: "interrupted",
    ExitCode.SIGTERM: "interrupted",
}


def run_records(paths: Paths, cohort_ids: Collection[str], alive: Collection[str] = ()) -> list[RunRecord]:
    """Every run of these cohorts that has left a journal, the earliest first. Reads two lines of each.

    Args:
        alive: ids of runs that are going on.
    """
    found = []
    for run_id, journal in journals(paths).items():
        first, last = _ends(journal)
        if first.get("event") == RunStarted.word and first.get("cohort") in cohort_ids:
            found.append(_record(run_id, first, last, run_id in alive))
    return found


def _record(run_id: str, first: Mapping[str, Any], last: Mapping[str, Any], is_alive: bool) -> RunRecord:
    started, version = _text(first.get("time")), _text(first.get("version"))
    if last.get("event") != RunEnded.word:
        ending = "going on" if is_alive else "killed, or its end is not on record"
        return RunRecord(run_id, started, None, version, None, ending)
    code = whole(last.get("exit_code"))
    ending = next((words for known, words in _ENDINGS.items() if known == code), f"exit code {code}")
    return RunRecord(run_id, started, _text(last.get("time")), version, whole(last.get("calls")), ending)


def _text(value: object) -> str:
    return visible(value, limit=40, one_line=True) if isinstance(value, str) else ""


def _ends(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first and the last line of a journal; empty where it is none."""
    try:
        with open_journal(path) as stream:
            first = stream.readline(LAST_BYTES)
            if path.suffix == ".jsonl":  # a packed one can only be read from its beginning
                size = os.fstat(stream.fileno()).st_size
                stream.seek(max(stream.tell(), size - LAST_BYTES))
            last = deque(stream, maxlen=1)
    except JOURNAL_FAULTS:
        return {}, {}
    return _object(first), _object(last[0] if last else b"")


def _object(line: bytes) -> dict[str, Any]:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return {}
    return record if isinstance(record, dict) else {}
