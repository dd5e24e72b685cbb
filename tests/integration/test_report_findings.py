"""Findings of whole stores: what was planted is found, what was not is not claimed, and the page says it first."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from genworker.api import read_report
from genworker.paths import Paths
from genworker.reports.claims import Factor
from genworker.reports.words import answer
from genworker.store.reader import StoreReader
from support.project import Project
from support.stores import StoreBuilder


def plant(
    root: Path,
    *,
    seed: int,
    combos: int = 10,
    effects: dict[tuple[str, str], float] | None = None,
    lost: float = 0.0,
    drift: float = 0.0,
) -> Path:
    """A crossed store with random texts; `effects` by (factor, level), ``("own", judge)`` for own texts."""
    draw, planted = random.Random(seed), effects or {}
    store = StoreBuilder(root)
    minute = 0
    for c in range(combos):
        for d in ("d0", "d1", "d2"):
            for author in ("a0", "a1", "a2"):
                draft = store.draft(combo=f"c{c}", template=d, model=author)
                essay = store.essay(draft)
                worth = 6 + draw.gauss(0, 0.5)
                worth += sum(
                    planted.get(key, 0) for key in (("combo", f"c{c}"), ("draft", d), ("author", author))
                )
                for judge in ("a0", "a1", "a2", "neutral"):
                    minute += 1
                    mark = worth + draw.gauss(0, 0.5) + planted.get(("judge", judge), 0)
                    mark += planted.get(("own", judge), 0) if judge == author else 0
                    mark += drift * minute / (combos * 36) if judge == "neutral" else 0
                    mark = min(10.0, max(0.0, round(mark * 2) / 2))
                    gone = draw.random() < lost / (1 + math.exp(2 * (mark - 5.5)))
                    store.evaluation(
                        essay,
                        model=judge,
                        answer="I will not." if gone else f"SCORE: {mark}",
                        finished_at=f"2026-11-{1 + minute // 1440:02}T{minute // 60 % 24:02}:{minute % 60:02}:00+00:00",
                    )
    data = store.write_membership()
    (data / "1_raw").mkdir()
    names = "".join(f"k{c},Idea {c},true\n" for c in range(combos + 1))
    (data / "1_raw/concepts_metadata.csv").write_text(f"concept_id,name,active\n{names}")
    rows = "".join(f"c{c},v1,k{n},paragraph,2,x\n" for c in range(combos) for n in (c, c + 1))
    (data / "combo_mappings.csv").write_text(
        f"combo_id,version,concept_id,description_level,k_max,created_at\n{rows}"
    )
    return data


def read(data: Path) -> Any:
    return read_report(StoreReader(Paths.from_str(data)), "pilot").findings


def test_what_was_planted_is_claimed_named_and_said_first(tmp_path: Path) -> None:
    effects = {("combo", "c3"): 1.8, ("draft", "d0"): -0.8, ("own", "a0"): 1.2, ("judge", "neutral"): -0.6}
    plant(tmp_path / "data", seed=1, effects=effects)
    result = Project(tmp_path).run("report", "pilot", "--json", "--data-root", "data")
    assert result.returncode == 0, result.stderr
    record = json.loads(result.stdout)
    claimed = {(f["factor"], f["level"], f["against"]): f for f in record["findings"] if f["claimed"]}
    combo = claimed["combo_id", "c3", "rest"]
    assert combo["low"] < 1.8 < combo["high"]
    assert combo["level_name"] == "Idea 3 + Idea 4"
    assert claimed["draft_template", "d0", "d1"]["difference"] < 0
    own = claimed["self_preference", "a0", "other authors"]
    assert own["low"] < 1.2 < own["high"]
    assert claimed["evaluation_llm_model", "neutral", "rest"]["difference"] < 0
    assert not any(level in ("a1", "a2") for factor, level, _ in claimed if factor == "self_preference")
    assert record["warnings"] == []
    assert record["answer"][0].startswith("Idea 3 + Idea 4 is ")
    page = (tmp_path / "data/cohorts/pilot/reports/report.html").read_text(encoding="utf-8")
    first = page.index("What was found")
    assert first < page.index("Idea 3 + Idea 4 is ") < page.index('id="judges"') < page.index('id="scores"')
    assert "combo_v1" not in page
    told = Project(tmp_path).run("report", "pilot", "--tables-only", "--data-root", "data").stdout
    assert "a0 gives its own texts" in told
    assert "Idea 3 + Idea 4" in told


def test_nothing_planted_nothing_claimed(tmp_path: Path) -> None:
    found = read(plant(tmp_path, seed=2))
    assert found.claimed() == []
    said = " ".join(answer(found))
    assert "No difference between texts is larger than chance explains." in said
    assert "would go unseen" in said
    assert found.missing is not None
    assert not found.missing.warns


def test_weak_texts_that_lack_scores_are_warned_of(tmp_path: Path) -> None:
    effects = {("draft", "d0"): 0.9, ("draft", "d2"): -0.9}
    found = read(plant(tmp_path, seed=3, combos=12, effects=effects, lost=0.7))
    assert [warning["kind"] for warning in found.warnings()] == ["missing_not_at_random"]
    assert "of the scores are missing, rather of weak essays" in " ".join(answer(found))
    best = next(f for f in found.of(Factor.DRAFT) if (f.level, f.against) == ("d0", "d2"))
    assert best.claimed
    assert best.filled is not None
    assert best.filled.difference > best.estimate.difference, "filled in, the difference is larger"


def test_a_judge_whose_marks_drift_is_told(tmp_path: Path) -> None:
    found = read(plant(tmp_path, seed=4, combos=12, drift=2.5))
    (drifts,) = found.claimed(Factor.DRIFT)
    assert drifts.level == "neutral"
    assert drifts.low < 2.5 < drifts.high
    assert {"kind": "drift", "judge": "neutral", "difference": drifts.difference} in found.warnings()
    assert "the marks of neutral rose by" in " ".join(answer(found)).lower()


def test_too_few_is_said_where_it_is_so(tmp_path: Path) -> None:
    found = read(plant(tmp_path, seed=5, combos=1))
    assert found.claimed() == []
    ranking = found.ranking(Factor.DRAFT)
    assert ranking is not None
    assert {finding.estimate.unit for finding in found.of(Factor.DRAFT)} == {"draft"}
    store = StoreBuilder(tmp_path / "two")
    for template in ("d0", "d1"):
        store.evaluation(store.essay(store.draft(template=template)), answer="SCORE: 5")
    found = read(store.write_membership())
    assert found.findings == []
    assert answer(found) == ["Of the draft templates there is too little to say."]
