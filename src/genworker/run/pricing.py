"""What models cost: from the configuration, else from genai-prices. Unknown is ``None``, never 0.

Works offline. genai-prices takes a quarter of a second to import: that waits until a price is asked for.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from genworker.core.batches import scaled
from genworker.core.budget import ZERO, Price, Tariff
from genworker.project.endpoints import kind_of
from genworker.project.sections import PriceSettings
from genworker.project.settings import is_loopback

if TYPE_CHECKING:
    from genworker.project.settings import Settings

HALF = Decimal("0.5")
_FREE_SUFFIX = ":free"
"""How OpenRouter names a model that costs nothing."""


def find_price(settings: Settings, endpoint: str, model_id: str, model: str) -> Price | None:
    """The price of a model at an endpoint; ``None`` when nobody knows it.

    Args:
        model_id: its id in the catalogue; a price of its section in the configuration goes first. The
            endpoint's own section may have one for all its models.
        model: the name that the endpoint is asked for.
    """
    section = settings.models.get(model_id)
    for configured, where in (
        (section.price if section is not None else None, f"[models.{model_id}.price]"),
        (settings.endpoints[endpoint].price, f"[endpoints.{endpoint}.price]"),
    ):
        if configured is not None:
            return _from_settings(configured, where)
    facts = settings.endpoints[endpoint]
    kind = kind_of(facts)
    if kind.is_free:
        return Price(Tariff(ZERO), Tariff(ZERO), source="runs on this machine")
    url = kind.address(facts)
    if url is None or is_loopback(urlsplit(url).hostname):
        return None
    return _from_package(url, model)


def batch_price(settings: Settings, endpoint: str, model_id: str, price: Price | None) -> Price | None:
    """What a model costs in batches: less only where that is known or configured.

    Args:
        price: of a live call.
    """
    if price is None:
        return None
    configured = _discount(settings, endpoint, model_id) is not None
    cached = configured or kind_of(settings.endpoints[endpoint]).halves_cache
    return scaled(price, batch_share(settings, endpoint, model_id), cached=cached)


def _discount(settings: Settings, endpoint: str, model_id: str) -> Decimal | None:
    model = settings.models.get(model_id)
    if model is not None and model.batch_discount is not None:
        return model.batch_discount
    return settings.endpoints[endpoint].batch_discount


def batch_share(settings: Settings, endpoint: str, model_id: str) -> Decimal:
    """What part of the price a batch costs: less than 1 only where that is known or configured."""
    discount = _discount(settings, endpoint, model_id)
    if discount is not None:
        return 1 - discount
    section = settings.endpoints[endpoint]
    return HALF if kind_of(section).is_known_to_halve(section) else Decimal(1)


def _from_settings(price: PriceSettings, where: str) -> Price:
    def tariff(value: Decimal | None) -> Tariff | None:
        return None if value is None else Tariff(value)

    return Price(
        Tariff(price.input),
        Tariff(price.output),
        cache_read=tariff(price.cache_read),
        cache_write=tariff(price.cache_write),
        per_call=price.per_call,
        source=where,
    )


def _from_package(url: str, model: str) -> Price | None:
    import genai_prices

    try:
        found = genai_prices.calc_price(
            genai_prices.Usage(input_tokens=1, output_tokens=1), model, provider_api_url=url
        )
    except LookupError:
        return None
    prices: Any = found.model_price
    source = f"genai-prices: {found.provider.id}/{found.model.id}"
    if prices.input_mtok is None or prices.output_mtok is None:
        if model.endswith(_FREE_SUFFIX) and prices.input_mtok is None and prices.output_mtok is None:
            return Price(Tariff(ZERO), Tariff(ZERO), source=source)
        return None
    per_thousand = prices.requests_kcount
    per_call = ZERO if per_thousand is None else _tariff(per_thousand).highest(10**9) / 1000
    return Price(
        _tariff(prices.input_mtok),
        _tariff(prices.output_mtok),
        cache_read=None if prices.cache_read_mtok is None else _tariff(prices.cache_read_mtok),
        cache_write=None if prices.cache_write_mtok is None else _tariff(prices.cache_write_mtok),
        per_call=per_call,
        source=source,
    )


def _tariff(price: Any) -> Tariff:
    if isinstance(price, Decimal):
        return Tariff(price)
    return Tariff(price.base, tuple((tier.start, tier.price) for tier in price.tiers))
