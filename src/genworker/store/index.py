"""What a store holds, looked up for many generations at once."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from genworker.core.generation import Failure, FailureKind, failure_from_json
from genworker.core.stages import STAGES, Stage
from genworker.errors import StoreError
from genworker.paths import Paths
from genworker.store.reading import is_done_directory, read_generation, read_metadata

NOT_KNOWN = frozenset({errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT})
"""Errors that say nothing of what is there: to take them for "missing" would be to pay once more."""


class StoreIndex:
    """Which generations a store holds: one listing per stage, then a look at those that are asked for.

    A directory appears whole, so its name nearly says it all; that its files are there is checked for
    the ids that a cohort names, since other tools may have written them.
    """

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._directories = {stage: str(paths.stage_dir(stage)) for stage in STAGES}
        self._listed: dict[Stage, set[str]] = {}
        self._links: dict[Stage, set[str]] = {}

    def names(self, stage: Stage) -> set[str]:
        """Names of all generation directories of a stage, done or not."""
        names = self._listed.get(stage)
        if names is None:
            names, self._links[stage] = _list_names(self._paths.stage_dir(stage))
            self._listed[stage] = names
        return names

    def links(self, stage: Stage) -> set[str]:
        """Those of `names` that are symbolic links: never followed, never replaced."""
        self.names(stage)
        return self._links[stage]

    def is_done(self, stage: Stage, gen_id: str) -> bool:
        """Whether a generation is done, as `Generation.is_done` defines it."""
        return (
            gen_id in self.names(stage)
            and gen_id not in self._links[stage]
            and is_done_directory(f"{self._directories[stage]}/{gen_id}")
        )

    def failure(self, stage: Stage, gen_id: str) -> Failure | None:
        """Why a generation that is not done is none; ``None`` when there is no answer at all.

        Raises:
            StoreError: the disk or this process's limits forbid to look: what is there is not known.
        """
        if gen_id not in self.names(stage):
            return None
        if gen_id in self._links[stage]:
            path = self._paths.generation_dir(stage, gen_id)
            return Failure(FailureKind.UNPARSEABLE, f"{path} is a symbolic link, which is not followed")
        try:
            metadata = read_metadata(f"{self._directories[stage]}/{gen_id}")
            failure = failure_from_json(metadata.get("failure"))
            if failure is not None:
                return failure
            generation = read_generation(self._paths.gens_root, stage, gen_id)
            if generation.failure is not None:
                return generation.failure
        except StoreError as error:
            if error.errno in NOT_KNOWN:
                raise
            return Failure(FailureKind.UNPARSEABLE, str(error))
        if not generation.raw_text:
            return None  # an empty answer that genworker committed has metadata: this is a remnant
        return Failure(FailureKind.UNPARSEABLE, "the answer has not been parsed")


def _list_names(directory: Path) -> tuple[set[str], set[str]]:
    """Names in a directory without those that begin with a dot, and which of them are symbolic links."""
    names, links = set(), set()
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name[0] != ".":
                    names.add(entry.name)
                    if entry.is_symlink():
                        links.add(entry.name)
        return names, links
    except FileNotFoundError:
        return names, links
    except OSError as error:
        raise StoreError(
            f"{directory} cannot be listed: {error.strerror}", path=str(directory), errno=error.errno
        ) from None
