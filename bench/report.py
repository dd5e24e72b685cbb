"""Reporting: time and memory of `report`, `status` and `export` over stores whose every answer is there."""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random

from bench.common import COHORT, genworker, measure, publish, workplace
from support.stores import StoreBuilder

EVALUATORS, REPLICATES, MODELS = 20, 2, 5
ESSAY = "The tide comes in, and what it leaves is read by nobody. " * 40
REASONS = "The essay keeps to its theme, and its images hold together to the end. " * 12


def lay_out(root: Path, evaluations: int) -> int:
    """A finished cohort: essays of 2 kB, each judged twice by 20 evaluators; returns its number of rows."""
    random = Random(1)
    store = StoreBuilder(root / "data", COHORT)
    for number in range(evaluations // (EVALUATORS * REPLICATES)):
        model, combo = f"m{number % MODELS}", f"combo-{number // MODELS}"
        draft = store.draft(model=model, combo=combo, answer=f"Draft {number}. {ESSAY}")
        essay = store.essay(draft, answer=f"Essay {number}. {ESSAY}", cost_usd="0.0021")
        worth = random.gauss(6, 1.5)
        for judge in range(EVALUATORS):
            for replicate in range(1, REPLICATES + 1):
                score = min(max(round(random.gauss(worth, 1) * 2) / 2, 0), 10)
                answer = f"{REASONS}\n\nSCORE: {score}" if random.random() > 0.02 else REASONS
                template = f"t{judge % 4}"
                store.evaluation(
                    essay, template=template, model=f"j{judge}", replicate=replicate, answer=answer
                )
    store.write_membership()
    return len(store.rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--evaluations", type=int, nargs="*", default=[10_000])
    options = parser.parse_args(arguments)
    verbs = {
        "report --tables-only": ("report", COHORT, "--tables-only"),
        "report": ("report", COHORT),
        "status": ("status", COHORT),
        "export": ("export", COHORT, "-o", "export.jsonl"),
    }
    rows, record = [], []
    for count in options.evaluations:
        root = workplace("report")
        written = lay_out(root, count)
        for name, command in verbs.items():
            result = measure(genworker(*command), cwd=root)
            assert result.exit_code in (0, 1), result.output
            figures = (result.wall_s, result.cpu_s, result.peak_rss_mb)
            rows.append(
                [
                    f"{name}, {written:,} rows",
                    *(f"{value:.2f}" for value in figures[:2]),
                    f"{figures[2]:.0f}",
                ]
            )
            record.append(
                {"command": name, "rows": written}
                | dict(zip(("wall_s", "cpu_s", "peak_rss_mb"), figures, strict=True))
            )
    publish("report", "Report, status and export", ["", "wall s", "CPU s", "peak RSS MB"], rows, record)


if __name__ == "__main__":
    main()
