"""Accounts of ended runs stand for their journals: the sums are the same, whoever reads them and how often."""

from __future__ import annotations

import gzip
import shutil
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genworker.core.account import RunAccount, Sizes, fold
from genworker.core.budget import Price, Tariff
from genworker.core.completion import FinishReason, Usage
from genworker.core.events import Abandoned, Answered, AnswerNotStored, CallFailed, Calling, Event, RowFailed
from genworker.core.events import RunStarted as Started
from genworker.core.stages import Stage
from genworker.paths import Paths
from genworker.store import ledger
from genworker.store.journal import RunJournal
from genworker.store.ledger import cohort_of, fold_journal, journals, kept_runs, read_accounts, read_made

D = Stage.DRAFT
PRICE = Price(Tariff(Decimal(2), ((1000, Decimal(4)),)), Tariff(Decimal(10)), Tariff(Decimal("0.5")))
FLAT = Price(Tariff(Decimal(2)), Tariff(Decimal(10)), Tariff(Decimal("0.5")), per_call=Decimal("0.001"))


def calling(name: str, worst: str | None = "1", tokens: int = 100) -> Calling:
    return Calling(D, name, 1, "t", "m", "vendor/m", None if worst is None else Decimal(worst), tokens)


def answered(name: str, cost: str | None = "0.5", usage: Usage | None = None) -> Answered:
    money = None if cost is None else Decimal(cost)
    return Answered(D, name, 1, "t", "vendor/m", FinishReason.STOP, usage or Usage(7, 3), money, None, 0.1)


def failed(name: str, *, may_be_billed: bool = False) -> CallFailed:
    return CallFailed(D, name, 1, "Unavailable", 500, f"no {name}", None, may_be_billed, 0.1)


RUN: list[Event] = [
    Started("r1", "c", "1", 9, 1, []),
    calling("good"), answered("good"),
    calling("uncounted"), answered("uncounted", None, Usage()),
    calling("free"), failed("free"),
    calling("billed"), failed("billed", may_be_billed=True),
    calling("left"), Abandoned(D, "left", 1),
    calling("twice"), calling("twice"), answered("twice"),
    calling("lost"), answered("lost"), AnswerNotStored(D, "lost", "full"),
    RowFailed(D, "unasked", 1, "Template", "no such name"),
    calling("out"),
]  # fmt: skip


def test_a_journal_in_sums() -> None:
    account = fold("r1", RUN)
    (sums,) = account.spending.values()
    assert (sums.calls, sums.answers) == (9, 4)
    assert sums.spent_usd == Decimal("1.5"), "three answers with a cost"
    assert sums.uncertain_calls == 5, "uncounted, billed, left, the first of twice, out"
    assert sums.possible_usd == Decimal(5)
    assert (sums.possible_tokens, sums.spent_tokens) == (500, 30)
    assert account.made == {D: ["good", "uncounted", "twice"]}
    assert set(account.failed) == {(D, "free"), (D, "billed"), (D, "unasked")}


def write(paths: Paths, run_id: str, events: list[Event], *, die: bool = False) -> Path:
    """A run's journal; one that died has kept no account."""
    journal = RunJournal(paths, run_id)
    for event in events:
        journal.record(replace(event, run_id=run_id) if isinstance(event, Started) else event)
    if die:
        journal._file.close()
    else:
        journal.close()
    return journal.path


def same(one: RunAccount, other: RunAccount, paths: Paths) -> bool:
    made = [sorted((stage, names) for _, stage, names in read_made(paths, [it])) for it in (one, other)]
    return (
        one.sums_to_json() == other.sums_to_json() and one.cohort_id == other.cohort_id and made[0] == made[1]
    )


@pytest.mark.parametrize("die", [False, True])
def test_the_account_is_the_journal(tmp_path: Path, die: bool) -> None:
    paths = Paths.from_str(tmp_path)
    path = write(paths, "r1", RUN, die=die)
    write(paths, "r2", [Started("r2", "other", "1", 1, 1, []), calling("x")])
    expected = fold_journal("r1", path)
    for _ in range(2):
        (found,) = read_accounts(paths, "c")
        assert same(found, expected, paths)
    # From here on the journal is not needed.
    path.unlink()
    (found,) = read_accounts(paths, "c")
    assert same(found, expected, paths)
    assert {account.run_id for account in read_accounts(paths, None)} == {"r1", "r2"}
    assert read_accounts(paths, "c", but="r1") == []


def test_what_is_kept_may_be_torn_or_lost(tmp_path: Path) -> None:
    paths = Paths.from_str(tmp_path)
    write(paths, "r1", RUN)
    write(paths, "r2", RUN)
    whole = paths.ledger_path.read_bytes()
    made = paths.made_path.read_bytes()
    expected = [account.sums_to_json() for account in read_accounts(paths, "c")]
    for end in range(0, len(whole), 37):
        paths.ledger_path.write_bytes(whole[:end])
        paths.made_path.write_bytes(made[: end // 2])
        for _ in range(2):
            found = read_accounts(paths, "c")
            assert [account.sums_to_json() for account in found] == expected
            assert sum(len(names) for _, _, names in read_made(paths, found)) == 6
    shutil.rmtree(paths.ledger_path.parent)
    assert [account.sums_to_json() for account in read_accounts(paths, "c")] == expected


def test_a_line_of_sums_that_is_none_is_neither_kept_nor_in_the_way(tmp_path: Path) -> None:
    paths = Paths.from_str(tmp_path)
    write(paths, "r1", RUN)
    write(paths, "r2", RUN)
    expected = [account.sums_to_json() for account in read_accounts(paths, "c")]
    lines = paths.ledger_path.read_bytes()
    for old, new in ((b'"cohort":"c"', b'"cohort":"\xff\\q"'), (b'"calls":', b'"calls":null,"x":')):
        paths.ledger_path.write_bytes(lines.replace(old, new, 1))
        assert kept_runs(paths) == {"r2"}
        assert [account.sums_to_json() for account in read_accounts(paths, "c")] == expected
        assert read_accounts(paths, "else") == []


def test_a_run_that_is_under_way_is_not_kept(tmp_path: Path) -> None:
    paths = Paths.from_str(tmp_path)
    path = write(paths, "r1", RUN[:3], die=True)
    paths.run_lock_path("r1").touch()
    (account,) = read_accounts(paths, "c")
    assert account.made == {D: ["good"]}
    assert not paths.ledger_path.exists()
    with path.open("ab") as stream:
        stream.write(write(Paths.from_str(tmp_path / "else"), "r1", RUN[3:], die=True).read_bytes())
    paths.run_lock_path("r1").unlink()
    (account,) = read_accounts(paths, "c")
    assert same(account, fold("r1", [replace(RUN[0], run_id="r1"), *RUN[1:]]), paths)  # type: ignore[call-arg]


def test_a_run_that_ends_while_its_journal_is_read_is_not_kept_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = Paths.from_str(tmp_path)
    write(paths, "r1", RUN[:3], die=True)
    paths.run_lock_path("r1").touch()

    def fold_and_end(run_id: str, path: Path) -> RunAccount:
        account = fold_journal(run_id, path)
        path.unlink()
        write(paths, "r1", RUN)
        paths.run_lock_path("r1").unlink()
        return account

    monkeypatch.setattr(ledger, "fold_journal", fold_and_end)
    read_accounts(paths, "c")
    monkeypatch.undo()
    (account,) = read_accounts(paths, "c")
    assert same(account, fold_journal("r1", paths.journal_path("r1")), paths)


def test_a_journal_may_be_packed_and_have_odd_lines(tmp_path: Path) -> None:
    paths = Paths.from_str(tmp_path)
    path = write(paths, "r1", RUN, die=True)
    content = path.read_bytes().replace(b'"free"', b"7", 1) + b"\x00\x00\n[]\n{}\n" + b'{"event":"torn'
    path.unlink()
    with gzip.open(path.with_suffix(".jsonl.gz"), "wb") as stream:
        stream.write(content)
    assert cohort_of(journals(paths)["r1"]) == "c"
    (account,) = read_accounts(paths, "c")
    assert account.odd_lines == 4


usages = st.builds(
    Usage, st.integers(0, 5000), st.integers(0, 3000), st.integers(0, 6000), st.integers(0, 6000)
)


@given(st.lists(usages, min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_a_price_that_came_later_never_counts_too_little(found: list[Usage]) -> None:
    events: list[Event] = []
    for number, usage in enumerate(found):
        events += [calling(f"g{number}", None), answered(f"g{number}", None, usage)]
    (sums,) = fold("r1", events).spending.values()
    again = type(sums).from_json(sums.to_json())
    for price, exact in ((PRICE, False), (FLAT, True)):
        one_by_one = sum((price.cost(usage) or Decimal(0) for usage in found), Decimal(0))
        total = again.spent_at(price)
        assert total is not None
        assert total == one_by_one if exact else total >= one_by_one
    assert again.spent_at(None) is None


@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_a_worst_case_that_is_priced_later_is_still_one(tokens: list[int]) -> None:
    events: list[Event] = [calling(f"g{number}", None, count) for number, count in enumerate(tokens)]
    (sums,) = fold("r1", events).spending.values()
    for price in (PRICE, FLAT):
        total = sums.possible_at(price)
        assert total is not None
        assert total + Decimal("1e-20") >= sum(
            (max(price.at_most(count, 0), price.at_most(0, count)) for count in tokens), Decimal(0)
        )
    assert Sizes().cost_usd(FLAT) == 0
