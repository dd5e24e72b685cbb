"""A data root with its settings and its catalogue, its memberships and what is to be done of them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genworker.core.catalog import Catalog, Combo, guess_combos
from genworker.core.generation import Answer, Failure, answer_again, finish
from genworker.core.ids import id_fault
from genworker.core.membership import Known, Membership, MembershipRow
from genworker.core.parsers import CHOICE_PARSER, get_parser
from genworker.core.plan import Plan, make_plan
from genworker.core.stages import STAGES, Stage
from genworker.errors import ANY, CatalogError, CatalogFault, Fault, StoreError
from genworker.paths import Paths
from genworker.project.plugins import load_parser_plugins
from genworker.project.settings import LoadedSettings, load_settings
from genworker.store.catalog import (
    TemplateFiles,
    load_membership,
    load_membership_as_it_stands,
    read_catalog,
)
from genworker.store.cohorts import read_adopted
from genworker.store.format import refuse_newer
from genworker.store.index import StoreIndex
from genworker.store.reading import read_generation


@dataclass(frozen=True, slots=True)
class Project:
    """A data root with its settings and its catalogue.

    Attributes:
        catalog_faults: what is wrong in the catalogue; refused by what runs, passed over by what reads. What
            is wrong with a concept's descriptions joins it when they are read.
    """

    loaded: LoadedSettings
    paths: Paths
    catalog: Catalog
    catalog_faults: list[Fault]

    def demands(self, stage: Stage, template_id: str) -> dict[str, Any] | None:
        """What an answer to a template is judged by, as `genworker.core.generation.finish` reads it.

        Returns:
            ``parser``, and ``min_lines`` and ``min_chars`` where they are demanded: by the template's row,
            else by the stage's settings. ``None`` when the catalogue does not know the template.
        """
        entry = self.catalog.templates[stage].get(template_id)
        if entry is None:
            return None
        section = self.loaded.settings.stages.get(stage)
        found: dict[str, Any] = {"parser": entry.parser or "identity"}
        for name in ("min_lines", "min_chars"):
            least = getattr(entry, name) or getattr(section, name, None)
            if least is not None:
                found[name] = least
        return found

    def known(self) -> Known:
        """What membership rows may name."""
        models = set(self.catalog.models) | {
            name for name, model in self.loaded.settings.models.items() if model.model
        }
        return Known(
            templates={stage: frozenset(self.catalog.templates[stage]) for stage in STAGES},
            copies={stage: self.catalog.copies(stage) for stage in STAGES},
            models=models,
            template_files={stage: str(self.paths.templates_csv(stage)) for stage in STAGES},
            models_file=str(self.paths.models_csv),
            pairs={stage: self.catalog.pairs(stage) for stage in STAGES},
        )


def open_project(config: Path | None = None, data_root: Path | None = None) -> Project:
    """Read settings and catalogue, and register the parsers of other packages.

    Raises:
        ConfigError: the settings are wrong. Faults of the catalogue and of parsers are only collected.
        StoreError: the data root was written by a newer genworker.
    """
    loaded = load_settings(config, {} if data_root is None else {"data_root": data_root})
    paths = Paths.from_str(loaded.settings.data_root)
    refuse_newer(paths)
    plugin_faults = load_parser_plugins()
    catalog, faults = read_catalog(paths)
    faults[:0] = plugin_faults
    return Project(loaded, paths, catalog, faults)


def open_membership(project: Project, cohort_id: str, *, strict: bool) -> Membership:
    """Read a cohort.

    Args:
        strict: refuse names that the catalogue does not know, and a catalogue with faults.

    Raises:
        CatalogError, MembershipError, UsageError: every fault at once.
    """
    if not strict:
        return load_membership_as_it_stands(project.paths, cohort_id)
    index = StoreIndex(project.paths)
    if id_fault(cohort_id) is None and project.catalog_faults:
        general = faults_of(project, frozenset())
        if general:
            raise CatalogError(general, title="the catalogue is refused, nothing was sent")
        # Before its rows: a register that cannot be read explains why it knows none of their names.
        refuse_faults_of(project, load_membership_as_it_stands(project.paths, cohort_id), "nothing was sent")
    membership = load_membership(
        project.paths,
        cohort_id,
        project.known(),
        lambda stage, gen_id: index.is_done(stage, gen_id) or index.failure(stage, gen_id) is not None,
    )
    refuse_faults_of(project, membership, "nothing was sent")
    return membership


def refuse_faults_of(project: Project, membership: Membership, outcome: str) -> None:
    """Refuse what is wrong in the part of the catalogue that a cohort uses; faults elsewhere are not its own.

    Raises:
        CatalogError: every such fault at once.
    """
    used: set[tuple[str, str]] = set()
    for row in membership.rows:
        used.add((row.stage.value, row.template_id))
        if row.llm_model_id:
            used.add(("model", row.llm_model_id))
        if row.stage.is_root:
            used |= {("combo", row.combo_id), ("concept", ANY)}
            if row.combo_id in project.catalog.combos:
                concepts = project.catalog.combos[row.combo_id].concept_ids
                used.update(("concept", name) for name in concepts)
    faults = faults_of(project, used)
    if faults:
        raise CatalogError(faults, title=f"the catalogue is refused, {outcome}")


def faults_of(project: Project, used: Collection[tuple[str, str]]) -> list[Fault]:
    """The faults that are everybody's, of registers that are used, and of entries that are, as (kind, id)."""
    catalog = project.catalog
    concerned = {*used, *((kind, ANY) for kind, _ in used)}
    for kind, name in used:
        if kind == "concept" and name in catalog.concepts:
            len(catalog.concepts[name].descriptions)  # read, so that their faults are known
        elif kind in STAGES and (entry := catalog.templates[Stage(kind)].get(name)) and entry.parser:
            concerned.add(("parser", f"{kind}.{entry.parser}"))
            try:
                get_parser(Stage(kind), entry.parser)
            except LookupError:
                concerned.add(("parser", ANY))
    return [
        fault
        for fault in project.catalog_faults
        if not isinstance(fault, CatalogFault) or fault.concerns is None or fault.concerns in concerned
    ]


def cohort_combos(project: Project, membership: Membership) -> dict[str, Combo]:
    """The combos of a cohort: as its drafts were adopted, as they are registered, or found from their ids."""
    combos = {**project.catalog.combos, **read_adopted(project.paths, membership.cohort_id).combos}
    wanted = {row.combo_id for row in membership.rows if row.stage.is_root}
    unknown = {name for name in wanted if name not in combos}
    if unknown:
        combos.update(guess_combos(unknown, list(project.catalog.concepts.values())))
    return combos


Redo = Callable[[int, Failure | None], bool]


def plan_cohort(
    project: Project, membership: Membership, redo: Redo | None = None, index: StoreIndex | None = None
) -> Plan:
    """What is to be done, as the store stands now, or stood when `index` was taken.

    The one plan of `plan`, `run`, `retry` and `status`: answers that the present parser can read are told
    from those that it cannot.
    """

    def parses(job: int) -> bool:
        answer = stored_answer(project, membership.rows[job])
        return answer is not None and finish(answer).parsed_text is not None

    return make_plan(membership, index or StoreIndex(project.paths), redo, parses)


def stored_answer(project: Project, row: MembershipRow) -> Answer | None:
    """The answer that the store holds for a row, to be judged by the parser of today.

    Returns:
        ``None`` where there is no answer, it cannot be read, or the catalogue does not know its template.
    """
    demands = project.demands(row.stage, row.template_id)
    if demands is None:
        return None
    try:
        stored = read_generation(project.paths.gens_root, row.stage, row.gen_id)
    except StoreError:
        return None
    return answer_again(stored, row, demands) if stored.raw_text else None


def pair_fault(project: Project, templates: TemplateFiles, stage: Stage, template_id: str) -> Fault | None:
    """A template whose text and whose parser do not agree on whether it compares two texts.

    Raises:
        CatalogError: its file is not usable.
    """
    template = templates.get(stage, template_id)
    compares = template_id in project.catalog.pairs(stage)
    where = str(project.paths.template_file(stage, template_id))
    names = " and ".join(f"{{{{ {name} }}}}" for name in stage.pair_variables)
    if template.misses is not None:
        what = f"the template {template_id!r} compares two texts and shows one: {template.misses} is missing"
        return Fault(what, where=where, fix=f"write {names} where they belong")
    if template.reads_two and not compares:
        what = f"the template {template_id!r} compares two texts, and its parser reads no choice"
        register = str(project.paths.templates_csv(stage))
        return Fault(what, where=register, column="parser", fix=f"set its parser to {CHOICE_PARSER}")
    if compares and not template.reads_two:
        what = f"the template {template_id!r} has the parser {CHOICE_PARSER!r} and does not show two texts"
        return Fault(what, where=where, fix=f"write {names} where they belong, or name another parser")
    return None
