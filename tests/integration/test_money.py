"""Caps over real sockets: 64 in flight, random usage, failures, kills; and what cannot be kept is refused."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import genworker
from support.llm_server import LLMServer, Options
from support.project import COHORT, Project, make_project, membership_rows

SETTINGS = """
default_endpoint = "test"
[endpoints.test]
kind = "openai"
base_url = "{url}"
max_concurrency = 64
max_tokens = 120
seed = true
timeout_s = 2
{price}
[retries]
base_s = 0.05
cap_s = 0.2
"""
PRICE = "price = { input = 3, output = 15 }"


def configured(root: Path, server: LLMServer, price: str = PRICE, replicates: int = 100) -> Project:
    project = make_project(root, membership_rows(essays=("rewrite",), replicates=replicates))
    project.configure(SETTINGS.format(url=server.openai_url, price=price))
    return project


def at_most(record: Mapping[str, Any]) -> Decimal:
    """What a cohort can have cost at the very most."""
    return Decimal(record["money"]["spent_usd"]) + Decimal(record["money"]["possible_usd"])


def bill(server: LLMServer) -> Decimal:
    """The most that the server's owner may charge: every paid request, at the length of the longest answer."""
    tokens = sum(-(-len(record.prompt) // 4) * 3 + 120 * 15 for record in server.records if record.paid)
    return Decimal(tokens) / 1_000_000


@pytest.mark.slow
def test_a_cap_holds_over_failures_and_three_kills(tmp_path: Path) -> None:
    faults: Mapping[str, float] = {
        "503": 0.03,
        "reset-mid-body": 0.03,
        "half-json": 0.03,
        "no-usage": 0.03,
        "429@retry-after-ms=0.1": 0.02,
    }
    options = Options(latency_s=0.05, latency_sigma=0.6, words=80, failure_rates=faults)
    draw = random.Random(7)
    cap = Decimal("0.60")
    with LLMServer(options).in_thread() as server:
        project = configured(tmp_path, server)
        arguments = ("run", COHORT, "--max-cost", str(cap), "--json", "-q")
        for _ in range(3):
            process = project.start(*arguments)
            until = server.received + draw.randrange(10, 60)
            deadline = time.monotonic() + 120
            while process.poll() is None and server.received < until and time.monotonic() < deadline:
                time.sleep(0.005)
            process.kill()
            process.communicate()
        last = project.run(*arguments)
        result: dict[str, Any] = json.loads(last.stdout)
        again = project.run(*arguments)
        spent = at_most(result)
        assert last.returncode == again.returncode == 3, last.stderr
        assert result["capped"] == f"--max-cost {cap} USD"
        assert spent <= cap
        assert spent >= Decimal("0.95") * cap
        assert at_most(json.loads(again.stdout)) <= cap
        assert bill(server) <= cap
        recorded = [
            json.loads(path.read_text(encoding="utf-8"))["cost_usd"]
            for path in project.paths.gens_root.glob("*/*/metadata.json")
        ]
        assert any(recorded)
        assert sum(Decimal(cost) for cost in recorded if cost is not None) <= spent


@pytest.mark.slow
def test_calls_and_tokens_are_capped_over_all_runs(tmp_path: Path) -> None:
    with LLMServer(Options(words=40)).in_thread() as server:
        project = configured(tmp_path, server)
        for cap in ("5", "12", "12"):
            assert project.run("run", COHORT, "--max-calls", cap, "-q").returncode == 3
            assert server.paid == int(cap)
        done = project.run("run", COHORT, "--max-tokens", "9000", "--json", "-q")
        assert done.returncode == 3
        journals = project.paths.runs_dir.glob("*.jsonl")
        usages = [
            json.loads(line)["usage"]
            for path in journals
            for line in path.read_text(encoding="utf-8").splitlines()
            if '"event":"answered"' in line
        ]
        used = sum(usage["input_tokens"] + usage["output_tokens"] for usage in usages)
        assert len(usages) == server.paid
        assert used <= 9000


def test_spending_is_known_without_the_journals(tmp_path: Path) -> None:
    with LLMServer(Options(words=40)).in_thread() as server:
        project = configured(tmp_path, server)
        assert project.run("run", COHORT, "--max-calls", "6", "-q").returncode == 3
        for path in project.paths.runs_dir.glob("*.jsonl"):
            path.unlink()
        assert project.run("run", COHORT, "--max-calls", "6", "-q").returncode == 3
        assert server.paid == 6


def test_a_cap_that_could_not_be_kept_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    with LLMServer(Options(words=40)).in_thread() as server:
        project = configured(tmp_path, server, price="")
        refused = project.run("run", COHORT, "--max-cost", "1")
        assert refused.returncode == 2
        assert "no known price" in refused.stderr
        assert '[models."alpha".price]' in refused.stderr
        planned = project.run("plan", COHORT, "--max-cost", "1")
        assert planned.returncode == 2
        text = project.config.read_text(encoding="utf-8").replace("max_tokens = 120\n", PRICE + "\n")
        project.configure(text)
        refused = project.run("run", COHORT, "--max-cost", "1")
        assert refused.returncode == 2
        assert "max_tokens" in refused.stderr
        assert server.received == 0


@pytest.mark.parametrize("amount", ["-1", "much", "nan", "inf"])
def test_an_amount_that_is_none_is_a_usage_error(tmp_path: Path, amount: str) -> None:
    project = make_project(tmp_path)
    project.use_script()
    assert project.run("run", COHORT, "--max-cost", amount).returncode == 2


def test_a_plan_tells_what_a_run_then_costs(tmp_path: Path) -> None:
    with LLMServer(Options(words=60)).in_thread() as server:
        project = configured(tmp_path, server, replicates=10)
        before = json.loads(project.run("plan", COHORT, "--json").stdout)
        assert {group["from_own_answers"] for group in before["models"]} == {0}
        assert Decimal(before["cost_usd"]) > 0
        project.run("run", COHORT, "--limit", "40", "-q")
        first = json.loads(project.run("status", COHORT, "--json").stdout)["done"]
        plan = json.loads(project.run("plan", COHORT, "--json").stdout)
        assert plan["calls"] + first == 84
        told = Decimal(plan["cost_usd"])
        result = json.loads(project.run("run", COHORT, "--json", "-q").stdout)
        assert result["calls"] == plan["calls"]
        assert (
            abs(Decimal(result["money"]["by_run"][result["run_id"]]["spent_usd"]) - told)
            <= Decimal("0.15") * told
        )
        assert server.paid == 84


def test_unpriced_is_said_and_never_zero(tmp_path: Path) -> None:
    with LLMServer(Options(words=40)).in_thread() as server:
        project = configured(tmp_path, server, price="", replicates=1)
        assert "unpriced: alpha" in project.run("plan", COHORT).stdout
        shown = project.run("run", COHORT, "--plain").stderr
        assert "unpriced: alpha" in shown
        assert "$0.00" not in shown
        metadata = next(project.paths.gens_root.glob("draft/*/metadata.json"))
        assert json.loads(metadata.read_text(encoding="utf-8"))["cost_usd"] is None


def test_money_has_one_answer(tmp_path: Path) -> None:
    """Failures that may be billed, a retry that replaced, no price for one: every command says the same."""
    faults: Mapping[str, float] = {"reset-mid-body": 0.15, "no-usage": 0.1}
    with LLMServer(Options(words=20, failure_rates=faults)).in_thread() as server:
        project = configured(tmp_path, server, replicates=6)
        first = project.run("run", COHORT, "--limit", "30", "--json")
        project.run("retry", COHORT, "--unparseable", "--json", "-q")
        last = project.run("run", COHORT, "--limit", "5", "--json")
        told = json.loads(last.stdout)["money"]
        status = project.run("status", COHORT, "--json")
        plan = project.run("plan", COHORT, "--json", "--max-cost", "900")
        report = project.run("report", COHORT, "--json")
        paid = next(path.name for path in project.paths.gens_root.glob("draft/*"))
        others = (
            ("verify", COHORT),
            ("verify",),
            ("reparse", COHORT, "--dry-run"),
            ("cohort", "build", COHORT, "--dry-run"),
            ("top", COHORT),
            ("show", paid),
            ("batches",),
            ("aside", "list"),
            ("aside", "empty", "--dry-run"),
            ("remove", "--only", paid, "--even-if-listed", "--dry-run"),
            ("gc",),
        )
        for result in (status, plan, report, *(project.run(*words, "--json") for words in others)):
            assert json.loads(result.stdout)["money"] == told, result.args
        assert genworker.money(project.data, COHORT) == told
        assert told["uncertain_calls"] > 0
        assert told["calls"] == server.received
        # The ends of the first run are a part of the whole, as it said them then.
        record = json.loads(first.stdout)
        part = told["by_run"][record["run_id"]]
        assert record["money"]["by_run"][record["run_id"]] == part
        words = f"more for {told['uncertain_calls']} failed or abandoned calls"
        page = (project.paths.cohort_reports_dir(COHORT) / "report.html").read_text(encoding="utf-8")
        shown = project.run("plan", COHORT, "--max-cost", "900").stdout
        for text in (page, project.run("status", COHORT).stdout, last.stderr):
            assert words in " ".join(text.split())
        assert f"is the worst case of {told['uncertain_calls']} failed or abandoned calls" in shown


def test_a_cap_says_how_much_of_it_is_worst_case(tmp_path: Path) -> None:
    with LLMServer(Options(words=20, failure_rates={"reset-mid-body": 0.4})).in_thread() as server:
        project = configured(tmp_path, server, replicates=20)
        stopped = project.run("run", COHORT, "--max-cost", "0.05")
        assert stopped.returncode == 3
        assert "is known to be spent, $0.0" in stopped.stderr
        assert "is the worst case of" in stopped.stderr


def _drafts(number: int) -> list[dict[str, str]]:
    one = membership_rows(essays=())[0]
    return [{**one, "gen_id": f"draft-{n:04d}", "replicate": str(n + 1)} for n in range(number)]


@pytest.mark.parametrize("at_once", [1, 8])
def test_a_cap_is_not_passed_where_reasoning_is_billed_beside_the_answer(
    tmp_path: Path, at_once: int
) -> None:
    """max_tokens bounds what is written and not what is thought: $0.09 a call where the list price says $0.001."""
    billed = {
        "prompt_tokens": 32,
        "completion_tokens": 9,
        "total_tokens": 9041,
        "completion_tokens_details": {"reasoning_tokens": 9000},
    }
    with LLMServer(Options(words=9, latency_s=0.05, usage=lambda request: billed)).in_thread() as server:
        project = make_project(tmp_path, _drafts(24))
        text = SETTINGS.format(url=server.openai_url, price="price = { input = 1, output = 10 }")
        project.configure(text.replace("max_concurrency = 64", f"max_concurrency = {at_once}"))
        for _ in range(2):
            done = project.run("run", COHORT, "--max-cost", "0.35")
            assert done.returncode == 3, done.stderr
    each = Decimal(32 * 1 + 9009 * 10) / 1_000_000
    assert 2 * each <= server.paid * each <= Decimal("0.35")
    assert "bills up to" in done.stderr.replace("\n", " ") or server.paid == 3
    spent = json.loads(project.run("status", COHORT, "--json").stdout)["money"]["spent_usd"]
    assert Decimal(spent) == server.paid * each


def test_a_cap_is_passed_by_the_calls_in_flight_when_a_cost_is_told_that_is_three_times_the_list(
    tmp_path: Path,
) -> None:
    """Nobody can know before the first answer; from then on the caps count with what was told, and it is said."""
    at_once, listed = 4, Decimal(1000 * 1 + 100 * 10) / 1_000_000
    told = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100, "cost": float(3 * listed)}
    with LLMServer(Options(words=9, latency_s=0.2, usage=lambda request: told)).in_thread() as server:
        project = make_project(tmp_path, _drafts(60))
        text = SETTINGS.format(url=server.openai_url, price="price = { input = 1, output = 10 }")
        project.configure(text.replace("max_concurrency = 64", f"max_concurrency = {at_once}"))
        cap = 10 * listed
        done = project.run("run", COHORT, "--max-cost", str(cap))
    assert done.returncode == 3
    assert "bills up to" in done.stderr.replace("\n", " ")
    billed = server.paid * 3 * listed
    assert cap * Decimal("0.5") <= billed <= cap + at_once * 3 * listed
    spent = json.loads(project.run("status", COHORT, "--json").stdout)["money"]["spent_usd"]
    assert Decimal(spent) == billed


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        ("web_search_options = {}", "billed apart"),
        ("enable_search = false", None),
        ('plugins = [{ id = "web" }]', "billed apart"),
        ('models = ["other/dear"]', "another model may answer"),
        ('reasoning_effort = "high"', ""),
        ("n = 3", ""),
    ],
)
def test_extra_fields_that_no_list_price_bounds(tmp_path: Path, extra: str, why: str | None) -> None:
    """None: it is switched off; "": a cap can be kept all the same; else it is refused under a cap on money."""
    with LLMServer(Options(words=5)).in_thread() as server:
        project = make_project(tmp_path, _drafts(2))
        text = SETTINGS.format(url=server.openai_url, price=f"{PRICE}\nextra_body = {{ {extra} }}")
        project.configure(text)
        plan = project.run("plan", COHORT)
        name = extra.partition(" ")[0]
        assert plan.returncode == 0
        assert (f"extra_body has {name} for draft" in plan.stdout) is (why is not None)
        capped = project.run("plan", COHORT, "--max-cost", "5")
        assert capped.returncode == (2 if why else 0), capped.stderr
        assert (why or "") in " ".join(capped.stderr.split())
        if why == "billed apart":
            project.configure(text.replace("output = 15", "output = 15, per_call = 0.02"))
            assert project.run("plan", COHORT, "--max-cost", "5").returncode == 0


def test_a_plan_warns_where_nothing_bounds_an_answer(tmp_path: Path) -> None:
    with LLMServer(Options(words=20)).in_thread() as server:
        project = configured(tmp_path, server, replicates=1)
        assert json.loads(project.run("plan", COHORT, "--json").stdout)["unbounded"] == []
        text = project.config.read_text(encoding="utf-8").replace("max_tokens = 120\n", "")
        project.configure(text)
        assert "Nothing bounds an answer of draft by alpha" in project.run("plan", COHORT).stdout


def test_a_service_tier_costs_what_the_answer_says_it_was_served_at(tmp_path: Path) -> None:
    """Half the price without a batch is one key; what is served at another tier costs what that one does."""

    def served(request: Any) -> str:
        return request.body["service_tier"] if int(request.key[:8], 16) % 3 else "priority"

    options = Options(served_tier=served)
    with LLMServer(options).in_thread() as server:
        ordinary = configured(tmp_path / "ordinary", server, replicates=10)
        ordinary.configure(
            ordinary.config.read_text().replace("seed = true", 'seed = true\nservice_tier = "default"')
        )
        flex = configured(tmp_path / "flex", server, replicates=10)
        flex.configure(flex.config.read_text().replace("seed = true", 'seed = true\nservice_tier = "flex"'))
        plan = json.loads(flex.run("plan", COHORT, "--json").stdout)
        dearer = json.loads(ordinary.run("plan", COHORT, "--json").stdout)
        assert Decimal(plan["cost_usd"]) * 2 == pytest.approx(
            Decimal(dearer["cost_usd"]), rel=Decimal("0.001")
        )
        assert "Service tier flex: draft by" in flex.run("plan", COHORT).stdout
        assert flex.run("run", COHORT, "--plain", "--max-cost", "1").returncode == 0
    shares = {"flex": Decimal("0.5"), "priority": Decimal(2)}
    tiers: list[str] = []
    spent = Decimal(0)
    for path in flex.paths.gens_root.glob("*/*/metadata.json"):
        facts = json.loads(path.read_text())
        usage, tier = facts["usage"], facts["service_tier"]
        tiers.append(tier)
        listed = Decimal(usage["input_tokens"] * 3 + usage["output_tokens"] * 15) / 1_000_000
        assert Decimal(facts["cost_usd"]) == listed * shares[tier]
        spent += listed * shares[tier]
    assert set(tiers) == set(shares)
    assert at_most(json.loads(flex.run("status", COHORT, "--json").stdout)) == spent
