"""One worker a cohort: the lock that says so, and the names of runs.

The lock is a file that the kernel holds for a living process, so that it dies with its holder; who holds it
is written into the file for people. What a run does under the lock is not this module's business.
"""

from __future__ import annotations

import secrets
import time
from contextlib import AbstractContextManager
from datetime import UTC, datetime

from genworker.core.events import Locked
from genworker.errors import LockedError
from genworker.project.open import Project
from genworker.store.durable import cannot_write, make_directories, refuse_links
from genworker.store.journal import Listener
from genworker.store.lock import FileLock, IfLocked, describe_holder, holder_facts


def new_run_id() -> str:
    """A name for a run: its start in UTC and four random bytes."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


def cohort_lock(project: Project, cohort_id: str, run_id: str) -> AbstractContextManager[None]:
    """For other commands that write into a cohort's store: be its one worker while the block lasts.

    Raises:
        LockedError: another worker has the cohort.
    """
    return CohortLock(project, cohort_id, run_id, IfLocked.LEAVE, ())


class CohortLock:
    """The one worker of a cohort, or a guest beside it.

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
    ) -> None:
        group = project.loaded.settings.group_permissions
        self._cohort_id = cohort_id
        self._run_id = run_id
        self._paths = project.paths
        self._path = project.paths.cohort_lock_path(cohort_id)
        self._dir_mode = 0o770 if group else 0o700
        self._lock = FileLock(self._path, 0o660 if group else 0o600)
        self._if_locked = if_locked
        self._listeners = listeners
        self.waited = False

    def __enter__(self) -> None:
        refuse_links(self._paths)
        try:
            make_directories(self._path.parent, self._dir_mode)
        except OSError as error:
            raise cannot_write(error, self._path) from error
        facts = holder_facts(self._run_id)
        if self._lock.acquire(facts):
            return
        holder = describe_holder(self._lock.holder())
        if self._if_locked is IfLocked.LEAVE:
            raise LockedError(
                f"another worker is running cohort {self._cohort_id} ({holder})\n"
                f"  where: {self._path}\n"
                f"  fix:   wait for it (--if-locked wait), work beside it (--if-locked share), or stop it: "
                f"kill -INT {self._lock.holder().get('pid', 'PID')}; its lock dies with it"
            )
        for listener in self._listeners:
            listener(Locked(self._cohort_id, holder, then=self._if_locked.value))
        if self._if_locked is IfLocked.SHARE:
            return
        self.waited = True
        while not self._lock.acquire(facts):
            time.sleep(self.LOOK_EVERY_S)

    def __exit__(self, *exc_info: object) -> None:
        self._lock.release()
