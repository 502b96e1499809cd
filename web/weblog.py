"""Gunicorn's log as structured lines: its own events, those of the app, and, where asked for, every request."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

from gunicorn import glogging
from gunicorn.config import AccessLogFormat, Config

from gpu_server import logs
from web.context import known_ids
from web.settings import Settings

APP_LOGGERS = ("gpu_server", "web")


class Logger(glogging.Logger):  # type: ignore[misc]
    """Lines as the daemon writes them. An access log with a format of your own keeps it."""

    def setup(self, cfg: Config) -> None:
        """Put the lines of Gunicorn, the app and this package into one form."""
        super().setup(cfg)
        form = Settings.from_env().log_format
        self._structured = cfg.access_log_format == AccessLogFormat.default
        formatter = logs.Formatter("web", as_json=form == "json", with_pid=True)
        gunicorns = [self.error_log, *([self.access_log] if self._structured else [])]
        for handler in [handler for log in gunicorns for handler in log.handlers]:
            if getattr(handler, "_gunicorn", False):
                handler.setFormatter(formatter)
        for name in APP_LOGGERS:
            log = logging.getLogger(name)
            log.handlers = list(self.error_log.handlers)
            log.setLevel(self.loglevel)
            log.propagate = False

    def access(self, resp: Any, req: Any, environ: dict[str, Any], request_time: timedelta) -> None:
        """One line for a request that was answered."""
        if not self._structured:
            super().access(resp, req, environ, request_time)
        elif self._access_log_enabled:
            self.access_log.info("request", extra=_facts(resp, environ, request_time))


def _facts(resp: Any, environ: dict[str, Any], request_time: timedelta) -> dict[str, Any]:
    """The path without its query, which may hold what is nobody's business."""
    return {
        "method": environ.get("REQUEST_METHOD", ""),
        "path": environ.get("PATH_INFO", ""),
        "status": str(resp.status).partition(" ")[0],
        "bytes": getattr(resp, "sent", 0) or 0,
        "took_ms": round(request_time.total_seconds() * 1e3, 3),
        **known_ids(environ),
    }
