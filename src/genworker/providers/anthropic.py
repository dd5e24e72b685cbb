"""Messages through the official Anthropic SDK."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anthropic
import httpx2
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


class AnthropicProvider:
    """One endpoint that speaks Anthropic's Messages API.

    Args:
        base_url: without the version path.
        api_key: ``None`` for a server without a key.
        headers: sent with every request; those of the same name as the SDK's own take their place.
        query: parameters that are added to every address.
        ca_file: certificates that are trusted besides the system's.
    """

    def __init__(
        self,
        base_url: str,
        api_key: SecretStr | None = None,
        *,
        headers: Mapping[str, SecretStr] | None = None,
        query: Mapping[str, str] | None = None,
        use_env_proxy: bool = False,
        ca_file: Path | None = None,
    ) -> None:
        secret = api_key.get_secret_value() if api_key is not None else None
        own = {name: value.get_secret_value() for name, value in (headers or {}).items()}
        self.redact = redactor(secret, *own.values())
        # The SDK would take keys, headers and organisations from the shell; only what is configured is sent.
        with without_variables("ANTHROPIC_"):
            self.client = anthropic.AsyncAnthropic(
                base_url=base_url,
                api_key=secret or "none",
                max_retries=0,
                default_headers=own,
                default_query=dict(query or {}),
                open_telemetry=False,
                http_client=EndpointClient(
                    use_env_proxy=use_env_proxy, dropped=keyless(secret, own), ca_file=ca_file
                ),
            )
        # Whole, so that the SDK need not put it together at every call.
        self._address = str(self.client.base_url.join("v1/messages"))
        self._shown_address = self._address.partition("?")[0]

    async def open(self) -> None:
        """Nothing to start."""

    async def aclose(self) -> None:
        """Close the connections."""
        await self.client.close()

    def body(self, request: CompletionRequest) -> dict[str, Any]:
        """What is sent for a request."""
        sampling = request.sampling
        body: dict[str, Any] = {
            "model": request.model,
            "max_tokens": sampling.max_tokens,
            "messages": [{"role": "user", "content": _content(request)}],
        }
        if sampling.system is not None:
            body["system"] = sampling.system
        if sampling.temperature is not None:
            body["temperature"] = sampling.temperature
        if sampling.top_p is not None:
            body["top_p"] = sampling.top_p
        if sampling.stop:
            body["stop_sequences"] = list(sampling.stop)
        if sampling.service_tier is not None:
            body["service_tier"] = sampling.service_tier
        # What stands above is what price and metadata speak of: extra fields cannot replace it.
        return {**sampling.extra_body, **body}

    async def models(self) -> frozenset[str] | None:
        """The list of its models; see `genworker.ports.ModelLister.models`."""
        address = self.client.base_url.join("v1/models")
        try:
            response = await self.client.get(str(address), cast_to=httpx2.Response, options=ONCE)
        except anthropic.APIStatusError as error:
            raise status_error(error.response, self.redact) from None
        except anthropic.APIConnectionError as error:
            raise connection_error(error.__cause__, error.message) from None
        return model_names(response)

    async def complete(self, request: CompletionRequest) -> Completion:
        """Ask once; see `genworker.ports.Provider.complete`."""
        clock = asyncio.get_running_loop().time
        began = clock()
        body = self.body(request)
        try:
            response = await self.client.post(self._address, cast_to=httpx2.Response, body=body, options=ONCE)
        except anthropic.APIStatusError as error:
            response = error.response
        except anthropic.APIConnectionError as error:
            raise connection_error(error.__cause__, error.message) from None
        except anthropic.AnthropicError as error:
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


def _content(request: CompletionRequest) -> str | list[dict[str, Any]]:
    """The prompt, in blocks where its beginnings are to be cached. An empty block would be refused."""
    if not request.cache_at:
        return request.prompt
    blocks: list[dict[str, Any]] = []
    begin = 0
    for end in request.cache_at:
        text = request.prompt[begin:end]
        blocks.append({"type": "text", "text": text, "cache_control": {"type": "ephemeral"}})
        begin = end
    if rest := request.prompt[begin:]:
        blocks.append({"type": "text", "text": rest})
    return blocks
