"""Every example of the documentation does what its page says; every option and key stands in the reference."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import genworker
from genworker.core.facts import AnswerFacts, CallFacts, CopyFacts, MalformedFacts, RowFacts, field_names
from genworker.core.parsers import get_parser, parser_names
from genworker.core.stages import Stage
from genworker.errors import ExitCode, ParseFailedError
from genworker.project.settings import Settings, load_settings
from genworker.store import catalog

from . import reference
from .blocks import DOCS, RUN, Block, Page, Player, pages, read_page
from .example import COHORT, lay_out

# Pages whose examples are played; the long ones ask a fake in place of the embedded model.
PAGES = {page.name: page for page in pages()}
FAKE = {
    "GENWORKER_ENDPOINTS__EMBEDDED__KIND": "scripted",
    "GENWORKER_ENDPOINTS__EMBEDDED__LATENCY_S": "0.1",
    "GENWORKER_ENDPOINTS__EMBEDDED__MAX_CONCURRENCY": "8",
}
ASKS_THE_FAKE = {"start/tutorial.md"}
CONTINUES = {page.note("continues"): page.name for page in PAGES.values() if page.note("continues")}


def is_played(page: Page) -> bool:
    return page.note("not run") is None and any(
        block.language in RUN and block.note("not run") is None for block in page.blocks
    )


@pytest.mark.parametrize(
    "name", sorted(name for name, page in PAGES.items() if is_played(page) and not page.note("continues"))
)
def test_the_examples_of_a_page_run(name: str, tmp_path: Path) -> None:
    player = Player(tmp_path, FAKE if name in ASKS_THE_FAKE else {})
    player.begin(PAGES[name])
    player.play(PAGES[name])
    following = CONTINUES.get(name)
    while following is not None:
        player.play(PAGES[following])
        following = CONTINUES.get(following)


@pytest.mark.slow
def test_the_tutorial_holds_for_the_model_that_it_names(tmp_path: Path) -> None:
    """The fake ends its answers by itself; a small model does so only where the page sees to it."""
    page = PAGES["start/tutorial.md"]
    player = Player(tmp_path)
    player.play(Page(page.path, [block for block in page.blocks if block.title is not None], []))
    commands = "genworker cohort build first\ngenworker run first --limit 6\n"
    player.play(Page(page.path, [Block("sh", commands, 1, None, False, [])], []))
    assert "6 calls, 6 answers" in player.printed


@pytest.mark.parametrize("name", sorted(PAGES))
def test_what_is_not_run_has_a_reason(name: str) -> None:
    for block in PAGES[name].blocks:
        if block.language in RUN:
            reason = block.note("not run")
            assert reason is None or len(reason.split()) >= 3, f"{name}:{block.line}"


def configurations() -> list[tuple[str, int, str]]:
    return [
        (page.name, block.line, block.text)
        for page in PAGES.values()
        for block in page.blocks
        if block.language == "toml"
        and (block.title is None or block.title == "config/genworker.toml")
        and not block.text.startswith("# data/cohorts/")
        and "not a configuration" not in block.notes
    ]


@pytest.mark.parametrize(
    ("name", "line", "text"),
    configurations(),
    ids=lambda value: str(value) if not isinstance(value, str) else value[:40],
)
def test_a_configuration_in_the_docs_is_accepted(
    name: str, line: int, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = tomllib.loads(text)
    endpoints = {"dry": {"kind": "scripted"}}
    missing = ""
    # An excerpt may speak of an endpoint that another excerpt of the page has.
    for section in ("endpoints", "models"):
        for entry in found.get(section, {}).values():
            for key in ("endpoint", "fallback_endpoint"):
                if (
                    isinstance(entry, dict)
                    and entry.get(key)
                    and entry[key] not in found.get("endpoints", {})
                ):
                    endpoints[entry[key]] = {"kind": "scripted"}
    default = found.get("default_endpoint")
    if default and default not in found.get("endpoints", {}):
        endpoints[default] = {"kind": "scripted"}
    for endpoint in endpoints.keys() - found.get("endpoints", {}).keys():
        missing += f'\n[endpoints.{endpoint}]\nkind = "scripted"\n'
    (tmp_path / "c.toml").write_text(text + missing)
    load_settings(tmp_path / "c.toml")


@pytest.mark.parametrize("name", sorted(reference.PAGES))
def test_a_generated_page_is_what_the_code_says(name: str) -> None:
    page = DOCS / name
    assert page.read_text(encoding="utf-8") == reference.PAGES[name](), "run: make reference"


def test_every_key_of_the_configuration_is_explained() -> None:
    assert reference.unexplained() == []


def test_the_exit_codes_are_those_of_the_code() -> None:
    text = (DOCS / "reference" / "exit-codes.md").read_text(encoding="utf-8")
    found = {int(code): name for code, name in re.findall(r"^\| (\d+) \| (\w+) \|", text, re.MULTILINE)}
    assert found == {int(code): code.name for code in ExitCode}


def test_every_page_stands_in_the_menu_of_the_site() -> None:
    menu = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r":\s*([\w/-]+\.md)$", menu, re.MULTILINE))
    assert named == set(PAGES)


def test_the_pages_name_no_command_that_does_not_exist() -> None:
    commands = set(re.findall(r"^## (.+)$", reference.commands_page(), re.MULTILINE))
    first = {command.split()[0] for command in commands}
    for page in PAGES.values():
        for block in page.blocks:
            for word in re.findall(r"^\s*(?:\S+/)?genworker ([a-z]+)", block.text, re.MULTILINE):
                assert word in first, f"{page.name}:{block.line} names genworker {word}"


def test_settings_have_no_field_that_is_not_in_the_reference() -> None:
    text = reference.configuration_page()
    for name in Settings.model_fields:
        assert f"`{name}`" in text or f"[{name}" in text


def test_a_player_notices_what_differs(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```sh\necho one\n```\n<!-- output -->\n```text\ntwo\n```\n")
    with pytest.raises(AssertionError, match="differs"):
        Player(tmp_path).play(Page(DOCS / "x.md", read_page(page).blocks, []))


def test_a_player_notices_an_exit_code(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```sh\nexit 3\n```\n")
    with pytest.raises(AssertionError, match="exit code 3"):
        Player(tmp_path).play(Page(DOCS / "x.md", read_page(page).blocks, []))


def parser_examples() -> list[tuple[str, str, str]]:
    text = (DOCS / "reference" / "parsers.md").read_text(encoding="utf-8")
    table = text[text.index("| the answer ends with") :]
    return re.findall(r"^\| `(.+?)` \| ([^|]+?) \| ([\d.]+|–) \|$", table, re.MULTILINE)


@pytest.mark.parametrize(("answer", "parser", "score"), parser_examples())
def test_an_example_of_a_parser_is_true(answer: str, parser: str, score: str) -> None:
    found = get_parser(Stage.EVALUATION, parser)
    text = f"Some reasons first.\n\n{answer}" if not answer.startswith(("<think>", "{")) else answer
    if score == "–":
        with pytest.raises(ParseFailedError):
            found(text)
    else:
        assert found(text) == score


def test_every_parser_stands_on_its_page() -> None:
    text = (DOCS / "reference" / "parsers.md").read_text(encoding="utf-8")
    for stage in Stage:
        for name in parser_names(stage):
            assert f"`{name}`" in text, name
    assert len(parser_examples()) == 10


def test_the_keys_of_the_metadata_are_those_that_are_written() -> None:
    text = (DOCS / "reference" / "store.md").read_text(encoding="utf-8")
    part = text[text.index("## metadata.json") : text.index("## .genworker")]
    named = set(
        re.findall(
            r"`(\w+)`", "\n".join(line.split("|")[1] for line in part.splitlines() if line.startswith("| `"))
        )
    )
    written = {
        name
        for kind in (RowFacts, CallFacts, AnswerFacts, CopyFacts, MalformedFacts)
        for name in field_names(kind)
    }
    assert written | {"truncated", "failure", "files"} == named


def test_every_column_of_the_catalogue_stands_on_its_page() -> None:
    text = (DOCS / "reference" / "catalogue.md").read_text(encoding="utf-8")
    source = inspect.getsource(catalog)
    for column in set(re.findall(r'row\.get\("(\w+)"', source)) | set(re.findall(r'row\["(\w+)"\]', source)):
        assert f"`{column}`" in text, column


def test_the_variables_of_templates_stand_on_their_page() -> None:
    text = (DOCS / "reference" / "templates.md").read_text(encoding="utf-8")
    for stage in Stage:
        for name in stage.variables:
            assert f"| {stage.value} | `{name}` |" in text
        pair = ", ".join(f"`{name}`" for name in stage.pair_variables)
        assert f"| {stage.value} | {pair} |" in text or not pair


def test_the_example_report_finds_what_was_planted(tmp_path: Path) -> None:
    lay_out(tmp_path)
    found = {
        (one["factor"], one["level"]): one
        for one in genworker.findings(tmp_path / "data", COHORT)
        if one["claimed"]
    }
    templates = [one for one in found.values() if {one["level"], one["against"]} == {"dialogue", "plain"}]
    assert len(templates) == 1
    assert found["self_preference", "alder"]["low"] > 0
    assert any(factor == "combo_id" for factor, _ in found)
    assert not any(factor == "generation_template" for factor, _ in found)


def test_the_example_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)
    cells = json.loads((DOCS / "examples" / "scores.ipynb").read_text(encoding="utf-8"))["cells"]
    program = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "draft_template" in done.stdout
    assert "self_preference alder" in done.stdout
