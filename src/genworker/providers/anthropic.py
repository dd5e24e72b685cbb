"""Messages through the official Anthropic SDK."""

from __future__ import annotations

from typing import Any

import anthropic
from pydantic import SecretStr

from genworker.core.completion import CompletionRequest
from genworker.providers.sdk import SdkProvider


class AnthropicProvider(SdkProvider):
    """One endpoint that speaks Anthropic's Messages API.

    Args:
        base_url: without the version path.
        more: see `SdkProvider`.
    """

    make_client = anthropic.AsyncAnthropic
    variables = "ANTHROPIC_"
    completions = "v1/messages"
    list_of_models = "v1/models"
    status_error = anthropic.APIStatusError
    connection_error = anthropic.APIConnectionError

    def __init__(self, base_url: str, api_key: SecretStr | None = None, **more: Any) -> None:
        super().__init__(base_url, api_key, open_telemetry=False, **more)

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
