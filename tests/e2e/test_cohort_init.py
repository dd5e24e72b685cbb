"""`init`: a project that runs at once."""

from __future__ import annotations

import json
from pathlib import Path

from support.project import Project

SCRIPTED = {"GENWORKER_ENDPOINTS__FAKE__KIND": "scripted", "GENWORKER_DEFAULT_ENDPOINT": "fake"}


def init(root: Path, *arguments: str) -> tuple[int, str, str]:
    done = Project(root).run("init", *arguments)
    return done.returncode, done.stdout, done.stderr


def test_it_runs_as_its_readme_says(tmp_path: Path) -> None:
    code, out, err = init(tmp_path, "mine")
    assert (code, err) == (0, "")
    assert "genworker cohort build demo" in out
    made = Project(tmp_path / "mine")
    for name in (
        "README.md",
        "Makefile",
        ".env.example",
        ".gitignore",
        "config/genworker.toml",
        "data/1_raw/llm_models.csv",
    ):
        assert (made.root / name).is_file(), name
    built = made.run("cohort", "build", "demo", "--json")
    assert built.returncode == 0, built.stderr
    assert (json.loads(built.stdout)["calls"], json.loads(built.stdout)["copies"]) == (8, 2)
    planned = made.run("plan", "demo", **SCRIPTED)
    assert planned.returncode == 0, planned.stderr
    ran = made.run("run", "demo", "--json", "-q", **SCRIPTED)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["calls"] == 8


def test_it_never_overwrites(tmp_path: Path) -> None:
    target = tmp_path / "mine"
    (target / "config").mkdir(parents=True)
    (target / "README.md").write_text("my own")
    (target / "config" / "genworker.toml").symlink_to(tmp_path / "nowhere")
    code, out, err = init(tmp_path, "mine")
    assert (code, out) == (2, "")
    assert "the directory is not empty: README.md, config" in err
    assert sorted(path.name for path in target.rglob("*")) == ["README.md", "config", "genworker.toml"]
    code, out, err = init(tmp_path, "mine", "--force")
    assert code == 0
    assert "left as it is: mine/README.md" in err
    assert "left as it is: mine/config/genworker.toml" in err
    assert (target / "README.md").read_text() == "my own"
    assert not (tmp_path / "nowhere").exists()
    assert (target / "data" / "1_raw" / "llm_models.csv").is_file()


def test_a_file_or_a_link_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for name in ("file", "link"):
        code, _, err = init(tmp_path, name)
        assert code == 2
        assert "this is not a directory" in err
    assert list((tmp_path / "real").iterdir()) == []
    assert (tmp_path / "file").read_text() == "x"


def test_the_starter_is_packaged_whole() -> None:
    from genworker.cli.init import starter_files

    names = [name for name, _ in starter_files()]
    assert len(names) == len(set(names)) >= 20
    assert ".env.example" in names
    assert all("__pycache__" not in name for name in names)
