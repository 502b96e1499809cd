"""The faults: each breaks something once. Which, when and how hard is drawn from seeded dice."""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import zmq
from chaos_model import HANGS, RAISES, oracle
from chaos_requests import CULPRITS, HONEST, Judge
from chaos_world import Keeper
from running_gunicorn import RunningGunicorn

from gpu_server.errors import Conflict, LoadFailed
from gpu_server.wire import RequestHeader, Tensor, decode_reply, encode_request

BURST = 1500
BURST_S = 1.0
SILENCE_S = 5.0


class Faults:
    """Everything that can be done to a world. `done` counts what was."""

    def __init__(self, keeper: Keeper, web: RunningGunicorn, judge: Judge, seed: int) -> None:
        self._keeper = keeper
        self._web = web
        self._judge = judge
        self._dice = random.Random(seed)
        self._threads: list[threading.Thread] = []
        self.done: Counter[str] = Counter()
        self.kinds: dict[str, tuple[int, Callable[[], object]]] = {
            "engine killed": (3, lambda: self._signal(self._keeper.engine(), signal.SIGKILL)),
            "daemon killed": (2, lambda: self._signal(self._keeper.daemon.pid, signal.SIGKILL)),
            "worker killed": (3, lambda: self._signal(self._a_worker(), signal.SIGKILL)),
            "engine frozen": (3, lambda: self._freeze(self._keeper.engine(), self._dice.uniform(0.2, 3.0))),
            "daemon frozen": (3, lambda: self._freeze(self._keeper.daemon.pid, self._dice.uniform(0.2, 1.5))),
            "hang-ups of Gunicorn": (2, self._hang_ups),
            "overload": (3, lambda: self._burst([1, 2, 3], BURST, {"deadline_ms": int(BURST_S * 1000)})),
            "poison": (
                3,
                lambda: self._burst([self._dice.randrange(1000), RAISES], 40, {"deadline_ms": 4000}),
            ),
            "forward that hangs": (1, lambda: self._burst([HANGS], 1, {"deadline_ms": 6000})),
            "garbage": (3, self._garbage),
            "half-open connections": (3, self._half_open),
            "client that reads nothing": (3, self._never_reads),
            "reload": (3, self._reload),
            "bad reload": (2, lambda: self._reload(bad=True)),
        }

    def inject(self) -> None:
        """Draw one fault and let it happen; those that take time go on in the background."""
        names = list(self.kinds)
        name = self._dice.choices(names, [weight for weight, _ in self.kinds.values()])[0]
        self.done[name] += 1
        self.kinds[name][1]()

    def wait(self) -> None:
        """Return when every fault is over."""
        for thread in self._threads:
            thread.join(60)
        hung = sum(thread.is_alive() for thread in self._threads)
        assert not hung, f"{hung} faults never ended"

    def _behind(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work)
        thread.start()
        self._threads.append(thread)

    def _signal(self, pid: int | None, number: int) -> None:
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _a_worker(self) -> int | None:
        workers = self._web.workers()
        return self._dice.choice(workers) if workers else None

    def _freeze(self, pid: int | None, seconds: float) -> None:
        self._signal(pid, signal.SIGSTOP)

        def thaw() -> None:
            time.sleep(seconds)
            self._signal(pid, signal.SIGCONT)

        self._behind(thaw)

    def _hang_ups(self) -> None:
        for _ in range(self._dice.randrange(1, 6)):
            self._web.process.send_signal(signal.SIGHUP)
            time.sleep(self._dice.uniform(0.02, 0.4))

    def _reload(self, *, bad: bool = False) -> None:
        if not bad:
            self._keeper.version += 1
        self._keeper.write_settings(**({"bad": True} if bad else {}))

        def change() -> None:
            error = self._keeper.control("reload")
            if bad:
                self._keeper.write_settings()
            if (
                error is not None
                and not isinstance(error, LoadFailed | Conflict)
                and error.code not in HONEST
            ):
                self._judge.wrong.append(f"reload: {error!r}")

        self._behind(change)

    @contextmanager
    def _peer(self) -> Iterator[zmq.Socket[bytes]]:
        with zmq.Context() as context, self._keeper.daemon.raw_socket(context) as socket_:
            socket_.sndtimeo = socket_.rcvtimeo = 500
            yield socket_

    def _burst(self, ids: list[int], count: int, header: dict[str, int]) -> None:
        """Many requests at once on one connection: each gets one reply, unless the daemon ends before."""

        def run() -> None:
            daemon, replies, sent = self._keeper.daemon, Counter[bytes](), 0
            last = time.monotonic() + header["deadline_ms"] / 1e3
            with self._peer() as peer:
                with suppress(zmq.Again):
                    for number in range(count):
                        made = RequestHeader(v=1, id=b"%d" % number, op="infer", **header)  # type: ignore[arg-type]
                        rows = {"ids": Tensor.from_rows([_row(number, ids)])}
                        peer.send_multipart(encode_request(made, rows))
                        sent += 1
                # As long as replies come, it is this process that is slow to read them.
                while sum(replies.values()) < sent and time.monotonic() < last + SILENCE_S:
                    with suppress(zmq.Again):
                        self._judge_reply(peer.recv_multipart(), ids, replies)
                        last = max(last, time.monotonic())
            if max(replies.values(), default=0) > 1:
                self._judge.wrong.append(f"{replies.most_common(1)} replies to one request")
            if len(replies) < sent and daemon is self._keeper.daemon and daemon.process.poll() is None:
                said = f"{sent - len(replies)} of {sent} requests without a reply"
                self._judge.wrong.append(f"{said}; the log's end: {daemon.log[-1000:]}")

        self._behind(run)

    def _judge_reply(self, frames: list[bytes], ids: list[int], replies: Counter[bytes]) -> None:
        header, outputs = decode_reply(frames)
        replies[header.id] += 1
        if header.error:
            if header.error.code not in HONEST | CULPRITS:
                self._judge.wrong.append(f"burst: {header.error}")
            return
        row = _row(int(header.id), ids)
        if outputs["y"].to_numpy().tolist() != [oracle(row)]:
            self._judge.wrong.append(f"burst: wrong value for {row}")

    def _garbage(self) -> None:
        dice = random.Random(self._dice.random())

        def run() -> None:
            with self._peer() as peer, suppress(zmq.Again):
                for _ in range(500):
                    peer.send_multipart(
                        [dice.randbytes(dice.randrange(40)) for _ in range(dice.randrange(1, 6))]
                    )
                    peer.send_multipart([b"", dice.randbytes(dice.randrange(200))])

        self._behind(run)

    def _half_open(self) -> None:
        greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\x00" + bytes(31)
        cuts = [self._dice.randrange(len(greeting)) for _ in range(60)]

        def run() -> None:
            opened = []
            for cut in cuts:
                raw = socket.socket(socket.AF_UNIX)
                raw.settimeout(1)
                opened.append(raw)
                with suppress(OSError):
                    raw.connect(self._keeper.daemon.endpoint.removeprefix("ipc://"))
                    raw.sendall(greeting[:cut])
            time.sleep(2)
            for raw in opened:
                raw.close()

        self._behind(run)

    def _never_reads(self) -> None:
        def run() -> None:
            metrics = [bytes(f) for f in encode_request(RequestHeader(v=1, id=b"1", op="metrics"))]
            with self._peer() as peer, suppress(zmq.Again):
                for _ in range(300):
                    peer.send_multipart(metrics)
                time.sleep(1)

        self._behind(run)


def _row(number: int, ids: list[int]) -> list[int]:
    """The row of request `number` of a burst: another one for each, so that answers cannot be mixed up unseen."""
    return [number % 1000, *ids]
