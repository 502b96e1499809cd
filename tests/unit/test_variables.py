"""Misspelt variables are named; those that belong to somebody else are not."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from gpu_server.variables import unread
from web.settings import Settings, variable_of

ROOT = Path(__file__).parents[2]
WEB = [variable_of(about.name) for about in fields(Settings)]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("GPU_SERVER_MAX_ITMES", "GPU_SERVER_MAX_ITEMS"),
        ("GPU_SERVER_LOGLEVEL", "GPU_SERVER_LOG_LEVEL"),
        ("GPU_SERVER_ENDPIONT", "GPU_SERVER_ENDPOINT"),
        ("GPU_SERVER_CURVE_CLIENT_KEYFILE", "GPU_SERVER_CURVE_CLIENT_KEY_FILE"),
    ],
)
def test_a_misspelt_name_comes_with_the_one_that_is_meant(name: str, meant: str) -> None:
    assert unread({name: "1"}) == [f"{name} is unknown and sets nothing; did you mean {meant}?"]


def test_a_name_that_resembles_nothing_is_named_too() -> None:
    lines = unread({"GPU_SERVER_ZZZ": "1", "GPU_SERVER_DTYPE": "float16"})
    assert [line.split()[0] for line in lines] == ["GPU_SERVER_DTYPE", "GPU_SERVER_ZZZ"]
    assert all("did you mean" not in line and "config --reference" in line for line in lines)


def test_every_variable_that_is_read_somewhere_is_known() -> None:
    literals = {
        name
        for top in ("gpu_server", "scripts", "tests", "examples", "containers")
        for path in (ROOT / top).rglob("*")
        if path.suffix in (".py", ".service", ".Dockerfile") and path.name != Path(__file__).name
        for name in re.findall(
            r"(?:environ\S*\(\"|environ\[\"|Environment=|^ENV )(GPU_SERVER_\w+)", path.read_text()
        )
    }
    assert {"GPU_SERVER_CUDNN_ATTENTION", "GPU_SERVER_ENDPOINT", "GPU_SERVER_TEST_MODEL"} <= literals
    assert unread(dict.fromkeys(literals, "1"), WEB) == []


def test_every_web_variable_is_left_to_the_web_tier() -> None:
    assert unread(dict.fromkeys(WEB, "1")) == unread(dict.fromkeys(WEB, "1"), WEB) == []
    typo = {"GPU_SERVER_WEB_WORKRES": "4"}
    assert unread(typo) == []
    assert unread(typo, WEB) == [
        "GPU_SERVER_WEB_WORKRES is unknown and sets nothing; did you mean GPU_SERVER_WEB_WORKERS?"
    ]


def test_what_kubernetes_sets_for_a_service_of_that_name_is_no_typo() -> None:
    links = {
        "GPU_SERVER_SERVICE_HOST": "10.0.0.1",
        "GPU_SERVER_SERVICE_PORT": "8000",
        "GPU_SERVER_SERVICE_PORT_HTTP": "8000",
        "GPU_SERVER_PORT": "tcp://10.0.0.1:8000",
        "GPU_SERVER_PORT_8000_TCP": "tcp://10.0.0.1:8000",
        "GPU_SERVER_PORT_8000_TCP_ADDR": "10.0.0.1",
        "GPU_SERVER_WEB_SERVICE_HOST": "10.0.0.2",
        "GPU_SERVER_WEB_PORT": "tcp://10.0.0.2:8000",
    }
    assert unread(links) == unread(links, WEB) == []
    assert len(unread({"GPU_SERVER_PORT": "8000"})) == 1


def test_other_peoples_and_unset_variables_are_no_typos() -> None:
    assert unread({"GPU_SERVER_ZZZ": "", "PATH": "/bin", "GPU_SERVERS": "2", "TASK": "x"}) == []
