"""Messages through the official Anthropic SDK."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import anthropic
import httpx2
from pydantic import SecretStr

from genworker.core.completion import Completion, CompletionRequest, FinishReason, Usage, clean_text
from genworker.core.hints import quotas
from genworker.errors import ProviderUnavailableError
from genworker.providers.http import (
    ONCE,
    EndpointClient,
    connection_error,
    decode_answer,
    line_response,
    malformed,
    redactor,
    request_id_of,
    status_error,
)

_FINISH = {
    "end_turn": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "max_tokens": FinishReason.LENGTH,
    "model_context_window_exceeded": FinishReason.LENGTH,
    "refusal": FinishReason.CONTENT_FILTER,
}


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
        try:
            response = await self.client.post(
                self._address, cast_to=httpx2.Response, body=self.body(request), options=ONCE
            )
        except anthropic.APIStatusError as error:
            raise status_error(error.status_code, error.response.headers, error.body, self.redact) from None
        except anthropic.APIConnectionError as error:
            raise connection_error(error.__cause__, error.message) from None
        except anthropic.AnthropicError as error:
            raise ProviderUnavailableError(self.redact(str(error))[:500]) from None
        return self._read(response, clock() - began)

    def read_line(self, status: int, body: object, request_id: object) -> Completion:
        """Read an answer that came in a file of results, as if it had come alone.

        Raises:
            ProviderError: as `complete`.
        """
        response = line_response(status, body, request_id)
        if status >= 300:
            raise status_error(status, response.headers, body, self.redact)
        return self._read(response, 0.0)

    def _read(self, response: httpx2.Response, latency_s: float) -> Completion:
        record = decode_answer(response)
        content = record.get("content")
        if record.get("type") == "error":
            raise status_error(502, response.headers, record, self.redact)
        if not isinstance(content, list):
            raise malformed(response, "the answer has no content")
        text = "".join(
            block["text"]
            for block in content
            if isinstance(block, dict) and block.get("type") == "text" and isinstance(block.get("text"), str)
        )
        model = record.get("model")
        return Completion(
            text=clean_text(text),
            finish_reason=_FINISH.get(str(record.get("stop_reason")), FinishReason.OTHER),
            usage=_usage(record.get("usage")),
            latency_s=latency_s,
            model=model if isinstance(model, str) else None,
            quotas=quotas(response.headers.raw, time.time()),
            request_id=request_id_of(response.headers) or str(record.get("id") or "") or None,
        )


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


def _usage(record: object) -> Usage:
    if not isinstance(record, dict):
        return Usage()

    def count(name: str) -> int | None:
        value = record.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None

    fresh, cached, written = (
        count("input_tokens"),
        count("cache_read_input_tokens"),
        count("cache_creation_input_tokens"),
    )
    # Anthropic counts cached tokens beside the others; here the input is all of them.
    total = None if fresh is None else fresh + (cached or 0) + (written or 0)
    return Usage(
        input_tokens=total,
        output_tokens=count("output_tokens"),
        cached_input_tokens=cached or None,
        cache_write_tokens=written or None,
    )
