"""``genworker gc``: journals get small or go, and nothing that start-up or a cap needs goes with them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from genworker.errors import LockedError, StoreError
from genworker.paths import Paths
from genworker.store import gc as store_gc
from genworker.store import ledger as store_ledger
from genworker.store.gc import pack_journals, plain_journal_bytes
from genworker.store.ledger import journals, read_accounts, read_made
from genworker.store.lock import FileLock
from integration.test_ledger import RUN, write
from support.project import COHORT, make_project


def sums(paths: Paths) -> list[object]:
    accounts = read_accounts(paths, "c")
    made = sorted((run, stage, names) for run, stage, names in read_made(paths, accounts))
    return [[account.sums_to_json() for account in accounts], made]


def aged(paths: Paths, run: str, days: float) -> None:
    path = journals(paths)[run]
    at = time.time() - days * 86_400
    os.utime(path, (at, at))


@pytest.mark.parametrize("die", [False, True])
def test_what_is_known_stays_known(tmp_path: Path, die: bool) -> None:
    paths = Paths.from_str(tmp_path)
    for run in ("r1", "r2"):
        write(paths, run, RUN * 20, die=die)
    write(paths, "r3", RUN, die=True)
    paths.run_lock_path("r3").touch()
    aged(paths, "r1", 40)
    expected = json.loads(json.dumps(sums(paths))) if not die else None
    done = pack_journals(paths, time.time())
    assert (done.packed, done.dropped, done.busy) == (2, 0, 1)
    assert done.after_bytes < done.before_bytes / 3
    assert plain_journal_bytes(paths) == 0
    assert [path.suffix for path in journals(paths).values()] == [".gz", ".gz", ".jsonl"]
    expected = expected or json.loads(json.dumps(sums(paths)))
    assert json.loads(json.dumps(sums(paths))) == expected
    done = pack_journals(paths, time.time(), keep_days=30)
    assert (done.packed, done.dropped) == (0, 1)
    assert list(journals(paths)) == ["r2", "r3"]
    assert json.loads(json.dumps(sums(paths))) == expected
    # Also from nothing but the packed journals, where these are there.
    assert len(list(paths.runs_dir.glob("*.part"))) == 0


def test_no_journal_goes_before_its_sums_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = Paths.from_str(tmp_path)
    write(paths, "r1", RUN, die=True)
    aged(paths, "r1", 40)
    monkeypatch.setattr(store_gc, "keep_accounts", lambda *_, **__: False)
    with pytest.raises(StoreError, match="no journal was removed"):
        pack_journals(paths, time.time(), keep_days=30)
    assert list(journals(paths)) == ["r1"]


def test_a_cohort_goes_on_and_knows_its_cost_without_journals(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    project.use_script()
    assert project.run("run", COHORT, "-q").returncode == 0
    before = json.loads(project.run("status", COHORT, "--json").stdout)["money"]
    done = project.run("gc", "--keep-days", "0", "--json")
    assert json.loads(done.stdout)["dropped"] == 1
    assert not list(project.paths.runs_dir.glob("*.jsonl*"))
    assert json.loads(project.run("status", COHORT, "--json").stdout)["money"] == before
    again = project.run("run", COHORT, "-q", "--max-calls", "1")
    assert "No calls made" in again.stderr


def test_what_a_killed_gc_left_goes_and_two_do_not_meet(tmp_path: Path) -> None:
    paths = Paths.from_str(tmp_path)
    write(paths, "r1", RUN)
    (paths.runs_dir / ".r1.jsonl.part").write_bytes(b"half")
    (paths.runs_dir / ".r0.jsonl.part").write_bytes(b"half")
    lock = FileLock(paths.gc_lock_path)
    paths.gc_lock_path.parent.mkdir(parents=True)
    assert lock.acquire()
    with pytest.raises(LockedError, match="another process packs"):
        pack_journals(paths, time.time())
    lock.release()
    assert pack_journals(paths, time.time()).packed == 1
    assert [path.name for path in paths.runs_dir.iterdir()] == ["r1.jsonl.gz"]


def test_a_run_that_has_just_begun_is_no_ended_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lock and its journal appear while others look."""
    paths = Paths.from_str(tmp_path)
    write(paths, "r1", RUN[:2], die=True)
    monkeypatch.setattr(store_ledger, "_names", lambda directory: ["r1.jsonl"])
    inner = store_ledger.journals

    def begin(paths: Paths) -> dict[str, Path]:
        paths.run_lock_path("r1").touch()
        return inner(paths)

    monkeypatch.setattr("genworker.store.gc.journals", begin)
    assert pack_journals(paths, time.time(), keep_days=0).busy == 1
    assert len(read_accounts(paths, "c")) == 1
    assert not paths.ledger_path.exists()
