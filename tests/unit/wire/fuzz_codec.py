"""Mutates the valid vectors, decodes every mutant, and prints what happened as JSON; run in a process of its own.

`events` counts audit events from the first mutant on; one `compile`, made at the end, shows that they are seen.

Arguments: the vectors file, the seed, the number of cases.
"""

import json
import random
import resource
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_server.errors import ProtocolError
from gpu_server.wire import Limits, Tensor, decode_reply, decode_request

Frames = list[bytes]
LIMITS = Limits(max_items=50)

# Starts of MessagePack values that claim much or nest, and edge values of int32 offsets.
NASTY = [
    b"\xc0", b"\xc1", b"\x91", b"\x81", b"\xc7\x0c\xff", b"\xd6\xff\xff\xff\xff\xff", b"\xca\x7f\xc0\0\0",
    b"\xdc\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xde\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\1", b"\xcf" + b"\xff" * 8, b"\xd3\x80" + bytes(7),
    b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\xed\xa0\x80",
]  # fmt: skip


def flip(random_: random.Random, frame: bytes) -> bytes:
    changed = bytearray(frame)
    for _ in range(random_.randint(1, 4)):
        if changed:
            changed[random_.randrange(len(changed))] ^= 1 << random_.randrange(8)
    return bytes(changed)


def truncate(random_: random.Random, frame: bytes) -> bytes:
    return frame[: random_.randint(0, len(frame))]


def insert(random_: random.Random, frame: bytes) -> bytes:
    at = random_.randint(0, len(frame))
    return frame[:at] + random_.choice(NASTY) + frame[at + random_.choice((0, 1, 4)) :]


def nest(random_: random.Random, frame: bytes) -> bytes:
    at = random_.randint(0, len(frame))
    return (
        frame[:at]
        + random_.choice((b"\x91", b"\x81\xa1v", b"\xdc\xff\xff")) * random_.randint(1, 1300)
        + frame[at:]
    )


EDITS: list[Callable[[random.Random, bytes], bytes]] = [flip, flip, truncate, insert, insert, nest]


def mutate(random_: random.Random, seeds: list[Frames]) -> Frames:
    frames = list(random_.choice(seeds))
    at = random_.randrange(len(frames))
    kind = random_.randrange(10)
    if kind < 6:
        at = 1 if random_.random() < 0.5 else at
        frames[at] = random_.choice(EDITS)(random_, frames[at])
    elif kind == 6:
        del frames[at]
    elif kind == 7:
        frames.insert(at, random_.choice(frames))
    elif kind == 8:
        other = random_.choice(seeds)
        frames = frames[:at] + other[random_.randrange(len(other)) :]
    else:
        other = random_.choice(random_.choice(seeds))
        frames[at] = (
            frames[at][: random_.randint(0, len(frames[at]))] + other[random_.randint(0, len(other)) :]
        )
    return frames


def read(tensor: Tensor) -> None:
    """Use an accepted tensor as its receivers do."""
    if tensor.dtype in ("utf8", "bytes"):
        tensor.strings() if tensor.dtype == "utf8" else tensor.raw_strings()
    elif tensor.offsets is None:
        tensor.to_numpy()
    else:
        tensor.rows()


def outcome(frames: Frames) -> str:
    """What both decoders make of a message; any exception but ProtocolError ends the run."""
    found = []
    for decode in (lambda: decode_request(frames, LIMITS), lambda: decode_reply(frames)):
        try:
            _, tensors = decode()
        except ProtocolError as error:
            found.append(error.code)
            continue
        found.append("accepted")
        for tensor in tensors.values():
            read(tensor)
    return "accepted" if "accepted" in found else found[0]


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(path: str, seed: int, cases: int) -> None:
    seeds = [
        [bytes.fromhex(f) for f in vector["frames"]] for vector in json.loads(Path(path).read_text("utf-8"))
    ]
    random_ = random.Random(seed)
    mutants = [mutate(random_, seeds) for _ in range(cases)]
    for frames in seeds:
        outcome(frames)
    events: Counter[str] = Counter()
    watching = True

    def hook(event: str, _: Any) -> None:
        if watching:
            events[event] += 1

    sys.addaudithook(hook)
    before = peak_bytes()
    outcomes = Counter(map(outcome, mutants))
    compile("0", "canary", "eval")
    watching = False
    print(json.dumps({"outcomes": outcomes, "events": events, "grown_bytes": peak_bytes() - before}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
