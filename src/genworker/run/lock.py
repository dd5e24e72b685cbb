"""One worker a cohort: the lock that says so, and the names of runs.

The lock is a file that the kernel holds for a living process, so that it dies with its holder; who holds it
is written into the file for people. What a run does under the lock is not this module's business.
"""

from __future__ import annotations

import glob
import secrets
import time
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any

from genworker.core.events import Locked
from genworker.core.selection import StaticShard
from genworker.errors import LockedError
from genworker.project.open import Project
from genworker.store.durable import cannot_write, make_directories, refuse_links
from genworker.store.format import mark_format
from genworker.store.journal import Listener
from genworker.store.lock import FileLock, IfLocked, describe_holder, holder_facts, how_to_stop


def new_run_id(shard: StaticShard | None = None) -> str:
    """A name for a run: its start in UTC, four random bytes, and its shard where it has one."""
    suffix = "" if shard is None else f"-{shard.name}"
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}{suffix}"


def cohort_lock(project: Project, cohort_id: str, run_id: str) -> AbstractContextManager[None]:
    """For other commands that write into a cohort's store: be its one worker while the block lasts.

    Raises:
        LockedError: another worker has the cohort.
    """
    return CohortLock(project, cohort_id, run_id, IfLocked.LEAVE, ())


class CohortLock:
    """The lock of a cohort: held by its one worker; a guest works without it.

    Attributes:
        waited: another worker had it first.
    """

    LOOK_EVERY_S = 0.2

    def __init__(
        self,
        project: Project,
        cohort_id: str,
        run_id: str,
        if_locked: IfLocked,
        listeners: tuple[Listener, ...],
        shard: StaticShard | None = None,
    ) -> None:
        group = project.loaded.settings.group_permissions
        self._cohort_id = cohort_id
        self._run_id = run_id
        self._paths = project.paths
        self._path = project.paths.cohort_lock_path(cohort_id)
        self._dir_mode = 0o770 if group else 0o700
        self._lock_mode = 0o660 if group else 0o600
        self._lock = FileLock(self._path, self._lock_mode)
        self._if_locked = if_locked
        self._shard = shard
        self._shard_lock: FileLock | None = None
        self._listeners = listeners
        self.waited = False

    def __enter__(self) -> None:
        refuse_links(self._paths)
        mark_format(self._paths, group_permissions=self._dir_mode == 0o770)
        try:
            make_directories(self._path.parent, self._dir_mode)
        except OSError as error:
            raise cannot_write(error, self._path) from error
        facts = holder_facts(self._run_id)
        if self._shard is not None:
            self._enter_shard(self._shard, facts)
            return
        if self._lock.acquire(facts):
            return
        holder = describe_holder(self._lock.holder())
        if self._if_locked is IfLocked.LEAVE:
            raise LockedError(
                f"another worker is running cohort {self._cohort_id} ({holder})\n"
                f"  where: {self._path}\n"
                f"  fix:   wait for it (--if-locked wait), work beside it (--if-locked share), or "
                f"{how_to_stop(self._lock.holder())}; its lock dies with it"
            )
        for listener in self._listeners:
            listener(Locked(self._cohort_id, holder, then=self._if_locked.value))
        if self._if_locked is IfLocked.SHARE:
            return
        self.waited = True
        while not self._lock.acquire(facts):
            time.sleep(self.LOOK_EVERY_S)

    def _enter_shard(self, shard: StaticShard, facts: dict[str, Any]) -> None:
        """Take the lock of one shard; the other shards have workers of their own."""
        lock = FileLock(self._paths.shard_lock_path(self._cohort_id, shard.name), self._lock_mode)
        for other, what in ((self._lock, "cohort"), (lock, f"shard {shard.number}/{shard.of} of cohort")):
            if not other.acquire(facts, shared=other is self._lock):
                self._lock.release()
                holder = describe_holder(other.holder())
                raise LockedError(
                    f"another worker is running {what} {self._cohort_id} ({holder})\n"
                    f"  where: {other.path}\n"
                    f"  fix:   wait for it, or stop it; its lock dies with it"
                )
        self._shard_lock = lock
        for path in sorted(lock.path.parent.glob(f"shard-*-{glob.escape(self._cohort_id)}.lock")):
            division = path.name.removeprefix("shard-").partition("-")[0]
            probe = FileLock(path, self._lock_mode)
            if not division.endswith(f"of{shard.of}") and not probe.acquire():
                self.__exit__()
                raise LockedError(
                    f"cohort {self._cohort_id} is being made in another division: {division}\n"
                    f"  where: {path}\n"
                    f"  fix:   give every run the same N in --shard i/N, or wait for it"
                )
            probe.release()

    def __exit__(self, *exc_info: object) -> None:
        if self._shard_lock is not None:
            self._shard_lock.release()
        self._lock.release()
