"""What notebooks call: the scores and the generations of cohorts. The command line calls the same.

Here store and reports are brought together; both know nothing of each other.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genworker.core.facts import Facts
from genworker.core.membership import Membership
from genworker.core.money import Money
from genworker.core.stages import Stage
from genworker.paths import Paths
from genworker.reports.choices import read_choices
from genworker.reports.export import PARQUET_TYPES, GenerationRow, generation_rows
from genworker.reports.findings import find
from genworker.reports.pairwise import Comparison
from genworker.reports.provenance import History, StaleGroup, read_provenance, template_texts
from genworker.reports.reading import Reading
from genworker.reports.scores import ScoreRow, Scores, collect_scores
from genworker.run.batch_money import open_intents
from genworker.run.history import run_records
from genworker.run.ledger import LedgerReader, read_money, todays_prices
from genworker.store.reader import StoreReader

if TYPE_CHECKING:
    import pandas

    from genworker.project.settings import Settings


def scores(data_root: str | Path, cohort: str | Sequence[str]) -> list[ScoreRow]:
    """The scores of a cohort, one row per planned evaluation, also where there is no score.

    The same rows, in the same order, as ``aggregated_scores.csv``::

        pandas.DataFrame(genworker.scores("data", "my-cohort"))

    Args:
        cohort: a cohort's id, or several: then an evaluation that stands in more than one counts once.

    Raises:
        UsageError: there is no such cohort.
        MembershipError: a membership file is wrong; every fault at once.
        StoreError: a stage directory cannot be listed.
    """
    return list(read_scores(StoreReader(Paths.from_str(data_root)), cohort).rows())


def iter_generations(
    data_root: str | Path, cohort: str, *, stage: Stage | str | None = None
) -> Iterator[GenerationRow]:
    """Every planned generation of a cohort with its texts, one at a time, whatever their number.

    The same rows as ``genworker export`` writes; `GenerationRow` says what stands in them::

        essays = [row for row in genworker.iter_generations("data", "my-cohort", stage="essay")]

    Args:
        stage: ``draft``, ``essay`` or ``evaluation``; all of them without.

    Raises:
        ValueError: `stage` is none of these.
        UsageError: there is no such cohort.
        MembershipError: its file is wrong; rows before the fault may have been given out.
    """
    chosen = None if stage is None else Stage(stage)
    return generation_rows(StoreReader(Paths.from_str(data_root)), cohort, chosen)


def money(data_root: str | Path, cohort: str | Sequence[str]) -> dict[str, Any]:
    """What a cohort has cost over all its runs: the object ``money`` of every ``--json``.

    ``spent_usd`` is known to be spent, ``possible_usd`` is what ``uncertain_calls`` may have cost at most
    beyond that; ``unpriced`` names models whose calls have no price and are in neither.

    Args:
        cohort: a cohort's id, or several: then they add up.

    Raises:
        UsageError: there is no such cohort.
        MembershipError: a membership file is wrong; every fault at once.
    """
    return read_cohorts_money(StoreReader(Paths.from_str(data_root)), cohort, None).to_json()


def read_cohorts_money(reader: StoreReader, cohort: str | Sequence[str], settings: Settings | None) -> Money:
    """As `money`, with prices of today for calls that had none."""
    total = Money()
    for name in _names(cohort):
        total.merge(read_money(reader.paths, reader.membership(name), settings, index=reader.index))
    return total


def read_report(
    reader: StoreReader,
    cohort: str | Sequence[str],
    *,
    settings: Settings | None = None,
    comparisons: Sequence[Comparison] = (),
    stale: Sequence[StaleGroup] | None = None,
) -> Reading:
    """Read all that a report of these cohorts says, texts left out.

    Args:
        settings: for prices of calls that had none when they were made.
        comparisons: of two texts each, to be ranked beside the scores.
        stale: what is stale; ``None`` where nobody looked.
    """
    memberships = [reader.membership(name) for name in _names(cohort)]
    found = _scores_of(reader, memberships)
    prices = todays_prices(settings)
    ledgers = [LedgerReader(reader.paths, membership, prices, reader.index) for membership in memberships]

    def tell(stage: Stage, gen_id: str, facts: Facts) -> None:
        for ledger in ledgers:
            ledger.hear(stage, gen_id, facts)

    provenance = read_provenance(found, reader, tell)
    money = Money()
    for ledger in ledgers:
        money.merge(ledger.close().money)
    history = History(
        run_records(reader.paths, found.cohort_ids), stale, template_texts(found, provenance, reader)
    )
    findings = find(found, finished=provenance.finished, comparisons=comparisons)
    out = sum(intent.count for each in found.cohort_ids for intent in open_intents(reader.paths, each))
    return Reading(found, provenance, findings, money, history, read_choices(found), out)


def findings(data_root: str | Path, cohort: str | Sequence[str]) -> list[dict[str, Any]]:
    """Every contrast of a cohort's report, the claimed ones first: ``findings`` of ``report --json``.

    Each has factor, level, against, difference, low, high (its 95 % interval), pairs, wins, claimed, p and
    p_adjusted; docs/findings.md says what they mean.

    Args:
        cohort: a cohort's id, or several.

    Raises:
        UsageError: there is no such cohort.
        MembershipError: a membership file is wrong; every fault at once.
    """
    reading = read_report(StoreReader(Paths.from_str(data_root)), cohort)
    return [finding.to_json() for finding in reading.findings.findings]


def to_pandas(data_root: str | Path, cohort: str, *, stage: Stage | str | None = None) -> pandas.DataFrame:
    """Every planned generation of a cohort as a data frame: the rows of ``genworker export``, with types.

    Counts are whole numbers that may be missing, times are times in UTC. All texts are in memory then.

    Args:
        stage: ``draft``, ``essay`` or ``evaluation``; all of them without.

    Raises:
        ImportError: pandas is not installed.
        UsageError: there is no such cohort.
        MembershipError: its file is wrong.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError("to_pandas needs pandas: pip install pandas") from error
    frame = pandas.DataFrame(
        list(iter_generations(data_root, cohort, stage=stage)), columns=list(GenerationRow._fields)
    )
    for name, kind in PARQUET_TYPES.items():
        if kind == "TIMESTAMP":
            frame[name] = pandas.to_datetime(frame[name], utc=True, format="ISO8601")
        elif kind != "VARCHAR":
            frame[name] = frame[name].astype(_PANDAS_TYPES[kind])
    return frame


_PANDAS_TYPES = {"BIGINT": "Int64", "DOUBLE": "Float64", "BOOLEAN": "boolean"}


def read_scores(reader: StoreReader, cohort: str | Sequence[str]) -> Scores:
    """As `scores`, with the plan and the essays behind each row."""
    return _scores_of(reader, [reader.membership(name) for name in _names(cohort)])


def _names(cohort: str | Sequence[str]) -> list[str]:
    return [cohort] if isinstance(cohort, str) else list(dict.fromkeys(cohort))


def _scores_of(reader: StoreReader, memberships: Sequence[Membership]) -> Scores:
    was_enabled = gc.isenabled()
    gc.disable()  # a hundred thousand rows are made and none is garbage: it would walk them again and again
    try:
        return collect_scores(reader, memberships)
    finally:
        if was_enabled:
            gc.enable()
