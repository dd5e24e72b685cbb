"""Anthropic's message batches: the requests go along with the one call that makes the batch."""

from __future__ import annotations

import asyncio
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import anthropic

from genworker.core.batches import BatchResult, Listed, Look
from genworker.core.completion import CompletionRequest
from genworker.errors import ProviderError
from genworker.providers.anthropic import AnthropicProvider
from genworker.providers.batch_calls import NEWEST, BatchCalls, checked_id, fields, number, time_s
from genworker.providers.openai_batches import dumped, first_name_in, loaded

PAGE = 1000
_STATUSES = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "overloaded_error": 529,
}
"""The status that a live call's error of a type comes with."""


class AnthropicBatches:
    """Batches of one endpoint that speaks Anthropic's API; see `genworker.ports.BatchProvider`.

    Its listings show no mark of ours: a lost batch is known by its number of requests and its first result.
    """

    wants_file = False
    has_marks = False

    def __init__(self, live: AnthropicProvider, *, timeout_s: float, is_free_when_lapsed: bool) -> None:
        self.is_free_when_lapsed = is_free_when_lapsed
        self._live = live
        errors = (anthropic.APIStatusError, anthropic.APIConnectionError, anthropic.AnthropicError)
        self._calls = BatchCalls(live.client, errors, live.redact, timeout_s)

    def _address(self, *parts: str) -> str:
        return self._calls.address("v1", "messages", "batches", *parts)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._live.aclose()

    def encode(self, name: str, request: CompletionRequest) -> bytes:
        """See `genworker.ports.BatchProvider.encode`."""
        params = self._live.body(request)
        params.pop("service_tier", None)  # a batch is a tier of its own
        return dumped({"custom_id": name, "params": params})

    async def upload(self, path: Path, name: str) -> str:
        """There is nothing to upload."""
        raise TypeError("this kind takes batches without a file")

    async def find_upload(self, name: str, size_bytes: int) -> str | None:
        """There is nothing to find."""
        return None

    async def has_upload(self, file_id: str) -> bool:
        """There is nothing to ask for."""
        return False

    async def create(self, path: Path, count: int, file_id: str | None, nonce: str) -> str:
        """See `genworker.ports.BatchProvider.create`."""
        content = await asyncio.to_thread(path.read_bytes)
        lines = content.rstrip(b"\n").replace(b"\n", b",")
        record = await self._calls.record(
            "post",
            self._address(),
            content=b'{"requests":[' + lines + b"]}",
            headers={"Content-Type": "application/json"},
        )
        return checked_id(record.get("id"), "batch id")

    async def newest(self) -> list[Listed]:
        """See `genworker.ports.BatchProvider.newest`."""
        return await self._calls.listing(self._address(), _listed, None, limit=NEWEST, after="after_id")

    async def find(self, since_s: float) -> list[Listed]:
        """See `genworker.ports.BatchProvider.find`."""
        return await self._calls.listing(self._address(), _listed, since_s, limit=PAGE, after="after_id")

    async def look(self, batch_id: str) -> Look:
        """See `genworker.ports.BatchProvider.look`."""
        record = await self._calls.record("get", self._address(batch_id))
        status = str(record.get("processing_status"))
        counts = fields(record.get("request_counts"))
        names = ("succeeded", "errored", "canceled", "expired")
        ended = status == "ended"
        some = any(number(counts.get(name)) for name in names)
        return Look(
            status,
            is_final=ended,
            results={"output": self._source(batch_id, record)} if ended and record.get("results_url") else {},
            is_complete=bool(record.get("results_url")) or not some,
            ended_s=time_s(record.get("ended_at")),
            answered=number(counts.get("succeeded")),
        )

    def _source(self, batch_id: str, record: Mapping[str, Any]) -> str:
        """Where the results are: the path that the answer names where it leads to the endpoint's own host."""
        usual = f"/v1/messages/batches/{batch_id}/results"
        path = self._calls.own_path(record.get("results_url"))
        return usual if path is None else path

    async def fetch(self, source: str, sink: IO[bytes], requests: Path) -> None:
        """See `genworker.ports.BatchProvider.fetch`. No other host is asked, whatever an answer names."""
        await self._calls.download(self._calls.address_of(source), sink)

    async def first_name(self, batch_id: str) -> str | None:
        """See `genworker.ports.BatchProvider.first_name`."""
        look = await self.look(batch_id)
        if "output" not in look.results:
            return None
        head = io.BytesIO()
        await self._calls.download(self._calls.address_of(look.results["output"]), head, first_line=True)
        return first_name_in(head.getvalue())

    def decode(self, line: bytes) -> BatchResult | None:
        """See `genworker.ports.BatchProvider.decode`."""
        record = loaded(line)
        name, result = record.get("custom_id"), fields(record.get("result"))
        if not isinstance(name, str):
            return None
        kind = result.get("type")
        if kind in ("expired", "canceled"):
            return BatchResult(name)
        body: object = result.get("message")
        status = 200
        if kind != "succeeded":
            body = result.get("error")
            inner = fields(fields(body).get("error") or body)
            status = _STATUSES.get(str(inner.get("type")), 500)
        try:
            return BatchResult(name, self._live.read_line(status, body, None))
        except ProviderError as error:
            return BatchResult(name, error=error)

    async def cancel(self, batch_id: str) -> None:
        """See `genworker.ports.BatchProvider.cancel`."""
        await self._calls.record("post", self._address(batch_id, "cancel"))


def _listed(entry: Mapping[str, Any]) -> Listed:
    counts = [number(count) for count in fields(entry.get("request_counts")).values()]
    created = time_s(entry.get("created_at"))
    return Listed(
        checked_id(entry.get("id"), "batch id"),
        frozenset(),
        math.inf if created is None else created,
        count=sum(count for count in counts if count is not None) or None,
        has_ended=entry.get("processing_status") == "ended",
    )
