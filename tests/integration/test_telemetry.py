"""Spans and metrics of a run, as OpenTelemetry's own exporters get them; nothing of it where it is off."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from genworker.project.open import open_project
from genworker.run.engine import RunOptions, run_cohort
from genworker.run.telemetry import Telemetry, is_wanted
from support.llm_server import LLMServer, Options
from support.project import Project, clean_environment, make_project

pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed: make setup brings it")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path)


def test_a_call_is_a_span_and_counts_under_the_conventions_names(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    traces, metrics = TracerProvider(), MeterProvider(metric_readers=[reader])
    traces.add_span_processor(SimpleSpanProcessor(spans))
    telemetry = Telemetry(traces.get_tracer("test"), metrics.get_meter("test"), {"test": "openai"}, "trial")
    with LLMServer(Options(words=20, failure_rates={"500": 0.2})).in_thread() as server:
        project.use_server(server.openai_url)
        opened = open_project(project.root / "config" / "genworker.toml", project.data)
        result = run_cohort(opened, "trial", RunOptions(), listeners=(telemetry.hear,))
    telemetry.close()
    found: Any = spans.get_finished_spans()
    assert result.progress.calls == len(found)
    good = [span for span in found if "error.type" not in span.attributes]
    bad = [span for span in found if "error.type" in span.attributes]
    assert good
    assert bad
    one = good[0]
    assert one.name == f"chat {one.attributes['gen_ai.request.model']}"
    assert one.kind.name == "CLIENT"
    assert one.attributes["gen_ai.operation.name"] == "chat"
    assert one.attributes["gen_ai.provider.name"] == "openai"
    assert one.attributes["gen_ai.request.model"].startswith("vendor/")
    assert one.attributes["gen_ai.response.model"]
    assert one.attributes["gen_ai.response.finish_reasons"] == ("stop",)
    assert one.attributes["gen_ai.usage.input_tokens"] > 0
    assert one.attributes["gen_ai.usage.output_tokens"] > 0
    assert one.attributes["genworker.cohort"] == "trial"
    assert {span.attributes["error.type"] for span in bad} == {"500"}
    assert all(span.status.status_code.name == "ERROR" for span in bad)
    everything = "".join(span.to_json() for span in found)
    assert "sk-very-secret" not in everything
    assert "All about" not in everything  # no prompt, no answer

    data: Any = reader.get_metrics_data()
    points = {
        metric.name: list(metric.data.data_points)
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    durations = points["gen_ai.client.operation.duration"]
    assert sum(point.count for point in durations) == len(found)
    tokens = points["gen_ai.client.token.usage"]
    assert {point.attributes["gen_ai.token.type"] for point in tokens} == {"input", "output"}
    outputs = [point for point in tokens if point.attributes["gen_ai.token.type"] == "output"]
    assert sum(point.sum for point in outputs) == sum(
        span.attributes["gen_ai.usage.output_tokens"] for span in good
    )


@contextmanager
def collector() -> Iterator[tuple[str, list[str]]]:
    """A collector that takes what it gets over HTTP."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            paths.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", paths
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_run_sends_to_the_collector_that_the_environment_names(project: Project) -> None:
    project.use_script()
    with collector() as (address, paths):
        done = project.run("run", "trial", "-q", OTEL_EXPORTER_OTLP_ENDPOINT=address)
    assert done.returncode in (0, 1), done.stderr
    assert set(paths) == {"/v1/traces", "/v1/metrics"}


def test_a_collector_that_is_away_costs_no_run(project: Project) -> None:
    project.use_script()
    done = project.run("run", "trial", "-q", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode in (0, 1), done.stderr


def test_where_it_is_off_nothing_of_it_is_imported(project: Project) -> None:
    project.use_script()
    program = (
        "import sys\nfrom genworker.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted(n for n in sys.modules if n.startswith('opentelemetry.sdk')), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "run", "trial", "-q"],
        cwd=project.root,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "TRUE"}, False),
    ],
)
def test_the_standards_variables_switch_it(environment: dict[str, str], wanted: bool) -> None:
    assert is_wanted(environment) is wanted
