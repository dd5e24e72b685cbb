"""Planning and resuming: `plan`, `status`, and `run` until its first request, from 10⁴ to 10⁶ rows.

`--done 0.3` resumes: the store holds three tenths of the rows. Each row more costs the same; the fit says how
much. ``python -m bench.plan --rows 10000 100000 1000000`` takes some minutes, most of them to write the rows.

A run refuses to begin where its rows cannot fit: 10⁶ want 20 GB and five million inodes. The one that is
measured makes one call, so it is told that nobody knows the disk's room.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.common import COHORT, genworker, lineages, measure, publish, server, workplace, write_project

WITHOUT_LOOK_AT_ROOM = """
import os, runpy
def unknown(path): raise OSError
os.statvfs = unknown
runpy.run_module("genworker", run_name="__main__", alter_sys=True)
"""


def lay_out_done(root: Path, share: float) -> int:
    """Write directories as a finished run leaves them, for the first rows of the membership."""
    membership = root / "data" / "cohorts" / COHORT / "membership.csv"
    lines = membership.read_text(encoding="utf-8").splitlines()[1:]
    wanted = int(len(lines) * share)
    for line in lines[:wanted]:
        stage, gen, _, parent, _, template, model, replicate = line.split(",")
        directory = root / "data" / "gens" / stage / gen
        directory.mkdir(parents=True)
        metadata = {
            "task_id": "t",
            "template_id": template,
            "model_id": model,
            "parent_gen_id": parent,
            "replicate": int(replicate),
        }
        (directory / "metadata.json").write_text(json.dumps(metadata), encoding="utf-8")
        (directory / "parsed.txt").write_text("7.0", encoding="utf-8")
        (directory / "raw.txt").write_text("SCORE: 7", encoding="utf-8")
        (directory / "prompt.txt").write_text("?", encoding="utf-8")
    os.sync()  # else the disk writes them while the first command is measured
    return wanted


def until_first_request(root: Path) -> float:
    """Seconds from the start of `run` until the server has its first request."""
    # One call at a time, each a second long: what is measured is over with the first.
    with server("--no-records", "--latency", "1") as remote:
        config = root / "config" / "genworker.toml"
        config.write_text(
            f'default_endpoint = "bench"\n[endpoints.bench]\nkind = "openai"\n'
            f'base_url = "{remote.openai_url}"\nmax_concurrency = 1\n',
            encoding="utf-8",
        )
        said = root / "run.txt"
        began = time.perf_counter()
        with (
            said.open("wb") as out,
            subprocess.Popen(
                [sys.executable, "-c", WITHOUT_LOOK_AT_ROOM, "run", COHORT, "--quiet"],
                cwd=root,
                stdout=out,
                stderr=subprocess.STDOUT,
            ) as process,
        ):
            while not remote.stats()["paid"]:
                if process.poll() is not None:
                    sys.exit(f"the run ended before its first request:\n{said.read_text(encoding='utf-8')}")
                time.sleep(0.02)
            seconds = time.perf_counter() - began
            process.send_signal(signal.SIGTERM)
        return seconds


def per_row(rows: Sequence[int], values: Sequence[float]) -> float:
    """The slope of a straight line through (rows, values), by least squares."""
    return statistics.linear_regression(rows, values).slope


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--done", type=float, default=0.0, help="share of the rows that the store holds")
    options = parser.parse_args(arguments)
    rows, record, first = [], [], []
    for count in options.rows:
        root = workplace("plan")
        written = write_project(
            root, lineages(count // 10, evaluations=8), "http://127.0.0.1:9/v1", in_flight=64
        )
        done = lay_out_done(root, options.done)
        what = f"{written:,} rows, {done:,} done"
        for verb in ("plan", "status"):
            result = measure(genworker(verb, COHORT, "--json"), cwd=root)
            assert result.exit_code == 0, result.output
            figures = (result.wall_s, result.cpu_s, result.peak_rss_mb)
            rows.append([f"{verb}, {what}", *(f"{figure:.2f}" for figure in figures)])
            record.append(
                {
                    "verb": verb,
                    "rows": written,
                    "done": done,
                    "wall_s": result.wall_s,
                    "cpu_s": result.cpu_s,
                    "peak_rss_mb": result.peak_rss_mb,
                }
            )
        first.append(until_first_request(root))
        rows.append([f"run until its first request, {what}", f"{first[-1]:.2f}", "", ""])
        record.append({"verb": "run", "rows": written, "done": done, "first_request_s": first[-1]})
    if len(options.rows) > 1:
        plans = [entry for entry in record if entry["verb"] == "plan"]
        counts = [int(entry["rows"]) for entry in plans]
        cpu_us = 1e6 * per_row(counts, [float(entry["cpu_s"]) for entry in plans])
        size = 1e6 * per_row(counts, [float(entry["peak_rss_mb"]) for entry in plans])
        start_us = 1e6 * per_row(counts, first)
        rows.append([f"each row more of a plan: {cpu_us:.1f} µs, {size:.0f} bytes", "", "", ""])
        rows.append([f"each row more before the first request: {start_us:.1f} µs", "", "", ""])
        record.append({"plan_us_per_row": cpu_us, "bytes_per_row": size, "start_us_per_row": start_us})
    publish("plan", "Plan, status, start", ["", "wall s", "CPU s", "peak RSS MB"], rows, record)


if __name__ == "__main__":
    main()
