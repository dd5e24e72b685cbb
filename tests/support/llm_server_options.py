"""How the local LLM server is told what to do: options, limits, rules, faults.

Times are seconds unless a name says otherwise. "Elapsed" always means seconds since the server received
its first completion request (after its start or its last reset), so that a slow client start shifts nothing.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from statistics import NormalDist
from typing import Any, Literal

Api = Literal["openai", "anthropic"]

UNPAID_KINDS = frozenset(
    {"insufficient_quota", "401-echo", "reset", "hang", "html", "redirect", "redirect-307"}
)
"""Named faults that answer nothing a provider would bill; so do all statuses."""

PAID_KINDS = frozenset(
    {
        "ok", "reset-mid-body", "cut", "stall", "half-json", "drip", "empty", "no-content", "null", "length",
        "filter", "refusal", "no-usage", "surrogate", "huge", "gzip-bomb", "crlf", "extra-fields", "thinking",
        "bad-utf8",
    }
)  # fmt: skip
"""Named faults under which an answer was generated with status 200, whatever became of it."""

HINTS = frozenset({"none", "retry-after", "retry-after-date", "retry-after-ms", "reset", "reset-tokens"})


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """One completion request, received whole."""

    number: int  # 1 for the first since the start or the last reset
    api: Api
    path: str
    model: str
    messages: tuple[tuple[str, str], ...]  # (role, text), the system text first
    prompt: str  # the texts of all messages, joined by a blank line
    sha256: str  # of the prompt's UTF-8 bytes
    key: str  # sha256 over model, messages and seed: what the answer depends on
    seed: int | None
    max_tokens: int | None
    attempt: int  # 1 for the first request with this key that the limits let through, then 2, …
    received: float  # time.monotonic()
    in_flight: int  # requests in the server's hands, this one included
    headers: Mapping[str, str]  # names in lower case
    body: Mapping[str, Any]

    def draw(self, seed: int, purpose: str) -> float:
        """A number in [0, 1) that depends on this request, its attempt, the seed and the purpose alone."""
        digest = sha256(f"{seed}:{purpose}:{self.key}:{self.attempt}".encode()).digest()
        return int.from_bytes(digest[:7], "big") / (1 << 56)


@dataclass(frozen=True, slots=True)
class Hint:
    """When the client should come back: a header style and seconds (None: the limit's exact wait, else 1)."""

    style: str = "none"
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.style not in HINTS:
            raise ValueError(f"unknown hint {self.style!r}, expected one of {sorted(HINTS)}")

    @classmethod
    def parse(cls, text: str) -> Hint:
        """Read ``retry-after=1``, ``retry-after-ms=0.15`` (seconds here too), ``reset=90``, ``none``."""
        style, _, seconds = text.partition("=")
        return cls(style, float(seconds) if seconds not in ("", "auto") else None)


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to answer wrongly.

    Kinds: any HTTP status as digits ("429", "529", …) with the provider's error body, or

    - unpaid: ``insufficient_quota``, ``401-echo`` (the key is in the message), ``reset`` (before any answer),
      ``hang`` (``arg`` seconds, else until the client closes), ``html`` (``arg`` = status, 200),
      ``redirect`` (302) and ``redirect-307`` (``arg`` = port on 127.0.0.1);
    - paid: ``ok``, ``reset-mid-body``, ``cut`` (orderly close in mid-body), ``stall`` (half a body, then as
      ``hang``), ``half-json`` (with its right Content-Length), ``drip`` (the body over ``arg`` seconds, 1),
      ``empty`` (""), ``null``, ``no-content`` (no choice, no block), ``length``, ``filter``, ``refusal``,
      ``no-usage``, ``surrogate``, ``huge`` (``arg`` MB, 10), ``gzip-bomb`` (``arg`` MB unpacked, 50),
      ``crlf``, ``extra-fields``, ``thinking`` (a block or field before the text), ``bad-utf8``.

    As a string: ``KIND[/CODE][=ARG][@HINT]``, e.g. ``429@retry-after=2``, ``429@reset=1.5``, ``hang=5``,
    ``html=502``, ``400/context_length_exceeded``.
    """

    kind: str
    arg: float | None = None
    hint: Hint = Hint()
    code: str | None = None  # the error body's code (OpenAI) or type (Anthropic), instead of the usual one

    def __post_init__(self) -> None:
        if not self.is_status and self.kind not in PAID_KINDS and self.kind not in UNPAID_KINDS:
            raise ValueError(f"unknown fault {self.kind!r}")
        if self.kind.startswith("redirect") and self.arg is None:
            raise ValueError("a redirect needs its port as arg")

    @property
    def is_status(self) -> bool:
        return self.kind.isdigit() and len(self.kind) == 3

    @property
    def paid(self) -> bool:
        """Whether a provider would bill it."""
        return self.kind in PAID_KINDS

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Read the string form."""
        return _parse_fault(text)


@lru_cache(maxsize=1024)
def _parse_fault(text: str) -> Fault:
    head, _, hint = text.partition("@")
    head, _, arg = head.partition("=")
    kind, _, code = head.partition("/")
    return Fault(kind, float(arg) if arg else None, Hint.parse(hint) if hint else Hint(), code or None)


OK = Fault("ok")


def as_fault(fault: Fault | str | None) -> Fault:
    """The fault that a fault, its string form or nothing stands for."""
    if fault is None:
        return OK
    return Fault.parse(fault) if isinstance(fault, str) else fault


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What happens to one request."""

    fault: Fault | str | None = None
    latency_s: float | None = None  # None: the server's latency for paid kinds, at once for refusals
    text: str | None = None  # the answer's text instead of the usual one
    headers: tuple[tuple[str, str], ...] = ()  # added to the answer's

    def __post_init__(self) -> None:
        as_fault(self.fault)


@dataclass(frozen=True, slots=True)
class Rule:
    """A behaviour and the requests that it applies to: those that meet every condition given."""

    fault: Fault | str | None = None
    latency_s: float | None = None
    text: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    substring: str = ""  # in the prompt
    model: str = ""  # the whole name
    api: str = ""
    path_prefix: str = ""
    first_requests: int | None = None  # the first n requests that meet the other conditions
    first_attempts: int | None = None  # the first n attempts of each prompt
    from_s: float = 0.0  # elapsed seconds, inclusive
    until_s: float = math.inf  # elapsed seconds, exclusive
    rate: float = 1.0  # probability of each attempt

    def __post_init__(self) -> None:
        as_fault(self.fault)

    @property
    def behaviour(self) -> Behaviour:
        return Behaviour(self.fault, self.latency_s, self.text, self.headers)

    def matches(self, request: ParsedRequest, elapsed_s: float, seed: int, index: int) -> bool:
        """Whether the conditions hold, but for ``first_requests``."""
        return (
            self.from_s <= elapsed_s < self.until_s
            and (not self.substring or self.substring in request.prompt)
            and (not self.model or self.model == request.model)
            and (not self.api or self.api == request.api)
            and request.path.startswith(self.path_prefix)
            and (self.first_attempts is None or request.attempt <= self.first_attempts)
            and (self.rate >= 1.0 or request.draw(seed, f"rule{index}") < self.rate)
        )


def fail_first(n: int, fault: Fault | str) -> Rule:
    """The server's first n requests fail."""
    return Rule(fault, first_requests=n)


def fail_each_first(n: int, fault: Fault | str) -> Rule:
    """The first n attempts of every prompt fail."""
    return Rule(fault, first_attempts=n)


def outage(seconds: float, fault: Fault | str = "503", *, from_s: float = 0.0) -> Rule:
    """Everything fails for some seconds."""
    return Rule(fault, from_s=from_s, until_s=from_s + seconds)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server takes. Requests above a limit are refused with 429 and do not use it up."""

    rpm: float | None = None  # requests a minute, a token bucket
    burst: float | None = None  # its size in requests; None: a second's worth, at least 1
    tpm: float | None = None  # tokens a minute, prompt and answer, taken on arrival
    token_burst: float | None = None  # its size in tokens; None: a minute's worth
    window: Literal["bucket", "sliding", "fixed"] = "bucket"  # how a burst's worth of time is counted
    max_concurrent: int | None = None  # requests served at once
    slow_above: int | None = None  # latency × (1 + slow_slope × (n − slow_above) / slow_above), n at once
    slow_slope: float = 1.0  # 1: throughput stays level; above 1 it falls
    hint: Hint | str = "retry-after=1"  # what the 429 says; without seconds, the exact wait
    announce: bool = False  # quota headers on every answer; remaining is scaled from bucket to limit
    enforce: bool = True  # False: announce only
    schedule: tuple[tuple[float, float], ...] = ()  # (elapsed seconds, factor on rpm, tpm, max_concurrent)

    def __post_init__(self) -> None:
        _ = self.parsed_hint

    @property
    def parsed_hint(self) -> Hint:
        return _parse_hint(self.hint) if isinstance(self.hint, str) else self.hint


_parse_hint = lru_cache(maxsize=64)(Hint.parse)


@dataclass(frozen=True, slots=True)
class Options:
    """The server's options."""

    latency_s: float = 0.0  # seconds before an answer's first byte; the median when sigma is set
    latency_sigma: float = 0.0  # σ of the lognormal latency, drawn from the request's own hash
    words: int = 300  # words in an answer, ± 15 % by the request's hash
    score_marker: str = "score"  # a prompt with it, ignoring case, gets a last line "SCORE: N"; "" never
    seed: int = 0  # of the draws of latencies and failures
    failure_rates: Mapping[str, float] = field(default_factory=dict)  # fault's string form → probability
    rules: tuple[Rule, ...] = ()  # the first one that matches is used; else failure_rates
    script: Callable[[ParsedRequest], Behaviour | None] | None = None  # asked before the rules
    reply: Callable[[ParsedRequest], str] | None = None  # the answer's text
    limits: Limits = Limits()  # asked before script and rules
    cached_share: float = 0.0  # of the prompt's tokens reported as read from the cache, 0 to 1
    honour_max_tokens: bool = False  # cut answers at the request's max tokens, finish_reason "length"
    bill_abandoned: bool = True  # an accepted request stays paid when its client goes away
    served_tier: Callable[[ParsedRequest], str] | None = None  # the tier that an answer says it was served at
    usage: Callable[[ParsedRequest], dict[str, Any]] | None = None  # fields over those of the answer's usage
    only_below: str = "/"  # any other path is a 404
    listed: tuple[str, ...] = ()  # the names in the list of models
    list_status: int = 200  # of the list of models
    list_latency_s: float = 0.0
    keep_records: bool = True  # False for long benchmarks: counts only

    def __post_init__(self) -> None:
        for kind in self.failure_rates:
            Fault.parse(kind)
        if sum(self.failure_rates.values()) > 1.0:
            raise ValueError("failure rates add up to more than 1")


def latency_of(options: Options, request: ParsedRequest) -> float:
    """Seconds that the request takes when nothing slows the server down."""
    if options.latency_sigma <= 0.0 or options.latency_s <= 0.0:
        return options.latency_s
    normal = NormalDist().inv_cdf(max(request.draw(options.seed, "latency"), 1e-12))
    return options.latency_s * math.exp(options.latency_sigma * normal)


def decide(options: Options, request: ParsedRequest, elapsed_s: float, hits: dict[int, int]) -> Behaviour:
    """The behaviour for a request; ``hits`` counts the uses of each rule with ``first_requests``."""
    if options.script is not None and (behaviour := options.script(request)) is not None:
        return behaviour
    for index, rule in enumerate(options.rules):
        if not rule.matches(request, elapsed_s, options.seed, index):
            continue
        if rule.first_requests is not None:
            if hits.get(index, 0) >= rule.first_requests:
                continue
            hits[index] = hits.get(index, 0) + 1
        return rule.behaviour
    if options.failure_rates:
        draw = request.draw(options.seed, "failure")
        for kind, rate in options.failure_rates.items():
            if draw < rate:
                return Behaviour(kind)
            draw -= rate
    return _DEFAULT


_DEFAULT = Behaviour()


@dataclass(slots=True)
class _Bucket:
    """What is left of a limit whose rate may change."""

    level: float
    updated: float
    window: str = "bucket"
    taken: deque[tuple[float, float]] = field(default_factory=deque)  # (when, how much), for "sliding"

    def refill(self, now: float, per_s: float, size: float) -> None:
        window_s = size / per_s
        if self.window == "bucket":
            self.level += (now - self.updated) * per_s
        elif self.window == "fixed":
            self.level += size if now // window_s > self.updated // window_s else 0.0
        else:
            while self.taken and self.taken[0][0] <= now - window_s:
                self.level += self.taken.popleft()[1]
        self.level = min(size, self.level)
        self.updated = now

    def take(self, amount: float) -> None:
        self.level -= amount
        if self.window == "sliding":
            self.taken.append((self.updated, amount))


@dataclass(frozen=True, slots=True)
class Quota:
    """One announced limit: a minute's worth, what is left of it, seconds until it is whole again."""

    limit: int
    remaining: int
    reset_s: float


class Limiter:
    """Keeps a server's limits."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._requests: _Bucket | None = None
        self._tokens: _Bucket | None = None
        self.wait_s = 1.0  # how long the last refusal would have to wait

    def factor(self, elapsed_s: float) -> float:
        """What the schedule multiplies the limits with now."""
        factor = 1.0
        for at_s, value in self._limits.schedule:
            if elapsed_s >= at_s:
                factor = value
        return factor

    def refuses(self, now: float, elapsed_s: float, in_flight: int, tokens: Callable[[], int]) -> str | None:
        """The name of the limit that refuses a request now, or None after taking the request's share."""
        limits = self._limits
        factor = self.factor(elapsed_s)
        requests = self._bucket("rpm", now, factor)
        token_bucket = self._bucket("tpm", now, factor)
        needed = tokens() if token_bucket is not None else 0
        if limits.enforce:
            if limits.max_concurrent is not None and in_flight >= max(1, int(limits.max_concurrent * factor)):
                self.wait_s = 1.0
                return "concurrency"
            if requests is not None and limits.rpm is not None and requests.level < 1.0:
                self.wait_s = (1.0 - requests.level) * 60.0 / (limits.rpm * factor)
                return "requests"
            # A request larger than the whole bucket passes when the bucket is full, or it never would.
            if token_bucket is not None and limits.tpm is not None:
                short = min(needed, self._size("tpm", factor)) - token_bucket.level
                if short > 1e-6:
                    self.wait_s = short * 60.0 / (limits.tpm * factor)
                    return "tokens"
        if requests is not None:
            requests.take(1.0 if limits.enforce else min(1.0, requests.level))
        if token_bucket is not None:
            token_bucket.take(min(needed, token_bucket.level))
        return None

    def quotas(self, now: float, elapsed_s: float) -> dict[str, Quota]:
        """What to announce, by "requests" and "tokens"."""
        found: dict[str, Quota] = {}
        factor = self.factor(elapsed_s)
        for name, kind, per_minute in (
            ("requests", "rpm", self._limits.rpm),
            ("tokens", "tpm", self._limits.tpm),
        ):
            bucket = self._bucket(kind, now, factor)
            if bucket is not None and per_minute is not None:
                limit, size = per_minute * factor, self._size(kind, factor)
                reset_s = (size - bucket.level) * 60.0 / limit
                # Part of a request is no request: a client that reads 0 will be refused.
                level = math.floor(bucket.level) if name == "requests" else bucket.level
                found[name] = Quota(int(limit), int(level / size * limit), reset_s)
        return found

    def slowdown(self, in_flight: int) -> float:
        """The factor on the latency with so many requests at once."""
        above = self._limits.slow_above
        if above is None or in_flight <= above:
            return 1.0
        return 1.0 + self._limits.slow_slope * (in_flight - above) / above

    def _size(self, kind: str, factor: float) -> float:
        limits = self._limits
        if kind == "rpm":
            size = limits.burst if limits.burst is not None else (limits.rpm or 0.0) / 60.0
        else:
            size = limits.token_burst if limits.token_burst is not None else (limits.tpm or 0.0)
        return max(1.0, size * factor)

    def _bucket(self, kind: str, now: float, factor: float) -> _Bucket | None:
        per_minute = self._limits.rpm if kind == "rpm" else self._limits.tpm
        if per_minute is None:
            return None
        size = self._size(kind, factor)
        bucket = self._requests if kind == "rpm" else self._tokens
        if bucket is None:
            bucket = _Bucket(size, now, self._limits.window)
            if kind == "rpm":
                self._requests = bucket
            else:
                self._tokens = bucket
        bucket.refill(now, per_minute * factor / 60.0, size)
        return bucket
