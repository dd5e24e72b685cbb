"""Chosen generations as rows, from metadata as genworker and other tools write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genworker.cohorts.compile import Given
from genworker.cohorts.curated import given_rows, read_ids
from genworker.core.facts import Facts
from genworker.core.membership import MembershipRow
from genworker.core.stages import STAGES, Stage
from genworker.errors import Fault
from support.cohorts import REGISTERS, make_catalog

DRAFT, ESSAY, _ = STAGES
STORE: dict[tuple[Stage, str], Mapping[str, Any]] = {
    (DRAFT, "d1"): {
        "template_id": "plain",
        "model_id": "alpha",
        "combo_id": "combo_v1_1",
        "task_id": "t",
        "parent_gen_id": "",
        "replicate": 3,
    },
    (DRAFT, "foreign"): {
        "template_id": "plain",
        "llm_model_id": "beta",
        "task_id": "combo_v1_2__plain__beta",
        "parent_gen_id": "",
    },
    (DRAFT, "odd"): {"template_id": "plain", "model_id": "alpha", "task_id": "else", "parent_gen_id": ""},
    (DRAFT, "stranger"): {"template_id": "plain", "model_id": "delta", "combo_id": "c", "parent_gen_id": ""},
    (DRAFT, "configured"): {
        "template_id": "plain",
        "model_id": "gamma",
        "combo_id": "c",
        "parent_gen_id": "",
        "replicate": True,
    },
    (ESSAY, "e1"): {"template_id": "rewrite", "model_id": "alpha", "parent_gen_id": "d1", "replicate": 2},
    (ESSAY, "copy"): {"template_id": "rewrite", "model_id": "", "parent_gen_id": "foreign"},
    (ESSAY, "orphan"): {"template_id": "rewrite", "model_id": "alpha", "parent_gen_id": "lost"},
    (ESSAY, "alone"): {"template_id": "rewrite", "model_id": "alpha"},
    (ESSAY, "old"): {"template_id": "forgotten", "model_id": "alpha", "parent_gen_id": "d1"},
    (ESSAY, "odd"): {"template_id": "rewrite", "model_id": "alpha", "parent_gen_id": "odd"},
}


def given_by(stage: Stage, *names: str) -> tuple[Given, list[Fault]]:
    def read(where: Stage, name: str) -> Facts | str:
        found = STORE.get((where, name))
        return "is not in the store" if found is None else Facts(found)

    ids = [(line, name) for line, name in enumerate(names, start=1)]
    return given_rows(stage, ids, "second", read, make_catalog(), REGISTERS, ["gamma"], "list.txt")


def test_essays_bring_their_drafts_once_each() -> None:
    given, faults = given_by(ESSAY, "e1", "copy", "e1")
    assert faults == []
    assert given.drafts == (
        MembershipRow(DRAFT, "d1", "second", None, "combo_v1_1", "plain", "alpha", 3, None),
        MembershipRow(DRAFT, "foreign", "second", None, "combo_v1_2", "plain", "beta", 1, None),
    )
    assert given.essays is not None
    assert given.essays[0] == MembershipRow(
        ESSAY, "e1", "second", "d1", "combo_v1_1", "rewrite", "alpha", 2, None
    )
    assert given.essays[1].llm_model_id == "beta"  # a copy is its draft's model's


def test_drafts_alone() -> None:
    given, faults = given_by(DRAFT, "foreign", "d1")
    assert faults == []
    assert [row.gen_id for row in given.drafts] == ["foreign", "d1"]
    assert given.essays is None


def test_every_broken_lineage_is_named_with_its_line() -> None:
    _, faults = given_by(ESSAY, "e1", "nowhere", "orphan", "alone", "old", "odd")
    assert [(fault.where, fault.line) for fault in faults] == [("list.txt", line) for line in (2, 3, 4, 5, 6)]
    words = [fault.what for fault in faults]
    assert words[0] == "essay nowhere: is not in the store"
    assert words[1] == "essay orphan: its draft lost: is not in the store"
    assert words[2] == "essay alone: its metadata name no parent"
    assert "'forgotten' is not registered" in words[3]
    assert "name no combo" in words[4]


def test_a_model_is_known_to_the_catalogue_or_the_configuration() -> None:
    given, faults = given_by(DRAFT, "stranger", "configured")
    assert [fault.what for fault in faults] == [
        "draft stranger: its model 'delta' is not registered in llm_models.csv"
    ]
    assert [(row.llm_model_id, row.replicate) for row in given.drafts] == [("gamma", 1)]


def test_a_list_has_comments_and_says_what_is_no_id() -> None:
    ids, faults = read_ids("# mine\ne1\n\n  e2  # good\ne1\n../x\n-rf\n", "list.txt")
    assert ids == [(2, "e1"), (4, "e2")]
    assert [(fault.line, fault.where) for fault in faults] == [(6, "list.txt"), (7, "list.txt")]
