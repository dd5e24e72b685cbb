"""What notebooks call: the scores and the generations of cohorts. The command line calls the same.

Here store and reports are brought together; both know nothing of each other.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from pathlib import Path

from genworker.core.stages import Stage
from genworker.paths import Paths
from genworker.reports.export import GenerationRow, generation_rows
from genworker.reports.scores import ScoreRow, Scores, collect_scores
from genworker.store.reader import StoreReader


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


def read_scores(reader: StoreReader, cohort: str | Sequence[str]) -> Scores:
    """As `scores`, with the plan and the essays behind each row."""
    names = [cohort] if isinstance(cohort, str) else list(dict.fromkeys(cohort))
    memberships = [reader.membership(name) for name in names]
    was_enabled = gc.isenabled()
    gc.disable()  # a hundred thousand rows are made and none is garbage: it would walk them again and again
    try:
        return collect_scores(reader, memberships)
    finally:
        if was_enabled:
            gc.enable()
