"""A designed experiment: what ``cohort.toml`` says, checked against the catalogue, as axes.

Every name that the specification leaves out comes from the catalogue, so the shortest one is short.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from genworker.cohorts.axes import (
    AXES,
    MODEL_STAGES,
    STAGE_ENDS,
    Axes,
    AxesDraft,
    ComboChoice,
    Coupling,
    Registers,
    active,
    chosen_combos,
    concepts_in_order,
    empty_axes,
    models_in_order,
    subsets,
    templates_in_order,
    unused_values,
)
from genworker.cohorts.pairs import LEAST_PER_ESSAY, PairDesign
from genworker.cohorts.toml_lines import TomlLines
from genworker.core.catalog import LEVELS, Catalog, Combo
from genworker.core.ids import combo_id
from genworker.core.stages import STAGES, Stage
from genworker.errors import Fault

MODELS_KEYS = {f"{stage.value}_models": stage for stage in STAGES if stage.inherits_model}
"""Keys that give models to a stage which inherits its model where they are left out."""
KEYS = ("concepts", "combos", "k_max", "level", "last_stage", *STAGES, *MODELS_KEYS, "couple", "pairs")
STAGE_KEYS = {
    stage: ("templates", "models", "replicates") if stage in MODEL_STAGES else ("templates", "replicates")
    for stage in STAGES
}
COUPLE_KEYS = ("axes", "allow", "csv", "tie")
PAIRS_KEYS = ("per_essay", "baseline", "same")
MAX_REPLICATES = 999_999
_SHOWN_VALUES = 5


@dataclass(frozen=True, slots=True)
class PairTable:
    """A CSV file in the directory of the specification.

    Attributes:
        records: (line number from 1, cells), without the header.
    """

    where: str
    header: Sequence[str]
    records: Sequence[tuple[int, Sequence[str]]]


ReadTable = Callable[[str], PairTable | Fault]


@dataclass(frozen=True, slots=True)
class Specification:
    """``cohort.toml`` as it was read.

    Attributes:
        document: what the TOML parser made of it.
        where: its name, for messages.
        read_table: reads a CSV file of the same directory by its plain name.
    """

    document: Mapping[str, Any]
    text: str
    where: str
    read_table: ReadTable


def spec_axes(
    spec: Specification,
    catalog: Catalog,
    choice: ComboChoice,
    registers: Registers,
    models: Collection[str] = (),
) -> AxesDraft:
    """The axes that a specification states.

    Args:
        choice: the combos where the specification names none.
        models: ids that only the configuration knows.

    Returns:
        The axes without what is wrong, and every fault with its file and line.
    """
    return _Reader(spec, catalog, registers, models).read(choice)


class _Reader:
    def __init__(
        self, spec: Specification, catalog: Catalog, registers: Registers, models: Collection[str]
    ) -> None:
        self.spec = spec
        self.catalog = catalog
        self.registers = registers
        self.lines = TomlLines(spec.text)
        self.faults: list[Fault] = []
        self.unsure: set[str] = set()
        registered = [entry.model_id for entry in models_in_order(catalog)]
        self.models = [*registered, *sorted(set(models) - set(registered))]

    def fault(
        self, path: Sequence[str | int], what: str, fix: str | None = None, *, value: str | None = None
    ) -> None:
        key = ".".join(str(part) for part in path if not isinstance(part, int))
        line = self.lines.of(*path, value=value)
        self.faults.append(Fault(what, where=self.spec.where, line=line, column=key or None, fix=fix))

    def read(self, choice: ComboChoice) -> AxesDraft:
        document = self.spec.document
        self._unknown_keys((), document, KEYS)
        last = self._last_stage()
        combos = self._combos(choice)
        if not combos:
            self.unsure.add("combo")
        active_templates, active_models = active(self.catalog, pairs="pairs" in document)
        templates: dict[Stage, tuple[str, ...]] = {}
        models: dict[Stage, tuple[str, ...]] = {}
        replicates: dict[Stage, int] = {}
        for stage in STAGES:
            section = self._section(stage)
            if stage.order > last.order and section:
                self.fault(
                    (stage.value,),
                    f"lineages end with the {last.value}, so there is nothing to say about this stage",
                    "remove the section, or last_stage",
                )
            known = [entry.template_id for entry in templates_in_order(self.catalog, stage)]
            register = self.registers.templates[stage]
            named = self._names(
                (stage.value, "templates"), section, f"{stage.value} template", known, register
            )
            templates[stage] = () if stage.order > last.order else named or active_templates[stage]
            replicates[stage] = self._replicates(stage, section)
            if stage in MODEL_STAGES:
                named = self._names(
                    (stage.value, "models"), section, "model", self.models, self.registers.models
                )
                models[stage] = named or active_models[stage]
            elif stated := self._stated_models(stage, last):
                models[stage] = stated
        axes = Axes(combos, templates, models, replicates)
        self.faults += empty_axes(axes, self.registers)
        axes = replace(axes, couplings=self._couplings(axes))
        axes = self._pairs(axes)
        if not self.faults:
            self._check_unused(axes)
        return AxesDraft(axes, self.faults)

    # Pieces

    def _unknown_keys(
        self, path: tuple[str | int, ...], table: Mapping[str, Any], known: Sequence[str]
    ) -> None:
        for key in table:
            if key not in known:
                self.fault((*path, key), f"unknown key {key!r}", _suggest(key, known))

    def _section(self, stage: Stage) -> Mapping[str, Any]:
        section = self.spec.document.get(stage.value, {})
        if not isinstance(section, Mapping):
            models = ', models = ["m"]' if stage in MODEL_STAGES else ""
            example = f'such as {stage.value} = {{ templates = ["one"]{models}, replicates = 2 }}'
            self.fault((stage.value,), f"{stage.value} is not a table", example)
            return {}
        if "models" in section and stage not in MODEL_STAGES:
            self.fault(
                (stage.value, "models"),
                "an essay is written by its draft's model",
                "name models under draft; to tie a model to an essay template, couple draft_model with it; "
                f'to have other models write it, add: {stage.value}_models = ["…"]',
            )
        else:
            self._unknown_keys((stage.value,), section, STAGE_KEYS[stage])
        return section

    def _last_stage(self) -> Stage:
        value = self.spec.document.get("last_stage", STAGES[-1].value)
        stage = next((stage for stage in STAGES if stage == value), None)
        if stage is None:
            names = [stage.value for stage in STAGES]
            fix = f"use {', '.join(names[:-1])} or {names[-1]}"
            self.fault(("last_stage",), f"unknown stage {_repr(value)}", fix)
        return stage or STAGES[-1]

    def _stated_models(self, stage: Stage, last: Stage) -> tuple[str, ...]:
        """The models of a stage that inherits its model where none are stated."""
        key = f"{stage.value}_models"
        if key not in self.spec.document:
            return ()
        if stage.order > last.order:
            self.fault((key,), f"lineages end with the {last.value}", f"remove {key}, or last_stage")
            return ()
        named = self._strings((key,), self.spec.document[key], '["one", "other"]')
        return self._known((key,), named or (), "model", self.models, self.registers.models)

    def _strings(self, path: tuple[str | int, ...], value: Any, example: str) -> list[str] | None:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.fault(path, f"{path[-1]} is not a list of names", f"such as {path[-1]} = {example}")
            return None
        if not value:
            self.fault(
                path, f"{path[-1]} is empty", "name at least one, or leave the key out for all active ones"
            )
            return None
        for item in sorted({item for item in value if value.count(item) > 1}):
            self.fault(path, f"{item!r} stands twice", "name it once", value=item)
        return list(dict.fromkeys(value))

    def _names(
        self,
        path: tuple[str, str],
        section: Mapping[str, Any],
        kind: str,
        known: Sequence[str],
        register: str,
    ) -> tuple[str, ...]:
        """The known ones of the names in a list, in the register's order."""
        if path[-1] not in section:
            return ()
        named = self._strings(path, section[path[-1]], '["one", "other"]')
        return self._known(path, named or (), kind, known, register)

    def _known(
        self,
        path: tuple[str | int, ...],
        named: Iterable[str],
        kind: str,
        known: Sequence[str],
        register: str,
    ) -> tuple[str, ...]:
        there = set(known)
        names = list(named)
        for name in names:
            if name not in there:
                self.unsure.add("_".join(map(str, path)).removesuffix("s"))
                fix = _suggest(name, known, f"register it in {register}")
                self.fault(path, f"unknown {kind} {name!r}", fix, value=name)
        wanted = set(names)
        return tuple(name for name in known if name in wanted)

    def _number(self, path: tuple[str, ...], table: Mapping[str, Any], default: int) -> int:
        value = table.get(path[-1], default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_REPLICATES:
            self.fault(path, f"{path[-1]} is {_repr(value)}", "use a whole number from 1")
            return 1
        return value

    def _replicates(self, stage: Stage, section: Mapping[str, Any]) -> int:
        return self._number((stage.value, "replicates"), section, self.catalog.replicates.get(stage, 1))

    # Combos

    def _combos(self, choice: ComboChoice) -> tuple[Combo, ...]:
        document = self.spec.document
        level = document.get("level", choice.level)
        if level not in LEVELS:
            self.fault(("level",), f"unknown level {_repr(level)}", f"use {', '.join(LEVELS)}")
            level = choice.level
        if "combos" in document:
            if "concepts" in document:
                self.fault(("combos",), "concepts and combos are both given", "keep one of them")
            return self._listed_combos(document["combos"], level)
        k_max = self._number(("k_max",), document, choice.k_max)
        if not ({"concepts", "k_max", "level"} & set(document)) and choice.selected is not None:
            return chosen_combos(self.catalog, choice, self.registers, self.faults)
        concepts = concepts_in_order(self.catalog)
        chosen = [concept.concept_id for concept in concepts if concept.active]
        path, of = ("k_max",), "active concepts"
        if "concepts" in document:
            names = self._strings(("concepts",), document["concepts"], '["one", "other"]')
            known = [concept.concept_id for concept in concepts]
            chosen = list(self._known(("concepts",), names or (), "concept", known, self.registers.concepts))
            path, of = ("concepts",), "concepts"
            if len(chosen) < len(names or ()) or not names:
                return ()  # said already; that too few are left would be said on top of it
        found: list[Fault] = []
        combos = subsets(chosen, level, k_max, self.spec.where, found, of=of)
        for fault in found:
            self.fault(path, fault.what, "name more concepts, or use another k_max")
        return combos

    def _listed_combos(self, value: Any, level: str) -> tuple[Combo, ...]:
        if not isinstance(value, list):
            self.fault(
                ("combos",), "combos is not a list", 'such as combos = [["one", "other"], "combo_v1_…"]'
            )
            return ()
        if not value:
            self.fault(("combos",), "combos is empty", "name at least one")
        known = [concept.concept_id for concept in concepts_in_order(self.catalog)]
        combos: dict[str, Combo] = {}
        for item in value:
            combo = self._combo(item, level, known)
            if combo is None:
                continue
            if combo.combo_id in combos:
                shown = ", ".join(combo.concept_ids)
                self.fault(
                    ("combos",), f"a combo stands twice: {shown}", "name it once", value=combo.concept_ids[0]
                )
            combos[combo.combo_id] = combo
        return tuple(combos.values())

    def _combo(self, item: Any, level: str, known: Sequence[str]) -> Combo | None:
        if isinstance(item, str):
            found = self.catalog.combos.get(item)
            if found is None:
                fix = _suggest(item, list(self.catalog.combos), "register it, or list its concepts instead")
                self.fault(("combos",), f"unknown combo {item!r}", fix, value=item)
            return found
        names = self._strings(("combos",), item, '[["one", "other"]]')
        if names is None:
            return None
        concepts = self._known(("combos",), names, "concept", known, self.registers.concepts)
        if len(concepts) < len(names):
            return None
        k_max = self._number(("k_max",), self.spec.document, len(concepts))
        return Combo(combo_id(concepts, level, k_max), concepts, level, k_max)

    # Pairs

    def _pairs(self, axes: Axes) -> Axes:
        """The axes with what ``[pairs]`` says of the templates that compare two texts."""
        last = axes.last_stage if any(axes.templates.values()) else STAGES[0]
        comparing = [name for name in axes.templates[last] if name in self.catalog.pairs(last)]
        if "pairs" not in self.spec.document:
            for name in comparing:
                self.fault(
                    (last.value, "templates"),
                    f"the template {name!r} compares two texts, and nothing says which",
                    "add a table [pairs]: empty for all pairs, or with per_essay or baseline",
                    value=name,
                )
            return axes
        table = self.spec.document["pairs"]
        if not isinstance(table, Mapping):
            self.fault(("pairs",), "pairs is not a table", "such as pairs = { per_essay = 4 }")
            return axes
        self._unknown_keys(("pairs",), table, PAIRS_KEYS)
        if not comparing:
            register = self.registers.templates[STAGES[-1]]
            self.fault(
                ("pairs",),
                "no template of this cohort compares two texts",
                f"give one the parser 'choice' in {register}, and make it active or name it",
            )
            return axes
        if "per_essay" in table and "baseline" in table:
            self.fault(("pairs", "baseline"), "per_essay and baseline are both given", "keep one of them")
        present = [axis for axis in AXES[: STAGE_ENDS[last] - 2] if axes.values(axis)]
        per_essay = None
        if "per_essay" in table:
            per_essay = self._number(("pairs", "per_essay"), table, LEAST_PER_ESSAY)
            if per_essay < LEAST_PER_ESSAY:
                what = f"per_essay is {_repr(table['per_essay'])}"
                self.fault(("pairs", "per_essay"), what, f"use a whole number from {LEAST_PER_ESSAY}")
        same = self._same(table, present)
        design = PairDesign(per_essay, self._baseline(table, axes, present), same)
        return replace(axes, pairs=design, pair_templates=frozenset(comparing))

    def _same(self, table: Mapping[str, Any], present: Sequence[str]) -> tuple[str, ...]:
        if "same" not in table:
            return ()
        names = self._strings(("pairs", "same"), table["same"], '["combo"]') or []
        for name in names:
            if name not in present:
                fix = _suggest(name, present, f"use {', '.join(present)}")
                self.fault(("pairs", "same"), f"unknown axis {name!r}", fix, value=name)
        return tuple(axis for axis in present if axis in names)

    def _baseline(
        self, table: Mapping[str, Any], axes: Axes, present: Sequence[str]
    ) -> tuple[tuple[str, str], ...]:
        if "baseline" not in table:
            return ()
        path, baseline = ("pairs", "baseline"), table["baseline"]
        if not isinstance(baseline, Mapping) or not baseline:
            self.fault(path, "baseline names no axis", 'such as baseline = { essay_template = "plain" }')
            return ()
        found = []
        for axis, value in baseline.items():
            if axis not in present:
                self.fault(
                    path, f"unknown axis {axis!r}", _suggest(axis, present, f"use {', '.join(present)}")
                )
            elif value not in axes.values(axis):
                if axis not in self.unsure:
                    fix = f"the {axis} axis of this cohort does not have it"
                    fix = _suggest(value, axes.values(axis), fix) if isinstance(value, str) else fix
                    self.fault(path, f"unknown {axis} {_repr(value)}", fix)
            else:
                found.append((axis, value))
        if found and all(len(axes.values(axis)) == 1 for axis, _ in found):
            self.fault(path, "every text is in the baseline", "name a value of an axis that has others")
        return tuple(sorted(found))

    # Couplings

    def _couplings(self, axes: Axes) -> tuple[Coupling, ...]:
        couples = self.spec.document.get("couple", [])
        if not isinstance(couples, list) or not all(isinstance(item, Mapping) for item in couples):
            self.fault(("couple",), "couple is not a list of tables", "write [[couple]] above each")
            return ()
        found = (self._coupling(number, item, axes) for number, item in enumerate(couples))
        return tuple(coupling for coupling in found if coupling is not None)

    def _coupling(self, number: int, table: Mapping[str, Any], axes: Axes) -> Coupling | None:
        path = ("couple", number)
        self._unknown_keys(path, table, COUPLE_KEYS)
        if sum(key in table for key in ("allow", "csv", "tie")) != 1:
            what = "a coupling needs either allow or csv"
            self.fault(
                path, what, 'such as allow = [["one", "other"]]; or tie = true, for axes that move together'
            )
            return None
        if "tie" in table:
            pairs = self._tied(path, table, axes)
        else:
            pairs = self._inline(path, table) if "allow" in table else self._from_csv(path, table)
        if pairs is None:
            return None
        names, tuples, where, line_of = pairs
        if not self._good_axes(path, names, axes):
            return None
        before = len(self.faults)
        allowed: set[tuple[str, ...]] = set()
        for number, values in enumerate(tuples):
            if len(values) != len(names):
                what = f"{', '.join(values) or 'nothing'!r} is no tuple of {len(names)} values"
                self._fault_in(where, line_of(number, None), what, f"name one each of {', '.join(names)}")
                continue
            for axis, value in zip(names, values, strict=True):
                if value not in axes.values(axis) and axis not in self.unsure:
                    fix = _suggest(
                        value, axes.values(axis), f"the {axis} axis of this cohort does not have it"
                    )
                    self._fault_in(where, line_of(number, value), f"unknown {axis} {value!r}", fix)
            allowed.add(values)
        line = self.lines.of(*path)
        if len(self.faults) == before:
            for at, axis in enumerate(names):
                missing = (
                    []
                    if axis in self.unsure
                    else [
                        value
                        for value in axes.values(axis)
                        if value not in {values[at] for values in allowed}
                    ]
                )
                if missing:
                    self._fault_in(
                        where,
                        line if where == self.spec.where else 1,
                        f"this coupling leaves values of {axis} unused: {_shown(missing)}",
                        "allow each of them somewhere, or take them out of the axis",
                    )
        return Coupling(names, frozenset(allowed), where, line if where == self.spec.where else None)

    def _fault_in(self, where: str, line: int | None, what: str, fix: str | None) -> None:
        self.faults.append(Fault(what, where=where, line=line, column="couple", fix=fix))

    def _good_axes(self, path: tuple[str | int, ...], names: tuple[str, ...], axes: Axes) -> bool:
        good = True
        end = max((STAGE_ENDS[stage] for stage in STAGES if axes.templates[stage]), default=0)
        inheriting = [f"{stage.value}_model" for stage in STAGES if stage.inherits_model]
        unstated = {axis for axis in inheriting if not axes.values(axis)}
        present = [axis for axis in AXES[:end] if axis not in unstated]
        for name in names:
            if name not in present:
                fix = _suggest(name, present, f"use {', '.join(present)}")
                if name in unstated:
                    fix = f'the models are the parents\' own until you state {name}s = ["…"]'
                self.fault((*path, "axes"), f"unknown axis {name!r}", fix, value=name)
                good = False
        if len(set(names)) != len(names) or len(names) < 2:
            self.fault(
                (*path, "axes"), "a coupling ties two or more different axes", f"use {', '.join(present)}"
            )
            good = False
        return good

    def _tied(self, path: tuple[str | int, ...], table: Mapping[str, Any], axes: Axes) -> _Pairs | None:
        """Axes that move together: the same value in each."""
        example = '["draft_model", "essay_model"]'
        if table["tie"] is not True:
            self.fault((*path, "tie"), f"tie is {_repr(table['tie'])}", "write tie = true, or remove it")
            return None
        names = self._strings((*path, "axes"), table.get("axes"), example)
        if names is None:
            return None
        if not self._good_axes(path, tuple(names), axes):
            return None
        first, *others = (axes.values(name) for name in names)
        common = [value for value in first if all(value in other for other in others)]
        if not common:
            self.fault(path, f"no value stands in each of {', '.join(names)}", "tie axes that share values")
            return None
        return tuple(names), [(value,) * len(names) for value in common], self.spec.where, lambda *_: None

    def _inline(self, path: tuple[str | int, ...], table: Mapping[str, Any]) -> _Pairs | None:
        example = '["draft_template", "essay_template"]'
        if "axes" not in table:
            self.fault(path, "a coupling names its axes", f"add axes = {example}")
            return None
        names = self._strings((*path, "axes"), table["axes"], example)
        allow = table["allow"]
        if not isinstance(allow, list) or not all(
            isinstance(item, list) and all(isinstance(value, str) for value in item) for item in allow
        ):
            self.fault(
                (*path, "allow"), "allow is not a list of lists of names", 'such as [["one", "other"]]'
            )
            return None
        if not allow:
            self.fault((*path, "allow"), "allow is empty: nothing would be left", "allow at least one tuple")
            return None
        if names is None:
            return None

        def line_of(number: int, value: str | None) -> int | None:
            return self.lines.of(*path, "allow", value=value or (allow[number] or [None])[0])

        return tuple(table["axes"]), [tuple(item) for item in allow], self.spec.where, line_of

    def _from_csv(self, path: tuple[str | int, ...], table: Mapping[str, Any]) -> _Pairs | None:
        name = table["csv"]
        if not isinstance(name, str) or not name or "/" in name or "\\" in name or name.startswith("."):
            self.fault(
                (*path, "csv"), f"csv is {_repr(name)}", "name a file that lies beside the cohort.toml"
            )
            return None
        read = self.spec.read_table(name)
        if isinstance(read, Fault):
            fix = "it lies beside the cohort.toml; its header names the axes, each row allows one tuple"
            self.faults.append(replace(read, fix=read.fix or fix))
            return None
        names = tuple(cell.strip() for cell in read.header)
        stated = table.get("axes")
        if stated is not None and (not isinstance(stated, list) or tuple(stated) != names):
            self.fault(
                (*path, "axes"), f"the header of {name} is {', '.join(names)}", "leave axes out, or match it"
            )
            return None
        records = [
            (line, tuple(cell.strip() for cell in cells)) for line, cells in read.records if any(cells)
        ]
        if not records:
            self.faults.append(
                Fault("the file allows nothing", where=read.where, fix="add a row per allowed tuple")
            )
            return None
        return names, [cells for _, cells in records], read.where, lambda number, _value: records[number][0]

    def _check_unused(self, axes: Axes) -> None:
        for axis, values in unused_values(axes).items():
            touching = [coupling for coupling in axes.couplings if axis in coupling.axes] or axes.couplings
            first = touching[0]
            self._fault_in(
                first.where,
                first.line,
                f"the couplings together leave values of {axis} unused: {_shown(values)}",
                "no lineage through them keeps to every coupling; allow one, or take them out of the axis",
            )


_Pairs = tuple[tuple[str, ...], list[tuple[str, ...]], str, Callable[[int, str | None], int | None]]


def _repr(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _suggest(name: str, known: Iterable[str], otherwise: str | None = None) -> str:
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"did you mean {close[0]}?"
    shown = _shown(names, 12)
    return f"{otherwise}; known here: {shown}" if otherwise else f"known here: {shown}"


def _shown(values: Sequence[str], limit: int = _SHOWN_VALUES) -> str:
    more = f" and {len(values) - limit} more" if len(values) > limit else ""
    return ", ".join(values[:limit]) + more
