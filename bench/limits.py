"""What limits cost over real sockets: `genworker run` as a process against the local server.

The time is from the server's first request to its last answer. Several scenarios are played at once, since
all they do is wait; `--jobs 1` plays one after the other.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.common import COHORT, drafts_only, genworker, publish, workplace, write_project
from support.llm_server import spawn

RPM = ("--rpm", "1200")
TPM = ("--tpm", "600000", "--token-burst", "10000")
"""A call takes 500 tokens."""
HALVING = ("--schedule", "10=0.5,20=1")
ONLY_429 = ("--rule", '{"fault": "429@retry-after=1", "until_s": 60}')


@dataclass(frozen=True, slots=True)
class Scenario:
    """One server and what it may cost.

    Attributes:
        server: its arguments.
        ideal_s: the time that the limit itself needs; ``None``: the calls' latencies over `at_once`.
        at_most, refused: bounds on the time over the ideal, and on the share of requests refused, where
            there are any.
    """

    name: str
    server: tuple[str, ...]
    calls: int = 600
    ideal_s: float | None = 30.0
    at_once: int = 256
    latency_s: float = 0.1
    sigma: float = 0.0
    api: str = "openai"
    at_most: float | None = 1.15
    refused: float | None = 0.05


def limited(name: str, server: tuple[str, ...], ideal_s: float, **more: Any) -> list[Scenario]:
    """A limit that shows in refusals, and announced in the headers of either API."""
    announced = [
        Scenario(f"{name}, {api}'s headers", (*server, "--announce"), api=api, refused=0.01, ideal_s=ideal_s)
        for api in ("openai", "anthropic")
    ]
    return [Scenario(f"{name}, 429 + Retry-After 1", server, ideal_s=ideal_s, **more), *announced]


MINUTE = (*RPM, "--burst", "1200")
SCENARIOS: tuple[Scenario, ...] = (
    *limited("1,200 rpm", RPM, 30.0),
    Scenario("1,200 rpm, latency 0.6 s, σ 0.5", RPM, latency_s=0.6, sigma=0.5),
    *limited("tokens per minute", TPM, 30.0),
    *limited("halves at 10 s, doubles at 20 s", (*RPM, *HALVING), 35.0),
    Scenario("tokens: halves and doubles", (*TPM, *HALVING), ideal_s=35.0),
    Scenario("takes 40 at once", ("--max-concurrent", "40"), 2000, None, 40, 0.5, at_most=None),
    Scenario("slows down past 32 at once", ("--slow-above", "32"), 2000, None, 32, 0.5, at_most=1.1),
)
OTHERS = (
    Scenario("1,200 rpm, a bucket of a minute", MINUTE, 2400, 60.0),
    Scenario("1,200 rpm, minute after minute", (*MINUTE, "--window", "fixed"), 2400, 60.0),
    Scenario("1,200 rpm, the last minute", (*MINUTE, "--window", "sliding"), 2400, 60.0),
    Scenario("1,200 rpm, second after second", (*RPM, "--window", "fixed")),
    Scenario("1,200 rpm, the last second", (*RPM, "--window", "sliding")),
    Scenario("1,200 rpm, one by one", (*RPM, "--burst", "1")),
    Scenario("8 % random 429, Retry-After 0.3", ("--rate", "429@retry-after=0.3=0.08"), 2000, None, 256, 0.5),
    Scenario("8 % random 429, no hint", ("--rate", "429=0.08"), 2000, None, 256, 0.5),
    Scenario("8 % random 500", ("--rate", "500=0.08"), 2000, None, 256, 0.5),
)
"""Servers for which no bound was promised."""


def play(scenario: Scenario) -> dict[str, Any]:
    """Play one scenario and say what came of it."""
    arguments = ("--words", "200", "--latency", str(scenario.latency_s), "--sigma", str(scenario.sigma))
    root = workplace("limits")
    with spawn(*arguments, *scenario.server) as remote:
        url = remote.openai_url if scenario.api == "openai" else remote.anthropic_url
        write_project(root, drafts_only(scenario.calls), url, in_flight=256)
        configure(root, f'kind = "{scenario.api}"')
        result = subprocess.run(genworker("run", COHORT, "-q"), cwd=root, capture_output=True, text=True)
        records = remote.records()
    assert result.returncode == 0, result.stderr
    paid = [record for record in records if record["outcome"] == "ok"]
    assert len(paid) == scenario.calls
    took = max(record["answered"] for record in records) - records[0]["received"]
    ideal = scenario.ideal_s
    if ideal is None:
        ideal = scenario.calls * scenario.latency_s / scenario.at_once
    refused = sum(record["status"] == 429 for record in records) / len(records)
    missed = [
        name
        for name, value, bound in (
            ("time", took / ideal, scenario.at_most),
            ("refused", refused, scenario.refused),
        )
        if bound is not None and value > bound
    ]
    return {
        "scenario": scenario.name,
        "calls": scenario.calls,
        "ideal_s": ideal,
        "took_s": took,
        "ratio": took / ideal,
        "refused": refused,
        "latency_s": sum(record["answered"] - record["received"] for record in paid) / len(paid),
        "missed": missed if scenario in SCENARIOS else None,
    }


def configure(root: Path, kind: str) -> None:
    """Set the kind of the one endpoint."""
    path = root / "config" / "genworker.toml"
    path.write_text(path.read_text(encoding="utf-8").replace('kind = "openai"', kind), encoding="utf-8")


def play_two() -> dict[str, Any]:
    """Two endpoints, one of which refuses everything for a minute; the other stands beside itself alone."""
    latency = ("--latency", "0.5", "--words", "200", "--max-concurrent", "64")
    root = workplace("limits")
    with spawn(*latency) as alone:
        write_project(root, drafts_only(3000), alone.openai_url, in_flight=64)
        assert (
            subprocess.run(genworker("run", COHORT, "-q"), cwd=root, stderr=subprocess.DEVNULL).returncode
            == 0
        )
        alone_s = span(alone.records())
    root = workplace("limits")
    with spawn(*latency) as good, spawn(*latency, *ONLY_429) as bad:
        rows = [(*row[:6], f"m{number % 2 + 1}", *row[7:]) for number, row in enumerate(drafts_only(6000))]
        write_project(root, iter(rows), good.openai_url, in_flight=64)
        models = root / "data" / "1_raw" / "llm_models.csv"
        models.write_text(models.read_text(encoding="utf-8") + "m2,bench/m2,True,True\n", encoding="utf-8")
        path = root / "config" / "genworker.toml"
        text = path.read_text(encoding="utf-8").replace("max_concurrency = 64\n[", "max_concurrency = 128\n[")
        text += f'[endpoints.bad]\nkind = "openai"\nbase_url = "{bad.openai_url}"\nmax_concurrency = 64\n'
        path.write_text(f'{text}[models.m2]\nendpoint = "bad"\n', encoding="utf-8")
        result = subprocess.run(genworker("run", COHORT, "-q"), cwd=root, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        beside_s = span(good.records())
        bad_s = span(bad.records())
    return {"alone_s": alone_s, "beside_s": beside_s, "refusing_s": bad_s}


def span(records: Sequence[dict[str, Any]]) -> float:
    """Seconds from the first request to the last answer."""
    return float(max(record["answered"] for record in records) - records[0]["received"])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="scenarios whose name contains this")
    parser.add_argument("--jobs", type=int, default=3, help="scenarios at once")
    options = parser.parse_args(arguments)
    chosen = [scenario for scenario in (*SCENARIOS, *OTHERS) if options.only in scenario.name]
    with ThreadPoolExecutor(options.jobs) as pool:
        played = list(pool.map(play, chosen))
    two = play_two() if options.only in "two endpoints" else None
    publish(
        "limits",
        "Limits over real sockets",
        ["server", "calls", "ideal s", "took s", "× ideal", "refused", "latency s", "bound"],
        [
            [
                found["scenario"],
                str(found["calls"]),
                f"{found['ideal_s']:.1f}",
                f"{found['took_s']:.1f}",
                f"{found['ratio']:.2f}",
                f"{100 * found['refused']:.1f} %",
                f"{found['latency_s']:.2f}",
                "–" if found["missed"] is None else "missed" if found["missed"] else "kept",
            ]
            for found in played
        ],
        {"scenarios": played, "two endpoints": two},
    )
    if two is not None:
        print(f"\n  Two endpoints, one refuses everything for a minute: alone {two['alone_s']:.1f} s,")
        print(f"  beside it {two['beside_s']:.1f} s; the refusing one ends after {two['refusing_s']:.1f} s")
    sys.exit(any(found["missed"] for found in played))


if __name__ == "__main__":
    main()
