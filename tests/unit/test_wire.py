"""The one reading of an answer: every form by its meaning, in spellings of several providers."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from genworker.core.completion import Completion, FinishReason
from genworker.core.finish_words import finish_of
from genworker.core.refusals import Asked
from genworker.core.wire import parse_body, read_answer, read_usage
from genworker.errors import (
    MalformedAnswerError,
    ProviderError,
    ProviderUnavailableError,
    RateLimitedError,
    RequestRejectedError,
    Scope,
)

ASKED = Asked(
    "vendor/m", "https://h.example/v1/chat/completions", ("model", "messages", "seed", "max_tokens", "top_k")
)


def read(
    body: object, status: int = 200, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> Completion | ProviderError:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_answer(status, headers, raw, now_epoch_s=0.0, asked=ASKED)


def chat(content: object = "A text.", word: object = "stop", **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content, **more.pop("message", {})}
    return {"choices": [{"finish_reason": word, "message": message, **more.pop("choice", {})}], **more}


def completion(body: object, **options: Any) -> Completion:
    found = read(body, **options)
    assert isinstance(found, Completion), found
    return found


def rejected(body: object, status: int) -> RequestRejectedError:
    found = read(body, status)
    assert isinstance(found, RequestRejectedError), found
    return found


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (
            FinishReason.STOP,
            "stop STOP end_turn EOS eos_token Complete FINISH_REASON_STOP endTurn stop-sequence",
        ),
        (
            FinishReason.LENGTH,
            "length MAX_TOKENS maxTokens max_output_tokens context_window_exceeded ERROR_LIMIT",
        ),
        (FinishReason.LENGTH, "REASON_MAX_LEN time_limit not_finished token_limit model_length truncated"),
        (
            FinishReason.CONTENT_FILTER,
            "content_filter contentFiltered SAFETY RECITATION ERROR_TOXIC sensitive",
        ),
        (
            FinishReason.CONTENT_FILTER,
            "guardrail_intervened PROHIBITED_CONTENT refusal MODEL_ARMOR IMAGE_SAFETY",
        ),
        (
            FinishReason.BROKEN_OFF,
            "error abort USER_CANCEL TIMEOUT network_error malformed_model_output load",
        ),
        (FinishReason.BROKEN_OFF, "insufficient_system_resource UNEXPECTED_TOOL_CALL engine_overloaded"),
        (FinishReason.TOOLS, "tool_calls tool_use function_call TOOL_CALL"),
        (FinishReason.NO_ANSWER, "pause_turn"),
        (FinishReason.OTHER, "full_moon null None OTHER"),
    ],
)
def test_finish_words_of_many_providers(reason: FinishReason, words: str) -> None:
    assert {word: finish_of(word) for word in words.split()} == dict.fromkeys(words.split(), reason)


@pytest.mark.parametrize("word", [None, "", "null"])
def test_no_finish_word_with_a_text_is_an_answer(word: str | None) -> None:
    found = completion(chat(word=word))
    assert (found.text, found.finish_reason, found.finish_word) == ("A text.", FinishReason.OTHER, None)
    assert not found.is_odd_word


def test_an_unknown_word_is_kept_and_counted() -> None:
    found = completion(chat(word="full_moon\x1b[31m"))
    assert found.is_odd_word
    assert found.finish_word == "full_moon⟨U+001B⟩[31m"


@pytest.mark.parametrize(
    "body",
    [
        chat("Half a", "stop", choice={"error": {"message": "lost the upstream"}}),
        chat("Half a", "error", error={"message": "lost the upstream", "code": 502}),
        {
            "type": "message",
            "content": [{"type": "text", "text": "Half a"}],
            "stop_reason": "error",
            "error": {"message": "lost the upstream"},
        },
    ],
)
def test_an_error_beside_a_text_is_an_outage_that_keeps_the_text(body: dict[str, Any]) -> None:
    found = read(body)
    assert isinstance(found, ProviderUnavailableError)
    assert found.partial.text == "Half a"
    assert found.may_be_billed
    assert "lost the upstream" in str(found)


def test_a_choice_that_says_why_it_has_no_message_is_no_malformed_one() -> None:
    assert completion({"choices": [{"finish_reason": "SAFETY"}]}).finish_reason is FinishReason.CONTENT_FILTER
    assert completion({"choices": [{"finish_reason": "length"}]}).finish_reason is FinishReason.LENGTH
    assert isinstance(read({"choices": [{"finish_reason": "stop"}]}), MalformedAnswerError)


def test_tools_without_a_text_are_no_answer() -> None:
    call = {"tool_calls": [{"id": "1"}]}
    assert completion(chat(None, "tool_calls", message=call)).finish_reason is FinishReason.NO_ANSWER
    assert completion(chat("", "stop", message=call)).finish_reason is FinishReason.NO_ANSWER
    assert completion(chat("See:", "tool_calls", message=call)).finish_reason is FinishReason.TOOLS


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("reasoning_content", "first this"),
        ("reasoning", "first this"),
        ("reasoning", {"content": "first this"}),
        ("reasoning_details", [{"type": "reasoning.text", "text": "first this"}, {"data": "x"}]),
        ("thinking_blocks", [{"type": "thinking", "thinking": "first this", "signature": "s"}]),
        ("thinking", "first this"),
    ],
)
def test_reasoning_beside_the_text(field: str, value: object) -> None:
    found = completion(chat("Then that.", message={field: value, "refusal": None}))
    assert (found.text, found.reasoning) == ("Then that.", "first this")


def test_reasoning_in_parts_of_the_content() -> None:
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "first"}]},
        {"type": "text", "text": "then"},
    ]
    found = completion(chat(parts))
    assert (found.text, found.reasoning) == ("then", "first")
    blocks = [
        {"type": "thinking", "thinking": "one"},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "text", "text": "two"},
    ]
    found = completion({"type": "message", "content": blocks, "stop_reason": "end_turn"})
    assert (found.text, found.reasoning) == ("two", "one")


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}, (10, 5)),
        ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 115}, (10, 105)),
        ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 3}, (10, 5)),
        ({"prompt_tokens": 10, "total_tokens": 30}, (10, 20)),
        (
            {
                "prompt_tokens": 10,
                "completion_tokens": 5,
                "completion_tokens_details": {"reasoning_tokens": 4},
            },
            (10, 5),
        ),
        (
            {
                "prompt_tokens": 10,
                "completion_tokens": 5,
                "completion_tokens_details": {"reasoning_tokens": 90},
            },
            (10, 95),
        ),
        ({"input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 100}, (110, 5)),
        ({"input_tokens": 10, "output_tokens": 5, "input_tokens_details": {"cached_tokens": 8}}, (10, 5)),
        ({"prompt_tokens": 10.0, "completion_tokens": 5.0}, (10, 5)),
        ({"prompt_tokens": True, "completion_tokens": -5}, (None, None)),
        ({"prompt_tokens": 10**30, "completion_tokens": "many"}, (None, None)),
        (None, (None, None)),
    ],
)
def test_usage_as_it_is_billed(usage: object, counts: tuple[int | None, int | None]) -> None:
    found = read_usage(usage)
    assert (found.input_tokens, found.output_tokens) == counts


@pytest.mark.parametrize(
    ("usage", "headers", "cost"),
    [
        ({"cost": 0.25}, (), "0.25"),
        ({"cost": "0.25"}, (), "0.25"),
        ({"cost": {"total_cost": 0.25, "currency": "USD"}}, (), "0.25"),
        ({"cost": {"total_cost": 0.25, "currency": "EUR"}}, (), None),
        ({"estimated_cost": 0.25}, (), "0.25"),
        ({"cost_in_usd_ticks": 2_500_000_000}, (), "0.25"),
        ({"cost": 0.01, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.24}}, (), "0.25"),
        ({"cost": 0.25, "is_byok": False, "cost_details": {"upstream_inference_cost": 0.25}}, (), "0.25"),
        ({}, ((b"X-LiteLLM-Response-Cost", b"0.25"),), "0.25"),
        ({"cost": -1}, ((b"x-litellm-response-cost", b"None"),), None),
        ({"cost": 1e12}, (), None),
        ({"cost": True}, (), None),
    ],
)
def test_what_an_endpoint_says_that_a_call_has_cost(
    usage: dict[str, Any], headers: tuple[tuple[bytes, bytes], ...], cost: str | None
) -> None:
    found = completion(chat(usage={"prompt_tokens": 1, "completion_tokens": 1, **usage}), headers=headers)
    assert found.told_cost_usd == (None if cost is None else Decimal(cost))


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "the reason is here"}},
        {"error": "the reason is here"},
        {"detail": "the reason is here"},
        {"detail": [{"loc": ["body", "x"], "msg": "the reason is here"}]},
        {"message": {"detail": [{"loc": ["body"], "msg": "the reason is here"}]}},
        {"errors": [{"message": "the reason is here"}]},
        {"errors": ["the reason is here"]},
        {"fault": {"faultstring": "the reason is here"}},
        [{"error": {"message": "the reason is here"}}],
        {"error": {"message": "upstream", "metadata": {"raw": '{"detail": "the reason is here"}'}}},
        {"error": {"message": '{"error": {"message": "the reason is here"}}'}},
        {"title": "Bad", "detail": "the reason is here", "status": 400},
        {"Message": "the reason is here"},
        {"error_msg": "the reason is here", "error_code": 336003},
        b"<html><head><title>the reason is here</title></head><body>x</body></html>",
        b"<Error><Code>X</Code><Message>the reason is here</Message></Error>",
        b"the reason is here",
        {"strange": ["the reason is here"]},
    ],
)
def test_the_reason_reaches_the_user_in_whatever_body_it_comes(body: object) -> None:
    assert "the reason is here" in str(rejected(body, 400))


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, {"error": {"type": "invalid_request_error", "message": "Your credit balance is too low"}}),
        (422, {"error": {"type": "budget_exceeded", "code": "422", "message": "over"}}),
        (429, {"error": {"code": "insufficient_quota"}}),
        (429, {"error": {"type": "exceeded_quota", "message": "x"}}),
        (403, {"code": "Arrearage", "message": "x"}),
        (402, {"error": {"message": "This request requires more credits, or fewer max_tokens"}}),
        (503, {"error": {"code": "insufficient_user_quota"}}),
        (200, {"error": {"message": "no", "code": "insufficient_balance"}}),
        (400, {"error": {"message": "Budget has been exceeded! Current cost: 1, Max budget: 1"}}),
    ],
)
def test_an_empty_purse_stops_the_endpoint_whatever_the_status(status: int, body: object) -> None:
    found = rejected(body, status)
    assert (found.scope, found.is_sure) == (Scope.ENDPOINT, True)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (403, {"error": {"message": "x", "metadata": {"flagged_input": "…", "reasons": ["violence"]}}}),
        (400, {"error": {"code": "content_policy_violation", "message": "x"}}),
        (400, {"code": "DataInspectionFailed", "message": "x"}),
        (403, {"error": {"message": "Your prompt was flagged by the moderation system"}}),
        (413, b"too big"),
        (429, {"error": {"message": "Limit 6,000, Requested 12,328", "code": "rate_limit_exceeded"}}),
        (400, {"error": {"code": "context_length_exceeded", "message": "x"}}),
        (400, {"error": {"message": "This model's maximum context length is 8192 tokens"}}),
    ],
)
def test_what_is_about_one_input_concerns_its_row_alone(status: int, body: object) -> None:
    found = rejected(body, status)
    assert (found.scope, found.about_input) == (Scope.ROW, True)


def test_a_flagged_account_is_no_flagged_prompt() -> None:
    assert rejected({"error": {"message": "Your account: content was flagged"}}, 403).scope is Scope.ENDPOINT


def test_a_limit_of_a_minute_that_others_have_used_up_is_waited_for() -> None:
    body = {"error": {"message": "Limit 30000, Used 29000, Requested 2500", "code": "rate_limit_exceeded"}}
    assert isinstance(read(body, 429), RateLimitedError)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, {"error": {"code": "model_not_found"}}),
        (404, {"error": {"type": "not_found_error", "message": "model: vendor/m"}}),
        (404, {"error": {"code": "DeploymentNotFound", "message": "x"}}),
        (400, {"error": {"message": "Invalid model name passed in model=x"}}),
        (404, {"error": {"message": "No endpoints found for vendor/m."}}),
        (403, {"error": {"message": "x", "param": "model"}}),
    ],
)
def test_a_refused_model_stops_its_lane(status: int, body: object) -> None:
    assert rejected(body, status).scope is Scope.LANE


def test_a_404_about_a_path_names_the_address() -> None:
    found = rejected({"detail": "Not Found"}, 404)
    assert found.scope is Scope.ENDPOINT
    assert "https://h.example/v1/chat/completions" in str(found)


@pytest.mark.parametrize("status", [408, 409, 423, 424, 425, 498, 499, 500, 502, 503, 504, 520, 524])
def test_what_passes(status: int) -> None:
    found = read({"error": "x"}, status)
    assert isinstance(found, ProviderUnavailableError)
    assert found.may_be_billed is (status >= 500 or status in (408, 424, 499))


@pytest.mark.parametrize(
    ("body", "mend"),
    [
        ({"error": {"message": "no", "param": "seed"}}, "seed = false"),
        ({"detail": [{"loc": ["body", "seed"], "msg": "extra"}]}, "seed = false"),
        ({"error": {"message": "Unsupported parameter: 'max_tokens'"}}, "max_completion_tokens"),
        ({"error": {"message": "top_k: Extra inputs are not permitted"}}, "extra_body"),
    ],
)
def test_a_refused_parameter_names_the_key_that_mends_it(body: object, mend: str) -> None:
    assert mend in str(rejected(body, 400))


@pytest.mark.parametrize(
    "prefix",
    [b"\xef\xbb\xbf", b" \r\n\n", b": keep-alive\n\n: keep-alive\n\n", b"data: ", b"event: message\ndata: "],
)
def test_what_may_stand_before_the_json(prefix: bytes) -> None:
    assert parse_body(prefix + b'{"a": "\xff\\ud800"}') == {"a": "\ufffd\ud800"}


def test_what_is_no_json_is_kept() -> None:
    found = read(b'{"choices": [{"mess')
    assert isinstance(found, MalformedAnswerError)
    assert found.body.startswith('{"choices"')


def test_a_body_that_is_parsed_already_is_read_alike() -> None:
    body = chat()
    assert read_answer(200, (), body, now_epoch_s=0.0) == read_answer(
        200, (), json.dumps(body).encode(), now_epoch_s=0.0
    )


@pytest.mark.parametrize("value", [None, 1, "x", [], {}, [[]], [{}], True, {"a": {"b": []}}])
def test_no_body_however_odd_breaks_the_reading(value: object) -> None:
    keys = (
        "choices",
        "content",
        "error",
        "errors",
        "usage",
        "model",
        "id",
        "detail",
        "message",
        "stop_reason",
    )
    for key in keys:
        for status in (200, 400, 403, 429, 500):
            body = {**chat(), key: value}
            assert isinstance(read(body, status), Completion | ProviderError)
            assert isinstance(read({key: value}, status), Completion | ProviderError)
    for inner in ("message", "finish_reason", "error", "text", "delta", "usage"):
        assert isinstance(read(chat(choice={inner: value})), Completion | ProviderError)
    for inner in ("content", "refusal", "reasoning", "reasoning_details", "tool_calls"):
        assert isinstance(read(chat(message={inner: value})), Completion | ProviderError)
