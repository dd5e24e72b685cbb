"""What is refused or warned of before anything is paid for, by `plan` and by `run`."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.llm_server import LLMServer, Options
from support.project import Project, make_project, membership_rows


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path, membership_rows())


@pytest.mark.parametrize(
    ("stage", "name", "text"),
    [
        ("essay", "rewrite", "Rewrite:\n{draft_block}"),
        ("essay", "rewrite", "Rewrite. {# {{ draft_block }} #}"),
        ("evaluation", "novelty", "How new is {response}? End with SCORE: N"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_template_that_uses_none_of_its_variables(
    project: Project, stage: str, name: str, text: str, command: str
) -> None:
    path = project.paths.template_file(stage, name)
    path.write_text(text, encoding="utf-8")
    with LLMServer(Options()).in_thread() as server:
        project.use_server(server.openai_url)
        done = project.run(command, "trial")
        assert server.requests == 0
    assert done.returncode == 2
    assert f"template {name!r} uses none of its variables" in done.stderr
    assert str(path.relative_to(project.root)) in done.stderr.replace("\n", "")
    assert "two braces" in done.stderr


@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_section_of_a_model_that_nobody_has(project: Project, command: str) -> None:
    project.use_script()
    text = project.config.read_text(encoding="utf-8")
    project.configure(text + '[models."alpah"]\ntemperature = 0.5\n')
    done = project.run(command, "trial")
    assert "belongs to no model; did you mean 'alpha'?" in done.stderr
    assert done.returncode == 0


def test_a_column_that_is_nearly_a_known_one(project: Project) -> None:
    project.use_script()
    path = project.paths.models_csv
    path.write_text(path.read_text(encoding="utf-8").replace("for_evaluation", "for_evaluations"), "utf-8")
    done = project.run("plan", "trial")
    assert done.returncode == 2
    assert "unknown column 'for_evaluations'" in done.stderr
    assert "did you mean for_evaluation?" in done.stderr
