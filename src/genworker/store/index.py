"""What a store holds, looked up for many generations at once."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from genworker.core.generation import Failure, FailureKind, failure_from_json
from genworker.core.membership import MembershipRow
from genworker.core.stages import STAGES, Stage
from genworker.errors import StoreError
from genworker.paths import Paths
from genworker.store.parts import in_parts
from genworker.store.reading import Metadata, done_metadata, read_generation, read_metadata

NOT_KNOWN = frozenset({errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT})
"""Errors that say nothing of what is there: to take them for "missing" would be to pay once more."""


class Listener(Protocol):
    """Who wants to know what metadata say that are read anyway; several processes may read them."""

    def heed(self, stage: Stage, gen_id: str, metadata: Metadata) -> None:
        """One generation's."""

    def take(self) -> Any:
        """What was heeded since the last time, as another process can be told; it is forgotten here."""

    def give(self, told: Any) -> None:
        """What `take` has taken, here or in a copy of this process."""


class StoreIndex:
    """Which generations a store holds: one listing per stage, then a look at those that are asked for.

    A directory appears whole, so its name nearly says it all; that its files are there is checked for
    the ids that a cohort names, since other tools may have written them.

    Attributes:
        listener: told by `done` what the metadata of each generation that is done say, so that nobody reads a
            hundred thousand files a second time.
    """

    def __init__(self, paths: Paths) -> None:
        self.listener: Listener | None = None
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
        if gen_id not in self.names(stage) or gen_id in self._links[stage]:
            return False
        return done_metadata(f"{self._directories[stage]}/{gen_id}") is not None

    def done(self, rows: Sequence[MembershipRow]) -> bytes:
        """For each row 1 where `is_done` holds, else 0; each is looked at once, on all processors."""
        for stage in STAGES:
            self.names(stage)
        listener = self.listener
        # What it knows so far is told once: each copy of this process would tell it again.
        before = None if listener is None else listener.take()

        def look(part: range) -> tuple[bytes, Any]:
            found = bytearray(len(part))
            for place, index in enumerate(part):
                row = rows[index]
                stage, gen_id = row.stage, row.gen_id
                if gen_id not in self._listed[stage] or gen_id in self._links[stage]:
                    continue
                metadata = done_metadata(f"{self._directories[stage]}/{gen_id}")
                if metadata is not None:
                    found[place] = 1
                    if listener is not None:
                        listener.heed(stage, gen_id, metadata)
            return bytes(found), None if listener is None else listener.take()

        parts = in_parts(len(rows), look)
        if listener is not None:
            for told in (before, *(told for _, told in parts)):
                listener.give(told)
        return b"".join(found for found, _ in parts)

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
