"""A client's handshakes: the keys they are made with, and when they have failed for good."""

from __future__ import annotations

from typing import Any

import zmq

from gpu_server import endpoint as endpoints
from gpu_server.config import env_name
from gpu_server.curve import ClientKeys
from gpu_server.errors import EndpointForbidden

EVENTS = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
TRIES = 5
"""A daemon that ends, or has no room for one more, breaks off a handshake too: only so many in a row mean more than that."""


class Handshakes:
    """Those of one socket. keys: None makes plain ones."""

    def __init__(self, endpoint: str, keys: ClientKeys | None) -> None:
        self._endpoint = endpoint
        self._keys = keys
        self._broken_off = 0

    def configure(self, socket: Any) -> None:
        """Give a socket the keys; call before it connects."""
        if self._keys is not None:
            socket.curve_publickey, socket.curve_secretkey, socket.curve_serverkey = self._keys

    def saw(self, event: int) -> None:
        """Take in an event of the socket's monitor.

        Raises EndpointForbidden where libzmq tries no more, or would try for ever.
        """
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._broken_off = 0
        elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            raise self._forbidden(
                f"the daemon at {self._endpoint} does not accept this client's key: its list of clients needs it"
            )
        elif event in (zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL):
            self._broken_off += 1
            waits = event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL and self._broken_off < TRIES
            if not waits and endpoints.ipc_path(self._endpoint) is None:
                raise self._forbidden(f"{self._endpoint} ends every handshake: {self._guess()}")

    def _guess(self) -> str:
        if self._keys is None:
            return f"a daemon that wants a key ({env_name('curve_client_key_file')}), or no daemon"
        return f"a daemon whose key is not that of {env_name('curve_server_key_file')}, or without one, or no daemon"

    def _forbidden(self, reason: str) -> EndpointForbidden:
        return EndpointForbidden(reason, {"endpoint": self._endpoint})
