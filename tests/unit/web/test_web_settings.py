from __future__ import annotations

import pytest

from gpu_server.errors import ConfigError
from web.settings import Settings


def test_defaults_hold_without_variables() -> None:
    assert Settings.from_env({}) == Settings()
    assert Settings().timeout_s < 30
    assert Settings().max_body_bytes >= 2_000_000


def test_variables_are_read_by_type() -> None:
    env = {
        "GPU_SERVER_WEB_TIMEOUT_S": "7",
        "GPU_SERVER_WEB_BIND": "unix:/run/x",
        "GPU_SERVER_WEB_THREADS": "",
    }
    assert Settings.from_env(env) == Settings(timeout_s=7.0, bind="unix:/run/x")


@pytest.mark.parametrize(
    ("name", "value"),
    [("TIMEOUT_S", "soon"), ("TIMEOUT_S", "0"), ("TORCH_GUARD", "maybe"), ("THREADS", "1.5")],
)
def test_a_bad_value_is_one_line_naming_the_variable(name: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.from_env({f"GPU_SERVER_WEB_{name}": value})
    assert f"GPU_SERVER_WEB_{name}" in str(caught.value)
    assert "\n" not in str(caught.value)
