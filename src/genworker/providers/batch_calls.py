"""What both SDKs' batch adapters share: one try a call, errors as live calls raise them, bodies of any size.

The SDKs sign; paths, bodies and the reading of what comes back are ours, so that a listing with a field that
an SDK does not know hides no batch, and a key goes to no address that an answer names.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from typing import IO, Any
from urllib.parse import quote

import httpx2

from genworker.errors import MalformedAnswerError, ProviderUnavailableError
from genworker.providers.http import (
    ONCE,
    connection_error,
    decode_answer,
    status_error,
)

READ_TIMEOUT_S = 120.0
"""Without a byte for so long, a download is given up; it is made again later."""
FIRST_BYTES = 64 * 1024
_STREAMED = {"X-Stainless-Raw-Response": "stream"}
"""How the SDKs are told to leave a body unread."""
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


class BatchCalls:
    """The low-level calls of an SDK's client.

    Args:
        client: an `openai.AsyncOpenAI` or an `anthropic.AsyncAnthropic`, without retries of its own.
        errors: the SDK's errors: for a status, for a connection, and the root of both.
        timeout_s: deadline of one call; of a download, of the time between its bytes.
    """

    def __init__(
        self,
        client: Any,
        errors: tuple[type[Any], type[Any], type[Exception]],
        redact: Callable[[str], str],
        timeout_s: float,
    ) -> None:
        self._client = client
        self._status_error, self._connection_error, self._root_error = errors
        self._redact = redact
        self._timeout_s = timeout_s
        self._ahead_s: float | None = None

    def server_s(self) -> float | None:
        """See `genworker.ports.BatchProvider.server_s`."""
        return None if self._ahead_s is None else time.time() + self._ahead_s

    def address(self, *parts: str) -> str:
        """A path below the endpoint's own address; names that came from outside stay names."""
        return str(self._client.base_url.join("/".join(quote(part, safe="") for part in parts)))

    async def record(self, method: str, address: str, **parts: Any) -> dict[str, Any]:
        """Ask once; the answer's JSON object.

        Raises:
            ProviderError: there is none.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await self._send(method, address, **parts)
        except TimeoutError:
            message = f"no answer within {self._timeout_s:g} s"
            raise ProviderUnavailableError(message, may_be_billed=True) from None
        return decode_answer(response)

    async def download(self, address: str, sink: IO[bytes], *, at_most: int | None = None) -> None:
        """Write a body into `sink` as it comes; `at_most`: only its beginning."""
        response = await self._send("get", address, headers=_STREAMED)
        try:
            chunks = response.aiter_bytes()
            while True:
                async with asyncio.timeout(READ_TIMEOUT_S):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    return
                sink.write(chunk)
                if at_most is not None and sink.tell() >= at_most:
                    return
        except TimeoutError:
            raise ProviderUnavailableError(f"the download stood still for {READ_TIMEOUT_S:g} s") from None
        except httpx2.HTTPError as error:
            raise ProviderUnavailableError(f"the download broke off: {error}") from None
        finally:
            await response.aclose()

    async def _send(self, method: str, address: str, **parts: Any) -> httpx2.Response:
        headers = parts.pop("headers", {})
        options = {**ONCE, "headers": headers, "params": parts.pop("params", {})}
        try:
            response: httpx2.Response = await getattr(self._client, method)(
                address, cast_to=httpx2.Response, options=options, **parts
            )
        except self._status_error as error:
            self._note_time(error.response.headers)
            raise status_error(error.response, self._redact) from None
        except self._connection_error as error:
            raise connection_error(error.__cause__, error.message) from None
        except self._root_error as error:
            raise ProviderUnavailableError(self._redact(str(error))[:500], may_be_billed=True) from None
        self._note_time(response.headers)
        if response.status_code >= 300:
            raise status_error(response, self._redact)
        return response

    def _note_time(self, headers: Mapping[str, str]) -> None:
        date = headers.get("date")
        if date is not None:
            from email.utils import parsedate_to_datetime

            try:
                self._ahead_s = parsedate_to_datetime(date).timestamp() - time.time()
            except (ValueError, OverflowError):
                return


def checked_id(value: object, what: str) -> str:
    """A provider's name for something of ours.

    Raises:
        MalformedAnswerError: it is not one that can stand in a path and in a log.
    """
    if not isinstance(value, str) or _ID.fullmatch(value) is None or value in (".", ".."):
        raise MalformedAnswerError(f"the answer has no {what} that can be used", body=repr(value)[:1000])
    return value


def number(value: object) -> int | None:
    """A count out of JSON."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def fields(value: object) -> Mapping[str, Any]:
    """An object out of JSON; empty where there is none."""
    return value if isinstance(value, dict) else {}
