"""HTTP/1.1 for the local LLM server: a minimal asyncio protocol with keep-alive, one request at a time."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import cast

from .llm_server_answers import Response

MAX_HEAD = 64 * 1024
MAX_BODY = 64 * 1024 * 1024
_DRIP_PIECES = 20
_FLUSH_S = 0.02  # for what was written to reach the client before a reset throws it away

_PHRASES = {status.value: status.phrase for status in HTTPStatus} | {529: "Overloaded"}


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request received whole; header names are in lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes
    keep_alive: bool


class _Refused(Exception):
    """The bytes are not a request that this server reads."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class _Head:
    end: int  # the body's first byte
    length: int  # of the body
    method: str
    target: str
    headers: Mapping[str, str]
    keep_alive: bool


def _parse_head(raw: bytes, end: int) -> _Head:
    lines = raw.decode("latin-1").split("\r\n")
    parts = lines[0].split(" ")
    if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
        raise _Refused(400, "malformed request line")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, separator, value = line.partition(":")
        if not separator:
            raise _Refused(400, "malformed header")
        headers[name.lower()] = value.strip()
    if "transfer-encoding" in headers:
        raise _Refused(411, "Content-Length is required; chunked bodies are not read")
    length = headers.get("content-length", "0")
    if not length.isdigit():
        raise _Refused(400, "malformed Content-Length")
    if int(length) > MAX_BODY:
        raise _Refused(413, "the body is too large")
    connection = headers.get("connection", "").lower()
    keep_alive = connection == "keep-alive" if parts[2] == "HTTP/1.0" else connection != "close"
    return _Head(end, int(length), parts[0], parts[1], headers, keep_alive)


class Connection(asyncio.Protocol):
    """One client's connection. Requests are taken one by one; pipelined ones wait in the buffer."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_request: Callable[[Connection, HttpRequest], None],
        on_open: Callable[[Connection], None],
        on_close: Callable[[Connection], None],
    ) -> None:
        self._loop = loop
        self._on_request = on_request
        self._on_open = on_open
        self._on_close = on_close
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._head: _Head | None = None
        self._busy = False
        self._taking = False
        self._keep_alive = True
        self._source: Iterator[bytes] | None = None
        self._writable = True
        self._timer: asyncio.TimerHandle | None = None
        self._done: Callable[[bool], None] | None = None
        self.state: object = None  # the handler's own, of the request in work

    @property
    def open(self) -> bool:
        """Whether an answer can still be written."""
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._on_open(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._source = None
        self._cancel_timer()
        self._finish(written=False)
        self._on_close(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._busy:
            self._take()
        elif len(self._buffer) > MAX_BODY and self._transport is not None:
            self._transport.abort()

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something for the request in work, unless the connection is lost before."""
        self._cancel_timer()
        self._timer = self._loop.call_later(seconds, action)

    def abort(self) -> None:
        """Close without sending what is left."""
        if self._transport is not None:
            self._transport.abort()

    def send(self, response: Response, done: Callable[[bool], None] | None = None) -> None:
        """Answer the request in work; ``done`` hears whether the answer was written whole."""
        if self._transport is None or self._transport.is_closing():
            return  # connection_lost comes, or came, and books it
        self._done = done
        length = len(response.body) if response.length is None else response.length
        lines = [
            f"HTTP/1.1 {response.status} {_PHRASES.get(response.status, 'Unknown')}",
            f"content-type: {response.content_type}",
            f"content-length: {length}",
        ]
        lines += [f"{name}: {value}" for name, value in response.headers]
        if not self._keep_alive:
            lines.append("connection: close")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        half = head + response.body[: len(response.body) // 2]
        match response.delivery:
            case "whole" if response.lazy is None:
                self._transport.write(head + response.body)
                self._finish(written=True)
            case "whole" if response.lazy is not None:
                self._transport.write(head)
                self._source = response.lazy()
                self._pump()
            case "drip":
                self._drip(head, response.body, response.seconds or 0.0)
            case "reset":
                self._reset()
            case "half-reset":
                self._transport.write(half)
                self.later(_FLUSH_S, self._reset)
            case "half-close":
                self._transport.write(half)
                self._transport.close()
            case "half-stall":
                self._transport.write(half)
                self._hang(response.seconds)
            case _:
                self._hang(response.seconds)

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self._pump()

    def _pump(self) -> None:
        while self._source is not None and self._writable and self._transport is not None:
            chunk = next(self._source, None)
            if chunk is None:
                self._source = None
                self._finish(written=True)
            else:
                self._transport.write(chunk)

    def _drip(self, head: bytes, body: bytes, seconds: float) -> None:
        step = max(1, -(-len(body) // _DRIP_PIECES))
        pieces = iter([body[start : start + step] for start in range(0, len(body), step)])
        pause = seconds / _DRIP_PIECES

        def next_piece() -> None:
            if self._transport is None:
                return
            piece = next(pieces, None)
            if piece is None:
                self._finish(written=True)
            else:
                self._transport.write(piece)
                self.later(pause, next_piece)

        if self._transport is not None:
            self._transport.write(head)
        next_piece()

    def _hang(self, seconds: float | None) -> None:
        if seconds is not None:
            self.later(seconds, self.abort)

    def _reset(self) -> None:
        """Close with a TCP reset."""
        if self._transport is None:
            return
        raw = self._transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def _finish(self, *, written: bool) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(written)
        if self._transport is None:
            return
        self._busy = False
        if not self._keep_alive:
            self._transport.close()
        elif not self._taking:
            self._take()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _take(self) -> None:
        """Hand over whole requests until one of them is in work."""
        self._taking = True
        try:
            while not self._busy and self.open and (request := self._parse()) is not None:
                self._busy = True
                self._keep_alive = request.keep_alive
                self._on_request(self, request)
        except _Refused as refused:
            self._busy, self._keep_alive = True, False
            self.send(Response(refused.status, f'{{"error": {{"message": "{refused}"}}}}'.encode()))
        finally:
            self._taking = False

    def _parse(self) -> HttpRequest | None:
        if self._head is None:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0 or end > MAX_HEAD:
                if len(self._buffer) > MAX_HEAD:
                    raise _Refused(431, "the headers are too large")
                return None
            self._head = _parse_head(bytes(self._buffer[:end]), end + 4)
            if self._head.headers.get("expect", "").lower() == "100-continue" and self._transport is not None:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        head = self._head
        total = head.end + head.length
        if len(self._buffer) < total:
            return None
        body = bytes(self._buffer[head.end : total])
        del self._buffer[:total]
        self._head = None
        path, _, query = head.target.partition("?")
        return HttpRequest(head.method, path, query, head.headers, body, head.keep_alive)
