"""What batches cost, from their own records: closed ones by what came of them, open ones at the worst."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from decimal import Decimal
from statistics import median
from typing import Any

from genworker.core.money import Money, Part
from genworker.core.stages import Stage
from genworker.paths import Paths
from genworker.store.batches import Intent, Shelf


def batch_money(paths: Paths, cohort_id: str) -> Money:
    """What a cohort's batches have cost, those that are open at most.

    Raises:
        StoreError: an open one cannot be read.
    """
    money, shelf = Money(), Shelf(paths, "")
    for record in shelf.settled():
        add_settled(money, record, cohort_id)
    for intent in open_intents(paths, cohort_id):
        add_open(money, intent, cohort_id)
    return money


def open_intents(paths: Paths, cohort_id: str) -> list[Intent]:
    """A cohort's open batches, oldest first.

    Raises:
        StoreError: an open one cannot be read.
    """
    shelf = Shelf(paths, "")
    intents = [shelf.peek(name)[0] for name in shelf.open_batches()]
    return [intent for intent in intents if intent.cohort_id == cohort_id]


def add_settled(money: Money, record: Mapping[str, Any], cohort_id: str) -> None:
    """Count what a closed batch of a cohort has cost. A record that cannot be read counts nothing."""
    if record.get("cohort_id") != cohort_id:
        return
    for name, entry in dict(record.get("stages") or {}).items():
        with contextlib.suppress(KeyError, TypeError, ValueError, ArithmeticError):
            part = Part(
                Decimal(entry["spent_usd"]),
                Decimal(entry["possible_usd"]),
                int(entry["uncertain_calls"]),
                int(entry["calls"]),
                int(entry["tokens"]),
                int(entry["possible_tokens"]),
                {str(model): int(count) for model, count in entry["unpriced"].items()},
            )
            model = str(record.get("model_id") or record.get("model") or "")
            money.add(Stage(name), model, str(record.get("run_id") or ""), part)


def span_s(record: Mapping[str, Any]) -> list[float]:
    """How long a closed batch took from its making to its end, in seconds; empty where it is not known."""
    begun, ended = record.get("created_s"), record.get("ended_s")
    known = isinstance(begun, int | float) and isinstance(ended, int | float)
    return [max(0.0, ended - begun)] if known else []  # type: ignore[operator]


def usual_wait_s(paths: Paths, endpoint: str) -> float | None:
    """How long an endpoint's batches took from their making to their end: the median, in seconds."""
    records = Shelf(paths, "").settled()
    spans = [span for record in records if record.get("endpoint") == endpoint for span in span_s(record)]
    return median(spans) if spans else None


def add_open(money: Money, intent: Intent, cohort_id: str) -> None:
    """Count what a cohort's batch that is not closed may cost."""
    if intent.cohort_id != cohort_id:
        return
    for stage, part in open_parts(intent).items():
        money.add(stage, intent.model_id or intent.model, intent.run_id, part)


def open_parts(intent: Intent) -> dict[Stage, Part]:
    """What a batch that is out may cost at most, by stage."""
    model = intent.model_id or intent.model
    return {
        stage: Part(
            possible_usd=worst.usd,
            uncertain_calls=worst.calls,
            calls=worst.calls,
            possible_tokens=worst.tokens,
            unpriced={} if intent.price is not None else {model: worst.calls},
        )
        for stage, worst in intent.worsts.items()
    }


def part_to_json(part: Part) -> dict[str, Any]:
    """A part of the account as it stands in a closed batch's record."""
    return {
        "spent_usd": format(part.spent_usd, "f"),
        "possible_usd": format(part.possible_usd, "f"),
        "uncertain_calls": part.uncertain_calls,
        "calls": part.calls,
        "tokens": part.tokens,
        "possible_tokens": part.possible_tokens,
        "unpriced": part.unpriced,
    }
