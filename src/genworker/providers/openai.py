"""Chat Completions through the official OpenAI SDK, at any base URL that speaks it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai
from pydantic import SecretStr

from genworker.core.completion import Completion, CompletionRequest
from genworker.core.refusals import Asked
from genworker.errors import ProviderUnavailableError
from genworker.providers.http import (
    ONCE,
    EndpointClient,
    connection_error,
    keyless,
    model_names,
    read_line,
    read_response,
    redactor,
    status_error,
    without_variables,
)


class OpenAIProvider:
    """One OpenAI-compatible endpoint.

    Args:
        base_url: with the version path, such as ``https://api.openai.com/v1``.
        api_key: ``None`` for a server without a key.
        headers: sent with every request; those of the same name as the SDK's own take their place.
        query: parameters that are added to every address.
        ca_file: certificates that are trusted besides the system's.
        max_tokens_field: the name of the answer's limit; OpenAI itself wants the newer one.
    """

    def __init__(
        self,
        base_url: str,
        api_key: SecretStr | None = None,
        *,
        headers: Mapping[str, SecretStr] | None = None,
        query: Mapping[str, str] | None = None,
        max_tokens_field: str | None = None,
        use_env_proxy: bool = False,
        ca_file: Path | None = None,
    ) -> None:
        is_openai = urlsplit(base_url).hostname == "api.openai.com"
        self._max_tokens_field = max_tokens_field or ("max_completion_tokens" if is_openai else "max_tokens")
        secret = api_key.get_secret_value() if api_key is not None else None
        own = {name: value.get_secret_value() for name, value in (headers or {}).items()}
        self.redact = redactor(secret, *own.values())
        # The SDK would take keys, headers and organisations from the shell; only what is configured is sent.
        with without_variables("OPENAI_"):
            self.client = openai.AsyncOpenAI(
                base_url=base_url,
                api_key=secret or "none",
                max_retries=0,
                default_headers=own,
                default_query=dict(query or {}),
                http_client=EndpointClient(
                    use_env_proxy=use_env_proxy, dropped=keyless(secret, own), ca_file=ca_file
                ),
            )
        # Whole, so that the SDK need not put it together at every call.
        self._address = str(self.client.base_url.join("chat/completions"))
        self._shown_address = self._address.partition("?")[0]

    async def open(self) -> None:
        """Nothing to start."""

    async def aclose(self) -> None:
        """Close the connections."""
        await self.client.close()

    def body(self, request: CompletionRequest) -> dict[str, Any]:
        """What is sent for a request."""
        sampling = request.sampling
        messages = [{"role": "user", "content": request.prompt}]
        if sampling.system is not None:
            messages.insert(0, {"role": "system", "content": sampling.system})
        body: dict[str, Any] = {"model": request.model, "messages": messages}
        if sampling.temperature is not None:
            body["temperature"] = sampling.temperature
        if sampling.top_p is not None:
            body["top_p"] = sampling.top_p
        if sampling.max_tokens is not None:
            body[self._max_tokens_field] = sampling.max_tokens
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        if sampling.service_tier is not None:
            body["service_tier"] = sampling.service_tier
        # What stands above is what price and metadata speak of: extra fields cannot replace it.
        return {**sampling.extra_body, **body}

    async def models(self) -> frozenset[str] | None:
        """The list of its models; see `genworker.ports.ModelLister.models`."""
        address = self.client.base_url.join("models")
        try:
            response = await self.client.get(str(address), cast_to=httpx2.Response, options=ONCE)
        except openai.APIStatusError as error:
            raise status_error(error.response, self.redact) from None
        except openai.APIConnectionError as error:
            raise connection_error(error.__cause__, error.message) from None
        return model_names(response)

    async def complete(self, request: CompletionRequest) -> Completion:
        """Ask once; see `genworker.ports.Provider.complete`."""
        clock = asyncio.get_running_loop().time
        began = clock()
        body = self.body(request)
        try:
            # The low-level call: the typed one walks the parameters and builds a model per answer.
            response = await self.client.post(self._address, cast_to=httpx2.Response, body=body, options=ONCE)
        except openai.APIStatusError as error:
            response = error.response
        except openai.APIConnectionError as error:
            raise connection_error(error.__cause__, error.message) from None
        except openai.APIError as error:
            raise ProviderUnavailableError(self.redact(str(error))[:500]) from None
        return self._read(response, clock() - began, request.model, tuple(body))

    def _read(
        self, response: httpx2.Response, latency_s: float, model: str, fields: tuple[str, ...]
    ) -> Completion:
        return read_response(response, latency_s, Asked(model, self._shown_address, fields, self.redact))

    def read_line(self, status: int, body: object, request_id: object) -> Completion:
        """Read an answer that came in a file of results, as if it had come alone.

        Raises:
            ProviderError: as `complete`.
        """
        return read_line(status, body, request_id, self.redact)
