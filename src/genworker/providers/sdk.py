"""What the adapters of the official SDKs have in common: how they ask, and how they read what comes back."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import httpx2
from pydantic import SecretStr

from genworker.core.completion import Completion, CompletionRequest
from genworker.core.refusals import Asked
from genworker.core.wire import read_answer
from genworker.errors import RequestRejectedError
from genworker.providers.example import Example, encode, example_of
from genworker.providers.http import (
    ONCE,
    EndpointClient,
    answer_or_raise,
    connection_error,
    keyless,
    model_names,
    read_line,
    redactor,
    status_error,
    without_variables,
)
from genworker.providers.way import unsendable


class SdkProvider(ABC):
    """One endpoint that an official SDK speaks to.

    Args:
        api_key: ``None`` for a server without a key.
        headers: sent with every request; those of the same name as the SDK's own take their place.
        query: parameters that are added to every address.
        ca_file: certificates that are trusted besides the system's.
        more: further arguments of the SDK's client.
    """

    make_client: ClassVar[type[Any]]
    variables: ClassVar[str]
    """How the names of the environment's variables begin that the SDK would read."""
    completions: ClassVar[str]
    """Below the base URL: where completions are asked for."""
    list_of_models: ClassVar[str]
    status_error: ClassVar[type[Exception]]
    connection_error: ClassVar[type[Exception]]

    def __init__(
        self,
        base_url: str,
        api_key: SecretStr | None = None,
        *,
        headers: Mapping[str, SecretStr] | None = None,
        query: Mapping[str, str] | None = None,
        use_env_proxy: bool = False,
        ca_file: Path | None = None,
        **more: Any,
    ) -> None:
        secret = api_key.get_secret_value() if api_key is not None else None
        own = {name: value.get_secret_value() for name, value in (headers or {}).items()}
        self.redact = redactor(secret, *own.values())
        self._dropped = keyless(secret, own)
        http = EndpointClient(use_env_proxy=use_env_proxy, dropped=self._dropped, ca_file=ca_file)
        self._transport = http.transport
        # The SDK would take keys, headers and organisations from the shell; only what is configured is sent.
        with without_variables(self.variables):
            self.client = self.make_client(
                base_url=base_url,
                api_key=secret or "none",
                max_retries=0,
                default_headers=own,
                default_query=dict(query or {}),
                http_client=http,
                **more,
            )
        self._address = str(self.client.base_url.join(self.completions))
        self._shown_address = self._address.partition("?")[0]
        self._examples: dict[tuple[str, ...], Example] = {}

    async def open(self) -> None:  # noqa: B027 (nothing to start: connections open with the first call)
        """Nothing to start."""

    async def aclose(self) -> None:
        """Close the connections."""
        await self.client.close()

    @abstractmethod
    def body(self, request: CompletionRequest) -> dict[str, Any]:
        """What is sent for a request."""

    async def models(self) -> frozenset[str] | None:
        """The list of its models; see `genworker.ports.ModelLister.models`."""
        address = str(self.client.base_url.join(self.list_of_models))
        try:
            response = await self.client.get(address, cast_to=httpx2.Response, options=ONCE)
        except self.status_error as error:
            raise status_error(error.response, self.redact) from None  # type: ignore[attr-defined]
        except self.connection_error as error:
            raise connection_error(error.__cause__, str(error)) from None
        return model_names(response)

    async def complete(self, request: CompletionRequest) -> Completion:
        """Ask once; see `genworker.ports.Provider.complete`."""
        clock = asyncio.get_running_loop().time
        began = clock()
        body = self.body(request)
        # A shape: what of a request could change its head.
        shape = (request.model, *body)
        try:
            sent = encode(body)
        except ValueError as error:
            raise RequestRejectedError(f"the request cannot be written: {error}", about_input=True) from None
        try:
            example = self._examples.get(shape) or await self._example(shape, body)
        except ValueError as error:
            raise unsendable(error) from None
        status, headers, came = await self._transport.post(example, sent)
        outcome = read_answer(
            status,
            headers,
            came,
            now_epoch_s=time.time(),
            latency_s=clock() - began,
            asked=Asked(request.model, self._shown_address, tuple(body), self.redact),
        )
        return answer_or_raise(outcome)

    async def _example(self, shape: tuple[str, ...], body: Mapping[str, Any]) -> Example:
        async def ask(client: httpx2.AsyncClient) -> None:
            with without_variables(self.variables):  # it makes a client anew
                sdk = self.client.with_options(http_client=client)
            # The low-level call: the typed one walks the parameters and builds a model of the answer.
            await sdk.post(self._address, cast_to=httpx2.Response, body=body, options=ONCE)

        example = self._examples[shape] = await example_of(ask, self._dropped)
        return example

    def read_line(self, status: int, body: object, request_id: object) -> Completion:
        """Read an answer that came in a file of results, as if it had come alone.

        Raises:
            ProviderError: as `complete`.
        """
        return read_line(status, body, request_id, self.redact)
