"""What a cohort has cost so far, over all its runs: from the journals, and from the store where one is gone.

A line stands in the journal before each call, so a run that was killed at any moment has left a record of
what it may have spent: a call without a known end counts at its worst case.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from genworker.core.budget import Charge, Price
from genworker.core.facts import Facts
from genworker.core.membership import Membership
from genworker.core.money import Answers, FindPrice, Money, Parts, add_run
from genworker.core.stages import STAGES, Stage
from genworker.paths import METADATA_FILE, RAW_FILE, Paths
from genworker.run.batch_money import batch_money
from genworker.store.index import StoreIndex
from genworker.store.ledger import Accounts, made_bytes, read_made
from genworker.store.reading import Metadata, facts_in

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
    index: StoreIndex,
    accounts: Accounts | None = None,
    but: str = "",
    batches: bool = True,
) -> Ledger:
    """Add up what all runs of a cohort have spent.

    Args:
        index: the same store's.
        but: a run to leave out: the one that asks.
        batches: whether provider batches are counted; a run that tends them counts them itself.
    """
    reader = LedgerReader(paths, membership, find_price, index, accounts=accounts, but=but, batches=batches)
    return reader.close()


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
    prices = todays_prices(settings)
    return read_ledger(paths, membership, prices, index=index or StoreIndex(paths), accounts=accounts).money


def todays_prices(settings: Settings | None) -> FindPrice:
    """What calls cost by the settings of today; without settings nobody knows."""
    prices: dict[tuple[str, str, str], Price | None] = {}

    def find(endpoint: str, model_id: str, model: str) -> Price | None:
        key = (endpoint, model_id, model)
        if key not in prices:
            prices[key] = None
            if settings is not None and endpoint in settings.endpoints:
                from genworker.run.pricing import find_price

                prices[key] = find_price(settings, endpoint, model_id, model)
        return prices[key]

    return find


class LedgerReader:
    """Adds up what all runs of a cohort have spent: from their accounts, else from what their answers say.

    Metadata are wanted only where the store has more versions of a generation than runs are known to have
    made; or all of them, where that is less to read than the names of all that the runs have made. Who reads
    them anyway hands them over (`heed`, `hear`); `close` reads those that nobody has.

    Args:
        index, accounts, but, batches: as of `read_ledger`.
    """

    def __init__(
        self,
        paths: Paths,
        membership: Membership,
        find_price: FindPrice,
        index: StoreIndex,
        *,
        accounts: Accounts | None = None,
        but: str = "",
        batches: bool = True,
    ) -> None:
        self._ledger = Ledger()
        self._cohort_id = membership.cohort_id
        self._answers = Answers(find_price)
        self._directories = {stage: str(paths.stage_dir(stage)) for stage in STAGES}
        found = (accounts or Accounts(paths, but=but)).of(membership.cohort_id)
        self._runs = {but, *(account.run_id for account in found)}
        for account in found:
            add_run(self._ledger.money, account, find_price)
        if batches:
            self._ledger.money.merge(batch_money(paths, membership.cohort_id))
        asides = {stage: _names(paths.aside_dir(stage, "x").parent) for stage in STAGES}
        names = {stage: index.names(stage) for stage in STAGES}
        made: Counter[tuple[Stage, str]] = Counter()
        there = sum(row.gen_id in names[row.stage] for row in membership.rows)
        if found and made_bytes(paths) < there * METADATA_WORTH_BYTES:
            for _, stage, gen_ids in read_made(paths, found):
                made.update((stage, gen_id) for gen_id in gen_ids)
        self._wanted: dict[Stage, set[str]] = {stage: set() for stage in STAGES}
        self._heard: dict[Stage, list[str]] = {stage: [] for stage in STAGES}
        for row in membership.rows:
            stage, gen_id = row.stage, row.gen_id
            versions = int(gen_id in names[stage])
            kept = []
            if gen_id in asides[stage]:
                kept = [path.parent for path in paths.aside_dir(stage, gen_id).glob(f"*/{METADATA_FILE}")]
            if versions + len(kept) <= (made[stage, gen_id] if made else 0):
                continue
            if versions:
                self._wanted[stage].add(gen_id)
            for directory in kept:
                self._add(stage, facts_in(str(directory), stage))

    def heed(self, stage: Stage, gen_id: str, metadata: Metadata) -> None:
        """What a generation's metadata say, as `StoreIndex` reads them; parsed only where they are wanted."""
        if gen_id in self._wanted[stage]:
            self.hear(stage, gen_id, metadata.facts(stage))

    def hear(self, stage: Stage, gen_id: str, facts: Facts) -> None:
        """What a generation's metadata say."""
        if gen_id in self._wanted[stage]:
            self._heard[stage].append(gen_id)
            self._add(stage, facts)

    def take(self) -> tuple[Parts, dict[Stage, list[str]]]:
        """What was heard since the last time; see `genworker.store.index.Listener`."""
        heard, self._heard = self._heard, {stage: [] for stage in STAGES}
        return self._answers.take(), heard

    def give(self, told: tuple[Parts, dict[Stage, list[str]]]) -> None:
        """What `take` has taken."""
        parts, heard = told
        self._answers.give(parts)
        for stage, gen_ids in heard.items():
            self._wanted[stage].difference_update(gen_ids)

    def close(self) -> Ledger:
        """All of it; reads what nobody has handed over."""
        self.give(self.take())
        for stage, gen_ids in self._wanted.items():
            for gen_id in gen_ids:
                directory = f"{self._directories[stage]}/{gen_id}"
                if os.access(f"{directory}/{RAW_FILE}", os.F_OK):  # else planned, by a tool that writes plans
                    self._add(stage, facts_in(directory, stage))
        self._answers.add_to(self._ledger.money)
        return self._ledger

    def _add(self, stage: Stage, facts: Facts) -> None:
        # Older tools do not say whose it was: it is in this cohort.
        if not facts or facts.is_copy or (facts.cohort_id or self._cohort_id) != self._cohort_id:
            return
        if facts.run_id in self._runs or "batch" in facts.record:  # counted, or by its batch's own record
            return
        self._answers.add(stage, facts)


def _names(directory: Path) -> set[str]:
    try:
        return {entry.name for entry in directory.iterdir()}
    except OSError:
        return set()


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
