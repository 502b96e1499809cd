"""Messages over a stream socket: whole and in order however the bytes arrive, and no wait that was not asked for."""

from __future__ import annotations

import errno
import socket as sockets
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from gpu_server import shared_frames
from gpu_server.channel import MAX_BYTES, MAX_FRAMES, SEND_BUFFER, Channel
from gpu_server.errors import ProtocolError

SMALL = [b"", b"header", b"\1\2\3", b""]
LARGE = [b"", b"header", bytes(range(256)) * (SEND_BUFFER >> 6)]
Pair = tuple[Channel, Channel]


@pytest.fixture(params=["shared memory", "none"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Both ends, with memory for large frames between them and without."""
    one, other = sockets.socketpair()
    if request.param == "none":
        ours, theirs = Channel(one), Channel(other)
    else:
        ours = Channel(one, shared_frames.offer(one))
        theirs = Channel(other, shared_frames.accept(other))
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.fixture
def raw() -> Iterator[tuple[sockets.socket, Channel]]:
    """A plain socket, and the channel at its other end."""
    ours, theirs = sockets.socketpair()
    with ours:
        channel = Channel(theirs)
        yield ours, channel
        channel.close()


def read(channel: Channel) -> list[bytes] | None:
    frames = channel.receive()
    return None if frames is None else [bytes(frame) for frame in frames]


def encoded(*messages: list[bytes]) -> bytes:
    ours, theirs = sockets.socketpair()
    with ours, theirs:
        channel = Channel(ours)
        for message in messages:
            channel.send(message)
        return theirs.recv(1 << 16)


def test_nothing_has_come(pair: Pair) -> None:
    assert pair[0].receive() is None
    assert not pair[0].closed


@pytest.mark.parametrize("size", [1, 7, 287, 288, 289, 298, 1 << 16])
def test_messages_are_whole_however_they_arrive(raw: tuple[sockets.socket, Channel], size: int) -> None:
    ours, channel = raw
    data = encoded(SMALL, [b"", b"h"], SMALL)
    seen = []
    for at in range(0, len(data), size):
        ours.sendall(data[at : at + size])
        while (frames := read(channel)) is not None:
            seen.append(frames)
    assert seen == [SMALL, [b"", b"h"], SMALL]


def test_what_the_other_end_has_no_room_for_follows_in_order(pair: Pair) -> None:
    ours, theirs = pair
    ours.send(LARGE)
    ours.send(SMALL)
    assert ours.unsent
    seen = []
    for _ in range(1000):
        if (frames := read(theirs)) is not None:
            seen.append(frames)
        assert ours.receive() is None
    assert seen == [LARGE, SMALL]
    assert not ours.unsent


def test_a_frame_for_every_tensor_fits(pair: Pair) -> None:
    most = [b"%d" % number for number in range(MAX_FRAMES)]
    pair[0].send(most)
    assert read(pair[1]) == most


def test_two_ends_that_wait_take_in_what_the_other_sends(pair: Pair) -> None:
    def exchange(channel: Channel) -> list[bytes]:
        channel.send(LARGE)
        frames = channel.receive(wait=True)
        assert frames is not None
        while channel.unsent:
            channel.receive()
        return [bytes(frame) for frame in frames]

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(exchange, pair, timeout=10)) == [LARGE, LARGE]


def test_what_was_sent_before_the_end_is_read(pair: Pair) -> None:
    ours, theirs = pair
    ours.send(SMALL)
    ours.close()
    assert read(theirs) == SMALL
    assert not theirs.closed
    assert theirs.receive(wait=True) is None
    assert theirs.closed


def test_a_message_that_breaks_off_is_none(raw: tuple[sockets.socket, Channel]) -> None:
    ours, channel = raw
    ours.sendall(encoded(SMALL)[:-1])
    ours.close()
    assert [channel.receive(), channel.receive()] == [None, None]
    assert channel.closed


def test_what_is_received_cannot_be_written_to(pair: Pair) -> None:
    pair[0].send([*SMALL, bytes(100_000)])
    frames = pair[1].receive()
    assert frames is not None
    assert all(memoryview(frame).readonly for frame in frames)


def test_a_first_frame_that_has_come_in_part_is_no_head(raw: tuple[sockets.socket, Channel]) -> None:
    ours, channel = raw
    message = [bytes(1000), b"header"]
    data = encoded(message)
    ours.sendall(data[:900])
    assert read(channel) is None
    ours.sendall(data[900:])
    assert read(channel) == message


def test_nothing_follows_a_part_of_a_message(monkeypatch: pytest.MonkeyPatch, pair: Pair) -> None:
    def no_memory(self: sockets.socket, parts: object) -> int:
        raise OSError(errno.ENOBUFS, "no buffer space available")

    ours, theirs = pair
    ours.send(LARGE)
    assert ours.unsent
    with monkeypatch.context() as patch:
        patch.setattr(sockets.socket, "sendmsg", no_memory)
        assert ours.receive() is None
    ours.send(LARGE)
    assert ours.closed
    assert theirs.receive(wait=True) is None
    assert theirs.closed


def test_what_is_sent_to_nobody_is_dropped(pair: Pair) -> None:
    ours, theirs = pair
    ours.send(LARGE)
    theirs.close()
    ours.send(SMALL)
    assert not ours.unsent
    assert ours.receive() is None
    assert ours.closed


@pytest.mark.parametrize(
    "head",
    [
        [0, 0],
        [0, 1, 1],
        [0, MAX_FRAMES + 1, *[1] * MAX_FRAMES],
        [0, 2, 0, MAX_BYTES + 1],
        [1, 2, 0, 1],
        [0, 2, 0, 1 << 63 | 1 << 16],
    ],
    ids=["no frame", "one", "too many", "too large", "nothing to give back", "nothing is shared"],
)
def test_what_is_no_message_is_refused(raw: tuple[sockets.socket, Channel], head: list[int]) -> None:
    ours, channel = raw
    ours.sendall(
        struct.pack(f"<{2 + MAX_FRAMES}Q", *head[: 2 + MAX_FRAMES], *[0] * (2 + MAX_FRAMES - len(head)))
    )
    with pytest.raises(ProtocolError):
        channel.receive()
