"""How close a run comes to the model's own time: 5000 calls of 0.1 s, 50 at once (ideal 10 s)."""

from __future__ import annotations

import argparse

from bench.common import (
    COHORT,
    drafts_only,
    genworker,
    measure,
    publish,
    seconds_of_calls,
    server,
    workplace,
    write_project,
)
from bench.engine import run_bare


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--in-flight", type=int, default=50)
    parser.add_argument("--latency", type=float, default=0.1, help="seconds")
    options = parser.parse_args(arguments)
    ideal = options.count * options.latency / options.in_flight
    root = workplace("latency")
    with server("--no-records", "--latency", str(options.latency)) as remote:
        write_project(root, drafts_only(options.count), remote.openai_url, in_flight=options.in_flight)
        result = measure(genworker("run", COHORT, "--quiet"), cwd=root, cpu=0)
        assert result.exit_code == 0, result.output
        bare = run_bare(remote.openai_url, options.count, options.in_flight)
    took = seconds_of_calls(root)
    publish(
        "latency",
        f"{options.count} calls of {options.latency} s, {options.in_flight} at once, ideal {ideal:g}",
        ["", "wall s", "× ideal", "CPU s", "peak RSS MB"],
        [
            ["genworker, first call to last commit", f"{took:.2f}", f"{took / ideal:.3f}", "", ""],
            *(
                [
                    name,
                    f"{way.wall_s:.2f}",
                    f"{way.wall_s / ideal:.3f}",
                    f"{way.cpu_s:.2f}",
                    f"{way.peak_rss_mb:.0f}",
                ]
                for name, way in (
                    ("genworker, whole process", result),
                    ("bare SDK loop, stores nothing, whole process", bare),
                )
            ),
        ],
        {
            "ideal_s": ideal,
            "calls_s": took,
            **{
                name: {"wall_s": way.wall_s, "cpu_s": way.cpu_s, "peak_rss_mb": way.peak_rss_mb}
                for name, way in (("genworker", result), ("bare", bare))
            },
        },
    )


if __name__ == "__main__":
    main()
