"""What a cohort has cost so far, over all its runs: from the journals, and from the store where one is gone.

A line stands in the journal before each call, so a run that was killed at any moment has left a record of
what it may have spent: a call without a known end counts at its worst case.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from genworker.core.account import RunAccount
from genworker.core.budget import Charge, Price
from genworker.core.facts import MODE_LLM, NO_FACTS, Facts
from genworker.core.membership import Membership
from genworker.core.money import Answers, FindPrice, Money, add_run
from genworker.core.stages import STAGES, Stage
from genworker.paths import METADATA_FILE, Paths
from genworker.run.batch_money import batch_money
from genworker.store.index import StoreIndex
from genworker.store.ledger import Accounts, made_bytes, read_made
from genworker.store.reading import read_bytes

if TYPE_CHECKING:  # settings cost a tenth of a second to import, and a report needs none
    from genworker.project.settings import Settings


METADATA_WORTH_BYTES = 4000
"""Bytes of names that are read in the time in which one metadata file is."""


@dataclass(slots=True)
class Ledger:
    """What a cohort has cost.

    Attributes:
        money: over all its runs.
    """

    money: Money = field(default_factory=Money)

    @property
    def spent(self) -> Charge:
        """At its worst case, as a cap counts it."""
        return self.money.total.worst

    @property
    def unpriced(self) -> set[str]:
        """Models whose calls have no price, then or now."""
        return set(self.money.total.unpriced)


def read_ledger(
    paths: Paths,
    membership: Membership,
    find_price: FindPrice,
    *,
    index: StoreIndex | None,
    accounts: Accounts | None = None,
    but: str = "",
    batches: bool = True,
) -> Ledger:
    """Add up what all runs of a cohort have spent.

    Args:
        index: the same store's, to count answers whose run has left no account as well: their metadata are
            read.
        but: a run to leave out: the one that asks.
        batches: whether provider batches are counted; a run that tends them counts them itself.
    """
    ledger = Ledger()
    found = (accounts or Accounts(paths, but=but)).of(membership.cohort_id)
    for account in found:
        add_run(ledger.money, account, find_price)
    if batches:
        ledger.money.merge(batch_money(paths, membership.cohort_id))
    if index is not None:
        _add_store(ledger, paths, membership, index, found, find_price, but)
    return ledger


def read_money(
    paths: Paths,
    membership: Membership,
    settings: Settings | None,
    *,
    index: StoreIndex | None = None,
    accounts: Accounts | None = None,
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

    return read_ledger(paths, membership, find, index=index or StoreIndex(paths), accounts=accounts).money


def _add_store(
    ledger: Ledger,
    paths: Paths,
    membership: Membership,
    index: StoreIndex,
    accounts: Sequence[RunAccount],
    find_price: FindPrice,
    but: str,
) -> None:
    """Answers of this cohort whose run has left no account: what their metadata say.

    They are read only where the store has more versions of a generation than runs are known to have made;
    or all of them, where that is less to read than the names of all that the runs have made.
    """
    runs = {but, *(account.run_id for account in accounts)}
    asides = {stage: _names(paths.aside_dir(stage, "x").parent) for stage in STAGES}
    directories = {stage: str(paths.stage_dir(stage)) for stage in STAGES}
    names = {stage: index.names(stage) for stage in STAGES}
    made: Counter[tuple[Stage, str]] = Counter()
    there = sum(row.gen_id in names[row.stage] for row in membership.rows)
    if made_bytes(paths) < there * METADATA_WORTH_BYTES:
        for _, stage, gen_ids in read_made(paths, accounts):
            made.update((stage, gen_id) for gen_id in gen_ids)
    answers = Answers(find_price)
    for row in membership.rows:
        stage, gen_id = row.stage, row.gen_id
        found = [f"{directories[stage]}/{gen_id}/{METADATA_FILE}"] if gen_id in names[stage] else []
        if gen_id in asides[stage]:
            found += sorted(map(str, paths.aside_dir(stage, gen_id).glob(f"*/{METADATA_FILE}")))
        if len(found) <= made[stage, gen_id]:
            continue
        for path in found:
            facts = _facts(path)
            if facts.run_id in runs or facts.cohort_id != membership.cohort_id or facts.mode != MODE_LLM:
                continue
            if "batch" in facts.record:  # its batch's own record has what it cost
                continue
            answers.add(stage, facts)
    answers.add_to(ledger.money)


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


def failed_calls(paths: Paths, cohort_id: str, found: Accounts | None = None) -> dict[tuple[Stage, str], str]:
    """(stage, gen_id) of rows whose last call in any run failed for good, without an answer, and why."""
    accounts = (found or Accounts(paths)).of(cohort_id)
    failed_in: dict[tuple[Stage, str], str] = {}
    reasons: dict[tuple[Stage, str], str] = {}
    for account in accounts:
        failed_in.update(dict.fromkeys(account.failed, account.run_id))
        reasons.update(account.failed)
    if failed_in:
        for run_id, stage, names in read_made(paths, accounts):
            for name in names:
                # Within a run the account itself knows which came last.
                if failed_in.get((stage, name), run_id) < run_id:
                    del failed_in[stage, name]
    return {row: reasons[row] for row in failed_in}


def last_limits(accounts: Accounts, cohort_id: str) -> Mapping[str, Mapping[str, float]]:
    """What the cohort's latest run found each lane to allow: its name to ``at_once`` and ``per_min``."""
    for account in reversed(accounts.of(cohort_id)):
        if account.limits is not None:
            return account.limits
    return {}
