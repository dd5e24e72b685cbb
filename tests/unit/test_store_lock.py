"""Locks and claims: who has them, and when they end."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from genworker.errors import StoreError
from genworker.store.lock import Claims, FileLock, describe_holder, holder_facts

HOLD = (
    "import sys, time; from pathlib import Path; from genworker.store.lock import *\n"
    "lock = FileLock(Path(sys.argv[1])); assert lock.acquire(holder_facts('r'))\n"
    "claims = Claims(Path(sys.argv[2])); assert claims.take('draft', 'a')\n"
    "print('ready', flush=True); time.sleep(60)\n"
)


def test_locks_and_claims_die_with_their_owner(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "l"), str(tmp_path / "c")], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        lock, claims = FileLock(tmp_path / "l"), Claims(tmp_path / "c")
        assert not lock.acquire()
        assert lock.holder()["pid"] == process.pid
        assert not claims.take("draft", "a")
        assert claims.take("draft", "b")
        process.kill()
        process.wait()
    assert lock.acquire()
    assert claims.take("draft", "a")
    lock.release()
    claims.close()


def test_claims_outlive_another_opening_of_their_file(tmp_path: Path) -> None:
    """POSIX record locks end when the process closes any descriptor of the file; these must not."""
    if sys.platform != "linux":
        pytest.skip("only Linux has locks that belong to one opening")
    first, second = Claims(tmp_path / "c"), Claims(tmp_path / "c")
    assert first.take("draft", "a")
    assert not second.take("draft", "a")
    second.close()
    os.close(os.open(tmp_path / "c", os.O_RDONLY))
    third = Claims(tmp_path / "c")
    assert not third.take("draft", "a")
    first.close()
    assert third.take("draft", "a")
    third.close()


def test_a_lock_whose_file_was_removed_is_not_held_twice(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "l"), FileLock(tmp_path / "l")
    assert first.acquire()
    assert not second.acquire()
    first.release(remove=True)
    assert second.acquire()
    assert (tmp_path / "l").exists()
    third = FileLock(tmp_path / "l")
    assert not third.acquire()
    second.release()
    second.release()


def test_a_lock_is_not_taken_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "l").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="cannot be locked"):
        FileLock(tmp_path / "l").acquire()
    assert not (tmp_path / "elsewhere").exists()


def test_the_holder_is_described(tmp_path: Path) -> None:
    facts = holder_facts("r") | {"since": (datetime.now(UTC) - timedelta(hours=3)).isoformat()}
    said = describe_holder(facts)
    assert f"pid {os.getpid()}" in said
    assert "host " in said
    assert "user " in said
    assert "for 3 h" in said
    assert describe_holder({}) == "it does not say which"
    assert "\x1b" not in describe_holder({"pid": 1, "host": "\x1b[31mx", "since": "never"})


def test_a_torn_holder_file_is_read_as_nothing(tmp_path: Path) -> None:
    (tmp_path / "l").write_text('{"pid": ')
    assert FileLock(tmp_path / "l").holder() == {}
