"""What a command has to know it reads once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer

import genworker
from genworker.cli.reparse import reparse
from genworker.cli.top import top
from genworker.run import reparse as reparsing
from genworker.store.index import StoreIndex
from support.project import Project, write_catalog
from support.stores import StoreBuilder

ANSWERS = {1: "SCORE: 3", 2: "SCORE: 6"}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(tmp_path)
    project = Project(tmp_path)
    write_catalog(project.data)
    store = StoreBuilder(project.data, "pilot")
    draft = store.draft(
        template="tagged", model="alpha", answer="<essay>The tide.</essay>", parser="essay_block"
    )
    essay = store.essay(draft, template="rewrite", model="alpha")
    for replicate, answer in ANSWERS.items():
        store.evaluation(essay, model="beta", replicate=replicate, answer=answer)
    store.write_membership()
    return project


def told(capfd: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capfd.readouterr().out)


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({"json_": True}, [False]),
        ({"json_": True, "dry_run": True}, [True]),
        ({"dry_run": True}, [True]),
        ({}, [True, False]),
    ],
)
def test_answers_are_parsed_beforehand_only_to_be_shown(
    options: dict[str, Any],
    passes: list[bool],
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    seen: list[bool] = []
    real = reparsing.reparse_cohort

    def counted(*arguments: Any, dry_run: bool = False, **more: Any) -> object:
        seen.append(dry_run)
        return real(*arguments, dry_run=dry_run, **more)

    monkeypatch.setattr(reparsing, "reparse_cohort", counted)
    with pytest.raises(typer.Exit) as ended:
        reparse("pilot", data_root=project.data, **{"stage": None, **options})
    assert ended.value.exit_code == 0
    assert seen == passes
    if options.get("json_"):
        assert told(capfd)["parsed"] == len(ANSWERS) + 2


def test_the_best_and_what_they_have_cost_are_read_from_one_look_at_the_store(
    project: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    money = genworker.money(project.data, "pilot")
    made: list[object] = []
    real = StoreIndex.__init__

    def counted(self: StoreIndex, *arguments: Any, **more: Any) -> None:
        made.append(self)
        real(self, *arguments, **more)

    monkeypatch.setattr(StoreIndex, "__init__", counted)
    with pytest.raises(typer.Exit):
        top("pilot", count=10, data_root=project.data, json_=True)
    assert told(capfd)["money"] == money
    assert len(made) == 1
