"""Which format ``.genworker`` has: so that an older genworker does not misread what a newer one has written.

``.genworker/format`` is a JSON object: the format's number, who wrote it, and the oldest number whose readers
understand it. A change that older readers survive raises `FORMAT` alone; one that they do not raises
`READABLE_FROM` as well. Generations have no such number: their files are the contract itself.
"""

from __future__ import annotations

import json
from pathlib import Path

from genworker.core.facts import whole
from genworker.core.visible import visible
from genworker.errors import StoreError
from genworker.paths import Paths
from genworker.store.durable import cannot_write, make_directories, sync_path, write_beside

FORMAT = 1
READABLE_FROM = 1

_NOTHING = b"\0 \n"
"""What a file consists of whose name came to the disk before its content did."""
_MOST_BYTES = 10_000


def refuse_newer(paths: Paths) -> None:
    """Refuse a data root whose ``.genworker`` this version cannot read.

    A store without the file is of a version before it, and is read.

    Raises:
        StoreError: it is newer, or the file says nothing.
    """
    path = paths.format_path
    try:
        with path.open("rb") as stream:
            content = stream.read(_MOST_BYTES)
    except OSError:
        return
    if not content.strip(_NOTHING):
        return  # the machine died over it; the next run writes it anew
    try:
        record = json.loads(content)
        number, readable_from = whole(record["format"]), whole(record["readable_from"])
        writer = str(record.get("written_by", "a newer genworker"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        number = readable_from = None
    if number is None or readable_from is None:
        raise StoreError(
            f"{path} does not say which format the store has\n"
            "  fix:   put it back from a copy; if no newer genworker has ever run here, remove it",
            path=str(path),
        )
    if readable_from > FORMAT:
        raise StoreError(
            f"{paths.private_dir} was written by {visible(writer, limit=60, one_line=True)}, "
            f"in format {number}; this version reads up to format {FORMAT}\n"
            f"  where: {path}\n  fix:   use that version or a newer one; nothing was changed",
            path=str(path),
        )


def mark_format(paths: Paths, *, group_permissions: bool = False) -> None:
    """Refuse what is newer, and write the format and a ``.gitignore`` where there are none yet.

    Journals hold prompts, so none of ``.genworker`` belongs into a repository.

    Raises:
        StoreError: it is newer, or cannot be written.
    """
    refuse_newer(paths)
    from genworker import __version__

    mark = {
        "format": FORMAT,
        "readable_from": READABLE_FROM,
        "written_by": f"genworker {__version__}",
    }
    try:
        make_directories(paths.private_dir, 0o770 if group_permissions else 0o700)
        for path, text in (
            (paths.private_dir / ".gitignore", "# Journals hold prompts, asides hold answers.\n*\n"),
            (paths.format_path, json.dumps(mark) + "\n"),
        ):
            if _is_there(path):
                continue
            write_beside(path, text.encode(), 0o660 if group_permissions else 0o600)
            sync_path(path.parent)
    except OSError as error:
        raise cannot_write(error, paths.format_path) from error


def _is_there(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return bool(stream.read(_MOST_BYTES).strip(_NOTHING))
    except FileNotFoundError:
        return False
