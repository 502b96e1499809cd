"""The daemon's loop: requests and answers in, batches and replies out, and sleep while there are none."""

from __future__ import annotations

import math
import select
import socket as sockets
from collections.abc import Callable, Iterable
from contextlib import suppress

from gpu_server import multipart
from gpu_server.daemon.alarm import Alarm
from gpu_server.daemon.engine_link import EngineLink
from gpu_server.daemon.router import RETRY_S, Router
from gpu_server.daemon.service import Service

READ_WRITE = select.POLLIN | select.POLLOUT
NEVER = 0
TIMERS_S = 0.2
"""How long the timers of `attend` are believed: a batch that has been sent since brings one of its own."""


class Loop:
    """Turns over an injected clock; whoever runs it decides when it ends.

    wake: readable when `woken` is to be called. rare: descriptors of ZeroMQ sockets and others for which `attend` is to be
    called. attend: sees to all that is not a request or an answer, reads its sockets until they are empty, and returns
    when it is to be called again though nothing happens. pressing: whether it is to be called although nothing says so.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        router: Router,
        service: Service,
        alarm: Alarm,
        *,
        wake: sockets.socket,
        woken: Callable[[], None],
        rare: Iterable[int],
        pressing: Callable[[], bool],
        attend: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._router = router
        self._service = service
        self._alarm = alarm
        self._wake, self._wake_fd = wake, wake.fileno()
        self._woken = woken
        self._pressing = pressing
        self._attend = attend
        self._due = clock()
        self._deadline = math.inf
        self._input = False
        self._links: list[tuple[int, EngineLink]] = []
        self._watched: list[int] = []
        self._asked: dict[int, int] = {}
        self._poller = select.poll()
        self._router_fd = multipart.descriptor(router.socket)
        for descriptor in (self._router_fd, self._wake_fd, *rare):
            self._poller.register(descriptor, select.POLLIN)
        self._common = {self._router_fd, self._wake_fd}

    def watch(self, links: Iterable[EngineLink]) -> None:
        """Wait for what these engines say, their exits and their answers, and for no others'."""
        for descriptor in (*self._watched, *self._asked):
            with suppress(KeyError):
                self._poller.unregister(descriptor)
            self._common.discard(descriptor)
        self._links = [(link.channel.fileno(), link) for link in links]
        self._asked = dict.fromkeys([descriptor for descriptor, _ in self._links], select.POLLIN)
        self._watched = [descriptor for link in links for descriptor in link.filenos()]
        for descriptor in (*self._watched, *self._asked):
            self._poller.register(descriptor, select.POLLIN)
        self._common.update(self._asked)

    def turn(self) -> None:
        """Wait for something to do, and do what there is."""
        events = dict(self._poller.poll(self._timeout_ms()))
        if self._input or self._router_fd in events:
            self._router.receive(self._service.handle)
        for descriptor, link in self._links:
            if descriptor in events:
                link.receive(self._service.batch_done)
        if self._wake_fd in events:
            with suppress(BlockingIOError):
                self._wake.recv(4096)
            self._woken()
        now = self._clock()
        if now >= self._due or not self._common >= events.keys() or self._pressing():
            self._due = min(self._attend(), now + TIMERS_S)
        if now >= self._deadline:
            self._service.expire()
        self._alarm.set(self._service.dispatch())
        self._router.flush()
        self._input = self._router.has_input()

    def _timeout_ms(self) -> int:
        """How long to sleep; the poll is told on the way where an engine has left no room for its batch, or is gone."""
        for descriptor, link in self._links:
            channel = link.channel
            asked = NEVER if channel.closed else READ_WRITE if channel.unsent else select.POLLIN
            if asked != self._asked[descriptor]:
                self._asked[descriptor] = asked
                if asked == NEVER:
                    # A poll reports a hang-up even where nothing is asked.
                    self._poller.unregister(descriptor)
                else:
                    self._poller.modify(descriptor, asked)
        self._deadline = self._service.next_deadline()
        if self._input:
            return 0
        left_s = min(self._due, self._deadline) - self._clock()
        if left_s > RETRY_S and self._router.has_unsent():
            left_s = RETRY_S
        return max(0, math.ceil(left_s * 1000))
