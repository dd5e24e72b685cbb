"""Requests by example: the SDK builds one request of a shape; what follows has its head and another body.

What an SDK works out for each request (options, headers, address, authentication) is the same for all
requests of a shape. Only the body differs, and it is written as the SDKs write it. A test compares what is
sent with what the SDKs send by themselves, byte for byte.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx2

CODINGS: Final = b"gzip, deflate"
"""The content codings that the transport unpacks; httpx2 names those that are installed for it."""
_OWN_HEADERS = frozenset({b"content-length", b"transfer-encoding"})
_BREAKS_HEAD = re.compile(rb"[\r\n\0]")


@dataclass(frozen=True, slots=True)
class Example:
    """A request as an SDK builds it, without its body.

    Attributes:
        address: where it goes.
        target: the request line's middle, ``b"/v1/messages?a=b"``.
        headers: as they are sent, but for the body's length.
    """

    address: str
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]

    def head(self, target: bytes, more: tuple[tuple[bytes, bytes], ...] = ()) -> bytes:
        """A request's bytes before the number that is the length of its body.

        Args:
            target: `target`, or the whole address where a proxy is to be told it.
            more: headers that are sent besides.
        """
        lines = [b"POST %b HTTP/1.1" % target]
        lines += [b"%b: %b" % header for header in (*self.headers, *more)]
        return b"\r\n".join((*lines, b"Content-Length: "))


async def example_of(
    ask: Callable[[httpx2.AsyncClient], Awaitable[object]], dropped: frozenset[str]
) -> Example:
    """The request that an SDK would send. Nothing is sent.

    Args:
        ask: makes one call of the SDK over the client that it is given.
        dropped: names of headers, in lower case, that are not sent.

    Raises:
        ValueError: it cannot be sent: a header has a character that none may have.
    """
    noted = _Noted()
    async with httpx2.AsyncClient(transport=noted, trust_env=False, timeout=None) as client:
        await ask(client)
    request = noted.request
    assert request is not None, "the SDK has sent nothing"
    headers = []
    for name, value in request.headers.raw:
        lower = name.lower()
        if lower in _OWN_HEADERS or lower.decode("latin-1") in dropped:
            continue
        if _BREAKS_HEAD.search(name) or _BREAKS_HEAD.search(value):
            raise ValueError(f"the header {name.decode('latin-1')!r} has a line end or a null character")
        headers.append((name, CODINGS if lower == b"accept-encoding" else value))
    return Example(str(request.url), request.url.raw_path, tuple(headers))


class _Noted(httpx2.AsyncBaseTransport):
    """Keeps a request instead of sending it."""

    request: httpx2.Request | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """An empty answer."""
        self.request = request
        return httpx2.Response(200, json={}, request=request)


_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def encode(body: Mapping[str, Any]) -> bytes:
    """A body as the SDKs write it.

    Raises:
        ValueError: it holds what JSON or UTF-8 has not.
    """
    return _ENCODER.encode(body).encode()
