"""Writes what a report consists of: CSV that spreadsheets do not execute, and files that appear whole."""

from __future__ import annotations

import contextlib
import csv
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from genworker.errors import StoreError
from genworker.reports.tables import Cell, Table

_FORMULA_STARTS = frozenset("=+-@\t\r\n＝＋－＠")


@contextlib.contextmanager
def open_whole(path: Path) -> Iterator[TextIO]:
    """Open a text file for writing that appears under its name when the block ends without an error.

    What stood there before stays until then. Missing directories are made.

    Raises:
        StoreError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        try:
            with os.fdopen(fd, "w", encoding="utf-8", errors="replace", newline="") as stream:
                yield stream
                stream.flush()
                os.fsync(fd)
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {error.strerror}", path=str(path), errno=error.errno
        ) from error


@contextlib.contextmanager
def open_output(path: Path) -> Iterator[TextIO]:
    """Open the file that a user names for an export: `open_whole`, but for what is no regular file.

    A link is followed: what it names is written, and the link stays. Pipes and devices are written into.

    Raises:
        StoreError: it cannot be written.
    """
    target = path.resolve() if path.is_symlink() else path
    if not target.exists() or target.is_file():
        with open_whole(target) as stream:
            yield stream
        return
    try:
        with target.open("w", encoding="utf-8", errors="replace", newline="") as stream:
            yield stream
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {error.strerror}", path=str(path), errno=error.errno
        ) from error


@contextlib.contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """A name in a private directory beside `path` for a file that takes its place when the block ends.

    Raises:
        StoreError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
            made = Path(scratch) / "made"
            yield made
            made.chmod(0o666 & ~_umask())
            made.replace(path)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {error.strerror}", path=str(path), errno=error.errno
        ) from error


@contextlib.contextmanager
def replaced_directory(path: Path) -> Iterator[Path]:
    """A scratch directory that takes the place of `path` when the block ends without an error.

    Only what this function made before may stand there. An empty one leaves nothing in its place.

    Raises:
        StoreError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            yield scratch
            scratch.chmod(0o777 & ~_umask())
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            if any(scratch.iterdir()):
                scratch.rename(path)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {error.strerror}", path=str(path), errno=error.errno
        ) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_csv(table: Table, path: Path) -> int:
    """Write a table; returns the number of rows, without the header.

    Raises:
        StoreError: it cannot be written.
    """
    count = 0
    with open_whole(path) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([csv_cell(name) for name in table.header])
        for row in table.rows:
            writer.writerow([csv_cell(cell, table.decimals) for cell in row])
            count += 1
    return count


def csv_cell(cell: Cell, decimals: int | None = None) -> str:
    """A cell as text. A string that a spreadsheet would take for a formula gets a ``'`` in front.

    The characters are those that OWASP's page "CSV Injection" lists. Numbers stay numbers, also negative
    ones.
    """
    if isinstance(cell, str):
        return f"'{cell}" if cell[:1] in _FORMULA_STARTS else cell
    if cell is None:
        return ""
    if isinstance(cell, float):
        # Adding zero turns a minus zero into zero.
        return repr(cell) if decimals is None else f"{round(cell, decimals) + 0.0:.{decimals}f}"
    return str(cell)
