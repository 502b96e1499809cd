"""The web frontend's settings: each declared once, read from GPU_SERVER_WEB_* variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

from gpu_server.config import env_name, parse, setting

MODES = ("error", "warn", "off")
SIMILARITY = "sentence-similarity"


@dataclass(frozen=True)
class Settings:
    """What can be set; the variable of a field is GPU_SERVER_WEB_ and its name."""

    timeout_s: float = setting(
        25.0, "seconds a request may take before it is a 504; below Gunicorn's timeout", low=0.1, high=3600
    )
    max_body_bytes: int = setting(8 << 20, "bytes of a request body", low=1024, high=1 << 31)
    max_answer_bytes: int = setting(
        128 << 20,
        "bytes of outputs in one answer, with items of unequal length filled up; JSON takes about three times as many",
        low=1 << 20,
        high=1 << 31,
    )
    torch_guard: str = setting(
        "error", "what an import of torch and the like does in a worker", choices=MODES
    )
    bind: str = setting("127.0.0.1:8000", "where Gunicorn listens: host:port or unix:/path")
    workers: int = setting(
        0, "worker processes; 0 means $WEB_CONCURRENCY, else one per core, at most 16", low=0, high=1024
    )
    threads: int = setting(64, "requests a worker serves at the same time", low=1, high=1024)
    cpu_affinity: str = setting(
        "off",
        "auto keeps each worker on one core, which saves CPU where its threads are busy; for a machine of its own",
        choices=("off", "auto"),
    )
    max_client_batch_size: int = setting(
        2048, "inputs of one request; more than the daemon's max_items are sent in parts", low=1, high=1 << 20
    )
    max_client_tokens: int = setting(0, "tokens of one request; 0 sets no limit", low=0, high=1 << 30)
    max_concurrent_requests: int = setting(
        0, "requests a worker has in flight before it answers 429; 0 sets no limit", low=0, high=1 << 20
    )
    api_keys: str = setting("", "keys, with commas between: key, name:key or name:sha256:hex digest of a key")
    api_keys_file: str = setting("", "a file of such keys, one a line; lines that begin with # do not count")
    cors_allow_origins: str = setting(
        "", "origins whose pages may call, with commas between; * means any, empty none"
    )
    metrics_bind: str = setting(
        "",
        "where /metrics and /dashboard are served: host:port of their own listener; empty: where all else is, off: nowhere",
        pattern=r"|off|.+:\d+",
    )
    log_format: str = setting(
        "text",
        "form of the log's lines: text is key=value, gunicorn leaves them to Gunicorn",
        choices=("text", "json", "gunicorn"),
    )
    access_log: bool = setting(False, "log every request, with its ids and its time")
    tracing: bool = setting(False, "export OpenTelemetry spans; needs the extra otel")
    autoscale_max: int = setting(
        0, "most workers that load may bring; 0 keeps their number as it is", low=0, high=1024
    )
    autoscale_min: int = setting(1, "fewest workers that remain without load", low=1, high=1024)
    task: str = setting(
        "", "what POST / does for an embedding model: embed it, or compare", choices=("", SIMILARITY)
    )

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> Settings:
        """Settings of the environment; an empty variable counts as unset. Raises ConfigError naming the variable."""
        env = os.environ if env is None else env
        types = get_type_hints(cls)
        given: dict[str, Any] = {}
        for about in fields(cls):
            variable = variable_of(about.name)
            if raw := env.get(variable):
                given[about.name] = parse(raw, types[about.name], variable, about.metadata)
        # The variable by which Inference Endpoints tell Text-Embeddings-Inference the same.
        if env.get("TASK") == SIMILARITY:
            given.setdefault("task", SIMILARITY)
        return cls(**given)


def variable_of(name: str) -> str:
    """The environment variable of a setting."""
    return env_name(f"web_{name}")


VARIABLES = tuple(variable_of(about.name) for about in fields(Settings))
"""Every variable that this tier reads under its prefix."""
