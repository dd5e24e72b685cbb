"""The engine's own cost: generations against a server that answers at once, everything durable.

Beside it the bare SDK loop, which stores nothing. CPU seconds are the client process's, its start included.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from bench.common import (
    COHORT,
    Measured,
    drafts_only,
    genworker,
    measure,
    publish,
    server,
    workplace,
    write_project,
)


def run_genworker(url: str, count: int, in_flight: int, kind: str = "openai") -> Measured:
    """A fresh project of `count` drafts, run to its end."""
    root = workplace("engine")
    write_project(root, drafts_only(count), url, in_flight=in_flight, kind=kind)
    result = measure(genworker("run", COHORT, "--quiet"), cwd=root, cpu=0)
    done = sum(1 for _ in (root / "data/gens/draft").glob("*/metadata.json"))
    assert (result.exit_code, done) == (0, count), result.output
    return result


def run_bare(url: str, count: int, in_flight: int, kind: str = "openai") -> Measured:
    """The bare loop, `count` calls."""
    script = str(Path(__file__).with_name("bare_sdk.py"))
    result = measure([sys.executable, script, url, str(count), str(in_flight), kind], cpu=0)
    assert result.exit_code == 0, result.output
    return result


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kind", choices=("openai", "anthropic"), default="openai")
    parser.add_argument("--in-flight", type=int, nargs="*", default=[64, 256])
    options = parser.parse_args(arguments)
    rows, record = [], []
    with server("--no-records") as remote:
        url = remote.openai_url if options.kind == "openai" else remote.anthropic_url
        for in_flight in options.in_flight:
            pairs = [
                (
                    run_bare(url, options.count, in_flight, options.kind),
                    run_genworker(url, options.count, in_flight, options.kind),
                )
                for _ in range(options.rounds)
            ]
            for name, place in (("bare SDK loop", 0), ("genworker", 1)):
                cpu = statistics.median(pair[place].cpu_s for pair in pairs) * 1000 / options.count
                rate = statistics.median(options.count / pair[place].wall_s for pair in pairs)
                rss = statistics.median(pair[place].peak_rss_mb for pair in pairs)
                rows.append([f"{name}, {in_flight} in flight", f"{cpu:.2f}", f"{rate:.0f}", f"{rss:.0f}"])
                record.append(
                    {"way": name, "in_flight": in_flight, "cpu_s_per_1000": cpu, "per_s": rate, "rss_mb": rss}
                )
            ratio = statistics.median(pair[0].cpu_s / pair[1].cpu_s for pair in pairs)
            rows.append([f"  bare / genworker, {in_flight} in flight", f"{ratio:.2f} ×", "", ""])
            record.append({"ratio_cpu_bare_over_genworker": ratio, "in_flight": in_flight})
    publish(
        "engine" if options.kind == "openai" else f"engine-{options.kind}",
        f"Engine, {options.kind}: {options.count} generations, zero latency, median of {options.rounds}",
        ["", "CPU s per 1000", "generations/s", "peak RSS MB"],
        rows,
        record,
    )


if __name__ == "__main__":
    main()
