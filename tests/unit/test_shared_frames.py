"""Frames in shared memory: what is lent is never written over, and what is given back is used again."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import socket as sockets
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from running_daemon import clean_environment

from gpu_server import shared_frames
from gpu_server.channel import READ_BUFFER, Channel
from gpu_server.errors import ProtocolError
from gpu_server.shared_frames import ALIGNED, BYTES, Reader, Writer

MIB = 1 << 20
Pair = tuple[Channel, Channel]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = sockets.socketpair()
    channels = Channel(ours, shared_frames.offer(ours)), Channel(theirs, shared_frames.accept(theirs))
    yield channels
    for channel in channels:
        channel.close()


def received(channel: Channel) -> memoryview:
    """The last frame of the next message, which has been sent."""
    frames = channel.receive(wait=True)
    assert frames is not None
    return memoryview(frames[-1])


def traffic(channel: Channel) -> int:
    """Bytes that wait in the socket of a channel, for messages that it has not begun to read."""
    return len(channel._socket.recv(1 << 24, sockets.MSG_PEEK))


@given(st.lists(st.tuples(st.integers(1, 4000), st.integers(0, 3)), max_size=60))
def test_what_is_lent_overlaps_nothing(steps: list[tuple[int, int]]) -> None:
    memory = np.zeros(8192, np.uint8)
    writer, lent = Writer(memory), []
    for number, (size, give_back) in enumerate(steps):
        frame = bytes([number + 1]) * size
        at = writer.put(frame)
        if at is not None:
            assert at % ALIGNED == 0
            lent.append((at, frame))
        for place, content in lent:
            assert memory[place : place + len(content)].tobytes() == content
        count = min(give_back, len(lent))
        writer.freed(count)
        del lent[:count]
    writer.freed(len(lent))
    assert writer.put(bytes(8192)) == 0


@given(st.lists(st.tuples(st.integers(1, 3000), st.sets(st.integers(0, 9))), max_size=60))
def test_no_reader_sees_a_frame_change(steps: list[tuple[int, set[int]]]) -> None:
    """Whichever frames are let go of, in whatever order."""
    memory = np.zeros(8192, np.uint8)
    writer, reader = Writer(memory), Reader(memory)
    held: dict[int, tuple[memoryview, bytes]] = {}
    for number, (size, dropped) in enumerate(steps):
        frame = bytes([number + 1]) * size
        at = writer.put(frame)
        if at is not None:
            # A part of it is enough to keep it.
            held[number] = reader.take(at, size)[size // 2 :], frame[size // 2 :]
        for old in sorted(held)[:10]:
            if old % 10 in dropped:
                del held[old]
        writer.freed(reader.freed())
        assert all(view == content for view, content in held.values())
    held.clear()
    writer.freed(reader.freed())
    assert writer.put(bytes(8192)) == 0


def test_a_large_frame_takes_no_room_in_the_socket(pair: Pair) -> None:
    frame = random.Random(1).randbytes(MIB)
    pair[0].send([b"", b"h", frame])
    assert traffic(pair[1]) < 1000
    assert received(pair[1]) == frame


def test_a_frame_that_the_buffer_holds_goes_through_the_socket(pair: Pair) -> None:
    pair[0].send([b"", b"h", bytes(READ_BUFFER)])
    assert traffic(pair[1]) > READ_BUFFER


def test_without_room_frames_go_through_the_socket_and_all_stay_right(pair: Pair) -> None:
    ours, theirs = pair
    held = []
    for number in range(2 * BYTES // MIB):
        ours.send([b"", b"h", bytes([number]) * MIB])
        held.append(received(theirs))
    assert [set(view) for view in map(bytes, held)] == [{number} for number in range(len(held))]


def test_a_place_is_used_again_once_the_other_end_has_said_so(pair: Pair) -> None:
    ours, theirs = pair
    for number in range(100):
        ours.send([b"", b"h", bytes([number]) * MIB])
        assert traffic(theirs) < 1000
        assert bytes(received(theirs)[:1]) == bytes([number])
        theirs.send([b"", b"done"])
        assert ours.receive(wait=True) == [b"", b"done"]


def test_what_a_numpy_array_or_a_slice_looks_at_stays(pair: Pair) -> None:
    ours, theirs = pair
    ours.send([b"", b"h", b"\1" * MIB])
    array = np.frombuffer(received(theirs)[MIB // 2 :], np.uint8)
    for _ in range(30):
        ours.send([b"", b"h", b"\2" * MIB])
        received(theirs)
        theirs.send([b"", b"done"])
        ours.receive(wait=True)
    assert set(array.tolist()) == {1}


@pytest.mark.parametrize(("at", "size"), [(90, 11), (1 << 30, 1), (0, 0)])
def test_a_place_beyond_the_end_is_refused(at: int, size: int) -> None:
    reader = Reader(np.zeros(100, np.uint8))
    with pytest.raises(ProtocolError, match="100"):
        reader.take(at, size)


def test_more_than_is_lent_cannot_be_given_back() -> None:
    writer = Writer(np.zeros(100, np.uint8))
    writer.put(b"x")
    with pytest.raises(ProtocolError):
        writer.freed(2)


@pytest.mark.parametrize("error", [OSError("not permitted"), AttributeError("memfd_create")], ids=repr)
def test_where_the_system_gives_no_memory_all_goes_through_the_socket(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*arguments: object) -> int:
        raise error

    monkeypatch.setattr(os, "memfd_create", refuse)
    one, other = sockets.socketpair()
    ours, theirs = Channel(one, shared_frames.offer(one)), Channel(other, shared_frames.accept(other))
    ours.send([b"", b"h", b"\3" * MIB])
    assert received(theirs) == b"\3" * MIB
    ours.close()
    theirs.close()


def test_neither_end_can_take_the_memory_from_under_the_other() -> None:
    one, other = sockets.socketpair()
    with one, other:
        shared_frames.offer(one)
        _, (file,), _, _ = sockets.recv_fds(other, 1, 1)
        with pytest.raises(PermissionError):
            os.ftruncate(file, 0)
        with pytest.raises(PermissionError):
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        os.close(file)


@pytest.mark.parametrize("step", ["os.posix_fallocate", "fcntl.fcntl", "mmap.mmap"])
def test_memory_that_cannot_be_had_costs_no_descriptor(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def refuse(*arguments: object) -> int:
        raise OSError(errno.ENOMEM, "no memory")

    monkeypatch.setattr(step, refuse)
    one, other = sockets.socketpair()
    with one, other:
        before = os.listdir("/proc/self/fd")
        writer, _ = shared_frames.offer(one)
        assert writer.put(bytes(100_000)) is None
        assert os.listdir("/proc/self/fd") == before
        assert other.recv(10) == b"\0"


def test_a_descriptor_that_is_lost_on_its_way_is_no_agreement() -> None:
    one, other = sockets.socketpair()
    with one, other:
        one.sendall(b"\1")
        with pytest.raises(OSError, match="lost"):
            shared_frames.accept(other)


def test_an_end_that_is_gone_offers_nothing() -> None:
    one, other = sockets.socketpair()
    with other:
        one.close()
        writer, _ = shared_frames.accept(other)
        assert writer.put(bytes(100_000)) is None


def test_an_array_of_what_a_view_is_of_is_enough_to_keep_it() -> None:
    memory = np.zeros(1000, np.uint8)
    reader = Reader(memory)
    array = np.asarray(reader.take(0, 500).obj)[100:]
    assert not array.flags.writeable
    assert reader.freed() == 0
    del array
    assert reader.freed() == 1


def test_ends_that_are_gone_leave_nothing() -> None:
    code = (
        "import os, socket; from gpu_server import shared_frames; from gpu_server.channel import Channel\n"
        "for _ in range(40):\n"
        "    one, other = socket.socketpair()\n"
        "    a, b = Channel(one, shared_frames.offer(one)), Channel(other, shared_frames.accept(other))\n"
        "    for _ in range(8):\n"
        "        a.send([b'', b'h', bytes(900_000)]); b.receive()\n"
        "    a.close(); b.close()\n"
        "del a, b\n"
        "print(len(os.listdir('/proc/self/fd')), open('/proc/self/maps').read().count('memfd:gpu-server'))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    descriptors, maps = map(int, run.stdout.split())
    assert descriptors < 10
    assert maps == 0
