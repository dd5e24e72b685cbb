"""Applies the present parsers to answers that are paid for: no call is made, nothing is lost.

What an answer said under the earlier parser is kept aside when it says something else now.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from genworker.core import events
from genworker.core.generation import Answer, Generation, answer_again, finish
from genworker.core.membership import Membership, MembershipRow
from genworker.core.parsers import read_score
from genworker.core.progress import Progress
from genworker.core.stages import Stage
from genworker.errors import StoreError
from genworker.project.open import Project, open_membership, refuse_faults_of
from genworker.run.lock import cohort_lock, new_run_id
from genworker.run.planning import salvage
from genworker.store.filesystem import FilesystemStore
from genworker.store.journal import RunJournal
from genworker.store.reader import StoreReader

BATCH = 256
"""Answers that are committed together."""


class Change(StrEnum):
    """What a new parse made of an answer."""

    OTHER = "other"
    """Another text, or another score."""
    GAINED = "gained"
    """It could not be read before."""
    LOST = "lost"
    """It can no longer be read."""


@dataclass(frozen=True, slots=True)
class Reparsed:
    """One answer that says something else now.

    Attributes:
        old: the parsed text before; ``None`` when there was none.
        new: the parsed text now; ``None`` when there is none any more.
        reason: why there is none now.
    """

    row: MembershipRow
    change: Change
    old: str | None
    new: str | None
    reason: str | None


@dataclass(slots=True)
class ReparseResult:
    """What `reparse_cohort` found and did.

    Attributes:
        parsed: answers that were given to the present parsers.
        changes: those that say something else now, in the membership's order.
        unknown: answers whose template the catalogue does not know; left as they are.
        kept: drafts and essays that would change, left as they are since texts were made from them.
        busy: answers that another worker is about to replace; left to it.
        children: texts in the store that were made from drafts or essays that changed.
    """

    parsed: int = 0
    changes: list[Reparsed] = field(default_factory=list)
    unknown: int = 0
    kept: int = 0
    busy: int = 0
    children: int = 0


def reparse_cohort(
    project: Project, cohort_id: str, *, stages: Collection[Stage] | None = None, dry_run: bool = False
) -> ReparseResult:
    """Parse every answer of a cohort again. Blocks until all is on disk.

    Args:
        stages: only these. Without them drafts and essays that are done stay as they are when texts in
            the store were made from them.
        dry_run: write nothing.

    Raises:
        CatalogError: the catalogue or a parser plugin is wrong.
        UsageError, MembershipError: there is no such cohort, or it is wrong.
        LockedError: a worker has the cohort.
        StoreError: the store cannot be read or written.
    """
    membership = open_membership(project, cohort_id, strict=False)
    refuse_faults_of(project, membership, "nothing was parsed")
    parsing = _Parsing(project, membership, stages)
    if dry_run:
        for _ in parsing.answers():
            pass
        return parsing.result
    run_id = new_run_id()
    with cohort_lock(project, cohort_id, run_id):
        asyncio.run(_commit_all(project, cohort_id, parsing, run_id))
    return parsing.result


async def _commit_all(project: Project, cohort_id: str, parsing: _Parsing, run_id: str) -> None:
    group = project.loaded.settings.group_permissions
    async with FilesystemStore(project.paths, run_id, group_permissions=group) as store:
        journal = RunJournal(project.paths, run_id)
        try:
            journal.record(events.ReparseStarted(run_id, cohort_id))
            # What a dead run was about to replace goes first: later it would replace what is parsed now.
            await salvage(project, store, journal, Progress())
            batch: list[Answer] = []
            for answer, change in parsing.answers():
                if not await store.claim(answer.stage, answer.gen_id):
                    parsing.result.busy += 1
                    parsing.result.changes.remove(change)
                    continue
                batch.append(answer)
                journal.record(events.Reparsed(answer.stage, answer.gen_id, change=change.change.value))
                if len(batch) == BATCH:
                    await _commit(store, batch)
                    batch = []
            await _commit(store, batch)
        finally:
            journal.close()


async def _commit(store: FilesystemStore, batch: list[Answer]) -> None:
    results = await asyncio.gather(
        *(store.commit(answer, replace=True) for answer in batch), return_exceptions=True
    )
    for answer in batch:
        await store.release(answer.stage, answer.gen_id)
    for result in results:
        if isinstance(result, BaseException):
            raise result


class _Parsing:
    """Goes through a cohort's answers."""

    def __init__(self, project: Project, membership: Membership, stages: Collection[Stage] | None) -> None:
        self.project = project
        self.membership = membership
        self.stages = stages
        self.reader = StoreReader(project.paths)
        self.result = ReparseResult()
        self.children: dict[tuple[Stage | None, str], int] = {}
        for row in membership.rows:
            if row.above and self.reader.holds(row.stage, row.gen_id):
                for parent in row.above:
                    key = (row.stage, parent)
                    self.children[key] = self.children.get(key, 0) + 1

    def answers(self) -> Iterator[tuple[Answer, Reparsed]]:
        """Those that say something else now; counts the others."""
        result = self.result
        for row in self.membership.rows:
            if self.stages is not None and row.stage not in self.stages:
                continue
            stored = self._read(row)
            if stored is None:
                continue
            demands = self.project.demands(row.stage, row.template_id)
            if demands is None:
                result.unknown += 1
                continue
            result.parsed += 1
            answer = answer_again(stored, row, {**demands, "reparsed_at": _now()})
            change = _compare(row, stored, finish(answer))
            if change is None:
                continue
            children = self.children.get((row.stage.child, row.gen_id), 0)
            if children and stored.is_done and self.stages is None:
                result.kept += 1
                continue
            result.children += children if stored.is_done else 0
            result.changes.append(change)
            yield answer, change

    def _read(self, row: MembershipRow) -> Generation | None:
        """What was answered; ``None`` without an answer, and for a copy, which no parser has seen."""
        if not self.reader.holds(row.stage, row.gen_id):
            return None
        try:
            stored = self.reader.generation(row.stage, row.gen_id)
        except StoreError:
            return None  # damaged: `verify` says so
        return stored if stored.raw_text and not stored.facts.is_copy else None


def _compare(row: MembershipRow, old: Generation, new: Generation) -> Reparsed | None:
    before = old.parsed_text if old.is_done else None
    if before == new.parsed_text or _is_same_score(row, before, new.parsed_text):
        return None
    if before is not None and new.parsed_text is not None and _plain(before) == _plain(new.parsed_text):
        return None  # another tool's line ends, or white space around it
    if new.parsed_text is None:
        return Reparsed(row, Change.LOST, before, None, new.failure.message if new.failure else None)
    change = Change.GAINED if before is None else Change.OTHER
    return Reparsed(row, change, before, new.parsed_text, None)


def _plain(text: str) -> str:
    return text.replace("\r\n", "\n").strip()


def _is_same_score(row: MembershipRow, before: str | None, now: str | None) -> bool:
    """Whether two texts are one score in two spellings, such as ``7.0`` with and without a line end."""
    if not row.stage.is_scored or before is None or now is None:
        return False
    score = read_score(before)
    return score is not None and score == read_score(now)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
