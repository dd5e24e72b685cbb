"""Outputs that are no regular files: links, pipes, streams that were closed."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from support.project import Project, clean_environment, make_project, membership_rows


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = make_project(tmp_path, membership_rows())
    made.use_script()
    return made


def test_an_export_follows_a_link_and_writes_into_a_pipe(project: Project) -> None:
    assert project.run("run", "trial").returncode == 0
    rows = len(membership_rows())
    real, link, pipe = (project.root / name for name in ("real.jsonl", "link.jsonl", "pipe.jsonl"))
    real.write_text("old\n", encoding="utf-8")
    link.symlink_to("real.jsonl")
    assert project.run("export", "trial", "-o", "link.jsonl").returncode == 0
    assert link.is_symlink()
    assert len(real.read_text(encoding="utf-8").splitlines()) == rows
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE) as reader:
        assert project.run("export", "trial", "-o", "pipe.jsonl").returncode == 0
        assert reader.communicate(timeout=30)[0].count(b"\n") == rows
    assert stat.S_ISFIFO(os.lstat(pipe).st_mode)


def _redirected(project: Project, redirect: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirect}', "sh", *project.command(*arguments)],
        cwd=project.root,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


COMMANDS = (
    ("--version",),
    ("--help",),
    ("run", "--help"),
    ("plan", "trial"),
    ("plan", "trial", "--json"),
    ("run", "trial", "--json"),
    ("retry", "trial", "--failed", "--json"),
    ("status", "trial"),
    ("report", "trial"),
    ("verify",),
    ("export", "trial"),
    ("show", "GEN_ID"),
    ("top", "trial"),
    ("aside", "list"),
    ("gc",),
    ("reparse", "trial", "--json"),
    ("batches",),
    ("explain",),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = make_project(tmp_path_factory.mktemp("made"), membership_rows())
    project.use_script()
    assert project.run("run", "trial", "-q").returncode == 0
    return project


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_full_output_is_a_sentence_and_a_full_error_stream_is_nothing(
    made: Project, command: tuple[str, ...]
) -> None:
    named = tuple(made.rows()[0]["gen_id"] if word == "GEN_ID" else word for word in command)
    full = _redirected(made, ">/dev/full", *named)
    assert (full.returncode, "Traceback" in full.stderr, "Exception" in full.stderr) == (1, False, False)
    assert "error: the output could not be written: No space left on device" in full.stderr
    mute = _redirected(made, "2>/dev/full", *named)
    assert mute.returncode == 0
    assert mute.stdout != ""


def test_what_is_wrong_keeps_its_exit_code_on_a_full_output(made: Project) -> None:
    for redirect in (">&-", "2>&-", "2>/dev/full" if os.path.exists("/dev/full") else ""):
        assert _redirected(made, redirect, "plan", "nobody").returncode == 2


def test_a_run_on_a_full_output_does_its_work(project: Project) -> None:
    target = ">/dev/full" if os.path.exists("/dev/full") else ">&-"
    done = _redirected(project, target, "run", "trial", "--json")
    assert done.returncode == (1 if "full" in target else 0)
    assert len(list(project.paths.gens_root.rglob("parsed.txt"))) == len(membership_rows())
    assert "calls" in done.stderr  # the summary


@pytest.mark.parametrize("closed", ["2>&-", ">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_run_whose_streams_are_closed_does_its_work(project: Project, closed: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *project.command(), "run", "trial"],
        cwd=project.root,
        env=clean_environment(),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert len(list(project.paths.gens_root.rglob("parsed.txt"))) == len(membership_rows())
