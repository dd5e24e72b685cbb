"""The live view over a large store: how fast its index is built, and how soon pages come.

``python -m bench.view --rows 100000`` makes a store of so many generations below the temporary directory
(a few real files, the others hard links to them), builds the index, asks for pages, prints a table and
deletes the store.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path

import orjson

from genworker.paths import Paths
from genworker.viewer.save import ask
from genworker.viewer.server import make_app
from genworker.viewer.state import Viewer

LINKS = 20_000
"""Hard links to one file: file systems allow some tens of thousands."""
WORDS = "tide harbour lantern meadow engine signal orchard compass thread pattern memory weather".split()
PAGES = (
    ("first page", ""),
    ("cohort", "c/large/"),
    ("all rows", "c/large/rows"),
    ("search", "c/large/rows?q=lantern"),
    ("search, rare", "c/large/rows?q=unique7"),
    ("filter by state", "c/large/rows?stage=evaluation&state=done&sort=-score"),
    ("filter by template", "c/large/rows?template=e1&sort=-cost"),
    ("page 900", "c/large/rows?page=900"),
)


def make_store(root: Path, rows: int) -> None:
    """A twentieth drafts, a fifth essays, the others evaluations; each with metadata and texts."""
    counts = {"draft": max(1, rows // 20), "essay": max(1, rows // 5)}
    counts["evaluation"] = rows - sum(counts.values())
    membership = root / "cohorts" / "large" / "membership.csv"
    membership.parent.mkdir(parents=True)
    above = {"essay": "draft", "evaluation": "essay"}
    with membership.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(
            "stage gen_id cohort_id parent_gen_id combo_id template_id llm_model_id replicate".split()
        )
        for stage, count in counts.items():
            place = root / "gens" / stage
            place.mkdir(parents=True)
            for number in range(count):
                parent = f"{above[stage]}{number % counts[above[stage]]}" if stage in above else ""
                template = f"{stage[0]}{number % 3}"
                name = f"{stage}{number}"
                writer.writerow([stage, name, "large", parent, f"c{number % 50}", template, "m", 1])
                sources = make_sources(root / "sources", stage, number // LINKS, number % 7)
                directory = f"{place}/{name}"
                os.mkdir(directory)
                for source in sources:
                    os.link(source, f"{directory}/{os.path.basename(source)}")


def make_sources(root: Path, stage: str, part: int, kind: int) -> list[str]:
    """The files that a generation's are links to."""
    directory = root / f"{stage}-{part}-{kind}"
    files = [str(directory / name) for name in ("metadata.json", "parsed.txt", "raw.txt")]
    if not directory.exists():
        directory.mkdir(parents=True)
        text = " ".join(WORDS[(kind + at * (part + 1)) % len(WORDS)] for at in range(60))
        text += f" unique{kind}" if part == 0 else ""
        record = {
            "task_id": "t",
            "template_id": "t",
            "model_id": "m",
            "parent_gen_id": "p",
            "cost_usd": "0.001",
        }
        parsed = f"{kind}.0\n" if stage == "evaluation" else text
        contents = (orjson.dumps(record), parsed.encode(), f"{text}\nSCORE: {kind}".encode())
        for path, content in zip(files, contents, strict=True):
            Path(path).write_bytes(content)
    return files


def measure(root: Path, rows: int) -> None:
    """Build the index, ask for the pages, print what it took."""
    viewer = Viewer(
        Paths.from_str(root),
        cohorts=None,
        version="bench",
        make_report=lambda cohort, directory: None,
        read_money=lambda cohort: "",
        read_combos=dict,
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    read = viewer.index.update(full=True)
    built_s = time.perf_counter() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{read:,} generations indexed in {built_s:.1f} s: {read / built_s:,.0f} a second, {grown:.0f} MB")
    app = make_app(viewer)
    for title, address in PAGES:
        took, size = [], 0
        for _ in range(3):
            began = time.perf_counter()
            size = len(asyncio.run(ask(app, viewer.root, address)))
            took.append(time.perf_counter() - began)
        print(f"  {title:<20} {sorted(took)[1]:.3f} s  {size / 1000:.0f} kB")
    viewer.index.close()


def main() -> None:
    """Read the arguments, make the store, measure, delete it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="genworker-view-"))
    try:
        began = time.perf_counter()
        make_store(root, arguments.rows)
        print(f"store of {arguments.rows:,} made in {time.perf_counter() - began:.0f} s")
        measure(root, arguments.rows)
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
