"""Curator: its online OpenAI backend with its response cache on.

Run by its environment's Python: ``URL COUNT IN_FLIGHT DIRECTORY``; the prompts are in the directory.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

# It counts tokens with a file that it would fetch at first use; one of its dependencies carries that file.
spec = find_spec("litellm")
if spec is not None and spec.origin is not None:
    os.environ["TIKTOKEN_CACHE_DIR"] = str(Path(spec.origin).with_name("litellm_core_utils") / "tokenizers")

from bespokelabs import curator  # noqa: E402 (the variable above comes first)

NO_LIMIT = 100_000_000  # it has limits per minute, low ones unless the provider announces others


def main(url: str, count: int, in_flight: int, directory: Path) -> None:
    lines = (directory / "prompts.jsonl").read_text().splitlines()
    model = curator.LLM(
        model_name="bench/m1",
        backend="openai",
        backend_params={
            "base_url": url,
            "api_key": "none",
            "max_concurrent_requests": in_flight,
            "max_requests_per_minute": NO_LIMIT,
            "max_tokens_per_minute": NO_LIMIT,
        },
    )
    response = model([json.loads(line)["text"] for line in lines], working_dir=str(directory / "cache"))
    answered = sum(1 for row in response.dataset if row["response"])
    assert answered == count, f"{answered} answers of {count}"


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
