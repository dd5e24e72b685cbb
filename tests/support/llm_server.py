"""A local LLM server for tests and benchmarks: OpenAI Chat Completions and Anthropic Messages, with faults.

Answers depend only on (model, messages, seed); every request that arrives whole is counted. To run it::

    async with LLMServer(Options(latency_s=0.1)) as server:            # in the test's own event loop
        client = AsyncOpenAI(base_url=server.openai_url, api_key="k", max_retries=0)

    with LLMServer(Options()).in_thread() as server:                   # while the test blocks
        subprocess.run([..., server.anthropic_url])

    with spawn("--latency", "0.1") as remote:                          # on a core of its own
        remote.stats()["paid"]

As a program it prints one JSON line with its port and URLs, then serves until SIGINT or SIGTERM:
``python tests/support/llm_server.py --port 0 --latency 0.1 --rate 429=0.05``.
``GET /stats`` and ``GET /records`` give the counts, ``POST /reset`` starts over. It binds to 127.0.0.1 only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

if __name__ == "__main__" and not __package__:
    # Run as a program: the siblings are imported as a package, as the tests import them.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    __package__ = "support"

from .llm_server_answers import (
    BadRequest,
    Prompt,
    Response,
    answer_text,
    build,
    completion_tokens,
    error_body,
    hint_headers,
    id_header,
    parse_prompt,
    prompt_sha256,
    quota_headers,
    request_id,
)
from .llm_server_options import (
    OK,
    Api,
    Behaviour,
    Fault,
    Hint,
    Limiter,
    Limits,
    Options,
    ParsedRequest,
    Rule,
    as_fault,
    decide,
    fail_each_first,
    fail_first,
    latency_of,
    outage,
)
from .llm_server_wire import Connection, HttpRequest

__all__ = [
    "Behaviour",
    "Fault",
    "Hint",
    "LLMServer",
    "Limits",
    "Options",
    "ParsedRequest",
    "Record",
    "Remote",
    "Rule",
    "fail_each_first",
    "fail_first",
    "outage",
    "prompt_sha256",
    "spawn",
]


@dataclass(slots=True)
class Record:
    """What became of one completion request. Times are time.monotonic() seconds.

    The outcome is "pending", then "ok", the fault's kind, "limit:requests", "limit:tokens",
    "limit:concurrency", "bad-request", or "abandoned" (the client left before its answer was due).
    """

    number: int
    received: float
    answered: float | None  # when the answer was written or given up
    api: Api
    model: str
    prompt: str
    sha256: str  # of the prompt
    key: str  # of model, messages and seed
    seed: int | None
    attempt: int
    in_flight: int  # on arrival, this one included
    outcome: str  # see the class's text
    status: int  # of the answer; 0 while there is none
    paid: bool
    authorized: bool  # an Authorization or x-api-key header was there


class LLMServer:
    """The server. Counts may be read from any thread.

    Attributes:
        received: Completion requests received whole.
        requests: Paid ones among them whose 200 was written whole.
        paid: Requests that a provider would bill: counted when they are accepted, also if the client goes
            away before the answer is ready (see ``Options.bill_abandoned``).
        prompt_counts: Paid requests by the prompt's sha256.
        key_counts: Paid requests by (model, messages, seed).
        outcomes: Requests by outcome.
        refused: The outcomes that nobody pays for.
        statuses: Answers by HTTP status.
        in_flight: Requests in the server's hands now.
        max_in_flight: The most that it had at once, without those above a limit.
        connections: Connections accepted.
        records: One for each request, in order of reception.
    """

    def __init__(self, options: Options | None = None, *, port: int = 0) -> None:
        self.options = options or Options()
        self._wanted_port = port
        self._server: asyncio.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._open: set[Connection] = set()
        self._empty = asyncio.Event()
        self.port = 0
        self.connections = 0
        self.lists = 0
        self.strays = 0
        self._start_over()

    def _start_over(self) -> None:
        self.received = self.requests = self.paid = self.max_in_flight = 0
        self.in_flight = 0
        self.prompt_counts: Counter[str] = Counter()
        self.key_counts: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.records: list[Record] = []
        self._epoch = object()  # requests from before a reset must not count after it
        self._attempts: Counter[str] = Counter()
        self._hits: dict[int, int] = {}
        self._limiter = Limiter(self.options.limits)
        self._origin: float | None = None

    @property
    def openai_url(self) -> str:
        """The base URL for OpenAI's SDK."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def anthropic_url(self) -> str:
        """The base URL for Anthropic's SDK."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def paid_twice(self) -> int:
        """Paid requests beyond the first for the same model, messages and seed."""
        return sum(self.key_counts.values()) - len(self.key_counts)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the first completion request."""
        return 0.0 if self._origin is None else time.monotonic() - self._origin

    def stats(self) -> dict[str, Any]:
        """The counts as ``GET /stats`` gives them."""
        return {
            "received": self.received,
            "requests": self.requests,
            "paid": self.paid,
            "paid_twice": self.paid_twice,
            "prompts": len(self.prompt_counts),
            "refused": dict(self.refused),
            "outcomes": dict(self.outcomes),
            "statuses": {str(status): count for status, count in dict(self.statuses).items()},
            "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight,
            "connections": self.connections,
            "open_connections": len(self._open),
            "elapsed_s": self.elapsed_s,
        }

    def reset(self) -> None:
        """Forget all counts, attempts and limits. From any thread."""
        self._in_loop(self._start_over)

    def reconfigure(self, options: Options) -> None:
        """Go on with other options and fresh limits; counts, attempts and the origin of times stay."""

        def change() -> None:
            self.options = options
            self._limiter = Limiter(options.limits)
            self._hits = {}

        self._in_loop(change)

    def _in_loop(self, action: Callable[[], None]) -> None:
        """Run an action between requests, in the server's thread, and wait for it."""
        if self._server is None or self._loop is None or self._thread == threading.get_ident():
            action()
            return
        done = threading.Event()

        def run() -> None:
            action()
            done.set()

        self._loop.call_soon_threadsafe(run)
        done.wait()

    def wait_until(self, condition: Callable[[LLMServer], bool], timeout_s: float = 60.0) -> None:
        """Block the calling thread (not the server's) until the condition holds.

        Raises:
            TimeoutError: It did not within ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        while not condition(self):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the server never got there: {self.stats()}")
            time.sleep(0.002)

    async def start(self) -> None:
        """Listen; after a stop, on the same port again."""
        self._loop = loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._empty = asyncio.Event()
        self._empty.set()
        self._server = await loop.create_server(
            lambda: Connection(loop, self._on_request, self._on_open, self._on_close),
            "127.0.0.1",
            self._wanted_port or self.port,
            backlog=4096,
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening, drop every connection, wait until all are gone."""
        if self._server is None:
            return
        self._server.close()
        for connection in list(self._open):
            connection.abort()
        await self._empty.wait()
        await self._server.wait_closed()
        self._server = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @contextmanager
    def in_thread(self) -> Iterator[Self]:
        """Serve from a thread with an event loop of its own."""
        ready = threading.Event()
        failures: list[BaseException] = []
        stop: list[Callable[[], object]] = []

        async def serve() -> None:
            leave = asyncio.Event()
            loop = asyncio.get_running_loop()
            stop.append(lambda: loop.call_soon_threadsafe(leave.set))
            async with self:
                ready.set()
                await leave.wait()

        def run() -> None:
            try:
                run_fast(serve())
            except BaseException as error:
                failures.append(error)
            finally:
                ready.set()

        thread = threading.Thread(target=run, name="llm-server", daemon=True)
        thread.start()
        ready.wait()
        if failures:
            thread.join()
            raise failures[0]
        try:
            yield self
        finally:
            stop[0]()
            thread.join(10.0)
        if failures:
            raise failures[0]

    def _on_open(self, connection: Connection) -> None:
        self.connections += 1
        self._open.add(connection)
        self._empty.clear()

    def _on_close(self, connection: Connection) -> None:
        self._open.discard(connection)
        if not self._open:
            self._empty.set()
        work = connection.state
        if isinstance(work, _Work) and not work.settled:
            self._settle(work, "abandoned", 0, written=False)

    def _on_request(self, connection: Connection, http: HttpRequest) -> None:
        if not http.path.startswith(self.options.only_below):
            self.strays += 1
            connection.send(Response(404, b'{"detail": "Not Found"}'))
        elif http.method == "POST" and http.path.endswith("/chat/completions"):
            self._on_completion(connection, http, "openai")
        elif http.method == "POST" and http.path.endswith("/v1/messages"):
            self._on_completion(connection, http, "anthropic")
        elif http.method == "GET" and http.path.endswith("/v1/models"):  # some clients ask before they start
            self._on_list(connection, http)
        elif http.method == "GET" and http.path == "/stats":
            connection.send(Response(200, json.dumps(self.stats()).encode()))
        elif http.method == "GET" and http.path == "/records":
            connection.send(Response(200, json.dumps([asdict(record) for record in self.records]).encode()))
        elif http.method == "POST" and http.path == "/reset":
            self.reset()
            connection.send(Response(200, b"{}"))
        else:
            body = error_body("openai", 404, "", message=f"Unknown request URL: {http.method} {http.path}")
            connection.send(Response(404, body))

    def _on_list(self, connection: Connection, http: HttpRequest) -> None:
        self.lists += 1
        if self.options.list_status != 200:
            body = error_body("openai", self.options.list_status, "", message="Incorrect API key provided")
            connection.send(Response(self.options.list_status, body))
            return
        entries = [{"id": name, "object": "model"} for name in self.options.listed]
        response = Response(200, json.dumps({"object": "list", "data": entries}).encode())
        connection.later(self.options.list_latency_s, lambda: connection.send(response))

    def _on_completion(self, connection: Connection, http: HttpRequest, api: Api) -> None:
        now = time.monotonic()
        self.received += 1
        if self._origin is None:
            self._origin = now
        try:
            prompt = parse_prompt(api, http.body)
        except BadRequest as error:
            rejected = self._work(_NO_PROMPT, api, http, now)
            connection.state = rejected
            response = Response(400, error_body(api, 400, "", message=str(error)))
            self._send(connection, rejected, response, "bad-request")
            return
        work = self._work(prompt, api, http, now)
        connection.state = work
        request = work.request
        elapsed = now - self._origin

        def tokens() -> int:
            return prompt.tokens + completion_tokens(work.text(self.options))

        limit = self._limiter.refuses(now, elapsed, self.in_flight - 1, tokens)
        if limit is not None:
            hint = hint_headers(api, self.options.limits.parsed_hint, self._limiter.wait_s)
            kind = limit if limit != "concurrency" else "requests"
            message = f"Rate limit reached for {request.model} on {limit}. Please try again later."
            body = error_body(
                api, 429, request_id(request), message=message, kind=None if api == "anthropic" else kind
            )
            refusal = Response(429, body, id_header(request) + hint + self._announcement(api))
            self._send(connection, work, refusal, f"limit:{limit}")
            return
        self._attempts[request.key] += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        behaviour = decide(self.options, request, elapsed, self._hits)
        fault = as_fault(behaviour.fault)
        work.behaviour = behaviour
        work.fault = fault
        if fault.paid:
            self._pay(work, 1)
        delay = behaviour.latency_s
        if delay is None:
            delay = 0.0
            if fault.paid and self.options.latency_s > 0.0:
                delay = latency_of(self.options, request) * self._limiter.slowdown(request.in_flight)
        if delay > 0.0:
            connection.later(delay, lambda: self._answer(connection, work))
        else:
            self._answer(connection, work)

    def _work(self, prompt: Prompt, api: Api, http: HttpRequest, now: float) -> _Work:
        self.in_flight += 1
        request = ParsedRequest(
            number=self.received,
            api=api,
            path=http.path,
            model=prompt.model,
            messages=prompt.messages,
            prompt=prompt.text,
            sha256=prompt.sha256,
            key=prompt.key,
            seed=prompt.seed,
            max_tokens=prompt.max_tokens,
            attempt=self._attempts[prompt.key] + 1,
            received=now,
            in_flight=self.in_flight,
            headers=http.headers,
            body=prompt.body,
        )
        record = Record(
            number=request.number,
            received=now,
            answered=None,
            api=api,
            model=prompt.model,
            prompt=prompt.text,
            sha256=prompt.sha256,
            key=prompt.key,
            seed=prompt.seed,
            attempt=request.attempt,
            in_flight=request.in_flight,
            outcome="pending",
            status=0,
            paid=False,
            authorized="authorization" in http.headers or "x-api-key" in http.headers,
        )
        if self.options.keep_records:
            self.records.append(record)
        return _Work(prompt, request, record, self._epoch)

    def _answer(self, connection: Connection, work: _Work) -> None:
        response = build(self.options, work.request, work.fault, lambda: work.text(self.options))
        more = (*work.behaviour.headers, *self._announcement(work.request.api))
        if more:
            response = replace(response, headers=response.headers + more)
        self._send(connection, work, response, work.fault.kind)

    def _announcement(self, api: Api) -> tuple[tuple[str, str], ...]:
        if not self.options.limits.announce:
            return ()
        return quota_headers(api, self._limiter.quotas(time.monotonic(), self.elapsed_s))

    def _send(self, connection: Connection, work: _Work, response: Response, outcome: str) -> None:
        connection.send(
            response, lambda written: self._settle(work, outcome, response.status, written=written)
        )

    def _pay(self, work: _Work, count: int) -> None:
        work.record.paid = count > 0
        self.paid += count
        for counter, name in ((self.prompt_counts, work.request.sha256), (self.key_counts, work.request.key)):
            counter[name] += count
            if not counter[name]:
                del counter[name]

    def _settle(self, work: _Work, outcome: str, status: int, *, written: bool) -> None:
        """Book a request's end, once."""
        if work.settled:
            return
        work.settled = True
        record = work.record
        record.answered, record.outcome, record.status = time.monotonic(), outcome, status
        if work.epoch is not self._epoch:
            return
        self.in_flight -= 1
        self.outcomes[outcome] += 1
        if outcome == "abandoned" and record.paid and not self.options.bill_abandoned:
            self._pay(work, -1)
        if not record.paid:
            self.refused[outcome] += 1
        elif written:
            self.requests += 1
        if status:
            self.statuses[status] += 1


_NO_PROMPT = Prompt("", (), "", prompt_sha256(""), "", None, None, {})


class _Work:
    """A request from its reception to its booking."""

    __slots__ = ("_text", "behaviour", "epoch", "fault", "prompt", "record", "request", "settled")

    def __init__(self, prompt: Prompt, request: ParsedRequest, record: Record, epoch: object) -> None:
        self.prompt = prompt
        self.request = request
        self.record = record
        self.epoch = epoch
        self.behaviour = Behaviour()
        self.fault = OK
        self.settled = False
        self._text: str | None = None

    def text(self, options: Options) -> str:
        if self._text is None:
            if self.behaviour.text is not None:
                self._text = self.behaviour.text
            elif options.reply is not None:
                self._text = options.reply(self.request)
            else:
                self._text = answer_text(options, self.prompt)
        return self._text


def run_fast(main: Any) -> None:
    """Run a coroutine on uvloop where there is one."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main)


@dataclass(frozen=True, slots=True)
class Remote:
    """A server in another process."""

    port: int
    pid: int

    @property
    def openai_url(self) -> str:
        """The base URL for OpenAI's SDK."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def anthropic_url(self) -> str:
        """The base URL for Anthropic's SDK."""
        return f"http://127.0.0.1:{self.port}"

    def stats(self) -> dict[str, Any]:
        """The counts now."""
        found: dict[str, Any] = json.loads(self._call("GET", "/stats"))
        return found

    def records(self) -> list[dict[str, Any]]:
        """All records, see ``Record``."""
        found: list[dict[str, Any]] = json.loads(self._call("GET", "/records"))
        return found

    def reset(self) -> None:
        """Start over."""
        self._call("POST", "/reset")

    def _call(self, method: str, path: str) -> bytes:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", method=method)
        # No proxy from the environment: this is a loopback address.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=120) as answer:
            body: bytes = answer.read()
        return body


@contextmanager
def spawn(*arguments: str) -> Iterator[Remote]:
    """Run the server as a process with these command-line arguments."""
    command = [sys.executable, str(Path(__file__).resolve()), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout is not None else ""
            if not line:
                raise RuntimeError(f"the server did not start: {command}")
            yield Remote(json.loads(line)["port"], process.pid)
        finally:
            process.terminate()
            process.wait(60)


def _pairs(text: str) -> list[tuple[str, str]]:
    return [(left, right) for left, _, right in (part.rpartition("=") for part in text.split(",") if part)]


def parse_arguments(arguments: list[str] | None = None) -> tuple[int, Options]:
    """The port and the options that a command line asks for."""
    parser = argparse.ArgumentParser(description="A local LLM server for tests and benchmarks.")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument(
        "--latency", type=float, default=0.0, help="seconds; the median when --sigma is given"
    )
    parser.add_argument("--sigma", type=float, default=0.0, help="σ of a lognormal latency")
    parser.add_argument("--words", type=int, default=300, help="words in an answer")
    parser.add_argument("--score-marker", default="score")
    parser.add_argument("--seed", type=int, default=0, help="of latencies and failures")
    parser.add_argument("--rate", default="", help="failure rates, e.g. 500=0.05,429@retry-after=1=0.05")
    parser.add_argument(
        "--rule", action="append", default=[], help='a Rule as JSON, e.g. {"fault": "503", "until_s": 60}'
    )
    parser.add_argument("--rpm", type=float)
    parser.add_argument("--burst", type=float)
    parser.add_argument("--tpm", type=float)
    parser.add_argument("--token-burst", type=float)
    parser.add_argument("--window", choices=("bucket", "sliding", "fixed"), default="bucket")
    parser.add_argument("--max-concurrent", type=int)
    parser.add_argument("--slow-above", type=int)
    parser.add_argument("--slow-slope", type=float, default=1.0)
    parser.add_argument("--hint", default="retry-after=1", help="of the limits' 429")
    parser.add_argument("--announce", action="store_true", help="quota headers")
    parser.add_argument("--no-enforce", action="store_true", help="announce the limits only")
    parser.add_argument("--schedule", default="", help="factors on the limits over time, e.g. 10=0.5,20=1")
    parser.add_argument("--cached-share", type=float, default=0.0)
    parser.add_argument("--honour-max-tokens", action="store_true")
    parser.add_argument("--no-records", action="store_true", help="keep counts only")
    given = parser.parse_args(arguments)
    limits = Limits(
        rpm=given.rpm,
        burst=given.burst,
        tpm=given.tpm,
        token_burst=given.token_burst,
        window=given.window,
        max_concurrent=given.max_concurrent,
        slow_above=given.slow_above,
        slow_slope=given.slow_slope,
        hint=given.hint,
        announce=given.announce,
        enforce=not given.no_enforce,
        schedule=tuple((float(at), float(factor)) for at, factor in _pairs(given.schedule)),
    )
    return given.port, Options(
        latency_s=given.latency,
        latency_sigma=given.sigma,
        words=given.words,
        score_marker=given.score_marker,
        seed=given.seed,
        failure_rates={kind: float(rate) for kind, rate in _pairs(given.rate)},
        rules=tuple(Rule(**json.loads(rule)) for rule in given.rule),
        limits=limits,
        cached_share=given.cached_share,
        honour_max_tokens=given.honour_max_tokens,
        keep_records=not given.no_records,
    )


async def _serve(port: int, options: Options) -> None:
    leave = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, leave.set)
    async with LLMServer(options, port=port) as server:
        urls = {"openai_url": server.openai_url, "anthropic_url": server.anthropic_url}
        print(json.dumps({"port": server.port, **urls}), flush=True)
        await leave.wait()


if __name__ == "__main__":
    run_fast(_serve(*parse_arguments()))
