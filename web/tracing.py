"""OpenTelemetry export of every request: one server span, and below it tokenize, queue and compute. Needs the extra otel."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import TYPE_CHECKING

from gpu_server import __version__
from gpu_server.errors import MissingDependency
from web.context import request_id
from web.counts import ROUTE
from web.settings import variable_of
from web.spans import SPANS, Spans

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from opentelemetry.trace import Span, Tracer, TracerProvider

SERVICE = "gpu-server-web"
_setting_up = threading.Lock()


class TracedApp:
    """A WSGI app whose requests are exported. The caller's trace is continued, and the daemon's lines are under it.

    tracer: None takes the process's provider, which is set up for OTLP by the OTEL_* variables if the app has set up none.
    Raises MissingDependency.
    """

    def __init__(self, inner: WSGIApplication, tracer: Tracer | None = None) -> None:
        if find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None:
            raise MissingDependency(
                f"{variable_of('tracing')} needs OpenTelemetry; install gpu-server with its otel extra: "
                "pip install '.[otel]' in the clone"
            )
        self._inner = inner
        self._tracer = tracer

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        # On the first request and not before: what exports has a thread, and Gunicorn forks the app under --preload.
        tracer = self._tracer = self._tracer or process_tracer()
        span = _begin(tracer, environ)
        spans = environ[SPANS] = Spans()
        status = 500

        def start(line: str, headers: list[tuple[str, str]], *rest: object) -> Callable[[bytes], object]:
            nonlocal status
            status = int(line[:3])
            return start_response(line, headers, *rest)  # type: ignore[arg-type]

        try:
            return self._inner(environ, start)
        finally:
            _end(tracer, span, spans, environ, status)


def process_tracer() -> Tracer:
    """The tracer of this process's provider; one that exports by OTLP over HTTP where the app has set up none."""
    from opentelemetry import trace

    with _setting_up:
        if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            trace.set_tracer_provider(_exporting())
    return trace.get_tracer("gpu_server.web", __version__)


def _exporting() -> TracerProvider:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider as Exporting
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create()
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: SERVICE}))
    provider = Exporting(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def _begin(tracer: Tracer, environ: WSGIEnvironment) -> Span:
    """The server's span, which takes the caller's place as the parent of what follows."""
    from opentelemetry import trace
    from opentelemetry.trace.propagation import tracecontext

    context = tracecontext.TraceContextTextMapPropagator()
    given = {name: environ.get(f"HTTP_{name.upper()}", "") for name in ("traceparent", "tracestate")}
    method = environ.get("REQUEST_METHOD", "")
    span = tracer.start_span(
        method,
        context.extract({name: value for name, value in given.items() if value}),
        kind=trace.SpanKind.SERVER,
        attributes={"http.request.method": method, "url.path": environ.get("PATH_INFO", "")},
    )
    carrier: dict[str, str] = {}
    context.inject(carrier, trace.set_span_in_context(span))
    environ["HTTP_TRACEPARENT"] = carrier["traceparent"]
    return span


def _end(tracer: Tracer, span: Span, spans: Spans, environ: WSGIEnvironment, status: int) -> None:
    from opentelemetry import trace

    context = trace.set_span_in_context(span)
    for part in spans.parts:
        child = tracer.start_span(part.name, context, attributes=part.facts, start_time=part.begun_ns)
        child.end(part.ended_ns)
    route = environ.get(ROUTE, "")
    if route:
        span.update_name(f"{environ.get('REQUEST_METHOD', '')} {route}")
        span.set_attribute("http.route", route)
    span.set_attribute("http.response.status_code", status)
    span.set_attribute("gpu_server.request_id", request_id(environ))
    if status >= 500:
        span.set_status(trace.StatusCode.ERROR)
    span.end()
