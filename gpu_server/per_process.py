"""Which connection a process has: made on first use, by one thread alone, and anew in every forked child."""

from __future__ import annotations

import os
import threading

from gpu_server.connection import Connection
from gpu_server.curve import ClientKeys

_making = threading.Lock()


def _renew_lock() -> None:
    """A thread of the parent may have held the lock at the fork, and does not exist here to release it."""
    global _making
    _making = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


def _lock_for_this_process() -> threading.Lock:
    """The lock, of the kind that `threading` makes now.

    After gevent's patching a lock from before it, held while greenlets switch, would stop them all.
    """
    global _making
    fresh = threading.Lock()
    if type(_making) is not type(fresh):
        _making = fresh
    return _making


class PerProcess:
    """A connection made on first use and made anew in every forked child."""

    def __init__(self, endpoint: str, keys: ClientKeys | None = None) -> None:
        self.endpoint = endpoint
        self._keys = keys
        self._pid = 0
        self._connection: Connection | None = None
        self._inherited: list[Connection] = []

    def get(self) -> Connection:
        """This process's connection."""
        # In this order: another thread of a child may be making its own, which it writes first.
        if self._pid == os.getpid() and (known := self._connection) is not None and not known.closed:
            return known
        return self._make()

    def _make(self) -> Connection:
        with _lock_for_this_process():
            if self._pid != os.getpid():
                # Kept, never closed: a parent's socket and locks must not be touched in a child.
                if self._connection is not None:
                    self._inherited.append(self._connection)
                self._connection, self._pid = None, os.getpid()
            if self._connection is None or self._connection.closed:
                self._connection = Connection(self.endpoint, self._keys)
            return self._connection

    def close(self) -> None:
        """Close this process's connection, if it has one."""
        # No lock, which a signal's handler may have interrupted the holder of; and a closed one is not used again.
        if self._pid == os.getpid() and (connection := self._connection) is not None:
            connection.close()

    def abandon(self) -> None:
        """Let go of this process's connection without waiting; of one from before a fork it touches nothing."""
        if self._pid == os.getpid() and self._connection is not None:
            self._connection.abandon()
