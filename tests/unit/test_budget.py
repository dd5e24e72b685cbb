"""Money: tariffs, worst cases, caps."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from genworker.core.budget import Budget, Caps, Charge, Price, Tariff, most_input_tokens
from genworker.core.completion import CompletionRequest, Sampling, Usage
from genworker.project.settings import load_settings
from genworker.run.pricing import batch_price, find_price, tier_price
from genworker.run.routes import UNBOUNDED_ANSWER_TOKENS, Route, Routes, cost, worst_case

PRICE = Price(
    Tariff(Decimal(3), ((200_000, Decimal(6)),)),
    Tariff(Decimal(15), ((200_000, Decimal("22.5")),)),
    cache_read=Tariff(Decimal("0.3")),
    cache_write=Tariff(Decimal("3.75")),
)


def test_cached_tokens_have_prices_of_their_own() -> None:
    usage = Usage(1000, 100, cached_input_tokens=600, cache_write_tokens=300)
    expected = (100 * 3 + 600 * Decimal("0.3") + 300 * Decimal("3.75") + 100 * 15) / Decimal(1_000_000)
    assert PRICE.cost(usage) == expected


def test_a_long_prompt_changes_the_price_of_all_its_tokens() -> None:
    assert PRICE.cost(Usage(200_001, 1)) == (200_001 * 6 + Decimal("22.5")) / Decimal(1_000_000) - (
        200_001 * 6 - 200_001 * 6
    )
    assert PRICE.cost(Usage(200_000, 1)) == (200_000 * 3 + Decimal(15)) / Decimal(1_000_000)


def test_unknown_usage_has_no_cost() -> None:
    assert PRICE.cost(Usage(None, 3)) is None
    assert PRICE.cost(Usage(3, None)) is None


def test_the_worst_case_is_never_below_any_usage() -> None:
    for read in (0, 1, 1000, 200_000, 200_001, 500_000):
        for cached in (0, read // 2, read):
            for written in (0, read - cached):
                usage = Usage(read, 700, cached_input_tokens=cached, cache_write_tokens=written)
                spent = PRICE.cost(usage)
                assert spent is not None
                assert spent <= PRICE.at_most(read, 700)


def test_a_token_has_at_least_a_byte() -> None:
    assert most_input_tokens("abc", None) >= 3
    assert most_input_tokens("🙂") >= 4


def test_a_cap_counts_what_is_reserved() -> None:
    budget = Budget(Caps(usd=Decimal(1)), Charge(Decimal("0.5")))
    worst = Charge(Decimal("0.3"), 1, 100)
    assert budget.reserve(worst)
    assert not budget.reserve(worst)
    budget.settle(worst, Charge(Decimal("0.1"), 1, 30))
    assert budget.reserve(worst)
    assert budget.spent == Charge(Decimal("0.6"), 1, 30)


@pytest.mark.parametrize(
    ("caps", "name"),
    [
        (Caps(usd=Decimal(1)), "--max-cost 1 USD"),
        (Caps(calls=1), "--max-calls 1"),
        (Caps(tokens=1), "--max-tokens 1"),
    ],
)
def test_a_cap_is_named(caps: Caps, name: str) -> None:
    over = Charge(Decimal(2), 2, 2)
    assert not caps.room(over)
    assert caps.passed_by(over) == name


def route(price: Price | None) -> Route:
    return Route("test", "openai", "m", "vendor/m", price)


def request(**sampling: object) -> CompletionRequest:
    return CompletionRequest("vendor/m", "x" * 100, Sampling(**sampling), 60.0)  # type: ignore[arg-type]


def test_the_worst_case_of_a_call_is_its_bytes_and_max_tokens() -> None:
    worst = worst_case(route(PRICE), request(max_tokens=500))
    assert worst.tokens >= 600
    assert worst.usd == PRICE.at_most(worst.tokens - 500, 500)


def test_fields_of_the_extra_body_count() -> None:
    worst = worst_case(route(PRICE), request(max_tokens=10, extra_body={"max_completion_tokens": 50, "n": 3}))
    assert worst.tokens >= 100 + 150


def test_without_max_tokens_the_worst_case_is_huge() -> None:
    assert worst_case(route(PRICE), request()).tokens > UNBOUNDED_ANSWER_TOKENS


def test_unpriced_is_not_free() -> None:
    charge = cost(route(None), Usage(5, 5))
    assert charge is not None
    assert not charge.priced
    assert charge.known_usd is None
    assert cost(route(PRICE), Usage(5, None)) is None


CONFIG = """
default_endpoint = "router"
[endpoints.router]
kind = "openai"
base_url = "https://openrouter.ai/api/v1"
[endpoints.own]
kind = "openai"
base_url = "http://127.0.0.1:8000/v1"
[endpoints.claude]
kind = "anthropic"
[endpoints.fake]
kind = "scripted"
[models.special.price]
input = 1
output = "2.5"
"""


def prices(tmp_path: Path, endpoint: str, model: str, model_id: str = "m") -> Price | None:
    path = tmp_path / "c.toml"
    path.write_text(CONFIG, encoding="utf-8")
    return find_price(load_settings(path).settings, endpoint, model_id, model)


def test_prices_come_from_genai_prices_by_the_address(tmp_path: Path) -> None:
    price = prices(tmp_path, "router", "google/gemini-2.5-pro")
    assert price is not None
    assert price.output.base > price.input.base > 0
    claude = prices(tmp_path, "claude", "claude-sonnet-4-5")
    assert claude is not None
    assert claude.cache_write is not None
    assert claude.cache_write.base > claude.input.base


def test_a_price_of_the_configuration_goes_first(tmp_path: Path) -> None:
    price = prices(tmp_path, "router", "google/gemini-2.5-pro", "special")
    assert price == Price(Tariff(Decimal(1)), Tariff(Decimal("2.5")))


@pytest.mark.parametrize(("endpoint", "model"), [("router", "nobody/knows"), ("own", "gpt-4o")])
def test_unknown_is_unpriced(tmp_path: Path, endpoint: str, model: str) -> None:
    assert prices(tmp_path, endpoint, model) is None


def test_what_runs_here_is_free(tmp_path: Path) -> None:
    price = prices(tmp_path, "fake", "anything")
    assert price is not None
    assert price.cost(Usage(1000, 1000)) == 0


def test_service_tiers_and_batches_cost_what_is_known_of_them(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(
        CONFIG
        + """
[endpoints.openai]
kind = "openai"
base_url = "https://api.openai.com/v1"
[models.told]
endpoint = "openai"
service_tiers = { flex = 0.25, night = 0.1 }
price = { input = 1, output = 4 }
""",
        encoding="utf-8",
    )
    settings = load_settings(path).settings

    def at(endpoint: str, model_id: str, model: str, tier: str | None) -> Decimal:
        price = find_price(settings, endpoint, model_id, model)
        found = tier_price(settings, endpoint, model_id, model, price, tier)
        assert found is not None
        return found.output.base

    ordinary = at("openai", "m", "gpt-5", None)
    assert at("openai", "m", "gpt-5", "default") == at("openai", "m", "gpt-5", "unheard-of") == ordinary
    assert at("openai", "m", "gpt-5", "flex") == ordinary / 2  # as genai-prices has it
    assert at("openai", "m", "gpt-5", "priority") == ordinary * 2
    assert at("claude", "m", "claude-sonnet-4-5", "priority") == at("claude", "m", "claude-sonnet-4-5", None)
    assert [at("openai", "told", "x", tier) for tier in ("flex", "night", "priority")] == [
        1,
        Decimal("0.4"),
        8,
    ]
    assert at("own", "special", "x", "flex") == Decimal("1.25")  # what the answer says holds at any address

    price = find_price(settings, "openai", "m", "gpt-5")
    batch = batch_price(settings, "openai", "m", "gpt-5", price)
    assert price is not None
    assert price.cache_read is not None
    assert batch is not None
    assert batch.cache_read is not None
    assert batch.cache_read.base == price.cache_read.base / 2  # not only the half of other input
    own = find_price(settings, "own", "special", "x")
    assert batch_price(settings, "own", "special", "x", own) == own


@pytest.mark.parametrize(
    ("tier", "times"),
    [(None, 1), ("default", 1), ("flex", 1), ("priority", 2), ("auto", 6), ("unheard-of", 1)],
)
def test_a_cap_counts_with_the_dearest_tier_that_a_call_may_be_served_at(
    tier: str | None, times: int, tmp_path: Path
) -> None:
    path = tmp_path / "c.toml"
    path.write_text(CONFIG + '[models.special]\nendpoint = "own"\n', encoding="utf-8")
    routes = Routes(load_settings(path), lambda model_id: model_id)
    asked = request(max_tokens=100, service_tier=tier)
    for batch in (False, True):  # a batch is a tier of its own
        route = routes.primary("special", batch=batch)
        worst = worst_case(route, asked, prices=routes.prices_at_most(route, tier))
        assert worst.usd == worst_case(route, asked).usd * (1 if batch else times)
