"""The file formats of journal and metadata: what is written, byte for byte, and what reading makes of anything."""

from __future__ import annotations

import io
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from genworker.core.completion import FinishReason, Sampling, Usage
from genworker.core.events import (
    EVENTS,
    Abandoned,
    AlreadyThere,
    Answered,
    AnswerNotStored,
    BatchCreated,
    BatchFormed,
    BatchSettled,
    BatchTrouble,
    CallFailed,
    Calling,
    CallStopped,
    Committed,
    Event,
    Interrupted,
    InterruptedAgain,
    LaneStopped,
    LimitChanged,
    Locked,
    OddEventError,
    ParsedAtStart,
    Reparsed,
    ReparseStarted,
    Retried,
    RowFailed,
    RunEnded,
    RunStarted,
    Salvaged,
    StoreRefused,
    TakenElsewhere,
    Warned,
    WorkerLost,
    WorkerStarted,
    event_from_json,
)
from genworker.core.facts import AnswerFacts, CallFacts, Facts, FileFacts, RowFacts
from genworker.core.stages import Stage
from genworker.paths import Paths
from genworker.store.journal import RunJournal
from genworker.store.ledger import journal_events

D, G = Stage.DRAFT, "g1"
USAGE = Usage(7, 9, cached_input_tokens=3)
END: dict[str, Any] = {
    "kind": "RateLimited",
    "status": 429,
    "error": "slower",
    "request_id": None,
    "may_be_billed": False,
    "latency_s": 0.5,
}
LINES: list[tuple[Event, str]] = [
    (
        RunStarted("r1", "c", "1.0", 3, 42, ["run", "c"]),
        '{"run_id":"r1","cohort":"c","version":"1.0","rows":3,"pid":42,"command":["run","c"],"event":"run_started"}',
    ),
    (
        WorkerStarted("r2", "c", "1.0", "r1", 3, 42, "node-7"),
        '{"run_id":"r2","cohort":"c","version":"1.0","driver":"r1","slot":3,"pid":42,"host":"node-7",'
        '"event":"worker_started"}',
    ),
    (
        WorkerLost("r2", 3, "signal 9"),
        '{"worker":"r2","slot":3,"why":"signal 9","event":"worker_lost"}',
    ),
    (ReparseStarted("r1", "c"), '{"run_id":"r1","cohort":"c","event":"reparse_started"}'),
    (
        RunEnded(3, 5, Decimal("0.0000001"), "--max-calls 5", {"t/m": {"at_once": 4.0}}),
        '{"exit_code":3,"calls":5,"spent_usd":"0.0000001","capped":"--max-calls 5",'
        '"limits":{"t/m":{"at_once":4.0}},"event":"run_ended"}',
    ),
    (Interrupted("SIGINT", 60.0), '{"signal":"SIGINT","deadline_s":60.0,"event":"interrupted"}'),
    (InterruptedAgain("SIGTERM"), '{"signal":"SIGTERM","event":"interrupted_again"}'),
    (
        BatchFormed("b", "t", "m", 7, Decimal("1.5")),
        '{"batch":"b","endpoint":"t","model_id":"m","rows":7,"worst_usd":"1.5","event":"batch_formed"}',
    ),
    (
        BatchCreated("b", "batch_1", was_lost=True),
        '{"batch":"b","batch_id":"batch_1","was_lost":true,"event":"batch_created"}',
    ),
    (
        BatchTrouble("b", "503", is_stranded=False),
        '{"batch":"b","error":"503","is_stranded":false,"event":"batch_trouble"}',
    ),
    (
        BatchSettled("b", "completed", 5, 1, 1, 0, None),
        '{"batch":"b","status":"completed","answered":5,"failed":1,"lapsed":1,"missing":0,"cost_usd":null,'
        '"event":"batch_settled"}',
    ),
    (Warned("tmpfs"), '{"what":"tmpfs","event":"warning"}'),
    (Locked("c", "pid 1", "wait"), '{"cohort":"c","holder":"pid 1","then":"wait","event":"locked"}'),
    (LaneStopped("t/m", "401"), '{"lane":"t/m","error":"401","event":"lane_stopped"}'),
    (
        LimitChanged("t/m", "number", "40 calls at once"),
        '{"lane":"t/m","what":"number","why":"40 calls at once","event":"limit"}',
    ),
    (Salvaged(D, G, "committed"), '{"stage":"draft","gen_id":"g1","what":"committed","event":"salvaged"}'),
    (ParsedAtStart(D, G), '{"stage":"draft","gen_id":"g1","event":"reparsed"}'),
    (Reparsed(D, G, "gained"), '{"stage":"draft","gen_id":"g1","change":"gained","event":"reparsed"}'),
    (AlreadyThere(D, G), '{"stage":"draft","gen_id":"g1","event":"already_there"}'),
    (TakenElsewhere(D, G), '{"stage":"draft","gen_id":"g1","event":"taken_elsewhere"}'),
    (
        Calling(D, G, 1, "t", "m", "vendor/m", Decimal(10).normalize(), 99),
        '{"stage":"draft","gen_id":"g1","attempt":1,"endpoint":"t","model_id":"m","model":"vendor/m",'
        '"worst_usd":"10","worst_tokens":99,"event":"calling"}',
    ),
    (
        Answered(D, G, 2, "t", "vendor/m", FinishReason.STOP, USAGE, None, "q", 0.25),
        '{"stage":"draft","gen_id":"g1","attempt":2,"endpoint":"t","model":"vendor/m","finish_reason":"stop",'
        '"usage":{"input_tokens":7,"output_tokens":9,"cached_input_tokens":3},"cost_usd":null,'
        '"request_id":"q","latency_s":0.25,"server":null,"event":"answered"}',
    ),
    (
        Retried(D, G, 1, **END, pause_s=2.0, fallback=None),
        '{"stage":"draft","gen_id":"g1","attempt":1,"kind":"RateLimited","status":429,"error":"slower",'
        '"request_id":null,"may_be_billed":false,"latency_s":0.5,"pause_s":2.0,"fallback":null,"event":"retry"}',
    ),
    (
        CallStopped(D, G, 1, **END),
        '{"stage":"draft","gen_id":"g1","attempt":1,"kind":"RateLimited","status":429,"error":"slower",'
        '"request_id":null,"may_be_billed":false,"latency_s":0.5,"event":"stopped"}',
    ),
    (
        CallFailed(D, G, 1, **END),
        '{"stage":"draft","gen_id":"g1","attempt":1,"kind":"RateLimited","status":429,"error":"slower",'
        '"request_id":null,"may_be_billed":false,"latency_s":0.5,"event":"failed"}',
    ),
    (
        RowFailed(D, G, 1, "Template", "no such name"),
        '{"stage":"draft","gen_id":"g1","attempt":1,"kind":"Template","error":"no such name","event":"failed"}',
    ),
    (Abandoned(D, G, 1), '{"stage":"draft","gen_id":"g1","attempt":1,"event":"abandoned"}'),
    (
        StoreRefused(D, G, "full", None),
        '{"stage":"draft","gen_id":"g1","error":"full","pause_s":null,"event":"store_refused"}',
    ),
    (
        AnswerNotStored(D, G, "full"),
        '{"stage":"draft","gen_id":"g1","error":"full","event":"answer_not_stored"}',
    ),
    (
        Committed(D, G, "llm", "truncated", "cut off"),
        '{"stage":"draft","gen_id":"g1","mode":"llm","failure":"truncated","reason":"cut off","event":"committed"}',
    ),
]


def test_every_event_has_its_line() -> None:
    assert {type(event) for event, _ in LINES} == set(EVENTS)


@pytest.mark.parametrize(("event", "line"), LINES, ids=lambda value: getattr(value, "word", ""))
def test_a_line_is_written_and_read_back(event: Event, line: str, tmp_path: Path) -> None:
    journal = RunJournal(Paths.from_str(tmp_path), "r1")
    journal.record(event)
    journal.close()
    written = journal.path.read_text()
    assert written.startswith('{"time":"20')
    assert "{" + written.partition(",")[2] == line + "\n"
    assert list(journal_events(io.BytesIO(journal.path.read_bytes()))) == [event]


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "7",
        '{"event":["calling"]}',
        '{"stage":"draft"}',
        '{"event":"calling","stage":"poem","gen_id":"g1","attempt":1}',
        '{"event":"calling","stage":["draft"],"gen_id":"g1","attempt":1}',
        '{"event":"calling","stage":"draft","gen_id":7,"attempt":1}',
        '{"event":"calling","stage":"draft","gen_id":"g1","attempt":true}',
        '{"event":"calling","stage":"draft","gen_id":"g1","attempt":1,"worst_usd":"NaN"}',
        '{"event":"calling","stage":"draft","gen_id":"g1","attempt":1,"worst_usd":"-1"}',
        '{"event":"abandoned"}',
    ],
)
def test_an_odd_line_is_counted_and_passed_over(line: str) -> None:
    with pytest.raises(OddEventError):
        event_from_json(json.loads(line))
    text = f'{line}\n{{"event":"draf\n\xff\n{LINES[0][1]}\n{{"event":"warn'
    assert list(journal_events(io.BytesIO(text.encode("latin-1")))) == [None, None, None, LINES[0][0]]


def test_a_word_from_a_newer_version_is_no_fault() -> None:
    assert event_from_json({"event": "settled", "batch": 3}) is None


def test_an_older_line_lacks_what_was_added_later() -> None:
    record = {"event": "answered", "stage": "draft", "gen_id": "g1", "attempt": 1, "usage": "lost"}
    assert event_from_json(record) == Answered(D, G, 1, None, None, None, Usage(), None, None, None)


def test_facts_stand_in_the_order_of_their_parts() -> None:
    row = RowFacts(
        "t", "x", "m", "", D, G, "c", "k", 1, "draft_response", "llm", "r1", "1.0", "identity", "ab", None
    )
    call = CallFacts("e", "openai", "vendor/m", False, Sampling(temperature=0.5, max_tokens=10))
    came = AnswerFacts(
        "vendor/m-1",
        "q",
        FinishReason.LENGTH,
        "max_tokens",
        USAGE,
        Decimal("0.10"),
        Decimal("0.1"),
        2,
        "a",
        "b",
        1.5,
    )
    facts = Facts.of(row, call, came)
    assert json.dumps(facts.record) == (
        '{"task_id": "t", "template_id": "x", "model_id": "m", "parent_gen_id": "", "stage": "draft", '
        '"gen_id": "g1", "cohort_id": "c", "combo_id": "k", "replicate": 1, "function": "draft_response", '
        '"mode": "llm", "run_id": "r1", "genworker_version": "1.0", "parser": "identity", '
        '"template_sha256": "ab", "parent_sha256": null, "endpoint": "e", "provider": "openai", '
        '"model": "vendor/m", "fallback": false, "sampling": {"temperature": 0.5, "max_tokens": 10}, '
        '"response_model": "vendor/m-1", "request_id": "q", "finish_reason": "length", '
        '"finish_word": "max_tokens", "usage": {"input_tokens": 7, "output_tokens": 9, "cached_input_tokens": 3}, "cost_usd": "0.10", '
        '"told_cost_usd": "0.1", "attempts": 2, "started_at": "a", "finished_at": "b", "latency_s": 1.5}'
    )
    assert (facts.usage, facts.cost_usd, facts.max_tokens) == (USAGE, Decimal("0.10"), 10)


@pytest.mark.parametrize("value", [None, True, 3.5, [], {}, "", "x", -1, float("nan"), {"sha256": []}])
def test_facts_of_any_kind_can_be_read(value: object) -> None:
    properties = [name for name, member in vars(Facts).items() if isinstance(member, property)]
    names = {*properties, "sampling", "usage", "files", "llm_model_id"}
    facts = Facts(dict.fromkeys(names, value))
    for name in properties:
        found = getattr(facts, name)
        assert name in ("usage", "files") or found is None or isinstance(found, str | int | float | Decimal)
    assert Facts({"files": {"raw.txt": value}}).files == {"raw.txt": FileFacts(None, None)}
