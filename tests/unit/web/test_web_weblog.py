"""Gunicorn's log in one form with the daemon's: events, the app's lines, requests with their ids, and the autoscaler."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config

from gpu_server.errors import ConfigError
from web import autoscale
from web.context import request_id, traceparent
from web.settings import Settings
from web.weblog import APP_LOGGERS, Logger

NAMES = (*APP_LOGGERS, "gunicorn.error", "gunicorn.access")


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    logs = [logging.getLogger(name) for name in NAMES]
    before = [(log, list(log.handlers), log.level, log.propagate) for log in logs]
    yield
    for log, handlers, level, propagate in before:
        log.handlers, log.propagate = handlers, propagate
        log.setLevel(level)


def made(**settings: Any) -> Logger:
    config = Config()
    for name, value in settings.items():
        config.set(name, value)
    return Logger(config)


def environ(**extra: str) -> dict[str, Any]:
    given = {"REQUEST_METHOD": "POST", "PATH_INFO": "/embed", "QUERY_STRING": "secret=1"}
    return given | {"RAW_URI": "/embed?secret=1", "SERVER_PROTOCOL": "HTTP/1.1"} | extra


ASKED = SimpleNamespace(headers=[])
ANSWERED = SimpleNamespace(status="200 OK", sent=17, headers=[])


def test_gunicorns_and_the_apps_lines_have_one_form(capsys: pytest.CaptureFixture[str]) -> None:
    made().info("Listening at: %s (%s)", "http://127.0.0.1:8000", 7)
    logging.getLogger("web.guard").warning("careful", extra={"package": "jax"})
    lines = capsys.readouterr().err.splitlines()
    assert " info web Listening at: http://127.0.0.1:8000 (7) pid=" in lines[0]
    assert " warning web careful package=jax pid=" in lines[1]


def test_a_request_is_one_line_with_its_ids(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GPU_SERVER_WEB_LOG_FORMAT", "json")
    log = made(accesslog="-")
    asked = environ(HTTP_X_REQUEST_ID="r-17")
    request_id(asked)
    trace = traceparent(asked)[3:35]
    log.access(ANSWERED, ASKED, asked, timedelta(milliseconds=12.5))
    line = json.loads(capsys.readouterr().out)
    assert line | {"time": "", "pid": 0} == {
        "time": "", "level": "info", "process": "web", "event": "request", "method": "POST", "path": "/embed",
        "status": "200", "bytes": 17, "took_ms": 12.5, "request_id": "r-17", "trace": trace, "pid": 0,
    }  # fmt: skip


def test_no_requests_by_default_and_a_format_of_one_s_own(capsys: pytest.CaptureFixture[str]) -> None:
    made().access(ANSWERED, ASKED, environ(), timedelta(0))
    assert capsys.readouterr().out == ""
    made(accesslog="-", access_log_format="%(m)s %(s)s").access(ANSWERED, ASKED, environ(), timedelta(0))
    assert capsys.readouterr().out == "POST 200\n"


def test_the_autoscaler_s_command_and_bounds() -> None:
    command = autoscale.command(7, Settings(autoscale_min=2, autoscale_max=8, threads=16, log_format="json"))
    assert command[1:] == [
        "-m", "gpu_server", "autoscale", "--pid", "7", "--min", "2", "--max", "8", "--threads", "16",
        "--log-format", "json",
    ]  # fmt: skip
    autoscale.check(Settings(autoscale_min=5))
    with pytest.raises(ConfigError, match="GPU_SERVER_WEB_AUTOSCALE_MIN is 5"):
        autoscale.check(Settings(autoscale_min=5, autoscale_max=4))
