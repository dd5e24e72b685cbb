from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from genworker.core.generation import Failure, FailureKind
from genworker.core.membership import Membership, MembershipRow
from genworker.core.plan import Plan, RowState, make_plan
from genworker.core.selection import StaticShard, select
from genworker.core.stages import Stage

# Two lineages: d1 -> e1 -> v1, v2 and d2 -> e2 -> v3.
NAMES = ("d1", "d2", "e1", "e2", "v1", "v2", "v3")
PARENTS = (-1, -1, 0, 1, 2, 2, 3)


def cohort(parents: tuple[int, ...] = PARENTS) -> Membership:
    stages = {"d": Stage.DRAFT, "e": Stage.ESSAY, "v": Stage.EVALUATION}
    rows = [
        MembershipRow(
            stages[name[0]],
            name,
            "c",
            None if name[0] == "d" else (NAMES[parent] if parent >= 0 else "outside"),
            "combo",
            "t",
            "m",
            1,
            None,
        )
        for name, parent in zip(NAMES, parents, strict=True)
    ]
    return Membership("c", rows, array("i", parents))


@dataclass
class InMemory:
    good: set[str]
    failed: set[str]

    def names(self, stage: Stage) -> set[str]:
        return self.good | self.failed

    def is_done(self, stage: Stage, gen_id: str) -> bool:
        return gen_id in self.good

    def done(self, rows: Sequence[MembershipRow]) -> bytes:
        return bytes(row.gen_id in self.good for row in rows)

    def failure(self, stage: Stage, gen_id: str) -> Failure | None:
        return Failure(FailureKind.UNPARSEABLE, "no score") if gen_id in self.failed else None


def planned(done: str = "", failed: str = "", parents: tuple[int, ...] = PARENTS, redo: str = "") -> Plan:
    again = set(redo.split())
    return make_plan(
        cohort(parents),
        InMemory(set(done.split()), set(failed.split())),
        (lambda job, failure: NAMES[job] in again) if redo else None,
    )


def names(chosen: bytearray) -> str:
    return " ".join(name for name, flag in zip(NAMES, chosen, strict=True) if flag)


def test_what_is_done_is_done_and_the_rest_is_missing() -> None:
    plan = planned(done="d1 e1")
    states = [RowState(state).name for state in plan.states]
    assert states == ["DONE", "MISSING", "DONE", "MISSING", "MISSING", "MISSING", "MISSING"]


def test_a_failed_ancestor_blocks_its_descendants_and_is_named() -> None:
    plan = planned(failed="d1", done="d2")
    assert [NAMES[index] for index in plan.rows(RowState.BLOCKED)] == ["e1", "v1", "v2"]
    assert {NAMES[index]: NAMES[by] for index, by in plan.blockers.items()} == {
        "e1": "d1",
        "v1": "d1",
        "v2": "d1",
    }
    assert plan.failed_kinds(Stage.DRAFT) == {FailureKind.UNPARSEABLE: 1}


def test_what_is_done_below_a_failed_ancestor_stays_done() -> None:
    plan = planned(failed="d1", done="e1")
    assert plan.states[NAMES.index("e1")] == RowState.DONE
    assert plan.states[NAMES.index("v1")] == RowState.MISSING


def test_a_parent_outside_that_is_not_done_blocks() -> None:
    plan = planned(parents=(-1, -1, 0, -1, 2, 2, 3))
    assert plan.blockers == {NAMES.index("e2"): -1, NAMES.index("v3"): -1}


def test_redo_makes_what_is_there_missing() -> None:
    plan = planned(done="d1 e1 v1", failed="v2", redo="v1 v2")
    assert plan.states[NAMES.index("v1")] == RowState.MISSING
    assert plan.states[NAMES.index("v2")] == RowState.MISSING
    assert plan.states[NAMES.index("e1")] == RowState.DONE


def test_everything_missing_is_chosen() -> None:
    assert names(select(planned(done="d1"))) == "d2 e1 e2 v1 v2 v3"


def test_one_generation_brings_its_missing_ancestors() -> None:
    assert names(select(planned(), only={"v3"})) == "d2 e2 v3"
    assert names(select(planned(done="d2 e2"), only={"v3"})) == "v3"


def test_a_stage_takes_only_rows_whose_parents_are_there() -> None:
    assert names(select(planned(done="d1"), stages={Stage.ESSAY})) == "e1"
    assert names(select(planned(), stages={Stage.EVALUATION})) == ""


def test_a_limit_takes_whole_lineages_first() -> None:
    assert names(select(planned(), limit=3)) == "d1 e1 v1"
    assert names(select(planned(), limit=0)) == ""


def test_copies_do_not_count_against_a_limit() -> None:
    chosen = select(planned(), limit=2, is_free=lambda job: NAMES[job][0] == "e")
    assert names(chosen) == "d1 e1 v1"


def test_static_shards_are_whole_lineages_and_together_everything() -> None:
    plan = planned()
    for number in (1, 2, 3, 7):
        parts = [
            set(names(select(plan, shard=StaticShard(n, number, Fraction(1, number)))).split())
            for n in range(1, number + 1)
        ]
        assert sum(map(len, parts)) == len(names(select(plan)).split())
        assert set().union(*parts) == set(names(select(plan)).split())
        for part in parts:
            assert {name[1:] for name in part if name[0] == "e"} == {
                name[1:] for name in part if name[0] == "d"
            }


def test_a_shard_keeps_its_lineages_when_the_cohort_grows() -> None:
    shard = StaticShard(2, 3, Fraction(1, 3))
    known = {f"g{n}" for n in range(300) if shard.has(f"g{n}")}
    assert 60 < len(known) < 140


def test_rows_are_counted_by_stage_and_state() -> None:
    counts = planned(failed="d1", done="d2 e2").counts()
    assert counts[Stage.DRAFT] == {RowState.DONE: 1, RowState.FAILED: 1}
    assert counts[Stage.ESSAY] == {RowState.DONE: 1, RowState.BLOCKED: 1}
    assert counts[Stage.EVALUATION] == {RowState.MISSING: 1, RowState.BLOCKED: 2}
    assert planned(failed="d1").count(Stage.ESSAY, RowState.BLOCKED) == 1
