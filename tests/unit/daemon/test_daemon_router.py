"""The ROUTER socket with real peers: those that read, those that do not, those that are gone."""

from __future__ import annotations

import select
import stat
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import zmq
from hand_server import ask
from metronome import Metronome
from running_daemon import until

from gpu_server import multipart
from gpu_server.config import LimitsConfig
from gpu_server.connection import Connection
from gpu_server.daemon import router as routers
from gpu_server.daemon.metrics import Metrics
from gpu_server.daemon.router import BURST, DRAIN_CAP, LENT_BYTES, MAX_FRAMES, SEND_HWM, Router
from gpu_server.errors import EndpointError
from gpu_server.wire import FAREWELL_ANSWER, Limits
from gpu_server.wire.header import unpack_request

Socket = zmq.Socket[bytes]
BIG = b"x" * 1000


class World:
    """A router on an ipc socket that keeps up to 100 000 bytes for a peer."""

    def __init__(self, context: zmq.Context[Socket], endpoint: str, max_peer_bytes: int = 100_000) -> None:
        self.context = context
        self.endpoint = endpoint
        self.metrics = Metrics()
        self.gone: list[bytes] = []
        self.seen: list[tuple[bytes, list[bytes]]] = []
        self.peers: list[Socket] = []
        self.router = Router(
            context, endpoint, Limits(max_frame_bytes=5000, max_request_bytes=20_000), self.metrics,
            max_peer_bytes=max_peer_bytes, on_gone=self.gone.append,
        )  # fmt: skip

    def receive(self) -> int:
        return self.router.receive(lambda peer, frames, whole: self.seen.append((peer, list(frames))))

    def peer(self) -> tuple[Socket, bytes]:
        """A connected peer that holds back almost nothing, and its identity at the router."""
        socket = self.context.socket(zmq.DEALER)
        self.peers.append(socket)
        socket.linger, socket.rcvhwm = 0, 1
        socket.connect(self.endpoint)
        socket.send_multipart([b"", b"hello"])
        until(self.receive, "the peer's message", 10)
        return socket, self.seen[-1][0]


@pytest.fixture
def context() -> Iterator[zmq.Context[Socket]]:
    with zmq.Context() as made:
        yield made


@pytest.fixture
def world(context: zmq.Context[Socket], own_endpoint: str) -> Iterator[World]:
    made = World(context, own_endpoint)
    yield made
    made.router.close(0)
    for socket in made.peers:
        socket.close()


def test_messages_come_with_their_peer_and_replies_go_back(world: World) -> None:
    socket, peer = world.peer()
    assert world.seen == [(peer, [b"", b"hello"])]
    world.router.send(peer, [b"", b"answer"])
    world.router.flush()
    assert socket.recv_multipart() == [b"", b"answer"]
    assert not world.router.has_unsent()


def test_replies_leave_in_order_and_a_burst_does_not_wait_for_the_flush(world: World) -> None:
    socket, peer = world.peer()
    socket.rcvtimeo = 5000
    for number in range(BURST + 1):
        world.router.send(peer, [b"", b"%d" % number])
    assert [socket.recv_multipart()[1] for _ in range(BURST)] == [b"%d" % n for n in range(BURST)]
    assert not socket.poll(0)
    world.router.flush()
    assert socket.recv_multipart() == [b"", b"%d" % BURST]


def test_a_turn_reads_no_more_than_its_cap(world: World) -> None:
    socket, _ = world.peer()
    for number in range(DRAIN_CAP + 10):
        socket.send_multipart([b"", b"%d" % number])
    counts: list[int] = []
    until(lambda: counts.append(world.receive()) or len(world.seen) == DRAIN_CAP + 11, "all messages", 10)
    assert max(counts) <= DRAIN_CAP
    assert [frames[1] for _, frames in world.seen[1:]] == [b"%d" % n for n in range(DRAIN_CAP + 10)]


def test_what_sending_takes_from_the_descriptor_is_not_slept_over(world: World) -> None:
    socket, peer = world.peer()
    until(lambda: not world.receive(), "nothing more to read", 10)
    assert not world.router.has_input()
    poller = select.poll()
    poller.register(multipart.descriptor(world.router.socket), select.POLLIN)
    socket.send_multipart([b"", b"second"])
    assert poller.poll(10_000)

    def silent() -> bool:
        world.router.send(peer, [b"", b"reply"])
        world.router.flush()
        return not poller.poll(0)

    until(silent, "sending resets the descriptor", 10)
    assert world.router.has_input()
    assert world.receive() == 1


def fill(world: World, peer: bytes) -> int:
    """Send until the router keeps what it cannot send; returns how many were sent."""
    sent = 0
    while not world.router.has_unsent():
        assert sent < 100 * SEND_HWM
        world.router.send(peer, [b"", b"%d" % sent, BIG])
        world.router.flush()
        sent += 1
    return sent


def overfill(world: World, peer: bytes) -> None:
    """Send until the router gives the peer up."""
    fill(world, peer)
    while not world.gone:
        world.router.send(peer, [b"", b"-", BIG])
        world.router.flush()


def test_what_is_kept_for_a_slow_peer_keeps_no_batch(world: World) -> None:
    _slow, peer = world.peer()
    fill(world, peer)
    batch = bytearray(BIG)
    world.router.send(peer, [b"", b"a part of it", memoryview(batch)])
    world.router.flush()
    assert world.router.has_unsent()
    # It cannot be emptied while anything looks at it.
    batch.clear()


def test_a_slow_peer_gets_everything_in_order_once_it_reads(world: World) -> None:
    socket, peer = world.peer()
    sent = fill(world, peer)
    for number in range(sent, sent + 20):
        world.router.send(peer, [b"", b"%d" % number, BIG])
    got: list[bytes] = []
    socket.rcvtimeo = 5000
    while len(got) < sent + 20:
        world.router.flush()
        got.append(socket.recv_multipart()[1])
    assert got == [b"%d" % number for number in range(sent + 20)]
    assert not world.router.has_unsent()
    assert world.gone == []


def test_a_peer_that_never_reads_is_given_up_and_others_are_not_held_up(world: World) -> None:
    _slow, peer = world.peer()
    fill(world, peer)
    sent = 0
    while not world.gone:
        # Some still leave: libzmq's thread may not have filled the kernel's buffers yet.
        assert sent < 100 * SEND_HWM
        world.router.send(peer, [b"", b"-", BIG])
        world.router.flush()
        sent += 1
    assert world.gone == [peer]
    assert not world.router.has_unsent()
    assert world.metrics.dropped["peer_slow"] == 100_000 // len(BIG), (
        "given up with the first that is too much"
    )
    other, good = world.peer()
    world.router.send(good, [b"", b"answer"])
    world.router.flush()
    assert other.recv_multipart() == [b"", b"answer"]


def test_a_peer_that_is_given_up_loses_its_connection_and_may_come_again(world: World) -> None:
    slow, peer = world.peer()
    overfill(world, peer)
    dropped = world.metrics.dropped["peer_slow"]
    world.router.send(peer, [b"", b"late"])
    world.router.flush()
    assert (world.metrics.dropped["peer_slow"], world.router.has_unsent()) == (dropped + 1, False)
    until(lambda: world.router.peers.poll() or peer not in world.router.peers, "its end is known", 10)
    world.seen.clear()

    def heard() -> bool:
        # libzmq notices the end when it has room to read; what was sent before that is lost.
        while slow.poll(0):
            slow.recv_multipart()
        slow.send_multipart([b"", b"again"])
        return bool(world.router.socket.poll(100))

    until(heard, "it is heard again", 20)
    world.receive()
    (again, _) = world.seen[0]
    assert again != peer
    world.router.send(again, [b"", b"answer"])
    world.router.flush()
    slow.rcvtimeo = 10_000
    assert slow.recv_multipart() == [b"", b"answer"]


def test_large_replies_count_from_the_first_on_whatever_number_a_pipe_takes(world: World) -> None:
    socket, peer = world.peer()
    large = b"x" * LENT_BYTES
    world.router.send(peer, [b"", large])
    world.router.flush()
    assert socket.recv_multipart() == [b"", large]
    sent = 0
    while not world.gone:
        world.router.send(peer, [b"", large])
        world.router.flush()
        sent += 1
        # The kernel takes some, and the peer one.
        assert sent < SEND_HWM / 4
    # One is kept whatever its size, behind what is in the pipe.
    assert world.metrics.dropped["peer_slow"] == 2


def test_a_client_that_reads_may_be_sent_a_batch_of_large_replies_at_once(
    context: zmq.Context[Socket], own_endpoint: str
) -> None:
    """As token vectors of a batch of texts: by the default limit, and before any of them can have been read."""
    world, large = World(context, own_endpoint, LimitsConfig().max_peer_bytes), bytes(4 << 20)
    try:
        socket, peer = world.peer()
        socket.rcvtimeo = 10_000
        for _ in range(40):
            world.router.send(peer, [b"", large])
        world.router.flush()
        assert world.gone == []
        assert [len(socket.recv_multipart()[1]) for _ in range(40)] == [len(large)] * 40
    finally:
        world.router.close(0)
        for made in world.peers:
            made.close()


def test_a_peer_that_was_never_there(world: World) -> None:
    world.router.send(b"nobody", [b"", b"answer"])
    world.router.flush()
    assert world.gone == [b"nobody"]
    assert world.metrics.dropped["peer_gone"] == 1


def test_a_peer_that_left_with_replies_unsent(world: World) -> None:
    socket, peer = world.peer()
    fill(world, peer)
    socket.close()

    def turn() -> bool:
        world.receive()
        if not world.router.has_unsent():
            # libzmq's thread has made room since.
            world.router.send(peer, [b"", BIG])
        world.router.flush()
        return bool(world.gone)

    until(turn, "the peer is seen to be gone", 10)
    assert world.gone == [peer]
    assert not world.router.has_unsent()
    assert world.metrics.dropped["peer_gone"] >= 1


def test_an_oversize_frame_never_arrives_and_costs_only_its_sender(world: World) -> None:
    good, _ = world.peer()
    bad, _ = world.peer()
    bad.send_multipart([b"", b"x" * 5001])
    good.send_multipart([b"", b"fine"])
    until(lambda: world.receive() and world.seen[-1][1] == [b"", b"fine"], "the good message", 10)
    assert all(len(frame) <= 5000 for _, frames in world.seen for frame in frames)


def test_the_socket_is_born_closed_to_others(world: World) -> None:
    mode = Path(world.endpoint.removeprefix("ipc://")).stat().st_mode
    assert stat.S_IMODE(mode) == 0o660


def test_an_endpoint_that_cannot_be_bound_is_named() -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as taken:
        port = taken.bind_to_random_port("tcp://127.0.0.1")
        with pytest.raises(
            EndpointError, match=f"cannot bind tcp://127.0.0.1:{port}: Address already in use"
        ):
            World(context, f"tcp://127.0.0.1:{port}")


@pytest.mark.usefixtures("needs_ipv6")
def test_a_client_reaches_a_router_at_an_ipv6_address(context: zmq.Context[Socket]) -> None:
    world = World(context, "tcp://[::1]:0")
    connection = Connection(world.router.socket.get_string(zmq.LAST_ENDPOINT))
    try:
        ask(connection)
        until(world.receive, "the client's greeting", 10)
        assert unpack_request(world.seen[0][1][1]).op == "hello"
    finally:
        connection.close()
        world.router.close(0)


def test_a_request_over_the_limits_is_cut_and_said_so(world: World) -> None:
    sizes: list[tuple[int, bool]] = []
    client, _ = world.peer()
    client.send_multipart([b"", b"h", *[b"x" * 9] * 100])
    client.send_multipart([b"", b"h", *[b"x" * 4096] * 12])
    client.send_multipart([b"", b"h"])

    def note(peer: bytes, frames: Sequence[bytes], whole: bool) -> None:
        sizes.append((len(frames), whole))

    until(lambda: world.router.receive(note) >= 0 and len(sizes) == 3, "all three", 10)
    assert [whole for _, whole in sizes] == [False, False, True]
    assert sizes[0][0] < MAX_FRAMES
    assert sizes[1][0] < 13


def test_a_hand_over_takes_in_what_still_comes_and_tells_every_peer_last(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routers, "FAREWELL_S", 30)
    (first, _), (second, _) = world.peer(), world.peer()
    first.send_multipart([b"", b"late"])
    assert world.router.socket.poll(10_000)

    def refuse(peer: bytes, frames: Sequence[bytes], whole: bool) -> None:
        world.router.send(peer, [b"", b"refused", *frames[1:]])

    with ThreadPoolExecutor(1) as pool:
        handing_over = pool.submit(world.router.hand_over, refuse, [b"", b"farewell"])
        first.rcvtimeo = second.rcvtimeo = 10_000
        assert first.recv_multipart() == [b"", b"refused", b"late"]
        for peer in (first, second):
            assert peer.recv_multipart() == [b"", b"farewell"]
            peer.send_multipart([b"", b"never read"])
        assert not handing_over.done()
        for peer in (first, second):
            peer.send_multipart(FAREWELL_ANSWER)
        handing_over.result(10)


def test_who_connects_while_others_still_owe_their_answer_gets_the_farewell_too(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routers, "FAREWELL_S", 30)
    silent, _ = world.peer()
    with ThreadPoolExecutor(1) as pool:
        handing_over = pool.submit(world.router.hand_over, lambda *_: None, [b"", b"farewell"])
        silent.rcvtimeo = 10_000
        assert silent.recv_multipart() == [b"", b"farewell"]
        late = world.context.socket(zmq.DEALER)
        world.peers.append(late)
        late.linger, late.rcvtimeo = 0, 10_000
        late.connect(world.endpoint)
        late.send_multipart([b"", b"never read"])
        assert late.recv_multipart() == [b"", b"farewell"]
        for peer in (silent, late):
            peer.send_multipart(FAREWELL_ANSWER)
        handing_over.result(10)


def test_a_peer_that_misses_replies_is_not_told_that_they_never_were(world: World) -> None:
    slow, peer = world.peer()
    overfill(world, peer)
    with ThreadPoolExecutor(1) as pool:
        handing_over = pool.submit(world.router.hand_over, lambda *_: None, [b"", b"farewell"])
        handing_over.result(10)
        last: list[bytes] = []
        while slow.poll(500):
            last = slow.recv_multipart()
    assert last != [b"", b"farewell"]


def test_a_hand_over_does_not_wait_for_those_who_have_gone_or_say_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, _ = world.peer()
    world.peer()
    monkeypatch.setattr(routers, "FAREWELL_S", 0.2)
    gone.close()
    with Metronome() as metronome:
        started = time.monotonic()
        world.router.hand_over(lambda *_: None, [b"", b"farewell"])
        assert time.monotonic() - started >= 0.2
        assert metronome.ran_s(started) < 5
