"""One cohort's build: settings, catalogue, specification and store in; membership and manifest out.

Wires the pure compiler to the files, as `genworker.run.engine` wires a run. It prints nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from genworker.cohorts.axes import (
    DEFAULT_K_MAX,
    DEFAULT_LEVEL,
    Axes,
    AxesDraft,
    ComboChoice,
    Registers,
    active,
    catalog_axes,
    check_size,
    conflicting_combos,
    empty_axes,
    undescribed,
)
from genworker.cohorts.compile import Given, compile_rows, twins
from genworker.cohorts.curated import given_rows
from genworker.cohorts.growth import FileRows, Growth
from genworker.cohorts.manifest import Earlier, Manifest, Source, derived_cohort_id, template_records
from genworker.cohorts.spec import Specification, spec_axes
from genworker.core.catalog import LEVELS, Catalog
from genworker.core.facts import Facts
from genworker.core.membership import MembershipRow
from genworker.core.prompts import TRIAL_TEXT, draft_values, trial_values
from genworker.core.stages import STAGES, Stage
from genworker.errors import (
    ANY,
    CatalogError,
    Fault,
    FaultyInputError,
    MembershipError,
    TemplateError,
    UsageError,
)
from genworker.paths import TEMPLATES_ROOT_VARIABLE, Paths
from genworker.project.open import Project, faults_of, pair_fault
from genworker.store.catalog import TemplateFiles, is_two_column, listed_combos
from genworker.store.cohorts import (
    Modes,
    append_combos,
    build_lock,
    catalogue_digests,
    keep_foreign_manifest,
    read_earlier,
    read_facts,
    read_file_rows,
    read_id_list,
    read_registered_combos,
    read_selected_combos,
    read_specification,
    refuse_linked_cohort,
    remove_leftovers,
    replace_file,
    write_manifest,
    write_membership,
)
from genworker.store.index import StoreIndex

TOKENS_PER_CHAR = 1.2 / 4
"""A usual guess: four characters to a token, and a fifth on top."""
SAMPLED_COMBOS = 200
SHOWN_ROWS = 50


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What a user asks of one build.

    Attributes:
        cohort_id: ``None`` to derive one from the axes.
        essays: a list of essays to build upon.
        drafts: a list of drafts to build upon.
    """

    cohort_id: str | None = None
    k_max: int | None = None
    level: str | None = None
    essays: Path | None = None
    drafts: Path | None = None


@dataclass(frozen=True, slots=True)
class CohortPlan:
    """A cohort that is ready to be compiled: everything in it has been checked.

    Attributes:
        notes: what a user may not expect, in sentences.
        templates: the digest of each template's text, by ``stage/template_id``.
    """

    project: Project
    cohort_id: str
    axes: Axes
    given: Given | None
    source: Source
    choice: ComboChoice
    earlier: Earlier
    notes: tuple[str, ...]
    template_files: TemplateFiles
    templates: Mapping[str, str]

    def rows(self, file: FileRows) -> Iterator[MembershipRow]:
        """The compiled rows.

        Args:
            file: the cohort's membership as it stands, whose sample of pairs is kept.
        """
        return compile_rows(self.axes, self.cohort_id, self.given, file.pairs)


@dataclass(slots=True)
class Survey:
    """What a cohort consists of, counted while its rows go by.

    Attributes:
        file: the rows of the cohort's file.
        growth: what is new, what stays and what would disappear.
        in_store: rows whose generation is there and good, per stage.
        calls: rows that a run would ask a model for, per (stage, template).
        copies: rows that a run would copy, per stage.
    """

    file: FileRows
    growth: Growth
    rows: Counter[Stage] = field(default_factory=Counter)
    in_store: Counter[Stage] = field(default_factory=Counter)
    calls: Counter[tuple[Stage, str]] = field(default_factory=Counter)
    copies: Counter[Stage] = field(default_factory=Counter)
    new_combos: int = 0
    changed: bool = False
    older_manifest: Path | None = None

    @classmethod
    def begin(cls, plan: CohortPlan) -> Survey:
        """Nothing counted yet, against the file as it stands now."""
        file = read_file_rows(plan.project.paths, plan.cohort_id)
        return cls(file, Growth(file))

    def gone_texts(self, limit: int) -> list[str]:
        """The rows that would disappear, as they stand in the file; the last line counts those left out."""
        gone = self.growth.gone
        texts = [
            self.file.rows.get(stage, {}).get(gen_id, f"{stage},{gen_id}").strip()
            for stage, gen_id in gone[:limit]
        ]
        return [*texts, f"… and {len(gone) - limit} more (--dry-run --json)"] if len(gone) > limit else texts

    def calls_of(self, stage: Stage) -> int:
        """Calls of one stage."""
        return sum(number for (where, _), number in self.calls.items() if where is stage)


def registers(paths: Paths) -> Registers:
    """The catalogue's files, for messages."""
    return Registers(
        {stage: str(paths.templates_csv(stage)) for stage in STAGES},
        str(paths.models_csv),
        str(paths.concepts_csv),
    )


# Planning


def plan_build(project: Project, options: BuildOptions) -> CohortPlan:
    """Find out what the cohort consists of, and check all of it. Writes nothing.

    Raises:
        FaultyInputError: every fault of catalogue, specification and lists at once.
        StoreError: the cohort's directory is a link.
    """
    return _Planner(project, options).plan()


class _Planner:
    def __init__(self, project: Project, options: BuildOptions) -> None:
        self.project = project
        self.options = options
        self.paths = project.paths
        self.catalog = project.catalog
        self.registers = registers(project.paths)
        self.faults: list[Fault] = []
        self.notes: list[str] = []
        self.spec: Specification | None = None
        self.earlier = Earlier()
        self.templates = TemplateFiles(project.paths)
        self.listed: dict[str, str] | None = None

    def plan(self) -> CohortPlan:
        options = self.options
        if options.cohort_id is not None:
            refuse_linked_cohort(self.paths, options.cohort_id)
            self._refuse_two_columns(options.cohort_id)
            self.spec = read_specification(self.paths, options.cohort_id)
            self.earlier = read_earlier(self.paths, options.cohort_id)
        self._check_options()
        choice = self._choice()
        chosen = self._chosen()
        given: Given | None = None
        if chosen is not None:
            stage, file, ids = chosen
            is_default = file == str(self.paths.selected_essays_txt)
            source = Source(f"{stage.value}s", file=self._default_name() if is_default else file)
            given, faults = given_rows(
                stage,
                ids,
                options.cohort_id or "x",
                self._facts,
                self.catalog,
                self.registers,
                self._configured_models(),
                file,
            )
            self.faults += faults
            axes = self._curated_axes(stage)
        elif self.spec is not None:
            source = Source("spec", spec=self.spec.document)
            axes = self._take(
                spec_axes(self.spec, self.catalog, choice, self.registers, self._configured_models())
            )
        else:
            source = Source("product")
            axes = self._take(catalog_axes(self.catalog, choice, self.registers))
            self._note_unused(choice)
        self._note_left_out(axes)
        cohort_id = options.cohort_id or derived_cohort_id(axes, given)
        if options.cohort_id is None:
            refuse_linked_cohort(self.paths, cohort_id)
            self.earlier = read_earlier(self.paths, cohort_id)
            given = given and _in_cohort(given, cohort_id)
        digests = self._check(axes, cohort_id, given)
        # What nobody uses may be wrong; what is used is said first, since it may explain the rest.
        self.faults[:0] = faults_of(self.project, _used(axes, given))
        if self.faults:
            raise FaultyInputError(
                list(dict.fromkeys(self.faults)), title="the cohort cannot be built, nothing was written"
            )
        return CohortPlan(
            self.project,
            cohort_id,
            axes,
            given,
            source,
            choice,
            self.earlier,
            tuple(self.notes),
            self.templates,
            digests,
        )

    def _take(self, draft: AxesDraft) -> Axes:
        # In a register with faults an axis may look empty that is not.
        faulty = {fault.where for fault in self.project.catalog_faults}
        self.faults += [fault for fault in draft.faults if fault.where not in faulty]
        return draft.axes

    def _configured_models(self) -> list[str]:
        return [name for name, model in self.project.loaded.settings.models.items() if model.model]

    def _facts(self, stage: Stage, gen_id: str) -> Facts | str:
        """The metadata of a generation; an adopted draft's combo may stand in a membership alone."""
        facts = read_facts(self.paths, stage, gen_id)
        if isinstance(facts, str) or facts.combo_id or not stage.is_root:
            return facts
        if self.listed is None:
            self.listed = listed_combos(self.paths)
        combo = self.listed.get(gen_id)
        return facts if combo is None else facts.changed(combo_id=combo)

    def _refuse_two_columns(self, cohort_id: str) -> None:
        """Refuse to add to a membership that says too little of its rows; note a specification beside it.

        Raises:
            MembershipError: the cohort has not been adopted yet.
        """
        path, older = self.paths.cohort_membership_csv(cohort_id), self.paths.cohort_older_spec(cohort_id)
        if path.exists() and is_two_column(self.paths, cohort_id):
            what = "this is a membership of an older layout, whose metadata say what its columns do not"
            fix = f"adopt it: genworker cohort adopt {cohort_id}; or move it away to build it anew"
            raise MembershipError([Fault(what, where=str(path), line=1, fix=fix)])
        if older.exists() and not self.paths.cohort_spec_toml(cohort_id).exists():
            self.notes.append(f"{older} is not used; to use it: genworker cohort import-spec {cohort_id}")

    # What is asked for

    def _check_options(self) -> None:
        options, faults = self.options, []
        if options.essays is not None and options.drafts is not None:
            faults.append(
                Fault("--essays and --drafts are both given", fix="an essay list names its drafts too")
            )
        if options.k_max is not None and options.k_max < 1:
            faults.append(Fault(f"--k-max is {options.k_max}", fix="use a whole number from 1"))
        if options.level is not None and options.level not in LEVELS:
            faults.append(Fault(f"unknown level {options.level!r}", fix=f"use {', '.join(LEVELS)}"))
        if self.spec is not None:
            stated = set(self.spec.document)
            for flag, value, clash in (
                ("--essays", options.essays, True),
                ("--drafts", options.drafts, True),
                ("--k-max", options.k_max, bool({"k_max", "combos"} & stated)),
                ("--level", options.level, "level" in stated),
            ):
                if value is not None and clash:
                    faults.append(
                        Fault(
                            f"{flag} is given, but the cohort's specification states what it consists of",
                            where=self.spec.where,
                            fix=f"change the file, leave {flag} out, or build under another name",
                        )
                    )
        if faults:
            raise UsageError(faults)

    def _choice(self) -> ComboChoice:
        options, earlier = self.options, self.earlier
        again = self.spec is None and earlier.mode == "product"
        return ComboChoice(
            level=options.level or (earlier.level if again else None) or DEFAULT_LEVEL,
            k_max=options.k_max or (earlier.k_max if again else None) or DEFAULT_K_MAX,
            selected=read_selected_combos(self.paths),
            selected_file=str(self.paths.selected_combos_csv),
        )

    def _note_unused(self, choice: ComboChoice) -> None:
        if choice.selected is not None:
            note = f"The combos are those of {self.paths.selected_combos_csv}"
            if self.options.k_max is not None or self.options.level is not None:
                note += "; --k-max and --level do not apply to them"
            self.notes.append(f"{note}.")
        if self.earlier.mode == "product" and self._selected_essays():
            self.notes.append(
                f"{self.paths.selected_essays_txt} is not used: this cohort was built as a full product. "
                "Name the file with --essays, or build under another name."
            )

    def _note_left_out(self, axes: Axes) -> None:
        """Say which stages the cohort ends before, where nobody has asked for that."""
        if self.spec is None or "pairs" not in self.spec.document:
            for stage in STAGES:
                for entry in self.catalog.templates[stage].values():
                    if entry.active and entry.template_id in self.catalog.pairs(stage):
                        self.notes.append(
                            f"Left out: {stage.value} template {entry.template_id}, which compares two "
                            "texts; a table [pairs] in cohort.toml says which."
                        )
        if self.spec is not None and "last_stage" in self.spec.document:
            return
        for stage in STAGES:
            if not axes.templates[stage] and not any(
                axes.templates[later] for later in STAGES if later.order > stage.order
            ):
                register = self.registers.templates[stage]
                self.notes.append(f"Left out: {stage.value}s, since {register} has no active template.")

    def _chosen(self) -> tuple[Stage, str, Sequence[tuple[int | None, str]]] | None:
        """The generations to build upon: their stage, the list's name, and (line, gen_id) of each."""
        if self.spec is not None:
            return None
        for stage, file in ((Stage.ESSAY, self.options.essays), (Stage.DRAFT, self.options.drafts)):
            if file is not None:
                ids = self._read_list(file)
                if not ids and not self.faults:
                    raise UsageError([Fault("the list names no generation", where=str(file))])
                return stage, str(file), ids
        default = self.paths.selected_essays_txt
        if self.earlier.mode in ("drafts", "essays"):
            # A list that was named once need not be named again, nor lie where it lay.
            if self.earlier.given_file == self._default_name() and (ids := self._selected_essays()):
                return Stage.ESSAY, str(default), ids
            essays = self.earlier.given_essays
            names = essays if essays is not None else self.earlier.given_drafts
            self.notes.append(
                "The generations to build upon are those of the earlier build; name another list with "
                "--essays or --drafts."
            )
            file_name = self.earlier.given_file or str(
                self.paths.cohort_manifest_json(self.options.cohort_id or "")
            )
            return (
                (Stage.DRAFT if essays is None else Stage.ESSAY),
                file_name,
                [(None, name) for name in names],
            )
        if self.earlier.mode is None and (ids := self._selected_essays()):
            self.notes.append(
                f"Curated: the essays are those of {default}. Remove that file for the full product."
            )
            return Stage.ESSAY, str(default), ids
        return None

    def _default_name(self) -> str:
        return self.paths.selected_essays_txt.relative_to(self.paths.data_root).as_posix()

    def _selected_essays(self) -> list[tuple[int, str]]:
        path = self.paths.selected_essays_txt
        return self._read_list(path) if path.exists() else []

    def _read_list(self, path: Path) -> list[tuple[int, str]]:
        ids, faults = read_id_list(path)
        self.faults += faults
        return ids

    def _curated_axes(self, stage: Stage) -> Axes:
        templates, models = active(self.catalog)
        templates[Stage.DRAFT] = ()
        if stage is Stage.ESSAY:
            templates[Stage.ESSAY] = ()
        axes = Axes((), templates, models, dict(self.catalog.replicates))
        first = stage.child
        assert first is not None, "drafts and essays are built upon, and evaluations come last"
        if not templates[first]:
            self.faults.append(
                Fault(
                    f"no {first.value} template is active, so nothing would be made of the {stage.value}s",
                    where=self.registers.templates[first],
                    fix="set active to True for at least one",
                )
            )
        else:
            # Of the stages that are given nothing is missing: only models are asked for.
            self.faults += [fault for fault in empty_axes(axes, self.registers) if fault.column is not None]
        return axes

    # Checks

    def _check(self, axes: Axes, cohort_id: str, given: Given | None) -> dict[str, str]:
        """Everything that building would trip over; the digests of the templates."""
        registered = read_registered_combos(self.paths)
        self.faults += check_size(axes)
        self.faults += undescribed(axes, self.catalog, self.registers)
        self.faults += conflicting_combos(axes.combos, registered, str(self.paths.combo_mappings_csv))
        digests: dict[str, str] = {}
        for stage in STAGES:
            for template_id in axes.templates[stage]:
                self._check_template(axes, stage, template_id, digests)
        for row in () if given is None else (*given.drafts, *(given.essays or ())):
            name = f"{row.stage.value}/{row.template_id}"
            path = self.paths.template_file(row.stage, row.template_id)
            if name not in digests and path.is_file() and not self._is_copy(row.stage, row.template_id):
                digests[name] = self.templates.digest(row.stage, row.template_id)
        if not self.faults:
            self.faults += twins(axes, cohort_id, self.catalog, self.registers, given)
        return digests

    def _is_copy(self, stage: Stage, template_id: str) -> bool:
        entry = self.catalog.templates[stage].get(template_id)
        return entry is not None and entry.generator == "copy"

    def _check_template(self, axes: Axes, stage: Stage, template_id: str, digests: dict[str, str]) -> None:
        if self._is_copy(stage, template_id):
            return
        path = self.paths.template_file(stage, template_id)
        if not path.exists():
            entry = self.catalog.templates[stage].get(template_id)
            self.faults.append(
                Fault(
                    f"the {stage.value} template {template_id!r} is listed, but its file {path} is missing",
                    where=self.registers.templates[stage],
                    line=entry.line if entry is not None else None,
                    column="template_id",
                    fix=f"write the file, set active to False, or point {TEMPLATES_ROOT_VARIABLE} "
                    "at the directory that has it",
                )
            )
            return
        try:
            digests[f"{stage.value}/{template_id}"] = self.templates.digest(stage, template_id)
            template = self.templates.get(stage, template_id)
            fault = pair_fault(self.project, self.templates, stage, template_id)
            values = trial_values(template, TRIAL_TEXT) if not stage.is_root else None
            if values is None and axes.combos:
                values = draft_values(self.catalog.draft_concepts(axes.combos[0]))
            if fault is not None:
                self.faults.append(fault)
            elif values is not None:
                template.render(values)
        except CatalogError as error:
            self.faults += error.faults
        except TemplateError as error:
            self.faults.append(
                Fault(str(error), where=str(path), line=error.line, fix="correct the template")
            )


def _used(axes: Axes, given: Given | None) -> set[tuple[str, str]]:
    """(kind, id) of every entry of the catalogue that a cohort uses."""
    # What is multiplied stands in the registers, so each of them must be readable.
    used = {(kind, ANY) for kind in (*STAGES, "model", "concept", "combo")}
    used |= {("replicates", stage.value) for stage in STAGES}
    used |= {("combo", combo.combo_id) for combo in axes.combos}
    used |= {(stage.value, name) for stage in STAGES for name in axes.templates[stage]}
    used |= {("model", name) for names in axes.models.values() for name in names}
    used |= {("concept", name) for combo in axes.combos for name in combo.concept_ids}
    for row in () if given is None else (*given.drafts, *(given.essays or ())):
        used |= {(row.stage.value, row.template_id), ("model", row.llm_model_id or "")}
    return used


def _in_cohort(given: Given, cohort_id: str) -> Given:
    def moved(rows: Sequence[MembershipRow]) -> tuple[MembershipRow, ...]:
        return tuple(row._replace(cohort_id=cohort_id) for row in rows)

    return Given(moved(given.drafts), None if given.essays is None else moved(given.essays))


# Looking and writing


def survey(plan: CohortPlan) -> Survey:
    """Count what the cohort consists of, against its file and the store. Writes nothing."""
    found = Survey.begin(plan)
    for row in _counted(plan, found, plan.rows(found.file)):
        found.growth.take(row)
    registered = read_registered_combos(plan.project.paths)
    found.new_combos = sum(combo.combo_id not in registered for combo in plan.axes.combos)
    return found


def _counted(plan: CohortPlan, found: Survey, rows: Iterable[MembershipRow]) -> Iterator[MembershipRow]:
    index = StoreIndex(plan.project.paths)
    names = {stage: index.names(stage) for stage in STAGES}
    copies = {stage: plan.project.catalog.copies(stage) for stage in STAGES}
    for row in rows:
        stage = row.stage
        found.rows[stage] += 1
        if row.gen_id in names[stage] and index.is_done(stage, row.gen_id):
            found.in_store[stage] += 1
        elif row.gen_id in names[stage] and index.failure(stage, row.gen_id) is not None:
            pass  # an answer that is not usable: `retry` asks again, a run does not
        elif row.template_id in copies[stage]:
            found.copies[stage] += 1
        else:
            found.calls[stage, row.template_id] += 1
        yield row


def write_build(plan: CohortPlan, *, prune: bool = False) -> Survey:
    """Write the membership and what belongs to it, each file whole.

    Args:
        prune: let rows of the file disappear that the experiment does not have any more. Their
            generations stay in the store.

    Raises:
        UsageError: rows would disappear, and `prune` is not set; nothing is written.
        StoreError: the disk refused.
    """
    paths, cohort_id = plan.project.paths, plan.cohort_id
    modes = Modes.of(group_permissions=plan.project.loaded.settings.group_permissions)
    with build_lock(paths, modes):
        remove_leftovers(paths, cohort_id)
        found = Survey.begin(plan)

        def write(stream: TextIO) -> None:
            replicates = max(plan.axes.replicates.values())
            columns = found.file.columns(replicates, pairs=plan.axes.pairs is not None)
            rows = _counted(plan, found, plan.rows(found.file))
            write_membership(stream, rows, found.file, found.growth, columns)
            if found.growth.gone and not prune:
                raise UsageError([_gone_fault(plan, found)])
            # Before the membership takes its place, so that it never names what is not registered.
            found.new_combos = append_combos(paths, plan.axes.combos, modes)
            found.older_manifest = keep_foreign_manifest(paths, cohort_id, modes)
            write_manifest(paths, cohort_id, manifest(plan, found.rows).to_json(), modes)

        found.changed = replace_file(paths.cohort_membership_csv(cohort_id), write, modes)
    return found


def _gone_fault(plan: CohortPlan, found: Survey) -> Fault:
    shown = "".join(f"\n  {text}" for text in found.gone_texts(SHOWN_ROWS))
    return Fault(
        f"{len(found.growth.gone)} rows would disappear, nothing was written:{shown}",
        where=str(plan.project.paths.cohort_membership_csv(plan.cohort_id)),
        fix="add --prune to drop them (their generations stay in the store), or build under another name",
    )


def manifest(plan: CohortPlan, rows: Mapping[Stage, int]) -> Manifest:
    """What the membership was compiled from."""
    from genworker import __version__

    paths = plan.project.paths
    concepts = {concept for combo in plan.axes.combos for concept in combo.concept_ids}
    files = [
        *(paths.templates_csv(stage) for stage in STAGES),
        paths.models_csv,
        paths.concepts_csv,
        paths.replication_csv,
        paths.selected_combos_csv,
        paths.cohort_spec_toml(plan.cohort_id),
        *(paths.concept_description(concept, level) for concept in sorted(concepts) for level in LEVELS),
    ]
    if plan.source.spec is not None:
        beside = paths.cohort_dir(plan.cohort_id)
        couples = plan.source.spec.get("couple", ())
        files += [beside / couple["csv"] for couple in couples if "csv" in couple]
    return Manifest(
        plan.cohort_id,
        __version__,
        plan.source,
        plan.axes.to_json(),
        plan.choice.level,
        plan.choice.k_max,
        plan.given,
        {stage: rows[stage] for stage in STAGES},
        template_records(plan.templates, plan.earlier.templates),
        catalogue_digests(paths, files),
    )


# Estimates


def estimate_tokens(plan: CohortPlan, found: Survey) -> dict[Stage, int]:
    """Input tokens of the calls that a run would make, by characters alone.

    Drafts are rendered (a sample of them where there are many). What essays and evaluations build upon is
    not written yet: theirs are the tokens of the templates without it.
    """
    tokens = dict.fromkeys(STAGES, 0)
    for (stage, template_id), calls in found.calls.items():
        chars = mean_chars(plan.axes, plan.project.catalog, plan.template_files, stage, template_id)
        tokens[stage] += round(calls * chars * TOKENS_PER_CHAR)
    return tokens


def mean_chars(
    axes: Axes, catalog: Catalog, templates: TemplateFiles, stage: Stage, template_id: str
) -> float:
    """Characters of one prompt of a template, on average."""
    template = templates.get(stage, template_id)
    if not stage.is_root:
        return len(template.render(trial_values(template, "")))
    combos = axes.combos
    step = max(1, len(combos) // SAMPLED_COMBOS)
    sample = combos[::step]
    lengths = [len(template.render(draft_values(catalog.draft_concepts(combo)))) for combo in sample]
    return sum(lengths) / max(1, len(lengths))


def axis_values(plan: CohortPlan) -> dict[str, tuple[str, ...]]:
    """The axes that this cohort multiplies, with their values in words."""
    axes, found = plan.axes, {}
    if axes.combos:
        found["combos"] = axes.values("combo")
    for stage in STAGES:
        if axes.templates[stage]:
            found[f"{stage.value} templates"] = axes.templates[stage]
            if axes.models.get(stage):
                found[f"{stage.value} models"] = axes.models[stage]
    return found
