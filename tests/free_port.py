"""A port of loopback for a server that takes only a number."""

from __future__ import annotations

import random
import socket
from contextlib import suppress

BELOW_EPHEMERAL = (20_000, 32_000)
"""Ports that the kernel gives to nobody who does not ask for one by its number."""


def free_port() -> int:
    """One that nobody has now."""
    while True:
        port = random.SystemRandom().randint(*BELOW_EPHEMERAL)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
