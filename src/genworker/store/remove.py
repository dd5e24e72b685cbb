"""Takes generations out of a store, and lists and empties the place where they then lie.

Nothing is deleted here but by `empty_aside`: what is removed moves to ``.genworker/aside``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from genworker.core.facts import Facts
from genworker.core.membership import MembershipRow
from genworker.core.stages import STAGES, Stage
from genworker.errors import GenworkerError, MembershipError, StoreError
from genworker.paths import Paths
from genworker.store.catalog import list_cohorts, load_membership_as_it_stands
from genworker.store.durable import keep_aside, make_directories, sync_path
from genworker.store.filesystem import FilesystemStore
from genworker.store.index import StoreIndex
from genworker.store.reading import facts_in

Key = tuple[Stage, str]


@dataclass(frozen=True, slots=True)
class Choice:
    """What a user wants removed; all that is stated must hold of a generation.

    Attributes:
        cohort_id: only what this cohort lists.
        gen_ids: only these.
        templates, models: only what was made by one of them.
    """

    cohort_id: str | None = None
    gen_ids: Collection[str] = ()
    templates: Collection[str] = ()
    models: Collection[str] = ()

    @property
    def is_whole_cohort(self) -> bool:
        """Whether the cohort itself is to go, with its files."""
        return self.cohort_id is not None and not (self.gen_ids or self.templates or self.models)


@dataclass(slots=True)
class Removal:
    """What would go.

    Attributes:
        chosen: generations of the store, children before their parents.
        descendants: how many of them are there only as descendants of others.
        listed: those that other cohorts list, with the cohorts.
        unknown: gen_ids that the store does not have.
        unread: cohorts whose membership cannot be read, so that nobody knows what they list.
    """

    chosen: list[Key] = field(default_factory=list)
    descendants: int = 0
    listed: dict[Key, list[str]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)


def find_removal(paths: Paths, choice: Choice) -> Removal:
    """Find what a choice takes along. Reads memberships and the metadata of every generation; writes nothing.

    Raises:
        UsageError, MembershipError: the chosen cohort is not there, or its file is wrong.
        StoreError: a stage directory cannot be listed.
    """
    index = StoreIndex(paths)
    result = Removal()
    rows: dict[str, list[MembershipRow]] = {}
    for name in dict.fromkeys([*([choice.cohort_id] if choice.cohort_id else []), *list_cohorts(paths)]):
        try:
            rows[name] = list(load_membership_as_it_stands(paths, name).rows)
        except MembershipError:
            if name == choice.cohort_id:
                raise
            result.unread.append(name)
    said: dict[Key, list[MembershipRow]] = {}
    for listed in rows.values():
        for row in listed:
            said.setdefault((row.stage, row.gen_id), []).append(row)
    own = {(row.stage, row.gen_id) for row in rows.get(choice.cohort_id or "", ())}
    parents: dict[Key, set[Key]] = {}
    first: set[Key] = set()
    for stage in STAGES:
        directory = str(paths.stage_dir(stage))
        for gen_id in index.names(stage) - index.links(stage):
            key = (stage, gen_id)
            facts = facts_in(f"{directory}/{gen_id}", stage)
            listed = said.get(key, [])
            if stage.parent is not None:
                names = {facts.parent_gen_id, facts.second_parent_gen_id} - {None}
                names |= {name for row in listed for name in row.above}
                parents[key] = {(stage.parent, str(name)) for name in names}
            if _is_chosen(choice, key, facts, listed, own):
                first.add(key)
    found = {gen_id for _, gen_id in first}
    result.unknown = sorted(set(choice.gen_ids) - found)
    chosen = set(first)
    for stage in STAGES[1:]:
        chosen |= {key for key, above in parents.items() if key[0] is stage and above & chosen}
    result.descendants = len(chosen - first)
    result.chosen = sorted(chosen, key=lambda key: (-key[0].order, key[1]))
    for name, listed in rows.items():
        if name != choice.cohort_id:
            for row in listed:
                if (row.stage, row.gen_id) in chosen:
                    result.listed.setdefault((row.stage, row.gen_id), []).append(name)
    return result


def _is_chosen(
    choice: Choice, key: Key, facts: Facts, listed: Iterable[MembershipRow], own: Collection[Key]
) -> bool:
    rows = list(listed)
    templates = {facts.template_id, *(row.template_id for row in rows)}
    models = {facts.model_id, *(row.llm_model_id for row in rows)}
    return (
        (choice.cohort_id is None or key in own)
        and (not choice.gen_ids or key[1] in choice.gen_ids)
        and (not choice.templates or not templates.isdisjoint(choice.templates))
        and (not choice.models or not models.isdisjoint(choice.models))
    )


async def remove(
    paths: Paths,
    removal: Removal,
    run_id: str,
    tell: Callable[[Key, str | None], None],
    *,
    group_permissions: bool = False,
) -> None:
    """Move what was found aside, children first, so that a stop in the middle leaves no orphan behind.

    Args:
        tell: hears of each generation, and why it stayed, or ``None``.

    Raises:
        StoreError: the store cannot be written.
    """
    mode = 0o770 if group_permissions else 0o700
    async with FilesystemStore(paths, run_id, group_permissions=group_permissions) as store:
        for stage, gen_id in removal.chosen:
            if not await store.claim(stage, gen_id):
                tell((stage, gen_id), "a worker has it in hand")
                continue
            try:
                keep_aside(paths, stage, gen_id, paths.generation_dir(stage, gen_id), run_id, mode)
                tell((stage, gen_id), None)
            except (OSError, GenworkerError) as error:
                tell((stage, gen_id), str(error))
            finally:
                await store.release(stage, gen_id)


def remove_cohort_files(paths: Paths, cohort_id: str, label: str, mode: int = 0o700) -> Path:
    """Move a cohort's directory aside; returns where it lies then.

    Raises:
        StoreError: the disk refused.
    """
    place = paths.aside_root / COHORTS / cohort_id
    target = place / label
    try:
        make_directories(place, mode)
        paths.cohort_dir(cohort_id).rename(target)
        sync_path(place)
    except OSError as error:
        path = paths.cohort_dir(cohort_id)
        message = f"{path} cannot be moved aside: {error.strerror}"
        raise StoreError(message, path=str(path), errno=error.errno) from error
    return target


# What lies aside

COHORTS = "cohorts"
"""The name below ``aside`` of the directories of cohorts; the others are stages."""


@dataclass(frozen=True, slots=True)
class Kept:
    """One directory that lies aside.

    Attributes:
        kind: a stage, ``cohorts``, or ``answers`` for lines of a dead run's log that could not be read.
        name: the gen_id, or the cohort's id.
        label: the run that put it there.
        size_bytes: of its files.
        modified_s: when it was put there, in seconds of the epoch.
    """

    kind: str
    name: str
    label: str
    path: Path
    size_bytes: int
    modified_s: float

    def to_json(self) -> Mapping[str, object]:
        """For machines."""
        return {
            "kind": self.kind,
            "name": self.name,
            "label": self.label,
            "path": str(self.path),
            "size_bytes": self.size_bytes,
        }


def list_aside(paths: Paths) -> list[Kept]:
    """Everything that lies aside, by kind and name. Links are passed over: nothing here was one."""
    found = []
    for kind in (*(stage.value for stage in STAGES), COHORTS):
        for name in _directories(paths.aside_root / kind):
            for path in _directories(name):
                size = sum(entry.stat(follow_symlinks=False).st_size for entry in _files(path))
                modified_s = path.lstat().st_ctime
                found.append(Kept(kind, name.name, path.name, path, size, modified_s))
    for entry in _files(paths.odd_answers_dir):
        status = entry.stat(follow_symlinks=False)
        path = Path(entry.path)
        found.append(Kept("answers", path.name, "", path, status.st_size, status.st_ctime))
    return found


def _directories(place: Path) -> list[Path]:
    try:
        with os.scandir(place) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []


def _files(place: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from _files(Path(entry.path))
                else:
                    yield entry
    except OSError:
        return


def empty_aside(kept: Iterable[Kept]) -> list[str]:
    """Delete directories that lie aside, for good; returns those that could not be, with the reason."""
    failed = []
    for item in kept:
        try:
            if item.path.is_dir() and not item.path.is_symlink():
                shutil.rmtree(item.path)
            else:
                item.path.unlink()
            item.path.parent.rmdir()  # refused while another version lies there
        except OSError as error:
            if item.path.exists():
                failed.append(f"{item.path}: {error.strerror}")
    return failed
