"""The web frontend's settings: each declared once, read from GPU_SERVER_WEB_* variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

from gpu_server.config import env_name, parse, setting

MODES = ("error", "warn", "off")


@dataclass(frozen=True)
class Settings:
    """What can be set; the variable of a field is GPU_SERVER_WEB_ and its name."""

    timeout_s: float = setting(
        25.0, "seconds a request may take before it is a 504; below Gunicorn's timeout", low=0.1, high=3600
    )
    max_body_bytes: int = setting(8 << 20, "bytes of a request body", low=1024, high=1 << 31)
    torch_guard: str = setting(
        "error", "what an import of torch and the like does in a worker", choices=MODES
    )
    bind: str = setting("127.0.0.1:8000", "where Gunicorn listens: host:port or unix:/path")
    workers: int = setting(
        0, "worker processes; 0 means $WEB_CONCURRENCY, else one per core, at most 16", low=0, high=1024
    )
    threads: int = setting(64, "requests a worker serves at the same time", low=1, high=1024)

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
        return cls(**given)


def variable_of(name: str) -> str:
    """The environment variable of a setting."""
    return env_name(f"web_{name}")
