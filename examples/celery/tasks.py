"""Celery tasks that use the daemon's GPU from forked workers: no solo pool, no model in the worker."""

import os

from celery import Celery

from gpu_server import Client
from gpu_server.errors import EngineCrashed, ModelLoading, Overloaded, Unavailable

app = Celery(
    "tasks",
    broker=os.environ.get("BROKER_URL", "redis://localhost"),
    backend=os.environ.get("RESULT_BACKEND"),
)
client = Client(timeout_s=120)


@app.task(
    autoretry_for=(Overloaded, Unavailable, ModelLoading, EngineCrashed), retry_backoff=True, max_retries=8
)
def embed(texts: list[str]) -> list[list[float]]:
    """Embeddings of `texts`; as bulk work it lets interactive requests go first."""
    vectors: list[list[float]] = client.embed(texts, priority=2).tolist()
    return vectors
