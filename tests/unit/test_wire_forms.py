"""Every kind of answer, in the spellings of many providers, is read as one thing."""

from __future__ import annotations

import pytest

from genworker.errors import RateLimitedError
from support.wire_examples import FORMS, Example, Form, read


@pytest.mark.parametrize("form", FORMS, ids=[form.what for form in FORMS])
def test_all_spellings_of_a_kind_are_read_alike(form: Form) -> None:
    wrong = [
        (example, found)
        for example in form.examples
        if (found := form.ask(example, form.parser)) != form.reading
    ]
    assert wrong == []


@pytest.mark.parametrize("form", FORMS, ids=[form.what for form in FORMS])
def test_the_reason_reaches_the_user(form: Form) -> None:
    for example in form.examples:
        assert example.says in getattr(read(example), "message", ""), example


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        ({"error": {"message": "slower", "details": [{"retryDelay": "33s"}]}}, 33.0),
        ({"error": {"message": "slower", "metadata": {"retry_after_seconds": 4}}}, 4.0),
        ({"error": "loading", "estimated_time": 20.5}, 20.5),
        ({"error": {"message": "Limit reached, please try again in 1m7.5s."}}, 67.5),
        ({"error": {"message": "Try again in 250ms"}}, 0.25),
        ({"error": {"message": "Please retry after 30 seconds."}}, 30.0),
        ({"message": "Please wait 2 minutes before retrying"}, 120.0),
        ({"error": {"message": "Retry in 5"}}, 5.0),
        ({"error": {"message": "try again later, 3 times"}}, None),
        ({"error": {"message": "slower", "retry_after": True}}, None),
    ],
)
def test_a_pause_that_only_the_body_asks_for_is_kept(body: object, seconds: float | None) -> None:
    found = read(Example(body, 429))
    assert isinstance(found, RateLimitedError)
    assert found.retry_after_s == (None if seconds is None else pytest.approx(seconds))


def test_a_pause_in_the_headers_goes_before_one_in_the_body() -> None:
    found = read(Example({"error": {"message": "Try again in 9s"}}, 429, ((b"retry-after", b"2"),)))
    assert isinstance(found, RateLimitedError)
    assert found.retry_after_s == 2.0
