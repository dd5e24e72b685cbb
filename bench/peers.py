"""genworker beside its peers: the same prompts against the same server that answers at once, in one run.

Each peer runs as its documentation says, with what it resumes from switched on, in an environment of its own
below ``bench/environments``, made when it is first needed. Before anything is measured each way has a trial
against a slow server: how many calls it really has in flight, and that a second run of a finished job calls
nobody. A peer that cannot be installed or fails is a row that says so.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bench.bare_sdk import PROMPT
from bench.common import Measured, measure, publish, server, workplace
from bench.engine import run_bare, run_genworker

HERE = Path(__file__).parent
TRIAL_LATENCY_S = 4.0
LIMIT_S = 1200.0
# What a peer's process sees: usage statistics off, nothing fetched at its start, no settings of this machine.
ENVIRONMENT = {
    "PATH": os.environ.get("PATH", os.defpath),
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "TELEMETRY_ENABLED": "false",
}


class Failed(Exception):
    """A peer that could not be installed, or did not do the work."""


@dataclass(frozen=True)
class Peer:
    """A peer: its environment's name, what is installed there, its script, and further arguments for that."""

    name: str
    requirements: tuple[str, ...]
    script: str
    arguments: tuple[str, ...] = ()

    def python(self) -> str:
        """The Python of its environment, which is made when it is missing or was made for other versions."""
        root = HERE / "environments" / self.name
        ready = root / "installed.txt"
        python = root / ("Scripts" if os.name == "nt" else "bin") / "python"
        wanted = "\n".join(self.requirements)
        if not ready.exists() or ready.read_text() != wanted:
            print(f"  installing {self.name} …", flush=True)
            ready.unlink(missing_ok=True)
            for command in (
                [sys.executable, "-m", "venv", "--clear", str(root)],
                [str(python), "-m", "pip", "install", "--quiet", *self.requirements],
            ):
                done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
                if done.returncode:
                    raise Failed(f"not installed: {last_line(done.stdout)}")
            ready.write_text(wanted)
        return str(python)

    def directory(self, count: int) -> Path:
        """A new directory with the prompts in it."""
        directory = workplace(self.name)
        rows = ({"id": f"{number:08}", "text": f"{PROMPT}\n{number:08}"} for number in range(count))
        (directory / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return directory

    def run(self, url: str, count: int, in_flight: int, directory: Path | None = None) -> Measured:
        """Its script over `count` prompts, in a new directory or in one where it ran before."""
        directory = directory or self.directory(count)
        result = measure(
            [
                self.python(),
                "-P",
                str(HERE / self.script),
                url,
                str(count),
                str(in_flight),
                str(directory),
                *self.arguments,
            ],
            cwd=directory,
            cpu=0,
            env=ENVIRONMENT | {"HOME": str(directory)},
            limit_s=LIMIT_S,
        )
        if result.exit_code:
            raise Failed(f"exit {result.exit_code}: {last_line(result.output)}")
        return result


ASYNC_BATCH_LLM = ("async-batch-llm==0.28.0", "openai==3.54.0")
DATATROVE = (
    "datatrove==0.10.1",
    # What its inference runner imports, in no extra of its own together.
    "aiofiles==25.1.0",
    "aiosqlite==0.22.1",
    "httpx==0.28.1",
    "openai==3.54.0",
    "orjson==3.13.0",
    "xxhash==4.1.0",
)


@dataclass
class Way:
    """One way to do the work, and what was measured of it."""

    name: str
    keeps: str
    resumes: bool
    run: Callable[[str, int, int], Measured]
    peer: Peer | None = None
    in_flight_seen: int = 0
    rounds: list[Measured] = field(default_factory=list)
    failure: str = ""

    def median(self, figure: Callable[[Measured], float]) -> float:
        """The median over the rounds."""
        return statistics.median(map(figure, self.rounds))


def peer_way(name: str, keeps: str, peer: Peer) -> Way:
    return Way(name, keeps, True, peer.run, peer)


def ways() -> list[Way]:
    batch = partial(Peer, "async-batch-llm", ASYNC_BATCH_LLM, "peer_async_batch_llm.py")
    datatrove = partial(Peer, "datatrove", DATATROVE, "peer_datatrove.py")
    return [
        Way("bare SDK loop", "nothing", False, run_bare),
        Way("genworker", "four files each, synced", True, run_genworker),
        peer_way("async-batch-llm, JSONL", "JSONL, not synced", batch(("jsonl",))),
        peer_way("async-batch-llm, SQLite", "SQLite, not synced", batch(("sqlite",))),
        peer_way("datatrove, loopback", "SQLite synced, JSONL twice", datatrove(("loopback",))),
        peer_way("datatrove, SDK", "SQLite synced, JSONL twice", datatrove(("sdk",))),
        peer_way(
            "curator",
            "JSONL not synced, Arrow",
            Peer("curator", ("bespokelabs-curator==0.1.31",), "peer_curator.py"),
        ),
        peer_way(
            "inspect-ai",
            "log and SQLite, not synced",
            Peer("inspect-ai", ("inspect-ai==0.3.285", "openai==3.54.0"), "peer_inspect_ai.py"),
        ),
    ]


def last_line(output: str) -> str:
    """What a failed command said last."""
    return (output.strip().splitlines() or ["it said nothing"])[-1][:200]


def attempt(way: Way, work: Callable[[], None]) -> None:
    """Do a part of a way's work; if that fails, only this way ends."""
    if way.failure:
        return
    try:
        work()
    except (Failed, AssertionError) as error:
        way.failure = last_line(str(error))
        print(f"  {way.name}: {way.failure}", flush=True)


def trial(way: Way, remote: Any, in_flight: int) -> None:
    """Run twice as many prompts as may be in flight, so that a slow start gets there; a peer runs twice."""
    count = 2 * in_flight
    remote.reset()
    if way.peer is None:
        way.run(remote.openai_url, count, in_flight)
    else:
        directory = way.peer.directory(count)
        for _ in range(2):
            way.peer.run(remote.openai_url, count, in_flight, directory)
    found = remote.stats()
    way.in_flight_seen = found["max_in_flight"]
    if found["paid"] != count:
        raise Failed(f"{found['paid']} calls for {count} prompts run twice")


def measured(way: Way, remote: Any, count: int, in_flight: int) -> None:
    """One round of a way."""
    remote.reset()
    result = way.run(remote.openai_url, count, in_flight)
    paid = remote.stats()["paid"]
    if paid != count:
        raise Failed(f"{paid} calls for {count} prompts")
    way.rounds.append(result)


def ratio(above: Way, below: Way, figure: Callable[[Measured], float]) -> float:
    """The median over the rounds of one way's figure over the other's in the same round."""
    return statistics.median(
        figure(one) / figure(other) for one, other in zip(above.rounds, below.rounds, strict=True)
    )


def cpu(result: Measured) -> float:
    return result.cpu_s


def wall(result: Measured) -> float:
    return result.wall_s


def ratios(done: Sequence[Way]) -> list[tuple[str, float]]:
    """The rows that have limits: CPU against the bare loop; CPU and throughput against the leanest peer."""
    found = []
    named = {way.name: way for way in done}
    ours, bare = named.get("genworker"), named.get("bare SDK loop")
    peers = [way for way in done if way.peer is not None]
    if ours and bare:
        found.append(("CPU, bare SDK loop / genworker", ratio(bare, ours, cpu)))
    if ours and peers:
        leanest = min(peers, key=lambda way: way.median(cpu))
        found.append((f"CPU, {leanest.name} / genworker", ratio(leanest, ours, cpu)))
        found.append((f"throughput, genworker / {leanest.name}", ratio(leanest, ours, wall)))
    return found


def main(arguments: list[str] | None = None) -> None:
    everything = ways()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--in-flight", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[way.name for way in everything])
    options = parser.parse_args(arguments)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # all run with compiled modules, as installed programs do
    chosen = [way for way in everything if not options.only or way.name in options.only]
    with server("--no-records", "--latency", str(TRIAL_LATENCY_S)) as slow:
        for way in chosen:
            attempt(way, partial(trial, way, slow, options.in_flight))
    with server("--no-records") as remote:
        for turn in range(options.rounds):
            for way in chosen[:: -1 if turn % 2 else 1]:
                attempt(way, partial(measured, way, remote, options.count, options.in_flight))
    rows, record = [], []
    for way in chosen:
        entry: dict[str, Any] = {"way": way.name, "keeps": way.keeps, "resumes": way.resumes}
        if way.failure:
            rows.append([way.name, "", "", "", "", way.failure[:60], ""])
            record.append(entry | {"failure": way.failure})
            continue
        figures = {
            "cpu_s_per_1000": way.median(cpu) * 1000 / options.count,
            "per_s": options.count / way.median(wall),
            "rss_mb": way.median(lambda result: result.peak_rss_mb),
        }
        rows.append(
            [
                way.name,
                f"{figures['cpu_s_per_1000']:.2f}",
                f"{figures['per_s']:.0f}",
                f"{figures['rss_mb']:.0f}",
                str(way.in_flight_seen),
                way.keeps,
                "yes" if way.resumes else "no",
            ]
        )
        entry |= figures | {"in_flight_seen": way.in_flight_seen}
        entry["rounds"] = [
            {"cpu_s": one.cpu_s, "wall_s": one.wall_s, "rss_mb": one.peak_rss_mb} for one in way.rounds
        ]
        record.append(entry | {"requirements": way.peer.requirements if way.peer else ()})
    for name, value in ratios([way for way in chosen if way.rounds and not way.failure]):
        rows.append([f"  {name}", f"{value:.2f} ×", "", "", "", "", ""])
        record.append({"ratio": name, "value": value})
    publish(
        "peers",
        f"Peers: {options.count} generations, zero latency, {options.in_flight} in flight, "
        f"median of {options.rounds}",
        ["", "CPU s per 1000", "generations/s", "peak RSS MB", "seen in flight", "keeps", "resumes"],
        rows,
        {"count": options.count, "in_flight": options.in_flight, "rounds": options.rounds, "ways": record},
    )


if __name__ == "__main__":
    main()
