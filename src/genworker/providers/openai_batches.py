"""OpenAI's batches, at any address that speaks their files and batches: a file of lines, then one call."""

from __future__ import annotations

import asyncio
import io
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import openai
import orjson

from genworker.core.batches import BatchResult, Listed, Look
from genworker.core.completion import CompletionRequest
from genworker.errors import (
    ProviderError,
    ProviderUnavailableError,
    RequestRejectedError,
)
from genworker.providers.batch_calls import (
    NEWEST,
    BatchCalls,
    checked_id,
    fields,
    is_id,
    number,
    time_s,
)
from genworker.providers.openai import OpenAIProvider

MARK = "genworker"
"""The key of our mark in a batch's metadata."""
PAGE = 100
_FINAL = ("completed", "failed", "expired", "cancelled")
_NOT_READY = frozenset({"pending", "running", "uploading"})
"""States of an uploaded file of which no batch can be made yet."""
_LAPSED = frozenset({"batch_expired", "batch_cancelled", "batch_canceled"})
_OVER_LIMIT = "token_limit_exceeded"


class OpenAIBatches:
    """Batches of one OpenAI-compatible endpoint; see `genworker.ports.BatchProvider`.

    Args:
        live: the endpoint's adapter, whose bodies and reading batches share.
        is_free_when_lapsed: whether the host says so.
    """

    wants_file = True
    has_marks = True

    def __init__(self, live: OpenAIProvider, *, timeout_s: float, is_free_when_lapsed: bool) -> None:
        self.is_free_when_lapsed = is_free_when_lapsed
        self._live = live
        errors = (openai.APIStatusError, openai.APIConnectionError, openai.APIError)
        self._calls = BatchCalls(live.client, errors, live.redact, timeout_s)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._live.aclose()

    def encode(self, name: str, request: CompletionRequest) -> bytes:
        """See `genworker.ports.BatchProvider.encode`."""
        body = self._live.body(request)
        body.pop("service_tier", None)  # a batch is a tier of its own
        return dumped({"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body})

    async def upload(self, path: Path, name: str) -> str:
        """See `genworker.ports.BatchProvider.upload`."""
        with path.open("rb") as stream:
            record = await self._calls.record(
                "post",
                self._calls.address("files"),
                body={"purpose": "batch"},
                files=[("file", (name, stream, "application/jsonl"))],
                headers={"Content-Type": "multipart/form-data"},
            )
        return await self._when_ready(record)

    async def _when_ready(self, record: Mapping[str, Any]) -> str:
        """The file's name, once a batch can be made of it: Azure looks through a file first."""
        file_id = checked_id(record.get("id"), "file id")
        pauses = iter((0.5, 1.0, 2.0, 4.0, *[8.0] * 10))
        while str(record.get("status")).lower() in _NOT_READY:
            pause = next(pauses, None)
            if pause is None:
                raise ProviderUnavailableError("the uploaded file is still looked through")
            await asyncio.sleep(pause)
            record = await self._calls.record("get", self._calls.address("files", file_id))
        return file_id

    async def find_upload(self, name: str, size_bytes: int) -> str | None:
        """See `genworker.ports.BatchProvider.find_upload`."""
        params = {"purpose": "batch", "limit": 1000, "order": "desc"}
        try:
            record = await self._calls.record("get", self._calls.address("files"), params=params)
        except RequestRejectedError:
            return None  # no such listing here: it is uploaded again, for nothing
        for entry in map(fields, record.get("data") or ()):
            if entry.get("filename") == name and entry.get("bytes") == size_bytes:
                return await self._when_ready(entry)
        return None

    async def has_upload(self, file_id: str) -> bool:
        """See `genworker.ports.BatchProvider.has_upload`."""
        try:
            await self._calls.record("get", self._calls.address("files", file_id))
        except RequestRejectedError as error:
            if error.status == 404:
                return False
            raise
        return True

    async def create(self, path: Path, count: int, file_id: str | None, nonce: str) -> str:
        """See `genworker.ports.BatchProvider.create`."""
        body = {
            "input_file_id": file_id,
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "metadata": {MARK: nonce},
        }
        record = await self._calls.record("post", self._calls.address("batches"), body=body)
        return checked_id(record.get("id"), "batch id")

    async def newest(self) -> list[Listed]:
        """See `genworker.ports.BatchProvider.newest`."""
        return await self._calls.listing(
            self._calls.address("batches"), _listed, None, limit=NEWEST, after="after"
        )

    async def find(self, since_s: float) -> list[Listed]:
        """See `genworker.ports.BatchProvider.find`."""
        return await self._calls.listing(
            self._calls.address("batches"), _listed, since_s, limit=PAGE, after="after"
        )

    async def look(self, batch_id: str) -> Look:
        """See `genworker.ports.BatchProvider.look`."""
        record = await self._calls.record("get", self._calls.address("batches", batch_id))
        status = str(record.get("status")).lower()
        counts = fields(record.get("request_counts"))
        done, failed = number(counts.get("completed")), number(counts.get("failed"))
        results = {
            name: checked_id(record[key], key)
            for name, key in (("output", "output_file_id"), ("errors", "error_file_id"))
            if record.get(key)
        }
        refusal, over, bad = _refusal(record) if status == "failed" else (None, False, ())
        # A batch may be completed a while before its files are there, and before its counts are.
        has_answers = "output" in results or done == 0
        is_told = bool(results) or status != "completed" or bool(failed) or counts.get("total") == 0
        has_errors = "errors" in results or not failed
        return Look(
            status,
            is_final=status in _FINAL,
            results=results,
            is_complete=has_answers and is_told and has_errors,
            lacks_errors=has_answers and is_told and not has_errors,
            ended_s=max(filter(None, (time_s(record.get(f"{end}_at")) for end in _FINAL)), default=None),
            answered=done,
            refusal=refusal,
            is_over_limit=over,
            bad_lines=bad,
        )

    async def fetch(self, source: str, sink: IO[bytes], requests: Path) -> None:
        """See `genworker.ports.BatchProvider.fetch`."""
        await self._calls.download(self._calls.address("files", source, "content"), sink)

    async def first_name(self, batch_id: str) -> str | None:
        """See `genworker.ports.BatchProvider.first_name`."""
        look = await self.look(batch_id)
        for source in look.results.values():
            head = io.BytesIO()
            address = self._calls.address("files", source, "content")
            await self._calls.download(address, head, first_line=True)
            found = first_name_in(head.getvalue())
            if found is not None:
                return found
        return None

    def decode(self, line: bytes) -> BatchResult | None:
        """See `genworker.ports.BatchProvider.decode`."""
        record = loaded(line)
        name = record.get("custom_id")
        if not isinstance(name, str):
            return None
        response = record.get("response")
        if not isinstance(response, dict):
            code = fields(record.get("error")).get("code")
            if code in _LAPSED:
                return BatchResult(name)
            message = fields(record.get("error")).get("message")
            text = self._live.redact(str(message or code or "the batch has no answer for it"))[:500]
            return BatchResult(name, error=ProviderUnavailableError(text))
        body, status = response.get("body"), response.get("status_code")
        if isinstance(status, str) and status.isascii() and status.isdigit():
            status = int(status)
        if isinstance(body, str):
            body = loaded(body.encode("utf-8", "replace")) or body
        try:
            answer = self._live.read_line(
                status if isinstance(status, int) else 200, body, response.get("request_id")
            )
        except ProviderError as error:
            return BatchResult(name, error=error)
        return BatchResult(name, answer)

    async def cancel(self, batch_id: str) -> None:
        """See `genworker.ports.BatchProvider.cancel`."""
        await self._calls.record("post", self._calls.address("batches", batch_id, "cancel"))


def dumped(record: Any) -> bytes:
    """One line of JSON, without its end; whatever a prompt holds, no line end is in it."""
    try:
        return orjson.dumps(record)
    except TypeError:  # a lone surrogate, an integer past 64 bits
        return json.dumps(record).encode()


def loaded(line: bytes) -> dict[str, Any]:
    """A line's JSON object; empty when it is none."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        try:
            record = json.loads(line.decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            return {}
    return record if isinstance(record, dict) else {}


def first_name_in(head: bytes) -> str | None:
    """The ``custom_id`` of the first line of results; its beginning is enough."""
    for line in head.split(b"\n"):
        if line.strip():
            name = loaded(line).get("custom_id")
            if isinstance(name, str):
                return name
            found = re.search(rb'"custom_id"\s*:\s*"([A-Za-z0-9_-]{1,64})"', line)
            return found[1].decode() if found else None
    return None


def _listed(entry: Mapping[str, Any]) -> Listed | None:
    mark = fields(entry.get("metadata")).get(MARK)
    if mark is None and not is_id(entry.get("id")):
        return None  # it has no mark of ours, and no name: it is somebody else's
    marks = {mark, entry.get("input_file_id")}
    created = time_s(entry.get("created_at"))
    return Listed(
        checked_id(entry.get("id"), "batch id"),
        frozenset(value for value in marks if isinstance(value, str)),
        math.inf if created is None else created,
        count=number(fields(entry.get("request_counts")).get("total")),
        has_ended=str(entry.get("status")).lower() in _FINAL,
    )


def _refusal(record: Any) -> tuple[str, bool, tuple[int, ...]]:
    entries = [fields(entry) for entry in fields(record.get("errors")).get("data") or ()]
    texts = [str(entry.get("message") or entry.get("code")) for entry in entries]
    lines = sorted({entry["line"] - 1 for entry in entries if number(entry.get("line"))})
    over = any(entry.get("code") == _OVER_LIMIT for entry in entries)
    return "; ".join(texts[:3])[:500] or "the provider gives no reason", over, () if over else tuple(lines)
