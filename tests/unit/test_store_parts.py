"""Rows that are read by several processes."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import pytest

from genworker.store import parts
from genworker.store.parts import in_parts

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="copies itself on Linux alone")


@pytest.fixture(autouse=True)
def three_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "LEAST_ROWS", 4)
    monkeypatch.setattr(parts, "_processes", lambda: 3)


def test_the_parts_are_all_of_it_in_order_and_by_several() -> None:
    found = in_parts(10, lambda part: (list(part), os.getpid()))
    assert [number for part, _ in found for number in part] == list(range(10))
    assert len({pid for _, pid in found}) == 3
    assert in_parts(3, list) == [[0, 1, 2]], "few are read here"
    assert in_parts(0, list) == [[]]


def test_more_than_a_pipe_holds_is_sent_whole() -> None:
    assert [len(part) for part in in_parts(9, lambda part: bytes(1_000_000 + part[0]))] == [
        1_000_000,
        1_000_003,
        1_000_006,
    ]


def test_what_a_process_did_not_send_is_read_here() -> None:
    here = os.getpid()

    def work(part: range) -> int:
        if os.getpid() != here and part[0] == 3:
            os._exit(9)
        return part[0]

    assert in_parts(9, work) == [0, 3, 6]


@pytest.mark.parametrize("refused", ["fork", "pipe"])
def test_where_no_more_processes_are_to_be_had_the_rest_is_read_here(
    refused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = getattr(os, refused), []

    def once() -> object:
        calls.append(refused)
        if len(calls) > 1:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return real()

    monkeypatch.setattr(os, refused, once)
    before = open_descriptors()
    found = in_parts(9, lambda part: (part[0], os.getpid()))
    assert [first for first, _ in found] == [0, 3, 6]
    assert [pid == os.getpid() for _, pid in found] == [True, False, True], "the helper that there is helps"
    assert open_descriptors() == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_an_error_is_raised_here_and_nobody_is_left(tmp_path: Path) -> None:
    def work(part: range) -> None:
        if part[0] == 0:
            raise ValueError("no")
        time.sleep(60)

    began = time.monotonic()
    with pytest.raises(ValueError, match="no"):
        in_parts(9, work)
    assert time.monotonic() - began < 30
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)

    def fails_there(part: range) -> None:
        if part[0] == 6:
            raise ValueError("there")

    with pytest.raises(ValueError, match="there"):
        in_parts(9, fails_there)


def test_a_process_with_threads_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    release = threading.Event()
    other = threading.Thread(target=release.wait)
    other.start()
    try:
        assert parts._processes() == 1
    finally:
        release.set()
        other.join()
