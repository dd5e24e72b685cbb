"""The axes and rules of an older project's ``spec/config.yaml`` in, the text of a ``cohort.toml`` out.

The older compiler makes the product of its axes and narrows it by rules: subsets of an axis, ties of axes
that move together, pairs and tuples of values that are allowed. Here the first narrows a list, and each of
the others becomes a coupling; what has no such form is named, and never dropped in silence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from genworker.cohorts.axes import AXES, Axes, Coupling, unused_values
from genworker.core.catalog import Combo
from genworker.core.stages import STAGES, Stage

Levels = list[tuple[str, ...]]
"""Values of an axis, or allowed tuples: one cell for each, or several."""
LoadFile = Callable[[str], Levels]
"""Reads what ``@file:NAME`` names; raises `OlderSpecError`."""

_AXIS_NAMES = {
    "combo_id": "combo",
    "combo": "combo",
    "generation_llm": "draft_model",
    **{f"{stage.value}_template": f"{stage.value}_template" for stage in STAGES},
    **{f"{stage.value}_{word}": f"{stage.value}_model" for stage in STAGES for word in ("llm", "model")},
}
_REPLICATES = {
    f"{stage.value}{middle}": stage
    for stage in STAGES
    for middle in ("_replicate", "_template_replicate", "_llm_replicate", "_rep")
}
_NO_MODEL = "None"
"""What the older project writes for the model of a copy."""


class OlderSpecError(Exception):
    """The older specification cannot be understood; the message says why."""


@dataclass(slots=True)
class Imported:
    """A specification in the form of today.

    Attributes:
        text: of the ``cohort.toml``.
        left_out: what has no form in it, each in a sentence.
    """

    text: str = ""
    left_out: list[str] = field(default_factory=list)


def import_spec(document: object, load: LoadFile, where: str) -> Imported:
    """Translate a specification.

    Args:
        document: what the YAML parser made of the file, every scalar a string.
        where: the file's name, for the head of the result.

    Raises:
        OlderSpecError: it is no such specification, or its rules leave nothing.
    """
    if not isinstance(document, Mapping):
        raise OlderSpecError("it is no mapping of axes and rules")
    return _Importer(document, load).imported(where)


class _Importer:
    def __init__(self, document: Mapping[Any, Any], load: LoadFile) -> None:
        self.document = document
        self.load = load
        self.result = Imported()
        self.values: dict[str, list[str]] = {}
        self.replicates: dict[Stage, int] = {}
        self.aliases: dict[str, tuple[str, ...]] = {}  # names that rules give to ties, pairs and tuples
        self.couplings: list[tuple[tuple[str, ...], list[tuple[str, ...]], bool]] = []

    def imported(self, where: str) -> Imported:
        for key in self.document:
            if key not in ("axes", "rules", "output"):
                self.leave(f"the section {key!r} is not known")
        self._axes(self._mapping("axes"))
        for section, rules in self._mapping("rules").items():
            if not isinstance(rules, Mapping):
                raise OlderSpecError(f"rules.{section} is no mapping")
            rule = {
                "subsets": self._subset,
                "ties": self._tie,
                "pairs": self._pair,
                "tuples": self._tuple,
            }.get(section)
            for name, body in rules.items():
                if rule is None:
                    self.leave(f"rules.{section}.{name}: rules of this kind are not known")
                else:
                    rule(str(name), body)
        if "seed" in self._mapping("output"):
            self.leave("output.seed: rows stand in the order of the axes, and are not shuffled")
        self._without_copies_models()
        self._prune()
        self.result.text = self._toml(where)
        return self.result

    def leave(self, what: str) -> None:
        self.result.left_out.append(what)

    # Reading

    def _mapping(self, key: str) -> Mapping[Any, Any]:
        value = self.document.get(key) or {}
        if not isinstance(value, Mapping):
            raise OlderSpecError(f"{key} is no mapping")
        return value

    def _levels(self, place: str, value: object) -> Levels:
        """A list, or what the file holds that is named in its place; each entry as its cells."""
        if isinstance(value, str) and value.startswith("@file:"):
            return self.load(value.removeprefix("@file:"))
        if not isinstance(value, list):
            raise OlderSpecError(f"{place} is neither a list nor @file:NAME")
        return [tuple(_cells(place, item)) for item in value]

    def _axes(self, axes: Mapping[Any, Any]) -> None:
        for name, value in axes.items():
            if value in ("", None):
                continue  # a tuple gives its levels
            levels = [cells[0] for cells in self._levels(f"axes.{name}", value) if cells]
            levels = list(dict.fromkeys(levels))
            if name in _REPLICATES:
                self._replicate(name, levels)
            elif name in _AXIS_NAMES:
                self.values[_AXIS_NAMES[name]] = levels
            else:
                self.leave(f"axes.{name}: there is no such axis here")

    def _replicate(self, name: str, levels: Sequence[str]) -> None:
        numbers = sorted(int(level) for level in levels if level.isascii() and level.isdecimal())
        if numbers != list(range(1, len(levels) + 1)):
            self.leave(f"axes.{name}: replicates are numbered from 1 without gaps, not {', '.join(levels)}")
        else:
            self.replicates[_REPLICATES[name]] = len(numbers)

    def _flat(self, place: str, names: Sequence[str]) -> tuple[str, ...] | None:
        """The axes behind the names of a rule; ``None`` when one has no form here, which is then said."""
        found: list[str] = []
        for name in names:
            if name in self.aliases:
                found += self.aliases[name]
            elif name in _AXIS_NAMES:
                found.append(_AXIS_NAMES[name])
            else:
                kind = "a replicate is not coupled" if name in _REPLICATES else "no such axis here"
                self.leave(f"{place}: {name}: {kind}")
                return None
        if len(set(found)) != len(found):
            self.leave(f"{place}: it names an axis twice")
            return None
        return tuple(found)

    def _subset(self, name: str, body: object) -> None:
        axes = self._flat(f"rules.subsets.{name}", [name])
        if axes is None:
            return
        keep = {cells[0] for cells in self._levels(f"rules.subsets.{name}", body) if cells}
        if axes[0] not in self.values:
            self.leave(f"rules.subsets.{name}: the axis is not stated")
            return
        self.values[axes[0]] = [value for value in self.values[axes[0]] if value in keep]

    def _tie(self, name: str, body: object) -> None:
        place = f"rules.ties.{name}"
        names = body.get("axes") if isinstance(body, Mapping) else body
        if not isinstance(names, list):
            raise OlderSpecError(f"{place} names no axes")
        axes = self._flat(place, [str(axis) for axis in names])
        if axes is None:
            return
        if len(axes) < 2 or not all(axis in self.values for axis in axes):
            self.leave(f"{place}: a tie needs two axes or more that are stated")
            return
        first, *others = (self.values[axis] for axis in axes)
        common = [value for value in first if all(value in other for other in others)]
        for axis in axes:
            self.values[axis] = list(common)
        self.aliases[name] = (axes[0],)
        self.couplings.append((axes, [(value,) * len(axes) for value in common], True))

    def _pair(self, name: str, body: object) -> None:
        place = f"rules.pairs.{name}"
        if not isinstance(body, Mapping):
            raise OlderSpecError(f"{place} is no mapping")
        if body.get("balance"):
            self.leave(f"{place}.balance: the pairs are taken as they stand, their balance is not checked")
        self._couple(place, name, [str(body.get("left")), str(body.get("right"))], body.get("allowed"))

    def _tuple(self, name: str, body: object) -> None:
        place = f"rules.tuples.{name}"
        names = body.get("axes") if isinstance(body, Mapping) else None
        if not isinstance(body, Mapping) or not isinstance(names, list):
            raise OlderSpecError(f"{place} names no axes")
        for key in body:
            if key not in ("axes", "items"):
                self.leave(f"{place}.{key}: this key is not known")
        self._couple(place, name, [str(axis) for axis in names], body.get("items"))

    def _couple(self, place: str, name: str, names: Sequence[str], items: object) -> None:
        axes = self._flat(place, names)
        if axes is None:
            return
        allowed = list(dict.fromkeys(self._levels(place, items)))
        bad = [cells for cells in allowed if len(cells) != len(axes)]
        if bad:
            raise OlderSpecError(f"{place}: {', '.join(bad[0])!r} is not one value each of {', '.join(axes)}")
        for at, axis in enumerate(axes):
            if axis not in self.values:  # a tuple may be all that states an axis
                self.values[axis] = list(dict.fromkeys(cells[at] for cells in allowed))
        self.aliases[name] = axes
        self.couplings.append((axes, allowed, False))

    # Narrowing

    def _without_copies_models(self) -> None:
        """A copy asks no model: its place is empty there, and here a model that is not stated."""
        for stage in STAGES:
            axis = f"{stage.value}_model"
            if not stage.inherits_model or _NO_MODEL not in self.values.get(axis, ()):
                continue
            if self.values[axis] == [_NO_MODEL]:
                del self.values[axis]
                self.couplings = [_projected(coupling, axis) for coupling in self.couplings]
            else:
                self.values[axis].remove(_NO_MODEL)
                self.leave(f"{axis} {_NO_MODEL} beside models: a cohort states the models of all, or of none")

    def _prune(self) -> None:
        """Take out the values that no lineage goes through: each rule leaves out what it does not name."""
        couplings = [
            (axes, list(dict.fromkeys(allowed)), tied)
            for axes, allowed, tied in self.couplings
            if len(axes) > 1
        ]
        while True:
            couplings = [
                (
                    axes,
                    [cells for cells in allowed if all(map(self._has, axes, cells))],
                    tied,
                )
                for axes, allowed, tied in couplings
            ]
            if any(not allowed for _, allowed, _ in couplings) or not all(self.values.values()):
                raise OlderSpecError("its rules leave nothing of the product")
            gone: dict[str, set[str]] = {}
            for axes, allowed, _ in couplings:
                for at, axis in enumerate(axes):
                    used = {cells[at] for cells in allowed}
                    gone.setdefault(axis, set()).update(set(self.values[axis]) - used)
            if not any(gone.values()):
                gone = {axis: set(values) for axis, values in self._unused(couplings).items()}
            if not any(gone.values()):
                break
            for axis, values in gone.items():
                self.values[axis] = [value for value in self.values[axis] if value not in values]
        self.couplings = [
            (axes, allowed, tied) for axes, allowed, tied in couplings if not self._is_product(axes, allowed)
        ]

    def _has(self, axis: str, value: str) -> bool:
        return value in self.values[axis]

    def _is_product(self, axes: Sequence[str], allowed: Sequence[tuple[str, ...]]) -> bool:
        size = 1
        for axis in axes:
            size *= len(self.values[axis])
        return len(allowed) == size

    def _unused(
        self, couplings: Sequence[tuple[tuple[str, ...], list[tuple[str, ...]], bool]]
    ) -> dict[str, list[str]]:
        """What the couplings leave unused together; axes that are not stated stand as one unknown value."""
        filled = {axis: tuple(self.values.get(axis) or ("?",)) for axis in AXES}
        axes = Axes(
            tuple(Combo(name, (), "paragraph", 1) for name in filled["combo"]),
            {stage: filled[f"{stage.value}_template"] for stage in STAGES},
            {stage: filled[f"{stage.value}_model"] for stage in STAGES},
            dict.fromkeys(STAGES, 1),
        )
        stated = tuple(Coupling(names, frozenset(allowed), "") for names, allowed, _ in couplings)
        return unused_values(replace(axes, couplings=stated))

    # Writing

    def _toml(self, where: str) -> str:
        lines = [f"# Imported from {json.dumps(where)} by: genworker cohort import-spec"]
        if "combo" in self.values:
            lines.append(f"combos = {_toml_list(self.values['combo'])}")
        for stage in STAGES:
            models = self.values.get(f"{stage.value}_model")
            if stage.inherits_model and models:
                lines.append(f"{stage.value}_models = {_toml_list(models)}")
        for stage in STAGES:
            body = []
            templates = self.values.get(f"{stage.value}_template")
            models = self.values.get(f"{stage.value}_model")
            if templates:
                body.append(f"templates = {_toml_list(templates)}")
            if models and not stage.inherits_model:
                body.append(f"models = {_toml_list(models)}")
            if body or stage in self.replicates:
                # An axis that the older spec does not state has one value there.
                body.append(f"replicates = {self.replicates.get(stage, 1)}")
                lines += ["", f"[{stage.value}]", *body]
        for axes, allowed, tied in self.couplings:
            lines += ["", "[[couple]]", f"axes = {_toml_list(axes)}"]
            if tied:
                lines.append("tie = true")
            else:
                lines += ["allow = [", *(f"  {_toml_list(cells)}," for cells in allowed), "]"]
        return "\n".join(lines) + "\n"


def _projected(
    coupling: tuple[tuple[str, ...], list[tuple[str, ...]], bool], axis: str
) -> tuple[tuple[str, ...], list[tuple[str, ...]], bool]:
    """A coupling without one of its axes."""
    axes, allowed, tied = coupling
    kept = [at for at, name in enumerate(axes) if name != axis]
    return tuple(axes[at] for at in kept), [tuple(cells[at] for at in kept) for cells in allowed], tied


def _cells(place: str, item: object) -> list[str]:
    """The cells of an entry; an entry of a pair may be a tuple itself."""
    if isinstance(item, str):
        return [item.strip()]
    if isinstance(item, list):
        return [cell for part in item for cell in _cells(place, part)]
    raise OlderSpecError(f"{place} holds something that is neither a name nor a list of names")


def _toml_list(values: Sequence[str]) -> str:
    return "[" + ", ".join(json.dumps(value, ensure_ascii=False) for value in values) + "]"
