"""Limits over real sockets, scaled down to seconds: counts are asserted, not times. The whole scenarios stand in
bench/simulate.py and docs/limits.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from genworker.core import scheduler
from genworker.core.completion import Completion, CompletionRequest
from genworker.project.open import open_project
from genworker.providers.openai import OpenAIProvider
from genworker.run.engine import RunOptions, RunResult, run_cohort
from support.llm_server import Fault, Limits, LLMServer, Options, Rule
from support.project import COHORT, Project, journal_lines, make_project, membership_rows, write


def drafts(count: int) -> list[dict[str, str]]:
    """So many drafts, half of them of each model."""
    rows = membership_rows(essays=())
    return [
        {**rows[number % 2], "gen_id": f"draft-{number:04d}", "replicate": str(number // 2 + 1)}
        for number in range(count)
    ]


def configured(root: Path, url: str, count: int, extra: str = "", kind: str = "openai") -> Project:
    project = make_project(root, drafts(count))
    project.configure(
        f'default_endpoint = "test"\n[endpoints.test]\nkind = "{kind}"\nbase_url = "{url}"\n{extra}\n'
    )
    return project


def run(project: Project, **options: Any) -> RunResult:
    return run_cohort(open_project(project.config, project.data), COHORT, RunOptions(**options))


def test_a_rate_limit_without_announcement_refuses_few(tmp_path: Path) -> None:
    limits = Limits(rpm=6000, hint="retry-after-ms=0.1", burst=20)
    refused = []
    # The best of three: a stalled machine sends late what it held back, and that is not the controller's doing.
    for number in range(3):
        with LLMServer(Options(latency_s=0.02, words=20, limits=limits)).in_thread() as server:
            result = run(configured(tmp_path / str(number), server.openai_url, 200))
            assert int(result.exit_code) == 0
            assert server.paid == 200
            refused.append(server.refused["limit:requests"])
        if refused[-1] <= 20:
            break
    assert min(refused) <= 20


@pytest.mark.slow
def test_an_announced_limit_is_kept(tmp_path: Path) -> None:
    for kind in ("openai", "anthropic"):
        limits = Limits(rpm=6000, announce=True)
        with LLMServer(Options(latency_s=0.02, words=20, limits=limits)).in_thread() as server:
            url = server.openai_url if kind == "openai" else server.anthropic_url
            result = run(configured(tmp_path / kind, url, 200, kind=kind))
            assert int(result.exit_code) == 0
            assert server.refused["limit:requests"] <= 2


def test_a_configured_rate_is_kept(tmp_path: Path) -> None:
    with LLMServer(Options(words=20, limits=Limits(rpm=3000, burst=20))).in_thread() as server:
        result = run(configured(tmp_path, server.openai_url, 100, "rpm = 2900"))
        assert int(result.exit_code) == 0
        assert server.refused["limit:requests"] <= 2


@pytest.mark.slow
def test_calls_at_once_are_found_without_a_number(tmp_path: Path) -> None:
    limits = Limits(max_concurrent=20, hint="retry-after-ms=0.05")
    refused = []
    for number in range(3):  # the best of three, as above
        with LLMServer(Options(latency_s=0.1, words=20, limits=limits)).in_thread() as server:
            result = run(configured(tmp_path / str(number), server.openai_url, 400))
            assert int(result.exit_code) == 0
            assert server.max_in_flight == 20
            assert result.progress.calls == server.received
            refused.append(server.refused["limit:concurrency"])
        if refused[-1] <= 40:
            break
    assert min(refused) <= 40


def test_a_fixed_ceiling_is_a_ceiling(tmp_path: Path) -> None:
    with LLMServer(Options(latency_s=0.02, words=20)).in_thread() as server:
        run(configured(tmp_path, server.openai_url, 100, "max_concurrency = 3"))
        assert server.max_in_flight == 3


def test_a_daily_quota_stops_its_lane_and_the_other_goes_on(tmp_path: Path) -> None:
    rule = Rule(Fault.parse("429@retry-after=86400"), model="vendor/alpha")
    with LLMServer(Options(words=20, rules=(rule,))).in_thread() as server:
        result = run(configured(tmp_path, server.openai_url, 40), max_wait_s=60.0)
        ((name, reason),) = result.ending.stopped.items()
        assert name == "test/alpha"
        assert "24 h 0 min" in reason
        assert server.paid == 20
        assert result.progress.stages[next(iter(result.progress.stages))].done == 20


def test_rows_that_are_refused_for_good_go_to_the_fallback(tmp_path: Path) -> None:
    refusing = LLMServer(
        Options(words=20, rules=(Rule("400", model="vendor/alpha"), Rule("404", model="vendor/beta")))
    )
    with refusing.in_thread() as first, LLMServer(Options(words=20)).in_thread() as second:
        project = configured(
            tmp_path,
            first.openai_url,
            20,
            'fallback_endpoint = "spare"\nfallback_model = "spare/model"\n'
            f'[endpoints.spare]\nkind = "openai"\nbase_url = "{second.openai_url}"',
        )
        result = run(project)
        assert int(result.exit_code) == 0
        assert second.paid == 20
        metadata = json.loads(project.paths.metadata_path("draft", "draft-0000").read_text(encoding="utf-8"))
        assert metadata["endpoint"] == "spare"
        assert metadata["model"] == "spare/model"
        assert metadata["fallback"] is True
        assert metadata["model_id"] == "alpha"


def test_a_shared_essay_is_cached_and_its_first_call_leads(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(scheduler, "LEAD_S", 0.4)
    rows = membership_rows(essays=("rewrite",), models=("alpha",), replicates=2)
    project = make_project(tmp_path, rows)
    raw = project.data / "1_raw" / "templates" / "evaluation"
    for name in ("novelty", "rigour"):
        write(raw / f"{name}.txt", f"{{{{ response }}}}\n\nJudge the {name} of this. End with SCORE: N")
    bodies: list[dict[str, Any]] = []

    def remember(request: Any) -> None:
        bodies.append(dict(request.body))

    with LLMServer(Options(words=1200, latency_s=0.1, script=remember)).in_thread() as server:
        project.configure(
            f'default_endpoint = "test"\n[endpoints.test]\nkind = "anthropic"\nbase_url = "{server.anthropic_url}"\n'
        )
        result = run(project)
        assert int(result.exit_code) == 0
        times = [record.received for record in server.records[2:]]
    assert len(times) == 4
    assert times[1] - times[0] >= 0.35
    evaluations = [body["messages"][0]["content"] for body in bodies[2:]]
    assert all(blocks[0]["cache_control"] == {"type": "ephemeral"} for blocks in evaluations)
    assert len({blocks[0]["text"] for blocks in evaluations}) == 1
    assert all(isinstance(body["messages"][0]["content"], str) for body in bodies[:2])


def test_nothing_is_cached_where_it_cannot_pay(tmp_path: Path) -> None:
    bodies: list[dict[str, Any]] = []

    def remember(request: Any) -> None:
        bodies.append(dict(request.body))

    with LLMServer(Options(words=50, script=remember)).in_thread() as server:
        project = make_project(
            tmp_path, membership_rows(essays=("rewrite",), models=("alpha",), replicates=2)
        )
        project.configure(
            f'default_endpoint = "test"\n[endpoints.test]\nkind = "anthropic"\nbase_url = "{server.anthropic_url}"\n'
        )
        run(project)
    assert all(isinstance(body["messages"][0]["content"], str) for body in bodies)


# Asking again


def kinds(project: Project) -> dict[str, str | None]:
    found = {}
    for path in sorted(project.paths.gens_root.glob("draft/*/metadata.json")):
        failure = json.loads(path.read_text(encoding="utf-8"))["failure"]
        found[path.parent.name] = None if failure is None else failure["kind"]
    return found


@pytest.mark.slow
def test_retry_asks_again_for_what_was_chosen_and_keeps_the_old(tmp_path: Path) -> None:
    def fault(request: Any) -> Any:
        from support.llm_server import Behaviour

        return Behaviour({0: "length", 1: "empty", 2: "filter", 3: "400"}.get(request.seed % 5))

    with LLMServer(Options(words=20, script=fault)).in_thread() as server:
        project = configured(tmp_path, server.openai_url, 40, "seed = true")
        first = project.run("run", COHORT, "-q")
        assert first.returncode == 1
        before = kinds(project)
        cut = [name for name, kind in before.items() if kind == "truncated"]
        missing = 40 - len(before)
        assert cut
        assert missing
        server.reconfigure(Options(words=20))  # a retry draws another seed
        paid = server.paid
        again = project.run("retry", COHORT, "--truncated", "--answer-tokens", "900", "-q")
        assert again.returncode == 1  # the others are still no good
        assert server.paid == paid + len(cut)
        assert all(kinds(project)[name] is None for name in cut)
        kept = project.paths.aside_dir("draft", cut[0])
        assert [
            json.loads(path.read_text(encoding="utf-8"))["failure"]["kind"]
            for path in kept.glob("*/metadata.json")
        ] == ["truncated"]
        sampling = json.loads(project.paths.metadata_path("draft", cut[0]).read_text(encoding="utf-8"))[
            "sampling"
        ]
        assert sampling["max_tokens"] == 900
        rest = project.run("retry", COHORT, "--failed", "-q")
        assert rest.returncode == 0, rest.stderr
        assert set(kinds(project).values()) == {None}
        assert len(kinds(project)) == 40
        nothing = project.run("retry", COHORT, "--failed")
        assert nothing.returncode == 0
        assert "nothing to ask again" in nothing.stderr
        one = next(iter(before))
        paid = server.paid
        assert project.run("retry", COHORT, "--only", one, "-q").returncode == 0
        assert server.paid == paid + 1
        assert project.run("retry", COHORT, "--only", "nobody").returncode == 2


def test_retry_of_what_is_blocked_mends_the_ancestor_first(tmp_path: Path) -> None:
    with LLMServer(Options(words=20, rules=(Rule("empty", first_requests=1),))).in_thread() as server:
        rows = membership_rows(models=("alpha",))
        project = make_project(tmp_path, rows)
        project.use_server(server.openai_url)
        first = project.run("run", COHORT, "-q")
        assert first.returncode == 1
        assert server.paid == 1
        planned = json.loads(project.run("retry", COHORT, "--blocked", "--dry-run", "--json").stdout)
        assert planned["calls"] + planned["copies"] == len(rows)
        assert planned["stages"]["draft"]["again"] == 1
        assert project.run("retry", COHORT, "--blocked", "-q").returncode == 0
        assert server.paid == 1 + planned["calls"]


def test_every_call_leaves_a_line_before_it_is_made(tmp_path: Path) -> None:
    with LLMServer(Options(words=20)).in_thread() as server:
        result = run(configured(tmp_path, server.openai_url, 10))
    events = [record["event"] for record in journal_lines(result.journal_path)]
    assert events.count("calling") == events.count("answered") == 10
    assert events.index("calling") < events.index("answered")


def test_no_call_goes_out_before_the_journal_has_it(tmp_path: Path, monkeypatch: Any) -> None:
    """What is spent is known after a kill: a call's line is in the file before the SDK is asked for it."""
    complete = OpenAIProvider.complete
    ahead: list[int] = []

    async def look_first(self: OpenAIProvider, request: CompletionRequest) -> Completion:
        (journal,) = (tmp_path / "data" / ".genworker" / "runs").glob("*.jsonl")
        ahead.append(journal.read_bytes().count(b'"event":"calling"') - len(ahead))
        return await complete(self, request)

    monkeypatch.setattr(OpenAIProvider, "complete", look_first)
    with LLMServer(Options(words=20)).in_thread() as server:
        assert int(run(configured(tmp_path, server.openai_url, 60)).exit_code) == 0
    assert len(ahead) == 60
    assert min(ahead) >= 1
