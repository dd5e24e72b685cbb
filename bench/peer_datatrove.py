"""datatrove: its inference runner against an endpoint, with checkpoints, in its local executor.

Run by its environment's Python: ``URL COUNT IN_FLIGHT DIRECTORY CLIENT``; the prompts are in the directory.
It has two clients: for plain HTTP to this machine (``loopback``) a few lines of its own over a new socket for
each call, without TLS or connections that stay; for every other endpoint (``sdk``) OpenAI's SDK.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.inference.run_inference import InferenceConfig, InferenceRunner
from datatrove.pipeline.writers import JsonlWriter


async def answer(document: Any, generate: Any) -> Any:
    return await generate({"messages": [{"role": "user", "content": document.text}]})


def main(url: str, count: int, in_flight: int, directory: Path, client: str) -> None:
    lines = (directory / "prompts.jsonl").read_text().splitlines()
    answers = directory / "answers"
    # The first client adds the path itself; the second is for any address that is not spelled as loopback.
    endpoint = url.removesuffix("/v1") if client == "loopback" else url.replace("127.0.0.1", "127.1")
    runner = InferenceRunner(
        answer,
        InferenceConfig(
            server_type="endpoint",
            model_name_or_path="bench/m1",
            endpoint_url=endpoint,
            api_key="none",
            max_concurrent_generations=in_flight,
        ),
        JsonlWriter(str(answers), "${rank}_chunk_${chunk_index}.jsonl", compression=None),
        checkpoints_local_dir=str(directory / "checkpoints"),
    )
    LocalPipelineExecutor(
        [[Document(text=row["text"], id=row["id"]) for row in map(json.loads, lines)], runner],
        tasks=1,
        logging_dir=str(directory / "logs"),
    ).run()
    rows = [json.loads(line) for path in answers.glob("*.jsonl") for line in path.open()]
    answered = {row["id"] for row in rows if row["metadata"]["rollout_results"][0]["text"]}
    assert len(answered) == count, f"{len(answered)} answers of {count}"


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), sys.argv[5])
