"""What headers say: waits and limits."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import formatdate

import pytest

from genworker.core.hints import Quantity, Quota, quotas, reset_s, retry_after_s

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({}, None),
        ({"retry-after-ms": "150", "retry-after": "9"}, 0.15),
        ({"retry-after": "3600"}, 3600.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "Fri, 15 Jan 2027 08:00:30 GMT"}, 30.0),
        ({"retry-after": "soon"}, None),
        ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "6m0s"}, 360.0),
        ({"anthropic-ratelimit-requests-reset": "2027-01-15T08:01:00Z"}, 60.0),
        ({"retry-after": "2", "x-ratelimit-reset-tokens": "6m0s"}, 2.0),
    ],
)
def test_the_wait_is_what_the_endpoint_asks_for(headers: dict[str, str], wait: float | None) -> None:
    assert retry_after_s(headers, NOW) == (None if wait is None else pytest.approx(wait))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1m30s", 90.0),
        ("250ms", 0.25),
        ("6h0m12.5s", 21_612.5),
        ("7", 7.0),
        (str(int(NOW) + 40), 40.0),
        (str(int(NOW * 1000) + 40_000), 40.0),
        ("2027-01-15T08:00:05+00:00", 5.0),
        ("2020-01-01T00:00:00Z", 0.0),
        ("", None),
        ("tomorrow", None),
    ],
)
def test_reset_times_in_every_format(text: str, seconds: float | None) -> None:
    assert reset_s(text, NOW) == (None if seconds is None else pytest.approx(seconds))


def raw(**headers: str) -> list[tuple[bytes, bytes]]:
    return [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]


def test_an_openai_server_announces_requests_and_tokens() -> None:
    found = quotas(
        raw(
            x_ratelimit_limit_requests="1200",
            X_RateLimit_Remaining_Requests="300",
            x_ratelimit_reset_requests="45s",
            x_ratelimit_limit_tokens="2000000",
        ),
        NOW,
    )
    assert found == (
        Quota(Quantity.REQUESTS, 1200.0, 0.25),
        Quota(Quantity.TOKENS, 2_000_000.0, None),
    )


def test_anthropic_announces_input_and_output_as_well() -> None:
    found = quotas(
        raw(
            anthropic_ratelimit_input_tokens_limit="400000",
            anthropic_ratelimit_input_tokens_remaining="0",
            anthropic_ratelimit_input_tokens_reset="2027-01-15T08:00:10Z",
            anthropic_ratelimit_output_tokens_limit="80000",
        ),
        NOW,
    )
    assert found == (Quota(Quantity.INPUT, 400_000.0, 0.0), Quota(Quantity.OUTPUT, 80_000.0, None))


def test_an_allowance_of_one_call_is_not_used_up_by_somebody_else() -> None:
    found = quotas(
        raw(
            x_ratelimit_limit_requests="60",
            x_ratelimit_remaining_requests="0",
            x_ratelimit_reset_requests="1s",
        ),
        NOW,
    )
    assert found == (Quota(Quantity.REQUESTS, 60.0, 1.0),)


def test_a_daily_allowance_is_not_one_per_minute() -> None:
    assert quotas(raw(x_ratelimit_limit_requests="200", x_ratelimit_reset_requests="7m12s"), NOW) == ()


@pytest.mark.parametrize("value", ["", "many", "-5", "0", "1e9", "nan"])
def test_nonsense_announces_nothing(value: str) -> None:
    assert quotas(raw(x_ratelimit_limit_requests=value), NOW) == ()


def named(**headers: str) -> dict[Quantity, Quota]:
    return {quota.quantity: quota for quota in quotas(raw(**headers), NOW)}


def test_mistral_names_the_minute() -> None:
    found = named(
        x_ratelimit_limit_req_minute="720",
        x_ratelimit_remaining_req_minute="72",
        x_ratelimit_limit_tokens_minute="5000000",
        x_ratelimit_remaining_tokens_minute="5000000",
    )
    assert found[Quantity.REQUESTS] == Quota(Quantity.REQUESTS, 720.0, 0.1)
    assert found[Quantity.TOKENS] == Quota(Quantity.TOKENS, 5_000_000.0, 1.0)


def test_litellm_tells_limits_by_key_and_calls_at_once() -> None:
    found = quotas(
        [
            (b"x-ratelimit-api_key-limit-requests", b"60"),
            (b"x-ratelimit-api_key-remaining-requests", b"30"),
            (b"x-ratelimit-team-limit-requests", b"600"),
            (b"x-ratelimit-api_key-limit-max_parallel_requests", b"3"),
            (b"x-ratelimit-user-limit-max_parallel_requests", b"8"),
        ],
        NOW,
    )
    assert set(found) == {Quota(Quantity.REQUESTS, 60.0, 0.5), Quota(Quantity.AT_ONCE, 3.0, None)}


@pytest.mark.parametrize(
    ("reset", "is_read"),
    [
        (str(int((NOW + 30) * 1000)), True),
        (str(int((NOW + 86_000) * 1000)), False),  # of a day
        ("1", False),  # of a second, perhaps
        ("", False),
    ],
)
def test_openrouters_limit_of_a_minute_is_known_by_its_reset(reset: str, is_read: bool) -> None:
    found = named(x_ratelimit_limit="20", x_ratelimit_remaining="5", x_ratelimit_reset=reset)
    assert (found.get(Quantity.REQUESTS) == Quota(Quantity.REQUESTS, 20.0, 0.25)) is is_read


def test_a_groq_limit_of_a_day_is_no_limit_per_minute() -> None:
    assert named(x_ratelimit_limit_requests="14400", x_ratelimit_reset_requests="2m59.56s") == {}


@pytest.mark.parametrize("value", ["-3", "1e99", "nan", "inf", "3;drop", "", "9" * 40])
def test_hostile_numbers_announce_nothing(value: str) -> None:
    assert quotas([(b"x-ratelimit-api_key-limit-max_parallel_requests", value.encode())], NOW) == ()


HOUR_S = 3600.0
CLOCKS = pytest.mark.parametrize("local_s", [NOW - HOUR_S, NOW, NOW + HOUR_S], ids=["slow", "right", "fast"])


def http_date(moment_s: float) -> str:
    return formatdate(moment_s, usegmt=True)


@CLOCKS
@pytest.mark.parametrize(
    "hint",
    [
        {"retry-after": http_date(NOW + 30)},
        {"x-ratelimit-reset-requests": str(int(NOW + 30))},
        {"x-ratelimit-reset": str(int(NOW + 30) * 1000)},
        {"anthropic-ratelimit-tokens-reset": datetime.fromtimestamp(NOW + 30, UTC).isoformat()},
        {"retry-after": "30"},
    ],
    ids=lambda hint: next(iter(hint)),
)
def test_a_date_is_read_by_the_endpoints_own_clock(hint: dict[str, str], local_s: float) -> None:
    assert retry_after_s({**hint, "date": http_date(NOW)}, local_s) == pytest.approx(30)


@CLOCKS
def test_limits_per_minute_are_known_by_the_endpoints_own_clock(local_s: float) -> None:
    headers = [
        (b"X-RateLimit-Limit", b"20"),
        (b"X-RateLimit-Reset", str(int(NOW + 30) * 1000).encode()),
        (b"Date", http_date(NOW).encode()),
    ]
    assert quotas(headers, local_s) == (Quota(Quantity.REQUESTS, 20, None),)


@pytest.mark.parametrize("date", ["", "yesterday", "Fri, 99 Nov 2026 00:00:00 GMT", "\x00", "1" * 500])
def test_what_is_no_date_leaves_the_local_clock(date: str) -> None:
    assert retry_after_s({"retry-after": http_date(NOW + 30), "date": date}, NOW) == pytest.approx(30)


def test_a_date_alone_announces_nothing() -> None:
    assert quotas([(b"date", http_date(NOW).encode())], NOW) == ()
