"""Tidying up after months: journals of ended runs are packed, and dropped when they are old and asked for.

What start-up needs of them is in the ledger (see `genworker.store.ledger`), which is synced before a journal
goes. Nothing else of the store is touched; ``genworker aside`` empties what was kept aside.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from genworker.errors import LockedError, StoreError
from genworker.paths import Paths
from genworker.store.durable import cannot_write, make_directories, sync_path
from genworker.store.ledger import fold_journal, journals, keep_accounts, kept_runs
from genworker.store.lock import FileLock, describe_holder, holder_facts
from genworker.store.sweep import locked_runs

DAY_S = 86_400.0
WORTH_BYTES = 256 * 1024 * 1024
"""Plain journals of ended runs from which on a run says that packing them would help."""


@dataclass(slots=True)
class Tidied:
    """What was done, or would be.

    Attributes:
        packed: journals that were packed, of `before_bytes`, to `after_bytes`.
        dropped: journals that went, of `dropped_bytes`.
        busy: journals of runs that are under way, or were never cleaned up: left alone.
    """

    packed: int = 0
    before_bytes: int = 0
    after_bytes: int = 0
    dropped: int = 0
    dropped_bytes: int = 0
    busy: int = 0


def pack_journals(paths: Paths, now_epoch_s: float, *, keep_days: float | None = None) -> Tidied:
    """Pack the journals of ended runs.

    Args:
        now_epoch_s: the present, in seconds since 1970.
        keep_days: drop journals of runs that ended longer ago; ``None`` keeps all.

    Raises:
        LockedError: another process does so.
        StoreError: the disk refused; what was not done yet is as it was.
    """
    found = Tidied()
    if not paths.runs_dir.is_dir():
        return found
    lock = FileLock(paths.gc_lock_path, paths.runs_dir.stat().st_mode & 0o660)
    try:
        make_directories(lock.path.parent, paths.runs_dir.stat().st_mode & 0o770)
        if not lock.acquire(holder_facts("")):
            raise LockedError(
                f"another process packs the journals ({describe_holder(lock.holder())})\n"
                f"  where: {lock.path}\n"
                "  fix:   wait for it; its lock dies with it"
            )
        plain = journals(paths)
        # A run has its lock before its journal: one that is looked for later is there, or the run has ended.
        locked, kept = locked_runs(paths), kept_runs(paths)
        for run_id, path in plain.items():
            if run_id in locked:
                found.busy += 1  # its answers may still be in its log
                continue
            age_s = now_epoch_s - path.stat().st_mtime
            if keep_days is not None and age_s > keep_days * DAY_S:
                _drop(paths, run_id, path, found, kept)
            elif path.suffix != ".gz":
                _pack(path, found)
        for part in paths.runs_dir.glob(".*.jsonl.part"):
            part.unlink()  # of a process that was killed over it
    except OSError as error:
        raise cannot_write(error, paths.runs_dir) from error
    finally:
        lock.release()
    return found


def _drop(paths: Paths, run_id: str, path: Path, found: Tidied, kept: Collection[str]) -> None:
    """Remove a journal whose account is on the device."""
    accounts = [] if run_id in kept else [fold_journal(run_id, path)]
    if not keep_accounts(paths, accounts, sync=True):
        raise StoreError(f"{paths.ledger_path} cannot be written: no journal was removed", path=str(path))
    for ledger in (paths.made_path, paths.ledger_path):
        if ledger.exists():
            sync_path(ledger)
            sync_path(ledger.parent)
    found.dropped += 1
    found.dropped_bytes += path.stat().st_size
    path.unlink()


def _pack(path: Path, found: Tidied) -> None:
    """Pack a journal beside itself; the plain one goes when the packed one is on the device."""
    size, status = path.stat().st_size, path.stat()
    part = path.with_name(f".{path.name}.part")
    with path.open("rb") as source, part.open("wb") as target:
        os.fchmod(target.fileno(), status.st_mode & 0o777)
        with gzip.GzipFile(fileobj=target, mode="wb", compresslevel=6, mtime=0) as packed:
            shutil.copyfileobj(source, packed, 1024 * 1024)
        target.flush()
        os.fsync(target.fileno())
    os.utime(part, ns=(status.st_atime_ns, status.st_mtime_ns))
    packed_path = path.with_name(f"{path.name}.gz")
    os.rename(part, packed_path)  # noqa: PTH104
    sync_path(path.parent)
    found.packed += 1
    found.before_bytes += size
    found.after_bytes += packed_path.stat().st_size
    path.unlink()


def plain_journal_bytes(paths: Paths) -> int:
    """Bytes of journals of ended runs that are not packed."""
    locked, total = locked_runs(paths), 0
    with contextlib.suppress(OSError), os.scandir(paths.runs_dir) as entries:
        for entry in entries:
            if entry.name.endswith(".jsonl") and entry.name.removesuffix(".jsonl") not in locked:
                total += entry.stat(follow_symlinks=False).st_size
    return total
