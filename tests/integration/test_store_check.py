"""`verify`: each planted damage is found and named; a repair never makes anything worse."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crash.lab import open_lab
from genworker.cli.verify import make_check
from genworker.project.open import open_project
from genworker.store.check import Check, Finding, Step, repair


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store of seven generations, and a whole run to go on with."""
    home = tmp_path_factory.mktemp("store")
    with open_lab() as lab:
        lab.fresh()
        assert lab.run().status == 0
        shutil.copytree(lab.root.parent, home / "made")
    return home / "made"


@pytest.fixture
def root(healthy: Path, tmp_path: Path) -> Path:
    shutil.copytree(healthy, tmp_path / "copy", symlinks=True)
    return tmp_path / "copy" / "data"


def check(root: Path, cohort: str | None = None) -> Check:
    return make_check(open_project(root.parent / "gw.toml", root), cohort)


def kinds(findings: list[Finding]) -> set[str]:
    return {finding.kind.value for finding in findings}


def edit_metadata(path: Path, **changes: Any) -> None:
    record = json.loads(path.read_text())
    record.update(changes)
    path.write_text(json.dumps({key: value for key, value in record.items() if value is not ...}))


def refuse(root: Path, gen: str, text: str) -> None:
    """Make an answer one that no parser could read, as a run would have committed it."""
    directory = root / "gens" / "evaluation" / gen
    (directory / "raw.txt").write_text(text)
    (directory / "parsed.txt").unlink()
    record = json.loads((directory / "metadata.json").read_text())
    del record["files"]["parsed.txt"]
    record["files"]["raw.txt"] = {
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "size_bytes": len(text),
    }
    record["failure"] = {"kind": "unparseable", "message": "no score"}
    (directory / "metadata.json").write_text(json.dumps(record))


def stage_of_dead_run(root: Path) -> None:
    staged = root / "gens/draft/.run-20200101T000000Z-dead0000/zz"
    staged.mkdir(parents=True)
    (staged / "raw.txt").write_text("half")


def log_of_dead_run(root: Path) -> None:
    shutil.rmtree(root / "gens/evaluation/v1x1")
    line = {
        "stage": "evaluation",
        "gen_id": "v1x1",
        "replace": False,
        "prompt": "p",
        "raw": "SCORE: 3",
        "facts": {"parser": "in_last_line"},
    }
    (root / ".genworker/runs/20200101T000000Z-dead0000.answers-1").write_text(json.dumps(line) + "\n")


def odd_log_of_dead_run(root: Path) -> None:
    log_of_dead_run(root)
    path = root / ".genworker/runs/20200101T000000Z-dead0000.answers-1"
    path.write_bytes(b"\0\0\n" + path.read_bytes() + b'{"stage":"poem"}\n')


def odd_journal(root: Path) -> None:
    (root / ".genworker/runs/20200101T000000Z-dead0000.jsonl").write_text(
        '[]\n{"event":"from tomorrow"}\n{}\n'
    )


def odd_ledger(root: Path) -> None:
    grow(root / ".genworker/ledger/runs.jsonl", '\n{"run_id":"gone","cohort":"c1","spending":7\n')


def damaged_packed_journal(root: Path) -> None:
    text = b'{"event":"from tomorrow"}\n' * 4000
    packed = bytearray(gzip.compress(text))
    packed[20:] = bytes(len(packed) - 20)
    (root / ".genworker/runs/20200101T000000Z-dead0000.jsonl.gz").write_bytes(packed)


def link_directory(root: Path) -> None:
    target = root.parent / "elsewhere"
    shutil.move(root / "gens/draft/d1", target)
    (root / "gens/draft/d1").symlink_to(target)


def link_file(root: Path) -> None:
    path = root / "gens/draft/d1/parsed.txt"
    shutil.move(path, root.parent / "outside.txt")
    path.symlink_to(root.parent / "outside.txt")


def empty_directory(root: Path) -> None:
    (root / "gens/draft/hollow").mkdir(mode=0o700)


def no_answer(root: Path) -> None:
    for name in ("raw.txt", "parsed.txt"):
        (root / "gens/draft/d1" / name).unlink()
    edit_metadata(root / "gens/draft/d1/metadata.json", files={})


def wrong_stage_parent(root: Path) -> None:
    edit_metadata(root / "gens/evaluation/v1x1/metadata.json", parent_gen_id="d1")


def not_a_file(root: Path) -> None:
    path = root / "gens/draft/d1/parsed.txt"
    path.unlink()
    os.mkfifo(path, 0o600)


def grow(path: Path, text: str = "!") -> None:
    with path.open("a") as stream:
        stream.write(text)


def unlisted(root: Path) -> None:
    shutil.copytree(root / "gens/draft/d1", root / "gens/draft/d9")
    edit_metadata(root / "gens/draft/d9/metadata.json", gen_id="d9")


DAMAGE: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "raw text changed": ("digest", lambda root: grow(root / "gens/draft/d1/raw.txt")),
    "prompt changed": ("digest", lambda root: grow(root / "gens/essay/e1/prompt.txt")),
    "parsed text cut to nothing": ("digest", lambda root: (root / "gens/draft/d2/parsed.txt").write_text("")),
    "raw text gone": ("file-missing", lambda root: (root / "gens/draft/d1/raw.txt").unlink()),
    "parsed text gone": ("file-missing", lambda root: (root / "gens/essay/e1/parsed.txt").unlink()),
    "metadata gone": ("no-metadata", lambda root: (root / "gens/draft/d1/metadata.json").unlink()),
    "metadata torn": (
        "bad-metadata",
        lambda root: (root / "gens/draft/d1/metadata.json").write_text('{"stage": '),
    ),
    "metadata zeroed": ("bad-metadata", lambda root: (root / "gens/draft/d1/metadata.json").write_text("")),
    "metadata a list": ("bad-metadata", lambda root: (root / "gens/draft/d1/metadata.json").write_text("[]")),
    "metadata without a template": (
        "bad-metadata",
        lambda root: edit_metadata(root / "gens/draft/d1/metadata.json", template_id=...),
    ),
    "nothing but a reasonless remnant": ("no-answer", no_answer),
    "an empty directory": ("empty", empty_directory),
    "bytes that are no text": (
        "not-text",
        lambda root: (root / "gens/draft/d1/raw.txt").write_bytes(b"\xff\xfe"),
    ),
    "moved to another name": (
        "misplaced",
        lambda root: (root / "gens/draft/d2").rename(root / "gens/draft/d3"),
    ),
    "another stage's metadata": (
        "misplaced",
        lambda root: edit_metadata(root / "gens/essay/e1/metadata.json", stage="draft"),
    ),
    "another template than the membership's": (
        "contradiction",
        lambda root: edit_metadata(root / "gens/draft/d1/metadata.json", template_id="other"),
    ),
    "a failure beside a parsed text": (
        "contradiction",
        lambda root: edit_metadata(
            root / "gens/draft/d1/metadata.json", failure={"kind": "empty", "message": ""}
        ),
    ),
    "the parent gone": ("parent-missing", lambda root: shutil.rmtree(root / "gens/essay/e1")),
    "a parent of the wrong stage": ("parent-stage", wrong_stage_parent),
    "the template changed": (
        "stale",
        lambda root: (root / "1_raw/templates/draft/dt.txt").write_text("Other words for {{ concepts }}"),
    ),
    "an answer that can be parsed now": ("unparsed", lambda root: refuse(root, "v1x1", "SCORE: 4")),
    "in no membership": ("unlisted", unlisted),
    "staging left behind": ("staging", stage_of_dead_run),
    "answers left behind": ("answers", log_of_dead_run),
    "answers that nobody can read": ("odd-lines", odd_log_of_dead_run),
    "lines of a journal that nobody can read": ("odd-lines", odd_journal),
    "sums that nobody can read, without a journal": ("odd-lines", odd_ledger),
    "a packed journal that is damaged": ("unreadable", damaged_packed_journal),
    "a directory that is a link": ("link", link_directory),
    "a file that is a link": ("link", link_file),
    "a foreign file in a generation": (
        "foreign",
        lambda root: (root / "gens/draft/d1/notes.txt").write_text("x"),
    ),
    "a foreign file among generations": (
        "foreign",
        lambda root: (root / "gens/draft/.DS_Store").write_text("x"),
    ),
    "a foreign stage": ("foreign", lambda root: (root / "gens/poem").mkdir()),
    "a pipe in place of a file": ("foreign", not_a_file),
    "a name that is none": ("bad-name", lambda root: (root / "gens/draft/-rf").mkdir()),
    "open to everybody": ("permissions", lambda root: (root / "gens/draft/d1/raw.txt").chmod(0o666)),
    "a membership that is none": (
        "membership",
        lambda root: (root / "cohorts/c1/membership.csv").write_text("stage,gen_id\n"),
    ),
}


DONE_ALL_THE_SAME = {
    "raw text gone",
    "bytes that are no text",
    "moved to another name",
    "another stage's metadata",
}
"""Damage to generations that count as done, with metadata and a text in their place."""


def test_a_healthy_store_has_no_finding(root: Path) -> None:
    whole = check(root)
    assert whole.run() == []
    assert whole.checked == 7
    assert check(root, "c1").run() == []


@pytest.mark.parametrize("name", DAMAGE)
def test_planted_damage_is_found(root: Path, name: str) -> None:
    kind, plant = DAMAGE[name]
    plant(root)
    findings = check(root).run()
    assert kind in kinds(findings), findings
    assert all(finding.place and finding.what for finding in findings)


def test_odd_lines_are_named_by_file_and_number(root: Path) -> None:
    runs = root / ".genworker/runs"
    odd_log_of_dead_run(root)
    odd_journal(root)
    (runs / "20200102T000000Z-dead0000.jsonl").write_text('{"event":"from tomorrow"}\n{"event":"torn')
    (runs / "20200103T000000Z-dead0000.jsonl").write_text("x\n" * 9)
    odd_ledger(root)
    found = {
        Path(finding.place).name: (finding.what.partition(";")[0], finding.severity.value)
        for finding in check(root).run()
        if finding.kind.value == "odd-lines"
    }
    assert found.pop("runs.jsonl")[1] == "damage"
    assert found == {
        "20200101T000000Z-dead0000.answers-1": ("line 3 cannot be read, or not in full", "damage"),
        "20200101T000000Z-dead0000.jsonl": ("lines 1, 3 cannot be read", "damage"),
        "20200102T000000Z-dead0000.jsonl": (
            "line 2 is torn: the process or the machine died over it",
            "note",
        ),
        "20200103T000000Z-dead0000.jsonl": ("lines 1, 2, 3, 4, 5 and 4 more cannot be read", "damage"),
    }
    mend(root)
    kept = [finding for finding in check(root).run() if "aside/answers" in finding.place]
    assert [(finding.kind.value, finding.severity.value) for finding in kept] == [("odd-lines", "note")]


def test_a_cohort_is_checked_without_what_is_not_its_own(root: Path) -> None:
    unlisted(root)
    assert check(root, "c1").run() == []
    (root / "gens/draft/d1/raw.txt").write_text("other")
    assert kinds(check(root, "c1").run()) == {"digest"}


def test_a_living_run_is_not_reported(root: Path) -> None:
    from genworker.store.lock import FileLock

    stage_of_dead_run(root)
    lock = FileLock(root / ".genworker/runs/20200101T000000Z-dead0000.lock")
    assert lock.acquire()
    assert check(root).run() == []
    lock.release()
    assert kinds(check(root).run()) == {"staging"}


def mend(root: Path) -> list[Step]:
    found = check(root)
    found.run()
    steps: list[Step] = []
    asyncio.run(repair(found, "20260101T000000Z-repair00", steps.append))
    return steps


def texts(root: Path) -> set[bytes]:
    """The content of every file of a generation, here or aside, that can be read."""
    found = set()
    for base in (root / "gens", root / ".genworker/aside"):
        for path in base.rglob("*"):
            # Staging holds copies of what the log has; the log's text is what must survive.
            if path.is_file() and not any(part.startswith(".run-") for part in path.relative_to(root).parts):
                found.add(path.read_bytes())
    return found


@pytest.mark.parametrize("name", DAMAGE)
def test_a_repair_loses_nothing_and_mends_what_it_says(root: Path, name: str) -> None:
    kind, plant = DAMAGE[name]
    plant(root)
    before = texts(root)
    steps = mend(root)
    assert before <= texts(root)
    assert all(step.done for step in steps), steps
    left = kinds(check(root).run())
    if name in DONE_ALL_THE_SAME:
        assert kind in left, "it has metadata and a text: nothing that is done is moved aside"
        assert not any("moved aside" in step.what for step in steps)
    elif kind in (
        "staging",
        "answers",
        "unparsed",
        "empty",
        "no-metadata",
        "misplaced",
        "not-text",
        "file-missing",
    ):
        assert kind not in left, left
        assert steps
    if kind in ("link", "foreign", "stale", "unlisted", "permissions", "membership", "parent-missing"):
        assert kind in left, "only reported"


def test_empty_staging_is_said_to_be_removed(root: Path) -> None:
    (root / "gens/draft/.run-20200101T000000Z-dead0000").mkdir()
    (step,) = mend(root)
    assert (step.what, step.place) == (
        "removed: staging of a dead run",
        "gens/draft/.run-20200101T000000Z-dead0000",
    )
    assert check(root).run() == []


def test_a_parsed_text_is_made_again_from_an_intact_answer(root: Path) -> None:
    path = root / "gens/evaluation/v1x1/parsed.txt"
    was = path.read_text()
    path.write_text("nonsense")
    assert [step.what for step in mend(root)] == ["parsed again, the old version is kept aside"]
    assert path.read_text() == was
    assert check(root).run() == []


@pytest.mark.parametrize("seed", range(25))
def test_repair_after_several_damages_never_makes_it_worse(root: Path, seed: int) -> None:
    dice = random.Random(seed)
    for name in dice.sample(sorted(DAMAGE), 4):
        try:
            DAMAGE[name][1](root)
        except (OSError, ValueError, KeyError, AttributeError):
            continue  # an earlier damage has taken this one's place away
    before = texts(root)
    damage_before = len(check(root).run())
    mend(root)
    assert before <= texts(root)
    assert len(check(root).run()) <= damage_before + 8  # what lost its parent says so
    mend(root)
    assert before <= texts(root)


def test_nothing_is_mended_that_a_worker_has_in_hand(root: Path) -> None:
    from genworker.store.lock import Claims

    (root / "gens/draft/d1/metadata.json").unlink()
    claims = Claims(root / ".genworker/locks/claims.lock")
    assert claims.take("draft", "d1")
    steps = mend(root)
    claims.close()
    assert [step.done for step in steps] == [False]
    assert "in hand" in steps[0].what
    assert (root / "gens/draft/d1/raw.txt").exists()
