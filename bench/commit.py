"""The store alone: durable commits, beside one fsync at a time and beside plain writes without any."""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench.common import publish, workplace
from genworker.core.facts import Facts
from genworker.core.generation import Answer, encode_metadata, finish
from genworker.core.stages import Stage
from genworker.paths import Paths
from genworker.store.filesystem import FilesystemStore

TEXT = "The quick brown fox jumps over the lazy dog. " * 40


def answers(count: int) -> list[Answer]:
    """Answers of a usual size, about 2 kB each."""
    facts = {"task_id": "t", "template_id": "x", "model_id": "m", "parent_gen_id": "", "parser": "identity"}
    return [
        Answer(Stage.DRAFT, f"g{number:015d}", TEXT[:800], TEXT, Facts({**facts, "n": number}))
        for number in range(count)
    ]


async def commit_all(root: Path, count: int, at_once: int) -> float:
    """Seconds for `count` commits through the store, `at_once` waiting."""
    paths = Paths.from_str(root)
    todo = iter(answers(count))
    async with FilesystemStore(paths, "bench-commit") as store:
        began = time.perf_counter()

        async def worker() -> None:
            for answer in todo:
                await store.commit(answer)

        await asyncio.gather(*(worker() for _ in range(at_once)))
        return time.perf_counter() - began


def write_plain(root: Path, count: int, *, durable: bool) -> float:
    """Seconds for `count` directories written one after the other, with every fsync or with none."""

    def put(path: str, content: bytes) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(fd, content)
        if durable:
            os.fsync(fd)
        os.close(fd)

    began = time.perf_counter()
    root.mkdir()
    parent = os.open(root, os.O_RDONLY)
    for answer in answers(count):
        generation = finish(answer)
        temporary, final = f"{root}/.{answer.gen_id}", f"{root}/{answer.gen_id}"
        os.mkdir(temporary)
        for name, content in (
            ("raw.txt", generation.raw_text.encode()),
            ("prompt.txt", (generation.prompt_text or "").encode()),
            ("parsed.txt", (generation.parsed_text or "").encode()),
            ("metadata.json", encode_metadata(generation.metadata)),
        ):
            put(f"{temporary}/{name}", content)
        if durable:
            fd = os.open(temporary, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
        os.rename(temporary, final)
        if durable:
            os.fsync(parent)
    os.close(parent)
    return time.perf_counter() - began


WAYS: dict[str, tuple[Callable[[Path, int], float], float]] = {
    "plain writes, no fsync": (lambda root, count: write_plain(root, count, durable=False), 1.0),
    "one at a time, every fsync": (lambda root, count: write_plain(root, count, durable=True), 0.1),
    "the store, 64 at once": (lambda root, count: asyncio.run(commit_all(root, count, 64)), 1.0),
    "the store, 256 at once": (lambda root, count: asyncio.run(commit_all(root, count, 256)), 1.0),
}
"""What is measured, and which share of the commits: one at a time they take long."""


def rate_of(name: str, count: int) -> float:
    """Commits per second of one way, in a process of its own: what others have left must not matter."""
    command = [sys.executable, "-m", "bench.commit", "--way", name, "--count", str(count)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", choices=WAYS, help="measure one way and print its rate")
    options = parser.parse_args(arguments)
    if options.way is not None:
        way, share = WAYS[options.way]
        count = max(1, int(options.count * share))
        os.sync()
        print(count / way(workplace("commit") / "store", count))
        return
    measured: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(options.rounds):
        for name in WAYS:
            measured[name].append(rate_of(name, options.count))
    rates = {name: statistics.median(found) for name, found in measured.items()}
    plain, each, *_ = rates.values()
    publish(
        "commit",
        f"Commit: {options.count} directories of four files, median of {options.rounds}",
        ["", "per second", "of plain writes", "× one at a time"],
        [
            [name, f"{rate:.0f}", f"{100 * rate / plain:.0f} %", f"{rate / each:.1f}"]
            for name, rate in rates.items()
        ],
        rates,
    )


if __name__ == "__main__":
    main()
