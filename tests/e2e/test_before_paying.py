"""What is refused or warned of before anything is paid for, by `plan` and by `run`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.llm_server import LLMServer, Options, Rule
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


TWELVE = membership_rows(drafts=("plain", "tagged"))
"""Rows enough for a look before the run."""
KINDS = ("openai", "anthropic")
NAMES = ("vendor/alpha", "vendor/beta")


def _run(project: Project, options: Options, kind: str, *command: str) -> tuple[str, int, LLMServer]:
    server = LLMServer(options)
    with server.in_thread():
        url = server.openai_url if kind == "openai" else server.anthropic_url
        project.use_server(url, kind, "api_key_env = 'LOOK_KEY'")
        done = project.run(*command, LOOK_KEY="sk-secret-secret-secret")
    assert "secret" not in done.stdout + done.stderr
    return done.stderr, done.returncode, server


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", [("run", "trial"), ("plan", "trial", "--check")])
def test_a_wrong_key_is_told_before_a_call(tmp_path: Path, kind: str, command: tuple[str, ...]) -> None:
    project = make_project(tmp_path, TWELVE)
    said, code, server = _run(project, Options(list_status=401), kind, *command)
    assert (code, server.received, server.lists) == (2, 0, 1)
    assert "test cannot be used: HTTP 401" in said
    assert "LOOK_KEY" in said


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_is_not_listed_is_a_warning(tmp_path: Path, kind: str) -> None:
    project = make_project(tmp_path, TWELVE)
    listed = Options(listed=("vendor/alpha", "vendor/betta"))
    said, code, _ = _run(project, listed, kind, "plan", "trial", "--check")
    assert code == 0
    assert said.replace("\n", " ").count("does not list the model") == 1
    assert "did you mean 'vendor/betta'?" in said.replace("\n", " ")
    said, code, _ = _run(project, Options(listed=NAMES), kind, "plan", "trial", "--check")
    assert code == 0
    assert "does not list" not in said
    assert "test: answers, and lists its models" in said


@pytest.mark.parametrize(
    ("options", "is_listed"),
    [
        (Options(list_status=404, latency_s=0.4), False),
        (Options(list_status=500, latency_s=0.4), False),
        (Options(list_latency_s=20.0, latency_s=0.4), False),
        (Options(listed=NAMES, latency_s=0.4), True),
    ],
)
def test_where_there_is_no_list_few_calls_go_first(tmp_path: Path, options: Options, is_listed: bool) -> None:
    two = membership_rows(essays=())
    rows = [{**two[n % 2], "gen_id": f"draft-{n:04d}", "replicate": str(n // 2 + 1)} for n in range(20)]
    project = make_project(tmp_path, rows)
    _, code, server = _run(project, options, "openai", "run", "trial", "-q")
    assert (code, server.lists) == (0, 1)
    first = min(record.received for record in server.records)
    early = sum(record.received < first + 0.3 for record in server.records)
    # Three a lane; with a list as many as a slow machine sends within the time, and more than that.
    assert early > 6 if is_listed else early <= 6


MANY = 30
"""Rows of a run that must not be refused one by one."""


def _many(models: int) -> list[dict[str, str]]:
    two = membership_rows(essays=())
    return [
        {
            **two[0],
            "gen_id": f"draft-{n:04d}",
            "replicate": str(n // models + 1),
            "llm_model_id": two[n % 2]["llm_model_id"],
        }
        for n in range(MANY)
    ]


@pytest.mark.parametrize("crew", [(), ("--engine", "local", "--workers", "2")], ids=["alone", "crew"])
@pytest.mark.parametrize("fault", ["401", "404", "400"])
def test_without_a_list_a_wrong_key_or_name_costs_a_handful_of_calls(
    tmp_path: Path, fault: str, crew: tuple[str, ...]
) -> None:
    project = make_project(tmp_path, _many(2))
    options = Options(list_status=404, rules=(Rule(fault),), latency_s=0.05)
    said, code, server = _run(project, options, "openai", "run", "trial", *crew)
    assert code == 1
    # A refused input stops a lane after five equal ones; each worker counts for itself, and there are two lanes.
    at_most = 20 if crew else 12
    assert server.received <= (at_most if fault == "400" else 6)
    assert f"HTTP {fault}" in said
    assert "was stopped" in said.replace("\n", " ")


@pytest.mark.parametrize("crew", [(), ("--engine", "local", "--workers", "2")], ids=["alone", "crew"])
def test_a_crew_is_told_of_a_wrong_key_before_a_call(tmp_path: Path, crew: tuple[str, ...]) -> None:
    project = make_project(tmp_path, TWELVE)
    said, code, server = _run(project, Options(list_status=401), "openai", "run", "trial", *crew)
    assert (code, server.received, server.lists) == (2, 0, 1)
    assert "LOOK_KEY" in said


def test_an_address_without_its_version_is_told_and_costs_a_handful_of_calls(tmp_path: Path) -> None:
    project = make_project(tmp_path, _many(2))
    with LLMServer(Options(only_below="/v1", listed=NAMES)).in_thread() as server:
        project.use_server(server.anthropic_url)
        done = project.run("plan", "trial", "--check", "--json")
        found = json.loads(done.stdout)["endpoints"]["test"]
        assert done.returncode == 0
        assert (found["lists_models"], found["list_below"]) == (False, f"{server.anthropic_url}/v1")
        assert "HTTP 404" in found["why_not"]
        assert f'set base_url = "{server.anthropic_url}/v1"' in done.stderr.replace("\n", " ")
        looks = server.strays
        done = project.run("run", "trial")
        assert (done.returncode, server.paid) == (1, 0)
        assert server.strays - looks <= 1 + 6
        said = done.stderr.replace("\n", " ").replace('\\"', '"')
        assert f'set base_url = "{server.anthropic_url}/v1"' in said
        assert f"asked {server.anthropic_url}/chat/completions; base_url lacks its version" in said


def test_what_the_check_found_for_machines(tmp_path: Path) -> None:
    project = make_project(tmp_path, TWELVE)
    with LLMServer(Options(listed=("vendor/alpha",))).in_thread() as server:
        project.use_server(server.openai_url)
        done = project.run("plan", "trial", "--check", "--json")
    assert json.loads(done.stdout)["endpoints"] == {
        "test": {"lists_models": True, "why_not": None, "list_below": None, "not_listed": ["vendor/beta"]}
    }


def test_an_address_that_leads_nowhere(tmp_path: Path) -> None:
    project = make_project(tmp_path, TWELVE)
    project.use_server("https://no-such-host.invalid/v1")
    done = project.run("run", "trial")
    assert done.returncode == 2
    assert "the name no-such-host.invalid does not resolve" in done.stderr.replace("\n", " ")
