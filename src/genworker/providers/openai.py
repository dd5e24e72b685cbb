"""Chat Completions through the official OpenAI SDK, at any base URL that speaks it."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr

from genworker.core.completion import CompletionRequest
from genworker.providers.later import run_later
from genworker.providers.sdk import SdkProvider

with run_later("openai.types"):
    import openai


class OpenAIProvider(SdkProvider):
    """One OpenAI-compatible endpoint.

    Args:
        base_url: with the version path, such as ``https://api.openai.com/v1``.
        max_tokens_field: the name of the answer's limit; OpenAI itself wants the newer one.
        more: see `SdkProvider`.
    """

    make_client = openai.AsyncOpenAI
    variables = "OPENAI_"
    completions = "chat/completions"
    list_of_models = "models"
    status_error = openai.APIStatusError
    connection_error = openai.APIConnectionError

    def __init__(
        self,
        base_url: str,
        api_key: SecretStr | None = None,
        *,
        max_tokens_field: str | None = None,
        **more: Any,
    ) -> None:
        is_openai = urlsplit(base_url).hostname == "api.openai.com"
        self._max_tokens_field = max_tokens_field or ("max_completion_tokens" if is_openai else "max_tokens")
        super().__init__(base_url, api_key, **more)

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
