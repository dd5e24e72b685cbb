"""The concepts behind combos, by name, for readers: a store without a catalogue has its ids all the same."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from genworker.paths import Paths
from genworker.store.csvfile import CsvFault, open_csv


def concepts_of(paths: Paths, wanted: Collection[str]) -> Mapping[str, tuple[str, ...]]:
    """The names of the concepts of each of these combos, in the combo's order.

    A combo that the data root does not know is left out; a concept without a name in the catalogue has its
    id. What is wrong in these files is no matter for a reader: `genworker plan` says it.
    """
    ids: dict[str, list[str]] = {}
    for path in (paths.combo_mappings_csv, paths.selected_combos_csv):
        known = set(ids)
        for combo, concept in _pairs(path, "combo_id", "concept_id"):
            if combo in wanted and combo not in known:
                ids.setdefault(combo, []).append(concept)
    needed = {concept for concepts in ids.values() for concept in concepts}
    names = {
        concept: name
        for concept, name in _pairs(paths.concepts_csv, "concept_id", "name")
        if concept in needed
    }
    return {
        combo: tuple(names.get(concept) or concept for concept in concepts) for combo, concepts in ids.items()
    }


def _pairs(path: Path, key: str, value: str) -> Iterator[tuple[str, str]]:
    try:
        with open_csv(path) as (header, records):
            names = [name.strip() for name in header]
            if key not in names or value not in names:
                return
            first, second = names.index(key), names.index(value)
            for _, cells in records:
                if len(cells) > max(first, second):
                    yield cells[first].strip(), cells[second].strip()
    except CsvFault:
        return
