"""async-batch-llm: its OpenAI-compatible model, with one of its two stores to resume from.

Run by its environment's Python: ``URL COUNT IN_FLIGHT DIRECTORY STORE``; the prompts are in the directory.
The stores are ``jsonl``, the simple one, and ``sqlite``, which its documentation names for large runs.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from async_batch_llm import (
    ArtifactIdentity,
    JsonlArtifactStore,
    ProcessorConfig,
    ResumePolicy,
    SqliteArtifactStore,
    llm,
    process_stream,
)


async def main(url: str, count: int, in_flight: int, directory: Path, store: str) -> None:
    lines = (directory / "prompts.jsonl").read_text().splitlines()
    prompts = [(row["id"], row["text"]) for row in map(json.loads, lines)]
    identity = ArtifactIdentity(provider="local", model="bench/m1", prompt_version="1")
    stores = {"jsonl": JsonlArtifactStore, "sqlite": SqliteArtifactStore}
    answered = 0
    async for result in process_stream(
        llm("openai-compatible:bench/m1", base_url=url, api_key="none"),
        prompts,
        config=ProcessorConfig(concurrency=in_flight),  # sizes workers, admission and the HTTP pool alike
        artifact_store=stores[store](directory / f"answers.{store}", identity=identity),
        resume=ResumePolicy.REUSE_SUCCESSES,
    ):
        answered += bool(result.success and result.output)
    assert answered == count, f"{answered} answers of {count}"


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), sys.argv[5]))
