"""What make does with a cohort's name, with several goals at once, and before it removes anything."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from genworker.store.lock import FileLock
from support.project import COHORT, Project, make_project

ROOT = Path(__file__).resolve().parents[2]
MAKEFILES = [ROOT / "Makefile", ROOT / "src/genworker/starter/Makefile"]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(place: Path, makefile: Path, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run a Makefile over a stand-in for genworker that writes down what it is given, in some time."""
    (place / ".venv/bin").mkdir(parents=True, exist_ok=True)
    fake = place / ".venv/bin/genworker"
    fake.write_text(
        '#!/bin/sh\nprintf "%s|" begin "$@" >> calls; sleep 0.2; printf "%s|" end "$1" >> calls\nexit ${FAKE:-0}\n'
    )
    fake.chmod(0o755)
    for name in ("requirements/lock.txt", "pyproject.toml", ".venv/.ready"):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).touch()
    return subprocess.run(
        ["make", "-f", str(makefile), *arguments, f"GENWORKER={fake}"],
        cwd=place,
        env={**os.environ, "MAKEFLAGS": ""},
        input=text,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("makefile", MAKEFILES, ids=["project", "starter"])
@pytest.mark.parametrize(
    "name", ["a;touch x", "a$(touch x)", "a`touch x`", "a' ; touch x '", 'a";touch x"', "a b"]
)
def test_a_name_is_a_name(tmp_path: Path, makefile: Path, name: str) -> None:
    done = make(tmp_path, makefile, "status", f"COHORT={name}")
    assert not (tmp_path / "x").exists()
    if "$" in name:
        assert done.returncode == 2
        assert "COHORT is the name of a cohort" in done.stderr
    else:
        assert (tmp_path / "calls").read_text() == f"begin|status|{name}|end|status|"


@pytest.mark.parametrize("makefile", MAKEFILES, ids=["project", "starter"])
def test_goals_follow_each_other(tmp_path: Path, makefile: Path) -> None:
    assert make(tmp_path, makefile, "-j4", "run", "report").returncode == 0
    assert (tmp_path / "calls").read_text() == "begin|run|demo|end|run|begin|report|demo|end|report|"


def clean(project: Project, text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*project.command()[:1], str(ROOT / "tools/clean_data.py"), "data"],
        cwd=project.root,
        input=text,
        capture_output=True,
        text=True,
    )


def test_nothing_is_removed_unasked_or_during_a_run(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    project.use_script()
    assert project.run("run", COHORT, "-q").returncode == 0
    spec = project.paths.cohort_spec_toml(COHORT)
    spec.write_text("k_max = 3\n")
    tree = project.tree()
    for answer in ("", "\n", "yes\n", f"{len(tree)}0\n"):
        assert clean(project, answer).returncode == 1
        assert project.tree() == tree
        assert project.membership.exists()
    count = len(list(project.paths.gens_root.glob("*/*")))
    lock = FileLock(project.paths.cohort_lock_path(COHORT))
    assert lock.acquire()
    refused = clean(project, f"{count}\n")
    assert refused.returncode == 1
    assert "somebody works here" in refused.stderr
    assert project.tree() == tree
    lock.release()
    assert clean(project, f"{count}\n").returncode == 0
    assert not project.paths.gens_root.exists()
    assert not project.membership.exists()
    assert spec.exists()
    assert project.paths.models_csv.exists()
    assert clean(project, "").returncode == 0 or spec.exists()
