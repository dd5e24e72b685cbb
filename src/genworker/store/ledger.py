"""The accounts of ended runs, kept beside the journals: so that a start need not read months of journals.

Two files below ``.genworker/ledger`` grow by a line per ended run: ``runs.jsonl`` has the sums, and is read
at each start; ``made.jsonl`` has the names of the generations that the run has made, and is read only when
they are asked for. Both can be made anew from the journals as long as these are there, so nothing is synced
unless a journal is about to go. A run that ends writes its own lines; for one that died the next reader does.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import orjson

from genworker.core.account import Fold, RunAccount
from genworker.core.events import (
    Event,
    OddEventError,
    ReparseStarted,
    RunStarted,
    WorkerStarted,
    event_from_json,
)
from genworker.core.stages import Stage
from genworker.paths import Paths
from genworker.store.answers import json_line
from genworker.store.durable import make_directories, write_all

_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
_JOURNAL = re.compile(r"(?P<run>[A-Za-z0-9_-]+)\.jsonl(?P<packed>\.gz)?")
_SUMS = re.compile(rb'\{"run_id":"(?P<run>[A-Za-z0-9_-]+)","cohort":(?P<cohort>"(?:[^"\\\n]|\\.)*"),.*\}')
"""A whole line of ``runs.jsonl``; one that a kill has torn does not match, and its run is folded again."""
_RUN = re.compile(rb'\{"run_id":"(?P<run>[A-Za-z0-9_-]+)"')
JOURNAL_FAULTS = (OSError, EOFError, zlib.error)
"""What reading a journal may raise; the last two where it was packed and is damaged."""


# Journals


def journals(paths: Paths) -> dict[str, Path]:
    """The journals that are there, by run in the order of their names, which is that of their starts."""
    directory = paths.runs_dir
    return {run_id: directory / name for run_id, name in _journal_names(_names(directory)).items()}


def _journal_names(names: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in sorted(names):
        match = _JOURNAL.fullmatch(name)
        # Should both be there, the packing was cut off before the plain one went: it is the whole one.
        if match is not None and (match["run"] not in found or not match["packed"]):
            found[match["run"]] = name
    return found


def open_journal(path: Path) -> IO[bytes]:
    """A journal's bytes, packed or not.

    Raises:
        OSError: it cannot be read. For what reading on may raise see `JOURNAL_FAULTS`.
    """
    return cast("IO[bytes]", gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb"))


def journal_events(stream: IO[bytes]) -> Iterator[Event | None]:
    """The events of a journal from where the stream stands; ``None`` for a line that is none.

    What a kill has torn off the last line is passed over: every run that was killed may have such an end.
    Words that this version does not know are passed over as well.
    """
    for line in stream:
        try:
            event = event_from_json(orjson.loads(line))
        except (orjson.JSONDecodeError, OddEventError):
            if line.endswith(b"\n"):
                yield None
            continue
        if event is not None:
            yield event


@dataclass(slots=True)
class OddLines:
    """Lines of a file that are none of what it should hold.

    Attributes:
        numbers: of whole lines, from 1.
        torn: the number of a last line that has no end; ``None`` without.
        fault: why the rest cannot be read; ``None`` when all of it was.
    """

    numbers: list[int] = field(default_factory=list)
    torn: int | None = None
    fault: str | None = None


def odd_journal_lines(path: Path) -> OddLines:
    """The lines of a journal that are no events."""
    found = OddLines()
    try:
        with open_journal(path) as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    event_from_json(orjson.loads(line))
                except (orjson.JSONDecodeError, OddEventError):
                    if line.endswith(b"\n"):
                        found.numbers.append(number)
                    else:
                        found.torn = number
    except JOURNAL_FAULTS as error:
        found.fault = getattr(error, "strerror", None) or str(error)
    return found


def odd_account_lines(paths: Paths) -> OddLines:
    """The lines of ``runs.jsonl`` that are no sums, where nothing else tells of their run."""
    found, known = OddLines(), kept_runs(paths) | journals(paths).keys()
    for number, line in enumerate(_bytes(paths.ledger_path).splitlines(), start=1):
        begin = _RUN.match(line)
        if line and not _SUMS.fullmatch(line) and (begin is None or begin["run"].decode() not in known):
            found.numbers.append(number)
    return found


def cohort_of(path: Path) -> str:
    """The cohort that a journal's first line names; ``""`` when it names none."""
    try:
        with open_journal(path) as stream:
            first = event_from_json(orjson.loads(stream.readline()))
    except (*JOURNAL_FAULTS, orjson.JSONDecodeError, OddEventError):
        return ""
    return first.cohort if isinstance(first, RunStarted | WorkerStarted | ReparseStarted) else ""


def fold_journal(run_id: str, path: Path) -> RunAccount:
    """The account of a journal, as far as it can be read."""
    fold = Fold(run_id)
    with contextlib.suppress(*JOURNAL_FAULTS), open_journal(path) as stream:
        for event in journal_events(stream):
            if event is None:
                fold.odd()
            else:
                fold.add(event)
    return fold.close()


# Accounts


class Accounts:
    """The accounts of the runs of a data root, as they stand when they are asked for first.

    Reads the sums that are kept, and those journals that are in none of them. What was read of ended runs is
    added to the file, where that can be written, so that it is read once.

    Args:
        but: a run to leave out: the one that asks.
    """

    def __init__(self, paths: Paths, *, but: str = "") -> None:
        self._paths = paths
        self._journals = _journal_names(_names(paths.runs_dir))
        self._lines: dict[str, dict[str, bytes]] = {}
        for match in _SUMS.finditer(_bytes(paths.ledger_path)):
            with contextlib.suppress(orjson.JSONDecodeError):
                self._lines.setdefault(orjson.loads(match["cohort"]), {})[match["run"].decode()] = match[0]
        for lines in self._lines.values():
            lines.pop(but, None)
        self._unkept: dict[str, list[str]] = {}
        """Runs that have left a journal and no sums, by cohort."""
        kept = {but}.union(*self._lines.values())
        for run_id, name in self._journals.items():
            if run_id not in kept:
                self._unkept.setdefault(cohort_of(paths.runs_dir / name), []).append(run_id)
        self._found: dict[str, list[RunAccount]] = {}

    def of(self, cohort_id: str | None) -> list[RunAccount]:
        """The accounts of a cohort's runs, oldest first; of runs that are under way as far as they are.

        Args:
            cohort_id: ``None`` for the runs of all cohorts.
        """
        if cohort_id is None:
            every = [account for name in {*self._lines, *self._unkept} for account in self.of(name)]
            return sorted(every, key=lambda account: account.run_id)
        if cohort_id not in self._found:
            self._found[cohort_id] = self._read(cohort_id)
        return self._found[cohort_id]

    def _read(self, cohort_id: str) -> list[RunAccount]:
        accounts, unread = [], list(self._unkept.get(cohort_id, ()))
        for run_id, line in self._lines.get(cohort_id, {}).items():
            try:
                accounts.append(RunAccount.from_json(run_id, cohort_id, orjson.loads(line)))
            except ValueError:
                unread.append(run_id)  # not as this version writes it: from the journal, then
        fresh: list[RunAccount] = []
        for run_id in unread:
            if run_id in self._journals:
                # A run has its lock before its journal, so without one it has ended. Asked before the journal
                # is read: one that ends meanwhile has written more than was read, and keeps its own account.
                is_living = self._paths.run_lock_path(run_id).exists()
                account = fold_journal(run_id, self._paths.runs_dir / self._journals[run_id])
                accounts.append(account)
                if not is_living:
                    fresh.append(account)
        keep_accounts(self._paths, fresh)
        return sorted(accounts, key=lambda account: account.run_id)


def read_accounts(paths: Paths, cohort_id: str | None, *, but: str = "") -> list[RunAccount]:
    """The accounts of one cohort's runs, see `Accounts`."""
    return Accounts(paths, but=but).of(cohort_id)


def kept_runs(paths: Paths) -> set[str]:
    """The runs whose sums are kept, each line read in full: a journal may go by this."""
    found = set()
    for match in _SUMS.finditer(_bytes(paths.ledger_path)):
        run_id = match["run"].decode()
        with contextlib.suppress(ValueError):
            record = orjson.loads(match[0])
            RunAccount.from_json(run_id, record["cohort"], record)
            found.add(run_id)
    return found


def keep_accounts(paths: Paths, accounts: Sequence[RunAccount], *, sync: bool = False) -> bool:
    """Add the lines of ended runs; ``False`` when the disk refuses.

    Args:
        sync: wait until they are on the device, since their journals are about to go.
    """
    if not accounts:
        return True
    try:
        mode = paths.runs_dir.stat().st_mode  # shared with the group, or not, as the journals are
        make_directories(paths.ledger_path.parent, mode & 0o770)
        # The names first: sums without them would say that nothing was made.
        for path, lines in (
            (paths.made_path, [_line(account, _made_to_json(account)) for account in accounts]),
            (paths.ledger_path, [_line(account, account.sums_to_json()) for account in accounts]),
        ):
            _append(path, b"".join(lines), mode & 0o660, sync=sync)
    except OSError:
        return False
    return True


def _line(account: RunAccount, record: dict[str, Any]) -> bytes:
    # An empty line before it: where a kill has torn the last one, this one does not become its end.
    return b"\n" + json_line({"run_id": account.run_id, "cohort": account.cohort_id, **record})


def _made_to_json(account: RunAccount) -> dict[str, Any]:
    return {"made": {stage.value: names for stage, names in account.made.items()}}


def _append(path: Path, content: bytes, mode: int, *, sync: bool) -> None:
    fd = os.open(path, _APPEND, mode)
    try:
        write_all(fd, content)
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)


def read_made(paths: Paths, accounts: Collection[RunAccount]) -> Iterator[tuple[str, Stage, list[str]]]:
    """(run, stage, gen_ids) of what runs have made; a gen_id that was answered twice stands twice."""
    wanted = {account.run_id: account for account in accounts if not account.made}
    for account in accounts:
        for stage, names in account.made.items():
            yield account.run_id, stage, names
    with contextlib.suppress(OSError), paths.made_path.open("rb") as stream:
        for line in stream:
            run_id = line[11 : line.find(b'"', 11)].decode("ascii", "replace")
            if run_id not in wanted:
                continue
            try:
                made = orjson.loads(line)["made"]
                found = [(Stage(stage), list(map(str, names))) for stage, names in made.items()]
            except (orjson.JSONDecodeError, ValueError, KeyError, TypeError, AttributeError):
                continue
            del wanted[run_id]  # a run that is listed twice has the same sums both times
            for stage, names in found:
                yield run_id, stage, names


def made_bytes(paths: Paths) -> int:
    """The size of what `read_made` reads."""
    try:
        return paths.made_path.stat().st_size
    except OSError:
        return 0


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)  # noqa: PTH208
    except OSError:
        return []
