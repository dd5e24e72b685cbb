"""inspect-ai: an eval set of one task that only generates, with its log, which a later run resumes from.

Run by its environment's Python: ``URL COUNT IN_FLIGHT DIRECTORY``; the prompts are in the directory.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from inspect_ai import Task, eval_set
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.log import read_eval_log_sample_summaries
from inspect_ai.model import get_model
from inspect_ai.solver import generate


def main(url: str, count: int, in_flight: int, directory: Path) -> None:
    lines = (directory / "prompts.jsonl").read_text().splitlines()
    samples = [Sample(id=row["id"], input=row["text"]) for row in map(json.loads, lines)]
    done, logs = eval_set(
        Task(dataset=MemoryDataset(samples), solver=generate(), name="bench"),
        log_dir=str(directory / "logs"),
        model=get_model("openai-api/local/bench/m1", base_url=url, api_key="none"),
        max_connections=in_flight,
        max_samples=in_flight,
        display="none",
    )
    assert done, "it did not finish"
    summaries = [summary for log in logs for summary in read_eval_log_sample_summaries(log.location)]
    answered = sum(1 for summary in summaries if summary.completed and summary.error is None)
    assert answered == count, f"{answered} answers of {count}"


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
