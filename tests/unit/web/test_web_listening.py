from __future__ import annotations

import pytest

from gpu_server.errors import ConfigError
from web.listening import addresses
from web.settings import Settings


@pytest.mark.parametrize(
    "bind",
    [
        "127.0.0.1:8000",
        "[::1]:0",
        ":8000",
        "tcp://gpu-1:65535",
        "unix:/run/x.sock",
        "unix:///run/x",
        "fd://3",
    ],
)
def test_what_gunicorn_can_listen_on(bind: str) -> None:
    assert addresses(Settings(bind=bind)) == [bind]


@pytest.mark.parametrize(
    "bind", ["foo", "", "localhost", "host:http", "::1:8000", "a:65536", "unix:", "a:1,b"]
)
def test_what_it_never_can_is_refused(bind: str) -> None:
    with pytest.raises(ConfigError, match=r"GPU_SERVER_WEB_BIND: '.*' is not host:port or unix:/path"):
        addresses(Settings(bind=bind))


def test_several_and_that_of_the_metrics() -> None:
    assert addresses(Settings(bind="a:1, unix:/x", metrics_bind="b:2")) == ["a:1", "unix:/x", "b:2"]
    assert addresses(Settings(bind="a:1", metrics_bind="off")) == ["a:1"]
    with pytest.raises(ConfigError, match="GPU_SERVER_WEB_METRICS_BIND"):
        addresses(Settings(metrics_bind="b:70000"))
