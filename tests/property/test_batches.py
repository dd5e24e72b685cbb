"""Rules of batches for any input: waves, names, pauses, prices."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genworker.core.batches import (
    AskPerson,
    BadLogError,
    Listed,
    Wait,
    custom_id,
    free_count,
    number_of,
    poll_pause_s,
    price_from_json,
    price_to_json,
    read_log,
    scaled,
    seek,
    wave_share,
)
from genworker.core.budget import Price, Tariff
from genworker.core.completion import Usage

amounts = st.decimals(0, 100, places=4)
tariffs = st.builds(
    Tariff, amounts, st.lists(st.tuples(st.integers(1, 10**6), amounts), max_size=2).map(tuple)
)
prices = st.builds(
    Price, tariffs, tariffs, cache_read=st.none() | tariffs, cache_write=st.none() | tariffs, per_call=amounts
)


@given(st.integers(1, 10_000), st.integers(1, 3000))
def test_rows_make_as_few_batches_as_fit_and_nearly_equal_ones(rows: int, most: int) -> None:
    sizes = []
    left = rows
    while left:
        size = min(wave_share(left, most), left)
        sizes.append(size)
        left -= size
    assert len(sizes) == -(-rows // most)
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(0, 50), st.sets(st.integers(1, 50)))
def test_a_free_count_is_the_most_that_no_batch_has(rows: int, taken: set[int]) -> None:
    count = free_count(rows, taken)
    assert count not in taken
    assert all(number in taken for number in range(count + 1, rows + 1))


@given(st.integers(0, 99_999), st.integers(1, 100_000))
def test_a_name_leads_back_to_its_number(number: int, count: int) -> None:
    nonce = "0" * 32
    name = custom_id(nonce, number)
    assert len(name) <= 64
    assert number_of(name, nonce, count) == (number if number < count else None)


@given(st.text(max_size=60) | st.integers() | st.none())
def test_a_foreign_name_leads_nowhere(name: object) -> None:
    assert number_of(name, "abc", 100) is None


@pytest.mark.parametrize("name", ["gw-abc-01", "gw-abc-+1", "gw-abc-1 ", "gw-abc-", "gw-abc-²", "gw-abd-1"])
def test_a_name_that_is_nearly_ours_is_foreign(name: str) -> None:
    assert number_of(name, "abc", 100) is None


@given(st.floats(0, 10**6), st.floats(0.01, 1000), st.integers(0, 100))
def test_pauses_grow_within_bounds(age_s: float, poll_s: float, failures: int) -> None:
    pause = poll_pause_s(age_s, poll_s, failures)
    assert poll_s <= pause <= 20 * poll_s
    assert poll_pause_s(age_s + 1, poll_s, failures) >= pause
    assert poll_pause_s(age_s, poll_s, failures + 1) >= pause


def test_the_usual_pauses_are_as_documented() -> None:
    assert [poll_pause_s(age, 15.0) for age in (0, 60, 900, 1800, 3599, 3600)] == [15, 15, 30, 60, 60, 300]


@given(prices, st.sampled_from(["0.5", "0.75", "1"]))
def test_a_scaled_price_is_that_share_of_the_whole(price: Price, share: str) -> None:
    half = scaled(price, Decimal(share), cached=True)
    usage = Usage(1000, 500, cached_input_tokens=300, cache_write_tokens=20)
    assert half.cost(usage) == (price.cost(usage) or Decimal(0)) * Decimal(share)
    assert half.at_most(1000, 500) == price.at_most(1000, 500) * Decimal(share)


@given(prices)
def test_a_price_survives_a_file(price: Price) -> None:
    assert price_from_json(json.loads(json.dumps(price_to_json(price)))) == price


@pytest.mark.parametrize(
    "lines",
    [
        [{"line": "unheard of"}],
        [{"line": "created"}],
        [{"line": "creating", "server_s": 1.0}, {"line": "creating", "server_s": 1.0}],
        [{"line": "creating", "server_s": None}],
        [{"line": "refused"}],
    ],
)
def test_a_log_that_cannot_be_is_refused(lines: list[dict[str, object]]) -> None:
    with pytest.raises(BadLogError):
        read_log(lines)


def _uncertain(**more: object) -> list[dict[str, object]]:
    return [{"line": "creating", "server_s": 50.0}, {"line": "sought", "at_s": 100.0, **more}]


def test_without_marks_a_batch_of_our_size_is_a_suspect_until_its_results_tell() -> None:
    story = read_log(_uncertain())
    listing = [Listed("a", frozenset(), 60.0, count=7), Listed("b", frozenset(), 61.0, count=8)]

    def judge(strangers: tuple[str, ...] = (), known: tuple[str, ...] = ()) -> object:
        return seek(
            story,
            [listing, listing],
            1000.0,
            marks=(),
            count=7,
            known=known,
            strangers=strangers,
            same_key=True,
            settle_s=120.0,
        )

    first = judge()
    assert isinstance(first, Wait)
    assert first.suspects == ("a",)
    assert type(judge(strangers=("a",))).__name__ == "Absent"
    assert type(judge(known=("a",))).__name__ == "Absent"


def test_another_key_proves_nothing_by_an_empty_listing() -> None:
    verdict = seek(
        read_log(_uncertain()), [[], []], 1000.0, marks={"n"}, count=7, known=(), same_key=False, settle_s=1.0
    )
    assert isinstance(verdict, AskPerson)
