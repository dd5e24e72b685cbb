"""What an experiment multiplies: its axes, and the couplings that leave parts of their product out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import comb
from typing import Any

from genworker.core.catalog import Catalog, Combo, Concept, ModelEntry, TemplateEntry
from genworker.core.ids import combo_id
from genworker.core.stages import STAGES, Stage
from genworker.errors import Fault

AXES = (
    "combo",
    "draft_template",
    "draft_model",
    "essay_template",
    "evaluation_template",
    "evaluation_model",
)
"""The axes in the order in which a lineage meets them. Replicates are no axis: nothing is coupled to them."""

STAGE_ENDS: Mapping[Stage, int] = {Stage.DRAFT: 3, Stage.ESSAY: 4, Stage.EVALUATION: 6}
"""How many axes are decided once a stage is reached."""

MODEL_STAGES = (Stage.DRAFT, Stage.EVALUATION)
"""Stages with models of their own: an essay is written by its draft's."""

DEFAULT_LEVEL = "paragraph"
DEFAULT_K_MAX = 2
MAX_ROWS = 50_000_000
"""A product beyond this is a slip of the pen, and would fill the disk before anyone noticed."""


@dataclass(frozen=True, slots=True)
class Coupling:
    """Allowed tuples of axis values; what it does not name is left out of the product.

    Attributes:
        axes: names out of `AXES`.
        allowed: tuples in the order of `axes`.
        where: the file that states it.
        line: its line there, when it is known.
    """

    axes: tuple[str, ...]
    allowed: frozenset[tuple[str, ...]]
    where: str
    line: int | None = None


@dataclass(frozen=True, slots=True)
class Axes:
    """One experiment. Every list is in the catalogue's order, without repetitions.

    Attributes:
        templates: empty for the stages that the experiment does not have.
        models: of drafts and of evaluations.
        replicates: from 1.
    """

    combos: tuple[Combo, ...]
    templates: Mapping[Stage, tuple[str, ...]]
    models: Mapping[Stage, tuple[str, ...]]
    replicates: Mapping[Stage, int]
    couplings: tuple[Coupling, ...] = ()

    def values(self, axis: str) -> tuple[str, ...]:
        """The values of one axis."""
        if axis == "combo":
            return tuple(combo.combo_id for combo in self.combos)
        stage, _, kind = axis.partition("_")
        return (self.templates if kind == "template" else self.models)[Stage(stage)]

    @property
    def last_stage(self) -> Stage:
        """Where lineages end."""
        return max((stage for stage in STAGES if self.templates[stage]), key=lambda stage: stage.order)

    def largest_size(self) -> int:
        """Rows of the full product, before couplings."""
        size = 0
        for stage in reversed(STAGES):
            if self.templates[stage]:
                width = len(self.templates[stage]) * self.replicates[stage]
                if stage in MODEL_STAGES:
                    width *= len(self.models[stage])
                size = width * (1 + size)
        return size * len(self.combos)

    def to_json(self) -> dict[str, Any]:
        """The axes as the manifest has them; equal experiments give equal records."""
        record: dict[str, Any] = {"combos": _combos_json(self.combos)} if self.combos else {}
        for stage in STAGES:
            if not self.templates[stage]:
                continue
            record[stage.value] = {"templates": list(self.templates[stage])}
            if stage in MODEL_STAGES:
                record[stage.value]["models"] = list(self.models[stage])
            record[stage.value]["replicates"] = self.replicates[stage]
        if self.couplings:
            record["couplings"] = [
                {"axes": list(coupling.axes), "allow": sorted(map(list, coupling.allowed))}
                for coupling in self.couplings
            ]
        return record


def _combos_json(combos: Sequence[Combo]) -> dict[str, Any]:
    """All subsets of one size are named by their concepts; anything else by the combos' ids."""
    first = combos[0]
    concepts = list(dict.fromkeys(concept for combo in combos for concept in combo.concept_ids))
    facts = {"level": first.level, "k_max": first.k_max}
    if len(combos) == comb(len(concepts), first.k_max):
        subsets = make_combos(concepts, first.level, first.k_max)
        if all(mine.combo_id == full.combo_id for mine, full in zip(combos, subsets, strict=True)):
            return {"all_of": concepts, **facts, "number": len(combos)}
    return {"ids": [combo.combo_id for combo in combos], "number": len(combos)}


def make_combos(concept_ids: Sequence[str], level: str, k_max: int) -> Iterator[Combo]:
    """All subsets of `k_max` concepts, in the order of `concept_ids`."""
    for chosen in combinations(concept_ids, k_max):
        yield Combo(combo_id(chosen, level, k_max), chosen, level, k_max)


# The catalogue's order is that of its files' lines, whatever order a dictionary has.


def templates_in_order(catalog: Catalog, stage: Stage) -> list[TemplateEntry]:
    """A stage's templates, as their register lists them."""
    return sorted(catalog.templates[stage].values(), key=lambda entry: (entry.line, entry.template_id))


def models_in_order(catalog: Catalog) -> list[ModelEntry]:
    """The models, as their register lists them."""
    return sorted(catalog.models.values(), key=lambda entry: (entry.line, entry.model_id))


def concepts_in_order(catalog: Catalog) -> list[Concept]:
    """The concepts, as their register lists them."""
    return sorted(catalog.concepts.values(), key=lambda entry: (entry.line, entry.concept_id))


@dataclass(frozen=True, slots=True)
class Registers:
    """The files that register things, for messages."""

    templates: Mapping[Stage, str]
    models: str
    concepts: str


@dataclass(frozen=True, slots=True)
class ComboChoice:
    """Which combos an experiment is about, where no specification lists them.

    Attributes:
        selected: those of ``selected_combo_mappings.csv``; ``None`` when there is no such file.
        selected_file: its name, for messages.
    """

    level: str = DEFAULT_LEVEL
    k_max: int = DEFAULT_K_MAX
    selected: Mapping[str, Combo] | None = None
    selected_file: str = ""


@dataclass(slots=True)
class AxesDraft:
    """Axes as far as they could be made out, with what is wrong."""

    axes: Axes
    faults: list[Fault] = field(default_factory=list)


def active(catalog: Catalog) -> tuple[dict[Stage, tuple[str, ...]], dict[Stage, tuple[str, ...]]]:
    """Template ids and model ids of each stage that are used where nothing else is said."""
    templates = {
        stage: tuple(entry.template_id for entry in templates_in_order(catalog, stage) if entry.active)
        for stage in STAGES
    }
    models = models_in_order(catalog)
    return templates, {
        Stage.DRAFT: tuple(entry.model_id for entry in models if entry.for_generation),
        Stage.EVALUATION: tuple(entry.model_id for entry in models if entry.for_evaluation),
    }


def catalog_axes(catalog: Catalog, choice: ComboChoice, registers: Registers) -> AxesDraft:
    """The full product of what is active in the catalogue."""
    faults: list[Fault] = []
    templates, models = active(catalog)
    axes = Axes(
        combos=chosen_combos(catalog, choice, registers, faults),
        templates=templates,
        models=models,
        replicates=dict(catalog.replicates),
    )
    faults += empty_axes(axes, registers)
    return AxesDraft(axes, faults)


def chosen_combos(
    catalog: Catalog, choice: ComboChoice, registers: Registers, faults: list[Fault]
) -> tuple[Combo, ...]:
    """The combos of an experiment that lists none: selected ones, else subsets of the active concepts."""
    if choice.selected is not None:
        if not choice.selected:
            faults.append(
                Fault(
                    "no combo is selected",
                    where=choice.selected_file,
                    fix="list combos, or remove the file to use all of them",
                )
            )
        return tuple(choice.selected.values())
    active = [concept.concept_id for concept in concepts_in_order(catalog) if concept.active]
    return subsets(active, choice.level, choice.k_max, registers.concepts, faults, of="active concepts")


def subsets(
    concept_ids: Sequence[str], level: str, k_max: int, where: str, faults: list[Fault], *, of: str
) -> tuple[Combo, ...]:
    """All combos of `k_max` concepts; a fault when there is none, or far too many."""
    number = comb(len(concept_ids), k_max)
    if number == 0:
        faults.append(
            Fault(
                f"there are {len(concept_ids)} {of}, too few for combos of {k_max}",
                where=where,
                fix="use more concepts, or a smaller --k-max",
            )
        )
    elif number > MAX_ROWS:
        faults.append(
            Fault(
                f"{len(concept_ids)} {of} have {number} combos of {k_max}",
                where=where,
                fix=f"use fewer concepts or another --k-max: the limit is {MAX_ROWS}",
            )
        )
    else:
        return tuple(make_combos(concept_ids, level, k_max))
    return ()


def empty_axes(axes: Axes, registers: Registers) -> Iterator[Fault]:
    """Axes without a value that the experiment needs."""
    if not axes.templates[Stage.DRAFT]:
        yield Fault(
            "no draft template is active",
            where=registers.templates[Stage.DRAFT],
            fix="set active to True for at least one",
        )
    if axes.templates[Stage.EVALUATION] and not axes.templates[Stage.ESSAY]:
        yield Fault(
            "evaluation templates are active, but no essay template: there would be nothing to evaluate",
            where=registers.templates[Stage.ESSAY],
            fix="set active to True for at least one; a template with generator copy costs nothing",
        )
    for stage, column in ((Stage.DRAFT, "for_generation"), (Stage.EVALUATION, "for_evaluation")):
        if axes.templates[stage] and not axes.models[stage]:
            yield Fault(
                f"no model is marked {column}",
                where=registers.models,
                column=column,
                fix="set it to True for at least one",
            )


def check_size(axes: Axes) -> Iterator[Fault]:
    """A product that nobody meant."""
    size = axes.largest_size()
    if size > MAX_ROWS:
        yield Fault(
            f"the product has {size} rows; the limit is {MAX_ROWS}",
            fix="use fewer values or replicates; a cohort.toml can name just those that you mean",
        )


class Lineages:
    """The lineages that every coupling allows, level by level.

    A draft stands in a cohort when at least one whole lineage goes through it; so does an essay. Nothing
    is bought that could not be followed up.
    """

    def __init__(self, axes: Axes) -> None:
        self._axes = axes
        self._checks: dict[int, list[tuple[tuple[int, ...], frozenset[tuple[str, ...]]]]] = {}
        ends = sorted(STAGE_ENDS.values())
        for coupling in axes.couplings:
            places = tuple(AXES.index(axis) for axis in coupling.axes)
            end = next(end for end in ends if max(places) < end)
            self._checks.setdefault(end, []).append((places, coupling.allowed))
        later = {place for end in ends[1:] for places, _ in self._checks.get(end, ()) for place in places}
        self._key = tuple(place for place in sorted(later) if place < STAGE_ENDS[Stage.DRAFT])
        self._essays: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._evaluations: dict[tuple[str, ...], tuple[tuple[str, str], ...]] = {}

    def _allowed(self, values: tuple[str, ...]) -> bool:
        return all(
            tuple(values[place] for place in places) in allowed
            for places, allowed in self._checks.get(len(values), ())
        )

    def context(self, draft: tuple[str, str, str]) -> tuple[str, ...]:
        """What later stages may depend on: drafts of one context have the same descendants."""
        return tuple(draft[place] for place in self._key)

    def drafts(self) -> Iterator[tuple[str, str, str]]:
        """(combo, template, model) of each draft, replicates aside."""
        axes = self._axes
        dead_ends = axes.last_stage is not Stage.DRAFT
        for combo in axes.combos:
            for template in axes.templates[Stage.DRAFT]:
                for model in axes.models[Stage.DRAFT]:
                    draft = (combo.combo_id, template, model)
                    if self._allowed(draft) and not (dead_ends and not self.essays(draft)):
                        yield draft

    def essays(self, draft: tuple[str, str, str]) -> tuple[str, ...]:
        """Essay templates for a draft."""
        key = self.context(draft)
        found = self._essays.get(key)
        if found is None:
            dead_ends = self._axes.last_stage is Stage.EVALUATION
            found = self._essays[key] = tuple(
                template
                for template in self._axes.templates[Stage.ESSAY]
                if self._allowed((*draft, template))
                and not (dead_ends and not self.evaluations(draft, template))
            )
        return found

    def evaluations(self, draft: tuple[str, str, str], essay_template: str) -> tuple[tuple[str, str], ...]:
        """(template, model) of each evaluation of an essay."""
        key = (*self.context(draft), essay_template)
        found = self._evaluations.get(key)
        if found is None:
            found = self._evaluations[key] = tuple(
                (template, model)
                for template in self._axes.templates[Stage.EVALUATION]
                for model in self._axes.models[Stage.EVALUATION]
                if self._allowed((*draft, essay_template, template, model))
            )
        return found


def unused_values(axes: Axes) -> dict[str, list[str]]:
    """Values through which no lineage goes, by axis; what couplings can do together and none alone."""
    if not axes.couplings:
        return {}
    lineages = Lineages(axes)
    used: dict[str, set[str]] = {axis: set() for axis in AXES}
    contexts: set[tuple[str, ...]] = set()
    for draft in lineages.drafts():
        for axis, value in zip(AXES, draft, strict=False):
            used[axis].add(value)
        if lineages.context(draft) in contexts:
            continue
        contexts.add(lineages.context(draft))
        for template in lineages.essays(draft):
            used["essay_template"].add(template)
            for pair in lineages.evaluations(draft, template):
                used["evaluation_template"].add(pair[0])
                used["evaluation_model"].add(pair[1])
    present = AXES[: STAGE_ENDS[axes.last_stage]]
    unused = {axis: [value for value in axes.values(axis) if value not in used[axis]] for axis in present}
    return {axis: values for axis, values in unused.items() if values}


def undescribed(axes: Axes, catalog: Catalog, registers: Registers) -> Iterator[Fault]:
    """Concepts of the experiment that are not registered, or that nothing is written about."""
    used = dict.fromkeys(concept for combo in axes.combos for concept in combo.concept_ids)
    for concept_id in used:
        concept = catalog.concepts.get(concept_id)
        if concept is None:
            yield Fault(
                f"the concept {concept_id!r} is not registered", where=registers.concepts, fix="add its row"
            )
        elif not any(concept.descriptions.values()):
            yield Fault(
                f"the concept {concept_id!r} has no description at any level",
                where=registers.concepts,
                line=concept.line,
                fix=f"write 1_raw/concepts/descriptions-paragraph/{concept_id}.txt",
            )


def conflicting_combos(
    combos: Iterable[Combo], registered: Mapping[str, Combo], where: str
) -> Iterator[Fault]:
    """Combos whose id stands for something else in the register, which is never rewritten."""
    for combo in combos:
        held = registered.get(combo.combo_id)
        if held is None:
            continue
        same = set(held.concept_ids) == set(combo.concept_ids)
        if not same or (held.level, held.k_max) != (combo.level, combo.k_max):
            yield Fault(
                f"combo {combo.combo_id} stands there with {', '.join(sorted(held.concept_ids))} "
                f"({held.level}, k_max {held.k_max}), here with {', '.join(sorted(combo.concept_ids))} "
                f"({combo.level}, k_max {combo.k_max})",
                where=where,
                fix="give one of the two another id; registered combos are never changed",
            )
