"""How many descriptors the daemon may open: libzmq ends the process when it can accept no connection for want of one."""

from __future__ import annotations

import resource


def raise_limit() -> None:
    """Raise the soft limit, which shells set for interactive programs, to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
