"""The loopback port: asks the loop, and never answers for it."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from gpu_server.daemon import scrape
from gpu_server.daemon.scrape import ScrapePort
from gpu_server.errors import EndpointError


@pytest.fixture
def woken() -> threading.Event:
    """Set when a scrape waits."""
    return threading.Event()


@pytest.fixture
def port(woken: threading.Event) -> Iterator[ScrapePort]:
    made = ScrapePort(0, woken.set)
    yield made
    made.close()


def get(port: ScrapePort, path: str = "/metrics") -> tuple[int, str, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port.port}{path}", timeout=10) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, "", ""


def test_a_scrape_gets_what_the_loop_makes(port: ScrapePort, woken: threading.Event) -> None:
    answers: list[tuple[int, str, str]] = []
    asking = threading.Thread(target=lambda: answers.append(get(port)))
    asking.start()
    assert woken.wait(10)
    port.collect(lambda: "up 1\n")
    asking.join(10)
    assert answers == [(200, scrape.CONTENT_TYPE, "up 1\n")]


def test_any_other_path_is_not_there(port: ScrapePort, woken: threading.Event) -> None:
    assert get(port, "/")[0] == 404
    assert not woken.is_set()


def test_a_loop_that_does_not_answer_is_a_503(port: ScrapePort, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrape, "ANSWER_LIMIT_S", 0.01)
    assert get(port)[0] == 503


def test_a_port_that_is_taken_is_named(port: ScrapePort) -> None:
    with pytest.raises(EndpointError, match=rf"cannot serve metrics at 127\.0\.0\.1:{port.port}"):
        ScrapePort(port.port, lambda: None)
