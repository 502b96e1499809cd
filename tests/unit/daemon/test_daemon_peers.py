"""A connection that ends is told by its client's identity, at once and only once."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
import zmq
from running_daemon import until

from gpu_server import multipart
from gpu_server.daemon.peers import Peers

EVENTS = 1001
"""What libzmq holds ready for the monitor: 1000, and one by our own mark."""

Context = zmq.Context[zmq.Socket[bytes]]


class World:
    """A ROUTER with its peers, and clients of it."""

    def __init__(self, context: Context, endpoint: str) -> None:
        self.context = context
        self.endpoint = endpoint
        self.gone: list[bytes] = []
        self.router = context.socket(zmq.ROUTER)
        self.router.bind(endpoint)
        self.accepted: list[int] = []
        self.peers = Peers(self.router, self.gone.append, self.accepted.append)

    def client(self, name: bytes) -> zmq.Socket[bytes]:
        """A connected client whose first message has been read."""
        socket = self.context.socket(zmq.DEALER)
        socket.linger = 0
        socket.routing_id = name
        socket.connect(self.endpoint)
        socket.send_multipart([b"", b"hello"])
        assert self.router.poll(5000)
        frames, last, _ = multipart.receive_with_last(self.router)
        assert frames == [name, b"", b"hello"]
        self.peers.add(name, last)
        return socket

    def has_gone(self, count: int) -> bool:
        """Whether so many have gone by now."""
        self.peers.poll()
        return len(self.gone) >= count


@pytest.fixture
def world(own_endpoint: str) -> Iterator[World]:
    with zmq.Context() as context:
        made = World(context, own_endpoint)
        yield made
        made.router.close(linger=0)
        made.peers.close()
        context.destroy(linger=0)


def test_a_client_that_leaves_is_told(world: World) -> None:
    stays, leaves = world.client(b"stays"), world.client(b"leaves")
    leaves.close()
    until(lambda: world.has_gone(1), "told", wait_s=5)
    assert world.gone == [b"leaves"]
    assert b"stays" in world.peers
    assert b"leaves" not in world.peers
    stays.close()


def test_a_descriptor_used_again_belongs_to_the_new_client(world: World) -> None:
    for number in range(20):
        world.client(b"old%d" % number).close()
        newer = world.client(b"new%d" % number)
        until(lambda: world.has_gone(2 * number + 1), "told", wait_s=5)  # noqa: B023 - called before the loop goes on
        assert b"new%d" % number in world.peers
        newer.close()
        until(lambda: world.has_gone(2 * number + 2), "told", wait_s=5)  # noqa: B023
    assert len(world.peers) == 0
    assert sorted(world.gone) == sorted([b"%s%d" % (kind, n) for kind in (b"old", b"new") for n in range(20)])


def test_a_forgotten_client_is_not_told(world: World) -> None:
    client = world.client(b"gone")
    world.peers.forget(b"gone")
    client.close()
    world.peers.forget(b"never seen")
    assert len(world.peers) == 0


def test_new_connections_are_told_by_their_descriptor(world: World) -> None:
    one = world.client(b"one")
    world.peers.poll()
    (first,) = world.accepted
    assert first in map(int, os.listdir("/proc/self/fd"))
    two = world.client(b"two")
    world.peers.poll()
    assert (world.accepted[:1], len(set(world.accepted))) == ([first], 2)
    one.close()
    two.close()


def accepted(world: World) -> int:
    """How many connections have been told of by now."""
    world.peers.poll()
    return len(world.accepted)


def flood(endpoint: str) -> list[socket.socket]:
    """As many connections as libzmq accepts, and the backlog takes, while nobody looks."""
    opened: list[socket.socket] = []

    def refuses() -> bool:
        for _ in range(200):
            raw = socket.socket(socket.AF_UNIX)
            raw.setblocking(False)
            try:
                raw.connect(endpoint.removeprefix("ipc://"))
            except BlockingIOError:
                raw.close()
                return len(opened) > EVENTS
            opened.append(raw)
        return False

    until(refuses, "no connection is accepted any more", 10)
    return opened


def test_libzmq_accepts_no_more_than_are_looked_at(world: World) -> None:
    """The bound that `descriptors.SPARE` counts on; as many more wait in the backlog as it takes."""
    opened = flood(world.endpoint)
    assert EVENTS <= len(opened) < EVENTS + 110
    until(lambda: accepted(world) == len(opened), "the rest is accepted", 10)
    for raw in opened:
        raw.close()


def test_it_ends_while_libzmq_waits_for_events_to_be_read(own_endpoint: str) -> None:
    with zmq.Context() as context:
        world = World(context, own_endpoint)
        opened = flood(own_endpoint)
        world.router.close(linger=0)
        world.peers.close()
        for raw in opened:
            raw.close()
