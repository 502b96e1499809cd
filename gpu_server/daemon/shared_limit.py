"""A limit that senders share: none can take all of it, so that the next one finds room.

A sender may hold a multiple of what is left, as an output of a switch may of its shared buffer (A. K. Choudhury and E. L.
Hahne, *Dynamic queue length thresholds for shared-memory packet switches*, IEEE/ACM Transactions on Networking, 1998).
"""

from __future__ import annotations

from collections import defaultdict

SHARES = (7, 3, 1)
"""By priority: how many times what is left a sender may hold. One that is alone gets 7/8, 3/4 and 1/2 of the limit."""


class SharedLimit:
    """What of a limit is used, and by whom; a sender is a connection.

    label: how errors name the limit. held: by sender, without those that hold nothing.
    """

    __slots__ = ("_label", "_most", "held", "used")

    def __init__(self, most: int, label: str) -> None:
        self._most = most
        self._label = label
        self.used = 0
        self.held: defaultdict[bytes, int] = defaultdict(int)

    def refusal(self, peer: bytes, amount: int, priority: int) -> str:
        """Why a sender may not have `amount` more, or "". One that holds nothing may have all that is left."""
        left = self._most - self.used - amount
        if self.used <= left:
            # The usual case: nobody holds more than all do.
            return ""
        if left < 0:
            return self._label
        held, times = self.held.get(peer, 0), SHARES[priority]
        if not amount or held <= times * left:
            return ""
        return f"{self._label}, of which this sender holds {held}, over {times} times the {left} that would be left"

    def take(self, peer: bytes, amount: int) -> None:
        """Count what a sender holds from now on."""
        self.used += amount
        self.held[peer] += amount

    def give(self, peer: bytes, amount: int) -> None:
        """Count what it holds no more."""
        self.used -= amount
        left = self.held[peer] = self.held[peer] - amount
        if not left:
            del self.held[peer]
