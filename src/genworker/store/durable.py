"""Directories and files that survive a power cut, and the refusal to follow links out of the store."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import secrets
import shutil
import time
from pathlib import Path

from genworker.core.stages import STAGES, Stage
from genworker.errors import StoreError
from genworker.paths import Paths
from genworker.store._kernel import rename_no_replace

TAKEN = (errno.EEXIST, errno.ENOTEMPTY)
"""Errors of a rename to a name that is not free."""


def refuse_links(paths: Paths) -> None:
    """Refuse a store whose directories are links: a commit would land somewhere else.

    Raises:
        StoreError: ``gens``, a stage directory or ``.genworker`` is a symbolic link or not a directory.
    """
    for directory in (paths.gens_root, *(paths.stage_dir(stage) for stage in STAGES), paths.private_dir):
        if directory.is_symlink():
            raise StoreError(
                f"{directory} is a symbolic link; the store needs a real directory", path=str(directory)
            )
        if directory.exists() and not directory.is_dir():
            raise StoreError(
                f"the data root cannot be written: {directory} is not a directory\n"
                "  fix:   move that file away; the store needs a directory of this name",
                path=str(directory),
            )


def make_directories(directory: Path, mode: int = 0o700) -> None:
    """Make a directory and its missing parents, each synced into its own parent."""
    if directory.is_dir():
        return
    make_directories(directory.parent, mode)
    with contextlib.suppress(FileExistsError):
        os.mkdir(directory, mode)  # noqa: PTH102
    sync_path(directory.parent)


STALE_S = 60.0
"""Age of a file's first half from which on nobody is at work on it."""


def write_all(fd: int, content: bytes) -> None:
    """Write every byte: a system call may take fewer."""
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]


def write_beside(path: Path, content: bytes, mode: int) -> None:
    """Write a file that appears whole, or not at all; the caller syncs its directory where that matters.

    The name that it has until then is drawn: the number of a process is another's after a restart.
    """
    stem = f".{path.name[:100]}."
    for left in path.parent.glob(f"{glob.escape(stem)}*.part"):
        with contextlib.suppress(OSError):  # of a process that was killed over it; another's may be under way
            if time.time() - left.lstat().st_mtime > STALE_S:
                left.unlink()
    part = path.with_name(f"{stem}{secrets.token_hex(6)}.part")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        try:
            write_all(fd, content)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(part, path)  # noqa: PTH104
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


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


def cannot_write(error: OSError, path: str | Path) -> StoreError:
    """The error for a path that the disk refuses; `path` is named where the system does not say."""
    name = str(error.filename or path)
    return StoreError(f"{name} cannot be written: {error.strerror}", path=name, errno=error.errno)


def cannot_read(error: OSError, place: str | Path) -> StoreError:
    """The same for a path that cannot be read."""
    name = str(error.filename or place)
    return StoreError(f"{name} cannot be read: {error.strerror}", path=name, errno=error.errno)


def keep_aside(
    paths: Paths, stage: Stage, gen_id: str, directory: str | Path, label: str, mode: int = 0o700
) -> Path:
    """Move a directory out of the store, to where replaced answers are kept; returns its new path."""
    aside = paths.aside_dir(stage, gen_id)
    make_directories(aside, mode)
    number = 1
    while True:
        target = aside / (label if number == 1 else f"{label}-{number}")
        try:
            rename_no_replace(str(directory), str(target))
        except OSError as error:
            if error.errno == errno.EXDEV:  # `gens` is a mount of its own
                _move_by_copy(Path(directory), target)
            elif error.errno in TAKEN:
                number += 1
                continue
            else:
                raise
        sync_path(aside)
        return target


def _move_by_copy(directory: Path, target: Path) -> None:
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(directory, part, symlinks=True)
    sync_directory_tree(str(part))
    rename_no_replace(str(part), str(target))
    shutil.rmtree(directory)
