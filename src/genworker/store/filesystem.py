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
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiofiles

from genworker.core.generation import (
    Answer,
    Generation,
    encode_metadata,
    finish,
)
from genworker.core.stages import STAGES, Stage
from genworker.errors import StoreError
from genworker.paths import METADATA_FILE, PARSED_FILE, PROMPT_FILE, RAW_FILE, REASONING_FILE, Paths
from genworker.store._kernel import (
    rename_exchange,
    rename_no_replace,
    sync_filesystem,
    syncs_report_errors,
)
from genworker.store.answers import AnswerLog
from genworker.store.durable import (
    TAKEN,
    cannot_write,
    keep_aside,
    make_directories,
    refuse_links,
    sync_directory_tree,
    write_all,
)
from genworker.store.format import mark_format
from genworker.store.index import NOT_KNOWN
from genworker.store.lock import Claims, FileLock, holder_facts
from genworker.store.raw_copies import RawCopies
from genworker.store.reading import read_generation
from genworker.store.sweep import PROBE_SUFFIX, STAGING_PREFIX, is_remnant, is_same_answer, locked_runs

GROUP_LIMIT = 256
"""Most commits that share one sync: beyond it the wait of the first grows and nothing is gained."""

_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True)
class _Commit:
    """One commit on its way through the committer's thread.

    Attributes:
        staged: the staging directory, once it is made.
        is_whole: all its files are written and synced; the next start would put it in place.
    """

    answer: Answer
    replace: bool
    future: asyncio.Future[Generation]
    staged: str = ""
    is_whole: bool = False
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

    Attributes:
        raw_copies: writes copies of what was committed, where the user wants them; ``None``: nobody does.

    Raises:
        StoreError: the data root cannot be written, or a directory is a symbolic link.
    """

    def __init__(self, paths: Paths, run_id: str, *, group_permissions: bool = False) -> None:
        self.paths = paths
        self.run_id = run_id
        self._dir_mode = 0o770 if group_permissions else 0o700
        self._file_mode = 0o660 if group_permissions else 0o600
        self._run_lock = FileLock(paths.run_lock_path(run_id), self._file_mode)
        self._queue: queue.SimpleQueue[_Commit | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        # As strings: taken apart and joined anew, paths would be a tenth of a commit's work.
        self._runs_place = str(paths.runs_dir)
        self._places = {stage: str(paths.stage_dir(stage)) for stage in STAGES}
        self._stage_fds: dict[Stage, int] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._devices: dict[Stage, int] = {}
        self._replaced: set[str] = set()
        self._whole: dict[str, Answer] = {}
        self._runs_stamp = 0
        self._other_runs: set[str] = set()
        self._can_sync_filesystem = syncs_report_errors()
        self.raw_copies: RawCopies | None = None
        self._claims: Claims | None = None
        self._log: AnswerLog | None = None
        self._logged: dict[tuple[Stage, str], int] = {}

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
        mark_format(paths, group_permissions=self._dir_mode == 0o770)
        try:
            for directory in (paths.runs_dir, paths.cohort_lock_path("x").parent):
                make_directories(directory, self._dir_mode)
            self._lock_run()
            self._claims = Claims(paths.claims_path, self._file_mode)
            self._claims.live(self.run_id)
            self._log = AnswerLog(paths, self.run_id, self._file_mode)
            for stage in STAGES:
                stage_dir = paths.stage_dir(stage)
                make_directories(stage_dir, self._dir_mode)
                staging = self._staging(stage)
                os.mkdir(staging, self._dir_mode)  # noqa: PTH102
                fd = self._stage_fds[stage] = os.open(stage_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                self._devices[stage] = os.fstat(fd).st_dev
                self._probe(stage, staging)
        except OSError as error:
            self.close()
            raise cannot_write(error, paths.data_root) from error
        except StoreError:
            self.close()
            raise

    def _lock_run(self) -> None:
        facts = {**holder_facts(self.run_id), "has_life": True}
        for _ in range(100):
            if self._run_lock.acquire(facts):
                return
            time.sleep(0.02)  # a sweep has found the file before we had locked it, and gives it back at once
        raise StoreError(f"run {self.run_id} exists already", path=str(self._run_lock.path))

    def _probe(self, stage: Stage, staging: str) -> None:
        # A mount point between staging and place shows only in a real rename: device numbers may be equal.
        # The name belongs to this run, so that another worker's sweep leaves it alone while we live.
        probe = f"{staging}/probe"
        os.mkdir(probe, self._dir_mode)  # noqa: PTH102
        target = f"{staging}{PROBE_SUFFIX}"
        rename_no_replace(probe, target)
        os.rmdir(target)  # noqa: PTH106

    def close(self) -> None:
        """Remove the empty staging directories and give the run's lock back."""
        for stage in STAGES:
            for name in (f"{self._staging(stage)}{PROBE_SUFFIX}", f"{self._staging(stage)}/probe"):
                with contextlib.suppress(OSError):
                    os.rmdir(name)  # noqa: PTH106
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
        return f"{self._places[stage]}/{STAGING_PREFIX}{self.run_id}"

    def a_run_has_died(self) -> bool:
        """Whether another run has ended without cleaning up, so that its answers may wait for a sweep.

        True also while somebody else sweeps it. One look at the directory of runs, and one question to the
        kernel for each other run that there is.
        """
        assert self._claims is not None, "the store is not open"
        try:
            stamp = os.stat(self._runs_place).st_mtime_ns  # noqa: PTH116 (before every call: see `_places`)
        except OSError:
            return False
        if stamp != self._runs_stamp:  # a run has begun or ended
            self._runs_stamp = stamp
            self._other_runs = locked_runs(self.paths) - {self.run_id}
        return any(
            not self._claims.is_living(run_id) and self._is_left(run_id) for run_id in self._other_runs
        )

    def _is_left(self, run_id: str) -> bool:
        """Whether a run without a life of its own has left something: its lock goes when it has not."""
        lock = FileLock(self.paths.run_lock_path(run_id), self._file_mode)
        if not lock.path.exists():
            return False
        if lock.holder().get("has_life"):
            return True
        # Of an earlier genworker, which had no such byte: there the lock alone says whether it lives.
        with contextlib.suppress(StoreError):
            if lock.acquire():
                lock.release()
                return True
        return False

    # Claims

    async def claim(self, stage: Stage, gen_id: str) -> bool:
        """See `genworker.ports.GenerationStore.claim`. One system call, so it is made on the loop."""
        assert self._claims is not None, "the store is not open"
        try:
            return self._claims.take(stage.value, gen_id)
        except OSError as error:
            path = self.paths.claims_path
            raise StoreError(
                f"{path} cannot be locked: {error.strerror}", path=str(path), errno=error.errno
            ) from error

    async def release(self, stage: Stage, gen_id: str) -> None:
        """Give a claim back."""
        assert self._claims is not None, "the store is not open"
        self._claims.drop(stage.value, gen_id)
        if self._log is not None:
            self._log.not_coming(stage, gen_id)

    async def make_room(self, stage: Stage, gen_id: str, size_bytes: int) -> None:
        """See `genworker.ports.GenerationStore.make_room`. One system call at most, made on the loop."""
        assert self._log is not None, "the store is not open"
        try:
            self._log.make_room(stage, gen_id, size_bytes)
        except OSError as error:
            path = self.paths.answers_path(self.run_id, 1)
            raise StoreError(
                f"there is no room for the answer: {error.strerror} ({path})",
                path=str(path),
                errno=error.errno,
            ) from error

    # Reading

    async def find(self, stage: Stage, gen_id: str) -> Generation | None:
        """See `genworker.ports.GenerationStore.find`."""
        if not os.path.lexists(f"{self._places[stage]}/{gen_id}"):  # noqa: ASYNC240 (one stat)
            return None
        found = await asyncio.to_thread(read_generation, self.paths.gens_root, stage, gen_id)
        return None if is_remnant(found) else found

    async def load_parsed(self, stage: Stage, gen_id: str) -> str:
        """The parsed text of a generation that is done.

        Raises:
            StoreError: it is not there or cannot be read.
        """
        path = self.paths.parsed_path(stage, gen_id)
        try:
            # Line ends of other systems, which another tool may have left, become LF on the way.
            async with aiofiles.open(path, encoding="utf-8", newline=None) as stream:
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
        key = (answer.stage, answer.gen_id)
        # The log before the queue: the committer may be busy with a sync, and a kill must not cost the text.
        if key not in self._logged:  # a commit that is tried again has its line
            segment = self._log.append(answer, replace=replace)
            if segment is not None:
                self._logged[key] = segment
        future: asyncio.Future[Generation] = self._loop.create_future()
        self._queue.put(_Commit(answer, replace, future))
        try:
            return await future
        finally:
            if future.done() and not future.cancelled() and future.exception() is None:
                segment = self._logged.pop(key, None)
                if segment is not None:
                    self._log.settled(segment)
                if self.raw_copies is not None:
                    self.raw_copies.take(answer.stage, answer.gen_id, answer.raw_text)

    def _commit_groups(self) -> None:
        """The committer's thread: stage what has arrived, sync once, rename each, sync the directories."""
        closing = False
        while not closing:
            first = self._queue.get()
            group = [] if first is None else [first]
            closing = first is None
            # What came while the last group was synced goes along: nobody waits for a fuller group, and the
            # cost of a sync is divided by just as many answers as there are.
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
        self._sync([item for item in staged if not item.is_whole])
        for item in staged:
            if item.error is None:
                with _recorded(item):
                    self._place(item)
                    del self._whole[item.staged]
        placed = {item.answer.stage for item in staged if item.error is None}
        for stage in placed:
            try:
                # A rename is lasting only when its directory is: nobody hears of a commit before that.
                os.fsync(self._stage_fds[stage])
            except OSError as error:
                # Which of the renames a power cut would undo cannot be known, so none of them counts.
                for item in staged:
                    if item.answer.stage is stage and item.error is None:
                        item.error = error

    def _stage(self, item: _Commit) -> None:
        answer = item.answer
        directory = f"{self._staging(answer.stage)}/{answer.gen_id}"
        if answer is self._whole.get(
            directory
        ):  # written and synced by an earlier try; only its place is wanting
            item.staged, item.is_whole = directory, True
            item.generation = finish(answer)
            return
        if directory in self._replaced:  # an older version, which could not be moved aside at first
            self._keep_aside(answer.stage, answer.gen_id, directory)
            self._replaced.discard(directory)
        try:
            os.mkdir(directory, self._dir_mode)  # noqa: PTH102
        except FileExistsError:  # an earlier try of this very answer
            shutil.rmtree(directory)
            os.mkdir(directory, self._dir_mode)  # noqa: PTH102
        item.staged = directory
        # The raw text first: the log may have missed it, and parsing may take this process down.
        self._write(f"{directory}/{RAW_FILE}", answer.raw_text.encode("utf-8", "replace"))
        self._write(f"{directory}/{PROMPT_FILE}", answer.prompt_text.encode("utf-8", "replace"))
        if answer.reasoning_text:
            self._write(f"{directory}/{REASONING_FILE}", answer.reasoning_text.encode("utf-8", "replace"))
        generation = item.generation = finish(answer)
        if generation.parsed_text is not None:
            self._write(f"{directory}/{PARSED_FILE}", generation.parsed_text.encode("utf-8", "replace"))
        self._write(f"{directory}/{METADATA_FILE}", encode_metadata(generation.metadata))

    def _write(self, path: str, content: bytes) -> None:
        fd = os.open(path, _WRITE, self._file_mode)
        try:
            write_all(fd, content)
        finally:
            os.close(fd)

    def _sync(self, items: Sequence[_Commit]) -> None:
        """Bring the staged files to the device: one sync of the filesystem, else each file's own."""
        groups: dict[int, list[_Commit]] = {}
        for item in items:
            groups.setdefault(self._devices[item.answer.stage], []).append(item)
        for group in groups.values():
            if self._can_sync_filesystem:
                try:
                    self._can_sync_filesystem = sync_filesystem(self._stage_fds[group[0].answer.stage])
                except OSError as error:
                    # Never asked again over the same files: a second sync may report success over lost
                    # pages. They are written anew, and each is synced alone, so that it fails alone.
                    self._can_sync_filesystem = False
                    for item in group:
                        item.error = error
                    continue
            if not self._can_sync_filesystem:
                for item in group:
                    with _recorded(item):
                        sync_directory_tree(item.staged)
            for item in group:
                if item.error is None:
                    item.is_whole = True
                    self._whole[item.staged] = item.answer

    def _place(self, item: _Commit) -> None:
        answer, generation = item.answer, item.generation
        assert generation is not None
        final = f"{self._places[answer.stage]}/{answer.gen_id}"
        item.result = generation
        try:
            rename_no_replace(item.staged, final)
        except OSError as error:
            if error.errno not in TAKEN:
                raise
            if os.path.islink(final):  # noqa: PTH114
                raise OSError(errno.ELOOP, "is a symbolic link", final) from None
            theirs = self._standing(answer.stage, answer.gen_id)
            if item.replace or theirs is None or is_remnant(theirs):
                self._exchange(item, final)
            else:
                item.result = theirs
                self._discard(item, theirs)

    def _standing(self, stage: Stage, gen_id: str) -> Generation | None:
        """What holds a name already; ``None`` when it is damaged.

        Raises:
            StoreError: the disk or this process's limits forbid to look.
        """
        try:
            return read_generation(self.paths.gens_root, stage, gen_id)
        except StoreError as error:
            if error.errno in NOT_KNOWN:
                raise
            return None

    def _discard(self, item: _Commit, theirs: Generation) -> None:
        """Somebody else's answer is in place: keep ours aside, unless it is the same one, tried twice."""
        answer = item.answer
        if is_same_answer(answer, theirs):
            shutil.rmtree(item.staged, ignore_errors=True)
            return
        with contextlib.suppress(OSError):  # the next start's sweep does the same
            self._keep_aside(answer.stage, answer.gen_id, item.staged)

    def _exchange(self, item: _Commit, final: str) -> None:
        stage, gen_id = item.answer.stage, item.answer.gen_id
        # Made before the exchange: what can fail should fail while the old version is in place.
        make_directories(self.paths.aside_dir(stage, gen_id), self._dir_mode)
        if rename_exchange(item.staged, final):
            self._replaced.add(item.staged)
            with contextlib.suppress(OSError):  # it stays in staging; the next start moves it aside
                self._keep_aside(stage, gen_id, item.staged)
                self._replaced.discard(item.staged)
            return
        # No exchange on this filesystem. Between these two renames the name is missing; the staged
        # directory is whole, so the next start would put it there.
        self._keep_aside(stage, gen_id, final)
        rename_no_replace(item.staged, final)

    def _keep_aside(self, stage: Stage, gen_id: str, directory: str) -> None:
        keep_aside(self.paths, stage, gen_id, directory, self.run_id, self._dir_mode)


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
            kept = (
                f"; the answer lies in {item.staged}, the next run puts it in place" if item.is_whole else ""
            )
            item.future.set_exception(
                StoreError(
                    f"{item.answer.stage} {item.answer.gen_id} cannot be committed: "
                    f"{item.error.strerror} ({place}){kept}",
                    path=str(place),
                    errno=item.error.errno,
                )
            )
        else:
            item.future.set_exception(item.error or RuntimeError("the commit has no result"))
