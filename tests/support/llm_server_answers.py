"""What the local LLM server says: parsed prompts, deterministic texts, the APIs' JSON, right or wrong."""

from __future__ import annotations

import json
import math
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from functools import lru_cache
from hashlib import sha256, shake_256
from typing import Any, Literal

from .llm_server_options import Api, Fault, Hint, Options, ParsedRequest, Quota

Headers = tuple[tuple[str, str], ...]
Delivery = Literal["whole", "half-reset", "half-close", "half-stall", "drip", "reset", "hang"]

WORDS = """
the the the the a a a of of of to to to in in and and and that is was for it with as on be at by this
from or an are not have but had they which one you were all her she there would their we him been has
when who will more no if out so said what up its about into than them can only other new some could time
these two may then do first any my now such like our over man me even most made after also did many
before must through back years where much your way well down should because each just those people how
too little state good very make world still own see men work long get here between both life being under
never day same another know while last might us great old year off come since against go came right used
take three river garden letter window morning silence harbour lamp road winter summer story voice hand
house paper stone water light shadow answer question measure reason memory promise quiet bright narrow
patient careful distant ordinary sudden gentle honest plain certain strange common simple early walks
carries opens gathers remembers follows begins changes turns listens waits returns builds keeps finds
""".split()

_SENTENCES_IN_PARAGRAPH = 5


@dataclass(frozen=True, slots=True)
class Prompt:
    """The part of a request that its answer depends on."""

    model: str
    messages: tuple[tuple[str, str], ...]
    text: str
    sha256: str
    key: str
    seed: int | None
    max_tokens: int | None
    body: Mapping[str, Any]

    @property
    def tokens(self) -> int:
        """About four characters each."""
        return max(1, math.ceil(len(self.text) / 4))


class BadRequest(ValueError):
    """A request that the provider would answer with 400."""


def prompt_sha256(text: str) -> str:
    """The hash under which a prompt's text is counted."""
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _text_of(content: object) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part.get("text", "") for part in content if isinstance(part, dict)]
        return "\n".join(part for part in parts if isinstance(part, str))
    if content is None:
        return ""
    raise BadRequest("content must be a string or a list of parts")


def parse_prompt(api: Api, raw: bytes) -> Prompt:
    """Read a request's body.

    Raises:
        BadRequest: It is not a completion request of this API.
    """
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise BadRequest(f"We could not parse the JSON body of your request: {error}") from None
    if not isinstance(body, dict):
        raise BadRequest("the body must be an object")
    model, listed = body.get("model"), body.get("messages")
    if not isinstance(model, str) or not model:
        raise BadRequest("you must provide a model parameter")
    if not isinstance(listed, list) or not listed:
        raise BadRequest("messages: at least one message is required")
    if body.get("stream"):
        raise BadRequest("this server does not stream")
    if api == "anthropic" and not isinstance(body.get("max_tokens"), int):
        raise BadRequest("max_tokens: Field required")
    messages: list[tuple[str, str]] = []
    if api == "anthropic" and (system := _text_of(body.get("system"))):
        messages.append(("system", system))
    for message in listed:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRequest("messages: each needs a role")
        messages.append((message["role"], _text_of(message.get("content"))))
    seed = body.get("seed")
    limit = body.get("max_completion_tokens", body.get("max_tokens"))
    text = "\n\n".join(content for _, content in messages)
    identity = json.dumps([model, messages, seed]).encode()
    return Prompt(
        model=model,
        messages=tuple(messages),
        text=text,
        sha256=prompt_sha256(text),
        key=sha256(identity).hexdigest(),
        seed=seed if isinstance(seed, int) else None,
        max_tokens=limit if isinstance(limit, int) else None,
        body=body,
    )


def _fragments(name: str, words: int) -> tuple[str, ...]:
    """256 runs of words, the same in every process."""
    digest = shake_256(name.encode()).digest(512 * words)
    picked = [
        WORDS[(high << 8 | low) % len(WORDS)] for high, low in zip(digest[::2], digest[1::2], strict=True)
    ]
    return tuple(" ".join(picked[start : start + words]) for start in range(0, len(picked), words))


_OPENINGS = tuple(fragment.capitalize() for fragment in _fragments("opening", 4))
_MIDDLES = _fragments("middle", 5)
_ENDS = _fragments("end", 3)
_WORDS_IN_SENTENCE = 12


def write_text(key: str, words: int) -> str:
    """About so many words (± 15 %) of English-like text, the same for the same key."""
    # Whole fragments instead of single words: a text costs 10 µs instead of 130.
    varied = words * (0.85 + 0.3 * int(key[-2:] or "0", 16) / 255)
    sentences = max(1, round(varied / _WORDS_IN_SENTENCE))
    digest = shake_256(key.encode()).digest(3 * sentences)
    written = [
        f"{_OPENINGS[first]} {_MIDDLES[second]} {_ENDS[third]}."
        for first, second, third in zip(digest[::3], digest[1::3], digest[2::3], strict=True)
    ]
    step = _SENTENCES_IN_PARAGRAPH
    return "\n\n".join([" ".join(written[start : start + step]) for start in range(0, sentences, step)])


def answer_text(options: Options, prompt: Prompt) -> str:
    """The answer that the prompt gets when no hook says otherwise."""
    text = write_text(prompt.key, options.words)
    if options.score_marker and options.score_marker.lower() in prompt.text.lower():
        text += f"\n\nSCORE: {int(prompt.key[:8], 16) % 10}"
    return text


def completion_tokens(text: str) -> int:
    """About 1.3 a word."""
    return round(len(text.split()) * 1.3)


@dataclass(frozen=True, slots=True)
class Response:
    """What goes over the wire."""

    status: int
    body: bytes = b""
    headers: Headers = ()
    content_type: str = "application/json"
    delivery: Delivery = "whole"
    seconds: float | None = None  # of a drip, a hang or a stall; None: until the client closes
    lazy: Callable[[], Iterator[bytes]] | None = None  # the body, when it is too large to hold
    length: int | None = None  # of the lazy body


_OPENAI_ERRORS: dict[int, tuple[str, str | None, str]] = {
    400: ("invalid_request_error", None, "The request was malformed."),
    401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
    402: ("billing_error", "payment_required", "Payment is required."),
    403: ("permission_error", "permission_denied", "You do not have access to this resource."),
    404: (
        "invalid_request_error",
        "model_not_found",
        "The model does not exist or you do not have access to it.",
    ),
    408: ("timeout_error", "request_timeout", "The request took too long to arrive."),
    409: ("conflict_error", "conflict", "The resource was changed by another request."),
    413: ("invalid_request_error", "request_too_large", "The request is too large."),
    422: ("invalid_request_error", "unprocessable", "The request could not be processed."),
    429: ("requests", "rate_limit_exceeded", "Rate limit reached for requests."),
    500: ("server_error", None, "The server had an error while processing your request."),
    502: ("server_error", None, "Bad gateway."),
    503: ("server_error", None, "The engine is currently overloaded, please try again later."),
    504: ("server_error", None, "Gateway timeout."),
    529: ("overloaded_error", None, "Overloaded."),
}

_ANTHROPIC_ERRORS: dict[int, tuple[str, str]] = {
    400: ("invalid_request_error", "The request was malformed."),
    401: ("authentication_error", "invalid x-api-key"),
    402: ("billing_error", "There is an issue with your billing."),
    403: ("permission_error", "Your API key does not have permission to use the specified resource."),
    404: ("not_found_error", "The requested resource could not be found."),
    408: ("timeout_error", "The request took too long to arrive."),
    409: ("conflict_error", "The resource was changed by another request."),
    413: ("request_too_large", "Request exceeds the maximum allowed number of bytes."),
    422: ("invalid_request_error", "The request could not be processed."),
    429: ("rate_limit_error", "This request would exceed your rate limit."),
    500: ("api_error", "Internal server error"),
    502: ("api_error", "Bad gateway"),
    503: ("api_error", "Service unavailable"),
    504: ("timeout_error", "Gateway timeout"),
    529: ("overloaded_error", "Overloaded"),
}


def error_body(
    api: Api,
    status: int,
    request_id: str,
    *,
    message: str | None = None,
    kind: str | None = None,
    code: str | None = None,
) -> bytes:
    """The provider's JSON for an error; ``code`` stands in Anthropic's type too."""
    if api == "anthropic":
        usual_kind, usual_message = _ANTHROPIC_ERRORS.get(status, ("api_error", f"HTTP {status}"))
        error = {"type": code or kind or usual_kind, "message": message or usual_message}
        return json.dumps({"type": "error", "error": error, "request_id": request_id}).encode()
    openai_kind, openai_code, openai_message = _OPENAI_ERRORS.get(
        status, ("server_error", None, f"HTTP {status}")
    )
    body = {
        "message": message or openai_message,
        "type": kind or openai_kind,
        "param": None,
        "code": code or openai_code,
    }
    return json.dumps({"error": body}).encode()


def _duration(seconds: float) -> str:
    """OpenAI's way to write a duration: 6ms, 1.5s, 1m30s, 2h0m5s."""
    if seconds < 1.0:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, 60)
    tail = f"{rest:.3f}".rstrip("0").rstrip(".") + "s"
    if minutes < 1:
        return tail
    hours, left = divmod(int(minutes), 60)
    return f"{hours}h{left}m{tail}" if hours else f"{left}m{tail}"


def _iso(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")


def hint_headers(api: Api, hint: Hint, computed_s: float) -> Headers:
    """The headers that say when to come back."""
    seconds = computed_s if hint.seconds is None else hint.seconds
    match hint.style:
        case "retry-after":
            # A computed wait is rounded up: whole seconds are what providers send.
            return (("retry-after", f"{math.ceil(seconds) if hint.seconds is None else seconds:g}"),)
        case "retry-after-date":
            return (("retry-after", formatdate(time.time() + seconds, usegmt=True)),)
        case "retry-after-ms":
            return (("retry-after-ms", f"{math.ceil(seconds * 1000)}"),)
        case "reset" | "reset-tokens":
            what = "tokens" if hint.style == "reset-tokens" else "requests"
            if api == "anthropic":
                return ((f"anthropic-ratelimit-{what}-reset", _iso(seconds)),)
            return ((f"x-ratelimit-reset-{what}", _duration(seconds)),)
        case _:
            return ()


def quota_headers(api: Api, quotas: Mapping[str, Quota]) -> Headers:
    """The provider's announcement of its limits."""
    found: list[tuple[str, str]] = []
    for name, quota in quotas.items():
        if api == "anthropic":
            names = (name,) if name == "requests" else ("tokens", "input-tokens", "output-tokens")
            for each in names:
                found.append((f"anthropic-ratelimit-{each}-limit", str(quota.limit)))
                found.append((f"anthropic-ratelimit-{each}-remaining", str(quota.remaining)))
                found.append((f"anthropic-ratelimit-{each}-reset", _iso(quota.reset_s)))
        else:
            found.append((f"x-ratelimit-limit-{name}", str(quota.limit)))
            found.append((f"x-ratelimit-remaining-{name}", str(quota.remaining)))
            found.append((f"x-ratelimit-reset-{name}", _duration(quota.reset_s)))
    return tuple(found)


def request_id(request: ParsedRequest) -> str:
    """The id in the provider's header; a second request with the same prompt has another."""
    return f"req_{request.key[:16]}{request.number:08x}"


def id_header(request: ParsedRequest) -> Headers:
    """The header with the request's id."""
    return (("request-id" if request.api == "anthropic" else "x-request-id", request_id(request)),)


_FINISH: dict[str, tuple[str, str]] = {
    "length": ("length", "max_tokens"),
    "filter": ("content_filter", "refusal"),
}
_REFUSAL = "I can't help with that."


def _openai_answer(
    request: ParsedRequest, text: str, kind: str, finish: str, tokens: tuple[int, int, int]
) -> dict[str, Any]:
    prompt_tokens, cached, written = tokens
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
    if kind == "null":
        message["content"] = None
    elif kind == "refusal":
        message |= {"content": None, "refusal": _REFUSAL}
    elif kind == "thinking":
        message["reasoning_content"] = "First, let me think."
    elif kind == "extra-fields":
        message["x_new"] = {"nested": [1, None, {"deep": True}]}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    answer: dict[str, Any] = {
        "id": f"chatcmpl-{request.key[:20]}{request.number:06x}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": request.model,
        "choices": [] if kind == "no-content" else [choice],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": written,
            "total_tokens": prompt_tokens + written,
            "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
        },
        "service_tier": request.body.get("service_tier", "default"),
        "system_fingerprint": "fp_local",
    }
    return answer


def _anthropic_answer(
    request: ParsedRequest, text: str, kind: str, finish: str, tokens: tuple[int, int, int]
) -> dict[str, Any]:
    prompt_tokens, cached, written = tokens
    blocks: list[dict[str, Any]] | None = [{"type": "text", "text": text}]
    if kind == "null":
        blocks = None
    elif kind == "no-content":
        blocks = []
    elif kind == "refusal":
        blocks, finish = [{"type": "text", "text": _REFUSAL}], "refusal"
    elif kind == "thinking":
        blocks = [
            {"type": "thinking", "thinking": "First, let me think.", "signature": "c2ln"},
            *(blocks or []),
        ]
    elif kind == "extra-fields":
        blocks = [{"type": "text", "text": text, "x_new": {"nested": [1, None, {"deep": True}]}}]
    return {
        "id": f"msg_{request.key[:20]}{request.number:06x}",
        "type": "message",
        "role": "assistant",
        "model": request.model,
        "content": blocks,
        "stop_reason": finish,
        "stop_sequence": None,
        "usage": {
            "input_tokens": prompt_tokens - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": written,
            "service_tier": "standard",
        },
    }


def _answer(options: Options, request: ParsedRequest, text: str, kind: str) -> dict[str, Any]:
    openai_finish, anthropic_finish = _FINISH.get(kind, ("stop", "end_turn"))
    limit = request.max_tokens if options.honour_max_tokens and kind != "huge" else None
    if kind == "length":
        text = text[: len(text) // 2]
    elif limit is not None and completion_tokens(text) > limit:
        text = " ".join(text.split(" ")[: max(1, int(limit / 1.3))])
        openai_finish, anthropic_finish = _FINISH["length"]
    elif kind in ("empty", "filter", "no-content", "null"):
        text = ""
    elif kind == "surrogate":
        text += " \ud800 end"
    elif kind == "crlf":
        text = text.replace("\n", "\r\n")
    prompt_tokens = max(1, math.ceil(len(request.prompt) / 4))
    tokens = (prompt_tokens, int(prompt_tokens * options.cached_share), completion_tokens(text))
    if request.api == "anthropic":
        answer = _anthropic_answer(request, text, kind, anthropic_finish, tokens)
    else:
        answer = _openai_answer(request, text, kind, openai_finish, tokens)
    if options.served_tier is not None:
        told = answer if request.api == "openai" else answer["usage"]
        told["service_tier"] = options.served_tier(request)
    if options.usage is not None:
        answer["usage"] |= options.usage(request)
    if kind == "no-usage":
        del answer["usage"]
    elif kind == "extra-fields":
        answer["x_new"] = "unknown"
        answer["usage"]["x_new_tokens"] = 7
    return answer


_HTML = b"<!DOCTYPE html>\n<html><head><title>%d</title></head><body><h1>nginx</h1></body></html>\n"
_FILLER = b"word " * 13_107
_MARK = "@@filler@@"


@lru_cache(maxsize=4)
def _bomb(megabytes: float) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    packed = [packer.compress(b'{"choices": "')]
    for _ in range(max(1, int(megabytes * 16))):
        packed.append(packer.compress(b"0" * 65_536))
    return b"".join([*packed, packer.compress(b'"}'), packer.flush()])


def _huge(answer: bytes, megabytes: float, headers: Headers) -> Response:
    before, after = answer.split(_MARK.encode())
    repeats = max(1, int(megabytes * 1_000_000 / len(_FILLER)))

    def chunks() -> Iterator[bytes]:
        yield before
        for _ in range(repeats):
            yield _FILLER
        yield after

    return Response(
        200, headers=headers, lazy=chunks, length=len(before) + repeats * len(_FILLER) + len(after)
    )


def _unpaid(request: ParsedRequest, fault: Fault, computed_s: float) -> Response:
    api, rid = request.api, request_id(request)
    headers = id_header(request)
    match fault.kind:
        case "reset":
            return Response(0, delivery="reset")
        case "hang":
            return Response(0, delivery="hang", seconds=fault.arg)
        case "html":
            status = int(fault.arg or 200)
            return Response(status, _HTML % status, headers, content_type="text/html")
        case "redirect" | "redirect-307":
            location = f"http://127.0.0.1:{int(fault.arg or 0)}{request.path}"
            return Response(
                307 if fault.kind.endswith("307") else 302, b"", (*headers, ("location", location))
            )
        case "insufficient_quota" if api == "anthropic":
            message = "Your credit balance is too low to access the Anthropic API."
            return Response(400, error_body(api, 400, rid, message=message), headers)
        case "insufficient_quota":
            kind, message = (
                fault.kind,
                "You exceeded your current quota, please check your plan and billing details.",
            )
            return Response(429, error_body(api, 429, rid, message=message, kind=kind, code=kind), headers)
        case "401-echo":
            key = request.headers.get("x-api-key") or request.headers.get("authorization", "").removeprefix(
                "Bearer "
            )
            message = f"Incorrect API key provided: {key}. You can find your API key in your account."
            return Response(401, error_body(api, 401, rid, message=message), headers)
        case _:
            status = int(fault.kind)
            body = error_body(api, status, rid, code=fault.code)
            return Response(status, body, headers + hint_headers(api, fault.hint, computed_s))


def build(
    options: Options, request: ParsedRequest, fault: Fault, text: Callable[[], str], computed_s: float = 1.0
) -> Response:
    """The answer to a request under a fault; ``computed_s`` is the wait for a hint without seconds."""
    if not fault.paid:
        return _unpaid(request, fault, computed_s)
    kind = fault.kind
    headers: Headers = (
        ("request-id" if request.api == "anthropic" else "x-request-id", request_id(request)),
    )
    if kind == "gzip-bomb":
        return Response(200, _bomb(fault.arg or 50.0), (*headers, ("content-encoding", "gzip")))
    words = f"{text()} {_MARK}" if kind == "huge" else text()
    body = json.dumps(_answer(options, request, words, kind)).encode()
    match kind:
        case "huge":
            return _huge(body, fault.arg or 10.0, headers)
        case "half-json":
            return Response(200, body[: len(body) // 2], headers)
        case "bad-utf8":
            middle = body.find(words[:8].encode("ascii", "replace"))
            return Response(200, body[:middle] + b"\xff\xfe\xc3(" + body[middle:], headers)
        case "reset-mid-body":
            return Response(200, body, headers, delivery="half-reset")
        case "cut":
            return Response(200, body, headers, delivery="half-close")
        case "stall":
            return Response(200, body, headers, delivery="half-stall", seconds=fault.arg)
        case "drip":
            return Response(
                200, body, headers, delivery="drip", seconds=1.0 if fault.arg is None else fault.arg
            )
        case _:
            return Response(200, body, headers)
