"""What is sent is what the SDKs send: heads and bodies, byte for byte, over a real socket.

Our requests are made by example (see `genworker.providers.example`); a release of an SDK that writes another
head, or another body, shows here.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anthropic
import openai
import pytest
from pydantic import SecretStr

from genworker.core.completion import CompletionRequest, Sampling
from genworker.errors import RequestRejectedError, Scope
from genworker.providers.anthropic import AnthropicProvider
from genworker.providers.openai import OpenAIProvider
from genworker.providers.sdk import SdkProvider

KEY = "sk-secret-0123456789abcdef"
ANSWERS = {
    "openai": {"choices": [{"index": 0, "finish_reason": "stop", "message": {"content": "a text"}}]},
    "anthropic": {"stop_reason": "end_turn", "content": [{"type": "text", "text": "a text"}]},
}
PLACES = {"openai": "/v1", "anthropic": ""}
SERVED = 10
PATHS = {"openai": "/chat/completions", "anthropic": "/v1/messages"}


@dataclass
class Listener:
    """An endpoint that keeps what it is sent, as (head, body), with the number of the connection."""

    url: str
    received: list[tuple[bytes, bytes]] = field(default_factory=list)
    connections: list[int] = field(default_factory=list)


@asynccontextmanager
async def listening(kind: str) -> AsyncIterator[Listener]:
    listener = Listener("")
    answer = json.dumps(ANSWERS[kind]).encode()
    served = asyncio.Semaphore(SERVED)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(listener.connections)
        await served.acquire()
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)\r\ncontent-length: (\d+)\r\n", head)
                assert length is not None
                listener.received.append((head, await reader.readexactly(int(length[1]))))
                listener.connections.append(number)
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                    b"Content-Length: %d\r\n\r\n%b" % (len(answer), answer)
                )
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()
            await writer.wait_closed()
            served.release()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        listener.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{PLACES[kind]}"
        yield listener
        for _ in range(SERVED):  # until every connection is closed
            await served.acquire()


def ours(kind: str, url: str, key: str | None, options: dict[str, Any]) -> SdkProvider:
    headers = {name: SecretStr(value) for name, value in options.get("headers", {}).items()}
    make = OpenAIProvider if kind == "openai" else AnthropicProvider
    field_name = {name: options[name] for name in ("max_tokens_field",) if name in options}
    return make(
        url,
        None if key is None else SecretStr(key),
        headers=headers,
        query=options.get("query"),
        **field_name,
    )


def theirs(kind: str, url: str, key: str | None, options: dict[str, Any]) -> Any:
    """The SDK as it comes, with its own HTTP client; only its retries and its deadline are switched off."""
    make: Any = openai.AsyncOpenAI if kind == "openai" else anthropic.AsyncAnthropic
    return make(
        base_url=url,
        api_key=key or "none",
        max_retries=0,
        timeout=None,
        default_headers=options.get("headers"),
        default_query=options.get("query"),
    )


def typed(kind: str, sdk: Any) -> Any:
    return sdk.chat.completions if kind == "openai" else sdk.messages


def as_sent(head: bytes, *, keyless: bool = False) -> bytes:
    """A head without what belongs to the transport: which content codings can be unpacked."""
    head, found = re.subn(rb"(?i)\r\naccept-encoding: [^\r]*", b"\r\nAccept-Encoding: *", head)
    assert found == 1
    return re.sub(rb"(?i)\r\n(authorization|x-api-key): [^\r]*", b"", head) if keyless else head


def without_length(head: bytes) -> bytes:
    return re.sub(rb"(?i)\r\ncontent-length: \d+", b"\r\nContent-Length: *", head)


FULL = {
    "temperature": 1e-7,
    "top_p": 0.5,
    "stop": ("END", "</s>"),
    "seed": 2**62,
    "system": 'be brief; \u00fc\u4e2d\U0001f600\u2028\x01"\\',
    "extra_body": {"top_k": 40, "provider": {"order": ["a", "b"], "min": 1e22}, "cached": None, "on": True},
}
CASES: dict[str, tuple[str | None, dict[str, Any], dict[str, Any]]] = {
    "as it comes": (KEY, {}, {}),
    "without a key": (None, {}, {}),
    "headers": (KEY, {"headers": {"X-Title": "house", "HTTP-Referer": "https://house.example/"}}, {}),
    "headers in place of the SDK's own": (
        KEY,
        {"headers": {"user-agent": "house/1", "x-api-key": "another", "Authorization": "Bearer another"}},
        {},
    ),
    "an Azure address": (KEY, {"query": {"api-version": "2024-10-21", "a b": "c&d=\u00fc"}}, {}),
    "everything that can be set": (KEY, {}, FULL),
    "the newer name of the limit": (KEY, {"max_tokens_field": "max_completion_tokens"}, {"seed": 1}),
}


@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize("case", CASES)
def test_what_is_sent_is_what_the_sdk_sends(kind: str, case: str) -> None:
    key, options, sampling = CASES[case]
    if kind == "anthropic":
        options = {name: value for name, value in options.items() if name != "max_tokens_field"}

    async def compare() -> None:
        async with listening(kind) as listener:
            provider, sdk = ours(kind, listener.url, key, options), theirs(kind, listener.url, key, options)
            try:
                for prompt in ("Say something.", "\u00c9crivez, \u5199 \U0001f600.\n" * 200):
                    asked = CompletionRequest(
                        "vendor/alpha", prompt, Sampling(max_tokens=2000, **sampling), timeout_s=30
                    )
                    body = provider.body(asked)
                    await provider.complete(asked)
                    await sdk.post(PATHS[kind], cast_to=object, body=body, options={"timeout": None})
                    (our_head, our_body), (their_head, their_body) = listener.received[-2:]
                    ours_sent, theirs_sent = as_sent(our_head), as_sent(their_head, keyless=key is None)
                    assert ours_sent.split(b"\r\n") == theirs_sent.split(b"\r\n")
                    assert our_body == their_body

                    # And the call that people make: fields that it does not know go as extra ones.
                    create = typed(kind, sdk).create
                    known = body.keys() & inspect.signature(create).parameters.keys()
                    named = {name: body[name] for name in known}
                    extra = {name: body[name] for name in body.keys() - known}
                    await create(**named, extra_body=extra, timeout=None)
                    their_head, their_body = listener.received[-1]
                    theirs_sent = without_length(as_sent(their_head, keyless=key is None))
                    assert without_length(as_sent(our_head)) == theirs_sent
                    assert json.loads(our_body) == json.loads(their_body)
            finally:
                await provider.aclose()
                await sdk.close()

    asyncio.run(compare())


@pytest.mark.parametrize("kind", ANSWERS)
def test_a_connection_is_used_again_and_a_shape_is_built_once(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask() -> None:
        built: list[str] = []
        async with listening(kind) as listener:
            provider = ours(kind, listener.url, KEY, {})
            make = provider.client.with_options

            def noted(**options: Any) -> Any:
                built.append("an example")
                return make(**options)

            monkeypatch.setattr(provider.client, "with_options", noted)
            try:
                for number in range(3):
                    sampling = Sampling(max_tokens=100 + number)
                    await provider.complete(CompletionRequest("a", f"p{number}", sampling, timeout_s=30))
                assert (len(built), listener.connections) == (1, [0, 0, 0])
                assert {as_sent(head) for head, _ in listener.received[1:]} == {
                    as_sent(listener.received[0][0])
                }
                await provider.complete(CompletionRequest("b", "p", Sampling(max_tokens=1), timeout_s=30))
                cooler = Sampling(max_tokens=1, temperature=0.1)
                await provider.complete(CompletionRequest("b", "p", cooler, timeout_s=30))
                assert len(built) == 3
            finally:
                await provider.aclose()

    asyncio.run(ask())


@pytest.mark.parametrize("kind", ANSWERS)
def test_nothing_of_the_shell_is_sent(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for prefix in ("OPENAI", "ANTHROPIC"):
        monkeypatch.setenv(f"{prefix}_CUSTOM_HEADERS", "X-Leaked: leaked\nAuthorization: Bearer leaked")
        for name in ("ORG_ID", "PROJECT_ID", "AUTH_TOKEN", "API_KEY"):
            monkeypatch.setenv(f"{prefix}_{name}", "leaked")

    async def ask() -> bytes:
        async with listening(kind) as listener:
            provider = ours(kind, listener.url, KEY, {})
            try:
                await provider.complete(CompletionRequest("a", "p", Sampling(max_tokens=1), timeout_s=30))
            finally:
                await provider.aclose()
            return listener.received[0][0]

    assert b"leaked" not in asyncio.run(ask())


@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize("value", ["two\r\nX-Other: lines", "null\0"])
def test_a_header_that_none_may_have_is_not_sent(kind: str, value: str) -> None:
    async def ask() -> RequestRejectedError:
        async with listening(kind) as listener:
            provider = ours(kind, listener.url, KEY, {"headers": {"X-Title": value}})
            try:
                with pytest.raises(RequestRejectedError) as caught:
                    await provider.complete(CompletionRequest("a", "p", Sampling(), timeout_s=30))
            finally:
                await provider.aclose()
            assert not listener.received
            return caught.value

    error = asyncio.run(ask())
    assert error.scope is Scope.ENDPOINT
    assert "cannot be sent" in str(error)
    assert KEY not in str(error)


@pytest.mark.parametrize("kind", ANSWERS)
def test_a_prompt_that_cannot_be_written_concerns_its_row_alone(kind: str) -> None:
    async def ask() -> RequestRejectedError:
        async with listening(kind) as listener:
            provider = ours(kind, listener.url, KEY, {})
            try:
                half = CompletionRequest(
                    "a", "half a character: \ud83d", Sampling(max_tokens=1), timeout_s=30
                )
                with pytest.raises(RequestRejectedError) as caught:
                    await provider.complete(half)
                assert not listener.received
                await provider.complete(CompletionRequest("a", "p", Sampling(max_tokens=1), timeout_s=30))
            finally:
                await provider.aclose()
            assert len(listener.received) == 1
            return caught.value

    error = asyncio.run(ask())
    assert (error.scope, error.about_input, error.may_be_billed) == (Scope.ROW, True, False)


@pytest.mark.parametrize("kind", ANSWERS)
def test_a_proxy_is_told_the_whole_address_and_its_own_login(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask() -> tuple[list[bytes], int]:
        async with listening(kind) as listener:
            there = listener.url.removesuffix(PLACES[kind]).removeprefix("http://")
            monkeypatch.setenv("http_proxy", f"http://name:word@{there}")
            monkeypatch.setenv("no_proxy", "")
            make = OpenAIProvider if kind == "openai" else AnthropicProvider
            provider = make(
                f"http://llm.house.example{PLACES[kind]}",
                SecretStr(KEY),
                query={"v": "1"},
                use_env_proxy=True,
            )
            try:
                for _ in range(2):
                    await provider.complete(CompletionRequest("a", "p", Sampling(max_tokens=1), timeout_s=30))
            finally:
                await provider.aclose()
            return [head for head, _ in listener.received], len(set(listener.connections))

    heads, connections = asyncio.run(ask())
    assert connections == 1
    for head in heads:
        line, *headers = head.split(b"\r\n")
        path = f"{PLACES[kind]}{PATHS[kind]}?v=1"
        assert line == f"POST http://llm.house.example{path} HTTP/1.1".encode()
        assert b"Host: llm.house.example" in headers
        assert headers.count(b"Proxy-Authorization: Basic bmFtZTp3b3Jk") == 1


def test_the_types_of_answers_are_imported_when_they_are_asked_for() -> None:
    script = """
import sys
import genworker.providers.openai as ours
few = sum(name.startswith("openai.types.") for name in sys.modules)
import openai, openai.types.responses
from openai.types import CompletionUsage, chat
assert few < 200, few
assert CompletionUsage(completion_tokens=1, prompt_tokens=2, total_tokens=3).total_tokens == 3
assert chat.ChatCompletion is openai.types.chat.ChatCompletion
assert openai.types.responses.Response.__module__ == "openai.types.responses.response"
assert type(openai.types) is type(openai)
try:
    openai.types.Nothing
except AttributeError:
    print("as ever")
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ran.stdout == "as ever\n", ran.stderr
