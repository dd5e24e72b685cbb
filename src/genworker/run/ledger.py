"""What a cohort has cost so far, over all its runs: from journals and, where a cap needs it, from the store.

A line stands in the journal before each call, so a run that was killed at any moment has left a record of
what it may have spent: a call without a known end counts at its worst case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import orjson

from genworker.core.budget import NOTHING, Caps, Charge, Price
from genworker.core.completion import Sampling
from genworker.core.events import (
    CALL_ENDS,
    Abandoned,
    Answered,
    CallFailed,
    Calling,
    OddEventError,
    ReparseStarted,
    RowFailed,
    RunEnded,
    RunStarted,
    event_from_json,
)
from genworker.core.facts import MODE_LLM, NO_FACTS, Facts
from genworker.core.membership import Membership
from genworker.core.stages import STAGES, Stage
from genworker.errors import ConfigError, Fault
from genworker.paths import METADATA_FILE, Paths
from genworker.project.settings import LoadedSettings
from genworker.run.routes import Route, longest_answer
from genworker.store.index import StoreIndex
from genworker.store.journal import read_events
from genworker.store.reading import read_bytes

FindPrice = Callable[[str, str, str], Price | None]
"""(endpoint, model's id, model's name there) to its price today."""


@dataclass(slots=True)
class Ledger:
    """The sum.

    Attributes:
        spent: over all runs of the cohort.
        unpriced: models whose calls have no price, then or now; their money is not in `spent`.
        open_calls: calls without a known end, counted at their worst case.
    """

    spent: Charge = NOTHING
    unpriced: set[str] = field(default_factory=set)
    open_calls: int = 0
    _answered: set[int] = field(default_factory=set)  # hashes of (stage, gen_id), for a million rows


def read_ledger(
    paths: Paths, membership: Membership, find_price: FindPrice, *, index: StoreIndex | None, but: str = ""
) -> Ledger:
    """Add up what all runs of a cohort have spent.

    Args:
        index: the same store's, to count generations whose run has left no journal as well. That reads the
            metadata of each, many times what the journals take: a cap needs it, a mere sum does not.
        but: a run to leave out: the one that asks.
    """
    ledger = Ledger()
    runs: set[str] = set()
    for path in sorted(paths.runs_dir.glob("*.jsonl")):
        if path.stem != but and _is_of(path, membership.cohort_id):
            runs.add(path.stem)
            _add_journal(ledger, path, find_price)
    if index is not None:
        _add_store(ledger, paths, membership, index, runs | {but}, find_price)
    return ledger


def _is_of(path: Path, cohort_id: str) -> bool:
    """Whether a journal's first line names the cohort."""
    try:
        with path.open("rb") as stream:
            first = event_from_json(orjson.loads(stream.readline()))
    except (OSError, orjson.JSONDecodeError, OddEventError):
        return False
    return isinstance(first, RunStarted | ReparseStarted) and first.cohort == cohort_id


def _add_journal(ledger: Ledger, path: Path, find_price: FindPrice) -> None:
    out: dict[tuple[Stage, str], Calling] = {}
    usd, calls, tokens = ledger.spent.usd, ledger.spent.calls, ledger.spent.tokens
    for event in read_events(path, Calling, *CALL_ENDS):
        if isinstance(event, Calling):
            key = (event.stage, event.gen_id)
            before = out.get(key)
            if before is not None:  # its end is not on record
                ledger.open_calls += 1
                usd += _worst(ledger, before, find_price)
                tokens += before.worst_tokens or 0
            out[key] = event
            calls += 1
            continue
        assert isinstance(event, CALL_ENDS)
        key = (event.stage, event.gen_id)
        call = out.pop(key, None)
        if call is None:
            continue
        if isinstance(event, Answered):
            ledger._answered.add(hash(key))
            usage = event.usage
            known = event.cost_usd
            if known is None:
                price = _price(call.endpoint, call.model_id, call.model, find_price)
                known = None if price is None else price.cost(usage)
            usd += known if known is not None else _worst(ledger, call, find_price)
            read, written = usage.input_tokens, usage.output_tokens
            counted = read is not None and written is not None
            tokens += (read or 0) + (written or 0) if counted else call.worst_tokens or 0
        elif isinstance(event, Abandoned) or (not isinstance(event, RowFailed) and event.may_be_billed):
            usd += _worst(ledger, call, find_price)
            tokens += call.worst_tokens or 0
    for call in out.values():
        ledger.open_calls += 1
        usd += _worst(ledger, call, find_price)
        tokens += call.worst_tokens or 0
    ledger.spent = Charge(usd, calls, tokens)


def _add_store(
    ledger: Ledger,
    paths: Paths,
    membership: Membership,
    index: StoreIndex,
    runs: set[str],
    find_price: FindPrice,
) -> None:
    """Generations of this cohort whose run has left no journal: what their metadata say."""
    asides = {stage: _names(paths.aside_dir(stage, "x").parent) for stage in STAGES}
    directories = {stage: str(paths.stage_dir(stage)) for stage in STAGES}
    there = {stage: index.names(stage) | asides[stage] for stage in STAGES}
    for row in membership.rows:
        if row.gen_id not in there[row.stage] or hash((row.stage, row.gen_id)) in ledger._answered:
            continue
        found = []
        if row.gen_id in index.names(row.stage):
            found.append(f"{directories[row.stage]}/{row.gen_id}/{METADATA_FILE}")
        if row.gen_id in asides[row.stage]:
            found += sorted(map(str, paths.aside_dir(row.stage, row.gen_id).glob(f"*/{METADATA_FILE}")))
        for path in found:
            facts = _facts(path)
            if facts.run_id in runs or facts.cohort_id != membership.cohort_id or facts.mode != MODE_LLM:
                continue
            usage, known = facts.usage, facts.cost_usd
            if known is None:
                price = _price(facts.endpoint, facts.model_id, facts.model, find_price)
                known = None if price is None else price.cost(usage)
            if known is None:
                ledger.unpriced.add(str(facts.model_id))
            tokens = (usage.input_tokens or 0) + (usage.output_tokens or 0)
            ledger.spent += Charge(known or Decimal(0), facts.attempts or 1, tokens)


def _names(directory: Path) -> set[str]:
    try:
        return {entry.name for entry in directory.iterdir()}
    except OSError:
        return set()


def _facts(path: str) -> Facts:
    try:
        record = orjson.loads(read_bytes(path))
    except orjson.JSONDecodeError:
        return NO_FACTS
    return Facts(record) if isinstance(record, dict) else NO_FACTS


def _price(
    endpoint: str | None, model_id: str | None, model: str | None, find_price: FindPrice
) -> Price | None:
    """The price today; ``None`` also where the record does not say what was asked."""
    if endpoint is None or model is None:
        return None
    return find_price(endpoint, model_id or "", model)


def _worst(ledger: Ledger, call: Calling, find_price: FindPrice) -> Decimal:
    if call.worst_usd is not None:
        return call.worst_usd
    price = _price(call.endpoint, call.model_id, call.model, find_price)
    if price is None:
        ledger.unpriced.add(str(call.model_id or call.model))
        return Decimal(0)
    tokens = call.worst_tokens or 0
    return max(price.at_most(tokens, 0), price.at_most(0, tokens))


def failed_calls(paths: Paths, cohort_id: str) -> set[tuple[Stage, str]]:
    """(stage, gen_id) of rows whose last call in any run failed for good, without an answer."""
    failed: set[tuple[Stage, str]] = set()
    for path in sorted(paths.runs_dir.glob("*.jsonl")):
        if not _is_of(path, cohort_id):
            continue
        for event in read_events(path, CallFailed, RowFailed, Answered):
            if isinstance(event, CallFailed | RowFailed):
                failed.add((event.stage, event.gen_id))
            elif isinstance(event, Answered):
                failed.discard((event.stage, event.gen_id))
    return failed


def last_limits(paths: Paths, cohort_id: str) -> Mapping[str, Mapping[str, float]]:
    """What the cohort's latest run found each lane to allow: its name to ``at_once`` and ``per_min``."""
    for path in sorted(paths.runs_dir.glob("*.jsonl"), reverse=True):
        if not _is_of(path, cohort_id):
            continue
        with path.open("rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - 65_536))
            last = stream.read().splitlines()[-1:]
        try:
            event = event_from_json(orjson.loads(last[0])) if last else None
        except (orjson.JSONDecodeError, OddEventError):
            continue
        if isinstance(event, RunEnded) and event.limits is not None:
            return event.limits
    return {}


def check_caps(
    caps: Caps,
    loaded: LoadedSettings,
    ledger: Ledger,
    routes: Iterable[tuple[Stage, Route]],
    sampling: Callable[[Stage, str, str, str], Sampling],
) -> None:
    """Refuse caps that could not be kept, before anything is spent.

    Args:
        routes: every stage and route that the run may call, fallbacks included.

    Raises:
        ConfigError: every fault at once.
    """
    faults: dict[str, Fault] = {}
    config = str(loaded.config or "config/genworker.toml")
    for stage, route in routes:
        if caps.usd is not None and route.price is None:
            model = route.model_id
            faults[f"price {route.name}"] = Fault(
                f"{route.name} has no known price, so a cap on money cannot be kept",
                where=f"{config} [models.{model!r}]",
                fix=f'add: [models."{model}".price] input = …, output = … (USD per million tokens), '
                "or cap with --max-tokens or --max-calls",
            )
        limited = sampling(stage, route.model_id, route.endpoint, "x")
        if (caps.usd is not None or caps.tokens is not None) and longest_answer(route, limited) is None:
            faults[f"{stage} {route.name}"] = Fault(
                f"{route.name} has no max_tokens for the stage {stage.value}: an answer could cost anything",
                where=f"{config} [stages.{stage.value}]",
                fix="add: max_tokens = …",
            )
    if caps.usd is not None:
        for model in sorted(ledger.unpriced):
            faults[f"past {model}"] = Fault(
                f"earlier runs of this cohort called {model}, which has no known price",
                where=f"{config} [models.{model!r}]",
                fix=f'add: [models."{model}".price] input = …, output = … (0 where it was free)',
            )
    if faults:
        raise ConfigError(list(faults.values()), title="the caps cannot be kept, nothing was sent")
