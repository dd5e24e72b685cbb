"""Adopts a cohort whose membership an older tool wrote: reads what is there, writes the full membership.

Wires the pure rules of `genworker.cohorts.adopt` to the files. It prints nothing.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice, permutations
from pathlib import Path
from typing import TextIO

from genworker.cohorts.adopt import Adoption, LeftOut, adopt_rows
from genworker.cohorts.growth import COLUMNS
from genworker.cohorts.manifest import Adopted
from genworker.core.catalog import LEVELS, Combo, guess_combos
from genworker.core.facts import Facts
from genworker.core.prompts import draft_values
from genworker.core.stages import STAGES, Stage
from genworker.errors import CatalogError, StoreError, TemplateError
from genworker.project.open import Project
from genworker.store.catalog import TemplateFiles, is_two_column, load_membership_as_it_stands
from genworker.store.cohorts import (
    Modes,
    append_combos,
    build_lock,
    keep_older,
    read_listed,
    read_registered_combos,
    refuse_linked_cohort,
    replace_file,
    write_adopted,
)
from genworker.store.index import StoreIndex
from genworker.store.reading import facts_in, read_generation

OLDER = "two-column"
"""What the name of the kept file says."""
MAX_ORDERS = 720
"""Orders of a combo's concepts that are tried: all of six."""


@dataclass(slots=True)
class AdoptResult:
    """What an adoption found and wrote.

    Attributes:
        rows: completed rows per stage.
        left_out: rows that could not be completed, each with its reason.
        kept: where the older file lies now; ``None`` when nothing was written.
        new_combos: combos that were registered.
        unmade: combos whose drafts' prompts today's concepts and templates do not give.
        notes: what else a user should know, in sentences.
    """

    cohort_id: str
    rows: dict[Stage, int] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    kept: Path | None = None
    new_combos: int = 0
    unmade: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    is_adopted_already: bool = False


def adopt_cohort(project: Project, cohort_id: str, *, dry_run: bool = False) -> AdoptResult:
    """Write the full membership of a cohort that has a two-column one.

    Rows that cannot be completed are left out of it; the older file, which has them, stays beside it.

    Raises:
        UsageError, MembershipError: there is no such cohort, or its file cannot be read.
        StoreError: a file to be written is a link, or the disk refused.
    """
    paths = project.paths
    refuse_linked_cohort(paths, cohort_id)
    result = AdoptResult(cohort_id)
    if not is_two_column(paths, cohort_id):
        load_membership_as_it_stands(paths, cohort_id)  # which says what is wrong with it, if anything is
        result.is_adopted_already = True
        return result
    columns, listed = read_listed(paths, cohort_id)
    index = StoreIndex(paths)

    def read(stage: Stage, gen_id: str) -> Facts | str:
        if gen_id not in index.names(stage):
            return "it is not in the store, so nothing is known of it"
        facts = facts_in(str(paths.generation_dir(stage, gen_id)), stage)
        return facts or "it has no metadata.json that can be read"

    adoption = adopt_rows(
        listed,
        cohort_id,
        read,
        lambda stage, gen_id: index.is_done(stage, gen_id) or index.failure(stage, gen_id) is not None,
    )
    result.left_out = adoption.left_out
    result.rows = {stage: sum(row.stage is stage for row, _ in adoption.rows) for stage in STAGES}
    adopted = _how_made(project, adoption, result)
    _note(project, result)
    if not dry_run:
        _write(project, adoption, columns, adopted, result)
    return result


def _note(project: Project, result: AdoptResult) -> None:
    paths, cohort_id = project.paths, result.cohort_id
    manifest, spec = paths.cohort_manifest_json(cohort_id), paths.cohort_older_spec(cohort_id)
    if manifest.exists():
        name = paths.cohort_adopted_json(cohort_id).name
        result.notes.append(f"{manifest} is the older project's and stays as it is; genworker's is {name}.")
    if spec.exists():
        result.notes.append(
            f"{spec} stays as it is. To build further rows by it: genworker cohort import-spec {cohort_id}"
        )


def _write(
    project: Project, adoption: Adoption, columns: tuple[str, ...], adopted: Adopted, result: AdoptResult
) -> None:
    from genworker import __version__

    paths, path = project.paths, project.paths.cohort_membership_csv(result.cohort_id)
    modes = Modes.of(group_permissions=project.loaded.settings.group_permissions)

    def write(stream: TextIO) -> None:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow((*COLUMNS, *columns))
        for row, item in adoption.rows:
            writer.writerow((*row[: len(COLUMNS)], *item.others))

    with build_lock(paths, modes):
        result.kept = keep_older(path, OLDER, modes)
        result.new_combos = append_combos(paths, _unregistered(project, adopted), modes)
        record = adopted.to_json(result.cohort_id, __version__, result.kept.name)
        write_adopted(paths, result.cohort_id, record, modes)
        replace_file(path, write, modes)


def _unregistered(project: Project, adopted: Adopted) -> list[Combo]:
    registered = read_registered_combos(project.paths)
    return [combo for name, combo in adopted.combos.items() if name not in registered]


# How the drafts were made


def _how_made(project: Project, adoption: Adoption, result: AdoptResult) -> Adopted:
    """The templates' digests, and the combos in the order and at the level that the drafts' prompts have."""
    templates = TemplateFiles(project.paths)
    digests: dict[str, str] = {}
    drafts: dict[str, list[tuple[str, str]]] = {}
    for row, _ in adoption.rows:
        name = f"{row.stage.value}/{row.template_id}"
        if name not in digests and row.template_id not in project.catalog.copies(row.stage):
            try:
                digests[name] = templates.digest(row.stage, row.template_id)
            except CatalogError:
                continue  # gone: there is nothing to compare with later either
        if row.stage.is_root:
            drafts.setdefault(row.combo_id, []).append((row.template_id, row.gen_id))
    unknown = [name for name in drafts if name not in project.catalog.combos]
    guessed = guess_combos(unknown, list(project.catalog.concepts.values()))
    combos: dict[str, Combo] = {}
    for name, made in drafts.items():
        combo = project.catalog.combos.get(name) or guessed.get(name)
        if combo is None:
            result.notes.append(
                f"The combo {name} is registered nowhere, and no set of the concepts has its id."
            )
            continue
        found = _as_made(project, templates, combo, made)
        if found is None:
            result.unmade.append(name)
        combos[name] = found or combo
    return Adopted(combos, digests)


def _as_made(
    project: Project, templates: TemplateFiles, combo: Combo, made: list[tuple[str, str]]
) -> Combo | None:
    """The combo as it gives the prompt of one of its drafts; ``None`` when it gives none of them."""
    has_prompt = False
    for template_id, gen_id in made:
        try:
            prompt = read_generation(project.paths.gens_root, STAGES[0], gen_id).prompt_text
            template = templates.get(STAGES[0], template_id)
        except (StoreError, CatalogError):
            continue
        if prompt is None:
            continue
        has_prompt = True
        for candidate in _candidates(combo):
            try:
                made_now = template.render(draft_values(project.catalog.draft_concepts(candidate)))
                if made_now == prompt.replace("\r\n", "\n"):
                    return candidate
            except TemplateError:
                break
    return None if has_prompt else combo


def _candidates(combo: Combo) -> Iterator[Combo]:
    """The combo as it is registered, in the order of its concepts' ids, then in any order at any level."""
    yield combo
    for level in (combo.level, *(level for level in LEVELS if level != combo.level)):
        for order in islice(permutations(sorted(combo.concept_ids)), MAX_ORDERS):
            yield Combo(combo.combo_id, order, level, combo.k_max)
