"""Connections that libzmq overlooks as their identity was another's: ended when that is free, so that they come again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

SETTLE_S = 0.1
"""How long libzmq may take to free the identity of a connection that has ended, and how long one may have nothing to say."""


class Overlooked:
    """Which connections have said nothing yet: one whose identity was taken is among them, and nothing tells which.

    libzmq (4.3.5, `router_t::identify_peer`) looks at an identity once: what comes over a connection whose identity is
    another's it never passes on, though it answers its heartbeats. So when a chosen identity is given up, the silent
    connections are ended; their clients connect again by themselves, and those that were only silent lose nothing.
    """

    def __init__(self, end: Callable[[int], object], clock: Callable[[], float]) -> None:
        self._end = end
        self._clock = clock
        self._silent: dict[int, float] = {}
        self._freed: deque[float] = deque()

    def accepted(self, descriptor: int) -> None:
        """Note a new connection."""
        self._silent[descriptor] = self._clock()

    def spoke(self, descriptor: int) -> None:
        """Note that something came over a connection."""
        self._silent.pop(descriptor, None)

    def ended(self, descriptor: int) -> None:
        """Note that a connection is no more."""
        self._silent.pop(descriptor, None)

    def freed(self) -> None:
        """Note that the connection of a chosen identity has ended."""
        self._freed.append(self._clock())

    def end_due(self) -> None:
        """End the connections that were there before an identity was free, once they had time to say something."""
        now = self._clock()
        while self._freed and now >= self._freed[0] + 2 * SETTLE_S:
            latest = self._freed.popleft() + SETTLE_S
            for descriptor in [known for known, since in self._silent.items() if since <= latest]:
                del self._silent[descriptor]
                self._end(descriptor)
