"""What a cohort has cost so far, over all its runs: from the journals, and from the store where one is gone.

A line stands in the journal before each call, so a run that was killed at any moment has left a record of
what it may have spent: a call without a known end counts at its worst case.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from genworker.core.budget import Charge, Price
from genworker.core.events import (
    CALL_ENDS,
    Answered,
    CallFailed,
    Calling,
    Committed,
    OddEventError,
    ReparseStarted,
    RowFailed,
    RunEnded,
    RunStarted,
    event_from_json,
)
from genworker.core.facts import MODE_COPY, MODE_LLM, NO_FACTS, Facts
from genworker.core.membership import Membership
from genworker.core.money import Account, FindPrice, Money, add_answer
from genworker.core.stages import STAGES, Stage
from genworker.paths import METADATA_FILE, Paths
from genworker.store.index import StoreIndex
from genworker.store.journal import read_events
from genworker.store.reading import read_bytes

if TYPE_CHECKING:  # settings cost a tenth of a second to import, and a report needs none
    from genworker.project.settings import Settings


@dataclass(slots=True)
class Ledger:
    """What a cohort has cost.

    Attributes:
        money: over all its runs.
        failed: rows whose last call failed for good, without an answer.
    """

    money: Money = field(default_factory=Money)
    failed: set[tuple[Stage, str]] = field(default_factory=set)
    _settled: set[int] = field(default_factory=set)
    """Hashes of (stage, gen_id), for a million rows: answers that a journal knows, and copies."""

    @property
    def spent(self) -> Charge:
        """At its worst case, as a cap counts it."""
        return self.money.total.worst

    @property
    def unpriced(self) -> set[str]:
        """Models whose calls have no price, then or now."""
        return set(self.money.total.unpriced)


def read_ledger(
    paths: Paths, membership: Membership, find_price: FindPrice, *, index: StoreIndex | None, but: str = ""
) -> Ledger:
    """Add up what all runs of a cohort have spent.

    Args:
        index: the same store's, to count answers whose run has left no journal as well: the metadata of
            each of those are read, and of what was kept aside.
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


def read_money(
    paths: Paths, membership: Membership, settings: Settings | None, *, index: StoreIndex | None = None
) -> Money:
    """What a cohort has cost over all its runs.

    Args:
        settings: for calls whose price was not known when they were made; ``None`` leaves them unpriced.
    """
    prices: dict[tuple[str, str, str], Price | None] = {}

    def find(endpoint: str, model_id: str, model: str) -> Price | None:
        key = (endpoint, model_id, model)
        if key not in prices:
            prices[key] = None
            if settings is not None and endpoint in settings.endpoints:
                from genworker.run.pricing import find_price

                prices[key] = find_price(settings, endpoint, model_id, model)
        return prices[key]

    return read_ledger(paths, membership, find, index=index or StoreIndex(paths)).money


def _is_of(path: Path, cohort_id: str) -> bool:
    """Whether a journal's first line names the cohort."""
    try:
        with path.open("rb") as stream:
            first = event_from_json(orjson.loads(stream.readline()))
    except (OSError, orjson.JSONDecodeError, OddEventError):
        return False
    return isinstance(first, RunStarted | ReparseStarted) and first.cohort == cohort_id


def _add_journal(ledger: Ledger, path: Path, find_price: FindPrice) -> None:
    account = Account(path.stem, find_price)
    for event in read_events(path, Calling, *CALL_ENDS, Committed):
        account.hear(event)
        if isinstance(event, Answered):
            ledger._settled.add(hash((event.stage, event.gen_id)))
            ledger.failed.discard((event.stage, event.gen_id))
        elif isinstance(event, CallFailed | RowFailed):
            ledger.failed.add((event.stage, event.gen_id))
        elif isinstance(event, Committed) and event.mode == MODE_COPY:
            ledger._settled.add(hash((event.stage, event.gen_id)))
    account.close()
    account.add_to(ledger.money)


def _add_store(
    ledger: Ledger,
    paths: Paths,
    membership: Membership,
    index: StoreIndex,
    runs: set[str],
    find_price: FindPrice,
) -> None:
    """Answers of this cohort whose run has left no journal: what their metadata say."""
    asides = {stage: _names(paths.aside_dir(stage, "x").parent) for stage in STAGES}
    directories = {stage: str(paths.stage_dir(stage)) for stage in STAGES}
    names = {stage: index.names(stage) for stage in STAGES}
    for row in membership.rows:
        stage, gen_id = row.stage, row.gen_id
        was_replaced = gen_id in asides[stage]
        # What a journal knows was answered once; only what replaced or was replaced may be of another run.
        if not was_replaced and (gen_id not in names[stage] or hash((stage, gen_id)) in ledger._settled):
            continue
        found = [f"{directories[stage]}/{gen_id}/{METADATA_FILE}"] if gen_id in names[stage] else []
        if was_replaced:
            found += sorted(map(str, paths.aside_dir(stage, gen_id).glob(f"*/{METADATA_FILE}")))
        for path in found:
            facts = _facts(path)
            if facts.run_id in runs or facts.cohort_id != membership.cohort_id or facts.mode != MODE_LLM:
                continue
            add_answer(ledger.money, stage, facts, find_price)


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


def failed_calls(paths: Paths, cohort_id: str) -> set[tuple[Stage, str]]:
    """Rows whose last call in any run failed for good, without an answer."""
    ledger = Ledger()
    for path in sorted(paths.runs_dir.glob("*.jsonl")):
        if _is_of(path, cohort_id):
            _add_journal(ledger, path, lambda *_: None)
    return ledger.failed


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
