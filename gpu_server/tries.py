"""A client's tries to connect: whether the last one failed, why, and whether it is worth to wait for the next."""

from __future__ import annotations

import zmq

from gpu_server import endpoint as endpoints
from gpu_server.errors import Unavailable

EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED | zmq.EVENT_CONNECT_RETRIED


class Tries:
    """Those of one socket, by its monitor's events. `failed`: nobody was there at the last one."""

    def __init__(self, endpoint: str) -> None:
        self.failed = False
        self._endpoint = endpoint
        self._host_found = True
        self._last_event: int = zmq.EVENT_CONNECT_RETRIED

    def saw(self, event: int) -> None:
        """Take in an event."""
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self.failed, self._host_found = False, True
        elif event == zmq.EVENT_CLOSED:
            self.failed, self._host_found = True, True
        elif event == self._last_event == zmq.EVENT_CONNECT_RETRIED:
            # Nothing was opened that could be closed or lost: libzmq, which looks a host up in a thread of its own and says
            # nothing of it, has found none.
            self.failed, self._host_found = True, False
        self._last_event = event

    def are_hopeless(self) -> bool:
        """Whether the last has failed and, as it was a moment ago, nobody listens by now either."""
        self.failed = self.failed and not endpoints.listens(self._endpoint)
        return self.failed

    def error(self, late: bool = False) -> Unavailable:
        """What a call ends with that was never sent; late: it has waited until its deadline."""
        if not self._host_found:
            reason = f"the host of {self._endpoint} cannot be found"
        else:
            why = "a request waited until its deadline and was not sent" if late else endpoints.START_HINT
            reason = f"no gpu-server daemon answers at {self._endpoint}; {why}"
        return Unavailable(reason, {"endpoint": self._endpoint})
