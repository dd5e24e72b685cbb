"""Messages through the official Anthropic SDK."""

from __future__ import annotations

import asyncio
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
    read_line,
    read_response,
    redactor,
)


class AnthropicProvider:
    """One endpoint that speaks Anthropic's Messages API.

    Args:
        base_url: without the version path.
        api_key: ``None`` for a server without a key.
    """

    def __init__(
        self,
        base_url: str,
        api_key: SecretStr | None = None,
        *,
        headers: dict[str, str] | None = None,
        use_env_proxy: bool = False,
    ) -> None:
        secret = api_key.get_secret_value() if api_key is not None else None
        self.redact = redactor(secret)
        self.client = anthropic.AsyncAnthropic(
            base_url=base_url,
            api_key=secret or "none",  # explicit, so that the SDK looks into neither environment nor profiles
            max_retries=0,
            default_headers=headers,
            open_telemetry=False,
            http_client=EndpointClient(use_env_proxy=use_env_proxy, without_key=secret is None),
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
        # What stands above is what price and metadata speak of: extra fields cannot replace it.
        return {**sampling.extra_body, **body}

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
        asked = Asked(request.model, self._shown_address, tuple(body), self.redact)
        return read_response(response, clock() - began, asked)

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
