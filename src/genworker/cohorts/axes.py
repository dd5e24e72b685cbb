"""What an experiment multiplies: its axes, and the couplings that leave parts of their product out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import comb, prod
from typing import Any

from genworker.cohorts.pairs import ORDERS, PairDesign
from genworker.core.catalog import Catalog, Combo, Concept, ModelEntry, TemplateEntry
from genworker.core.ids import combo_id
from genworker.core.stages import STAGES, Stage
from genworker.errors import Fault

AXES = ("combo", *(f"{stage.value}_{kind}" for stage in STAGES for kind in ("template", "model")))
"""The axes in the order in which a lineage meets them. Replicates are no axis: nothing is coupled to them."""

STAGE_ENDS: Mapping[Stage, int] = {stage: 3 + 2 * stage.order for stage in STAGES}
"""How many axes are decided once a stage is reached."""

MODEL_STAGES = tuple(stage for stage in STAGES if not stage.inherits_model)
"""Stages that must have models; an essay is written by its draft's, unless its own are stated."""

INHERITED = ""
"""The value of a model axis that nobody has stated: the parent's model."""

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
        models: without a stage that inherits its model, unless its own are stated.
        replicates: from 1.
        pairs: which texts are shown together to a judge that compares two; ``None`` where none does.
        pair_templates: the templates that compare two; they stand among the others of their stage.
    """

    combos: tuple[Combo, ...]
    templates: Mapping[Stage, tuple[str, ...]]
    models: Mapping[Stage, tuple[str, ...]]
    replicates: Mapping[Stage, int]
    couplings: tuple[Coupling, ...] = ()
    pairs: PairDesign | None = None
    pair_templates: frozenset[str] = frozenset()

    def values(self, axis: str) -> tuple[str, ...]:
        """The values of one axis."""
        if axis == "combo":
            return tuple(combo.combo_id for combo in self.combos)
        stage, _, kind = axis.partition("_")
        return (self.templates if kind == "template" else self.models).get(Stage(stage), ())

    def choices(self, stage: Stage) -> Iterator[tuple[str, str]]:
        """(template, model) of a stage, before couplings; the model may be `INHERITED`."""
        for template in self.templates[stage]:
            for model in self.models.get(stage) or ((INHERITED,) if stage.inherits_model else ()):
                yield template, model

    @property
    def last_stage(self) -> Stage:
        """Where lineages end."""
        return max((stage for stage in STAGES if self.templates[stage]), key=lambda stage: stage.order)

    def largest_size(self) -> int:
        """Rows of the full product, before couplings."""
        size = 0
        for stage in reversed(STAGES):
            if self.templates[stage]:
                single = [name for name in self.templates[stage] if name not in self.pair_templates]
                size = len(single) * self._models_and_replicates(stage) * (1 + size)
        return size * len(self.combos) + self._pair_rows()

    def _models_and_replicates(self, stage: Stage) -> int:
        return (len(self.models.get(stage, ())) or int(stage.inherits_model)) * self.replicates[stage]

    def _pair_rows(self) -> int:
        """Rows that compare two texts, in the full product: its texts spread evenly over the axes' values."""
        if self.pairs is None:
            return 0
        last = self.last_stage
        texts = len(self.combos)
        for stage in STAGES[: last.order]:
            texts *= len(self.templates[stage]) * self._models_and_replicates(stage)
        groups = prod(len(self.values(axis)) or 1 for axis in self.pairs.same)
        free = [axis for axis, _ in self.pairs.baseline if axis not in self.pairs.same]
        in_group = texts // groups
        baselines = in_group // prod(len(self.values(axis)) for axis in free) if self.pairs.baseline else 0
        judges = len(self.pair_templates) * self._models_and_replicates(last)
        return groups * self.pairs.most_pairs(in_group, baselines) * ORDERS * judges

    def to_json(self) -> dict[str, Any]:
        """The axes as the manifest has them; equal experiments give equal records."""
        record: dict[str, Any] = {"combos": _combos_json(self.combos)} if self.combos else {}
        for stage in STAGES:
            if not self.templates[stage]:
                continue
            record[stage.value] = {"templates": list(self.templates[stage])}
            if stage in MODEL_STAGES or self.models.get(stage):
                record[stage.value]["models"] = list(self.models[stage])
            record[stage.value]["replicates"] = self.replicates[stage]
        if self.couplings:
            record["couplings"] = [
                {"axes": list(coupling.axes), "allow": sorted(map(list, coupling.allowed))}
                for coupling in self.couplings
            ]
        if self.pairs is not None:
            record["pairs"] = self.pairs.to_json()
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


def active(
    catalog: Catalog, *, pairs: bool = False
) -> tuple[dict[Stage, tuple[str, ...]], dict[Stage, tuple[str, ...]]]:
    """Template ids and model ids of each stage that are used where nothing else is said.

    Args:
        pairs: whether the experiment says which texts are compared; without it no template that compares
            two is used.
    """
    templates = {
        stage: tuple(
            entry.template_id
            for entry in templates_in_order(catalog, stage)
            if entry.active and (pairs or entry.template_id not in catalog.pairs(stage))
        )
        for stage in STAGES
    }
    models = models_in_order(catalog)
    generating = tuple(entry.model_id for entry in models if entry.for_generation)
    judging = tuple(entry.model_id for entry in models if entry.for_evaluation)
    return templates, {stage: judging if stage.is_scored else generating for stage in MODEL_STAGES}


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
    root = STAGES[0]
    if not axes.templates[root]:
        yield Fault(
            f"no {root.value} template is active",
            where=registers.templates[root],
            fix="set active to True for at least one",
        )
    for stage in STAGES[1:]:
        above = stage.parent
        # The root has its own fault; without a template of any stage between, no lineage gets here.
        if above is not None and not above.is_root and axes.templates[stage] and not axes.templates[above]:
            purpose = "evaluate" if stage.is_scored else "make them from"
            yield Fault(
                f"{stage.value} templates are active, but no {above.value} template: "
                f"there would be nothing to {purpose}",
                where=registers.templates[above],
                fix="set active to True for at least one; a template with generator copy costs nothing",
            )
    for stage in MODEL_STAGES:
        column = "for_evaluation" if stage.is_scored else "for_generation"
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
            positions = tuple(AXES.index(axis) for axis in coupling.axes)
            end = next(end for end in ends if max(positions) < end)
            self._checks.setdefault(end, []).append((positions, coupling.allowed))
        # What descendants may depend on: two lineages that agree there go on alike.
        self._keys = {
            end: tuple(
                sorted(
                    {
                        position
                        for later, checks in self._checks.items()
                        for positions, _ in checks
                        for position in positions
                        if later > end > position
                    }
                )
            )
            for end in ends
        }
        self._steps: dict[tuple[int, tuple[str, ...]], tuple[tuple[str, str], ...]] = {}

    def _allowed(self, values: tuple[str, ...]) -> bool:
        return all(
            tuple(values[position] for position in positions) in allowed
            for positions, allowed in self._checks.get(len(values), ())
        )

    def drafts(self) -> Iterator[tuple[str, str, str]]:
        """(combo, template, model) of each draft, replicates aside."""
        root = STAGES[0]
        for combo in self._axes.combos:
            for template, model in self._axes.choices(root):
                draft = (combo.combo_id, template, model)
                if self._allowed(draft) and (self._axes.last_stage is root or self.steps(draft)):
                    yield draft

    def context(self, values: tuple[str, ...]) -> tuple[str, ...]:
        """What later stages may depend on: lineages of one context go on alike."""
        return tuple(values[position] for position in self._keys[len(values)])

    def steps(self, values: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
        """(template, model) of each child of a generation.

        Args:
            values: what has been decided, in the order of `AXES`, up to and with the generation's stage.
        """
        key = (len(values), self.context(values))
        found = self._steps.get(key)
        if found is None:
            stage = next(stage for stage, end in STAGE_ENDS.items() if end == len(values) + 2)
            is_last = stage is self._axes.last_stage
            found = self._steps[key] = tuple(
                choice
                for choice in self._axes.choices(stage)
                if self._allowed((*values, *choice)) and (is_last or self.steps((*values, *choice)))
            )
        return found


def unused_values(axes: Axes) -> dict[str, list[str]]:
    """Values through which no lineage goes, by axis; what couplings can do together and none alone."""
    if not axes.couplings:
        return {}
    lineages = Lineages(axes)
    used: dict[str, set[str]] = {axis: set() for axis in AXES}
    level: list[tuple[str, ...]] = list(lineages.drafts())
    end = STAGE_ENDS[axes.last_stage]
    while level:
        contexts: dict[tuple[str, ...], tuple[str, ...]] = {}
        for values in level:
            for axis, value in zip(AXES, values, strict=False):
                used[axis].add(value)
            contexts.setdefault(lineages.context(values), values)
        if len(level[0]) == end:
            break
        level = [(*values, *step) for values in contexts.values() for step in lineages.steps(values)]
    unused = {axis: [value for value in axes.values(axis) if value not in used[axis]] for axis in AXES[:end]}
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
        known = registered.get(combo.combo_id)
        if known is None:
            continue
        same = set(known.concept_ids) == set(combo.concept_ids)
        if not same or (known.level, known.k_max) != (combo.level, combo.k_max):
            yield Fault(
                f"combo {combo.combo_id} stands there with {', '.join(sorted(known.concept_ids))} "
                f"({known.level}, k_max {known.k_max}), here with {', '.join(sorted(combo.concept_ids))} "
                f"({combo.level}, k_max {combo.k_max})",
                where=where,
                fix="give one of the two another id; registered combos are never changed",
            )
