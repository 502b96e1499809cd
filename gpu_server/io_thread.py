"""The thread that serves a connection; under gevent a greenlet, which a fork takes along and the child has to end."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import zmq

_greenlets: weakref.WeakKeyDictionary[Any, list[Any]] = weakref.WeakKeyDictionary()
"""What each polls with; nothing before it has run."""


def _end_inherited() -> None:
    """End the parent's greenlets in a child: libzmq refuses it their sockets, and pyzmq would try again for ever."""
    for greenlet, pollers in _greenlets.items():
        for poller in pollers:
            # One that was about to run polls once more before it ends.
            poller.sockets.clear()
        greenlet.kill(block=False)


os.register_at_fork(after_in_child=_end_inherited)


class IoThread:
    """Runs `run` beside the caller, in a thread of the operating system."""

    def __init__(self, run: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=run, name="gpu-server-client", daemon=True)

    def start(self) -> None:
        """Start it. Raises RuntimeError where no thread can be had."""
        self._thread.start()

    def poller(self) -> zmq.Poller:
        """A poller for `run`, which must use it for all its waiting."""
        return zmq.Poller()

    def join(self, timeout_s: float) -> None:
        """Wait for its end, unless called within it."""
        if self._thread is not threading.current_thread():
            self._thread.join(timeout_s)


class GreenIoThread(IoThread):
    """Runs it in a greenlet: gevent has replaced threads, and what waits in one of the system's would stop them all.

    No thread of `threading` either, which would print that a child does not know the greenlet that ends there.
    """

    def __init__(self, run: Callable[[], None]) -> None:
        import gevent

        self._current = gevent.getcurrent
        self._greenlet = gevent.Greenlet(run)
        self._pollers: list[Any] = []

    def start(self) -> None:
        """Start it."""
        _greenlets[self._greenlet] = self._pollers
        self._greenlet.start()

    def poller(self) -> zmq.Poller:
        """A poller that lets other greenlets run."""
        from zmq import green

        made: zmq.Poller = green.Poller()
        self._pollers.append(made)
        return made

    def join(self, timeout_s: float) -> None:
        """Wait for its end, unless called within it."""
        if self._greenlet is not self._current():
            self._greenlet.join(timeout_s)


def for_this_process(run: Callable[[], None]) -> IoThread:
    """A thread, not started, of the kind that this process has."""
    monkey = sys.modules.get("gevent.monkey")
    green = monkey is not None and monkey.is_module_patched("threading")
    return GreenIoThread(run) if green else IoThread(run)
