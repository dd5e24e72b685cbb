"""Batches as a user meets them: waves, detaching, caps, failures, neighbours, and a data root that was moved."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.batch_server import BatchServer
from support.llm_server import Options
from support.project import COHORT, Project, make_project, membership_rows, write_csv

KINDS = ("openai", "anthropic")


@pytest.fixture
def server() -> Iterator[BatchServer]:
    with BatchServer(Options(score_marker="SCORE"), work_s=0.1).in_thread() as running:
        assert isinstance(running, BatchServer)
        yield running


def configure(
    project: Project, server: BatchServer, kind: str = "openai", extra: str = "", batches: str = ""
) -> None:
    url = server.openai_url if kind == "openai" else server.anthropic_url
    project.configure(
        f'default_endpoint = "test"\n[endpoints.test]\nkind = "{kind}"\nbase_url = "{url}"\n'
        f"price = {{input = 2, output = 10}}\nmax_tokens = 900\nbatch_discount = 0.5\n{extra}\n"
        f"[batches]\npoll_s = 0.05\nsettle_s = 0.3\nlinger_s = 0.2\n{batches}\n"
    )


def record(project: Project, *arguments: str) -> Any:
    result = project.run(*arguments, "--json")
    return json.loads(result.stdout)


def wait_for(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def drafts(count: int) -> list[dict[str, str]]:
    (row,) = membership_rows(essays=(), models=("alpha",))
    return [{**row, "gen_id": f"draft{number:04}", "replicate": str(number + 1)} for number in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_evaluations_in_batches_make_what_live_calls_make_at_half_the_price(
    kind: str, server: BatchServer, tmp_path: Path
) -> None:
    live, batched = make_project(tmp_path / "live"), make_project(tmp_path / "batched")
    configure(live, server, kind)
    configure(batched, server, kind, batches="[stages.evaluation]\nbatch = true")
    assert live.run("run", COHORT, "--plain").returncode == 0
    result = batched.run("run", COHORT, "--plain")
    assert result.returncode == 0, result.stderr
    assert sorted(server.billed().values()) == [2] * 16 if kind == "anthropic" else True

    def texts(project: Project) -> dict[str, str]:
        return {name: text for name, text in project.tree().items() if not name.endswith("metadata.json")}

    assert texts(live) == texts(batched)
    for path in live.paths.gens_root.glob("*/*/metadata.json"):
        ours = json.loads(path.read_text())
        theirs = json.loads((batched.root / path.relative_to(live.root)).read_text())
        passing = {"run_id", "started_at", "finished_at", "latency_s", "request_id", "cost_usd", "batch"}
        assert {k: v for k, v in ours.items() if k not in passing} == {
            k: v for k, v in theirs.items() if k not in passing
        }
        if ours["stage"] == "evaluation":
            assert float(theirs["cost_usd"]) == pytest.approx(float(ours["cost_usd"]) / 2)
    assert batched.run("verify").returncode == 0


def test_detaching_again_and_again_with_kills_between_pays_once(server: BatchServer, tmp_path: Path) -> None:
    project = make_project(tmp_path, drafts(7))
    configure(project, server, extra="seed = true\nbatch = true", batches="max_rows = 4")
    server.work_s = 1000.0
    codes = []
    for turn in range(10):
        if turn == 7:
            server.advance(2000.0)
        if turn % 3 == 1:
            started = project.start("run", COHORT, "--detach", "--plain")
            time.sleep(0.3 + 0.15 * turn)
            started.kill()
            started.communicate()
            continue
        codes.append(project.run("run", COHORT, "--detach", "--plain").returncode)
    assert codes[:4] == [5, 5, 5, 5]
    assert codes[-1] == 0
    assert set(codes) == {5, 0}
    assert sorted(server.billed().values()) == [1] * 7


def test_the_first_interrupt_leaves_batches_out_and_says_so(server: BatchServer, tmp_path: Path) -> None:
    project = make_project(tmp_path, drafts(3))
    configure(project, server, extra="seed = true\nbatch = true")
    server.work_s = 1000.0
    started = project.start("run", COHORT, "--plain")
    wait_for(lambda: server.calls["look"] > 0)
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=20)
    assert started.returncode == 130, said
    assert "3 rows are in batches that are out" in said
    shown = record(project, "batches")["batches"]
    assert [(each["rows"], each["state"]) for each in shown] == [(3, "running")]
    server.advance(2000.0)
    assert project.run("run", COHORT, "--plain").returncode == 0
    assert record(project, "batches")["batches"] == []
    assert sorted(server.billed().values()) == [1] * 3


def test_a_cap_in_the_middle_of_a_wave_is_never_passed_and_is_used(
    server: BatchServer, tmp_path: Path
) -> None:
    project = make_project(tmp_path, drafts(60))
    configure(project, server, extra="seed = true\nbatch = true")
    result = project.run("run", COHORT, "--max-cost", "0.10", "--plain")
    assert result.returncode == 3, result.stderr
    money = record(project, "status", COHORT)["money"]
    assert money["possible_usd"] == "0.00"
    assert 0.095 <= float(money["spent_usd"]) <= 0.10


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_a_batch_does_not_answer_find_their_end(
    kind: str, server: BatchServer, tmp_path: Path
) -> None:
    rows = drafts(1)
    register = []
    for number, word in enumerate(("fine", "bad", "shaky", "gone", "twice")):
        register.append({**rows[0], "gen_id": f"row-{word}", "template_id": f"t{number}"})
    project = make_project(tmp_path, register)
    fates = {"bad": ["400"], "shaky": ["500", "ok"], "gone": ["missing", "missing"], "twice": ["twice"]}
    entries = []
    for number, word in enumerate(("fine", "bad", "shaky", "gone", "twice")):
        path = project.paths.template_file("draft", f"t{number}")
        path.write_text(f"Say {word}. {{% for concept in concepts %}}{{{{ concept.name }}}}{{% endfor %}}")
        entries.append(
            {
                "template_id": f"t{number}",
                "template_name": word,
                "description": "",
                "parser": "",
                "generator": "llm",
                "active": "True",
            }
        )
    write_csv(project.paths.templates_csv("draft"), entries)

    def fate(prompt: Any, asked: int) -> str:
        found = next((fates[word] for word in fates if f"Say {word}." in prompt.text), ["ok"])
        return found[min(asked, len(found) - 1)]

    server.rows = fate
    server.separator = " \u2028 and so on"
    configure(project, server, kind, extra="batch = true")
    result = project.run("run", COHORT, "--plain")
    assert result.returncode == 1, result.stderr
    done = {path.parent.name for path in project.paths.gens_root.glob("draft/*/parsed.txt")}
    assert done == {"row-fine", "row-shaky", "row-twice"}
    assert "\u2028" in (project.paths.generation_dir("draft", "row-fine") / "raw.txt").read_text()
    assert "belong to no row" in result.stderr  # the second of two equal lines
    money = record(project, "status", COHORT)["money"]
    assert float(money["possible_usd"]) > 0  # for lines that were not there: they may have been billed


@pytest.mark.parametrize("kind", KINDS)
def test_what_expires_is_collected_in_part_and_the_rest_is_asked_again(
    kind: str, server: BatchServer, tmp_path: Path
) -> None:
    rows = drafts(10)
    project = make_project(tmp_path, rows)
    configure(project, server, kind, extra="batch = true" + ("\nseed = true" if kind == "openai" else ""))
    server.work_s = 200_000.0
    assert project.run("run", COHORT, "--detach", "--plain").returncode == 5
    server.advance(86_500.0)
    assert project.run("run", COHORT, "--detach", "--plain").returncode == 5
    assert len(list(project.paths.gens_root.glob("draft/*/parsed.txt"))) == 4
    server.batches[list(server.batches)[-1]].work_s = 0.0
    assert project.run("run", COHORT, "--plain").returncode == 0
    assert sum(server.billed().values()) == 10


def test_one_bad_line_rejects_its_row_and_the_others_go_again(server: BatchServer, tmp_path: Path) -> None:
    project = make_project(tmp_path, drafts(5))
    configure(project, server, extra="seed = true\nbatch = true")
    server.bad_lines = {2}
    started = project.start("run", COHORT, "--plain")
    wait_for(lambda: server.calls["create"] > 0)
    server.bad_lines = set()
    started.communicate(timeout=60)
    assert started.returncode == 1
    assert len(list(project.paths.gens_root.glob("draft/*/parsed.txt"))) == 4
    assert sorted(server.billed().values()) == [1] * 4


def test_a_queue_that_is_full_makes_smaller_batches(server: BatchServer, tmp_path: Path) -> None:
    project = make_project(tmp_path, drafts(12))
    configure(project, server, extra="seed = true\nbatch = true")
    server.token_limit = 100
    result = project.run("run", COHORT, "--plain")
    assert result.returncode == 0, result.stderr
    assert len([batch for batch in server.batches.values() if batch.status == "completed"]) > 1
    assert sorted(server.billed().values()) == [1] * 12


def test_another_cohort_collects_a_batch_and_takes_over_what_it_shares(
    server: BatchServer, tmp_path: Path
) -> None:
    project = make_project(tmp_path, drafts(4))
    configure(project, server, extra="seed = true\nbatch = true")
    server.work_s = 1000.0
    assert project.run("run", COHORT, "--detach", "--plain").returncode == 5
    shared = [{**row, "cohort_id": "other"} for row in drafts(6)[2:]]
    write_csv(project.paths.cohort_membership_csv("other"), shared)
    assert project.run("run", "other", "--detach", "--plain").returncode == 5
    server.advance(2000.0)
    assert project.run("run", "other", "--plain").returncode == 0
    result = project.run("run", COHORT, "--plain")
    assert result.returncode == 0
    assert "No calls made" in result.stderr
    assert sorted(server.billed().values()) == [1] * 6


@pytest.mark.parametrize("kind", KINDS)
def test_a_moved_data_root_brings_its_batches_along(kind: str, server: BatchServer, tmp_path: Path) -> None:
    project = make_project(tmp_path / "here", drafts(2)[:1])
    configure(project, server, kind, extra="batch = true")
    server.creates.append("lost")
    server.work_s = 1000.0
    started = project.start("run", COHORT, "--plain")
    wait_for(lambda: server.calls["create"] == 1)
    started.kill()
    started.communicate()
    moved = Project(tmp_path / "there")
    shutil.move(project.root, moved.root)
    server.advance(2000.0)
    result = moved.run("run", COHORT, "--plain")
    assert result.returncode == 0, result.stderr
    assert server.calls["create"] == 1
    assert sorted(server.billed().values()) == [1]


def test_a_process_that_was_stopped_past_the_settling_time_sends_late_and_once(
    server: BatchServer, tmp_path: Path
) -> None:
    project = make_project(tmp_path, drafts(1))
    configure(project, server, extra="batch = true")
    server.work_s = 1000.0
    started = project.start("run", COHORT, "--plain")
    wait_for(lambda: server.calls["upload"] == 1)
    started.send_signal(signal.SIGSTOP)
    try:
        beside = project.start("run", COHORT, "--plain", "--if-locked", "share")
        time.sleep(2.0)
        assert server.calls["create"] <= 1
    finally:
        started.send_signal(signal.SIGCONT)
    wait_for(lambda: server.calls["look"] > 0)
    server.advance(2000.0)
    assert started.communicate(timeout=90) is not None
    assert beside.communicate(timeout=90) is not None
    assert (started.returncode, beside.returncode) == (0, 0)
    assert sorted(server.billed().values()) == [1]


def test_two_workers_of_one_cohort_put_no_row_into_two_batches(server: BatchServer, tmp_path: Path) -> None:
    project = make_project(tmp_path, drafts(30))
    configure(project, server, extra="seed = true\nbatch = true", batches="max_rows = 4")
    server.work_s = 1000.0  # so that what one has sent is out while the other looks
    workers = [project.start("run", COHORT, "--plain", "--if-locked", "share") for _ in range(2)]
    wait_for(lambda: sum(len(batch.lines) for batch in server.batches.values()) >= 30)
    time.sleep(1.0)
    server.advance(2000.0)
    for worker in workers:
        worker.communicate(timeout=60)
    assert [worker.returncode for worker in workers] == [0, 0]
    assert sorted(server.billed().values()) == [1] * 30


def test_another_key_leaves_a_lost_batch_uncertain_until_a_person_decides(
    server: BatchServer, tmp_path: Path
) -> None:
    project = make_project(tmp_path, drafts(1))
    configure(project, server, extra='batch = true\napi_key_env = "KEY"')
    server.creates.append("never")
    (tmp_path / ".env").write_text("KEY=first-key-of-this-test\n")
    started = project.start("run", COHORT, "--plain")
    wait_for(lambda: server.calls["create"] == 1)
    started.kill()
    started.communicate()
    (tmp_path / ".env").write_text("KEY=second-key-of-this-test\n")
    result = project.run("run", COHORT, "--plain")
    assert result.returncode == 1, result.stderr
    assert "resubmit" in result.stderr
    assert server.calls["create"] == 1
    (name,) = [each["batch"] for each in record(project, "batches")["batches"]]
    assert "batch-uncertain" in {each["kind"] for each in record(project, "verify")["findings"]}
    assert record(project, "status", COHORT)["batches"] == {"open": 1, "rows": 1}
    (tmp_path / ".env").write_text("KEY=first-key-of-this-test\n")
    assert project.run("batches", "resubmit", name[:12]).returncode == 0
    assert project.run("run", COHORT, "--plain").returncode == 0
    assert sorted(server.billed().values()) == [1]


def test_results_that_are_gone_are_forgotten_on_request_and_counted(
    server: BatchServer, tmp_path: Path
) -> None:
    project = make_project(tmp_path, drafts(2))
    configure(project, server, "anthropic", extra="batch = true")
    server.work_s = 10.0
    assert project.run("run", COHORT, "--detach", "--plain").returncode == 5
    server.advance(30 * 86_400.0)
    result = project.run("run", COHORT, "--plain")
    assert result.returncode == 1
    assert "batches forget" in result.stderr
    (name,) = [each["batch"] for each in record(project, "batches")["batches"]]
    assert project.run("batches", "forget", name).returncode == 0
    assert float(record(project, "status", COHORT)["money"]["possible_usd"]) > 0
    server.work_s = 0.0
    assert project.run("run", COHORT, "--plain").returncode == 0


def test_a_batch_can_be_cancelled_and_its_part_is_collected(server: BatchServer, tmp_path: Path) -> None:
    project = make_project(tmp_path, drafts(10))
    configure(project, server, extra="seed = true\nbatch = true")
    server.work_s = 1000.0
    assert project.run("run", COHORT, "--detach", "--plain").returncode == 5
    server.advance(500.0)
    (name,) = [each["batch"] for each in record(project, "batches")["batches"]]
    assert project.run("batches", "cancel", name).returncode == 0
    server.work_s = 0.0
    assert project.run("run", COHORT, "--plain").returncode == 0
    assert sum(server.billed().values()) == 10


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["cancel", "nothing"], "no open batch"),
        (["burn", "nothing"], "nothing that can be done"),
        (["forget"], "which batch"),
        (["unheard"], "there is no cohort"),
    ],
)
def test_what_cannot_be_done_with_a_batch_is_said(
    arguments: list[str], says: str, server: BatchServer, tmp_path: Path
) -> None:
    project = make_project(tmp_path, drafts(1))
    configure(project, server)
    result = project.run("batches", *arguments)
    assert result.returncode == 2
    assert says in result.stderr


def test_an_open_batch_that_cannot_be_read_stops_a_run_before_it_pays(
    server: BatchServer, tmp_path: Path
) -> None:
    project = make_project(tmp_path, drafts(2))
    configure(project, server, extra="seed = true\nbatch = true")
    server.work_s = 1000.0
    assert project.run("run", COHORT, "--detach", "--plain").returncode == 5
    (intent,) = project.paths.batches_dir.glob("*/intent.json")
    whole = intent.read_bytes()
    intent.write_bytes(b"{")
    before = server.calls["create"]
    result = project.run("run", COHORT, "--no-batch", "--plain")
    assert result.returncode == 2
    assert "cannot be read" in result.stderr
    assert (server.calls["create"], server.stats()["paid"]) == (before, 0)
    assert "batch-unreadable" in {each["kind"] for each in record(project, "verify")["findings"]}
    intent.write_bytes(whole)
    server.advance(2000.0)
    assert project.run("run", COHORT, "--no-batch", "--plain").returncode == 0
    assert server.stats()["paid"] == 0


def test_a_plan_shows_both_prices(server: BatchServer, tmp_path: Path) -> None:
    project = make_project(tmp_path, drafts(10))
    configure(project, server, extra="batch = true")
    batched, live = record(project, "plan", COHORT), record(project, "plan", COHORT, "--no-batch")
    assert float(batched["cost_usd"]) == pytest.approx(float(live["cost_usd"]) / 2)
    (group,) = batched["models"]
    assert group["batch"] is True
    assert float(group["live_usd"]) == pytest.approx(2 * float(group["batch_usd"]))
    assert "a day" in batched["limited_by"]
    assert "Call by call:" in project.run("plan", COHORT).stdout
    assert server.calls["create"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_create_that_takes_effect_very_late_makes_a_twin_that_is_seen_and_paid(
    kind: str, server: BatchServer, tmp_path: Path
) -> None:
    project = make_project(tmp_path, drafts(4))
    configure(project, server, kind, extra="batch = true")
    server.creates.append("late:1.5")  # the settling time is 0.3 s
    server.work_s = 1000.0
    started = project.start("run", COHORT, "--plain")
    wait_for(lambda: len(server.batches) == 2)
    if kind == "openai":  # a mark shows it at once; without one its results do
        wait_for(lambda: server.calls["cancel"] == 1)
    else:
        time.sleep(0.3)
    server.advance(2000.0)
    _, said = started.communicate(timeout=60)
    assert started.returncode == 0, said
    assert sum(server.billed().values()) == (4 if kind == "openai" else 8)
    money = record(project, "status", COHORT)["money"]
    assert float(money["spent_usd"]) >= server.bill_usd(1.0, 5.0) - 1e-9
    assert len(list(project.paths.gens_root.glob("draft/*/parsed.txt"))) == 4
    (settled,) = project.paths.batches_dir.glob("*/settled.json")
    assert len(json.loads(settled.read_text())["twins"]) == 1


def test_the_clock_of_another_machine_is_not_trusted_with_the_settling_time(
    server: BatchServer, tmp_path: Path
) -> None:
    project = make_project(tmp_path, drafts(1))
    configure(project, server, extra="batch = true", batches="")
    project.configure(project.config.read_text().replace("settle_s = 0.3", "settle_s = 3"))
    server.creates.append("never")
    started = project.start("run", COHORT, "--plain")
    (log,) = wait_for_files(project, "*/log.jsonl", b"sought")
    started.kill()
    started.communicate()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    lines[-1] |= {"at_s": time.time() - 3600, "machine": "elsewhere"}
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    began = time.monotonic()
    started = project.start("run", COHORT, "--plain")
    wait_for(lambda: server.calls["create"] == 2)
    assert time.monotonic() - began > 3
    started.communicate(timeout=60)
    assert started.returncode == 0


def wait_for_files(project: Project, pattern: str, content: bytes) -> list[Path]:
    found: list[Path] = []

    def are_there() -> bool:
        found[:] = [path for path in project.paths.batches_dir.glob(pattern) if content in path.read_bytes()]
        return bool(found)

    wait_for(are_there)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_date_that_has_nothing_to_do_with_the_listing_s_times_loses_no_batch(
    kind: str, server: BatchServer, tmp_path: Path
) -> None:
    project = make_project(tmp_path, drafts(2))
    configure(project, server, kind, extra="batch = true")
    server.date_ahead_s = 3e8
    server.creates.append("lost")
    result = project.run("run", COHORT, "--plain")
    assert result.returncode == 0, result.stderr
    assert (server.calls["create"], sum(server.billed().values())) == (1, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_results_that_lack_lines_are_fetched_again_before_a_row_is_asked_again(
    kind: str, server: BatchServer, tmp_path: Path
) -> None:
    project = make_project(tmp_path, drafts(3))
    configure(project, server, kind, extra="batch = true")
    server.downloads += ["short", "503", "torn"]
    result = project.run("run", COHORT, "--plain")
    assert result.returncode == 0, result.stderr
    assert (server.calls["create"], sum(server.billed().values())) == (1, 3)


def test_a_batch_that_is_not_found_yet_and_one_that_cannot_be_cancelled_are_waited_for(
    server: BatchServer, tmp_path: Path
) -> None:
    project = make_project(tmp_path, drafts(2))
    configure(project, server, extra="batch = true", batches="max_wait_s = 0.5")
    server.work_s = 1000.0
    server.polls.append("404")
    server.cancels += ["409", "503"]
    started = project.start("run", COHORT, "--plain")
    wait_for(lambda: server.calls["cancel"] >= 3)
    server.work_s = 0.0
    _, said = started.communicate(timeout=60)
    assert started.returncode == 0, said
    assert sum(server.billed().values()) == 2


def test_an_upload_that_is_refused_gives_the_rows_back(server: BatchServer, tmp_path: Path) -> None:
    project = make_project(tmp_path, drafts(2))
    configure(project, server, extra="batch = true")
    server.uploads.append("413")
    result = project.run("run", COHORT, "--plain")
    assert result.returncode == 1
    assert record(project, "batches")["batches"] == []
    assert project.run("run", COHORT, "--plain").returncode == 0
    assert sum(server.billed().values()) == 2


def test_a_store_s_check_tells_each_kind_of_open_batch(server: BatchServer, tmp_path: Path) -> None:
    project = make_project(tmp_path, drafts(2))
    configure(project, server, extra="batch = true")
    server.work_s = 1e9
    assert project.run("run", COHORT, "--detach", "--plain").returncode == 5
    (log,) = project.paths.batches_dir.glob("*/log.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["line"] for line in lines] == ["uploaded", "creating", "created"]
    config, intent = project.config.read_text(), log.with_name("intent.json")

    def kinds(said: list[dict[str, Any]]) -> list[str]:
        log.write_text("".join(json.dumps(line) + "\n" for line in said))
        found = record(project, "verify")
        return [each["kind"] for each in found["findings"] if each["kind"].startswith("batch-")]

    assert kinds(lines) == ["batch-open"]
    assert kinds(lines[:2]) == ["batch-uncertain"]
    assert kinds([*lines[:2], lines[2] | {"at_s": time.time() - 26 * 86_400}]) == ["batch-old"]
    assert kinds([*lines, {"line": "unheard-of", "at_s": 0}]) == ["batch-unreadable"]
    project.configure(config.replace("endpoints.test", "endpoints.other").replace('"test"', '"other"'))
    assert kinds(lines) == ["batch-foreign"]
    project.configure(config)
    whole = intent.read_bytes()
    intent.write_bytes(whole[:40])
    assert kinds(lines) == ["batch-unreadable"]
    intent.write_bytes(whole)
    page = project.run("report", COHORT)
    assert page.returncode in (0, 1), page.stderr
    text = (project.paths.cohort_dir(COHORT) / "reports" / "report.html").read_text()
    assert "2 rows are in provider batches that are out" in text
    status = project.run("status", COHORT).stdout
    assert "2 rows in 1 batch that is out: genworker batches" in status


def test_small_values_are_allowed_and_warned_of(server: BatchServer, tmp_path: Path) -> None:
    project = make_project(tmp_path, drafts(2))
    configure(project, server, extra="batch = true", batches="max_rows = 1\nmax_wait_s = 80000")
    result = project.run("run", COHORT, "--plain")
    assert result.returncode == 0, result.stderr
    for name in ("max_rows = 1", "linger_s = 0.2", "poll_s = 0.05", "settle_s = 0.3", "max_wait_s = 80000"):
        assert f"batches.{name} is below" in result.stderr
    assert server.calls["create"] == 2


def test_what_batches_do_not_answer_goes_live_where_that_is_wanted(
    server: BatchServer, tmp_path: Path
) -> None:
    project = make_project(tmp_path, drafts(3))
    configure(project, server, extra='seed = true\nbatch = true\nbatch_then = "live"')
    stubborn: list[str] = []

    def fate(prompt: Any, asked: int) -> str:
        stubborn.append(prompt.key)
        return "500" if prompt.key == stubborn[0] else "ok"

    server.rows = fate
    result = project.run("run", COHORT, "--plain")
    assert result.returncode == 0, result.stderr
    assert (server.calls["create"], server.stats()["paid"]) == (2, 1)
    costs = []
    for path in project.paths.gens_root.glob("draft/*/metadata.json"):
        facts = json.loads(path.read_text())
        listed = facts["usage"]["input_tokens"] * 2 + facts["usage"]["output_tokens"] * 10
        costs.append(round(float(facts["cost_usd"]) * 1e6 / listed, 6))
    assert sorted(costs) == [0.5, 0.5, 1.0]


@pytest.mark.parametrize(("tail", "batches", "live"), [(3, 1, 3), (2, 2, 0)])
def test_a_tail_is_asked_live_instead_of_in_one_more_batch(
    tail: int, batches: int, live: int, server: BatchServer, tmp_path: Path
) -> None:
    project = make_project(tmp_path, drafts(9))
    configure(project, server, extra=f"seed = true\nbatch = true\nbatch_tail = {tail}")
    rows: Counter[str] = Counter()

    def fate(prompt: Any, asked: int) -> str:  # three rows come back, and are the lane's last
        rows[prompt.key] += 1
        return "500" if len(rows) > 6 and rows[prompt.key] == 1 else "ok"

    server.rows = fate
    assert project.run("run", COHORT, "--plain").returncode == 0
    assert (server.calls["create"], server.stats()["paid"]) == (batches, live)
    assert sum(server.billed().values()) == 9 - live


def test_open_batches_of_an_api_without_marks_have_different_sizes(
    server: BatchServer, tmp_path: Path
) -> None:
    project = make_project(tmp_path, drafts(6))
    configure(project, server, "anthropic", extra="batch = true", batches="max_rows = 3")
    server.work_s = 0.4
    server.creates += ["lost", "ok", "lost"]
    assert project.run("run", COHORT, "--plain").returncode == 0
    made = [(batch.created, batch.created + 0.4, len(batch.lines)) for batch in server.batches.values()]
    at_once = [
        (one[2], other[2])
        for number, one in enumerate(made)
        for other in made[number + 1 :]
        if other[0] < one[1]
    ]
    assert all(one != other for one, other in at_once), made
    assert sum(server.billed().values()) == 6


def test_a_run_that_detaches_leaves_also_when_the_provider_s_queue_is_full(
    server: BatchServer, tmp_path: Path
) -> None:
    project = make_project(tmp_path, drafts(6))
    configure(project, server, extra="seed = true\nbatch = true")
    server.token_limit, server.work_s = 100, 1000.0  # three rows
    codes = []
    for _ in range(8):
        started = project.start("run", COHORT, "--plain", "--detach")
        _, said = started.communicate(timeout=60)
        codes.append(started.returncode)
        assert f"{codes[-1]}" in "05", said
        if codes[-1] == 0:
            break
        made = [batch for batch in server.batches.values() if batch.errors is None]
        assert sum(len(batch.lines) for batch in made if batch.ended is None) <= 3
        server.advance(2000.0)
    assert codes[:2] == [5, 5]
    assert codes[-1] == 0
    assert sorted(server.billed().values()) == [1] * 6


def test_one_row_that_is_too_much_for_the_queue_is_not_sent_again_and_again(
    server: BatchServer, tmp_path: Path
) -> None:
    project = make_project(tmp_path, drafts(1))
    configure(project, server, extra="seed = true\nbatch = true")
    server.token_limit = 1
    started = project.start("run", COHORT, "--plain")
    wait_for(lambda: server.calls["create"] > 0)
    time.sleep(1.0)
    started.send_signal(signal.SIGINT)
    started.communicate(timeout=60)
    assert server.calls["create"] == 1


def test_an_api_without_listings_gets_no_batch(server: BatchServer, tmp_path: Path) -> None:
    project = make_project(tmp_path, drafts(2))
    configure(project, server, extra="seed = true\nbatch = true")
    server.page = 0
    result = project.run("run", COHORT, "--plain")
    assert (result.returncode, server.calls["create"]) == (1, 0)
    assert "was stopped" in result.stderr
    assert record(project, "batches")["batches"] == []
    assert project.run("run", COHORT, "--plain", "--no-batch").returncode == 0
