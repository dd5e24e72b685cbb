"""``reparse`` and parsers from other packages: what is paid for is read again, without a call."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from genworker import scores
from genworker.core import parsers
from genworker.core.stages import Stage
from genworker.errors import CatalogError, LockedError
from genworker.project import plugins
from genworker.project.open import open_project
from genworker.run.lock import cohort_lock
from genworker.run.reparse import Change, ReparseResult, reparse_cohort
from support.project import Project, write, write_catalog
from support.stores import StoreBuilder

ANSWERS = {1: "SCORE: 3\n\nTotal Score: 8/10", 2: "SCORE: 6", 3: "I will not.\nverdict=4"}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Three answers of one evaluator, each of which another parser reads otherwise."""
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


@pytest.fixture(autouse=True)
def _forget_plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(parsers, "_registered", {stage: {} for stage in Stage})
    plugins.load_parser_plugins.cache_clear()
    yield
    plugins.load_parser_plugins.cache_clear()
    sys.modules.pop("verdicts", None)


def use_parser(project: Project, parser: str, stage: str = "evaluation", template: str = "novelty") -> None:
    path = project.paths.templates_csv(stage)
    cells = [line.split(",") for line in path.read_text().splitlines()]
    column = cells[0].index("parser")
    for row in cells[1:]:
        if row[0] == template:
            row[column] = f'"{parser}"'
    path.write_text("".join(",".join(row) + "\n" for row in cells))


def reparse(project: Project, *stages: Stage, dry_run: bool = False) -> ReparseResult:
    return reparse_cohort(
        open_project(data_root=project.data), "pilot", stages=stages or None, dry_run=dry_run
    )


def found(project: Project) -> list[float | None]:
    return [row.score for row in scores(project.data, "pilot")]


def test_the_present_parsers_are_applied_and_the_old_is_kept(project: Project) -> None:
    assert found(project) == [3.0, 6.0, None]
    use_parser(project, "regex:(?:verdict=|Score: |SCORE: )([0-9])")
    tree = project.tree()
    dry = reparse(project, dry_run=True)
    assert project.tree() == tree
    result = reparse(project)
    assert result == dry
    assert result.parsed == 5
    assert [(change.change, change.old, change.new) for change in result.changes] == [
        (Change.OTHER, "3.0", "8.0"),
        (Change.GAINED, None, "4.0"),
    ]
    assert found(project) == [8.0, 6.0, 4.0]
    gained = result.changes[1].row.gen_id
    (aside,) = project.paths.aside_dir("evaluation", gained).iterdir()
    assert (aside / "raw.txt").read_text() == ANSWERS[3]
    assert not (aside / "parsed.txt").exists()
    metadata = json.loads(project.paths.metadata_path("evaluation", gained).read_text())
    assert (metadata["parser"], metadata["failure"]) == ("regex:(?:verdict=|Score: |SCORE: )([0-9])", None)
    assert metadata["usage"] == {"input_tokens": 100, "output_tokens": 50}, "what it cost stays on record"
    assert metadata["reparsed_at"]
    assert list(project.paths.gens_root.glob("*/.*")) == []
    assert reparse(project).changes == [], "a second time changes nothing"


def test_what_can_no_longer_be_read_says_why_and_comes_back(project: Project) -> None:
    use_parser(project, "regex:nowhere ([0-9])")
    result = reparse(project)
    assert [(change.change, change.old, change.new) for change in result.changes] == [
        (Change.LOST, "3.0", None),
        (Change.LOST, "6.0", None),
    ]
    assert all("matches" in (change.reason or "") for change in result.changes)
    assert found(project) == [None, None, None]
    use_parser(project, "in_last_line")
    reparse(project)
    assert found(project) == [3.0, 6.0, None]


def test_a_draft_that_an_essay_was_made_from_changes_only_when_its_stage_is_named(project: Project) -> None:
    use_parser(project, "identity", "draft", "tagged")
    left = reparse(project)
    assert (left.kept, left.changes) == (1, [])
    forced = reparse(project, Stage.DRAFT)
    assert (forced.kept, forced.children, len(forced.changes)) == (0, 1, 1)
    (draft,) = project.paths.stage_dir("draft").iterdir()
    assert (draft / "parsed.txt").read_text() == "<essay>The tide.</essay>"


def test_a_template_that_the_catalogue_does_not_know_leaves_answers_alone(project: Project) -> None:
    path = project.paths.templates_csv("evaluation")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith("novelty")))
    result = reparse(project)
    assert (result.unknown, result.parsed, result.changes) == (3, 2, [])


def test_answers_that_were_cut_off_stay_failed_whatever_the_parser(project: Project) -> None:
    path = project.paths.metadata_path("evaluation", scores(project.data, "pilot")[1].gen_id)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"finish_reason": "length", "sampling": [1]}))
    # Its text is of no use from the moment on at which its metadata say so: there is nothing to lose.
    assert found(project) == [3.0, None, None]
    assert reparse(project).changes == []
    assert found(project) == [3.0, None, None]


def test_a_cohort_that_a_worker_has_is_left_to_it(project: Project) -> None:
    use_parser(project, "complex")
    with (
        cohort_lock(open_project(data_root=project.data), "pilot", "another"),
        pytest.raises(LockedError, match="another worker"),
    ):
        reparse(project)


def test_a_catalogue_with_a_fault_is_refused(project: Project) -> None:
    use_parser(project, "no_such_parser")
    with pytest.raises(CatalogError, match="no evaluation parser is called 'no_such_parser'"):
        reparse(project)


# Parsers from other packages

VERDICT = """
from genworker.errors import ParseFailedError

def verdict(text):
    if "verdict=" not in text:
        raise ParseFailedError("no verdict")
    return text.rpartition("verdict=")[2].strip() + ".0"
"""


def install(root: Path, monkeypatch: pytest.MonkeyPatch, entry: str, code: str = VERDICT) -> None:
    """A package as pip leaves it."""
    site = root / "site"
    write(site / "verdicts.py", code)
    record = site / "verdicts-1.0.dist-info"
    write(record / "METADATA", "Metadata-Version: 2.1\nName: verdicts\nVersion: 1.0\n")
    write(record / "entry_points.txt", f"[genworker.parsers]\n{entry}\n")
    monkeypatch.syspath_prepend(str(site))


def test_a_parser_of_another_package_is_used(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    install(project.root, monkeypatch, "evaluation.verdict = verdicts:verdict")
    use_parser(project, "verdict")
    reparse(project)
    assert found(project) == [None, None, 4.0]


@pytest.mark.parametrize(
    ("entry", "code", "says"),
    [
        ("evaluation.v = verdicts:verdict", "import nothing_of_that_name", "imported: ModuleNotFoundError"),
        ("evaluation.v = verdicts:verdict", "raise SystemError('x')", "cannot be imported: SystemError: x"),
        ("evaluation.v = verdicts:nope", "", "cannot be imported: AttributeError"),
        ("evaluation.v = verdicts:verdict", "verdict = 3", "it is not a function"),
        ("verdict = verdicts:verdict", VERDICT, "call it one of: draft.NAME, essay.NAME, evaluation.NAME"),
        ("evaluation. = verdicts:verdict", VERDICT, "call it one of"),
        ("evaluation.complex = verdicts:verdict", VERDICT, "is reserved"),
    ],
)
def test_a_parser_that_breaks_says_whose_it_is(
    project: Project, monkeypatch: pytest.MonkeyPatch, entry: str, code: str, says: str
) -> None:
    install(project.root, monkeypatch, entry, code)
    assert reparse(project, dry_run=True).changes == [], "a cohort that does not use it is not hindered"
    use_parser(project, entry.partition(" ")[0].rpartition(".")[2] or "v")
    with pytest.raises(CatalogError) as caught:
        reparse(project)
    assert says in str(caught.value)
    assert "of verdicts cannot be used" in str(caught.value)
    assert found(project) == [3.0, 6.0, None], "what only reads goes on"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("def verdict(text): return {}[text]", "the parser broke: KeyError"),
        ("def verdict(text): return 7.0", "the parser broke: it returned float, not a text"),
        ("def verdict(text): return ' '", "the parser found an empty text"),
    ],
)
def test_a_parser_that_breaks_on_an_answer_costs_that_answer_alone(
    project: Project, monkeypatch: pytest.MonkeyPatch, code: str, says: str
) -> None:
    install(project.root, monkeypatch, "evaluation.verdict = verdicts:verdict", code)
    use_parser(project, "verdict")
    result = reparse(project)
    assert [change.change for change in result.changes] == [Change.LOST, Change.LOST]
    assert all((change.reason or "").startswith(says) for change in result.changes)
