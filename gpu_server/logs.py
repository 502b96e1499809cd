"""Structured log lines on stderr: key=value or JSON, one line each, never with request bodies."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


def setup(level: str = "info", form: str = "text", process: str = "daemon") -> None:
    """Send this process's logs to stderr; call once per process."""
    if sys.stderr is None:
        # Closed by whoever started the process. What else is written there must not fail either.
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for as long as the process lives
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
        """One line; what is not printable is escaped, as JSON does it."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        values: dict[str, Any] = {k: v for k, v in vars(record).items() if k not in _PLAIN}
        if self._with_pid:
            values["pid"] = record.process
        if record.exc_info:
            values["trace"] = self.formatException(record.exc_info)
        level, event = record.levelname.lower(), record.getMessage()
        if self._as_json:
            known = {"time": stamp, "level": level, "process": self._process, "event": event}
            return _visible(json.dumps(known | values, default=str, ensure_ascii=False))
        pairs = "".join(f" {k}={_quote(v)}" for k, v in values.items())
        event = _visible(event.replace("\\", "\\\\"))
        return f"{stamp} {level} {self._process} {event}{pairs}"


def _quote(value: object) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    if text and text.isprintable() and not any(c in text for c in ' ="\\'):
        return text
    return _visible(json.dumps(text, ensure_ascii=False))


def _visible(text: str) -> str:
    """Text that moves no cursor and begins no line where the log is read, whatever a caller put into it."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
