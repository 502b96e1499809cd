"""Spans of a request, in memory: names, parents, times, and what the daemon gets as the caller's trace."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from flask.testing import FlaskClient
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from gpu_server.client import Client
from gpu_server.errors import MissingDependency
from gpu_server.testing import FakeServer
from gpu_server.wire import RequestHeader, Tensors
from web import create_app, tracing
from web.settings import Settings

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
UNSAMPLED = PARENT[:-2] + "00"


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "process_tracer", lambda: provider.get_tracer("test"))
    return exporter


@pytest.fixture
def traced(client: Client, exported: InMemorySpanExporter) -> FlaskClient:
    return create_app(client, Settings(timeout_s=5, tracing=True)).test_client()


def spans(exported: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exported.get_finished_spans()}


def test_a_request_and_its_parts(traced: FlaskClient, exported: InMemorySpanExporter) -> None:
    answer = traced.post("/embed", json={"inputs": "a b"}, headers={"traceparent": PARENT})
    assert answer.status_code == 200
    found = spans(exported)
    assert set(found) == {"POST /embed", "tokenize", "queue", "compute"}
    server = found["POST /embed"]
    assert server.kind == SpanKind.SERVER
    assert server.parent is not None
    assert f"{server.parent.trace_id:032x}-{server.parent.span_id:016x}" == PARENT[3:52]
    assert server.attributes is not None
    assert server.attributes["http.route"] == "/embed"
    assert server.attributes["http.response.status_code"] == 200
    assert server.attributes["gpu_server.request_id"] == answer.headers["x-request-id"] == PARENT[3:35]
    parts = [found[name] for name in ("tokenize", "queue", "compute")]
    assert all(part.parent is not None and part.parent.span_id == server.context.span_id for part in parts)
    times = [moment for part in parts for moment in (part.start_time, part.end_time)]
    assert times == sorted(times)
    assert server.start_time <= times[0]


def test_the_daemon_is_told_the_server_s_span_as_parent(
    traced: FlaskClient, exported: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    real = FakeServer._answer

    def spy(self: FakeServer, header: RequestHeader, inputs: Tensors) -> Any:
        seen.append(header.traceparent)
        return real(self, header, inputs)

    monkeypatch.setattr(FakeServer, "_answer", spy)
    traced.post("/embed", json={"inputs": "a"})
    context = spans(exported)["POST /embed"].context
    sent = f"00-{context.trace_id:032x}-{context.span_id:016x}-"
    assert [given.startswith(sent) for given in seen if given] == [True]


def test_an_error_and_a_route_that_is_none(traced: FlaskClient, exported: InMemorySpanExporter) -> None:
    assert traced.post("/embed", json={"inputs": 1.5}).status_code == 422
    assert traced.get("/nothing/of/ours").status_code == 404
    bad, unknown = exported.get_finished_spans()
    assert (bad.name, bad.status.status_code) == ("POST /embed", StatusCode.UNSET)
    assert unknown.name == "GET"


def test_a_daemon_that_is_down_is_an_error_span(own_endpoint: str, exported: InMemorySpanExporter) -> None:
    with Client(own_endpoint, timeout_s=1) as client:
        http = create_app(client, Settings(timeout_s=1, tracing=True)).test_client()
        assert http.post("/embed", json={"inputs": "a"}).status_code == 503
    assert spans(exported)["POST /embed"].status.status_code == StatusCode.ERROR


def test_what_the_caller_does_not_sample_is_not_exported(
    traced: FlaskClient, exported: InMemorySpanExporter
) -> None:
    assert traced.post("/embed", json={"inputs": "a"}, headers={"traceparent": UNSAMPLED}).status_code == 200
    assert exported.get_finished_spans() == ()


def test_off_by_default_and_named_when_missing(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    assert create_app(client, Settings()).test_client().get("/livez").status_code == 200
    with pytest.raises(MissingDependency, match=r"GPU_SERVER_WEB_TRACING .*\[otel\]"):
        create_app(client, Settings(tracing=True))
