"""Which endpoint answers a row, under what name, in what limits, at what price: settings become lanes."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from genworker.core.batches import BatchSpec
from genworker.core.budget import ZERO, Charge, Price, most_input_tokens
from genworker.core.completion import CompletionRequest, Sampling, Usage
from genworker.core.facts import Facts
from genworker.core.lane import LaneSpec
from genworker.core.membership import MembershipRow
from genworker.core.scheduler import NO_LANE, EndpointSpec, RetryPolicy
from genworker.core.stages import Stage
from genworker.project.endpoints import KINDS, EndpointSettings
from genworker.project.settings import LoadedSettings, ModelSettings, Settings
from genworker.run.pricing import ORDINARY_TIERS, batch_price, find_price, known_tiers, tier_price

UNBOUNDED_ANSWER_TOKENS = 131_072
"""Taken for the longest answer where no `max_tokens` is set; caps on money and tokens demand one."""

ONE = Decimal(1)
MAX_BATCH_BYTES = 50_000_000
"""A batch's requests: a quarter of what OpenAI takes. They are in memory once, when they are sent."""


@dataclass(frozen=True, slots=True)
class Route:
    """How one model is asked.

    Attributes:
        kind: of the endpoint; a key of `genworker.project.endpoints.KINDS`.
        model: the name that the endpoint is asked for.
        price: ``None`` when nobody knows it.
        is_fallback: whether it stands in for another route.
        batch: whether it is asked in batches.
    """

    endpoint: str
    kind: str
    model_id: str
    model: str
    price: Price | None
    is_fallback: bool = False
    batch: bool = False

    @property
    def name(self) -> str:
        """For people."""
        name = f"{self.endpoint}/{self.model if self.is_fallback else self.model_id}"
        return f"{name} in batches" if self.batch else name


@dataclass(slots=True)
class Routes:
    """The routes of one run, a lane each.

    Attributes:
        lanes: each job's lane; the scheduler changes it when a row is handed to a fallback.
        in_batches: whether a job is asked in batches.
    """

    loaded: LoadedSettings
    model_name: Callable[[str], str]
    lanes: array[int] = field(default_factory=lambda: array("h"))
    in_batches: Callable[[int], bool] = field(default=lambda job: False)
    by_lane: list[Route] = field(default_factory=list)
    _primary: dict[tuple[str, bool], Route] = field(default_factory=dict)
    _prices: dict[tuple[str, str, str], Price | None] = field(default_factory=dict)
    _tiers: dict[tuple[Route, str], Price | None] = field(default_factory=dict)

    def _kind(self, endpoint: str) -> str:
        return self.loaded.settings.endpoints[endpoint].kind

    def primary(self, model_id: str, *, batch: bool = False) -> Route:
        """Where a model is asked first."""
        route = self._primary.get((model_id, batch))
        if route is None:
            endpoint = self.loaded.endpoint_of(model_id)
            assert endpoint is not None, "checked before the run"
            model = self.model_name(model_id)
            settings = self.loaded.settings
            price = find_price(settings, endpoint, model_id, model)
            if batch:
                price = batch_price(settings, endpoint, model_id, model, price)
            route = Route(endpoint, self._kind(endpoint), model_id, model, price, batch=batch)
            self._primary[model_id, batch] = route
        return route

    def of(self, job: int, model_id: str) -> Route:
        """Where a job is asked now."""
        lane = self.lanes[job] if job < len(self.lanes) else NO_LANE
        if lane != NO_LANE:
            return self.by_lane[lane]
        return self.primary(model_id, batch=self.in_batches(job))

    def build(self, count: int, models: Iterable[tuple[int, str]]) -> tuple[list[LaneSpec], list[str]]:
        """Make the lanes.

        Args:
            count: jobs in all.
            models: (job, its model's id) of the jobs that need a call.

        Returns:
            The lanes' specs, and the endpoints' names as the specs number them.
        """
        self.lanes = array("h", [NO_LANE]) * count
        numbers: dict[tuple[str, bool], int] = {}
        for job, model_id in models:
            key = model_id, self.in_batches(job)
            lane = numbers.get(key)
            if lane is None:
                lane = numbers[key] = len(self.by_lane)
                self.by_lane.append(self.primary(model_id, batch=key[1]))
            self.lanes[job] = lane
        live = self._add_live_lanes()
        fallbacks = self._add_fallbacks()
        endpoints: dict[str, int] = {}
        settings = self.loaded.settings
        specs = []
        for number, route in enumerate(self.by_lane):
            model = settings.models.get(route.model_id) if not route.is_fallback else None
            endpoint = endpoints.setdefault(route.endpoint, len(endpoints))
            specs.append(
                LaneSpec(
                    endpoint,
                    route.name,
                    fallback=fallbacks.get(number, -1),
                    rpm=model.rpm if model else None,
                    tpm=model.tpm if model else None,
                    batch=self._batch_spec(route) if route.batch else None,
                    live=live.get(number, -1),
                )
            )
        return specs, list(endpoints)

    def _batch_spec(self, route: Route) -> BatchSpec:
        batches = self.loaded.settings.batches
        return BatchSpec(
            batches.max_rows,
            MAX_BATCH_BYTES,
            batches.linger_s,
            distinct_counts=not KINDS[route.kind].batch_marks,
            tail=self._batch_tail(route),
        )

    def batch_lane(self, endpoint: str, model_id: str) -> int | None:
        """The lane that asks a model in batches, else another of its endpoint; ``None``: there is none."""
        lanes = [n for n, route in enumerate(self.by_lane) if route.batch and route.endpoint == endpoint]
        same = [number for number in lanes if self.by_lane[number].model_id == model_id]
        return next(iter([*same, *lanes]), None)

    def _batch_tail(self, route: Route) -> int:
        section, model = self._sections(route)
        tail = section.batch_tail if model is None or model.batch_tail is None else model.batch_tail
        return tail or 0

    def _goes_live(self, route: Route) -> bool:
        """Whether rows that batches do not answer are asked call by call."""
        section, model = self._sections(route)
        return ((model and model.batch_then) or section.batch_then) == "live"

    def _sections(self, route: Route) -> tuple[EndpointSettings, ModelSettings | None]:
        settings = self.loaded.settings
        return settings.endpoints[route.endpoint], settings.models.get(route.model_id)

    def _add_live_lanes(self) -> dict[int, int]:
        """Batch lane to the lane that asks the same call by call, where rows may go there."""
        result: dict[int, int] = {}
        for number, route in enumerate(list(self.by_lane)):
            if route.batch and (self._batch_tail(route) or self._goes_live(route)):
                live = self.primary(route.model_id)
                if live not in self.by_lane:
                    self.by_lane.append(live)
                result[number] = self.by_lane.index(live)
        return result

    def _add_fallbacks(self) -> dict[int, int]:
        """Lane to the lane that stands in for it; routes that only stand in are appended."""
        result: dict[int, int] = {}
        number = 0
        while number < len(self.by_lane):
            route = self.by_lane[number]
            target = self.fallback(route)
            if target is not None:
                same = (
                    other
                    for other, known in enumerate(self.by_lane)
                    if (known.endpoint, known.model, known.batch)
                    == (target.endpoint, target.model, target.batch)
                )
                found = next(same, None)
                if found is None:
                    found = len(self.by_lane)
                    self.by_lane.append(target)
                if found != number:
                    result[number] = found
            number += 1
        return result

    def called(self, rows: Sequence[MembershipRow], jobs: Iterable[int]) -> set[tuple[Stage, Route]]:
        """Every stage and route that jobs may call, fallbacks included."""
        found: set[tuple[Stage, Route]] = set()
        for job in jobs:
            lane = self.lanes[job]
            if lane != NO_LANE:
                found.add((rows[job].stage, self.by_lane[lane]))
        more = list(found)
        while more:
            stage, route = more.pop()
            target = self.fallback(route)
            if target is not None and (stage, target) not in found:
                found.add((stage, target))
                more.append((stage, target))
        return found

    def find_price(self, endpoint: str, model_id: str, model: str) -> Price | None:
        """The price of any model at any endpoint of the settings; ``None`` when nobody knows it."""
        if endpoint not in self.loaded.settings.endpoints:
            return None
        key = (endpoint, model_id, model)
        if key not in self._prices:
            self._prices[key] = find_price(self.loaded.settings, endpoint, model_id, model)
        return self._prices[key]

    def price_at(self, route: Route, tier: str | None) -> Price | None:
        """What a route costs at a service tier. A batch is a tier of its own."""
        if route.batch or tier is None or tier in ORDINARY_TIERS:
            return route.price
        if (route, tier) not in self._tiers:
            settings, model_id = self.loaded.settings, "" if route.is_fallback else route.model_id
            found = tier_price(settings, route.endpoint, model_id, route.model, route.price, tier)
            self._tiers[route, tier] = found
        return self._tiers[route, tier]

    def prices_at_most(self, route: Route, tier: str | None) -> list[Price]:
        """The prices of which a call may cost any that is asked for at a service tier.

        An endpoint may serve it at the ordinary one instead; where it is to choose, at any.
        """
        model_id = "" if route.is_fallback else route.model_id
        tiers = (
            sorted(known_tiers(self.loaded.settings, route.endpoint, model_id)) if tier == "auto" else [tier]
        )
        prices = [route.price, *(self.price_at(route, each) for each in tiers)]
        return [price for price in prices if price is not None]

    def fallback(self, route: Route) -> Route | None:
        """The route that gets what this one refuses for good."""
        if route.batch and self._goes_live(route):
            return self.primary(route.model_id)
        settings = self.loaded.settings
        sections = [settings.endpoints[route.endpoint]]
        model = settings.models.get(route.model_id)
        endpoint = name = None
        if model is not None and not route.is_fallback:
            endpoint, name = model.fallback_endpoint, model.fallback_model
        if endpoint is None and name is None:
            endpoint, name = sections[0].fallback_endpoint, sections[0].fallback_model
        if endpoint is None and name is None:
            return None
        endpoint, name = endpoint or route.endpoint, name or route.model
        price = find_price(settings, endpoint, "", name)
        return Route(endpoint, self._kind(endpoint), route.model_id, name, price, is_fallback=True)


def endpoint_specs(settings: Settings, names: Iterable[str], *, shared: bool = False) -> list[EndpointSpec]:
    """What is configured for endpoints, for the scheduler.

    Args:
        shared: whether a coordinator shares out the rates.
    """
    sections = [settings.endpoints[name] for name in names]
    if shared:
        return [EndpointSpec(section.max_concurrency) for section in sections]
    return [EndpointSpec(section.max_concurrency, section.rpm, section.tpm) for section in sections]


def retry_policy(settings: Settings, max_wait_s: float | None = None) -> RetryPolicy:
    """The settings' retries, for the scheduler."""
    retries = settings.retries
    return RetryPolicy(
        transport=retries.transport,
        rate_limit=retries.rate_limit,
        content=retries.content,
        base_s=retries.base_s,
        cap_s=retries.cap_s,
        max_wait_s=retries.max_wait_s if max_wait_s is None else max_wait_s,
        breaker_calls=retries.breaker_calls,
        outage_s=retries.outage_s,
    )


def longest_answer(route: Route, sampling: Sampling) -> int | None:
    """The most tokens that an answer may have, extra fields of the request considered; ``None``: no limit."""
    return KINDS[route.kind].longest_answer(sampling)


def worst_case(
    route: Route, request: CompletionRequest, excess: Decimal = ONE, prices: Sequence[Price] = ()
) -> Charge:
    """What a call may cost at most.

    Args:
        prices: those of the service tiers at which it may be served; only the route's own when empty.
        excess: how many times more than a bound by list price and ``max_tokens`` the route was seen to bill.
    """
    return _at_most(route, request, longest_answer(route, request.sampling), excess, prices)


def excess_of(route: Route, facts: Facts) -> Decimal | None:
    """How many times more an answer was billed than its list price and ``max_tokens`` allow.

    Returns:
        ``None`` where the metadata do not say what was asked or billed.
    """
    read, written = facts.usage.input_tokens, facts.usage.output_tokens
    most = facts.max_tokens
    if read is None or written is None or most is None:
        return None
    times = Decimal(read + written) / (read + most) if read + most else ONE
    if route.price is not None and facts.cost_usd is not None and (bound := route.price.at_most(read, most)):
        times = max(times, facts.cost_usd / bound)
    return times


def unbounded_case(route: Route, request: CompletionRequest, prices: Sequence[Price] = ()) -> Charge:
    """What a call may cost where ``max_tokens`` does not bound what is billed."""
    return _at_most(route, request, None, ONE, prices)


def _at_most(
    route: Route, request: CompletionRequest, written: int | None, excess: Decimal, prices: Sequence[Price]
) -> Charge:
    sampling = request.sampling
    extra = json.dumps(dict(sampling.extra_body), default=str) if sampling.extra_body else None
    read = most_input_tokens(request.prompt, sampling.system, extra)
    most = UNBOUNDED_ANSWER_TOKENS if written is None else written
    tokens = math.ceil((read + most) * excess)
    if route.price is None:
        return Charge(calls=1, tokens=tokens, priced=False)
    dearest = max(price.at_most(read, most) for price in (route.price, *prices))
    return Charge(dearest * excess, 1, tokens)


def cost(
    route: Route, usage: Usage, told_usd: Decimal | None = None, price: Price | None = None
) -> Charge | None:
    """What an answer has cost: by list price, or as the endpoint tells, whichever is more.

    Args:
        price: of the service tier that it was served at; the route's own when ``None``.

    Returns:
        ``None`` when the endpoint did not count its tokens: then nobody knows.
    """
    if usage.input_tokens is None or usage.output_tokens is None:
        return None
    tokens = usage.input_tokens + usage.output_tokens
    price = price or route.price
    listed = None if price is None else price.cost(usage)
    if listed is None and told_usd is None:
        return Charge(calls=1, tokens=tokens, priced=False)
    return Charge(max(listed or ZERO, told_usd or ZERO), 1, tokens)
