"""Salvage: what dead runs had on disk and had not put in place."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from genworker.core.generation import Answer, Generation, file_digest
from genworker.core.stages import STAGES, Stage
from genworker.errors import StoreError
from genworker.paths import PARSED_FILE, PROMPT_FILE, RAW_FILE, REASONING_FILE, Paths
from genworker.store._kernel import rename_no_replace
from genworker.store.answers import keep_odd_lines, logged_runs, read_answers, remove_answer_log
from genworker.store.durable import (
    TAKEN,
    cannot_read,
    cannot_write,
    keep_aside,
    make_directories,
    sync_directory_tree,
    sync_path,
)
from genworker.store.index import NOT_KNOWN
from genworker.store.lock import FileLock
from genworker.store.reading import read_directory, read_generation

STAGING_PREFIX = ".run-"
PROBE_SUFFIX = ".probe"


def is_remnant(generation: Generation) -> bool:
    """Whether a directory holds neither an answer, nor a parsed text, nor the reason why there is none."""
    return not generation.raw_text and not generation.parsed_text and generation.failure is None


def is_same_answer(answer: Answer, standing: Generation) -> bool:
    """Whether the generation in the store is this very answer, committed by an earlier try."""
    return (
        standing.raw_text == answer.raw_text
        # All of them: a text that was parsed again differs from the earlier one in its parser alone.
        and all(standing.metadata.get(name) == value for name, value in answer.facts.record.items())
    )


@dataclass(slots=True)
class Sweep:
    """What a sweep found and did.

    Attributes:
        dropped: staging without a byte of an answer, or whose answer is in the log.
        answers: logged answers of dead runs that are in no place yet, with whether they were to replace
            what is there; to be committed before `finish`.
        odd: lines of their logs that cannot be read, by run and segment; kept by `finish`.
        odd_places: the files that they are kept in.
        errors: what could not be put in place or aside; it lies where it lay.
    """

    committed: list[tuple[Stage, str]] = field(default_factory=list)
    kept_aside: list[tuple[Stage, str]] = field(default_factory=list)
    dropped: list[tuple[Stage, str]] = field(default_factory=list)
    answers: list[tuple[Answer, bool]] = field(default_factory=list)
    errors: list[StoreError] = field(default_factory=list)
    dead: dict[str, FileLock] = field(default_factory=dict)
    odd: dict[str, dict[int, dict[int, bytes]]] = field(default_factory=dict)
    odd_places: list[Path] = field(default_factory=list)
    mode: int = 0o700

    def release(self) -> None:
        """Give the dead runs' locks back, and leave everything else for another sweep."""
        for lock in self.dead.values():
            lock.release()

    def finish(self, paths: Paths) -> None:
        """Remove what the dead runs left: everything of it is in its place by now, but for what is odd.

        Raises:
            StoreError: the disk refuses to keep that; then the logs stay, for another sweep.
        """
        for run_id, lock in self.dead.items():
            try:
                self.odd_places += keep_odd_lines(paths, run_id, self.odd.get(run_id, {}), self.mode)
            except OSError as error:
                self.release()
                raise cannot_write(error, paths.odd_answers_dir) from error
            remove_answer_log(paths, run_id)
            with contextlib.suppress(OSError):
                paths.now_path(run_id).unlink(missing_ok=True)
                paths.now_path(run_id).with_suffix(".now-new").unlink(missing_ok=True)
            lock.release(remove=True)


def staging_run_id(name: str) -> str | None:
    """The run that a dot name below a stage belongs to; ``None`` for names that are not ours."""
    if not name.startswith(STAGING_PREFIX):
        return None
    return name.removeprefix(STAGING_PREFIX).removesuffix(PROBE_SUFFIX)


def sweep_staging(paths: Paths, *, group_permissions: bool = False) -> Sweep:
    """Go through what dead runs left: what is whole goes to its place, what is torn goes away.

    A run is dead when its lock can be taken, so a living run is never touched. The locks stay taken until
    `Sweep.finish` or `Sweep.release`. Nothing that holds a byte of an answer which is nowhere else is
    removed.
    """
    file_mode, mode = (0o660, 0o770) if group_permissions else (0o600, 0o700)
    sweep = Sweep(mode=mode)
    staging = _staging_directories(paths)
    for run_id in sorted({*staging, *logged_runs(paths), *locked_runs(paths), *_told_runs(paths)}):
        lock = FileLock(paths.run_lock_path(run_id), file_mode)
        try:
            make_directories(paths.runs_dir, mode)
            if not lock.acquire():
                continue
        except OSError as error:
            sweep.errors.append(cannot_write(error, paths.runs_dir))
            continue
        except StoreError as error:
            sweep.errors.append(error)
            continue
        sweep.dead[run_id] = lock
        try:
            logged = read_answers(paths, run_id)
        except OSError as error:
            sweep.errors.append(cannot_read(error, paths.runs_dir))
            continue
        sweep.odd[run_id] = logged.odd
        by_name = {(answer.stage, answer.gen_id): (answer, replace) for answer, replace in logged.answers}
        committed, kept = len(sweep.committed), len(sweep.kept_aside)
        for stage, directory in staging.get(run_id, []):
            _sweep_run(paths, stage, directory, run_id, sweep, mode, by_name)
        # What went aside there was either the older version of a replaced one, whose answer is in its place,
        # or an answer whose place somebody else has.
        placed = {*sweep.committed[committed:], *sweep.kept_aside[kept:]}
        for answer, replace in logged.answers:
            if (answer.stage, answer.gen_id) not in placed and not _is_in_place(
                paths, answer, replace, sweep
            ):
                sweep.answers.append((answer, replace))
    return sweep


def locked_runs(paths: Paths) -> set[str]:
    """Runs that have a lock file: living ones, and those that died before they had anything else."""
    return _runs_with(paths, ".lock")


def _told_runs(paths: Paths) -> set[str]:
    """Runs that have left word of what they do: living ones, and those whose disk refused to take it away."""
    return _runs_with(paths, ".now") | _runs_with(paths, ".now-new")


def _runs_with(paths: Paths, suffix: str) -> set[str]:
    try:
        names = os.listdir(paths.runs_dir)  # noqa: PTH208
    except OSError:
        return set()
    return {name.removesuffix(suffix) for name in names if name.endswith(suffix)}


def _is_in_place(paths: Paths, answer: Answer, replace: bool, sweep: Sweep) -> bool:
    try:
        standing = read_generation(paths.gens_root, answer.stage, answer.gen_id)
    except StoreError as error:
        if error.errno in NOT_KNOWN:
            sweep.errors.append(error)
            return True
        return False
    return is_same_answer(answer, standing) or (not replace and standing.is_done)


def _staging_directories(paths: Paths) -> dict[str, list[tuple[Stage, Path]]]:
    found: dict[str, list[tuple[Stage, Path]]] = {}
    for stage in STAGES:
        try:
            names = os.listdir(paths.stage_dir(stage))  # noqa: PTH208
        except OSError:
            continue
        for name in names:
            run_id = staging_run_id(name)
            if run_id is None:
                continue  # a generation: there may be a million
            directory = paths.stage_dir(stage) / name
            if directory.is_dir() and not directory.is_symlink():
                found.setdefault(run_id, []).append((stage, directory))
    return found


def _sweep_run(
    paths: Paths,
    stage: Stage,
    staging: Path,
    run_id: str,
    sweep: Sweep,
    mode: int,
    logged: Mapping[tuple[Stage, str], tuple[Answer, bool]],
) -> None:
    try:
        directories = sorted(staging.iterdir())
    except OSError as error:
        sweep.errors.append(cannot_write(error, staging))
        return
    for directory in directories:
        if directory.is_symlink() or not directory.is_dir():
            continue
        try:
            in_log = logged.get((stage, directory.name))
            _sweep_directory(paths, stage, directory, run_id, sweep, mode, in_log)
        except OSError as error:
            sweep.errors.append(cannot_write(error, directory))
        except StoreError as error:
            sweep.errors.append(error)
    with contextlib.suppress(OSError):
        staging.rmdir()


def _sweep_directory(
    paths: Paths,
    stage: Stage,
    directory: Path,
    run_id: str,
    sweep: Sweep,
    mode: int,
    in_log: tuple[Answer, bool] | None,
) -> None:
    gen_id = directory.name
    try:
        staged = read_directory(directory, stage, gen_id)
    except StoreError as error:
        if error.errno in NOT_KNOWN:
            raise
        staged = None
    if staged is not None and in_log is not None and in_log[1] and is_same_answer(in_log[0], staged):
        # It was to replace what has its place, and has not yet: it is committed from the log, which says so.
        shutil.rmtree(directory)
        return
    if staged is not None and is_whole(staged):
        sync_directory_tree(str(directory))
        try:
            rename_no_replace(str(directory), str(paths.generation_dir(stage, gen_id)))
            sync_path(paths.stage_dir(stage))
            sweep.committed.append((stage, gen_id))
            return
        except OSError as error:
            if error.errno not in TAKEN:
                raise
    elif in_log is not None or not _has_content(directory):
        shutil.rmtree(directory)
        sweep.dropped.append((stage, gen_id))
        return
    # Its place is taken, or nothing else has its text: kept, since somebody may have paid for it.
    keep_aside(paths, stage, gen_id, directory, run_id, mode)
    sweep.kept_aside.append((stage, gen_id))


def _has_content(directory: Path) -> bool:
    for name in (RAW_FILE, PARSED_FILE, REASONING_FILE):
        try:
            if (directory / name).stat(follow_symlinks=False).st_size:
                return True
        except FileNotFoundError:
            continue
    return False


def is_whole(generation: Generation) -> bool:
    """Whether the metadata name digests, and each file that they name is there and has its own."""
    raw = (generation.facts.files or {}).get(RAW_FILE)
    return raw is not None and raw.sha256 is not None and not damaged_files(generation)


def damaged_files(generation: Generation) -> list[str]:
    """The files that the metadata name and that are missing or have another digest."""
    files = generation.facts.files
    texts = {
        PROMPT_FILE: generation.prompt_text,
        RAW_FILE: generation.raw_text,
        PARSED_FILE: generation.parsed_text,
        REASONING_FILE: generation.reasoning_text,
    }
    damaged = []
    for name, facts in (files or {}).items():
        if facts.sha256 is None:
            continue  # another tool's record, which names a path
        text = texts.get(name)
        if text is None or facts.sha256 != file_digest(text.encode()):
            damaged.append(name)
    return damaged
