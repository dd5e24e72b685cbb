"""Any experiment: the oracle's rows in the oracle's order, unique ids, parents first, growth that keeps."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import TypeVar

from hypothesis import given, settings
from hypothesis import strategies as st

from genworker.cohorts.axes import (
    AXES,
    Axes,
    ComboChoice,
    Coupling,
    catalog_axes,
    make_combos,
    unused_values,
)
from genworker.cohorts.compile import compile_rows, twins
from genworker.cohorts.growth import FileRows, Growth
from genworker.core.catalog import Catalog
from genworker.core.membership import MembershipRow
from genworker.core.stages import STAGES, Stage
from support.cohorts import REGISTERS, Experiment, make_catalog

T = TypeVar("T")
DRAFT, ESSAY, EVALUATION = STAGES
NAMES = st.text(alphabet="abé-_.1", min_size=1, max_size=4).filter(lambda name: name[0] not in "._-")
AWKWARD = st.sampled_from(["a", "b", "a__b", "b__a", "a_", "_a", "a__b__a", "a|b", "__"])


def lists(names: st.SearchStrategy[str] = NAMES, most: int = 3) -> st.SearchStrategy[list[str]]:
    return st.lists(names, min_size=1, max_size=most, unique=True)


@st.composite
def catalogs(draw: st.DrawFn, names: st.SearchStrategy[str] = NAMES) -> Catalog:
    numbers = st.integers(1, 3)
    return make_catalog(
        concepts=draw(st.lists(NAMES, min_size=2, max_size=4, unique=True)),
        templates={stage: draw(lists(names, 2)) for stage in STAGES},
        models=draw(lists(names, 2)),
        judges=draw(lists(names, 2)),
        replicates={stage: draw(numbers) for stage in STAGES},
    )


def axes_of(catalog: Catalog) -> Axes:
    draft = catalog_axes(catalog, ComboChoice(k_max=2), REGISTERS)
    assert draft.faults == []
    return draft.axes


@st.composite
def coupled(draw: st.DrawFn) -> Axes:
    axes = axes_of(draw(catalogs()))
    if draw(st.booleans()):  # essays by stated models, the drafts' own among them or not
        stated = draw(st.lists(st.sampled_from([*axes.models[DRAFT], "another"]), min_size=1, unique=True))
        axes = replace(axes, models={**axes.models, ESSAY: tuple(stated)})
    names_there = [name for name in AXES if axes.values(name)]
    couplings = []
    for _ in range(draw(st.integers(0, 3))):
        names = draw(st.lists(st.sampled_from(names_there), min_size=2, max_size=3, unique=True))
        everything = list(product(*(axes.values(name) for name in names)))
        allowed = draw(st.lists(st.sampled_from(everything), min_size=1, unique=True))
        couplings.append(Coupling(tuple(names), frozenset(allowed), "cohort.toml"))
    return replace(axes, couplings=tuple(couplings))


def experiment(axes: Axes) -> Experiment:
    return Experiment(
        axes.values("combo"),
        axes.values("draft_template"),
        axes.values("draft_model"),
        axes.values("essay_template"),
        axes.values("evaluation_template"),
        axes.values("evaluation_model"),
        essay_models=axes.values("essay_model") or ("",),
        replicates=(axes.replicates[DRAFT], axes.replicates[ESSAY], axes.replicates[EVALUATION]),
        couplings=[
            (tuple(AXES.index(name) for name in coupling.axes), coupling.allowed)
            for coupling in axes.couplings
        ],
    )


def keys(rows: list[MembershipRow]) -> list[tuple[Stage, str]]:
    return [(row.stage, row.gen_id) for row in rows]


@settings(max_examples=60, deadline=None)
@given(coupled())
def test_rows_are_the_oracles(axes: Axes) -> None:
    rows = list(compile_rows(axes, "trial"))
    plain = [
        (
            row.stage.value,
            row.gen_id,
            row.parent_gen_id or "",
            row.combo_id,
            row.template_id,
            row.llm_model_id,
            row.replicate,
        )
        for row in rows
    ]
    assert plain == list(experiment(axes).rows("trial"))
    if not axes.couplings:
        assert len(rows) == axes.largest_size()


@settings(max_examples=60, deadline=None)
@given(coupled())
def test_values_count_as_unused_exactly_when_no_lineage_has_them(axes: Axes) -> None:
    lineages = experiment(axes).lineages() if axes.couplings else None
    unused = unused_values(axes)
    for place, axis in enumerate(AXES):
        used = set(axes.values(axis)) if lineages is None else {lineage[place] for lineage in lineages}
        assert unused.get(axis, []) == [value for value in axes.values(axis) if value not in used]


@settings(max_examples=100, deadline=None)
@given(catalogs(names=AWKWARD), st.sampled_from(["trial", "rep2", "a|b"]))
def test_no_two_rows_have_one_id_unless_it_is_said(catalog: Catalog, cohort: str) -> None:
    axes = axes_of(catalog)
    found = keys(list(compile_rows(axes, cohort)))
    assert (len(found) == len(set(found))) == (list(twins(axes, cohort, catalog, REGISTERS)) == [])


@settings(max_examples=40, deadline=None)
@given(coupled())
def test_parents_come_before_their_children(axes: Axes) -> None:
    seen: set[tuple[Stage, str]] = set()
    for row in compile_rows(axes, "trial"):
        parent = row.stage.parent
        assert (row.parent_gen_id is None) == (parent is None)
        assert parent is None or (parent, row.parent_gen_id) in seen
        seen.add((row.stage, row.gen_id))


@settings(max_examples=60, deadline=None)
@given(catalogs(), st.data())
def test_growth_keeps_every_id(catalog: Catalog, data: st.DataObject) -> None:
    big = axes_of(catalog)

    def part(values: tuple[str, ...]) -> tuple[str, ...]:
        kept = data.draw(st.sets(st.sampled_from(values), min_size=1))
        return tuple(value for value in values if value in kept)

    small = replace(
        big,
        combos=big.combos[: data.draw(st.integers(1, len(big.combos)))],
        templates={stage: part(big.templates[stage]) for stage in STAGES},
        models={stage: part(values) for stage, values in big.models.items()},
        replicates={stage: data.draw(st.integers(1, number)) for stage, number in big.replicates.items()},
    )
    before = list(compile_rows(small, "trial"))
    file = FileRows()
    for row in before:
        file.rows[row.stage][row.gen_id] = f"{row.gen_id}\n"
    growth = Growth(file)
    after = list(compile_rows(big, "trial"))
    texts = [growth.take(row) for row in after]
    assert growth.gone == []
    assert sum(growth.kept.values()) == len(before)
    assert sum(growth.new.values()) == len(after) - len(before)
    # What stays, stays in its order, as the very rows that it was.
    kept = [row for row, text in zip(after, texts, strict=True) if text is not None]
    assert kept == before


@settings(max_examples=60, deadline=None)
@given(catalogs(), st.randoms(use_true_random=False))
def test_the_order_of_a_dictionarys_keys_does_not_matter(catalog: Catalog, chance: random.Random) -> None:
    def shuffled(entries: Mapping[str, T]) -> dict[str, T]:
        names = list(entries)
        chance.shuffle(names)
        return {name: entries[name] for name in names}

    other = replace(
        catalog,
        templates={stage: shuffled(catalog.templates[stage]) for stage in reversed(STAGES)},
        models=shuffled(catalog.models),
        concepts=shuffled(catalog.concepts),
        replicates=dict(reversed(list(catalog.replicates.items()))),
    )
    assert list(compile_rows(axes_of(other), "trial")) == list(compile_rows(axes_of(catalog), "trial"))


@given(lists(most=5), st.integers(1, 5), st.permutations(range(5)))
def test_a_combos_id_does_not_depend_on_the_order_of_its_concepts(
    concepts: list[str], k_max: int, order: list[int]
) -> None:
    other = [concepts[place] for place in order if place < len(concepts)]
    one = {combo.combo_id for combo in make_combos(concepts, "sentence", k_max)}
    assert one == {combo.combo_id for combo in make_combos(other, "sentence", k_max)}
