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
