"""The local LLM server: what the SDKs see of it, and what it counts."""

from __future__ import annotations

import asyncio
import gzip
import json
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal

import anthropic
import openai
import pytest
from anthropic import AsyncAnthropic
from anthropic.types import Message
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion

from support.llm_server import (
    Behaviour,
    Fault,
    Limits,
    LLMServer,
    Options,
    ParsedRequest,
    Record,
    Rule,
    fail_each_first,
    fail_first,
    outage,
    parse_arguments,
    prompt_sha256,
    spawn,
)
from support.llm_server_options import Limiter, latency_of

KEY = "sk-secret-of-the-test"
QUICK = Options(words=20)


def openai_client(server: LLMServer, timeout: float = 5.0) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=server.openai_url, api_key=KEY, max_retries=0, timeout=timeout)


def anthropic_client(server: LLMServer, timeout: float = 5.0) -> AsyncAnthropic:
    return AsyncAnthropic(base_url=server.anthropic_url, api_key=KEY, max_retries=0, timeout=timeout)


async def ask_openai(
    client: AsyncOpenAI, prompt: str, model: str = "gpt-x", seed: int | None = None
) -> ChatCompletion:
    return await client.chat.completions.create(
        model=model,
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}],
        seed=seed,
    )


async def ask_anthropic(client: AsyncAnthropic, prompt: str, model: str = "claude-x") -> Message:
    return await client.messages.create(
        model=model, system="Be brief.", max_tokens=1000, messages=[{"role": "user", "content": prompt}]
    )


def body_of(prompt: str, **more: object) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": prompt}], **more}).encode()


def post(body: bytes, path: str = "/v1/chat/completions", headers: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nhost: x\r\n{headers}content-length: {len(body)}\r\n\r\n".encode() + body


class Raw:
    """A connection without any library between the test and the bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, server: LLMServer) -> Raw:
        return cls(*await asyncio.open_connection("127.0.0.1", server.port))

    async def close(self) -> None:
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in head[1:] if line)
        body = await self.reader.readexactly(int(headers["content-length"]))
        return int(head[0].split(" ")[1]), headers, body

    async def ask(self, prompt: str, **more: object) -> tuple[int, dict[str, str], bytes]:
        self.writer.write(post(body_of(prompt, **more)))
        return await self.answer()


def run_raw(options: Options, use: Callable[[LLMServer, Raw], Awaitable[None]]) -> LLMServer:
    """Use one raw connection to a server with these options."""

    async def main() -> LLMServer:
        async with LLMServer(options) as server:
            raw = await Raw.open(server)
            try:
                await use(server, raw)
            finally:
                await raw.close()
        return server

    return asyncio.run(main())


def run_burst(options: Options, count: int) -> LLMServer:
    """Send so many requests at once, each on its own connection."""

    async def main() -> LLMServer:
        async with LLMServer(options) as server:
            raws = [await Raw.open(server) for _ in range(count)]
            try:
                for number, raw in enumerate(raws):
                    raw.writer.write(post(body_of(f"p{number}")))
                for raw in raws:
                    await raw.answer()
            finally:
                for raw in raws:
                    await raw.close()
        return server

    return asyncio.run(main())


def seconds_of(record: Record) -> float:
    assert record.answered is not None
    return record.answered - record.received


def run_openai(options: Options, use: Callable[[LLMServer, AsyncOpenAI], Awaitable[None]]) -> LLMServer:
    """Use OpenAI's SDK with a server with these options."""

    async def main() -> LLMServer:
        async with LLMServer(options) as server, openai_client(server) as client:
            await use(server, client)
        return server

    return asyncio.run(main())


def run_anthropic(options: Options, use: Callable[[LLMServer, AsyncAnthropic], Awaitable[None]]) -> LLMServer:
    """Use Anthropic's SDK with a server with these options."""

    async def main() -> LLMServer:
        async with LLMServer(options) as server, anthropic_client(server) as client:
            await use(server, client)
        return server

    return asyncio.run(main())


# Answers and counts


def test_openai_answer() -> None:
    async def use(server: LLMServer, client: AsyncOpenAI) -> None:
        raw = await client.chat.completions.with_raw_response.create(
            model="gpt-x", messages=[{"role": "user", "content": "Tell me a story."}]
        )
        answer = raw.parse()
        choice = answer.choices[0]
        assert choice.finish_reason == "stop"
        assert choice.message.content is not None
        assert 250 < len(choice.message.content.split()) < 350
        assert raw.headers["x-request-id"].startswith("req_")
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == 4
        assert answer.usage.completion_tokens == round(len(choice.message.content.split()) * 1.3)
        assert answer.usage.prompt_tokens_details is not None
        assert answer.usage.prompt_tokens_details.cached_tokens == 0

    server = run_openai(Options(), use)
    assert (server.received, server.requests, server.paid, server.paid_twice) == (1, 1, 1, 0)
    assert server.prompt_counts == {prompt_sha256("Tell me a story."): 1}
    record = server.records[0]
    assert (record.outcome, record.status, record.paid, record.authorized) == ("ok", 200, True, True)
    assert record.prompt == "Tell me a story."
    assert record.answered is not None
    assert record.answered >= record.received


def test_anthropic_answer() -> None:
    async def use(server: LLMServer, client: AsyncAnthropic) -> None:
        answer = await ask_anthropic(client, "Tell me a story.")
        assert answer.stop_reason == "end_turn"
        assert answer.content[0].type == "text"
        assert 250 < len(answer.content[0].text.split()) < 350
        assert answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0) == 7
        assert answer.usage.cache_read_input_tokens == 3
        assert answer._request_id is not None

    server = run_anthropic(Options(cached_share=0.5), use)
    assert server.records[0].prompt == "Be brief.\n\nTell me a story."
    assert server.records[0].authorized


def test_text_depends_on_model_messages_and_seed_alone() -> None:
    texts: list[list[str | None]] = []

    async def use(server: LLMServer, client: AsyncOpenAI) -> None:
        asked = [("a", "m", None), ("b", "m", None), ("a", "n", None), ("a", "m", 1), ("a", "m", 2)]
        answers = [await ask_openai(client, prompt, model, seed) for prompt, model, seed in asked]
        texts.append([answer.choices[0].message.content for answer in answers])

    for _ in range(2):
        server = run_openai(QUICK, use)
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 5
    assert server.paid_twice == 0
    assert max(server.prompt_counts.values()) == 4


def test_evaluations_end_with_a_score() -> None:
    scores: set[str] = set()

    async def use(server: LLMServer, client: AsyncOpenAI) -> None:
        for number in range(30):
            text = (await ask_openai(client, f"Essay {number}. End with score: N")).choices[0].message.content
            assert text is not None
            label, _, score = text.splitlines()[-1].partition(": ")
            assert label == "SCORE"
            scores.add(score)
        plain = (await ask_openai(client, "Write an essay.")).choices[0].message.content
        assert "SCORE" not in (plain or "")

    run_openai(QUICK, use)
    assert len(scores) > 5
    assert scores <= set("0123456789")


def test_reply_hook() -> None:
    def reply(request: ParsedRequest) -> str:
        return f"{request.api} {request.model} {request.messages[-1][1]}"

    async def use(server: LLMServer, client: AsyncOpenAI) -> None:
        assert (await ask_openai(client, "hi")).choices[0].message.content == "openai gpt-x hi"

    run_openai(Options(reply=reply), use)


def test_in_flight_and_latency() -> None:
    server = run_burst(Options(words=20, latency_s=0.2), 10)
    assert server.max_in_flight == 10
    assert server.in_flight == 0
    assert [record.in_flight for record in server.records] == list(range(1, 11))
    assert all(seconds_of(record) > 0.19 for record in server.records)


def test_a_vanished_client_has_paid_unless_told_otherwise() -> None:
    async def use(server: LLMServer, raw: Raw) -> None:
        raw.writer.write(post(body_of("p")))
        while not server.received:
            await asyncio.sleep(0.001)
        assert server.in_flight == 1
        await raw.close()
        while server.in_flight:
            await asyncio.sleep(0.001)

    server = run_raw(Options(latency_s=5), use)
    assert (server.received, server.paid, server.requests) == (1, 1, 0)
    assert server.records[0].outcome == "abandoned"
    server = run_raw(Options(latency_s=5, bill_abandoned=False), use)
    assert (server.received, server.paid, server.requests, dict(server.prompt_counts)) == (1, 0, 0, {})


def test_half_a_request_is_not_counted() -> None:
    async def use(server: LLMServer, raw: Raw) -> None:
        raw.writer.write(post(body_of("p"))[:-5])
        await asyncio.sleep(0.02)

    assert run_raw(QUICK, use).received == 0


def test_stats_records_and_reset_over_http() -> None:
    async def use(server: LLMServer, raw: Raw) -> None:
        await raw.ask("p")
        raw.writer.write(b"GET /stats HTTP/1.1\r\n\r\n")
        stats = json.loads((await raw.answer())[2])
        assert (stats["paid"], stats["requests"], stats["outcomes"]) == (1, 1, {"ok": 1})
        raw.writer.write(b"GET /records HTTP/1.1\r\n\r\n")
        assert json.loads((await raw.answer())[2])[0]["prompt"] == "p"
        raw.writer.write(post(b"", "/reset"))
        await raw.answer()
        assert server.stats()["received"] == 0

    run_raw(QUICK, use)


# HTTP


def test_pipelined_and_dribbled_requests_are_answered_in_order() -> None:
    async def use(server: LLMServer, raw: Raw) -> None:
        raw.writer.write(b"".join(post(body_of(f"p{number}")) for number in range(5)))
        ids = [json.loads((await raw.answer())[2])["id"][-2:] for _ in range(5)]
        assert ids == ["01", "02", "03", "04", "05"]
        for byte in post(body_of("slow")):
            raw.writer.write(bytes([byte]))
            await raw.writer.drain()
        assert (await raw.answer())[0] == 200

    for latency in (0.0, 0.01):
        assert run_raw(Options(words=20, latency_s=latency), use).connections == 1


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"POST /v1/chat/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: -1\r\n\r\n", 400),
        (b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 999999999999\r\n\r\n", 413),
        (b"hello\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nx: " + b"a" * 70_000, 431),
    ],
)
def test_bad_requests_close_the_connection(sent: bytes, status: int) -> None:
    async def use(server: LLMServer, raw: Raw) -> None:
        raw.writer.write(sent)
        assert (await raw.answer())[0] == status
        assert await raw.reader.read() == b""

    assert run_raw(QUICK, use).received == 0


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b"{}", b'{"model": "m", "messages": []}', body_of("p", stream=True)]
)
def test_bad_bodies_get_400(body: bytes) -> None:
    async def use(server: LLMServer, raw: Raw) -> None:
        raw.writer.write(post(body))
        assert (await raw.answer())[0] == 400

    server = run_raw(QUICK, use)
    assert (server.received, server.paid, dict(server.refused)) == (1, 0, {"bad-request": 1})


def test_other_paths_and_connection_close() -> None:
    async def use(server: LLMServer, raw: Raw) -> None:
        raw.writer.write(b"GET /nothing HTTP/1.1\r\nconnection: close\r\n\r\n")
        status, headers, _ = await raw.answer()
        assert (status, headers["connection"]) == (404, "close")
        assert await raw.reader.read() == b""

    run_raw(QUICK, use)


# Faults


OPENAI_ERRORS = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    408: openai.APIStatusError,
    409: openai.ConflictError,
    413: openai.APIStatusError,
    422: openai.UnprocessableEntityError,
    429: openai.RateLimitError,
    500: openai.InternalServerError,
    502: openai.InternalServerError,
    503: openai.InternalServerError,
    529: openai.InternalServerError,
}


def test_statuses_through_both_sdks() -> None:
    def script(request: ParsedRequest) -> Behaviour:
        return Behaviour(request.messages[-1][1])

    async def main() -> LLMServer:
        async with (
            LLMServer(Options(script=script)) as server,
            openai_client(server) as first,
            anthropic_client(server) as second,
        ):
            for status, error in OPENAI_ERRORS.items():
                with pytest.raises(error) as seen:
                    await ask_openai(first, str(status))
                assert isinstance(seen.value, openai.APIStatusError)
                assert seen.value.status_code == status
                assert seen.value.request_id is not None
                assert seen.value.type
                with pytest.raises(anthropic.APIStatusError) as raised:
                    await ask_anthropic(second, str(status))
                assert raised.value.status_code == status
                assert raised.value.request_id is not None
                assert isinstance(raised.value.body, dict)
                assert raised.value.body["type"] == "error"
                assert raised.value.body["error"]["type"]
            with pytest.raises(openai.RateLimitError) as quota:
                await ask_openai(first, "insufficient_quota")
            assert quota.value.code == "insufficient_quota"
            with pytest.raises(anthropic.BadRequestError, match="credit balance"):
                await ask_anthropic(second, "insufficient_quota")
            with pytest.raises(anthropic.APIStatusError) as overloaded:
                await ask_anthropic(second, "529")
            assert "overloaded_error" in str(overloaded.value)
            with pytest.raises(openai.AuthenticationError, match=KEY):
                await ask_openai(first, "401-echo")
            with pytest.raises(anthropic.AuthenticationError, match=KEY):
                await ask_anthropic(second, "401-echo")
            with pytest.raises(openai.BadRequestError) as long:
                await ask_openai(first, "400/context_length_exceeded")
            assert long.value.code == "context_length_exceeded"
        return server

    server = asyncio.run(main())
    assert server.paid == server.requests == 0
    assert server.refused["429"] == 2
    assert server.statuses[429] == 3
    assert sum(server.refused.values()) == server.received


@pytest.mark.parametrize(
    "kind", ["reset", "reset-mid-body", "cut", "half-json", "bad-utf8", "html=502", "html"]
)
def test_broken_answers_are_errors_for_both_sdks(kind: str) -> None:
    async def main() -> LLMServer:
        async with (
            LLMServer(Options(rules=(Rule(kind),))) as server,
            openai_client(server) as first,
            anthropic_client(server) as second,
        ):
            for call in (ask_openai(first, "p"), ask_anthropic(second, "p")):
                try:
                    answer: object = await call
                except (openai.OpenAIError, anthropic.AnthropicError, ValueError):
                    continue
                assert kind == "html"  # the SDKs hand over a string for a page with status 200
                assert not isinstance(answer, ChatCompletion | Message)
        return server

    server = asyncio.run(main())
    assert server.received == 2
    assert server.paid == (0 if kind in ("reset", "html=502", "html") else 2)
    assert server.requests == (2 if kind in ("half-json", "bad-utf8") else 0)
    assert server.in_flight == 0


def scripted(request: ParsedRequest) -> Behaviour:
    """The prompt names its own fault."""
    return Behaviour(request.messages[-1][1])


def test_odd_answers_through_openai() -> None:
    async def use(server: LLMServer, client: AsyncOpenAI) -> None:
        async def ask(kind: str) -> tuple[ChatCompletion, str | None, str]:
            answer = await ask_openai(client, kind)
            return answer, answer.choices[0].message.content, answer.choices[0].finish_reason

        assert (await ask("empty"))[1:] == ("", "stop")
        assert (await ask("null"))[1:] == (None, "stop")
        assert (await ask("filter"))[1:] == ("", "content_filter")
        assert (await ask_openai(client, "no-content")).choices == []
        answer, text, finish = await ask("length")
        assert (bool(text), finish) == (True, "length")
        answer, text, finish = await ask("refusal")
        assert (text, bool(answer.choices[0].message.refusal)) == (None, True)
        assert (await ask("no-usage"))[0].usage is None
        assert "\ud800" in ((await ask("surrogate"))[1] or "")
        assert "\r\n" in ((await ask("crlf"))[1] or "")
        extra = (await ask("extra-fields"))[0].model_dump()
        assert extra["x_new"] == "unknown"
        assert extra["choices"][0]["message"]["x_new"]
        assert (await ask("thinking"))[0].choices[0].message.model_dump()["reasoning_content"]
        assert len((await ask("huge=2"))[1] or "") > 1_900_000

    server = run_openai(Options(script=scripted, words=100), use)
    assert server.received == server.paid == server.requests == 12


def test_odd_answers_through_anthropic() -> None:
    async def use(server: LLMServer, client: AsyncAnthropic) -> None:
        async def ask(kind: str) -> tuple[str, str | None]:
            answer = await ask_anthropic(client, kind)
            assert answer.content[-1].type == "text"
            return answer.content[-1].text, answer.stop_reason

        assert await ask("empty") == ("", "end_turn")
        assert await ask("filter") == ("", "refusal")
        assert (await ask_anthropic(client, "null")).content is None
        assert (await ask_anthropic(client, "no-content")).content == []
        assert (await ask("length"))[1] == "max_tokens"
        assert (await ask("refusal"))[1] == "refusal"
        assert "\ud800" in (await ask("surrogate"))[0]
        assert "\r\n" in (await ask("crlf"))[0]
        assert "usage" not in (await ask_anthropic(client, "no-usage")).model_dump(exclude_unset=True)
        assert (await ask_anthropic(client, "extra-fields")).model_dump()["x_new"] == "unknown"
        assert [block.type for block in (await ask_anthropic(client, "thinking")).content] == [
            "thinking",
            "text",
        ]
        assert len((await ask("huge=2"))[0]) > 1_900_000

    server = run_anthropic(Options(script=scripted, words=100), use)
    assert server.received == server.paid == server.requests == 12


def test_max_tokens_are_honoured_on_demand() -> None:
    async def use(server: LLMServer, raw: Raw) -> None:
        answer = json.loads((await raw.ask("p", max_tokens=50))[2])
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] <= 50

    run_raw(Options(honour_max_tokens=True), use)


def test_bytes_of_broken_answers() -> None:
    async def use(server: LLMServer, raw: Raw) -> None:
        status, headers, body = await raw.ask("half-json")
        assert (status, headers["content-type"]) == (200, "application/json")
        with pytest.raises(ValueError, match="Unterminated"):
            json.loads(body)
        with pytest.raises(UnicodeDecodeError):
            (await raw.ask("bad-utf8"))[2].decode()
        for kind, expected in (("html", 200), ("html=502", 502)):
            status, headers, body = await raw.ask(kind)
            assert (status, headers["content-type"]) == (expected, "text/html")
            assert b"<html>" in body
        status, headers, body = await raw.ask("gzip-bomb=3")
        assert headers["content-encoding"] == "gzip"
        assert len(body) < 100_000
        assert len(gzip.decompress(body)) > 3_000_000
        for kind, expected in (("redirect=81", 302), ("redirect-307=81", 307)):
            status, headers, _ = await raw.ask(kind)
            assert (status, headers["location"]) == (expected, "http://127.0.0.1:81/v1/chat/completions")
        start = time.monotonic()
        status, _, body = await raw.ask("drip=0.1")
        assert json.loads(body)
        assert time.monotonic() - start > 0.08

    assert run_raw(Options(script=scripted), use).connections == 1


@pytest.mark.parametrize(
    ("kind", "seen"),
    [("reset", "reset"), ("reset-mid-body", "reset"), ("cut", "short"), ("hang=0.05", "short")],
)
def test_connections_that_break(kind: str, seen: str) -> None:
    async def use(server: LLMServer, raw: Raw) -> None:
        with pytest.raises(ConnectionResetError if seen == "reset" else asyncio.IncompleteReadError):
            await raw.ask(kind)

    server = run_raw(Options(script=scripted), use)
    assert server.records[0].outcome == kind.partition("=")[0]
    assert server.records[0].paid is (kind in ("reset-mid-body", "cut"))
    assert (server.requests, server.in_flight) == (0, 0)


@pytest.mark.parametrize(("kind", "paid"), [("hang", 0), ("stall", 1)])
def test_a_hang_ends_with_the_client(kind: str, paid: int) -> None:
    async def use(server: LLMServer, client: AsyncOpenAI) -> None:
        with pytest.raises(openai.APITimeoutError):
            await ask_openai(client.with_options(timeout=0.1), kind)
        while server.in_flight:
            await asyncio.sleep(0.001)

    server = run_openai(Options(script=scripted), use)
    assert (server.paid, server.requests) == (paid, 0)


def test_a_server_stops_under_hanging_requests() -> None:
    async def main() -> None:
        async with LLMServer(Options(rules=(Rule("hang"),))) as server:
            raw = await Raw.open(server)
            raw.writer.write(post(body_of("p")))
            while not server.received:
                await asyncio.sleep(0.001)
        assert await raw.reader.read() == b""
        await raw.close()

    asyncio.run(main())


def test_hints() -> None:
    wanted = [
        "429",
        "429@retry-after=2",
        "429@retry-after-date=90",
        "429@retry-after-ms=0.15",
        "429@reset=90",
    ]

    async def use(server: LLMServer, raw: Raw) -> None:
        none, seconds, date, milliseconds, reset = [(await raw.ask(fault))[1] for fault in wanted]
        assert not [name for name in none if "retry" in name or "reset" in name]
        assert seconds["retry-after"] == "2"
        assert 85 < (parsedate_to_datetime(date["retry-after"]) - datetime.now(UTC)).total_seconds() <= 91
        assert (milliseconds["retry-after-ms"], "retry-after" in milliseconds) == ("150", False)
        assert (reset["x-ratelimit-reset-requests"], "retry-after" in reset) == ("1m30s", False)
        assert (await raw.ask("429@reset-tokens=7.25"))[1]["x-ratelimit-reset-tokens"] == "7.25s"
        assert (await raw.ask("503@reset=0.006"))[1]["x-ratelimit-reset-requests"] == "6ms"
        assert (await raw.ask("429@reset=7205"))[1]["x-ratelimit-reset-requests"] == "2h0m5s"
        raw.writer.write(post(body_of("429@reset=90", max_tokens=5), "/v1/messages"))
        until = datetime.fromisoformat((await raw.answer())[1]["anthropic-ratelimit-requests-reset"])
        assert 85 < (until - datetime.now(UTC)).total_seconds() <= 91

    run_raw(Options(script=scripted), use)


def test_rules() -> None:
    rules = (
        fail_first(2, "503"),
        fail_each_first(1, "429@retry-after=1"),
        Rule("400", substring="poison"),
        Rule("404", model="gone"),
        Rule("529", api="anthropic"),
        Rule("401", path_prefix="/other"),
        Rule(text="as told", substring="say", headers=(("x-told", "yes"),)),
    )

    async def use(server: LLMServer, raw: Raw) -> None:
        async def status(prompt: str, path: str = "/v1/chat/completions", **more: object) -> int:
            raw.writer.write(post(body_of(prompt, **more), path))
            return (await raw.answer())[0]

        assert [await status("a") for _ in range(3)] == [503, 503, 200]
        assert [await status("b") for _ in range(2)] == [429, 200]
        assert [await status("poison") for _ in range(3)] == [429, 400, 400]
        assert [await status("a", model="gone") for _ in range(2)] == [429, 404]
        assert [await status("c", "/v1/messages", max_tokens=9) for _ in range(2)] == [429, 529]
        assert [await status("d", "/other/chat/completions") for _ in range(2)] == [429, 401]
        await raw.ask("say")
        _, headers, body = await raw.ask("say")
        assert headers["x-told"] == "yes"
        assert json.loads(body)["choices"][0]["message"]["content"] == "as told"

    run_raw(Options(rules=rules, words=20), use)


def test_an_outage_starts_with_the_first_request() -> None:
    async def use(server: LLMServer, raw: Raw) -> None:
        await asyncio.sleep(0.1)
        assert (await raw.ask("p"))[0] == 503
        await asyncio.sleep(0.1)
        assert (await raw.ask("p"))[0] == 200

    run_raw(Options(rules=(outage(0.1),), words=20), use)


def outcomes_with(seed: int) -> list[str]:
    async def use(server: LLMServer, raw: Raw) -> None:
        for number in range(200):
            while (await raw.ask(f"p{number}"))[0] != 200:
                pass

    rates = {"500": 0.2, "429@retry-after=1": 0.1}
    server = run_raw(Options(failure_rates=rates, seed=seed, words=20), use)
    assert server.paid == server.requests == 200
    assert 30 < server.refused["500"] < 90
    assert 10 < server.refused["429"] < 55
    return [record.outcome for record in server.records]


def test_failure_rates_depend_on_the_seed_alone() -> None:
    assert outcomes_with(1) == outcomes_with(1)
    assert outcomes_with(1) != outcomes_with(2)


def test_lognormal_latency_belongs_to_the_prompt() -> None:
    seen: list[ParsedRequest] = []

    def script(request: ParsedRequest) -> None:
        seen.append(request)

    options = Options(words=20, latency_s=0.05, latency_sigma=0.8, script=script)
    server = run_burst(options, 40)
    wanted = [latency_of(options, request) for request in seen]
    assert all(seconds_of(record) > want - 0.005 for record, want in zip(server.records, wanted, strict=True))
    assert max(wanted) > 5 * min(wanted)
    assert 0.03 < sorted(wanted)[20] < 0.08
    run_burst(options, 40)
    assert [latency_of(options, request) for request in seen[40:]] == wanted


@pytest.mark.parametrize("bad", ["nonsense", "429@sometimes=1", "redirect", "42"])
def test_unknown_faults_are_refused_early(bad: str) -> None:
    with pytest.raises(ValueError, match=r"unknown|redirect"):
        Fault.parse(bad)
    with pytest.raises(ValueError, match=r"unknown|redirect"):
        Rule(bad)
    with pytest.raises(ValueError, match=r"unknown|redirect"):
        Options(failure_rates={bad: 0.1})


# Limits


def test_requests_a_minute() -> None:
    async def use(server: LLMServer, raw: Raw) -> None:
        answers = [await raw.ask(f"p{number}") for number in range(12)]
        refused = [headers for status, headers, _ in answers if status == 429]
        assert [status for status, _, _ in answers[:5]] == [200] * 5
        assert len(refused) >= 5
        assert {headers["retry-after"] for headers in refused} == {"1"}
        assert json.loads(answers[-1][2])["error"]["code"] == "rate_limit_exceeded"
        await asyncio.sleep(0.25)
        assert (await raw.ask("again"))[0] == 200

    server = run_raw(Options(words=20, limits=Limits(rpm=300, burst=5)), use)
    assert server.refused["limit:requests"] == server.statuses[429]
    assert all(record.attempt == 1 for record in server.records)


def test_tokens_a_minute_and_the_exact_wait() -> None:
    limits = Limits(tpm=240_000, token_burst=1000, hint="retry-after-ms")

    async def use(server: LLMServer, raw: Raw) -> None:
        waits: list[float] = []
        for number in range(6):
            while True:
                status, headers, body = await raw.ask(f"p{number}")
                if status == 200:
                    break
                assert json.loads(body)["error"]["type"] == "tokens"
                waits.append(int(headers["retry-after-ms"]) / 1000)
                await asyncio.sleep(waits[-1])
        assert waits
        assert sum(waits) < 2

    server = run_raw(Options(limits=limits), use)
    assert server.refused["limit:tokens"] <= 6


def test_a_request_larger_than_the_token_bucket_passes_when_it_is_full() -> None:
    async def use(server: LLMServer, raw: Raw) -> None:
        assert [(await raw.ask("p"))[0] for _ in range(2)] == [200, 429]

    run_raw(Options(limits=Limits(tpm=600, token_burst=50)), use)


def test_forty_at_once() -> None:
    server = run_burst(Options(words=20, latency_s=0.3, limits=Limits(max_concurrent=40)), 60)
    assert (server.max_in_flight, server.refused["limit:concurrency"], server.paid) == (40, 20, 40)
    assert server.statuses == {200: 40, 429: 20}


def test_slowing_down_without_refusing() -> None:
    server = run_burst(Options(words=20, latency_s=0.05, limits=Limits(slow_above=4)), 16)
    assert not server.refused
    assert seconds_of(server.records[0]) < seconds_of(server.records[15])
    assert seconds_of(server.records[15]) > 0.19


@pytest.mark.parametrize(("window", "taken"), [("bucket", 11), ("sliding", 10), ("fixed", 20)])
def test_a_limit_may_be_counted_in_three_ways(
    window: Literal["bucket", "sliding", "fixed"], taken: int
) -> None:
    limiter = Limiter(Limits(rpm=600, burst=10, window=window))
    moments = [0.95] * 15 + [1.05] * 15
    answers = [limiter.refuses(now, now, 0, lambda: 0) for now in moments]
    assert answers.count(None) == taken


def test_announced_limits() -> None:
    limits = Limits(rpm=600, burst=10, tpm=60_000, announce=True, schedule=((0.2, 0.5), (0.4, 2.0)))

    async def use(server: LLMServer, raw: Raw) -> None:
        headers = (await raw.ask("p"))[1]
        assert headers["x-ratelimit-limit-requests"] == "600"
        assert headers["x-ratelimit-remaining-requests"] == "540"
        assert headers["x-ratelimit-reset-requests"].endswith("ms")
        assert headers["x-ratelimit-limit-tokens"] == "60000"
        assert int(headers["x-ratelimit-remaining-tokens"]) < 60_000
        raw.writer.write(post(body_of("p", max_tokens=5), "/v1/messages"))
        headers = (await raw.answer())[1]
        assert headers["anthropic-ratelimit-requests-limit"] == "600"
        assert int(headers["anthropic-ratelimit-requests-remaining"]) < 600
        assert datetime.fromisoformat(headers["anthropic-ratelimit-tokens-reset"]).tzinfo is not None
        assert "anthropic-ratelimit-output-tokens-remaining" in headers
        await asyncio.sleep(0.2)
        assert (await raw.ask("p"))[1]["x-ratelimit-limit-requests"] == "300"
        await asyncio.sleep(0.2)
        assert (await raw.ask("p"))[1]["x-ratelimit-limit-requests"] == "1200"
        for _ in range(40):
            status, headers, _ = await raw.ask("p")
        assert (status, headers["x-ratelimit-remaining-requests"]) == (429, "0")

    run_raw(Options(words=20, limits=limits), use)


def test_announcing_without_enforcing() -> None:
    async def use(server: LLMServer, raw: Raw) -> None:
        for _ in range(20):
            status, headers, _ = await raw.ask("p")
            assert status == 200
        assert headers["x-ratelimit-remaining-requests"] == "0"

    run_raw(Options(words=20, limits=Limits(rpm=60, burst=5, announce=True, enforce=False)), use)


# Ways to run it


def ask(client: openai.OpenAI) -> None:
    client.chat.completions.create(model="m", messages=[{"role": "user", "content": "p"}])


def test_in_a_thread_while_the_test_blocks() -> None:
    threads = threading.active_count()
    with LLMServer(QUICK).in_thread() as server:
        client = openai.OpenAI(base_url=server.openai_url, api_key=KEY, max_retries=0)
        ask(client)
        server.wait_until(lambda it: it.requests == 1)
        with pytest.raises(TimeoutError):
            server.wait_until(lambda it: it.requests == 2, timeout_s=0.01)
        server.reconfigure(Options(rules=(Rule("503"),)))
        with client, pytest.raises(openai.InternalServerError):
            ask(client)
        assert (server.paid, server.received) == (1, 2)
        server.reset()
        assert server.received == 0
    assert threading.active_count() == threads


def test_a_thread_reports_why_it_cannot_start() -> None:
    with (
        LLMServer().in_thread() as server,
        pytest.raises(OSError, match="in use"),
        LLMServer(port=server.port).in_thread(),
    ):
        pass


def test_stopped_and_started_again_on_the_same_port() -> None:
    async def main() -> None:
        server = LLMServer(QUICK)
        async with server:
            raw = await Raw.open(server)
            await raw.ask("p")
            await raw.close()
        port = server.port
        async with server:
            assert server.port == port
            raw = await Raw.open(server)
            await raw.ask("p")
            await raw.close()
        assert server.paid_twice == 1

    asyncio.run(main())


def test_as_a_process() -> None:
    with spawn("--words", "20", "--rate", "500@retry-after=1=1", "--seed", "3") as remote:
        client = openai.OpenAI(base_url=remote.openai_url, api_key=KEY, max_retries=0)
        with client, pytest.raises(openai.InternalServerError):
            ask(client)
        assert remote.stats()["refused"] == {"500": 1}
        assert remote.records()[0]["outcome"] == "500"
        remote.reset()
        assert remote.stats()["received"] == 0


def test_the_process_leaves_cleanly() -> None:
    program = Path(__file__).parents[1] / "support" / "llm_server.py"
    command = [sys.executable, "-W", "error", str(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["port"] > 0
        process.terminate()
        _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")


def test_command_line() -> None:
    line = [
        *("--port", "7", "--latency", "0.8", "--sigma", "0.5", "--rpm", "1200", "--hint", "reset"),
        *("--max-concurrent", "40", "--schedule", "10=0.5,20=1", "--rate", "500=0.05,429@retry-after=1=0.1"),
        *("--rule", '{"fault": "503", "until_s": 60}'),
    ]
    assert parse_arguments(line) == (
        7,
        Options(
            latency_s=0.8,
            latency_sigma=0.5,
            limits=Limits(rpm=1200, hint="reset", max_concurrent=40, schedule=((10, 0.5), (20, 1))),
            failure_rates={"500": 0.05, "429@retry-after=1": 0.1},
            rules=(Rule("503", until_s=60),),
        ),
    )


def test_the_server_keeps_no_key() -> None:
    async def use(server: LLMServer, client: AsyncOpenAI) -> None:
        await ask_openai(client, "p")

    server = run_openai(QUICK, use)
    record: Record = server.records[0]
    kept: Any = [record, server.stats()]
    assert KEY not in repr(kept)
