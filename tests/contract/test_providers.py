"""What every provider must do, whoever serves it; see `genworker.ports.Provider`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import pytest
from pydantic import SecretStr

from genworker.core.completion import Completion, CompletionRequest, FinishReason, Sampling, Usage
from genworker.errors import (
    MalformedAnswerError,
    ProviderError,
    ProviderUnavailableError,
    RateLimitedError,
    RequestRejectedError,
    Scope,
)
from genworker.ports import Provider
from genworker.project.endpoints import KINDS as KINDS_TABLE
from genworker.providers.anthropic import AnthropicProvider
from genworker.providers.example import Example
from genworker.providers.http import AiohttpTransport, Came
from genworker.providers.openai import OpenAIProvider
from genworker.providers.scripted import ScriptedProvider
from support.llm_server import LLMServer, Options, Rule

KINDS = ("openai", "anthropic")
KEY = "sk-secret-0123456789abcdef"
T = TypeVar("T")


def request(prompt: str = "Say something.", **sampling: object) -> CompletionRequest:
    values: dict[str, object] = {"max_tokens": 2000, **sampling}
    return CompletionRequest("vendor/alpha", prompt, Sampling(**values), timeout_s=30)  # type: ignore[arg-type]


def provider_for(kind: str, server: LLMServer, key: str | None = KEY) -> Provider:
    secret = None if key is None else SecretStr(key)
    if kind == "openai":
        return OpenAIProvider(server.openai_url, secret)
    return AnthropicProvider(server.anthropic_url, secret)


def use(provider: Provider, action: Callable[[Provider], Awaitable[T]]) -> T:
    async def session() -> T:
        await provider.open()
        try:
            return await action(provider)
        finally:
            await provider.aclose()

    return asyncio.run(session())


def ask(kind: str, options: Options, prompt: str = "Say something.", key: str | None = KEY) -> Completion:
    with LLMServer(options).in_thread() as server:
        return use(provider_for(kind, server, key), lambda provider: provider.complete(request(prompt)))


def ask_badly(kind: str, fault: str, key: str | None = KEY) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        ask(kind, Options(rules=(Rule(fault),)), key=key)
    return caught.value


@pytest.fixture(params=[*KINDS, "scripted"])
def provider(request: pytest.FixtureRequest) -> Iterator[Provider]:
    if request.param == "scripted":
        yield ScriptedProvider()
        return
    with LLMServer(Options(words=48)).in_thread() as server:
        yield provider_for(request.param, server)


def test_an_answer_has_text_reason_usage_and_a_name(provider: Provider) -> None:
    completion = use(provider, lambda ready: ready.complete(request("Judge this. End with SCORE: N")))
    assert "SCORE:" in completion.text
    assert completion.finish_reason is FinishReason.STOP
    assert completion.usage.input_tokens
    assert completion.usage.output_tokens
    assert completion.request_id
    assert completion.model == "vendor/alpha"
    assert completion.latency_s >= 0


def test_equal_requests_bring_equal_answers_from_a_deterministic_endpoint(provider: Provider) -> None:
    async def twice(ready: Provider) -> tuple[Completion, Completion]:
        return await ready.complete(request("same")), await ready.complete(request("same"))

    first, second = use(provider, twice)
    assert first.text == second.text


def test_many_calls_at_once_are_each_answered(provider: Provider) -> None:
    async def many(ready: Provider) -> list[Completion]:
        return await asyncio.gather(*(ready.complete(request(f"number {n}")) for n in range(200)))

    assert len({completion.text for completion in use(provider, many)}) == 200


WHOLE_BODIES = {
    "openai": {
        "model": "vendor/alpha",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "prompt"}],
        "temperature": 0.3,
        "top_p": 0.5,
        "max_tokens": 2000,
        "stop": ["END"],
        "seed": 7,
        "service_tier": "flex",
        "top_k": 40,
    },
    "anthropic": {
        "model": "vendor/alpha",
        "messages": [{"role": "user", "content": "prompt"}],
        "system": "be brief",
        "temperature": 0.3,
        "top_p": 0.5,
        "max_tokens": 2000,
        "stop_sequences": ["END"],
        "service_tier": "flex",
        "top_k": 40,
    },
}
"""All that is sent where everything is set; Messages has no seed."""


def sent(kind: str, asked: CompletionRequest) -> dict[str, object]:
    """The body that reaches the endpoint."""
    bodies: list[bytes] = []

    class Noting(AiohttpTransport):
        async def post(self, example: Example, body: bytes) -> Came:
            bodies.append(body)
            return await super().post(example, body)

    with LLMServer(Options()).in_thread() as server:
        provider = provider_for(kind, server)
        provider._transport.__class__ = Noting  # type: ignore[attr-defined]
        use(provider, lambda ready: ready.complete(asked))
    body: dict[str, object] = json.loads(bodies[0])
    return body


@pytest.mark.parametrize("kind", KINDS)
def test_everything_that_was_set_is_sent_and_nothing_else(kind: str) -> None:
    extra = {"top_k": 40, "model": "another", "messages": [], "temperature": 2, "max_tokens": 9}
    asked = request(
        "prompt",
        temperature=0.3,
        top_p=0.5,
        stop=("END",),
        seed=7,
        system="be brief",
        service_tier="flex",
        extra_body=extra,
    )
    assert sent(kind, asked) == WHOLE_BODIES[kind]
    own = KINDS_TABLE[kind].own_fields
    assert set(WHOLE_BODIES[kind]) - {"top_k"} <= own


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_not_set_is_not_sent(kind: str) -> None:
    messages = [{"role": "user", "content": "prompt"}]
    assert sent(kind, request("prompt")) == {
        "model": "vendor/alpha",
        "messages": messages,
        "max_tokens": 2000,
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("key", "authorized"), [(KEY, True), (None, False)])
def test_a_key_is_sent_only_where_there_is_one(kind: str, key: str | None, authorized: bool) -> None:
    with LLMServer(Options()).in_thread() as server:
        use(provider_for(kind, server, key), lambda ready: ready.complete(request()))
        assert [record.authorized for record in server.records] == [authorized]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("length", FinishReason.LENGTH),
        ("filter", FinishReason.CONTENT_FILTER),
        ("refusal", FinishReason.CONTENT_FILTER),
    ],
)
def test_why_the_model_stopped_is_told(kind: str, fault: str, reason: FinishReason) -> None:
    assert ask(kind, Options(rules=(Rule(fault),))).finish_reason is reason


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_answer_is_an_answer(kind: str) -> None:
    assert ask(kind, Options(rules=(Rule("empty"),))).text == ""


@pytest.mark.parametrize("kind", KINDS)
def test_missing_usage_is_unknown_not_zero(kind: str) -> None:
    assert ask(kind, Options(rules=(Rule("no-usage"),))).usage == Usage()


@pytest.mark.parametrize("kind", KINDS)
def test_text_that_no_file_can_hold_is_cleaned(kind: str) -> None:
    completion = ask(kind, Options(rules=(Rule("surrogate"),)))
    assert "\ufffd" in completion.text
    assert completion.text.encode()
    assert "\r" not in ask(kind, Options(rules=(Rule("crlf"),))).text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", ["500", "502", "503", "reset", "reset-mid-body", "html=502", "408", "409"])
def test_what_may_pass_is_unavailable(kind: str, fault: str) -> None:
    assert isinstance(ask_badly(kind, fault), ProviderUnavailableError)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", ["half-json", "html"])
def test_what_is_no_answer_is_kept_as_it_came(kind: str, fault: str) -> None:
    error = ask_badly(kind, fault)
    assert isinstance(error, MalformedAnswerError)
    assert error.body
    assert error.may_be_billed


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("fault", "hint"),
    [("429@retry-after=3", 3.0), ("429@retry-after-ms=0.25", 0.25), ("429", None), ("529", None)],
)
def test_too_many_requests_come_with_the_endpoints_hint(kind: str, fault: str, hint: float | None) -> None:
    error = ask_badly(kind, fault)
    assert isinstance(error, RateLimitedError)
    assert error.retry_after_s == hint


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("fault", "scope"),
    [
        ("400", Scope.ROW),
        ("413", Scope.ROW),
        ("422", Scope.ROW),
        ("401", Scope.ENDPOINT),
        ("403", Scope.ENDPOINT),
        ("redirect=9", Scope.ENDPOINT),
    ],
)
def test_what_is_refused_for_good_says_whom_it_concerns(kind: str, fault: str, scope: Scope) -> None:
    error = ask_badly(kind, fault)
    assert isinstance(error, RequestRejectedError)
    assert error.scope is scope


def test_a_404_about_a_model_stops_its_lane_and_any_other_the_endpoint() -> None:
    about_model, other = ask_badly("openai", "404"), ask_badly("anthropic", "404")
    assert isinstance(about_model, RequestRejectedError)
    assert isinstance(other, RequestRejectedError)
    assert (about_model.scope, other.scope) == (Scope.LANE, Scope.ENDPOINT)
    assert "/v1/messages" in str(other)


def test_an_empty_quota_stops_the_endpoint() -> None:
    error = ask_badly("openai", "insufficient_quota")
    assert isinstance(error, RequestRejectedError)
    assert error.scope is Scope.ENDPOINT


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_that_the_endpoint_echoes_does_not_pass(kind: str) -> None:
    error = ask_badly(kind, "401-echo")
    assert KEY not in str(error)
    assert KEY[:12] not in repr(error.__dict__)


@pytest.mark.parametrize("kind", KINDS)
def test_a_huge_answer_is_cut_and_kept(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genworker.providers.http.MAX_BODY_BYTES", 1_000_000)
    error = ask_badly(kind, "huge=8")
    assert isinstance(error, MalformedAnswerError)
    assert not error.retryable
    assert 0 < len(error.body) <= 1024 * 1024


@pytest.mark.parametrize("kind", KINDS)
def test_an_endpoint_that_is_not_there_is_unavailable_and_unpaid(kind: str) -> None:
    with LLMServer(Options()).in_thread() as server:
        gone = provider_for(kind, server)
    with pytest.raises(ProviderUnavailableError) as caught:
        use(gone, lambda ready: ready.complete(request()))
    assert not caught.value.may_be_billed


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_can_be_abandoned(kind: str) -> None:
    async def abandon(ready: Provider) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await ready.complete(request())

    with LLMServer(Options(rules=(Rule("hang=5"),))).in_thread() as server:
        use(provider_for(kind, server), abandon)


def test_a_script_may_raise_and_count() -> None:
    def script(asked: CompletionRequest, made: int) -> Completion:
        if made == 1:
            raise ProviderUnavailableError("first time")
        return Completion("ok", FinishReason.STOP, Usage(), 0.0)

    scripted = ScriptedProvider(script)

    async def twice(ready: Provider) -> str:
        with pytest.raises(ProviderUnavailableError):
            await ready.complete(request())
        return (await ready.complete(request())).text

    assert use(scripted, twice) == "ok"
    assert len(scripted.requests) == 2
