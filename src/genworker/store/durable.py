"""Directories and files that survive a power cut, and the refusal to follow links out of the store."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
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
