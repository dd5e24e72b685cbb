"""Writes a cohort's ``cohort.toml`` from an older project's ``spec/config.yaml``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TextIO

from genworker.cohorts.older_spec import Imported, OlderSpecError, import_spec
from genworker.errors import ConfigError, Fault, UsageError
from genworker.project.open import Project
from genworker.store.cohorts import Modes, build_lock, refuse_linked_cohort, replace_file
from genworker.store.older_spec import read_older_spec


def import_cohort_spec(
    project: Project, cohort_id: str, source: Path | None = None, *, dry_run: bool = False
) -> tuple[Path, Imported]:
    """Translate the older specification; returns where the new one lies, and what it says.

    Args:
        source: the older file; the cohort's own without.

    Raises:
        ConfigError: the older file cannot be read or understood.
        UsageError: the cohort has a ``cohort.toml`` already, which is never overwritten.
        StoreError: the cohort's directory is a link, or the disk refused.
    """
    paths = project.paths
    refuse_linked_cohort(paths, cohort_id)
    source = source or paths.cohort_older_spec(cohort_id)
    target = paths.cohort_spec_toml(cohort_id)
    if os.path.lexists(target) and not dry_run:
        fix = "move it away, or import under another name with --from"
        raise UsageError([Fault("the cohort has a specification already", where=str(target), fix=fix)])
    document, load = read_older_spec(source)
    try:
        found = import_spec(document, load, source.name)
    except OlderSpecError as error:
        raise ConfigError([Fault(str(error), where=str(source))]) from None

    def write(stream: TextIO) -> None:
        stream.write(found.text)

    if not dry_run:
        modes = Modes.of(group_permissions=project.loaded.settings.group_permissions)
        with build_lock(paths, modes):
            replace_file(target, write, modes)
    return target, found
