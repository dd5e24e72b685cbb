"""Disks that are full, read-only, immutable or cut off, and processes that may open few files."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crash.lab import Lab, open_lab
from crash.world import ROWS, Row, make_world, staged, torn, tree, write_config
from genworker.errors import StoreError
from genworker.store.disk import check_room, filesystem_warning, free_descriptors
from support.llm_server import Options

MANY = tuple(Row("draft", f"d{number}", "", "dt", number) for number in range(1, 31))
EXT4_SHUTDOWN = 0x8004587D
WITHOUT_FLUSH = 2

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with open_lab(Options(latency_s=0.02, words=12), on_disk=True) as opened:
        yield opened


@contextlib.contextmanager
def mounted(place: Path, *arguments: str) -> Iterator[Path]:
    place.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", *arguments, str(place)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this machine cannot mount: {done.stderr.strip()}")
    try:
        yield place
    finally:
        for _ in range(50):
            if subprocess.run(["umount", str(place)], capture_output=True).returncode == 0:
                break
            time.sleep(0.1)


def at(lab: Lab, place: Path, rows: tuple[Row, ...], concurrency: int = 2) -> Path:
    """A data root at a place of its own; the rest of the lab's home stays on the disk."""
    lab.fresh(rows, concurrency=concurrency)
    lab.root = make_world(place, rows) if not (place / "1_raw").exists() else place
    home = place.parent
    write_config(home / "gw.toml", lab.server.openai_url, concurrency=concurrency)
    return place


@root_only
def test_a_data_root_of_64_kb_is_refused_before_a_call_and_used_after_the_mend(
    lab: Lab, tmp_path: Path
) -> None:
    with mounted(tmp_path / "data", "-t", "tmpfs", "-o", "size=64k", "tmpfs"):
        at(lab, tmp_path / "data", tuple(ROWS[:3]))
        done = lab.run(pauses=(0.02, 0.02))
        assert done.status in (1, 2), done.output
        assert "no room" in done.output or "No space" in done.output
        assert "Traceback" not in done.output
        assert torn(lab.root) == []
        stored = lab.server.paid
        subprocess.run(["mount", "-o", "remount,size=4m", str(tmp_path / "data")], check=True)
        assert lab.run().status == 0
        assert lab.server.paid_twice <= stored
        assert torn(lab.root) == []
        assert staged(lab.root) == []


@root_only
def test_a_disk_that_fills_up_in_mid_run_stops_the_buying(lab: Lab, tmp_path: Path) -> None:
    with mounted(tmp_path / "data", "-t", "tmpfs", "-o", "size=3m", "tmpfs"):
        at(lab, tmp_path / "data", MANY)
        child = lab.start(pauses=(0.05, 0.1))
        lab.server.wait_until(lambda it: it.received >= 4)
        ballast = tmp_path / "data" / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as stream:
            while True:
                stream.write(b"x" * 4096)
        done = child.wait()
        assert done.status == 1, done.output
        assert "No space left" in done.output
        assert "Traceback" not in done.output
        paid, named = lab.server.paid, done.output.count("NOT STORED")
        assert paid < len(MANY)
        assert torn(lab.root) == []
        ballast.unlink()
        assert lab.run().status == 0
        assert named <= 4
        # Room for what was in flight had been set aside in the log: nothing of it is bought again.
        assert lab.server.paid_twice == 0
        assert torn(lab.root) == []


@contextlib.contextmanager
def small_ext4(image: Path, place: Path, options: str = "loop") -> Iterator[Path]:
    """A filesystem of its own, made when there is none yet."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("there is no mkfs.ext4")
    if not image.exists():
        image.touch()
        os.truncate(image, 64 * 1024 * 1024)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    with mounted(place, "-o", options, str(image)):
        yield place


@pytest.mark.skipif(sys.platform != "linux", reason="room can be set aside on Linux only")
def test_nothing_is_asked_for_whose_answer_would_have_no_room(lab: Lab) -> None:
    lab.fresh(MANY)
    fault = {"kind": "errno-for-good", "step": 1, "names": ["fallocate"], "errno": "ENOSPC"}
    done = lab.run(fault=fault)
    assert done.status == 1, done.output
    assert "there is no room for the answer" in done.output
    assert "Traceback" not in done.output
    assert lab.server.received == 0
    assert lab.run().status == 0
    assert lab.server.paid_twice == 0


@root_only
def test_a_disk_that_turns_read_only_in_mid_run_stops_the_buying(lab: Lab, tmp_path: Path) -> None:
    image, place = tmp_path / "image", tmp_path / "m"
    with small_ext4(image, place, "loop,errors=remount-ro"):
        device = os.path.basename(os.path.realpath(_device_of(place)))
        trigger = Path(f"/sys/fs/ext4/{device}/trigger_fs_error")
        if not trigger.exists():
            pytest.skip("this kernel cannot be made to report an error")
        at(lab, place / "data", MANY)
        home = lab.base / str(lab.number)
        write_config(home / "gw.toml", lab.server.openai_url, concurrency=2)
        child = lab.start(pauses=(0.05, 0.1), out_dir=str(home))
        lab.server.wait_until(lambda it: it.received >= 6)
        trigger.write_text("on purpose")  # what the kernel does when it finds the disk broken
        done = child.wait()
        assert done.status == 1, done.output
        assert "Read-only file system" in done.output
        assert "go on with: genworker run c1" in done.output
        assert "Traceback" not in done.output
        paid, named = lab.server.paid, done.output.count("NOT STORED")
        assert paid < len(MANY)
        again = lab.run(out_dir=str(home))
        assert again.status == 2, again.output
        assert "Read-only file system" in again.output
        assert lab.server.paid == paid
    subprocess.run(["fsck.ext4", "-p", str(image)], capture_output=True)
    with small_ext4(image, place):
        assert torn(place / "data") == []
        assert lab.run().status == 0
        assert lab.server.paid_twice <= named <= 4
        assert torn(lab.root) == []


def _device_of(place: Path) -> str:
    done = subprocess.run(["findmnt", "-n", "-o", "SOURCE", str(place)], capture_output=True, text=True)
    return done.stdout.strip()


@root_only
def test_an_immutable_stage_directory_costs_no_answer(lab: Lab) -> None:
    lab.fresh(MANY)
    stage_dir = lab.root / "gens" / "draft"
    child = lab.start(pauses=(0.05, 0.1))
    lab.server.wait_until(lambda it: it.received >= 4)
    if subprocess.run(["chattr", "+i", str(stage_dir)], capture_output=True).returncode:
        child.wait()
        pytest.skip("this filesystem has no immutable flag")
    try:
        done = child.wait()
        assert done.status == 1, done.output
        assert "Operation not permitted" in done.output
        assert "the next run puts it in place" in done.output
        assert "Traceback" not in done.output
        again = lab.run()
        assert again.status == 2, again.output
        assert "cannot be written" in again.output or "cannot be put in place" in again.output
    finally:
        subprocess.run(["chattr", "-i", str(stage_dir)], check=True)
    assert lab.run().status == 0
    assert lab.server.paid_twice == 0
    assert lab.server.paid == len(MANY)
    assert torn(lab.root) == []
    assert staged(lab.root) == []


@pytest.mark.parametrize("limit", [12, 20, 32, 40, 64])
def test_few_open_files_are_lived_with_or_refused(lab: Lab, limit: int) -> None:
    lab.fresh(MANY, concurrency=64)
    done = lab.run(limits={"nofile": limit})
    assert "Traceback" not in done.output
    assert done.status in (0, 2), done.output
    if done.status == 2:
        assert "ulimit -n" in done.output
        assert lab.server.received == 0
    assert lab.run().status == 0
    assert lab.server.paid == len(MANY)


@root_only
@pytest.mark.parametrize("mutants", [[], ["no_sync", "no_directory_sync"]], ids=["as it is", "without syncs"])
def test_what_is_reported_as_committed_survives_a_power_cut(
    lab: Lab, tmp_path: Path, mutants: list[str]
) -> None:
    image, place = tmp_path / "image", tmp_path / "m"
    with small_ext4(image, place):
        lab.fresh(MANY)
        home = lab.root.parent
        lab.root = make_world(place / "data", MANY)
        os.sync()
        write_config(place / "gw.toml", lab.server.openai_url, concurrency=2)
        write_config(home / "gw.toml", lab.server.openai_url, concurrency=2)
        child = lab.start("-v", out_dir=str(home), mutants=mutants)
        lab.server.wait_until(lambda it: it.received >= 16)
        fd = os.open(place, os.O_RDONLY)
        reported = committed(child.out)
        fcntl.ioctl(fd, EXT4_SHUTDOWN, struct.pack("I", WITHOUT_FLUSH))
        os.close(fd)
        child.kill(9)
        child.wait()
    assert len(reported) >= 5
    with small_ext4(image, place):
        there = {path.parent.name for path in (place / "data/gens/draft").glob("*/metadata.json")}
        whole = torn(place / "data") == []
        if mutants:
            assert not whole or not reported <= there, "the power cut shows nothing"
            return
        assert whole
        assert reported <= there
        assert lab.run().status == 0
        assert torn(lab.root) == []
        assert lab.server.paid_twice <= 4
        assert len(tree(lab.root)) == 4 * len(MANY)


def committed(out: Path) -> set[str]:
    lines = [line.split() for line in out.read_text().splitlines() if "event=committed" in line]
    return {word.removeprefix("gen_id=") for line in lines for word in line if word.startswith("gen_id=")}


def test_room_is_compared_with_the_least_that_is_needed(tmp_path: Path) -> None:
    assert check_room(tmp_path / "not yet" / "there", 10) is None
    with pytest.raises(StoreError, match="no room for 100000000000 generations") as caught:
        check_room(tmp_path, 10**11)
    assert "nothing was sent" in str(caught.value)
    assert "--limit" in str(caught.value)


def test_a_room_that_may_not_do_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs(tmp_path)

    class Facts:
        f_frsize, f_files, f_favail = 4096, real.f_files, 10**9
        f_bavail = 5 * 100 * 2

    monkeypatch.setattr(os, "statvfs", lambda path: Facts)
    assert "may not be enough" in (check_room(tmp_path, 100) or "")
    assert check_room(tmp_path, 10) is None


def test_the_limit_on_open_files_is_raised_as_far_as_allowed() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
        assert free_descriptors() > 100
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("kind", "options", "word"),
    [
        ("tmpfs", "rw", "memory"),
        ("9p", "rw", "9p"),
        ("cifs", "rw", "SMB"),
        ("nfs4", "rw", "NFS"),
        ("fuse.sshfs", "rw", "fuse.sshfs"),
        ("overlay", "rw,lowerdir=/l,volatile", "volatile"),
        ("overlay", "rw,lowerdir=/l", None),
        ("ext4", "rw", None),
    ],
)
def test_filesystems_that_promise_less_are_named(
    tmp_path: Path, kind: str, options: str, word: str | None
) -> None:
    table = tmp_path / "mountinfo"
    place = str(tmp_path.resolve()).replace(" ", "\\040")
    table.write_text(
        "22 1 259:0 / / rw,relatime shared:1 - ext4 /dev/root rw\n"
        f"30 22 0:30 / {place} rw,nosuid shared:2 master:1 - {kind} source {options}\n"
        "31 22 0:31 / /elsewhere rw - tmpfs tmpfs rw\n"
    )
    said = filesystem_warning(tmp_path / "data", str(table))
    assert said is None if word is None else word in (said or "")


def test_an_error_of_the_disk_is_not_taken_for_a_missing_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genworker.core.stages import Stage
    from genworker.paths import Paths
    from genworker.store import index as store_index

    (tmp_path / "gens/draft/d1").mkdir(parents=True)

    def broken(*arguments: object) -> None:
        raise StoreError("broken", path="x", errno=errno.EIO)

    monkeypatch.setattr(store_index, "read_generation", broken)
    index = store_index.StoreIndex(Paths.from_str(tmp_path))
    with pytest.raises(StoreError):
        index.failure(Stage.DRAFT, "d1")
