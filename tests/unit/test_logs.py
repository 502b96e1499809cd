"""Log lines: one record is one line, whatever its values hold."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest

from gpu_server import logs


def line(message: str, *args: object, as_json: bool = False, trace: bool = False, **extra: Any) -> str:
    record = logging.LogRecord("gpu_server.x", logging.WARNING, __file__, 1, message, args, None)
    record.created, record.msecs = 0.0, 7.0
    vars(record).update(extra)
    if trace:
        try:
            raise ValueError("first\nsecond")
        except ValueError:
            record.exc_info = sys.exc_info()
    return logs.Formatter("daemon", as_json).format(record)


def test_text_is_key_value() -> None:
    assert line("engine %s", "lost", pid=7, wait_s=0.5, what="a b") == (
        '1970-01-01T00:00:00.007Z warning daemon engine lost pid=7 wait_s=0.500 what="a b"'
    )


@pytest.mark.parametrize("value", ["", "a b", 'a"b', "a=b", "a\nb", "a\tb", "\\", "é ü"])
def test_values_that_need_it_are_quoted_and_read_back(value: str) -> None:
    quoted = line("e", k=value).partition(" k=")[2]
    assert json.loads(quoted) == value


@pytest.mark.parametrize("as_json", [False, True])
def test_nothing_breaks_the_line(as_json: bool) -> None:
    text = line("one\ntwo\rthree", as_json=as_json, trace=True, key="x\r\ny", obj=object())
    assert "\n" not in text
    assert "\r" not in text
    assert "ValueError" in text


def test_json_has_every_value() -> None:
    got = json.loads(line("lost \n", as_json=True, pid=7, wait_s=0.5))
    assert got == {
        "time": "1970-01-01T00:00:00.007Z",
        "level": "warning",
        "process": "daemon",
        "event": "lost \n",
        "pid": 7,
        "wait_s": 0.5,
    }


def test_setup_writes_to_stderr_from_its_level_on(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger("gpu_server")
    before = (root.handlers, root.level, root.propagate)
    try:
        logs.setup("warning", "json", "engine")
        logging.getLogger("gpu_server.some.module").info("quiet")
        logging.getLogger("gpu_server.some.module").warning("loud")
    finally:
        root.handlers, root.level, root.propagate = before
    out, err = capsys.readouterr()
    assert out == ""
    assert [json.loads(text)["event"] for text in err.splitlines()] == ["loud"]
