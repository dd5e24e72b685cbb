"""A data root says which format it has, and one that is newer is refused by a sentence, before it is touched."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from genworker.store.durable import write_beside
from support.project import COHORT, Project, make_project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = make_project(tmp_path)
    made.use_script()
    return made


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_run_marks_the_format_and_keeps_the_rest_out_of_repositories(project: Project) -> None:
    assert project.run("run", COHORT, "-q").returncode == 0
    private = project.data / ".genworker"
    assert json.loads((private / "format").read_text())["readable_from"] == 1
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *command], cwd=project.root, check=True)
    done = subprocess.run(["git", "ls-files"], cwd=project.root, check=True, capture_output=True, text=True)
    assert "gens/" in done.stdout
    assert ".genworker" not in done.stdout
    assert not list(private.glob("*.part"))


@pytest.mark.parametrize(
    "arguments",
    [("run", COHORT), ("plan", COHORT), ("status", COHORT), ("verify",), ("retry", COHORT, "--failed")],
    ids=lambda it: it[0],
)
def test_what_is_newer_is_refused(project: Project, arguments: tuple[str, ...]) -> None:
    private = project.data / ".genworker"
    private.mkdir()
    newer = {"format": 3, "readable_from": 2, "written_by": "genworker 9.9\x1b[2J"}
    (private / "format").write_text(json.dumps(newer))
    done = project.run(*arguments)
    assert done.returncode != 0
    assert "genworker 9.9" in done.stderr
    assert "\x1b" not in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in private.iterdir()] == ["format"], "nothing was changed"
    assert not project.paths.gens_root.exists()


def test_a_newer_format_that_older_ones_can_read_is_read(project: Project) -> None:
    private = project.data / ".genworker"
    private.mkdir()
    mark = json.dumps({"format": 7, "readable_from": 1, "written_by": "genworker 9.9"})
    (private / "format").write_text(mark)
    assert project.run("run", COHORT, "-q").returncode == 0
    assert (private / "format").read_text() == mark


@pytest.mark.parametrize("content", ["[]", "7", '{"format": true, "readable_from": 1}', "[" * 5000])
def test_a_format_that_says_nothing_is_refused(project: Project, content: str) -> None:
    private = project.data / ".genworker"
    private.mkdir()
    (private / "format").write_text(content)
    done = project.run("status", COHORT)
    assert done.returncode != 0
    assert "does not say which format" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_newer_manifest_is_not_overwritten(project: Project) -> None:
    project.membership.unlink()
    assert project.run("cohort", "build", COHORT, "--k-max", "3").returncode == 0
    manifest = project.paths.cohort_manifest_json(COHORT)
    newer = json.dumps({**json.loads(manifest.read_text()), "format": 2})
    manifest.write_text(newer)
    done = project.run("cohort", "build", COHORT, "--k-max", "2")
    assert done.returncode == 2
    assert "format 2" in done.stderr
    assert manifest.read_text() == newer


@pytest.mark.parametrize("content", [b"", b"\0" * 80])
def test_a_format_that_came_to_the_disk_without_its_content_is_written_anew(
    project: Project, content: bytes
) -> None:
    private = project.data / ".genworker"
    private.mkdir()
    (private / "format").write_bytes(content)
    assert project.run("status", COHORT).returncode == 0
    assert project.run("run", COHORT, "-q").returncode == 0
    assert json.loads((private / "format").read_text())["format"] == 1


def test_a_file_beside_its_place_is_whole_whoever_was_there_before(tmp_path: Path) -> None:
    """In a container each process may have the number of the one that was killed."""
    path = tmp_path / "format"
    (tmp_path / f".format.{os.getpid()}.part").write_bytes(b"half")
    (tmp_path / ".format.0123456789ab.part").write_bytes(b"half")
    os.utime(tmp_path / ".format.0123456789ab.part", (1, 1))
    written: list[int] = []
    inner = os.write

    def few(fd: int, content: bytes) -> int:
        written.append(inner(fd, content[:3]))
        return written[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", few)
        write_beside(path, b"0123456789", 0o600)
    assert path.read_bytes() == b"0123456789"
    assert written == [3, 3, 3, 1]
    assert sorted(each.name for each in tmp_path.iterdir()) == [f".format.{os.getpid()}.part", "format"]
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError, match="directory"):
        write_beside(path, b"x", 0o600)
    assert len(list(tmp_path.iterdir())) == 2
