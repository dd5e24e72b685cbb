"""The way to an HTTP endpoint, shared by the adapters: transport, and what can go wrong on it.

The official SDKs build, sign and address requests: an example of each shape for completions (see
`genworker.providers.example`), every single one for all else. The bytes travel over aiohttp's connections,
whose pool does not slow down with the number of calls in flight, and its parser reads what comes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import select
import ssl
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohttp
import httpx2
import yarl
from aiohttp.helpers import get_env_proxy_for_url

from genworker.core.complaints import MAX_MESSAGE_CHARS
from genworker.core.completion import Completion
from genworker.core.refusals import Asked, refusal_of
from genworker.core.visible import visible
from genworker.core.wire import KEPT_BODY_BYTES, malformed, parse_body, read_answer
from genworker.errors import MalformedAnswerError, ProviderError, ProviderUnavailableError
from genworker.providers.example import CODINGS, Example
from genworker.providers.way import WayFaults

MAX_BODY_BYTES = 64 * 1024 * 1024
"""An answer past this is cut: no model writes it, and memory must not depend on a server's mood."""
MAX_HEADER_BYTES = 64 * 1024
"""The longest line of a response's head that is read: tracing gateways send long ones."""
CONNECT_TIMEOUT_S = 30.0


class BodyTooLargeError(httpx2.RequestError):
    """The body went past `MAX_BODY_BYTES`; `head` is its beginning."""

    def __init__(self, head: bytes) -> None:
        super().__init__(f"the answer is larger than {MAX_BODY_BYTES} bytes")
        self.head = head


LARGE_BODY_BYTES = 1024 * 1024


def _payload(body: bytes) -> bytes | io.BytesIO:
    """A body as aiohttp wants it: a large one, such as a batch's, is written in pieces between other work."""
    return body if len(body) < LARGE_BODY_BYTES else io.BytesIO(body)


class AiohttpTransport(httpx2.AsyncBaseTransport):
    """Sends an SDK's request over an aiohttp session and reads the whole body, up to a limit.

    Redirects are not followed and proxies of the environment are not used unless asked for: a key must
    reach the configured host and no other.

    Args:
        dropped: names of headers, in lower case, that are not sent.
        ca_file: certificates that are trusted besides the system's.
    """

    def __init__(self, *, use_env_proxy: bool, dropped: frozenset[str], ca_file: Path | None) -> None:
        self._use_env_proxy = use_env_proxy
        self._dropped = _OWN_HEADERS | dropped
        self._ca_file = ca_file
        self._session: aiohttp.ClientSession | None = None
        self._ways: dict[Example, _Way] = {}
        self._faults = WayFaults(use_env_proxy=use_env_proxy)

    def _open_session(self) -> aiohttp.ClientSession:
        trusted: ssl.SSLContext | bool = True
        if self._ca_file is not None:
            trusted = ssl.create_default_context()
            trusted.load_verify_locations(self._ca_file)
        return aiohttp.ClientSession(
            # The scheduler limits calls in flight; a second limit here would only hide its decisions.
            connector=_Connector(limit=0, keepalive_timeout=60, ssl=trusted),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
            trust_env=self._use_env_proxy,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Content-Type", "Accept", "Accept-Encoding"),
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request; errors become httpx2's, as the SDKs expect."""
        with self._faults.told():
            async with await self._begin(request) as response:
                # As a stream: with `content` httpx2 would work out headers that the endpoint has sent.
                try:
                    whole = httpx2.ByteStream(await _read_body(response.content))
                except BodyTooLargeError:
                    response.close()
                    raise
                answer = _response(response, request, whole)
                await answer.aread()
                return answer

    async def stream(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request whose body is read as the caller asks for it, and never held whole."""
        with self._faults.told():
            response = await self._begin(request)
            return _response(response, request, _Stream(response, self._faults))

    async def post(self, example: Example, body: bytes) -> Came:
        """Send a body under the head of an example, and read all that comes back.

        Raises:
            ProviderError: there was no whole answer.
        """
        with self._faults.told():
            way = self._ways.get(example)
            if way is None:
                way = self._ways[example] = await self._way(example)
            connection = await way.connect()
            try:
                status, headers, content = await way.exchange(connection, body)
                came = Came(status, headers, await _read_body(content))
            except BodyTooLargeError as error:
                connection.close()
                raise connection_error(error, "") from None
            except BaseException:
                connection.close()
                raise
            connection.release()
            return came

    async def _way(self, example: Example) -> _Way:
        session = self._opened()
        connector = session.connector
        assert connector is not None, "the session is open"
        url = yarl.URL(example.address, encoded=True)
        proxy = proxy_auth = None
        if self._use_env_proxy:
            with contextlib.suppress(LookupError):
                proxy, proxy_auth = await asyncio.to_thread(get_env_proxy_for_url, url)
        request = aiohttp.ClientRequest(
            "POST",
            url,
            loop=asyncio.get_running_loop(),
            session=session,
            proxy=proxy,
            proxy_auth=proxy_auth,
        )
        return _Way(example, request, connector, session.timeout)

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = self._open_session()
        return self._session

    async def _begin(self, request: httpx2.Request) -> aiohttp.ClientResponse:
        headers = [
            (name, value) for name, value in request.headers.multi_items() if name not in self._dropped
        ]
        headers.append(("Accept-Encoding", CODINGS.decode()))
        return await self._opened().request(
            request.method,
            str(request.url),
            headers=headers,
            data=_payload(await request.aread()),
            allow_redirects=False,
        )

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None
            self._ways.clear()


class Came(NamedTuple):
    """What came back: the headers as they came, the body unpacked from its content coding."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes


class _Way:
    """How requests of one example travel: over connections of aiohttp's pool, read by its parser.

    Args:
        request: tells the pool where to connect to, and through what; it is never sent itself.
    """

    def __init__(
        self,
        example: Example,
        request: aiohttp.ClientRequest,
        connector: aiohttp.BaseConnector,
        timeout: aiohttp.ClientTimeout,
    ) -> None:
        self._example = example
        self._request = request
        self._connector = connector
        self._timeout = timeout
        # A proxy is told the whole address, unless it only carries a secure connection.
        self._is_told = request.proxy is not None and not request.is_ssl()
        self._head = b"" if self._is_told else example.head(example.target)

    async def connect(self) -> aiohttp.connector.Connection:
        """A connection of the pool, or a new one."""
        connection = await self._connector.connect(self._request, [], self._timeout)
        if self._is_told and not self._head:
            login = self._request.headers.get("Proxy-Authorization")
            more = () if login is None else ((b"Proxy-Authorization", login.encode("latin-1")),)
            self._head = self._example.head(self._example.address.encode("ascii"), more)
        return connection

    async def exchange(
        self, connection: aiohttp.connector.Connection, body: bytes
    ) -> tuple[int, Sequence[tuple[bytes, bytes]], aiohttp.StreamReader]:
        """Send a body; (status, headers, the body that comes)."""
        protocol, transport = connection.protocol, connection.transport
        assert protocol is not None, "the connection is open"
        if transport is None or transport.is_closing():
            raise aiohttp.ClientConnectionResetError("the connection was closed before the request was sent")
        protocol.set_response_params(
            read_until_eof=True,  # an old server tells no length: its answer ends with the connection
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
        )
        transport.write(b"%b%d\r\n\r\n%b" % (self._head, len(body), body))
        while True:
            message, content = await protocol.read()
            if message.code >= 200 or message.code == 101:  # what comes before only says that more will
                return message.code, message.raw_headers, content


_OWN_HEADERS = frozenset({"accept-encoding", "connection", "content-length", "host", "transfer-encoding"})
_KEY_HEADERS = frozenset({"authorization", "x-api-key"})
_DROPPED_HEADERS = frozenset({b"content-encoding", b"content-length", b"transfer-encoding"})


class _Connector(aiohttp.TCPConnector):
    """A pool that gives out no connection which the endpoint has closed meanwhile.

    Otherwise the request would be written into it, fail, and count as one that may have been billed.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._used: weakref.WeakSet[Any] = weakref.WeakSet()

    async def connect(self, *arguments: Any, **options: Any) -> Any:
        """A connection of the pool, or a new one."""
        while True:
            connection = await super().connect(*arguments, **options)
            protocol = connection.protocol
            if protocol not in self._used:
                self._used.add(protocol)
                return connection
            if not _is_closed(connection.transport):
                return connection
            connection.close()


def _is_closed(transport: asyncio.Transport | None) -> bool:
    """Whether the other side has closed an idle connection: then its end can be read, or else nothing."""
    raw = None if transport is None else transport.get_extra_info("socket")
    if raw is None:
        return True
    poll = select.poll()
    poll.register(raw.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _response(
    response: aiohttp.ClientResponse, request: httpx2.Request, body: httpx2.AsyncByteStream
) -> httpx2.Response:
    kept = [(name, value) for name, value in response.raw_headers if name.lower() not in _DROPPED_HEADERS]
    return httpx2.Response(response.status, headers=kept, stream=body, request=request)


class _Stream(httpx2.AsyncByteStream):
    """A body that is still on its way."""

    def __init__(self, response: aiohttp.ClientResponse, faults: WayFaults) -> None:
        self._response = response
        self._faults = faults

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with self._faults.told():
            async for chunk in self._response.content.iter_chunked(256 * 1024):
                yield chunk

    async def aclose(self) -> None:
        self._response.close()


async def _read_body(content: aiohttp.StreamReader) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while chunk := await content.readany():
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise BodyTooLargeError(b"".join(chunks)[:KEPT_BODY_BYTES])
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


class EndpointClient(httpx2.AsyncClient):
    """The HTTP client that both SDKs are given.

    It has no cookies, authentication flow, redirects or hooks: a request goes out as it is built.

    Args:
        dropped: names of headers, in lower case, that are not sent; see `keyless`.
    """

    def __init__(
        self, *, use_env_proxy: bool, dropped: frozenset[str] = frozenset(), ca_file: Path | None = None
    ) -> None:
        self.transport = AiohttpTransport(use_env_proxy=use_env_proxy, dropped=dropped, ca_file=ca_file)
        # No timeout: the call's one deadline is the runner's.
        super().__init__(transport=self.transport, follow_redirects=False, trust_env=False, timeout=None)

    async def send(
        self, request: httpx2.Request, *, stream: bool = False, **_options: Any
    ) -> httpx2.Response:
        """Send a request over the transport.

        Args:
            stream: leave the body to be read by the caller; else it is whole when this returns.
        """
        if stream:
            return await self.transport.stream(request)
        return await self.transport.handle_async_request(request)


ONCE: Final[Any] = {
    "headers": {},
    "params": {},
    "max_retries": 0,
    "timeout": None,
    "idempotency_key": "unsent",
}
"""Options of the SDKs' low-level calls: they say what is default anyway, so that the SDKs neither copy their
defaults at each call nor draw a random key, which neither of them sends."""


def read_line(status: int, body: object, request_id: object, redact: Callable[[str], str]) -> Completion:
    """The answer in a line of a batch's results, whose body is parsed already.

    Raises:
        ProviderError: there is none.
    """
    is_name = isinstance(request_id, str) and request_id.isascii()
    headers = [(b"x-request-id", str(request_id).encode())] if is_name else []
    return answer_or_raise(
        read_answer(status, headers, body, now_epoch_s=time.time(), asked=Asked(redact=redact))
    )


def answer_or_raise(outcome: Completion | ProviderError) -> Completion:
    """The answer.

    Raises:
        ProviderError: it is one.
    """
    if isinstance(outcome, ProviderError):
        raise outcome
    return outcome


def decode_answer(response: httpx2.Response) -> dict[str, Any]:
    """The body of a successful response as a JSON object.

    Raises:
        MalformedAnswerError: it is not one.
    """
    record = parse_body(response.content)
    if isinstance(record, dict):
        return record
    raise malformed(
        "the answer is not a JSON object", response.status_code, response.headers.raw, response.content
    )


def model_names(response: httpx2.Response) -> frozenset[str] | None:
    """The names in a list of models; ``None`` when the body is no such list."""
    record = parse_body(response.content)
    entries = record.get("data") if isinstance(record, dict) else None
    if not isinstance(entries, list):
        return None
    names = (entry.get("id") for entry in entries if isinstance(entry, dict))
    return frozenset(name for name in names if isinstance(name, str))


def status_error(response: httpx2.Response, redact: Callable[[str], str]) -> ProviderError:
    """The refusal in a response that is no answer to a completion."""
    record = parse_body(response.content)
    body = response.content[:KEPT_BODY_BYTES].decode("utf-8", "replace") if record is None else record
    return refusal_of(response.status_code, response.headers.raw, body, time.time(), Asked(redact=redact))


def connection_error(cause: BaseException | None, message: str) -> ProviderError:
    """A call that ended before a whole response was there."""
    if isinstance(cause, ProviderError):
        return cause
    if isinstance(cause, BodyTooLargeError):
        return MalformedAnswerError(
            str(cause), body=cause.head.decode("utf-8", "replace"), retryable=False, status=200
        )
    text = visible(str(cause or message), limit=MAX_MESSAGE_CHARS, one_line=True)
    return ProviderUnavailableError(f"no response: {text}", may_be_billed=True)


def keyless(secret: str | None, headers: Mapping[str, str]) -> frozenset[str]:
    """The headers of the key that are not sent to a server without one. The SDKs insist on a key.

    Args:
        headers: those that are configured; they are sent whatever their names.
    """
    return frozenset() if secret is not None else _KEY_HEADERS - {name.lower() for name in headers}


@contextlib.contextmanager
def without_variables(prefix: str) -> Iterator[None]:
    """Hide the shell's variables of that prefix while an SDK's client is made."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(prefix)}
    try:
        yield
    finally:
        os.environ.update(hidden)


SECRET_CHARS = 8
"""A configured value below this is no secret, and would be taken out of every other word."""


def redactor(*secrets: str | None) -> Callable[[str], str]:
    """A function that takes keys out of a text: an endpoint may echo them."""
    parts: list[str] = []
    for secret in secrets:
        if secret and len(secret) >= SECRET_CHARS and " " not in secret:
            parts += [secret] if len(secret) < 16 else [secret, secret[:12], secret[-8:]]

    def redact(text: str) -> str:
        for part in parts:
            text = text.replace(part, "***")
        return text

    return redact
