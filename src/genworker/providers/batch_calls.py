"""What both SDKs' batch adapters share: one try a call, errors as live calls raise them, bodies of any size.

The SDKs sign; paths, bodies and the reading of what comes back are ours, so that a listing with a field that
an SDK does not know hides no batch, and a key goes to no address that an answer names.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import IO, Any
from urllib.parse import quote, urlsplit

import httpx2

from genworker.core.batches import Listed
from genworker.errors import MalformedAnswerError, ProviderUnavailableError
from genworker.providers.http import (
    ONCE,
    connection_error,
    decode_answer,
    status_error,
)

READ_TIMEOUT_S = 120.0
"""Without a byte for so long, a download is given up; it is made again later."""
MOST_LINE_BYTES = 16 * 1024 * 1024
"""Of a first line of results; an answer is never so long."""
NEWEST = 100
"""Batches that are listed before one is made."""
_STREAMED = {"X-Stainless-Raw-Response": "stream"}
"""How the SDKs are told to leave a body unread."""
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_URL = re.compile(r"[!-~]{1,4096}")


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

    def address(self, *parts: str) -> str:
        """A path below the endpoint's own address; names that came from outside stay names."""
        return str(self._client.base_url.join("/".join(quote(part, safe="") for part in parts)))

    def own_path(self, url: object) -> str | None:
        """The path of an address below the endpoint's own, with its query; ``None`` for any other."""
        base = urlsplit(str(self._client.base_url))
        try:
            parts = urlsplit(url) if isinstance(url, str) and _URL.fullmatch(url) else None
        except ValueError:
            return None
        if parts is None or (parts.scheme, parts.netloc) != (base.scheme, base.netloc):
            return None
        if not parts.path.startswith(base.path) or ".." in parts.path:
            return None
        path = parts.path[len(base.path.rstrip("/")) :]
        return f"{path}?{parts.query}" if parts.query else path

    def address_of(self, path: str) -> str:
        """The whole address of such a path."""
        return str(self._client.base_url).rstrip("/") + path

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

    async def listing(
        self,
        address: str,
        read: Callable[[Mapping[str, Any]], Listed | None],
        since_s: float | None,
        *,
        limit: int,
        after: str,
    ) -> list[Listed]:
        """The batches of a listing, page by page, until what follows is older than what is looked for.

        Nothing is left out on trust: the reading stops early only where the pages were seen to go from newer
        to older ones.

        Args:
            read: an entry; ``None`` for one that can be nobody's.
            since_s: by the times of the entries; ``None``: the first page alone.
            limit: entries of a page.
            after: the parameter that names the last entry of the page before.

        Raises:
            ProviderError: a page cannot be had, or the pages repeat themselves.
        """
        found: dict[str, Listed] = {}
        last: str | None = None
        while True:
            params: dict[str, Any] = {"limit": limit} if last is None else {"limit": limit, after: last}
            page = await self.record("get", address, params=params)
            entries = page.get("data")
            if not isinstance(entries, list):
                raise MalformedAnswerError("the listing has no data", body=repr(page)[:1000])
            found.update((each.batch_id, each) for entry in entries if (each := read(fields(entry))))
            if since_s is None or not entries or not page.get("has_more"):
                return list(found.values())
            following = fields(entries[-1]).get("id")
            if following == last:
                raise MalformedAnswerError("the pages of the listing repeat themselves", body="")
            times = [each.created_s for each in found.values() if each.created_s != math.inf]
            falls = all(one >= other for one, other in itertools.pairwise(times))
            if times and falls and times[0] > times[-1] and times[-1] < since_s:
                return list(found.values())
            last = checked_id(following, "batch id")

    async def download(self, address: str, sink: IO[bytes], *, first_line: bool = False) -> None:
        """Write a body into `sink` as it comes.

        Args:
            first_line: stop when the first line that is not empty is there, whole.
        """
        response = await self._send("get", address, headers=_STREAMED)
        head = b""
        try:
            chunks = response.aiter_bytes()
            while True:
                async with asyncio.timeout(READ_TIMEOUT_S):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    return
                sink.write(chunk)
                if first_line:
                    head = (head + chunk).lstrip()
                    if b"\n" in head or sink.tell() >= MOST_LINE_BYTES:
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
            raise status_error(error.response, self._redact) from None
        except self._connection_error as error:
            raise connection_error(error.__cause__, error.message) from None
        except self._root_error as error:
            raise ProviderUnavailableError(self._redact(str(error))[:500], may_be_billed=True) from None
        if response.status_code >= 300:
            raise status_error(response, self._redact)
        return response


def is_id(value: object) -> bool:
    """Whether a provider's name for something can stand in a path and in a log."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None and value not in (".", "..")


def checked_id(value: object, what: str) -> str:
    """A provider's name for something of ours.

    Raises:
        MalformedAnswerError: it is not one that can stand in a path and in a log.
    """
    if not isinstance(value, str) or not is_id(value):
        raise MalformedAnswerError(f"the answer has no {what} that can be used", body=repr(value)[:1000])
    return value


def number(value: object) -> int | None:
    """A count out of JSON."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def fields(value: object) -> Mapping[str, Any]:
    """An object out of JSON; empty where there is none."""
    return value if isinstance(value, dict) else {}


def time_s(value: object) -> float | None:
    """A moment in seconds since 1970, out of JSON: a number, or a date in ISO 8601."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if math.isfinite(value) else None
    try:
        return datetime.fromisoformat(value).timestamp() if isinstance(value, str) else None
    except (ValueError, OverflowError):
        return None
