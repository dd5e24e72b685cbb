"""Reads a whole store and says everything that is wrong with it; mends what can be mended without a loss.

A finding never stops the check. Nothing here asks a model or changes what is good.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from genworker.core.facts import OWN_MARK
from genworker.core.generation import JUDGED_BY_PARSER, Answer, Generation, finish
from genworker.core.ids import id_fault
from genworker.core.membership import SECOND_PARENT, Membership, MembershipRow
from genworker.core.stages import STAGES, Stage
from genworker.errors import GenworkerError, StoreError
from genworker.paths import (
    GENERATION_FILES,
    METADATA_FILE,
    OLDER_METADATA_FILES,
    PARSED_FILE,
    PROMPT_FILE,
    RAW_FILE,
    Paths,
)
from genworker.store.answers import logged_runs, read_answers
from genworker.store.batches import Shelf
from genworker.store.durable import keep_aside
from genworker.store.filesystem import FilesystemStore
from genworker.store.ledger import cohort_of, journals, odd_account_lines, odd_journal_lines
from genworker.store.lock import FileLock
from genworker.store.reading import done_metadata, read_directory
from genworker.store.sweep import damaged_files, staging_run_id, sweep_staging


class Kind(StrEnum):
    """What can be wrong. The words stand in the JSON output."""

    EMPTY = "empty"
    """A directory without a file."""
    NO_ANSWER = "no-answer"
    """Neither raw nor parsed text, and no reason for it."""
    NO_METADATA = "no-metadata"
    BAD_METADATA = "bad-metadata"
    """``metadata.json`` is no JSON object, or lacks a required key."""
    FILE_MISSING = "file-missing"
    """A file that the metadata name."""
    DIGEST = "digest"
    """A file that is not what the metadata say."""
    NOT_TEXT = "not-text"
    UNREADABLE = "unreadable"
    MISPLACED = "misplaced"
    """The metadata are another generation's or another stage's."""
    CONTRADICTION = "contradiction"
    """The metadata contradict the membership, or the files."""
    PARENT_MISSING = "parent-missing"
    PARENT_STAGE = "parent-stage"
    """The parent stands in another stage than the one before."""
    STALE = "stale"
    """The prompt does not render to what was sent: the template, a concept or the parent has changed."""
    UNPARSED = "unparsed"
    """The present parser reads an answer that counts as unparseable."""
    UNLISTED = "unlisted"
    """In no cohort's membership."""
    STAGING = "staging"
    """Left by a run that died."""
    ANSWERS = "answers"
    """Answers of a run that died, not in place yet."""
    ODD_LINES = "odd-lines"
    """Lines of a journal, an answer log or the ledger that say nothing that this version understands."""
    LINK = "link"
    FOREIGN = "foreign"
    """A file or directory that does not belong there."""
    BAD_NAME = "bad-name"
    """A directory whose name cannot be a gen_id."""
    PERMISSIONS = "permissions"
    """Others may write."""
    BATCH_OPEN = "batch-open"
    """A provider batch is out, or waits to be sent; a run goes on with it."""
    BATCH_UNCERTAIN = "batch-uncertain"
    """The call that makes a batch went out, and it is not known yet whether the provider has it."""
    BATCH_OLD = "batch-old"
    """A batch whose results the provider will not keep much longer."""
    BATCH_FOREIGN = "batch-foreign"
    """A batch at an endpoint that the settings do not have."""
    BATCH_UNREADABLE = "batch-unreadable"
    """The files of an open batch do not say what they have to: nobody knows which rows it holds."""
    MEMBERSHIP = "membership"
    """A membership that cannot be read."""


BROKEN = frozenset(
    {
        Kind.NO_ANSWER,
        Kind.NO_METADATA,
        Kind.BAD_METADATA,
        Kind.FILE_MISSING,
        Kind.DIGEST,
        Kind.NOT_TEXT,
        Kind.MISPLACED,
    }
)
"""Findings for which a repair moves the directory aside, unless the generation is done all the same."""


OLD_BATCH_S = 20 * 86_400.0
"""Providers keep results for 29 days and more."""


class Severity(StrEnum):
    """How bad a finding is. The words stand in the JSON output."""

    DAMAGE = "damage"
    """Something is lost, torn or in the wrong place."""
    NOTE = "note"
    """Worth knowing, and nothing is wrong: foreign, unlisted, stale, or left out by another tool."""


NOTES = frozenset(
    {Kind.FOREIGN, Kind.UNLISTED, Kind.STALE, Kind.UNPARSED, Kind.BATCH_OPEN, Kind.BATCH_UNCERTAIN}
)
"""Kinds that are notes wherever they are found."""
NOTES_IF_UNLISTED = frozenset(
    {Kind.EMPTY, Kind.NO_ANSWER, Kind.NO_METADATA, Kind.PARENT_MISSING, Kind.PARENT_STAGE}
)
"""Kinds that are notes about a generation that no cohort names."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found.

    Attributes:
        place: path from the data root.
        gen_id: the generation that it concerns; ``None`` for what is none.
    """

    kind: Kind
    place: str
    what: str
    stage: Stage | None = None
    gen_id: str | None = None
    severity: Severity = Severity.DAMAGE


Render = Callable[[Membership, int, str | None, str | None], str | None]
"""(membership, row, the parent's text, the second parent's) -> the prompt as it would be sent now.

``None``: it cannot be made."""
Again = Callable[[MembershipRow, Generation], Answer | None]
"""An answer that the store holds, to be judged by the parser of today; ``None``: no template says which."""


@dataclass(slots=True)
class Check:
    """One pass over a store.

    Args:
        memberships: the cohorts to be checked.
        whole: also report what stands outside of these cohorts, and what is no generation.
        group_permissions: whether the group may write.
        has_endpoint: whether the settings have an endpoint: (name, kind, address).
    """

    paths: Paths
    memberships: Sequence[Membership]
    render: Render
    again: Again
    whole: bool = True
    group_permissions: bool = False
    has_endpoint: Callable[[str, str, str | None], bool] = lambda name, kind, url: True
    findings: list[Finding] = field(default_factory=list)
    checked: int = 0
    _rows: dict[tuple[Stage, str], tuple[Membership, int]] = field(default_factory=dict)
    _names: dict[Stage, set[str]] = field(default_factory=dict)

    def run(self) -> list[Finding]:
        """Read everything; returns all findings, in the order of the stages and names."""
        for membership in self.memberships:
            for index, row in enumerate(membership.rows):
                self._rows.setdefault((row.stage, row.gen_id), (membership, index))
        self._look_at_top()
        for stage in STAGES:
            self._names[stage] = set(self._stage_names(stage))
        for stage in STAGES:
            for name in sorted(self._names[stage]):
                if self.whole or (stage, name) in self._rows:
                    self.checked += 1
                    self._generation(stage, name)
        self._runs()
        self._batches()
        return self.findings

    @property
    def damage(self) -> list[Finding]:
        """The findings that are no mere notes."""
        return [finding for finding in self.findings if finding.severity is Severity.DAMAGE]

    def _find(
        self,
        kind: Kind,
        path: Path,
        what: str,
        stage: Stage | None = None,
        gen_id: str | None = None,
        severity: Severity | None = None,
    ) -> None:
        if severity is None:
            unlisted = stage is not None and gen_id is not None and (stage, gen_id) not in self._rows
            is_note = kind in NOTES or (unlisted and kind in NOTES_IF_UNLISTED)
            severity = Severity.NOTE if is_note else Severity.DAMAGE
        place = os.path.relpath(path, self.paths.data_root)
        self.findings.append(Finding(kind, place, what, stage, gen_id, severity))

    # Directories

    def _look_at_top(self) -> None:
        root = self.paths.gens_root
        for path, what in self._entries(root):
            if what.is_symlink():
                self._find(Kind.LINK, path, "is a symbolic link; the store needs a real directory")
            elif path.name not in {stage.value for stage in STAGES}:
                self._find(Kind.FOREIGN, path, "is no stage")
            elif not what.is_dir():
                self._find(Kind.FOREIGN, path, "is not a directory", severity=Severity.DAMAGE)
            else:
                self._modes(path)

    def _entries(self, directory: Path) -> list[tuple[Path, os.DirEntry[str]]]:
        try:
            with os.scandir(directory) as entries:
                return sorted(((Path(entry.path), entry) for entry in entries), key=lambda pair: pair[0].name)
        except FileNotFoundError:
            return []
        except OSError as error:
            self._find(Kind.UNREADABLE, directory, f"cannot be listed: {error.strerror}")
            return []

    def _stage_names(self, stage: Stage) -> Iterator[str]:
        if self.paths.stage_dir(stage).is_symlink():
            return
        for path, entry in self._entries(self.paths.stage_dir(stage)):
            name = path.name
            if entry.is_symlink():
                gen_id = None if name.startswith(".") else name
                self._find(Kind.LINK, path, "is a symbolic link, which is not followed", stage, gen_id)
            elif name.startswith("."):
                self._dot_name(path, name)
            elif not entry.is_dir():
                self._find(Kind.FOREIGN, path, "is a file among generations", stage)
            elif (reason := id_fault(name)) is not None:
                self._find(Kind.BAD_NAME, path, f"cannot be a gen_id: it {reason}", stage)
            else:
                yield name

    def _dot_name(self, path: Path, name: str) -> None:
        run_id = staging_run_id(name)
        if run_id is None:
            self._find(Kind.FOREIGN, path, "is none of genworker's names")
        elif self._is_dead(run_id):
            count = len(self._entries(path))
            self._find(Kind.STAGING, path, f"was left by the run {run_id}, with {count} directories")

    def _is_dead(self, run_id: str) -> bool:
        path = self.paths.run_lock_path(run_id)
        if not path.exists():
            return True
        lock = FileLock(path)
        try:
            if not lock.acquire():
                return False
        except StoreError:
            return False
        lock.release()
        return True

    def _runs(self) -> None:
        for run_id in sorted(logged_runs(self.paths)):
            if self._is_dead(run_id):
                path = self.paths.answers_path(run_id, 1)
                self._find(Kind.ANSWERS, path, f"holds answers of the run {run_id}, which died")
                self._answer_lines(run_id)
        self._journal_lines()

    def _answer_lines(self, run_id: str) -> None:
        try:
            odd = read_answers(self.paths, run_id).odd
        except OSError as error:
            path = self.paths.answers_path(run_id, 1)
            self._find(Kind.UNREADABLE, path, f"cannot be read: {error.strerror}")
            return
        for segment, lines in odd.items():
            what = f"{_lines(list(lines))} cannot be read, or not in full; a repair keeps what it says aside"
            self._find(Kind.ODD_LINES, self.paths.answers_path(run_id, segment), what)

    def _journal_lines(self) -> None:
        """Lines that nobody can read hinder nothing; what they said is missing from what a cap counts."""
        cohorts = {membership.cohort_id for membership in self.memberships}
        for run_id, path in journals(self.paths).items():
            if not self.whole and cohort_of(path) not in cohorts:
                continue
            odd = odd_journal_lines(path)
            if odd.fault is not None:
                self._find(Kind.UNREADABLE, path, f"cannot be read to its end: {odd.fault}")
            if odd.numbers:
                what = f"{_lines(odd.numbers)} cannot be read; calls that they told of are in no sum"
                self._find(Kind.ODD_LINES, path, what)
            elif odd.torn is not None and self._is_dead(run_id):
                what = f"line {odd.torn} is torn: the process or the machine died over it"
                self._find(Kind.ODD_LINES, path, what, severity=Severity.NOTE)
        if self.whole:
            sums = odd_account_lines(self.paths)
            if sums.numbers:
                what = f"{_lines(sums.numbers)} cannot be read, and no journal has what it said"
                self._find(Kind.ODD_LINES, self.paths.ledger_path, what)
            for path, _ in self._entries(self.paths.odd_answers_dir):
                what = "holds lines of a dead run's answer log that could not be read; look at them"
                self._find(Kind.ODD_LINES, path, what, severity=Severity.NOTE)

    def _batches(self) -> None:
        """Batches that are not closed. Those of other cohorts are left out where one cohort is checked."""
        shelf = Shelf(self.paths, "")
        cohorts = {membership.cohort_id for membership in self.memberships}
        for name in shelf.open_batches():
            path = self.paths.batches_dir / name
            try:
                intent, story = shelf.peek(name)
                for _ in shelf.rows(name):
                    pass
            except StoreError as error:
                self._find(Kind.BATCH_UNREADABLE, path, f"{error}; it may hold rows that are paid for")
                continue
            if not self.whole and intent.cohort_id not in cohorts:
                continue
            what = f"{intent.count} rows of {intent.cohort_id}, {story.word}"
            kind = Kind.BATCH_UNCERTAIN if story.is_uncertain else Kind.BATCH_OPEN
            if not self.has_endpoint(intent.endpoint, intent.kind, intent.url):
                kind, what = Kind.BATCH_FOREIGN, f"{what}, at {intent.endpoint}, which is not configured so"
            elif story.created_s is not None and time.time() - story.created_s > OLD_BATCH_S:
                kind, what = Kind.BATCH_OLD, f"{what}: collect it within days, or its results are gone"
            self._find(kind, path, what)

    def _modes(self, path: Path) -> None:
        try:
            mode = path.lstat().st_mode
        except OSError:
            return
        refused = stat.S_IWOTH if self.group_permissions else stat.S_IWOTH | stat.S_IWGRP
        if mode & refused:
            who = "everybody" if mode & stat.S_IWOTH else "the group"
            self._find(Kind.PERMISSIONS, path, f"may be written by {who} (mode {stat.S_IMODE(mode):04o})")

    # One generation

    def _generation(self, stage: Stage, gen_id: str) -> None:
        directory = self.paths.generation_dir(stage, gen_id)

        def find(kind: Kind, what: str, name: str = "", severity: Severity | None = None) -> None:
            self._find(kind, directory / name if name else directory, what, stage, gen_id, severity)

        self._modes(directory)
        entries = self._entries(directory)
        if not entries:
            find(Kind.EMPTY, "holds nothing")
            return
        for path, entry in entries:
            if entry.is_symlink():
                find(Kind.LINK, "is a symbolic link, which is not followed", path.name)
            elif path.name not in (*GENERATION_FILES, *OLDER_METADATA_FILES):
                find(Kind.FOREIGN, "is no file of a generation", path.name)
            elif not entry.is_file():
                find(Kind.FOREIGN, "is not a file", path.name, Severity.DAMAGE)
            else:
                self._modes(path)
        if (stage, gen_id) not in self._rows and self.whole:
            find(Kind.UNLISTED, "is in no cohort's membership")
        try:
            generation = read_directory(directory, stage, gen_id)
        except StoreError as error:
            name = Path(error.path).name
            if any(path.name == name and not entry.is_file(follow_symlinks=False) for path, entry in entries):
                return  # said already
            kind = Kind.UNREADABLE if error.errno is not None else Kind.NOT_TEXT
            if name == METADATA_FILE and "JSON" in str(error):
                kind = Kind.BAD_METADATA
            find(kind, str(error).removeprefix(f"{error.path} "), name)
            return
        self._content(generation, directory, find)

    def _content(self, generation: Generation, directory: Path, find: Callable[..., None]) -> None:
        if not generation.metadata:
            if not (directory / METADATA_FILE).exists():
                find(Kind.NO_METADATA, "has no metadata.json")
            else:
                find(Kind.BAD_METADATA, "holds nothing", METADATA_FILE)
            return
        damaged = damaged_files(generation)
        for name in damaged:
            if (directory / name).exists():
                find(Kind.DIGEST, "is not what metadata.json says", name)
            else:
                find(Kind.FILE_MISSING, "is named in metadata.json and missing", name)
        if not generation.raw_text and not generation.parsed_text and generation.failure is None:
            if OWN_MARK in generation.metadata:
                find(Kind.NO_ANSWER, "holds neither an answer nor the reason why there is none")
            else:
                # Other tools write down what they plan, before there is an answer.
                find(Kind.NO_ANSWER, "is planned, and has no answer yet", severity=Severity.NOTE)
            return
        self._metadata(generation, find)
        if damaged:
            return
        if generation.parsed_text is None and generation.failure is None and generation.raw_text:
            pass  # another tool's, not parsed yet: `UNPARSED` below when it can be
        elif not generation.parsed_text and generation.failure is None:
            severity = None if OWN_MARK in generation.metadata else Severity.NOTE
            find(Kind.CONTRADICTION, "is empty, and metadata.json names no failure", PARSED_FILE, severity)
        elif generation.parsed_text and generation.metadata.get("failure") is not None:
            find(Kind.CONTRADICTION, "has a parsed text, and metadata.json names a failure")
        self._lineage(generation, find)

    def _metadata(self, generation: Generation, find: Callable[..., None]) -> None:
        metadata, facts = generation.metadata, generation.facts
        missing = [name for name in ("task_id", "template_id") if not facts.record.get(name)]
        if facts.parent_gen_id is None and not generation.stage.is_root:
            missing.append("parent_gen_id")
        if facts.model_id is None and not facts.is_copy:
            missing.append("model_id")
        if missing:
            # The membership says it as well; a reader does not need it.
            find(Kind.BAD_METADATA, f"lacks {', '.join(missing)}", METADATA_FILE, Severity.NOTE)
        for key, actual in (("stage", generation.stage.value), ("gen_id", generation.gen_id)):
            if metadata.get(key, actual) != actual:
                find(Kind.MISPLACED, f"says {key} {str(metadata[key])[:60]!r}", METADATA_FILE)
        known = self._rows.get((generation.stage, generation.gen_id))
        if known is None:
            return
        row = known[0].rows[known[1]]
        for key, listed in (
            ("template_id", row.template_id),
            ("parent_gen_id", row.parent_gen_id or ""),
            (SECOND_PARENT, row.second_parent_gen_id),
        ):
            said = facts.record.get(key)
            if said is not None and said != listed:
                find(
                    Kind.CONTRADICTION,
                    f"says {key} {str(said)[:60]!r}, the membership {listed!r}",
                    METADATA_FILE,
                )

    def _lineage(self, generation: Generation, find: Callable[..., None]) -> None:
        stage, parent_id = generation.stage, generation.parent_gen_id
        known = self._rows.get((stage, generation.gen_id))
        if parent_id is None and known is not None:
            parent_id = known[0].rows[known[1]].parent_gen_id  # other tools may leave it to the membership
        text: str | None = None
        if stage.parent is None:
            if parent_id:
                find(Kind.PARENT_STAGE, f"is a draft and names a parent, {parent_id[:60]!r}", METADATA_FILE)
        elif not parent_id or parent_id not in self._names[stage.parent]:
            elsewhere = [other for other in STAGES if parent_id in self._names[other]]
            if elsewhere:
                what = f"names the parent {parent_id!r}, which is of stage {elsewhere[0].value}"
                find(Kind.PARENT_STAGE, what, METADATA_FILE)
            else:
                find(Kind.PARENT_MISSING, f"its parent {stage.parent.value}/{parent_id} is not in the store")
            return
        else:
            text = self._parsed(stage.parent, parent_id)
            if text is None:
                return  # the parent has its own finding
        second: str | None = None
        second_id = generation.facts.second_parent_gen_id
        if second_id is not None and stage.parent is not None:
            if second_id not in self._names[stage.parent]:
                what = f"its second parent {stage.parent.value}/{second_id} is not in the store"
                find(Kind.PARENT_MISSING, what)
                return
            second = self._parsed(stage.parent, second_id)
            if second is None:
                return
        self._prompt(generation, text, second, find)
        self._parse(generation, find)

    def _parsed(self, stage: Stage, gen_id: str) -> str | None:
        try:
            return read_directory(self.paths.generation_dir(stage, gen_id), stage, gen_id).parsed_text
        except StoreError:
            return None

    def _prompt(
        self,
        generation: Generation,
        parent_text: str | None,
        second_text: str | None,
        find: Callable[..., None],
    ) -> None:
        known = self._rows.get((generation.stage, generation.gen_id))
        if known is None or generation.prompt_text is None:
            return
        if generation.facts.is_copy:
            text = generation.raw_text or generation.parsed_text or ""
            if parent_text is not None and _with_lf(text) != _with_lf(parent_text):
                find(Kind.STALE, "is a copy of what its parent was before", RAW_FILE)
            return
        given = None if parent_text is None else _with_lf(parent_text)
        other = None if second_text is None else _with_lf(second_text)
        prompt = self.render(known[0], known[1], given, other)
        if prompt is None:
            find(Kind.STALE, "cannot be rendered any more: its template or concepts are gone", PROMPT_FILE)
        elif prompt != _with_lf(generation.prompt_text):
            find(Kind.STALE, "is not what would be sent now", PROMPT_FILE)

    def _parse(self, generation: Generation, find: Callable[..., None]) -> None:
        failure = generation.failure
        if generation.is_done or (failure is not None and failure.kind not in JUDGED_BY_PARSER):
            return
        answer = self.reparsed(generation)
        if answer is not None and finish(answer).parsed_text is not None:
            find(Kind.UNPARSED, "can be parsed now", RAW_FILE)

    def reparsed(self, generation: Generation) -> Answer | None:
        """The answer again, for the present parser; ``None`` when no cohort names it."""
        known = self._rows.get((generation.stage, generation.gen_id))
        return None if known is None else self.again(known[0].rows[known[1]], generation)


SHOWN_LINES = 5
"""Line numbers that a finding names; the rest is counted."""


def _lines(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"line {numbers[0]}"
    more = len(numbers) - SHOWN_LINES
    shown = ", ".join(map(str, numbers[:SHOWN_LINES]))
    return f"lines {shown} and {more} more" if more > 0 else f"lines {shown}"


def _with_lf(text: str) -> str:
    """A text as a run holds it: other tools may have written line ends of other systems."""
    return text.replace("\r\n", "\n")


# Mending


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that a repair did or left undone, in words."""

    what: str
    place: str
    done: bool = True


class Mend(StrEnum):
    """What a repair does with one generation; the words are for people."""

    REMOVE = "remove the directory: it is empty"
    PARSE = "parse the answer again; the old version is kept aside"
    ASIDE = "move it aside: it is broken and not done; the next run makes it again"


def intended(check: Check) -> list[tuple[Stage, str, Mend]]:
    """What a repair of a check's findings would do with generations; nothing is touched."""
    found = []
    for (stage, gen_id), kinds in _by_generation(check.findings).items():
        mend = _intention(check, stage, gen_id, kinds)
        if mend is not None:
            found.append((stage, gen_id, mend))
    return found


def _intention(check: Check, stage: Stage, gen_id: str, kinds: set[Kind]) -> Mend | None:
    """The one decision of a repair. What is done is never moved aside, whatever else is said of it."""
    directory = check.paths.generation_dir(stage, gen_id)
    if directory.is_symlink():
        return None
    if Kind.EMPTY in kinds:
        return Mend.REMOVE
    readable = kinds & {Kind.UNPARSED, Kind.DIGEST, Kind.FILE_MISSING, Kind.NO_METADATA}
    if readable and _answer_again(check, stage, gen_id) is not None:
        return Mend.PARSE
    if kinds & BROKEN and done_metadata(str(directory)) is None:
        return Mend.ASIDE
    return None


async def repair(check: Check, run_id: str, tell: Callable[[Step], None]) -> None:
    """Do what is safe about a check's findings.

    Staging of dead runs is swept and their answers are put in place; answers that can be parsed now are;
    broken directories move aside, so that the next run makes them again; empty ones go. What is done stays
    where it is, whatever is wrong with it, and so does a generation that a worker has in hand.

    Raises:
        StoreError: the store cannot be written.
    """
    paths, group = check.paths, check.group_permissions
    async with FilesystemStore(paths, run_id, group_permissions=group) as store:
        await _salvage(paths, store, tell, group=group)
        for finding in check.findings:
            if finding.kind is Kind.STAGING and not (paths.data_root / finding.place).exists():
                tell(Step("removed: staging of a dead run", finding.place))
        for (stage, gen_id), kinds in _by_generation(check.findings).items():
            if not await store.claim(stage, gen_id):
                tell(Step("left alone: a worker has it in hand", f"{stage.value}/{gen_id}", done=False))
                continue
            try:
                await _mend(check, store, stage, gen_id, kinds, tell)
            except (OSError, GenworkerError) as error:
                tell(Step(f"not mended: {error}", f"{stage.value}/{gen_id}", done=False))
            finally:
                await store.release(stage, gen_id)


def _by_generation(findings: Iterable[Finding]) -> Mapping[tuple[Stage, str], set[Kind]]:
    found: dict[tuple[Stage, str], set[Kind]] = {}
    for finding in findings:
        # A mere note is no reason to move anything; that a text can be parsed now is one to parse it.
        counts = finding.severity is Severity.DAMAGE or finding.kind in (Kind.UNPARSED, Kind.EMPTY)
        if counts and finding.stage is not None and finding.gen_id is not None:
            found.setdefault((finding.stage, finding.gen_id), set()).add(finding.kind)
    return found


async def _salvage(
    paths: Paths, store: FilesystemStore, tell: Callable[[Step], None], *, group: bool
) -> None:
    sweep = await asyncio.to_thread(sweep_staging, paths, group_permissions=group)
    try:
        for answer, replace in sweep.answers:
            await store.commit(answer, replace=replace)
            sweep.committed.append((answer.stage, answer.gen_id))
    except BaseException:
        sweep.release()
        raise
    if sweep.errors:
        sweep.release()
        for error in sweep.errors:
            tell(Step(f"not salvaged: {error}", error.path, done=False))
    else:
        await asyncio.to_thread(sweep.finish, paths)
    for place in sweep.odd_places:
        tell(Step("kept aside: lines of a dead run's answer log that cannot be read", str(place)))
    for done, what in (
        (sweep.committed, "salvaged: the answer of a dead run is in its place"),
        (sweep.kept_aside, "moved aside: staging of a dead run, whose place is taken"),
        (sweep.dropped, "removed: staging of a dead run, whose text is kept elsewhere"),
    ):
        for stage, gen_id in done:
            tell(Step(what, f"{stage.value}/{gen_id}"))


async def _mend(
    check: Check,
    store: FilesystemStore,
    stage: Stage,
    gen_id: str,
    kinds: set[Kind],
    tell: Callable[[Step], None],
) -> None:
    """Decide anew, since a worker may have been there meanwhile, and do it."""
    directory = check.paths.generation_dir(stage, gen_id)
    place = f"{stage.value}/{gen_id}"
    mend = await asyncio.to_thread(_intention, check, stage, gen_id, kinds)
    if mend is Mend.REMOVE:
        with contextlib.suppress(OSError):  # filled meanwhile
            directory.rmdir()
            tell(Step("removed: the directory was empty", place))
    elif mend is Mend.PARSE:
        answer = await asyncio.to_thread(_answer_again, check, stage, gen_id)
        if answer is not None:
            await store.commit(answer, replace=True)
            tell(Step("parsed again, the old version is kept aside", place))
    elif mend is Mend.ASIDE:
        mode = 0o770 if check.group_permissions else 0o700
        target = await asyncio.to_thread(
            keep_aside, check.paths, stage, gen_id, directory, store.run_id, mode
        )
        tell(Step(f"moved aside to {target}; the next run makes it again", place))


def _answer_again(check: Check, stage: Stage, gen_id: str) -> Answer | None:
    """An answer whose raw text and prompt are intact, and which the present parser reads."""
    try:
        generation = read_directory(check.paths.generation_dir(stage, gen_id), stage, gen_id)
    except StoreError:
        return None
    if set(damaged_files(generation)) - {PARSED_FILE} or not generation.raw_text:
        return None
    answer = check.reparsed(generation)
    return answer if answer is not None and finish(answer).parsed_text is not None else None
