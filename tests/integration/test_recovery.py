"""What a start makes of what dead runs have left: their answers go where they belong, and no text goes away."""

from __future__ import annotations

import asyncio
import errno
import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from genworker.core.facts import Facts
from genworker.core.generation import Answer
from genworker.core.stages import Stage
from genworker.errors import StoreError
from genworker.paths import Paths
from genworker.store import _kernel
from genworker.store.answers import AnswerLog
from genworker.store.filesystem import FilesystemStore
from genworker.store.lock import Claims, FileLock, holder_facts, how_to_stop
from genworker.store.reading import read_generation
from genworker.store.sweep import sweep_staging
from support.project import COHORT, make_project, membership_rows, write_csv

D = Stage.DRAFT


def answer(text: str, run: str = "r1", gen_id: str = "g1", **facts: Any) -> Answer:
    known = {"run_id": run, "started_at": f"{run} {text}", "finish_reason": "stop", "parser": "identity"}
    return Answer(D, gen_id, "the prompt", text, Facts({**known, **facts}))


def commit(paths: Paths, *answers: Answer, run: str = "r1", replace: bool = False) -> None:
    async def main() -> None:
        async with FilesystemStore(paths, run) as store:
            for one in answers:
                await store.commit(one, replace=replace)

    asyncio.run(main())


def die(paths: Paths, run: str, *logged: Answer, replace: bool = False, staged: Answer | None = None) -> None:
    """Leave what a run leaves that is killed: its log, its lock, its staging."""
    paths.runs_dir.mkdir(parents=True, exist_ok=True)
    paths.run_lock_path(run).write_text(json.dumps({**holder_facts(run), "has_life": True}))
    log = AnswerLog(paths, run)
    for one in logged:
        log.append(one, replace=replace)
    if staged is not None:
        scratch = Paths.from_str(paths.data_root / "scratch")
        commit(scratch, staged, run=run)
        place = paths.stage_dir(D) / f".run-{run}"
        place.mkdir(parents=True)
        scratch.generation_dir(D, staged.gen_id).rename(place / staged.gen_id)
        shutil.rmtree(scratch.data_root)


def sweep(paths: Paths) -> Any:
    async def main() -> Any:
        async with FilesystemStore(paths, "sweeper") as store:
            found = sweep_staging(paths)
            for one, replace in found.answers:
                await store.commit(one, replace=replace)
            assert not found.errors
            found.finish(paths)
            return found

    return asyncio.run(main())


def standing(paths: Paths) -> str:
    return read_generation(paths.gens_root, D, "g1").raw_text


def texts_aside(paths: Paths) -> list[str]:
    return sorted(path.read_text() for path in paths.aside_dir(D, "g1").glob("*/raw.txt"))


def left(paths: Paths) -> list[str]:
    return sorted(path.name for path in paths.runs_dir.iterdir() if path.suffix != ".jsonl")


@pytest.mark.parametrize("is_staged", [False, True])
def test_a_replacement_that_was_cut_off_before_the_exchange_replaces(tmp_path: Path, is_staged: bool) -> None:
    paths = Paths.from_str(tmp_path)
    commit(paths, answer("", "old"))
    better = answer("paid for", "r2")
    die(paths, "r2", better, replace=True, staged=better if is_staged else None)
    sweep(paths)
    assert standing(paths) == "paid for"
    assert texts_aside(paths) == [""]
    assert left(paths) == []


def test_a_replacement_that_was_cut_off_after_the_exchange_keeps_the_older_one(tmp_path: Path) -> None:
    paths = Paths.from_str(tmp_path)
    better = answer("better", "r2")
    commit(paths, better)
    die(paths, "r2", better, replace=True, staged=answer("old", "r1"))
    sweep(paths)
    assert standing(paths) == "better"
    assert texts_aside(paths) == ["old"]


def test_a_new_parse_that_was_cut_off_loses_neither_version(tmp_path: Path) -> None:
    """Both have the same raw text, run and start: only what was parsed, and by what, is another."""
    paths = Paths.from_str(tmp_path)
    first, again = answer("text"), answer("text", reparsed_at="now")
    commit(paths, again)
    die(paths, "r2", again, replace=True, staged=first)
    sweep(paths)
    assert texts_aside(paths) == ["text"]
    other = Paths.from_str(tmp_path / "other")
    commit(other, first)
    die(other, "r2", again, replace=True)
    sweep(other)
    assert read_generation(other.gens_root, D, "g1").metadata["reparsed_at"] == "now"


ODD = [
    b'{"stage":"poem","gen_id":"g2","replace":false,"prompt":"p","raw":"of a newer stage","facts":{}}\n',
    b'{"stage":"draft","gen_id":"g2","replace":false,"prompt":"p","answer":"of a newer field","facts":{}}\n',
    b'{"stage":"draft","gen_id":"g2","replace":false,"prompt":"p","raw":7,"facts":{}}\n',
    b'{"stage":"draft","gen_id":"g2","replace":false,"prompt":"p","raw":"x","facts":[]}\n',
    b'{"stage":"draft","gen_id":"../g2","replace":false,"prompt":"p","raw":"x","facts":{}}\n',
    b'{"stage":["draft"],"gen_id":"g2","replace":0,"prompt":"p","raw":"x","facts":{}}\n',
    b"[]\n",
    b"\xff\xfe\n",
    b'{"stage":"draft","gen_id":"g2","replace":false,"prompt":"p","raw":"torn off in the mid',
]


@pytest.mark.parametrize("line", ODD)
def test_a_line_that_nobody_understands_is_kept(tmp_path: Path, line: bytes) -> None:
    paths = Paths.from_str(tmp_path)
    die(paths, "r1", answer("good"))
    with paths.answers_path("r1", 1).open("ab") as stream:
        stream.write(line)
    found = sweep(paths)
    assert standing(paths) == "good"
    (place,) = paths.odd_answers_dir.iterdir()
    assert place.read_bytes() == line
    assert found.odd_places == [place]
    assert left(paths) == []


def test_what_a_newer_version_says_more_is_committed_and_kept(tmp_path: Path) -> None:
    paths = Paths.from_str(tmp_path)
    die(paths, "r1", answer("good"))
    log = paths.answers_path("r1", 1)
    log.write_bytes(log.read_bytes().replace(b'{"stage"', b'{"tool_calls":[1],"stage"'))
    sweep(paths)
    assert standing(paths) == "good"
    assert b"tool_calls" in next(paths.odd_answers_dir.iterdir()).read_bytes()


def test_a_log_stays_when_its_odd_lines_cannot_be_kept(tmp_path: Path) -> None:
    paths = Paths.from_str(tmp_path)
    die(paths, "r1", answer("good"))
    with paths.answers_path("r1", 1).open("ab") as stream:
        stream.write(ODD[0])
    paths.odd_answers_dir.parent.mkdir(parents=True)
    paths.odd_answers_dir.write_text("in the way")
    with pytest.raises(StoreError):
        sweep(paths)
    assert ODD[0] in paths.answers_path("r1", 1).read_bytes()
    paths.odd_answers_dir.unlink()
    sweep(paths)
    assert next(paths.odd_answers_dir.iterdir()).read_bytes() == ODD[0]


# While one worker sweeps, another must not take the dead run for a living one


@pytest.fixture
def living(tmp_path: Path) -> Iterator[Any]:
    """Starts a process that holds a run open; kill it, or let it end."""
    script = (
        "import asyncio, sys\n"
        "from genworker.paths import Paths\n"
        "from genworker.store.filesystem import FilesystemStore\n"
        "store = FilesystemStore(Paths.from_str(sys.argv[1]), sys.argv[2])\n"
        "store.open()\nprint('open', flush=True)\nsys.stdin.read()\nstore.close()\n"
    )
    started: list[subprocess.Popen[bytes]] = []

    def start(run: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path), run], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_run_that_is_swept_is_not_taken_for_living(tmp_path: Path, living: Any) -> None:
    paths = Paths.from_str(tmp_path)
    other = living("r-other")
    store = FilesystemStore(paths, "r-mine")
    store.open()
    try:
        assert not store.a_run_has_died()
        other.kill()
        other.communicate()
        assert store.a_run_has_died()
        sweeper = FileLock(paths.run_lock_path("r-other"))
        assert sweeper.acquire(), "another worker sweeps it from here on"
        assert store.a_run_has_died(), "its answers are not in place yet"
        sweeper.release(remove=True)
        assert not store.a_run_has_died()
    finally:
        store.close()


def test_a_run_that_ends_is_not_taken_for_dead(tmp_path: Path, living: Any) -> None:
    other = living("r-other")
    store = FilesystemStore(Paths.from_str(tmp_path), "r-mine")
    store.open()
    try:
        for _ in range(3):
            assert not store.a_run_has_died()
        other.communicate()
        assert not store.a_run_has_died()
    finally:
        store.close()


def test_who_looks_for_dead_runs_opens_no_file(tmp_path: Path, living: Any, monkeypatch: Any) -> None:
    for number in range(3):
        living(f"r-{number}")
    store = FilesystemStore(Paths.from_str(tmp_path), "r-mine")
    store.open()
    try:
        assert not store.a_run_has_died()
        monkeypatch.setattr(os, "open", lambda *_, **__: pytest.fail("a file was opened"))
        monkeypatch.setattr(os, "listdir", lambda *_: pytest.fail("a directory was listed"))
        for _ in range(100):
            assert not store.a_run_has_died()
    finally:
        monkeypatch.undo()
        store.close()


def test_a_worker_of_an_earlier_version_lives_by_its_lock(tmp_path: Path) -> None:
    paths = Paths.from_str(tmp_path)
    store = FilesystemStore(paths, "r-mine")
    store.open()
    old = FileLock(paths.run_lock_path("r-old"))
    try:
        assert old.acquire({"pid": 1})
        assert not store.a_run_has_died()
        old.release()
        assert store.a_run_has_died()
    finally:
        old.release()
        store.close()


def test_lives_and_claims_are_different_bytes(tmp_path: Path) -> None:
    claims = Claims(tmp_path / "claims")
    claims.live("draft/g1")
    other = Claims(tmp_path / "claims")
    assert other.take("draft", "g1")
    if sys.platform == "linux":  # elsewhere locks are the process's own
        assert other.is_living("draft/g1")
        claims.close()
        assert not other.is_living("draft/g1")
    other.close()


# An overlay, whose lower layer cannot be moved


def test_a_generation_in_a_lower_layer_is_replaced(tmp_path: Path, monkeypatch: Any) -> None:
    """There an exchange ends in EXDEV, and so does each rename of what lies in that layer."""
    paths = Paths.from_str(tmp_path)
    commit(paths, answer("of the image", "old"))
    lower = {str(paths.generation_dir(D, "g1"))}
    real = _kernel._rename

    def rename(source: str, target: str, linux_flag: int, darwin_flag: int) -> bool:
        exchange = linux_flag == _kernel._EXCHANGE
        if source in lower or (exchange and target in lower):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), source, None, target)
        return real(source, target, linux_flag, darwin_flag)

    monkeypatch.setattr(_kernel, "_rename", rename)
    commit(paths, answer("new", "r2"), run="r2", replace=True)
    assert standing(paths) == "new"
    assert texts_aside(paths) == ["of the image"]
    assert left(paths) == []


# How to stop whoever has the lock


@pytest.mark.parametrize("name", ["host", "boot", "pid_namespace"])
def test_a_pid_is_named_only_where_it_means_that_process(name: str) -> None:
    facts = {**holder_facts("r1"), "pid": 1}
    assert how_to_stop(facts) == "stop it: kill -INT 1"
    if name not in facts:
        pytest.skip("this system does not say")
    elsewhere = how_to_stop({**facts, name: "another\x1b[2J"})
    assert "kill -INT 1" not in elsewhere
    assert "\x1b" not in elsewhere
    assert "stop it where it runs" in elsewhere
    assert "kill -INT 1" not in how_to_stop({key: value for key, value in facts.items() if key != name})


@pytest.mark.parametrize("suffix", [".now", ".now-new"])
def test_word_that_the_disk_refused_to_take_away_goes_with_the_next_start(
    tmp_path: Path, suffix: str
) -> None:
    paths = Paths.from_str(tmp_path)
    commit(paths, answer("good"))
    paths.now_path("r1").with_suffix(suffix).write_text("{}")
    sweep(paths)
    assert left(paths) == []


# Odd lines, wherever they stand, hinder nobody


def test_odd_lines_hinder_no_cohort(tmp_path: Path) -> None:
    project = make_project(tmp_path, membership_rows(models=("alpha",), essays=("rewrite",), replicates=1))
    project.use_script()
    assert project.run("run", COHORT, "-q").returncode == 0
    rows = membership_rows(cohort="other", models=("alpha",), essays=("rewrite",), replicates=1)
    write_csv(project.membership_of("other"), rows)
    paths = project.paths
    (journal,) = paths.runs_dir.glob("*.jsonl")
    content = journal.read_bytes()
    for number, text in enumerate(
        (b"[]\n", b'{"event":"calling","stage":"poem"}\n', b"\xff\xfe\n", b"\0" * 9)
    ):
        journal.with_name(f"20200101T000000Z-0000000{number}.jsonl").write_bytes(text + content + text)
    packed = bytearray(gzip.compress(content))
    packed[60:80] = bytes(20)
    journal.with_name("20200101T000000Z-0000000a.jsonl.gz").write_bytes(packed)
    with paths.answers_path("20200101T000000Z-0000000b", 1).open("wb") as stream:
        stream.writelines(ODD)
    for path in (paths.ledger_path, paths.made_path):
        lines = (
            path.read_bytes().replace(b'"spent_usd":"', b'"spent_usd":"x').replace(b'"made":{', b'"made":[{')
        )
        path.write_bytes(b'{"run_id":"torn"\n[]\n' + lines + lines[: len(lines) // 2])
    for command in (
        ("plan", COHORT, "--max-calls", "9"),
        ("status",),
        ("run", "other", "-q"),
        ("run", COHORT, "-q"),
    ):
        done = project.run(*command)
        assert done.returncode == 0, done.stderr
    assert project.run("report", COHORT).returncode == 0
    assert project.run("gc", "--keep-days", "0").returncode == 0
    checked = project.run("verify", "--json")
    assert checked.returncode == 1
    places = {each["place"] for each in json.loads(checked.stdout)["findings"] if each["kind"] == "odd-lines"}
    assert any("aside/answers" in place for place in places), places
