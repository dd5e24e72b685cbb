"""Rows in provider batches of 2,000 beside rows call by call: CPU a row, memory, calls to the provider.

The server answers a batch as soon as it is made. CPU seconds are the client process's, its start included;
the peak is given for a fifth of the rows as well: flat memory is the same for both. The default takes about
ten minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.common import (
    COHORT,
    ROOT,
    Measured,
    drafts_only,
    genworker,
    measure,
    publish,
    workplace,
    write_project,
)

ROWS_OF_A_BATCH = 2000


@contextmanager
def batch_server() -> Iterator[subprocess.Popen[str]]:
    """The tests' server of batches as a process of its own; its first line is its address."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    with subprocess.Popen(
        [sys.executable, "-m", "bench.batches", "--serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()


def ask(process: subprocess.Popen[str], what: str) -> str:
    """One line to the server, and its answer."""
    assert process.stdin is not None
    assert process.stdout is not None
    print(what, file=process.stdin, flush=True)
    return process.stdout.readline().strip()


def serve() -> None:
    """Answer ``url``, and ``calls`` with the counts since the last time, until the input ends."""
    from support.batch_server import BatchServer
    from support.llm_server import Options

    with BatchServer(Options(keep_records=False)).in_thread() as running:
        assert isinstance(running, BatchServer)
        for line in sys.stdin:
            if line.strip() == "url":
                print(running.openai_url, flush=True)
                continue
            print(json.dumps(dict(running.calls)), flush=True)
            for store in (running.calls, running.batches, running.files, running.bill, running.asked):
                store.clear()


def run_rows(process: subprocess.Popen[str], count: int, *, batch: bool) -> tuple[Measured, dict[str, int]]:
    """A fresh project of `count` drafts, run to its end: what it took, and the calls to the provider."""
    root = workplace("batches")
    write_project(root, drafts_only(count), ask(process, "url"), in_flight=256)
    if batch:
        config = root / "config" / "genworker.toml"
        settings = f"batch = true\n[batches]\nmax_rows = {ROWS_OF_A_BATCH}\npoll_s = 1\n"
        config.write_text(config.read_text(encoding="utf-8") + settings, encoding="utf-8")
    result = measure(genworker("run", COHORT, "--quiet"), cwd=root, cpu=0)
    done = sum(1 for _ in Path(root / "data/gens/draft").glob("*/metadata.json"))
    calls = json.loads(ask(process, "calls"))
    assert (result.exit_code, done) == (0, count), result.output
    return result, calls


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--live", type=int, default=20_000, help="rows that are asked call by call")
    parser.add_argument("--serve", action="store_true")
    options = parser.parse_args(arguments)
    if options.serve:
        serve()
        return
    rows, record = [], []
    with batch_server() as process:
        for count, batch in ((options.live, False), (options.count // 5, True), (options.count, True)):
            result, calls = run_rows(process, count, batch=batch)
            cpu_ms = result.cpu_s * 1000 / count
            name = f"{count:,} rows, {'in batches' if batch else 'call by call'}"
            made = ", ".join(f"{number} {what}" for what, number in sorted(calls.items()))
            rate, peak_mb = count / result.wall_s, result.peak_rss_mb
            rows.append([name, f"{cpu_ms:.2f}", f"{rate:.0f}", f"{peak_mb:.0f}", made or "-"])
            record.append(
                {"rows": count, "batch": batch, "cpu_ms": cpu_ms, "per_s": rate, "rss_mb": peak_mb, **calls}
            )
    publish(
        "batches",
        f"Batches: {options.count:,} rows in batches of {ROWS_OF_A_BATCH:,}",
        ["", "CPU ms a row", "rows/s", "peak RSS MB", "calls for batches"],
        rows,
        record,
    )


if __name__ == "__main__":
    main()
