"""Structured log lines on stderr: key=value or JSON, one line each, never with request bodies."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, TextIO

_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


def setup(level: str = "info", form: str = "text", process: str = "daemon") -> None:
    """Send this process's logs to stderr; call once per process."""
    handler = OverABar(sys.stderr) if sys.stderr.isatty() else logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter(process, as_json=form == "json"))
    root = logging.getLogger("gpu_server")
    root.handlers = [handler]
    root.setLevel(level.upper())
    root.propagate = False


class OverABar(logging.StreamHandler[TextIO]):
    """Lines on a terminal, where a load's bar may stand that has no line end yet."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, in the place of the bar."""
        return f"\r\033[K{super().format(record)}"


class Formatter(logging.Formatter):
    """`time level process event key=value …`; the `extra` of a record gives the keys, `with_pid` adds the process id."""

    def __init__(self, process: str, as_json: bool, with_pid: bool = False) -> None:
        super().__init__()
        self._process = process
        self._as_json = as_json
        self._with_pid = with_pid

    def format(self, record: logging.LogRecord) -> str:
        """One line; line breaks inside values are escaped."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        values: dict[str, Any] = {k: v for k, v in vars(record).items() if k not in _PLAIN}
        if self._with_pid:
            values["pid"] = record.process
        if record.exc_info:
            values["trace"] = self.formatException(record.exc_info)
        level, event = record.levelname.lower(), record.getMessage()
        if self._as_json:
            known = {"time": stamp, "level": level, "process": self._process, "event": event}
            return json.dumps(known | values, default=str, ensure_ascii=False)
        pairs = "".join(f" {k}={_quote(v)}" for k, v in values.items())
        return f"{stamp} {level} {self._process} {_escape(event)}{pairs}"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")


def _quote(value: object) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    if text and not any(c in text for c in ' ="\\\n\r\t'):
        return text
    return json.dumps(text, ensure_ascii=False)
