"""A deterministic endpoint without a network: for tests, and for trying a cohort before it costs money."""

from __future__ import annotations

import asyncio
import inspect
import json
import time
from collections.abc import Awaitable, Callable
from hashlib import sha256
from pathlib import Path
from typing import IO

from genworker.core.batches import BatchResult, Listed, Look
from genworker.core.completion import Completion, CompletionRequest, FinishReason, Sampling, Usage
from genworker.errors import ProviderUnavailableError

Script = Callable[[CompletionRequest, int], Completion | Awaitable[Completion]]
"""Answers a request, or raises a provider error; the number counts this very request, from 1."""

_WORDS = (
    "ripple harbour lantern meadow engine signal orchard compass thread pattern memory weather bridge "
    "garden question answer method measure drift anchor rhythm surface depth margin border echo kernel "
    "lattice slow bright quiet narrow patient curious familiar distant gentle uneven steady sudden moves "
    "keeps finds returns opens gathers carries follows shapes holds under over through against between"
).split(" ")


class ScriptedProvider:
    """Answers from a script; the default one writes words that depend on the request alone.

    Args:
        script: called for each request.
        latency_s: seconds that each answer takes.
    """

    def __init__(self, script: Script | None = None, *, latency_s: float = 0.0) -> None:
        self._script = script or default_script
        self._latency_s = latency_s
        self._made: dict[CompletionRequestKey, int] = {}
        self.requests: list[CompletionRequest] = []

    async def open(self) -> None:
        """Nothing to start."""

    async def aclose(self) -> None:
        """Nothing to stop."""

    async def complete(self, request: CompletionRequest) -> Completion:
        """Ask once; see `genworker.ports.Provider.complete`."""
        self.requests.append(request)
        key = (request.model, request.prompt, request.sampling.seed)
        self._made[key] = self._made.get(key, 0) + 1
        if self._latency_s:
            await asyncio.sleep(self._latency_s)
        result = self._script(request, self._made[key])
        return await result if inspect.isawaitable(result) else result


CompletionRequestKey = tuple[str, str, int | None]


def default_script(request: CompletionRequest, _made: int) -> Completion:
    """About a hundred words from a hash of model, prompt and seed, ending in ``SCORE: N``, N from 0 to 9.

    A prompt that asks for ``WINNER:`` gets ``WINNER: A``, ``B`` or ``tie`` instead.
    """
    seed = sha256(f"{request.model}|{request.prompt}|{request.sampling.seed}".encode()).digest()
    words: list[str] = []
    block = seed
    while len(words) < 96:
        block = sha256(block).digest()
        words.extend(_WORDS[byte % len(_WORDS)] for byte in block)
    sentences = [" ".join(words[at : at + 12]).capitalize() + "." for at in range(0, 96, 12)]
    verdict = f"SCORE: {seed[0] % 10}"
    if "WINNER:" in request.prompt:
        verdict = f"WINNER: {('A', 'B', 'A', 'B', 'tie')[seed[0] % 5]}"
    text = " ".join(sentences) + f"\n\n{verdict}"
    return Completion(
        text=text,
        finish_reason=FinishReason.STOP,
        usage=Usage(input_tokens=len(request.prompt) // 4 + 1, output_tokens=len(text) // 4),
        latency_s=0.0,
        model=request.model,
        request_id=f"scripted-{seed[:6].hex()}",
    )


class ScriptedBatches:
    """Batches of words, for dry exercises, each as long as an answer; see `genworker.ports.BatchProvider`.

    Nothing is kept: a batch's name says when it was made, and its requests lie where they were written.
    """

    wants_file = False
    has_marks = False
    is_free_when_lapsed = True

    def __init__(self, latency_s: float = 0.0) -> None:
        self._latency_s = latency_s

    async def aclose(self) -> None:
        """Nothing to stop."""

    def encode(self, name: str, request: CompletionRequest) -> bytes:
        """See `genworker.ports.BatchProvider.encode`."""
        record = {
            "custom_id": name,
            "model": request.model,
            "prompt": request.prompt,
            "seed": request.sampling.seed,
        }
        return json.dumps(record).encode()

    async def upload(self, path: Path, name: str) -> str:
        """There is nothing to upload."""
        raise TypeError("this kind takes batches without a file")

    async def find_upload(self, name: str, size_bytes: int) -> str | None:
        """There is nothing to find."""
        return None

    async def has_upload(self, file_id: str) -> bool:
        """There is nothing to ask for."""
        return False

    async def create(self, path: Path, count: int, file_id: str | None, nonce: str) -> str:
        """See `genworker.ports.BatchProvider.create`."""
        made_ms = int(time.time() * 1000)  # rounded down: a batch without latency has ended when it is made
        return f"scripted-{made_ms}-{nonce}"

    async def newest(self) -> list[Listed]:
        """Nothing is kept."""
        return []

    async def find(self, since_s: float) -> list[Listed]:
        """A batch whose making was cut off has not been made."""
        return []

    async def look(self, batch_id: str) -> Look:
        """See `genworker.ports.BatchProvider.look`."""
        made_s = int(batch_id.split("-")[1]) / 1000
        if time.time() < made_s + self._latency_s:
            return Look("in_progress", is_final=False)
        return Look("completed", is_final=True, results={"output": batch_id})

    async def fetch(self, source: str, sink: IO[bytes], requests: Path) -> None:
        """See `genworker.ports.BatchProvider.fetch`."""
        with requests.open("rb") as stream:
            for line in stream:
                sink.write(line)

    async def first_name(self, batch_id: str) -> str | None:
        """There is no batch that is not known."""
        return None

    def decode(self, line: bytes) -> BatchResult | None:
        """See `genworker.ports.BatchProvider.decode`."""
        record = json.loads(line)
        sampling = Sampling(seed=record["seed"])
        request = CompletionRequest(record["model"], record["prompt"], sampling, timeout_s=1.0)
        return BatchResult(record["custom_id"], default_script(request, 1))

    async def cancel(self, batch_id: str) -> None:
        """It will be done in a moment."""
        raise ProviderUnavailableError("a scripted batch cannot be cancelled")
