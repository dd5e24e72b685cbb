"""Chat Completions through the official OpenAI SDK, at any base URL that speaks it."""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast
from urllib.parse import urlsplit

import httpx2
import openai
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
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "content_filter": FinishReason.CONTENT_FILTER,
}


class OpenAIProvider:
    """One OpenAI-compatible endpoint.

    Args:
        base_url: with the version path, such as ``https://api.openai.com/v1``.
        api_key: ``None`` for a server without a key.
        max_tokens_field: the name of the answer's limit; OpenAI itself wants the newer one.
    """

    def __init__(
        self,
        base_url: str,
        api_key: SecretStr | None = None,
        *,
        headers: dict[str, str] | None = None,
        max_tokens_field: str | None = None,
        use_env_proxy: bool = False,
    ) -> None:
        is_openai = urlsplit(base_url).hostname == "api.openai.com"
        self._max_tokens_field = max_tokens_field or ("max_completion_tokens" if is_openai else "max_tokens")
        secret = api_key.get_secret_value() if api_key is not None else None
        self.redact = redactor(secret)
        self.client = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=secret or "none",
            max_retries=0,
            default_headers=headers,
            http_client=EndpointClient(use_env_proxy=use_env_proxy, without_key=secret is None),
        )
        # Whole, so that the SDK need not put it together at every call.
        self._address = str(self.client.base_url.join("chat/completions"))
        if not is_openai:
            # The SDK takes these from the environment; they are nobody else's business.
            self.client.organization = None
            self.client.project = None

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
        # What stands above is what price and metadata speak of: extra fields cannot replace it.
        return {**sampling.extra_body, **body}

    async def complete(self, request: CompletionRequest) -> Completion:
        """Ask once; see `genworker.ports.Provider.complete`."""
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            # The low-level call: the typed one walks the parameters and builds a model per answer.
            response = await self.client.post(
                self._address, cast_to=httpx2.Response, body=self.body(request), options=ONCE
            )
        except openai.APIStatusError as error:
            raise status_error(error.status_code, error.response.headers, error.body, self.redact) from None
        except openai.APIConnectionError as error:
            raise connection_error(error.__cause__, error.message) from None
        except openai.APIError as error:
            raise ProviderUnavailableError(self.redact(str(error))[:500]) from None
        if response.status_code >= 300:
            raise status_error(response.status_code, response.headers, None, self.redact)
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
        error = record.get("error")
        choices = record.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if choice is None and isinstance(error, dict):
            # OpenRouter and others answer 200 and put the upstream's status into the body.
            code = error.get("code")
            status = code if isinstance(code, int) and 400 <= code < 600 else 502
            raise status_error(status, response.headers, record, self.redact)
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(choice, dict) or not isinstance(message, dict):
            raise malformed(response, "the answer has no choices[0].message")
        finish = _FINISH.get(str(choice.get("finish_reason")), FinishReason.OTHER)
        text = _text(message.get("content"))
        refusal = message.get("refusal")
        if not text and isinstance(refusal, str) and refusal:
            text, finish = refusal, FinishReason.CONTENT_FILTER
        model = record.get("model")
        return Completion(
            text=clean_text(text),
            finish_reason=finish,
            usage=_usage(record.get("usage")),
            latency_s=latency_s,
            model=model if isinstance(model, str) else None,
            quotas=quotas(response.headers.raw, time.time()),
            request_id=request_id_of(response.headers) or cast("str | None", record.get("id")),
        )


def _text(content: object) -> str:
    """The answer's text: a string, or the text parts of a list."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(
            part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)
        )
    return ""


def _usage(record: object) -> Usage:
    if not isinstance(record, dict):
        return Usage()
    prompt_details = record.get("prompt_tokens_details")
    answer_details = record.get("completion_tokens_details")
    return Usage(
        input_tokens=_count(record, "prompt_tokens"),
        output_tokens=_count(record, "completion_tokens"),
        cached_input_tokens=_count(prompt_details, "cached_tokens"),
        reasoning_tokens=_count(answer_details, "reasoning_tokens"),
    )


def _count(record: object, name: str) -> int | None:
    value = record.get(name) if isinstance(record, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
