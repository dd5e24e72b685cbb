"""A specification: short ones, whole ones, and every fault of a bad one with its line."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import replace

import pytest

from genworker.cohorts.axes import AxesDraft, ComboChoice
from genworker.cohorts.compile import compile_rows
from genworker.cohorts.spec import PairTable, Specification, spec_axes
from genworker.cohorts.toml_lines import TomlLines
from genworker.core.catalog import Catalog, Combo
from genworker.core.ids import combo_id
from genworker.core.stages import STAGES
from genworker.errors import Fault
from support.cohorts import REGISTERS, make_catalog

DRAFT, ESSAY, EVALUATION = STAGES
CATALOG = make_catalog(
    templates={
        DRAFT: ("plain", "tagged"),
        ESSAY: ("rewrite", "keep"),
        EVALUATION: ("novelty", "rigour"),
    },
    replicates={DRAFT: 1, ESSAY: 1, EVALUATION: 2},
)
FIVE_LINES = """\
concepts = ["moss", "kites"]
k_max = 2
draft = { templates = ["tagged", "plain"], models = ["alpha"], replicates = 2 }
essay = { templates = ["rewrite"] }
evaluation = { templates = ["novelty"], models = ["beta"] }
"""


def read(
    text: str,
    *,
    catalog: Catalog = CATALOG,
    tables: Mapping[str, PairTable] | None = None,
    choice: ComboChoice | None = None,
    models: tuple[str, ...] = (),
) -> AxesDraft:
    def table(name: str) -> PairTable | Fault:
        return (tables or {}).get(name) or Fault("the file does not exist", where=name)

    spec = Specification(tomllib.loads(text), text, "cohort.toml", table)
    return spec_axes(spec, catalog, choice or ComboChoice(), REGISTERS, models)


def faults(text: str, **how: object) -> list[tuple[int | None, str]]:
    return [(fault.line, fault.what) for fault in read(text, **how).faults]  # type: ignore[arg-type]


def test_five_lines_are_an_experiment() -> None:
    draft = read(FIVE_LINES)
    assert draft.faults == []
    axes = draft.axes
    assert [combo.concept_ids for combo in axes.combos] == [("kites", "moss")]
    assert axes.templates == {DRAFT: ("plain", "tagged"), ESSAY: ("rewrite",), EVALUATION: ("novelty",)}
    assert axes.models == {DRAFT: ("alpha",), EVALUATION: ("beta",)}
    assert axes.replicates == {DRAFT: 2, ESSAY: 1, EVALUATION: 2}
    assert len(list(compile_rows(axes, "trial"))) == 4 + 4 + 8


def test_what_is_left_out_comes_from_the_catalogue() -> None:
    axes = read("k_max = 3").axes
    assert [combo.combo_id for combo in axes.combos] == [combo_id(("kites", "locks", "moss"), "paragraph", 3)]
    assert axes.templates == {stage: tuple(CATALOG.templates[stage]) for stage in STAGES}
    assert axes.models == {DRAFT: ("alpha", "beta"), EVALUATION: ("alpha", "beta")}


def test_the_order_of_keys_and_names_does_not_matter() -> None:
    lines = FIVE_LINES.splitlines()
    other = "\n".join(reversed(lines)).replace('["tagged", "plain"]', '["plain", "tagged"]')
    assert list(compile_rows(read(other).axes, "trial")) == list(compile_rows(read(FIVE_LINES).axes, "trial"))


def test_what_is_inactive_can_be_named() -> None:
    entry = replace(CATALOG.templates[DRAFT]["plain"], active=False)
    concept = replace(CATALOG.concepts["moss"], active=False)
    catalog = replace(
        CATALOG,
        templates={**CATALOG.templates, DRAFT: {**CATALOG.templates[DRAFT], "plain": entry}},
        concepts={**CATALOG.concepts, "moss": concept},
    )
    draft = read(FIVE_LINES, catalog=catalog)
    assert draft.faults == []
    assert draft.axes.templates[DRAFT] == ("plain", "tagged")


def test_models_of_the_configuration_can_be_named() -> None:
    draft = read('draft = { models = ["gamma", "alpha"] }', models=("gamma",))
    assert draft.faults == []
    assert draft.axes.models[DRAFT] == ("alpha", "gamma")


def test_combos_can_be_listed_by_concepts_or_by_a_registered_id() -> None:
    mine = Combo("mine", ("locks",), "article", 1)
    draft = read(
        'combos = [["moss", "kites"], "mine"]\nlevel = "sentence"',
        catalog=replace(CATALOG, combos={"mine": mine}),
    )
    assert draft.faults == []
    assert draft.axes.combos == (
        Combo(combo_id(("kites", "moss"), "sentence", 2), ("kites", "moss"), "sentence", 2),
        mine,
    )


def test_selected_combos_are_used_where_the_specification_names_none() -> None:
    chosen = {"mine": Combo("mine", ("locks",), "article", 1)}
    assert read("", choice=ComboChoice(selected=chosen)).axes.combos == (chosen["mine"],)
    assert len(read("k_max = 2", choice=ComboChoice(selected=chosen)).axes.combos) == 3


def test_lineages_can_end_earlier() -> None:
    axes = read('last_stage = "essay"').axes
    assert axes.templates[EVALUATION] == ()
    assert {row.stage for row in compile_rows(axes, "trial")} == {DRAFT, ESSAY}
    assert faults('last_stage = "essay"\n[evaluation]\nreplicates = 2')[0][0] == 2
    assert faults('last_stage = "page"') == [(1, "unknown stage 'page'")]


COUPLE = """
[[couple]]
axes = ["draft_template", "essay_template"]
allow = [["plain", "rewrite"], ["tagged", "keep"]]
"""


def test_a_coupling_inline_or_from_a_table_beside_it() -> None:
    inline = read(COUPLE)
    table = PairTable(
        "pairs.csv",
        ("draft_template", "essay_template"),
        [(2, ("plain", "rewrite")), (3, ("tagged", "keep"))],
    )
    beside = read('[[couple]]\ncsv = "pairs.csv"', tables={"pairs.csv": table})
    assert inline.faults == beside.faults == []
    rows = list(compile_rows(inline.axes, "trial"))
    assert rows == list(compile_rows(beside.axes, "trial"))
    drafts = {row.gen_id: row.template_id for row in rows if row.stage is DRAFT}
    pairs = {(drafts[row.parent_gen_id or ""], row.template_id) for row in rows if row.stage is ESSAY}
    assert pairs == {("plain", "rewrite"), ("tagged", "keep")}


def test_essays_by_other_models_than_their_drafts() -> None:
    text = FIVE_LINES.replace('models = ["alpha"]', 'models = ["alpha", "beta"]')
    rows = list(compile_rows(read('essay_models = ["beta"]\n' + text).axes, "trial"))
    inherited = list(compile_rows(read(text).axes, "trial"))
    assert {row.llm_model_id for row in rows if row.stage is ESSAY} == {"beta"}
    # Where the stated model is the draft's own, the essay is the very one that it is without the key.
    by_beta = {row.gen_id for row in inherited if row.stage is ESSAY and row.llm_model_id == "beta"}
    assert by_beta < {row.gen_id for row in rows if row.stage is ESSAY}
    assert len({row.gen_id for row in rows}) == len(rows)


def test_axes_that_move_together() -> None:
    text = FIVE_LINES.replace('models = ["alpha"]', 'models = ["alpha", "beta"]')
    tie = '\n[[couple]]\naxes = ["draft_model", "essay_model"]\ntie = true\n'
    rows = compile_rows(read('essay_models = ["alpha", "beta"]\n' + text + tie).axes, "trial")
    assert list(rows) == list(compile_rows(read(text).axes, "trial"))


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ('essay_models = ["gamma"]', 1, "unknown model 'gamma'"),
        ("essay_models = []", 1, "essay_models is empty"),
        ('last_stage = "draft"\nessay_models = ["alpha"]', 2, "lineages end with the draft"),
        ('[[couple]]\naxes = ["draft_model", "essay_model"]\ntie = true', 2, "unknown axis 'essay_model'"),
        ('[[couple]]\naxes = ["draft_model", "evaluation_model"]\ntie = 1', 3, "tie is 1"),
        (
            '[[couple]]\naxes = ["combo", "draft_model"]\ntie = true',
            1,
            "no value stands in each of combo, draft_model",
        ),
    ],
)
def test_faults_of_essay_models_and_ties(text: str, line: int, what: str) -> None:
    assert (line, what) in faults(text)


def test_an_evaluator_and_an_essay_template_can_be_tied() -> None:
    text = """
    [[couple]]
    axes = ["essay_template", "evaluation_template", "evaluation_model"]
    allow = [["rewrite", "novelty", "alpha"], ["keep", "rigour", "beta"]]
    """
    draft = read(text)
    assert draft.faults == []
    rows = [row for row in compile_rows(draft.axes, "trial") if row.stage is EVALUATION]
    assert {(row.template_id, row.llm_model_id) for row in rows} == {("novelty", "alpha"), ("rigour", "beta")}


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ('concepts = ["kites", "lock"]', 1, "unknown concept 'lock'"),
        ('concepts = [\n  "kites",\n  "lock",\n]', 3, "unknown concept 'lock'"),
        ("concepts = []", 1, "concepts is empty"),
        ('concepts = "kites"', 1, "concepts is not a list of names"),
        ('concepts = ["kites"]', 1, "there are 1 concepts, too few for combos of 2"),
        ('concepts = ["kites", "kites", "moss"]', 1, "'kites' stands twice"),
        ("k_max = true", 1, "k_max is True"),
        ("k_max = 0", 1, "k_max is 0"),
        ("k_max = 9", 1, "there are 3 active concepts, too few for combos of 9"),
        ('level = "word"', 1, "unknown level 'word'"),
        ('combos = ["combo_v1_0"]', 1, "unknown combo 'combo_v1_0'"),
        ("combos = []", 1, "combos is empty"),
        ('combos = [["kites", "moss"], ["moss", "kites"]]', 1, "a combo stands twice: kites, moss"),
        ('combos = [["kites", "moss"]]\nconcepts = ["kites"]', 1, "concepts and combos are both given"),
        ("draft = 3", 1, "draft is not a table"),
        ('[draft]\ntemplates = ["plan"]', 2, "unknown draft template 'plan'"),
        ("[draft]\ntemplates = []", 2, "templates is empty"),
        ('[draft]\ntemplats = ["plain"]', 2, "unknown key 'templats'"),
        ("[draft]\nreplicates = 1.5", 2, "replicates is 1.5"),
        ('[essay]\nmodels = ["alpha"]', 2, "an essay is written by its draft's model"),
        ('\n\n[evaluation]\nmodels = ["gamma"]', 4, "unknown model 'gamma'"),
        ("evaluations = 3", 1, "unknown key 'evaluations'"),
        ("couple = 3", 1, "couple is not a list of tables"),
        ("[[couple]]", 1, "a coupling needs either allow or csv"),
        ('[[couple]]\nallow = [["a", "b"]]', 1, "a coupling names its axes"),
        (
            '[[couple]]\naxes = ["draft_template", "essay"]\nallow = [["plain", "keep"]]',
            2,
            "unknown axis 'essay'",
        ),
        ('[[couple]]\naxes = ["combo"]\nallow = [["x"]]', 2, "a coupling ties two or more different axes"),
        (
            '[[couple]]\naxes = ["draft_template", "essay_template"]\nallow = []',
            3,
            "allow is empty: nothing would be left",
        ),
        ('[[couple]]\ncsv = "../pairs.csv"', 2, "csv is '../pairs.csv'"),
    ],
)
def test_one_fault_is_one_message_with_its_line(text: str, line: int, what: str) -> None:
    assert faults(text) == [(line, what)]


def test_a_value_that_the_axis_does_not_have_is_found_in_its_tuple() -> None:
    text = COUPLE.replace('["tagged", "keep"]', '\n ["tagged", "kept"],\n ["plain"]')
    assert faults(text) == [
        (5, "unknown essay_template 'kept'"),
        (4, "'plain' is no tuple of 2 values"),
    ]


def test_a_coupling_that_leaves_a_value_unused_is_found_at_its_place() -> None:
    assert faults(COUPLE.replace('"tagged"', '"plain"')) == [
        (2, "this coupling leaves values of draft_template unused: tagged")
    ]
    table = PairTable(
        "pairs.csv", ("draft_template", "essay_template"), [(2, ("plain", "rewrite")), (3, ("plain", "keep"))]
    )
    found = read('[[couple]]\ncsv = "pairs.csv"', tables={"pairs.csv": table}).faults
    assert [(fault.where, fault.what) for fault in found] == [
        ("pairs.csv", "this coupling leaves values of draft_template unused: tagged")
    ]


def test_couplings_that_only_together_leave_a_value_unused_are_found() -> None:
    text = COUPLE + (
        '[[couple]]\naxes = ["draft_template", "draft_model"]\nallow = [["plain", "alpha"], ["tagged", "beta"]]\n'
        '[[couple]]\naxes = ["essay_template", "draft_model"]\nallow = [["rewrite", "alpha"], ["keep", "alpha"], ["rewrite", "beta"]]\n'
    )
    found = faults(text)
    assert [line for line, _ in found] == [2, 5, 2]
    assert found[0][1] == "the couplings together leave values of draft_template unused: tagged"


def test_faults_of_a_table_name_its_lines() -> None:
    header = ("draft_template", "essay_template")
    table = PairTable(
        "pairs.csv", header, [(2, ("plain", "rewrite")), (3, ("tagged", "kept")), (5, ("plain",))]
    )
    found = read('[[couple]]\ncsv = "pairs.csv"', tables={"pairs.csv": table}).faults
    assert [(fault.where, fault.line) for fault in found] == [("pairs.csv", 3), ("pairs.csv", 5)]
    missing = read('[[couple]]\ncsv = "none.csv"').faults
    assert [(fault.where, fault.what) for fault in missing] == [("none.csv", "the file does not exist")]


def test_all_faults_come_at_once_and_none_twice() -> None:
    text = (
        FIVE_LINES.replace('"moss"', '"mos"')
        .replace("k_max = 2", "k_max = 0")
        .replace('"rewrite"', '"rewrites"')
    )
    text += '[[couple]]\naxes = ["essay_template", "draft_template"]\nallow = [["rewrites", "plain"]]\n'
    assert faults(text) == [
        (2, "k_max is 0"),
        (1, "unknown concept 'mos'"),
        (4, "unknown essay template 'rewrites'"),
        (6, "this coupling leaves values of draft_template unused: tagged"),
    ]


def test_lines_of_keys() -> None:
    lines = TomlLines('a = 1\n[b]\n"c d" = 2 # [x]\n[[e]]\nf.g = 3\n[[e]]\nf.g = [\n "one",\n "two",\n]\n')
    assert lines.of("a") == 1
    assert lines.of("b", "c d") == 3
    assert lines.of("e", 0, "f", "g") == 5
    assert lines.of("e", 1, "f", "g", value="two") == 9
    assert lines.of("e", 1, "missing") == 6
    assert lines.of("nowhere") is None
