"""Everything that reports read of one data root: memberships, plans, generations, and run journals."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping

from genworker.core.facts import Facts
from genworker.core.generation import Generation, file_digest
from genworker.core.ids import id_fault
from genworker.core.membership import Membership, MembershipRow
from genworker.core.parsers import FIRST, SECOND, TIE
from genworker.core.plan import Plan, make_plan
from genworker.core.rating import Chosen, Rated
from genworker.core.stages import SCORED_STAGE, Stage
from genworker.errors import CatalogError, StoreError
from genworker.paths import PARSED_FILE, RAW_FILE, Paths
from genworker.store.catalog import TemplateFiles, load_membership_as_it_stands, stream_membership
from genworker.store.concepts import concepts_of
from genworker.store.index import StoreIndex
from genworker.store.ledger import read_accounts
from genworker.store.ratings import (
    choice_name,
    choice_path,
    rating_generation,
    rating_name,
    rating_path,
    read_choices,
    read_ratings,
)
from genworker.store.reading import done_metadata, facts_in, generation_directory, read_directory

MAX_SCORE_BYTES = 4096
"""Bytes of an evaluation's ``parsed.txt`` that are read for its score; a longer one holds none."""


_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class StoreReader:
    """Reads one data root, as it stands: nothing is written, and neither catalogue nor settings are needed.

    The directory listings are taken once, so that all answers are about one moment.
    """

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self.index = StoreIndex(paths)
        self._directories = {stage: str(paths.stage_dir(stage)) for stage in Stage}

    def membership(self, cohort_id: str) -> Membership:
        """The rows of a cohort.

        Raises:
            UsageError: there is no such cohort.
            MembershipError: its file is wrong; every fault at once.
        """
        return load_membership_as_it_stands(self.paths, cohort_id)

    def rows(self, cohort_id: str) -> Iterator[MembershipRow]:
        """The rows of a cohort in the file's order, without holding them all; an empty model may stay empty.

        Raises:
            UsageError: there is no such cohort.
            MembershipError: a row is wrong; those before it may have been given out.
        """
        return stream_membership(self.paths, cohort_id)

    def plan(self, membership: Membership) -> Plan:
        """Where each row stands."""
        return make_plan(membership, self.index)

    def is_done(self, stage: Stage, gen_id: str) -> bool:
        """Whether a generation is in the store and good."""
        return self.index.is_done(stage, gen_id)

    def holds(self, stage: Stage, gen_id: str) -> bool:
        """Whether the store has a directory of that name."""
        return gen_id in self.index.names(stage)

    def generation(self, stage: Stage, gen_id: str) -> Generation:
        """One generation, all four files.

        Raises:
            StoreError: it is not there or cannot be read.
        """
        rated = rating_generation(self.paths, gen_id) if stage.is_scored else None
        return rated or read_directory(
            generation_directory(self.paths.gens_root, stage, gen_id), stage, gen_id
        )

    def stands(self, stage: Stage, gen_id: str) -> bool:
        """As `is_done`, but looked up now and without a listing: for a few generations, or in flat memory."""
        return done_metadata(f"{self._directories[stage]}/{gen_id}") is not None

    def facts(self, stage: Stage, gen_id: str) -> Facts:
        """What the metadata say, alone; nothing when there are none that can be read."""
        return facts_in(f"{self._directories[stage]}/{gen_id}", stage)

    def evaluation(self, gen_id: str) -> tuple[str, str | None]:
        """The score's text and the response's file of an evaluation that is done; cheap.

        Returns:
            ``parsed.txt``, at most `MAX_SCORE_BYTES` of it, and the path of ``raw.txt``; the path of
            ``parsed.txt`` where another tool kept no raw text.

        Raises:
            StoreError: there is no such file, or it cannot be read.
        """
        directory = f"{self._directories[SCORED_STAGE]}/{gen_id}"
        path, response = f"{directory}/{PARSED_FILE}", f"{directory}/{RAW_FILE}"
        try:
            # Without O_NONBLOCK a pipe with this name would wait for a writer for ever.
            fd = os.open(path, _OPEN | os.O_NONBLOCK)
            try:
                text = os.read(fd, MAX_SCORE_BYTES).decode("utf-8", "replace")
            finally:
                os.close(fd)
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror}", path=path) from None
        return text, response if os.path.exists(response) else path  # noqa: PTH110

    def concepts(self, combos: Collection[str]) -> Mapping[str, tuple[str, ...]]:
        """The names of each combo's concepts, as far as the data root knows them."""
        return concepts_of(self.paths, combos)

    def replaced(self, stage: Stage, gen_id: str) -> Generation | None:
        """What stood in a generation's place before: the latest version that was usable; ``None`` without."""
        try:
            versions = sorted(
                self.paths.aside_dir(stage, gen_id).iterdir(), key=lambda path: path.stat().st_mtime
            )
        except OSError:
            return None
        for version in reversed(versions):
            with contextlib.suppress(StoreError):
                generation = read_directory(version, stage, gen_id)
                if generation.is_done:
                    return generation
        return None

    def template(self, stage: Stage, template_id: str) -> tuple[str | None, str | None]:
        """A template's text as its file has it today and its digest; ``None`` twice where there is none."""
        if id_fault(template_id) is not None:  # it would lead elsewhere
            return None, None
        try:
            text = TemplateFiles(self.paths).text(stage, template_id)
        except CatalogError:
            return None, None
        return text, file_digest(text.encode())

    def ratings(self) -> Iterator[Rated]:
        """What people think of essays, as ``data/ratings`` has it."""
        for rating in read_ratings(self.paths):
            yield Rated(
                rating.rater,
                rating.gen_id,
                rating.score,
                rating_name(rating.rater, rating.gen_id),
                str(rating_path(self.paths, rating.rater, rating.gen_id)),
            )

    def choices(self) -> Iterator[Chosen]:
        """What people chose between two essays, as ``data/ratings`` has it."""
        words = {"a": FIRST, "b": SECOND, "tie": TIE}
        for chosen in read_choices(self.paths):
            pair = (chosen.rater, chosen.first, chosen.second)
            path = str(choice_path(self.paths, *pair))
            yield Chosen(*pair, words[chosen.choice], choice_name(*pair), path)

    def call_errors(self) -> dict[str, str]:
        """Why the last call for a gen_id failed for good, as the run journals say; empty without journals."""
        errors: dict[str, str] = {}
        for account in read_accounts(self.paths, None):
            errors.update((gen_id, why) for (_, gen_id), why in account.failed.items())
        return errors
