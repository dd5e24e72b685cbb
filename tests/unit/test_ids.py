from __future__ import annotations

import pytest

from genworker.core.ids import (
    combo_id,
    draft_task_id,
    essay_salt,
    essay_task_id,
    evaluation_task_id,
    gen_id,
    id_fault,
    replicate_salt,
    seed_for,
)
from genworker.core.stages import Stage

COHORT = "cohort-demo"
DRAFT = draft_task_id("combo_v1_85128e4e5ef3", "creative-synthesis-v10", "gemini_25_pro")
ESSAY = essay_task_id(DRAFT, "synthesis-theme-narrative-v18")


@pytest.mark.parametrize(
    ("stage", "task", "salt", "expected"),
    [
        (Stage.DRAFT, DRAFT, replicate_salt(1), "5sx41aalj0lt6w33"),
        (Stage.DRAFT, DRAFT, replicate_salt(2), "5c3bic6z26s8lvl0"),
        (Stage.ESSAY, ESSAY, essay_salt(1, 1), "2dqttfulxmw8vbx2"),
        (Stage.ESSAY, ESSAY, essay_salt(1, 2), "1diqhgf7cwefm9gg"),
        (Stage.ESSAY, ESSAY, essay_salt(2, 1), "47srww2i37a4fh9t"),
    ],
)
def test_gen_ids_are_those_of_the_contract(stage: Stage, task: str, salt: str | None, expected: str) -> None:
    assert gen_id(stage, task, COHORT, salt) == expected


@pytest.mark.parametrize(("replicate", "expected"), [(1, "4plvl3539q0wt7p3"), (2, "3471qz7gzye9jiev")])
def test_evaluations_are_named_after_their_essay(replicate: int, expected: str) -> None:
    essay = gen_id(Stage.ESSAY, ESSAY, COHORT)
    task = evaluation_task_id(essay, "novelty", "sonnet-4")
    assert gen_id(Stage.EVALUATION, task, COHORT, replicate_salt(replicate)) == expected


def test_a_combo_is_named_after_its_sorted_concepts() -> None:
    names = ["default-mode-network", "dearth-ai-discoveries"]
    assert combo_id(names, "paragraph", 2) == "combo_v1_6981e3734666"
    assert combo_id(reversed(names), "paragraph", 2) == "combo_v1_6981e3734666"


@pytest.mark.parametrize(
    "value",
    [
        "",
        "../x",
        "/etc/passwd",
        "a/b",
        "a\\b",
        ".hidden",
        "..",
        "a..b",
        "-rf",
        "a\0b",
        "a\n",
        "\x1b[31m",
        "x" * 129,
        "語" * 43,
        "\ud800",
        "ａｂｃ",
        "e\u0301",
        "a\u202eb",
        "a\u200bb",
        " a",
        "a ",
    ],
)
def test_what_cannot_name_a_directory_is_refused(value: str) -> None:
    assert id_fault(value) is not None


@pytest.mark.parametrize("value", ["5sx41aalj0lt6w33", "a-b_c.d", "gemini_2.5_flash", "x" * 128, "é", "語"])
def test_plain_names_are_accepted(value: str) -> None:
    assert id_fault(value) is None


def test_a_seed_belongs_to_its_generation() -> None:
    seeds = {seed_for(f"gen{number}") for number in range(1000)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert seed_for("gen1") == seed_for("gen1")


def test_the_seed_behind_a_seed_is_another_and_always_the_same() -> None:
    chain = [seed_for("gen1")]
    for _ in range(100):
        chain.append(seed_for("gen1", chain[-1]))
    assert len(set(chain)) == len(chain)
    assert all(0 <= seed < 2**31 for seed in chain)
    assert seed_for("gen1", 7) == seed_for("gen1", 7) != seed_for("gen2", 7)
