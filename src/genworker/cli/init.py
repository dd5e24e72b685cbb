"""``init``: a project to start from, which runs at once."""

from __future__ import annotations

import os
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated

import typer

from genworker.cli.app import app, command, put, say
from genworker.errors import Fault, StoreError, UsageError
from genworker.store.durable import write_beside

STARTER = "starter"
_RENAMED = {"env.example": ".env.example", "gitignore": ".gitignore"}
"""Names that tools would act upon if they stood in the package."""


@app.command("init")
@command
def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The project's directory; it is made.")],
    force: Annotated[
        bool, typer.Option("--force", help="Add to a directory that has files. None of them is overwritten.")
    ] = False,
) -> int:
    """Write a small project into DIR: catalogue, configuration, Makefile, README.

    It runs at once, on a language model that comes as a Python package: no key, no network.
    """
    starter = dict(starter_files())
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise UsageError([Fault("this is not a directory", where=str(directory), fix="name another one")])
    there = sorted(path.name for path in directory.iterdir()) if directory.exists() else []
    if there and not force:
        shown = ", ".join(there[:10]) + (f" and {len(there) - 10} more" if len(there) > 10 else "")
        fix = "name a new directory, or add --force: it writes what is missing and overwrites nothing"
        raise UsageError([Fault(f"the directory is not empty: {shown}", where=str(directory), fix=fix)])
    kept = []
    for name, content in starter.items():
        if not _write_new(directory, name, content):
            kept.append(name)
    for name in kept:
        say(f"left as it is: {directory / name}")
    put(f"Wrote {len(starter) - len(kept)} files to {directory}. Next:")
    put(f"  cd {directory}")
    put("  genworker cohort build demo")
    put("  genworker run demo")
    return 0


def starter_files() -> list[tuple[str, bytes]]:
    """(path below the project, content) of each file of the starter project."""

    def walk(folder: Traversable, prefix: str) -> list[tuple[str, bytes]]:
        found = []
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
            name = prefix + _RENAMED.get(entry.name, entry.name)
            if entry.is_dir():
                found += walk(entry, f"{name}/")
            else:
                found.append((name, entry.read_bytes()))
        return found

    return walk(files("genworker") / STARTER, "")


def _write_new(directory: Path, name: str, content: bytes) -> bool:
    """Write a file that does not exist; ``False`` when something stands there.

    Beside its place first: half a file would be taken for the user's own by the next `init --force`.
    """
    path = directory / name
    try:
        if os.path.lexists(path):
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        write_beside(path, content, 0o666)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {error.strerror}", path=str(path), errno=error.errno
        ) from error
    return True
