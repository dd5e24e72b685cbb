"""The live view for dashboards: Prometheus text."""

from __future__ import annotations

import time
from collections.abc import Callable

from genworker.core.visible import visible
from genworker.viewer.live import Run
from genworker.viewer.state import Viewer


def metrics_text(viewer: Viewer) -> str:
    """Prometheus text: rows by cohort, stage and state, and what living runs do."""
    lines = [
        "# HELP genworker_rows Rows of a cohort's plan, by what became of them.",
        "# TYPE genworker_rows gauge",
    ]
    database = viewer.index.reader()
    try:
        names = [one[0] for one in database.execute("SELECT name FROM cohort ORDER BY name")]
    finally:
        database.close()
    for name in names:
        with viewer.queries(name) as queries:
            for stage, counts in queries.counts().items():
                for state, count in sorted(counts.items()):
                    labels = f'cohort="{_label(name)}",stage="{stage}",state="{_label(state)}"'
                    lines.append(f"genworker_rows{{{labels}}} {count}")
    now = time.time()
    series: tuple[tuple[str, str, str, Callable[[Run], float]], ...] = (
        ("calls_total", "counter", "Calls that a run has sent.", lambda run: run.calls),
        ("answers_total", "counter", "Answers that a run has got.", lambda run: run.answers),
        ("retries_total", "counter", "Calls that a run has tried again.", lambda run: run.retries),
        ("in_flight", "gauge", "Calls of a run that are out.", lambda run: run.in_flight),
        ("answers_per_minute", "gauge", "Over the last minute.", lambda run: round(run.rate_per_min(now), 3)),
    )
    living = viewer.watcher.living()
    for word, kind, words, value in series:
        lines += [f"# HELP genworker_run_{word} {words}", f"# TYPE genworker_run_{word} {kind}"]
        lines += [
            f'genworker_run_{word}{{cohort="{_label(run.cohort)}",run="{_label(run.run_id)}"}} {value(run)}'
            for run in living
        ]
    return "\n".join(lines) + "\n"


def _label(text: str) -> str:
    return visible(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
