"""A span for each call, and metrics, for OpenTelemetry: by the names of the GenAI semantic conventions.

Hears the journal's events, like the terminal; a run decides nothing by it. Where no address is named in the
environment nothing is imported, and a run costs what it costs without. No text of a prompt or an answer goes
out, only names, counts and times.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Mapping
from typing import Any

from genworker.core.events import (
    Abandoned,
    Answered,
    CallFailed,
    Calling,
    CallStopped,
    Event,
    Retried,
    RowFailed,
)
from genworker.core.stages import Stage

ADDRESSES = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
)
"""The standard's own variables: one of them switches it on."""
EXTRA = "pip install 'genworker[otel]'"
LAST_S = 5.0
"""How long the end of a run waits for a collector that does not answer."""
OPERATION = "chat"
_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_TOKENS = tuple(4**n for n in range(14))


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Whether the environment names a collector and does not switch it off."""
    off = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return not off and any(environment.get(name) for name in ADDRESSES)


class Telemetry:
    """Hears a run's events and tells a tracer and a meter.

    Args:
        tracer, meter: OpenTelemetry's.
        kinds: each endpoint's kind: the provider, in the conventions' words.
        cohort: its id, on every span.
    """

    def __init__(self, tracer: Any, meter: Any, kinds: Mapping[str, str], cohort: str) -> None:
        self._tracer = tracer
        self._kinds, self._cohort = kinds, cohort
        self._open: dict[tuple[Stage, str], tuple[Any, dict[str, Any]]] = {}
        self._duration = meter.create_histogram(
            "gen_ai.client.operation.duration",
            unit="s",
            description="GenAI operation duration",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage",
            unit="{token}",
            description="Number of input and output tokens used",
            explicit_bucket_boundaries_advisory=_TOKENS,
        )

    def hear(self, event: Event) -> None:
        """Begin a span at a call, and end it with what came."""
        if isinstance(event, Calling):
            self._begin(event)
        elif isinstance(event, Answered):
            self._answered(event)
        elif isinstance(event, Retried | CallStopped | CallFailed):
            self._end(event.stage, event.gen_id, event.kind, event.latency_s, status=event.status)
        elif isinstance(event, RowFailed | Abandoned):
            kind = event.kind if isinstance(event, RowFailed) else "Abandoned"
            self._end(event.stage, event.gen_id, kind, None)

    def close(self) -> None:
        """End what is open: the run has ended."""
        for stage, gen_id in list(self._open):
            self._end(stage, gen_id, "Abandoned", None)

    def _begin(self, event: Calling) -> None:
        from opentelemetry.trace import SpanKind

        endpoint = event.endpoint or ""
        shared = {
            "gen_ai.operation.name": OPERATION,
            "gen_ai.provider.name": self._kinds.get(endpoint, endpoint),
            "gen_ai.request.model": event.model or "",
        }
        own = {
            "genworker.cohort": self._cohort,
            "genworker.endpoint": endpoint,
            "genworker.stage": event.stage.value,
            "genworker.gen_id": event.gen_id,
            "genworker.model_id": event.model_id or "",
            "genworker.attempt": event.attempt,
        }
        name = f"{OPERATION} {event.model}" if event.model else OPERATION
        span = self._tracer.start_span(name, kind=SpanKind.CLIENT, attributes={**shared, **own})
        self._open[event.stage, event.gen_id] = span, shared

    def _answered(self, event: Answered) -> None:
        span, shared = self._open.pop((event.stage, event.gen_id), (None, None))
        if span is None or shared is None:
            return  # of a batch: it was asked in a file
        if event.model:
            shared["gen_ai.response.model"] = event.model
            span.set_attribute("gen_ai.response.model", event.model)
        if event.finish_reason is not None:
            span.set_attribute("gen_ai.response.finish_reasons", (event.finish_reason.value,))
        if event.request_id:
            span.set_attribute("gen_ai.response.id", event.request_id)
        if event.cost_usd is not None:
            span.set_attribute("genworker.cost_usd", float(event.cost_usd))
        for kind, count in (("input", event.usage.input_tokens), ("output", event.usage.output_tokens)):
            if count is not None:
                span.set_attribute(f"gen_ai.usage.{kind}_tokens", count)
                self._tokens.record(count, {**shared, "gen_ai.token.type": kind})
        if event.latency_s is not None:
            self._duration.record(event.latency_s, shared)
        span.end()

    def _end(
        self, stage: Stage, gen_id: str, kind: str, latency_s: float | None, *, status: int | None = None
    ) -> None:
        span, shared = self._open.pop((stage, gen_id), (None, None))
        if span is None or shared is None:
            return
        from opentelemetry.trace import Status, StatusCode

        error = kind if status is None else str(status)
        span.set_attribute("error.type", error)
        if status is not None:
            span.set_attribute("http.response.status_code", status)
        span.set_status(Status(StatusCode.ERROR))
        if latency_s is not None:
            self._duration.record(latency_s, {**shared, "error.type": error})
        span.end()


class Export:
    """Telemetry that goes to the collector which the environment names.

    Raises:
        ImportError: the extra ``otel`` is not installed.
    """

    def __init__(self, kinds: Mapping[str, str], cohort: str, version: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create({"service.name": "genworker", "service.version": version})
        self._traces = TracerProvider(resource=resource)
        self._traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._metrics = MeterProvider(
            resource=resource, metric_readers=[PeriodicExportingMetricReader(OTLPMetricExporter())]
        )
        self.telemetry = Telemetry(
            self._traces.get_tracer("genworker", version),
            self._metrics.get_meter("genworker", version),
            kinds,
            cohort,
        )
        self.hear = self.telemetry.hear

    def close(self) -> None:
        """Send what is left; a collector that is away holds the end of a run up for `LAST_S` at most."""
        self.telemetry.close()

        def shut_down() -> None:
            for provider in (self._traces, self._metrics):
                with contextlib.suppress(Exception):
                    provider.shutdown()

        thread = threading.Thread(target=shut_down, name="genworker-otel", daemon=True)
        thread.start()
        thread.join(LAST_S)


def export_to_collector(kinds: Mapping[str, str], cohort: str, version: str) -> Export | None:
    """Telemetry where the environment asks for it; ``None`` where it does not.

    Raises:
        ImportError: it does, and the extra is not installed.
    """
    return Export(kinds, cohort, version) if is_wanted(os.environ) else None
