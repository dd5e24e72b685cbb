"""The local LLM server with both batch APIs: OpenAI's files and batches, Anthropic's message batches, with faults.

    with BatchServer(work_s=60).in_thread() as server:
        subprocess.run([..., server.openai_url])
        server.advance(3600)                   # its clock moves; results expire and vanish as they would
        assert server.billed() == Counter(...)

A batch is done `work_s` seconds of the server's clock after its creation. What each call meets is said beforehand,
call by call: ``server.creates = ["lost", "ok"]``. A batch that exists is billed for each request that it answers,
whoever fetches it.
"""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any
from urllib.parse import parse_qs

from .llm_server import LLMServer, Options
from .llm_server_answers import (
    BadRequest,
    Prompt,
    Response,
    _answer,
    answer_text,
    error_body,
    parse_prompt,
)
from .llm_server_options import Api, ParsedRequest
from .llm_server_wire import Connection, HttpRequest

DAY_S = 86_400.0

RowFault = Callable[[Prompt, int], str]
"""What becomes of a request of a batch, by its prompt and how often it was asked before: ``ok``, a status such as
``500`` or ``400``, ``missing``, ``twice``, ``malformed``, ``expired``."""


@dataclass
class Stored:
    """An uploaded or a written file."""

    id: str
    name: str
    content: bytes
    created: float
    key: str


@dataclass
class Batch:
    """One batch, of either API."""

    id: str
    api: Api
    key: str
    created: float
    lines: list[dict[str, Any]]
    metadata: dict[str, str]
    file_id: str | None = None
    work_s: float = 0.0
    cancelled: float | None = None
    errors: list[dict[str, Any]] | None = None
    results: list[bytes] | None = None
    failed_lines: list[bytes] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    status: str = ""
    ended: float | None = None
    output_id: str | None = None
    error_id: str | None = None


class BatchServer(LLMServer):
    """An `LLMServer` that takes batches as well.

    Attributes:
        work_s: how long a batch takes, by the server's clock.
        creates: what the next creates meet: ``ok``, ``lost`` (it takes effect, the connection is reset), ``hang`` (it
            takes effect, no answer), ``never`` (no effect, reset), ``late:S`` (reset; it takes effect S seconds later),
            ``500`` (no effect), ``500-made`` (effect), ``429``, ``400``, ``401``, ``409``.
        uploads: what the next uploads meet: ``ok``, ``lost``, ``500``.
        downloads: what the next downloads meet: ``ok``, ``torn``, ``503``, ``short`` (whole lines, but not all).
        polls: what the next looks at one batch meet: ``ok``, ``503``, ``404``, ``early`` (completed, and no files
            yet), ``no-errors`` (completed, and no error file).
        cancels: what the next cancels meet: ``ok``, ``409``, ``503``.
        looks_through: how many looks at an uploaded file find it ``pending``, as Azure's.
        newest_first: whether listings go from newer to older batches, as the APIs promise.
        times: how listings and batches tell times: ``number``, or ``text`` (ISO 8601, in capitals the status), as
            some servers of OpenAI's shape do.
        date_ahead_s: how far the header ``Date`` is ahead of the times in listings.
        rows: what becomes of single requests.
        extra_lines: lines that are put into each results file.
        bad_lines: numbers, from 1, of lines that make the whole batch fail.
        token_limit: most tokens that may be queued over all batches; beyond it a batch fails.
        page: most batches of a listing's page; 0: there are no listings.
        separator: put into each answer.
    """

    def __init__(self, options: Options | None = None, *, work_s: float = 0.0, port: int = 0) -> None:
        super().__init__(options, port=port)
        self.work_s = work_s
        self.offset_s = 0.0
        self.files: dict[str, Stored] = {}
        self.batches: dict[str, Batch] = {}
        self.creates: deque[str] = deque()
        self.uploads: deque[str] = deque()
        self.downloads: deque[str] = deque()
        self.polls: deque[str] = deque()
        self.cancels: deque[str] = deque()
        self.looks_through = 0
        self.newest_first = True
        self.times = "number"
        self.date_ahead_s = 0.0
        self.rows: RowFault = lambda prompt, asked: "ok"
        self.extra_lines: list[bytes] = []
        self.bad_lines: set[int] = set()
        self.token_limit: int | None = None
        self.page = 20
        self.separator = ""
        self.big_bytes = 0  # of each download, in place of what it should be
        self.asked: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.bill: Counter[str] = Counter()
        self.billed_tokens = [0, 0]  # of prompts and answers
        self.expires_s = DAY_S
        self._number = 0

    # The clock

    @property
    def now(self) -> float:
        return time.time() + self.offset_s

    def advance(self, seconds: float) -> None:
        """Move the clock."""
        self.offset_s += seconds

    def billed(self) -> Counter[str]:
        """How often each request, by model, messages and seed, has been answered in batches that ran to their end."""
        self.settle()
        return Counter(self.bill)

    def bill_usd(self, input_mtok: float, output_mtok: float) -> float:
        """What all answers in batches have cost, at US dollars per million tokens."""
        self.settle()
        read, written = self.billed_tokens
        return (read * input_mtok + written * output_mtok) / 1e6

    def settle(self) -> None:
        for batch in list(self.batches.values()):
            self._advance(batch)

    # HTTP

    def _on_request(self, connection: Connection, http: HttpRequest) -> None:
        path = http.path
        if "/batches" not in path and "/files" not in path:
            super()._on_request(connection, http)
            return
        api: Api = "anthropic" if "/messages/batches" in path else "openai"
        key = http.headers.get("x-api-key") or http.headers.get("authorization", "")
        parts = path.split("/batches" if "/batches" in path else "/files", 1)[1].strip("/").split("/")
        parts = [part for part in parts if part]
        query = {name: values[0] for name, values in parse_qs(http.query).items()}
        if "/files" in path:
            self._files(connection, http, key, parts, query)
        elif http.method == "POST" and not parts:
            self._create(connection, http, api, key)
        elif not parts:
            self.calls["list"] += 1
            if self.page:
                self._reply(connection, self._list(api, key, query))
            else:
                self._error(connection, api, 404)
        else:
            self._one(connection, http, api, key, parts)

    def _reply(self, connection: Connection, record: Any, status: int = 200) -> None:
        body = record if isinstance(record, bytes) else json.dumps(record).encode()
        headers = (("date", formatdate(self.now + self.date_ahead_s, usegmt=True)),)
        connection.send(Response(status, body, headers))

    def _error(self, connection: Connection, api: Api, status: int, message: str | None = None) -> None:
        self._reply(connection, error_body(api, status, "req_x", message=message), status)

    # OpenAI's files

    def _files(
        self, connection: Connection, http: HttpRequest, key: str, parts: list[str], query: dict[str, str]
    ) -> None:
        if http.method == "POST":
            self.calls["upload"] += 1
            fate = self.uploads.popleft() if self.uploads else "ok"
            if fate.isdigit():
                self._error(connection, "openai", int(fate))
                return
            name, content = _multipart(http)
            stored = self._store(name, content, key)
            if fate == "lost":
                connection.send(Response(0, delivery="reset"))
            else:
                self._reply(connection, self._file_record(stored))
            return
        if not parts:
            self.calls["list-files"] += 1
            found = [self._file_record(each) for each in self.files.values() if each.key == key]
            self._reply(connection, {"object": "list", "data": found[::-1], "has_more": False})
            return
        file = self.files.get(parts[0])
        if file is None or file.key != key or self.now - file.created > 30 * DAY_S:
            self._error(connection, "openai", 404, f"No such File object: {parts[0]}")
        elif parts[1:] == ["content"]:
            self._download(connection, file.content)
        else:
            self._reply(connection, self._file_record(file))

    def _file_record(self, file: Stored) -> dict[str, Any]:
        status = "pending" if self.looks_through > 0 else "processed"
        self.looks_through -= 1
        return {
            "id": file.id,
            "object": "file",
            "bytes": len(file.content),
            "created_at": int(file.created),
            "filename": file.name,
            "purpose": "batch",
            "status": status,
        }

    def _store(self, name: str, content: bytes, key: str) -> Stored:
        self._number += 1
        stored = Stored(f"file-{self._number}", name, content, self.now, key)
        self.files[stored.id] = stored
        return stored

    def _download(self, connection: Connection, content: bytes) -> None:
        self.calls["download"] += 1
        fate = self.downloads.popleft() if self.downloads else "ok"
        if self.big_bytes:
            chunk = b"x" * (1 << 20)
            pieces = self.big_bytes >> 20
            connection.send(Response(200, lazy=lambda: iter([chunk] * pieces), length=self.big_bytes))
        elif fate == "short":
            connection.send(Response(200, _joined(content.split(b"\n")[:1])))
        elif fate == "torn":
            connection.send(Response(200, content, delivery="half-close"))
        elif fate.isdigit():
            self._error(connection, "openai", int(fate))
        else:
            connection.send(Response(200, content, content_type="application/binary"))

    # Batches

    def _create(self, connection: Connection, http: HttpRequest, api: Api, key: str) -> None:
        self.calls["create"] += 1
        fate = self.creates.popleft() if self.creates else "ok"
        if fate.isdigit():
            self._error(connection, api, int(fate))
            return
        if fate == "never":
            connection.send(Response(0, delivery="reset"))
            return
        body = json.loads(http.body)
        if fate.startswith("late:"):
            assert self._loop is not None
            self._loop.call_later(float(fate[5:]), lambda: self._make(api, key, body))
            connection.send(Response(0, delivery="reset"))
            return
        batch = self._make(api, key, body)
        if isinstance(batch, str):
            self._error(connection, api, 400, batch)
        elif fate == "lost":
            connection.send(Response(0, delivery="reset"))
        elif fate == "hang":
            connection.send(Response(0, delivery="hang"))
        elif fate == "500-made":
            self._error(connection, api, 500)
        else:
            self._reply(connection, self._record(batch))

    def _make(self, api: Api, key: str, body: dict[str, Any]) -> Batch | str:
        self._number += 1
        if api == "openai":
            file = self.files.get(body["input_file_id"])
            if file is None or file.key != key or self.looks_through > 0:
                return f"Invalid file: {body['input_file_id']}"
            batch = Batch(
                f"batch_{self._number:05}",
                api,
                key,
                self.now,
                [],
                body.get("metadata") or {},
                file.id,
                self.work_s,
            )
            batch.lines = [json.loads(line) for line in file.content.split(b"\n") if line.strip()]
            batch.errors = self._faults(batch)
        else:
            lines = body["requests"]
            names = [line["custom_id"] for line in lines]
            if len(set(names)) != len(names):
                return "custom_id values must be unique"
            batch = Batch(f"msgbatch_{self._number:05}", api, key, self.now, lines, {}, None, self.work_s)
        self.batches[batch.id] = batch
        return batch

    def _faults(self, batch: Batch) -> list[dict[str, Any]] | None:
        if self.bad_lines:
            bad = sorted(number for number in self.bad_lines if number <= len(batch.lines))
            if bad:
                return [
                    {"code": "invalid_json_line", "line": n, "message": "not valid", "param": None}
                    for n in bad
                ]
        if len({line["body"]["model"] for line in batch.lines}) > 1:
            return [{"code": "mismatched_model", "line": 2, "message": "one model a batch", "param": None}]
        queued = sum(
            self._tokens(each) for each in self.batches.values() if each.ended is None and each.errors is None
        )
        if self.token_limit is not None and queued + self._tokens(batch) > self.token_limit:
            message = f"Enqueued token limit reached. Limit: {self.token_limit:,} enqueued tokens."
            return [{"code": "token_limit_exceeded", "line": None, "message": message, "param": None}]
        return None

    def _tokens(self, batch: Batch) -> int:
        return sum(len(json.dumps(line["body"]["messages"])) // 4 for line in batch.lines if "body" in line)

    def _one(self, connection: Connection, http: HttpRequest, api: Api, key: str, parts: list[str]) -> None:
        batch = self.batches.get(parts[0])
        if batch is None or batch.key != key or batch.api != api:
            self._error(connection, api, 404, f"No batch found with id {parts[0]!r}")
            return
        if parts[1:] == ["cancel"]:
            self.calls["cancel"] += 1
            fate = self.cancels.popleft() if self.cancels else "ok"
            if fate.isdigit():
                self._error(connection, api, int(fate))
                return
            if batch.cancelled is None and batch.ended is None:
                batch.cancelled = self.now
            self._reply(connection, self._record(batch))
        elif parts[1:] == ["results"]:
            self._advance(batch)
            if batch.results is None or self.now - batch.created > 29 * DAY_S:
                self._error(connection, api, 404, "results are not available")
            else:
                self._download(connection, _joined(batch.results))
        else:
            self.calls["look"] += 1
            fate = self.polls.popleft() if self.polls else "ok"
            if fate.isdigit():
                self._error(connection, api, int(fate))
                return
            record = self._record(batch)
            if fate == "early" and api == "openai" and record["status"] == "completed":
                record |= {"output_file_id": None, "error_file_id": None}
            if fate == "no-errors" and api == "openai":
                record |= {"error_file_id": None}
            self._reply(connection, record)

    def _list(self, api: Api, key: str, query: dict[str, str]) -> dict[str, Any]:
        found = [batch for batch in self.batches.values() if batch.api == api and batch.key == key]
        found = found[::-1] if self.newest_first else found
        after = query.get("after") or query.get("after_id")
        if after is not None:
            names = [batch.id for batch in found]
            found = found[names.index(after) + 1 :] if after in names else []
        page = found[: min(self.page, int(query.get("limit", 20)))]
        return {
            "object": "list",
            "data": [self._record(batch) for batch in page],
            "has_more": len(found) > len(page),
            "first_id": page[0].id if page else None,
            "last_id": page[-1].id if page else None,
        }

    # What becomes of a batch

    def _advance(self, batch: Batch) -> None:
        if batch.ended is not None:
            return
        if batch.errors is not None:
            batch.status, batch.ended = "failed", self.now
            return
        done_at = batch.created + batch.work_s
        expires_at = batch.created + self.expires_s
        if batch.cancelled is not None and batch.cancelled < min(done_at, expires_at):
            self._finish(batch, "cancelled", batch.cancelled)
        elif self.now >= done_at and done_at <= expires_at:
            self._finish(batch, "completed", done_at)
        elif self.now >= expires_at:
            self._finish(batch, "expired", expires_at)

    def _finish(self, batch: Batch, status: str, at: float) -> None:
        batch.status, batch.ended = status, at
        # A batch that is cut short has done a part that grows with its age.
        share = 1.0 if status == "completed" else min(1.0, (at - batch.created) / batch.work_s)
        done = round(share * len(batch.lines))
        good: list[bytes] = []
        for number, line in enumerate(batch.lines):
            fate = "ok" if number < done else {"cancelled": "canceled", "expired": "expired"}[status]
            self._row(batch, line, fate, good)
        good += self.extra_lines if good else []
        batch.results = good

    def _row(self, batch: Batch, line: dict[str, Any], fate: str, good: list[bytes]) -> None:
        body = line["body"] if batch.api == "openai" else line["params"]
        try:
            prompt = parse_prompt(batch.api, json.dumps(body).encode())
        except BadRequest as refused:
            self._bad(batch, line, 400, str(refused), good)
            return
        if fate == "ok":
            fate = self.rows(prompt, self.asked[prompt.key])
            self.asked[prompt.key] += 1
        if fate in ("expired", "canceled"):
            batch.counts[fate] += 1
            if batch.api == "anthropic":
                good.append(json.dumps({"custom_id": line["custom_id"], "result": {"type": fate}}).encode())
            elif fate == "expired":
                error = {"code": "batch_expired", "message": "This request could not be executed in time."}
                batch.failed_lines.append(
                    json.dumps(
                        {"id": "r", "custom_id": line["custom_id"], "response": None, "error": error}
                    ).encode()
                )
            return
        if fate.isdigit():
            self._bad(batch, line, int(fate), None, good)
            return
        self.bill[prompt.key] += 1
        batch.counts["ok"] += 1
        text = answer_text(self.options, prompt) + self.separator
        answer = _answer(self.options, _parsed(batch.api, prompt, len(good)), text, "ok")
        for at, names in enumerate(
            (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens"))
        ):
            self.billed_tokens[at] += sum(answer["usage"].get(name, 0) for name in names)
        if fate == "missing":
            return
        if fate == "malformed":
            answer = {"id": "odd"}
        if batch.api == "openai":
            response = {"status_code": 200, "request_id": f"req_{prompt.key[:16]}", "body": answer}
            record = {"id": "r", "custom_id": line["custom_id"], "response": response, "error": None}
        else:
            record = {"custom_id": line["custom_id"], "result": {"type": "succeeded", "message": answer}}
        raw = json.dumps(record, ensure_ascii=False).encode("utf-8", "replace")
        good += [raw, raw] if fate == "twice" else [raw]

    def _bad(
        self, batch: Batch, line: dict[str, Any], status: int, message: str | None, good: list[bytes]
    ) -> None:
        batch.counts["failed"] += 1
        error = json.loads(error_body(batch.api, status, "req_x", message=message))
        if batch.api == "anthropic":
            record = {"custom_id": line["custom_id"], "result": {"type": "errored", "error": error}}
            good.append(json.dumps(record).encode())
        else:
            response = {"status_code": status, "request_id": "req_x", "body": error}
            record = {"id": "r", "custom_id": line["custom_id"], "response": response, "error": None}
            batch.failed_lines.append(json.dumps(record).encode())

    # What the APIs say of a batch

    def _record(self, batch: Batch) -> dict[str, Any]:
        self._advance(batch)
        return self._openai(batch) if batch.api == "openai" else self._anthropic(batch)

    def _openai(self, batch: Batch) -> dict[str, Any]:
        if batch.results and batch.output_id is None:
            batch.output_id = self._store("out", _joined(batch.results), batch.key).id
        if batch.failed_lines and batch.error_id is None:
            batch.error_id = self._store("err", _joined(batch.failed_lines), batch.key).id
        status = batch.status or ("cancelling" if batch.cancelled else "in_progress")
        is_text = self.times == "text"
        return {
            "id": batch.id,
            "object": "batch",
            "endpoint": "/v1/chat/completions",
            "input_file_id": batch.file_id,
            "completion_window": "24h",
            "status": status.upper() if is_text else status,
            "created_at": _iso(batch.created) if is_text else int(batch.created),
            f"{status}_at": int(batch.ended) if batch.ended else None,
            "output_file_id": batch.output_id,
            "error_file_id": batch.error_id,
            "errors": {"object": "list", "data": batch.errors} if batch.errors and batch.ended else None,
            "metadata": batch.metadata,
            "request_counts": {
                "total": len(batch.lines),
                "completed": batch.counts["ok"],
                "failed": batch.counts["failed"] + batch.counts["expired"],
            },
        }

    def _anthropic(self, batch: Batch) -> dict[str, Any]:
        ended = batch.ended is not None
        counts = batch.counts
        return {
            "id": batch.id,
            "type": "message_batch",
            "processing_status": "ended" if ended else "canceling" if batch.cancelled else "in_progress",
            "request_counts": {
                "processing": 0 if ended else len(batch.lines),
                "succeeded": counts["ok"],
                "errored": counts["failed"],
                "canceled": counts["canceled"],
                "expired": counts["expired"],
            },
            "created_at": _iso(batch.created),
            "expires_at": _iso(batch.created + self.expires_s),
            "ended_at": _iso(batch.ended) if batch.ended else None,
            "cancel_initiated_at": _iso(batch.cancelled) if batch.cancelled else None,
            "archived_at": None,
            "results_url": f"{self.anthropic_url}/v1/messages/batches/{batch.id}/results" if ended else None,
        }


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _joined(lines: list[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def _multipart(http: HttpRequest) -> tuple[str, bytes]:
    """The file of a form."""
    boundary = http.headers["content-type"].split("boundary=", 1)[1].strip('"').encode()
    for part in _parts(http.body, boundary):
        head, _, content = part.partition(b"\r\n\r\n")
        if b'filename="' in head:
            return head.split(b'filename="', 1)[1].split(b'"', 1)[0].decode(), content
    raise AssertionError("no file in the form")


def _parts(body: bytes, boundary: bytes) -> Iterator[bytes]:
    for part in body.split(b"--" + boundary)[1:-1]:
        yield part.removeprefix(b"\r\n").removesuffix(b"\r\n")


def _parsed(api: Api, prompt: Prompt, number: int) -> ParsedRequest:
    return ParsedRequest(
        number=number,
        api=api,
        path="",
        model=prompt.model,
        messages=prompt.messages,
        prompt=prompt.text,
        sha256=prompt.sha256,
        key=prompt.key,
        seed=prompt.seed,
        max_tokens=prompt.max_tokens,
        attempt=1,
        received=0.0,
        in_flight=1,
        headers={},
        body=prompt.body,
    )
