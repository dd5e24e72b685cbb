"""A deterministic endpoint without a network: for tests, and for trying a cohort before it costs money."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from hashlib import sha256

from genworker.core.completion import Completion, CompletionRequest, FinishReason, Usage

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
    """About a hundred words from a hash of model, prompt and seed, ending in ``SCORE: N``, N from 0 to 9."""
    seed = sha256(f"{request.model}|{request.prompt}|{request.sampling.seed}".encode()).digest()
    words: list[str] = []
    block = seed
    while len(words) < 96:
        block = sha256(block).digest()
        words.extend(_WORDS[byte % len(_WORDS)] for byte in block)
    sentences = [" ".join(words[at : at + 12]).capitalize() + "." for at in range(0, 96, 12)]
    text = " ".join(sentences) + f"\n\nSCORE: {seed[0] % 10}"
    return Completion(
        text=text,
        finish_reason=FinishReason.STOP,
        usage=Usage(input_tokens=len(request.prompt) // 4 + 1, output_tokens=len(text) // 4),
        latency_s=0.0,
        model=request.model,
        request_id=f"scripted-{seed[:6].hex()}",
    )
