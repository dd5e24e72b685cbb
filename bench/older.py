"""Stores that an older tool wrote, without ``task_id``: what `status`, `verify` and `report` take."""

from __future__ import annotations

import argparse
import json
from itertools import chain
from pathlib import Path
from typing import Any

from bench.common import COHORT, genworker, lineages, measure, publish, workplace, write_project

LAYOUTS = ("one file", "three files", "genworker's")
"""How the metadata lie: all in ``metadata.json``; the plan there and what came of it beside, in
``raw_metadata.json`` and ``parsed_metadata.json``; as genworker writes them, with ``task_id`` taken out."""
TEXT = "The tide comes in, and what it leaves is read by nobody. " * 20
EVALUATIONS = 38
"""Of each essay: so 2,500 lineages are 100,000 generations."""


def lay_out(root: Path, count: int, layout: str) -> int:
    """A finished cohort of about `count` generations; returns its number of rows."""
    rows = list(lineages(max(1, count // (EVALUATIONS + 2)), evaluations=EVALUATIONS))
    write_project(root, iter(rows), "http://127.0.0.1:9/v1", in_flight=1)
    for stage, name, cohort, parent, combo, template, model, replicate in rows:
        directory = root / "data" / "gens" / stage / name
        directory.mkdir(parents=True)
        answer = f"{TEXT}\n\nSCORE: {len(name) % 10}" if stage == "evaluation" else TEXT
        plan = {
            "stage": stage,
            "gen_id": name,
            "mode": "llm",
            "template_id": template,
            "llm_model_id": model,
            "replicate": int(replicate),
            "combo_id": combo,
            **({"parent_gen_id": parent} if parent else {}),
        }
        came: dict[str, Any] = {
            "finish_reason": "stop",
            "truncated": False,
            "usage": {"prompt_tokens": 210, "completion_tokens": 420, "max_tokens": 20480},
            "duration_s": 2.5,
            "run_id": "6f1c2d3e-0b5a-4c7e-9d11-5a2b3c4d5e6f",
        }
        records: dict[str, Any] = {"metadata.json": plan | came | {"cohort_id": cohort}}
        if layout == "three files":
            records = {
                "metadata.json": plan | {"origin_cohort_id": cohort},
                "raw_metadata.json": {"function": f"{stage}_raw", "stage": stage, "gen_id": name} | came,
                "parsed_metadata.json": {"function": f"{stage}_parsed", "success": True, "error": None},
            }
        elif layout == "genworker's":
            usage = {"input_tokens": 210, "output_tokens": 420}
            own = {"model_id": model, "genworker_version": "0.1.0", "usage": usage, "cost_usd": "0.0021"}
            records["metadata.json"] |= own
        for file, record in records.items():
            (directory / file).write_text(json.dumps(record, indent=2) + "\n")
        parsed = f"{len(name) % 10}.0\n" if stage == "evaluation" else answer
        for file, text in (("prompt.txt", TEXT), ("raw.txt", answer), ("parsed.txt", parsed)):
            (directory / file).write_text(text)
    return len(rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generations", type=int, default=10_000)
    parser.add_argument("--layouts", nargs="*", choices=LAYOUTS, default=LAYOUTS)
    parser.add_argument("--verbs", nargs="*", default=["status", "verify", "report"])
    options = parser.parse_args(arguments)
    rows, record = [], []
    for layout in options.layouts:
        root = workplace("older")
        written = lay_out(root, options.generations, layout)
        for verb in chain(options.verbs[:1], options.verbs):  # the first reads the files into the cache
            result = measure(genworker(verb, COHORT), cwd=root)
            assert result.exit_code == 0, result.output
            figures = (result.wall_s, result.cpu_s, result.peak_rss_mb)
            shown = f"{figures[0]:.2f} {figures[1]:.2f} {figures[2]:.0f}".split()
            rows.append([f"{verb}, {layout}, {written:,} rows", *shown])
            names = ("wall_s", "cpu_s", "peak_rss_mb")
            record.append(
                {"command": verb, "layout": layout, "rows": written} | dict(zip(names, figures, strict=True))
            )
    publish("older", "Older stores", ["", "wall s", "CPU s", "peak RSS MB"], rows, record)


if __name__ == "__main__":
    main()
