"""The one account of money: what is known, what may be, and what has no price are never one number."""

from __future__ import annotations

import gc
import tracemalloc
from decimal import Decimal
from typing import Any

from genworker.core.account import Fold
from genworker.core.budget import Price, Tariff
from genworker.core.events import event_from_json
from genworker.core.facts import Facts
from genworker.core.money import Account, Answers, FindPrice, Money, Part, cap_text, money_text, usd_text
from genworker.core.stages import Stage

PRICE = Price(Tariff(Decimal(1)), Tariff(Decimal(10)))
DEFAULTS = {"attempt": 1, "kind": "Unavailable", "error": "gone", "may_be_billed": False, "pause_s": 1.0}
USAGE = {"input_tokens": 1000, "output_tokens": 100}


def account(*events: tuple[str, dict[str, Any]], price: Price | None = None) -> Money:
    find: FindPrice = lambda endpoint, model_id, model: price  # noqa: E731
    found = Account("run-1", find)
    for word, facts in events:
        event = event_from_json({**DEFAULTS, **facts, "event": word})
        assert event is not None
        found.hear(event)
    found.close()
    money = Money()
    found.add_to(money)
    return money


def calling(
    gen_id: str = "g1", worst_usd: str | None = "2.00", model: str = "alpha"
) -> tuple[str, dict[str, Any]]:
    call = {
        "stage": "draft",
        "gen_id": gen_id,
        "endpoint": "e",
        "model_id": model,
        "model": f"vendor/{model}",
    }
    return "calling", {**call, "worst_usd": worst_usd, "worst_tokens": 5000}


def end(event: str, gen_id: str = "g1", **facts: Any) -> tuple[str, dict[str, Any]]:
    return event, {"stage": "draft", "gen_id": gen_id, **facts}


def test_an_answer_is_known_and_a_failure_that_may_be_billed_is_possible() -> None:
    money = account(
        *(calling("g1"), end("answered", "g1", usage=USAGE, cost_usd="0.01")),
        *(calling("g2"), end("failed", "g2", may_be_billed=True)),
        *(calling("g3"), end("failed", "g3", may_be_billed=False)),
        *(calling("g4"), end("abandoned", "g4")),
        calling("g5"),
    )
    total = money.total
    assert (total.spent_usd, total.possible_usd) == (Decimal("0.01"), Decimal("6.00"))
    assert (total.uncertain_calls, total.calls) == (3, 5)
    assert (total.tokens, total.possible_tokens) == (1100, 15_000)
    assert total.most_usd == total.worst.usd == Decimal("6.01")
    assert money_text(total) == "$0.01, and at most $6.00 more for 3 failed or abandoned calls"
    assert cap_text(total) == (
        "$0.01 is known to be spent, $6.00 is the worst case of 3 failed or abandoned calls"
    )


def test_a_call_that_is_made_again_counts_both_times() -> None:
    money = account(
        *(calling(), end("retry", may_be_billed=True), calling(), calling()),
        end("answered", usage=USAGE, cost_usd="0.01"),
    )
    assert money.total.possible_usd == Decimal(4), "one refused, one whose end is not on record"
    assert money.total.calls == 3


def test_what_has_no_price_is_named_and_in_no_sum() -> None:
    money = account(calling(worst_usd=None), end("answered", usage=USAGE, cost_usd=None))
    assert (money.total.spent_usd, money.total.unpriced) == (Decimal(0), {"alpha": 1})
    assert money_text(money.total) == "unpriced: alpha"
    money.add(Stage.ESSAY, "beta", "run-2", Part(Decimal("1.5"), calls=1))
    assert money_text(money.total) == "$1.50 + unpriced: alpha"
    money = account(calling(worst_usd=None), end("failed", may_be_billed=True))
    assert (money.total.uncertain_calls, money.total.unpriced) == (1, {"alpha": 1})


def test_a_price_that_is_known_today_counts_for_calls_of_yesterday() -> None:
    events = (
        *(calling("g1", worst_usd=None), end("answered", "g1", usage=USAGE, cost_usd=None)),
        *(calling("g2", worst_usd=None), end("abandoned", "g2")),
    )
    total = account(*events, price=PRICE).total
    assert (total.spent_usd, total.possible_usd) == (Decimal("0.002"), Decimal("0.05"))
    assert not total.unpriced


def test_an_answer_without_a_count_of_tokens_is_no_known_cost() -> None:
    total = account(
        calling(), end("answered", usage={"input_tokens": None}, cost_usd=None), price=PRICE
    ).total
    assert (total.spent_usd, total.possible_usd) == (Decimal(0), Decimal(2))
    assert total.uncertain_calls == 1


def test_the_parts_by_model_stage_and_run_add_up() -> None:
    money = account(
        *(calling("g1"), end("answered", "g1", usage=USAGE, cost_usd="0.01")),
        *(calling("g2", model="beta"), end("abandoned", "g2")),
    )
    other = Money()
    other.merge(money)
    facts = Facts({"model_id": "beta", "cost_usd": 0.5, "usage": USAGE, "attempts": 2})
    answers = Answers(lambda *_: None)
    answers.add(Stage.ESSAY, facts)
    answers.add_to(other)
    for groups in (other.by_model, other.by_stage, other.by_run):
        total = Part()
        for part in groups.values():
            total.add(part)
        assert total == other.total
    record = other.to_json()
    assert (record["spent_usd"], record["possible_usd"], record["uncertain_calls"]) == ("0.51", "2.00", 1)
    assert record["by_run"]["run-1"]["spent_usd"] == "0.01"
    assert record["by_model"]["beta"] == {
        "spent_usd": "0.50",
        "possible_usd": "2.00",
        "uncertain_calls": 1,
        "unpriced": [],
    }


def test_amounts_are_written_exactly() -> None:
    assert [usd_text(Decimal(text)) for text in ("0", "2.5", "1E+2", "0.00420", "1E-7")] == [
        *("0.00", "2.50", "100.00", "0.0042", "0.0000001")
    ]


def test_a_closed_account_counts_what_was_out_once() -> None:
    """`close` may be called again, as when a reader follows a run that is still under way."""
    fold = Fold("run-1")
    for word, facts in (calling("g1"), calling("g2"), end("answered", "g1", usage=USAGE, cost_usd="0.01")):
        event = event_from_json({**DEFAULTS, **facts, "event": word})
        assert event is not None
        fold.add(event)
    fold.odd()
    for _ in range(2):
        run = fold.close()
        (sums,) = run.spending.values()
        assert (sums.uncertain_calls, sums.possible_usd) == (1, Decimal("2.00"))
    assert run.odd_lines == 1


def added(fold: Fold, *events: tuple[str, dict[str, Any]]) -> Fold:
    for word, facts in events:
        event = event_from_json({**DEFAULTS, **facts, "event": word})
        assert event is not None
        fold.add(event)
    return fold


def test_what_was_made_stands_as_often_as_it_was_answered_and_kept() -> None:
    kept, twice, lost, again = (
        [calling(name), end("answered", name, usage=USAGE)] for name in ("kept", "twice", "lost", "again")
    )
    refused = [
        ("answer_not_stored", {"stage": "draft", "gen_id": name, "error": "full"})
        for name in ("lost", "again")
    ]
    fold = added(Fold("run-1"), *kept, *twice, *twice, *lost, *again, *refused, *again)
    assert fold.close().made == {Stage.DRAFT: ["kept", "twice", "twice", "again"]}
    only_lost = added(Fold("run-1"), *lost, refused[0])
    assert only_lost.close().made == {}


def test_an_account_of_a_long_run_keeps_no_more_than_a_name_for_each_generation() -> None:
    """A run has two: one of its money, which takes nothing, and its journal's, which says what was made."""
    names = [f"g{number:015}" for number in range(5000)]  # the membership's, which live anyway
    for fold, most in ((Fold("run-1", names=False), 1), (Fold("run-1"), 10)):
        added(fold, calling("g0"), end("answered", "g0", usage=USAGE))
        gc.collect()
        tracemalloc.start()
        try:
            for name in names:
                added(fold, calling(name), end("answered", name, usage=USAGE))
            gc.collect()
            grown, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert grown < most * len(names) + 4000


def test_without_a_price_what_needs_one_has_no_sum() -> None:
    fold = Fold("run-1")
    for word, facts in (calling("g1"), end("answered", "g1", usage=USAGE), calling("g2", worst_usd=None)):
        event = event_from_json({**DEFAULTS, **facts, "event": word})
        assert event is not None
        fold.add(event)
    (sums,) = fold.close().spending.values()
    assert (sums.spent_at(None), sums.possible_at(None)) == (None, None)
    assert sums.spent_at(PRICE) == Decimal("0.002")
    assert sums.possible_at(PRICE) == Decimal("0.05")  # 5,000 tokens, as if all were of an answer
    assert sums.unpriced_calls == 2
