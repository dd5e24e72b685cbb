"""Planning and resuming: time and memory of `plan` and `status` from 10⁴ to 10⁶ rows."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bench.common import COHORT, genworker, lineages, measure, publish, workplace, write_project


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
    return wanted


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--done", type=float, default=0.0, help="share of the rows that the store holds")
    options = parser.parse_args(arguments)
    rows, record = [], []
    for count in options.rows:
        with workplace("plan") as root:
            written = write_project(
                root, lineages(count // 10, evaluations=8), "http://127.0.0.1:9/v1", in_flight=64
            )
            done = lay_out_done(root, options.done)
            for verb in ("plan", "status"):
                result = measure(genworker(verb, COHORT, "--json"), cwd=root)
                assert result.exit_code == 0, result.output
                rows.append(
                    [
                        f"{verb}, {written:,} rows, {done:,} done",
                        f"{result.wall_s:.2f}",
                        f"{result.cpu_s:.2f}",
                        f"{result.peak_rss_mb:.0f}",
                        f"{1e6 * result.peak_rss_mb / written:.0f}",
                    ]
                )
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
    publish("plan", "Plan and status", ["", "wall s", "CPU s", "peak RSS MB", "bytes per row"], rows, record)


if __name__ == "__main__":
    main()
