"""What models cost: from the configuration, else from genai-prices. Unknown is ``None``, never 0.

Works offline. genai-prices takes a quarter of a second to import: that waits until a price is asked for.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from genworker.core.batches import scaled
from genworker.core.budget import ZERO, Price, Tariff
from genworker.project.endpoints import is_loopback, kind_of
from genworker.project.sections import PriceSettings

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
    return None if url is None else _from_package_at(url, model)


def batch_price(
    settings: Settings, endpoint: str, model_id: str, model: str, price: Price | None
) -> Price | None:
    """What the same costs in a batch.

    Args:
        price: of a live call.
    """
    if price is None:
        return None
    discount = _of_model_or_endpoint(settings, endpoint, model_id, "batch_discount")
    if discount is not None:
        return scaled(price, 1 - discount, cached=True)
    section = settings.endpoints[endpoint]
    kind = kind_of(section)
    known = _variant(settings, endpoint, model, price, {"processing": "batch"})
    if known is not None:
        return known
    share = HALF if kind.is_known_to_halve(section) else Decimal(1)
    return scaled(price, share, cached=kind.halves_cache)


ORDINARY_TIERS = frozenset({"default", "standard", "standard_only", "scale"})
"""Service tiers that cost what the list says, or what was paid for beforehand."""


def tier_price(
    settings: Settings, endpoint: str, model_id: str, model: str, price: Price | None, tier: str | None
) -> Price | None:
    """What the same costs at a service tier; `price` where nothing is known of it.

    Args:
        price: of an ordinary call.
    """
    if price is None or tier is None or tier in ORDINARY_TIERS:
        return price
    configured = _of_model_or_endpoint(settings, endpoint, model_id, "service_tiers") or {}
    share = configured.get(tier)
    if share is None:
        known = _variant(settings, endpoint, model, price, {"service_tier": tier})
        if known is not None:
            return known
        share = kind_of(settings.endpoints[endpoint]).tiers.get(tier)
    return price if share is None else scaled(price, share, cached=True)


def known_tiers(settings: Settings, endpoint: str, model_id: str) -> frozenset[str]:
    """The service tiers of which something is known."""
    configured = _of_model_or_endpoint(settings, endpoint, model_id, "service_tiers") or {}
    return frozenset(configured) | frozenset(kind_of(settings.endpoints[endpoint]).tiers)


def _of_model_or_endpoint(settings: Settings, endpoint: str, model_id: str, name: str) -> Any:
    model = settings.models.get(model_id)
    said = getattr(model, name) if model is not None else None
    return said if said not in (None, {}) else getattr(settings.endpoints[endpoint], name)


def _variant(
    settings: Settings, endpoint: str, model: str, price: Price, context: dict[str, str]
) -> Price | None:
    """What genai-prices knows of a way to be served.

    Returns:
        ``None`` where it knows nothing of it, or where the price is configured.
    """
    section = settings.endpoints[endpoint]
    url = kind_of(section).address(section)
    if url is None or price != _from_package_at(url, model):
        return None
    found = _from_package_at(url, model, context)
    return None if found == price else found


def _from_package_at(url: str, model: str, context: dict[str, str] | None = None) -> Price | None:
    return None if is_loopback(urlsplit(url).hostname) else _from_package(url, model, context)


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


def _from_package(url: str, model: str, context: dict[str, str] | None = None) -> Price | None:
    import genai_prices

    try:
        found = genai_prices.calc_price(
            genai_prices.Usage(input_tokens=1, output_tokens=1),
            model,
            provider_api_url=url,
            price_context=context,
        )
    except LookupError:
        return None
    prices: Any = found.model_price
    source = " ".join([f"genai-prices: {found.provider.id}/{found.model.id}", *(context or {}).values()])
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
