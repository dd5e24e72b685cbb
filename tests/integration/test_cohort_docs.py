"""The examples of docs/cohorts.md, over the project that `genworker init` writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from genworker.cli.init import starter_files
from genworker.core.stages import STAGES
from genworker.project.build import BuildOptions, plan_build, survey, write_build
from genworker.project.open import open_project

DOCS = Path(__file__).parents[2] / "docs" / "cohorts.md"
EXPECTED = {"pairs": (3 * 2, 12, 24), "tied": (1 * 2, 4, 10)}


def examples() -> dict[str, str]:
    blocks = re.findall(r"```toml\n# data/cohorts/(\w+)/cohort.toml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    return dict(blocks)


@pytest.mark.parametrize("cohort", sorted(EXPECTED))
def test_an_example_builds(cohort: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in starter_files():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    monkeypatch.chdir(tmp_path)
    directory = tmp_path / "data" / "cohorts" / cohort
    directory.mkdir(parents=True)
    (directory / "cohort.toml").write_text(examples()[cohort])
    (table,) = re.findall(r"```csv\n(.*?)```", DOCS.read_text(), re.DOTALL)
    (directory / "judges.csv").write_text(table)
    plan = plan_build(open_project(), BuildOptions(cohort))
    found = write_build(plan)
    assert tuple(found.rows[stage] for stage in STAGES) == EXPECTED[cohort]
    assert not survey(plan).growth.gone


def test_every_example_is_tried() -> None:
    assert set(examples()) == set(EXPECTED)
    assert len(examples()["pairs"].splitlines()) == 5
