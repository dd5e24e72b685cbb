"""Axes to rows: the contract's table, order, replicates, couplings, and names that run into each other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from genworker.cohorts.axes import (
    Axes,
    ComboChoice,
    Coupling,
    catalog_axes,
    check_size,
    conflicting_combos,
    make_combos,
    undescribed,
    unused_values,
)
from genworker.cohorts.compile import Given, compile_rows, twins
from genworker.cohorts.manifest import derived_cohort_id
from genworker.core.catalog import Catalog, Combo
from genworker.core.ids import combo_id
from genworker.core.membership import MembershipRow
from genworker.core.stages import STAGES
from support.cohorts import REGISTERS, Experiment, make_catalog, oracle_id

DRAFT, ESSAY, EVALUATION = STAGES


def axes_of(catalog: Catalog, k_max: int = 2) -> Axes:
    draft = catalog_axes(catalog, ComboChoice(k_max=k_max), REGISTERS)
    assert draft.faults == []
    return draft.axes


def plain(rows: list[MembershipRow]) -> list[tuple[str, str, str, str, str, str, int]]:
    return [
        (
            row.stage.value,
            row.gen_id,
            row.parent_gen_id or "",
            row.combo_id,
            row.template_id,
            row.llm_model_id or "",
            row.replicate,
        )
        for row in rows
    ]


def test_the_contracts_table_of_ids() -> None:
    combo = Combo("combo_v1_85128e4e5ef3", ("x",), "paragraph", 1)
    axes = Axes(
        (combo,),
        {
            DRAFT: ("creative-synthesis-v10",),
            ESSAY: ("synthesis-theme-narrative-v18",),
            EVALUATION: ("novelty",),
        },
        {DRAFT: ("gemini_25_pro",), EVALUATION: ("sonnet-4",)},
        {DRAFT: 2, ESSAY: 2, EVALUATION: 2},
    )
    rows = list(compile_rows(axes, "cohort-demo"))
    assert [row.gen_id for row in rows[:2]] == ["5sx41aalj0lt6w33", "5c3bic6z26s8lvl0"]
    assert [row.gen_id for row in rows[2:5]] == ["2dqttfulxmw8vbx2", "1diqhgf7cwefm9gg", "47srww2i37a4fh9t"]
    assert [row.gen_id for row in rows[6:8]] == ["4plvl3539q0wt7p3", "3471qz7gzye9jiev"]


def test_the_contracts_combo_id() -> None:
    concepts = ("default-mode-network", "dearth-ai-discoveries")
    assert [combo.combo_id for combo in make_combos(concepts, "paragraph", 2)] == ["combo_v1_6981e3734666"]


def test_the_oracle_agrees_with_the_contract() -> None:
    task = "combo_v1_85128e4e5ef3__creative-synthesis-v10__gemini_25_pro"
    assert oracle_id("draft", task, "cohort-demo", "rep2") == "5c3bic6z26s8lvl0"


def test_rows_are_the_product_in_the_catalogues_order_replicates_innermost() -> None:
    catalog = make_catalog(replicates={DRAFT: 2, ESSAY: 3, EVALUATION: 2})
    combos = [
        combo_id(pair, "paragraph", 2) for pair in (("kites", "locks"), ("kites", "moss"), ("locks", "moss"))
    ]
    expected = Experiment(
        combos, ["plain", "tagged"], ["alpha", "beta"], ["rewrite"], ["novelty"], ["alpha", "beta"], (2, 3, 2)
    )
    rows = list(compile_rows(axes_of(catalog), "trial"))
    assert plain(rows) == list(expected.rows("trial"))
    assert len(rows) == 3 * 2 * 2 * 2 * (1 + 3 * (1 + 2 * 2))


def test_only_active_templates_and_marked_models_are_used() -> None:
    catalog = make_catalog(models=("alpha", "beta"), judges=("beta", "gamma"))
    entry = catalog.templates[DRAFT]["plain"]
    templates = {
        **catalog.templates,
        DRAFT: {**catalog.templates[DRAFT], "plain": replace(entry, active=False)},
    }
    axes = axes_of(replace(catalog, templates=templates))
    assert axes.templates[DRAFT] == ("tagged",)
    assert axes.models == {DRAFT: ("alpha", "beta"), EVALUATION: ("beta", "gamma")}


def test_selected_combos_stand_in_place_of_all_subsets() -> None:
    chosen = {"mine": Combo("mine", ("moss", "kites"), "sentence", 2)}
    draft = catalog_axes(make_catalog(), ComboChoice(k_max=3, selected=chosen), REGISTERS)
    assert draft.axes.combos == (chosen["mine"],)
    assert (
        catalog_axes(make_catalog(), ComboChoice(selected={}, selected_file="s.csv"), REGISTERS)
        .faults[0]
        .where
        == "s.csv"
    )


def test_more_replicates_keep_every_id() -> None:
    before = {row.gen_id for row in compile_rows(axes_of(make_catalog(replicates={EVALUATION: 2})), "trial")}
    grown = make_catalog(replicates={DRAFT: 2, ESSAY: 3, EVALUATION: 4})
    after = [row.gen_id for row in compile_rows(axes_of(grown), "trial")]
    assert before < set(after)
    assert len(after) == len(set(after))


@pytest.mark.parametrize(
    ("catalog", "what", "where"),
    [
        (
            make_catalog(concepts=("one",)),
            "there are 1 active concepts, too few for combos of 2",
            "concepts_metadata.csv",
        ),
        (make_catalog(models=(), judges=("x",)), "no model is marked for_generation", "llm_models.csv"),
        (make_catalog(judges=()), "no model is marked for_evaluation", "llm_models.csv"),
        (
            make_catalog(templates={DRAFT: (), ESSAY: ("e",), EVALUATION: ("v",)}),
            "no draft template is active",
            "draft_templates.csv",
        ),
        (
            make_catalog(templates={DRAFT: ("d",), ESSAY: (), EVALUATION: ("v",)}),
            "nothing to evaluate",
            "essay_templates.csv",
        ),
        (make_catalog(concepts=tuple(f"c{n}" for n in range(64))), "combos of 32", "concepts_metadata.csv"),
    ],
)
def test_an_axis_without_a_value_is_a_fault(catalog: Catalog, what: str, where: str) -> None:
    k_max = 32 if len(catalog.concepts) > 32 else 2
    faults = catalog_axes(catalog, ComboChoice(k_max=k_max), REGISTERS).faults
    assert [(what in fault.what, fault.where) for fault in faults] == [(True, where)]


def test_an_experiment_may_end_with_drafts_or_essays() -> None:
    only = make_catalog(templates={DRAFT: ("d",), ESSAY: (), EVALUATION: ()}, judges=())
    assert {row.stage for row in compile_rows(axes_of(only), "trial")} == {DRAFT}
    essays = make_catalog(templates={DRAFT: ("d",), ESSAY: ("e",), EVALUATION: ()}, judges=())
    assert {row.stage for row in compile_rows(axes_of(essays), "trial")} == {DRAFT, ESSAY}


def test_a_product_that_nobody_meant_is_refused_before_it_is_made() -> None:
    axes = axes_of(make_catalog(replicates={DRAFT: 900_000, ESSAY: 900, EVALUATION: 1}))
    assert "rows; the limit is" in next(check_size(axes)).what
    assert axes.largest_size() == 3 * 2 * 2 * 900_000 * (1 + 900 * (1 + 2))
    assert list(check_size(axes_of(make_catalog()))) == []


def coupling(*axes: str, allow: list[tuple[str, ...]]) -> Coupling:
    return Coupling(axes, frozenset(allow), "cohort.toml", 7)


def test_a_coupling_leaves_out_what_it_does_not_allow() -> None:
    axes = replace(
        axes_of(make_catalog()),
        couplings=(
            coupling("evaluation_model", "draft_model", allow=[("beta", "alpha"), ("alpha", "beta")]),
        ),
    )
    models = {row.gen_id: row.llm_model_id for row in compile_rows(axes, "trial")}
    judged = [
        (models[row.parent_gen_id or ""], row.llm_model_id)
        for row in compile_rows(axes, "trial")
        if row.stage is EVALUATION
    ]
    assert set(judged) == {("alpha", "beta"), ("beta", "alpha")}


def test_nothing_is_bought_that_no_lineage_goes_on_from() -> None:
    templates = {DRAFT: ("plain", "tagged"), ESSAY: ("rewrite", "keep"), EVALUATION: ("novelty",)}
    axes = replace(
        axes_of(make_catalog(templates=templates)),
        couplings=(
            coupling("draft_template", "essay_template", allow=[("plain", "rewrite"), ("tagged", "keep")]),
            coupling("draft_model", "essay_template", allow=[("alpha", "rewrite"), ("beta", "keep")]),
        ),
    )
    drafts = {
        (row.template_id, row.llm_model_id) for row in compile_rows(axes, "trial") if row.stage is DRAFT
    }
    assert drafts == {("plain", "alpha"), ("tagged", "beta")}
    assert unused_values(axes) == {}


def test_couplings_that_only_together_leave_a_value_unused_are_found() -> None:
    axes = replace(
        axes_of(make_catalog()),
        couplings=(
            coupling("draft_template", "draft_model", allow=[("plain", "alpha"), ("tagged", "beta")]),
            coupling("draft_template", "evaluation_model", allow=[("plain", "alpha"), ("tagged", "beta")]),
            coupling("draft_model", "evaluation_model", allow=[("alpha", "alpha"), ("beta", "alpha")]),
        ),
    )
    assert unused_values(axes) == {
        "draft_template": ["tagged"],
        "draft_model": ["beta"],
        "evaluation_model": ["beta"],
    }


def test_given_essays_keep_their_ids_and_only_evaluations_are_made() -> None:
    axes = axes_of(make_catalog(replicates={EVALUATION: 2}))
    everything = list(compile_rows(axes, "first"))
    drafts = [row for row in everything if row.stage is DRAFT][:2]
    essays = [row for row in everything if row.parent_gen_id in {row.gen_id for row in drafts}][:3]
    curated = replace(axes, combos=(), templates={**axes.templates, DRAFT: (), ESSAY: ()})
    rows = list(compile_rows(curated, "second", Given(drafts, essays)))
    assert rows[: len(drafts) + len(essays)] == [*drafts, *essays]
    assert [row.gen_id for row in rows[len(drafts) + len(essays) :]] == [
        oracle_id("evaluation", f"{essay.gen_id}__novelty__{judge}", "second", salt)
        for essay in essays
        for judge in ("alpha", "beta")
        for salt in ("", "rep2")
    ]


def test_given_drafts_get_essays_under_the_new_cohorts_ids() -> None:
    axes = axes_of(make_catalog(replicates={DRAFT: 2, ESSAY: 2}))
    drafts = [row for row in compile_rows(axes, "first") if row.stage is DRAFT][:2]
    curated = replace(axes, combos=(), templates={**axes.templates, DRAFT: ()})
    essays = [row for row in compile_rows(curated, "second", Given(drafts)) if row.stage is ESSAY]
    task = f"{drafts[0].combo_id}__plain__alpha__rewrite"
    assert [row.gen_id for row in essays] == [
        oracle_id("essay", task, "second", salt) for salt in ("", "rep1-2", "rep2-1", "rep2-2")
    ]
    assert list(twins(curated, "second", make_catalog(), REGISTERS, Given(drafts))) == []


def test_the_same_draft_of_two_cohorts_cannot_have_essays_in_one() -> None:
    axes = axes_of(make_catalog())
    both = [next(compile_rows(axes, "first")), next(compile_rows(axes, "other"))]
    curated = replace(axes, combos=(), templates={**axes.templates, DRAFT: ()})
    faults = list(twins(curated, "second", make_catalog(), REGISTERS, Given(both)))
    assert f"{both[0].gen_id} and {both[1].gen_id} are the same replicate" in faults[0].what


def test_two_tasks_with_one_id_are_found_with_file_and_line() -> None:
    templates = {DRAFT: ("a", "a__b"), ESSAY: ("e",), EVALUATION: ("v",)}
    catalog = make_catalog(templates=templates, models=("b__c", "c"), judges=("c",))
    faults = list(twins(axes_of(catalog), "trial", catalog, REGISTERS))
    drafts = [fault for fault in faults if fault.where == "draft_templates.csv"]
    assert len(drafts) == 1
    assert "template 'a' model 'b__c'" in drafts[0].what
    assert "template 'a__b' model 'c'" in drafts[0].what
    assert drafts[0].line == 3


def test_names_that_only_look_ambiguous_are_no_fault() -> None:
    templates = {DRAFT: ("a__b", "_c"), ESSAY: ("e_",), EVALUATION: ("v|w",)}
    catalog = make_catalog(templates=templates)
    assert list(twins(axes_of(catalog), "trial", catalog, REGISTERS)) == []


def test_the_derived_id_is_of_the_axes_alone() -> None:
    one = derived_cohort_id(axes_of(make_catalog()), None)
    assert one == derived_cohort_id(axes_of(make_catalog()), None)
    assert one.startswith("cohort-")
    assert len(one) == len("cohort-") + 12
    others = [
        axes_of(make_catalog(), k_max=3),
        axes_of(make_catalog(replicates={ESSAY: 2})),
        axes_of(make_catalog(models=("alpha",))),
    ]
    assert len({one, *(derived_cohort_id(axes, None) for axes in others)}) == 4


def test_a_concept_without_any_description_is_a_fault_at_its_line() -> None:
    catalog = make_catalog()
    bare = replace(catalog.concepts["locks"], descriptions={"article": ""})
    catalog = replace(catalog, concepts={**catalog.concepts, "locks": bare})
    faults = list(undescribed(axes_of(catalog), catalog, REGISTERS))
    assert [(fault.where, fault.line) for fault in faults] == [("concepts_metadata.csv", 3)]
    one_only = axes_of(catalog, k_max=1)
    assert len(list(undescribed(replace(one_only, combos=one_only.combos[:1]), catalog, REGISTERS))) == 0


def test_a_combo_that_is_registered_with_other_concepts_is_a_conflict() -> None:
    mine = Combo("pair", ("kites", "locks"), "paragraph", 2)
    same = Combo("pair", ("locks", "kites"), "paragraph", 2)
    assert list(conflicting_combos([mine], {"pair": same}, "combo_mappings.csv")) == []
    for other in (
        replace(mine, concept_ids=("kites",)),
        replace(mine, level="article"),
        replace(mine, k_max=3),
    ):
        assert len(list(conflicting_combos([mine], {"pair": other}, "combo_mappings.csv"))) == 1
