"""Variables that look like settings and are none: a misspelt name would be left unread in silence."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import fields

from gpu_server.config import ENV_PREFIX, SECTIONS, ClientConfig, env_name

WEB_PREFIX = f"{ENV_PREFIX}WEB_"
_TESTS_PREFIX = f"{ENV_PREFIX}TEST_"
_ENGINES_OWN = "GPU_SERVER_CUDNN_ATTENTION"
_REFERENCE = "gpu-server config --reference lists the daemon's"
_NEAR = 0.7
# What Kubernetes sets for a service that is called gpu-server.
_LINKS = re.compile(r"\w+_(SERVICE_(HOST|PORT\w*)|PORT_\d+_(TCP|UDP|SCTP)\w*)")
_ADDRESS = re.compile(r"(tcp|udp|sctp)://.*")


def unread(env: Mapping[str, str] | None = None, web: Collection[str] = ()) -> list[str]:
    """A line for each GPU_SERVER_* variable that nothing reads, with the name that may be meant; sorted.

    web: the web tier's variables; without them whatever begins with GPU_SERVER_WEB_ is left to that tier.
    An empty variable counts as unset.
    """
    env = os.environ if env is None else env
    known = {*_known(), *web}
    passed = (_TESTS_PREFIX,) if web else (_TESTS_PREFIX, WEB_PREFIX)
    return [
        _line(name, known)
        for name, value in sorted(env.items())
        if value and name.startswith(ENV_PREFIX) and not name.startswith(passed)
        if name not in known and not _is_link(name, value)
    ]  # fmt: skip


def _known() -> set[str]:
    return {_ENGINES_OWN} | {
        env_name(about.name) for kind in (*SECTIONS.values(), ClientConfig) for about in fields(kind)
    }


def _is_link(name: str, value: str) -> bool:
    return bool(_LINKS.fullmatch(name) or (name.endswith("_PORT") and _ADDRESS.fullmatch(value)))


def _line(name: str, known: Collection[str]) -> str:
    # Without the prefix, by which all of them resemble each other.
    names = [one.removeprefix(ENV_PREFIX) for one in known]
    near = difflib.get_close_matches(name.removeprefix(ENV_PREFIX), names, 1, _NEAR)
    return f"{name} is unknown and sets nothing; {f'did you mean {ENV_PREFIX}{near[0]}?' if near else _REFERENCE}"
