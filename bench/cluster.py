"""What several workers cost and keep, in ratios: `python -m bench.cluster` (docs/cluster.md).

Four workers of one run against four runs of their own on disjoint cohorts; a configured rate over four
workers; a limit that nobody knows; calls at once and a cap while workers are killed; one that is stopped.
Everything is the real command line over a socket.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.common import COHORT, drafts_only, genworker, publish, server, workplace, write_project

CREW = 4


def project(root: Path, rows: int, url: str, extra: str = "", *, in_flight: int = 200) -> Path:
    """A project of drafts."""
    write_project(root, drafts_only(rows), url, in_flight=in_flight)
    with (root / "config" / "genworker.toml").open("a", encoding="utf-8") as stream:
        stream.write(extra + "\n")
    return root


def begin(root: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start a run; what it says goes nowhere."""
    return subprocess.Popen(
        genworker("run", COHORT, "--plain", *arguments),
        cwd=root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def crew_of(number: int) -> tuple[str, ...]:
    """The options for so many workers; none for one process."""
    return ("--engine", "local", "--workers", str(number)) if number > 1 else ()


def journals(root: Path) -> list[dict[str, Any]]:
    """Every line of a project's journals."""
    found = []
    for path in sorted((root / "data" / ".genworker" / "runs").glob("*.jsonl")):
        found += [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return found


def workers(root: Path) -> list[dict[str, Any]]:
    """The first lines of workers' journals, as they were begun."""
    return [line for line in journals(root) if line["event"] == "worker_started"]


def when_s(line: dict[str, Any]) -> float:
    """The time of a journal's line."""
    return datetime.fromisoformat(line["time"]).timestamp()


def calls_s(roots: Sequence[Path]) -> float:
    """From the first call to the last commit over several projects."""
    lines = [line for root in roots for line in journals(root)]
    first = min(when_s(line) for line in lines if line["event"] == "calling")
    return max(when_s(line) for line in lines if line["event"] == "committed") - first


def timed(runs: Callable[[], list[subprocess.Popen[bytes]]]) -> tuple[float, float]:
    """Wall and processor seconds of commands that run beside each other, their children included."""

    def spent_s() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before, began = spent_s(), time.perf_counter()
    codes = [process.wait() for process in runs()]
    assert codes == [0] * len(codes), codes
    return time.perf_counter() - began, spent_s() - before


def against_bare(rows: int, pairs: int) -> list[list[str]]:
    """Four workers against four runs by themselves, in pairs."""
    found: dict[str, list[float]] = {"calls": [], "whole command": [], "CPU per generation": []}
    with server("--latency", "0.2", "--words", "60", "--no-records") as remote:
        for _ in range(pairs):
            alone = [
                project(workplace("bare"), rows // CREW, remote.openai_url, in_flight=50) for _ in range(CREW)
            ]
            together = project(workplace("crew"), rows, remote.openai_url)
            bare_s, bare_cpu_s = timed(lambda alone=alone: [begin(root) for root in alone])  # type: ignore[misc]
            crew_s, crew_cpu_s = timed(lambda root=together: [begin(root, *crew_of(CREW))])  # type: ignore[misc]
            found["calls"].append(calls_s(alone) / calls_s([together]))
            found["whole command"].append(bare_s / crew_s)
            found["CPU per generation"].append(crew_cpu_s / bare_cpu_s)
    wanted = {"calls": "≥ 0.85", "whole command": "≥ 0.85", "CPU per generation": "≤ 1.15"}
    return [
        [f"4 workers to 4 runs: {name}", f"{statistics.median(values):.2f}", wanted[name]]
        for name, values in found.items()
    ]


def most_within(times: Sequence[float], window_s: float) -> int:
    """The most of these times that lie within a window."""
    times, first, most = sorted(times), 0, 0
    for last, at in enumerate(times):
        while at - times[first] >= window_s:
            first += 1
        most = max(most, last - first + 1)
    return most


def configured_rate(per_s: int, seconds: int) -> list[list[str]]:
    """A configured rate: the mean against one process's, and the fullest windows."""
    means, full = {}, {}
    for number in (1, CREW):
        with server("--latency", "0.1", "--words", "12") as remote:
            extra = f"rpm = {60 * per_s}"
            root = project(workplace("rate"), per_s * seconds, remote.openai_url, extra, in_flight=400)
            timed(lambda root=root, number=number: [begin(root, *crew_of(number))])  # type: ignore[misc]
            times = sorted(record["received"] for record in remote.records())
        middle = [at for at in times if times[0] + 2 <= at <= times[-1] - 2]
        means[number] = len(middle) / (middle[-1] - middle[0])
        full[number] = most_within(times, 10.0) / 10, most_within(times, 1.0)
    return [
        [f"{per_s}/s: mean of one process", f"{means[1]:.1f}", ""],
        [f"{per_s}/s: mean of 4 workers", f"{means[CREW]:.1f}", f"within 1 % of {means[1]:.1f}"],
        [f"{per_s}/s: fullest 10 s of 4 workers", f"{full[CREW][0]:.1f}", f"≤ {per_s}"],
        [f"{per_s}/s: fullest second of 4 workers", f"{full[CREW][1]}", f"≤ {1.1 * per_s:.0f}"],
    ]


def unknown_limit(rows: int) -> list[list[str]]:
    """A limit that nobody knows: four workers, each of which looks for it, against one process."""
    lines = []
    for name, limit in (("rate", ("--rpm", "3600")), ("calls at once", ("--max-concurrent", "12"))):
        took_s, refused = {}, {}
        for number in (1, CREW):
            with server("--latency", "0.2", "--words", "12", *limit) as remote:
                root = project(workplace("unknown"), rows, remote.openai_url)
                timed(lambda root=root, number=number: [begin(root, *crew_of(number))])  # type: ignore[misc]
                took_s[number] = calls_s([root])
                stats = remote.stats()
                refused[number] = sum(stats["refused"].values()) / stats["received"]
        lines.append([f"unknown {name}: makespan to one process", f"{took_s[CREW] / took_s[1]:.2f}", "≤ 1.2"])
        lines.append([f"unknown {name}: refused", f"{refused[CREW]:.1%}", f"≤ 5 % (alone {refused[1]:.1%})"])
    return lines


def killed(rows: int, cap: int) -> list[list[str]]:
    """Three workers killed below a limit on calls at once and a cap on calls."""
    with server("--latency", "0.5", "--words", "12") as remote:
        root = project(workplace("killed"), rows, remote.openai_url, in_flight=24)
        run = begin(root, "--max-calls", str(cap), *crew_of(CREW))
        kills = []
        for number in range(3):
            while remote.stats()["received"] < (number + 1) * cap // 5:
                time.sleep(0.02)
            victim = workers(root)[number]  # of the first four: each dies once
            kills.append(time.time())
            os.kill(victim["pid"], signal.SIGKILL)
        run.wait()
        stats = remote.stats()
        lost = [when_s(line) for line in journals(root) if line["event"] == "worker_lost"]
    proof_s = [min(at - kill for at in lost if at >= kill - 0.05) for kill in kills]
    return [
        ["3 kills: calls sent below a cap", str(stats["received"]), f"≤ {cap}"],
        ["3 kills: not used of the cap", str(cap - stats["received"]), "≤ calls recorded, not sent"],
        ["3 kills: calls at once of 24", str(stats["max_in_flight"]), "≤ 24 + those just killed"],
        ["3 kills: asked for twice", str(stats["paid_twice"]), "≤ 3 × 6"],
        ["3 kills: slowest proof", f"{max(proof_s):.1f} s", "≤ 2 s"],
    ]


def frozen(rows: int) -> list[list[str]]:
    """A worker is stopped: others go on, and what it had is made again once its calls must have ended."""
    with server("--latency", "0.3", "--words", "12") as remote:
        root = project(workplace("frozen"), rows, remote.openai_url, "timeout_s = 8", in_flight=12)
        run = begin(root, *crew_of(2))
        while remote.stats()["received"] < rows // 4:
            time.sleep(0.02)
        victim = workers(root)[0]["pid"]
        stopped_at = time.time()
        os.kill(victim, signal.SIGSTOP)
        code = run.wait()
        stats = remote.stats()
        done = sorted(when_s(line) for line in journals(root) if line["event"] == "committed")
    gaps = [later - earlier for earlier, later in itertools.pairwise(done) if later > stopped_at]
    return [
        ["frozen worker: exit code", str(code), "0"],
        ["frozen worker: longest pause of all", f"{max(gaps):.1f} s", "≤ lease + timeout_s + 2 s = 15 s"],
        ["frozen worker: asked for twice", str(stats["paid_twice"]), "≤ 6"],
    ]


def main(arguments: list[str] | None = None) -> None:
    parts: dict[str, Callable[[argparse.Namespace], list[list[str]]]] = {
        "bare": lambda options: against_bare(options.rows, options.pairs),
        "rate": lambda options: configured_rate(options.per_s, options.seconds),
        "unknown": lambda options: unknown_limit(options.rows // 4),
        "killed": lambda options: killed(options.rows // 4, options.rows // 8),
        "frozen": lambda options: frozen(options.rows // 20),
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *parts], default=[])
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--per-s", type=int, default=500)
    parser.add_argument("--seconds", type=int, default=20)
    options = parser.parse_args(arguments)
    rows = [row for name in options.parts or parts for row in parts[name](options)]
    publish("cluster", "Several workers", ("what", "measured", "wanted"), rows, rows)


if __name__ == "__main__":
    main()
