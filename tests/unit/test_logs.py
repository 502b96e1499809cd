"""Log lines: one record is one line, whatever its values hold."""

from __future__ import annotations

import json
import logging
import subprocess
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


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("code", [0x00, 0x0B, 0x1B, 0x7F, 0x85, 0x9B, 0x2028, 0x202E, 0xD800, 0x1D173])
def test_what_would_move_a_terminal_s_cursor_is_escaped(code: int, as_json: bool) -> None:
    for value in (f"/a{chr(code)}[2J", f"/a b{chr(code)}[2J é"):
        text = line(f"event {chr(code)}", as_json=as_json, k=value)
        assert text.isprintable()
        assert (json.loads(text)["k"] if as_json else json.loads(text.partition(" k=")[2])) == value


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


def test_where_stderr_was_closed_lines_go_nowhere() -> None:
    code = (
        "import logging, sys; from gpu_server import logs; logs.setup();"
        "logging.getLogger('gpu_server.x').warning('lost'); print(sys.stderr.isatty())"
    )
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, code],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stdout) == (0, "False\n")
