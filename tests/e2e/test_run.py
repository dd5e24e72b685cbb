"""The main job as a user does it: the CLI as a process, a real server on a socket, real signals."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from genworker import load_generation
from genworker.core.ids import seed_for
from support.llm_server import LLMServer, Options, Rule, fail_each_first
from support.project import COHORT, Project, make_project, membership_rows, write

ROWS = membership_rows(drafts=("plain",), replicates=2)
CALLS = sum(1 for row in ROWS if row["template_id"] != "keep")
COPIES = len(ROWS) - CALLS


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path, ROWS)


def complete_directories(project: Project) -> int:
    files = ("prompt.txt", "raw.txt", "parsed.txt", "metadata.json")
    return sum(
        all((directory / name).is_file() for name in files)
        for directory in project.paths.gens_root.glob("*/*")
    )


def nothing_left_over(project: Project) -> None:
    assert list(project.paths.gens_root.glob("*/.*")) == []
    assert list(project.paths.runs_dir.glob("*.lock")) == []
    assert list(project.paths.runs_dir.glob("*.answers-*")) == []


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
def test_a_cohort_runs_and_a_second_run_asks_nothing(project: Project, kind: str) -> None:
    with LLMServer(Options(words=60)).in_thread() as server:
        project.use_server(server.openai_url if kind == "openai" else server.anthropic_url, kind)
        first = project.run("run", COHORT)
        assert first.returncode == 0, first.stderr
        assert (server.received, server.paid) == (CALLS, CALLS)
        assert complete_directories(project) == len(ROWS)
        nothing_left_over(project)
        second = project.run("run", COHORT)
        assert second.returncode == 0
        assert "No calls made" in second.stderr
        assert server.received == CALLS
        asked = Counter(record.prompt for record in server.records)
    gens = project.paths.gens_root
    sent: Counter[str] = Counter()
    for row in ROWS:
        gen = load_generation(gens, row["stage"], row["gen_id"])
        metadata = gen["metadata"]
        assert metadata["parent_gen_id"] == row["parent_gen_id"]
        assert metadata["replicate"] == int(row["replicate"])
        assert metadata["function"] == f"{row['stage']}_response"
        assert "task_id" in metadata
        if row["template_id"] == "keep":
            assert metadata["mode"] == "copy"
            assert gen["parsed_text"] == load_generation(gens, "draft", row["parent_gen_id"])["parsed_text"]
        else:
            assert metadata["finish_reason"] == "stop"
            assert metadata["usage"]["input_tokens"] > 0
            sent[gen["prompt_text"]] += 1
    assert asked == sent, "each prompt was asked for as often as it has replicates and models"


def test_a_child_is_made_from_its_parents_text(project: Project) -> None:
    with LLMServer(Options(words=60)).in_thread() as server:
        project.use_server(server.openai_url)
        assert project.run("run", COHORT).returncode == 0
    for row in ROWS:
        if row["parent_gen_id"] and row["template_id"] != "keep":
            gen = load_generation(project.paths.gens_root, row["stage"], row["gen_id"])
            parent_stage = "draft" if row["stage"] == "essay" else "essay"
            parent = load_generation(project.paths.gens_root, parent_stage, row["parent_gen_id"])
            assert parent["parsed_text"] in gen["prompt_text"]


@pytest.mark.slow
def test_errors_that_pass_are_retried_and_leave_no_trace(project: Project) -> None:
    calm = Project(project.root.parent / "calm")
    shutil.copytree(project.root, calm.root)
    rates = {"500": 0.1, "429@retry-after=0.05": 0.1, "reset": 0.05, "half-json": 0.05}
    with (
        LLMServer(Options(words=60)).in_thread() as quiet,
        LLMServer(
            Options(words=60, latency_s=0.01, latency_sigma=0.5, failure_rates=rates, seed=3)
        ).in_thread() as wild,
    ):
        calm.use_server(quiet.openai_url)
        project.use_server(wild.openai_url)
        assert calm.run("run", COHORT).returncode == 0
        result = project.run("run", COHORT)
        assert result.returncode == 0, result.stderr
        assert wild.received > CALLS
    assert project.tree() == calm.tree()


def test_a_row_that_fails_for_good_blocks_only_its_descendants(project: Project) -> None:
    draft = ROWS[0]
    with LLMServer(
        Options(rules=(Rule("400", substring="Write.", model="vendor/alpha"),))
    ).in_thread() as server:
        project.use_server(server.openai_url)
        result = project.run("run", COHORT, "--json")
    assert result.returncode == 1
    record = json.loads(result.stdout)
    assert record["stages"]["draft"] == {**record["stages"]["draft"], "done": 1, "failed": 1}
    assert record["stages"]["essay"]["blocked"] == 2
    assert record["stages"]["evaluation"]["blocked"] == record["stages"]["evaluation"]["done"]
    assert f"blocked by draft {draft['gen_id']}" in result.stderr
    assert "HTTP 400" in result.stderr


def test_an_answer_that_is_no_good_is_kept_and_not_bought_again(project: Project) -> None:
    def reply(request: object) -> str:
        return "I would rather not say."

    with LLMServer(Options(reply=reply)).in_thread() as server:
        project.use_server(server.openai_url)
        first = project.run("run", COHORT)
        assert first.returncode == 1
        assert "unparseable" in first.stderr
        assert "genworker retry" in first.stderr
        paid = server.paid
        assert project.run("run", COHORT).returncode == 1
        assert server.paid == paid
    evaluation = next(row for row in ROWS if row["stage"] == "evaluation")
    gen = load_generation(project.paths.gens_root, "evaluation", evaluation["gen_id"])
    assert gen["raw_text"] == "I would rather not say."
    assert gen["parsed_text"] is None
    assert gen["metadata"]["failure"]["kind"] == "unparseable"


def test_a_parser_that_is_mended_reads_what_is_paid_for(project: Project) -> None:
    with LLMServer(Options(reply=lambda request: "Verdict 7")).in_thread() as server:
        project.use_server(server.openai_url)
        assert project.run("run", COHORT).returncode == 1
        paid = server.paid
        path = project.paths.templates_csv("evaluation")
        text = (
            path.read_text(encoding="utf-8")
            .replace("in_last_line", "identity")
            .replace("complex", "identity")
        )
        path.write_text(text, encoding="utf-8")
        result = project.run("run", COHORT)
        assert result.returncode == 0, result.stderr
        assert server.paid == paid
        assert "could be parsed now" in result.stderr
    assert complete_directories(project) == len(ROWS)


def test_retry_asks_again_and_keeps_the_old_answer_aside(project: Project) -> None:
    with LLMServer(Options(reply=lambda request: "no score")).in_thread() as server:
        project.use_server(server.openai_url)
        assert project.run("run", COHORT).returncode == 1
        server.reconfigure(Options())
        result = project.run("retry", COHORT, "--unparseable")
        assert result.returncode == 0, result.stderr
    evaluations = [row for row in ROWS if row["stage"] == "evaluation"]
    for row in evaluations:
        aside = list(project.paths.aside_dir("evaluation", row["gen_id"]).iterdir())
        assert [(path / "raw.txt").read_text() for path in aside] == ["no score"]
    assert complete_directories(project) == len(ROWS)


def test_retry_draws_another_seed_and_what_is_no_new_question_keeps_it(project: Project) -> None:
    judged = [row["gen_id"] for row in ROWS if row["stage"] == "evaluation"]

    def stored() -> dict[str, int]:
        files = {name: project.paths.metadata_path("evaluation", name) for name in judged}
        return {name: json.loads(path.read_text())["sampling"]["seed"] for name, path in files.items()}

    with LLMServer(Options(reply=lambda request: "no score")).in_thread() as server:
        project.use_server(server.openai_url, extra="seed = true")
        assert project.run("run", COHORT).returncode == 1
        first = stored()
        # A reset is a try of the same question, and another `retry` that finds the first one's answers asks anew.
        server.reconfigure(
            Options(reply=lambda request: "no score", rules=(Rule("reset", first_attempts=1),))
        )
        mark = len(server.records)
        assert project.run("retry", COHORT, "--unparseable").returncode == 1
        second = stored()
        asked = Counter(record.seed for record in server.records[mark:])
        server.reconfigure(Options())
        assert project.run("retry", COHORT, "--unparseable").returncode == 0
    third = stored()
    assert first == {name: seed_for(name) for name in judged}
    assert second == {name: seed_for(name, first[name]) for name in judged}
    assert asked == Counter({seed: 2 for seed in second.values()})
    assert third == {name: seed_for(name, second[name]) for name in judged}


@pytest.mark.parametrize("seed", ["seed = 5", "seed = false"])
def test_a_seed_that_is_configured_is_not_drawn_anew(project: Project, seed: str) -> None:
    with LLMServer(Options(reply=lambda request: "no score")).in_thread() as server:
        project.use_server(server.openai_url, extra=seed)
        assert project.run("run", COHORT).returncode == 1
        assert project.run("retry", COHORT, "--unparseable").returncode == 1
        assert {record.seed for record in server.records} == ({5} if "5" in seed else {None})


@pytest.mark.parametrize(("fault", "scope"), [("401", "endpoint"), ("403", "endpoint"), ("404", "model")])
def test_a_refused_key_or_model_stops_its_lane_at_once(project: Project, fault: str, scope: str) -> None:
    with LLMServer(Options(rules=(Rule(fault, model="vendor/beta"),), latency_s=0.05)).in_thread() as server:
        project.use_server(server.openai_url, extra="max_concurrency = 2")
        result = project.run("run", COHORT, "--json")
        refused = sum(record.status == int(fault) for record in server.records)
        answered = server.paid
    assert result.returncode == 1
    assert refused <= 2
    record = json.loads(result.stdout)["stages"]
    assert "was stopped" in result.stderr
    if scope == "model":
        assert record["draft"]["done"] == 1
        assert answered > 1
    else:
        assert answered <= 2


def test_limits_in_flight_are_kept(project: Project) -> None:
    with LLMServer(Options(latency_s=0.02)).in_thread() as server:
        project.use_server(server.openai_url, extra="max_concurrency = 3")
        assert project.run("run", COHORT).returncode == 0
        assert server.max_in_flight == 3
    shutil.rmtree(project.paths.gens_root)
    with LLMServer(Options(latency_s=0.02)).in_thread() as server:
        project.use_server(server.openai_url)
        assert project.run("run", COHORT, GENWORKER_MAX_CONCURRENCY="5").returncode == 0
        assert server.max_in_flight == 5


def test_essays_do_not_wait_for_other_drafts(project: Project) -> None:
    """No barrier: while one draft hangs, the other lineage is finished."""
    slow = Rule("hang=600", substring="Write.", model="vendor/alpha")
    with LLMServer(Options(rules=(slow,))).in_thread() as server:
        project.use_server(server.openai_url)
        process = project.start("run", COHORT)
        done = len(ROWS) // 2
        deadline = time.monotonic() + 120
        while complete_directories(project) < done and time.monotonic() < deadline:
            time.sleep(0.02)
        assert complete_directories(project) == done
        process.kill()
        process.communicate(timeout=120)


def test_selection_runs_what_was_asked_for(project: Project) -> None:
    with LLMServer(Options()).in_thread() as server:
        project.use_server(server.openai_url)
        assert project.run("run", COHORT, "--stage", "draft").returncode == 0
        assert server.paid == 2
        assert project.run("run", COHORT, "--limit", "3").returncode == 0
        assert server.paid == 5
        last = ROWS[-1]
        assert project.run("run", COHORT, "--only", last["gen_id"]).returncode == 0
        assert (project.paths.parsed_path("evaluation", last["gen_id"])).is_file()
        wrong = project.run("run", COHORT, "--only", "nobody")
        assert wrong.returncode == 2
        assert "nobody" in wrong.stderr


def test_plan_says_what_run_would_do_and_does_nothing(project: Project) -> None:
    with LLMServer(Options()).in_thread() as server:
        project.use_server(server.openai_url)
        plan = project.run("plan", COHORT, "--json")
        assert plan.returncode == 0, plan.stderr
        record = json.loads(plan.stdout)
        assert (record["calls"], record["copies"]) == (CALLS, COPIES)
        assert project.run("run", COHORT, "--dry-run").returncode == 0
        assert server.received == 0
        assert not project.paths.gens_root.exists()
        assert project.run("run", COHORT, "--limit", "4").returncode == 0
        after = json.loads(project.run("plan", COHORT, "--json").stdout)
        assert after["calls"] == CALLS - 4


def test_status_counts_and_reads_stores_of_other_tools(project: Project) -> None:
    draft = ROWS[0]
    directory = project.paths.generation_dir("draft", draft["gen_id"])
    write(directory / "parsed.txt", "by hand")
    write(
        directory / "metadata.json",
        '{"task_id": "t", "template_id": "plain", "model_id": "alpha", "parent_gen_id": ""}',
    )
    status = project.run("status", COHORT, "--json")
    assert status.returncode == 0, status.stderr
    assert json.loads(status.stdout)["stages"]["draft"]["done"] == 1
    with LLMServer(Options()).in_thread() as server:
        project.use_server(server.openai_url)
        assert project.run("run", COHORT).returncode == 0
        assert server.paid == CALLS - 1
        assert any("by hand" in record.prompt for record in server.records)


def test_a_raw_answer_without_a_parsed_text_is_parsed_for_free(project: Project) -> None:
    """Another tool's store, or an older one: what is paid for is read before anything is bought."""
    draft = ROWS[0]
    write(project.paths.raw_path("draft", draft["gen_id"]), "paid for elsewhere")
    with LLMServer(Options()).in_thread() as server:
        project.use_server(server.openai_url)
        assert project.run("run", COHORT).returncode == 0
        assert server.paid == CALLS - 1
    gen = load_generation(project.paths.gens_root, "draft", draft["gen_id"])
    assert gen["parsed_text"] == "paid for elsewhere"
    assert gen["metadata"]["model_id"] == "alpha"


# Interruption


def stop_at_random(project: Project, server: LLMServer, number: int, times: int, rng: random.Random) -> int:
    """Run and stop `times` times; returns how many calls were out at the stops, as the server saw them."""
    out = 0
    for _ in range(times):
        process = project.start("run", COHORT)
        goal = server.received + rng.randint(1, 12)
        while server.received < goal and process.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.08)
        out += server.in_flight
        process.send_signal(number)
        process.communicate(timeout=60)
    return out


def undisturbed(project: Project, root: Path, options: Options) -> dict[str, str]:
    calm = Project(root)
    shutil.copytree(project.root, calm.root)
    with LLMServer(options).in_thread() as server:
        calm.use_server(server.openai_url)
        assert calm.run("run", COHORT).returncode == 0
    return calm.tree()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_ten_times_nothing_is_paid_twice(project: Project, number: int, tmp_path: Path) -> None:
    options = Options(words=60, latency_s=0.04, latency_sigma=0.5)
    expected = undisturbed(project, tmp_path / "calm", options)
    with LLMServer(options).in_thread() as server:
        project.use_server(server.openai_url, extra="max_concurrency = 6")
        stop_at_random(project, server, number, 10, random.Random(1))
        assert project.run("run", COHORT).returncode == 0
        assert server.paid_twice == 0
        assert server.paid == CALLS
    assert project.tree() == expected
    nothing_left_over(project)


@pytest.mark.slow
def test_killed_ten_times_only_calls_in_flight_are_paid_twice(project: Project, tmp_path: Path) -> None:
    options = Options(words=60, latency_s=0.04, latency_sigma=0.5)
    expected = undisturbed(project, tmp_path / "calm", options)
    with LLMServer(options).in_thread() as server:
        project.use_server(server.openai_url, extra="max_concurrency = 6")
        stop_at_random(project, server, signal.SIGKILL, 10, random.Random(2))
        assert project.run("run", COHORT).returncode == 0
        assert server.paid_twice <= 10 * 6, "at most what was in flight at each kill"
    assert project.tree() == expected
    nothing_left_over(project)


def test_an_interrupt_says_how_to_go_on(project: Project) -> None:
    with LLMServer(Options(latency_s=0.2)).in_thread() as server:
        project.use_server(server.openai_url)
        process = project.start("run", COHORT)
        server.wait_until(lambda s: s.received >= 1, timeout_s=120)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 143
    assert f"genworker run {COHORT}" in err


def test_a_second_signal_stops_at_once(project: Project) -> None:
    with LLMServer(Options(rules=(Rule("hang=60"),))).in_thread() as server:
        project.use_server(server.openai_url)
        process = project.start("run", COHORT)
        server.wait_until(lambda s: s.received >= 2, timeout_s=120)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None, "the first signal waits for what is in flight"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)
    assert process.returncode == 130


def test_a_call_that_hangs_ends_at_its_deadline_and_is_tried_again(project: Project) -> None:
    with LLMServer(Options(rules=(fail_each_first(1, "hang=60"),))).in_thread() as server:
        project.use_server(server.openai_url, extra="timeout_s = 0.3")
        result = project.run("run", COHORT, "--limit", "2", "-v")
        assert result.returncode == 0, result.stderr
    assert "no answer within 0.3 s" in result.stderr


# Bad input: exit 2, one message, no request


def breaking(name: str) -> tuple[str, list[str]]:
    """How to break the project (shell-like, see the test), and what the message must say."""
    return {
        "unknown-stage": ("membership:draft,=poem,", ["unknown stage 'poem'", "membership.csv:2"]),
        "bad-id": (
            f"membership:{ROWS[0]['gen_id']}=../evil",
            ["path separator", "membership.csv:2", "gen_id"],
        ),
        "orphan": (f"membership:{ROWS[0]['gen_id']}=other", ["neither in this file nor in the store"]),
        "duplicate": (
            f"membership:{ROWS[1]['gen_id']}={ROWS[0]['gen_id']}",
            ["stands twice, first in line 2"],
        ),
        "unknown-template": (
            "membership:plain=unplain",
            ["unknown draft template 'unplain'", "draft_templates.csv"],
        ),
        "unknown-model": ("membership:alpha=omega", ["unknown model 'omega'", "llm_models.csv"]),
        "no-column": ("membership:combo_id=combination", ["missing columns: combo_id"]),
        "not-utf8": ("bytes", ["not UTF-8", "membership.csv:2"]),
        "undefined-name": ("template:{{ concept }}", ["undefined name 'concept'", "plain.txt:1"]),
        "template-syntax": ("template:{% for %}", ["not valid", "plain.txt:1"]),
        "no-template": ("template:", ["has no file", "plain.txt"]),
        "no-endpoint": ("config:", ["no endpoint serves the model 'alpha'", "default_endpoint"]),
        "unknown-key": ('config:default_endpoit = "x"', ["unknown key 'default_endpoit'", "did you mean"]),
        "no-key": (
            'config:default_endpoint = "x"\n[endpoints.x]\nkind = "openai"\nbase_url = "https://x.example/v1"\napi_key_env = "NO_SUCH_KEY"',
            ["NO_SUCH_KEY is not set", "[endpoints.x] api_key_env"],
        ),
        "plain-http": (
            'config:default_endpoint = "x"\n[endpoints.x]\nkind = "openai"\nbase_url = "http://x.example/v1"',
            ["plain http to x.example", "[endpoints.x] base_url"],
        ),
    }[name]


BREAKS = [
    "unknown-stage",
    "bad-id",
    "orphan",
    "duplicate",
    "unknown-template",
    "unknown-model",
    "no-column",
    "not-utf8",
    "undefined-name",
    "template-syntax",
    "no-template",
    "no-endpoint",
    "unknown-key",
    "no-key",
    "plain-http",
]


@pytest.mark.parametrize("name", BREAKS)
def test_bad_input_is_refused_before_anything_is_sent(project: Project, name: str) -> None:
    how, expected = breaking(name)
    with LLMServer(Options()).in_thread() as server:
        project.use_server(server.openai_url)
        kind, _, change = how.partition(":")
        if kind == "membership":
            old, _, new = change.partition("=")
            text = project.membership.read_text(encoding="utf-8")
            project.membership.write_text(text.replace(old, new, 1), encoding="utf-8")
        elif kind == "bytes":
            content = project.membership.read_bytes()
            project.membership.write_bytes(content.replace(b"draft,", b"dr\xffft,", 1))
        elif kind == "template":
            path = project.paths.template_file("draft", "plain")
            path.write_text(change, encoding="utf-8") if change else path.unlink()
        else:
            project.configure(change)
        result = project.run("run", COHORT)
        assert result.returncode == 2, result.stderr
        assert server.received == 0
    for part in expected:
        assert part in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_a_data_root_that_cannot_be_written_is_refused(project: Project) -> None:
    with LLMServer(Options()).in_thread() as server:
        project.use_server(server.openai_url)
        write(project.data / ".genworker", "a file where a directory has to be")
        result = project.run("run", COHORT)
        assert result.returncode == 2
        assert "cannot be written" in result.stderr
        assert ".genworker" in result.stderr
        assert "Traceback" not in result.stderr
        assert server.received == 0


def test_a_linked_stage_is_refused(project: Project, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    project.paths.gens_root.mkdir()
    (project.paths.gens_root / "draft").symlink_to(elsewhere)
    project.use_script()
    result = project.run("run", COHORT)
    assert result.returncode == 2
    assert "symbolic link" in result.stderr
    assert list(elsewhere.iterdir()) == []


def test_a_cohort_that_is_not_there_is_said(project: Project) -> None:
    project.use_script()
    result = project.run("run", "nobody")
    assert result.returncode == 2
    assert f"cohorts here: {COHORT}" in result.stderr


def test_the_fake_endpoint_runs_a_cohort(project: Project) -> None:
    project.use_script()
    assert project.run("run", COHORT).returncode == 0
    assert complete_directories(project) == len(ROWS)


def test_streams_are_kept_apart(project: Project) -> None:
    project.use_script()
    result = project.run("run", COHORT, "--json")
    assert json.loads(result.stdout)["exit_code"] == 0
    assert "\x1b" not in result.stderr
    quiet = project.run("run", COHORT, "--quiet")
    assert quiet.stdout == ""


def test_help_answers_at_once(project: Project) -> None:
    began = time.monotonic()
    result = project.run("--help")
    assert result.returncode == 0
    assert "plan" in result.stdout
    assert time.monotonic() - began < 5
