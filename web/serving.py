"""Gunicorn's settings and hooks for this app: `gunicorn -c python:web.serving web:app`."""

from __future__ import annotations

import os
import sys
from math import ceil
from typing import Any

from gpu_server import variables
from gpu_server.errors import ConfigError, TorchGuardError
from web import affinity, autoscale, guard, listening, threaded
from web.auth import Keys
from web.settings import VARIABLES, Settings
from web.spreading import Spreading

BOOT_ERROR = 3
"""Exit status by which a worker tells Gunicorn to stop instead of starting it again."""

try:
    settings = Settings.from_env()
    autoscale.check(settings)
    bind = listening.addresses(settings)
    Keys.from_settings(settings)
except ConfigError as error:
    sys.stderr.write(f"gpu-server web: {error}\n")
    raise SystemExit(error.exit_code) from None

# Processes give the parallelism; a tokenizer's thread pool made before the fork hangs in the child.
os.environ["TOKENIZERS_PARALLELISM"] = "false"


def worker_count(wanted: int, concurrency: str, cores: int) -> int:
    """Workers to start: what is set, else $WEB_CONCURRENCY, else one per core, at most 16."""
    if wanted:
        return wanted
    return int(concurrency) if concurrency.isdecimal() and int(concurrency) else min(cores, 16)


workers = worker_count(settings.workers, os.environ.get("WEB_CONCURRENCY", ""), len(os.sched_getaffinity(0)))
if settings.autoscale_max:
    workers = min(max(workers, settings.autoscale_min), settings.autoscale_max)
worker_class = "gthread"
threads = settings.threads
logger_class = "gunicorn.glogging.Logger" if settings.log_format == "gunicorn" else "web.weblog.Logger"
accesslog = "-" if settings.access_log else None
timeout = max(30, ceil(settings.timeout_s) + 5)
graceful_timeout = timeout
# Longer than the usual proxy's, so that the proxy closes idle connections and never meets a closing one.
keepalive = 75
# Nothing here needs it, and its thread beside fork() has hung workers.
control_socket_disable = True
spreading = Spreading()


def on_starting(server: Any) -> None:
    """Name the variables that nothing reads; let a worker that cannot boot end Gunicorn by its own exit status."""
    for line in variables.unread(web=VARIABLES):
        server.log.warning(line)
    stop = server.stop

    def stop_whatever_ends(graceful: bool = True) -> None:
        # No exit status is -1: a second such worker, reaped here, would raise out of the stop that the first one began.
        server.WORKER_BOOT_ERROR = server.APP_LOAD_ERROR = -1
        stop(graceful)

    server.stop = stop_whatever_ends


def when_ready(server: Any) -> None:
    """Let the workers follow the load, where that is set."""
    if settings.autoscale_max:
        autoscale.start(server.pid, settings)


def pre_fork(server: Any, worker: Any) -> None:
    """Choose the worker's place among the others, and its core where each is to have one."""
    spreading.assign(server, worker)
    if settings.cpu_affinity == "auto":
        affinity.choose(server, worker)


def post_fork(server: Any, worker: Any) -> None:
    """Turn the torch guard on before the app is loaded, so that the traceback shows who imports torch."""
    if settings.cpu_affinity == "auto":
        affinity.keep(worker)
    try:
        guard.install(settings.torch_guard)
    except TorchGuardError as error:
        worker.log.critical("%s", error)
        raise SystemExit(BOOT_ERROR) from None


def post_worker_init(worker: Any) -> None:
    """Warn about settings that make a slow answer a killed worker, or every request a new connection; take part."""
    for line in warnings_for(worker.cfg.worker_class_str, worker.cfg.timeout, settings.timeout_s):
        worker.log.warning(line)
    threaded.mend(worker)
    spreading.follow(worker)


def pre_request(worker: Any, req: Any) -> None:
    """Let a connection end with this request where the worker has too many."""
    spreading.begin(worker, req)


def child_exit(server: Any, worker: Any) -> None:
    """Forget the worker's connections."""
    spreading.release(worker)


def worker_exit(server: Any, worker: Any) -> None:
    """Tell the daemon what an ending worker has not told it yet."""
    shared = getattr(getattr(worker, "wsgi", None), "extensions", {}).get("gpu_server")
    if shared is not None:
        shared.counts.flush()


def warnings_for(worker_class: str, timeout: int, web_timeout_s: float) -> list[str]:
    """What is wrong with a combination of settings, one line each."""
    lines = []
    if worker_class == "sync":
        lines.append("worker class sync serves one request at a time and keeps no connection; use gthread")
    if 0 < timeout <= web_timeout_s:
        lines.append(
            f"Gunicorn's timeout of {timeout} s is not above the web timeout of {web_timeout_s:g} s: "
            "a slow answer may kill a worker; raise --timeout or lower GPU_SERVER_WEB_TIMEOUT_S"
        )
    return lines
