"""What a run is going to cost and how long it will take: from the cohort's own answers where it has any."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from genworker.core.budget import Price, likely_tokens
from genworker.core.completion import Usage
from genworker.core.plan import Plan, RowState
from genworker.core.stages import STAGES, Stage
from genworker.errors import GenworkerError
from genworker.project.endpoints import kind_of
from genworker.run.batch_money import usual_wait_s
from genworker.run.requests import CohortWork
from genworker.run.routes import Route, longest_answer
from genworker.store.reading import facts_in

SAMPLE = 200
"""Answers of one stage and model that are looked at; prompts that are rendered where there are none."""
LATENCY_GUESS_S = 10.0


BATCH_GUESS_S = 3600.0
"""How long a batch takes before any of the endpoint's has been seen: nine in ten end within the hour."""


@dataclass(slots=True)
class Group:
    """The calls to one model for one stage.

    Attributes:
        seen: own answers that the estimate stands on; 0 when it stands on lengths and guesses.
        usd: ``None`` when the model has no price.
        live_usd, batch_usd: what it would cost call by call, and in batches; ``None`` without a price, or
            where there are no batches.
        tier: the service tier that is asked for.
    """

    stage: Stage
    model_id: str
    route: Route
    calls: int = 0
    seen: int = 0
    input_tokens: float = 0.0
    output_tokens: float = 0.0
    latency_s: float = LATENCY_GUESS_S
    usd: Decimal | None = None
    live_usd: Decimal | None = None
    batch_usd: Decimal | None = None
    tier: str | None = None

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "batch": self.route.batch,
            "service_tier": self.tier,
            "live_usd": None if self.live_usd is None else format(self.live_usd, ".6f"),
            "batch_usd": None if self.batch_usd is None else format(self.batch_usd, ".6f"),
            "stage": self.stage.value,
            "model": self.model_id,
            "endpoint": self.route.endpoint,
            "calls": self.calls,
            "input_tokens": round(self.input_tokens * self.calls),
            "output_tokens": round(self.output_tokens * self.calls),
            "cost_usd": None if self.usd is None else format(self.usd, ".6f"),
            "from_own_answers": self.seen,
        }


@dataclass(slots=True)
class Estimate:
    """All groups, in the stages' order.

    Attributes:
        seconds: how long the run is likely to take; ``None`` without calls.
        limited_by: what decides that, in words.
    """

    groups: list[Group] = field(default_factory=list)
    seconds: float | None = None
    limited_by: str = ""

    def usd(self, stage: Stage | None = None) -> Decimal:
        """US dollars of what has a price."""
        found = (group.usd for group in self.groups if stage in (None, group.stage))
        return sum((usd for usd in found if usd is not None), Decimal(0))

    def unpriced(self, stage: Stage | None = None) -> list[str]:
        """Models without a price."""
        names = [
            group.model_id for group in self.groups if group.usd is None and stage in (None, group.stage)
        ]
        return list(dict.fromkeys(names))

    @property
    def tokens(self) -> int:
        """Of prompts and answers together."""
        return round(sum((group.input_tokens + group.output_tokens) * group.calls for group in self.groups))


def estimate(
    work: CohortWork, plan: Plan, jobs: Iterable[int], limits: Mapping[str, Mapping[str, float]]
) -> Estimate:
    """Estimate the calls of `jobs`.

    Args:
        limits: lane's name to what its last run found: ``at_once`` and ``per_min``.
    """
    rows = work.membership.rows
    groups: dict[tuple[Stage, str], Group] = {}
    members: dict[tuple[Stage, str], list[int]] = {}
    for job in jobs:
        if work.is_copy(job):
            continue
        row = rows[job]
        key = (row.stage, row.llm_model_id or "")
        if key not in groups:
            route = work.routes.primary(key[1], batch=work.in_batches(job))
            groups[key] = Group(row.stage, key[1], route)
            members[key] = []
        groups[key].calls += 1
        members[key].append(job)
    own = _own_answers(work, plan)
    for stage in STAGES:
        for key, group in groups.items():
            if key[0] is stage:
                _fill(work, group, members[key], own, groups)
                _price_batches(work, group)
    result = Estimate([group for stage in STAGES for group in groups.values() if group.stage is stage])
    _time(work, result, limits)
    return result


def _price_batches(work: CohortWork, group: Group) -> None:
    """Both prices, by the service tier that is asked for, and how long such batches usually took."""
    settings, endpoint, routes = work.project.loaded.settings, group.route.endpoint, work.routes
    live = routes.primary(group.model_id)
    tier = work.sampling(group.stage, group.model_id, endpoint, "x").service_tier
    if not group.route.batch:
        group.tier = tier
    if group.usd is not None:
        group.live_usd = group.usd * _times(group, live.price, routes.price_at(live, tier))
        section = settings.endpoints[endpoint]
        if kind_of(section).takes_batches(section):
            batch = routes.primary(group.model_id, batch=True)
            group.batch_usd = group.usd * _times(group, live.price, batch.price)
    group.usd = group.batch_usd if group.route.batch else group.live_usd
    if group.route.batch:
        usual_s = usual_wait_s(work.project.paths, endpoint)
        group.latency_s = BATCH_GUESS_S if usual_s is None else usual_s


def _times(group: Group, price: Price | None, other: Price | None) -> Decimal:
    """How many times as much the other price makes a usual call of a group."""
    usage = Usage(round(group.input_tokens), round(group.output_tokens))
    costs = (each.cost(usage) if each is not None else None for each in (price, other))
    cost, dearer = (each or Decimal(0) for each in costs)
    return dearer / cost if cost else Decimal(1)


@dataclass(slots=True)
class _Own:
    seen: int
    input_tokens: float
    output_tokens: float
    latency_s: float
    usd: Decimal | None


def _own_answers(work: CohortWork, plan: Plan) -> dict[tuple[Stage, str], _Own]:
    """Means over a sample of the cohort's done generations, per stage and model."""
    found: dict[tuple[Stage, str], list[int]] = {}
    rows = plan.membership.rows
    for index, state in enumerate(plan.states):
        if state == RowState.DONE and not work.is_copy(index):
            found.setdefault((rows[index].stage, rows[index].llm_model_id or ""), []).append(index)
    result: dict[tuple[Stage, str], _Own] = {}
    for key, indices in found.items():
        means = _means(work, key, _spread(indices))
        if means is not None:
            result[key] = means
    return result


def _spread(indices: Sequence[int]) -> Sequence[int]:
    return indices[:: max(1, len(indices) // SAMPLE)][:SAMPLE]


def _means(work: CohortWork, key: tuple[Stage, str], indices: Sequence[int]) -> _Own | None:
    known = work.project.known().models
    price = work.routes.primary(key[1]).price if key[1] in known else None
    read = written = latency = 0.0
    count = 0
    usd = Decimal(0)
    for index in indices:
        row = work.membership.rows[index]
        facts = facts_in(str(work.project.paths.generation_dir(row.stage, row.gen_id)), row.stage)
        counted = facts.usage
        if counted.input_tokens is None or counted.output_tokens is None:
            continue
        count += 1
        read += counted.input_tokens
        written += counted.output_tokens
        latency += facts.latency_s or 0.0
        usd += (price.cost(counted) or Decimal(0)) if price is not None else Decimal(0)
    if not count:
        return None
    mean = usd / count if price is not None else None
    return _Own(count, read / count, written / count, latency / count, mean)


def _fill(
    work: CohortWork,
    group: Group,
    jobs: Sequence[int],
    own: Mapping[tuple[Stage, str], _Own],
    groups: Mapping[tuple[Stage, str], Group],
) -> None:
    known = own.get((group.stage, group.model_id))
    if known is not None:
        group.seen = known.seen
        group.input_tokens, group.output_tokens = known.input_tokens, known.output_tokens
        group.latency_s = known.latency_s
        group.usd = None if known.usd is None else known.usd * group.calls
        return
    alike = [found for (stage, _), found in own.items() if stage is group.stage]
    most = longest_answer(group.route, work.sampling(group.stage, group.model_id, group.route.endpoint, "x"))
    guess = (
        sum(found.output_tokens for found in alike) / len(alike) if alike else group.stage.usual_answer_tokens
    )
    group.output_tokens = min(guess, most) if most is not None else guess
    if alike:
        group.latency_s = sum(found.latency_s for found in alike) / len(alike)
    group.input_tokens = likely_tokens(_prompt_characters(work, group.stage, jobs, own, groups))
    price = work.routes.primary(group.model_id).price
    if price is not None:
        usage = Usage(round(group.input_tokens), round(group.output_tokens))
        group.usd = (price.cost(usage) or Decimal(0)) * group.calls


def _prompt_characters(
    work: CohortWork,
    stage: Stage,
    jobs: Sequence[int],
    own: Mapping[tuple[Stage, str], _Own],
    groups: Mapping[tuple[Stage, str], Group],
) -> float:
    """The mean length of prompts, over a sample."""
    lengths: dict[tuple[str, int], int] = {}
    total = count = 0
    parent_text = None if stage.parent is None else "x" * _parent_characters(work, stage, jobs, own, groups)
    for job in _spread(jobs):
        row = work.membership.rows[job]
        key = (row.template_id, job if parent_text is None else -1)
        if key not in lengths:
            try:
                second_text = parent_text if row.second_parent_gen_id is not None else None
                lengths[key] = len(work.prompt(job, parent_text, second_text))
            except GenworkerError:
                continue
        total += lengths[key]
        count += 1
    return total / count if count else 0.0


def _parent_characters(
    work: CohortWork,
    stage: Stage,
    jobs: Sequence[int],
    own: Mapping[tuple[Stage, str], _Own],
    groups: Mapping[tuple[Stage, str], Group],
) -> int:
    """How long the texts are that prompts are made from: as they stand in the store, else as expected."""
    parent_stage = stage.parent
    assert parent_stage is not None
    sizes = []
    for job in _spread(jobs):
        path = work.project.paths.parsed_path(parent_stage, work.membership.rows[job].parent_gen_id or "")
        try:
            sizes.append(os.stat(path).st_size)  # noqa: PTH116
        except OSError:
            continue
    if sizes:
        return sum(sizes) // len(sizes)
    tokens = [found.output_tokens for (made, _), found in own.items() if made is parent_stage]
    tokens += [group.output_tokens for (made, _), group in groups.items() if made is parent_stage]
    return round(4 * (sum(tokens) / len(tokens) if tokens else parent_stage.usual_answer_tokens))


def _time(work: CohortWork, result: Estimate, limits: Mapping[str, Mapping[str, float]]) -> None:
    """The longest that any endpoint or lane needs for its calls."""
    settings = work.project.loaded.settings
    loads: dict[str, list[Group]] = {}
    for group in result.groups:
        if group.route.batch:
            continue
        loads.setdefault(group.route.endpoint, []).append(group)
        loads.setdefault(group.route.name, []).append(group)
    # A lineage goes through its stages one after the other.
    slowest = [max((g.latency_s for g in result.groups if g.stage is stage), default=0.0) for stage in STAGES]
    if result.groups:
        result.seconds, result.limited_by = sum(slowest), "one lineage, stage after stage"
        if any(group.route.batch for group in result.groups):
            result.limited_by += ", as long as batches usually take; one may take a day"
    for name, groups in loads.items():
        calls = sum(group.calls for group in groups)
        tokens = sum((group.input_tokens + group.output_tokens) * group.calls for group in groups)
        busy_s = sum(group.latency_s * group.calls for group in groups)
        endpoint = settings.endpoints[groups[0].route.endpoint]
        section = endpoint if name == groups[0].route.endpoint else settings.models.get(groups[0].model_id)
        found = limits.get(name, {})
        at_once = min(endpoint.max_concurrency, settings.max_concurrency, found.get("at_once", 1e9))
        guessed = "" if all(group.seen for group in groups) else ", latencies guessed"
        reasons = [(busy_s / max(1.0, at_once), f"{at_once:.0f} calls at once to {name}{guessed}")]
        if section is not None and section.rpm is not None:
            reasons.append((60.0 * calls / section.rpm, f"{section.rpm:g} requests a minute at {name}"))
        if section is not None and section.tpm is not None:
            reasons.append((60.0 * tokens / section.tpm, f"{section.tpm:g} tokens a minute at {name}"))
        if "per_min" in found:
            learned = found["per_min"]
            reasons.append(
                (60.0 * calls / learned, f"{learned:.0f} requests a minute, as {name} took last time")
            )
        seconds, reason = max(reasons)
        if result.seconds is None or seconds > result.seconds:
            result.seconds, result.limited_by = seconds, reason
