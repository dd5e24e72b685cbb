"""A digest of what a run's prompts and calls are made from, to compare what two processes read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from genworker.project.open import Project


def project_digest(project: Project) -> str:
    """SHA-256, in hex, of settings, catalogue and templates as they are on disk now. Keys are no part of it.

    Where the data lie, and paths in the settings, may differ from host to host; names and contents may not.
    """
    digest = hashlib.sha256()
    settings = project.loaded.settings.model_dump_json(exclude={"data_root"})
    digest.update(settings.encode())
    paths = project.paths
    for root in (paths.catalog_dir, paths.templates_root):
        for path in _files(root):
            digest.update(
                b"\0" + path.relative_to(root).as_posix().encode("utf-8", "surrogateescape") + b"\0"
            )
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _files(root: Path) -> Iterator[Path]:
    for directory, names, files in os.walk(root):
        names.sort()
        for name in sorted(files):
            path = Path(directory) / name
            if path.is_file():
                yield path
