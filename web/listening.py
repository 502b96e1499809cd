"""Where Gunicorn listens, checked before it tries: at an address that can never be, it would try for five seconds."""

from __future__ import annotations

import re

from gpu_server.errors import ConfigError
from web.settings import Settings, variable_of

# A name that cannot be resolved is Gunicorn's to find: later it may be.
_ADDRESS = re.compile(r"unix:.+|fd://\d+|(?:tcp://)?(?:\[[^\]]*\]|[^:\[\]]*):(?P<port>\d+)")


def addresses(settings: Settings) -> list[str]:
    """What Gunicorn binds. Raises ConfigError on what is no address."""
    listed = [address.strip() for address in settings.bind.split(",")]
    found = [_checked("bind", address) for address in listed if address] or [_checked("bind", "")]
    if ":" in settings.metrics_bind:
        found.append(_checked("metrics_bind", settings.metrics_bind))
    return found


def _checked(setting: str, address: str) -> str:
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match["port"] or 0) > 65_535:
        raise ConfigError(f"{variable_of(setting)}: {address!r} is not host:port or unix:/path")
    return address
