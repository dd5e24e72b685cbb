"""The store: commits each generation as one directory by one rename, and says what is there.

An answer is logged the moment it arrives (see `genworker.store.answers`), so that a killed process does not
lose it. A commit survives a power cut once it is reported: files are written into a staging directory on the
same filesystem, synced, renamed to a name that must be free, and the stage directory is synced. Commits are
grouped by whatever has arrived, so that one sync serves many. Nothing here knows of scheduling.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import queue
import shutil
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiofiles

from genworker.core.generation import (
    Answer,
    Failure,
    FailureKind,
    Generation,
    encode_metadata,
    file_digest,
    finish,
)
from genworker.core.plan import Held
from genworker.core.stages import STAGES, Stage
from genworker.errors import StoreError
from genworker.paths import METADATA_FILE, PARSED_FILE, PROMPT_FILE, RAW_FILE, Paths
from genworker.store._kernel import rename_exchange, rename_no_replace, sync_filesystem
from genworker.store.answers import AnswerLog, logged_runs, read_answers, remove_answer_log
from genworker.store.lock import Claims, FileLock, holder_facts
from genworker.store.reading import read_directory, read_generation

STAGING_PREFIX = ".run-"
GROUP_LIMIT = 256
"""Most commits that share one sync: beyond it the wait of the first grows and nothing is gained."""

_TAKEN = (errno.EEXIST, errno.ENOTEMPTY)
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class StoreIndex:
    """Which generations a store holds: one listing per stage, then a look at those that are asked for.

    A directory appears whole, so its name nearly says it all; that its files are there is checked for
    the ids that a cohort names, since other tools may have written them.
    """

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._listed: dict[Stage, set[str]] = {}
        self._done: dict[Stage, set[str]] = {stage: set() for stage in STAGES}

    def names(self, stage: Stage) -> set[str]:
        """Names of all generation directories of a stage, done or not."""
        names = self._listed.get(stage)
        if names is None:
            names = self._listed[stage] = _list_names(self._paths.stage_dir(stage))
        return names

    def is_done(self, stage: Stage, gen_id: str) -> bool:
        """Whether ``metadata.json`` and a non-empty ``parsed.txt`` are there."""
        if gen_id not in self.names(stage):
            return False
        done = self._done[stage]
        if gen_id in done:
            return True
        if is_done_directory(f"{self._paths.stage_dir(stage)}/{gen_id}"):
            done.add(gen_id)
            return True
        return False

    def held(self, stage: Stage, gen_id: str) -> Held | None:
        """The failed answer that is kept there; ``None`` when there is no answer at all."""
        if gen_id not in self.names(stage):
            return None
        try:
            generation = read_generation(self._paths.gens_root, stage, gen_id)
        except StoreError as error:
            return Held(Failure(FailureKind.UNPARSEABLE, str(error)))
        if not generation.raw_text:
            # An empty answer that genworker committed has metadata; a directory without both is a remnant.
            return Held(generation.failure) if generation.failure is not None else None
        failure = generation.failure
        return Held(failure or Failure(FailureKind.UNPARSEABLE, "the answer has not been parsed"))


def is_done_directory(directory: str) -> bool:
    """The contract's test: ``metadata.json`` and a non-empty ``parsed.txt``."""
    try:
        return os.stat(f"{directory}/{PARSED_FILE}").st_size > 0 and os.path.exists(  # noqa: PTH110, PTH116
            f"{directory}/{METADATA_FILE}"
        )  # strings: a Path per generation would double the time over a million
    except OSError:
        return False


def _list_names(directory: Path) -> set[str]:
    try:
        return {name for name in os.listdir(directory) if name[0] != "."}  # noqa: PTH208 (names, not paths)
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise StoreError(
            f"{directory} cannot be listed: {error.strerror}", path=str(directory), errno=error.errno
        ) from None


def refuse_links(paths: Paths) -> None:
    """Refuse a store whose directories are links: a commit would land somewhere else.

    Raises:
        StoreError: ``gens`` or a stage directory is a symbolic link or not a directory.
    """
    for directory in (paths.gens_root, *(paths.stage_dir(stage) for stage in STAGES)):
        if directory.is_symlink():
            raise StoreError(
                f"{directory} is a symbolic link; the store needs a real directory", path=str(directory)
            )
        if directory.exists() and not directory.is_dir():
            raise StoreError(f"{directory} is not a directory", path=str(directory))


@dataclass(slots=True)
class _Commit:
    """One commit on its way through the committer's thread."""

    answer: Answer
    replace: bool
    future: asyncio.Future[Generation]
    staged: str = ""
    generation: Generation | None = None
    result: Generation | None = None
    error: BaseException | None = None


class FilesystemStore:
    """The generations below one data root, open for one run.

    Use as an async context manager. `commit` may be called from one event loop by any number of tasks.

    Args:
        run_id: names the staging directories and the run's lock.
        group_permissions: let the group read and write what is made (0770 and 0660, within the umask),
            instead of the owner alone.

    Raises:
        StoreError: the data root cannot be written, or a directory is a symbolic link.
    """

    def __init__(self, paths: Paths, run_id: str, *, group_permissions: bool = False) -> None:
        self.paths = paths
        self.run_id = run_id
        self._dir_mode = 0o770 if group_permissions else 0o700
        self._file_mode = 0o660 if group_permissions else 0o600
        self._run_lock = FileLock(paths.run_lock_path(run_id))
        self._queue: queue.SimpleQueue[_Commit | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stage_fds: dict[Stage, int] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._can_sync_filesystem = True
        self._claims: Claims | None = None
        self._log: AnswerLog | None = None

    # Opening and closing

    async def __aenter__(self) -> FilesystemStore:
        await asyncio.to_thread(self.open)
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._commit_groups, name="genworker-commit", daemon=True)
        self._thread.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._queue.put(None)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        await asyncio.to_thread(self.close)

    def open(self) -> None:
        """Make the directories, lock the run, and try one rename from staging into place."""
        paths = self.paths
        refuse_links(paths)
        try:
            for directory in (paths.runs_dir, paths.cohort_lock_path("x").parent):
                make_directories(directory, self._dir_mode)
            if not self._run_lock.acquire(holder_facts(self.run_id)):
                raise StoreError(f"run {self.run_id} exists already", path=str(self._run_lock.path))
            self._claims = Claims(paths.claims_path)
            self._log = AnswerLog(paths, self.run_id)
            for stage in STAGES:
                stage_dir = paths.stage_dir(stage)
                make_directories(stage_dir, self._dir_mode)
                staging = self._staging(stage)
                os.mkdir(staging, self._dir_mode)  # noqa: PTH102
                self._stage_fds[stage] = os.open(stage_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                self._probe(stage, staging)
        except OSError as error:
            self.close()
            raise StoreError(
                f"{error.filename or paths.data_root} cannot be written: {error.strerror}",
                path=str(error.filename or paths.data_root),
                errno=error.errno,
            ) from error

    def _probe(self, stage: Stage, staging: str) -> None:
        # A mount point between staging and place shows only in a real rename: device numbers may be equal.
        probe = f"{staging}/probe"
        os.mkdir(probe, self._dir_mode)  # noqa: PTH102
        target = f"{self.paths.stage_dir(stage)}/{STAGING_PREFIX}probe-{self.run_id}"
        rename_no_replace(probe, target)
        os.rmdir(target)  # noqa: PTH106

    def close(self) -> None:
        """Remove the empty staging directories and give the run's lock back."""
        for stage in STAGES:
            with contextlib.suppress(OSError):
                os.rmdir(self._staging(stage))  # noqa: PTH106
            fd = self._stage_fds.pop(stage, None)
            if fd is not None:
                os.close(fd)
        if self._claims is not None:
            self._claims.close()
            self._claims = None
        leftovers = any(Path(self._staging(stage)).exists() for stage in STAGES)
        if self._log is not None:
            leftovers = not self._log.close() or leftovers
            self._log = None
        self._run_lock.release(remove=not leftovers)

    def _staging(self, stage: Stage) -> str:
        return f"{self.paths.stage_dir(stage)}/{STAGING_PREFIX}{self.run_id}"

    # Claims

    async def claim(self, stage: Stage, gen_id: str) -> bool:
        """See `genworker.ports.GenerationStore.claim`. One system call, so it is made on the loop."""
        assert self._claims is not None, "the store is not open"
        return self._claims.take(stage.value, gen_id)

    async def release(self, stage: Stage, gen_id: str) -> None:
        """Give a claim back."""
        assert self._claims is not None, "the store is not open"
        self._claims.drop(stage.value, gen_id)

    # Reading

    async def find(self, stage: Stage, gen_id: str) -> Generation | None:
        """The generation that stands there and is done; ``None`` otherwise."""
        if not is_done_directory(f"{self.paths.stage_dir(stage)}/{gen_id}"):
            return None
        return await asyncio.to_thread(read_generation, self.paths.gens_root, stage, gen_id)

    async def load_parsed(self, stage: Stage, gen_id: str) -> str:
        """The parsed text of a generation that is done.

        Raises:
            StoreError: it is not there or cannot be read.
        """
        path = self.paths.parsed_path(stage, gen_id)
        try:
            async with aiofiles.open(path, encoding="utf-8", newline="") as stream:
                return await stream.read()
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(f"{path} cannot be read: {error}", path=str(path)) from error

    # Committing

    async def commit(self, answer: Answer, *, replace: bool = False) -> Generation:
        """See `genworker.ports.GenerationStore.commit`; when it returns the answer survives a power cut.

        The thread finishes what was queued, also when the caller is cancelled; `__aexit__` waits for it.
        """
        assert self._loop is not None, "the store is not open"
        assert self._log is not None, "the store is not open"
        segment = self._log.append(answer, replace=replace)
        future: asyncio.Future[Generation] = self._loop.create_future()
        self._queue.put(_Commit(answer, replace, future))
        try:
            return await future
        finally:
            if future.done() and not future.cancelled() and future.exception() is None:
                self._log.settled(segment)

    def _commit_groups(self) -> None:
        """The committer's thread: stage what has arrived, sync once, rename each, sync the directories."""
        closing = False
        while not closing:
            first = self._queue.get()
            group = [] if first is None else [first]
            closing = first is None
            while len(group) < GROUP_LIMIT:
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
                if item is None:
                    closing = True
                else:
                    group.append(item)
            if group:
                self._commit_group(group)
                assert self._loop is not None
                with contextlib.suppress(RuntimeError):  # the loop is gone: nobody waits any more
                    self._loop.call_soon_threadsafe(_deliver, group)

    def _commit_group(self, group: Sequence[_Commit]) -> None:
        for item in group:
            with _recorded(item):
                self._stage(item)
        staged = [item for item in group if item.error is None]
        self._sync(staged)
        for item in staged:
            if item.error is None:
                with _recorded(item):
                    self._place(item)
        placed = {item.answer.stage for item in staged if item.error is None}
        for stage in placed:
            try:
                os.fsync(self._stage_fds[stage])
            except OSError as error:
                for item in staged:
                    if item.answer.stage is stage and item.error is None:
                        item.error = error
        for item in group:
            if item.error is not None and item.staged:
                shutil.rmtree(item.staged, ignore_errors=True)

    def _stage(self, item: _Commit) -> None:
        answer = item.answer
        directory = f"{self._staging(answer.stage)}/{answer.gen_id}"
        if os.path.lexists(directory):
            shutil.rmtree(directory)
        os.mkdir(directory, self._dir_mode)  # noqa: PTH102
        item.staged = directory
        self._write(f"{directory}/{RAW_FILE}", answer.raw_text.encode("utf-8", "replace"))
        self._write(f"{directory}/{PROMPT_FILE}", answer.prompt_text.encode("utf-8", "replace"))
        generation = item.generation = finish(answer)
        if generation.parsed_text is not None:
            self._write(f"{directory}/{PARSED_FILE}", generation.parsed_text.encode("utf-8", "replace"))
        self._write(f"{directory}/{METADATA_FILE}", encode_metadata(generation.metadata))

    def _write(self, path: str, content: bytes) -> None:
        fd = os.open(path, _WRITE, self._file_mode)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(fd, view) :]
        finally:
            os.close(fd)

    def _sync(self, items: Sequence[_Commit]) -> None:
        """Bring the staged files to the device: one sync of the filesystem, else each file's own."""
        if not items:
            return
        if self._can_sync_filesystem:
            try:
                self._can_sync_filesystem = sync_filesystem(self._stage_fds[items[0].answer.stage])
            except OSError as error:
                # Never asked again on the same files: a second sync may report success over lost pages.
                for item in items:
                    item.error = error
                return
        if not self._can_sync_filesystem:
            for item in items:
                with _recorded(item):
                    sync_directory_tree(item.staged)

    def _place(self, item: _Commit) -> None:
        answer, generation = item.answer, item.generation
        assert generation is not None
        final = f"{self.paths.stage_dir(answer.stage)}/{answer.gen_id}"
        if os.path.islink(final):  # noqa: PTH114
            raise OSError(errno.ELOOP, "is a symbolic link", final)
        try:
            rename_no_replace(item.staged, final)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            if item.replace or self._is_remnant(answer.stage, answer.gen_id):
                self._exchange(item, final)
            else:
                theirs = read_generation(self.paths.gens_root, answer.stage, answer.gen_id)
                self._keep_aside(answer.stage, answer.gen_id, item.staged)
                item.result = theirs
                return
        item.result = generation

    def _is_remnant(self, stage: Stage, gen_id: str) -> bool:
        """Whether what stands there holds neither an answer nor a parsed text."""
        try:
            generation = read_generation(self.paths.gens_root, stage, gen_id)
        except StoreError:
            return False
        return not generation.raw_text and not generation.parsed_text and generation.failure is None

    def _exchange(self, item: _Commit, final: str) -> None:
        stage, gen_id = item.answer.stage, item.answer.gen_id
        if rename_exchange(item.staged, final):
            self._keep_aside(stage, gen_id, item.staged)
            return
        # No exchange on this filesystem. Between these two renames the name is missing; the staged
        # directory is whole, so the next start would put it there.
        self._keep_aside(stage, gen_id, final)
        rename_no_replace(item.staged, final)

    def _keep_aside(self, stage: Stage, gen_id: str, directory: str) -> None:
        keep_aside(self.paths, stage, gen_id, directory, self.run_id, self._dir_mode)


def keep_aside(
    paths: Paths, stage: Stage, gen_id: str, directory: str | Path, label: str, mode: int = 0o700
) -> Path:
    """Move a directory out of the store, to where replaced answers are kept; returns its new place."""
    aside = paths.aside_dir(stage, gen_id)
    make_directories(aside, mode)
    number = 1
    while True:
        target = aside / (label if number == 1 else f"{label}-{number}")
        try:
            rename_no_replace(str(directory), str(target))
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            number += 1
            continue
        sync_path(aside)
        return target


@contextlib.contextmanager
def _recorded(item: _Commit) -> Iterator[None]:
    """Keep an item's error with the item: one bad commit must not stop its group."""
    try:
        yield
    except (OSError, StoreError) as error:
        item.error = error
    except Exception as error:  # noqa: BLE001 (a bug here must reach the waiting task, not end the thread)
        item.error = error


def _deliver(group: Sequence[_Commit]) -> None:
    for item in group:
        if item.future.done():
            continue
        if item.error is None and item.result is not None:
            item.future.set_result(item.result)
        elif isinstance(item.error, OSError):
            place = item.error.filename or item.staged
            item.future.set_exception(
                StoreError(
                    f"{item.answer.stage} {item.answer.gen_id} cannot be committed: "
                    f"{item.error.strerror} ({place})",
                    path=str(place),
                    errno=item.error.errno,
                )
            )
        else:
            item.future.set_exception(item.error or RuntimeError("the commit has no result"))


# Durable directories


def make_directories(directory: Path, mode: int = 0o700) -> None:
    """Make a directory and its missing parents, each synced into its own parent."""
    if directory.is_dir():
        return
    make_directories(directory.parent, mode)
    with contextlib.suppress(FileExistsError):
        os.mkdir(directory, mode)  # noqa: PTH102
    sync_path(directory.parent)


def sync_path(path: str | Path) -> None:
    """``fsync`` a file or directory by name."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_directory_tree(directory: str) -> None:
    """``fsync`` each file of a directory, then the directory itself."""
    with os.scandir(directory) as entries:
        for entry in entries:
            sync_path(entry.path)
    sync_path(directory)


# Salvage


@dataclass(slots=True)
class Sweep:
    """What a sweep found and did.

    Attributes:
        answers: logged answers of dead runs that are in no place yet, with whether they were to replace
            what is there; to be committed before `finish`.
    """

    committed: list[tuple[Stage, str]] = field(default_factory=list)
    kept_aside: list[tuple[Stage, str]] = field(default_factory=list)
    dropped: list[tuple[Stage, str]] = field(default_factory=list)
    answers: list[tuple[Answer, bool]] = field(default_factory=list)
    dead: dict[str, FileLock] = field(default_factory=dict)

    def release(self) -> None:
        """Give the dead runs' locks back, and leave everything else for another sweep."""
        for lock in self.dead.values():
            lock.release()

    def finish(self, paths: Paths) -> None:
        """Remove what the dead runs left: everything of it is in its place by now."""
        for run_id, lock in self.dead.items():
            remove_answer_log(paths, run_id)
            lock.release(remove=True)


def sweep_staging(paths: Paths) -> Sweep:
    """Go through what dead runs left: what is whole goes to its place, what is torn goes away.

    A run is dead when its lock can be taken, so a living run is never touched. The locks stay taken until
    `Sweep.finish` or `Sweep.release`.
    """
    sweep = Sweep()
    staging = _staging_directories(paths)
    for run_id in sorted({*staging, *logged_runs(paths)}):
        lock = FileLock(paths.run_lock_path(run_id))
        make_directories(paths.runs_dir)
        if not lock.acquire():
            continue
        sweep.dead[run_id] = lock
        for stage, directory in staging.get(run_id, []):
            _sweep_directory(paths, stage, directory, run_id, sweep)
        placed = {*sweep.committed, *sweep.kept_aside}
        for answer, replace in read_answers(paths, run_id):
            if (answer.stage, answer.gen_id) in placed:
                continue
            if replace or not is_done_directory(str(paths.generation_dir(answer.stage, answer.gen_id))):
                sweep.answers.append((answer, replace))
    return sweep


def _staging_directories(paths: Paths) -> dict[str, list[tuple[Stage, Path]]]:
    found: dict[str, list[tuple[Stage, Path]]] = {}
    for stage in STAGES:
        try:
            names = sorted(os.listdir(paths.stage_dir(stage)))  # noqa: PTH208
        except OSError:
            continue
        for name in names:
            directory = paths.stage_dir(stage) / name
            if name.startswith(STAGING_PREFIX) and directory.is_dir() and not directory.is_symlink():
                found.setdefault(name.removeprefix(STAGING_PREFIX), []).append((stage, directory))
    return found


def _sweep_directory(paths: Paths, stage: Stage, staging: Path, run_id: str, sweep: Sweep) -> None:
    for directory in sorted(staging.iterdir()):
        if directory.is_symlink() or not directory.is_dir():
            continue
        gen_id = directory.name
        if _read_whole(directory, stage, gen_id) is None:
            shutil.rmtree(directory, ignore_errors=True)  # the log has its text
            sweep.dropped.append((stage, gen_id))
            continue
        sync_directory_tree(str(directory))
        try:
            rename_no_replace(str(directory), str(paths.generation_dir(stage, gen_id)))
            sweep.committed.append((stage, gen_id))
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            keep_aside(paths, stage, gen_id, directory, run_id)
            sweep.kept_aside.append((stage, gen_id))
    sync_path(paths.stage_dir(stage))
    with contextlib.suppress(OSError):
        staging.rmdir()


def _read_whole(directory: Path, stage: Stage, gen_id: str) -> Generation | None:
    """A staged generation whose metadata is there and whose files have the digests that it names."""
    try:
        generation = read_directory(directory, stage, gen_id)
    except StoreError:
        return None
    files = generation.metadata.get("files")
    if not isinstance(files, dict) or RAW_FILE not in files:
        return None
    texts = {
        PROMPT_FILE: generation.prompt_text,
        RAW_FILE: generation.raw_text,
        PARSED_FILE: generation.parsed_text,
    }
    for name, record in files.items():
        text = texts.get(name)
        if text is None or not isinstance(record, dict) or record.get("sha256") != file_digest(text.encode()):
            return None
    return generation
