"""What several commands say in the same words: amounts of money, and why rows are blocked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from genworker.core.money import dollars

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from decimal import Decimal

    from genworker.core.membership import Membership
    from genworker.core.plan import Plan
    from genworker.paths import Paths
    from genworker.project.settings import Settings


def cost_text(amount: Decimal, unpriced: Sequence[str]) -> str:
    """An amount and whose prices are unknown: ``$1.30 + unpriced: smol-135m``."""
    if not unpriced:
        return dollars(amount)
    names = f"unpriced: {', '.join(unpriced[:3])}{', …' if len(unpriced) > 3 else ''}"
    return f"{dollars(amount)} + {names}" if amount else names


def money_record(
    paths: Paths, settings: Settings | None, cohorts: Iterable[str | Membership] | None = None
) -> dict[str, Any]:
    """The object ``money`` of a command's ``--json``: what these cohorts together have cost over all runs.

    Args:
        settings: for prices of calls that had none when they were made.
        cohorts: all of the data root without it. Of one whose membership cannot be read, or is not there
            yet, the runs' accounts alone are counted.
    """
    from array import array

    from genworker.core.membership import Membership
    from genworker.core.money import Money
    from genworker.errors import FaultyInputError
    from genworker.run.ledger import read_money
    from genworker.store.catalog import list_cohorts, load_membership_as_it_stands
    from genworker.store.index import StoreIndex

    total, index = Money(), StoreIndex(paths)
    for cohort in list_cohorts(paths) if cohorts is None else cohorts:
        if isinstance(cohort, Membership):
            membership = cohort
        else:
            try:
                membership = load_membership_as_it_stands(paths, cohort)
            except FaultyInputError:
                membership = Membership(cohort, [], array("i"))
        total.merge(read_money(paths, membership, settings, index=index))
    return total.to_json()


def blocked_lines(planned: Plan, limit: int = 10) -> list[str]:
    """Why rows are blocked, grouped by the ancestor that blocks them."""
    rows = planned.membership.rows
    groups: dict[tuple[int, str], int] = {}
    for index, ancestor in planned.blockers.items():
        outside = f"{rows[index].stage.parent} {' or '.join(rows[index].above)}" if ancestor < 0 else ""
        key = (ancestor, outside)
        groups[key] = groups.get(key, 0) + 1
    lines = []
    for (ancestor, outside), count in sorted(groups.items(), key=lambda item: -item[1])[:limit]:
        if ancestor < 0:
            lines.append(f"{count} blocked by {outside}: it is not usable in the store")
        else:
            failure = planned.failures.get(ancestor)
            reason = failure.message if failure is not None else "failed"
            lines.append(f"{count} blocked by {rows[ancestor].stage.value} {rows[ancestor].gen_id}: {reason}")
    if len(groups) > limit:
        lines.append(f"… and {len(groups) - limit} more ancestors that block others")
    return lines
