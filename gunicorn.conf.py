"""What a bare `gunicorn web:app` uses in this folder; anywhere else: `gunicorn -c python:web.serving web:app`."""

from web.serving import (
    bind,
    control_socket_disable,
    graceful_timeout,
    keepalive,
    post_fork,
    post_worker_init,
    threads,
    timeout,
    worker_class,
    workers,
)

__all__ = [
    "bind",
    "control_socket_disable",
    "graceful_timeout",
    "keepalive",
    "post_fork",
    "post_worker_init",
    "threads",
    "timeout",
    "worker_class",
    "workers",
]
