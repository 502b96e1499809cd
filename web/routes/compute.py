"""The x-compute-* headers: what an embedding request took, in whole milliseconds as TEI reports it."""

from __future__ import annotations

from web.backend import Embedded


def compute_headers(done: Embedded) -> dict[str, str]:
    """Headers of one request."""
    total = str(round(done.total_s * 1e3))
    return {
        "x-compute-type": "gpu+optimized" if done.model.device.startswith("cuda") else "cpu",
        "x-compute-time": total,
        "x-compute-characters": str(done.characters),
        "x-compute-tokens": str(done.tokens),
        "x-total-time": total,
        "x-tokenization-time": str(round(done.tokenize_s * 1e3)),
        "x-queue-time": str(round(done.queue_s * 1e3)),
        "x-inference-time": str(round(done.compute_s * 1e3)),
    }
