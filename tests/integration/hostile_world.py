"""Messages that are damaged in every way, for tests of what they do to a daemon."""

from __future__ import annotations

import random

import numpy as np
import zmq

from gpu_server.wire import RequestHeader, Tensor, decode_reply, encode_request

WINDOW = 200
"""So many messages are sent before replies are read."""
Frames = list[bytes]


def good_messages() -> list[Frames]:
    """One of each kind, to be damaged."""
    numbers = {"x": Tensor.from_numpy(np.arange(5))}
    ragged = {"x": Tensor.from_rows([[1, 2], [3]]), "s": Tensor.from_strings(["a", "ü"])}
    requests = [
        ("infer", numbers, {}),
        ("infer", ragged, {}),
        ("infer", numbers, {"params": {"note": "n"}, "priority": 2, "deadline_ms": 50, "digest": "a" * 64}),
        ("infer", {"text": Tensor.from_strings(["hi"])}, {"params": {"truncate": True}}),
        ("cancel", None, {"target": b"1"}),
        ("tokenizer", None, {"model": "Numbers"}),
        ("hello", None, {}),
        ("status", None, {}),
        ("load", None, {}),
    ]
    made = []
    for number, (op, inputs, header) in enumerate(requests):
        request = RequestHeader(v=1, id=b"%d" % number, op=op, **header)  # type: ignore[arg-type]
        made.append([bytes(frame) for frame in encode_request(request, inputs)])
    return made


def damaged(dice: random.Random, frames: Frames) -> Frames:
    """A message that is good no more, or never was."""
    frames = list(frames)
    at = dice.randrange(len(frames))
    match dice.randrange(7):
        case 0:
            return [dice.randbytes(dice.randrange(64)) for _ in range(dice.randrange(1, 6))]
        case 1:
            return [b"", dice.randbytes(dice.randrange(5000))]
        case 2:
            frames[at] = frames[at][: dice.randrange(len(frames[at]) + 1)]
        case 3:
            frames.insert(at, dice.randbytes(dice.randrange(20)))
        case 4:
            del frames[at]
        case _:
            for _ in range(dice.randrange(1, 4)):
                at = dice.randrange(1, len(frames))
                if frames[at]:
                    spot = dice.randrange(len(frames[at]))
                    frames[at] = frames[at][:spot] + dice.randbytes(1) + frames[at][spot + 1 :]
    return frames or [b""]


def flood(peer: zmq.Socket[bytes], dice: random.Random, seeds: list[Frames], count: int) -> int:
    """Send damaged messages; returns how many replies came, each of which must be a good message."""
    replies = 0
    for number in range(count):
        peer.send_multipart(damaged(dice, dice.choice(seeds)))
        if number % WINDOW == WINDOW - 1:
            replies += drain(peer)
    return replies


def drain(peer: zmq.Socket[bytes]) -> int:
    """Read what has come, up to the reply of a `hello` sent now: then all before it has been handled."""
    mark = b"mark"
    peer.send_multipart([bytes(f) for f in encode_request(RequestHeader(v=1, id=mark, op="hello"))])
    replies = 0
    while (header := decode_reply(peer.recv_multipart())[0]).id != mark:
        replies += 1
    assert not header.error
    return replies
