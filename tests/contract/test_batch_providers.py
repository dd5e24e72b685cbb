"""One suite for every endpoint that takes batches: the real SDKs over a real socket, and the scripted one."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from genworker.core.completion import CompletionRequest, FinishReason, Sampling
from genworker.errors import (
    MalformedAnswerError,
    ProviderError,
    ProviderUnavailableError,
    RateLimitedError,
    RequestRejectedError,
)
from genworker.ports import BatchProvider
from genworker.providers.anthropic import AnthropicProvider
from genworker.providers.anthropic_batches import AnthropicBatches
from genworker.providers.openai import OpenAIProvider
from genworker.providers.openai_batches import OpenAIBatches
from genworker.providers.scripted import ScriptedBatches
from support.batch_server import BatchServer

KINDS = ("openai", "anthropic", "scripted")
SERVED = ("openai", "anthropic")


@pytest.fixture
def server() -> Iterator[BatchServer]:
    with BatchServer(work_s=60.0).in_thread() as running:
        assert isinstance(running, BatchServer)
        yield running


_opened: list[BatchProvider] = []


def run(story: Callable[[], Coroutine[None, None, None]]) -> None:
    """Run a test's story, and close what it opened."""

    async def whole() -> None:
        try:
            await story()
        finally:
            while _opened:
                await _opened.pop().aclose()

    asyncio.run(whole())


def make(kind: str, server: BatchServer, key: str = "key-one", timeout_s: float = 5.0) -> BatchProvider:
    secret = SecretStr(key)
    provider: BatchProvider
    if kind == "openai":
        live = OpenAIProvider(server.openai_url, secret)
        provider = OpenAIBatches(live, timeout_s=timeout_s, is_free_when_lapsed=True)
    elif kind == "anthropic":
        other = AnthropicProvider(server.anthropic_url, secret)
        provider = AnthropicBatches(other, timeout_s=timeout_s, is_free_when_lapsed=True)
    else:
        provider = ScriptedBatches()
    _opened.append(provider)
    return provider


def request(text: str) -> CompletionRequest:
    return CompletionRequest("model-a", text, Sampling(max_tokens=500, seed=3), timeout_s=5.0)


def write(path: Path, provider: BatchProvider, texts: list[str]) -> Path:
    lines = [provider.encode(f"gw-abc-{number}", request(text)) for number, text in enumerate(texts)]
    assert all(b"\n" not in line for line in lines)
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


async def submit(provider: BatchProvider, path: Path, count: int) -> str:
    file_id = await provider.upload(path, "genworker-abc.jsonl") if provider.wants_file else None
    return await provider.create(path, count, file_id, "abc")


async def results(provider: BatchProvider, batch_id: str, path: Path) -> dict[str, object]:
    look = await provider.look(batch_id)
    assert look.is_final
    found: dict[str, object] = {}
    for source in look.results.values():
        sink = io.BytesIO()
        await provider.fetch(source, sink, path)
        for line in sink.getvalue().split(b"\n"):
            if line.strip():
                result = provider.decode(line)
                assert result is not None
                found[result.custom_id] = result.completion or result.error or "lapsed"
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_answers_what_live_calls_would(kind: str, server: BatchServer, tmp_path: Path) -> None:
    texts = ["one", "two\u2028lines", "three\nlines"]

    async def go() -> None:
        provider = make(kind, server)
        path = write(tmp_path / "requests.jsonl", provider, texts)
        batch_id = await submit(provider, path, 3)
        if kind != "scripted":
            look = await provider.look(batch_id)
            assert not look.is_final
            server.advance(61)
        found = await results(provider, batch_id, path)
        assert sorted(found) == ["gw-abc-0", "gw-abc-1", "gw-abc-2"]
        live = make_live(kind, server)
        for number, text in enumerate(texts):
            answer = await live.complete(request(text))
            batched = found[f"gw-abc-{number}"]
            assert getattr(batched, "text", None) == answer.text
            assert getattr(batched, "usage", None) == answer.usage
            assert getattr(batched, "finish_reason", None) is FinishReason.STOP
        await live.aclose()

    def make_live(kind: str, server: BatchServer):  # type: ignore[no-untyped-def]
        from genworker.providers.scripted import ScriptedProvider

        if kind == "openai":
            return OpenAIProvider(server.openai_url, SecretStr("key-one"))
        if kind == "anthropic":
            return AnthropicProvider(server.anthropic_url, SecretStr("key-one"))
        return ScriptedProvider()

    run(go)


@pytest.mark.parametrize("kind", SERVED)
def test_each_line_becomes_what_a_live_call_would_have_raised(
    kind: str, server: BatchServer, tmp_path: Path
) -> None:
    fates = {"a": "400", "b": "500", "c": "429", "d": "malformed", "e": "404"}
    server.rows = lambda prompt, asked: fates.get(prompt.text, "ok")
    expected = {
        "a": RequestRejectedError,
        "b": ProviderUnavailableError,
        "c": RateLimitedError,
        "d": MalformedAnswerError,
        "e": RequestRejectedError,
    }

    async def go() -> None:
        provider = make(kind, server)
        texts = [*fates, "fine"]
        path = write(tmp_path / "r", provider, texts)
        batch_id = await submit(provider, path, len(texts))
        server.advance(61)
        found = await results(provider, batch_id, path)
        for number, text in enumerate(fates):
            assert type(found[f"gw-abc-{number}"]) is expected[text], text
        assert len(found) == 6

    run(go)


@pytest.mark.parametrize("kind", SERVED)
def test_what_expires_has_lapsed_and_what_was_done_is_there(
    kind: str, server: BatchServer, tmp_path: Path
) -> None:
    async def go() -> None:
        provider = make(kind, server)
        path = write(tmp_path / "r", provider, [str(number) for number in range(10)])
        server.work_s = 200_000.0
        batch_id = await submit(provider, path, 10)
        server.advance(86_401)
        found = list((await results(provider, batch_id, path)).values())
        assert found.count("lapsed") == 6
        assert sum(1 for each in found if hasattr(each, "text")) == 4

    run(go)


@pytest.mark.parametrize("kind", SERVED)
def test_a_listing_is_complete_over_its_pages_and_shows_what_can_be_known(
    kind: str, server: BatchServer, tmp_path: Path
) -> None:
    server.page = 3

    async def go() -> None:
        provider = make(kind, server)
        path = write(tmp_path / "r", provider, ["x", "y"])
        began = server.now
        made = [await submit(provider, path, 2) for _ in range(8)]
        assert [each.batch_id for each in await provider.newest()] == made[:-4:-1]
        listed = await provider.find(began - 5)
        assert sorted(each.batch_id for each in listed) == sorted(made)
        assert all(each.count == 2 for each in listed)
        assert all(("abc" in each.marks) == provider.has_marks for each in listed)
        server.advance(3600)
        later = await submit(provider, path, 2)
        calls = server.calls["list"]
        assert later in {each.batch_id for each in await provider.find(server.now - 5)}
        assert server.calls["list"] == calls + 1  # what follows is older
        assert await make(kind, server, key="another").find(0.0) == []

    run(go)


@pytest.mark.parametrize("kind", SERVED)
@pytest.mark.parametrize(
    ("fate", "error", "may_exist"),
    [
        ("lost", ProviderUnavailableError, True),
        ("never", ProviderUnavailableError, True),
        ("hang", ProviderUnavailableError, True),
        ("500", ProviderUnavailableError, True),
        ("429", RateLimitedError, False),
        ("401", RequestRejectedError, False),
    ],
)
def test_a_create_is_tried_once_and_says_whether_the_batch_may_exist(
    kind: str, server: BatchServer, tmp_path: Path, fate: str, error: type[ProviderError], may_exist: bool
) -> None:
    async def go() -> None:
        provider = make(kind, server, timeout_s=0.5)
        path = write(tmp_path / "r", provider, ["x"])
        server.creates.append(fate)
        with pytest.raises(error) as caught:
            await submit(provider, path, 1)
        assert server.calls["create"] == 1
        if isinstance(caught.value, ProviderUnavailableError):
            assert caught.value.may_be_billed is may_exist

    run(go)


def test_an_upload_that_was_lost_is_found_by_name_and_size(server: BatchServer, tmp_path: Path) -> None:
    async def go() -> None:
        provider = make("openai", server)
        path = write(tmp_path / "r", provider, ["x"])
        size = path.stat().st_size
        server.uploads.append("lost")
        with pytest.raises(ProviderUnavailableError):
            await provider.upload(path, "genworker-abc.jsonl")
        found = await provider.find_upload("genworker-abc.jsonl", size)
        assert found is not None
        assert await provider.has_upload(found)
        assert await provider.find_upload("genworker-abc.jsonl", size + 1) is None
        assert not await make("openai", server, key="another").has_upload(found)

    run(go)


@pytest.mark.parametrize("kind", SERVED)
def test_a_torn_download_is_an_error_and_no_short_result(
    kind: str, server: BatchServer, tmp_path: Path
) -> None:
    async def go() -> None:
        provider = make(kind, server)
        path = write(tmp_path / "r", provider, ["x", "y", "z"])
        batch_id = await submit(provider, path, 3)
        server.advance(61)
        server.downloads.append("torn")
        with pytest.raises(ProviderUnavailableError):
            await results(provider, batch_id, path)
        assert len(await results(provider, batch_id, path)) == 3

    run(go)


@pytest.mark.parametrize("kind", SERVED)
def test_the_first_name_tells_whose_a_batch_is(kind: str, server: BatchServer, tmp_path: Path) -> None:
    async def go() -> None:
        provider = make(kind, server)
        path = write(tmp_path / "r", provider, ["x", "y"])
        batch_id = await submit(provider, path, 2)
        server.advance(61)
        assert str(await provider.first_name(batch_id)).startswith("gw-abc-")

    run(go)


def test_a_batch_that_failed_names_its_lines_or_its_limit(server: BatchServer, tmp_path: Path) -> None:
    async def go() -> None:
        provider = make("openai", server)
        path = write(tmp_path / "r", provider, ["x", "y", "z"])
        server.bad_lines = {2}
        look = await provider.look(await submit(provider, path, 3))
        assert (look.is_final, look.bad_lines, look.is_over_limit) == (True, (1,), False)
        assert look.refusal is not None
        server.bad_lines = set()
        server.token_limit = 5
        look = await provider.look(await submit(provider, path, 3))
        assert (look.is_over_limit, look.bad_lines) == (True, ())

    run(go)


def test_completed_without_its_files_is_not_the_end(server: BatchServer, tmp_path: Path) -> None:
    async def go() -> None:
        provider = make("openai", server)
        path = write(tmp_path / "r", provider, ["x"])
        batch_id = await submit(provider, path, 1)
        server.advance(61)
        server.polls.append("early")
        early = await provider.look(batch_id)
        assert early.is_final
        assert not early.is_complete
        assert (await provider.look(batch_id)).is_complete

    run(go)


@pytest.mark.parametrize("kind", SERVED)
def test_a_result_file_of_200_mb_is_not_held_in_memory(
    kind: str, server: BatchServer, tmp_path: Path
) -> None:
    import resource
    import sys

    size = 200 * 1024 * 1024

    class Sink(io.RawIOBase):
        taken = 0

        def write(self, chunk: object) -> int:
            self.taken += len(chunk)  # type: ignore[arg-type]
            return len(chunk)  # type: ignore[arg-type]

    async def go() -> None:
        provider = make(kind, server)
        path = write(tmp_path / "r", provider, ["x"])
        batch_id = await submit(provider, path, 1)
        server.advance(61)
        look = await provider.look(batch_id)
        server.big_bytes = size
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        sink = Sink()
        await provider.fetch(look.results["output"], sink, path)  # type: ignore[arg-type]
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert sink.taken == size
        assert grown * (1 if sys.platform == "darwin" else 1024) < size / 4

    run(go)


@pytest.mark.parametrize(
    "line", [b"", b"{", b"[]", b'"text"', json.dumps({"custom_id": 7}).encode(), b"\xff\xfe"]
)
@pytest.mark.parametrize("kind", SERVED)
def test_what_is_no_line_of_results_is_said_to_be_none(kind: str, server: BatchServer, line: bytes) -> None:
    assert make(kind, server).decode(line) is None


@pytest.mark.parametrize("kind", SERVED)
def test_a_batch_of_several_megabytes_is_sent(kind: str, server: BatchServer, tmp_path: Path) -> None:
    async def go() -> None:
        provider = make(kind, server)
        path = write(tmp_path / "r", provider, [f"{number} " + "word " * 60_000 for number in range(10)])
        assert path.stat().st_size > 2_000_000
        batch_id = await submit(provider, path, 10)
        server.advance(61)
        assert len(await results(provider, batch_id, path)) == 10

    run(go)


@pytest.mark.parametrize("kind", SERVED)
def test_a_listing_is_read_to_its_end_unless_it_is_seen_to_go_from_newer_to_older(
    kind: str, server: BatchServer, tmp_path: Path
) -> None:
    server.page, server.newest_first = 3, False

    async def go() -> None:
        provider = make(kind, server)
        path = write(tmp_path / "r", provider, ["x"])
        for _ in range(7):
            await submit(provider, path, 1)
            server.advance(100)
        last = await submit(provider, path, 1)
        assert last in {each.batch_id for each in await provider.find(server.now - 5)}

    run(go)


def test_pages_that_repeat_themselves_are_an_error_and_no_end(server: BatchServer, tmp_path: Path) -> None:
    async def go() -> None:
        provider = make("openai", server)
        path = write(tmp_path / "r", provider, ["x"])
        await submit(provider, path, 1)
        listing = server._list
        server._list = lambda api, key, query: {**listing(api, key, {}), "has_more": True}  # type: ignore[method-assign]
        with pytest.raises(MalformedAnswerError):
            await provider.find(0.0)

    run(go)


def test_times_in_words_and_states_in_capitals_are_understood(server: BatchServer, tmp_path: Path) -> None:
    server.times = "text"

    async def go() -> None:
        provider = make("openai", server)
        path = write(tmp_path / "r", provider, ["x"])
        batch_id = await submit(provider, path, 1)
        (listed,) = await provider.newest()
        assert abs(listed.created_s - server.now) < 5
        assert not listed.has_ended
        server.advance(61)
        assert (await provider.look(batch_id)).is_final
        assert len(await results(provider, batch_id, path)) == 1

    run(go)


def test_an_uploaded_file_is_waited_for_while_the_provider_looks_through_it(
    server: BatchServer, tmp_path: Path
) -> None:
    async def go() -> None:
        provider = make("openai", server)
        path = write(tmp_path / "r", provider, ["x"])
        server.looks_through = 2
        file_id = await provider.upload(path, "genworker-abc.jsonl")
        assert await provider.create(path, 1, file_id, "abc")

    run(go)


@pytest.mark.parametrize("kind", SERVED)
def test_the_first_line_of_results_is_read_whole_however_long_it_is(
    kind: str, server: BatchServer, tmp_path: Path
) -> None:
    server.separator = "long " * 100_000

    async def go() -> None:
        provider = make(kind, server)
        path = write(tmp_path / "r", provider, ["x"])
        batch_id = await submit(provider, path, 1)
        server.advance(61)
        batch = next(iter(server.batches.values()))
        server.settle()
        assert batch.results is not None
        record = json.loads(batch.results[0])
        record["custom_id"] = record.pop("custom_id")  # at the end of the line
        batch.results[0] = json.dumps(record).encode()
        assert await provider.first_name(batch_id) == "gw-abc-0"
        batch.results.clear()
        batch.output_id = None
        assert await provider.first_name(batch_id) is None

    run(go)


def test_lines_of_unanswered_requests_are_known_to_lack_alone(server: BatchServer, tmp_path: Path) -> None:
    server.rows = lambda prompt, asked: "400" if prompt.text == "bad" else "ok"

    async def go() -> None:
        provider = make("openai", server)
        path = write(tmp_path / "r", provider, ["x", "bad"])
        batch_id = await submit(provider, path, 2)
        server.advance(61)
        server.polls += ["no-errors", "early"]
        look = await provider.look(batch_id)
        assert (look.is_complete, look.lacks_errors) == (False, True)
        assert look.ended_s is not None
        look = await provider.look(batch_id)
        assert (look.is_complete, look.lacks_errors) == (False, False)
        assert (await provider.look(batch_id)).is_complete

    run(go)


def test_an_answer_as_text_and_a_status_as_text_are_read(server: BatchServer) -> None:
    answer = {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}], "usage": {}}
    line = {"custom_id": "a", "response": {"status_code": "200", "body": json.dumps(answer)}}
    refused = {"custom_id": "a", "response": {"status_code": "400", "body": '{"error": {"message": "no"}}'}}
    provider = make("openai", server)
    found, other = (provider.decode(json.dumps(each).encode()) for each in (line, refused))
    assert found is not None
    assert found.completion is not None
    assert found.completion.text == "hi"
    assert other is not None
    assert isinstance(other.error, RequestRejectedError)


@pytest.mark.parametrize(
    ("named", "asked"),
    [
        ("{here}/v1/messages/batches/x/results?part=1", "/v1/messages/batches/x/results?part=1"),
        ("https://elsewhere.example/v1/messages/batches/x/results", None),
        ("{here}@elsewhere.example/results", None),
        ("{here}/v1/../admin", None),
        ("{here}/v1/a b", None),
        (7, None),
    ],
)
def test_results_are_asked_for_at_no_other_host_than_the_configured_one(
    named: object, asked: str | None, server: BatchServer, tmp_path: Path
) -> None:
    address = named.replace("{here}", server.anthropic_url) if isinstance(named, str) else named
    tell = server._anthropic

    async def go() -> None:
        provider = make("anthropic", server)
        batch_id = await submit(provider, write(tmp_path / "r", provider, ["x"]), 1)
        server.advance(61)
        server._anthropic = lambda batch: {**tell(batch), "results_url": address}  # type: ignore[method-assign]
        look = await provider.look(batch_id)
        usual = f"/v1/messages/batches/{batch_id}/results"
        assert look.results == {"output": usual if asked is None else asked}

    run(go)
