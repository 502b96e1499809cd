"""What a bare `gunicorn web:app` uses in this folder; anywhere else: `gunicorn -c python:web.serving web:app`."""

from web.serving import (
    accesslog,
    bind,
    control_socket_disable,
    graceful_timeout,
    keepalive,
    logger_class,
    post_fork,
    post_worker_init,
    threads,
    timeout,
    when_ready,
    worker_class,
    worker_exit,
    workers,
)

__all__ = [
    "accesslog",
    "bind",
    "control_socket_disable",
    "graceful_timeout",
    "keepalive",
    "logger_class",
    "post_fork",
    "post_worker_init",
    "threads",
    "timeout",
    "when_ready",
    "worker_class",
    "worker_exit",
    "workers",
]
