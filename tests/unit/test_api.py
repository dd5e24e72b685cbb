"""The public names, on a store laid out by hand as other tools write it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import genworker
from genworker import Paths, load_generation, read_generation
from support.project import write


def lay_out(data: Path, stage: str, gen_id: str, **files: str) -> None:
    names = {"prompt": "prompt.txt", "raw": "raw.txt", "parsed": "parsed.txt", "metadata": "metadata.json"}
    (data / "gens" / stage / gen_id).mkdir(parents=True)
    for name, text in files.items():
        write(data / "gens" / stage / gen_id / names[name], text)


def test_the_contracts_example_holds(tmp_path: Path) -> None:
    metadata = {"task_id": "t", "template_id": "x", "llm_model_id": "m", "parent_gen_id": "d1"}
    lay_out(tmp_path, "essay", "abc123xyz", prompt="P", raw="R", parsed="T", metadata=json.dumps(metadata))
    paths = Paths.from_str(str(tmp_path))
    gen = load_generation(paths.gens_root, "essay", "abc123xyz")
    assert (gen["parsed_text"], gen["raw_text"], gen["prompt_text"]) == ("T", "R", "P")
    assert gen["metadata"] == metadata
    assert gen["parent_gen_id"] == "d1"
    assert paths.parsed_path("essay", "abc123xyz") == tmp_path / "gens/essay/abc123xyz/parsed.txt"
    assert read_generation(paths.gens_root, "essay", "abc123xyz").model_id == "m"


def test_absent_files_read_as_none_and_raw_as_empty(tmp_path: Path) -> None:
    lay_out(tmp_path, "draft", "d1")
    gen = load_generation(tmp_path / "gens", "draft", "d1")
    assert gen["raw_text"] == ""
    assert [gen[name] for name in ("parsed_text", "prompt_text", "metadata", "parent_gen_id")] == [None] * 4


def test_an_absent_directory_is_an_error_that_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(genworker.StoreError, match="gens/draft/nope"):
        load_generation(tmp_path / "gens", "draft", "nope")


@pytest.mark.parametrize(
    ("stage", "gen_id"), [("poem", "x"), ("draft", "../x"), ("draft", ""), ("draft", "a/b")]
)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, stage: str, gen_id: str) -> None:
    with pytest.raises(ValueError, match=r"poem|separator|empty|dot"):
        load_generation(tmp_path / "gens", stage, gen_id)


def test_line_ends_are_read_as_they_stand(tmp_path: Path) -> None:
    lay_out(tmp_path, "draft", "d1")
    (tmp_path / "gens/draft/d1/raw.txt").write_bytes(b"a\r\nb")
    assert load_generation(tmp_path / "gens", "draft", "d1")["raw_text"] == "a\r\nb"


@pytest.mark.parametrize("content", ["{", "[1]", "[" * 100_000])
def test_broken_metadata_are_an_error_that_names_the_file(tmp_path: Path, content: str) -> None:
    lay_out(tmp_path, "draft", "d1", metadata=content)
    with pytest.raises(genworker.StoreError, match=r"metadata\.json"):
        load_generation(tmp_path / "gens", "draft", "d1")


def test_a_linked_file_or_directory_is_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "secret.txt", "secret")
    lay_out(tmp_path, "draft", "d1")
    (tmp_path / "gens/draft/d1/raw.txt").symlink_to(tmp_path / "secret.txt")
    (tmp_path / "gens/draft/d2").symlink_to(tmp_path / "gens/draft/d1")
    for gen_id in ("d1", "d2"):
        with pytest.raises(genworker.StoreError):
            load_generation(tmp_path / "gens", "draft", gen_id)


def test_paths_know_the_layout() -> None:
    paths = Paths.from_str("data")
    assert paths.cohort_membership_csv("c") == Path("data/cohorts/c/membership.csv")
    assert paths.cohort_manifest_json("c") == Path("data/cohorts/c/manifest.json")
    assert paths.template_file("draft", "t") == Path("data/1_raw/templates/draft/t.txt")
    assert paths.generation_dir("evaluation", "g") == Path("data/gens/evaluation/g")
    assert paths.metadata_path("draft", "g").name == "metadata.json"


def test_paths_answer_to_the_older_projects_names() -> None:
    paths = Paths.from_str("data")
    assert paths.raw_dir == paths.catalog_dir == Path("data/1_raw")
    assert paths.llm_models_csv == paths.models_csv == Path("data/1_raw/llm_models.csv")
    for stage in ("draft", "essay", "evaluation"):
        assert paths.stage_templates_csv(stage) == paths.templates_csv(stage)
        assert paths.stage_templates_csv(stage).name == f"{stage}_templates.csv"
    assert paths.selected_combo_mappings_csv == paths.selected_combos_csv
    assert paths.selected_combo_mappings_csv.name == "selected_combo_mappings.csv"
    scores = paths.aggregated_scores_csv("reeds")
    assert scores == Path("data/cohorts/reeds/reports/aggregated_scores.csv")


def test_importing_the_package_is_cheap() -> None:
    """Notebooks import it; so the SDKs, pydantic and structlog must not come along."""
    code = (
        "import sys, genworker; "
        "heavy = {'openai', 'anthropic', 'pydantic', 'structlog', 'aiohttp', 'rich'} & set(sys.modules); "
        "assert not heavy, heavy; assert all(hasattr(genworker, name) for name in genworker.__all__)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
