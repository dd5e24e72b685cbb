"""What endpoints answer, by kind: invented texts in the shapes and with the codes of many providers and gateways.

Each `Form` is one kind of answer in several spellings; all of them have to be read alike. The reading is that
of `genworker.core.wire`, which the tests and the table in docs/outcomes.md both ask.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from genworker.core.completion import Completion
from genworker.core.facts import Facts
from genworker.core.generation import Answer, finish
from genworker.core.refusals import Asked
from genworker.core.stages import Stage
from genworker.core.thinking import split_thinking
from genworker.core.wire import read_answer
from genworker.errors import (
    MalformedAnswerError,
    ProviderError,
    ProviderUnavailableError,
    RateLimitedError,
    RequestRejectedError,
    Scope,
)

ASKED = Asked(
    "vendor/m",
    "https://h.example/v1/chat/completions",
    ("model", "messages", "seed", "temperature", "max_tokens", "top_k"),
)


@dataclass(frozen=True, slots=True)
class Example:
    """One answer.

    Attributes:
        body: JSON, or bytes as they came.
        says: what the message of the refusal must hold; ``""``: nothing in particular.
    """

    body: Any
    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = ()
    says: str = ""

    @property
    def raw(self) -> bytes:
        """The body as it is sent."""
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


@dataclass(frozen=True, slots=True)
class Form:
    """A kind of answer.

    Attributes:
        what: it is, in the words of the documentation.
        reading: what all the examples are read as, as `ask` tells it.
        parser: of the template that asks.
    """

    what: str
    reading: str
    examples: tuple[Example, ...] = field(repr=False)
    ask: Callable[[Example, str], str] = field(default=lambda example, parser: reading_of(example, parser))
    parser: str = "identity"

    def readings(self) -> set[str]:
        """What the examples are read as, by the code that all adapters use: one thing, when all is right."""
        return {self.ask(example, self.parser) for example in self.examples}


def read(example: Example) -> Completion | ProviderError:
    """The reading of an example, by the code that all adapters use."""
    return read_answer(example.status, example.headers, example.raw, now_epoch_s=0.0, asked=ASKED)


def reading_of(example: Example, parser: str = "identity") -> str:
    """What becomes of a row by an example, in words for the documentation."""
    found = read(example)
    if isinstance(found, Completion):
        return _reading_of_answer(found, parser)
    if isinstance(found, RequestRejectedError):
        if found.scope is Scope.ROW:
            return "row failed; says nothing about its neighbours" if found.about_input else "row failed"
        name = found.scope.value
        return f"{name} stopped" if found.is_sure else f"{name} stopped, unless it has answered lately"
    if isinstance(found, RateLimitedError):
        return "waited for"
    if isinstance(found, ProviderUnavailableError):
        if found.partial is not None:
            return "outage: asked again; what came is kept"
        return "outage: asked again, may be billed" if found.may_be_billed else "outage: asked again"
    assert isinstance(found, MalformedAnswerError)
    return "asked again, then kept as *malformed*"


def _reading_of_answer(found: Completion, parser: str) -> str:
    facts = {"finish_reason": found.finish_reason.value, "finish_word": found.finish_word, "parser": parser}
    stage = Stage.EVALUATION if parser in PARSERS_OF_SCORES else Stage.DRAFT
    judged = finish(Answer(stage, "x", "", found.text, Facts(facts), found.reasoning))
    if judged.failure is not None:
        return f"kept as *{judged.failure.kind.value}*"
    if stage is Stage.EVALUATION:
        return f"**done**: the score is {judged.parsed_text}"
    return "**done**, the word is counted" if found.is_odd_word else "**done**"


PARSERS_OF_SCORES = ("in_last_line", "complex")


def tokens_of(example: Example, parser: str) -> str:
    """The tokens that an example counts, in words for the documentation."""
    found = read(example)
    assert isinstance(found, Completion)
    usage = found.usage
    if not usage.is_counted:
        return "not counted: the worst case counts as spent"
    return f"{usage.input_tokens:,} tokens of input, {usage.output_tokens:,} of output"


def cost_of(example: Example, parser: str) -> str:
    """What an example tells that it has cost."""
    found = read(example)
    assert isinstance(found, Completion)
    if found.told_cost_usd is None:
        return "the list price counts"
    return f"told: {found.told_cost_usd.normalize()} USD; the larger of this and the list price counts"


def thoughts_of(example: Example, parser: str) -> str:
    """Where the thinking of an example goes."""
    found = read(example)
    assert isinstance(found, Completion)
    answer = split_thinking(found.text).answer
    if found.reasoning == THOUGHT and answer == "A text.":
        return "`reasoning.txt` has it"
    is_inside = not found.reasoning and THOUGHT in found.text
    return (
        "left out of what parsers and children see"
        if is_inside and answer == "A text."
        else "lost or in the text"
    )


THOUGHT = "First this."


def _ok(body: Any, *headers: tuple[bytes, bytes]) -> Example:
    return Example(body, headers=headers)


def _no(status: int, body: Any, says: str = "", *headers: tuple[bytes, bytes]) -> Example:
    return Example(body, status, headers, says)


def chat(content: object = "A text.", word: object = "stop", **more: Any) -> dict[str, Any]:
    """An answer of Chat Completions; `message` and `choice` are fields that are added there."""
    message = {"role": "assistant", "content": content, **more.pop("message", {})}
    choice = {"index": 0, "finish_reason": word, "message": message, **more.pop("choice", {})}
    return {"object": "chat.completion", "choices": [choice], "usage": USAGE, **more}


def blocks(*content: dict[str, Any], word: str | None = "end_turn", **more: Any) -> dict[str, Any]:
    """An answer of Messages."""
    usage = {"input_tokens": 10, "output_tokens": 5}
    return {"type": "message", "content": list(content), "stop_reason": word, "usage": usage, **more}


def _words(words: str, content: object = "A text.") -> tuple[Example, ...]:
    return tuple(_ok(chat(content, word)) for word in words.split())


def _error(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, **more}}


USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
TEXT = {"type": "text", "text": "A text."}
_CALL = {"tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}

DONE, COUNTED = "**done**", "**done**, the word is counted"
CUT, FILTERED, EMPTY = "kept as *truncated*", "kept as *content_filtered*", "kept as *empty*"
NO_ANSWER, BROKEN = "kept as *malformed*", "outage: asked again; what came is kept"
MALFORMED = "asked again, then kept as *malformed*"
WAIT, PASSES, MAY_BILL = "waited for", "outage: asked again", "outage: asked again, may be billed"
ROW, INPUT = "row failed", "row failed; says nothing about its neighbours"
LANE, ENDPOINT = "lane stopped", "endpoint stopped"
BARE = "endpoint stopped, unless it has answered lately"

# fmt: off
FORMS: tuple[Form, ...] = (
    # Why an answer ended
    Form(
        "a text, and a word that says that it is whole",
        DONE,
        (
            *_words(
                "stop STOP eos EOS_TOKEN complete COMPLETE endOfText end_turn stop_sequence done finished "
                "eosFound stopStringFound stop_word <|im_end|> </s> eot FINISH REASON_STOP stop_token"
            ),
            _ok(blocks(TEXT)),
            _ok(blocks(TEXT, word="stop_sequence")),
            _ok(chat(word=None, choice={"finish_details": {"type": "stop", "stop": "<|fim|>"}})),
            _ok(chat(word={"type": "stop", "matched": 2})),
            _ok(chat(choice={"native_finish_reason": "completed"})),
        ),
    ),
    Form(
        "a text, and no word or an empty one",
        DONE,
        (
            *_words("null None unspecified FINISH_REASON_UNSPECIFIED"),
            _ok(chat(word="")),
            _ok(chat(word=None)),
            _ok(chat(error=None, message={"refusal": None, "reasoning": None, "tool_calls": None})),
            _ok(chat(error={})),
            _ok(chat(error="")),
            _ok(chat(error={"message": "", "code": None})),
            _ok(chat(base_resp={"status_code": 0, "status_msg": "success"})),
            _ok(chat(code=200, msg="success")),
            _ok(chat(errors=[], success=True)),
        ),
    ),
    Form("a text, and a word that nobody knows", COUNTED, (*_words("tidal_lock OTHER other unknown"), _ok(chat(word=7)), _ok(blocks(TEXT, word="ebb")))),
    Form(
        "a text, and a call of a tool",
        COUNTED,
        (*_words("tool_calls function_call TOOL_CALL toolCalls"), _ok(blocks(TEXT, {"type": "tool_use", "id": "1", "name": "f", "input": {}}, word="tool_use"))),
    ),
    Form(
        "cut off",
        CUT,
        (
            *_words(
                "length LENGTH max_tokens MAX_TOKENS model_length max_output_tokens model_context_window_exceeded "
                "token_limit time_limit not_finished maxPredictedTokensReached contextLengthReached limit "
                "incomplete max_new_tokens ERROR_LIMIT context_overflow max_output_reached partial repetition "
                "max_turns truncated"
            ),
            _ok(chat(word={"type": "length", "length": 9})),
            _ok({"choices": [{"finish_reason": "length"}]}),
            _ok(chat(word=None, choice={"finish_details": {"type": "max_tokens"}})),
            _ok(chat(choice={"native_finish_reason": "MAX_TOKENS"})),
            _ok(blocks(TEXT, word="max_tokens")),
            _ok(blocks(word="model_context_window_exceeded")),
            _ok(chat("<think>\nFirst the", "stop")),
            _ok(chat(None, "length", message={"reasoning": "First the"})),
        ),
    ),
    Form(
        "filtered, refused, or a guardrail's sentence",
        FILTERED,
        (
            *_words(
                "content_filter content-filter SAFETY RECITATION BLOCKLIST PROHIBITED_CONTENT SPII LANGUAGE "
                "sensitive guardrail_intervened GUARDRAIL_INTERVENED content_filtered ERROR_TOXIC MODEL_ARMOR "
                "refusal IMAGE_SAFETY unsafe blocked jailbreak moderation_blocked copyright policy_violation "
                "content_blocked CONTENT_FILTERED input_blocked output_flagged"
            ),
            _ok(chat(word="content_filter: PROHIBITED_CONTENT")),
            _ok({"choices": [{"finish_reason": "SAFETY"}]}),
            _ok(chat(choice={"native_finish_reason": "RECITATION"})),
            _ok(chat(None, message={"refusal": "I will not."})),
            _ok(chat([{"type": "refusal", "refusal": "I will not."}])),
            _ok(blocks(word="refusal")),
            _ok(blocks(TEXT, word="guardrail_intervened")),
            _ok(chat(input_sensitive=True, input_sensitive_type=1)),
            _ok(chat(output_sensitive=True)),
            _ok(chat("", "stop", choice={"content_filter_results": {"hate": {"filtered": True}}})),
        ),
    ),
    Form(
        "broken off, with the beginning of a text",
        BROKEN,
        (
            *_words(
                "error ERROR abort network_error insufficient_system_resource MALFORMED_FUNCTION_CALL "
                "MALFORMED_RESPONSE timeout cancelled USER_CANCEL UNEXPECTED_TOOL_CALL malformed_model_output "
                "malformed_tool_use engine_overloaded modelUnloaded failed userStopped server_error load "
                "internal_error connection_lost disconnected preempted evicted"
            ),
            _ok(chat(word="function_call_filter: MALFORMED_FUNCTION_CALL")),
            _ok(chat(word="stop", choice={"error": {"code": 502, "message": "the pilot left"}})),
            _ok(chat(word="stop", choice={"native_finish_reason": "MALFORMED_FUNCTION_CALL"})),
            _ok(chat(word="stop", message={"error": {"message": "the pilot left"}})),
            _ok(chat(word="error", choice={"error": "the pilot left"})),
            _ok(chat(word={"type": "abort", "message": "the pilot left"})),
            _ok(chat(error={"code": 502, "message": "the pilot left"})),
            _ok(blocks(TEXT, word="error", error={"message": "the pilot left"})),
            _ok({"choices": [{"finish_reason": "error"}]}),
        ),
    ),
    Form(
        "no whole answer: a pause, or tools without a text",
        NO_ANSWER,
        (
            *_words("pause_turn paused compaction in_progress requires_action queued PAUSE_TURN"),
            *_words("tool_calls function_call", content=None),
            _ok(chat(None, "tool_calls", message=_CALL)),
            _ok(chat("", "stop", message=_CALL)),
            _ok(chat(" \n", "stop", message={"function_call": {"name": "f"}})),
            _ok(blocks({"type": "tool_use", "id": "1", "name": "f", "input": {}}, word="tool_use")),
            _ok(blocks({"type": "server_tool_use", "id": "1", "name": "f", "input": {}}, word="pause_turn")),
            _ok(blocks({"type": "compaction", "content": "So far:"}, word="compaction")),
        ),
    ),
    Form(
        "an empty text, also beside reasoning",
        EMPTY,
        (
            _ok(chat("")),
            _ok(chat(None)),
            _ok(chat("\n")),
            _ok(blocks()),
            _ok(chat(None, message={"reasoning_content": "First this."})),
            _ok(blocks({"type": "thinking", "thinking": "First this.", "signature": "s"})),
            _ok(chat("<think>First this.</think>\n")),
        ),
    ),
    # The wire
    Form(
        "an answer behind a BOM, white space, comment lines or a lone event",
        DONE,
        tuple(
            _ok(before + json.dumps(chat()).encode() + behind)
            for before, behind in (
                (b"\xef\xbb\xbf", b""),
                (b"\r\n \n\n", b"\n"),
                (b": PROCESSING\n\n: PROCESSING\n\n", b""),
                (b"data: ", b"\n\ndata: [DONE]\n\n"),
                (b"event: message\ndata: ", b""),
                (b":\n:\n", b"\n\n: bye\n"),
                (b"id: 1\nretry: 10\ndata: ", b"\n\n"),
                (b"[", b"]"),
            )
        ),
    ),
    Form(
        "no answer under status 200: half a JSON, a page, nothing, no choices",
        MALFORMED,
        (
            _ok(b""),
            _ok(b"\n\n"),
            _ok(b'{"choices": [{"mess'),
            _ok(b"<html><title>Welcome</title></html>"),
            _ok(b"null"),
            _ok(b"[]"),
            _ok(b'"A text."'),
            _ok({}),
            _ok(chat() | {"choices": []}),
            _ok({"choices": None, "usage": USAGE}),
            _ok({"choices": [None]}),
            _ok({"content": None}),
            _ok({"choices": [{"finish_reason": "stop"}]}),
        ),
    ),
    # Refusals
    Form(
        "balance, budget, credit or quota used up, under any status",
        ENDPOINT,
        (
            _no(429, _error("no wool left", type="insufficient_quota", code="insufficient_quota"), "no wool left"),
            _no(429, _error("no wool left", type="exceeded_current_quota_error")),
            _no(429, _error("no wool left", code="billing_not_active")),
            _no(400, _error("no wool left", code="billing_hard_limit_reached")),
            _no(402, _error("Insufficient Balance at the mill", type="unknown_error", code="invalid_request_error")),
            _no(402, {"error": "You have exceeded your monthly included credits here"}),
            _no(402, _error("Credit limit exceeded at the mill", type="credit_limit")),
            _no(402, {"type": "error", "error": {"type": "billing_error", "message": "settle the bill first"}}),
            _no(400, {"type": "error", "error": {"type": "invalid_request_error", "message": "Your credit balance is too low to weave"}}, "too low to weave"),
            _no(400, {"type": "error", "error": {"type": "invalid_request_error", "message": "You have reached your specified API usage limits until May"}}),
            _no(403, _error("Key limit exceeded (total limit), see the keys page", code=403)),
            _no(403, _error("This needs a valid credit card on file", type="customer_verification_required")),
            _no(403, {"code": "x", "error": "Your team has used all available credits or reached its monthly spending limit"}),
            _no(403, {"code": "x", "error": "Your new team doesn't have any credits yet"}),
            _no(403, {"code": 30001, "message": "Sorry, your account balance is insufficient", "data": None}),
            _no(403, _error("overdue at the mill", code="AccountOverdueError")),
            _no(403, {"statusCode": 403, "message": "Out of call volume quota. It is refilled in 01:23:45."}),
            _no(412, _error("Account mill is suspended, perhaps for reaching the monthly spending limit")),
            _no(412, _error("the house is shut for failure to pay past invoices", code="PRECONDITION_FAILED")),
            _no(422, _error("over", type="budget_exceeded", code="422")),
            _no(400, _error("ExceededBudget: User=weaver over budget. Spend=2, Budget=1", type="None")),
            _no(429, _error("No looms: crossed budget for provider: Exceeded budget for provider x: 0.02 >= 0.01")),
            _no(429, _error("insufficient balance (1008) in this purse", type="insufficient_balance_error")),
            _no(429, {"errors": [{"message": "you have used up your daily free allocation of 10,000 looms", "code": 4006}]}),
            _no(429, _error("Your prepayment credits are depleted", code=429, status="RESOURCE_EXHAUSTED")),
            _no(429, {"message": "You are using a Trial key, which is limited to 1000 API calls / month."}),
            _no(429, _error("You exceeded your current quota, please check your plan and billing details.")),
            _no(500, {"type": "error", "error": {"type": "api_error", "message": "insufficient balance (1008)"}}),
            _no(401, _error("x", type="insufficient_quota", code=401)),
            _no(429, _error("\u60a8\u7684\u8d26\u6237\u5df2\u6b20\u8d39", code="1113")),
            _ok({"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}, "choices": None}),
            _ok(_error("no wool left", code="insufficient_balance")),
            _ok({"code": 402, "msg": "credits exhausted: out of credits", "success": False}),
        ),
    ),
    Form(
        "an account that is shut, or a place from which nobody is served",
        ENDPOINT,
        (
            _no(400, _error("This organization has been disabled.", type="invalid_request_error")),
            _no(400, _error("Organization has been restricted, write to us", code="organization_restricted")),
            _no(403, _error("Your account has been suspended", type="forbidden")),
            _no(401, _error("The account behind this key was deactivated", code="account_deactivated")),
            _no(400, _error("User location is not supported for the API use.", code=400, status="FAILED_PRECONDITION")),
            _no(403, _error("Country, region, or territory not supported", code="unsupported_country_region_territory", type="request_forbidden")),
        ),
    ),
    Form(
        "a key that is not taken, under 400 or in the body of a 200",
        BARE,
        (
            _no(
                400,
                [{"error": {"code": 400, "message": "API key not valid, pass a good one", "status": "INVALID_ARGUMENT", "details": [{"reason": "API_KEY_INVALID"}]}}],
                "API key not valid",
            ),
            _no(400, _error("API key expired, renew it", code=400, status="INVALID_ARGUMENT")),
            _no(400, {"code": "Client specified an invalid argument", "error": "Incorrect API key provided: k***."}),
            _no(500, _error("Incorrect API key provided", type="server_error", code="invalid_api_key")),
            _ok({"success": False, "errors": [{"code": 10000, "message": "Authentication error"}], "result": None}),
            _ok({"error_code": 110, "error_msg": "Access token invalid or no longer valid"}),
            _ok(_error("no such tally", code=401)),
            _ok({"base_resp": {"status_code": 1004, "status_msg": "invalid api key"}}),
        ),
    ),
    Form(
        "401, 402, 403, 407",
        BARE,
        (
            _no(401, _error("the tally is not known", code="invalid_api_key"), "tally is not known"),
            _no(401, {"type": "error", "error": {"type": "authentication_error", "message": "invalid x-api-key"}}),
            _no(401, {"detail": "Unauthorized"}, "Unauthorized"),
            _no(401, {"error": "Unauthorized"}),
            _no(401, b"<html><title>401 Authorization Required</title></html>", "Authorization Required"),
            _no(401, {"statusCode": 401, "message": "missing subscription key"}),
            _no(401, b""),
            _no(402, b""),
            _no(403, _error("no loom in that house", type="permission_error", code="no_access")),
            _no(403, b"<html><head><title>Attention at the gate</title></head></html>", "Attention at the gate"),
            _no(403, {"message": "Forbidden"}),
            _no(403, b"error code: 1020"),
            _no(407, b""),
            _no(403, _error("Access denied due to the network's rules", code="AccessDenied")),
            _no(403, {"__type": "ExpiredTokenException", "message": "the token has expired"}),
        ),
    ),
    Form(
        "a model that is not there, or not for this key",
        LANE,
        (
            _no(404, _error("The model `vendor/m` does not exist or is not yours", code="model_not_found"), "does not exist"),
            _no(404, {"type": "error", "error": {"type": "not_found_error", "message": "model: vendor/m"}}),
            _no(404, _error("No endpoints found for vendor/m.", code=404)),
            _no(404, _error("gone", code="DeploymentNotFound")),
            _no(404, _error('model "vendor/m" not found, try pulling it first', type="api_error")),
            _no(404, {"error": {"code": "InvalidEndpointOrModel.NotFound", "message": "x", "type": "NotFound"}}),
            _no(404, {"object": "error", "message": "The model `vendor/m` does not exist.", "type": "NotFoundError"}),
            _no(404, {"message": "Model use case details have not been submitted for this account"}),
            _no(404, _error("This is not a chat model, so not for this way", type="invalid_request_error", param="model")),
            _no(410, {"title": "Gone", "detail": "The model 'vendor/m' has reached its end of life"}),
            _no(400, _error("Invalid model name passed in model=vendor/m", type="None", code="400")),
            _no(400, {"object": "error", "message": "Invalid model: vendor/m", "type": "invalid_model", "code": "1500"}),
            _no(400, _error("vendor/m is not a valid model ID", code=400)),
            _no(400, _error("Model Not Exist", type="invalid_request_error", code="invalid_request_error")),
            _no(400, _error("The model `vendor/m` has been decommissioned", code="model_decommissioned")),
            _no(400, _error("The model vendor/m requires that terms are accepted", code="model_terms_required")),
            _no(400, _error("start an endpoint first", code="model_not_available", type="invalid_request_error")),
            _no(400, {"error": {"code": "unavailable_model", "message": "Unavailable model: vendor/m"}}),
            _no(400, {"message": "The provided model identifier is invalid.", "__type": "ValidationException"}),
            _no(400, {"message": "Invocation of model ID vendor/m with on-demand throughput isn't supported."}),
            _no(400, {"code": 20012, "message": "Model does not exist, check it", "data": None}),
            _no(400, _error("The chatCompletion operation does not work with the specified model", code="OperationNotSupported")),
            _no(400, {"error": "The requested model 'vendor/m' is not supported by any provider", "code": "model_not_supported"}),
            _no(400, {"error": 'Failed to load model "vendor/m". Error: Model does not exist.'}),
            _no(401, _error("key not allowed to access model", type="key_model_access_denied", param="model", code="401")),
            _no(403, _error("Project mill does not have access to model `vendor/m`", code="model_not_found")),
            _no(403, {"message": "You don't have access to the model with the specified model ID."}),
            _no(403, _error("You are not allowed to sample from this model")),
            _no(403, {"code": 30003, "message": "Model disabled.", "data": None}),
            _no(403, _error("the house has blocked vendor/m", code="model_permission_blocked_org")),
            _no(400, _error("Your organization must be verified to use the model `vendor/m`", param=None)),
            _no(422, _error("unknown model vendor/m")),
            _no(503, _error("no channel for vendor/m", code="model_not_found")),
            _ok(_error("The model vendor/m does not exist", code="model_not_found")),
        ),
    ),
    Form(
        "a path or method that is not there",
        BARE,
        (
            _no(404, {"detail": "Not Found"}, "asked https://h.example/v1/chat/completions"),
            _no(404, _error("Invalid URL (POST /v1/v1/chat/completions)"), "asked https://"),
            _no(404, {"message": "no Route matched with those values"}, "asked https://"),
            _no(404, b"404 page not found", "asked https://"),
            _no(404, b"", "asked https://"),
            _no(404, {"error": {"code": "404", "message": "Resource not found"}}, "asked https://"),
            _no(405, {"detail": "Method Not Allowed"}, "asked https://"),
            _no(501, _error("this server serves no chats", type="not_supported_error", code=501), "asked https://"),
        ),
    ),
    Form(
        "a redirect, or a protocol that is not the server's",
        ENDPOINT,
        (
            _no(301, b""),
            _no(302, b"<title>Moved</title>"),
            _no(307, b""),
            _no(308, b""),
            _no(400, b"<title>400 The plain HTTP request was sent to HTTPS port</title>"),
            _no(400, b"Client sent an HTTP request to an HTTPS server.\n"),
        ),
    ),
    Form(
        "a prompt that was moderated",
        INPUT,
        (
            _no(403, _error("your input was flagged", code=403, metadata={"reasons": ["x"], "flagged_input": "…"}), "flagged"),
            _no(
                403,
                {
                    "code": "The caller does not have permission to do that",
                    "error": "Content violates usage guidelines. Team: t, API key ID: k, Failed check: SAFETY_CHECK_TYPE_X",
                },
                "usage guidelines",
            ),
            _no(400, _error("Content Exists Risk", type="invalid_request_error", code="invalid_request_error")),
            _no(400, {"code": "data_inspection_failed", "message": "x"}),
            _no(400, _error("<400> InternalError.Algo.DataInspectionFailed: Input text data may contain inappropriate content.")),
            _no(400, _error("x", code="content_filter", param="prompt", innererror={"code": "ResponsibleAIPolicyViolation"})),
            _no(400, _error("x", type="content_policy_violation")),
            _no(400, _error("x", code="SensitiveContentDetected")),
            _no(400, {"error": {"code": "1301", "message": "\u654f\u611f\u5185\u5bb9"}, "contentFilter": [{"level": 1, "role": "user"}]}),
            _no(400, _error("Invalid prompt: it was flagged as perhaps violating our usage policy", code="invalid_prompt")),
            _no(400, {"type": "error", "error": {"type": "invalid_request_error", "message": "Output blocked by content filtering policy"}}),
            _no(400, _error("Request rejected: it was considered high risk", type="content_filter")),
            _no(400, _error("INVALID", status="INVALID_ARGUMENT", details=[{"reason": "PUBLIC_ERROR_UNSAFE_GENERATION"}])),
            _no(400, {"error": {"message": {"error": "Violated guardrail policy", "bedrock_guardrail_response": "no"}}}),
            _no(400, _error("{'error': 'Violated content safety policy', 'category': 'x'}", type="None", code="400")),
            _no(424, {"success": False, "result": [], "error": [{"code": 2016, "message": "Prompt blocked due to security configurations"}]}),
            _no(446, _error("the guardrail checks of the config failed", type="hooks_failed")),
            _no(451, _error("x")),
            _no(422, _error("x", code="moderation_blocked")),
            _no(498, {"message": "This input was blocked by moderation"}),
            _no(500, _error("x", code="content_filter")),
            _ok(_error("x", code="content_filter")),
            _ok({"base_resp": {"status_code": 1026, "status_msg": "input new_sensitive: sensitive content"}, "choices": None}),
        ),
    ),
    Form(
        "a prompt that is too long",
        INPUT,
        (
            _no(400, _error("This model's maximum context length is 8192 tokens, you came with 9000"), "8192"),
            _no(400, _error("x", code="context_length_exceeded", param="messages")),
            _no(400, _error("hold takes 512, 900 came", code=400, type="exceed_context_size_error", n_ctx=512)),
            _no(400, {"type": "error", "error": {"type": "invalid_request_error", "message": "prompt is too long: 9 tokens > 8 maximum"}}),
            _no(400, _error("input length and `max_tokens` exceed context limit: 9 + 9 > 10")),
            _no(400, _error("The input token count (9000) exceeds the maximum number of tokens allowed (8000).", code=400)),
            _no(400, {"message": "Input is too long for requested model."}),
            _no(400, {"message": "too many tokens: size limit exceeded by 10 tokens. Try shorter or fewer inputs"}),
            _no(400, {"error": "This model's maximum prompt length is 8192 but the request contains 9000 tokens."}),
            _no(400, {"object": "error", "message": "The decoder prompt (length 5000) is longer than the maximum model length of 4096."}),
            _no(400, _error("The input (9000 tokens) is longer than the model's context length (8192 tokens).")),
            _no(400, _error("Please reduce the length of the messages or completion. It is 9000 while limit is 8192")),
            _no(400, _error("<400> InternalError.Algo.InvalidParameter: Range of input length should be [1, 30720]")),
            _no(400, _error("Prompt exceeds max length", code="1261")),
            _no(400, _error("the request exceeds the available context size, try to raise it")),
            _no(422, _error("Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4097. Given: 5000")),
            _no(422, {"error": "Input validation error: `inputs` must have less than 2048 tokens. Given: 3000", "error_type": "validation"}),
            _no(413, b"<title>413 Bale Too Large</title>", "Bale Too Large"),
            _no(413, {"type": "error", "error": {"type": "request_too_large", "message": "x"}}),
            _no(413, _error("Request body too large for the model. Max size: 8000 tokens.", code="tokens_limit_reached")),
            _no(414, b""),
            _no(431, b""),
        ),
    ),
    Form(
        "one request that is larger than the limit of a whole minute",
        INPUT,
        (
            _no(429, _error("Request too large on tokens per min (TPM): Limit 30000, Requested 342389.", code="rate_limit_exceeded")),
            _no(413, _error("Request too large on TPM: Limit 6000, Requested 12328", type="tokens", code="rate_limit_exceeded")),
            _no(429, _error("Limit: 6,000. Requested: 12,328 tokens")),
            _no(429, _error("12328 tokens were requested, but the limit is 6000")),
        ),
    ),
    Form(
        "a parameter, or anything else that is wrong with the request",
        ROW,
        (
            _no(400, _error("top_q is no parameter here", type="invalid_request_error", param="top_q"), "top_q is no"),
            _no(422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "barred"}]}, "seed = false"),
            _no(400, _error("Unsupported parameter: 'max_tokens'"), "max_completion_tokens"),
            _no(400, _error("`temperature` is deprecated for this model."), 'temperature = "unset"'),
            _no(400, {"object": "error", "message": "max_tokens came out at -344", "code": 400}, "-344"),
            _no(400, {"errors": ["the comb is full"]}, "the comb is full"),
            _no(400, {"fault": {"faultstring": "Spike at the hill", "detail": {"errorcode": "x"}}}, "Spike at the hill"),
            _no(400, _error("No connected db.", type="no_db_connection", code="400"), "No connected db"),
            _no(400, b"the mill takes no such cloth", "takes no such cloth"),
            _no(400, b"", "HTTP 400"),
            _no(400, {"Response": {"Error": {"Code": "InvalidParameter", "Message": "the warp is torn"}}}, "the warp is torn"),
            _no(400, {"header": {"code": 10004, "message": "the weft is torn"}}, "the weft is torn"),
            _no(400, {"error": {"root_cause": [{"type": "x", "reason": "the selvedge frays"}], "type": "x"}}, "selvedge frays"),
            _no(400, {"errors": {"messages": ["the fringe is short"]}}, "the fringe is short"),
            _no(400, {"error": {"errors": [{"message": "the hem is loose"}]}}, "the hem is loose"),
            _no(400, {"exception": "the pile is flat"}, "the pile is flat"),
            _no(400, {"err": {"info": "the nap is worn"}}, "the nap is worn"),
            _no(400, {"status": 400, "result": {"message": "the dye runs"}}, "the dye runs"),
            _no(400, {"error": {"message": "upstream error", "metadata": {"raw": '{"detail": "the bale is wet"}'}}}, "the bale is wet"),
            _no(415, b""),
            _no(406, b""),
        ),
    ),
    Form(
        "too many calls for now",
        WAIT,
        (
            _no(429, _error("slower", code="rate_limit_exceeded")),
            _no(429, b"error code: 1015"),
            _no(429, b""),
            _no(529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
            _no(420, b""),
            _no(429, _error("No looms free, Try again in 5 seconds. Passed model=vendor/m", code="429")),
            _no(400, {"__type": "ThrottlingException", "message": "Rate exceeded"}),
            _no(403, {"error": {"code": 403, "message": "x", "errors": [{"reason": "rateLimitExceeded"}]}}),
            _no(403, {"code": 30011, "message": "RPM limit exceeded, show who you are to lift it", "data": None}),
            _no(429, {"message": "Tokens per minute limit exceeded", "type": "too_many_tokens_error", "param": "quota", "code": "token_quota_exceeded"}),
            _no(
                429,
                _error(
                    "You exceeded your current quota, please check your plan and billing details. Retry in 33.4s.",
                    status="RESOURCE_EXHAUSTED",
                    details=[{"retryDelay": "33s"}],
                ),
            ),
            _no(429, _error("Quota exceeded for requests_per_minute_per_project", status="RESOURCE_EXHAUSTED")),
            _no(429, {"message": "You are using a Trial key, which is limited to 10 API calls / minute."}),
            _no(429, {"object": "error", "message": "Service tier capacity exceeded", "type": "service_tier_capacity_exceeded"}),
            _no(429, {"type": "error", "error": {"type": "rate_limit_error", "message": "This request would exceed your rate limit of 30,000 input tokens per minute."}}),
            _no(429, _error("Limit 30000, Used 29000, Requested 2500", code="rate_limit_exceeded")),
            _ok(_error("free looms are taken", code=429)),
            _ok(_error("slower", type="rate_limit_error")),
            _ok({"base_resp": {"status_code": 1002, "status_msg": "rate limit"}, "choices": None}),
        ),
    ),
    Form(
        "what passes, and is not billed",
        PASSES,
        (
            *(_no(status, _error("passing trouble")) for status in (409, 419, 423, 425, 440, 449, 498)),
            _no(404, _error("the model is still loading, try again", code="model_overloaded")),
            _no(400, {"error": "The model has crashed without additional information."}),
            _no(400, _error("x", type="overloaded_error")),
            _no(422, _error("x", code="service_unavailable")),
        ),
    ),
    Form(
        "what passes, and may be billed",
        MAY_BILL,
        (
            *(_no(status, _error("passing trouble")) for status in (408, 424, 460, 499, 500, 502, 503, 504, 520, 522, 524, 530)),
            _no(503, _error("Loading model", type="unavailable_error", code=503)),
            _no(503, {"error": "Model vendor/m is currently loading", "estimated_time": 20.0}),
            _no(503, b"upstream connect error"),
            _no(500, _error("llama runner process has terminated")),
            _ok(_error("the pilots are gone", code="provider_unavailable")),
            _ok({"error": "Unexpected way in"}),
            _ok({"object": "error", "message": "the vat is cold", "code": 50001}),
            _ok({"code": 500, "msg": "the vat is cold", "success": False}),
            _ok({"detail": "the vat is cold"}),
            _ok({"status": "error", "message": "the vat is cold"}),
        ),
    ),
    # What it counts and costs
    Form(
        "output is never less than the total without the prompt",
        "32 tokens of input, 9,009 of output",
        tuple(
            _ok(chat(usage=usage))
            for usage in (
                {"prompt_tokens": 32, "completion_tokens": 9, "total_tokens": 9041, "completion_tokens_details": {"reasoning_tokens": 9000}},
                {"prompt_tokens": 32, "completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 9000}},
                {"prompt_tokens": 32, "completion_tokens": 9, "reasoning_tokens": 9000},
                {"prompt_tokens": 32, "completion_tokens": 9, "total_tokens": 9041},
                {"prompt_tokens": 32, "total_tokens": 9041},
                {"promptTokenCount": 32, "candidatesTokenCount": 9, "thoughtsTokenCount": 9000, "totalTokenCount": 9041},
                {"prompt_tokens": "32", "completion_tokens": "9009", "total_tokens": "9041"},
                {"inputTokens": 32, "outputTokens": 9009, "totalTokens": 9041},
                {"prompt_tokens": 32, "completion_tokens": 9009, "total_tokens": 40},
                {"prompt_tokens": 32.0, "completion_tokens": 9009.0},
            )
        ),
        tokens_of,
    ),
    Form(
        "reasoning that is a part of the output is not added twice",
        "100 tokens of input, 500 of output",
        tuple(
            _ok(chat(usage=usage))
            for usage in (
                {"prompt_tokens": 100, "completion_tokens": 500, "total_tokens": 600, "completion_tokens_details": {"reasoning_tokens": 400}},
                {"prompt_tokens": 100, "completion_tokens": 500, "reasoning_tokens": 400},
                {"input_tokens": 100, "output_tokens": 500, "output_tokens_details": {"reasoning_tokens": 400}},
            )
        ),
        tokens_of,
    ),
    Form(
        "tokens from a prompt cache are tokens of the input",
        "1,510 tokens of input, 7 of output",
        tuple(
            _ok(chat(usage=usage))
            for usage in (
                {"input_tokens": 10, "cache_read_input_tokens": 1000, "cache_creation_input_tokens": 500, "output_tokens": 7},
                {"inputTokens": 10, "cacheReadInputTokens": 1000, "cacheWriteInputTokens": 500, "outputTokens": 7},
                {"prompt_tokens": 1510, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 1000}},
                {"prompt_tokens": 1510, "completion_tokens": 7, "cache_read_input_tokens": 1000},
                {"prompt_tokens": 1510, "completion_tokens": 7, "prompt_cache_hit_tokens": 1000},
                {"input_tokens": 1510, "output_tokens": 7, "input_tokens_details": {"cached_tokens": 1000}},
            )
        ),
        tokens_of,
    ),
    Form(
        "no usage, or one that is none",
        "not counted: the worst case counts as spent",
        (
            _ok(chat(usage=None)),
            _ok(chat(usage={})),
            _ok(chat(usage=[])),
            _ok(chat(usage="many")),
            _ok(chat(usage={"prompt_tokens": True, "completion_tokens": -5})),
            _ok(chat(usage={"prompt_tokens": 10})),
            _ok(chat(usage={"prompt_tokens": 10**30, "completion_tokens": "many"})),
        ),
        tokens_of,
    ),
    Form(
        "a cost that the endpoint tells",
        "told: 0.25 USD; the larger of this and the list price counts",
        (
            *(
                _ok(chat(usage={**USAGE, **more}))
                for more in (
                    {"cost": 0.25},
                    {"cost": "0.25"},
                    {"cost": {"total_cost": 0.25, "currency": "USD"}},
                    {"estimated_cost": 0.25},
                    {"cost_in_usd_ticks": 2_500_000_000},
                    {"cost_usd_total": 0.25},
                    {"total_cost": 0.25},
                    {"cost": 0.01, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.24}},
                    {"cost": 0.25, "is_byok": False, "cost_details": {"upstream_inference_cost": 0.25}},
                )
            ),
            _ok(chat(cost=0.25)),
            _ok(chat(provider_metadata={"gateway": {"cost": "0.25"}})),
            _ok(chat(x_nanogpt_pricing={"amount": 0.25, "currency": "USD"})),
            _ok(chat(billing={"total_cost": 0.25})),
            *(_ok(chat(), (name, b"0.25")) for name in (b"X-LiteLLM-Response-Cost", b"x-response-cost", b"x-cost-usd", b"x-total-cost", b"x-gateway-request-cost")),
        ),
        cost_of,
    ),
    Form(
        "no cost, or one that is none of this call in dollars",
        "the list price counts",
        (
            _ok(chat()),
            *(_ok(chat(usage={**USAGE, "cost": cost})) for cost in (None, -1, True, "free", 1e12)),
            _ok(chat(usage={**USAGE, "cost": {"total_cost": 0.25, "currency": "EUR"}})),
            *(_ok(chat(), (name, b"0.25")) for name in (b"x-litellm-key-spend", b"x-key-total-cost", b"x-max-cost", b"x-ratelimit-limit-cost")),
            _ok(chat(), (b"x-litellm-response-cost", b"None")),
        ),
        cost_of,
    ),
    # What the model thought
    Form(
        "reasoning beside the text",
        "`reasoning.txt` has it",
        (
            *(
                _ok(chat(message={name: value}))
                for name, value in (
                    ("reasoning_content", THOUGHT),
                    ("reasoning", THOUGHT),
                    ("reasoning", {"content": THOUGHT}),
                    ("reasoning_text", THOUGHT),
                    ("thinking", THOUGHT),
                    ("thoughts", THOUGHT),
                    ("reasoning_details", [{"type": "reasoning.text", "text": THOUGHT}, {"type": "reasoning.encrypted", "data": "x"}]),
                    ("reasoning_details", [{"type": "reasoning.summary", "summary": THOUGHT}]),
                    ("thinking_blocks", [{"type": "thinking", "thinking": THOUGHT, "signature": "s"}]),
                    ("provider_specific_fields", {"reasoning_content": THOUGHT}),
                    ("reasoningContent", {"reasoningText": {"text": THOUGHT, "signature": "s"}}),
                )
            ),
            _ok(chat([{"type": "thinking", "thinking": [{"type": "text", "text": THOUGHT}]}, TEXT])),
            _ok(chat([{"type": "reasoning", "summary": [{"text": THOUGHT}]}, TEXT])),
            _ok(chat([{"text": THOUGHT, "thought": True}, {"text": "A text."}])),
            _ok(chat(choice={"reasoning": THOUGHT})),
            _ok(blocks({"type": "thinking", "thinking": THOUGHT, "signature": "s"}, TEXT)),
            _ok(blocks({"type": "thinking", "thinking": THOUGHT}, {"type": "redacted_thinking", "data": "x"}, TEXT)),
        ),
        thoughts_of,
    ),
    Form(
        "thinking before the text, in tags",
        "left out of what parsers and children see",
        tuple(
            _ok(chat(text))
            for text in (
                "<think>First this.</think>A text.",
                "<think>\nFirst this.\n</think>\n\nA text.",
                "First this.\n</think>\n\nA text.",
                "<thinking>First this.</thinking>\nA text.",
                "<thought>First this.</thought>A text.",
                "<reasoning>First this.</reasoning>\nA text.",
            )
        ),
        thoughts_of,
    ),
    # Scores
    Form(
        "a line with a score, whatever stands around it",
        "**done**: the score is 7.0",
        tuple(
            _ok(chat(text))
            for text in (
                "Good.\nSCORE: 7",
                "**SCORE: 7**",
                "SCORE: 7/10",
                "SCORE: 7\nA perfect score is 10.",
                "SCORE: 4\nNo.\nSCORE: 7",
                "<think>SCORE: 2</think>\nSCORE: 7",
                "SCORE: 7 (a firm hand)",
                "Final Score: 7",
                "Voice score: 2/5\nSCORE: 7",
            )
        ),
        parser="in_last_line",
    ),
    Form(
        "a score that cannot be read without guessing, or none",
        "kept as *unparseable*",
        tuple(_ok(chat(text)) for text in ("SCORE: 6-7", "SCORE: N/A", "SCORE: between 5 and 7", "Good.", "SCORE: 11", "SCORE: -3", "SCORE: 100")),
        parser="in_last_line",
    ),
)
# fmt: on


def spellings(form: Form, most: int = 8) -> str:
    """How the examples of a form are spelled, in a few words for the documentation; ``""`` where in no word."""
    found = {spelling.lower(): spelling for example in form.examples if (spelling := _spelling(example))}
    if found.keys() <= {"`stop`", "`end_turn`"}:
        return ""
    shown = ", ".join(list(found.values())[:most])
    return f"{shown}, …" if len(found) > most else shown


def _spelling(example: Example) -> str:
    """The finish word of an example, or its status with the code in its body."""
    body = example.body[0] if isinstance(example.body, list) and example.body else example.body
    record = body if isinstance(body, dict) else {}
    error = record.get("error") or record
    if example.status == 200 and not (isinstance(error, str) or error.get("message")):
        choice = next(iter(record.get("choices") or ()), None) or record
        word = choice.get("finish_reason", choice.get("stop_reason"))
        return f"`{word}`" if isinstance(word, str) and word else ""
    codes = (error.get(key) for key in ("code", "type")) if isinstance(error, dict) else ()
    named = (code for code in codes if isinstance(code, str) and not code.isdigit() and " " not in code)
    code = next(named, None)
    status = "" if example.status == 200 else str(example.status)
    return " ".join(filter(None, (status, code and f"`{code}`")))
