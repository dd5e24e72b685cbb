"""Three-stage lineages with heavy-tailed latencies over real sockets, beside the same scheduler in virtual
time with the same latencies, and beside a barrier between the stages.

A draft, its essay and one evaluation each; latencies are lognormal (median 0.8 s, sigma 0.8). The bound is
max(sum of latencies / calls at once, longest lineage): no scheduler that does not know the latencies can
reach it. The barrier is played in virtual time, where nothing costs it anything.
"""

from __future__ import annotations

import argparse
from typing import Any

from bench.common import (
    COHORT,
    genworker,
    lineages,
    measure,
    publish,
    seconds_of_calls,
    server,
    workplace,
    write_project,
)
from genworker.core.ids import seed_for
from genworker.core.scheduler import WINDOW
from support.llm_server import Options
from support.llm_server_options import ParsedRequest, latency_of
from support.simulation import Model, play

MEDIAN_S, SIGMA = 0.8, 0.8


def latencies_of(records: list[dict[str, Any]], rows: list[tuple[str, ...]], options: Options) -> list[float]:
    """Seconds that the server kept each row's answer back, in the rows' order.

    They belong to the request, and the request is known by its seed, which belongs to the gen_id.
    """
    of_seed: dict[int, float] = {}
    for record in records:
        fields: dict[str, Any] = {name: record.get(name) for name in ParsedRequest.__dataclass_fields__}
        request = ParsedRequest(**fields)
        of_seed[record["seed"]] = latency_of(options, request)
    return [of_seed[seed_for(row[1])] for row in rows]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lineages", type=int, default=2000)
    parser.add_argument("--in-flight", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0, help="of the latencies")
    given = parser.parse_args(arguments)
    options = Options(latency_s=MEDIAN_S, latency_sigma=SIGMA, seed=given.seed)
    rows = list(lineages(given.lineages))
    root = workplace("lineage")
    with server("--latency", str(MEDIAN_S), "--sigma", str(SIGMA), "--seed", str(given.seed)) as remote:
        write_project(root, iter(rows), remote.openai_url, in_flight=given.in_flight)
        result = measure(genworker("run", COHORT, "--quiet"), cwd=root, cpu=0)
        assert result.exit_code == 0, result.output
        latencies = latencies_of(remote.records(), rows, options)
    took = seconds_of_calls(root)
    model = Model(MEDIAN_S, SIGMA)
    virtual, barrier = (
        play(
            [model],
            lineages=given.lineages,
            concurrency=given.in_flight,
            latencies=latencies,
            window=10**9 if is_barrier else WINDOW,
            barrier=is_barrier,
        )
        for is_barrier in (False, True)
    )
    ways = [
        ("bound", virtual.bound_s),
        ("the same scheduler, virtual time", virtual.makespan_s),
        ("genworker, first call to last commit", took),
        ("genworker, whole process", result.wall_s),
        ("a barrier between stages, virtual time", barrier.makespan_s),
    ]
    publish(
        "lineage",
        f"Lineages: {given.lineages} × draft, essay, evaluation; {given.in_flight} at once",
        ["", "seconds", "× bound", "× virtual", "× barrier"],
        [
            [
                name,
                f"{seconds:.1f}",
                f"{seconds / virtual.bound_s:.3f}",
                f"{seconds / virtual.makespan_s:.3f}",
                f"{seconds / barrier.makespan_s:.3f}",
            ]
            for name, seconds in ways
        ],
        {
            **dict(ways),
            "cpu_s": result.cpu_s,
            "peak_rss_mb": result.peak_rss_mb,
        },
    )


if __name__ == "__main__":
    main()
