"""Every metric declared once: name, kind, meaning, labels and bucket bounds; the code and docs/operations.md follow."""

from __future__ import annotations

from typing import Literal, NamedTuple

from gpu_server.wire.monitoring import SECONDS

PREFIX = "gpu_server_"
POWERS = tuple(float(2**k) for k in range(18))
"""Bucket bounds of sizes: 1 to 131072."""


class Family(NamedTuple):
    """One metric. tei: its name in Text-Embeddings-Inference, where it has one."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    tei: str = ""


def _counter(name: str, text: str, *labels: str, tei: str = "") -> Family:
    return Family(f"{PREFIX}{name}_total", "counter", text, labels, tei=tei)


def _gauge(name: str, text: str, *labels: str, tei: str = "") -> Family:
    return Family(PREFIX + name, "gauge", text, labels, tei=tei)


def _seconds(name: str, text: str, *labels: str, tei: str = "") -> Family:
    return Family(f"{PREFIX}{name}_duration_seconds", "histogram", text, labels, SECONDS, tei)


def _sizes(name: str, text: str, *labels: str, tei: str = "") -> Family:
    return Family(PREFIX + name, "histogram", text, labels, POWERS, tei)


FAMILIES = (
    _gauge("info", "1; the label says which version runs", "version"),
    _gauge("ready", "1 when a loaded engine takes batches"),
    _gauge("uptime_seconds", "seconds since the daemon started"),
    _gauge("clients", "connections of web workers and other clients"),
    _gauge("queue_requests", "requests in flight: accepted and not yet answered"),
    _gauge("queue_items", "items waiting for a batch", tei="te_queue_size"),
    _gauge("queue_tokens", "cost of the waiting items"),
    _gauge("queue_bytes", "bytes of input held"),
    _gauge("batches_in_flight", "batches the engine has"),
    _counter("engine_restarts", "engine processes started in place of one that was lost"),
    _counter("requests", "requests accepted", "model", tei="te_request_count"),
    _counter("items", "items accepted", "model"),
    _counter("success", "requests answered without error", "model", tei="te_request_success"),
    _counter("retries", "requests put back in the queue because the engine was lost", "model"),
    _counter("failures", "error replies; without a model where none was found", "model", "code", tei="te_request_failure"),
    _counter("dropped", "what was discarded without a reply that could be read", "reason"),
    _seconds("tokenize", "time to tokenise the texts of a request, in the daemon or in a web worker", "model", "where",
             tei="te_request_tokenization_duration"),
    _seconds("queue", "wait of an answered request before its first forward", "model", tei="te_request_queue_duration"),
    _seconds("inference", "time of one forward", "model", tei="te_request_inference_duration"),
    _seconds("request", "a request from receipt to reply", "model", tei="te_request_duration"),
    _sizes("batch_items", "items in one batch", "model", tei="te_batch_next_size"),
    _sizes("batch_tokens", "cost of one batch", "model", tei="te_batch_next_tokens"),
    _counter("http_requests", "HTTP requests answered by the web workers", "route", "status"),
    _seconds("http_request", "HTTP requests from receipt to answer", "route"),
    _gauge("http_in_flight", "HTTP requests in the web workers, as they last said"),
    _gauge("web_workers", "connected web workers that have reported"),
    _gauge("memory_allocated_bytes", "memory of live tensors; on a CPU, of the engine process", "device"),
    _gauge("memory_reserved_bytes", "memory the engine has taken from the device", "device"),
    _gauge("memory_peak_bytes", "most that was allocated at one time", "device"),
    _gauge("memory_limit_bytes", "most the engine may take: its budget, else the whole device", "device"),
    _gauge("memory_free_bytes", "memory of the device that no process has", "device"),
    _gauge("memory_total_bytes", "memory of the device", "device"),
    _gauge("model_memory_bytes", "memory of a model: weights, warm_up (graphs and buffers), activations (peak of a batch)",
           "model", "part"),
    _gauge("gpu_memory_used_bytes", "memory of the GPU that all processes hold (NVML)", "gpu"),
    _gauge("gpu_utilization_ratio", "part of the time in which a kernel ran, 0 to 1 (NVML)", "gpu"),
    _gauge("gpu_power_watts", "power that the GPU draws (NVML)", "gpu"),
    _gauge("gpu_temperature_celsius", "temperature of the GPU (NVML)", "gpu"),
)  # fmt: skip


def reference() -> str:
    """The families as the Markdown table of docs/operations.md."""
    lines = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for family in FAMILIES:
        labels = ", ".join(f"`{label}`" for label in family.labels)
        lines.append(f"| `{family.name}` | {family.kind} | {labels} | {family.help} |")
    return "\n".join(lines) + "\n"
