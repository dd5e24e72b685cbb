"""What the machine allows: room on the disk, open files, filesystems that promise less than a disk."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

from genworker.errors import StoreError

BLOCKS_PER_GENERATION = 5
"""Four small files and a directory, a block each: what one generation takes at the very least."""
ENTRIES_PER_GENERATION = 5
COMFORTABLE_FACTOR = 4
"""A run is warned below this many times the least room that it needs: texts are longer than a block."""
_BLOCK_BYTES = 4096

DESCRIPTORS_BESIDES = 24
"""Open files that a run may need besides its connections: the log, the locks, a commit, name look-ups."""

_WARNINGS = {
    "tmpfs": "tmpfs lives in memory: everything is lost when the machine goes down",
    "ramfs": "ramfs lives in memory: everything is lost when the machine goes down",
    "9p": "9p passes a sync on or not, as its server likes: a power cut may lose commits",
    "v9fs": "9p passes a sync on or not, as its server likes: a power cut may lose commits",
    "cifs": "SMB shares emulate locks and renames: use one machine only, and expect slow commits",
    "smb3": "SMB shares emulate locks and renames: use one machine only, and expect slow commits",
    "nfs": "NFS: workers on other machines are kept out only where the server keeps locks",
    "nfs4": "NFS: workers on other machines are kept out only where the server keeps locks",
}


def existing_parent(path: Path) -> Path:
    """The path itself, or the nearest directory above it that exists."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def check_room(data_root: Path, generations: int) -> str | None:
    """Compare the free room with the least that a number of generations takes.

    Returns:
        A warning when it is enough for the least, but not by far; else ``None``.

    Raises:
        StoreError: it cannot be enough.
    """
    try:
        facts = os.statvfs(existing_parent(data_root))
    except OSError:
        return None
    free_bytes = facts.f_bavail * facts.f_frsize
    least_bytes = generations * BLOCKS_PER_GENERATION * min(facts.f_frsize, _BLOCK_BYTES)
    fits = min(
        free_bytes // (BLOCKS_PER_GENERATION * min(facts.f_frsize, _BLOCK_BYTES)),
        # Filesystems that make inodes as they need them report none at all.
        facts.f_favail // ENTRIES_PER_GENERATION if facts.f_files else generations,
    )
    if fits < generations:
        what = f"{_size(free_bytes)} free" if free_bytes < least_bytes else f"{facts.f_favail} inodes free"
        raise StoreError(
            f"{data_root} has no room for {generations} generations: {what}, enough for {fits} at most\n"
            f"  where: {data_root}\n"
            f"  fix:   free some, move the data root, or make fewer at a time with --limit; nothing was sent",
            path=str(data_root),
        )
    if free_bytes < COMFORTABLE_FACTOR * least_bytes:
        return (
            f"{data_root} has {_size(free_bytes)} free, which may not be enough for {generations} generations"
        )
    return None


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}"


def free_descriptors() -> int:
    """How many connections this process may hold open, after raising its limit as far as it is allowed.

    Raises:
        StoreError: not a single one.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        except (OSError, ValueError):
            pass
    if soft == resource.RLIM_INFINITY:
        return 1_000_000
    free = soft - _open_descriptors() - DESCRIPTORS_BESIDES
    if free < 1:
        raise StoreError(
            f"this process may have {soft} files open, which is too few to run\n"
            "  fix:   raise the limit, as with: ulimit -n 1024; nothing was sent",
            path="",
        )
    return free


def _open_descriptors() -> int:
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            return len(os.listdir(folder))  # noqa: PTH208
        except OSError:
            continue
    return 16


def filesystem_warning(data_root: Path, mounts: str = "/proc/self/mountinfo") -> str | None:
    """What the data root's filesystem does not promise; ``None`` for a disk, or where nothing is known."""
    best: tuple[int, str, str] = (0, "", "")
    root = str(existing_parent(data_root).resolve())
    for point, kind, options in _mounts(mounts):
        below = point.rstrip("/") + "/"
        if (root + "/").startswith(below) and len(below) >= best[0]:
            best = (len(below), kind, options)
    _, kind, options = best
    if kind in _WARNINGS:
        return f"{data_root}: {_WARNINGS[kind]}"
    if kind.startswith("fuse") and kind != "fuseblk":
        return f"{data_root}: {kind} promises no more than its own program does: a power cut may lose commits"
    if kind == "overlay" and "volatile" in options.split(","):
        return f"{data_root}: this overlay is mounted volatile: nothing on it survives a power cut"
    return None


def _mounts(path: str) -> Iterator[tuple[str, str, str]]:
    """(mount point, filesystem type, super options) of each mount, in the order they were made."""
    try:
        lines = Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        head, _, tail = line.partition(" - ")
        left, right = head.split(), tail.split()
        if len(left) < 6 or len(right) < 3:
            continue
        point = (
            left[4].replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
        )
        yield point, right[0], f"{left[5]},{right[2]}"
